"""Whether the fast paths train as well: each alone, and all, against plain float32 padded rows.

    python -m benchmarks.gate --corpus enwiki-00.txt.xz --output runs/gate

A speed that costs learning is none. The same tokens in the same order are trained on with every
path, for several seeds, and the finished weights are all scored in the same way: by the plain path.
A path passes where its mean held-out loss lies within the plain path's spread over seeds. Beside
that, one batch's loss and gradients at the first weights tell how far a path is from the plain one
in arithmetic (dropout 0, so that nothing is drawn).

Runs that are finished are not repeated, so the command can be stopped and given again. It writes
gate.md and, for every run, the run folder with its curve in metrics.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import told_in_a_line
from minibert import kernels, pretraining
from minibert.heads import BertForPreTraining, MaskedLMHead, MaskedLMScore
from minibert.losses import masked_lm_loss
from minibert.optim import _adamw as _real_adamw
from minibert.unpadding import full_layout

_SEED_RUNS = 3
_ROWS = 10  # of the printed curves


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask, dropout_prob)


def _plain_score(
    self: MaskedLMHead, hidden: Tensor, words: Tensor, labels: Tensor
) -> MaskedLMScore:
    """All scores, then the documented loss."""
    scores = self(hidden, words)
    hits = (scores.argmax(-1) == labels).sum()
    return MaskedLMScore(*masked_lm_loss(scores, labels), hits)


def _plain_states_at(
    self: BertForPreTraining, places: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    """All of the last layer, of which some rows are taken."""
    *inputs, first_positions = inputs
    out = self.bert(*inputs, first_positions=first_positions)
    return out.last_hidden_state.flatten(0, 1).index_select(0, places), out.pooler_output


def _plain_adamw(
    parameters: Iterable[Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """A tensor after the other, by gradients that were clipped in a pass of their own."""
    optimizer = _real_adamw(parameters, learning_rate, weight_decay)
    return torch.optim.AdamW(optimizer.param_groups, fused=False, foreach=False)


# What stands in for each fast path where it is off. bf16 is a flag of its own.
_STAND_INS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "unpadding": ("minibert.model", "unpadded_layout", lambda mask: full_layout(mask.shape, mask)),
    "attention by products": ("minibert.model", "attention", _plain_attention),
    "shared random words": ("minibert.kernels", "dropout", F.dropout),
    "decoder": ("minibert.heads.MaskedLMHead", "score", _plain_score),
    "used slots": ("minibert.heads", "_used_slots", lambda places, labels, _: (places, labels)),
    "last layer": ("minibert.heads.BertForPreTraining", "_states_at", _plain_states_at),
    "optimizer": ("minibert.optim", "_adamw", _plain_adamw),
}
# Of no effect on the loss and gradient of one batch without dropout.
_DRAWN_OR_LATER = ("shared random words", "optimizer")
LEVERS = ("bf16", *_STAND_INS)
PATHS = {"plain": (), **{lever: (lever,) for lever in LEVERS}, "all": LEVERS}


@contextlib.contextmanager
def only(levers: Sequence[str]) -> Iterator[None]:
    """All fast paths but these are off; bf16 is left to the caller."""
    with contextlib.ExitStack() as stack:
        for lever, (home, name, stand_in) in _STAND_INS.items():
            if lever not in levers:
                stack.enter_context(mock.patch(f"{home}.{name}", stand_in))
        yield


def train(path: str, seed: int, arguments: dict[str, Any], folder: Path) -> dict[str, float]:
    """One run; its figures, scored by the plain path, and its curve."""
    score = pretraining.evaluate_pretraining

    def score_plainly(model: Any, examples: Any, slots: int, size: int, run: Any) -> Any:
        with only(()):
            return score(model, examples, slots, size, replace(run, precision="fp32"))

    levers = PATHS[path]
    with only(levers), mock.patch.object(pretraining, "evaluate_pretraining", score_plainly):
        result = pretraining.pretrain(
            **arguments,
            precision="bf16" if "bf16" in levers else "fp32",
            seed=seed,
            output=str(folder),
            resume="auto",
        )
    return result.figures


def distance(levers: Sequence[str], model: BertForPreTraining, batch: dict[str, Tensor]) -> Any:
    """The loss and the gradients of one batch in one row, with only these fast paths."""
    bf16 = "bf16" in levers
    # In float32 and without dropout products are not chosen; here they are asked for.
    products = "attention by products" in levers
    kernel = kernels.attention_by_products if products else _plain_attention
    forced = mock.patch("minibert.model.attention", kernel)
    with only(levers), forced, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        terms = pretraining.pretraining_terms(model, batch)
        total = sum(term.loss_sum / term.num_labels for term in terms.values())
    assert isinstance(total, Tensor)
    grads = torch.autograd.grad(total, list(model.parameters()))
    return total.item(), torch.cat([grad.flatten() for grad in grads])


def distances(folder: Path) -> dict[str, tuple[float, float]]:
    """Each path's relative difference from the plain one, in loss and in gradient (2-norm).

    At the weights of a finished run, on made-up sequences of mixed length.
    """
    from benchmarks.pretraining import Work, make_batches
    from minibert.examples import collate

    model = BertForPreTraining.from_pretrained(folder).eval()
    work = Work("tiny", 64, 32, "mixed")
    examples = make_batches(work, 1)[0]
    for example in examples:  # ids of a small vocabulary
        example.input_ids[:] %= model.config.vocab_size
        example.mlm_labels[:] %= model.config.vocab_size
    batch = collate(examples, 10)
    loss, gradient = distance((), model, batch)
    found = {}
    for path, levers in PATHS.items():
        if path in _DRAWN_OR_LATER:
            continue
        other, other_gradient = distance(levers, model, batch)
        difference = (other_gradient - gradient).norm() / gradient.norm()
        found[path] = (abs(other - loss) / loss, float(difference))
    return found


def curve(folder: Path) -> list[tuple[int, float]]:
    """(step, training loss of masked words) of a run."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["mlm_loss"]) for row in rows if "mlm_loss" in row]


