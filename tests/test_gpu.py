"""What only a CUDA device can show: `python -m pytest -m gpu`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import same_tensors, without_times, write_corpus, write_reviews
from torch import Tensor

from minibert import finetune, load, pretrain
from minibert.config import preset
from minibert.errors import Interrupted
from minibert.examples import Example, collate
from minibert.fitting import Trial, fit_in
from minibert.heads import BertForPreTraining, BertForSequenceClassification
from minibert.kernels import linear_cross_entropy
from minibert.layerwise import Layerwise
from minibert.losses import IGNORE_INDEX
from minibert.pretraining_data import pretraining_terms
from minibert.run_folder import read_metrics
from minibert.runtime import start_runtime
from minibert.train import Loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CONFIG = replace(
    preset("small", vocab_size=1000), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)
LENGTHS = [64, 9, 61, 33, 64, 17, 5, 40]


def batch_of(lengths: list[int]) -> dict[str, Tensor]:
    """Masked pairs of these lengths, on the host."""
    examples = []
    for n in lengths:
        ids = torch.randint(5, 1000, (n,)).numpy()
        places = torch.randperm(n - 2)[: max(1, n // 7)].sort().values.numpy() + 1
        examples.append(Example(ids, n // 2, places, ids[places].copy(), n % 2))
    return collate(examples, 10)


def loss_and_gradients(
    model: BertForPreTraining, forward: Any, batch: dict[str, Tensor], precision: str
) -> dict[str, Tensor]:
    runtime = start_runtime(str(next(model.parameters()).device), precision, deterministic=True)
    model.zero_grad()
    with runtime.autocast():
        terms = pretraining_terms(forward, runtime.place(batch))
    total = sum(term.loss_sum / term.num_labels for term in terms.values())
    assert isinstance(total, Tensor)
    total.backward()
    found = {n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": total.detach().cpu()[None]}


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative distance of any gradient."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-6)) for n in theirs
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 6e-2)], ids=["fp32", "bf16"]
)
def test_loss_and_gradients_equal_those_of_a_cpu(
    precision: str, tolerance: float, compiled: bool
) -> None:
    model = BertForPreTraining(CONFIG).train()
    batches = [batch_of(LENGTHS), batch_of(LENGTHS[:5] + [64] * 3)]
    theirs = [loss_and_gradients(model, model, batch, "fp32") for batch in batches]
    model.cuda()
    forward = Layerwise(model, model) if compiled else model
    for batch, wanted in zip(batches, theirs, strict=True):
        ours = loss_and_gradients(model, forward, batch, precision)
        assert difference(ours, wanted) < tolerance


def test_first_tokens_alone_score_as_all_tokens_do() -> None:
    model = BertForSequenceClassification(replace(CONFIG, id2label={0: "a", 1: "b", 2: "c"}))
    batch = {k: v for k, v in batch_of(LENGTHS).items() if k in ("input_ids", "attention_mask")}
    wanted = model.eval()(**batch).logits
    runtime = start_runtime("cuda", "bf16", deterministic=True)
    with torch.no_grad(), runtime.autocast():
        placed = runtime.place(batch)
        assert not placed["attention_mask"].is_cuda
        for first_only in (False, True):
            logits = model.cuda()(**placed, first_only=first_only).logits.float().cpu()
            torch.testing.assert_close(logits, wanted.detach(), atol=2e-2, rtol=0)


def test_cross_entropy_of_scores_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibert.kernels.SCORES_HELD", 1000 * 8)  # 64 rows at a time
    x, weight, bias = torch.randn(300, 64), torch.randn(1000, 64), torch.randn(1000)
    labels = torch.randint(0, 1000, (300,))
    labels[::5] = IGNORE_INDEX
    found = []
    for device in ("cpu", "cuda"):
        parts = [p.detach().to(device).requires_grad_() for p in (x, weight, bias)]
        loss, _ = linear_cross_entropy(*parts, labels.to(device))
        loss.backward()
        found.append([loss.detach().cpu()[None], *(p.grad.cpu() for p in parts)])  # type: ignore[union-attr]
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


def run(folder: Path, corpus: Path, **options: Any) -> None:
    given: dict[str, Any] = {
        "preset": "tiny",
        "vocab_size": 60,
        "max_seq_length": 32,
        "batch_size": 8,
        "max_steps": 24,
        "save_every": 6,
        "log_every": 1,
        "eval_every": 12,
    }
    pretrain(corpus=[str(corpus)], output=str(folder), **(given | options))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_resumed_run_takes_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "text.txt", documents=40)
    run(tmp_path / "whole", corpus, compile=compiled)
    take_step = Loop.take_step

    def stop_in_time(self: Loop) -> None:
        take_step(self)
        if self.state.step == 9:
            self.asked_to_stop = 15

    monkeypatch.setattr(Loop, "take_step", stop_in_time)
    with pytest.raises(Interrupted):
        run(tmp_path / "parted", corpus, compile=compiled)
    monkeypatch.setattr(Loop, "take_step", take_step)
    run(tmp_path / "parted", corpus, compile=compiled, resume=True)
    rows = [without_times(read_metrics(tmp_path / name)) for name in ("whole", "parted")]
    assert rows[0] == rows[1]
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["resolved"]["device"] == (
        "cuda:0"
    )


def test_what_does_not_fit_is_said_and_what_fits_is_found() -> None:
    runtime = start_runtime("cuda", "bf16", deterministic=True)
    model = BertForPreTraining(replace(preset("base"), max_position_embeddings=512)).cuda()

    def largest(size: int) -> dict[str, Tensor]:
        ids = torch.full((size, 512), 7)
        places = torch.arange(76).expand(size, -1).contiguous()
        return {
            "input_ids": ids,
            "token_type_ids": torch.zeros_like(ids),
            "attention_mask": torch.ones_like(ids),
            "mlm_positions": places,
            "mlm_labels": torch.ones_like(places),
            "next_sentence_label": torch.zeros(size, dtype=torch.long),
        }

    trial = Trial(model, model, pretraining_terms, largest, runtime)
    assert fit_in(trial, 8, 8)
    assert not fit_in(trial, 1 << 14, 1 << 14)  # some 2,000 GiB
    assert fit_in(trial, 8, 8)


def test_both_stages_and_predictions_on_either_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "text.txt", documents=60)
    run(tmp_path / "pre", corpus, preset="mini", max_steps=60, eval_every=60, log_every=20)
    reviews = write_reviews(tmp_path / "reviews")
    shared = {"task": "imdb", "data": str(reviews), "model": str(tmp_path / "pre")}
    finetune(**shared, output=str(tmp_path / "tuned"), max_steps=40, batch_size=8, seed=1)
    texts = ["silver garden candle silver", "storm winter castle storm", "silver"] * 3
    shares = {}
    for device in ("cuda", "cpu"):
        model = load(tmp_path / "tuned", device=device, precision="fp32")
        shares[device] = [p.probabilities["pos"] for p in model.predict(texts)]
    assert shares["cuda"] == pytest.approx(shares["cpu"], abs=1e-3)


def test_a_training_curve_is_that_of_padded_rows() -> None:
    """Sixty steps, packed and compiled in bf16 against padded rows in fp32 on the same batches."""
    losses = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(1)
        model = BertForPreTraining(CONFIG).cuda().train()
        runtime = start_runtime("cuda", precision, deterministic=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
        forward = Layerwise(model, model) if precision == "bf16" else model
        torch.manual_seed(2)
        batches = [batch_of(torch.randint(8, 64, (16,)).tolist()) for _ in range(4)]
        curve = []
        for step in range(60):
            with runtime.autocast():
                terms = pretraining_terms(forward, runtime.place(batches[step % 4]))
            loss = terms["mlm"].loss_sum / terms["mlm"].num_labels
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.detach())
        losses.append(torch.stack(curve).cpu())
    assert float(losses[0][-4:].mean()) < 0.8 * float(losses[0][:4].mean())
    assert float((losses[0] - losses[1]).abs().max()) < 0.15
    assert same_tensors(
        {"first": losses[0][:1].round(decimals=1)}, {"first": losses[1][:1].round(decimals=1)}
    )
