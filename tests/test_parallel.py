"""Readers of text pairs: public layouts, own files, what is wrong with them, trivial answers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import unicodedata
from pathlib import Path

import pytest

from minibert.errors import InputError
from minibert.files import OPENERS, bundled_data
from minibert.target_tokenizer import train_target_tokenizer
from minibert.tasks.parallel import (
    TextPair,
    drop_empty,
    lead,
    read_dialogsum,
    read_multi30k,
    read_pairs_table,
    read_parallel_files,
    read_parallel_folder,
)


def write(path: Path, text: str) -> Path:
    with OPENERS.get(path.suffix, open)(path, "wb") as handle:
        handle.write(text.encode())
    return path


def write_multi30k(folder: Path, end: str = ".gz", **changes: str) -> Path:
    for split in ("train", "val", "test_2016_flickr"):
        for language, words in (("en", "A dog.\nA cat.\n"), ("de", "Ein Hund.\nEine Katze.\n")):
            name = f"{split}.{language}"
            write(folder / f"{name}{end}", changes.get(name.replace(".", "_"), words))
    return folder


def csv_text(rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    return out.getvalue()


def write_dialogsum(folder: Path, prefix: str = "dialogsum_", end: str = ".csv.gz") -> Path:
    header = ["id", "dialogue", "summary", "topic"]
    talk = '#Person1#: Hi, Tom.\n#Person2#: "Hi", he said.'
    rows = {
        "train": [["train_0", talk, "Two greet.", "hello"], ["train_1", talk, "", "none"]],
        "validation": [["dev_0", "#Person1#: So?", "A question.", "ask"]],
        "test": [
            [f"test_{n}_{i}", f"talk {n}", f"{n} {i}", "x"] for n in (0, 1) for i in (1, 2, 3)
        ],
    }
    for split, found in rows.items():
        write(folder / f"{prefix}{split}{end}", csv_text([header, *found]))
    return folder


# --- public data sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".gz"])
def test_multi30k_is_read_line_by_line(tmp_path: Path, end: str) -> None:
    splits = read_multi30k(write_multi30k(tmp_path, end))
    assert splits.train[1] == TextPair("train/2", "A cat.", ("Eine Katze.",))
    assert [p.target for p in splits.test] == ["Ein Hund.", "Eine Katze."]
    assert splits.test[0].id == "test_2016_flickr/1"
    assert splits.notes[0] == "2 pairs to train on, 2 to choose by, 2 to test on"


def test_multi30k_is_read_in_either_direction(tmp_path: Path) -> None:
    splits = read_multi30k(write_multi30k(tmp_path), "de", "en")
    assert splits.dev[0][1:] == ("Ein Hund.", ("A dog.",))


def test_text_stays_as_it_is(tmp_path: Path) -> None:
    odd = "Zwei  Männer.\u2028Ja \r\n\u0085Über\x0bs Feld.\n"
    write_multi30k(tmp_path, train_de=odd, val_de="\ufeff" + odd)
    splits = read_multi30k(tmp_path)
    assert [p.target for p in splits.train] == ["Zwei  Männer.\u2028Ja ", "\u0085Über\x0bs Feld."]
    assert splits.dev[0].target == splits.train[0].target  # without the mark of order


def test_pairs_without_text_are_dropped_from_training_alone(tmp_path: Path) -> None:
    write_multi30k(tmp_path, train_de="Ein Hund.\n \n", val_de="\nEine Katze.\n")
    splits = read_multi30k(tmp_path)
    assert [p.id for p in splits.train] == ["train/1"]
    assert len(splits.dev) == 2
    assert "1 with an empty target dropped from training" in splits.notes
    kept, notes = drop_empty([TextPair("a", "", ("",)), TextPair("b", "", ("x",))])
    assert not kept
    assert notes == ["2 with an empty source dropped from training"]
    write_multi30k(tmp_path, train_de="\n\n")
    with pytest.raises(InputError, match="no pair to train on has two texts"):
        read_multi30k(tmp_path)


def test_files_of_different_lengths_are_refused_with_both_counts(tmp_path: Path) -> None:
    write_multi30k(tmp_path, val_de="Ein Hund.\n")
    with pytest.raises(InputError, match=r"val.en.gz has 2 lines, but .*val.de.gz has 1;"):
        read_multi30k(tmp_path)


def test_a_missing_language_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks train.fr \(or train.fr with .gz, .xz"):
        read_multi30k(write_multi30k(tmp_path), "en", "fr")


@pytest.mark.parametrize("end", ["", ".gz", ".xz", ".bz2"])
def test_a_folder_s_parts_may_be_packed_and_none_has_one_language_alone(
    tmp_path: Path, end: str
) -> None:
    for name in ("train.en", "train.de", "val.en", "val.de", "test.de"):
        with OPENERS.get(end, open)(tmp_path / f"{name}{end}", "wt", encoding="utf-8") as file:
            file.write(f"{name} 1\n{name} 2\n")
    with pytest.raises(InputError, match=r"lacks test.en \(or test.en with"):
        read_parallel_folder(tmp_path, "en", "de")
    (tmp_path / f"test.de{end}").unlink()
    train, dev, test = read_parallel_folder(tmp_path, "en", "de")
    assert [pair.source for pair in train] == ["train.en 1", "train.en 2"]
    assert dev is not None and dev[1].references == ("val.de 2",)
    assert test is None


@pytest.mark.parametrize(("prefix", "end"), [("dialogsum_", ".csv.gz"), ("", ".csv")])
def test_dialogsum_keeps_turns_and_joins_references(tmp_path: Path, prefix: str, end: str) -> None:
    splits = read_dialogsum(write_dialogsum(tmp_path, prefix, end))
    talk = '#Person1#: Hi, Tom.\n#Person2#: "Hi", he said.'
    assert splits.train == [TextPair("train_0", talk, ("Two greet.",))]
    assert [p.id for p in splits.dev] == ["dev_0"]
    assert splits.test == [
        TextPair("test_0", "talk 0", ("0 1", "0 2", "0 3")),
        TextPair("test_1", "talk 1", ("1 1", "1 2", "1 3")),
    ]
    assert splits.notes == (
        "1 pairs to train on, 1 to choose by, 2 to test on",
        "up to 3 references of a test text",
        "1 with an empty target dropped from training",
    )


def test_a_test_set_with_one_summary_each_is_read_too(tmp_path: Path) -> None:
    write_dialogsum(tmp_path)
    rows = [["id", "dialogue", "summary"], ["test_0", "a", "b"], ["test_1", "c", "d"]]
    write(tmp_path / "dialogsum_test.csv.gz", csv_text(rows))
    splits = read_dialogsum(tmp_path)
    assert splits.test == [TextPair("test_0", "a", ("b",)), TextPair("test_1", "c", ("d",))]


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    write_dialogsum(tmp_path)
    write(tmp_path / "dialogsum_test.csv.gz", csv_text([["id", "dialog", "summary"], ["0"] * 3]))
    with pytest.raises(InputError, match="no column 'dialogue' .*; its columns are id, dialog, s"):
        read_dialogsum(tmp_path)


# --- own files ------------------------------------------------------------------------------------


def test_two_parallel_files(tmp_path: Path) -> None:
    source, target = (
        write(tmp_path / "a.txt", "one\n\nthree"),
        write(tmp_path / "b.gz", "1\n2\n3\n"),
    )
    pairs = read_parallel_files(source, target)
    assert pairs == [
        TextPair("1", "one", ("1",)),
        TextPair("2", "", ("2",)),
        TextPair("3", "three", ("3",)),
    ]


def test_large_counts_are_readable(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a", "x\n" * 1200), write(tmp_path / "b", "x\n" * 1199)
    with pytest.raises(InputError, match="has 1,200 lines, but .* has 1,199; line i of one must"):
        read_parallel_files(source, target)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "a\n")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"ab\xff\n")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"a\n" * 500)[:20])
    for path, said in (
        (bad, "bad.txt, line 1: byte 2 is not UTF-8"),
        (cut, "cannot be read"),
        (tmp_path / "none", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read_parallel_files(good, path)
        assert "\n" not in str(caught.value)


ROWS = [["id", "de", "en"], ["x", "Zwei,  Hunde", "two"], ["y", 'sag "ja"', "say"]]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("end", ["", ".gz", ".xz", ".bz2"])
def test_two_columns_of_a_table(tmp_path: Path, kind: str, end: str) -> None:
    text = {
        "csv": csv_text(ROWS),
        "tsv": "".join("\t".join(row) + "\n" for row in ROWS),
        "jsonl": "".join(json.dumps(dict(zip(ROWS[0], r, strict=True))) + "\n" for r in ROWS[1:]),
    }[kind]
    path = write(tmp_path / f"pairs.{kind}{end}", text)
    pairs = read_pairs_table(path, "de", "en")
    assert pairs == [TextPair("x", "Zwei,  Hunde", ("two",)), TextPair("y", 'sag "ja"', ("say",))]


def test_half_a_surrogate_pair_is_one_unknown_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": "\\ud83d", "a": "x \\ud83d", "b": "\\ude00"}\n')
    assert read_pairs_table(path, "a", "b") == [TextPair("\ufffd", "x \ufffd", ("\ufffd",))]


def test_quotes_that_a_spreadsheet_set_are_told(tmp_path: Path) -> None:
    notes: list[str] = []
    path = write(tmp_path / "a.tsv", 'a\tb\nx\t"say ""y"" now"\nz\tplain\n')
    read_pairs_table(path, "a", "b", notes)
    assert notes[0].startswith("1 rows of a.tsv (the first in line 2) hold fields in quotes")


def test_a_blank_last_line_is_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\nx,y\n  ")
    assert [pair.source for pair in read_pairs_table(path, "a", "b")] == ["x"]


def test_rows_are_numbered_where_there_is_no_id(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", '{"a": "x", "b": "y"}\n\n{"a": "z", "b": ""}\n')
    assert [p.id for p in read_pairs_table(path, "a", "b")] == ["1", "2"]
    path = write(tmp_path / "empty.csv", "id,a,b\n,x,y\n,z,w\n0,u,v\n")
    assert [p.id for p in read_pairs_table(path, "a", "b")] == ["1", "2", "0"]
    path = write(tmp_path / "null.jsonl", '{"id": null, "a": "x", "b": "y"}\n')
    assert [p.id for p in read_pairs_table(path, "a", "b")] == ["1"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "a,b\n1,2\n1,2,3\n", "line 3 has 3 fields, expected 2: a, b"),
        ("p.csv", 'a,b\n"1,2\n', "line 2: unexpected end of data"),
        ("p.csv", 'a,b\n1,"2\n3,4\n', "line 2: unexpected end of data"),
        ("p.csv", 'a,b\n1,"ja" sagt er\n', "line 2: ',' expected after '\"'"),
        ("p.csv", "a,b,b\n1,2,3\n", "two columns are called 'b'"),
        ("p.tsv", "a\tb\n", "has no rows"),
        ("p.tsv", "a\tc\n1\t2\n", "no column 'b'"),
        ("p.jsonl", '{"a": "x", "b": "y"}\n{"a": "x"\n', "line 2 is not JSON"),
        ("p.jsonl", "[1]\n", "line 1 holds list, not an object"),
        ("p.jsonl", '{"a": "x", "b": 7}\n', "line 1: b is 7, no text"),
        ("p.jsonl", '{"a": "x", "b": "y"}\n\n{"a": "x"}\n', "line 3 has no column 'b'"),
        ("p.tsv", "a\tb\n1\t2\n\t\t\n", "line 3 has 3 fields"),
        ("p.xlsx", "a,b\n", "is no table; expected .csv, .tsv or .jsonl"),
    ],
)
def test_a_wrong_table_is_named_with_its_place(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_pairs_table(write(tmp_path / name, text), "a", "b")
    assert "\n" not in str(caught.value)


# --- trivial answers ------------------------------------------------------------------------------


def test_lead_takes_turns_or_sentences() -> None:
    assert lead("#A#: One. Two.\n\n#B#: Three.\n#A#: Four.\n#B#: Five.") == (
        "#A#: One. Two. #B#: Three. #A#: Four."
    )
    assert lead("One is here. Two is there. Three is gone. Four is new.") == (
        "One is here. Two is there. Three is gone."
    )
    assert lead("") == lead(" \n ") == ""
    assert lead("One.\nTwo.", 1) == "One."


# --- bundled data ---------------------------------------------------------------------------------


def test_bundled_translations_are_many_and_plain() -> None:
    splits = read_multi30k(bundled_data() / "multi30k")
    assert len(splits.train) >= 140
    assert len(splits.dev) >= 20 and len(splits.test) >= 20
    every = [*splits.train, *splits.dev, *splits.test]
    for pair in every:
        for text in (pair.source, pair.target):
            assert 3 <= len(text.split()) <= 25, text
            assert text == text.strip() and text[-1] == "." and "  " not in text
            assert text == unicodedata.normalize("NFC", text)
    assert (
        len({pair.source for pair in every}) == len({pair.target for pair in every}) == len(every)
    )
    assert sum(not pair.target.isascii() for pair in every) > 60  # umlauts
    tokenizer = train_target_tokenizer([pair.target for pair in splits.train])
    targets = [pair.target for pair in every]
    assert tokenizer.decode(tokenizer.ids(targets)) == targets


def test_bundled_test_words_are_mostly_known_from_train() -> None:
    splits = read_multi30k(bundled_data() / "multi30k")
    known = {word for pair in splits.train for word in pair.target.split()}
    words = [word for pair in splits.test for word in pair.target.split()]
    assert sum(word in known for word in words) / len(words) > 0.75


def test_bundled_dialogues_are_laid_out_as_the_public_ones() -> None:
    splits = read_dialogsum(bundled_data() / "dialogsum")
    every = [*splits.train, *splits.dev, *splits.test]
    assert len(every) >= 24
    assert len(splits.test) >= 4
    for pair in every:
        turns = pair.source.split("\n")
        assert len(turns) >= 6
        assert all(turn.startswith(("#Person1#: ", "#Person2#: ")) for turn in turns)
        for summary in pair.references:
            assert len(summary.split()) < len(pair.source.split()) / 2
    assert all(len(pair.references) == 3 for pair in splits.test)
    assert len({pair.source for pair in every}) == len(every)


@pytest.mark.parametrize("name", ["multi30k", "dialogsum"])
def test_bundled_pairs_call_themselves_a_sample(name: str) -> None:
    first = (bundled_data() / name / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert "bundled sample" in first
