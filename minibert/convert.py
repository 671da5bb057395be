"""Published BERT folders in and out, through one explicit table of names.

A model folder in the Hugging Face BERT layout holds `config.json` and `model.safetensors` (or an
old `pytorch_model.bin`). `TABLE` says which published tensors make up each of ours; everything
else here is reading, checking and reporting. Nothing unpickles code: `.bin` files are opened with
`weights_only=True`.

A model that departs from BERT (see `BertConfig`) is stored under our own names behind "minibert.",
so that a reader of the published ones finds none of them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import FULL, model_path, write_atomically, write_json

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

PARTS = "parts.json"  # beside weights that `exporting` has cut

# Ours -> published. Several published tensors are laid one below the other (query, key, value).
# Without a prefix: names of the backbone, which published checkpoints may write below "bert.".
_BACKBONE = {
    "embeddings.word.weight": ["embeddings.word_embeddings.weight"],
    "embeddings.position.weight": ["embeddings.position_embeddings.weight"],
    "embeddings.segment.weight": ["embeddings.token_type_embeddings.weight"],
    "embeddings.norm": ["embeddings.LayerNorm"],
    "pooler.dense": ["pooler.dense"],
}
_LAYER = {
    "attention.qkv": [f"attention.self.{part}" for part in ("query", "key", "value")],
    "attention.output": ["attention.output.dense"],
    "attention_norm": ["attention.output.LayerNorm"],
    "feed_forward.up": ["intermediate.dense"],
    "feed_forward.down": ["output.dense"],
    "feed_forward_norm": ["output.LayerNorm"],
}
_HEADS = {
    "mlm.dense": ["cls.predictions.transform.dense"],
    "mlm.norm": ["cls.predictions.transform.LayerNorm"],
    "mlm.bias": ["cls.predictions.bias"],
    "nsp": ["cls.seq_relationship"],
    "classifier": ["classifier"],
    "qa_outputs": ["qa_outputs"],
}
# Beginnings of names that no published BERT has, stored as they are: the decoder of `seq2seq.py`.
_OWN = ("decoder.",)
_PREFIX = "minibert."  # before the stored names of a model that departs from BERT
# Published tensors of the head for masked words that repeat another of them.
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# Published tensors that repeat another or are no weights; dropped without a word.
_REDUNDANT = ("embeddings.position_ids", "embeddings.token_type_ids", *_TIED)


def name_table(num_layers: int) -> dict[str, list[str]]:
    """Our parameter name -> the published names it is made of, the backbone below "bert."."""
    short: dict[str, list[str]] = {f"bert.{k}": [f"bert.{v[0]}"] for k, v in _BACKBONE.items()}
    for i in range(num_layers):
        for ours, theirs in _LAYER.items():
            short[f"bert.layers.{i}.{ours}"] = [f"bert.encoder.layer.{i}.{t}" for t in theirs]
    short |= _HEADS
    table: dict[str, list[str]] = {}
    for ours, theirs in short.items():
        if ours.endswith((".weight", ".bias")):
            table[ours] = theirs
        else:
            for kind in ("weight", "bias"):
                table[f"{ours}.{kind}"] = [f"{t}.{kind}" for t in theirs]
    return table


@dataclass(frozen=True)
class LoadReport:
    """What a load did not find and did not use.

    newly_initialised: parameters of ours that the folder does not hold, left at their random draw.
    left_out: tensors of the folder that this model has no place for.
    """

    newly_initialised: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        parts = []
        if self.newly_initialised:
            parts.append("newly initialised: " + _shorten(self.newly_initialised))
        if self.left_out:
            parts.append("left out: " + _shorten(self.left_out))
        return "; ".join(parts) or "every tensor was used, none is new"


def _shorten(names: Iterable[str]) -> str:
    """Parameter names without their .weight/.bias tails, each module once, in order."""
    return ", ".join(dict.fromkeys(n.removesuffix(".weight").removesuffix(".bias") for n in names))


def weights_file(folder: Path) -> Path:
    """The file that holds the weights of a model folder.

    Raises:
        InputError: there is none, or there are several, each with a part of the weights.
    """
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    for name in names:
        if (folder / f"{name}.index.json").is_file():
            raise InputError(
                f"{folder} holds its weights in several files, which {name}.index.json lists; "
                f"expected one, as save_pretrained(..., max_shard_size='100GB') of transformers "
                f"writes it"
            )
    if (folder / PARTS).is_file():
        how = f"`minibert export {folder} --output DIR` puts them together"
        raise InputError(f"{folder} holds its weights in parts; {how}")
    raise InputError(f"{folder} holds neither {' nor '.join(names)}")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, under the names they are stored by.

    Raises:
        InputError: no weights file, or one that is in parts, truncated or not a plain tensor file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_file(folder)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise InputError(f"{path} is damaged or truncated ({error}); fetch it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise a dozen kinds for a damaged file
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be opened as plain weights ({first})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected tensors by name")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file; a full disk is an OSError whoever notices it.

    Tensors that share memory, as tied ones do, are each written whole.

    Raises:
        OSError: the disk is full (one of `FULL`), or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(_apart(plain), path, metadata={"format": "pt"})
    except SafetensorError as error:
        full = (code for code in FULL if f"os error {code}" in str(error))
        code = next(full, errno.EIO)
        raise OSError(code, str(error), str(path)) from None
    mask = os.umask(0)  # asking sets it
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # the library makes files that only their owner can read


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, those copied that reach into another's memory: the format forbids it."""
    out, end = dict(tensors), 0
    for name, value in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if value.data_ptr() < end:
            out[name] = value.clone()
        end = max(end, value.data_ptr() + value.nbytes)
    return out


