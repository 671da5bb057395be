"""`--seeds N`: the same run with several seeds, and what varies with the seed alone.

In: settings and a function that carries out one run. Out: a run folder with a sub-folder for each
seed, the mean and standard deviation of every figure, and the model that was best on dev.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from minibert.adaptation import made_before_training
from minibert.errors import InputError
from minibert.files import write_json
from minibert.machine import launched
from minibert.run_folder import RunFolder
from minibert.runs import (
    EarlierStage,
    RunResult,
    as_begun_from,
    check_not_read,
    check_not_start,
    closing_table,
    dev_figure,
    finished_run,
    log_line,
    of_seed,
    weights_digest,
)
from minibert.runtime import versions
from minibert.self_training import SELF_TRAINING
from minibert.settings import FinetuneSettings
from minibert.train import NonFiniteError

# What has no mean worth telling; a threshold on scores goes with its model alone.
_NO_MEAN = ("seconds", "steps", "best_step", "threshold", "null_threshold")


class BeforeSeeds(Protocol):
    """What comes once, before the runs of several seeds.

    fingerprint: of their data.
    """

    fingerprint: str

    def check(self, start: Path) -> None:
        """Refuses data that cannot be used with the model that all seeds start from."""

    def check_begun(self, folder: RunFolder, start: Path) -> None:
        """Refuses runs of seeds that had other settings than those to come."""

    def check_finished(self, folder: RunFolder) -> None:
        """Refuses runs that had other data than there is, but for their own fingerprint."""

    def adapt(self, start: Path, run: Path) -> EarlierStage | None:
        """That model with the task's text learnt, in the run's folder; None: as it is."""


def repeat(
    settings: FinetuneSettings,
    run_one: Callable[[FinetuneSettings], RunResult],
    choose: Callable[[FinetuneSettings], Path],
    first: BeforeSeeds,
) -> RunResult:
    """Runs with seed, seed + 1, ...; the folder's model is that of the best dev figure.

    Args:
        choose: finds the folder of the model to start from; asked once, for all seeds.
        first: what comes once, before the first seed.

    Raises:
        InputError: among several processes, or a folder or model that may not be used so.
        Interrupted: by a signal; `--resume` goes on in the seed that it stopped.
        NonFiniteError: every seed diverged.
    """
    if launched().size > 1:
        raise InputError("--seeds runs one seed after the other in one process; leave torchrun out")
    kept = made_before_training(settings)
    run_folder = RunFolder(settings.output or f"runs/{settings.task}", kept=kept)
    with run_folder as folder, contextlib.ExitStack() as earlier:
        goes_on = folder.check_may_start(settings.resume, settings.overwrite)
        if goes_on:
            folder.check_same_settings("finetune", settings.to_dict())
            folder.drop_half_written()
            if "data_fingerprint" in folder.read_run():  # which older versions wrote at the end
                folder.check_same_data(first.fingerprint, settings.to_dict())
                folder.respell_data(settings.to_dict())
            if folder.results is not None:
                first.check_finished(folder)
                return finished_run(folder)
        start = _start(settings, choose, folder.read_run()["resolved"] if goes_on else {})
        model = Path(start["start"])
        check_not_start(folder, model)
        check_not_read(folder, settings)
        first.check(model)
        if goes_on:
            first.check_begun(folder, model)
        else:
            record = {"command": "finetune", "settings": settings.to_dict(), "resolved": start}
            record |= {"versions": versions(), "data_fingerprint": first.fingerprint}
            # Runs of seeds also where the run before was of one: they would be gone on with.
            seed_runs = [seed.name for seed in folder.seed_runs()]
            # Until a seed has ended: what refuses the first of them refuses the whole.
            earlier.enter_context(folder.replacing(*seed_runs))
            folder.write_run(record)
        shared = first.adapt(model, folder.path)
        of_all = shared or EarlierStage(model, start["start_weights"], {})
        each = {
            seed: _of_seed(settings, folder.path, seed, of_all.folder, shared is not None)
            for seed in range(settings.seed, settings.seed + settings.seeds)
        }
        runs, diverged = _carried_out(each, of_all.weights, run_one, earlier.close)
        best = max(runs, key=lambda seed: dev_figure(runs[seed].figures)[1])
        own = {**start, "adapted": shared and shared.weights}
        _take_over(folder, settings, runs[best].folder, own)
        results = _summary({seed: run.figures for seed, run in runs.items()})
        # The figures are means; model and predictions.jsonl beside them are of one seed.
        results |= {"best_seed": best, "predictions_of_seed": best}
        if shared is not None:
            results["adapted"] = shared.notes
        if diverged:
            results["diverged"] = {str(seed): why for seed, why in diverged.items()}
        write_json(folder.path / "results.json", results)
        closing_table(results, folder.path)
        for seed, why in diverged.items():
            print(f"diverged, and not in the means: seed {seed}: {why}", flush=True)
        return RunResult(folder.path, results, runs[best].model)


def _start(
    settings: FinetuneSettings, choose: Callable[[FinetuneSettings], Path], before: dict[str, Any]
) -> dict[str, str]:
    """The model that all seeds start from, as run.json has it: `start` and `start_weights`.

    A run that goes on keeps its own, whatever would be chosen now.

    Args:
        before: `resolved` of a run that goes on.

    Raises:
        InputError: no model is there, or its weights are not those that the run began with.
    """
    folder = choose(as_begun_from(settings, before))
    digest = weights_digest(folder)
    if before.get("start_weights", digest) != digest:
        raise InputError(f"--resume: the weights in {folder} have changed; --overwrite starts anew")
    return {"start": str(folder), "start_weights": digest}


def _carried_out(
    each: dict[int, FinetuneSettings],
    weights: str,
    run_one: Callable[[FinetuneSettings], RunResult],
    ended: Callable[[], object],
) -> tuple[dict[int, RunResult], dict[int, str]]:
    """The results by seed; and of those whose loss was no number, why they ended.

    Such a one would come there again, so it is not tried again.

    Args:
        each: the settings by seed. weights: the digest of what all start from. ended: called after
            each seed.

    Raises:
        NonFiniteError: no seed has a result.
    """
    runs: dict[int, RunResult] = {}
    diverged: dict[int, str] = {}
    for number, (seed, one) in enumerate(each.items(), 1):
        log_line("seed", f"{seed}, {number} of {len(each)}")
        _respell_start(one, weights)
        before = RunFolder(one.output)
        try:
            if before.results is None and before.diverged:
                raise NonFiniteError(before.diverged)
            runs[seed] = run_one(one)
            _keep_best_model(runs)
        except NonFiniteError as error:
            diverged[seed] = str(error)
            log_line("diverged", f"seed {seed}: {error}")
        ended()
    if not runs:
        seed, why = next(iter(diverged.items()))
        raise NonFiniteError(f"every seed diverged; seed {seed}: {why}")
    return runs, diverged


def _keep_best_model(runs: dict[int, RunResult]) -> None:
    """Lets go of every model but the best one's, and of what was needed to train it."""
    best = max(runs, key=lambda seed: dev_figure(runs[seed].figures)[1])
    for seed, run in runs.items():
        if seed != best:
            runs[seed] = dataclasses.replace(run, model=None)
    gc.collect()  # a loop and its evaluation hold each other


