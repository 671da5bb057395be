"""What comes before a fine-tuning's own labels: its text, another task's, a teacher's answers.

In: the settings, the data and the model that was chosen. Out: a model folder of each stage in the
run's folder, each begun from the one before; in a dry run, what each would take.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from minibert.adaptation import adapt, rehearse_adaptation
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.intermediate import (
    INTERMEDIATE,
    LeftOut,
    intermediate_settings,
    left_out_of,
    run_intermediate,
    supplement,
)
from minibert.recipes import FILLED
from minibert.run_folder import RunFolder
from minibert.runs import EarlierStage, RunResult, log_line
from minibert.self_training import (
    SELF_TRAINING,
    check_teacher,
    rehearse_self_training,
    self_train,
    unlabelled_texts,
)
from minibert.settings import FinetuneSettings
from minibert.starts import of_begun_run, with_recipe
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.splits import parts_of
from minibert.train import NonFiniteError


class FinetuneOnce(Protocol):
    """One fine-tuning with one seed; as `finetuning` has it, which imports this module."""

    def __call__(
        self, settings: FinetuneSettings, recipe: str, left_out: Collection[str] = ()
    ) -> RunResult: ...


def _settings_before(
    settings: FinetuneSettings, start: Path, run: Path, goes_on: bool
) -> tuple[FinetuneSettings, str]:
    """Those of the intermediate run, filled in, and the line about that."""
    if settings.adapt is not None:  # random weights have learnt by then
        settings = dataclasses.replace(settings, random_weights=False)
    wanted = intermediate_settings(settings, start, run, goes_on)
    return of_begun_run(wanted) or with_recipe(wanted)


def check_same_settings_before(run: Path, settings: FinetuneSettings, start: Path) -> None:
    """Compares how a run learnt what comes before its task with how it would learn that today.

    For runs of several that are told together: all are to be of one kind, and a newer version may
    have another recipe.

    Args:
        run: its folder. settings: of the task. start: the folder of the model.

    Raises:
        InputError: they differ.
    """
    between = RunFolder(run / INTERMEDIATE)
    if not settings.intermediate or not (between.path / "run.json").is_file():
        return
    wanted = _settings_before(settings, start, run, goes_on=False)[0].to_dict()
    then = between.read_run()["settings"]
    now = wanted | then | {name: wanted[name] for name in (*FILLED, "reinit_layers")}
    if differ := between.other_settings(now):
        raise InputError(
            f"--resume: {settings.intermediate}, learnt before {settings.task} in {run}: "
            f"{'; '.join(differ)}; --overwrite starts anew"
        )


@dataclasses.dataclass
class EarlierStages:
    """The stages of a run that come before its fine-tuning.

    task, source: of the run. folder: None in a dry run. begun: the run.json of a run whose
    fine-tuning has begun. stopped: that of one stopped before. seconds: what the stages have taken,
    which have minutes of their own.
    """

    task: Task[Any, Any]
    source: Source
    folder: RunFolder | None
    finetune_once: FinetuneOnce
    begun: dict[str, Any] | None
    stopped: dict[str, Any] | None
    seconds: float = 0.0

    def carry_out(
        self, splits: Splits[Any], start: Path, record: dict[str, Any]
    ) -> dict[str, EarlierStage]:
        """The models of the stages that are asked for, in their order, by their word in run.json.

        Where an input error ends one, what was in the run's folder comes back.

        Args:
            start: the folder of the chosen model.
            record: the run.json until fine-tuning begins; it has no budget.

        Raises:
            InputError: text, a task or a model that cannot be used, or that has changed.
            Interrupted: by a signal; `--resume` goes on.
            NonFiniteError: one diverged, which the run's folder notes.
        """
        settings, folder = self.task.settings, self.folder
        asked: dict[str, Callable[[Path], EarlierStage | None]] = {}
        if settings.adapt is not None:
            asked["adapted"] = functools.partial(self._adapt, splits)
        if settings.intermediate:
            left_out = left_out_of(self.task, self.source, splits)
            asked["intermediate"] = functools.partial(self._supplement, left_out)
        if settings.texts_to_answer:
            self.task.check_self_training()  # also of what has been learnt of the data
            check_teacher(settings, folder.path if folder and self._goes_on else None)
            texts, said = unlabelled_texts(self.task, splits, self.source)
            labels = len(parts_of(self.task, splits, settings.dev_fraction, settings.limit).train)
            times = f"{len(texts) / labels:.1f} times as many as the labels"  # and as long, at most
            log_line("self-training", f"{said}; {times}")
            asked["self_training"] = functools.partial(
                self._self_train, splits, texts, BertConfig.from_pretrained(start)
            )
        if folder is None:  # each from the chosen model, since none is trained
            for name, rehearse in asked.items():
                log_line("dry run", f"of what comes before {self.task.name}: {name}")
                self._timed(rehearse, start)
            if asked:
                log_line("dry run", f"of {self.task.name} itself")
            return {}
        if not asked or self.begun is not None:
            return self._all(asked, start)
        goes_on = self.stopped is not None
        with folder.replacing(
            *([] if goes_on else [INTERMEDIATE, *SELF_TRAINING]), goes_on=goes_on
        ):
            folder.write_run(record)
            return self._all(asked, start)

    def _all(
        self, asked: dict[str, Callable[[Path], EarlierStage | None]], start: Path
    ) -> dict[str, EarlierStage]:
        """One stage after the other, each from the one before."""
        found: dict[str, EarlierStage] = {}
        for name, carry_out_stage in asked.items():
            last = next(reversed(found.values())).folder if found else start
            try:
                stage = self._timed(carry_out_stage, last)
            except NonFiniteError as error:
                assert self.folder is not None
                self.folder.note_divergence(str(error))
                raise
            assert stage is not None
            found[name] = stage
            if self.begun is not None and self.begun["resolved"].get(name) != stage.weights:
                raise InputError(
                    f"--resume: the weights in {stage.folder} have changed; --overwrite starts anew"
                )
        return found

    def _timed(
        self, stage: Callable[[Path], EarlierStage | None], start: Path
    ) -> EarlierStage | None:
        before = time.perf_counter()
        found = stage(start)
        self.seconds += time.perf_counter() - before
        return found

    def _adapt(self, splits: Splits[Any], start: Path) -> EarlierStage | None:
        """The model with the task's text learnt; None in a dry run, which tells what that takes."""
        if self.folder is None:
            rehearse_adaptation(self.task, splits, self.source, start)
            return None
        return adapt(self.task, splits, self.source, start, self.folder.path)

    def _supplement(self, left_out: LeftOut, start: Path) -> EarlierStage | None:
        """The model with another task's labels learnt, without the texts of this one; as above."""
        settings = self.task.settings
        run = self.folder.path if self.folder else Path()
        wanted, recipe = _settings_before(settings, start, run, self._goes_on)
        if isinstance(settings.micro_batch_size, int):  # what fits, in steps of another size
            sizes = range(1, settings.micro_batch_size + 1)
            micro = max(size for size in sizes if wanted.batch_size % size == 0)
            wanted = dataclasses.replace(wanted, micro_batch_size=micro)
        run_one = functools.partial(self.finetune_once, recipe=recipe, left_out=left_out.texts)
        if self.folder is None:
            run_intermediate(wanted, run_one)
            return None
        stage = supplement(wanted, run_one)
        return dataclasses.replace(stage, notes=stage.notes | {"left_out": left_out.examples})

    def _self_train(
        self, splits: Splits[Any], texts: list[str], chosen: BertConfig, start: Path
    ) -> EarlierStage | None:
        """The model with the teacher's answers to texts learnt; as above."""
        if self.folder is None:
            rehearse_self_training(self.task, texts)
            return None
        run, run_one = self.folder.path, functools.partial(self.finetune_once, recipe="")
        return self_train(self.task, splits, texts, start, chosen, run, run_one, self._goes_on)

    @property
    def _goes_on(self) -> bool:
        return self.begun is not None or self.stopped is not None
