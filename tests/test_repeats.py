"""What is told of runs with several seeds."""

from __future__ import annotations

import pytest

from minibert.repeats import _summary


def test_whole_numbers_are_those_of_all_seeds() -> None:
    same = {"num_eval": 50, "scored": "test", "seconds": 2.0, "steps": 5}
    found = _summary({0: {"num_cut": 0, **same}, 1: {"num_cut": 9, **same, "steps": 7}})
    assert found["num_cut"] == 4.5
    assert found["num_cut_sd"] == pytest.approx(9 / 2**0.5)
    assert found["num_eval"] == 50 and found["scored"] == "test"
    assert found["seconds"] == 4.0
    assert not {"num_eval_sd", "steps", "seconds_sd"} & found.keys()
    assert [one["num_cut"] for one in found["seeds"]] == [0, 9]
