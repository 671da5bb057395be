"""`--compile auto`: both sides of the rule's border, a trial without effect, its replay."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import (  # noqa: F401
    CPU,
    Repeated,
    line_steps,
    make_line,
    make_loop,
    one_thread,
    same_tensors,
    squares,
    weights_of,
    without_times,
    write_corpus,
    write_reviews,
)
from torch import Tensor, nn

from minibert import compiling
from minibert.cli import main
from minibert.compiling import Timing, compile_if_it_pays, least_seconds, measure, pays, verdict
from minibert.optim import Budget
from minibert.run_folder import read_metrics
from minibert.runtime import Runtime
from minibert.settings import PretrainSettings
from minibert.train import Loop
from minibert.world import World

AUTO = PretrainSettings(corpus=["-"], compile="auto")
FASTER, SLOWER = Timing(0.5, 0.25, 30.0), Timing(0.25, 0.5, 30.0)

# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "used"), [(119, False), (120, False), (121, True)])
def test_compiled_code_is_used_where_it_saves_more_than_it_costs(steps: int, used: bool) -> None:
    assert pays(FASTER, steps) == used
    assert verdict(FASTER, steps).endswith(": used (auto)" if used else ": not used (auto)")
    assert not pays(SLOWER, steps)


def test_the_verdict_is_said_with_its_numbers() -> None:
    assert verdict(Timing(0.412, 0.331, 52.0), 9800) == (
        "0.412 s a step eager, 0.331 s compiled, 52 s to compile; saves 13 min over 9,800 steps: "
        "used (auto)"
    )
    assert "; loses 25 s over 100 steps: not used" in verdict(SLOWER, 100)


seconds = st.floats(0.001, 1000)


@given(seconds, seconds, seconds, st.floats(1, 1e6))
def test_of_a_budget_of_time_the_rule_asks_whether_more_steps_fit(
    eager: float, compiled: float, cost: float, left: float
) -> None:
    uncompiled = Budget(seconds=left).steps(eager, 1)
    fit = (left - cost) / compiled
    if abs(fit - uncompiled) > 1e-6 * uncompiled:
        assert pays(Timing(eager, compiled, cost), uncompiled) == (fit > uncompiled)


@pytest.mark.parametrize("step_seconds", [0.001, 0.4, 30.0])
def test_a_trial_in_vain_costs_a_tenth_of_the_run_at_most(step_seconds: float) -> None:
    trial = 60 + 24 * step_seconds
    assert least_seconds(step_seconds) == pytest.approx(10 * trial)


# --- the trial ------------------------------------------------------------------------------------


class Clock:
    """A clock that only forward passes move; the first compiled ones move it further."""

    def __init__(self, eager: float, compiled: float, compiling: list[float]) -> None:
        self.seconds, self.eager, self.compiled = 0.0, eager, compiled
        self.compiling = list(compiling)
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.seconds

    def as_is(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        return self._timed(model, "eager", lambda: self.eager)

    def compile(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        more = iter(self.compiling)
        return self._timed(model, "compiled", lambda: self.compiled + next(more, 0.0))

    def _timed(
        self, model: nn.Module, name: str, takes: Callable[[], float]
    ) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            self.seconds += takes()
            self.calls.append(name)
            found: Tensor = model(x)
            return found

        return forward


def test_what_goes_beyond_the_usual_is_the_cost() -> None:
    model = make_line()
    # The third length has it compile anew, and so has a length that is seen again.
    clock = Clock(0.5, 0.25, [40, 0, 8, *[0] * 7, 2])
    loop = make_loop(model, Repeated(line_steps([4])), max_steps=9, forward=clock.as_is(model))
    found = measure(loop, clock.compile(model), line_steps([4] * 8), clock)
    assert found == pytest.approx(Timing(0.5, 0.25, 50.0))
    assert clock.calls == ["compiled"] * 8 + ["eager", "compiled"] * 8  # in turns


class Noisy(nn.Module):
    """A line with dropout, which draws from the random state, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.dropout = make_line(), nn.Dropout(0.5)
        self.register_buffer("kept", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.line(self.dropout(x * self.kept))
        return found


@pytest.mark.parametrize("timing", [FASTER, SLOWER])
def test_a_trial_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch, timing: Timing
) -> None:
    model, data = Noisy(), Repeated(line_steps([4, 3, 5]))
    optimizer = torch.optim.AdamW(model.parameters())
    loop = make_loop(model, data, optimizer=optimizer, max_steps=100_000_000)
    loop.take_step()
    weights, numbers, position = weights_of(model), torch.get_rng_state(), data.state()
    moments = {k: v.clone() for k, v in optimizer.state[model.line.weight].items()}
    before = asdict(loop.state)
    always_tried(monkeypatch, timing)
    monkeypatch.setattr(torch, "compile", lambda forward: lambda x: forward(x))
    assert compile_if_it_pays(AUTO, None, loop) == (timing is FASTER)
    assert (loop.forward is model) == (timing is SLOWER)
    assert same_tensors(weights_of(model), weights)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert same_tensors(dict(optimizer.state[model.line.weight]), moments)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert data.state() == position
    assert asdict(loop.state) == before


