"""Stage two: a pretrained model folder + labelled data -> an evaluated model folder.

What is particular to a task stands in its family's file of `minibert.tasks`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from minibert.adaptation import adapt, check_same_text, check_text, made_before_training
from minibert.adversarial import FastGradient
from minibert.compiling import compile_if_it_pays
from minibert.config import BertConfig
from minibert.earlier_stages import EarlierStages, check_same_settings_before
from minibert.errors import InputError, MissingExtraError, did_you_mean
from minibert.fields import flag
from minibert.files import write_json, write_jsonl, write_text
from minibert.fitting import Trial, micro_batch_size
from minibert.flops import flops_through_frozen
from minibert.intermediate import (
    INTERMEDIATE,
    check_intermediate,
    check_same_before,
    data_before,
)
from minibert.machine import launched
from minibert.model import init_weights
from minibert.optim import Budget, build_optimizer
from minibert.progress import counted
from minibert.repeats import repeat
from minibert.run_folder import RunFolder
from minibert.runs import (
    REHEARSED_BATCHES,
    EarlierStage,
    RunResult,
    Scoring,
    as_begun_from,
    begun_run,
    carry_out,
    check_not_read,
    check_not_start,
    check_vocabulary,
    closing_table,
    finished_run,
    log_line,
    loop_settings,
    model_config,
    placed,
    run_record,
    save_model,
    scoring_seconds,
    start_or_replay_runtime,
    trained_positions,
    training_seconds,
    utilisation,
    weights_digest,
    wrapped,
)
from minibert.runtime import torch_as_before
from minibert.self_training import (
    SELF_TRAINING,
    check_same_texts,
    check_self_training,
    check_teacher,
    unlabelled_texts,
)
from minibert.settings import MOST_EPOCHS, FinetuneSettings
from minibert.starts import choose_model, of_begun_run, with_recipe
from minibert.tasks import find_task
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.batches import Feature, TaskData, flat, infer
from minibert.tasks.splits import Parts, parts_of, without_texts
from minibert.tokenizer import WordPiece
from minibert.train import ONE_PASS, Loop, LoopSettings, NonFiniteError, StepData
from minibert.world import World, join_world

# Of data and how it is parted what a simple method reaches, for runs that share both.
Baselines = dict[tuple[Any, ...], dict[str, float]]
_MUCH_UNKNOWN = 0.05  # share of unknown pieces in train that is worth a line


_Encoded = list[list[Feature]]


def _encoded(task: Task[Any, Any], parts: Parts) -> tuple[_Encoded, _Encoded]:
    """The features of dev and of test, by example.

    Raises:
        InputError: some cannot be scored.
    """
    return task.encode(parts.dev), task.encode(parts.test)


def _build_model(
    settings: FinetuneSettings,
    task: Task[Any, Any],
    folder: Path,
    config: BertConfig,
    random_weights: bool,
) -> nn.Module:
    """The task's head on the chosen backbone.

    Args:
        folder: of the weights. config: of the model that all began with.

    Raises:
        InputError: the sequence length is beyond the model's positions, or the folder is damaged.
    """
    config = model_config(settings, config)
    torch.manual_seed(settings.seed)
    model = task.build(folder, dataclasses.replace(config, **task.config_fields()), random_weights)
    if not random_weights:
        log_line("weights", str(getattr(model, "load_report", "")))
    if settings.reinit_layers:
        redraw_top(model, settings.reinit_layers)
        log_line("redrawn", f"the top {settings.reinit_layers} layer(s) and the pooler")
    if settings.freeze_layers is not None:
        freeze_lowest(model, settings.freeze_layers)
        log_line("frozen", f"the embeddings and the lowest {settings.freeze_layers} layer(s)")
    return model


def redraw_top(model: Any, count: int) -> None:
    """Draws the pooler and the top layers anew, keeping what lies below.

    What the top of a pretrained encoder has learnt serves the pretraining task, and a fresh top is
    learnt sooner (Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning", section 5).
    """
    layers = model.bert.layers
    for part in (*layers[len(layers) - count :], model.bert.final_norm, model.bert.pooler):
        init_weights(part, model.config)


def freeze_lowest(model: Any, count: int) -> None:
    """Keeps the embeddings and the lowest layers as they are in training."""
    layers = model.bert.layers
    top = [model.bert.final_norm] if count == len(layers) else []  # which is nothing in plain BERT
    for frozen in (model.bert.embeddings, *layers[:count], *top):
        frozen.requires_grad_(False)


@torch_as_before()
def finetune(settings: FinetuneSettings | None = None, **values: Any) -> RunResult:
    """Fine-tunes a model on a task, chooses the best epoch on dev, scores test once.

    Args:
        settings: or its fields by name, as in `finetune(task="imdb")`.

    Returns:
        The folder, the figures of results.json, and the model in eval mode.

    Raises:
        InputError: settings, model or data that cannot be used.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    if not isinstance(settings, FinetuneSettings | None):
        raise InputError(f"finetune was given {settings!r:.60}; name it, as in task='imdb'")
    if settings is not None and values:
        raise InputError(
            f"finetune takes settings or their fields by name, not both; got {', '.join(values)} "
            f"beside settings"
        )
    settings = settings or FinetuneSettings.from_dict(values, "finetune")
    if settings.adapt is not None and launched().size > 1:
        raise InputError(
            "--adapt runs in one process; adapt with `minibert pretrain --model … --recipe "
            "continued --nsp none` under torchrun, then fine-tune --model of that"
        )
    settings, recipe = of_begun_run(settings) or with_recipe(settings)
    check_intermediate(settings)
    check_self_training(settings)
    check_text(find_task(settings.task)(settings))
    if settings.dry_run:
        settings = _of_one_seed(settings)
    if settings.seeds > 1:
        # Before a folder is made: either may fail. The first line of a run says what data it is.
        log_line("data", find_task(settings.task)(settings).find_data().said)
        run_one = functools.partial(_finetune_once, recipe=recipe, baselines={})
        return repeat(settings, run_one, choose_model, _BeforeSeeds(settings))
    return _finetune_once(settings, recipe)


def _of_one_seed(settings: FinetuneSettings) -> FinetuneSettings:
    """Of several seeds the first, for a dry run; that there are others is printed."""
    count = settings.seeds
    if count == 1:
        return settings
    once = " but the adaptation, which all start from" if settings.adapt is not None else ""
    log_line("dry run", f"of one of {count} seeds; all take {count} times as much{once}")
    minutes = settings.adapting_minutes
    if settings.unadapted_minutes:
        settings = dataclasses.replace(
            settings,
            max_minutes=(minutes or 0) + settings.unadapted_minutes / count,
            adapt_minutes=minutes,
        )
    return dataclasses.replace(settings, seeds=1)


class _BeforeSeeds:
    """What comes once, before the runs of several seeds; what cannot be used is refused here."""

    def __init__(self, settings: FinetuneSettings) -> None:
        self.task = find_task(settings.task)(settings)
        self.source = self.task.find_data()
        self.splits = read_splits(self.task, self.source)
        self.fingerprint = self.splits.fingerprint

    def check(self, start: Path) -> None:
        """Looks at the data with the model that all seeds start from."""
        settings = self.task.settings
        parts = parts_of(self.task, self.splits, settings.dev_fraction, settings.limit)
        learn(self.task, parts.train, start)
        if settings.adapt and not self.task.is_open_ended:  # else each run does, before it trains
            _encoded(self.task, parts)
        if settings.texts_to_answer:
            self.task.check_self_training()
            check_teacher(settings, None)
            unlabelled_texts(self.task, self.splits, self.source)

    def check_begun(self, folder: RunFolder, start: Path) -> None:
        """Looks at how those that have begun learnt another task, where others do so yet."""
        runs, settings = folder.seed_runs(), self.task.settings
        if sum((run / INTERMEDIATE / "run.json").is_file() for run in runs) < settings.seeds:
            for run in runs:
                check_same_settings_before(run, settings, start)

    def check_finished(self, folder: RunFolder) -> None:
        """Looks at the text, and at what each of the runs learnt before its task."""
        check_same_text(self.task, self.splits, self.source, folder.path)
        data = data_before(self.task.settings, self.source)
        for run in folder.seed_runs():
            check_same_before(run, data)
            check_same_texts(self.task, self.splits, self.source, run)
        if self.task.settings.texts_to_answer:
            folder.respell(self_training=self.task.settings.self_training)

    def adapt(self, start: Path, run: Path) -> EarlierStage | None:
        """The model with the task's text learnt, None where that is not asked for."""
        if self.task.settings.adapt is None:
            return None
        return adapt(self.task, self.splits, self.source, start, run)


def _finetune_once(
    settings: FinetuneSettings,
    recipe: str,
    left_out: Collection[str] = (),
    baselines: Baselines | None = None,
) -> RunResult:
    """One run with one seed.

    Args:
        recipe: the line about what was filled in.
        left_out: texts that are neither learnt from nor chosen by; as `cleaning.folded` has them.
        baselines: those of runs before, to which this one adds its own.
    """
    started = time.perf_counter()
    task = find_task(settings.task)(settings)
    with join_world() as world:
        if settings.dry_run:
            return _Run(None, task, world, started, left_out, baselines).carry_out(recipe)
        output = settings.output or f"runs/{task.name}"
        kept = [*made_before_training(settings)]
        kept += [INTERMEDIATE] if settings.intermediate else []
        kept += SELF_TRAINING if settings.texts_to_answer else []
        with RunFolder(output, world.is_main, kept) as folder:
            return _Run(folder, task, world, started, left_out, baselines).carry_out(recipe)


@dataclass
class _Start:
    """The model that is trained, and where it came from.

    positions: how many of them are trained when this run ends.
    """

    folder: Path
    digest: str
    tokenizer: WordPiece
    model: Any
    positions: int
    earlier: dict[str, EarlierStage]  # by its word in run.json and results.json


class _Run:
    """One fine-tuning run: data -> model -> loop -> results, each step from the one before."""

    def __init__(
        self,
        folder: RunFolder | None,
        task: Task[Any, Any],
        world: World,
        started: float,
        left_out: Collection[str],
        baselines: Baselines | None,
    ) -> None:
        self.folder, self.task, self.world = folder, task, world
        self.left_out = left_out
        self.baselines = {} if baselines is None else baselines
        self.settings, self.started = task.settings, started
        self.scored: tuple[_Encoded, _Encoded] | None = None  # where they were encoded early
        # Seconds of a budget in minutes that the scoring at the end was planned to take.
        self.planned: float | None = None
        # The run.json of a run that was stopped in an earlier stage: fine-tuning is to begin.
        self.stopped: dict[str, Any] | None = None

    def carry_out(self, recipe: str) -> RunResult:
        """The whole run; `recipe` is the line about what was filled in."""
        settings, task, folder = self.settings, self.task, self.folder
        # Before data is looked for, which may take long: the folder may not be used.
        self.begun = begun_run(folder, "finetune", settings, self.world)
        self.source = task.find_data()
        log_line("data", self.source.said)
        if recipe:
            log_line("recipe", recipe)
        splits, parts = self._read()
        if (ended := self._gone_on_with(splits)) is not None:
            return ended
        self.runtime = start_or_replay_runtime(settings, self.begun, self.world)
        start = self._start(splits, parts)
        features = flat(task.encode_to_learn(parts.train))
        _say_unknown(features, start.tokenizer)
        data = TaskData(
            features,
            task.collate,
            task.count,
            settings.batch_size,
            settings.batch_size,
            settings.seed,
            self.world,
        )
        dev, test = self.scored or _encoded(task, parts)
        # Minutes are those of the whole command, so what they are taken off comes before the rest.
        baseline = _baseline(task, parts) if settings.max_minutes and self.world.is_main else None
        loop = self._loop(start, data, parts.dev, dev, test)
        record = self._record(splits, start, loop, data)
        begun = self.begun is not None
        resume = begun or settings.resume == "yes"
        micro = data.micro_batch_size
        timed = REHEARSED_BATCHES * micro
        scoring = functools.partial(self._scoring, start.model, dev, test, micro, timed)
        try:
            state = carry_out(loop, start.model, folder, None if begun else record, resume, scoring)
        except NonFiniteError as error:
            if folder is not None:
                folder.note_divergence(str(error))
            raise
        if folder is None or state is None:
            return RunResult(Path(), {})
        save_model(start.model, folder.path, self.world)
        start.model.eval()
        task.settle(start.model, parts.dev, data.micro_batch_size, self.runtime)
        predictions = task.predict_encoded(
            start.model, parts.test, test, data.micro_batch_size, self.runtime
        )
        if not self.world.is_main:
            return RunResult(folder.path, {}, start.model)
        start.tokenizer.save(folder.path, start.positions)
        task.save(folder.path)
        results = _results(task, splits, parts, predictions)
        results |= self._known_baseline(splits, parts) if baseline is None else baseline
        results |= {
            f"dev_{loop.settings.select}": state.best,
            "best_step": state.best_step,
            "steps": state.step,
            "seconds": state.seconds,
        }
        results |= {name: stage.notes for name, stage in start.earlier.items()}
        _write(folder.path, task, parts.test, predictions, results)
        return RunResult(folder.path, results, start.model)

    def _read(self) -> tuple[Splits[Any], Parts]:
        """The task's data, and its parts; what was found is printed."""
        splits = read_splits(self.task, self.source)
        if self.left_out:
            splits = without_texts(self.task, splits, self.left_out)
        log_line("found", "; ".join(splits.notes))
        parts = parts_of(self.task, splits, self.settings.dev_fraction, self.settings.limit)
        text = f"{len(parts.train):,} train, {len(parts.dev):,} dev"
        if self.settings.dev_only:
            text += "; dev alone is scored, as --dev-only asks"
        elif parts.scored == "dev":
            text += "; there is no labelled test split: dev is scored, which chose the weights, too"
        else:
            text += f", {len(parts.test):,} test"
        log_line("split", text)
        return splits, parts

    def _gone_on_with(self, splits: Splits[Any]) -> RunResult | None:
        """Compares a run that goes on with its data now; its result where it had ended.

        Raises:
            InputError: they are not what it began with.
        """
        folder, settings = self.folder, self.settings
        if folder is None or self.begun is None:
            return None
        folder.check_same_data(splits.fingerprint, settings.to_dict())
        if folder.is_main:
            folder.respell_data(settings.to_dict())  # for evaluate, and --config with run.json
        if folder.results is not None:
            check_same_text(self.task, splits, self.source, folder.path)
            check_same_before(folder.path, data_before(settings, self.source))
            check_same_texts(self.task, splits, self.source, folder.path)
            return finished_run(folder)
        if "budget" not in self.begun["resolved"]:  # stopped in an earlier stage
            self.stopped, self.begun = self.begun, None
        return None

    def _start(self, splits: Splits[Any], parts: Parts) -> _Start:
        """The chosen model with the task's head, placed.

        Raises:
            InputError: the model cannot be used, or is not the one that the run began with.
        """
        settings = self.settings
        before = (self.begun or self.stopped or {}).get("resolved", {})
        folder = choose_model(as_begun_from(settings, before))
        check_not_start(self.folder, folder)
        check_not_read(self.folder, settings)
        digest = weights_digest(folder)
        if before and before.get("start_weights") != digest:
            raise InputError(
                f"--resume: the weights in {folder} have changed; --overwrite starts anew"
            )
        _say_untrained_positions(settings, folder)
        tokenizer = learn(self.task, parts.train, folder)
        if (settings.intermediate or settings.texts_to_answer or settings.adapt) and (
            not self.task.is_open_ended  # whose texts are cut by the decoder, which is built later
        ):
            self.scored = _encoded(self.task, parts)  # refused before hours of earlier stages
        record = run_record("finetune", settings, splits.fingerprint, self.runtime)
        record["resolved"] = {"start": str(folder), "start_weights": digest}
        stages = EarlierStages(
            self.task,
            self.source,
            self.folder,
            functools.partial(_finetune_once, baselines=self.baselines),
            self.begun,
            self.stopped,
        )
        earlier = stages.carry_out(splits, folder, record)
        self.started += stages.seconds
        random_weights = settings.random_weights and not earlier
        backbone = next(reversed(earlier.values())).folder if earlier else folder
        config = BertConfig.from_pretrained(folder)  # nor is an earlier stage's dropout its own
        if earlier.keys() & {"intermediate", "self_training"}:  # which redrew what is redrawn
            settings = dataclasses.replace(settings, reinit_layers=0)
        model = _build_model(settings, self.task, backbone, config, random_weights)
        placed(model, settings, self.runtime)
        trained = 0 if random_weights else trained_positions(backbone, config)
        positions = max(trained, settings.max_seq_length)
        return _Start(folder, digest, tokenizer, model, positions, earlier)

    def _loop(
        self,
        start: _Start,
        data: TaskData,
        dev: list[Any],
        dev_features: list[list[Feature]],
        test: list[list[Feature]],
    ) -> Loop:
        """The training loop, compiled where that pays; sets the data's micro-batch size."""
        settings, task, model = self.settings, self.task, start.model
        forward = wrapped(model, settings, self.runtime, self.begun)
        epsilon = settings.adversarial_epsilon
        passes = FastGradient(model, epsilon).passes if epsilon else ONE_PASS
        trial = Trial(model, forward, task.terms, data.largest, self.runtime, passes)
        data.micro_batch_size = micro = micro_batch_size(settings, self.begun, trial)
        if self.begun is not None:
            rate = float(self.begun["resolved"]["learning_rate"])
        else:
            rate = settings.learning_rate or task.default_rate(model.config.hidden_size)

        def scoring() -> float:
            return sum(self._scoring(model, dev_features, test, micro))

        budget = self._budget(data, scoring)
        loop = Loop(
            model,
            data,
            task.terms,
            build_optimizer(model, rate, settings.weight_decay),
            self._loop_settings(rate, budget, data),
            self.runtime,
            self.folder,
            evaluate=lambda: self._evaluate(loop, dev, dev_features, micro, len(test)),
            forward=forward,
            utilisation=utilisation(
                settings,
                model.config,
                self.runtime,
                self.begun,
                functools.partial(self._useful_flops, model.config, len(passes)),
            ),
            passes=passes,
        )
        self.compiled = compile_if_it_pays(settings, self.begun, loop)
        return loop

    def _useful_flops(self, config: BertConfig, num_passes: int, step: StepData) -> float:
        """Operations of a step, for `mfu`; with an epsilon a gradient reaches the embeddings."""
        flops = self.task.useful_flops(config, step) * num_passes
        frozen = self.settings.freeze_layers or 0
        if frozen and self.settings.adversarial_epsilon:
            flops += flops_through_frozen(config, step.lengths, frozen)
        return flops

    def _loop_settings(self, rate: float, budget: Budget, data: TaskData) -> LoopSettings:
        settings = self.settings
        select = settings.select or self.task.metric
        return dataclasses.replace(
            loop_settings(settings, rate, budget, select=select),
            eval_every=settings.eval_every or data.steps_per_epoch,
            patience=settings.patience,
        )

    def _budget(self, data: TaskData, scoring: Callable[[], float]) -> Budget:
        """The budget in steps, in seconds where minutes are given; else the task's own epochs.

        Args:
            scoring: says how many seconds the scoring of dev and test at the end will take.
        """
        settings = self.settings
        if self.begun is not None:
            resolved = self.begun["resolved"]
            self.planned = resolved.get("scoring_seconds")  # an older run has none
            return Budget(**resolved["budget"])
        if settings.tuning_minutes:
            self.planned = self.world.from_main(scoring())
            left = training_seconds(settings.tuning_minutes, self.started, self.planned)
            return Budget(seconds=self.world.from_main(left))
        if settings.max_steps:
            return Budget(max_steps=settings.max_steps)
        epochs = settings.epochs or self.task.epochs
        steps = max(1, round(epochs * data.steps_per_epoch))
        told = f"{counted(epochs, 'epoch')} of {counted(data.steps_per_epoch, 'step')}"
        least = min(settings.least_steps, MOST_EPOCHS * data.steps_per_epoch)
        if steps < least:
            told += f" would be few, so {counted(least, 'step')} (--min-steps, --epochs)"
            steps = least
        log_line("budget", told)
        return Budget(max_steps=steps)

    def _scoring(
        self,
        model: Any,
        dev: list[list[Feature]],
        test: list[list[Feature]],
        micro: int,
        *timed: int,
    ) -> Scoring:
        """How long scoring dev, and at the end test, will take; `timed` as in `scoring_seconds`.

        Of texts to write dev's references tell the length; test's are not to be looked at.
        """
        on_dev = functools.partial(self._score_some, self.task.rehearse_dev, model, micro)
        on_test = functools.partial(self._score_some, self.task.rehearse, model, micro)
        like_test = dev if self.task.is_open_ended else test
        end = scoring_seconds(on_test, like_test, len(test), *timed)
        return Scoring(scoring_seconds(on_dev, dev, len(dev), *timed), end)

    def _score_some(
        self, way: Callable[..., object], model: Any, micro: int, features: Sequence[list[Feature]]
    ) -> None:
        model.eval()
        way(model, flat(features), micro, self.runtime)

    def _evaluate(
        self,
        loop: Loop,
        dev: list[Any],
        features: list[list[Feature]],
        micro: int,
        num_test: int,
    ) -> dict[str, float]:
        """The figures of dev; of a family that is open-ended, the budget then ends anew."""
        task, model = self.task, loop.model
        begin = time.perf_counter()
        figures = task.dev_figures(model, dev, features, micro, self.runtime)
        if task.is_open_ended and self.planned is not None and not loop.state.finished:
            infer_with = functools.partial(infer, task)
            predict = functools.partial(self._score_some, infer_with, model, micro)
            on_dev = time.perf_counter() - begin
            scoring = on_dev + scoring_seconds(predict, features, num_test, timed=micro)
            self._move_end(loop, self.world.from_main(scoring))
        return figures

    def _move_end(self, loop: Loop, scoring: float) -> None:
        """Leaves time for texts as long as the model writes them by now.

        Early on it may end at once or never, and will learn better. So that counts as much as there
        is used of the budget; the rest is what was planned.
        """
        assert self.planned is not None
        loop.move_end(min(1.0, loop.done) * (self.planned - scoring))

    def _known_baseline(self, splits: Splits[Any], parts: Parts) -> dict[str, float]:
        """`_baseline`, which no seed changes: of several the first to need it computes it.

        With a budget in minutes each does, before it trains, so that all train for as long.
        """
        settings = self.settings
        key = self.task.name, splits.fingerprint, settings.limit, settings.dev_fraction
        if key not in self.baselines:
            self.baselines[key] = _baseline(self.task, parts)
        return self.baselines[key]

    def _record(
        self, splits: Splits[Any], start: _Start, loop: Loop, data: TaskData
    ) -> dict[str, Any]:
        """The content of run.json."""
        record = run_record("finetune", self.settings, splits.fingerprint, self.runtime)
        assert loop.utilisation is not None
        if self.left_out:
            record["resolved"]["left_out"] = True  # it learns from less than lies there
        record["resolved"] |= {
            "start": str(start.folder),
            "start_weights": start.digest,
            "adapted": None,
            "intermediate": None,
            "self_training": None,
            **{name: stage.weights for name, stage in start.earlier.items()},
            "data": str(self.source.path),
            "micro_batch_size": data.micro_batch_size,
            "compile": self.compiled,
            "learning_rate": loop.settings.learning_rate,
            "select": loop.settings.select,
            "budget": dataclasses.asdict(loop.settings.budget),
            "scoring_seconds": self.planned,
            "peak_flops": loop.utilisation.peak_flops,
            "model": start.model.config.to_dict(),
        }
        return record


def read_splits(task: Task[Any, Any], source: Source) -> Splits[Any]:
    """A task's data, with --dev-only without its test split.

    Raises:
        InputError: data that cannot be used.
    """
    splits = task.read(source)
    return dataclasses.replace(splits, test=None) if task.settings.dev_only else splits


def learn(task: Task[Any, Any], train: list[Any], folder: Path) -> WordPiece:
    """Has a task learn from its examples; returns the model's tokenizer.

    Raises:
        InputError: the model cannot be used with these settings.
    """
    settings = task.settings
    tokenizer = WordPiece.from_pretrained(folder)
    config = BertConfig.from_pretrained(folder)
    check_vocabulary(tokenizer, config)
    model_config(settings, config)
    for name in ("reinit_layers", "freeze_layers"):
        count, layers = getattr(settings, name) or 0, config.num_hidden_layers
        if count > layers:
            raise InputError(f"{flag(name)} {count}, but the model has {layers} layers")
    redrawn, frozen = settings.reinit_layers or 0, settings.freeze_layers or 0
    if redrawn + frozen > config.num_hidden_layers:
        raise InputError(
            f"--reinit-layers {redrawn} and --freeze-layers {frozen} meet in a model of "
            f"{config.num_hidden_layers} layers: what is redrawn would never be trained"
        )
    if frozen and frozen == config.num_hidden_layers and not task.head:
        raise InputError(
            f"--freeze-layers {frozen} leaves nothing to train: {task.name} has no weights beside "
            f"the model's {frozen} layers"
        )
    task.learn(train, tokenizer)
    if settings.select is not None and settings.select not in task.selectable:
        near = did_you_mean(settings.select, task.selectable)
        raise InputError(f"--select {settings.select!r} is no figure of {task.name}{near}")
    return tokenizer


def _say_untrained_positions(settings: FinetuneSettings, folder: Path) -> None:
    """Tells when sequences are longer than those that the model was pretrained on."""
    trained = trained_positions(folder, BertConfig.from_pretrained(folder))
    if trained < settings.max_seq_length and not settings.random_weights:
        log_line(
            "positions",
            f"{folder} was trained on {trained} tokens a sequence, or has texts cut to them; later "
            f"positions may be as they were drawn; --max-seq-length {settings.max_seq_length} "
            f"trains them here",
        )


def _say_unknown(features: Sequence[Feature], tokenizer: WordPiece) -> None:
    """Tells when the model's vocabulary does not cover the text, such as that of another script."""
    ids = np.concatenate([f.inputs["input_ids"] for f in features])
    share = float((ids == tokenizer.unk_id).mean())
    if share > _MUCH_UNKNOWN:
        log_line(
            "tokens",
            f"{share:.0%} of the pieces are unknown to the model's vocabulary; one pretrained on "
            f"text like this would read them",
        )


def _results(
    task: Task[Any, Any], splits: Splits[Any], parts: Parts, predictions: list[Any]
) -> dict[str, Any]:
    """Test figures, for results.json."""
    of_data = {"task": task.name, "dataset": splits.source, "num_train": len(parts.train)}
    return of_data | task.results(splits, parts.test, predictions, parts.scored)


def _baseline(task: Task[Any, Any], parts: Parts) -> dict[str, float]:
    """What a simple method reaches; why there is none is printed, since the run matters more."""
    try:
        return task.baseline(parts.train, parts.dev, parts.test)
    except MemoryError as error:
        log_line("baseline", f"not scored, memory ran out: {error}")
    except (MissingExtraError, ValueError) as error:  # or texts without a usable word
        log_line("baseline", f"not scored: {error}")
    return {}


def _write(
    folder: Path,
    task: Task[Any, Any],
    examples: list[Any],
    predictions: list[Any],
    results: dict[str, Any],
) -> None:
    """The files of a finished run, results.json last; figures and tables are printed."""
    rows = [task.row(e, p) for e, p in zip(examples, predictions, strict=True)]
    write_jsonl(folder / "predictions.jsonl", rows)
    errors = "\n\n".join(task.errors(examples, predictions))
    text = f"{errors}\n" if errors else ""
    write_text(folder / "errors.txt", text)
    write_json(folder / "results.json", results)
    closing_table(results, folder)
    table = task.table(results)
    if table:
        print(table, flush=True)
