"""What both stages do around the loop: find a model, record the run, report its end."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minibert.config import BertConfig
from minibert.convert import weights_file
from minibert.errors import InputError
from minibert.estimate import Memory, run_folder_bytes, step_memory, told_bytes
from minibert.fields import flag
from minibert.files import listed, read_json, whole_characters
from minibert.flops import measure_peak_flops, training_flops
from minibert.layerwise import Layerwise
from minibert.losses import IGNORE_INDEX
from minibert.machine import launched
from minibert.model import FeedForward, SelfAttention
from minibert.optim import Budget
from minibert.progress import clock
from minibert.run_folder import RUN_FILES, RunFolder
from minibert.runtime import Runtime, start_runtime, versions
from minibert.settings import DATA_PLACES, DECAY_RATIO, FinetuneSettings, RunSettings
from minibert.sharding import gathered, is_sharded, shard
from minibert.tokenizer import WordPiece
from minibert.train import Batch, Loop, LoopSettings, LoopState, StepData, Utilisation, fit
from minibert.world import ALONE, World

# Of the matrix products that tell the machine's peak, at most: on a CPU, on a GPU.
_MEASURED_ROWS, _MEASURED_ON_GPU = 8192, 65_536
_TIMED_ROWS = 200  # rows scored to tell how long all of them will take
REHEARSED_BATCHES = 2  # scored for that in a dry run


@dataclass(frozen=True)
class RunResult:
    """What `pretrain` and `finetune` return.

    folder: the run folder. figures: the content of results.json. model: in eval mode; None when
    the run was finished before, or after a dry run.
    """

    folder: Path
    figures: dict[str, Any]
    model: nn.Module | None = None


@dataclass(frozen=True)
class EarlierStage:
    """A model that a stage before fine-tuning left in the run's folder.

    folder: its own run folder. weights: their digest. notes: what results.json says of it.
    """

    folder: Path
    weights: str
    notes: dict[str, Any]


def log_line(topic: str, text: str) -> None:
    """One line of the run's log, on standard error, from the main process."""
    if launched().rank == 0:
        print(f"{topic}: {text}", file=sys.stderr, flush=True)


def begun_run(
    folder: RunFolder | None, command: str, settings: RunSettings, world: World = ALONE
) -> dict[str, Any] | None:
    """The run.json of a run that is to go on, None for one that begins; the main process looks.

    Raises:
        InputError: the folder may not be used so (see `RunFolder.check_may_start`), or the run
            was begun with other settings.
    """
    return world.from_main(_begun_run(folder, command, settings) if world.is_main else None)


def _begun_run(
    folder: RunFolder | None, command: str, settings: RunSettings
) -> dict[str, Any] | None:
    if folder is None or not folder.check_may_start(settings.resume, settings.overwrite):
        return None
    folder.check_same_settings(command, settings.to_dict())
    folder.drop_half_written()
    run = folder.read_run()
    differ = {k: v for k, v in versions().items() if run["versions"].get(k) != v}
    if differ:
        log_line("versions", f"not those the run began with, so bits may differ: now {differ}")
    return run


def start_or_replay_runtime(
    settings: RunSettings, begun: dict[str, Any] | None, world: World = ALONE
) -> Runtime:
    """The runtime of a run; one that goes on keeps the precision that it began with.

    Raises:
        InputError: a device that is not there, or one process alone is to share a model.
    """
    if settings.shard and world.size == 1:
        raise InputError(
            "--shard parts a model among processes, and this is one; start several with "
            "torchrun --nproc-per-node N, or leave --shard out"
        )
    resolved = begun["resolved"] if begun else {}
    precision = resolved.get("precision", settings.precision)
    runtime = start_runtime(settings.device, precision, settings.deterministic, world)
    if resolved.get("device", str(runtime.device)) != str(runtime.device):
        log_line("device", f"was {resolved['device']}, now {runtime.device}; bits may differ")
    return runtime


