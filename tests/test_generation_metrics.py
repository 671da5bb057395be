"""BLEU, chrF and ROUGE: those of the field's scorers, 0 to 100."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

from minibert.errors import InputError, MissingExtraError
from minibert.generation_metrics import score_summaries, score_translation

PREDICTIONS = [
    "Ein Mann läuft über die Straße.",
    "Zwei Hunde spielen im Schnee.",
    "Die Frau liest ein Buch.",
]
REFERENCES = [
    ["Ein Mann geht über die Straße."],
    ["Zwei Hunde spielen im tiefen Schnee."],
    ["Eine Frau liest ein Buch."],
]


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    found = score_translation(PREDICTIONS, REFERENCES)
    stream = [[refs[0] for refs in REFERENCES]]
    assert found.bleu == sacrebleu.corpus_bleu(PREDICTIONS, stream).score
    assert found.chrf == sacrebleu.corpus_chrf(PREDICTIONS, stream).score
    assert 0 < found.bleu < 100
    assert "case:mixed" in found.bleu_signature
    assert "tok:13a" in found.bleu_signature
    assert found.chrf_signature.startswith("nrefs:1|case:mixed")


def test_the_same_text_is_100_and_case_counts() -> None:
    pytest.importorskip("sacrebleu")
    own = [[text] for text in PREDICTIONS]
    assert score_translation(PREDICTIONS, own)[:2] == pytest.approx((100, 100))
    lowered = [text.lower() for text in PREDICTIONS]
    assert score_translation(lowered, own).bleu < 90


def test_texts_may_have_different_numbers_of_references() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    more = [[*REFERENCES[0], "Ein Mann läuft über eine Straße."], *REFERENCES[1:]]
    found = score_translation(PREDICTIONS, more)
    streams = [[refs[0] for refs in more], [more[0][1], None, None]]
    assert found.bleu == sacrebleu.corpus_bleu(PREDICTIONS, streams).score
    assert found.bleu > score_translation(PREDICTIONS, REFERENCES).bleu


def test_rouge_is_the_mean_of_rouge_score() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    predictions = ["Anna buys two tickets.", "Tom wants to run home early today."]
    references = [["Anna bought the tickets."], ["Tom is running home.", "Tom wants to go home."]]
    found = score_summaries(predictions, references)
    stem = f"stem:yes|words:rouge-score|version:{version('rouge-score')}"
    assert found.pop("rouge_signature") == f"nrefs:var|refs:mean|{stem}"
    scorer = rouge_scorer.RougeScorer(list(found), use_stemmer=True)
    for kind, value in found.items():
        (first,) = (scorer.score(r, predictions[0])[kind].fmeasure for r in references[0])
        second = [scorer.score(r, predictions[1])[kind].fmeasure for r in references[1]]
        assert value == pytest.approx(100 * (first + sum(second) / 2) / 2)
    assert list(found) == ["rouge1", "rouge2", "rougeL"]
    assert found["rouge1"] >= found["rougeL"] > found["rouge2"] > 0


def test_an_empty_prediction_is_0() -> None:
    pytest.importorskip("rouge_score")
    found = score_summaries([""], [["a b c"]])
    assert found.pop("rouge_signature").startswith("nrefs:1|")
    assert found == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    pytest.importorskip("sacrebleu")
    assert score_translation([""], [["a b c"]])[:2] == (0, 0)


@pytest.mark.parametrize("score", [score_translation, score_summaries])
def test_what_cannot_be_scored_is_said(score: object) -> None:
    assert callable(score)
    with pytest.raises(InputError, match="no text to score"):
        score([], [])
    with pytest.raises(InputError, match="2 texts, but references of 1"):
        score(["a", "b"], [["a"]])
    with pytest.raises(InputError, match="no reference"):
        score(["a", "b"], [["a"], []])


@pytest.mark.parametrize(
    ("score", "module"),
    [
        (score_translation, "sacrebleu.metrics"),
        (score_summaries, "rouge_score.rouge_scorer"),
    ],
)
def test_a_missing_scorer_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, score: object, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert callable(score)
    with pytest.raises(MissingExtraError, match=r"pip install 'minibert\[tasks\]'"):
        score(["a"], [["a"]])


@pytest.mark.parametrize(
    "text",
    [
        "北京今天下雨了，很大。",
        "Сегодня идёт дождь.",
        "आज बारिश हो रही है।",
        "今日は雨が降っています。",
    ],
)
def test_texts_of_every_script_have_words(text: str) -> None:
    pytest.importorskip("rouge_score")
    found = score_summaries([text], [[text]])
    assert "|stem:no|words:bert|" in found["rouge_signature"]
    assert [found["rouge1"], found["rougeL"]] == [100, 100]
    assert score_summaries([text], [["雪 Снег बर्फ"]])["rouge1"] == 0


def test_chinese_is_scored_by_its_characters() -> None:
    pytest.importorskip("sacrebleu")
    found = score_translation(["北京今天下雨了，很大。"], [["北京今天下雨了，非常大。"]])
    assert "tok:zh" in found.bleu_signature
    assert 50 < found.bleu < 90
    for text in ("Ein Mann", "1 2 3 4"):  # whose letters are Latin, or none
        assert "tok:13a" in score_translation([text], [[text]]).bleu_signature


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("私はりんごを食べます。", "私はみかんを食べます。"),
        ("今日天気予報を確認。", "今日天気予報は確認。"),  # with few kana
        ("ฉันรักเธอมาก", "ฉันรักเธอมากๆ"),
        ("ខ្ញុំស្រលាញ់អ្នក", "ខ្ញុំស្រលាញ់អ្នកណាស់"),
    ],
)
def test_scripts_without_blanks_are_scored_by_their_characters(text: str, near: str) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    same = score_translation([text], [[text]])
    assert same.bleu == pytest.approx(100)
    assert "tok:char" in same.bleu_signature
    assert 20 < score_translation([near], [[text]]).bleu < 100
    assert 20 < score_summaries([near], [[text]])["rouge1"] < 100
    assert "tok:zh" in score_translation([text], [["北京 API 很大。"]]).bleu_signature


@pytest.mark.parametrize("score", [score_translation, score_summaries])
def test_a_string_is_no_list_of_its_letters(score: Callable[..., object]) -> None:
    for given in ((PREDICTIONS, PREDICTIONS), ("Ein", [["Ein"]] * 3)):
        with pytest.raises(InputError, match=r"'Ein.*' stands in place of a list"):
            score(*given)
