"""Pairs of texts with a number for how alike they are: STS-B, and tables of one's own.

In: a folder or file. Out: `Splits` of `ScoredPair`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.errors import InputError
from minibert.files import read_text
from minibert.settings import FinetuneSettings
from minibert.tasks.base import Splits
from minibert.tasks.labelled import LabelledText, clean_published, clean_text, noticed, told
from minibert.tasks.tables import (
    Row,
    check_columns_differ,
    column,
    none_to_train_on,
    read_table,
    stray_quotes,
)


class ScoredPair(NamedTuple):
    """One example. `id` says where it comes from. score: as in the data, None where unknown."""

    id: str
    text: str
    text_pair: str
    score: float | None


class Scale(NamedTuple):
    """The range of scores that stands for 0 to 1 in the loss."""

    low: float
    high: float

    def inside(self, score: float) -> float:
        """A score of the data as the loss takes it."""
        return (score - self.low) / (self.high - self.low)

    def outside(self, share: float) -> float:
        """What the model gives, as a score of the data."""
        return self.low + share * (self.high - self.low)

    @property
    def decimals(self) -> int:
        """Decimal places of a score that part a million steps of the range, 6 at least."""
        return 6 - min(0, math.floor(math.log10(self.high - self.low)))


def same_pair(pair: ScoredPair) -> str:
    """What two copies of a pair share, whichever text is first."""
    return "\t".join(sorted(" ".join(t.lower().split()) for t in (pair.text, pair.text_pair)))


def scale_of(train: Sequence[ScoredPair]) -> Scale:
    """The least and the greatest score that occur."""
    scores = [e.score for e in train if e.score is not None]
    return Scale(min(scores), max(scores))


# --- STS-B ----------------------------------------------------------------------------------------

_GLUE = "score", "sentence1", "sentence2"  # names of columns
_OFFICIAL = 4, 5, 6  # numbers of columns; a row has no header and up to two more, on licences
_FILES = {
    "train": ("train.tsv", "sts-train.csv", "sts-train.tsv"),
    "dev": ("dev.tsv", "sts-dev.csv", "sts-dev.tsv"),
    # GLUE's own archive has the published files, the labelled test among them, in a folder below.
    "test": ("test.tsv", "sts-test.csv", "sts-test.tsv", "original/sts-test.tsv"),
}
_RANGE = Scale(0.0, 5.0)


def read_stsb(path: Path) -> Splits[ScoredPair]:
    """STS-B (Cer et al. 2017), as GLUE has it or as published; of two files the labelled one.

    Raises:
        InputError: not a folder, no file to train on, a score that is none from 0 to 5.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is not a folder; expected one with {_FILES['train'][0]}; for a file of your "
            f"own: --task similarity"
        )
    found: dict[str, list[ScoredPair]] = {}
    for split, names in _FILES.items():
        for name in names:
            if split not in found and (path / name).is_file():
                pairs = list(_published_pairs(path / name, split))
                if pairs:
                    found[split] = pairs
    if "train" not in found:
        raise none_to_train_on(path, _FILES["train"])
    train, dev, test = found["train"], found.get("dev"), found.get("test")
    _check_spread(train, str(path))
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in found.items())
    return Splits(train, test, str(path), (f"{sizes} pairs", *_odd(train, dev, test)), dev)


def _published_pairs(path: Path, split: str) -> Iterator[ScoredPair]:
    """The pairs of a file, none where it has no scores."""
    for line, fields in _published_rows(path):
        score = _number(fields[0], path, line)
        if score is None or not _RANGE.low <= score <= _RANGE.high:
            raise InputError(f"{path}, line {line}: score {fields[0]!r}, expected 0 to 5")
        yield ScoredPair(
            f"{split}:{line}", clean_published(fields[1]), clean_published(fields[2]), score
        )


