"""Pairs asked in both orders: inputs, answers that hang on no order, what folders keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import NOUNS, make_model_folder, one_thread  # noqa: F401

import minibert
from minibert.errors import InputError
from minibert.exporting import export
from minibert.finetuning import finetune
from minibert.run_folder import read_metrics
from minibert.settings import FinetuneSettings
from minibert.starts import with_recipe
from minibert.tasks import find_task
from minibert.tasks.texts import encode
from minibert.tokenizer import WordPiece

COLUMNS = {"text_column": "first", "text_pair_column": "second", "label_column": "grade"}
FAMILIES = ["similarity", "classification"]
FIGURES = {"similarity": "spearman", "classification": "accuracy"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a table of pairs, whose label is how many of three words both texts have."""
    folder = tmp_path_factory.mktemp("pairs")
    make_model_folder(folder / "start")
    rng = np.random.default_rng(0)
    rows = ["first,second,grade"]
    for _ in range(60):
        words, shared = rng.permutation(NOUNS).tolist(), int(rng.integers(0, 3))
        rows.append(f"{' '.join(words[:3])},{' '.join(words[3 - shared : 8 - shared])},{shared}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    for task in FAMILIES:
        for order in ("both", "given"):
            tune(folder, f"{task}-{order}", task=task, pair_order=order)
    return folder


def tune(world: Path, output: str, **options: Any) -> Path:
    given: dict[str, Any] = {
        **{"data": str(world / "pairs.csv"), "model": str(world / "start"), **COLUMNS},
        **{"max_seq_length": 24, "batch_size": 9, "max_steps": 25, "learning_rate": 1e-3},
        "log_every": 5,
        **{"device": "cpu", "precision": "fp32", "save_every": 10, "dev_fraction": 0.2},
    }
    return finetune(**{**given, "output": str(world / output), **options}).folder


def answers(folder: Path, turned: bool = False) -> np.ndarray:
    pairs = [("girl sees a dog", "dog"), ("tree", "cat tree"), ("river", "river road house")]
    found = minibert.load(folder).predict([p[::-1] for p in pairs] if turned else pairs)
    return np.array([list(getattr(p, "probabilities", {"": p.score}).values()) for p in found])


def test_a_pair_is_followed_by_itself_the_other_way_round(world: Path) -> None:
    tokenizer = WordPiece.from_pretrained(world / "start")
    (a, b, c) = (tokenizer.ids([noun])[0][0] for noun in NOUNS[:3])
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    texts = [(NOUNS[0], f"{NOUNS[1]} {NOUNS[2]}")]
    ((one, other),) = encode(texts, tokenizer, 24, "head", both_orders=True)
    assert one["input_ids"].tolist() == [cls, a, sep, b, c, sep]
    assert one["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1]
    assert other["input_ids"].tolist() == [cls, b, c, sep, a, sep]
    assert other["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    ((given,),) = encode(texts, tokenizer, 24, "head")
    assert given["input_ids"].tolist() == one["input_ids"].tolist()
    (alone,) = encode([(NOUNS[0], None)], tokenizer, 24, "head", both_orders=True)
    assert [w["input_ids"].tolist() for w in alone] == [[cls, a, sep]]


def test_each_window_of_a_pair_is_turned(world: Path) -> None:
    tokenizer = WordPiece.from_pretrained(world / "start")
    long, short = " ".join(NOUNS[:8]), NOUNS[0]
    (windows,) = encode([(long, short)], tokenizer, 9, "windows", both_orders=True)
    (given,) = encode([(long, short)], tokenizer, 9, "windows")
    (other,) = encode([(short, long)], tokenizer, 9, "windows")
    assert len(given) == 2
    assert [w["input_ids"].tolist() for w in windows] == [
        w["input_ids"].tolist() for w in (*given, *other)
    ]


@pytest.mark.parametrize("truncation", ["head", "head+tail", "windows"])
@pytest.mark.parametrize("room", [12, 13])
def test_what_is_kept_of_texts_that_are_alike_in_length_hangs_on_no_order(
    world: Path, truncation: str, room: int
) -> None:
    def read(both_orders: bool, *pair: str) -> list[list[int]]:
        tokenizer = WordPiece.from_pretrained(world / "start")
        (windows,) = encode([(pair[0], pair[1])], tokenizer, room, truncation, both_orders)
        return sorted(w["input_ids"].tolist() for w in windows)

    one, other = " ".join(NOUNS[:6]), " ".join(NOUNS[2:8])
    assert read(True, one, other) == read(True, other, one)
    as_before, turned = read(False, one, other), read(False, other, one)
    assert len(as_before) + len(turned) == len(read(True, one, other))


@pytest.mark.parametrize("task", FAMILIES)
def test_the_order_of_two_texts_says_nothing(world: Path, task: str) -> None:
    both, given = world / f"{task}-both", world / f"{task}-given"
    np.testing.assert_allclose(answers(both), answers(both, turned=True), atol=2e-6)
    assert np.abs(answers(given) - answers(given, turned=True)).max() > 1e-3


@pytest.mark.parametrize("task", FAMILIES)
def test_an_answer_is_the_mean_of_both(world: Path, tmp_path: Path, task: str) -> None:
    folder = tmp_path / "one-way"
    shutil.copytree(world / f"{task}-both", folder)
    kept = json.loads((folder / f"{task}.json").read_text())
    (folder / f"{task}.json").write_text(json.dumps({**kept, "both_orders": False}))
    mean = (answers(folder) + answers(folder, turned=True)) / 2
    np.testing.assert_allclose(answers(world / f"{task}-both"), mean, atol=2e-6)


@pytest.mark.parametrize("task", FAMILIES)
def test_pairs_are_learnt_as_they_stand(world: Path, task: str) -> None:
    losses, on_dev = {}, {}
    for order in ("both", "given"):
        rows = read_metrics(world / f"{task}-{order}")
        losses[order] = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        on_dev[order] = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert len(losses["both"]) > 1
    assert losses["both"] == losses["given"]
    assert on_dev["both"] != on_dev["given"]  # what chooses the weights is asked both ways


@pytest.mark.parametrize("task", FAMILIES)
def test_a_folder_without_its_run_still_reads_both(world: Path, tmp_path: Path, task: str) -> None:
    export(world / f"{task}-both", tmp_path / "model", dtype="fp32", log=False)
    assert not (tmp_path / "model" / "run.json").exists()
    np.testing.assert_allclose(answers(tmp_path / "model"), answers(world / f"{task}-both"), atol=0)


@pytest.mark.parametrize("task", FAMILIES)
def test_evaluate_repeats_the_figures_by_what_the_folder_keeps(
    world: Path, tmp_path: Path, task: str
) -> None:
    data = str(world / "pairs.csv")
    folder = tune(world, f"{task}-scored", task=task, pair_order="both", test_data=data)
    scored, figure = json.loads((folder / "results.json").read_text()), FIGURES[task]
    # Sums of floats may hang on where the memory lies, by 1e-8; one order alone is 1e-4 off.
    wanted = pytest.approx([scored[figure], scored["loss"]], rel=1e-5)
    assert [minibert.evaluate(folder)[name] for name in (figure, "loss")] == wanted
    shutil.copytree(folder, tmp_path / "bare")
    run = json.loads((folder / "run.json").read_text())
    run["settings"]["pair_order"] = None
    (tmp_path / "bare" / "run.json").write_text(json.dumps(run))
    again = minibert.evaluate(tmp_path / "bare", data=data)
    assert [again[figure], again["loss"]] == wanted


@pytest.mark.parametrize("task", FAMILIES)
def test_a_run_goes_on_in_the_order_that_it_began_with(
    world: Path, tmp_path: Path, task: str
) -> None:
    def again(folder: Path, **options: Any) -> Path:
        return tune(world, str(folder), task=task, resume=True, **options)

    whole, cut = world / f"{task}-both", tmp_path / "cut"
    shutil.copytree(whole, cut)
    (cut / "results.json").unlink()
    shutil.rmtree(sorted((cut / "checkpoints").glob("step-*"))[-1])
    again(cut)  # with nothing said, as where a recipe had filled it in
    np.testing.assert_array_equal(answers(cut), answers(whole))
    with pytest.raises(InputError, match="pair_order was 'both', now 'given'"):
        again(whole, pair_order="given")
    with pytest.raises(InputError, match="pair_order was 'given', now 'both'"):
        again(world / f"{task}-given", pair_order="both")


def test_a_recipe_asks_pairs_both_ways_and_single_texts_have_no_order() -> None:
    def filled_in(**values: Any) -> str | None:
        return with_recipe(FinetuneSettings(model="minibert-mini-en", **values))[0].pair_order

    table = {"data": "own.csv", "label_column": "grade"}
    for task in ("stsb", "mrpc"):
        assert filled_in(task=task) == filled_in(task=task, random_weights=True) == "both"
        assert filled_in(task=task, pair_order="given") == "given"
        assert filled_in(task=task, text_pair_column="second", **table) == "both"
    assert filled_in(task="stsb", **table) == "both"  # its second column has a default name
    assert filled_in(task="mrpc", **table) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "imdb"}, "goes with pairs of texts, and imdb has single ones$"),
        ({"task": "classification"}, "has single ones; name --text-pair-column"),
        ({"task": "conll2003"}, "--pair-order has no use in conll2003"),
        ({"task": "squad"}, "--pair-order has no use in squad"),
    ],
    ids=lambda given: given if isinstance(given, str) else given["task"],
)
def test_it_is_refused_where_there_are_no_pairs(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_task(values["task"])(FinetuneSettings(**values, pair_order="both"))
    find_task(values["task"])(FinetuneSettings(**values, pair_order="given"))  # no use, no harm


def test_a_bi_encoder_has_no_order() -> None:
    """Refused before data is read, so that a search of both orders begins none."""
    settings = FinetuneSettings(task="similarity", mode="bi-encoder", pair_order="both")
    with pytest.raises(InputError, match=r"--pair-order both is for --mode cross-encoder"):
        find_task("similarity")(settings)
