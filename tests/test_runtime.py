"""What a run stands on: memory that stays in the process, in large pages, and does not grow."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minibert.runtime import has_bf16, start_runtime

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SCRIPT = """
import re, torch
from pathlib import Path
from minibert.runtime import start_runtime

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

start_runtime("cpu", "fp32", True)
before = resident()
torch.ones(16 << 20)  # 64 MiB, freed at once
kept = resident() - before
block = torch.ones(15 << 20)  # smaller, for glibc wants room to align it
again = resident() - before - kept
regions = re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
holders = [r for r in regions if (ends := re.match(r"([0-9a-f]+)-([0-9a-f]+)", r))
           and int(ends[1], 16) <= block.data_ptr() < int(ends[2], 16)]
flags = re.search(r"VmFlags:(.*)", holders[0])[1].split()
print(kept, again, "hg" in flags)
"""


@pytest.fixture(scope="module")
def found() -> list[str]:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("the allocator is glibc's")
    command = [sys.executable, "-c", _SCRIPT]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_freed_memory_stays_and_is_used_again(found: list[str]) -> None:
    kept, again = map(int, found[:2])
    assert kept >= 60
    assert again < 10


def test_large_tensors_ask_for_huge_pages(found: list[str]) -> None:
    if not _HUGE_PAGES.is_file():
        pytest.skip("this kernel has no huge pages")
    assert found[2] == "True"


_SHAPES = """
import re, torch
from pathlib import Path
from minibert.runtime import start_runtime

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def multiply(first, last):
    for rows in range(first, last):
        torch.nn.functional.linear(torch.zeros(rows, 256).bfloat16(), weight)

start_runtime("cpu", "bf16", True)
weight = torch.zeros(256, 256).bfloat16()
multiply(1, 150)
before = resident()
multiply(150, 600)
print(resident() - before)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="it is /proc that tells the memory")
def test_products_of_ever_new_shapes_do_not_add_up_in_memory() -> None:
    """In MiB: half of one for each shape where oneDNN keeps them all."""
    command = [sys.executable, "-c", _SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_a_device_may_be_torchs_own() -> None:
    device = torch.device("cpu")
    assert start_runtime(device, "fp32", deterministic=None).device == device


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fma avx avx2", False), ("avx512f", False), ("avx512_bf16", True), ("amx_bf16", True)],
)
def test_a_cpu_has_bf16_by_its_own_word(tmp_path: Path, flags: str, expected: bool) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor : 0\nflags : fpu {flags} sse2\n")
    assert has_bf16(torch.device("cpu"), told) is expected
    assert not has_bf16(torch.device("mps"), told)
    assert not has_bf16(torch.device("cpu"), tmp_path / "nowhere")
