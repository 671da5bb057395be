"""The token store: a corpus encoded once, read memory-mapped ever after.

In: documents from `corpus.py` and a tokenizer. Out: a folder with three flat arrays, token ids,
where each sentence starts among them, and where each document starts among the sentences, beside
`counts.npy` (how often each id occurs) and `meta.json`. A store is written under a temporary name
and renamed, so it is there whole or not at all; its name is a fingerprint of all that decides its
content. A build that is killed or stopped goes on where it was: every so often what is written so
far is recorded, and the next build of the same store takes it over, on another machine as well: a
living writer touches its folder every minute, and one silent for ten is taken for dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minibert import corpus as reader
from minibert.cache import cache_key, data_fingerprint, default_cache_dir
from minibert.corpus import ReaderOptions
from minibert.encoding import LONGEST_SENTENCE, Place, batches, encode_all, store_dtype
from minibert.errors import InputError
from minibert.files import sync, write_atomically, write_json
from minibert.machine import num_cpus
from minibert.progress import Progress
from minibert.tokenizer import WordPiece

_PARALLEL_FROM = 8 << 20  # bytes of text from which starting worker processes pays
_RECORD_BATCHES = 64  # batches between records of how far a build is
_KEPT_SECONDS = 7 * 24 * 3600  # how long a stopped build waits to be taken up again
_BEAT_SECONDS = 60.0  # between a living writer's touches of its folder
_MACHINE_ID = Path("/etc/machine-id")  # one after a restart, too
_SILENT_SECONDS = 600.0  # after which nobody writes to a folder, whoever made it


@dataclass
class Counts:
    """What was found in a corpus; printed, and kept in the store."""

    files: int = 0
    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    empty_documents: int = 0
    single_sentence_documents: int = 0
    cut_sentences: int = 0
    nul_characters: int = 0
    unknown_tokens: int = 0

    def __str__(self) -> str:
        text = (
            f"{self.files:,} file(s), {self.documents:,} documents, {self.sentences:,} sentences, "
            f"{self.tokens:,} tokens"
        )
        notes = {
            "empty documents left out": self.empty_documents,
            "documents of one sentence": self.single_sentence_documents,
            f"sentences over {LONGEST_SENTENCE} tokens cut": self.cut_sentences,
            "NUL characters dropped": self.nul_characters,
        }
        text += "".join(f", {count:,} {what}" for what, count in notes.items() if count)
        if self.unknown_tokens:
            text += f", {self.unknown_tokens / max(1, self.tokens):.2%} unknown tokens"
        return text


class TokenStore:
    """Read access to an encoded corpus; nothing but the index arrays' pages is held in memory."""

    def __init__(self, folder: Path) -> None:
        """Opens the store in a folder.

        Raises:
            InputError: its files are not as long as they were written, or do not read.
        """
        self.folder = folder
        try:
            meta = json.loads((folder / "meta.json").read_text())
            self.counts = Counts(**meta["counts"])
            dtype = np.dtype(meta["dtype"])
            self.data_fingerprint: str = meta["data_fingerprint"]
            self.token_counts: np.ndarray = np.load(folder / "counts.npy")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: meta.json or counts.npy does not read: {error}") from None
        _check_lengths(folder, self.counts, dtype)
        self.tokens = _mapped(folder / "tokens.bin", meta["dtype"])
        self.sentence_starts = _mapped(folder / "sentences.bin", "int64")
        self.document_starts = _mapped(folder / "documents.bin", "int64")

    @property
    def num_documents(self) -> int:
        return len(self.document_starts) - 1


def _lengths(counts: Counts, dtype: np.dtype) -> dict[str, int]:
    """Bytes of each array of so much text; both indices begin with a 0."""
    return {
        "tokens.bin": counts.tokens * dtype.itemsize,
        "sentences.bin": 8 * (counts.sentences + 1),
        "documents.bin": 8 * (counts.documents + 1),
    }


