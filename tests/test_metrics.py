"""Classification figures against scikit-learn, and where the formulas divide by nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.metrics import (
    best_threshold,
    classification_figures,
    confusion_matrix,
    roc_auc,
)


def figures(labels: list[int], predictions: list[int], num_labels: int) -> dict[str, float]:
    return classification_figures(
        confusion_matrix(np.array(labels), np.array(predictions), num_labels)
    )


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """True and predicted classes, among them classes that never occur."""
    num_labels = draw(st.integers(2, 5))
    pair = st.tuples(st.integers(0, num_labels - 1), st.integers(0, num_labels - 1))
    labels, predictions = zip(*draw(st.lists(pair, min_size=1, max_size=40)), strict=True)
    return list(labels), list(predictions), num_labels


@settings(deadline=None, max_examples=150, derandomize=True)
@given(judged())
def test_figures_equal_scikit_learn(case: tuple[list[int], list[int], int]) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    labels, predictions, num_labels = case
    ours = figures(labels, predictions, num_labels)
    f1 = reference.f1_score(
        labels, predictions, labels=range(num_labels), average="macro", zero_division=0
    )
    expected = {"accuracy": reference.accuracy_score(labels, predictions), "f1": f1}
    if len(set(labels) | set(predictions)) > 1:  # scikit-learn warns of a single class
        expected["matthews"] = reference.matthews_corrcoef(labels, predictions)
    else:
        expected["matthews"] = 0.0
    assert ours == pytest.approx(expected, abs=1e-9)


def test_confusion_matrix_has_true_classes_as_rows() -> None:
    matrix = confusion_matrix(np.array([0, 0, 2, 1]), np.array([0, 2, 2, 0]), 3)
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]


def test_matrices_of_parts_add_up_to_the_whole() -> None:
    labels, predictions = np.random.default_rng(0).integers(0, 4, (2, 50))
    parts = sum(
        confusion_matrix(labels[part], predictions[part], 4)
        for part in (slice(0, 20), slice(20, 50))
    )
    assert np.array_equal(parts, confusion_matrix(labels, predictions, 4))


def test_all_right_is_one_everywhere() -> None:
    assert figures([0, 1, 2, 1], [0, 1, 2, 1], 3) == pytest.approx(
        {"accuracy": 1.0, "f1": 1.0, "matthews": 1.0}
    )


def test_all_wrong_of_two_classes_is_minus_one() -> None:
    assert figures([0, 1, 0, 1], [1, 0, 1, 0], 2) == pytest.approx(
        {"accuracy": 0.0, "f1": 0.0, "matthews": -1.0}
    )


def test_always_the_same_answer_has_no_correlation() -> None:
    got = figures([0, 0, 0, 1], [0, 0, 0, 0], 2)
    assert got == pytest.approx({"accuracy": 0.75, "f1": 3 / 7, "matthews": 0.0})


def test_a_class_that_never_occurs_counts_as_zero_in_f1() -> None:
    got = figures([0, 1], [0, 1], 3)
    assert got == pytest.approx({"accuracy": 1.0, "f1": 2 / 3, "matthews": 1.0})


def test_one_example_is_enough() -> None:
    assert figures([1], [1], 2) == pytest.approx({"accuracy": 1.0, "f1": 0.5, "matthews": 0.0})


def test_figures_are_plain_floats() -> None:
    assert all(type(value) is float for value in figures([0, 1], [1, 1], 2).values())


def test_counts_beyond_32_bits_do_not_overflow() -> None:
    matrix = np.array([[3_000_000_000, 1_000_000_000], [1_000_000_000, 3_000_000_000]])
    assert classification_figures(matrix) == pytest.approx(
        {"accuracy": 0.75, "f1": 0.75, "matthews": 0.5}
    )


@pytest.mark.parametrize("kind", [list, np.uint8])
def test_a_matrix_is_the_same_of_lists_and_of_small_numbers(kind: Any) -> None:
    labels, predictions = [0, 15, 19, 15], [1, 3, 19, 15]
    make = list if kind is list else lambda part: np.array(part, kind)
    matrix = confusion_matrix(make(labels), make(predictions), 20)
    cells = zip(*matrix.nonzero(), strict=True)
    assert sorted(cells) == sorted(zip(labels, predictions, strict=True))


@pytest.mark.parametrize(("label", "prediction"), [(0, 3), (-1, 1), (3, 0), (1, -1)])
def test_what_is_no_class_is_refused(label: int, prediction: int) -> None:
    with pytest.raises(ValueError, match=r"is (3|-1); expected 0 to 2"):
        confusion_matrix(np.array([label]), np.array([prediction]), 3)


# --- thresholds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_area_under_the_curve_equals_scikit_learn(seed: int) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels = np.array([True, False, *(rng.random(30) < 0.3)])
    scores = rng.integers(0, 2 + seed, len(labels)) / 20  # many of them equal
    assert roc_auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores))


def test_area_under_the_curve_by_hand() -> None:
    labels = np.array([True, False, True, False])
    assert roc_auc(labels, np.array([0.9, 0.1, 0.4, 0.6])) == 0.75  # three of four pairs
    assert roc_auc(labels, np.full(4, 0.3)) == 0.5
    assert roc_auc(np.array([True, True]), np.array([0.1, 0.2])) == 0.5


def test_the_best_threshold_is_found_between_shares() -> None:
    shares = np.array([0.1, 0.2, 0.3, 0.8], np.float32)
    labels = np.array([False, True, True, True])
    right = {t: ((shares > t) == labels).mean() for t in (0.15, 0.25, 0.5)}
    found = best_threshold(shares, lambda t: float(((shares > t) == labels).mean()))
    assert found == pytest.approx(0.15)
    assert right == {0.15: 1.0, 0.25: 0.75, 0.5: 0.5}


def test_of_equal_thresholds_the_one_nearest_to_half_is_taken() -> None:
    shares = np.array([0.05, 0.1, 0.7, 0.99])
    assert best_threshold(shares, lambda t: 1.0) == 0.5
    assert best_threshold(shares, lambda t: float(t > 0.5)) == pytest.approx((0.7 + 0.99) / 2)
    assert best_threshold(np.full(3, 0.2), lambda t: 1.0) == 0.5


def test_yes_to_all_and_yes_to_none_are_tried() -> None:
    shares = np.array([0.6, 0.7, 0.9])

    def yes_to(count: int) -> float:
        return best_threshold(shares, lambda t: -abs(int((shares > t).sum()) - count))

    assert [yes_to(count) for count in range(4)] == pytest.approx([0.95, 0.8, 0.65, 0.5])
    assert best_threshold(np.full(3, 0.2), lambda t: float(t < 0.2)) == pytest.approx(0.1)


def test_a_thousand_thresholds_are_tried_at_most() -> None:
    tried: list[float] = []
    shares = np.linspace(0, 1, 5001)

    def figure(threshold: float) -> float:
        tried.append(threshold)
        return -abs(threshold - 0.81)

    assert best_threshold(shares, figure) == pytest.approx(0.81, abs=0.001)
    assert len(tried) == 1001
    assert (min(tried), max(tried)) == (pytest.approx(0.0001), pytest.approx(0.9999))
