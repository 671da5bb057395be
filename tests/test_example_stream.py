"""The order of examples, going on from a place, and how much is held in memory."""

from __future__ import annotations

import itertools
import pickle
import signal
from typing import Any

import numpy as np
import pytest
from own_tokens import (
    all_documents,
    builder_of,
    document_of,
    epoch_of,
    original,
    own_tokens,
    random_lengths,
    same,
    store_of,
)

from minibert import documents, example_stream
from minibert.errors import InputError
from minibert.example_stream import ExampleStream
from minibert.examples import Example
from minibert.tokenizer import WordPiece


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_stream, "_BLOCK_DOCUMENTS", 4)


def stream_of(words: WordPiece, documents: int = 14, seed: int = 0) -> ExampleStream:
    lengths = random_lengths(documents, (1, 9), (3, 12))
    return ExampleStream(builder_of(own_tokens(lengths, 120), words, max_seq_length=32), seed)


@pytest.mark.usefixtures("small_blocks")
def test_how_examples_are_taken_does_not_change_them(words: WordPiece) -> None:
    expected = stream_of(words).take(200)
    for chunk in (1, 7, 64, 199):
        stream = stream_of(words)
        taken = [e for _ in range(-(-200 // chunk)) for e in stream.take(chunk)]
        assert same(taken[:200], expected)
    assert stream_of(words).take(0) == []


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("before", [0, 7, 16, 41, 77, 112])
def test_seeking_a_state_goes_on_exactly(words: WordPiece, before: int) -> None:
    stream = stream_of(words)
    stream.take(before)
    state = stream.state()
    resumed = stream_of(words)
    resumed.seek(state)
    assert resumed.state() == state
    assert same(resumed.take(90), stream.take(90))
    assert resumed.state() == stream.state()


@pytest.mark.usefixtures("small_blocks")
def test_seeking_a_state_keeps_epochs_done(words: WordPiece) -> None:
    # Schedules that end with an epoch are computed from it, so resuming must not move it.
    stream, resumed = stream_of(words), stream_of(words)
    for _ in range(40):
        stream.take(3)
        resumed.seek(stream.state())
        assert resumed.epochs_done == stream.epochs_done


@pytest.mark.usefixtures("small_blocks")
def test_epochs_done_rises_and_is_whole_after_each_epoch(words: WordPiece) -> None:
    stream, last = stream_of(words), -1.0
    assert stream.epochs_done == 0
    per_epoch = len(epoch_in_order(stream, 0))
    for _ in range(per_epoch - 1):
        stream.take(1)
        assert last < stream.epochs_done < 1
        last = stream.epochs_done
    stream.take(1)
    assert stream.epochs_done == 1
    stream.take(len(epoch_in_order(stream, 1)))
    assert stream.epochs_done == 2


@pytest.mark.usefixtures("small_blocks")
def test_epochs_done_counts_documents_not_blocks(words: WordPiece) -> None:
    # Of five documents the first block holds four.
    stream = ExampleStream(builder_of(own_tokens([[9]] * 5, 9), words), 0)
    stream.take(4)
    assert stream.epochs_done == pytest.approx(4 / 5)


def epoch_in_order(stream: ExampleStream, epoch: int) -> list[Example]:
    return epoch_of(stream.builder, stream.seed, epoch)


def recorded(stream: ExampleStream) -> list[tuple[int, int, int]]:
    """What the stream's builder is asked for, as it happens."""
    calls: list[tuple[int, int, int]] = []
    build = stream.builder.build

    def record(seed: int, epoch: int, position: int, part: int = 0) -> list[Example]:
        calls.append((seed, epoch, position))
        return build(seed, epoch, position, part)

    stream.builder.build = record  # type: ignore[method-assign]
    return calls


@pytest.mark.usefixtures("small_blocks")
def test_an_epoch_visits_every_document_once(words: WordPiece) -> None:
    stream = stream_of(words, seed=5)
    per_epoch = [len(epoch_in_order(stream, epoch)) for epoch in range(3)]
    calls = recorded(stream)
    for epoch, count in enumerate(per_epoch):
        calls.clear()
        stream.take(count)
        assert sorted(calls) == [(5, epoch, position) for position in range(14)]
        assert [c[2] for c in calls] != sorted(c[2] for c in calls)


@pytest.mark.usefixtures("small_blocks")
def test_order_changes_with_seed_and_epoch(words: WordPiece) -> None:
    orders = []
    for seed in (1, 2):
        stream = stream_of(words, seed=seed)
        counts = [len(epoch_in_order(stream, epoch)) for epoch in range(2)]
        calls = recorded(stream)
        for count in counts:
            calls.clear()
            stream.take(count)
            orders.append([position for _, _, position in calls])
    assert all(one != other for one, other in itertools.combinations(orders, 2))


def test_examples_of_a_block_are_shuffled_among_themselves(words: WordPiece) -> None:
    stream = ExampleStream(builder_of(own_tokens([[9] * 12] * 20, 108), words, nsp="none"), 0)
    sources = [document_of(original(e)[1:-1], 108).pop() for e in stream.current_block()]
    neighbours = sum(a == b for a, b in itertools.pairwise(sources))
    assert neighbours < len(sources) / 3


def test_stream_holds_one_block_of_documents_only(
    words: WordPiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = ExampleStream(builder_of(own_tokens([[9]] * 1200, 9), words), 0)
    calls = recorded(stream)
    stream.take(1)
    assert len(calls) == 512
    stream.take(511)
    assert stream._examples is None
    stream.take(1)
    assert len(calls) == 1024
    assert len(stream._examples or []) == 512


LONG = [[9] * 40, [9] * 3, [9, 8], [9] * 25]  # sentences of 9 tokens in each of four documents


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_PART_TOKENS", 50)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_a_document_are_all_of_it_once(words: WordPiece) -> None:
    documents = all_documents(store_of(own_tokens(LONG, 400), words.vocab_size))
    counts = [documents.num_parts(i) for i in range(4)]
    assert sorted(counts) == [1, 1, 5, 8]
    for position, count in enumerate(counts):
        parts = [documents.offsets(position, part).tolist() for part in range(count)]
        assert all(one[-1] == other[0] for one, other in itertools.pairwise(parts))
        joined = [at for part in parts for at in part[:-1]] + [parts[-1][-1]]
        assert joined == documents.offsets(position).tolist()
        assert all(part[-1] - part[0] <= 50 + 9 for part in parts)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("nsp", ["nsp", "none"])
def test_a_long_document_is_held_a_part_at_a_time_and_seen_whole(
    words: WordPiece, nsp: str
) -> None:
    def fresh() -> ExampleStream:
        corpus = own_tokens(LONG, 400)
        return ExampleStream(builder_of(corpus, words, max_seq_length=32, nsp=nsp), 0)

    stream, states, taken = fresh(), [], []
    while stream.epoch == 0:
        states.append((stream.state(), stream.epochs_done))
        taken += stream.take(1)
        if stream.part:
            assert len(stream.current_block()) < 20
    assert stream.epochs_done == 1
    assert {state["part"] for state, _ in states} == set(range(8))
    assert [done for _, done in states] == sorted({done for _, done in states})
    if nsp == "none":  # every token of the text, once
        seen = np.concatenate([original(e)[1:-1] for e in taken])
        assert len(seen) == sum(map(sum, LONG))
        assert len(set(seen.tolist())) == len(seen)
    for number in range(0, len(states), 5):
        resumed = fresh()
        resumed.seek(states[number][0])
        assert resumed.epochs_done == states[number][1]
        assert same(resumed.take(len(taken) - number), taken[number:])


@pytest.mark.parametrize("nsp", ["nsp", "none"])
def test_documents_built_by_several_processes_give_the_same_examples(
    words: WordPiece, nsp: str
) -> None:
    corpus = own_tokens(random_lengths(40, (1, 9), (1, 30)), 300)

    def spread(function: Any, count: int) -> list[Any]:
        """Two processes, one after the other; what they send each other is bytes."""
        odd, even = ([function(i) for i in range(k, count, 2)] for k in (1, 0))
        sent = pickle.loads(pickle.dumps([even, odd]))
        return [sent[i % 2][i // 2] for i in range(count)]

    builder = builder_of(corpus, words, max_seq_length=64, nsp=nsp)
    alone, together = ExampleStream(builder, 3), ExampleStream(builder, 3, spread)
    for one, other in zip(alone.take(500), together.take(500), strict=True):
        assert one.first_length == other.first_length
        assert one.next_sentence_label == other.next_sentence_label
        for a, b in zip(one, other, strict=True):
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
    assert alone.state() == together.state()


def test_stream_without_any_example_does_not_hang(words: WordPiece) -> None:
    # Documents of one token have no halves, so sentence order finds no pair in them.
    def too_long(*_: object) -> None:
        raise TimeoutError("take is still running")

    stream = ExampleStream(builder_of(own_tokens([[1]] * 4, 1), words, nsp="sop"), 0)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(InputError):
            stream.take(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
