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
from minibert.recipes import as_begun, filled, is_given
from minibert.run_folder import RunFolder
from minibert.runs import log_line
from minibert.self_training import lack_of_texts
from minibert.settings import NO_TASK, NO_TEXTS, FinetuneSettings
from minibert.tasks import find_task

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

    Without a model it leaves them as they are: that is told where the model is opened.

    Raises:
        InputError: a recipe begins with texts of the data, and there is no data.
    """
    family = find_task(settings.task).names[-1]
    try:
        config = BertConfig.from_pretrained(start_folder(settings))
    except InputError:
        return settings, ""
    found, said = filled(settings, family, config)
    before = []  # what is to be said of what comes before the task
    if found.intermediate and not settings.intermediate_task and (why := lack(found)):
        before.append(f"without {found.intermediate_task} before it: {why}")
        settings = dataclasses.replace(settings, intermediate_task=NO_TASK)
    if found.texts_to_answer and not settings.self_training:
        if why := lack_of_texts(found):
            before.append(f"without self-training before it: {why}")
            settings = dataclasses.replace(settings, self_training=[NO_TEXTS])
        else:
            before.append("its unlabelled texts come first, --self-training none does without")
    if before:  # what was left out is not to be told as filled in
        found, said = filled(settings, family, config)
    return found, "; ".join(filter(None, [said, *before]))


def within_positions(settings: FinetuneSettings, positions: int) -> FinetuneSettings:
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
