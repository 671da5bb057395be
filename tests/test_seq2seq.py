"""The encoder-decoder: loss, layout, saving, what it takes from its encoder, and that it learns."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import one_thread  # noqa: F401
from torch import Tensor
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.convert import read_tensors
from minibert.decoder_config import DecoderConfig
from minibert.errors import InputError
from minibert.generation import GenerationSettings, generate
from minibert.heads import BertForPreTraining
from minibert.losses import IGNORE_INDEX
from minibert.model import BertModel
from minibert.seq2seq import (
    BertForConditionalGeneration,
    attend,
    label_smoothed_cross_entropy,
)


def pad_targets(rows: list[list[int]]) -> Tensor:
    """Labels (B, U) of targets that end with the end mark, IGNORE_INDEX behind them."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORE_INDEX] * (longest - len(row))] for row in rows])


@pytest.fixture
def config(tiny_config: BertConfig) -> BertConfig:
    """The tiny encoder with two decoder layers, 50 target words, 24 target positions."""
    decoder = DecoderConfig(target_vocab_size=50, num_decoder_layers=2, max_target_positions=24)
    return decoder.added_to(replace(tiny_config, initializer_range=0.2))


@pytest.fixture
def labels() -> Tensor:
    """Targets of 3, 9 and 6 tokens in (3, 9), each with its end mark."""
    rows = [[*torch.randint(3, 50, (n - 1,)).tolist(), 2] for n in (3, 9, 6)]
    return pad_targets(rows)


def make(config: BertConfig) -> BertForConditionalGeneration:
    """Random weights, none 0 or 1, so that no part is without effect."""
    model = BertForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def shifted(labels: Tensor) -> Tensor:
    """The begin mark, then all labels but the last; 0 at the padding."""
    begin = torch.ones(len(labels), 1, dtype=torch.int64)
    return torch.cat([begin, labels[:, :-1]], 1).clamp(min=0)


