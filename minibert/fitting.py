"""`--micro-batch-size auto`: how many sequences a forward pass may hold.

On a GPU the largest batch is tried, from a process's whole share of a step on, and halved for as
long as memory runs out. A CPU gives no second try, because the system ends what takes too much;
there the need is estimated from what autograd keeps of one and of two sequences.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minibert.errors import InputError
from minibert.estimate import MOMENTS
from minibert.machine import available_memory
from minibert.runs import log_line
from minibert.runtime import Runtime
from minibert.settings import RunSettings
from minibert.train import ONE_PASS, Batch, Objective, Passes

_BACKWARD = 2  # a backward pass needs about as much again as the forward pass kept
_GIB = 1 << 30


class Trial(NamedTuple):
    """What it takes to try a micro-batch.

    forward: what the loop will call, `model` or a wrapper of it. largest: makes the largest batch
    of so many sequences. passes: of each micro-batch; the first is tried, which no other exceeds.
    """

    model: nn.Module
    forward: Callable[..., Any]
    objective: Objective
    largest: Callable[[int], Batch]
    runtime: Runtime
    passes: Passes = ONE_PASS


def micro_batch_size(settings: RunSettings, begun: dict[str, Any] | None, trial: Trial) -> int:
    """Sequences per forward: as set, or what fits; a run that goes on keeps what it began with.

    All processes take the same, which fits each.

    Args:
        begun: the run.json of a run that goes on.

    Raises:
        InputError: with "auto", not even one sequence fits.
    """
    if begun is not None:
        kept: int = begun["resolved"]["micro_batch_size"]
        return kept
    if settings.micro_batch_size != "auto":
        return settings.micro_batch_size or settings.batch_size
    world = trial.runtime.world
    size = share = -(-settings.batch_size // world.size)
    is_cuda = trial.runtime.device.type == "cuda"
    fits = functools.partial(fit_in, trial, share) if is_cuda else _room_for(trial)
    while float(world.largest(torch.tensor(float(not fits(size))))):
        if size == 1:
            raise InputError(
                f"--micro-batch-size auto: not even one sequence of --max-seq-length "
                f"{settings.max_seq_length} fits into memory; make them or the model smaller"
            )
        log_line("micro-batch", f"{size} sequences do not fit into memory; halved")
        size = -(-size // 2)
    log_line("micro-batch", f"{size} sequences per forward of each process (auto)")
    return size


def fit_in(trial: Trial, share: int, size: int) -> bool:
    """Whether a step with the largest micro-batch of so many sequences fits, by trying.

    Nothing is exchanged with other processes. Of the step the update is not made, but what it will
    take is held; where there are several passes or micro-batches, the gradients of those before,
    too.

    Args:
        share: sequences of a process's step. size: of them in a micro-batch.
    """
    parameters = list(trial.model.parameters())
    copies = MOMENTS + (len(trial.passes) > 1 or size < share)
    try:
        kept = [torch.empty_like(p) for p in parameters for _ in range(copies)]
        with _alone(trial.forward):
            _loss(trial, size).backward()
        del kept
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        trial.model.zero_grad(set_to_none=True)
        if trial.runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def _alone(forward: Callable[..., Any]) -> contextlib.AbstractContextManager[object]:
    """Keeps a wrapper of several processes from waiting for the others."""
    return getattr(forward, "no_sync", contextlib.nullcontext)()


def _loss(trial: Trial, size: int) -> Tensor:
    trial.model.train()
    batch = trial.runtime.place(trial.largest(size))
    opened = next(iter(trial.passes.values()))
    with opened(), trial.runtime.autocast():
        terms = trial.objective(trial.forward, batch)
    total = sum(term.loss_sum for term in terms.values())
    assert isinstance(total, Tensor)
    return total


def _room_for(trial: Trial) -> Callable[[int], bool]:
    """An estimate of whether so many sequences fit beside gradients and moments."""
    one, two = kept_bytes(trial, 1), kept_bytes(trial, 2)
    each = two - one
    weights = sum(p.numel() * p.element_size() for p in trial.model.parameters())
    fixed = weights * (1 + MOMENTS) + (one - each) * _BACKWARD
    room = available_memory() // trial.runtime.world.local_size
    log_line(
        "micro-batch",
        f"a sequence needs about {each * _BACKWARD / _GIB:.3f} GiB and the model "
        f"{fixed / _GIB:.2f}, of {room / _GIB:.1f} available to a process",
    )
    return lambda size: fixed + size * each * _BACKWARD <= room


def kept_bytes(trial: Trial, size: int) -> int:
    """What autograd keeps of a forward pass for the backward pass, the parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in trial.model.parameters()}
    kept: dict[int, int] = {}
    with _alone(trial.forward), _seen_by_autograd(kept):
        loss = _loss(trial, size)  # holds all that is counted, so no address comes twice
    del loss
    return sum(count for place, count in kept.items() if place not in own)


@contextlib.contextmanager
def _seen_by_autograd(kept: dict[int, int]) -> Iterator[None]:
    """Notes the address and the bytes of every storage that is kept for a backward pass."""

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield
