"""Downloads, against a web server on this machine that can cut, ignore and refuse."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import logging
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from minibert import download as module
from minibert.cli import main
from minibert.download import SOURCES, FileSet, Source, download
from minibert.errors import DownloadError, InputError
from minibert.settings import FinetuneSettings
from minibert.tasks import find_task

# Does not compress: an archive of it is long enough to be cut anywhere.
NOISE = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(2000))


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def tar_of(*members: str | tarfile.TarInfo) -> bytes:
    """A .tar.gz; names stand for files of NOISE."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(NOISE) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(NOISE))
    return buffer.getvalue()


def zip_of(*members: str | zipfile.ZipInfo | dict[str, str]) -> bytes:
    """A .zip; names stand for files of NOISE, and a dict for texts by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for member in members:
            texts = member if isinstance(member, dict) else {member: NOISE}
            for name, content in texts.items():
                file.writestr(name, content)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one file, and behaves badly where told to.

    cuts: after how many bytes of the body to hang up, one entry a request, then no more.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = tar_of("set/a.txt", "set/deep/b.txt")
        self.asked: list[str | None] = []  # the Range header of every request
        self.agents: list[str] = []
        self.sent = 0  # bytes of bodies
        self.cuts: list[int] = []
        self.statuses: list[int] = []  # answered instead of the file, one a request
        self.knows_ranges = True
        self.false_start = 0  # added to the start that an answer to a range claims
        self.redirect = ""
        self.tags: dict[str, str] = {}  # headers that name the version
        self.next: tuple[bytes, dict[str, str]] | None = None  # after the first answer
        self.url = f"http://127.0.0.1:{self.server_port}/set.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        server.agents.append(self.headers["User-Agent"])
        size = len(server.body)
        start = int(asked[6:-1]) if asked and server.knows_ranges else 0
        wanted = self.headers["If-Range"]
        if wanted and wanted not in server.tags.values():
            start = 0
        if server.redirect and self.path != "/moved":
            self.answer(302, {"Location": server.redirect})
        elif server.statuses:
            self.answer(server.statuses.pop(0), {})
        elif start >= size:
            self.answer(416, {"Content-Range": f"bytes */{size}"}, b"no such bytes")
        elif start:
            begin = start + server.false_start
            self.answer(
                206,
                {"Content-Range": f"bytes {begin}-{size - 1}/{size}", **server.tags},
                server.body[start:],
            )
        else:
            self.answer(200, server.tags, server.body)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if status in (200, 206) and self.server.cuts:
            body = body[: self.server.cuts.pop(0)]
        # Counted first: the client may be done before this thread goes on.
        self.server.sent += len(body) if status in (200, 206) else 0
        if self.server.next:
            (self.server.body, self.server.tags), self.server.next = self.server.next, None
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server, with "set" as the name of what it serves."""
    server = Server()
    # A short poll, so that shutting down does not take half a second a test.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    offer(monkeypatch, server)
    monkeypatch.setattr(module, "_PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def offer(monkeypatch: pytest.MonkeyPatch, server: Server, **changes: Any) -> None:
    """Makes "set" a known data set whose published checksum is right unless told otherwise."""
    checksum = f"sha256:{hashlib.sha256(server.body).hexdigest()}"
    fields: dict[str, Any] = {"archive": "set.tar.gz", "checksum": checksum, **changes}
    monkeypatch.setitem(
        SOURCES, "set", Source("set", server.url, folder="set", description="", **fields)
    )


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


UNPACKED = {"set", "set/a.txt", "set/deep", "set/deep/b.txt"}


# --- the transfer ------------------------------------------------------------------------------


def test_a_data_set_arrives_whole(server: Server, tmp_path: Path) -> None:
    folder = download("set", tmp_path / "new" / "folder")
    assert folder == tmp_path / "new" / "folder" / "set"
    assert (folder / "deep" / "b.txt").read_bytes() == NOISE
    # Nothing half-done and nothing temporary stays behind.
    assert files_in(folder.parent) == {*UNPACKED, "set.tar.gz"}
    # The WikiText mirror turns urllib's own name away.
    assert server.asked == [None]
    assert server.agents[0].startswith("minibert/")


def test_a_zip_arrives_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = zip_of("set/a.txt", "set/deep/b.txt")
    offer(monkeypatch, server, archive="set.zip")
    assert (download("set", tmp_path) / "deep" / "b.txt").read_bytes() == NOISE
    assert files_in(tmp_path) == {*UNPACKED, "set.zip"}


def test_a_cut_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [10_000, 20_000]
    folder = download("set", tmp_path)
    assert files_in(folder.parent) == {*UNPACKED, "set.tar.gz"}
    assert server.asked == [None, "bytes=10000-", "bytes=30000-"]
    assert server.sent == len(server.body)  # no byte twice


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 1000, 1000]
    with pytest.raises(RuntimeError, match="3,000 bytes are kept, run the command again") as error:
        download("set", tmp_path)
    assert server.url in str(error.value)
    assert files_in(tmp_path) == {"set.tar.gz.part"}
    download("set", tmp_path)
    assert server.asked[-1] == "bytes=3000-"
    assert server.sent == len(server.body)


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.cuts, server.knows_ranges = [10_000], False
    assert (download("set", tmp_path) / "a.txt").read_bytes() == NOISE
    assert server.asked == [None, "bytes=10000-"]
    assert (tmp_path / "set.tar.gz").read_bytes() == server.body


