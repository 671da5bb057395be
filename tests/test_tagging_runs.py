"""Whole runs of tagging: what is learnt, files, predict, evaluate, resume, bad input."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import NOUNS, one_thread, write_corpus  # noqa: F401

import minibert
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.finetuning import finetune
from minibert.pretraining import pretrain
from minibert.settings import FinetuneSettings
from minibert.tasks.tagging import Entity, TaggingTask
from minibert.token_heads import BertForTokenClassification
from minibert.train import Term

LOOP: dict[str, Any] = {
    **{"max_seq_length": 16, "batch_size": 8, "device": "cpu", "precision": "fp32"},
}
PLACES, NAME = ("storm", "river"), ("castle", "valley")
OTHERS = [*(noun for noun in NOUNS if noun not in NAME), ".", ","]


def tagged(count: int, seed: int = 0, length: int = 7) -> list[tuple[list[str], list[str]]]:
    """Sentences of `length` words with two places, a name of two words, and others."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words: list[str] = []
        while len(words) < length:
            named = rng.random() < 0.2 and len(words) < length - 1
            words += NAME if named else [rng.choice(OTHERS)]
        kinds = {**dict.fromkeys(PLACES, "B-LOC"), NAME[0]: "B-PER", NAME[1]: "I-PER"}
        rows.append((words, [kinds.get(word, "O") for word in words]))
    return rows


def conll(path: Path, rows: list[tuple[list[str], list[str]]]) -> str:
    parts = ("".join(f"{w} x {t}\n" for w, t in zip(*row, strict=True)) for row in rows)
    path.write_text("-DOCSTART- x O\n\n" + "\n".join(parts))
    return str(path)


def jsonl(path: Path, rows: list[tuple[list[str], list[str]]], words: str, tags: str) -> str:
    path.write_text("".join(json.dumps({words: w, tags: t}) + "\n" for w, t in rows))
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagging")
    write_corpus(folder / "corpus.txt")
    where = {"output": str(folder / "start"), "cache_dir": str(folder / "cache")}
    corpus = [str(folder / "corpus.txt")]
    pretrain(corpus=corpus, preset="tiny", vocab_size=60, max_steps=2, **LOOP, **where)
    return folder


def tune(world: Path, output: str, **options: Any) -> Path:
    given = {**LOOP, "model": str(world / "start"), "output": str(world / output), **options}
    return finetune(**given).folder


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def learnt(world: Path) -> Path:
    """A finished run on columns with sentences of any length, several windows among them."""
    long = tagged(12, 1, 60)
    options = {
        "data": conll(world / "own.conll", tagged(120) + long),
        "test_data": conll(world / "test.conll", tagged(20, 2) + tagged(3, 3, 60)),
    }
    return tune(
        *(world, "learnt"),
        **{"task": "tagging", "max_steps": 60, "save_every": 30, "learning_rate": 4e-3},
        **{"dropout": 0.0, "batch_size": 16},
        **options,
    )


def test_columns_of_your_own_are_learnt_and_scored(learnt: Path) -> None:
    results = results_of(learnt)
    assert results["f1"] > 0.9
    assert results["lexicon_f1"] == 1  # the same names occur in train
    assert results["num_eval"] == 23  # sentences, not windows
    assert results["scored"] == "test"
    assert 0.9 < results["dev_f1"] <= 1
    assert set(results["per_type"]) == {"LOC", "PER"}
    rows = rows_of(learnt)
    assert [len(row["prediction"]) for row in rows] == [7] * 20 + [60] * 3
    config = json.loads((learnt / "config.json").read_text())
    assert list(config["id2label"].values()) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    for row in rows:
        for entity in row["entities"]:
            first, end = entity["first_token"], entity["end_token"]
            assert entity["text"] == " ".join(row["tokens"][first:end])
            text = " ".join(row["tokens"])
            assert entity["text"] == text[entity["start"] : entity["end"]]
            assert row["prediction"][first] == f"B-{entity['type']}"
            assert 0 < entity["score"] <= 1


