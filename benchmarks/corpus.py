"""Encoding a corpus into the token store: time and memory against the size of the text.

    python -m benchmarks.corpus enwiki-00.txt.xz --megabytes 10 100 1000

The text is repeated until it has each size, with a counter in every document, so that no two are
alike; vocabulary (of the first size) and cache lie in a temporary folder. Memory is the greatest of
the main process and of any worker; opening the finished store again is timed as well.
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
from minibert.store import corpus_vocabulary, open_store
from minibert.tokenizer import WordPiece

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


def measure(text: Path, vocabulary: Path, cache: Path) -> dict[str, float]:
    """Seconds and MiB of one build, in this process and its workers."""
    tokenizer = WordPiece.from_pretrained(vocabulary)
    start = time.perf_counter()
    store = open_store([text], tokenizer, _OPTIONS, cache)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    open_store([text], tokenizer, _OPTIONS, cache)
    kibibytes = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return {
        "bytes": text.stat().st_size,
        "tokens": store.counts.tokens,
        "seconds": seconds,
        "again": time.perf_counter() - start,
        "main_mib": kibibytes[0] / 1024,
        "worker_mib": kibibytes[1] / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a text file to repeat")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--one", nargs=2, metavar=("VOCABULARY", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.text, Path(args.one[0]), Path(args.one[1]))))
        return
    print("| text, MB | tokens | seconds | MB/s | opened again, s | main, MiB | a worker, MiB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = folder / "vocabulary"
        for megabytes in args.megabytes:
            text = folder / f"{megabytes}.txt"
            write_text(args.text, megabytes, text)
            if not vocabulary.exists():
                found = corpus_vocabulary([text], 8192, _OPTIONS, True, True, folder / "cache")
                found.save(vocabulary)
            line = [sys.executable, "-m", "benchmarks.corpus", str(text), "--one", str(vocabulary)]
            line.append(str(folder / f"cache-{megabytes}"))
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout)
            print(
                f"| {row['bytes'] / 1e6:,.0f} | {row['tokens']:,} | {row['seconds']:.1f} | "
                f"{row['bytes'] / 1e6 / row['seconds']:.2f} | {row['again']:.1f} | "
                f"{row['main_mib']:,.0f} | {row['worker_mib']:,.0f} |",
                flush=True,
            )
            text.unlink()


if __name__ == "__main__":
    main()
