"""Budgets of minutes, by a clock that the tests turn: all that is scored counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samples import Repeated, line_steps, make_line, make_loop, quick_model, write_corpus

from minibert import finetuning, pretraining, runs, train
from minibert.finetuning import finetune
from minibert.optim import Budget, warmup_linear_decay
from minibert.pretraining import pretrain
from minibert.run_folder import RunFolder, read_metrics
from minibert.tasks import base, find_task
from minibert.train import Loop, fit

MINUTES = 1.0
LOOP: dict[str, Any] = {
    **{"max_minutes": MINUTES, "max_seq_length": 64, "batch_size": 8, "compile": False},
    **{"device": "cpu", "precision": "fp32", "micro_batch_size": 8},
}


class Clock:
    """Seconds that pass by what is done: one a training step, else as `work` is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (finetuning, pretraining, runs, train):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    step = Loop.take_step

    def take_step(loop: Loop) -> None:
        clock.work(1.0)
        step(loop)

    monkeypatch.setattr(Loop, "take_step", take_step)
    return clock


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return quick_model(tmp_path_factory.mktemp("minutes"))


# Seconds a row, at which dev takes longer than what is left for writing.
@pytest.mark.parametrize(("task", "price"), [("rte", 0.6), ("squad2", 0.04)])
def test_fine_tuning_ends_in_time_with_all_that_is_scored_after_its_last_step(
    task: str,
    price: float,
    model: str,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infer = base.infer

    def timed(task: Any, model: Any, features: Sequence[Any], *rest: Any) -> Any:
        clock.work(price * len(features))
        return infer(task, model, features, *rest)

    monkeypatch.setattr(base, "infer", timed)
    monkeypatch.setattr(find_task(task), "baseline", lambda *_: clock.work(9.0) or {})
    options = {"model": model, "output": str(tmp_path / "run"), "dev_fraction": 0.5}
    finetune(task=task, eval_every=1000, **options, **LOOP)
    assert 0.85 * 60 * MINUTES < clock.now <= 60 * MINUTES


def test_pretraining_ends_in_time_with_its_last_evaluation(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = pretraining.evaluate_pretraining

    def timed(model: Any, examples: Sequence[Any], *rest: Any) -> dict[str, float]:
        clock.work(0.3 * len(examples))
        return evaluate(model, examples, *rest)

    monkeypatch.setattr(pretraining, "evaluate_pretraining", timed)
    corpus = str(write_corpus(tmp_path / "corpus.txt", documents=60))
    where = {"output": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    shape = {"num_layers": 1, "hidden_size": 64, "vocab_size": 60, "eval_every": 1000}
    pretrain(corpus=[corpus], eval_examples=30, **shape, **where, **LOOP)
    assert 0.85 * 60 * MINUTES < clock.now <= 60 * MINUTES


def run_line(
    clock: Clock, folder: RunFolder, seconds: float, every: int
) -> tuple[Loop, list[float]]:
    """A loop whose evaluations take 4 seconds; with the rate of every step."""

    def evaluate() -> dict[str, float]:
        clock.work(4.0)
        return {"loss": 0.0}

    loop = make_loop(
        make_line(),
        Repeated(line_steps([4])),
        budget=Budget(seconds=seconds),
        learning_rate=1.0,
        eval_every=every,
        evaluate=evaluate,
        folder=folder,
    )
    rates: list[float] = []
    loop.optimizer.register_step_pre_hook(
        lambda *_: rates.append(loop.optimizer.param_groups[0]["lr"])
    )
    fit(loop)
    return loop, rates


def test_an_evaluation_in_which_the_budget_ends_is_the_last(tmp_path: Path, clock: Clock) -> None:
    with RunFolder(tmp_path / "run") as folder:
        loop, _ = run_line(clock, folder, seconds=10, every=8)
    assert loop.state.step == 8
    assert clock.now == 12
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "eval_loss" in row] == [8]
    assert [row["step"] for row in rows if "loss" in row] == [8]  # the open window's


def test_the_step_after_an_evaluation_has_the_rate_of_its_own_time(
    tmp_path: Path, clock: Clock
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        _, rates = run_line(clock, folder, seconds=20, every=8)
    # Eight steps, four seconds of evaluation, eight steps.
    seconds = [*range(8), *range(12, 20)]
    assert rates == pytest.approx([warmup_linear_decay(s / 20, 0.1) for s in seconds])


def test_evaluations_are_a_tenth_of_the_budget_apart_though_they_take_longer(
    tmp_path: Path, clock: Clock
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        loop, _ = run_line(clock, folder, seconds=30, every=None)
    steps = [row["step"] for row in read_metrics(tmp_path / "run") if "eval_loss" in row]
    assert steps == [3, 5, 7, 9, 11] and loop.state.step == 11
