"""The commands from outside: exit status, one line of error, what lies in a run folder."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from samples import one_thread, write, write_corpus, write_reviews  # noqa: F401

import minibert
from minibert import checkpoint, cli, finetuning, pretraining
from minibert.cli import main
from minibert.errors import InputError
from minibert.exporting import export
from minibert.files import bundled_data
from minibert.run_folder import read_metrics
from minibert.settings import FinetuneSettings, PretrainSettings, recipe
from minibert.tasks.base import Predictor, Source
from minibert.tasks.classification import ClassificationTask

TINY = [
    *("--max-seq-length", "32", "--batch-size", "8", "--max-steps", "3", "--log-every", "1"),
    *("--eval-every", "3", "--device", "cpu", "--precision", "fp32"),
]
MODEL_FILES = {
    *("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json"),
}
RUN_FILES = MODEL_FILES | {"run.json", "metrics.jsonl", "results.json", "checkpoints"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, a pretrained and a fine-tuned run, and much that is wrong."""
    world = tmp_path_factory.mktemp("commands")
    write_corpus(world / "corpus.txt")
    write_reviews(world / "reviews", count=6)
    assert main(pretrain_line(world, "--output", world / "pretrained")) == 0
    assert main(finetune_line(world, "--output", world / "finetuned")) == 0
    write_wrong_things(world)
    return world


def pretrain_line(world: Path, *flags: str | Path) -> list[str]:
    known: list[str | Path] = ["--preset", "tiny", "--vocab-size", "60"]
    if "--corpus" not in flags:
        known += ["--corpus", world / "corpus.txt"]
    return ["pretrain", *map(str, [*known, "--cache-dir", world / "cache", *TINY, *flags])]


def finetune_line(world: Path, *flags: str | Path) -> list[str]:
    known = ["--task", "imdb", "--data", world / "reviews", "--model", world / "pretrained"]
    return ["finetune", *map(str, [*known, *TINY, *flags])]


