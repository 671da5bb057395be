"""Where results made of the text lie, and the fingerprints that name them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minibert import corpus as reader
from minibert.corpus import ReaderOptions
from minibert.files import write_atomically

_KEPT_FROM = 64 << 20  # bytes of text whose digests are worth a file
_DIGESTS_VERSION = 2  # raise it when the same file gets another digest


@functools.lru_cache(maxsize=1 << 16)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """A file's digest, computed once as long as size and time of change stay as they are."""
    return reader.content_digest(path)


def _digests(files: list[Path], cache_dir: Path | None) -> list[str]:
    """Every file's digest; those of a large corpus are kept, so that they are made only once."""
    stats = [path.stat() for path in files]
    where = [
        [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        for path, stat in zip(files, stats, strict=True)
    ]
    name = hashlib.sha256(json.dumps([_DIGESTS_VERSION, where]).encode()).hexdigest()[:16]
    kept = (cache_dir or default_cache_dir()) / f"digests-{name}.json"
    with contextlib.suppress(OSError, ValueError):
        found: list[str] = json.loads(kept.read_text())
        return found
    digests = [
        _digest(path, stat.st_size, stat.st_ctime_ns)
        for path, stat in zip(files, stats, strict=True)
    ]
    if sum(stat.st_size for stat in stats) >= _KEPT_FROM:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: path.write_text(json.dumps(digests)))
    return digests


def data_fingerprint(
    files: list[Path], options: ReaderOptions, cache_dir: Path | None = None
) -> str:
    """A digest of the text and of how it is read; where the files lie does not count.

    Args:
        cache_dir: where the digests of a large corpus are kept; `default_cache_dir()` when None.
    """
    version: list[Any] = [reader.READER_VERSION]
    if any(map(reader.is_wikitext, files)):  # which was read as other text once
        version.append("wikitext")
    content = json.dumps([_digests(files, cache_dir), asdict(options), *version])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def cache_key(
    files: list[Path], options: ReaderOptions, *more: Any, cache_dir: Path | None = None
) -> str:
    """The fingerprint that names a cached result: paths, sizes, times, content, settings."""
    where = []
    for path in files:
        stat = path.stat()
        where.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    content = json.dumps([where, data_fingerprint(files, options, cache_dir), *more])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/minibert, or ~/.cache/minibert."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minibert"
