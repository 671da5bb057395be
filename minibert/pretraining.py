"""Stage one: raw text -> a pretrained model folder.

files -> vocabulary -> token store -> pairs and masks -> BERT (MLM + NSP) -> run folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minibert import corpus
from minibert.ahead import BuildersAhead
from minibert.cache import data_fingerprint, default_cache_dir
from minibert.compiling import compile_if_it_pays
from minibert.config import BertConfig, preset
from minibert.documents import split_documents
from minibert.errors import InputError
from minibert.estimate import encoding, told_bytes
from minibert.example_stream import ExampleStream
from minibert.examples import (
    PADDED_TO,
    Example,
    ExampleBuilder,
    ExampleOptions,
    held_out_examples,
    tokens_per_character,
    unigram_entropy,
    unigram_log_prob,
)
from minibert.files import bundled_data, read_json, write_json
from minibert.fitting import Trial, micro_batch_size
from minibert.heads import BertForPreTraining
from minibert.initialisation import neighbour_attention, unigram_bias
from minibert.machine import num_cpus
from minibert.model_folders import open_model_folder
from minibert.optim import Budget, build_muon, build_optimizer
from minibert.pretraining_data import (
    Phase,
    PretrainingData,
    evaluate_pretraining,
    mean_batch_share,
    pretraining_terms,
)
from minibert.progress import clock
from minibert.run_folder import RunFolder
from minibert.runs import (
    REHEARSED_BATCHES,
    RunResult,
    Scoring,
    as_begun_from,
    begun_run,
    carry_out,
    check_not_read,
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
    scoring_seconds,
    start_or_replay_runtime,
    trained_positions,
    training_seconds,
    utilisation,
    weights_digest,
    wrapped,
)
from minibert.runtime import Runtime, torch_as_before
from minibert.settings import DEFAULT_PRESET, SHORT_SHARE, PretrainSettings, recipe
from minibert.store import TokenStore, num_encoders, open_store, store_folder
from minibert.tokenizer import VOCAB_RULE, WordPiece, default_vocab_size
from minibert.train import Loop
from minibert.vocabulary import corpus_vocabulary
from minibert.world import World, join_world

EXAM_MASK_PROB = 0.15  # of held-out tokens, singly, whatever a run trains on: figures compare
_BUILDERS = 8  # processes that build examples for a GPU, at most; a million tokens a second each
# Of a new model's peak rate, for one that goes on from trained weights, by optimiser.
_FURTHER = {"adamw": 0.5, "muon": 0.3}
_LEARNT = 0.02  # nats below the line of word frequencies from which a model has learnt from context
_EVAL_DURING = 256  # held-out sequences scored while training
_MIN_TOKENS, _EPOCHS, _MAX_TOKENS = 500_000, 6, 50_000_000  # see `default_steps`


def default_steps(corpus_tokens: int, step_tokens: float) -> tuple[int, str]:
    """The budget when none is given: six times the tokens of the text, at least half a million.

    At most 50 million, unless the text has more. With pairs, a pass takes more tokens than the text
    has (`estimate.PASS_TOKENS`).

    Returns:
        Steps, and the rule in words with its numbers.
    """
    tokens = max(_EPOCHS * corpus_tokens, _MIN_TOKENS)
    tokens = min(tokens, max(_MAX_TOKENS, corpus_tokens))
    steps = max(1, math.ceil(tokens / step_tokens))
    rule = (
        f"{_EPOCHS} x {corpus_tokens:,} tokens of text, but {_MIN_TOKENS:,} to {_MAX_TOKENS:,} or "
        f"the text's own = {tokens:,}; / {step_tokens:,.0f} a step = {steps:,} steps"
    )
    return steps, rule


def default_learning_rate(
    hidden_size: int, optimizer: str = "adamw", goes_on: bool = False
) -> float:
    """1e-3 up to 256 hidden units, then falling as 1 / hidden: 5e-4 at 512, 3.3e-4 at 768.

    Twice that with Muon. Where trained weights are to be kept half of it, 0.3 with Muon. Measured
    at 256 alone, where 2e-3 did not train with AdamW (docs/LOG.md, docs/pretraining.md), and going
    on with Muon at 512.
    """
    rate = min(1e-3, 0.256 / hidden_size)
    return rate * (2 if optimizer == "muon" else 1) * (_FURTHER[optimizer] if goes_on else 1)


@dataclass(frozen=True)
class _Source:
    """The text of a run: its store, its tokenizer, and builders for both sides of the split."""

    store: TokenStore
    tokenizer: WordPiece
    training: ExampleBuilder
    held_out: ExampleBuilder


@dataclass(frozen=True)
class _Start:
    """What a run starts from.

    folder: the model to go on from, None for a new one. digest: of its weights, where they are
    kept. config: the network's, before this run's settings change it. positions: how many of them
    earlier training has reached.
    """

    folder: Path | None
    digest: str | None
    config: BertConfig
    positions: int


def _reader_options(settings: PretrainSettings) -> corpus.ReaderOptions:
    return corpus.ReaderOptions(
        settings.one_sentence_per_line,
        settings.document_per_file,
        settings.text_field,
        settings.encoding_errors,
    )


def _prepare_text(
    settings: PretrainSettings,
    files: list[Path],
    tokenizer_folder: Path | None,
    num_positions: int,
) -> _Source:
    """Files -> vocabulary -> token store -> split, with what was found printed.

    Args:
        num_positions: of the network.
    """
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
    if settings.dry_run:
        _tell_encoding(files, store_folder(files, tokenizer, options, cache or default_cache_dir()))
    store = open_store(files, tokenizer, options, cache)
    log_line("corpus", str(store.counts))
    length, nsp = settings.max_seq_length, settings.nsp
    shifted = num_positions if settings.shift_positions else None
    example_options = ExampleOptions(length, settings.mask_prob, settings.masking, nsp, shifted)
    exam_options = ExampleOptions(length, EXAM_MASK_PROB, "token", nsp)
    training, held_out = split_documents(store, settings.nsp)
    share = held_out.tokens / max(1, store.counts.tokens)
    is_whole = len(training) + len(held_out) == store.num_documents
    parts = "documents" if is_whole else "stretches of the few documents"
    log_line(
        "split",
        f"{len(training):,} {parts} to train on, {len(held_out):,} held out "
        f"({share:.1%} of the tokens)",
    )
    return _Source(
        store,
        tokenizer,
        ExampleBuilder(store, tokenizer, training, example_options),
        ExampleBuilder(store, tokenizer, held_out, exam_options),
    )


def _tell_encoding(files: list[Path], store: Path) -> None:
    """What encoding the text will take, where that is not done; before it begins."""
    if store.is_dir():
        return
    cores = num_encoders(files)
    tokens, size, seconds = encoding(sum(map(corpus.text_bytes, files)), cores)
    log_line(
        "encoding",
        f"about {tokens / 1e6:,.1f} M tokens, {told_bytes(size)} in {store.parent}, "
        f"{clock(seconds)} on {cores} core{'s' * (cores != 1)}; done now",
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
    if _is_new(model, "mlm."):
        log_line("heads", f"{start} has no whole head for masked words; what it lacks is new")
    if nsp != "none" and not _has_learnt_pairs(model, start):
        log_line(
            "heads", f"{start} was trained without sentence pairs; --nsp none goes on without them"
        )


def _is_new(model: BertForPreTraining, head: str) -> bool:
    """Whether a weight of a head was not in the folder that a model came from."""
    return any(name.startswith(head) for name in model.load_report.newly_initialised)


def _has_learnt_pairs(model: BertForPreTraining, folder: Path | None) -> bool:
    """Whether a model came with a head for pairs that has learnt, as far as its folder's run tells.

    Of one without a run it has.
    """
    if folder is None or _is_new(model, "nsp."):
        return False
    run = read_json(folder / "run.json", "") if (folder / "run.json").is_file() else {}
    resolved, settings = run.get("resolved"), run.get("settings")
    if isinstance(resolved, dict) and "trained_pairs" in resolved:
        return resolved["trained_pairs"] is not False
    return not (isinstance(settings, dict) and settings.get("nsp") == "none")


@torch_as_before()
def pretrain(settings: PretrainSettings | None = None, **values: Any) -> RunResult:
    """Pretrains a BERT on raw text and writes a run folder.

    Args:
        settings: or its fields by name, as in `pretrain(corpus=["data/wiki.txt"])`; and
            `recipe="small-budget"`, or "continued" with a model, for settings that go together.

    Returns:
        The folder, the figures of results.json, and the model in eval mode.

    Raises:
        InputError: settings or text that cannot be used, or settings and values at once.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    started = time.perf_counter()
    if not isinstance(settings, PretrainSettings | None):
        raise InputError(f"pretrain was given {settings!r:.60}; name it, as in corpus='wiki.txt'")
    if settings is not None and values:
        raise InputError(
            f"pretrain was given settings and {', '.join(values)} beside them; expected one of the "
            f"two, such as dataclasses.replace(settings, {next(iter(values))}=...)"
        )
    if "recipe" in values:
        values = {**recipe(values.pop("recipe"), values), **values}
    settings = settings or PretrainSettings.from_dict(values, "pretrain")
    files = corpus.find_files(settings.corpus)
    files, num_empty = corpus.readable_files(files)  # before anything is made
    corpus.check_text_field(settings.text_field, files, "--corpus")
    is_sample = files[0].resolve() == (bundled_data() / "wiki.txt").resolve()
    what = "the bundled sample (small, for trying out)" if is_sample else "your text in"
    more = f" and {len(files) - 1:,} more file(s)" if len(files) > 1 else ""
    empty = f"; {num_empty:,} empty file(s) left out" if num_empty else ""
    others = f"; {told}" if (told := corpus.other_files(settings.corpus)) else ""
    log_line("data", f"{what} {files[0]}{more}{empty}{others}")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(join_world())
        folder = None
        if not settings.dry_run:
            folder = RunFolder(settings.output or "runs/pretrain", world.is_main)
            stack.enter_context(folder)
        return _Run(folder, settings, files, world, started, stack).carry_out()