def test_types_that_the_model_lacks_are_counted(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "other.conll"
    data.write_text("Storm B-PER\n\nRiver B-RIVER\nBridge B-RIVER\n")
    assert minibert.evaluate(learnt, data=str(data))["num_eval"] == 2
    assert "counted as missed: 2 of RIVER" in capsys.readouterr().err


def test_the_figures_are_those_of_seqeval_on_the_saved_predictions(learnt: Path) -> None:
    pytest.importorskip("seqeval")
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    rows, results = rows_of(learnt), results_of(learnt)
    both = [row["labels"] for row in rows], [row["prediction"] for row in rows]
    for key, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert results[key] == pytest.approx(score(*both, mode="strict", scheme=IOB2)), key
    assert results["accuracy"] == pytest.approx(accuracy_score(*both))
    assert results["scorer"].startswith("seqeval ")


def test_evaluate_repeats_the_figures_and_takes_other_data(learnt: Path, world: Path) -> None:
    results = results_of(learnt)
    again = minibert.evaluate(learnt)
    assert {k: again[k] for k in ("f1", "accuracy", "per_type", "num_eval")} == {
        k: results[k] for k in ("f1", "accuracy", "per_type", "num_eval")
    }
    other = jsonl(world / "other.jsonl", tagged(5, 9), "tokens", "tags")
    assert minibert.evaluate(learnt, data=other)["num_eval"] == 5
    assert minibert.evaluate(learnt, data=other, precision="int8")["f1"] > 0.5
    strange = [(["storm"], ["B-CITY"])]
    with pytest.raises(InputError, match="the model has the types LOC, PER, the data CITY"):
        minibert.evaluate(learnt, data=conll(world / "strange.conll", strange))


def test_a_file_that_is_scored_is_told_as_test(
    learnt: Path, world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = minibert.evaluate(
        learnt, data=str(world / "test.conll"), predictions=tmp_path / "found.jsonl"
    )
    assert found["scored"] == "test"
    assert "found: 23 test sentences with" in capsys.readouterr().err
    assert (tmp_path / "found.jsonl").read_text() == (learnt / "predictions.jsonl").read_text()


def test_a_file_of_the_folder_that_was_learnt_from_is_told(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = world / "sets"
    sets.mkdir()
    parts = {"train": tagged(12), "valid": tagged(5, 1), "test": tagged(4, 2)}
    for name, rows in parts.items():
        conll(sets / f"{name}.txt", rows)
    folder = tune(world, "folder", task="conll2003", data=str(sets), max_steps=1)
    conll(sets / "mixed.txt", parts["train"][:2] + tagged(3, 5))
    conll(world / "elsewhere.txt", parts["train"])
    said = {"train": "12 of the 12", "valid": "5 of the 5", "mixed": "2 of the 5"}
    for name, count in said.items():
        capsys.readouterr()
        minibert.evaluate(folder, data=sets / f"{name}.txt")
        wanted = f"learnt: {count} examples have a text that {folder} was trained on or chosen by"
        assert wanted in capsys.readouterr().err
    minibert.evaluate(folder, data=sets / "test.txt")
    minibert.evaluate(folder, data=sets)
    assert "learnt:" not in capsys.readouterr().err


def test_one_column_is_no_word_and_its_tag(tmp_path: Path) -> None:
    data = conll(tmp_path / "a.conll", tagged(4))
    for columns in ({"text_column": "2"}, {"label_column": "0"}, {"text_column": "-1"}):
        task = TaggingTask(FinetuneSettings(task="tagging", data=data, **columns))
        with pytest.raises(InputError, match="a.conll: columns .* are the same of 3"):
            task.read(task.find_data())


@pytest.mark.parametrize("family", ["tagging", "qa"])
def test_an_id_of_half_a_character_does_not_lose_the_run(world: Path, family: str) -> None:
    made = enumerate(tagged(8))
    rows = [{"tokens": words, "tags": tags, "id": f"\ud800{i}"} for i, (words, tags) in made]
    data = world / "half.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if family == "qa":
        asked = [
            {
                "id": f"\ud800{i}",
                "question": "Who left?",
                "answers": [{"text": "Ann", "answer_start": 0}],
            }
            for i in range(8)
        ]
        paragraphs = [{"context": f"Ann left {i}.", "qas": [row]} for i, row in enumerate(asked)]
        data = world / "half.json"
        articles = [{"title": "a", "paragraphs": [paragraph]} for paragraph in paragraphs]
        data.write_text(json.dumps({"version": "1.1", "data": articles}))
    folder = tune(world, f"half-{family}", task=family, data=str(data), max_steps=1)
    assert all(row["id"].startswith("\ufffd") for row in rows_of(folder))


def test_a_folder_with_a_test_file_alone_is_scored(learnt: Path, tmp_path: Path) -> None:
    conll(tmp_path / "test.txt", tagged(4, 3))
    found = minibert.evaluate(learnt, data=str(tmp_path))
    assert (found["num_eval"], found["scored"]) == (4, "test")
    (tmp_path / "test.txt").rename(tmp_path / "dev.txt")
    assert minibert.evaluate(learnt, data=str(tmp_path))["scored"] == "dev"


def test_a_plain_text_gives_entities_with_their_place(
    learnt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Garden  storm.\nBridge castle valley, market " + "market " * 40 + "river"
    (given,) = minibert.load(learnt).predict(text)
    assert [(e.type, e.text) for e in given.entities] == [
        ("LOC", "storm"),
        ("PER", "castle valley"),
        ("LOC", "river"),
    ]
    for entity in given.entities:
        assert text[entity.start : entity.end] == entity.text
    assert len(given.tokens) == len(given.prediction)
    capsys.readouterr()
    lines = [text.replace("\n", " "), '["garden", "storm"]', '{"text": "storm"}', "[x", "\u200b"]
    assert main(["predict", str(learnt), *lines]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert shown[0]["entities"][1]["text"] == "castle valley"
    assert shown[1]["text"] == "garden storm"
    assert [(e["start"], e["end"]) for e in shown[1]["entities"]] == [(7, 12)]
    assert shown[2]["prediction"] == ["B-LOC"]
    assert shown[3]["tokens"] == ["[", "x"]
    assert main(["predict", str(learnt), '{"words": 3}']) == 2
    assert "expected a string, or a list of words" in capsys.readouterr().err
    model = minibert.load(learnt)
    assert [len(found.entities) for found in model.predict(["", " ", "storm"])] == [0, 0, 1]
    assert model.predict([["storm"]])[0].entities == [
        Entity("LOC", "storm", 0, 5, model.predict("storm")[0].entities[0].score)
    ]


def test_a_published_tagger_of_iob1_finds_its_entities(learnt: Path, tmp_path: Path) -> None:
    names = "O B-LOC B-MISC B-ORG I-LOC I-MISC I-ORG I-PER".split()
    start = BertConfig.from_pretrained(learnt)
    config = dataclasses.replace(start, id2label=dict(enumerate(names)))
    model = BertForTokenClassification.from_pretrained(learnt, config, ("classifier.",))
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.0] * 7 + [8.0])  # all is I-PER
    folder = Path(shutil.copytree(learnt, tmp_path / "iob1"))
    model.save_pretrained(folder)
    found = minibert.load(folder).predict("castle valley")[0]
    assert [(e.type, e.text) for e in found.entities] == [("PER", "castle valley")]
    data = conll(tmp_path / "own.conll", [(["castle", "valley"], ["B-PER", "I-PER"])])
    assert minibert.evaluate(folder, data=data)["f1"] == 1.0


def test_transformers_opens_the_folder(learnt: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(learnt)
    assert theirs.config.id2label[3] == "B-PER"
    ours = minibert.load(learnt)
    ids = torch.tensor([[2, *ours.tokenizer.ids(["castle valley storm"])[0], 3]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask).logits
        found = ours.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_errors_are_a_listing_with_its_context(world: Path) -> None:
    data = conll(world / "few.conll", tagged(30))
    folder = tune(world, "few", task="tagging", data=data, max_steps=2)
    text = (folder / "errors.txt").read_text()
    assert "spurious" in text.splitlines()[0]
    assert "spurious (0." in text
    assert "nothing -> " in text
    assert "{" in text  # what was predicted, among the words around


def test_a_resumed_run_has_the_results_of_one_that_was_not(learnt: Path, world: Path) -> None:
    copy = world / "resumed"
    shutil.copytree(learnt, copy)
    (copy / "results.json").unlink()
    (copy / "predictions.jsonl").unlink()
    steps = sorted((copy / "checkpoints").glob("step-*"))
    assert len(steps) > 1
    shutil.rmtree(steps[-1])
    given = json.loads((learnt / "run.json").read_text())["settings"]
    finetune(FinetuneSettings.from_dict(given | {"output": str(copy), "resume": "yes"}))
    assert rows_of(copy) == rows_of(learnt)
    first, second = (results_of(f) | {"seconds": 0} for f in (copy, learnt))
    assert first == second


def test_the_shared_options_work_here_too(world: Path) -> None:
    rows = [(w, [f"I-{t[2:]}" if t != "O" else t for t in tags]) for w, tags in tagged(40)]
    folder = tune(
        world,
        "options",
        task="tagging",
        data=jsonl(world / "a.jsonl", rows, "sentence", "classes"),
        dev_data=jsonl(world / "b.jsonl", rows[:9], "sentence", "classes"),
        **{"text_column": "sentence", "label_column": "classes", "class_weights": "balanced"},
        **{"label_smoothing": 0.1, "seeds": 2, "patience": 1, "freeze_layers": 1, "max_steps": 4},
        **{"eval_every": 1, "select": "recall", "reinit_layers": 1},
    )
    results = results_of(folder)
    assert {"f1", "f1_sd", "dev_recall", "lexicon_f1"} <= results.keys()
    assert [run["seed"] for run in results["seeds"]] == [0, 1]
    assert minibert.load(folder).predict("storm")[0].tokens == ["storm"]


def test_weights_and_smoothing_enter_the_loss(world: Path) -> None:
    import torch

    def loss(**options: Any) -> Term:
        task = TaggingTask(FinetuneSettings(task="tagging", max_seq_length=16, **options))
        task.learn(train, tokenizer)
        torch.manual_seed(0)
        model = task.build(world / "start", config_of(task), False)
        features = [f for own in task.encode(train) for f in own]
        return task.terms(model, task.collate(features))["task"]

    def config_of(task: TaggingTask) -> Any:
        from dataclasses import replace

        config = minibert.BertConfig.from_pretrained(world / "start")
        return replace(config, **task.config_fields())

    data = conll(world / "weights.conll", tagged(6))
    task = TaggingTask(FinetuneSettings(task="tagging", data=data))
    train = task.read(task.find_data()).train
    tokenizer = minibert.WordPiece.from_pretrained(world / "start")
    plain, weighted, smooth = loss(), loss(class_weights="O=0"), loss(label_smoothing=0.3)
    assert int(plain.num_labels) == sum(len(e.words) for e in train) == int(weighted.num_labels)
    assert weighted.loss_sum.item() < plain.loss_sum.item()
    assert smooth.loss_sum.item() != plain.loss_sum.item()


def test_the_bundled_sample_runs_and_says_so(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tune(world, "sample", task="conll2003", max_steps=2)
    said = capsys.readouterr()
    assert "the bundled sample" in said.err
    assert "58 train sentences with 95 entities" in said.err
    assert "precision" in said.out
    assert results_of(folder)["scored"] == "test"


BAD = {
    "no entity": (["a O\n\nb O\n\nc O"], "no training sentence has an entity: every tag is O"),
    "no tag": (["a B-X\nb"], "line 2: 'b' has 1 column(s)"),
    "one sentence": (["a B-X"], "too few to cut a dev split off"),
    "no such column": (["a x B-X", "--label-column", "7"], "expected a word and its tag"),
    "named column": (["a B-X", "--label-column", "tag"], "a number, counted from 0"),
    "pairs": (["a B-X", "--text-pair-column", "b"], "--text-pair-column has no use in tagging"),
    "stride": (["a B-X", "--doc-stride", "9"], "--doc-stride has no use in tagging"),
    "truncation": (["a B-X", "--truncation", "tail"], "every word gets a tag"),
    "weights": (["a B-X\n\nb B-X", "--class-weights", "B-Y=2"], "no class 'B-Y'"),
    "select": (["a B-X\n\nb O", "--select", "matthews"], "'matthews' is no figure of tagging"),
    "dev file": (["a B-X", "--dev-data", "nowhere.conll"], "nowhere.conll does not exist"),
    "empty": ([""], "holds no sentences"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(
    world: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (text, *flags), wanted = BAD[name]
    (tmp_path / "a.conll").write_text(text)
    line = ["finetune", "--task", "tagging", "--data", tmp_path / "a.conll"]
    line += ["--model", world / "start", "--max-seq-length", 16, "--output", tmp_path / "run"]
    assert main([str(part) for part in [*line, *flags]]) == 2
    (said,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("minibert:")]
    assert wanted in said


def test_a_folder_without_training_data_is_refused(tmp_path: Path) -> None:
    conll(tmp_path / "test.txt", tagged(3))
    task = TaggingTask(FinetuneSettings(task="conll2003", data=str(tmp_path)))
    with pytest.raises(InputError, match="holds no file to train on, such as train.txt"):
        task.read(task.find_data())
