"""Pretraining examples: pairs, masks, and their statistics."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_tokens import (
    CLS,
    FIRST,
    MASK,
    SEP,
    Corpus,
    builder_of,
    document_of,
    epoch_of,
    original,
    own_tokens,
    random_lengths,
    same,
    segments,
    store_of,
    tokenizer_of,
)

from minibert.documents import split_documents
from minibert.errors import InputError
from minibert.example_stream import ExampleStream
from minibert.examples import (
    Example,
    ExampleBuilder,
    ExampleOptions,
    _truncate,
    collate,
    held_out_examples,
    pack,
    tokens_per_character,
    unigram_entropy,
    unpack,
)
from minibert.losses import IGNORE_INDEX
from minibert.tokenizer import WordPiece

# The suite gives the same examples on every run.
fuzz = settings(deadline=None, derandomize=True, max_examples=100)


# --- purity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nsp", ["nsp", "sop", "none"])
@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
def test_examples_are_a_function_of_seed_epoch_and_position(
    words: WordPiece, nsp: str, masking: str
) -> None:
    corpus = own_tokens(random_lengths(12, (8, 12), (5, 30)), 400)
    options = {"nsp": nsp, "masking": masking, "max_seq_length": 64}
    builder = builder_of(corpus, words, **options)
    expected = builder.build(3, 5, 7)
    epoch_of(builder, seed=9)  # others in between change nothing
    assert same(builder.build(3, 5, 7), expected)
    assert same(builder_of(corpus, words, **options).build(3, 5, 7), expected)
    for changed in [(4, 5, 7), (3, 6, 7), (5, 3, 7), (3, 5, 8)]:
        assert not same(builder.build(*changed), expected)


# --- masks -------------------------------------------------------------------------------------


def test_masks_are_15_percent_and_80_10_10(words: WordPiece) -> None:
    builder = builder_of(own_tokens(random_lengths(55, (15, 25), (10, 20)), 500), words)
    kept = masked = replaced = sequence_tokens = 0
    replacements = []
    for epoch in range(21):
        for example in epoch_of(builder, epoch=epoch):
            now = example.input_ids[example.mlm_positions]
            is_mask, is_same = now == MASK, now == example.mlm_labels
            masked += is_mask.sum()
            kept += is_same.sum()
            replaced += (~is_mask & ~is_same).sum()
            replacements.append(now[~is_mask & ~is_same])
            sequence_tokens += len(example.input_ids)
    total = masked + kept + replaced
    assert total > 50_000
    # Four standard deviations of a binomial: 0.0072 and 0.0054.
    assert masked / total == pytest.approx(0.8, abs=0.0072)
    assert kept / total == pytest.approx(0.1, abs=0.0054)
    assert replaced / total == pytest.approx(0.1, abs=0.0054)
    assert total / sequence_tokens == pytest.approx(0.15, abs=0.003)
    # Replacements are drawn evenly from all words, none of them special.
    drawn = np.concatenate(replacements)
    assert drawn.min() >= FIRST
    assert drawn.mean() == pytest.approx(15_000, rel=0.03)


@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
def test_labels_are_the_original_and_no_special_token_is_chosen(
    pieces: WordPiece, masking: str
) -> None:
    rng = np.random.default_rng(1)
    # 1 is [UNK], as it comes out of the tokenizer; it must not be predicted.
    ids = np.where(rng.random((40, 12, 9)) < 0.1, 1, rng.integers(5, 205, (40, 12, 9)))
    builder = builder_of(ids.tolist(), pieces, masking=masking, nsp="none", max_seq_length=50)
    for position in range(40):
        text = []
        for example in builder.build(0, 0, position):
            assert not np.isin(example.mlm_labels, builder.tokenizer.special_ids).any()
            chosen = example.mlm_positions.tolist()
            assert chosen == sorted({*chosen})
            assert len(chosen) <= builder.options.max_predictions
            untouched = np.ones(len(example.input_ids), bool)
            untouched[chosen] = False
            assert (example.input_ids[untouched] == original(example)[untouched]).all()
            text += original(example)[1:-1].tolist()
        assert text == ids[position].ravel().tolist()


def test_random_replacements_are_never_special(tmp_path: Path) -> None:
    # 45 of 55 tokens are special; a draw over all ids would nearly always hit one.
    tokenizer = tokenizer_of(tmp_path, [f"[unused{i}]" for i in range(40)] + [*"abcdefghij"])
    corpus = [[[45 + i % 10 for i in range(100)]] * 5] * 20
    builder = builder_of(corpus, tokenizer, nsp="none")
    drawn: set[int] = set()
    for example in epoch_of(builder):
        now = example.input_ids[example.mlm_positions]
        drawn |= {*now[(now != MASK) & (now != example.mlm_labels)].tolist()}
    assert drawn == {*range(45, 55)}


@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
def test_every_position_is_chosen_about_equally_often(pieces: WordPiece, masking: str) -> None:
    corpus = [[[FIRST + i for i in range(62)]]] * 4
    builder = builder_of(corpus, pieces, nsp="none", masking=masking, max_seq_length=64)
    counts = np.zeros(64)
    for epoch in range(800):
        for example in builder.build(0, epoch, 0):
            if len(example.input_ids) == 64:
                counts[example.mlm_positions] += 1
    inner = counts[1:-1] / counts.sum() * 62
    assert counts[0] == counts[-1] == 0
    # A span that would reach beyond the end is cut there, so the first words come less often.
    slack = 12 if masking == "span" else 1
    assert inner[slack:].min() > 0.6
    assert inner.max() < 1.4


def test_a_sequence_without_anything_to_predict_is_no_example(pieces: WordPiece) -> None:
    for masking in ("token", "whole-word", "span"):
        builder = builder_of([[[1] * 20]] * 4, pieces, nsp="none", masking=masking)
        assert builder.build(0, 0, 0) == []


def test_documents_of_one_sentence_each_cannot_teach_next_sentences(pieces: WordPiece) -> None:
    store = store_of([[[20] * 9]] * 8, pieces.vocab_size)
    with pytest.raises(InputError, match="--nsp none"):
        split_documents(store, "nsp")
    assert len(split_documents(store, "none")[0]) > 0


def words_of(ids: np.ndarray) -> list[list[int]]:
    """Positions of each word's pieces, special tokens left out."""
    found: list[list[int]] = []
    for position, token in enumerate(ids.tolist()):
        if token >= 105 and found and found[-1][-1] == position - 1:
            found[-1].append(position)
        elif token >= FIRST:
            found.append([position])
    return found


