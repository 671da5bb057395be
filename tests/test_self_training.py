"""A model's own answers to texts without labels, learnt before the labels: `--self-training`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from samples import make_model_folder, one_thread, size_of, write_reviews  # noqa: F401
from test_resume import finish, start, stop_at

from minibert import recipes, self_training, series, suite
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError, MissingExtraError
from minibert.files import bundled_data
from minibert.finetuning import finetune
from minibert.flags import settings_from
from minibert.recipes import Recipe
from minibert.runs import RunResult, learning_seconds
from minibert.self_training import (
    chosen,
    least_sureties,
    pool_weights,
    pooled,
    unlabelled_texts,
)
from minibert.setting_search import search_settings
from minibert.settings import FinetuneSettings
from minibert.starts import with_recipe
from minibert.suite import evaluate_suite
from minibert.tasks import find_task
from minibert.tasks.classification import ClassificationTask

LOOP: dict[str, Any] = {
    **{"max_seq_length": 32, "batch_size": 4, "max_steps": 2, "device": "cpu", "precision": "fp32"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "start")


def numbered(first: int, count: int) -> list[str]:
    """Texts of which the even ones speak of rivers, the odd ones of storms."""
    words = "river bridge", "storm garden"
    return [f"{words[i % 2]} {i}" for i in range(first, first + count)]


def table(path: Path, texts: list[str]) -> str:
    rows = [f"{text},{'wet' if text.startswith('river') else 'wild'}" for text in texts]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Any]:
    unlabelled = tmp_path / "more.txt"
    known = ["River  Bridge 0", "storm garden 21", "river bridge 40"]  # of train, dev and test
    texts = [*numbered(100, 30), *known, "", "river bridge 100"]
    unlabelled.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {
        "task": "classification",
        "data": table(tmp_path / "train.csv", numbered(0, 16)),
        "dev_data": table(tmp_path / "dev.csv", numbered(20, 12)),
        "test_data": table(tmp_path / "test.csv", numbered(40, 12)),
        "self_training": [str(unlabelled)],
    }


def tune(model: Path, output: Path, **options: Any) -> RunResult:
    return finetune(**{**LOOP, "model": str(model), "output": str(output), **options})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the answers ----------------------------------------------------------------------------------


def made_scores(count: int, classes: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of two methods, the second of which knows more, and the classes."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, classes, count)
    own = np.eye(classes)[targets]
    return [k * own + draw.normal(size=(count, classes)) for k in (0.5, 1.5)], targets


def test_weights_of_two_classes_are_those_of_a_logistic_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    scores, targets = made_scores(5000, 2, 0)
    columns = np.stack([own[:, 1] - own[:, 0] for own in scores], axis=1)
    known = linear.LogisticRegression(C=1e9, fit_intercept=False).fit(columns, targets)
    found = pool_weights(scores, targets)
    assert found == pytest.approx(known.coef_[0], abs=0.01)
    shares = known.predict_proba(columns)
    assert pooled(scores, known.coef_[0]) == pytest.approx(shares, abs=1e-6)


def test_weights_are_where_the_loss_is_least_and_few_examples_change_little() -> None:
    pytest.importorskip("scipy")
    scores, targets = made_scores(300, 4, 1)

    def loss(found: np.ndarray) -> float:
        shares = pooled(scores, found)[np.arange(len(targets)), targets]
        return float(-np.log(shares).sum() + ((found - [1, 0]) ** 2).sum() / 2)

    best = pool_weights(scores, targets)
    for step in ([0.02, 0], [-0.02, 0], [0, 0.02], [0, -0.02]):
        assert loss(best + step) > loss(best)
    few = pool_weights([own[:1] for own in scores], targets[:1])
    assert np.abs(few - [1, 0]).max() < 1
    against = pool_weights([scores[0], -scores[1]], targets)
    assert against[1] == 0  # what errs counts for nothing, not for its opposite


def test_sure_answers_are_learnt_and_the_surer_half_of_each_class() -> None:
    first = np.array([0.95, 0.9, 0.85, 0.3, 0.4, 0.35, 0.45])
    shares = np.stack([first, 1 - first], axis=1)
    least = least_sureties(shares)
    assert chosen(shares, least).tolist() == [
        *(True, True, True),  # sure, all of them
        *(True, False, True, False),  # of 0.7, 0.6, 0.65, 0.55
    ]
    # Another's answers are held against the same: 0.66 is enough for the second class alone.
    assert chosen(np.array([[0.66, 0.34], [0.34, 0.66]]), least).tolist() == [False, True]
    alone = least_sureties(shares[:3])
    assert chosen(np.array([[0.01, 0.99]]), alone).tolist() == [False]  # a class that none has


def test_words_are_scored_in_the_order_of_the_classes() -> None:
    pytest.importorskip("sklearn")
    task = find_task("classification")(FinetuneSettings(task="classification", data="-"))
    train = [task.example_of(text, i) for i, text in enumerate(numbered(0, 20))]
    labels = ["b" if e.text.startswith("river") else "a" for e in train]
    train = [e._replace(label=label) for e, label in zip(train, labels, strict=True)]
    asked = [task.example_of("river bridge", 1), task.example_of("storm garden", 2)]
    for order in (("a", "b"), ("b", "a")):
        task.labels = order
        (found,) = task.word_scores(train, asked)
        assert [order[k] for k in found.argmax(axis=1)] == ["b", "a"]
    task.labels = ("a", "b", "c")
    with pytest.raises(InputError, match="NB-SVM has no example of c to train on"):
        task.word_scores(train, asked)


# --- what is learnt -------------------------------------------------------------------------------


def test_the_run_goes_on_from_the_student_of_its_teacher(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    run = tune(model, tmp_path / "run", **sets, learning_rate=1e-3)
    teacher, student = run.folder / "teacher", run.folder / "student"
    said, learnt = rows_of(run.folder / "teacher.jsonl"), rows_of(run.folder / "student.jsonl")
    assert len(said) == 30  # each once, none of the labelled data
    texts = [row["text"] for row in learnt]
    assert set(texts) <= set(numbered(100, 30)) and len(set(texts)) == len(texts)
    assert {row["label"] for row in learnt} == {"wet", "wild"}
    notes = run.figures["self_training"]
    assert (notes["texts"], notes["answers"]) == (30, len(learnt))
    assert notes["least_probability"] == min(row["probability"] for row in learnt)
    assert json.loads((teacher / "results.json").read_text())["num_train"] == 16
    assert json.loads((student / "results.json").read_text())["num_train"] == len(learnt)
    for folder in (teacher, student):
        assert json.loads((folder / "run.json").read_text())["resolved"]["start"] == str(model)
        assert json.loads((folder / "results.json").read_text())["scored"] == "dev"
    assert learning_seconds(run.figures) > run.figures["seconds"]
    # What the run began with is the student, its head as well.
    again = tune(student, tmp_path / "again", **{**sets, "self_training": None}, learning_rate=1e-3)
    ours, theirs = weights(run.folder), weights(again.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_answers_are_the_model_s_alone_where_nothing_counts_words(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scipy", "scipy.sparse", "scipy.optimize", "sklearn", "sklearn.svm"):
        monkeypatch.setitem(sys.modules, name, None)  # as where the extra is not installed
    run = tune(model, tmp_path / "run", **{**sets, "max_steps": 40}, learning_rate=3e-3)
    assert run.figures["self_training"]["weights"] == {"model": 1.0}
    for row in rows_of(run.folder / "student.jsonl"):
        number = numbered(100, 30).index(row["text"])
        said = json.loads((run.folder / "teacher.jsonl").read_text().splitlines()[number])
        assert row["probability"] == pytest.approx(max(said), abs=1e-6)


def test_nb_svm_alone_can_be_the_teacher(model: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    pytest.importorskip("sklearn")
    own = {**sets, "learning_rate": 1e-3}
    run = tune(model, tmp_path / "run", **own, teacher="nb-svm")
    assert not (run.folder / "teacher").exists() and not (run.folder / "teacher.jsonl").exists()
    notes = run.figures["self_training"]
    assert list(notes["weights"]) == ["nb_svm"] and "teacher_dev_accuracy" not in notes
    learnt = rows_of(run.folder / "student.jsonl")
    # 16 texts that say it by their words alone: no answer is wrong.
    assert all((row["label"] == "wet") == row["text"].startswith("river") for row in learnt)
    begun = json.loads((run.folder / "student/run.json").read_text())
    assert begun["resolved"]["start"] == str(model)
    again = tune(run.folder / "student", tmp_path / "again", **{**own, "self_training": None})
    ours, theirs = weights(run.folder), weights(again.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    resumed = tune(model, tmp_path / "run", **own, teacher="nb-svm", resume=True)
    assert resumed.figures == run.figures
    with pytest.raises(InputError, match="teacher was 'nb-svm', now 'both'"):
        tune(model, tmp_path / "run", **own, teacher="both", resume=True)


def test_nb_svm_s_answers_are_as_sure_as_dev_says(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    pytest.importorskip("sklearn")
    run = tune(model, tmp_path / "run", **sets, teacher="nb-svm")
    task = find_task("classification")(FinetuneSettings.from_dict(sets))
    splits = task.read(task.find_data())
    assert splits.dev is not None
    task.labels = ("wet", "wild")
    learnt = rows_of(run.folder / "student.jsonl")
    asked = [task.example_of(row["text"], 1) for row in learnt]
    of_dev, of_texts = task.word_scores(splits.train, splits.dev, asked)
    targets = np.array([task.labels.index(str(example.label)) for example in splits.dev])
    (weight,) = pool_weights([of_dev], targets)
    assert run.figures["self_training"]["weights"]["nb_svm"] == pytest.approx(weight)
    margins = of_texts[:, 1] - of_texts[:, 0]
    wild = 1 / (1 + np.exp(-weight * margins))
    assert [row["probability"] for row in learnt] == pytest.approx(np.maximum(wild, 1 - wild))


def test_the_model_alone_can_be_the_teacher(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    run = tune(model, tmp_path / "run", **sets, teacher="model")
    assert run.figures["self_training"]["weights"] == {"model": 1.0}
    said = [json.loads(line) for line in (run.folder / "teacher.jsonl").read_text().splitlines()]
    best = {text: max(row) for text, row in zip(numbered(100, 30), said, strict=True)}
    for row in rows_of(run.folder / "student.jsonl"):
        assert row["probability"] == pytest.approx(best[row["text"]], abs=1e-6)


def test_a_teacher_that_cannot_answer_is_told_before_anything_is_learnt(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="--teacher nb-svm has no use without --self-training"):
        tune(model, tmp_path / "run", **{**sets, "self_training": None, "teacher": "nb-svm"})
    own = {**sets, "teacher": "nb-svm", "adapt": ["auto"]}  # which would take its time first
    for name in ("sklearn", "sklearn.svm"):
        monkeypatch.setitem(sys.modules, name, None)  # as where the extra is not installed
    for seeds in (1, 2):
        with pytest.raises(MissingExtraError, match="--teacher nb-svm needs scikit-learn: pip"):
            tune(model, tmp_path / "run", **own, seeds=seeds)
    assert not (tmp_path / "run").exists()


def test_nb_svm_wants_an_example_of_each_class(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    pytest.importorskip("sklearn")
    folder = tmp_path / "ag_news_csv"
    folder.mkdir()
    for part, classes in (("train", 3), ("test", 4)):
        rows = [f'"{i % classes + 1}","river {i}","{i}"' for i in range(24)]
        (folder / f"{part}.csv").write_text("\n".join(rows) + "\n")
    own = {"task": "ag_news", "data": str(folder), "self_training": sets["self_training"]}
    with pytest.raises(InputError, match="--teacher nb-svm: Sci/Tech: no example to train on"):
        tune(model, tmp_path / "run", **own, teacher="nb-svm", adapt=["auto"])
    assert not (tmp_path / "run").exists()


def test_a_dev_part_without_what_is_answered_is_told_as_the_user_s(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    rows = [{"text": f"river {i}", "label": "abc"[i % 3]} for i in range(30)]
    for name, own in (("train", rows), ("dev", [r for r in rows if r["label"] == "c"])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)) + "\n")
    named = {
        f"{part}data": str(tmp_path / f"{name}.jsonl")
        for part, name in (("", "train"), ("dev_", "dev"), ("test_", "train"))
    }

    def two_classes(self: Any, train: Any, *asked: Any) -> list[np.ndarray]:
        of_dev, of_texts = asked
        return [np.eye(3)[[2] * len(of_dev)], np.eye(3)[np.arange(len(of_texts)) % 2]]

    monkeypatch.setattr(ClassificationTask, "word_scores", two_classes)
    with pytest.raises(InputError, match=r"answered with '[ab]', '[ab]' alone, .*--dev-data of"):
        tune(model, tmp_path / "run", **{**sets, **named}, teacher="nb-svm")
    assert not (tmp_path / "run").exists()


def test_nb_svm_s_answers_of_one_class_teach_nothing(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    before = tune(model, tmp_path / "run", **sets, teacher="model").figures

    def one_class(self: Any, train: Any, *asked: Any) -> list[np.ndarray]:
        return [np.tile([1.0, 0.0], (len(part), 1)) for part in asked]

    with monkeypatch.context() as patched:
        patched.setattr(ClassificationTask, "word_scores", one_class)
        with pytest.raises(InputError, match="--teacher nb-svm answers every text with 'wet'"):
            tune(model, tmp_path / "run", **sets, teacher="nb-svm", overwrite=True)
    again = tune(model, tmp_path / "run", **sets, teacher="model", resume=True)
    assert again.figures == before  # what was there came back


def test_a_finished_run_of_nb_svm_needs_no_library(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    run = tune(model, tmp_path / "run", **sets, teacher="nb-svm")
    for name in ("sklearn", "sklearn.svm"):
        monkeypatch.setitem(sys.modules, name, None)
    again = tune(model, tmp_path / "run", **sets, teacher="nb-svm", resume=True)
    assert {k: v for k, v in again.figures.items() if "baseline" not in k} == {
        k: v for k, v in run.figures.items() if "baseline" not in k
    }


def test_a_dry_run_tells_who_answers(
    model: Path, tmp_path: Path, sets: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    for teacher, who in (
        ("nb-svm", "NB-SVM answers"),
        ("both", "is learnt as below, then answers"),
    ):
        tune(model, tmp_path / "run", **sets, teacher=teacher, dry_run=True)
        assert f"{who} 30 texts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_classes_of_a_set_keep_their_head_whatever_their_order(model: Path, tmp_path: Path) -> None:
    """AG News has World, Sports, Business, Sci/Tech; a table's classes are sorted."""
    folder = tmp_path / "ag_news_csv"
    folder.mkdir()
    words = ["river bridge", "storm garden", "winter candle", "paper wall"]
    for part, first, count in (("train", 0, 24), ("test", 100, 8)):
        rows = [f'"{i % 4 + 1}","{words[i % 4]}","{i}"' for i in range(first, first + count)]
        (folder / f"{part}.csv").write_text("\n".join(rows) + "\n")
    more = tmp_path / "more.txt"
    more.write_text("".join(f"{words[i % 4]} {i}\n" for i in range(200, 240)))
    own = {"task": "ag_news", "data": str(folder), "max_steps": 60, "learning_rate": 3e-3}
    run = tune(model, tmp_path / "run", **own, self_training=[str(more)])
    student = json.loads((run.folder / "student/config.json").read_text())["id2label"]
    own_order = json.loads((run.folder / "config.json").read_text())["id2label"]
    assert sorted(student.values()) == sorted(own_order.values()) != list(own_order.values())
    task = find_task("ag_news")(FinetuneSettings(task="ag_news"))
    config = BertConfig.from_pretrained(run.folder)
    built = task.build(run.folder / "student", config, False)
    head = weights(run.folder / "student")["classifier.weight"]
    for number, name in own_order.items():
        theirs = next(int(k) for k, other in student.items() if other == name)
        assert torch.equal(built.get_parameter("classifier.weight")[int(number)], head[theirs])


