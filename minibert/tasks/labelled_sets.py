"""The public sets of labelled texts and pairs, in the formats that they are published in.

In: the folder, archive or file that a set is fetched as. Out: `Splits` of `LabelledText`.
"""

from __future__ import annotations

import bz2
import gzip
import html
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from minibert.errors import InputError
from minibert.files import read_text
from minibert.tasks.base import Splits
from minibert.tasks.labelled import LabelledText, clean_published, has_markup, noticed, text_of
from minibert.tasks.tables import Row, column, none_to_train_on, read_table


class PublicSet(NamedTuple):
    """A named set.

    labels: its classes in the order of their indices. places: where it is looked for. read: its
    reader. pairs: its examples are two texts. positive: the class whose F1 the field quotes.
    unlabelled: reads the texts without labels that are part of the set. unlabelled_part: what the
    set calls them. has_unlabelled: whether there are any, sooner known. is_unlabelled: whether a
    file, below what is read, is one of them.
    """

    labels: tuple[str, ...]
    places: tuple[str, ...]
    read: Callable[[Path], Splits[LabelledText]]
    pairs: bool = False
    positive: str | None = None
    unlabelled: Callable[[Path], Iterator[str]] | None = None
    unlabelled_part: str = ""
    has_unlabelled: Callable[[Path], bool] | None = None
    is_unlabelled: Callable[[Path, Path], bool] | None = None


# --- IMDb -----------------------------------------------------------------------------------------

IMDB_CLASSES = ("neg", "pos")
_IMDB_UNLABELLED = "train/unsup"


def read_imdb(path: Path) -> Splits[LabelledText]:
    """Reads the Large Movie Review Dataset (Maas et al. 2011), as folder or as tar archive.

    Files are `train|test/pos|neg/<id>_<stars>.txt`; other files are ignored. Markup such as
    `<br />` becomes a space.

    Raises:
        InputError: a split or a class is missing, or a file is not UTF-8.
    """
    found: dict[tuple[str, str], list[LabelledText]] = {}
    marked = 0
    for name, content in sorted(_imdb_files(path, "(?:train|test)/(?:pos|neg)")):
        split, label, file = name.split("/")
        text = _imdb_text(path, name, content)
        clean = clean_published(text)
        marked += has_markup(text)
        example = LabelledText(f"{split}/{label}/{file.removesuffix('.txt')}", clean, label)
        found.setdefault((split, label), []).append(example)
    for split in ("train", "test"):
        for label in IMDB_CLASSES:
            if (split, label) not in found:
                raise InputError(
                    f"{path} has no reviews under {split}/{label}; expected aclImdb with "
                    f"train and test, each with pos and neg"
                )
    train = [e for label in IMDB_CLASSES for e in found["train", label]]
    test = [e for label in IMDB_CLASSES for e in found["test", label]]
    notes = [f"{len(train):,} reviews to train on, {len(test):,} to test on"]
    if marked:
        notes.append(f"{marked:,} with markup, which was dropped")
    return Splits(train, test, str(path), (*notes, *noticed(train, None, test)))


def read_imdb_unlabelled(path: Path) -> Iterator[str]:
    """The reviews without a label, `train/unsup/<id>_0.txt`, tidied as the labelled ones are.

    They may lie in an archive of their own beside the labelled ones, `aclImdb*unsup*.tar*`.

    Raises:
        InputError: a file is not UTF-8; or nothing has any, and an archive is damaged.
    """
    fault = None
    for place in (path, *_unlabelled_archives(path)):
        try:
            found = sorted(_imdb_files(place, _IMDB_UNLABELLED))
        except InputError as error:
            fault = fault or error
            continue
        for name, content in found:
            yield clean_published(_imdb_text(place, name, content))
        if found:
            return
    if fault:
        raise fault


def has_imdb_unlabelled(path: Path) -> bool:
    """Whether `read_imdb_unlabelled` finds any; known by the first, so that few are read.

    Raises:
        InputError: nothing has any, and an archive is damaged at its beginning.
    """
    archives, fault = _unlabelled_archives(path), None
    for place in (path, *archives) if path.is_dir() else (*archives, path):
        try:
            if next(_imdb_files(place, _IMDB_UNLABELLED), None):
                return True
        except InputError as error:
            fault = fault or error
    if fault:
        raise fault
    return False


def _unlabelled_archives(path: Path) -> list[Path]:
    return sorted(path.parent.glob("aclImdb*unsup*.tar*"))


def is_imdb_unlabelled(path: Path, file: Path) -> bool:
    """Whether a file below a folder of the set is a review without a label, or not of the set."""
    root = _imdb_root(path).resolve()
    inside = file.resolve()
    return not inside.is_relative_to(root) or inside.is_relative_to(root / _IMDB_UNLABELLED)


