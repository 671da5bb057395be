"""Prediction: ours against the pipeline of transformers, texts in and labels out.

    python -m benchmarks --only prediction
    python -m benchmarks.prediction runs/imdb --data aclImdb_v1.tar.gz    # labels unchanged

The pipeline is `transformers.pipeline("text-classification", batch_size=16)`, as it comes and in
bf16; ours is `minibert.load(folder, precision=...).predict(texts)`. Both read the same folder: 6
layers of 384 with random weights and a vocabulary of the bundled text filled up to 30,522. Texts
are cut from the bundled reviews, lognormal in length with a mean of about 60 % of 256 tokens;
tokenising counts.

Random weights say nothing about how often a precision changes a label; `python -m
benchmarks.prediction RUN --data DATA` prints that share for a fine-tuned run folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import minibert
from benchmarks.report import told_in_a_line
from benchmarks.turns import Timing, Variant, take_turns
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import bundled_data
from minibert.flops import measure_peak_flops, training_flops
from minibert.heads import BertForSequenceClassification
from minibert.runtime import start_runtime
from minibert.settings import FinetuneSettings
from minibert.tasks.classification import ClassificationTask
from minibert.tasks.labelled_sets import read_imdb
from minibert.tasks.splits import limit_examples
from minibert.tokenizer import WordPiece, train_wordpiece

UNIT = "examples"
WORKS = {"mixed-256": 128}  # texts in a step
LONGEST = 256  # tokens, special ones included
CONFIG = BertConfig(
    vocab_size=30_522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=LONGEST,
    id2label={0: "neg", 1: "pos"},
)


def prepare(folder: Path, num_texts: int) -> None:
    """Writes the model, its tokenizer, the texts and their lengths in tokens."""
    reviews = read_imdb(bundled_data() / "imdb")
    words = " ".join(e.text for e in (*reviews.train, *(reviews.test or ()))).split()
    trained = train_wordpiece(lambda: iter([" ".join(words)]), CONFIG.vocab_size, exact=False)
    filler = [f"[unused{i}]" for i in range(CONFIG.vocab_size - trained.vocab_size)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{token}\n" for token in (*trained.tokens, *filler)))
    tokenizer = WordPiece.from_pretrained(folder)
    tokenizer.save(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(CONFIG).save_pretrained(folder)

    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(np.log(0.56 * LONGEST), 0.5, num_texts))
    sizes = drawn.clip(8, LONGEST).astype(int) - 2  # without [CLS] and [SEP]
    ends = np.cumsum([len(ids) for ids in tokenizer.ids(words)])
    texts = []
    for size in sizes.tolist():
        first = int(rng.integers(len(words) - LONGEST))
        before = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, before + size, side="right"))
        texts.append(" ".join(words[first : max(last, first + 1)]))
    lengths = [min(len(ids) + 2, LONGEST) for ids in tokenizer.ids(texts)]
    (folder / "texts.json").write_text(json.dumps({"texts": texts, "lengths": lengths}))


class _Work:
    """The texts of a prepared folder, all predicted in every step."""

    def __init__(self, folder: str) -> None:
        content = json.loads((Path(folder) / "texts.json").read_text())
        self.texts: list[str] = content["texts"]
        self.done: dict[str, float] = {
            "tokens": sum(content["lengths"]),
            "units": len(self.texts),
            "flops": training_flops(CONFIG, content["lengths"]) / 3,  # the forward is a third
        }


class Ours(_Work):
    """`minibert.load(...).predict(...)`."""

    def __init__(self, folder: str, precision: str) -> None:
        super().__init__(folder)
        self.predictor = minibert.load(folder, device="cpu", precision=precision)

    def step(self) -> dict[str, float]:
        self.predictor.predict(self.texts)
        return dict(self.done)


class Pipeline(_Work):
    """The pipeline of transformers."""

    def __init__(self, folder: str, dtype: str) -> None:
        import transformers

        super().__init__(folder)
        self.pipeline: Any = transformers.pipeline(
            "text-classification",
            model=folder,
            device="cpu",
            batch_size=16,
            dtype=getattr(torch, dtype),
        )

    def step(self) -> dict[str, float]:
        found = self.pipeline(self.texts, truncation=True, max_length=LONGEST)
        assert len(found) == len(self.texts)
        return dict(self.done)


def variants(folder: Path) -> list[Variant]:
    """The rows of the table, for a prepared folder."""
    here, path = __spec__.name, str(folder)
    rows = [
        Variant(f"pipeline {name}", f"{here}:Pipeline", {"folder": path, "dtype": dtype})
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
    ]
    return rows + [
        Variant(f"minibert {name}", f"{here}:Ours", {"folder": path, "precision": name})
        for name in ("fp32", "bf16", "int8")
    ]


def time_rows(rounds: int, num_texts: int) -> list[Timing]:
    """Times every row; each step predicts all texts."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), num_texts)
        return take_turns(variants(Path(name)), rounds, warmup=1)


def measure(name: str, rounds: int, texts: list[Path]) -> dict[str, Any]:
    """All rows in turns; ready for JSON. The texts are made from the bundled ones."""
    runtime = start_runtime("cpu", "auto", deterministic=False)
    timings = time_rows(rounds, WORKS[name])
    peak = measure_peak_flops(CONFIG, 4096, runtime)
    return {"unit": UNIT, "peak_flops": peak, "timings": [asdict(t) for t in timings]}


def unchanged_labels(run: Path, data: str | None, limit: int) -> dict[str, tuple[float, float]]:
    """Share of labels as in fp32, and accuracy, of each precision on the IMDb test texts.

    Raises:
        InputError: the run or its data cannot be used, or it tells no classes.
    """
    loaded = {name: minibert.load(run, "cpu", name) for name in ("fp32", "bf16", "int8")}
    learnt = loaded["fp32"].task
    task = ClassificationTask(FinetuneSettings(task="imdb", data=data))
    if not isinstance(learnt, ClassificationTask) or set(learnt.labels) != set(task.labels):
        raise InputError(f"{run} is of {learnt.name}; expected a run of finetune.py --task imdb")
    test = task.read(task.find_data()).test
    assert test is not None
    examples = limit_examples(task, test, limit)
    texts = [e.text for e in examples]
    labels = np.array([learnt.labels.index(str(e.label)) for e in examples])
    answers = {name: predictor.probabilities(texts).argmax(1) for name, predictor in loaded.items()}
    return {
        precision: (float((found == answers["fp32"]).mean()), float((found == labels).mean()))
        for precision, found in answers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Labels of int8 and bf16 against those of fp32.")
    parser.add_argument("run", type=Path, help="run folder of finetune.py --task imdb")
    parser.add_argument("--data", help="its data; default: what the task finds by itself")
    parser.add_argument("--limit", type=int, default=25_000, help="test texts, at most")
    args = parser.parse_args()
    with told_in_a_line("prediction"):
        found = unchanged_labels(args.run, args.data, args.limit)
    print("| | labels as in fp32 | accuracy |\n|---|---|---|")
    for precision, (same, accuracy) in found.items():
        print(f"| {precision} | {same:.2%} | {accuracy:.2%} |")


if __name__ == "__main__":
    main()
