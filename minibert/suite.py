"""`minibert evaluate-suite`: what a model folder is worth, as a table of fine-tunings.

In: a model folder and a folder of public sets. Of each task, by several seeds: the model, the same
architecture from random weights, and classical methods on the same split. Out: a folder with
suite.json, suite.md, suite.html and, as TASK/model/seed-N and TASK/random/seed-N, the runs.

Settings are those of `recipes.py`, of the task, or of files that `minibert search-settings` wrote;
none is chosen here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.config import BertConfig
from minibert.errors import InputError, MissingExtraError, did_you_mean
from minibert.fields import check_fields, flag
from minibert.files import listed, read_json, write_json, write_text
from minibert.finetuning import learn, read_splits
from minibert.held_out import held_out_figures, held_out_text, masked_word_figures
from minibert.intermediate import data_before
from minibert.model_folders import pinned
from minibert.progress import counted
from minibert.recipes import file_settings
from minibert.runs import dev_figure, learning_seconds, log_line, of_seed, weights_digest
from minibert.runtime import find_device
from minibert.series import Job, carry_out_all, check_alone, claimed
from minibert.settings import BEST, BOTH, NO_TASK, NO_TEXTS, FinetuneSettings, says_none
from minibert.starts import start_folder, with_recipe
from minibert.suite_report import as_html, as_markdown
from minibert.tasks import find_task
from minibert.tasks.base import Source, Task, find_set
from minibert.tasks.splits import Parts, parts_of


class Entry(NamedTuple):
    """A row of the table: a key of results.json, what it is called, what makes it 0..100.

    dev_only: dev is scored and the test split left alone, since that is what others quote.
    """

    figure: str
    title: str
    scale: float = 100.0
    dev_only: bool = False


ENTRIES = {
    "imdb": Entry("accuracy", "accuracy"),
    "sst2": Entry("accuracy", "accuracy", dev_only=True),
    "conll2003": Entry("f1", "entity F1"),
    "stsb": Entry("spearman", "Spearman"),
    "mrpc": Entry("f1_binary", "F1"),
    "rte": Entry("accuracy", "accuracy"),
    "squad": Entry("f1", "F1", scale=1.0),
}
SIDES = ("model", "random")
_METHODS = {
    "tfidf": "TF-IDF + logistic regression",
    "nbsvm": "NB-SVM",
    "majority": "majority",
    "lexicon": "entities of train",
    "overlap": "word overlap",
    "silence": "no answer",
}
# Settings that a file may not bring: the suite says them.
_OWN = (
    *("model", "data", "output", "seed", "seeds", "resume", "overwrite", "limit", "dev_only"),
    *("device", "precision", "dry_run"),
)
_TOLD_FIRST = ("learning_rate", "epochs", "min_steps", "max_steps", "max_minutes")  # with own words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a suite is to do.

    tasks: names of `ENTRIES`; empty for all. limit, max_minutes, max_steps: for a quick look, of
    each fine-tuning; the table says so. settings: files as `search-settings` writes them. jobs: so
    many fine-tunings at a time, each with its share of the cores.
    """

    model: str
    data: str | None = None
    tasks: tuple[str, ...] = ()
    seeds: int = 5
    output: str = "runs/suite"
    limit: int | None = None
    max_minutes: float | None = None
    max_steps: int | None = None
    settings: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    overwrite: bool = False
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in ENTRIES:
                raise InputError(f"--tasks {name!r} is unknown{did_you_mean(name, ENTRIES)}")
        for name in ("seeds", "limit", "max_minutes", "max_steps", "jobs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{flag(name)} is {value}, must be above 0")
        if self.max_minutes and self.max_steps:
            raise InputError("--max-minutes and --max-steps are both budgets; give one")
        # What no fine-tuning would take, before a folder is made.
        FinetuneSettings(task="suite", limit=self.limit, precision=self.precision)
        if self.data is not None and not Path(self.data).is_dir():
            raise InputError(f"--data {self.data} is not a folder; expected one of data sets")

    @property
    def quick(self) -> str:
        """What makes it a quick look, empty where nothing does."""
        told = (
            (self.limit, "training example", "a task at most"),
            (self.max_minutes, "minute", "a fine-tuning"),
            (self.max_steps, "step", "a fine-tuning"),
        )
        return ", ".join(f"{counted(n, noun)} {each}" for n, noun, each in told if n)


