"""What a pretraining run needs, told before it begins: memory, disk, arithmetic and time.

Memory of a step, in bytes, for P parameters, N layers, width D, H heads, sequences of n tokens,
M scored positions and V token ids:

    weights 4 P + gradients 4 P + AdamW's two moments 8 P, parted by FSDP, + activations
    (Muon's matrices have one moment)

    activations = 1.4 held + decoder's scores: 4 bytes each in fp32, 2 with bf16 products
    held = layer D ((N - 1) sum n + R) + N score H sum n^2 + outer D sum n + word V D
           + 2 P where products are in bf16: copies of the weights, and the decoder's gradient

R is what the last layer computes: where words are scored M and the first token of each sequence,
else taken to be all. Of the other tokens it keeps their keys and values, which are in `outer`.

What is held is what autograd keeps for the backward pass; its factors were counted on a CPU
(`python -m benchmarks.scaling --count`) with an inner width F of 4 D. Another one, or gates, add
2 (F' - 4 D) numbers a token, F' being F, or 2 F with gates. Of the decoder's M V scores at most
2^24 are there at a time, 2^27 on a GPU and there in fp32 as well (`kernels.linear_cross_entropy`).
1.4 is what the process was measured to take of that: the backward pass has tensors of its own, and
there are gaps between freed ones. Padding is not computed, so n counts real tokens.

To a model that writes texts, with N' decoder layers, V' target ids and m tokens to be written for n
to be read, comes

    held' = N' (target D sum m + source D sum n + score H sum (m^2 + m n))
            + outer D sum m + word V' D

and its scores are sum m times V', as those of words are M times V.

Of text the tokens, the store and the time that encoding takes are told from its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minibert.config import BertConfig
from minibert.decoder_config import DecoderConfig
from minibert.kernels import SCORES_HELD

# Of English and a vocabulary of 30,522: python -m benchmarks --only corpus, in docs/benchmarks
TOKENS_PER_BYTE = 0.212
STORED_BYTES_PER_TOKEN = 2.37  # 2 for the id, 8 for each sentence and document
ENCODED_MB_PER_CORE_SECOND = 3.9
READER_MB_PER_SECOND = 90.0  # one process reads and writes for all
# Tokens in the sequences of a pass for each of the text, by objective; counted by the example
# builder on 6 MB of Wikipedia at 128 tokens a sequence. Half of all second segments are of other
# documents, and the sentences that they stand for come again; `sop` drops what is too long.
PASS_TOKENS = {"nsp": 1.28, "sop": 0.92, "none": 1.02}

MOMENTS = 2  # of AdamW, float32 like weights and gradients
_COUNTED_UNITS = 8  # F before and after the activation where F = 4 D, as `HELD` was counted


class Held(NamedTuple):
    """Bytes that a forward pass keeps for the backward one: the factors of the formula above."""

    layer: float
    score: float
    outer: float
    word: float


# By precision, and whether there is dropout.
HELD = {
    ("fp32", True): Held(72, 12, 24, 4),
    ("fp32", False): Held(64, 0, 24, 4),
    ("bf16", True): Held(40, 6, 16, 0),
    ("bf16", False): Held(36, 2, 12, 0),
}


class HeldByDecoder(NamedTuple):
    """The same of a decoder: the factors of the second formula."""

    target: float
    source: float
    score: float
    outer: float
    word: float


HELD_BY_DECODER = {
    ("fp32", True): HeldByDecoder(92, 8, 12, 12, 4),
    ("fp32", False): HeldByDecoder(80, 8, 4, 8, 4),
    ("bf16", True): HeldByDecoder(52, 6, 6, 10, 0),
    ("bf16", False): HeldByDecoder(46, 6, 2, 6, 0),
}
_SCORE_BYTES = {"fp32": 4, "bf16": 2}
_WORKING = 1.4
_CHECKPOINTS = 3  # at most at a time


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, on each device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it; libraries and the device's own context come on top."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            "activations": self.activations,
        }
        told = " + ".join(f"{name} {told_bytes(size)}" for name, size in parts.items())
        return f"{told} = {told_bytes(self.total)}"


def num_parameters(config: BertConfig, decoder: DecoderConfig | None = None) -> int:
    """Weights of `BertForPreTraining`; the decoder is the word embedding.

    With a decoder those of `BertForConditionalGeneration`, the pooler included.
    """
    width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    norm = 2 * width
    rows = vocabulary + config.max_position_embeddings + config.type_vocab_size
    up = config.up_size
    layer = 4 * (width**2 + width) + width * (up + inner) + up + width + 2 * norm
    last = norm if config.norm == "pre" else 0
    pooler = width**2 + width
    encoder = rows * width + norm + config.num_hidden_layers * layer + last + pooler
    if decoder is None:
        return encoder + pooler + norm + vocabulary + 2 * width + 2  # heads of words, of pairs
    vocabulary = decoder.target_vocab_size
    rows = vocabulary + decoder.max_target_positions
    layer += 4 * pooler + norm  # cross-attention
    return encoder + rows * width + norm + decoder.num_decoder_layers * layer + last + vocabulary


def held_bytes(
    config: BertConfig,
    lengths: Sequence[int],
    num_predictions: int,
    precision: str,
    parameters: int | None = None,
    fused_attention: bool = False,
    target_lengths: Sequence[int] = (),
) -> float:
    """Bytes that one forward pass keeps for the backward one; arguments as in `step_memory`."""
    dropout = max(config.hidden_dropout_prob, config.attention_probs_dropout_prob)
    held = HELD[precision, dropout > 0]
    each = 2 if precision == "bf16" else 4
    # Units before and after the activation, with gates twice as many of both.
    inner = 2 * config.up_size - _COUNTED_UNITS * config.hidden_size
    tokens, squares = sum(lengths), sum(n * n for n in lengths)
    scores = 0 if fused_attention else held.score * config.num_attention_heads * squares
    layer = held.layer * config.hidden_size + each * inner
    last = num_predictions + len(lengths) if num_predictions else tokens
    found = layer * ((config.num_hidden_layers - 1) * tokens + last)
    found += config.num_hidden_layers * scores
    found += held.outer * config.hidden_size * tokens
    if num_predictions:
        found += held.word * config.vocab_size * config.hidden_size
    if target_lengths:
        found += _held_by_decoder(config, lengths, target_lengths, precision, fused_attention)
    if precision == "bf16":
        found += 2 * (num_parameters(config) if parameters is None else parameters)
    return found


def _held_by_decoder(
    config: BertConfig,
    lengths: Sequence[int],
    target_lengths: Sequence[int],
    precision: str,
    fused_attention: bool,
) -> float:
    decoder, width = DecoderConfig.of(config), config.hidden_size
    dropout = max(config.hidden_dropout_prob, config.attention_probs_dropout_prob)
    held = HELD_BY_DECODER[precision, dropout > 0]
    inner = (2 * config.up_size - _COUNTED_UNITS * width) * (2 if precision == "bf16" else 4)
    targets = sum(target_lengths)
    pairs = sum(m * (m + n) for m, n in zip(target_lengths, lengths, strict=True))
    scores = 0 if fused_attention else held.score * config.num_attention_heads * pairs
    layer = (held.target * width + inner) * targets + held.source * width * sum(lengths) + scores
    outer = held.outer * targets + held.word * decoder.target_vocab_size
    return decoder.num_decoder_layers * layer + width * outer


def step_memory(
    config: BertConfig,
    lengths: Sequence[int],
    num_predictions: int,
    precision: str,
    parameters: int | None = None,
    shards: int = 1,
    fused_attention: bool = False,
    target_lengths: Sequence[int] = (),
    trained: int | None = None,
    moments: float = MOMENTS,
) -> Memory:
    """Memory of an optimiser step on one device, by the formula at the head of this file.

    Args:
        lengths: real tokens of each sequence of one forward pass.
        num_predictions: M, scored positions of one forward pass; 0 without an MLM head.
        parameters: P; that of `num_parameters` when None.
        shards: devices that weights, gradients and moments are parted among.
        fused_attention: as on GPUs: the n^2 weights of attention are not kept.
        target_lengths: m, tokens to be written for each sequence, by the decoder that the config
            carries; none without one.
        trained: those of the parameters that have gradients and moments; None: all.
        moments: of each of these, in the mean.
    """
    decoder = DecoderConfig.of(config) if target_lengths else None
    count = num_parameters(config, decoder) if parameters is None else parameters
    held = held_bytes(
        config, lengths, num_predictions, precision, count, fused_attention, target_lengths
    )
    # Words of the source and of the target are not scored by the same model.
    scores = num_predictions * config.vocab_size
    scores += sum(target_lengths) * decoder.target_vocab_size if decoder else 0
    scores = min(scores, SCORES_HELD * (8 if fused_attention else 1))
    scores *= _SCORE_BYTES[precision] + (4 if fused_attention else 0)
    own, learnt = (4 * n / shards for n in (count, count if trained is None else trained))
    return Memory(own, learnt, moments * learnt, _WORKING * held + scores)


def run_folder_bytes(parameters: int, keeps_best: bool = False, moments: float = MOMENTS) -> int:
    """Disk that a run folder takes while a checkpoint is saved, which is the most that it takes.

    Two checkpoints with moments are kept, and the third is whole before the oldest is dropped. At
    the end there are two, and the final weights.

    Args:
        keeps_best: each checkpoint may name best weights of its own, as in fine-tuning.
        moments: of each parameter, in the mean.
    """
    return round(4 * parameters * _CHECKPOINTS * (1 + moments + keeps_best))


class Encoding(NamedTuple):
    """What encoding a text gives and takes, about."""

    tokens: float
    store_bytes: float
    seconds: float


def encoding(num_bytes: float, cores: int) -> Encoding:
    """Of English text of so many bytes, by the figures at the head of this file."""
    tokens = num_bytes * TOKENS_PER_BYTE
    speed = min(cores * ENCODED_MB_PER_CORE_SECOND, READER_MB_PER_SECOND) * 1e6
    return Encoding(tokens, tokens * STORED_BYTES_PER_TOKEN, num_bytes / speed)


def told_bytes(count: float) -> str:
    """Bytes for people: 312 MB, 1.4 GB, 2.0 TB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.0f} MB"
