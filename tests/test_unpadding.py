"""Padding is left out and put back, and what stands between sees real tokens only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import two_threads  # noqa: F401
from torch import Tensor

from minibert import unpadding
from minibert.config import BertConfig
from minibert.model import BertModel, SelfAttention
from minibert.packing import packed_layout
from minibert.unpadding import full_layout, unpadded_layout


def prefix(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


@given(st.lists(st.integers(0, 70), min_size=1, max_size=12), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_unpadding_and_padding_is_the_identity(lengths: list[int], extra: int) -> None:
    mask = prefix(lengths, max(1, *lengths) + extra)
    x = torch.randn(*mask.shape, 3)
    layout = unpadded_layout(mask)
    rows = layout.take(x)
    assert len(rows) == sum(lengths) + layout.num_fillers
    assert layout.num_fillers <= sum(lengths) / 32
    torch.testing.assert_close(layout.restore(rows), x * mask[:, :, None], rtol=0, atol=0)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_groups_hold_every_token_once_beside_similar_lengths(lengths: list[int]) -> None:
    mask = prefix(lengths, max(lengths))
    places = torch.arange(mask.numel()).view(mask.shape)
    layout = unpadded_layout(mask)
    seen, seen_lengths = [], []
    for group, rows in zip(layout.groups, layout.split(layout.take(places)[:, None]), strict=True):
        padded = group.pad(rows + 1)[:, :, 0]  # + 1 tells tokens from padding
        assert torch.equal(group.unpad(padded[:, :, None]), rows + 1)
        real = (padded > 0).sum(1)
        assert real.max() <= group.length <= real.max() * 17 / 16
        assert not seen_lengths or real.max() <= min(seen_lengths)
        seen_lengths += real.tolist()
        assert group.mask is None or torch.equal(group.mask[:, 0, 0], padded > 0)
        assert group.mask is not None or bool((padded > 0).all())
        seen += (rows[:, 0]).tolist()
    assert sorted(seen) == places[mask].tolist()


def test_positions_are_those_in_the_sequence() -> None:
    mask = prefix([2, 5, 3], 6)
    found = unpadded_layout(mask).positions(mask.device)
    assert found.tolist() == [*range(5), *range(3), *range(2)]  # longest first
    assert full_layout((2, 3)).positions(mask.device).tolist() == [0, 1, 2, 0, 1, 2]


def test_a_batch_without_padding_needs_no_index() -> None:
    layout = unpadded_layout(torch.ones(3, 4, dtype=torch.bool))
    assert layout == full_layout((3, 4))


def test_groups_of_few_tokens_are_taken_together() -> None:
    for lengths, sizes in (
        ([100, 90, 80, 70, 60, 50, 40, 30], [6, 2]),
        ([500, 400, 300, 200, 100, 90, 80, 70], [2, 2, 2, 2]),
    ):
        layout = unpadded_layout(prefix(lengths, lengths[0]))
        assert [group.num_sequences for group in layout.groups] == sizes


def test_rows_of_places_hold_their_tokens() -> None:
    mask = prefix([2, 5, 3], 6)
    ids = torch.arange(18).view(3, 6)
    places = torch.tensor([14, 0, 9, 1])
    for layout in (unpadded_layout(mask), packed_layout(mask, mask.device), full_layout((3, 6))):
        assert layout.take(ids).index_select(0, layout.rows_of(places)).tolist() == places.tolist()
    with pytest.raises(ValueError, match="padding"):
        unpadded_layout(mask).rows_of(torch.tensor([2]))


def test_padding_inside_a_sequence_is_left_out_too(tiny_config: BertConfig) -> None:
    model = BertModel(tiny_config).eval()
    ids = torch.randint(5, 80, (2, 8))
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0, 0]])
    unpadded = model(ids, attention_mask=mask).last_hidden_state
    layout = full_layout((2, 8), mask.bool())
    model._layout = lambda *_: layout  # type: ignore[method-assign]
    padded = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(unpadded[mask.bool()], padded[mask.bool()])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_real_tokens_and_gradients_equal_those_of_padded_rows(
    tiny_config: BertConfig, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpadding, "_GROUP_TOKENS", 1)  # so few tokens would be one group
    lengths = [64, 61, 40, 33, 32, 9, 2, 1]
    mask = prefix(lengths, 64)
    ids = torch.randint(5, 80, mask.shape)
    upstream = torch.randn(*mask.shape, tiny_config.hidden_size) * mask[:, :, None]
    model, found = BertModel(replace(tiny_config, max_position_embeddings=64)).eval(), []
    for layout in (unpadded_layout(mask), full_layout((8, 64), mask)):
        model._layout = lambda *_, chosen=layout: chosen  # type: ignore[method-assign, misc]
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = model(ids, attention_mask=mask)
        (out.last_hidden_state.float() * upstream).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({"out": out.last_hidden_state[mask].float().detach()} | grads)
    layout = unpadded_layout(mask)
    assert len(layout.groups) > 2 and layout.num_fillers
    tolerance = 2e-5 if precision == torch.float32 else 3e-2
    for name, ours in found[0].items():
        theirs = found[1][name]
        allowed = tolerance * max(1e-3, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, atol=allowed, rtol=0, msg=name)


def test_layers_see_no_padding(tiny_config: BertConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        SelfAttention, "forward", lambda self, x, layout, *_: (seen.append(len(x)), x)[1]
    )
    mask = prefix([7, 3, 5], 7)
    BertModel(tiny_config)(torch.zeros(3, 7, dtype=torch.long), attention_mask=mask)
    assert seen == [15] * tiny_config.num_hidden_layers
