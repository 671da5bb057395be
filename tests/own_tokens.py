"""Corpora as arrays, whose ids tell where they come from, and builders of examples over them.

Every document has tokens of its own, in rising order: document d holds the ids from 5 + d * width
on, so that where a segment comes from can be read off its ids.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minibert.documents import Documents
from minibert.examples import (
    Example,
    ExampleBuilder,
    ExampleOptions,
)
from minibert.tokenizer import SPECIAL_TOKENS, WordPiece

FIRST = 5  # the first id that is no special token
CLS, SEP, MASK = 2, 3, 4
Corpus = list[list[list[int]]]  # documents of sentences of token ids


def store_of(corpus: Corpus, vocab_size: int) -> Any:
    """The arrays of a token store, without a file."""
    sentences = [sentence for document in corpus for sentence in document]
    tokens = np.array([i for s in sentences for i in s], np.uint16)
    return SimpleNamespace(
        tokens=tokens,
        sentence_starts=np.cumsum([0, *map(len, sentences)]),
        document_starts=np.cumsum([0, *map(len, corpus)]),
        token_counts=np.bincount(tokens, minlength=vocab_size),
        counts=SimpleNamespace(
            sentences=len(sentences),
            tokens=len(tokens),
            single_sentence_documents=sum(len(document) == 1 for document in corpus),
        ),
    )


class CachedWordPiece(WordPiece):
    """Lists its vocabulary once: nearly every test here makes a builder, which asks for it."""

    tokens = functools.cached_property(WordPiece.tokens.fget)  # type: ignore[assignment]
    special_ids = functools.cached_property(WordPiece.special_ids.fget)  # type: ignore[assignment]


def tokenizer_of(folder: Path, tokens: list[str]) -> WordPiece:
    text = "".join(f"{t}\n" for t in (*SPECIAL_TOKENS, *tokens))
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return CachedWordPiece.from_pretrained(folder)


def own_tokens(lengths: list[list[int]], width: int) -> Corpus:
    """Documents of sentences of these lengths, whose ids rise from 5 + d * width."""
    corpus = []
    for d, document in enumerate(lengths):
        assert sum(document) <= width
        ids = iter(range(FIRST + d * width, FIRST + (d + 1) * width))
        corpus.append([list(itertools.islice(ids, n)) for n in document])
    return corpus


def random_lengths(
    documents: int, sentences: tuple[int, int], tokens: tuple[int, int], seed: int = 0
) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [
        rng.integers(tokens[0], tokens[1] + 1, size=rng.integers(sentences[0], sentences[1] + 1))
        .astype(int)
        .tolist()
        for _ in range(documents)
    ]


def all_documents(store: Any) -> Documents:
    """Every document of a store, in the store's order."""
    count = len(store.document_starts) - 1
    identity: Any = range(count)
    return Documents(store, store.document_starts, identity, range(count))


def builder_of(
    corpus: Corpus, tokenizer: WordPiece, documents: Documents | None = None, **options: Any
) -> ExampleBuilder:
    store = store_of(corpus, tokenizer.vocab_size)
    chosen = documents or all_documents(store)
    return ExampleBuilder(store, tokenizer, chosen, ExampleOptions(**options))


def epoch_of(builder: ExampleBuilder, seed: int = 0, epoch: int = 0) -> list[Example]:
    positions = range(len(builder.documents))
    return [e for position in positions for e in builder.build(seed, epoch, position)]


def original(example: Example) -> np.ndarray:
    """The ids before masking."""
    ids = example.input_ids.copy()
    ids[example.mlm_positions] = example.mlm_labels
    return ids


def segments(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Both segments before masking; checks [CLS] A [SEP] B [SEP] on the way."""
    ids = original(example)
    assert ids[0] == CLS
    assert ids[example.first_length - 1] == ids[-1] == SEP
    first, second = ids[1 : example.first_length - 1], ids[example.first_length : -1]
    assert not np.isin(np.concatenate([first, second]), [0, CLS, SEP, MASK]).any()
    return first, second


def same(one: list[Example], other: list[Example]) -> bool:
    return len(one) == len(other) and all(
        a.first_length == b.first_length
        and a.next_sentence_label == b.next_sentence_label
        and all(
            np.array_equal(getattr(a, name), getattr(b, name))
            for name in ("input_ids", "mlm_positions", "mlm_labels")
        )
        for a, b in zip(one, other, strict=True)
    )


def document_of(tokens: np.ndarray, width: int) -> set[int]:
    return set(((tokens - FIRST) // width).tolist())
