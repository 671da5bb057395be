"""What departs from plain BERT, norms before sublayers and gates, against the formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import one_thread, write_corpus, write_reviews  # noqa: F401
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minibert.cli import main
from minibert.config import BertConfig, preset
from minibert.decoder_config import DecoderConfig
from minibert.errors import InputError
from minibert.estimate import num_parameters
from minibert.finetuning import freeze_lowest, redraw_top
from minibert.fitting import Trial, kept_bytes
from minibert.flops import generation_flops, training_flops
from minibert.heads import BertForPreTraining, BertForSequenceClassification
from minibert.initialisation import neighbour_attention
from minibert.layerwise import Layerwise
from minibert.model import BertModel
from minibert.packing import packed_layout
from minibert.pretraining import gated_width
from minibert.pretraining_data import pretraining_terms
from minibert.quantised import quantise_linears
from minibert.runtime import start_runtime
from minibert.seq2seq import BertForConditionalGeneration
from minibert.unpadding import full_layout

Batch = dict[str, Tensor]
FORMS = [("pre", "plain"), ("post", "gated"), ("pre", "gated")]


@pytest.fixture(params=FORMS, ids=" ".join)
def config(request: pytest.FixtureRequest, tiny_config: BertConfig) -> BertConfig:
    """The tiny config with norms or gates other than BERT's."""
    norm, feed_forward = request.param
    return replace(tiny_config, norm=norm, feed_forward=feed_forward)


def shake(module: nn.Module, std: float = 0.1) -> None:
    """Moves every parameter, so that biases are not 0, norms not 1, and no two of them alike."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)


def naive(weights: dict[str, Tensor], config: BertConfig, ids: Tensor, segments: Tensor) -> Tensor:
    """One sequence through the encoder, formula by formula: (T,) ids -> (T, D)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def attention(name: str, x: Tensor) -> Tensor:
        size = config.hidden_size // config.num_attention_heads
        query, key, value = linear(f"{name}.qkv", x).split(config.hidden_size, -1)
        heads = []
        for start in range(0, config.hidden_size, size):
            own = slice(start, start + size)
            scores = query[:, own] @ key[:, own].T / math.sqrt(size)
            heads.append(scores.softmax(-1) @ value[:, own])
        return linear(f"{name}.output", torch.cat(heads, -1))

    def feed_forward(name: str, x: Tensor) -> Tensor:
        inner = linear(f"{name}.up", x)
        if config.feed_forward == "gated":
            inner = (
                gelu(inner[:, : config.intermediate_size]) * inner[:, config.intermediate_size :]
            )
        else:
            inner = gelu(inner)
        return linear(f"{name}.down", inner)

    x = weights["embeddings.word.weight"][ids] + weights["embeddings.segment.weight"][segments]
    x = norm("embeddings.norm", x + weights["embeddings.position.weight"][: len(ids)])
    for i in range(config.num_hidden_layers):
        for name, sublayer in (("attention", attention), ("feed_forward", feed_forward)):
            part = f"layers.{i}.{name}"
            if config.norm == "pre":
                x = x + sublayer(part, norm(f"{part}_norm", x))
            else:
                x = norm(f"{part}_norm", x + sublayer(part, x))
    return norm("final_norm", x) if config.norm == "pre" else x


def test_values_and_gradients_are_those_of_the_formulas(
    config: BertConfig, padded_batch: Batch
) -> None:
    model = BertModel(config).double().eval()
    shake(model)
    lengths = padded_batch["attention_mask"].sum(1).tolist()
    upstream = [torch.randn(n, config.hidden_size, dtype=torch.float64) for n in lengths]
    weights = dict(model.named_parameters())
    # The pooler is not part of it; a segment that no token has gets no gradient.
    wanted = [p for name, p in weights.items() if not name.startswith("pooler")]
    found = []
    for is_naive in (True, False):
        hidden = [] if is_naive else list(model(**padded_batch).last_hidden_state)
        for row, n in enumerate(lengths):
            if is_naive:
                ids, kinds = (padded_batch[k][row, :n] for k in ("input_ids", "token_type_ids"))
                hidden.append(naive(weights, config, ids, kinds))
        hidden = [x[:n] for x, n in zip(hidden, lengths, strict=True)]
        total = sum((x * up).sum() for x, up in zip(hidden, upstream, strict=True))
        assert isinstance(total, Tensor)
        found.append((*hidden, *torch.autograd.grad(total, wanted)))
    torch.testing.assert_close(*found, atol=1e-10, rtol=1e-9)


