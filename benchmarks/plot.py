"""The plot of the results: ratios, shares of the peak, and what a corpus takes by its size."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.report import Results, in_order, timings_of
from benchmarks.turns import Timing, ratios

_OURS, _THEIRS = "minibert", ("#4c72b0", "#dd8452", "#8c8c8c", "#937860")
_GREEN = "#2a7f4f"


def _measured_in_turns(results: Results) -> dict[str, tuple[list[Timing], float]]:
    """Works in which ours stands beside others: their timings and peak."""
    found = {}
    for name, entry in in_order(results).items():
        timings = [timing for timing in timings_of(entry) if not timing.error]
        if any(t.name.startswith(_OURS) for t in timings) and len(timings) > 1:
            found[name] = (timings, entry.get("peak_flops", 0.0))
    return found


def _draw_ratios(axes: Any, found: dict[str, tuple[list[Timing], float]]) -> None:
    """A bar for each of ours against each of the others, grouped by work."""
    places, labels, at = [], [], 0.0
    for name, (timings, _) in found.items():
        theirs = [t for t in timings if not t.name.startswith(_OURS)]
        first = at
        for ours in (t for t in timings if t.name.startswith(_OURS)):
            which = ours.name.removeprefix(_OURS).strip(" ,")
            for colour, other in zip(itertools.cycle(_THEIRS), theirs, strict=False):
                middle, low, high = ratios(ours, other)
                spread = [[middle - low], [high - middle]]
                axes.barh(at, middle, 0.85, color=colour, xerr=spread, ecolor="#00000055")
                text = f" {middle:.3g} x {other.name}" + (f" ({which})" if which else "")
                axes.text(high, at, text, va="center", fontsize=7)
                at += 1
        places.append((first + at - 1) / 2)
        labels.append(name.replace("/", "\n"))
        at += 0.7
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.3)
    axes.set_title("minibert's speed as a multiple of others'")


def _draw_shares(axes: Any, found: dict[str, tuple[list[Timing], float]]) -> None:
    """A bar for each variant: useful operations as a share of the machine's peak."""
    places, labels, at = [], [], 0.0
    for name, (timings, peak) in found.items():
        if not peak:
            continue
        first, colours = at, iter(_THEIRS)
        for timing in timings:
            share = timing.share_of(peak)
            ours = timing.name.startswith(_OURS)
            axes.barh(at, 100 * share, 0.85, color=_GREEN if ours else next(colours, "#8c8c8c"))
            axes.text(100 * share, at, f" {share:.0%} {timing.name}", va="center", fontsize=7)
            at += 1
        places.append((first + at - 1) / 2)
        labels.append(name.replace("/", "\n"))
        at += 0.7
    axes.set_yticks(places, labels, fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title("useful operations, % of the machine's peak")


def _draw_corpus(time_axes: Any, memory_axes: Any, rows: list[dict[str, float]]) -> None:
    """Time and memory against the size of the text, both axes logarithmic."""
    sizes = [row["megabytes"] for row in rows]
    lines = {"vocabulary": "vocabulary", "encode": "encoding", "start": "start of a run"}
    for key, label in lines.items():
        time_axes.plot(sizes, [row[key] for row in rows], marker="o", label=label)
    largest = rows[-1]
    straight = [largest["encode"] * size / largest["megabytes"] for size in sizes]
    time_axes.plot(sizes, straight, ":", color="gray", label="in proportion to the text")
    time_axes.set_title("from text to store: seconds")
    memory = {"main_mib": "main process", "worker_mib": "a worker", "vocabulary_mib": "vocabulary"}
    for key, label in memory.items():
        memory_axes.plot(sizes, [row[key] for row in rows], marker="o", label=label)
    memory_axes.set_title("from text to store: peak memory, MiB")
    memory_axes.set_ylim(0, 1.3 * max(row[key] for row in rows for key in memory))
    time_axes.set_yscale("log")
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log")
        axes.set_xlabel("text, MB")
        axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)


def draw(results: Results, path: Path) -> None:
    """Draws what there is into a file of the kind that its name says.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    found = _measured_in_turns(results)
    measured = [
        corpus.medians(entry)
        for name, entry in results.items()
        if name.startswith("corpus/") and "error" not in entry
    ]
    sizes = sorted(measured, key=lambda row: row["megabytes"])
    bars = sum(len(timings) + 0.7 for timings, _ in found.values())
    heights = [max(3.0, 0.21 * bars)] * bool(found) + [3.2] * bool(sizes)
    if not heights:
        return
    figure = Figure(figsize=(12, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
    if found:
        _draw_ratios(axes[0, 0], found)
        _draw_shares(axes[0, 1], found)
    if sizes:
        _draw_corpus(axes[-1, 0], axes[-1, 1], sizes)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
