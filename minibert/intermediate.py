"""Between the stages: the labels of another task, before those of the task itself.

Supplementary training on intermediate labelled data (Phang et al. 2018, "Sentence Encoders on
STILTs"): a task with few labels starts from a model that has learnt a related one. In: the model
to start from. Out: `intermediate/` in the run's folder, an ordinary fine-tuning run, from whose
encoder the fine-tuning starts, and from its head where the classes have the same names.

An example of the other task that has a text of the task's dev or test is left out, since its label
may tell theirs: of the 5,749 training pairs of STS-B 575 have a text of MRPC's dev or test.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minibert.adaptation import scored_texts
from minibert.errors import InputError, did_you_mean
from minibert.machine import launched
from minibert.run_folder import RunFolder
from minibert.runs import EarlierStage, RunResult, dev_figure, log_line, weights_digest
from minibert.settings import NO_TASK, NO_TEXTS, FinetuneSettings
from minibert.tasks import TASKS, find_task
from minibert.tasks.base import Source, Splits, Task, find_set
from minibert.tasks.splits import parts_of, without_texts
from minibert.train import NonFiniteError

INTERMEDIATE = "intermediate"  # its folder in that of the run
# Set for fine-tuning, and the same for what comes before it; a recipe has the rest.
_SHARED = (
    *("random_weights", "seed", "device", "precision", "compile", "deterministic"),
    *("log_every", "save_every", "cache_dir", "dry_run", "reinit_layers"),
)


def check_intermediate(settings: FinetuneSettings) -> None:
    """Looks at what is to be learnt before, and that its data is there, before anything is made.

    Raises:
        InputError: an unknown task, one that writes texts, no data, or several processes.
    """
    name = settings.intermediate
    if not name:
        if settings.intermediate_data:
            raise InputError("--intermediate-data goes with --intermediate-task")
        return
    if name not in TASKS:
        raise InputError(f"--intermediate-task {name!r} is unknown{did_you_mean(name, TASKS)}")
    if launched().size > 1:
        raise InputError(
            "--intermediate-task runs in one process; leave torchrun out, or --intermediate-task "
            "none does without"
        )
    if find_task(name).is_open_ended:
        raise InputError(f"--intermediate-task {name} writes texts; name one that reads them")
    try:
        found = _task(settings).find_data()
    except InputError as error:
        why = re.sub(r"--data\b", "--intermediate-data", str(error))
        raise InputError(f"--intermediate-task {name}: {why}") from None
    by_itself = found.is_sample and not settings.intermediate_data
    if by_itself and not find_task(settings.task)(settings).find_data().is_sample:
        raise InputError(f"--intermediate-task {name}: {_no_data(name)}")


def lack(settings: FinetuneSettings) -> str:
    """Why the intermediate task of a recipe is to be left out here, or an empty text."""
    name = settings.intermediate
    assert name is not None
    if launched().size > 1:
        return "it runs in one process"
    if not settings.intermediate_data and _task(settings).find_data().is_sample:
        return _no_data(name)
    return ""


def _no_data(name: str) -> str:
    return f"no data; `minibert download {name}` fetches it, --intermediate-data names it"


class LeftOut(NamedTuple):
    """What may not be learnt before a task, the folded texts of its dev and test, and what may.

    examples: so many of the intermediate task have such a text. data: the fingerprint of the
    others, as the run.json of the intermediate run has it.
    """

    texts: set[str]
    examples: int
    data: str


def left_out_of(task: Task[Any, Any], source: Source, splits: Splits[Any]) -> LeftOut:
    """Reads the intermediate task's data.

    Args:
        source, splits: of the task itself.

    Raises:
        InputError: the intermediate task's data cannot be used, or nothing is left of it.
    """
    _, held = scored_texts(task, source, splits)
    if not held:
        raise InputError(
            f"--intermediate-task: {task.name} does not say what its texts are, so that none of "
            f"them could be left out"
        )
    first = _task(task.settings)
    try:
        whole = dataclasses.replace(first.read(first.find_data()), test=None)
        kept = without_texts(first, whole, held)
        parts_of(first, kept, first.settings.dev_fraction, None)
    except InputError as error:
        told, named = re.subn(r" \(--[a-z-]+-column\)", "", str(error))  # flags of the task itself
        called = "; these columns need their default names" if named else ""
        raise InputError(f"--intermediate-task {first.name}: {told}{called}") from None
    return LeftOut(held, _count(whole) - _count(kept), kept.fingerprint)


def data_before(settings: FinetuneSettings, source: Source) -> str:
    """The fingerprint of what is learnt before a task, empty where nothing is.

    Args:
        source: of the task itself.

    Raises:
        InputError: as `left_out_of`.
    """
    if not settings.intermediate:
        return ""
    task = find_task(settings.task)(settings)
    return left_out_of(task, source, task.read(source)).data


def learn_alike(one: FinetuneSettings, other: FinetuneSettings) -> bool:
    """Whether two fine-tunings on the same data learn the same before it, from the same model."""
    names = (*_SHARED, "intermediate_task", "intermediate_data", "micro_batch_size", "max_minutes")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def lend(lender: Path, run: Path, settings: FinetuneSettings) -> None:
    """Makes a run that was stopped after the task before it, which is another's.

    When it goes on, it compares that task's settings, data and start with its own.

    Args:
        lender: the folder of the other run. run: that of the new one, which is not there yet.
        settings: of the new one.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    made = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)  # of a lending that was killed
    hidden = shutil.ignore_patterns("checkpoints", ".*")
    shutil.copytree(lender / INTERMEDIATE, made / INTERMEDIATE, ignore=hidden)
    record = RunFolder(lender).read_run()
    start = {name: record["resolved"][name] for name in ("start", "start_weights")}
    RunFolder(made).write_run(record | {"settings": settings.to_dict(), "resolved": start})
    made.rename(run)


