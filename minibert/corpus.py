"""Text files -> documents -> sentences.

In: `.txt`, `.jsonl` and WikiText's `.tokens` files, plain or compressed, folders or globs of them.
Out: documents as lists of sentences, in the order of the files, read in pieces so that neither a
file nor a document has to fit into memory, nor a line of `.txt` (one of `.jsonl` has to, as JSON
asks). `store.py` turns them into token ids once.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minibert.errors import InputError
from minibert.files import UTF16, ending, is_compressed, listed, open_bytes, whole_characters

READER_VERSION = 1  # part of every cache key: raise it when the same file gives other sentences
_DIGEST_WHOLE = 64 << 20  # bytes up to which a file is read whole to know it again
_DIGEST_BLOCKS = 1024  # and in how many blocks as much is read of a larger one
_BLOCK = 1 << 20  # bytes read at a time, and characters of a document handed on at a time
_HEAD = 1 << 16  # bytes that tell what a file is
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_OTHER_PACKED = tuple(".zst .zstd .zip .7z .rar .lz4 .lz .lzma .z .br .tar .tgz".split())
_OTHER_MAGIC = {b"PK\x03\x04": "zip", b"(\xb5/\xfd": "zstd"}  # packed, and not read
_DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error)
_ENDINGS_TOLD = 5  # of files that are left out
_OF_A_MODEL = {"tokenizer.json", "tokenizer_config.json", "config.json"}
_VOCABULARIES = {"vocab.txt", "merges.txt"}  # beside one of these
_JSON_OBJECT = re.compile(rb'\{[ \t]*"(?:[^"\\\n]|\\.)*"[ \t]*:')  # how one begins
_JSON = re.compile(r'\s*(\{\s*"|\[\s*["{\[])')  # over several lines, or a list of it or of texts
# WikiText (Merity et al. 2016): the line of an article's title; what stands before any heading; a
# mark within a word or number; a word that its publishers left out.
_TITLE = re.compile(r" *= (?!= )(.+?)(?<! =) = *")
_BEFORE_HEADING = re.compile(r" *(?:= )++")
_INNER_MARK = re.compile(r" @([-,.])@ ")
_UNKNOWN_WORD = re.compile(r" ?<unk>")
# Endings of files whose fields or markup would be read as prose.
_NO_TEXT = {".json": "JSON", ".csv": "a table", ".tsv": "a table", ".html": "HTML", ".htm": "HTML"}


@dataclass(frozen=True)
class ReaderOptions:
    """How text is cut into documents and sentences.

    one_sentence_per_line: a line is a sentence as it stands; otherwise lines are split.
    document_per_file: a file but `.jsonl` is one document; otherwise a blank line ends a document,
        of WikiText the next title.
    text_field: the key of the text in `.jsonl`, where every line is a document.
    encoding_errors: "strict" stops at bytes that are not UTF-8, "replace" reads them as U+FFFD.
    """

    one_sentence_per_line: bool = False
    document_per_file: bool = False
    text_field: str = "text"
    encoding_errors: str = "strict"


class Piece(NamedTuple):
    """A document, or the next part of a long one: its lines, and whether a document starts."""

    lines: list[str]
    starts_document: bool


def find_files(corpus: str | Path | Iterable[str | Path], flag: str = "--corpus") -> list[Path]:
    """The text files behind paths, folders and globs, in a fixed order, each once.

    Of what lies in a folder, names that begin with a dot are left out, and links are followed. Of
    what a glob matches, folders are left out.

    Args:
        corpus: one of these, or several.
        flag: what the paths were given as, for messages.

    Raises:
        InputError: nothing there, or a folder without `.txt` or `.jsonl` files, or with such a
            file that is packed otherwise than can be read.
    """
    found: dict[Path, Path] = {}
    for pattern in listed(corpus):
        if not pattern:
            raise InputError(f"{flag} '' names nothing; expected a file, folder or glob")
        path = Path(pattern)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = _files_below(path, flag)
            if not matches:
                raise InputError(
                    f"{flag} {path} holds no .txt, .jsonl or .tokens file (also .gz .xz .bz2)"
                )
        else:
            if path.exists():
                raise InputError(f"{flag} {path} is not a plain file; expected one, or a folder")
            named = sorted(Path(m) for m in glob.glob(pattern, recursive=True))
            for match in named:
                _refuse_broken(match, flag)
            matches = [m for m in named if m.is_file()]
            if not matches and named:
                raise InputError(
                    f"{flag} {pattern} matches no file, but folders, which a glob leaves out; name "
                    f"them, as the shell does without quotes, or their files, as in {pattern}/*.txt"
                )
            if not matches:
                raise InputError(f"{flag} {pattern} does not exist; expected a file or folder")
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def other_files(corpus: str | Path | Iterable[str | Path], flag: str = "--corpus") -> str:
    """What lies in the folders of a corpus and is no text by its name, for a line on the screen.

    Hidden files, run folders and vocabularies do not count. Empty where nothing else lies there.
    """
    folders = [Path(pattern) for pattern in listed(corpus) if Path(pattern).is_dir()]
    below = {path for folder in folders for paths in _walk(folder, flag) for path in paths}
    counts = Counter(
        ending(path) or "no ending" for path in below if path.is_file() and _kind(path) is None
    )
    most = [f"{name} {count:,}" for name, count in counts.most_common(_ENDINGS_TOLD)]
    more = ["..."] if len(counts) > _ENDINGS_TOLD else []
    told = f"{counts.total():,} other file(s) left out, by their names ({', '.join(most + more)})"
    return told if counts else ""


def _files_below(folder: Path, flag: str) -> list[Path]:
    """The text files of a folder in order, not hidden ones, run folders and vocabularies.

    Of a file that lies there unpacked as well, as `gzip -k` leaves it, the packed one is left out.

    Raises:
        InputError: as `_walk`, or a link that leads nowhere, or text that is packed otherwise.
    """
    found: list[Path] = []
    for paths in _walk(folder, flag):
        for path in paths:
            _refuse_unread(path, flag)
        paths = [path for path in paths if _kind(path) is not None]
        for path in paths:
            _refuse_broken(path, flag)
        plain = {path for path in paths if not is_compressed(path) and path.stat().st_size}
        twins = {path for path in paths if is_compressed(path) and path.with_suffix("") in plain}
        found += [path for path in paths if path.is_file() and path not in twins]
    return sorted(found)


def _walk(folder: Path, flag: str) -> Iterator[list[Path]]:
    """The files of each folder below one, not hidden ones, run folders and vocabularies.

    Links to folders are followed. Each folder is searched once, so that a circle of them ends.

    Raises:
        InputError: a folder that may not be searched.
    """

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"{flag} {error.filename} cannot be searched: {error.strerror}") from None

    seen = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or ("run.json" in names and _is_of_a_run(Path(place, "run.json"))):
            folders.clear()
            continue
        seen.add(real)
        if not _OF_A_MODEL.isdisjoint(names):  # also a vocabulary of the cache
            names = [name for name in names if name not in _VOCABULARIES]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield [Path(place, name) for name in names if not name.startswith(".")]


def _is_of_a_run(path: Path) -> bool:
    """Whether a run.json is one of ours: the file of a crawler may have that name, too."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"command", "settings"} <= found.keys()


