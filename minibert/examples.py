"""Pretraining examples: sentence pairs and masks -> batches.

After Devlin et al. 2019, sections 3.1 and A.1, and the reference implementation
(google-research/bert, create_pretraining_data.py), with dynamic masks. An example is a pure
function of the seed, the epoch and its document.

Shapes: B batch, T tokens, M predictions per sequence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.documents import Documents
from minibert.losses import IGNORE_INDEX
from minibert.store import TokenStore
from minibert.tokenizer import WordPiece

PADDED_TO = 8  # sequences are padded to a multiple of it
SHORT_PROB = 0.1  # share of pairs built to a random shorter length
_PLACES = 1  # tells the generator of positions from that of texts and masks
_EVAL_SEED = 2019  # evaluation masks are fixed
# Span masking after Joshi et al. 2020, section 3.1: geometric(0.2) words up to 10, 3.8 in the mean.
_LONGEST_SPAN, _SPAN_STOP = 10, 0.2
_SHARES = (1 - _SPAN_STOP) ** np.arange(_LONGEST_SPAN)
_SHORTER = (np.cumsum(_SHARES) / _SHARES.sum())[:-1].tolist()  # share of spans up to 1, 2, ... 9


class Example(NamedTuple):
    """One masked sequence.

    input_ids: (n,) with specials and masks in place. first_length: tokens of segment 0, [CLS] and
    the first [SEP] included. mlm_positions, mlm_labels: where tokens were chosen, and what stood
    there. next_sentence_label: 0 follows (or in order), 1 random (or swapped), None without pairs.
    first_position: the position of [CLS]; None for 0 in all examples of a run.
    """

    input_ids: np.ndarray
    first_length: int
    mlm_positions: np.ndarray
    mlm_labels: np.ndarray
    next_sentence_label: int | None
    first_position: int | None = None


class PackedExamples(NamedTuple):
    """Examples in few arrays, to be sent from one process to another.

    ids: all tokens. places: all mlm_positions, then all mlm_labels. sizes: (5, examples), of each
    its tokens, first_length, predictions, label and first_position, the last two -1 for None.
    """

    ids: np.ndarray
    places: np.ndarray
    sizes: np.ndarray


def pack(examples: list[Example]) -> PackedExamples:
    """Examples in few arrays."""
    columns = [
        (
            *(len(e.input_ids), e.first_length, len(e.mlm_positions)),
            *(-1 if n is None else n for n in (e.next_sentence_label, e.first_position)),
        )
        for e in examples
    ]
    none = [np.zeros(0, np.int64)]
    places = [*(e.mlm_positions for e in examples), *(e.mlm_labels for e in examples)]
    return PackedExamples(
        np.concatenate([e.input_ids for e in examples] or none).astype(np.int32),
        np.concatenate(places or none).astype(np.int32),
        np.array(columns, np.int32).reshape(-1, 5),
    )


def unpack(packed: PackedExamples) -> list[Example]:
    """What was packed."""
    ids = packed.ids.astype(np.int64)
    positions, labels = packed.places.astype(np.int64).reshape(2, -1)
    examples, at, slot = [], 0, 0
    for length, first, count, *numbers in packed.sizes.tolist():
        own = slice(slot, slot + count)
        label, place = (None if n < 0 else n for n in numbers)
        examples.append(
            Example(ids[at : at + length], first, positions[own], labels[own], label, place)
        )
        at, slot = at + length, slot + count
    return examples


@dataclass(frozen=True)
class ExampleOptions:
    """What a pretraining example is; see the flags of the same names.

    num_positions: a sequence begins at any that leaves room for it; None: each begins at 0.
    """

    max_seq_length: int = 128
    mask_prob: float = 0.15
    masking: str = "token"
    nsp: str = "nsp"
    num_positions: int | None = None

    @property
    def max_predictions(self) -> int:
        """M, the prediction slots of a sequence."""
        return max(1, round(self.max_seq_length * self.mask_prob))


class ExampleBuilder:
    """Builds the examples of one document out of a set of documents."""

    def __init__(
        self, store: TokenStore, tokenizer: WordPiece, documents: Documents, options: ExampleOptions
    ) -> None:
        self.store, self.tokenizer = store, tokenizer
        self.documents, self.options = documents, options
        self.is_ordinary = np.ones(tokenizer.vocab_size, bool)
        self.is_ordinary[tokenizer.special_ids] = False
        self.ordinary_ids = np.flatnonzero(self.is_ordinary)
        self._cls, self._sep = np.array([[tokenizer.cls_id], [tokenizer.sep_id]])
        self.continues_word = np.array([t.startswith("##") for t in tokenizer.tokens])

    def build(self, seed: int, epoch: int, position: int, part: int = 0) -> list[Example]:
        """The examples of the document at a position of the set, or of a part of a long one."""
        rng = np.random.default_rng([seed, epoch, position, *([part] if part else [])])
        offsets = self.documents.offsets(position, part)
        segments = self._single if self.options.nsp == "none" else self._pairs
        made = (self._mask(rng, *pair) for pair in segments(rng, position, offsets) if len(pair[0]))
        found = [example for example in made if len(example.mlm_positions)]
        if self.options.num_positions is None:
            return found
        # Of a generator of their own, so that the examples are otherwise those of an unshifted run.
        drawn = np.random.default_rng([seed, epoch, position, part, _PLACES])
        room = [self.options.num_positions - len(e.input_ids) + 1 for e in found]
        return [
            e._replace(first_position=int(drawn.integers(n)))
            for e, n in zip(found, room, strict=True)
        ]

    def _single(
        self, rng: np.random.Generator, position: int, offsets: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None, int | None]]:
        """Consecutive stretches of a document that fill the length; no pairs."""
        at, end = int(offsets[0]), int(offsets[-1])
        while at < end:
            stop = min(end, at + self._target(rng, self.options.max_seq_length - 2))
            yield self.store.tokens[at:stop], None, None
            at = stop

    def _target(self, rng: np.random.Generator, longest: int) -> int:
        short = rng.random() < SHORT_PROB
        return int(rng.integers(min(2, longest), longest + 1)) if short else longest

    def _pairs(
        self, rng: np.random.Generator, position: int, bounds: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None, int | None]]:
        """Pairs of segments: sentences are gathered until they fill the length, then parted.

        Where the reference is left with one sentence, which it can only pair at random (on short
        documents 59 % of its pairs are random), the sentence beside it is taken in as well, so
        that half the pairs are random wherever a document has two sentences.
        """
        longest = self.options.max_seq_length - 3
        offsets = bounds.tolist()
        tokens, n, i = self.store.tokens, len(offsets) - 1, 0
        while i < n:
            target = self._target(rng, longest)
            i, last = (n - 2, True) if 1 < n == i + 1 else (i, False)
            j = min(i + 2, n)
            while j < n and offsets[j] - offsets[i] < target:
                j += 1
            cut = i + 1 + int(rng.integers(j - i - 1)) if j - i > 1 else j
            first, second = tokens[offsets[i] : offsets[cut]], tokens[offsets[cut] : offsets[j]]
            if self.options.nsp == "sop":
                i = j
                if not len(second):  # one sentence: its halves are the pair
                    first, second = np.array_split(first, 2)
                    if not len(second):
                        continue
                first, second = _truncate(rng, first, second, longest)
                swapped = rng.random() < 0.5
                yield (second, first, 1) if swapped else (first, second, 0)
            elif cut == j or rng.random() < 0.5:  # a document of one sentence has no true next
                second = self._random_next(rng, position, target - len(first))
                i = n if last else cut  # sentences not used go back
                yield *_truncate(rng, first, second, longest), 1
            else:
                i = j
                yield *_truncate(rng, first, second, longest), 0

    def _random_next(self, rng: np.random.Generator, position: int, wanted: int) -> np.ndarray:
        """Sentences from a random place in another document, `wanted` tokens or a little more."""
        other = int(rng.integers(len(self.documents) - 1))
        offsets = self.documents.offsets(other + (other >= position))
        start = int(rng.integers(len(offsets) - 1))
        stop = int(np.searchsorted(offsets, offsets[start] + max(1, wanted)))
        return self.store.tokens[offsets[start] : offsets[min(stop, len(offsets) - 1)]]

    def _mask(
        self,
        rng: np.random.Generator,
        first: np.ndarray,
        second: np.ndarray | None,
        label: int | None,
    ) -> Example:
        """Adds [CLS] and [SEP], chooses tokens, and puts in 80 % [MASK], 10 % random, 10 % same.

        Which of these is drawn for each token, in spans for each span.
        """
        parts = [self._cls, first, self._sep]
        ids = np.concatenate(parts if second is None else [*parts, second, self._sep])
        wanted = max(1, round(len(ids) * self.options.mask_prob))
        chosen, spans = self._choose(rng, ids, min(wanted, self.options.max_predictions))
        labels = ids[chosen]
        fate = rng.random(len(chosen))[spans]
        replacement = self.ordinary_ids[rng.integers(len(self.ordinary_ids), size=len(chosen))]
        ids[chosen] = np.where(
            fate < 0.8, self.tokenizer.mask_id, np.where(fate < 0.9, replacement, labels)
        )
        return Example(ids, len(first) + 2, chosen, labels, label)

    def _choose(
        self, rng: np.random.Generator, ids: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sorted positions to predict, and the number of each one's span, or its own.

        Special tokens are never among them.
        """
        candidates = self.is_ordinary[ids].nonzero()[0]
        if self.options.masking == "token":
            chosen = rng.permutation(candidates)[:count]
            chosen.sort()
            return chosen, np.arange(len(chosen))
        # Words: a candidate and the ## pieces right after it, so a word's places are a range.
        new_word = ~self.continues_word[ids[candidates]] | (np.diff(candidates, prepend=-9) > 1)
        new_word[:1] = True
        begins = new_word.nonzero()[0]
        firsts = candidates[begins].tolist()
        sizes = np.diff(begins, append=len(candidates)).tolist()
        chosen, spans = self._choose_words(rng, firsts, sizes, count)
        return chosen, spans if self.options.masking == "span" else np.arange(len(chosen))

    def _choose_words(
        self, rng: np.random.Generator, firsts: list[int], sizes: list[int], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Words in random order, or spans of them (several in a row), until there are enough.

        Args:
            firsts, sizes: each word's first place in the sequence, and how many it has.
        """
        taken: dict[int, int] = {}  # words, each with the one its span starts at
        total = 0
        for start in rng.permutation(len(firsts)).tolist():
            if total >= count:
                break
            if start in taken:
                continue
            length = 1
            if self.options.masking == "span":
                length += bisect_right(_SHORTER, rng.random())
            for word in range(start, min(start + length, len(firsts))):
                if word > start and firsts[word] != firsts[word - 1] + sizes[word - 1]:
                    break  # a special token stands between: the segment ends here
                # A word that would overshoot is left to a shorter one; one always fits in.
                if word not in taken and (not taken or total + sizes[word] <= count):
                    taken[word] = start
                    total += min(sizes[word], count)
        words = sorted(taken)
        places = [p for w in words for p in range(firsts[w], firsts[w] + sizes[w])]
        starts = [taken[w] for w in words for _ in range(sizes[w])]
        spans = np.unique(starts[:count], return_inverse=True)[1]
        return np.array(places[:count], np.int64), spans


def _truncate(
    rng: np.random.Generator, first: np.ndarray, second: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shortens the longer segment, then both in turn, each token from a random end."""
    excess = len(first) + len(second) - longest
    if excess <= 0:
        return first, second
    uneven = min(excess, abs(len(first) - len(second)))
    both = excess - uneven
    longer_is_first = len(first) > len(second)
    from_first = (uneven if longer_is_first else 0) + both // 2
    from_second = (0 if longer_is_first else uneven) + both - both // 2
    return _drop(rng, first, from_first), _drop(rng, second, from_second)


def _drop(rng: np.random.Generator, segment: np.ndarray, count: int) -> np.ndarray:
    front = int(rng.binomial(count, 0.5))
    return segment[front : len(segment) - (count - front)]


def held_out_examples(builder: ExampleBuilder, limit: int) -> list[Example]:
    """Examples of the held-out documents with fixed masks, the same in every run, shortest first.

    At most `limit`, those of the first documents in the split's order, which is a random one.
    """
    found: list[Example] = []
    for position in range(len(builder.documents)):
        for part in range(builder.documents.num_parts(position)):
            if len(found) >= limit:
                break
            found += builder.build(_EVAL_SEED, 0, position, part)
    return sorted(found[:limit], key=lambda e: len(e.input_ids))


def collate(examples: list[Example], max_predictions: int) -> dict[str, Tensor]:
    """Pads examples to the longest, rounded up to a multiple of `PADDED_TO`.

    Returns:
        input_ids, token_type_ids, attention_mask: (B, T) int64.
        mlm_positions, mlm_labels: (B, M) int64; unused slots point at 0 and hold IGNORE_INDEX.
        next_sentence_label: (B,) int64, absent without pairs.
        first_positions: (B,) int64, absent where all are 0.
    """
    batch = len(examples)
    lengths = np.array([len(e.input_ids) for e in examples])
    places = np.arange(-(-lengths.max() // PADDED_TO) * PADDED_TO)
    is_real = places < lengths[:, None]  # (B, T)
    ids = np.zeros((3, *is_real.shape), np.int64)  # input ids, segments, attention
    ids[0][is_real] = np.concatenate([e.input_ids for e in examples])
    ids[1] = is_real & (places >= np.array([e.first_length for e in examples])[:, None])
    ids[2] = is_real
    used = np.arange(max_predictions) < np.array([len(e.mlm_labels) for e in examples])[:, None]
    slots = np.zeros((2, batch, max_predictions), np.int64)
    slots[1] = IGNORE_INDEX
    slots[0][used] = np.concatenate([e.mlm_positions for e in examples])
    slots[1][used] = np.concatenate([e.mlm_labels for e in examples])
    names = ("input_ids", "token_type_ids", "attention_mask")
    out = {name: torch.from_numpy(part) for name, part in zip(names, ids, strict=True)}
    out["mlm_positions"], out["mlm_labels"] = map(torch.from_numpy, slots)
    if examples[0].next_sentence_label is not None:
        out["next_sentence_label"] = torch.tensor([e.next_sentence_label for e in examples])
    if examples[0].first_position is not None:
        out["first_positions"] = torch.tensor([e.first_position for e in examples])
    return out


def unigram_log_prob(held_out: ExampleBuilder) -> np.ndarray:
    """Log-probability in nats of each token id, (V,), by the add-one unigram of the training text.

    Args:
        held_out: of the held-out documents; their tokens are taken out of the store's counts.
    """
    counts = held_out.store.token_counts.astype(np.float64)
    for position in range(len(held_out.documents)):
        for part in range(held_out.documents.num_parts(position)):
            offsets = held_out.documents.offsets(position, part)
            tokens = held_out.store.tokens[offsets[0] : offsets[-1]]
            counts -= np.bincount(tokens, minlength=len(counts))
    return np.log(counts + 1) - np.log(counts.sum() + len(counts))


def unigram_entropy(held_out: ExampleBuilder, examples: list[Example]) -> float:
    """Cross-entropy in nats of `unigram_log_prob` on the examples' masked tokens.

    The line that a model must get under to have learnt anything from context.
    """
    masked = np.concatenate([e.mlm_labels for e in examples])
    return float(-unigram_log_prob(held_out)[masked].mean())


def tokens_per_character(tokenizer: WordPiece, examples: Sequence[Example]) -> float:
    """Tokens for each character of the text of examples.

    A space is counted before each word that is not one mark alone, as in running text. Times
    a loss in bits it gives bits per character, by which vocabularies of any size compare. Unknown
    pieces and special tokens are left out.
    """
    lengths = np.array([_characters(token) for token in tokenizer.tokens])
    lengths[tokenizer.special_ids] = 0
    num_tokens = num_characters = 0
    for example in examples:
        ids = example.input_ids.copy()
        ids[example.mlm_positions] = example.mlm_labels
        found = lengths[ids]
        num_tokens += int((found > 0).sum())
        num_characters += int(found.sum())
    return num_tokens / max(1, num_characters)


def _characters(token: str) -> int:
    if token.startswith("##"):
        return len(token) - 2
    is_mark = len(token) == 1 and (not token.isalnum() or token > "\u2e7f")  # as Chinese ones
    return len(token) + (not is_mark)
