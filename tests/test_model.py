"""The encoder and its heads against torch's own layer, and the properties every BERT has."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig, preset
from minibert.heads import BertForPreTraining, BertForSequenceClassification, gather_positions
from minibert.losses import IGNORE_INDEX, masked_lm_loss, next_sentence_loss
from minibert.model import BertModel, Layer
from minibert.unpadding import full_layout, unpadded_layout

Batch = dict[str, Tensor]


def torch_twin(layer: Layer, config: BertConfig) -> tuple[nn.Module, dict[str, str]]:
    """torch's post-norm layer with the same weights, and its parameter names -> ours."""
    twin = nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        dropout=0.0,
        activation=F.gelu,
        layer_norm_eps=config.layer_norm_eps,
        batch_first=True,
        norm_first=False,
    )
    modules = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.output.",
        "linear1.": "feed_forward.up.",
        "linear2.": "feed_forward.down.",
        "norm1.": "attention_norm.",
        "norm2.": "feed_forward_norm.",
    }
    names = {t + k: o + k for t, o in modules.items() for k in ("weight", "bias")}
    ours = layer.state_dict()
    twin.load_state_dict({theirs: ours[name] for theirs, name in names.items()})
    return twin, names


def shake(module: nn.Module, std: float = 0.1) -> None:
    """Moves every parameter, so that biases are not 0 and norms not 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)


@pytest.mark.parametrize("padded", [False, True])
def test_layer_equals_torch_in_value_and_gradient(tiny_config: BertConfig, padded: bool) -> None:
    config = replace(tiny_config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    layer = Layer(config)
    shake(layer)
    twin, names = torch_twin(layer, config)
    x = torch.randn(3, 9, 32, requires_grad=True)
    x_twin = x.detach().clone().requires_grad_()
    attend = torch.arange(9) < torch.tensor([9, 5, 2])[:, None] if padded else torch.ones(3, 9) > 0
    weights = torch.randn(3, 9, 32) * attend[:, :, None]  # only real positions are read

    layout = unpadded_layout(attend) if padded else full_layout((3, 9))
    ours = layout.restore(layer(layout.take(x), layout))
    theirs = twin(x_twin, src_key_padding_mask=~attend if padded else None)
    torch.testing.assert_close(ours[attend], theirs[attend], atol=1e-5, rtol=1e-5)

    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(x.grad, x_twin.grad, atol=1e-5, rtol=1e-5)
    own = dict(layer.named_parameters())
    assert set(names.values()) == set(own)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(own[names[name]].grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_padding_does_not_change_outputs(tiny_config: BertConfig, padded_batch: Batch) -> None:
    model = BertForPreTraining(tiny_config).eval()
    shake(model)
    together = model(**padded_batch)
    for row, length in enumerate(padded_batch["attention_mask"].sum(1).tolist()):
        alone = model(
            padded_batch["input_ids"][row : row + 1, :length],
            padded_batch["token_type_ids"][row : row + 1, :length],
        )
        for name in ("mlm_logits", "last_hidden_state"):
            torch.testing.assert_close(
                getattr(together, name)[row, :length], getattr(alone, name)[0], msg=name
            )
        torch.testing.assert_close(together.nsp_logits[row], alone.nsp_logits[0])
        torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0])


def test_a_shifted_sequence_has_the_later_position_embeddings(
    tiny_config: BertConfig, padded_batch: Batch
) -> None:
    model = BertForPreTraining(tiny_config).eval()
    shake(model)
    places = torch.tensor([3, 0, 9])
    shifted = model(**padded_batch, first_positions=places)
    table = model.bert.embeddings.position.weight
    rolled = table.detach().clone()
    for row, place in enumerate(places.tolist()):
        with torch.no_grad():
            table.copy_(rolled.roll(-place, 0))
        plain = model(**padded_batch)
        real = padded_batch["attention_mask"][row].bool()
        torch.testing.assert_close(shifted.mlm_logits[row, real], plain.mlm_logits[row, real])
        torch.testing.assert_close(shifted.pooler_output[row], plain.pooler_output[row])
    assert not torch.equal(shifted.pooler_output[0], model(**padded_batch).pooler_output[0])


def test_padding_behind_the_last_position_can_be_computed(
    tiny_config: BertConfig, padded_batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As compiled code does it: a short sequence may end at the last position of all."""
    model = BertForPreTraining(tiny_config).eval()
    ends = tiny_config.max_position_embeddings - padded_batch["attention_mask"].sum(1)
    expected = model(**padded_batch, first_positions=ends)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = model(**padded_batch, first_positions=ends)
    real = padded_batch["attention_mask"].bool()
    torch.testing.assert_close(found.mlm_logits[real], expected.mlm_logits[real])


