"""Questions: reader, splits, windows, loss, span search, official figures, errors, baseline."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import squad_rules
import torch
from samples import one_thread, write  # noqa: F401
from torch import Tensor

from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import bundled_data
from minibert.losses import IGNORE_INDEX
from minibert.settings import FinetuneSettings
from minibert.tasks.qa import QATask, asked_for, error_lines, guess
from minibert.tasks.question_windows import (
    answer_pieces,
    best_spans,
    collate,
    encode_questions,
    replies,
)
from minibert.tasks.questions import (
    Answer,
    Question,
    answer_notes,
    find_split,
    for_scoring,
    located,
    read_squad,
    read_squad_data,
    split_by_article,
    squad_files,
)
from minibert.tasks.splits import parts_of
from minibert.tasks.squad_scores import (
    answer_scores,
    best_thresholds,
    normalise_answer,
    squad_figures,
)
from minibert.token_heads import BertForQuestionAnswering, span_loss
from minibert.tokenizer import WordPiece, train_wordpiece


@pytest.fixture(scope="module")
def tokenizer() -> WordPiece:
    text = (bundled_data() / "wiki.txt").read_text(encoding="utf-8")[:40000]
    return train_wordpiece(lambda: iter([text]), 600)


def question(context: str, *answers: str, name: str = "q", text: str = "What?") -> Question:
    found = tuple(Answer(a, context.index(a)) for a in answers)
    return Question(name, text, context, found)


def squad_file(path: Path, paragraphs: list[dict[str, Any]], articles: int = 1) -> Path:
    data = [{"title": f"t{i}", "paragraphs": paragraphs} for i in range(articles)]
    return write(path, json.dumps({"version": "1.1", "data": data}))


def row(name: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    given = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": "What?", "answers": given, **more}


# --- reader ---------------------------------------------------------------------------------------


def test_questions_are_read_in_order_with_all_answers(tmp_path: Path) -> None:
    rows = [row("a", ("red", 0), ("fox", 4)), row("b", is_impossible=True)]
    path = squad_file(tmp_path / "dev.json", [{"context": "red fox", "qas": rows}], articles=2)
    questions, notes = read_squad(path)
    assert questions[0] == Question("a", "What?", "red fox", (Answer("red", 0), Answer("fox", 4)))
    assert questions[1].answers == ()
    assert [q.article for q in questions] == [0, 0, 1, 1]
    assert [q.id for q in questions] == ["a", "b", "a#2", "b#2"]
    assert notes == ["2 ids seen before, numbered (first: a, b)"]
    packed = tmp_path / "dev.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_squad(packed) == (questions, notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "has no list 'data'"),
        ('{"data": []}', "holds no questions"),
        ('{"data": [3]}', "article 1 has no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{}]}]}', "article 1, paragraph 1 has no text 'context'"),
        ('{"data": [{"paragraphs": [{"context": ""}]}]}', "paragraph 1 has no list 'qas'"),
        (
            '{"data": [{"paragraphs": [{"context": "", "qas": [{"id": 1}]}]}]}',
            "question 1 has no text 'question'",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "", "qas": [{"question": "", "answers": [7]}]}]}'
            "]}",
            "question 1, an answer has no text 'text'",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "", "qas": [{"question": "", "answers": 7}]}]}'
            "]}",
            "question 1 has no list 'answers'",
        ),
    ],
)
def test_a_file_of_another_format_is_refused_by_place(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_squad(write(tmp_path / "dev.json", content))


def test_odd_files_are_read_with_a_word_about_them(tmp_path: Path) -> None:
    rows = [
        {"question": "No id?", "answers": None},
        row("b", ("fox", 0), is_impossible=True),
        {"id": 7, "question": "\ud83d?", "answers": [{"text": "red", "answer_start": "x"}]},
    ]
    path = squad_file(tmp_path / "dev.json", [{"context": "red \udc00 fox", "qas": rows}])
    questions, notes = read_squad(path)
    assert [q.id for q in questions] == ["0/0/0", "b", "7"]
    assert questions[2].question == "\ufffd?"
    assert questions[2].context == "red \ufffd fox"
    assert questions[2].answers == (Answer("red", -1),)
    assert notes == ["1 said to be impossible but with answers, which are used (first: b)"]


@pytest.mark.parametrize("start", [6, 6.0, "6", "6.0"])
def test_a_start_may_stand_as_a_table_writes_it(tmp_path: Path, start: Any) -> None:
    """Without a start the first of equal words would be taken for the answer."""
    given = row("a")
    given["answers"] = [{"text": "yy", "answer_start": start}]
    paragraph = {"context": "yy zz yy", "qas": [given]}
    questions, _ = read_squad(squad_file(tmp_path / "a.json", [paragraph]))
    assert located(questions[0]) == (Answer("yy", 6),)
    assert answer_notes(questions) == []


@pytest.mark.parametrize("start", [None, "x", True, 0.5, math.nan, math.inf, [6]])
def test_a_start_that_says_nothing_is_that_of_the_first_place(tmp_path: Path, start: Any) -> None:
    given = row("a")
    given["answers"] = [{"text": "yy", "answer_start": start}]
    paragraph = {"context": "yy zz yy", "qas": [given]}
    questions, _ = read_squad(squad_file(tmp_path / "a.json", [paragraph]))
    assert located(questions[0]) == (Answer("yy", 0),)


def test_answers_are_moved_or_left_out_of_training_with_a_count(tokenizer: WordPiece) -> None:
    context = "red fox, red fox, red fox"
    given = [
        Question("right", "", context, (Answer("red", 9),)),
        Question("near", "", context, (Answer("red", 11),)),
        Question("start", "", context, (Answer("fox", -1),)),
        Question("spaced", "", context, (Answer(" fox ", 3),)),
        Question("lost", "", context, (Answer("wolf", 0),)),
        Question("empty", "", context, (Answer("  ", 3),)),
        Question("one of two", "", context, (Answer("wolf", 0), Answer("red", 0))),
        Question("none", "", context, ()),
        Question("no context", "", "", (Answer("red", 0),)),
    ]
    assert {q.id: found for q in given if (found := located(q))} == {
        "right": (Answer("red", 9),),
        "near": (Answer("red", 9),),
        "start": (Answer("fox", 4),),
        "spaced": (Answer("fox", 4),),
        "one of two": (Answer("red", 0),),
    }
    assert answer_notes(given) == [
        "2 answers stood elsewhere in their context, moved there (first: near, start)",
        "3 answers are not in their context, not trained on (first: lost, empty, no context)",
    ]
    assert answer_notes(given, is_learnt=False) == [
        "3 answers are not in their context, scored as they are (first: lost, empty, no context)",
    ]
    windows = encode_questions(given, tokenizer, 64).windows
    assert [w.question for w in windows if w.start < 0] == [4, 5, 8]
    assert windows[7].start == windows[7].end == 0


def test_a_dev_split_without_an_answer_chooses_nothing(tmp_path: Path) -> None:
    """Of version 2, where silence would have an F1 of 100 with any weights."""
    answered, silent = row("a", ("Ann", 0)), row("b", is_impossible=True)
    for name, kept in (("train", [answered, silent]), ("dev", [silent])):
        squad_file(tmp_path / f"{name}.json", [{"context": "Ann left.", "qas": kept}])

    def cut(dev: str) -> Any:
        given = {"data": str(tmp_path / "train.json"), "dev_data": str(tmp_path / f"{dev}.json")}
        task = QATask(FinetuneSettings(task="squad2", **given))
        return parts_of(task, task.read(task.find_data()), 0.1, None)

    with pytest.raises(InputError, match=r"1 question\(s\) in dev, none with an answer"):
        cut("dev")
    assert len(cut("train").dev) == 2


def test_questions_without_answers_are_scored_in_version_2_alone() -> None:
    given = [question("a b", "b"), Question("none", "", "a", ())]
    assert for_scoring(given, version_2=True) == (given, [])
    kept, notes = for_scoring(given, version_2=False)
    assert kept == given[:1]
    assert notes == ["1 questions without an answer left out (first: none)"]


def test_articles_stay_whole_and_48_part_into_38_and_10() -> None:
    rows = [Question(str(i), "", "", (), i // 3, i % 3) for i in range(48 * 3)]
    first, last = split_by_article(rows)
    assert [q.id for q in first + last] == [q.id for q in rows]
    assert {q.article for q in last} == set(range(38, 48))
    single = [Question(str(i), "", "", (), 0, i // 2) for i in range(6)]
    first, last = split_by_article(single)
    assert [q.paragraph for q in last] == [2, 2]
    with pytest.raises(InputError, match="all questions are on one paragraph"):
        split_by_article(single[:2])


def test_a_folder_is_read_as_the_public_files_lie(tmp_path: Path) -> None:
    paragraphs = [{"context": "red fox", "qas": [row("a", ("red", 0))]}]
    squad_file(tmp_path / "dev-v1.1.json", paragraphs, articles=5)

    def read(path: Path = tmp_path, **options: Any) -> tuple[dict[str, int | None], str]:
        task = QATask(FinetuneSettings(task="squad", data=str(path), **options))
        splits = task.read(task.find_data())
        parts = {"train": splits.train, "dev": splits.dev, "test": splits.test}
        return {k: v and len(v) for k, v in parts.items()}, "; ".join(splits.notes)

    sizes, notes = read()
    assert sizes == {"train": 4, "dev": None, "test": 1}
    assert "dev-v1.1.json is split by article: 4 questions to train on, the last 1" in notes
    with pytest.raises(InputError, match=f"--dev-data goes with a train file, and {tmp_path}"):
        read(dev_data=str(tmp_path / "dev-v1.1.json"))
    assert read(tmp_path / "dev-v1.1.json")[0] == {"train": 5, "dev": None, "test": None}
    squad_file(tmp_path / "train-v1.1.json", paragraphs)
    sizes, notes = read()
    assert sizes == {"train": 1, "dev": None, "test": 5}
    assert "dev-v1.1.json is the test split, dev is cut from train" in notes
    assert "1 test contexts occur in train" in notes
    own = {"dev_data": str(tmp_path / "train-v1.1.json")}
    sizes, notes = read(**own)
    assert sizes == {"train": 1, "dev": 1, "test": 5}
    assert "dev-v1.1.json is the test split, dev is train-v1.1.json" in notes
    sizes, notes = read(**own, test_data=own["dev_data"])
    assert sizes == {"train": 1, "dev": 1, "test": 1}
    assert "dev-v1.1.json is not read" in notes
    assert read(test_data=own["dev_data"])[0] == {"train": 1, "dev": 5, "test": 1}
    squad_file(tmp_path / "test.json.gz", paragraphs).write_bytes(
        gzip.compress((tmp_path / "train-v1.1.json").read_bytes())
    )
    assert read()[0] == {"train": 1, "dev": 5, "test": 1}
    assert find_split(tmp_path, "dev", version_2=True) is None
    squad_file(tmp_path / "validation.json", paragraphs)
    assert find_split(tmp_path, "dev", version_2=True) == tmp_path / "validation.json"
    with pytest.raises(InputError, match="no train or dev file of SQuAD"):
        squad_files(tmp_path.parent, version_2=True)


def test_a_split_without_usable_answers_is_refused(tmp_path: Path) -> None:
    paragraphs = [{"context": "red fox", "qas": [row("a", ("wolf", 0))]}]
    lost = {"train": squad_file(tmp_path / "lost.json", paragraphs)}
    with pytest.raises(InputError, match="train split has an answer that is in its context"):
        read_squad_data(lost, version_2=False)
    paragraphs[0]["qas"] = [row("a")]
    empty = {"train": squad_file(tmp_path / "empty.json", paragraphs)}
    with pytest.raises(InputError, match="no question of the train split has an answer"):
        read_squad_data(empty, version_2=False)


@pytest.mark.parametrize(("name", "version_2"), [("squad", False), ("squad2", True)])
def test_the_bundled_samples_are_whole(name: str, version_2: bool) -> None:
    read, _, notes = read_squad_data(squad_files(bundled_data() / name, version_2), version_2)
    assert not notes
    rows = read["train"] + read["dev"]
    for q in rows:
        for text, start in q.answers:
            assert q.context[start : start + len(text)] == text
    assert len(rows) == (36 if version_2 else 24)
    assert sum(not q.answers for q in rows) == (12 if version_2 else 0)


# --- encoding -------------------------------------------------------------------------------------

ODD = "Ünal\u00a0sang\tat  the\u200b Café\nDe\u0301li in İzmir. 東京 ok\u2028end \x07 Straße"


def test_offsets_are_those_of_the_original_context(tokenizer: WordPiece) -> None:
    assert tokenizer.lowercase
    words = [
        "Ünal",
        "sang",
        "Café",
        "De\u0301li",
        "İzmir",
        "東",
        "東京",
        "end",
        "Straße",
        "at  the",
    ]
    for text in words:
        q = question(ODD, text)
        encoded = encode_questions([q], tokenizer, 128)
        (window,) = encoded.windows
        offsets = encoded.offsets[0]
        assert (np.diff(offsets[:, 0]) >= 0).all()
        assert (offsets[:, 1] <= len(ODD)).all()
        first, last = (p - window.first_context for p in (window.start, window.end))
        assert ODD[offsets[first, 0] : offsets[last, 1]] == text
        assert best_of(q, tokenizer, 128) == text


def best_of(q: Question, tokenizer: WordPiece, length: int, stride: int = 128) -> str:
    """What a model that knows the answer would say."""
    encoded = encode_questions([q], tokenizer, length, stride)
    batch = collate(encoded.windows, tokenizer.pad_id)
    starts, ends = (
        logits_of(batch["start_positions"], batch),
        logits_of(batch["end_positions"], batch),
    )
    return replies([q], encoded, [best_spans(starts, ends, batch["answer_mask"])])[0].best()


def logits_of(positions: Tensor, batch: dict[str, Tensor]) -> Tensor:
    logits = torch.full(batch["input_ids"].shape, -4.0)
    return logits.scatter(1, positions[:, None], 4.0)


def test_an_accent_written_apart_stays_with_its_answer(tokenizer: WordPiece) -> None:
    # Vowel signs of Thai and Hindi are marks that BERT drops, too, of combining class 0.
    for answer in ("cafe\u0301", "\u0e01\u0e35", "\u0915\u0941"):
        context = f"the {answer} is old"
        assert best_of(question(context, answer), tokenizer, 32) == answer


def test_the_layout_is_that_of_bert(tokenizer: WordPiece) -> None:
    q = question("the river is long", "river", text="What is long?")
    (window,) = encode_questions([q], tokenizer, 64).windows
    asked, context = tokenizer.ids([q.question, q.context])
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert window.input_ids.tolist() == [cls, *asked, sep, *context, sep]
    assert window.first_context == len(asked) + 2
    other = encode_questions([q._replace(context="the")], tokenizer, 64).windows[0]
    batch = collate([window, other], tokenizer.pad_id)
    kinds = [0] * (len(asked) + 2) + [1] * (len(context) + 1)
    assert batch["token_type_ids"][0].tolist() == kinds
    assert batch["attention_mask"].sum(1).tolist() == [len(kinds), len(other.input_ids)]
    mask = [True] + [False] * (len(asked) + 1) + [True] * len(context) + [False]
    assert batch["answer_mask"][0].tolist() == mask
    assert batch["answer_mask"][1].sum() == 1 + len(tokenizer.ids(["the"])[0])
    assert batch["input_ids"].shape == (2, len(kinds))


@pytest.mark.parametrize(("length", "stride"), [(8, 1), (12, 4), (24, 128), (40, 7), (300, 128)])
def test_windows_cover_the_context_and_overlap(
    tokenizer: WordPiece, length: int, stride: int
) -> None:
    context = "the long river runs to the cold sea and the old town by the bridge is grey " * 3
    q = Question("q", "Where does the unbelievable river run to?", context, ())
    (whole,) = encode_questions([q], tokenizer, 500).windows
    pieces = whole.input_ids[whole.first_context : -1]
    windows = encode_questions([q], tokenizer, length, stride).windows
    reached = 0
    for window in windows:
        own = window.input_ids[window.first_context : -1]
        assert len(window.input_ids) <= length
        assert own.tolist() == pieces[window.first_piece : window.first_piece + len(own)].tolist()
        assert window.first_piece <= reached
        reached = window.first_piece + len(own)
        assert window.start == window.end == 0
    assert reached == len(pieces)
    if len(windows) > 1:
        assert {len(w.input_ids) for w in windows} == {length}


def test_a_stride_that_is_too_long_is_told_once(
    tokenizer: WordPiece, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = (Question(str(n), "Who?", "fox " * n, ()) for n in (1, 60))
    questions = len(tokenizer.ids(["Who?"])[0])
    half = (24 - 3 - questions) // 2
    for stride, contexts, is_told in (
        (half + 1, [long], True),
        (half + 1, [short], False),  # a single window
        (half, [long], False),
        (None, [long], False),  # the default is as it fits
    ):
        task = QATask(FinetuneSettings(task="qa", doc_stride=stride, max_seq_length=24))
        task.tokenizer = tokenizer
        windows = [len(task.encode(contexts)[0]) for _ in range(2)]
        assert (windows[0] > 1) == (contexts == [long])
        said = capsys.readouterr().err
        told = f"windows: --doc-stride {stride} is above half of the context"
        assert said.count(told) == is_told and said.count("windows:") == is_told
        assert f"{half} tokens" in said or not is_told


def test_cut_questions_and_answers_that_are_too_long_to_give_are_told_once(
    tokenizer: WordPiece, capsys: pytest.CaptureFixture[str]
) -> None:
    context = "fox " * 40
    assert len(tokenizer.ids(["fox"])[0]) == 3
    answers = [Answer(" ".join(["fox"] * count), 0) for count in (10, 11)]
    asked = ["fox " * count for count in (21, 22)]
    rows = [Question(q[:9], q, context, (a,)) for q, a in zip(asked, answers, strict=True)]
    task = QATask(FinetuneSettings(task="qa", max_seq_length=256))
    task.tokenizer = tokenizer
    for told in (1, 0):
        task.encode(rows)
        said = capsys.readouterr().err
        assert said.count("questions: 1 of 2 lose their end") == told
        assert said.count("answers: 1 of 2 are longer than 30 sub-words") == told


def test_an_answer_is_labelled_in_the_windows_that_hold_all_of_it(tokenizer: WordPiece) -> None:
    context = " ".join(f"river{i}" for i in range(40)) + " bridge castle storm"
    answer = "river17 river18"
    q = question(context, answer)
    encoded = encode_questions([q], tokenizer, 48, 8)
    first, last = answer_pieces(encoded.offsets[0], q.answers[0]) or (0, 0)
    labelled = 0
    for window in encoded.windows:
        shift = window.first_context - window.first_piece
        count = len(window.input_ids) - window.first_context - 1
        holds = window.first_piece <= first and last < window.first_piece + count
        assert (window.start, window.end) == ((first + shift, last + shift) if holds else (0, 0))
        labelled += holds
    assert 0 < labelled < len(encoded.windows)
    assert best_of(q, tokenizer, 48, 8) == answer


@pytest.mark.parametrize(
    ("context", "asked"),
    [
        ("", "What?"),
        (" \t\u200b\n", "What?"),
        ("river", ""),
        ("\ufffd", "\u200b" * 9),
        ("\ud83d", "\ud83d?"),
    ],
)
def test_empty_texts_have_a_window_and_no_answer(
    tokenizer: WordPiece, context: str, asked: str
) -> None:
    q = Question("q", asked, context, ())
    encoded = encode_questions([q], tokenizer, 16)
    batch = collate(encoded.windows, tokenizer.pad_id)
    logits = torch.randn(batch["input_ids"].shape)
    for version_2 in (False, True):
        (reply,) = replies(
            [q], encoded, [best_spans(logits, logits, batch["answer_mask"])], version_2
        )
        assert math.isfinite(reply.null_score)
        assert reply.best() in context
        assert bool(reply.best()) == (context == "river")


def test_a_long_question_leaves_room_for_the_context(tokenizer: WordPiece) -> None:
    q = question("the river is long", "river", text="the river " * 100)
    windows = encode_questions([q], tokenizer, 32).windows
    assert {w.first_context for w in windows} == {14 + 2}
    assert any(w.end for w in windows)
    with pytest.raises(InputError, match="--max-seq-length 7 leaves no room"):
        encode_questions([q], tokenizer, 7)


def test_an_answer_that_no_sub_word_touches_has_no_place(tokenizer: WordPiece) -> None:
    offsets = encode_questions([question("a \u200b b", "b")], tokenizer, 16).offsets[0]
    assert answer_pieces(offsets, Answer("\u200b", 2)) is None
    assert answer_pieces(offsets, Answer("b", -1)) is None
    assert answer_pieces(offsets[:0], Answer("b", 0)) is None
    assert answer_pieces(offsets, Answer("a \u200b b", 0)) == (0, 1)


# --- loss -----------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_both_ends_over_possible_tokens() -> None:
    starts, ends = torch.randn(4, 6), torch.randn(4, 6)
    mask = torch.tensor([[1, 0, 0, 1, 1, 0]] * 4).bool()
    first = torch.tensor([3, 0, IGNORE_INDEX, 4])
    last = torch.tensor([4, 0, 3, 2])  # the last one lies in the question
    total, count = span_loss(starts, ends, first, last, mask)
    assert count == 2
    expected = 0.0
    for i, (a, b) in enumerate([(3, 4), (0, 0)]):
        for logits, place in ((starts[i], a), (ends[i], b)):
            expected += float(torch.logsumexp(logits[mask[i]], 0) - logits[place]) / 2
    assert float(total) == pytest.approx(expected, rel=1e-5)
    beyond, none = span_loss(starts, ends, first.abs() + 100, last, mask)
    assert (float(beyond), int(none)) == (0.0, 0)


def test_the_question_gets_no_gradient_and_a_possible_token_does() -> None:
    starts = torch.zeros(1, 5, requires_grad=True)
    mask = torch.tensor([[True, False, True, True, False]])
    span_loss(starts, starts.detach(), torch.tensor([2]), torch.tensor([3]), mask)[0].backward()
    assert starts.grad is not None
    assert ((starts.grad[0] != 0) == mask[0]).all()


# --- decoding -------------------------------------------------------------------------------------


def test_the_search_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    starts, ends = (torch.randn(5, 11, generator=generator) for _ in range(2))
    mask = torch.zeros(5, 11, dtype=torch.bool)
    mask[:, 0] = True
    for i in range(5):
        mask[i, 3 : 4 + 2 * min(i, 3)] = True
    found = best_spans(starts, ends, mask, n_best=8, max_answer_tokens=4)
    for i in range(5):
        every = sorted(
            (
                (float(starts[i, a] + ends[i, b]), a, b)
                for a in range(1, 11)
                for b in range(a, min(a + 4, 11))
                if mask[i, a] and mask[i, b]
            ),
            reverse=True,
        )[:8]
        count = int((found.scores[i] > -math.inf).sum())
        assert count == len(every)
        assert found.starts[i, :count].tolist() == [a for _, a, _ in every]
        assert found.ends[i, :count].tolist() == [b for _, _, b in every]
        assert found.scores[i, :count] == pytest.approx([s for s, _, _ in every])
        assert found.null[i] == pytest.approx(float(starts[i, 0] + ends[i, 0]))


def test_windows_are_joined_by_the_best_and_batches_do_not_matter(tokenizer: WordPiece) -> None:
    words = "river bridge castle storm garden market".split()
    contexts = [" ".join(random.Random(n).choices(words, k=n)) for n in (60, 3, 25)]
    questions = [Question(str(i), "What?", c, ()) for i, c in enumerate(contexts)]
    encoded = encode_questions(questions, tokenizer, 24, 6)
    generator = torch.Generator().manual_seed(2)
    logits = [
        torch.randn(2, len(w.input_ids), generator=generator).float() for w in encoded.windows
    ]

    def joined(size: int, version_2: bool) -> list[Any]:
        spans = []
        for at in range(0, len(logits), size):
            batch = collate(encoded.windows[at : at + size], tokenizer.pad_id)
            padded = torch.zeros(2, *batch["input_ids"].shape)
            for i, own in enumerate(logits[at : at + size]):
                padded[:, i, : own.shape[1]] = own
            spans.append(best_spans(*padded, batch["answer_mask"]))
        return replies(questions, encoded, spans, version_2)

    found = joined(3, True)
    for reply, other in zip(found, joined(100, True), strict=True):
        assert reply.best() == other.best()
        assert reply.null_score == pytest.approx(other.null_score)
    for number, reply in enumerate(found):
        own = [(w, x) for w, x in zip(encoded.windows, logits, strict=True) if w.question == number]
        null = min(float(x[0, 0] + x[1, 0]) for _, x in own)
        best = max(
            float(x[0, a] + x[1, b])
            for w, x in own
            for a in range(w.first_context, x.shape[1] - 1)
            for b in range(a, min(a + 30, x.shape[1] - 1))
        )
        assert reply.candidates[0].score == pytest.approx(best)
        assert reply.null_score == pytest.approx(null - best)
        places = [(c.start, c.end) for c in reply.candidates]
        assert len(set(places)) == len(places) <= 20
        for c in reply.candidates:
            assert contexts[number][c.start : c.end] == c.text
        scores = [c.score for c in reply.candidates]
        assert scores == sorted(scores, reverse=True)
        shares = np.exp(np.array([*scores, null]) - null)
        assert [c.probability for c in reply.candidates] == pytest.approx(
            (shares / shares.sum())[:-1].tolist()
        )
        assert reply.best(reply.null_score) == reply.candidates[0].text
        assert reply.best(reply.null_score - 0.01) == ""
    for reply in joined(3, False):
        assert sum(c.probability for c in reply.candidates) == pytest.approx(1)


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, a dog!", "cat dog"),
        ("A.B.C.", "abc"),
        ("an-other the\tthing", "another thing"),
        ("THE", ""),
        ("“the” café", "“ ” café"),
    ],
)
def test_answers_are_normalised_as_officially(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("golds", "predicted", "version_2", "exact", "f1"),
    [
        (["the Denver Broncos"], "Denver Broncos!", False, 1, 1),
        (["Denver Broncos"], "Broncos", False, 0, 2 / 3),
        (["x", "Broncos"], "the Broncos of Denver", False, 0, 0.5),
        (["b b a"], "b b b", False, 0, 4 / 5),  # "a" is an article
        (["x"], "y", False, 0, 0),
        (["the"], "a", False, 1, 0),  # nothing is left of both; version 1.1 gives no F1
        (["the"], "a", True, 1, 1),
        ([], "", True, 1, 1),
        ([], "x", True, 0, 0),
        (["x"], "", True, 0, 0),
        (["the", "x"], "", True, 0, 0),  # an answer of which nothing is left does not count
    ],
)
def test_scores_of_single_answers(
    golds: list[str], predicted: str, version_2: bool, exact: float, f1: float
) -> None:
    assert answer_scores(golds, predicted, version_2) == pytest.approx((exact, f1))


def test_version_2_figures_by_hand() -> None:
    golds = [["red fox"], [], [], ["owl"]]
    figures = squad_figures(golds, ["fox", "", "x", "owl"], version_2=True)
    assert figures == pytest.approx(
        {
            "exact_match": 50.0,
            "f1": 100 * (2 / 3 + 2) / 4,
            "has_answer_exact_match": 50.0,
            "has_answer_f1": 100 * (2 / 3 + 1) / 2,
            "no_answer_exact_match": 50.0,
            "no_answer_f1": 50.0,
        }
    )
    assert "no_answer_f1" not in squad_figures([["x"]], ["x"], version_2=True)
    assert squad_figures([["x"]], ["x"]) == {"exact_match": 100.0, "f1": 100.0}


def test_the_best_threshold_by_hand() -> None:
    golds = [["fox"], [], ["owl"], []]
    # Surest first: right, right with half the words, then a text where there is no answer.
    found = best_thresholds(golds, ["fox", "x", "owl bird", "y"], [-5.0, 1.0, -2.0, 3.0])
    assert found.best_exact_match == 75.0
    assert found.best_exact_match_threshold == -5.0
    assert found.best_f1 == pytest.approx(100 * (2 + 1 + 2 / 3) / 4)
    assert found.best_f1_threshold == -2.0
    silent = best_thresholds([[], []], ["x", "y"], [-1.0, 4.0])
    assert silent.best_f1 == 100.0
    assert silent.best_f1_threshold < -1.0  # nobody is answered
    # No threshold answers the first alone: all four would be, of which one is right.
    tied = best_thresholds([["Paris"], [], [], []], ["Paris", "x", "y", "z"], [0.5] * 4)
    assert tied.best_f1 == tied.best_exact_match == 75.0
    assert tied.best_f1_threshold < 0.5


def random_answers(count: int, seed: int) -> tuple[list[list[str]], list[str]]:
    rng = random.Random(seed)
    words = ["the", "a", "Fox", "fox,", "red", "Owl!", "an", "12", "é", "—", "  "]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 4)))

    golds = [[text() for _ in range(rng.randint(1, 3))] for _ in range(count)]
    return golds, [rng.choice([text(), rng.choice(own), ""]) for own in golds]


def strange_answers(count: int, seed: int, nulls: bool) -> tuple[list[list[str]], list[str]]:
    """Answers of what the rules could trip over; with nulls, a third of the questions have none."""
    rng = random.Random(seed)
    words = [
        *("the", "THE", "a", "An", "fox", "Fox,", "red", "owl!", "12", "1,5", "an-other", "a.b"),
        *("é", "e\u0301", "a\u0301", "İ", "—", "“the”", "\u00a0", "a\u3000the", "_the_", "ß", "狐"),
        *("", " ", "\t", "...", "the\nfox", "٣", "x" * 3),
    ]

    def text() -> str:
        return rng.choice(["", " ", "-"]).join(rng.choices(words, k=rng.randint(0, 4)))

    golds = [[text() for _ in range(rng.randint(1, 3))] for _ in range(count)]
    if nulls:
        golds = [[] if i % 3 == 0 else own for i, own in enumerate(golds)]
    return golds, [rng.choice([text(), rng.choice(own or [""]), ""]) for own in golds]


def test_version_1_figures_equal_those_of_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        from torchmetrics.functional.text import squad
    golds, predicted = random_answers(400, seed=3)
    # Where nothing is left of either text, theirs agrees in F1 and the official script does not.
    golds = [[text for text in own if normalise_answer(text)] or ["fox"] for own in golds]
    for part in (slice(0, 400), slice(5, 6), slice(7, 20)):
        target = [
            {"answers": {"answer_start": [0] * len(own), "text": own}, "id": str(i)}
            for i, own in enumerate(golds[part])
        ]
        preds = [{"prediction_text": p, "id": str(i)} for i, p in enumerate(predicted[part])]
        theirs = squad(preds, target)
        ours = squad_figures(golds[part], predicted[part])
        assert ours["exact_match"] == pytest.approx(float(theirs["exact_match"]), rel=1e-5)
        assert ours["f1"] == pytest.approx(float(theirs["f1"]), rel=1e-5)


@pytest.mark.parametrize("version_2", [False, True])
def test_figures_equal_those_of_the_rules_told_once_more(version_2: bool) -> None:
    for seed in range(4):
        golds, predicted = strange_answers(250, seed, nulls=version_2)
        wanted = squad_rules.figures(golds, predicted, version_2)
        assert squad_figures(golds, predicted, version_2) == pytest.approx(wanted)
        for own, text in zip(golds, predicted, strict=True):
            assert normalise_answer(text).split() == squad_rules.words_of(text)
            found = squad_rules.single_scores(own, text, version_2)
            assert answer_scores(own, text, version_2) == pytest.approx(found)


def test_the_best_threshold_is_that_of_trying_every_one() -> None:
    for seed in range(4):
        golds, predicted = strange_answers(80, seed, nulls=True)
        rng = random.Random(seed)
        # Rounded, so that some are equal.
        nulls = [round(rng.gauss(0 if own else 1, 1), 1) for own in golds]
        found = best_thresholds(golds, predicted, nulls)
        for name in ("exact_match", "f1"):
            best, last = squad_rules.best_stop(golds, predicted, nulls, name)
            assert getattr(found, f"best_{name}") == pytest.approx(best)
            assert getattr(found, f"best_{name}_threshold") == last


# --- errors and baseline --------------------------------------------------------------------------


def test_the_listing_counts_kinds_and_shows_the_surest_first() -> None:
    context = "The red fox met an owl in 1999 near Rome."
    rows = [
        question(context, "red fox", name="a", text="Who met the owl?"),
        question(context, "1999", name="b", text="When did\nthey meet?"),
        question(context, "Rome", name="c", text="Where was it?"),
        Question("d", "How many owls were there?", context, ()),
        question(context, "owl", name="e", text="Who was met?"),
        question(context, "Rome", name="f", text="Near which city?"),
    ]
    predicted = ["fox", "owl", "", "1999", "an owl", "1999"]
    lines = error_lines(rows, predicted, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], version_2=True)
    assert lines[0] == "who: 2 questions, exact match 50.0, F1 83.3"
    assert "how many: 1 questions, exact match 0.0, F1 0.0" in lines
    assert lines[5] == "1 partly right, 2 another place, 1 gave no answer, 1 has no answer"
    assert lines[6] == (
        "partly right (0.50): a Who met the owl? 'red fox' -> 'fox' | "
        "…The red fox met an owl in 1999 near Rome.…"
    )
    assert lines[7].startswith("another place (0.95): f ")
    assert lines[8].startswith("another place (0.60): b When did they meet? '1999' -> 'owl'")
    assert lines[10] == "has no answer (0.80): d How many owls were there? none -> '1999'"
    assert len(error_lines(rows, predicted, version_2=True, limit=4)) == 6 + 4
    assert error_lines(rows[:1], ["the red fox"])[-1] == "no errors"
    assert asked_for("In which year?") == "which"
    assert asked_for("Name it.") == "other"


def test_the_baseline_finds_what_words_alone_can_find() -> None:
    context = (
        "The bridge in Rome was built in 1871. It was designed by Ana Lo, a teacher. "
        "About 300 people cross it daily."
    )
    assert guess("When was the bridge built?", context) == "1871"
    assert guess("Who designed it?", context) == "Ana Lo"
    assert guess("How many people cross it?", context) == "300"
    assert guess("Who?", "") == ""
    assert guess("", "  \n") == ""
    assert guess("Why?", "all small words.") == "all small words."


def test_the_baseline_is_the_same_in_every_process() -> None:
    # Both sentences share as many words, as rare; a sum in the order of a set tells them apart.
    program = (
        "from minibert.tasks.qa import guess\n"
        "for n in range(3, 10):\n"
        "    a, b = (' '.join(f'{s}{i}' for i in range(n) for _ in range(i + 1)) for s in 'xy')\n"
        "    print(guess(f'who {a} {b}', f'Then {a} Ann. Then {b} Bob.'))\n"
    )
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        assert done.stdout.decode().split() == 7 * ["Ann"], seed


def test_the_baseline_answers_the_sample_better_than_nothing() -> None:
    read, _, _ = read_squad_data(squad_files(bundled_data() / "squad", False), version_2=False)
    rows = read["train"] + read["dev"]
    figures = squad_figures(
        [[a.text for a in q.answers] for q in rows], [guess(q.question, q.context) for q in rows]
    )
    assert figures["f1"] > 20


# --- all together ---------------------------------------------------------------------------------


def test_a_small_model_learns_to_answer_and_when_not_to() -> None:
    """Labels, loss, search and joining agree: what is known by heart is answered so."""
    read, is_2, _ = read_squad_data(squad_files(bundled_data() / "squad2", None), None)
    assert is_2
    questions = read["train"][:12]
    golds = [[a.text for a in q.answers] for q in questions]
    assert 0 < sum(not own for own in golds) < 6
    text = " ".join(q.context + " " + q.question for q in questions)
    tokenizer = train_wordpiece(lambda: iter([text]), 400, exact=False)
    encoded = encode_questions(questions, tokenizer, 64, 24)
    assert len(encoded.windows) > 2 * len(questions)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForQuestionAnswering(config)
    batch = collate(encoded.windows, tokenizer.pad_id)
    inputs = {k: batch[k] for k in ("input_ids", "token_type_ids", "attention_mask")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        out = model(**inputs)
        loss, count = span_loss(
            out.start_logits,
            out.end_logits,
            batch["start_positions"],
            batch["end_positions"],
            batch["answer_mask"],
        )
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        out = model(**inputs)
    spans = best_spans(out.start_logits, out.end_logits, batch["answer_mask"])
    found = replies(questions, encoded, [spans], version_2=True)
    best = best_thresholds(golds, [r.best() for r in found], [r.null_score for r in found])
    answers = [r.best(best.best_f1_threshold) for r in found]
    assert squad_figures(golds, answers, version_2=True)["exact_match"] == 100.0
    assert best.best_f1 == 100.0
