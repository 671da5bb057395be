"""What every task with classes shares: their weights in the loss, and tables of figures by class.

In: names of the classes, how many examples each has, and what was scored. Out: weights, (C,), and
text for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minibert.errors import InputError, did_you_mean
from minibert.tasks.labelled import shown


def class_weights(given: str, labels: Sequence[str], counts: Mapping[str, int]) -> Tensor | None:
    """The (C,) float32 weights that `--class-weights` asks for; None for equal ones.

    "balanced" is examples / (classes x examples of the class), so the mean over train is 1.

    Args:
        counts: training examples of each class.

    Raises:
        InputError: not a form that is known, an unknown class, a weight below 0, or none above it.
    """
    if given == "none":
        return None
    if given == "balanced":
        total = sum(counts.values())
        found = [total / (len(labels) * counts[n]) if counts.get(n) else 0.0 for n in labels]
        return torch.tensor(found)
    weights = dict.fromkeys(labels, 1.0)
    for name, weight in weights_given(given).items():
        if name not in weights:
            raise InputError(f"--class-weights: no class {name!r}{did_you_mean(name, labels)}")
        weights[name] = weight
    if not all(0 <= w < float("inf") for w in weights.values()):
        raise InputError(f"--class-weights {given}: weights must be 0 or more")
    if not any(weights.values()):
        raise InputError(f"--class-weights {given}: every weight is 0, so nothing would be learnt")
    return torch.tensor(list(weights.values()))


def positive_weights(labels: Sequence[str], counts: Mapping[str, int], total: int) -> Tensor:
    """The (C,) float32 weights of "yes" that make yes and no of a class weigh alike over train.

    Args:
        counts: training examples of each class. total: training examples.
    """
    return torch.tensor(
        [(total - c) / c if 0 < (c := counts.get(n, 0)) < total else 1.0 for n in labels]
    )


def weights_given(given: str) -> dict[str, float]:
    """The weights that `--class-weights` names, by class.

    Raises:
        InputError: not a form that is known.
    """
    try:
        if given.lstrip().startswith("{"):
            return {str(name): float(weight) for name, weight in json.loads(given).items()}
        parted = (part.rpartition("=") for part in given.split(","))
        return {name.strip(): float(weight) for name, _, weight in parted}
    except (ValueError, TypeError):
        raise InputError(
            f"--class-weights {given!r}: expected none, balanced, name=weight,name=weight or a "
            f"JSON object"
        ) from None


def per_class_text(per_class: dict[str, dict[str, float]], head: str = "class") -> str:
    """Precision, recall, F1 and support of each class as a small table."""
    width = max(9, *(len(shown(label)) + 2 for label in per_class))
    keys = ("precision", "recall", "f1", "support")
    lines = [f"{head:<{width}}" + "".join(f"{key:>11}" for key in keys)]
    for label, figures in per_class.items():
        cells = "".join(f"{figures[key]:>11.4f}" for key in keys[:3])
        lines.append(f"{shown(label):<{width}}{cells}{figures['support']:>11,}")
    return "\n".join(lines)


def confusion_text(labels: Sequence[str], matrix: list[list[int]]) -> str:
    """The confusion matrix as a small table: rows true, columns predicted."""
    names = [shown(label) for label in labels]
    width = max(9, *(len(name) + 2 for name in names))
    head = f"{'true':<{width}}" + "".join(f"{name:>{width}}" for name in names)
    rows = [
        f"{name:<{width}}" + "".join(f"{count:>{width},}" for count in row)
        for name, row in zip(names, matrix, strict=True)
    ]
    return "\n".join([f"confusion (columns: predicted)\n{head}", *rows])
