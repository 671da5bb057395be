"""Recipes: which fits, what it fills in, and what it leaves as the user gave it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples import make_model_folder, one_thread, write_corpus, write_reviews  # noqa: F401

import minibert
from minibert import recipes
from minibert.cli import main
from minibert.config import BertConfig, preset
from minibert.errors import InputError
from minibert.fields import Default
from minibert.files import OPENERS, model_path
from minibert.finetuning import finetune
from minibert.flags import settings_from
from minibert.model_folders import BUNDLED
from minibert.pretraining import pretrain
from minibert.recipes import RECIPES, Recipe, file_settings, filled
from minibert.setting_search import SEARCHED
from minibert.settings import FinetuneSettings
from minibert.starts import with_recipe
from minibert.suite import ENTRIES
from minibert.tasks import find_task

ROOT = Path(__file__).parent.parent
MINI = preset("mini")


def fill(config: BertConfig = MINI, **values: Any) -> FinetuneSettings:
    settings = FinetuneSettings.from_dict({"task": "imdb"} | values)
    return filled(settings, find_task(settings.task).names[-1], config)[0]


def test_every_entry_names_a_task_and_a_page_that_is_there() -> None:
    for recipe in RECIPES:
        find_task(recipe.task)
        page, _, place = recipe.source.partition(", ")
        assert f"## {place}" in (ROOT / page).read_text(encoding="utf-8"), recipe


def test_an_entry_is_for_pretrained_or_for_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fill().learning_rate == 5e-4
    assert fill(random_weights=True).learning_rate == 2e-4
    monkeypatch.setattr(recipes, "RECIPES", RECIPES[:1])
    assert fill().learning_rate == 5e-4
    assert fill(random_weights=True).learning_rate is None


def test_a_recipe_asks_for_no_more_positions_than_there_are() -> None:
    few = dataclasses.replace(MINI, max_position_embeddings=128)
    assert (fill(few).max_seq_length, fill(few).truncation) == (128, "windows")
    assert fill(few, max_seq_length=200).max_seq_length == 200  # which is told where it is opened


def test_a_length_that_nobody_typed_is_within_the_model_s_positions(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    given = FinetuneSettings(task="rte", model=str(model))
    found, said = with_recipe(given)
    positions = BertConfig.from_pretrained(model).max_position_embeddings
    assert found.max_seq_length == positions < given.max_seq_length
    assert f"{positions} tokens, as long as the model goes" in said
    typed = dataclasses.replace(given, max_seq_length=512)
    assert with_recipe(typed)[0].max_seq_length == 512  # refused where the model is opened


@pytest.mark.parametrize(
    ("task", "rates"),
    [("sst2", [2e-4, 2e-4, 5e-5, 3.75e-5]), ("multi30k", [1e-3, 5e-4, 1 / 3e3, 2.5e-4])],
)
def test_wide_models_are_fine_tuned_at_lower_rates(task: str, rates: list[float]) -> None:
    """Where no recipe says one: a published BERT-base takes 2e-5 to 5e-5, and tasks that write
    have a decoder that has to be learnt."""
    found = find_task(task)(FinetuneSettings(task=task))
    assert [found.default_rate(width) for width in (256, 512, 768, 1024)] == pytest.approx(rates)


def test_pretrained_and_random_weights_read_the_same_text_and_labels() -> None:
    """Else a table of both would compare what they read; it leaves self-training out."""
    read = ("max_seq_length", "truncation", "intermediate_task", "select", "threshold")
    read += ("pair_order",)
    sides: dict[tuple[str, int, int], set[tuple[object, ...]]] = {}
    bi_encoders = set()
    for entry in recipes.RECIPES:
        found = sides.setdefault((entry.task, entry.layers, entry.hidden_size), set())
        if entry.mode == "bi-encoder":
            found = bi_encoders
        found.add(tuple(getattr(entry, name) for name in read))
    assert bi_encoders == {(None,) * len(read)}  # that of random weights is the default
    assert {key for key, found in sides.items() if len(found) > 1} == set()
    assert len(recipes.RECIPES) > len(sides)  # some have both
    for width in (256, 512):
        assert sides["imdb", 4, width] == {(256, "windows", None, None, None, None)}
        assert sides["classification", 4, width] == {(None, "windows", None, None, None, None)}


def test_what_was_not_measured_keeps_its_defaults() -> None:
    for other in ({"task": "multi30k"}, {"config": preset("base")}, {"config": preset("tiny")}):
        settings = fill(**other)
        assert settings == FinetuneSettings(task=settings.task)
        assert settings.learning_rate is None


def test_a_mode_of_similarity_is_part_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Recipe("stsb", 4, 256, False, "", "bi-encoder", learning_rate=5e-5)
    monkeypatch.setattr(recipes, "RECIPES", (own,))
    assert fill(task="stsb", mode="bi-encoder").learning_rate == 5e-5
    assert fill(task="stsb").learning_rate is None
    both = own._replace(mode="cross-encoder")
    monkeypatch.setattr(recipes, "RECIPES", (both,))
    assert fill(task="stsb").learning_rate == 5e-5  # which is what nothing means


def test_what_the_user_gives_stays_even_where_it_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Recipe("imdb", 4, 256, False, "", None, 3e-4, 5.0, 32, 64)
    monkeypatch.setattr(recipes, "RECIPES", (whole,))
    found = fill()
    assert (found.learning_rate, found.epochs, found.batch_size, found.max_seq_length) == whole[
        6:10
    ]
    given = fill(learning_rate=1e-5, epochs=1, batch_size=16, max_seq_length=256)
    assert (given.learning_rate, given.epochs) == (1e-5, 1)
    assert (given.batch_size, given.max_seq_length) == (16, 256)
    for budget in ({"max_steps": 7}, {"max_minutes": 1}):
        assert fill(**budget).epochs is None


@pytest.mark.parametrize(
    ("row", "truncation"),
    [
        ('\ufeff{"text": "a", "label": ["x", "y"]}', "head"),
        ('{"text": "a", "label": []}', "head"),
        ('{"text": "a", "label": "x"}\n\n{"text": "b", "label": ["x", "y"]}', "head"),
        ('{"text": "a", "label": "x"}', "windows"),
        ('{"text": "a", "label": "x", "tags": ["y"]}', "windows"),
        ("{", "windows"),
        ("\n", "windows"),
    ],
)
@pytest.mark.parametrize("end", ["", ".xz"])
def test_windows_are_for_texts_of_one_class(
    tmp_path: Path, row: str, truncation: str, end: str
) -> None:
    """Those of several were not measured, and a window need not have all that the whole has."""
    path = tmp_path / f"own.jsonl{end}"
    with OPENERS.get(end, open)(path, "wt", encoding="utf-8") as file:
        file.write(row + "\n")
    given = FinetuneSettings(task="classification", data=str(path), model="minibert-mini-en")
    found, said = with_recipe(given)
    assert found.truncation == truncation
    assert ("truncation" in said) == (truncation == "windows")


def test_least_steps_go_with_the_epochs_of_a_recipe() -> None:
    found = fill(task="classification")
    assert (found.epochs, found.min_steps, found.least_steps) == (3, 2000, 2000)
    for budget in ({"epochs": 2.0}, {"max_steps": 7}, {"max_minutes": 1}):
        given = fill(task="classification", **budget)
        assert (given.min_steps, given.least_steps) == (None, 0)
    assert fill(task="classification", min_steps=30).least_steps == 30
    assert fill(task="classification", config=preset("small")).least_steps == 500


def test_imdb_s_unlabelled_reviews_come_first_of_the_larger_model_alone() -> None:
    """Of the other size it was not measured; random weights are told beside the labels alone."""
    for other in ({"config": MINI}, {"config": preset("small"), "random_weights": True}):
        assert fill(**other).self_training is None
    found = fill(config=preset("small"))
    assert (found.self_training, found.teacher) == (["auto"], "nb-svm")


def test_the_bundled_model_has_a_recipe_for_every_task_of_the_suite_on_both_sides() -> None:
    config = BertConfig.from_pretrained(model_path(BUNDLED))
    for entry in ENTRIES:
        for is_random in (False, True):
            settings = FinetuneSettings(task=entry, random_weights=is_random)
            found = recipes.find_recipe(settings, "", config)
            assert found is not None and found.task == entry, entry


def test_few_examples_are_gone_through_more_often_by_every_recipe() -> None:
    assert all(recipe.min_steps > 0 for recipe in recipes.RECIPES)
    assert fill(task="conll2003").least_steps == 500
    assert fill(task="imdb").least_steps == 2000
    assert fill(task="rte").least_steps == 200  # of 234 in the epochs that were measured


@pytest.mark.parametrize("model", [BUNDLED, "minibert-mini-en"])
def test_mrpc_is_decided_by_the_figure_it_is_told_by_on_both_sides(model: str) -> None:
    config = BertConfig.from_pretrained(model_path(model))
    for is_random in (False, True):
        found = fill(task="mrpc", random_weights=is_random, config=config)
        assert (found.select, found.threshold) == ("f1_binary", "best")
        assert (fill(task="rte", random_weights=is_random, config=config).threshold) is None
    own = fill(task="mrpc", select="accuracy", threshold="0.5", config=config)
    assert (own.select, own.threshold) == ("accuracy", "0.5")


def test_what_a_search_may_find_a_recipe_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"truncation": "head+tail", "dropout": 0.2, "label_smoothing": 0.1}
    whole = Recipe("imdb", 4, 256, False, "", **changes)  # type: ignore[arg-type]
    monkeypatch.setattr(recipes, "RECIPES", (whole,))
    found = fill()
    assert {name: getattr(found, name) for name in changes} == changes
    assert fill(truncation="head").truncation == "head"  # the user's, though it is the default
    assert set(SEARCHED) <= set(Recipe._fields)


def test_a_family_serves_all_of_its_tasks_after_those_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = Recipe("imdb", 4, 256, False, "", learning_rate=1e-4)
    family = Recipe("classification", 4, 256, False, "", learning_rate=9e-4)
    monkeypatch.setattr(recipes, "RECIPES", (named, family))
    assert fill().learning_rate == 1e-4
    assert fill(task="sst2").learning_rate == 9e-4
    assert fill(task="conll2003").learning_rate is None


@pytest.mark.parametrize(
    ("family", "named", "size"),
    [
        *(("similarity", "stsb", size) for size in ("mini", "small")),
        *(("tagging", "conll2003", size) for size in ("mini", "small")),
        *(("qa", "squad", size) for size in ("mini", "small")),
    ],
)
def test_own_data_is_learnt_as_the_measured_set_of_its_family(
    family: str, named: str, size: str
) -> None:
    own, of_set = (fill(task=task, config=preset(size)) for task in (family, named))
    for name in ("learning_rate", "epochs", "batch_size", "dropout", "adversarial_epsilon"):
        assert getattr(own, name) == getattr(of_set, name), name
    assert own.learning_rate is not None
    # Its texts may be longer, and the order of two may say something.
    assert (own.max_seq_length, own.pair_order) == (256, None)
    if family == "similarity":
        alike = [
            fill(task=task, config=preset(size), mode="bi-encoder") for task in (family, named)
        ]
        for name in ("learning_rate", "epochs", "batch_size", "dropout", "adversarial_epsilon"):
            assert getattr(alike[0], name) == getattr(alike[1], name), name
        assert alike[0].adversarial_epsilon == 0.5
        # Of two vectors none is first.
        assert (alike[0].max_seq_length, alike[1].pair_order) == (256, None)


@pytest.mark.parametrize("size", ["mini", "small"])
def test_a_set_s_class_is_not_looked_for_in_an_own_table(size: str) -> None:
    columns = {"text_column": "a", "text_pair_column": "b", "label_column": "y"}
    own = fill(task="mrpc", config=preset(size), **columns)
    assert (own.select, own.threshold) == (None, None)
    several = fill(task="mrpc", config=preset(size), label_separator="|")
    assert (several.select, several.threshold) == (None, None)
    named = fill(task="mrpc", config=preset(size), **columns, positive_label="yes")
    assert (named.select, named.threshold) == ("f1_binary", "best")


def test_windows_are_for_single_texts_of_one_class() -> None:
    assert fill(task="classification", text_column="text").truncation == "windows"
    assert fill(task="ag_news", random_weights=True).truncation == "windows"
    for other in ({"text_pair_column": "b"}, {"label_separator": ";"}, {"task": "qnli"}):
        found = fill(**{"task": "classification"} | other)
        assert (found.truncation, found.learning_rate) == ("head", 2e-4)
        drawn = fill(**{"task": "classification", "random_weights": True} | other)
        assert (drawn.truncation, drawn.learning_rate) == ("head", None)


@pytest.mark.parametrize("kind", ["a run's", "a search's", "an older run's"])
def test_a_file_of_settings_keeps_what_it_did_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = fill()
    later = Recipe(
        *("imdb", 4, 256, False, ""), adversarial_epsilon=0.5, intermediate_task="sst2", dropout=0.2
    )
    monkeypatch.setattr(recipes, "RECIPES", (later,))
    assert fill().adversarial_epsilon == 0.5
    values = before.to_dict()
    if kind == "an older run's":
        del values["adversarial_epsilon"], values["intermediate_task"]
    run = {"command": "finetune", "settings": values}
    content = file_settings(before) if kind == "a search's" else run
    (tmp_path / "file.json").write_text(json.dumps(content))
    settings = settings_from({"config": str(tmp_path / "file.json")}, FinetuneSettings)
    assert isinstance(settings, FinetuneSettings)
    again = filled(settings, "classification", MINI)[0]
    assert (again.adversarial_epsilon, again.intermediate) == (0.0, None)
    assert again.dropout == 0.2  # None is the model's own, and so is left to a recipe
    other = settings_from({"config": str(tmp_path / "file.json"), "task": "sst2"}, FinetuneSettings)
    assert (other.adversarial_epsilon, other.intermediate_task) == (None, None)
    # A search has values of one of them.
    given = {"config": str(tmp_path / "file.json")}
    searched = settings_from(given, FinetuneSettings, ["adversarial_epsilon"])
    assert (searched.adversarial_epsilon, searched.intermediate_task) == (None, "none")


@pytest.mark.parametrize("is_run", [True, False])
def test_what_a_user_said_to_do_without_is_kept(tmp_path: Path, is_run: bool) -> None:
    said: dict[str, Any] = {"adversarial_epsilon": 0, "intermediate_task": "none"}
    run = {"command": "finetune", "settings": {"task": "imdb", **said}}
    # A file of one's own may leave the task to the command.
    (tmp_path / "file.json").write_text(json.dumps(run if is_run else said))
    settings = settings_from(
        {"config": str(tmp_path / "file.json"), "task": "mrpc"}, FinetuneSettings
    )
    assert (settings.adversarial_epsilon, settings.intermediate_task) == (0, "none")


def test_a_default_is_a_number_like_any_other() -> None:
    settings = FinetuneSettings(task="imdb")
    assert isinstance(settings.batch_size, Default)
    assert isinstance(dataclasses.replace(settings, seed=3).batch_size, Default)
    assert json.loads(json.dumps(settings.to_dict()))["batch_size"] == 16
    # What was read back from a run was decided on.
    again = FinetuneSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert not isinstance(again.batch_size, Default)


QUICK: dict[str, Any] = {"max_steps": 1, "device": "cpu", "precision": "fp32"}
OWN = Recipe("imdb", 1, 64, False, "a page", None, 3e-3, None, 4, 24)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A fine-tuning that `OWN` fits."""
    write_corpus(tmp_path / "corpus.txt")
    start = pretrain(
        corpus=[str(tmp_path / "corpus.txt")],
        **{"num_layers": 1, "hidden_size": 64, "vocab_size": 60, "max_seq_length": 32, **QUICK},
        **{"output": str(tmp_path / "start"), "cache_dir": str(tmp_path / "cache")},
    )
    data = write_reviews(tmp_path / "reviews", count=4)
    return {"task": "imdb", "data": str(data), "model": str(start.folder), **QUICK}