class _Run:
    """One pretraining run: text -> model -> loop -> results, each step from the one before."""

    def __init__(
        self,
        folder: RunFolder | None,
        settings: PretrainSettings,
        files: list[Path],
        world: World,
        started: float,
        stack: contextlib.ExitStack,
    ) -> None:
        self.folder, self.settings, self.files, self.world = folder, settings, files, world
        self.started, self.stack = started, stack

    def _name_files_as(self, begun: list[str]) -> None:
        """Takes the files in the order that the run began with, if they are the same ones.

        Shells of two languages sort a glob without quotes in two ways.
        """
        given = {path.resolve(): path for path in self.files}
        try:
            found = [path.resolve() for path in corpus.find_files(begun)]
        except InputError:  # the text has moved
            return
        ordered = [given[place] for place in found if place in given]
        if len(ordered) == len(self.files):
            self.files, self.settings = ordered, replace(self.settings, corpus=begun)

    def carry_out(self) -> RunResult:
        """The whole run."""
        folder, world = self.folder, self.world
        self.begun = begun_run(folder, "pretrain", self.settings, world)
        if self.begun is not None:
            self._name_files_as(self.begun["settings"]["corpus"])
        settings = self.settings
        cache = Path(settings.cache_dir) if settings.cache_dir else None
        with world.main_first():  # the others find the digests of a large text ready
            fingerprint = data_fingerprint(self.files, _reader_options(settings), cache)
        if folder is not None and self.begun is not None:
            folder.check_same_data(fingerprint, settings.to_dict())
            if folder.is_main:
                folder.respell_data(settings.to_dict())  # for --config with the run.json
            if folder.results is not None:
                return finished_run(folder)
        self.runtime = start_or_replay_runtime(settings, self.begun, world)
        start = self._start()
        source = self._text(start)
        model = _build_model(settings, source, start.folder)
        had_pairs = start.digest is not None and _has_learnt_pairs(model, start.folder)
        placed(model, settings, self.runtime)
        always_pairs = settings.nsp != "none" and settings.nsp_share is None
        forward = wrapped(model, settings, self.runtime, self.begun, all_used=always_pairs)
        data = self._data(source)
        trial = Trial(model, forward, pretraining_terms, data.largest, self.runtime)
        data.micro_batch_size = micro_batch_size(settings, self.begun, trial)
        held_out = _held_out(source, settings)
        loop = self._loop(model, forward, data, source, start, held_out)
        compiled = compile_if_it_pays(settings, self.begun, loop)
        record = run_record("pretrain", settings, fingerprint, self.runtime)
        assert loop.utilisation is not None
        record["resolved"] |= {
            "vocab_size": source.tokenizer.vocab_size,
            "tokenizer": source.tokenizer.fingerprint,
            "micro_batch_size": data.micro_batch_size,
            "compile": compiled,
            "learning_rate": loop.settings.learning_rate,
            "start": str(start.folder) if start.folder else None,
            "start_weights": start.digest,
            "trained_positions": max(start.positions, _reached(settings, model.config)),
            "trained_pairs": had_pairs or settings.nsp != "none",
            "budget": dataclasses.asdict(loop.settings.budget),
            "peak_flops": loop.utilisation.peak_flops,
            "model": model.config.to_dict(),
        }
        scoring = functools.partial(self._scoring, model, source, data.micro_batch_size, held_out)
        begun, save = self.begun is not None, source.tokenizer.save
        resume = begun or settings.resume == "yes"
        state = carry_out(loop, model, folder, None if begun else record, resume, scoring, save)
        if folder is None or state is None:
            return RunResult(Path(), {})
        if (unreached := data.told_unreached()) is not None:
            log_line("phases", unreached)
            if world.is_main:
                self._record_reached(folder, start, data, had_pairs)
        figures = self._score(model, source, data.micro_batch_size, held_out)
        results = _results(settings, source, held_out, figures) | {
            "steps": state.step,
            "epochs": data.epochs_done,
            "tokens": state.tokens,
            "seconds": state.seconds,
        }
        save_model(model, folder.path, world)
        if world.is_main:
            source.tokenizer.save(folder.path, trained_positions(folder.path, model.config))
            write_json(folder.path / "results.json", results)
            closing_table(results, folder.path)
        return RunResult(folder.path, results, model)

    def _record_reached(
        self, folder: RunFolder, start: _Start, data: PretrainingData, had_pairs: bool
    ) -> None:
        """Corrects in run.json what the last phases would have trained, and did not."""
        run = folder.read_run()
        if not self.settings.shift_positions:
            run["resolved"]["trained_positions"] = max(start.positions, data.positions_reached)
        run["resolved"]["trained_pairs"] = had_pairs or data.has_reached_pairs
        folder.write_run(run)

    def _start(self) -> _Start:
        """The model to go on from, if there is one; what cannot be used is refused here.

        Raises:
            InputError: the folder, its size, or that it has changed since the run began.
        """
        settings, begun = self.settings, self.begun
        named = as_begun_from(settings, begun and begun["resolved"]).model
        folder = open_model_folder(named, settings.cache_dir) if named else None
        check_not_start(self.folder, folder)
        check_not_read(self.folder, settings)
        digest = weights_digest(folder) if folder and not settings.random_weights else None
        if begun is not None and begun["resolved"].get("start_weights", digest) != digest:
            raise InputError(
                f"--resume: the weights in {folder} have changed; --overwrite starts anew"
            )
        config = BertConfig.from_pretrained(folder) if folder else _new_config(settings)
        model_config(settings, config)  # refused before the text is read
        _check_padding(settings.max_seq_length, config.max_position_embeddings)
        if settings.nsp != "none" and config.type_vocab_size < 2:
            raise InputError(
                f"{folder} tells no segments apart (type_vocab_size {config.type_vocab_size}), as "
                f"sentence pairs need; --nsp none trains without pairs"
            )
        positions = trained_positions(folder, config) if folder and digest else 0
        return _Start(folder, digest, config, positions)

    def _text(self, start: _Start) -> _Source:
        """The text, encoded and split."""
        settings, begun = self.settings, self.begun
        tokenizer_folder = _tokenizer_folder(settings, start.folder, self.folder, begun)
        with self.world.main_first():  # the others find vocabulary and tokens ready
            positions = start.config.max_position_embeddings
            source = _prepare_text(settings, self.files, tokenizer_folder, positions)
        if begun is not None and begun["resolved"]["tokenizer"] != source.tokenizer.fingerprint:
            raise InputError("--resume: the tokenizer has changed since; --overwrite starts anew")
        return source

    def _data(self, source: _Source) -> PretrainingData:
        """Where steps come from."""
        settings, world = self.settings, self.world
        spread = world.map if world.size > 1 else None
        builders = _builders_ahead(source.training, settings.seed, self.runtime, self.stack)
        phases = [
            Phase(ExampleStream(builder, settings.seed, spread, builders), until)
            for builder, until in _parts_of_budget(source.training, settings)
        ]
        batch, ramp = settings.batch_size, settings.batch_ramp or 0.0
        data = PretrainingData(phases, batch, batch, world, ramp)
        if len(phases) > 1:
            log_line("phases", data.told_phases())
        return data

    def _score(
        self, model: BertForPreTraining, source: _Source, size: int, examples: Sequence[Example]
    ) -> dict[str, float]:
        model.eval()
        slots = source.held_out.options.max_predictions
        return evaluate_pretraining(model, examples, slots, size, self.runtime)

    def _scoring(
        self, model: BertForPreTraining, source: _Source, size: int, examples: list[Example]
    ) -> Scoring:
        """How long scoring will take, from some of the examples."""

        def score(some: Sequence[Example]) -> object:
            return self._score(model, source, size, some)

        each = scoring_seconds(score, examples, 1, REHEARSED_BATCHES * size)
        return Scoring(each * len(_few(examples)), each * len(examples))

    def _loop(
        self,
        model: BertForPreTraining,
        forward: Callable[..., Any],
        data: PretrainingData,
        source: _Source,
        start: _Start,
        held_out: list[Example],
    ) -> Loop:
        """The training loop, with its budget and what it is scored on."""
        settings = self.settings

        def score(examples: Sequence[Example]) -> dict[str, float]:
            return self._score(model, source, data.micro_batch_size, examples)

        few = _few(held_out)
        if self.begun is not None:
            budget = Budget(**self.begun["resolved"]["budget"])
        elif settings.max_minutes:
            # After the last step the few are scored, and then all.
            scoring = scoring_seconds(score, held_out, len(few) + len(held_out))
            seconds = training_seconds(settings.max_minutes, self.started, scoring)
            budget = Budget(seconds=self.world.from_main(seconds))
        else:
            held = source.held_out.documents.tokens
            budget = _budget(settings, data.whole, source.store.counts.tokens - held)
        exams = [*_early_exams(source, settings, len(few)), few]
        entropies = [unigram_entropy(source.held_out, exam) for exam in exams]
        is_told = False

        def evaluate() -> dict[str, float]:
            nonlocal is_told
            figures = score(exams[data.number])
            loss, entropy = figures["mlm_loss"], entropies[data.number]
            if loop.done > 0.5 and loss > entropy - _LEARNT and not is_told:
                is_told = True
                log_line("plateau", _plateau_text(loss, entropy))
            length = data.stream.builder.options.max_seq_length
            return figures | ({"max_seq_length": length} if settings.short_length else {})

        if self.begun is not None:
            rate = float(self.begun["resolved"]["learning_rate"])
        else:
            rate = settings.learning_rate or default_learning_rate(
                model.config.hidden_size, settings.optimizer, goes_on=start.digest is not None
            )
        build = build_muon if settings.optimizer == "muon" else build_optimizer
        loop = Loop(
            model,
            data,
            pretraining_terms,
            build(model, rate, settings.weight_decay),
            loop_settings(settings, rate, budget),
            self.runtime,
            self.folder,
            evaluate=evaluate,
            forward=forward,
            utilisation=utilisation(settings, model.config, self.runtime, self.begun),
            pace=data.pace,
            mean_step=mean_batch_share(data.batch_ramp),
        )
        return loop


