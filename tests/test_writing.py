"""Translation and summarization whole: data, vocabulary, training, resume, use, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from samples import CPU, NOUNS, one_thread, without_times, write_corpus  # noqa: F401

import minibert
from minibert.cli import main
from minibert.config import BertConfig
from minibert.decoder_config import DecoderConfig
from minibert.errors import InputError, Interrupted, TextError
from minibert.estimate import Memory, num_parameters
from minibert.files import bundled_data, model_path
from minibert.finetuning import finetune
from minibert.flops import generation_flops, training_flops
from minibert.generation import _Search, forbid_repeats
from minibert.pretraining import pretrain
from minibert.run_folder import read_metrics
from minibert.settings import FinetuneSettings
from minibert.target_tokenizer import TargetTokenizer, train_target_tokenizer
from minibert.tasks import find_task
from minibert.tasks.base import Splits
from minibert.tasks.batches import TaskData, flat
from minibert.tasks.parallel import TextPair, lead, read_multi30k
from minibert.tasks.summarization import SummarizationTask
from minibert.tasks.translation import TranslationTask
from minibert.tasks.writing import _WORD, WritingTask
from minibert.tokenizer import WordPiece

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

GERMAN = dict(
    zip(
        NOUNS,
        "Stürm Fluß Brücke Müller Schloß Gärten Markt Winter Silber Kerze Hafen Täler".split(),
        strict=True,
    )
)
LOOP: dict[str, Any] = {
    **{"max_seq_length": 16, "batch_size": 16, "device": "cpu", "precision": "fp32"},
}


def pairs(count: int, seed: int = 0, longest: int = 2) -> list[dict[str, str]]:
    """Rows of one or two English words, and a German sentence of them in turned order."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(NOUNS) for _ in range(rng.randint(1, longest))]
        german = " und ".join(GERMAN[w] for w in words[::-1])
        rows.append({"en": " ".join(words), "de": f"Hier ist {german}."})
    return rows


def write_lines(folder: Path, rows: list[dict[str, str]], name: str) -> tuple[str, str]:
    """Two files of lines."""
    found = []
    for language in ("en", "de"):
        path = folder / f"{name}.{language}"
        path.write_text("".join(row[language] + "\n" for row in rows))
        found.append(str(path))
    return found[0], found[1]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writing")
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


@pytest.fixture(scope="module")
def translated(world: Path) -> Path:
    """A model that has learnt to translate, from files of lines."""
    data = write_lines(world, pairs(400), "train")
    test = write_lines(world, pairs(40, seed=1), "test")
    files = {"data": data[0], "target_data": data[1], "test_data": test[0]}
    return tune(
        *(world, "translated"),
        **{"task": "translation", "test_target_data": test[1], **files, "max_steps": 150},
        **{"learning_rate": 2e-3, "decoder_layers": 1, "num_beams": 2, "dropout": 0.0},
    )


def read(task: str = "translation", **values: Any) -> Splits[TextPair]:
    made = find_task(task)(FinetuneSettings(task=task, **values))
    return made.read(made.find_data())


# --- a run, from the data to its use --------------------------------------------------------------


def test_it_learns_to_translate(translated: Path) -> None:
    results = results_of(translated)
    assert results["bleu"] > 60 > results["copy_bleu"]
    assert results["chrf"] > 80
    assert results["bleu_signature"].startswith("nrefs:1|case:mixed")
    assert results["dev_token_accuracy"] > 0.9
    assert (results["num_eval"], results["scored"], results["num_cut"]) == (40, "test", 0)


def test_figures_are_those_of_sacrebleu_on_the_saved_predictions(translated: Path) -> None:
    import sacrebleu

    rows = rows_of(translated)
    assert rows[0].keys() == {"id", "text", "reference", "prediction", "score"}
    assert rows[0]["id"] == "test/1"
    texts, stream = [r["prediction"] for r in rows], [[r["reference"] for r in rows]]
    assert results_of(translated)["bleu"] == sacrebleu.corpus_bleu(texts, stream).score
    assert results_of(translated)["chrf"] == sacrebleu.corpus_chrf(texts, stream).score