@pytest.mark.filterwarnings("ignore")  # PyTorch's tracer warns of what it does itself
def test_really_compiled_code_goes_through_a_trial() -> None:
    model = Noisy()
    loop = make_loop(model, Repeated(line_steps([4, 3, 5])), max_steps=9)
    steps, share = loop.next_steps(4)
    found = measure(loop, torch.compile(model, backend="eager"), steps)
    assert min(found) > 0
    assert share == pytest.approx(1 / 3)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first batch after the stop has a length that was compiled otherwise before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "text.txt", documents=40)
    line = ["pretrain", "--corpus", str(corpus), "--preset", "tiny", "--vocab-size", "60"]
    line += [
        "--max-seq-length",
        "64",
        "--batch-size",
        "8",
        "--max-steps",
        "16",
        "--save-every",
        "3",
    ]
    line += ["--log-every", "1", "--eval-every", "8", "--device", "cpu", "--compile", "--output"]

    def run(folder: str, *more: str) -> int:
        torch.compiler.reset()  # as a new process has it
        return main([*line, str(tmp_path / folder), *more])

    assert run("whole") == 0
    take_step = Loop.take_step
    for last in (5, 7):

        def stop_in_time(loop: Loop, last: int = last) -> None:
            take_step(loop)
            if loop.state.step == last:
                loop.asked_to_stop = signal.SIGTERM

        monkeypatch.setattr(Loop, "take_step", stop_in_time)
        assert run(f"parted-{last}") != 0
        monkeypatch.setattr(Loop, "take_step", take_step)
        assert run(f"parted-{last}", "--resume") == 0
        rows = [without_times(read_metrics(tmp_path / n)) for n in ("whole", f"parted-{last}")]
        assert rows[0] == rows[1]


def test_a_compiler_that_fails_is_said_and_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_line()

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no working C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", lambda forward: broken)
    loop = make_loop(model, Repeated(line_steps([4])), max_steps=100_000_000)
    assert not compile_if_it_pays(AUTO, None, loop)
    assert loop.forward is model
    said = "compile: torch.compile failed: no working C++ compiler: not used (auto)"
    assert capsys.readouterr().err.splitlines() == [said]


# --- budgets --------------------------------------------------------------------------------------


