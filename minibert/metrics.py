"""Classification figures from counts, and correlations, each as its field defines it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MOST_THRESHOLDS = 1000


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts, (C, C): row = true class, column = predicted class.

    Raises:
        ValueError: a label or a prediction is no class; it would count for another one.
    """
    # Lists would be joined, and small integers would overflow.
    labels, predictions = (
        np.asarray(part).astype(np.int64, casting="same_kind") for part in (labels, predictions)
    )
    for name, part in (("label", labels), ("prediction", predictions)):
        wrong = part[(part < 0) | (part >= num_labels)]
        if len(wrong):
            raise ValueError(f"a {name} is {wrong[0]}; expected 0 to {num_labels - 1}")
    cells = labels * num_labels + predictions
    return np.bincount(cells, minlength=num_labels**2).reshape(num_labels, num_labels)


def classification_figures(matrix: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews correlation of a confusion matrix.

    F1 of a class is 2 TP / (2 TP + FP + FN), 0 where the class neither occurs nor is predicted;
    macro F1 is the plain mean over classes. Matthews' coefficient is the multi-class form of
    Gorodkin 2004, 0 where it is undefined.

    Args:
        matrix: (C, C) counts, rows true.

    Returns:
        accuracy and f1 in 0..1, matthews in -1..1.
    """
    counts = matrix.astype(np.float64)
    hits, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    total = counts.sum()
    both = true + predicted
    f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    covariance = hits.sum() * total - true @ predicted
    spread = np.sqrt(total**2 - predicted @ predicted) * np.sqrt(total**2 - true @ true)
    return {
        "accuracy": float(hits.sum() / total),
        "f1": float(f1.mean()),
        "matthews": float(covariance / spread) if spread > 0 else 0.0,
    }


def class_figures(
    hits: np.ndarray, predicted: np.ndarray, true: np.ndarray
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class, 0 where the formula divides by nothing.

    Args:
        hits, predicted, true: (C,) counts: of both, of answers, of labels.

    Returns:
        precision, recall, f1, (C,) each, and support, which is `true`.
    """

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)

    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, true),
        "f1": ratio(2 * hits, predicted + true),
        "support": true,
    }


def matrix_counts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, answers and labels of each class of a (C, C) confusion matrix, rows true."""
    return np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)


def multi_label_counts(
    labels: np.ndarray, predictions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, answers and labels of each class of (examples, C) truth values."""
    return (labels & predictions).sum(0), predictions.sum(0), labels.sum(0)


def multi_label_figures(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Figures of examples with any number of classes.

    Args:
        labels, predictions: (examples, C) truth values.

    Returns:
        accuracy: share of examples whose classes are all right. f1: mean over classes. f1_micro:
        of all answers together. All in 0..1.
    """
    hits, predicted, true = multi_label_counts(labels, predictions)
    both = predicted.sum() + true.sum()
    return {
        "accuracy": float((labels == predictions).all(axis=1).mean()),
        "f1": float(class_figures(hits, predicted, true)["f1"].mean()),
        "f1_micro": float(2 * hits.sum() / both) if both else 0.0,
    }


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a yes has a higher score than a no, a tie half (0..1).

    It asks for no threshold, so it compares models that say yes more or less often. 0.5 where the
    labels are all alike, of which no pair can be made (Hanley & McNeil 1982).

    Args:
        labels: (examples,) truth values. scores: (examples,), high for yes.
    """
    yes = int(labels.sum())
    pairs = yes * (len(labels) - yes)
    if not pairs:
        return 0.5
    return float((_ranks(scores)[labels].sum() - yes * (yes + 1) / 2) / pairs)


def best_threshold(shares: np.ndarray, figure: Callable[[float], float]) -> float:
    """The threshold, 0..1, whose figure is highest; of equals the one nearest to 0.5.

    Tried are 0.5 and the middle between each two neighbours among 0, the shares and 1, so that yes
    to all and yes to none are among the answers; of more than a thousand of these a thousand, as
    many shares apart.

    Args:
        shares: probabilities of yes, of any shape.
        figure: what answers above a threshold are worth, such as their F1.
    """
    values = np.unique(np.append(shares.astype(np.float64), [0, 1]))
    middles = (values[1:] + values[:-1]) / 2
    if len(middles) > _MOST_THRESHOLDS:
        middles = middles[np.linspace(0, len(middles) - 1, _MOST_THRESHOLDS).round().astype(int)]
    tried = sorted([0.5, *middles.tolist()], key=lambda t: abs(t - 0.5))
    return max(tried, key=figure)  # of equals the first


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two (examples,) arrays, -1..1; 0 where one of them is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    one, other = (x - x.mean() for x in (first.astype(np.float64), second.astype(np.float64)))
    found = (one / np.linalg.norm(one)) @ (other / np.linalg.norm(other))
    return float(np.clip(found, -1, 1))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: np.ndarray) -> np.ndarray:
    """(examples,) ranks from 1, of equal values the mean of those that they fill."""
    _, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the last rank of each different value
    ranks: np.ndarray = (last - (counts - 1) / 2)[numbers]
    return ranks
