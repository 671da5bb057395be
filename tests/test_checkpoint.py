"""Checkpoints: bit-equal, whole or not there, recognised when damaged."""

from __future__ import annotations

import errno
import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from samples import (
    CPU,
    builder_of,
    one_thread,  # noqa: F401
    same_tensors,
    weights_of,
    without_times,
)
from torch import Tensor, nn

from minibert import checkpoint
from minibert.checkpoint import load_best, load_last_checkpoint, save_best, save_checkpoint
from minibert.config import BertConfig
from minibert.errors import Interrupted
from minibert.example_stream import ExampleStream
from minibert.examples import ExampleBuilder
from minibert.heads import BertForPreTraining
from minibert.optim import Budget, build_muon, build_optimizer
from minibert.pretraining_data import Phase, PretrainingData, pretraining_terms
from minibert.run_folder import RunFolder, read_metrics
from minibert.train import Loop, LoopSettings, fit
from minibert.world import World

# --- 10 steps = 5 + save + load + 5 ---------------------------------------------------------------


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> ExampleBuilder:
    return builder_of(tmp_path_factory.mktemp("text"), 24, 24)


def bert_loop(
    builder: ExampleBuilder,
    folder: RunFolder,
    budget: Budget,
    init_seed: int,
    optimizer: Callable[..., torch.optim.Optimizer] = build_optimizer,
) -> Loop:
    """A loop with dropout, whose log window (3) and evaluations (4) do not meet step 5."""
    torch.manual_seed(init_seed)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=builder.tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=24,
        )
    )
    return Loop(
        model,
        PretrainingData([Phase(ExampleStream(builder, 3))], 8, 4),
        pretraining_terms,
        optimizer(model, 1e-3, 0.01),
        LoopSettings(1e-3, budget, log_every=3, eval_every=4),
        CPU,
        folder,
        evaluate=lambda: {"norm": float(sum(p.detach().norm() for p in model.parameters()))},
    )


def moments(loop: Loop) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value.clone()
        for name, parameter in loop.model.named_parameters()
        for key, value in loop.optimizer.state[parameter].items()
    }


def stop_at(loop: Loop, step: int) -> None:
    """Asks the loop to stop after a step, as a signal would."""

    def ask(*_: Any) -> None:
        if loop.state.step + 1 == step:
            loop.asked_to_stop = signal.SIGTERM

    loop.optimizer.register_step_pre_hook(ask)


@pytest.mark.parametrize("optimizer", [build_optimizer, build_muon])
@pytest.mark.parametrize("kind", ["steps", "epochs"])
def test_ten_steps_equal_five_and_five(
    builder: ExampleBuilder,
    tmp_path: Path,
    kind: str,
    optimizer: Callable[..., torch.optim.Optimizer],
) -> None:
    budget = Budget(max_steps=10)
    if kind == "epochs":
        stream = ExampleStream(builder, 3)
        budget = Budget(epochs=10 * 8 / len(stream.current_block()))
    with RunFolder(tmp_path / "whole") as folder:
        whole = bert_loop(builder, folder, budget, init_seed=0, optimizer=optimizer)
        state = fit(whole)
    assert state.step == 10
    with RunFolder(tmp_path / "parted") as folder:
        first = bert_loop(builder, folder, budget, init_seed=0, optimizer=optimizer)
        stop_at(first, 5)
        with pytest.raises(Interrupted):
            fit(first)
        second = bert_loop(builder, folder, budget, init_seed=77, optimizer=optimizer)
        assert not same_tensors(weights_of(first.model), weights_of(second.model))
        resumed = fit(second, resume=True)
    rows = read_metrics(tmp_path / "whole")
    assert len(rows) > 4
    assert without_times(read_metrics(tmp_path / "parted")) == without_times(rows)
    assert same_tensors(weights_of(second.model), weights_of(whole.model))
    assert same_tensors(moments(second), moments(whole))
    assert (resumed.step, resumed.tokens) == (state.step, state.tokens)


def test_a_finished_epoch_budget_takes_no_further_step(
    builder: ExampleBuilder, tmp_path: Path
) -> None:
    """A run that was killed between its last checkpoint and its results has nothing left to do."""
    budget = Budget(epochs=0.5)
    with RunFolder(tmp_path / "run") as folder:
        steps = fit(bert_loop(builder, folder, budget, init_seed=0)).step
        again = fit(bert_loop(builder, folder, budget, init_seed=1), resume=True)
    assert again.step == steps


