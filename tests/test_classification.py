"""Classification: own tables, public formats, pairs, several labels, windows, weights."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import one_thread, write_corpus  # noqa: F401

import minibert
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import bundled_data
from minibert.finetuning import finetune
from minibert.heads import BertForSequenceClassification
from minibert.losses import classification_loss, multi_label_loss
from minibert.metrics import class_figures, matrix_counts, multi_label_figures
from minibert.pretraining import pretrain
from minibert.settings import FinetuneSettings
from minibert.tasks import classification, find_task
from minibert.tasks.base import Splits
from minibert.tasks.classes import class_weights, positive_weights
from minibert.tasks.classification import ClassificationTask
from minibert.tasks.labelled import LabelledText, read_own_test
from minibert.tasks.labelled_sets import (
    PUBLIC,
    read_ag_news,
    read_chnsenticorp,
    read_mrpc,
    read_sst2,
    read_tnews,
)
from minibert.tasks.splits import parts_of
from minibert.tasks.tables import read_table
from minibert.tasks.texts import cut, cut_pair, encode
from minibert.tokenizer import SPECIAL_TOKENS, WordPiece

WORDS = {"good": "silver garden candle", "bad": "storm winter castle", "odd": "river bridge miller"}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A table in the format that its name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as handle:
            tab = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(handle, list(rows[0]), delimiter=tab)
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def rows_of(count: int = 5, label: str = "label") -> list[dict[str, Any]]:
    return [
        {"text": f"{words} {i}", label: name} for i in range(count) for name, words in WORDS.items()
    ]


def read(**values: Any) -> Splits[LabelledText]:
    task = ClassificationTask(FinetuneSettings(task="classification", **values))
    return task.read(task.find_data())


# --- own tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_tables_of_any_format_hold_the_same_examples(tmp_path: Path, suffix: str) -> None:
    splits = read(data=write_rows(tmp_path / f"a{suffix}", rows_of()))
    assert [(e.text, e.label) for e in splits.train] == [(r["text"], r["label"]) for r in rows_of()]
    first = 1 if suffix == ".jsonl" else 2
    assert [e.id for e in splits.train[:2]] == [f"train:{first}", f"train:{first + 1}"]
    assert (splits.dev, splits.test) == (None, None)


def test_columns_are_those_that_were_named(tmp_path: Path) -> None:
    rows = [{"a": f"one {i}", "b": f"two {i}", "c": "xy"[i % 2], "id": f"n{i}"} for i in range(6)]
    columns = {"text_column": "a", "text_pair_column": "b", "label_column": "c"}
    splits = read(data=write_rows(tmp_path / "a.csv", rows), **columns)
    assert splits.train[1] == LabelledText("n1", "one 1", "y", "two 1")


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,,\na,x,,\nb,y,,c\n")
    splits = read(data=str(tmp_path / "a.csv"))
    assert [(e.text, e.label) for e in splits.train] == [("a", "x"), ("b", "y")]


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": 1}',
        '{"text": "b", "label": 1.0}',
        '{"text": "c", "label": 0}',
    ]
    lines += ['{"text": "d", "label": 0.5}', '{"text": "e", "label": [2.0, 3]}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:4]))
    splits = read(data=str(tmp_path / "a.jsonl"))
    assert [e.label for e in splits.train] == ["1", "1", "0", "0.5"]
    (tmp_path / "b.jsonl").write_text("\n".join([lines[4], lines[4].replace("2.0", "4")]))
    splits = read(data=str(tmp_path / "b.jsonl"))
    assert [e.label for e in splits.train] == [("2", "3"), ("3", "4")]


@pytest.mark.parametrize(
    ("own", "others"),
    [
        (("true", "false"), (True, False)),
        (("caf\u00e9", "tea"), ("cafe\u0301", "tea")),
        (("1", "2"), (1.0, 2)),
    ],
)
def test_a_class_that_another_file_spells_otherwise_is_known(
    tmp_path: Path, own: Sequence[str], others: Sequence[Any]
) -> None:
    rows = [{"text": f"film {i}", "label": own[i % 2]} for i in range(6)]
    train = write_rows(tmp_path / "a.csv", rows)
    rows = [{"text": f"show {i}", "label": others[i % 2]} for i in range(6)]
    splits = read(data=train, test_data=write_rows(tmp_path / "b.jsonl", rows))
    assert [e.label for e in splits.test or ()] == [own[i % 2] for i in range(6)]


def test_classes_that_look_alike_are_told_by_their_characters(tmp_path: Path) -> None:
    labels = ("caf\u00e9", "cafe\u0301", "tea", "Tea", "pot", "po\u200bt")
    rows = [{"text": f"film {i}", "label": label} for i, label in enumerate(labels)]
    (note,) = (n for n in read(data=write_rows(tmp_path / "a.csv", rows)).notes if "taken" in n)
    assert "'cafe\\u0301' and 'caf\\xe9'" in note
    assert "Tea and tea" in note
    assert "'pot' and 'po\\u200bt'" in note


def test_a_dev_file_that_can_choose_nothing_is_refused(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "a.csv", rows_of())
    dev = write_rows(tmp_path / "b.csv", [{"text": "one", "label": ""}])
    with pytest.raises(
        InputError, match=r"--dev-data .*b.csv has no labels, so that it can choose"
    ):
        read(data=train, dev_data=dev)


def test_a_dev_of_one_class_chooses_by_no_figure_that_it_leaves_fixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = write_rows(tmp_path / "a.csv", [r for r in rows_of() if r["label"] != "odd"])
    one = write_rows(tmp_path / "b.csv", [{"text": "two", "label": "bad"}])

    def parts(**given: Any) -> None:
        task = ClassificationTask(
            FinetuneSettings(task="classification", data=both, dev_data=one, **given)
        )
        parts_of(task, task.read(task.find_data()), 0.1, None)

    for given in ({"select": "matthews"}, {"select": "roc_auc"}):
        with pytest.raises(InputError, match=r"1 example\(s\) in dev, all bad: .* name --dev-data"):
            parts(**given)
    assert capsys.readouterr().err == ""
    parts()
    assert "dev: 1 example(s) in dev, all bad, by which" in capsys.readouterr().err


def test_a_column_has_one_role(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.csv", rows_of())
    with pytest.raises(InputError, match="--text-column and --label-column are both 'label'"):
        read(data=data, text_column="label")
    with pytest.raises(InputError, match="--text-column and --text-pair-column are both 'text'"):
        read(data=data, text_column="text", text_pair_column="text")
    for taken, other in (("text", "--text-column"), ("label", "--label-column")):  # by default
        with pytest.raises(InputError, match=f"{other}.* are both '{taken}'"):
            read(data=data, text_pair_column=taken)


def test_pairs_of_the_same_words_are_not_copies(tmp_path: Path) -> None:
    rows = [{"text": "the film i", "text_pair": "was good", "label": "y"}]
    rows += [{"text": "the film i was", "text_pair": "good", "label": "n"}]
    rows += [{"text": "The  film", "text_pair": "Ends", "label": name} for name in ("y", "n")]
    data = write_rows(tmp_path / "a.csv", rows)
    said = read(data=data, text_pair_column="text_pair").notes
    assert {"1 repeated within train", "1 train texts with several labels"} <= set(said)


def test_a_field_of_quotes_alone_is_a_row_and_a_blank_line_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\na\n""\n\n  \nb\n')
    assert [(row.line, row.values["text"]) for row in read_table(path)] == [
        *((2, "a"), (3, ""), (6, "b"))
    ]


def test_seeds_do_not_go_beyond_the_last_one() -> None:
    FinetuneSettings(task="imdb", seed=(1 << 32) - 2, seeds=2)
    with pytest.raises(InputError, match="--seeds 3 from --seed 4294967294 on go beyond"):
        FinetuneSettings(task="imdb", seed=(1 << 32) - 2, seeds=3)


def test_debug_is_no_setting_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.json").write_text('{"debug": true}')
    assert main(["finetune", "--task", "imdb", "--config", str(tmp_path / "own.json")]) == 2
    assert "own.json: debug is for the command itself; type --debug" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["model", "data", "dev_data", "label_column", "target_column", "label_separator"],
)
def test_an_empty_name_is_said_to_name_nothing(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} '' names nothing"):
        FinetuneSettings(task="classification", **{name: ""})


def test_what_is_missing_in_a_list_of_classes_is_no_class(tmp_path: Path) -> None:
    labels = (["x", None], ["", "y"], [math.nan, " "], [])
    rows = [{"text": f"film {i}", "label": label} for i, label in enumerate(labels)]
    splits = read(data=write_rows(tmp_path / "a.jsonl", rows))
    assert [e.label for e in splits.train] == [("x",), ("y",), (), ()]
    assert "2 rows of train without any label, taken as of none of the classes" in splits.notes


@pytest.mark.parametrize("label", [{"x": 1}, [["x"]], [{"name": "x"}]])
def test_a_label_that_is_no_name_is_refused_with_its_line(tmp_path: Path, label: Any) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": label}]
    said = re.escape(f"a.jsonl, line 2: 'label' holds {label!r}; expected the name of a class")
    with pytest.raises(InputError, match=said):
        read(data=write_rows(tmp_path / "a.jsonl", rows))


def test_a_list_of_one_class_is_that_class_to_a_model_of_one_a_text(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": "xy"[i % 2]} for i in range(4)]
    train = write_rows(tmp_path / "a.jsonl", rows)
    test = write_rows(tmp_path / "b.jsonl", [row | {"label": [row["label"]]} for row in rows])
    splits = read(data=train, test_data=test)
    assert [e.label for e in splits.test or ()] == ["x", "y", "x", "y"]
    settings = FinetuneSettings(task="classification", data=test)
    scored = read_own_test(settings, ("x", "y")).test or ()
    assert [e.label for e in scored] == ["x", "y", "x", "y"]


def test_classes_that_are_likely_one_are_told(tmp_path: Path) -> None:
    rows = [f"{i},{label}\n" for i, label in enumerate(("Yes", "yes", "no", "1", "1.0"))]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(rows))
    assert read(data=str(tmp_path / "a.csv")).notes == (
        "5 rows of 5 classes to train on",
        "taken as classes of their own: 1 and 1.0, Yes and yes",
    )


def test_a_column_with_gaps_has_the_classes_of_one_without(tmp_path: Path) -> None:
    (tmp_path / "gaps.csv").write_text("text,label\na,1.0\nb,0.0\nc,1.0\nd,\n")
    (tmp_path / "whole.csv").write_text("text,label\ne,1\nf,0\ng,2\n")
    files = [str(tmp_path / name) for name in ("gaps.csv", "whole.csv")]
    splits = read(data=files[0], test_data=files[1])
    assert [e.label for e in splits.test or ()] == ["1.0", "0.0"]
    splits = read(data=files[1], test_data=files[0])
    assert [e.label for e in splits.test or ()] == ["1", "0", "1"]
    (tmp_path / "none.csv").write_text("text,label\n")
    with pytest.raises(InputError, match=r"none.csv holds no labelled row"):
        read(data=files[0], test_data=str(tmp_path / "none.csv"))


BAD_TABLES = {
    "ragged": ("text,label\na,x\nb,y,z\n", "line 3 has 3 fields, expected 2: text, label"),
    "ragged after a long row": ('text,label\n"a\nb",x\nb\n', "line 4 has 1 field"),
    "open quote": ('text,label\na,x\n"b,y\n', "line 3"),
    "no such column": ("review,label\na,x\n", "no column 'text' (--text-column); its columns are"),
    "one class": ("text,label\na,x\nb,x\n", "label (--label-column) holds only 'x'"),
    "no label": ("text,label\na,\nb,\n", "holds no label"),
    "empty": ("", "is empty"),
    "semicolons": (
        "text;label\na,b;x\n",
        "its columns are parted by ';'; expected commas (or tabs",
    ),
    "semicolons and quotes": (
        '"text";"label"\n"a, b";"x"\n',
        "its columns are parted by ';'; expected commas (or tabs",
    ),
    "bars": ("text|label\na|x\n", "its columns are parted by '|'; expected commas (or tabs"),
    "tabs": ("text\tlabel\na\tx\n", "its columns are parted by tabs; expected commas (or tabs"),
    "twice": ("text,text\na,x\n", "two columns are called 'text'"),
}
BAD_LINES = {"deep": "[" * 100_000, "long number": '{"text": "b", "label": ' + "7" * 5000 + "}"}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_an_input_error_of_one_line(tmp_path: Path, name: str) -> None:
    content, wanted = BAD_TABLES[name]
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        read(data=str(tmp_path / "a.csv"))
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_packed_table_is_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(bytes(range(256)) * 20))
    packed[20:40] = b"\xff" * 20
    (tmp_path / "a.csv.gz").write_bytes(packed)
    with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read"):
        read(data=str(tmp_path / "a.csv.gz"))


def test_the_line_that_is_not_utf8_or_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\na\tx\nb\xe9\ty\n")
    with pytest.raises(InputError, match=r"line 3: byte 16 is not UTF-8"):
        read(data=str(tmp_path / "a.tsv"))
    (tmp_path / "a.tsv").write_bytes("text\tlabel\na\tx\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"a\.tsv looks like UTF-16; convert it to UTF-8"):
        read(data=str(tmp_path / "a.tsv"))
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n{"text"\n')
    with pytest.raises(InputError, match=r"line 2 is not JSON"):
        read(data=str(tmp_path / "a.jsonl"))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"expected .csv, .tsv, .jsonl"):
        read(data=str(tmp_path / "a.txt"))


@pytest.mark.parametrize("name", BAD_LINES)
def test_json_that_python_does_not_take_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "label": "x"}}\n{BAD_LINES[name]}\n')
    with pytest.raises(InputError, match=r"line 2 is not JSON"):
        read(data=str(tmp_path / "a.jsonl"))


def test_a_text_may_be_longer_than_the_csv_module_takes(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    rows = [{"text": "word " * 40_000, "label": "x"}, {"text": "b", "label": "y"}]
    splits = read(data=write_rows(tmp_path / "a.csv", rows))
    assert [len(e.text) for e in splits.train] == [199_999, 1]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("blank", ["  \n", "  ", "\n \n"])
def test_a_blank_line_is_no_row_of_a_csv(tmp_path: Path, blank: str) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\na,x\nb,y\n{blank}")
    assert [e.text for e in read(data=str(tmp_path / "a.csv")).train] == ["a", "b"]


def test_a_row_of_tabs_is_a_row_of_empty_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\na\tx\n\t\r\n  \n\n\ty\nb\ty\n")
    splits = read(data=str(path))
    assert [e.id for e in splits.train] == ["train:2", "train:7"]
    assert "1 rows of train without a label, left out" in splits.notes
    path.write_text("text\tlabel\na\tx\n\t\t\n")
    with pytest.raises(InputError, match="line 3 has 3 fields, expected 2"):
        read(data=str(path))


def test_half_a_surrogate_pair_is_read_as_one_unknown_character(tmp_path: Path) -> None:
    rows = [
        {"text": f"film {i} \ud83d", "label": f"{'xy'[i % 2]}\ud83d", "id": f"{i}\ud83d"}
        for i in range(4)
    ]
    splits = read(data=write_rows(tmp_path / "a.jsonl", rows))
    assert splits.train[1] == LabelledText("1\ufffd", "film 1 \ufffd", "y\ufffd")
    lists = [row | {"label": [row["label"]]} for row in rows]
    splits = read(data=write_rows(tmp_path / "b.jsonl", lists))
    assert splits.train[1].label == ("y\ufffd",)


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "one", "label": "x"},
        {"id": 1, "text": "two", "label": "y"},
        {"id": 3, "text": "ONE", "label": "y"},
        {"id": 4, "text": " ", "label": "y"},
        {"id": 5, "text": "five", "label": None},
    ]
    test = [{"id": 6, "text": "two", "label": "x"}, {"id": 7, "text": "", "label": "x"}]
    test += [{"id": 8, "text": "new", "label": "z"}]
    splits = read(
        data=write_rows(tmp_path / "a.jsonl", rows),
        test_data=write_rows(tmp_path / "b.jsonl", test),
    )
    assert [e.id for e in splits.train] == ["1", "1", "3"]
    assert [e.id for e in splits.test or ()] == ["6", "7"]  # an empty text wants an answer, too
    said = "; ".join(splits.notes)
    for words in (
        "1 rows of train without a label",
        "1 empty texts in train, left out",
        "1 of test with labels that train lacks (z), left out",
        "1 repeated within train",
        "1 train texts with several labels",
        "1 test texts occur in train",
        "1 ids that come more than once (1)",
    ):
        assert words in said


# --- the public formats ---------------------------------------------------------------------------


def test_every_named_task_has_a_sample_that_calls_itself_one() -> None:
    for name in ClassificationTask.names[:-1]:
        task = find_task(name)(FinetuneSettings(task=name))
        assert isinstance(task, ClassificationTask)
        source = task.find_data()
        assert source.is_sample, name
        splits = task.read(source)
        everything = [*splits.train, *(splits.dev or ()), *(splits.test or ())]
        assert len(everything) >= 24, name
        assert {e.label for e in splits.train} == set(task.labels), name
        assert len({task.same(e) for e in everything}) == len(everything), name
        assert all((e.text_pair is not None) == task.pairs for e in everything), name


def test_a_dev_split_without_any_label_chooses_nothing(tmp_path: Path) -> None:
    """Of texts with any number of labels: an F1 of 0 keeps the first weights for good."""
    rows = [{"text": f"storm {i}", "label": ["wild"] if i < 2 else []} for i in range(40)]
    given = {"data": write_rows(tmp_path / "a.jsonl", rows)}

    def cut(**more: Any) -> Any:
        task = ClassificationTask(FinetuneSettings(task="classification", **given | more))
        return parts_of(task, task.read(task.find_data()), 0.1, None)

    assert [e.label for e in cut(select="accuracy").dev] == [()] * 4
    for select in ({}, {"select": "f1"}):
        with pytest.raises(InputError, match=r"4 example\(s\) in dev, none with a label: f1"):
            cut(**select)
    assert cut(dev_data=given["data"]).dev


def parts_of_pairs(data: str, order: str) -> Any:
    """A table of pairs, a and b, parted as a run with --pair-order would part it."""
    columns = {"text_column": "a", "text_pair_column": "b"}
    given = FinetuneSettings(task="classification", data=data, pair_order=order, **columns)
    task = ClassificationTask(given)
    return parts_of(task, task.read(task.find_data()), 0.2, None)


def test_pairs_that_are_asked_both_ways_are_one_with_their_texts_exchanged(tmp_path: Path) -> None:
    """Or dev would have what train has, in the other order."""
    texts = [(f"storm {i}", f"river {i}") for i in range(40)]
    rows = [{"a": a, "b": b, "label": "xy"[i % 2]} for i, (a, b) in enumerate(texts)]
    rows += [{"a": row["b"], "b": row["a"], "label": row["label"]} for row in rows]
    data, shared = write_rows(tmp_path / "a.csv", rows), []
    for order in ("given", "both"):
        parts = parts_of_pairs(data, order)
        sides = [{frozenset((e.text, e.text_pair)) for e in p} for p in (parts.train, parts.dev)]
        shared.append(len(sides[0] & sides[1]))
    assert shared[0] > 0
    assert shared[1] == 0


def test_pairs_none_of_which_is_exchanged_are_cut_the_same_however_they_are_asked(
    tmp_path: Path,
) -> None:
    """What an earlier run learnt is not to become what it is scored on."""
    rows = [
        {"a": f"{'zam'[i % 3]} {i}", "b": f"river {i}", "label": "xy"[i % 2]} for i in range(40)
    ]
    data = write_rows(tmp_path / "a.csv", rows)
    assert parts_of_pairs(data, "given").dev == parts_of_pairs(data, "both").dev


def test_a_published_file_without_labels_is_told_of_a_file_that_is_not_there(
    tmp_path: Path,
) -> None:
    task = find_task("rte")(FinetuneSettings(task="rte", data=str(tmp_path)))
    with pytest.raises(InputError, match="holds none of train.tsv"):
        task.read(task.find_data())
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabels\n0\ta\tb\tx\n")
    with pytest.raises(InputError, match="train.tsv holds no labelled example"):
        task.read(task.find_data())


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_lines_that_cr_alone_ends_are_rows_or_told(tmp_path: Path, name: str) -> None:
    mark = "\t" if name == "a.tsv" else ","
    rows = [f"text{mark}label", *(f"storm {i}{mark}{'xy'[i % 2]}" for i in range(8))]
    (tmp_path / name).write_bytes("\r".join(rows).encode())
    if name == "a.csv":  # whose reader knows them
        assert len(read(data=str(tmp_path / name)).train) == 8
        return
    with pytest.raises(InputError, match=r"a\.tsv has CR as its line end.* convert it with tr"):
        read(data=str(tmp_path / name))


def test_quotes_that_are_text_but_seem_meant_as_such_are_counted(tmp_path: Path) -> None:
    kept = ["text\tlabel", 'she said "yes" and "no"\tx', '"wholly" quoted "text"\ty', '""\ty']
    table = tmp_path / "a.tsv"
    table.write_text("\n".join([*kept, '"a ""fine"" film"\tx', '"dull, ""flat"""\ty', ""]))
    said = "; ".join(read(data=str(table)).notes)
    assert "2 rows of a.tsv (the first in line 5) hold fields in quotes, which are text" in said
    table.write_text("\n".join([*kept, "plain\tx", ""]))
    assert "quotes" not in "; ".join(read(data=str(table)).notes)
    csv = tmp_path / "a.csv"
    csv.write_text('text,label\n"a, b",x\n"c",  "y"\nd,y\n')
    splits = read(data=str(csv))
    assert [e.label for e in splits.train] == ["x", '"y"', "y"]
    assert "1 rows of a.csv (the first in line 3) hold quotes after a blank" in "; ".join(
        splits.notes
    )


