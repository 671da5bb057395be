"""The documents of a token store: which are held out, in which order, in how large parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minibert.errors import InputError
from minibert.store import TokenStore

_PART_TOKENS = 1 << 16  # a longer document is built in parts of about this size
_MOST_STRETCHES = 1 << 20  # that a text of fewer than four documents is cut into
_HELD_OUT_TOKENS = 0.1  # of all, at most; see `_held_out`
_LOOKED_AT = 8  # documents, for each that is to be held out
_HELD_OUT_KEY = 2019  # the split does not depend on the seed: seeds compare on the same text


class Permutation:
    """A keyed shuffle of range(n) computed value by value, so that it needs no memory.

    A four-round Feistel network on just enough bits, walked until the value falls below n
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """

    def __init__(self, n: int, *key: int) -> None:
        self.n = n
        self.half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        self.keys = np.random.default_rng([*key, n]).integers(1 << 62, size=4).tolist()

    def __getitem__(self, index: int) -> int:
        mask = (1 << self.half_bits) - 1
        value = index
        while True:
            left, right = value >> self.half_bits, value & mask
            for key in self.keys:
                mixed = (right * 0x9E3779B97F4A7C15 + key) & 0xFFFFFFFFFFFFFFFF
                mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ ((mixed >> 32) & mask)
            value = left << self.half_bits | right
            if value < self.n:
                return value


class Documents:
    """A set of documents of a store, training or held out, addressed by position.

    The first documents of a fixed permutation are held out (`_held_out`); the rest are for
    training.

    Args:
        first: which places of the permutation come first, the others after them in its order.
    """

    def __init__(
        self,
        store: TokenStore,
        starts: np.ndarray,
        order: Permutation,
        span: range,
        first: Sequence[int] = (),
    ):
        self.store, self.starts, self.order, self.span = store, starts, order, span
        passed = set(range(max(first, default=-1) + 1)).difference(first)
        self._front = [*first, *sorted(passed)]

    def __len__(self) -> int:
        return len(self.span)

    @property
    def tokens(self) -> int:
        """How many there are in all; every document is looked at."""
        return sum(_tokens_of(self.store, self.starts, self._document(i)) for i in range(len(self)))

    def _document(self, position: int) -> int:
        """The number in the store of the document at a position."""
        place = self.span[position]
        return self.order[self._front[place] if place < len(self._front) else place]

    def offsets(self, position: int, part: int | None = None) -> np.ndarray:
        """Where the sentences of a document, or of one of its parts, start and end.

        Args:
            part: 0 to `num_parts(position)` - 1; None for the whole document.

        Returns:
            Offsets into the store's tokens, one more than there are sentences; a view.
        """
        document = self._document(position)
        first, last = self.starts[document : document + 2]
        whole = self.store.sentence_starts[first : last + 1]
        if part is None or whole[-1] - whole[0] <= _PART_TOKENS:
            return whole
        # A sentence belongs to the part that it starts in.
        edges = whole[0] + _PART_TOKENS * np.array([part, part + 1])
        start, stop = np.searchsorted(whole[:-1], edges)
        return whole[start : stop + 1]

    def num_parts(self, position: int) -> int:
        """How many parts a document is built in; 1 for all but very long ones."""
        offsets = self.offsets(position)
        return max(1, -(-int(offsets[-1] - offsets[0]) // _PART_TOKENS))


def split_documents(store: TokenStore, nsp: str) -> tuple[Documents, Documents]:
    """Training and held-out documents: 5 % are held out, at least 2 and at most 1,000.

    Very long ones are rather trained on, so that the text is not held out with them.

    Without pairs a text of fewer than four documents is cut into stretches of sentences first,
    so that a single long text can be learnt from.

    Raises:
        InputError: too few documents to pair, or too little text to hold any out.
    """
    starts: np.ndarray = store.document_starts
    count = len(starts) - 1
    if count < 4 and nsp == "none":
        sentences = store.counts.sentences
        if sentences < 4:
            raise InputError(
                f"the corpus has {sentences} sentence(s); at least 4 are needed to train and to "
                f"hold some out"
            )
        count = min(sentences, max(20, sentences // 64), _MOST_STRETCHES)
        starts = np.linspace(0, sentences, count + 1).astype(np.int64)
    elif count < 4:
        lack = "for sentence pairs from different documents"
        if nsp == "sop":
            lack = "to train on some and to hold two out for sentence pairs"
        raise InputError(
            f"the corpus has {count} document(s) and {store.counts.sentences} sentence(s), too few "
            f"{lack} (a blank line ends a document); --nsp none trains without pairs"
        )
    if nsp == "nsp" and store.counts.single_sentence_documents == count:
        raise InputError(
            "every document is one sentence, so none has a next one (a blank line ends a "
            "document); --nsp none trains without pairs"
        )
    least = 2 if nsp != "none" else 1
    held_out = min(max(least, round(0.05 * count)), 1000)
    order = Permutation(count, _HELD_OUT_KEY)
    first = _held_out(store, starts, order, held_out, least)
    return (
        Documents(store, starts, order, range(len(first), count), first),
        Documents(store, starts, order, range(len(first)), first),
    )


def _held_out(
    store: TokenStore, starts: np.ndarray, order: Permutation, wanted: int, least: int
) -> list[int]:
    """Which places of a permutation are held out: the first ones, but for very long documents.

    Together they are to hold at most a tenth of the tokens, or 1.5 times their share of the
    documents if that is more: a text of a long document and some short ones would else be left
    with the short ones to learn from.

    Args:
        starts: of the documents. wanted: how many. least: how many are needed, however long.
    """
    limit = max(_HELD_OUT_TOKENS, 1.5 * wanted / order.n) * store.counts.tokens
    found, sizes = list[int](), list[tuple[int, int]]()
    for place in range(min(order.n, _LOOKED_AT * wanted)):
        size = _tokens_of(store, starts, order[place])
        sizes.append((size, place))
        if size <= limit:
            found.append(place)
            limit -= size
            if len(found) == wanted:
                return found
    shortest = sorted(place for _, place in sorted(sizes)[:least])
    return found if len(found) >= least else shortest


def _tokens_of(store: TokenStore, starts: np.ndarray, document: int) -> int:
    first, last = starts[document : document + 2]
    return int(store.sentence_starts[last] - store.sentence_starts[first])
