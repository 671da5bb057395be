"""Raw text -> clean text in which every document stands once.

In: what `corpus.find_files` finds. Out: one UTF-8 `.txt` file, a blank line between documents,
without documents that came before, or that stand among texts to be left out. A document passes
through in pieces, so memory holds two 8-byte keys for each one and no more.
"""

from __future__ import annotations

import hashlib
import html
import html.entities
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minibert.corpus import (
    Piece,
    ReaderOptions,
    check_text_field,
    find_files,
    piece_bytes,
    read_pieces,
    readable_files,
    text_bytes,
)
from minibert.errors import InputError
from minibert.files import write_atomically
from minibert.progress import Progress

SAME_START = 200  # letters and digits that tell a document from all others, by default

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,31});")
_BREAK = re.compile(r"<[bB][rR]\s*/?>|[\u2028\u2029]")
_BLANK = r"[^\S\n]"
# Not behind a letter: main() is a name. (...) and (?) mean something and stay. Runs of blanks are
# begun at their first one and never given back: tried from each, a line would take its square.
_EMPTY = re.compile(
    rf"(?<!{_BLANK}){_BLANK}*+(?<!\w)"
    rf"(?:\((?:{_BLANK}|[,;:])*+\)|\[(?:{_BLANK}|[,;:])*+\])"
)
_EMPTY_BEFORE_STOP = re.compile(rf"{_EMPTY.pattern}(?=[.,;:!?)])")
_MOST_PASSES = 100  # over a line; what is nested deeper is no text, and would take its square
# Control characters other than white space, C1, and marks of no width that join nothing.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]"
)
_NOT_FOLDED = re.compile(r"[\x00-/:-@\[-`{-\x7f]+")  # what of ASCII is no letter and no digit
_NO_LETTERS = re.compile(r"\W+")
_MOST_MARKS = 30  # on one letter, Unicode's limit for text that is safe in streams (UAX 15)
_MAY_BE_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MOST_MARKS + 1},}}")


def _read_as_windows() -> dict[int, str]:
    """C1 characters, of which no text has any, as the Windows-1252 ones that were meant."""
    table = {}
    for code in range(0x80, 0xA0):
        table[code] = bytes([code]).decode("cp1252", errors="ignore")
    return table


_WINDOWS = _read_as_windows()


def clean_line(line: str) -> list[str]:
    """A line without the remains of markup, as one line or more; none where nothing is left.

    `<br />` ends a line, entities are unescaped, empty brackets and control characters are
    dropped, white space becomes one space, characters are composed (Unicode NFC), and of marks on
    one letter those after the 30th go. Cleaning what is clean changes nothing. Of remains nested
    over a hundred deep, some stay.

    Example:
        clean_line("Tom &amp; Jo () met.<br /><br />The  end")  # ['Tom & Jo met.', 'The end']
    """
    for _ in range(_MOST_PASSES):  # one step may lay bare what another one removes
        before, line = line, _cleaned_once(line)
        if line == before:
            break
    parts = (" ".join(part.split()) for part in line.split("\n"))
    return [part for part in parts if part]


def _cleaned_once(line: str) -> str:
    if _CONTROL.search(line):
        line = _CONTROL.sub("", line.translate(_WINDOWS))
    if "&" in line:
        line = _ENTITY.sub(_of_entity, line)
    if "<" in line or "\u2028" in line or "\u2029" in line:
        line = _BREAK.sub("\n", line)
    if "(" in line or "[" in line:
        line = _EMPTY.sub(" ", _EMPTY_BEFORE_STOP.sub("", line))
    return _composed(line)


def _composed(text: str) -> str:
    """A text in NFC, of 30 marks on one letter at most: composing takes their number's square."""
    return unicodedata.normalize("NFC", _MAY_BE_MARKS.sub(_fewer_marks, text))


def _fewer_marks(found: re.Match[str]) -> str:
    kept, in_a_row = [], 0
    for character in found[0]:
        in_a_row = in_a_row + 1 if unicodedata.combining(character) else 0
        if in_a_row <= _MOST_MARKS:
            kept.append(character)
    return "".join(kept)


