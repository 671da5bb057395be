"""What the machine grants: CPUs and memory within their limits, threads for each process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples import one_thread  # noqa: F401

from minibert import machine, world
from minibert.errors import InputError
from minibert.machine import available_memory, launched, num_cores, num_cpus
from minibert.runtime import Runtime, start_runtime
from minibert.world import join_world

ROOT = Path(__file__).parent.parent
GROUPS = {  # how version 1 and version 2 lay out the same limits: 2.5 CPUs, 3,000 bytes
    "1": {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job/step\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "3000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1500\n",
        "sys/fs/cgroup/memory/job/memory.stat": "cache 900\ntotal_inactive_file 500\n",
    },
    "2": {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
        "sys/fs/cgroup/job/memory.max": "3000\n",
        "sys/fs/cgroup/job/memory.current": "1500\n",
        "sys/fs/cgroup/job/memory.stat": "anon 100\ninactive_file 500\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "1400\n",
    },
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_own_cpus", lambda: list(range(8)))


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.usefixtures("eight_cpus")
def test_limits_of_cgroups_are_kept(tmp_path: Path, version: str) -> None:
    root = write_tree(tmp_path, GROUPS[version])
    assert num_cpus(root) == 2
    assert num_cores(root) == 2
    assert available_memory(root) == 3000 - 1500 + 500
    write_tree(root, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  1 kB\n"})
    assert available_memory(root) == 1024


@pytest.mark.usefixtures("eight_cpus")
def test_without_limits_all_is_granted(tmp_path: Path) -> None:
    assert num_cpus(tmp_path) == 8
    assert available_memory(tmp_path) > 1 << 20


@pytest.mark.usefixtures("eight_cpus")
def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {folder.format(i): f"{i % 4},{i % 4 + 4}\n" for i in range(8)}
    assert num_cores(write_tree(tmp_path, files)) == 4
    assert num_cpus(tmp_path) == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_affinity_is_kept() -> None:
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(own)})
    try:
        assert num_cpus() == num_cores() == 1
    finally:
        os.sched_setaffinity(0, own)


def test_places_are_those_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1, 0, 1)
    for name, value in zip(names, "5824", strict=True):
        monkeypatch.setenv(name, value)
    assert launched() == (5, 8, 2, 4)


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), ("2", 2)])
def test_one_process_takes_what_is_granted_unless_told(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(world, "num_cores", lambda: 1)
    torch.set_num_threads(2)
    with join_world():
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    monkeypatch.setattr(world, "num_cores", lambda: 4)
    with join_world():
        assert torch.get_num_threads() == 1  # PyTorch's choice, or the caller's


@pytest.mark.parametrize(
    ("device", "asked", "threads"), [("cuda", None, 1), ("cuda", "2", 2), ("cpu", None, 2)]
)
def test_the_host_of_a_gpu_computes_with_one_thread_while_it_trains(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    torch.set_num_threads(2)
    with Runtime(torch.device(device), "fp32").host_threads():
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("gpus", "backend", "bound"), [(2, "cpu:gloo,cuda:nccl", [1]), (1, "gloo", [])]
)
def test_more_processes_than_gpus_may_compute_on_cpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, backend: str, bound: list[int]
) -> None:
    places = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begun: list[str] = []
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(world.dist, "init_process_group", lambda name, **_: begun.append(name))
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(world.dist, name, lambda: None)
    with join_world() as own:
        assert own.local_rank == 1
        if gpus == 1:
            start_runtime("cpu", "fp32", True, own)
            with pytest.raises(InputError, match="--device cuda:1 is not there; .* cpu, cuda:0"):
                start_runtime("auto", "fp32", True, own)
    assert begun == [backend] and devices == bound


@pytest.mark.skipif(sys.platform != "linux", reason="reads torchrun's environment in /proc")
def test_processes_share_the_cores_unless_told(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys, torch\n"
        "from minibert import machine, world\n"
        "world.num_cores = lambda: 9\n"
        "with world.join_world() as own:\n"
        "    if own.is_main:\n"
        "        print(json.dumps([own.local_size, torch.get_num_threads()]))\n"
        "machine.leave(0)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(ROOT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    processes = [
        subprocess.Popen(
            [*launcher, "--nproc-per-node=2", str(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | ({"OMP_NUM_THREADS": asked} if asked else {}),
        )
        for asked in (None, "1", "2")
    ]
    found = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        found.append(json.loads(out))
    assert found == [[2, 4], [2, 1], [2, 2]]
