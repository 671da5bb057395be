"""Progress tells how much is done, how fast, and how long the rest will take."""

from __future__ import annotations

import pytest

from minibert import progress
from minibert.progress import Progress, clock, counted


def test_what_was_done_before_counts_for_the_share_and_not_for_the_speed() -> None:
    with Progress("encoding", 100_000_000) as found:
        found.skip(40_000_000)
        found.update(20_000_000)
        assert found.line(10.0) == "encoding: 60% of 100 MB, 2.0 MB/s, 20 s left"


def test_an_estimate_that_was_too_low_never_says_more_than_all() -> None:
    with Progress("encoding", 1_000_000) as found:
        found.update(2_000_000)
        assert found.line(1.0) == "encoding: 100% of 1 MB, 2.0 MB/s, 0 s left"


def test_without_a_terminal_a_line_appears_once_the_interval_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("encoding", 6_000_000) as found:
        for now[0] in (30.0, 61.0, 90.0, 122.0):
            found.update(1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[1] for line in lines] == ["33%", "67%"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (5400.0, "1 h 30 min"), (90000, "25 h 00 min")],
)
def test_times_are_told_as_people_do(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 steps"), (1, "1 step"), (1.0, "1 step"), (0.5, "0.5 steps"), (1800, "1,800 steps")],
)
def test_one_of_a_thing_is_told_in_the_singular(count: float, text: str) -> None:
    assert counted(count, "step") == text