def test_a_range_that_starts_elsewhere_is_not_pieced_together(
    server: Server, tmp_path: Path
) -> None:
    server.cuts, server.false_start = [10_000], 7
    download("set", tmp_path)
    assert server.asked == [None, "bytes=10000-", None]
    assert (tmp_path / "set.tar.gz").read_bytes() == server.body


def test_a_complete_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(server.body)
    download("set", tmp_path)
    assert server.sent == 0
    assert files_in(tmp_path) == {*UNPACKED, "set.tar.gz"}


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(server.body + b"more")
    download("set", tmp_path)
    assert server.asked == [f"bytes={len(server.body) + 4}-", None]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    download("set", tmp_path)
    assert len(server.asked) == 3


def test_a_second_call_sends_no_request(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = download("set", tmp_path)
    (folder / "mine.txt").write_text("kept", encoding="utf-8")
    with caplog.at_level(logging.INFO, logger="minibert.download"):
        assert download("set", tmp_path) == folder
    assert len(server.asked) == 1
    assert (folder / "mine.txt").exists()
    assert "already unpacked" in caplog.text


def test_a_complete_archive_is_unpacked_without_a_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz").write_bytes(server.body)
    download("set", tmp_path)
    assert server.asked == []
    assert files_in(tmp_path) == {*UNPACKED, "set.tar.gz"}


def test_a_missing_page_is_named_once(server: Server, tmp_path: Path) -> None:
    server.statuses = [404, 404, 404]
    with pytest.raises(RuntimeError) as error:
        download("set", tmp_path)
    assert str(error.value) == f"{server.url}: the server answers 404 Not Found"
    assert len(server.asked) == 1
    assert files_in(tmp_path) == set()


def test_an_unreachable_server_is_named_at_once(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, so nobody else gets the port; not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/set.tar.gz"
        with pytest.raises(RuntimeError, match=rf"^{url}: cannot be reached \(.*\)$") as error:
            download("set", tmp_path, url=url)
    assert "\n" not in str(error.value)


def test_a_redirect_is_followed_on_the_web_only(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside.tar.gz"
    outside.write_bytes(server.body)
    refusals = {
        outside.as_uri(): "not allowed",
        "data:,set": "not allowed",
        "ftp://127.0.0.1/set.tar.gz": "unknown url type: ftp",
    }
    for target, refusal in refusals.items():
        server.redirect = target
        with pytest.raises(RuntimeError, match=f"^{re.escape(server.url)}: .*{refusal}"):
            download("set", tmp_path / "data")
    assert main(["download", "set", "--directory", str(tmp_path / "data")]) == 1
    assert f"\nminibert: {server.url}: " in f"\n{capsys.readouterr().err}"
    assert files_in(tmp_path / "data") == set()
    server.redirect = "/round"  # and again, and again
    with pytest.raises(RuntimeError, match="infinite loop") as error:
        download("set", tmp_path / "data")
    assert "\n" not in str(error.value)
    server.redirect = "/moved"
    assert download("set", tmp_path / "data").is_dir()


@pytest.mark.parametrize(
    "url", ["file:///set.tar.gz", "ftp://host/set", "set.tar.gz", "http://", "http://host:port/"]
)
def test_only_web_addresses_are_taken(server: Server, tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="expected http"):
        download("set", tmp_path, url=url)


def test_another_address_must_give_the_same_archive(server: Server, tmp_path: Path) -> None:
    server.body += b"x"
    with pytest.raises(RuntimeError, match="is published"):
        download("set", tmp_path, url=server.url.replace("set.tar.gz", "mirror"))


# --- names and folders -------------------------------------------------------------------------


def test_an_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'imbd'; did you mean 'imdb'"):
        download("imbd", tmp_path)


def test_a_file_in_place_of_the_directory_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is not a folder"):
            download("set", place)
    assert server.asked == []


def test_every_source_can_be_fetched_and_checked() -> None:
    assert SOURCES["wikitext"] is SOURCES["wikitext-2"]
    for name in ("imdb", "chnsenticorp", "tnews", "wikitext-2", "wikitext-103"):
        source = SOURCES[name]
        assert isinstance(source, Source)
        assert source.name == name
        assert source.url == source.url.strip()
        assert source.url.startswith("https://")
        assert source.url.endswith(f"/{source.archive}")
        assert source.archive.endswith((".tar.gz", ".zip"))
        assert "\n" not in source.description
        # As many digits as the algorithm has: a sum cut short would refuse every download.
        algorithm, digits = (source.checksum or "").split(":")
        assert re.fullmatch(r"[0-9a-f]+", digits)
        assert len(digits) == 2 * hashlib.new(algorithm).digest_size


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_set_names_where_it_lies_and_its_terms(name: str) -> None:
    source = SOURCES[name]
    assert re.fullmatch(r"https://[a-z0-9.-]+/[\w./~-]+", source.url)
    assert not source.url.endswith("/")
    assert source.folder == Path(source.folder).name
    assert "\n" not in source.description


def offer_files(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    address = server.url.rpartition("/")[0] + "/folder"
    files = FileSet("files", address, ("a.txt", "b.txt"), "files", "")
    monkeypatch.setitem(SOURCES, "files", files)


def test_plain_files_arrive_together_and_are_recorded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = NOISE
    offer_files(monkeypatch, server)
    folder = download("files", tmp_path)
    assert files_in(tmp_path) == {"files", "files/a.txt", "files/b.txt", "files/SHA256SUMS"}
    assert (folder / "b.txt").read_bytes() == NOISE
    digest = hashlib.sha256(NOISE).hexdigest()
    assert (folder / "SHA256SUMS").read_text() == f"{digest}  a.txt\n{digest}  b.txt\n"
    assert download("files", tmp_path) == folder
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a.json", "a web page in place of a.json"),
        (b"<html><body>Sign in", "train.en.gz", "a web page in place of train.en.gz"),
        (b"Sign in", "train.en.gz", "no gzip file in place of train.en.gz"),
    ],
)
def test_a_page_in_the_place_of_a_file_is_refused_and_not_kept(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: bytes,
    name: str,
    said: str,
) -> None:
    server.body = body
    address = server.url.rpartition("/")[0]
    monkeypatch.setitem(SOURCES, "files", FileSet("files", address, (name,), "files", ""))
    with pytest.raises(DownloadError, match=said):
        download("files", tmp_path)
    assert files_in(tmp_path) == {"files.part"}
    server.body = gzip.compress(NOISE)
    assert (download("files", tmp_path) / name).read_bytes() == server.body


def test_plain_files_go_on_where_an_earlier_call_gave_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = NOISE
    server.cuts = [len(NOISE), 100, 0, 0]  # the second file breaks off, thrice
    offer_files(monkeypatch, server)
    with pytest.raises(RuntimeError, match="run the command again"):
        download("files", tmp_path)
    assert not (tmp_path / "files").exists()
    folder = download("files", tmp_path)
    assert server.asked[-1] == "bytes=100-"
    assert (folder / "a.txt").read_bytes() == (folder / "b.txt").read_bytes() == NOISE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"one"'}, {"ETag": '"two"'}),
        ({"ETag": 'W/"alike"', "Last-Modified": "Mon"}, {"Last-Modified": "Tue"}),
        ({"ETag": '"one"'}, {"ETag": '"one"'}),
        ({}, {}),
    ],
)
def test_two_versions_of_a_file_are_not_pieced_together(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str],
    after: dict[str, str],
) -> None:
    """Of plain files no checksum would notice."""
    is_other = before != after
    server.body, server.tags, server.cuts = NOISE, before, [100]
    server.next = (NOISE[::-1] if is_other else NOISE, after)
    offer_files(monkeypatch, server)
    folder = download("files", tmp_path)
    assert (folder / "a.txt").read_bytes() == server.body
    assert server.asked[:2] == [None, "bytes=100-"]
    assert (server.sent == 2 * len(NOISE)) != is_other  # taken up, or sent again
    assert files_in(tmp_path) == {"files", "files/a.txt", "files/b.txt", "files/SHA256SUMS"}