@pytest.fixture
def one_second_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take a second, or half of one compiled in 100; least_seconds(1.0) is 840."""
    monkeypatch.setattr(Loop, "time_pass", lambda loop, step, *_: 1.0)
    monkeypatch.setattr(compiling, "measure", lambda *_: Timing(1.0, 0.5, 100.0))
    monkeypatch.setattr(torch, "compile", lambda forward: lambda x: forward(x))


@pytest.mark.usefixtures("one_second_steps")
@pytest.mark.parametrize(
    ("short", "long"),
    [
        (Budget(max_steps=839), Budget(max_steps=840)),
        (Budget(epochs=278.0), Budget(epochs=281.0)),  # of three steps
        (Budget(seconds=839.0), Budget(seconds=841.0)),
    ],
    ids=["steps", "epochs", "seconds"],
)
def test_a_run_that_is_expected_to_be_short_is_not_tried(
    capsys: pytest.CaptureFixture[str], short: Budget, long: Budget
) -> None:
    found = {}
    for budget in (short, long):
        loop = make_loop(make_line(), Repeated(line_steps([4] * 3)), budget=budget)
        used = compile_if_it_pays(AUTO, None, loop)
        found[budget] = used, capsys.readouterr().err
    assert not found[short][0]
    assert re.fullmatch(
        r"compile: not tried: the run is expected to last 14 min, and a trial is worth its time "
        r"from 14 min on \(auto\)\n",
        found[short][1],
    )
    assert found[long][0]
    assert "1 s a step eager, 0.5 s compiled, 2 min to compile; saves 7 min" in found[long][1]


@pytest.mark.usefixtures("one_second_steps")
def test_the_schedule_of_a_budget_of_time_begins_after_the_trial() -> None:
    loop = make_loop(make_line(), Repeated(line_steps([4])), budget=Budget(seconds=1000.0))
    loop._session_start -= 100  # as long as the trial takes
    assert compile_if_it_pays(AUTO, None, loop)
    assert loop.settings.budget.seconds == pytest.approx(900, abs=5)
    loop._agree()
    assert loop.done == pytest.approx(0, abs=0.01)


@pytest.mark.usefixtures("one_second_steps")
def test_all_processes_take_the_verdict_of_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(World):
        """The second process, whose own clock says the opposite of the first one's."""

        def from_main(self, value: Any) -> Any:
            return FASTER if isinstance(value, Timing) else value

        def largest(self, tensor: Tensor) -> Tensor:
            return tensor

    monkeypatch.setattr(compiling, "measure", lambda *_: SLOWER)
    runtime = Runtime(CPU.device, "fp32", Second(rank=1, size=2))
    model = make_line()
    loop = make_loop(model, Repeated(line_steps([4])), runtime=runtime, max_steps=1_000_000)
    assert compile_if_it_pays(AUTO, None, loop)
    assert loop.forward is not model


@pytest.mark.parametrize("chosen", [True, False])
def test_what_is_set_or_stored_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    monkeypatch.setattr(Loop, "_backward", None)
    loop = make_loop(make_line(), Repeated(line_steps([4])), max_steps=1_000_000)
    settings = PretrainSettings(corpus=["-"], compile=chosen)
    assert compile_if_it_pays(settings, None, loop) == chosen
    assert compile_if_it_pays(settings, {"resolved": {}}, loop) == chosen  # of an older version
    assert compile_if_it_pays(AUTO, {"resolved": {"compile": chosen}}, loop) == chosen


# --- commands -------------------------------------------------------------------------------------


