"""Attention, dropout and the decoder's cross-entropy, in faster forms than PyTorch's own.

Each equals PyTorch's functions to rounding or in distribution; figures stand in
`benchmarks/kernels.py`. The first two are for a CPU: on other devices, and in compiled code,
PyTorch's own are called.

Shapes: B batch, T tokens, H heads, K head size, R rows, D hidden_size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.losses import IGNORE_INDEX

# Of R x V scores, on a CPU: held in memory; brought to float32 (the nearer cache holds them).
# Elsewhere eight times as many are held and all of these are float32.
SCORES_HELD, _SCORES_FLOAT = 1 << 24, 1 << 20
_WIDTH = 64  # a vocabulary is filled up to a multiple of it


def _is_eager_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) -> (B, H, T, K).

    On a CPU as two batched products in bf16 and with dropout, where PyTorch takes 1.6 to 4 times as
    long.

    Args:
        query, key, value: (B, H, T, K). mask: (B, 1, 1, T), True = attend; None attends to all.
    """
    is_slow = query.dtype == torch.bfloat16 or dropout_prob > 0
    is_square = query.shape == key.shape  # not the one query of a text's first token
    if query.is_cuda and torch.are_deterministic_algorithms_enabled() and query.requires_grad:
        # With a mask or in float32 PyTorch's own would not repeat to the bit.
        return attention_by_products(query, key, value, mask, dropout_prob)
    if not (_is_eager_cpu(query) and is_slow and is_square):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_prob)
    return attention_by_products(query, key, value, mask, dropout_prob)


def attention_by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float
) -> Tensor:
    """`attention`, written out; the (T, T) weights of every head are held in memory."""
    batch, heads, asked, size = query.shape
    length = key.shape[2]
    query, key, value = (x.reshape(batch * heads, -1, size) for x in (query, key, value))
    bias = query.new_zeros(())
    if mask is not None:
        # The lowest number and not -inf: rows without any key stay finite.
        bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min)
        bias = bias.expand(batch, heads, 1, length).reshape(batch * heads, 1, length)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5)
    weights = dropout(scores.softmax(-1), dropout_prob)
    return torch.bmm(weights, value).view(batch, heads, asked, size)


def dropout(x: Tensor, prob: float) -> Tensor:
    """Zeroes elements with a probability, scales the others by 1 / (1 - it).

    On a CPU four elements share a 64-bit random number, 16 bits each: drawing them costs more than
    all else here. The probability is rounded to a multiple of 1/65,536.
    """
    dropped = round(prob * 65_536)
    if not _is_eager_cpu(x) or not 0 < dropped < 65_536:
        return F.dropout(x, prob)
    count = x.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = drawn.view(torch.int16)[:count].view(x.shape)  # uniform from -32,768 to 32,767
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(drawn, dropped - 32_768, out=kept)  # 1 or 0, in a fifth of the time of a conversion
    return x * kept.mul_(65_536 / (65_536 - dropped))


