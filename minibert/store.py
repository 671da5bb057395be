"""The token store: a corpus encoded once, read memory-mapped ever after.

In: documents from `corpus.py` and a tokenizer. Out: a folder with three flat arrays, token ids,
where each sentence starts among them, and where each document starts among the sentences, beside
`counts.npy` (how often each id occurs) and `meta.json`. A store is written under a temporary name
and renamed, so it is there whole or not at all; its name is a fingerprint of all that decides its
content.
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
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from minibert import corpus as reader
from minibert.corpus import ReaderOptions
from minibert.errors import InputError
from minibert.files import write_json
from minibert.tokenizer import WordPiece, train_wordpiece

LONGEST_SENTENCE = 256  # tokens; a longer "sentence" is cut, so that none of its text is lost
_BATCH_BYTES = 1 << 20  # bytes of text handed to one worker at a time
_PARALLEL_FROM = 8 << 20  # bytes of text from which starting worker processes pays
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


def _batches(files: list[Path], options: ReaderOptions, bar: tqdm) -> Iterator[list[reader.Piece]]:
    """Pieces of all files in batches of about `_BATCH_BYTES`; the bar moves with the files."""
    batch: list[reader.Piece] = []
    size = 0
    for path in files:
        for piece in reader.read_pieces(path, options):
            batch.append(piece)
            size += reader.piece_bytes(piece)
            if size >= _BATCH_BYTES:
                yield batch
                bar.update(size)
                batch, size = [], 0
    if batch:
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
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    _sweep(cache_dir)
    temporary = cache_dir / f".tokens-{key}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
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
        _put_in_place(temporary, folder)
    except BrokenProcessPool:
        print("tokens: the worker processes ended; encoding in this one", file=sys.stderr)
        return open_store(files, tokenizer, options, cache_dir, num_processes=1)
    finally:
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
    """Removes the half-written stores of processes that were killed."""
    for left in cache_dir.glob(".tokens-*.tmp"):
        owner = left.name.split(".")[-2]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _write(
    folder: Path,
    files: list[Path],
    tokenizer: WordPiece,
    options: ReaderOptions,
    num_processes: int,
) -> tuple[Counts, np.ndarray]:
    """Streams the encoded corpus into the three arrays; returns what was found."""
    counts = Counts(files=len(files))
    token_counts = np.zeros(tokenizer.vocab_size, np.int64)
    total_tokens = total_sentences = open_document = 0
    # Document sizes are written when the next one starts: a long document comes in pieces.
    with (
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "sentences.bin").open("wb") as sentences,
        (folder / "documents.bin").open("wb") as documents,
        _bar("encoding", files) as bar,
    ):
        zero = np.zeros(1, np.int64).tobytes()
        sentences.write(zero)
        documents.write(zero)

        def close_document() -> None:
            nonlocal open_document
            if open_document:
                documents.write(np.int64(total_sentences).tobytes())
                counts.documents += 1
                counts.single_sentence_documents += open_document == 1
            open_document = 0

        batches = _batches(files, options, bar)
        scratch = folder / "tokenizer"
        for part in _encode_all(batches, tokenizer, options, num_processes, scratch):
            tokens.write(part.tokens.tobytes())
            ends = total_tokens + np.cumsum(part.lengths)
            sentences.write(ends.astype(np.int64).tobytes())
            token_counts += np.bincount(part.tokens, minlength=len(token_counts))
            total_tokens += len(part.tokens)
            for number, starts in zip(part.sentences, part.starts_document, strict=True):
                if starts:
                    close_document()
                    counts.empty_documents += number == 0
                open_document += number
                total_sentences += number
            counts.cut_sentences += part.cut
            counts.nul_characters += part.nul
        close_document()
    if not total_tokens:
        raise InputError(f"{files[0]} and {len(files) - 1} more file(s) hold no text")
    counts.sentences, counts.tokens = total_sentences, total_tokens
    counts.unknown_tokens = int(token_counts[tokenizer.unk_id])
    return counts, token_counts


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
