"""One process or many: what a run needs of the processes that `torchrun` started beside it.

Every process reads the same examples in the same order and takes its share of each step, so the
global batch and its order do not depend on how many there are. Alone, every operation here is the
identity.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from minibert.machine import launched, num_cores, threads_were_asked_for

T = TypeVar("T")
_PATIENCE = datetime.timedelta(hours=24)  # the first process may encode a large corpus meanwhile


@dataclass(frozen=True)
class World:
    """This process's place among those of the run.

    Attributes:
        rank: 0 to size - 1. Rank 0 is the main one: it alone writes files and speaks.
        local_rank: the place on this machine, which decides the GPU.
        local_size: processes of the run on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every size-th item, from its rank on."""
        return items if self.size == 1 else items[self.rank :: self.size]

    def rounds(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """This process's part for work that all do together: each item, and whether it counts.

        Every process has as many, since a sharded model's forward waits for all; one whose part is
        shorter repeats the first item for nothing.
        """
        own = [(item, True) for item in self.share(items)]
        return own if len(own) * self.size >= len(items) else [*own, (items[0], False)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same to the bit in each."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest value of each element over all processes."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def from_main(self, value: T) -> T:
        """What the main process has; the others' own value is dropped."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        found: T = box[0]
        return found

    def map(self, function: Callable[[int], T], count: int) -> list[T]:
        """function(0) to function(count - 1), each computed by one process and had by all.

        All processes must come here with the same function and count.
        """
        own = [function(i) for i in range(self.rank, count, self.size)]
        if self.size == 1:
            return own
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return [found[i % self.size][i // self.size] for i in range(count)]

    def wait(self) -> None:
        """Goes on when every process is here."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others do, and speaks for them."""
        if self.is_main:
            yield
            self.wait()
            return
        self.wait()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield


ALONE = World()


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """The processes of this run: those of `torchrun`, by its environment, or this one alone."""
    place = launched()
    if place.size == 1 or dist.is_initialized():
        _take_cores(1)
        yield ALONE
        return
    _take_cores(place.local_size)
    backend = "gloo"
    # With more processes than GPUs they may still compute on CPUs; --device auto is refused then.
    if torch.cuda.is_available() and place.local_size <= torch.cuda.device_count():
        torch.cuda.set_device(place.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        store=_store_of_this_attempt(),
        rank=place.rank,
        world_size=place.size,
        timeout=_PATIENCE,
    )
    try:
        yield World(*place)
        dist.barrier()  # nobody leaves while the main process still writes
    finally:
        dist.destroy_process_group()


def _take_cores(num_processes: int) -> None:
    """Gives this process its share of the machine's cores as threads.

    A set OMP_NUM_THREADS stays; alone, so does PyTorch's own choice, which is a thread a core,
    unless a cgroup grants less.
    """
    share = max(1, num_cores() // num_processes)
    if threads_were_asked_for() or (num_processes == 1 and share >= torch.get_num_threads()):
        return
    torch.set_num_threads(share)


def _store_of_this_attempt() -> dist.Store | None:
    """Where processes find each other; None for PyTorch's own choice.

    torchrun keeps one store through its restarts, and with gloo the processes of an attempt would
    look for the dead ones of the attempt before. On one machine all know which attempt it is; on
    several TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has torchrun make a new store each time.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False)
    return dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
