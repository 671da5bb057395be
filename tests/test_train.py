"""The loop: what a step computes, what is logged, when it ends, what it keeps."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from samples import (
    Repeated,
    line_steps,
    make_line,
    make_loop,
    one_thread,  # noqa: F401
    same_tensors,
    squares,
    weights_of,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minibert import profiling, train
from minibert.checkpoint import load_last_checkpoint
from minibert.config import BertConfig
from minibert.errors import Interrupted
from minibert.heads import BertForPreTraining
from minibert.losses import IGNORE_INDEX
from minibert.optim import Budget, Muon, build_optimizer, warmup_linear_decay
from minibert.pretraining_data import pretraining_terms
from minibert.run_folder import RunFolder, read_metrics
from minibert.runtime import Runtime
from minibert.train import Loop, NonFiniteError, StepData, Term, clock, fit
from minibert.world import World

VOCAB, LENGTH, SLOTS = 40, 12, 6


def small_bert(dropout: float = 0.0) -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def masked_batch(rows: int = 8, seed: int = 1) -> dict[str, Tensor]:
    """Row i has 1 + i % SLOTS labels, so that micro-batches of two differ in their counts."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, VOCAB, (rows, SLOTS), generator=g)
    positions = torch.stack([torch.randperm(LENGTH, generator=g)[:SLOTS] for _ in range(rows)])
    for row in range(rows):
        labels[row, 1 + row % SLOTS :] = IGNORE_INDEX
    return {
        "input_ids": torch.randint(5, VOCAB, (rows, LENGTH), generator=g),
        "token_type_ids": torch.zeros(rows, LENGTH, dtype=torch.int64),
        "attention_mask": torch.ones(rows, LENGTH, dtype=torch.int64),
        "mlm_positions": positions,
        "mlm_labels": labels,
        "next_sentence_label": torch.randint(0, 2, (rows,), generator=g),
    }


def as_step(batch: dict[str, Tensor], micro: int) -> StepData:
    rows = len(batch["input_ids"])
    parts = [{k: v[i : i + micro] for k, v in batch.items()} for i in range(0, rows, micro)]
    counts = {"mlm": int((batch["mlm_labels"] != IGNORE_INDEX).sum()), "nsp": rows}
    return StepData(parts, counts, [LENGTH] * rows, rows * LENGTH)


