"""What processes that others started keep to: they end with those that they work for."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """While open, a signal waits, and so in processes started meanwhile.

    Ctrl-C reaches a whole process group, and is ours to handle.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_with_parent() -> None:
    """Has this process stop, as by SIGTERM, once its parent is gone: a run then saves its state."""
    threading.Thread(target=_terminated_with, args=(os.getppid(),), daemon=True).start()


def _terminated_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def begin_as_worker() -> None:
    """To be called first in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone: a killed parent cannot tell its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
