"""Stage two: a pretrained model folder + labelled data -> an evaluated model folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minibert.config import BertConfig
from minibert.errors import InputError, MissingExtraError
from minibert.files import write_json, write_jsonl
from minibert.heads import BertForSequenceClassification
from minibert.metrics import confusion_matrix
from minibert.optim import Budget, build_optimizer
from minibert.run_folder import RunFolder
from minibert.runs import (
    RunResult,
    begun_run,
    check_not_start,
    closing_table,
    finished_run,
    log_line,
    loop_settings,
    open_model_folder,
    run_record,
    weights_digest,
)
from minibert.runtime import start_runtime
from minibert.settings import FinetuneSettings
from minibert.tasks import find_task
from minibert.tasks.classification import (
    ClassificationData,
    ClassificationTask,
    LabelledText,
    Splits,
    bundled_data,
    classification_terms,
    cut_dev,
    encode,
    limit_examples,
    predict_probabilities,
    score,
    tfidf_baseline,
)
from minibert.tokenizer import WordPiece
from minibert.train import Loop, fit

_EPOCHS = 3.0
_LEARNING_RATE = 2e-4
_PRETRAINED = "runs/pretrain"
_TIMED_ROWS = 200  # test texts scored to tell how long all of them will take


def choose_model(settings: FinetuneSettings) -> Path:
    """The model to start from: the one named, else a finished runs/pretrain; printed.

    Raises:
        InputError: neither is there; the command that makes one is named.
    """
    if settings.model:
        folder = open_model_folder(settings.model)
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
    config = BertConfig.from_pretrained(folder)
    if settings.max_seq_length > config.max_position_embeddings:
        raise InputError(
            f"--max-seq-length {settings.max_seq_length} is beyond the model's "
            f"{config.max_position_embeddings} positions"
        )
    if settings.dropout is not None:
        config = dataclasses.replace(
            config,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
        )
    config = dataclasses.replace(
        config,
        id2label=dict(enumerate(task.labels)),
        problem_type="single_label_classification",
    )
    torch.manual_seed(settings.seed)
    if settings.random_weights:
        return BertForSequenceClassification(config)
    model = BertForSequenceClassification.from_pretrained(folder, config)
    log_line("weights", str(model.load_report))
    return model


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
    if settings.dry_run:
        return _finetune_in(None, settings, task, data_path, started)
    with RunFolder(settings.output or f"runs/{task.name}") as folder:
        return _finetune_in(folder, settings, task, data_path, started)


def _labels(examples: list[LabelledText]) -> np.ndarray:
    return np.array([e.label for e in examples], np.int64)


def _finetune_in(
    folder: RunFolder | None,
    settings: FinetuneSettings,
    task: ClassificationTask,
    data_path: Path,
    started: float,
) -> RunResult:
    begun = begun_run(folder, "finetune", settings)
    if begun is not None and folder is not None and folder.results is not None:
        return finished_run(folder)
    precision = begun["resolved"]["precision"] if begun else settings.precision
    runtime = start_runtime(settings.device, precision, settings.deterministic)
    source = choose_model(settings)
    check_not_start(folder, source)
    splits = task.read(data_path)
    log_line("found", "; ".join(splits.notes))
    fingerprint = f"{splits.fingerprint}-{weights_digest(source)}"
    record = run_record("finetune", settings, fingerprint, runtime)
    if folder is not None and begun is not None:
        folder.check_same_data(fingerprint)
    train, dev = cut_dev(splits.train, settings.dev_fraction)
    if settings.limit is not None:
        train = limit_examples(train, settings.limit)
    log_line("split", f"{len(train):,} train, {len(dev):,} dev, {len(splits.test):,} test")
    tokenizer = WordPiece.from_pretrained(source)
    model = _build_model(settings, task, source).to(runtime.device)

    def encoded(examples: list[LabelledText]) -> list[np.ndarray]:
        texts = [e.text for e in examples]
        return encode(texts, tokenizer, settings.max_seq_length, settings.truncation)

    micro = settings.micro_batch_size or settings.batch_size
    data = ClassificationData(
        encoded(train), _labels(train), tokenizer.pad_id, settings.batch_size, micro, settings.seed
    )
    dev_encoded, dev_labels = encoded(dev), _labels(dev)
    test_encoded = encoded(splits.test)

    def probabilities(rows: list[np.ndarray]) -> np.ndarray:
        return predict_probabilities(model, rows, tokenizer.pad_id, settings.batch_size, runtime)

    if begun is not None:
        budget = Budget(**begun["resolved"]["budget"])
    else:
        budget = _budget(settings, data, started, lambda: _seconds(probabilities, test_encoded))

    rate = settings.learning_rate or _LEARNING_RATE
    settings_of_loop = loop_settings(settings, rate, budget, select="accuracy")
    if settings.eval_every is None:
        settings_of_loop = dataclasses.replace(settings_of_loop, eval_every=data.steps_per_epoch)
    loop = Loop(
        model,
        data,
        classification_terms,
        build_optimizer(model, rate, settings.weight_decay),
        settings_of_loop,
        runtime,
        folder,
        evaluate=lambda: score(probabilities(dev_encoded), dev_labels),
        forward=torch.compile(model) if settings.compile else None,
    )
    loop.announce(model)
    if folder is None:
        return RunResult(Path(), {})
    if begun is None:
        record["resolved"] |= {
            "start": str(source),
            "data": str(data_path),
            "micro_batch_size": micro,
            "learning_rate": rate,
            "budget": dataclasses.asdict(budget),
            "model": model.config.to_dict(),
        }
        folder.clear()
        folder.write_run(record)
    state = fit(loop, resume=settings.resume != "no")
    model.eval()
    test = probabilities(test_encoded)
    write_jsonl(folder.path / "predictions.jsonl", prediction_rows(task, splits.test, test))
    model.save_pretrained(folder.path)
    tokenizer.save(folder.path)
    results = _results(task, splits, train, test)
    results |= {
        "dev_accuracy": state.best,
        "best_step": state.best_step,
        "steps": state.step,
        "seconds": state.seconds,
    }
    write_json(folder.path / "results.json", results)
    closing_table(results, folder.path)
    print(confusion_text(task, results["confusion_matrix"]), flush=True)
    return RunResult(folder.path, results, model)


def _budget(
    settings: FinetuneSettings,
    data: ClassificationData,
    started: float,
    test_seconds: Callable[[], float],
) -> Budget:
    """The budget in steps: of three epochs when none is asked for.

    Of minutes, what was spent before the first step and what scoring the test set will take is
    not training, and a tenth is left for the baseline and for writing.
    """
    if settings.max_minutes:
        after = test_seconds()
        before = time.perf_counter() - started
        return Budget(seconds=max(1.0, (settings.max_minutes * 60 - before) * 0.9 - after))
    if settings.max_steps:
        return Budget(max_steps=settings.max_steps)
    epochs = settings.epochs or _EPOCHS
    log_line("budget", f"{epochs:g} epochs of {data.steps_per_epoch:,} steps")
    return Budget(max_steps=max(1, round(epochs * data.steps_per_epoch)))


def _seconds(score_rows: Callable[[list[np.ndarray]], object], rows: list[np.ndarray]) -> float:
    """How long scoring all rows will take, from some of them."""
    some = rows[:: max(1, len(rows) // _TIMED_ROWS)]
    score_rows(some[:1])  # what the first call alone costs
    start = time.perf_counter()
    score_rows(some)
    return (time.perf_counter() - start) * len(rows) / len(some)


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
