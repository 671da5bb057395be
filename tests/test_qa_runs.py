"""Whole runs of question answering: what is learnt, files, predict, evaluate, resume, bad input."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import squad_rules
from samples import NOUNS, one_thread, write_corpus  # noqa: F401

import minibert
from minibert.cli import main
from minibert.errors import InputError
from minibert.finetuning import finetune
from minibert.pretraining import pretrain
from minibert.settings import FinetuneSettings
from minibert.tasks.qa import QATask
from minibert.tasks.splits import parts_of

LOOP: dict[str, Any] = {
    **{"max_seq_length": 24, "batch_size": 16, "device": "cpu", "precision": "fp32"},
}
ANSWER = "castle valley"
OTHERS = [noun for noun in NOUNS if noun not in ANSWER]


def context_of(rng: random.Random, length: int, has_answer: bool = True) -> str:
    words = [rng.choice(OTHERS) for _ in range(length)]
    words[rng.randrange(length)] = ANSWER if has_answer else "bridge"
    return " ".join(words)


def squad(
    path: Path, count: int, seed: int = 0, length: int = 12, nulls: bool = False, articles: int = 1
) -> str:
    """Contexts with one answer each, every third without one where there are nulls; two questions
    on each."""
    rng = random.Random(seed)
    paragraphs: list[list[dict[str, Any]]] = [[] for _ in range(articles)]
    for i in range(count):
        has_answer = not (nulls and i % 3 == 0)
        context = context_of(rng, length, has_answer)
        answers = [{"text": ANSWER, "answer_start": context.index(ANSWER)}] if has_answer else []
        qas = [
            {"id": f"{seed}-{i}-{turn}", "question": f"What {rng.choice(OTHERS)}?"}
            | {"answers": answers, "is_impossible": not has_answer}
            for turn in range(2)
        ]
        paragraphs[i * articles // count].append({"context": context, "qas": qas})
    data = [{"title": str(i), "paragraphs": own} for i, own in enumerate(paragraphs)]
    path.write_text(json.dumps({"data": data}))
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qa")
    write_corpus(folder / "corpus.txt")
    where = {"output": str(folder / "start"), "cache_dir": str(folder / "cache")}
    corpus = [str(folder / "corpus.txt")]
    pretrain(corpus=corpus, preset="tiny", vocab_size=90, max_steps=2, **LOOP, **where)
    return folder


def tune(world: Path, output: str, **options: Any) -> Path:
    given = {**LOOP, "model": str(world / "start"), "output": str(world / output), **options}
    return finetune(**given).folder


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


FAST = {"learning_rate": 4e-3, "dropout": 0.0, "save_every": 20}


@pytest.fixture(scope="module")
def plain(world: Path) -> Path:
    """A finished run of version 1.1; the test contexts take several windows."""
    options = {
        "data": squad(world / "own.json", 60),
        "test_data": squad(world / "test.json", 8, 2, 45),
        "doc_stride": 6,
    }
    return tune(world, "plain", task="qa", max_steps=40, **FAST, **options)


@pytest.fixture(scope="module")
def with_nulls(world: Path) -> Path:
    """A finished run of version 2.0."""
    data = squad(world / "nulls.json", 90, nulls=True)
    test = squad(world / "nulls_test.json", 12, 3, 30, nulls=True)
    return tune(world, "nulls", task="qa", data=data, test_data=test, max_steps=60, **FAST)


def test_own_questions_are_learnt_and_scored(plain: Path) -> None:
    results = results_of(plain)
    assert results["exact_match"] > 80
    assert results["f1"] >= results["exact_match"]
    assert results["num_eval"] == 16  # questions, not windows
    assert "overlap_f1" in results
    assert not any(key.startswith("no_answer") for key in results)
    rows = rows_of(plain)
    golds, texts = [row["label"] for row in rows], [row["prediction"] for row in rows]
    wanted = squad_rules.figures(golds, texts, version_2=False)
    assert {key: results[key] for key in wanted} == pytest.approx(wanted)
    for row in rows:
        assert row["context"][row["start"] : row["end"]] == row["prediction"]
        assert row["n_best"][0]["text"] == row["prediction"]
        assert row["n_best"][0]["probability"] == row["score"]
        assert 1 < len(row["n_best"]) <= 5
    assert results["per_question_word"]["what"]["support"] == 16
    assert "what: 16 questions" in (plain / "errors.txt").read_text()


def test_no_context_is_on_both_sides_of_a_cut(world: Path) -> None:
    task = QATask(FinetuneSettings(task="qa", data=squad(world / "cut.json", 30)))
    parts = parts_of(task, task.read(task.find_data()), 0.2, None)
    assert len(parts.dev) == 12
    assert not {q.context for q in parts.train} & {q.context for q in parts.dev}


def test_a_threshold_is_chosen_on_dev_and_kept(with_nulls: Path) -> None:
    results = results_of(with_nulls)
    assert results["f1"] > 80
    assert results["f1"] > results["silence_f1"]
    assert {"has_answer_f1", "no_answer_f1"} <= results.keys()
    kept = json.loads((with_nulls / "qa.json").read_text())
    assert kept == {"no_answer": True, "null_threshold": results["null_threshold"]}
    rows = rows_of(with_nulls)
    for row in rows:
        is_silent = row["null_score"] > kept["null_threshold"]
        assert (row["prediction"] == "") == is_silent
        assert (row["start"] is None) == is_silent
    assert 0 < sum(row["prediction"] == "" for row in rows) < len(rows)
    golds, texts = [row["label"] for row in rows], [row["prediction"] for row in rows]
    wanted = squad_rules.figures(golds, texts, version_2=True)
    assert len(wanted) == 6
    assert {key: results[key] for key in wanted} == pytest.approx(wanted)
    # The figure that chose the weights is that of the threshold.
    model = minibert.load(with_nulls)
    assert model.task.threshold == kept["null_threshold"]
    task = model.task
    dev = parts_of(task, task.read(task.find_data()), 0.1, None).dev
    found = task.predict(model.model, dev, 32, model.runtime)
    assert task.score(dev, found)["f1"] == pytest.approx(results["dev_f1"])
    golds, nulls = [[a.text for a in q.answers] for q in dev], [p.null_score for p in found]
    best, last = squad_rules.best_stop(golds, [p.best() for p in found], nulls, "f1")
    assert results["dev_f1"] == pytest.approx(best)
    assert kept["null_threshold"] == pytest.approx(last)


@pytest.mark.parametrize("name", ["plain", "with_nulls"])
def test_evaluate_repeats_the_figures(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    results, again = results_of(folder), minibert.evaluate(folder)
    assert {k: results[k] for k in again} == again


def test_evaluate_takes_all_of_another_file(plain: Path, world: Path) -> None:
    other = squad(world / "other.json", 6, 7, articles=3)
    found = minibert.evaluate(plain, data=other, precision="int8")
    assert found["num_eval"] == 12
    assert found["f1"] > 50
    lost = json.loads(Path(other).read_text())
    lost["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "elsewhere"
    (world / "lost.json").write_text(json.dumps(lost))
    assert minibert.evaluate(plain, data=str(world / "lost.json"))["num_eval"] == 12


def test_what_is_only_scored_need_not_be_learnable(
    plain: Path, with_nulls: Path, world: Path
) -> None:
    folder = world / "test_alone"
    folder.mkdir()
    squad(folder / "test.json", 3, 5)
    found = minibert.evaluate(plain, data=str(folder))
    assert (found["num_eval"], found["scored"]) == (6, "test")
    content = json.loads((folder / "test.json").read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        for qa in paragraph["qas"]:
            qa["answers"][0]["text"] = "elsewhere"  # rephrased, not in the context
    (world / "rephrased.json").write_text(json.dumps(content))
    assert minibert.evaluate(plain, data=str(world / "rephrased.json"))["f1"] == 0
    for paragraph in content["data"][0]["paragraphs"]:
        for qa in paragraph["qas"]:
            qa["answers"] = []
    (world / "silent.json").write_text(json.dumps(content))
    found = minibert.evaluate(with_nulls, data=str(world / "silent.json"))
    assert found["num_eval"] == 6
    assert "no_answer_f1" in found
    with pytest.raises(InputError, match="silent.json: no question has an answer"):
        minibert.evaluate(plain, data=str(world / "silent.json"))


def test_json_lines_are_answered(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = "storm  river\n" + "bridge " * 60 + f"{ANSWER} garden"
    lines = [json.dumps({"question": "What?", "context": context}), '["What?", "storm"]']
    assert main(["predict", str(plain), *lines, '{"question": "", "context": " "}']) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["prediction"] == ANSWER
    assert context[found[0]["start"] : found[0]["end"]] == ANSWER
    assert found[0]["candidates"][0]["text"] == ANSWER
    assert found[1]["prediction"] == "storm"
    assert found[2] == {"question": "", "prediction": "", "score": 1.0} | {
        **{"start": None, "end": None, "candidates": []}
    }
    for line, wanted in (
        ("Who?", "'Who?' is not JSON; expected {\"question\""),
        ("[" * 100_000, "is not JSON; expected"),
        ("{}", 'input 1 is {}; expected {"question"'),
        ('{"question": "a", "context": 3}', "expected {"),
        ('["a"]', "expected {"),
        ("3", "input 1 is 3"),
    ):
        assert main(["predict", str(plain), line]) == 2
        assert wanted in capsys.readouterr().err
    model = minibert.load(plain)
    assert model.predict({"question": "What?", "context": context})[0].prediction == ANSWER
    assert [a.prediction for a in model.predict([("What?", ANSWER)])] == [ANSWER]


def test_a_question_without_an_answer_is_left_so(with_nulls: Path) -> None:
    model = minibert.load(with_nulls)
    rng = random.Random(5)
    contexts = [context_of(rng, 12), context_of(rng, 12, has_answer=False)]
    first, second = model.predict([{"question": "What?", "context": c} for c in contexts])
    assert first.prediction == ANSWER
    assert (second.prediction, second.start) == ("", None)
    assert second.candidates


def test_transformers_opens_the_folder(plain: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(plain).eval()
    ours = minibert.load(plain)
    features = ours.task.encode(ours.examples([("What?", f"storm {ANSWER}")]))
    batch = ours.task.collate(features[0])
    inputs = {k: batch[k] for k in ("input_ids", "token_type_ids", "attention_mask")}
    with torch.no_grad():
        expected, found = theirs(**inputs), ours.model(**inputs)
    for key in ("start_logits", "end_logits"):
        torch.testing.assert_close(
            getattr(found, key), getattr(expected, key), atol=1e-4, rtol=1e-4
        )


def test_a_resumed_run_has_the_results_of_one_that_was_not(with_nulls: Path, world: Path) -> None:
    """After the last step too, where the threshold is yet to be chosen."""
    given = json.loads((with_nulls / "run.json").read_text())["settings"]
    for removed in (0, 1):
        copy = world / f"resumed-{removed}"
        shutil.copytree(with_nulls, copy)
        for name in ("results.json", "predictions.jsonl", "qa.json"):
            (copy / name).unlink()
        steps = sorted((copy / "checkpoints").glob("step-*"))
        assert len(steps) > 1
        for path in steps[len(steps) - removed :]:
            shutil.rmtree(path)
        finetune(FinetuneSettings.from_dict(given | {"output": str(copy), "resume": "yes"}))
        assert rows_of(copy) == rows_of(with_nulls)
        first, second = (results_of(f) | {"seconds": 0} for f in (copy, with_nulls))
        assert first == second


def test_the_shared_options_work_here_too(world: Path) -> None:
    folder = tune(
        world,
        "options",
        task="squad2",
        **{"seeds": 2, "patience": 1, "freeze_layers": 1, "max_steps": 4, "limit": 10},
        **{"eval_every": 1, "select": "exact_match", "reinit_layers": 1},
    )
    results = results_of(folder)
    assert {"exact_match_sd", "f1_sd", "dev_exact_match"} <= results.keys()
    own = results["seeds"][results["best_seed"]]  # seeds 0 and 1
    assert minibert.load(folder).task.threshold == own["null_threshold"]
    rows, best = rows_of(folder), results["predictions_of_seed"]
    assert rows == rows_of(folder / f"seed-{best}")
    wanted = squad_rules.figures(
        [row["label"] for row in rows], [row["prediction"] for row in rows], version_2=True
    )
    assert own["f1"] == pytest.approx(wanted["f1"])


def test_a_folder_with_dev_alone_is_split_by_article(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world / "public"
    folder.mkdir()
    squad(folder / "dev-v1.1.json", 20, articles=10)
    run = tune(world, "by-article", task="squad", data=str(folder), max_steps=1)
    said = capsys.readouterr().err
    assert "dev-v1.1.json is split by article: 32 questions to train on, the last 8" in said
    assert "contexts occur in train" not in said
    results = results_of(run)
    assert (results["scored"], results["num_eval"]) == ("test", 8)
    assert minibert.evaluate(run)["num_eval"] == 8
    # Most of the same folder was learnt, also where it has been moved; another one is scored whole.
    shutil.copytree(folder, world / "moved")
    for place in (folder, world / "moved"):
        found = minibert.evaluate(run, data=str(place))
        assert (found["num_eval"], found["scored"]) == (8, "test")
    (world / "other-public").mkdir()
    squad(world / "other-public" / "dev-v1.1.json", 5, seed=9)
    found = minibert.evaluate(run, data=str(world / "other-public"))
    assert (found["num_eval"], found["scored"]) == (10, "dev")


def test_lost_answers_are_counted_and_not_trained_on(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(Path(squad(world / "some.json", 8)).read_text())
    for paragraph in data["data"][0]["paragraphs"][:7]:
        for row in paragraph["qas"]:
            row["answers"][0]["text"] = "elsewhere"
    (world / "some.json").write_text(json.dumps(data))
    tune(world, "lost", task="qa", data=str(world / "some.json"), max_steps=2)
    said = capsys.readouterr().err
    assert "14 answers are not in their context, not trained on (first: 0-0-0, 0-0-1" in said
    assert "nan" not in said


def test_the_bundled_samples_run_and_say_so(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(world, "sample", task="squad", max_steps=1)
    said = capsys.readouterr()
    assert "the bundled sample" in said.err
    assert "is the test split, dev is cut from train" in said.err
    assert "exact_match" in said.out


BAD: dict[str, tuple[Any, list[str], str]] = {
    "no json": ("{", [], "is not valid JSON"),
    "another format": ({"rows": []}, [], "has no list 'data'; expected the format of SQuAD"),
    "no questions": ({"data": []}, [], "holds no questions"),
    "weights": (None, ["--class-weights", "balanced"], "--class-weights has no use in qa"),
    "smoothing": (None, ["--label-smoothing", "0.1"], "--label-smoothing has no use in qa"),
    "columns": (None, ["--text-column", "a"], "--text-column has no use in qa"),
    "truncation": (None, ["--truncation", "tail"], "all of a long context is read"),
    "stride": (None, ["--doc-stride", "0"], "--doc-stride is 0, must be at least 1"),
    "select": (None, ["--select", "accuracy"], "'accuracy' is no figure of qa"),
    "test file": (None, ["--test-data", "nowhere.json"], "nowhere.json does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(
    world: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, flags, wanted = BAD[name]
    path = Path(squad(tmp_path / "a.json", 4))
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    line = ["finetune", "--task", "qa", "--data", path, "--model", world / "start"]
    line += ["--max-seq-length", 24, "--output", tmp_path / "run", *flags]
    assert main([str(part) for part in line]) == 2
    (said,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("minibert:")]
    assert wanted in said


def test_a_model_of_another_task_is_refused(world: Path) -> None:
    with pytest.raises(InputError, match="without a classifier"):
        minibert.load(world / "start")
