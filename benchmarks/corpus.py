"""Encoding a corpus into the token store: time and memory against the size of the text.

    python -m benchmarks.corpus enwiki-00.txt.xz --megabytes 10 100 1000

The text is repeated until it has each size, with a counter in every document, so that no two are
alike; vocabulary (of the first size) and cache lie in a temporary folder. Memory is the greatest of
the main process, which reads and writes, and of any worker. "Start of a run" is what a second run
does with the finished store before its first batch, and what memory that adds; mapped pages of the
store, which the system takes back when it needs them, are not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minibert import corpus
from minibert.cache import data_fingerprint
from minibert.store import open_store
from minibert.tokenizer import WordPiece
from minibert.vocabulary import corpus_vocabulary

_OPTIONS = corpus.ReaderOptions()


def write_text(source: Path, megabytes: int, path: Path) -> None:
    """Repeats the documents of a text file up to a size."""
    wanted, written, copy = megabytes * 10**6, 0, 0
    with path.open("w", encoding="utf-8") as out:
        while written < wanted:
            for piece in corpus.read_pieces(source, _OPTIONS):
                start = f"\n\nCopy {copy}.\n" if piece.starts_document else "\n"
                written += out.write(start + "\n".join(piece.lines))
                if written >= wanted:
                    break
            copy += 1


def _status_mib(name: str) -> float:
    """A figure of this process's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def build(text: Path, vocabulary: Path, cache: Path) -> dict[str, float]:
    """Seconds and MiB of one build, in this process and its workers."""
    tokenizer = WordPiece.from_pretrained(vocabulary)
    start = time.perf_counter()
    store = open_store([text], tokenizer, _OPTIONS, cache)
    seconds = time.perf_counter() - start
    return {
        "tokens": store.counts.tokens,
        "seconds": seconds,
        "main_seconds": time.process_time(),
        "main_mib": _status_mib("VmHWM"),  # its own peak; ru_maxrss begins at its parent's
        "worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "store_bytes": sum(path.stat().st_size for path in store.folder.iterdir()),
    }


def begin(text: Path, vocabulary: Path, cache: Path) -> dict[str, float]:
    """Seconds from a built store to the first batch, as a run begins, and MiB; torch is there."""
    from minibert.examples import (
        ExampleBuilder,
        ExampleOptions,
        ExampleStream,
        collate,
        held_out_examples,
        split_documents,
        unigram_log_prob,
    )

    before = _status_mib("RssAnon")  # mapped files are the system's
    start = time.perf_counter()
    tokenizer = WordPiece.from_pretrained(vocabulary)
    data_fingerprint([text], _OPTIONS, cache)
    store = open_store([text], tokenizer, _OPTIONS, cache)
    options = ExampleOptions()
    training, held_out = (
        ExampleBuilder(store, tokenizer, documents, options)
        for documents in split_documents(store, options.nsp)
    )
    scored = held_out_examples(held_out, 2048)
    unigram = unigram_log_prob(held_out)
    stream = ExampleStream(training, 0)
    batch = collate(stream.take(32), options.max_predictions)
    seconds = time.perf_counter() - start
    alive = (scored, unigram, stream, batch)  # as in a run
    grown = _status_mib("RssAnon") - before
    del alive
    return {"start_seconds": seconds, "start_mib": grown}


def measure(text: Path, vocabulary: Path, cache: Path) -> dict[str, float]:
    """`build` and then `begin`, each in a process of its own."""
    row: dict[str, float] = {"bytes": text.stat().st_size}
    for part in ("build", "begin"):
        line = [sys.executable, "-m", "benchmarks.corpus", str(text)]
        line += ["--part", part, str(vocabulary), str(cache)]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        row |= json.loads(done.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a text file to repeat")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part = {"build": build, "begin": begin}[args.part[0]]
        print(json.dumps(part(args.text, Path(args.part[1]), Path(args.part[2]))))
        return
    print(
        "| text, MB | tokens | seconds | MB/s | reader's CPU, s | main, MiB | a worker, MiB | "
        "store, bytes a token | start of a run, s | it adds, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = folder / "vocabulary"
        for megabytes in args.megabytes:
            text = folder / f"{megabytes}.txt"
            write_text(args.text, megabytes, text)
            if not vocabulary.exists():
                found = corpus_vocabulary(
                    [text], args.vocab_size, _OPTIONS, True, True, folder / "cache"
                )
                found.save(vocabulary)
            row = measure(text, vocabulary, folder / f"cache-{megabytes}")
            print(
                f"| {row['bytes'] / 1e6:,.0f} | {row['tokens']:,} | {row['seconds']:.1f} | "
                f"{row['bytes'] / 1e6 / row['seconds']:.2f} | {row['main_seconds']:.1f} | "
                f"{row['main_mib']:,.0f} | {row['worker_mib']:,.0f} | "
                f"{row['store_bytes'] / row['tokens']:.2f} | {row['start_seconds']:.2f} | "
                f"{row['start_mib']:.0f} |",
                flush=True,
            )
            text.unlink()


if __name__ == "__main__":
    main()
