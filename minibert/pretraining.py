"""Stage one: raw text -> a pretrained model folder.

files -> vocabulary -> token store -> pairs and masks -> BERT (MLM + NSP) -> run folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minibert import corpus
from minibert.ahead import BuildersAhead
from minibert.cache import data_fingerprint
from minibert.compiling import compile_if_it_pays
from minibert.config import BertConfig, preset
from minibert.errors import InputError
from minibert.examples import (
    Example,
    ExampleBuilder,
    ExampleOptions,
    ExampleStream,
    collate,
    held_out_examples,
    split_documents,
    tokens_per_character,
    unigram_entropy,
    unigram_log_prob,
)
from minibert.files import bundled_data, read_json, write_json
from minibert.fitting import Trial, micro_batch_size
from minibert.heads import BertForPreTraining
from minibert.initialisation import neighbour_attention, unigram_bias
from minibert.losses import next_sentence_loss
from minibert.machine import num_cpus
from minibert.model_folders import open_model_folder
from minibert.optim import Budget, build_muon, build_optimizer
from minibert.run_folder import RunFolder
from minibert.runs import (
    RunResult,
    begun_run,
    carry_out,
    check_not_start,
    check_vocabulary,
    closing_table,
    finished_run,
    log_line,
    loop_settings,
    model_config,
    placed,
    run_record,
    save_model,
    start_or_replay_runtime,
    training_seconds,
    utilisation,
    weights_digest,
    wrapped,
)
from minibert.runtime import Runtime
from minibert.settings import DEFAULT_PRESET, SHORT_SHARE, PretrainSettings, recipe
from minibert.store import TokenStore, open_store
from minibert.tokenizer import VOCAB_RULE, WordPiece, default_vocab_size
from minibert.train import Batch, Loop, StepData, Term
from minibert.vocabulary import corpus_vocabulary
from minibert.world import ALONE, World, join_world

_BUILDERS = 4  # processes that build examples for a GPU, at most
_FURTHER = 0.5  # of a new model's peak rate, for one that goes on from trained weights
_LEARNT = 0.02  # nats below the line of word frequencies from which a model has learnt from context
_EVAL_DURING = 256  # held-out sequences scored while training
_RAMP_START = 0.25  # of a batch, where --batch-ramp begins
_MIN_TOKENS, _EPOCHS, _MAX_TOKENS = 500_000, 6, 50_000_000  # see `default_steps`


def pretraining_terms(model: Callable[..., Any], batch: Batch) -> dict[str, Term]:
    """The terms of stage one on a batch: masked words, and pairs where the batch has labels.

    Args:
        model: returns a `PretrainingOutput`.
        batch: from `examples.collate`.

    Returns:
        "mlm" and, with next_sentence_label, "nsp".
    """
    inputs = ("input_ids", "token_type_ids", "attention_mask", "mlm_positions", "mlm_labels")
    out = model(**{name: batch[name] for name in inputs})
    terms = {"mlm": Term(*out.mlm_score)}
    if "next_sentence_label" in batch:
        pairs = batch["next_sentence_label"]
        hits = (out.nsp_logits.argmax(-1) == pairs).sum()
        terms["nsp"] = Term(*next_sentence_loss(out.nsp_logits, pairs), hits)
    return terms


class PretrainingData:
    """Optimiser steps of masked pairs, from an example stream; this process's share of each.

    Sequences may be short for the first share of the budget: attention is cheaper, and most of what
    is learnt is near (Devlin et al. 2019, A.2). A step then has as many more of them, so that its
    tokens stay about the same. Whole sequences go on at the place in the corpus where short ones
    stopped. The batch may grow in a line over the first share of the budget, from a quarter: early
    gradients agree, so that fewer sequences tell as much (McCandlish et al. 2018). What a step is
    like is a function of the budget used, so a run resumes exactly.
    """

    def __init__(
        self,
        stream: ExampleStream,
        batch_size: int,
        micro_batch_size: int,
        world: World = ALONE,
        short: ExampleStream | None = None,
        short_share: float = 0.0,
        batch_ramp: float = 0.0,
    ) -> None:
        """Begins at the first epoch, with short sequences where there are any.

        Args:
            batch_size, micro_batch_size: whole sequences, per step and per forward.
            short: the same documents and seed in shorter sequences.
            short_share: share of the budget in which steps come from `short`.
            batch_ramp: share of the budget in which the batch grows.
        """
        self.whole, self.short, self.world = stream, short, world
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.short_share, self.batch_ramp = short_share, batch_ramp
        self.batch_share = _RAMP_START if batch_ramp else 1.0  # of a whole batch, now
        self.stream = short or stream  # what steps come from now
        self.max_predictions = stream.builder.options.max_predictions

    @property
    def epochs_done(self) -> float:
        return self.stream.epochs_done

    def pace(self, done: float) -> None:
        """Chooses what the next steps are like by the share of the budget used."""
        if self.batch_ramp:
            climbed = min(1.0, done / self.batch_ramp)
            self.batch_share = _RAMP_START + (1 - _RAMP_START) * climbed
        if self.stream is self.short and done >= self.short_share:
            self.whole.follow(self.short)
            self.stream = self.whole

    def state(self) -> dict[str, int]:
        is_short = {"short": int(self.stream is self.short)} if self.short else {}
        return self.stream.state() | is_short

    def seek(self, state: dict[str, int]) -> None:
        self.stream = self.short if self.short and state["short"] else self.whole
        self.stream.seek(state)

    def told_lengths(self) -> str:
        """The lengths of sequences over the budget, in words."""
        assert self.short
        whole, short = (s.builder.options.max_seq_length for s in (self.whole, self.short))
        more = self.batch_size * whole // short
        return (
            f"{short} tokens in {self.short_share:.0%} of the budget, then {whole}; a step has "
            f"{more:,} short sequences or {self.batch_size:,} whole ones"
        )

    def _as_many_tokens(self, sequences: int) -> int:
        """How many sequences of the present length hold the tokens of so many whole ones."""
        whole, now = (s.builder.options.max_seq_length for s in (self.whole, self.stream))
        return sequences * whole // now

    def largest(self, size: int) -> dict[str, Tensor]:
        """A batch of `size` sequences without padding, for trying what fits into memory."""
        options, count = self.whole.builder.options, self.max_predictions
        ids = np.zeros(options.max_seq_length, np.int64)
        places, labels = np.arange(count), np.zeros(count, np.int64)
        pair = None if options.nsp == "none" else 0
        return collate([Example(ids, len(ids) // 2, places, labels, pair)] * size, count)

    def take(self) -> StepData:
        """The next batch, in micro-batches; labels are counted before anything is computed."""
        batch, size = map(self._as_many_tokens, (self.batch_size, self.micro_batch_size))
        # Of micro-batches and processes it knows nothing: they change no step.
        examples = self.stream.take(math.ceil(batch * self.batch_share))
        own = list(self.world.share(examples))
        is_filler = not own  # more processes than sequences
        own = own or examples[:1]
        parts = _parted(own, size, -(-len(examples) // self.world.size))
        counts = {"mlm": sum(len(e.mlm_positions) for e in examples)}
        if examples[0].next_sentence_label is not None:
            counts["nsp"] = len(examples)
        slots = self.stream.builder.options.max_predictions
        batches = [collate(part, slots) for part in parts]
        num_slots = sum(batch["input_ids"].numel() for batch in batches)
        lengths = [len(e.input_ids) for e in examples]
        return StepData(batches, counts, lengths, num_slots, is_filler)


def _parted(own: list[Example], size: int, largest: int) -> list[list[Example]]:
    """A process's share of a step in parts of at most `size`.

    They are as many as those of the largest share: a sharded model's forward waits for all
    processes. (Not of single sequences, with which the settings refuse unequal shares.)
    """
    parts = [own[i : i + size] for i in range(0, len(own), size)]
    count = -(-largest // size)
    if len(parts) < count <= len(own):
        bounds = [i * len(own) // count for i in range(count + 1)]
        parts = [own[start:stop] for start, stop in itertools.pairwise(bounds)]
    return parts


@torch.no_grad()
def evaluate_pretraining(
    model: nn.Module,
    examples: Sequence[Example],
    max_predictions: int,
    batch_size: int,
    run: Runtime,
) -> dict[str, float]:
    """Scores masked words and pairs of held-out examples; the model is in eval mode.

    Every process scores its share of the batches, and all return the figures of the whole.

    Returns:
        mlm_loss (nats), mlm_perplexity, mlm_accuracy, masked_tokens and, with pairs, nsp_loss,
        nsp_accuracy, pairs, random_pairs (their share; guessing one class scores it or the rest).
    """
    names = ("mlm", "nsp")[: 1 + (examples[0].next_sentence_label is not None)]
    sums = {f"{name}_{key}": 0.0 for name in names for key in ("loss", "count", "hits")}
    for start, counts in run.world.rounds(range(0, len(examples), batch_size)):
        batch = collate(list(examples[start : start + batch_size]), max_predictions)
        with run.autocast():
            terms = pretraining_terms(model, run.place(batch))
        for name, term in terms.items():
            for key, value in zip(("loss", "count", "hits"), term, strict=True):
                sums[f"{name}_{key}"] += float(value) * counts
    together = run.world.sum(torch.tensor(list(sums.values()), dtype=torch.float64))
    sums = dict(zip(sums, together.tolist(), strict=True))
    loss = sums["mlm_loss"] / sums["mlm_count"]
    figures = {
        "mlm_loss": loss,
        "mlm_perplexity": math.exp(min(loss, 700)),
        "mlm_accuracy": sums["mlm_hits"] / sums["mlm_count"],
        "masked_tokens": int(sums["mlm_count"]),
    }
    if "nsp_count" in sums:
        figures["nsp_loss"] = sums["nsp_loss"] / sums["nsp_count"]
        figures["nsp_accuracy"] = sums["nsp_hits"] / sums["nsp_count"]
        figures["pairs"] = int(sums["nsp_count"])
        labels = [e.next_sentence_label for e in examples if e.next_sentence_label is not None]
        figures["random_pairs"] = sum(labels) / len(labels)
    return figures


def default_steps(corpus_tokens: int, step_tokens: float) -> tuple[int, str]:
    """The budget when none is given: six passes over the text, at least half a million tokens.

    At most 50 million tokens, unless one pass is more.

    Returns:
        Steps, and the rule in words with its numbers.
    """
    tokens = max(_EPOCHS * corpus_tokens, _MIN_TOKENS)
    tokens = min(tokens, max(_MAX_TOKENS, corpus_tokens))
    steps = max(1, math.ceil(tokens / step_tokens))
    rule = (
        f"{_EPOCHS} x {corpus_tokens:,} tokens of text, but {_MIN_TOKENS:,} to {_MAX_TOKENS:,} or "
        f"one pass = {tokens:,}; / {step_tokens:,.0f} a step = {steps:,} steps"
    )
    return steps, rule


def default_learning_rate(hidden_size: int) -> float:
    """1e-3 up to 256 hidden units, then falling as 1 / hidden: 5e-4 at 512, 3.3e-4 at 768.

    Measured at 256 alone: 2e-3 did not train there (docs/LOG.md).
    """
    return min(1e-3, 0.256 / hidden_size)


def _default_rate(config: BertConfig, goes_on: bool) -> float:
    """The peak rate: a new model's, or half of it where trained weights are to be kept."""
    return default_learning_rate(config.hidden_size) * (_FURTHER if goes_on else 1)