def test_glue_tables_take_quotes_as_text_and_skip_what_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n" open quote \t1\nplain\t0\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tno label\n")
    splits = read_sst2(tmp_path)
    assert [(e.text, e.label) for e in splits.train] == [
        ('" open quote', "positive"),
        ("plain", "negative"),
    ]
    assert splits.test is None
    (tmp_path / "sentences_test.tsv").write_text("with label\t0\n")
    assert [e.label for e in read_sst2(tmp_path).test or ()] == ["negative"]
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t2\n")
    with pytest.raises(InputError, match="line 2: label '2', expected 0, 1"):
        read_sst2(tmp_path)


def test_mrpc_has_a_byte_order_mark_and_a_labelled_test_elsewhere(tmp_path: Path) -> None:
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    for name in ("train.tsv", "dev.tsv", "msr_paraphrase_test.txt"):
        (tmp_path / name).write_text(f"{head}1\t7\t8\tone {name}\ttwo\n")
    splits = read_mrpc(tmp_path)
    assert splits.train == [LabelledText("train:2", "one train.tsv", "equivalent", "two")]
    assert [e.text for e in splits.test or ()] == ["one msr_paraphrase_test.txt"]


def test_news_lose_what_a_conversion_left(tmp_path: Path) -> None:
    row = '"3","Bids &lt;b&gt;","Oil\\prices  #36;40 and it #39;s high"\n'
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(row)
    (example,) = read_ag_news(tmp_path).train
    assert (example.label, example.text) == ("Business", "Bids Oil prices $40 and it's high")


