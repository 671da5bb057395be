"""What the machine grants this process, and which process of a run it is; no torch is needed.

Limits are those of the scheduler (CPU affinity) and of the container (cgroups 1 and 2). A process's
place is what `torchrun` wrote into its environment.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
_UNLIMITED = ("max", "-1")


class Place(NamedTuple):
    """Where a process stands among those of its run, `local_…` among those of its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def launched() -> Place:
    """This process's place by its environment: 0 of 1 where no launcher has set one."""
    names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    return Place(*(int(os.environ.get(name, default)) for name, default in names))


def leave(status: int) -> None:
    """Ends a process that others were launched beside, at once; one that is alone goes on.

    To be called when all is written: gloo's threads outlive the process group, and one that lets go
    of a tensor while the interpreter shuts down aborts the process.
    """
    if launched().size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def num_cpus(root: Path = _ROOT) -> int:
    """Logical CPUs that this process may use."""
    return _within_quota(len(_own_cpus()), root)


def num_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use; two hardware threads of a core count once."""
    topology = root / "sys/devices/system/cpu"
    siblings = [_read(topology / f"cpu{i}/topology/thread_siblings_list") for i in _own_cpus()]
    known = {text for text in siblings if text}
    return _within_quota(len(known) or len(siblings), root)


def _own_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _within_quota(count: int, root: Path) -> int:
    """A count of CPUs, at most the CPU time that the cgroups grant, at least 1."""
    quotas = [math.inf]
    for folder in _cgroups("cpu", root):
        words = _read(folder / "cpu.max").split()
        words = words or [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        if all(words) and words[0] not in _UNLIMITED:
            quotas.append(int(words[0]) / int(words[1]))  # microseconds in every so many
    return max(1, int(min(count, *quotas)))


def available_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that may still be taken, by the system and by the cgroups."""
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) << 10)  # given in KiB
    for folder in _cgroups("memory", root):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = _read(folder / limit), _read(folder / usage)
            if used and most not in _UNLIMITED:
                stat = dict(s.split() for s in _read(folder / "memory.stat").splitlines())
                found.append(int(most) - int(used) + int(stat.get(cache, 0)))
    return min(found) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The folders whose limits of a kind apply: those of this process's groups and all above."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers  # cgroups 2 has no name there
        own = base / path.lstrip("/")
        yield from (place for place in (own, *own.parents) if place.is_relative_to(base))


def threads_were_asked_for() -> bool:
    """Whether OMP_NUM_THREADS is somebody's wish.

    torchrun sets it to 1 for several processes where it is not set, which leaves most cores idle.
    The environment that torchrun itself was started with tells one from the other; where it cannot
    be read, 1 is taken for a wish.
    """
    value = os.environ.get("OMP_NUM_THREADS")
    if value != "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return value is not None
    try:
        launcher = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return True
    return any(entry.startswith(b"OMP_NUM_THREADS=") for entry in launcher.split(b"\0"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
