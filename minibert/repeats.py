"""`--seeds N`: the same run with several seeds, and what varies with the seed alone.

In: settings and a function that carries out one run. Out: a run folder with a sub-folder for each
seed, the mean and standard deviation of every figure, and the model that was best on dev.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minibert.adaptation import Adapted, made_before_training
from minibert.errors import InputError
from minibert.files import write_json
from minibert.machine import launched
from minibert.run_folder import RunFolder
from minibert.runs import RunResult, closing_table, finished_run, log_line
from minibert.runtime import versions
from minibert.settings import FinetuneSettings

_SPEED = ("seconds", "steps", "best_step")  # what has no mean worth telling


def repeat(
    settings: FinetuneSettings,
    run_one: Callable[[FinetuneSettings], RunResult],
    adapted: Callable[[FinetuneSettings, Path], Adapted | None],
) -> RunResult:
    """Runs with seed, seed + 1, ...; the folder's model is that of the best dev figure.

    Args:
        adapted: makes the model that all start from, in the run's folder; None: as the settings
            have it.

    Raises:
        InputError: among several processes, or a folder that may not be used so.
        Interrupted: by a signal; `--resume` goes on in the seed that it stopped.
    """
    if launched().size > 1:
        raise InputError("--seeds runs one seed after the other in one process; leave torchrun out")
    kept = made_before_training(settings)
    with RunFolder(settings.output or f"runs/{settings.task}", kept=kept) as folder:
        if folder.check_may_start(settings.resume, settings.overwrite):
            folder.check_same_settings("finetune", settings.to_dict())
            if folder.results is not None:
                return finished_run(folder)
        else:
            _begin(folder, settings)
        shared = adapted(settings, folder.path)
        seeds = range(settings.seed, settings.seed + settings.seeds)
        runs: dict[int, RunResult] = {}
        for seed in seeds:
            log_line("seed", f"{seed}, {len(runs) + 1} of {settings.seeds}")
            runs[seed] = run_one(_of_seed(settings, folder.path, seed, shared))
        best = max(seeds, key=lambda seed: _dev_figure(runs[seed].figures))
        _take_over(folder, settings, runs[best].folder)
        results = _summary({seed: run.figures for seed, run in runs.items()}) | {"best_seed": best}
        if shared is not None:
            results["adapted"] = shared.notes
        write_json(folder.path / "results.json", results)
        closing_table(results, folder.path)
        return RunResult(folder.path, results, runs[best].model)


def _begin(folder: RunFolder, settings: FinetuneSettings) -> None:
    folder.clear()
    for old in folder.path.glob("seed-*"):
        if (old / "run.json").is_file():
            shutil.rmtree(old)
    record = {"command": "finetune", "settings": settings.to_dict(), "resolved": {}}
    folder.write_run(record | {"versions": versions()})


def _of_seed(
    settings: FinetuneSettings, path: Path, seed: int, adapted: Adapted | None
) -> FinetuneSettings:
    """The settings of one run; minutes are those of the whole command."""
    minutes = settings.tuning_minutes and settings.tuning_minutes / settings.seeds
    if adapted is not None:
        settings = dataclasses.replace(
            settings,
            model=str(adapted.folder),
            random_weights=False,
            adapt=None,
            adapt_epochs=None,
            adapt_minutes=None,
            adapt_learning_rate=None,
        )
    return dataclasses.replace(
        settings,
        seed=seed,
        seeds=1,
        output=str(path / f"seed-{seed}"),
        resume="auto",
        overwrite=False,
        max_minutes=minutes,
    )


def _dev_figure(figures: dict[str, Any]) -> float:
    """The figure on dev that chose the weights of a run."""
    return float(next(value for key, value in figures.items() if key.startswith("dev_")))


def _take_over(folder: RunFolder, settings: FinetuneSettings, best: Path) -> None:
    """Copies a run's files, so that the folder can be used as any other."""
    for file in best.iterdir():
        if file.is_file() and file.name not in ("run.json", "results.json", ".lock"):
            shutil.copy2(file, folder.path / file.name)
    folder.write_run(RunFolder(best).read_run() | {"settings": settings.to_dict()})


def _summary(figures: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample) of every figure, and each seed's own."""
    runs = list(figures.values())
    summary: dict[str, Any] = {}
    for key, value in runs[0].items():
        if isinstance(value, float) and key not in _SPEED:
            values = [float(run[key]) for run in runs]
            summary |= {key: statistics.fmean(values), f"{key}_sd": statistics.stdev(values)}
        elif isinstance(value, (str, int)) and key not in _SPEED:
            summary[key] = value
    summary["seconds"] = sum(float(run["seconds"]) for run in runs)
    return summary | {"seeds": [{"seed": seed, **run} for seed, run in figures.items()]}
