"""Scoring a finished model on labelled data, outside the run that made it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from minibert.errors import InputError, did_you_mean
from minibert.fields import flag
from minibert.files import write_jsonl
from minibert.model_folders import open_model_folder
from minibert.predict import load, run_of
from minibert.run_folder import RUN_FILES
from minibert.runs import log_line
from minibert.settings import DATA_LAYOUT, DATA_PLACES, FinetuneSettings
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.splits import parts_of


def evaluate(
    folder: str | Path,
    data: str | Path | None = None,
    split: str = "test",
    device: str | torch.device = "auto",
    precision: str | None = None,
    batch_size: int = 32,
    predictions: str | Path | None = None,
    **layout: str | None,
) -> dict[str, Any]:
    """Figures of a fine-tuned model on labelled data.

    Args:
        folder: a run folder of `finetune`.
        data: in the task's public format, or as the run's own; by default the run's. Of data
            a single file all is scored; of splits the test, where it has no labels the dev, and
            where there is neither all.
        split: "test" or "train"; of the run's own data "train" is what it learnt from.
        precision: of matrix products, "int8" included; None: that of the run.
        predictions: a file for one JSON object per example, none of the data's.
        layout: of `data`, the settings in `DATA_LAYOUT` that the task reads, such as text_column;
            None: as in the run, but for target_data.

    Returns:
        task, dataset, num_eval, scored ("test", "dev", "train", or "all" of data without splits),
        the figures of the task and what else its results.json holds.

    Raises:
        InputError: no model, no data, a column that is not there, or a model of other classes
            than the data's.
    """
    _check_request(split, batch_size, predictions)
    data = None if data is None else str(data)  # a path, in a notebook
    folder = open_model_folder(str(folder))
    predictor = load(folder, device, precision)
    if not (folder / "run.json").is_file():
        raise InputError(
            f"{folder} has no run.json that names its task; fine-tune it with minibert"
        )
    task = predictor.task
    given = {name: value for name, value in layout.items() if value is not None}
    _check_layout(task, given, data)
    before = task.settings
    if data is not None:
        task.settings = _settings_for(task.settings, data, given)
    else:
        _check_there(folder, before.data)
    is_other = data is not None and split == "test"
    _check_kept(task.settings, predictions, folder)
    source = _learnt_from(task, folder) if data is None else task.find_data()
    splits = _read(task, source, is_other)
    if data is None:
        _check_unchanged(folder, splits, task.settings.dev_only)
    examples, scored = _part_to_score(task, splits, split, data is not None)
    if is_other and (scored == "all" or not splits.train):
        _say_learnt(folder, task, before, source.path, examples)
    found = task.predict(predictor.model, examples, batch_size, predictor.runtime)
    if predictions is not None:
        rows = [task.row(e, p) for e, p in zip(examples, found, strict=True)]
        write_jsonl(Path(predictions), rows)
    return task.results(splits, examples, found, scored)


def _learnt_from(task: Task[Any, Any], folder: Path) -> Source:
    """A run's own data; what it found by itself, such as the sample, is not found for ever."""
    source = task.find_data()
    place = Path(run_of(folder).get("resolved", {}).get("data") or source.path)
    is_same = place.resolve() == source.path.resolve()
    if task.settings.data is not None or is_same or not place.exists():
        return source
    said = f"{task.name}, what the run learnt from, {place}"
    return Source(place, said, task.is_sample(place))


def _read(task: Task[Any, Any], source: Source, is_other: bool) -> Splits[Any]:
    """The splits of the data, which is told; is_other: it is not the run's own."""
    log_line("data", source.said)
    splits = task.read_to_score(source) if is_other else task.read(source)
    if splits.notes:
        log_line("found", "; ".join(splits.notes))
    return splits


def _check_kept(settings: FinetuneSettings, predictions: str | Path | None, folder: Path) -> None:
    """Refuses predictions that would take the place of a file of the data or of the model."""
    if predictions is None or not Path(predictions).is_file():
        return
    path = Path(predictions).resolve()
    if path.parent == folder.resolve() and path.name in RUN_FILES:
        raise InputError(f"--predictions {predictions} is a file of the model; name another")
    for name in DATA_PLACES:
        place = getattr(settings, name)
        if place is not None and Path(place).resolve() in (path, *path.parents):
            raise InputError(f"--predictions {predictions} is a file of {flag(name)}; name another")