def evaluate_suite(model: str | Path, **options: Any) -> dict[str, Any]:
    """Fine-tunes a model on every task and writes the table; finished runs are not repeated.

    Args:
        model: a model folder.
        options: the other fields of `Plan`, as in `data="datasets", seeds=3`.

    Returns:
        The content of suite.json.

    Raises:
        InputError: several processes, no model, no data or no such device; an option of another
            type; or runs in the folder that had other settings.
        Interrupted: by a signal; the same call goes on.
    """
    check_alone()
    given: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    for name in ("tasks", "settings"):
        if isinstance(value := options.get(name), (Path, Iterable)):  # a name is one, too
            given[name] = tuple(listed(value))
        elif value is None:
            given.pop(name, None)
    check_fields(Plan, given, "evaluate_suite")
    plan = Plan(model=str(model), **given)
    find_device(plan.device)  # before a baseline, which takes minutes
    folder = start_folder(FinetuneSettings(task="suite", model=plan.model))
    plan = dataclasses.replace(plan, model=pinned(plan.model, folder))
    digest = weights_digest(folder)
    sources = {name: _source(plan, name) for name in dict.fromkeys(plan.tasks or ENTRIES)}
    files = _settings_files(plan.settings, list(sources))
    if not any(isinstance(source, Source) for source in sources.values()):
        raise InputError(f"--data {plan.data} holds none of {', '.join(sources)}")
    with claimed(plan.output, "suite.json") as output:
        names = [name for name, source in sources.items() if isinstance(source, Source)]
        suite, before = _begun(plan, output.path / "suite.json", folder, digest, names)
        jobs: list[Job] = []
        for name, source in sources.items():
            if isinstance(source, str):
                log_line("skipped", f"{name}: {source}")
                if name not in suite["tasks"]:
                    suite["skipped"][name] = source
            else:
                jobs += _prepare(plan, name, source, suite, files, folder)

        def taken(ended: Sequence[tuple[Job, dict[str, Any]]]) -> None:
            for job, figures in ended:
                name, side = job.kind.split("/")
                figures = _with_wall(before, job, figures)
                _add(suite["tasks"][name][side], ENTRIES[name], job.settings.seed, figures)
            write_tables(output.path, suite)

        jobs = [job._replace(start=digest) for job in jobs]
        # Seed by seed, so that a suite that was stopped has every task with fewer seeds.
        jobs.sort(key=lambda job: job.settings.seed)
        carry_out_all(jobs, plan.overwrite, taken, plan.jobs)
    return suite


