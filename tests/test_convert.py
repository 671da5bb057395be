"""Model folders in and out, and the whole network against transformers' BERT."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.convert import (
    name_table,
    published_tensors,
    save_tensors,
    to_published,
    weights_file,
)
from minibert.errors import InputError
from minibert.heads import BertForPreTraining, BertForSequenceClassification
from minibert.losses import masked_lm_loss, next_sentence_loss
from minibert.model import BertModel
from minibert.model_folders import open_model_folder
from minibert.runs import weights_digest
from minibert.token_heads import BertForQuestionAnswering, BertForTokenClassification

Batch = dict[str, Tensor]
Model = (
    BertModel
    | BertForPreTraining
    | BertForSequenceClassification
    | BertForTokenClassification
    | BertForQuestionAnswering
)
MODELS = [
    BertModel,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertForQuestionAnswering,
]

# Changes to the tiny config; each meets another part of the mathematics.
VARIANTS: list[dict[str, Any]] = [
    {},
    {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "gelu_new",
        "initializer_range": 0.15,
    },
    {"hidden_act": "relu", "type_vocab_size": 3, "initializer_range": 0.1, "layer_norm_eps": 1e-5},
    {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 24, "pad_token_id": 3},
]


@pytest.fixture
def transformers() -> ModuleType:
    return pytest.importorskip("transformers")


def shake(module: nn.Module, std: float = 0.02) -> None:
    """Moves every parameter, so that biases are not 0, norms not 1, and no two tensors alike."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)


def reference_model(transformers: ModuleType, config: BertConfig) -> Any:
    """transformers' BERT for pretraining with random weights at the config's own scale."""
    published = transformers.BertConfig(**config.to_dict())
    model = transformers.BertForPreTraining(published).eval()
    shake(model, config.initializer_range)
    return model


def hf_folder(model: Any, folder: Path) -> Path:
    """A folder as transformers itself writes it."""
    model.save_pretrained(folder)
    return folder