def test_errors_stand_worst_first_with_their_source(translated: Path) -> None:
    first = (translated / "errors.txt").read_text().split("\n\n")[0].splitlines()
    assert [line.split(":")[0] for line in first[1:]] == ["source", "reference", "written"]
    scores = [
        float(block.split("\n")[0].split(": ")[1].removesuffix(", cut"))
        for block in (translated / "errors.txt").read_text().strip().split("\n\n")
    ]
    assert scores == sorted(scores)


def test_a_folder_predicts_what_the_run_wrote(
    translated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(translated)
    model = minibert.load(translated)
    answers = model.predict([row["text"] for row in rows])
    assert [answer.prediction for answer in answers] == [row["prediction"] for row in rows]
    lines = translated.parent / "lines.txt"
    lines.write_text("".join(f"{row['text']}\n" for row in rows[:3]))
    assert main(["predict", str(translated), "--input", str(lines)]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prediction"] for row in told] == [row["prediction"] for row in rows[:3]]
    assert told[0].keys() == {"text", "prediction", "score", "is_whole"}
    assert main(["predict", str(translated), "", "storm"]) == 0  # an empty text is answered, too
    assert model.predict("storm")[0].text == "storm"
    assert model.predict("storm \ud83d")[0].text == "storm \ufffd"
    with pytest.raises(InputError, match="text 1 is 7; expected a string"):
        model.predict([7])


def test_a_finished_folder_is_scored_again(
    translated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = minibert.evaluate(translated)
    for key in ("bleu", "chrf", "num_eval", "bleu_signature"):
        assert again[key] == results_of(translated)[key]
    source, target = write_lines(translated.parent, pairs(9, seed=5), "more")
    command = ["evaluate", str(translated), "--data", source, "--target-data", target]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["num_eval"] == 9
    assert main(command[:4]) == 2
    assert "name the second with --target-data" in capsys.readouterr().err
    table = write_jsonl(translated.parent / "more.jsonl", pairs(7, seed=6))
    for data, extra, refused in (
        (source, {"target_data": target, "text_column": "en"}, "--text-column is for a table"),
        (source, {"target_data": target, "source_language": "de"}, "--source-language is for a fo"),
    ):
        with pytest.raises(InputError, match=refused):
            minibert.evaluate(translated, data=data, **extra)
    command = ["evaluate", str(translated), "--data", table, "--text-column", "en"]
    for flag in ("--target-column", "--label-column"):
        assert main([*command, flag, "de"]) == 0
        assert json.loads(capsys.readouterr().out)["num_eval"] == 7
    odd = [{"en": "storm", "de": ""}, {"en": "", "de": "Hier"}]
    table = write_jsonl(translated.parent / "odd.jsonl", odd)
    other = ["--text-column", "en", "--target-column", "de"]
    assert main(["evaluate", str(translated), "--data", table, *other]) == 0
    said = capsys.readouterr()  # as --test-data would be
    assert (json.loads(said.out)["num_eval"], json.loads(said.out)["scored"]) == (2, "test")
    assert "1 empty targets in test, scored as they are" in said.err
    assert main([*command, "--target-column", "fr"]) == 2
    said = "has no column 'fr' (--target-column); its columns are en, de"
    assert said in capsys.readouterr().err


def test_another_label_column_replaces_the_target_column_of_the_run(world: Path) -> None:
    data = write_jsonl(world / "columns.jsonl", pairs(24, seed=7))
    own = {"text_column": "en", "target_column": "de"}
    folder = tune(world, "columns", task="translation", data=data, max_steps=1, **own)
    other = [{"en": row["en"], "german": row["de"]} for row in pairs(5, seed=8)]
    table = write_jsonl(world / "german.jsonl", other)
    assert minibert.evaluate(folder, data=table, label_column="german")["num_eval"] == 5


def test_the_folder_says_how_it_is_laid_out(translated: Path) -> None:
    assert "target_tokenizer.json" in (translated / "README.txt").read_text()
    config = json.loads((translated / "config.json").read_text())
    assert config["architectures"] == ["BertForConditionalGeneration"]
    assert config["num_decoder_layers"] == 1
    target = TargetTokenizer.from_pretrained(translated)
    assert config["target_vocab_size"] == target.vocab_size
    texts = [row["de"] for row in pairs(400)]
    assert target.decode(target.ids(texts)) == texts  # umlauts survive
    assert config["max_target_positions"] == max(map(len, target.ids(texts)))


def test_transformers_opens_the_encoder(translated: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(translated).eval()
    model = minibert.load(translated).model
    ids = torch.tensor([[2, 9, 8, 3]])
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        found = model.bert(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("column", ["target_column", "label_column"])
def test_a_text_is_no_translation_of_itself(tmp_path: Path, column: str) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "target": "b"}])
    task = find_task("translation")(
        FinetuneSettings(task="translation", data=data, **{column: "text"})
    )
    with pytest.raises(InputError, match="--text-column and --target-column are both 'text'"):
        task.read(task.find_data())


def test_a_translator_goes_on_with_its_own_vocabulary(
    world: Path, translated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(world / "more.jsonl", pairs(24, seed=8))
    options = {"data": data, "text_column": "en", "target_column": "de", "max_steps": 1}
    own = {"model": str(translated), "task": "translation", "learning_rate": 1e-6, **options}
    folder = tune(world, "on", **own)
    assert "(the model's own)" in capsys.readouterr().err
    assert results_of(folder)["dev_token_accuracy"] > 0.9  # the decoder was not drawn anew
    longer = tune(world, "longer", max_target_length=40, **own)
    assert results_of(longer)["dev_token_accuracy"] > 0.9
    assert minibert.load(longer).model.decoder_config.max_target_positions == 40
    capsys.readouterr()
    other = tune(world, "anew", target_vocab_size=262, **own)
    assert "(the model's own)" not in capsys.readouterr().err
    assert json.loads((other / "config.json").read_text())["target_vocab_size"] == 262
    assert results_of(other)["dev_token_accuracy"] < 0.6


def test_a_translator_goes_on_with_another_longest_target(
    translated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = minibert.load(translated).model.state_dict()
    name = "decoder.embeddings.position.weight"
    tokenizer = WordPiece.from_pretrained(translated)
    config = BertConfig.from_pretrained(translated)
    longest = len(before[name])
    # A vocabulary trained on this text would have it as one piece.
    learnt = [TextPair(str(i), NOUNS[0], ("Donaudampfschiff",)) for i in range(30)]
    for more in (-2, 0, 3):
        capsys.readouterr()
        given = {"task": "translation", "data": "x.csv", "max_target_length": longest + more}
        task = TranslationTask(FinetuneSettings(**given))
        task.learn(learnt, tokenizer)
        model: Any = task.build(translated, config, False)
        after = model.state_dict()
        common = min(longest, longest + more)
        assert after[name].shape[0] == model.decoder_config.max_target_positions == longest + more
        assert DecoderConfig.of(model.config) == task.decoder == model.decoder_config
        assert torch.equal(after.pop(name)[:common], before[name][:common])
        assert all(torch.equal(value, before[key]) for key, value in after.items())
        told = str(model.load_report)
        assert (f"decoder positions from {longest} on" in told) == (more > 0), told
        cut = len(task.target.ids(["Donaudampfschiff"])[0]) > longest + more
        assert cut == ("30 longer ones in train are cut" in capsys.readouterr().err)
        assert cut or more > 0


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Lets a run be stopped as by SIGTERM."""
    taken = minibert.train.Loop.take_step

    def take_step(loop: Any) -> None:
        taken(loop)
        if loop.state.step == step:
            loop.asked_to_stop = signal.SIGTERM

    patch.setattr("minibert.train.Loop.take_step", take_step)


def test_a_stopped_run_goes_on_bit_by_bit(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(world / "stopped.jsonl", pairs(60, seed=3))
    options: dict[str, Any] = {
        **{"task": "translation", "data": data, "text_column": "en", "label_column": "de"},
        **{"max_steps": 8, "save_every": 3, "log_every": 1, "label_smoothing": 0.1},
    }
    whole = tune(world, "whole", **options)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(Interrupted):
            tune(world, "parted", **options)
    parted = tune(world, "parted", resume="yes", **options)
    for name in ("model.safetensors", "predictions.jsonl", "target_tokenizer.json", "errors.txt"):
        assert (whole / name).read_bytes() == (parted / name).read_bytes(), name
    assert without_times(read_metrics(whole)) == without_times(read_metrics(parted))


def test_a_dry_run_counts_the_decoder(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []
    told = Memory(1e6, 2e6, 3e6, 4e6)

    def step_memory(*args: Any, **options: Any) -> Memory:
        asked.append((args, options))
        return told

    monkeypatch.setattr("minibert.runs.step_memory", step_memory)
    data = write_jsonl(world / "dry.jsonl", pairs(60, seed=11))
    columns = {"data": data, "text_column": "en", "target_column": "de", "max_steps": 1}
    given = {"task": "translation", "micro_batch_size": 8, "dry_run": True, **columns}
    tune(world, "dry", **given)
    assert f"memory: {told} for a step" in capsys.readouterr().err
    assert len(asked) == 2  # micro-batches of 8
    for (config, lengths, slots, _, parameters), options in asked:
        decoder = DecoderConfig.of(config)
        assert parameters == num_parameters(config, decoder)
        width = config.hidden_size
        assert options["trained"] == parameters - width * (width + 1)  # the pooler
        assert (len(lengths), len(options["target_lengths"]), slots) == (8, 8, 0)
        assert 3 <= min(options["target_lengths"]) <= max(options["target_lengths"])
        assert max(options["target_lengths"]) <= decoder.max_target_positions
    assert not (world / "dry").exists()


def test_named_samples_run_offline_and_say_so(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"max_steps": 1, "num_beams": 1, "max_target_length": 12, "max_seq_length": 64}
    options = {"model": str(world / "wiki"), **short}
    corpus = [str(bundled_data() / "wiki.txt")]
    where = {"output": str(world / "wiki"), "cache_dir": str(world / "cache")}
    pretrain(corpus=corpus, preset="tiny", vocab_size=600, max_steps=1, **LOOP, **where)
    found = results_of(tune(world, "multi30k", task="multi30k", **options))
    assert {"bleu", "chrf", "copy_bleu", "copy_chrf"} <= found.keys()
    assert "the bundled sample" in capsys.readouterr().err
    turned = {"source_language": "de", "target_language": "en"}
    folder = tune(world, "turned", task="multi30k", **turned, **options)
    assert rows_of(folder)[0]["reference"].isascii()
    folder = tune(world, "dialogsum", task="dialogsum", select="rougeL", **options)
    assert "longer ones in train are cut" in capsys.readouterr().err
    found = results_of(folder)
    assert {"rouge1", "rouge2", "rougeL", "lead3_rougeL", "dev_rougeL"} <= found.keys()
    assert len(rows_of(folder)[0]["reference"]) == 3
    assert found["rouge_signature"].startswith("nrefs:3|refs:mean|stem:yes|")
    rows = rows_of(folder)
    wanted = rouge_of([row["prediction"] for row in rows], rows)
    assert {kind: found[kind] for kind in wanted} == pytest.approx(wanted)
    wanted = rouge_of([lead(row["text"]) for row in rows], rows)  # a step teaches no words
    assert {kind: found[f"lead3_{kind}"] for kind in wanted} == pytest.approx(wanted)
    assert min(wanted.values()) > 1


@pytest.mark.parametrize(("source", "is_told"), [("en", False), ("de", True)])
def test_sources_that_fall_to_pieces_are_told(
    source: str, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    task = TranslationTask(FinetuneSettings(task="multi30k"))
    task.tokenizer = WordPiece.from_pretrained(model_path("minibert-small-en"))
    pairs = read_multi30k(bundled_data() / "multi30k", source, "en" if source == "de" else "de")
    task._check_sources([pair.source for pair in pairs.train])
    said = capsys.readouterr().err
    assert "pieces a word, 0." in said
    assert ("language: 2." in said) == is_told
    assert ("minibert pretrain --corpus their.txt" in said) == is_told
    assert len(_WORD.findall("a b\u4e66\u597d c")) == 5  # as BERT's tokenizer parts them


def rouge_of(texts: list[str], rows: list[dict[str, Any]]) -> dict[str, float]:
    """What rouge_score says of texts for the saved rows, the mean over the references."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    totals = dict.fromkeys(kinds, 0.0)
    for text, row in zip(texts, rows, strict=True):
        each = [scorer.score(reference, text) for reference in row["reference"]]
        for kind in kinds:
            totals[kind] += sum(one[kind].fmeasure for one in each) / len(each)
    return {kind: 100 * total / len(rows) for kind, total in totals.items()}


def test_the_time_for_writing_is_reckoned_from_the_references_of_dev(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model, train = made(TranslationTask, world, num_beams=2)
    model.decoder.bias.data[task.target.eos_id] = -50.0  # as it stands it would never end
    features = flat(task.encode(train[:20]))
    steps = 0
    taken = _Search.step

    def step(search: _Search) -> bool:
        nonlocal steps
        steps += 1
        return taken(search)

    monkeypatch.setattr(_Search, "step", step)
    task.rehearse(model, features, 20, CPU)
    longest = max(len(f.labels["labels"]) for f in features)
    once = min(math.ceil(1.25 * longest), task.decoder.max_target_positions)
    assert steps == once
    task.rehearse_dev(model, features, 20, CPU)
    assert steps == once  # dev's tokens are scored, nothing is written
    task.settings = dataclasses.replace(task.settings, select="bleu")
    task.rehearse_dev(model, features, 20, CPU)
    assert steps == 2 * once


# Ten steps a second, 5 seconds without the scoring, of which 2 are planned for it: dev and test.
@pytest.mark.parametrize(("later", "least", "most"), [(2.0, 20, 24), (0.0, 36, 40), (1.0, 30, 30)])
def test_minutes_leave_time_for_what_the_model_writes_by_now(
    world: Path, monkeypatch: pytest.MonkeyPatch, later: float, least: int, most: int
) -> None:
    asked: list[tuple[int, int, bool]] = []

    def scoring_seconds(score: Any, rows: Any, count: int, timed: int = 0) -> float:
        asked.append((len(rows), count, timed > 0))
        score(rows[:2])
        return later if timed else 1.0

    monkeypatch.setattr("minibert.finetuning.scoring_seconds", scoring_seconds)
    monkeypatch.setattr("minibert.finetuning.training_seconds", lambda *given: 5.0 - given[2])
    second = SimpleNamespace(perf_counter=itertools.count().__next__)  # dev's own scoring
    monkeypatch.setattr("minibert.finetuning.time", second)
    monkeypatch.setattr("minibert.train.Loop._seconds", lambda loop: loop.state.step / 10)
    options: dict[str, Any] = {
        **{"task": "translation", "data": write_jsonl(world / "timed.jsonl", pairs(40, seed=12))},
        **{"test_data": write_jsonl(world / "timed-test.jsonl", pairs(9, seed=13))},
        **{"text_column": "en", "target_column": "de", "max_minutes": 1.0, "compile": False},
    }
    if later == 2.0:  # it goes on with the plan that it began with
        with monkeypatch.context() as patch:
            stop_after(7, patch)
            with pytest.raises(Interrupted):
                tune(world, f"timed-{later}", **options)
        options["resume"] = "yes"
    folder = tune(world, f"timed-{later}", **options)
    assert least <= results_of(folder)["steps"] <= most
    assert json.loads((folder / "run.json").read_text())["resolved"]["scoring_seconds"] == 2.0
    dev = asked[0][0]
    assert dev < 9  # not test's rows
    evaluations = sum("eval_loss" in row for row in read_metrics(folder))
    evaluations -= later != 2.0  # there the last one moves the end to before itself
    assert asked == [(dev, 9, False), (dev, dev, False)] + [(dev, 9, True)] * evaluations


def test_two_seeds_give_a_mean(world: Path) -> None:
    data = write_jsonl(world / "seeds.jsonl", pairs(30, seed=4))
    columns = {"data": data, "text_column": "en", "target_column": "de"}
    folder = tune(world, "seeds", task="translation", seeds=2, max_steps=1, **columns)
    assert "bleu_sd" in results_of(folder)
    assert minibert.load(folder).predict("storm")[0].prediction is not None


# --- what is trained on ---------------------------------------------------------------------------


def test_empty_and_repeated_pairs_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "a", "target": "b"}, {"text": "c", "target": " "}, {"text": "", "target": "d"}]
    test = [{"text": "a", "target": ""}]
    splits = read(
        data=write_jsonl(tmp_path / "a.jsonl", rows),
        test_data=write_jsonl(tmp_path / "b.jsonl", test),
    )
    assert [pair.source for pair in splits.train] == ["a"]
    said = "; ".join(splits.notes)
    for words in (
        "1 with an empty source dropped",
        "1 with an empty target dropped",
        "1 empty targets in test",
        "1 test sources occur in train",
    ):
        assert words in said


def test_a_folder_of_own_lines_has_its_own_splits(tmp_path: Path) -> None:
    write_lines(tmp_path, pairs(5), "train")
    write_lines(tmp_path, pairs(3), "dev")
    splits = read(data=str(tmp_path))
    assert (len(splits.train), len(splits.dev or ()), splits.test) == (5, 3, None)
    assert splits.train[0].source == pairs(5)[0]["en"]
    turned = read(data=str(tmp_path), source_language="de", target_language="en")
    assert turned.train[0].source == pairs(5)[0]["de"]


@pytest.mark.parametrize("part", ["dev", "test"])
def test_an_empty_part_is_not_taken_for_none(tmp_path: Path, part: str) -> None:
    write_lines(tmp_path, pairs(5), "train")
    write_lines(tmp_path, [], "empty")
    train = {"data": str(tmp_path / "train.en"), "target_data": str(tmp_path / "train.de")}
    empty = {
        f"{part}_data": str(tmp_path / "empty.en"),
        f"{part}_target_data": str(tmp_path / "empty.de"),
    }
    with pytest.raises(InputError, match=f"{part} holds no pair; name texts"):
        read(**train, **empty)


def test_a_public_set_is_looked_over_as_own_data_is(tmp_path: Path) -> None:
    for part in ("train", "val", "test_2016_flickr"):
        write_lines(tmp_path, pairs(3), part)
    (tmp_path / "val.de").write_text("\n" * 3)
    notes = read("multi30k", data=str(tmp_path)).notes
    assert "3 empty targets in dev, scored as they are" in notes
    assert "3 test sources occur in train, too" in notes


def test_a_line_may_hold_a_text_of_several_lines(tmp_path: Path) -> None:
    task = find_task("summarization")(FinetuneSettings(task="summarization"))
    assert task.parse_line('{"text": "A: Hi.\\nB: Hi."}') == "A: Hi.\nB: Hi."
    assert task.parse_line('{"text": "a", "id": 2}') == "a"  # a row as training takes it
    for plain in ("{a", "a"):
        assert task.parse_line(plain) == plain
    for without in ('{"text": 1}', '{"body": "a"}'):
        with pytest.raises(TextError, match="text 4 is {.*; expected a string"):
            task.example_of(task.parse_line(without), 4)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"target_data": "long.de"}, "train.en has 6 lines, but .*long.de has 7"),
    ({}, "name the second with --target-data"),
    ({"target_data": "none.de"}, "--target-data .*none.de does not exist"),
    ({"data": "rows.jsonl", "text_column": "fr"}, "no column 'fr' .--text-column.; its columns"),
    (
        {"data": "rows.jsonl", "target_column": "d", "text_column": "en"},
        "no column 'd' .--target-column.; its columns are .*de",
    ),
    ({"target_data": "train.de", "truncation": "windows"}, "--truncation windows has no use"),
    ({"target_data": "train.de", "shard": True}, "--shard has no use in translation"),
    ({"target_data": "train.de", "text_column": "en"}, "--text-column is for a table, not for two"),
    ({"data": "rows.jsonl", "target_data": "train.de"}, "is a table; name its two columns with"),
    ({"target_data": "train.de", "source_language": "fr"}, "--source-language is for a folder"),
    ({"data": None, "task": "multi30k", "text_column": "x"}, "go with --data"),
    ({"data": ".", "source_language": "de"}, "are both 'de'"),
    ({"data": ".", "source_language": "fr"}, "lacks train.fr"),
    ({"data": ".", "target_data": "train.de"}, "--target-data goes with files"),
    ({"data": ".", "task": "summarization"}, "neither a .csv, .tsv nor .jsonl"),
    ({"target_data": "train.de", "test_target_data": "train.de"}, "goes with --test-data"),
    ({"target_data": "train.de", "num_beams": 0}, "--num-beams is 0, must be at least 1"),
    ({"target_data": "train.de", "target_vocab_size": 20}, "vocabulary of 20 is too small"),
    ({"target_data": "train.de", "select": "blue"}, "did you mean 'bleu'"),
]


