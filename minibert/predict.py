"""A finished run folder -> predictions, from the command line or a notebook."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.quantised import quantise_linears
from minibert.run_folder import RunFolder
from minibert.runs import check_vocabulary, open_model_folder
from minibert.runtime import start_runtime
from minibert.settings import FinetuneSettings
from minibert.tasks import FAMILIES, TASKS
from minibert.tasks.base import Predictor, Task
from minibert.tokenizer import WordPiece

PRECISIONS = ("auto", "fp32", "bf16", "int8")


def load(folder: str | Path, device: str = "auto", precision: str | None = None) -> Predictor:
    """Opens a fine-tuned model for predictions.

    Args:
        folder: a run folder of `finetune`, or a fine-tuned BERT in the Hugging Face layout.
        precision: of matrix products, "fp32", "bf16" or "auto"; None: that of the run, whose
            figures it then repeats. "int8", on a CPU: the encoder's linear layers in 8-bit
            integers, all else as "auto"; the folder stays as it is.

    Returns:
        What predicts; the task's family decides what it takes and what it answers.

    Raises:
        InputError: no model there, or one without a task's head; a precision that is unknown or
            not for this device.
    """
    if precision not in (None, *PRECISIONS):
        raise InputError(f"precision is {precision!r}; expected {', '.join(PRECISIONS)}")
    path = open_model_folder(str(folder))
    config = BertConfig.from_pretrained(path)
    # A folder of others has no run.json.
    run = RunFolder(path).read_run() if (path / "run.json").is_file() else {}
    task = _task_of(run, config)
    model = task.model_class.from_pretrained(path)
    if any(name.startswith(task.head) for name in model.load_report.newly_initialised):
        head = " or ".join(name.removesuffix(".") for name in task.head)
        raise InputError(
            f"{path} is a {', '.join(config.architectures) or 'model'} without a {head}; "
            f"fine-tune it first: python finetune.py --task {task.name} --model {path}"
        )
    tokenizer = WordPiece.from_pretrained(path)
    check_vocabulary(tokenizer, config)
    task.restore(path, config, tokenizer)
    precision = precision or run.get("resolved", {}).get("precision", "fp32")
    is_int8 = precision == "int8"
    runtime = start_runtime(device, "auto" if is_int8 else precision, deterministic=False)
    if is_int8:
        if runtime.device.type != "cpu":
            raise InputError(
                f"--precision int8 is for a CPU, this is {runtime.device}; add --device cpu"
            )
        quantise_linears(model.bert.layers)
        if runtime.precision == "bf16":  # a twentieth faster than autocast's casts
            model.bert.to(torch.bfloat16)
    return task.predictor(model.to(runtime.device), runtime)


def _task_of(run: dict[str, Any], config: BertConfig) -> Task[Any, Any]:
    """The task that a run was of, with its settings; else a family with the model's head."""
    known = {field.name for field in dataclasses.fields(FinetuneSettings)}
    given = {k: v for k, v in run.get("settings", {}).items() if k in known}
    if given.get("task") in TASKS:
        return TASKS[given["task"]](FinetuneSettings.from_dict(given, "run.json"))
    heads = [f for f in FAMILIES if f.model_class.__name__ in config.architectures]
    family = (heads or FAMILIES)[0]
    length = min(512, config.max_position_embeddings)
    return family(FinetuneSettings(task=family.names[-1], max_seq_length=length))
