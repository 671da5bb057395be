"""Public data sets: fetched over HTTP, checked, unpacked.

In: the name of a data set and a folder. Out: the unpacked data set in it, whole or not at all.
On the way lie `<archive>.part` (what has arrived so far; a later call goes on from there) and
`<archive>` (complete and checked), which stays beside the unpacked folder. A set of plain files is
gathered in `<folder>.part` instead.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import logging
import lzma
import re
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit

from tqdm import tqdm

from minibert.errors import DownloadError, InputError, did_you_mean
from minibert.files import write_atomically
from minibert.version import __version__

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes asked for at a time
_HEAD = 1 << 10  # bytes that tell what came
_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_TIMEOUT_SECONDS = 30.0  # of silence, not of the whole transfer
_PAUSES_SECONDS = (1.0, 2.0, 4.0)  # before the second, third and fourth attempt
# The WikiText mirror answers 403 to urllib's own name.
_USER_AGENT = f"minibert/{__version__}"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    name: its own name. url: of the archive. archive: the file name it is kept under.
    checksum: "md5:…" or "sha256:…" of the archive; None where none is published.
    folder: the folder that the archive holds. description: one line, with the terms of use.
    is_flat: the archive holds the files themselves, and `folder` is made for them.
    """

    name: str
    url: str
    archive: str
    checksum: str | None
    folder: str
    description: str
    is_flat: bool = False


@dataclass(frozen=True)
class FileSet:
    """A data set of plain files, for which no checksums are published.

    name: its own name. url: where all of them lie. files: their names. folder: made for them.
    description: one line, with the terms of use.
    """

    name: str
    url: str
    files: tuple[str, ...]
    folder: str
    description: str


def _wikitext(size: str, checksum: str) -> Source:
    return Source(
        name=f"wikitext-{size}",
        # The publisher's own address (research.metamind.io) is closed; this is the author's mirror.
        url=f"https://wikitext.smerity.com/wikitext-{size}-v1.zip",
        archive=f"wikitext-{size}-v1.zip",
        checksum=checksum,
        folder=f"wikitext-{size}",
        description=f"WikiText-{size}: good and featured articles of the English Wikipedia, as "
        f"tokens (Merity et al. 2016); Creative Commons Attribution-ShareAlike",
    )


def _glue(name: str, archive: str, folder: str, description: str) -> Source:
    """One of GLUE's sets (Wang et al. 2019), at the address its own download script names."""
    return Source(
        name=name,
        url=f"https://dl.fbaipublicfiles.com/glue/data/{archive}.zip",
        archive=f"{archive}.zip",
        checksum=None,
        folder=folder,
        description=f"{description}, as in GLUE; no licence stated",
    )


def _squad(name: str, version: str, what: str) -> FileSet:
    """A version of SQuAD at its publisher's address."""
    return FileSet(
        name=name,
        url="https://rajpurkar.github.io/SQuAD-explorer/dataset",
        files=(f"train-v{version}.json", f"dev-v{version}.json"),
        folder=name,
        description=f"SQuAD {version}: questions on Wikipedia, {what} (Rajpurkar et al. 2016, "
        f"2018); CC BY-SA 4.0",
    )


