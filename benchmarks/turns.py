"""Several variants of the same work, timed in turns within one run.

Timings on a shared machine move by a third from minute to minute, so a variant's own time says
little; what is compared are the ratios of each round, in which every variant takes one step after
the other. Each variant lives in a process of its own, with its own allocator and environment.

A worker is started as `python -m benchmarks.turns MODULE:FUNCTION '{"argument": 1}'`. The function
returns an object whose `step()` does one step and returns {"tokens": useful ones, "flops": useful
ones, ...}; "units" are what speeds are counted in where that is not tokens. Its `number` tells the
step, so that in a round all take the same data. It answers every line on its standard input, such a
number, with a line of JSON; what a library prints goes to standard error.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

# What a knowing user can export: glibc keeps freed memory, PyTorch asks for large pages.
KEEP_MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
_PEAK_TOKENS = 4096  # rows of the products that the peak is measured with, at most
_STEADY, _STEADY_STEPS = 1.01, 10  # memory grown less than this in so many steps is steady
_SETTLE_AT_MOST = 6  # times the least time


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    build: "module:function" with keyword arguments in `arguments`. environment: added to ours.
    """

    name: str
    build: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class VariantError(RuntimeError):
    """A variant cannot do its work; the message says why in one line."""


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

    def step(self, number: int) -> dict[str, float]:
        """One step in the worker; steps that are not counted have numbers below 0.

        Raises:
            VariantError: it could not be done, or the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise VariantError(f"its process ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise VariantError(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Timing:
    """What one variant did in every round; nothing, and why, where it could not run."""

    name: str
    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    error: str = ""

    @property
    def rates(self) -> list[float]:
        """Units, which are useful tokens if not said otherwise, a second."""
        return [u / s for u, s in zip(self.units, self.seconds, strict=True)]

    def share_of(self, peak_flops: float) -> float:
        """Median of the useful operations a second, as a share of the machine's peak."""
        rates = [f / s for f, s in zip(self.flops, self.seconds, strict=True)]
        return statistics.median(rates) / peak_flops

    def add(self, answer: dict[str, float]) -> None:
        """Takes in a worker's answer to one step."""
        self.seconds.append(answer["seconds"])
        self.tokens.append(answer["tokens"])
        self.flops.append(answer["flops"])
        self.units.append(answer.get("units", answer["tokens"]))
        self.peak_mib = answer["peak_mib"]


def take_turns(
    variants: list[Variant],
    rounds: int,
    warmup: int = 2,
    settle_seconds: float = 0.0,
    turn_seconds: float = 0.0,
) -> list[Timing]:
    """Times steps of every variant in every round, after steps that are not counted.

    A variant that cannot run is left out of the rounds, and its timing says why.

    Args:
        warmup, settle_seconds: each variant first takes at least so many steps for so long, and on
            until its memory is steady, but not six times as long.
        turn_seconds: how long a turn lasts at least; of one step or more.
    """
    timings = [Timing(variant.name) for variant in variants]
    workers: list[Worker] = []

    def turn(worker: Worker, timing: Timing, number: int, seconds: float) -> float:
        """The memory that the worker has held, 0 where it cannot run."""
        if timing.error:
            return 0.0
        try:
            answer = worker.step(number)
            while answer["seconds"] < seconds:
                number += rounds
                more = worker.step(number)
                answer = {key: value + more[key] for key, value in answer.items()}
                answer["peak_mib"] = more["peak_mib"]
        except VariantError as error:
            timings[timings.index(timing)] = Timing(timing.name, error=str(error))
            worker.close()
            return 0.0
        if number >= 0:
            timing.add(answer)
        return answer["peak_mib"]

    try:
        for place, variant in enumerate(tqdm(variants, desc="starting", leave=False)):
            workers.append(Worker(variant))
            start = time.perf_counter()
            peaks: list[float] = []
            while len(peaks) < warmup or not _is_settled(
                peaks, time.perf_counter() - start, settle_seconds
            ):
                peaks.append(turn(workers[-1], timings[place], -1 - len(peaks), 0.0))
                if timings[place].error:
                    break
        for number in tqdm(range(rounds), desc="rounds", leave=False):
            for place, worker in enumerate(workers):
                turn(worker, timings[place], number, turn_seconds)
        return timings
    finally:
        for worker in workers:
            worker.close()


