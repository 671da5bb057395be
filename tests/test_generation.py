"""Greedy and beam search: against brute force, without a cache, and whatever the batch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from samples import one_thread  # noqa: F401
from torch import Tensor

from minibert.config import BertConfig
from minibert.decoder_config import DecoderConfig
from minibert.errors import InputError
from minibert.generation import (
    GenerationSettings,
    forbid_repeats,
    generate,
    length_divisor,
    rehearse,
)
from minibert.seq2seq import BertForConditionalGeneration

PAD, BOS, EOS = 0, 1, 2


def make(
    tiny_config: BertConfig, vocab: int = 30, positions: int = 24, spread: float = 0.3
) -> BertForConditionalGeneration:
    """Random weights, so large that scores differ from word to word and between sources."""
    config = DecoderConfig(vocab, 2, positions).added_to(
        replace(tiny_config, initializer_range=spread)
    )
    model = BertForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.decoder.bias, std=0.5)
    return model


def sources(lengths: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 80, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def log_probs_without_cache(
    model: BertForConditionalGeneration, ids: Tensor, mask: Tensor, prefix: list[int]
) -> Tensor:
    """Of the next token after a prefix, (V,), of one source; everything computed anew."""
    read = torch.tensor([[BOS, *prefix]])
    logits = model(ids, attention_mask=mask, decoder_input_ids=read).logits[0, -1]
    return logits.log_softmax(-1)


@torch.no_grad()
def best_of_all(
    model: BertForConditionalGeneration, ids: Tensor, mask: Tensor, longest: int, alpha: float
) -> tuple[list[int], float]:
    """The best whole text of at most `longest` tokens, end mark included, by trying every one."""
    vocab = model.decoder_config.target_vocab_size
    words = [w for w in range(vocab) if w not in (PAD, BOS, EOS)]
    best: tuple[list[int], float] = ([], -float("inf"))
    for count in range(longest):
        for text in itertools.product(words, repeat=count):
            read, wanted = torch.tensor([[BOS, *text]]), [*text, EOS]
            logits = model(ids, attention_mask=mask, decoder_input_ids=read).logits[0]
            total = logits.log_softmax(-1)[range(count + 1), wanted].sum().item()
            score = total / length_divisor(count + 1, alpha)
            best = max(best, (list(text), score), key=lambda found: found[1])
    return best


@torch.no_grad()
def test_scores_with_the_cache_are_those_without_step_by_step(tiny_config: BertConfig) -> None:
    model = make(tiny_config)
    ids, mask = sources([9, 4, 6])
    targets = torch.randint(3, 30, (3, 20))  # more than the cache has room for at first
    targets[:, 0] = BOS
    expected = model(ids, attention_mask=mask, decoder_input_ids=targets).logits
    cache = model.begin(ids, mask)
    for place in range(20):
        found = model.decoder.step(targets[:, place : place + 1], cache)
        torch.testing.assert_close(found[:, 0], expected[:, place], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hypotheses_that_change_places_keep_their_own_past(tiny_config: BertConfig) -> None:
    """The score that beam search reports is that of its text, computed anew."""
    model = make(tiny_config, spread=0.15)
    ids, mask = sources([9, 4, 6, 5])
    settings = GenerationSettings(num_beams=5, length_penalty=0.0, max_length=20)
    for i, text in enumerate(generate(model, ids, mask, settings)):
        read = torch.tensor([[BOS, *text.ids]])
        wanted = [*text.ids, EOS] if text.is_whole else text.ids
        logits = model(ids[i : i + 1], attention_mask=mask[i : i + 1], decoder_input_ids=read)
        log_probs = logits.logits[0].log_softmax(-1)
        total = sum(log_probs[place, word].item() for place, word in enumerate(wanted))
        assert text.score == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("bias", [-50.0, 50.0])  # it never ends, or at once
def test_a_rehearsal_takes_the_lengths_it_is_given(
    tiny_config: BertConfig, monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    model = make(tiny_config)
    model.decoder.bias.data[EOS] += bias
    ids, mask = sources([9, 4, 6, 5])
    written: list[int] = []  # sources of each step
    taken = type(model.decoder).step

    def step(decoder: Any, tokens: Tensor, *rest: Any) -> Tensor:
        written.append(len(tokens))
        return taken(decoder, tokens, *rest)

    monkeypatch.setattr(type(model.decoder), "step", step)
    settings = GenerationSettings(num_beams=3)
    rehearse(model, ids, mask, settings, torch.tensor([2, 7, 5, 7]))
    assert written == [4, 4, 3, 3, 3, 2, 2]
    written.clear()
    found = generate(model, ids, mask, settings)
    assert len(written) == (24 if bias < 0 else 1)
    assert {text.is_whole for text in found} == {bias > 0}


@torch.no_grad()
def test_one_beam_is_greedy_search(tiny_config: BertConfig) -> None:
    model = make(tiny_config, spread=0.2)
    model.decoder.bias[EOS] += 3.0
    ids, mask = sources([9, 4, 6, 5, 7, 3])
    found = generate(model, ids, mask, GenerationSettings(num_beams=1, max_length=12))
    for i, text in enumerate(found):
        prefix: list[int] = []
        while len(prefix) < 12:
            own = log_probs_without_cache(model, ids[i : i + 1], mask[i : i + 1], prefix)
            own[[PAD, BOS]] = -torch.inf
            word = int(own.argmax())
            if word == EOS:
                break
            prefix.append(word)
        assert text.ids == prefix
        assert text.is_whole == (len(prefix) < 12)
    assert {text.is_whole for text in found} == {True, False}  # both ways of ending were met


def test_with_one_beam_the_first_end_is_the_end(tiny_config: BertConfig) -> None:
    """However much better a longer text would be after division."""
    model = make(tiny_config, spread=0.05)
    with torch.no_grad():
        model.decoder.bias[EOS] = 3.0  # the likeliest at every step
    settings = GenerationSettings(num_beams=1, length_penalty=50.0)
    for text in generate(model, *sources([6, 4]), settings):
        assert (text.ids, text.is_whole) == ([], True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_beam_that_holds_everything_finds_the_optimum(
    tiny_config: BertConfig, seed: int, alpha: float
) -> None:
    torch.manual_seed(seed)
    model = make(tiny_config, vocab=6, positions=4)  # three words, texts of up to three and an end
    ids, mask = sources([5, 8])
    settings = GenerationSettings(num_beams=200, length_penalty=alpha)
    for i, text in enumerate(generate(model, ids, mask, settings)):
        best, score = best_of_all(model, ids[i : i + 1], mask[i : i + 1], 4, alpha)
        assert text.ids == best
        assert text.score == pytest.approx(score, rel=1e-4)


def test_a_wider_beam_finds_likelier_texts_in_the_mean(tiny_config: BertConfig) -> None:
    model = make(tiny_config, spread=0.15)
    ids, mask = sources([6] * 16)

    def mean(beams: int) -> float:
        settings = GenerationSettings(num_beams=beams, length_penalty=0.0, max_length=10)
        found = generate(model, ids, mask, settings)
        return sum(text.score for text in found) / len(found)

    assert mean(1) < mean(8)


def test_a_live_hypothesis_that_may_still_win_is_followed(tiny_config: BertConfig) -> None:
    """An early end is not taken for the best while a longer text can beat it after division."""
    longer = 0
    for seed in range(12):
        torch.manual_seed(seed)
        model = make(tiny_config, vocab=6, positions=4)
        ids, mask = sources([6])
        plain, _ = best_of_all(model, ids, mask, 4, 0.0)
        best, _ = best_of_all(model, ids, mask, 4, 3.0)
        longer += len(best) > len(plain)
        settings = GenerationSettings(num_beams=60, length_penalty=3.0)
        assert generate(model, ids, mask, settings)[0].ids == best
    assert longer >= 2  # division decided in some of them


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_n_tokens_in_a_row_come_twice(tiny_config: BertConfig, beams: int, n: int) -> None:
    model = make(tiny_config, vocab=8)
    with torch.no_grad():
        model.decoder.bias[EOS] = -6.0  # it would go on for ever
    ids, mask = sources([6, 5, 9, 4])

    def repeats(size: int) -> int:
        settings = GenerationSettings(beams, 0.6, size, max_length=20)
        found = 0
        for text in generate(model, ids, mask, settings):
            grams = [tuple(text.ids[i : i + n]) for i in range(len(text.ids) - n + 1)]
            found += len(grams) - len(set(grams))
        return found

    assert repeats(0) > 0
    assert repeats(n) == 0


def test_repeats_are_forbidden_and_nothing_else() -> None:
    log_probs = torch.zeros(1, 2, 8)
    tokens = torch.tensor([[[3, 4, 5, 3, 4], [3, 4, 4, 4, 5]]])
    forbid_repeats(log_probs, tokens, 3, never=1)
    forbidden = log_probs.isinf().nonzero().tolist()
    assert [0, 0, 5] in forbidden  # 3 4 5 has been
    assert [row for row in forbidden if row[2] != 1] == [[0, 0, 5]]


def repeated_words(tokens: list[int], starts: list[bool], n: int) -> set[int]:
    """What may not come next, by words put together one by one."""

    def words(ids: list[int]) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for i, token in enumerate(ids):
            if i == 0 or starts[token]:
                found.append((token,))
            else:
                found[-1] += (token,)
        return found

    forbidden = set()
    for token, is_start in enumerate(starts):
        whole = words([*tokens, token])
        before = words(tokens) if is_start else words(tokens)[:-1]  # those that have ended
        rows = [before[i : i + n] for i in range(len(before) - n + 1)]
        if len(whole) >= n and whole[-n:] in rows:
            forbidden.add(token)
    return forbidden


@pytest.mark.parametrize("n", [1, 2, 3])
def test_rows_of_words_are_forbidden_and_nothing_else(n: int) -> None:
    starts = torch.tensor([False, False, False, True, True, False, False])
    torch.manual_seed(0)
    seen = set()
    for length in (3, 5, 9, 14, 40):
        tokens = torch.randint(3, 6, (8, 2, length))
        for spaced in (None, torch.tensor([0, 1, 2, 3, 4, 3, 6])):
            log_probs = torch.zeros(8, 2, 7)
            forbid_repeats(log_probs, tokens, n, 1, starts, spaced)
            for row, beam in itertools.product(range(8), range(2)):
                found = set(log_probs[row, beam].isinf().nonzero()[:, 0].tolist()) - {1}
                first, *others = tokens[row, beam].tolist()
                first = first if spaced is None else int(spaced[first])
                assert found == repeated_words([first, *others], starts.tolist(), n)
                seen |= {bool(starts[token]) for token in found}
    assert seen == {False, True}  # a word of one token, and the last token of a longer one


@pytest.mark.parametrize("beams", [1, 3])
def test_written_words_do_not_repeat(tiny_config: BertConfig, beams: int) -> None:
    model = make(tiny_config, spread=0.3)
    starts = torch.ones(model.decoder_config.target_vocab_size, dtype=torch.bool)
    starts[::3] = False
    ids, mask = sources([6, 5, 9, 4])

    def repeats(size: int) -> int:
        settings = GenerationSettings(beams, 0.6, size, max_length=24)
        found = 0
        for text in generate(model, ids, mask, settings, starts):
            words = "".join(("/" if starts[i] else ".") + str(i) for i in text.ids).split("/")
            rows = [*itertools.pairwise(w for w in words if w)]
            found += len(rows) - len(set(rows))
        return found

    assert repeats(0) > 0
    assert repeats(2) == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_padding_and_neighbours_change_no_text(tiny_config: BertConfig, beams: int) -> None:
    model = make(tiny_config, spread=0.2)
    lengths = [9, 2, 6, 12, 3, 7, 5]
    ids, mask = sources(lengths)
    settings = GenerationSettings(num_beams=beams, max_length=14)
    together = generate(model, ids, mask, settings)
    wide = torch.cat([ids, torch.zeros(7, 8, dtype=torch.int64)], 1)
    wide_mask = torch.cat([mask, torch.zeros(7, 8, dtype=torch.int64)], 1)
    padded = generate(model, wide, wide_mask, settings)
    for i, length in enumerate(lengths):
        (alone,) = generate(model, ids[i : i + 1, :length], None, settings)
        for other in (together[i], padded[i]):
            assert other.ids == alone.ids
            assert other.score == pytest.approx(alone.score, rel=1e-4)
    assert len({tuple(text.ids) for text in together}) > 1


def test_a_source_without_words_gets_a_text(tiny_config: BertConfig) -> None:
    model = make(tiny_config)
    settings = GenerationSettings(num_beams=3, max_length=6)
    ids = torch.tensor([[2, 3, 0, 0], [2, 9, 8, 3]])
    for length in (2, 0):  # with its marks, and without
        mask = torch.ones_like(ids)
        mask[0, length:] = 0
        empty, words = generate(model, ids * mask, mask, settings)
        assert torch.tensor(empty.score).isfinite()
        assert words.ids == generate(model, ids[1:], None, settings)[0].ids


def test_the_same_model_writes_the_same_text_again(tiny_config: BertConfig) -> None:
    model = make(tiny_config)
    ids, mask = sources([6, 9])
    assert generate(model, ids, mask) == generate(model, ids, mask)


def test_no_mark_is_written_and_length_is_kept(tiny_config: BertConfig) -> None:
    model = make(tiny_config, vocab=8, spread=0.05)
    with torch.no_grad():
        model.decoder.bias[[PAD, BOS]] = 9.0
    ids, mask = sources([6, 9, 4])
    for longest in (1, 2, 5):
        for text in generate(model, ids, mask, GenerationSettings(max_length=longest)):
            assert not {PAD, BOS, EOS} & set(text.ids)
            assert len(text.ids) + text.is_whole <= longest


def test_a_text_that_is_cut_has_the_score_of_what_is_written(tiny_config: BertConfig) -> None:
    model = make(tiny_config)
    with torch.no_grad():
        model.decoder.bias[EOS] = -9.0
        ids, mask = sources([6])
        settings = GenerationSettings(num_beams=3, length_penalty=1.0, max_length=5)
        (text,) = generate(model, ids, mask, settings)
        assert (len(text.ids), text.is_whole) == (5, False)
        scores = [
            log_probs_without_cache(model, ids, mask, text.ids[:at])[word].item()
            for at, word in enumerate(text.ids)
        ]
    assert text.score == pytest.approx(sum(scores) / length_divisor(5, 1.0), rel=1e-4)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match="num_beams is 0.*length_penalty is -1.*max_length is 0"):
        GenerationSettings(num_beams=0, length_penalty=-1, max_length=0)
    with pytest.raises(InputError, match="no_repeat_ngram_size is -2, must be 0 or more"):
        GenerationSettings(no_repeat_ngram_size=-2)


def test_a_text_longer_than_the_positions_is_refused(tiny_config: BertConfig) -> None:
    model = make(tiny_config)
    with pytest.raises(InputError, match="max_length is 25, but max_target_positions is 24"):
        generate(
            model, torch.ones(1, 3, dtype=torch.int64), None, GenerationSettings(max_length=25)
        )
