"""All benchmarks in one command: a page, a file with every time, and a plot.

    python -m benchmarks
    python -m benchmarks --only pretraining/mini-128 finetuning --rounds 3 --output runs/try

Every result is written as soon as it is there, beside those of earlier runs. A work that cannot run
here, for want of a library or of memory, is named with the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.turns import measure_turns
from minibert.corpus import find_files
from minibert.errors import InputError
from minibert.files import bundled_data


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def find_works(wanted: Sequence[str] | None) -> list[str]:
    """The works "benchmark/work" of all benchmarks, or of those named, wholly or by work.

    A benchmark whose works cannot be told is listed as one, so that running it says why.

    Raises:
        InputError: a name that is none; those that are get named.
    """
    found = []
    for benchmark in report.BENCHMARKS:
        try:
            works = report.load_module(benchmark).WORKS
        except (ImportError, AttributeError):
            found.append(f"{benchmark}/all")
            continue
        found += [f"{benchmark}/{work}" for work in works]
    if not wanted:
        return found
    known = {*found, *report.BENCHMARKS}
    for name in wanted:
        if name not in known:
            raise InputError(f"--only {name} is no benchmark; there are {', '.join(sorted(known))}")
    return [work for work in found if {work, work.split("/")[0]} & set(wanted)]


def run_work(name: str, rounds: int, texts: list[Path]) -> dict[str, Any]:
    """One work measured, or an entry that says why it could not be."""
    benchmark, work = name.split("/", 1)
    start = time.perf_counter()
    try:
        module: Any = report.load_module(benchmark)
        if hasattr(module, "measure"):
            found = module.measure(work, rounds, texts)
            if getattr(module, "READS_TEXT", False):
                found["text"] = ", ".join(path.name for path in texts)
        else:
            found = measure_turns(module, work, rounds)
    except Exception as error:  # the other works go on
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    timings = found.get("timings", [])
    if timings and all(timing["error"] for timing in timings):
        found = {"error": timings[-1]["error"]}
    return {
        "rounds": rounds,
        **found,
        "date": datetime.date.today().isoformat(),
        "took_seconds": round(time.perf_counter() - start, 1),
        "environment": report.environment(),
    }


def _time_left(left: list[str], results: report.Results, taken: list[float]) -> str:
    """An estimate: what works took the last time, else what those of this run took."""
    mean = sum(taken) / len(taken) if taken else 180.0
    earlier = [results.get(name, {}).get("took_seconds", mean) for name in left]
    return f"about {sum(earlier) / 60:.0f} min"


def _draw(folder: Path, results: report.Results) -> None:
    from benchmarks.plot import draw

    try:
        draw(results, folder / "benchmarks.svg")
    except ImportError:
        _say("no plot: matplotlib is not installed; pip install 'minibert[benchmarks]'")


def run(works: list[str], rounds: int, texts: list[Path], folder: Path) -> report.Results:
    """Measures works one after the other; writes the folder after each."""
    folder.mkdir(parents=True, exist_ok=True)  # before anything is measured for it
    results = report.load(folder)
    taken: list[float] = []
    for number, name in enumerate(works):
        left = _time_left(works[number:], results, taken)
        _say(f"[{number + 1}/{len(works)}] {name}, {left} left")
        entry = run_work(name, rounds, texts)
        if "error" in entry:
            _say(f"{name} not run: {entry['error']}")
        taken.append(entry["took_seconds"])
        report.add(results, name, entry)
        _draw(folder, results)  # first, for the page shows it
        report.save(folder, results)
    _say(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return results


def _find_texts(given: list[str] | None) -> list[Path]:
    try:
        return find_files(given or [str(bundled_data() / "wiki.txt")])
    except InputError as error:
        raise InputError(str(error).replace("--corpus", "--text")) from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="benchmarks, or benchmark/work")
    parser.add_argument("--rounds", type=int, default=7, help="in each of which all take a turn")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="a folder")
    parser.add_argument(
        "--text", nargs="+", help="text for tokenising, pairs, corpus (default: the bundled one)"
    )
    args = parser.parse_args(arguments)
    try:
        if args.rounds < 1:
            raise InputError(f"--rounds {args.rounds}; at least 1")
        works = find_works(args.only)
        texts = _find_texts(args.text)
        run(works, args.rounds, texts, args.output)
    except (InputError, OSError) as error:
        _say(f"benchmarks: {error}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; what was measured is written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
