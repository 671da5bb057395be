"""Labelled texts: what an example of classification is, and the public IMDb set.

In: files as they are published. Out: `Splits` of `LabelledText`.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from minibert.errors import InputError
from minibert.tasks.base import Splits

_MARKUP = re.compile(r"<[a-zA-Z/][^<>]{0,40}>")  # <br />, <i>, </b>
IMDB_CLASSES = ("neg", "pos")


class LabelledText(NamedTuple):
    """One example. `id` says where it comes from.

    label: the name of its class; names, of a text with any number of them; None where unknown.
    text_pair: the second text, of tasks on pairs.
    """

    id: str
    text: str
    label: str | tuple[str, ...] | None
    text_pair: str | None = None


def same_text(text: str) -> str:
    """What two copies of a text share."""
    return " ".join(text.lower().split())


def read_imdb(path: Path) -> Splits[LabelledText]:
    """Reads the Large Movie Review Dataset (Maas et al. 2011), as folder or as tar archive.

    Files are `train|test/pos|neg/<id>_<stars>.txt`; other files are ignored. Markup such as
    `<br />` becomes a space.

    Raises:
        InputError: a split or a class is missing, or a file is not UTF-8.
    """
    found: dict[tuple[str, str], list[LabelledText]] = {}
    marked = 0
    for name, content in sorted(_imdb_files(path)):
        split, label, file = name.split("/")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: {name}, byte {error.start} is not UTF-8") from None
        clean = clean_text(text)
        marked += bool(_MARKUP.search(text))
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
    seen = {same_text(e.text) for e in train}
    shared = sum(same_text(e.text) in seen for e in test)
    notes = [f"{len(train):,} reviews to train on, {len(test):,} to test on"]
    if marked:
        notes.append(f"{marked:,} with markup, which was dropped")
    if len(seen) < len(train):
        notes.append(f"{len(train) - len(seen):,} repeated within train")
    if shared:
        notes.append(f"{shared:,} test texts occur in train, too")
    empty = sum(not e.text for e in (*train, *test))
    if empty:
        notes.append(f"{empty:,} empty")
    return Splits(train, test, str(path), tuple(notes))


def clean_text(text: str) -> str:
    """A text without markup and NUL characters, white space made single spaces."""
    return " ".join(_MARKUP.sub(" ", text).replace("\0", "").split())


def _imdb_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(split/class/file, content) of the labelled reviews below a folder or in a tar archive."""
    pattern = re.compile(r"(?:^|/)((?:train|test)/(?:pos|neg)/[^/]+\.txt)$")
    if path.is_dir():
        root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
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
        raise InputError(f"{path} is neither a folder nor a whole tar archive: {error}") from None


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
