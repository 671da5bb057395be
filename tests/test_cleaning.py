"""Cleaning a corpus: what a line loses, which documents stay, and what is never written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert.cleaning import _Keys, clean_corpus, clean_line, folded
from minibert.cli import main
from minibert.corpus import ReaderOptions
from minibert.errors import InputError

LONG = "The quick brown fox jumps over the lazy dog while the cat looks on from the wall. " * 4


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("Bad.<br /><br />Very bad.<BR>Really.", ["Bad.", "Very bad.", "Really."]),
        ("Tom &amp; Jo &amp;lt; it&#39;s", ["Tom & Jo < it's"]),
        ("AT&T; R&D and &unknownthing;", ["AT&T; R&D and &unknownthing;"]),
        ("See &copyright; or &notable;, &copy;", ["See &copyright; or &notable;, ©"]),
        ("Kyoto () is ( , ) a city ().", ["Kyoto is a city."]),
        ("call main() (...) (?) [ ] now", ["call main() (...) (?) now"]),
        ("a  b\u00a0c\t d", ["a b c d"]),
        ("a\x00b \x96 c\u200bd\ufeff", ["ab \u2013 cd"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("History.", ["History."]),
        (" <br /> () ", []),
    ],
)
def test_a_line_loses_the_remains_of_markup(line: str, lines: list[str]) -> None:
    assert clean_line(line) == lines


PARTS = ["&", "amp;", "lt;", "<br", " />", "(", ")", "[", "]", ",", " ", "\x00", "\u0301", "e", "#"]


@given(st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=["Cs"]), max_size=12))
def test_cleaning_what_is_clean_changes_nothing(parts: list[str]) -> None:
    lines = clean_line("".join(parts).replace("\n", ""))
    assert [again for line in lines for again in clean_line(line)] == lines


@pytest.mark.parametrize(
    "line",
    [
        "word" + " " * 30_000 + "end (x)",
        "\t" * 30_000 + "[1]",
        "(" + " ," * 15_000 + "[x",
        "( " * 15_000,
        "(" * 8_000 + ")" * 8_000,
        "&" + "amp;" * 8_000,
        "a" + "\u0301\u0323" * 40_000,
    ],
    ids=[
        *("spaces", "tabs", "marks", "open brackets", "nested brackets", "nested entities"),
        "accents",
    ],
)
def test_time_grows_with_the_line_and_not_with_its_square(line: str) -> None:
    clean_line("warm (up)")
    started = time.process_time()
    clean_line(line)
    folded(line)
    assert time.process_time() - started < 1


def test_marks_on_one_letter_stay_up_to_thirty() -> None:
    hats = "\u0302" * 29
    clean = [f"x \u1ead{hats[1:]} b"]  # dot and first hat compose
    assert clean_line(f"x a\u0323{hats} b") == clean
    assert clean_line(f"x a\u0323{hats}\u0302\u0302 b") == clean


def documents_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")


def test_every_document_stands_once(tmp_path: Path) -> None:
    texts = [
        "One fine day.\nIt rained.",
        "ONE fine day... it rained!",  # the same letters
        "Another.",
        "***",  # no letter
        LONG + "It ends here.",
        LONG + "It ends there.",  # the same start
        "Another one.",
    ]
    (tmp_path / "in.txt").write_text("\n\n".join(texts), encoding="utf-8")
    counts = clean_corpus([str(tmp_path / "in.txt")], tmp_path / "out.txt")
    assert documents_of(tmp_path / "out.txt") == [
        texts[0],
        "Another.",
        (LONG + "It ends here."),
        "Another one.",
    ]
    assert (counts.documents_in, counts.documents_out) == (7, 4)
    assert (counts.duplicates, counts.same_start, counts.empty) == (1, 1, 1)
    assert counts.bytes == (tmp_path / "out.txt").stat().st_size
    assert counts.words == len((tmp_path / "out.txt").read_text().split())


def test_same_start_can_be_off(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(f"{LONG}a\n\n{LONG}b\n", encoding="utf-8")
    counts = clean_corpus([str(tmp_path / "in.txt")], tmp_path / "out.txt", same_start=0)
    assert counts.documents_out == 2


def test_excluded_texts_are_never_written(tmp_path: Path) -> None:
    for name, texts in {
        "unsup": ["Good &amp; long.<br /><br />See it.", LONG + "Mine.", "Kept."],
        "test": ["good & long. See it", LONG + "Another end."],
    }.items():
        (tmp_path / name).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / name / f"{number}.txt").write_text(text + "\n\nlast", encoding="utf-8")
    (tmp_path / "test" / "0.txt").write_text("good & long.\nSee it: LAST", encoding="utf-8")
    counts = clean_corpus(
        [str(tmp_path / "unsup")],
        tmp_path / "out.txt",
        exclude=[str(tmp_path / "test")],
        options=ReaderOptions(document_per_file=True),
    )
    assert documents_of(tmp_path / "out.txt") == ["Kept.\nlast"]
    assert (counts.excluded, counts.documents_out) == (2, 1)


def test_one_path_or_several_are_taken_as_strings_or_paths(tmp_path: Path) -> None:
    path, other = tmp_path / "in.txt", tmp_path / "b.txt"
    path.write_text("Storm.\n\nRiver.\n")
    other.write_text("River.\n")
    for inputs, exclude in ((path, other), (str(path), str(other)), ([path], [other])):
        clean_corpus(inputs, tmp_path / "out.txt", exclude=exclude, overwrite=True)
        assert documents_of(tmp_path / "out.txt") == ["Storm."]


def test_a_document_over_many_pieces_is_one(tmp_path: Path) -> None:
    """The reader hands a long document on in parts of a million characters."""
    long = "\n".join(f"Sentence {i} of many." for i in range(80_000))
    (tmp_path / "in.txt").write_text(f"{long}\n\nshort\n\n{long}\n", encoding="utf-8")
    counts = clean_corpus([str(tmp_path / "in.txt")], tmp_path / "out.txt", same_start=0)
    assert documents_of(tmp_path / "out.txt") == [long, "short"]
    assert counts.duplicates == 1


def test_keys_are_eight_bytes_each_and_found_again() -> None:
    keys = _Keys()
    values = np.random.default_rng(0).integers(0, 2**63, 40_000).tolist()
    for value in values:
        keys.add(value)
    assert all(value in keys for value in values)
    assert 5 not in keys
    assert keys._sorted.nbytes == 8 * (len(set(values)) - len(keys._newest))


def test_folding_keeps_letters_and_digits() -> None:
    assert folded("Straße, No. 7_b!") == "strasseno7b"
    assert folded("\u0915\u0940 \u2013 \u201c7\u201d") == "\u0915\u09407"  # its vowel sign, too
    assert folded("Cafe\u0301") == folded("CAF\u00c9") != folded("Cafe")


def test_the_command_prints_its_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"body": "Hello there."}\n{"body": "hello there"}\n')
    argv = ["clean-corpus", "in.jsonl", "--text-field", "body", "--output", "new/out.txt"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["documents_out"] == 1
    assert Path("new/out.txt").read_text() == "Hello there.\n"
    assert main(argv) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0
    Path("in").mkdir()
    Path("in/a.txt").write_text("Hello.")
    Path("in/b.html").write_text("<p>Hello.")
    assert main(["clean-corpus", "in", "--output", "from-folder.txt"]) == 0
    assert "1 other file(s) left out, by their names (.html 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.txt", "--output", "o.txt"], "INPUT gone.txt does not exist"),
        (["in.txt", "--output", "o.xz"], "does not end in .txt"),
        (["in.txt", "--output", "in.txt", "--overwrite"], "one of the files to read"),
        (["in.txt", "--output", "o.txt", "--exclude", "in.txt"], "none is left"),
        (["in.txt", "--output", "o.txt", "--exclude", "gone"], "--exclude gone does not exist"),
        (["in.txt", "--output", "o.txt", "--same-start", "-1"], "must be 0"),
    ],
)
def test_wrong_input_is_said_in_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("Hello there.\n")
    assert main(["clean-corpus", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_text_field_without_json_lines_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "in.txt"
    text.write_text("Good text.\n")
    with pytest.raises(InputError, match="--text-field body names a key of .jsonl, and INPUT"):
        clean_corpus([text], tmp_path / "out.txt", options=ReaderOptions(text_field="body"))


def test_a_failure_leaves_no_half_written_file(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"Good text.\n\n" + b"x " * 70_000 + b"\n\n\xff\xfe bad\n")
    with pytest.raises(InputError, match="not UTF-8"):
        clean_corpus([str(tmp_path / "in.txt")], tmp_path / "out.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
