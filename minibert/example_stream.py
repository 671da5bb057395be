"""The endless sequence of training examples: repeatable, with a place to go on from.

Examples depend on the seed, the epoch and their document alone, so the order does not depend on
workers, devices or restarts, and nothing that grows with the corpus is held in memory: documents
are visited in the order of a keyed permutation, a block of them at a time, and the examples of a
block are shuffled among themselves. Of a very long document a block holds a part at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from minibert.documents import Permutation
from minibert.errors import InputError
from minibert.examples import Example, ExampleBuilder, pack, unpack

_BLOCK_DOCUMENTS = 512  # documents whose examples are shuffled together, at most ...
_BLOCK_TOKENS = 4 << 20  # ... and about how many tokens, so that long documents fit into memory
_PARTS_KEPT = 64  # blocks of which the number of parts is remembered
Spread = Callable[[Callable[[int], Any], int], list[Any]]  # a function and how often to call it


class BlockPlace(NamedTuple):
    """Whose examples are shuffled together: of an epoch's block, of all documents a part."""

    epoch: int
    block: int
    part: int


class ExampleStream:
    """The endless, repeatable sequence of training examples, with a position that can be saved."""

    def __init__(
        self,
        builder: ExampleBuilder,
        seed: int,
        spread: Spread | None = None,
        build: Callable[[ExampleStream, BlockPlace], list[Example]] | None = None,
    ) -> None:
        """Begins at the first epoch.

        Args:
            spread: as `World.map`, where several processes build the documents of a block
                together; then all of them must move through the stream alike.
            build: what gives the examples of a place instead of `built`, such as one that has
                them built ahead.
        """
        self.builder, self.seed, self.spread = builder, seed, spread
        self.build_place = build or ExampleStream.built
        mean = max(1, builder.store.counts.tokens // (len(builder.documents.starts) - 1))
        self.block_documents = max(1, min(_BLOCK_DOCUMENTS, _BLOCK_TOKENS // mean))
        self.epoch = self.block = self.part = self.offset = 0
        self._examples: list[Example] | None = None
        self._parts = 1  # of the longest document in the block; known with the examples
        self._most_parts: dict[tuple[int, int], int] = {}  # by epoch and block

    @property
    def num_blocks(self) -> int:
        return -(-len(self.builder.documents) // self.block_documents)

    @property
    def epochs_done(self) -> float:
        """How often the corpus has been gone through, as a fraction of documents."""
        start, stop = self._span(self.block)
        within = self.offset / len(self.current_block()) if self.offset else 0.0
        if self.part:
            self.current_block()
        within = (self.part + within) / self._parts
        return self.epoch + (start + within * (stop - start)) / len(self.builder.documents)

    def _span(self, block: int) -> tuple[int, int]:
        """First and last + 1 place of a block's documents in the epoch's order."""
        start = block * self.block_documents
        return start, min(start + self.block_documents, len(self.builder.documents))

    def state(self) -> dict[str, int]:
        """The position; `seek` returns to it."""
        return {
            "epoch": self.epoch,
            "block": self.block,
            "part": self.part,
            "offset": self.offset,
        }

    def seek(self, state: dict[str, int]) -> None:
        """Goes to a position that `state` gave."""
        self.epoch, self.block = state["epoch"], state["block"]
        self.part, self.offset = state["part"], state["offset"]
        self._examples, self._parts = None, 1

    def follow(self, other: ExampleStream) -> None:
        """Goes to where another stream of the same documents and seed stands.

        Of the examples that are shuffled together, as large a share is passed over as the other
        has given, rounded up.
        """
        self.seek({**other.state(), "offset": 0})
        if other.offset:
            given, of = other.offset, len(other.current_block())
            self.offset = -(-given * len(self.current_block()) // of)

    def current_block(self) -> list[Example]:
        """The shuffled examples of the block, and of its part, that the position is in."""
        if self._examples is None:
            self._parts = self._parts_in(self.epoch, self.block)
            self._examples = self.build_place(self, BlockPlace(self.epoch, self.block, self.part))
        return self._examples

    def _positions(self, epoch: int, block: int) -> list[int]:
        """The block's documents, by their positions in the set."""
        order = Permutation(len(self.builder.documents), self.seed, epoch)
        return [order[i] for i in range(*self._span(block))]

    def _parts_of(self, positions: list[int]) -> list[int]:
        return [self.builder.documents.num_parts(position) for position in positions]

    def _parts_in(self, epoch: int, block: int) -> int:
        """How many parts the block's longest document has."""
        if (epoch, block) not in self._most_parts:
            if len(self._most_parts) >= _PARTS_KEPT:
                self._most_parts.clear()
            self._most_parts[epoch, block] = max(self._parts_of(self._positions(epoch, block)))
        return self._most_parts[epoch, block]

    def built(self, place: BlockPlace) -> list[Example]:
        """The examples of a place, in their order; a pure function of the seed and the place."""
        positions = self._positions(place.epoch, place.block)
        parts = self._parts_of(positions)
        wanted = [p for p, count in zip(positions, parts, strict=True) if place.part < count]
        examples = [example for found in self._build(wanted, place) for example in found]
        rng = np.random.default_rng([self.seed, place.epoch, place.block, 1 + place.part])
        return [examples[i] for i in rng.permutation(len(examples))]

    def following(self, place: BlockPlace) -> BlockPlace:
        """The place after one."""
        if place.part + 1 < self._parts_in(place.epoch, place.block):
            return place._replace(part=place.part + 1)
        if place.block + 1 < self.num_blocks:
            return BlockPlace(place.epoch, place.block + 1, 0)
        return BlockPlace(place.epoch + 1, 0, 0)

    def _build(self, positions: list[int], place: BlockPlace) -> Iterable[list[Example]]:
        """The examples of each document, or of its part."""

        def build(number: int) -> list[Example]:
            return self.builder.build(self.seed, place.epoch, positions[number], place.part)

        if self.spread is None:
            return map(build, range(len(positions)))
        packed = self.spread(lambda number: pack(build(number)), len(positions))
        return map(unpack, packed)

    def take(self, count: int) -> list[Example]:
        """The next `count` examples."""
        taken: list[Example] = []
        epoch = self.epoch
        while len(taken) < count:
            block = self.current_block()
            part = block[self.offset : self.offset + count - len(taken)]
            taken += part
            self.offset += len(part)
            if self.offset >= len(block):
                self.part, self.offset, self._examples = self.part + 1, 0, None
                if self.part < self._parts:
                    continue
                self.block, self.part, self._parts = self.block + 1, 0, 1
                if self.block == self.num_blocks:
                    if self.epoch > epoch and not taken:
                        raise InputError("the corpus gives no example; see --nsp")
                    self.epoch, self.block = self.epoch + 1, 0
        return taken
