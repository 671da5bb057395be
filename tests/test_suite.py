"""The suite: its runs and table, going on after a stop, changed settings, data folders, pages."""

from __future__ import annotations

import json
import lzma
import math
import shutil
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from samples import cut_to_positions, one_thread, quick_model, write_reviews  # noqa: F401

import minibert
from minibert import series, suite, suite_report
from minibert.cli import main
from minibert.errors import InputError, Interrupted
from minibert.files import bundled_data
from minibert.flags import parsers
from minibert.held_out import held_out_figures, held_out_text, masked_word_figures
from minibert.series import seconds_left
from minibert.settings import FinetuneSettings
from minibert.suite import ENTRIES, Entry, Plan, _source, evaluate_suite
from minibert.suite_report import _spread, _time, as_html, as_markdown
from minibert.tasks import find_task
from minibert.tasks.base import Source, find_set
from minibert.tasks.splits import Parts

pytest.importorskip("sklearn")
QUICK: dict[str, Any] = {"max_steps": 2, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    # The samples' texts are longer than 64 pieces of so small a vocabulary.
    return quick_model(tmp_path_factory.mktemp("suite"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The outputs of fine-tunings that were begun, in their order."""
    begun: list[str] = []
    original = series.finetune

    def recorded(settings: FinetuneSettings) -> Any:
        begun.append("/".join(Path(settings.output).parts[-3:]))
        return original(settings)

    monkeypatch.setattr(series, "finetune", recorded)
    return begun


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A settings file for each task that a test uses: 64 positions are all that the model has."""
    folder = tmp_path_factory.mktemp("settings")
    for name in ENTRIES:
        (folder / f"{name}.json").write_text(json.dumps({"task": name, "max_seq_length": 64}))
    return str(folder)


def options(output: Path, short: str, *names: str, **values: Any) -> dict[str, Any]:
    files = tuple(f"{short}/{name}.json" for name in names)
    return {"output": str(output), "tasks": names, "settings": files, "seeds": 1, **QUICK, **values}


def test_help_names_the_tasks_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate-suite", "--help"]) == 0
    assert f"default all: {', '.join(ENTRIES)}" in " ".join(capsys.readouterr().out.split())


def test_a_table_of_two_tasks(
    model: str, short: str, tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tasks", "rte,sst2", "--seeds", "1", "--max-steps", "2", "--device", "cpu"]
    flags += ["--precision", "fp32", "--output", str(tmp_path / "out")]
    files = [f"{short}/rte.json", f"{short}/sst2.json"]
    assert main(["evaluate-suite", model, *flags, "--settings", *files]) == 0
    said = capsys.readouterr()
    folder = tmp_path / "out"
    # Standard output holds the table alone; what the runs print stands beside their progress.
    page = (folder / "suite.md").read_text()
    assert said.out == f"{page}written to {folder}: suite.md, suite.html, suite.json\n"
    assert "run: 3 of 4: sst2, the model, seed 0; about" in said.err
    assert "left for all" in said.err
    wanted = [f"{task}/{side}/seed-0" for task in ("rte", "sst2") for side in ("model", "random")]
    assert runs == wanted
    found = json.loads((folder / "suite.json").read_text())
    for name in wanted:
        figures = json.loads((folder / name / "results.json").read_text())
        assert figures["scored"] == "dev"
        assert (folder / name / "model.safetensors").is_file()
        assert not (folder / name / "checkpoints").exists()
        task, side, _ = name.split("/")
        assert found["tasks"][task][side]["figures"] == {"0": 100 * figures["accuracy"]}
        assert minibert.load(folder / name).task.name == task  # an ordinary run folder
    record = json.loads((folder / "sst2/random/seed-0/run.json").read_text())["settings"]
    assert record["random_weights"] is True
    assert record["dev_only"] is True
    assert "SAMPLE: a few bundled examples" in page
    assert "QUICK LOOK: 2 steps a fine-tuning" in page
    assert "rte (SAMPLE)" in page
    assert "one seed" in page
    assert "±" not in page
    assert "UNFINISHED" not in page


def test_baselines_are_of_the_same_split_and_computed_once(
    model: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = evaluate_suite(model, **options(tmp_path, short, "rte"))
    task = find_task("rte")(FinetuneSettings(task="rte"))
    splits = task.read(task.find_data())
    assert splits.dev is not None
    wanted = task.baselines(splits.train, splits.dev, splits.dev)
    assert made["tasks"]["rte"]["baselines"] == {
        "TF-IDF + logistic regression": 100 * wanted["tfidf_accuracy"],
        "NB-SVM": 100 * wanted["nbsvm_accuracy"],
        "majority": 100 * wanted["majority_accuracy"],
    }
    monkeypatch.setattr(type(task), "baselines", None)  # to call it again would be an error
    # The times of an earlier call are kept, too.
    assert len(made["tasks"]["rte"]["model"]["wall_seconds"]) == 1
    assert evaluate_suite(model, **options(tmp_path, short, "rte")) == made


def test_baselines_of_an_older_method_are_computed_anew(tmp_path: Path) -> None:
    asked: list[int] = []

    def baselines(train: list[str], dev: list[str], test: list[str]) -> dict[str, float]:
        asked.append(len(train))
        return {"majority_accuracy": 0.5}

    task: Any = SimpleNamespace(
        **{"name": "rte", "baselines_version": 1, "baselines": baselines, "metric": "accuracy"},
        settings=SimpleNamespace(limit=None, positive_label=None, select=None, threshold=None),
    )
    parts = Parts(["a"], ["b"], ["b"], "dev")

    def count() -> int:
        found = suite._baselines(tmp_path, task, "data", parts, ENTRIES["rte"])
        assert found["baselines"] == {"majority": 50.0}
        return len(asked)

    assert [count(), count()] == [1, 1]
    kept = json.loads((tmp_path / "baselines.json").read_text())
    del kept["basis"]["version"]  # as it was before there was one
    (tmp_path / "baselines.json").write_text(json.dumps(kept))
    assert count() == 1
    task.baselines_version = 2
    assert [count(), count()] == [2, 2]
    task.settings.positive_label = "no"  # whose F1 is another
    assert [count(), count()] == [3, 3]
    task.settings.threshold = "best"  # and another for another figure
    assert [count(), count()] == [4, 4]
    task.settings.select = "f1_binary"
    assert [count(), count()] == [5, 5]


@pytest.mark.parametrize(("name", "baseline"), [("stsb", "TF-IDF cosine"), ("squad", "word over")])
def test_other_families_have_their_own_figures(
    name: str, baseline: str, model: str, short: str, tmp_path: Path
) -> None:
    made = evaluate_suite(model, **options(tmp_path, short, name))["tasks"][name]
    results = json.loads((tmp_path / name / "model/seed-0/results.json").read_text())
    entry = ENTRIES[name]
    assert made["model"]["mean"] == results[entry.figure] * entry.scale
    assert any(method.startswith(baseline) for method in made["baselines"])
    assert results["scored"] == made["scored"] == "test"


def test_a_suite_goes_on_where_it_was_stopped(
    model: str,
    short: str,
    tmp_path: Path,
    runs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = options(tmp_path / "out", short, "rte", seeds=2)
    original = series.finetune

    def stopped(settings: FinetuneSettings) -> Any:
        if len(runs) == 3:
            raise Interrupted("stopped by SIGTERM, state saved; --resume goes on from step 1", 143)
        return original(settings)

    monkeypatch.setattr(series, "finetune", stopped)
    with pytest.raises(Interrupted, match="the same command goes on from step 1"):
        evaluate_suite(model, **given)
    # Seed by seed: by now both sides have one.
    order = [f"rte/{side}/seed-{seed}" for seed in (0, 1) for side in ("model", "random")]
    assert runs == order[:3]
    assert "UNFINISHED: 3 of 4 runs are there" in (tmp_path / "out/suite.md").read_text()
    monkeypatch.setattr(series, "finetune", original)
    capsys.readouterr()
    made = evaluate_suite(model, **given)
    assert runs == order
    assert "finished: 3 of 4 runs are there" in capsys.readouterr().err
    assert len(made["tasks"]["rte"]["model"]["figures"]) == 2
    assert "UNFINISHED" not in (tmp_path / "out/suite.md").read_text()
    # A further seed adds its own runs and nothing else.
    evaluate_suite(model, **given | {"seeds": 3})
    assert runs == [*order, "rte/model/seed-2", "rte/random/seed-2"]


def test_one_name_is_a_list_of_one(model: str) -> None:
    with pytest.raises(InputError, match="--tasks 'rtee' is unknown; did you mean 'rte'"):
        evaluate_suite(model, tasks="rtee")
    with pytest.raises(InputError, match="tasks is 5, expected"):
        evaluate_suite(model, tasks=5)
    with pytest.raises(InputError, match="none.json"):
        evaluate_suite(model, tasks="rte", settings=Path("none.json"))


def test_folders_may_be_paths(model: str, short: str, tmp_path: Path) -> None:
    shutil.copytree(bundled_data() / "rte", tmp_path / "sets/rte")
    given = options(tmp_path / "out", short, "rte", data=str(tmp_path / "sets"))
    made = evaluate_suite(Path(model), **given | {k: Path(given[k]) for k in ("data", "output")})
    assert made == evaluate_suite(model, **given)


def test_a_suite_that_is_stopped_again_loses_no_finished_run_and_no_time(
    model: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(tmp_path / "out", short, "rte")
    before = evaluate_suite(model, **given)
    (tmp_path / "out/rte/model/seed-0/results.json").unlink()  # the first in order
    tables: list[dict[str, Any]] = []

    def stopped(settings: FinetuneSettings) -> Any:
        tables.append(json.loads((tmp_path / "out/suite.json").read_text()))
        raise Interrupted("stopped by SIGTERM", 143)

    monkeypatch.setattr(series, "finetune", stopped)
    with pytest.raises(Interrupted):
        evaluate_suite(model, **given)
    (table,) = tables
    assert table["tasks"]["rte"]["random"] == before["tasks"]["rte"]["random"]
    assert table["tasks"]["rte"]["random"]["wall_seconds"].keys() == {"0"}
    assert table["tasks"]["rte"]["model"]["figures"] == {}
    assert "UNFINISHED: 1 of 2 runs are there" in (tmp_path / "out/suite.md").read_text()


def test_a_suite_goes_on_after_a_stop_among_its_baselines(
    model: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, calls = find_task("rte"), []
    original = family.baselines

    def stopped(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(family, "baselines", stopped)
    given = options(tmp_path / "out", short, "rte", "mrpc")
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(model, **given)
    assert list(evaluate_suite(model, **given)["tasks"]) == ["rte", "mrpc"]
    assert len(calls) == 3


def test_a_changed_setting_is_refused_and_overwrite_does_that_alone_anew(
    model: str, short: str, tmp_path: Path, runs: list[str]
) -> None:
    given = options(tmp_path / "out", short, "rte")
    evaluate_suite(model, **given)
    before = (tmp_path / "out/suite.md").read_text()
    file = tmp_path / "rate.json"
    values = {"task": "rte", "max_seq_length": 64, "learning_rate": 1e-3, "random_weights": False}
    file.write_text(json.dumps(values))
    changed = given | {"settings": (*given["settings"], str(file))}
    with pytest.raises(InputError, match="rte, the model, seed 0 was run otherwise: learning_rate"):
        evaluate_suite(model, **changed)
    assert (tmp_path / "out/suite.md").read_text() == before
    made = evaluate_suite(model, **changed, overwrite=True)
    assert runs == ["rte/model/seed-0", "rte/random/seed-0", "rte/model/seed-0"]
    assert made["tasks"]["rte"]["model"]["settings"].startswith("rate 0.001, 2 steps")
    assert made["tasks"]["rte"]["random"]["settings"].startswith("rate 0.0002, 2 steps")


def test_tasks_that_a_later_call_leaves_out_stay_in_the_table(
    model: str, short: str, tmp_path: Path
) -> None:
    first = evaluate_suite(model, **options(tmp_path / "out", short, "rte"))
    both = evaluate_suite(model, **options(tmp_path / "out", short, "mrpc"))
    assert list(both["tasks"]) == ["rte", "mrpc"]
    assert both["tasks"]["rte"] == json.loads(json.dumps(first["tasks"]["rte"]))
    page = (tmp_path / "out/suite.md").read_text()
    assert "| rte (SAMPLE) |" in page
    assert "UNFINISHED" not in page


def test_what_a_call_was_stays_with_its_own_tasks(model: str, short: str, tmp_path: Path) -> None:
    flags = ["--task", "rte", "--model", model, "--max-steps", "1", "--max-seq-length", "64"]
    flags += ["--device", "cpu", "--precision", "fp32", "--output", str(tmp_path / "search")]
    assert main(["search-settings", *flags, "--try-learning-rate", "1e-3"]) == 0
    out = tmp_path / "out"
    quick = options(out, short, "rte", seeds=2, max_steps=1)
    evaluate_suite(model, **quick | {"settings": (str(tmp_path / "search/best.json"),)})
    evaluate_suite(model, **options(out, short, "mrpc", limit=8))

    def check(second: str) -> None:
        page = (out / "suite.md").read_text()
        assert "QUICK LOOK (rte): 1 step a fine-tuning; not the figures" in page
        assert f"QUICK LOOK (mrpc): {second}; not the figures" in page
        assert "with 2 seeds (rte) or one seed (mrpc), mean ± standard deviation, in" in page
        assert "### Searched on dev: rte from pretrained weights" in page
        assert "UNFINISHED" not in page
        assert '<p class="warning">QUICK LOOK (rte): 1 step' in (out / "suite.html").read_text()

    check("8 training examples a task at most, 2 steps a fine-tuning")
    # An older version said it once, of its last call.
    suite = json.loads((out / "suite.json").read_text())
    del suite["tasks"]["mrpc"]
    for key in ("seeds", "quick", "searches"):
        suite[key] = suite["tasks"]["rte"].pop(key)
    (out / "suite.json").write_text(json.dumps(suite))
    shutil.rmtree(out / "mrpc")
    evaluate_suite(model, **options(out, short, "mrpc"))
    check("2 steps a fine-tuning")


def test_masked_words_are_scored_anew_where_the_data_has_another_text(
    model: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(folder: Path, data: str | None, *given: Any) -> dict[str, Any]:
        texts.append(held_out_text(data).name)
        figures = {"mlm_loss": 2.0, "mlm_accuracy": 0.5, "mlm_bits_per_character": 1.0}
        return {"text": texts[-1], "max_seq_length": 64, "masked_tokens": 5, **figures}

    texts: list[str] = []
    monkeypatch.setattr(suite, "masked_word_figures", measured)
    monkeypatch.setattr(suite, "carry_out_all", lambda jobs, overwrite, taken, *given: taken([]))
    held_out = tmp_path / "sets/enwiki_text/enwiki-valid.txt.xz"
    held_out.parent.mkdir(parents=True)
    held_out.write_bytes(lzma.compress(b"A text."))
    shutil.copytree(bundled_data() / "mrpc", tmp_path / "sets/mrpc")
    evaluate_suite(model, **options(tmp_path / "out", short, "rte"))
    for _ in range(2):
        given = options(tmp_path / "out", short, "mrpc", data=str(tmp_path / "sets"))
        assert evaluate_suite(model, **given)["masked_words"]["text"] == "enwiki-valid.txt.xz"
    assert texts == ["wiki.txt", "enwiki-valid.txt.xz"]


def test_times_are_of_the_same_seeds_and_more_seeds_of_one_side_are_told() -> None:
    """Of a run that went on after a stop the whole is not known."""
    side = {"seconds": {"0": 600.0, "1": 60.0}, "wall_seconds": {"1": 65.0}}
    assert (_time(side), _time(side, "seconds")) == ("65 s", "60 s")
    assert _time(side | {"wall_seconds": {}}, "seconds") == "6 min"
    figures = {"figures": {"0": 1.0, "1": 2.0}, "mean": 1.5, "sd": 0.5}
    assert [_spread(figures, n) for n in (2, 1)] == ["1.50 ± 0.50", "1.50 ± 0.50 (2 seeds)"]


def test_times_are_told_to_be_of_the_most_jobs_of_any_call(
    model: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "masked_word_figures", lambda *given: {})
    monkeypatch.setattr(suite, "carry_out_all", lambda jobs, overwrite, taken, *given: taken([]))
    for jobs, told in ((2, 2), (1, 2), (3, 3)):
        given = options(tmp_path / "out", short, "rte", jobs=jobs)
        assert evaluate_suite(model, **given)["jobs"] == told


@pytest.mark.parametrize(("name", "scale"), [("stsb", 100), ("squad", 1)])
def test_dev_figures_have_the_scale_of_the_others(name: str, scale: float) -> None:
    entry, side = ENTRIES[name], a_suite()["tasks"]["imdb"]["random"]
    figures = {entry.figure: 0.5, f"dev_{entry.figure}": 0.25, "seconds": 1.0}
    suite._add(side, entry, 0, figures)
    assert (side["figures"], side["dev"]) == ({"0": 0.5 * scale}, {"0": 0.25 * scale})
    assert (side["mean"], side["dev_mean"]) == (0.5 * scale, 0.25 * scale)


def test_a_missing_run_of_one_task_is_not_made_up_by_another() -> None:
    suite = a_suite()
    three = suite["tasks"]["imdb"]["model"]
    whole = {**suite["tasks"]["imdb"], "seeds": 1, "model": three, "random": three}
    suite["tasks"]["rte"] = whole
    assert "UNFINISHED: 5 of 8 runs are there" in as_markdown(suite)


@pytest.mark.parametrize("look", [{"limit": 8}, {"max_steps": 2}, {"max_minutes": 1.0}, {}])
def test_a_quick_look_learns_no_other_task_first(
    look: dict[str, Any], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[series.Job] = []
    monkeypatch.setattr(suite, "carry_out_all", lambda given, *more: jobs.extend(given))
    before = {"intermediate_task": "stsb", "intermediate_data": str(bundled_data() / "stsb")}
    (tmp_path / "own.json").write_text(json.dumps({"task": "mrpc", **before}))
    given = {"output": str(tmp_path / "out"), "tasks": "mrpc", "seeds": 1, "device": "cpu"}
    evaluate_suite(model, settings=str(tmp_path / "own.json"), **given, **look)
    wanted = dict.fromkeys(before) if look else before
    for job in jobs:
        assert job.settings.intermediate == wanted["intermediate_task"]
        assert job.settings.intermediate_data == wanted["intermediate_data"]


def test_other_data_of_the_task_before_is_noticed(
    model: str, tmp_path: Path, runs: list[str]
) -> None:
    for name in ("mrpc", "stsb"):
        shutil.copytree(bundled_data() / name, tmp_path / "sets" / name)
    own = {"task": "mrpc", "max_seq_length": 64, "epochs": 1.0, "intermediate_task": "stsb"}
    (tmp_path / "own.json").write_text(json.dumps(own | {"random_weights": False}))
    given = {"tasks": "mrpc", "settings": str(tmp_path / "own.json"), "seeds": 1, "device": "cpu"}
    given |= {"data": str(tmp_path / "sets"), "output": str(tmp_path / "out")}
    evaluate_suite(model, **given)
    train = tmp_path / "sets/stsb/train.tsv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:-4]))
    with pytest.raises(InputError, match="mrpc, the model, seed 0 was run otherwise: of --interme"):
        evaluate_suite(model, **given)
    evaluate_suite(model, **given, overwrite=True)
    assert runs == ["mrpc/model/seed-0", "mrpc/random/seed-0", "mrpc/model/seed-0"]


def test_sequences_are_no_longer_than_the_model_allows(model: str, tmp_path: Path) -> None:
    small = cut_to_positions(model, tmp_path / "small", 48)
    where = {"output": str(tmp_path / "out"), "tasks": ("rte",), "seeds": 1}
    made = evaluate_suite(small, **where, **QUICK)
    assert "48 tokens" in made["tasks"]["rte"]["model"]["settings"]


def test_a_run_that_diverges_is_named_and_the_others_go_on(
    model: str, short: str, tmp_path: Path
) -> None:
    file = tmp_path / "rate.json"
    file.write_text(json.dumps({"task": "rte", "max_seq_length": 64, "learning_rate": 1e38}))
    given = options(tmp_path / "out", short, "mrpc") | {"tasks": ("rte", "mrpc")}
    made = evaluate_suite(model, **given | {"settings": (*given["settings"], str(file))})
    assert made["tasks"]["rte"]["model"]["diverged"]["0"].startswith("step 2: ")
    assert made["tasks"]["mrpc"]["model"]["figures"].keys() == {"0"}
    page = (tmp_path / "out/suite.md").read_text()
    assert "DIVERGED, and not in the mean: rte, model, seed 0: step 2: " in page
    assert "UNFINISHED" not in page
    assert '<p class="warning">DIVERGED' in (tmp_path / "out/suite.html").read_text()


def test_other_weights_in_the_same_folder_are_noticed(
    model: str, short: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    given = options(tmp_path / "out", short, "rte")
    evaluate_suite(copy, **given)
    with (copy / "model.safetensors").open("r+b") as handle:
        handle.seek(-4, 2)
        handle.write(b"\0\0\0\1")
    with pytest.raises(InputError, match=r"the weights in .* have changed"):
        evaluate_suite(copy, **given)


def test_the_table_of_another_model_is_not_dropped_unasked(
    model: str, short: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate_suite(model, **options(out, short, "rte"))
    before = (out / "suite.json").read_text()
    other = shutil.copytree(model, tmp_path / "model")
    with (other / "model.safetensors").open("r+b") as handle:
        handle.seek(-4, 2)
        handle.write(b"\0\0\0\1")
    with pytest.raises(InputError, match="holds rte of other weights, those of .*--overwrite"):
        evaluate_suite(other, **options(out, short, "mrpc"))
    assert (out / "suite.json").read_text() == before
    assert not (out / "mrpc").exists()
    made = evaluate_suite(other, **options(out, short, "mrpc"), overwrite=True)
    assert list(made["tasks"]) == ["mrpc"]


def test_sets_that_are_missing_are_left_out_with_a_line(
    model: str, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundled_data() / "rte", tmp_path / "sets/RTE")
    given = options(tmp_path / "out", short, "rte", "mrpc", data=str(tmp_path / "sets"))
    made = evaluate_suite(model, **given)
    assert list(made["tasks"]) == ["rte"]
    assert f"skipped: mrpc: no folder mrpc in {tmp_path / 'sets'}" in capsys.readouterr().err
    page = (tmp_path / "out/suite.md").read_text()
    assert "Left out: mrpc, no folder mrpc" in page
    assert "SAMPLE" not in page
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds none of imdb, sst2"):
        evaluate_suite(model, output=str(tmp_path / "none"), data=str(empty), seeds=1)
    assert not (tmp_path / "none").exists()


def test_a_task_whose_set_is_no_longer_there_stays_in_the_table(
    model: str, short: str, tmp_path: Path
) -> None:
    for name in ("rte", "mrpc"):
        shutil.copytree(bundled_data() / name, tmp_path / name / name)
    first = evaluate_suite(
        model, **options(tmp_path / "out", short, "rte", data=str(tmp_path / "rte"))
    )
    both = options(tmp_path / "out", short, "rte", "mrpc", data=str(tmp_path / "mrpc"))
    made = evaluate_suite(model, **both)
    assert made["tasks"]["rte"] == json.loads(json.dumps(first["tasks"]["rte"]))
    assert list(made["tasks"]) == ["rte", "mrpc"] and not made["skipped"]


def test_where_a_set_is_found(tmp_path: Path) -> None:
    places = find_task("imdb")(FinetuneSettings(task="imdb")).places

    def found(name: str = "imdb") -> Path | None:
        return find_set(tmp_path, name, places)

    assert found() is None
    (tmp_path / "aclImdb_v1.tar.gz").touch()
    assert found() == tmp_path / "aclImdb_v1.tar.gz"
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb/aclImdb_unsup.tar.xz").touch()
    (tmp_path / "imdb/notes.txt").touch()
    assert found() == tmp_path / "aclImdb_v1.tar.gz"
    (tmp_path / "imdb/aclImdb_labelled.tar.xz").touch()
    assert found() == tmp_path / "imdb/aclImdb_labelled.tar.xz"
    write_reviews(tmp_path / "imdb/aclImdb", count=1)
    assert found() == tmp_path / "imdb"
    shutil.rmtree(tmp_path / "imdb")
    (tmp_path / "imdb").mkdir()  # a note alone, and the set beside it
    write_reviews(tmp_path / "aclImdb", count=1)
    assert found() == tmp_path / "aclImdb"
    stsb = find_task("stsb")(FinetuneSettings(task="stsb")).places
    for name in ("stsb", "STS-B"):
        (tmp_path / name).mkdir()
    assert find_set(tmp_path, "stsb", stsb) == tmp_path / "stsb"
    (tmp_path / "stsb/run.json").touch()  # the run of --output stsb
    assert find_set(tmp_path, "stsb", stsb) == tmp_path / "STS-B"


def test_bundled_samples_are_told_however_they_are_named() -> None:
    plan = Plan(model="-", data=str(bundled_data()))
    rte = _source(plan, "rte")
    assert isinstance(rte, Source) and rte.is_sample
    task = find_task("rte")(FinetuneSettings(task="rte", data=str(bundled_data() / "rte")))
    assert task.find_data().is_sample and "the bundled sample" in task.find_data().said
    assert not task.is_sample(bundled_data() / "downloads/RTE")


def test_lists_of_flags_add_up() -> None:
    suite = parsers()[1]["evaluate-suite"]
    found = suite.parse_args(["m", "--tasks", "rte", "--settings", "a", "--tasks", "sst2", "mrpc"])
    assert (found.tasks, found.settings) == (["rte", "sst2", "mrpc"], ["a"])
    assert suite.parse_args(["m"]).tasks == []
    search = parsers()[1]["search-settings"]
    tried = search.parse_args(["--try-epochs", "1", "--try-epochs", "2", "3"])
    assert tried.try_epochs == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": ("imbd",)}, "did you mean 'imdb'"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"max_minutes": 0}, "--max-minutes is 0"),
        ({"max_minutes": math.nan}, "--max-minutes is nan"),
        ({"max_minutes": math.inf}, "--max-minutes is inf"),
        ({"max_minutes": 1, "max_steps": 1}, "both budgets"),
        ({"limit": 3}, "--limit is 3, must be at least 4"),
        ({"precision": "fp8"}, "--precision 'fp8' is unknown"),
        ({"data": "nowhere"}, "--data nowhere is not a folder"),
        ({"device": "cuda:99"}, "--device cuda:99 is not there"),
        ({"seeds": "3"}, "seeds is '3', expected int"),
        ({"seeds": 2.5}, "seeds is 2.5, expected int"),
        ({"overwrite": "no"}, "overwrite is 'no', expected bool"),
        ({"limits": 3}, "unknown key 'limits'; did you mean 'limit'"),
    ],
)
def test_what_cannot_be_done_is_said(
    values: dict[str, Any], said: str, model: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        evaluate_suite(model, **{"output": str(tmp_path / "out")} | values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["", ","])
def test_no_name_does_not_mean_every_task(
    named: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tasks", named, "--device", "cuda:99", "--output", str(tmp_path / "out")]
    assert main(["evaluate-suite", model, *flags]) == 2
    assert "--tasks names nothing" in capsys.readouterr().err


def test_several_processes_are_refused_before_a_baseline(
    model: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="in one process; no torchrun"):
        evaluate_suite(model, **options(tmp_path / "out", short, "rte"))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(model: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files, but no suite\.json"):
        evaluate_suite(model, output=str(tmp_path), tasks=("rte",))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "value"), [("limit", 4), ("dry_run", True), ("device", "cpu"), ("precision", "bf16")]
)
def test_a_settings_file_may_not_say_what_the_suite_says(
    name: str, value: Any, model: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"task": "rte", name: value}))
    with pytest.raises(InputError, match=f"{name} is for the suite to say"):
        evaluate_suite(model, output=str(tmp_path / "out"), settings=(str(file),))


def test_the_trials_of_a_search_are_in_the_report(model: str, tmp_path: Path) -> None:
    flags = ["--task", "rte", "--model", model, "--max-steps", "2", "--max-seq-length", "64"]
    flags += ["--device", "cpu", "--precision", "fp32", "--output", str(tmp_path / "search")]
    assert main(["search-settings", *flags, "--try-learning-rate", "1e-3", "1e-4"]) == 0
    best = str(tmp_path / "search/best.json")
    given = {"output": str(tmp_path / "out"), "tasks": ("rte",), "seeds": 1, **QUICK}
    evaluate_suite(model, settings=(best,), **given)
    for name in ("suite.md", "suite.html"):
        page = (tmp_path / "out" / name).read_text()
        assert "Searched on dev: rte from pretrained weights, 1 seed(s) a trial" in page
        assert "0.0001" in page and "2 of 2" in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_seq_length": 4096}, "rte: --max-seq-length 4096 is beyond the model's"),
        ({"select": "f2"}, "rte: --select 'f2' is no figure of rte"),
    ],
)
def test_settings_that_no_run_would_take_are_refused_before_any_run(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    def ran(*jobs: Any) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(suite, "carry_out_all", ran)
    file = tmp_path / "rte.json"
    file.write_text(json.dumps({"task": "rte", **given}))
    with pytest.raises(InputError, match=said):
        evaluate_suite(
            model,
            output=str(tmp_path / "out"),
            tasks=("sst2", "rte"),
            settings=(str(file),),
            max_steps=1,
        )


def test_no_settings_file_is_dropped_silently(
    model: str, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def file(name: str, **content: Any) -> str:
        (tmp_path / name).write_text(json.dumps({"max_seq_length": 64, **content}))
        return str(tmp_path / name)

    def refused(said: str, *files: str) -> None:
        with pytest.raises(InputError, match=said):
            evaluate_suite(model, output=str(tmp_path / "out"), tasks=("rte",), settings=files)
        assert not (tmp_path / "out").exists()

    refused("task is 'classification'; the suite has imdb", file("a", task="classification"))
    both = file("b", task="rte", learning_rate=2e-3)
    refused("/b and .*/rte.json are for the same runs of rte; give one", both, f"{short}/rte.json")
    one = file("c", task="rte", learning_rate=1e-3, random_weights=False)
    refused("/c and .*/d are for the same", one, file("d", task="rte", random_weights=False))
    given = options(tmp_path / "out", short) | {"tasks": ("rte",)}
    made = evaluate_suite(model, **given | {"settings": (one, both, f"{short}/sst2.json")})
    told = {side: made["tasks"]["rte"][side]["settings"] for side in ("model", "random")}
    assert "rate 0.001," in told["model"] and "rate 0.002," in told["random"]
    said = capsys.readouterr().err
    assert f"settings: {short}/sst2.json is of sst2, which --tasks leaves out" in said


def test_adapting_is_not_done_for_every_seed(model: str, tmp_path: Path) -> None:
    (tmp_path / "adapt.json").write_text(json.dumps({"task": "rte", "adapt": ["auto"]}))
    with pytest.raises(InputError, match="adapt once, with pretrain --model"):
        evaluate_suite(model, settings=(str(tmp_path / "adapt.json"),), output=str(tmp_path / "o"))


def test_the_table_tells_all_that_a_settings_file_changed(
    model: str, short: str, tmp_path: Path
) -> None:
    own = {"task": "rte", "max_seq_length": 64, "weight_decay": 0.2, "truncation": "tail"}
    (tmp_path / "own.json").write_text(json.dumps(own))
    given = options(tmp_path / "out", short) | {"tasks": ("rte",)}
    made = evaluate_suite(model, **given | {"settings": (str(tmp_path / "own.json"),)})
    told = made["tasks"]["rte"]["model"]["settings"]
    assert "weight decay 0.2" in told and "truncation tail" in told
    assert told.endswith("(a settings file)")


# --- figures and pages ----------------------------------------------------------------------------


def a_suite(quick: str = "", **values: Any) -> dict[str, Any]:
    """A suite of one task with three seeds of the model and none of random weights."""
    sides: dict[str, Any] = {
        side: {
            "settings": f"{side} | <b>",
            "figures": {},
            "dev": {},
            "seconds": {},
            "wall_seconds": {},
            "diverged": {},
        }
        for side in ("model", "random")
    }
    for seed, value in enumerate((0.8, 0.81, 0.85)):
        figures = {"accuracy": value, "dev_accuracy": value + 0.01, "seconds": 60.0 * (seed + 1)}
        figures |= {"wall_seconds": 180.0} if seed else {}  # the first one went on after a stop
        suite._add(sides["model"], Entry("accuracy", "accuracy"), seed, figures)
    task = {
        **{"figure": "accuracy", "scored": "test", "is_sample": False, "dataset": "imdb"},
        **{"num_train": 22500, "num_dev": 2500, "num_eval": 25000},
        **{"baselines": {"TF-IDF": 88.0, "NB-SVM": 91.0}, **sides},
        **{"seeds": 3, "quick": quick, "searches": []},
    }
    whole = {
        **{"model": "<m>", "weights": "abc", "layers": 4, "hidden_size": 256, "vocab_size": 8192},
        **{
            "jobs": 1,
            "mlm": {},
            "masked_words": {},
            "skipped": {},
            "tasks": {"imdb": task},
        },
    }
    return whole | values


def test_means_deviations_and_gaps_are_those_worked_out_by_hand() -> None:
    row = next(r for r in as_markdown(a_suite()).splitlines() if r.startswith("| imdb"))
    cells = [cell.strip() for cell in row.split("|")]
    # Mean 82, deviations -2, -1, 3: the sample's variance is 14 / 2.
    assert cells[2:8] == [
        *("test accuracy", f"82.00 ± {math.sqrt(7):.2f}", "–", "–"),
        *("TF-IDF 88.00, NB-SVM 91.00", "-9.00"),
    ]
    assert cells[9:] == ["accuracy 83.00", "–", "22,500 / 25,000", "3 min (2 min)", ""]


def test_what_others_report_stands_beside_real_sets_alone() -> None:
    assert set(suite_report._PUBLISHED) == set(ENTRIES)
    made = a_suite()
    page = as_markdown(made)
    assert "| NB-SVM of trigrams 91.8 (1), BERT-base 94.6 (2) |" in page
    for number in range(1, 5):  # every mark has its source
        assert any(f"({number})" in told for told in suite_report._PUBLISHED.values())
        assert f"({number}) " in suite_report._SOURCES
    made["tasks"]["imdb"]["is_sample"] = True
    assert not {"BERT-base", "Published"} & set(as_markdown(made).replace(":", " ").split())


def test_the_page_says_whose_threshold_dev_chose() -> None:
    said = "Of imdb dev chose the threshold above which yes is said, for "
    made = a_suite()
    task = made["tasks"]["imdb"]
    assert said not in as_markdown(made)
    task["threshold_for"] = "f1_binary"  # as in tables from before the sides had one each
    assert said + "the model, random weights, classical methods." in as_markdown(made)
    task["random"]["threshold_for"] = None
    assert said + "the model, classical methods alone." in as_markdown(made)
    task |= {"baselines": {}, "threshold_for": None}
    task["model"]["threshold_for"] = "f1_binary"
    assert said + "the model alone." in as_markdown(made)


def test_the_gain_over_random_weights_is_tested_by_welch() -> None:
    pytest.importorskip("scipy")

    def gain(*values: float) -> str:
        made = a_suite()
        side = made["tasks"]["imdb"]["random"]
        for seed, value in enumerate(values):
            figures = {"accuracy": value, "dev_accuracy": value, "seconds": 1.0}
            suite._add(side, Entry("accuracy", "accuracy"), seed, figures)
        page = as_markdown(made)
        cell = next(r for r in page.splitlines() if r.startswith("| imdb")).split("|")[5].strip()
        assert ("Welch" in page) == ("(p " in cell)
        return cell

    assert gain(0.8) == "+2.00"  # one seed does not deviate
    # Means 82 and 80, squared errors 7/3 and 1/3: t = sqrt(3/2), 2.56 degrees of freedom.
    assert gain(0.79, 0.80, 0.81) == "+2.00 (p 0.32)"
    # Every seed alike: t = 2 / sqrt(7/3), with the two degrees of freedom of the model's seeds.
    assert gain(0.5, 0.5, 0.5) == "+32.00 (p 0.0023)"


def test_the_page_escapes_what_others_wrote_and_its_chart_is_whole() -> None:
    made = a_suite(quick="8 training examples a task at most", skipped={"rte": "no <folder>"})
    page = as_html(made)
    assert "<m>" not in page
    assert "no &lt;folder&gt;" in page
    assert '<p class="warning">QUICK LOOK: 8 training' in page
    assert '<p class="warning">UNFINISHED: 3 of 6' in page
    assert "http" not in page  # it needs no other file
    chart = page[page.index("<svg") : page.index("</svg>") + 6]
    tree = xml.etree.ElementTree.fromstring(chart)
    bars = [float(bar.attrib["width"]) for bar in tree.findall("rect")]
    assert len(bars) == 3  # the model and two methods; random weights have no figure yet
    assert bars[2] / bars[0] == pytest.approx(91 / 82, abs=1e-2)
    assert len(tree.findall("line")) == 1
    assert "model \\| <b>" in as_markdown(made)


def test_bits_per_character_are_those_of_the_formula(model: str, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    results = {"mlm_loss": 2 * math.log(2), "mlm_accuracy": 0.3}
    (folder / "results.json").write_text(json.dumps(results))
    held_out = tmp_path / "data/enwiki_text/enwiki-valid.txt.xz"
    held_out.parent.mkdir(parents=True)
    held_out.write_bytes(lzma.compress(b"##\n##"))  # a mark is a token: four of four characters
    found = held_out_figures(folder, str(tmp_path / "data"))
    assert found["mlm_bits_per_character"] == pytest.approx(2.0)
    assert found["measured_on"] == "enwiki-valid.txt.xz"
    assert held_out_figures(folder, None)["measured_on"] == "wiki.txt"
    (folder / "results.json").write_text(json.dumps(results | {"mlm_bits_per_character": 1.5}))
    assert held_out_figures(folder, None) == results | {"mlm_bits_per_character": 1.5}
    run = json.loads((folder / "run.json").read_text())
    run["settings"]["model"] = "owner/name"
    (folder / "run.json").write_text(json.dumps(run))
    went_on = held_out_figures(folder, None) | {"tokens": 3e6, "seconds": 60.0}
    page = as_markdown(a_suite(mlm=went_on))
    assert "It went on from another model, with 3.0 M tokens in 60 s." in page
    run["settings"]["random_weights"] = True  # which took its vocabulary alone
    (folder / "run.json").write_text(json.dumps(run))
    assert "went_on" not in held_out_figures(folder, None)
    (folder / "results.json").unlink()
    assert held_out_figures(folder, None) == {}
    assert "no figures of pretraining" in as_markdown(a_suite())


def test_masked_words_of_one_text_are_scored_for_any_model(model: str, tmp_path: Path) -> None:
    found = masked_word_figures(Path(model), None, "cpu", "fp32")
    assert (found["text"], found["max_seq_length"]) == ("wiki.txt", 64)
    assert 0 < found["mlm_bits_per_character"] < 6 * found["mlm_loss"]
    # What pretraining scores by, on the same sequences; and the same in every call.
    assert found == masked_word_figures(Path(model), None, "cpu", "fp32")
    copy = Path(cut_to_positions(model, tmp_path / "other", 48))
    (copy / "results.json").unlink()  # as a hub's
    (copy / "run.json").unlink()
    assert masked_word_figures(copy, None, "cpu", "fp32")["max_seq_length"] == 48
    page = as_markdown(a_suite(masked_words=found))
    assert "Of wiki.txt, " in page and "has learnt from this text they say nothing" in page
    headless = tmp_path / "headless"
    shutil.copytree(model, headless)
    tensors = load_file(headless / "model.safetensors")
    kept = {name: part for name, part in tensors.items() if not name.startswith("cls.")}
    save_file(kept, headless / "model.safetensors")
    assert masked_word_figures(headless, None, "cpu", "fp32") == {}
    weights = headless / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # which is not to have no head
    with pytest.raises(InputError, match="model.safetensors"):
        masked_word_figures(headless, None, "cpu", "fp32")
    mlm = {"mlm_loss": 2.0, "mlm_accuracy": 0.5, "mlm_bits_per_character": 1.5}
    cost = {"tokens": 48_134_934, "seconds": 7337.0}
    assert "48.1 M tokens in 2 h 02 min" in as_html(a_suite(mlm=mlm | cost))


def test_time_left_is_that_of_the_same_kind_else_of_all() -> None:
    assert seconds_left(["a", "b"], {}) is None
    known = {"a": [10.0, 20.0], "b": [45.0]}
    assert seconds_left(["a", "a", "b"], known) == 15 + 15 + 45
    assert seconds_left(["c"], known) == 30
