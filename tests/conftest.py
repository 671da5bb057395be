"""Fixtures that several test files share: a network small enough to build in every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from own_tokens import FIRST, tokenizer_of
from torch import Tensor

from minibert.config import BertConfig
from minibert.machine import num_cores
from minibert.tokenizer import WordPiece


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of minutes wait until they are asked for."""
    if "slow" not in config.getoption("-m"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run it with -m slow"))


@pytest.fixture(autouse=True, scope="session")
def _share_of_the_cores() -> None:
    """Test processes side by side share the cores; more threads than cores wait for each other."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if processes > 1:
        torch.set_num_threads(max(1, num_cores() // processes))


@pytest.fixture(autouse=True)
def _same_random_state() -> None:
    """Every test begins from the same random state, so that a failure repeats."""
    torch.manual_seed(0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder of this test's own."""
    return tmp_path / "cache"


@pytest.fixture
def tiny_config() -> BertConfig:
    """Two layers of width 32, 80 words, 40 positions."""
    return BertConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )


@pytest.fixture
def padded_batch() -> dict[str, Tensor]:
    """Three sequences of 12, 7 and 4 tokens in (3, 12), each with two segments."""
    ids = torch.randint(1, 80, (3, 12))
    mask = torch.arange(12) < torch.tensor([12, 7, 4])[:, None]
    segments = (torch.arange(12) >= torch.tensor([8, 5, 3])[:, None]) & mask
    return {
        "input_ids": ids * mask,
        "token_type_ids": segments.long(),
        "attention_mask": mask.long(),
    }


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    """30,000 whole words."""
    folder = tmp_path_factory.mktemp("words")
    return tokenizer_of(folder, [f"w{i}" for i in range(30_000 - FIRST)])


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    """Ids 5 to 104 begin a word, 105 to 204 go on with one."""
    folder = tmp_path_factory.mktemp("pieces")
    return tokenizer_of(folder, [f"w{i}" for i in range(100)] + [f"##p{i}" for i in range(100)])
