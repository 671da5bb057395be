"""The token store: a corpus encoded once, read memory-mapped ever after.

In: documents from `corpus.py` and a tokenizer. Out: a folder with three flat arrays, token ids,
where each sentence starts among them, and where each document starts among the sentences, beside
`counts.npy` (how often each id occurs) and `meta.json`. A store is written under a temporary name
and renamed, so it is there whole or not at all; its name is a fingerprint of all that decides its
content. A build that is killed or stopped goes on where it was: every so often what is written so
far is recorded, and the next build of the same store takes it over.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from minibert import corpus as reader
from minibert.corpus import ReaderOptions
from minibert.errors import InputError
from minibert.files import write_atomically, write_json
from minibert.machine import num_cpus
from minibert.tokenizer import WordPiece, train_wordpiece

LONGEST_SENTENCE = 256  # tokens; a longer "sentence" is cut, so that none of its text is lost
_BATCH_BYTES = 1 << 20  # bytes of text handed to one worker at a time
_PARALLEL_FROM = 8 << 20  # bytes of text from which starting worker processes pays
_RECORD_BATCHES = 64  # batches between records of how far a build is
_KEPT_SECONDS = 7 * 24 * 3600  # how long a stopped build waits to be taken up again
_VOCAB_SAMPLE = 256 << 20  # bytes of text that a vocabulary is trained on at most


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
        meta = json.loads((folder / "meta.json").read_text())
        self.folder = folder
        self.counts = Counts(**meta["counts"])
        self.data_fingerprint: str = meta["data_fingerprint"]
        self.tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        self.sentence_starts = np.memmap(folder / "sentences.bin", dtype=np.int64, mode="r")
        self.document_starts = np.memmap(folder / "documents.bin", dtype=np.int64, mode="r")
        self.token_counts: np.ndarray = np.load(folder / "counts.npy")

    @property
    def num_documents(self) -> int:
        return len(self.document_starts) - 1

    def sentence_offsets(self, document: int) -> np.ndarray:
        """Where the document's sentences start and end in `tokens`: n + 1 offsets."""
        first, last = self.document_starts[document : document + 2]
        return self.sentence_starts[first : last + 1]


class _Encoded(NamedTuple):
    """One worker's answer for a batch of pieces."""

    tokens: np.ndarray  # ids of all pieces, one after the other
    lengths: np.ndarray  # tokens in each sentence
    sentences: list[int]  # sentences in each piece
    starts_document: list[bool]
    cut: int
    nul: int


def _encode(tokenizer: WordPiece, options: ReaderOptions, pieces: list[reader.Piece]) -> _Encoded:
    texts: list[str] = []
    counts: list[int] = []
    cut = nul = 0
    for piece in pieces:
        sentences, dropped = reader.sentences_of(piece.lines, options)
        texts += sentences
        counts.append(len(sentences))
        nul += dropped
    ids = tokenizer.ids(texts)
    lengths: list[int] = []
    per_piece: list[int] = []
    at = 0
    for count in counts:
        before = len(lengths)
        for sentence in ids[at : at + count]:
            whole, tail = divmod(len(sentence), LONGEST_SENTENCE)
            cut += len(sentence) > LONGEST_SENTENCE
            lengths += [LONGEST_SENTENCE] * whole + ([tail] if tail else [])
        per_piece.append(len(lengths) - before)
        at += count
    dtype = store_dtype(tokenizer)
    flat = np.fromiter((i for sentence in ids for i in sentence), dtype)
    starts = [piece.starts_document for piece in pieces]
    return _Encoded(flat, np.asarray(lengths, np.int64), per_piece, starts, cut, nul)


def store_dtype(tokenizer: WordPiece) -> np.dtype:
    """Two bytes a token where the vocabulary allows it."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


_worker_state: tuple[WordPiece, ReaderOptions]


@contextlib.contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """While open, a signal waits; Ctrl-C reaches a whole process group, and is ours to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(folder: str, options: ReaderOptions) -> None:
    global _worker_state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core, one thread each
    _worker_state = (WordPiece.from_pretrained(folder), options)


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone: a killed parent cannot tell its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _encode_in_worker(pieces: list[reader.Piece]) -> _Encoded:
    return _encode(*_worker_state, pieces)


class _Place(NamedTuple):
    """How far the files have been read: whole ones, and pieces of the next."""

    files: int = 0
    pieces: int = 0