@dataclass(frozen=True)
class _Source:
    """The text of a run: its store, its tokenizer, and builders for both sides of the split."""

    store: TokenStore
    tokenizer: WordPiece
    training: ExampleBuilder
    held_out: ExampleBuilder


def _reader_options(settings: PretrainSettings) -> corpus.ReaderOptions:
    return corpus.ReaderOptions(
        settings.one_sentence_per_line,
        settings.document_per_file,
        settings.text_field,
        settings.encoding_errors,
    )


def _prepare_text(
    settings: PretrainSettings, files: list[Path], tokenizer_folder: Path | None
) -> _Source:
    """Files -> vocabulary -> token store -> split, with what was found printed."""
    options = _reader_options(settings)
    cache = Path(settings.cache_dir) if settings.cache_dir else None
    if tokenizer_folder is not None:
        tokenizer = WordPiece.from_pretrained(tokenizer_folder)
    else:
        size = sum(corpus.text_bytes(path) for path in files)
        wanted = settings.vocab_size
        if wanted is None:
            wanted = default_vocab_size(size)
            log_line("vocabulary", f"{wanted:,} pieces for about {size:,} bytes: {VOCAB_RULE}")
        lowercase, chinese = settings.lowercase is not False, settings.split_chinese is not False
        exact = settings.vocab_size is not None
        tokenizer = corpus_vocabulary(files, wanted, options, lowercase, chinese, cache, exact)
    store = open_store(files, tokenizer, options, cache)
    log_line("corpus", str(store.counts))
    example_options = ExampleOptions(
        settings.max_seq_length, settings.mask_prob, settings.masking, settings.nsp
    )
    training, held_out = split_documents(store, settings.nsp)
    log_line("split", f"{len(training):,} documents to train on, {len(held_out):,} held out")
    return _Source(
        store,
        tokenizer,
        ExampleBuilder(store, tokenizer, training, example_options),
        ExampleBuilder(store, tokenizer, held_out, example_options),
    )


