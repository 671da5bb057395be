"""How far a long pass over bytes is, and how long it will still take."""

from __future__ import annotations

import sys
import time
from typing import Self

_LINE_SECONDS = 60.0  # between lines where there is no terminal


class Progress:
    """Progress with time left: a bar on a terminal, elsewhere a line a minute.

    Example:
        with Progress("encoding", 10**9) as progress:
            progress.update(10**6)
    """

    def __init__(self, what: str, total: int) -> None:
        """Starts the clock.

        Args:
            total: bytes to go through; an estimate does.
        """
        self.what, self.total, self.done = what, total, 0
        self._skipped = 0
        self._start = self._last_line = time.monotonic()
        from tqdm import tqdm  # here, since encoding's worker processes show nothing

        self._bar = tqdm(
            total=total, unit="B", unit_scale=True, desc=what, disable=None, leave=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def skip(self, count: int) -> None:
        """Bytes done before; they say nothing of the speed."""
        self.done += count
        self._skipped += count
        if not self._bar.disable:
            self._bar.initial += count
            self._bar.update(count)

    def update(self, count: int) -> None:
        """Bytes done now."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            print(self.line(now - self._start), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """Share, speed and time left after so many seconds."""
        rate = max(1.0, self.done - self._skipped) / max(1e-9, seconds)
        left = clock(max(0, self.total - self.done) / rate)
        share = min(1.0, self.done / max(1, self.total))
        size = f"{self.total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s"
        return f"{self.what}: {share:.0%} of {size}, {left} left"


def clock(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: float, noun: str) -> str:
    """A number of things for people: 1 step, 1,800 steps, 0.5 epochs."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun}{'s' * (count != 1)}"
