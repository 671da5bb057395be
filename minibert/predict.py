"""A finished run folder -> predictions, from the command line or a notebook."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import read_json, read_text
from minibert.model_folders import open_model_folder
from minibert.quantised import quantise_linears
from minibert.run_folder import RunFolder
from minibert.runs import check_vocabulary, log_line, trained_positions
from minibert.runtime import Runtime, start_runtime
from minibert.settings import FinetuneSettings
from minibert.tasks import FAMILIES, TASKS, find_task
from minibert.tasks.base import Predictor, Task
from minibert.tokenizer import WordPiece

PRECISIONS = ("auto", "fp32", "bf16", "int8")
_PARTS = ("Transformer", "Pooling", "Normalize")  # of a sentence model; vectors are of length 1


def load(
    folder: str | Path, device: str | torch.device = "auto", precision: str | None = None
) -> Predictor:
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
    path = open_model_folder(str(folder))
    run = run_of(path)
    task = _task_of(run, BertConfig.from_pretrained(path), path)
    return _opened(path, task, run, device, precision)


def load_embedder(
    folder: str | Path, device: str | torch.device = "auto", precision: str | None = None
) -> Predictor:
    """Opens the backbone of any model folder for vectors of texts, whatever its head is.

    The vectors of a bi-encoder, or of a published sentence model, are alike where texts are; those
    of other models are so only roughly.

    Args:
        folder, precision: as of `load`.

    Returns:
        What has `embed`; as `load` gives it for a bi-encoder.

    Raises:
        InputError: no model there, one that was published with another vector than the mean, or a
            precision that is unknown or not for this device.
    """
    path = open_model_folder(str(folder))
    run = run_of(path)
    config = BertConfig.from_pretrained(path)
    task = _task_of(run, config, path)
    similarity = find_task("similarity")
    _check_pooling(path)
    if not (isinstance(task, similarity) and task.settings.mode == "bi-encoder"):
        log_line("vectors", f"{path} is no bi-encoder, so its vectors tell less of what is alike")
        room = min(_room(path, config), run.get("settings", {}).get("max_seq_length") or 512)
        values = {"task": "similarity", "mode": "bi-encoder", "max_seq_length": room}
        task = similarity(FinetuneSettings.from_dict(values))
    return _opened(path, task, run, device, precision)


def run_of(path: Path) -> dict[str, Any]:
    """The run.json of a folder; a folder of others has none."""
    return RunFolder(path).read_run() if (path / "run.json").is_file() else {}


def _room(path: Path, config: BertConfig) -> int:
    """Tokens a text where no run of the task says it; a published sentence model names them."""
    file = path / "sentence_bert_config.json"
    found = read_json(file, "").get("max_seq_length") if file.is_file() else None
    own = found if isinstance(found, int) and found > 2 else 512
    return min(512, trained_positions(path, config), own)


def _check_pooling(path: Path) -> None:
    """Refuses a published sentence model whose vectors are not the mean over tokens as it is."""
    more = [part for part in _parts(path) if part not in _PARTS]
    if more:
        raise InputError(
            f"{path} makes vectors with {', '.join(more)} (modules.json); only the mean over "
            f"tokens is built here, so expected a model of {', '.join(_PARTS)}"
        )
    file = path / "1_Pooling" / "config.json"
    found = read_json(file, "") if file.is_file() else {}
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix) for key in found if key.startswith(prefix) and found[key]]
    named = ", ".join(modes) or str(found.get("pooling_mode", "mean"))
    if named not in ("mean", "mean_tokens"):
        raise InputError(
            f"{path} makes vectors by {named} (1_Pooling/config.json); only the mean over tokens "
            f"is built here, so expected a model with mean_tokens"
        )


def _parts(path: Path) -> list[str]:
    """The classes that a published sentence model consists of, as far as it says."""
    file = path / "modules.json"
    text = read_text(file) if file.is_file() else "[]"
    try:
        return [str(part["type"]).rpartition(".")[2] for part in json.loads(text)]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{file} holds no list of parts, each with its type") from None


def _opened(
    path: Path,
    task: Task[Any, Any],
    run: dict[str, Any],
    device: str | torch.device,
    precision: str | None,
) -> Predictor:
    """A model folder as what predicts a task."""
    config = BertConfig.from_pretrained(path)
    model = task.model_class.from_pretrained(path)
    _check_whole(path, model, task, config)
    tokenizer = WordPiece.from_pretrained(path)
    check_vocabulary(tokenizer, config)
    task.restore(path, config, tokenizer)
    runtime = place_for_prediction(model, run, device, precision)
    return task.predictor(model, runtime)


def _check_whole(path: Path, model: Any, task: Task[Any, Any], config: BertConfig) -> None:
    """Refuses a model whose answers would be those of weights that no one trained."""
    new = model.load_report.newly_initialised
    if any(name.startswith(task.head) for name in new):
        head = " or ".join(name.removesuffix(".") for name in task.head)
        raise InputError(
            f"{path} is a {', '.join(config.architectures) or 'model'} without a {head}; "
            f"fine-tune it first: python finetune.py --task {task.name} --model {path}"
        )
    # A head that does not read the pooler does not train it.
    read = {name for name, weight in model.named_parameters() if weight.requires_grad}
    missing = [name for name in new if name in read]
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} of its weights, {missing[0]} first; expected all that "
            f"config.json speaks of ({config.num_hidden_layers} layers)"
        )


def place_for_prediction(
    model: Any, run: dict[str, Any], device: str | torch.device, precision: str | None
) -> Runtime:
    """Brings a model with a `bert` to its device, quantised for "int8"; what it then runs on.

    Args:
        run: the run.json, whose precision is taken where None is given.

    Raises:
        InputError: a device that is not there; a precision that is unknown or not for it.
    """
    if precision not in (None, *PRECISIONS):
        raise InputError(f"precision is {precision!r}; expected {', '.join(PRECISIONS)}")
    precision = precision or run.get("resolved", {}).get("precision", "fp32")
    is_int8 = precision == "int8"
    runtime = start_runtime(device, "auto" if is_int8 else precision, deterministic=None)
    if is_int8:
        if runtime.device.type != "cpu":
            raise InputError(
                f"--precision int8 is for a CPU, this is {runtime.device}; add --device cpu"
            )
        quantise_linears(model.bert.layers)
        if runtime.precision == "bf16":  # a twentieth faster than autocast's casts
            model.bert.to(torch.bfloat16)
    model.to(runtime.device)
    return runtime


def _task_of(run: dict[str, Any], config: BertConfig, path: Path) -> Task[Any, Any]:
    """The task that a run was of, with its settings; else a family with the model's head."""
    known = {field.name for field in dataclasses.fields(FinetuneSettings)}
    given = {k: v for k, v in run.get("settings", {}).items() if k in known}
    if given.get("task") in TASKS:
        return TASKS[given["task"]](FinetuneSettings.from_dict(given, "run.json"))
    values: dict[str, Any] = {"max_seq_length": _room(path, config)}
    claims = ((family, family.claims(config)) for family in FAMILIES)
    family, own = next(((f, own) for f, own in claims if own is not None), (FAMILIES[0], {}))
    values |= {"task": family.names[-1], **own}
    return family(FinetuneSettings.from_dict(values))
