"""The results of all benchmarks in one folder: benchmarks.json, benchmarks.md, benchmarks.svg.

The JSON file holds every single time, by "benchmark/work"; the other two are made from it. A run
adds to what is there, so that parts can be measured one after the other.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks import turns
from minibert.errors import InputError, Interrupted
from minibert.files import read_json, write_atomically, write_json
from minibert.version import __version__

Results = dict[str, dict[str, Any]]

# Name -> module. A module has WORKS by name and `variants(work)`, to be timed in turns, or
# `measure(name, rounds, texts)`; `table(found)` or `tables(found_by_work)` where the table of turns
# does not do. Its docstring heads its section.
BENCHMARKS = {
    "pretraining": "benchmarks.pretraining",
    "gpu": "benchmarks.gpu",
    "finetuning": "benchmarks.finetuning",
    "prediction": "benchmarks.prediction",
    "tokenising": "benchmarks.tokenising",
    "pairs": "benchmarks.pairs",
    "corpus": "benchmarks.corpus",
    "kernels": "benchmarks.kernels",
}
_PACKAGES = ("torch", "numpy", "tokenizers", "transformers", "datasets")


@contextlib.contextmanager
def told_in_a_line(name: str) -> Iterator[None]:
    """Ends a command whose input is wrong, or that was stopped, with one line.

    Raises:
        SystemExit: status 2 for what cannot be used, after a signal that of the signal.
    """
    try:
        yield
        return
    except (InputError, OSError) as error:
        status, text = 2, str(error)
    except Interrupted as stop:
        status, text = stop.status, str(stop)
    except KeyboardInterrupt:
        status, text = 130, "stopped"
    print(f"{name}: {text}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def load_module(benchmark: str) -> ModuleType:
    """The module of a benchmark, imported when it is wanted."""
    return importlib.import_module(BENCHMARKS[benchmark])


def environment() -> dict[str, str]:
    """Machine and versions, without a name that would say whose machine it is."""
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    model = platform.processor() or platform.machine()
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    found = {"cpu": model, "cores": str(os.cpu_count())}
    if meminfo.exists():
        found["memory"] = f"{int(meminfo.read_text().split()[1]) / (1 << 20):.0f} GiB"
    found |= {"system": platform.system(), "python": platform.python_version()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["minibert"] = __version__
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def load(folder: Path) -> Results:
    """Results of earlier runs, none where there are none."""
    path = folder / "benchmarks.json"
    return read_json(path, "") if path.is_file() else {}


def in_order(results: Results) -> Results:
    """The same in the order of `BENCHMARKS`, and of its works as they were first measured."""
    place = {benchmark: number for number, benchmark in enumerate(BENCHMARKS)}
    last = len(place)
    return dict(sorted(results.items(), key=lambda x: place.get(x[0].split("/")[0], last)))


def add(results: Results, name: str, entry: dict[str, Any]) -> None:
    """Takes in a new entry; one that only says why nothing was measured replaces no figures."""
    if "error" not in entry or "error" in results.get(name, {"error": ""}):
        results[name] = entry


def save(folder: Path, results: Results) -> None:
    """Writes the JSON file and the page made from it, into a folder that is there."""
    write_json(folder / "benchmarks.json", in_order(results))
    page = markdown(results, (folder / "benchmarks.svg").is_file())
    write_atomically(folder / "benchmarks.md", lambda p: p.write_text(page, encoding="utf-8"))


def markdown(results: Results, has_plot: bool) -> str:
    """The page: what was measured on, and a section for each benchmark."""
    parts = ["# Benchmarks", _HOW]
    if has_plot:
        parts.append("![Ratios, shares of peak, and scaling](benchmarks.svg)")
    parts += _environments(results)
    for benchmark in BENCHMARKS:
        found = {
            name.split("/", 1)[1]: entry
            for name, entry in results.items()
            if name.split("/")[0] == benchmark
        }
        if found:
            parts.append(_section(benchmark, found))
    return "\n\n".join(parts) + "\n"


_HOW = """\
Made by `python -m benchmarks`; `--only NAME` measures a part anew. Ours and the others take turns
in one run, each in a process of its own. "x NAME" is the ratio of speeds to NAME: the median over
rounds, and the least and greatest in brackets. Tokens are real ones, no padding. "% of peak" are
the operations that real tokens need (formula in `minibert/flops.py`), as a share of the machine's
best matrix product of the model's shapes, in the precision that minibert takes there, in the same
run. The last layer is counted whole, also where a classifier computes its first token alone, or
pretraining the masked ones, so that shares compare work done, not products run: of `mini`'s 4
layers' work 16 % is counted and not run. Every single time is in benchmarks.json."""


def _environments(results: Results) -> list[str]:
    """A line for every machine and set of versions, with what was measured on it."""
    groups: dict[str, list[str]] = {}
    for name, entry in results.items():
        found = entry.get("environment", {})
        line = ", ".join(f"{key} {value}" for key, value in found.items())
        groups.setdefault(line, []).append(name)
    if len(groups) == 1:
        return [f"Machine: {line}." for line in groups]
    return [f"{', '.join(names)}: {line}." for line, names in groups.items()]


def _section(benchmark: str, found: Results) -> str:
    try:
        module: Any = load_module(benchmark)
    except ImportError:
        module = None
    paragraphs = (getattr(module, "__doc__", "") or "").strip().split("\n\n")
    parts = [f"## {benchmark}", *(p for p in paragraphs if p and not p.startswith("    "))]
    measured = {work: entry for work, entry in found.items() if "error" not in entry}
    if measured and hasattr(module, "tables"):
        parts.append("; ".join(f"{work} {_when(entry)}" for work, entry in measured.items()) + ".")
        parts.append(module.tables(measured))
    else:
        for work, entry in measured.items():
            table = module.table if hasattr(module, "table") else _turns_table
            parts += [f"**{benchmark}/{work}**, {_when(entry)}", table(entry)]
    parts += [f"{work}: not run, {e['error']}" for work, e in found.items() if "error" in e]
    return "\n\n".join(parts)


def _when(entry: dict[str, Any]) -> str:
    text = f"{entry['date']}, {entry['rounds']} rounds"
    if entry.get("peak_flops"):
        text += f", peak {entry['peak_flops'] / 1e9:,.0f} GFLOP/s"
    if "text" in entry:
        text += f", text {entry['text']}"
    return text


def timings_of(entry: dict[str, Any]) -> list[turns.Timing]:
    """The timings of an entry that was measured in turns; none of another."""
    return [turns.Timing(**timing) for timing in entry.get("timings", [])]


def _turns_table(entry: dict[str, Any]) -> str:
    return turns.markdown(timings_of(entry), entry.get("peak_flops", 0.0), entry["unit"])


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation of a sample; of one value itself."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
