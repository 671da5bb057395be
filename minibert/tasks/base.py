"""The protocol of a task, all that fine-tuning, evaluation and prediction know of one.

A family of tasks is one file of this package with one class below `Task`. Its life, in order:

    task = family(settings)
    splits = task.read(task.find_data())          # examples, each with an id
    task.learn(train, tokenizer)                  # or, of a finished folder, task.restore(...)
    model = task.build(folder, config, ...)       # a head on the backbone
    features = task.encode(examples)              # one or several per example (encode_to_learn)
    task.terms(model, task.collate(batch))        # the loss, in training
    task.settle(model, dev, ...)                  # once the weights are chosen
    outputs = infer(task, model, features, ...)   # one per feature
    predictions = task.decode(examples, ...)      # one per example
    task.score(examples, predictions)             # the figures of its field

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from torch import Tensor, nn

from minibert.cleaning import folded
from minibert.config import BertConfig
from minibert.download import SOURCES
from minibert.errors import InputError
from minibert.fields import flag
from minibert.files import bundled_data
from minibert.flops import training_flops
from minibert.losses import IGNORE_INDEX
from minibert.runtime import Runtime
from minibert.settings import DATA_LAYOUT, FinetuneSettings, says_none
from minibert.tasks.batches import Feature, flat, infer, pad, per_example
from minibert.tokenizer import WordPiece
from minibert.train import Batch, StepData, Term

E = TypeVar("E")  # an example: a NamedTuple, or whatever else has an `id` and a faithful repr
P = TypeVar("P")  # a prediction

# What some families read and others do not.
FAMILY_SETTINGS = frozenset(
    {
        *(*DATA_LAYOUT, "dev_target_data", "test_target_data", "doc_stride"),
        *("class_weights", "label_smoothing", "positive_label", "threshold", "mode"),
        "pair_order",
        *("target_vocab_size", "max_target_length", "decoder_layers", "num_beams"),
        *("length_penalty", "no_repeat_ngram"),
    }
)


class Source(NamedTuple):
    """Where a run's data lies, and the line that says so. is_sample: it is the bundled one."""

    path: Path
    said: str
    is_sample: bool = False


def find_set(folder: Path, name: str, places: Sequence[str]) -> Path | None:
    """A set within a folder of sets: below its own name, or one that it is published under.

    A run folder of such a name is passed over. IMDb may be the archive that it comes as, there or
    below its name; others lie unpacked.
    """
    names = dict.fromkeys((name, *(Path(place).name for place in places)))
    named = (folder / n for n in names if (folder / n).is_dir())
    found = [place for place in named if not (place / "run.json").exists()]
    if name != "imdb":
        return next(iter(found), None)
    for place in found:
        if any((place / n).is_dir() for n in ("train", "aclImdb")):
            return place
    archives = (a for place in (*found, folder) for a in sorted(place.glob("aclImdb*.tar*")))
    return next((a for a in archives if "unsup" not in a.name), None)


