"""The rules of SQuAD's official scripts, evaluate-v1.1.py and evaluate-v2.0.py, told once more.

It shares no line with `minibert/tasks/squad_scores.py`: words are found letter by letter, overlaps
are crossed off a list, and a threshold is sought by trying every one. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
Golds = Sequence[Sequence[str]]


def words_of(text: str) -> list[str]:
    """Lower case; ASCII punctuation goes, then "a", "an" and "the" where they stand alone."""
    letters = [c for c in text.lower() if c not in _MARKS]
    runs = ("".join(run) for _, run in groupby(letters, key=str.isalnum))
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def _overlap(gold: list[str], found: list[str], empty_may_match: bool) -> float:
    """F1 of two bags of words; version 2.0 lets two empty ones agree."""
    if empty_may_match and not (gold and found):
        return float(gold == found)
    left, shared = list(gold), 0
    for word in found:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / (len(gold) + len(found)) if shared else 0.0


def single_scores(golds: Sequence[str], predicted: str, version_2: bool) -> tuple[float, float]:
    """Exact match and F1 of one answer, 0 to 1: each the best over the right answers.

    Version 2.0 passes over those of which no word is left; where none remains, silence is right.
    """
    right = [words_of(text) for text in golds]
    if version_2:
        right = [words for words in right if words] or [[]]
    found = words_of(predicted)
    exact = max(float(words == found) for words in right)
    return exact, max(_overlap(words, found, version_2) for words in right)


def figures(golds: Golds, predicted: Sequence[str], version_2: bool) -> dict[str, float]:
    """What the scripts print, 0 to 100, under minibert's names.

    In version 2.0 a question has an answer if its file lists any, whatever words are in it.
    """
    kinds = {"": [True] * len(golds)}
    if version_2:
        kinds["has_answer_"] = [len(texts) > 0 for texts in golds]
        kinds["no_answer_"] = [len(texts) == 0 for texts in golds]
    scores = [single_scores(g, p, version_2) for g, p in zip(golds, predicted, strict=True)]
    out = {}
    for kind, chosen in kinds.items():
        own = [score for score, is_own in zip(scores, chosen, strict=True) if is_own]
        for place, name in enumerate(("exact_match", "f1")):
            if own:
                out[kind + name] = sum(score[place] for score in own) * 100 / len(own)
    return out


def best_stop(
    golds: Golds, predicted: Sequence[str], nulls: Sequence[float], name: str
) -> tuple[float, float | None]:
    """The best figure (0 to 100) that answering the surest questions alone gives, and where.

    For every count of questions, the surest first, what answering those and no others scores, where
    a threshold can tell them from the others (the script stops between equal null scores, too): a
    question with an answer its exact match or F1, one without 1 if it is silent, whether it is
    passed over or its text is empty. Of equal figures, that of the fewest answers.

    Returns:
        The figure, and the null score of the last question answered; None if none is.
    """
    place = ("exact_match", "f1").index(name)
    order = sorted(range(len(golds)), key=lambda i: nulls[i])

    def total(answered: set[int]) -> float:
        worth = 0.0
        for i, texts in enumerate(golds):
            if not texts:
                worth += i not in answered or predicted[i] == ""
            elif i in answered:
                worth += single_scores(texts, predicted[i], True)[place]
        return worth

    edges = [n for n in range(1, len(order)) if nulls[order[n - 1]] < nulls[order[n]]]
    totals = {n: total(set(order[:n])) for n in [0, *edges, len(order)]}
    # Sums in another order differ in their last digit.
    count = next(n for n, found in totals.items() if found > max(totals.values()) - 1e-9)
    return 100 * totals[count] / len(golds), nulls[order[count - 1]] if count else None
