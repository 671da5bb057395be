"""Classical classifiers: NB-SVM against values worked out by hand, and what both may be given."""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import numpy as np
import pytest

from minibert.errors import MissingExtraError
from minibert.settings import FinetuneSettings
from minibert.tasks.classical import (
    TFIDF_WORD,
    Ngrams,
    interpolated,
    log_count_ratio,
    nb_svm_scores,
    nb_svm_weights,
    tfidf_scores,
)
from minibert.tasks.classification import ClassificationTask, classical_figures
from minibert.tasks.labelled import LabelledText

pytest.importorskip("sklearn")


def answers(
    method: Any, train: list[str], labels: list[str], asked: list[str], **options: Any
) -> Any:
    """The labels with the highest scores."""
    (scores,) = method(train, labels, asked, **options)
    return [sorted(set(labels))[number] for number in scores.argmax(-1)]


def test_runs_of_words_are_found_once_and_never_across_texts() -> None:
    grams = Ngrams(["a b a", "b"], order=2)
    # a, b; "a b", "b a": no "a b" from the end of the first text to the second.
    assert len(grams.codes) == 4
    found = grams.presence(["a b a b", "b c a", "c"]).toarray()
    assert found.sum(axis=1).tolist() == [4, 2, 0]  # c is unknown, so are runs with it
    assert set(found.ravel()) == {0.0, 1.0}


def test_words_are_lower_cased_and_marks_stand_alone() -> None:
    assert len(Ngrams(["It's GOOD, it's good!"], order=1).codes) == 4  # it's good , !


def test_ratios_are_those_of_the_paper() -> None:
    # Three texts of the class and two others; the features are in one, or several of them.
    presence = Ngrams(["good film", "good", "good", "bad film", "bad"], order=1).presence(
        ["good film", "good", "good", "bad film", "bad"]
    )
    ratios = log_count_ratio(presence, np.array([True, True, True, False, False]))
    # Words by their first occurrence: good film bad. p = 1 + (3, 1, 0), q = 1 + (0, 1, 2).
    p, q = np.array([4, 2, 1]) / 7, np.array([1, 2, 3]) / 6
    np.testing.assert_allclose(ratios, np.log(p / q))
    assert ratios[1] == pytest.approx(math.log(6 / 7))  # film: only the lengths differ


def test_interpolation_draws_weights_to_their_mean_size() -> None:
    np.testing.assert_allclose(interpolated(np.array([3.0, -1.0]), 0.25), [2.25, 1.25])
    np.testing.assert_allclose(interpolated(np.array([3.0, -1.0]), 1.0), [3.0, -1.0])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_weights_of_two_texts_are_those_worked_out_by_hand(share: float) -> None:
    """ "good" against "bad": r = (ln 2, -ln 2), and by symmetry both weights are v, no intercept.

    The SVM's loss is v^2 + 2 (1 - v L)^2 with L = ln 2, so v = 2 L / (1 + 2 L^2).
    """
    texts = ["good", "bad"]
    presence = Ngrams(texts, order=3).presence(texts)
    weights, intercept = nb_svm_weights(presence, np.array([True, False]), share)
    size = math.log(2)
    v = 2 * size / (1 + 2 * size**2)
    np.testing.assert_allclose(weights, [size * v, -size * v], rtol=1e-3)
    assert intercept == pytest.approx(0, abs=1e-3)


def test_the_intercept_shrinks_with_the_weights() -> None:
    texts = ["good film", "good", "good one", "bad"]
    presence, is_own = Ngrams(texts, 1).presence(texts), np.array([True, True, True, False])
    whole, quarter = (nb_svm_weights(presence, is_own, share)[1] for share in (1.0, 0.25))
    assert whole != pytest.approx(0, abs=1e-3)
    assert quarter == pytest.approx(whole / 4)


def test_order_of_words_is_read() -> None:
    """Single words cannot tell these apart, pairs can."""
    train = ["not good", "good not"] * 4
    labels = ["neg", "pos"] * 4
    assert answers(nb_svm_scores, train, labels, ["good not", "not good"]) == ["pos", "neg"]
    alone = answers(nb_svm_scores, train, labels, ["good not", "not good"], order=1)
    assert len(set(alone)) == 1


def test_more_than_two_classes() -> None:
    words = {"sport": "ball goal", "news": "vote law", "tech": "chip code"}
    train = [f"{word} thing" for pair in words.values() for word in pair.split()]
    labels = [name for name in words for _ in range(2)]
    for method in (nb_svm_scores, tfidf_scores):
        assert answers(method, train, labels, ["ball", "law", "code code"]) == [
            "sport",
            "news",
            "tech",
        ]


def test_a_chinese_character_is_a_word() -> None:
    train = ["很好的酒店", "酒店不错很好", "很差的酒店", "房间差"]
    labels = ["pos", "pos", "neg", "neg"]
    for method in (nb_svm_scores, tfidf_scores):
        assert answers(method, train, labels, ["服务差", "早餐好"]) == ["neg", "pos"]
    text = "The wi-fi's x 房间大abc, naïve_1 日"
    words = ["The", "wi", "fi", "房", "间", "大", "abc", "naïve_1", "日"]
    assert re.findall(TFIDF_WORD, text) == words
    plain = re.sub("[\u3400-\u9fff]", " ", text)  # where there is none, what scikit-learn takes
    assert re.findall(TFIDF_WORD, plain) == re.findall(r"\b\w\w+\b", plain)


