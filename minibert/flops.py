"""How much arithmetic a training step needs, and how much the machine can do: their ratio is MFU.

Model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B): the floating-point operations
that the step's real tokens need, by the formula of `training_flops`, per second, as a share of
what the machine's matrix products reach. Padding, recomputing and everything that is not a matrix
product count nothing, so an implementation that spends time on them scores lower.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from minibert.config import BertConfig
from minibert.runtime import Runtime

_REPEATS, _AT_ONCE = 5, 20


def training_flops(
    config: BertConfig, lengths: Sequence[int], num_predictions: int = 0, frozen_layers: int = 0
) -> float:
    """Operations of a forward and backward pass over sequences without padding.

        3 * (N * sum over sequences (8 D^2 n + 2 D (F' + F) n + 4 D n^2)
             + 2 D^2 sequences + M * (2 D^2 + 2 D V))

    A product of (a, b) and (b, c) counts 2abc; backward counts twice forward. The terms are query,
    key, value and output; feed-forward, F' being F, or 2 F with gates; attention's two products;
    the pooler; the MLM head at M positions. Embeddings, norms, activations and softmax count
    nothing. A classifier needs the last layer for its first token alone, pretraining for that and
    the masked ones; it is counted whole, so that figures compare, and a share of the peak is one of
    work done, not of products run.

    Args:
        lengths: real tokens n of each sequence.
        num_predictions: M, scored positions over all sequences.
        frozen_layers: of the lowest ones, which have no backward pass.
    """
    width, inner = config.hidden_size, config.intermediate_size
    tokens, squares = sum(lengths), sum(n * n for n in lengths)
    per_layer = (8 * width**2 + 2 * width * (config.up_size + inner)) * tokens
    per_layer += 4 * width * squares
    heads = 2 * width**2 * len(lengths)
    heads += num_predictions * (2 * width**2 + 2 * width * config.vocab_size)
    return 3.0 * (config.num_hidden_layers * per_layer + heads) - 2.0 * frozen_layers * per_layer


def flops_through_frozen(config: BertConfig, lengths: Sequence[int], frozen_layers: int) -> float:
    """Operations of a gradient's way down to the embeddings through layers that do not learn.

    Of a product with a weight one of backward's two, of attention's products both; that is what
    `adversarial.FastGradient` asks for beside the passes of `training_flops`.

        sum over sequences (8 D^2 n + 2 D (F' + F) n + 8 D n^2), of each layer
    """
    width, tokens = config.hidden_size, sum(lengths)
    products = (8 * width**2 + 2 * width * (config.up_size + config.intermediate_size)) * tokens
    return float(frozen_layers * (products + 8 * width * sum(n * n for n in lengths)))


def generation_flops(
    config: BertConfig,
    num_decoder_layers: int,
    target_vocab_size: int,
    lengths: Sequence[int],
    target_lengths: Sequence[int],
    frozen_layers: int = 0,
) -> float:
    """Operations of a forward and backward pass of `BertForConditionalGeneration`.

    To the encoder's, its pooler left out, come for each source of n and target of m tokens

        3 * (N' * (12 D^2 m + 4 D^2 n + 2 D m (m + 1) + 4 D m n + 2 D (F' + F) m) + 2 D V' m)

    of N' decoder layers: projections of self- and cross-attention, keys and values of the source,
    causal attention's two products, cross-attention's, feed-forward, and the scores of V' words.

    Args:
        lengths, target_lengths: real tokens n and m of each pair, the end mark included.
    """
    width, inner = config.hidden_size, config.intermediate_size
    sources, targets = sum(lengths), sum(target_lengths)
    causal = sum(m * (m + 1) for m in target_lengths)
    crossed = sum(m * n for m, n in zip(target_lengths, lengths, strict=True))
    layer = width**2 * (12 * targets + 4 * sources)
    layer += 2 * width * (config.up_size + inner) * targets
    layer += 2 * width * causal + 4 * width * crossed
    decoder = num_decoder_layers * layer + 2 * width * target_vocab_size * targets
    encoder = training_flops(config, lengths, 0, frozen_layers) - 3 * 2 * width**2 * len(lengths)
    return encoder + 3.0 * decoder


def measure_peak_flops(config: BertConfig, num_tokens: int, runtime: Runtime) -> float:
    """Operations a second of the machine's best matrix product of the model's own shapes.

    A tenth of a second for small models, a few seconds for large ones on a CPU.

    Args:
        num_tokens: rows of the products, those of a step.
    """
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    width, inner = config.hidden_size, config.intermediate_size
    best = 0.0
    # A GPU is given many products at once, or its clock would show how long starting one takes.
    at_once = _AT_ONCE if runtime.runs_ahead else 1
    for rows, columns in ((width, config.up_size), (inner, width), (width, 3 * width)):
        x = torch.rand(num_tokens, rows, device=runtime.device).to(dtype)  # zeros are faster
        weight = torch.rand(rows, columns, device=runtime.device).to(dtype)
        for _ in range(_REPEATS):
            runtime.synchronize()
            start = time.perf_counter()
            for _ in range(at_once):
                torch.mm(x, weight)
            runtime.synchronize()
            seconds = (time.perf_counter() - start) / at_once
            best = max(best, 2 * num_tokens * rows * columns / seconds)
    return best
