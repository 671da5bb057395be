"""Similarity of two texts: encoding, loss, figures, a baseline, and vectors of single texts.

In: scored pairs (`scored.py`), encoded by `texts.py`. A cross-encoder reads both texts together and
gives one number; a bi-encoder makes a vector of each, and their cosine is the number. Both are
fitted by squared error to scores brought to 0..1. A loss of ranks within a batch would be no sum
over examples: micro-batches and processes would change it.

Shapes: B batch (pairs), T tokens, D hidden_size.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.errors import InputError, MissingExtraError, TextError
from minibert.files import read_json, whole_characters, write_json
from minibert.heads import BertForSequenceClassification
from minibert.losses import squared_error
from minibert.metrics import pearson, spearman
from minibert.runtime import Runtime
from minibert.sentence_head import BertForSentenceEmbedding
from minibert.settings import BOTH_ORDERS, FinetuneSettings
from minibert.tasks.base import Predictor, Source, Splits, Task
from minibert.tasks.batches import Feature, infer, inputs_of, pad
from minibert.tasks.classical import TFIDF_WORD
from minibert.tasks.classification import is_regression
from minibert.tasks.labelled import clean_text
from minibert.tasks.scored import (
    Scale,
    ScoredPair,
    read_own_pairs,
    read_own_test_pairs,
    read_stsb,
    same_pair,
    scale_of,
)
from minibert.tasks.texts import encode, say_lengths
from minibert.tokenizer import WordPiece
from minibert.train import Batch, Term

_LISTED_ERRORS = 50
_HIT = 0.1  # of the range: so near counts as a hit in the log
_SCALE_FILE = "similarity.json"
_EMBEDDED_AT_ONCE = 1024  # texts that are sorted by length together


@dataclass(frozen=True)
class SimilarityPrediction:
    """How alike two texts are, on the scale of the data that the model learnt from.

    prediction and score are the same number.
    """

    text: str
    text_pair: str
    prediction: float
    score: float


class SimilarityTask(Task[ScoredPair, float]):
    """A number for how alike two texts are; a prediction is a score as the data has them.

    It may lie a little outside the range of the scores in train. Of a pair that is asked in both
    orders it is the mean over them, as it is over windows.
    """

    names = ("stsb", "similarity")
    uses = ("text_column", "text_pair_column", "label_column", "mode", "pair_order")
    pairs = True
    model_class = BertForSequenceClassification
    metric, selectable = "spearman", ("spearman", "pearson")
    epochs = 4.0

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        self.is_public = self.name == "stsb"
        self.is_bi = settings.mode == "bi-encoder"
        self.both_orders = settings.pair_order == BOTH_ORDERS
        self.scale: Scale | None = None
        if self.is_bi:
            self.model_class = BertForSentenceEmbedding  # type: ignore[misc,assignment]
            self.head = ()  # type: ignore[misc]
        if self.is_public:
            self.places = tuple(
                f"data/downloads/{place}" for place in ("STS-B", "stsbenchmark", "stsb")
            )
            self.sample = "stsb"
        self._check_settings()

    @classmethod
    def claims(cls, config: BertConfig) -> dict[str, Any] | None:
        if "BertModel" in config.architectures:
            return {"mode": "bi-encoder"}
        is_head = cls.model_class.__name__ in config.architectures
        return {"mode": "cross-encoder"} if is_head and is_regression(config) else None

    # --- data ------------------------------------------------------------------------------------

    def read(self, source: Source) -> Splits[ScoredPair]:
        s, is_own = self.settings, self._is_own(source)
        if not is_own and (s.dev_data or s.test_data):
            raise InputError(
                "--dev-data and --test-data go with a table of your own; stsb has its own splits"
            )
        if is_own and s.data is None:
            raise InputError("--text-column and the like go with --data, a table of your own")
        splits = read_own_pairs(s) if is_own else read_stsb(source.path)
        if self.scale is None:  # a model is to be trained
            self.scale = scale_of(splits.train)
            if splits.dev is None and round(s.dev_fraction * len(splits.train)) < 2:
                raise InputError(
                    f"{splits.source}: {len(splits.train)} pairs leave fewer than 2 for dev, too "
                    f"few for a correlation; raise --dev-fraction or name --dev-data"
                )
        said = f"scores from {self.scale.low:g} to {self.scale.high:g} are 0 to 1 in the loss"
        return Splits(splits.train, splits.test, splits.source, (*splits.notes, said), splits.dev)

    def read_to_score(self, source: Source) -> Splits[ScoredPair]:
        if not self._is_own(source):
            return self.read(source)
        return read_own_test_pairs(self.settings, self._scale)

    def _is_own(self, source: Source) -> bool:
        """Whether the data is a table of the user's own, by named columns, the name, or a file."""
        s = self.settings
        columns = any((s.text_column, s.text_pair_column, s.label_column))
        return columns or not (self.is_public and source.path.is_dir())

    def _check_settings(self) -> None:
        s = self.settings
        if self.is_bi and s.truncation == "windows":
            raise InputError(
                "--truncation windows is for --mode cross-encoder; a bi-encoder has one vector a "
                "text: head, tail or head+tail"
            )
        if self.is_bi and self.both_orders:
            raise InputError(
                f"--pair-order {BOTH_ORDERS} is for --mode cross-encoder; the vectors of a "
                f"bi-encoder do not know which text is first"
            )

    def same(self, example: ScoredPair) -> str:
        return same_pair(example)

    def check_parts(self, dev: Sequence[ScoredPair], test: Sequence[ScoredPair] | None) -> None:
        for name, part in (("dev", dev), ("test", test or ())):
            scores = {e.score for e in part}
            if len(scores) == 1:
                more = "; raise --dev-fraction or name --dev-data" if name == "dev" else ""
                raise InputError(
                    f"{len(part)} pair(s) in {name}, all with the score {scores.pop():g}; a "
                    f"correlation needs two different ones{more}"
                )

    # --- model -----------------------------------------------------------------------------------

    @property
    def _scale(self) -> Scale:
        return self.scale or Scale(0.0, 1.0)  # of a folder that no run made: as the model says

    def restore(self, folder: Path, config: BertConfig, tokenizer: WordPiece) -> None:
        super().restore(folder, config, tokenizer)
        if not self.is_bi and config.num_labels > 1:
            raise InputError(f"{folder} says {config.num_labels} numbers; a score is one")
        if (folder / _SCALE_FILE).is_file():
            held = read_json(folder / _SCALE_FILE, "the range of the scores")
            try:
                self.scale = Scale(float(held["low"]), float(held["high"]))
                self.both_orders = bool(held.get("both_orders", self.both_orders))
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{folder / _SCALE_FILE} is damaged; expected the numbers low and high"
                ) from None

    def save(self, folder: Path) -> None:
        order = {"both_orders": True} if self.both_orders else {}
        write_json(folder / _SCALE_FILE, {**self._scale._asdict(), **order})

    def config_fields(self) -> dict[str, Any]:
        if self.is_bi:
            return {"id2label": None, "problem_type": None}
        return {"id2label": {0: "score"}, "problem_type": "regression"}

    # --- features and loss -----------------------------------------------------------------------

    def encode(self, examples: Sequence[ScoredPair]) -> list[list[Feature]]:
        return self._encoded(examples, self.both_orders)

    def encode_to_learn(self, examples: Sequence[ScoredPair]) -> list[list[Feature]]:
        """As `encode`, pairs as they stand; what becomes of long ones is printed."""
        s, found = self.settings, self._encoded(examples, both_orders=False)
        pairs = [(clean_text(e.text), clean_text(e.text_pair)) for e in examples]
        texts: list[tuple[str, str | None]] = [*pairs]
        num_inputs = sum(map(len, found))
        if self.is_bi:  # which reads each alone
            texts = [(text, None) for pair in pairs for text in pair]
            num_inputs = len(texts)
        say_lengths(
            texts,
            num_inputs,
            self.tokenizer,
            s.max_seq_length,
            s.truncation,
            has_windows=not self.is_bi,
        )
        return found

    def _encoded(self, examples: Sequence[ScoredPair], both_orders: bool) -> list[list[Feature]]:
        labels = [
            {} if e.score is None else {"labels": self._scale.inside(e.score)} for e in examples
        ]
        if self.is_bi:
            firsts = self.encode_texts([e.text for e in examples])
            seconds = self.encode_texts([e.text_pair for e in examples])
            return [
                [_both(first, second, label)]
                for first, second, label in zip(firsts, seconds, labels, strict=True)
            ]
        rows = encode(
            [(clean_text(e.text), clean_text(e.text_pair)) for e in examples],
            self.tokenizer,
            self.settings.max_seq_length,
            self.settings.truncation,
            both_orders,
        )
        return [[Feature(w, label) for w in ws] for ws, label in zip(rows, labels, strict=True)]

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The (T,) ids of each single text."""
        s = self.settings
        cleaned = [(clean_text(text), None) for text in texts]
        rows = encode(cleaned, self.tokenizer, s.max_seq_length, s.truncation)
        return [windows[0]["input_ids"] for windows in rows]

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """As `pad`; of a bi-encoder (2B, T), all first texts and then all second ones."""
        if not self.is_bi:
            return super().collate(features)
        firsts = [Feature({"input_ids": f.inputs["input_ids"][: f.origin]}, {}) for f in features]
        seconds = [Feature({"input_ids": f.inputs["input_ids"][f.origin :]}, {}) for f in features]
        batch = pad([*firsts, *seconds], self.tokenizer.pad_id)
        if features[0].labels:
            batch["labels"] = torch.tensor([f.labels["labels"] for f in features])
        return batch

    def count(self, features: Sequence[Feature]) -> dict[str, int]:
        return {"task": len(features)}

    def similarities(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """(B,) float32: the one number of each pair, 0..1 where it was learnt well."""
        if not self.is_bi:
            logits: Tensor = forward(**inputs_of(batch), first_only=True).logits
            return logits[:, 0].float()
        first, second = forward(**inputs_of(batch)).embeddings.chunk(2)  # (B, D) each
        return F.cosine_similarity(first, second)

    def terms(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        found, labels = self.similarities(forward, batch), batch["labels"]
        hits = ((found.detach() - labels).abs() < _HIT).sum()
        return {"task": Term(*squared_error(found, labels), hits)}

    # --- predictions and figures -----------------------------------------------------------------

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[float]:
        found: list[float] = self.similarities(model, batch).tolist()
        return found

    def decode(
        self,
        examples: Sequence[ScoredPair],
        features: list[list[Feature]],
        outputs: list[list[float]],
    ) -> list[float]:
        # Rounded here, so that the figures are those of predictions.jsonl to the last digit.
        scale = self._scale
        return [round(scale.outside(float(np.mean(ws))), scale.decimals) for ws in outputs]

    def score(
        self, examples: Sequence[ScoredPair], predictions: Sequence[float]
    ) -> dict[str, float]:
        """Both correlations, and the mean squared error on the scale of 0 to 1 as `loss`."""
        scores, found = _scores(examples), np.array(predictions)
        error = (found - scores) / (self._scale.high - self._scale.low)
        return {
            "pearson": pearson(found, scores),
            "spearman": spearman(found, scores),
            "loss": float((error**2).mean()),
        }

    def baseline(
        self, train: Sequence[ScoredPair], dev: Sequence[ScoredPair], test: Sequence[ScoredPair]
    ) -> dict[str, float]:
        found, scores = tfidf_cosines(train, test), _scores(test)
        return {
            "tfidf_pearson": pearson(found, scores),
            "tfidf_spearman": spearman(found, scores),
        }

    def row(self, example: ScoredPair, prediction: float) -> dict[str, Any]:
        return {
            "id": example.id,
            "text": example.text,
            "text_pair": example.text_pair,
            "label": example.score,
            "prediction": prediction,
            "score": prediction,
        }

    def errors(self, examples: Sequence[ScoredPair], predictions: Sequence[float]) -> list[str]:
        """The pairs whose score is farthest from what was predicted."""
        scores = _scores(examples)
        order = np.argsort(-np.abs(scores - np.array(predictions)), kind="stable")
        return [
            f"{examples[i].id}: {scores[i]:g}, taken for {predictions[i]:.3g}\n"
            f"{examples[i].text}\n{examples[i].text_pair}"
            for i in order[:_LISTED_ERRORS]
        ]

    # --- use -------------------------------------------------------------------------------------

    def parse_line(self, line: str) -> Any:
        """Two texts with a tab between, or a JSON list or object of them."""
        if line.lstrip()[:1] in ("[", "{"):
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(line)
        return line.split("\t") if "\t" in line else line

    def example_of(self, given: Any, number: int) -> ScoredPair:
        texts = given
        if isinstance(given, Mapping):
            texts = [given[key] for key in ("text", "text_pair") if key in given]
        fits = isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts)
        if not fits or len(texts) != 2:
            raise TextError(
                number,
                f"is {given!r:.60}; expected two texts, as a tab between them or a list of two",
            )
        first, second = map(whole_characters, texts)
        return ScoredPair(str(number), first, second, None)

    def answer(self, example: ScoredPair, prediction: float) -> SimilarityPrediction:
        return SimilarityPrediction(example.text, example.text_pair, prediction, prediction)

    def predictor(self, model: nn.Module, runtime: Runtime) -> SimilarityPredictor:
        return SimilarityPredictor(model, self, runtime)


def _scores(examples: Sequence[ScoredPair]) -> np.ndarray:
    return np.array([e.score for e in examples], np.float64)


def _both(first: np.ndarray, second: np.ndarray, label: dict[str, float]) -> Feature:
    """Two texts' ids one after the other; origin is where the second one begins."""
    ids = {"input_ids": np.concatenate([first, second])}
    return Feature(ids, label, len(first), (len(first), len(second)))