def pieced_corpus(documents: int, most_pieces: int) -> Corpus:
    rng = np.random.default_rng(2)

    def word() -> list[int]:
        tail = rng.integers(105, 205, size=rng.integers(most_pieces)).tolist()
        return [int(rng.integers(5, 105)), *tail]

    return [[[i for _ in range(8) for i in word()] for _ in range(10)] for _ in range(documents)]


def test_whole_words_are_chosen_whole_or_not_at_all(pieces: WordPiece) -> None:
    builder = builder_of(pieced_corpus(60, 4), pieces, masking="whole-word")
    chosen_tokens = all_tokens = 0
    for example in epoch_of(builder):
        chosen = {*example.mlm_positions.tolist()}
        for word in words_of(original(example)):
            assert len(chosen & {*word}) in (0, len(word))
        chosen_tokens += len(chosen)
        all_tokens += len(example.input_ids)
    # The budget can stay unused by less than a word; it is never exceeded.
    assert 0.14 < chosen_tokens / all_tokens <= 0.151


def test_word_longer_than_the_budget_is_cut_to_it(pieces: WordPiece) -> None:
    corpus = [[[5, *range(105, 135)]]] * 4
    builder = builder_of(corpus, pieces, masking="whole-word", nsp="none", max_seq_length=40)
    for epoch in range(20):
        for example in builder.build(0, epoch, 0):
            wanted = max(1, round(0.15 * len(example.input_ids)))
            assert len(example.mlm_positions) == wanted
            if example.input_ids[1] in (5, MASK):  # the word's beginning
                assert np.diff(example.mlm_positions).tolist() == [1] * (wanted - 1)


