"""`--compile auto`: whether torch.compile pays within the budget, by a measured rule.

    expected to last long enough? -> time steps as they are and compiled -> seconds saved > cost?

Compiling takes about a minute before the first step, and again wherever a run goes on, so a short
run is not even tried. In a longer one the same steps are timed in both forms, in turns, and nothing
of them stays: no gradient, no update, no random number, no data is used up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from minibert import runs
from minibert.progress import clock, counted
from minibert.runs import compile_choice, log_line
from minibert.settings import RunSettings
from minibert.train import Loop, StepData

_COMPILE_SECONDS = 60.0  # what compiling typically takes
_STEPS = 8  # timed in both forms; their lengths differ, so what compiles anew for each shows
_PASSES = 3 * _STEPS  # as they are, compiled for the first time, compiled
_LEAST_TRIALS = 10  # a run must be as long as so many trials: one in vain costs a tenth at most


class Timing(NamedTuple):
    """Seconds of a step's forward and backward pass in both forms, and of compiling."""

    eager: float
    compiled: float
    cost: float


def least_seconds(step_seconds: float) -> float:
    """How long a run must be expected to last for a trial."""
    return _LEAST_TRIALS * (_COMPILE_SECONDS + _PASSES * step_seconds)


def pays(timing: Timing, steps: float) -> bool:
    """Whether compiling saves more than it costs within so many steps.

    In a budget of time they are those that would fit in uncompiled. The rule is the same one:
    steps * (eager - compiled) > cost means (steps * eager - cost) / compiled > steps, that more
    steps fit into what compiling leaves of the time.
    """
    return steps * (timing.eager - timing.compiled) > timing.cost


def verdict(timing: Timing, steps: float) -> str:
    """The numbers and what follows from them, in words."""
    saved = steps * (timing.eager - timing.compiled)
    return (
        f"{timing.eager:.3g} s a step eager, {timing.compiled:.3g} s compiled, "
        f"{clock(timing.cost)} to compile; {'saves' if saved >= 0 else 'loses'} "
        f"{clock(abs(saved))} over {counted(round(steps), 'step')}: "
        f"{'used' if pays(timing, steps) else 'not used'} (auto)"
    )


def compile_if_it_pays(settings: RunSettings, begun: dict[str, Any] | None, loop: Loop) -> bool:
    """Whether the loop's forward is compiled; with "auto" that is measured, done and said.

    A run that goes on keeps what it began with, and all processes take the main one's verdict.

    Args:
        begun: the run.json of a run that goes on.
        loop: before its first step; its forward is compiled unless it is to be measured.
    """
    known = compile_choice(settings, begun)
    if known is not None:
        return known
    device = loop.runtime.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _try(loop) if _is_long_enough(loop) else False


def _is_long_enough(loop: Loop) -> bool:
    """Whether a trial may pay, by the time of one step."""
    seconds, share = loop.time_step()
    seconds = loop.world.from_main(seconds)
    expected, least = loop.expected_seconds(seconds, share), least_seconds(seconds)
    if expected < least:
        log_line(
            "compile",
            f"not tried: the run is expected to last {clock(expected)}, and a trial is worth its "
            f"time from {clock(least)} on (auto)",
        )
    return expected >= least


def _try(loop: Loop) -> bool:
    """Times both forms, says what is better, and leaves it as the loop's forward."""
    loop.leave_out_time()
    world, budget, eager = loop.world, loop.settings.budget, loop.forward
    compiled = runs.compiled(eager, loop.model, loop.runtime)
    steps, share = loop.next_steps(_STEPS)
    used, fault = False, ""
    try:
        timing = measure(loop, compiled, steps)
    except Exception as error:  # a step ran before, so it is the compiler's
        fault = (str(error).strip() or type(error).__name__).splitlines()[0]
        loop.optimizer.zero_grad(set_to_none=True)
    if float(world.largest(torch.tensor(float(bool(fault))))):
        log_line("compile", f"torch.compile failed: {fault or 'in a process'}: not used (auto)")
    else:
        timing = world.from_main(timing)
        left = budget.steps(timing.eager, share)
        used = pays(timing, left)
        log_line("compile", verdict(timing, left))
    loop.forward = compiled if used else eager
    if not used:
        torch.compiler.reset()  # frees what was compiled
    loop.leave_out_time()
    return used


def measure(
    loop: Loop,
    compiled: Callable[..., Any],
    steps: list[StepData],
    now: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times steps as the loop takes them and compiled; sets the loop's forward.

    Args:
        compiled: the compiled form of the loop's forward, not called yet.
        steps: the data; the loop has been warmed up.
        now: the clock.
    """
    eager = loop.forward
    seconds: dict[bool, list[float]] = {False: [], True: []}

    def time_pass(step: StepData, is_compiled: bool) -> None:
        loop.forward = compiled if is_compiled else eager
        seconds[is_compiled].append(loop.time_pass(step, now))

    loop.model.train()
    for step in steps:
        time_pass(step, is_compiled=True)
    for step in steps:  # in turns, so that a machine that others use slows both
        time_pass(step, is_compiled=False)
        time_pass(step, is_compiled=True)
    usual = statistics.median(seconds[True][len(steps) :])
    # Whatever a compiled pass takes beyond the usual is compiling, also for a length seen later.
    cost = max(0.0, sum(seconds[True]) - usual * len(seconds[True]))
    return Timing(statistics.median(seconds[False]), usual, cost)
