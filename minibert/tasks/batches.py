"""Features in batches of similar length: for training steps, and for inference.

In: what a task made of its examples. Out: steps for the loop, or one output per feature.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minibert.losses import IGNORE_INDEX
from minibert.runtime import Runtime
from minibert.train import Batch, StepData, parted
from minibert.world import ALONE, World

T = TypeVar("T")
_POOL_BATCHES = 50  # batches whose features are sorted by length together


class Feature(NamedTuple):
    """One input of the model: an example, a window of it, or a pair with its texts exchanged.

    inputs: batch key -> (T,) ids, `input_ids` always. labels: batch key -> (T,) array or number;
    empty where nothing is known. origin: what decoding must know of it, such as where it begins.
    parts: tokens of each sequence where the ids are of several, one after the other.
    """

    inputs: dict[str, np.ndarray]
    labels: dict[str, Any]
    origin: Any = None
    parts: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence that the model reads."""
        return self.parts or (self.length,)

    @property
    def length(self) -> int:
        """T, its tokens."""
        return len(self.inputs["input_ids"])

    @property
    def size(self) -> int:
        """All its numbers, labels included."""
        return sum(np.size(part) for part in (*self.inputs.values(), *self.labels.values()))


def pad(features: Sequence[Feature], pad_id: int) -> dict[str, Tensor]:
    """A batch as long as its longest feature; attention_mask is added.

    Returns:
        (B, T) int64 for sequences, where input_ids are padded with `pad_id`, labels with
        IGNORE_INDEX, others with 0; (B,) for labels that are numbers, as int64 or float32.
    """
    first = features[0]
    batch = {}
    for name in first.inputs:
        filler = pad_id if name == "input_ids" else 0
        batch[name] = _padded([f.inputs[name] for f in features], filler)
    lengths = torch.tensor([f.length for f in features])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    batch["attention_mask"] = mask.to(torch.int64)
    for name, value in first.labels.items():
        values = [f.labels[name] for f in features]
        if isinstance(value, np.ndarray):
            batch[name] = _padded(values, IGNORE_INDEX)
        else:
            kind = torch.float32 if isinstance(value, float) else torch.int64
            batch[name] = torch.tensor(values, dtype=kind)
    return batch


def _padded(rows: Sequence[np.ndarray], filler: int) -> Tensor:
    """(T,) arrays of any T -> (B, longest T), of the first one's type."""
    kind = np.float32 if rows[0].dtype.kind == "f" else np.int64
    filled = np.full((len(rows), max(map(len, rows))), filler, kind)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return torch.from_numpy(filled)


_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that the backbone takes."""
    return {name: batch[name] for name in _INPUTS if name in batch}


class TaskData:
    """Optimiser steps over features; batches hold features of similar length.

    Of several processes each takes its share of every batch.

    The order of an epoch is a pure function of the seed and the epoch.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        collate: Callable[[Sequence[Feature]], dict[str, Tensor]],
        count: Callable[[Sequence[Feature]], dict[str, int]],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self.features, self.collate, self.count = features, collate, count
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.world = world
        self.epoch = self.batch = 0
        self._order: list[np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.features) // self.batch_size)

    @property
    def epochs_done(self) -> float:
        return self.epoch + self.batch / self.steps_per_epoch

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def seek(self, state: dict[str, int]) -> None:
        self.epoch, self.batch, self._order = state["epoch"], state["batch"], None

    def order(self) -> list[np.ndarray]:
        """The epoch's batches as arrays of feature numbers.

        Features are shuffled, sorted by length within pools of 50 batches, cut into batches, and
        the batches are shuffled again.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.features))
        lengths = np.array([f.length for f in self.features])
        pool = _POOL_BATCHES * self.batch_size
        pools = [shuffled[i : i + pool] for i in range(0, len(shuffled), pool)]
        flat_order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
        size = self.batch_size
        batches = [flat_order[i : i + size] for i in range(0, len(flat_order), size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def largest(self, size: int) -> dict[str, Tensor]:
        """A batch of `size` times the largest feature, for trying what fits into memory."""
        return self.collate([max(self.features, key=lambda f: f.size)] * size)

    def take(self) -> StepData:
        """The next batch, in micro-batches."""
        if self._order is None:
            self._order = self.order()
        chosen = [self.features[i] for i in self._order[self.batch]]
        own = chosen[self.world.rank :: self.world.size]
        largest = -(-len(chosen) // self.world.size)
        parts, fillers = parted(own, self.micro_batch_size, largest, chosen[0])
        micro = [self.collate(part) for part in parts]
        self.batch += 1
        if self.batch == self.steps_per_epoch:
            self.epoch, self.batch, self._order = self.epoch + 1, 0, None
        real = micro[: len(micro) - fillers]
        num_slots = sum(batch["input_ids"].numel() for batch in real)
        # A step of features without any label adds nothing; its mean is 0, not 0 / 0.
        counts = {name: max(1, count) for name, count in self.count(chosen).items()}
        lengths = [length for f in chosen for length in f.lengths]
        return StepData(micro, counts, lengths, num_slots, fillers)


def flat(parts: Sequence[Sequence[T]]) -> list[T]:
    """The features of all examples, one after the other."""
    return [item for part in parts for item in part]


def per_example(outputs: Sequence[T], features: Sequence[Sequence[Feature]]) -> list[list[T]]:
    """Outputs of `flat` features, parted again as the features of each example are."""
    found, start = [], 0
    for part in features:
        found.append(list(outputs[start : start + len(part)]))
        start += len(part)
    return found


class _Infers(Protocol):
    """The part of a task that inference needs."""

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]: ...

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[Any]: ...


@torch.no_grad()
def infer(
    task: _Infers, model: Any, features: Sequence[Feature], batch_size: int, runtime: Runtime
) -> list[Any]:
    """What the task makes of each feature, in the order given; long ones are batched together.

    The model should be in eval mode. Every process computes its share and returns the whole.
    """
    order = np.argsort([f.length for f in features], kind="stable")
    starts = range(0, len(order), batch_size)
    found: dict[int, list[Any]] = {}
    quiet = None if runtime.world.is_main else True
    rounds = runtime.world.rounds(starts)
    # Shown where it takes long; a short evaluation leaves the training's own bar alone.
    bar = tqdm(rounds, desc="scoring", unit="batch", disable=quiet, leave=False, delay=5)
    for start, counts in bar:
        batch = task.collate([features[i] for i in order[start : start + batch_size]])
        with runtime.autocast():
            outputs = task.outputs(model, runtime.place(batch))
        if counts:
            found[start // batch_size] = outputs
    whole = flat(runtime.world.map(found.__getitem__, len(starts)))
    places = np.argsort(order, kind="stable")  # where each feature stands in that order
    return [whole[i] for i in places]
