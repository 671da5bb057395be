"""Labelled texts: what an example of classification is, and how own tables are read.

In: CSV, TSV or JSONL files with a column of texts, one of labels, perhaps one of second texts.
Out: `Splits` of `LabelledText`.
"""

from __future__ import annotations

import itertools
import json
import lzma
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.errors import InputError
from minibert.files import open_bytes, table_kind, whole_characters
from minibert.settings import FinetuneSettings
from minibert.tasks.base import Splits
from minibert.tasks.tables import Row, check_columns_differ, column, read_table, stray_quotes

_LOOKED_AT = 1000  # rows, for how the labels are written
# Short tags of HTML by their names, such as <br />, </b> and <a href="x">; attributes have an "=".
# What else stands in angle brackets (<user>, <e1>, x <y and z> w) is text.
_MARKUP = re.compile(
    r"(?i)<(?=[^<>]{1,41}>)/?"
    r"(?:a|abbr|b|big|blockquote|body|br|center|cite|code|dd|del|div|dl|dt|em|font|h[1-6]|head|hr|"
    r"html|i|img|ins|li|ol|p|pre|small|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|"
    r"ul)(?:\s[^<>]*=[^<>]*)?\s*/?>"
)
_BRACKETED = re.compile(r"<[a-zA-Z/][^<>]{0,40}>")  # all of them, and <sighs>, <MSFT.O>
_TOLD = 3  # labels or ids that a note names
_WIDEST_NAME = 60  # characters of a label that are shown
Label = str | tuple[str, ...]


class LabelledText(NamedTuple):
    """One example. `id` says where it comes from.

    label: the name of its class; of a text with any number of classes, their names; None where
    unknown. text_pair: the second text, of tasks on pairs.
    """

    id: str
    text: str
    label: Label | None
    text_pair: str | None = None


def has_markup(text: str) -> bool:
    """Whether `clean_published` drops something."""
    return bool(_BRACKETED.search(text))


def clean_text(text: str) -> str:
    """A text of whole characters without tags of HTML and NUL, white space made single spaces."""
    return _tidy(_MARKUP.sub(" ", text))


def clean_published(text: str) -> str:
    """`clean_text` of a published set: whatever is short and stands in angle brackets goes.

    Its figures were measured so; a dozen of IMDb's 100,000 reviews have any that is no tag.
    """
    return _tidy(_BRACKETED.sub(" ", text))


def _tidy(text: str) -> str:
    return whole_characters(" ".join(text.replace("\0", "").split()))


def same_text(example: LabelledText, any_order: bool = False) -> str:
    """What two copies of an example share; any_order: also a pair with its texts exchanged."""
    texts = (example.text, example.text_pair or "")
    plain = [" ".join(text.lower().split()) for text in texts]
    return "\n".join(sorted(plain) if any_order else plain).strip()


def shown(name: str) -> str:
    """A name for a table or a line: without line breaks and tabs, and not too long."""
    line = " ".join(name.split())
    return line if len(line) <= _WIDEST_NAME else f"{line[: _WIDEST_NAME - 1]}…"


def told(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _TOLD:,} more" if len(names) > _TOLD else ""
    return ", ".join(map(shown, names[:_TOLD])) + more


def noticed(
    train: Sequence[LabelledText],
    dev: Sequence[LabelledText] | None,
    test: Sequence[LabelledText] | None,
) -> list[str]:
    """What is odd about examples: copies, contradictions, empty texts, ids that come twice."""
    notes = []
    groups: dict[str, set[Any]] = {}
    for example in train:
        groups.setdefault(same_text(example), set()).add(example.label)
    if len(groups) < len(train):
        notes.append(f"{len(train) - len(groups):,} repeated within train")
    contradictions = sum(len(labels) > 1 for labels in groups.values())
    if contradictions:
        notes.append(f"{contradictions:,} train texts with several labels")
    for name, part in (("dev", dev), ("test", test)):
        shared = sum(same_text(e) in groups for e in part or ())
        if shared:
            notes.append(f"{shared:,} {name} texts occur in train, too")
    everything = [*train, *(dev or ()), *(test or ())]
    empty = sum(not same_text(e) for e in everything)
    if empty:
        notes.append(f"{empty:,} empty")
    twice = [i for i, count in Counter(e.id for e in everything).items() if count > 1]
    if twice:
        notes.append(f"{len(twice):,} ids that come more than once ({told(twice)})")
    return notes


# --- own tables -----------------------------------------------------------------------------------


