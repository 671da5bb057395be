"""Attention and dropout, with faster forms where PyTorch's own are slow: on a CPU.

Each equals PyTorch's function of the same name, to rounding or in distribution; figures stand in
`benchmarks/kernels.py`. On other devices, and in compiled code, PyTorch's own are called.

Shapes: B batch, T tokens, H heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    if not (_is_eager_cpu(query) and is_slow and is_square):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_prob)
    return attention_by_products(query, key, value, mask, dropout_prob)


def attention_by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float
) -> Tensor:
    """`attention`, written out; the (T, T) weights of every head are held in memory."""
    batch, heads, length, size = query.shape
    query, key, value = (x.reshape(batch * heads, length, size) for x in (query, key, value))
    bias = query.new_zeros(())
    if mask is not None:
        # The lowest number and not -inf: rows without any key stay finite.
        bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min)
        bias = bias.expand(batch, heads, 1, length).reshape(batch * heads, 1, length)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5)
    weights = dropout(scores.softmax(-1), dropout_prob)
    return torch.bmm(weights, value).view(batch, heads, length, size)


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
    kept = (drawn >= dropped - 32_768).to(x.dtype)
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
