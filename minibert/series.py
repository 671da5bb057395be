"""Many fine-tunings: finished ones are kept, changed ones are not overlooked.

In: named jobs, each an ordinary run with a folder of its own. Out: those folders, and the figures
of each as soon as they are there. They run one after the other in this process, or several at a
time, each in a process of its own. Stopped at any place, the same command goes on from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import shutil
import signal
import site
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.earlier_stages import check_same_settings_before
from minibert.errors import InputError, Interrupted
from minibert.files import write_json
from minibert.finetuning import finetune
from minibert.intermediate import INTERMEDIATE, check_same_before, learn_alike, lend
from minibert.machine import launched, num_cores, threads_were_asked_for
from minibert.progress import clock
from minibert.run_folder import RunFolder
from minibert.runs import learning_seconds, log_line
from minibert.settings import FinetuneSettings
from minibert.starts import start_folder
from minibert.train import NonFiniteError


class Job(NamedTuple):
    """One fine-tuning.

    name: for people. kind: jobs of one kind take about as long. settings: whole, with its output.
    data: the fingerprint of its data. start: the digest of the weights that it starts from. before:
    the fingerprint of what is learnt before its task, empty where nothing is.
    """

    name: str
    kind: str
    settings: FinetuneSettings
    data: str
    start: str
    before: str = ""

    @property
    def told_with(self) -> tuple[str, bool]:
        """What its figures stand beside in a table: those of a task, from one kind of weights."""
        return self.settings.task, self.settings.random_weights

    @property
    def has_begun_before(self) -> bool:
        """Whether it has begun what is learnt before its task."""
        return (Path(self.settings.output) / INTERMEDIATE / "run.json").is_file()


# What becomes of finished jobs' figures; of one carried out whole by this call they hold
# wall_seconds, from its start to its end, and of one that ended without a result `diverged` alone.
Taken = Callable[[Sequence[tuple[Job, dict[str, Any]]]], object]
# Figures of jobs as they end, with the seconds from start to end of those carried out whole.
Ends = Generator[tuple[Job, dict[str, Any], float | None]]
_POLL_SECONDS = 0.1
# A command that stops, with its state saved, where the one that started it is gone. It is run
# without the working directory among the places of modules: a user's queue.py is none.
_CHILD = (
    "import sys; from minibert.workers import stop_with_parent; stop_with_parent(); "
    "from minibert.cli import main; sys.exit(main(sys.argv[1:]))"
)


def check_alone() -> None:
    """Refuses several processes, before anything is made.

    Raises:
        InputError: there are several.
    """
    if launched().size > 1:
        raise InputError("this runs one fine-tuning after the other in one process; no torchrun")


def carry_out_all(jobs: Sequence[Job], overwrite: bool, taken: Taken, at_once: int = 1) -> None:
    """Carries out what is not finished, in the order given.

    `taken` is called once with all jobs that were finished before, be they none, so that a table
    has them before the first run; then with each as it ends. A finished run keeps its weights and
    loses its checkpoints, which are three times as large. A run whose loss was no number would come
    there again, so it counts as ended, too.

    Args:
        overwrite: do those anew that were begun with other settings, data or weights.
        at_once: above 1, so many run side by side, each in a process with its share of the cores
            (or the threads that OMP_NUM_THREADS names); what it says goes into OUTPUT.log.

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
            _drop_checkpoints(job)  # of a run that outlived the command that began it
            if "seconds" in finished[job.name]:
                known.setdefault(job.kind, []).append(learning_seconds(finished[job.name]))
    taken([(job, finished[job.name]) for job in jobs if job.name in finished])
    waiting = [job for job in jobs if job.name not in finished]
    numbers = {job.name: number for number, job in enumerate(jobs, 1)}

    def begin(job: Job) -> None:
        left = seconds_left([j.kind for j in waiting], known)
        tail = "" if left is None else f"; about {clock(left / at_once)} left for all"
        log = f"; log {job.settings.output}.log" if at_once > 1 else ""
        log_line("run", f"{numbers[job.name]} of {len(jobs)}: {job.name}{log}{tail}")
        _borrow(job, [other for other in jobs if other.name not in changed])

    carried = _in_turn if at_once == 1 else functools.partial(_side_by_side, at_once)
    with contextlib.closing(carried(tuple(waiting), changed, begin)) as ends:
        for job, figures, seconds in ends:
            waiting.remove(job)
            if "diverged" in figures:
                log_line("diverged", f"{job.name}: {figures['diverged']}")
            else:
                known.setdefault(job.kind, []).append(seconds or learning_seconds(figures))
                figures |= {"wall_seconds": seconds} if seconds else {}
            taken([(job, figures)])


def changed_jobs(jobs: Sequence[Job], overwrite: bool) -> set[str]:
    """The names of the jobs whose folders hold runs of other settings, data or weights.

    Raises:
        InputError: there is one, and it may not be overwritten.
    """
    waiting = {job.told_with for job in jobs if not job.has_begun_before}
    changed = {job.name: found for job in jobs if (found := change(job, job.told_with in waiting))}
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


def change(job: Job, is_beside_new: bool = True) -> str:
    """What differs between a job and the run in its folder; empty where none does, or no run.

    Args:
        is_beside_new: whether another that is told with it has its earlier task still to learn, as
            today's recipe has it; if not, it does not matter what that recipe is.
    """
    path = Path(job.settings.output)
    if not (path / "run.json").is_file():
        return ""
    folder = RunFolder(path)
    try:
        folder.check_same_settings("finetune", job.settings.to_dict())
        folder.check_same_data(job.data, job.settings.to_dict())
        check_same_before(path, job.before)
        if job.settings.intermediate and is_beside_new:
            check_same_settings_before(path, job.settings, start_folder(job.settings))
    except InputError as error:
        return str(error).removeprefix("--resume: ").removesuffix("; --overwrite starts anew")
    before = folder.read_run()["resolved"].get("start_weights")
    if before not in (None, job.start):  # None: of a run that was killed as it began
        return f"the weights in {job.settings.model} have changed"
    return ""


