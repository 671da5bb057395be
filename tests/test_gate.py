"""The gate that fast paths must pass: what is off is off, and none changes the arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gate
from minibert import heads, kernels, model, optim
from minibert.config import preset
from minibert.heads import BertForPreTraining
from minibert.sharding import clip_gradients

_HOMES = {
    "unpadding": (model, "unpadded_layout"),
    "attention by products": (model, "attention"),
    "shared random words": (kernels, "dropout"),
    "decoder": (heads.MaskedLMHead, "score"),
    "used slots": (heads, "_used_slots"),
    "last layer": (heads.BertForPreTraining, "_states_at"),
    "optimizer": (optim, "_adamw"),
}


@pytest.mark.parametrize("lever", _HOMES)
def test_only_the_path_named_is_on(lever: str) -> None:
    real = {name: getattr(*home) for name, home in _HOMES.items()}
    with gate.only((lever,)):
        on = {name for name, home in _HOMES.items() if getattr(*home) is real[name]}
    assert on == {lever}
    assert all(getattr(*home) is real[name] for name, home in _HOMES.items())


def test_every_path_computes_what_the_plain_one_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = BertForPreTraining(preset("tiny", vocab_size=2000))
    with torch.no_grad():  # gradients that tell something: away from the first weights
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    network.save_pretrained(tmp_path)
    apart = gate.distances(tmp_path)
    assert gate.PATHS.keys() - apart.keys() == {"shared random words", "optimizer"}
    assert apart["plain"] == (0, 0)
    for path, (loss, gradient) in apart.items():
        low = "bf16" in gate.PATHS[path]
        assert loss < (2e-3 if low else 1e-6), path
        assert gradient < (3e-2 if low else 1e-5), path
    assert apart["bf16"][1] > 1e-4  # it really is another arithmetic


def test_a_path_is_within_the_spread_where_its_mean_is_between_plain_seeds() -> None:
    def runs(*losses: float) -> list[dict[str, float]]:
        same = {"tokens": 1, "steps": 1, "masked_tokens": 1, "unigram_entropy": 7.0}
        return [{"mlm_loss": loss, "nsp_accuracy": 0.5, **same} for loss in losses]

    plain = runs(5.0, 5.0, 5.3)
    figures = {"plain": plain, "all": runs(5.29, 5.29, 5.29), "worse": runs(5.39, 5.39, 5.39)}
    curves = {path: [[(1, 7.0)]] * 3 for path in figures}
    page = gate.report(figures, curves, {})
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ") and "±" in line]
    verdicts = [row[4].strip() for row in rows]
    assert verdicts == ["yes", "yes", "NO"]


def test_a_corpus_that_is_not_there_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        gate.main(["--corpus", str(tmp_path / "none.txt"), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("gate: ")


def test_the_plain_optimizer_steps_as_the_fused_one_does() -> None:
    stepped = []
    for levers in ((), ("optimizer",)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        with gate.only(levers):
            optimizer = optim.build_optimizer(layer, 1e-2, 0.1)
        assert bool(optimizer.defaults["fused"]) == bool(levers)
        for _ in range(5):
            layer(torch.randn(4, 5)).square().sum().backward()
            clip_gradients(layer, optimizer, 0.1)
            optimizer.step()
            optimizer.zero_grad()
        stepped.append(torch.cat([p.detach().flatten() for p in layer.parameters()]))
    assert torch.allclose(*stepped, atol=1e-6)


def test_the_page_says_what_is_within_the_spread() -> None:
    def figures(*losses: float) -> list[dict[str, Any]]:
        shared = {"nsp_accuracy": 0.6, "tokens": 10, "steps": 2, "masked_tokens": 5}
        return [{"mlm_loss": loss, "unigram_entropy": 7.0, **shared} for loss in losses]

    curves = {path: [[(1, 6.0), (2, 5.0)]] * 3 for path in ("plain", "all")}
    runs = {"plain": figures(5.0, 5.1, 5.2), "bf16": figures(5.1, 5.1, 5.2)}
    page = gate.report(
        runs | {"all": figures(5.5, 5.5, 5.5)}, curves, dict.fromkeys(gate.PATHS, (0.0, 0.0))
    )
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line[:1] == "|"}
    assert "5.133 ± 0.058 | +0.100  +0.000  +0.000 | yes" in rows["bf16"]
    assert "| NO |" in rows["all"]
    assert rows["2"].endswith("+0.000  +0.000  +0.000 |")
