"""Classifiers of words without a network: TF-IDF + logistic regression, and NB-SVM.

In: texts with labels, and texts to answer. Out: a label for each of the latter. Both need
scikit-learn, the extra `tasks`.

Shapes: n texts, F features (n-grams that occur in train).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from minibert.errors import MissingExtraError

# Chinese has no blanks between words: a character is one, as it is a piece of the model's.
_CHINESE = r"\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W{_CHINESE}]"
_WORD = re.compile(rf"[{_CHINESE}]|{_LETTER}+(?:'{_LETTER}+)*|[^\w\s]")  # or a single mark
TFIDF_WORD = rf"[{_CHINESE}]|{_LETTER}{{2,}}"  # of other scripts what scikit-learn takes for one
_ROUNDS = 200  # of the SVM's solver; 12 s on IMDb
# Of the logistic regression: a weight for each word and class, and what its solver takes for one,
# measured as the peak of the process. 3 GB at most.
_MOST_WEIGHTS, _BYTES_A_WEIGHT = 10_000_000, 37 * 8
_MISSING = "needs scikit-learn: pip install 'minibert[tasks]'"


def check_installed(method: str) -> None:
    """Raises MissingExtraError where scikit-learn, which a method needs, is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingExtraError(f"{method} {_MISSING}") from None


def tfidf_scores(
    train: Sequence[str], labels: Sequence[str], *asked: Sequence[str]
) -> list[np.ndarray]:
    """Scores of TF-IDF + logistic regression, the line a model has to pass.

    Words and word pairs, sublinear counts, scikit-learn's default strength.

    Returns:
        For each of `asked` (n, C), in the order of the sorted labels; the highest is the answer.
        Of two classes the first has 0, so that the sigmoid of the second is its probability.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: no text to train on has a word, all have one label, or classes and words are so
            many that the memory is better left alone.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError(f"the TF-IDF baseline {_MISSING}") from None
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if len(train) >= 100 else 1,
        token_pattern=TFIDF_WORD,
    )
    counts = vectorizer.fit_transform(train)
    weights = counts.shape[1] * len(set(labels))
    if weights > _MOST_WEIGHTS:
        raise ValueError(
            f"{len(set(labels)):,} classes of {counts.shape[1]:,} words and word pairs would need "
            f"about {weights * _BYTES_A_WEIGHT / 1e9:.0f} GB"
        )
    model = LogisticRegression(max_iter=1000)
    model.fit(counts, list(labels))
    found = [model.decision_function(vectorizer.transform(texts)) for texts in asked]
    return [_columns(scores) if scores.ndim == 1 else scores for scores in found]


def nb_svm_scores(
    train: Sequence[str],
    labels: Sequence[str],
    *asked: Sequence[str],
    order: int = 3,
    share: float = 0.25,
) -> list[np.ndarray]:
    """Scores of the NB-SVM of Wang and Manning 2012, of single words up to runs of `order`.

    A linear SVM (squared hinge, strength 1) reads which n-grams a text has, each weighted by its
    `log_count_ratio`; its weights are drawn towards their mean size (`interpolated`). Of more than
    two labels each stands against all others.

    Args:
        share: of the SVM's own weights in the interpolation, the paper's beta.

    Returns:
        As of `tfidf_scores`, but that a sigmoid makes no probabilities of margins.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: no text to train on has a word, or all have one label.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError("all texts have one label; NB-SVM needs two")
    grams = Ngrams(train, order)
    known, unknown = grams.presence(train), [grams.presence(texts) for texts in asked]
    scores: list[list[np.ndarray]] = [[] for _ in asked]
    for name in names[1:] if len(names) == 2 else names:
        is_own = np.array([label == name for label in labels])
        weights, intercept = nb_svm_weights(known, is_own, share)
        for own, presence in zip(scores, unknown, strict=True):
            own.append(presence @ weights + intercept)
    return [_columns(own[0]) if len(names) == 2 else np.stack(own, axis=1) for own in scores]


def _columns(scores: np.ndarray) -> np.ndarray:
    """The scores of two classes of those of the second, (n,)."""
    return np.stack([np.zeros_like(scores), scores], axis=1)


