"""The search of settings: dev alone, its grid, going on, the file of the best."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import cut_to_positions, one_thread, quick_model  # noqa: F401

from minibert import series, setting_search
from minibert.cli import main
from minibert.errors import InputError, Interrupted
from minibert.fields import Default
from minibert.files import bundled_data
from minibert.flags import settings_from
from minibert.intermediate import data_before
from minibert.setting_search import (
    DEFAULT_GRID,
    SEARCHED,
    _add,
    _grid,
    drawn,
    ordered,
    search_settings,
    trial_table,
)
from minibert.settings import FinetuneSettings
from minibert.tasks import find_task
from minibert.tasks.classification import ClassificationTask

QUICK: dict[str, Any] = {"max_steps": 2, "max_seq_length": 64, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return quick_model(tmp_path_factory.mktemp("search"))


@pytest.fixture
def sst2(tmp_path: Path) -> Path:
    """The sample with a labelled test split, which the search must not see."""
    folder = shutil.copytree(bundled_data() / "sst2", tmp_path / "sst2")
    (folder / "sentences_test.tsv").write_text("a fine film\t1\na dull film\t0\n")
    return folder


def settings(model: str, output: Path, data: Path | None = None, **values: Any) -> FinetuneSettings:
    given = {"task": "sst2", "model": model, "output": str(output), **QUICK, **values}
    return FinetuneSettings.from_dict(given | ({"data": str(data)} if data else {}))


RATES = {"learning_rate": (1e-3, 1e-4)}


def test_the_test_split_is_neither_encoded_nor_predicted_nor_scored(
    model: str, sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    for name in ("encode", "score", "details", "baseline", "settle", "errors"):
        original = getattr(ClassificationTask, name)

        def spied(self: Any, *parts: Any, _original: Any = original) -> Any:
            for part in parts:
                if isinstance(part, Sequence):
                    seen.update(e.id.split(":")[0] for e in part if hasattr(e, "id"))
            return _original(self, *parts)

        monkeypatch.setattr(ClassificationTask, name, spied)
    with_test = search_settings(settings(model, tmp_path / "with", sst2), RATES)
    assert seen == {"train", "dev"}
    rows = (tmp_path / "with").rglob("predictions.jsonl")
    assert {json.loads(r)["id"][:3] for p in rows for r in p.read_text().splitlines()} == {"dev"}
    # As good as if it were not there, and an ordinary run sees it.
    (sst2 / "sentences_test.tsv").unlink()
    without = search_settings(settings(model, tmp_path / "without", sst2), RATES)
    dev = [[(t["name"], t["dev"]) for t in s["trials"]] for s in (with_test, without)]
    assert dev[0] == dev[1]
    (sst2 / "sentences_test.tsv").write_text("a fine film\t1\na dull film\t0\n")
    where = ["--output", str(tmp_path / "run"), "--data", str(sst2), "--model", model]
    flags = ["--max-steps", "1", "--max-seq-length", "64", "--device", "cpu"]
    assert main(["finetune", "--task", "sst2", *where, *flags]) == 0
    assert "test" in seen


def test_the_best_is_first_and_its_file_is_one_for_finetune(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task", "sst2", "--model", model, "--max-steps", "2", "--max-seq-length", "64"]
    flags += ["--device", "cpu", "--precision", "fp32", "--seeds", "2"]
    out = tmp_path / "out"
    tries = ["--try-learning-rate", "1e-5", "5e-3", "--try-dropout", "0", "0.1"]
    assert main(["search-settings", *flags, "--output", str(out), *tries]) == 0
    page = (out / "search.md").read_text()
    assert capsys.readouterr().out == f"{page}best settings: {out}/best.json\n"
    assert "The test split was not looked at" in page
    assert "SAMPLE" in page
    found = json.loads((out / "search.json").read_text())
    assert [len(t["dev"]) for t in found["trials"]] == [2] * 4
    means = [t["mean"] for t in found["trials"]]
    assert means == sorted(means, reverse=True)
    for trial in found["trials"]:
        runs = [out / trial["name"] / f"seed-{seed}/results.json" for seed in (0, 1)]
        own = [json.loads(path.read_text())["dev_accuracy"] for path in runs]
        assert trial["mean"] == pytest.approx(sum(own) / 2)
    best = json.loads((out / "best.json").read_text())
    assert best == {
        **{"task": "sst2", "random_weights": False, "batch_size": 16, "max_seq_length": 64},
        **{"truncation": "head", "max_steps": 2, **found["trials"][0]["settings"]},
        **{"adversarial_epsilon": 0.0, "intermediate_task": "none", "pair_order": "given"},
        "self_training": ["none"],
    }
    config = ["--config", str(out / "best.json"), "--device", "cpu", "--precision", "fp32"]
    where = ["--model", model, "--output", str(tmp_path / "run")]
    assert main(["finetune", *config, *where]) == 0
    record = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert {key: record[key] for key in best} == best
    # The same settings and seed are the same run.
    figures = json.loads((tmp_path / "run/results.json").read_text())
    assert figures["dev_accuracy"] == found["trials"][0]["dev"]["0"]
    # What the best did without may be searched next.
    further = ["--model", model, "--output", str(tmp_path / "next")]
    further += ["--try-adversarial-epsilon", "0.5"]
    assert main(["search-settings", *config, *further]) == 0
    assert main(["search-settings", *config, *further, "--adversarial-epsilon", "0"]) == 2  # typed
    # What the file holds may be tried around.
    best = json.loads((out / "best.json").read_text())
    best = {**best, "learning_rate": 1e-4, "max_steps": 3}
    (out / "best.json").write_text(json.dumps({k: v for k, v in best.items() if k != "epochs"}))
    tried = {"learning_rate", "epochs"}
    around = settings_from({"config": str(out / "best.json")}, FinetuneSettings, tried)
    assert (around.learning_rate, around.epochs, around.max_steps) == (None, None, None)
    assert around.batch_size == settings_from({"config": config[1]}, FinetuneSettings).batch_size


def test_a_search_goes_on_and_a_wider_grid_keeps_its_trials(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float | None] = []
    original = series.finetune

    def stopped(given: FinetuneSettings) -> Any:
        if len(begun) == 1:
            begun.append(None)
            raise Interrupted("stopped by SIGINT", 130)
        begun.append(given.learning_rate)
        return original(given)

    monkeypatch.setattr(series, "finetune", stopped)
    given = settings(model, tmp_path / "out")
    with pytest.raises(Interrupted):
        search_settings(given, RATES)
    assert "1 of 2 trials are there" in (tmp_path / "out/search.md").read_text()
    search_settings(given, RATES)
    wider = search_settings(given, {"learning_rate": (1e-3, 5e-4, 1e-4)})
    assert begun == [1e-3, None, 1e-4, 5e-4]
    assert len(wider["trials"]) == 3
    with pytest.raises(InputError, match="was run otherwise: limit was None, now 8"):
        search_settings(settings(model, tmp_path / "out", limit=8), RATES)
    narrow = search_settings(given, {"learning_rate": (1e-4,)})
    assert (len(narrow["trials"]), narrow["grid_size"]) == (3, 3)
    assert begun[-1] == 5e-4, "nothing was run again"
    with pytest.raises(InputError, match="holds a search of 1 seed.s. over learning_rate; choose"):
        search_settings(given, {"batch_size": (8,)})
    with pytest.raises(InputError, match="holds a search of 1 seed.s. over learning_rate; choose"):
        search_settings(settings(model, tmp_path / "out", seeds=2), RATES)
    assert len(json.loads((tmp_path / "out/search.json").read_text())["trials"]) == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_trial_that_diverges_is_last_and_not_repeated(
    model: str, tmp_path: Path, jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate that is far too high every loss is NaN, at every try."""
    given = settings(model, tmp_path / "out")
    rates = {"learning_rate": (1e38, 1e-3)}
    found = search_settings(given, rates, jobs=jobs)
    assert [t["settings"]["learning_rate"] for t in found["trials"]] == [1e-3, 1e38]
    page = (tmp_path / "out/search.md").read_text()
    assert page.splitlines()[-1].startswith("| 1e+38 | diverged | step 2: ")
    assert "2 of 2 trials are there" in page
    assert json.loads((tmp_path / "out/best.json").read_text())["learning_rate"] == 1e-3
    capsys.readouterr()
    search_settings(given, rates, jobs=jobs)
    assert "finished: 2 of 2 runs are there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trials", "status"), [([{"diverged": "x"}], 1), ([{"mean": 0.5}, {"diverged": "x"}], 0)]
)
def test_the_command_fails_where_every_trial_diverged(
    monkeypatch: pytest.MonkeyPatch, trials: list[dict[str, Any]], status: int
) -> None:
    """So that `search-settings … && finetune --config …/best.json` ends there."""
    monkeypatch.setattr(setting_search, "search_settings", lambda *given: {"trials": trials})
    assert main(["search-settings", "--task", "sst2", "--try-learning-rate", "1"]) == status