def test_spans_are_runs_of_words(pieces: WordPiece) -> None:
    corpus = [[[FIRST + i % 100 for i in range(126)]]] * 4
    runs: dict[str, list[int]] = {"token": [], "span": []}
    for masking, lengths in runs.items():
        builder = builder_of(corpus, pieces, masking=masking, nsp="none")
        for epoch in range(150):
            for example in builder.build(0, epoch, 0):
                if len(example.input_ids) == 128:
                    assert len(example.mlm_positions) == 19
                    breaks = np.flatnonzero(np.diff(example.mlm_positions) > 1) + 1
                    lengths += map(len, np.split(example.mlm_positions, breaks))
    # By the length of a span, 3.8 on average, less what the budget cuts, plus spans that touch.
    assert np.mean(runs["token"]) < 1.3
    assert 2.5 < np.mean(runs["span"]) < 4.6
    assert 7 <= max(runs["span"]) <= 19


def test_spans_are_as_long_as_the_paper_has_them_and_masked_as_one(pieces: WordPiece) -> None:
    corpus = [[[FIRST + i % 100 for i in range(2000)]]] * 4
    options = {"masking": "span", "nsp": "none", "max_seq_length": 1002, "mask_prob": 0.02}
    builder = builder_of(corpus, pieces, **options)
    lengths: list[int] = []
    masked: list[float] = []
    for epoch in range(400):
        for example in builder.build(0, epoch, 0):
            breaks = np.flatnonzero(np.diff(example.mlm_positions) > 1) + 1
            is_mask = example.input_ids[example.mlm_positions] == MASK
            runs = np.split(is_mask, breaks)  # of so few spans hardly any touch
            lengths += map(len, runs)
            masked += [float(run.mean()) for run in runs]
    assert len(lengths) > 3000
    # A geometric(0.2) length below 11; of about five spans the budget cuts the last.
    assert 3.2 < np.mean(lengths) < 4
    assert np.mean(np.array(lengths) == 10) < 0.06  # clipped to 10 it would be 0.13
    assert np.mean(np.isin(masked, (0, 1))) > 0.95
    assert np.mean(masked) == pytest.approx(0.8, abs=0.03)


class _PerToken(ExampleBuilder):
    """Draws what the reference draws: the tokens, a fate each, a replacement each."""

    def _mask(
        self,
        rng: np.random.Generator,
        first: np.ndarray,
        second: np.ndarray | None,
        label: int | None,
    ) -> Example:
        sep = [np.array([SEP])]
        ids = np.concatenate([[CLS], first, *sep, *([] if second is None else [second, *sep])])
        count = min(max(1, round(len(ids) * 0.15)), self.options.max_predictions)
        if self.options.masking == "token":
            chosen = np.sort(rng.permutation(np.flatnonzero(self.is_ordinary[ids]))[:count])
        else:
            words, places = words_of(ids), []
            for i in rng.permutation(len(words)).tolist():
                if len(places) + len(words[i]) <= count:
                    places += words[i]
            chosen = np.sort(places)
        fate, labels = rng.random(len(chosen)), ids[chosen]
        replacement = self.ordinary_ids[rng.integers(len(self.ordinary_ids), size=len(chosen))]
        ids[chosen] = np.where(fate < 0.8, MASK, np.where(fate < 0.9, replacement, labels))
        return Example(ids, len(first) + 2, chosen, labels, label)