def test_padding_and_neighbours_do_not_change_outputs(
    config: BertConfig, padded_batch: Batch
) -> None:
    model = BertForPreTraining(config).eval()
    shake(model)
    together = model(**padded_batch)
    for row, length in enumerate(padded_batch["attention_mask"].sum(1).tolist()):
        own = {name: value[row : row + 1, :length] for name, value in padded_batch.items()}
        alone = model(own["input_ids"], own["token_type_ids"])
        torch.testing.assert_close(together.mlm_logits[row, :length], alone.mlm_logits[0])
        torch.testing.assert_close(together.nsp_logits[row], alone.nsp_logits[0])
    padding = padded_batch["attention_mask"] == 0
    assert not together.last_hidden_state[padding].any()


@pytest.mark.parametrize("first_only", [False, True])
def test_packed_rows_give_what_padded_ones_give(
    config: BertConfig, padded_batch: Batch, first_only: bool
) -> None:
    model = BertModel(config).eval()
    shake(model)
    mask = padded_batch["attention_mask"].bool()
    found = []
    for layout in (packed_layout(mask, torch.device("cpu")), full_layout((3, 12), mask)):
        model._layout = lambda *_, chosen=layout: chosen  # type: ignore[method-assign, misc]
        out = model(**padded_batch, first_only=first_only)
        kept = mask[:, :1] if first_only else mask
        found.append((out.last_hidden_state[kept], out.pooler_output))
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)


def test_first_tokens_alone_are_those_of_the_whole(config: BertConfig, padded_batch: Batch) -> None:
    model = BertModel(config).eval()
    shake(model)
    batch = {name: value[[2, 0, 1]] for name, value in padded_batch.items()}  # shortest first
    whole, first = model(**batch), model(**batch, first_only=True)
    torch.testing.assert_close(first.last_hidden_state, whole.last_hidden_state[:, :1])
    upstream = torch.randn(3, 32)
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(out.pooler_output, parameters, upstream) for out in (whole, first)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("packed", [False, True])
def test_some_tokens_alone_are_those_of_the_whole(
    config: BertConfig, padded_batch: Batch, packed: bool
) -> None:
    model = BertModel(config).eval()
    shake(model)
    if packed:
        layout = packed_layout(padded_batch["attention_mask"].bool(), torch.device("cpu"))
        model._layout = lambda *_: layout  # type: ignore[method-assign]
    places = padded_batch["attention_mask"].flatten().nonzero()[1::3, 0].flip(0)
    whole, some = model(**padded_batch), model(**padded_batch, places=places)
    upstream = torch.randn(len(places), 32), torch.randn(3, 32)
    found = []
    for out, last in (
        (whole, whole.last_hidden_state.flatten(0, 1)[places]),
        (some, some.last_hidden_state),
    ):
        values = (last, out.pooler_output)
        found.append((*values, *torch.autograd.grad(values, list(model.parameters()), upstream)))
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)


def test_the_last_hidden_state_is_the_last_of_all(config: BertConfig, padded_batch: Batch) -> None:
    model = BertModel(config).eval()
    shake(model)
    out = model(**padded_batch, output_hidden_states=True)
    assert len(out.hidden_states) == config.num_hidden_layers + 1
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    torch.testing.assert_close(out.last_hidden_state, model(**padded_batch).last_hidden_state)


@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_have_the_values_and_gradients_of_eager_ones(
    config: BertConfig, padded_batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend="aot_eager"))
    model = BertForSequenceClassification(config).eval()
    shake(model)
    found, parameters = [], list(model.parameters())
    for forward in (model, Layerwise(model, model), torch.compile(model)):
        logits = forward(**padded_batch, first_only=True).logits
        found.append((logits, *torch.autograd.grad(logits[:, 0].sum(), parameters)))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


# --- files ----------------------------------------------------------------------------------------


