"""Several variants of the same work, timed in turns within one run.

Timings on a shared machine move by a third from minute to minute, so a variant's own time says
little; what is compared are the ratios of each round, in which every variant takes one step after
the other. Each variant lives in a process of its own, with its own allocator and environment.

A worker is started as `python -m benchmarks.turns MODULE:FUNCTION '{"argument": 1}'`. The function
returns an object whose `step()` does one step and returns {"tokens": useful ones, "flops": useful
ones, ...}. It answers every line on its standard input with a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

# What a knowing user can export so that glibc keeps freed memory.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    build: "module:function" with keyword arguments in `arguments`. environment: added to ours.
    """

    name: str
    build: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class Worker:
    """A variant in its process."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, variant.build, json.dumps(variant.arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variant.environment},
        )

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.variant.name} ended with status {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Timing:
    """What one variant did in every round."""

    name: str
    seconds: list[float]
    tokens: list[float]
    flops: list[float]
    peak_mib: float

    @property
    def rates(self) -> list[float]:
        """Useful tokens a second."""
        return [t / s for t, s in zip(self.tokens, self.seconds, strict=True)]


def take_turns(variants: list[Variant], rounds: int, warmup: int = 2) -> list[Timing]:
    """Times one step of every variant in every round, after steps that are not counted."""
    workers = []
    try:
        for variant in tqdm(variants, desc="starting", leave=False):
            worker = Worker(variant)
            workers.append(worker)
            for _ in range(warmup):
                worker.step()
        timings = [Timing(variant.name, [], [], [], 0.0) for variant in variants]
        for _ in tqdm(range(rounds), desc="rounds", leave=False):
            for worker, timing in zip(workers, timings, strict=True):
                answer = worker.step()
                timing.seconds.append(answer["seconds"])
                timing.tokens.append(answer["tokens"])
                timing.flops.append(answer["flops"])
                timing.peak_mib = answer["peak_mib"]
        return timings
    finally:
        for worker in workers:
            worker.close()


def ratios(ours: Timing, base: Timing) -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios of useful tokens a second."""
    found = [a / b for a, b in zip(ours.rates, base.rates, strict=True)]
    return statistics.median(found), min(found), max(found)


def markdown(timings: list[Timing], peak_flops: float) -> str:
    """A table: each variant's speed, and its ratio to every variant before it."""
    head = ["", "tokens/s", "% of peak", "peak memory, MiB"]
    head += [f"x {timing.name}" for timing in timings[:-1]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for place, timing in enumerate(timings):
        share = statistics.median(
            f / s / peak_flops for f, s in zip(timing.flops, timing.seconds, strict=True)
        )
        cells = [
            timing.name,
            f"{statistics.median(timing.rates):,.0f}",
            f"{share:.1%}",
            f"{timing.peak_mib:,.0f}",
        ]
        for base in timings[: len(timings) - 1]:
            if timings.index(base) >= place:
                cells.append("")
                continue
            middle, low, high = ratios(timing, base)
            cells.append(f"{middle:.2f} [{low:.2f}-{high:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _serve(build: str, arguments: str) -> None:
    module, function = build.split(":")
    work = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    for _ in sys.stdin:
        start = time.perf_counter()
        answer = work.step()
        answer["seconds"] = time.perf_counter() - start
        answer["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
