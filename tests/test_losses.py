"""The losses against a log-softmax written out by hand, and what must carry no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minibert.losses import (
    IGNORE_INDEX,
    classification_loss,
    masked_lm_loss,
    multi_label_loss,
    next_sentence_loss,
    squared_error,
)

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
LOSSES = [masked_lm_loss, next_sentence_loss, classification_loss]


def by_hand(logits: list[list[float]], labels: list[int]) -> tuple[float, int]:
    """-log softmax of the labelled rows, one row after the other, in Python floats."""
    total, count = 0.0, 0
    for row, label in zip(logits, labels, strict=True):
        if label != IGNORE_INDEX:
            top = max(row)
            total += top + math.log(sum(math.exp(x - top) for x in row)) - row[label]
            count += 1
    return total, count


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits (B, M, V) up to +-30 and labels (B, M), some of them ignored."""
    batch, slots, classes = (draw(st.integers(1, 4)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(batch, slots, classes, generator=generator) * draw(
        st.sampled_from([0.1, 1.0, 10.0])
    )
    labels = torch.randint(0, classes, (batch, slots), generator=generator)
    ignored = torch.rand(batch, slots, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return logits, labels.masked_fill(ignored, IGNORE_INDEX)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(scored())
def test_masked_lm_loss_is_the_sum_and_count_by_hand(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    total, count = masked_lm_loss(logits, labels)
    expected = by_hand(logits.flatten(0, 1).tolist(), labels.flatten().tolist())
    assert total.item() == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    assert count.item() == expected[1]


@pytest.mark.parametrize("loss", [next_sentence_loss, classification_loss])
def test_sentence_losses_are_the_sum_and_count_by_hand(loss: Loss) -> None:
    logits, labels = torch.randn(6, 2) * 3, torch.tensor([0, 1, 1, 0, 0, 0])
    total, count = loss(logits, labels)
    expected, expected_count = by_hand(logits.tolist(), labels.tolist())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count.item() == expected_count == 6


def test_no_loss_takes_a_mean() -> None:
    for loss in LOSSES:
        logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
        once, count = loss(logits, labels)
        twice, both = loss(torch.cat([logits, logits]), torch.cat([labels, labels]))
        torch.testing.assert_close(twice, 2 * once)
        assert (count.item(), both.item()) == (4, 8)


def test_ignore_index_can_never_be_a_class() -> None:
    assert IGNORE_INDEX < 0


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("loss", [next_sentence_loss, classification_loss])
def test_both_classes_carry_gradient(loss: Loss, label: int) -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    total, count = loss(logits, torch.full((3,), label))
    total.backward()
    assert count.item() == 3
    assert logits.grad is not None
    assert (logits.grad[:, label] < 0).all()  # the right class is pushed up
    assert (logits.grad[:, 1 - label] > 0).all()


def test_token_zero_is_a_class_of_the_masked_words() -> None:
    logits = torch.randn(1, 2, 5, requires_grad=True)
    total, count = masked_lm_loss(logits, torch.tensor([[0, 0]]))
    total.backward()
    assert count.item() == 2
    assert logits.grad is not None
    assert (logits.grad[..., 0] < 0).all()


def test_unused_slots_carry_no_gradient_and_change_nothing() -> None:
    logits = torch.randn(2, 3, 7, requires_grad=True)
    labels = torch.tensor([[4, IGNORE_INDEX, 2], [IGNORE_INDEX, IGNORE_INDEX, 6]])
    total, count = masked_lm_loss(logits, labels)
    total.backward()
    used = labels != IGNORE_INDEX
    assert logits.grad is not None
    assert (logits.grad[~used] == 0).all()
    assert (logits.grad[used].abs().sum(-1) > 0).all()
    alone, alone_count = masked_lm_loss(logits[used][None], labels[used][None])
    torch.testing.assert_close(total, alone)
    assert count.item() == alone_count.item() == 3


@pytest.mark.parametrize("loss", LOSSES)
def test_no_labelled_slot_gives_zero_and_a_zero_gradient(loss: Loss) -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    total, count = loss(logits, torch.full((4,), IGNORE_INDEX))
    total.backward()
    assert total.item() == 0.0
    assert count.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()  # not NaN: nothing was divided by the count


@pytest.mark.parametrize("loss", LOSSES)
def test_sums_are_float32_for_half_precision_logits(loss: Loss) -> None:
    logits = torch.randn(500, 2).bfloat16().requires_grad_()
    labels = torch.arange(500) % 2
    total, _ = loss(logits, labels)
    assert total.dtype == torch.float32
    expected, _ = by_hand(logits.tolist(), labels.tolist())
    # bfloat16 keeps 3 digits: a sum in it would be off by more than this.
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("loss", LOSSES)
def test_a_label_outside_the_classes_is_an_error(loss: Loss) -> None:
    for label in (2, -1):
        with pytest.raises(IndexError):
            loss(torch.randn(1, 2), torch.tensor([label]))


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    total, _ = next_sentence_loss(logits, torch.tensor([1]))
    total.backward()
    assert total.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_smoothed_terms_have_the_weight_of_their_own_class() -> None:
    logits, weights = torch.randn(5, 3), torch.tensor([1.0, 2.0, 0.5])
    labels = torch.tensor([0, 2, IGNORE_INDEX, 1, 1])
    total, count = classification_loss(logits, labels, weights, smoothing=0.3)
    log_p = logits.log_softmax(-1)
    expected = sum(
        -weights[y] * (0.7 * log_p[i, y] + 0.1 * log_p[i].sum())
        for i, y in enumerate(labels.tolist())
        if y != IGNORE_INDEX
    )
    torch.testing.assert_close(total, expected)
    assert count.item() == 4
    truth = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    positives, p = torch.tensor([3.0, 9.0, 0.25]), logits[:2].sigmoid()
    for own in (None, weights):
        total, _ = multi_label_loss(logits[:2], truth, own, 0.2, positives)
        target = truth * 0.8 + 0.1
        terms = -(target * p.log() + (1 - target) * (1 - p).log())
        terms = terms * (1 + truth * (positives - 1)) * (1 if own is None else own)
        torch.testing.assert_close(total, terms.sum())


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.bfloat16, torch.float32])
def test_labels_are_counted_whatever_their_type_can_hold(kind: torch.dtype) -> None:
    truth = torch.ones(257, 2).to(kind)
    total, count = multi_label_loss(torch.zeros(257, 2), truth)
    assert total.item() == pytest.approx(514 * math.log(2))
    assert (count.item(), count.dtype) == (514, torch.int64)
    assert squared_error(torch.zeros(257), truth[:, 0])[1].item() == 257


def test_errors_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predictions have shape \(4, 1\), labels \(4,\)"):
        squared_error(torch.zeros(4, 1), torch.ones(4))


def test_weights_do_not_move_what_is_best_for_one_example() -> None:
    s = 0.1  # the best scores are the logarithms of the smoothed target
    best = torch.tensor([[1 - s + s / 2, s / 2]]).log().requires_grad_()
    loss, _ = classification_loss(best, torch.tensor([0]), torch.tensor([0.51, 20.0]), s)
    loss.backward()
    assert best.grad is not None
    torch.testing.assert_close(best.grad, torch.zeros(1, 2), atol=1e-6, rtol=0)
    no = torch.tensor([[s / 2]]).logit().requires_grad_()
    loss, _ = multi_label_loss(no, torch.zeros(1, 1), None, s, torch.tensor([49.0]))
    loss.backward()
    assert no.grad is not None
    torch.testing.assert_close(no.grad, torch.zeros(1, 1), atol=1e-6, rtol=0)
