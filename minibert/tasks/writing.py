"""What tasks share that write a text for a text: encoding, loss, beam search, rows and errors.

In: `TextPair`s (`tasks/parallel.py`). Out: features whose labels are target ids, and texts that
`BertForConditionalGeneration` writes.

Shapes: B batch.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minibert.config import BertConfig
from minibert.decoder_config import DecoderConfig
from minibert.errors import InputError, TextError
from minibert.fields import flag
from minibert.files import whole_characters, write_atomically
from minibert.flops import generation_flops
from minibert.generation import GenerationSettings, generate, rehearse
from minibert.losses import IGNORE_INDEX
from minibert.runs import log_line
from minibert.runtime import Runtime
from minibert.seq2seq import BertForConditionalGeneration
from minibert.settings import FinetuneSettings
from minibert.target_tokenizer import TARGET_FILE, TargetTokenizer, train_target_tokenizer
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.batches import Feature, flat, infer, inputs_of
from minibert.tasks.parallel import (
    PairSplits,
    TextPair,
    drop_empty,
    is_table,
    read_pairs_table,
    read_parallel_files,
)
from minibert.tasks.tables import check_columns_differ
from minibert.tasks.texts import encode
from minibert.tokenizer import WordPiece, default_vocab_size
from minibert.train import Batch, StepData, Term

_LONGEST_TARGET = 256  # tokens, where the settings name none
_LAYERS = 2
# Of the references' tokens; a learnt model's search was seen to take 1.0 to 1.02 times them.
_BEYOND = 1.25
_MOST_UNKNOWN = 0.05  # share of the words' pieces beyond which a vocabulary does not cover it
# Pieces a word on average: with the bundled vocabulary English has 1.3, German 2.3.
_MOST_PIECES = 1.8
_LISTED_ERRORS = 50
_MARKS = re.compile(r"[^\w\s]|_")
# Chinese characters are pieces, and so words, of their own.
_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")

_LAYOUT = """\
A model that reads a text and writes a text, made by minibert.

model.safetensors   bert.*     the encoder, in the published names: transformers.BertModel opens it
                    decoder.*  the decoder, in the names of minibert/seq2seq.py
config.json         the encoder's numbers; target_vocab_size, num_decoder_layers,
                    max_target_positions and target_*_token_id are the decoder's
tokenizer.json      of the text that is read (WordPiece); vocab.txt is the same
target_tokenizer.json  of the text that is written (byte-level BPE, cased)

