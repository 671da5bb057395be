"""Classification of texts: encoding, loss, votes of windows, figures and a baseline.

In: labelled texts (`labelled.py`). Out: features for `BertForSequenceClassification`, and
accuracy, F1 and confusion matrix of its predictions.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from minibert.config import BertConfig
from minibert.errors import InputError, MissingExtraError
from minibert.heads import BertForSequenceClassification
from minibert.losses import classification_loss
from minibert.metrics import classification_figures, confusion_matrix
from minibert.runtime import Runtime
from minibert.settings import FinetuneSettings
from minibert.tasks.base import Predictor, Source, Splits, Task
from minibert.tasks.batches import Feature
from minibert.tasks.labelled import (
    IMDB_CLASSES,
    LabelledText,
    clean_text,
    read_imdb,
    same_text,
)
from minibert.tokenizer import WordPiece
from minibert.train import Batch, Term

_LISTED_ERRORS = 50


class PublicSet(NamedTuple):
    """A named set: its classes, where it is looked for, its sample, its reader."""

    labels: tuple[str, ...]
    places: tuple[str, ...]
    sample: str
    read: Callable[[Path], Splits[LabelledText]]


PUBLIC = {"imdb": PublicSet(IMDB_CLASSES, ("data/downloads/aclImdb",), "imdb", read_imdb)}


@dataclass(frozen=True)
class Prediction:
    """One text's answer: the likeliest label, its probability, and all of them."""

    text: str
    prediction: str
    score: float
    probabilities: dict[str, float]


