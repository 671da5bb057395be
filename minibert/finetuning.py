"""Stage two: a pretrained model folder + labelled data -> an evaluated model folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minibert.compiling import compile_if_it_pays
from minibert.config import BertConfig
from minibert.errors import InputError, MissingExtraError
from minibert.files import bundled_data, write_json, write_jsonl
from minibert.fitting import Trial, micro_batch_size
from minibert.heads import BertForSequenceClassification
from minibert.metrics import confusion_matrix
from minibert.model import init_weights
from minibert.optim import Budget, build_optimizer
from minibert.run_folder import RunFolder
from minibert.runs import (
    RunResult,
    begun_run,
    carry_out,
    check_not_start,
    check_vocabulary,
    closing_table,
    finished_run,
    log_line,
    loop_settings,
    model_config,
    open_model_folder,
    placed,
    run_record,
    save_model,
    start_or_replay_runtime,
    training_seconds,
    utilisation,
    weights_digest,
    wrapped,
)
from minibert.settings import FinetuneSettings
from minibert.tasks import find_task
from minibert.tasks.classification import (
    ClassificationData,
    ClassificationTask,
    LabelledText,
    Splits,
    classification_terms,
    cut_dev,
    encode,
    limit_examples,
    predict_probabilities,
    score,
    tfidf_baseline,
)
from minibert.tokenizer import WordPiece
from minibert.train import Loop
from minibert.world import World, join_world

_EPOCHS = 3.0
_LEARNING_RATE = 2e-4
_PRETRAINED = "runs/pretrain"


def choose_model(settings: FinetuneSettings) -> Path:
    """The model to start from: the one named, else a finished runs/pretrain; printed.

    Raises:
        InputError: neither is there; the command that makes one is named.
    """
    if settings.model:
        folder = open_model_folder(settings.model, settings.cache_dir)
    elif (Path(_PRETRAINED) / "results.json").is_file():
        folder = Path(_PRETRAINED)
    else:
        raise InputError(
            f"no --model, and {_PRETRAINED} holds no finished run; make one with: "
            f"minibert pretrain --corpus {bundled_data() / 'wiki.txt'}"
        )
    kept = "its config and tokenizer, all weights redrawn" if settings.random_weights else "weights"
    log_line("model", f"{folder} ({kept})")
    return folder


def _build_model(
    settings: FinetuneSettings, task: ClassificationTask, folder: Path
) -> BertForSequenceClassification:
    """The classifier on the chosen backbone.

    Raises:
        InputError: the sequence length is beyond the model's positions, or the folder is damaged.
    """
    own = BertConfig.from_pretrained(folder)
    config = dataclasses.replace(
        model_config(settings, own),
        id2label=dict(enumerate(task.labels)),
        problem_type="single_label_classification",
    )
    torch.manual_seed(settings.seed)
    if settings.random_weights:
        return BertForSequenceClassification(config)
    # A classifier of other classes is of no use; the backbone is.
    left_out = ("classifier.",) if own.id2label != config.id2label else ()
    model = BertForSequenceClassification.from_pretrained(folder, config, left_out)
    log_line("weights", str(model.load_report))
    if settings.reinit_layers:
        redraw_top(model, settings.reinit_layers)
        log_line("redrawn", f"the top {settings.reinit_layers} layer(s) and the pooler")
    return model


def redraw_top(model: BertForSequenceClassification, count: int) -> None:
    """Draws the pooler and the top layers anew, keeping what lies below.

    What the top of a pretrained encoder has learnt serves the pretraining task, and a fresh top is
    learnt sooner (Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning", section 5).

    Raises:
        InputError: the model has fewer layers.
    """
    layers = model.bert.layers
    if count > len(layers):
        raise InputError(f"--reinit-layers {count}, but the model has {len(layers)} layers")
    for part in (*layers[len(layers) - count :], model.bert.pooler):
        init_weights(part, model.config)


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
    started = time.perf_counter()
    settings = settings or FinetuneSettings.from_dict(values, "finetune")
    task = find_task(settings.task)
    data_path, which = task.find_data(settings.data)
    log_line("data", which)
    with join_world() as world:
        if settings.dry_run:
            return _finetune_in(None, settings, task, data_path, world, started)
        with RunFolder(settings.output or f"runs/{task.name}", world.is_main) as folder:
            return _finetune_in(folder, settings, task, data_path, world, started)


def _labels(examples: list[LabelledText]) -> np.ndarray:
    return np.array([e.label for e in examples], np.int64)


def _finetune_in(
    folder: RunFolder | None,
    settings: FinetuneSettings,
    task: ClassificationTask,
    data_path: Path,
    world: World,
    started: float,
) -> RunResult:
    begun = begun_run(folder, "finetune", settings, world)
    splits, train, dev = _read(settings, task, data_path)
    if folder is not None and begun is not None:
        folder.check_same_data(splits.fingerprint)
        if folder.results is not None:
            return finished_run(folder)
    runtime = start_or_replay_runtime(settings, begun, world)
    source = choose_model(settings)
    check_not_start(folder, source)
    digest = weights_digest(source)
    if begun is not None and begun["resolved"].get("start_weights") != digest:
        raise InputError(f"--resume: the weights in {source} have changed; --overwrite starts anew")
    tokenizer = WordPiece.from_pretrained(source)
    check_vocabulary(tokenizer, BertConfig.from_pretrained(source))
    model = _build_model(settings, task, source)
    placed(model, settings, runtime)
    forward = wrapped(model, settings, runtime, begun)

    def encoded(examples: list[LabelledText]) -> list[np.ndarray]:
        texts = [e.text for e in examples]
        return encode(texts, tokenizer, settings.max_seq_length, settings.truncation)

    def probabilities(rows: Sequence[np.ndarray]) -> np.ndarray:
        model.eval()
        return predict_probabilities(model, rows, tokenizer.pad_id, micro, runtime)

    train_rows, dev_rows, test_rows = map(encoded, (train, dev, splits.test))
    data = ClassificationData(
        train_rows,
        _labels(train),
        tokenizer.pad_id,
        settings.batch_size,
        settings.batch_size,
        settings.seed,
        world,
    )
    trial = Trial(model, forward, classification_terms, data.largest, runtime)
    data.micro_batch_size = micro = micro_batch_size(settings, begun, trial)
    if begun is not None:
        budget = Budget(**begun["resolved"]["budget"])
    elif settings.max_minutes:
        left = training_seconds(settings.max_minutes, started, probabilities, test_rows)
        budget = Budget(seconds=world.from_main(left))
    else:
        budget = _budget(settings, data)
    rate = settings.learning_rate or _LEARNING_RATE
    settings_of_loop = loop_settings(settings, rate, budget, select="accuracy")
    if settings.eval_every is None:
        settings_of_loop = dataclasses.replace(settings_of_loop, eval_every=data.steps_per_epoch)
    use = utilisation(settings, model.config, runtime, begun)
    loop = Loop(
        model,
        data,
        classification_terms,
        build_optimizer(model, rate, settings.weight_decay),
        settings_of_loop,
        runtime,
        folder,
        evaluate=lambda: score(probabilities(dev_rows), _labels(dev)),
        forward=forward,
        utilisation=use,
    )
    compiled = compile_if_it_pays(settings, begun, loop)
    record = run_record("finetune", settings, splits.fingerprint, runtime)
    record["resolved"] |= {
        "start": str(source),
        "start_weights": digest,
        "data": str(data_path),
        "micro_batch_size": micro,
        "compile": compiled,
        "learning_rate": rate,
        "budget": dataclasses.asdict(loop.settings.budget),
        "peak_flops": use.peak_flops,
        "model": model.config.to_dict(),
    }
    state = carry_out(loop, model, folder, None if begun else record, settings.resume != "no")
    if folder is None or state is None:
        return RunResult(Path(), {})
    test = probabilities(test_rows)
    save_model(model, folder.path, world)
    if not world.is_main:
        return RunResult(folder.path, {}, model)
    write_jsonl(folder.path / "predictions.jsonl", prediction_rows(task, splits.test, test))
    tokenizer.save(folder.path)
    results = _results(task, splits, train, test) | {
        "dev_accuracy": state.best,
        "best_step": state.best_step,
        "steps": state.step,
        "seconds": state.seconds,
    }
    write_json(folder.path / "results.json", results)
    closing_table(results, folder.path)
    print(confusion_text(task, results["confusion_matrix"]), flush=True)
    return RunResult(folder.path, results, model)


def _read(
    settings: FinetuneSettings, task: ClassificationTask, data_path: Path
) -> tuple[Splits, list[LabelledText], list[LabelledText]]:
    """The task's data, with train and dev parted; what was found is printed."""
    splits = task.read(data_path)
    log_line("found", "; ".join(splits.notes))
    train, dev = cut_dev(splits.train, settings.dev_fraction)
    if settings.limit is not None:
        train = limit_examples(train, settings.limit)
    log_line("split", f"{len(train):,} train, {len(dev):,} dev, {len(splits.test):,} test")
    return splits, train, dev


def _budget(settings: FinetuneSettings, data: ClassificationData) -> Budget:
    """The budget in steps: of three epochs when none is asked for."""
    if settings.max_steps:
        return Budget(max_steps=settings.max_steps)
    epochs = settings.epochs or _EPOCHS
    log_line("budget", f"{epochs:g} epochs of {data.steps_per_epoch:,} steps")
    return Budget(max_steps=max(1, round(epochs * data.steps_per_epoch)))


def _results(
    task: ClassificationTask, splits: Splits, train: list[LabelledText], test: np.ndarray
) -> dict[str, Any]:
    """Test figures beside the baseline's, for results.json."""
    labels = _labels(splits.test)
    figures = score(test, labels)
    results: dict[str, Any] = {
        "task": task.name,
        "dataset": splits.source,
        "num_train": len(train),
        "num_eval": len(labels),
        **figures,
        "confusion_matrix": confusion_matrix(labels, test.argmax(-1), len(task.labels)).tolist(),
    }
    try:
        baseline = tfidf_baseline(train, splits.test)
        results["tfidf_accuracy"], results["tfidf_f1"] = baseline["accuracy"], baseline["f1"]
    except (MissingExtraError, ValueError) as error:  # or texts without a usable word
        log_line("baseline", f"not scored: {error}")
    return results


def prediction_rows(
    task: ClassificationTask, examples: list[LabelledText], probabilities: np.ndarray
) -> list[dict[str, Any]]:
    """One object per example in order, for predictions.jsonl; score is the chosen class's share."""
    return [
        {
            "id": example.id,
            "text": example.text,
            "label": task.labels[example.label],
            "prediction": task.labels[int(row.argmax())],
            "score": round(float(row.max()), 6),
        }
        for example, row in zip(examples, probabilities, strict=True)
    ]


def confusion_text(task: ClassificationTask, matrix: list[list[int]]) -> str:
    """The confusion matrix as a small table: rows true, columns predicted."""
    width = max(9, *(len(label) + 2 for label in task.labels))
    head = f"{'true':<{width}}" + "".join(f"{label:>{width}}" for label in task.labels)
    rows = [
        f"{label:<{width}}" + "".join(f"{count:>{width},}" for count in row)
        for label, row in zip(task.labels, matrix, strict=True)
    ]
    return "\n".join([f"confusion (columns: predicted)\n{head}", *rows])
