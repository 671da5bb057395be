"""Masked words and scores of sentences: brute force, the reference, batches, what is refused."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import NOUNS, one_thread  # noqa: F401
from torch import Tensor

import minibert
from minibert import masked
from minibert.cli import main
from minibert.convert import published_tensors, save_tensors
from minibert.errors import InputError
from minibert.heads import BertForPreTraining, BertForSequenceClassification
from minibert.masked import MaskedLM, figures_of, load_masked_lm
from minibert.tokenizer import SPECIAL_TOKENS, WordPiece

PIECES = [*SPECIAL_TOKENS, *NOUNS, "the", "was", "un", "##s", "##land", "##er", ".", ","]
NAMELESS = 3  # ids with an embedding and no piece
CONFIG = minibert.BertConfig(
    vocab_size=len(PIECES) + NAMELESS,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    initializer_range=0.3,  # so that pieces differ in their probabilities
)
TEXTS = [
    "The [MASK] was the river.",
    "[MASK]",
    "storm [MASK] river[MASK] , the [MASK] [MASK] .",
    "the castle was un[MASK]",
]
SENTENCES = [
    "The riverlanders was the storm.",
    "storm",
    "marketlands, castles, unland valley",
    "the qqq was the miller",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, as pretraining saves one."""
    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(1)
    model = BertForPreTraining(CONFIG)
    torch.nn.init.normal_(model.mlm.bias)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    WordPiece.from_pretrained(folder).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> MaskedLM:
    return load_masked_lm(folder, "cpu", "fp32")


def ids_of(*pieces: str) -> Tensor:
    return torch.tensor([[PIECES.index(piece) for piece in pieces]])


def all_log_probs(folder: Path, ids: Tensor) -> Tensor:
    """(1, T) -> (T, V), by the whole model on one sequence."""
    whole = BertForPreTraining.from_pretrained(folder)
    with torch.no_grad():
        logits = whole(ids).mlm_logits
    assert logits is not None
    return logits[0].log_softmax(1)


def brute_force(folder: Path, pieces: list[str], within_word: bool = False) -> list[float]:
    """Of each piece of a short sentence its log-probability, one pass each."""
    found = []
    for place, piece in enumerate(pieces):
        masked_pieces = list(pieces)
        masked_pieces[place] = "[MASK]"
        later = place + 1
        while within_word and later < len(pieces) and pieces[later].startswith("##"):
            masked_pieces[later] = "[MASK]"
            later += 1
        log_probs = all_log_probs(folder, ids_of("[CLS]", *masked_pieces, "[SEP]"))
        found.append(float(log_probs[place + 1, PIECES.index(piece)]))
    return found


# --- masked words ---------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_of_the_logits(folder: Path, model: MaskedLM) -> None:
    every = len(PIECES)
    found = model.fill_mask(TEXTS, top=every)
    assert [answer.text for answer in found] == TEXTS
    encoded = [
        ids_of("[CLS]", "the", "[MASK]", "was", "the", "river", ".", "[SEP]"),
        ids_of("[CLS]", "[MASK]", "[SEP]"),
        ids_of(*"[CLS] storm [MASK] river [MASK] , the [MASK] [MASK] . [SEP]".split()),
        ids_of(*"[CLS] the castle was un [MASK] [SEP]".split()),
    ]
    for answer, ids in zip(found, encoded, strict=True):
        shares = all_log_probs(folder, ids).exp()
        places = (ids[0] == PIECES.index("[MASK]")).nonzero()[:, 0].tolist()
        assert len(answer.masks) == len(places)
        for mask, place in zip(answer.masks, places, strict=True):
            assert {candidate.token for candidate in mask} == set(PIECES)
            for candidate in mask:
                own = float(shares[place, PIECES.index(candidate.token)])
                assert candidate.probability == pytest.approx(own, rel=1e-4)
            listed = [candidate.probability for candidate in mask]
            assert listed == sorted(listed, reverse=True)
            nameless = float(shares[place, every:].sum())
            assert sum(listed) == pytest.approx(1 - nameless, abs=1e-5)
    (two,) = model.fill_mask(TEXTS[0], top=2)[0].masks
    assert [c.token for c in two] == [c.token for c in found[0].masks[0][:2]]