@pytest.mark.parametrize("masking", ["token", "whole-word"])
@pytest.mark.parametrize("nsp", ["nsp", "none"])
def test_tokens_and_words_are_drawn_as_they_always_were(
    pieces: WordPiece, masking: str, nsp: str
) -> None:
    ours = builder_of(pieced_corpus(30, 3), pieces, masking=masking, nsp=nsp)
    theirs = _PerToken(ours.store, pieces, ours.documents, ours.options)
    assert same(epoch_of(ours), epoch_of(theirs))


def test_spans_keep_words_whole(pieces: WordPiece) -> None:
    builder = builder_of(pieced_corpus(30, 3), pieces, masking="span")
    for example in epoch_of(builder):
        chosen = {*example.mlm_positions.tolist()}
        for word in words_of(original(example)):
            assert len(chosen & {*word}) in (0, len(word))


def test_no_span_reaches_across_a_special_token(pieces: WordPiece) -> None:
    builder = builder_of(pieced_corpus(4, 1), pieces, masking="span")
    border = 11
    ids = np.array([CLS, *[FIRST] * 10, SEP, *[FIRST] * 10, SEP])
    for seed in range(50):
        chosen, spans = builder._choose(np.random.default_rng(seed), ids, 12)
        assert not {*spans[chosen < border].tolist()} & {*spans[chosen > border].tolist()}


# --- pairs -------------------------------------------------------------------------------------


def test_pairs_come_from_where_their_label_says(words: WordPiece) -> None:
    width = 240
    builder = builder_of(own_tokens(random_lengths(120, (1, 12), (3, 20)), width), words)
    longest = builder.options.max_seq_length
    sizes = []
    for position in range(120):
        examples = builder.build(1, 0, position)
        assert examples
        for example in examples:
            first, second = segments(example)
            sizes.append(len(example.input_ids))
            assert len(first) > 0
            assert len(second) > 0
            assert (np.diff(first) == 1).all()  # a stretch of one document
            assert (np.diff(second) == 1).all()
            assert document_of(first, width) == {position}
            if example.next_sentence_label == 1:
                assert position not in document_of(second, width)
                assert len(document_of(second, width)) == 1
            else:
                assert document_of(second, width) == {position}
                assert second[0] > first[-1]
                if len(example.input_ids) < longest:  # nothing was cut off
                    assert second[0] == first[-1] + 1
    assert max(sizes) == longest


def test_most_pairs_fill_the_length(words: WordPiece) -> None:
    builder = builder_of(own_tokens(random_lengths(55, (20, 40), (8, 12)), 500), words)
    sizes = np.array([len(e.input_ids) for e in epoch_of(builder)])
    assert sizes.max() == 128
    assert (sizes >= 115).mean() > 0.6
    assert (sizes < 64).mean() > 0.01  # a tenth aims at a shorter length


def test_shorter_lengths_are_any_from_two_tokens_on(words: WordPiece) -> None:
    builder = builder_of(own_tokens([[4] * 4] * 4, 16), words)
    rng = np.random.default_rng(0)
    drawn = [builder._target(rng, 10) for _ in range(4000)]
    assert {*drawn} == {*range(2, 11)}
    counts = np.bincount(drawn)[2:10]  # of 4000 a tenth, shared by nine lengths
    assert counts.min() > 25
    assert counts.max() < 70


@pytest.mark.parametrize("sentences", [(2, 2), (2, 3), (3, 8), (20, 40)])
def test_half_of_the_pairs_are_random(words: WordPiece, sentences: tuple[int, int]) -> None:
    builder = builder_of(own_tokens(random_lengths(55, sentences, (5, 12)), 500), words)
    labels: list[int | None] = []
    for epoch in itertools.count():
        labels += [e.next_sentence_label for e in epoch_of(builder, epoch=epoch)]
        if len(labels) >= 8000:
            break
    assert {*labels} == {0, 1}
    assert np.mean(labels) == pytest.approx(0.5, abs=0.03)  # type: ignore[arg-type]