def command_line(place: Path, command: str) -> list[str]:
    shared = ["--batch-size", "6", "--max-steps", "2", "--max-seq-length", "32", "--device", "cpu"]
    pretrain = ["pretrain", "--corpus", place / "corpus.txt", "--preset", "tiny", *shared]
    pretrain += ["--vocab-size", "60", "--cache-dir", place / "cache"]
    if command == "pretrain":
        if not (place / "corpus.txt").exists():
            write_corpus(place / "corpus.txt")
        return [str(word) for word in pretrain]
    write_reviews(place / "reviews")
    line = [*command_line(place, "pretrain"), "--output", str(place / "model")]
    assert main(line) == 0
    finetune = ["finetune", "--task", "imdb", "--data", place / "reviews"]
    return [str(word) for word in [*finetune, "--model", place / "model", *shared]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches that went through compiled code, which here is the model itself."""
    seen: list[int] = []

    def compile(forward: nn.Module) -> Callable[..., Any]:
        def compiled(**batch: Any) -> Any:
            seen.append(len(batch["input_ids"]))
            return forward(**batch)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    return seen


def always_tried(monkeypatch: pytest.MonkeyPatch, timing: Timing) -> None:
    """A trial is made of every run, and finds these numbers."""

    def measured(*parts: Any) -> Timing:
        measure(*parts)
        return timing

    monkeypatch.setattr(compiling, "least_seconds", lambda step_seconds: 0.0)
    monkeypatch.setattr(compiling, "measure", measured)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_verdict_of_no_leaves_the_run_as_without_the_flag(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    line = command_line(tmp_path, command)
    assert main([*line, "--output", str(tmp_path / "without")]) == 0
    assert not calls
    always_tried(monkeypatch, SLOWER)
    assert main([*line, "--output", str(tmp_path / "with"), "--compile", "auto"]) == 0
    assert len(calls) == 16  # the trial's alone
    one, two = (tmp_path / name / "model.safetensors" for name in ("without", "with"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_verdict_is_stored_and_kept(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: list[int],
) -> None:
    line = [*command_line(tmp_path, command), "--output", str(tmp_path / "run")]
    line += ["--compile", "auto"]
    always_tried(monkeypatch, Timing(10.0, 1.0, 1.0))
    assert main(line) == 0
    said = "compile: 10 s a step eager, 1 s compiled, 1 s to compile; saves 18 s over 2 steps: used"
    assert f"{said} (auto)\n" in capsys.readouterr().err
    assert len(calls) == 16 + 2 + 2  # the trial, the announcement, the run
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["resolved"]["compile"] is True
    assert run["settings"]["compile"] == "auto"
    (tmp_path / "run/results.json").unlink()
    always_tried(monkeypatch, SLOWER)  # now it would not
    calls.clear()
    assert main([*line, "--resume"]) == 0
    assert len(calls) == 2  # the announcement; no step is left
    assert "compile:" not in capsys.readouterr().err


def test_a_dry_run_says_what_a_run_would_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: list[int],
) -> None:
    line = [*command_line(tmp_path, "pretrain"), "--compile", "auto", "--dry-run"]
    assert main(line) == 0
    assert "compile: not tried: the run is expected to last 0 s" in capsys.readouterr().err
    assert not calls
    always_tried(monkeypatch, FASTER)
    assert main(line) == 0
    assert "saves 0 s over 2 steps: not used (auto)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "stored"), [(["--compile"], True), (["--no-compile"], False), ([], False)]
)
def test_the_plain_flags_measure_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: list[int],
    flags: list[str],
    stored: bool,
) -> None:
    always_tried(monkeypatch, FASTER)
    line = [*command_line(tmp_path, "pretrain"), "--output", str(tmp_path / "run"), *flags]
    assert main(line) == 0
    assert "compile:" not in capsys.readouterr().err
    assert bool(calls) == stored
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["resolved"]["compile"] is stored
    assert run["settings"]["compile"] is stored


@pytest.mark.parametrize("value", [True, False, "auto"])
def test_a_config_file_may_set_it_and_flags_come_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bool | str
) -> None:
    found: list[Any] = []
    monkeypatch.setattr("minibert.pretraining.pretrain", lambda s: found.append(s.compile))
    (tmp_path / "config.json").write_text(json.dumps({"corpus": ["x"], "compile": value}))
    line = ["pretrain", "--config", str(tmp_path / "config.json")]
    for flags in ([], ["--compile"], ["--no-compile"], ["--compile", "auto"]):
        assert main([*line, *flags]) == 0
    assert found == [value, True, False, "auto"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--compile", "sometimes"], ["--compile", "'sometimes'", "auto"]),
        (["--compile=False"], ["--compile", "'False'", "auto"]),
        (["--no-compile", "auto"], ["unknown argument auto; expected a flag before it"]),
    ],
)
def test_other_words_are_refused(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--corpus", "x.txt", *flags]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words)


def test_a_notebook_is_told_too() -> None:
    with pytest.raises(ValueError, match=r"compile is 'sometimes', expected bool \| 'auto'"):
        PretrainSettings(corpus=["-"], compile="sometimes")
