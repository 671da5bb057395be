"""Processes that work for another one, and end with it.

`Workers` hands out tasks as an executor of `concurrent.futures` does. Theirs share one pipe for
all answers: a worker that is killed while it writes, for want of memory, leaves half an answer
there, and whoever reads waits for the rest for ever. Here each has a pipe of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any


class Workers:
    """Processes that answer tasks, each as it becomes free."""

    def __init__(self, count: int, start: Callable[..., Callable[..., Any]], *args: Any) -> None:
        """Starts the processes with the first task.

        Args:
            start: called in each process with `args`; returns what answers tasks there.
        """
        self._count, self._start, self._args = count, start, args
        self._processes: list[SpawnProcess] = []
        self._connections: list[Connection] = []
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        # A thread for each process that can be busy: it waits for the answer.
        self._threads = ThreadPoolExecutor(count)

    def submit(self, *task: Any) -> Future[Any]:
        """Hands out a task.

        Returns:
            Its answer to come: an exception of the worker's own is raised, with where it happened
            there as its cause; BrokenExecutor where a process ended before it answered.
        """
        if not self._processes:
            self._start_all()
        return self._threads.submit(self._answered, task)

    def _start_all(self) -> None:
        context = multiprocessing.get_context("spawn")
        with _starting_workers():
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, self._start, self._args), daemon=True
                )
                process.start()
                theirs.close()  # so that ours ends with the process
                self._processes.append(process)
                self._connections.append(ours)
                self._idle.put(ours)

    def _answered(self, task: tuple[Any, ...]) -> Any:
        connection = self._idle.get()
        try:
            connection.send(task)
            is_answer, content = connection.recv()
        except (EOFError, OSError) as error:
            raise BrokenExecutor("a worker process ended") from error
        finally:
            self._idle.put(connection)
        if is_answer:
            return content
        raised, where = content
        raise raised from RuntimeError(f"in a worker process:\n{where}")

    def close(self) -> None:
        """Ends the processes, whatever they are at; tasks without an answer are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()


def _work(connection: Connection, start: Callable[..., Callable[..., Any]], args: Any) -> None:
    """What a worker process does: answers what it is sent until nobody is there to send."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answer = start(*args)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            task = connection.recv()
            try:
                reply: tuple[bool, Any] = True, answer(*task)
            except Exception as error:
                reply = False, (error, traceback.format_exc())
            connection.send(reply)


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    """To be open while processes are started.

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


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone: a killed parent cannot tell its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