def test_nameless_ids_are_no_candidates_even_where_they_are_likeliest(folder: Path) -> None:
    own = load_masked_lm(folder, "cpu", "fp32")
    with torch.no_grad():
        own.model.mlm.bias[len(PIECES) :] = 50
    (answer,) = own.fill_mask("the [MASK]", top=1000)
    assert len(answer.masks[0]) == len(PIECES)
    assert sum(c.probability for c in answer.masks[0]) < 1e-6


def test_a_mask_is_filled_with_its_likeliest_piece(folder: Path) -> None:
    own = load_masked_lm(folder, "cpu", "fp32")
    with torch.no_grad():
        own.model.mlm.bias[PIECES.index("##s")] = 100
    filled = [answer.filled for answer in own.fill_mask(["A  Storm [MASK].", "[MASK] , [MASK]"])]
    assert filled == ["A  Storms.", "##s ,s"]
    with torch.no_grad():
        own.model.mlm.bias[PIECES.index("river")] = 200
    assert own.fill_mask("A  Storm [MASK].")[0].filled == "A  Storm river."


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_answers_do_not_depend_on_the_batch(model: MaskedLM, batch_size: int) -> None:
    alone = [model.fill_mask(text)[0] for text in TEXTS]
    for one, other in zip(alone, model.fill_mask(TEXTS, batch_size=batch_size), strict=True):
        assert (one.text, one.filled) == (other.text, other.filled)
        for mask, again in zip(one.masks, other.masks, strict=True):
            assert [c.token for c in mask] == [c.token for c in again]
            own = [c.probability for c in mask]
            assert own == pytest.approx([c.probability for c in again], rel=1e-4)
    scores = [model.score(text)[0] for text in SENTENCES]
    together = model.score(SENTENCES, batch_size=batch_size)
    for a, b in zip(scores, together, strict=True):
        assert (a.sentence, a.pieces) == (b.sentence, b.pieces)
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