def test_plain_bert_has_no_trace_of_the_options(tiny_config: BertConfig, tmp_path: Path) -> None:
    model = BertForPreTraining(tiny_config)
    assert not any("final_norm" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "bert"
    assert not {"norm", "feed_forward"} & written.keys()


def test_such_keys_mean_nothing_in_a_published_config(tiny_config: BertConfig) -> None:
    published = {**tiny_config.to_dict(), "norm": "pre", "feed_forward": 7}
    config = BertConfig.from_dict(published)
    assert config.is_plain
    assert published.items() <= config.to_dict().items()


@pytest.mark.parametrize("field", ["norm", "feed_forward"])
def test_unknown_forms_are_refused(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} is 'zap', known are p"):
        BertConfig(**{field: "zap"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="known are p"):
        BertConfig.from_dict({"model_type": "minibert", field: ["pre"]})


def test_a_saved_model_comes_back_whole(
    config: BertConfig, padded_batch: Batch, tmp_path: Path
) -> None:
    model = BertForPreTraining(config).eval()
    shake(model)
    model.save_pretrained(tmp_path / "heads")
    back = BertForPreTraining.from_pretrained(tmp_path / "heads")
    assert str(back.load_report) == "every tensor was used, none is new"
    assert back.config == replace(config, architectures=("BertForPreTraining",))
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    # The backbone by itself, out of either folder.
    model.bert.save_pretrained(tmp_path / "bare")
    expected = model.bert(**padded_batch).pooler_output
    for folder in ("heads", "bare"):
        backbone = BertModel.from_pretrained(tmp_path / folder)
        assert not backbone.load_report.newly_initialised
        assert torch.equal(backbone(**padded_batch).pooler_output, expected)
    task = BertForSequenceClassification.from_pretrained(tmp_path / "bare")
    assert set(task.load_report.newly_initialised) == {"classifier.weight", "classifier.bias"}


def test_the_two_kinds_of_weights_are_not_taken_for_each_other(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    BertModel(tiny_config).save_pretrained(tmp_path / "plain")
    changed = replace(tiny_config, norm="pre")
    with pytest.raises(InputError, match="holds no tensor of a BERT"):
        BertForPreTraining.from_pretrained(tmp_path / "plain", changed)
    BertModel(changed).save_pretrained(tmp_path / "pre")
    with pytest.raises(InputError, match="holds no tensor of a BERT"):
        BertForPreTraining.from_pretrained(tmp_path / "pre", tiny_config)


@pytest.mark.filterwarnings("ignore")
def test_transformers_does_not_take_it_for_a_bert(config: BertConfig, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BertForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model type `minibert`"):
        transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True)
    # Even the class by name finds none of its weights, and says so.
    _, report = transformers.BertModel.from_pretrained(
        tmp_path, local_files_only=True, output_loading_info=True
    )
    names = {name for name, _ in transformers.BertModel(_.config).named_parameters()}
    assert names <= set(report["missing_keys"])


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plain", "gated"),
    [(512, 320), (1024, 704), (2048, 1344), (3072, 2048), (4096, 2752), (64, 64)],
)
def test_a_gated_width_is_two_thirds_to_the_nearest_64(plain: int, gated: int) -> None:
    assert gated_width(plain) == gated


@pytest.mark.parametrize(("norm", "feed_forward"), FORMS)
def test_parameters_are_those_of_the_network(norm: str, feed_forward: str) -> None:
    plain = preset("mini")
    inner = gated_width(1024) if feed_forward == "gated" else 1024
    config = replace(plain, norm=norm, feed_forward=feed_forward, intermediate_size=inner)
    with torch.device("meta"):
        model = BertForPreTraining(config)
    counted = sum(p.numel() for p in model.parameters())
    assert num_parameters(config) == counted
    assert counted == pytest.approx(num_parameters(plain), rel=0.01)


def test_arithmetic_is_what_the_network_computes(config: BertConfig) -> None:
    model = BertForPreTraining(config)
    ids = torch.randint(5, 80, (3, 16))
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        out = model(ids, mlm_positions=torch.arange(4).expand(3, 4))
        (out.mlm_logits.sum() + out.nsp_logits.sum()).backward()
    counted = counter.get_total_flops() - 3 * 2 * 3 * 2 * config.hidden_size  # without pairs
    assert counted == pytest.approx(training_flops(config, [16] * 3, 12), rel=1e-3)


def test_a_decoder_of_gates_counts_them(tiny_config: BertConfig) -> None:
    plain, gated = (
        generation_flops(replace(tiny_config, feed_forward=form), 2, 50, [7, 5], [4, 3])
        for form in ("plain", "gated")
    )
    # One product more of D x F for each token of source and target, in two layers of each.
    assert gated - plain == 3 * 2 * 2 * 32 * 64 * (7 + 5 + 4 + 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("norm", "feed_forward"), FORMS)
def test_activations_are_what_autograd_keeps(norm: str, feed_forward: str, precision: str) -> None:
    from minibert.estimate import held_bytes

    inner = 320 if feed_forward == "gated" else 512
    config = BertConfig(
        vocab_size=700,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=inner,
        norm=norm,
        feed_forward=feed_forward,
    )
    ids = torch.randint(5, 700, (12, 96))
    slots = torch.randint(5, 96, (12, 14))
    inputs = {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
        "mlm_positions": slots,
        "mlm_labels": slots,
        "next_sentence_label": torch.zeros(12, dtype=torch.int64),
    }
    model = BertForPreTraining(config)
    runtime = start_runtime("cpu", precision, deterministic=True)
    kept = kept_bytes(Trial(model, model, pretraining_terms, lambda size: inputs, runtime), 12)
    assert kept == pytest.approx(held_bytes(config, [96] * 12, 12 * 14, precision), rel=0.1)


# --- what builds on the backbone ------------------------------------------------------------------


def test_a_decoder_takes_its_encoders_form_and_writes_what_it_scores(
    config: BertConfig, tmp_path: Path
) -> None:
    encoder = BertModel(config)
    shake(encoder)
    encoder.save_pretrained(tmp_path)
    own = DecoderConfig(50, num_decoder_layers=2).added_to(BertConfig.from_pretrained(tmp_path))
    model = BertForConditionalGeneration.from_pretrained(tmp_path, own)
    encoder_state, decoder_state = model.bert.state_dict(), model.decoder.state_dict()
    alike = [name for name in decoder_state if name in encoder_state and "cross" not in name]
    taken = {name for name in alike if not name.startswith("embeddings.")}
    assert {name for name in encoder_state if name.startswith(("layers", "final"))} == taken
    assert all(torch.equal(decoder_state[name], encoder_state[name]) for name in taken)

    shake(model)
    model.eval()
    ids, targets = torch.randint(1, 80, (2, 7)), torch.randint(3, 50, (2, 5))
    whole = model(ids, decoder_input_ids=targets).logits
    cache = model.begin(ids)
    steps = [model.decoder.step(targets[:, i : i + 1], cache) for i in range(5)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)

    model.save_pretrained(tmp_path / "whole")
    back = BertForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert str(back.load_report) == "every tensor was used, none is new"
    torch.testing.assert_close(back(ids, decoder_input_ids=targets).logits, whole)


@torch.no_grad()
def test_int8_answers_are_near_those_of_float32(config: BertConfig, padded_batch: Batch) -> None:
    model = BertForSequenceClassification(config).eval()
    shake(model, 0.3)
    exact = model(**padded_batch, first_only=True).logits
    quantise_linears(model.bert.layers)
    assert not any(isinstance(part, nn.Linear) for part in model.bert.layers.modules())
    rounded = model(**padded_batch, first_only=True).logits
    assert not torch.equal(rounded, exact)
    # Up to 0.3 in 40 draws of gated weights, by which CPU a draw is worse; unrelated answers: 1.4.
    assert (rounded - exact).norm() < 0.45 * exact.norm()


@torch.no_grad()
def test_first_heads_begin_with_the_words_next_to_each_word(config: BertConfig) -> None:
    big = preset("mini", vocab_size=200)
    model = BertForPreTraining(replace(big, norm=config.norm, feed_forward=config.feed_forward))
    neighbour_attention(model)
    ids = torch.randint(5, 200, (64,))
    x = model.bert.embeddings(ids, torch.zeros_like(ids), torch.arange(64))
    first = model.bert.layers[0]
    query, key, _ = first.attention.qkv(first.attention_norm.before(x)).chunk(3, dim=-1)
    for head, offset in enumerate((-1, 1, -2, 2)):
        own = slice(64 * head, 64 * head + 64)
        weights = (query[:, own] @ key[:, own].T / 8).softmax(-1)
        assert weights.diagonal(offset)[2:-2].mean() > 0.4


def test_fresh_and_frozen_tops_include_the_last_norm(tiny_config: BertConfig) -> None:
    model = BertForSequenceClassification(replace(tiny_config, norm="pre"))
    shake(model)
    redraw_top(model, 1)
    assert (model.bert.final_norm.weight == 1).all()
    freeze_lowest(model, 1)
    assert model.bert.final_norm.weight.requires_grad
    freeze_lowest(model, 2)
    assert not model.bert.final_norm.weight.requires_grad


def test_commands_carry_a_model_of_another_form_to_its_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, reviews = write_corpus(tmp_path / "corpus.txt"), write_reviews(tmp_path / "reviews")
    shared = ["--max-seq-length", "32", "--batch-size", "4", "--max-steps", "2", "--device", "cpu"]
    start, tuned = str(tmp_path / "start"), str(tmp_path / "tuned")
    pretrain = ["pretrain", "--corpus", str(corpus), "--preset", "tiny", "--vocab-size", "60"]
    pretrain += ["--cache-dir", str(tmp_path / "cache"), "--output", start, *shared]
    assert main([*pretrain, "--norm", "pre", "--feed-forward", "gated"]) == 0
    assert "form: norm pre, feed-forward gated 320 wide" in capsys.readouterr().err
    written = json.loads((tmp_path / "start" / "config.json").read_text())
    assert (written["model_type"], written["intermediate_size"]) == ("minibert", 320)
    on = [*pretrain[:3], "--model", start, "--output", str(tmp_path / "on"), *shared]
    assert main([*on, "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "every tensor was used" in capsys.readouterr().err
    finetune = ["finetune", "--task", "imdb", "--data", str(reviews), "--model", start]
    assert main([*finetune, "--output", tuned, *shared]) == 0
    capsys.readouterr()
    assert main(["predict", tuned, "silver garden", "--precision", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"] in ("pos", "neg")
    assert main([*on[:-2], "--norm", "pre", "--overwrite"]) == 2
    assert "--norm has no use with --model: its form is kept" in capsys.readouterr().err