def test_ids_below_the_padding_do_not_matter(tiny_config: BertConfig, padded_batch: Batch) -> None:
    model = BertModel(tiny_config).eval()
    real = padded_batch["attention_mask"].bool()
    other = {**padded_batch, "input_ids": padded_batch["input_ids"].masked_fill(~real, 17)}
    assert not torch.equal(other["input_ids"], padded_batch["input_ids"])
    torch.testing.assert_close(
        model(**padded_batch).last_hidden_state[real], model(**other).last_hidden_state[real]
    )


def test_batch_order_does_not_change_outputs(tiny_config: BertConfig, padded_batch: Batch) -> None:
    model = BertForSequenceClassification(tiny_config).eval()
    order = torch.tensor([2, 0, 1])
    straight = model(**padded_batch)
    shuffled = model(**{name: value[order] for name, value in padded_batch.items()})
    for ours, other in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(ours[order], other)
    assert not torch.allclose(straight.logits, shuffled.logits)


def test_defaults_are_segment_zero_and_attend_everywhere(tiny_config: BertConfig) -> None:
    model = BertModel(tiny_config).eval()
    ids = torch.randint(1, 80, (2, 6))
    spelled = model(ids, torch.zeros_like(ids), torch.ones_like(ids))
    torch.testing.assert_close(model(ids).last_hidden_state, spelled.last_hidden_state)
    other = model(ids, torch.ones_like(ids)).last_hidden_state
    assert not torch.allclose(other, spelled.last_hidden_state)


def test_bool_and_integer_masks_mean_the_same(tiny_config: BertConfig, padded_batch: Batch) -> None:
    model = BertModel(tiny_config).eval()
    as_bool = {**padded_batch, "attention_mask": padded_batch["attention_mask"].bool()}
    assert torch.equal(model(**as_bool)[0], model(**padded_batch)[0])


def test_bf16_outputs_are_near_those_of_fp32(tiny_config: BertConfig, padded_batch: Batch) -> None:
    model = BertModel(tiny_config).eval()
    exact = model(**padded_batch).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        near = model(**padded_batch).last_hidden_state.float()
    real = padded_batch["attention_mask"].bool()
    assert (exact - near)[real].abs().max() < 0.05


def test_a_row_of_padding_alone_stays_finite(tiny_config: BertConfig) -> None:
    model = BertModel(tiny_config).eval()
    ids, mask = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            assert model(ids, attention_mask=mask).last_hidden_state.isfinite().all()


def test_token_order_matters(tiny_config: BertConfig) -> None:
    model = BertModel(tiny_config).eval()
    ids = torch.arange(1, 7)[None]
    flipped = model(ids.flip(1)).last_hidden_state.flip(1)
    assert not torch.allclose(flipped, model(ids).last_hidden_state, atol=1e-3)


def test_every_token_sees_every_other(tiny_config: BertConfig) -> None:
    model = BertModel(replace(tiny_config, num_hidden_layers=1)).eval()
    shake(model)
    ids = torch.arange(1, 8)[None]
    embedded: list[Tensor] = []
    model.embeddings.register_forward_hook(lambda *call: embedded.append(call[2]))
    out = model(ids).last_hidden_state
    for position in range(7):
        (grad,) = torch.autograd.grad(out[0, position].square().sum(), embedded, retain_graph=True)
        assert (grad.norm(dim=1) > 0).all()


