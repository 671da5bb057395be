"""Tagging of words, such as names of people and places (Devlin et al. 2019, section 5.3).

In: sentences (`tagged.py`), encoded by `word_windows.py`. Out: features for
`BertForTokenClassification`, tags and entities, and their figures (`entities.py`).

Shapes: T tokens of a window, W words of a sentence, C tags.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from minibert.config import BertConfig
from minibert.errors import InputError, TextError
from minibert.files import whole_characters
from minibert.losses import IGNORE_INDEX
from minibert.runs import log_line
from minibert.runtime import Runtime
from minibert.settings import FinetuneSettings
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.batches import Feature, inputs_of
from minibert.tasks.classes import class_weights, per_class_text
from minibert.tasks.entities import (
    Span,
    entity_errors,
    entity_figures,
    error_lines,
    figures_by_type,
    reported_figures,
    scorer_of,
    spans_of,
    tags_of,
)
from minibert.tasks.tagged import (
    WORD_KEYS,
    Sentence,
    find_split,
    is_number,
    joined_sentence,
    plain_sentence,
    read_tagged,
    tag_set,
)
from minibert.tasks.word_windows import decode, encode_words, label_row, span_scores, stitch
from minibert.token_heads import BertForTokenClassification, tagging_loss
from minibert.tokenizer import WordPiece
from minibert.train import Batch, Term


class Tagged(NamedTuple):
    """What a model says of a sentence: BIO tags, one a word, and each entity's score in 0..1."""

    tags: list[str]
    spans: dict[Span, float]


@dataclass(frozen=True)
class Entity:
    """An entity of a text; `text[start:end]` of the whole is what it says."""

    type: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class TaggedText:
    """The answer to a text: its entities in order, and its words with their tags."""

    text: str
    entities: list[Entity]
    tokens: list[str]
    prediction: list[str]


