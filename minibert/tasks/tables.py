"""Tables of examples: CSV, TSV and JSONL, plain or packed, with the line of every fault.

In: a file. Out: rows by column name, each with where it stands.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.errors import InputError
from minibert.fields import flag
from minibert.files import (
    TABLES,
    check_line_ends,
    ending,
    long_csv_fields,
    read_text,
    table_kind,
    whole_characters,
)

# Whole fields: in quotes, those within doubled; in quotes that a blank precedes.
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_AFTER_BLANK = re.compile(r'\s+"[^"]+"\s*')


class Row(NamedTuple):
    """One row. line: where it begins, from 1. values: by column name."""

    line: int
    values: dict[str, Any]


def kind_of(path: Path) -> str:
    """One of `TABLES`, by the name, packed or not.

    Raises:
        InputError: another name.
    """
    kind = table_kind(path)
    if kind is None:
        more = "; JSON lines are named .jsonl" if ending(path) == ".json" else ""
        raise InputError(
            f"{path} is not a table; expected {', '.join(TABLES)}, also .gz, .xz or .bz2{more}"
        )
    return kind


def read_table(path: Path, columns: Sequence[str] = (), kind: str | None = None) -> list[Row]:
    """The rows of a table.

    A CSV may quote its fields (RFC 4180); in a TSV quotes are text, as in GLUE's files. A JSONL
    file holds one object a line.

    Args:
        columns: names of the columns of a CSV or TSV without a header; else its first line is one.
        kind: one of `TABLES`; by default the name tells.

    Raises:
        InputError: a row of more or fewer fields than the header, or a line that is no object.
    """
    kind, text = kind or kind_of(path), read_text(path)
    if kind == ".jsonl":
        return list(_objects(path, text))
    names = list(columns)
    if kind == ".tsv":
        check_line_ends(text, str(path))
    if not names:
        _check_separator(path, text.lstrip("\r\n").partition("\n")[0], kind)
    rows = list(_fields(path, text, kind))
    if not names:
        if not rows:
            raise InputError(f"{path} is empty; expected a header line and rows")
        names = [name.strip() for name in rows.pop(0)[1]]
        # Spreadsheets leave columns without a name behind, which nothing can ask for.
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise InputError(f"{path}: two columns are called {twice[0]!r}")
    for line, fields in rows:
        if len(fields) != len(names):
            count = f"{len(fields)} field{'s' * (len(fields) != 1)}"
            raise InputError(
                f"{path}, line {line} has {count}, expected {len(names)}: {', '.join(names)}"
            )
    return [Row(line, dict(zip(names, fields, strict=True))) for line, fields in rows]


def stray_quotes(path: Path, rows: Sequence[Row]) -> list[str]:
    """A note where quotes seem meant to hold a field together, but are text as the file is read.

    A spreadsheet quotes fields of a TSV, too, and doubles the quotes within; in a CSV quotes after
    a blank are text.
    """
    kind = table_kind(path)
    if kind not in (".csv", ".tsv"):
        return []

    def is_stray(field: str) -> bool:
        if kind == ".csv":
            return _AFTER_BLANK.fullmatch(field) is not None
        return '""' in field[1:-1] and _QUOTED.fullmatch(field) is not None

    lines = [row.line for row in rows if any(map(is_stray, row.values.values()))]
    if not lines:
        return []
    where = f"{len(lines):,} rows of {path.name} (the first in line {lines[0]})"
    if kind == ".tsv":
        return [f"{where} hold fields in quotes, which are text in a .tsv; save it as .csv"]
    return [f"{where} hold quotes after a blank, which are text; leave no blank after a comma"]


def _check_separator(path: Path, header: str, kind: str) -> None:
    """Refuses a header line that is parted by something else, as spreadsheets write it."""
    own = "\t" if kind == ".tsv" else ","
    other = next((mark for mark in ";\t,|" if mark in header), "")
    if other and own not in header:
        shown = "tabs" if other == "\t" else f"{other!r}"
        raise InputError(
            f"{path}: its columns are parted by {shown}; expected "
            f"{'tabs' if kind == '.tsv' else 'commas (or tabs, and the name .tsv)'}"
        )


def _fields(path: Path, text: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each row that is not blank."""
    if kind == ".tsv":
        for line, row in enumerate(text.split("\n"), 1):
            if row.strip() or "\t" in row:  # tabs part fields, though they be empty
                yield line, row.removesuffix("\r").split("\t")
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        with long_csv_fields():
            for fields in reader:
                if len(fields) > 1 or fields == [""] or "".join(fields).strip():  # "" is a field
                    yield line, fields
                line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}") from None


def json_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line of JSON that is not blank.

    Raises:
        InputError: a line that is not JSON.
    """
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:  # such as a number of 5,000 digits
            raise InputError(f"{path}, line {line} is not JSON: {error}") from None
        yield line, value


def _objects(path: Path, text: str) -> Iterator[Row]:
    for line, value in json_values(path, text):
        if not isinstance(value, dict):
            raise InputError(f"{path}, line {line} holds {type(value).__name__}, not an object")
        yield row_of(line, value)


def row_of(line: int, values: dict[str, Any]) -> Row:
    """An object of JSON as a row, of whole characters."""
    return Row(line, {name: _whole(value) for name, value in values.items()})


def _whole(value: Any) -> Any:
    """A value without halves of surrogate pairs, of a list each."""
    if isinstance(value, list):
        return [whole_characters(v) if isinstance(v, str) else v for v in value]
    return whole_characters(value) if isinstance(value, str) else value


def none_to_train_on(folder: Path, names: Sequence[str]) -> InputError:
    """What is wrong with a published set without training examples: no file, or no labels.

    Args:
        names: of the files that may hold them.
    """
    if there := next((name for name in names if (folder / name).is_file()), None):
        return InputError(
            f"{folder / there} holds no labelled example; expected the published columns"
        )
    return InputError(f"{folder} holds none of {', '.join(names)} to train on")


def check_columns_differ(**columns: str | None) -> None:
    """Refuses one column in two roles, named or by default: the answer would be in the question.

    Args:
        columns: their names by setting, as in text_column="text"; None: there is none.

    Raises:
        InputError: two are the same.
    """
    for (first, name), (second, other) in itertools.combinations(columns.items(), 2):
        if name is not None and name == other:
            raise InputError(
                f"{flag(first)} and {flag(second)} are both {name!r}; name another for one of them"
            )


def column(row: Row, name: str, path: Path, flag: str) -> Any:
    """A row's value in a column.

    Args:
        flag: that names the column.

    Raises:
        InputError: there is no such column; those there are get named.
    """
    if name not in row.values:
        there = ", ".join(row.values) or "none"
        raise InputError(
            f"{path}, line {row.line} has no column {name!r} ({flag}); its columns are {there}"
        )
    return row.values[name]