def _batches(
    files: list[Path], options: ReaderOptions, bar: tqdm, begin: _Place, ends: deque[_Place]
) -> Iterator[list[reader.Piece]]:
    """Pieces of all files in batches of about `_BATCH_BYTES`; the bar moves with the files.

    Args:
        begin: where to; what lies before is passed over.
        ends: the place after each batch is appended to it.
    """
    batch: list[reader.Piece] = []
    size = 0
    end = begin
    bar.update(sum(map(reader.text_bytes, files[: begin.files])))
    for number, path in enumerate(files[begin.files :], begin.files):
        for index, piece in enumerate(reader.read_pieces(path, options)):
            if (number, index) < begin:
                bar.update(reader.piece_bytes(piece))
                continue
            batch.append(piece)
            size += reader.piece_bytes(piece)
            end = _Place(number, index + 1)
            if size >= _BATCH_BYTES:
                ends.append(end)
                yield batch
                bar.update(size)
                batch, size = [], 0
    if batch:
        ends.append(end)
        yield batch
        bar.update(size)


def _bar(what: str, files: list[Path]) -> tqdm:
    """Progress through the files' text in bytes; of compressed files the total is an estimate."""
    total = sum(map(reader.text_bytes, files))
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None, leave=False)


def _encode_all(
    batches: Iterable[list[reader.Piece]],
    tokenizer: WordPiece,
    options: ReaderOptions,
    num_processes: int,
    scratch: Path,
) -> Iterator[_Encoded]:
    """Encodes batches in order, in this process or in several, with few batches in flight."""
    if num_processes <= 1:
        yield from (_encode(tokenizer, options, batch) for batch in batches)
        return
    tokenizer.save(scratch)  # how the workers get it
    waiting: deque[Future[_Encoded]] = deque()
    with ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(str(scratch), options),
    ) as pool:
        try:
            for batch in batches:
                with _held_back(signal.SIGINT):  # workers start here, and inherit it
                    waiting.append(pool.submit(_encode_in_worker, batch))
                if len(waiting) > 2 * num_processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@functools.lru_cache(maxsize=1 << 16)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """A file's digest, computed once as long as size and time of change stay as they are."""
    return reader.content_digest(path)