def test_chinese_sets_are_read_without_a_header_too(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("很好\tpositive\ntext_a 不好\tnegative\n", encoding="utf-8")
    found = [(e.text, e.label) for e in read_chnsenticorp(tmp_path).train]
    assert found == [("很好", "positive"), ("text_a 不好", "negative")]
    (tmp_path / "train.tsv").write_text("老师\tnews_edu\n", encoding="utf-8")
    assert [e.label for e in read_tnews(tmp_path).train] == ["news_edu"]
    row = {"label_desc": "news_edu", "sentence": 7}
    (tmp_path / "train.json").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="train.json, line 1: 7 is no text"):
        read_tnews(tmp_path)


PUBLISHED: dict[str, dict[str, str]] = {
    "sst2": {"train.tsv": "sentence\tlabel\ngood\t1\n", "sentences_test.tsv": "bad\t0\n"},
    "mrpc": {"train.tsv": "Quality\t#1 String\t#2 String\n1\ta\tb\n"},
    "rte": {"train.tsv": "sentence1\tsentence2\tlabel\na\tb\tentailment\n"},
    "qnli": {"train.tsv": "question\tsentence\tlabel\na\tb\tentailment\n"},
    "ag_news": {"train.csv": '"3","Bids","Oil prices"\n'},
    "chnsenticorp": {"train.tsv": "label\ttext_a\n1\t很好\n", "dev.tsv": "text_a\tlabel\n好\t1\n"},
    "tnews": {"train.json": '{"label_desc": "news_edu", "sentence": "老师"}\n'},
    "last": {"train.tsv": "label\ttext_a\n1\t很好\n"},
    "bare": {"train.tsv": "很好\tpositive\n"},
}
NAMED = {"last": "chnsenticorp", "bare": "chnsenticorp"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_line_ends_of_windows_change_nothing(tmp_path: Path, name: str) -> None:
    found = []
    for end in ("\n", "\r\n"):
        for file, content in PUBLISHED[name].items():
            (tmp_path / file).write_bytes(content.replace("\n", end).encode())
        found.append(PUBLIC[NAMED.get(name, name)].read(tmp_path))
    assert found[0] == found[1]


def test_own_splits_do_not_go_with_a_public_set(tmp_path: Path) -> None:
    data = str(bundled_data() / "sst2")
    settings = FinetuneSettings(task="sst2", data=data, test_data=data)
    task = ClassificationTask(settings)
    with pytest.raises(InputError, match="--test-data goes with a table of your own"):
        task.read(task.find_data())


# --- encoding -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    folder = tmp_path_factory.mktemp("vocabulary")
    letters = [chr(97 + i) for i in range(26)]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *letters]) + "\n")
    return WordPiece.from_pretrained(folder)


