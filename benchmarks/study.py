"""What each choice of pretraining buys on a small budget: one changed at a time, then together.

    python -m benchmarks.study --corpus reviews.txt wiki.txt --output runs/study

Every trial is a run of `pretrain` for the same processor time on one thread, so a choice that makes
steps dearer gets fewer of them, and other programs on the machine take nothing away. The network is
one that leaves the plateau of word frequencies within a minute. All finished models sit the same
exam: single tokens, 15 % of held-out sequences of 128, without pairs. Losses compare within a
vocabulary, bits per character across vocabularies.

A trial is finished where its results.json is, so the command can be stopped and given again; a
folder with trials of other settings is refused. It writes study.md, study.svg and, for every trial
and seed, the run folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tqdm import tqdm

from benchmarks.report import over_seeds, told_in_a_line
from minibert import pretraining, train
from minibert.errors import InputError
from minibert.examples import Example, ExampleBuilder, ExampleOptions, held_out_examples
from minibert.run_folder import RunFolder
from minibert.settings import PretrainSettings, recipe

_EXAM = ExampleOptions(128, pretraining.EXAM_MASK_PROB, masking="token", nsp="none")
BASE: dict[str, Any] = {
    "preset": "tiny",
    "vocab_size": 8192,
    "max_seq_length": 128,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_ratio": 0.05,
    "dropout": 0.0,
    "nsp": "none",
}
_MUON = {"optimizer": "muon"}
_BEST = {
    **_MUON,
    "learning_rate": 4e-3,
    "mask_prob": 0.3,
    "short_length": 64,
    "short_share": 0.7,
    "schedule": "constant-then-linear",
}
_UNPAIRED = {**recipe("small-budget", {"nsp": "none"}), "nsp": "none"}
_PLAIN_BEST = {k: v for k, v in _BEST.items() if k not in ("optimizer", "learning_rate")}
# What each trial changes of BASE, by the question that it answers.
TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    "peak rate": {
        "base": {},
        "rate 1e-3": {"learning_rate": 1e-3},
        "rate 4e-3": {"learning_rate": 4e-3},
        "rate 8e-3": {"learning_rate": 8e-3},
    },
    "optimiser": {
        "Muon, rate 2e-3": _MUON,
        "Muon, rate 4e-3": {**_MUON, "learning_rate": 4e-3},
        "Muon, rate 8e-3": {**_MUON, "learning_rate": 8e-3},
    },
    "batch": {
        "batch 16": {"batch_size": 16},
        "batch 64": {"batch_size": 64},
        "ramp to 64 over half": {"batch_size": 64, "batch_ramp": 0.5},
    },
    "schedule": {
        "cosine": {"schedule": "cosine"},
        "constant, then linear": {"schedule": "constant-then-linear"},
        "warm-up 0.15": {"warmup_ratio": 0.15},
    },
    "length": {
        "64 tokens": {"max_seq_length": 64, "batch_size": 64},
        "256 tokens": {"max_seq_length": 256, "batch_size": 16},
        "64 tokens first, 0.5": {"short_length": 64, "short_share": 0.5},
        "64 tokens first, 0.7": {"short_length": 64, "short_share": 0.7},
        "64 tokens first, 0.9": {"short_length": 64, "short_share": 0.9},
        "shifted positions": {"shift_positions": True},
    },
    "masks": {
        "20 % masked": {"mask_prob": 0.2},
        "30 % masked": {"mask_prob": 0.3},
        "whole words": {"masking": "whole-word"},
        "spans": {"masking": "span"},
        "spans, rate 1e-3": {"masking": "span", "learning_rate": 1e-3},
    },
    "pairs": {"next sentence": {"nsp": "nsp"}, "sentence order": {"nsp": "sop"}},
    "regularisation": {"dropout 0.1": {"dropout": 0.1}, "weight decay 0.1": {"weight_decay": 0.1}},
    "network": {
        "norms first": {"norm": "pre"},
        "gated units": {"feed_forward": "gated"},
        "reference's first weights": {"init": "reference"},
    },
    "shape": {
        "1 x 192": {"num_layers": 1, "hidden_size": 192},
        "2 x 192": {"hidden_size": 192},
        "4 x 128": {"num_layers": 4},
        "2 x 256": {"hidden_size": 256},
        "4 x 256": {"num_layers": 4, "hidden_size": 256},
    },
    "vocabulary": {"4,096 words": {"vocab_size": 4096}, "16,384 words": {"vocab_size": 16384}},
    # Chosen after the above.
    "together": {
        "30 %, 64 first, constant": _PLAIN_BEST,
        "the same, Muon, rate 4e-3": _BEST,
        "the same, Muon, rate 2e-3": {**_BEST, "learning_rate": 2e-3},
        "the same, Muon, batch 16": {**_BEST, "batch_size": 16},
        "the same, Muon, sentence order": {**_BEST, "nsp": "sop"},
        "recipe before": {**_MUON, "max_seq_length": 256},
        "recipe": {**recipe("small-budget"), "nsp": "nsp"},
        "recipe, pairs throughout": {**_UNPAIRED, "nsp": "nsp"},
        "recipe, no pairs": _UNPAIRED,
        "recipe, no pairs, shifted positions": {**_UNPAIRED, "shift_positions": True},
    },
}
CHANGES = {name: changes for group in TRIALS.values() for name, changes in group.items()}


def _exam(source: Any, settings: Any) -> list[Example]:
    """The held-out examples of every trial, in place of those that are like its training's."""
    own: ExampleBuilder = source.held_out
    builder = ExampleBuilder(own.store, own.tokenizer, own.documents, _EXAM)
    return held_out_examples(builder, settings.eval_examples)


