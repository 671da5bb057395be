"""Pairs of texts to translate or to summarize: public data sets, own files, trivial answers.

In: Multi30k, DialogSum, two parallel files, or two columns of a table. Out: `TextPair`s in the
order of the files, their text as it stands.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minibert.corpus import split_sentences
from minibert.errors import InputError
from minibert.files import OPENERS, ending, find_packed, read_lines, table_kind
from minibert.tasks.tables import Row, column, read_table, stray_quotes


class TextPair(NamedTuple):
    """One example; `references` are the right answers, of which there may be several in a test."""

    id: str
    source: str
    references: tuple[str, ...]

    @property
    def target(self) -> str:
        """The answer that is trained on: the first."""
        return self.references[0]


@dataclass(frozen=True)
class PairSplits:
    """The examples of a data set, with what the reader noticed."""

    train: list[TextPair]
    dev: list[TextPair]
    test: list[TextPair]
    source: str
    notes: tuple[str, ...] = ()


# --- public data sets -----------------------------------------------------------------------------


def read_multi30k(folder: Path, source: str = "en", target: str = "de") -> PairSplits:
    """Reads Multi30k (Elliott et al. 2016): `train`, `val` and `test_2016_flickr`, line by line.

    Args:
        folder: holds `train.en`, `train.de` and so on, plain or packed.
        source, target: endings of the files: en, de, fr or others that are there.

    Raises:
        InputError: a missing file, or two languages with different numbers of lines.
    """
    pairs = {
        split: read_parallel_files(
            _present(folder, [f"{split}.{source}"]), _present(folder, [f"{split}.{target}"]), split
        )
        for split in ("train", "val", "test_2016_flickr")
    }
    return _splits(pairs["train"], pairs["val"], pairs["test_2016_flickr"], folder)


def read_dialogsum(folder: Path) -> PairSplits:
    """Reads DialogSum (Chen et al. 2021): dialogues, their turns on lines, and summaries.

    A dialogue of the test set has three summaries, in rows `test_<n>_1` to `_3`; they become the
    references of one example.

    Args:
        folder: holds `dialogsum_{train,validation,test}.csv`, or without `dialogsum_`, plain or
            packed, with the columns id, dialogue and summary.

    Raises:
        InputError: a missing file or column, or rows of different lengths.
    """
    found = {}
    for split in ("train", "validation", "test"):
        path = _present(folder, [f"dialogsum_{split}.csv", f"{split}.csv"])
        columns = dict.fromkeys(("id", "dialogue", "summary"), "a column of DialogSum")
        rows = [row.values for row in _rows(path, columns)]
        pairs = [TextPair(row["id"], row["dialogue"], (row["summary"],)) for row in rows]
        found[split] = _join_references(pairs) if split == "test" else pairs
    return _splits(found["train"], found["validation"], found["test"], folder)


def _join_references(pairs: list[TextPair]) -> list[TextPair]:
    """Rows of one dialogue, `<name>_1`, `<name>_2` ..., made one example."""
    joined: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        name, _, number = pair.id.rpartition("_")
        is_numbered = number.isdigit() and name.count("_") > 0  # test_0_1, but not test_0
        key = (name if is_numbered else pair.id, pair.source)
        joined.setdefault(key, []).append(pair.target)
    return [TextPair(name, text, tuple(found)) for (name, text), found in joined.items()]


def _splits(
    train: list[TextPair], dev: list[TextPair], test: list[TextPair], folder: Path
) -> PairSplits:
    kept, notes = drop_empty(train)
    if not kept:
        raise InputError(f"{folder}: no pair to train on has two texts")
    parts = [
        f"{len(kept):,} pairs to train on, {len(dev):,} to choose by, {len(test):,} to test on"
    ]
    several = max((len(pair.references) for pair in test), default=1)
    parts += [f"up to {several} references of a test text"] if several > 1 else []
    parts += notes
    return PairSplits(kept, dev, test, str(folder), tuple(parts))


def drop_empty(pairs: list[TextPair]) -> tuple[list[TextPair], list[str]]:
    """The pairs with text on both sides, and a note for each kind that was dropped."""
    sources = sum(not pair.source.strip() for pair in pairs)
    targets = sum(bool(pair.source.strip()) and not pair.target.strip() for pair in pairs)
    kept = [pair for pair in pairs if pair.source.strip() and pair.target.strip()]
    notes = [f"{sources:,} with an empty source dropped from training"] if sources else []
    notes += [f"{targets:,} with an empty target dropped from training"] if targets else []
    return kept, notes


# --- own files ------------------------------------------------------------------------------------


def read_parallel_files(source: Path, target: Path, name: str = "") -> list[TextPair]:
    """Two files whose lines belong together, plain or packed; ids are line numbers from 1.

    Args:
        name: put before the line number in the ids.

    Raises:
        InputError: different numbers of lines, both given; a missing, damaged or non-UTF-8 file.
    """
    sources, targets = _lines_of(source), _lines_of(target)
    if len(sources) != len(targets):
        raise InputError(
            f"{source} has {len(sources):,} lines, but {target} has {len(targets):,}; "
            f"line i of one must belong to line i of the other"
        )
    prefix = f"{name}/" if name else ""
    both = enumerate(zip(sources, targets, strict=True), 1)
    return [TextPair(f"{prefix}{i}", text, (wanted,)) for i, (text, wanted) in both]


_PARTS = {
    "train": ("train",),
    "dev": ("val", "dev", "valid", "validation"),
    "test": ("test_2016_flickr", "test"),
}


def read_parallel_folder(
    folder: Path, source: str, target: str
) -> tuple[list[TextPair], list[TextPair] | None, list[TextPair] | None]:
    """train, dev and test of a folder with `train.<source>`, `train.<target>` and so on.

    A dev split may be called val, dev, valid or validation; it and the test may be missing.

    Raises:
        InputError: no train, a part in one of the languages alone, or two files with different
            numbers of lines.
    """
    found: list[list[TextPair] | None] = []
    for names in _PARTS.values():
        both = [(n, f"{n}.{end}") for n in names for end in (source, target)]
        there = [name for name, file in both if find_packed(folder, file)]
        name = there[0] if there else names[0]
        if not there and name != "train":
            found.append(None)
            continue
        first, second = (_present(folder, [f"{name}.{end}"]) for end in (source, target))
        found.append(read_parallel_files(first, second, name))
    train, dev, test = found
    assert train is not None
    return train, dev, test


def is_table(path: Path) -> bool:
    """Whether a file is a table of columns by its name: CSV, TSV or JSONL, plain or packed."""
    return _kind(path) is not None


def read_pairs_table(
    path: Path, source_column: str, target_column: str, notes: list[str] | None = None
) -> list[TextPair]:
    """Two columns of a CSV, TSV or JSONL file, plain or packed; ids are an `id` column or rows.

    Where a row's id is empty it is the row's number, from 1.

    Args:
        notes: gets a line about each thing noticed.

    Raises:
        InputError: another kind of file, a missing column, a ragged row, or a value that is no
            text, each with its place.
    """
    columns = {source_column: "--text-column", target_column: "--target-column"}
    read = _rows(path, columns)
    if notes is not None:
        notes += stray_quotes(path, read)
    rows = [row.values for row in read]
    return [
        TextPair(_id_of(row, i), row[source_column], (row[target_column],))
        for i, row in enumerate(rows, 1)
    ]


def _id_of(row: dict[str, Any], number: int) -> str:
    given = row.get("id")
    return str(number if given in (None, "") else given)


def _present(folder: Path, names: list[str]) -> Path:
    """The first of some files that is there, plain or packed."""
    for name in names:
        if path := find_packed(folder, name):
            return path
    raise InputError(f"{folder} lacks {names[0]} (or {names[0]} with {', '.join(OPENERS)})")


def _lines_of(path: Path) -> list[str]:
    """Lines as they stand; only "\\n" and "\\r\\n" end one."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    lines = read_lines(path)
    if lines[-1] == "":
        lines.pop()
    return lines