def _refuse_broken(path: Path, flag: str) -> None:
    """Raises InputError for a link that leads nowhere."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{flag} {path} is a link to {os.readlink(path)}, which is gone")


def _refuse_unread(path: Path, flag: str) -> None:
    """Raises InputError for a text file of a folder that is packed in a way that is not read."""
    unpacked = path.with_suffix("")
    if (
        path.suffix.lower() in _OTHER_PACKED
        and _kind(unpacked) is not None
        and not unpacked.exists()
    ):
        raise InputError(
            f"{flag} {path} would be left out: {path.suffix} is not read; unpack it, or pack it as "
            f".gz, .xz or .bz2"
        )


def _kind(path: Path) -> str | None:
    """A file's kind of text by its name, compression endings aside; None for other files."""
    return {".txt": "txt", ".jsonl": "jsonl", ".tokens": "wikitext"}.get(ending(path))


def content_digest(path: Path) -> str:
    """A digest of a file: of all of it up to 64 MiB, else of its size and 64 MiB of it.

    These are 1,024 blocks spread evenly, the first and last included; an edit between them that
    keeps the size is not seen. When a file was written does not count: a copy is the same text.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        if size <= _DIGEST_WHOLE:
            return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
        digest = hashlib.sha256(str(size).encode())
        block = _DIGEST_WHOLE // _DIGEST_BLOCKS
        for i in range(_DIGEST_BLOCKS):
            handle.seek((size - block) * i // (_DIGEST_BLOCKS - 1))
            digest.update(handle.read(block))
    return digest.hexdigest()[:16]


def is_json_lines(path: Path) -> bool:
    """Whether every line of a file is a document."""
    return _kind(path) == "jsonl"


def check_text_field(field: str, files: Iterable[Path], flag: str) -> None:
    """Raises InputError for a `--text-field` that nothing is read by: no file is JSON lines.

    Args:
        flag: what the files were given as, for the message.
    """
    if field != ReaderOptions.text_field and not any(map(is_json_lines, files)):
        raise InputError(f"--text-field {field} names a key of .jsonl, and {flag} holds none")


def is_wikitext(path: Path) -> bool:
    """Whether a file is WikiText as it is published, with words and marks parted by spaces."""
    return _kind(path) == "wikitext"


def plain_line(line: str) -> str:
    """A line of WikiText as other text has it: no signs of headings, words as they were."""
    return _UNKNOWN_WORD.sub("", _INNER_MARK.sub(r"\1", _without_signs(line)))


def _without_signs(line: str) -> str:
    """A heading without the signs around it; another line as it is."""
    before = _BEFORE_HEADING.match(line)
    if before is None:
        return line
    start = before.end()
    end = last = len(line.rstrip(" "))
    while end - 2 > start and line.startswith(" =", end - 2):
        end -= 2
    return line if end == last else line[start:end]


def lines_from(path: Path, begin: int) -> Iterator[bytes]:
    """The whole lines after a place in a file, as they stand; one of `.txt` over 1 MiB in parts.

    Args:
        begin: bytes, 0 for a compressed file.

    Raises:
        InputError: a damaged file.
    """
    longest = -1 if is_json_lines(path) else _BLOCK
    try:
        with open_bytes(path) as handle:
            if begin:
                handle.seek(begin - 1)
                handle.readline(longest)  # the rest of a line
            while line := handle.readline(longest):
                yield line
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged: {error}") from None


def text_bytes(path: Path) -> int:
    """Size of a file's text in bytes; of a compressed file it is estimated as four times its own.

    English text shrinks to a quarter to a third; an estimate needs no pass over the file.
    """
    return path.stat().st_size * (4 if is_compressed(path) else 1)


def piece_bytes(piece: Piece) -> int:
    """Size of a piece's text in bytes, line ends included."""
    return len("".join(piece.lines).encode(errors="replace")) + len(piece.lines)