@pytest.mark.parametrize(("options", "wanted"), BAD)
def test_bad_input_is_one_line_and_status_2(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, wanted: str
) -> None:
    import re

    write_lines(tmp_path, pairs(6), "train")
    write_lines(tmp_path, pairs(7), "long")
    write_jsonl(tmp_path / "rows.jsonl", pairs(6))
    values = {"task": "translation", "data": "train.en", **options}
    flags = []
    for name, value in values.items():
        if value is not None:
            is_path = name.endswith("data")
            flags.append(f"--{name.replace('_', '-')}")
            if value is not True:
                flags.append(str(tmp_path / value if is_path else value))
    output = str(tmp_path / "out")
    command = ["finetune", "--model", str(world / "start"), "--max-seq-length", "16", *flags]
    assert main([*command, "--output", output]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(wanted, error), error


def test_a_language_that_the_vocabulary_lacks_is_refused(world: Path, tmp_path: Path) -> None:
    rows = [{"text": f"мост и река {'х' * i}", "target": "bridge"} for i in range(8)]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        InputError, match=r"100.0% of the pieces of the sources' words are unknown.*pretrain"
    ):
        tune(world, "russian", task="translation", data=data)


def test_a_missing_scorer_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(minibert.errors.MissingExtraError, match="minibert\\[tasks\\]"):
        read(data=write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "target": "b"}]))


