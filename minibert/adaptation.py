"""Between the stages: masked words of a task's own text, before its labels are learnt from.

Task-adaptive pretraining (Gururangan et al. 2020, "Don't Stop Pretraining", section 4). In: the
model to start from, and text without labels. Out: `adapted/` in the run's folder, an ordinary
pretraining run that fine-tuning starts from; one serves all seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minibert.cache import data_fingerprint
from minibert.cleaning import folded
from minibert.corpus import ReaderOptions, ReadingError, find_files, read_pieces, readable_files
from minibert.errors import InputError
from minibert.files import whole_characters, write_atomically
from minibert.pretraining import pretrain
from minibert.run_folder import RunFolder
from minibert.runs import EarlierStage, log_line, weights_digest
from minibert.settings import CONTINUED, OWN_TEXT, FinetuneSettings, PretrainSettings, recipe
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.splits import Parts, parts_of

_FOLDER, _TEXT = "adapted", "adapted.jsonl"
_EPOCHS = 3.0  # passes over the text where no budget is given
# Set for fine-tuning, and the same while adapting; all else is the recipe's and pretraining's.
_SHARED = (
    *("batch_size", "micro_batch_size", "max_seq_length", "seed", "device", "precision"),
    *("compile", "deterministic", "log_every", "save_every", "cache_dir", "dry_run"),
)


def made_before_training(settings: FinetuneSettings) -> tuple[str, ...]:
    """What a run's folder keeps when its fine-tuning begins."""
    return (_FOLDER, _TEXT) if settings.adapt is not None else ()


def check_text(task: Task[Any, Any]) -> None:
    """Looks at the files of text, before anything is made.

    Raises:
        InputError: one is not there, is no text, or is of the labelled data.
    """
    named = [place for place in task.settings.adapt or () if place != OWN_TEXT]
    if not named:
        return
    files, source = find_files(named, "--adapt"), task.find_data()
    for file in files:
        if task.is_labelled(source, file):
            raise InputError(
                f"--adapt {file} is the labelled data, whose labels and scored texts would be read "
                f"as text; {OWN_TEXT!r} takes its training texts alone"
            )
    readable_files(files)


def adapt(
    task: Task[Any, Any], splits: Splits[Any], source: Source, start: Path, run: Path
) -> EarlierStage:
    """Adapts a model to a task's text; what is there is gone on with, or left as it is.

    Args:
        splits: read from `source`.
        start: the model folder.
        run: the folder of the fine-tuning, which holds the lock.

    Raises:
        InputError: text that cannot be used; or another adaptation is there, and `--overwrite` was
            not given.
        Interrupted: by a signal; `--resume` goes on.
    """
    settings = task.settings
    figures, files = _learn_text(task, splits, source, start, run)
    RunFolder(run).respell(adapt=settings.adapt)
    notes = {
        "text": settings.adapt,
        "files": len(files),
        "random_weights": settings.random_weights,
        "minutes": figures["seconds"] / 60,
        **{key: figures[key] for key in ("tokens", "epochs", "steps", "mlm_loss", "mlm_accuracy")},
    }
    log_line(
        "adapted",
        f"{run / _FOLDER}, {notes['tokens']:,} tokens in {notes['minutes']:.1f} min; held out: "
        f"mlm_loss {notes['mlm_loss']:.3f}, mlm_accuracy {notes['mlm_accuracy']:.3f}",
    )
    return EarlierStage(run / _FOLDER, weights_digest(run / _FOLDER), notes)


def rehearse_adaptation(
    task: Task[Any, Any], splits: Splits[Any], source: Source, start: Path
) -> None:
    """The dry run of an adaptation; of files that are named the encoded form stays in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        _learn_text(task, splits, source, start, Path(folder))


def _learn_text(
    task: Task[Any, Any], splits: Splits[Any], source: Source, start: Path, run: Path
) -> tuple[dict[str, Any], list[Path]]:
    """The figures of the pretraining run that adapts, and the files that it read."""
    settings = task.settings
    places = _places(task, splits, source, run)
    try:
        files, _ = readable_files(find_files(places, "--adapt"))
        if named := [file for file in files if file != run / _TEXT]:
            _say_copies(task, splits, source, named)
        wanted = _pretraining(settings, places, start, run / _FOLDER)
        if settings.dry_run and OWN_TEXT in (settings.adapt or ()):
            # A cache knows a text by its place, and this one's is gone with the dry run.
            wanted = dataclasses.replace(wanted, cache_dir=str(run / "cache"))
        with contextlib.redirect_stdout(sys.stderr):  # results are those of the task
            return pretrain(wanted).figures, files
    except InputError as error:
        text = error.without_flag if isinstance(error, ReadingError) else str(error)
        raise InputError(text if text.startswith("--adapt") else f"--adapt: {text}") from None


def check_same_text(task: Task[Any, Any], splits: Splits[Any], source: Source, run: Path) -> None:
    """Compares the text that a finished run adapted to with what there is now.

    Raises:
        InputError: it is another, or it cannot be read.
    """
    settings, adapted = task.settings, RunFolder(run / _FOLDER)
    if settings.adapt is None or not (adapted.path / "run.json").is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        places = _places(task, splits, source, Path(folder))
        adapted.check_same_data(_fingerprint(places, settings.cache_dir), what="of --adapt ")
    RunFolder(run).respell(adapt=settings.adapt)


def _places(task: Task[Any, Any], splits: Splits[Any], source: Source, folder: Path) -> list[str]:
    """Where the text lies; that of the task itself is written into the folder."""
    places = task.settings.adapt or []
    if OWN_TEXT in places:
        _write_own_text(folder / _TEXT, task, splits, source)
    return [str(folder / _TEXT) if place == OWN_TEXT else place for place in places]


def _fingerprint(places: list[str], cache_dir: str | None) -> str:
    """That of the text in the run.json of the run that adapts to it."""
    files, _ = readable_files(find_files(places, "--adapt"))
    return data_fingerprint(files, ReaderOptions(), Path(cache_dir) if cache_dir else None)


def own_text(task: Task[Any, Any], splits: Splits[Any], source: Source) -> tuple[list[str], str]:
    """The text of a task without its labels: what the set has unlabelled, else that of train.

    Of train it is all, whatever `--limit` says of the labels. A text that dev or test holds is
    left out, and so is one that came before.

    Returns:
        The texts, and a line that says what they are.
    """
    parts, scored = scored_texts(task, source, splits)
    found, what = list(task.unlabelled(source)), "texts of the set without labels"
    if not found:
        found = [text for example in parts.train for text in task.texts(example)]
        what = "training texts"
        if task.unlabelled_part:
            what += f" (no {task.unlabelled_part} in {source.path})"
    if not found:
        raise InputError(
            f"--adapt: {task.name} does not say what its texts are; name a file of text"
        )
    kept = {folded(text): text for text in reversed(found)}  # of copies the first
    texts = [text for key, text in reversed(kept.items()) if key and key not in scored]
    held = len(kept.keys() & scored)
    return texts, f"{len(texts):,} {what}; {held:,} that dev or test holds left out"


def scored_texts(
    task: Task[Any, Any], source: Source, splits: Splits[Any]
) -> tuple[Parts, set[str]]:
    """A task's train and dev, and the texts of dev and test as `cleaning.folded` has them."""
    parts, examples = scored_examples(task, source, splits)
    return parts, {folded(text) for example in examples for text in task.texts(example)} - {""}


