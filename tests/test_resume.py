"""Both scripts as people run them: killed, stopped, resumed, repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from samples import one_thread, without_times, write_corpus, write_reviews  # noqa: F401

from minibert.cli import main
from minibert.run_folder import RunFolder, read_metrics

ROOT = Path(__file__).parent.parent
SHARED = ["--preset", "tiny", "--vocab-size", "60"]
LOOP = [
    *("--max-seq-length", "32", "--batch-size", "8", "--max-steps", "36", "--save-every", "6"),
    *("--log-every", "1", "--eval-every", "12", "--device", "cpu", "--precision", "fp32"),
]


def start(script: str, *flags: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(ROOT / script), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and standard error."""
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def stop_at(
    process: subprocess.Popen[str], folder: Path, rows: int, number: signal.Signals
) -> None:
    """Sends a signal once the run has logged so many rows."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= rows:
            process.send_signal(number)
            return
        time.sleep(0.005)
    raise AssertionError(f"no {rows} rows: {finish(process)}")


@dataclass
class Chain:
    """Two uninterrupted runs, and one that was killed and stopped by a signal on its way."""

    whole: Path
    again: Path
    parted: Path
    number: signal.Signals
    statuses: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)


def run_chain(command: str, flags: list[str | Path], folder: Path, number: signal.Signals) -> Chain:
    """The parted run has its own processes and its own cache; it ends in this process."""
    chain = Chain(folder / "whole", folder / "again", folder / "parted", number)
    for output in (chain.whole, chain.again):
        assert main([command, *map(str, [*flags, "--output", output])]) == 0
    flags = [*flags, "--output", chain.parted, "--cache-dir", folder / "cache"]
    for rows, stop, extra in ((9, signal.SIGKILL, []), (18, number, ["--resume"])):
        process = start(f"{command}.py", *flags, *extra)
        stop_at(process, chain.parted, rows, stop)
        status, err = finish(process)
        chain.statuses.append(status)
        chain.words.append(err)
        chain.checkpoints.append(max(p.name for p in (chain.parted / "checkpoints").glob("step-*")))
    with redirect_stderr(StringIO()) as err_here:
        chain.statuses.append(main([command, *map(str, flags), "--resume"]))
    chain.words.append(err_here.getvalue())
    return chain


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_corpus(folder / "corpus.txt")
    write_reviews(folder / "reviews", count=20)
    return folder


def pretrain_flags(world: Path) -> list[str | Path]:
    cache = world / "cache"
    return [*SHARED, *LOOP, "--cache-dir", cache, "--corpus", world / "corpus.txt"]


@pytest.fixture(scope="module")
def pretraining(world: Path) -> Chain:
    folder = world / "pretraining"
    return run_chain("pretrain", pretrain_flags(world), folder, signal.SIGTERM)


@pytest.fixture(scope="module")
def finetuning(world: Path, pretraining: Chain) -> Chain:
    flags: list[str | Path] = [
        *("--task", "imdb", "--data", world / "reviews", "--model", pretraining.whole),
        *LOOP,
        *("--precision", "bf16"),
    ]
    return run_chain("finetune", flags, world / "finetuning", signal.SIGINT)


@pytest.fixture(params=["pretraining", "finetuning"])
def chain(request: pytest.FixtureRequest) -> Chain:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Chain)
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run produced, time and speed aside."""
    results = json.loads((folder / "results.json").read_text())
    predictions = folder / "predictions.jsonl"
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "tokenizer": (folder / "tokenizer.json").read_bytes(),
        "predictions": predictions.read_bytes() if predictions.exists() else b"",
        "metrics": without_times(read_metrics(folder)),
        "results": {k: v for k, v in results.items() if k != "seconds"},
    }


def test_two_runs_are_equal(chain: Chain) -> None:
    first, second = outcome(chain.whole), outcome(chain.again)
    assert len(first["metrics"]) == 39
    for part, content in first.items():
        assert second[part] == content, part


def test_a_killed_and_resumed_run_equals_one_that_was_not(chain: Chain) -> None:
    first, second = outcome(chain.whole), outcome(chain.parted)
    for part, content in first.items():
        assert second[part] == content, part


def test_finetuning_leaves_predictions(finetuning: Chain) -> None:
    assert outcome(finetuning.whole)["predictions"].count(b"\n") == 40


def test_signals_give_their_exit_status(chain: Chain) -> None:
    assert chain.statuses == [-signal.SIGKILL, 128 + chain.number, 0]


