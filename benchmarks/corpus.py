"""From text to the token store: time and memory against the size of the text.

    python -m benchmarks --only corpus --text enwiki-0?.txt.xz

The text is repeated until it has each size. A vocabulary of 8,192 is made from it, it is encoded
into a store, and the store is opened again, each in a process of its own, as `pretrain.py` does it.
Memory is the most that the main process and any one worker have held. Small sizes are
measured several times, and medians shown; 1,000 MB once.
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
from minibert.store import corpus_vocabulary, open_store
from minibert.tokenizer import WordPiece

_VOCABULARY = 8192
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


def _open(text: Path, folder: Path) -> dict[str, float]:
    tokenizer = WordPiece.from_pretrained(folder / "vocabulary")
    store = open_store([text], tokenizer, OPTIONS, folder)
    return {"tokens": store.counts.tokens}


def serve(what: str, text: Path, folder: Path) -> dict[str, float]:
    """One stage in this process: what it took."""
    watch = _Watch()
    start = time.perf_counter()
    found = {"vocabulary": _vocabulary, "open": _open}[what](text, folder)
    seconds = time.perf_counter() - start
    return found | {"seconds": seconds, "main_mib": peak_mib(), "worker_mib": watch.mib}


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
    stages: dict[str, list[dict[str, float]]] = {"vocabulary": [], "encode": [], "again": []}
    with tempfile.TemporaryDirectory() as where:
        text = Path(where) / "text.txt"
        write_text(texts, megabytes, text)
        for number in range(max(1, min(rounds, int(_MEASURED_MEGABYTES / megabytes)))):
            folder = Path(where) / str(number)
            folder.mkdir()
            for stage, found in stages.items():
                what = "vocabulary" if stage == "vocabulary" else "open"
                found.append(_stage(what, text, folder))
        return {"bytes": text.stat().st_size, "stages": stages}


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
        "opened again, s",
        "vocabulary, MiB",
        "encoding: main, MiB",
        "a worker, MiB",
        "times",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found.values():
        f = medians(row)
        lines.append(
            f"| {f['megabytes']:,.0f} | {f['tokens']:,.0f} | {f['vocabulary']:.1f} | "
            f"{f['encode']:.1f} | {f['megabytes'] / f['encode']:.2f} | {f['again']:.2f} | "
            f"{f['vocabulary_mib']:,.0f} | {f['main_mib']:,.0f} | {f['worker_mib']:,.0f} | "
            f"{len(row['stages']['encode'])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