def as_begun_from(settings: Any, begun: Mapping[str, Any] | None) -> Any:
    """The settings with the model folder that a run that goes on began with, while it is there.

    By now a hub's name may mean another revision, and no name at all another model.

    Args:
        settings: of a run of either stage.
        begun: `resolved` of its run.json, None of one that begins.
    """
    folder = begun.get("start") if begun else None
    if not folder or not Path(folder).is_dir():
        return settings
    return dataclasses.replace(settings, model=folder)


def model_config(settings: RunSettings, config: BertConfig) -> BertConfig:
    """A model's config with what the settings change in it.

    Raises:
        InputError: sequences are to be longer than the model has positions.
    """
    length, positions = settings.max_seq_length, config.max_position_embeddings
    if length > positions:
        raise InputError(f"--max-seq-length {length} is beyond the model's {positions} positions")
    if settings.dropout is None:
        return config
    return dataclasses.replace(
        config,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        classifier_dropout=None,  # follows the hidden one
    )


def trained_positions(folder: Path, config: BertConfig) -> int:
    """How many positions of a model training has reached; later ones hold their first draw.

    Of a model that no run here pretrained: those that its tokenizer_config.json has texts cut to.
    """
    run, tokenizer = (
        read_json(folder / name, "") if (folder / name).is_file() else {}
        for name in ("run.json", "tokenizer_config.json")
    )
    settings, resolved = run.get("settings", {}), run.get("resolved", {})
    positions = config.max_position_embeddings
    if run.get("command") != "pretrain":
        named = tokenizer.get("model_max_length")
        return min(positions, named) if isinstance(named, int) and named > 2 else positions
    if "trained_positions" in resolved:
        return min(positions, int(resolved["trained_positions"]))
    return positions if settings.get("model") else min(positions, settings["max_seq_length"])


def utilisation(
    settings: RunSettings,
    config: BertConfig,
    runtime: Runtime,
    begun: dict[str, Any] | None,
    useful_flops: Callable[[StepData], float] | None = None,
) -> Utilisation:
    """What `mfu` is computed from.

    Measured at every start, for a run may go on elsewhere. Of the same device, with as many
    processes and threads, the greater of both peaks counts: beside other work it looks small.

    Args:
        useful_flops: of a step; by default those of the backbone and of masked words.
    """
    micro = settings.micro_batch_size
    rows = (micro if isinstance(micro, int) else settings.batch_size) * settings.max_seq_length
    most = _MEASURED_ON_GPU if runtime.runs_ahead else _MEASURED_ROWS
    with torch.random.fork_rng([runtime.device] if runtime.runs_ahead else []):
        peak = measure_peak_flops(config, min(rows, most), runtime)
    # All at once, as in a step: processes of one machine share its cores.
    peak = float(runtime.world.sum(torch.tensor(peak, dtype=torch.float64)))
    if begun and _measured_on(begun) == _measured_on(run_record("", settings, "", runtime)):
        peak = max(peak, begun["resolved"].get("peak_flops", 0.0))

    def backbone_flops(step: StepData) -> float:
        return training_flops(config, step.lengths, step.counts.get("mlm", 0))

    return Utilisation(useful_flops or backbone_flops, peak)


