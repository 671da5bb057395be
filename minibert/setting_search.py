"""`minibert search-settings`: fine-tuning settings chosen on dev, by trying a grid or a part of it.

In: the settings of a fine-tuning, and values to try. Out: a folder with a run for each trial and
seed, search.json and search.md, the trials in order of their dev figure, and best.json, a file for
`finetune --config` and `evaluate-suite --settings`. The test split is dropped as soon as it is read
(`--dev-only`): no trial encodes, predicts or scores any of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minibert.config import BertConfig
from minibert.errors import InputError, did_you_mean
from minibert.fields import flag
from minibert.files import read_json, write_json, write_text
from minibert.finetuning import read_splits
from minibert.intermediate import data_before
from minibert.model_folders import pinned
from minibert.progress import clock
from minibert.recipes import file_settings, is_given, shown
from minibert.run_folder import RunFolder
from minibert.runs import (
    dev_figure,
    learning_seconds,
    log_line,
    model_config,
    of_seed,
    weights_digest,
)
from minibert.series import Job, carry_out_all, check_alone, claimed
from minibert.settings import BOTH, NO_TEXTS, FinetuneSettings, says_none
from minibert.starts import choose_model, with_recipe
from minibert.tasks import find_task
from minibert.tasks.base import Source

# What may be tried, by the names of the settings, and what is tried where nothing is named.
SEARCHED = (
    *("learning_rate", "epochs", "batch_size", "label_smoothing", "dropout"),
    *("max_seq_length", "truncation", "adversarial_epsilon", "pair_order"),
)
DEFAULT_GRID: dict[str, tuple[float | str, ...]] = {
    "learning_rate": (1e-4, 2e-4, 5e-4, 1e-3),
    "batch_size": (16, 32),
}


def search_settings(
    settings: FinetuneSettings,
    tried: Mapping[str, Sequence[float | str] | float | str] | None = None,
    trials: int | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Tries settings on dev and writes the best; finished trials are not repeated.

    Args:
        settings: of every trial; with `seeds` above 1 a trial is the mean over them.
        tried: values, or one of them, by the name of a setting in `SEARCHED`; by default
            `DEFAULT_GRID`.
        trials: so many of the grid, drawn by the seed; by default all of it.
        jobs: so many fine-tunings at a time, each with its share of the cores.

    Returns:
        The content of search.json; its trials have the best first.

    Raises:
        InputError: several processes, values that cannot be tried, or runs in the folder that had
            other settings.
        Interrupted: by a signal; the same call goes on.
    """
    check_alone()
    if not isinstance(settings, FinetuneSettings):
        raise InputError(
            f"{settings!r:.60} is no FinetuneSettings; expected such as "
            f'FinetuneSettings(task="imdb")'
        )
    grid = _grid(settings, tried or {})
    _check(settings, trials, jobs)
    chosen = drawn(grid, trials, settings.seed)
    base = dataclasses.replace(settings, dev_only=True, resume="auto", overwrite=False)
    task = find_task(base.task)(base)
    source = task.find_data()
    log_line("data", source.said)
    log_line("search", f"{len(chosen)} of {len(grid)} trials, {base.seeds} seed(s) each, on dev")
    fingerprint = read_splits(task, source).fingerprint
    folder = choose_model(base)
    with _claimed(settings) as output:
        start = weights_digest(folder)
        base = dataclasses.replace(base, model=_name_of(settings, folder))
        before = _earlier(output.path, settings, set(grid[0]))
        chosen = [*chosen, *(v for v in before if v not in chosen)]
        settings_of = _trials(base, chosen, BertConfig.from_pretrained(folder))
        first = settings_of[trial_name(chosen[0])]  # whose task before, by a recipe, is that of all
        one = Job("", "", first, fingerprint, start, data_before(first, source))
        runs = _jobs(settings_of, output.path, one)
        grid_size = len(grid) + sum(v not in grid for v in before)
        search = _not_run(one, source, base.select or task.metric, grid_size, chosen)

        def taken(ended: Sequence[tuple[Job, dict[str, Any]]]) -> None:
            for job, figures in ended:
                trial = next(t for t in search["trials"] if t["name"] == job.kind)
                _add(trial, job.settings.seed, figures, base.seeds)
                if "diverged" not in figures:  # what chose may be known from the data alone
                    search["figure"] = f"dev {dev_figure(figures)[0]}"
            _write(output.path, search, settings_of)

        carry_out_all(runs, settings.overwrite, taken, jobs)
        print(as_markdown(search), end="", flush=True)
        search["trials"] = ordered(search["trials"])
        best = output.path / "best.json"
        print(f"best settings: {best}" if best.is_file() else "every trial diverged", flush=True)
    return search