def _new_config(settings: PretrainSettings) -> BertConfig:
    """The shape of a new network, its vocabulary aside."""
    changes: dict[str, int] = {}
    if settings.num_layers is not None:
        changes["num_hidden_layers"] = settings.num_layers
    if settings.hidden_size is not None:
        changes["hidden_size"] = settings.hidden_size
        changes["num_attention_heads"] = settings.hidden_size // 64
        changes["intermediate_size"] = 4 * settings.hidden_size
    config = preset(settings.preset or DEFAULT_PRESET, **changes)
    inner, form = config.intermediate_size, settings.feed_forward or config.feed_forward
    if form == "gated":
        inner = gated_width(inner)
    norm = settings.norm or config.norm
    return dataclasses.replace(config, norm=norm, feed_forward=form, intermediate_size=inner)


def gated_width(plain: int) -> int:
    """F of a gated feed-forward with the parameters of a plain one: 2/3, to the nearest 64.

    Three matrices of D x F stand for two of D x F' (Shazeer 2020, section 3).
    """
    return max(64, round(plain * 2 / 3 / 64) * 64)


def _build_model(
    settings: PretrainSettings, source: _Source, start: Path | None
) -> BertForPreTraining:
    """A new network of the preset, or the one to go on from.

    Raises:
        InputError: the tokenizer has more tokens than the model.
    """
    tokenizer = source.tokenizer
    if start is not None:
        config = BertConfig.from_pretrained(start)
    else:
        config = _new_config(settings)
        config = dataclasses.replace(
            config, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id
        )
    check_vocabulary(tokenizer, config)
    config = model_config(settings, config)
    torch.manual_seed(settings.seed)
    init = settings.init or "neighbours"
    if start is not None and not settings.random_weights:
        model = BertForPreTraining.from_pretrained(start, config)
        log_line("model", f"{start}; {model.load_report}")
        new_bias = "mlm.bias" in model.load_report.newly_initialised
        _say_untrained_heads(model, start, settings.nsp)
    else:
        model = BertForPreTraining(config)
        if start is not None:
            log_line("model", f"{start} (its config and tokenizer, all weights redrawn)")
        new_bias = True
        if init != "reference":
            neighbour_attention(model)
        log_line("init", f"{init} (--init reference|neighbours)")
    if not config.is_plain:
        log_line(
            "form",
            f"norm {config.norm}, feed-forward {config.feed_forward} {config.intermediate_size} "
            f"wide: not a plain BERT, so transformers will not read it",
        )
    if init != "reference" and new_bias:
        unigram_bias(model, torch.from_numpy(unigram_log_prob(source.held_out)))
    return model