# --- loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothed_loss_and_gradients_are_those_of_pytorch(smoothing: float) -> None:
    x = torch.randn(40, 16, requires_grad=True)
    weight = torch.randn(70, 16, requires_grad=True)
    bias = torch.randn(70, requires_grad=True)
    labels = torch.randint(0, 70, (40,))
    labels[::7] = IGNORE_INDEX
    inputs = (x, weight, bias)
    loss, hits = label_smoothed_cross_entropy(*inputs, labels, smoothing)
    scores = F.linear(x, weight, bias)
    expected = F.cross_entropy(scores, labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    assert hits.item() == (scores.argmax(1) == labels).sum()
    ours = torch.autograd.grad(loss, inputs)
    for own, theirs in zip(ours, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


def test_smoothed_loss_in_bf16_is_near_that_in_float32() -> None:
    x, weight, bias = torch.randn(64, 32), torch.randn(90, 32) * 0.1, torch.randn(90) * 0.1
    labels = torch.randint(0, 90, (64,))
    exact, _ = label_smoothed_cross_entropy(x, weight, bias, labels, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = label_smoothed_cross_entropy(x, weight, bias, labels, 0.1)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=3e-3, atol=0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_a_padded_batch_is_that_of_its_scores(
    config: BertConfig, padded_batch: dict[str, Tensor], labels: Tensor, smoothing: float
) -> None:
    """Through other code: with labels padding is removed and scores are never whole."""
    model = make(config)
    out = model(**padded_batch, labels=labels, label_smoothing=smoothing)
    logits = model(**padded_batch, decoder_input_ids=shifted(labels)).logits
    assert logits.shape == (3, 9, 50)
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(out.score.loss_sum, expected)
    assert out.score.num_labels.item() == 18
    hits = (logits.argmax(-1) == labels).sum()
    assert out.score.num_hits.item() == hits


def test_gradients_of_a_padded_batch_are_those_of_its_texts_one_by_one(
    config: BertConfig, padded_batch: dict[str, Tensor], labels: Tensor
) -> None:
    model = make(config)
    model(**padded_batch, labels=labels).score.loss_sum.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i in range(3):
        real = int(padded_batch["attention_mask"][i].sum())
        count = int((labels[i] != IGNORE_INDEX).sum())
        own = {name: part[i : i + 1, :real] for name, part in padded_batch.items()}
        model(**own, labels=labels[i : i + 1, :count]).score.loss_sum.backward()
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert together.keys() == alone.keys()
    unused = {n for n, _ in model.named_parameters()} - alone.keys()
    assert unused == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_target_without_any_label_costs_nothing(
    config: BertConfig, padded_batch: dict[str, Tensor], labels: Tensor
) -> None:
    model = make(config)
    whole = model(**padded_batch, labels=labels)
    labels = torch.cat([labels, torch.full((1, 9), IGNORE_INDEX)])
    batch = {name: torch.cat([part, part[:1]]) for name, part in padded_batch.items()}
    out = model(**batch, labels=labels)
    torch.testing.assert_close(out.score.loss_sum, whole.score.loss_sum)
    assert out.score.num_labels.item() == 18


def test_no_token_sees_a_later_one(config: BertConfig) -> None:
    model = make(config)
    source, ids = torch.randint(5, 80, (1, 6)), torch.randint(3, 50, (1, 8))
    before = model(source, decoder_input_ids=ids).logits
    ids[0, 5] = ids[0, 5] % 46 + 4
    after = model(source, decoder_input_ids=ids).logits
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("heads", [1, 4])
def test_attend_is_pytorch_s_own(heads: int) -> None:
    query, key, value = (torch.randn(3, heads, n, 8) for n in (2, 7, 7))
    causal = torch.ones(1, 1, 2, 7, dtype=torch.bool).tril(3)
    padding = (torch.arange(7) < torch.tensor([7, 2, 5])[:, None])[:, None, None]
    per_query = torch.rand(3, 1, 2, 7) > 0.4
    per_query[..., 0] = True
    for mask in (None, causal, padding, per_query):
        expected = F.scaled_dot_product_attention(query, key, value, mask)
        torch.testing.assert_close(attend(query, key, value, mask), expected)


def test_dropout_acts_in_training_alone(
    config: BertConfig, padded_batch: dict[str, Tensor], labels: Tensor
) -> None:
    model = make(config)
    first, second = (model(**padded_batch, labels=labels).score.loss_sum for _ in range(2))
    assert first.equal(second)
    model.train()
    first, second = (model(**padded_batch, labels=labels).score.loss_sum for _ in range(2))
    assert not first.equal(second)


def test_what_is_asked_for_must_be_clear(config: BertConfig, labels: Tensor) -> None:
    model, source = make(config), torch.ones(3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels for a loss, or decoder_input_ids for scores"):
        model(source)
    with pytest.raises(ValueError, match="labels for a loss, or decoder_input_ids for scores"):
        model(source, labels=labels, decoder_input_ids=shifted(labels))
    with pytest.raises(ValueError, match="target of 25 tokens, but max_target_positions is 24"):
        model(source, labels=torch.ones(3, 25, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 targets, but 3 sources"):
        model(source, labels=labels[:1])


# --- config, saving, loading ----------------------------------------------------------------------


def test_a_config_carries_its_decoder_to_and_fro(config: BertConfig) -> None:
    again = BertConfig.from_dict(config.to_dict())
    assert DecoderConfig.of(again) == DecoderConfig.of(config)
    assert DecoderConfig.of(again).target_vocab_size == 50


def test_faults_of_a_decoder_config_are_named_together(tiny_config: BertConfig) -> None:
    with pytest.raises(InputError, match="num_decoder_layers is 0.*bos_token_id is 9, must be in"):
        DecoderConfig(target_vocab_size=5, num_decoder_layers=0, target_bos_token_id=9)
    with pytest.raises(InputError, match="must differ"):
        DecoderConfig(target_vocab_size=5, target_eos_token_id=1)
    with pytest.raises(InputError, match="target_vocab_size is '5', must be a whole number"):
        DecoderConfig(target_vocab_size="5")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names no target_vocab_size"):
        BertForConditionalGeneration(tiny_config)


def test_round_trip_is_equal_bit_for_bit(
    config: BertConfig, tmp_path: Path, padded_batch: dict[str, Tensor], labels: Tensor
) -> None:
    model = make(config)
    model.save_pretrained(tmp_path)
    loaded = BertForConditionalGeneration.from_pretrained(tmp_path)
    assert not loaded.load_report.newly_initialised
    assert not loaded.load_report.left_out
    assert loaded.config.architectures == ("BertForConditionalGeneration",)
    state = loaded.state_dict()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    ours, theirs = (m(**padded_batch, labels=labels).score.loss_sum for m in (model, loaded))
    assert ours.equal(theirs)


def test_our_backbone_opens_the_encoder_and_names_what_it_leaves_out(
    config: BertConfig, tmp_path: Path, padded_batch: dict[str, Tensor]
) -> None:
    model = make(config)
    model.save_pretrained(tmp_path)
    encoder = BertModel.from_pretrained(tmp_path)
    assert not encoder.load_report.newly_initialised
    stored = read_tensors(tmp_path)
    decoder = sorted(name for name in stored if name.startswith("decoder."))
    assert decoder
    assert sorted(encoder.load_report.left_out) == decoder
    ours = model.bert(**padded_batch).last_hidden_state
    assert ours.equal(encoder(**padded_batch).last_hidden_state)


def test_transformers_opens_the_encoder(
    config: BertConfig, tmp_path: Path, padded_batch: dict[str, Tensor]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(config)
    model.save_pretrained(tmp_path)
    theirs, report = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert all("decoder." in name for name in report["unexpected_keys"])
    expected = theirs.eval()(**padded_batch).last_hidden_state
    mask = padded_batch["attention_mask"].bool()
    ours = model.bert(**padded_batch).last_hidden_state
    torch.testing.assert_close(ours[mask], expected[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("wanted", "sources"), [(1, [2]), (2, [0, 2]), (3, [0, 1, 2]), (4, None)])
def test_a_decoder_begins_as_its_encoder(
    tiny_config: BertConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wanted: int,
    sources: list[int] | None,
) -> None:
    own = BertForPreTraining(replace(tiny_config, num_hidden_layers=3))
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(torch.randn_like(parameter))
    own.save_pretrained(tmp_path)
    decoder = DecoderConfig(50, num_decoder_layers=wanted, max_target_positions=64)
    config = decoder.added_to(BertConfig.from_pretrained(tmp_path))
    with caplog.at_level(logging.INFO):
        model = BertForConditionalGeneration.from_pretrained(tmp_path, config)
    assert "newly initialised" in caplog.text
    bert, made = model.bert, model.decoder
    assert torch.equal(bert.layers[0].attention.qkv.weight, own.bert.layers[0].attention.qkv.weight)
    for number, at in enumerate(sources or [0, 1, 2]):
        ours, theirs = made.layers[number], bert.layers[at]
        assert torch.equal(ours.attention.qkv.weight, theirs.attention.qkv.weight)
        assert torch.equal(ours.feed_forward.down.bias, theirs.feed_forward.down.bias)
        assert torch.equal(ours.feed_forward_norm.weight, theirs.feed_forward_norm.weight)
        cross = ours.cross_attention  # drawn, wide enough to see
        assert cross.query.weight.std() > 0.5 * 32**-0.5
        assert cross.key_value.weight.std() > 0.5 * 32**-0.5
    if wanted == 4:  # no layer is left for the last one
        assert made.layers[3].attention.qkv.weight.std() < 0.25
    positions, theirs = made.embeddings.position.weight, bert.embeddings.position.weight
    words, their_words = made.embeddings.word.weight, bert.embeddings.word.weight
    assert words.std().item() == pytest.approx(32**-0.5, rel=0.1)
    # Beside words as they are beside the encoder's.
    assert torch.allclose(positions[:40] / words.std(), theirs / their_words.std())
    assert positions[40:].std() < 0.25  # drawn


def test_a_trained_decoder_is_loaded_as_it_is(config: BertConfig, tmp_path: Path) -> None:
    model = make(config)
    model.save_pretrained(tmp_path)
    loaded = BertForConditionalGeneration.from_pretrained(tmp_path)
    ours, theirs = loaded.decoder.layers[0], loaded.bert.layers[0]
    assert not torch.equal(ours.attention.qkv.weight, theirs.attention.qkv.weight)


# --- learning -------------------------------------------------------------------------------------


def test_it_learns_to_reverse_and_beam_search_writes_it_down(tiny_config: BertConfig) -> None:
    encoder = replace(
        tiny_config,
        vocab_size=16,
        hidden_size=48,
        num_hidden_layers=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    decoder = DecoderConfig(14, num_decoder_layers=1, max_target_positions=8)
    model = BertForConditionalGeneration(decoder.added_to(encoder))
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[list[list[int]], list[list[int]]]:
        lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
        texts = [torch.randint(3, 14, (n,), generator=generator).tolist() for n in lengths]
        return texts, [[*reversed(text), 2] for text in texts]

    def pad(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        ids = pad_targets([[15, *text] for text in texts])
        return ids.clamp(min=0), (ids >= 0).long()

    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=350)
    for _ in range(350):
        texts, targets = draw(64)
        ids, mask = pad(texts)
        out = model(ids, attention_mask=mask, labels=pad_targets(targets), label_smoothing=0.1)
        (out.score.loss_sum / out.score.num_labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    texts, targets = draw(200)
    found = generate(model, *pad(texts), GenerationSettings(num_beams=4))
    right = sum([*text.ids, 2] == target for text, target in zip(found, targets, strict=True))
    assert right >= 190
    assert all(text.is_whole for text in found)