def write_wrong_things(world: Path) -> None:
    text = (world / "corpus.txt").read_text()
    (world / "empty.txt").write_text("\n \n")
    (world / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (world / "one.txt").write_text(text.replace("\n\n", "\n"))
    (world / "sentence.txt").write_text("One sentence stands here alone.\n")
    (world / "latin.txt").write_bytes(text.encode() + b"\ncaf\xe9 au lait\n")
    (world / "folder").mkdir()
    (world / "table.csv").write_text("text,label\na fine film,pos\n")
    (world / "head.csv").write_text("text,label\n")
    (world / "lines.jsonl").write_text('{"body": "text"}\n')
    for name, content in {
        "unknown": {"batchsize": 8},
        "type": {"batch_size": "8"},
        "truth": {"compile": "False"},
        "two": {"max_steps": 3, "epochs": 1.0},
    }.items():
        (world / f"{name}.json").write_text(json.dumps(content))
    (world / "broken.json").write_text("{")
    (world / "many.json").write_text('{\n"text": "a fine film"\n}\n')
    (world / "tags.conll").write_text("-DOCSTART- O\n\nAnn B-PER\nleft O\n\n")
    (world / "list.json").write_text('[{"text": "a fine film"}]\n')
    shutil.copytree(world / "finetuned", world / "damaged_run")
    (world / "damaged_run/run.json").write_text("{}")
    shutil.copytree(world / "pretrained", world / "more_tokens")
    (world / "more_tokens/tokenizer.json").unlink()
    with (world / "more_tokens/vocab.txt").open("a") as vocabulary:
        vocabulary.write("surplus\n")
    for name in ("shapes", "nothing", "no_weights", "no_config", "no_tokenizer", "cut", "gpt"):
        shutil.copytree(world / "pretrained", world / name)
    edit_config(world / "shapes", hidden_size=64)
    edit_config(world / "gpt", model_type="gpt2")
    for path in (world / "nothing").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (world / "no_weights/model.safetensors").unlink()
    (world / "no_config/config.json").unlink()
    (world / "no_tokenizer/tokenizer.json").unlink()
    (world / "no_tokenizer/vocab.txt").unlink()
    weights = world / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for missing in ("train/pos", "test/neg", "test"):
        name = "without_" + missing.replace("/", "_")
        shutil.copytree(world / "reviews", world / name)
        shutil.rmtree(world / name / missing)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def complaint(line: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The one line of a command that fails, and all of standard error."""
    capsys.readouterr()
    found = main(line)
    out, err = capsys.readouterr()
    lines = [text for text in err.splitlines() if text.startswith("minibert: ")]
    assert (found, len(lines), out) == (status, 1, ""), (found, err, out)
    assert err.splitlines()[-1] == lines[0]
    return lines[0], err


@pytest.mark.parametrize(
    ("rank", "local_rank", "told"),
    [
        (0, 0, ["minibert: --corpus nothing.txt does not exist"]),
        (1, 1, []),
        (8, 0, ["minibert: rank 8: --corpus nothing.txt does not exist"]),
        (9, 1, []),
    ],
)
def test_the_first_process_of_every_machine_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: int,
    local_rank: int,
    told: list[str],
) -> None:
    """A disk may not be there on one of them."""
    place = {"RANK": rank, "WORLD_SIZE": 16, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": 8}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    assert main(["pretrain", "--corpus", "nothing.txt"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minibert: ")]
    assert [line.partition(";")[0] for line in lines] == told


# Flags (W stands for the world's folder), and words that the message must hold.
BAD_PRETRAINING = {
    "missing corpus": ("--corpus W/none.txt", ["none.txt does not exist"]),
    "empty corpus": ("--corpus W/empty.txt", ["empty.txt is empty"]),
    "nameless corpus": ("--corpus=", ["--corpus ''", "expected"]),
    "nameless model": ("--model=", ["--model '' names nothing"]),
    "nameless tokenizer": ("--tokenizer=", ["--tokenizer '' names nothing"]),
    "corpus of no plain file": ("--corpus /dev/null", ["/dev/null is not a plain file"]),
    "binary corpus": ("--corpus W/binary.txt", ["binary.txt is binary"]),
    "empty folder": ("--corpus W/folder", ["holds no .txt, .jsonl"]),
    "one document": ("--corpus W/one.txt", ["1 document", "--nsp none"]),
    "one sentence": ("--corpus W/sentence.txt --vocab-size 40", ["1 sentence", "--nsp none"]),
    "one sentence alone": ("--corpus W/sentence.txt --vocab-size 40 --nsp none", ["1 sentence"]),
    "not utf-8": ("--corpus W/latin.txt", ["latin.txt: byte ", "--encoding-errors replace"]),
    "a field of plain text": (
        "--corpus W/corpus.txt --text-field body",
        ["--text-field body names a key of .jsonl, and --corpus holds none"],
    ),
    "no text field": ("--corpus W/lines.jsonl", ["line 1", "body", "--text-field"]),
    "large vocabulary": ("--vocab-size 99999", ["--vocab-size 99999", "at most"]),
    "endless vocabulary": ("--vocab-size 100000000000000000000", ["--vocab-size"]),
    "cache in a file": ("--cache-dir W/corpus.txt", ["corpus.txt"]),
    "first weights of a model": ("--model W/pretrained --init reference", ["--init has no use"]),
    "more tokens than the model": ("--tokenizer W/more_tokens --model W/pretrained", ["no use"]),
    "small vocabulary": ("--vocab-size 12", ["--vocab-size 12", "too small"]),
    "long sequences": ("--max-seq-length 600", ["--max-seq-length 600", "512"]),
    "undivided batch": ("--micro-batch-size 3", ["--batch-size 8", "--micro-batch-size 3"]),
    "unknown flag": ("--max-step 5", ["--max-step", "did you mean '--max-steps'"]),
    "stray argument": ("--seed 1 stray", ["stray"]),
    "not a number": ("--max-steps many", ["--max-steps", "many"]),
    "unknown key": ("--config W/unknown.json", ["'batchsize'", "did you mean 'batch_size'"]),
    "wrong type": ("--config W/type.json", ["batch_size is '8'", "int"]),
    "truth as text": ("--config W/truth.json", ["compile is 'False'", "bool"]),
    "broken config": ("--config W/broken.json", ["broken.json is not valid JSON"]),
    "unknown recipe": ("--recipe small-budge", ["--recipe", "small-budge"]),
    "muon in parts": ("--optimizer muon --shard", ["--optimizer muon", "--shard"]),
    "missing config": ("--config W/none.json", ["none.json does not exist"]),
    "folder as config": ("--config W/folder", ["folder is a folder (--config names a JSON"]),
    "config of another stage": (
        "--config W/finetuned/run.json",
        ["run.json is of a finetune; expected that of a pretrain"],
    ),
    "two budgets": ("--epochs 1", ["--max-steps and --epochs", "give one"]),
    "existing output": ("--output W/pretrained", ["--resume", "--overwrite"]),
    "file as output": ("--output W/corpus.txt", ["corpus.txt is a file"]),
    "output below a file": ("--output W/corpus.txt/run", ["corpus.txt"]),
    "no such device": ("--device cuda:7", ["cuda:7", "cpu"]),
    "no device": ("--device toaster", ["toaster", "cpu"]),
    "unknown preset": ("--preset tinny", ["tinny", "tiny"]),
    "no layers": ("--num-layers 0", ["--num-layers", "at least 1"]),
    "odd width": ("--hidden-size 100", ["--hidden-size", "multiple of 64"]),
    "unknown choice": ("--masking words", ["words", "whole-word"]),
    "negative rate": ("--learning-rate -1", ["--learning-rate", "above 0"]),
    "unknown place of norms": ("--norm after", ["--norm", "after", "post"]),
    "unknown schedule": ("--schedule cosinus", ["cosinus", "cosine"]),
    "a fall of another schedule": ("--decay-ratio 0.2", ["--decay-ratio goes with --schedule"]),
    "climb and fall of more than all": (
        "--schedule constant-then-linear --warmup-ratio 0.8",
        ["--warmup-ratio 0.8 and --decay-ratio 0.3", "at most 1"],
    ),
    "infinite rate": ("--learning-rate inf", ["--learning-rate"]),
    "decay that is no number": ("--weight-decay nan", ["--weight-decay"]),
    "short length that is not": ("--short-length 600", ["--short-length is 600", "below"]),
    "share of no short length": ("--short-share 0.5", ["--short-share goes with --short-length"]),
    "all of it short": ("--short-length 8 --short-share 1", ["--short-share is 1.0", "between"]),
    "a ramp beyond the budget": ("--batch-ramp 1.5", ["--batch-ramp is 1.5", "at most 1"]),
    "unequal shards": (
        "--batch-ramp 0.5 --shard --micro-batch-size 1",
        ["--batch-ramp has no use with --shard and --micro-batch-size 1"],
    ),
    "huge seed": ("--seed 99999999999999999999", ["--seed"]),
    "contradiction": ("--resume --overwrite", ["contradict"]),
    "no tokenizer": ("--tokenizer W/folder --vocab-size 60", ["--vocab-size has no use"]),
}
BAD_FINETUNING = {
    "unknown task": ("--task imbd", ["imbd", "did you mean 'imdb'"]),
    "missing data": ("--data W/none", ["none does not exist"]),
    "data that is no archive": ("--data W/corpus.txt", ["corpus.txt"]),
    "no positive reviews": ("--data W/without_train_pos", ["train/pos"]),
    "no negative test": ("--data W/without_test_neg", ["test/neg"]),
    "no test split": ("--data W/without_test", ["test/neg", "aclImdb"]),
    "more tokens than the model": ("--model W/more_tokens", ["tokens, the model"]),
    "model beside others": ("--model W/pretrainde", ["pretrainde is not a model folder"]),
    "no possible model": ("--model not/a:model", ["not/a:model is neither a model folder"]),
    "missing model": ("--model W/none", ["none is not a model folder"]),
    "wrong shapes": ("--model W/shapes", ["shape", "config.json"]),
    "empty model folder": ("--model W/nothing", ["nothing"]),
    "no weights": ("--model W/no_weights", ["model.safetensors"]),
    "no config": ("--model W/no_config", ["config.json does not exist"]),
    "no tokenizer": ("--model W/no_tokenizer", ["tokenizer.json"]),
    "truncated weights": ("--model W/cut", ["model.safetensors is damaged or truncated"]),
    "another architecture": ("--model W/gpt", ["gpt2", "bert"]),
    "long sequences": ("--max-seq-length 600", ["--max-seq-length 600", "512"]),
    "undivided batch": ("--micro-batch-size 5", ["--batch-size 8", "--micro-batch-size 5"]),
    "unknown flag": ("--trunctation head", ["did you mean '--truncation'"]),
    "two budgets": ("--max-minutes 1", ["--max-steps and --max-minutes"]),
    "a budget below nothing": ("--max-minutes -1", ["--max-minutes is -1.0, must be above 0"]),
    "a budget beyond counting": ("--max-minutes 1e308", ["must be at most 1e+12"]),
    "existing output": ("--output W/finetuned", ["--resume", "--overwrite"]),
    "unknown figure": ("--select acuracy", ["did you mean 'accuracy'"]),
    "least beside most steps": ("--min-steps 9", ["--min-steps goes with --epochs"]),
    "no patience": ("--patience 0", ["--patience is 0"]),
    "more layers than there are": ("--freeze-layers 3", ["--freeze-layers 3", "2 layers"]),
    "frozen noise": ("--freeze-layers 1 --random-weights", ["--freeze-layers has no use"]),
    "missing test data": ("--test-data W/none", ["--test-data", "none does not exist"]),
}
BAD_OTHERS = {
    "unknown command": ("pretrian", ["did you mean 'pretrain'"]),
    "missing folder": ("predict W/none text", ["none is not a model folder"]),
    "pretrained only": ("predict W/pretrained text", ["without a classifier", "finetune"]),
    "no text": ("predict W/finetuned", ["nothing to predict"]),
    "text and input": ("predict W/finetuned text --input W/corpus.txt", ["not both"]),
    "a table": ("fill-mask --model W/pretrained --input W/table.csv", ["table.csv is a table"]),
    "another column": (
        "predict W/finetuned --input W/table.csv --text-column review",
        ["no column 'review' (--text-column); its columns are text, label"],
    ),
    "a column of no table": (
        "predict W/finetuned --input W/corpus.txt --text-column review",
        ["--text-column goes with a .csv"],
    ),
    "a table without rows": ("predict W/finetuned --input W/head.csv", ["holds no row below"]),
    "JSON of several lines": ("predict W/finetuned --input W/many.json", ["many.json is JSON;"]),
    "a list of objects": ("predict W/finetuned --input W/list.json", ["an object a line"]),
    "columns of tags": (
        "predict W/finetuned --input W/tags.conll",
        ["tags.conll holds a word and its tag a line", "minibert evaluate FOLDER --data"],
    ),
    "missing input": ("predict W/finetuned --input W/none.txt", ["none.txt is not a file"]),
    "input not utf-8": ("predict W/finetuned --input W/latin.txt", ["latin.txt", "UTF-8"]),
    "no batch": ("predict W/finetuned text --batch-size 0", ["--batch-size"]),
    "unknown flag": ("predict W/finetuned text --devise cpu", ["did you mean '--device'"]),
    "damaged run.json": ("predict W/damaged_run text", ["run.json is damaged", "settings"]),
    "folder for predictions": ("evaluate W/finetuned --predictions W/folder", ["is a folder"]),
    "device for predictions": ("evaluate W/none --predictions /dev/null", ["not a plain file"]),
    "output for predictions": ("evaluate W/none --predictions /dev/stdout", ["not a plain file"]),
    "evaluate nothing": ("evaluate W/none", ["none is not a model folder"]),
    "evaluate on nothing": ("evaluate W/finetuned --data W/none", ["none does not exist"]),
    "unknown split": ("evaluate W/finetuned --split dev", ["dev", "test"]),
    "unknown data set": ("download imbd", ["imbd"]),
}


def test_a_folder_that_may_not_be_used_is_said_before_data_is_looked_for(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_data(self: ClassificationTask) -> Source:
        raise AssertionError("looked for")

    monkeypatch.setattr(ClassificationTask, "find_data", find_data)
    message, _ = complaint(finetune_line(world, "--output", world / "finetuned"), 2, capsys)
    assert "exists (--resume goes on, --overwrite starts anew)" in message


def test_json_lines_with_labels_are_read_by_their_text(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "a fine film", "label": "pos"}, {"text": "a fine film"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["predict", str(world / "finetuned"), "--input", str(tmp_path / "own.jsonl")]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert first["text"] == "a fine film"


@pytest.mark.parametrize("name", ["own.csv.gz", "OWN.CSV.GZ"])
def test_a_table_is_read_by_its_columns(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with gzip.open(tmp_path / name, "wt") as handle:
        handle.write('id,review,label\n7,"a fine,\nlong film",pos\n8,storm,neg\n')
    line = ["predict", str(world / "finetuned"), "--input", str(tmp_path / name)]
    capsys.readouterr()
    assert main([*line, "--text-column", "review"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["a fine,\nlong film", "storm"]
    assert main([*line[:2], "storm"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["score"] == pytest.approx(rows[1]["score"], rel=1e-4)


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_a_table_of_the_layout_of_training_is_no_list_of_texts(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    rows = [{"review": 'a "fine" film', "label": "pos"}, {"review": "storm", "label": "neg"}]
    content = {
        ".tsv": "".join("\t".join(row) + "\n" for row in (rows[0], *[r.values() for r in rows])),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    path = write(tmp_path / f"own{suffix}", content[suffix])
    capsys.readouterr()
    line = ["predict", str(world / "finetuned"), "--input", str(path)]
    assert main([*line, "--text-column", "review"]) == 0
    found = [json.loads(row)["text"] for row in capsys.readouterr().out.splitlines()]
    assert found == [row["review"] for row in rows]
    message, _ = complaint(line, 2, capsys)
    assert f"own{suffix}, line {1 + (suffix == '.tsv')} has no column 'text'" in message


def test_answers_are_printed_while_later_texts_wait(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_SLICE_BATCHES", 1)
    real, seen = Predictor.predict, []

    def predict(self: Predictor, given: list[str], batch_size: int) -> list[Any]:
        seen.append(given)
        if len(seen) == 2:
            raise RuntimeError("the disk fell out")
        return real(self, given, batch_size)

    monkeypatch.setattr(Predictor, "predict", predict)
    capsys.readouterr()
    line = ["predict", str(world / "finetuned"), "--batch-size", "2", "one", "two", "three"]
    assert main(line) == 1
    shown = [json.loads(row)["text"] for row in capsys.readouterr().out.splitlines()]
    assert (shown, seen) == (["one", "two"], [["one", "two"], ["three"]])


def test_folders_that_lack_a_layer_are_refused(world: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(world / "finetuned", cut, ignore=shutil.ignore_patterns("checkpoints"))
    tensors = load_file(cut / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".layer.1." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, cut / "model.safetensors")
    for use in (
        minibert.load,
        minibert.load_embedder,
        lambda folder: export(folder, tmp_path / "exported"),
    ):
        with pytest.raises(InputError, match=r"cut lacks 12 .*layers\.1\..* first"):
            use(cut)


def parted(word: str) -> list[str]:
    """A flag with an equals sign as two words, so that an empty value can be written."""
    return word.split("=") if word.startswith("--") else [word]


@pytest.mark.parametrize("name", BAD_PRETRAINING)
def test_bad_pretraining_ends_with_2_and_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flags, wanted = BAD_PRETRAINING[name]
    output = tmp_path / "runs/new"
    given = [flag for words in flags.replace("W", str(world)).split() for flag in parted(words)]
    line = pretrain_line(world, "--output", output, *given)
    message, err = complaint(line, 2, capsys)
    for words in wanted:
        assert words in message
    assert "Traceback" not in err
    assert not output.exists()


@pytest.mark.parametrize("name", BAD_FINETUNING)
def test_bad_finetuning_ends_with_2_and_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flags, wanted = BAD_FINETUNING[name]
    output = tmp_path / "runs/new"
    line = finetune_line(world, "--output", output, *flags.replace("W", str(world)).split())
    message, err = complaint(line, 2, capsys)
    for words in wanted:
        assert words in message
    assert "Traceback" not in err
    assert not output.exists()


@pytest.mark.parametrize("name", BAD_OTHERS)
def test_other_bad_commands_end_with_2_and_one_line(
    world: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    line, wanted = BAD_OTHERS[name]
    message, err = complaint(line.replace("W", str(world)).split(), 2, capsys)
    for words in wanted:
        assert words in message
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("start", "length", "wanted"),
    [("pretrained", 16, 32), ("pretrained", 40, 40), ("finetuned", 16, 32), ("random", 16, 16)],
)
def test_a_folder_tells_readers_how_many_trained_positions_it_has(
    world: Path, tmp_path: Path, start: str, length: int, wanted: int
) -> None:
    """Texts are cut to them by transformers, and by us where no run tells of them any more."""
    told = json.loads((world / "pretrained/tokenizer_config.json").read_text())
    assert told["model_max_length"] == 32  # of 512
    flags = ["--random-weights"] if start == "random" else ["--model", world / start]
    line = finetune_line(
        world, *flags, "--output", tmp_path / "run", "--max-seq-length", str(length)
    )
    assert main(line) == 0
    told = json.loads((tmp_path / "run/tokenizer_config.json").read_text())
    assert told["model_max_length"] == wanted
    minibert.export(tmp_path / "run", tmp_path / "alone", log=False)
    assert minibert.load(tmp_path / "alone").task.settings.max_seq_length == wanted


def test_texts_that_may_come_from_a_file_are_not_told_as_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message, _ = complaint(["predict"], 2, capsys)
    assert message == "minibert: the following arguments are required: FOLDER"


def test_a_run_that_does_not_start_leaves_no_parent_folder_either(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complaint(pretrain_line(world, "--output", tmp_path / "a/b", "--device", "toaster"), 2, capsys)
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_the_command_that_makes_one_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minibert.starts.bundled_model", lambda: None)
    line = ["finetune", "--task", "imdb", "--data", str(world / "reviews"), *TINY]
    message, _ = complaint(line, 2, capsys)
    assert "minibert pretrain --corpus" in message


def test_the_byte_that_is_not_utf8_is_counted_from_the_start(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = (world / "latin.txt").read_bytes().index(0xE9)
    line = pretrain_line(world, "--corpus", world / "latin.txt", "--output", tmp_path / "run")
    assert f"byte {place} is not UTF-8 (0xe9)" in complaint(line, 2, capsys)[0]


# --- failures that are not the caller's -----------------------------------------------------------


def test_a_full_disk_ends_with_1_and_leaves_the_checkpoint_before(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = checkpoint.save_tensors, 0

    def full(tensors: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    folder = tmp_path / "run"
    line = pretrain_line(world, "--output", folder, "--save-every", "1")
    message, err = complaint(line, 1, capsys)
    assert "no space left on the disk" in message
    assert "--resume" in message
    assert "Traceback" not in err
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000000001"]
    monkeypatch.undo()
    assert main([*line, "--resume"]) == 0
    assert "resuming from step 1" in capsys.readouterr().err


def test_a_full_disk_is_named_even_where_the_system_names_no_file(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write to an open file does

    monkeypatch.setattr("minibert.run_folder.RunFolder.append_metrics", full)
    message, _ = complaint(pretrain_line(world, "--output", tmp_path / "run"), 1, capsys)
    assert "no space left on the disk" in message
    assert "None" not in message


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_a_path_that_the_system_refuses_ends_with_2(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    message, _ = complaint(pretrain_line(world, "--output", world / "new/run"), 2, capsys)
    assert message.endswith(f": {os.strerror(number)}")
    assert str(world / "new") in message


def test_an_unexpected_error_shows_its_trace_only_with_debug(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the cat sat on\nthe keyboard")

    monkeypatch.setattr(pretraining, "build_optimizer", fail)
    line = pretrain_line(world, "--output", tmp_path / "run")
    message, err = complaint(line, 1, capsys)
    assert "RuntimeError: the cat sat on the keyboard" in message
    assert "--debug" in message
    assert "Traceback" not in err
    assert "Traceback" in complaint([*line, "--debug"], 1, capsys)[1]
    assert not (tmp_path / "run").exists()


def test_ctrl_c_outside_the_loop_ends_with_130(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "build_optimizer", interrupt)
    complaint(pretrain_line(world, "--output", tmp_path / "run"), 130, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_a_signal_of_which_a_library_makes_another_error_is_told_as_what_it_was(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    def swallow(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise RecursionError("maximum recursion depth exceeded") from None

    monkeypatch.setattr(pretraining, "build_optimizer", swallow)
    line = pretrain_line(world, "--output", tmp_path / "run")
    message, _ = complaint(line, 128 + number, capsys)
    assert "stopped by" in message
    assert not (tmp_path / "run").exists()


# --- dry runs and help ----------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "value"), [("--epochs", 4), ("--max-minutes", 1)])
def test_a_dry_run_tells_the_arithmetic_of_any_budget(
    world: Path, capsys: pytest.CaptureFixture[str], budget: str, value: int
) -> None:
    line = pretrain_line(world, "--dry-run", budget, str(value))
    at = line.index("--max-steps")
    assert main(line[:at] + line[at + 2 :]) == 0
    err = capsys.readouterr().err
    step, whole = re.search(r"(\S+) FLOP a step, (\S+) FLOP for the budget", err).groups()  # type: ignore[union-attr]
    seconds = {"--epochs": r"of about (\S+) steps each", "--max-minutes": r"about (\S+) steps"}
    steps = float(re.search(seconds[budget], err)[1].replace(",", ""))  # type: ignore[index]
    wanted = steps * (value if budget == "--epochs" else 1)
    assert float(whole) / float(step) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(
    ("documents", "parts"), [(3, "stretches of the few documents"), (6, "documents")]
)
def test_the_split_of_few_documents_tells_stretches_from_documents(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    documents: int,
    parts: str,
) -> None:
    whole = (world / "corpus.txt").read_text().split("\n\n")[:documents]
    write(tmp_path / "few.txt", "\n\n".join(whole))
    flags = ("--corpus", tmp_path / "few.txt", "--vocab-size", "48", "--nsp", "none", "--dry-run")
    assert main(pretrain_line(world, *flags)) == 0
    assert re.search(rf"split: \d+ {parts} to train on", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "budget: 3 epochs of 1 step would be few, so 20 steps (--min-steps, --epochs)"),
        (["--min-steps", "8"], "budget: 3 epochs of 1 step would be few, so 8 steps"),
        (["--min-steps", "0"], "budget: 3 epochs of 1 step\n"),
        (["--epochs", "4"], "budget: 4 epochs of 1 step\n"),
        (["--epochs", "4", "--min-steps", "6"], "budget: 4 epochs of 1 step would be few, so 6 s"),
    ],
)
def test_few_examples_are_gone_through_more_often(
    world: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    line = finetune_line(world, "--dry-run", "--batch-size", "16", *flags)
    at = line.index("--max-steps")
    assert main(line[:at] + line[at + 2 :]) == 0
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("line", [pretrain_line, finetune_line])
def test_a_dry_run_prints_the_plan_and_leaves_no_folder(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: Any
) -> None:
    assert main(line(world, "--output", tmp_path / "run", "--dry-run")) == 0
    err = capsys.readouterr().err
    assert "parameters" in err
    assert "a step takes" in err
    parts = r"memory: weights .* \+ gradients .* \+ optimiser .* \+ activations .* = "
    assert re.search(parts, err)
    figures = re.search(r"arithmetic: (\S+) FLOP a step, (\S+) FLOP for the budget", err)
    assert figures
    assert float(figures[2]) == pytest.approx(3 * float(figures[1]), rel=0.01)
    assert re.search(r"cost: \S+ hours of this machine, \d+% of them scoring; times what an", err)
    assert re.search(r"disk: at most [\d,.]+ .B, while a third checkpoint is saved", err)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_what_encoding_takes_before_it_is_done(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = pretrain_line(world, "--output", tmp_path / "run", "--dry-run")
    line[line.index("--cache-dir") + 1] = str(tmp_path / "cache")
    assert main(line) == 0
    err = capsys.readouterr().err
    told = (
        rf"encoding: about [\d.]+ M tokens, 0 MB in {tmp_path / 'cache'}, 0 s on 1 core; done now"
    )
    assert re.search(told, err)
    assert err.index("encoding: about") < err.index("tokens: written")
    assert main(line) == 0
    assert "encoding: about" not in capsys.readouterr().err


@pytest.mark.parametrize("command", list(cli._COMMANDS))
def test_help_of_every_command_ends_with_0(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: minibert {command}")
    assert err == ""
    kinds = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}
    for field in dataclasses.fields(kinds[command]) if command in kinds else ():
        assert f"--{field.name.replace('_', '-')}" in out
        first = field.metadata["help"].split()[0]
        assert first in out


@pytest.mark.parametrize("switch", ["--lowercase", "--split-chinese"])
def test_a_switch_without_a_word_neither_offers_nor_takes_one(
    switch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--corpus", "x.txt", switch, "auto"]) == 2
    assert "unknown argument auto" in capsys.readouterr().err
    assert main(["pretrain", "--help"]) == 0
    assert f"{switch}, --no-{switch[2:]}" in capsys.readouterr().out


def test_help_and_version_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"minibert {minibert.__version__}\n"
    for line in ([], ["--help"]):
        assert main(line) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in cli._COMMANDS)


JUNK = ["", "-", "--", "-x", "--nope", "-1", "--seed=", "é", "0", "1e-3", "nan", "tiny", "a b", "%"]
KNOWN = [
    "--" + field.name.replace("_", "-")
    for kind in (PretrainSettings, FinetuneSettings)
    for field in dataclasses.fields(kind)
]


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from([*cli._COMMANDS, "nonsense", ""]),
    st.lists(
        st.sampled_from([*KNOWN, "--input", "--help", "--no-compile", "--debug"])
        | st.sampled_from(JUNK)
        | st.text(max_size=5),
        max_size=6,
    ),
)
def test_any_arguments_end_with_0_or_2_and_without_a_trace(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    flags: list[str],
) -> None:
    monkeypatch.setattr(pretraining, "pretrain", lambda settings: None)
    monkeypatch.setattr(finetuning, "finetune", lambda settings: None)
    for name in cli._COMMANDS.keys() - {"pretrain", "finetune"}:
        monkeypatch.setitem(cli._COMMANDS, name, lambda values: None)
    capsys.readouterr()
    status = main([command, *flags])
    err = capsys.readouterr().err
    assert status in (0, 2)
    lines = [text for text in err.splitlines() if text.startswith("minibert: ")]
    assert len(lines) == (status == 2)
    if "--debug" not in flags:
        assert "Traceback" not in err


# --- predict and evaluate -------------------------------------------------------------------------

TEXTS = ["silver garden candle river", "storm winter castle"]


def rows_of(line: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(line) == 0
    return [json.loads(row) for row in capsys.readouterr().out.splitlines()]


def test_predict_gives_the_same_from_arguments_file_and_standard_input(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(world / "finetuned")
    rows = rows_of(["predict", folder, *TEXTS], capsys)
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        assert row["probabilities"].keys() == {"neg", "pos"}
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert row["score"] == max(row["probabilities"].values())
        assert row["probabilities"][row["prediction"]] == row["score"]
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS) + "\n")
    assert rows_of(["predict", folder, "--input", str(tmp_path / "texts.txt")], capsys) == rows
    for named in (["-"], ["--input", "-"]):
        stdin = io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode()), encoding="ascii")
        monkeypatch.setattr(sys, "stdin", stdin)
        assert rows_of(["predict", folder, *named], capsys) == rows


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            '[\n{"text": "storm"}\n]\n',
            "standard input is JSON; expected a text or an object a line",
        ),
        ("Ann B-PER\nleft O\n", "standard input holds a word and its tag a line"),
    ],
)
def test_standard_input_is_refused_where_a_file_would_be(
    world: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    named: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    message, _ = complaint(["predict", str(world / "finetuned"), "-"], 2, capsys)
    assert named in message


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_review_whose_name_is_not_utf8_ends_no_run(world: Path, tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "aclImdb")
    name = os.fsdecode(b"caf\xe9_8")
    (data / f"test/pos/{name}.txt").write_text("A storm of a film.")
    line = ["finetune", "--task", "imdb", "--data", str(data), "--model", str(world / "pretrained")]
    line += ["--max-steps", "1", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert main(line) == 0
    rows = (tmp_path / "run/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert f"test/pos/{name}" in {json.loads(row)["id"] for row in rows}


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_search_over_data_whose_name_is_not_utf8_has_its_page(
    world: Path, tmp_path: Path
) -> None:
    rows = ["text,label", *(f"river {i},{'xy'[i % 2]}" for i in range(20))]
    data = tmp_path / os.fsdecode(b"caf\xe9.csv")
    data.write_text("\n".join(rows) + "\n")
    line = ["search-settings", "--task", "classification", "--data", str(data)]
    line += ["--model", str(world / "pretrained"), "--max-steps", "1", "--device", "cpu"]
    line += ["--try-learning-rate", "1e-3", "--output", str(tmp_path / "out")]
    assert main(line) == 0
    assert "caf\\udce9.csv" in (tmp_path / "out/search.md").read_text(encoding="utf-8")


def test_closed_streams_are_told_or_left_silent(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell's `<&-` and `>&-` leave them."""
    folder = str(world / "finetuned")
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdin", None)
        message, _ = complaint(["predict", folder, "-"], 2, capsys)
        assert "standard input is closed" in message
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)
        closed.setattr(sys, "stderr", None)
        assert main(["predict", folder, "storm"]) == 0
        for stream in (sys.stdout, sys.stderr):
            stream.close()


def test_help_tells_what_columns_a_family_reads_where_none_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["finetune", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for default in ("label, of similarity score, of tagging the last", "of similarity text_pair"):
        assert f"default {default}" in said


def test_a_terminal_that_lacks_a_letter_gets_an_escape(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["text,label", *(f"river {i},{('été', 'hiver')[i % 2]}" for i in range(20))]
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    line = ["finetune", "--task", "classification", "--data", str(tmp_path / "own.csv")]
    line += ["--model", str(world / "pretrained"), "--max-steps", "1", "--device", "cpu"]
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main([*line, "--output", str(tmp_path / "run")]) == 0
    assert b"\\xe9t\\xe9" in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_help_tells_a_default_of_zero(capsys: pytest.CaptureFixture[str]) -> None:
    main(["finetune", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--seed INT [^(]*\(default 0\)", told)
    assert "(default False)" not in told and "(default None)" not in told


def test_a_notebook_and_the_command_predict_alike(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(["predict", str(world / "finetuned"), *TEXTS], capsys)
    found = minibert.load(world / "finetuned").predict(TEXTS)
    assert [dataclasses.asdict(one) for one in found] == rows


def test_predict_cleans_a_text_as_training_does(world: Path) -> None:
    model = minibert.load(world / "finetuned")
    clean, raw = model.predict(["silver garden candle", "silver<br />\n garden\0  <i>candle</i>"])
    assert raw.probabilities == clean.probabilities


@pytest.mark.parametrize(
    ("nsp", "advice"), [("nsp", r"to pair \(--nsp none trains"), ("none", "to mask, or")]
)
def test_texts_that_are_too_short_get_advice_that_can_be_followed(
    monkeypatch: pytest.MonkeyPatch, nsp: str, advice: str
) -> None:
    """As of `finetune --adapt`, which trains without pairs already and has no --nsp."""
    monkeypatch.setattr(pretraining, "held_out_examples", lambda *given: [])
    counts = SimpleNamespace(unknown_tokens=3, tokens=4)
    source: Any = SimpleNamespace(held_out=None, store=SimpleNamespace(counts=counts))
    with pytest.raises(InputError, match=f"too short {advice}.*3 of 4 tokens"):
        pretraining._held_out(source, PretrainSettings(corpus=["a.txt"], nsp=nsp))


def test_evaluate_scores_what_the_run_learnt_from_though_another_set_lies_there_now(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the sample was tried before the full set was downloaded."""
    monkeypatch.chdir(tmp_path)
    line = ["finetune", "--task", "sst2", "--model", world / "pretrained", "--output", "run"]
    assert main([*map(str, line), "--max-steps", "2", "--device", "cpu"]) == 0
    downloaded = tmp_path / "data/downloads/SST-2"
    downloaded.mkdir(parents=True)
    for name in ("train", "dev"):
        (downloaded / f"{name}.tsv").write_text("sentence\tlabel\nfine\t1\ndull\t0\n")
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 0
    found = capsys.readouterr()
    assert f"what the run learnt from, {bundled_data() / 'sst2'}" in found.err
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert json.loads(found.out)["accuracy"] == results["accuracy"]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"split": "dev"}, "'dev'"), ({"batch_size": 0}, "batch_size is 0")],
    ids=["split", "batch"],
)
def test_evaluate_in_a_notebook_refuses_what_the_command_refuses(
    world: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        minibert.evaluate(world / "finetuned", data=str(world / "reviews"), **options)


def test_a_model_is_scored_in_the_precision_it_was_trained_in(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = finetune_line(world, "--output", tmp_path / "run", "--precision", "bf16")
    assert main(line) == 0
    capsys.readouterr()
    rows = tmp_path / "rows.jsonl"
    scored = ["evaluate", tmp_path / "run", "--data", world / "reviews", "--predictions", rows]
    assert main([*map(str, scored), "--batch-size", "8"]) == 0
    assert rows.read_text() == (tmp_path / "run/predictions.jsonl").read_text()
    assert main([*map(str, scored), "--batch-size", "8", "--precision", "fp32"]) == 0
    assert rows.read_text() != (tmp_path / "run/predictions.jsonl").read_text()


def test_evaluate_gives_the_figures_of_the_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    rows = tmp_path / "rows.jsonl"
    line = ["evaluate", world / "finetuned", "--data", world / "reviews", "--predictions", rows]
    assert main([*map(str, line), "--batch-size", "8", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    results = json.loads((world / "finetuned/results.json").read_text())
    for key in ("accuracy", "f1", "matthews", "num_eval", "confusion_matrix", "task"):
        assert found[key] == results[key], key
    assert found["loss"] == pytest.approx(results["loss"], abs=1e-6)
    assert rows.read_text() == (world / "finetuned/predictions.jsonl").read_text()


# --- the run folder -------------------------------------------------------------------------------


def test_others_may_read_the_model(world: Path) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    for name in ("model.safetensors", "config.json"):
        assert (world / "pretrained" / name).stat().st_mode & 0o777 == 0o666 & ~mask


def names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {".lock"}


def test_a_pretraining_folder_holds_what_the_contract_lists(world: Path) -> None:
    folder = world / "pretrained"
    assert names_in(folder) == RUN_FILES
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() >= {
        *(
            "mlm_loss",
            "mlm_perplexity",
            "mlm_accuracy",
            "nsp_accuracy",
            "unigram_entropy",
            "mlm_bits_per_character",
        ),
        *("masked_tokens", "pairs", "task", "dataset", "num_train", "num_eval", "seconds"),
    }
    run = json.loads((folder / "run.json").read_text())
    assert run["settings"].keys() == {f.name for f in dataclasses.fields(PretrainSettings)}
    assert {"versions", "data_fingerprint", "resolved"} <= run.keys()
    rows = [row for row in read_metrics(folder) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0].keys() >= {
        *("step", "loss", "mlm_loss", "nsp_loss", "learning_rate", "grad_norm"),
        "tokens_per_second",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]


def test_a_finetuning_folder_holds_what_the_contract_lists(world: Path) -> None:
    folder = world / "finetuned"
    assert names_in(folder) == RUN_FILES | {"predictions.jsonl", "errors.txt"}
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() >= {
        *("accuracy", "f1", "task", "dataset", "num_train", "num_eval", "seconds"),
    }
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [
        f"test/{label}/{i}_{stars}" for label, stars in (("neg", 2), ("pos", 8)) for i in range(6)
    ]
    assert all(row.keys() == {"id", "text", "label", "prediction", "score"} for row in rows)
    hits = sum(row["label"] == row["prediction"] for row in rows)
    assert results["accuracy"] == hits / len(rows)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "neg", "1": "pos"}
    assert config["label2id"] == {"neg": 0, "pos": 1}
    assert config["problem_type"] == "single_label_classification"


@pytest.mark.parametrize(
    ("kind", "file", "flags"),
    [
        (
            PretrainSettings,
            {"max_seq_length": 64},
            {"recipe": "small-budget", "max_seq_length": 256},
        ),
        (PretrainSettings, {"short_length": 128}, {"max_seq_length": 256}),
        (FinetuneSettings, {"dev_data": "dev.csv"}, {"task": "classification", "data": "a.csv"}),
        (FinetuneSettings, {"adapt_epochs": 5.0}, {"task": "imdb", "adapt": ["auto"]}),
    ],
    ids=["recipe", "default", "data", "adapt"],
)
def test_a_file_is_judged_with_the_flags_in_place(
    tmp_path: Path, kind: Any, file: dict[str, Any], flags: dict[str, Any]
) -> None:
    (tmp_path / "own.json").write_text(json.dumps(file))
    given = {"config": str(tmp_path / "own.json")} | flags
    if kind is PretrainSettings:
        given["corpus"] = ["a.txt"]
    settings = cli.settings_from(given, kind)
    for name, value in {**file, **flags}.items():
        assert name == "recipe" or getattr(settings, name) == value


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"task": "imdb", "epochs": 2}', encoding="utf-8-sig")
    found = cli.settings_from({"config": str(tmp_path / "own.json")}, FinetuneSettings)
    assert found.to_dict()["epochs"] == 2


@pytest.mark.parametrize(
    ("file", "flags", "left"),
    [
        ({"adapt_epochs": 2.0}, {"adapt_minutes": 3.0}, (None, 3.0)),
        ({"adapt_minutes": 3.0}, {"adapt_epochs": 2.0}, (2.0, None)),
        ({"adapt_epochs": 2.0}, {"max_minutes": 30.0}, (None, None)),
        ({"adapt_minutes": 3.0}, {"max_minutes": 30.0}, (None, 3.0)),
        ({"adapt_epochs": 2.0}, {"epochs": 1.0}, (2.0, None)),
    ],
)
def test_a_flag_replaces_the_budget_of_an_adaptation_in_a_file(
    tmp_path: Path, file: dict[str, Any], flags: dict[str, Any], left: tuple[float | None, ...]
) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"task": "imdb", "adapt": ["auto"], **file}))
    found = cli.settings_from({"config": str(tmp_path / "own.json"), **flags}, FinetuneSettings)
    assert isinstance(found, FinetuneSettings)
    assert (found.adapt_epochs, found.adapt_minutes) == left


@pytest.mark.parametrize(
    ("file", "flags"),
    [
        ({"nsp_share": 0.2}, {"nsp": "none"}),
        ({"vocab_size": 100, "lowercase": False}, {"tokenizer": "minibert-mini-en"}),
        ({"preset": "tiny", "norm": "pre", "init": "reference"}, {"model": "minibert-mini-en"}),
        ({"tokenizer": "minibert-mini-en", "num_layers": 3}, {"model": "minibert-mini-en"}),
        ({"short_length": 64, "short_share": 0.5}, {"max_seq_length": 64}),
        ({"decay_ratio": 0.2}, {"schedule": "linear"}),
    ],
)
def test_a_flag_replaces_what_has_no_use_beside_it_in_a_file(
    tmp_path: Path, file: dict[str, Any], flags: dict[str, Any]
) -> None:
    """Nothing on a command line takes a setting of the file back."""
    (tmp_path / "own.json").write_text(json.dumps({"corpus": ["a.txt"], "seed": 3, **file}))
    found = cli.settings_from({"config": str(tmp_path / "own.json"), **flags}, PretrainSettings)
    expected = PretrainSettings.from_dict({"corpus": ["a.txt"], "seed": 3, **flags})
    assert found.to_dict() == expected.to_dict()
    if "model" in flags:  # whose weights are redrawn, so that how they are drawn stays
        redrawn = {"random_weights": True, "init": "reference"}
        (tmp_path / "drawn.json").write_text(json.dumps({"corpus": ["a.txt"], **redrawn}))
        drawn = cli.settings_from(
            {"config": str(tmp_path / "drawn.json"), **flags}, PretrainSettings
        )
        assert isinstance(drawn, PretrainSettings)
        assert drawn.init == "reference"
    both = {"config": str(tmp_path / "own.json"), **flags, **file}
    with pytest.raises(InputError, match="has no use with|must be at least 8 and below|goes with"):
        cli.settings_from(both, PretrainSettings)  # typed side by side they stay a fault


@pytest.mark.parametrize(
    ("kind", "given"), [(PretrainSettings, {"corpus": ["-"]}), (FinetuneSettings, {"task": "imdb"})]
)
def test_a_dry_run_goes_on_with_nothing(kind: Any, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--resume goes on with a run, and --dry-run keeps none"):
        kind.from_dict({**given, "dry_run": True, "resume": True})
    kind.from_dict({**given, "dry_run": True, "resume": "auto"})


def test_a_recipe_stands_between_the_defaults_and_what_is_given(
    world: Path, tmp_path: Path
) -> None:
    parts = recipe("small-budget")
    (tmp_path / "own.json").write_text('{"learning_rate": 0.5, "batch_size": 7}')
    (tmp_path / "run.json").write_text('{"command": "pretrain", "settings": {"batch_size": 7}}')
    both = {"recipe": "small-budget", "config": str(tmp_path / "run.json")}
    with pytest.raises(InputError, match="leave --recipe out"):
        cli.settings_from({**both, "corpus": ["-"]}, PretrainSettings)
    given = {"recipe": "small-budget", "config": str(tmp_path / "own.json"), "batch_size": 9}
    found = cli.settings_from({**given, "corpus": ["-"]}, PretrainSettings).to_dict()
    plain = PretrainSettings(corpus=["-"]).to_dict()
    assert (found["learning_rate"], found["batch_size"]) == (0.5, 9)
    for name, value in plain.items():
        if name not in ("learning_rate", "batch_size"):
            assert found[name] == parts.get(name, value), name
    flags = ["--output", tmp_path / "run", "--recipe", "small-budget"]
    assert main(pretrain_line(world, *flags)) == 0
    run = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert (run["optimizer"], run["mask_prob"], run["nsp_share"]) == ("muon", 0.3, 0.1)
    assert run["max_seq_length"] < parts["short_length"] and run["short_length"] is None
    assert recipe("small-budget", {"max_seq_length": parts["short_length"] + 1}) == parts
    without = {k: v for k, v in parts.items() if k not in ("short_length", "short_share")}
    assert recipe("small-budget", {"short_length": None}) == without
    longest = {"max_seq_length": parts["short_length"]}
    assert recipe("small-budget", longest) == without
    own = {**longest, "short_length": parts["short_length"] // 2}  # in the same share of it
    assert recipe("small-budget", own) == parts
    (tmp_path / "run.json").write_text(json.dumps({**without, **own, "short_share": 0.6}))
    shorter = {"short_length": 16, "max_seq_length": 32, "corpus": ["-"]}
    kept = cli.settings_from({"config": str(tmp_path / "run.json"), **shorter}, PretrainSettings)
    assert isinstance(kept, PretrainSettings) and kept.short_share == 0.6
    unpaired = {k: v for k, v in parts.items() if k != "nsp_share"}
    assert recipe("small-budget", {"nsp": "none"}) == unpaired
    alone = cli.settings_from(
        {"recipe": "small-budget", "nsp": "none", "corpus": ["-"]}, PretrainSettings
    )
    assert isinstance(alone, PretrainSettings) and alone.nsp_share is None
    in_notebook = {"recipe": "small-budget", "output": str(tmp_path / "notebook")}
    written = {k: v for k, v in run.items() if k not in ("output", *parts)}
    found = {k: v for k, v in run.items() if k in ("batch_size", "max_seq_length")}
    minibert.pretrain(**written, **found, **in_notebook)
    again = json.loads((tmp_path / "notebook/run.json").read_text())["settings"]
    assert {**again, "output": run["output"]} == run


def test_the_recipe_for_going_on_goes_with_a_model(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", tmp_path / "run", "--recipe", "continued"]
    assert main(pretrain_line(world, *flags)) == 2
    assert "--recipe continued goes with --model" in capsys.readouterr().err
    with pytest.raises(InputError, match="--recipe continued goes with --model"):
        minibert.pretrain(corpus=["-"], recipe="continued")
    (tmp_path / "own.json").write_text('{"model": "m", "mask_prob": 0.2}')
    given = {"recipe": "continued", "config": str(tmp_path / "own.json"), "corpus": ["-"]}
    found = cli.settings_from(given, PretrainSettings).to_dict()
    assert found.items() >= {**recipe("continued"), "mask_prob": 0.2}.items()


def test_a_file_may_write_values_as_json_does(tmp_path: Path) -> None:
    flags = {"class_weights": '{"né": 2.5}', "positive_label": "1", "adapt": ["own.txt"]}
    (tmp_path / "file.json").write_text(
        '{"class_weights": {"né": 2.5}, "positive_label": 1, "adapt": "own.txt"}', encoding="utf-8"
    )
    given = {"task": "classification", "data": "rows.csv"}
    config = {"config": str(tmp_path / "file.json")}
    expected = cli.settings_from({**given, **flags}, FinetuneSettings)
    assert cli.settings_from({**given, **config}, FinetuneSettings) == expected
    python = {"class_weights": {"né": 2.5}, "positive_label": 1, "adapt": Path("own.txt")}
    assert FinetuneSettings.from_dict({**given, **python}) == expected
    counted = {**given, "class_weights": {np.int64(1): np.float32(0.5)}}
    assert FinetuneSettings.from_dict(counted).class_weights == '{"1": 0.5}'
    labelled = FinetuneSettings.from_dict({**given, "positive_label": np.int64(1)})
    assert labelled.positive_label == "1"
    spellings = ('{"a":2}', '{"a": 2.0}', {"a": 2}, {"a": np.float32(2)}, '{"a": "2"}')
    for spelling in spellings:
        settings = FinetuneSettings.from_dict({**given, "class_weights": spelling})
        assert settings.class_weights == '{"a": 2}'
    (tmp_path / "file.json").write_text('{"corpus": "wiki.txt"}')
    pretraining = cli.settings_from(config, PretrainSettings)
    assert pretraining == PretrainSettings(corpus=["wiki.txt"])
    for name, wrong in (("positive_label", True), ("class_weights", [1.0]), ("adapt", 3)):
        with pytest.raises(InputError, match=f"{name} is {re.escape(repr(wrong))}, expected"):
            FinetuneSettings.from_dict({**given, name: wrong})


def test_the_settings_in_run_json_start_the_same_run_again(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world / "pretrained"
    line = ["pretrain", "--config", str(folder / "run.json"), "--output", str(tmp_path / "again")]
    assert main(line) == 0
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (folder / weights).read_bytes()


# --- others read the folders ----------------------------------------------------------------------


def test_transformers_opens_a_finetuned_folder_with_equal_outputs(world: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = world / "finetuned"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        shares = theirs(**batch).logits.softmax(-1).numpy()
    ours = minibert.load(folder).probabilities(TEXTS)
    np.testing.assert_allclose(ours, shares, atol=1e-5)
    assert theirs.config.id2label == {0: "neg", 1: "pos"}


def test_transformers_opens_a_pretrained_folder_with_equal_outputs(world: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = world / "pretrained"
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, ["river bridge", "miller"], padding=True, return_tensors="pt")
    ours = minibert.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected, found = theirs(**batch), ours(**batch)
    real = batch["attention_mask"].bool()
    ours, theirs = found.last_hidden_state[real], expected.last_hidden_state[real]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    ids = minibert.WordPiece.from_pretrained(folder).ids(TEXTS)
    assert tokenizer(TEXTS, add_special_tokens=False)["input_ids"] == ids