# --- the loss, and what it costs ------------------------------------------------------------------


def made(family: Callable[[FinetuneSettings], WritingTask], world: Path, **options: Any) -> Any:
    """A task that has learnt, and its model."""
    task = family(FinetuneSettings(task=family.names[-1], max_seq_length=16, **options))  # type: ignore[attr-defined]
    train = [TextPair(str(i), r["en"], (r["de"],)) for i, r in enumerate(pairs(32))]
    folder = world / "start"
    task.learn(train, minibert.WordPiece.from_pretrained(folder))
    model = task.build(folder, BertConfig.from_pretrained(folder), False)
    return task, model.eval(), train


def test_dev_figures_are_means_over_tokens(world: Path) -> None:
    task, model, train = made(TranslationTask, world, label_smoothing=0.3)
    features = task.encode(train)
    found = task.dev_figures(model, train, features, 5, CPU)
    one = task.collate(flat(features))
    with torch.no_grad():
        ids, mask, labels = (one[k] for k in ("input_ids", "attention_mask", "labels"))
        score = model(ids, attention_mask=mask, labels=labels).score
    assert found["loss"] == pytest.approx(float(score.loss_sum / score.num_labels), rel=1e-4)
    assert found["token_accuracy"] == pytest.approx(float(score.num_hits / score.num_labels))
    assert found.keys() == {"loss", "token_accuracy"}  # nothing was written