class ReadingError(InputError):
    """A file that cannot be read as it is; a flag of commands that read a corpus would help.

    Attributes:
        without_flag: the message for commands that lack the flag.
    """

    def __init__(self, message: str, flag: str) -> None:
        super().__init__(message + flag)
        self.without_flag = message


class EmptyFileError(InputError):
    """A file holds nothing but white space."""


def readable_files(files: list[Path]) -> tuple[list[Path], int]:
    """Looks at the head of every file; those that hold nothing are left out and counted.

    Raises:
        InputError: as `check_readable`; an empty file only where all are empty.
    """
    kept, empty = [], None
    for path in files:
        try:
            check_readable(path)
            kept.append(path)
        except EmptyFileError as error:
            empty = empty or error
    if not kept and empty:
        raise empty
    return kept, len(files) - len(kept)


def check_readable(path: Path) -> None:
    """Looks at the head of a file, blank space before it left out.

    Raises:
        InputError: it is empty, UTF-16, packed or JSON lines under another name, other JSON, a
            table or HTML, binary, or has lines that CR alone ends.
    """
    try:
        with open_bytes(path) as handle:
            head = handle.read(_HEAD)
            while head and not head.strip():
                head = handle.read(_HEAD)
    except _DAMAGE as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not head.strip():
        raise EmptyFileError(f"{path} is empty; expected text")
    if head.startswith(UTF16):
        raise InputError(f"{path} looks like UTF-16; convert it to UTF-8")
    for magic, name in (_MAGIC | _OTHER_MAGIC).items():
        if head.startswith(magic):
            how = "name it .gz, .xz or .bz2, or " if magic in _MAGIC else ""
            raise InputError(f"{path} is a {name} file; {how}unpack it")
    if head[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive; unpack it and name what it holds")
    if not is_json_lines(path) and _begins_with_json(head):
        raise InputError(f"{path} holds JSON lines; name it .jsonl, packed .jsonl.gz, to read them")
    kind = "JSON" if not is_json_lines(path) and _is_json(head) else _NO_TEXT.get(ending(path))
    if kind:
        raise InputError(
            f"{path} is {kind}, not plain text; expected that, or JSON lines named .jsonl with the "
            f'text under "text"'
        )
    control = sum(head.count(bytes([b])) for b in range(32) if b not in (0, 9, 10, 12, 13, 27))
    # Text holds next to no control bytes; a few NULs are a known blemish and are dropped later.
    if control > 0.01 * len(head) or head.count(0) > 0.1 * len(head):
        raise InputError(f"{path} is binary; expected UTF-8 text")
    if b"\n" not in head and b"\r" in head.strip():
        how = r"convert it with tr '\r' '\n'"
        raise InputError(f"{path} has CR as its line end, which would leave one long line; {how}")


def _begins_with_json(head: bytes) -> bool:
    """Whether the first line that is not blank is a JSON object, or begins as one and is cut."""
    line, line_end, _ = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if not _JSON_OBJECT.match(line):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return not line_end and len(head) >= _HEAD


def _is_json(head: bytes) -> bool:
    """Whether a file is JSON: of one value or several, on lines or not, as far as the head goes."""
    text = head.removeprefix(codecs.BOM_UTF8).decode(errors="replace").lstrip()
    if not _JSON.match(text):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        # Of a head that is cut, only the last token or string may be wrong.
        is_last = error.pos >= len(text) - 8 or error.msg.startswith("Unterminated string")
        return is_last and len(head) >= _HEAD
    except (ValueError, RecursionError):
        return False
    return not text[end:].strip() or _JSON.match(text[end:]) is not None


def _lines(path: Path, errors: str, longest: int | None) -> Iterator[str]:
    """Decoded lines without their ends; lines over `longest` characters come in parts."""
    parts, offset = [""], 0  # of the line that has not ended
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    begun = cut_before = False
    with open_bytes(path) as handle:
        while True:
            try:
                fresh = handle.read(_BLOCK)
            except _DAMAGE as error:
                raise InputError(f"{path} is damaged: {error}") from None
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(fresh, final=not fresh)
            except UnicodeDecodeError as error:
                at = offset - pending + error.start
                raise ReadingError(
                    f"{path}: byte {at} is not UTF-8 (0x{error.object[error.start]:02x}); "
                    f"convert it to UTF-8",
                    " or use --encoding-errors replace",
                ) from None
            if text and not begun:
                begun, text = True, text.removeprefix("\ufeff")
            offset += len(fresh)
            parts.append(text)
            if fresh and longest is None and "\n" not in text:
                continue  # joined once, at the end of the line
            *whole, rest = "".join(parts).split("\n")
            for line in whole:
                if not cut_before or line.strip():
                    yield line.removesuffix("\r")
                cut_before = False
            while longest is not None and len(rest) > longest:
                # A space to cut at is sought in the window; a line without one is cut anyway.
                cut = rest.rfind(" ", 1, longest)
                cut = cut if cut > 0 else longest
                if rest[:cut].strip():  # a blank part must not end the document
                    yield rest[:cut]
                    cut_before = True
                rest = rest[cut:]
            parts = [rest]
            if not fresh:
                if rest:
                    yield rest.removesuffix("\r")
                return


def read_pieces(path: Path, options: ReaderOptions) -> Iterator[Piece]:
    """The documents of one file, long ones in parts of about a million characters.

    Raises:
        InputError: bytes that are not UTF-8 (file and position), or JSON lines without the field.
    """
    if is_json_lines(path):
        yield from _json_documents(path, options)
        return
    wikitext = is_wikitext(path)
    lines: list[str] = []
    size, starts = 0, True
    for line in _lines(path, options.encoding_errors, longest=_BLOCK):
        ends = _TITLE.fullmatch(line) is not None if wikitext else not line.strip()
        if ends and not options.document_per_file:
            if lines:
                yield Piece(lines, starts)
            lines, size, starts = [], 0, True
        if wikitext:
            line = plain_line(line)
        if not line.strip():
            continue
        lines.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield Piece(lines, starts)
            lines, size, starts = [], 0, False
    if lines:
        yield Piece(lines, starts)


def _json_documents(path: Path, options: ReaderOptions) -> Iterator[Piece]:
    for number, line in enumerate(_lines(path, options.encoding_errors, longest=None), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}") from None
        text = _text_of(record, options.text_field, f"{path}, line {number}")
        text = whole_characters(text)
        yield Piece([part for part in text.splitlines() if part.strip()], True)


def _text_of(record: Any, field: str, where: str) -> str:
    """The text of a JSON line's document."""
    if isinstance(record, dict) and field not in record:
        raise ReadingError(
            f"{where} has no text under {field!r} (it has: {', '.join(record)}); "
            f"rename the key to {field!r}",
            " or name it with --text-field",
        )
    text = record[field] if isinstance(record, dict) else record
    if text is record or not isinstance(text, str):
        found = json.dumps(text)[:40]
        at = "" if text is record else f" under {field!r}"
        raise InputError(f'{where} has {found}{at}; expected {{{json.dumps(field)}: "..."}}')
    return text


# --- sentences ---------------------------------------------------------------------------------

# A Chinese stop, which needs no space; or a stop, closing quotes or brackets, and white space. One
# class before all choices lets the search pass over other characters five times as fast.
_STOP = re.compile(
    r"""[.!?…。！？](?:(?<=[。！？])[。！？]*[”’」』）]*\s*|"""
    r"""(?<![.!?…]{2})[.!?…]*+["'”’»)\]]*+\s+)"""
)
_INNER_STOPS = re.compile(r"(\w\.)+\w")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st gen col capt lt sgt maj rev hon gov sen rep pres fr mt ft vs "
    "e.g i.e cf viz vol vols fig figs approx ca c inc ltd co corp dept est ed eds op pp p no nos "
    "jan feb mar apr jun jul aug sep sept oct nov dec al b d r fl".split()
)