@dataclass(frozen=True)
class Splits(Generic[E]):
    """The examples of a task, with what the reader noticed.

    dev, test: None where the data has none, or none with labels.
    """

    train: list[E]
    test: list[E] | None
    source: str
    notes: tuple[str, ...] = ()
    dev: list[E] | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of every example."""
        digest = hashlib.sha256()
        for part in (self.train, self.dev, self.test):
            for example in part or ():
                digest.update(f"{example!r}\n".encode())
            digest.update(b"\0")
        return digest.hexdigest()[:16]


class Task(ABC, Generic[E, P]):
    """A family of tasks. What has no default here, a family must say.

    Attributes:
        names: the tasks that the family serves, as `--task` takes them; the last is its own.
        model_class: a head on the backbone `bert`, with the `from_pretrained` and
            `save_pretrained` of `convert.PretrainedMixin`.
        head: how the names of the head's weights begin; only these may be drawn anew.
        metric: the figure that chooses weights on dev where `--select` names none.
        selectable: the figures that `--select` may name, once the task has learnt; higher is
            better.
        learning_rate, epochs: where the settings name none; see `default_rate`.
        places: where the public set is looked for when there is no `--data`.
        sample: the bundled sample, a name below `data/`.
        unlabelled_part: what the set calls its texts without labels, "" where it has none.
        pairs: an example has a second text.
        is_open_ended: how long predictions take depends on what was learnt; see `rehearse`.
        uses: those of `FAMILY_SETTINGS` that the family reads; to give another is an error.
        is_finished: it was restored with a model, for which dev chooses nothing more.
        labels: the classes of a family that has them, once it has learnt.
        positive_label: of two classes the one that is looked for, if any.
        baselines_version: raise it when `baselines` gives other figures of the same examples: those
            that are kept are then computed anew.
    """

    names: ClassVar[tuple[str, ...]]
    model_class: ClassVar[type[Any]]
    head: ClassVar[tuple[str, ...]] = ("classifier.",)
    metric: str = "accuracy"
    selectable: tuple[str, ...] = ("accuracy",)
    learning_rate: float = 2e-4
    epochs: float = 3.0
    places: tuple[str, ...] = ()
    sample: str | None = None
    unlabelled_part: str = ""
    pairs: bool = False
    is_open_ended: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()
    baselines_version: ClassVar[int] = 1
    is_finished: bool = False
    labels: tuple[str, ...] = ()
    positive_label: str | None = None
    tokenizer: WordPiece

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings, self.name = settings, settings.task
        fields = dataclasses.fields(settings)
        given = ((f, getattr(settings, f.name)) for f in fields)
        self.check_uses(
            f.name for f, value in given if value != f.default and not says_none(f.name, value)
        )

    def check_uses(self, names: Iterable[str]) -> None:
        """Raises InputError where one of these settings is of others' and not of this family."""
        for name in names:
            if name in FAMILY_SETTINGS and name not in self.uses:
                raise InputError(f"{flag(name)} has no use in {self.name}")

    @classmethod
    def claims(cls, config: BertConfig) -> dict[str, Any] | None:
        """Of a folder that no run made: None where its head is not this family's, else settings."""
        return {} if cls.model_class.__name__ in config.architectures else None

    # --- data ------------------------------------------------------------------------------------

    def find_data(self) -> Source:
        """The data to use: what the settings name, else the downloaded set, else the sample.

        Raises:
            InputError: a path that does not exist, or no data at all.
        """
        given = self.settings.data
        if given is not None:
            for flag, path in self._named_paths():
                if not Path(path).exists():
                    raise InputError(f"{flag} {path} does not exist; expected {self.name} data")
            is_sample = self.is_sample(Path(given))
            what = "the bundled sample (small, for trying out)" if is_sample else "the data"
            return Source(Path(given), f"{self.name}, {what} in {given}", is_sample)
        for place in map(Path, self.places):
            if place.exists():
                return Source(place, f"{self.name}, the full set in {place}")
        if self.sample is None or not (bundled_data() / self.sample).exists():
            raise InputError(f"no data for {self.name}; name it with --data")
        said = f"{self.name}, the bundled sample (small, for trying out)"
        if self.name in SOURCES:
            said += f"; `minibert download {self.name}` fetches the full set"
        return Source(bundled_data() / self.sample, said, is_sample=True)

    def is_sample(self, data: Path) -> bool:
        """Whether data is the bundled sample or lies in it, however it came to be named."""
        if self.sample is None:
            return False
        return data.resolve().is_relative_to((bundled_data() / self.sample).resolve())

    def _named_paths(self) -> list[tuple[str, str]]:
        s = self.settings
        named = (("--data", s.data), ("--dev-data", s.dev_data), ("--test-data", s.test_data))
        return [(flag, path) for flag, path in named if path is not None]

    @abstractmethod
    def read(self, source: Source) -> Splits[E]:
        """Reads the data; what was odd about it stands in the notes.

        Raises:
            InputError: data that cannot be used, in one line.
        """

    def read_to_score(self, source: Source) -> Splits[E]:
        """Reads data that is only to be scored, by a model that was restored; by default as `read`.

        A family that is stricter with what is trained on reads a single file as the test part.

        Raises:
            InputError: data that cannot be used, in one line.
        """
        return self.read(source)

    def texts(self, example: E) -> tuple[str, ...]:
        """The texts that the model reads of an example, nothing of its label; for `--adapt`.

        By default its `text` and `text_pair`.
        """
        found = (getattr(example, name, None) for name in ("text", "text_pair"))
        return tuple(text for text in found if isinstance(text, str))

    def unlabelled(self, source: Source) -> Iterator[str]:
        """The texts without labels that lie beside the data, for `--adapt`; by default none."""
        return iter(())

    def has_unlabelled(self, source: Source) -> bool:
        """Whether `unlabelled` has any, found without reading them all."""
        return next(iter(self.unlabelled(source)), None) is not None

    def check_self_training(self) -> None:
        """Raises InputError where a prediction is not one class of one text; by default it is not.

        Such a prediction is (C,) probabilities, and such an example has `text` and `label`.
        """
        raise InputError(
            f"--self-training goes with one class for each text, and {self.name} gives others; "
            f"'none' does without"
        )

    def comparable(self, text: str) -> str:
        """What two texts are compared by: whether the labelled data holds one."""
        return folded(text)

    def word_scores(self, train: Sequence[E], *asked: Sequence[E]) -> list[np.ndarray]:
        """What NB-SVM, which counts words, says of examples, for `--self-training`.

        Returns:
            For each of `asked` (n, C), the highest for its answer.

        Raises:
            InputError: by default, and where a class has no example to train on, or no word.
            MissingExtraError: scikit-learn is not installed.
        """
        raise InputError(f"NB-SVM does not answer {self.name}")

    def is_labelled(self, source: Source, file: Path) -> bool:
        """Whether a file is of the labelled data, and so no text for `--adapt`.

        By default it is if the settings name it, or it lies below what they name.
        """
        places = [source.path, *(Path(path) for _, path in self._named_paths())]
        return any(file.resolve().is_relative_to(place.resolve()) for place in places)

    def same(self, example: E) -> str:
        """What two copies of an example share: they stay on one side of a split."""
        return repr(example)

    def place(self, example: E) -> str:
        """What examples are put in order by before a dev split is drawn; of copies the least."""
        return self.same(example)

    def stratum(self, example: E) -> Hashable:
        """The class within which a dev split and `--limit` draw."""
        return 0

    # --- model -----------------------------------------------------------------------------------

    def default_rate(self, hidden_size: int) -> float:
        """The peak rate where neither the settings nor a recipe name one.

        `learning_rate`, which small models take, up to 512 hidden units; beyond, as 1 / hidden,
        5e-5 at 768, the highest of those that Devlin et al. 2019 (A.3) fine-tune BERT-base with.
        """
        return self.learning_rate if hidden_size <= 512 else 768 * 5e-5 / hidden_size

    def learn(self, train: list[E], tokenizer: WordPiece) -> None:
        """Takes from the training examples what the task must know, such as its classes."""
        self.tokenizer = tokenizer

    def restore(self, folder: Path, config: BertConfig, tokenizer: WordPiece) -> None:
        """Takes from a finished folder what `learn` took from the training examples."""
        self.tokenizer, self.is_finished = tokenizer, True

    def save(self, folder: Path) -> None:
        """Writes what `restore` needs beside config, weights and tokenizer."""

    def config_fields(self) -> dict[str, Any]:
        """The fields of `BertConfig` that the task sets, such as id2label."""
        return {}

    def build(self, folder: Path, config: BertConfig, random_weights: bool) -> nn.Module:
        """The model to train, from a pretrained folder.

        Args:
            config: the folder's own with `config_fields` and settings put in.
        """
        if random_weights:
            drawn: nn.Module = self.model_class(config)
            return drawn
        # A head of other classes is of no use; the backbone is.
        own = list((BertConfig.from_pretrained(folder).id2label or {}).values())
        wanted = list((config.id2label or {}).values())
        left_out = () if sorted(own) == sorted(wanted) else self.head
        model: nn.Module = self.model_class.from_pretrained(folder, config, left_out)
        if not left_out and own != wanted:  # the same classes, in another order
            order = [own.index(name) for name in wanted]
            for name, weight in model.named_parameters():
                if name.startswith(self.head):
                    weight.data.copy_(weight.data[order].clone())
        return model

    # --- features and loss -----------------------------------------------------------------------

    @abstractmethod
    def encode(self, examples: Sequence[E]) -> list[list[Feature]]:
        """The model's inputs: of each example one feature, or several.

        There are several where it is cut up, or a pair is asked in both orders.
        """

    def encode_to_learn(self, examples: Sequence[E]) -> list[list[Feature]]:
        """The inputs of what is trained on, by default as `encode` makes them."""
        return self.encode(examples)

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """A batch: every sequence padded to the longest, every number in a row."""
        return pad(features, self.tokenizer.pad_id)

    def count(self, features: Sequence[Feature]) -> dict[str, int]:
        """How many labels each loss term has in a step; known before the first forward pass."""
        labels = [np.asarray(f.labels["labels"]) for f in features]
        return {"task": sum(int((row != IGNORE_INDEX).sum()) for row in labels)}

    @abstractmethod
    def terms(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        """The loss of a batch, summed, by name; the names are those of `count`."""

    def useful_flops(self, config: BertConfig, step: StepData) -> float:
        """Operations that a step's real tokens need, for `mfu`; see `flops.py`."""
        return training_flops(config, step.lengths, 0, self.settings.freeze_layers or 0)

    # --- predictions and figures -----------------------------------------------------------------

    @abstractmethod
    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[Any]:
        """What the model says of each row of a batch, on the host; called without gradients."""

    @abstractmethod
    def decode(
        self,
        examples: Sequence[E],
        features: list[list[Feature]],
        outputs: list[list[Any]],
    ) -> list[P]:
        """One prediction per example, from the features it became and what was said of each."""

    def predict(
        self, model: Any, examples: Sequence[E], batch_size: int, runtime: Runtime
    ) -> list[P]:
        """One prediction per example; the model should be in eval mode."""
        return self.predict_encoded(model, examples, self.encode(examples), batch_size, runtime)

    def predict_encoded(
        self,
        model: Any,
        examples: Sequence[E],
        features: list[list[Feature]],
        batch_size: int,
        runtime: Runtime,
    ) -> list[P]:
        """`predict` of examples that were encoded before."""
        found = infer(self, model, flat(features), batch_size, runtime)
        return self.decode(examples, features, per_example(found, features))

    def rehearse(
        self, model: Any, features: Sequence[Feature], batch_size: int, runtime: Runtime
    ) -> None:
        """The work of predicting labelled features, which tells how long it will take.

        Of a family that is open-ended: as it will be for a model that has learnt them.
        """
        infer(self, model, features, batch_size, runtime)

    def rehearse_dev(
        self, model: Any, features: Sequence[Feature], batch_size: int, runtime: Runtime
    ) -> None:
        """The work on dev after the last step, that of `dev_figures` and `settle`.

        By default that of predicting it, twice where something is chosen by the answers.
        """
        for _ in range(2 if self.chooses else 1):
            self.rehearse(model, features, batch_size, runtime)

    @abstractmethod
    def score(self, examples: Sequence[E], predictions: Sequence[P]) -> dict[str, float]:
        """The figures of the task's field; `metric` is one of them."""

    def dev_figures(
        self,
        model: Any,
        examples: Sequence[E],
        features: list[list[Feature]],
        batch_size: int,
        runtime: Runtime,
    ) -> dict[str, float]:
        """The figures that choose weights, with what is best on these very examples.

        A family whose predictions take long may do less.
        """
        found = self.predict_encoded(model, examples, features, batch_size, runtime)
        if self.chooses:
            self.choose(examples, found)
        return self.score(examples, found)

    def settle(self, model: Any, dev: Sequence[E], batch_size: int, runtime: Runtime) -> None:
        """Chooses for the weights that are kept."""
        if self.chooses:
            self.choose(dev, self.predict(model, dev, batch_size, runtime))

    @property
    def chooses(self) -> bool:
        """Whether answers need something beside the weights that is chosen on dev."""
        return False

    def choose(self, dev: Sequence[E], predictions: Sequence[P]) -> None:
        """Keeps what answers need beside the weights, such as the threshold that is best on dev."""

    def results(
        self, splits: Splits[E], examples: Sequence[E], predictions: Sequence[P], scored: str
    ) -> dict[str, Any]:
        """What results.json and `evaluate` tell of predictions: their data, and every figure.

        Args:
            scored: which part of the data the examples are.
        """
        return {
            "task": self.name,
            "dataset": splits.source,
            "num_eval": len(examples),
            "scored": scored,
            **self.score(examples, predictions),
            **self.details(examples, predictions),
            **({"data_notes": list(splits.notes)} if splits.notes else {}),
        }

    def details(self, examples: Sequence[E], predictions: Sequence[P]) -> dict[str, Any]:
        """What else stands in results.json, such as figures by class."""
        return {}

    def table(self, results: dict[str, Any]) -> str:
        """The `details` among a run's results, for people; printed at its end."""
        return ""

    def check_parts(self, dev: Sequence[E], test: Sequence[E] | None) -> None:
        """Raises InputError where the figures of a part would say nothing."""
        return

    def baseline(self, train: Sequence[E], dev: Sequence[E], test: Sequence[E]) -> dict[str, float]:
        """What a simple method reaches on test, under keys of its own.

        Args:
            dev: what chooses for it what dev chooses for the model, such as a threshold.

        Raises:
            MissingExtraError: it needs a library that is not there.
            ValueError: it cannot be computed on these examples.
        """
        return {}

    def baselines(
        self, train: Sequence[E], dev: Sequence[E], test: Sequence[E]
    ) -> dict[str, float]:
        """`baseline` with others that are too slow for every run, as `<method>_<figure>`.

        Raises: as `baseline`.
        """
        return self.baseline(train, dev, test)

    @abstractmethod
    def row(self, example: E, prediction: P) -> dict[str, Any]:
        """The object of predictions.jsonl."""

    def errors(self, examples: Sequence[E], predictions: Sequence[P]) -> list[str]:
        """The errors worth reading, worst first, one text each."""
        return []

    # --- use -------------------------------------------------------------------------------------

    def parse_line(self, line: str) -> Any:
        """What a line of `minibert predict` gives to `example_of`: a text, or {"text": ...}.

        A JSON object without a text is handed on, to be refused there.
        """
        return text_in(line)

    def table_columns(
        self, text: str | None, text_pair: str | None, names: Collection[str]
    ) -> dict[str, str]:
        """Of a table to answer: key of the object that `parse_line` reads -> column.

        Args:
            text, text_pair: columns that were named; else those that the task learnt from.
            names: the columns that are there.

        Raises:
            InputError: a second text is named, but the task reads single ones.
        """
        if text_pair and not self.pairs:
            raise InputError(
                f"--text-pair-column {text_pair} has no use in {self.name}: the model reads single "
                f"texts; leave it out"
            )
        pair = text_pair or self.settings.text_pair_column or ("text_pair" if self.pairs else None)
        columns = {"text": text or self.settings.text_column or "text"}
        return columns | ({"text_pair": pair} if pair else {})

    @abstractmethod
    def example_of(self, given: Any, number: int) -> E:
        """An example without a label, of what a user gives.

        Raises:
            InputError: it is not what the task takes.
        """

    @abstractmethod
    def answer(self, example: E, prediction: P) -> Any:
        """What a user gets: a dataclass, or a dict."""

    def predictor(self, model: nn.Module, runtime: Runtime) -> Predictor:
        """What `minibert.load` returns; a family may offer more."""
        return Predictor(model, self, runtime)


def text_in(line: str) -> str | dict[str, Any]:
    """The text of a JSON object, which may have line breaks; an object without one; else the line.

    The text is what the object has as "text". One with a "text_pair", too, stays an object.
    """
    if not line.lstrip().startswith("{"):
        return line
    try:
        row: dict[str, Any] = json.loads(line)  # what begins so and is JSON is an object
    except (ValueError, RecursionError):
        return line
    text = row.get("text")
    return text if isinstance(text, str) and row.get("text_pair") is None else row


class Predictor:
    """A fine-tuned model with its task.

    Example:
        model = minibert.load("runs/imdb")
        model.predict(["A film to see twice."])[0].prediction   # 'pos'
    """

    def __init__(self, model: Any, task: Task[Any, Any], runtime: Runtime) -> None:
        self.model, self.task, self.runtime = model, task, runtime

    @property
    def tokenizer(self) -> WordPiece:
        """The tokenizer of the model's input."""
        return self.task.tokenizer

    def examples(self, given: Any) -> list[Any]:
        """One input or several, as examples of the task."""
        if not isinstance(given, Iterable):
            raise InputError(f"{given!r:.60} is no text, and no list of them")
        alone = isinstance(given, (str, Mapping))
        items = [given] if alone else list(given)
        return [self.task.example_of(item, number) for number, item in enumerate(items, 1)]

    def predict(self, given: Any, batch_size: int = 32) -> list[Any]:
        """Answers to one input or several, in their order.

        Args:
            given: texts, or what else the task takes; long ones are cut as in training.
            batch_size: inputs per forward.

        Raises:
            InputError: an input is not what the task takes.
        """
        examples = self.examples(given)
        found = self.predictions(examples, batch_size)
        return [self.task.answer(e, p) for e, p in zip(examples, found, strict=True)]

    def predictions(self, examples: Sequence[Any], batch_size: int = 32) -> list[Any]:
        """What the task foretells of each of its examples.

        Raises:
            InputError: a batch_size that is no whole number above 0.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}, must be above 0")
        if not examples:
            return []
        return self.task.predict(self.model, examples, batch_size, self.runtime)