def run_bert(micro: int, steps: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The flattened gradients of every step, and the weights at the end."""
    model = small_bert()
    optimizer = build_optimizer(model, 1e-4, 0.01)
    gradients: list[Tensor] = []

    def keep(*_: Any) -> None:
        gradients.append(torch.cat([p.grad.reshape(-1).clone() for p in model.parameters()]))

    optimizer.register_step_pre_hook(keep)
    data = Repeated([as_step(masked_batch(seed=s), micro) for s in (1, 2)])
    loop = make_loop(
        model,
        data,
        objective=pretraining_terms,
        optimizer=optimizer,
        learning_rate=1e-4,
        max_steps=steps,
        max_grad_norm=1e9,
    )
    fit(loop)
    return gradients, weights_of(model)


def test_every_process_and_step_draws_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_bert(dropout=0.1)
    loop = make_loop(
        model, Repeated([as_step(masked_batch(), 8)]), objective=pretraining_terms, max_steps=3
    )
    drawn = []
    monkeypatch.setattr(
        loop, "_backward", lambda step: drawn.append(torch.rand(9)) or Loop._backward(loop, step)
    )
    for rank in range(4):
        loop.world = World(rank=rank)
        loop.state.step = 0
        loop.take_step()
        loop.take_step()
    assert len({tuple(row.tolist()) for row in drawn}) == 8


def test_one_batch_of_eight_equals_four_of_two() -> None:
    whole, whole_weights = run_bert(micro=8, steps=5)
    parts, parts_weights = run_bert(micro=2, steps=5)
    assert len(whole) == len(parts) == 5
    for one, four in zip(whole, parts, strict=True):
        assert one.norm() > 0.1
        torch.testing.assert_close(four, one, rtol=0, atol=1e-6)
    for name, value in whole_weights.items():
        torch.testing.assert_close(parts_weights[name], value, rtol=0, atol=1e-6)


def test_gradient_is_of_sum_over_count_of_the_whole_step() -> None:
    (gradient,), _ = run_bert(micro=2, steps=1)
    model, batch = small_bert(), masked_batch(seed=1)
    terms = pretraining_terms(model.train(), batch)
    mean = sum(term.loss_sum / term.num_labels for term in terms.values())
    mean.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_one_batch_can_be_overfitted(tmp_path: Path) -> None:
    model = small_bert()
    with RunFolder(tmp_path / "run") as folder:
        loop = make_loop(
            model,
            Repeated([as_step(masked_batch(), 4)]),
            objective=pretraining_terms,
            optimizer=build_optimizer(model, 3e-3, 0.0),
            learning_rate=3e-3,
            max_steps=120,
            log_every=1,
            folder=folder,
        )
        fit(loop)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert losses[0] == pytest.approx(math.log(VOCAB) + math.log(2), abs=0.3)
    assert losses[-1] < losses[0] / 10


# --- what is not a number ------------------------------------------------------------------------


def run_into_fault(folder: Path, faulty: Any) -> tuple[nn.Module, dict[str, Tensor], str]:
    """Three steps of which the last goes wrong; the weights just before it and the message."""
    model, before, calls = make_line(), {}, 0

    def objective(forward: Any, batch: Any) -> dict[str, Term]:
        nonlocal calls
        calls += 1
        before.update(weights_of(model))
        terms = squares(forward, batch)
        return terms if calls < 3 else {"fit": faulty(model, terms["fit"])}

    with RunFolder(folder) as run:
        loop = make_loop(
            model,
            Repeated(line_steps([4, 4, 4])),
            objective=objective,
            optimizer=build_optimizer(model, 0.1, 0.0),
            max_steps=9,
            save_every=1,
            log_every=1,
            folder=run,
        )
        with pytest.raises(NonFiniteError) as caught:
            fit(loop)
    return model, before, str(caught.value)


def test_nan_loss_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    model, before, message = run_into_fault(
        tmp_path / "run", lambda model, term: term._replace(loss_sum=term.loss_sum * math.nan)
    )
    assert "step 3" in message
    assert "fit loss is nan" in message
    assert same_tensors(weights_of(model), before)
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-000000001", "step-000000002"]
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "loss" in row] == [1, 2]


def test_nan_gradient_of_a_finite_loss_stops_as_well(tmp_path: Path) -> None:
    def root_of_zero(model: nn.Linear, term: Term) -> Term:
        return term._replace(loss_sum=(model.weight * 0).sqrt().sum())

    model, before, message = run_into_fault(tmp_path / "run", root_of_zero)
    assert "step 3" in message
    assert "gradient norm" in message
    assert same_tensors(weights_of(model), before)


# --- a device that computes while the host goes on -----------------------------------------------


class Reads(TorchDispatchMode):
    """Counts how often a value is brought to the host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "runs_ahead", True)
    monkeypatch.setattr(Runtime, "place", lambda self, batch: batch)


def line_loop(folder: RunFolder, **options: Any) -> Loop:
    model = make_line()
    optimizer = build_optimizer(model, 0.01, 0.0)
    data = Repeated(line_steps([2, 3, 5, 8]))
    return make_loop(model, data, optimizer=optimizer, folder=folder, **options)