class ClassificationTask(Task[LabelledText, np.ndarray]):
    """One class for each text; a prediction is the (C,) float32 probabilities of the classes."""

    names = tuple(PUBLIC)
    model_class = BertForSequenceClassification
    selectable = ("accuracy", "f1", "matthews")
    labels: tuple[str, ...] = ()

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        self.public = PUBLIC[self.name]
        self.labels, self.places = self.public.labels, self.public.places
        self.sample = self.public.sample

    # --- data and classes ------------------------------------------------------------------------

    def read(self, source: Source) -> Splits[LabelledText]:
        return self.public.read(source.path)

    def same(self, example: LabelledText) -> str:
        return same_text(example.text)

    def stratum(self, example: LabelledText) -> Hashable:
        return example.label

    def restore(self, folder: Path, config: BertConfig, tokenizer: WordPiece) -> None:
        super().restore(folder, config, tokenizer)
        named = config.id2label or {}
        self.labels = tuple(named.get(i, f"LABEL_{i}") for i in range(config.num_labels))

    def config_fields(self) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(self.labels)),
            "problem_type": "single_label_classification",
        }

    # --- features and loss -----------------------------------------------------------------------

    def encode(self, examples: Sequence[LabelledText]) -> list[list[Feature]]:
        settings = self.settings
        rows = encode(
            [clean_text(e.text) for e in examples],
            self.tokenizer,
            settings.max_seq_length,
            settings.truncation,
        )
        index: dict[Any, int] = {label: number for number, label in enumerate(self.labels)}
        return [
            [Feature({"input_ids": ids}, {} if e.label is None else {"labels": index[e.label]})]
            for e, ids in zip(examples, rows, strict=True)
        ]

    def terms(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        return classification_terms(forward, batch)

    # --- predictions and figures -----------------------------------------------------------------

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[np.ndarray]:
        logits = model(**inputs_of(batch), first_only=True).logits
        return list(logits.float().softmax(-1).cpu().numpy())

    def decode(
        self,
        examples: Sequence[LabelledText],
        features: list[list[Feature]],
        outputs: list[list[np.ndarray]],
    ) -> list[np.ndarray]:
        return [windows[0] for windows in outputs]

    def _indices(self, examples: Sequence[LabelledText]) -> np.ndarray:
        """(examples,) class numbers.

        Raises:
            InputError: a label that is none of the classes.
        """
        index: dict[Any, int] = {label: number for number, label in enumerate(self.labels)}
        unknown = sorted({str(e.label) for e in examples} - index.keys())
        if unknown:
            raise InputError(
                f"the model has the classes {', '.join(self.labels)}, the data {', '.join(unknown)}"
            )
        return np.array([index[e.label] for e in examples], np.int64)

    def _matrix(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> np.ndarray:
        chosen = np.stack(predictions).argmax(-1)
        return confusion_matrix(self._indices(examples), chosen, len(self.labels))

    def score(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> dict[str, float]:
        return score(np.stack(predictions), self._indices(examples))

    def details(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        return {"confusion_matrix": self._matrix(examples, predictions).tolist()}

    def table(self, results: dict[str, Any]) -> str:
        return confusion_text(self.labels, results["confusion_matrix"])

    def baseline(
        self, train: Sequence[LabelledText], test: Sequence[LabelledText]
    ) -> dict[str, float]:
        figures = tfidf_baseline(train, test)
        return {"tfidf_accuracy": figures["accuracy"], "tfidf_f1": figures["f1"]}

    def row(self, example: LabelledText, prediction: np.ndarray) -> dict[str, Any]:
        """`score` is the chosen class's share."""
        return {
            "id": example.id,
            "text": example.text,
            "label": example.label,
            "prediction": self.labels[int(prediction.argmax())],
            "score": round(float(prediction.max()), 6),
        }

    def errors(
        self, examples: Sequence[LabelledText], predictions: Sequence[np.ndarray]
    ) -> list[str]:
        """The wrong answers that the model was surest of."""
        rows = [self.row(e, p) for e, p in zip(examples, predictions, strict=True)]
        wrong = [row for row in rows if row["label"] != row["prediction"]]
        wrong.sort(key=lambda row: -row["score"])
        return [
            f"{row['id']}: {row['label']}, taken for {row['prediction']} ({row['score']:.0%})\n"
            f"{row['text']}"
            for row in wrong[:_LISTED_ERRORS]
        ]

    # --- use -------------------------------------------------------------------------------------

    def example_of(self, given: Any, number: int) -> LabelledText:
        if not isinstance(given, str):
            raise InputError(f"text {number} is {type(given).__name__}; expected a string")
        return LabelledText(str(number), given, None)

    def answer(self, example: LabelledText, prediction: np.ndarray) -> Prediction:
        shares = {n: float(share) for n, share in zip(self.labels, prediction, strict=True)}
        best = self.labels[int(prediction.argmax())]
        return Prediction(example.text, best, shares[best], shares)

    def predictor(self, model: nn.Module, runtime: Runtime) -> ClassificationPredictor:
        return ClassificationPredictor(model, self, runtime)


class ClassificationPredictor(Predictor):
    """A fine-tuned classifier; see `Predictor`."""

    task: ClassificationTask

    @property
    def labels(self) -> list[str]:
        """Class names in the order of their indices."""
        return list(self.task.labels)

    def probabilities(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Class probabilities of each text, (texts, C), in their order; cleaned as in training."""
        examples = self.examples(texts)
        return np.stack(self.task.predict(self.model, examples, batch_size, self.runtime))


# --- encoding -------------------------------------------------------------------------------------


def encode(
    texts: list[str], tokenizer: WordPiece, max_seq_length: int, truncation: str
) -> list[np.ndarray]:
    """[CLS] text [SEP] of each text, at most `max_seq_length` ids.

    Args:
        truncation: "head" keeps the beginning; "head+tail" keeps a quarter from the beginning and
            the rest from the end (Sun et al. 2019, section 5.3.1, keep 128 of 510 in front).
    """
    room = max_seq_length - 2
    head = room if truncation == "head" else room // 4
    encoded = []
    for start in range(0, len(texts), 1000):
        for ids in tokenizer.ids(texts[start : start + 1000]):
            if len(ids) > room:
                ids = ids[:head] + ids[len(ids) - (room - head) :]
            encoded.append(np.array([tokenizer.cls_id, *ids, tokenizer.sep_id], np.int64))
    return encoded


# --- loss and figures -----------------------------------------------------------------------------

_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that the backbone takes."""
    return {name: batch[name] for name in _INPUTS if name in batch}


def classification_terms(model: Callable[..., Any], batch: Batch) -> dict[str, Term]:
    """The one loss term of the task on a batch with input_ids, attention_mask and labels."""
    out = model(**inputs_of(batch), first_only=True)  # the classifier reads no other token
    hits = (out.logits.argmax(-1) == batch["labels"]).sum()
    return {"task": Term(*classification_loss(out.logits, batch["labels"]), hits)}


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1, Matthews and mean loss (nats) of class probabilities."""
    num_labels = probabilities.shape[1]
    matrix = confusion_matrix(labels, probabilities.argmax(-1), num_labels)
    own = probabilities[np.arange(len(labels)), labels]
    return classification_figures(matrix) | {"loss": float(-np.log(np.maximum(own, 1e-30)).mean())}


def confusion_text(labels: Sequence[str], matrix: list[list[int]]) -> str:
    """The confusion matrix as a small table: rows true, columns predicted."""
    width = max(9, *(len(label) + 2 for label in labels))
    head = f"{'true':<{width}}" + "".join(f"{label:>{width}}" for label in labels)
    rows = [
        f"{label:<{width}}" + "".join(f"{count:>{width},}" for count in row)
        for label, row in zip(labels, matrix, strict=True)
    ]
    return "\n".join([f"confusion (columns: predicted)\n{head}", *rows])


def tfidf_baseline(train: Sequence[LabelledText], test: Sequence[LabelledText]) -> dict[str, float]:
    """Accuracy and macro F1 of TF-IDF + logistic regression, the line a model has to pass.

    Words and word pairs, sublinear counts, scikit-learn's default strength.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError(
            "the TF-IDF baseline needs scikit-learn: pip install 'minibert[tasks]'"
        ) from None
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(train) >= 100 else 1
    )
    names = sorted({str(e.label) for e in (*train, *test)})
    index = {name: number for number, name in enumerate(names)}
    model = LogisticRegression(max_iter=1000)
    known = [index[str(e.label)] for e in train]
    model.fit(vectorizer.fit_transform([e.text for e in train]), known)
    predictions = model.predict(vectorizer.transform([e.text for e in test]))
    labels = np.array([index[str(e.label)] for e in test])
    figures = classification_figures(confusion_matrix(labels, predictions, len(names)))
    return {"accuracy": figures["accuracy"], "f1": figures["f1"]}