def _results(job: Job) -> dict[str, Any] | None:
    """The figures of a run that has ended, or that it diverged."""
    folder = RunFolder(job.settings.output)
    return folder.results or ({"diverged": folder.diverged} if folder.diverged else None)


def _borrow(job: Job, others: Sequence[Job]) -> None:
    """Gives a job that has not begun what another has learnt before its task, if it is the same."""
    run = Path(job.settings.output)
    if not job.before or run.exists():
        return
    for other in others:
        lender = Path(other.settings.output)
        is_alike = (other.data, other.start, other.before) == (job.data, job.start, job.before)
        has_learnt = (lender / INTERMEDIATE / "results.json").is_file()
        if is_alike and has_learnt and learn_alike(other.settings, job.settings):
            lend(lender, run, job.settings)
            return


def _ready(job: Job, anew: bool) -> tuple[FinetuneSettings, bool]:
    """The settings to run a job with, and whether it goes on from an earlier command."""
    begun = (Path(job.settings.output) / "run.json").is_file()
    resume = "auto" if begun and not anew else "no"
    return dataclasses.replace(job.settings, resume=resume, overwrite=anew), resume == "auto"


def _end(job: Job, started: float, goes_on: bool) -> tuple[Job, dict[str, Any], float | None]:
    figures = _results(job)
    assert figures is not None
    _drop_checkpoints(job)
    # Of a run that went on from an earlier command nobody knows the time.
    return job, figures, None if goes_on else time.monotonic() - started


def _drop_checkpoints(job: Job) -> None:
    output = Path(job.settings.output)
    for run in (output, output / INTERMEDIATE):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def _in_turn(jobs: Sequence[Job], changed: set[str], begin: Callable[[Job], None]) -> Ends:
    """One after the other, in this process."""
    for job in jobs:
        begin(job)
        started = time.monotonic()
        settings, goes_on = _ready(job, job.name in changed)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the result of many runs is their table
                finetune(settings)
        except Interrupted as stop:
            text = str(stop).replace("--resume goes on", "the same command goes on")
            raise Interrupted(text, stop.status) from None
        except NonFiniteError:
            pass  # its folder tells
        gc.collect()  # a loop and its evaluation hold each other
        yield _end(job, started, goes_on)


class _Process(NamedTuple):
    """A job in a process of its own; its log had `log_start` bytes before."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float
    goes_on: bool


def _side_by_side(
    at_once: int, jobs: Sequence[Job], changed: set[str], begin: Callable[[Job], None]
) -> Ends:
    """Several at a time; where one fails or a signal comes, the others save their states first."""
    waiting, running = list(jobs), list[_Process]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    begin(waiting[0])
                    running.append(_started(waiting[0], changed, Path(folder), at_once))
                    waiting.pop(0)
                one = next((r for r in running if r.process.poll() is not None), None)
                if one is None:
                    time.sleep(_POLL_SECONDS)
                    continue
                running.remove(one)
                _check_ended(one)
                yield _end(one.job, one.started, one.goes_on)
        finally:
            for one in running:
                one.process.terminate()
            if running:
                log_line("stopping", f"{len(running)} runs save their states")
            for one in running:
                one.process.wait()


def _started(job: Job, changed: set[str], folder: Path, at_once: int) -> _Process:
    settings, goes_on = _ready(job, job.name in changed)
    log = Path(f"{settings.output}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    config = folder / f"{log.stem}-{time.monotonic_ns()}.json"
    write_json(config, dataclasses.replace(settings, debug=False).to_dict())
    command = [sys.executable, "-P", "-c", _CHILD, "finetune", "--config", str(config)]
    command += ["--debug"] if settings.debug else []
    environment = dict(os.environ)
    place = str(Path(__file__).parent.parent)
    if place not in (*site.getsitepackages(), site.getusersitepackages()):
        # Where the package is not installed, the other process has to find it, too.
        paths = [place, os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if not threads_were_asked_for():
        environment["OMP_NUM_THREADS"] = str(max(1, num_cores() // at_once))
    with log.open("ab") as file:
        size = file.tell()
        # Of a session of its own: Ctrl-C reaches this process, which then asks the run to stop.
        process = subprocess.Popen(
            [*command, "--task", settings.task],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return _Process(job, process, log, size, time.monotonic(), goes_on)


def _check_ended(one: _Process) -> None:
    """Passes on what ended a process, by its status and the last line of its log."""
    status = one.process.returncode
    if status == 0:
        return
    if status < 0:  # it had no last words
        said = f"killed by {signal.Signals(-status).name}"
        if -status == signal.SIGKILL:
            said += ", as the system does where memory runs out; fewer --jobs need less"
    else:
        text = one.log.read_bytes()[one.log_start :].decode(errors="replace")
        lines = text.strip().splitlines()
        said = lines[-1].removeprefix("minibert: ") if lines else f"status {status}"
        # Of a run that is done anew the folder may still tell how the one before ended.
        why = " ".join(RunFolder(one.job.settings.output).diverged.split())
        if status == 1 and why and why in text:
            return
    text = f"{one.job.name}: {said} (its log is {one.log})"
    text = text.replace("--resume goes on", "the same command goes on")
    if status > 128:
        raise Interrupted(text, status)
    raise InputError(text) if status == 2 else RuntimeError(text)


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
