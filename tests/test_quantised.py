"""Prediction in 8-bit integers: the layer, a fine-tuned model, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import CPU, one_thread, write_corpus, write_reviews  # noqa: F401
from torch import nn

import minibert
from minibert import predict
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.heads import BertForSequenceClassification
from minibert.quantised import Int8Linear, quantise_linears
from minibert.runtime import Runtime
from minibert.settings import FinetuneSettings
from minibert.tasks.batches import Feature, infer
from minibert.tasks.classification import ClassificationTask
from minibert.tasks.labelled_sets import read_imdb
from minibert.tokenizer import SPECIAL_TOKENS, WordPiece

# --- the layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_an_int8_layer_is_close_to_its_linear_layer(scale: float) -> None:
    linear, x = nn.Linear(256, 128), scale * torch.randn(50, 256)
    nn.init.zeros_(linear.bias)
    exact, rounded = linear(x), Int8Linear(linear)(x)
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.015  # 8 bits of each factor


def test_the_product_does_not_saturate() -> None:
    """Instructions of older CPUs add pairs in 16 bits, which the greatest numbers overflow."""
    x, weight = torch.full((3, 512), 127, dtype=torch.int8), torch.full((512, 8), 127)
    assert (torch._int_mm(x, weight.to(torch.int8)) == 127 * 127 * 512).all()
    assert (torch._int_mm(-x, weight.to(torch.int8)) == -127 * 127 * 512).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_greatest_input_of_a_token_keeps_its_sign(dtype: torch.dtype) -> None:
    """A reciprocal rounded up in bf16 must not carry it past 127."""
    linear = nn.Linear(1, 1)
    nn.init.ones_(linear.weight)
    nn.init.zeros_(linear.bias)
    x = torch.linspace(0.01, 40, 5000)[:, None].to(dtype)
    found = Int8Linear(linear)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, x, rtol=0.02, atol=0)


def test_a_tokens_answer_does_not_depend_on_the_tokens_beside_it() -> None:
    layer, x = Int8Linear(nn.Linear(64, 32)), torch.randn(6, 64)
    alone = layer(x)
    x[3] *= 1000
    beside = layer(x)
    others = [0, 1, 2, 4, 5]
    assert torch.equal(beside[others], alone[others])
    assert not torch.equal(beside[3], alone[3])


def test_a_token_of_zeros_gives_the_bias() -> None:
    linear = nn.Linear(16, 8)
    assert torch.equal(Int8Linear(linear)(torch.zeros(2, 16)), linear.bias.expand(2, 8))


def test_autocast_decides_the_type_as_for_any_linear_layer() -> None:
    layer, x = Int8Linear(nn.Linear(16, 8)), torch.randn(2, 16)
    assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_an_int8_model_is_not_saved() -> None:
    with pytest.raises(ValueError, match="save the model it was made from"):
        Int8Linear(nn.Linear(4, 4)).state_dict()


# --- a model --------------------------------------------------------------------------------------


def test_int8_predictions_do_not_depend_on_batch_or_order(
    tiny_config: BertConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config).eval()
    for weight in model.parameters():
        weight.data.mul_(8)  # answers that differ from text to text
    quantise_linears(model.bert.layers)
    assert not any(isinstance(part, nn.Linear) for part in model.bert.layers.modules())
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 80, n) for n in rng.integers(2, 40, 30)]
    task = ClassificationTask(FinetuneSettings(task="imdb"))
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\n")
    task.tokenizer = WordPiece.from_pretrained(tmp_path)

    def probabilities(given: list[np.ndarray], size: int) -> np.ndarray:
        features = [Feature({"input_ids": ids}, {}) for ids in given]
        return np.stack(infer(task, model, features, size, CPU))

    one = np.concatenate([probabilities([r], 1) for r in rows])
    assert one.std(axis=0).min() > 0.05  # or a wrong order could not be told
    order = rng.permutation(len(rows))
    mixed = probabilities([rows[i] for i in order], 7)
    for found, expected in ((probabilities(rows, 16), one), (mixed, one[order])):
        apart = np.abs(found - expected).max(axis=1)
        # A sum in another order may carry a number of a text over the edge between two steps of 8
        # bits: by 0.02 at most over 25 draws of the weights.
        assert np.median(apart) < 1e-5 and apart.max() < 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was really fine-tuned, beside its reviews."""
    world = tmp_path_factory.mktemp("int8")
    corpus = write_corpus(world / "corpus.txt")
    reviews = write_reviews(world / "reviews", count=40)
    shared = ["--max-seq-length", "64", "--batch-size", "8", "--device", "cpu"]
    pretrained = ["pretrain", "--corpus", corpus, "--preset", "tiny", "--vocab-size", "60"]
    pretrained += ["--max-steps", "2", "--cache-dir", world / "cache", "--output", world / "start"]
    assert main([*map(str, pretrained), *shared]) == 0
    tuned = ["finetune", "--task", "imdb", "--data", reviews, "--model", world / "start"]
    tuned += ["--max-steps", "80", "--learning-rate", "1e-3", "--output", world / "run"]
    assert main([*map(str, tuned), *shared]) == 0
    return world / "run"


def test_int8_gives_the_labels_of_fp32(run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    examples = read_imdb(run.parent / "reviews").test
    texts = [e.text for e in examples]
    exact = minibert.load(run, device="cpu", precision="fp32").probabilities(texts)
    hits = exact.argmax(1) == [("neg", "pos").index(e.label) for e in examples]
    assert hits.mean() > 0.8  # a model at chance would say nothing
    rounded = minibert.load(run, device="cpu", precision="int8").probabilities(texts)
    assert 0 < np.abs(rounded - exact).max() < 0.05
    assert (rounded.argmax(1) == exact.argmax(1)).mean() >= 0.97
    assert (run / "model.safetensors").read_bytes() == before


def test_the_commands_take_int8(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    line = ["--precision", "int8", "--device", "cpu"]
    assert main(["predict", str(run), "silver garden candle", "storm winter castle", *line]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["prediction"] for row in rows] == ["pos", "neg"]
    assert main(["evaluate", str(run), "--data", str(run.parent / "reviews"), *line]) == 0
    figures = json.loads(capsys.readouterr().out)
    results = json.loads((run / "results.json").read_text())
    assert figures["loss"] != results["loss"]
    assert figures["loss"] == pytest.approx(results["loss"], abs=0.02)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["pretrain --corpus text.txt --precision int8", "finetune --task imdb --precision int8"],
)
def test_training_in_int8_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    (complaint,) = capsys.readouterr().err.splitlines()
    assert "int8" in complaint
    assert "fp32" in complaint and "bf16" in complaint


def test_int8_on_another_device_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Runtime(torch.device("cuda:0"), "bf16")
    monkeypatch.setattr(predict, "start_runtime", lambda *args, **options: other)
    with pytest.raises(InputError, match="int8 is for a CPU, this is cuda:0; add --device cpu"):
        minibert.load(run, precision="int8")


def test_an_unknown_precision_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="'int4'; expected auto, fp32, bf16, int8"):
        minibert.load(run, precision="int4")