def test_an_archive_of_files_without_a_folder_gets_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = zip_of("a.txt", "b.txt")
    offer(monkeypatch, server, archive="set.zip", is_flat=True)
    assert {p.name for p in download("set", tmp_path).iterdir()} == {"a.txt", "b.txt"}


REVIEWS = {
    "__MACOSX/ChnSentiCorp/._train.tsv": "of the system that packed it",
    "ChnSentiCorp/train.tsv": "label\ttext_a\n1\t环境 很好\n0\t房间太小。\n",
    "ChnSentiCorp/dev.tsv": "qid\tlabel\ttext_a\n0\t1\t书很好\n",
    "ChnSentiCorp/test.tsv": "qid\ttext_a\n0\t总体来说一般\n",
}
TITLES = {
    "train.json": '{"label": "108", "label_desc": "news_edu", "sentence": "老师", "keywords": ""}\n'
    '{"label": "102", "label_desc": "news_entertainment", "sentence": "自拍", "keywords": ""}\n',
    "dev.json": '{"label": "116", "label_desc": "news_game", "sentence": "版", "keywords": ""}\n',
    "test.json": '{"id": 0, "sentence": "无", "keywords": ""}\n',
    "labels.json": '{"label": "100", "label_desc": "news_story"}\n',
}


@pytest.mark.parametrize(
    ("name", "members", "train", "dev"),
    [
        (
            "chnsenticorp",
            REVIEWS,
            ["环境 很好 positive", "房间太小。 negative"],
            ["书很好 positive"],
        ),
        ("tnews", TITLES, ["老师 news_edu", "自拍 news_entertainment"], ["版 news_game"]),
    ],
)
def test_chinese_sets_are_read_as_their_archives_hold_them(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    members: dict[str, str],
    train: list[str],
    dev: list[str],
) -> None:
    server.body = zip_of(members)
    checksum = f"sha256:{hashlib.sha256(server.body).hexdigest()}"
    here = dataclasses.replace(SOURCES[name], url=server.url, checksum=checksum)
    monkeypatch.setitem(SOURCES, name, here)
    monkeypatch.chdir(tmp_path)
    folder = download(name, Path("data/downloads"))
    task = find_task(name)(FinetuneSettings(task=name))
    source = task.find_data()
    assert (source.path, source.is_sample) == (folder, False)
    splits = task.read(source)
    for part, wanted in ((splits.train, train), (splits.dev, dev)):
        assert [f"{e.text} {e.label}" for e in part or ()] == wanted
    assert splits.test is None  # its labels are not published


