"""Parting a task's examples into train, dev and test."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from minibert.cleaning import folded
from minibert.errors import InputError
from minibert.tasks.base import Splits, Task

E = TypeVar("E")
_SPLIT_SEED = 2019  # the dev split does not depend on the seed: seeds compare on the same examples


class Parts(NamedTuple):
    """What is trained on, what chooses the weights, what is scored once, and which that is."""

    train: list[Any]
    dev: list[Any]
    test: list[Any]
    scored: str  # "test", or "dev" where the data has no labelled test split


def parts_of(
    task: Task[E, Any], splits: Splits[E], dev_fraction: float, limit: int | None
) -> Parts:
    """The examples of a run; a dev split is cut where there is none.

    Raises:
        InputError: a class too small to be cut, or a part that cannot be scored.
    """
    train, dev = splits.train, splits.dev
    if dev is None:
        train, dev = cut_dev(task, train, dev_fraction)
    if limit is not None:
        train = limit_examples(task, train, limit)
    task.check_parts(dev, splits.test)
    if splits.test is None:
        return Parts(train, dev, dev, "dev")
    return Parts(train, dev, splits.test, "test")


def without_texts(task: Task[E, Any], splits: Splits[E], texts: Collection[str]) -> Splits[E]:
    """The splits without the examples of train and dev that have one of these texts.

    Of a dev split that would be empty there is none: it is to be cut from train.

    Args:
        texts: as `cleaning.folded` has them, so that case and spaces do not count.

    Raises:
        InputError: nothing is left to learn from.
    """

    def kept(examples: Sequence[E]) -> list[E]:
        return [e for e in examples if not any(folded(text) in texts for text in task.texts(e))]

    train, dev = kept(splits.train), kept(splits.dev or ()) or None
    if not train:
        raise InputError(f"{splits.source}: every example has a text that is to be left out")
    count = len(splits.train) - len(train) + len(splits.dev or ()) - len(dev or ())
    said = f"{count:,} left out of train and dev, whose texts another task is scored on"
    return dataclasses.replace(splits, train=train, dev=dev, notes=(*splits.notes, said))


def cut_dev(task: Task[E, Any], examples: Sequence[E], fraction: float) -> tuple[list[E], list[E]]:
    """Cuts a dev split off, class by class; copies of an example stay on one side.

    More copies of one example than a class gives to dev stay in train, while there are others.

    Args:
        fraction: share of each class that goes to dev, at least one example.

    Raises:
        InputError: a class with fewer than two different examples.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(task.same(example), []).append(number)
    classes: dict[Any, list[str]] = {}
    for key, group in groups.items():
        classes.setdefault(task.stratum(examples[group[0]]), []).append(key)
    chosen: set[int] = set()
    for label in sorted(classes):
        places = {k: min(task.place(examples[i]) for i in groups[k]) for k in classes[label]}
        keys = sorted(places, key=places.__getitem__)
        if len(keys) < 2:
            whose = "the data has" if label in (0, "") else f"class {label} has"
            raise InputError(
                f"{whose} one different text, too few to cut a dev split off; name --dev-data"
            )
        wanted = max(1, round(fraction * sum(len(groups[key]) for key in keys)))
        order = [keys[i] for i in rng.permutation(len(keys))]
        fitting = [key for key in order if len(groups[key]) <= wanted]
        if not fitting:
            fitting = [min(order, key=lambda key: len(groups[key]))]
        elif len(fitting) == len(order):
            fitting.pop()  # one text of each class stays in train
        taken = 0
        for key in fitting:
            if taken >= wanted:
                break
            chosen.update(groups[key])
            taken += len(groups[key])
    train = [e for i, e in enumerate(examples) if i not in chosen]
    return train, [e for i, e in enumerate(examples) if i in chosen]


def limit_examples(task: Task[E, Any], examples: Sequence[E], count: int) -> list[E]:
    """Draws `count` examples, as many of each class as of any other that has as many.

    What a small class leaves over goes to the larger ones.

    Raises:
        InputError: fewer than one example for each class.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    classes: dict[Any, list[E]] = {}
    for example in examples:
        classes.setdefault(task.stratum(example), []).append(example)
    if count < len(classes):
        raise InputError(
            f"--limit {count} is below the {len(classes)} classes of the data; it must be at least "
            f"{len(classes)}, one example of each"
        )
    shares = _shares({label: len(own) for label, own in classes.items()}, count)
    chosen: list[E] = []
    for label in sorted(classes):
        own = classes[label]
        order = rng.permutation(len(own))[: shares[label]]
        chosen += [own[i] for i in sorted(order)]
    return chosen


def _shares(sizes: dict[Any, int], count: int) -> dict[Any, int]:
    """`count` parted among classes of these sizes, evenly; the first of them get the odd ones."""
    larger = sorted(sizes, key=lambda label: sizes[label])
    while larger and sizes[larger[0]] <= count // len(larger):  # taken whole
        count -= sizes[larger.pop(0)]
    level, odd = divmod(count, max(1, len(larger)))
    return sizes | {label: level + (i < odd) for i, label in enumerate(sorted(larger))}