def make_folder(
    folder: Path,
    config: BertConfig | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """A model folder holding exactly these parts."""
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
    if tensors is not None:
        plain = {name: value.clone().contiguous() for name, value in tensors.items()}
        save_file(plain, folder / "model.safetensors")
    return folder


def assert_same_state(ours: nn.Module, other: nn.Module) -> None:
    ours_state, other_state = ours.state_dict(), other.state_dict()
    assert ours_state.keys() == other_state.keys()
    for name, value in ours_state.items():
        assert torch.equal(value, other_state[name]), name


# The table


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_name_table_covers_every_parameter_exactly_once(
    tiny_config: BertConfig, layers: int
) -> None:
    config = replace(tiny_config, num_hidden_layers=layers)
    table = name_table(layers)
    covered = set()
    for kind in MODELS:
        prefix = "bert." if kind is BertModel else ""
        names = [prefix + name for name, _ in kind(config).named_parameters()]
        assert set(names) <= set(table)
        covered |= set(names)
    assert covered == set(table)
    published = list(itertools.chain.from_iterable(table.values()))
    assert len(published) == len(set(published))


@pytest.mark.parametrize("name", ["minibert-mini-en", "minibert-small-en"])
def test_transformers_cuts_a_long_text_to_what_a_bundled_model_takes(
    transformers: ModuleType, name: str
) -> None:
    folder = open_model_folder(name)
    ids = transformers.AutoTokenizer.from_pretrained(folder)("film " * 600, truncation=True)
    record = json.loads((folder / "run.json").read_text())
    assert len(ids["input_ids"]) == record["resolved"]["trained_positions"] == 256


def test_name_table_names_what_transformers_names(
    transformers: ModuleType, tiny_config: BertConfig
) -> None:
    published = transformers.BertConfig(**tiny_config.to_dict())
    theirs = dict(transformers.BertForPreTraining(published).named_parameters())
    theirs |= dict(transformers.BertForSequenceClassification(published).named_parameters())
    theirs |= dict(transformers.BertForQuestionAnswering(published).named_parameters())
    ours = set(itertools.chain.from_iterable(name_table(2).values()))
    # The decoder repeats the word embedding and the bias.
    assert {n for n in theirs if not n.startswith("cls.predictions.decoder.")} == ours


# Round trips


@pytest.mark.parametrize("kind", MODELS)
def test_round_trip_is_equal_bit_for_bit(
    tiny_config: BertConfig, tmp_path: Path, padded_batch: Batch, kind: type[Model]
) -> None:
    config = replace(tiny_config, id2label={0: "a", 1: "b", 2: "c"}, extra={"note": "kept"})
    model = kind(config).eval()
    shake(model)
    model.save_pretrained(tmp_path / "deep" / "model")
    loaded = kind.from_pretrained(tmp_path / "deep" / "model")
    assert_same_state(model, loaded)
    assert not loaded.load_report.newly_initialised
    assert not loaded.load_report.left_out
    assert loaded.config == replace(model.config, architectures=(kind.__name__,))
    assert kind is BertForQuestionAnswering or model.config == config  # classes mean nothing there
    for ours, other in zip(model(**padded_batch), loaded(**padded_batch), strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours, other)


def test_a_saved_folder_holds_two_whole_files(tiny_config: BertConfig, tmp_path: Path) -> None:
    BertModel(tiny_config).save_pretrained(tmp_path)
    BertModel(tiny_config).save_pretrained(tmp_path)  # and again, over the first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_loaded_model_is_in_eval_mode(tiny_config: BertConfig, tmp_path: Path) -> None:
    BertForSequenceClassification(tiny_config).train().save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    assert not any(part.training for part in loaded.modules())


def test_half_precision_weights_are_cast_to_float32(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    model = BertModel(tiny_config)
    halves = {name: value.half() for name, value in published_tensors(model).items()}
    loaded = BertModel.from_pretrained(make_folder(tmp_path / "half", tiny_config, halves))
    for (_, ours), (_, half) in zip(
        loaded.named_parameters(), model.half().named_parameters(), strict=True
    ):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, half.float())


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_saved_config_does_not_claim_another_dtype_than_the_weights(
    tiny_config: BertConfig, tmp_path: Path, key: str
) -> None:
    halves = {k: v.half() for k, v in published_tensors(BertModel(tiny_config)).items()}
    source = make_folder(tmp_path / "half", replace(tiny_config, extra={key: "float16"}), halves)
    BertModel.from_pretrained(source).save_pretrained(tmp_path / "saved")
    stored = {str(v.dtype) for v in load_file(tmp_path / "saved" / "model.safetensors").values()}
    assert stored == {"torch.float32"}
    assert json.loads((tmp_path / "saved" / "config.json").read_text()).get(key) != "float16"


def test_a_given_config_replaces_that_of_the_folder(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    BertForPreTraining(tiny_config).save_pretrained(tmp_path)
    config = replace(tiny_config, id2label={i: str(i) for i in range(5)})
    loaded = BertForSequenceClassification.from_pretrained(tmp_path, config)
    assert loaded.classifier.out_features == 5
    assert loaded.config == config


# Parity with transformers


@pytest.mark.parametrize("changes", VARIANTS)
def test_outputs_losses_and_gradients_equal_transformers(
    transformers: ModuleType,
    tiny_config: BertConfig,
    padded_batch: Batch,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    config = replace(tiny_config, **changes)
    theirs = reference_model(transformers, config)
    ours = BertForPreTraining.from_pretrained(hf_folder(theirs, tmp_path / "hf"))
    assert not ours.load_report.newly_initialised
    assert not ours.load_report.left_out
    real = padded_batch["attention_mask"].bool()
    slots = real & (torch.rand(3, 12) < 0.6)
    slots[:, 1] = True
    labels = torch.randint(1, 80, (3, 12)).masked_fill(~slots, -100)
    follows = torch.tensor([0, 1, 1])

    expected = theirs(
        **padded_batch, labels=labels, next_sentence_label=follows, output_hidden_states=True
    )
    got = ours(**padded_batch)
    states = ours.bert(**padded_batch, output_hidden_states=True)
    assert len(states.hidden_states) == len(expected.hidden_states)

    def close(one: Tensor, other: Tensor, name: str) -> None:
        torch.testing.assert_close(
            one, other, atol=1e-5, rtol=0, msg=lambda text: f"{name}: {text}"
        )

    for i, (one, other) in enumerate(
        zip(states.hidden_states, expected.hidden_states, strict=True)
    ):
        close(one[real], other[real], f"hidden state {i}")
    pooled = theirs.bert(**padded_batch).pooler_output
    close(got.pooler_output, pooled, "pooled output")
    close(got.mlm_logits[real], expected.prediction_logits[real], "MLM logits")
    close(got.nsp_logits, expected.seq_relationship_logits, "NSP logits")

    mlm_sum, mlm_count = masked_lm_loss(got.mlm_logits, labels)
    nsp_sum, nsp_count = next_sentence_loss(got.nsp_logits, follows)
    assert mlm_count == slots.sum()
    their_mlm = F.cross_entropy(expected.prediction_logits[slots], labels[slots])
    close(mlm_sum / mlm_count, their_mlm, "MLM loss")
    their_nsp = F.cross_entropy(expected.seq_relationship_logits, follows)
    close(nsp_sum / nsp_count, their_nsp, "NSP loss")
    loss = mlm_sum / mlm_count + nsp_sum / nsp_count
    close(loss, expected.loss, "loss")

    loss.backward()
    expected.loss.backward()
    grads = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    mapped = to_published(grads, config.num_hidden_layers)
    their_grads = {name: p.grad for name, p in theirs.named_parameters()}
    assert mapped.keys() == their_grads.keys()
    for name, grad in mapped.items():
        close(grad, their_grads[name], name)
        if not name.endswith("key.bias"):  # a key's bias moves all scores alike: softmax drops it
            assert grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("kind", [BertModel, BertForPreTraining])
def test_a_saved_folder_opens_as_an_auto_model_with_the_same_outputs(
    transformers: ModuleType,
    tiny_config: BertConfig,
    padded_batch: Batch,
    tmp_path: Path,
    kind: type[Model],
) -> None:
    model = kind(tiny_config).eval()
    shake(model)
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(theirs) is transformers.BertModel
    ours, expected = model(**padded_batch), theirs(**padded_batch)
    real = padded_batch["attention_mask"].bool()
    torch.testing.assert_close(
        ours.last_hidden_state[real], expected.last_hidden_state[real], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(ours.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "auto", "outputs"),
    [
        (
            BertForPreTraining,
            "AutoModelForPreTraining",
            {"mlm_logits": "prediction_logits", "nsp_logits": "seq_relationship_logits"},
        ),
        (
            BertForSequenceClassification,
            "AutoModelForSequenceClassification",
            {"logits": "logits"},
        ),
        (
            BertForTokenClassification,
            "AutoModelForTokenClassification",
            {"logits": "logits"},
        ),
        (
            BertForQuestionAnswering,
            "AutoModelForQuestionAnswering",
            {"start_logits": "start_logits", "end_logits": "end_logits"},
        ),
    ],
)
def test_saved_heads_open_in_transformers_with_nothing_missing(
    transformers: ModuleType,
    tiny_config: BertConfig,
    tmp_path: Path,
    kind: type[Model],
    auto: str,
    outputs: dict[str, str],
) -> None:
    config = replace(tiny_config, id2label={0: "a", 1: "b", 2: "c"})
    model = kind(config).eval()
    shake(model)
    model.save_pretrained(tmp_path)
    theirs, info = getattr(transformers, auto).from_pretrained(
        tmp_path, local_files_only=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(theirs).__name__ == kind.__name__
    assert theirs.config.id2label == (model.config.id2label or {0: "LABEL_0", 1: "LABEL_1"})
    ids = torch.randint(1, 80, (2, 9))
    ours, expected = model(ids), theirs.eval()(ids)
    for name, their_name in outputs.items():
        torch.testing.assert_close(
            getattr(ours, name), getattr(expected, their_name), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        (BertForTokenClassification, ["logits"]),
        (BertForQuestionAnswering, ["start_logits", "end_logits"]),
    ],
)
def test_token_heads_that_transformers_saved_give_its_outputs(
    transformers: ModuleType,
    tiny_config: BertConfig,
    padded_batch: Batch,
    tmp_path: Path,
    kind: type[BertForTokenClassification] | type[BertForQuestionAnswering],
    outputs: list[str],
) -> None:
    config = replace(tiny_config, id2label={i: str(i) for i in range(5)})
    if kind is BertForQuestionAnswering:
        config = tiny_config
    published = transformers.BertConfig(**config.to_dict())
    theirs = getattr(transformers, kind.__name__)(published).eval()
    shake(theirs)
    ours = kind.from_pretrained(hf_folder(theirs, tmp_path / "hf"))
    assert not ours.load_report.newly_initialised
    assert not ours.load_report.left_out
    got, expected = ours(**padded_batch), theirs(**padded_batch)
    real = padded_batch["attention_mask"].bool()
    for name in outputs:
        one, other = getattr(got, name)[real], getattr(expected, name)[real]
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [BertForTokenClassification, BertForQuestionAnswering])
def test_a_token_head_takes_the_backbone_and_says_what_it_left(
    tiny_config: BertConfig,
    tmp_path: Path,
    kind: type[BertForTokenClassification] | type[BertForQuestionAnswering],
) -> None:
    pretrained = BertForPreTraining(tiny_config)
    pretrained.save_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path)
    head = "classifier" if kind is BertForTokenClassification else "qa_outputs"
    assert model.load_report.newly_initialised == (f"{head}.weight", f"{head}.bias")
    assert "bert.pooler.dense.weight" in model.load_report.left_out
    assert torch.equal(
        model.bert.layers[0].attention.qkv.weight, pretrained.bert.layers[0].attention.qkv.weight
    )
    model(torch.ones(1, 4, dtype=torch.int64))[0].sum().backward()  # and no weight lies idle
    assert all(p.grad is not None for p in model.parameters())


# Checkpoints as others wrote them


def with_old_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LayerNorm.gamma and beta, as the converters of 2018 wrote them."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name: str) -> str:
        for new, past in old.items():
            name = name.replace(new, past)
        return name

    return {rename(name): value for name, value in tensors.items()}


def with_strays(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the buffers and repeats that published folders carry."""
    return {
        **tensors,
        "bert.embeddings.position_ids": torch.arange(40)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }


def with_the_decoder_bias_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The MLM bias stored as the decoder's alone."""
    rest = dict(tensors)
    bias = rest.pop("cls.predictions.bias")
    return {**rest, "cls.predictions.decoder.bias": bias}


@pytest.mark.parametrize("rewrite", [with_old_norms, with_strays, with_the_decoder_bias_only])
def test_other_spellings_load_as_the_same_model(
    tiny_config: BertConfig,
    tmp_path: Path,
    rewrite: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> None:
    model = BertForPreTraining(tiny_config)
    shake(model)
    tensors = rewrite(published_tensors(model))
    assert tensors.keys() != published_tensors(model).keys()
    loaded = BertForPreTraining.from_pretrained(make_folder(tmp_path / "m", tiny_config, tensors))
    assert_same_state(model, loaded)
    assert str(loaded.load_report) == "every tensor was used, none is new"


@pytest.mark.parametrize("kind", [BertModel, BertForPreTraining])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_backbones_load_with_and_without_prefix(
    tiny_config: BertConfig, tmp_path: Path, prefix: str, kind: type[Model]
) -> None:
    backbone = BertModel(tiny_config)
    shake(backbone)
    tensors = {prefix + name: value for name, value in published_tensors(backbone).items()}
    tensors[prefix + "embeddings.position_ids"] = torch.arange(40)[None]
    loaded = kind.from_pretrained(make_folder(tmp_path / "m", tiny_config, tensors))
    assert_same_state(backbone, loaded if isinstance(loaded, BertModel) else loaded.bert)
    assert loaded.load_report.left_out == ()


def test_a_checkpoint_without_heads_reports_them_as_new(
    tiny_config: BertConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BertModel(tiny_config).save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="minibert"):
        report = BertForPreTraining.from_pretrained(tmp_path).load_report
    heads = {"mlm.bias"} | {
        f"{part}.{kind}" for part in ("mlm.dense", "mlm.norm", "nsp") for kind in ("weight", "bias")
    }
    assert set(report.newly_initialised) == heads
    assert report.left_out == ()
    assert "newly initialised" in caplog.text
    assert "nsp" in caplog.text


def test_a_checkpoint_without_pooler_reports_it_as_new(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    model = BertModel(tiny_config)
    tensors = {k: v for k, v in published_tensors(model).items() if not k.startswith("pooler")}
    loaded = BertModel.from_pretrained(make_folder(tmp_path / "m", tiny_config, tensors))
    new = loaded.load_report.newly_initialised
    assert set(new) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_left_out_names_the_tensors_of_the_folder(tiny_config: BertConfig, tmp_path: Path) -> None:
    tensors = published_tensors(BertForPreTraining(tiny_config)) | {"made.up": torch.ones(2)}
    folder = make_folder(tmp_path / "m", tiny_config, tensors)
    left = BertModel.from_pretrained(folder).load_report.left_out
    assert set(left) == {name for name in tensors if not name.startswith("bert.")}


def test_missing_layers_are_reported_and_further_ones_left_out(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    BertModel(tiny_config).save_pretrained(tmp_path)
    deeper = BertModel.from_pretrained(tmp_path, replace(tiny_config, num_hidden_layers=3))
    assert {n.split(".")[1] for n in deeper.load_report.newly_initialised} == {"2"}
    shallower = BertModel.from_pretrained(tmp_path, replace(tiny_config, num_hidden_layers=1))
    assert shallower.load_report.newly_initialised == ()
    assert len(shallower.load_report.left_out) == 16  # the tensors of one published layer
    assert all("encoder.layer.1." in name for name in shallower.load_report.left_out)


# Old weights files, which are pickles


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_bin_weights_load(tiny_config: BertConfig, tmp_path: Path, zipped: bool) -> None:
    model = BertForPreTraining(tiny_config)
    folder = make_folder(tmp_path / "m", tiny_config)
    torch.save(
        published_tensors(model),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    assert_same_state(model, BertForPreTraining.from_pretrained(folder))


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_that_would_run_code_is_refused_and_not_run(
    tiny_config: BertConfig, tmp_path: Path, zipped: bool
) -> None:
    folder, mark = make_folder(tmp_path / "m", tiny_config), tmp_path / "ran"
    path = folder / "pytorch_model.bin"
    content = {**published_tensors(BertModel(tiny_config)), "trap": Trap(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        BertModel.from_pretrained(folder)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the trap works: it was the loader that did not step on it


def test_a_bare_pickle_that_would_run_code_is_refused_and_not_run(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    folder, mark = make_folder(tmp_path / "m", tiny_config), tmp_path / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        BertModel.from_pretrained(folder)
    assert not mark.exists()


def test_safetensors_are_preferred_to_a_bin(tiny_config: BertConfig, tmp_path: Path) -> None:
    model = BertModel(tiny_config)
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert_same_state(model, BertModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.02, 0.06, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_bin_is_named(
    tiny_config: BertConfig, tmp_path: Path, zipped: bool, share: float
) -> None:
    folder = make_folder(tmp_path / "m", tiny_config)
    path = folder / "pytorch_model.bin"
    torch.save(
        published_tensors(BertModel(tiny_config)), path, _use_new_zipfile_serialization=zipped
    )
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        BertModel.from_pretrained(folder)


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), 7, {"step": 1}])
def test_a_bin_that_holds_no_named_tensors_is_an_input_error(
    tiny_config: BertConfig, tmp_path: Path, content: object
) -> None:
    folder = make_folder(tmp_path / "m", tiny_config)
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=str(folder)):
        BertModel.from_pretrained(folder)


# Folders that are wrong


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_safetensors_are_named(
    tiny_config: BertConfig, tmp_path: Path, keep: int
) -> None:
    BertModel(tiny_config).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or truncated"):
        BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embeddings.word_embeddings.weight", (81, 32)),
        ("embeddings.position_embeddings.weight", (512, 32)),
        ("encoder.layer.1.intermediate.dense.bias", (65,)),
        ("encoder.layer.0.attention.self.key.weight", (33, 32)),
        ("encoder.layer.0.attention.self.query.weight", (32, 16)),  # cannot be laid on the others
        ("encoder.layer.0.attention.self.value.weight", ()),
        ("pooler.dense.weight", (32,)),
    ],
)
def test_a_wrong_shape_is_named(
    tiny_config: BertConfig, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    tensors = published_tensors(BertModel(tiny_config)) | {name: torch.zeros(shape)}
    folder = make_folder(tmp_path / "m", tiny_config, tensors)
    with pytest.raises(InputError, match="shape") as caught:
        BertModel.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_query_and_key_of_unlike_heights_are_not_mixed(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    attention = "encoder.layer.0.attention.self."
    tensors = published_tensors(BertModel(tiny_config)) | {
        attention + "query.weight": torch.zeros(24, 32),  # together as high as they should be
        attention + "key.weight": torch.zeros(40, 32),
    }
    with pytest.raises(InputError, match="shape"):
        BertModel.from_pretrained(make_folder(tmp_path / "m", tiny_config, tensors))


def test_wrong_shape_names_the_tensor_and_both_shapes(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    BertModel(tiny_config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"embeddings\.word.*\(80, 32\).*\(90, 32\)"):
        BertModel.from_pretrained(tmp_path, replace(tiny_config, vocab_size=90))


def test_a_missing_config_is_named(tiny_config: BertConfig, tmp_path: Path) -> None:
    tensors = published_tensors(BertModel(tiny_config))
    folder = make_folder(tmp_path / "m", None, tensors)
    with pytest.raises(InputError, match=r"m/config\.json does not exist"):
        BertModel.from_pretrained(folder)


def test_missing_weights_are_named(tiny_config: BertConfig, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", tiny_config)
    with pytest.raises(InputError, match=r"m holds neither model\.safetensors nor pytorch_model"):
        BertModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files_are_named(
    tiny_config: BertConfig, tmp_path: Path, name: str
) -> None:
    folder = make_folder(tmp_path / "m", tiny_config)
    (folder / f"{name}.index.json").write_text("{}")
    for read in (BertModel.from_pretrained, weights_digest):
        with pytest.raises(InputError, match=rf"several files, which {name}\.index\.json lists"):
            read(folder)
    (folder / "model.safetensors").touch()
    assert weights_file(folder).name == "model.safetensors"


def test_a_folder_that_is_a_file_or_nothing_is_named(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    BertModel(tiny_config).save_pretrained(tmp_path / "m")
    for wrong in (tmp_path / "m" / "model.safetensors", tmp_path / "absent"):
        with pytest.raises(InputError, match=f"{wrong.name} is not a folder"):
            BertModel.from_pretrained(wrong)


def test_weights_of_something_else_are_refused(tiny_config: BertConfig, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", tiny_config, {"h.0.mlp.weight": torch.ones(2)})
    with pytest.raises(InputError, match=r"no tensor of a BERT.*h\.0\.mlp\.weight"):
        BertModel.from_pretrained(folder)


def test_tensors_that_share_memory_are_each_saved_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    tensors = {"a": whole[2:], "b": whole, "c": whole, "d": whole[1], "e": whole.T, "f": whole[:0]}
    save_tensors(tensors, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_failed_save_leaves_the_old_weights(
    tiny_config: BertConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = BertModel(tiny_config)
    first.save_pretrained(tmp_path)

    def full_disk(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    second = BertModel(tiny_config)
    with pytest.raises(OSError, match="No space left"):
        second.save_pretrained(tmp_path)
    assert_same_state(first, BertModel.from_pretrained(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