def _respell_start(settings: FinetuneSettings, digest: str) -> None:
    """Has a seed's run name the model as it is named now, which depends on `--output`."""
    assert settings.output is not None
    run = RunFolder(settings.output)
    if not (run.path / "run.json").is_file():
        return
    if run.read_run()["resolved"].get("start_weights") == digest:
        run.respell(model=settings.model)


def _of_seed(
    settings: FinetuneSettings, path: Path, seed: int, start: Path, is_adapted: bool
) -> FinetuneSettings:
    """The settings of one run; minutes are those of the whole command."""
    minutes = settings.unadapted_minutes and settings.unadapted_minutes / settings.seeds
    if is_adapted:
        settings = dataclasses.replace(
            settings,
            random_weights=False,
            adapt=None,
            adapt_epochs=None,
            adapt_minutes=None,
            adapt_learning_rate=None,
        )
    return dataclasses.replace(
        of_seed(settings, path, seed),
        model=str(start),
        resume="auto",
        overwrite=False,
        max_minutes=minutes,
    )


def _take_over(
    folder: RunFolder, settings: FinetuneSettings, best: Path, own: dict[str, Any]
) -> None:
    """Copies a run's files, so that the folder can be used as any other.

    Args:
        own: what `resolved` says of the folder itself: where all seeds started.
    """
    own_alone = (*SELF_TRAINING, "run.json", "results.json", ".lock")
    for file in best.iterdir():
        if file.is_file() and file.name not in own_alone:
            shutil.copy2(file, folder.path / file.name)
    run = RunFolder(best).read_run()
    resolved = run["resolved"] | own
    folder.write_run(run | {"settings": settings.to_dict(), "resolved": resolved})


def _summary(figures: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Mean and, of several, standard deviation (of a sample) of every figure, and each seed's own.

    A whole number that all seeds share stays as it is. What a seed lacks has no mean: a baseline is
    not there where a run that was gone on with found no scikit-learn, or no memory.
    """
    runs = list(figures.values())
    summary: dict[str, Any] = {}
    for key, value in runs[0].items():
        if key in _NO_MEAN or any(key not in run for run in runs):
            continue
        differs = isinstance(value, int) and any(run[key] != value for run in runs)
        if isinstance(value, float) or differs:
            values = [float(run[key]) for run in runs]
            summary[key] = statistics.fmean(values)
            if len(values) > 1:
                summary[f"{key}_sd"] = statistics.stdev(values)
        elif isinstance(value, (str, int)) or key == "data_notes":
            summary[key] = value
    summary["seconds"] = sum(float(run["seconds"]) for run in runs)
    return summary | {"seeds": [{"seed": seed, **run} for seed, run in figures.items()]}