def read_own(settings: FinetuneSettings) -> Splits[LabelledText]:
    """The tables that the settings name, by the columns that they name.

    Rows without a label are left out and counted, as are empty texts in train and, in dev and
    test, labels that train lacks.

    Raises:
        InputError: a file or column that cannot be used, or nothing to tell apart.
    """
    assert settings.data is not None
    notes: list[str] = []
    _check_columns(settings)
    train = _own_part(settings, settings.data, "train", notes) or []
    full = [e for e in train if same_text(e)]
    if len(full) < len(train):
        notes.append(f"{len(train) - len(full):,} empty texts in train, left out")
    classes = classes_of(full)
    is_multi = any(isinstance(e.label, tuple) for e in full)
    _check_classes(settings, full, classes, is_multi)
    notes += _alike(classes)
    dev = _known_part(settings, settings.dev_data, "dev", classes, notes)
    test = _known_part(settings, settings.test_data, "test", classes, notes)
    if is_multi:
        lists = sum(isinstance(e.label, tuple) for e in full)
        notes.append(
            f"{lists:,} of {len(full):,} rows have a list of labels, so yes or no is learnt of each"
        )
    alike = _as_sets if is_multi else _as_names
    full, dev, test = alike(full), dev and alike(dev), test and alike(test)
    sizes = [f"{len(full):,} rows of {len(classes)} classes to train on"]
    return Splits(full, test, settings.data, (*sizes, *notes, *noticed(full, dev, test)), dev)


def _check_classes(
    settings: FinetuneSettings,
    examples: Sequence[LabelledText],
    classes: tuple[str, ...],
    is_multi: bool,
) -> None:
    """Raises InputError where there is nothing to tell apart.

    Where a text may have any number of classes, one is enough: some have it, others have none.
    """
    if len(classes) > 1 or (is_multi and classes and any(not names_of(e) for e in examples)):
        return
    wanted = "a second, or texts without it, are" if is_multi and classes else "two classes are"
    raise InputError(
        f"{settings.data}: {settings.label_column or 'label'} (--label-column) holds "
        f"{f'only {classes[0]!r}' if classes else 'no label'}; {wanted} needed"
    )


def _alike(classes: Sequence[str]) -> list[str]:
    """A line about classes that are likely one, written in several ways, as Yes and yes.

    Two that look alike, in other forms of Unicode or with a mark that is not seen, are written so
    that they can be told apart.
    """
    spellings: dict[str, list[str]] = {}
    for name in classes:
        seen = "".join(c for c in name if unicodedata.category(c) != "Cf")
        plain = unicodedata.normalize("NFKC", seen).casefold().removesuffix(".0")
        spellings.setdefault(plain, []).append(name)
    several = []
    for names in (names for names in spellings.values() if len(names) > 1):
        forms = {unicodedata.normalize("NFKC", name) for name in names}
        is_seen = len(forms) == len(names) and all(map(str.isprintable, names))
        several.append(" and ".join(names if is_seen else map(ascii, names)))
    return [f"taken as classes of their own: {told(several)}"] if several else []


def _as_sets(examples: list[LabelledText]) -> list[LabelledText]:
    """Examples of which some have any number of classes: a single one is a set, too."""
    return [e._replace(label=(e.label,)) if isinstance(e.label, str) else e for e in examples]


def _as_names(examples: list[LabelledText]) -> list[LabelledText]:
    """Examples of which each has one class, for a model of those: a list of one is its name."""
    return [
        e._replace(label=e.label[0]) if isinstance(e.label, tuple) and len(e.label) == 1 else e
        for e in examples
    ]


def read_own_test(
    settings: FinetuneSettings, classes: tuple[str, ...], multi: bool = False
) -> Splits[LabelledText]:
    """The table that the settings name as data, as the test part of a model of these classes.

    Rows without a label, or with one that the model lacks, are left out and counted.

    Args:
        multi: its texts may have any number of them.

    Raises:
        InputError: a file or column that cannot be used, or no example with a label of the model.
    """
    assert settings.data is not None
    _check_columns(settings)
    notes: list[str] = []
    test = _known_part(settings, settings.data, "test", classes, notes, "the model")
    if test is None:
        name = settings.label_column or "label"
        raise InputError(f"{settings.data}: {name} (--label-column) holds no label")
    test = _as_sets(test) if multi else _as_names(test)
    size = f"{len(test):,} rows to score"
    return Splits([], test, settings.data, (size, *notes, *noticed((), None, test)))


def has_lists_of_labels(settings: FinetuneSettings) -> bool:
    """Whether one of the first rows of a user's JSON lines has a list of labels.

    What cannot be read is told where it is read whole.
    """
    path = Path(settings.data or "")
    if table_kind(path) != ".jsonl":
        return False
    try:
        with open_bytes(path) as handle:
            lines = itertools.islice(filter(bytes.strip, handle), _LOOKED_AT)
            rows = [json.loads(line.decode("utf-8-sig")) for line in lines]
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError, RecursionError):
        return False
    label = settings.label_column or "label"
    return any(isinstance(row, dict) and isinstance(row.get(label), list) for row in rows)


def classes_of(examples: Sequence[LabelledText]) -> tuple[str, ...]:
    """The names of all classes that occur, sorted."""
    return tuple(sorted({name for e in examples for name in names_of(e)}))


def names_of(example: LabelledText) -> tuple[str, ...]:
    """The classes of an example: one, any number, or none that is known."""
    label = example.label
    return (label,) if isinstance(label, str) else label or ()


def _check_columns(settings: FinetuneSettings) -> None:
    check_columns_differ(
        text_column=settings.text_column or "text",
        text_pair_column=settings.text_pair_column,
        label_column=settings.label_column or "label",
    )