def test_texts_that_teach_nothing_are_value_errors() -> None:
    with pytest.raises(ValueError, match="one label"):
        nb_svm_scores(["a", "b"], ["pos", "pos"], ["a"])
    with pytest.raises(ValueError, match="no text has a word"):
        nb_svm_scores(["", " "], ["pos", "neg"], ["a"])


def test_a_text_of_unknown_words_gets_an_answer() -> None:
    assert answers(nb_svm_scores, ["good", "bad"], ["pos", "neg"], ["", "xyz"])[0] in ("pos", "neg")


def test_without_the_extra_its_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn.svm", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, name, None)
    for method in (nb_svm_scores, tfidf_scores):
        with pytest.raises(MissingExtraError, match=r"pip install 'minibert\[tasks\]'"):
            method(["good", "bad"], ["pos", "neg"], ["good"])


def test_baselines_of_pairs_have_the_figure_that_the_field_quotes() -> None:
    task = ClassificationTask(FinetuneSettings(task="mrpc"))
    labels = ["equivalent", "equivalent", "not_equivalent"] * 8
    words = {"equivalent": "same", "not_equivalent": "other"}
    train = [LabelledText(str(i), words[n], n, "text") for i, n in enumerate(labels)]
    found = task.baselines(train, train, train)
    # Always "equivalent": precision 2/3, recall 1.
    assert found["majority_f1_binary"] == pytest.approx(0.8)
    assert found["majority_accuracy"] == pytest.approx(2 / 3)
    assert found["nbsvm_f1_binary"] == found["tfidf_f1_binary"] == 1.0
    assert found["tfidf_f1"] == classical_figures(tfidf_scores, train, train)["f1"]


def test_the_baseline_of_a_run_has_the_f1_of_the_class_that_is_looked_for() -> None:
    train = [LabelledText(str(i), f"{w} mail", w) for i, w in enumerate(["ham", "ham", "spam"] * 8)]
    asked = [*train[:2], LabelledText("x", "ham mail", "spam"), train[2]]
    for named, f1 in (("spam", 2 / 3), ("ham", 0.8)):
        settings = FinetuneSettings(task="classification", data="x.csv", positive_label=named)
        found = ClassificationTask(settings).baseline(train, asked, asked)
        assert found["tfidf_f1_binary"] == pytest.approx(f1)
        assert found["tfidf_accuracy"] == 0.75
    unnamed = ClassificationTask(FinetuneSettings(task="classification", data="x.csv"))
    assert unnamed.baseline(train, asked, asked).keys() == {
        *("tfidf_accuracy", "tfidf_f1", "majority_accuracy")
    }


@pytest.mark.parametrize("method", [tfidf_scores, nb_svm_scores])
def test_a_method_has_a_threshold_of_its_own_where_the_model_has(method: Any) -> None:
    """Three of four texts in train are yes, so that it leans to yes; in dev few are."""
    words = ["good fine film", "good dull film", "bad fine film", "bad dull film"]
    labels = ["yes", "yes", "yes", "no"]
    train = [LabelledText(str(i), words[i % 4], labels[i % 4]) for i in range(40)]
    asked = [LabelledText(str(i), words[i % 4], "yes" if i % 4 == 0 else "no") for i in range(20)]
    plain = classical_figures(method, train, asked, "yes")
    tuned = classical_figures(method, train, asked, "yes", asked, "f1_binary")
    assert tuned["f1_binary"] == tuned["accuracy"] == 1.0
    assert plain["f1_binary"] < 0.7
    # By the class that is looked for, whichever comes first, and as well for another figure.
    assert classical_figures(method, train, asked, "no", asked, "accuracy")["f1_binary"] == 1.0


def test_the_baselines_of_a_task_have_a_threshold_where_dev_chooses_one() -> None:
    labels = ["equivalent", "equivalent", "equivalent", "not_equivalent"] * 8
    words = ["good fine", "good dull", "bad fine", "bad dull"] * 8
    train = [
        LabelledText(str(i), w, n, "") for i, (w, n) in enumerate(zip(words, labels, strict=True))
    ]
    asked = [
        LabelledText(e.id, e.text, "equivalent" if e.text == "good fine" else "not_equivalent", "")
        for e in train
    ]
    chosen = FinetuneSettings(task="mrpc", select="f1_binary", threshold="best")
    for settings, is_right in ((chosen, True), (FinetuneSettings(task="mrpc"), False)):
        task = ClassificationTask(settings)
        found = task.baseline(train, asked, asked) | task.baselines(train, asked, asked)
        assert (found["tfidf_f1_binary"] == 1.0) is is_right
        assert (found["nbsvm_f1_binary"] == 1.0) is is_right
        assert found["majority_f1_binary"] == pytest.approx(0.4)
