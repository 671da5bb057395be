"""From text to the token store: time and memory against the size of the text.

    python -m benchmarks --only corpus --text enwiki-0?.txt.xz

The text is repeated until it has each size. A vocabulary of 30,522 is made from it, it is encoded
into a store, and a run is begun on the store up to its first batch, each in a process of its own,
as `pretrain.py` does it. Memory is the most that the main process and any one worker have held;
of a beginning run what it adds, without the store's mapped pages, which the system takes back when
it needs them. Small sizes may be measured several times, and medians are shown; 1,000 MB once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.text import OPTIONS, write_text
from benchmarks.turns import peak_mib
from minibert.cache import data_fingerprint
from minibert.store import open_store
from minibert.tokenizer import WordPiece
from minibert.vocabulary import corpus_vocabulary

_VOCABULARY = 30_522
_MEASURED_MEGABYTES = 300  # over all rounds of a size, about
_WATCH_SECONDS = 0.1


@dataclass(frozen=True)
class Work:
    """How much text."""

    megabytes: float


READS_TEXT = True
WORKS = {"10-MB": Work(10), "100-MB": Work(100), "1000-MB": Work(1000)}


class _Watch(threading.Thread):
    """Notes the greatest memory of any child process while it lives."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib = 0.0
        self.start()

    def run(self) -> None:
        me = os.getpid()
        while True:
            for listed in Path(f"/proc/{me}/task").glob("*/children"):
                try:
                    children = listed.read_text().split()
                except OSError:  # the thread has ended
                    continue
                for child in children:
                    if Path(f"/proc/{child}").exists():
                        self.mib = max(self.mib, peak_mib(child))
            time.sleep(_WATCH_SECONDS)


def _vocabulary(text: Path, folder: Path) -> dict[str, float]:
    found = corpus_vocabulary([text], _VOCABULARY, OPTIONS, True, True, folder, exact=False)
    found.save(folder / "vocabulary")
    return {}


def _encode(text: Path, folder: Path) -> dict[str, float]:
    tokenizer = WordPiece.from_pretrained(folder / "vocabulary")
    store = open_store([text], tokenizer, OPTIONS, folder)
    num_bytes = sum(path.stat().st_size for path in store.folder.iterdir())
    return {
        "tokens": store.counts.tokens,
        "store_bytes": num_bytes,
        "main_seconds": time.process_time(),
    }


def _begin(text: Path, folder: Path) -> dict[str, float]:
    from minibert.documents import split_documents
    from minibert.example_stream import ExampleStream
    from minibert.examples import (
        ExampleBuilder,
        ExampleOptions,
        collate,
        held_out_examples,
        unigram_log_prob,
    )

    before, start = _anonymous_mib(), time.perf_counter()
    tokenizer = WordPiece.from_pretrained(folder / "vocabulary")
    data_fingerprint([text], OPTIONS, folder)
    store = open_store([text], tokenizer, OPTIONS, folder)
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
    added = _anonymous_mib() - before
    del alive
    return {"seconds": seconds, "added_mib": added}


def _anonymous_mib() -> float:
    """This process's memory without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


_STAGES = {"vocabulary": _vocabulary, "encode": _encode, "start": _begin}


def serve(what: str, text: Path, folder: Path) -> dict[str, float]:
    """One stage in this process: what it took."""
    watch = _Watch()
    start = time.perf_counter()
    found = _STAGES[what](text, folder)
    taken = {"seconds": time.perf_counter() - start} | found
    return taken | {"main_mib": peak_mib(), "worker_mib": watch.mib}


def _stage(what: str, text: Path, folder: Path) -> dict[str, float]:
    """The same in a new process, so that its memory is its own."""
    line = [sys.executable, "-m", __spec__.name, what, str(text), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(name: str, rounds: int, texts: list[Path]) -> dict[str, Any]:
    """Every stage at one size, as often as rounds and size allow; ready for JSON."""
    megabytes = WORKS[name].megabytes
    stages: dict[str, list[dict[str, float]]] = {stage: [] for stage in _STAGES}
    with tempfile.TemporaryDirectory() as where:
        text = Path(where) / "text.txt"
        write_text(texts, megabytes, text)
        times = max(1, min(rounds, int(_MEASURED_MEGABYTES / megabytes)))
        for number in range(times):
            folder = Path(where) / str(number)
            folder.mkdir()
            for stage, found in stages.items():
                found.append(_stage(stage, text, folder))
        return {"bytes": text.stat().st_size, "rounds": times, "stages": stages}


def medians(found: dict[str, Any]) -> dict[str, float]:
    """The figures of a size: megabytes, tokens, seconds by stage, MiB of main process and worker.

    Memory is that of the hungriest stage.
    """
    stages = found["stages"]
    figures = {"megabytes": found["bytes"] / 1e6, "tokens": stages["encode"][0]["tokens"]}
    for stage, rows in stages.items():
        figures[stage] = statistics.median(row["seconds"] for row in rows)
    for key in ("main_mib", "worker_mib"):
        figures[key] = max(row[key] for row in stages["encode"])
    encoded = stages["encode"][0]
    figures["token_bytes"] = encoded["store_bytes"] / encoded["tokens"]
    figures["added_mib"] = max(row["added_mib"] for row in stages["start"])
    figures["vocabulary_mib"] = max(row["main_mib"] for row in stages["vocabulary"])
    return figures


def tables(found: dict[str, dict[str, Any]]) -> str:
    """One table with a row for each size."""
    head = (
        "text, MB",
        "tokens",
        "vocabulary, s",
        "encoding, s",
        "encoding, MB/s",
        "vocabulary, MiB",
        "encoding: main, MiB",
        "a worker, MiB",
        "store, bytes a token",
        "start of a run, s",
        "it adds, MiB",
        "times",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found.values():
        f = medians(row)
        lines.append(
            f"| {f['megabytes']:,.0f} | {f['tokens']:,.0f} | {f['vocabulary']:.1f} | "
            f"{f['encode']:.1f} | {f['megabytes'] / f['encode']:.2f} | "
            f"{f['vocabulary_mib']:,.0f} | {f['main_mib']:,.0f} | {f['worker_mib']:,.0f} | "
            f"{f['token_bytes']:.2f} | {f['start']:.2f} | {f['added_mib']:,.0f} | "
            f"{len(row['stages']['encode'])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
