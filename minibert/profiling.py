"""Where the time of a step goes: a trace of a few steps for a viewer, and a table for the eye."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_WAIT, _WARMUP, _STEPS = 2, 1, 5  # steps let pass, taken as a rehearsal, and traced
_ROWS = 12  # of the table


class StepProfiler:
    """Traces the fourth to eighth step of a run.

    The trace is one for chrome://tracing or ui.perfetto.dev.
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

    def step(self) -> None:
        """A step has been taken."""
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
        self.done = True
        traced.export_chrome_trace(str(self.path))
        steps = min(_STEPS, self._steps - _WAIT - _WARMUP)
        on_device = self.device.type == "cuda"
        times = {
            row.key: (row.self_device_time_total if on_device else row.self_cpu_time_total)
            for row in traced.key_averages()
            if not row.key.startswith("ProfilerStep")
        }  # microseconds over all traced steps
        total = max(1e-9, sum(times.values()))
        each = total / steps / 1e3
        print(f"profile: {each:,.1f} ms a step, over {steps} step(s); the whole in {self.path}")
        for name in sorted(times, key=times.__getitem__, reverse=True)[:_ROWS]:
            share = times[name] / total
            print(f"  {share:6.1%}  {times[name] / steps / 1e3:9.2f} ms  {name[:70]}", flush=True)