def _check_lengths(folder: Path, counts: Counts, dtype: np.dtype) -> None:
    """Refuses a store that a power cut or a copy has shortened: it would pass for less text."""
    for name, expected in _lengths(counts, dtype).items():
        path = folder / name
        found = _size(path)
        if found != expected:
            raise InputError(f"{path} has {found:,} bytes, was written with {expected:,}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _mapped(path: Path, dtype: str) -> np.ndarray:
    """A file as an array; a plain view, since slices of np.memmap itself take ten times as long."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def store_folder(
    files: list[Path], tokenizer: WordPiece, options: ReaderOptions, cache_dir: Path
) -> Path:
    """Where the token store of a corpus lies, or will lie."""
    more = (tokenizer.fingerprint, LONGEST_SENTENCE)
    return cache_dir / f"tokens-{cache_key(files, options, *more, cache_dir=cache_dir)}"


def num_encoders(files: list[Path]) -> int:
    """Processes that encode a corpus: one a core for 8 MiB or more, else this one."""
    size = sum(path.stat().st_size for path in files)
    return num_cpus() if size >= _PARALLEL_FROM else 1


def open_store(
    files: list[Path],
    tokenizer: WordPiece,
    options: ReaderOptions,
    cache_dir: Path | None = None,
    num_processes: int | None = None,
) -> TokenStore:
    """The token store of a corpus, built now unless the cache holds it.

    Args:
        files: from `corpus.find_files`.
        cache_dir: where stores lie; `default_cache_dir()` when None.
        num_processes: encoders; `num_encoders` when None.

    Raises:
        InputError: a file that cannot be read as text, or no text in any of them.
    """
    cache_dir = cache_dir or default_cache_dir()
    folder = store_folder(files, tokenizer, options, cache_dir)
    if (folder / "meta.json").is_file():
        try:
            opened = TokenStore(folder)
        except InputError as error:
            print(f"tokens: {error}; encoding anew", file=sys.stderr)
            shutil.rmtree(folder)
        else:
            print(f"tokens: read from {folder}", file=sys.stderr)
            return opened
    if num_processes is None:
        num_processes = num_encoders(files)
    temporary = cache_dir / f".{folder.name}.{_host()}{os.getpid()}.tmp"
    _sweep(cache_dir)
    _take_over(temporary)
    temporary.mkdir(parents=True, exist_ok=True)
    keep = is_broken = False
    try:
        with _heartbeat(temporary):
            counts, token_counts = _write(temporary, files, tokenizer, options, num_processes)
            np.save(temporary / "counts.npy", token_counts)
            sync(temporary / "counts.npy")
            meta = {
                "counts": asdict(counts),
                "dtype": store_dtype(tokenizer).name,
                "data_fingerprint": data_fingerprint(files, options, cache_dir),
                "tokenizer": tokenizer.fingerprint,
            }
            write_json(temporary / "meta.json", meta)
            shutil.rmtree(temporary / "tokenizer", ignore_errors=True)
            (temporary / _RECORD).unlink(missing_ok=True)
            _put_in_place(temporary, folder)
    except BrokenExecutor:
        print("tokens: the worker processes ended; encoding in this one", file=sys.stderr)
        is_broken = keep = True
    except BaseException as error:
        # Ctrl-C, SIGTERM, a full disk: the next build goes on from here.
        is_fault = isinstance(error, Exception) and not isinstance(error, OSError)
        keep = not is_fault and (temporary / _RECORD).is_file()
        raise
    finally:
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)
    if is_broken:
        return open_store(files, tokenizer, options, cache_dir, num_processes=1)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"tokens: written to {folder}, {size / 1e6:,.0f} MB", file=sys.stderr)
    return TokenStore(folder)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Gives a whole store its name, unless another process was faster."""
    if not (folder / "meta.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # a folder without meta.json is no store
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "meta.json").is_file():
                raise
        sync(folder)
        sync(folder.parent)


def _sweep(cache_dir: Path) -> None:
    """Removes half-written stores of dead processes that cannot be taken up, or were not."""
    for left in cache_dir.glob(".tokens-*.tmp"):
        if not _is_orphan(left):
            continue
        with contextlib.suppress(OSError):  # another process may sweep as well
            if time.time() - (left / _RECORD).stat().st_mtime < _KEPT_SECONDS:
                continue
        shutil.rmtree(left, ignore_errors=True)


def _take_over(folder: Path) -> None:
    """Gives this process the half-written store of a dead one, if there is one of the same text."""
    key = folder.name.split(".")[1]
    for left in folder.parent.glob(f".{key}.*.tmp"):
        if left != folder and _is_orphan(left) and (left / _RECORD).is_file():
            with contextlib.suppress(OSError):  # a third process was faster
                os.utime(left)  # from now on this one writes to it
                left.rename(folder)
                return


@contextlib.contextmanager
def _heartbeat(folder: Path) -> Iterator[None]:
    """While open, a folder is touched every minute: somebody writes to it."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # renamed by now
                os.utime(folder)

    os.utime(folder)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _check_own(folder: Path) -> None:
    """Refuses to go on writing where another process has taken a folder over.

    As it does from one that stood still for long, such as on a machine that slept.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} was taken over by another process while this one stood still; "
            f"start it again when that has ended"
        )


def _host() -> str:
    """Where a process's number counts, for the name of a half-written store.

    A cache may lie on a disk of several machines, which may go by one name, as containers do, and
    these have numbers of their own: of each the first process is 1.
    """
    name = platform.node().partition(".")[0]
    with contextlib.suppress(OSError):  # Linux alone has such spaces, and this file
        name += f"-{os.stat('/proc/self/ns/pid').st_ino}"
        name += f"-{_MACHINE_ID.read_text('ascii', 'ignore').strip()[:8]}"
    return f"{name}-" if name else ""