def _imdb_text(path: Path, name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {name}, byte {error.start} is not UTF-8") from None


def _imdb_files(path: Path, folders: str) -> Iterator[tuple[str, bytes]]:
    """(split/class/file, content) of the reviews below a folder or in a tar archive.

    Args:
        folders: a pattern of split/class.
    """
    pattern = re.compile(rf"(?:^|/)({folders}/[^/]+\.txt)$")
    if path.is_dir():
        root = _imdb_root(path)
        for file in root.glob("*/*/*.txt"):
            name = file.relative_to(root).as_posix()
            if pattern.search(name):
                yield name, file.read_bytes()
        return
    try:
        with _open_archive(path) as plain:
            with tarfile.open(fileobj=plain, mode="r|") as archive:
                for member in archive:
                    match = pattern.search(member.name)
                    if match and member.isfile():
                        handle = archive.extractfile(member)
                        assert handle is not None  # a plain file
                        yield match.group(1), handle.read()
            while plain.read(1 << 20):  # to the end, where the checksum is compared
                pass
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise InputError(
            f"{path} is neither a folder nor a whole tar archive: {error}; for a table of your "
            f"own: --text-column text"
        ) from None


def _imdb_root(path: Path) -> Path:
    """The folder with train and test: the one that was named, or aclImdb in it."""
    return path / "aclImdb" if (path / "aclImdb").is_dir() else path


def _open_archive(path: Path) -> IO[bytes]:
    """The tar stream of an archive, unpacked by what its first bytes say."""
    with path.open("rb") as handle:
        head = handle.read(6)
    openers: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"\xfd7zXZ": lzma.open,
        b"BZh": bz2.open,
    }
    opener = next((o for magic, o in openers.items() if head.startswith(magic)), open)
    stream: IO[bytes] = opener(path, "rb")
    return stream


# --- tables ---------------------------------------------------------------------------------------


_KINDS = {".csv": ".csv", ".json": ".jsonl"}  # by the ending; every other file is a TSV


class _Table(NamedTuple):
    """How the files of a set's tables are laid out.

    columns: without a header, their names. text, pair, label: names of columns; several texts are
    put together. classes: what stands in the file -> the name of the class.
    """

    text: Sequence[str]
    label: str
    classes: dict[str, str]
    pair: str | None = None
    columns: tuple[str, ...] = ()


def _read_tables(
    path: Path, files: dict[str, dict[str, _Table]], tidy: Callable[[str], str] = clean_published
) -> Splits[LabelledText]:
    """The splits of a set, each from the first of its files that is there and has labels.

    Args:
        files: split -> file name -> its layout.

    Raises:
        InputError: not a folder, no file to train on, a row or label that does not belong.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is not a folder; expected one with {', '.join(files['train'])}; for a table "
            f"of your own: --text-column text"
        )
    found: dict[str, list[LabelledText]] = {}
    for split, layouts in files.items():
        for name, layout in layouts.items():
            if split not in found and (path / name).is_file():
                examples = _examples(path / name, split, layout, tidy)
                if examples:
                    found[split] = examples
    if "train" not in found:
        raise none_to_train_on(path, [*files["train"]])
    train, dev, test = found["train"], found.get("dev"), found.get("test")
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in found.items())
    return Splits(train, test, str(path), (sizes, *noticed(train, dev, test)), dev)


def _examples(
    path: Path, split: str, layout: _Table, tidy: Callable[[str], str]
) -> list[LabelledText]:
    """The examples of a file, none where it has no labels."""
    rows = read_table(path, layout.columns, _KINDS.get(path.suffix, ".tsv"))
    if rows and layout.label not in rows[0].values:
        return []
    return [_example(path, split, layout, row, tidy) for row in rows]


def _example(
    path: Path, split: str, layout: _Table, row: Row, tidy: Callable[[str], str]
) -> LabelledText:
    texts = [text_of(column(row, name, path, "text"), path, row) for name in layout.text]
    pair = None if layout.pair is None else tidy(column(row, layout.pair, path, "second text"))
    label = text_of(column(row, layout.label, path, "label"), path, row).strip()
    if label not in layout.classes:
        raise InputError(
            f"{path}, line {row.line}: label {label!r}, expected {', '.join(layout.classes)}"
        )
    text = " ".join(map(tidy, texts))
    return LabelledText(f"{split}:{row.line}", text, layout.classes[label], pair)


def _plain(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_SENTIMENT = {"0": "negative", "1": "positive"}
_GLUE_SST2 = _Table(("sentence",), "label", _SENTIMENT)
_BARE_SST2 = _GLUE_SST2._replace(columns=("sentence", "label"))


def read_sst2(path: Path) -> Splits[LabelledText]:
    """SST-2 (Socher et al. 2013) as GLUE has it, tested on sentences_test.tsv, which has labels."""
    files = {
        "train": {"train.tsv": _GLUE_SST2},
        "dev": {"dev.tsv": _GLUE_SST2},
        "test": {"test.tsv": _GLUE_SST2, "sentences_test.tsv": _BARE_SST2},
    }
    return _read_tables(path, files)


def read_mrpc(path: Path) -> Splits[LabelledText]:
    """MRPC (Dolan and Brockett 2005): GLUE's train and dev, the labelled test of the original."""
    classes = {"0": "not_equivalent", "1": "equivalent"}
    table = _Table(("#1 String",), "Quality", classes, "#2 String")
    train = {"train.tsv": table, "msr_paraphrase_train.txt": table}
    test = {"test.tsv": table, "msr_paraphrase_test.txt": table}
    return _read_tables(path, {"train": train, "dev": {"dev.tsv": table}, "test": test})


