"""Files that are there whole or not at all, JSON that explains itself, what is bundled."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import errno
import gzip
import io
import json
import lzma
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from minibert.errors import InputError


def bundled_data() -> Path:
    """The folder of bundled samples: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "data"
    return inside if inside.is_dir() else package.parent / "data"


def bundled_models() -> Path:
    """The folder of the models that travel inside the package, a folder each."""
    return Path(__file__).parent / "models"


def model_path(name: str | Path) -> Path:
    """A model folder as it is named; where there is none, the bundled model of that name."""
    path = Path(name)
    inside = bundled_models() / path
    is_name = len(path.parts) == 1 and not path.exists()
    return inside if is_name and inside.is_dir() else path


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def listed(given: str | Path | Iterable[str | Path]) -> list[str]:
    """One name or path, or several, as a list of strings."""
    return list(map(str, [given] if isinstance(given, (str, Path)) else given))


OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_DECODERS = {".xz": lzma.LZMADecompressor, ".bz2": bz2.BZ2Decompressor}  # of one stream
_PACKED = 1 << 17  # bytes read at a time


def is_compressed(path: Path) -> bool:
    """Whether a file is read through a decompressor, which knows no way into its middle."""
    return path.suffix.lower() in OPENERS


def ending(path: Path) -> str:
    """A file name's ending in lower case, that of compression aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


class _Streams(io.RawIOBase):
    """What is packed in a file of one or more streams, as parallel packers write it.

    The standard library's files of these kinds take a damaged later stream for the end.
    """

    def __init__(self, path: Path, decoder: Callable[[], Any]) -> None:
        self._file, self._new, self._decoder = path.open("rb"), decoder, decoder()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer from its start; 0 at the end.

        Raises:
            EOFError: a stream is cut off.
            lzma.LZMAError, OSError: it is damaged, or no stream.
        """
        unpacked = b""
        while not unpacked:
            packed = b""
            if self._decoder.eof:
                packed = (self._decoder.unused_data or self._file.read(_PACKED)).lstrip(b"\0")
                while not packed:  # zeros may fill a file up
                    if not (packed := self._file.read(_PACKED)):
                        return 0
                    packed = packed.lstrip(b"\0")
                self._decoder = self._new()
            elif self._decoder.needs_input and not (packed := self._file.read(_PACKED)):
                raise EOFError("it ends within a stream")
            unpacked = self._decoder.decompress(packed, len(buffer))
        buffer[: len(unpacked)] = unpacked
        return len(unpacked)


def find_packed(folder: Path, name: str) -> Path | None:
    """A file of a folder, plain or packed; None where it is not there."""
    every = (folder / f"{name}{end}" for end in ("", *OPENERS))
    return next((path for path in every if path.is_file()), None)


def open_bytes(path: Path) -> IO[bytes]:
    """A file to read, through the decompressor that its name asks for."""
    ending = path.suffix.lower()
    if ending in _DECODERS:
        return io.BufferedReader(_Streams(path, _DECODERS[ending]), _PACKED)
    handle: IO[bytes] = OPENERS.get(ending, open)(path, "rb")
    return handle


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, also .gz, .xz or .bz2; a byte-order mark is dropped.

    Line ends stay as they are: only "\n" (and "\r\n") may be meant to end a line.

    Raises:
        InputError: the file is missing, damaged or not UTF-8 (line and byte are named).
    """
    try:
        with open_bytes(path) as handle:
            content = handle.read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return decoded(content, str(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file as `read_text` reads it, without their ends.

    Raises:
        InputError: as there, or CR alone ends its lines.
    """
    content = read_text(path)
    check_line_ends(content, str(path))
    return [line.removesuffix("\r") for line in content.split("\n")]


def check_line_ends(content: str, place: str) -> None:
    """Raises InputError for lines that CR alone ends, as of old Macs, which would be one line."""
    if "\n" not in content and "\r" in content.strip():
        raise InputError(
            f"{place} has CR as its line end, which would leave one long line; convert it with "
            rf"tr '\r' '\n'"
        )


UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # how such a file begins


def decoded(content: bytes, place: str) -> str:
    """UTF-8 as text, without a byte-order mark.

    Raises:
        InputError: it is not UTF-8; line and byte of `place` are named.
    """
    if content.startswith(UTF16):
        raise InputError(f"{place} looks like UTF-16; convert it to UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{place}, line {line}: byte {error.start} is not UTF-8") from None


FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what a user may fill of it
TABLES = (".csv", ".tsv", ".jsonl")


def table_kind(path: Path) -> str | None:
    """One of `TABLES`, by a file's name, packed or not; None where the name is of no table."""
    kind = ending(path)
    return kind if kind in TABLES else None


_SURROGATE = re.compile("[\ud800-\udfff]")


def whole_characters(text: str) -> str:
    """A text with U+FFFD for each half of a surrogate pair, which JSON can hold and UTF-8 cannot.

    Its length stays, so that offsets hold.
    """
    return _SURROGATE.sub("\ufffd", text)


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Reads one JSON object from a file.

    Raises:
        InputError: missing file (with `hint`), or a file that holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors may leave a mark
    except FileNotFoundError:
        raise InputError(f"{path} does not exist ({hint})") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder ({hint})") from None
    except NotADirectoryError:
        raise InputError(f"{path.parent} is not a folder ({hint})") from None
    except (ValueError, RecursionError) as error:  # JSON or UTF-8
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


@contextlib.contextmanager
def long_csv_fields() -> Iterator[None]:
    """While open, the csv module takes fields of any length; by itself it stops at 128 KiB."""
    limit = csv.field_size_limit(1 << 30)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def sync(path: Path) -> None:
    """Brings a file onto the disk, or a folder's names: a power cut leaves what is there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary_path)`, syncs, then renames: the file is whole or not there."""
    # No other writer's: another thread's, or that of an equal number on a shared disk.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary) and error.filename2 is None:
            error.filename = str(path)  # the name that was asked for
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, whole or not at all.

    Names of files need not be UTF-8; what of them is none stands as an escape, which JSON reads as
    it was.
    """
    text = _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON as `write_text`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object a line as `write_text`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
