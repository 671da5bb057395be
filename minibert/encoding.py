"""Text -> token ids, on every core and in the order of the files.

In: files and a tokenizer. Out: one `Encoded` a batch of text, with few batches in flight, so that
memory does not depend on how much text there is. `store.py` writes them down.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibert import corpus as reader
from minibert.corpus import ReaderOptions
from minibert.progress import Progress
from minibert.tokenizer import WordPiece
from minibert.workers import Workers

LONGEST_SENTENCE = 256  # tokens; a longer "sentence" is cut, so that none of its text is lost
_BATCH_BYTES = 1 << 20  # bytes of text handed to one worker at a time


class Encoded(NamedTuple):
    """One worker's answer for a batch of pieces."""

    tokens: np.ndarray  # ids of all pieces, one after the other
    lengths: np.ndarray  # tokens in each sentence
    sentences: list[int]  # sentences in each piece
    starts_document: list[bool]
    cut: int
    nul: int


def _encode(tokenizer: WordPiece, options: ReaderOptions, pieces: list[reader.Piece]) -> Encoded:
    texts: list[str] = []
    ends = [0]  # sentences up to each piece's end
    nul = 0
    for piece in pieces:
        sentences, dropped = reader.sentences_of(piece.lines, options)
        texts += sentences
        ends.append(len(texts))
        nul += dropped
    ids, whole = tokenizer.flat_ids(texts)
    parts = -(-whole // LONGEST_SENTENCE)  # that a sentence is cut into; one without tokens has 0
    up_to = np.concatenate([[0], np.cumsum(parts)])
    lengths = np.full(up_to[-1], LONGEST_SENTENCE)
    has_tokens = parts > 0
    lengths[up_to[1:][has_tokens] - 1] -= (parts * LONGEST_SENTENCE - whole)[has_tokens]
    return Encoded(
        tokens=ids.astype(store_dtype(tokenizer)),
        lengths=lengths,
        sentences=np.diff(up_to[ends]).tolist(),
        starts_document=[piece.starts_document for piece in pieces],
        cut=int((parts > 1).sum()),
        nul=nul,
    )


def store_dtype(tokenizer: WordPiece) -> np.dtype:
    """Two bytes a token where the vocabulary allows it."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _start_encoding(folder: str, options: ReaderOptions) -> Callable[[list[reader.Piece]], Encoded]:
    """In a worker: what encodes a batch."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core, one thread each
    return functools.partial(_encode, WordPiece.from_pretrained(folder), options)


class Place(NamedTuple):
    """How far the files have been read: whole ones, and pieces of the next."""

    files: int = 0
    pieces: int = 0


def batches(
    files: list[Path], options: ReaderOptions, bar: Progress, begin: Place, ends: deque[Place]
) -> Iterator[list[reader.Piece]]:
    """Pieces of all files in batches of about `_BATCH_BYTES`; the bar moves with the files.

    Args:
        begin: where to; what lies before is passed over.
        ends: the place after each batch is appended to it.
    """
    batch: list[reader.Piece] = []
    size = 0
    end = begin
    bar.skip(sum(map(reader.text_bytes, files[: begin.files])))
    for number, path in enumerate(files[begin.files :], begin.files):
        for index, piece in enumerate(reader.read_pieces(path, options)):
            if (number, index) < begin:
                bar.skip(reader.piece_bytes(piece))
                continue
            batch.append(piece)
            size += reader.piece_bytes(piece)
            end = Place(number, index + 1)
            if size >= _BATCH_BYTES:
                ends.append(end)
                yield batch
                bar.update(size)
                batch, size = [], 0
    if batch:
        ends.append(end)
        yield batch
        bar.update(size)


def encode_all(
    texts: Iterable[list[reader.Piece]],
    tokenizer: WordPiece,
    options: ReaderOptions,
    num_processes: int,
    scratch: Path,
) -> Iterator[Encoded]:
    """Encodes batches in order, in this process or in several, with few batches in flight."""
    if num_processes <= 1:
        yield from (_encode(tokenizer, options, batch) for batch in texts)
        return
    scratch.mkdir(exist_ok=True)
    tokenizer.backend.save(str(scratch / "tokenizer.json"))  # how the workers get it
    waiting: deque[Future[Encoded]] = deque()
    workers = Workers(num_processes, _start_encoding, str(scratch), options)
    with contextlib.closing(workers):
        for batch in texts:
            waiting.append(workers.submit(batch))
            if len(waiting) > 2 * num_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