# --- checksums ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_wrong_checksum_removes_the_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    wanted = hashlib.new(algorithm, b"another file").hexdigest()
    offer(monkeypatch, server, checksum=f"{algorithm}:{wanted}")
    with pytest.raises(RuntimeError) as error:
        download("set", tmp_path)
    assert wanted in str(error.value)
    assert hashlib.new(algorithm, server.body).hexdigest() in str(error.value)
    assert files_in(tmp_path) == set()


def test_an_unpublished_checksum_is_recorded_and_holds_ever_after(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, server, checksum=None)
    folder = download("set", tmp_path)
    first = hashlib.sha256(server.body).hexdigest()
    record = tmp_path / "set.tar.gz.sha256"
    assert record.read_text(encoding="utf-8") == f"{first}  set.tar.gz\n"

    # The file changes here.
    folder.rename(tmp_path / "moved")
    (tmp_path / "set.tar.gz").write_bytes(tar_of("set/other.txt"))
    with pytest.raises(RuntimeError, match=f"{first} was recorded in .*set.tar.gz.sha256"):
        download("set", tmp_path)
    assert not folder.exists()
    assert not (tmp_path / "set.tar.gz").exists()

    # The file changes there.
    unchanged, server.body = server.body, tar_of("set/other.txt")
    with pytest.raises(RuntimeError, match=first):
        download("set", tmp_path)
    assert not folder.exists()
    assert not (tmp_path / "set.tar.gz").exists()

    server.body = unchanged
    assert download("set", tmp_path) == folder


# --- unpacking ---------------------------------------------------------------------------------


