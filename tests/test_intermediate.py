"""The labels of another task before the task's own: `finetune --intermediate-task`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import make_model_folder, one_thread, size_of, write_corpus  # noqa: F401
from test_resume import finish, start, stop_at

import minibert
from minibert import recipes
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError, Interrupted
from minibert.files import bundled_data
from minibert.finetuning import finetune
from minibert.flags import settings_from
from minibert.intermediate import _task, check_intermediate, data_before, intermediate_settings
from minibert.recipes import Recipe
from minibert.run_folder import RunFolder, read_metrics
from minibert.runs import RunResult
from minibert.series import Job, change, changed_jobs
from minibert.setting_search import search_settings
from minibert.settings import FinetuneSettings
from minibert.starts import with_recipe
from minibert.tasks import find_task
from minibert.train import Loop, NonFiniteError

LOOP: dict[str, Any] = {
    **{"max_seq_length": 32, "batch_size": 4, "max_steps": 2, "device": "cpu", "precision": "fp32"},
}
NEXT_TO_NOTHING = 1e-12  # a rate at which weights stay what they were
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "start")


def table(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return str(path)


def numbered(first: int, count: int = 12) -> list[str]:
    return [f"river bridge {i},{'yes' if i % 2 else 'no'}" for i in range(first, first + count)]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Any]:
    """Settings of a task with train, dev and test, and another task that shares texts with it."""
    shared = ["River  Bridge 30,yes", "river bridge 41,no"]  # one of dev, one of test
    return {
        "task": "classification",
        "data": table(tmp_path / "train.csv", numbered(0)),
        "dev_data": table(tmp_path / "dev.csv", numbered(24)),
        "test_data": table(tmp_path / "test.csv", numbered(40)),
        "intermediate_task": "sst2",
        "intermediate_data": str(write_sst2(tmp_path / "SST-2", shared)),
    }


def write_sst2(folder: Path, more: list[str]) -> Path:
    folder.mkdir()
    lines = {
        "train": [f"storm garden {i}\t{i % 2}" for i in range(10)] + ["river bridge 3\t1"],
        "dev": [f"winter candle {i}\t{i % 2}" for i in range(6)],
    }
    for row in more:
        lines["train"].append(f"{row.split(',')[0]}\t1")
        lines["dev"].append(f"{row.split(',')[0]}\t0")
    for name, rows in lines.items():
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder


def tune(model: Path, output: Path, **options: Any) -> RunResult:
    return finetune(**{**LOOP, "model": str(model), "output": str(output), **options})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def resolved(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())["resolved"]
    return record


# --- what is learnt -------------------------------------------------------------------------------


@pytest.mark.parametrize("random_weights", [False, True])
def test_fine_tuning_starts_from_the_encoder_of_the_other_task(
    model: Path, tmp_path: Path, random_weights: bool
) -> None:
    options = {"intermediate_task": "stsb", "random_weights": random_weights}
    run = tune(model, tmp_path / "run", task="mrpc", learning_rate=NEXT_TO_NOTHING, **options)
    between = run.folder / "intermediate"
    begun, learnt, end = (weights(folder) for folder in (model, between, run.folder))
    assert not torch.allclose(begun[QUERY], learnt[QUERY], atol=1e-4)
    encoder = [name for name in end if name.startswith("bert.encoder")]
    assert all(torch.allclose(learnt[name], end[name], atol=1e-8) for name in encoder)
    assert end["classifier.weight"].shape != learnt["classifier.weight"].shape
    said = run.figures["intermediate"]
    assert (said["task"], said["random_weights"]) == ("stsb", random_weights)
    assert said["num_train"] == 26 and said["steps"] > 2  # its own budget, not that of the task
    assert said["dev_spearman"] == max(
        row["eval_spearman"] for row in read_metrics(between) if "eval_spearman" in row
    )
    assert json.loads((run.folder / "results.json").read_text())["intermediate"] == said


def test_what_the_other_task_has_taught_is_not_redrawn(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"intermediate_task": "stsb", "reinit_layers": 1}
    run = tune(model, tmp_path / "run", task="mrpc", learning_rate=NEXT_TO_NOTHING, **options)
    assert capsys.readouterr().err.count("redrawn: the top 1 layer(s)") == 1
    before = json.loads((run.folder / "intermediate/run.json").read_text())["settings"]
    assert before["reinit_layers"] == 1
    learnt, end = weights(run.folder / "intermediate"), weights(run.folder)
    encoder = [name for name in end if name.startswith("bert.encoder")]
    assert all(torch.allclose(learnt[name], end[name], atol=1e-8) for name in encoder)


@pytest.mark.parametrize("dev_only", [False, True])
def test_what_the_task_is_scored_on_is_left_out(
    model: Path, tmp_path: Path, sets: dict[str, Any], dev_only: bool
) -> None:
    """Without regard to case and spaces; texts of the task's own train may stay."""
    run = tune(model, tmp_path / "run", **sets, dev_only=dev_only)
    assert run.figures["intermediate"]["num_train"] == 11
    between = json.loads((run.folder / "intermediate/results.json").read_text())
    assert between["num_eval"] == 6
    rows = (run.folder / "intermediate/predictions.jsonl").read_text().splitlines()
    assert all(json.loads(row)["text"].startswith("winter candle") for row in rows)
    with pytest.raises(InputError, match="learnt from .* without the examples that another task"):
        minibert.evaluate(run.folder / "intermediate")
    assert resolved(run.folder / "intermediate")["left_out"] is True
    assert "left_out" not in resolved(run.folder)