def data_fingerprint(files: list[Path], options: ReaderOptions) -> str:
    """A digest of the text and of how it is read; where the files lie does not count."""
    stats = [path.stat() for path in files]
    parts = [
        _digest(path, stat.st_size, stat.st_ctime_ns)
        for path, stat in zip(files, stats, strict=True)
    ]
    content = json.dumps([parts, asdict(options), reader.READER_VERSION])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def cache_key(files: list[Path], options: ReaderOptions, *more: Any) -> str:
    """The fingerprint that names a cached result: paths, sizes, times, content, settings."""
    where = []
    for path in files:
        stat = path.stat()
        where.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    content = json.dumps([where, data_fingerprint(files, options), *more])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _num_cores() -> int:
    """Cores this process may use."""
    return num_cpus()


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/minibert, or ~/.cache/minibert."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minibert"


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
        num_processes: encoders; by default one a core for 8 MiB of text or more, else this one.

    Raises:
        InputError: a file that cannot be read as text, or no text in any of them.
    """
    cache_dir = cache_dir or default_cache_dir()
    key = cache_key(files, options, tokenizer.fingerprint, LONGEST_SENTENCE)
    folder = cache_dir / f"tokens-{key}"
    if (folder / "meta.json").is_file():
        print(f"tokens: read from {folder}", file=sys.stderr)
        return TokenStore(folder)
    if num_processes is None:
        size = sum(path.stat().st_size for path in files)
        num_processes = _num_cores() if size >= _PARALLEL_FROM else 1
    temporary = cache_dir / f".tokens-{key}.{os.getpid()}.tmp"
    _sweep(cache_dir)
    _take_over(temporary)
    temporary.mkdir(parents=True, exist_ok=True)
    keep = False
    try:
        counts, token_counts = _write(temporary, files, tokenizer, options, num_processes)
        np.save(temporary / "counts.npy", token_counts)
        meta = {
            "counts": asdict(counts),
            "dtype": store_dtype(tokenizer).name,
            "data_fingerprint": data_fingerprint(files, options),
            "tokenizer": tokenizer.fingerprint,
        }
        write_json(temporary / "meta.json", meta)
        shutil.rmtree(temporary / "tokenizer", ignore_errors=True)
        (temporary / _RECORD).unlink(missing_ok=True)
        _put_in_place(temporary, folder)
    except BrokenProcessPool:
        print("tokens: the worker processes ended; encoding in this one", file=sys.stderr)
        return open_store(files, tokenizer, options, cache_dir, num_processes=1)
    except Exception:
        raise
    except BaseException:  # Ctrl-C, SIGTERM: the next build goes on from here
        keep = (temporary / _RECORD).is_file()
        raise
    finally:
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)
    print(f"tokens: written to {folder}", file=sys.stderr)
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
                left.rename(folder)
                return


def _is_orphan(folder: Path) -> bool:
    owner = folder.name.split(".")[-2]
    return owner.isdigit() and int(owner) != os.getpid() and not _is_alive(int(owner))


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

    place: _Place
    counts: Counts
    open_document: int
    token_counts: np.ndarray

    @classmethod
    def nothing(cls, num_files: int, vocab_size: int) -> _Written:
        return cls(_Place(), Counts(files=num_files), 0, np.zeros(vocab_size, np.int64))

    @classmethod
    def load(cls, path: Path) -> _Written:
        with np.load(path) as record:
            state = json.loads(str(record["state"]))
            return cls(
                _Place(*state["place"]),
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


def _open_at(path: Path, length: int) -> BinaryIO:
    """A file cut to what a record says of it, to go on with."""
    handle = path.open("r+b" if path.exists() else "w+b")
    handle.truncate(length)
    handle.seek(length)
    return handle


def _write(
    folder: Path,
    files: list[Path],
    tokenizer: WordPiece,
    options: ReaderOptions,
    num_processes: int,
) -> tuple[Counts, np.ndarray]:
    """Streams the encoded corpus into the three arrays; returns what was found."""
    record = folder / _RECORD
    if record.is_file():
        done = _Written.load(record)
        print(f"tokens: going on after {done.counts.tokens:,} of an earlier start", file=sys.stderr)
    else:
        done = _Written.nothing(len(files), tokenizer.vocab_size)
    counts = done.counts
    # Each index array begins with a 0. A document's end is written when the next one starts.
    with (
        _open_at(folder / "tokens.bin", counts.tokens * store_dtype(tokenizer).itemsize) as tokens,
        _open_at(folder / "sentences.bin", 8 * (counts.sentences + 1)) as sentences,
        _open_at(folder / "documents.bin", 8 * (counts.documents + 1)) as documents,
        _bar("encoding", files) as bar,
    ):

        def close_document() -> None:
            if done.open_document:
                documents.write(np.int64(counts.sentences).tobytes())
                counts.documents += 1
                counts.single_sentence_documents += done.open_document == 1
            done.open_document = 0

        ends: deque[_Place] = deque()
        batches = _batches(files, options, bar, done.place, ends)
        scratch = folder / "tokenizer"
        encoded = _encode_all(batches, tokenizer, options, num_processes, scratch)
        for number, part in enumerate(encoded, 1):
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
            if number % _RECORD_BATCHES == 0:
                for handle in (tokens, sentences, documents):
                    handle.flush()
                    os.fsync(handle.fileno())
                done.save(record)
        close_document()
    if not counts.tokens:
        raise InputError(f"{files[0]} and {len(files) - 1} more file(s) hold no text")
    counts.unknown_tokens = int(done.token_counts[tokenizer.unk_id])
    return counts, done.token_counts


def corpus_vocabulary(
    files: list[Path],
    vocab_size: int,
    options: ReaderOptions,
    lowercase: bool,
    chinese: bool,
    cache_dir: Path | None = None,
    exact: bool = True,
) -> WordPiece:
    """A WordPiece vocabulary trained on the corpus, or the same one from the cache.

    Of a corpus over 256 MiB (file sizes as they lie on disk) every k-th piece is used, with
    k = ceil(size / 256 MiB); a piece is a document, or a million characters of a long one.
    """
    cache_dir = cache_dir or default_cache_dir()
    key = cache_key(files, options, vocab_size, lowercase, chinese, exact)
    folder = cache_dir / f"vocabulary-{key}"
    if (folder / "tokenizer_config.json").is_file():  # the file that `save` writes last
        print(f"vocabulary: read from {folder}", file=sys.stderr)
        return WordPiece.from_pretrained(folder)
    every = -(-sum(path.stat().st_size for path in files) // _VOCAB_SAMPLE)

    def texts() -> Iterator[str]:
        pieces = (piece for path in files for piece in reader.read_pieces(path, options))
        with _bar("vocabulary", files) as bar:
            for number, piece in enumerate(pieces):
                bar.update(reader.piece_bytes(piece))
                if number % every == 0:
                    yield "\n".join(piece.lines)

    tokenizer = train_wordpiece(texts, vocab_size, lowercase, chinese, exact)
    tokenizer.save(folder)
    print(f"vocabulary: {tokenizer.vocab_size:,} pieces, written to {folder}", file=sys.stderr)
    return tokenizer