def test_a_signal_saves_the_state_that_resume_goes_on_from(chain: Chain) -> None:
    last = [line for line in chain.words[1].splitlines() if line.startswith("minibert: ")]
    assert len(last) == 1
    assert f"stopped by {chain.number.name}, state saved" in last[0]
    assert "Traceback" not in chain.words[1]
    step = int(chain.checkpoints[1].removeprefix("step-"))
    assert step > 6
    assert f"resuming from step {step}, " in chain.words[2]


def test_a_kill_costs_no_more_than_the_steps_since_the_checkpoint(chain: Chain) -> None:
    step = int(chain.checkpoints[0].removeprefix("step-"))
    assert step >= 6
    assert step % 6 == 0
    assert f"resuming from step {step}, " in chain.words[1]


# --- the rules of --resume, --overwrite and the lock ----------------------------------------------


def run_here(flags: list[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and standard error of `minibert pretrain` in this process."""
    capsys.readouterr()
    status = main(["pretrain", *map(str, flags)])
    return status, capsys.readouterr().err


def complaint(flags: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a run that ends with status 2."""
    status, err = run_here(flags, capsys)
    lines = [line for line in err.splitlines() if line.startswith("minibert: ")]
    assert (status, len(lines)) == (2, 1), err
    return lines[0]


def short_flags(world: Path, *more: str | Path) -> list[str | Path]:
    """Three steps; the last of repeated flags counts."""
    flags = pretrain_flags(world)[: -2 if "--corpus" in more else None]
    return [*flags, "--max-steps", "3", "--save-every", "1", *more]


@pytest.fixture
def unfinished(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run of three steps whose results were never written."""
    folder = tmp_path / "unfinished"
    assert run_here(short_flags(world, "--output", folder), capsys)[0] == 0
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "checkpoints/step-000000003")
    return folder


def test_what_a_kill_left_half_written_goes_on_resume(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = unfinished / ".model.safetensors.4711.tmp"
    half.write_bytes(b"half")
    complaint(short_flags(world, "--output", unfinished), capsys)
    assert half.exists(), "it is not touched where nothing is gone on with"
    assert run_here(short_flags(world, "--output", unfinished, "--resume"), capsys)[0] == 0
    assert not half.exists()


def test_resume_without_a_folder_is_an_error(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "none"
    line = complaint(short_flags(world, "--output", folder, "--resume"), capsys)
    assert str(folder) in line
    assert not folder.exists()


def test_resume_without_a_checkpoint_begins_at_step_0_and_says_so(
    world: Path, unfinished: Path, pretraining: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = without_times(read_metrics(unfinished))
    shutil.rmtree(unfinished / "checkpoints")
    status, err = run_here(short_flags(world, "--output", unfinished, "--resume"), capsys)
    assert status == 0
    assert "at step 0: no whole checkpoint yet" in err
    assert without_times(read_metrics(unfinished)) == rows


@pytest.mark.parametrize(
    "kept",
    [["run.json"], ["run.json", "tokenizer.json"], ["run.json", "tokenizer.json", "vocab.txt"]],
    ids=["run", "tokenizer", "vocabulary"],
)
def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str], kept: list[str]
) -> None:
    rows = without_times(read_metrics(unfinished))
    names = {p.name for p in unfinished.iterdir()}
    for path in unfinished.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, err = run_here(short_flags(world, "--output", unfinished, "--resume"), capsys)
    assert status == 0, err
    assert {p.name for p in unfinished.iterdir()} == names | {"results.json"}
    assert without_times(read_metrics(unfinished)) == rows


def test_a_run_of_an_older_version_goes_on_at_its_own_rate(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished / "run.json"
    run = json.loads(path.read_text())
    rows = read_metrics(unfinished)
    before = [row["learning_rate"] for row in rows if "learning_rate" in row][-1]
    for name in ("optimizer", "norm", "random_weights"):
        del run["settings"][name]
    run["resolved"]["learning_rate"] *= 0.5  # as another version may have chosen by default
    path.write_text(json.dumps(run))
    flags = short_flags(world, "--output", unfinished, "--resume")
    assert "optimizer was 'adamw', now 'muon'" in complaint([*flags, "--optimizer", "muon"], capsys)
    assert run_here(flags, capsys)[0] == 0
    rates = [row["learning_rate"] for row in read_metrics(unfinished) if "learning_rate" in row]
    assert rates[-1] == pytest.approx(0.5 * before)


def test_resume_with_another_tokenizer_than_before_is_an_error(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished / "tokenizer.json"
    path.write_text(path.read_text().replace("storm", "strom"))
    line = complaint(short_flags(world, "--output", unfinished, "--resume"), capsys)
    assert "the tokenizer has changed" in line


@pytest.mark.parametrize("key", ["settings", "resolved", "versions"])
def test_a_run_json_that_lacks_a_part_is_named(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    path = unfinished / "run.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    line = complaint(short_flags(world, "--output", unfinished, "--resume"), capsys)
    assert f"run.json is damaged: it lacks {key}" in line


def test_resume_of_a_finished_run_on_other_data_is_an_error(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_corpus(tmp_path / "own.txt")
    flags = short_flags(world, "--output", tmp_path / "run", "--corpus", text)
    assert run_here(flags, capsys)[0] == 0
    write_corpus(text, seed=5)
    assert "data fingerprint" in complaint([*flags, "--resume"], capsys)


def test_text_below_a_run_folder_is_not_read_as_corpus(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "own.txt")
    flags = short_flags(world, "--output", tmp_path / "runs/one", "--corpus", tmp_path)
    assert run_here(flags, capsys)[0] == 0
    status, err = run_here([*flags, "--overwrite"], capsys)
    assert status == 0, err
    assert "1 file(s)" in err


def test_resume_in_an_empty_folder_begins(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = run_here(short_flags(world, "--output", tmp_path, "--resume"), capsys)
    assert status == 0
    assert "at step 0" in err
    assert (tmp_path / "results.json").exists()


def test_resume_of_a_finished_run_says_so(
    world: Path, pretraining: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outcome(pretraining.whole)
    flags = [*pretrain_flags(world), "--output", pretraining.whole, "--resume"]
    status, err = run_here(flags, capsys)
    assert status == 0
    assert "finished run; nothing to do" in err
    assert outcome(pretraining.whole) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--learning-rate", "0.5"], ["learning_rate", "0.5", "None"]),
        (["--seed", "7"], ["seed was 0, now 7"]),
        (["--max-steps", "9"], ["max_steps was 3, now 9"]),
        (["--dropout", "0.2"], ["dropout was None, now 0.2"]),
    ],
)
def test_resume_with_other_settings_names_the_difference(
    world: Path,
    unfinished: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str | Path],
    named: list[str],
) -> None:
    metrics = (unfinished / "metrics.jsonl").read_bytes()
    line = complaint(short_flags(world, "--output", unfinished, "--resume", *flags), capsys)
    for part in named:
        assert part in line
    assert (unfinished / "metrics.jsonl").read_bytes() == metrics


def test_resume_with_other_data_names_the_difference(
    world: Path, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (world / "corpus.txt").read_text()
    other = tmp_path / "corpus.txt"
    other.write_text(text.replace("storm", "river", 1))
    flags = short_flags(world, "--output", unfinished, "--resume", "--corpus", other)
    assert "corpus was" in complaint(flags, capsys)


def test_resume_goes_on_with_the_same_text_wherever_it_lies(
    world: Path, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copy(world / "corpus.txt", tmp_path / "moved.txt")
    flags = short_flags(world, "--output", unfinished, "--resume", "--corpus", moved)
    status, err = run_here(flags, capsys)
    assert (status, "resuming from step" in err) == (0, True), err
    assert json.loads((unfinished / "run.json").read_text())["settings"]["corpus"] == [str(moved)]


def test_resume_goes_on_with_the_same_files_in_another_order(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shells of two languages sort a glob in two ways."""
    files = [shutil.copy(world / "corpus.txt", tmp_path / "a.txt"), tmp_path / "B.txt"]
    files[1].write_text("The harbour was quiet. Nobody came.\n\nIt rained. They left.\n")
    flags = short_flags(world, "--output", tmp_path / "run", "--corpus", *files)
    assert run_here(flags, capsys)[0] == 0
    (tmp_path / "run/results.json").unlink()
    for order in (files[::-1], files[::-1], files):
        flags = short_flags(world, "--output", tmp_path / "run", "--resume", "--corpus", *order)
        status, err = run_here(flags, capsys)
        assert (status, "finished" in err or "resuming" in err) == (0, True), err
    (tmp_path / "B.txt").write_text("The harbour was loud. Somebody came.\n\nSun. They stayed.\n")
    assert "data fingerprint was" in complaint(flags, capsys)


@pytest.mark.parametrize("seeds", [[], ["--seeds", "2"]])
def test_resume_of_a_finetuning_goes_on_with_the_same_data_wherever_it_lies(
    pretraining: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: list[str]
) -> None:
    rows = "text,label\n" + "".join(f"{w} {i},{w}\n" for i in range(8) for w in ("storm", "river"))
    for name in ("x.csv", "test.csv"):
        (tmp_path / name).write_text(rows)

    def flags(folder: Path) -> list[str]:
        return [
            *("finetune", "--task", "classification", "--model", str(pretraining.whole), *LOOP),
            *("--max-steps", "2", "--output", str(tmp_path / "run"), *seeds),
            *("--data", str(folder / "x.csv"), "--test-data", str(folder / "test.csv")),
        ]

    assert main(flags(tmp_path)) == 0
    whole, moved = outcome(tmp_path / "run"), tmp_path / "moved"
    (tmp_path / "run/results.json").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "spare")
    moved.mkdir()
    for name in ("x.csv", "test.csv"):
        (tmp_path / name).rename(moved / name)
    assert main([*flags(moved), "--resume"]) == 0
    again = outcome(tmp_path / "run")
    assert again["weights"] == whole["weights"]
    assert again["predictions"] == whole["predictions"]
    settings = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert (settings["data"], settings["test_data"]) == (
        str(moved / "x.csv"),
        str(moved / "test.csv"),
    )
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    (moved / "test.csv").write_text(rows.replace("storm 3", "river 3"))
    (tmp_path / "run/results.json").unlink()
    assert main([*flags(moved), "--resume"]) == 2
    assert "data fingerprint was" in capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "spare").rename(tmp_path / "run")
    assert main([*flags(moved), "--resume"]) == 2
    assert f"data was '{tmp_path / 'x.csv'}', now '{moved}" in capsys.readouterr().err


def test_resume_after_the_text_has_changed_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (world / "corpus.txt").read_text()
    own = tmp_path / "corpus.txt"
    own.write_text(text)
    flags = short_flags(world, "--output", tmp_path / "run", "--corpus", own)
    assert run_here(flags, capsys)[0] == 0
    (tmp_path / "run/results.json").unlink()
    own.write_text(text.replace("storm", "river", 1))  # the same size, one word in the middle
    assert "data fingerprint was" in complaint([*flags, "--resume"], capsys)


def test_resume_of_a_finetuning_with_another_model_names_the_difference(
    world: Path, finetuning: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finetuning.whole, folder)
    (folder / "results.json").unlink()
    flags = ["--task", "imdb", "--data", world / "reviews", "--model", finetuning.whole, *LOOP]
    status = main(["finetune", *map(str, flags), "--output", str(folder), "--resume"])
    assert status == 2
    assert "model was" in capsys.readouterr().err.splitlines()[-1]


def test_resume_auto_begins_and_continues(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = short_flags(world, "--output", tmp_path / "run", "--resume", "auto")
    status, err = run_here(flags, capsys)
    assert status == 0
    assert "resuming" not in err
    rows = without_times(read_metrics(tmp_path / "run"))
    (tmp_path / "run/results.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step-000000003")
    status, err = run_here(flags, capsys)
    assert status == 0
    assert "resuming from step 2" in err
    assert without_times(read_metrics(tmp_path / "run")) == rows
    assert "nothing to do" in run_here(flags, capsys)[1]


def test_an_existing_run_is_never_overwritten_silently(
    world: Path, pretraining: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outcome(pretraining.whole)
    line = complaint([*pretrain_flags(world), "--output", pretraining.whole], capsys)
    assert "--resume" in line
    assert "--overwrite" in line
    assert outcome(pretraining.whole) == before


def test_overwrite_starts_anew_and_leaves_other_files_alone(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unfinished / "notes.txt").write_text("mine")
    flags = short_flags(world, "--output", unfinished, "--overwrite", "--seed", "5")
    assert run_here(flags, capsys)[0] == 0
    assert json.loads((unfinished / "run.json").read_text())["settings"]["seed"] == 5
    assert [r["step"] for r in read_metrics(unfinished) if "loss" in r] == [1, 2, 3]
    assert (unfinished / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--resume"], ["--resume", "auto"]])
def test_a_folder_that_is_no_run_is_never_touched(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "model.safetensors").write_text("three years of work")
    line = complaint(short_flags(world, "--output", folder, *extra), capsys)
    assert str(folder) in line
    assert [p.name for p in folder.iterdir() if p.name != ".lock"] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_text() == "three years of work"


def test_a_failed_overwrite_keeps_the_run_before(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.read_bytes() for p in unfinished.iterdir() if p.is_file()}
    flags = ["--output", unfinished, "--overwrite", "--vocab-size", "99999"]
    complaint(short_flags(world, *flags), capsys)
    assert {p.name: p.read_bytes() for p in unfinished.iterdir() if p.is_file()} == before


def test_a_folder_in_use_names_the_process(
    world: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = (
        "import sys; from minibert.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(unfinished)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        line = complaint(short_flags(world, "--output", unfinished, "--resume"), capsys)
        assert f"process {process.pid}" in line
        process.stdin.close()
    with RunFolder(unfinished):  # free again
        pass
