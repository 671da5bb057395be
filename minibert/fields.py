"""What a field of settings is: its help and choices, its flag, and which values fit it.

The settings themselves stand in `settings.py`. Importable without torch.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from minibert.errors import InputError, did_you_mean


def setting(default: Any, help: str, choices: tuple[str, ...] = (), optional: str = "") -> Any:
    """A dataclass field with what its flag needs.

    Args:
        help: one line, with the unit.
        choices: the only values accepted.
        optional: the value of the bare flag, for one that may stand alone.
    """
    metadata = {"help": help, "choices": choices, "optional": optional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Default(int):
    """A number that stands where the user has given none; a recipe may replace it."""


class DefaultText(str):
    """A word that stands where the user has given none; a recipe may replace it."""


def check_fields(kind: type[Any], values: dict[str, Any], source: str) -> None:
    """Compares values, by name, with the fields of a dataclass.

    Raises:
        InputError: an unknown name (the nearest one is offered) or a value of another type.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{source}: unknown key {name!r}{did_you_mean(name, known)}")
        if not _fits(value, str(known[name].type)):
            expected = re.sub(r"Literal\[(.*)]", r"\1", str(known[name].type))
            raise InputError(f"{source}: {name} is {value!r}, expected {expected}")


def flag(name: str) -> str:
    """A field's name as it is typed: max_steps -> --max-steps."""
    return "--" + name.replace("_", "-")


def without_paths(value: Any) -> Any:
    """A path, or those of a list, as strings; else the value itself."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value may stand for a field's annotation, such as "int | None"."""
    for part in annotation.split(" | "):
        if part == "None" and value is None:
            return True
        if part == "bool" and isinstance(value, bool):
            return True
        if part == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if part == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return True
        if part == "str" and isinstance(value, str):
            return True
        if part == f"Literal[{value!r}]":
            return True
        if part == "list[str]" and isinstance(value, list):
            return all(isinstance(v, str) for v in value)
        if part == "tuple[str, ...]" and isinstance(value, tuple):
            return all(isinstance(v, str) for v in value)
    return False