class TaggingTask(Task[Sentence, Tagged]):
    """BIO tags for each word; long sentences are read in windows and put together again."""

    names = ("conll2003", "tagging")
    model_class = BertForTokenClassification
    metric = "f1"
    selectable: tuple[str, ...] = ("f1", "precision", "recall", "accuracy")
    uses = ("text_column", "label_column", "class_weights", "label_smoothing")

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        if settings.truncation not in ("head", "windows"):
            raise InputError(
                f"--truncation {settings.truncation} has no use in {self.name}: every word gets a "
                f"tag, of long sentences in windows"
            )
        if self.name != self.names[-1]:
            self.places, self.sample = (f"data/downloads/{self.name}",), self.name
        self.tags: list[str] = []
        self.weights: Tensor | None = None

    # --- data and tags ---------------------------------------------------------------------------

    def texts(self, example: Sentence) -> tuple[str, ...]:
        return (example.text or " ".join(example.words),)

    def read(self, source: Source) -> Splits[Sentence]:
        paths = self._paths(source)
        if "train" not in paths:
            raise InputError(
                f"{source.path} holds no file to train on, such as train.txt, train.conll or "
                f"train.jsonl"
            )
        splits = self._splits(source, paths)
        tag_set(splits.train)  # said before a dev split without entities is
        return splits

    def read_to_score(self, source: Source) -> Splits[Sentence]:
        # What is to be scored is no training data, though a file's name says nothing of that.
        paths = self._paths(source) if source.path.is_dir() else {"test": source.path}
        return self._splits(source, paths) if paths else self.read(source)

    def _paths(self, source: Source) -> dict[str, Path]:
        """Split -> file."""
        settings = self.settings
        paths = {"train": source.path}
        if source.path.is_dir():
            found = {split: find_split(source.path, split) for split in ("train", "dev", "test")}
            paths = {split: path for split, path in found.items() if path is not None}
        for split, given in (("dev", settings.dev_data), ("test", settings.test_data)):
            if given is not None:
                paths[split] = Path(given)
        return paths

    def _splits(self, source: Source, paths: dict[str, Path]) -> Splits[Sentence]:
        """The sentences of these files, without any to train on where none is named."""
        read, notes = read_tagged(paths, self.settings.text_column, self.settings.label_column)
        size = {
            split: f"{len(rows):,} {split} sentences with "
            f"{sum(len(spans_of(e.tags)) for e in rows):,} entities"
            for split, rows in read.items()
        }
        notes = [", ".join(size.values()), *notes]
        ids = Counter(e.id for rows in read.values() for e in rows)
        twice = [name for name, count in ids.items() if count > 1]
        if twice:
            notes.append(f"{len(twice):,} ids that come more than once ({', '.join(twice[:3])})")
        train = read.get("train", [])
        return Splits(train, read.get("test"), str(source.path), tuple(notes), read.get("dev"))

    def same(self, example: Sentence) -> str:
        return " ".join(example.words).lower()

    def check_parts(self, dev: Sequence[Sentence], test: Sequence[Sentence] | None) -> None:
        """Raises InputError where dev would choose weights by a figure that is 0 whatever they are.

        Of a model that is finished, dev chooses nothing more.
        """
        select = self.settings.select or self.metric
        chooses = not self.tags and select in ("f1", "precision", "recall")
        if chooses and not any(spans_of(e.tags) for e in dev):
            raise InputError(
                f"{len(dev)} sentence(s) in dev, none with an entity: {select} would be 0 for all "
                f"weights; raise --dev-fraction or name --dev-data"
            )

    def learn(self, train: list[Sentence], tokenizer: WordPiece) -> None:
        super().learn(train, tokenizer)
        self.tags = tag_set(train)
        counts = Counter(tag for e in train for tag in e.tags)
        self.weights = class_weights(self.settings.class_weights, self.tags, counts)

    def restore(self, folder: Path, config: BertConfig, tokenizer: WordPiece) -> None:
        super().restore(folder, config, tokenizer)
        named = config.id2label or {}
        self.tags = [named.get(i, f"LABEL_{i}") for i in range(config.num_labels)]
        strange = [tag for tag in self.tags if tag != "O" and tag[:2] not in ("B-", "I-")]
        if strange or "O" not in self.tags:
            raise InputError(
                f"{folder}: id2label in config.json names {', '.join(self.tags[:6])}; expected "
                f"the tags O, B-X and I-X, of BIO or IOB1"
            )

    def config_fields(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.tags)), "problem_type": None}

    # --- features and loss -----------------------------------------------------------------------

    def encode(self, examples: Sequence[Sentence]) -> list[list[Feature]]:
        self._check_types(examples)
        numbers = {tag: number for number, tag in enumerate(self.tags)}
        bounds = [(e, first, last) for e in examples for first, last in _sentences(e)]
        windows = encode_words(
            [e.words[first:last] for e, first, last in bounds],
            self.tokenizer,
            self.settings.max_seq_length,
        )
        found: dict[int, list[Feature]] = {}
        for window in windows:
            example, first, last = bounds[window.sentence]
            labels = {}
            if example.tags:
                labels["labels"] = label_row(window, example.tags[first:last], numbers)
            feature = Feature({"input_ids": window.input_ids}, labels, window)
            found.setdefault(window.sentence, []).append(feature)
        numbered = itertools.count()
        return [[f for _ in _sentences(e) for f in found[next(numbered)]] for e in examples]

    def _check_types(self, examples: Sequence[Sentence]) -> None:
        """Tells of entities of types that the model does not have, which count as missed.

        Raises:
            InputError: the data has entities, but none of a type that is known.
        """
        types = Counter(span.type for e in examples for span in spans_of(e.tags))
        known = {tag[2:] for tag in self.tags if tag != "O"}
        if types and not types.keys() & known:
            raise InputError(
                f"the model has the types {', '.join(sorted(known))}, the data "
                f"{', '.join(sorted(types))}"
            )
        if strange := sorted(types.keys() - known):
            told = ", ".join(f"{types[kind]:,} of {kind}" for kind in strange)
            log_line("types", f"entities that the model cannot find, counted as missed: {told}")

    def terms(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        logits, labels = forward(**inputs_of(batch)).logits, batch["labels"]
        loss, count = tagging_loss(logits, labels, self.weights, self.settings.label_smoothing)
        hits = ((logits.argmax(-1) == labels) & (labels != IGNORE_INDEX)).sum()
        return {"task": Term(loss, count, hits)}

    # --- predictions and figures -----------------------------------------------------------------

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[np.ndarray]:
        logits = model(**inputs_of(batch)).logits.float()  # (B, T, C)
        return list(logits.log_softmax(-1).cpu().numpy())

    def decode(
        self,
        examples: Sequence[Sentence],
        features: list[list[Feature]],
        outputs: list[list[np.ndarray]],
    ) -> list[Tagged]:
        return [
            self._decode_one([f.origin for f in own], rows)
            for own, rows in zip(features, outputs, strict=True)
        ]

    def _decode_one(self, windows: list[Any], outputs: list[np.ndarray]) -> Tagged:
        if not windows:
            return Tagged([], {})
        scores = stitch(windows, outputs)  # (W, C) of each sentence
        tags = [tag for rows in scores for tag in decode(rows, self.tags)]
        return Tagged(tags, span_scores(np.concatenate(scores), self.tags, tags))

    def score(
        self, examples: Sequence[Sentence], predictions: Sequence[Tagged]
    ) -> dict[str, float]:
        """seqeval's precision, recall and F1 of entities, and token accuracy; 0..1."""
        return reported_figures([e.tags for e in examples], [p.tags for p in predictions])

    def dev_figures(
        self,
        model: Any,
        examples: Sequence[Sentence],
        features: list[list[Feature]],
        batch_size: int,
        runtime: Runtime,
    ) -> dict[str, float]:
        """The figures of `score`, counted sooner."""
        found = self.predict_encoded(model, examples, features, batch_size, runtime)
        return entity_figures([e.tags for e in examples], [p.tags for p in found])

    def details(
        self, examples: Sequence[Sentence], predictions: Sequence[Tagged]
    ) -> dict[str, Any]:
        gold, found = [e.tags for e in examples], [p.tags for p in predictions]
        return {"per_type": figures_by_type(gold, found), "scorer": scorer_of(gold)}

    def table(self, results: dict[str, Any]) -> str:
        return per_class_text(results["per_type"], "type") if results["per_type"] else ""

    def baseline(
        self, train: Sequence[Sentence], dev: Sequence[Sentence], test: Sequence[Sentence]
    ) -> dict[str, float]:
        """What looking entities of train up reaches."""
        lexicon = Lexicon(train)
        figures = entity_figures([e.tags for e in test], [lexicon.tags(e.words) for e in test])
        return {f"lexicon_{key}": figures[key] for key in ("precision", "recall", "f1")}

    def row(self, example: Sentence, prediction: Tagged) -> dict[str, Any]:
        """`entities` stand at tokens, from first_token up to but without end_token.

        Their start and end count characters of the tokens with a space between them.
        """
        places = joined_sentence(example.words, example.id).offsets
        entities = [
            {
                "type": kind,
                "text": " ".join(example.words[first:end]),
                "first_token": first,
                "end_token": end,
                "start": places[first][0],
                "end": places[end - 1][1],
                "score": round(score, 6),
            }
            for (kind, first, end), score in prediction.spans.items()
        ]
        return {
            "id": example.id,
            "tokens": example.words,
            "labels": example.tags,
            "prediction": prediction.tags,
            "entities": entities,
        }

    def errors(self, examples: Sequence[Sentence], predictions: Sequence[Tagged]) -> list[str]:
        """How many of each kind, what is mistaken most, then cases, the surest first."""
        errors = entity_errors(
            [e.tags for e in examples],
            [p.tags for p in predictions],
            [p.spans for p in predictions],
        )
        return ["\n".join(error_lines(errors, [e.words for e in examples]))]

    # --- use -------------------------------------------------------------------------------------

    def parse_line(self, line: str) -> Any:
        """A text, or JSON: a list of words, or an object with "text" or "tokens"."""
        if line.lstrip()[:1] not in ("[", "{"):
            return line
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return line  # "[Reuters] Oslo" is a text like another
        is_note = isinstance(found, list) and not all(isinstance(word, str) for word in found)
        return line if is_note else found  # and so is "[1]"

    def table_columns(
        self, text: str | None, text_pair: str | None, names: Collection[str]
    ) -> dict[str, str]:
        """A column of texts or of lists of words; a column that was learnt by its number is none.

        By default "tokens" or "words", as of JSONL to train on, else "text".
        """
        super().table_columns(text, text_pair, names)  # refuses a second text
        learnt = self.settings.text_column
        usual = next((name for name in WORD_KEYS if name in names), "text")
        return {"tokens": text or (learnt if learnt and not is_number(learnt) else usual)}

    def example_of(self, given: Any, number: int) -> Sentence:
        words = given
        if isinstance(given, Mapping) and given.get("text_pair") is None:
            words = next((given[key] for key in (*WORD_KEYS, "text") if key in given), None)
        if isinstance(words, str):
            return plain_sentence(whole_characters(words), str(number))
        if isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words):
            return joined_sentence([whole_characters(word) for word in words], str(number))
        raise TextError(
            number, f"is {given!r:.60}; expected a string, or a list of words (its tokens)"
        )

    def answer(self, example: Sentence, prediction: Tagged) -> TaggedText:
        text = example.text or ""
        entities = []
        for (kind, first, last), score in prediction.spans.items():
            start, end = example.offsets[first][0], example.offsets[last - 1][1]
            entities.append(Entity(kind, text[start:end], start, end, score))
        return TaggedText(text, entities, example.words, prediction.tags)


