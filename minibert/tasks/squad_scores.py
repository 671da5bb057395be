"""Figures of answers to questions, by the rules of SQuAD's official evaluation scripts.

Rajpurkar et al. 2016, section 6.1 (version 1.1) and Rajpurkar et al. 2018 (version 2.0, where ""
is the answer "there is none"). Figures are in 0..100, as the field quotes them.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _exact_and_f1(gold: str, predicted: str, empty_may_match: bool) -> tuple[float, float]:
    """Exact match and F1 (0..1) of normalised texts; F1 is of their words as bags."""
    exact = float(gold == predicted)
    true, found = gold.split(), predicted.split()
    if not true or not found:
        return exact, exact if empty_may_match else 0.0
    shared = (Counter(true) & Counter(found)).total()
    if not shared:
        return exact, 0.0
    precision, recall = shared / len(found), shared / len(true)
    return exact, 2 * precision * recall / (precision + recall)


def answer_scores(
    golds: Sequence[str], predicted: str, version_2: bool = False
) -> tuple[float, float]:
    """Exact match and F1 of one answer, each in 0..1: the best over all that are accepted.

    Args:
        golds: the accepted answers; in version 2.0 those that normalise to nothing do not count,
            and without any the right answer is "".
        version_2: two empty texts agree in F1, too.
    """
    accepted = [normalise_answer(gold) for gold in golds]
    if version_2:
        accepted = [gold for gold in accepted if gold]
    text = normalise_answer(predicted)
    scores = [_exact_and_f1(gold, text, version_2) for gold in dict.fromkeys(accepted or [""])]
    exacts, f1s = zip(*scores, strict=True)
    return max(exacts), max(f1s)


def squad_figures(
    golds: Sequence[Sequence[str]], predicted: Sequence[str], version_2: bool = False
) -> dict[str, float]:
    """Exact match and F1 over all questions, 0..100; in version 2.0 also of each kind of question.

    Args:
        golds: accepted answers of each question; in version 1.1 at least one.
        predicted: one answer a question, "" for none.

    Returns:
        exact_match and f1; with version_2 also has_answer_exact_match, has_answer_f1,
        no_answer_exact_match and no_answer_f1, each where there are such questions.
    """
    scores = [
        answer_scores(texts, answer, version_2)
        for texts, answer in zip(golds, predicted, strict=True)
    ]
    figures = _means(scores)
    if version_2:
        answerable = [bool(texts) for texts in golds]
        for name, wanted in (("has_answer", True), ("no_answer", False)):
            own = [s for s, known in zip(scores, answerable, strict=True) if known is wanted]
            if own:
                figures |= {f"{name}_{key}": value for key, value in _means(own).items()}
    return figures


def _means(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    count = max(1, len(scores))
    exact, f1 = sum(s[0] for s in scores), sum(s[1] for s in scores)
    return {"exact_match": 100.0 * exact / count, "f1": 100.0 * f1 / count}


class Thresholds(NamedTuple):
    """The best figures that a threshold on the null score can give, 0..100, and that threshold."""

    best_exact_match: float
    best_exact_match_threshold: float
    best_f1: float
    best_f1_threshold: float


def best_thresholds(
    golds: Sequence[Sequence[str]], predicted: Sequence[str], null_scores: Sequence[float]
) -> Thresholds:
    """Where to stop answering (version 2.0): above the threshold, the answer is "".

    All questions begin as unanswered; they are answered one after the other, the surest first, and
    the best place to stop is kept. A gain that a question without answer turns to a loss is
    counted as in the official script: -1 where a text was given. Unlike there, questions of one
    null score are answered together: no threshold parts them.

    Args:
        predicted: the best text of each question, whatever its null score.
        null_scores: how much each question speaks for "no answer".
    """
    scores = [answer_scores(t, p, True) for t, p in zip(golds, predicted, strict=True)]
    order = sorted(range(len(golds)), key=lambda i: null_scores[i])
    unanswerable = sum(not texts for texts in golds)
    nothing = min(null_scores, default=0.0) - 1.0  # below it, no question is answered
    out: list[float] = []
    for kind in (0, 1):
        total = best = float(unanswerable)
        threshold = nothing
        for null_score, tied in itertools.groupby(order, key=lambda i: null_scores[i]):
            for i in tied:
                if golds[i]:
                    total += scores[i][kind]
                elif predicted[i]:
                    total -= 1
            if total > best:
                best, threshold = total, null_score
        out += [100.0 * best / max(1, len(golds)), float(threshold)]
    return Thresholds(*out)