def _say_untrained_heads(model: BertForPreTraining, start: Path, nsp: str) -> None:
    """Tells of the heads that a model to go on from lacks, or has without having trained them."""
    new = model.load_report.newly_initialised
    if any(name.startswith("mlm.") for name in new):
        log_line("heads", f"{start} has no whole head for masked words; what it lacks is new")
    run = start / "run.json"
    before = read_json(run, "").get("settings") if run.is_file() else None
    untrained = isinstance(before, dict) and before.get("nsp") == "none"
    if nsp != "none" and (untrained or any(name.startswith("nsp.") for name in new)):
        log_line(
            "heads", f"{start} was trained without sentence pairs; --nsp none goes on without them"
        )


def pretrain(settings: PretrainSettings | None = None, **values: Any) -> RunResult:
    """Pretrains a BERT on raw text and writes a run folder.

    Args:
        settings: or its fields by name, as in `pretrain(corpus=["data/wiki.txt"])`; and
            `recipe="small-budget"` for settings that go together.

    Returns:
        The folder, the figures of results.json, and the model in eval mode.

    Raises:
        InputError: settings or text that cannot be used.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    started = time.perf_counter()
    if isinstance(values.get("corpus"), (str, Path)):
        values["corpus"] = [str(values["corpus"])]
    if "recipe" in values:
        values = {**recipe(values.pop("recipe")), **values}
    settings = settings or PretrainSettings.from_dict(values, "pretrain")
    files = corpus.find_files(settings.corpus)
    files, num_empty = corpus.readable_files(files)  # before anything is made
    is_sample = files[0].resolve() == (bundled_data() / "wiki.txt").resolve()
    what = "the bundled sample (small, for trying out)" if is_sample else "your text in"
    more = f" and {len(files) - 1:,} more file(s)" if len(files) > 1 else ""
    empty = f"; {num_empty:,} empty file(s) left out" if num_empty else ""
    log_line("data", f"{what} {files[0]}{more}{empty}")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(join_world())
        folder = None
        if not settings.dry_run:
            folder = RunFolder(settings.output or "runs/pretrain", world.is_main)
            stack.enter_context(folder)
        return _pretrain_in(folder, settings, files, world, started, stack)


def _pretrain_in(
    folder: RunFolder | None,
    settings: PretrainSettings,
    files: list[Path],
    world: World,
    started: float,
    stack: contextlib.ExitStack,
) -> RunResult:
    begun = begun_run(folder, "pretrain", settings, world)
    cache = Path(settings.cache_dir) if settings.cache_dir else None
    with world.main_first():  # the others find the digests of a large text ready
        fingerprint = data_fingerprint(files, _reader_options(settings), cache)
    if folder is not None and begun is not None:
        folder.check_same_data(fingerprint)
        if folder.results is not None:
            return finished_run(folder)
    runtime = start_or_replay_runtime(settings, begun, world)
    start = open_model_folder(settings.model, settings.cache_dir) if settings.model else None
    check_not_start(folder, start)
    digest = weights_digest(start) if start and not settings.random_weights else None
    if begun is not None and begun["resolved"].get("start_weights", digest) != digest:
        raise InputError(f"--resume: the weights in {start} have changed; --overwrite starts anew")
    config = BertConfig.from_pretrained(start) if start else _new_config(settings)
    model_config(settings, config)  # refused before the text is read
    with world.main_first():  # the others find vocabulary and tokens ready
        source = _prepare_text(settings, files, _tokenizer_folder(settings, start, folder, begun))
    tokenizer = source.tokenizer
    if begun is not None and begun["resolved"]["tokenizer"] != tokenizer.fingerprint:
        raise InputError("--resume: the tokenizer has changed since; --overwrite starts anew")
    model = _build_model(settings, source, start)
    placed(model, settings, runtime)
    forward = wrapped(model, settings, runtime, begun, all_used=settings.nsp != "none")
    spread = world.map if world.size > 1 else None
    builders = _builders_ahead(source.training, settings.seed, runtime, stack)
    stream = ExampleStream(source.training, settings.seed, spread, builders)
    short = _short_stream(settings, stream)
    short_share = SHORT_SHARE if settings.short_share is None else settings.short_share
    batch = settings.batch_size
    ramp = settings.batch_ramp or 0.0
    data = PretrainingData(stream, batch, batch, world, short, short_share, ramp)
    if short:
        log_line("length", data.told_lengths())
    trial = Trial(model, forward, pretraining_terms, data.largest, runtime)
    data.micro_batch_size = micro = micro_batch_size(settings, begun, trial)
    held_out = held_out_examples(source.held_out, settings.eval_examples)
    if not held_out:
        counts = source.store.counts
        raise InputError(
            f"the held-out documents give no example: they are too short to pair (--nsp none "
            f"trains without pairs), or their words unknown ({counts.unknown_tokens:,} of "
            f"{counts.tokens:,} tokens in the corpus are)"
        )
    few = held_out[:: max(1, len(held_out) // _EVAL_DURING)]

    def score(examples: Sequence[Example]) -> dict[str, float]:
        model.eval()
        slots = data.max_predictions
        return evaluate_pretraining(model, examples, slots, micro, runtime)

    if begun is not None:
        budget = Budget(**begun["resolved"]["budget"])
    elif settings.max_minutes:
        seconds = training_seconds(settings.max_minutes, started, score, held_out)
        budget = Budget(seconds=world.from_main(seconds))
    else:
        budget = _budget(settings, stream, source.store)
    unigram_of_few = unigram_entropy(source.held_out, few)

    def evaluate() -> dict[str, float]:
        figures = score(few)
        # Short sequences leave the later positions as they were drawn.
        is_short = data.stream is data.short
        if loop.done > 0.5 and not is_short and figures["mlm_loss"] > unigram_of_few - _LEARNT:
            log_line("plateau", _plateau_text(figures["mlm_loss"], unigram_of_few))
        return figures

    rate = settings.learning_rate or _default_rate(model.config, goes_on=digest is not None)
    use = utilisation(settings, model.config, runtime, begun)
    loop = Loop(
        model,
        data,
        pretraining_terms,
        (build_muon if settings.optimizer == "muon" else build_optimizer)(
            model, rate, settings.weight_decay
        ),
        loop_settings(settings, rate, budget),
        runtime,
        folder,
        evaluate=evaluate,
        forward=forward,
        utilisation=use,
        pace=data.pace,
    )
    compiled = compile_if_it_pays(settings, begun, loop)
    record = run_record("pretrain", settings, fingerprint, runtime)
    record["resolved"] |= {
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "micro_batch_size": micro,
        "compile": compiled,
        "learning_rate": rate,
        "start_weights": digest,
        "budget": dataclasses.asdict(loop.settings.budget),
        "peak_flops": use.peak_flops,
        "model": model.config.to_dict(),
    }
    resume = settings.resume != "no"
    state = carry_out(loop, model, folder, None if begun else record, resume, tokenizer.save)
    if folder is None or state is None:
        return RunResult(Path(), {})
    figures = score(held_out)
    bits = figures["mlm_loss"] / math.log(2)
    results = {
        "task": "pretrain",
        "dataset": ", ".join(settings.corpus),
        "num_train": len(source.training.documents),
        "num_eval": len(held_out),
        **figures,
        "unigram_entropy": unigram_entropy(source.held_out, held_out),
        "bits_per_character": bits * tokens_per_character(tokenizer, held_out),
        "steps": state.step,
        "epochs": data.epochs_done,
        "tokens": state.tokens,
        "seconds": state.seconds,
    }
    save_model(model, folder.path, world)
    if world.is_main:
        tokenizer.save(folder.path)
        write_json(folder.path / "results.json", results)
        closing_table(results, folder.path)
    return RunResult(folder.path, results, model)


def _builders_ahead(
    training: ExampleBuilder, seed: int, runtime: Runtime, stack: contextlib.ExitStack
) -> BuildersAhead | None:
    """Processes that build examples while a GPU trains; a CPU has no core to spare for them."""
    count = min(_BUILDERS, num_cpus() - 1)
    if not runtime.runs_ahead or runtime.world.size > 1 or count < 1:
        return None
    builders = BuildersAhead(training, seed, count)
    stack.callback(builders.close)
    return builders


def _short_stream(settings: PretrainSettings, stream: ExampleStream) -> ExampleStream | None:
    """The same documents in sequences of --short-length, where that is set."""
    if settings.short_length is None:
        return None
    whole = stream.builder
    options = dataclasses.replace(whole.options, max_seq_length=settings.short_length)
    builder = ExampleBuilder(whole.store, whole.tokenizer, whole.documents, options)
    return ExampleStream(builder, settings.seed, stream.spread, stream.build_place)


def _plateau_text(loss: float, unigram: float) -> str:
    return (
        f"half the budget is used and mlm_loss {loss:.3f} is no better than word frequencies, "
        f"{unigram:.3f}; if more steps do not help, a lower --learning-rate or a larger "
        f"--warmup-ratio may"
    )


def _tokenizer_folder(
    settings: PretrainSettings,
    start: Path | None,
    folder: RunFolder | None,
    begun: dict[str, Any] | None,
) -> Path | None:
    """Where the tokenizer is loaded from; None where one is trained on the text.

    A run that goes on has its own, unless it was killed before it was whole.
    """
    last_written = "tokenizer_config.json"
    if folder is not None and begun is not None and (folder.path / last_written).is_file():
        return folder.path
    return Path(settings.tokenizer) if settings.tokenizer else start


def _budget(settings: PretrainSettings, stream: ExampleStream, store: TokenStore) -> Budget:
    """The budget in steps or epochs that was asked for, or the default rule, printed.

    Its batch is the mean one over the budget.
    """
    if settings.max_steps or settings.epochs:
        return Budget(max_steps=settings.max_steps, epochs=settings.epochs)
    examples = stream.current_block()
    mean = sum(len(e.input_ids) for e in examples) / max(1, len(examples))
    mean = mean or settings.max_seq_length  # a block without examples; `take` says what is wrong
    batch = settings.batch_size * (1 - (settings.batch_ramp or 0) * (1 - _RAMP_START) / 2)
    steps, rule = default_steps(store.counts.tokens, mean * batch)
    log_line("budget", rule)
    return Budget(max_steps=steps)
