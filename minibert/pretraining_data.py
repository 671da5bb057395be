"""What stage one learns from and is scored by: steps of masked pairs, their loss, held-out figures.

In: example streams. Out: `StepData` for the loop, `Term`s of a batch, figures of held-out examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minibert.example_stream import ExampleStream
from minibert.examples import Example, collate
from minibert.losses import next_sentence_loss
from minibert.runtime import Runtime
from minibert.train import Batch, StepData, Term, parted
from minibert.world import ALONE, World

RAMP_START = 0.25  # of a batch, where --batch-ramp begins


def mean_batch_share(batch_ramp: float) -> float:
    """The mean batch over a budget of steps, in which it grows for a share: of a whole batch."""
    return 1 - batch_ramp * (1 - RAMP_START) / 2


def pretraining_terms(model: Callable[..., Any], batch: Batch) -> dict[str, Term]:
    """The terms of stage one on a batch: masked words, and pairs where the batch has labels.

    Args:
        model: returns a `PretrainingOutput`.
        batch: from `examples.collate`.

    Returns:
        "mlm" and, with next_sentence_label, "nsp".
    """
    inputs = ("input_ids", "token_type_ids", "attention_mask", "mlm_positions", "mlm_labels")
    shifted = {name: batch[name] for name in ("first_positions",) if name in batch}
    out = model(**{name: batch[name] for name in inputs}, **shifted)
    terms = {"mlm": Term(*out.mlm_score)}
    if "next_sentence_label" in batch:
        pairs = batch["next_sentence_label"]
        hits = (out.nsp_logits.argmax(-1) == pairs).sum()
        terms["nsp"] = Term(*next_sentence_loss(out.nsp_logits, pairs), hits)
    return terms


class Phase(NamedTuple):
    """A part of the budget: where its steps come from, and the share of the budget it ends at."""

    stream: ExampleStream
    until: float = 1.0


class PretrainingData:
    """Optimiser steps of masked sequences, from example streams; this process's share of each.

    Examples may change with the budget. Sequences may be short at first: attention is cheaper, and
    most of what is learnt is near (Devlin et al. 2019, A.2). A step then has as many more of them,
    so that its tokens stay about the same. Pairs may come at the end alone. Each phase goes on at
    the place in the corpus where the one before stopped. The batch may grow in a line over the
    first share of the budget, from a quarter: early gradients agree, so that fewer sequences tell
    as much (McCandlish et al. 2018). What a step is like is a function of the budget used, so a run
    resumes exactly.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        batch_size: int,
        micro_batch_size: int,
        world: World = ALONE,
        batch_ramp: float = 0.0,
    ) -> None:
        """Begins with the first phase at the first epoch.

        Args:
            phases: one or more, of the same documents and seed; the last one's sequences are whole.
            batch_size, micro_batch_size: whole sequences, per step and per forward.
            batch_ramp: share of the budget in which the batch grows.
        """
        self.phases, self.world = phases, world
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.batch_ramp = batch_ramp
        self.batch_share = RAMP_START if batch_ramp else 1.0  # of a whole batch, now
        self.number = 0  # of the phase that steps come from now
        self.max_predictions = self.whole.builder.options.max_predictions

    @property
    def stream(self) -> ExampleStream:
        """What steps come from now."""
        return self.phases[self.number].stream

    @property
    def whole(self) -> ExampleStream:
        """What steps come from in the end."""
        return self.phases[-1].stream

    @property
    def epochs_done(self) -> float:
        return self.stream.epochs_done

    def pace(self, done: float) -> None:
        """Chooses what the next steps are like by the share of the budget used."""
        if self.batch_ramp:
            climbed = min(1.0, done / self.batch_ramp)
            self.batch_share = RAMP_START + (1 - RAMP_START) * climbed
        while self.number + 1 < len(self.phases) and done >= self.phases[self.number].until:
            before, self.number = self.stream, self.number + 1
            self.stream.follow(before)

    def state(self) -> dict[str, int]:
        phase = {"phase": self.number} if len(self.phases) > 1 else {}
        return self.stream.state() | phase

    def seek(self, state: dict[str, int]) -> None:
        # Checkpoints of older versions have "short" where there were short sequences first.
        self.number = state.get("phase", 1 - state.get("short", 1))
        self.stream.seek(state)

    def told_phases(self) -> str:
        """What steps are like over the budget, in words."""
        told, start = [], 0.0
        for phase in self.phases:
            told.append(f"{self._told(phase)} a step in {phase.until - start:.0%}")
            start = phase.until
        return f"{', then '.join(told)} of the budget"

    def told_unreached(self) -> str | None:
        """What no step was like, where the budget had too few of them for its last phases."""
        unreached = self.phases[self.number + 1 :]
        if not unreached:
            return None
        told = " and ".join(self._told(phase) for phase in unreached)
        share = self.phases[self.number].until
        return f"no step began in the last {1 - share:.0%} of the budget, so none had {told}"

    @property
    def positions_reached(self) -> int:
        """How many positions the longest sequences of the phases until now have."""
        return max(p.stream.builder.options.max_seq_length for p in self.phases[: self.number + 1])

    @property
    def has_reached_pairs(self) -> bool:
        """Whether steps of a phase until now hold pairs."""
        begun = self.phases[: self.number + 1]
        return any(phase.stream.builder.options.nsp != "none" for phase in begun)

    def _told(self, phase: Phase) -> str:
        """What a step of a phase holds, in words."""
        options = phase.stream.builder.options
        count = self._as_many_tokens(self.batch_size, phase.stream)
        pairs = "" if options.nsp == "none" else f" of pairs ({options.nsp})"
        return f"{count:,} sequences of {options.max_seq_length} tokens{pairs}"

    def _as_many_tokens(self, sequences: int, stream: ExampleStream) -> int:
        """How many sequences of a stream hold the tokens of so many whole ones."""
        whole, now = (s.builder.options.max_seq_length for s in (self.whole, stream))
        return sequences * whole // now

    def largest(self, size: int) -> dict[str, Tensor]:
        """A batch of `size` sequences without padding, for trying what fits into memory."""
        options, count = self.whole.builder.options, self.max_predictions
        ids = np.zeros(options.max_seq_length, np.int64)
        places, labels = np.arange(count), np.zeros(count, np.int64)
        pair = None if options.nsp == "none" else 0
        return collate([Example(ids, len(ids) // 2, places, labels, pair)] * size, count)

    def take(self) -> StepData:
        """The next batch, in micro-batches; labels are counted before anything is computed."""
        sizes = (self.batch_size, self.micro_batch_size)
        batch, size = (self._as_many_tokens(count, self.stream) for count in sizes)
        # Of micro-batches and processes it knows nothing: they change no step.
        examples = self.stream.take(math.ceil(batch * self.batch_share))
        own = list(self.world.share(examples))
        largest = -(-len(examples) // self.world.size)
        parts, fillers = parted(own, size, largest, examples[0])
        counts = {"mlm": sum(len(e.mlm_positions) for e in examples)}
        if examples[0].next_sentence_label is not None:
            counts["nsp"] = len(examples)
        slots = self.stream.builder.options.max_predictions
        batches = [collate(list(part), slots) for part in parts]
        real = batches[: len(batches) - fillers]
        num_slots = sum(batch["input_ids"].numel() for batch in real)
        lengths = [len(e.input_ids) for e in examples]
        return StepData(batches, counts, lengths, num_slots, fillers)


@torch.no_grad()
def evaluate_pretraining(
    model: nn.Module,
    examples: Sequence[Example],
    max_predictions: int,
    batch_size: int,
    run: Runtime,
) -> dict[str, float]:
    """Scores masked words and pairs of held-out examples; the model is in eval mode.

    Every process scores its share of the batches, and all return the figures of the whole.

    Returns:
        mlm_loss (nats), mlm_perplexity, mlm_accuracy, masked_tokens and, with pairs, nsp_loss,
        nsp_accuracy, pairs, random_pairs (their share; guessing one class scores it or the rest).
    """
    names = ("mlm", "nsp")[: 1 + (examples[0].next_sentence_label is not None)]
    sums = {f"{name}_{key}": 0.0 for name in names for key in ("loss", "count", "hits")}
    for start, counts in run.world.rounds(range(0, len(examples), batch_size)):
        batch = collate(list(examples[start : start + batch_size]), max_predictions)
        with run.autocast():
            terms = pretraining_terms(model, run.place(batch))
        for name, term in terms.items():
            for key, value in zip(("loss", "count", "hits"), term, strict=True):
                sums[f"{name}_{key}"] += float(value) * counts
    together = run.world.sum(torch.tensor(list(sums.values()), dtype=torch.float64))
    sums = dict(zip(sums, together.tolist(), strict=True))
    loss = sums["mlm_loss"] / sums["mlm_count"]
    figures = {
        "mlm_loss": loss,
        "mlm_perplexity": math.exp(min(loss, 700)),
        "mlm_accuracy": sums["mlm_hits"] / sums["mlm_count"],
        "masked_tokens": int(sums["mlm_count"]),
    }
    if "nsp_count" in sums:
        figures["nsp_loss"] = sums["nsp_loss"] / sums["nsp_count"]
        figures["nsp_accuracy"] = sums["nsp_hits"] / sums["nsp_count"]
        figures["pairs"] = int(sums["nsp_count"])
        labels = [e.next_sentence_label for e in examples if e.next_sentence_label is not None]
        figures["random_pairs"] = sum(labels) / len(labels)
    return figures
