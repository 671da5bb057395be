"""AdamW's parameter groups, and the learning rate as a pure function of the budget used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


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
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


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