def _kind(path: Path) -> str | None:
    """As `table_kind`; a file that is called .json is taken for JSON lines, too."""
    return ".jsonl" if ending(path) == ".json" else table_kind(path)


def _rows(path: Path, columns: dict[str, str]) -> list[Row]:
    """The rows of a table, each with a text in these columns.

    Args:
        columns: their names -> the flag that names them.

    Raises:
        InputError: no table, no rows, or one without a column or a text there (its line is named).
    """
    kind = _kind(path)
    if kind is None:
        raise InputError(f"{path} is no table; expected .csv, .tsv or .jsonl, plain or packed")
    rows = read_table(path, kind=kind)
    if not rows:
        raise InputError(f"{path} has no rows")
    for row, (name, flag) in itertools.product(rows, columns.items()):
        value = column(row, name, path, flag)
        if not isinstance(value, str):
            raise InputError(f"{path}, line {row.line}: {name} is {value!r}, no text")
    return rows


# --- trivial answers ------------------------------------------------------------------------------


def lead(text: str, count: int = 3) -> str:
    """The first lines of a text, such as turns of a dialogue; of a single line its first sentences.

    With three it is the lead-3 baseline of summarization. Lines are joined by spaces.
    """
    parts = [line.strip() for line in text.split("\n") if line.strip()]
    if len(parts) == 1:
        parts = split_sentences(parts[0])
    return " ".join(parts[:count])