class _Embedding:
    """What `infer` needs to make vectors of texts."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        return pad(features, self.pad_id)

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[np.ndarray]:
        return list(model(**inputs_of(batch)).embeddings.cpu().numpy())


class SimilarityPredictor(Predictor):
    """A model of similarity; a bi-encoder makes vectors of texts, too.

    Example:
        model = minibert.load("runs/stsb")
        model.predict([("A dog barks.", "A hound is barking.")])[0].score   # 4.1
        minibert.load("runs/bi").embed(["A dog barks."]).shape   # (1, 256)
    """

    task: SimilarityTask

    @property
    def width(self) -> int:
        """D, the length of a vector."""
        width: int = self.model.config.hidden_size
        return width

    def embed(
        self, texts: str | Sequence[str], batch_size: int = 32, normalize: bool = True
    ) -> np.ndarray:
        """A vector for each text, (n, D) float32: the mean of its tokens' vectors.

        Args:
            texts: cut as in training where they are long; equal ones are computed once.
            batch_size: texts per forward.
            normalize: to length 1, so that a product of two vectors is their cosine.

        Raises:
            InputError: the model is a cross-encoder, or a text is no string.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(given, 1):
            if not isinstance(text, str):
                raise TextError(number, f"is {text!r:.60}; expected a string")
        different = list(dict.fromkeys(given))
        vectors = np.zeros((len(different), self.width), np.float32)
        for start, part in self.embed_in_parts(different, batch_size, normalize):
            vectors[start : start + len(part)] = part
        places = {text: number for number, text in enumerate(different)}
        return vectors[[places[text] for text in given]]

    def embed_in_parts(
        self, texts: Sequence[str], batch_size: int = 32, normalize: bool = True
    ) -> Iterator[tuple[int, np.ndarray]]:
        """As `embed`, but no more than some thousand vectors at a time: (which is first, them)."""
        if not self.task.is_bi:
            raise InputError(
                "a cross-encoder has no vector of a single text; fine-tune with --mode bi-encoder"
            )
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, must be above 0")
        embedding = _Embedding(self.tokenizer.pad_id)
        for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
            ids = self.task.encode_texts(texts[start : start + _EMBEDDED_AT_ONCE])
            features = [Feature({"input_ids": row}, {}) for row in ids]
            rows = np.stack(infer(embedding, self.model, features, batch_size, self.runtime))
            if normalize:
                rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            yield start, rows


def tfidf_cosines(train: Sequence[ScoredPair], test: Sequence[ScoredPair]) -> np.ndarray:
    """The (test,) cosines of the pairs' TF-IDF vectors, weighted by the texts of train.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise MissingExtraError(
            "the TF-IDF baseline needs scikit-learn: pip install 'minibert[tasks]'"
        ) from None
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=TFIDF_WORD)
    vectorizer.fit([text for e in train for text in (e.text, e.text_pair)])
    first = vectorizer.transform([e.text for e in test])
    second = vectorizer.transform([e.text_pair for e in test])
    cosines: np.ndarray = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    return cosines
