"""What is told of runs with several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples import quick_model, write_reviews

from minibert.finetuning import finetune
from minibert.repeats import _summary
from minibert.tasks.classification import ClassificationTask


def test_whole_numbers_are_those_of_all_seeds() -> None:
    same = {"num_eval": 50, "scored": "test", "seconds": 2.0, "steps": 5}
    found = _summary({0: {"num_cut": 0, **same}, 1: {"num_cut": 9, **same, "steps": 7}})
    assert found["num_cut"] == 4.5
    assert found["num_cut_sd"] == pytest.approx(9 / 2**0.5)
    assert found["num_eval"] == 50 and found["scored"] == "test"
    assert found["seconds"] == 4.0
    assert not {"num_eval_sd", "steps", "seconds_sd"} & found.keys()
    assert [one["num_cut"] for one in found["seeds"]] == [0, 9]


def test_a_threshold_of_one_model_has_no_mean() -> None:
    runs = {seed: {"f1": 50.0, "null_threshold": -3.0 * seed, "seconds": 1.0} for seed in (0, 1)}
    found = _summary(runs)
    assert not {"null_threshold", "null_threshold_sd"} & found.keys()
    assert [one["null_threshold"] for one in found["seeds"]] == [0.0, -3.0]


def test_what_a_seed_lacks_has_no_mean() -> None:
    """As where scikit-learn was there for the first seed, and not when the second went on."""
    known = {"dev_accuracy": 0.5, "seconds": 1.0}
    more = known | {"tfidf_f1": 0.7}
    for runs in ({0: more, 1: known}, {0: known, 1: more}):
        found = _summary(runs)
        assert "tfidf_f1" not in found
        assert found["dev_accuracy"] == 0.5
        assert found["seeds"] == [{"seed": seed, **run} for seed, run in runs.items()]


def test_the_baseline_is_computed_once_for_all_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def baseline(self: Any, train: list[Any], *parts: list[Any]) -> dict[str, float]:
        asked.append(len(train))
        return {"tfidf_accuracy": 0.5}

    monkeypatch.setattr(ClassificationTask, "baseline", baseline)
    run = finetune(
        **{"task": "imdb", "data": str(write_reviews(tmp_path / "reviews", count=4)), "seeds": 2},
        **{"model": quick_model(tmp_path), "output": str(tmp_path / "run"), "max_steps": 1},
        **{"max_seq_length": 32, "device": "cpu", "precision": "fp32"},
    )
    assert len(asked) == 1
    noticed = ["8 reviews to train on, 8 to test on"]
    assert [one["data_notes"] for one in run.figures["seeds"]] == [noticed, noticed]
    assert run.figures["data_notes"] == noticed
    assert [own["tfidf_accuracy"] for own in run.figures["seeds"]] == [0.5, 0.5]