def test_tail_keeps_the_end() -> None:
    assert cut(list(range(20)), 8, "tail") == [list(range(12, 20))]


@pytest.mark.parametrize("length", [9, 16, 17, 40])
def test_windows_hold_every_token_once_and_are_alike_in_length(length: int) -> None:
    windows = cut(list(range(length)), 8, "windows")
    assert [i for window in windows for i in window] == list(range(length))
    assert len(windows) == math.ceil(length / 8)
    assert max(map(len, windows)) - min(map(len, windows)) <= 1


def test_pairs_have_segments_and_the_longer_text_gives_way(tokenizer: WordPiece) -> None:
    ((row,),) = encode([("a b c", "d")], tokenizer, 16, "head")
    assert row["input_ids"].tolist() == [2, 5, 6, 7, 3, 8, 3]
    assert row["token_type_ids"].tolist() == [0, 0, 0, 0, 0, 1, 1]
    long, short = list(range(20)), list(range(30, 33))
    assert cut_pair(long, short, 10, "head") == [(long[:7], short)]
    assert cut_pair(short, long, 10, "tail") == [(short, long[-7:])]
    assert cut_pair(long, long, 10, "head") == [(long[:5], long[:5])]
    windows = cut_pair(short, long, 10, "windows")
    assert {i for _, part in windows for i in part} == set(long)
    assert all(first == short for first, _ in windows)


def test_windows_vote_by_their_mean() -> None:
    task = ClassificationTask(FinetuneSettings(task="imdb", truncation="windows"))
    votes = [[np.array([0.9, 0.1]), np.array([0.2, 0.8])], [np.array([0.3, 0.7])]]
    first, second = task.decode([], [], votes)
    np.testing.assert_allclose(first, [0.55, 0.45])
    np.testing.assert_allclose(second, [0.3, 0.7])


# --- loss and figures -----------------------------------------------------------------------------


def test_balanced_weights_have_a_mean_of_one_over_train() -> None:
    counts = {"x": 6, "y": 2}
    weights = class_weights("balanced", ("x", "y"), counts)
    assert weights is not None
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4])
    assert (weights * torch.tensor([6, 2])).sum() / 8 == pytest.approx(1)
    assert class_weights("none", ("x", "y"), counts) is None


def test_weights_are_given_by_name() -> None:
    for given in ("y=3, a=b=2", '{"y": 3, "a=b": 2}'):
        weights = class_weights(given, ("x", "y", "a=b"), {})
        assert weights is not None
        assert weights.tolist() == [1, 3, 2]
    weights = class_weights("x=0", ("x", "y"), {})
    assert weights is not None and weights.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("z=1", "no class 'z'"),
        ("x", "expected none"),
        ("x=-1", "0 or more"),
        ("x=0, y=0", "every weight is 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(given: str, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        class_weights(given, ("x", "y"), {})


def test_losses_are_the_weighted_and_smoothed_sums() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, -100])
    weights = torch.tensor([1.0, 2.0, 0.5])
    total, count = classification_loss(logits, labels, weights)
    log_p = logits.log_softmax(-1)
    expected = -sum(weights[y] * log_p[i, y] for i, y in enumerate(labels[:4].tolist()))
    torch.testing.assert_close(total, expected)
    assert int(count) == 4
    smooth, _ = classification_loss(logits, labels, smoothing=0.3)
    target = torch.nn.functional.one_hot(labels[:4], 3) * 0.7 + 0.1
    torch.testing.assert_close(smooth, -(target * log_p[:4]).sum())
    truth = torch.tensor([[1.0, 0, 1]] * 5)
    total, count = multi_label_loss(logits, truth, weights, 0.2)
    target, p = truth * 0.8 + 0.1, logits.sigmoid()
    expected = -((target * p.log() + (1 - target) * (1 - p).log()) * weights).sum()
    torch.testing.assert_close(total, expected)
    assert int(count) == 15
    total, _ = multi_label_loss(logits, truth, positives=weights)
    expected = -(truth * p.log() * weights + (1 - truth) * (1 - p).log()).sum()
    torch.testing.assert_close(total, expected)