def _sentences(example: Sentence) -> list[tuple[int, int]]:
    """[first, last) words of each sentence of an example that has any."""
    edges = [0, *example.breaks, len(example.words)]
    return [(first, last) for first, last in itertools.pairwise(edges) if first < last]


# --- baseline -------------------------------------------------------------------------------------


class Lexicon:
    """The line a model has to pass: entities of train, looked up, the longest first.

    As the baseline of the CoNLL-2003 shared task (Tjong Kim Sang & De Meulder 2003) it knows only
    what it saw. A name of several types has its most frequent one, and words that are less often
    that name than not are none.
    """

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        seen: dict[tuple[str, ...], Counter[str]] = {}
        for sentence in sentences:
            for kind, start, end in spans_of(sentence.tags):
                seen.setdefault(tuple(sentence.words[start:end]), Counter())[kind] += 1
        self.longest = max(map(len, seen), default=0)
        outside: Counter[tuple[str, ...]] = Counter()
        for sentence in sentences:
            for i, (word, tag) in enumerate(zip(sentence.words, sentence.tags, strict=True)):
                if tag == "O" and (word,) in seen:
                    outside[(word,)] += 1
                elif tag == "O":  # longer names are sought where they begin outside of any
                    for size in range(2, self.longest + 1):
                        key = tuple(sentence.words[i : i + size])
                        if key in seen and len(key) == size:
                            outside[key] += 1
        self.types = {
            key: min(counts, key=lambda kind: (-counts[kind], kind))
            for key, counts in sorted(seen.items())
            if counts.total() > outside[key]
        }

    def tags(self, words: Sequence[str]) -> list[str]:
        """BIO tags of a sentence."""
        found, at = [], 0
        while at < len(words):
            for size in range(min(self.longest, len(words) - at), 0, -1):
                kind = self.types.get(tuple(words[at : at + size]))
                if kind is not None:
                    found.append(Span(kind, at, at + size))
                    break
            else:
                size = 1
            at += size
        return tags_of(found, len(words))
