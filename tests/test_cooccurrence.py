"""Word vectors from shared text: who is close to whom, what stays random, repeatability."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from samples import one_thread, write_corpus  # noqa: F401

from minibert import cooccurrence as module
from minibert.config import preset
from minibert.cooccurrence import cooccurrence_vectors
from minibert.examples import Documents, Permutation
from minibert.heads import BertForPreTraining
from minibert.initialisation import word_vectors
from minibert.pretraining import pretrain

TOPICS, WORDS, FIRST = 6, 8, 5  # topics, words of each, the first id that is no special token
VOCAB = FIRST + TOPICS * WORDS + 1  # the last token never occurs


def documents_of(corpus: list[list[int]]) -> Documents:
    """Documents of one sentence each."""
    ends = np.cumsum([0, *map(len, corpus)])
    store: Any = SimpleNamespace(
        tokens=np.concatenate([np.array(d, np.uint16) for d in corpus]),
        sentence_starts=ends,
        document_starts=np.arange(len(corpus) + 1),
    )
    order = Permutation(len(corpus), 0)
    return Documents(store, store.document_starts, order, range(len(corpus)))


def topical(documents: int = 300, length: int = 12, seed: int = 0) -> Documents:
    """A document draws its words from one topic, and some from all."""
    rng = np.random.default_rng(seed)
    corpus = []
    for number in range(documents):
        own = FIRST + number % TOPICS * WORDS + rng.integers(WORDS, size=length)
        other = FIRST + rng.integers(TOPICS * WORDS, size=length // 4)
        corpus.append([*own.tolist(), *other.tolist()])
    return documents_of(corpus)


def test_words_that_share_documents_are_close_and_others_are_not() -> None:
    vectors, _ = cooccurrence_vectors(topical(), VOCAB, TOPICS - 1, 0)
    words = vectors[FIRST:-1]
    likeness = words @ words.T
    topic = torch.arange(TOPICS * WORDS) // WORDS
    same = topic[:, None] == topic
    apart = same & ~torch.eye(len(topic), dtype=torch.bool)
    assert likeness[apart].min() > likeness[~same].max()


def test_vectors_have_unit_length_but_for_tokens_that_do_not_occur() -> None:
    vectors, occurs = cooccurrence_vectors(topical(), VOCAB, 16, 0)
    assert occurs.tolist() == [False] * FIRST + [True] * (TOPICS * WORDS) + [False]
    assert torch.allclose(vectors.norm(dim=1), occurs.float(), atol=1e-5)


def test_vectors_are_a_function_of_text_and_seed() -> None:
    first, again, other = (
        cooccurrence_vectors(topical(), VOCAB, TOPICS - 1, seed)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    # Another start of the iteration finds the same directions, up to their signs.
    assert torch.allclose((first @ first.T), (other @ other.T), atol=0.05)


@pytest.mark.parametrize("width", [4, VOCAB - 1, 200])
def test_any_width_gives_finite_vectors(width: int) -> None:
    vectors, _ = cooccurrence_vectors(topical(documents=8), VOCAB, width, 0)
    assert vectors.shape == (VOCAB, width)
    assert torch.isfinite(vectors).all()


def test_long_documents_are_parted_and_only_so_much_text_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_STRETCH_TOKENS", 4)
    monkeypatch.setattr(module, "_MOST_TOKENS", 14)
    rows, columns = module._occurrences(documents_of([[5, 5, 6, 7, 8, 9]] * 4))
    assert rows.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4]
    assert columns.tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5]


def test_embeddings_begin_at_the_vectors_and_keep_the_length_of_random_ones() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(preset("tiny", vocab_size=VOCAB + 2))
    before = model.bert.embeddings.word.weight.detach().clone()
    vectors, occurs = cooccurrence_vectors(topical(), VOCAB, 128, 0)
    word_vectors(model, vectors, occurs)
    after = model.bert.embeddings.word.weight.detach()
    left = torch.cat([~occurs, torch.ones(2, dtype=torch.bool)])
    assert torch.equal(after[left], before[left])
    cosine = torch.cosine_similarity(after[:VOCAB][occurs], vectors[occurs])
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)
    drawn = before[FIRST:].norm(dim=1).mean().item()
    assert after[:VOCAB][occurs].norm(dim=1).mean().item() == pytest.approx(drawn, rel=0.05)


def test_pretraining_begins_from_them_when_asked(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **{"corpus": [str(write_corpus(tmp_path / "a.txt"))], "cache_dir": str(tmp_path / "cache")},
        **{"preset": "tiny", "vocab_size": 60, "max_seq_length": 32, "batch_size": 8},
        **{"max_steps": 1, "learning_rate": 1e-12, "device": "cpu", "precision": "fp32"},
    }
    begun = {
        init: pretrain(output=str(tmp_path / init), init=init, **options).model
        for init in ("neighbours", "cooccurrence")
    }
    weights = {init: model.state_dict() for init, model in begun.items() if model}
    name = "bert.embeddings.word.weight"
    differ = {
        key
        for key, value in weights["neighbours"].items()
        if not torch.allclose(value, weights["cooccurrence"][key], atol=1e-8)
    }
    assert differ == {name}
    specials = slice(0, 5)
    both = [weights[init][name][specials] for init in weights]
    assert torch.allclose(*both, atol=1e-8)