def nb_svm_weights(presence: Any, is_own: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """What each feature says for a class, (F,), and what is added to their sum.

    The intercept, one more weight to the SVM, shrinks as the others do: with a quarter of the
    weights beside all of it IMDb's test accuracy was 89.6 %, so it is 91.9 %.

    Args:
        presence, is_own: as of `log_count_ratio`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC
    except ImportError:
        raise MissingExtraError(f"the NB-SVM baseline {_MISSING}") from None
    ratios = log_count_ratio(presence, is_own)
    svm = LinearSVC(C=1.0, dual=True, random_state=0, max_iter=_ROUNDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough: see _ROUNDS
        svm.fit(presence.multiply(ratios).tocsr(), is_own)
    weights = ratios * interpolated(svm.coef_[0], share)
    return weights, share * float(svm.intercept_[0])


def log_count_ratio(presence: Any, is_own: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """(F,): ln of how much more often a feature occurs in one class than in the other.

    r = ln((p / |p|) / (q / |q|)), p and q being alpha + the texts of either class that have the
    feature, |.| the sum over features (Wang and Manning 2012, section 2.1).

    Args:
        presence: (n, F) sparse, 1 where a text has a feature.
        is_own: (n,) whether a text is of the class.
    """
    p = alpha + np.asarray(presence[is_own].sum(axis=0)).ravel()
    q = alpha + np.asarray(presence[~is_own].sum(axis=0)).ravel()
    ratios: np.ndarray = np.log(p / p.sum()) - np.log(q / q.sum())
    return ratios


def interpolated(weights: np.ndarray, share: float) -> np.ndarray:
    """(F,): (1 - share) x the mean size of the weights + share x the weights (section 2.4)."""
    return (1 - share) * np.abs(weights).mean() + share * weights


class Ngrams:
    """Which runs of up to `order` lower-cased words and marks occur in texts.

    A run is one number, its words the digits of it, so that no run is held as text.

    Raises:
        ValueError: the texts have no word, or more different ones than such a number has room for.
    """

    def __init__(self, texts: Sequence[str], order: int) -> None:
        self.order = order
        self.numbers: dict[str, int] = {}  # of words, from 1
        for text in texts:
            for word in _words(text):
                self.numbers.setdefault(word, len(self.numbers) + 1)
        if not self.numbers:
            raise ValueError("no text has a word")
        if (len(self.numbers) + 1) ** order >= 1 << 63:
            raise ValueError(f"{len(self.numbers):,} words are too many for runs of {order}")
        self.codes = np.unique(self._runs(texts)[1])  # (F,), one for each feature

    def presence(self, texts: Sequence[str]) -> Any:
        """(n, F) sparse float64, 1 where a text has a run; runs that are not known are left out.

        Raises:
            MissingExtraError: scikit-learn, and so SciPy, is not installed.
        """
        try:
            from scipy.sparse import csr_matrix
        except ImportError:
            raise MissingExtraError(f"the NB-SVM baseline {_MISSING}") from None
        owners, codes = self._runs(texts)
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        is_known = self.codes[places] == codes
        cells = owners[is_known], places[is_known]
        found = csr_matrix((np.ones(len(cells[0])), cells), (len(texts), len(self.codes)))
        found.data[:] = 1  # a run that comes twice was added up
        return found

    def _runs(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of every run in the texts: the number of its text, and its code."""
        rows = [[self.numbers.get(word, 0) for word in _words(text)] for text in texts]
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        word = np.array([number for row in rows for number in row], np.int64)
        owners, codes = [], []
        for length in range(1, self.order + 1):
            count = max(0, len(word) - length + 1)
            code, is_whole = np.zeros(count, np.int64), np.ones(count, bool)
            for place in range(length):
                here = word[place : place + count]
                code = code * (len(self.numbers) + 1) + here
                is_whole &= (here > 0) & (owner[place : place + count] == owner[:count])
            owners.append(owner[:count][is_whole])
            codes.append(code[is_whole])
        return np.concatenate(owners), np.concatenate(codes)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
