"""A model folder -> a smaller one to give away: matrices as bf16, the log, nothing of the machine.

The weights may also be cut into parts for a way that takes no large files, and are put together
again, checked, when the folder of parts is exported in turn.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from minibert.config import BertConfig
from minibert.convert import PARTS, load_tensors, read_tensors, save_tensors, without_tied
from minibert.errors import InputError
from minibert.files import read_json, write_atomically, write_json
from minibert.model import BertModel
from minibert.model_folders import open_model_folder
from minibert.runs import check_vocabulary
from minibert.tokenizer import WordPiece

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WEIGHTS = "model.safetensors"
_POOLING = "1_Pooling/config.json"
# What a tokenizer or a sentence model may consist of; readers prefer some of them to others.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    *("added_tokens.json", "special_tokens_map.json"),
)
_SENTENCES = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", _POOLING),
)
_LOG = ("run.json", "results.json", "metrics.jsonl")
_OF_PLACES = (
    *("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file"),
)
_OF_CLASSES = ("id2label", "positive_label", "class_weights", "label_separator")
_OF_A_TASK = ("classification.json", "qa.json", "similarity.json", "target_tokenizer.json")


def export(
    folder: str | Path,
    output: str | Path,
    dtype: str = "bf16",
    log: bool = True,
    part_mib: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model's folder anew, with weights of another type and no path of this machine.

    bf16 keeps 8 significant bits: a weight changes by at most 1/256 of itself, and the file is half
    as large. Biases and norms stay float32, and loading casts the rest to it.

    Args:
        folder: what `--model` takes, or a folder of parts, which are put together.
        output: a folder; a model card there is left alone.
        dtype: "bf16" or "fp32".
        log: keep run.json and results.json, with the last part of each absolute path, and
            metrics.jsonl; without run.json `load` knows the task by its head alone.
        part_mib: cut the weights into parts of at most so many MiB, beside parts.json.
        overwrite: whether files of those names may be replaced.

    Returns:
        folder, dtype, parameters, bytes of the weights, largest_change of a weight and
        largest_change_of, its tensor.

    Raises:
        InputError: no model there, an unfinished run, weights that are not finite, or an output
            that exists.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}; expected {' or '.join(DTYPES)}")
    if part_mib is not None and (not isinstance(part_mib, int) or part_mib < 1):
        raise InputError(f"--part-mib is {part_mib!r}, must be a whole number of at least 1")
    path, output = open_model_folder(str(folder)), Path(output)
    _check_finished(path)
    found = _joined(path) if (path / PARTS).is_file() else read_tensors(path)
    tensors = without_tied(found)
    config = BertConfig.from_pretrained(path)
    check_vocabulary(WordPiece.from_pretrained(path), config)
    _check_encoder(BertModel(config), tensors, path)
    beside = _files_beside(path, log)
    stale = _stale(output)
    _check_output(path, output, {*stale, *beside}, overwrite)
    cast = {name: _cast(name, value, DTYPES[dtype]) for name, value in tensors.items()}
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / _WEIGHTS, lambda p: save_tensors(cast, p))
    for name in stale:
        (output / name).unlink(missing_ok=True)
    size = (output / _WEIGHTS).stat().st_size
    write_json(output / "config.json", _published_config(config))
    for name in beside:
        (output / name).parent.mkdir(exist_ok=True)
        _copy(path / name, output / name)
    if part_mib is not None:
        _cut(output, part_mib << 20)
    change, where = _largest_change(tensors, cast)
    return {
        "folder": str(output),
        "dtype": dtype,
        "parameters": sum(value.numel() for value in cast.values()),
        "bytes": size,
        "largest_change": change,
        "largest_change_of": where,
    }


def _check_encoder(model: BertModel, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuses what is no BERT, or lacks a part that every one of them has."""
    new = load_tensors(model, tensors, str(path)).newly_initialised
    missing = [name for name in new if not name.startswith("pooler.")]
    if missing:
        raise InputError(f"{path} lacks {len(missing)} weights of its encoder, {missing[0]} first")


def _check_finished(folder: Path) -> None:
    """Refuses a run that is still going on, whose weights are not there or not the last."""
    if (folder / "run.json").is_file() and not (folder / "results.json").is_file():
        raise InputError(f"{folder} holds an unfinished run; --resume finishes it")


def _files_beside(folder: Path, log: bool) -> list[str]:
    """The files that belong to the model, weights and config aside; the log's if it is wanted."""
    own = {"vocab.txt", *(path.name for path in folder.glob("*.json"))}
    own -= {"config.json", PARTS, "profile.json", "self-training.json", *_LOG}
    own -= {name for name in own if name.startswith(".") or name.endswith(".index.json")}
    wanted = own | set(_LOG if log else ())
    if "modules.json" in own:  # a sentence model's list of its parts
        wanted.add(_POOLING)
    return sorted(name for name in wanted if (folder / name).is_file())


