"""Processes that answer tasks: also those that end before they have."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from multiprocessing.connection import Connection
from typing import Any

import pytest

from minibert.workers import Workers


def adder(given: int) -> Callable[[int], tuple[int, int]]:
    return lambda number: (os.getpid(), given + number)


def failing() -> Callable[[str], None]:
    def answer(said: str) -> None:
        raise KeyError(said)

    return answer


def ending(before_it_answers: bool) -> Callable[[bool], bytes]:
    """Of what ends where it is asked to: before its answer, or with half of it written."""

    def send_half(self: Connection, content: bytes, *_: Any) -> None:
        os.write(self.fileno(), bytes(content[: len(content) // 2]))
        os._exit(3)

    def answer(ends: bool) -> bytes:
        if ends and before_it_answers:
            os._exit(3)
        if ends:
            Connection._send = send_half  # type: ignore[attr-defined]
        return bytes(1 << 16)

    return answer


def sleeping() -> Callable[[float], None]:
    return time.sleep


@pytest.fixture
def opened() -> Iterator[Callable[..., Workers]]:
    made: list[Workers] = []

    def open_workers(*args: Any) -> Workers:
        made.append(Workers(*args))
        return made[-1]

    yield open_workers
    for workers in made:
        workers.close()


def test_each_task_has_its_answer_from_one_of_the_processes(
    opened: Callable[..., Workers],
) -> None:
    workers = opened(2, adder, 10)
    answers = [answer.result(60) for answer in [workers.submit(n) for n in range(20)]]
    assert [number for _, number in answers] == list(range(10, 30))
    pids = {pid for pid, _ in answers}
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_what_a_worker_raises_is_raised_here_and_the_next_task_answered(
    opened: Callable[..., Workers],
) -> None:
    workers = opened(1, failing)
    for said in ("one", "two"):
        with pytest.raises(KeyError, match=said) as caught:
            workers.submit(said).result(60)
        assert "in answer" in str(caught.value.__cause__)


@pytest.mark.parametrize("before_it_answers", [True, False], ids=["before", "half written"])
def test_a_process_that_ends_ends_its_tasks(
    before_it_answers: bool, opened: Callable[..., Workers]
) -> None:
    workers = opened(2, ending, before_it_answers)
    assert len(workers.submit(False).result(60)) == 1 << 16
    dying = [workers.submit(True) for _ in range(2)]
    later = [workers.submit(False) for _ in range(2)]
    for answer in (*dying, *later):
        with pytest.raises(BrokenExecutor):
            answer.result(60)


def test_closing_waits_for_no_answer(opened: Callable[..., Workers]) -> None:
    workers = opened(1, sleeping)
    answers = [workers.submit(600.0) for _ in range(3)]
    begun = time.monotonic()
    workers.close()
    assert time.monotonic() - begun < 60
    assert all(answer.done() for answer in answers)


def test_workers_end_with_their_parent() -> None:
    code = "import sys; from minibert.workers import _end_with; _end_with(int(sys.argv[1]))"
    child = subprocess.run(
        [sys.executable, "-c", code, str(os.getpid() + 1)],  # not its parent
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.returncode, child.stderr) == (1, "")
