"""The formula of useful operations against a count of what the network really does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minibert import runs
from minibert.adversarial import FastGradient
from minibert.config import BertConfig, preset
from minibert.finetuning import freeze_lowest
from minibert.flops import flops_through_frozen, measure_peak_flops, training_flops
from minibert.heads import BertForPreTraining, BertForSequenceClassification
from minibert.runtime import start_runtime
from minibert.settings import PretrainSettings
from minibert.train import ONE_PASS, Passes


@pytest.mark.parametrize("length", [7, 32])
def test_the_formula_is_what_pretraining_computes(tiny_config: BertConfig, length: int) -> None:
    model = BertForPreTraining(tiny_config)
    ids = torch.randint(5, 80, (3, length))
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        out = model(ids, mlm_positions=torch.arange(4).expand(3, 4))
        (out.mlm_logits.sum() + out.nsp_logits.sum()).backward()
    nsp = 3 * 2 * 3 * 2 * tiny_config.hidden_size  # the classifier, left out as too small
    counted = counter.get_total_flops() - nsp
    assert counted == pytest.approx(training_flops(tiny_config, [length] * 3, 12), rel=1e-3)


def test_the_formula_is_what_finetuning_computes(tiny_config: BertConfig) -> None:
    model = BertForSequenceClassification(tiny_config)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        model(torch.randint(5, 80, (2, 9))).logits.sum().backward()
    classifier = 3 * 2 * 2 * tiny_config.num_labels * tiny_config.hidden_size
    counted = counter.get_total_flops() - classifier
    assert counted == pytest.approx(training_flops(tiny_config, [9, 9]), rel=1e-3)


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_layers_have_no_backward_pass(tiny_config: BertConfig, frozen: int) -> None:
    whole = training_flops(tiny_config, [16] * 4)
    found = training_flops(tiny_config, [16] * 4, 0, frozen)
    model = BertForSequenceClassification(tiny_config)
    freeze_lowest(model, frozen)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        model(torch.ones(4, 16, dtype=torch.int64)).logits.sum().backward()
    assert whole > found
    # Nothing is asked of what goes into the lowest layer that learns, which is counted.
    assert counter.get_total_flops() == pytest.approx(found, rel=0.2)


@pytest.mark.parametrize("frozen", [1, 2])
def test_a_gradient_reaches_the_embeddings_through_frozen_layers(
    tiny_config: BertConfig, frozen: int
) -> None:
    model = BertForSequenceClassification(replace(tiny_config, num_hidden_layers=3))
    freeze_lowest(model, frozen)

    def counted(passes: Passes) -> int:
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
            for opened in passes.values():
                with opened():
                    loss = model(torch.ones(4, 16, dtype=torch.int64)).logits.sum()
                loss.backward()
        total: int = counter.get_total_flops()
        return total

    plain, adversarial = counted(ONE_PASS), counted(FastGradient(model, 1.0).passes)
    below = flops_through_frozen(tiny_config, [16] * 4, frozen)
    # What goes into query, key and value of the lowest layer that learns: see the test above.
    lowest = 6 * tiny_config.hidden_size**2 * 4 * 16
    assert adversarial == pytest.approx(2 * plain + below + lowest, rel=1e-3)


def test_padding_counts_nothing(tiny_config: BertConfig) -> None:
    model = BertForSequenceClassification(tiny_config).eval()
    mask = torch.arange(32) < torch.tensor([32, 3, 3])[:, None]
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        model(torch.randint(5, 80, (3, 32)), attention_mask=mask)
    padded = training_flops(tiny_config, [32] * 3) / 3
    assert counter.get_total_flops() < 0.7 * padded


def test_base_costs_what_is_published() -> None:
    # Six operations a parameter and token, embeddings left out (Kaplan et al. 2020, section 2.1),
    # and attention on top: 85 M parameters of BERT-base, 12 layers of 12 * 768^2 and a little.
    config = preset("base")
    tokens = [128] * 8
    plain = 6 * 12 * 12 * 768**2 * sum(tokens)
    assert plain < training_flops(config, tokens) < 1.1 * plain
    assert training_flops(config, tokens, 160) > training_flops(config, tokens)


def test_the_peak_is_measured_once_and_is_no_fantasy(tiny_config: BertConfig) -> None:
    peak = measure_peak_flops(
        replace(tiny_config, hidden_size=256, intermediate_size=1024),
        512,
        start_runtime("cpu", "fp32", True),
    )
    assert 1e8 < peak < 1e14


def test_a_run_that_goes_on_takes_the_greater_peak_of_the_same_place(
    tiny_config: BertConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun beside other work would else be said to use more than the machine has."""
    settings, runtime = PretrainSettings(corpus=("text.txt",)), start_runtime("cpu", "fp32", True)
    monkeypatch.setattr(runs, "measure_peak_flops", lambda *args: 5e9)
    begun = runs.run_record("pretrain", settings, "", runtime)

    def peak(begun: dict[str, Any] | None) -> float:
        return runs.utilisation(settings, tiny_config, runtime, begun).peak_flops

    assert peak(None) == 5e9
    begun["resolved"]["peak_flops"] = 2e9
    assert peak(begun) == 5e9
    begun["resolved"]["peak_flops"] = 7e9
    assert peak(begun) == 7e9
    begun["resolved"]["device"] = "cuda"
    assert peak(begun) == 5e9
