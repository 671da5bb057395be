"""First values that let a small BERT learn from the first minute on.

From the reference's random weights a small model first learns which words are frequent, then which
topics go together, and rests there for millions of tokens: attention has no notion of the word
next door, and with random position embeddings it would have to learn it place by place. The
functions here change no formula and no shape, only the values that training starts from; weights
load everywhere as before. docs/LOG.md has the measurements.

Shapes: D hidden_size, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minibert.heads import BertForPreTraining
from minibert.model import Layer

_OFFSETS = (-1, 1, -2, 2)  # where the first heads of the first layer look
_SLOWEST = 0.01  # radians a position; the fastest wave turns by pi
_POSITION_GAIN = 2.0  # position embeddings against the others, in initializer_range


@torch.no_grad()
def neighbour_attention(model: BertForPreTraining) -> None:
    """Makes the first heads of the first layer look at the words next to each word.

    Positions begin as sines and cosines (Vaswani et al. 2017, section 3.5, with frequencies from
    0.01 to pi). For such positions a shift is a rotation, so a head whose query reads the fastest
    waves and whose key reads the same ones turned by d attends to the token d places on. Starting
    attention from structured weights follows Trockman & Kolter 2023, "Mimetic initialization of
    self-attention layers". All other weights keep their random draw.
    """
    config = model.config
    if not config.num_hidden_layers or config.hidden_size < 4:
        return
    half = config.hidden_size // 2
    steps = torch.linspace(0, math.log(_SLOWEST / math.pi), half)
    waves = math.pi * steps.exp()  # (D/2,) radians a position, fastest first
    table = model.bert.embeddings.position.weight  # (positions, D)
    angles = torch.arange(len(table))[:, None] * waves
    std = _POSITION_GAIN * config.initializer_range
    # The spread of a sine is 1/sqrt(2).
    table[:, :half] = angles.sin() * (std * math.sqrt(2))
    table[:, half : 2 * half] = angles.cos() * (std * math.sqrt(2))
    size = config.hidden_size // config.num_attention_heads
    first: Layer = model.bert.layers[0]  # type: ignore[assignment]
    query, key, _ = first.attention.qkv.weight.chunk(3)  # each (D, D), views
    for head, offset in zip(range(config.num_attention_heads), _OFFSETS, strict=False):
        rows = slice(head * size, (head + 1) * size)
        _look_aside(query[rows], key[rows], waves, offset, half)


def _look_aside(query: Tensor, key: Tensor, waves: Tensor, offset: int, half: int) -> None:
    """Adds to one head's (K, D) query and key what makes it attend `offset` places on."""
    pairs = min(query.shape[0] // 2, half)
    f = torch.arange(pairs)
    turn = waves[:pairs] * offset
    query[f, f] += 1.0  # sin(w i)
    query[pairs + f, half + f] += 1.0  # cos(w i)
    key[f, f] += turn.cos()  # sin(w (j - d)) = sin(w j) cos(w d) - cos(w j) sin(w d)
    key[f, half + f] -= turn.sin()
    key[pairs + f, half + f] += turn.cos()  # cos(w (j - d))
    key[pairs + f, f] += turn.sin()


@torch.no_grad()
def unigram_bias(model: BertForPreTraining, log_prob: Tensor) -> None:
    """Begins the MLM output bias at the log-frequency of each token.

    From a bias of zero the encoder is used to learn the frequencies: a direction common to all
    tokens grows until the layer norms drown what tells them apart, and gradients in the encoder
    fall a thousandfold.

    Args:
        log_prob: (V,) nats, of the training text. Of further ids, which no token of the text has,
            each begins as rare as the rarest: at 0 one alone would be foretold as often as all.
    """
    model.mlm.bias.fill_(float(log_prob.min()))
    model.mlm.bias[: len(log_prob)] = log_prob.float()
