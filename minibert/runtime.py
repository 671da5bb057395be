"""What a run stands on: device, precision, threads, memory, determinism."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minibert.errors import InputError
from minibert.machine import threads_were_asked_for
from minibert.packing import copied
from minibert.world import ALONE, World

_READ_ON_HOST = ("attention_mask", "mlm_positions", "mlm_labels")
_KERNELS = 128
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h


@dataclass(frozen=True)
class Runtime:
    """The resolved device and precision.

    Attributes:
        precision: "fp32" or "bf16", never "auto".
        world: the processes of the run.
    """

    device: torch.device
    precision: str
    world: World = ALONE

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products in bf16 where that is the precision; a stand-in otherwise."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    @property
    def runs_ahead(self) -> bool:
        """Whether the device computes while the host goes on, so that reading a value waits."""
        return self.device.type == "cuda"

    def place(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the device; to a GPU it is copied while the host goes on.

        What says which tokens are real and which are predicted stays on the host of a GPU: the
        model reads it there, and need not wait to know how many there are.
        """
        return {
            name: part if self.runs_ahead and name in _READ_ON_HOST else copied(part, self.device)
            for name, part in batch.items()
        }

    @contextlib.contextmanager
    def host_threads(self) -> Iterator[None]:
        """While open, the host of a GPU computes with one thread; OMP_NUM_THREADS is respected.

        What it has to do for a step is many small operations. With a thread for each core every one
        of them waits until the last thread has had its turn, which takes long where other
        processes, such as those that build examples, hold cores (docs/LOG.md).
        """
        before = torch.get_num_threads()
        if self.runs_ahead and not threads_were_asked_for():
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def synchronize(self) -> None:
        """Waits until the device has done what it was given, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


@contextlib.contextmanager
def torch_as_before() -> Iterator[None]:
    """Gives back on leaving what a run sets for the whole process: determinism, random numbers.

    A notebook goes on with both. On a GPU strict determinism would end the user's own training, and
    after a run, which seeds torch at every step, all would draw the same whatever they had seeded.
    """
    fill: Any = torch.utils.deterministic
    strict, fills = torch.are_deterministic_algorithms_enabled(), fill.fill_uninitialized_memory
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    drawn = torch.get_rng_state()
    drawn_on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)
        fill.fill_uninitialized_memory = fills
        torch.set_rng_state(drawn)
        if drawn_on_gpus:
            torch.cuda.set_rng_state_all(drawn_on_gpus)


def start_runtime(
    device: str | torch.device,
    precision: str,
    deterministic: bool | None,
    world: World = ALONE,
) -> Runtime:
    """Resolves "auto", switches determinism, and keeps freed memory in the process.

    Args:
        deterministic: None leaves it as it is, which is for those that do not train.

    Raises:
        InputError: a device that is not there; the ones that are get named.
    """
    device = str(device)
    if world.size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{world.local_rank}"
    chosen = find_device(device)
    if precision == "auto":
        precision = "bf16" if has_bf16(chosen) else "fp32"
    # A GPU's FlashAttention repeats to the bit only where anything else would be an error.
    if deterministic is not None:
        torch.use_deterministic_algorithms(deterministic, warn_only=chosen.type != "cuda")
        # Filling every fresh tensor shows reads of unwritten memory, decides no bit and costs 5 %.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic and chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if chosen.type == "cpu":
        _remember_few_kernels()
        _keep_freed_memory()
    return Runtime(chosen, precision, world)


def find_device(name: str) -> torch.device:
    """The device of a name; of "auto" the first GPU, else the CPU.

    Raises:
        InputError: it is not there; the ones that are get named.
    """
    present = ["cpu"]
    present += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    present += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(present[1] if len(present) > 1 else "cpu")
    if name not in present and not (name == "cuda" and "cuda:0" in present):
        raise InputError(f"--device {name} is not there; this machine has {', '.join(present)}")
    return torch.device("cuda:0" if name == "cuda" else name)


@functools.cache
def has_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bf16 products are faster than fp32 here: by the hardware's own word.

    A CPU that does not have them takes 8 to 52 times as long as with fp32 (docs/LOG.md).
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = cpuinfo.read_text() if device.type == "cpu" and cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _remember_few_kernels() -> None:
    """Has oneDNN keep so many compiled products instead of 1,024, and torch as many beside it.

    A step asks for some dozens, with shapes that the next one seldom has. All that were kept took
    hundreds of MB and lay between large tensors, so that the heap grew; making them anew costs
    between nothing and 6 % of a step of `mini` (docs/LOG.md).
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_KERNELS))


def _keep_freed_memory() -> None:
    """Stops glibc from giving freed tensors back: touching new memory cost a third of a step.

    Batches differ in shape, so for some hundred steps the heap still grows. PyTorch is told to ask
    Linux for pages of 2 MiB for large tensors; it then aligns them such that freed ones make room
    for others, and the heap grows half as far.
    """
    if platform.libc_ver()[0] == "glibc":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        libc.mallopt(_M_TOP_PAD, 256 << 20)


def versions() -> dict[str, str]:
    """Versions that decide bits, for `run.json`."""
    import numpy
    import safetensors
    import tokenizers

    from minibert.version import __version__

    return {
        "minibert": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
        "threads": str(torch.get_num_threads()),
    }
