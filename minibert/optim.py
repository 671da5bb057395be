"""The optimisers, and the learning rate as a pure function of the budget used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minibert.runtime import has_bf16

# Newton's iteration for the nearest orthogonal matrix, tuned to be steep at 0 (Jordan et al. 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAM_RMS = 0.2  # of AdamW's steps, about, in units of the learning rate (Liu et al. 2025, 2.2)


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with bias correction, decaying matrices only.

    Loshchilov & Hutter 2019; betas as in google-research/bert, optimization.py. Unlike there the
    moments are bias-corrected, which fine-tuning on few examples needs (Zhang et al. 2021), and
    epsilon is 1e-8: gradients of a small encoder's weights are 1e-5 and less each, where the
    reference's 1e-6 would shorten their steps. Biases and LayerNorm weights, the parameters of
    one dimension, do not decay.
    """
    return _adamw(model.parameters(), learning_rate, weight_decay)


def _adamw(
    parameters: Iterable[Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def build_muon(
    model: nn.Module, learning_rate: float, weight_decay: float, momentum: float = 0.95
) -> Muon:
    """Muon for the matrices of the model's layers, AdamW as above for all other parameters.

    Embeddings, heads and the pooler are not hidden matrices and stay with AdamW. Query, key and
    value are three matrices, though stored as one, and so are gates and values two.
    """
    by_parts: dict[int, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            is_gated = name.endswith(".up") and model.get_submodule(name[:-3]).is_gated
            parts = 3 if name.endswith(".qkv") else 2 if is_gated else 1
            by_parts.setdefault(parts, []).append(module.weight)
    taken = {id(parameter) for parameters in by_parts.values() for parameter in parameters}
    rest = [p for p in model.parameters() if id(p) not in taken]
    matrices = [{"params": found, "parts": parts} for parts, found in by_parts.items()]
    adamw = _adamw(rest, learning_rate, weight_decay)
    return Muon(matrices, adamw, learning_rate, weight_decay, momentum)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, for matrices; AdamW for what is none.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": a matrix steps
    along U V^T where its Nesterov momentum is U S V^T, so every direction moves alike. The step is
    scaled by 0.2 sqrt(max(rows, columns)), as large as AdamW's steps are, so that one learning
    rate suits both (Liu et al. 2025, "Muon is scalable for LLM training", 2.2).

    Args:
        matrices: groups of weights (rows, columns), with "parts": how many matrices of equally
            many rows stand in one weight.
        adamw: steps with it, and has no parameter of these.
    """

    def __init__(
        self,
        matrices: Iterable[dict[str, Any]],
        adamw: torch.optim.AdamW,
        learning_rate: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        defaults = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, defaults)
        self._matrices = list(self.param_groups)
        self._adamw = adamw
        self._adamw.state = self.state
        self.param_groups += self._adamw.param_groups  # the same objects: a rate set here holds

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for shape, alike in self._by_shape().items():  # one at a time, which bounds the memory
            found = [(weight, group) for weight, group in alike if weight.grad is not None]
            if not found:
                continue
            ahead = [self._momentum(weight, group["momentum"]) for weight, group in found]
            steps = orthogonalised(torch.cat([step.view(-1, *shape) for step in ahead]))
            sizes = [group["parts"] for _, group in found]
            scale = _ADAM_RMS * max(shape) ** 0.5
            for (weight, group), part in zip(found, steps.split(sizes), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(part.view_as(weight), alpha=-group["lr"] * scale)
        self._adamw.step()

    @torch.no_grad()
    def rehearse(self) -> None:
        """Does a step's products, which depend on no data, and drops them."""
        for shape, alike in self._by_shape().items():
            orthogonalised(torch.cat([weight.view(-1, *shape) for weight, _ in alike]))

    def _by_shape(self) -> dict[tuple[int, int], list[tuple[Tensor, dict[str, Any]]]]:
        """The weights, each with its group, by the (rows, columns) of the matrices in them."""
        alike: dict[tuple[int, int], list[tuple[Tensor, dict[str, Any]]]] = {}
        for group in self._matrices:
            for weight in group["params"]:
                shape = (weight.shape[0] // group["parts"], weight.shape[1])
                alike.setdefault(shape, []).append((weight, group))
        return alike

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        """The running mean of gradients, looked at one step ahead (Nesterov)."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum"]
        mean.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T: singular values between 0.7 and 1.2 instead of S.

    Five Newton-Schulz iterations in bf16, which is exact enough (Jordan et al. 2024), or in fp32
    where the hardware is not known to have products of bf16.

    Args:
        matrices: (N, rows, columns).
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if has_bf16(x.device) else x.float()
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def warmup_linear_decay(done: float, warmup_ratio: float) -> float:
    """The share of the peak rate: up in a line, then down in a line to 0 where the budget ends.

    Args:
        done: share of the budget used, 0 to 1; a step is judged at its middle.
        warmup_ratio: share of the budget spent climbing.
    """
    if done < warmup_ratio:
        return done / warmup_ratio
    return max(0.0, (1.0 - done) / (1.0 - warmup_ratio))


@dataclass(frozen=True)
class Budget:
    """How long a run lasts; exactly one is set. The schedule ends where the budget ends.

    max_steps: optimiser steps. epochs: passes over the data. seconds: time inside the loop.
    """

    max_steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def done(self, steps: float, epochs: float, seconds: float) -> float:
        """Share of the budget used, 0 to 1 and over."""
        if self.max_steps is not None:
            return steps / self.max_steps
        if self.epochs is not None:
            # Sums of fractions of epochs may end a rounding error below the whole.
            return (epochs + 1e-9) / self.epochs
        assert self.seconds is not None
        return seconds / self.seconds

    def steps(self, step_seconds: float, step_epochs: float) -> float:
        """About how many steps it is, when one takes so long and such a share of an epoch."""
        if self.max_steps is not None:
            return self.max_steps
        if self.epochs is not None:
            return self.epochs / step_epochs
        assert self.seconds is not None
        return self.seconds / step_seconds


def rate_share(
    done: float, warmup_ratio: float, schedule: str = "linear", decay_ratio: float = 0.3
) -> float:
    """The share of the peak rate: up in a line, then down to 0 where the budget ends.

    Args:
        done, warmup_ratio: as in `warmup_linear_decay`.
        schedule: how it falls: "linear"; "cosine", half a wave (Loshchilov & Hutter 2017, section
            3); "constant-then-linear", at the peak and then in a line (Haegele et al. 2024).
        decay_ratio: share of the budget in which a constant rate falls at the end.
    """
    if done < warmup_ratio or schedule == "linear":
        return warmup_linear_decay(done, warmup_ratio)
    if schedule == "cosine":
        fallen = min(1.0, (done - warmup_ratio) / (1.0 - warmup_ratio))
        return (1.0 + math.cos(math.pi * fallen)) / 2
    return min(1.0, max(0.0, 1.0 - done) / decay_ratio)
