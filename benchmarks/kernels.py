"""Attention and dropout on a CPU: PyTorch's own against ours, in turns within one run.

    python -m benchmarks.kernels

Forward and backward; milliseconds are medians, the ratio is that of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minibert.kernels import attention_by_products, dropout
from minibert.runtime import start_runtime

_ROUNDS = 15
_HEADS, _HEAD_SIZE = 4, 64  # of the presets mini and (twice the heads) small
_DROPOUT = 0.1


def milliseconds(kernel: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """One forward and backward pass."""
    start = time.perf_counter()
    out = kernel(*inputs)
    out.backward(torch.ones_like(out))
    return 1e3 * (time.perf_counter() - start)


def compare(
    name: str, theirs: Callable[..., Tensor], ours: Callable[..., Tensor], *x: Tensor
) -> None:
    """Prints one row."""
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for kernel, found in zip((theirs, ours), times, strict=True):
            found.append(milliseconds(kernel, [part.detach().requires_grad_() for part in x]))
    first, second = map(statistics.median, times)
    print(f"{name:<32}  {first:>9.2f}  {second:>6.2f}  {first / second:>5.2f}")


def main() -> None:
    start_runtime("cpu", "auto", deterministic=True)
    print(f"{'':<32}  torch, ms    ours  ratio")
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for batch, length in ((16, 128), (4, 512)):
            qkv = torch.randn(3, batch, _HEADS, length, _HEAD_SIZE, dtype=dtype)
            mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            mask[..., length - 8 :] = False
            for prob in (0.0, _DROPOUT):
                compare(
                    f"attention {kind} {batch}x{length} p={prob}",
                    partial(F.scaled_dot_product_attention, attn_mask=mask, dropout_p=prob),
                    partial(attention_by_products, mask=mask, dropout_prob=prob),
                    *qkv,
                )
        hidden = torch.randn(2048, 1024, dtype=dtype)
        compare(
            f"dropout {kind} 2048x1024 p={_DROPOUT}",
            partial(F.dropout, p=_DROPOUT),
            partial(dropout, prob=_DROPOUT),
            hidden,
        )


if __name__ == "__main__":
    main()