def scoring_seconds(
    score: Callable[[Sequence[Any]], object],
    rows: Sequence[Any],
    count: int,
    timed: int = _TIMED_ROWS,
) -> float:
    """How long scoring will take, from the time that some rows take.

    Args:
        score: what is timed. count: how many rows like these are to be scored. timed: about so
            many are.
    """
    some = rows[:: max(1, len(rows) // timed)]
    score(some[:1])  # what the first call alone costs
    begin = time.perf_counter()
    score(some)
    return (time.perf_counter() - begin) * count / len(some)


class Scoring(NamedTuple):
    """Seconds that scoring takes: of one evaluation, and after the last one."""

    evaluation: float
    end: float


def training_seconds(max_minutes: float, started: float, scoring: float) -> float:
    """How much of a budget in minutes is left for the loop.

    What was spent before the first step and what scoring takes at the end is not training; of the
    rest a twentieth is left for writing and for what else comes at the end.

    Args:
        started: `time.perf_counter()` when the command began.
        scoring: seconds that scoring will take.
    """
    return max(1.0, (max_minutes * 60 - (time.perf_counter() - started)) * 0.95 - scoring)


def carry_out(
    loop: Loop,
    model: nn.Module,
    folder: RunFolder | None,
    record: dict[str, Any] | None,
    resume: bool,
    scoring: Callable[[], Scoring],
    begin: Callable[[Path], object] = lambda path: None,
) -> LoopState | None:
    """Announces a run and trains; None after a dry run, which takes two steps and keeps nothing.

    Args:
        scoring: says what scoring will take; asked in a dry run.
        record: the content of run.json of a run that begins, None of one that goes on.
        begin: writes what else a run's folder holds from its start.
    """
    if folder is None:
        model.train()
        for _ in range(2):
            loop.take_step()
    seconds, expected = loop.announce(model)
    if folder is None:
        print_estimate(loop, model, seconds, expected, scoring())
        return None
    if record is not None:
        # A schedule by the clock begins with the first step: compiling took its warm-up before.
        loop.leave_out_time()
        record["resolved"]["budget"] = dataclasses.asdict(loop.settings.budget)
    if record is not None and folder.is_main:
        folder.clear()
        folder.write_run(record)  # before anything else: it makes the folder a run's
        begin(folder.path)
    return fit(loop, resume=resume)


def print_estimate(
    loop: Loop, model: nn.Module, seconds: float, expected: float, scoring: Scoring
) -> None:
    """What a step and the run need, by the formulas of `estimate.py` and `flops.py`.

    Args:
        seconds, expected, scoring: of a step, of the budget, of scoring, as they were measured.
    """
    (step,), _ = loop.next_steps(1)
    parameters = sum(p.numel() for p in model.parameters())
    needed = [_memory_of(batch, loop, model, parameters) for batch in step.micro_batches]
    memory = max(needed, key=lambda memory: memory.total)
    log_line("memory", f"{memory} for a step, libraries not counted")
    if loop.utilisation:
        flops = loop.utilisation.useful_flops(step)
        whole = expected / seconds * flops
        log_line("arithmetic", f"{flops:.2e} FLOP a step, {whole:.2e} FLOP for the budget")
    scored = _scored_seconds(loop, expected / seconds, scoring)
    log_line("cost", _cost(expected + scored, scored, loop.runtime.device.type, loop.world.size))
    keeps_best = loop.settings.select is not None
    disk = run_folder_bytes(parameters, keeps_best, _held_moments(loop) / parameters)
    log_line("disk", f"at most {told_bytes(disk)}, while a third checkpoint is saved")


def _scored_seconds(loop: Loop, steps: float, scoring: Scoring) -> float:
    """Seconds of all scoring that come to those of the steps; a budget by the clock holds most."""
    budget = loop.settings.budget
    if budget.seconds is not None:
        return scoring.end
    return loop.evaluations(budget.max_steps or steps) * scoring.evaluation + scoring.end


def _cost(seconds: float, scored: float, device: str, count: int) -> str:
    """Hours of a run and what to multiply by a price; all GPUs are paid for all of the time."""
    hours = seconds / 3600
    of = "this machine" if device == "cpu" else f"{count} GPU{'s' * (count != 1)}"
    each = "an hour of it" if device == "cpu" else "a GPU-hour"
    paid = f" = {hours * count:.2g} GPU-hours" if device != "cpu" and count > 1 else ""
    share = f"{scored / seconds:.0%} of them scoring"
    return f"{hours:.2g} hours of {of}{paid}, {share}; times what {each} costs you"


def _held_moments(loop: Loop) -> int:
    """Numbers that the optimiser keeps after a step: AdamW two a weight, Muon's matrices one."""
    state = loop.optimizer.state.values()
    return sum(x.numel() for kept in state for x in kept.values() if torch.is_tensor(x) and x.ndim)


def _memory_of(batch: Batch, loop: Loop, model: nn.Module, parameters: int) -> Memory:
    """What a step with a micro-batch takes."""
    config: BertConfig = model.config  # type: ignore[assignment]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    targets = batch["labels"] != IGNORE_INDEX if hasattr(model, "decoder_config") else None
    return step_memory(
        config,
        batch["attention_mask"].sum(1).tolist(),
        batch["mlm_labels"].numel() if "mlm_labels" in batch else 0,
        loop.runtime.precision,
        parameters,
        shards=loop.world.size if is_sharded(model) else 1,
        fused_attention=loop.runtime.device.type != "cpu",
        target_lengths=() if targets is None else targets.sum(1).tolist(),
        trained=trained,
        moments=_held_moments(loop) / trained,
    )


def placed(model: nn.Module, settings: RunSettings, runtime: Runtime) -> nn.Module:
    """The model on its device, with --shard a part of it; before an optimiser is made."""
    if not settings.shard:
        return model.to(runtime.device)
    # Their parameters are those that matrix products read, so bf16 changes no LayerNorm.
    units = [part for part in model.modules() if isinstance(part, (SelfAttention, FeedForward))]
    shard(model, units, runtime.world, runtime.device, runtime.precision == "bf16")
    return model


def save_model(model: Any, folder: Path, world: World) -> None:
    """Writes a model's folder, of a sharded one the same; every process must ask."""
    weights = gathered(model.state_dict(), world)
    if world.is_main:
        model.save_pretrained(folder, weights)


def compile_choice(settings: RunSettings, begun: dict[str, Any] | None) -> bool | None:
    """Whether to compile, as set or as a run that goes on began; None: that is to be measured."""
    chosen = settings.compile
    if begun is not None:
        chosen = begun["resolved"].get("compile", chosen)  # an older version stored none
    return None if chosen == "auto" else chosen


def wrapped(
    model: nn.Module,
    settings: RunSettings,
    runtime: Runtime,
    begun: dict[str, Any] | None = None,
    all_used: bool = True,
) -> Callable[..., Any]:
    """What the loop calls instead of the model: compiled, shared among processes, or itself.

    Args:
        begun: the run.json of a run that goes on.
        all_used: every parameter is part of every loss.
    """
    forward: Any = model
    if runtime.world.size > 1 and not settings.shard:  # a sharded model sees to it by itself
        # No device is named: it would move what is to stay on the host.
        forward = DistributedDataParallel(
            model, find_unused_parameters=not all_used, gradient_as_bucket_view=True
        )
    return compiled(forward, model, runtime) if compile_choice(settings, begun) else forward


def compiled(forward: Callable[..., Any], model: nn.Module, runtime: Runtime) -> Callable[..., Any]:
    """A forward as torch.compile makes it: whole on a CPU, on a GPU layer by layer."""
    return Layerwise(forward, model) if runtime.runs_ahead else torch.compile(forward)


def check_vocabulary(tokenizer: WordPiece, config: BertConfig) -> None:
    """Refuses ids that the model has no embedding for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {config.vocab_size:,}"
        )


def check_not_start(folder: RunFolder | None, start: Path | None) -> None:
    """Refuses to write a run over the model that it starts from, or that lies in its folder."""
    if not folder or not start:
        return
    output, model = folder.path.resolve(), start.resolve()
    if model == output:
        raise InputError(f"--output {folder.path} is the --model folder; choose another --output")
    if model.is_relative_to(output):
        raise InputError(f"--model {start} lies in --output {folder.path}; choose another --output")


def check_not_read(folder: RunFolder | None, settings: RunSettings) -> None:
    """Refuses to clear a run of which a file is to be read, such as its own predictions.

    Raises:
        InputError: a file of data or text is one that a new run replaces.
    """
    if not folder:
        return
    output = folder.path.resolve()
    for name in (*DATA_PLACES, "corpus", "adapt", "self_training"):
        for given in listed(getattr(settings, name, None) or []):
            path = Path(given).resolve()
            parts = path.relative_to(output).parts if path.is_relative_to(output) else ()
            if parts and (parts[0] in RUN_FILES or parts[0].startswith("seed-")):
                raise InputError(
                    f"{flag(name)} {given} is a file of --output {folder.path}, which is replaced; "
                    f"choose another --output"
                )


def finished_run(folder: RunFolder) -> RunResult:
    """The result of a run that had ended before, which is said."""
    log_line("finished", f"{folder.path} holds a finished run; nothing to do")
    return RunResult(folder.path, folder.results or {})


def weights_digest(folder: Path) -> str:
    """A digest of a model folder's weights file, to know it again by."""
    with weights_file(folder).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def dev_figure(results: Mapping[str, Any]) -> tuple[str, float]:
    """The figure on dev that chose the weights of a fine-tuning: its name, its value."""
    name, value = next((k, v) for k, v in results.items() if k.startswith("dev_"))
    return name.removeprefix("dev_"), float(value)


def learning_seconds(results: Mapping[str, Any]) -> float:
    """Seconds of training of a fine-tuning: its own, and those of the fine-tunings before it."""
    before = (
        results.get(name, {}).get("seconds", 0.0) for name in ("intermediate", "self_training")
    )
    return float(results["seconds"]) + sum(map(float, before))


def of_seed(settings: FinetuneSettings, folder: Path, seed: int) -> FinetuneSettings:
    """The settings of one of many seeds, in a folder below that of all."""
    output = str(folder / f"seed-{seed}")
    return dataclasses.replace(settings, seed=seed, seeds=1, output=output)


def loop_settings(
    settings: RunSettings, learning_rate: float, budget: Budget, select: str | None = None
) -> LoopSettings:
    """The loop's part of a run's settings, with the peak rate and the budget as resolved."""
    return LoopSettings(
        learning_rate=learning_rate,
        budget=budget,
        warmup_ratio=settings.warmup_ratio,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        save_every=settings.save_every,
        select=select,
        profile=settings.profile,
        schedule=settings.schedule or "linear",
        decay_ratio=DECAY_RATIO if settings.decay_ratio is None else settings.decay_ratio,
    )


def _measured_on(run: dict[str, Any]) -> tuple[Any, ...]:
    """What a run.json says of the place where its peak was measured."""
    threads = run["versions"].get("threads")
    return (*(run["resolved"].get(key) for key in ("device", "precision", "processes")), threads)


def run_record(
    command: str, settings: RunSettings, data_fingerprint: str, runtime: Runtime
) -> dict[str, Any]:
    """The content of run.json: settings as given, as resolved, versions, data."""
    return {
        "command": command,
        "settings": settings.to_dict(),
        "resolved": {
            "device": str(runtime.device),
            "precision": runtime.precision,
            "processes": runtime.world.size,
        },
        "versions": versions(),
        "data_fingerprint": data_fingerprint,
    }


def closing_table(results: dict[str, Any], folder: Path) -> None:
    """The final figures on standard output, one a line."""
    rows = []
    for key, value in results.items():
        if isinstance(value, (dict, list)):
            continue
        text = (
            f"{value:,.4f}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        rows.append((key, clock(value) if key == "seconds" else text))
    width = max(len(key) for key, _ in rows)
    rows.append(("folder", str(folder)))
    lines = "\n".join(f"{key:<{width}}  {text}" for key, text in rows)
    print(whole_characters(lines), flush=True)  # names of files need not be UTF-8