minibert predict FOLDER "a text", or minibert.load(FOLDER).predict(["a text"]).
"""


class WrittenText(NamedTuple):
    """A prediction. score: log-probability in nats over `generation.length_divisor`."""

    text: str
    score: float
    is_whole: bool


@dataclass(frozen=True)
class Answer:
    """What was written for a text; is_whole is False where it was cut at its longest."""

    text: str
    prediction: str
    score: float
    is_whole: bool


class WritingTask(Task[TextPair, WrittenText]):
    """A text for each text. What has no default here, a family must say.

    While training, dev is scored token by token, given the right words before each: the loss, and
    `token_accuracy`, which chooses the weights. Texts are written for dev only where `--select`
    names a figure of texts, and for test at the end.
    """

    model_class = BertForConditionalGeneration
    head = ("decoder.",)
    uses: ClassVar[tuple[str, ...]] = (
        *("text_column", "label_column", "label_smoothing"),
        *("target_column", "target_data", "dev_target_data", "test_target_data"),
        *("target_vocab_size", "max_target_length", "decoder_layers"),
        *("num_beams", "length_penalty", "no_repeat_ngram"),
    )
    metric = "token_accuracy"
    is_open_ended = True
    epochs: float = 10.0
    no_repeat_ngram = 0
    target: TargetTokenizer

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        if settings.shard:
            raise InputError(
                f"--shard has no use in {self.name}: while texts are written every process needs "
                f"the whole model"
            )
        columns = ("text_column", "target_column", "label_column")
        given = [name for name in columns if getattr(settings, name) is not None]
        if settings.target_data is not None and given:
            raise InputError(f"{flag(given[0])} is for a table, not for two files; leave it out")

    # --- what a family says ----------------------------------------------------------------------

    @abstractmethod
    def read_public(self, folder: Path) -> PairSplits:
        """Reads the named set of the family."""

    @abstractmethod
    def figures(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        """The figures of texts, by the field's own scorer.

        Raises:
            MissingExtraError: the scorer is not installed.
        """

    @abstractmethod
    def text_score(self, prediction: str, references: Sequence[str]) -> float:
        """A figure of one text, 0 to 100, to rank errors by."""

    @abstractmethod
    def trivial(self, text: str) -> str:
        """What a method without a model writes, and `trivial_name` the key of its figures."""

    trivial_name: str = ""

    def read_as(self, source: str) -> str:
        """A source as the model reads it."""
        return source

    # --- data ------------------------------------------------------------------------------------

    @property
    def _own(self) -> bool:
        """Whether the data is the user's own: by the name, by named columns, or a file."""
        s = self.settings
        named = (s.text_column, s.target_column, s.label_column, s.target_data)
        is_file = s.data is not None and Path(s.data).is_file()
        return self.name == self.names[-1] or any(named) or is_file

    def _named_paths(self) -> list[tuple[str, str]]:
        s = self.settings
        targets = (
            ("--target-data", s.target_data),
            ("--dev-target-data", s.dev_target_data),
            ("--test-target-data", s.test_target_data),
        )
        return super()._named_paths() + [(name, path) for name, path in targets if path is not None]

    def texts(self, example: TextPair) -> tuple[str, ...]:
        return (self.read_as(example.source),)

    def read(self, source: Source) -> Splits[TextPair]:
        self._check_scorer()
        if self.settings.truncation == "windows":
            raise InputError(
                f"--truncation windows has no use in {self.name}: one text is written; "
                f"choose head, tail or head+tail"
            )
        if self._own:
            if self.settings.data is None:
                raise InputError("--text-column and the like go with --data, a file of your own")
            return self.read_own()
        extra = [name for name, _ in self._named_paths() if name != "--data"]
        if extra:
            raise InputError(
                f"{extra[0]} goes with data of your own, as --task {self.names[-1]}; "
                f"{self.name} has its own splits"
            )
        found = self.read_public(source.path)
        notes = *found.notes, *_odd(found.train, found.dev, found.test)
        return Splits(found.train, found.test, found.source, notes, found.dev)

    def _check_scorer(self) -> None:
        self.figures(["a"], [["a"]])  # one that is missing is missing before the work

    def read_own(self) -> Splits[TextPair]:
        """Tables by the columns that the settings name, or pairs of files of lines.

        Raises:
            InputError: a file or column that cannot be used, or nothing to train on.
        """
        s = self.settings
        assert s.data is not None
        notes: list[str] = []
        train = self._own_part(s.data, s.target_data, "train", "--data", notes)
        dev, test = (
            self._own_part(path, target, split, f"--{split}-data", notes) if path else None
            for split, path, target in (
                ("dev", s.dev_data, s.dev_target_data),
                ("test", s.test_data, s.test_target_data),
            )
        )
        return self.own_splits(train, dev, test, notes)

    def read_to_score(self, source: Source) -> Splits[TextPair]:
        if not source.path.is_file():
            return self.read(source)
        self._check_scorer()
        quotes: list[str] = []
        target = self.settings.target_data
        test = self._own_part(str(source.path), target, "test", "--data", quotes)
        if not test:
            raise InputError(f"{source.path} holds no pair")
        notes = f"{len(test):,} pairs to score", *quotes, *_odd([], None, test)
        return Splits([], test, str(source.path), notes)

    def own_splits(
        self,
        train: list[TextPair],
        dev: list[TextPair] | None,
        test: list[TextPair] | None,
        noticed: Sequence[str] = (),
    ) -> Splits[TextPair]:
        """Parts that were read, with what is odd about them; train loses pairs without text.

        Args:
            noticed: when they were read.
        """
        kept, dropped = drop_empty(train)
        if not kept:
            raise InputError(f"{self.settings.data}: no pair to train on has two texts")
        notes = [f"{len(kept):,} pairs to train on", *dropped, *noticed, *_odd(kept, dev, test)]
        return Splits(kept, test, str(self.settings.data), tuple(notes), dev)

    def _own_part(
        self, path: str, target: str | None, split: str, named: str, notes: list[str]
    ) -> list[TextPair]:
        if target is not None:
            if is_table(Path(path)):
                raise InputError(
                    f"{named} {path} is a table; name its two columns with --text-column and "
                    f"--target-column instead of {named.removesuffix('data')}target-data"
                )
            return read_parallel_files(Path(path), Path(target), split)
        if not is_table(Path(path)):
            raise InputError(
                f"{named} {path} is neither a .csv, .tsv nor .jsonl; of two files of lines "
                f"name the second with {named.removesuffix('data')}target-data"
            )
        s = self.settings
        text_column = s.text_column or "text"
        target_column = s.target_column or s.label_column or "target"
        check_columns_differ(text_column=text_column, target_column=target_column)
        return read_pairs_table(Path(path), text_column, target_column, notes)

    def same(self, example: TextPair) -> str:
        return " ".join(example.source.lower().split())

    # --- model -----------------------------------------------------------------------------------

    def learn(self, train: list[TextPair], tokenizer: WordPiece) -> None:
        """Trains the vocabulary of targets, and tells how sources and vocabularies fit.

        Raises:
            InputError: the model's vocabulary does not cover the sources.
        """
        super().learn(train, tokenizer)
        self._check_sources([self.read_as(pair.source) for pair in train])
        targets = [pair.target for pair in train]
        size = self.settings.target_vocab_size
        size = size or default_vocab_size(sum(len(text.encode()) for text in targets))
        self.target = train_target_tokenizer(targets, size)
        self._targets = targets

    def _check_sources(self, sources: list[str]) -> None:
        _, lengths = self.tokenizer.flat_ids(sources)
        # A mark that is unknown says nothing of the language.
        words = [_MARKS.sub(" ", text) for text in sources]
        ids, _ = self.tokenizer.flat_ids(words)
        unknown = float((ids == self.tokenizer.unk_id).mean()) if len(ids) else 0.0
        if unknown > _MOST_UNKNOWN:
            raise InputError(
                f"{unknown:.1%} of the pieces of the sources' words are unknown to the model's "
                f"vocabulary; pretrain one on text in their language, as in: minibert pretrain "
                f"--corpus their.txt, and name it with --model"
            )
        pieces = len(ids) / max(1, sum(len(_WORD.findall(text)) for text in words))
        text = f"{pieces:.2f} pieces a word, {unknown:.2%} of them unknown"
        long = int((lengths > self.settings.max_seq_length - 2).sum())
        if long:
            text += f"; {long:,} are longer than --max-seq-length {self.settings.max_seq_length}"
            text += f", cut by --truncation {self.settings.truncation}"
        log_line("sources", text)
        if pieces > _MOST_PIECES:
            log_line(
                "language",
                f"{pieces:.1f} pieces a word are many: the model's vocabulary is of another "
                f"language than the sources, or of other text; one pretrained on theirs does "
                f"better: minibert pretrain --corpus their.txt --output runs/theirs, then "
                f"--model runs/theirs",
            )

    def restore(self, folder: Path, config: BertConfig, tokenizer: WordPiece) -> None:
        super().restore(folder, config, tokenizer)
        self.target = TargetTokenizer.from_pretrained(folder)
        self.decoder = DecoderConfig.of(config)

    def save(self, folder: Path) -> None:
        self.target.save(folder)
        write_atomically(
            folder / "README.txt", lambda path: path.write_text(_LAYOUT, encoding="utf-8")
        )

    def config_fields(self) -> dict[str, Any]:
        return {"id2label": None, "problem_type": None}

    def default_rate(self, hidden_size: int) -> float:
        """As in pretraining: a fresh decoder is to learn, not to be adjusted."""
        return min(1e-3, 0.256 / hidden_size)

    def build(self, folder: Path, config: BertConfig, random_weights: bool) -> nn.Module:
        """An encoder's folder gets a new decoder; one that has a decoder goes on with it.

        It then keeps its vocabulary of targets and its longest target, unless the settings name
        others; with another longest target alone it keeps the positions that both have.
        """
        s = self.settings
        has_decoder = "target_vocab_size" in config.extra and (folder / TARGET_FILE).is_file()
        before = DecoderConfig.of(config) if has_decoder else None
        layers = s.decoder_layers or (before.num_decoder_layers if before else _LAYERS)
        longest = s.max_target_length
        if before and not s.target_vocab_size:
            self.target = TargetTokenizer.from_pretrained(folder)
            longest = longest or before.max_target_positions
        target = self.target
        lengths = [len(ids) for ids in target.ids(self._targets)]
        longest = longest or min(max(lengths), _LONGEST_TARGET)
        self.decoder = DecoderConfig(
            target.vocab_size, layers, longest, target.pad_id, target.bos_id, target.eos_id
        )
        kept = None  # the decoder to go on with
        if before and s.target_vocab_size is None:
            fits = replace(before, max_target_positions=longest) == self.decoder
            kept = before if fits else None
        self._tell_targets(kept is not None, lengths)
        if random_weights:
            return BertForConditionalGeneration(self.decoder.added_to(config))
        config = (kept or self.decoder).added_to(config)
        left_out = () if kept else self.head
        model = BertForConditionalGeneration.from_pretrained(folder, config, left_out)
        report = model.load_report
        new = tuple(n for n in report.newly_initialised if not n.startswith(self.head))
        if kept is None:  # told as one, not tensor by tensor
            new += ("decoder (as the encoder; its words and cross-attention drawn)",)
        elif longest != kept.max_target_positions:
            model.resize_target_positions(longest)
            if longest > kept.max_target_positions:
                new += (f"decoder positions from {kept.max_target_positions} on",)
        model.load_report = replace(report, newly_initialised=new)
        return model

    def _tell_targets(self, kept: bool, lengths: list[int]) -> None:
        size, longest = self.decoder.target_vocab_size, self.decoder.max_target_positions
        own = " (the model's own)" if kept else ""
        text = f"{size:,} pieces{own}, at most {longest} tokens a text"
        long = sum(length > longest for length in lengths)
        log_line("targets", text + (f"; {long:,} longer ones in train are cut" if long else ""))

    # --- features and loss -----------------------------------------------------------------------

    def encode(self, examples: Sequence[TextPair]) -> list[list[Feature]]:
        settings = self.settings
        texts = [(self.read_as(pair.source), None) for pair in examples]
        rows = encode(texts, self.tokenizer, settings.max_seq_length, settings.truncation)
        known = [pair.target for pair in examples if pair.references]
        targets = iter(self.target.ids(known, self.decoder.max_target_positions))
        found = []
        for pair, (inputs,) in zip(examples, rows, strict=True):
            labels = {"labels": np.array(next(targets))} if pair.references else {}
            found.append([Feature(inputs, labels)])
        return found

    def terms(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        return self._terms(forward, batch, self.settings.label_smoothing)

    def _terms(
        self, forward: Callable[..., Any], batch: Batch, smoothing: float
    ) -> dict[str, Term]:
        """The negative log-probability of each target token, given those before it."""
        out = forward(**inputs_of(batch), labels=batch["labels"], label_smoothing=smoothing)
        return {"task": Term(*out.score)}

    def useful_flops(self, config: BertConfig, step: StepData) -> float:
        """Of this process's pairs, and of as many for each token of the others'."""
        batches = step.micro_batches
        lengths = [n for batch in batches for n in batch["attention_mask"].sum(1).tolist()]
        targets = [m for b in batches for m in (b["labels"] != IGNORE_INDEX).sum(1).tolist()]
        own = generation_flops(
            config,
            self.decoder.num_decoder_layers,
            self.decoder.target_vocab_size,
            lengths,
            targets,
            self.settings.freeze_layers or 0,
        )
        return own * step.num_tokens / sum(lengths)

    # --- predictions and figures -----------------------------------------------------------------

    @property
    def _generation(self) -> GenerationSettings:
        s = self.settings
        repeats = self.no_repeat_ngram if s.no_repeat_ngram is None else s.no_repeat_ngram
        return GenerationSettings(s.num_beams, s.length_penalty, repeats)

    def _word_starts(self, device: torch.device) -> Tensor:
        return torch.from_numpy(self.target.word_starts).to(device)

    @property
    def _is_dev_written(self) -> bool:
        """Whether a figure of texts chooses the weights."""
        return (self.settings.select or self.metric) != self.metric

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[WrittenText]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        spaced = torch.from_numpy(self.target.spaced_ids).to(ids.device)
        starts = self._word_starts(ids.device)
        found = generate(model, ids, mask, self._generation, starts, spaced)
        texts = self.target.decode([text.ids for text in found])
        written = zip(texts, found, strict=True)
        return [WrittenText(text, made.score, made.is_whole) for text, made in written]

    def decode(
        self,
        examples: Sequence[TextPair],
        features: list[list[Feature]],
        outputs: list[list[WrittenText]],
    ) -> list[WrittenText]:
        return flat(outputs)

    def rehearse(
        self, model: Any, features: Sequence[Feature], batch_size: int, runtime: Runtime
    ) -> None:
        """Writes texts a little longer than their references."""
        infer(_Rehearsal(self), model, features, batch_size, runtime)

    def rehearse_dev(
        self, model: Any, features: Sequence[Feature], batch_size: int, runtime: Runtime
    ) -> None:
        infer(_TokenScores(self), model, features, batch_size, runtime)
        if self._is_dev_written:
            self.rehearse(model, features, batch_size, runtime)

    def dev_figures(
        self,
        model: Any,
        examples: Sequence[TextPair],
        features: list[list[Feature]],
        batch_size: int,
        runtime: Runtime,
    ) -> dict[str, float]:
        """Of tokens; of texts only where those are to choose the weights."""
        sums = np.sum(infer(_TokenScores(self), model, flat(features), batch_size, runtime), 0)
        loss, count, hits = (float(value) for value in sums)
        found = {"loss": loss / max(1.0, count), "token_accuracy": hits / max(1.0, count)}
        if self._is_dev_written:
            written = self.predict_encoded(model, examples, features, batch_size, runtime)
            found |= self.score(examples, written)
        return found

    def _figures_of(
        self, examples: Sequence[TextPair], predictions: Sequence[WrittenText]
    ) -> dict[str, Any]:
        return self.figures([p.text for p in predictions], [e.references for e in examples])

    def score(
        self, examples: Sequence[TextPair], predictions: Sequence[WrittenText]
    ) -> dict[str, float]:
        found = self._figures_of(examples, predictions)
        return {key: value for key, value in found.items() if isinstance(value, float)}

    def details(
        self, examples: Sequence[TextPair], predictions: Sequence[WrittenText]
    ) -> dict[str, Any]:
        """Signatures of the scorers, and how many texts were cut at their longest."""
        found = self._figures_of(examples, predictions)
        signatures = {key: value for key, value in found.items() if isinstance(value, str)}
        return signatures | {"num_cut": sum(not p.is_whole for p in predictions)}

    def baseline(
        self, train: Sequence[TextPair], dev: Sequence[TextPair], test: Sequence[TextPair]
    ) -> dict[str, float]:
        """Figures of what `trivial` writes."""
        texts = [WrittenText(self.trivial(pair.source), 0.0, True) for pair in test]
        return {f"{self.trivial_name}_{k}": v for k, v in self.score(test, texts).items()}

    def row(self, example: TextPair, prediction: WrittenText) -> dict[str, Any]:
        """`reference` is a list where a text has several."""
        references = list(example.references)
        return {
            "id": example.id,
            "text": example.source,
            "reference": references[0] if len(references) == 1 else references,
            "prediction": prediction.text,
            "score": round(prediction.score, 6),
        }

    def errors(self, examples: Sequence[TextPair], predictions: Sequence[WrittenText]) -> list[str]:
        """The texts furthest from their references."""
        scored = [
            (self.text_score(prediction.text, example.references), example, prediction)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        scored.sort(key=lambda found: found[0])
        return [
            "\n".join(
                [
                    f"{example.id}: {score:.1f}" + ("" if made.is_whole else ", cut"),
                    f"source:    {example.source}",
                    *(f"reference: {text}" for text in example.references),
                    f"written:   {made.text}",
                ]
            )
            for score, example, made in scored[:_LISTED_ERRORS]
        ]

    # --- use -------------------------------------------------------------------------------------

    def example_of(self, given: Any, number: int) -> TextPair:
        if not isinstance(given, str):
            raise TextError(number, f"is {given!r:.60}; expected a string")
        return TextPair(str(number), whole_characters(given), ())

    def answer(self, example: TextPair, prediction: WrittenText) -> Answer:
        return Answer(example.source, *prediction)


def _odd(
    train: list[TextPair], dev: list[TextPair] | None, test: list[TextPair] | None
) -> list[str]:
    """What is odd about parts: empty targets, sources of train, ids that come twice.

    Raises:
        InputError: dev or test is there and empty.
    """
    notes = []
    known = {pair.source for pair in train}
    for name, part in (("dev", dev), ("test", test)):
        if part is None:
            continue
        if not part:
            raise InputError(f"{name} holds no pair; name texts for it, or leave it out")
        empty = sum(not pair.target.strip() for pair in part)
        notes += [f"{empty:,} empty targets in {name}, scored as they are"] if empty else []
        shared = sum(pair.source in known for pair in part)
        notes += [f"{shared:,} {name} sources occur in train, too"] if shared else []
    for part in (train, dev, test):
        twice = sum(count > 1 for count in Counter(pair.id for pair in part or ()).values())
        notes += [f"{twice:,} ids that come more than once"] if twice else []
    return notes


class _TokenScores:
    """What inference is to ask instead of writing texts: how well given ones are foretold."""

    def __init__(self, task: WritingTask) -> None:
        self.task, self.collate = task, task.collate

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[tuple[float, ...]]:
        """Loss in nats, tokens and hits; those of the whole batch stand at its first row."""
        term = self.task._terms(model, batch, 0.0)["task"]
        rows = len(batch["input_ids"])
        return [tuple(float(value) for value in term), *[(0.0, 0.0, 0.0)] * (rows - 1)]


class _Rehearsal:
    """What inference is to ask to learn how long texts like the references take to write."""

    def __init__(self, task: WritingTask) -> None:
        self.task, self.collate = task, task.collate

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[None]:
        """Nothing of each row."""
        ids, lengths = batch["input_ids"], (batch["labels"] != IGNORE_INDEX).sum(1)
        lengths = (lengths * _BEYOND).ceil().clamp(max=self.task.decoder.max_target_positions)
        mask, settings = batch["attention_mask"], self.task._generation
        starts = self.task._word_starts(ids.device)
        rehearse(model, ids, mask, settings, lengths.to(ids.device), starts)
        return [None] * len(ids)
