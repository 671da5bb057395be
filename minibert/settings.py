"""The settings of a run: frozen dataclasses, the single truth behind flags, files and notebooks.

Every field carries a line of help with its unit; the command-line flags are made from the fields,
kebab-case. None means "derived": from the checkpoint, the task or the corpus, by a printed rule.
Importable without torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from minibert.config import DEPARTURES, PRESETS
from minibert.errors import InputError, did_you_mean
from minibert.fields import Default, DefaultText, check_fields, flag, setting, without_paths

_POSITIVE = (
    *("max_steps", "epochs", "max_minutes", "batch_size", "micro_batch_size"),
    *("log_every", "eval_every", "save_every", "learning_rate", "max_grad_norm"),
)
_LONGEST = 1e12  # epochs or minutes; more overflows where steps are counted

DEFAULT_PRESET = "mini"
DEFAULT_MODE = "cross-encoder"  # of similarity
MIN_STEPS = 500  # of fine-tuning where no budget is given ...
MOST_EPOCHS = 20  # ... if so many passes give them (Mosbach et al. 2021, section 6)
OWN_TEXT = "auto"  # the word for the task's own text, in --adapt
BEST = "best"  # the word for what dev chooses, in --threshold
BOTH_ORDERS = "both"  # the word for asking a pair one way and the other, in --pair-order
BOTH, MODEL, NB_SVM = TEACHERS = ("both", "model", "nb-svm")  # the words of --teacher
NO_TASK = "none"  # the word for no --intermediate-task, whatever a recipe says
NO_TEXTS = "none"  # the word for no --self-training, the same
# The word for doing without, of settings whose None leaves it to a recipe.
NONE_OF: dict[str, object] = {
    "adversarial_epsilon": 0.0,
    "intermediate_task": NO_TASK,
    "pair_order": "given",
    "self_training": [NO_TEXTS],
}
SHORT_SHARE = 0.9  # of the budget, with --short-length (Devlin et al. 2019, A.2)
SCHEDULES = ("linear", "cosine", "constant-then-linear")
DECAY_RATIO = 0.3  # of the budget, with --schedule constant-then-linear
# How own data is laid out: fields of FinetuneSettings that evaluate takes, too.
DATA_LAYOUT = (
    *("text_column", "text_pair_column", "label_column", "label_separator"),
    *("target_column", "target_data", "source_language", "target_language"),
)
# Where own data lies: fields of FinetuneSettings.
DATA_PLACES = (
    *("data", "dev_data", "test_data", "target_data", "dev_target_data", "test_target_data"),
    "intermediate_data",
)
# What both recipes have.
_IN_ANY_RECIPE: dict[str, Any] = {
    "optimizer": "muon",
    "warmup_ratio": 0.05,
    "schedule": "constant-then-linear",
    "mask_prob": 0.3,
}
# The recipe for going on from a model, which --adapt takes; dropout stays the model's own.
CONTINUED = "continued"
# Settings by name that go together, as those of a --config file do; see docs/pretraining.md.
PRETRAINING_RECIPES: dict[str, dict[str, Any]] = {
    "small-budget": {
        **_IN_ANY_RECIPE,
        "dropout": 0.0,
        "max_seq_length": 256,
        "short_length": 64,
        "short_share": 0.7,
        "batch_size": 16,
        "nsp_share": 0.1,
    },
    CONTINUED: _IN_ANY_RECIPE,
}


def says_none(name: str, value: object) -> bool:
    """Whether a setting is the word for doing without it."""
    return (name, value) in NONE_OF.items()


def recipe(name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a recipe, by field name.

    Example:
        pretrain(**{**recipe("small-budget"), "corpus": ["my.txt"], "epochs": 1.0})

    Args:
        given: what is set beside it. Where `max_seq_length` is, no shorter length comes first that
            would not be shorter; nor does one where `short_length` is None. With `nsp` "none" no
            part of the budget has pairs.

    Raises:
        InputError: unknown name; the nearest one is offered. Or what is set beside it names no
            model to go on from, and the recipe is for that.
    """
    if name not in PRETRAINING_RECIPES:
        tail = did_you_mean(name, PRETRAINING_RECIPES)
        raise InputError(f"--recipe {name!r} is unknown{tail}")
    if name == CONTINUED and given is not None and not given.get("model"):
        raise InputError(f"--recipe {CONTINUED} goes with --model, the model to go on from")
    found = dict(PRETRAINING_RECIPES[name])
    given = given or {}
    longest = given.get("max_seq_length")
    short = given.get("short_length", found.get("short_length"))
    is_too_long = isinstance(longest, int) and isinstance(short, int) and longest <= short
    if "short_length" in found and (is_too_long or short is None):
        del found["short_length"], found["short_share"]
    if given.get("nsp") == "none":
        found.pop("nsp_share", None)
    return found


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What both stages share.

    Raises:
        InputError: naming every field with an unusable value, and what it accepts.
    """

    output: str = setting(
        "", "run folder; default runs/pretrain, runs/<task> or runs/search-<task>"
    )
    resume: str = setting(
        "no",
        "go on from the last good checkpoint; 'auto' begins or continues",
        choices=("no", "yes", "auto"),
        optional="yes",
    )
    overwrite: bool = setting(False, "start anew in a run folder that exists")
    max_steps: int | None = setting(None, "budget in optimiser steps")
    epochs: float | None = setting(
        None,
        "budget in passes over the training data; default of fine-tuning that of a recipe for the "
        "task and the size, else 3, similarity 4, tasks that write 10, see --min-steps; of "
        "pretraining 6, but 0.5 to 50 M tokens or one pass",
    )
    max_minutes: float | None = setting(None, "budget in minutes of the whole command")
    batch_size: int = setting(16, "sequences per optimiser step over all devices")
    micro_batch_size: int | Literal["auto"] | None = setting(
        None, "sequences per forward, or 'auto': what fits into memory; default: the batch size"
    )
    shard: bool = setting(
        False, "part the model among the processes of torchrun, for one that does not fit"
    )
    max_seq_length: int = setting(128, "tokens per sequence, special tokens included")
    learning_rate: float | None = setting(None, "peak rate")
    weight_decay: float = setting(0.01, "decoupled decay; none on biases and LayerNorm")
    warmup_ratio: float = setting(0.1, "share of the budget in which the rate climbs")
    schedule: str | None = setting(
        None,
        "how the rate falls after its climb, to 0 where the budget ends; default linear",
        choices=SCHEDULES,
    )
    decay_ratio: float | None = setting(
        None, f"share of the budget in which a constant rate falls; default {DECAY_RATIO}"
    )
    max_grad_norm: float = setting(1.0, "gradients are clipped to this global norm")
    dropout: float | None = setting(None, "both dropouts; default: the model's own")
    seed: int = setting(0, "of weights, order, masks and dropout")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting(
        "auto",
        "matrix products in bf16 or fp32; weights are fp32; auto: bf16 where the hardware has it",
        choices=("auto", "fp32", "bf16"),
    )
    compile: bool | Literal["auto"] = setting(
        False,
        "torch.compile: about a minute at first, faster steps later; 'auto': in a long run, by "
        "timing, where it saves more than it costs",
    )
    deterministic: bool = setting(
        True, "take algorithms that repeat to the bit (on a CPU: always); a GPU is slower with them"
    )
    log_every: int = setting(50, "steps per row of metrics.jsonl")
    eval_every: int | None = setting(
        None,
        "steps between held-out evaluations; default of fine-tuning an epoch, of pretraining a "
        "tenth of the budget",
    )
    save_every: int | None = setting(None, "steps between checkpoints; default: five minutes")
    cache_dir: str | None = setting(
        None, "encoded text and fetched models; default $XDG_CACHE_HOME/minibert, the hub's own"
    )
    dry_run: bool = setting(False, "build everything, run 2 steps, print size and time; no folder")
    profile: bool = setting(
        False, "trace steps 4 to 8 into profile.json and print where their time goes"
    )
    debug: bool = setting(False, "print the trace of an error")

    def faults(self) -> list[str]:
        """What is wrong with single values, one phrase each."""
        found = []
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value is not None and value not in choices:
                tail = did_you_mean(str(value), choices)
                found.append(f"{flag(field.name)} {value!r} is unknown{tail}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value not in (None, "auto") and not 0 < value < float("inf"):
                found.append(f"{flag(name)} is {value}, must be above 0")
            elif name in ("epochs", "max_minutes") and value is not None and value > _LONGEST:
                found.append(f"{flag(name)} is {value}, must be at most {_LONGEST:g}")
        if self.max_seq_length < 8:
            found.append(f"--max-seq-length is {self.max_seq_length}, must be at least 8")
        for name in ("warmup_ratio", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                found.append(f"{flag(name)} is {value}, must be in [0, 1)")
        if self.decay_ratio is not None:
            if self.schedule != "constant-then-linear":
                found.append("--decay-ratio goes with --schedule constant-then-linear")
            elif not 0 < self.decay_ratio <= 1:
                found.append(f"--decay-ratio is {self.decay_ratio}, must be above 0 and at most 1")
        falls = DECAY_RATIO if self.decay_ratio is None else self.decay_ratio
        if self.schedule == "constant-then-linear" and self.warmup_ratio + falls > 1:
            found.append(
                f"--warmup-ratio {self.warmup_ratio} and --decay-ratio {falls} are more than the "
                f"budget; together they must be at most 1"
            )
        if not 0 <= self.weight_decay < float("inf"):
            found.append(f"--weight-decay is {self.weight_decay}, must be 0 or more")
        if not 0 <= self.seed < 1 << 32:
            found.append(f"--seed is {self.seed}, must be 0 to {(1 << 32) - 1}")
        budgets = [n for n in ("max_steps", "epochs", "max_minutes") if getattr(self, n)]
        if len(budgets) > 1:
            found.append(f"{' and '.join(map(flag, budgets))} are both budgets; give one")
        micro = self.micro_batch_size
        if micro == "auto" and self.shard:
            found.append(
                "--micro-batch-size auto has no use with --shard: where one process runs out of "
                "memory the others wait for it; give a number"
            )
        if isinstance(micro, int) and micro > 0 and self.batch_size > 0 and self.batch_size % micro:
            near = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
            best = min(near, key=lambda m: abs(m - micro))
            found.append(
                f"--batch-size {self.batch_size} is not a multiple of --micro-batch-size {micro}; "
                f"{best} would divide it"
            )
        if self.resume != "no" and self.overwrite:
            found.append("--resume and --overwrite contradict each other; give one")
        if self.resume == "yes" and self.dry_run:
            found.append("--resume goes on with a run, and --dry-run keeps none; give one")
        if self.profile and self.dry_run:
            found.append("--profile needs a run, and --dry-run takes two steps; give one")
        return found

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            value = without_paths(list(value) if isinstance(value, tuple) else value)
            object.__setattr__(self, f.name, value)
        check_fields(type(self), vars(self), "settings")
        self._normalise()
        found = self.faults()
        if found:
            raise InputError("; ".join(found))

    def _normalise(self) -> None:
        """Gives one spelling to what can be written in several."""

    def to_dict(self) -> dict[str, Any]:
        """Field name -> value, for `run.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "settings") -> Self:
        """Builds settings from names and values.

        Raises:
            InputError: an unknown name (the nearest one is offered) or a value of another type.
        """
        values = cls.spelt({k: without_paths(v) for k, v in values.items()})
        if isinstance(values.get("resume"), bool):  # resume=True reads better in a notebook
            values["resume"] = "yes" if values["resume"] else "no"
        cls.check_names(values, source)
        return cls(**values)

    @classmethod
    def spelt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values as fields hold them, where a file or a notebook would write them otherwise."""
        return values

    @classmethod
    def check_names(cls, values: dict[str, Any], source: str) -> None:
        """Raises InputError as `from_dict` does, whatever else the values would be refused for."""
        check_fields(cls, cls.spelt(values), source)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings):
    """Stage one: raw text to a pretrained model."""

    learning_rate: float | None = setting(
        None,
        "peak rate; default 1e-3 up to 256 hidden units, then 0.256 / hidden; twice that with "
        "muon; where --model's weights are kept half of it, 0.3 with muon",
    )
    corpus: list[str] = setting(
        [], "text files, folders or globs: .txt .jsonl .tokens, also .gz .xz .bz2"
    )
    text_field: str = setting("text", "key of the text in .jsonl, one document a line")
    one_sentence_per_line: bool = setting(False, "lines are sentences as they stand")
    document_per_file: bool = setting(
        False, "a file is one document, blank lines or not; of .jsonl it stays each line"
    )
    encoding_errors: str = setting(
        "strict", "bytes that are not UTF-8: stop, or U+FFFD", choices=("strict", "replace")
    )
    preset: str | None = setting(
        None, f"size of the network; default {DEFAULT_PRESET}", choices=tuple(PRESETS)
    )
    num_layers: int | None = setting(None, "layers, instead of the preset's")
    hidden_size: int | None = setting(
        None, "width, instead of the preset's; a head for every 64, four times as much inside"
    )
    norm: str | None = setting(
        None,
        "where layers normalise: after each sum, as in BERT, or before each part, which only "
        "minibert reads; default post",
        choices=DEPARTURES["norm"],
    )
    feed_forward: str | None = setting(
        None,
        "plain, as in BERT, or gated (GEGLU) at two thirds of the inner width, which only minibert "
        "reads; default plain",
        choices=DEPARTURES["feed_forward"],
    )
    model: str | None = setting(
        None, "go on from this model (folder, bundled name or hub id), with its vocabulary"
    )
    random_weights: bool = setting(
        False, "keep the --model's config and tokenizer, redraw all weights"
    )
    vocab_size: int | None = setting(
        None, "WordPiece to train; default 4,096 / 8,192 / 16,384 / 30,522 by the size of the text"
    )
    tokenizer: str | None = setting(None, "folder of a tokenizer to reuse instead of training one")
    lowercase: bool | None = setting(None, "lower-case and strip accents; default yes")
    split_chinese: bool | None = setting(None, "make every Chinese character a word; default yes")
    shift_positions: bool = setting(
        False,
        "each sequence begins at a random position of the network's, so that all get trained",
    )
    short_length: int | None = setting(
        None,
        "tokens per sequence at first, as many more sequences per step, so that its tokens stay; "
        "then --max-seq-length",
    )
    short_share: float | None = setting(
        None, f"share of the budget with --short-length; default {SHORT_SHARE}"
    )
    batch_ramp: float | None = setting(
        None, "share of the budget in which a step's sequences grow from a quarter of --batch-size"
    )
    nsp: str = setting(
        "nsp",
        "pair objective: next sentence, sentence order, or none",
        choices=("nsp", "sop", "none"),
    )
    nsp_share: float | None = setting(
        None,
        "share of the budget, its last, that has the pair objective, after masked words alone; "
        "default 1, all of it",
    )
    mask_prob: float = setting(
        0.15, "share of tokens to predict in training; held-out figures are always of 15 %, singly"
    )
    masking: str = setting(
        "token", "what is chosen together", choices=("token", "whole-word", "span")
    )
    init: str | None = setting(
        None,
        "first weights: the reference's random ones, or with heads that look at the next words; "
        "default neighbours",
        choices=("neighbours", "reference"),
    )
    optimizer: str = setting(
        "adamw",
        "adamw, or muon for the layers' matrices and adamw for the rest",
        choices=("adamw", "muon"),
    )
    eval_examples: int = setting(2048, "held-out sequences scored at the end, at most")

    @classmethod
    def spelt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """One text for a list of it."""
        return _listed(values, "corpus")

    def _normalise(self) -> None:
        if self.nsp_share == 1 and self.nsp != "none":  # all of it is what None is
            object.__setattr__(self, "nsp_share", None)

    def faults(self) -> list[str]:
        found = super().faults()
        if not self.corpus:
            found.append("--corpus is missing; name a text file, as in --corpus data/wiki.txt")
        if not 0 < self.mask_prob < 1:
            found.append(f"--mask-prob is {self.mask_prob}, must be between 0 and 1")
        if self.vocab_size is not None and not 10 <= self.vocab_size <= 1 << 24:
            found.append(f"--vocab-size is {self.vocab_size}, must be 10 to {1 << 24}")
        if self.optimizer == "muon" and self.shard:
            found.append("--optimizer muon needs whole matrices, which --shard parts; give one")
        if self.short_length is not None and not 8 <= self.short_length < self.max_seq_length:
            found.append(
                f"--short-length is {self.short_length}, must be at least 8 and below "
                f"--max-seq-length {self.max_seq_length}"
            )
        if self.short_share is not None and self.short_length is None:
            found.append("--short-share goes with --short-length")
        if self.short_share is not None and not 0 < self.short_share < 1:
            found.append(f"--short-share is {self.short_share}, must be between 0 and 1")
        if self.nsp_share is not None and self.nsp == "none":
            found.append("--nsp-share has no use with --nsp none")
        if self.nsp_share is not None and not 0 < self.nsp_share <= 1:
            found.append(f"--nsp-share is {self.nsp_share}, must be above 0 and at most 1")
        if self.batch_ramp is not None and not 0 < self.batch_ramp <= 1:
            found.append(f"--batch-ramp is {self.batch_ramp}, must be above 0 and at most 1")
        for name in ("short_length", "batch_ramp"):
            if getattr(self, name) is not None and self.shard and self.micro_batch_size == 1:
                found.append(
                    f"{flag(name)} has no use with --shard and --micro-batch-size 1: processes "
                    f"would wait for each other; --micro-batch-size 2 or more"
                )
        if self.eval_examples < 1:
            found.append(f"--eval-examples is {self.eval_examples}, must be at least 1")
        found += _empty_names(self, "model", "tokenizer")
        reused = [n for n in ("model", "tokenizer") if getattr(self, n)]
        for name in ("lowercase", "split_chinese"):
            if reused and getattr(self, name) is not None:
                found.append(f"{flag(name)} has no use with {flag(reused[0])}: its own is kept")
        if self.random_weights and not self.model:
            found.append("--random-weights goes with --model, whose config and tokenizer it keeps")
        if self.model and self.init and not self.random_weights:
            found.append("--init has no use with --model: its weights are kept")
        for name in ("preset", "num_layers", "hidden_size", *DEPARTURES):
            if self.model and getattr(self, name) is not None:
                kept = "form" if name in DEPARTURES else "size"
                found.append(f"{flag(name)} has no use with --model: its {kept} is kept")
        if self.num_layers is not None and self.num_layers < 1:
            found.append(f"--num-layers is {self.num_layers}, must be at least 1")
        if self.hidden_size is not None and (self.hidden_size < 1 or self.hidden_size % 64):
            found.append(f"--hidden-size is {self.hidden_size}, must be a multiple of 64")
        if reused and self.vocab_size:
            found.append(
                f"--vocab-size has no use with {flag(reused[0])}, whose vocabulary is kept"
            )
        if len(reused) == 2:
            found.append("--tokenizer has no use with --model, whose vocabulary is kept")
        return found


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(RunSettings):
    """Stage two: a pretrained model and labelled data to an evaluated model."""

    task: str = setting(
        "", "named task, such as imdb or squad, or a family, such as tagging, for your own --data"
    )
    data: str | None = setting(None, "folder or file in the task's public format")
    dev_data: str | None = setting(None, "file of the dev split; default: cut from train")
    test_data: str | None = setting(None, "file of the test split; default: dev is scored")
    text_column: str | None = setting(
        None,
        "column or key of the text, of columns of tags a number from 0; default text, of tagging "
        "the first or tokens",
    )
    text_pair_column: str | None = setting(
        None, "column of the second text, for tasks on pairs; default of similarity text_pair"
    )
    label_column: str | None = setting(
        None,
        "column or key of the label, of columns of tags a number; default label, of similarity "
        "score, of tagging the last or tags",
    )
    target_column: str | None = setting(
        None, "column or key of the text to be written; default that of --label-column, or target"
    )
    target_data: str | None = setting(
        None, "file whose line i is to be written for line i of --data, a file of lines"
    )
    dev_target_data: str | None = setting(None, "the same for --dev-data")
    test_target_data: str | None = setting(None, "the same for --test-data")
    source_language: str = setting("en", "translation: ending of the files to be read")
    target_language: str = setting("de", "translation: ending of the files to be written")
    target_vocab_size: int | None = setting(
        None,
        "pieces of the vocabulary of written texts; default 4,096 / 8,192 / 16,384 / 30,522 by the "
        "size of the targets",
    )
    max_target_length: int | None = setting(
        None, "tokens of a written text at most; default: the longest in train, up to 256"
    )
    decoder_layers: int | None = setting(None, "layers of the decoder; default 2")
    num_beams: int = setting(4, "hypotheses followed while a text is written; 1: greedy")
    length_penalty: float = setting(0.6, "0 prefers short texts, more than 1 long ones")
    no_repeat_ngram: int | None = setting(
        None, "words in a row that are not written twice; default 0 (off), in summaries 3"
    )
    label_separator: str | None = setting(
        None, "what parts the labels of a text that may have several; JSON lists need none"
    )
    class_weights: str = setting(
        "none", "of the loss: none, balanced, or name=weight,name=weight, or a JSON object"
    )
    label_smoothing: float = setting(0.0, "share of the target that is spread over all classes")
    adversarial_epsilon: float | None = setting(
        None,
        "adversarial training: each step is taken twice, the second time with the embeddings of "
        "every text moved so far (L2 norm) to where the loss is larger; default 0 (off), where no "
        "recipe has another",
    )
    pair_order: str | None = setting(
        None,
        "of pairs whose order says nothing, read together: 'both' asks the model one way and the "
        "other and answers with the mean, in twice the time; it learns them as they stand; default "
        "given (asked as they stand), where no recipe has the other",
        choices=("given", BOTH_ORDERS),
    )
    positive_label: str | None = setting(
        None,
        "of two classes: the one whose F1 is told (f1_binary) and whose probability --threshold is "
        "held against; default that of the set; where it has none, --threshold goes by the second "
        "and no F1 is told",
    )
    threshold: str | float | None = setting(
        None,
        "of two classes or several labels: the probability above which yes is said, or 'best': the "
        "one with the best dev figure (--select); kept with the model; default 0.5",
    )
    mode: str | None = setting(
        None,
        "of similarity: both texts read together, or a vector of each; default cross-encoder",
        choices=("cross-encoder", "bi-encoder"),
    )
    model: str | None = setting(
        None,
        "model folder, bundled model or hub id owner/name[@revision]; default runs/pretrain if it "
        "is finished, else minibert-small-en",
    )
    random_weights: bool = setting(
        False, "keep the model's config and tokenizer, redraw all weights"
    )
    adapt: list[str] | None = setting(
        None,
        "before fine-tuning, learn masked words of unlabelled text: files, folders or globs as of "
        "--corpus; bare or 'auto': the task's own (imdb: its unsup folder, else the training "
        "texts, never those of dev or test), by `pretrain --recipe continued`; in the run's folder "
        "adapted/, once for all --seeds",
        optional=OWN_TEXT,
    )
    adapt_epochs: float | None = setting(
        None, "budget of --adapt in passes over its text; default 3"
    )
    adapt_minutes: float | None = setting(
        None, "budget of --adapt in minutes, part of --max-minutes; default half of those"
    )
    adapt_learning_rate: float | None = setting(
        None, "peak rate of --adapt; default as `pretrain --recipe continued` has it"
    )
    intermediate_task: str | None = setting(
        None,
        "before fine-tuning, learn the labels of this task, such as stsb before mrpc, without the "
        "examples whose texts --task is scored on; in the run's folder intermediate/, for every "
        "seed; a recipe may name one, 'none' does without",
    )
    intermediate_data: str | None = setting(
        None,
        "data of --intermediate-task, of a family a table with its default columns; default: "
        "beside that of --data, else where download puts it",
    )
    self_training: list[str] | None = setting(
        None,
        "of classes of single texts: before the labels, learn the surer answers of --teacher to "
        "texts without labels: files of a text a line, or tables; bare or 'auto': the set's own "
        "(imdb: its unsup folder); in the run's folder teacher/ and student/, for every seed; "
        "three fine-tunings in all, two with --teacher nb-svm; a recipe may have it, 'none' does "
        "without",
        optional=OWN_TEXT,
    )
    teacher: str = setting(
        DefaultText(BOTH),
        "who answers the texts of --self-training: the model, once it is fine-tuned on the labels, "
        "NB-SVM, which takes minutes and needs the extra tasks, or both together, as dev weighs "
        "them; of a recipe's self-training the recipe's",
        choices=TEACHERS,
    )
    reinit_layers: int = setting(
        0, "redraw the pooler and this many top layers, which pretraining has specialised"
    )
    batch_size: int = setting(
        Default(16), "sequences per optimiser step over all devices; a recipe may have another"
    )
    max_seq_length: int = setting(
        Default(256), "tokens per sequence, special tokens included; a recipe may have another"
    )
    truncation: str = setting(
        DefaultText("head"),
        "what is kept of a long text; windows: all of it, in parts that vote; a recipe may have "
        "another",
        choices=("head", "tail", "head+tail", "windows"),
    )
    doc_stride: int | None = setting(
        None,
        "qa: tokens from a window of a long context to the next, at most half of what it holds of "
        "the context; default 128",
    )
    learning_rate: float | None = setting(
        None,
        "peak rate; default that of a recipe for the task and the size, else 2e-4, beyond 512 "
        "hidden units 0.0384 / hidden; of tasks that "
        "write 1e-3 up to 256 hidden units, then 0.256 / hidden",
    )
    select: str | None = setting(
        None, "dev figure that chooses the weights; default: that of the task's field"
    )
    min_steps: int | None = setting(
        None,
        f"few examples are gone through more often than --epochs, up to {MOST_EPOCHS} times, for "
        f"so many steps; default {MIN_STEPS} where neither a budget nor a recipe says how long",
    )
    patience: int | None = setting(
        None, "stop after this many evaluations without a better dev figure"
    )
    seeds: int = setting(
        1, "runs with seed, seed + 1, ... in one folder, for mean and standard deviation"
    )
    freeze_layers: int | None = setting(
        None,
        "keep the embeddings and this many of the lowest layers as they are, in the task itself",
    )
    dev_fraction: float = setting(0.1, "share of train that is cut off as dev split")
    limit: int | None = setting(None, "use this many training examples, drawn class by class")
    dev_only: bool = setting(
        False, "score dev alone and drop the test split unseen, as for choosing settings"
    )

    @classmethod
    def spelt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """One path for a list of it, weights as an object, a label that is a number."""
        values = _listed(values, "adapt", "self_training")
        if isinstance(values.get("class_weights"), dict):
            weights = {str(label): weight for label, weight in values["class_weights"].items()}
            values["class_weights"] = json.dumps(weights, ensure_ascii=False, default=str)
        label = values.get("positive_label")
        if isinstance(label, numbers.Integral) and not isinstance(label, bool):
            values["positive_label"] = str(label)
        return values

    def _normalise(self) -> None:
        if self.fixed_threshold is not None:  # 0.3, '.3' and '0.30' are one setting
            object.__setattr__(self, "threshold", f"{self.fixed_threshold:.12g}")
        object.__setattr__(self, "class_weights", _as_one_spelling(self.class_weights))

    def faults(self) -> list[str]:
        found = super().faults()
        if not self.task:
            found.append("--task is missing; as in --task imdb")
        found += self._data_faults()
        if self.reinit_layers < 0:
            found.append(f"--reinit-layers is {self.reinit_layers}, must be 0 or more")
        if self.seeds < 1:
            found.append(f"--seeds is {self.seeds}, must be at least 1")
        if self.seeds > 1 and self.seed + self.seeds > 1 << 32:
            found.append(
                f"--seeds {self.seeds} from --seed {self.seed} on go beyond {(1 << 32) - 1}"
            )
        found += self._adapt_faults()
        if self.self_training == []:
            found.append(f"--self-training names nothing; a file of texts, or {OWN_TEXT!r}")
        if NO_TEXTS in (self.texts_to_answer or ()):
            found.append(f"--self-training {NO_TEXTS!r} does without, so it stands alone")
        if self.texts_to_answer and self.max_minutes:
            found.append(
                "--max-minutes has no use with --self-training, which is several fine-tunings: "
                f"give the --epochs of each, or --self-training {NO_TEXTS}"
            )
        if self.intermediate_data and self.intermediate_task == NO_TASK:
            found.append(f"--intermediate-data has no use with --intermediate-task {NO_TASK}")
        if self.intermediate and self.intermediate == self.task:
            found.append(f"--intermediate-task {self.task} is the task itself; name another")
        if not 0 <= self.label_smoothing < 1:
            found.append(f"--label-smoothing is {self.label_smoothing}, must be in [0, 1)")
        if not 0 <= (self.adversarial_epsilon or 0) < float("inf"):
            found.append(f"--adversarial-epsilon is {self.adversarial_epsilon}, must be 0 or more")
        if self.threshold not in (None, BEST) and not 0 < (self.fixed_threshold or 0) < 1:
            found.append(f"--threshold is {self.threshold}, must be in (0, 1), or {BEST!r}")
        if self.freeze_layers is not None and self.freeze_layers < 0:
            found.append(f"--freeze-layers is {self.freeze_layers}, must be 0 or more")
        if self.freeze_layers is not None and self.random_weights:
            found.append("--freeze-layers has no use with --random-weights, which redraws all")
        if self.doc_stride is not None and self.doc_stride < 1:
            found.append(f"--doc-stride is {self.doc_stride}, must be at least 1")
        if self.patience is not None and self.patience < 1:
            found.append(f"--patience is {self.patience}, must be at least 1")
        if self.reinit_layers and self.random_weights:
            found.append("--reinit-layers has no use with --random-weights, which redraws all")
        if not 0 < self.dev_fraction < 1:
            found.append(f"--dev-fraction is {self.dev_fraction}, must be between 0 and 1")
        for name in ("target_vocab_size", "max_target_length", "decoder_layers", "num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{flag(name)} is {value}, must be at least 1")
        if not 0 <= self.length_penalty < float("inf"):
            found.append(f"--length-penalty is {self.length_penalty}, must be 0 or more")
        if self.no_repeat_ngram is not None and self.no_repeat_ngram < 0:
            found.append(f"--no-repeat-ngram is {self.no_repeat_ngram}, must be 0 or more")
        if self.min_steps is not None and self.min_steps < 0:
            found.append(f"--min-steps is {self.min_steps}, must be 0 or more")
        if self.min_steps and (self.max_steps or self.max_minutes):
            found.append("--min-steps goes with --epochs; another budget says how long by itself")
        if self.limit is not None and self.limit < 4:
            found.append(f"--limit is {self.limit}, must be at least 4")
        return found

    def _data_faults(self) -> list[str]:
        """Of what names files and columns."""
        files = ("data", "dev_data", "test_data")
        columns = ("text_column", "text_pair_column", "label_column")
        targets = [name.replace("data", "target_data") for name in files]
        more = ("target_column", "label_separator", "intermediate_task", "intermediate_data")
        found = _empty_names(self, "model", *files, *targets, *columns, *more)
        if not self.data and (self.dev_data or self.test_data):
            found.append("--dev-data and --test-data go with --data, the training examples")
        for name in files:
            beside = name.replace("data", "target_data")
            if getattr(self, beside) and not getattr(self, name):
                found.append(f"{flag(beside)} goes with {flag(name)}, the lines to be read")
        for first, second in itertools.combinations(columns, 2):
            if getattr(self, first) and getattr(self, first) == getattr(self, second):
                found.append(f"{flag(first)} and {flag(second)} are both {getattr(self, first)!r}")
        return found

    def _adapt_faults(self) -> list[str]:
        found = []
        budgets = ("adapt_epochs", "adapt_minutes")
        for name in (*budgets, "adapt_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                found.append(f"{flag(name)} is {value}, must be above 0")
            if value is not None and self.adapt is None:
                found.append(f"{flag(name)} goes with --adapt")
        if self.adapt == []:
            found.append(f"--adapt names nothing; a file of text, or {OWN_TEXT!r}")
        if all(getattr(self, name) for name in budgets):
            found.append("--adapt-epochs and --adapt-minutes are both budgets; give one")
        if self.max_minutes and self.adapt_epochs:
            found.append(
                "--max-minutes counts the adaptation in, so its share is minutes: --adapt-minutes "
                "instead of --adapt-epochs"
            )
        if self.max_minutes and self.adapt_minutes and self.adapt_minutes >= self.max_minutes:
            found.append(
                f"--adapt-minutes {self.adapt_minutes:g} leaves nothing of --max-minutes "
                f"{self.max_minutes:g}"
            )
        return found

    @property
    def names_columns(self) -> bool:
        """Whether the data of a classification is a table of the user's own, its columns named."""
        texts = self.text_column, self.text_pair_column
        return any((*texts, self.label_column, self.label_separator))

    @property
    def fixed_threshold(self) -> float | None:
        """The number that --threshold names, if it is one."""
        try:
            return None if self.threshold is None else float(self.threshold)
        except ValueError:
            return None

    @property
    def least_steps(self) -> int:
        """Steps that few examples are gone through more often for; 0 where a budget is given."""
        if self.min_steps is not None:
            return self.min_steps
        return 0 if any((self.epochs, self.max_steps, self.max_minutes)) else MIN_STEPS

    @property
    def adapting_minutes(self) -> float | None:
        """What the adaptation takes, where that is told in minutes."""
        if self.adapt is None or self.adapt_minutes:
            return self.adapt_minutes
        return self.max_minutes and self.max_minutes / 2

    @property
    def intermediate(self) -> str | None:
        """The task whose labels are learnt before, if any."""
        return None if self.intermediate_task == NO_TASK else self.intermediate_task

    @property
    def texts_to_answer(self) -> list[str] | None:
        """What --self-training names, files or the word for the set's own; None for none."""
        return None if self.self_training == [NO_TEXTS] else self.self_training

    @property
    def unadapted_minutes(self) -> float | None:
        """What is left of --max-minutes beside the adaptation."""
        return self.max_minutes and self.max_minutes - (self.adapting_minutes or 0)

    @property
    def tuning_minutes(self) -> float | None:
        """What is left of --max-minutes for the task itself; the intermediate one has half."""
        left = self.unadapted_minutes
        return left and left / (2 if self.intermediate else 1)


def _empty_names(settings: RunSettings, *names: str) -> list[str]:
    """A fault for each setting that names a thing by '', as from a variable that is not set."""
    empty = [name for name in names if getattr(settings, name) == ""]
    return [f"{flag(name)} '' names nothing; leave it out, or name one" for name in empty]


def _listed(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Settings with a list of one where one of these is a text alone."""
    return {n: [v] if n in names and isinstance(v, str) else v for n, v in values.items()}


def _as_one_spelling(weights: str) -> str:
    """`--class-weights` as a JSON object in one spelling; another form, or a fault, as it is."""
    try:
        found = json.loads(weights)
        plain = {name: float(weight) for name, weight in found.items()}
    except (ValueError, TypeError, AttributeError):
        return weights
    return json.dumps(
        {n: int(w) if w.is_integer() else w for n, w in plain.items()}, ensure_ascii=False
    )
