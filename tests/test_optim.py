"""Parameter groups, the table of learning rates, and when a budget is used up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from minibert import optim
from minibert.config import BertConfig
from minibert.heads import BertForPreTraining, BertForSequenceClassification
from minibert.model import BertModel
from minibert.optim import (
    Budget,
    build_muon,
    build_optimizer,
    orthogonalised,
    rate_share,
    warmup_linear_decay,
)
from minibert.settings import SCHEDULES

MODELS = [BertModel, BertForPreTraining, BertForSequenceClassification]


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_in_exactly_one_group(
    tiny_config: BertConfig, kind: type[nn.Module]
) -> None:
    model = kind(tiny_config)
    groups = build_optimizer(model, 1e-3, 0.01).param_groups
    held = Counter(id(p) for group in groups for p in group["params"])
    assert held == Counter(id(p) for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_biases_and_norms_do_not_decay_and_all_else_does(
    tiny_config: BertConfig, kind: type[nn.Module]
) -> None:
    model = kind(tiny_config)
    optimizer = build_optimizer(model, 1e-3, 0.25)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        plain = name.endswith("bias") or "norm" in name
        assert decay[id(parameter)] == (0.0 if plain else 0.25), name


def test_without_a_gradient_only_matrices_shrink(tiny_config: BertConfig) -> None:
    model = BertForPreTraining(tiny_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, learning_rate=0.1, weight_decay=0.5).step()
    for name, parameter in model.named_parameters():
        # Decoupled: 1 - rate x decay, whatever the gradient's scale.
        expected = torch.full_like(parameter, 0.95 if parameter.ndim > 1 else 1.0)
        torch.testing.assert_close(parameter.data, expected, msg=name)


def test_first_step_is_bias_corrected() -> None:
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[1e-4, -5.0, 300.0]])  # epsilon is far below each
    build_optimizer(model, learning_rate=0.1, weight_decay=0.0).step()
    # Corrected moments make the first step the rate itself, with the gradient's sign.
    step = torch.tensor([[-0.1, 0.1, -0.1]])
    torch.testing.assert_close(model.weight.data - before, step, atol=1e-4, rtol=0)


def test_frozen_parameters_are_left_out(tiny_config: BertConfig) -> None:
    model = BertForSequenceClassification(tiny_config)
    model.bert.requires_grad_(False)
    groups = build_optimizer(model, 1e-3, 0.01).param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.classifier.parameters()}


@pytest.mark.parametrize(("in_bf16", "furthest"), [(True, 0.05), (False, 1e-4)])
@pytest.mark.parametrize("shape", [(5, 24, 24), (3, 16, 48), (3, 48, 16)])
def test_orthogonalised_keeps_directions_and_levels_their_sizes(
    shape: tuple[int, ...], in_bf16: bool, furthest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "has_bf16", lambda device: in_bf16)
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    s = s.clamp(min=0.3)
    found = orthogonalised(u @ s.diag_embed() @ v)
    inside = u.mT @ found @ v.mT  # diagonal, if the directions are the same
    sizes = inside.diagonal(dim1=1, dim2=2)
    assert float(sizes.min()) > 0.6 and float(sizes.max()) < 1.3
    assert float((inside - sizes.diag_embed()).abs().max()) < furthest
    assert found.dtype == u.dtype


@pytest.mark.parametrize("feed_forward", ["plain", "gated"])
def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(
    tiny_config: BertConfig, feed_forward: str
) -> None:
    model = BertForPreTraining(replace(tiny_config, feed_forward=feed_forward))
    optimizer = build_muon(model, 1e-3, 0.01)
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    assert held == Counter(id(p) for p in model.parameters())
    parts = {id(p): g.get("parts") for g in optimizer.param_groups for p in g["params"]}
    stored = {".qkv.": 3, ".up.": 2 if feed_forward == "gated" else 1}
    for name, parameter in model.named_parameters():
        matrix = ".layers." in name and parameter.ndim == 2
        wanted = next((count for part, count in stored.items() if part in name), 1)
        assert parts[id(parameter)] == (wanted if matrix else None), name


@pytest.mark.parametrize("name", ["attention.qkv", "feed_forward.up", "feed_forward.down"])
def test_a_step_of_muon_is_momentum_made_orthogonal(tiny_config: BertConfig, name: str) -> None:
    model = BertForPreTraining(tiny_config)
    optimizer = build_muon(model, learning_rate=0.1, weight_decay=0.5, momentum=0.5)
    weight = model.bert.layers[0].get_submodule(name).weight
    parts = 3 if name == "attention.qkv" else 1
    longest = max(weight.shape[0] // parts, weight.shape[1])
    mean = torch.zeros_like(weight)
    for seed in range(2):
        torch.manual_seed(seed)
        gradient, before = torch.randn(weight.shape), weight.detach().clone()
        optimizer.zero_grad()
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.5 * mean + 0.5 * gradient
        ahead = 0.5 * gradient + 0.5 * mean
        # Query, key and value each; 0.2 sqrt(max(rows, columns)) makes the step AdamW's size.
        steps = torch.cat([orthogonalised(part[None])[0] for part in ahead.chunk(parts)])
        expected = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * longest**0.5 * steps
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("feed_forward", ["plain", "gated"])
def test_muon_rehearses_the_products_of_a_step_and_changes_nothing(
    tiny_config: BertConfig, feed_forward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BertForPreTraining(replace(tiny_config, feed_forward=feed_forward))
    optimizer = build_muon(model, 1e-3, 0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen: Counter[tuple[int, ...]] = Counter()

    def counted(matrices: torch.Tensor) -> torch.Tensor:
        seen[tuple(matrices.shape[1:])] += len(matrices)
        return orthogonalised(matrices)

    monkeypatch.setattr(optim, "orthogonalised", counted)
    optimizer.rehearse()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not optimizer.state
    rehearsed = seen.copy()
    seen.clear()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert rehearsed == seen and seen.total() > 0


def test_a_rate_set_on_the_groups_is_the_rate_of_both_parts(tiny_config: BertConfig) -> None:
    model = BertForPreTraining(tiny_config)
    optimizer = build_muon(model, learning_rate=0.1, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("done", "warmup_ratio", "rate"),
    [
        (0.0, 0.1, 0.0),
        (0.05, 0.1, 0.5),
        (0.1, 0.1, 1.0),
        (0.55, 0.1, 0.5),
        (0.91, 0.1, 0.1),
        (1.0, 0.1, 0.0),
        (1.2, 0.1, 0.0),  # minutes may overshoot
        (0.0, 0.0, 1.0),
        (0.25, 0.0, 0.75),
        (1.0, 0.0, 0.0),
        (0.25, 0.5, 0.5),
        (0.75, 0.5, 0.5),
    ],
)
def test_table_of_rates(done: float, warmup_ratio: float, rate: float) -> None:
    assert warmup_linear_decay(done, warmup_ratio) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.06, 0.5, 0.99])
def test_rate_climbs_to_one_peak_then_falls(warmup_ratio: float) -> None:
    rates = [warmup_linear_decay(i / 1000, warmup_ratio) for i in range(1001)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(1.0)
    assert peak / 1000 == pytest.approx(warmup_ratio, abs=1e-3)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) >= 0


@pytest.mark.parametrize(
    ("schedule", "decay_ratio", "table"),
    [
        ("linear", 0.3, {0.1: 0.5, 0.2: 1, 0.6: 0.5, 0.92: 0.1, 1: 0, 1.2: 0}),
        ("cosine", 0.3, {0.1: 0.5, 0.2: 1, 0.4: 0.853553, 0.6: 0.5, 0.8: 0.146447, 1: 0, 1.2: 0}),
        (
            "constant-then-linear",
            0.4,
            {0.1: 0.5, 0.2: 1, 0.6: 1, 0.8: 0.5, 0.9: 0.25, 1: 0, 1.2: 0},
        ),
        ("constant-then-linear", 0.8, {0.1: 0.5, 0.2: 1, 0.6: 0.5, 1: 0}),
    ],
)
def test_tables_of_schedules(schedule: str, decay_ratio: float, table: dict[float, float]) -> None:
    for done, rate in table.items():
        found = rate_share(done, 0.2, schedule, decay_ratio)
        assert found == pytest.approx(rate, abs=1e-6), done


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_begin_at_once_without_a_warmup(schedule: str) -> None:
    rates = [rate_share(i / 100, 0.0, schedule) for i in range(101)]
    assert rates[0] == 1
    assert rates[-1] == 0
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_step_judged_at_its_middle_has_rate_zero(steps: int) -> None:
    budget = Budget(max_steps=steps)
    for warmup_ratio in (0.0, 0.1):
        for i in range(steps):
            assert warmup_linear_decay(budget.done(i + 0.5, 0, 0), warmup_ratio) > 0


def test_each_budget_counts_its_own_kind_only() -> None:
    used = {"steps": 30, "epochs": 0.5, "seconds": 7.0}
    assert Budget(max_steps=120).done(**used) == pytest.approx(0.25)
    assert Budget(epochs=4).done(**used) == pytest.approx(0.125)
    assert Budget(seconds=70).done(**used) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("budget", "kind"),
    [
        (Budget(max_steps=10), "steps"),
        (Budget(epochs=10), "epochs"),
        (Budget(seconds=10), "seconds"),
    ],
)
def test_budget_is_done_at_its_end_and_not_before(budget: Budget, kind: str) -> None:
    nothing = {"steps": 0, "epochs": 0.0, "seconds": 0.0}
    assert budget.done(**nothing) == pytest.approx(0.0, abs=1e-9)
    assert budget.done(**{**nothing, kind: 9}) < 1
    assert budget.done(**{**nothing, kind: 10}) >= 1
    assert budget.done(**{**nothing, kind: 15}) == pytest.approx(1.5)


def test_rounding_does_not_leave_an_epoch_open() -> None:
    passed = sum([0.1] * 10)
    assert passed < 1  # 0.9999999999999999
    assert Budget(epochs=1).done(steps=10, epochs=passed, seconds=0) >= 1