def test_more_masks_than_are_computed_at_once(
    model: MaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.fill_mask(TEXTS), model.score(SENTENCES)
    monkeypatch.setattr(masked, "_ROWS_AT_ONCE", 2)
    for one, other in zip(whole[0], model.fill_mask(TEXTS), strict=True):
        assert [[c.token for c in mask] for mask in one.masks] == [
            [c.token for c in mask] for mask in other.masks
        ]
    for a, b in zip(whole[1], model.score(SENTENCES), strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("within_word", [False, True])
def test_scores_are_those_of_brute_force(folder: Path, model: MaskedLM, within_word: bool) -> None:
    found = model.score(SENTENCES, within_word=within_word)
    assert [score.sentence for score in found] == SENTENCES
    assert found[0].pieces == "the river ##land ##er ##s was the storm .".split()
    assert [score.unknown for score in found] == [0, 0, 0, 1]
    for score in found:
        log_probs = brute_force(folder, score.pieces, within_word)
        assert score.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert score.tokens == len(score.pieces)
        assert score.pll == pytest.approx(sum(log_probs), abs=1e-3)


def test_only_split_words_are_scored_otherwise_within_words(model: MaskedLM) -> None:
    plain = model.score(["the river was", "the riverland was"])
    words = model.score(["the river was", "the riverland was"], within_word=True)
    assert plain[0] == words[0]
    pairs = zip(plain[1].log_probs, words[1].log_probs, strict=True)
    differ = [a != pytest.approx(b, abs=1e-3) for a, b in pairs]
    assert differ == [False, True, False, False]  # "river" no longer sees "##land"


def test_figures_by_hand(model: MaskedLM) -> None:
    figures = figures_of(-6 * math.log(2), 3, 12)
    assert figures == pytest.approx(
        {
            "pll": -6 * math.log(2),
            "pll_per_token": -2 * math.log(2),
            "bits_per_character": 0.5,
            "pseudo_perplexity": 4,
        }
    )
    (score,) = model.score("  the storm ")
    assert score.bits_per_character == pytest.approx(-score.pll / math.log(2) / len("the storm"))


def test_a_long_sentence_is_scored_from_the_part_around_each_token(
    folder: Path, model: MaskedLM
) -> None:
    room = CONFIG.max_position_embeddings - 2  # 14
    pieces = [NOUNS[i % len(NOUNS)] for i in range(room + 7)]
    pieces[17:19] = ["##land", "##s"]
    (score,) = model.score(" ".join(pieces).replace(" ##", ""))
    assert score.pieces == pieces
    expected = []
    for place, piece in enumerate(pieces):
        begin = {**dict.fromkeys(range(8), 0), **{p: p - 7 for p in range(8, 14)}}.get(place, 7)
        part = pieces[begin : begin + room]
        assert len(part) == room
        part[place - begin] = "[MASK]"
        log_probs = all_log_probs(folder, ids_of("[CLS]", *part, "[SEP]"))
        expected.append(float(log_probs[place - begin + 1, PIECES.index(piece)]))
    assert score.log_probs == pytest.approx(expected, abs=1e-4)


def test_a_word_that_the_part_cuts_is_masked_to_the_end_of_the_part(
    folder: Path, model: MaskedLM
) -> None:
    pieces = ["river", *["##land"] * 20]
    (score,) = model.score("river" + "land" * 20, within_word=True)
    assert score.pieces == pieces
    log_probs = all_log_probs(folder, ids_of("[CLS]", *["[MASK]"] * 14, "[SEP]"))
    assert score.log_probs[0] == pytest.approx(float(log_probs[1, PIECES.index("river")]), abs=1e-4)


def test_scores_come_as_they_are_found_and_in_order(
    model: MaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.score(SENTENCES)
    pools = []
    infer = masked.infer

    def counted(*given: Any) -> Any:
        pools.append(len(given[2]))
        return infer(*given)

    monkeypatch.setattr(masked, "infer", counted)
    monkeypatch.setattr(masked, "_POOL_BATCHES", 2)
    scores = model.iter_scores(SENTENCES, batch_size=3)
    assert pools == []
    first = next(scores)
    assert pools == [6, 6]  # the first sentence has 9 tokens
    found = [first, *scores]
    assert sum(pools) == sum(score.tokens for score in whole)
    assert max(pools) == 6
    assert [score.sentence for score in found] == SENTENCES
    for a, b in zip(whole, found, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


def test_nothing_gives_nothing(model: MaskedLM) -> None:
    assert model.fill_mask([]) == []
    assert model.score([]) == []


# --- folders --------------------------------------------------------------------------------------


def test_transformers_finds_the_same(folder: Path, model: MaskedLM, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    mask_id = tokenizer.mask_token_id
    for text, answer in zip(TEXTS, model.fill_mask(TEXTS), strict=True):
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            shares = theirs(**batch).logits[0].softmax(-1)[batch["input_ids"][0] == mask_id]
        best = shares[:, : len(PIECES)].topk(5, dim=1)
        for mask, ids, values in zip(answer.masks, best.indices, best.values, strict=True):
            assert [c.token for c in mask] == tokenizer.convert_ids_to_tokens(ids.tolist())
            found = [c.probability for c in mask]
            assert found == pytest.approx(values.tolist(), rel=1e-3)
    for score in model.score(SENTENCES):
        (ids,) = tokenizer(score.sentence, return_tensors="pt")["input_ids"]
        copies = ids.repeat(len(ids) - 2, 1)
        copies.diagonal(1)[:] = mask_id
        with torch.no_grad():
            log_probs = theirs(copies).logits.log_softmax(-1)
        rows = torch.arange(len(copies))
        expected = log_probs[rows, rows + 1, ids[1:-1]].tolist()
        assert score.log_probs == pytest.approx(expected, abs=1e-3)
    theirs.save_pretrained(tmp_path)  # without a pooler and a next-sentence head
    tokenizer.save_pretrained(tmp_path)
    again = load_masked_lm(tmp_path, "cpu", "fp32")
    assert again.score(SENTENCES)[0].pll == pytest.approx(model.score(SENTENCES)[0].pll, abs=1e-4)


def test_int8_and_bf16_are_near(folder: Path, model: MaskedLM) -> None:
    exact = model.score(SENTENCES)
    for precision in ("int8", "bf16"):
        for a, b in zip(
            exact, load_masked_lm(folder, "cpu", precision).score(SENTENCES), strict=True
        ):
            assert b.pll_per_token == pytest.approx(a.pll_per_token, abs=0.3)
            assert b.pll != a.pll


def with_run(folder: Path, place: Path, **run: Any) -> Path:
    shutil.copytree(folder, place)
    (place / "run.json").write_text(json.dumps({"resolved": {}, "versions": {}, **run}))
    return place


def test_a_run_reads_what_it_was_pretrained_on(folder: Path, tmp_path: Path) -> None:
    settings = {"max_seq_length": 10, "model": None}
    own = with_run(folder, tmp_path / "own", command="pretrain", settings=settings)
    assert load_masked_lm(own).longest == 10
    assert load_masked_lm(own).fill_mask("[MASK] " * 8)[0].masks[7]
    with pytest.raises(InputError, match="text 1 .*has 11 tokens.* 10 at most"):
        load_masked_lm(own).fill_mask("[MASK] " * 9)
    settings["model"] = "published"  # whose pretraining may have reached all positions
    on = with_run(folder, tmp_path / "on", command="pretrain", settings=settings)
    assert load_masked_lm(on).longest == 16
    assert load_masked_lm(folder).longest == 16
    told = {"settings": settings, "resolved": {"trained_positions": 12}}
    known = with_run(folder, tmp_path / "known", command="pretrain", **told)
    assert load_masked_lm(known).longest == 12


def without(folder: Path, place: Path, *beginnings: str, **more: Tensor) -> Path:
    """The folder with some published tensors left out, and others put in."""
    shutil.copytree(folder, place)
    tensors = published_tensors(BertForPreTraining.from_pretrained(folder))
    kept = {k: v for k, v in tensors.items() if not (beginnings and k.startswith(beginnings))}
    save_tensors(kept | more, place / "model.safetensors")
    return place


def test_a_folder_that_was_not_pretrained_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(folder, tuned)
    BertForSequenceClassification.from_pretrained(folder).save_pretrained(tuned)
    wanted = (
        "BertForSequenceClassification without a masked-word head; expected a pretrained folder"
    )
    with pytest.raises(InputError, match=wanted):
        load_masked_lm(tuned)
    minibert.BertModel.from_pretrained(folder).save_pretrained(tuned)
    with pytest.raises(InputError, match="BertModel without a masked-word head"):
        load_masked_lm(tuned)
    for lost in ("cls.predictions.bias", "cls.predictions.transform.dense"):
        with pytest.raises(InputError, match="without a masked-word head"):
            load_masked_lm(without(folder, tmp_path / lost, lost))
    layer = without(folder, tmp_path / "layer", "bert.encoder.layer.1.")
    with pytest.raises(InputError, match="without the weights bert.layers.1"):
        load_masked_lm(layer)
    decoder = {"cls.predictions.decoder.weight": torch.zeros(CONFIG.vocab_size, 32)}
    untied = without(folder, tmp_path / "untied", **decoder)
    with pytest.raises(InputError, match="a decoder of its own"):
        load_masked_lm(untied)
    bias = published_tensors(BertForPreTraining.from_pretrained(folder))["cls.predictions.bias"]
    other = {"cls.predictions.decoder.bias": bias + 1}
    with pytest.raises(InputError, match="two biases for masked words"):
        load_masked_lm(without(folder, tmp_path / "biases", **other))
    same = {"cls.predictions.decoder.bias": bias.clone()}
    load_masked_lm(without(folder, tmp_path / "same", **same))
    load_masked_lm(without(folder, tmp_path / "fine", "cls.seq_relationship", "bert.pooler"))


def test_a_translation_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from minibert.decoder_config import DecoderConfig

    shutil.copytree(folder, tmp_path / "written")
    config = DecoderConfig(target_vocab_size=50).added_to(CONFIG)
    torch.manual_seed(0)
    minibert.BertForConditionalGeneration(config).save_pretrained(tmp_path / "written")
    with pytest.raises(InputError, match="BertForConditionalGeneration without a masked-word head"):
        load_masked_lm(tmp_path / "written")


def test_a_notebook_is_told_what_is_wrong(folder: Path, model: MaskedLM) -> None:
    with pytest.raises(InputError, match=r"text 2 \(no mask\) has no \[MASK\]; write \[MASK\]"):
        model.fill_mask(["[MASK]", "no mask"])
    with pytest.raises(InputError, match="text 2 is 7; expected a string"):
        model.score(["a", 7])  # type: ignore[list-item]
    with pytest.raises(InputError, match="texts are 5; expected one, or several"):
        model.fill_mask(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="top is 0"):
        model.fill_mask("[MASK]", top=0)
    with pytest.raises(InputError, match="batch_size is 0"):
        model.score("storm", batch_size=0)
    with pytest.raises(InputError, match=r"sentence 2 \('\\x01'\) holds no token"):
        model.score(["storm", "\x01"])
    with pytest.raises(InputError, match="precision is 'fp8'"):
        load_masked_lm(folder, precision="fp8")


# --- commands -------------------------------------------------------------------------------------


def rows_of(capsys: pytest.CaptureFixture[str], *line: str | Path) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main([*map(str, line)]) == 0
    return [json.loads(row) for row in capsys.readouterr().out.splitlines()]


def typed(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    stdin = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stdin)


def test_fill_mask_from_arguments_file_and_standard_input(
    folder: Path,
    model: MaskedLM,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ("fill-mask", "--model", folder, "--device", "cpu", "--top", "3")
    rows = rows_of(capsys, *line, *TEXTS)
    for row, answer in zip(rows, model.fill_mask(TEXTS, top=3), strict=True):
        assert (row["text"], row["filled"]) == (answer.text, answer.filled)
        for found, mask in zip(row["masks"], answer.masks, strict=True):
            assert [c["token"] for c in found] == [c.token for c in mask]
            wanted = [c.probability for c in mask]
            assert [c["probability"] for c in found] == pytest.approx(wanted, rel=1e-4)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS) + "\n")
    assert rows_of(capsys, *line, "--input", tmp_path / "texts.txt") == rows
    typed(monkeypatch, TEXTS)
    assert rows_of(capsys, *line, "-") == rows


def test_a_text_may_begin_with_a_hyphen_or_stand_in_an_object(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, key in (("fill-mask", "text"), ("score", "sentence")):
        line = (command, "--model", folder)
        rows = rows_of(capsys, *line, "storm [MASK]", "--", "-x[MASK]", "--model[MASK]")
        assert [row[key] for row in rows] == ["storm [MASK]", "-x[MASK]", "--model[MASK]"]
        (tmp_path / "texts.txt").write_text('{"text": "the [MASK]"}\nthe [MASK]\n')
        first, second = rows_of(capsys, *line, "--input", tmp_path / "texts.txt")
        assert first == second
        (tmp_path / "texts.txt").write_text('the [MASK]\n{"body": "the [MASK]"}\n')
        assert main([*map(str, line), "--input", str(tmp_path / "texts.txt")]) == 2
        assert "line 2 is an object without a text alone" in capsys.readouterr().err


def test_one_bad_line_does_not_refuse_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    for command, bad, wanted in (
        ("fill-mask", "storm", "(storm) has no [MASK]; write [MASK]"),
        ("score", "\u200b", "('\\u200b') holds no token"),
    ):
        line = [command, "--model", str(folder), "--precision", "fp32", "--batch-size", "1"]
        good = ["the [MASK]", "storm [MASK] river"]
        alone = [row for text in good for row in rows_of(capsys, *line, text)]
        texts.write_text(f"\n{good[0]}\n\n{bad}\n{good[1]}\n")
        assert main([*line, "--input", str(texts)]) == 2
        out, err = capsys.readouterr()
        rows = [json.loads(row) for row in out.splitlines()]
        assert [rows[0], rows[2]] == alone
        assert rows[1]["text" if command == "fill-mask" else "sentence"] == bad
        assert next(iter(rows[1])) in rows[0]  # the key is that of the answers
        assert rows[1]["error"].startswith(wanted)
        wanted = f"minibert: 1 of 3 could not be answered; the first, line 4: {wanted}"
        assert err.splitlines()[-1].startswith(wanted)
        if command == "score":
            assert "all: 2 sentences" in err


def test_on_a_terminal_masked_words_are_a_table(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["fill-mask", "--model", str(folder), "--top", "2", "the [MASK]", "[MASK] , [MASK]"]
    rows = rows_of(capsys, *line)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert rows_of(capsys, *line, "--json") == rows
    assert main(line) == 0
    shown = capsys.readouterr().out.splitlines()

    def told(mask: list[dict[str, Any]]) -> list[str]:
        return [f"  {c['probability']:7.2%}  {c['token']}" for c in mask]

    first, second = (row["masks"] for row in rows)
    assert shown == [
        *("the [MASK]", *told(first[0]), "[MASK] , [MASK]"),
        *("  [MASK] 1", *told(second[0]), "  [MASK] 2", *told(second[1])),
    ]


def test_score_prints_a_line_for_each_sentence_and_the_figures_of_all(
    folder: Path,
    model: MaskedLM,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ("score", "--model", folder, "--device", "cpu")
    rows = rows_of(capsys, *line, *SENTENCES)
    own = model.score(SENTENCES)
    for row, score in zip(rows, own, strict=True):
        assert row == {
            "sentence": score.sentence,
            "tokens": score.tokens,
            "unknown": score.unknown,
            "pll": pytest.approx(score.pll, rel=1e-4),
            "pll_per_token": pytest.approx(score.pll_per_token, rel=1e-4),
            "bits_per_character": pytest.approx(score.bits_per_character, rel=1e-4),
            "pseudo_perplexity": pytest.approx(score.pseudo_perplexity, rel=1e-3),
        }
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES) + "\n")
    assert rows_of(capsys, *line, "--input", tmp_path / "texts.txt") == rows
    typed(monkeypatch, SENTENCES)
    assert main([*map(str, line), "-"]) == 0
    err = capsys.readouterr().err
    mean = sum(s.pll for s in own) / sum(s.tokens for s in own)
    assert f"all: 4 sentences, {sum(s.tokens for s in own)} tokens" in err
    assert f"pll_per_token {mean:.4f}" in err
    (row,) = rows_of(capsys, *line, "--within-word", "--per-token", SENTENCES[0])
    (score,) = model.score(SENTENCES[0], within_word=True)
    assert row["pieces"] == score.pieces
    assert row["log_probs"] == pytest.approx(score.log_probs, rel=1e-3)


def test_without_model_the_one_of_finetune_is_taken(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "runs/pretrain")
    (tmp_path / "runs/pretrain/results.json").write_text("{}")
    assert main(["fill-mask", "the [MASK]"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["text"] == "the [MASK]"
    assert "model: runs/pretrain" in err


BAD = {
    "no mask": ("fill-mask --model W storm", "text 1 (storm) has no [MASK]"),
    "long text": ("fill-mask --model W --input W/long.txt", "has 22 tokens"),
    "no text": ("fill-mask --model W", "nothing to fill"),
    "no sentence": ("score --model W", "nothing to score"),
    "text and file": ("score --model W storm --input W/long.txt", "not both"),
    "no file": ("score --model W --input W/none.txt", "none.txt is not a file"),
    "not utf-8": ("score --model W --input W/latin.txt", "line 1: byte 3 is not UTF-8"),
    "no candidates": ("fill-mask --model W [MASK] --top 0", "--top is 0"),
    "no batch": ("score --model W storm --batch-size 0", "--batch-size is 0"),
    "no model": ("score --model W/none storm", "none is not a model folder"),
    "no device": ("score --model W storm --device cuda:9", "cuda:9"),
    "unknown flag": ("score --model W storm --per-word", "unknown flag --per-word"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / "long.txt").write_text("the [MASK] " * 10 + "\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    line, wanted = BAD[name]
    assert main(line.replace("W", str(folder)).split()) == 2
    (message,) = [t for t in capsys.readouterr().err.splitlines() if t.startswith("minibert: ")]
    assert wanted in message
