"""What a run writes is what `--overwrite` removes, whatever the task."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from samples import one_thread  # noqa: F401

from minibert.errors import InputError
from minibert.files import bundled_data, write_atomically, write_json
from minibert.finetuning import finetune
from minibert.pretraining import pretrain
from minibert.run_folder import RunFolder, read_metrics
from minibert.settings import FinetuneSettings
from minibert.tasks import FAMILIES

LOOP: dict[str, Any] = {
    **{"max_steps": 1, "device": "cpu", "precision": "fp32", "max_seq_length": 64, "batch_size": 8},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One step on the bundled text, for samples in more than made-up words."""
    folder = tmp_path_factory.mktemp("folder")
    where = {"output": str(folder / "model"), "cache_dir": str(folder / "cache")}
    corpus = [str(bundled_data() / "wiki.txt")]
    pretrain(corpus=corpus, num_layers=1, hidden_size=64, vocab_size=600, **LOOP, **where)
    return str(folder / "model")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.names[-1])
def test_nothing_of_a_run_is_left_when_its_folder_is_cleared(
    family: Any, model: str, tmp_path: Path
) -> None:
    with_samples = (n for n in family.names if family(FinetuneSettings(task=n)).sample)
    output = tmp_path / "run"
    options = {}
    if "num_beams" in family.uses:
        pytest.importorskip("sacrebleu")
        pytest.importorskip("rouge_score")
        options = {"num_beams": 1, "max_target_length": 4}
    finetune(task=next(with_samples), model=model, output=str(output), **options, **LOOP)
    (output / "notes.txt").write_text("mine")
    RunFolder(output).clear()
    assert sorted(path.name for path in output.iterdir()) == [".lock", "notes.txt"]


def test_a_readme_beside_a_run_that_writes_none_is_left_alone(tmp_path: Path) -> None:
    for name in ("README.txt", "model.safetensors"):
        (tmp_path / name).write_text("mine")
    RunFolder(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["README.txt"]


def a_run(path: Path, **settings: Any) -> RunFolder:
    path.mkdir()
    folder = RunFolder(path)
    folder.write_run({"settings": settings, "resolved": {}, "versions": {}})
    return folder


def test_the_runs_of_seeds_go_with_theirs_alone(tmp_path: Path) -> None:
    for seeds in (1, 2):
        folder = a_run(tmp_path / str(seeds), seeds=seeds)
        for number in (0, 1):
            a_run(folder.path / f"seed-{number}")
        (folder.path / "seed-notes").mkdir()
        (folder.path / "seed-notes/notes.txt").write_text("mine")
        folder.clear()
        left = sorted(path.name for path in folder.path.iterdir())
        assert left == (["seed-notes"] if seeds == 2 else ["seed-0", "seed-1", "seed-notes"])


def test_a_stop_while_old_seeds_are_removed_leaves_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_run(tmp_path / "run", seeds=2)
    (folder.path / "results.json").write_text("{}")
    for number in (0, 1):
        a_run(folder.path / f"seed-{number}")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            folder.clear()
    assert folder.results is None
    assert len(list(folder.path.glob("seed-*/run.json"))) == 1
    with folder:
        assert folder.check_may_start("no", overwrite=True) is False
        folder.clear()
        assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_a_row_that_is_not_whole_yet_is_no_row(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    for cut in ("", '{"st', '{"step": 2}'):  # the last one may go on
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + cut)
        assert read_metrics(tmp_path) == [{"step": 1}]


def stopped(path: Path, ignore_errors: bool = False) -> None:
    if not ignore_errors:
        raise KeyboardInterrupt


@pytest.mark.parametrize("others", [[".lock"], [".lock", "."]])
def test_a_lock_whose_file_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[str]
) -> None:
    place, take = tmp_path / "run", fcntl.flock

    def leave_and_take(*lock: Any) -> None:  # as one that ends without a run, just then
        monkeypatch.undo()
        (place / ".lock").unlink()
        if "." in others:
            place.rmdir()
        take(*lock)

    monkeypatch.setattr(fcntl, "flock", leave_and_take)
    with RunFolder(place), pytest.raises(InputError, match="in use by process"):
        RunFolder(place).__enter__()


def test_a_disk_without_locks_is_told_from_a_folder_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*lock: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(InputError, match="cannot be locked .Function not implemented"):
        RunFolder(tmp_path).__enter__()


def test_a_link_that_leads_nowhere_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(InputError, match="run is a link to nowhere, which is not there"):
        RunFolder(tmp_path / "run").__enter__()


def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match="caf\ufffd is not UTF-8"), RunFolder(folder):
        pass
    assert not list(tmp_path.iterdir())


def test_two_writers_of_a_file_do_not_meet(tmp_path: Path) -> None:
    """As two threads that make one index: the later one wins, and either file is whole."""
    path = tmp_path / "index"

    def first(temporary: Path) -> None:
        temporary.write_text("first")
        write_atomically(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"
        assert temporary.read_text() == "first"

    write_atomically(path, first)
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_file_that_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    wanted = tmp_path / "lacking" / "run.json"
    with pytest.raises(FileNotFoundError, match=f"'{wanted}'$"):
        write_json(wanted, {})
