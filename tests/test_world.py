"""Several processes under torchrun do what one does: the same curve, files, resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from samples import corpus_text, write, write_corpus, write_reviews

from minibert.cli import main
from minibert.run_folder import read_metrics
from minibert.world import ALONE, World

ROOT = Path(__file__).parent.parent
PRETRAIN = [
    *("--preset", "tiny", "--vocab-size", "60", "--max-seq-length", "32", "--batch-size", "6"),
    *("--max-steps", "40", "--save-every", "2", "--log-every", "1", "--eval-every", "20"),
    *("--device", "cpu", "--precision", "fp32", "--dropout", "0"),
]


def torchrun(processes: int, *line: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A command of minibert under torchrun, on a port of its own, in a session of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={processes}", *options]
    return subprocess.Popen(
        [*launcher, str(ROOT / f"{line[0]}.py"), *map(str, line[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, reviews, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("world")
    write_corpus(folder / "corpus.txt")
    write_reviews(folder / "reviews")
    torch.set_num_threads(1)
    assert main(["pretrain", *pretrain_flags(folder, "alone")[1:]]) == 0
    return folder


def pretrain_flags(folder: Path, output: str, *more: str) -> list[str]:
    places = ("--corpus", folder / "corpus.txt", "--cache-dir", folder / "cache")
    return ["pretrain", *map(str, (*places, *PRETRAIN, "--output", folder / output, *more))]


def losses(folder: Path) -> list[tuple[float, ...]]:
    """Every figure of every row but those of time."""
    names = ("loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "grad_norm")
    names += ("learning_rate", "eval_mlm_loss", "eval_nsp_accuracy", "epoch")
    return [tuple(row[n] for n in names if n in row) for row in read_metrics(folder)]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Curves, results and weights are equal to rounding."""
    for row, other in zip(losses(ours), losses(theirs), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    results: list[dict[str, Any]] = [
        json.loads((folder / "results.json").read_text()) for folder in (ours, theirs)
    ]
    for name, value in results[1].items():
        if isinstance(value, (int, float)) and name != "seconds":
            assert results[0][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    weights = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, atol=2e-4, rtol=0, msg=name)


def assert_same_format(ours: Path, theirs: Path) -> None:
    """The model folder and the checkpoints hold the same tensors by the same names."""
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    for path in [theirs / "model.safetensors", *theirs.glob("checkpoints/*/*.safetensors")]:
        tensors = load_file(ours / path.relative_to(theirs))
        assert {k: (v.dtype, v.shape) for k, v in tensors.items()} == {
            k: (v.dtype, v.shape) for k, v in load_file(path).items()
        }


def test_alone_every_operation_is_the_identity() -> None:
    assert ALONE.is_main
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.from_main("x") == "x"
    assert ALONE.map(lambda i: i * i, 4) == [0, 1, 4, 9]
    tensor = torch.ones(2)
    assert ALONE.sum(tensor) is tensor
    assert ALONE.largest(tensor) is tensor
    with ALONE.main_first():
        ALONE.wait()


def test_shares_are_parts_of_the_whole() -> None:
    items = list(range(7))
    shares = [World(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) == 1


def test_rounds_are_as_many_for_each_and_count_every_item_once() -> None:
    for count in range(8):
        rounds = [World(rank, 3).rounds(range(count)) for rank in range(3)]
        assert {len(own) for own in rounds} == {-(-count // 3)}
        assert sorted(item for own in rounds for item, counts in own if counts) == [*range(count)]
    assert ALONE.rounds([1, 2]) == [(1, True), (2, True)]


# Four processes share six sequences unevenly, in one or two micro-batches each; held-out batches
# and rows of parameters do not divide by three.
@pytest.mark.parametrize(
    ("processes", "micro", "more"), [(2, "6", ()), (3, "1", ()), (4, "1", ("--shard",))]
)
def test_pretraining_by_several_has_the_curve_of_one(
    world: Path, processes: int, micro: str, more: tuple[str, ...]
) -> None:
    name = f"by-{processes}"
    out, err = finish(
        torchrun(processes, *pretrain_flags(world, name, "--micro-batch-size", micro, *more))
    )
    assert_same_run(world / name, world / "alone")
    assert_same_format(world / name, world / "alone")
    assert out.count("mlm_accuracy") == 1  # one process speaks
    assert err.count("network:") == 1
    run = json.loads((world / name / "run.json").read_text())
    assert run["resolved"]["processes"] == processes


# Muon's orthogonal steps are made in bf16, where the last bit of a gradient may turn one of theirs.
@pytest.mark.parametrize(
    ("flag", "value", "within"), [("--optimizer", "muon", 2e-3), ("--precision", "bf16", 2e-2)]
)
def test_products_in_bf16_by_two_have_the_curve_of_one(
    world: Path, flag: str, value: str, within: float
) -> None:
    more = (flag, value, "--max-steps", "8")
    assert main(["pretrain", *pretrain_flags(world, value, *more)[1:]]) == 0
    finish(torchrun(2, *pretrain_flags(world, f"{value}-by-two", *more)))
    rows, others = losses(world / value), losses(world / f"{value}-by-two")
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=within, abs=1e-5)


def test_dropout_by_two_goes_on_to_the_bit(world: Path) -> None:
    more = ("--precision", "bf16", "--dropout", "0.1")
    finish(torchrun(2, *pretrain_flags(world, "dropout", *more)))
    again = unfinished_copy(world / "dropout", "dropout-again")
    _, err = finish(torchrun(2, *pretrain_flags(world, "dropout-again", *more, "--resume")))
    assert "resuming from step 38" in err
    assert losses(again) == losses(world / "dropout")
    weights = [load_file(folder / "model.safetensors") for folder in (again, world / "dropout")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("more", [(), ("--shard",)])
def test_compiled_by_two_has_the_curve_of_one(world: Path, more: tuple[str, ...]) -> None:
    name = f"compiled{'-'.join(more)}"
    finish(torchrun(2, *pretrain_flags(world, name, "--compile", *more)))
    assert_same_run(world / name, world / "alone")
    assert_same_format(world / name, world / "alone")


def workers_at_a_checkpoint(process: subprocess.Popen[str], folder: Path) -> list[int]:
    """The process ids of a launcher's workers, once the run has saved."""
    deadline = time.monotonic() + 240
    while not list((folder / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for path in children for pid in path.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_run_of_two_goes_on_alone(world: Path) -> None:
    flags = pretrain_flags(world, "parted")
    process = torchrun(2, *flags)
    workers = workers_at_a_checkpoint(process, world / "parted")
    assert len(workers) == 2
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (world / "parted" / "results.json").exists()
    assert main([*flags, "--resume"]) == 0
    assert_same_run(world / "parted", world / "alone")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_torchrun_starts_again_after_a_killed_worker(world: Path) -> None:
    flags = pretrain_flags(world, "again", "--resume", "auto")
    process = torchrun(2, *flags, options=("--max-restarts=2",))
    os.kill(workers_at_a_checkpoint(process, world / "again")[-1], signal.SIGKILL)
    _, err = finish(process)
    assert "resuming from step" in err
    assert_same_run(world / "again", world / "alone")


def unfinished_copy(folder: Path, name: str) -> Path:
    """A finished run as it was two steps before its end."""
    copy = folder.parent / name
    shutil.copytree(folder, copy)
    (copy / "results.json").unlink()
    (copy / "model.safetensors").unlink()
    shutil.rmtree(copy / "checkpoints" / "step-000000040")
    return copy


def test_a_sharded_run_goes_on_unsharded_and_the_reverse(world: Path) -> None:
    finish(torchrun(2, *pretrain_flags(world, "sharded", "--shard")))
    there = unfinished_copy(world / "sharded", "unsharded")
    assert main([*pretrain_flags(world, "unsharded", "--resume")]) == 0
    assert_same_run(there, world / "alone")
    again = unfinished_copy(there, "sharded-again")
    _, err = finish(torchrun(3, *pretrain_flags(world, "sharded-again", "--resume", "--shard")))
    assert "resuming from step 38" in err
    assert_same_run(again, world / "alone")
    assert_same_format(again, world / "alone")


def test_one_process_alone_cannot_shard(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pretrain_flags(world, "lonely", "--shard")) == 2
    assert "torchrun --nproc-per-node" in capsys.readouterr().err.splitlines()[-1]
    assert not (world / "lonely").exists()


@pytest.mark.parametrize(
    ("size", "adversarial", "more"),
    [("7", "0", ()), ("6", "0.3", ("--shard", "--micro-batch-size", "2"))],
)
def test_finetuning_by_two_has_the_results_of_one(
    world: Path, size: str, adversarial: str, more: tuple[str, ...]
) -> None:
    # Shares of a batch are uneven, and the last batch may leave a process without one.
    flags = [
        *("--task", "imdb", "--data", world / "reviews", "--model", world / "alone"),
        *("--max-seq-length", "32", "--batch-size", size, "--epochs", "2", "--log-every", "1"),
        *("--device", "cpu", "--precision", "fp32", "--dropout", "0", "--seed", "3"),
        *("--adversarial-epsilon", adversarial),
    ]
    alone, two = (world / f"imdb-{name}{len(more)}" for name in ("alone", "two"))
    assert main(["finetune", *map(str, [*flags, "--output", alone])]) == 0
    finish(torchrun(2, "finetune", *flags, *more, "--output", two))
    assert_same_run(two, alone)
    assert_same_format(two, alone)
    ours, theirs = (
        [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for folder in (two, alone)
    )
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("conll2003", ()),
        ("squad2", ("--adversarial-epsilon", "0.3")),
        ("stsb", ("--adversarial-epsilon", "0.3")),
        ("translation", ()),
    ],
)
def test_other_families_by_two_have_the_answers_of_one(
    world: Path, task: str, more: tuple[str, ...]
) -> None:
    flags = [
        *("--task", task, "--model", world / "alone", "--max-steps", "6", "--log-every", "1"),
        *("--max-seq-length", "64", "--batch-size", "7", "--limit", "40"),
        *("--device", "cpu", "--precision", "fp32", "--dropout", "0", *more),
    ]
    if task == "translation":  # of words that the model knows
        lines = [line for line in corpus_text(documents=20).split("\n") if line]
        source = write(world / "source.txt", "\n".join(lines))
        target = write(world / "target.txt", "\n".join(lines).upper())
        flags += ["--data", source, "--target-data", target]
    alone, two = (world / f"{task}-{name}" for name in ("alone", "two"))
    assert main(["finetune", *map(str, [*flags, "--output", alone])]) == 0
    finish(torchrun(2, "finetune", *flags, "--output", two))
    assert_same_run(two, alone)
    assert_same_format(two, alone)
    ours, theirs = (
        [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for folder in (two, alone)
    )
    assert len(ours) == len(theirs) > 5
    for row, other in zip(ours, theirs, strict=True):
        assert row["id"] == other["id"]
        assert row["prediction"] == pytest.approx(other["prediction"], abs=1e-3)


def test_what_is_wrong_is_said_once(world: Path) -> None:
    process = torchrun(2, "pretrain", "--corpus", world / "nothing.txt", "--output", world / "none")
    _, err = process.communicate(timeout=120)
    assert process.returncode
    assert err.count("minibert: ") == 1
    assert not (world / "none").exists()
