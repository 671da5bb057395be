"""Files that are there whole or not at all, JSON that explains itself, the bundled samples."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minibert.errors import InputError


def bundled_data() -> Path:
    """The folder of bundled samples: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "data"
    return inside if inside.is_dir() else package.parent / "data"


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Reads one JSON object from a file.

    Raises:
        InputError: missing file (with `hint`), or a file that holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} does not exist ({hint})") from None
    except NotADirectoryError:
        raise InputError(f"{path.parent} is not a folder ({hint})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary_path)`, syncs, then renames: the file is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
