"""Which documents are held out, and the order in which the others come."""

from __future__ import annotations

import itertools
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_tokens import (
    FIRST,
    own_tokens,
    store_of,
)

from minibert import documents
from minibert.documents import Permutation, split_documents
from minibert.errors import InputError
from minibert.example_stream import ExampleStream
from minibert.examples import (
    ExampleBuilder,
    ExampleOptions,
    held_out_examples,
    unigram_entropy,
)
from minibert.tokenizer import WordPiece

# The suite gives the same examples on every run.
fuzz = settings(deadline=None, derandomize=True, max_examples=100)


# --- order -------------------------------------------------------------------------------------


@fuzz
@given(n=st.integers(1, 3000), key=st.integers(0, 2**63), more=st.integers(0, 9))
def test_permutation_hits_every_number_once(n: int, key: int, more: int) -> None:
    order = Permutation(n, key, more)
    assert sorted(order[i] for i in range(n)) == list(range(n))


@pytest.mark.parametrize("n", [*range(1, 20), 255, 256, 257, 1023, 1024, 1025])
def test_permutation_holds_at_powers_of_two(n: int) -> None:
    assert sorted(map(Permutation(n, 3).__getitem__, range(n))) == list(range(n))


@pytest.mark.parametrize("n", [10**9, 2**40 + 1])
def test_permutation_of_a_huge_range_needs_no_memory(n: int) -> None:
    values = [Permutation(n, 1)[i] for i in range(500)]
    assert len({*values}) == 500
    assert 0 <= min(values) < max(values) < n
    assert np.mean(values) / n == pytest.approx(0.5, abs=0.06)


def test_permutation_is_decided_by_its_key() -> None:
    def order(*key: int) -> list[int]:
        return [Permutation(300, *key)[i] for i in range(300)]

    assert order(1, 2) == order(1, 2)
    keys = [(1, 2), (2, 1), (1,), (2,), (1, 3)]
    for one, other in itertools.combinations(keys, 2):
        stays = np.mean(np.array(order(*one)) == np.array(order(*other)))
        assert stays < 0.05


def test_permutation_moves_neighbours_apart() -> None:
    order = np.array([Permutation(2000, 7)[i] for i in range(2000)])
    # The mean distance of two random numbers below n is n / 3.
    assert np.abs(np.diff(order)).mean() == pytest.approx(2000 / 3, rel=0.1)


# --- split -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nsp", ["nsp", "sop", "none"])
@pytest.mark.parametrize("count", [4, 5, 19, 20, 100, 1000, 30_000])
def test_split_is_disjoint_and_covers_all(words: WordPiece, count: int, nsp: str) -> None:
    store = store_of([[[FIRST], [FIRST]]] * count, 10)
    training, held_out = split_documents(store, nsp)
    starts = [[int(part.offsets(i)[0]) for i in range(len(part))] for part in (training, held_out)]
    assert sorted(starts[0] + starts[1]) == list(range(0, 2 * count, 2))
    expected = max(1 if nsp == "none" else 2, round(0.05 * count))
    assert len(held_out) == min(expected, 1000)


def test_split_depends_on_the_store_alone() -> None:
    stores = [store_of([[[FIRST], [FIRST]]] * 100, 10) for _ in range(2)]
    orders = [
        [int(p.offsets(i)[0]) for p in split_documents(store, "nsp") for i in range(5)]
        for store in stores
    ]
    assert orders[0] == orders[1]
    held_out = [int(split_documents(stores[0], "sop")[1].offsets(i)[0]) for i in range(5)]
    assert held_out == orders[0][5:]
    assert held_out != list(range(5))


@pytest.mark.parametrize("nsp", ["nsp", "none"])
@pytest.mark.parametrize("count", [4, 5, 20, 300])
def test_a_document_that_is_most_of_the_text_is_trained_on(count: int, nsp: str) -> None:
    plain = store_of([[[FIRST], [FIRST]]] * count, 10)
    first = split_documents(plain, nsp)[1].offsets(0)[0] // 2  # where tokens are alike
    corpus = [[[FIRST], [FIRST]]] * count
    corpus[first] = [[FIRST], [FIRST]] * 10 * count
    store = store_of(corpus, 10)
    training, held_out = split_documents(store, nsp)
    assert held_out.tokens == 2 * len(held_out)
    assert training.tokens + held_out.tokens == store.counts.tokens
    assert len(held_out) == len(split_documents(plain, nsp)[1])
    starts = [int(part.offsets(i)[0]) for part in (training, held_out) for i in range(len(part))]
    assert len(starts) == len({*starts}) == count