def _read_entailment(path: Path, first: str, second: str) -> Splits[LabelledText]:
    classes = _plain("entailment", "not_entailment")
    table = _Table((first,), "label", classes, second)
    splits = ("train", "dev", "test")
    return _read_tables(path, {split: {f"{split}.tsv": table} for split in splits})


def read_rte(path: Path) -> Splits[LabelledText]:
    """RTE as GLUE has it: does the second sentence follow from the first?"""
    return _read_entailment(path, "sentence1", "sentence2")


def read_qnli(path: Path) -> Splits[LabelledText]:
    """QNLI (Wang et al. 2019) as GLUE has it: does the sentence answer the question?"""
    return _read_entailment(path, "question", "sentence")


_NEWS = ("World", "Sports", "Business", "Sci/Tech")


def tidy_news(text: str) -> str:
    """AG's texts without what a conversion left: `#39;` for a quote, backslashes for line ends."""
    return clean_published(html.unescape(re.sub(r" ?&?(#\d+;)", r"&\1", text)).replace("\\", " "))


def read_ag_news(path: Path) -> Splits[LabelledText]:
    """AG's news (Zhang et al. 2015): class 1 to 4, title, description."""
    official = _Table(
        ("title", "description"),
        "class",
        {str(i): name for i, name in enumerate(_NEWS, 1)},
        columns=("class", "title", "description"),
    )
    # A subset that counts from 0 and has title and description in one.
    subset = _Table(
        ("text",),
        "class",
        {str(i): name for i, name in enumerate(_NEWS)},
        columns=("text", "class"),
    )
    train = {"train.csv": official, "train_subset_5000.csv": subset}
    return _read_tables(path, {"train": train, "test": {"test.csv": official}}, tidy_news)


def _bare(classes: Sequence[str]) -> _Table:
    """Text and the name of a class, without a header."""
    return _Table(("text",), "label", _plain(*classes), columns=("text", "label"))


_CHINESE_SENTIMENT = ("negative", "positive")


def read_chnsenticorp(path: Path) -> Splits[LabelledText]:
    """ChnSentiCorp (Tan and Zhang 2008): Chinese reviews of hotels, books and computers.

    As PaddleNLP has it, with a header and the classes 0 and 1, or as text and the name of a class
    without a header. Its test has no labels.
    """
    train, published = path / "train.tsv", _Table(("text_a",), "label", _SENTIMENT)
    first = read_text(train).partition("\n")[0] if train.is_file() else ""
    table = published if "text_a" in first.rstrip("\r").split("\t") else _bare(_CHINESE_SENTIMENT)
    return _read_tables(path, {split: {f"{split}.tsv": table} for split in ("train", "dev")})


# In the order of their published numbers, 100 to 116.
TNEWS_CLASSES = tuple(
    f"news_{name}"
    for name in (
        "story culture entertainment sports finance house car edu tech military travel world "
        "stock agriculture game"
    ).split()
)


def read_tnews(path: Path) -> Splits[LabelledText]:
    """TNEWS (Xu et al. 2020): titles of Chinese news in 15 classes.

    As JSON lines, as CLUE has it, or as text and the name of a class without a header. Its test
    has no labels.
    """
    published = _Table(("sentence",), "label_desc", _plain(*TNEWS_CLASSES))
    layouts = {".json": published, ".tsv": _bare(TNEWS_CLASSES)}
    splits = ("train", "dev")
    return _read_tables(
        path,
        {split: {f"{split}{end}": table for end, table in layouts.items()} for split in splits},
    )


_ENTAILMENT = ("entailment", "not_entailment")

PUBLIC = {
    "imdb": PublicSet(
        IMDB_CLASSES,
        ("aclImdb",),
        read_imdb,
        unlabelled=read_imdb_unlabelled,
        unlabelled_part="unsup",
        has_unlabelled=has_imdb_unlabelled,
        is_unlabelled=is_imdb_unlabelled,
    ),
    "sst2": PublicSet(("negative", "positive"), ("SST-2", "sst2"), read_sst2),
    "ag_news": PublicSet(_NEWS, ("ag_news_csv", "ag_news"), read_ag_news),
    "chnsenticorp": PublicSet(
        _CHINESE_SENTIMENT, ("ChnSentiCorp", "chnsenticorp"), read_chnsenticorp
    ),
    "tnews": PublicSet(TNEWS_CLASSES, ("tnews",), read_tnews),
    "mrpc": PublicSet(
        ("not_equivalent", "equivalent"), ("MRPC", "mrpc"), read_mrpc, True, "equivalent"
    ),
    "qnli": PublicSet(_ENTAILMENT, ("QNLI", "qnli"), read_qnli, True),
    "rte": PublicSet(_ENTAILMENT, ("RTE", "rte"), read_rte, True),
}
