"""A tiny run must learn what is in its text, and hand it on to a task."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from samples import one_thread  # noqa: F401

from minibert.finetuning import finetune
from minibert.pretraining import pretrain
from minibert.runs import RunResult

TOPICS, CYCLE = 8, 4  # topics, and words of each; a word is followed by the next of its cycle
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SEED = 0


def word(topic: int, place: int) -> str:
    return "abcdefgh"[topic] + "klmnopqrstu"[place % CYCLE]


def sentence(rng: random.Random, topic: int) -> str:
    start, length = rng.randrange(CYCLE), rng.randint(4, 6)
    return " ".join(word(topic, start + i) for i in range(length)) + " ."


def write_world(folder: Path) -> None:
    """A corpus, a vocabulary of its words, and reviews whose class is in their topics.

    Sentences run through the cycle of their document's topic: a masked word follows from its
    neighbours, and a sentence of another document is mostly one of another topic.
    """
    rng = random.Random(1)
    documents = []
    for number in range(300):
        sentences = [sentence(rng, number % TOPICS) for _ in range(rng.randint(6, 10))]
        documents.append("\n".join(sentences))
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    words = [word(t, p) for t in range(TOPICS) for p in range(CYCLE)]
    (folder / "words").mkdir()
    (folder / "words/vocab.txt").write_text("\n".join([*SPECIALS, ".", *words]) + "\n")
    for split, count in (("train", 60), ("test", 60)):
        for label in ("neg", "pos"):
            place = folder / "reviews" / split / label
            place.mkdir(parents=True)
            for i in range(count):
                own = range(TOPICS // 2) if label == "neg" else range(TOPICS // 2, TOPICS)
                text = " ".join(sentence(rng, rng.choice(own)) for _ in range(3))
                (place / f"{i}_{2 if label == 'neg' else 9}.txt").write_text(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


def pretrained_in(world: Path, seed: int = SEED) -> RunResult:
    return pretrain(
        corpus=[str(world / "corpus.txt")],
        tokenizer=str(world / "words"),
        output=str(world / f"pretrained-{seed}"),
        cache_dir=str(world / "cache"),
        one_sentence_per_line=True,
        preset="tiny",
        max_steps=350,
        batch_size=32,
        max_seq_length=24,
        learning_rate=1e-3,
        dropout=0.0,
        seed=seed,
        log_every=50,
        eval_every=100,
        device="cpu",
        precision="fp32",
    )


def finetuned_in(world: Path, start: Path, seed: int = SEED) -> RunResult:
    return finetune(
        task="imdb",
        data=str(world / "reviews"),
        model=str(start),
        output=str(world / f"finetuned-{seed}"),
        max_seq_length=32,
        batch_size=16,
        epochs=4.0,
        learning_rate=5e-4,
        seed=seed,
        device="cpu",
        precision="fp32",
    )


@pytest.fixture(scope="module")
def pretrained(world: Path) -> RunResult:
    return pretrained_in(world)


def test_pretraining_learns_words_from_their_neighbours(pretrained: RunResult) -> None:
    figures = pretrained.figures
    assert figures["masked_tokens"] > 100
    assert figures["mlm_loss"] < 0.55 * figures["unigram_entropy"]


def test_pretraining_learns_which_sentence_follows(pretrained: RunResult) -> None:
    figures = pretrained.figures
    assert figures["pairs"] >= 30
    assert 0.2 < figures["random_pairs"] < 0.8
    assert figures["nsp_accuracy"] >= 0.8


def test_finetuning_learns_a_task_from_it(world: Path, pretrained: RunResult) -> None:
    figures = finetuned_in(world, pretrained.folder).figures
    assert figures["num_eval"] == 120
    assert figures["accuracy"] >= 0.85


if __name__ == "__main__":  # settings are chosen so that every seed passes with room
    import tempfile

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_world(Path(name))
        for number in range(3):
            run = pretrained_in(Path(name), number)
            finetuned_in(Path(name), run.folder, number)