def special(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.FIFOTYPE
    return info


HOSTILE_TARS: dict[str, Callable[[Path], str | tarfile.TarInfo]] = {
    "parent": lambda outside: "../evil",
    "parent below": lambda outside: "set/../../evil",
    "absolute": lambda outside: str(outside / "evil"),
    "backslashes": lambda outside: "set\\..\\..\\evil",
    "drive": lambda outside: "C:/evil",
    "outward link": lambda outside: link("set/evil", "../../elsewhere"),
    # This one stays inside, but chains of such links have outwitted tarfile's filter.
    "climbing link": lambda outside: link("set/evil", "../set/a.txt"),
    "absolute link": lambda outside: link("set/evil", str(outside)),
    "outward hard link": lambda outside: link("set/evil", "../elsewhere", tarfile.LNKTYPE),
    "pipe": lambda outside: special("set/evil"),
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_a_tar_that_leads_out_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (tmp_path / "elsewhere").write_text("not yours", encoding="utf-8")
    member = HOSTILE_TARS[case](tmp_path)
    server.body = tar_of("set/a.txt", member, "set/z.txt")
    offer(monkeypatch, server)
    name = member if isinstance(member, str) else member.name
    with pytest.raises(RuntimeError, match=re.escape(f"member {name!r}")):
        download("set", tmp_path / "data")
    assert files_in(tmp_path) == {"elsewhere", "data", "data/set.tar.gz"}


def zipped_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("set/evil")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


HOSTILE_ZIPS: dict[str, Callable[[Path], str | zipfile.ZipInfo]] = {
    "parent": lambda outside: "../evil",
    "parent below": lambda outside: "set/../../evil",
    "absolute": lambda outside: str(outside / "evil"),
    "backslashes": lambda outside: "set\\..\\..\\evil",
    "drive": lambda outside: "C:/evil",
    "link": lambda outside: zipped_link(),
}


@pytest.mark.parametrize("case", HOSTILE_ZIPS)
def test_a_zip_that_leads_out_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    member = HOSTILE_ZIPS[case](tmp_path)
    server.body = zip_of("set/a.txt", member)
    offer(monkeypatch, server, archive="set.zip")
    name = member if isinstance(member, str) else member.filename
    with pytest.raises(RuntimeError, match=re.escape(f"member {name!r}")):
        download("set", tmp_path / "data")
    assert files_in(tmp_path) == {"data", "data/set.zip"}


def test_links_inside_the_archive_are_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = link("set/hard", "set/a.txt", tarfile.LNKTYPE)
    server.body = tar_of("set/a.txt", link("set/soft", "a.txt"), hard)
    offer(monkeypatch, server)
    folder = download("set", tmp_path)
    assert (folder / "soft").read_bytes() == (folder / "hard").read_bytes() == NOISE


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_interrupted_extraction_leaves_no_half_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "zip":
        server.body = zip_of("set/a.txt", "set/deep/b.txt")
        offer(monkeypatch, server, archive="set.zip")
    archive = SOURCES["set"].archive
    owner = tarfile.TarFile if kind == "tar" else zipfile.ZipFile
    extract, seen = owner.extract, []

    def interrupted(self: Any, member: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(member)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return extract(self, member, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download("set", tmp_path)
    assert files_in(tmp_path) == {archive}
    download("set", tmp_path)
    assert files_in(tmp_path) == {*UNPACKED, archive}
    assert len(server.asked) == 1


def test_what_a_killed_extraction_left_is_cleared_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".set.unpacking" / "set").mkdir(parents=True)
    (tmp_path / ".set.unpacking" / "set" / "half.txt").write_text("ha", encoding="utf-8")
    (tmp_path / "set").mkdir()  # an empty folder is not a data set
    download("set", tmp_path)
    assert files_in(tmp_path) == {*UNPACKED, "set.tar.gz"}


@pytest.mark.parametrize("archive", ["set.tar.gz", "set.zip"])
@pytest.mark.parametrize("sent", ["a login page", "half of it"])
def test_what_is_no_archive_is_fetched_anew_next_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: str, sent: str
) -> None:
    good = tar_of("set/a.txt") if archive.endswith("gz") else zip_of("set/a.txt")
    half = good[: len(good) // 2]
    server.body = half if sent == "half of it" else b"<html>please log in</html>"
    offer(monkeypatch, server, archive=archive, checksum=None)
    with pytest.raises(RuntimeError, match="is not a whole archive"):
        download("set", tmp_path)
    assert files_in(tmp_path) == set()
    server.body = good
    assert (download("set", tmp_path) / "a.txt").read_bytes() == NOISE


def test_an_archive_of_something_else_says_what_it_holds(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = tar_of("other/a.txt")
    offer(monkeypatch, server)
    with pytest.raises(RuntimeError, match="holds no folder 'set', but other"):
        download("set", tmp_path)
    assert files_in(tmp_path) == {"set.tar.gz"}


def test_downloads_need_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import minibert.download"
    root = Path(module.__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True, timeout=30)
