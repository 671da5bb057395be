"""Many fine-tunings one after the other: finished ones are kept, changed ones are not overlooked.

In: named jobs, each an ordinary run with a folder of its own. Out: those folders, and the figures
of each as soon as they are there. Stopped at any place, the same command goes on from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.errors import InputError, Interrupted
from minibert.finetuning import finetune
from minibert.machine import launched
from minibert.progress import clock
from minibert.run_folder import RunFolder
from minibert.runs import log_line
from minibert.settings import FinetuneSettings


class Job(NamedTuple):
    """One fine-tuning.

    name: for people. kind: jobs of one kind take about as long. settings: whole, with its output.
    data: the fingerprint of its data. start: the digest of the weights that it starts from.
    """

    name: str
    kind: str
    settings: FinetuneSettings
    data: str
    start: str


# What becomes of finished jobs' figures; of one carried out whole by this call they hold
# wall_seconds, from its start to its end.
Taken = Callable[[Sequence[tuple[Job, dict[str, Any]]]], object]


def check_alone() -> None:
    """Refuses several processes, before anything is made.

    Raises:
        InputError: there are several.
    """
    if launched().size > 1:
        raise InputError("this runs one fine-tuning after the other in one process; no torchrun")


def carry_out_all(jobs: Sequence[Job], overwrite: bool, taken: Taken) -> None:
    """Carries out what is not finished, in the order given.

    `taken` is called once with all jobs that were finished before, be they none, so that a table
    has them before the first run; then with each as it ends. A finished run keeps its weights and
    loses its checkpoints, which are three times as large.

    Args:
        overwrite: do those anew that were begun with other settings, data or weights.

    Raises:
        InputError: such a job without `overwrite`, before anything is run or taken.
        Interrupted: by a signal; the same call goes on.
    """
    changed = changed_jobs(jobs, overwrite)
    finished = {
        job.name: figures
        for job in jobs
        if job.name not in changed and (figures := _results(job)) is not None
    }
    if finished:
        log_line("finished", f"{len(finished)} of {len(jobs)} runs are there")
    known: dict[str, list[float]] = {}
    for job in jobs:
        if job.name in finished:
            known.setdefault(job.kind, []).append(float(finished[job.name]["seconds"]))
    taken([(job, finished[job.name]) for job in jobs if job.name in finished])
    waiting = [job for job in jobs if job.name not in finished]
    for number, job in enumerate(jobs, 1):
        if job.name in finished:
            continue
        left = seconds_left([j.kind for j in waiting], known)
        tail = "" if left is None else f"; about {clock(left)} left for all"
        log_line("run", f"{number} of {len(jobs)}: {job.name}{tail}")
        is_begun = (Path(job.settings.output) / "run.json").is_file()
        started = time.monotonic()
        figures = _carry_out(job, job.name in changed)
        seconds = time.monotonic() - started
        known.setdefault(job.kind, []).append(seconds)
        waiting.remove(job)
        # Of a run that went on from an earlier command nobody knows it.
        wall = {} if is_begun and job.name not in changed else {"wall_seconds": seconds}
        taken([(job, figures | wall)])


def changed_jobs(jobs: Sequence[Job], overwrite: bool) -> set[str]:
    """The names of the jobs whose folders hold runs of other settings, data or weights.

    Raises:
        InputError: there is one, and it may not be overwritten.
    """
    changed = {job.name: found for job in jobs if (found := change(job))}
    if changed and not overwrite:
        name, found = next(iter(changed.items()))
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise InputError(
            f"{name}{more} was run otherwise: {found}; --overwrite does those anew, or choose "
            f"another --output"
        )
    return set(changed)


def seconds_left(kinds: Sequence[str], known: dict[str, list[float]]) -> float | None:
    """How long jobs of these kinds will take, None where nothing is known of any.

    A kind without a time is taken to be like the mean of the others.
    """
    if not known:
        return None
    means = {kind: statistics.fmean(times) for kind, times in known.items()}
    other = statistics.fmean(means.values())
    return sum(means.get(kind, other) for kind in kinds)


def change(job: Job) -> str:
    """What differs between a job and the run in its folder; empty where none does, or no run."""
    path = Path(job.settings.output)
    if not (path / "run.json").is_file():
        return ""
    folder = RunFolder(path)
    try:
        folder.check_same_settings("finetune", job.settings.to_dict())
        folder.check_same_data(job.data)
    except InputError as error:
        return str(error).removeprefix("--resume: ").removesuffix("; --overwrite starts anew")
    before = folder.read_run()["resolved"].get("start_weights")
    if before not in (None, job.start):  # None: of a run that was killed as it began
        return f"the weights in {job.settings.model} have changed"
    return ""


def _results(job: Job) -> dict[str, Any] | None:
    return RunFolder(job.settings.output).results


def _carry_out(job: Job, anew: bool) -> dict[str, Any]:
    begun = (Path(job.settings.output) / "run.json").is_file()
    resume = "auto" if begun and not anew else "no"
    settings = dataclasses.replace(job.settings, resume=resume, overwrite=anew)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the result of many runs is their table
            figures = finetune(settings).figures
    except Interrupted as stop:
        text = str(stop).replace("--resume goes on", "the same command goes on")
        raise Interrupted(text, stop.status) from None
    shutil.rmtree(Path(settings.output) / "checkpoints", ignore_errors=True)
    return figures


def claimed(output: str, record: str) -> RunFolder:
    """A folder for many runs, to be entered so that no second command writes to it meanwhile.

    Args:
        record: the file that tells such a folder.

    Raises:
        InputError: the folder holds other files.
    """
    path = Path(output)
    if path.is_dir() and not (path / record).is_file():
        others = [p.name for p in path.iterdir() if p.name != ".lock" and p.suffix != ".tmp"]
        if others:
            raise InputError(
                f"--output {path} holds files, but no {record}; choose another --output"
            )
    return RunFolder(path)
