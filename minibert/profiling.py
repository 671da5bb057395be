"""Where the time of a step goes: a trace of a few steps for a viewer, and a table for the eye."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

_WAIT, _WARMUP, _STEPS = 2, 1, 5  # steps let pass, taken as a rehearsal, and traced
_ROWS = 12  # of the table
_STEP = "minibert.step"  # the range of a step in the trace


class StepProfiler:
    """Traces the fourth to eighth step of a run.

    The trace is one for chrome://tracing or ui.perfetto.dev. It also holds what lies between steps,
    evaluations and checkpoints; the table holds the steps alone.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        """Begins to count steps.

        Args:
            path: of the trace to write, .json.
        """
        self.path, self.device = path, device
        self.done = False
        activities = [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=_WAIT, warmup=_WARMUP, active=_STEPS, repeat=1),
            on_trace_ready=self._finish,
            acc_events=True,  # there is one cycle; else some versions warn
        )
        self._steps = 0
        self._profile.start()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """To be entered for a step."""
        with record_function(_STEP):
            yield
            if self.device.type == "cuda" and not self.done:
                torch.cuda.synchronize(self.device)  # so that its work lies within the range
        self._steps += 1
        if not self.done:
            self._profile.step()
            if self.done:
                self._profile.stop()

    def close(self) -> None:
        """The run is over; what was traced until now is kept."""
        if not self.done:
            self._profile.stop()
        if not self.done:
            text = f"profile: none; it begins at step {_WAIT + _WARMUP + 1} of a run"
            print(text, file=sys.stderr)

    def _finish(self, traced: profile) -> None:
        steps = min(_STEPS, self._steps - _WAIT - _WARMUP)
        if steps < 1:  # the run ends before the first of them does
            return
        self.done = True
        traced.export_chrome_trace(str(self.path))
        on_device = self.device.type == "cuda"
        events = traced.events()
        assert events is not None
        ranges = [event.time_range for event in events if event.name == _STEP]
        times: Counter[str] = Counter()  # microseconds over all traced steps
        for event in events:
            time = event.self_device_time_total if on_device else event.self_cpu_time_total
            is_ours = event.name == _STEP or event.name.startswith("ProfilerStep")
            if not is_ours and any(r.start <= event.time_range.start <= r.end for r in ranges):
                times[event.name] += time
        total = max(1e-9, sum(times.values()))
        each = total / steps / 1e3
        text = f"profile: {each:,.1f} ms a step, over {steps} step(s); the whole in {self.path}"
        print(text, file=sys.stderr)
        for name in sorted(times, key=times.__getitem__, reverse=True)[:_ROWS]:
            share = times[name] / total
            row = f"  {share:6.1%}  {times[name] / steps / 1e3:9.2f} ms  {name[:70]}"
            print(row, file=sys.stderr, flush=True)