def split_sentences(line: str) -> list[str]:
    """Cuts a line after sentence ends, English and Chinese.

    A full stop after an abbreviation, an initial or letters with inner stops (U.S.) ends nothing;
    neither does one before a lower-case letter. A line of one sentence stays whole.

    Example:
        split_sentences("Dr. Wu left. Why? 他走了。")   # ['Dr. Wu left.', 'Why?', '他走了。']
    """
    sentences, start = [], 0
    for stop in _STOP.finditer(line):
        if stop.end() < len(line) and _ends_sentence(line, start, stop):
            sentences.append(line[start : stop.end()].strip())
            start = stop.end()
    sentences.append(line[start:].strip())
    return [s for s in sentences if s]


def _ends_sentence(line: str, start: int, stop: re.Match[str]) -> bool:
    begin, end = stop.span()
    mark = line[begin]
    if mark in "。！？":
        return True
    following = line[end : end + 2].lstrip("\"'“‘«([")[:1]
    if following.islower():
        return False
    if mark != "." or not line[begin + 1].isspace():
        return True  # "!", "?", "..." and stops inside quotes end a sentence
    words = line[max(start, begin - 40) : begin].rsplit(None, 1)
    word = words[-1].lstrip("(\"'“‘[") if words else ""
    initial = len(word) == 1 and word.isalpha() and word != "I"
    return not (initial or word.lower() in _ABBREVIATIONS or _INNER_STOPS.fullmatch(word))


def sentences_of(lines: list[str], options: ReaderOptions) -> tuple[list[str], int]:
    """The sentences of a document's lines, and how many NUL characters were dropped."""
    nul = "".join(lines).count("\0")  # seldom any, and a join is faster than a look at each line
    if nul:
        lines = [line.replace("\0", "") for line in lines]
    if options.one_sentence_per_line:
        return [s for s in (line.strip() for line in lines) if s], nul
    return [s for line in lines for s in split_sentences(line)], nul
