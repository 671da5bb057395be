"""The curve of a pretraining run, drawn from its metrics.jsonl.

    python -m benchmarks.curve runs/pretrain --output docs/curve.svg

Above the loss of masked words, below the share of pairs told apart, in training and held out, step
by step. Training may mask more than evaluation does, and reads short sequences first where the
recipe says so, so that the two lines need not meet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minibert.run_folder import read_metrics

_PARTS = {"mlm_loss": "masked words: loss, nats", "nsp_accuracy": "pairs: share told apart"}
_LINES = {"": ("training", "#8c8c8c"), "eval_": ("held out", "#4c72b0")}


def points_of(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps, and what the rows that have a key say under it."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in found], [value for _, value in found]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The picture; equal rows give equal bytes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    parts = [key for key in _PARTS if any(key in row for row in rows)]
    figure = Figure(figsize=(7, 2.6 * len(parts)), layout="constrained")
    for axes, key in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        for prefix, (label, colour) in _LINES.items():
            axes.plot(*points_of(rows, prefix + key), color=colour, label=label)
        axes.set_title(_PARTS[key], fontsize=9)
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(frameon=False, fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "curve"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.curve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="a run folder of pretraining")
    parser.add_argument("--output", type=Path, required=True, help="an SVG file")
    args = parser.parse_args(arguments)
    if args.output.suffix != ".svg":
        print(f"curve: --output {args.output} does not end in .svg", file=sys.stderr)
        return 2
    rows = read_metrics(args.run)
    if not any("mlm_loss" in row for row in rows):
        print(f"curve: {args.run} has no metrics.jsonl of a pretraining", file=sys.stderr)
        return 2
    try:
        draw(rows, args.output)
    except ImportError:
        print("curve: no matplotlib; pip install 'minibert[benchmarks]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"curve: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
