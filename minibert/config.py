"""The shape of a BERT: `BertConfig`, the published presets, and `config.json` in both directions.

Importable without torch. Field names are the published ones, so the `config.json` of a released
BERT loads as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from minibert.errors import InputError, did_you_mean
from minibert.files import model_path, read_json

# Values of published keys that change the mathematics into something this package does not have.
_REFUSED = {
    "is_decoder": (True, "this is an encoder; load a checkpoint with is_decoder false"),
    "add_cross_attention": (True, "the encoder has no cross-attention"),
}
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# Fields that no published BERT has, and their values; the first is plain BERT.
DEPARTURES = {"norm": ("post", "pre"), "feed_forward": ("plain", "gated")}
_OWN_TYPE = "minibert"  # model_type of what departs from BERT, which other readers do not know


@dataclass(frozen=True)
class BertConfig:
    """Every number that fixes the network (Devlin et al. 2019, section 3; defaults: BERT-base).

    `extra` holds the keys of a published `config.json` that have no meaning here; they are
    written back unchanged by `to_dict`.

    Two fields depart from BERT. norm: "post" normalises each residual sum; "pre" what each sublayer
    reads, and the last layer's output (Xiong et al. 2020). feed_forward: "plain", or "gated" with
    twice intermediate_size units going in, one half multiplied by the activated other (GEGLU,
    Shazeer 2020). A model with either has model_type "minibert": its weights mean something else,
    so readers of BERT must not take them for one.

    Raises:
        InputError: naming every field whose value cannot be built, with the accepted values.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    classifier_dropout: float | None = None
    norm: str = "post"
    feed_forward: str = "plain"
    architectures: tuple[str, ...] = ()
    id2label: dict[int, str] | None = None
    problem_type: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = self._type_faults()
        if faults:  # the comparisons below need numbers
            raise InputError("; ".join(faults))
        for name in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            if getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.num_hidden_layers < 0:
            faults.append(f"num_hidden_layers is {self.num_hidden_layers}, must be 0 or more")
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            faults.append(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                faults.append(f"{name} is {value}, must be in [0, 1)")
        if not 0 <= self.initializer_range < math.inf:  # which NaN is not, either
            faults.append(f"initializer_range is {self.initializer_range}, must be 0 or more")
        if not 0 < self.layer_norm_eps < math.inf:
            faults.append(f"layer_norm_eps is {self.layer_norm_eps}, must be above 0")
        if not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            faults.append(f"pad_token_id is {self.pad_token_id}, vocab_size is {self.vocab_size}")
        if self.hidden_act not in _ACTIVATIONS:
            faults.append(f"hidden_act is {self.hidden_act!r}, known are {', '.join(_ACTIVATIONS)}")
        names = self.id2label
        if names and not (isinstance(names, dict) and all(isinstance(i, int) for i in names)):
            faults.append(f"id2label is {names!r:.60}, must be names by number: {{0: 'name', ...}}")
        for name, known in DEPARTURES.items():
            if getattr(self, name) not in known:
                faults.append(f"{name} is {getattr(self, name)!r}, known are {', '.join(known)}")
        for key, (bad, why) in _REFUSED.items():
            if self.extra.get(key) == bad:
                faults.append(f"{key} is {bad}: {why}")
        if self.extra.get("position_embedding_type", "absolute") != "absolute":
            kind = self.extra["position_embedding_type"]
            faults.append(f"position_embedding_type is {kind!r}, only 'absolute' is built here")
        if faults:
            raise InputError("; ".join(faults))

    def _type_faults(self) -> list[str]:
        """Fields that JSON gave as something else than the numbers they must be."""
        kinds = {"int": (int,), "float": (int, float), "float | None": (int, float, type(None))}
        return [
            f"{f.name} is {getattr(self, f.name)!r}, must be a number ({f.type})"
            for f in fields(self)
            if f.type in kinds and not isinstance(getattr(self, f.name), kinds[str(f.type)])
        ]

    @property
    def is_plain(self) -> bool:
        """Whether this is BERT as published, whose weights every reader of the layout opens."""
        return all(getattr(self, name) == known[0] for name, known in DEPARTURES.items())

    @property
    def up_size(self) -> int:
        """Columns of the feed-forward's first product: F, with gates 2 F."""
        return self.intermediate_size * (2 if self.feed_forward == "gated" else 1)

    @property
    def num_labels(self) -> int:
        """C, the number of classes of a classification head (2 when none are named)."""
        return len(self.id2label) if self.id2label else 2

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to index; the inverse of `id2label`."""
        return {label: i for i, label in (self.id2label or {}).items()}

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json` in the Hugging Face BERT layout."""
        out = {"model_type": "bert" if self.is_plain else _OWN_TYPE, **self.extra}
        left_out = {"extra", *(DEPARTURES if self.is_plain else ())}
        for f in fields(self):
            if f.name not in left_out and getattr(self, f.name) is not None:
                out[f.name] = getattr(self, f.name)
        out["architectures"] = list(self.architectures)
        if self.id2label:
            out["id2label"] = {str(i): label for i, label in self.id2label.items()}
            out["label2id"] = self.label2id
        return out

    @classmethod
    def from_dict(cls, published: dict[str, Any]) -> BertConfig:
        """Builds a config from the content of a published `config.json`.

        Raises:
            InputError: the model is not a BERT, or asks for mathematics that is not built here.
        """
        kind = published.get("model_type", "bert")
        if kind not in ("bert", _OWN_TYPE):
            raise InputError(f"model_type is {kind!r}; only 'bert' and {_OWN_TYPE!r} can be loaded")
        known = {f.name for f in fields(cls)} - {"extra"}
        if kind == "bert":  # where such a key means nothing
            known -= DEPARTURES.keys()
        values = {k: v for k, v in published.items() if k in known and v is not None}
        values["extra"] = {
            k: v for k, v in published.items() if k not in known | {"model_type", "label2id"}
        }
        values["architectures"] = tuple(values.get("architectures") or ())
        count = values["extra"].pop("num_labels", None)  # would outlive a change of id2label
        try:
            if values.get("id2label"):
                values["id2label"] = {int(i): str(s) for i, s in values["id2label"].items()}
            elif count is not None:
                values["id2label"] = {i: f"LABEL_{i}" for i in range(int(count))}
        except (AttributeError, TypeError, ValueError):
            raise InputError(
                f"id2label {values.get('id2label')!r} or num_labels {count!r} does not name "
                'classes; expected {"0": "name", ...}'
            ) from None
        return cls(**values)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BertConfig:
        """Reads `config.json` of a model folder.

        Raises:
            InputError: the file is missing or is not JSON.
        """
        path = model_path(folder) / "config.json"
        return cls.from_dict(read_json(path, "a model folder holds config.json"))


# Google's published sizes (Turc et al. 2019): layers / hidden; heads = hidden/64, FFN = 4 x hidden.
_SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
PRESETS: dict[str, BertConfig] = {
    name: BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    for name, (layers, hidden) in _SIZES.items()
}


def preset(name: str, **changes: Any) -> BertConfig:
    """A published size by name, with fields changed.

    Raises:
        InputError: unknown name; the nearest one is offered.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return replace(PRESETS[name], **changes)
