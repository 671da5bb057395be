"""`--micro-batch-size auto`: what fits is taken, said, stored, and agreed upon."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import CPU, one_thread, write_corpus, write_reviews  # noqa: F401
from torch import nn

from minibert import fitting
from minibert.cli import main
from minibert.errors import InputError
from minibert.fitting import Trial, fit_in, kept_bytes, micro_batch_size
from minibert.runtime import Runtime
from minibert.settings import PretrainSettings
from minibert.train import ONE_PASS, Batch, Loop, StepData, Term
from minibert.world import World

AUTO = PretrainSettings(corpus=["-"], batch_size=16, micro_batch_size="auto")
PARAMETERS = 100 * 50 + 50 + 50 * 10 + 10
EACH = 4 * (100 + 50 + 10)  # bytes kept of a row: what both layers and the square take in


def squares(model: Callable[..., Any], batch: Batch) -> dict[str, Term]:
    out = model(batch["x"])
    return {"fit": Term((out * out).sum(), torch.tensor(len(out)), torch.tensor(0))}


def make_trial(most: int = 1000, runtime: Runtime = CPU) -> Trial:
    """Two layers that run out of memory with more than so many rows."""
    model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 10))

    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        found: torch.Tensor = model(x)
        return found

    return Trial(model, forward, squares, lambda size: {"x": torch.ones(size, 100)}, runtime)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_room_for", lambda trial: partial(fit_in, trial, 16))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("most", "chosen"), [(16, 16), (15, 8), (4, 4), (1, 1)])
def test_what_runs_out_of_memory_is_halved_and_said(
    capsys: pytest.CaptureFixture[str], most: int, chosen: int
) -> None:
    assert micro_batch_size(AUTO, None, make_trial(most)) == chosen
    lines = capsys.readouterr().err.splitlines()
    halved = [n for n in (16, 8, 4, 2) if n > most]
    said = [f"micro-batch: {n} sequences do not fit into memory; halved" for n in halved]
    assert lines == [*said, f"micro-batch: {chosen} sequences per forward of each process (auto)"]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_when_not_even_one_fits_it_is_an_error() -> None:
    with pytest.raises(InputError, match="not even one sequence"):
        micro_batch_size(AUTO, None, make_trial(0))


def test_a_trial_leaves_nothing_behind_and_counts_what_a_step_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = make_trial()
    before = [p.detach().clone() for p in trial.model.parameters()]
    assert fit_in(trial, 4, 4)
    for parameter, value in zip(trial.model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, value)
    left = 0.0

    def empty_like(tensor: torch.Tensor) -> None:
        nonlocal left
        left -= tensor.numel()
        if left < 0:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "empty_like", empty_like)
    two = trial._replace(passes={**ONE_PASS, "again_": ONE_PASS[""]})
    # Two moments; in the second of two passes, or micro-batches, the gradients of the first, too.
    for one, room, share, fits in (
        *((trial, 1.5, 1, False), (trial, 2.5, 1, True), (trial, 2.5, 2, False)),
        *((trial, 3.5, 2, True), (two, 2.5, 1, False), (two, 3.5, 2, True)),
    ):
        left = room * PARAMETERS
        assert fit_in(one, share, 1) is fits


def test_what_autograd_keeps_is_counted_without_the_weights() -> None:
    assert [kept_bytes(make_trial(), rows) for rows in (1, 2, 7)] == [EACH, 2 * EACH, 7 * EACH]


@pytest.mark.parametrize(("rows", "processes", "chosen"), [(16, 1, 16), (5, 1, 4), (12, 2, 4)])
def test_on_a_cpu_memory_is_estimated(
    monkeypatch: pytest.MonkeyPatch, rows: int, processes: int, chosen: int
) -> None:
    # Gradients and moments in fp32, and twice what is kept: every process its share.
    room = 3 * PARAMETERS * 4 * processes + 2 * EACH * rows
    monkeypatch.setattr(fitting, "available_memory", lambda: room)
    trial = make_trial(runtime=Runtime(CPU.device, "fp32", World(local_size=processes)))
    assert micro_batch_size(AUTO, None, trial) == chosen


def test_a_number_is_taken_as_it_is() -> None:
    given = PretrainSettings(corpus=["-"], batch_size=16, micro_batch_size=2)
    assert micro_batch_size(given, None, make_trial(0)) == 2
    assert micro_batch_size(PretrainSettings(corpus=["-"]), None, make_trial(0)) == 16


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_what_was_chosen_is_stored_and_kept(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_corpus(tmp_path / "corpus.txt")
    write_reviews(tmp_path / "reviews")
    shared = ["--batch-size", "6", "--max-steps", "2", "--max-seq-length", "32", "--device", "cpu"]
    pretrain = ["pretrain", "--corpus", tmp_path / "corpus.txt", "--preset", "tiny", *shared]
    pretrain += ["--vocab-size", "60", "--cache-dir", tmp_path / "cache"]
    model = ["--data", tmp_path / "reviews", "--model", tmp_path / "model"]
    if command == "finetune":
        assert main([*map(str, pretrain), "--output", str(tmp_path / "model")]) == 0
    flags = pretrain if command == "pretrain" else ["finetune", "--task", "imdb", *model, *shared]
    line = [*map(str, flags), "--output", str(tmp_path / "run"), "--micro-batch-size", "auto"]
    monkeypatch.setattr(fitting, "_room_for", lambda trial: lambda size: size <= 2)
    sizes: list[int] = []
    original = Loop._backward

    def backward(loop: Loop, step: StepData) -> Any:
        sizes.extend(len(batch["input_ids"]) for batch in step.micro_batches)
        return original(loop, step)

    monkeypatch.setattr(Loop, "_backward", backward)
    assert main(line) == 0
    assert set(sizes) == {2}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["resolved"]["micro_batch_size"] == 2
    assert run["settings"]["micro_batch_size"] == "auto"
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.undo()  # now all six would fit
    capsys.readouterr()
    monkeypatch.setattr(Loop, "_backward", backward)
    assert main([*line, "--resume"]) == 0
    assert set(sizes) == {2}
    assert "micro-batch:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--micro-batch-size", "big"], "'big', expected int | 'auto' | None"),
        (["--micro-batch-size", "auto", "--shard"], "no use with --shard"),
        (["--micro-batch-size", "-2"], "--micro-batch-size is -2, must be above 0"),
    ],
)
def test_other_sizes_are_refused(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--corpus", "x.txt", *flags]) == 2
    assert words in capsys.readouterr().err