def test_random_pairs_are_as_long_as_true_ones(
    words: WordPiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = builder_of(own_tokens([[3] * 40] * 20, 120), words)
    monkeypatch.setattr(builder, "_target", lambda rng, longest: 30)  # whole sentences
    longest = {0: 0, 1: 0}
    for example in epoch_of(builder):
        assert example.next_sentence_label is not None
        size = len(example.input_ids) - 3
        longest[example.next_sentence_label] = max(size, longest[example.next_sentence_label])
    assert longest == {0: 30, 1: 30}


def test_pairs_are_parted_behind_any_sentence_but_the_last(
    words: WordPiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = builder_of(own_tokens([[3] * 40] * 20, 120), words)
    monkeypatch.setattr(builder, "_target", lambda rng, longest: 12)  # four sentences
    firsts = [e.first_length - 2 for e in epoch_of(builder)]
    shares = {length: count / len(firsts) for length, count in Counter(firsts).items()}
    assert shares == pytest.approx(dict.fromkeys((3, 6, 9), 1 / 3), abs=0.1)


def test_random_next_comes_from_anywhere_in_any_other_document(words: WordPiece) -> None:
    width, builder = 40, builder_of(own_tokens([[4] * 10] * 6, 40), words, max_seq_length=32)
    sources: Counter[int] = Counter()
    begins: Counter[int] = Counter()
    for epoch in range(60):
        for example in builder.build(0, epoch, 2):
            if example.next_sentence_label == 1:
                second = segments(example)[1]
                sources.update(document_of(second, width))
                begins[int((second[0] - FIRST) % width // 4)] += 1
    assert {*sources} == {0, 1, 3, 4, 5}
    assert min(sources.values()) > 0.5 * max(sources.values())
    assert {*begins} == {*range(10)}


def test_training_and_held_out_text_never_mix(words: WordPiece) -> None:
    width = 100
    store = store_of(own_tokens(random_lengths(200, (1, 6), (3, 12)), width), words.vocab_size)
    training, held_out = split_documents(store, "nsp")
    seen = []
    for documents in (training, held_out):
        builder = ExampleBuilder(store, words, documents, ExampleOptions())
        own = {documents.offsets(i)[0] for i in range(len(documents))}
        tokens = np.concatenate([np.concatenate(segments(e)) for e in epoch_of(builder)])
        seen.append(document_of(tokens, width))
        expected = {int(store.tokens[at] - FIRST) // width for at in own}
        assert seen[-1] == expected
    assert not seen[0] & seen[1]


def test_every_sentence_of_a_document_is_seen(words: WordPiece) -> None:
    width = 300
    builder = builder_of(own_tokens(random_lengths(60, (1, 20), (3, 14)), width), words)
    for position in range(60):
        seen: set[int] = set()
        for epoch in range(4):
            for example in builder.build(0, epoch, position):
                for segment in segments(example):
                    seen |= {*segment[document_mask(segment, position, width)].tolist()}
        offsets = builder.documents.offsets(position)
        tokens = {*builder.store.tokens[offsets[0] : offsets[-1]].tolist()}
        assert len(seen) > 0.9 * len(tokens)
        assert seen <= tokens


def document_mask(tokens: np.ndarray, document: int, width: int) -> np.ndarray:
    return (tokens - FIRST) // width == document


def test_document_of_one_sentence_gets_a_random_next(words: WordPiece) -> None:
    builder = builder_of(own_tokens([[9]] * 30, 9), words)
    for position in range(30):
        (example,) = builder.build(0, 0, position)
        first, second = segments(example)
        assert example.next_sentence_label == 1
        assert document_of(first, 9) == {position}
        assert position not in document_of(second, 9)


def test_sentences_longer_than_the_sequence_are_handled(words: WordPiece) -> None:
    builder = builder_of(own_tokens([[200, 1, 200]] * 20, 401), words, max_seq_length=16)
    for example in epoch_of(builder):
        first, second = segments(example)
        assert min(len(first), len(second)) > 0
        assert len(example.input_ids) <= 16


def test_sentence_order_labels_say_which_half_came_first(words: WordPiece) -> None:
    width = 240
    corpus = own_tokens(random_lengths(120, (1, 12), (3, 20)), width)
    builder = builder_of(corpus, words, nsp="sop")
    labels = []
    for epoch in range(3):
        for position in range(120):
            for example in builder.build(0, epoch, position):
                first, second = segments(example)
                assert document_of(np.concatenate([first, second]), width) == {position}
                label = example.next_sentence_label
                assert label == int(first[0] > second[0])
                labels.append(label)
                if len(example.input_ids) < 128:  # nothing was cut off
                    one, other = (second, first) if label else (first, second)
                    assert other[0] == one[-1] + 1
    assert np.mean(labels) == pytest.approx(0.5, abs=0.06)


def test_sentence_order_parts_a_single_sentence_and_skips_a_single_token(
    words: WordPiece,
) -> None:
    builder = builder_of(own_tokens([[5], [1], [2], [9]], 9), words, nsp="sop")
    sizes = [[tuple(map(len, segments(e))) for e in builder.build(0, 0, p)] for p in range(4)]
    assert sizes[1] == []
    assert sizes[0][0] in {(3, 2), (2, 3)}
    assert sizes[2] == [(1, 1)]


# --- without pairs -----------------------------------------------------------------------------


def test_without_pairs_text_is_covered_exactly_once_without_labels(words: WordPiece) -> None:
    corpus = own_tokens(random_lengths(40, (1, 20), (3, 30)), 700)
    builder = builder_of(corpus, words, nsp="none", max_seq_length=40)
    sizes = []
    for position, document in enumerate(corpus):
        text: list[int] = []
        for example in builder.build(0, 0, position):
            ids = original(example)
            assert (ids[0], ids[-1]) == (CLS, SEP)
            assert example.first_length == len(ids) <= 40
            assert example.next_sentence_label is None
            text += ids[1:-1].tolist()
            sizes.append(len(ids))
        assert text == [i for sentence in document for i in sentence]
    assert np.mean(np.array(sizes) == 40) > 0.6
    assert "next_sentence_label" not in collate(builder.build(0, 0, 0), 6)


def test_corpus_of_one_document_works_without_pairs(words: WordPiece) -> None:
    store = store_of(own_tokens([[10] * 100], 1000), words.vocab_size)
    options = ExampleOptions(nsp="none", max_seq_length=32)
    training, held_out = split_documents(store, "none")
    builder, other = (ExampleBuilder(store, words, d, options) for d in (training, held_out))
    tokens = [original(e)[1:-1].tolist() for b in (builder, other) for e in epoch_of(b)]
    assert sorted(i for part in tokens for i in part) == sorted(store.tokens.tolist())
    assert len(ExampleStream(builder, 0).take(100)) == 100
    assert len(held_out_examples(other, 1000)) >= 2


# --- truncation --------------------------------------------------------------------------------


@fuzz
@given(
    a=st.integers(1, 60), b=st.integers(1, 60), longest=st.integers(2, 80), seed=st.integers(0, 99)
)
def test_truncation_shortens_the_longer_and_no_more_than_needed(
    a: int, b: int, longest: int, seed: int
) -> None:
    first, second = np.arange(a), np.arange(1000, 1000 + b)
    left, right = _truncate(np.random.default_rng(seed), first, second, longest)
    assert len(left) + len(right) == min(a + b, longest)
    assert min(len(left), len(right)) >= 1
    assert (np.diff(left) == 1).all()
    assert (np.diff(right) == 1).all()
    assert {*left.tolist()} <= {*first.tolist()}
    assert {*right.tolist()} <= {*second.tolist()}
    # The one that is not the longer loses nothing until both are even.
    for kept, whole, others in ((left, a, right), (right, b, left)):
        if len(kept) < whole:
            assert len(kept) >= len(others) - 1


def test_truncation_takes_from_both_ends() -> None:
    rng = np.random.default_rng(0)
    fronts, backs = [], []
    for _ in range(400):
        left, _ = _truncate(rng, np.arange(50), np.arange(10), 40)
        fronts.append(int(left[0]))
        backs.append(49 - int(left[-1]))
    assert {f + b for f, b in zip(fronts, backs, strict=True)} == {20}
    assert np.mean(fronts) == pytest.approx(10, abs=0.6)
    assert min(fronts) < 7
    assert max(fronts) > 13


# --- evaluation --------------------------------------------------------------------------------


def test_held_out_examples_are_fixed_sorted_and_limited(words: WordPiece) -> None:
    builder = builder_of(own_tokens(random_lengths(40, (1, 9), (3, 12)), 120), words)
    found = held_out_examples(builder, 1000)
    assert same(found, held_out_examples(builder, 1000))
    sizes = [len(e.input_ids) for e in found]
    assert sizes == sorted(sizes)
    assert len(found) == sum(1 for _ in epoch_of(builder, seed=2019))
    assert len(held_out_examples(builder, 10)) == 10


def test_unigram_entropy_equals_a_direct_computation(pieces: WordPiece) -> None:
    rng = np.random.default_rng(3)
    corpus = (5 + rng.zipf(1.5, (60, 5, 9)) % 200).tolist()
    store = store_of(corpus, pieces.vocab_size)
    training, held_out = split_documents(store, "nsp")
    builder = ExampleBuilder(store, pieces, held_out, ExampleOptions())
    examples = held_out_examples(builder, 100)
    counts: Counter[int] = Counter()
    for position in range(len(training)):
        offsets = training.offsets(position)
        counts.update(store.tokens[offsets[0] : offsets[-1]].tolist())
    total = counts.total() + pieces.vocab_size
    labels = [label for e in examples for label in e.mlm_labels.tolist()]
    expected = -np.mean([np.log((counts[label] + 1) / total) for label in labels])
    assert unigram_entropy(builder, examples) == pytest.approx(float(expected))


def test_tokens_per_character_are_those_of_the_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, ["play", "##ing", "##s", "the", ".", "\u738b", "a"])
    ids = tokenizer.ids(["the playing plays \u738b.", "a"])
    examples = []
    for row in ids:
        whole = np.array([tokenizer.cls_id, *row, tokenizer.sep_id])
        places = np.array([1])
        labels = whole[places].copy()
        whole[places] = tokenizer.mask_id
        examples.append(Example(whole, len(whole), places, labels, None))
    # "the playing plays\u738b." and "a", each word after a space.
    assert [len(row) for row in ids] == [7, 1]
    assert tokens_per_character(tokenizer, examples) == pytest.approx(8 / (4 + 8 + 6 + 1 + 1 + 2))


# --- batches -----------------------------------------------------------------------------------


def test_batches_are_padded_to_a_multiple_of_eight(words: WordPiece) -> None:
    builder = builder_of(own_tokens(random_lengths(20, (1, 9), (3, 12)), 120), words)
    examples = epoch_of(builder)
    slots = builder.options.max_predictions
    for size in (1, 3, len(examples)):
        batch = collate(examples[:size], slots)
        longest = max(len(e.input_ids) for e in examples[:size])
        length = batch["input_ids"].shape[1]
        assert length % 8 == 0
        assert longest <= length < longest + 8
        assert {t.dtype for t in batch.values()} == {torch.int64}
        assert batch["mlm_positions"].shape == batch["mlm_labels"].shape == (size, slots)
        assert batch["next_sentence_label"].shape == (size,)
        for name in ("token_type_ids", "attention_mask"):
            assert batch[name].shape == (size, length)


def test_batch_rows_hold_their_example_and_nothing_else(words: WordPiece) -> None:
    builder = builder_of(own_tokens(random_lengths(20, (1, 9), (3, 12)), 120), words)
    examples = epoch_of(builder)
    batch = collate(examples, 25)
    for row, example in enumerate(examples):
        n, m = len(example.input_ids), len(example.mlm_labels)
        ids = batch["input_ids"][row].tolist()
        assert ids[:n] == example.input_ids.tolist()
        assert not any(ids[n:])
        kinds = [0] * example.first_length + [1] * (n - example.first_length)
        assert batch["token_type_ids"][row].tolist() == kinds + [0] * (len(ids) - n)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (len(ids) - n)
        assert batch["mlm_positions"][row].tolist() == [*example.mlm_positions, *[0] * (25 - m)]
        labels = [*example.mlm_labels, *[IGNORE_INDEX] * (25 - m)]
        assert batch["mlm_labels"][row].tolist() == labels
        assert batch["next_sentence_label"][row] == example.next_sentence_label


# --- any corpus --------------------------------------------------------------------------------


def test_shifted_examples_differ_in_their_place_alone(pieces: WordPiece) -> None:
    corpus = pieced_corpus(200, 4)
    options = {"nsp": "none", "max_seq_length": 20}
    plain = epoch_of(builder_of(corpus, pieces, **options))
    builder = builder_of(corpus, pieces, num_positions=64, **options)
    shifted = epoch_of(builder)
    assert len(shifted) == len(plain) > 100
    for a, b in zip(plain, shifted, strict=True):
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.mlm_positions.tolist() == b.mlm_positions.tolist()
    places = [e.first_position for e in shifted]
    assert all(
        p is not None and p + len(e.input_ids) <= 64 for p, e in zip(places, shifted, strict=True)
    )
    assert set(range(10)) | set(range(35, 44)) <= {p for p in places if p is not None}
    assert max(p or 0 for p, e in zip(places, shifted, strict=True) if len(e.input_ids) == 20) == 44
    assert {e.first_position for e in plain} == {None}
    batch = collate(shifted[:8], builder.options.max_predictions)
    assert batch["first_positions"].tolist() == places[:8]
    assert "first_positions" not in collate(plain[:8], builder.options.max_predictions)
    for examples in (plain, shifted):
        assert [e.first_position for e in unpack(pack(examples))] == [
            e.first_position for e in examples
        ]


SENTENCES = st.lists(
    st.integers(1, 204).filter(lambda i: i not in (2, 3, 4)), min_size=1, max_size=30
)
CORPORA = st.lists(st.lists(SENTENCES, min_size=1, max_size=6), min_size=2, max_size=6)


@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
@pytest.mark.parametrize("nsp", ["nsp", "sop", "none"])
@settings(fuzz, max_examples=40)
@given(
    corpus=CORPORA,
    length=st.integers(8, 64),
    prob=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**40),
)
def test_any_corpus_gives_sound_examples(
    pieces: WordPiece, masking: str, nsp: str, corpus: Corpus, length: int, prob: float, seed: int
) -> None:
    options = {"masking": masking, "nsp": nsp, "max_seq_length": length, "mask_prob": prob}
    builder = builder_of(corpus, pieces, **options)
    found = epoch_of(builder, seed)
    for example in found:
        n = len(example.input_ids)
        assert n <= length
        ids = original(example)
        assert (ids == SEP).sum() == (1 if nsp == "none" else 2)
        assert (ids == CLS).sum() == 1
        if nsp == "none":
            assert example.first_length == n
        else:
            first, second = segments(example)
            assert min(len(first), len(second)) > 0
        ordinary = int((ids >= FIRST).sum())
        wanted = min(max(1, round(n * prob)), builder.options.max_predictions, ordinary)
        if masking == "token":
            assert len(example.mlm_labels) == wanted
        assert min(1, wanted) <= len(example.mlm_labels) <= wanted
        assert (example.mlm_labels >= FIRST).all()
        assert example.input_ids.dtype == example.mlm_labels.dtype == np.int64
    if found:
        collate(found, builder.options.max_predictions)