def test_a_speaker_may_be_named_again_in_a_summary() -> None:
    text = (
        "#Person1# tells #Person2# that Mr. Przybylski left. Mr. Przybylski and #Person1# thank "
        "#Person2#, and #Person1# tells Mr. Przybylski so."
    )
    target = train_target_tokenizer(["#Person1# asks #Person2# to leave."] * 3, 300)
    starts = torch.from_numpy(target.word_starts)
    ids = torch.tensor(target.ids([text]))[None]
    for length in range(1, ids.shape[2]):
        log_probs = torch.zeros(1, 1, target.vocab_size)
        forbid_repeats(log_probs, ids[:, :, :length], 3, target.bos_id, starts)
        assert log_probs[0, 0, ids[0, 0, length]] == 0
    again = torch.tensor(target.ids([f"{text} #Person1# tells Mr. Przybylski"]))[None, :, :-1]
    log_probs = torch.zeros(1, 1, target.vocab_size)
    forbid_repeats(log_probs, again[:, :, :-1], 3, target.bos_id, starts)
    assert log_probs[0, 0, again[0, 0, -1]] == -torch.inf


def test_the_first_words_of_a_text_do_not_come_twice() -> None:
    target = train_target_tokenizer(["The cat sat. The cat ran and the dog sat."] * 20, 400)
    starts, spaced = (torch.from_numpy(a) for a in (target.word_starts, target.spaced_ids))
    ids = torch.tensor(target.ids(["The cat sat and The cat"]))[None, :, :-1]
    log_probs = torch.zeros(1, 1, target.vocab_size)
    forbid_repeats(log_probs, ids, 3, target.bos_id, starts, spaced)
    forbidden = log_probs[0, 0].isinf().nonzero()[:, 0].tolist()
    assert forbidden == sorted([target.bos_id, target.ids(["a sat"])[0][-2]])