def _begun(
    plan: Plan, path: Path, folder: Path, digest: str, names: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of suite.json before its tasks run, and what an earlier call left there.

    Args:
        path: of suite.json. folder, digest: the model and its weights. names: of the tasks that
            this call does.

    Raises:
        InputError: the table has other tasks, of other weights, which this one could not keep.
    """
    config = BertConfig.from_pretrained(folder)
    before = read_json(path, "") if path.is_file() else {}
    others = [name for name in before.get("tasks", {}) if name not in names]
    if others and before.get("weights") != digest and not plan.overwrite:
        raise InputError(
            f"--output {plan.output} holds {', '.join(others)} of other weights, those of "
            f"{before['model']}; choose another --output, or --overwrite drops them"
        )
    suite: dict[str, Any] = {
        "model": plan.model,
        "weights": digest,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "data": plan.data,
        "jobs": plan.jobs,
        "mlm": held_out_figures(folder, plan.data),
        "masked_words": {},
        "skipped": {},
        "tasks": {},
    }
    if before.get("weights") == digest:
        suite["tasks"] = _kept_tasks(before, names)
        suite["jobs"] = max(plan.jobs, before.get("jobs", 1))  # which the kept times are of
        suite["masked_words"] = before.get("masked_words", {})
    if suite["masked_words"].get("text") != held_out_text(plan.data).name:
        measured = masked_word_figures(folder, plan.data, plan.device, plan.precision)
        suite["masked_words"] = measured
    if not before:
        write_json(path, suite)  # it tells the folder: baselines take minutes
    return suite, before


def _kept_tasks(before: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The tasks of an earlier table that this call leaves out; they stay as they are.

    An older version kept what its last call was, for all tasks alike.
    """
    older = {"seeds": before.get("seeds", 1), "quick": before.get("quick", "")}
    searches = before.get("searches", [])
    return {
        name: older | {"searches": [s for s in searches if s.get("task") == name]} | task
        for name, task in before.get("tasks", {}).items()
        if name not in names
    }


def write_tables(folder: Path, suite: dict[str, Any]) -> None:
    """suite.json, suite.md and suite.html."""
    write_json(folder / "suite.json", suite)
    write_text(folder / "suite.md", as_markdown(suite))
    write_text(folder / "suite.html", as_html(suite))


# --- data -----------------------------------------------------------------------------------------


def _source(plan: Plan, name: str) -> Source | str:
    """Where a task's data lies, or why there is none."""
    task = find_task(name)(FinetuneSettings(task=name))
    if plan.data is None:
        return task.find_data()
    path = find_set(Path(plan.data), name, task.places)
    if path is None:
        return f"no folder {name} in {plan.data}"
    return Source(path, f"{name}, the data in {path}", task.is_sample(path))


def _settings_files(paths: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """The content of settings files, those for one side last, which are to count.

    One of a task that is not asked for is told.

    Raises:
        InputError: a file that cannot be used, or two for the same runs.
    """
    found = [_settings_file(Path(path)) for path in paths]
    taken: dict[tuple[Any, ...], str] = {}
    for path, content in zip(paths, found, strict=True):
        if content["task"] not in names:
            log_line("settings", f"{path} is of {content['task']}, which --tasks leaves out")
        other = taken.setdefault((content["task"], content.get("random_weights")), path)
        if other != path:
            raise InputError(
                f"--settings {other} and {path} are for the same runs of {content['task']}; give "
                f"one, or another random_weights in each"
            )
    return sorted(found, key=lambda content: "random_weights" in content)


def _settings_file(path: Path) -> dict[str, Any]:
    content = read_json(path, "--settings names a file of search-settings")
    settings = FinetuneSettings.from_dict(content, str(path))  # unknown keys, other types
    if content["task"] not in ENTRIES:
        raise InputError(f"{path}: task is {content['task']!r}; the suite has {', '.join(ENTRIES)}")
    taken = [name for name in _OWN if name in content]
    if taken:
        raise InputError(f"{path}: {taken[0]} is for the suite to say; leave it out")
    if content.get("adapt") is not None:
        raise InputError(
            f"{path}: adapt would be done for every seed, and for random weights, too; adapt "
            f"once, with pretrain --model … --recipe continued --nsp none, and give that folder to "
            f"the suite"
        )
    if settings.texts_to_answer or settings.teacher != BOTH:
        raise InputError(
            f"{path}: self_training has teachers that stand beside the model in the table; leave "
            f"it out, and run finetune"
        )
    return content


def _searches_beside(paths: Sequence[str], name: str) -> list[dict[str, Any]]:
    """The searches of a task that wrote settings files, if their tables still lie beside them."""
    tables = [Path(p).with_name("search.json") for p in paths if Path(p).name == "best.json"]
    found = [read_json(table, "") for table in tables if table.is_file()]
    return [search for search in found if search.get("task") == name]


# --- jobs -----------------------------------------------------------------------------------------


def _prepare(
    plan: Plan,
    name: str,
    source: Source,
    suite: dict[str, Any],
    files: list[dict[str, Any]],
    folder: Path,
) -> list[Job]:
    """A task's jobs; what is known of it before they run goes into `suite`.

    Args:
        folder: of the model.

    Raises:
        InputError: the data or settings of a task cannot be used with the model.
    """
    log_line("data", source.said)
    entry = ENTRIES[name]
    width = suite["hidden_size"]
    sides = {side: _side_settings(plan, name, source, side, files, width) for side in SIDES}
    base = sides["model"][0]
    task = find_task(name)(base)
    splits = read_splits(task, source)
    parts = parts_of(task, splits, base.dev_fraction, base.limit)
    for settings, _ in sides.values():
        _check(name, settings, parts.train, folder)
    before = {side: data_before(settings, source) for side, (settings, _) in sides.items()}
    suite["tasks"][name] = {
        "figure": entry.title,
        "scored": parts.scored,
        "dataset": str(source.path),
        "is_sample": source.is_sample,
        "num_train": len(parts.train),
        "num_dev": len(parts.dev),
        "num_eval": len(parts.test),
        "seeds": plan.seeds,
        "quick": plan.quick,
        "searches": _searches_beside(plan.settings, name),
        **_baselines(Path(plan.output) / name, task, splits.fingerprint, parts, entry),
        **{
            side: {"settings": said, "threshold_for": _threshold_for(task, settings)}
            | {key: {} for key in ("figures", "dev", "seconds", "wall_seconds", "diverged")}
            for side, (settings, said) in sides.items()
        },
    }
    return [
        Job(
            f"{name}, {'random weights' if side == 'random' else 'the model'}, seed {seed}",
            f"{name}/{side}",
            of_seed(settings, Path(plan.output) / name / side, seed),
            splits.fingerprint,
            "",
            before[side],
        )
        for seed in range(plan.seeds)
        for side, (settings, _) in sides.items()
    ]


def _check(name: str, settings: FinetuneSettings, train: list[Any], folder: Path) -> None:
    """Refuses what a run would refuse only when those of other tasks have ended."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # each run says what it notices
            learn(find_task(name)(settings), train, folder)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _side_settings(
    plan: Plan,
    name: str,
    source: Source,
    side: str,
    files: list[dict[str, Any]],
    width: int,
) -> tuple[FinetuneSettings, str]:
    """The settings of a task's runs, with a line about where they come from."""
    is_random = side == "random"
    values: dict[str, Any] = {}
    for content in files:  # one without random_weights is for both sides
        if content["task"] == name and content.get("random_weights", is_random) == is_random:
            values = dict(content)
    origins = ["a settings file"] if values else []
    budget = {"max_minutes": plan.max_minutes, "max_steps": plan.max_steps}
    if any(budget.values()):
        values = {k: v for k, v in values.items() if k not in ("epochs", "min_steps", *budget)}
    values |= {"task": name, "model": plan.model, "random_weights": is_random}
    values |= {k: v for k, v in budget.items() if v}
    values |= {"limit": plan.limit, "dev_only": ENTRIES[name].dev_only}
    values |= {"device": plan.device, "precision": plan.precision}
    if plan.data is not None:
        values["data"] = str(source.path)
    if plan.quick:  # of which another task's labels would take the longest
        values.pop("intermediate_data", None)
    given = FinetuneSettings.from_dict(values, "suite")
    by_recipe, _ = with_recipe(given)
    if plan.quick and by_recipe.intermediate:
        given = dataclasses.replace(given, intermediate_task=NO_TASK)
    if by_recipe.self_training and not given.self_training:
        # Whose teacher stands beside the model in the table.
        given = dataclasses.replace(given, self_training=[NO_TEXTS])
        origins.append("by the labels alone, without self-training")
    settings, recipe = with_recipe(given)
    task = find_task(name)(settings)
    told = [f"rate {settings.learning_rate or task.default_rate(width):g}"]
    epochs = counted(settings.epochs or task.epochs, "epoch")
    if settings.least_steps:
        epochs += f", at least {counted(settings.least_steps, 'step')}"
    steps = settings.max_steps and counted(settings.max_steps, "step")
    minutes = settings.max_minutes and counted(settings.max_minutes, "minute")
    told.append(steps or minutes or epochs)
    told += [f"batches of {settings.batch_size}", f"{settings.max_seq_length} tokens"]
    known = ("task", "random_weights", "batch_size", "max_seq_length", *_TOLD_FIRST)
    told += [
        f"{key.replace('_', ' ')} {value}"
        for key, value in file_settings(settings).items()
        if key not in known and not says_none(key, value)
    ]
    origins += [f"recipe: {recipe}"] if recipe else []
    return settings, f"{', '.join(told)} ({'; '.join(origins) or 'defaults'})"


def _threshold_for(task: Task[Any, Any], settings: FinetuneSettings) -> str | None:
    """The figure that dev chooses a threshold for, if it chooses one."""
    return (settings.select or task.metric) if settings.threshold == BEST else None


def _baselines(
    folder: Path, task: Task[Any, Any], fingerprint: str, parts: Parts, entry: Entry
) -> dict[str, Any]:
    """What classical methods reach, computed once and kept in baselines.json.

    Returns:
        baselines: 0..100, by name. baselines_lack: why there are none, or empty. threshold_for:
            the figure that dev chose a threshold for, theirs and the model's; None for none.
            Random weights may have another: each side has its own, too.
    """
    path, settings = folder / "baselines.json", task.settings
    basis = {
        "version": task.baselines_version,
        "data": fingerprint,
        "limit": settings.limit,
        "num_train": len(parts.train),
        "positive_label": settings.positive_label,  # whose F1 is told, if not the set's own
        "threshold_for": _threshold_for(task, settings),
    }
    kept = read_json(path, "") if path.is_file() else {}
    older = {"version": 1, "positive_label": None, "threshold_for": None}
    if older | kept.get("basis", {}) != basis:
        log_line("baseline", f"{task.name}, on the same {len(parts.train):,} examples")
        try:
            figures = task.baselines(parts.train, parts.dev, parts.test)
        except (MissingExtraError, ValueError, MemoryError) as error:
            why = str(error) or "memory ran out"
            log_line("baseline", f"not scored: {why}")
            return {"baselines": {}, "baselines_lack": why, "threshold_for": None}
        kept = {"basis": basis, "figures": figures}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    found = {}
    for key, value in kept["figures"].items():
        method = key.removesuffix(f"_{entry.figure}")
        if method in _METHODS and method != key:
            is_cosine = (method, entry.figure) == ("tfidf", "spearman")
            title = "TF-IDF cosine" if is_cosine else _METHODS[method]
            found[title] = value * entry.scale
    return {"baselines": found, "baselines_lack": "", "threshold_for": basis["threshold_for"]}


def _with_wall(before: dict[str, Any], job: Job, figures: dict[str, Any]) -> dict[str, Any]:
    """A job's figures with the wall_seconds that an earlier table has of it, if any."""
    name, side = job.kind.split("/")
    walls = before.get("tasks", {}).get(name, {}).get(side, {}).get("wall_seconds", {})
    seed = str(job.settings.seed)
    return ({"wall_seconds": walls[seed]} if seed in walls else {}) | figures


def _add(side: dict[str, Any], entry: Entry, seed: int, figures: dict[str, Any]) -> None:
    """A finished run's figures among those of its side, with their mean and deviation."""
    if "diverged" in figures:
        side["diverged"][str(seed)] = figures["diverged"]
        return
    side["figures"][str(seed)] = figures[entry.figure] * entry.scale
    side["dev_figure"], value = dev_figure(figures)
    side["dev"][str(seed)] = value * entry.scale
    side["seconds"][str(seed)] = learning_seconds(figures)
    if "wall_seconds" in figures:
        side["wall_seconds"][str(seed)] = figures["wall_seconds"]
    values = list(side["figures"].values())
    side["mean"] = statistics.fmean(values)
    side["sd"] = statistics.stdev(values) if len(values) > 1 else None
    side["dev_mean"] = statistics.fmean(side["dev"].values())
