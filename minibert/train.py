"""The training loop, one for both stages; it knows no model and no task.

    step data -> forward -> summed losses / their counts over the step -> backward -> clip -> update

What it needs is handed in: `StepData` batches, an objective that turns a batch into `Term`s, an
optimiser, a budget. All state that a step depends on is in `LoopState`, the model, the optimiser
and the data's position; dropout is reseeded at every step from (seed, step, rank). So a run resumed
from any checkpoint takes the same steps, bit by bit, as one that was never stopped.

Of several processes each takes its share of every step. They add up gradients and sums, and agree
on the clock and on signals once a step; the main one alone writes and speaks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minibert.checkpoint import load_best, load_last_checkpoint, save_best, save_checkpoint
from minibert.errors import Interrupted
from minibert.optim import Budget, Muon, rate_share
from minibert.profiling import StepProfiler
from minibert.progress import clock, counted
from minibert.run_folder import RunFolder
from minibert.runtime import Runtime
from minibert.sharding import clip_gradients, part_of

T = TypeVar("T")
Batch = Mapping[str, Tensor]
_SAVE_SECONDS = 300.0  # between checkpoints when no number of steps is asked for
_REPEATED_SECONDS = 20.0  # in which a launcher's second signal is the first one, passed on
_CHECKPOINT_IS_WHOLE = "the last checkpoint is from before"
_REMEDY = "try a lower --learning-rate or --precision fp32"
_EVALUATIONS = 10  # over the budget, when no number of steps is asked for


class Term(NamedTuple):
    """One part of a loss over a batch: its sum, how many labels, and how many were hit."""

    loss_sum: Tensor
    num_labels: Tensor
    num_hits: Tensor


Objective = Callable[[Callable[..., Any], Batch], dict[str, Term]]
# How often a micro-batch goes forward and backward: what is open meanwhile, by a prefix for terms.
Passes = Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]]
ONE_PASS: Passes = {"": contextlib.nullcontext}


class StepData(NamedTuple):
    """The data of one optimiser step.

    micro_batches: this process's, on the CPU. counts: labels of each loss term over the whole
    step, known before the first forward. lengths: real tokens of each sequence of the whole step.
    num_slots: places in this process's batches, padding included. num_fillers: the last so many of
    them stand in for what other processes have more, and their loss counts nothing.
    """

    micro_batches: list[dict[str, Tensor]]
    counts: dict[str, int]
    lengths: list[int]
    num_slots: int
    num_fillers: int = 0

    @property
    def num_tokens(self) -> int:
        """Real tokens, no padding."""
        return sum(self.lengths)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's dropout, another one in every process.

    Mixed for all processes but the main one, for on a CPU PyTorch looks at the lowest 32 bits alone
    (mt19937), and those of neighbouring seeds, steps and ranks must not meet.
    """
    if rank == 0:
        return seed * 1_000_003 + step
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def parted(own: Sequence[T], size: int, largest: int, other: T) -> tuple[list[Sequence[T]], int]:
    """A process's share of a step in micro-batches, as many as those of the largest share.

    A sharded model's forward waits for all processes, so that none may take one more.

    Args:
        own: the share, which may be empty. size: of a micro-batch, at most. largest: of a share.
        other: what a filler holds.

    Returns:
        The parts, and how many of the last are fillers.
    """
    count = -(-largest // size)
    parts = [own[i : i + size] for i in range(0, len(own), size)]
    if len(parts) < count <= len(own):
        bounds = [i * len(own) // count for i in range(count + 1)]
        parts = [own[start:stop] for start, stop in itertools.pairwise(bounds)]
    fillers = count - len(parts)
    return [*parts, *([[other]] * fillers)], fillers


class Utilisation(NamedTuple):
    """What `mfu` in metrics.jsonl is made of; see `flops.py`.

    useful_flops: operations that a step's real tokens need. peak_flops: a second, of the machine.
    """

    useful_flops: Callable[[StepData], float]
    peak_flops: float


class Data(Protocol):
    """Where steps come from; a position that can be saved and sought."""

    @property
    def epochs_done(self) -> float: ...

    def take(self) -> StepData: ...

    def state(self) -> dict[str, int]: ...

    def seek(self, state: dict[str, int]) -> None: ...


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs.

    warmup_ratio: share of the budget. log_every, eval_every, save_every: steps; the last two may
    be None for ten evaluations over the budget and a checkpoint every five minutes. select: the
    evaluation figure that chooses the weights to keep, None for the last ones. profile: trace a
    few steps into the folder's profile.json. patience: evaluations without a better figure after
    which the run ends. schedule, decay_ratio: as in `rate_share`.
    """

    learning_rate: float
    budget: Budget
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int = 50
    eval_every: int | None = None
    save_every: int | None = None
    select: str | None = None
    profile: bool = False
    patience: int | None = None
    schedule: str = "linear"
    decay_ratio: float = 0.3


@dataclass
class LoopState:
    """What the loop carries from step to step, all of it in every checkpoint.

    window holds the sums since the last logged row; seconds are those inside the loop, and later
    those by which a budget of them ends later than planned.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0  # evaluations since the best one
    window: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    later: float = 0.0


class NonFiniteError(RuntimeError):
    """A loss or gradient was not a number; the message names the step and the part."""


class Loop:
    """One training run. `fit` is all that callers need."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        runtime: Runtime,
        folder: RunFolder | None,
        evaluate: Callable[[], dict[str, float]],
        forward: Callable[..., Any] | None = None,
        utilisation: Utilisation | None = None,
        pace: Callable[[float], object] = lambda done: None,
        mean_step: float = 1.0,
        passes: Passes = ONE_PASS,
    ) -> None:
        """Takes everything the loop needs.

        Args:
            evaluate: scores the model; its figures are logged as `eval_…`.
            folder: where rows and checkpoints go; None keeps nothing (a dry run).
            forward: what is called instead of `model`, such as a compiled wrapper of it.
            utilisation: how rows get their `mfu`; without it they have none.
            pace: told the share of the budget used before each step's data are taken, for steps
                that grow with it.
            mean_step: size of a step in the mean over a budget of steps, as a share of the largest.
            passes: of each micro-batch; the loss is the mean of theirs.
        """
        self.model = model
        self.forward = model if forward is None else forward
        self.data, self.objective, self.optimizer = data, objective, optimizer
        self.settings, self.runtime, self.folder = settings, runtime, folder
        self.evaluate, self.utilisation, self.pace = evaluate, utilisation, pace
        self.mean_step, self.passes = mean_step, passes
        self.state, self._planned = LoopState(), settings.budget
        self._sums: dict[str, Tensor] = {}  # of the log window, on the device
        self._first_bad: Tensor | None = None  # step whose loss or gradient was not finite; 0: none
        self.asked_to_stop = 0  # the signal that this process was sent, if any
        self.stop_signal = 0  # what all processes have agreed on
        self.world = runtime.world
        self._session_start = time.perf_counter()
        self._seconds_before = 0.0
        self._agreed_seconds = 0.0  # the main process's clock after the last step
        self._last_save = 0.0  # by that clock

    # --- state -----------------------------------------------------------------------------

    def restore(self) -> bool:
        """Goes back to the last good checkpoint; False where there is none."""
        assert self.folder is not None
        with self.world.main_first():  # which removes what is damaged
            place = self.folder.checkpoints
            saved = load_last_checkpoint(place, self.model, self.optimizer, self.world)
            if self.world.is_main:
                self.folder.cut_metrics(saved["metrics_bytes"] if saved else 0)
        if saved is None:
            return False
        self.state, self._sums = LoopState(**saved["loop"]), {}
        if not self.state.window.keys() >= self._window_keys():
            self.state.window = {}  # of an older version, which counted less
        self.move_end(self.state.later)
        self.data.seek(saved["data"])
        self._seconds_before = self._agreed_seconds = self._last_save = self.state.seconds
        return True

    def save(self) -> None:
        """Writes a checkpoint of the present step.

        Raises:
            NonFiniteError: a weight is not a finite number; the earlier checkpoints stay.
        """
        if self.folder is None:
            return
        self._read_sums()
        self._check_weights()
        self.state.seconds = self._seconds()
        state = {
            "loop": asdict(self.state),
            "data": self.data.state(),
            "metrics_bytes": self.folder.metrics_bytes(),
        }
        step, place = self.state.step, self.folder.checkpoints
        save_checkpoint(place, step, self.model, self.optimizer, state, self.world)

    def _window_keys(self) -> set[str]:
        """What a log window must hold for its row, beside the terms' own sums."""
        keys = {"steps", "loss", "grad_norm", "learning_rate", "seconds", "tokens", "slots"}
        return keys | ({"flops"} if self.utilisation else set())

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._session_start

    def _done(self, steps: float, epochs: float) -> float:
        return self.settings.budget.done(steps, epochs, self._agreed_seconds)

    def _agree(self) -> None:
        """Takes over the main process's clock, and a signal that any process was sent."""
        seconds = self._seconds() if self.world.is_main else 0.0
        own = torch.tensor([seconds, self.asked_to_stop], dtype=torch.float64)
        self._agreed_seconds, signal_number = self.world.largest(own).tolist()
        self.stop_signal = int(signal_number)

    @property
    def done(self) -> float:
        """Share of the budget used."""
        return self._done(self.state.step, self.data.epochs_done)

    # --- one step --------------------------------------------------------------------------

    def take_step(self) -> None:
        """Forward and backward over the step's micro-batches, then one update.

        Raises:
            NonFiniteError: before the weights are touched; a GPU, which would have to be waited
                for, is asked when a row is logged or a checkpoint saved.
        """
        state, settings = self.state, self.settings
        started = time.perf_counter()
        self.pace(self.done)
        epochs_before = self.data.epochs_done
        step = self.data.take()
        # The middle of the step decides its rate: with steps or epochs, neither end is 0.
        epochs_after = min(self.data.epochs_done, settings.budget.epochs or math.inf)
        middle = self._done(state.step + 0.5, (epochs_before + epochs_after) / 2)
        rate = settings.learning_rate * rate_share(
            middle, settings.warmup_ratio, settings.schedule, settings.decay_ratio
        )
        torch.manual_seed(dropout_seed(settings.seed, state.step, self.world.rank))
        sums = self._backward(step)
        norm = clip_gradients(
            self.model, self.optimizer, settings.max_grad_norm, read=not self.runtime.runs_ahead
        )
        self._account(step, sums, norm, rate)
        if not self.runtime.runs_ahead:
            self._read_sums()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += step.num_tokens
        # Evaluations and checkpoints are not training speed: only steps are timed.
        seconds = time.perf_counter() - started
        state.window["seconds"] = state.window.get("seconds", 0.0) + seconds

    def _backward(self, step: StepData) -> dict[str, Tensor]:
        """Adds the step's gradients; returns each term's summed loss and hits, and the slots."""
        sums: dict[str, Tensor] = {}
        count, last_pass = len(step.micro_batches), list(self.passes)[-1]
        for number, batch in enumerate(step.micro_batches):
            is_filler = number >= count - step.num_fillers
            # Processes' gradients are averaged, and what is asked for is their sum.
            weight = 0 if is_filler else self.world.size / len(self.passes)
            placed = self.runtime.place(batch)
            for prefix, opened in self.passes.items():
                with self._gradients_added_up(number == count - 1 and prefix == last_pass):
                    with opened(), self.runtime.autocast():
                        terms = self.objective(self.forward, placed)
                    # The mean is taken here, over the whole step: sum of this part / count of all.
                    total = sum(term.loss_sum / step.counts[name] for name, term in terms.items())
                    assert isinstance(total, Tensor)
                    (total * weight).backward()
                for name, term in terms.items():
                    for key, value in (
                        (f"{prefix}{name}_loss", term.loss_sum),
                        (f"{prefix}{name}_hits", term.num_hits),
                    ):
                        value = self._exact(value.detach() * (not is_filler))
                        sums[key] = sums[key] + value if key in sums else value
        sums["slots"] = torch.full_like(value, step.num_slots)
        together = self.world.sum(torch.stack(list(sums.values())))
        return dict(zip(sums, together.unbind(), strict=True))

    def _exact(self, value: Tensor) -> Tensor:
        """In float64, where the device has it or else on the CPU."""
        return (value if self.runtime.runs_ahead else value.cpu()).double()

    def _gradients_added_up(self, now: bool) -> contextlib.AbstractContextManager[object]:
        """With several processes: whether a backward pass ends in their gradients' sum.

        A sharded model cannot wait: it would have to hold the whole gradients meanwhile.
        """
        waiting = getattr(self.forward, "no_sync", contextlib.nullcontext)
        return contextlib.nullcontext() if now else waiting()

    def _account(self, step: StepData, sums: dict[str, Tensor], norm: Tensor, rate: float) -> None:
        """Adds a step to the open log window; what was computed stays on the device."""
        window = self.state.window
        counts = {f"{p}{name}": n for p in self.passes for name, n in step.counts.items()}
        parts = [sums[f"{name}_loss"] / count for name, count in counts.items()]
        loss = torch.stack(parts).sum() / len(self.passes)
        computed = {"loss": loss, "grad_norm": self._exact(norm), **sums}
        for key, value in computed.items():
            before = self._sums.get(key)
            if before is None:
                before = torch.full_like(value, window.get(key, 0.0))
            self._sums[key] = before + value
        if self._first_bad is None:
            self._first_bad = torch.zeros_like(loss)
        is_new = ~(computed["loss"] + computed["grad_norm"]).isfinite() & (self._first_bad == 0)
        self._first_bad = torch.where(is_new, self.state.step + 1, self._first_bad)
        added = {"steps": 1.0, "tokens": step.num_tokens}
        added |= {f"{name}_count": count for name, count in counts.items()}
        if self.utilisation:
            added["flops"] = self.utilisation.useful_flops(step)
        for key, number in added.items():
            window[key] = window.get(key, 0) + number
        window["learning_rate"] = rate

    def _read_sums(self) -> None:
        """Brings the window's sums to the host, which waits for them.

        Raises:
            NonFiniteError: one of the steps since the last reading was not finite.
        """
        if not self._sums or self._first_bad is None:
            return
        started = time.perf_counter()
        read = torch.stack([self._first_bad, *self._sums.values()]).tolist()
        window = self.state.window | dict(zip(self._sums, read[1:], strict=True))
        if self.runtime.runs_ahead:  # else the step's own time holds it
            window["seconds"] = window.get("seconds", 0.0) + time.perf_counter() - started
        self.state.window = window
        if read[0]:
            raise NonFiniteError(self._fault(int(read[0])))

    def _fault(self, step: int) -> str:
        """What was not finite at a step, which weights are whole, and what may help."""
        window = self.state.window
        names = [key.removesuffix("_count") for key in window if key.endswith("_count")]
        found = {f"{name} loss": window[f"{name}_loss"] for name in names}
        bad = [f"{k} is {v}" for k, v in found.items() if not math.isfinite(v)]
        bad = bad or [f"the gradient norm is {window['grad_norm']}"]
        whole = "the weights of the step before are untouched"
        if self.runtime.runs_ahead:
            whole = _CHECKPOINT_IS_WHOLE
        return f"step {step}: {', '.join(bad)}; {whole}; {_REMEDY}"

    def _check_weights(self) -> None:
        """Looks at what the last update left, which no loss and no gradient has told of yet.

        Raises:
            NonFiniteError: a weight of any process is not a finite number.
        """
        # Of a sharded model each process looks at what it holds.
        parts = [part_of(p.detach()) for p in self.model.parameters()]
        bad = torch.stack([~p.isfinite().all() for p in parts]).any()
        if self.world.largest(bad.cpu().double()[None]).item():
            raise NonFiniteError(
                f"step {self.state.step}: its update left weights that are not finite; "
                f"{_CHECKPOINT_IS_WHOLE}; {_REMEDY}"
            )

    def time_step(self) -> tuple[float, float]:
        """Times the next step, of the update what depends on no data; nothing is changed.

        Returns:
            Seconds, and the share of an epoch that the step is.
        """
        (step,), share = self.next_steps(1)
        self.model.train()
        for _ in range(2):  # the first warms caches and, if asked for, compiles
            seconds = self.time_pass(step) + self._time_update()
        return seconds, share

    def _time_update(self) -> float:
        """Seconds of the products in an update by Muon; AdamW's are next to nothing."""
        if not isinstance(self.optimizer, Muon):
            return 0.0
        start = time.perf_counter()
        self.optimizer.rehearse()
        self.runtime.synchronize()
        return time.perf_counter() - start

    def time_pass(self, step: StepData, now: Callable[[], float] = time.perf_counter) -> float:
        """Seconds of a forward and backward pass, whose gradients are dropped."""
        self.runtime.synchronize()
        start = now()
        self._backward(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.runtime.synchronize()
        return now() - start

    def next_steps(self, count: int) -> tuple[list[StepData], float]:
        """The data of the next steps, which are not used up, and the share of an epoch of one.

        Where steps grow with the budget, they are as large as at its end.
        """
        position = self.data.state()
        self.pace(1.0)
        before = self.data.epochs_done
        steps = [self.data.take() for _ in range(count)]
        share = (self.data.epochs_done - before) / count
        self.data.seek(position)
        return steps, share

    def expected_seconds(self, seconds: float, share: float) -> float:
        """How long the budget takes about.

        Args:
            seconds, share: of a step of the largest size, its time and its share of an epoch.
        """
        budget = self.settings.budget
        mean = self.mean_step if budget.max_steps is not None else 1.0  # a count of small ones too
        return budget.steps(seconds, share) * seconds * mean

    def evaluations(self, steps: float) -> int:
        """How many there are in so many steps; the last step ends with one."""
        every = self.settings.eval_every
        return math.ceil(min(steps, _EVALUATIONS) if every is None else steps / every)

    def start_clock(self) -> None:
        """What came before, such as compiling when a run goes on, is no time of the loop."""
        self._session_start = time.perf_counter()

    def leave_out_time(self) -> None:
        """Before the first step: a budget of seconds is what is left of it, and starts now."""
        if self.settings.budget.seconds is None:
            return
        left = max(1.0, self.settings.budget.seconds - self._seconds())
        self._planned = Budget(seconds=self.world.from_main(left))
        self.settings = replace(self.settings, budget=self._planned)
        self.start_clock()

    def move_end(self, seconds: float) -> None:
        """Lets a budget of seconds end so much later than planned; after the last step it has."""
        planned = self._planned.seconds
        if planned is not None and not self.state.finished:
            self.state.later = seconds
            budget = Budget(seconds=max(1.0, planned + seconds))
            self.settings = replace(self.settings, budget=budget)

    def announce(self, model: nn.Module) -> tuple[float, float]:
        """Prints the size of the network and how long the budget will take, from a timed step.

        Returns:
            Seconds of a step of the largest size, and of the budget.
        """
        parameters = sum(p.numel() for p in model.parameters())
        seconds, share = self.time_step()
        budget = self.settings.budget
        text = f"{parameters:,} parameters, {self.runtime.precision} on {self.runtime.device}; "
        text += f"a step takes {seconds:.2f} s{' at its largest' if self.mean_step < 1 else ''}"
        steps, expected = budget.steps(seconds, share), self.expected_seconds(seconds, share)
        if budget.max_steps is not None:
            text += f", {counted(budget.max_steps, 'step')} about {clock(expected)}"
        elif budget.epochs is not None:
            each = counted(round(1 / share), "step")
            text += f", {counted(budget.epochs, 'epoch')} of about {each} each "
            text += f"about {clock(expected)}"
        elif budget.seconds is not None:
            text += f", {clock(budget.seconds)} about {counted(round(steps), 'step')}"
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        if self.world.is_main:
            print(f"network: {text}; memory so far {peak:,.0f} MiB", file=sys.stderr)
        return seconds, expected

    # --- what surrounds steps ----------------------------------------------------------------

    def log_row(self) -> dict[str, Any]:
        """The window's means as a row of metrics.jsonl; the window is emptied."""
        self._read_sums()
        window, self.state.window, self._sums = self.state.window, {}, {}
        row: dict[str, Any] = {
            "step": self.state.step,
            "epoch": round(self.data.epochs_done, 6),
            "loss": window["loss"] / window["steps"],
        }
        for key in [k for k in window if k.endswith("_count")]:
            name = key.removesuffix("_count")
            row[f"{name}_loss"] = window[f"{name}_loss"] / window[key]
            row[f"{name}_accuracy"] = window[f"{name}_hits"] / window[key]
        row["learning_rate"] = window["learning_rate"]
        row["grad_norm"] = window["grad_norm"] / window["steps"]
        seconds = max(1e-9, window["seconds"])
        row["padding_share"] = 1 - window["tokens"] / window["slots"]
        row["tokens_per_second"] = window["tokens"] / seconds
        if self.utilisation:
            row["mfu"] = window["flops"] / seconds / self.utilisation.peak_flops
        row["seconds"] = self._seconds()
        return row

    def run_evaluation(self) -> dict[str, Any]:
        """Scores the model, keeps it when it is the best so far; the row for metrics.jsonl.

        Raises:
            NonFiniteError: a weight is not a finite number.
        """
        self._check_weights()
        was_training = self.model.training
        self.model.eval()
        figures = self.evaluate()
        self.model.train(was_training)
        chosen = figures[self.settings.select] if self.settings.select else None
        self.state.waited += 1
        if chosen is not None and (self.state.best is None or chosen > self.state.best):
            self.state.best, self.state.best_step, self.state.waited = chosen, self.state.step, 0
            if self.folder:
                save_best(self.folder.checkpoints, self.state.step, self.model, self.world)
        row = {"step": self.state.step, "epoch": round(self.data.epochs_done, 6)}
        return row | {f"eval_{name}": value for name, value in figures.items()}

    def _emit(self, row: dict[str, Any], bar: tqdm) -> None:
        if not self.world.is_main:
            return
        if self.folder:
            self.folder.append_metrics(row)
        told = (
            *("step", "epoch", "loss", "accuracy", "f1", "rate", "norm", "second"),
            f"eval_{self.settings.select}",  # such as spearman
        )
        figures = "  ".join(f"{k} {_short(v)}" for k, v in row.items() if k.endswith(told))
        if bar.disable:
            print(figures, file=sys.stderr, flush=True)
        elif any(key.startswith("eval_") for key in row):
            bar.write(figures, file=sys.stderr)
        else:
            shown = [k for k in row if k in ("step", "loss") or k.endswith("_accuracy")]
            text = "  ".join(f"{key} {_short(row[key])}" for key in shown)
            bar.set_postfix_str(f"{text}  {row['tokens_per_second']:,.0f} tokens/s", refresh=False)

    def _is_due(self, every: int | None, before: float, after: float) -> bool:
        if every is not None:
            return self.state.step % every == 0
        return math.floor(after * _EVALUATIONS + 1e-9) > math.floor(before * _EVALUATIONS + 1e-9)

    def run(self) -> LoopState:
        """Steps until the budget is used up, logging, evaluating and saving on the way.

        Raises:
            Interrupted: after SIGINT or SIGTERM, also in the last step, with the state saved.
            NonFiniteError: a loss or gradient that is not a number.
        """
        settings, state = self.settings, self.state
        self.model.train()
        profiler = None
        if settings.profile and self.folder and self.world.is_main:
            profiler = StepProfiler(self.folder.path / "profile.json", self.runtime.device)
        layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}  {postfix}"
        quiet = None if self.world.is_main else True  # None: where there is no terminal
        bar = tqdm(total=1.0, initial=min(1.0, self.done), bar_format=layout, disable=quiet)
        tracing = contextlib.closing(profiler) if profiler else contextlib.nullcontext()
        with bar, tracing, self.runtime.host_threads():
            after = self.done
            while not state.finished:
                before = after
                with profiler.step() if profiler else contextlib.nullcontext():
                    self.take_step()
                waiting = time.perf_counter()
                self._agree()
                if self.runtime.runs_ahead:  # where several hosts wait for each other
                    state.window["seconds"] += time.perf_counter() - waiting
                after = self.done
                state.finished = after >= 1.0  # decided once: the clock goes on meanwhile
                if state.step % settings.log_every == 0 or state.finished:
                    self._emit(self.log_row(), bar)
                if self._is_due(settings.eval_every, before, after) or state.finished:
                    self._read_sums()  # waiting for steps is their time, not the evaluation's
                    self._emit(self.run_evaluation(), bar)
                    self._agree()  # a budget of seconds may have ended meanwhile
                    after = self.done
                    state.finished |= after >= 1.0
                    state.finished |= 0 < (settings.patience or 0) <= state.waited
                    if state.finished and state.window:
                        self._emit(self.log_row(), bar)
                bar.update(min(1.0, after) - bar.n)
                saved = self._save_is_due() or state.finished
                if saved:
                    self.save()
                    self._last_save = self._agreed_seconds
                if self.stop_signal:
                    self._stop(saved)
            if settings.select and self.folder and state.best is None:  # lost with its weights
                self._emit(self.run_evaluation(), bar)
                self.save()
        if settings.select and self.folder and state.best is not None:
            self.world.wait()  # until it is written
            load_best(self.folder.checkpoints, state.best_step, self.model)
        self._agree()  # on a signal that came since the last step
        if self.stop_signal:
            self._stop(saved=True)
        return state

    def _save_is_due(self) -> bool:
        if self.settings.save_every is not None:
            return self.state.step % self.settings.save_every == 0
        return self._agreed_seconds - self._last_save > _SAVE_SECONDS

    def _stop(self, saved: bool) -> None:
        if not saved:
            self.save()
        self.world.wait()  # a launcher ends the others as soon as one is gone
        name = signal.Signals(self.stop_signal).name
        where = f"; --resume goes on from step {self.state.step}" if self.folder else ""
        raise Interrupted(f"stopped by {name}, state saved{where}", 128 + self.stop_signal)


def fit(loop: Loop, resume: bool = False) -> LoopState:
    """Runs a loop to the end of its budget; Ctrl-C and SIGTERM save first.

    Args:
        resume: go back to the last good checkpoint first; without one the run begins at step 0
            and says so.

    Returns:
        The final state; the model holds the chosen weights.
    """
    if resume:
        where = (
            f"from step {loop.state.step}, {loop.done:.0%} of the budget done"
            if loop.restore()
            else "at step 0: no whole checkpoint yet"
        )
        if loop.world.is_main:
            print(f"resuming {where}", file=sys.stderr)
    loop.start_clock()
    with _Signals(loop):
        return loop.run()


class _Signals:
    """While open, SIGINT and SIGTERM ask the loop to stop; a second one ends at once.

    Of several processes not within `_REPEATED_SECONDS`: a scheduler signals launcher and workers,
    and the launcher then signals the workers again.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.since = 0.0  # when the first came

    def __enter__(self) -> None:
        self.before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: signals are somebody else's
            pass

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.loop.asked_to_stop:
            if self.loop.world.size > 1 and time.monotonic() - self.since < _REPEATED_SECONDS:
                return
            raise Interrupted(f"stopped at once by {signal.Signals(number).name}", 128 + number)
        self.loop.asked_to_stop, self.since = number, time.monotonic()
        if self.loop.world.is_main:
            several = self.loop.world.size > 1
            more = f"once more after {_REPEATED_SECONDS:.0f} s" if several else "once more"
            print(f"\nstopping after this step; {more} ends at once", file=sys.stderr)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _short(value: Any) -> str:
    """A figure for people."""
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:,.4g}"
    return str(value)
