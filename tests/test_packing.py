"""Tokens of a batch in one row: what stands where, and that the model computes the same so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minibert.config import BertConfig
from minibert.model import BertModel
from minibert.packing import packed_layout, takes_packed
from minibert.unpadding import full_layout

CPU = torch.device("cpu")


def prefix(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_packing_and_restoring_is_the_identity(lengths: list[int], extra: int) -> None:
    mask = prefix(lengths, max(lengths) + extra)
    x = torch.randn(*mask.shape, 3)
    layout = packed_layout(mask, CPU)
    rows = layout.take(x)
    count = sum(lengths)
    assert len(rows) % 128 == 0 and 0 <= len(rows) - count < 128
    assert torch.equal(rows[:count], x[mask])
    assert torch.equal(layout.restore(rows), x * mask[:, :, None])
    assert layout.starts.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist(), len(rows)]
    assert layout.positions(CPU)[:count].tolist() == [i for n in lengths for i in range(n)]
    assert torch.equal(rows[layout.first_rows(CPU)], x[:, 0])
    assert max(layout.starts.diff()) <= layout.longest


def test_a_gap_inside_a_sequence_counts_as_unpadding_counts_it() -> None:
    layout = packed_layout(torch.tensor([[1, 0, 1], [1, 1, 0]]).bool(), CPU)
    assert layout.places[:4].tolist() == [0, 2, 3, 4]
    assert layout.starts.tolist() == [0, 2, 4, 128]
    # A token's position is its place in the row, as where nothing is left out.
    assert layout.positions(CPU)[:4].tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize("mask", [[[0, 1], [1, 1]], [[1, 1], [0, 0]]], ids=["in front", "empty"])
def test_padding_in_front_is_refused(mask: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="begins with padding"):
        packed_layout(torch.tensor(mask).bool(), CPU)


@pytest.mark.parametrize("first_only", [False, True])
def test_values_and_gradients_equal_those_of_padded_rows(
    tiny_config: BertConfig, first_only: bool
) -> None:
    lengths = [64, 9, 61, 2, 40, 1]
    mask = prefix(lengths, 64)
    ids = torch.randint(5, 80, mask.shape)
    kept = mask[:, :1] if first_only else mask
    upstream = torch.randn(*kept.shape, tiny_config.hidden_size) * kept[:, :, None]
    model, found = BertModel(replace(tiny_config, max_position_embeddings=64)).eval(), []
    for layout in (packed_layout(mask, CPU), full_layout((6, 64), mask)):
        model._layout = lambda *_, chosen=layout: chosen  # type: ignore[method-assign, misc]
        model.zero_grad()
        out = model(ids, attention_mask=mask, first_only=first_only)
        (out.last_hidden_state * upstream).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({"out": out.last_hidden_state[kept].detach()} | grads)
    assert found[0].keys() == found[1].keys()
    for name, ours in found[0].items():
        theirs = found[1][name]
        # Padded rows compute the padding too, whose position and words get no gradient here.
        allowed = 2e-5 * max(1e-3, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, atol=allowed, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("head_size", "capability", "takes"),
    [
        (64, (8, 0), True),
        (256, (9, 0), True),
        (26, (9, 0), False),  # TinyBERT's 312 in 12 heads
        (264, (9, 0), False),
        (64, (7, 5), False),
    ],
)
def test_heads_that_the_operator_refuses_are_not_handed_to_it(
    head_size: int, capability: tuple[int, int], takes: bool
) -> None:
    assert takes_packed(head_size, capability) == takes