def _is_orphan(folder: Path) -> bool:
    """Whether nobody writes to a folder: its process is gone, or it was not touched for long.

    A number of another machine's process says nothing here, and one of this machine may have been
    given to another since.
    """
    host, dash, owner = folder.name.split(".")[-2].rpartition("-")
    is_here = host + dash in ("", _host())
    if is_here and owner == str(os.getpid()):
        return False
    if is_here and owner.isdigit() and not _is_alive(int(owner)):
        return True
    try:
        return time.time() - folder.stat().st_mtime > _SILENT_SECONDS
    except FileNotFoundError:  # it has been given its name by now
        return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


_RECORD = "record.npz"


@dataclass
class _Written:
    """What a build has written so far, which is all that it needs to go on.

    open_document: sentences of the document that is not closed yet; a long one comes in pieces.
    """

    place: Place
    counts: Counts
    open_document: int
    token_counts: np.ndarray

    @classmethod
    def nothing(cls, num_files: int, vocab_size: int) -> _Written:
        return cls(Place(), Counts(files=num_files), 0, np.zeros(vocab_size, np.int64))

    @classmethod
    def load(cls, path: Path) -> _Written:
        with np.load(path) as record:
            state = json.loads(str(record["state"]))
            return cls(
                Place(*state["place"]),
                Counts(**state["counts"]),
                state["open_document"],
                record["token_counts"],
            )

    def save(self, path: Path) -> None:
        state = {
            "place": self.place,
            "counts": asdict(self.counts),
            "open_document": self.open_document,
        }

        def write(temporary: Path) -> None:
            with temporary.open("wb") as handle:
                np.savez(handle, state=json.dumps(state), token_counts=self.token_counts)

        write_atomically(path, write)


def _begun(folder: Path, num_files: int, tokenizer: WordPiece) -> _Written:
    """What an earlier start has left, if all that its record tells of is there; or nothing."""
    if (folder / _RECORD).is_file():
        done = _Written.load(folder / _RECORD)
        lengths = _lengths(done.counts, store_dtype(tokenizer))
        if all(_size(folder / name) >= length for name, length in lengths.items()):
            tokens = f"{done.counts.tokens:,}"
            print(f"tokens: going on after {tokens} of an earlier start", file=sys.stderr)
            return done
    return _Written.nothing(num_files, tokenizer.vocab_size)


def _open_at(path: Path, length: int) -> BinaryIO:
    """A file cut to what a record says of it, to go on with."""
    handle = path.open("r+b" if path.exists() else "w+b")
    handle.truncate(length)
    handle.seek(length)
    return handle


def _sync_all(*handles: BinaryIO) -> None:
    """Brings what was written onto the disk, where a power cut leaves it."""
    for handle in handles:
        handle.flush()
        os.fsync(handle.fileno())


def _write(
    folder: Path,
    files: list[Path],
    tokenizer: WordPiece,
    options: ReaderOptions,
    num_processes: int,
) -> tuple[Counts, np.ndarray]:
    """Streams the encoded corpus into the three arrays; returns what was found."""
    done = _begun(folder, len(files), tokenizer)
    counts = done.counts
    lengths = _lengths(counts, store_dtype(tokenizer))
    # A document's end is written when the next one starts.
    with (
        _open_at(folder / "tokens.bin", lengths["tokens.bin"]) as tokens,
        _open_at(folder / "sentences.bin", lengths["sentences.bin"]) as sentences,
        _open_at(folder / "documents.bin", lengths["documents.bin"]) as documents,
        Progress("encoding", sum(map(reader.text_bytes, files))) as bar,
    ):

        def close_document() -> None:
            if done.open_document:
                documents.write(np.int64(counts.sentences).tobytes())
                counts.documents += 1
                counts.single_sentence_documents += done.open_document == 1
            done.open_document = 0

        ends: deque[Place] = deque()
        texts = batches(files, options, bar, done.place, ends)
        scratch = folder / "tokenizer"
        encoded = encode_all(texts, tokenizer, options, num_processes, scratch)
        for number, part in enumerate(encoded, 1):
            _check_own(folder)
            tokens.write(part.tokens.tobytes())
            positions = counts.tokens + np.cumsum(part.lengths)
            sentences.write(positions.astype(np.int64).tobytes())
            done.token_counts += np.bincount(part.tokens, minlength=len(done.token_counts))
            counts.tokens += len(part.tokens)
            for found, starts in zip(part.sentences, part.starts_document, strict=True):
                if starts:
                    close_document()
                    counts.empty_documents += found == 0
                done.open_document += found
                counts.sentences += found
            counts.cut_sentences += part.cut
            counts.nul_characters += part.nul
            done.place = ends.popleft()
            for handle in (tokens, sentences, documents):
                handle.flush()  # nothing is left to be written should the folder be taken over
            if number % _RECORD_BATCHES == 0:
                _sync_all(tokens, sentences, documents)
                done.save(folder / _RECORD)
        close_document()
        _sync_all(tokens, sentences, documents)
    if not counts.tokens:
        more = f" and {len(files) - 1:,} more file(s)" if len(files) > 1 else ""
        raise InputError(f"{files[0]}{more}: no text there")
    counts.unknown_tokens = int(done.token_counts[tokenizer.unk_id])
    return counts, done.token_counts
