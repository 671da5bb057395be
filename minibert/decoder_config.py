"""The shape of a decoder: `DecoderConfig`, kept in `config.json` beside the encoder's numbers.

Importable without torch. A published `config.json` has none of these keys, and readers of the
Hugging Face layout pass over them; `BertConfig` carries them in `extra`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from minibert.config import BertConfig
from minibert.errors import InputError


@dataclass(frozen=True)
class DecoderConfig:
    """What fixes a decoder beyond its encoder's `BertConfig`; it has that one's widths and heads.

    target_vocab_size: V, the words it can write. num_decoder_layers: N. max_target_positions: U,
    tokens that a text it writes has at most, the end mark included. The three ids are those of the
    target tokenizer's padding, begin mark and end mark.

    Raises:
        InputError: naming every field whose value cannot be built, with the accepted values.
    """

    target_vocab_size: int
    num_decoder_layers: int = 2
    max_target_positions: int = 128
    target_pad_token_id: int = 0
    target_bos_token_id: int = 1
    target_eos_token_id: int = 2

    def __post_init__(self) -> None:
        kinds = {f.name: getattr(self, f.name) for f in fields(self)}
        faults = [
            f"{name} is {value!r}, must be a whole number"
            for name, value in kinds.items()
            if not isinstance(value, int) or isinstance(value, bool)
        ]
        if faults:
            raise InputError("; ".join(faults))
        for name in ("target_vocab_size", "num_decoder_layers", "max_target_positions"):
            if kinds[name] < 1:
                faults.append(f"{name} is {kinds[name]}, must be at least 1")
        marks = [name for name in kinds if name.endswith("_token_id")]
        for name in marks:
            if not 0 <= kinds[name] < self.target_vocab_size:
                size = self.target_vocab_size
                faults.append(f"{name} is {kinds[name]}, must be in [0, {size})")
        if len({kinds[name] for name in marks}) < len(marks):
            faults.append(f"{', '.join(marks)} must differ")
        if faults:
            raise InputError("; ".join(faults))

    def added_to(self, config: BertConfig) -> BertConfig:
        """An encoder's config that carries this decoder."""
        return replace(config, extra=config.extra | asdict(self))

    @classmethod
    def of(cls, config: BertConfig) -> DecoderConfig:
        """The decoder that a config carries.

        Raises:
            InputError: it carries none, so the folder is not that of an encoder-decoder.
        """
        found = {f.name: config.extra[f.name] for f in fields(cls) if f.name in config.extra}
        if "target_vocab_size" not in found:
            raise InputError("config.json names no target_vocab_size: this model has no decoder")
        return cls(**found)
