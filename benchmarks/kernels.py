"""Attention and dropout on a CPU: PyTorch's own against ours, in turns within one run.

    python -m benchmarks --only kernels

Forward and backward; milliseconds are medians, the ratio is that of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minibert.kernels import attention_by_products, dropout
from minibert.runtime import start_runtime

_AT_A_TIME = 2  # in every round
_HEADS, _HEAD_SIZE = 4, 64  # of the presets mini and (twice the heads) small
_DROPOUT = 0.1

WORKS = {"mini": ((16, 128), (4, 512))}  # batch and length


class Case(NamedTuple):
    """The same on both sides."""

    name: str
    theirs: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def cases(shapes: tuple[tuple[int, int], ...]) -> Iterator[Case]:
    """Attention at batch and length as given, and dropout, in both precisions."""
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for batch, length in shapes:
            qkv = torch.randn(3, batch, _HEADS, length, _HEAD_SIZE, dtype=dtype)
            mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            mask[..., length - 8 :] = False
            for prob in (0.0, _DROPOUT):
                yield Case(
                    f"attention {kind} {batch}x{length} p={prob}",
                    partial(F.scaled_dot_product_attention, attn_mask=mask, dropout_p=prob),
                    partial(attention_by_products, mask=mask, dropout_prob=prob),
                    tuple(qkv),
                )
        hidden = torch.randn(2048, 1024, dtype=dtype)
        yield Case(
            f"dropout {kind} 2048x1024 p={_DROPOUT}",
            partial(F.dropout, p=_DROPOUT),
            partial(dropout, prob=_DROPOUT),
            (hidden,),
        )


def _seconds(kernel: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> float:
    """One forward and backward pass."""
    fresh = [part.detach().requires_grad_() for part in inputs]
    start = time.perf_counter()
    out = kernel(*fresh)
    out.backward(torch.ones_like(out))
    return time.perf_counter() - start


def measure(name: str, rounds: int, texts: list[Path]) -> dict[str, Any]:
    """Every case in turns, after one that is not counted; seconds, ready for JSON."""
    start_runtime("cpu", "auto", deterministic=True)
    found = {}
    for case in cases(WORKS[name]):
        times: dict[str, list[float]] = {"torch": [], "minibert": []}
        for _ in range(1 + _AT_A_TIME * rounds):
            times["torch"].append(_seconds(case.theirs, case.inputs))
            times["minibert"].append(_seconds(case.ours, case.inputs))
        found[case.name] = {who: seconds[1:] for who, seconds in times.items()}
    return {"cases": found}


def table(found: dict[str, Any]) -> str:
    """A row for each case."""
    lines = ["| | torch, ms | minibert, ms | ratio |", "|---|---|---|---|"]
    for name, times in found["cases"].items():
        theirs, ours = (1e3 * statistics.median(times[who]) for who in ("torch", "minibert"))
        lines.append(f"| {name} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} |")
    return "\n".join(lines)
