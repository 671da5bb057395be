"""Tagging of words, such as names of people and places: readers, encoding, decoding, a baseline.

In: sentences of words with a tag each. Out: windows of sub-words labelled at each word's first
(Devlin et al. 2019, section 5.3), and legal BIO tags and entities of what a model scored.

Shapes: T tokens of a window, W words of a sentence, C tags.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibert.corpus import split_sentences
from minibert.errors import InputError
from minibert.files import read_text, whole_characters
from minibert.losses import IGNORE_INDEX
from minibert.tasks.entities import Span, normalise_tags, spans_of, tags_of
from minibert.tokenizer import WordPiece


class Sentence(NamedTuple):
    """One sentence; `tags` are BIO, one a word. `id` says where it comes from."""

    id: str
    words: list[str]
    tags: list[str]


# --- readers --------------------------------------------------------------------------------------

# What the files of a split may be called, best first; CoNLL-2003's own names among them.
_STEMS = {
    "train": ("train", "eng.train"),
    "dev": ("valid", "dev", "validation", "eng.testa", "testa"),
    "test": ("test", "eng.testb", "testb"),
}
_ENDINGS = ("", ".txt", ".conll", ".bio", ".iob", ".iob2", ".tsv", ".jsonl")
_PACKED = ("", ".gz", ".xz", ".bz2")
_TAG = re.compile(r"O|[BIESLUMW]-.+")


def find_split(folder: Path, split: str) -> Path | None:
    """The file of a split ("train", "dev" or "test") in a folder, or None."""
    for stem in _STEMS[split]:
        for ending in (e + p for e in _ENDINGS for p in _PACKED):
            if (path := folder / f"{stem}{ending}").is_file():
                return path
    return None


def read_tagged(
    paths: dict[str, Path], word_column: int = 0, tag_column: int = -1
) -> tuple[dict[str, list[Sentence]], list[str]]:
    """Reads the files of a data set, and brings their tags to BIO.

    Args:
        paths: name of the split -> its file, JSONL by its name or else columns.
        word_column, tag_column: of files in columns, counted from 0, or from -1 at the end.

    Returns:
        The sentences of each split, and a line for each thing noticed.

    Raises:
        InputError: a file without sentences, or a line that cannot be read (named).
    """
    read: dict[str, list[Sentence]] = {}
    notes: list[str] = []
    for split, path in paths.items():
        if path.suffixes[-2:-1] == [".jsonl"] or path.suffix == ".jsonl":
            read[split] = read_json_lines(path, split)
        else:
            read[split], found = read_columns(path, split, word_column, tag_column)
            notes += [f"{split}: {note}" for note in found]
    tags, found = normalise_tags({s: [e.tags for e in rows] for s, rows in read.items()})
    notes += found
    for split, rows in read.items():
        read[split] = [e._replace(tags=t) for e, t in zip(rows, tags[split], strict=True)]
    return read, notes + _seen_before(read)


def read_columns(
    path: Path, split: str, word_column: int = 0, tag_column: int = -1
) -> tuple[list[Sentence], list[str]]:
    """Reads columns as CoNLL-2003 has them: a word a line, a blank line after each sentence.

    Columns are parted by tabs where a line has one, else by spaces; other white space may be part
    of a word. Lines that start with -DOCSTART-, and comments before a sentence (# ...), are left
    out. Tags stay in the file's own scheme.

    Raises:
        InputError: no sentences, or a line with fewer columns (file and line are named).
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    comments = 0
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        line = line.rstrip("\r")
        if not line.strip(" \t"):
            if words:
                sentences.append(Sentence(f"{split}/{len(sentences)}", words, tags))
                words, tags = [], []
            continue
        if line.startswith("-DOCSTART-"):
            continue
        fields = line.split("\t") if "\t" in line else line.split(" ")
        fields = [f for f in (f.strip(" ") for f in fields) if f]
        if not words and line.startswith("#") and not (fields and _TAG.fullmatch(fields[-1])):
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
        words.append(word)
        tags.append(tag)
    if not sentences:
        raise InputError(f"{path} holds no sentences; expected lines of a word and its tag")
    return sentences, [f"{comments:,} comment lines left out"] if comments else []


def read_json_lines(path: Path, split: str) -> list[Sentence]:
    """Reads {"tokens": [...], "tags": [...]} a line; also "words" and "labels" or "ner_tags".

    Raises:
        InputError: no sentences, or a line that is something else (file and line are named).
    """
    sentences: list[Sentence] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{place} is not valid JSON: {error}") from None
        words = _strings(row, ("tokens", "words"), place)
        tags = _strings(row, ("tags", "ner_tags", "labels"), place)
        if len(words) != len(tags):
            raise InputError(f"{place} has {len(words)} words but {len(tags)} tags")
        if words:
            name = str(row.get("id", f"{split}/{len(sentences)}"))
            sentences.append(Sentence(name, words, tags))
    if not sentences:
        raise InputError(f'{path} holds no sentences; expected {{"tokens": [...], "tags": [...]}}')
    return sentences


def _strings(row: Any, keys: tuple[str, ...], place: str) -> list[str]:
    """The list of strings under the first of these keys that a row has."""
    found = next((row[k] for k in keys if k in row), None) if isinstance(row, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{place} has no list called {' or '.join(keys)}")
    if not all(isinstance(value, str) for value in found):
        raise InputError(f"{place}: {keys[0]} are not all strings; give tags by their names")
    return [whole_characters(value) for value in found]


def _seen_before(splits: dict[str, list[Sentence]]) -> list[str]:
    """Lines about what differs between train and the other splits."""
    notes = []
    known = {span.type for e in splits.get("train", []) for span in spans_of(e.tags)}
    words = {tuple(e.words) for e in splits.get("train", [])}
    for split, rows in splits.items():
        if split == "train" or "train" not in splits:
            continue
        types = Counter(span.type for e in rows for span in spans_of(e.tags))
        for kind in sorted(types.keys() - known):
            notes.append(
                f"{split}: {types[kind]:,} entities of type {kind}, which train does not have; "
                f"they count as missed"
            )
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

# Letters and digits with what may join them; marks are all that is neither letter, digit nor space.
_MARK = (
    r"\u0000-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f"
)
_IDEOGRAPH = r"\u3400-\u4dbf\u4e00-\u9fff"
_LETTER = rf"[^\s{_MARK}{_IDEOGRAPH}]"
_WORD = re.compile(
    r"(?:[^\W\d_]\.){2,}"  # U.S.
    r"|\b[A-Z]\.(?=\s+[A-Z])"  # J. Smith
    r"|\b(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Gen|Col|Lt|Sen|Rep|Gov|Corp|Inc|Ltd|Co|No|vs)\."
    r"|\d+(?:[.,:/-]\d+)*(?![^\W\d_])"  # 1,000.50 and 2024-05-01
    r"|['\u2019](?i:s|re|ve|ll|d|m)\b"  # 's as a word of its own
    r"|[^\W\d_]+(?=n['\u2019]t\b)|n['\u2019]t\b"  # did n't
    rf"|{_LETTER}+(?:[-&/.]{_LETTER}+)*"  # Jean-Pierre, AT&T
    r"|\S"
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


# --- encoding -------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A stretch of a sentence that fits the network.

    sentence: which one. first_word: the first word in here. input_ids: (T,) with [CLS] and [SEP].
    word_starts: where each word's first sub-word stands in input_ids. own: the words, counted from
    first_word, that are taken from this window, [start, end): each word of the sentence belongs
    to one window, the one in which it has most around it.
    """

    sentence: int
    first_word: int
    input_ids: np.ndarray
    word_starts: np.ndarray
    own: tuple[int, int]


def encode_words(
    sentences: Sequence[Sequence[str]],
    tokenizer: WordPiece,
    max_seq_length: int,
    overlap: int | None = None,
) -> list[Window]:
    """Sub-words of each sentence, long sentences in windows that overlap; no word is ever lost.

    A word is tokenised by itself, so that its sub-words do not depend on its neighbours. A word of
    which the tokenizer leaves nothing (a zero-width space) becomes [UNK]; of one that takes more
    than half a window, the rest is left out.

    Args:
        max_seq_length: tokens of a window, [CLS] and [SEP] included.
        overlap: tokens that neighbouring windows share at least; a quarter of the room by default.

    Raises:
        InputError: max_seq_length is below 4.
    """
    if max_seq_length < 4:
        raise InputError(f"--max-seq-length {max_seq_length} leaves no room; give 4 or more")
    room = max_seq_length - 2
    overlap = room // 4 if overlap is None else min(overlap, room - 1)
    distinct = list(dict.fromkeys(word for words in sentences for word in words))
    longest = max(1, room // 2)
    pieces = {
        word: ids[:longest] or [tokenizer.unk_id]
        for word, ids in zip(
            distinct, tokenizer.ids(list(map(whole_characters, distinct))), strict=True
        )
    }
    windows = []
    for number, words in enumerate(sentences):
        ids = [pieces[word] for word in words]
        bounds = np.cumsum([0, *map(len, ids)])  # where each word starts, and the end
        cuts = _cut(bounds, room, overlap)
        for (first, last), own in zip(cuts, _owned(bounds, cuts), strict=True):
            row = [tokenizer.cls_id, *(i for word in ids[first:last] for i in word)]
            starts = bounds[first:last] - bounds[first] + 1
            owned = (own[0] - first, own[1] - first)
            full = np.array([*row, tokenizer.sep_id], np.int64)
            windows.append(Window(number, first, full, starts, owned))
    return windows


def _cut(bounds: np.ndarray, room: int, overlap: int) -> list[tuple[int, int]]:
    """Windows of whole words, [first, last), that cover a sentence; the last one is filled up.

    Args:
        bounds: (W + 1,) sub-words before each word, and in all; no word has more than `room`.
    """
    count = len(bounds) - 1
    cuts: list[tuple[int, int]] = []
    first = 0
    while True:
        last = int(np.searchsorted(bounds, bounds[first] + room, "right")) - 1
        if last >= count:
            # From the end backwards, as many words as fit.
            filled = int(np.searchsorted(bounds, bounds[count] - room, "left"))
            return [*cuts, (min(first, filled) if cuts else 0, count)]
        cuts.append((first, last))
        back = int(np.searchsorted(bounds, bounds[last] - overlap, "left"))
        first = min(max(first + 1, back), last)


def _owned(bounds: np.ndarray, cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """For each window the words [start, end) that have most sub-words on both sides in it.

    Of two windows that share words, those in the first half of what is shared have more around
    them in the earlier window, the others in the later.
    """
    edges = [0]
    for (_, last), (first, _) in itertools.pairwise(cuts):
        middle = (int(bounds[first]) + int(bounds[last])) / 2
        edge = int(np.searchsorted((bounds[:-1] + bounds[1:]) / 2, middle))
        edges.append(max(min(edge, last), first, edges[-1]))
    edges.append(len(bounds) - 1)
    return list(itertools.pairwise(edges))


def label_row(window: Window, tags: Sequence[str], tag_ids: dict[str, int]) -> np.ndarray:
    """(T,) labels of a window: a tag's index at the first sub-word of each word it owns.

    All else is IGNORE_INDEX, a tag that is not among `tag_ids` as well: over all windows each word
    counts once.

    Args:
        tags: of the whole sentence.
    """
    labels = np.full(len(window.input_ids), IGNORE_INDEX, np.int64)
    first, last = window.own
    own = tags[window.first_word + first : window.first_word + last]
    labels[window.word_starts[first:last]] = [tag_ids.get(tag, IGNORE_INDEX) for tag in own]
    return labels


# --- decoding -------------------------------------------------------------------------------------


def stitch(windows: Sequence[Window], scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scores of every word, (W, C) for each sentence, each word from the window that owns it.

    Args:
        scores: (T, C) or longer, of each window in turn, at its tokens.
    """
    parts: dict[int, list[np.ndarray]] = {}
    for window, rows in zip(windows, scores, strict=True):
        first, last = window.own
        parts.setdefault(window.sentence, []).append(rows[window.word_starts[first:last]])
    return [np.concatenate(parts[number]) for number in sorted(parts)]


def decode(log_probs: np.ndarray, tags: Sequence[str], legal: str = "viterbi") -> list[str]:
    """The BIO tags of a sentence, always legal.

    Args:
        log_probs: (W, C) log probability of each tag at each word.
        tags: names of the C tags.
        legal: "viterbi" takes the most probable of all legal sequences (Viterbi 1967; scores of
            transitions are 0 or forbidden). "argmax" takes each word's best tag, and makes an I-X
            that continues nothing a B-X. With a tiny model of random weights, trained for 50 s on
            CoNLL-2003, the former's F1 was 2.1 to 3.1 points above the latter's.
    """
    best = [tags[i] for i in log_probs.argmax(-1)]
    if all(_may_follow(one, other) for one, other in zip(["O", *best], best, strict=False)):
        return best  # the best of all sequences is legal
    if legal == "argmax":
        for i, (before, tag) in enumerate(zip(["O", *best], best.copy(), strict=False)):
            if not _may_follow(before if i == 0 else best[i - 1], tag):
                best[i] = f"B-{tag[2:]}"
        return best
    return [tags[i] for i in _viterbi(log_probs, tags)]


def _may_follow(before: str, tag: str) -> bool:
    return not tag.startswith("I-") or before[2:] == tag[2:]


def _viterbi(log_probs: np.ndarray, tags: Sequence[str]) -> list[int]:
    allowed = np.array([[_may_follow(one, other) for other in tags] for one in tags])
    barred = np.where(allowed, 0.0, -np.inf)  # (C, C), from row to column
    outside = np.array([_may_follow("O", tag) for tag in tags])
    total = np.where(outside, log_probs[0].astype(np.float64), -np.inf)
    backs = []
    for row in log_probs[1:].astype(np.float64):
        through = total[:, None] + barred
        backs.append(through.argmax(0))
        total = through.max(0) + row
    path = [int(total.argmax())]
    for back in reversed(backs):
        path.append(int(back[path[-1]]))
    return path[::-1]


def span_scores(
    log_probs: np.ndarray, tags: Sequence[str], predicted: Sequence[str]
) -> dict[Span, float]:
    """Each predicted entity's score in 0..1: the mean probability of its words' tags."""
    index = {tag: i for i, tag in enumerate(tags)}
    own = np.exp([row[index[tag]] for row, tag in zip(log_probs, predicted, strict=True)])
    return {span: float(own[span.start : span.end].mean()) for span in spans_of(predicted)}


class Entity(NamedTuple):
    """An entity of a plain text; `text[start:end]` is what it says."""

    type: str
    text: str
    start: int
    end: int
    score: float


def entities_of(text: str, sentence: TextWords, scores: dict[Span, float]) -> list[Entity]:
    """A sentence's entities as characters of the text it comes from."""
    found = []
    for (kind, first, last), score in scores.items():
        start, end = sentence.offsets[first][0], sentence.offsets[last - 1][1]
        found.append(Entity(kind, text[start:end], start, end, score))
    return found


# --- baseline -------------------------------------------------------------------------------------


class Lexicon:
    """The line a model has to pass: entities of train, looked up, the longest first.

    As the baseline of the CoNLL-2003 shared task (Tjong Kim Sang & De Meulder 2003) it knows only
    what it saw. A name of several types has its most frequent one, and words that are less often
    that name than not are none.
    """

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        seen: dict[tuple[str, ...], Counter[str]] = {}
        for sentence in sentences:
            for kind, start, end in spans_of(sentence.tags):
                seen.setdefault(tuple(sentence.words[start:end]), Counter())[kind] += 1
        self.longest = max(map(len, seen), default=0)
        outside: Counter[tuple[str, ...]] = Counter()
        for sentence in sentences:
            for i, (word, tag) in enumerate(zip(sentence.words, sentence.tags, strict=True)):
                if tag == "O" and (word,) in seen:
                    outside[(word,)] += 1
                elif tag == "O":  # longer names are sought where they begin outside of any
                    for size in range(2, self.longest + 1):
                        key = tuple(sentence.words[i : i + size])
                        if key in seen and len(key) == size:
                            outside[key] += 1
        self.types = {
            key: min(counts, key=lambda kind: (-counts[kind], kind))
            for key, counts in sorted(seen.items())
            if counts.total() > outside[key]
        }

    def tags(self, words: Sequence[str]) -> list[str]:
        """BIO tags of a sentence."""
        found, at = [], 0
        while at < len(words):
            for size in range(min(self.longest, len(words) - at), 0, -1):
                kind = self.types.get(tuple(words[at : at + size]))
                if kind is not None:
                    found.append(Span(kind, at, at + size))
                    break
            else:
                size = 1
            at += size
        return tags_of(found, len(words))