def scored_examples(
    task: Task[Any, Any], source: Source, splits: Splits[Any]
) -> tuple[Parts, list[Any]]:
    """A task's train and dev, and the examples of dev and test.

    Those of test count though dev alone be scored: `evaluate` may score the test split later.
    """
    whole = task.read(source) if task.settings.dev_only else splits
    # Only texts of test are looked at, which has not to be one that can be scored.
    untested = dataclasses.replace(whole, test=None)
    parts = parts_of(task, untested, task.settings.dev_fraction, None)
    return parts, [*parts.dev, *(whole.test or ())]


def _say_copies(
    task: Task[Any, Any], splits: Splits[Any], source: Source, files: Sequence[Path]
) -> None:
    """Tells how many texts of dev and test the user's own files hold; they are left as they are."""
    _, scored = scored_texts(task, source, splits)
    found: set[str] = set()
    for file in files:
        for piece in read_pieces(file, ReaderOptions()):
            texts = (*piece.lines, " ".join(piece.lines))
            found |= scored & {folded(text) for text in texts}
    if found:
        log_line(
            "adapt",
            f"{len(found):,} text(s) of dev and test are in the files named, without their labels; "
            f"clean-corpus --exclude, or {OWN_TEXT!r} alone, leaves such out",
        )


def _write_own_text(path: Path, task: Task[Any, Any], splits: Splits[Any], source: Source) -> None:
    """A file of the task's texts, one a line; one that says the same keeps its time of change."""
    texts, said = own_text(task, splits, source)
    log_line("adapt", said)
    if not texts:
        raise InputError("--adapt: no text is left without those of dev and test; name a file")
    content = "".join(_lines(texts))
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        write_atomically(path, lambda p: p.write_text(content, encoding="utf-8"))


def _lines(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield json.dumps({"text": whole_characters(text)}, ensure_ascii=False) + "\n"


def _pretraining(
    settings: FinetuneSettings, places: list[str], start: Path, folder: Path
) -> PretrainSettings:
    """The settings of the pretraining run that adapts; it replaces another only if it may."""
    minutes = settings.adapting_minutes
    wanted: dict[str, Any] = {
        **recipe(CONTINUED),
        **{name: getattr(settings, name) for name in _SHARED},
        "corpus": places,
        "model": str(start),
        "random_weights": settings.random_weights,
        "nsp": "none",
        "learning_rate": settings.adapt_learning_rate,
        "epochs": None if minutes else settings.adapt_epochs or _EPOCHS,
        "max_minutes": minutes,
        "output": str(folder),
    }
    if not (folder / "run.json").is_file():
        return PretrainSettings(**wanted)
    run = RunFolder(folder)
    if not settings.overwrite:  # an adaptation ends by the recipe that it began with
        begun = run.read_run()["settings"]
        wanted |= {name: begun.get(name, wanted[name]) for name in recipe(CONTINUED)}
    found = PretrainSettings(**wanted, resume="yes")
    same = _has_same_content(run, found)
    if same:  # where it lies depends on how `--output` is spelt
        run.respell(corpus=places, **({} if settings.random_weights else {"model": str(start)}))
    if not settings.overwrite:
        return found
    differ = run.other_settings(found.to_dict())
    if same and not differ:
        return found
    if same:
        log_line("adapt", f"anew, since {'; '.join(differ)}")
    return PretrainSettings(**wanted, overwrite=True)


def _has_same_content(run: RunFolder, settings: PretrainSettings) -> bool:
    """Whether a run learns from the same text, and began with the same weights."""
    assert settings.model is not None
    digest = None if settings.random_weights else weights_digest(Path(settings.model))
    begun = run.read_run()
    text = _fingerprint(settings.corpus, settings.cache_dir)
    return (begun.get("data_fingerprint"), begun["resolved"].get("start_weights")) == (text, digest)