def report(
    figures: dict[str, list[dict[str, float]]],
    curves: dict[str, list[list[tuple[int, float]]]],
    apart: dict[str, tuple[float, float]],
) -> str:
    """gate.md."""
    plain = [one["mlm_loss"] for one in figures["plain"]]
    middle = statistics.mean(plain)
    first = figures["plain"][0]
    lines = [
        f"{len(plain)} seeds, {first['tokens']:,} tokens in {first['steps']:,} steps each; "
        f"loss of {first['masked_tokens']:,} held-out words (unigram "
        f"{first['unigram_entropy']:.3f}), mean ± standard deviation over seeds. "
        "A seed sees the same tokens with every path.",
        "",
        "| path | held-out MLM loss | minus plain, seed by seed | within plain's spread | "
        "NSP accuracy | loss apart | gradient apart |",
        "|---|---|---|---|---|---|---|",
    ]
    for path, runs in figures.items():
        losses = [one["mlm_loss"] for one in runs]
        pairs = statistics.mean(one["nsp_accuracy"] for one in runs)
        apart_text = "  ".join(f"{a - b:+.3f}" for a, b in zip(losses, plain, strict=True))
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        verdict = "yes" if min(plain) <= statistics.mean(losses) <= max(plain) else "NO"
        loss, gradient = (f"{part:.1e}" for part in apart[path]) if path in apart else "––"
        lines.append(
            f"| {path} | {statistics.mean(losses):.3f} ± {spread:.3f} | {apart_text} | {verdict} "
            f"| {pairs:.3f} | {loss} | {gradient} |"
        )
    lines += ["", f"Plain spans {max(plain) - min(plain):.3f} over seeds around {middle:.3f}."]
    lines += ["", "Training loss of masked words, mean over seeds:", ""]
    steps = [step for step, _ in curves["plain"][0]]
    shown = steps[:: max(1, len(steps) // _ROWS)]
    lines += ["| step | plain | all | all minus plain, seed by seed |", "|---|---|---|---|"]
    for step in shown:
        values = {path: [dict(one)[step] for one in curves[path]] for path in ("plain", "all")}
        gaps = "  ".join(
            f"{a - b:+.3f}" for a, b in zip(values["all"], values["plain"], strict=True)
        )
        lines.append(
            f"| {step} | {statistics.mean(values['plain']):.3f} "
            f"| {statistics.mean(values['all']):.3f} | {gaps} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/gate"))
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--max-seq-length", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=_SEED_RUNS)
    args = vars(parser.parse_args(arguments))
    output, seeds = args.pop("output"), args.pop("seeds")
    every = max(1, args["max_steps"] // 60)
    args |= {"dropout": 0.1, "log_every": every, "eval_every": args["max_steps"]}
    figures: dict[str, list[dict[str, float]]] = {}
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    for seed in range(seeds):
        for path in PATHS:
            folder = output / f"{path.replace(' ', '-')}-{seed}"
            with told_in_a_line("gate"):
                found = train(path, seed, dict(args), folder)
            figures.setdefault(path, []).append(found)
            curves.setdefault(path, []).append(curve(folder))
    text = report(figures, curves, distances(output / "plain-0"))
    (output / "gate.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
