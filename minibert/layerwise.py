"""torch.compile of a model's parts: the code of a few layers serves all of them.

Compiling a whole network takes as long as it has layers; its layers are the same code, so a stack
of some is compiled once and called with the weights of each. A stack and not a layer, for what the
host does before a compiled part is run is a millisecond. Between parts it is free to look at a
batch, which whole-model compiling would have to do without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from minibert.heads import MaskedLMHead
from minibert.model import BertModel, Embeddings

_METHODS = ((Embeddings, "forward"), (BertModel, "run_stack"), (MaskedLMHead, "score"))


class Layerwise:
    """A model's forward with its parts compiled while it runs; the model itself stays as it is."""

    def __init__(self, forward: Callable[..., Any], model: nn.Module) -> None:
        """Compiles nothing yet; the first calls do.

        Args:
            forward: what is called, the model or a wrapper of it.
        """
        self.wrapped = forward
        self._compiled = [
            (part, name, torch.compile(getattr(part, name), dynamic=True))
            for part in model.modules()
            for kind, name in _METHODS
            if isinstance(part, kind)
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for part, name, function in self._compiled:
            setattr(part, name, function)
        try:
            return self.wrapped(*args, **kwargs)
        finally:
            for part, name, _ in self._compiled:
                delattr(part, name)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not set yet
            raise AttributeError(name)
        return getattr(self.wrapped, name)  # such as DistributedDataParallel's no_sync