@pytest.mark.parametrize("before", [{"random_weights": True}, {"adapt": ["auto"]}, "sst2"])
def test_it_follows_what_else_comes_before(
    model: Path, tmp_path: Path, sets: dict[str, Any], before: Any
) -> None:
    if before == "sst2":
        folder = tmp_path / "SST-2"
        folder.mkdir()
        for name, texts in (("train", numbered(300, 8)), ("dev", numbered(400, 4))):
            rows = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts))
            (folder / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}")
        before = {"intermediate_task": "sst2", "intermediate_data": str(folder)}
    weighed = {"class_weights": "wet=1,wild=2", "threshold": "best", "max_steps": 4}
    run = tune(model, tmp_path / "run", **{**sets, **before, **weighed})
    record = json.loads((run.folder / "student/run.json").read_text())
    start = {"adapt": "adapted", "intermediate_task": "intermediate"}
    folders = [run.folder / name for key, name in start.items() if key in before] or [model]
    assert record["resolved"]["start"] == str(folders[0])
    assert record["settings"]["random_weights"] == before.get("random_weights", False)
    dropouts = {
        BertConfig.from_pretrained(run.folder / name).hidden_dropout_prob
        for name in ("teacher", "student", "")
    }
    assert dropouts == {BertConfig.from_pretrained(model).hidden_dropout_prob}
    again = tune(model, run.folder, **{**sets, **before, **weighed}, resume=True)
    assert again.figures == run.figures


