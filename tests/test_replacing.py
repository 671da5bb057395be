"""What an earlier run keeps where a new one cannot begin in its folder, and how one goes on."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from samples import make_model_folder, one_thread, write_corpus  # noqa: F401

from minibert import adaptation, finetuning, pretraining
from minibert.errors import InputError, Interrupted
from minibert.finetuning import finetune
from minibert.pretraining import pretrain
from minibert.runs import RunResult
from minibert.settings import FinetuneSettings
from minibert.train import Loop

LOOP: dict[str, Any] = {
    **{"max_seq_length": 32, "batch_size": 4, "max_steps": 2, "device": "cpu", "precision": "fp32"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "start")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.csv", 40)


def write_rows(path: Path, count: int) -> Path:
    rows = [f"river bridge {i},{'yes' if i % 2 else 'no'}" for i in range(count)]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path) -> None:
    rows = [f"river {i},bridge {i},{i % 5}" for i in range(20)]
    path.write_text("\n".join(["text,text_pair,score", *rows]) + "\n", encoding="utf-8")


def ends(error: BaseException) -> Any:
    """What ends a run by this error wherever it is called in the place of something else."""

    def failing(*given: Any, **more: Any) -> None:
        raise error

    return failing


def tune(model: Path | None, data: Path, output: Path, **options: Any) -> RunResult:
    given = {"task": "classification", "model": model and str(model), "data": str(data)}
    where = {"output": str(output), "cache_dir": str(data.parent / "cache")}
    return finetune(**{**LOOP, **given, **where, **options})


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("wrong", ["column", "text", "device", "other"])
def test_an_input_error_leaves_the_earlier_run_as_it_was(
    model: Path, data: Path, tmp_path: Path, seeds: int, wrong: str
) -> None:
    run = tmp_path / "run"
    tune(model, data, run, seeds=seeds)
    before = files(run)
    (tmp_path / "short.txt").write_text("One sentence.\n")
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "column": ("lable", {"label_column": "lable"}),
        "text": ("1 sentence", {"adapt": str(tmp_path / "short.txt")}),
        "device": ("cuda:99 is not there", {"device": "cuda:99"}),
        "other": (
            "--intermediate-task tagging: ",  # of which a table of texts is no data
            {"intermediate_task": "tagging", "intermediate_data": str(data)},
        ),
    }
    said, options = cases[wrong]
    with pytest.raises(InputError, match=said):
        tune(model, data, run, seeds=seeds, overwrite=True, **options)
    assert files(run) == before
    assert tune(model, data, run, seeds=seeds, resume=True).figures["num_eval"]


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("was_adapted", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_before_anything_is_trained_leaves_the_earlier_run(
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seeds: int,
    was_adapted: bool,
    error: BaseException,
) -> None:
    """What the earlier run learnt first is nothing that the new one trained."""
    write_corpus(tmp_path / "own.txt", documents=8)
    run, text = tmp_path / "run", str(tmp_path / "own.txt")
    first: dict[str, Any] = {"adapt": text, "adapt_epochs": 0.5} if was_adapted else {}
    tune(model, data, run, seeds=seeds, **first)
    before = files(run)
    with monkeypatch.context() as full:
        full.setattr(pretraining, "open_store", ends(error))  # as where the disk is full
        with pytest.raises(type(error)):
            tune(model, data, run, seeds=seeds, overwrite=True, adapt=text, adapt_epochs=1)
    assert files(run) == before
    assert tune(model, data, run, seeds=seeds, resume=True, **first).figures["num_eval"]
    assert files(run) == before


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_seed_that_has_learnt_nothing_yet_replaces_nothing(
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seeds: int,
    error: BaseException,
) -> None:
    run = tmp_path / "run"
    tune(model, data, run)
    before = files(run)
    read = finetuning.read_splits

    def failing(task: Any, source: Any) -> Any:  # of the task before
        if task.name == "similarity":
            raise error
        return read(task, source)

    write_pairs(tmp_path / "pairs.csv")
    pairs = str(tmp_path / "pairs.csv")
    first: dict[str, Any] = {"intermediate_task": "similarity", "intermediate_data": pairs}
    with monkeypatch.context() as full:
        full.setattr(finetuning, "read_splits", failing)
        with pytest.raises(type(error)):
            tune(model, data, run, seeds=seeds, overwrite=True, **first)
    assert files(run) == before


@pytest.mark.parametrize("first", [{}, {"adapt": "auto", "adapt_epochs": 0.5}])
def test_what_was_gathered_for_a_run_that_could_not_begin_goes_with_it(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    tune(model, data, run, **first)
    before = files(run)
    other = write_rows(tmp_path / "other.csv", 30)
    with monkeypatch.context() as full:
        full.setattr(pretraining, "open_store", ends(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            tune(model, other, run, overwrite=True, adapt="auto")
    assert files(run) == before


def test_an_adaptation_by_another_name_is_nothing_that_was_trained(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "own.txt", documents=8)
    run = tmp_path / "run"
    tune(model, data, run, adapt=str(tmp_path / "own.txt"), adapt_epochs=0.5)
    before = files(run)
    monkeypatch.chdir(tmp_path)
    read = finetuning.read_splits

    def failing(task: Any, source: Any) -> Any:  # of the task that comes between
        if task.name == "similarity":
            raise KeyboardInterrupt
        return read(task, source)

    write_pairs(tmp_path / "pairs.csv")
    between = {"intermediate_task": "similarity", "intermediate_data": "pairs.csv"}
    with monkeypatch.context() as stopped:
        stopped.setattr(finetuning, "read_splits", failing)
        with pytest.raises(KeyboardInterrupt):
            tune(model, data, run, overwrite=True, adapt="own.txt", adapt_epochs=0.5, **between)
    found = files(run)
    assert found.keys() == before.keys()
    assert {name for name in found if found[name] != before[name]} <= {"adapted/run.json"}


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("stage", ["adapt", "intermediate_task"])
def test_what_cannot_be_scored_is_refused_before_an_earlier_stage_is_trained(
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seeds: int,
    stage: str,
) -> None:
    run = tmp_path / "run"
    tune(model, data, run)
    before = files(run)
    rows: list[dict[str, Any]] = [
        {"text": "river", "label": "yes"},
        {"text": "bank", "label": "no"},
    ]
    rows.append({"text": "both", "label": ["yes", "no"]})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    write_pairs(tmp_path / "pairs.csv")
    write_corpus(tmp_path / "own.txt", documents=8)
    options: dict[str, Any] = {"adapt": str(tmp_path / "own.txt")}
    if stage != "adapt":
        options = {stage: "similarity", "intermediate_data": str(tmp_path / "pairs.csv")}
    monkeypatch.setattr(Loop, "take_step", ends(AssertionError("a step was taken")))
    options |= {"test_data": str(tmp_path / "test.jsonl"), "seeds": seeds}
    with pytest.raises(InputError, match="has 2 labels"):
        tune(model, data, run, overwrite=True, **options)
    assert files(run) == before
    with pytest.raises(InputError, match="has 2 labels"):
        tune(model, data, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("name", ["predictions.jsonl", "seed-1/predictions.jsonl"])
def test_a_run_does_not_replace_the_file_that_it_learns_from(
    model: Path, data: Path, tmp_path: Path, seeds: int, name: str
) -> None:
    run = tmp_path / "run"
    tune(model, data, run, seeds=2)
    before = files(run)
    options: dict[str, Any] = {"seeds": seeds, "overwrite": True}
    with pytest.raises(InputError, match=f"--data .*{name} is a file of --output"):
        tune(model, run / name, run, **options)
    given = {"overwrite": True, "corpus": str(run / name), "output": str(run), "preset": "tiny"}
    with pytest.raises(InputError, match=f"--corpus .*{name} is a file of --output"):
        pretrain(**given, **LOOP, text_field="text")
    assert files(run) == before
    own = run / "own.csv"  # which no run writes
    write_rows(own, 12)
    assert tune(model, own, run, overwrite=True).figures["num_eval"]


def test_a_run_goes_on_with_its_model_however_it_is_named(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    tune(model, data, run)
    monkeypatch.chdir(model.parent)
    assert tune(Path(model.name), data, run, resume=True).folder == run
    other = make_model_folder(tmp_path / "other")
    with pytest.raises(InputError, match="--resume: model was .*start', now .*other"):
        tune(other, data, run, resume=True)


def test_a_path_in_settings_is_its_name(model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given: dict[str, Any] = {"task": "classification", "model": model, "data": data, **LOOP}
    settings = FinetuneSettings(**given, output=run, cache_dir=tmp_path / "cache")
    assert (settings.data, settings.output) == (str(data), str(run))
    assert finetune(settings).folder == run
    for wrong in ({"seeds": "3"}, {"epochs": "3"}, {"data": 3}):
        (name,) = wrong
        with pytest.raises(InputError, match=f"settings: {name} is .*, expected"):
            FinetuneSettings(task="imdb", **wrong)  # type: ignore[arg-type]


def test_best_weights_that_are_lost_in_the_end_are_chosen_anew(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def failing(*given: Any, **more: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "save_model", failing)
        with pytest.raises(OSError, match="no space"):
            tune(model, data, run, seeds=2)
    for best in (run / "seed-0" / "checkpoints").rglob("best-*.safetensors"):
        best.write_bytes(b"junk")
    figures = tune(model, data, run, seeds=2, resume=True).figures
    assert 0 <= figures["seeds"][0]["dev_accuracy"] <= 1
    assert figures["seeds"][0]["best_step"] == 2


def test_of_several_seeds_one_model_is_kept_at_a_time(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: weakref.WeakSet[Loop] = weakref.WeakSet()
    alive: list[int] = []
    begin = Loop.__init__

    def counted(self: Loop, *given: Any, **more: Any) -> None:
        alive.append(len(known))
        begin(self, *given, **more)
        known.add(self)

    monkeypatch.setattr(Loop, "__init__", counted)
    result = tune(model, data, tmp_path / "run", seeds=3)
    assert alive == [0, 0, 0]
    assert result.model is not None


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_adapted_run_comes_back_whole(
    model: Path, data: Path, tmp_path: Path, seeds: int
) -> None:
    write_corpus(tmp_path / "own.txt", documents=8)
    (tmp_path / "short.txt").write_text("One sentence.\n")
    run = tmp_path / "run"
    options: dict[str, Any] = {"adapt_epochs": 0.5, "seeds": seeds}
    tune(model, data, run, adapt=str(tmp_path / "own.txt"), **options)
    before = files(run)
    with pytest.raises(InputError, match="1 sentence"):
        tune(model, data, run, overwrite=True, adapt=str(tmp_path / "short.txt"), **options)
    assert files(run) == before


def test_an_input_error_leaves_nothing_where_nothing_was(
    model: Path, data: Path, tmp_path: Path
) -> None:
    for wrong in ({"label_column": "lable"}, {"select": "acuracy"}, {"device": "cuda:99"}):
        with pytest.raises(InputError):
            tune(model, data, tmp_path / "run", seeds=2, **wrong)
        assert not (tmp_path / "run").exists()


def test_a_new_run_takes_the_place_of_the_earlier_one(
    model: Path, data: Path, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "own.txt", documents=8)
    run = tmp_path / "run"
    tune(model, data, run, seeds=3)
    tune(model, data, run, overwrite=True, adapt=str(tmp_path / "own.txt"), adapt_epochs=0.5)
    assert not list(run.glob("seed-*")) and not list(run.glob(".*.tmp"))
    tune(model, data, run, overwrite=True, seeds=2)
    assert sorted(p.name for p in run.glob("seed-*")) == ["seed-0", "seed-1"]
    assert not (run / "adapted").exists()


def test_a_run_does_not_replace_the_model_that_it_starts_from(
    model: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    tune(model, data, run, seeds=2)
    before = files(run)
    for seeds in (1, 2):
        with pytest.raises(InputError, match="lies in --output"):
            tune(run / "seed-1", data, run, seeds=seeds, overwrite=True)
        assert files(run) == before


def test_finished_seeds_of_other_data_are_not_called_finished(
    model: Path, data: Path, tmp_path: Path
) -> None:
    tune(model, data, tmp_path / "run", seeds=2)
    write_rows(data, 44)
    with pytest.raises(InputError, match="the data fingerprint was"):
        tune(model, data, tmp_path / "run", seeds=2, resume=True)


def test_a_run_stopped_while_it_adapts_goes_on_from_the_model_it_began_with(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "own.txt", documents=8)
    chosen = [model]
    monkeypatch.setattr(
        finetuning, "choose_model", lambda s: Path(s.model) if s.model else chosen[0]
    )
    options = {"adapt": str(tmp_path / "own.txt"), "adapt_epochs": 0.5}

    def stopped(settings: Any) -> Any:
        raise Interrupted("stopped", 143)

    with monkeypatch.context() as patch:
        patch.setattr(adaptation, "pretrain", stopped)
        with pytest.raises(Interrupted):
            tune(None, data, tmp_path / "run", **options)
    chosen[0] = Path(make_model_folder(tmp_path / "newer"))
    run = tune(None, data, tmp_path / "run", **options, resume=True)
    began = json.loads((run.folder / "adapted/run.json").read_text())["resolved"]
    assert began["start"] == str(model)


def test_settings_and_fields_by_name_are_not_mixed() -> None:
    with pytest.raises(InputError, match="not both; got max_steps"):
        finetune(FinetuneSettings(task="imdb"), max_steps=7)


def test_what_stands_where_settings_belong_is_told_to_need_a_name() -> None:
    found: Any = "imdb"
    with pytest.raises(InputError, match="finetune was given 'imdb'; name it, as in task='imdb'"):
        finetune(found, max_steps=7)
    with pytest.raises(InputError, match="pretrain was given 'imdb'; name it, as in corpus="):
        pretrain(found)
