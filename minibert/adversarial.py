"""Adversarial training of a fine-tuned model by the fast gradient method.

    embeddings -> loss -> its gradient at the embeddings -> a step up that gradient -> loss again

Each micro-batch is passed twice, and the loss is the mean of both: as it is, and with the
embeddings of every sequence moved to where the loss is larger, as far as epsilon allows (Miyato
et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification", equation 5;
Goodfellow et al. 2015). A model that answers alike all around its examples overfits later.

Shapes: R tokens of a batch in one row, B sequences, D hidden_size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minibert.model import BertModel
from minibert.train import Passes

_LEAST_NORM = 1e-20  # of a gradient; its square is still a number


class FastGradient:
    """Moves the embeddings of a model, in every second of its passes.

    It stands in the model as `BertModel.perturbation` and does nothing unless one of `passes` is
    open. What a sequence is moved by does not depend on the others: batches may be split anywhere.
    """

    def __init__(self, model: nn.Module, epsilon: float) -> None:
        """Takes its place in the encoders of a model.

        Args:
            epsilon: L2 norm of what is added to the embeddings of a sequence, all its tokens
                together. They come from a LayerNorm, so that those of T tokens have themselves a
                norm of about sqrt(T D).
        """
        self.epsilon = epsilon
        self._seen: list[tuple[Tensor, Tensor, int]] = []  # of each call of an encoder in a pass
        self._moves: list[Tensor] | None = None  # of the pass that is open
        self._is_watching = False
        for part in model.modules():
            if isinstance(part, BertModel):
                part.perturbation = self

    @property
    def passes(self) -> Passes:
        """Those of a micro-batch, in the order in which they are to be opened."""
        return {"": self._watched, "adversarial_": self._moved}

    @torch.compiler.disable
    def __call__(self, x: Tensor, sequences: Tensor, count: int) -> Tensor:
        """The embeddings of a call: noted, moved, or as they are.

        Args:
            x: (R, D). sequences: (R,), which of the batch each row is of. count: B.

        Returns:
            (R, D).
        """
        if self._is_watching:
            if not x.requires_grad:  # frozen
                x = x.detach().requires_grad_()
            x.retain_grad()
            self._seen.append((x, sequences, count))
        elif self._moves is not None:
            x = x + self._moves.pop(0)
        return x

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._seen, self._is_watching = [], True
        try:
            yield
        finally:
            self._is_watching = False

    @contextlib.contextmanager
    def _moved(self) -> Iterator[None]:
        self._moves = [self._move(*seen) for seen in self._seen]
        self._seen = []
        try:
            yield
        finally:
            self._moves = None

    def _move(self, x: Tensor, sequences: Tensor, count: int) -> Tensor:
        """(R, D): up the gradient, epsilon long for each sequence; 0 where there is none."""
        if x.grad is None:  # nothing of this call was in the loss
            return torch.zeros_like(x)
        gradient = x.grad.float()
        squares = gradient.new_zeros(count).index_add(0, sequences, gradient.square().sum(-1))
        scale = self.epsilon / squares.sqrt().clamp_min(_LEAST_NORM)
        return (gradient * scale[sequences, None]).to(x.dtype)
