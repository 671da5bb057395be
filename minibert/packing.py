"""All tokens of a batch in one row, for attention that is told where sequences begin.

    (B, T) ids with padding -> (R, D) real tokens -> every layer -> (B, T, D), 0 at the padding

What `unpadding.py` is for a CPU, this is for a GPU: FlashAttention takes sequences of any length
side by side in one row (Dao et al. 2022, the "varlen" form), so not even attention computes
padding. Where they begin is worked out from a mask that stays on the host, so that the host never
waits for the GPU, and goes there in one copy that the GPU does not wait for either.

The row is filled up to a multiple of 128, which products like; the fillers are a sequence of their
own, repeat the batch's first token, and nothing reads what they give.

Shapes: B batch, T tokens, R real tokens of the batch and fillers, D hidden_size, H heads,
K head size.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 128  # a row holds a multiple of so many tokens


class PackedLayout(NamedTuple):
    """Where the tokens of a (B, T) batch stand in the row; all on the model's device.

    places: (R,) in B * T, of fillers 0. targets: (R,) the same, of fillers B * T. in_sequence: (R,)
    which place in its sequence each token has. starts: (B + 2,) int32, where each sequence begins,
    the fillers, and R. counts: (B + 2,) int32, the same for a row of first tokens: 0 to B, and B.
    longest: no sequence has more tokens; a bound that changes little, so that compiled code stays.
    """

    shape: tuple[int, int]
    places: Tensor
    targets: Tensor
    in_sequence: Tensor
    starts: Tensor
    counts: Tensor
    longest: int

    def take(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (R, ...)."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def positions(self, device: torch.device) -> Tensor:
        """(R,): which place in its sequence each token has."""
        return self.in_sequence

    def rows_of(self, places: Tensor) -> Tensor:
        """(N,) in B * T -> (N,): which of the R rows hold these tokens, none of them padding."""
        batch, length = self.shape
        rows = self.targets.new_zeros(batch * length + 1)
        numbers = torch.arange(len(self.targets), device=rows.device)
        return rows.index_copy(0, self.targets, numbers).index_select(0, places)

    def first_rows(self, device: torch.device) -> Tensor:
        """(B,): which of the R rows begin a sequence."""
        return self.starts[: self.shape[0]]

    def restore_firsts(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B, 1, D); they stand as in the batch."""
        return rows[:, None]

    def restore(self, rows: Tensor) -> Tensor:
        """(R, D) -> (B, T, D), 0 at the padding."""
        batch, length = self.shape
        spread = rows.new_zeros(batch * length + 1, rows.shape[-1])
        return spread.index_copy(0, self.targets, rows)[:-1].view(batch, length, rows.shape[-1])


@torch.compiler.disable
def packed_layout(mask: Tensor, device: torch.device) -> PackedLayout:
    """The layout of a batch on a device.

    Args:
        mask: (B, T) bool on the host, True = a real token. Padding may stand anywhere but in front.

    Raises:
        ValueError: a sequence is empty or begins with padding.
    """
    if not bool(mask[:, 0].all()):
        raise ValueError("a sequence begins with padding; its first token is asked for")
    batch, length = mask.shape
    lengths = mask.sum(1)
    places = mask.reshape(-1).nonzero().squeeze(1)
    count = len(places)
    fillers = -count % _ROWS
    starts = torch.zeros(batch + 2, dtype=torch.int64)
    starts[1:-1] = lengths.cumsum(0)
    starts[-1] = count + fillers
    in_sequence = places % length  # as in padded rows, also behind a gap
    parts = (
        torch.cat([places, places.new_zeros(fillers)]),
        torch.cat([places, places.new_full((fillers,), batch * length)]),
        torch.cat([in_sequence, in_sequence.new_zeros(fillers)]),
        starts,
        torch.cat([torch.arange(batch + 1), torch.tensor([batch])]),
    )
    sent = copied(torch.cat(parts), device).split([len(part) for part in parts])
    begins, counts = (part.int() for part in sent[3:])
    longest = max(length, _ROWS)
    return PackedLayout((batch, length), sent[0], sent[1], sent[2], begins, counts, longest)


def takes_packed(head_size: int, capability: tuple[int, int]) -> bool:
    """Whether FlashAttention takes heads of this size as they are, on a GPU of this capability.

    `packed_attention` calls its operator, which fills no heads up (PyTorch's `flash_api.cpp`);
    others are for `scaled_dot_product_attention`, which does.
    """
    return head_size % 8 == 0 and head_size <= 256 and capability >= (8, 0)


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; to a GPU it is copied while the host goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest: int,
    dropout_prob: float,
) -> Tensor:
    """Attention of every sequence of a row to itself -> (R, H, K).

    FlashAttention on a GPU, which wants 16 bits; elsewhere sequence by sequence.

    Args:
        query, key, value: (R, H, K); the query may have other sequences, as many.
        query_starts, key_starts: int32, where each sequence begins, and the end of the last.
        longest: at least the length of every sequence.
    """
    if query.is_cuda:
        out: Tensor = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            query_starts,
            key_starts,
            longest,
            longest,
            dropout_prob,
            False,
            False,
        )[0]
        return out
    heads = [x.transpose(0, 1)[None] for x in (query, key, value)]  # each (1, H, R, K)
    ends = zip(query_starts.tolist(), key_starts.tolist(), strict=True)
    parts = []
    for (query_start, start), (query_end, end) in itertools.pairwise(ends):
        q, k, v = heads[0][:, :, query_start:query_end], *(x[:, :, start:end] for x in heads[1:])
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_prob)
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)
