"""Adversarial training: what embeddings are moved by, and what the loop makes of two passes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import Repeated, make_loop, make_model_folder, without_times
from torch import Tensor, nn

from minibert import finetuning
from minibert.adversarial import FastGradient
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.finetuning import finetune, freeze_lowest
from minibert.fitting import Trial, kept_bytes
from minibert.heads import BertForSequenceClassification
from minibert.losses import classification_loss, squared_error
from minibert.run_folder import read_metrics
from minibert.sentence_head import BertForSentenceEmbedding
from minibert.settings import FinetuneSettings
from minibert.train import ONE_PASS, StepData, Term

EPSILON = 0.25
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


@pytest.fixture
def config(tiny_config: BertConfig) -> BertConfig:
    """Without dropout and with weights large enough for gradients to differ from token to token."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return dataclasses.replace(
        tiny_config, id2label=dict(enumerate("abc")), initializer_range=0.2, **none
    )


def texts(lengths: tuple[int, ...] = (12, 7, 4, 9, 12, 5)) -> dict[str, Tensor]:
    ids = torch.randint(5, 80, (len(lengths), 12), generator=torch.Generator().manual_seed(7))
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def terms(forward: Callable[..., Any], batch: Any) -> dict[str, Term]:
    logits = forward(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    hits = (logits.argmax(-1) == batch["labels"]).sum()
    return {"task": Term(*classification_loss(logits, batch["labels"]), hits)}


def step_of(batch: dict[str, Tensor], micro: int, fillers: int = 0) -> StepData:
    size = len(batch["labels"])
    parts = [{k: v[i : i + micro] for k, v in batch.items()} for i in range(0, size, micro)]
    parts += [parts[0]] * fillers
    return StepData(parts, {"task": size}, [1] * size, size, fillers)


def moves_of(adversary: FastGradient, loss: Callable[[], Tensor]) -> list[Tensor]:
    """What the second pass would add, after the first."""
    first, second = adversary.passes.values()
    with first():
        total = loss()
    total.backward()
    with second():
        assert adversary._moves is not None
        return list(adversary._moves)


def by_hand(model: Any, batch: dict[str, Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Sequence by sequence, without padding: embeddings' gradients, and the loss when moved."""
    gradients, losses = [], []
    for ids, mask, label in zip(*(batch[k] for k in batch), strict=True):
        sequence = ids[mask.bool()][None]
        captured: list[Tensor] = []
        hook = model.bert.embeddings.register_forward_hook(
            lambda _m, _i, out, kept=captured: kept.append(out.detach().requires_grad_()) or kept[0]
        )
        loss, _ = classification_loss(model(sequence).logits, label[None])
        hook.remove()
        (gradient,) = torch.autograd.grad(loss, captured)
        gradients.append(gradient)
        move = epsilon * gradient / gradient.norm()
        hook = model.bert.embeddings.register_forward_hook(lambda _m, _i, out, r=move: out + r)
        losses.append(classification_loss(model(sequence).logits, label[None])[0])
        hook.remove()
    return gradients, torch.stack(losses).sum()


def test_each_sequence_is_moved_by_epsilon_up_its_own_gradient(config: BertConfig) -> None:
    model, batch = BertForSequenceClassification(config), {**texts(), "labels": LABELS}
    gradients, _ = by_hand(model, batch, EPSILON)
    adversary = FastGradient(model, EPSILON)
    (moves,) = moves_of(adversary, lambda: terms(model, batch)["task"].loss_sum)
    # Rows stand in the order of the layers, longest first, padding left out.
    rows = [g for _, g in sorted(enumerate(gradients), key=lambda p: (-len(p[1]), p[0]))]
    expected = torch.cat([EPSILON * g / g.norm() for g in rows])
    torch.testing.assert_close(moves[: len(expected)], expected, rtol=1e-3, atol=1e-6)
    assert not moves[len(expected) :].any()  # fillers


def test_the_loss_rises_by_epsilon_times_the_gradients_norm(config: BertConfig) -> None:
    model, batch = BertForSequenceClassification(config), {**texts(), "labels": LABELS}
    gradients, _ = by_hand(model, batch, EPSILON)
    adversary = FastGradient(model, 1e-3)
    found = []
    for opened in adversary.passes.values():
        with opened():
            found.append(terms(model, batch)["task"].loss_sum)
        found[-1].backward()
    rise = float(found[1].detach() - found[0].detach())
    assert rise == pytest.approx(1e-3 * sum(float(g.norm()) for g in gradients), rel=0.02)


def gradient_of_a_step(model: nn.Module, step: StepData, **options: Any) -> Tensor:
    loop = make_loop(model, Repeated([step]), objective=terms, max_steps=1, **options)
    loop.model.train()
    sums = loop._backward(step)
    assert all(value.isfinite() for value in sums.values())
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("micro", "fillers"), [(6, 0), (2, 0), (2, 1), (1, 0)])
def test_a_step_has_the_mean_gradient_of_both_passes(
    config: BertConfig, micro: int, fillers: int
) -> None:
    model, batch = BertForSequenceClassification(config), {**texts(), "labels": LABELS}
    _, moved = by_hand(model, batch, EPSILON)
    ((terms(model, batch)["task"].loss_sum + moved) / 2 / len(LABELS)).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    model.zero_grad()
    passes = FastGradient(model, EPSILON).passes
    found = gradient_of_a_step(model, step_of(batch, micro, fillers), passes=passes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    model.zero_grad()
    plain = gradient_of_a_step(model, step_of(batch, micro, fillers), passes=ONE_PASS)
    assert (plain - expected).norm() > 0.01 * expected.norm()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo, at a graph break
def test_a_compiled_forward_is_moved_alike(config: BertConfig) -> None:
    model, batch = BertForSequenceClassification(config), {**texts(), "labels": LABELS}
    passes = FastGradient(model, EPSILON).passes
    expected = gradient_of_a_step(model, step_of(batch, 6), passes=passes)
    model.zero_grad()
    compiled = torch.compile(model, backend="eager")
    found = gradient_of_a_step(model, step_of(batch, 6), passes=passes, forward=compiled)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_two_calls_of_an_encoder_are_moved_each_by_its_own(config: BertConfig) -> None:
    model = BertForSentenceEmbedding(config)
    ones, others = texts(), texts((4, 4, 12, 12, 8, 8))
    ones = {k: v[:, :9] for k, v in ones.items()}  # another shape than the others

    def loss() -> Tensor:
        first, second = (model(**part)[0] for part in (ones, others))
        cosines = nn.functional.cosine_similarity(first, second)
        return squared_error(cosines, torch.linspace(0, 1, 6))[0]

    adversary = FastGradient(model, EPSILON)
    before = loss()
    moves = moves_of(adversary, loss)
    assert len(moves) == 2
    for move in moves:
        assert float(move.norm()) == pytest.approx(EPSILON * 6**0.5, rel=1e-4)
    with adversary.passes["adversarial_"]():
        adversary._moves = moves
        assert loss() > before


def test_frozen_embeddings_are_moved_and_stay_frozen(config: BertConfig) -> None:
    model, batch = BertForSequenceClassification(config), {**texts(), "labels": LABELS}
    freeze_lowest(model, 1)
    adversary = FastGradient(model, EPSILON)
    (moves,) = moves_of(adversary, lambda: terms(model, batch)["task"].loss_sum)
    assert float(moves.norm()) == pytest.approx(EPSILON * len(LABELS) ** 0.5, rel=1e-4)
    assert model.bert.embeddings.word.weight.grad is None
    assert model.bert.layers[1].feed_forward.up.weight.grad is not None


def test_memory_is_tried_with_what_the_first_pass_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through frozen layers a gradient goes, too, and so autograd keeps what they computed."""
    kept = []

    def tried(settings: Any, begun: Any, trial: Trial) -> int:
        kept.append(kept_bytes(trial, 4))
        return 5

    monkeypatch.setattr(finetuning, "micro_batch_size", tried)
    options = {"micro_batch_size": "auto", "freeze_layers": 1, "max_steps": 1}
    run(tmp_path, output=tmp_path / "plain", **options)
    run(tmp_path, output=tmp_path / "whole", **{**options, "freeze_layers": None})
    run(tmp_path, output=tmp_path / "moved", adversarial_epsilon=0.5, **options)
    plain, whole, moved = kept
    assert 1.3 * plain < moved < whole  # but nothing for the gradients of frozen weights


def test_outside_of_its_passes_it_does_nothing_and_keeps_nothing(config: BertConfig) -> None:
    model, batch = BertForSequenceClassification(config).eval(), {**texts(), "labels": LABELS}
    with torch.no_grad():
        expected = terms(model, batch)["task"].loss_sum
    names = list(model.state_dict())
    adversary = FastGradient(model, EPSILON)
    with torch.no_grad():
        assert torch.equal(terms(model, batch)["task"].loss_sum, expected)
    assert adversary._seen == []
    assert list(model.state_dict()) == names
    gradient_of_a_step(model, step_of(batch, 2), passes=adversary.passes)
    assert adversary._seen == [] and adversary._moves is None


def test_an_answer_without_a_gradient_is_not_moved(config: BertConfig) -> None:
    model, batch = BertForSequenceClassification(config), {**texts(), "labels": LABELS}
    adversary = FastGradient(model, 1e6)
    (moves,) = moves_of(adversary, lambda: terms(model, batch)["task"].loss_sum * 0)
    assert torch.equal(moves, torch.zeros_like(moves))


# --- whole runs -----------------------------------------------------------------------------------


def run(folder: Path, **options: Any) -> list[dict[str, Any]]:
    rows = "".join(f"text {i} {'good' if i % 2 else 'bad'},{i % 2}\n" for i in range(24))
    data = folder / "own.csv"
    data.write_text("text,label\n" + rows)
    model = folder / "start"
    if not model.exists():
        make_model_folder(model)
    given: dict[str, Any] = {
        "max_steps": 6,
        "save_every": 2,
        "log_every": 1,
        "batch_size": 5,
        "device": "cpu",
    }
    given |= {"precision": "fp32", "max_seq_length": 16, "task": "classification"}
    given |= {"data": str(data), "model": str(model), **options}
    finetune(**given)
    return read_metrics(Path(str(options["output"])))


def test_a_run_tells_both_losses_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = run(tmp_path, output=tmp_path / "whole", adversarial_epsilon=0.5)
    parts = run(tmp_path, output=tmp_path / "parts", adversarial_epsilon=0.5)
    steps = [row for row in whole if "loss" in row]
    assert len(steps) == 6
    for row in steps:
        assert row["adversarial_task_loss"] > row["task_loss"]
        assert row["loss"] == pytest.approx((row["adversarial_task_loss"] + row["task_loss"]) / 2)
        assert 0 <= row["adversarial_task_accuracy"] <= 1
    for kept in sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(kept)
    (tmp_path / "parts" / "results.json").unlink()
    parts = run(tmp_path, output=tmp_path / "parts", adversarial_epsilon=0.5, resume=True)
    assert without_times(parts) == without_times(whole)
    plain = run(tmp_path, output=tmp_path / "plain")
    assert not any("adversarial_task_loss" in row for row in plain)
    off = run(tmp_path, output=tmp_path / "off", adversarial_epsilon=0)
    assert [r.get("loss") for r in off] == [r.get("loss") for r in plain]
    # Nothing said, and 0, are the same to a run that goes on.
    run(tmp_path, output=tmp_path / "plain", adversarial_epsilon=0, resume=True)
    with pytest.raises(InputError, match="adversarial_epsilon was None, now 1"):
        run(tmp_path, output=tmp_path / "plain", adversarial_epsilon=1.0, resume=True)


@pytest.mark.parametrize("given", [-0.1, float("inf"), float("nan")])
def test_an_epsilon_that_cannot_be_is_refused(given: float) -> None:
    with pytest.raises(InputError, match="--adversarial-epsilon is .*, must be 0 or more"):
        FinetuneSettings(task="imdb", adversarial_epsilon=given)