def _canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names brought to one form: "bert." on the backbone, LayerNorm weight/bias."""
    out = {}
    for name, value in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = "bert." + name
        out[name] = value
    return out


def without_tied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A folder's tensors but for those of a decoder that repeat what it is tied to."""
    found = _canonical(tensors)
    pairs = [(a, b) for a, b in _TIED.items() if a in found and b in found]
    repeated = {a for a, b in pairs if found[a].equal(found[b])}
    return {name: value for name, value in tensors.items() if name not in repeated}


def to_ours(tensors: Mapping[str, Tensor], num_layers: int) -> tuple[dict[str, Tensor], list[str]]:
    """Published tensors -> ours (backbone below "bert."), and the published names not used.

    Names of our own, such as a decoder's, stay as they are.
    """
    published = _canonical(tensors)
    ours = {name: published.pop(name) for name in list(published) if name.startswith(_OWN)}
    for name, parts in name_table(num_layers).items():
        if all(part in published for part in parts):
            found = [published.pop(part) for part in parts]
            ours[name] = found[0] if len(found) == 1 else _stack(parts, found)
    # An MLM bias may be stored only as the decoder's.
    if "mlm.bias" not in ours and "cls.predictions.decoder.bias" in published:
        ours["mlm.bias"] = published["cls.predictions.decoder.bias"]
    left = [n for n in published if not n.removeprefix("bert.").startswith(_REDUNDANT)]
    tied = {"weight": "bert.embeddings.word.weight", "bias": "mlm.bias"}
    for kind, name in tied.items():
        decoder, own = f"cls.predictions.decoder.{kind}", ours.get(name)
        if decoder in published and own is not None and not published[decoder].equal(own):
            left.append(decoder)  # not tied there; here it always is
    return ours, left


def _stack(names: list[str], parts: list[Tensor]) -> Tensor:
    """Query, key and value below each other.

    Raises:
        InputError: they differ in shape; each is named.
    """
    if len({part.shape for part in parts}) > 1 or not parts[0].ndim:
        shapes = ", ".join(f"{n} {tuple(p.shape)}" for n, p in zip(names, parts, strict=True))
        raise InputError(f"tensors that belong together differ in shape: {shapes}")
    return torch.cat(parts)