def test_yes_and_no_of_several_labels_weigh_alike_when_balanced() -> None:
    counts = {"often": 75, "seldom": 10, "never": 0, "always": 100}
    weights = positive_weights(tuple(counts), counts, 100)
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 9.0, 1.0, 1.0]))


def test_class_and_multi_label_figures_equal_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, (2, 60))
    predictions[predictions == 3] = 0  # a class that is never the answer
    matrix = reference.confusion_matrix(labels, predictions)
    ours = class_figures(*matrix_counts(matrix))
    theirs = reference.precision_recall_fscore_support(labels, predictions, zero_division=0)
    for key, expected in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        np.testing.assert_allclose(ours[key], expected)
    truth, answers = rng.random((2, 40, 3)) > 0.6
    assert multi_label_figures(truth, answers) == pytest.approx(
        {
            "accuracy": reference.accuracy_score(truth, answers),
            "f1": reference.f1_score(truth, answers, average="macro"),
            "f1_micro": reference.f1_score(truth, answers, average="micro"),
        }
    )


# --- whole runs -----------------------------------------------------------------------------------

LOOP: dict[str, Any] = {
    **{"max_seq_length": 16, "batch_size": 4, "device": "cpu", "precision": "fp32"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    write_corpus(folder / "corpus.txt")
    where = {"output": str(folder / "start"), "cache_dir": str(folder / "cache")}
    corpus = [str(folder / "corpus.txt")]
    pretrain(corpus=corpus, preset="tiny", vocab_size=60, max_steps=2, **LOOP, **where)
    return folder


def tune(world: Path, output: str, **options: Any) -> Path:
    given = {**LOOP, "model": str(world / "start"), "output": str(world / output), **options}
    return finetune(**given).folder


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_table_of_your_own_gives_a_model_to_use(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(world / "own.csv", rows_of(20))
    options = {"max_steps": 60, "learning_rate": 1e-3, "class_weights": "balanced"}
    folder = tune(world, "own", task="classification", data=data, label_smoothing=0.05, **options)
    said = capsys.readouterr()
    assert "dev is scored" in said.err
    assert "precision" in said.out
    results = results_of(folder)
    assert results["scored"] == "dev"
    assert results["accuracy"] > 0.8
    assert results["per_class"].keys() == set(WORDS)
    assert sum(c["support"] for c in results["per_class"].values()) == results["num_eval"]
    model = minibert.load(folder)
    assert [p.prediction for p in model.predict(list(WORDS.values()))] == list(WORDS)
    assert model.probabilities([]).shape == (0, len(WORDS))
    sizes: tuple[Any, ...] = (0, -1, "8", 2.5)
    for size in sizes:
        with pytest.raises(InputError, match=f"batch_size is {size!r}, must be above 0"):
            model.probabilities(["storm"], batch_size=size)
    for given in (None, 5):
        with pytest.raises(InputError, match=f"{given} is no text, and no list of them"):
            model.predict(given)
    again = minibert.evaluate(folder)  # the same dev examples
    assert again["accuracy"] == results["accuracy"]
    assert again["num_eval"] == results["num_eval"]
    assert minibert.evaluate(folder, data=data)["num_eval"] == 60
    (cut,) = model.predict("storm \ud83d")
    assert cut.text == "storm \ufffd"
    assert_own_file_is_a_test_part(world, folder, capsys)


def assert_own_file_is_a_test_part(
    world: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is scored with --data is what --test-data would score."""
    odd = [{"text": "storm", "label": "new"}, {"text": " ", "label": "bad"}]
    other = write_rows(world / "other.csv", odd + rows_of(1))
    capsys.readouterr()
    found = minibert.evaluate(folder, data=other, predictions=world / "scored.jsonl")
    assert (found["num_eval"], found["scored"]) == (4, "test")
    said = capsys.readouterr().err
    lacking = "1 of test with labels that the model lacks (new), left out"
    assert lacking in said and lacking in found["data_notes"]
    assert "1 empty" in said
    ids = [json.loads(line)["id"] for line in (world / "scored.jsonl").read_text().splitlines()]
    assert ids == [f"test:{line}" for line in (3, 4, 5, 6)]
    single = write_rows(
        world / "single.csv", [{"text": f"storm {i}", "label": "bad"} for i in "ab"]
    )
    assert minibert.evaluate(folder, data=single)["num_eval"] == 2
    lacking = r"no example with a label that the model has \(bad, good, odd\); its labels are new$"
    for label, wanted in (("new", lacking), ("", "no label")):
        bad = write_rows(world / "bad.csv", [{"text": "storm", "label": label}])
        with pytest.raises(InputError, match=f"bad.csv.* {wanted}"):
            minibert.evaluate(folder, data=bad)


def test_evaluate_refuses_data_that_has_changed_since_it_was_learnt_from(world: Path) -> None:
    data = write_rows(world / "grown.csv", rows_of(20))
    folder = tune(world, "grown-run", task="classification", data=data, max_steps=1)
    assert minibert.evaluate(folder)["num_eval"] == results_of(folder)["num_eval"]
    write_rows(world / "grown.csv", rows_of(30))
    with pytest.raises(InputError, match="grown.csv has changed since .*; --data names what to"):
        minibert.evaluate(folder)
    assert minibert.evaluate(folder, data=data)["num_eval"] == 90
    (world / "grown.csv").rename(world / "moved.csv")
    with pytest.raises(InputError, match="learnt from .*grown.csv, which is not there.* --data"):
        minibert.evaluate(folder)


def test_evaluate_scores_the_test_split_of_a_run_that_left_it_alone(world: Path) -> None:
    splits = {"data": write_rows(world / "a.csv", rows_of(20))}
    splits |= {"test_data": write_rows(world / "c.csv", rows_of(4))}
    folder = tune(world, "alone", task="classification", dev_only=True, max_steps=1, **splits)
    assert results_of(folder)["scored"] == "dev"
    found = minibert.evaluate(folder)
    assert (found["scored"], found["num_eval"]) == ("test", 12)


def test_evaluate_tells_that_a_file_is_what_the_model_learnt_from(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(world / "learnt.csv", rows_of(10))
    folder = tune(world, "learnt", task="classification", data=data, max_steps=1)
    other = write_rows(tmp_path / "other.csv", rows_of(4))
    capsys.readouterr()
    minibert.evaluate(folder, data=other)
    minibert.evaluate(folder)  # its dev split alone
    assert "was trained on" not in capsys.readouterr().err
    monkeypatch.chdir(world)
    minibert.evaluate(folder, data="learnt.csv")
    assert f"learnt: learnt.csv is what {folder} was trained on" in capsys.readouterr().err
    splits = {"data": data, "dev_data": write_rows(world / "chose.csv", rows_of(4))}
    folder = tune(world, "chosen", task="classification", max_steps=1, **splits)
    minibert.evaluate(folder, data="chose.csv")
    assert f"learnt: {folder} was chosen by its figures on chose.csv" in capsys.readouterr().err


def test_a_large_confusion_matrix_is_left_out(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows(world / "wide.csv", rows_of(20))
    options = {"task": "classification", "data": data, "max_steps": 1}
    assert "confusion_matrix" in results_of(tune(world, "narrow", **options))
    monkeypatch.setattr(classification, "_LARGEST_MATRIX", 2)  # of three classes
    assert "confusion_matrix" not in results_of(tune(world, "wide", **options))


def test_evaluate_scores_dev_where_a_set_has_no_labelled_test(world: Path) -> None:
    where = world / "glue"
    where.mkdir()
    for name, count in (("train", 24), ("dev", 8)):
        rows = [f"{list(WORDS.values())[i % 2]} {name} {i}\t{i % 2}" for i in range(count)]
        (where / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    folder = tune(world, "glue-run", task="sst2", data=str(where), max_steps=1)
    own, again = minibert.evaluate(folder), minibert.evaluate(folder, data=str(where))
    assert (own["num_eval"], own["scored"]) == (8, "dev")
    assert again == own
    train = minibert.evaluate(folder, data=str(where), split="train")
    assert (train["num_eval"], train["scored"]) == (24, "train")
    (where / "dev.tsv").unlink()
    alone = minibert.evaluate(folder, data=str(where))
    assert (alone["num_eval"], alone["scored"]) == (24, "all")


def test_predictions_are_not_written_over_the_data(world: Path) -> None:
    data = write_rows(world / "kept.csv", rows_of(10))
    before = Path(data).read_bytes()
    folder = tune(world, "kept", task="classification", data=data, max_steps=1)
    for options in ({"data": data}, {}):
        with pytest.raises(InputError, match=r"--predictions .*kept.csv is a file of --data"):
            minibert.evaluate(folder, **options, predictions=world / "." / "kept.csv")
    assert Path(data).read_bytes() == before


def test_predictions_are_not_written_over_a_file_of_the_model(world: Path) -> None:
    data = write_rows(world / "of-model.csv", rows_of(10))
    folder = tune(world, "of-model", task="classification", data=data, max_steps=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name in ("run.json", "model.safetensors", "predictions.jsonl", "metrics.jsonl"):
        with pytest.raises(InputError, match=rf"--predictions .*{name} is a file of the model"):
            minibert.evaluate(folder, data=data, predictions=folder / name)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for _ in range(2):  # its own may be written anew
        minibert.evaluate(folder, data=data, predictions=folder / "again.jsonl")


def test_predictions_are_not_written_over_a_file_of_a_folder_of_data(world: Path) -> None:
    data = write_rows(world / "kept-2.csv", rows_of(10))
    folder = tune(world, "kept-2", task="classification", data=data, max_steps=1)
    kept = world / "reviews-kept" / "test" / "pos" / "1_7.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(InputError, match=r"--predictions .*1_7.txt is a file of --data"):
        minibert.evaluate(folder, data=world / "reviews-kept", predictions=kept)


def test_evaluate_scores_what_a_run_learnt_from_as_its_train_split(world: Path) -> None:
    data = write_rows(world / "train-split.csv", rows_of(10))
    options = {"task": "classification", "data": data, "max_steps": 1}
    for name, more in (("train-split", {}), ("train-limit", {"limit": 6})):
        folder = tune(world, name, **options, **more)
        train = minibert.evaluate(folder, split="train")
        assert (train["num_eval"], train["scored"]) == (results_of(folder)["num_train"], "train")
    assert train["num_eval"] == 6
    assert minibert.evaluate(folder, data=data, split="train")["num_eval"] == 30


def test_evaluate_reads_own_columns_and_by_default_those_of_the_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"body": row["text"], "kind": row["label"]} for row in rows_of(8)]
    data = write_rows(world / "columns.csv", rows)
    columns = {"text_column": "body", "label_column": "kind"}
    folder = tune(world, "columns", task="classification", data=data, max_steps=1, **columns)
    found = minibert.evaluate(folder, data=Path(data))  # the run's columns
    assert (found["num_eval"], found["dataset"]) == (24, data)
    other = write_rows(tmp_path / "other.jsonl", rows_of(3, "grade"))
    command = ["evaluate", str(folder), "--data", other, "--text-column", "text"]
    capsys.readouterr()
    assert main([*command, "--label-column", "grade"]) == 0
    assert json.loads(capsys.readouterr().out)["num_eval"] == 9
    for flags, wanted in (
        ([], "no column 'kind' (--label-column); its columns are text, grade"),
        (["--label-column", "g"], "no column 'g' (--label-column); its columns are text, grade"),
        (["--label-column", "grade", "--text-pair-column", "grade"], "are both 'grade'"),
        (["--label-column", "grade", "--text-pair-column", "id"], "reads single texts"),
        (["--target-column", "grade"], "--target-column has no use in classification"),
        (["--text-colum", "text"], "did you mean '--text-column'"),
    ):
        assert main([*command, *flags]) == 2
        assert wanted in capsys.readouterr().err
    assert main([*command[:2], *command[4:]]) == 2
    assert "--text-column goes with --data" in capsys.readouterr().err
    with pytest.raises(InputError, match="evaluate takes no 'text_colum'; did you mean"):
        minibert.evaluate(folder, data=other, text_colum="text")


def test_evaluate_reads_own_columns_for_a_model_of_a_public_set(
    world: Path, tmp_path: Path
) -> None:
    folder = tune(world, "sst2", task="sst2", max_steps=1)
    rows = [{"said": f"{w} {i}", "is": w} for i in range(3) for w in ("positive", "negative")]
    data = write_rows(tmp_path / "own.tsv", rows)
    own = {"text_column": "said", "label_column": "is"}
    assert minibert.evaluate(folder, data=data, **own)["num_eval"] == 6
    pairs = tune(world, "rte", task="rte", max_steps=1)
    with pytest.raises(InputError, match="reads pairs of texts; name --text-pair-column"):
        minibert.evaluate(pairs, data=data, **own)
    # A table is one's own, though no column is named: text, text_pair and label are the usual ones.
    usual = [{"text": row["said"], "label": row["is"]} for row in rows]
    plain = write_rows(tmp_path / "plain.csv", usual)
    assert minibert.evaluate(folder, data=plain)["num_eval"] == 6
    second = [{"text": "a", "text_pair": f"b {i}", "label": "entailment"} for i in range(3)]
    assert minibert.evaluate(pairs, data=write_rows(tmp_path / "b.csv", second))["num_eval"] == 3
    (tmp_path / "notes.txt").write_text("good film\n")
    with pytest.raises(InputError, match="not a folder; .* of your own: --text-column text"):
        minibert.evaluate(folder, data=str(tmp_path / "notes.txt"))


def test_a_text_may_have_several_labels(world: Path) -> None:
    names = list(WORDS)
    rows = [
        {"text": " ".join(["valley", *map(WORDS.get, chosen), str(i)]), "labels": chosen}
        for i in range(80)
        for chosen in [[n for k, n in enumerate(names) if i >> k & 1]]
    ]
    data = write_rows(world / "multi.jsonl", rows)
    parted = [row | {"labels": "; ".join(row["labels"])} for row in rows]
    test = write_rows(world / "multi.csv", parted)
    folder = tune(
        *(world, "multi"),
        **{"task": "classification", "data": data, "test_data": test, "label_column": "labels"},
        **{"label_separator": ";", "max_steps": 200, "learning_rate": 2e-3},
        max_seq_length=64,
    )
    results = results_of(folder)
    assert results["f1_micro"] > 0.8  # a yes to everything has 0.67
    assert "80 of 80 rows have a list of labels" in "; ".join(results["data_notes"])
    assert "dev_f1_micro" in results
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    (answer,) = minibert.load(folder).predict("storm winter castle river bridge miller")
    assert answer.prediction == [n for n, p in answer.probabilities.items() if p > 0.5]
    rows_written = (folder / "predictions.jsonl").read_text().splitlines()
    assert json.loads(rows_written[3])["label"] == ["bad", "good"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id2label": {"0": "POS", "1": "POS", "2": "NEG"}}, "two classes .* called 'POS'"),
        ({"problem_type": "regression"}, "says 3 numbers; a score is one"),
    ],
    ids=["one name twice", "three numbers"],
)
def test_a_head_that_no_answer_could_tell_whole_is_refused(
    world: Path, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    head = BertConfig.from_pretrained(world / "start")
    model = BertForSequenceClassification(
        dataclasses.replace(head, id2label=dict(enumerate("abc")))
    )
    shutil.copytree(world / "start", tmp_path / "other")
    (tmp_path / "other" / "run.json").unlink()  # as a hub's
    model.save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(InputError, match=said):
        minibert.load(tmp_path / "other")


def test_a_single_tag_is_yes_or_no(world: Path, tmp_path: Path) -> None:
    rows = [
        {"text": f"valley {'storm winter' if i % 2 else 'castle river'} {i}", "label": tags}
        for i in range(40)
        for tags in [["spam"] if i % 2 else []]
    ]
    data = write_rows(world / "spam.jsonl", rows)
    options = {"class_weights": "balanced", "max_steps": 60, "learning_rate": 2e-3}
    folder = tune(world, "spam", task="classification", data=data, **options)
    assert results_of(folder)["f1"] > 0.9
    model = minibert.load(folder)
    answers = model.predict([rows[1]["text"], rows[0]["text"]])
    assert [a.prediction for a in answers] == [["spam"], []]
    assert minibert.evaluate(folder, data=data)["num_eval"] == 40
    config = BertConfig.from_pretrained(folder)  # of a folder whose run is not told
    assert ClassificationTask.claims(config) is not None
    assert find_task("similarity").claims(config) is None
    always = write_rows(tmp_path / "a.jsonl", [row | {"label": ["spam"]} for row in rows])
    with pytest.raises(InputError, match="only 'spam'; a second, or texts without it, are needed"):
        read(data=always)
    never = write_rows(tmp_path / "b.jsonl", [row | {"label": []} for row in rows])
    with pytest.raises(InputError, match="no label; two classes are needed"):
        read(data=never)


def mails(count: int = 80) -> list[dict[str, Any]]:
    """One in four is spam, and a third of these reads as the others do."""
    return [
        {
            "text": f"valley {'storm winter' if i % 4 == 0 and i % 3 else 'castle river'} {i}",
            "label": "good" if i % 4 else "bad",
        }
        for i in range(count)
    ]


def test_a_threshold_that_dev_chooses_is_kept_and_used(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(world / "mails.csv", mails())
    options = {"positive_label": "bad", "threshold": "best", "select": "f1_binary"}
    loop = {"dev_fraction": 0.4, "max_steps": 40, "eval_every": 10, "learning_rate": 1e-3}
    folder = tune(world, "mails", task="classification", data=data, **options, **loop)
    results = results_of(folder)
    kept = json.loads((folder / "classification.json").read_text())
    told = {"positive_label": "bad", "threshold": results["threshold"]}
    assert kept == {"pairs": False, **told}
    assert f"bad is said above {kept['threshold']:.4g}" in capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    model = minibert.load(folder)
    shares = [p.probabilities["bad"] for p in model.predict([row["text"] for row in rows])]
    truth = np.array([row["label"] == "bad" for row in rows])

    def f1(threshold: float) -> float:
        said = np.array(shares) > threshold
        return 2 * (said & truth).sum() / (said.sum() + truth.sum())

    # What is scored is dev, so no threshold is better there.
    assert results["f1_binary"] == pytest.approx(max(f1(t) for t in (0, *shares)))
    assert results["f1_binary"] == pytest.approx(results["per_class"]["bad"]["f1"])
    assert results["dev_f1_binary"] == pytest.approx(results["f1_binary"])
    for row, share in zip(rows, shares, strict=True):
        assert row["prediction"] == ("bad" if share > kept["threshold"] else "good")
        own = share if row["prediction"] == "bad" else 1 - share
        assert row["score"] == pytest.approx(own, abs=1e-5)
    again = minibert.evaluate(folder)
    assert {k: again[k] for k in ("f1_binary", "threshold", "roc_auc", "confusion_matrix")} == {
        k: results[k] for k in ("f1_binary", "threshold", "roc_auc", "confusion_matrix")
    }
    minibert.export(folder, tmp_path / "alone", dtype="fp32", log=False)
    alone = minibert.load(tmp_path / "alone")
    assert alone.task.threshold == kept["threshold"]
    texts = [row["text"] for row in rows]
    assert [p.prediction for p in alone.predict(texts)] == [row["prediction"] for row in rows]


def test_a_class_that_looks_like_a_path_is_still_looked_for_after_export(
    world: Path, tmp_path: Path
) -> None:
    rows = [row | {"label": f"/r/{row['label']}"} for row in mails(40)]
    data = write_rows(world / "paths.csv", rows)
    options = {"positive_label": "/r/bad", "threshold": "0.001"}
    folder = tune(world, "paths", task="classification", data=data, max_steps=4, **options)
    minibert.export(folder, tmp_path / "out")
    for place in (folder, tmp_path / "out"):
        assert minibert.load(place).predict("valley 1")[0].prediction == "/r/bad"


def test_a_threshold_that_is_named_moves_every_answer(world: Path) -> None:
    data = write_rows(world / "named.csv", mails(40))
    same = {"task": "classification", "data": data, "max_steps": 4}
    plain = tune(world, "named-none", **same)
    low, high = (tune(world, f"named-{t}", **same, threshold=t) for t in ("0.001", "0.999"))
    said = [
        {
            json.loads(row)["prediction"]
            for row in (f / "predictions.jsonl").read_text().split("\n")[:-1]
        }
        for f in (low, high)
    ]
    assert said == [{"good"}, {"bad"}]  # the second class is the positive one
    assert not (plain / "classification.json").exists()
    figures = [results_of(folder) for folder in (plain, low, high)]
    assert len({f["roc_auc"] for f in figures}) == len({f["loss"] for f in figures}) == 1
    assert figures[1]["threshold"] == 0.001
    assert not any("f1_binary" in f for f in figures)  # no class was named


def test_a_threshold_may_be_a_number_in_a_notebook_and_in_a_file(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"task": "classification", "data": write_rows(world / "number.csv", mails(20))}
    folder = tune(world, "number", **same, max_steps=1, threshold=0.25)
    assert results_of(folder)["threshold"] == 0.25
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**LOOP, **same, "max_steps": 1, "threshold": 0.25}))
    start = ["--model", str(world / "start"), "--output", str(folder)]
    typed = ["finetune", *start, "--resume", "--config", str(config)]
    assert main(typed) == 0
    assert main([*typed, "--threshold", "0.25"]) == main([*typed, "--threshold", ".250"]) == 0
    given = {**LOOP, **same, "model": str(world / "start"), "output": str(tmp_path / "object")}
    finetune(FinetuneSettings(**given, max_steps=1, threshold=0.25))  # type: ignore[arg-type]
    record = str(tmp_path / "object" / "run.json")
    assert main(["finetune", "--config", record, "--resume", "--output", given["output"]]) == 0
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(InputError, match="--threshold is 30, must be in"):
        tune(world, "refused", **same, max_steps=1, threshold=30)


def test_the_f1_of_a_class_wants_its_name(world: Path) -> None:
    data = write_rows(world / "unnamed.csv", mails(20))
    with pytest.raises(InputError, match="'f1_binary' is no figure .*; it is the F1 of --positive"):
        tune(world, "unnamed", task="classification", data=data, max_steps=1, select="f1_binary")


def test_several_labels_have_one_threshold(world: Path) -> None:
    rows = [
        {"text": f"valley {words} {i}", "label": tags}
        for i in range(24)
        for words, tags in (("storm winter", ["a"]), ("castle river", []), ("garden", ["a", "b"]))
    ]
    data = write_rows(world / "tags.jsonl", rows)
    folder = tune(world, "tags", task="classification", data=data, threshold="best", max_steps=12)
    results = results_of(folder)
    model = minibert.load(folder)
    for row in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines()):
        (answer,) = model.predict([row["text"]])
        yes = [n for n, p in answer.probabilities.items() if p > results["threshold"]]
        assert answer.prediction == row["prediction"] == yes
    (folder / "classification.json").unlink()  # as it would have been without
    without = minibert.evaluate(folder)
    assert "threshold" not in without
    assert without["f1_micro"] <= results["f1_micro"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"threshold": "1"}, "--threshold is 1, must be in .0, 1., or 'best'"),
        ({"threshold": "nan"}, "--threshold is nan, must be"),
        ({"threshold": "half"}, "--threshold is half, must be"),
        ({"select": "f1_binary"}, "'f1_binary' is no figure of classification; known are acc"),
        ({"threshold": "0.3"}, "--threshold goes with two classes or .*classification has 3 cl"),
        ({"positive_label": "bad"}, "--positive-label goes with two classes; .* has 3 classes"),
    ],
)
def test_thresholds_that_cannot_be_used_are_refused(
    world: Path, options: dict[str, str], wanted: str
) -> None:
    data = write_rows(world / "three.csv", rows_of(8))
    with pytest.raises(InputError, match=wanted):
        tune(world, "refused", task="classification", data=data, max_steps=1, **options)


def test_a_positive_label_is_one_of_the_classes(world: Path) -> None:
    data = write_rows(world / "two.csv", mails(20))
    same = {"task": "classification", "data": data, "max_steps": 1}
    with pytest.raises(InputError, match="--positive-label 'god' is none of bad, good; did you"):
        tune(world, "refused", **same, positive_label="god")
    with pytest.raises(InputError, match="--select 'f1_binary' is no figure"):
        tune(world, "refused", **same, select="f1_binary")
    several = [row | {"label": [row["label"]]} for row in mails(20)]
    same["data"] = write_rows(world / "two.jsonl", several)
    with pytest.raises(InputError, match="--positive-label goes with .* has texts with several"):
        tune(world, "refused", **same, positive_label="bad")


def test_a_set_names_no_class_of_an_own_table(world: Path) -> None:
    rows = [
        {"a": f"valley {words} {i}", "b": f"castle {i}", "label": label}
        for i in range(20)
        for words, label in (("storm", "alike"), ("river", "unlike"))
    ]
    same = {
        **{"task": "mrpc", "text_column": "a", "text_pair_column": "b", "label_column": "label"},
        **{"data": write_rows(world / "own-mrpc.csv", rows), "max_steps": 1},
    }
    with pytest.raises(InputError, match="--select 'f1_binary' is no figure"):
        tune(world, "refused", **same, select="f1_binary")
    folder = tune(world, "own-mrpc", **same)
    assert "f1_binary" not in results_of(folder)
    assert "f1_binary" not in minibert.evaluate(folder)


def test_a_label_that_only_dev_has_is_a_class(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rare in range(40):  # until it is drawn for dev
        sets = [["a", "rare"] if i == rare else ["a", "b"][: 1 + i % 2] for i in range(40)]
        rows = [{"text": f"storm {i}", "labels": labels} for i, labels in enumerate(sets)]
        data = write_rows(tmp_path / "m.jsonl", rows)
        settings = FinetuneSettings(task="classification", data=data, label_column="labels")
        task = ClassificationTask(settings)
        parts = parts_of(task, task.read(task.find_data()), settings.dev_fraction, None)
        if any("rare" in (e.label or ()) for e in parts.dev):
            break
    options = {"label_column": "labels", "class_weights": "balanced", "max_steps": 1}
    folder = tune(world, "rare", task="classification", data=data, **options)
    assert "classes: rare: no example to train on" in capsys.readouterr().err
    assert results_of(folder)["per_class"].keys() == {"a", "b", "rare"}


def test_no_label_and_no_class_are_told_apart(tmp_path: Path) -> None:
    """Of a text that may have several labels an empty field says that it has none."""
    train = tmp_path / "train.csv"
    train.write_text("text,label\nx,a;b\ny,a\nz,\n")
    test = tmp_path / "test.csv"
    test.write_text("text,label\nx,\ny,\n")
    splits = read(data=str(train), test_data=str(test), label_separator=";")
    assert [e.label for e in splits.train] == [("a", "b"), ("a",), ()]
    assert "1 rows of train without any label, taken as of none of the classes" in splits.notes
    assert splits.test is None
    assert "test has no labels, so it is not scored" in splits.notes
    lines = tmp_path / "train.jsonl"
    lines.write_text(
        '{"text": "x", "label": ["a", "b"]}\n{"text": "y", "label": "a"}\n'
        '{"text": "z", "label": NaN}\n'
    )
    assert [e.label for e in read(data=str(lines)).train] == [("a", "b"), ("a",)]


def test_pairs_are_told_apart_by_their_second_text(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tune(world, "mrpc", task="mrpc", max_steps=2)
    assert "the bundled sample" in capsys.readouterr().err
    results = results_of(folder)
    assert {"accuracy", "f1", "f1_binary", "matthews"} <= results.keys()
    first = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    assert first["text_pair"]
    given = ["storm river\twinter", '["storm river", "winter"]']
    assert main(["predict", str(folder), *given]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == rows[1]
    assert rows[0]["text_pair"] == "winter"
    assert main(["predict", str(folder), "storm alone"]) == 2
    assert "expected two texts" in capsys.readouterr().err
    model = minibert.load(folder)
    (swapped,) = model.predict([("winter", "storm river")])
    assert swapped.probabilities != rows[0]["probabilities"]
    minibert.export(folder, tmp_path / "alone", dtype="fp32", log=False)
    alone = minibert.load(tmp_path / "alone")  # no run tells of pairs any more
    assert alone.predict([("winter", "storm river")])[0].probabilities == swapped.probabilities


def test_windows_are_trained_and_read_by_the_command(world: Path) -> None:
    long = [row | {"text": f"{row['text']} " * 12} for row in rows_of(6)]
    data = write_rows(world / "long.tsv", long)
    options = {"truncation": "windows", "max_steps": 3, "limit": 9}
    folder = tune(world, "long", task="classification", data=data, **options)
    task = minibert.load(folder).task
    assert task.settings.truncation == "windows"
    (features,) = task.encode([LabelledText("a", long[0]["text"], "good")])
    assert len(features) > 3
    assert results_of(folder)["num_eval"] == 3  # examples, not windows