def test_a_sequence_beyond_the_positions_is_refused(tiny_config: BertConfig) -> None:
    model = BertModel(tiny_config).eval()
    assert model(torch.ones(1, 40, dtype=torch.long)).last_hidden_state.shape == (1, 40, 32)
    with pytest.raises(ValueError, match=r"41 tokens.*max_position_embeddings is 40"):
        model(torch.ones(1, 41, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "rows", "tokens"),
    [("attention_mask", 1, 5), ("attention_mask", 2, 5), ("token_type_ids", 3, 6)],
)
def test_a_mask_or_segments_of_other_tokens_are_refused(
    tiny_config: BertConfig, name: str, rows: int, tokens: int
) -> None:
    model, ids = BertModel(tiny_config).eval(), torch.arange(3, 18).view(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    given = {"attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    given[name] = torch.ones(rows, tokens, dtype=torch.long)
    given[name][:, -1] = 0
    with pytest.raises(ValueError, match=rf"{name} has shape \({rows}, {tokens}\).*\(3, 5\)"):
        model(ids, **given)


def test_one_sequence_without_a_batch_is_refused(tiny_config: BertConfig) -> None:
    with pytest.raises(ValueError, match=r"input_ids has shape \(5,\); expected \(B, T\)"):
        BertModel(tiny_config)(torch.arange(5))


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_hidden_states_are_embeddings_and_every_layer(tiny_config: BertConfig, layers: int) -> None:
    model = BertModel(replace(tiny_config, num_hidden_layers=layers)).eval()
    ids = torch.randint(1, 80, (2, 5))
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == layers + 1
    assert all(state.shape == (2, 5, 32) for state in out.hidden_states)
    embedded = model.embeddings(ids, torch.zeros_like(ids), torch.arange(5))
    assert torch.equal(out.hidden_states[0], embedded)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert model(ids).hidden_states == ()


def test_output_shapes(tiny_config: BertConfig) -> None:
    config = replace(tiny_config, id2label={0: "a", 1: "b", 2: "c"})
    ids = torch.randint(1, 80, (2, 5))
    pretraining = BertForPreTraining(config)(ids)
    assert pretraining.mlm_logits.shape == (2, 5, 80)
    assert pretraining.nsp_logits.shape == (2, 2)
    assert pretraining.pooler_output.shape == (2, 32)
    assert BertForSequenceClassification(config)(ids).logits.shape == (2, 3)


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_off_in_eval_and_on_in_training(tiny_config: BertConfig, name: str) -> None:
    off = replace(tiny_config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    plain = BertModel(off)
    model = BertModel(replace(off, **{name: 0.5}))
    model.load_state_dict(plain.state_dict())
    ids = torch.randint(1, 80, (2, 8))
    expected = plain(ids).last_hidden_state
    assert torch.equal(model.eval()(ids).last_hidden_state, expected)
    model.train()
    first, second = model(ids).last_hidden_state, model(ids).last_hidden_state
    assert not torch.allclose(first, expected)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(("name", "places"), [("embeddings", 1), ("layers.0", 2), ("layers.1", 2)])
def test_dropout_stands_behind_embeddings_and_both_sublayers(
    tiny_config: BertConfig, name: str, places: int
) -> None:
    model = BertModel(tiny_config).eval()
    ids, calls, acting = torch.randint(1, 80, (2, 8)), itertools.count(), [-1]
    model.get_submodule(f"{name}.dropout").register_forward_hook(
        lambda part, given, out: out.flip(-1) if next(calls) in acting else out
    )
    plain = model(ids).last_hidden_state
    assert next(calls) == places
    for place in range(places):
        calls, acting = itertools.count(), [place]
        assert not torch.allclose(model(ids).last_hidden_state, plain, rtol=0.0, atol=1e-4)


def test_classifier_dropout_overrides_the_hidden_one(tiny_config: BertConfig) -> None:
    def rate(**changes: float) -> float:
        return BertForSequenceClassification(replace(tiny_config, **changes)).dropout.prob

    assert rate(hidden_dropout_prob=0.3) == 0.3
    assert rate(hidden_dropout_prob=0.3, classifier_dropout=0.0) == 0.0


def test_mlm_decoder_is_the_word_embedding(tiny_config: BertConfig) -> None:
    model = BertForPreTraining(tiny_config).eval()
    ids = torch.randint(1, 70, (2, 6))
    before = model(ids).mlm_logits
    with torch.no_grad():
        model.bert.embeddings.word.weight[75] += 1.0  # a word that is not in the input
    changed = (model(ids).mlm_logits - before).abs().amax(dim=(0, 1)) > 0
    assert changed.nonzero().flatten().tolist() == [75]


def test_word_embedding_gradient_has_both_contributions(tiny_config: BertConfig) -> None:
    config = replace(tiny_config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForPreTraining(config)
    weight = model.bert.embeddings.word.weight
    ids, labels = torch.randint(1, 70, (2, 6)), torch.randint(1, 80, (2, 6))

    def grad(logits: Tensor) -> Tensor:
        return torch.autograd.grad(masked_lm_loss(logits, labels)[0], weight)[0]

    hidden = model.bert(ids).last_hidden_state
    lookup = grad(model.mlm(hidden, weight.detach()))
    decoder = grad(model.mlm(model.bert(ids).last_hidden_state.detach(), weight))
    assert lookup.abs().max() > 1e-3
    assert decoder.abs().max() > 1e-3
    torch.testing.assert_close(grad(model(ids).mlm_logits), lookup + decoder)


def test_gathered_positions_equal_dense_logits_there(
    tiny_config: BertConfig, padded_batch: Batch
) -> None:
    model = BertForPreTraining(tiny_config).eval()
    positions = torch.tensor([[11, 0, 3], [6, 6, 1], [0, 2, 2]])  # unsorted, with repeats
    dense = model(**padded_batch).mlm_logits
    gathered = model(**padded_batch, mlm_positions=positions).mlm_logits
    assert gathered.shape == (3, 3, 80)
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(gathered, dense[rows, positions])


def test_gathering_sends_each_gradient_to_its_own_position() -> None:
    hidden = torch.randn(2, 4, 3, requires_grad=True)
    positions = torch.tensor([[3, 0], [1, 1]])
    gather_positions(hidden, positions).sum().backward()
    expected = torch.tensor([[1.0, 0, 0, 1], [0, 2, 0, 0]])
    torch.testing.assert_close(hidden.grad, expected[:, :, None].expand(2, 4, 3))


@pytest.mark.parametrize("at", ["some positions", "every position"])
def test_labels_give_the_loss_of_the_scores(
    tiny_config: BertConfig, padded_batch: Batch, at: str
) -> None:
    model = BertForPreTraining(tiny_config).eval()
    places = {"mlm_positions": torch.tensor([[11, 0, 3], [6, 6, 1], [0, 2, 2]])}
    if at == "every position":
        places = {}
    scores = model(**padded_batch, **places).mlm_logits
    labels = torch.randint(80, scores.shape[:2])
    labels[0, 1] = labels[2, 0] = IGNORE_INDEX
    labels[1, 1] = scores[1, 1].argmax()
    out = model(**padded_batch, **places, mlm_labels=labels)
    assert out.mlm_logits is None
    loss, count = masked_lm_loss(scores, labels)
    torch.testing.assert_close(out.mlm_score.loss_sum, loss)
    assert out.mlm_score.num_labels == count
    assert out.mlm_score.num_hits == (scores.argmax(-1) == labels).sum() >= 1
    parameters = [p for name, p in model.named_parameters() if not name.startswith("nsp")]
    parameters = [p for p in parameters if not any(p is q for q in model.bert.pooler.parameters())]
    ours, expected = (torch.autograd.grad(x, parameters) for x in (out.mlm_score.loss_sum, loss))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("positions", "labels", "told"),
    [
        (None, (3, 2), r"mlm_labels has shape \(3, 2\); expected that of input_ids, \(3, 12\)"),
        (
            (3, 2),
            (3, 3),
            r"shape \(3, 3\); expected that of mlm_positions, \(3, 2\)",
        ),
        ((2, 2), (2, 2), r"mlm_positions has shape \(2, 2\); expected \(B, M\) with B = 3"),
        ((2, 2), None, r"mlm_positions has shape \(2, 2\)"),
    ],
)
def test_labels_and_positions_of_other_slots_are_refused(
    tiny_config: BertConfig,
    padded_batch: Batch,
    positions: tuple[int, int] | None,
    labels: tuple[int, int] | None,
    told: str,
) -> None:
    model = BertForPreTraining(tiny_config).eval()
    shapes = {"mlm_positions": positions, "mlm_labels": labels}
    given = {k: torch.ones(v, dtype=torch.long) for k, v in shapes.items() if v is not None}
    with pytest.raises(ValueError, match=told):
        model(**padded_batch, **given)


@pytest.mark.filterwarnings("ignore")  # PyTorch's tracer warns of what it does itself
def test_a_traced_model_has_the_loss_and_the_gradients_of_the_eager_one(
    tiny_config: BertConfig, padded_batch: Batch
) -> None:
    """What --compile hands to the compiler, all in one piece, run as it was traced."""
    model = BertForPreTraining(tiny_config).eval()
    batch = padded_batch | {
        "mlm_positions": torch.tensor([[11, 0, 3], [6, 5, 1], [0, 2, 2]]),
        "mlm_labels": torch.tensor([[7, IGNORE_INDEX, 9], [3, 4, 5], [IGNORE_INDEX, 1, 2]]),
    }
    parameters, found = list(model.parameters()), []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        out = forward(**batch)
        total = out.mlm_score.loss_sum + out.nsp_logits[:, 0].sum()
        found.append((total, *torch.autograd.grad(total, parameters)))
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore")
def test_a_traced_classifier_has_the_gradients_of_the_eager_one(
    tiny_config: BertConfig, padded_batch: Batch
) -> None:
    model = BertForSequenceClassification(tiny_config).eval()
    parameters, found = list(model.parameters()), []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        logits = forward(**padded_batch, first_only=True).logits
        found.append((logits, *torch.autograd.grad(logits[:, 0].sum(), parameters)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("pad", [0, 5])
def test_padding_embedding_is_zero_at_init(tiny_config: BertConfig, pad: int) -> None:
    model = BertForPreTraining(replace(tiny_config, pad_token_id=pad))
    norms = model.bert.embeddings.word.weight.norm(dim=1)
    assert (norms == 0).nonzero().flatten().tolist() == [pad]


@pytest.mark.parametrize("std", [0.02, 0.2])
def test_weights_are_drawn_with_the_initializer_range(std: float) -> None:
    model = BertForPreTraining(preset("tiny", vocab_size=500, initializer_range=std))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # Five deviations of the estimate of a deviation from this many draws.
            slack = 5 / math.sqrt(2 * parameter.numel()) + 1 / 500
            assert parameter.std().item() == pytest.approx(std, rel=slack), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name
        else:
            is_norm_weight = name.endswith("norm.weight")
            assert (parameter == (1.0 if is_norm_weight else 0.0)).all(), name


@pytest.mark.parametrize(
    "config",
    [preset("tiny", vocab_size=2000), preset("base", num_hidden_layers=1, vocab_size=2000)],
    ids=["tiny", "base of one layer"],
)
def test_loss_at_init_is_that_of_a_uniform_guess(config: BertConfig) -> None:
    model = BertForPreTraining(config).eval()
    ids = torch.randint(1, 2000, (16, 20))
    segments = (torch.arange(20) >= 10).long().expand(16, 20)
    labels, follows = torch.randint(1, 2000, (16, 4)), torch.arange(16) % 2
    with torch.no_grad():
        out = model(ids, segments, mlm_positions=torch.randint(0, 20, (16, 4)))
    mlm_sum, mlm_count = masked_lm_loss(out.mlm_logits, labels)
    nsp_sum, nsp_count = next_sentence_loss(out.nsp_logits, follows)
    # Logits are normal with variance D x std^2, which adds half of it: 0.15 for a width of 768.
    expected = math.log(2000) + config.hidden_size * config.initializer_range**2 / 2
    assert (mlm_sum / mlm_count).item() == pytest.approx(expected, abs=0.2)
    assert (nsp_sum / nsp_count).item() == pytest.approx(math.log(2), abs=0.1)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_accepted_activation_is_built(tiny_config: BertConfig, name: str) -> None:
    x = torch.linspace(-3, 3, 13)
    cubic = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = {
        "gelu": x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "relu": x.clamp(min=0),
    }.get(name, 0.5 * x * (1 + torch.tanh(cubic)))
    model = BertForPreTraining(replace(tiny_config, hidden_act=name))
    torch.testing.assert_close(model.bert.layers[0].feed_forward.activation(x), expected)
    torch.testing.assert_close(model.mlm.activation(x), expected)


@pytest.mark.parametrize("is_padded", [True, False])
def test_first_tokens_alone_are_those_of_the_whole(
    tiny_config: BertConfig, padded_batch: dict[str, Tensor], is_padded: bool
) -> None:
    model = BertModel(tiny_config).eval()
    batch = {name: value[[2, 0, 1]] for name, value in padded_batch.items()}  # shortest first
    if not is_padded:
        del batch["attention_mask"]
    whole, first = model(**batch), model(**batch, first_only=True)
    assert first.last_hidden_state.shape == (3, 1, 32)
    torch.testing.assert_close(first.last_hidden_state, whole.last_hidden_state[:, :1])
    torch.testing.assert_close(first.pooler_output, whole.pooler_output)
    upstream = torch.randn(3, 32)
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(out.pooler_output, parameters, upstream) for out in (whole, first)]
    torch.testing.assert_close(*grads)
    with pytest.raises(ValueError, match="first_only"):
        model(**batch, first_only=True, output_hidden_states=True)


def test_a_text_that_begins_with_padding_has_no_first_token(tiny_config: BertConfig) -> None:
    ids, mask = torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    with pytest.raises(ValueError, match="begins with padding"):
        BertModel(tiny_config)(ids, attention_mask=mask, first_only=True)


def test_first_tokens_alone_are_theirs_also_without_layers(tiny_config: BertConfig) -> None:
    model = BertModel(dataclasses.replace(tiny_config, num_hidden_layers=0)).eval()
    ids = torch.arange(3, 18).view(3, 5)
    for mask in (None, torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])):
        whole, first = model(ids, attention_mask=mask), model(ids, None, mask, first_only=True)
        torch.testing.assert_close(first.pooler_output, whole.pooler_output)
