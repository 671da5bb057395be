"""Classification of texts and pairs: encoding, loss, votes of windows, figures and a baseline.

In: labelled texts (`labelled.py`, `labelled_sets.py`), encoded by `texts.py`. Out: features for
`BertForSequenceClassification`, and the figures of its predictions.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from minibert.config import BertConfig
from minibert.errors import InputError, TextError, did_you_mean
from minibert.files import read_json, table_kind, whole_characters, write_json
from minibert.heads import BertForSequenceClassification
from minibert.losses import classification_loss, multi_label_loss
from minibert.metrics import (
    best_threshold,
    class_figures,
    classification_figures,
    confusion_matrix,
    matrix_counts,
    multi_label_counts,
    multi_label_figures,
    roc_auc,
)
from minibert.runs import log_line
from minibert.runtime import Runtime
from minibert.settings import BEST, BOTH_ORDERS, NB_SVM, FinetuneSettings
from minibert.tasks.base import Predictor, Source, Splits, Task
from minibert.tasks.batches import Feature, inputs_of
from minibert.tasks.classes import class_weights, confusion_text, per_class_text, positive_weights
from minibert.tasks.classical import nb_svm_scores, tfidf_scores
from minibert.tasks.labelled import (
    LabelledText,
    classes_of,
    clean_published,
    clean_text,
    names_of,
    read_own,
    read_own_test,
    same_text,
    shown,
    told,
)
from minibert.tasks.labelled_sets import PUBLIC, PublicSet
from minibert.tasks.texts import encode, say_lengths
from minibert.tokenizer import WordPiece
from minibert.train import Batch, Term

Scorer = Callable[..., list[np.ndarray]]  # `tfidf_scores` or `nb_svm_scores`
_LISTED_ERRORS = 50
_WIDEST_MATRIX = 6  # classes of a confusion matrix that is printed
_LARGEST_MATRIX = 200  # and of one that results hold
_MULTI = "multi_label_classification"
_FILE = "classification.json"


@dataclass(frozen=True)
class Prediction:
    """One text's answer: the likeliest label, its probability, and all of them.

    Of a text that may have several labels, prediction holds those more likely than not, and score
    is that of the least sure yes or no. A model with a threshold says yes above that instead.
    """

    text: str
    prediction: str | list[str]
    score: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class PairPrediction(Prediction):
    """The answer to a pair of texts."""

    text_pair: str


class ClassificationTask(Task[LabelledText, np.ndarray]):
    """A class for each text, or for each pair; or any number of classes.

    A prediction is the (C,) float32 probabilities of the classes, of a text that was cut into
    windows the mean over them, and of a pair that is asked in both orders over those, too.
    """

    names = (*PUBLIC, "classification")
    model_class = BertForSequenceClassification
    uses = (
        *("text_column", "text_pair_column", "label_column", "label_separator"),
        *("class_weights", "label_smoothing", "positive_label", "threshold", "pair_order"),
    )
    selectable: tuple[str, ...] = ("accuracy", "f1", "matthews")

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        self.public = PUBLIC.get(self.name)
        self.labels: tuple[str, ...] = self.public.labels if self.public else ()
        self.multi = False
        self._own_labels: tuple[str, ...] = ()  # of all own examples, dev and --limit left out too
        self.weights: Tensor | None = None
        self.positives: Tensor | None = None  # of texts with several labels
        of_set = self._set_read.positive if self._set_read else None
        self.positive_label = settings.positive_label or of_set
        self.threshold = settings.fixed_threshold
        self.both_orders = settings.pair_order == BOTH_ORDERS
        if self.public:
            self.places = tuple(f"data/downloads/{place}" for place in self.public.places)
            self.sample = self.name
        if self._set_read and self._set_read.unlabelled is not None:
            self.unlabelled_part = self._set_read.unlabelled_part
        self.pairs = self._set_read.pairs if self._set_read else self._own_pairs
        if self.both_orders and not self.pairs:
            needs = "; name --text-pair-column" if self._own else ""
            raise InputError(
                f"--pair-order {BOTH_ORDERS} goes with pairs of texts, and {self.name} has single "
                f"ones{needs}"
            )

    @property
    def _set_read(self) -> PublicSet | None:
        """The public set, None where the data is a table of the user's own: columns are named."""
        return None if self.settings.names_columns else self.public

    @property
    def _own(self) -> bool:
        return self._set_read is None

    @property
    def _own_pairs(self) -> bool:
        return self.settings.text_pair_column is not None

    @classmethod
    def claims(cls, config: BertConfig) -> dict[str, Any] | None:
        return None if is_regression(config) else super().claims(config)

    # --- data and classes ------------------------------------------------------------------------

    def read(self, source: Source) -> Splits[LabelledText]:
        if public := self._set_read:
            extra = [flag for flag, _ in self._named_paths() if flag != "--data"]
            if extra:
                raise InputError(
                    f"{extra[0]} goes with a table of your own; name its columns, as in "
                    f"--text-column text, or leave it out: {self.name} has its own splits"
                )
            return public.read(source.path)
        self._check_own()
        splits = read_own(self.settings)
        self._own_labels = classes_of(splits.train)
        return splits

    def read_to_score(self, source: Source) -> Splits[LabelledText]:
        settings = self.settings
        if self._own:
            self._check_own()
        elif source.path.is_file() and table_kind(source.path):  # no public set is a table alone
            if self.pairs:
                settings = replace(settings, text_pair_column="text_pair")
        else:
            return self.read(source)
        return read_own_test(settings, self.labels, self.multi)

    def _check_own(self) -> None:
        """Raises InputError where there is no own table, or the model reads other texts."""
        if self.settings.data is None:
            raise InputError("--text-column and the like go with --data, a table of your own")
        if self._own_pairs != self.pairs:  # of a model that learnt from other data
            reads = "pairs of texts; name --text-pair-column" if self.pairs else "single texts"
            raise InputError(f"the model reads {reads}")

    def unlabelled(self, source: Source) -> Iterator[str]:
        public = self._set_read
        if public is None or public.unlabelled is None:
            return iter(())
        return public.unlabelled(source.path)

    def has_unlabelled(self, source: Source) -> bool:
        public = self._set_read
        if public is None or public.has_unlabelled is None:
            return super().has_unlabelled(source)
        return public.has_unlabelled(source.path)

    def check_self_training(self) -> None:
        if self.pairs or self.multi:
            has = "reads pairs" if self.pairs else "has texts with several labels"
            raise InputError(
                f"--self-training goes with one class for each text, and {self.name} {has}; 'none' "
                f"does without"
            )

    def comparable(self, text: str) -> str:
        return super().comparable(clean_published(text))  # of a file, where markup is still in

    def word_scores(
        self, train: Sequence[LabelledText], *asked: Sequence[LabelledText]
    ) -> list[np.ndarray]:
        names = _names(train)
        order = [sorted(self.labels).index(name) for name in self.labels]
        if lacking := set(self.labels) - set(names):
            raise InputError(f"NB-SVM has no example of {shown(min(lacking))} to train on")
        try:
            found = nb_svm_scores(
                *([clean_text(e.text) for e in train], names),
                *([clean_text(e.text) for e in part] for part in asked),
            )
        except ValueError as error:
            raise InputError(f"NB-SVM: {error}") from None
        return [scores[:, order] for scores in found]

    def is_labelled(self, source: Source, file: Path) -> bool:
        public = self._set_read
        if public is None or public.is_unlabelled is None:
            return super().is_labelled(source, file)
        is_text = public.is_unlabelled(source.path, file)
        return super().is_labelled(source, file) and not is_text

    def same(self, example: LabelledText) -> str:
        return same_text(example, any_order=self.both_orders)

    def place(self, example: LabelledText) -> str:
        return same_text(example)

    def stratum(self, example: LabelledText) -> Hashable:
        # Sets of classes are too many to draw within each.
        return example.label if isinstance(example.label, str) else ""

    def learn(self, train: list[LabelledText], tokenizer: WordPiece) -> None:
        super().learn(train, tokenizer)
        self.multi = any(isinstance(e.label, tuple) for e in train)
        if self._own:
            self.labels = self._own_labels or classes_of(train)
        if self.multi:
            self.metric, self.selectable = "f1_micro", ("accuracy", "f1", "f1_micro")
        elif len(self.labels) == 2:
            self.selectable += ("roc_auc", *(("f1_binary",) if self.positive_label else ()))
        self._check_labels()
        counts = Counter(name for e in train for name in names_of(e))
        if missing := [name for name in self.labels if not counts[name]]:
            lack = f"{told(missing)}: no example to train on, after dev and --limit"
            if self.settings.teacher == NB_SVM:
                raise InputError(f"--teacher {NB_SVM}: {lack}")
            log_line("classes", lack)
        given = self.settings.class_weights
        if self.multi and given == "balanced":
            self.positives = positive_weights(self.labels, counts, len(train))
        else:
            self.weights = class_weights(given, self.labels, counts)

    def check_parts(self, dev: Sequence[LabelledText], test: Sequence[LabelledText] | None) -> None:
        """Raises InputError where dev would choose weights by a figure that one class leaves fixed.

        Of a model that is finished, dev chooses nothing more.
        """
        select, given = self.settings.select, {e.label for e in dev}
        if self.is_finished or len(given) != 1:
            return
        if isinstance(label := given.pop(), tuple):  # of any number of classes
            if not label and select in (None, "f1", "f1_micro"):
                raise InputError(
                    f"{len(dev)} example(s) in dev, none with a label: {select or 'f1_micro'} "
                    f"would be 0 for all weights; raise --dev-fraction or name --dev-data"
                )
            return
        says = f"{len(dev)} example(s) in dev, all {shown(str(label))}"
        if select in ("matthews", "roc_auc", "f1_binary"):
            raise InputError(
                f"{says}: {select} would say nothing of the weights; raise --dev-fraction or name "
                f"--dev-data with both classes"
            )
        log_line("dev", f"{says}, by which always saying so is the best")

    def _check_labels(self) -> None:
        """Raises InputError where the labels are not what the settings speak of."""
        s, two = self.settings, len(self.labels) == 2 and not self.multi
        if s.positive_label is not None and not two:
            has = "texts with several labels" if self.multi else f"{len(self.labels)} classes"
            raise InputError(f"--positive-label goes with two classes; {self.name} has {has}")
        if s.positive_label is not None and s.positive_label not in self.labels:
            near = did_you_mean(s.positive_label, self.labels)
            known = ", ".join(map(shown, self.labels))
            raise InputError(f"--positive-label {s.positive_label!r} is none of {known}{near}")
        if s.select == "f1_binary" and two and self.positive_label is None:
            raise InputError(
                f"--select 'f1_binary' is no figure of {self.name}; it is the F1 of "
                f"--positive-label, which names one of the two classes"
            )
        if s.threshold is not None and not (two or self.multi):
            raise InputError(
                f"--threshold goes with two classes or texts with several labels; {self.name} has "
                f"{len(self.labels)} classes, of which the likeliest is said"
            )

    def restore(self, folder: Path, config: BertConfig, tokenizer: WordPiece) -> None:
        super().restore(folder, config, tokenizer)
        named = config.id2label or {}
        self.labels = tuple(named.get(i, f"LABEL_{i}") for i in range(config.num_labels))
        if len(set(self.labels)) < len(self.labels):
            twice = next(name for name in self.labels if self.labels.count(name) > 1)
            raise InputError(f"{folder}: two classes of id2label are called {twice!r}")
        self.multi = config.problem_type == _MULTI
        if (folder / _FILE).is_file():  # where nothing is to be told there is none
            kept = read_json(folder / _FILE, "it belongs to a fine-tuned folder")
            self.pairs = bool(kept.get("pairs", self.pairs))
            self.both_orders = bool(kept.get("both_orders", self.both_orders))
            self.positive_label, threshold = kept.get("positive_label"), kept.get("threshold")
            self.threshold = None if threshold is None else float(threshold)

    def save(self, folder: Path) -> None:
        kept = {
            "pairs": self.pairs,
            **({"both_orders": True} if self.both_orders else {}),
            "positive_label": self.positive_label,
            "threshold": self.threshold,
        }
        if self.pairs or self.threshold is not None or self.settings.positive_label is not None:
            write_json(folder / _FILE, kept)

    def config_fields(self) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(self.labels)),
            "problem_type": _MULTI if self.multi else "single_label_classification",
        }

    # --- features and loss -----------------------------------------------------------------------

    def encode(self, examples: Sequence[LabelledText]) -> list[list[Feature]]:
        return self._encoded(examples, _clean(examples), self.both_orders)

    def encode_to_learn(self, examples: Sequence[LabelledText]) -> list[list[Feature]]:
        """As `encode`, pairs as they stand; what becomes of long ones is printed."""
        settings, texts = self.settings, _clean(examples)
        found = self._encoded(examples, texts, both_orders=False)
        say_lengths(
            texts,
            sum(map(len, found)),
            self.tokenizer,
            settings.max_seq_length,
            settings.truncation,
        )
        return found

    def _encoded(
        self,
        examples: Sequence[LabelledText],
        texts: Sequence[tuple[str, str | None]],
        both_orders: bool,
    ) -> list[list[Feature]]:
        """The inputs of examples, whose cleaned texts are given."""
        settings = self.settings
        rows = encode(
            texts,
            self.tokenizer,
            settings.max_seq_length,
            settings.truncation,
            both_orders,
        )
        found = []
        for example, windows in zip(examples, rows, strict=True):
            labels = {} if example.label is None else {"labels": self._target(example)}
            found.append([Feature(inputs, labels) for inputs in windows])
        return found

    def _target(self, example: LabelledText) -> int | np.ndarray:
        """The class number; with several labels (C,) float32, 1 on its classes.

        Raises:
            InputError: a label that is none of the classes.
        """
        unknown = sorted(set(names_of(example)) - set(self.labels))
        if unknown:
            raise InputError(
                f"the model has the classes {', '.join(self.labels)}, the data {', '.join(unknown)}"
            )
        numbers = [self.labels.index(name) for name in names_of(example)]
        if not self.multi:
            if len(numbers) != 1 or isinstance(example.label, tuple):
                raise InputError(f"{example.id} has {len(numbers)} labels, the model one for each")
            return numbers[0]
        target = np.zeros(len(self.labels), np.float32)
        target[numbers] = 1
        return target

    def _targets(self, examples: Sequence[LabelledText]) -> np.ndarray:
        """(examples,) class numbers, or (examples, C) truth values."""
        found = np.array([self._target(e) for e in examples])
        return found > 0.5 if self.multi else found

    def terms(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        smoothing = self.settings.label_smoothing
        return classification_terms(
            forward, batch, self.weights, smoothing, self.multi, self.positives
        )

    # --- predictions and figures -----------------------------------------------------------------

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[np.ndarray]:
        logits = model(**inputs_of(batch), first_only=True).logits.float()
        shares = logits.sigmoid() if self.multi else logits.softmax(-1)
        return list(shares.cpu().numpy())

    def decode(
        self,
        examples: Sequence[LabelledText],
        features: list[list[Feature]],
        outputs: list[list[np.ndarray]],
    ) -> list[np.ndarray]:
        return [windows[0] if len(windows) == 1 else np.mean(windows, 0) for windows in outputs]

    def _counts(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, answers and labels of each class."""
        said, targets = self._said(np.stack(predictions), self.threshold), self._targets(examples)
        if self.multi:
            return multi_label_counts(targets, said)
        return matrix_counts(confusion_matrix(targets, said, len(self.labels)))

    def score(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> dict[str, float]:
        shares, targets = np.stack(predictions), self._targets(examples)
        figures = self._figures(shares, targets, self.threshold)
        if self.multi:
            loss = -np.log(np.maximum(np.where(targets, shares, 1 - shares), 1e-30))
            return figures | {"loss": float(loss.mean())}
        if len(self.labels) == 2:
            positive = self._positive
            figures["roc_auc"] = roc_auc(targets == positive, shares[:, positive])
        return figures | {"loss": mean_loss(shares, targets)}

    def _figures(
        self, shares: np.ndarray, targets: np.ndarray, threshold: float | None
    ) -> dict[str, float]:
        """What depends on the threshold."""
        said = self._said(shares, threshold)
        if self.multi:
            return multi_label_figures(targets, said)
        matrix = confusion_matrix(targets, said, len(self.labels))
        figures = classification_figures(matrix)
        if self.positive_label:
            by_class = class_figures(*matrix_counts(matrix))
            figures["f1_binary"] = float(by_class["f1"][self._positive])
        return figures

    def _said(self, shares: np.ndarray, threshold: float | None) -> np.ndarray:
        """Of (examples, C) probabilities (examples,) classes, or (examples, C) truth values."""
        if self.multi:
            return shares > (0.5 if threshold is None else threshold)
        if threshold is None:
            return shares.argmax(-1)
        positive = self._positive
        return np.where(shares[:, positive] > threshold, positive, 1 - positive)

    @property
    def chooses(self) -> bool:
        return self.settings.threshold == BEST

    def choose(self, dev: Sequence[LabelledText], predictions: Sequence[np.ndarray]) -> None:
        """The threshold with the best figure."""
        shares, targets = np.stack(predictions), self._targets(dev)
        yes = shares if self.multi else shares[:, self._positive]
        self.threshold = best_threshold(
            yes, lambda t: self._figures(shares, targets, t)[self._threshold_for]
        )

    @property
    def _threshold_for(self) -> str:
        """The figure that the threshold is chosen for."""
        select = self.settings.select or self.metric
        # No threshold changes the area under the curve; a yes and a no are told by accuracy then.
        return "accuracy" if select == "roc_auc" else select

    def details(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        by_class = class_figures(*self._counts(examples, predictions))
        columns = {key: values.tolist() for key, values in by_class.items()}
        found: dict[str, Any] = {}
        if not self.multi:
            said = self._said(np.stack(predictions), self.threshold)
            matrix = confusion_matrix(self._targets(examples), said, len(self.labels))
            if len(self.labels) <= _LARGEST_MATRIX:
                found["confusion_matrix"] = matrix.tolist()
        found["per_class"] = {
            label: {key: values[number] for key, values in columns.items()}
            for number, label in enumerate(self.labels)
        }
        if self.threshold is not None:
            found["threshold"] = self.threshold
        return found

    def table(self, results: dict[str, Any]) -> str:
        parts = [per_class_text(results["per_class"])]
        if "threshold" in results:
            name = "a label" if self.multi else shown(self.labels[self._positive])
            parts.insert(0, f"{name} is said above {results['threshold']:.4g}")
        if "confusion_matrix" in results and len(self.labels) <= _WIDEST_MATRIX:
            parts.append(confusion_text(self.labels, results["confusion_matrix"]))
        return "\n".join(parts)

    def baseline(
        self,
        train: Sequence[LabelledText],
        dev: Sequence[LabelledText],
        test: Sequence[LabelledText],
    ) -> dict[str, float]:
        """TF-IDF and the majority."""
        if self.multi:
            raise ValueError("the TF-IDF baseline is for one label a text")
        figures = self._classical(tfidf_scores, train, dev, test)
        majority = Counter(e.label for e in train).most_common(1)[0][0]
        return {
            **{f"tfidf_{key}": value for key, value in figures.items() if key != "matthews"},
            "majority_accuracy": sum(e.label == majority for e in test) / len(test),
        }

    def baselines(
        self,
        train: Sequence[LabelledText],
        dev: Sequence[LabelledText],
        test: Sequence[LabelledText],
    ) -> dict[str, float]:
        """Every figure of TF-IDF, of NB-SVM, which takes a minute on IMDb, and of the majority."""
        if self.multi:
            raise ValueError("the baselines are for one label a text")
        labels = _names(train)
        majority = [Counter(labels).most_common(1)[0][0]] * len(test)
        figures = {
            "tfidf": self._classical(tfidf_scores, train, dev, test),
            "nbsvm": self._classical(nb_svm_scores, train, dev, test),
            "majority": _figures_of(majority, test, labels, self.positive_label),
        }
        return {f"{method}_{k}": v for method, own in figures.items() for k, v in own.items()}

    def _classical(
        self,
        method: Scorer,
        train: Sequence[LabelledText],
        dev: Sequence[LabelledText],
        test: Sequence[LabelledText],
    ) -> dict[str, float]:
        """Figures of a method of `classical`, with a threshold of its own where the model has."""
        select = self._threshold_for if self.chooses else None
        return classical_figures(method, train, test, self.positive_label, dev, select)

    @property
    def _positive(self) -> int:
        """Of two classes the number of the one that is looked for; the second if none is named."""
        return self.labels.index(self.positive_label) if self.positive_label in self.labels else 1

    def _chosen(self, prediction: np.ndarray) -> str | list[str]:
        said = self._said(prediction[None], self.threshold)[0]
        if self.multi:
            return [name for name, is_said in zip(self.labels, said, strict=True) if is_said]
        return self.labels[said]

    def _surety(self, prediction: np.ndarray) -> float:
        """The chosen class's share; of several labels that of the least sure yes or no."""
        said = self._said(prediction[None], self.threshold)[0]
        if self.multi:
            return float(np.where(said, prediction, 1 - prediction).min())
        return float(prediction[said])

    def row(self, example: LabelledText, prediction: np.ndarray) -> dict[str, Any]:
        """`score` is the chosen class's share."""
        pair = {} if example.text_pair is None else {"text_pair": example.text_pair}
        label = list(example.label) if isinstance(example.label, tuple) else example.label
        return {
            "id": example.id,
            "text": example.text,
            **pair,
            "label": label,
            "prediction": self._chosen(prediction),
            "score": round(self._surety(prediction), 6),
        }

    def errors(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> list[str]:
        """The wrong answers that the model was surest of."""
        rows = [self.row(e, p) for e, p in zip(examples, predictions, strict=True)]
        wrong = [row for row in rows if row["label"] != row["prediction"]]
        wrong.sort(key=lambda row: -row["score"])
        return [
            f"{row['id']}: {_told(row['label'])}, taken for {_told(row['prediction'])} "
            f"({row['score']:.0%})\n"
            + "\n".join(row[key] for key in ("text", "text_pair") if key in row)
            for row in wrong[:_LISTED_ERRORS]
        ]

    # --- use -------------------------------------------------------------------------------------

    def parse_line(self, line: str) -> Any:
        """Of a pair: two texts with a tab between, or a JSON list or object of them."""
        if not self.pairs:
            return super().parse_line(line)
        try:
            return json.loads(line) if line.lstrip()[:1] in ("[", "{") else line.split("\t")
        except (ValueError, RecursionError):
            return line.split("\t")

    def example_of(self, given: Any, number: int) -> LabelledText:
        texts = given
        if isinstance(given, Mapping):
            texts = [given[key] for key in ("text", "text_pair") if key in given]
        if isinstance(texts, str):
            texts = [texts]
        wanted = "two texts, as a tab between them or a list of two" if self.pairs else "a string"
        fits = isinstance(texts, (list, tuple)) and all(isinstance(t, str) for t in texts)
        if not fits or len(texts) != (2 if self.pairs else 1):
            if isinstance(given, Mapping):
                keys = "them as 'text' and" if self.pairs else "it as 'text' and no"
                wanted += f", or an object with {keys} 'text_pair'"
            raise TextError(number, f"is {given!r:.60}; expected {wanted}")
        first, *second = map(whole_characters, texts)
        return LabelledText(str(number), first, None, *second)

    def answer(self, example: LabelledText, prediction: np.ndarray) -> Prediction:
        shares = {n: float(share) for n, share in zip(self.labels, prediction, strict=True)}
        own = self._chosen(prediction), self._surety(prediction), shares
        if example.text_pair is not None:
            return PairPrediction(example.text, *own, example.text_pair)
        return Prediction(example.text, *own)

    def predictor(self, model: nn.Module, runtime: Runtime) -> ClassificationPredictor:
        return ClassificationPredictor(model, self, runtime)


def is_regression(config: BertConfig) -> bool:
    """Whether a folder's head says one number; a single class that is said yes or no to is none."""
    is_alone = config.num_labels == 1 and config.problem_type != _MULTI
    return config.problem_type == "regression" or is_alone


def _told(label: str | list[str]) -> str:
    return shown(label) if isinstance(label, str) else ", ".join(map(shown, label)) or "none"


class ClassificationPredictor(Predictor):
    """A fine-tuned classifier; see `Predictor`."""

    task: ClassificationTask

    @property
    def labels(self) -> list[str]:
        """Class names in the order of their indices."""
        return list(self.task.labels)

    def probabilities(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Class probabilities of each text, (texts, C), in their order; cleaned as in training."""
        found = self.predictions(self.examples(texts), batch_size)
        return np.array(found, np.float32).reshape(len(found), len(self.labels))


# --- loss and figures -----------------------------------------------------------------------------


def classification_terms(
    model: Callable[..., Any],
    batch: Batch,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    multi: bool = False,
    positives: Tensor | None = None,
) -> dict[str, Term]:
    """The one loss term of the task on a batch with input_ids, attention_mask and labels.

    Args:
        weights: (C,), of the classes in the loss.
        multi: labels are (B, C), 1.0 on the classes of each text.
        positives: (C,), of "yes" for each of several labels.
    """
    logits = model(**inputs_of(batch), first_only=True).logits  # the classifier reads [CLS] alone
    labels = batch["labels"]
    weights, positives = (w if w is None else w.to(logits.device) for w in (weights, positives))
    if multi:
        hits = ((logits > 0) == (labels > 0.5)).sum()
        loss = multi_label_loss(logits, labels, weights, smoothing, positives)
        return {"task": Term(*loss, hits)}
    hits = (logits.argmax(-1) == labels).sum()
    return {"task": Term(*classification_loss(logits, labels, weights, smoothing), hits)}


def mean_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean loss, in nats, of (examples, C) class probabilities and (examples,) class numbers."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-30)).mean())


def _clean(examples: Sequence[LabelledText]) -> list[tuple[str, str | None]]:
    return [(clean_text(e.text), e.text_pair and clean_text(e.text_pair)) for e in examples]


def _whole(example: LabelledText) -> str:
    return f"{example.text} {example.text_pair or ''}".rstrip()


def classical_figures(
    method: Scorer,
    train: Sequence[LabelledText],
    test: Sequence[LabelledText],
    positive: str | None = None,
    dev: Sequence[LabelledText] = (),
    select: str | None = None,
) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews of a method of `classical`; of a positive class f1_binary.

    Args:
        positive: that class, if one is looked for.
        dev: what chooses the threshold.
        select: the figure it is chosen for, as a model's is by `--threshold best`: a figure that
            hangs on how often yes is said would compare thresholds else. None for the method's own.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: as of the method.
    """
    labels = _names(train)
    names = sorted(set(labels))
    has_threshold = select is not None and len(names) == 2
    parts = [dev, test] if has_threshold else [test]
    given = [_whole(e) for e in train]
    found = method(given, labels, *([_whole(e) for e in part] for part in parts))
    if not has_threshold:
        answers = [names[number] for number in found[0].argmax(-1)]
        return _figures_of(answers, test, labels, positive)
    yes = names.index(positive) if positive in names else 1
    on_dev, on_test = (1 / (1 + np.exp(s[:, 1 - yes] - s[:, yes])) for s in found)

    def figures(
        part: Sequence[LabelledText], shares: np.ndarray, threshold: float
    ) -> dict[str, float]:
        said = [names[yes if share > threshold else 1 - yes] for share in shares]
        return _figures_of(said, part, labels, positive)

    threshold = best_threshold(on_dev, lambda t: figures(dev, on_dev, t)[str(select)])
    return figures(test, on_test, threshold)


def _names(examples: Sequence[LabelledText]) -> list[str]:
    return [str(e.label) for e in examples]


def _figures_of(
    answers: Sequence[str],
    test: Sequence[LabelledText],
    train_labels: Sequence[str],
    positive: str | None = None,
) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews of answers by name; with a positive class its F1, too."""
    names = sorted({*train_labels, *_names(test)})
    index = {name: number for number, name in enumerate(names)}
    given, found = (np.array([index[name] for name in part]) for part in (_names(test), answers))
    matrix = confusion_matrix(given, found, len(names))
    figures = classification_figures(matrix)
    if positive is not None:
        by_class = class_figures(*matrix_counts(matrix))["f1"]
        figures["f1_binary"] = float(by_class[index[positive]]) if positive in index else 0.0
    return figures
