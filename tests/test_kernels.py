"""The kernels of our own against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from minibert.kernels import Dropout, attention, attention_by_products, dropout


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