def _stale(output: Path) -> list[str]:
    """What an earlier model may have left, which would belie the new one."""
    parts = (part.name for part in output.glob(f"{_WEIGHTS}.part-*"))
    return [PARTS, *parts, *_LOG, *_OF_A_TASK, *_TOKENIZER, *_SENTENCES]


def _check_output(folder: Path, output: Path, beside: set[str], overwrite: bool) -> None:
    """Refuses to write over the model itself, or over another one unasked.

    Args:
        beside: names that are written or removed, weights and config aside.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    if output.resolve() == folder.resolve():
        raise InputError(f"--output {output} is the model's own folder; name another")
    there = [n for n in (_WEIGHTS, "config.json", *sorted(beside)) if (output / n).exists()]
    if there and not overwrite:
        raise InputError(f"--output {output} holds {there[0]}; name another or --overwrite")


def _cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in its new type; what is not floating point stays as it is.

    bf16 is for matrices. Biases and norms are under a two-hundredth of the numbers, and a word's
    bias of -10 would be off by 0.03.
    """
    if not value.is_floating_point():
        return value
    cast = value.to(dtype if value.ndim > 1 else torch.float32)
    if not bool(torch.isfinite(cast).all()):
        raise InputError(f"{name} holds numbers that are not finite in {str(dtype)[6:]}")
    return cast


def _largest_change(before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[float, str]:
    """By how much the weight that changed most changed, and the tensor it is of."""
    changes = {
        name: float((value.double() - after[name].double()).abs().max())
        for name, value in before.items()
        if value.numel()
    }
    where = max(changes, key=changes.__getitem__)
    return changes[where], where


def _published_config(config: BertConfig) -> dict[str, Any]:
    """The content of config.json; other libraries are to load in float32, too."""
    content = config.to_dict()
    content.pop("torch_dtype", None)
    return _public(content) | {"dtype": "float32"}


def _public(content: dict[str, Any]) -> dict[str, Any]:
    """An object without what names places; of another absolute path only the last part is kept."""
    kept = {key: value for key, value in content.items() if key not in _OF_PLACES}
    # Below the first level are labels and tokens, which may look like paths.
    return {key: _without_places(v) if isinstance(v, str) else v for key, v in kept.items()}


def _copy(source: Path, target: Path) -> None:
    """Copies a file; of an absolute path in the log's objects only the last part is kept."""
    if source.name in ("run.json", "results.json"):
        write_json(target, _without_places(read_json(source, "")))
        return
    # What a task writes names no place; of its classes one may look so, as /r/films.
    content = {} if source.name in _OF_A_TASK else _object(source)
    if (public := _public(content)) != content:
        write_json(target, public)
    else:
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty where it holds none."""
    try:
        return read_json(path, "") if path.suffix == ".json" else {}
    except InputError:  # a list, such as that of a sentence model's parts
        return {}


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _of_key(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return _without_place(value) if isinstance(value, str) else value


def _of_key(key: str, value: Any) -> Any:
    """A value of the log's objects without places; classes and columns may look so, as /r/films."""
    if key in _OF_CLASSES or key.endswith("_column"):
        return value
    if key != "dataset" or not isinstance(value, str):
        return _without_places(value)
    # Several places in one text, which it has had, are cut before each absolute one.
    return ", ".join(map(_without_place, re.split(r", (?=/|[A-Za-z]:[\\/])", value)))


def _without_place(text: str) -> str:
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return kind(text).name or text
    return text


def _cut(folder: Path, part_bytes: int) -> None:
    """Replaces the weights file by parts and a list of them with its digest."""
    weights = folder / _WEIGHTS
    size = weights.stat().st_size
    count = -(-size // part_bytes)
    names = [f"{_WEIGHTS}.part-{i + 1:02d}-of-{count:02d}" for i in range(count)]
    digest = hashlib.sha256()
    with weights.open("rb") as handle:
        for name in names:
            content = handle.read(part_bytes)
            digest.update(content)
            (folder / name).write_bytes(content)
    write_json(folder / PARTS, {"bytes": size, "sha256": digest.hexdigest(), "parts": names})
    os.unlink(weights)


def _joined(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder of parts.

    Raises:
        InputError: a part is missing, or what they make up is not the file that was cut.
    """
    from safetensors.torch import load

    listed = read_json(folder / PARTS, "")
    content = bytearray()
    for name in listed.get("parts", []):
        part = folder / Path(str(name)).name
        if not part.is_file():
            raise InputError(f"{folder} lacks the part {part.name}; fetch it again")
        content += part.read_bytes()
    if hashlib.sha256(content).hexdigest() != listed.get("sha256"):
        raise InputError(f"the parts in {folder} are damaged or incomplete; fetch them again")
    return load(bytes(content))