def _own_part(
    settings: FinetuneSettings, path: str | None, split: str, notes: list[str]
) -> list[LabelledText] | None:
    """The labelled rows of a file; None where no file is named or none has a label."""
    if path is None:
        return None
    rows = read_table(Path(path))
    notes += stray_quotes(Path(path), rows)
    found = [_own_example(settings, Path(path), split, row) for row in rows]
    labelled = [e for e in found if e.label is not None]
    none = sum(e.label == () for e in labelled)
    if found and none == len(labelled) and split == "dev":
        raise InputError(
            f"--dev-data {path} has no labels, so that it can choose no weights; leave it out, and "
            f"a dev split is cut from train"
        )
    if found and none == len(labelled) and split != "train":
        notes.append(f"{split} has no labels, so it is not scored")
        return None
    if len(labelled) < len(found):
        notes.append(f"{len(found) - len(labelled):,} rows of {split} without a label, left out")
    if none:
        notes.append(f"{none:,} rows of {split} without any label, taken as of none of the classes")
    return labelled


def _known_part(
    settings: FinetuneSettings,
    path: str | None,
    split: str,
    classes: tuple[str, ...],
    notes: list[str],
    whose: str = "train",
) -> list[LabelledText] | None:
    """A part without examples of classes that train, or the model, lacks; they are counted."""
    found = _own_part(settings, path, split, notes)
    if found is None:
        return None
    if not found:
        raise InputError(f"{path} holds no labelled row")
    spelt: dict[str, list[str]] = {}
    for name in classes:
        spelt.setdefault(_plain(name), []).append(name)
    own = set(classes)
    found = [_as_written(e, own, spelt) for e in found]
    known = [e for e in found if own.issuperset(names_of(e))]
    if len(known) < len(found):
        lacking = sorted(set(classes_of(found)) - own)
        notes.append(
            f"{len(found) - len(known):,} of {split} with labels that {whose} lacks "
            f"({told(lacking)}), left out"
        )
    if not known:
        raise InputError(
            f"{path} holds no example with a label that {whose} has ({told(classes)}); its labels "
            f"are {told(sorted(classes_of(found)))}"
        )
    return known


def _as_written(
    example: LabelledText, classes: Collection[str], spelt: Mapping[str, Sequence[str]]
) -> LabelledText:
    """An example whose label another table writes otherwise.

    So it may be with whole numbers, 1 and 1.0; with JSON's booleans, true and True; and with
    accented letters, which Unicode has in two forms.

    Args:
        spelt: classes by what is `_plain` of them.
    """

    def known(name: str) -> str:
        same = () if name in classes else spelt.get(_plain(name), ())
        return same[0] if len(same) == 1 else name

    label = example.label
    if label is None:
        return example
    if isinstance(label, str):
        return example._replace(label=known(label))
    return example._replace(label=tuple(sorted(map(known, label))))


def _plain(name: str) -> str:
    """The name of a class without what files write in two ways."""
    name = unicodedata.normalize("NFC", name).removesuffix(".0")
    return name.lower() if name.lower() in ("true", "false") else name


def _own_example(settings: FinetuneSettings, path: Path, split: str, row: Row) -> LabelledText:
    names = settings.text_column or "text", settings.label_column or "label"
    text = text_of(column(row, names[0], path, "--text-column"), path, row)
    pair = None
    if settings.text_pair_column:
        value = column(row, settings.text_pair_column, path, "--text-pair-column")
        pair = text_of(value, path, row)
    value = column(row, names[1], path, "--label-column")
    try:
        label = _label(value, settings.label_separator)
    except TypeError:
        raise InputError(
            f"{path}, line {row.line}: {names[1]!r} holds {value!r:.60}; expected the name of a "
            f"class, or a list of names"
        ) from None
    given = row.values.get("id")
    name = f"{split}:{row.line}" if given in (None, "") else str(given)
    return LabelledText(name, clean_text(text), label, None if pair is None else clean_text(pair))


def text_of(value: Any, path: Path, row: Row) -> str:
    """A value of a table as text, nothing as an empty one.

    Raises:
        InputError: it is something else, as in JSON lines it may be.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{path}, line {row.line}: {value!r} is no text")
    return value


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # NaN, which JSON of Python has for what is missing


def _name(value: Any) -> str:
    """The name of a class; a number that came through a column with gaps, as 1.0, is its 1.

    Raises:
        TypeError: it is something else, as in JSON lines it may be.
    """
    if isinstance(value, list | dict):
        raise TypeError(f"{value!r:.60} is no name")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _label(value: Any, separator: str | None) -> Label | None:
    """A class, or the classes of a text: a list, or names between separators.

    Raises:
        TypeError: as `_name`.
    """
    if isinstance(value, list):
        return tuple(sorted({_name(one) for one in value if not _is_missing(one)} - {""}))
    if _is_missing(value):
        return None
    name = _name(value)
    if separator:
        return tuple(sorted({part.strip() for part in name.split(separator)} - {""}))
    return name or None