def test_no_step_waits_for_the_device(
    tmp_path: Path, ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(tmp_path / "run") as run, Reads() as reads:
        for name in ("tolist", "cpu", "numpy"):  # which are seen here only
            real = getattr(Tensor, name)

            def counted(tensor: Tensor, real: Any = real) -> Any:
                reads.count += 1
                return real(tensor)

            monkeypatch.setattr(Tensor, name, counted)
        loop = line_loop(run, max_steps=9)
        for _ in range(4):
            loop.take_step()
        assert reads.count == 0
        loop.log_row()
        assert reads.count == 1


def test_rows_are_the_same_when_steps_are_not_waited_for(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = []
    for name in ("waiting", "ahead"):
        if name == "ahead":
            request.getfixturevalue("ahead")
        with RunFolder(tmp_path / name) as run:
            # Checkpoints fall into open windows.
            fit(line_loop(run, max_steps=12, log_every=4, save_every=3))
        timed = ("seconds", "tokens_per_second")
        rows.append([{k: row[k] for k in row if k not in timed} for row in read_metrics(run.path)])
    assert len(rows[0]) >= 3
    assert rows[0] == rows[1]


def test_what_is_not_finite_is_found_when_a_row_is_due(tmp_path: Path, ahead: None) -> None:
    calls = 0

    def objective(forward: Any, batch: Any) -> dict[str, Term]:
        nonlocal calls
        calls += 1
        term = squares(forward, batch)["fit"]
        return {"fit": term._replace(loss_sum=term.loss_sum * (math.nan if calls == 6 else 1))}

    with RunFolder(tmp_path / "run") as run:
        loop = line_loop(run, objective=objective, max_steps=20, log_every=4, save_every=5)
        with pytest.raises(NonFiniteError, match="step 6: fit loss is nan; the last checkpoint is"):
            fit(loop)
    assert loop.state.step == 6, "an evaluation is due, which waits for the steps before it"
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["step-000000005"]


@pytest.mark.parametrize("every", [1, 100])
def test_weights_that_the_last_update_broke_end_no_run(tmp_path: Path, every: int) -> None:
    """Loss and gradient are of the weights before it; nothing else sees the last update."""
    with RunFolder(tmp_path / "run") as run:
        loop = line_loop(run, max_steps=3, save_every=1, eval_every=every)
        step, weight = loop.optimizer.step, next(loop.model.parameters())

        def breaking() -> None:
            step()
            if loop.state.step == 2:
                with torch.no_grad():
                    weight[0, 0] = math.inf

        loop.optimizer.step = breaking  # type: ignore[method-assign, assignment]
        with pytest.raises(NonFiniteError, match="step 3: its update left weights that are not"):
            fit(loop)
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-000000001", "step-000000002"]
    assert all(map(math.isfinite, (v for row in read_metrics(run.path) for v in row.values())))


# --- what is logged ------------------------------------------------------------------------------


def rows_at_rest(folder: Path, sizes: list[int], **options: Any) -> list[dict[str, Any]]:
    """Rows of a run whose learning rate is 0, so that every loss is known beforehand."""
    model = make_line()
    with RunFolder(folder) as run:
        fit(make_loop(model, Repeated(line_steps(sizes)), learning_rate=0.0, folder=run, **options))
    return read_metrics(folder)


def test_logged_loss_is_the_mean_of_the_window(tmp_path: Path) -> None:
    sizes = [2, 3, 5, 8, 13, 21]
    rows = rows_at_rest(tmp_path / "run", sizes, max_steps=6, log_every=3)
    model, sums = make_line(), []
    for step in line_steps(sizes):
        sums.append(squares(model, step.micro_batches[0])["fit"].loss_sum.item())
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [3, 6]
    for row, at in zip(logged, (0, 3), strict=True):
        means = [s / n for s, n in zip(sums[at : at + 3], sizes[at : at + 3], strict=True)]
        assert row["loss"] == pytest.approx(sum(means) / 3, rel=1e-6)
        # A term's own figure weighs every label alike, whichever step it came in.
        of_labels = sum(sums[at : at + 3]) / sum(sizes[at : at + 3])
        assert row["fit_loss"] == pytest.approx(of_labels, rel=1e-6)
        assert row["fit_loss"] != pytest.approx(row["loss"], rel=1e-3)
        assert row["loss"] != pytest.approx(means[-1], rel=1e-3)


def test_logged_gradient_norm_is_the_mean_of_the_window(tmp_path: Path) -> None:
    def norms(log_every: int) -> list[float]:
        options = {"max_steps": 6, "log_every": log_every}
        rows = rows_at_rest(tmp_path / f"every-{log_every}", [2, 5, 9], **options)
        return [row["grad_norm"] for row in rows if "loss" in row]

    each = norms(1)
    assert len({*each}) >= 3
    assert norms(2) == pytest.approx([sum(each[i : i + 2]) / 2 for i in (0, 2, 4)])


def test_rows_carry_the_keys_of_the_contract(tmp_path: Path) -> None:
    rows = rows_at_rest(tmp_path / "run", [4, 4], max_steps=4, log_every=1, eval_every=2)
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "loss" not in row]
    assert len(steps) == 4
    assert [row["step"] for row in evaluations] == [2, 4]
    for row in steps:
        assert list(row) == [
            *("step", "epoch", "loss", "fit_loss", "fit_accuracy", "learning_rate"),
            *("grad_norm", "padding_share", "tokens_per_second", "seconds"),
        ]
    for row in evaluations:
        assert row.keys() == {"step", "epoch", "eval_loss"}
    assert [row["epoch"] for row in steps] == [0.5, 1.0, 1.5, 2.0]


def test_speed_is_that_of_the_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 1.0  # every look at the clock takes a second
        return now

    monkeypatch.setattr(train.time, "perf_counter", tick)
    options = {"max_steps": 4, "log_every": 2, "evaluate": lambda: {"loss": tick()}}
    quiet = rows_at_rest(tmp_path / "quiet", [4, 4], eval_every=4, **options)
    busy = rows_at_rest(tmp_path / "busy", [4, 4], eval_every=1, **options)
    speeds = [[r["tokens_per_second"] for r in rows if "loss" in r] for rows in (quiet, busy)]
    assert speeds[0] == speeds[1]
    assert sum("loss" not in r for r in busy) > sum("loss" not in r for r in quiet)


def test_the_end_of_a_budget_of_seconds_may_move() -> None:
    def made(budget: Budget) -> Loop:
        return make_loop(make_line(), Repeated(line_steps([4])), budget=budget)

    loop = made(Budget(seconds=10))
    loop.move_end(5)
    assert loop.settings.budget == Budget(seconds=15)
    loop.move_end(2)  # than planned, not than before
    assert loop.settings.budget == Budget(seconds=12)
    loop.move_end(-99)
    assert loop.settings.budget == Budget(seconds=1)
    loop.state.finished = True
    loop.move_end(9)
    assert loop.settings.budget == Budget(seconds=1)
    loop = made(Budget(max_steps=7))
    loop.move_end(5)
    assert loop.settings.budget == Budget(max_steps=7)


def test_the_moved_end_of_a_budget_is_kept_with_the_state(tmp_path: Path) -> None:
    options = {"budget": Budget(seconds=10)}
    with RunFolder(tmp_path / "run") as folder:
        loop = make_loop(make_line(), Repeated(line_steps([4])), folder=folder, **options)
        loop.move_end(5)
        loop.save()
        again = make_loop(make_line(), Repeated(line_steps([4])), folder=folder, **options)
        assert again.restore()
    assert again.settings.budget == Budget(seconds=15)


def test_utilisation_and_padding_are_those_of_the_window(tmp_path: Path) -> None:
    use = train.Utilisation(lambda step: 10.0 * len(step.lengths), peak_flops=100.0)
    rows = rows_at_rest(tmp_path / "run", [4, 2], max_steps=4, log_every=2, utilisation=use)
    rows = [row for row in rows if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["padding_share"] == 0.25  # 3 of 4 places are real, see `line_steps`
        # Three tokens cost 10 operations, and the machine does 100 a second.
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] / 3 * 10 / 100)