def run_trial(settings: dict[str, Any]) -> None:
    """One run of `pretrain` by processor time instead of the clock's."""
    score = pretraining.evaluate_pretraining

    def score_exam(model: Any, examples: Any, slots: int, size: int, run: Any) -> Any:
        return score(model, examples, _EXAM.max_predictions, size, run)

    with (
        mock.patch.object(train, "time", SimpleNamespace(perf_counter=time.process_time)),
        mock.patch.object(pretraining, "_held_out", _exam),
        mock.patch.object(pretraining, "evaluate_pretraining", score_exam),
    ):
        pretraining.pretrain(**settings)


def _prepare(trials: Sequence[Mapping[str, Any]]) -> None:
    """Makes every vocabulary and the text's ids beforehand, for they are no part of a budget.

    Raises:
        SystemExit: none could be made; each of the trials would end so, too.
    """
    by_size = {trial["vocab_size"]: trial for trial in trials if not _is_done(trial)}
    bar = tqdm(by_size.values(), desc="vocabularies")
    faults = [_start({**trial, "dry_run": True, "resume": "no"}) for trial in bar]
    if faults and all(faults):
        raise SystemExit(faults[0])


def _is_done(settings: Mapping[str, Any]) -> bool:
    return (Path(settings["output"]) / "results.json").is_file()


