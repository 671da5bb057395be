"""Which tokens of a batch are real, so that no layer computes padding.

    (B, T) ids with padding -> (R, D) real tokens -> every layer -> (B, T, D), 0 at the padding

Everything in an encoder but attention acts on a token by itself, so it runs on the R real tokens
of a batch in one row (the "unpadding" of MosaicBERT, Portes et al. 2023, section 3). Attention
needs sequences side by side again: they are ordered by length, and a group of similar length is
padded to its own longest, so sequences never see each other.

No two batches hold equally many tokens, and for every new shape of a product oneDNN compiles a
kernel, which costs as much as a small product. So the row is filled up, by 1 % in the mean, and so
are a group's lengths, to numbers of which there are few; nothing reads what fillers give.

Shapes: B batch, T tokens, R real tokens of the batch and fillers, D hidden_size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_GROUPS = 4  # of equally many sequences: a product more costs more than padding ...
_GROUP_TOKENS = 512  # ... as it does in groups of fewer tokens, padding included
_SHORT = 32  # up to this length all sequences are one group


class Group(NamedTuple):
    """Sequences that attention takes together.

    places: (r,) where their r real tokens lie in num_sequences * length, sequence by sequence;
    None where all are real, or where padding is computed like them. mask: (b, 1, 1, length),
    True = attend, or None to attend to all.
    """

    num_sequences: int
    length: int
    num_tokens: int
    places: Tensor | None
    mask: Tensor | None

    def pad(self, rows: Tensor) -> Tensor:
        """(r, D) -> (num_sequences, length, D), 0 at the padding."""
        width = rows.shape[-1]
        if self.places is not None:
            rows = _spread(rows, self.places, self.num_sequences * self.length)
        return rows.view(self.num_sequences, self.length, width)

    def unpad(self, padded: Tensor) -> Tensor:
        """(num_sequences, length, D) -> (r, D)."""
        rows = padded.reshape(-1, padded.shape[-1])
        return rows if self.places is None else rows.index_select(0, self.places)


class Layout(NamedTuple):
    """Where the real tokens of a (B, T) batch lie.

    places: in B * T, in the order in which the layers see them; None where that is all of them as
    they stand. groups: in the same order. num_fillers: rows after them, of zeros to begin with.
    """

    shape: tuple[int, int]
    places: Tensor | None
    groups: tuple[Group, ...]
    num_fillers: int = 0

    def take(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (R, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.places is None else self._fill(flat.index_select(0, self.places))

    def positions(self, device: torch.device) -> Tensor:
        """(R,): which place in its sequence each token has, 0 for fillers."""
        batch, length = self.shape
        if self.places is None:
            return torch.arange(length, device=device).repeat(batch)
        return self._fill(self.places % length)

    def _fill(self, *parts: Tensor) -> Tensor:
        if self.num_fillers:
            parts = (*parts, parts[0].new_zeros(self.num_fillers, *parts[0].shape[1:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows_of(self, places: Tensor) -> Tensor:
        """(N,) in B * T -> (N,): which of the R rows hold these tokens.

        Raises:
            ValueError: one is padding.
        """
        if self.places is None:
            return places
        batch, length = self.shape
        rows = self.places.new_full((batch * length,), -1)
        rows[self.places] = torch.arange(len(self.places), device=rows.device)
        found = rows.index_select(0, places)
        if bool((found < 0).any()):
            raise ValueError("a token that is asked for is padding")
        return found

    def first_rows(self, device: torch.device) -> Tensor:
        """(B,): which of the R rows begin a sequence, in the order of the layers.

        Raises:
            ValueError: a sequence begins with padding.
        """
        batch, length = self.shape
        if self.places is None:  # no value is asked for, so a GPU goes on and a compiler too
            return torch.arange(batch, device=device) * length
        rows = (self.places % length == 0).nonzero().squeeze(1)
        if len(rows) < batch:
            raise ValueError("a sequence begins with padding; its first token is asked for")
        return rows

    def restore_firsts(self, rows: Tensor) -> Tensor:
        """(B, D) in the order of the layers -> (B, 1, D) in that of the batch."""
        if self.places is not None:
            sequences = self.places[self.first_rows(rows.device)] // self.shape[1]
            rows = rows.index_select(0, sequences.argsort())
        return rows[:, None]

    def restore(self, rows: Tensor) -> Tensor:
        """(R, D) -> (B, T, D), 0 at the padding."""
        batch, length = self.shape
        if self.places is not None:
            rows = _spread(rows[: len(self.places)], self.places, batch * length)
        return rows.view(batch, length, rows.shape[-1])

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, D) -> each group's rows."""
        *parts, _ = rows.split([*(group.num_tokens for group in self.groups), self.num_fillers])
        return parts

    def join(self, parts: list[Tensor]) -> Tensor:
        """Each group's rows -> (R, D), 0 for fillers."""
        return self._fill(*parts)


def _spread(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Rows put at places of `count` rows of zeros; index_copy's backward adds nothing up."""
    return rows.new_zeros(count, rows.shape[-1]).index_copy(0, places, rows)


def full_layout(shape: tuple[int, int], mask: Tensor | None = None) -> Layout:
    """All tokens as they stand, padding computed like the rest.

    Args:
        mask: (B, T) bool, which tokens are attended to.
    """
    batch, length = shape
    broadcast = None if mask is None else mask[:, None, None, :]
    return Layout(shape, None, (Group(batch, length, batch * length, None, broadcast),))


def unpadded_layout(mask: Tensor) -> Layout:
    """The real tokens of a batch, in groups of sequences of similar length, longest first.

    Args:
        mask: (B, T) bool, True = a real token. Padding may stand anywhere.
    """
    batch, length = mask.shape
    if bool(mask.all()):
        return full_layout((batch, length))
    lengths = mask.sum(1)
    order = torch.argsort(lengths, descending=True, stable=True)
    every = torch.arange(batch * length, device=mask.device).view(batch, length)
    places = every[order][mask[order]]
    groups = tuple(
        _group(lengths[order[start:stop]], longest)
        for start, stop, longest in _parted(lengths[order].tolist())
    )
    fillers = _of_few(len(places), 5) - len(places)
    return Layout((batch, length), places, groups, fillers)


def _parted(lengths: list[int]) -> list[tuple[int, int, int]]:
    """Of lengths in falling order: where each group starts and stops, and its filled-up length."""
    size = -(-len(lengths) // (1 if lengths[0] <= _SHORT else _GROUPS))
    size = max(size, -(-_GROUP_TOKENS // max(1, lengths[0])))
    parts: list[tuple[int, int, int]] = []
    for first in range(0, len(lengths), size):
        longest = _of_few(max(1, lengths[first]), 4)
        is_more = bool(parts) and parts[-1][2] == longest
        start = parts.pop()[0] if is_more else first
        parts.append((start, min(first + size, len(lengths)), longest))
    return parts


def _of_few(count: int, bits: int) -> int:
    """The next number of which there are 2**bits between a power of two and the next."""
    step = 1 << max(0, count.bit_length() - 1 - bits)
    return -(-count // step) * step


def _group(lengths: Tensor, longest: int) -> Group:
    real = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (b, longest)
    count = int(lengths.sum())
    if count == real.numel():
        return Group(len(lengths), longest, count, None, None)
    places = real.reshape(-1).nonzero().squeeze(1)
    return Group(len(lengths), longest, count, places, real[:, None, None, :])