def test_a_run_says_records_and_keeps_what_a_recipe_filled_in(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", (OWN,))
    capsys.readouterr()
    run = finetune(output=str(tmp_path / "run"), **values)
    said = capsys.readouterr().err
    assert "recipe: learning rate 0.003, batch size 4, max seq length 24; imdb from" in said
    assert "(a page)" in said
    assert said.startswith("data: ")  # the first line says which data it is
    record = json.loads((run.folder / "run.json").read_text())
    assert record["settings"]["batch_size"] == 4
    assert record["resolved"]["learning_rate"] == 3e-3
    assert minibert.load(run.folder).task.settings.max_seq_length == 24
    # The same command goes on, and finds the run finished rather than of other settings.
    again = finetune(output=str(tmp_path / "run"), resume=True, **values)
    assert again.figures == run.figures
    # With seeds the folder's model must be read as it was trained, too.
    capsys.readouterr()
    seeds = finetune(output=str(tmp_path / "seeds"), seeds=2, **values)
    said = capsys.readouterr().err
    assert said.startswith("data: ") and "recipe: learning rate 0.003" in said
    assert minibert.load(seeds.folder).task.settings.max_seq_length == 24


def test_a_run_goes_on_as_it_was_begun_whatever_the_recipes_say(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def go_on(seeds: int, **more: Any) -> dict[str, Any]:
        given = values | {"resume": True, "seeds": seeds} | more
        return finetune(output=str(tmp_path / f"run-{seeds}"), **given).figures

    monkeypatch.setattr(recipes, "RECIPES", (OWN,))
    figures = {n: finetune(output=str(tmp_path / f"run-{n}"), seeds=n, **values) for n in (1, 2)}
    monkeypatch.setattr(recipes, "RECIPES", (OWN._replace(learning_rate=1e-2, batch_size=8),))
    # Stopped before its results, with a checkpoint.
    (tmp_path / "run-1/results.json").unlink()
    capsys.readouterr()
    assert go_on(1)["accuracy"] == figures[1].figures["accuracy"]
    said = capsys.readouterr().err
    line = "recipe: learning rate 0.003, batch size 4, max seq length 24; as"
    assert f"{line} {tmp_path / 'run-1'} was begun" in said
    (tmp_path / "run-2/results.json").unlink()
    assert go_on(2)["seeds"] == figures[2].figures["seeds"]
    # What is given now must still be what it was.
    with pytest.raises(InputError, match=r"learning_rate was 0\.003, now 0\.01"):
        go_on(1, learning_rate=1e-2)
    # A recipe that came later is not for a run that had none; nor is the model looked at again.
    monkeypatch.setattr(recipes, "RECIPES", ())
    bare = finetune(output=str(tmp_path / "run-3"), **values | {"max_seq_length": 32})
    monkeypatch.setattr(recipes, "RECIPES", (OWN,))
    shutil.rmtree(values["model"])
    for seeds in (1, 2):
        assert go_on(seeds) == json.loads((tmp_path / f"run-{seeds}/results.json").read_text())
    given = values | {"max_seq_length": 32, "resume": True}
    assert finetune(output=str(tmp_path / "run-3"), **given).figures == bare.figures


def test_another_task_takes_from_a_run_s_file_what_was_typed(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", (OWN,))
    run = finetune(output=str(tmp_path / "run"), weight_decay=0.05, batch_size=2, **values)
    typed = {"config": str(run.folder / "run.json"), "task": "sst2"}
    other = settings_from(typed, FinetuneSettings)
    # The rate and the length are the recipe's of the first task, the batch the user's.
    assert (other.learning_rate, other.max_seq_length) == (None, 256)
    assert (other.weight_decay, other.batch_size) == (0.05, 2)  # type: ignore[attr-defined]
    monkeypatch.setattr(
        recipes, "RECIPES", (OWN._replace(intermediate_task="stsb", teacher="nb-svm"),)
    )
    content = json.loads((run.folder / "run.json").read_text())
    content["settings"] |= {"intermediate_task": "stsb", "intermediate_data": "a folder"}
    content["settings"] |= {"self_training": ["own.txt"], "teacher": "nb-svm"}
    (tmp_path / "file.json").write_text(json.dumps(content))
    typed["config"] = str(tmp_path / "file.json")
    other = settings_from(typed, FinetuneSettings)
    assert other.intermediate_data is None  # type: ignore[attr-defined]
    assert other.teacher == "nb-svm"  # type: ignore[attr-defined]
    typed["config"] = str(run.folder / "run.json")
    same = settings_from({"config": typed["config"]}, FinetuneSettings)
    assert (same.learning_rate, same.max_seq_length) == (3e-3, 24)


def test_a_run_goes_on_by_its_own_file(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has words for what it did without, where its settings had none."""
    run = finetune(output=str(tmp_path / "run"), max_seq_length=32, **values)
    line = ["finetune", "--config", str(run.folder / "run.json"), "--output", str(run.folder)]
    monkeypatch.setattr(recipes, "RECIPES", (OWN._replace(adversarial_epsilon=0.5),))
    assert main([*line, "--resume"]) == 0
    assert main([*line, "--resume", "--adversarial-epsilon", "0.5"]) == 2