@pytest.fixture
def every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile's table names all of them: which take longest, a busy machine decides."""
    monkeypatch.setattr(profiling, "_ROWS", 1000)


@pytest.mark.usefixtures("every_operation")
@pytest.mark.parametrize(("steps", "traced"), [(12, 5), (5, 2), (3, 0), (2, 0)])
def test_a_profile_holds_the_fourth_step_and_what_follows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], steps: int, traced: int
) -> None:
    rows_at_rest(tmp_path / "run", [4, 2], max_steps=steps, profile=True)
    printed = capfd.readouterr()
    trace = tmp_path / "run" / "profile.json"
    if not traced:
        assert "profile: none" in printed.err
        assert not trace.exists()
        return
    names = {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {f"ProfilerStep#{3 + i}" for i in range(traced)} <= names
    assert f"ms a step, over {traced} step(s)" in printed.err
    assert not printed.out  # which carries results alone
    assert "aten::addmm" in printed.err


@pytest.mark.usefixtures("every_operation")
def test_a_profile_tells_of_steps_and_not_of_evaluations(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def evaluate() -> dict[str, float]:
        return {"fit": float(torch.rand(500, 500).erfinv().sum())}

    options: dict[str, Any] = {"eval_every": 1, "evaluate": evaluate, "profile": True}
    rows_at_rest(tmp_path / "run", [4, 2], max_steps=8, **options)
    assert "aten::erfinv" in (tmp_path / "run/profile.json").read_text()
    printed = capfd.readouterr().err
    assert "aten::addmm" in printed
    assert "aten::erfinv" not in printed


def test_a_profile_of_a_run_that_is_stopped_is_written(tmp_path: Path) -> None:
    def evaluate() -> dict[str, float]:
        if loop.state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"fit": 0.0}

    with RunFolder(tmp_path / "run") as run:
        options = {"max_steps": 20, "profile": True, "eval_every": 1, "evaluate": evaluate}
        loop = line_loop(run, **options)
        with pytest.raises(Interrupted):
            fit(loop)
    assert (tmp_path / "run/profile.json").exists()


class Signalled(World):
    """A process that a signal reaches while it waits for the others after a step."""

    def __init__(self, loop: Loop, step: int) -> None:
        super().__init__()
        self.loop, self.step = loop, step

    def largest(self, tensor: Tensor) -> Tensor:
        if self.loop.state.step == self.step and not self.loop.asked_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return tensor


def test_a_signal_that_comes_while_processes_agree_is_not_lost(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        loop = line_loop(run, max_steps=12)
        loop.world = Signalled(loop, 5)
        with pytest.raises(Interrupted, match="goes on from step [56]"):
            fit(loop)


def test_a_signal_of_one_process_alone_stops_no_step_of_its_own(tmp_path: Path) -> None:
    """It would wait for the others there, who wait for it in the next step."""

    class Deaf(World):
        def largest(self, tensor: Tensor) -> Tensor:
            return tensor * torch.tensor([1.0, 0.0])[: len(tensor)]  # it is not there yet

    with RunFolder(tmp_path / "run") as run:
        loop = line_loop(run, max_steps=6)
        loop.world, loop.asked_to_stop = Deaf(), int(signal.SIGTERM)
        assert fit(loop).step == 6


def test_a_signal_while_the_best_weights_are_read_stops_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_best = train.load_best

    def signalled(*places: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        load_best(*places)

    monkeypatch.setattr(train, "load_best", signalled)
    options: dict[str, Any] = {"max_steps": 4, "select": "fit", "evaluate": lambda: {"fit": 1.0}}
    with RunFolder(tmp_path / "run") as run:
        with pytest.raises(Interrupted, match="state saved; --resume goes on from step 4"):
            fit(line_loop(run, **options))
        monkeypatch.setattr(train, "load_best", load_best)
        assert fit(line_loop(run, **options), resume=True).finished


def test_rows_that_a_power_cut_has_cut_are_dropped(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        for step in (1, 2, 3):
            run.append_metrics({"step": step})
        length = run.metrics_bytes()
        os.truncate(run.metrics, length - 4)
        run.cut_metrics(length)
        run.append_metrics({"step": 9})
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 9]


def test_a_signal_that_a_launcher_passes_on_is_no_second_wish(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(train.time, "monotonic", lambda: now)
    world = SimpleNamespace(size=2, is_main=True)
    loop: Any = SimpleNamespace(asked_to_stop=0, world=world)
    signals = train._Signals(loop)
    signals._handle(signal.SIGTERM, None)
    signals._handle(signal.SIGTERM, None)
    assert loop.asked_to_stop == signal.SIGTERM
    assert capsys.readouterr().err.count("once more after 20 s ends at once") == 1
    now += 21
    with pytest.raises(Interrupted, match="stopped at once by SIGTERM"):
        signals._handle(signal.SIGTERM, None)


@pytest.mark.parametrize(
    ("own", "largest", "sizes", "fillers"),
    [(5, 5, [4, 1], 0), (4, 5, [2, 2], 0), (1, 5, [1, 1], 1), (0, 5, [1, 1], 2), (3, 3, [3], 0)],
)
def test_shares_of_a_step_have_as_many_parts(
    own: int, largest: int, sizes: list[int], fillers: int
) -> None:
    """A sharded model's forward waits for all processes."""
    parts, found = train.parted(list(range(own)), 4, largest, 9)
    assert ([len(part) for part in parts], found) == (sizes, fillers)
    assert [i for part in parts[: len(parts) - found] for i in part] == list(range(own))


def test_a_budget_of_epochs_is_announced_in_steps_and_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_line()
    make_loop(model, Repeated(line_steps([4, 4])), budget=Budget(epochs=3.0)).announce(model)
    assert "3 epochs of about 2 steps each" in capsys.readouterr().err


def test_a_window_of_an_older_version_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_older_version(*places: Any) -> Any:
        saved = load_last_checkpoint(*places)
        assert saved is not None
        del saved["loop"]["window"]["slots"]
        return saved

    steps = line_steps([2, 4, 8])
    with RunFolder(tmp_path / "run") as folder:
        options = {"max_steps": 3, "log_every": 3, "folder": folder, "learning_rate": 0.0}
        before = make_loop(make_line(), Repeated(steps), **options)
        before.take_step()
        before.take_step()
        before.save()
        monkeypatch.setattr(train, "load_last_checkpoint", of_older_version)
        fit(make_loop(make_line(), Repeated(steps), **options), resume=True)
    (row,) = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert row["padding_share"] == 0.25
    last = squares(make_line(), steps[2].micro_batches[0])["fit"].loss_sum.item() / 8
    assert row["loss"] == pytest.approx(last, rel=1e-6)


def test_the_last_steps_are_logged_though_the_window_is_open(tmp_path: Path) -> None:
    rows = rows_at_rest(tmp_path / "run", [4], max_steps=5, log_every=3)
    assert [row["step"] for row in rows if "loss" in row] == [3, 5]


# --- clipping and schedule ------------------------------------------------------------------------


def test_gradients_are_clipped_by_their_global_norm(tmp_path: Path) -> None:
    model = make_line()
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    step = line_steps([8])[0]
    step.micro_batches[0]["y"] += 1000
    with RunFolder(tmp_path / "run") as folder:
        loop = make_loop(
            model, Repeated([step]), max_steps=1, max_grad_norm=0.5, warmup_ratio=0.0, folder=folder
        )
        fit(loop)
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    rate = 0.01 * warmup_linear_decay(0.5, 0.0)
    assert float((after - before).norm()) == pytest.approx(rate * 0.5, rel=1e-3)
    assert read_metrics(tmp_path / "run")[0]["grad_norm"] > 100  # logged as it was


def rates_of(budget: Budget, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[float]:
    """The learning rate of every step; a step takes one second of a made-up clock."""
    now = 0.0
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: now))
    model, rates = make_line(), []
    data = Repeated(line_steps([4] * 5))
    loop = make_loop(model, data, budget=budget, learning_rate=1.0, **options)

    def tick(*_: Any) -> None:
        nonlocal now
        now += 1.0
        rates.append(loop.optimizer.param_groups[0]["lr"])

    loop.optimizer.register_step_pre_hook(tick)
    fit(loop)
    return rates


@pytest.mark.parametrize("budget", [Budget(max_steps=10), Budget(epochs=2.0)])
def test_schedule_ends_with_a_budget_of_steps_or_epochs(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = rates_of(budget, monkeypatch)
    expected = [warmup_linear_decay((i + 0.5) / 10, 0.1) for i in range(10)]
    assert rates == pytest.approx(expected, abs=1e-6)
    assert 0 < rates[-1] < 0.06


def test_a_budget_that_ends_within_a_step_leaves_that_step_a_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = rates_of(Budget(epochs=2.1), monkeypatch, warmup_ratio=0.0)
    assert len(rates) == 11  # of a fifth of an epoch each
    middles = [(i + 0.5) / 5 for i in range(10)] + [2.05]
    assert rates == pytest.approx([1 - middle / 2.1 for middle in middles], abs=1e-6)


def test_the_loop_takes_the_schedule_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"schedule": "constant-then-linear", "decay_ratio": 0.5}
    rates = rates_of(Budget(max_steps=10), monkeypatch, **options)
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.9, 0.7, 0.5, 0.3, 0.1])
    rates = rates_of(Budget(max_steps=10), monkeypatch, schedule="cosine", warmup_ratio=0.0)
    assert rates == pytest.approx([(1 + math.cos((i + 0.5) / 10 * math.pi)) / 2 for i in range(10)])


def test_schedule_ends_with_a_budget_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = rates_of(Budget(seconds=20.0), monkeypatch)
    assert len(rates) == 20
    assert rates[0] == 0.0
    assert max(rates) == pytest.approx(1.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.06


# --- what the loop knows and keeps ----------------------------------------------------------------


def test_the_loop_trains_any_module() -> None:
    model = make_line()
    optimizer = build_optimizer(model, 0.1, 0.0)
    data = Repeated(line_steps([16] * 4))
    fit(make_loop(model, data, optimizer=optimizer, learning_rate=0.1, max_steps=150))
    assert model.weight.detach().reshape(-1).tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert model.bias.item() == pytest.approx(1, abs=0.05)


def test_the_best_weights_are_those_at_the_end(tmp_path: Path) -> None:
    model, seen = make_line(), []
    scores = iter([0.2, 0.9, 0.5, 0.9])

    def evaluate() -> dict[str, float]:
        assert not model.training
        seen.append(weights_of(model))
        return {"accuracy": next(scores)}

    with RunFolder(tmp_path / "run") as folder:
        loop = make_loop(
            model,
            Repeated(line_steps([4])),
            max_steps=8,
            eval_every=2,
            evaluate=evaluate,
            select="accuracy",
            folder=folder,
        )
        state = fit(loop)
    assert (state.best, state.best_step, len(seen)) == (0.9, 4, 4)
    assert same_tensors(weights_of(model), seen[1])
    assert not same_tensors(seen[1], seen[3])


def test_the_figure_that_chooses_the_weights_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"spearman": 0.25, "pearson": 0.5, "loss": 1.0}
    options = {"max_steps": 2, "eval_every": 1, "evaluate": lambda: figures}
    fit(make_loop(make_line(), Repeated(line_steps([4])), select="spearman", **options))
    shown = [line for line in capsys.readouterr().err.splitlines() if "eval_" in line]
    assert [line.partition("eval_")[2] for line in shown] == ["spearman 0.25  eval_loss 1"] * 2


def test_a_run_that_goes_on_saves_no_sooner_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock goes on as well; five minutes are those since the last checkpoint."""
    data, saved = Repeated(line_steps([4])), []
    with RunFolder(tmp_path / "run") as folder:
        first = make_loop(make_line(), data, max_steps=4, folder=folder)
        first.take_step()
        first._seconds_before = 1000.0
        first.save()
        real = train.save_checkpoint
        monkeypatch.setattr(
            train, "save_checkpoint", lambda *given: saved.append(given[1]) or real(*given)
        )
        fit(make_loop(make_line(), data, max_steps=4, folder=folder), resume=True)
    assert saved == [4]


def test_timing_a_step_changes_nothing() -> None:
    model, data = make_line(), Repeated(line_steps([4, 4]))
    loop = make_loop(model, data, max_steps=2)
    before = weights_of(model)
    seconds, share = loop.time_step()
    assert seconds > 0
    assert share == 0.5
    assert same_tensors(weights_of(model), before)
    assert data.position == 0
    assert all(p.grad is None for p in model.parameters())


def test_the_time_of_a_step_holds_the_products_of_its_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU they take longer than the passes where a step has few tokens."""
    model = make_line()
    loop = make_loop(model, Repeated(line_steps([4])), max_steps=1)
    matrices = [{"params": [p for p in model.parameters() if p.ndim > 1], "parts": 1}]
    rest = torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2])
    loop.optimizer = Muon(matrices, rest, 1e-3, 0.0, 0.95)
    monkeypatch.setattr(Muon, "rehearse", lambda self: time.sleep(0.2))
    assert loop.time_step()[0] >= 0.2


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_saves_and_stops_after_the_step(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    model, calls = make_line(), 0

    def objective(forward: Any, batch: Any) -> dict[str, Term]:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), number)
        return squares(forward, batch)

    with RunFolder(tmp_path / "run") as folder:
        data = Repeated(line_steps([4]))
        loop = make_loop(model, data, objective=objective, max_steps=9, folder=folder)
        with pytest.raises(Interrupted) as caught:
            fit(loop)
    assert caught.value.status == status
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-000000003"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_in_the_last_evaluation_stops_and_resume_takes_no_further_step(
    tmp_path: Path,
) -> None:
    def evaluate() -> dict[str, float]:
        if loop.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"fit": -loop.state.step}

    with RunFolder(tmp_path / "run") as folder:
        options = {"max_steps": 3, "eval_every": 1, "select": "fit"}
        loop = line_loop(folder, evaluate=evaluate, **options)
        with pytest.raises(Interrupted, match="resume goes on from step 3") as caught:
            fit(loop)
        assert caught.value.status == 143
        again = line_loop(folder, **options)
        state = fit(again, resume=True)
    assert (state.step, state.best_step, state.finished) == (3, 1, True)
    with (tmp_path / "run/checkpoints/best-000000001.safetensors").open("rb") as best:
        assert same_tensors(weights_of(again.model), safetensors.torch.load(best.read()))


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (720, "12 min"), (7500, "2 h 05 min"), (5399, "1 h 30 min")]
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert clock(seconds) == text