SOURCES: dict[str, Source | FileSet] = {
    "imdb": Source(
        name="imdb",
        url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        archive="aclImdb_v1.tar.gz",
        # As in torchtext (torchtext/datasets/imdb.py).
        checksum="md5:7c2ac02c03563afcf9b574c7e56c153a",
        folder="aclImdb",
        description="IMDB: 50,000 film reviews, positive or negative, and 50,000 without labels; "
        "no licence stated, to be cited as Maas et al. 2011",
    ),
    "sst2": _glue("sst2", "SST-2", "SST-2", "SST-2: phrases of film reviews, two classes"),
    "rte": _glue("rte", "RTE", "RTE", "RTE: does one sentence follow from another"),
    "qnli": _glue("qnli", "QNLIv2", "QNLI", "QNLI: does a sentence answer a question"),
    "stsb": _glue("stsb", "STS-B", "STS-B", "STS-B: how alike two sentences are, 0 to 5"),
    "mrpc": FileSet(
        name="mrpc",
        url="https://dl.fbaipublicfiles.com/senteval/senteval_data",
        files=("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),
        folder="MRPC",
        description="MRPC: pairs of sentences, equivalent or not (Dolan & Brockett 2005); "
        "Microsoft's terms, for research",
    ),
    "ag_news": FileSet(
        name="ag_news",
        url="https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv",
        files=("train.csv", "test.csv"),
        folder="ag_news",
        description="AG News: 127,600 news items of four classes (Zhang et al. 2015); for research",
    ),
    "chnsenticorp": Source(
        name="chnsenticorp",
        url="https://bj.bcebos.com/paddlenlp/datasets/ChnSentiCorp.zip",
        archive="ChnSentiCorp.zip",
        # As in PaddleNLP (paddlenlp/datasets/chnsenticorp.py).
        checksum="md5:7ef61b08ad10fbddf2ba97613f071561",
        folder="ChnSentiCorp",
        description="ChnSentiCorp: 12,000 Chinese reviews, positive or negative, 1,200 of them "
        "without labels (Tan & Zhang 2008); no licence stated",
    ),
    "tnews": Source(
        name="tnews",
        url="https://storage.googleapis.com/cluebenchmark/tasks/tnews_public.zip",
        archive="tnews_public.zip",
        # CLUE publishes none; this is what several projects that fetched the archive have found.
        checksum="sha256:77c476e70cfe0b014a81b84c6e1db2142a8a2f52f4ae0a8216aa75e673933462",
        folder="tnews",
        description="TNEWS: 63,360 titles of Chinese news in 15 classes, and 10,000 without labels "
        "(Xu et al. 2020); no licence stated",
        is_flat=True,
    ),
    "conll2003": Source(
        name="conll2003",
        url="https://data.deepai.org/conll2003.zip",
        archive="conll2003.zip",
        checksum=None,
        folder="conll2003",
        description="CoNLL-2003: news with people, places, organisations (Tjong Kim Sang & De "
        "Meulder 2003); text of Reuters, for research",
        is_flat=True,
    ),
    "squad": _squad("squad", "1.1", "answers are spans of their paragraphs"),
    "squad2": _squad("squad2", "2.0", "some questions have no answer"),
    "multi30k": FileSet(
        name="multi30k",
        url="https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw",
        files=tuple(
            f"{split}.{language}.gz"
            for split in ("train", "val", "test_2016_flickr")
            for language in ("en", "de", "fr")
        ),
        folder="multi30k",
        description="Multi30k: 31,014 captions of photographs in English, German and French "
        "(Elliott et al. 2016); CC BY-NC-SA 4.0",
    ),
    "dialogsum": FileSet(
        name="dialogsum",
        url="https://huggingface.co/datasets/knkarthick/dialogsum/resolve/main",
        files=("train.csv", "validation.csv", "test.csv"),
        folder="dialogsum",
        description="DialogSum: 13,460 dialogues and summaries (Chen et al. 2021); CC BY-NC-SA 4.0",
    ),
    # Both as in mlx-data (python/mlx/data/datasets/wikitext.py), taken at the publisher's address.
    "wikitext-2": _wikitext(
        "2", "sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"
    ),
    "wikitext-103": _wikitext(
        "103", "sha256:242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590"
    ),
}
SOURCES["wikitext"] = SOURCES["wikitext-2"]


def download(name: str, directory: Path, *, url: str | None = None) -> Path:
    """Fetches a data set, checks it and unpacks it, doing only what an earlier call left undone.

    Args:
        name: a key of `SOURCES`.
        directory: where the archive and the unpacked folder go; created if missing.
        url: another address of the same archive, whose checksum must be the same, or of the folder
            that holds the same files.

    Returns:
        The unpacked folder.

    Raises:
        InputError: an unknown name, an address that is not http(s), a directory that is a file.
        DownloadError: nothing at the address, no connection, a transfer that broke off, a wrong
            checksum, a damaged archive, or one that would write outside its folder.
    """
    if name not in SOURCES:
        raise InputError(f"unknown data set {name!r}{did_you_mean(name, SOURCES)}")
    source = SOURCES[name]
    address = source.url if url is None else url
    _check_address(address)
    folder = directory / source.folder
    if folder.is_dir() and any(folder.iterdir()):
        logger.info("%s is already unpacked in %s", name, folder)
        return folder
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{directory} is not a folder; data sets need one to go into") from None

    if isinstance(source, FileSet):
        _gather(source, address, folder)
        return folder
    archive = directory / source.archive
    record = archive.with_name(archive.name + ".sha256")
    if archive.exists():
        logger.info("%s is already there", archive)
        _check_sum(archive, source.checksum, record)
    else:
        part = archive.with_name(archive.name + ".part")
        _transfer(address, part)
        # Checked under the old name: what bears the final name has passed.
        _check_sum(part, source.checksum, record)
        part.rename(archive)
    _unpack(archive, record, folder, source.is_flat)
    return folder


def _gather(source: FileSet, address: str, folder: Path) -> None:
    """Fetches the files that are not here yet, then gives their folder its name.

    What came is recorded in SHA256SUMS, for `sha256sum -c`.
    """
    gathered = folder.with_name(f"{folder.name}.part")
    gathered.mkdir(exist_ok=True)
    for name in source.files:
        if not (gathered / name).exists():
            part, url = gathered / f"{name}.part", f"{address.rstrip('/')}/{name}"
            _transfer(url, part)
            _check_head(part, name, url)
            part.rename(gathered / name)
    lines = []
    for name in source.files:
        with (gathered / name).open("rb") as handle:
            lines.append(f"{hashlib.file_digest(handle, 'sha256').hexdigest()}  {name}\n")
    (gathered / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    logger.info("no checksums are published; recorded in %s", folder / "SHA256SUMS")
    if folder.is_dir():
        folder.rmdir()  # an empty one
    gathered.rename(folder)


def _check_head(part: Path, name: str, url: str) -> None:
    """Raises DownloadError for a page in a file's place, as of a proxy that asks for a password."""
    with part.open("rb") as handle:
        head = handle.read(_HEAD)
    is_page = _PAGE.match(head) is not None
    is_packed = name.endswith(".gz") and not head.startswith(_GZIP)
    if is_page or is_packed:
        part.unlink()
        what = "a web page" if is_page else "no gzip file"
        raise DownloadError(
            f"{url} answers with {what} in place of {name}; is there a proxy that wants a login?"
        )


# --- transfer ----------------------------------------------------------------------------------


_Answer = http.client.HTTPResponse | urllib.error.HTTPError  # an error can be read as well


class _Cut(Exception):
    """A transfer that ended early or found no answer: worth another attempt."""


class _Unreachable(_Cut):
    """The server was not reached at all."""


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        # .port is read for its own check: it raises ValueError where it is no number.
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{url!r} is not an address to fetch from; expected http://… or https://…")


def _web_opener() -> urllib.request.OpenerDirector:
    """urllib without its handlers for file:, ftp: and data:, so that redirects stay on the web."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _transfer(url: str, part: Path) -> None:
    """Fetches what `part` still lacks; a transfer that is cut is taken up again a few times."""
    logger.info("fetching %s", url)
    for attempt, pause in enumerate((*_PAUSES_SECONDS, None)):
        try:
            _fetch_rest(url, part)
            _tag_of(part).unlink(missing_ok=True)
            return
        except _Cut as cut:
            if isinstance(cut, _Unreachable) and attempt == 0:  # no network: waiting helps nobody
                raise DownloadError(f"{url}: {cut}") from None
            if pause is None:
                raise DownloadError(
                    f"{url}: {cut}, {attempt + 1} times; {_size(part):,} bytes are kept, "
                    f"run the command again to go on from there"
                ) from None
            logger.warning("%s: %s; trying again in %g s", url, cut, pause)
            time.sleep(pause)


def _fetch_rest(url: str, part: Path) -> None:
    """One request, for the bytes that come after those in `part`."""
    offset = _size(part)
    with _ask(url, offset, _tag_of(part)) as response:
        place = _place(response, offset)
        if response.status == 200:
            _note_tag(response, _tag_of(part))
        # 416 that fits: an earlier call stopped just before the rename; its body is a message.
        if place is not None and response.status != 416:
            _append(response, part, *place)
    if place is None:
        if offset == 0:
            raise DownloadError(f"{url}: the server sends another part of the file than asked for")
        # What lies here is not the start of what lies there: begin anew, without a range.
        part.unlink()
        _fetch_rest(url, part)
        return
    total = place[1]
    if total is not None and _size(part) != total:
        raise _Cut(f"the transfer broke off at {_size(part):,} of {total:,} bytes")


def _tag_of(part: Path) -> Path:
    """The file beside a part that says of which version of the whole it is."""
    return part.with_name(f"{part.name}.tag")


def _note_tag(answer: _Answer, tag: Path) -> None:
    """Keeps what the server calls this version of a file, where it calls it something."""
    name = answer.headers.get("ETag", "")
    if name.startswith("W/") or not name:  # alike is not the same to the byte
        name = answer.headers.get("Last-Modified", "")
    if name:
        tag.write_text(name, encoding="utf-8")
    else:
        tag.unlink(missing_ok=True)


def _ask(url: str, offset: int, tag: Path) -> _Answer:
    """The answer to a request for everything from `offset` on: status 200, 206 or 416.

    Where the file has become another since, it is 200 with the whole (RFC 9110, section 13.1.5).

    Args:
        tag: the file with the name of the version that the bytes before `offset` are of, if any.
    """
    headers = {"User-Agent": _USER_AGENT}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        with contextlib.suppress(FileNotFoundError):
            headers["If-Range"] = tag.read_text(encoding="utf-8")
    request = urllib.request.Request(url, headers=headers)
    try:
        response: http.client.HTTPResponse = _web_opener().open(request, timeout=_TIMEOUT_SECONDS)
        return response
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:
            return error
        error.close()
        # One line: urllib's own words on a circle of redirects are three.
        answer = " ".join(f"the server answers {error.code} {error.reason}".split())
        if error.code in (408, 429) or error.code >= 500:  # busy or broken for the moment
            raise _Cut(answer) from None
        raise DownloadError(f"{url}: {answer}") from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise _Unreachable(f"cannot be reached ({reason})") from None


def _place(response: _Answer, offset: int) -> tuple[int, int | None] | None:
    """Where an answer's bytes begin in the file, and the file's size where it is told.

    None for an answer that does not go with the `offset` bytes that are here.
    """
    if response.status == 200:  # the whole, be it asked for or because ranges are ignored
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    given = response.headers.get("Content-Range", "")
    # 416: nothing comes after the offset. That is well if the file ends there.
    if response.status == 416 and given == f"bytes */{offset}":
        return offset, offset
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", given)
    if response.status != 206 or match is None or int(match[1]) not in (0, offset):
        return None
    return int(match[1]), int(match[2]) + 1 if match[3] == "*" else int(match[3])


def _append(response: _Answer, part: Path, start: int, total: int | None) -> None:
    """Writes an answer to `part` from byte `start` on: behind what is there, or in its stead."""
    with (
        part.open("ab" if start else "wb") as handle,
        _byte_bar(part.name.removesuffix(".part"), total, start) as bar,
    ):
        for block in _blocks(response):
            handle.write(block)
            bar.update(len(block))


def _blocks(response: _Answer) -> Iterator[bytes]:
    """The bytes of an answer as they arrive; only faults of the network become a `_Cut`."""
    try:
        # read1, unlike read, hands on what has come when the connection dies in mid-block.
        while block := response.read1(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the transfer broke off ({error!r})") from None


def _byte_bar(label: str, total: int | None, start: int = 0) -> tqdm:
    """Progress in bytes, on standard error where that is a terminal."""
    options = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
    return tqdm(desc=label, total=total, initial=start, **options)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# --- checksum ----------------------------------------------------------------------------------


def _check_sum(archive: Path, published: str | None, record: Path) -> None:
    """Compares with the published checksum, else with the recorded one, else records it."""
    algorithm, _, expected = (published or "sha256:").partition(":")
    origin = "is published"
    if published is None and record.exists():
        expected = record.read_text(encoding="utf-8").strip().partition(" ")[0]
        origin = f"was recorded in {record} (to be deleted if the data set was renewed)"
    with archive.open("rb") as handle:
        found = hashlib.file_digest(handle, algorithm).hexdigest()
    if not expected:
        # The form of sha256sum, so that `sha256sum -c` reads it too.
        line = f"{found}  {record.name.removesuffix('.sha256')}\n"
        write_atomically(record, lambda path: path.write_text(line, encoding="utf-8"))
        logger.info("no checksum is published; recorded sha256 %s in %s", found, record)
    elif found != expected.lower():
        archive.unlink()
        raise DownloadError(
            f"{archive} has {algorithm} {found}, but {expected} {origin}; the file was removed, "
            f"run the command again to fetch it anew"
        )


# --- unpacking ---------------------------------------------------------------------------------

# What the libraries raise on a file that is not, or not wholly, an archive.
_DAMAGE = (
    tarfile.ReadError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
)


def _unpack(archive: Path, record: Path, folder: Path, is_flat: bool) -> None:
    """Unpacks into a temporary folder beside `folder`, which is renamed when it is whole."""
    # One fixed name: what a killed run left behind is found and cleared away.
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        if archive.suffix == ".zip":
            _unpack_zip(archive, temporary)
        else:
            _unpack_tar(archive, temporary)
        whole = temporary if is_flat else temporary / folder.name
        if not whole.is_dir():
            found = ", ".join(sorted(p.name for p in temporary.iterdir())[:5]) or "nothing"
            raise DownloadError(f"{archive} holds no folder {folder.name!r}, but {found}")
        if folder.is_dir():
            folder.rmdir()  # an empty one; not every system renames onto it
        whole.rename(folder)
    except _DAMAGE as error:
        # As it was sent, so it would stay: without this, the next call would stop here again.
        archive.unlink()
        record.unlink(missing_ok=True)
        raise DownloadError(
            f"{archive} is not a whole archive ({error}); it was removed, "
            f"run the command again to fetch it anew"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _leads_out(name: str) -> bool:
    """True for an absolute path, or one with '..'; by the rules of Windows as well."""
    path = PureWindowsPath(name)  # takes both / and \ as separators
    return bool(path.drive or path.root) or ".." in path.parts


def _refuse(archive: Path, member: str, reason: str) -> DownloadError:
    return DownloadError(f"{archive}: member {member!r} {reason}; nothing of it was unpacked")


def _unpack_tar(archive: Path, target: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError("unpacking safely needs Python 3.11.4 or later")
    with (
        archive.open("rb") as raw,
        tarfile.open(fileobj=raw, mode="r:*") as tar,
        _byte_bar(f"unpacking {archive.name}", _size(archive)) as bar,
    ):
        for member in tar:
            # The filter makes absolute names relative in silence, and has let chains of links
            # with '..' out in the past; here both are refused outright.
            if _leads_out(member.name):
                raise _refuse(archive, member.name, "leads out of the folder")
            if (member.issym() or member.islnk()) and _leads_out(member.linkname):
                raise _refuse(archive, member.name, f"is a link to {member.linkname!r}")
            try:
                tar.extract(member, target, filter="data")
            except tarfile.FilterError as error:  # devices, pipes
                raise _refuse(archive, member.name, f"is refused ({error})") from None
            bar.update(raw.tell() - bar.n)


def _unpack_zip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            if _leads_out(member.filename):
                raise _refuse(archive, member.filename, "leads out of the folder")
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where no Unix mode is stored
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refuse(archive, member.filename, "is a link or a special file")
        total = sum(member.compress_size for member in members)
        with _byte_bar(f"unpacking {archive.name}", total) as bar:
            for member in members:
                file.extract(member, target)
                bar.update(member.compress_size)