def _of_entity(found: re.Match[str]) -> str:
    """What an entity stands for; `html.unescape` alone would find &copy in &copyright;, too."""
    is_known = found[0][1] == "#" or found[0][1:] in html.entities.html5
    return html.unescape(found[0]) if is_known else found[0]


def folded(text: str) -> str:
    """What two texts are compared by: their letters and digits alone, composed and in one case.

    Vowel signs and accents that do not compose, as those of Devanagari and Thai, stay.
    """
    text = _NOT_FOLDED.sub("", _composed(text).casefold())
    return _NO_LETTERS.sub(_marks, text)


def _marks(found: re.Match[str]) -> str:
    """Of characters that are no letters, those that belong to the letter before them."""
    return "".join(c for c in found[0] if unicodedata.category(c)[0] == "M")


@dataclass
class CleanCounts:
    """What became of the documents of a corpus.

    excluded: those found among the texts to leave out. duplicates: those whose letters and digits
    came before. same_start: those which begin as one before. empty: those without a letter or
    digit. bytes and words: of the text written.
    """

    documents_in: int = 0
    excluded: int = 0
    duplicates: int = 0
    same_start: int = 0
    empty: int = 0
    documents_out: int = 0
    bytes: int = 0
    words: int = 0


class _Keys:
    """A growing set of 64-bit keys in 8 bytes each: a sorted array, and a set of the newest."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._newest: set[int] = set()

    def __contains__(self, key: int) -> bool:
        if key in self._newest:
            return True
        at = int(np.searchsorted(self._sorted, np.uint64(key)))
        return at < len(self._sorted) and int(self._sorted[at]) == key

    def add(self, key: int) -> None:
        self._newest.add(key)
        if len(self._newest) >= max(1 << 14, len(self._sorted) >> 5):
            fresh = np.fromiter(self._newest, np.uint64, len(self._newest))
            self._sorted = np.union1d(self._sorted, fresh)
            self._newest.clear()


class _Document:
    """The keys of a document, made as its lines come."""

    def __init__(self, start_characters: int) -> None:
        self._whole = hashlib.blake2b(digest_size=8)
        self._start_characters = start_characters
        self._start = ""
        self.is_empty = True

    def add(self, lines: list[str]) -> None:
        text = folded("".join(lines))
        self._whole.update(text.encode())
        self.is_empty = self.is_empty and not text
        if len(self._start) < self._start_characters:
            self._start = (self._start + text)[: self._start_characters]

    @property
    def whole(self) -> int:
        return int.from_bytes(self._whole.digest())

    @property
    def start(self) -> int | None:
        """The key of the first characters; None for a document of fewer."""
        if not self._start_characters or len(self._start) < self._start_characters:
            return None
        return int.from_bytes(hashlib.blake2b(self._start.encode(), digest_size=8).digest())


class _Seen:
    """Which documents there were, by their whole and by their first characters."""

    def __init__(self) -> None:
        self.wholes, self.starts = _Keys(), _Keys()

    def add(self, document: _Document) -> None:
        self.wholes.add(document.whole)
        if document.start is not None:
            self.starts.add(document.start)

    def has_start(self, document: _Document) -> bool:
        return document.start is not None and document.start in self.starts


def _pieces(files: list[Path], options: ReaderOptions, what: str) -> Iterator[Piece]:
    with Progress(what, sum(map(text_bytes, files))) as progress:
        for path in files:
            for piece in read_pieces(path, options):
                yield piece
                progress.update(piece_bytes(piece))


def _cleaned(lines: list[str]) -> list[str]:
    return [part for line in lines for part in clean_line(line)]


def _keys_of(files: list[Path], options: ReaderOptions, start_characters: int) -> _Seen:
    """The keys of the documents to leave out, which are cleaned as the others are."""
    seen = _Seen()
    document: _Document | None = None
    for piece in _pieces(files, options, "reading what to exclude"):
        if piece.starts_document:
            if document and not document.is_empty:
                seen.add(document)
            document = _Document(start_characters)
        assert document
        document.add(_cleaned(piece.lines))
    if document and not document.is_empty:
        seen.add(document)
    return seen


class _Writer:
    """Writes cleaned documents; one that turns out to be unwanted is cut off again."""

    def __init__(self, out: BinaryIO, excluded: _Seen, start_characters: int) -> None:
        self._out, self._excluded = out, excluded
        self._start_characters = start_characters
        self._seen = _Seen()
        self._document: _Document | None = None
        self._begin = self._words = 0
        self.counts = CleanCounts()

    def write(self, piece: Piece) -> None:
        if piece.starts_document:
            self.close_document()
            self._document, self._words = _Document(self._start_characters), 0
            self.counts.documents_in += 1
            self._begin = self._out.tell()
            if self.counts.documents_out:
                self._out.write(b"\n")
        assert self._document
        lines = _cleaned(piece.lines)
        self._document.add(lines)
        self._words += sum(line.count(" ") + 1 for line in lines)
        self._out.write("".join(line + "\n" for line in lines).encode())

    def close_document(self) -> None:
        """Keeps the document that was open, or cuts it off; says which in the counts."""
        document, self._document = self._document, None
        if document is None:
            return
        reason = self._why_not(document)
        if reason:
            setattr(self.counts, reason, getattr(self.counts, reason) + 1)
            self._out.seek(self._begin)
            self._out.truncate()
            return
        self._seen.add(document)
        self.counts.documents_out += 1
        self.counts.words += self._words
        self.counts.bytes = self._out.tell()

    def _why_not(self, document: _Document) -> str:
        """The count a document falls under that is not to be written."""
        if document.is_empty:
            return "empty"
        if document.whole in self._excluded.wholes or self._excluded.has_start(document):
            return "excluded"
        if document.whole in self._seen.wholes:
            return "duplicates"
        return "same_start" if self._seen.has_start(document) else ""


def clean_corpus(
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    exclude: str | Path | Iterable[str | Path] | None = None,
    options: ReaderOptions | None = None,
    same_start: int = SAME_START,
    overwrite: bool = False,
) -> CleanCounts:
    """Writes the documents of a corpus cleaned (`clean_line`) and each once.

    Two documents are the same when their letters and digits are, case aside, or when the first
    `same_start` of these are; the first one stays. Of a document in `exclude`, by the same two
    rules, nothing is written.

    Args:
        inputs: files, folders or globs, as `pretrain --corpus` takes them.
        output: a `.txt` file; it appears when it is whole.
        exclude: files, folders or globs, read like the inputs.
        options: how text is cut into documents; a blank line ends one by default.
        same_start: characters; 0 compares whole documents alone.
        overwrite: whether an output of that name may be replaced.

    Raises:
        InputError: an input that cannot be read, an output that is there or is no `.txt`, or
            nothing left to write.
    """
    output, options = Path(output), options or ReaderOptions()
    if output.suffix != ".txt":
        raise InputError(f"--output {output} does not end in .txt; the text is written plainly")
    if output.exists() and (output.is_dir() or not overwrite):
        raise InputError(f"--output {output} exists; give another name or --overwrite")
    if same_start < 0:
        raise InputError(f"--same-start is {same_start}, must be 0 (off) or more characters")
    files, _ = readable_files(find_files(inputs, "INPUT"))
    unwanted, _ = readable_files(find_files(exclude, "--exclude")) if exclude else ([], 0)
    check_text_field(options.text_field, [*files, *unwanted], "INPUT")
    if output.resolve() in {path.resolve() for path in [*files, *unwanted]}:
        raise InputError(f"--output {output} is one of the files to read")
    excluded = _keys_of(unwanted, options, same_start)
    output.parent.mkdir(parents=True, exist_ok=True)
    counts = CleanCounts()

    def write(path: Path) -> None:
        nonlocal counts
        with path.open("wb") as out:
            writer = _Writer(out, excluded, same_start)
            for piece in _pieces(files, options, "cleaning"):
                writer.write(piece)
            writer.close_document()
        counts = writer.counts
        if not counts.documents_out:
            raise InputError(f"of {counts.documents_in} document(s) none is left to write")

    write_atomically(output, write)
    return counts