def test_where_everything_would_be_left_out_it_is_refused(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    for name in ("train", "dev"):
        place = Path(sets["intermediate_data"]) / f"{name}.tsv"
        place.write_text("sentence\tlabel\nriver bridge 30\t1\nriver bridge 41\t0\n")
    said = "--intermediate-task sst2: .* every example has a text that is to be left out"
    with pytest.raises(InputError, match=said):
        tune(model, tmp_path / "run", **sets)
    with pytest.raises(InputError, match="--resume"):  # it is as if it had not begun
        tune(model, tmp_path / "run", **sets, resume=True)


def test_every_seed_has_one_of_its_own(model: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    run = tune(model, tmp_path / "run", **sets, seeds=2)
    assert not (run.folder / "intermediate").exists()
    folders = [run.folder / f"seed-{seed}/intermediate" for seed in (0, 1)]
    first, second = (weights(folder) for folder in folders)
    assert not torch.equal(first[QUERY], second[QUERY])
    alone = tune(model, tmp_path / "alone", **sets, seed=1)
    assert torch.equal(weights(alone.folder)[QUERY], weights(run.folder / "seed-1")[QUERY])
    assert run.figures["seeds"][1]["loss"] == alone.figures["loss"]


def test_trials_of_a_search_share_it(model: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    values = {**LOOP, **sets, "model": str(model), "output": str(tmp_path / "search")}
    found = search_settings(FinetuneSettings.from_dict(values), {"learning_rate": [1e-3, 1e-4]})
    first, second = (tmp_path / f"search/learning-rate-{rate}/seed-0" for rate in (0.001, 0.0001))
    changed = [
        (run / "intermediate/model.safetensors").stat().st_mtime_ns for run in (first, second)
    ]
    assert changed[0] == changed[1]
    alone = tune(model, tmp_path / "alone", **sets, learning_rate=1e-4, dev_only=True)
    assert torch.equal(weights(alone.folder)[QUERY], weights(second)[QUERY])
    own = json.loads((second / "results.json").read_text())
    assert own["intermediate"]["steps"] == alone.figures["intermediate"]["steps"]
    (dev,) = next(t["dev"] for t in found["trials"] if "0.0001" in t["name"]).values()
    assert dev == alone.figures["dev_accuracy"]


def test_adapting_comes_first(model: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    write_corpus(tmp_path / "own.txt", documents=8)
    text = {"adapt": str(tmp_path / "own.txt"), "cache_dir": str(tmp_path / "cache")}
    run = tune(model, tmp_path / "run", **sets, **text, adapt_epochs=1.0, random_weights=True)
    adapted, between = run.folder / "adapted", run.folder / "intermediate"
    record = resolved(between)
    assert record["start"] == str(adapted)
    assert record["start_weights"] == resolved(run.folder)["adapted"]
    assert not run.figures["intermediate"]["random_weights"]
    assert {"adapted", "intermediate"} <= run.figures.keys()


def test_minutes_are_shared(tmp_path: Path) -> None:
    settings = FinetuneSettings(task="rte", intermediate_task="stsb", max_minutes=8.0)
    assert settings.tuning_minutes == 4.0
    assert intermediate_settings(settings, tmp_path, tmp_path, False).max_minutes == 4.0
    adapted = FinetuneSettings(
        task="rte", intermediate_task="stsb", max_minutes=8.0, adapt=["auto"], adapt_minutes=2.0
    )
    assert (adapted.unadapted_minutes, adapted.tuning_minutes) == (6.0, 3.0)
    assert FinetuneSettings(task="rte", max_minutes=8.0).tuning_minutes == 8.0


def test_a_dry_run_tells_what_it_takes(
    model: Path, tmp_path: Path, sets: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    tune(model, tmp_path / "run", **sets, dry_run=True)
    first, own = capsys.readouterr().err.split("dry run: of classification itself")
    assert "dry run: of what comes before classification: intermediate" in first
    assert "\nsplit: 11 train, 6 dev" in first  # two of each have a text that is scored
    assert "cost: " in first
    assert "cost: " in own
    assert sorted(tmp_path.iterdir()) == before


def test_what_fits_into_memory_is_the_same_for_both(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        recipes, "RECIPES", (Recipe("sst2", *size_of(model), False, "", batch_size=8),)
    )
    for given, between in ((3, 2), (4, 4)):
        run = tune(model, tmp_path / f"run-{given}", **sets, micro_batch_size=given, batch_size=12)
        assert resolved(run.folder)["micro_batch_size"] == given
        assert resolved(run.folder / "intermediate")["micro_batch_size"] == between


def test_dropout_is_that_of_the_model_and_not_of_the_other_task(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        recipes, "RECIPES", (Recipe("sst2", *size_of(model), False, "", dropout=0.3),)
    )
    run = tune(model, tmp_path / "run", **sets)
    drawn = [BertConfig.from_pretrained(f) for f in (run.folder / "intermediate", run.folder)]
    assert [c.hidden_dropout_prob for c in drawn] == [0.3, 0.1]


def test_a_test_split_of_the_other_task_counts_for_nothing(sets: dict[str, Any]) -> None:
    """It is not learnt from, and the run before, which leaves it alone, knows nothing of it."""
    settings = FinetuneSettings(**sets)
    source = find_task(settings.task)(settings).find_data()
    before = data_before(settings, source)
    rows = "a storm\t1\na river\t0\n"
    (Path(sets["intermediate_data"]) / "sentences_test.tsv").write_text(rows)
    first = find_task("sst2")(FinetuneSettings(task="sst2", data=sets["intermediate_data"]))
    assert first.read(first.find_data()).test
    assert data_before(settings, source) == before


def test_a_dev_split_that_is_left_out_is_cut_anew(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    dev = Path(sets["intermediate_data"]) / "dev.tsv"
    dev.write_text("sentence\tlabel\nriver bridge 30\t1\nriver bridge 41\t0\n")
    run = tune(model, tmp_path / "run", **sets)
    between = json.loads((run.folder / "intermediate/results.json").read_text())
    assert (between["num_train"], between["num_eval"]) == (9, 2)
    assert run.figures["intermediate"]["left_out"] == 4


def test_flags_of_the_task_are_not_offered_for_the_other_table(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    other = str(tmp_path / "other.csv")
    Path(other).write_text("body,text_pair,score\na storm,a river,1\na river,a river,5\n")
    own = sets | {"intermediate_task": "similarity", "intermediate_data": other}
    with pytest.raises(InputError, match="no column 'text'; .*need their default names") as told:
        tune(model, tmp_path / "run", **own)
    assert "--text-column" not in str(told.value)


# --- recipes --------------------------------------------------------------------------------------


@pytest.fixture
def own_recipe(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Recipe("mrpc", *size_of(model), False, "", epochs=1.0, intermediate_task="stsb")
    monkeypatch.setattr(recipes, "RECIPES", (own,))


@pytest.mark.usefixtures("own_recipe")
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "stsb"),
        ({"epochs": 3.0}, "stsb"),
        ({"intermediate_task": "none"}, "none"),
        ({"intermediate_task": "sst2"}, "sst2"),
        ({"max_steps": 5}, "none"),
        ({"max_minutes": 1.0}, "none"),
        ({"random_weights": True}, None),
    ],
)
def test_a_recipe_may_name_one(
    model: Path, tmp_path: Path, options: dict[str, Any], found: str | None
) -> None:
    """Its data lies beside the task's; a budget of the whole may be a quick look."""
    for name, place in {"mrpc": "mrpc", "stsb": "STS-B"}.items():
        shutil.copytree(bundled_data() / name, tmp_path / place)
    given = {"task": "mrpc", "data": str(tmp_path / "mrpc"), "model": str(model), **options}
    settings, said = with_recipe(FinetuneSettings.from_dict(given))
    assert settings.intermediate_task == found
    is_budget = not {"max_steps", "max_minutes"}.isdisjoint(options)
    assert ("--intermediate-task stsb trains on it first" in said) == is_budget


@pytest.mark.usefixtures("own_recipe")
def test_data_of_a_task_that_a_budget_leaves_out_is_refused(model: Path) -> None:
    given = {"task": "mrpc", "model": str(model), "max_steps": 3, "intermediate_data": "stsb"}
    with pytest.raises(InputError, match="to be named where the budget is of steps or minutes"):
        with_recipe(FinetuneSettings.from_dict(given))


@pytest.mark.usefixtures("own_recipe")
@pytest.mark.parametrize("place", ["sets", "elsewhere"])
def test_data_lies_beside_a_link_or_beside_what_it_leads_to(
    model: Path, tmp_path: Path, place: str
) -> None:
    shutil.copytree(bundled_data() / "mrpc", tmp_path / "elsewhere/mrpc")
    shutil.copytree(bundled_data() / "stsb", tmp_path / place / "stsb")
    (tmp_path / "sets").mkdir(exist_ok=True)
    (link := tmp_path / "sets/mrpc").symlink_to(tmp_path / "elsewhere/mrpc")
    given = FinetuneSettings(task="mrpc", data=str(link), model=str(model))
    assert with_recipe(given)[0].intermediate_task == "stsb"


@pytest.mark.usefixtures("own_recipe")
def test_the_bundled_sample_is_not_taken_for_the_set_beside_the_data(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minibert.tasks.base.bundled_data", lambda: tmp_path / "data")
    for name, place in (("stsb", "stsb"), ("mrpc", "mrpc"), ("mrpc", "MRPC-own")):
        shutil.copytree(bundled_data() / name, tmp_path / "data" / place)
    given = FinetuneSettings(task="mrpc", data="data/MRPC-own", model=str(model))
    settings, said = with_recipe(given)
    assert settings.intermediate_task == "none" and "`minibert download stsb`" in said
    shutil.copytree(bundled_data() / "stsb", tmp_path / "data/downloads/STS-B")
    assert with_recipe(given)[0].intermediate_task == "stsb"
    first = _task(dataclasses.replace(given, intermediate_task="stsb"))
    assert first.find_data().path == Path("data/downloads/STS-B")
    named = dataclasses.replace(given, intermediate_task="stsb", intermediate_data="data/stsb")
    check_intermediate(named)  # who names the sample means it


@pytest.mark.usefixtures("own_recipe")
def test_a_recipe_whose_data_is_not_there_does_without(model: Path, tmp_path: Path) -> None:
    shutil.copytree(bundled_data() / "mrpc", tmp_path / "mrpc")
    for data in (None, str(tmp_path / "mrpc")):
        given = FinetuneSettings(task="mrpc", data=data, model=str(model))
        settings, said = with_recipe(given)
        assert settings.intermediate_task == "none"  # also where these settings are read again
        assert "without stsb before it: no data; `minibert download stsb` fetches it" in said


# --- stopped, resumed, wrong ----------------------------------------------------------------------


def outcome(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "intermediate/model.safetensors", "predictions.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def test_killed_in_either_stage_it_goes_on_to_the_bit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def flags(output: str) -> list[str]:
        return [
            *("finetune", "--task", "mrpc", "--intermediate-task", "stsb", "--model", str(model)),
            *("--max-seq-length", "32", "--batch-size", "4", "--epochs", "2", "--log-every", "1"),
            *("--min-steps", "0", "--save-every", "2", "--device", "cpu", "--precision", "fp32"),
            *("--output", str(tmp_path / output)),
        ]

    assert main(flags("whole")) == 0
    whole, parted, line = outcome(tmp_path / "whole"), tmp_path / "parted", flags("parted")
    process = start("finetune.py", *line[1:])
    stop_at(process, parted / "intermediate", 7, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert not (parted / "metrics.jsonl").exists()
    assert main(line) == 2
    assert "--resume goes on" in capsys.readouterr().err
    assert main([*line, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "resuming from step" in said and "at step 0: no whole checkpoint yet" in said
    assert outcome(parted) == whole
    # Stopped while the task itself was learnt.
    (parted / "results.json").unlink()
    last = max((parted / "checkpoints").glob("step-*"))
    shutil.rmtree(last)
    learnt = (parted / "intermediate/model.safetensors").stat().st_mtime_ns
    assert main([*line, "--resume"]) == 0
    assert (parted / "intermediate/model.safetensors").stat().st_mtime_ns == learnt
    assert outcome(parted) == whole
    # Anew, all of it; and without it nothing of it is left.
    assert main([*line, "--overwrite"]) == 0
    assert (parted / "intermediate/model.safetensors").stat().st_mtime_ns != learnt
    assert outcome(parted) == whole
    assert main([*line, "--overwrite", "--intermediate-task", "none"]) == 0
    assert not (parted / "intermediate").exists()


def test_what_other_weights_began_is_not_gone_on_with(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    own, output = tmp_path / "own", tmp_path / "run"
    shutil.copytree(model, own)
    tune(own, output, **sets)
    first = weights(output / "intermediate")[QUERY]
    record = json.loads((output / "run.json").read_text())
    other = {name: value + 0.01 for name, value in weights(own).items()}
    save_file(other, own / "model.safetensors")
    # As if it had been stopped between the two.
    (output / "results.json").unlink()
    (output / "run.json").write_text(json.dumps(record | {"resolved": {}}))
    with pytest.raises(InputError, match="the weights in .* have changed; --overwrite starts anew"):
        tune(own, output, **sets, resume=True)
    tune(own, output, **sets, overwrite=True)
    assert not torch.equal(weights(output / "intermediate")[QUERY], first)


def test_a_run_goes_on_with_what_a_recipe_said_when_it_began(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(model, tmp_path / "run", **sets)
    (whole.folder / "results.json").unlink()
    monkeypatch.setattr(
        recipes, "RECIPES", (Recipe("sst2", *size_of(model), False, "", learning_rate=1e-2),)
    )
    again = tune(model, tmp_path / "run", **sets, resume=True)
    assert again.figures["loss"] == whole.figures["loss"]


def test_seeds_do_not_learn_it_in_two_ways(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version has another recipe: those that began keep theirs, but no other follows."""
    run = tune(model, tmp_path / "run", **sets, seeds=2)
    monkeypatch.setattr(
        recipes, "RECIPES", (Recipe("sst2", *size_of(model), False, "", adversarial_epsilon=0.5),)
    )
    assert tune(model, run.folder, **sets, seeds=2, resume=True).figures == run.figures
    (run.folder / "results.json").unlink()
    again = tune(model, run.folder, **sets, seeds=2, resume=True).figures
    assert again["seeds"] == run.figures["seeds"]
    (run.folder / "results.json").unlink()
    shutil.rmtree(run.folder / "seed-1")
    said = r"sst2, learnt before classification in .*seed-0: adversarial_epsilon was None, now 0\.5"
    with pytest.raises(InputError, match=said):
        tune(model, run.folder, **sets, seeds=2, resume=True)
    # So it is for the runs of a suite or a search.
    values = {**LOOP, **sets, "model": str(model), "output": str(run.folder / "seed-0")}
    settings = FinetuneSettings.from_dict(values)
    record = json.loads((run.folder / "seed-0/run.json").read_text())
    before = RunFolder(run.folder / "seed-0/intermediate").read_run()["data_fingerprint"]
    job = Job("", "", settings, record["data_fingerprint"], resolved(run.folder)["start_weights"])
    job = job._replace(before=before)
    assert "adversarial_epsilon was None, now 0.5" in change(job)
    assert not changed_jobs([job], overwrite=False)  # where all have begun, it does not matter
    other = dataclasses.replace(settings, output=str(run.folder / "seed-1"))
    with pytest.raises(InputError, match="adversarial_epsilon was None, now 0.5"):
        changed_jobs([job, job._replace(name="other", settings=other)], overwrite=False)
    monkeypatch.setattr(recipes, "RECIPES", ())
    assert change(job) == ""


def test_one_that_diverges_is_told_as_the_run_s_own_end(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        recipes, "RECIPES", (Recipe("sst2", *size_of(model), False, "", learning_rate=1e30),)
    )
    with pytest.raises(NonFiniteError, match="--intermediate-task sst2: "):
        tune(model, tmp_path / "run", **sets)
    assert "--intermediate-task sst2: " in RunFolder(tmp_path / "run").diverged


def test_so_it_is_where_one_diverges_that_was_stopped_before(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Loop.take_step

    def stopping(loop: Loop) -> None:
        take(loop)
        loop.asked_to_stop = signal.SIGTERM

    def diverging(loop: Loop) -> None:
        raise NonFiniteError("step 2: the loss is nan")

    monkeypatch.setattr(Loop, "take_step", stopping)
    with pytest.raises(Interrupted):
        tune(model, tmp_path / "run", **sets)
    monkeypatch.setattr(Loop, "take_step", diverging)
    with pytest.raises(NonFiniteError, match="--intermediate-task sst2: "):
        tune(model, tmp_path / "run", **sets, resume=True)
    assert "--intermediate-task sst2: " in RunFolder(tmp_path / "run").diverged


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_finished_run_whose_task_before_had_other_data_is_not_called_finished(
    model: Path, tmp_path: Path, sets: dict[str, Any], seeds: int
) -> None:
    run = tune(model, tmp_path / "run", **sets, seeds=seeds)
    assert tune(model, tmp_path / "run", **sets, seeds=seeds, resume=True).figures == run.figures
    file = Path(sets["intermediate_data"]) / "train.tsv"
    file.write_text(file.read_text() + "storm garden 10\t0\n")
    with pytest.raises(InputError, match="--resume: of --intermediate-task the data fingerprint"):
        tune(model, tmp_path / "run", **sets, seeds=seeds, resume=True)


def test_data_that_cannot_be_read_costs_no_finished_run(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    run = tune(model, tmp_path / "run", **sets)
    (Path(sets["intermediate_data"]) / "train.tsv").write_text("nothing\n")
    with pytest.raises(InputError, match="--intermediate-task sst2: "):
        tune(model, tmp_path / "run", **sets, overwrite=True)
    assert (run.folder / "results.json").is_file() and (run.folder / "intermediate").is_dir()


def test_killed_while_it_makes_way_a_run_is_still_known_as_one(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    write, count = RunFolder.write_run, []

    def second(self: RunFolder, run: dict[str, Any]) -> None:
        count.append(self.path)
        killed() if count.count(tmp_path / "run") == 2 else write(self, run)

    monkeypatch.setattr(RunFolder, "write_run", second)
    with pytest.raises(KeyboardInterrupt):
        tune(model, tmp_path / "run", **sets)
    monkeypatch.undo()
    run = tune(model, tmp_path / "run", **sets, resume=True)
    assert "intermediate" in run.figures


def test_the_bundled_sample_is_not_taken_for_the_set(model: Path, tmp_path: Path) -> None:
    shutil.copytree(bundled_data() / "mrpc", tmp_path / "mrpc")
    with pytest.raises(InputError, match="--intermediate-task stsb: no data; `minibert download"):
        tune(model, tmp_path / "run", task="mrpc", intermediate_task="stsb", data=tmp_path / "mrpc")


def test_another_task_on_the_command_line_takes_no_data_from_a_file(tmp_path: Path) -> None:
    file = {"task": "mrpc", "intermediate_task": "stsb", "intermediate_data": "sets/stsb"}
    (tmp_path / "own.json").write_text(json.dumps(file))
    values = {"config": str(tmp_path / "own.json"), "intermediate_task": "none"}
    found = settings_from(values, FinetuneSettings)
    assert isinstance(found, FinetuneSettings)
    assert (found.intermediate_task, found.intermediate_data) == ("none", None)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--intermediate-task", "stbs"], "'stbs' is unknown; did you mean 'stsb'"),
        (["--intermediate-task", "mrpc"], "--intermediate-task mrpc is the task itself"),
        (["--intermediate-task", "multi30k"], "multi30k writes texts; name one that reads them"),
        (["--intermediate-data", "x"], "--intermediate-data goes with --intermediate-task"),
        (
            ["--intermediate-task", "none", "--intermediate-data", "x"],
            "--intermediate-data has no use with --intermediate-task none",
        ),
        (
            ["--intermediate-task", "stsb", "--intermediate-data", "no-such"],
            "--intermediate-task stsb: --intermediate-data no-such does not exist",
        ),
        (
            ["--intermediate-task", "classification"],
            "--intermediate-task classification: no data for classification",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_made(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    line = ["finetune", "--task", "mrpc", "--model", str(model), "--max-seq-length", "32"]
    assert main([*line, "--output", str(tmp_path / "run"), *more]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--intermediate-task runs in one process"):
        finetune(task="mrpc", intermediate_task="stsb", model=str(model))
