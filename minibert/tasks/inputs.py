"""Tables of what is to be answered: each row as a line that a task's `parse_line` reads.

Beside that, what is no list of texts to answer though its lines look so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.files import read_text
from minibert.tasks.tables import Row, column, json_values, kind_of, read_table, row_of

# The names of a row's columns -> key of the object that `parse_line` reads -> column.
Columns = Callable[[Collection[str]], dict[str, str]]
_FLAGS = ("--text-column", "--text-pair-column")
_TAG = re.compile(r"O|[BIESLUMW]-.+")


def read_inputs(path: Path, columns: Columns) -> list[tuple[int, str]]:
    """(line, what `parse_line` reads) of each row of a table.

    A line of JSON that is no object, such as a list of two texts, stays as it is.

    Raises:
        InputError: the table cannot be read, or a row lacks a column or has no text there.
    """
    if kind_of(path) != ".jsonl":
        return [(row.line, _picked(path, row, columns)) for row in read_table(path)]
    found = []
    for line, value in json_values(path, read_text(path)):
        if isinstance(value, dict):
            text = _picked(path, row_of(line, value), columns)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
        found.append((line, text))
    return found


def holds_tags(content: str) -> bool:
    """Whether a file is columns to learn tags from: every line ends in a tag, one in an entity's.

    A single line may be a text.
    """
    lines = [line.split() for line in content.split("\n") if line[:10] != "-DOCSTART-"]
    rows = [fields for fields in lines if fields]
    is_whole = all(len(fields) > 1 and _TAG.fullmatch(fields[-1]) for fields in rows)
    return len(rows) > 1 and is_whole and any(fields[-1] != "O" for fields in rows)


def is_json(content: str) -> bool:
    """Whether a file is JSON as a whole, over several lines or a list of objects."""
    text = content.strip()
    if text[:1] not in ("[", "{"):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text or (isinstance(value, list) and any(isinstance(v, dict) for v in value))


def _picked(path: Path, row: Row, columns: Columns) -> str:
    """The columns of a row that the task reads, as JSON."""
    picked = {}
    for (key, name), flag in zip(columns(row.values).items(), _FLAGS, strict=False):
        value = column(row, name, path, flag)
        fits = value is None or isinstance(value, str) or (key == "tokens" and _is_words(value))
        if not fits:
            raise InputError(f"{path}, line {row.line}: {name!r} holds {value!r:.60}, no text")
        picked[key] = "" if value is None else value
    return json.dumps(picked)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