def to_published(ours: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Our tensors (backbone below "bert.") -> published names; query, key, value parted again."""
    table = name_table(num_layers)
    out = {}
    for name, value in ours.items():
        parts = [name] if name.startswith(_OWN) else table[name]
        for part, piece in zip(parts, value.chunk(len(parts)), strict=True):
            out[part] = piece.contiguous()
    return out


class PretrainedMixin:
    """`from_pretrained` and `save_pretrained` for a module that has a `config`."""

    config: BertConfig
    load_report: LoadReport
    published_name: ClassVar[str | None] = None  # in config.json, where it is not the class's own

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        config: BertConfig | None = None,
        left_out: tuple[str, ...] = (),
    ) -> Self:
        """Loads a folder in the Hugging Face BERT layout (the weights are cast to float32).

        What the folder lacks keeps its random draw; what it has in excess is left out; both are
        logged and kept in `model.load_report`.

        Args:
            folder: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, or
                the name of a bundled model.
            config: replaces the folder's own, for example to name other classes.
            left_out: beginnings of stored names that are not wanted, such as "classifier.".

        Raises:
            InputError: missing files, damaged weights, wrong shapes, or no tensor of this model.
        """
        folder = model_path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected one with config.json and weights")
        config = config or BertConfig.from_pretrained(folder)
        model = cls(config)  # type: ignore[call-arg]
        tensors = read_tensors(folder)
        unwanted = tuple(sorted(k for k in tensors if k.removeprefix(_PREFIX).startswith(left_out)))
        wanted = {k: v for k, v in tensors.items() if k not in unwanted}
        report = load_tensors(model, wanted, str(folder))  # type: ignore[arg-type]
        model.load_report = LoadReport(report.newly_initialised, report.left_out + unwanted)
        model.eval()  # type: ignore[attr-defined]
        if model.load_report.newly_initialised or model.load_report.left_out:
            log.info("%s from %s: %s", cls.__name__, folder, model.load_report)
        return model

    def save_pretrained(
        self, folder: str | Path, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Writes `config.json` and `model.safetensors`, each whole or not at all.

        Args:
            weights: written instead of the model's own, by our names: those of a sharded model,
                put together.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        extra = {k: v for k, v in self.config.extra.items() if k not in ("dtype", "torch_dtype")}
        # Sharding puts FSDP before the name.
        name = self.published_name or type(self).__name__.removeprefix("FSDP")
        config = replace(self.config, architectures=(name,), extra=extra)
        tensors = published_tensors(self, weights)  # type: ignore[arg-type]
        write_atomically(folder / "model.safetensors", lambda p: save_tensors(tensors, p))
        write_json(folder / "config.json", config.to_dict())


def _prefix(model: nn.Module) -> str:
    """ "bert." for a bare backbone, whose own names lack it; "" for a model with heads."""
    return "" if hasattr(model, "bert") else "bert."


def published_tensors(
    model: nn.Module, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The model's tensors on the CPU, under published names; a bare backbone has no prefix.

    Of a model that departs from BERT, under the names that stand for no published one.

    Args:
        weights: taken instead of the model's own, by our names.
    """
    prefix = _prefix(model)
    given = model.state_dict() if weights is None else weights
    ours = {prefix + k: v.detach().cpu() for k, v in given.items()}
    config: BertConfig = model.config  # type: ignore[assignment]
    if not config.is_plain:
        return {_PREFIX + k: v for k, v in ours.items()}
    published = to_published(ours, config.num_hidden_layers)
    return {k.removeprefix(prefix): v for k, v in published.items()}


def _found(
    tensors: Mapping[str, Tensor], config: BertConfig
) -> tuple[dict[str, Tensor], list[str], dict[str, list[str]]]:
    """Stored tensors by our names, stored names not used, and which names each is stored by."""
    if config.is_plain:
        ours, left = to_ours(tensors, config.num_hidden_layers)
        names = {name: [name] for name in ours} | name_table(config.num_hidden_layers)
    else:
        ours = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
        left = [name for name in tensors if not name.startswith(_PREFIX)]
        names = {name: [_PREFIX + name] for name in ours}
    return ours, left, names


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copies a folder's tensors into a model, checking every shape.

    Raises:
        InputError: a tensor of another shape than the config says (both named), or nothing fits.
    """
    prefix = _prefix(model)
    config: BertConfig = model.config  # type: ignore[assignment]
    try:
        found, left, table = _found(tensors, config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    state = {prefix + name: value for name, value in model.state_dict().items()}
    usable = {}
    for name, value in found.items():
        if name not in state:
            left += table[name]
        elif value.shape != state[name].shape:
            raise InputError(
                f"{source}: {name} has shape {tuple(value.shape)}, but config.json asks for "
                f"{tuple(state[name].shape)}"
            )
        else:
            usable[name] = value
    if not usable:
        raise InputError(f"{source} holds no tensor of a BERT (first: {next(iter(tensors), None)})")
    missing = tuple(name.removeprefix(prefix) for name in state if name not in usable)
    own = {name.removeprefix(prefix): value for name, value in usable.items()}
    model.load_state_dict(own, strict=False)  # the names were compared above, one by one
    return LoadReport(missing, tuple(left))