class Dropout(nn.Module):
    """`dropout` in training, nothing in evaluation."""

    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.prob) if self.training and self.prob else x

    def extra_repr(self) -> str:
        return f"prob={self.prob}"


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a linear map's scores, without ever holding the scores of all rows.

    Equals `F.cross_entropy(F.linear(x, weight, bias).float(), labels, reduction="sum")`. Scores are
    computed for some rows at a time, and their gradient at once from their softmax, so that they
    are written once (as in Liger Kernel, Hsu et al. 2024, section 3.2). Products are in autocast's
    dtype, the softmax in float32.

    Args:
        x: (R, D). weight: (V, D). bias: (V,). labels: (R,), IGNORE_INDEX where there is none.

    Returns:
        The summed loss in nats, float32 scalar, and the number of rows whose highest score is the
        label's (the first of equal ones counts).

    Raises:
        IndexError: on a CPU, a label that is no row of the weight, as of cross_entropy itself.
    """
    if labels.is_cpu and not torch.compiler.is_compiling():  # elsewhere a value is waited for
        _check_labels(labels, len(weight))
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    needs_grad = torch.is_grad_enabled()  # which is off inside a function's forward
    loss, hits = _LinearCrossEntropy.apply(x, weight, bias, labels, dtype, needs_grad)
    return loss, hits


def _check_labels(labels: Tensor, words: int) -> None:
    wrong = labels[((labels < 0) | (labels >= words)) & (labels != IGNORE_INDEX)]
    if len(wrong):
        raise IndexError(
            f"a label is {int(wrong[0])}; expected 0 to {words - 1}, or {IGNORE_INDEX} for none"
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        with torch.autocast(x.device.type, enabled=False):
            low_weight, low_bias = _filled_up(weight, bias, dtype)
            rows = max(1, SCORES_HELD * (1 if x.is_cpu else 8) // len(low_weight))
            loss = torch.zeros((), dtype=torch.float32, device=x.device)
            hits = torch.zeros((), dtype=torch.int64, device=x.device)
            grads: list[Tensor] = []
            weight_grad = bias_grad = None
            for part, wanted in zip(x.to(dtype).split(rows), labels.split(rows), strict=True):
                scores = part @ low_weight.t()  # (r, V)
                part_loss, part_hits, of_bias = _cross_entropy_of_scores(scores, low_bias, wanted)
                loss, hits = loss + part_loss, hits + part_hits
                if not needs_grad:
                    continue
                grads.append(scores @ low_weight)
                of_weight = scores.t() @ part
                # Several parts add up in float32.
                weight_grad = of_weight if weight_grad is None else weight_grad.float() + of_weight
                bias_grad = of_bias if bias_grad is None else bias_grad + of_bias
        if needs_grad:
            x_grad = torch.cat(grads) if grads else torch.zeros_like(x)
            size = len(weight)
            weight_grad = torch.zeros_like(weight) if weight_grad is None else weight_grad[:size]
            bias_grad = torch.zeros_like(bias) if bias_grad is None else bias_grad[:size]
            ctx.save_for_backward(x_grad, weight_grad, bias_grad)
            ctx.dtypes = x.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, of_hits: None) -> tuple[Tensor | None, ...]:
        # One element and not a scalar: multiplied and brought to float32 in the same pass.
        scale = of_loss.view(1, 1)
        x_grad, weight_grad, bias_grad = (
            (grad * (scale if grad.ndim == 2 else scale[0])).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return x_grad, weight_grad, bias_grad, None, None, None


def _filled_up(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A decoder's weight in a dtype, its bias in float32, and on a CPU more rows.

    Products with a multiple of `_WIDTH` rows are up to a fifth faster. The added words score -inf,
    so their shares are 0.
    """
    more = -len(weight) % _WIDTH if weight.is_cpu else 0
    if not more:
        return weight.to(dtype), bias.float()
    low_weight = weight.new_empty(len(weight) + more, weight.shape[1], dtype=dtype)
    low_weight[: len(weight)] = weight
    low_weight[len(weight) :] = 0
    return low_weight, F.pad(bias.float(), (0, more), value=-math.inf)


def _cross_entropy_of_scores(
    scores: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(r, V), (V,), (r,) -> summed loss, hits, and the bias's gradient (V,), all in float32.

    The scores become the loss's gradient.
    """
    rows = max(1, _SCORES_FLOAT // scores.shape[1]) if scores.is_cpu else len(scores)
    parts = zip(scores.split(rows), labels.split(rows), strict=True)
    sums = [_replace_by_gradient(part, bias, wanted) for part, wanted in parts]
    losses, hits, of_bias = zip(*sums, strict=True)
    return torch.stack(losses).sum(), torch.stack(hits).sum(), torch.stack(of_bias).sum(0)


def _replace_by_gradient(
    product: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    is_labelled = labels != IGNORE_INDEX
    places = labels.clamp(min=0)[:, None]  # (r, 1)
    scores = product.to(bias.dtype, copy=True).add_(bias)  # float32
    highest = scores.amax(1)
    own = scores.gather(1, places)[:, 0]
    # Only a row whose label scores highest can be a hit, and looking for the first of equal scores
    # is the slowest of all passes.
    is_hit = (own == highest) & is_labelled
    may_ask = scores.is_cpu and not torch.compiler.is_compiling()  # whose shapes had better stay
    if may_ask:
        candidates = is_hit.nonzero()[:, 0]
        hits = (scores[candidates].argmax(1) == labels[candidates]).sum()
    else:
        hits = (is_hit & (scores.argmax(1) == labels)).sum()
    shares = scores.softmax(1)
    # The highest share is at least 1 / V, so its logarithm is safe.
    log_sum = highest - shares.amax(1).log()
    loss = ((log_sum - own) * is_labelled).sum()
    if scores.is_cpu:
        shares.scatter_add_(1, places, -torch.ones_like(places, dtype=shares.dtype))
    else:  # where a compiler makes one pass of it all, and scattering would not repeat to the bit
        words = torch.arange(shares.shape[1], device=shares.device)
        shares = torch.where(words == places, shares - 1, shares)
    if not may_ask or not bool(is_labelled.all()):
        shares.mul_(is_labelled[:, None])
    product.copy_(shares)
    return loss, hits, shares.sum(0)