def test_a_search_that_is_done_anew_leaves_no_best_of_the_one_before(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "out/best.json"
    search_settings(settings(model, tmp_path / "out"), {"learning_rate": (1e-3,)})
    assert best.is_file()
    anew = settings(model, tmp_path / "out", limit=8, overwrite=True)
    search_settings(anew, {"learning_rate": (1e38,)})
    assert not best.exists()
    assert capsys.readouterr().out.endswith("every trial diverged\n")


def test_trials_are_the_same_in_whatever_order_they_are_asked_for(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minibert.setting_search.carry_out_all", lambda *given: None)
    tried: dict[str, Any] = {"dropout": (0.0, 0.1), "learning_rate": (1e-3, 1e-4)}
    other = dict(reversed(tried.items()))
    given = settings(model, tmp_path / "out")
    found = [search_settings(given, one, trials=3)["trials"] for one in (tried, other)]
    assert found[0] == found[1]
    assert found[0][0]["name"].startswith("learning-rate-0.001_dropout-")


def test_a_trial_counts_with_all_of_its_seeds(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun = series.finetune, []

    def stopped(given: FinetuneSettings) -> Any:
        begun.append(given.seed)
        if len(begun) == 4:
            raise Interrupted("stopped by SIGINT", 130)
        return original(given)

    monkeypatch.setattr(series, "finetune", stopped)
    with pytest.raises(Interrupted):
        search_settings(settings(model, tmp_path / "out", seeds=2), RATES)
    assert "1 of 2 trials are there" in (tmp_path / "out/search.md").read_text()
    assert json.loads((tmp_path / "out/best.json").read_text())["learning_rate"] == 1e-3


def test_what_a_task_or_model_has_no_use_for_is_said_before_a_trial(
    model: str, tmp_path: Path
) -> None:
    given = settings(model, tmp_path / "a", task="stsb")
    with pytest.raises(InputError, match="--label-smoothing has no use in stsb"):
        search_settings(given, {"label_smoothing": (0.0, 0.1)})
    small = cut_to_positions(model, tmp_path / "small", 48)
    given = dataclasses.replace(settings(small, tmp_path / "b"), max_seq_length=Default(256))
    with pytest.raises(InputError, match="64 is beyond the model's 48 positions"):
        search_settings(given, {"max_seq_length": (48, 64)})
    assert not list(tmp_path.glob("[ab]/**/run.json"))


@pytest.mark.parametrize("older", [False, True])
def test_another_seed_is_another_search(model: str, tmp_path: Path, older: bool) -> None:
    out = tmp_path / "out"
    search_settings(settings(model, out), {"learning_rate": (1e-3,)})
    if older:
        table = json.loads((out / "search.json").read_text())
        del table["seed"]
        (out / "search.json").write_text(json.dumps(table))
    before = {p.name: p.read_bytes() for p in out.glob("*.json")}
    with pytest.raises(InputError, match="holds a search with --seed 0; choose another --output"):
        search_settings(settings(model, out, seed=1), {"learning_rate": (1e-3, 1e-4)})
    assert {p.name: p.read_bytes() for p in out.glob("*.json")} == before


def test_only_a_search_that_was_begun_goes_on(model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no search in .*none; leave --resume out"):
        search_settings(dataclasses.replace(settings(model, tmp_path / "none"), resume="yes"))
    assert not (tmp_path / "none").exists()


def test_a_table_tells_the_rate_and_the_epochs_that_a_task_brought(
    model: str, tmp_path: Path
) -> None:
    given = settings(model, tmp_path / "out", task="mrpc", max_steps=None, limit=4)
    found = search_settings(given, {"batch_size": (2,)})
    assert (found["held"]["learning_rate"], found["held"]["epochs"]) == (2e-4, 3.0)
    best = json.loads((tmp_path / "out/best.json").read_text())
    assert (best["learning_rate"], best["epochs"]) == (2e-4, 3.0)


def test_the_training_of_a_trial_is_that_of_both_tasks() -> None:
    trial: dict[str, Any] = {"dev": {}}
    figures = {"dev_accuracy": 0.7, "seconds": 60.0, "best_step": 1, "steps": 2}
    _add(trial, 0, figures | {"intermediate": {"task": "stsb", "seconds": 600.0}}, 2)
    _add(trial, 1, figures, 2)
    assert trial["seconds"] == 60 + 600 + 60


def test_the_best_step_of_several_seeds_is_told_in_any_order() -> None:
    tables = []
    for steps in ((90, 10), (10, 90)):
        trial: dict[str, Any] = {"settings": {"learning_rate": 1e-3}, "dev": {}}
        for seed, step in enumerate(steps):
            figures = {"dev_accuracy": 0.7, "seconds": 60.0, "best_step": step, "steps": 100}
            _add(trial, seed, figures, 2)
        tables.append(trial_table({"trials": [trial], "figure": "accuracy"})[1])
    assert tables[0] == tables[1] == [["0.001", "0.7000 ± 0.0000", "10 to 90 of 100", "2 min"]]
    # As tables of before have it.
    del trial["best_steps"]
    trial["best_step"] = 1
    assert "1 of 100" in trial_table({"trials": [trial], "figure": "accuracy"})[1][0]


def test_every_run_is_known_by_what_it_learns_before_its_task(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[series.Job] = []
    monkeypatch.setattr(
        "minibert.setting_search.carry_out_all", lambda given, *more: jobs.extend(given)
    )
    given = settings(model, tmp_path / "out", task="mrpc", intermediate_task="stsb", max_steps=None)
    search_settings(given, RATES)
    source = find_task("mrpc")(given).find_data()
    assert [job.before for job in jobs] == [data_before(given, source)] * 2
    assert jobs[0].before not in ("", jobs[0].data)


def test_a_part_of_a_grid_is_drawn_and_grows_by_others() -> None:
    grid = [{"learning_rate": float(i)} for i in range(1, 21)]
    few, more = drawn(grid, 4, 0), drawn(grid, 9, 0)
    assert len(few) == 4
    assert all(point in more for point in few)
    assert more == [point for point in grid if point in more]  # in the grid's order
    assert drawn(grid, 4, 1) != few
    assert drawn(grid, None, 0) == drawn(grid, 50, 0) == grid


def test_equal_trials_stay_in_order_and_those_without_a_figure_are_last() -> None:
    trials: list[dict[str, Any]] = [{"n": 0}, {"n": 1, "mean": 0.5}, {"n": 2, "mean": 0.7}]
    trials.append({"n": 3, "mean": 0.5})
    assert [t["n"] for t in ordered(trials)] == [2, 1, 3, 0]


def test_settings_of_a_search_are_no_dict() -> None:
    with pytest.raises(InputError, match="is no FinetuneSettings; expected such as"):
        search_settings({"task": "imdb"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "tried", "said"),
    [
        ({}, {"learning_rat": (1,)}, "did you mean 'learning_rate'"),
        ({}, {"learning_rate": ()}, "--try-learning-rate names no value"),
        ({}, {"learning_rate": (-1.0,)}, "--learning-rate is -1.0"),
        ({"learning_rate": 1e-3}, RATES, "--learning-rate has no use beside --try-learning-rate"),
        ({"batch_size": 16}, {"batch_size": (8,)}, "--batch-size has no use beside"),
        ({"dropout": 0.0}, {"dropout": (0.1,)}, "--dropout has no use beside"),
        ({"label_smoothing": 0.1}, {"label_smoothing": (0.2,)}, "--label-smoothing has no use"),
        ({}, {"epochs": (2.0,)}, "another budget has no use beside --try-epochs"),
        ({"learning_rate": 1e-3, "batch_size": 8}, {}, "nothing to search"),
        ({"dry_run": True}, RATES, "--dry-run"),
        ({"adapt": ["auto"]}, RATES, "adapt once, with pretrain --model"),
        ({}, {"truncation": ("middle",)}, "--truncation 'middle'"),
        ({"truncation": "tail"}, {"truncation": ("head",)}, "--truncation has no use beside"),
    ],
)
def test_what_cannot_be_searched_is_said(
    values: dict[str, Any], tried: Any, said: str, model: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        search_settings(settings(model, tmp_path / "out", **values), tried)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("alone", "listed"),
    [
        ({"learning_rate": 1e-3}, {"learning_rate": [1e-3]}),
        ({"truncation": "head"}, {"truncation": ["head"]}),
        ({"learning_rate": np.array([1e-3, 1e-4])}, {"learning_rate": [1e-3, 1e-4]}),
        ({"batch_size": iter([8, 16])}, {"batch_size": [8, 16]}),
    ],
)
def test_values_may_be_one_alone_or_an_array(alone: Any, listed: Any) -> None:
    given = FinetuneSettings(task="sst2")
    assert _grid(given, alone) == _grid(given, listed)


def test_what_is_given_is_left_out_of_the_default_grid(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minibert.setting_search.carry_out_all", lambda *given: None)
    whole = search_settings(settings(model, tmp_path / "whole"))
    assert whole["grid_size"] == len(DEFAULT_GRID["learning_rate"]) * 2
    part = search_settings(settings(model, tmp_path / "part", batch_size=16), trials=2)
    assert part["grid_size"] == len(DEFAULT_GRID["learning_rate"])
    assert [list(t["settings"]) for t in part["trials"]] == [["learning_rate"]] * 2


@pytest.mark.parametrize("name", SEARCHED)
def test_each_setting_can_be_tried_from_the_command_line(
    name: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun: list[float | str] = []
    monkeypatch.setattr(
        "minibert.setting_search.carry_out_all",
        lambda jobs, *given: begun.extend(getattr(job.settings, name) for job in jobs),
    )
    texts = {
        **{"batch_size": ["8", "4"], "max_seq_length": ["48", "64"]},
        **{"truncation": ["head", "head+tail"], "pair_order": ["given", "both"]},
    }
    values = texts.get(name, ["0.25", "0.5"])
    where = ["--model", model, "--output", str(tmp_path / "out")]
    where += [] if name == "max_seq_length" else ["--max-seq-length", "64"]
    tries = ["--try-" + name.replace("_", "-"), *values]
    task = "mrpc" if name == "pair_order" else "sst2"
    assert main(["search-settings", "--task", task, *where, *tries]) == 0
    is_word = name in ("truncation", "pair_order")
    assert begun == (values if is_word else [float(value) for value in values])
    assert f"| {values[0]} |" in capsys.readouterr().out


def test_scoring_test_is_refused_and_no_search_is_begun(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--task", "sst2", "--model", model, "--output", str(tmp_path / "out")]
    assert main(["search-settings", *given, "--no-dev-only"]) == 2
    assert "a search never scores test; score the settings it finds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_says_what_overwriting_is_to_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search-settings", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "do trials anew that had other settings, data or weights" in told
    assert "start anew in a run folder" not in told


def test_several_processes_are_refused_before_anything_is_read(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="in one process; no torchrun"):
        search_settings(settings(model, tmp_path / "out"), RATES)
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err == ""