def test_rows_after_the_checkpoint_are_dropped_on_resume(
    builder: ExampleBuilder, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        first = bert_loop(builder, folder, Budget(max_steps=10), init_seed=0)
        stop_at(first, 5)
        with pytest.raises(Interrupted):
            fit(first)
        kept = folder.metrics.read_text()
        with folder.metrics.open("a") as handle:
            handle.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')  # cut by a kill
        second = bert_loop(builder, folder, Budget(max_steps=10), init_seed=0)
        assert second.restore()
        assert folder.metrics.read_text() == kept


# --- whole or not there ---------------------------------------------------------------------------


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(model, 0.1, 0.01)
    take_step(model, optimizer)
    return model, optimizer


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save_twice(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Checkpoints of step 1 and step 2; the weights of both."""
    model, optimizer = make()
    save_checkpoint(folder, 1, model, optimizer, {"at": 1})
    first = weights_of(model)
    take_step(model, optimizer)
    save_checkpoint(folder, 2, model, optimizer, {"at": 2})
    return first, weights_of(model)


def load(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    model, optimizer = make()
    return load_last_checkpoint(folder, model, optimizer), weights_of(model)


def test_the_last_checkpoint_comes_back(tmp_path: Path) -> None:
    _, second = save_twice(tmp_path)
    state, weights = load(tmp_path)
    assert state == {"at": 2}
    assert same_tensors(weights, second)


def test_state_keeps_every_bit_of_a_float(tmp_path: Path) -> None:
    model, optimizer = make()
    state = {"loss": 0.1 + 0.2, "tiny": 5e-324, "window": {"a": 1 / 3}}
    save_checkpoint(tmp_path, 1, model, optimizer, state)
    assert load(tmp_path)[0] == state


@pytest.mark.parametrize("call", [1, 2], ids=["weights", "moments"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    save_twice(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    model, optimizer = make()
    calls, save = 0, checkpoint.save_tensors

    def fail(tensors: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        save(tensors, path)
        if calls == call:
            path.write_bytes(path.read_bytes()[:50])
            raise error

    monkeypatch.setattr(checkpoint, "save_tensors", fail)
    with pytest.raises(type(error)):
        save_checkpoint(tmp_path, 3, model, optimizer, {"at": 3})
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]
    assert load(tmp_path)[0] == {"at": 2}


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    save_twice(tmp_path)
    half = tmp_path / ".step-000000003.4711.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert load(tmp_path)[0] == {"at": 2}
    assert not half.exists()


def test_an_interrupted_best_keeps_the_best_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make()
    save_best(tmp_path, 3, model)
    best = tmp_path / "best-000000003.safetensors"
    before = best.read_bytes()

    def fail(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(checkpoint, "save_tensors", fail)
    with pytest.raises(OSError, match="full"):
        save_best(tmp_path, 4, model)
    assert list(tmp_path.iterdir()) == [best]
    assert best.read_bytes() == before


def test_best_weights_are_kept_as_long_as_a_checkpoint_names_them(tmp_path: Path) -> None:
    kept, optimizer = make()
    for step in range(1, 7):
        torch.nn.init.constant_(next(kept.parameters()), float(step))
        save_best(tmp_path, step, kept)
        if step == 2:
            save_checkpoint(tmp_path, step, kept, optimizer, {"loop": {"best_step": step}})
    names = ["best-000000002.safetensors", "best-000000006.safetensors"]
    assert sorted(p.name for p in tmp_path.glob("best-*")) == names, "none of those between"
    save_checkpoint(tmp_path, 7, kept, optimizer, {"loop": {"best_step": 2}})
    assert [p.name for p in tmp_path.glob("best-*")] == ["best-000000002.safetensors"]
    other, _ = make()
    load_best(tmp_path, 2, other)
    assert (next(other.parameters()) == 2).all()


# --- damage ---------------------------------------------------------------------------------------

NAMES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Any
) -> None:
    first, _ = save_twice(tmp_path)
    damage(tmp_path / "step-000000002" / name)
    with caplog.at_level(logging.WARNING):
        state, weights = load(tmp_path)
    assert state == {"at": 1}
    assert same_tensors(weights, first)
    assert "step-000000002 is damaged" in caplog.text


def test_without_a_whole_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    save_twice(tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "manifest.json").unlink()
    model, optimizer = make()
    before = weights_of(model)
    assert load_last_checkpoint(tmp_path, model, optimizer) is None
    assert same_tensors(weights_of(model), before)


def test_a_damaged_checkpoint_is_written_again(tmp_path: Path) -> None:
    save_twice(tmp_path)
    truncate(tmp_path / "step-000000002" / "model.safetensors")
    model, optimizer = make()
    save_checkpoint(tmp_path, 2, model, optimizer, {"at": "2 again"})
    assert load(tmp_path)[0] == {"at": "2 again"}


# --- what is kept, and how ------------------------------------------------------------------------


def test_only_the_last_two_are_kept(tmp_path: Path) -> None:
    model, optimizer = make()
    for step in (1, 2, 9, 10, 100):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000010", "step-000000100"]


def test_moments_are_stored_by_parameter_name(tmp_path: Path) -> None:
    model, optimizer = make()
    folder = save_checkpoint(tmp_path, 1, model, optimizer, {})
    with safe_open(folder / "optimizer.safetensors", "pt") as stored:
        names = set(stored.keys())
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state[parameter].items():
                assert torch.equal(stored.get_tensor(f"{key}/{name}"), value)
    kinds = ("exp_avg", "exp_avg_sq", "step")
    assert names == {f"{kind}/{name}" for kind in kinds for name, _ in model.named_parameters()}


def test_moments_find_their_parameter_in_other_groups(tmp_path: Path) -> None:
    model, optimizer = make()
    save_checkpoint(tmp_path, 1, model, optimizer, {})
    other, _ = make()
    plain = torch.optim.AdamW(reversed(list(other.parameters())), lr=0.1)
    assert load_last_checkpoint(tmp_path, other, plain) == {}
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(optimizer.state[ours]["exp_avg"], plain.state[theirs]["exp_avg"])


def test_nothing_is_pickled(tmp_path: Path) -> None:
    model, optimizer = make()
    folder = save_checkpoint(tmp_path, 1, model, optimizer, {"at": 1})
    save_best(tmp_path, 1, model)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"
            with safe_open(path, "pt") as stored:
                assert list(stored.keys())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_whose_best_weights_are_damaged_is_passed_over(tmp_path: Path) -> None:
    model, optimizer = make()
    for step in (1, 2):
        save_best(tmp_path, step, model)
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": {"best_step": step}})
    flip(tmp_path / "best-000000002.safetensors")
    state = load_last_checkpoint(tmp_path, model, optimizer)
    assert state == {"loop": {"best_step": 1}}


def test_where_all_name_the_damaged_best_weights_the_last_goes_on_without_them(
    tmp_path: Path,
) -> None:
    model, optimizer = make()
    save_best(tmp_path, 1, model)
    for step in (2, 3):
        loop = {"best_step": 1, "best": 0.9, "waited": 1, "step": step}
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": loop})
    flip(tmp_path / "best-000000001.safetensors")
    state = load_last_checkpoint(tmp_path, model, optimizer)
    assert state == {"loop": {"best_step": 0, "best": None, "waited": 0, "step": 3}}
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_damaged_best_weights_excuse_no_other_damage(tmp_path: Path) -> None:
    model, optimizer = make()
    save_best(tmp_path, 1, model)
    for step in (2, 3):
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": {"best_step": 1, "step": step}})
    flip(tmp_path / "best-000000001.safetensors")
    flip(tmp_path / "step-000000003/model.safetensors")
    state = load_last_checkpoint(tmp_path, model, optimizer) or {}
    assert state["loop"]["step"] == 2


def test_a_file_that_cannot_be_read_now_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = make()
    for step in (1, 2):
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": {}, "step": step})

    def stale(path: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digest", stale)
        with pytest.raises(OSError, match="Stale"):
            load_last_checkpoint(tmp_path, model, optimizer)
    assert (load_last_checkpoint(tmp_path, model, optimizer) or {})["step"] == 2


def test_the_main_process_alone_removes_what_is_damaged(tmp_path: Path) -> None:
    model, optimizer = make()
    for step in (1, 2):
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": {}, "step": step})
    flip(tmp_path / "step-000000002/model.safetensors")
    for rank, left in ((1, 2), (0, 1)):
        state = load_last_checkpoint(tmp_path, model, optimizer, World(rank=rank, size=2))
        assert (state or {})["step"] == 1
        assert len(list(tmp_path.glob("step-*"))) == left


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    model, optimizer = make()
    for step in (1, 9):
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": {}, "step": step})
    flip(tmp_path / "step-000000009/model.safetensors")
    assert (load_last_checkpoint(tmp_path, model, optimizer) or {})["step"] == 1
    save_checkpoint(tmp_path, 2, model, optimizer, {"loop": {}, "step": 2})
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000000001", "step-000000002"]


def test_what_begins_anew_keeps_its_checkpoints_where_all_before_were_damaged(
    tmp_path: Path,
) -> None:
    model, optimizer = make()
    for step in (5, 9):
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": {}})
        flip(tmp_path / f"step-{step:09d}/model.safetensors")
    assert load_last_checkpoint(tmp_path, model, optimizer) is None
    save_best(tmp_path, 1, model)
    save_checkpoint(tmp_path, 1, model, optimizer, {"loop": {"best_step": 1}})
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["best-000000001.safetensors", "step-000000001"]
    load_best(tmp_path, 1, model)
