"""What processes that others started keep to: they end with those that they work for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """To be open wherever processes may be started.

    Ctrl-C waits, and in what is started meanwhile always: it reaches a whole process group, and is
    ours to handle. And a process that is spawned would first run the program that spawns it, which
    in a script without a `__main__` guard begins the run anew; ours need nothing of it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    program = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
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
