"""The kernels of our own against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from samples import two_threads  # noqa: F401
from torch.nn import functional as F

from minibert import kernels
from minibert.kernels import (
    Dropout,
    attention,
    attention_by_products,
    dropout,
    linear_cross_entropy,
)
from minibert.losses import IGNORE_INDEX


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_by_products_equals_the_fused_kernel(dtype: torch.dtype) -> None:
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    query, key, value = torch.randn(3, 3, 2, 7, 16)
    upstream = torch.randn(3, 2, 7, 16)
    found = []
    for kernel in (attention_by_products, F.scaled_dot_product_attention):
        # The reference is the fused kernel in fp32, whatever is compared with it.
        kind = dtype if kernel is attention_by_products else torch.float32
        inputs = [x.to(kind).detach().requires_grad_() for x in (query, key, value)]
        out = kernel(*inputs, mask[:, None, None, :], 0.0)
        out.backward(upstream.to(kind))
        found.append([out.detach().float(), *(x.grad.float() for x in inputs)])
    for ours, theirs in zip(*found, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours, theirs, atol=tolerance * theirs.abs().max(), rtol=0)


def test_attention_by_products_without_a_mask_sees_all() -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 8)
    everything = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    masked = attention_by_products(query, key, value, everything, 0.0)
    torch.testing.assert_close(attention_by_products(query, key, value, None, 0.0), masked)


def test_attention_by_products_drops_weights() -> None:
    query, key = torch.zeros(2, 1, 1, 400, 8)
    out = attention_by_products(query, key, torch.ones(1, 1, 400, 8), None, 0.25)
    assert out.std() > 0
    assert abs(out.mean() - 1) < 0.01  # those kept are scaled up


@pytest.mark.parametrize(
    ("dtype", "prob", "expected"),
    [
        (torch.bfloat16, 0.0, "products"),
        (torch.bfloat16, 0.1, "products"),
        (torch.float32, 0.1, "products"),
        (torch.float32, 0.0, "fused"),
    ],
)
def test_products_are_taken_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, prob: float, expected: str
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(
        "minibert.kernels.attention_by_products", lambda *_: taken.append("products")
    )
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_: taken.append("fused"))
    x = torch.zeros(1, 1, 2, 4, dtype=dtype)
    attention(x, x, x, None, prob)
    assert taken == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prob", [0.1, 0.5])
def test_dropout_keeps_and_scales_as_it_should(prob: float, dtype: torch.dtype) -> None:
    x = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    out = dropout(x, prob)
    kept = out != 0
    assert out.dtype == dtype
    assert abs(float(kept.float().mean()) - (1 - prob)) < 0.002  # four deviations
    torch.testing.assert_close(
        out[kept].max().float(), torch.tensor(1 / (1 - prob)), rtol=1e-2, atol=0
    )
    assert out[kept].min() == out[kept].max()
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())  # dropped elements carry no gradient


def test_dropped_elements_do_not_hang_together() -> None:
    kept = dropout(torch.ones(4000, 64), 0.3) != 0
    for shift in (1, 2, 3, 4, 64):
        flat = kept.flatten().float() - 0.7
        correlation = (flat[shift:] * flat[:-shift]).mean() / 0.21
        assert abs(float(correlation)) < 0.01


def test_dropout_is_repeated_by_the_seed() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(dropout(torch.ones(7, 3), 0.5))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], dropout(torch.ones(7, 3), 0.5))


def test_no_dropout_and_all_dropout_are_exact() -> None:
    x = torch.randn(50)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros(50))
    assert torch.equal(Dropout(0.4).eval()(x), x)


def scored_rows(rows: int = 13, words: int = 50) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x (R, 8), weight (V, 8), bias (V,), with every third label left out."""
    leaves = [torch.randn(rows, 8), torch.randn(words, 8), torch.randn(words)]
    labels = torch.randint(words, (rows,))
    labels[::3] = IGNORE_INDEX
    return [leaf.requires_grad_() for leaf in leaves], labels


def by_cross_entropy(
    leaves: list[torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = F.linear(*leaves).float()
    loss = F.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss, (scores.argmax(1) == labels).sum()


@pytest.mark.parametrize("words", [50, 64])  # filled up to 64, and as it is
@pytest.mark.parametrize("held", [50, 4 * 50, 1 << 24])  # one row at a time, some, all
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_linear_cross_entropy_equals_the_two_steps(
    monkeypatch: pytest.MonkeyPatch, held: int, words: int, dtype: str, tolerance: float
) -> None:
    monkeypatch.setattr(kernels, "SCORES_HELD", held)
    monkeypatch.setattr(kernels, "_SCORES_FLOAT", 3 * 50)
    leaves, labels = scored_rows(words=words)
    labels[1] = F.linear(*leaves).argmax(1)[1]  # a hit
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        loss, hits = linear_cross_entropy(*leaves, labels)
    expected, expected_hits = by_cross_entropy(leaves, labels)
    for one in (loss, expected):
        found.append(torch.autograd.grad(3 * one, leaves))  # the loop divides it, too
    assert hits == expected_hits >= 1
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def test_linear_cross_entropy_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = kernels._cross_entropy_of_scores
    monkeypatch.setattr(kernels, "SCORES_HELD", 200)
    monkeypatch.setattr(
        kernels,
        "_cross_entropy_of_scores",
        lambda s, *others: sizes.append(s.numel()) or real(s, *others),
    )
    leaves, labels = scored_rows()
    linear_cross_entropy(*leaves, labels)
    assert sizes == [192, 192, 192, 192, 64]  # 50 words are filled up to 64


def test_linear_cross_entropy_of_equal_scores_hits_with_the_first() -> None:
    flat = [torch.zeros(3, 8), torch.zeros(50, 8), torch.zeros(50)]
    assert linear_cross_entropy(*flat, torch.tensor([0, 1, 0]))[1] == 2


def test_linear_cross_entropy_stays_finite() -> None:
    leaves = [torch.full((2, 1), 1e4), torch.tensor([[1.0], [0.0], [-1.0]]), torch.zeros(3)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss, _ = linear_cross_entropy(*leaves, torch.tensor([0, 2]))
    assert loss == 2e4
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("rows", [0, 4])
def test_linear_cross_entropy_without_labels_is_nothing(rows: int) -> None:
    leaves, _ = scored_rows(rows)
    labels = torch.full((rows,), IGNORE_INDEX)
    loss, hits = linear_cross_entropy(*leaves, labels)
    assert (loss, hits) == (0, 0)
    assert not any(grad.any() for grad in torch.autograd.grad(loss, leaves))


def test_linear_cross_entropy_without_gradients_is_the_same() -> None:
    leaves, labels = scored_rows()
    with torch.no_grad():
        plain = linear_cross_entropy(*leaves, labels)
    assert not plain[0].requires_grad
    assert plain == linear_cross_entropy(*leaves, labels)


@pytest.mark.parametrize("wrong", [-1, -101, 50, 63, 64])
def test_linear_cross_entropy_refuses_what_is_no_word(wrong: int) -> None:
    leaves, labels = scored_rows()  # 50 words, filled up to 64
    labels[3] = wrong
    with pytest.raises(IndexError, match=f"label is {wrong}; expected 0 to 49, or -100"):
        linear_cross_entropy(*leaves, labels)
