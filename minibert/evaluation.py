"""Scoring a finished model on labelled data, outside the run that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minibert.errors import InputError
from minibert.files import write_jsonl
from minibert.finetuning import prediction_rows
from minibert.metrics import confusion_matrix
from minibert.predict import load
from minibert.runs import log_line
from minibert.tasks import find_task
from minibert.tasks.classification import score


def evaluate(
    folder: str | Path,
    data: str | None = None,
    split: str = "test",
    device: str = "auto",
    precision: str | None = None,
    batch_size: int = 32,
    predictions: str | Path | None = None,
) -> dict[str, Any]:
    """Figures of a fine-tuned model on labelled data.

    Args:
        folder: a run folder of `finetune`.
        data: in the task's public format; by default the data that the task finds by itself.
        split: "test" or "train".
        precision: of matrix products, "int8" included; None: that of the run.
        predictions: a file for one JSON object per example.

    Returns:
        task, dataset, num_eval, accuracy, f1, matthews, loss (nats), confusion_matrix.

    Raises:
        InputError: no model, no data, or a model of other classes than the data's.
    """
    if split not in ("test", "train"):
        raise InputError(f"split is {split!r}; expected 'test' or 'train'")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, must be above 0")
    if predictions is not None and Path(predictions).is_dir():
        raise InputError(f"--predictions {predictions} is a folder; name a file")
    if predictions is not None and not Path(predictions).parent.is_dir():
        raise InputError(f"--predictions {predictions}: {Path(predictions).parent} does not exist")
    predictor = load(folder, device, precision)
    if predictor.task is None:
        raise InputError(
            f"{folder} has no run.json that names its task; fine-tune it with minibert"
        )
    task = find_task(predictor.task)
    if tuple(predictor.labels) != task.labels:
        raise InputError(f"{folder} has the classes {predictor.labels}, the data {task.labels}")
    path, which = task.find_data(data)
    log_line("data", which)
    splits = task.read(path)
    examples = splits.test if split == "test" else splits.train
    probabilities = predictor.probabilities([e.text for e in examples], batch_size)
    labels = np.array([e.label for e in examples])
    if predictions is not None:
        write_jsonl(Path(predictions), prediction_rows(task, examples, probabilities))
    matrix = confusion_matrix(labels, probabilities.argmax(-1), len(task.labels))
    return {
        "task": task.name,
        "dataset": splits.source,
        "num_eval": len(examples),
        **score(probabilities, labels),
        "confusion_matrix": matrix.tolist(),
    }
