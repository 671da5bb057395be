"""Many fine-tunings at a time: as one after the other, and what a fault or a stop leaves behind."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from samples import one_thread, quick_model  # noqa: F401

from minibert import series
from minibert.cli import main
from minibert.errors import InputError
from minibert.finetuning import read_splits
from minibert.runs import weights_digest
from minibert.series import Job, carry_out_all
from minibert.settings import FinetuneSettings
from minibert.tasks import find_task

QUICK: dict[str, Any] = {"max_steps": 2, "max_seq_length": 64, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return quick_model(tmp_path_factory.mktemp("series"))


def job(model: str, output: Path, seed: int = 0, **values: Any) -> Job:
    given = {"task": "sst2", "model": model, "output": str(output), "seed": seed, **QUICK}
    settings = FinetuneSettings.from_dict(given | values)
    task = find_task("sst2")(settings)
    data = "" if values else read_splits(task, task.find_data()).fingerprint
    return Job(f"seed {seed}", "sst2", settings, data, weights_digest(Path(model)))


def test_side_by_side_gives_the_figures_of_one_after_the_other(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told: list[str] = []
    monkeypatch.setattr(series, "log_line", lambda label, text: told.append(label))
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for at_once in (1, 2):
        jobs = [job(model, tmp_path / str(at_once) / f"seed-{seed}", seed) for seed in range(3)]
        found[at_once] = {}

        def taken(ended: Sequence[tuple[Job, dict[str, Any]]], at_once: int = at_once) -> None:
            for one, figures in ended:
                told.append("taken")
                assert figures["wall_seconds"] >= figures["seconds"]
                found[at_once][one.name] = figures

        carry_out_all(jobs, overwrite=False, taken=taken, at_once=at_once)
    assert told == [*["run", "taken"] * 3, *("run", "run", "taken"), *("run", "taken", "taken")]
    for name, figures in found[1].items():
        assert found[2][name]["dev_accuracy"] == figures["dev_accuracy"]
        assert found[2][name]["loss"] == figures["loss"]
    assert len({figures["loss"] for figures in found[2].values()}) == 3
    folder = tmp_path / "2/seed-1"
    assert not (folder / "checkpoints").exists()
    assert "dev_accuracy" in folder.with_name("seed-1.log").read_text()


def test_files_of_the_user_are_no_modules_of_a_run_beside_others(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("statistics", "queue", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of the user')\n")
    taken: list[str] = []
    jobs = [job(model, tmp_path / "runs/seed-0")]
    carry_out_all(jobs, False, lambda ended: taken.extend(one.name for one, _ in ended), at_once=2)
    assert taken == ["seed 0"]


def test_finished_runs_are_not_repeated_side_by_side(model: str, tmp_path: Path) -> None:
    jobs = [job(model, tmp_path / f"seed-{seed}", seed) for seed in range(2)]
    carry_out_all(jobs, False, lambda ended: None, at_once=2)
    (tmp_path / "seed-1/results.json").unlink()
    before = (tmp_path / "seed-0.log").read_text()
    found: list[tuple[str, bool]] = []

    def taken(ended: Sequence[tuple[Job, dict[str, Any]]]) -> None:
        found.extend((one.name, "wall_seconds" in figures) for one, figures in ended)

    carry_out_all(jobs, False, taken, at_once=2)
    assert found == [("seed 0", False), ("seed 1", False)]  # the second was begun before
    assert (tmp_path / "seed-0.log").read_text() == before


def test_the_time_left_counts_what_was_learnt_before(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(model, tmp_path / f"seed-{seed}", seed) for seed in range(2)]
    carry_out_all(jobs[:1], False, lambda ended: None)
    path = tmp_path / "seed-0/results.json"
    before = {"intermediate": {"task": "stsb", "seconds": 7200.0}}
    path.write_text(json.dumps(json.loads(path.read_text()) | before))
    told: list[str] = []
    monkeypatch.setattr(series, "log_line", lambda label, text: told.append(text))
    carry_out_all(jobs, False, lambda ended: None)
    assert told[1].endswith("seed 1; about 2 h 00 min left for all")


def test_what_fails_is_said_with_its_log(model: str, tmp_path: Path) -> None:
    wrong = job(model, tmp_path / "out/seed-0", data=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"seed 0: .*nowhere.*its log is .*seed-0\.log"):
        carry_out_all([wrong], False, lambda ended: None, at_once=2)


def test_a_stop_lets_the_others_save_their_states(model: str, tmp_path: Path) -> None:
    short = job(model, tmp_path / "short")
    settings = {"max_steps": 100_000, "save_every": 1, "output": str(tmp_path / "long")}
    long = Job("long", "", dataclasses.replace(short.settings, **settings), "", "")

    def taken(ended: Sequence[tuple[Job, dict[str, Any]]]) -> None:
        if ended:
            wait_for(lambda: bool(list((tmp_path / "long/checkpoints").glob("step-*"))))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out_all([short, long], False, taken, at_once=2)
    assert "state saved; --resume goes on" in (tmp_path / "long.log").read_text()
    assert not (tmp_path / "long/results.json").exists()
    assert (tmp_path / "short/results.json").exists()


def test_a_killed_process_is_told_apart_from_its_last_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "_CHILD", "import os; print('step 1'); os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError, match=r"seed 0: killed by SIGKILL, .* fewer --jobs"):
        carry_out_all([job(model, tmp_path / "out")], False, lambda ended: None, at_once=2)


def test_what_fails_is_not_taken_for_the_end_of_the_run_before(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = job(model, tmp_path / "out", learning_rate=1e38)
    found: list[dict[str, Any]] = []

    def taken(ended: Sequence[tuple[Job, dict[str, Any]]]) -> None:
        found.extend(figures for _, figures in ended)

    carry_out_all([before], False, taken, at_once=2)
    assert found[0]["diverged"].startswith("step 2: ")
    said = "minibert: no space left on the disk; --resume goes on from it"
    monkeypatch.setattr(series, "_CHILD", f"print({said!r}); raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="no space left on the disk; the same command goes on"):
        carry_out_all([job(model, tmp_path / "out")], True, taken, at_once=2)
    assert len(found) == 1


def test_runs_save_their_states_where_the_command_is_gone(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--task", "sst2", "--model", model, "--max-steps", "100000", "--max-seq-length", "64"]
    flags += ["--device", "cpu", "--save-every", "1", "--output", str(out), "--jobs", "2"]
    command = [sys.executable, "-m", "minibert", "search-settings", *flags]
    parent = subprocess.Popen([*command, "--try-learning-rate", "1e-4"], stderr=subprocess.DEVNULL)
    run = out / "learning-rate-0.0001/seed-0"
    wait_for(lambda: bool(list((run / "checkpoints").glob("step-*"))))
    parent.kill()
    parent.wait()
    wait_for(lambda: "state saved; --resume goes on" in run.with_name("seed-0.log").read_text())


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_search_by_two_at_a_time(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--task", "sst2", "--model", model, "--max-steps", "2", "--max-seq-length", "64"]
    flags += ["--device", "cpu", "--precision", "fp32", "--output", str(out), "--jobs", "2"]
    assert main(["search-settings", *flags, "--try-learning-rate", "1e-4", "1e-3"]) == 0
    found = json.loads((out / "search.json").read_text())
    assert [len(trial["dev"]) for trial in found["trials"]] == [1, 1]
    assert (out / "learning-rate-0.001/seed-0.log").is_file()


@pytest.mark.parametrize("command", ["search-settings", "evaluate-suite"])
def test_no_jobs_at_all_are_refused(
    command: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [model] if command == "evaluate-suite" else ["--task", "sst2", "--model", model]
    assert main([command, *given, "--jobs", "0", "--output", str(tmp_path / "out")]) == 2
    assert "--jobs is 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