def test_the_block_of_repeats_reaches_the_texts_of_a_task(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model, train = made(SummarizationTask, world, max_target_length=8)
    given = []
    monkeypatch.setattr("minibert.generation.forbid_repeats", lambda *args: given.append(args[4:]))
    task.predict(model, train[:2], 2, CPU)
    for starts, spaced in given:
        assert starts.tolist() == task.target.word_starts.tolist()
        assert spaced.tolist() == task.target.spaced_ids.tolist()
    assert given


def test_summaries_do_not_repeat_and_translations_may(world: Path) -> None:
    assert made(SummarizationTask, world)[0]._generation.no_repeat_ngram_size == 3
    assert made(SummarizationTask, world, no_repeat_ngram=0)[0]._generation == (
        made(TranslationTask, world)[0]._generation
    )


def test_flops_are_those_of_every_product_that_was_counted(world: Path) -> None:
    """Against PyTorch's own counter, at sequences without padding."""
    from torch.utils.flop_counter import FlopCounterMode

    task, model, _ = made(TranslationTask, world)
    n, m, batch = 7, 5, 3
    ids, labels = torch.full((batch, n), 9), torch.full((batch, m), 7)
    config, decoder = model.config, task.decoder

    def counted(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    found = counted(lambda: model(ids, decoder_input_ids=labels)) - counted(lambda: model.bert(ids))
    # Causal attention is counted for the places that are seen; PyTorch multiplies all of them.
    layers, width = decoder.num_decoder_layers, config.hidden_size
    unseen = layers * 2 * width * batch * (2 * m * m - m * (m + 1))
    sizes = [n] * batch, [m] * batch
    ours = generation_flops(config, layers, decoder.target_vocab_size, *sizes)
    encoder = training_flops(config, sizes[0]) / 3 - 2 * batch * width**2  # without its pooler
    assert ours / 3 - encoder == pytest.approx(found - unseen)


def test_useful_flops_count_each_pair_of_a_step_once(world: Path) -> None:
    task, model, train = made(TranslationTask, world)
    features = flat(task.encode(train))
    for micro in (4, 16):
        data = TaskData(features, task.collate, task.count, 16, micro, 0)
        step = data.take()
        chosen = [features[i] for i in data.order()[0]]
        expected = generation_flops(
            model.config,
            task.decoder.num_decoder_layers,
            task.decoder.target_vocab_size,
            [f.length for f in chosen],
            [len(f.labels["labels"]) for f in chosen],
        )
        assert task.useful_flops(model.config, step) == pytest.approx(expected)
        assert step.counts == {"task": int(np.sum([len(f.labels["labels"]) for f in chosen]))}
