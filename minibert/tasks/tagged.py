"""Sentences of words with a tag each: readers of tagged files, and words of a plain text.

In: columns as CoNLL-2003 has them or JSON lines, or a text. Out: `Sentence`s with tags in BIO.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.corpus import split_sentences
from minibert.errors import InputError
from minibert.files import ending, find_packed, read_lines, read_text, whole_characters
from minibert.tasks.entities import normalise_tags


class Sentence(NamedTuple):
    """One sentence, or a plain text of several. `id` says where it comes from.

    tags: BIO, one a word; none where unknown. text: of a plain one. offsets: where its words stand
    in it, [start, end) in characters. breaks: the words that begin a further sentence.
    """

    id: str
    words: list[str]
    tags: list[str]
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    breaks: tuple[int, ...] = ()


# --- readers --------------------------------------------------------------------------------------

# What the files of a split may be called, best first; CoNLL-2003's own names among them.
_STEMS = {
    "train": ("train", "eng.train"),
    "dev": ("valid", "dev", "validation", "val", "eng.testa", "testa"),
    "test": ("test", "eng.testb", "testb"),
}
_ENDINGS = ("", ".txt", ".conll", ".bio", ".iob", ".iob2", ".tsv", ".jsonl", ".json")
WORD_KEYS = ("tokens", "words")  # of JSON lines, where none is named
_LONGEST = 500  # words; a file of one sentence above that lacks its blank lines
_TAG = re.compile(r"O|[BIESLUMW]-.+")
# How a first line calls its columns, where a file has one that does.
_HEADS = ({"word", "token", "text", "form"}, {"tag", "label", "ner", "ner_tag", "entity", "pos"})


def find_split(folder: Path, split: str) -> Path | None:
    """The file of a split ("train", "dev" or "test") in a folder, or None."""
    for stem in _STEMS[split]:
        for end in _ENDINGS:
            if path := find_packed(folder, f"{stem}{end}"):
                return path
    return None


def read_tagged(
    paths: dict[str, Path], word_column: str | None = None, tag_column: str | None = None
) -> tuple[dict[str, list[Sentence]], list[str]]:
    """Reads the files of a data set, and brings their tags to BIO.

    Args:
        paths: name of the split -> its file, JSON lines by its name or else columns.
        word_column, tag_column: of files in columns a number, counted from 0, or from -1 at the
            end; of JSONL a key. By default the first and the last column, and the usual keys.

    Returns:
        The sentences of each split, and a line for each thing noticed.

    Raises:
        InputError: a file without sentences, a line that cannot be read (named), or a column that
            is no number.
    """
    read: dict[str, list[Sentence]] = {}
    notes: list[str] = []
    for split, path in paths.items():
        if ending(path) in (".jsonl", ".json"):
            read[split], found = read_json_lines(path, split, word_column, tag_column)
        else:
            word = _number(path, word_column, 0, "--text-column")
            tag = _number(path, tag_column, -1, "--label-column")
            read[split], found = read_columns(path, split, word, tag)
        notes += [f"{split}: {note}" for note in found]
    tags, found = normalise_tags({s: [e.tags for e in rows] for s, rows in read.items()})
    notes += found
    for split, rows in read.items():
        read[split] = [e._replace(tags=t) for e, t in zip(rows, tags[split], strict=True)]
    return read, notes + _seen_before(read)


def _number(path: Path, column: str | None, default: int, flag: str) -> int:
    """The column that was named, with the flag or, of a file to score, by the run."""
    if column is None:
        return default
    if not is_number(column):
        raise InputError(
            f"{path} has columns without names; give {flag} a number, counted from 0, or from -1 "
            f"at the end, instead of {column!r}"
        )
    return int(column)


def is_number(column: str) -> bool:
    """Whether a column is named by its place, from 0 or from -1 at the end."""
    return bool(re.fullmatch(r"-?\d+", column))


def read_columns(
    path: Path, split: str, word_column: int = 0, tag_column: int = -1
) -> tuple[list[Sentence], list[str]]:
    """Reads columns as CoNLL-2003 has them: a word a line, a blank line after each sentence.

    Columns are parted by tabs where a line has one, else by spaces; other white space may be part
    of a word. Lines that start with -DOCSTART- end a sentence as blank ones do; comments before a
    sentence (# ..., in other columns than the file's, or with no tag) are left out, and so is a
    first line that names the columns, as in word and tag. Tags stay in the file's own scheme.

    Raises:
        InputError: no sentences, or a line with fewer or more columns than others (file and line
            are named): its last field need not be a tag.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    notes: list[str] = []
    comments = 0
    first, width = 0, 0  # the first line of a word, and its columns
    lines = [line.rstrip("\r") for line in (*read_lines(path), "")]
    is_word = _hash_words(lines, tag_column)
    for number, line in enumerate(lines, 1):
        if not line.strip(" \t") or line.startswith("-DOCSTART-"):
            if words:
                sentences.append(Sentence(f"{split}/{len(sentences)}", words, tags))
                words, tags = [], []
            continue
        if not first and _is_object(line):
            raise InputError(f"{path} holds JSON; JSON lines are read from a name with .jsonl")
        fields = _fields(line)
        if not words and line.startswith("#") and not is_word(fields):
            comments += 1
            continue
        try:
            word, tag = fields[word_column], fields[tag_column]
        except IndexError:
            word = tag = ""
        if len(fields) < 2 or not word or not tag:
            raise InputError(
                f"{path}, line {number}: {line.strip()!r} has {len(fields)} column(s); expected "
                f"a word and its tag (columns {word_column} and {tag_column})"
            )
        if not first and word_column % len(fields) == tag_column % len(fields):
            raise InputError(
                f"{path}: columns {word_column} and {tag_column} (--text-column, --label-column) "
                f"are the same of {len(fields)}; its tags would be its words"
            )
        first, width = (first, width) if first else (number, len(fields))
        if len(fields) != width:
            raise InputError(
                f"{path}, line {number}: {line.strip()!r} has {len(fields)} columns, line {first} "
                f"has {width}"
            )
        if number == first and _are_heads(word, tag):
            notes.append(f"line {number} names the columns ({word}, {tag}), left out")
            continue
        words.append(word)
        tags.append(tag)
    if not sentences:
        raise InputError(f"{path} holds no sentences; expected lines of a word and its tag")
    if len(sentences) == 1 and len(sentences[0].words) > _LONGEST:
        raise InputError(
            f"{path} is one sentence of {len(sentences[0].words):,} words; expected a blank line "
            f"after each sentence"
        )
    return sentences, notes + ([f"{comments:,} comment lines left out"] if comments else [])


def _is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _are_heads(word: str, tag: str) -> bool:
    return all(
        name.lower().removesuffix("s") in known
        for name, known in zip((word, tag), _HEADS, strict=True)
    )


def _fields(line: str) -> list[str]:
    fields = line.split("\t") if "\t" in line else line.split(" ")
    return [f for f in (f.strip(" ") for f in fields) if f]


def _has(fields: Sequence[str], column: int) -> bool:
    return -len(fields) <= column < len(fields)


def _hash_words(lines: Sequence[str], tag_column: int) -> Callable[[list[str]], bool]:
    """Tells of the fields of a line that starts with # whether they are a word and its tag.

    They are if they are as many as those of the file's other lines, with a tag that looks like one
    or that another line has.
    """
    rows = [_fields(line) for line in lines if line[:1] != "#" and line[:10] != "-DOCSTART-"]
    widths = {len(row) for row in rows if row}
    tags = {row[tag_column] for row in rows if _has(row, tag_column)}

    def is_word(fields: list[str]) -> bool:
        if not _has(fields, tag_column) or (widths and len(fields) not in widths):
            return False
        return fields[tag_column] in tags or bool(_TAG.fullmatch(fields[tag_column]))

    return is_word


def read_json_lines(
    path: Path, split: str, word_key: str | None = None, tag_key: str | None = None
) -> tuple[list[Sentence], list[str]]:
    """Reads {"tokens": [...], "tags": [...]} a line; also "words" and "labels" or "ner_tags".

    Args:
        word_key, tag_key: instead of these.

    Returns:
        The sentences, named by their row where they have no id, and what was noticed.

    Raises:
        InputError: no sentences, or a line that is something else (file and line are named).
    """
    word_keys = (word_key,) if word_key else WORD_KEYS
    tag_keys = (tag_key,) if tag_key else ("tags", "ner_tags", "labels")
    sentences: list[Sentence] = []
    count = 0  # of rows, of which those without a word are left out
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        count += 1
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is not valid JSON: {error}") from None
        words = _strings(row, word_keys, place)
        tags = _strings(row, tag_keys, place)
        if len(words) != len(tags):
            raise InputError(f"{place} has {len(words)} words but {len(tags)} tags")
        if not all(tag.strip() for tag in tags):
            raise InputError(f"{place} has an empty tag; outside of entities is the letter O")
        if words:
            given = row.get("id")
            name = f"{split}/{count - 1}" if given in (None, "") else str(given)
            name = whole_characters(name)
            sentences.append(Sentence(name, words, tags))
    if not sentences:
        raise InputError(f'{path} holds no sentences; expected {{"tokens": [...], "tags": [...]}}')
    empty = count - len(sentences)
    return sentences, [f"{empty:,} rows without a word left out"] if empty else []


def _strings(row: Any, keys: tuple[str, ...], place: str) -> list[str]:
    """The list of strings under the first of these keys that a row has."""
    found = next((row[k] for k in keys if k in row), None) if isinstance(row, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{place} has no list called {' or '.join(keys)}")
    if not all(isinstance(value, str) for value in found):
        raise InputError(f"{place}: {keys[0]} are not all strings; give tags by their names")
    return [whole_characters(value) for value in found]


def _seen_before(splits: dict[str, list[Sentence]]) -> list[str]:
    """Lines about sentences of train that other splits have, too."""
    notes = []
    words = {tuple(e.words) for e in splits.get("train", [])}
    for split, rows in splits.items():
        if split == "train" or "train" not in splits:
            continue
        if shared := sum(tuple(e.words) in words for e in rows):
            notes.append(f"{split}: {shared:,} sentences occur in train, too")
    return notes


def tag_set(sentences: Sequence[Sentence]) -> list[str]:
    """The tags to choose from: O, then B-X and I-X of every type X in train, in order.

    Raises:
        InputError: no sentence has an entity.
    """
    kinds = sorted({tag[2:] for e in sentences for tag in e.tags if tag != "O"})
    if not kinds:
        raise InputError("no training sentence has an entity: every tag is O")
    return ["O", *(f"{letter}-{kind}" for kind in kinds for letter in "BI")]


# --- plain text -----------------------------------------------------------------------------------

# Letters and digits with what may join them; marks are all that is neither letter, digit nor space:
# currency signs, arrows and emoji too, but no sub- or superscript above U+2070. A soft hyphen and
# what has no width (U+00AD, U+200B to U+200D) part no word.
_MARK = (
    r"\u0000-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00ac\u00ae-\u00bf\u00d7\u00f7"
    r"\u2000-\u200a\u200e-\u206f\u20a0-\u20cf\u2103\u2109\u2116\u2117\u211e-\u2123\u2190-\u2bff"
    r"\u2e00-\u2e7f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffee"
    r"\U0001f000-\U0001faff"
)
_IDEOGRAPH = r"\u3400-\u4dbf\u4e00-\u9fff"
_LETTER = rf"[^\s{_MARK}{_IDEOGRAPH}]"
_SUFFIX = r"['\u2019](?i:s|re|ve|ll|d|m)\b"
# An apostrophe before a capital joins names: O'Brien, L'Oréal.
_JOINT = rf"(?:[-&/.]|(?!{_SUFFIX})['\u2019](?=[A-Z\u00c0-\u00de]))"
_WORD = re.compile(
    r"(?:[^\W\d_]\.){2,}"  # U.S.
    r"|\b[A-Z]\.(?=\s+[A-Z])"  # J. Smith
    r"|\b(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Gen|Col|Lt|Sen|Rep|Gov|Corp|Inc|Ltd|Co|No|vs)\."
    # 1,000.50, 2024-05-01 and 1990s; possessive: no digit is given back to a letter behind it
    rf"|\d++(?:[.,:/-]\d++)*+(?:{_LETTER}++(?:[-&/.]{_LETTER}+)*)?"
    rf"|{_SUFFIX}"  # 's as a word of its own
    # did n't; ideographs, of which a text may hold any number in a row, stand before none
    rf"|[^\W\d_{_IDEOGRAPH}]+(?=(?i:n['\u2019]t)\b)|(?i:n['\u2019]t)\b"
    rf"|{_LETTER}+(?:{_JOINT}{_LETTER}+)*"  # Jean-Pierre, AT&T
    r"|\S[\u00ad\u200b-\u200d\ufe00-\ufe0f]*"  # an emoji with what says how it looks
)


class TextWords(NamedTuple):
    """A sentence of a plain text: its words and where each stands, [start, end) in characters."""

    words: list[str]
    offsets: list[tuple[int, int]]


def words_of(text: str) -> list[TextWords]:
    """Cuts a plain text into sentences of words as CoNLL-2003 has them; no character is lost.

    Punctuation, 's, n't and Chinese characters are words of their own; U.S., Corp., 1,000.50 and
    AL-AIN are one word. Every character that is not white space belongs to exactly one word.

    Example:
        words_of("Ana's in Oslo.")[0].words   # ['Ana', "'s", 'in', 'Oslo', '.']
    """
    sentences = []
    at = 0
    for line in re.split(r"[\r\n]+", text):
        for sentence in split_sentences(line):
            start = text.index(sentence, at)
            at = start + len(sentence)
            found = [(m.start() + start, m.end() + start) for m in _WORD.finditer(sentence)]
            if found:
                sentences.append(TextWords([text[a:b] for a, b in found], found))
    return sentences


def plain_sentence(text: str, name: str) -> Sentence:
    """A plain text as an example without tags: the words of all its sentences in a row."""
    parts = words_of(text)
    starts = list(itertools.accumulate(len(part.words) for part in parts))
    return Sentence(
        name,
        [word for part in parts for word in part.words],
        [],
        text,
        tuple(place for part in parts for place in part.offsets),
        tuple(starts[:-1]),
    )


def joined_sentence(words: Sequence[str], name: str) -> Sentence:
    """Words as an example without tags; its text has a space between them."""
    ends = itertools.accumulate(len(word) + 1 for word in words)
    offsets = [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
    return Sentence(name, list(words), [], " ".join(words), tuple(offsets))
