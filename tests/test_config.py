"""The config: published sizes, `config.json` in both directions, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import minibert
from minibert.config import PRESETS, BertConfig, preset
from minibert.errors import InputError
from minibert.model import BertModel

# Turc et al. 2019 and Devlin et al. 2019: layers, hidden, heads, feed-forward, all parameters of
# the backbone with pooler.
PUBLISHED_SIZES = {
    "tiny": (2, 128, 2, 512, 4_385_920),
    "mini": (4, 256, 4, 1024, 11_170_560),
    "small": (4, 512, 8, 2048, 28_763_648),
    "medium": (8, 512, 8, 2048, 41_373_184),
    "base": (12, 768, 12, 3072, 109_482_240),
    "large": (24, 1024, 16, 4096, 335_141_888),
}

# As bert-base-uncased publishes it, with keys that mean nothing here.
PUBLISHED: dict[str, Any] = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.2,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.3,
    "hidden_size": 96,
    "initializer_range": 0.05,
    "intermediate_size": 200,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "model_type": "bert",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 3,
    "use_cache": True,
    "vocab_size": 99,
    "made_up": {"nested": [1, None, "two"]},
}


def through_json(config: BertConfig) -> BertConfig:
    """The config as another process reads it back."""
    return BertConfig.from_dict(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_presets_have_the_published_shapes(name: str) -> None:
    config = preset(name)
    layers, hidden, heads, intermediate, _ = PUBLISHED_SIZES[name]
    assert config.num_hidden_layers == layers
    assert config.hidden_size == hidden
    assert config.num_attention_heads == heads
    assert config.intermediate_size == intermediate
    assert (config.vocab_size, config.max_position_embeddings) == (30522, 512)


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_presets_have_the_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = BertModel(preset(name))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_SIZES[name][-1]


def test_presets_are_exactly_the_published_six() -> None:
    assert set(PRESETS) == set(PUBLISHED_SIZES)


def test_preset_takes_changes_and_leaves_the_table_alone() -> None:
    before = dict(PRESETS)
    assert preset("tiny", vocab_size=7).vocab_size == 7
    assert before == PRESETS
    with pytest.raises(InputError, match="hidden_act"):
        preset("tiny", hidden_act="zap")


def test_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'bsae'.*did you mean 'base'"):
        preset("bsae")
    with pytest.raises(InputError, match=r"'xyz'.*tiny, mini, small, medium, base, large"):
        preset("xyz")


def test_published_config_is_read_field_by_field() -> None:
    config = BertConfig.from_dict(PUBLISHED)
    for f in dataclasses.fields(BertConfig):
        if f.name in PUBLISHED and f.name != "architectures":
            assert getattr(config, f.name) == PUBLISHED[f.name], f.name
    assert config.architectures == ("BertForMaskedLM",)


def test_every_published_key_survives_a_round_trip() -> None:
    assert PUBLISHED.items() <= BertConfig.from_dict(PUBLISHED).to_dict().items()


def test_round_trip_through_json_gives_the_same_config() -> None:
    config = BertConfig.from_dict(PUBLISHED)
    assert through_json(config) == config
    assert through_json(preset("mini")) == preset("mini")


def test_reading_does_not_change_what_was_read() -> None:
    given = json.loads(json.dumps({**PUBLISHED, "num_labels": 3}))
    copy = json.loads(json.dumps(given))
    BertConfig.from_dict(given)
    assert given == copy


def test_null_means_the_default() -> None:
    config = BertConfig.from_dict({"classifier_dropout": None, "pad_token_id": None})
    assert config.classifier_dropout is None
    assert config.pad_token_id == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("hidden_act", "swish"),
        ("model_type", "roberta"),
    ],
)
def test_values_that_change_the_mathematics_are_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{key} is {value!r}"):
        BertConfig.from_dict({**PUBLISHED, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("position_embedding_type", "absolute"), ("is_decoder", False), ("hidden_act", "relu")],
)
def test_values_that_keep_the_mathematics_are_accepted(key: str, value: object) -> None:
    assert BertConfig.from_dict({**PUBLISHED, key: value}).to_dict()[key] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", 0),
        ("num_attention_heads", 0),
        ("intermediate_size", -1),
        ("max_position_embeddings", 0),
        ("type_vocab_size", 0),
        ("num_hidden_layers", -1),
        ("hidden_size", 100),  # not a multiple of 12 heads
        ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", -0.1),
        ("classifier_dropout", 2.0),
    ],
)
def test_impossible_numbers_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{field}.*{value}"):
        BertConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", "60"),
        ("hidden_size", 96.0),
        ("hidden_dropout_prob", "a lot"),
        ("num_labels", "many"),
        ("id2label", ["bad", "good"]),
        ("id2label", {"first": "bad"}),
        ("pad_token_id", 99),  # of 99 tokens, 0 to 98
        ("pad_token_id", -100),
        ("initializer_range", -0.02),
        ("initializer_range", float("nan")),
        ("layer_norm_eps", -1.0),
        ("layer_norm_eps", float("nan")),
    ],
)
def test_values_that_cannot_be_built_are_input_errors(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        BertConfig.from_dict({**PUBLISHED, field: value})


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(InputError) as caught:
        BertConfig(vocab_size=0, hidden_dropout_prob=3.0, hidden_act="zap", num_hidden_layers=-2)
    for name in ("vocab_size", "hidden_dropout_prob", "hidden_act", "num_hidden_layers"):
        assert name in str(caught.value)


def test_label_names_are_read_and_written_both_ways() -> None:
    published = {**PUBLISHED, "id2label": {"0": "bad", "1": "good", "2": "so-so"}}
    config = BertConfig.from_dict({**published, "label2id": {"bad": 0, "good": 1, "so-so": 2}})
    assert config.num_labels == 3
    assert config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    written = config.to_dict()
    assert written["id2label"] == published["id2label"]
    assert written["label2id"] == config.label2id
    assert through_json(config) == config


def test_a_number_of_labels_alone_names_them() -> None:
    config = BertConfig.from_dict({**PUBLISHED, "num_labels": 3})
    assert config.num_labels == 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert through_json(config).num_labels == 3


def test_no_labels_mean_two_classes_and_no_label_keys() -> None:
    config = BertConfig.from_dict(PUBLISHED)
    assert config.num_labels == 2
    assert not {"id2label", "label2id", "num_labels"} & config.to_dict().keys()


def test_naming_other_classes_leaves_no_old_number_behind() -> None:
    published = {**PUBLISHED, "num_labels": 3, "id2label": {"0": "a", "1": "b", "2": "c"}}
    config = dataclasses.replace(BertConfig.from_dict(published), id2label={0: "x", 1: "y"})
    written = config.to_dict()
    assert written.get("num_labels", 2) == 2
    assert written["id2label"] == {"0": "x", "1": "y"}
    assert written["label2id"] == {"x": 0, "y": 1}


def test_config_json_is_found_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert BertConfig.from_pretrained(tmp_path) == BertConfig.from_dict(PUBLISHED)


@pytest.mark.parametrize("content", [None, "{", "[1]", "\x00"])
def test_missing_or_broken_config_json_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        BertConfig.from_pretrained(tmp_path)


def test_config_is_importable_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from minibert.config import BertConfig, preset\n"
        "import minibert\n"
        "assert minibert.preset('tiny') == preset('tiny')\n"
        "print(BertConfig.from_dict(preset('base').to_dict()).hidden_size)\n"
    )
    root = str(Path(minibert.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "768\n"


@pytest.mark.parametrize("names", [["neg", "pos"], {"0": "neg", "1": "pos"}, "neg, pos"])
def test_classes_are_named_by_number(names: Any) -> None:
    with pytest.raises(InputError, match=r"id2label is .*neg.*must be names by number: \{0: '"):
        BertConfig(id2label=names)