def test_markup_hides_no_text_of_the_labelled_data(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    more = Path(sets["self_training"][0])
    more.write_text(
        "river <br /><br />bridge 40\nstorm <b>garden</b> 41\nnew <i>text</i>\nnew text\n"
    )
    task = find_task("classification")(FinetuneSettings.from_dict(sets))
    source = task.find_data()
    texts, _ = unlabelled_texts(task, task.read(source), source)
    assert texts == ["new <i>text</i>"]


def test_the_set_has_texts_of_its_own_and_tables_have_columns(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    folder = tmp_path / "aclImdb"
    for part, texts in (("train", numbered(0, 12)), ("test", numbered(40, 6))):
        for number, text in enumerate(texts):
            place = folder / part / ("pos" if text.startswith("river") else "neg")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}_7.txt").write_text(text)
    (folder / "train/unsup").mkdir()
    for number, text in enumerate([*numbered(100, 8), "river bridge 40"]):
        (folder / f"train/unsup/{number}_0.txt").write_text(text)
    (tmp_path / "more.csv").write_text('id,text\n1,"winter, candle"\n2,river bridge 0\n')
    named = ["auto", str(tmp_path / "more.csv")]
    settings = FinetuneSettings(task="imdb", data=str(folder), self_training=named)
    task = find_task("imdb")(settings)
    source = task.find_data()
    texts, said = unlabelled_texts(task, task.read(source), source)
    assert sorted(texts) == sorted([*numbered(100, 8), "winter, candle"])
    assert said == "9 texts; 2 that the labelled data holds left out"
    run = tune(model, tmp_path / "run", task="imdb", data=str(folder), self_training=["auto"])
    assert run.figures["self_training"]["texts"] == 8


def test_every_seed_has_a_teacher_of_its_own(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    tune(model, tmp_path / "run", **sets, seeds=2, learning_rate=1e-3)
    assert not any((tmp_path / "run" / name).exists() for name in self_training.SELF_TRAINING)
    first, second = (weights(tmp_path / f"run/seed-{seed}/teacher") for seed in (0, 1))
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    moved = shutil.move(sets["self_training"][0], tmp_path / "moved.txt")
    again = {**sets, "self_training": [str(moved)], "seeds": 2, "learning_rate": 1e-3}
    tune(model, tmp_path / "run", **again, resume=True)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["settings"]["self_training"] == [str(moved)]


def test_a_dry_run_makes_nothing(
    model: Path, tmp_path: Path, sets: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tune(model, tmp_path / "run", **sets, dry_run=True)
    said = capsys.readouterr().err
    assert "that the labelled data holds left out; 1.9 times as many as the labels\n" in said
    assert "answers 30 texts, of which the surer are learnt" in said
    assert "the time and cost below leave this out" in said
    assert not (tmp_path / "run").exists()


# --- stopped, resumed, wrong ----------------------------------------------------------------------


def outcome(folder: Path) -> dict[str, bytes]:
    names = ["teacher/model.safetensors", "teacher.jsonl", "student.jsonl", "predictions.jsonl"]
    names += ["student/model.safetensors", "model.safetensors"]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def line(model: Path, tmp_path: Path, sets: dict[str, Any]) -> list[str]:
    return [
        *("finetune", "--task", "classification", "--data", sets["data"], "--model", str(model)),
        *("--dev-data", sets["dev_data"], "--test-data", sets["test_data"]),
        *("--self-training", *sets["self_training"], "--max-seq-length", "32"),
        *("--batch-size", "4", "--max-steps", "8", "--save-every", "2", "--log-every", "1"),
        *("--learning-rate", "1e-3", "--device", "cpu", "--precision", "fp32"),
    ]


def test_killed_anywhere_it_goes_on_to_the_bit(
    tmp_path: Path,
    line: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(self_training, "_SLICE", 8)
    parted, into = tmp_path / "parted", ["--output", str(tmp_path / "parted")]
    assert main([*line, "--output", str(tmp_path / "whole")]) == 0
    whole = outcome(tmp_path / "whole")
    for stage in ("teacher", "student"):
        more = ["--resume"] if stage == "student" else []
        process = start("finetune.py", *line[1:], *into, *more)
        stop_at(process, parted / stage, 3, signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        assert not (parted / "metrics.jsonl").exists()
    assert main([*line, *into]) == 2
    assert "--resume goes on" in capsys.readouterr().err
    # As if it had been killed while the teacher answered: two slices, and half a line.
    state = json.loads((parted / "self-training.json").read_text())
    (parted / "self-training.json").write_text(json.dumps({"texts": state["texts"]}))
    shutil.rmtree(parted / "student")
    lines = (parted / "teacher.jsonl").read_bytes().splitlines(keepends=True)
    (parted / "teacher.jsonl").write_bytes(b"".join(lines[:19]) + lines[19][:5])
    learnt = (parted / "teacher/model.safetensors").stat().st_mtime_ns
    found: list[int] = []
    known = self_training._kept

    def kept(file: Path) -> list[list[float]]:
        rows = known(file)
        found.append(len(rows))
        return rows

    monkeypatch.setattr(self_training, "_kept", kept)
    assert main([*line, *into, "--resume"]) == 0
    assert found == [16]
    assert (parted / "teacher/model.safetensors").stat().st_mtime_ns == learnt
    assert outcome(parted) == whole
    # What a power cut left, and what somebody has removed, is found anew.
    (parted / "results.json").unlink()
    lines = (parted / "teacher.jsonl").read_bytes().splitlines(keepends=True)
    lines[12] = b"\0" * 20 + b"\n"
    (parted / "teacher.jsonl").write_bytes(b"".join(lines))
    (parted / "student.jsonl").unlink()
    assert main([*line, *into, "--resume"]) == 0
    assert found == [16, 8]
    assert outcome(parted) == whole
    # Anew, all of it; and without it nothing of it is left.
    assert main([*line, *into, "--overwrite"]) == 0
    assert (parted / "teacher/model.safetensors").stat().st_mtime_ns != learnt
    assert outcome(parted) == whole
    where = line.index("--self-training")
    assert main([*line[:where], *line[where + 2 :], *into, "--overwrite"]) == 0
    assert not any((parted / name).exists() for name in self_training.SELF_TRAINING)


@pytest.mark.parametrize("is_finished", [True, False])
def test_other_texts_are_not_gone_on_with(
    model: Path, tmp_path: Path, sets: dict[str, Any], is_finished: bool
) -> None:
    tune(model, tmp_path / "run", **sets)
    if not is_finished:
        (tmp_path / "run/results.json").unlink()
    moved = tmp_path / "moved.txt"
    shutil.move(sets["self_training"][0], moved)
    tune(model, tmp_path / "run", **{**sets, "self_training": [str(moved)]}, resume=True)
    with moved.open("a") as handle:
        handle.write("winter candle\n")
    if not is_finished:
        (tmp_path / "run/results.json").unlink()
    with pytest.raises(InputError, match="the text of --self-training has changed"):
        tune(model, tmp_path / "run", **{**sets, "self_training": [str(moved)]}, resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"self_training": []}, "names nothing"),
        ({"self_training": ["nowhere.txt"]}, "nowhere.txt is not a file"),
        ({"self_training": ["auto"]}, "takes the set's texts without labels"),
        ({"max_minutes": 3.0, "max_steps": None}, "--max-minutes has no use with --self-training"),
        ({"text_pair_column": "label", "label_column": "text"}, "reads pairs"),
        ({"task": "tagging"}, "one class for each text, and tagging gives others"),
    ],
)
def test_what_it_is_not_for_is_refused(
    model: Path, tmp_path: Path, sets: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tune(model, tmp_path / "run", **{**sets, **changed})
    assert not (tmp_path / "run").exists()


def test_labelled_data_and_texts_that_have_several_labels_are_refused(
    model: Path, tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is the labelled data; name other texts"):
        tune(model, tmp_path / "run", **{**sets, "self_training": [sets["test_data"]]})
    same = tmp_path / "same.txt"
    same.write_text("river bridge 0\n")
    with pytest.raises(InputError, match="no text is left without those of the labelled data"):
        tune(model, tmp_path / "run", **{**sets, "self_training": [str(same)]})
    several = tmp_path / "several.jsonl"
    labels = [["wet"], ["wet", "wild"]]
    rows = [{"text": text, "label": labels[i % 2]} for i, text in enumerate(numbered(0, 12))]
    several.write_text("\n".join(map(json.dumps, rows)))
    own = {"data": str(several), "dev_data": None, "test_data": None}
    with pytest.raises(InputError, match="has texts with several labels"):
        tune(model, tmp_path / "run", **{**sets, **own}, dry_run=True)
    with pytest.raises(InputError, match="has texts with several labels"):
        tune(model, tmp_path / "run", **{**sets, **own})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process"):
        tune(model, tmp_path / "run", **sets)
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_comes_back_where_the_texts_cannot_be_used(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    tune(model, tmp_path / "run", **sets)
    before = outcome(tmp_path / "run")
    same = tmp_path / "same.txt"
    same.write_text("river bridge 0\n")
    with pytest.raises(InputError, match="no text is left"):
        tune(model, tmp_path / "run", **{**sets, "self_training": [str(same)]}, overwrite=True)
    assert outcome(tmp_path / "run") == before


def test_where_all_texts_have_one_answer_the_run_goes_on_from_the_teacher(
    model: Path,
    tmp_path: Path,
    sets: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def sure(own: Any, _: Any) -> np.ndarray:  # of the texts, and of no example of dev
        count = len(own[0])
        return np.tile([0.9, 0.1] if count == 30 else [0.6, 0.4], (count, 1))

    monkeypatch.setattr(self_training, "pooled", sure)
    monkeypatch.setattr(self_training, "pool_weights", lambda *_: np.ones(2))
    run = tune(model, tmp_path / "run", **sets)
    said = capsys.readouterr().err
    assert "no text is answered with 'wild'; so the run goes on from the teacher" in said
    assert "of dev 0% are as sure of their class\n" in said
    notes = run.figures["self_training"]
    assert (notes["answers"], notes["dev_accuracy"]) == (30, None)
    assert not (run.folder / "student").exists()
    again = tune(run.folder / "teacher", tmp_path / "again", **{**sets, "self_training": None})
    ours, theirs = weights(run.folder), weights(again.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert tune(model, tmp_path / "run", **sets, resume=True).figures == run.figures


def test_a_class_without_an_answer_begins_the_head_anew(
    model: Path,
    tmp_path: Path,
    sets: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("data", "dev_data", "test_data"):
        with Path(sets[name]).open("a") as handle:
            handle.write("paper wall,odd\npaper,odd\nwall,odd\n")

    def never_wet(own: Any, _: Any) -> np.ndarray:  # of odd, wet and wild, in this order
        return np.array([[[0.9, 0.0, 0.1], [0.1, 0.0, 0.9]][i % 2] for i in range(len(own[0]))])

    monkeypatch.setattr(self_training, "pooled", never_wet)
    run = tune(model, tmp_path / "run", **sets, class_weights="wet=3,odd=2")
    student = json.loads((run.folder / "student/run.json").read_text())["settings"]
    assert json.loads(student["class_weights"]) == {"odd": 2.0}
    said = capsys.readouterr().err
    assert "no text is answered with 'wet'; the head begins anew" in said
    assert {row["label"] for row in rows_of(run.folder / "student-dev.jsonl")} == {"odd", "wild"}
    assert run.figures["self_training"]["classes"] == 2
    assert "accuracy" in run.figures


def test_what_the_student_has_learnt_is_not_redrawn(
    model: Path, tmp_path: Path, sets: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(model, tmp_path / "run", **sets, reinit_layers=1)
    assert (run.folder / "student").is_dir()
    assert capsys.readouterr().err.count("redrawn: the top 1 layer(s)") == 2  # teacher and student


def test_texts_that_cannot_be_used_are_told_before_anything_is_learnt(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("review\nriver\n")
    with pytest.raises(InputError, match="^--self-training: .*wrong.csv, line 2 has no column"):
        tune(model, tmp_path / "run", **{**sets, "self_training": [str(wrong)], "adapt": ["auto"]})
    assert not (tmp_path / "run").exists()
    whole = tmp_path / "whole.txt"
    whole.write_text('[{"text": "river"},\n{"text": "bridge"}]\n')
    with pytest.raises(InputError, match="whole.txt is JSON; expected a text or an object a line"):
        tune(model, tmp_path / "run", **{**sets, "self_training": [str(whole)]})
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "river"}\n{"other": 5}\n')
    for seeds in (1, 2):
        with pytest.raises(InputError, match="^--self-training.*lines.jsonl"):
            tune(model, tmp_path / "run", **{**sets, "self_training": [str(lines)], "seeds": seeds})
    objects = tmp_path / "objects.txt"
    objects.write_text('{"text": "winter candle", "label": "wet"}\n')
    task = find_task("classification")(
        FinetuneSettings.from_dict({**sets, "self_training": [str(objects)]})
    )
    source = task.find_data()
    assert unlabelled_texts(task, task.read(source), source)[0] == ["winter candle"]


def test_neither_a_search_nor_a_suite_does_it(
    model: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    settings = FinetuneSettings.from_dict({**LOOP, **sets, "model": str(model), "output": "-"})
    with pytest.raises(InputError, match="--self-training would be done for every trial"):
        search_settings(settings, {"learning_rate": [1e-3]})
    alone = dataclasses.replace(settings, self_training=None, teacher="model")
    with pytest.raises(InputError, match="--self-training would be done for every trial"):
        search_settings(alone, {"learning_rate": [1e-3]})
    file, where = tmp_path / "own.json", str(tmp_path / "s")
    for own in ({"self_training": ["a.txt"]}, {"teacher": "model"}):
        file.write_text(json.dumps({"task": "sst2", **own}))
        with pytest.raises(InputError, match="self_training has teachers that stand beside the"):
            evaluate_suite(str(model), tasks=["sst2"], settings=[str(file)], output=where)


# --- recipes --------------------------------------------------------------------------------------


@pytest.fixture
def own_recipe(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Recipe(
        *("imdb", *size_of(model), False, ""),
        **{"epochs": 1.0, "min_steps": 1, "learning_rate": 1e-3},
        **{"self_training": ["auto"], "teacher": "nb-svm"},
    )
    monkeypatch.setattr(recipes, "RECIPES", (own,))


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """IMDb's layout, with 20 reviews that have no label."""
    folder = write_reviews(tmp_path / "aclImdb")
    (folder / "train/unsup").mkdir()
    for number in range(20):
        words = "storm winter castle" if number % 2 else "silver garden candle"
        (folder / f"train/unsup/{number}_0.txt").write_text(f"{words} {number}")
    return folder


def of_recipe(model: Path, reviews: Path, **options: Any) -> tuple[FinetuneSettings, str]:
    given = {"task": "imdb", "data": str(reviews), "model": str(model), **options}
    return with_recipe(FinetuneSettings.from_dict(given))


@pytest.mark.usefixtures("own_recipe")
@pytest.mark.parametrize(
    ("options", "found", "said"),
    [
        ({}, (["auto"], "nb-svm"), "texts come first, --self-training none does without"),
        ({"epochs": 3.0, "adapt": ["auto"]}, (["auto"], "nb-svm"), "texts come first"),
        ({"self_training": "none"}, (["none"], "both"), None),
        ({"self_training": ["auto"]}, (["auto"], "both"), None),
        ({"self_training": ["auto"], "teacher": "model"}, (["auto"], "model"), None),
        ({"max_steps": 5}, (["none"], "both"), "--self-training --teacher nb-svm does it first"),
        ({"max_steps": 5, "data": None}, (["none"], "both"), "no unsup in the bundled sample"),
        ({"max_minutes": 5.0}, (["none"], "both"), "--teacher nb-svm (with --epochs) does it"),
        ({"limit": 8}, (["none"], "both"), "as --limit leaves labels out"),
        ({"limit": 8, "teacher": "both"}, (["none"], "both"), "--teacher both does it first"),
        ({"limit": 8, "teacher": "model"}, (["none"], "model"), "--teacher model does it first"),
        ({"teacher": "model"}, (["auto"], "model"), "texts come first"),
        ({"random_weights": True}, (None, "both"), None),
        ({"data": None}, (["none"], "both"), "before it: no unsup in the bundled sample"),
    ],
)
def test_a_recipe_may_have_it(
    model: Path,
    reviews: Path,
    options: dict[str, Any],
    found: tuple[list[str] | None, str],
    said: str | None,
) -> None:
    pytest.importorskip("sklearn")
    settings, line = of_recipe(model, reviews, **options)
    assert (settings.self_training, settings.teacher) == found
    assert said in line if said else "self-training" not in line
    assert ("self training auto" in line) == (
        found[0] == ["auto"] and "self_training" not in options
    )
    again = FinetuneSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert with_recipe(again)[0] == settings  # also where these settings are read again
    assert not ("does it first" in line and "no unsup" in line)


@pytest.mark.usefixtures("own_recipe")
def test_a_recipe_does_without_where_it_cannot_be_done(
    model: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")

    def lack() -> str:
        settings, line = of_recipe(model, reviews)
        assert (settings.self_training, settings.teacher) == (["none"], "both")
        return line.split("without self-training before it: ")[1]

    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        assert lack() == "it runs in one process"
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "sklearn", None)
        assert lack().startswith("--teacher nb-svm needs scikit-learn: pip")
    # A whole archive of their own beside the labelled ones will do; half of one will not.
    with tarfile.open(reviews.parent / "aclImdb_unsup.tar.xz", "w:xz") as archive:
        archive.add(reviews / "train/unsup", "aclImdb/train/unsup")
    shutil.rmtree(reviews / "train/unsup")
    assert of_recipe(model, reviews)[0].self_training == ["auto"]
    (reviews.parent / "aclImdb_unsup.tar.xz.part").write_bytes(b"\xfd7zXZ\0 cut off")
    assert of_recipe(model, reviews)[0].self_training == ["auto"]
    (reviews.parent / "aclImdb_unsup.tar.xz.part").replace(reviews.parent / "aclImdb_unsup.tar.xz")
    assert lack().startswith(f"{reviews.parent / 'aclImdb_unsup.tar.xz'} is neither a folder nor")
    (reviews.parent / "aclImdb_unsup.tar.xz").unlink()
    assert lack() == f"no unsup in {reviews}"


@pytest.mark.usefixtures("own_recipe")
def test_a_run_by_the_recipe_learns_the_answers_and_goes_on_so(
    model: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    given: dict[str, Any] = {"task": "imdb", "data": str(reviews), "max_steps": None}
    run = tune(model, tmp_path / "run", **given)
    said = capsys.readouterr().err
    assert "self training auto, teacher nb-svm, min steps 1; imdb from pretrained" in said
    assert run.figures["self_training"]["texts"] == 20
    record = json.loads((run.folder / "run.json").read_text())["settings"]
    assert (record["self_training"], record["teacher"]) == (["auto"], "nb-svm")
    student = json.loads((run.folder / "student/run.json").read_text())["settings"]
    assert student["self_training"] == ["none"]
    assert tune(model, tmp_path / "run", **given, resume=True).figures == run.figures
    with pytest.raises(InputError, match="self_training was .'auto'., now .'none'."):
        tune(model, tmp_path / "run", **given, self_training="none", resume=True)
    file = ["--config", str(run.folder / "run.json"), "--output", str(tmp_path / "plain")]
    assert main(["finetune", *file, "--self-training", "none"]) == 0  # teacher falls away
    plain = json.loads((tmp_path / "plain/results.json").read_text())
    assert "self_training" not in plain
    # One that was begun before the recipe had it goes on without.
    content = json.loads((tmp_path / "plain/run.json").read_text())
    content["settings"]["self_training"] = None
    (tmp_path / "plain/run.json").write_text(json.dumps(content))
    (tmp_path / "plain/results.json").unlink()
    again = tune(model, tmp_path / "plain", **given, resume=True)
    assert "self_training" not in again.figures


@pytest.mark.usefixtures("own_recipe")
def test_neither_a_task_before_nor_a_search_nor_a_suite_takes_it_from_a_recipe(
    model: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    shutil.copytree(bundled_data() / "sst2", tmp_path / "sst2")
    given: dict[str, Any] = {"task": "sst2", "intermediate_task": "imdb", "data": tmp_path / "sst2"}
    run = tune(model, tmp_path / "run", **given, intermediate_data=str(reviews))
    assert not (run.folder / "intermediate/student").exists()
    settings = FinetuneSettings.from_dict(
        {**LOOP, "task": "imdb", "data": str(reviews), "model": str(model), "max_steps": None}
        | {"output": str(tmp_path / "search")}
    )
    capsys.readouterr()
    search_settings(settings, {"learning_rate": [1e-3]})
    assert "self-training: left out of the trials and of best.json" in capsys.readouterr().err
    assert not list((tmp_path / "search").rglob("student"))
    other = dataclasses.replace(settings, limit=8, output=str(tmp_path / "few"))
    search_settings(other, {"learning_rate": [1e-3]})
    said = capsys.readouterr().err
    adds = "--self-training --teacher nb-svm beside --config adds it"
    assert f"left out of the trials and of best.json; {adds}\n" in said
    assert "does it first" not in said  # which a search does not take
    sample = dataclasses.replace(settings, data=None, output=str(tmp_path / "sample"), max_steps=1)
    search_settings(sample, {"learning_rate": [1e-3]})
    assert "self-training: left out" not in capsys.readouterr().err
    best = tmp_path / "search/best.json"
    assert json.loads(best.read_text())["self_training"] == ["none"]
    jobs: list[series.Job] = []
    monkeypatch.setattr(suite, "carry_out_all", lambda given, *more: jobs.extend(given))
    where = {"output": str(tmp_path / "suite"), "tasks": "imdb", "data": str(tmp_path)}
    made = evaluate_suite(str(model), settings=str(best), seeds=1, device="cpu", **where)
    made_by_recipe = evaluate_suite(str(model), seeds=1, device="cpu", overwrite=True, **where)
    quick = evaluate_suite(str(model), seeds=1, device="cpu", limit=8, overwrite=True, **where)
    assert [job.settings.texts_to_answer for job in jobs] == [None] * 6
    for table, origin in ((made, "a settings file"), (made_by_recipe, "by the labels alone")):
        assert f"({origin}" in table["tasks"]["imdb"]["model"]["settings"]
    said = quick["tasks"]["imdb"]["model"]["settings"]
    assert "(by the labels alone, without self-training; recipe: " in said
    assert "--self-training" not in said  # which the suite does not take


def test_the_word_for_none_stands_alone() -> None:
    assert FinetuneSettings(task="imdb", self_training=["none"]).texts_to_answer is None
    with pytest.raises(InputError, match="'none' does without, so it stands alone"):
        FinetuneSettings(task="imdb", self_training=["none", "more.txt"])
    unused = FinetuneSettings(task="imdb", self_training=["none"], teacher="model")
    with pytest.raises(InputError, match="--teacher model has no use without --self-training"):
        finetune(unused)


LEARNT: dict[str, Any] = {"self_training": ["auto"], "teacher": "model"}


@pytest.mark.usefixtures("own_recipe")
@pytest.mark.parametrize(
    ("is_run", "file", "typed", "found"),
    [
        (False, {}, {}, (["auto"], "nb-svm")),
        (False, {"teacher": "model"}, {}, (["auto"], "model")),
        (False, {"self_training": "none"}, {}, (["none"], "both")),
        (False, LEARNT, {"max_steps": 5}, (["auto"], "model")),
        (True, LEARNT, {}, (["auto"], "model")),
        (True, LEARNT, {"max_steps": 5}, (["none"], "both")),
        (True, LEARNT, {"limit": 8}, (["none"], "both")),
        (True, LEARNT, {"max_minutes": 5.0}, (["none"], "both")),
        (True, LEARNT, {"task": "sst2"}, (None, "both")),
        # What a run that learnt no answers says of a teacher says nothing.
        (True, {"teacher": "both"}, {}, (["none"], "both")),
        (True, {"teacher": "both"}, {"self_training": ["auto"]}, (["auto"], "both")),
        (True, {"task": "sst2", "teacher": "both"}, {"task": "imdb"}, (["auto"], "nb-svm")),
    ],
)
def test_a_file_s_texts_are_those_of_its_set(
    model: Path,
    reviews: Path,
    tmp_path: Path,
    is_run: bool,
    file: dict[str, Any],
    typed: dict[str, Any],
    found: tuple[list[str] | None, str],
) -> None:
    pytest.importorskip("sklearn")
    content = {"task": "imdb", **file}
    whole = {"command": "finetune", "settings": content} if is_run else content
    (tmp_path / "file.json").write_text(json.dumps(whole))
    more = {"data": str(reviews), "model": str(model)}
    given = settings_from(
        {"config": str(tmp_path / "file.json"), **typed, **more}, FinetuneSettings
    )
    assert isinstance(given, FinetuneSettings)
    settings = with_recipe(given)[0]
    assert (settings.self_training, settings.teacher) == found


def test_an_archive_that_is_cut_off_is_named_with_what_does_without(
    reviews: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for number in range(60):  # which do not pack into one block
        text = draw.bytes(20_000).hex()
        (reviews / f"train/unsup/{number}_0.txt").write_text(text)
    with tarfile.open(tmp_path / "aclImdb_unsup.tar.xz", "w:xz") as archive:
        archive.add(reviews / "train/unsup", "aclImdb/train/unsup")
    shutil.rmtree(reviews / "train/unsup")
    whole = (tmp_path / "aclImdb_unsup.tar.xz").read_bytes()
    (tmp_path / "aclImdb_unsup.tar.xz").write_bytes(whole[: len(whole) // 2])
    settings = FinetuneSettings(task="imdb", data=str(reviews), self_training=["auto"])
    task = find_task("imdb")(settings)
    source = task.find_data()
    assert task.has_unlabelled(source)  # as its first tell
    with pytest.raises(InputError, match="^--self-training 'auto': .*--self-training none does"):
        unlabelled_texts(task, task.read(source), source)
