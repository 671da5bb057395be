"""The vocabulary of a corpus: trained once, on a sample where there is more text than it needs."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from minibert import corpus as reader
from minibert.cache import cache_key, default_cache_dir
from minibert.corpus import ReaderOptions
from minibert.files import is_compressed, whole_characters
from minibert.progress import Progress
from minibert.tokenizer import WordPiece, train_wordpiece

_SAMPLE = 512 << 20  # bytes of text that a vocabulary is trained on at most
_STRETCH = 1 << 20  # bytes of text taken from one place of a sampled corpus


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

    Of a corpus over 512 MiB of text a sample is taken, which is printed; see `sample`.
    """
    cache_dir = cache_dir or default_cache_dir()
    more = (vocab_size, lowercase, chinese, exact, _SAMPLE, _STRETCH)
    key = cache_key(files, options, *more, cache_dir=cache_dir)
    folder = cache_dir / f"vocabulary-{key}"
    if (folder / "tokenizer_config.json").is_file():  # the file that `save` writes last
        print(f"vocabulary: read from {folder}", file=sys.stderr)
        return _said_if_larger(WordPiece.from_pretrained(folder), vocab_size)
    total = sum(map(reader.text_bytes, files))
    count = _SAMPLE // _STRETCH
    if total > _SAMPLE:
        print(
            f"vocabulary: trained on {count:,} stretches of {_STRETCH:,} bytes at equal distances "
            f"in about {total:,}; compressed files give their beginnings",
            file=sys.stderr,
        )

    def texts() -> Iterator[str]:
        with Progress("vocabulary", min(total, _SAMPLE)) as progress:
            found = sample(files, options, count) if total > _SAMPLE else _whole(files, options)
            for text in found:
                progress.update(len(text.encode(errors="replace")) + 1)
                yield text

    tokenizer = train_wordpiece(texts, vocab_size, lowercase, chinese, exact)
    tokenizer.save(folder)
    print(f"vocabulary: {tokenizer.vocab_size:,} pieces, written to {folder}", file=sys.stderr)
    return _said_if_larger(tokenizer, vocab_size)


def _said_if_larger(tokenizer: WordPiece, vocab_size: int) -> WordPiece:
    if tokenizer.vocab_size > vocab_size:
        print(
            f"vocabulary: {tokenizer.vocab_size:,} pieces instead of {vocab_size:,}, which the "
            f"single characters of the text alone exceed; --vocab-size chooses another size",
            file=sys.stderr,
        )
    return tokenizer


def _whole(files: list[Path], options: ReaderOptions) -> Iterator[str]:
    pieces = (piece for path in files for piece in reader.read_pieces(path, options))
    return ("\n".join(piece.lines) for piece in pieces)


def sample(files: list[Path], options: ReaderOptions, count: int) -> Iterator[str]:
    """Lines of `count` stretches at equal distances, so that time does not grow with the corpus.

    A stretch begins with the first whole line after its place and goes on, into the next files if
    need be, for a MiB. A compressed file can be entered at its beginning only, so the stretches
    that fall into it are taken there, one after the other. JSON lines that cannot be read are
    passed over: encoding will name them.
    """
    ends = list(itertools.accumulate(map(reader.text_bytes, files)))
    places = [ends[-1] * i // count for i in range(count)]
    number = 0

    def file_of(place: int) -> int:
        nonlocal number
        while place >= ends[number]:
            number += 1
        return number

    for first, group in itertools.groupby(places, file_of):
        within = [place - (ends[first - 1] if first else 0) for place in group]
        if is_compressed(files[first]):
            yield from _stretch(files[first:], 0, len(within) * _STRETCH, options)
            continue
        for begin in within:
            yield from _stretch(files[first:], begin, _STRETCH, options)


def _stretch(files: list[Path], begin: int, size: int, options: ReaderOptions) -> Iterator[str]:
    """Lines from a place of the first file on, as many as make up a size in bytes."""
    taken = 0
    for path in files:
        is_json, is_wikitext = reader.is_json_lines(path), reader.is_wikitext(path)
        for line in reader.lines_from(path, begin):
            taken += len(line)
            text = line.decode(errors="replace")
            if is_json:
                text = _json_text(text, options.text_field)
            elif is_wikitext:
                text = reader.plain_line(text.rstrip("\r\n"))
            yield text
            if taken >= size:
                return
        begin = 0


def _json_text(line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    text = record.get(field) if isinstance(record, dict) else None
    return whole_characters(text) if isinstance(text, str) else ""
