"""Training steps on one GPU: ours against Hugging Face's model on the same batches.

    python -m benchmarks --only gpu
    python -m benchmarks.gpu small-128 base-128     # compiling all at once, then timed in turns

Pretraining: large batches of pairs as pair building gives them (91 % full at 128 tokens, 63 % at
512); HF best is transformers' BertForPreTraining with bf16 autocast, torch.compile and fused AdamW,
padded to the batch's longest. Fine-tuning: sequences of mixed length (60 % full); HF best the same,
padded to 256. Ours is `Loop.take_step`, the very code that `pretrain.py` and `finetune.py` run: as
it comes, with --compile, and with --compile --no-deterministic. Forward, backward, clipping (ours
alone) and AdamW are timed, and what the host does for them, several steps at a time so that it may
run ahead; batches are made beforehand, Hugging Face's to the padded tensor, as workers of a loader
would. Code is compiled on small batches, all works beside each other; then each has the GPU alone.
The peak is that of the best matrix product of the model's own shapes.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks import finetuning, pretraining, report
from benchmarks.turns import Timing
from minibert.flops import measure_peak_flops
from minibert.runtime import start_runtime

WORKS: dict[str, Any] = {
    "small-128": pretraining.Work("small", 128, 1024, "paired", "cuda"),
    "base-128": pretraining.Work("base", 128, 512, "paired", "cuda"),
    "base-512": pretraining.Work("base", 512, 128, "paired", "cuda"),
    "large-512": pretraining.Work("large", 512, 64, "paired", "cuda"),
    "finetune-base-256": finetuning.Work(12, 768, 12, 30_522, 256, 64, "mixed", "cuda"),
}
# Keyword arguments of ours, None: Hugging Face's.
_VARIANTS: dict[str, dict[str, bool] | None] = {
    "HF best": None,
    "minibert": {},
    "minibert --compile": {"compiled": True},
    "minibert --compile --no-deterministic": {"compiled": True, "deterministic": False},
}
_WARM_STEPS, _TIMED_TOGETHER, _PEAK_TOKENS = 3, 3, 65_536
_SMALL = (8, 16)  # sequences of the batches that code is compiled on


def _build(name: str, work: Any) -> Any:
    """What does the work's steps."""
    ours = _VARIANTS[name]
    if isinstance(work, pretraining.Work):
        if ours is None:
            return pretraining.HuggingFace(True, **asdict(work))
        return pretraining.Ours(**ours, **asdict(work))
    if ours is None:
        return finetuning.HuggingFace("max_length", True, compiled=True, **asdict(work))
    return finetuning.Ours(**ours, **asdict(work))


class _Variant:
    """One way to do the work, in this process."""

    def __init__(self, name: str, work: Any) -> None:
        self.name, self.timing, self.held = name, Timing(name), torch.cuda.memory_allocated()
        self._tried(lambda: self._compile(work))
        self.held = torch.cuda.memory_allocated() - self.held  # weights and the optimiser's state

    def _compile(self, work: Any) -> None:
        self.doing = _build(name=self.name, work=work)
        if isinstance(self.doing, pretraining.Ours):
            whole = self.doing.batches
            for size in _SMALL:
                self.doing.batches = [batch[:size] for batch in whole]
                self._advance(2)
            self.doing.batches = whole
        elif isinstance(work, finetuning.Work):  # Hugging Face's pretraining has compiled already
            self._advance(1)

    def warm(self) -> None:
        """Takes the memory of whole batches, and notes how much that is."""
        self._tried(lambda: self._advance(_WARM_STEPS), noted=True)

    def _tried(self, action: Callable[[], Any], noted: bool = False) -> None:
        if self.timing.error:
            return
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            action()
            if noted:
                more = torch.cuda.max_memory_allocated() - before
                self.timing.peak_mib = (self.held + more) / (1 << 20)
        except Exception as error:  # the others go on without this one
            self.timing.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        torch.cuda.empty_cache()

    def _advance(self, steps: int) -> dict[str, float]:
        # Determinism is a switch of the process, and each variant wants its own.
        is_free = self.name == "HF best" or "--no-deterministic" in self.name
        torch.use_deterministic_algorithms(not is_free)
        done = {"tokens": 0.0, "flops": 0.0}
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.doing.number = getattr(self.doing, "number", 0) + 1
            more = self.doing.step()
            done = {key: value + more[key] for key, value in done.items()}
        torch.cuda.synchronize()
        return done | {"seconds": time.perf_counter() - start, "peak_mib": self.timing.peak_mib}

    def turn(self) -> None:
        if not self.timing.error:
            self.timing.add(self._advance(_TIMED_TOGETHER))


def measure(name: str, rounds: int, texts: list[Path], ready: Callable[[], Any] = dict) -> Any:
    """One work in turns.

    Args:
        ready: called when everything is compiled, returns when timing may begin.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device")
    work = WORKS[name]
    torch.set_num_threads(1)  # of the host, as in a run
    variants = [_Variant(variant, work) for variant in _VARIANTS]
    ready()
    runtime = start_runtime("cuda", "bf16", deterministic=False)
    tokens = min(_PEAK_TOKENS, work.batch_size * work.max_seq_length)
    before = measure_peak_flops(work.config, tokens, runtime)
    for variant in variants:
        variant.warm()
    for variant in variants:
        if not variant.timing.error:
            variant._advance(1)  # takes memory again
    for _ in range(rounds):
        for variant in variants:
            variant.turn()
    peak = max(before, measure_peak_flops(work.config, tokens, runtime))
    timings = [asdict(variant.timing) for variant in variants]
    return {"unit": "tokens", "peak_flops": peak, "timings": timings}


def _measure_beside(name: str, rounds: int, scratch: Path, count: int) -> dict[str, Any]:
    """`measure` in one of several processes, which compile together and time one by one."""
    turn: IO[str] = (scratch / "turn").open("w")

    def ready() -> None:
        (scratch / f"{name}.ready").touch()
        while len(list(scratch.glob("*.ready"))) < count:
            time.sleep(0.1)
        fcntl.flock(turn, fcntl.LOCK_EX)

    try:
        found: dict[str, Any] = measure(name, rounds, [], ready)
    except Exception as error:
        (scratch / f"{name}.ready").touch()
        found = {"error": f"{type(error).__name__}: {error}"}
    torch.cuda.empty_cache()
    turn.close()
    return found | {"rounds": rounds, "environment": report.environment()}


def main(names: list[str], rounds: int = 7) -> None:
    """All works beside each other; one JSON object a line on standard output."""
    if names[:1] == ["--one"]:
        print(json.dumps(_measure_beside(names[1], rounds, Path(names[2]), int(names[3]))))
        return
    names = names or list(WORKS)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "benchmarks.gpu", "--one"]
        processes = {
            name: subprocess.Popen(
                [*command, name, scratch, str(len(names))], stdout=subprocess.PIPE, text=True
            )
            for name in names
        }
        for name, process in processes.items():
            lines = process.communicate()[0].splitlines()
            print(json.dumps({name: json.loads(lines[-1]) if lines else {"error": "died"}}))


if __name__ == "__main__":
    main(sys.argv[1:])