def _say_learnt(
    folder: Path,
    task: Task[Any, Any],
    before: FinetuneSettings,
    path: Path,
    examples: list[Any],
) -> None:
    """Says where a file that is scored is what the run learnt from, or was chosen by.

    Args:
        task: as it scores. before: the run's own settings.
    """
    little = "the figures say little of other texts"
    if _is_same_file(path, before.data):
        log_line("learnt", f"{path} is what {folder} was trained on; {little}")
    elif _is_same_file(path, before.dev_data):
        log_line("learnt", f"{folder} was chosen by its figures on {path}; {little}")
    elif before.data is not None and Path(before.data).resolve() in path.resolve().parents:
        try:
            own = type(task)(before)
            splits = own.read(own.find_data())
        except InputError:  # it is no longer what the run learnt from
            return
        known = {task.same(e) for e in (*splits.train, *(splits.dev or ()))}
        if count := sum(task.same(e) in known for e in examples):
            log_line(
                "learnt",
                f"{count:,} of the {len(examples):,} examples have a text that {folder} was "
                f"trained on or chosen by; {little}",
            )


def _is_same_file(path: Path, other: str | None) -> bool:
    """Whether both name one file; of folders the parts tell what was learnt from."""
    return other is not None and path.is_file() and path.resolve() == Path(other).resolve()


def _check_there(folder: Path, learnt: str | None) -> None:
    if learnt is not None and not Path(learnt).exists():
        raise InputError(
            f"{folder} learnt from {learnt}, which is not there, or not seen from this folder; "
            f"--data names what to score"
        )


def _check_unchanged(folder: Path, splits: Splits[Any], dev_only: bool) -> None:
    """Refuses a run's own data that is not what the run read, without test if it was dev-only."""
    run = run_of(folder)
    trained_on = run.get("data_fingerprint")
    known = dataclasses.replace(splits, test=None) if dev_only else splits
    if trained_on not in (None, known.fingerprint):
        if run.get("resolved", {}).get("left_out"):
            raise InputError(
                f"{folder} learnt from {splits.source} without the examples that another task has "
                f"in dev or test, so that its own split cannot be told; --data names what to score"
            )
        raise InputError(
            f"{splits.source} has changed since {folder} was trained on it, so that what would be "
            f"scored may have been learnt from; --data names what to score"
        )


def _check_request(split: str, batch_size: int, predictions: str | Path | None) -> None:
    if split not in ("test", "train"):
        raise InputError(f"split is {split!r}; expected 'test' or 'train'")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, must be above 0")
    if predictions is None:
        return
    place = Path(predictions)
    if place.is_dir():
        raise InputError(f"--predictions {place} is a folder; name a file")
    # A new file takes its place: to root that could happen to the machine's /dev/null.
    if place.parent == Path("/dev") or (place.exists() and not place.is_file()):
        raise InputError(f"--predictions {place} is not a plain file; name one")
    if not place.parent.is_dir():
        raise InputError(f"--predictions {place}: {place.parent} does not exist")


def _part_to_score(
    task: Task[Any, Any], splits: Splits[Any], split: str, is_other: bool
) -> tuple[list[Any], str]:
    """The examples, and what results call them; is_other: they are not of the run's own data."""
    dev_fraction, limit = task.settings.dev_fraction, task.settings.limit
    if split == "train" and not is_other:
        untested = dataclasses.replace(splits, test=None)
        return parts_of(task, untested, dev_fraction, limit).train, "train"
    if split == "train":
        return splits.train, "train"
    if is_other and splits.test is None and splits.dev is None:
        return splits.train, "all"
    if is_other and splits.test is not None:  # whether a dev split could be cut is no matter
        task.check_parts([], splits.test)
        return splits.test, "test"
    parts = parts_of(task, splits, dev_fraction, None)
    return parts.test, parts.scored


def _check_layout(task: Task[Any, Any], given: dict[str, str], data: str | None) -> None:
    """Raises InputError for what is no layout, is not of the task, or does not go with the data."""
    for name in given:
        if name not in DATA_LAYOUT:
            raise InputError(f"evaluate takes no {name!r}{did_you_mean(name, DATA_LAYOUT)}")
        if data is None:
            raise InputError(f"{flag(name)} goes with --data")
    task.check_uses(given)
    if given:  # as refused where something is learnt from it
        type(task)(FinetuneSettings.from_dict({"task": task.name, "data": data, **given}))


def _settings_for(settings: FinetuneSettings, data: str, given: dict[str, str]) -> FinetuneSettings:
    """A run's settings with other data, laid out as the run's where nothing else is given."""
    others = ("dev_data", "test_data", "target_data", "dev_target_data", "test_target_data")
    changes: dict[str, Any] = dict.fromkeys(others)
    if "label_column" in given:  # which names the targets where --target-column does not
        changes["target_column"] = None
    return dataclasses.replace(settings, data=data, **changes | given)