def _published_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, [score, text, second text]) of each row."""
    if not path.name.startswith("sts-"):
        for row in read_table(path, kind=".tsv"):
            if "score" in row.values:
                yield row.line, [column(row, name, path, "GLUE's columns") for name in _GLUE]
        return
    for line, text in enumerate(read_text(path).split("\n"), 1):
        fields = text.removesuffix("\r").split("\t")
        if text.strip() and len(fields) <= max(_OFFICIAL):
            raise InputError(f"{path}, line {line} has {len(fields)} fields, expected 7 to 9")
        if text.strip():
            yield line, [fields[number] for number in _OFFICIAL]


# --- own tables -----------------------------------------------------------------------------------


def read_own_pairs(settings: FinetuneSettings) -> Splits[ScoredPair]:
    """The tables that the settings name, by the columns that they name.

    Rows without a score are left out and counted, as are those with an empty text in train.

    Raises:
        InputError: a file or column that cannot be used, a score that is no number, or scores that
            are all equal.
    """
    assert settings.data is not None
    notes: list[str] = []
    train = _own_part(settings, settings.data, "train", notes) or []
    full = [e for e in train if e.text and e.text_pair]
    if len(full) < len(train):
        notes.append(f"{len(train) - len(full):,} pairs with an empty text in train, left out")
    _check_spread(full, settings.data)
    dev = _own_part(settings, settings.dev_data, "dev", notes)
    test = _own_part(settings, settings.test_data, "test", notes)
    for name, part in (("dev", dev), ("test", test)):
        notes += _outside(part or (), name, scale_of(full))
    sizes = f"{len(full):,} pairs to train on"
    return Splits(full, test, settings.data, (sizes, *notes, *_odd(full, dev, test)), dev)


def read_own_test_pairs(settings: FinetuneSettings, scale: Scale) -> Splits[ScoredPair]:
    """The table that the settings name as data, as the test part of a model of this scale.

    Rows without a score are left out and counted.

    Raises:
        InputError: a file or column that cannot be used, or no pair with a score.
    """
    assert settings.data is not None
    notes: list[str] = []
    test = _own_part(settings, settings.data, "test", notes)
    if test is None:
        raise InputError(f"{settings.data} holds no scored pair")
    notes += _outside(test, "test", scale)
    size = f"{len(test):,} pairs to score"
    return Splits([], test, settings.data, (size, *notes, *_odd((), None, test)))


def _outside(part: Sequence[ScoredPair], name: str, scale: Scale) -> list[str]:
    """A note of the scores that are not within those that were trained on."""
    low, high = scale
    count = sum(e.score is not None and not low <= e.score <= high for e in part)
    return [f"{count:,} scores of {name} outside train's {low:g} to {high:g}"] if count else []


def _own_part(
    settings: FinetuneSettings, path: str | None, split: str, notes: list[str]
) -> list[ScoredPair] | None:
    """The scored rows of a file; None where no file is named or none has a score."""
    if path is None:
        return None
    check_columns_differ(
        text_column=settings.text_column or "text",
        text_pair_column=settings.text_pair_column or "text_pair",
        label_column=settings.label_column or "score",
    )
    rows = read_table(Path(path))
    notes += stray_quotes(Path(path), rows)
    found = [_own_pair(settings, Path(path), split, row) for row in rows]
    if not found:
        raise InputError(f"{path} holds no row")
    scored = [e for e in found if e.score is not None]
    if not scored and split == "dev":
        raise InputError(
            f"--dev-data {path} has no scores, so that it can choose no weights; leave it out, and "
            f"a dev split is cut from train"
        )
    if not scored and split != "train":
        notes.append(f"{split} has no scores, so it is not scored")
        return None
    if len(scored) < len(found):
        missing = [e.id for e in found if e.score is None]
        notes.append(
            f"{len(missing):,} rows of {split} without a score ({told(missing)}), left out"
        )
    return scored


def _own_pair(settings: FinetuneSettings, path: Path, split: str, row: Row) -> ScoredPair:
    first = column(row, settings.text_column or "text", path, "--text-column")
    second = column(row, settings.text_pair_column or "text_pair", path, "--text-pair-column")
    score = column(row, settings.label_column or "score", path, "--label-column")
    for text in (first, second):
        if not isinstance(text, str | None):
            raise InputError(f"{path}, line {row.line}: {text!r} is no text")
    given = row.values.get("id")
    name = f"{split}:{row.line}" if given in (None, "") else str(given)
    texts = clean_text(first or ""), clean_text(second or "")
    return ScoredPair(name, *texts, _number(score, path, row.line))


def _number(value: Any, path: Path, line: int) -> float | None:
    """A score; None where there is none, which an empty field and NaN both say.

    Raises:
        InputError: not a number, or an infinite one.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if isinstance(value, int | float | str) else math.inf
    except (ValueError, OverflowError):
        number = math.inf
    if isinstance(value, bool) or math.isinf(number):
        raise InputError(f"{path}, line {line}: score {value!r} is no finite number")
    return None if math.isnan(number) else number


def _check_spread(train: Sequence[ScoredPair], where: str) -> None:
    """Raises InputError unless the scores to train on differ."""
    scores = {e.score for e in train}
    if len(scores) < 2:
        held = f"only the score {scores.pop()}" if scores else "no scored pair"
        raise InputError(f"{where} holds {held}; a correlation needs two different ones")


def _odd(
    train: Sequence[ScoredPair],
    dev: Sequence[ScoredPair] | None,
    test: Sequence[ScoredPair] | None,
) -> list[str]:
    """What is odd about the pairs, as `noticed` finds it, whichever text of a pair is first."""

    def labelled(pairs: Sequence[ScoredPair]) -> list[LabelledText]:
        return [LabelledText(e.id, same_pair(e), str(e.score)) for e in pairs]

    parts = [None if part is None else labelled(part) for part in (dev, test)]
    return noticed(labelled(train), *parts)
