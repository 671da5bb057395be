"""Tables to answer: which columns of a row a model reads that learnt from such a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import write

from minibert.errors import InputError
from minibert.settings import FinetuneSettings
from minibert.tasks import TASKS
from minibert.tasks.inputs import read_inputs

NAMED = {"text_column": "a", "text_pair_column": "b"}
PAIR = "id{0}a{0}b{0}label\n1{0}one{0}two{0}x\n"
PLAIN = "text{0}text_pair{0}score\none{0}two{0}3\n"
WORDS = '{"tokens": ["Ada", "left"], "tags": ["B-PER", "O"]}\n'


def examples(path: Path, task: str, named: tuple[Any, Any] = (None, None), **given: Any) -> Any:
    """What a task that learnt so makes of a table."""
    family = TASKS[task](FinetuneSettings(task=task, **given))
    lines = read_inputs(path, lambda names: family.table_columns(*named, names))
    return [family.example_of(family.parse_line(text), line) for line, text in lines]


@pytest.mark.parametrize("mark", ["\t", ","])
def test_pairs_are_read_by_what_was_learnt(tmp_path: Path, mark: str) -> None:
    suffix = {"\t": ".tsv", ",": ".csv"}[mark]
    named = write(tmp_path / f"named{suffix}", PAIR.format(mark))
    plain = write(tmp_path / f"plain{suffix}", PLAIN.format(mark))
    for path, task, given in (
        (named, "similarity", NAMED),
        (named, "classification", NAMED),
        (plain, "similarity", {}),  # the reader's own names, of which a run need say nothing
        (plain, "stsb", {}),
        (plain, "rte", {}),
        (plain, "classification", {"text_pair_column": "text_pair"}),
    ):
        (found,) = examples(path, task, **given)
        assert (found.text, found.text_pair) == ("one", "two")
    (found,) = examples(named, "similarity", ("b", "a"))
    assert (found.text, found.text_pair) == ("two", "one")
    (found,) = examples(plain, "sst2")
    assert (found.text, found.text_pair) == ("one", None)


@pytest.mark.parametrize(
    ("line", "task", "given", "wanted"),
    [
        ('{"review": "fine", "label": "x"}', "classification", {"text_column": "review"}, "fine"),
        ('{"review": null}', "classification", {"text_column": "review"}, ""),
        ('{"a": "one", "b": "two"}', "similarity", NAMED, ("one", "two")),
        ('["one", "two"]', "similarity", NAMED, ("one", "two")),
        ('"{fine}"', "classification", {}, "{fine}"),
        ('{"en": "fine"}', "translation", {"text_column": "en"}, "fine"),
        ('{"question": "Who?", "context": "Ann."}', "qa", {}, ("Who?", "Ann.")),
    ],
)
def test_objects_are_read_by_their_keys(
    tmp_path: Path, line: str, task: str, given: dict[str, str], wanted: Any
) -> None:
    path = write(tmp_path / "own.jsonl", f"\n{line}\n")
    (found,) = examples(path, task, **given)
    keys = {"translation": ["source"], "qa": ["question", "context"], "similarity": ["text"] * 2}
    keys["similarity"][1] = "text_pair"
    values = tuple(getattr(found, key) for key in keys.get(task, ["text"]))
    assert values == (wanted if isinstance(wanted, tuple) else (wanted,))


@pytest.mark.parametrize("task", ["classification", "sst2", "translation", "tagging"])
def test_a_second_text_is_refused_by_models_of_single_ones(tmp_path: Path, task: str) -> None:
    table = write(tmp_path / "own.csv", PLAIN.format(","))
    with pytest.raises(InputError, match=f"--text-pair-column text_pair has no use in {task}"):
        examples(table, task, ("text", "text_pair"))


def test_a_tagger_reads_texts_and_lists_of_words(tmp_path: Path) -> None:
    learnt = {"text_column": "1"}  # a column of CoNLL, which no other table has
    table = write(tmp_path / "own.csv", "id,text\n1,Ada left\n")
    lines = write(tmp_path / "own.jsonl", WORDS + WORDS.replace("tokens", "words"))
    texts = write(tmp_path / "texts.jsonl", '{"text": "Ada left"}\n')
    for given in ({}, learnt):
        for path in (table, lines, texts):
            assert all(e.words == ["Ada", "left"] for e in examples(path, "tagging", **given))
    named = write(tmp_path / "named.jsonl", WORDS.replace("tokens", "said"))
    (found,) = examples(named, "tagging", text_column="said")
    assert found.words == ["Ada", "left"]


@pytest.mark.parametrize(
    ("line", "task", "given", "wanted"),
    [
        ({"text": "a"}, "classification", {"text_column": "review"}, "no column 'review'"),
        ({"text": 3}, "classification", {}, "'text' holds 3, no text"),
        ({"text": ["a"]}, "classification", {}, "no text"),
        ({"text": "a"}, "similarity", {}, "no column 'text_pair' \\(--text-pair-column\\)"),
        ({"text": "a"}, "tagging", {"text_column": "said"}, "no column 'said'"),
        ({"tokens": [1]}, "tagging", {}, "no text"),
        ({"question": "Who?"}, "qa", {}, "no column 'context'"),
    ],
)
def test_an_object_that_lacks_what_was_learnt_is_named(
    tmp_path: Path, line: dict[str, Any], task: str, given: dict[str, str], wanted: str
) -> None:
    path = write(tmp_path / "own.jsonl", "\n" + json.dumps(line) + "\n")
    with pytest.raises(InputError, match=f"own.jsonl, line 2.* {wanted}"):
        examples(path, task, **given)


@pytest.mark.parametrize("line", ['{"review": "a great film"}', '{"text": 5}'])
def test_an_object_without_a_text_is_no_text(line: str) -> None:
    family = TASKS["classification"](FinetuneSettings(task="classification"))
    with pytest.raises(InputError, match="text 3 is {.*expected a string, or an object with it as"):
        family.example_of(family.parse_line(line), 3)
    for text in ("{a} set", "{", '{"a": 1} and more'):
        assert family.example_of(family.parse_line(text), 1).text == text


@pytest.mark.parametrize("task", ["classification", "tagging", "translation"])
def test_a_line_of_two_texts_is_refused_by_models_of_single_ones(task: str) -> None:
    family = TASKS[task](FinetuneSettings(task=task))
    with pytest.raises(InputError, match="text 1 is .*expected a string"):
        family.example_of(family.parse_line('{"text": "a", "text_pair": "b"}'), 1)
    family.example_of(family.parse_line('{"text": "a", "text_pair": null, "id": 3}'), 1)


def test_a_pair_of_one_text_is_told_what_is_missing() -> None:
    family = TASKS["mrpc"](FinetuneSettings(task="mrpc"))
    with pytest.raises(InputError, match="an object with them as 'text' and 'text_pair'"):
        family.example_of(family.parse_line('{"text": "a"}'), 1)


def test_a_tagger_takes_a_note_for_a_text_and_words_by_either_key() -> None:
    family = TASKS["tagging"](FinetuneSettings(task="tagging"))

    def words(line: str) -> list[str]:
        found: list[str] = family.example_of(family.parse_line(line), 1).words
        return found

    assert words("[1]") == ["[", "1", "]"]
    assert words('["Ada", "left"]') == words('{"words": ["Ada", "left"]}') == ["Ada", "left"]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", '{"text": "a"}\n{"text": \n')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        examples(path, "classification")