def _is_settled(peaks: list[float], seconds: float, least_seconds: float) -> bool:
    """Whether a variant has run long enough, by the memory it had held after each step (MiB)."""
    if not least_seconds <= seconds < _SETTLE_AT_MOST * least_seconds:
        return seconds >= least_seconds
    return len(peaks) > _STEADY_STEPS and peaks[-1] < _STEADY * peaks[-1 - _STEADY_STEPS]


def measure_turns(module: Any, name: str, rounds: int) -> dict[str, Any]:
    """One work of a benchmark module in turns, with the machine's peak before and after.

    Args:
        module: has WORKS (by name; `config`, `batch_size` and `max_seq_length` size the peak's
            products) and `variants(work)`; UNIT where speeds are not in tokens; SETTLE_SECONDS
            and TURN_SECONDS for `take_turns`.

    Returns:
        unit, peak_flops (operations a second) and timings, ready for JSON.
    """
    from minibert.flops import measure_peak_flops
    from minibert.runtime import start_runtime

    work = module.WORKS[name]
    runtime = start_runtime("cpu", "auto", deterministic=True)
    tokens = min(_PEAK_TOKENS, work.batch_size * work.max_seq_length)
    before = measure_peak_flops(work.config, tokens, runtime)
    settle, turn = (getattr(module, name, 0.0) for name in ("SETTLE_SECONDS", "TURN_SECONDS"))
    variants = module.variants(work)
    timings = take_turns(variants, rounds, settle_seconds=settle, turn_seconds=turn)
    peak = max(before, measure_peak_flops(work.config, tokens, runtime))
    unit = getattr(module, "UNIT", "tokens")
    return {"unit": unit, "peak_flops": peak, "timings": [asdict(timing) for timing in timings]}


def ratios(ours: Timing, base: Timing) -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios of rates."""
    found = [a / b for a, b in zip(ours.rates, base.rates, strict=True)]
    return statistics.median(found), min(found), max(found)


def markdown(timings: list[Timing], peak_flops: float = 0.0, unit: str = "tokens") -> str:
    """A table: each variant's speed, and its ratio to every variant before it.

    Args:
        peak_flops: operations a second; without it the table has no share of the peak.
    """
    ran = [timing for timing in timings if not timing.error]
    head = ["", f"{unit}/s", *["% of peak"][: bool(peak_flops)], "peak memory, MiB"]
    head += [f"x {timing.name}" for timing in ran[:-1]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for place, timing in enumerate(ran):
        cells = [timing.name, _number(statistics.median(timing.rates))]
        if peak_flops:
            cells.append(f"{timing.share_of(peak_flops):.1%}")
        cells.append(f"{timing.peak_mib:,.0f}")
        for base in ran[:place]:
            middle, low, high = ratios(timing, base)
            cells.append(f"{middle:.2f} [{low:.2f}-{high:.2f}]")
        cells += [""] * (len(head) - len(cells))
        lines.append("| " + " | ".join(cells[: len(head)]) + " |")
    lines += [f"\n{timing.name}: not run, {timing.error}" for timing in timings if timing.error]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def peak_mib(process: int | str = "self") -> float:
    """The most memory that a process has held at once.

    Linux's ru_maxrss begins at what the parent held when it started the process, so VmHWM is read
    where there is one.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        if process != "self":  # it has ended by now
            return 0.0
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _one_line(error: Exception) -> str:
    """Why a variant cannot run."""
    if isinstance(error, ImportError):
        return f"{error}; pip install 'minibert[benchmarks]'"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _serve(build: str, arguments: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, function = build.split(":")
    work: Any = None
    for line in sys.stdin:
        try:
            if work is None:
                work = getattr(importlib.import_module(module), function)(**json.loads(arguments))
            work.number = int(line)
            start = time.perf_counter()
            answer = work.step()
            answer["seconds"] = time.perf_counter() - start
            answer["peak_mib"] = peak_mib()
        except Exception as error:  # the other variants go on without this one
            answer = {"error": _one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