def _few(held_out: list[Example]) -> list[Example]:
    """Those that are scored while training."""
    return held_out[:: max(1, len(held_out) // _EVAL_DURING)]


def _check_padding(length: int, positions: int) -> None:
    """Raises InputError where the padding of `collate` would go beyond a model's positions."""
    if (padded := -(-length // PADDED_TO) * PADDED_TO) > positions:
        raise InputError(
            f"--max-seq-length {length} is padded to {padded} tokens, a multiple of {PADDED_TO}, "
            f"and the model has {positions} positions; --max-seq-length "
            f"{positions // PADDED_TO * PADDED_TO} fits"
        )


def _reached(settings: PretrainSettings, config: BertConfig) -> int:
    """How many of the network's positions a run trains."""
    return config.max_position_embeddings if settings.shift_positions else settings.max_seq_length


def _held_out(source: _Source, settings: PretrainSettings) -> list[Example]:
    """The examples that are scored.

    Raises:
        InputError: there are none.
    """
    held_out = held_out_examples(source.held_out, settings.eval_examples)
    if not held_out:
        counts = source.store.counts
        pair = "to pair (--nsp none trains without pairs)" if settings.nsp != "none" else "to mask"
        raise InputError(
            f"the held-out documents give no example: they are too short {pair}, or their words "
            f"unknown ({counts.unknown_tokens:,} of {counts.tokens:,} tokens in the corpus are)"
        )
    return held_out


def _early_exams(source: _Source, settings: PretrainSettings, count: int) -> list[list[Example]]:
    """What is scored in each phase but the last: about the tokens of `count` whole examples.

    They are like those that are trained on then: short sequences leave the later positions as they
    were drawn, and without pairs none can be told apart.
    """
    found = []
    for builder, _ in _parts_of_budget(source.held_out, settings)[:-1]:
        more = settings.max_seq_length // builder.options.max_seq_length
        found.append(held_out_examples(builder, count * more))
    return found


def _results(
    settings: PretrainSettings,
    source: _Source,
    held_out: list[Example],
    figures: dict[str, float],
) -> dict[str, Any]:
    """What results.json says of the text and of the held-out examples."""
    bits = figures["mlm_loss"] / math.log(2)
    return {
        "task": "pretrain",
        "dataset": ", ".join(Path(place).name or place for place in settings.corpus),
        "num_train": len(source.training.documents),
        "num_eval": len(held_out),
        **figures,
        "unigram_entropy": unigram_entropy(source.held_out, held_out),
        "mlm_bits_per_character": bits * tokens_per_character(source.tokenizer, held_out),
    }


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


def _parts_of_budget(
    last: ExampleBuilder, settings: PretrainSettings
) -> list[tuple[ExampleBuilder, float]]:
    """What builds the examples of the same documents, and until which share of the budget.

    Sequences of --short-length come first, and pairs in the last --nsp-share alone.

    Args:
        last: of the end of the budget.
    """
    short = settings.short_length
    short_until = (settings.short_share or SHORT_SHARE) if short else 0.0
    pairs_from = round(1 - (settings.nsp_share or 1), 9)  # no sliver of a phase
    found, start = [], 0.0
    for until in sorted({short_until, pairs_from, 1.0} - {0.0}):
        options = last.options
        if short and start < short_until:
            options = dataclasses.replace(options, max_seq_length=short)
        if start < pairs_from:
            options = dataclasses.replace(options, nsp="none")
        found.append((ExampleBuilder(last.store, last.tokenizer, last.documents, options), until))
        start = until
    return found


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


def _budget(settings: PretrainSettings, stream: ExampleStream, tokens: int) -> Budget:
    """The budget in steps or epochs that was asked for, or the default rule, printed.

    Its batch is the mean one over the budget. tokens: of the text to train on.
    """
    if settings.max_steps or settings.epochs:
        return Budget(max_steps=settings.max_steps, epochs=settings.epochs)
    examples = stream.current_block()
    mean = sum(len(e.input_ids) for e in examples) / max(1, len(examples))
    mean = mean or settings.max_seq_length  # a block without examples; `take` says what is wrong
    batch = settings.batch_size * mean_batch_share(settings.batch_ramp or 0.0)
    steps, rule = default_steps(tokens, mean * batch)
    log_line("budget", rule)
    return Budget(max_steps=steps)
