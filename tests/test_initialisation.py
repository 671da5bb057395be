"""The first weights: where heads look, what stays random, what the output bias begins at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import one_thread  # noqa: F401

from minibert.config import BertConfig, preset
from minibert.heads import BertForPreTraining
from minibert.initialisation import neighbour_attention, unigram_bias

LENGTH = 64


def model_of(config: BertConfig) -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(config).eval()


def first_attention(model: BertForPreTraining) -> torch.Tensor:
    """Attention of the first layer on random words, (H, T, T)."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, config.vocab_size, (1, LENGTH), generator=generator)[0]
    x = model.bert.embeddings(ids, torch.zeros_like(ids), torch.arange(LENGTH))
    query, key, _ = model.bert.layers[0].attention.qkv(x).chunk(3, dim=-1)
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    query, key = (t.view(LENGTH, heads, size).transpose(0, 1) for t in (query, key))
    return (query @ key.transpose(1, 2) / size**0.5).softmax(-1)


@pytest.mark.parametrize("name", ["tiny", "mini", "small"])
@torch.no_grad()
def test_first_heads_look_at_the_words_next_to_each_word(name: str) -> None:
    model = model_of(preset(name, vocab_size=200))
    even = first_attention(model)
    neighbour_attention(model)
    attention = first_attention(model)
    offsets = (-1, 1, -2, 2)[: model.config.num_attention_heads]
    for head, offset in enumerate(offsets):
        inner = range(2, LENGTH - 2)
        share = np.mean([attention[head, i, i + offset].item() for i in inner])
        before = np.mean([even[head, i, i + offset].item() for i in inner])
        assert before < 0.05
        assert share > 0.4
    for head in range(len(offsets), model.config.num_attention_heads):
        assert attention[head].max() < 0.2


def test_all_but_positions_and_first_queries_and_keys_stays_as_drawn() -> None:
    config = preset("tiny", vocab_size=200)
    drawn, changed = model_of(config), model_of(config)
    neighbour_attention(changed)
    weights = drawn.state_dict()
    different = {k for k, v in changed.state_dict().items() if not torch.equal(v, weights[k])}
    assert different == {"bert.embeddings.position.weight", "bert.layers.0.attention.qkv.weight"}
    values = slice(2 * config.hidden_size, None)
    name = "bert.layers.0.attention.qkv.weight"
    assert torch.equal(changed.state_dict()[name][values], weights[name][values])


def test_positions_keep_their_scale_and_tell_every_place_apart() -> None:
    model = model_of(preset("mini", vocab_size=200))
    neighbour_attention(model)
    table = model.bert.embeddings.position.weight.detach()
    assert table.std().item() == pytest.approx(2 * model.config.initializer_range, rel=0.1)
    distances = torch.cdist(table, table) + torch.eye(len(table)) * 9
    assert distances.min() > 0.1 * table.norm(dim=1).mean()


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(vocab_size=30, hidden_size=2, num_attention_heads=1, num_hidden_layers=1),
        BertConfig(vocab_size=30, hidden_size=8, num_attention_heads=8, num_hidden_layers=1),
        BertConfig(vocab_size=30, hidden_size=8, num_attention_heads=2, num_hidden_layers=0),
    ],
    ids=["narrow", "heads of one", "no layer"],
)
def test_odd_shapes_are_left_whole(config: BertConfig) -> None:
    model = model_of(config)
    neighbour_attention(model)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@torch.no_grad()
def test_the_first_predictions_are_the_frequencies() -> None:
    model = model_of(preset("tiny", vocab_size=200))
    frequencies = torch.rand(150, generator=torch.Generator().manual_seed(2)).double()
    log_prob = (frequencies / frequencies.sum()).log()
    unigram_bias(model, log_prob)
    assert torch.equal(model.mlm.bias[:150], log_prob.float())
    # Ids that the tokenizer lacks, as where a vocabulary was rounded up, are foretold least.
    assert model.mlm.bias.softmax(0)[150:].sum() < 0.05
    ids = torch.randint(5, 150, (2, 16), generator=torch.Generator().manual_seed(3))
    predicted = model(ids).mlm_logits[..., :150].log_softmax(-1).mean((0, 1))
    assert torch.corrcoef(torch.stack([predicted, log_prob.float()]))[0, 1] > 0.9
