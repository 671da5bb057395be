"""Classification figures from a confusion matrix, each as its field defines it."""

from __future__ import annotations

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts, (C, C): row = true class, column = predicted class."""
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