def test_of_few_documents_a_longer_one_is_held_out_as_well() -> None:
    """Up to 1.5 times their share of the documents: here three quarters of the tokens."""
    first = split_documents(store_of([[[FIRST]] * 10] * 4, 10), "nsp")[1].offsets(0)[0] // 10
    corpus = [[[FIRST]] * (22 if i == first else 10) for i in range(4)]
    assert split_documents(store_of(corpus, 10), "nsp")[1].tokens == 32


@pytest.mark.parametrize("place", range(5))
def test_where_half_the_text_is_one_document_the_shortest_are_held_out(place: int) -> None:
    lengths = [10] * 5
    lengths[place] = 40
    held_out = split_documents(store_of([[[FIRST]] * n for n in lengths], 10), "nsp")[1]
    assert held_out.tokens == 20


@pytest.mark.parametrize("nsp", ["nsp", "sop"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_four_documents_are_refused_for_pairs(nsp: str, count: int) -> None:
    store = store_of([[[FIRST], [FIRST]]] * count, 10)
    with pytest.raises(InputError, match="--nsp none") as caught:
        split_documents(store, nsp)
    assert f"{count} document(s) and {2 * count} sentence(s)" in str(caught.value)
    # Only of random next sentences is the other one of another document.
    assert ("from different documents" in str(caught.value)) == (nsp == "nsp")


@pytest.mark.parametrize("sentences", [4, 19, 20, 21, 1000])
def test_one_document_is_cut_at_sentences_without_pairs(sentences: int) -> None:
    corpus = own_tokens([[3] * sentences], 3 * sentences)
    store = store_of(corpus, 10 + 3 * sentences)
    training, held_out = split_documents(store, "none")
    parts = [part.offsets(i).tolist() for part in (training, held_out) for i in range(len(part))]
    assert len(parts) == min(20, sentences)
    assert len(held_out) >= 1
    assert all(len(p) > 1 for p in parts)
    covered = sorted(at for p in parts for at in p[:-1])
    assert covered == list(range(0, 3 * sentences, 3))


def test_a_huge_document_is_cut_into_a_bounded_number_of_stretches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents, "_MOST_STRETCHES", 30)
    training, held_out = split_documents(store_of([[[FIRST]] * 64 * 40], 10), "none")
    assert len(training) + len(held_out) == 30


def test_a_sentence_belongs_to_the_part_that_it_starts_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_PART_TOKENS", 50)
    training, _ = split_documents(store_of([[[FIRST] * 30] * 4] * 4, 10), "nsp")
    begin = training.offsets(0)[0]
    parts = [training.offsets(0, part) - begin for part in range(training.num_parts(0))]
    assert [part.tolist() for part in parts] == [[0, 30, 60], [60, 90, 120], [120]]


def test_memory_to_start_with_does_not_grow_with_the_corpus(words: WordPiece) -> None:
    """From the open store to the first batch: 250 times the documents, the same peak."""
    peaks = []
    for count in (2_000, 500_000):
        starts = np.arange(3 * count + 1) * 9
        store: Any = SimpleNamespace(
            tokens=np.resize(np.arange(FIRST, 20_000, dtype=np.uint16), starts[-1]),
            sentence_starts=starts,
            document_starts=np.arange(count + 1) * 3,
            token_counts=np.full(words.vocab_size, count),
            counts=SimpleNamespace(
                sentences=3 * count, tokens=starts[-1], single_sentence_documents=0
            ),
        )
        tracemalloc.start()
        training, held_out = split_documents(store, "nsp")
        builders = [ExampleBuilder(store, words, d, ExampleOptions()) for d in (training, held_out)]
        ExampleStream(builders[0], 0).take(32)
        examples = held_out_examples(builders[1], 64)
        unigram_entropy(builders[1], examples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_fewer_than_four_sentences_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 sentence\(s\)"):
        split_documents(store_of([[[FIRST]], [[FIRST]], [[FIRST]]], 10), "none")