def _check_same(output: Path, base: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    """Refuses a folder with finished trials of other settings: one page would show them together.

    Raises:
        SystemExit: the first such trial and what differs.
    """
    for name, changes in CHANGES.items():
        for path in sorted(output.glob(f"{_slug(name)}/seed-*/results.json")):
            folder, seed = path.parent, int(path.parent.name.removeprefix("seed-"))
            try:
                asked = PretrainSettings.from_dict({**base, **changes, **common, "seed": seed})
                run = RunFolder(folder)
                differ = run.other_settings(asked.to_dict())
                text = run.read_run()["settings"]["corpus"]
            except InputError as error:
                raise SystemExit(f"{folder}: {error}") from None
            if text != common["corpus"]:  # which a run that goes on may name otherwise
                differ.append(f"corpus was {text}, now {common['corpus']}")
            if differ:
                raise SystemExit(f"{folder}: {'; '.join(differ)}; name another --output")


def _start(settings: Mapping[str, Any]) -> str:
    """Carries out a trial in a process of one thread; what went wrong, empty where nothing did."""
    folder = Path(settings["output"])
    if _is_done(settings):
        return ""
    command = [sys.executable, "-m", __spec__.name, "--trial", json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    why = (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
    return "" if ended.returncode == 0 else f"{folder.parent.name}, {folder.name}: {why}"


def report(
    found: Mapping[str, Sequence[Mapping[str, Any]]], settings: Mapping[str, Any], minutes: float
) -> str:
    """study.md: of every trial mean and deviation over seeds, and its distance from the base.

    Args:
        found: results.json of each trial's seeds.
        settings: of the base.
    """
    some = next(iter(found.values()))[0]
    base = [one["mlm_bits_per_character"] for one in found.get("base", ())]
    lines = [
        f"{minutes:g} minutes of one thread each; exam of {some['masked_tokens']:,} masked tokens "
        f"of {some['num_eval']:,} held-out sequences (unigram {some['unigram_entropy']:.3f} nats). "
        "Base: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + ".",
        "",
        "| question | trial | seeds | tokens, M | steps | MLM loss | accuracy | bits a character "
        "| minus base |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for question, trials in TRIALS.items():
        for name in trials:
            if name not in found:
                continue
            runs = found[name]
            bits = [one["mlm_bits_per_character"] for one in runs]
            apart = f"{statistics.mean(bits) - statistics.mean(base):+.3f}" if base else ""
            lines.append(
                f"| {question} | {name} | {len(runs)} "
                f"| {statistics.mean(one['tokens'] for one in runs) / 1e6:.2f} "
                f"| {statistics.mean(one['steps'] for one in runs):,.0f} "
                f"| {over_seeds([one['mlm_loss'] for one in runs], 3)} "
                f"| {over_seeds([100 * one['mlm_accuracy'] for one in runs], 1)} "
                f"| {over_seeds(bits, 3)} | {apart} |"
            )
            question = ""
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """A bar for each trial: bits per character above or below the base's.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    base = statistics.mean(one["mlm_bits_per_character"] for one in found["base"])
    apart = {
        name: statistics.mean(one["mlm_bits_per_character"] for one in runs) - base
        for name, runs in found.items()
        if name != "base"
    }
    names = sorted(apart, key=apart.__getitem__)
    figure = Figure(figsize=(8, 0.6 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    values = [apart[name] for name in names]
    axes.barh(names, values, color=["#2a7f4f" if v < 0 else "#8c8c8c" for v in values])
    for place, value in enumerate(values):
        axes.text(max(value, 0), place, f" {value:+.3f}", va="center", fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(x=0.12)
    axes.set_xlabel("held-out bits per character, minus the base's (less is better)")
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--corpus", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of a trial")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--base",
        type=json.loads,
        default={},
        help="settings of all trials, as JSON",
        metavar="JSON",
    )
    parser.add_argument("--only", nargs="+", choices=CHANGES, metavar="TRIAL")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, a core each")
    parser.add_argument("--cache-dir")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.trial:
        with told_in_a_line("study"):
            run_trial(json.loads(args.trial))
        return
    if not args.corpus:
        parser.error("--corpus is missing")
    common = {
        "corpus": args.corpus,
        "max_minutes": args.minutes,
        "eval_every": 1 << 30,  # the end's alone
        "device": "cpu",
        "cache_dir": args.cache_dir,
        "resume": "auto",
    }
    base = {**BASE, **args.base}
    trials = [
        {**base, **CHANGES[name], **common, "seed": seed, "output": str(_place(args, name, seed))}
        for seed in range(args.seeds)
        for name in args.only or CHANGES
    ]
    _check_same(args.output, base, common)
    with told_in_a_line("study"):
        _prepare(trials)
        _carry_out(trials, args.jobs)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in CHANGES:
        for path in sorted(args.output.glob(f"{_slug(name)}/seed-*/results.json")):
            found.setdefault(name, []).append(json.loads(path.read_text()))
    if not found:
        raise SystemExit("no trial has ended")
    text = report(found, base, args.minutes)
    (args.output / "study.md").write_text(text)
    print(text)
    if "base" in found:
        try:
            draw(found, args.output / "study.svg")
        except ImportError:
            print("no plot: matplotlib is not installed; pip install 'minibert[benchmarks]'")


def _carry_out(trials: Sequence[Mapping[str, Any]], jobs: int) -> None:
    """The trials, some at a time; what went wrong with one is printed, and the others go on."""
    with ThreadPoolExecutor(jobs) as pool:
        for fault in tqdm(pool.map(_start, trials), total=len(trials), desc="trials"):
            if fault:
                tqdm.write(fault, file=sys.stderr)


def _place(args: argparse.Namespace, name: str, seed: int) -> Path:
    return Path(args.output) / _slug(name) / f"seed-{seed}"


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() or c == "." else " " for c in name.replace(",", ""))
    return "-".join(kept.split()).lower()


if __name__ == "__main__":
    main()
