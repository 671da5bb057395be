"""Attention forward and backward on a CPU: PyTorch's fused kernel against two batched products.

    python -m benchmarks.attention

In turns within one run; milliseconds are medians, the ratio is that of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from minibert.model import attend_on_cpu
from minibert.runtime import start_runtime

Kernel = Callable[..., torch.Tensor]
_ROUNDS = 15
_HEADS, _HEAD_SIZE = 4, 64  # of the presets mini (as here) and up


def milliseconds(kernel: Kernel, qkv: torch.Tensor, mask: torch.Tensor) -> float:
    """One forward and backward pass of a kernel."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    start = time.perf_counter()
    out = kernel(query, key, value, mask, 0.0)
    out.backward(torch.ones_like(out))
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    start_runtime("cpu", "auto", deterministic=True)
    print("precision  batch  length  fused ms  products ms  ratio")
    for dtype in (torch.bfloat16, torch.float32):
        for batch, length in ((16, 128), (4, 512)):
            shape = (batch, length, 3, _HEADS, _HEAD_SIZE)
            qkv = torch.randn(shape, dtype=dtype, requires_grad=True)
            mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            mask[..., length - 8 :] = False
            times: dict[Kernel, list[float]] = {
                F.scaled_dot_product_attention: [],
                attend_on_cpu: [],
            }
            for _ in range(_ROUNDS):
                for kernel, found in times.items():
                    found.append(milliseconds(kernel, qkv, mask))
            fused, products = map(statistics.median, times.values())
            name = str(dtype).removeprefix("torch.")
            print(
                f"{name:<9}  {batch:>5}  {length:>6}  {fused:>8.2f}  {products:>11.2f}  "
                f"{fused / products:>5.2f}"
            )


if __name__ == "__main__":
    main()