def _claimed(settings: FinetuneSettings) -> RunFolder:
    """The search's folder, to be entered; with `--resume` one that a search has begun."""
    where = settings.output or f"runs/search-{settings.task}"
    if settings.resume == "yes" and not (Path(where) / "search.json").is_file():
        raise InputError(
            f"--resume: there is no search in {where}; leave --resume out to begin one"
        )
    return claimed(where, "search.json")


def _not_run(
    one: Job, source: Source, select: str, grid_size: int, chosen: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of search.json before its trials.

    Args:
        one: with the settings of the first of the points that were chosen.
    """
    settings = one.settings
    return {
        "task": settings.task,
        "data": str(source.path),
        "is_sample": source.is_sample,
        "model": settings.model,
        "weights": one.start,
        "limit": settings.limit,
        "seed": settings.seed,
        "seeds": settings.seeds,
        "figure": f"dev {select}",
        "grid_size": grid_size,
        "held": _held(settings, chosen[0]),
        "trials": [{"name": trial_name(v), "settings": v, "dev": {}} for v in chosen],
    }


def _jobs(settings_of: Mapping[str, FinetuneSettings], output: Path, like: Job) -> list[Job]:
    """A run for each trial and seed, like a job in its data and its start."""
    return [
        like._replace(
            name=f"{name}, seed {seed}", kind=name, settings=of_seed(own, output / name, seed)
        )
        for name, own in settings_of.items()
        for seed in range(own.seed, own.seed + own.seeds)
    ]


def _add(trial: dict[str, Any], seed: int, figures: Mapping[str, Any], seeds: int) -> None:
    """What a run of a trial has reached, or that it diverged.

    Args:
        seeds: of a trial; with all of them it has a mean, since one of few may be a lucky one.
    """
    if "diverged" in figures:
        trial["diverged"] = figures["diverged"]
        return
    trial["dev"][str(seed)] = dev_figure(figures)[1]
    if len(trial["dev"]) == seeds:
        trial["mean"] = statistics.fmean(trial["dev"].values())
    trial["seconds"] = trial.get("seconds", 0.0) + learning_seconds(figures)
    trial.setdefault("best_steps", {})[str(seed)] = figures["best_step"]
    trial["steps"] = max(trial.get("steps", 0), figures["steps"])


def _earlier(folder: Path, settings: FinetuneSettings, tried: set[str]) -> list[dict[str, Any]]:
    """The points of an earlier search in the folder that have ended; they stay in its table.

    That nothing but what was tried differs is found where their runs are looked at.

    Raises:
        InputError: with other seeds, or over other settings, so that the two do not compare.
    """
    path = folder / "search.json"
    before = read_json(path, "") if path.is_file() and not settings.overwrite else {}
    points = [t["settings"] for t in before.get("trials", []) if "mean" in t or "diverged" in t]
    if points and (before["seeds"] != settings.seeds or points[0].keys() != tried):
        raise InputError(
            f"--output {folder} holds a search of {before['seeds']} seed(s) over "
            f"{', '.join(points[0])}; choose another --output"
        )
    known = [int(seed) for trial in before.get("trials", []) for seed in trial["dev"]]
    first = before.get("seed", min(known, default=settings.seed))  # older tables lack it
    if points and first != settings.seed:
        raise InputError(
            f"--output {folder} holds a search with --seed {first}; choose another --output"
        )
    return points


def _name_of(settings: FinetuneSettings, folder: Path) -> str:
    """What trials name as their model, so that later ones start from the same."""
    return pinned(settings.model, folder) if settings.model else str(folder)


def _check(settings: FinetuneSettings, trials: int | None, jobs: int) -> None:
    """Refuses what a search cannot do."""
    if trials is not None and trials < 1:
        raise InputError(f"--trials is {trials}, must be at least 1")
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}, must be at least 1")
    if settings.dry_run:
        raise InputError("--dry-run is for one run; leave it out of a search")
    if settings.texts_to_answer or settings.teacher != BOTH:
        raise InputError(
            f"--self-training would be done for every trial; --self-training {NO_TEXTS} searches "
            f"without, and it goes with what was found"
        )
    if settings.adapt is not None:
        raise InputError(
            "--adapt would be done for every trial; adapt once, with pretrain --model … --recipe "
            "continued --nsp none, and name that folder as --model"
        )


def _trials(
    base: FinetuneSettings, chosen: Sequence[Mapping[str, float | str]], config: BertConfig
) -> dict[str, FinetuneSettings]:
    """The settings of each trial by its name, whole; what a recipe adds is printed once.

    Raises:
        InputError: values that the task or the model has no use for, before any is tried.
    """
    settings_of, recipe = {}, ""
    if not base.self_training:
        whole = dataclasses.replace(base, limit=None, max_steps=None, max_minutes=None)
        by_recipe, _ = with_recipe(whole)
        if by_recipe.self_training:
            base = dataclasses.replace(base, self_training=[NO_TEXTS])
        if by_recipe.texts_to_answer:
            adds = f"--self-training --teacher {by_recipe.teacher} beside --config"
            adds += " and --epochs" if base.max_minutes else ""
            log_line("self-training", f"left out of the trials and of best.json; {adds} adds it")
    for values in chosen:
        own, recipe = with_recipe(dataclasses.replace(base, **values))  # type: ignore[arg-type]
        task = find_task(own.task)(own)
        model_config(own, config)
        if not is_given(own, "epochs"):
            own = dataclasses.replace(
                own, epochs=float(task.epochs), min_steps=own.least_steps or None
            )
        if own.learning_rate is None and not task.is_open_ended:  # which goes by the decoder
            own = dataclasses.replace(own, learning_rate=task.default_rate(config.hidden_size))
        settings_of[trial_name(values)] = own
    if recipe:
        log_line("recipe", recipe)
    if before := next((own.intermediate for own in settings_of.values() if own.intermediate), None):
        log_line(
            "intermediate", f"{before} comes first; a trial takes what another has learnt of it"
        )
    return settings_of


def _grid(
    settings: FinetuneSettings, given: Mapping[str, Sequence[float | str] | float | str]
) -> list[dict[str, float | str]]:
    """Every combination, values in the order given, settings in that of `SEARCHED`.

    So trials are the same, with the same names, in whatever order the settings are given.

    Raises:
        InputError: no values, values of a setting that is given, or ones that fail its checks.
    """
    tried = {name: _values(values) for name, values in given.items()}
    for name, values in tried.items():
        if name not in SEARCHED:
            raise InputError(f"cannot search {name!r}{did_you_mean(name, SEARCHED)}")
        if not values:
            raise InputError(f"{_try_flag(name)} names no value")
        if is_given(settings, name):
            own = "another budget" if name == "epochs" else flag(name)
            raise InputError(f"{own} has no use beside {_try_flag(name)}; give one")
    if not tried:
        tried = {n: [*v] for n, v in DEFAULT_GRID.items() if not is_given(settings, n)}
        if not tried:
            raise InputError("nothing to search; name values, as in --try-epochs 3 5")
    tried = {name: tried[name] for name in SEARCHED if name in tried}
    columns = [dict.fromkeys(values) for values in tried.values()]  # each value once
    grid: list[dict[str, float | str]] = [
        dict(zip(tried, values, strict=True)) for values in itertools.product(*columns)
    ]
    for point in grid:
        FinetuneSettings.from_dict(settings.to_dict() | point, "search-settings")
    return grid


def _values(given: Any) -> list[float | str]:
    """Values to try as a list, where there may be one alone, or an array of them."""
    plain = given.tolist() if isinstance(given, np.ndarray) else given
    return [plain] if isinstance(plain, (str, float, int)) else list(plain)


def _try_flag(name: str) -> str:
    return "--try-" + name.replace("_", "-")


def drawn(
    grid: list[dict[str, float | str]], count: int | None, seed: int
) -> list[dict[str, float | str]]:
    """So many points of a grid, in its order; more points are those of fewer and some others."""
    if count is None or count >= len(grid):
        return grid
    order = np.random.default_rng(seed).permutation(len(grid))
    return [grid[i] for i in sorted(order[:count])]


def trial_name(values: Mapping[str, float | str]) -> str:
    """The folder of a trial, as in learning-rate-0.0005_batch-size-16."""
    return "_".join(f"{name.replace('_', '-')}-{shown(value)}" for name, value in values.items())


def ordered(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best mean on dev first, equal ones in the order of the grid, those without one last."""
    return sorted(trials, key=lambda t: float("inf") if "diverged" in t else -t.get("mean", -1e308))


def _held(settings: FinetuneSettings, tried: Mapping[str, float | str]) -> dict[str, Any]:
    """What all trials have in common beside the task."""
    left_out = ("task", *tried)
    return {
        name: value
        for name, value in file_settings(settings).items()
        if name not in left_out and not says_none(name, value)
    }


def as_markdown(search: Mapping[str, Any]) -> str:
    """The trials as a page of Markdown, the best first."""
    lines = [f"# Settings of {search['task']}, chosen on dev", ""]
    if search["is_sample"]:
        lines += ["SAMPLE: a few bundled examples, for trying out; these are no results.", ""]
    if search["limit"]:
        lines += [f"QUICK LOOK: {search['limit']:,} training examples at most.", ""]
    done = sum("mean" in t or "diverged" in t for t in search["trials"])
    lines += [
        f"{search['model']} on {search['data']}, {search['seeds']} seed(s) a trial; {done} of "
        f"{len(search['trials'])} trials are there, of a grid of {search['grid_size']}. The test "
        f"split was not looked at. In all of them: "
        + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in search["held"].items())
        + ".",
        "",
    ]
    head, rows = trial_table(search)
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def trial_table(search: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a search's table, the best trial first."""
    names = list(search["trials"][0]["settings"])
    head = [*(n.replace("_", " ") for n in names), search["figure"], "best step", "training"]
    rows = []
    for trial in ordered(search["trials"]):
        cells = [shown(trial["settings"][name]) for name in names]
        if "diverged" in trial:
            cells += ["diverged", trial["diverged"].split(";")[0], "–"]
        elif "mean" in trial:
            values = list(trial["dev"].values())
            sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            # Tables of before have that of the run that ended last.
            steps = set(trial.get("best_steps", {0: trial.get("best_step")}).values())
            step = " to ".join(f"{s:,}" for s in sorted({min(steps), max(steps)}))
            step += f" of {trial['steps']:,}"
            cells += [f"{trial['mean']:.4f}{sd}", step, clock(trial["seconds"])]
        else:
            cells += ["–"] * 3
        rows.append(cells)
    return head, rows


def _write(
    folder: Path, search: dict[str, Any], settings_of: Mapping[str, FinetuneSettings]
) -> None:
    """search.json, search.md and, with a trial to choose, best.json; without one there is none."""
    trials = ordered(search["trials"])
    write_json(folder / "search.json", search | {"trials": trials})
    write_text(folder / "search.md", as_markdown(search))
    if "mean" in trials[0] and "diverged" not in trials[0]:
        write_json(folder / "best.json", file_settings(settings_of[trials[0]["name"]]))
    else:
        (folder / "best.json").unlink(missing_ok=True)  # of a search that was done anew