def check_same_before(run: Path, data: str) -> None:
    """Compares what a run learnt before its task with what there is now.

    Args:
        run: its folder. data: as `data_before` has it.

    Raises:
        InputError: they differ.
    """
    between = RunFolder(run / INTERMEDIATE)
    if not data or not (between.path / "run.json").is_file():  # not yet begun
        return
    between.check_same_data(data, what="of --intermediate-task ")


def _count(splits: Splits[Any]) -> int:
    return len(splits.train) + len(splits.dev or ())


def intermediate_settings(
    settings: FinetuneSettings, start: Path, run: Path, goes_on: bool
) -> FinetuneSettings:
    """The settings of the run that comes before.

    Args:
        start: the model folder. run: the folder of the fine-tuning. goes_on: it was stopped after
            it had begun; else what is there is of another run.
    """
    left = settings.unadapted_minutes
    return dataclasses.replace(
        _task_settings(settings),
        **{name: getattr(settings, name) for name in _SHARED},
        model=str(start),
        max_minutes=left and left - (settings.tuning_minutes or 0),
        dev_only=True,
        output=str(run / INTERMEDIATE),
        micro_batch_size="auto"
        if settings.micro_batch_size == "auto"
        else None,  # else by a recipe
        resume="auto" if goes_on else "no",
        overwrite=not goes_on,
    )


def supplement(
    settings: FinetuneSettings, run_one: Callable[[FinetuneSettings], RunResult]
) -> EarlierStage:
    """Learns the intermediate task; what is there is gone on with, or left as it is.

    Args:
        settings: of its run, whole.
        run_one: carries out one run.

    Raises:
        InputError: data or a model that cannot be used, or another than what is there began with.
        Interrupted: by a signal; `--resume` goes on.
        NonFiniteError: it diverged; the message names the task.
    """
    assert settings.output is not None
    check_same_start(settings)
    log_line(INTERMEDIATE, f"{settings.task} first, in {settings.output}")
    figures = run_intermediate(settings, run_one)
    name, value = dev_figure(figures)
    kept = ("num_train", "best_step", "steps", "seconds", f"dev_{name}")
    notes = {"task": settings.task, "dataset": figures["dataset"], "seed": settings.seed}
    notes |= {"random_weights": settings.random_weights, **{key: figures[key] for key in kept}}
    log_line(INTERMEDIATE, f"{settings.task} is learnt (dev {name} {value:.4f}); the task follows")
    folder = Path(settings.output)
    return EarlierStage(folder, weights_digest(folder), notes)


def run_intermediate(
    settings: FinetuneSettings, run_one: Callable[[FinetuneSettings], RunResult]
) -> dict[str, Any]:
    """The figures of its run, none of a dry one; arguments as in `supplement`, errors name it."""
    return run_before(f"--intermediate-task {settings.task}", settings, run_one)


def check_same_start(settings: FinetuneSettings) -> None:
    """Compares the model that a run before the task goes on from with the one it began with.

    Raises:
        InputError: it is another.
    """
    assert settings.output is not None and settings.model is not None
    run, digest = RunFolder(settings.output), weights_digest(Path(settings.model))
    if settings.resume != "no" and (run.path / "run.json").is_file():
        began = run.read_run()["resolved"].get("start_weights", digest)
        if began != digest:
            raise InputError(
                f"--resume: the weights in {settings.model} have changed; --overwrite starts anew"
            )
        run.respell(model=settings.model)  # which is in the run's folder where it adapted


def run_before(
    why: str, settings: FinetuneSettings, run_one: Callable[[FinetuneSettings], RunResult]
) -> dict[str, Any]:
    """The figures of a run that comes before the task; its model is let go of.

    Args:
        why: the flag that asks for it, which errors name.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # results are those of the task
            figures = run_one(settings).figures
    except InputError as error:
        raise InputError(f"{why}: {error}") from None
    except NonFiniteError as error:
        raise NonFiniteError(f"{why}: {error}") from None
    gc.collect()  # its model is held by what it took part in
    return figures


def _task(settings: FinetuneSettings) -> Task[Any, Any]:
    own = _task_settings(settings)
    return find_task(own.task)(own)


def _task_settings(settings: FinetuneSettings) -> FinetuneSettings:
    """The task and its data: where it is named, else beside --data, else where it always is.

    The bundled sample lies beside what is put into the folder of a checkout, and does not count.
    """
    assert settings.intermediate is not None
    own = FinetuneSettings(
        task=settings.intermediate, intermediate_task=NO_TASK, self_training=[NO_TEXTS]
    )
    data = settings.intermediate_data
    if data is None and settings.data is not None:
        first = find_task(own.task)(own)
        named, real = Path(os.path.abspath(settings.data)), Path(settings.data).resolve()
        # Of a linked set beside the link, else beside what it leads to.
        found = (find_set(place.parent, own.task, first.places) for place in (named, real))
        beside = next((place for place in found if place and not first.is_sample(place)), None)
        data = str(beside) if beside else None
    return dataclasses.replace(own, data=data)
