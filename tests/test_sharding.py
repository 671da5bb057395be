"""A sharded model is the model: gradients, norm, updates, what is written and read back.

The processes of `torchrun` run this file as a program; the main one prints what it found.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.utils import _to_kwargs

from minibert.checkpoint import load_last_checkpoint, save_checkpoint
from minibert.config import preset
from minibert.fitting import Trial, micro_batch_size
from minibert.heads import BertForPreTraining
from minibert.machine import leave
from minibert.optim import build_muon, build_optimizer
from minibert.pretraining_data import pretraining_terms
from minibert.runs import placed, wrapped
from minibert.runtime import Runtime
from minibert.settings import PretrainSettings
from minibert.sharding import clip_gradients, gathered, keep_on_host, whole
from minibert.train import Term
from minibert.world import ALONE, World, join_world

ROOT = Path(__file__).parent.parent
ROWS, LENGTH, SLOTS, VOCAB = 6, 10, 3, 61
SHARDED = PretrainSettings(corpus=["-"], shard=True)


def make_model() -> BertForPreTraining:
    torch.manual_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForPreTraining(preset("tiny", vocab_size=VOCAB, **none))


def batch_of(rows: slice) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (ROWS, LENGTH), generator=generator)
    whole_batch = {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
        "mlm_positions": torch.randint(0, LENGTH, (ROWS, SLOTS), generator=generator),
        "mlm_labels": torch.randint(1, VOCAB, (ROWS, SLOTS), generator=generator),
        "next_sentence_label": torch.arange(ROWS) % 2,
    }
    return {name: value[rows] for name, value in whole_batch.items()}


def backward(model: nn.Module, rows: slice, run: Runtime, factor: int) -> None:
    with run.autocast():
        terms = pretraining_terms(model, batch_of(rows))
    loss = terms["mlm"].loss_sum / (ROWS * SLOTS) + terms["nsp"].loss_sum / ROWS
    (loss * factor).backward()


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """By name the largest difference, as a share of the largest value."""
    return {k: float((ours[k] - v).abs().max() / v.abs().max()) for k, v in theirs.items()}


def compare(world: World, precision: str, folder: Path) -> dict[str, Any]:
    """One update of a sharded model beside the same of a whole one."""
    run = Runtime(torch.device("cpu"), precision, world)
    plain, model = make_model(), make_model()
    placed(model, SHARDED, run)
    optimizers = [build_optimizer(m, 1e-2, 0.01) for m in (plain, model)]
    for rank in range(world.size):  # the same rows and factor, which decide how bf16 rounds
        backward(plain, slice(rank, None, world.size), run, world.size)
    for parameter in plain.parameters():
        assert parameter.grad is not None
        parameter.grad /= world.size
    backward(model, slice(world.rank, None, world.size), run, world.size)
    gradients = gathered(
        {k: p.grad for k, p in model.named_parameters() if p.grad is not None}, world
    )
    found: dict[str, Any] = {"own_share": _own_numbers(model) / _own_numbers(plain)}
    if world.is_main:
        found["gradients"] = worst(gradients, {k: p.grad for k, p in plain.named_parameters()})
    pairs = zip((plain, model), optimizers, strict=True)
    found["norms"] = [float(clip_gradients(m, optimizer, 0.1)) for m, optimizer in pairs]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    weights = gathered(model.state_dict(), world)
    found["held"] = len(weights)
    if world.is_main:
        found["weights"] = worst(weights, plain.state_dict())
        found["update"] = worst(make_model().state_dict(), plain.state_dict())
    with (
        torch.no_grad(),
        run.autocast(),
    ):  # leaves the word embedding whole until somebody asks for the weights
        model(**{k: v for k, v in batch_of(slice(None)).items() if "label" not in k})
    save_checkpoint(folder, 1, model, optimizers[1], {"at": 1}, world)
    world.wait()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizers[1].state.clear()
    assert load_last_checkpoint(folder, model, optimizers[1]) == {"at": 1}
    again = gathered(model.state_dict(), world)
    found["restored"] = all(torch.equal(again[k], v) for k, v in weights.items())
    ours, theirs = (
        [whole(optimizer.state[p]["exp_avg"]) for p in m.parameters()]
        for m, optimizer in zip((model, plain), reversed(optimizers), strict=True)
    )
    pairs = zip(ours, theirs, strict=True)
    found["moments"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return found


def _own_numbers(model: nn.Module) -> int:
    locals_ = [getattr(p, "_local_tensor", p) for p in model.parameters()]
    return sum(tensor.numel() for tensor in locals_)


def agree(world: World) -> list[int]:
    """With memory for 3, 2 and 1 sequences the processes choose one size."""
    model = make_model()
    run = Runtime(torch.device("cpu"), "fp32", world)
    forward = wrapped(model, PretrainSettings(corpus=["-"]), run)
    settings = PretrainSettings(corpus=["-"], batch_size=12, micro_batch_size="auto")

    def objective(forward: Any, batch: Any) -> dict[str, Term]:
        if len(batch["input_ids"]) > 3 - world.rank:
            raise torch.OutOfMemoryError
        return pretraining_terms(forward, batch)

    trial = Trial(model, forward, objective, lambda n: batch_of(slice(n)), run)
    from minibert import fitting

    fitting._room_for = lambda trial: lambda n: fitting.fit_in(trial, n, n)  # as on a GPU
    chosen = [torch.tensor(float(micro_batch_size(settings, None, trial)))]
    backward(forward, slice(None), run, 1)  # the wrapper still works
    return [int(world.largest(chosen[0])), int(-world.largest(-chosen[0]))]


def program(folder: Path) -> None:
    torch.set_num_threads(1)
    with join_world() as world:
        found = {p: compare(world, p, folder / p) for p in ("fp32", "bf16")}
        others = world.sum(torch.tensor(float(found["fp32"]["held"] if world.rank else 0)))
        found |= {"held_by_others": float(others), "sizes": agree(world)}
        if world.is_main:
            print(json.dumps(found))
    leave(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharding")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=3", __file__, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_each_process_holds_its_part(found: dict[str, Any]) -> None:
    assert found["fp32"]["own_share"] == pytest.approx(1 / 3, abs=0.01)
    assert found["held_by_others"] == 0
    assert found["fp32"]["held"] == len(make_model().state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_those_of_the_whole_model(found: dict[str, Any], precision: str) -> None:
    gradients = found[precision]["gradients"]
    assert "bert.embeddings.word.weight" in gradients  # which the MLM head reads as well
    assert gradients.keys() == dict(make_model().named_parameters()).keys()
    assert max(gradients.values()) < 1e-5, gradients
    ours, theirs = found[precision]["norms"]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert theirs > 0.1


def test_updates_are_those_of_the_whole_model(found: dict[str, Any]) -> None:
    assert max(found["fp32"]["weights"].values()) < 1e-3
    assert min(found["fp32"]["update"].values()) > 5e-3


def test_a_checkpoint_brings_all_back(found: dict[str, Any]) -> None:
    assert found["fp32"]["restored"]
    assert found["fp32"]["moments"] < 1e-5


def test_processes_agree_on_the_smallest_micro_batch(found: dict[str, Any]) -> None:
    assert found["sizes"] == [1, 1]  # 4, then 2, and then what the last of three has memory for


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("share", [0.5, 1.0, 2.0], ids=["clipped", "just", "below"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_whole_model_steps_on_clipped_gradients(kind: str, share: float, read: bool) -> None:
    """As it does where PyTorch scales them; a norm far above comes first, and is forgotten."""
    build = build_muon if kind == "muon" else build_optimizer
    model = make_model()
    other = copy.deepcopy(model)
    ours, theirs = build(model, 1e-2, 0.01), build(other, 1e-2, 0.01)
    size = sum(parameter.numel() for parameter in model.parameters()) ** 0.5
    for most in (0.01 * size, share * size):
        for parameter in (*model.parameters(), *other.parameters()):
            parameter.grad = torch.ones_like(parameter)
        norm = nn.utils.clip_grad_norm_(other.parameters(), most)
        assert torch.equal(clip_gradients(model, ours, most, read), norm)
        ours.step()
        theirs.step()
    assert max(worst(model.state_dict(), other.state_dict()).values()) < 1e-5
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        for moment, expected in theirs.state[twin].items():
            torch.testing.assert_close(ours.state[parameter][moment], expected)


def test_gradients_are_scaled_where_a_device_would_not_divide_them() -> None:
    """MPS with torch 2.11 takes no divisor, though its AdamW says so; "meta" stands in for it."""
    model = make_model().to("meta")
    optimizer = torch.optim.AdamW(model.parameters(), fused=False)
    optimizer._step_supports_amp_scaling = True
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip_gradients(model, optimizer, 0.1, read=False)
    assert not hasattr(optimizer, "grad_scale")


def test_a_whole_model_is_not_put_together() -> None:
    state = make_model().state_dict()
    assert all(gathered(state, ALONE)[k] is v for k, v in state.items())


if __name__ == "__main__":
    program(Path(sys.argv[1]))


def test_tensors_of_the_host_pass_by_what_moves_inputs() -> None:
    """As FSDP2 does on a GPU, by its own function: other objects it leaves alone."""

    class Takes(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
            return ids, mask, count

    def move(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        moved, named = _to_kwargs(args, kwargs, torch.device("meta"), False)
        return moved[0], named[0]

    model, ids, mask = Takes(), torch.ones(2), torch.ones(3)
    model.register_forward_pre_hook(move, prepend=True, with_kwargs=True)
    assert model(ids, mask=mask, count=4)[1].is_meta
    keep_on_host(model)
    found = model(ids, mask=mask, count=4)
    assert found[0] is ids and found[1] is mask and found[2] == 4
