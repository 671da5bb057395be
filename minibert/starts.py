"""Where a fine-tuning starts: the model's folder, and the settings that were not given.

In: settings as the user gave them. Out: the folder of the model, and settings filled in by a
recipe, or, of a run that goes on, by what it began with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import bundled_data, read_json
from minibert.intermediate import lack
from minibert.model_folders import BUNDLED, bundled_model, open_model_folder
from minibert.recipes import Recipe, as_begun, filled, find_recipe, is_given
from minibert.run_folder import RunFolder
from minibert.runs import log_line
from minibert.self_training import lack_of_texts
from minibert.settings import BOTH, NO_TASK, NO_TEXTS, FinetuneSettings
from minibert.tasks import find_task
from minibert.tasks.labelled import has_lists_of_labels

_PRETRAINED = "runs/pretrain"


def choose_model(settings: FinetuneSettings) -> Path:
    """The model to start from: the one named, else a finished runs/pretrain, else the bundled one.

    Which one it is, and why, is printed.

    Raises:
        InputError: none is there; the command that makes one is named.
    """
    folder, why = _start(settings)
    kept = "its config and tokenizer, all weights redrawn" if settings.random_weights else "weights"
    log_line("model", f"{folder} ({kept}; {why})")
    return folder


def start_folder(settings: FinetuneSettings) -> Path:
    """The folder of the model to start from; raises as `choose_model`, which says it, too."""
    return _start(settings)[0]


def _start(settings: FinetuneSettings) -> tuple[Path, str]:
    """The folder of the model to start from, and why."""
    if settings.model:
        return open_model_folder(settings.model, settings.cache_dir), "as named"
    if (Path(_PRETRAINED) / "results.json").is_file():
        text = read_json(Path(_PRETRAINED) / "results.json", "").get("dataset", "some text")
        why = f"the finished run here, of {text}; --model {BUNDLED} is the bundled model"
        return Path(_PRETRAINED), why
    if bundled := bundled_model():
        return bundled, f"bundled, since {_PRETRAINED} holds no finished run; --model names another"
    raise InputError(
        f"no --model, {_PRETRAINED} holds no finished run and no model is bundled; make one with: "
        f"minibert pretrain --corpus {bundled_data() / 'wiki.txt'}"
    )


def with_recipe(settings: FinetuneSettings) -> tuple[FinetuneSettings, str]:
    """The settings with what a recipe fills in, and a line about it; see `recipes.filled`.

    Sequences of a default length are no longer than the model takes. Without a model it leaves
    them as they are: that is told where the model is opened.

    Raises:
        InputError: a recipe begins with texts of the data, and there is no data.
    """
    family = find_task(settings.task).names[-1]
    try:
        config = BertConfig.from_pretrained(start_folder(settings))
    except InputError:
        return settings, ""
    settings, texts = _with_room_for_texts(settings, find_recipe(settings, family, config))
    several = family == "classification" and has_lists_of_labels(settings)
    found, said = filled(settings, family, config, several)
    without = ""
    if found.intermediate and not settings.intermediate_task and (why := lack(found)):
        without = f"without {found.intermediate_task} before it: {why}"
        settings = dataclasses.replace(settings, intermediate_task=NO_TASK)
        # What is left out is not told as filled in.
        found, said = filled(settings, family, config, several)
    within = _within_positions(found, config.max_position_embeddings)
    cut = f"{within.max_seq_length} tokens, as long as the model goes" if within != found else ""
    return within, "; ".join(filter(None, (said, cut, without, texts)))


def _with_room_for_texts(
    settings: FinetuneSettings, recipe: Recipe | None
) -> tuple[FinetuneSettings, str]:
    """Settings that do without a recipe's self-training where it cannot be, or is not to be.

    Few labels were not measured with it, and any budget but epochs may be a quick look.

    Returns:
        A line about it, empty where no recipe has it, or the user has decided.
    """
    if recipe is None or not recipe.self_training or settings.self_training:
        return settings, ""
    teacher = settings.teacher if is_given(settings, "teacher") else recipe.teacher or BOTH
    said = "without self-training before it"
    if why := lack_of_texts(settings, teacher):
        said += f": {why}"
    elif settings.max_steps or settings.max_minutes or settings.limit:
        few = "as --limit leaves labels out" if settings.limit else "as the budget is not of epochs"
        epochs = " (with --epochs)" if settings.max_minutes else ""
        said += f", {few}; --self-training --teacher {teacher}{epochs} does it first"
    else:
        return settings, "its unlabelled texts come first, --self-training none does without"
    return dataclasses.replace(settings, self_training=[NO_TEXTS]), said


def _within_positions(settings: FinetuneSettings, positions: int) -> FinetuneSettings:
    """The settings with sequences as long as the model takes, where nobody said how long."""
    if is_given(settings, "max_seq_length"):
        return settings
    length = min(settings.max_seq_length, positions)
    return dataclasses.replace(settings, max_seq_length=length)


def of_begun_run(settings: FinetuneSettings) -> tuple[FinetuneSettings, str] | None:
    """Of a run that goes on what `with_recipe` returns of one that begins, else None.

    It needs no model: of a finished run that may be gone.
    """
    path = Path(settings.output or f"runs/{settings.task}")
    if settings.resume == "no" or settings.dry_run or not (path / "run.json").is_file():
        return None
    run = RunFolder(path).read_run()
    # That of another command is refused where the folder is opened.
    before = run["settings"] if run.get("command") == "finetune" else {}
    return as_begun(settings, before, str(path))
