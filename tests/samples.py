"""Small things that several test files share: texts, reviews, and data and objectives for loops."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minibert.config import BertConfig
from minibert.corpus import ReaderOptions
from minibert.documents import split_documents
from minibert.examples import ExampleBuilder, ExampleOptions
from minibert.optim import Budget
from minibert.pretraining import pretrain
from minibert.runtime import Runtime
from minibert.store import open_store
from minibert.train import ONE_PASS, Loop, LoopSettings, StepData, Term
from minibert.vocabulary import corpus_vocabulary

NOUNS = "storm river bridge miller castle garden market winter silver candle harbor valley".split()
CPU = Runtime(torch.device("cpu"), "fp32")
# What differs between two runs that are otherwise the same.
TIME_FIELDS = ("seconds", "tokens_per_second", "mfu")


def corpus_text(documents: int = 24, sentences: int = 6, seed: int = 0) -> str:
    """Documents of made-up sentences, one a line."""
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choice(NOUNS) for _ in range(rng.randint(5, 9))) + " ."

    return "\n\n".join("\n".join(sentence() for _ in range(sentences)) for _ in range(documents))


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def write_corpus(path: Path, **options: Any) -> Path:
    path.write_text(corpus_text(**options) + "\n", encoding="utf-8")
    return path


def builder_of(folder: Path, documents: int, max_seq_length: int) -> ExampleBuilder:
    """Pairs of the training side of so many made-up documents, by a vocabulary of 60."""
    files, options = [write_corpus(folder / "corpus.txt", documents=documents)], ReaderOptions()
    tokenizer = corpus_vocabulary(files, 60, options, True, True, folder / "cache")
    store = open_store(files, tokenizer, options, folder / "cache", num_processes=1)
    training, _ = split_documents(store, "nsp")
    return ExampleBuilder(store, tokenizer, training, ExampleOptions(max_seq_length=max_seq_length))


def cut_to_positions(model: str, folder: Path, positions: int) -> str:
    """A copy of a model folder that has so many positions."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("position_embeddings.weight"))
    tensors[name] = tensors[name][:positions].clone()
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def quick_model(folder: Path) -> str:
    """A model folder after two steps of pretraining: one layer of 64, 64 tokens."""
    run = pretrain(
        corpus=[str(write_corpus(folder / "corpus.txt"))],
        **{"num_layers": 1, "hidden_size": 64, "vocab_size": 60, "max_seq_length": 64},
        **{"max_steps": 2, "device": "cpu", "precision": "fp32"},
        **{"output": str(folder / "model"), "cache_dir": str(folder / "cache")},
    )
    return str(run.folder)


def size_of(model: Path) -> tuple[int, int]:
    config = BertConfig.from_pretrained(model)
    return config.num_hidden_layers, config.hidden_size


def write_reviews(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """The layout of aclImdb: `count` reviews for each split and class, with tell-tale words."""
    rng = random.Random(seed)
    tells = {"pos": ["silver", "garden", "candle"], "neg": ["storm", "winter", "castle"]}
    for split in ("train", "test"):
        for label, words in tells.items():
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                text = [rng.choice(words if rng.random() < 0.7 else NOUNS) for _ in range(6 + i)]
                stars = 8 if label == "pos" else 2
                (place / f"{i}_{stars}.txt").write_text(" ".join(text), encoding="utf-8")
    return folder


class Repeated:
    """Steps handed out in turn, again and again; all of them are an epoch."""

    def __init__(self, steps: list[StepData]) -> None:
        self.steps, self.position = steps, 0

    @property
    def epochs_done(self) -> float:
        return self.position / len(self.steps)

    def take(self) -> StepData:
        self.position += 1
        return self.steps[(self.position - 1) % len(self.steps)]

    def state(self) -> dict[str, int]:
        return {"position": self.position}

    def seek(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def line_steps(sizes: list[int], seed: int = 0) -> list[StepData]:
    """Steps of points (x, y) for a linear model, one for each size."""
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for size in sizes:
        x = torch.randn(size, 3, generator=generator)
        batch = {"x": x, "y": x.sum(-1) + 1}
        steps.append(StepData([batch], {"fit": size}, [3] * size, 4 * size))
    return steps


def squares(model: Callable[..., Tensor], batch: Any) -> dict[str, Term]:
    """Squared error of a linear model, an objective that has nothing to do with BERT."""
    error = model(batch["x"]).squeeze(-1) - batch["y"]
    return {"fit": Term((error**2).sum(), torch.tensor(len(error)), (error.abs() < 0.1).sum())}


def make_line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def make_loop(model: nn.Module, data: Any, **options: Any) -> Loop:
    """A loop with quiet defaults: squares, SGD, no folder, an evaluation of nothing."""
    given = {
        "objective": squares,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.0),
        "runtime": CPU,
        "folder": None,
        "evaluate": lambda: {"loss": 0.0},
        "forward": None,
        "utilisation": None,
        "passes": ONE_PASS,
    }
    parts = {key: options.pop(key, value) for key, value in given.items()}
    if "budget" not in options:
        options["budget"] = Budget(max_steps=options.pop("max_steps"))
    options.setdefault("learning_rate", 0.01)
    return Loop(model, data, settings=LoopSettings(**options), **parts)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIME_FIELDS} for row in rows]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads; and commands set determinism for good."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    """Kernels part their work among threads, whatever share of the cores the tests have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def make_model_folder(folder: Path, seed: int = 0) -> Path:
    """A pretrained model in the published layout: two layers of width 32, a word for each NOUN."""
    from minibert.config import BertConfig
    from minibert.heads import BertForPreTraining
    from minibert.tokenizer import WordPiece

    torch.manual_seed(seed)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *NOUNS]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    WordPiece.from_pretrained(folder).save(folder)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForPreTraining(config)
    with torch.no_grad():  # biases are not 0, norms not 1
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder
