"""Search in a file of sentences by meaning: their vectors, computed once, and the nearest ones.

    file, one sentence a line or row -> different sentences -> (n, D) float16 index, kept on disk
    queries -> (q, D) -> cosines, block by block -> the best of each query

A million sentences of a model 384 wide are an index of 768 MB, which is read from the disk as it is
needed: no more than a block of it is held as numbers to reckon with.

Shapes: n different sentences, q queries, D hidden_size, k hits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from minibert.cache import default_cache_dir
from minibert.errors import InputError, TextError
from minibert.files import read_lines, table_kind, write_atomically
from minibert.model_folders import open_model_folder
from minibert.predict import load_embedder
from minibert.quantised import Int8Linear
from minibert.runs import log_line, weights_digest
from minibert.tasks.base import text_in
from minibert.tasks.inputs import holds_tags, is_json, read_inputs

_BLOCK = 16384  # rows of the index that are compared at once
_QUERIES = 256  # with so many queries
_VERSION = 1  # of how an index is made


class Hit(NamedTuple):
    """A sentence that a query found.

    line: the first one it stands on, from 1. copies: on how many lines it stands. score: cosine.
    """

    line: int
    copies: int
    score: float
    text: str


def search(
    folder: str | Path,
    file: str | Path,
    queries: str | Sequence[str],
    top: int = 5,
    device: str | torch.device = "auto",
    precision: str | None = None,
    batch_size: int = 32,
    cache_dir: str | Path | None = None,
    text_column: str | None = None,
) -> list[list[Hit]]:
    """The sentences of a file that are nearest to each query, best first.

    The index of the file is kept in the cache and used again while the sentences and the model stay
    as they are.

    Args:
        folder: a bi-encoder's run folder, or any model folder; see `predict.load_embedder`.
        file: one sentence a line, also .gz, .xz or .bz2; blank lines are left out. Or a table,
            .csv, .tsv or .jsonl.
        queries: one or several.
        top: hits per query; equal sentences are one.
        cache_dir: where indexes are kept; `cache.default_cache_dir()` when None.
        text_column: of a table, "text" when None.

    Raises:
        InputError: no model, a file that cannot be read or is empty, or nothing to ask.
    """
    if top < 1:
        raise InputError(f"--top is {top}, must be above 0")
    queries = [queries] if isinstance(queries, str) else list(queries)
    for number, query in enumerate(queries, 1):
        if not isinstance(query, str):
            raise TextError(number, f"is {query!r:.60}; expected a string", "query")
    if not queries or not all(query.strip() for query in queries):
        raise InputError("a query is empty; expected some words")
    lines = sentences_of(Path(file), text_column)
    path = open_model_folder(str(folder))
    embedder: Any = load_embedder(path, device, precision)
    texts = list(lines)
    kept = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    index = _index(embedder, path, texts, batch_size, kept)
    found = nearest(embedder.embed(queries, batch_size), index, top)
    return [
        [Hit(*lines[texts[row]], round(score, 6), texts[row]) for row, score in hits]
        for hits in found
    ]


def _text_of(file: Path, number: int, row: str) -> str:
    text = text_in(row)
    if not isinstance(text, str):
        raise InputError(f"--input {file}, line {number}: {row:.60} holds no text")
    return text


def sentences_of(file: Path, text_column: str | None = None) -> dict[str, tuple[int, int]]:
    """The different sentences of a file -> (first line, how many lines), in their order.

    Raises:
        InputError: it cannot be read, lacks the column, or holds no sentence.
    """
    if file.is_dir():
        raise InputError(f"--input {file} is a folder; expected a file of one sentence a line")
    if table_kind(file):
        rows = read_inputs(file, lambda _: {"text": text_column or "text"})
        lines = [(number, _text_of(file, number, row)) for number, row in rows]
    elif text_column is not None:
        raise InputError("--text-column goes with a .csv, .tsv or .jsonl as --input")
    else:
        rows = list(enumerate(read_lines(file), 1))
        content = "\n".join(row for _, row in rows)
        if is_json(content):
            raise InputError(f"--input {file} is JSON; expected a sentence a line, or a .jsonl")
        if holds_tags(content):
            raise InputError(f"--input {file} holds a word and its tag a line, no sentences")
        lines = [(number, _text_of(file, number, row)) for number, row in rows]
    found: dict[str, tuple[int, int]] = {}
    for number, line in lines:
        text = line.strip()
        if text:
            first, copies = found.get(text, (number, 0))
            found[text] = first, copies + 1
    if not found:
        raise InputError(f"--input {file} holds no sentence; expected one a line")
    return found


def _index(
    embedder: Any, folder: Path, texts: list[str], batch_size: int, cache_dir: Path
) -> np.ndarray:
    """The (n, D) float16 vectors of length 1 of the texts, from the cache or made for it."""
    path = cache_dir / f"search-{_key(embedder, folder, texts)}.npy"
    shape = len(texts), embedder.width
    try:
        index: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if index.shape == shape and index.dtype == np.float16:
            log_line("index", f"{len(texts):,} sentences, from {path}")
            return index
    except (OSError, ValueError, EOFError):  # none yet, or damaged
        pass
    log_line("index", f"{len(texts):,} sentences, made once and kept as {path}")

    def write(temporary: Path) -> None:
        bar = tqdm(total=len(texts), desc="embedding", unit="sentence", delay=1, leave=False)
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        # Written, not mapped: a full disk is then an error and not a signal that kills.
        with bar, temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for _, part in embedder.embed_in_parts(texts, batch_size):
                handle.write(part.astype("<f2").tobytes())
                bar.update(len(part))

    cache_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _key(embedder: Any, folder: Path, texts: list[str]) -> str:
    """What names an index: all that decides its numbers, but for rounding."""
    settings = embedder.task.settings
    facts = [_VERSION, weights_digest(folder), settings.max_seq_length, settings.truncation]
    is_int8 = any(isinstance(part, Int8Linear) for part in embedder.model.modules())
    precision = "int8" if is_int8 else embedder.runtime.precision
    facts += [embedder.tokenizer.fingerprint, precision]
    digest = hashlib.sha256(repr(facts).encode())
    digest.update((folder / "config.json").read_bytes())
    for text in texts:
        digest.update(f"{text!r}\n".encode())  # a text of a table may have line breaks
    return digest.hexdigest()[:16]


def nearest(queries: np.ndarray, index: np.ndarray, top: int) -> list[list[tuple[int, float]]]:
    """The rows of an index that are nearest to each query, best first; of equals the first row.

    Args:
        queries: (q, D) of length 1.
        index: (n, D) of length 1, in memory or on disk; read block by block.

    Returns:
        Of each query at most `top` times (row, cosine).
    """
    parts = (queries[i : i + _QUERIES] for i in range(0, len(queries), _QUERIES))
    return [hits for part in parts for hits in _nearest(part, index, top)]


def _nearest(queries: np.ndarray, index: np.ndarray, top: int) -> list[list[tuple[int, float]]]:
    """`nearest` for as many queries as are compared at once."""
    asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).T
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(index), _BLOCK):
        block = torch.from_numpy(np.array(index[start : start + _BLOCK]))
        new = (block.float() @ asked).T.numpy()  # (q, block)
        numbers = np.broadcast_to(np.arange(start, start + len(block)), new.shape)
        scores, rows = _best(np.hstack([scores, new]), np.hstack([rows, numbers]), top)
    scores = scores.clip(-1, 1)  # vectors rounded to float16 are not quite of length 1
    return [
        list(zip(numbers.tolist(), values.tolist(), strict=True))
        for numbers, values in zip(rows, scores, strict=True)
    ]


def _best(scores: np.ndarray, rows: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` columns of (q, m) scores with the greatest ones, and their rows, best first."""
    if scores.shape[1] > top:  # whatever equals the last one that fits stays in until it is sorted
        least = -np.partition(-scores, top - 1, axis=1)[:, top - 1 : top]
        wide = int((scores >= least).sum(axis=1).max())
        kept = np.argpartition(-scores, min(wide, scores.shape[1]) - 1, axis=1)[:, :wide]
        scores, rows = (np.take_along_axis(part, kept, axis=1) for part in (scores, rows))
    order = np.lexsort((rows, -scores), axis=1)[:, :top]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
