"""Between the stages: a teacher's answers to unlabelled text, learnt before the labels.

Self-training with pseudo-labels (Lee 2013, "Pseudo-Label"; Du et al. 2021, "Self-training Improves
Pre-training for Natural Language Understanding"). In: the model to start from, labelled data, and
texts without labels. Out, in the run's folder: `teacher/`, fine-tuned on the labels as the run
itself will be; `teacher.jsonl`, what it says of each text; `student.jsonl`, the surer answers of it
and of NB-SVM together, or of one alone; and `student/`, fine-tuned on those from the same start,
from whose encoder and head the fine-tuning goes on. Where NB-SVM alone answers, the first two are
left out.

A classifier of words errs on other texts than the network does, so that both together know better
which of their answers are right: on IMDb the area under the ROC curve of dev says so where the
accuracy does not.

Shapes: n texts, C classes, K methods.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minibert.adaptation import scored_examples
from minibert.config import BertConfig
from minibert.errors import InputError, MissingExtraError, TextError
from minibert.files import read_json, read_lines, table_kind, write_json, write_jsonl
from minibert.intermediate import check_same_start, run_before
from minibert.machine import launched
from minibert.progress import Progress
from minibert.run_folder import RunFolder
from minibert.runs import EarlierStage, RunResult, dev_figure, log_line, weights_digest
from minibert.runtime import start_runtime
from minibert.settings import BOTH, MODEL, NB_SVM, NO_TASK, NO_TEXTS, OWN_TEXT, FinetuneSettings
from minibert.tasks import find_task
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.classes import weights_given
from minibert.tasks.classical import check_installed
from minibert.tasks.inputs import is_json, read_inputs
from minibert.tasks.splits import parts_of
from minibert.tokenizer import WordPiece

RunOne = Callable[[FinetuneSettings], RunResult]
_TEACHER, _STUDENT, _STATE = "teacher", "student", "self-training.json"
_SAID, _LEARNT, _DEV = "teacher.jsonl", "student.jsonl", "student-dev.jsonl"
SELF_TRAINING = (_STATE, _TEACHER, _SAID, _STUDENT, _LEARNT, _DEV)  # in the folder of the run
# An answer is learnt if it is as probable as this, or is of its class's surer half; not searched
# for. After few labels hardly an answer is sure, and an order of them is still of use.
_SURE, _HALF = 0.8, 0.5
_WITHOUT = f"--self-training {NO_TEXTS} does without"  # as a recipe may have asked for it
_SLICE = 512  # texts whose answers are kept at once, for a run that is stopped meanwhile
_SMALLEST = 1e-6  # of a probability whose logarithm is taken


def check_self_training(settings: FinetuneSettings) -> None:
    """Looks at the task and at the files of texts, before anything is made.

    Raises:
        InputError: a family that answers otherwise than with a class, several processes; a file is
            not there, or is of the labelled data; a teacher, and nothing to be answered.
    """
    if not settings.texts_to_answer:
        if settings.teacher != BOTH:
            raise InputError(
                f"--teacher {settings.teacher} has no use without --self-training, which no recipe "
                f"has here; name it, too"
            )
        return
    if launched().size > 1:
        tail = f", or {_WITHOUT}" if settings.resume == "no" else ""
        raise InputError(f"--self-training runs in one process; leave torchrun out{tail}")
    task = find_task(settings.task)(settings)
    task.check_self_training()
    source = task.find_data()
    for name in settings.texts_to_answer:
        if name == OWN_TEXT:
            continue
        if not Path(name).is_file():
            raise InputError(
                f"--self-training {name} is not a file; expected a text a line, or a table"
            )
        if task.is_labelled(source, Path(name)):
            raise InputError(f"--self-training {name} is the labelled data; name other texts")


def lack_of_texts(settings: FinetuneSettings, teacher: str) -> str:
    """Why the self-training of a recipe cannot be done here, or an empty text.

    Raises:
        InputError: there is no data.
    """
    if launched().size > 1:
        return "it runs in one process"
    task = find_task(settings.task)(settings)
    source = task.find_data()
    try:
        if not task.has_unlabelled(source):
            where = "the bundled sample" if source.is_sample else source.path
            return f"no {task.unlabelled_part or 'texts without labels'} in {where}"
        if teacher == NB_SVM:
            check_installed(f"--teacher {NB_SVM}")
    except (InputError, MissingExtraError) as error:
        return str(error)
    return ""


def check_teacher(settings: FinetuneSettings, run: Path | None) -> None:
    """Looks whether the teacher can answer, before an adaptation takes its time.

    Args:
        run: the folder of a run that goes on, which may have the answers.

    Raises:
        MissingExtraError: NB-SVM alone is to answer, and scikit-learn is not installed.
    """
    is_answered = run is not None and (run / _LEARNT).is_file()
    if settings.teacher == NB_SVM and not is_answered:
        check_installed(f"--teacher {NB_SVM}")


def unlabelled_texts(
    task: Task[Any, Any], splits: Splits[Any], source: Source
) -> tuple[list[str], str]:
    """The texts to answer: those of files, the set's own; none that the labelled data has.

    Returns:
        The texts, each once, and a line that says what they are.

    Raises:
        InputError: none is left, or a file cannot be read.
    """
    found: list[str] = []
    for name in task.settings.texts_to_answer or ():
        found += _own_texts(task, source) if name == OWN_TEXT else _texts_of(task, Path(name))
    parts, scored = scored_examples(task, source, splits)
    labelled = [*parts.train, *scored]
    known = {task.comparable(text) for example in labelled for text in task.texts(example)}
    kept: dict[str, str] = {}
    for text in found:
        kept.setdefault(task.comparable(text), text)
    texts = [text for key, text in kept.items() if key and key not in known]
    if not texts:
        raise InputError(
            f"--self-training: no text is left without those of the labelled data; {_WITHOUT}"
        )
    held = len(kept.keys() & known)
    return texts, f"{len(texts):,} texts; {held:,} that the labelled data holds left out"


def _own_texts(task: Task[Any, Any], source: Source) -> list[str]:
    try:
        found = list(task.unlabelled(source))
    except InputError as error:
        raise InputError(f"--self-training {OWN_TEXT!r}: {error}; {_WITHOUT}") from None
    if not found:
        part = f"no {task.unlabelled_part} in {source.path}" if task.unlabelled_part else "no such"
        raise InputError(
            f"--self-training {OWN_TEXT!r} takes the set's texts without labels, {part}; name a "
            f"file of texts, or {_WITHOUT}"
        )
    return found


def _texts_of(task: Task[Any, Any], path: Path) -> list[str]:
    """The lines of a file, of a table the column that the task reads.

    Raises:
        InputError: it cannot be read, is JSON as a whole, or holds something else than texts.
    """
    try:
        if table_kind(path):
            rows = read_inputs(path, lambda names: task.table_columns(None, None, names))
        else:
            lines = read_lines(path)
            if is_json("\n".join(lines)):
                raise InputError(f"{path} is JSON; expected a text or an object a line")
            rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        return [task.example_of(task.parse_line(row), number).text for number, row in rows]
    except TextError as error:
        raise InputError(f"--self-training {path}: {error}") from None
    except InputError as error:
        raise InputError(f"--self-training: {error}") from None


def check_same_texts(task: Task[Any, Any], splits: Splits[Any], source: Source, run: Path) -> None:
    """Compares the texts that a finished run answered with what there is now.

    Raises:
        InputError: they are others, or cannot be read.
    """
    if task.settings.texts_to_answer:
        texts, _ = unlabelled_texts(task, splits, source)
        _state_of(run, texts)
        RunFolder(run).respell(self_training=task.settings.self_training)


def _state_of(run: Path, texts: Sequence[str]) -> dict[str, Any]:
    """How far the stage has come, as it keeps it in the run's folder.

    Raises:
        InputError: it answered other texts.
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text!r}\n".encode())
    now = digest.hexdigest()[:16]
    file = run / _STATE
    state = read_json(file, "") if file.is_file() else {"texts": now}
    if state["texts"] != now:
        raise InputError(
            "--resume: the text of --self-training has changed; --overwrite starts anew"
        )
    return state


def rehearse_self_training(task: Task[Any, Any], texts: Sequence[str]) -> None:
    """The dry run: says what there is to be learnt; each of the fine-tunings takes its own time."""
    first = f"{task.name} is learnt as below, then answers"
    log_line(
        "dry run",
        f"self-training: {'NB-SVM answers' if task.settings.teacher == NB_SVM else first} "
        f"{len(texts):,} texts, of which the surer are learnt as the labels are; the time and cost "
        "below leave this out",
    )


def self_train(
    task: Task[Any, Any],
    splits: Splits[Any],
    texts: list[str],
    start: Path,
    chosen: BertConfig,
    run: Path,
    run_one: RunOne,
    goes_on: bool,
) -> EarlierStage:
    """Has the teacher answer the texts and a student learn them; what is there is gone on with.

    Args:
        task: after `learn`. splits: its data. texts: those to answer.
        start: the model folder, of teacher and student alike. chosen: the config of the model that
            the fine-tuning was given, whose dropout they have, too.
        run: the folder of the fine-tuning, which holds the lock.
        run_one: carries out one run.
        goes_on: the run was stopped after it had begun; else what is there is of another.

    Raises:
        InputError: a model that cannot be used, or texts or one that the run did not begin with;
            NB-SVM alone is to answer and cannot, or gives all texts one class.
        Interrupted: by a signal; `--resume` goes on.
        NonFiniteError: a fine-tuning diverged.
    """
    state = _state_of(run, texts)
    write_json(run / _STATE, state)
    RunFolder(run).respell(self_training=task.settings.self_training)
    teacher, figures = None, {}
    before = task.settings
    has_another = BertConfig.from_pretrained(start).hidden_dropout_prob
    if before.dropout is None and has_another != chosen.hidden_dropout_prob:
        before = dataclasses.replace(before, dropout=chosen.hidden_dropout_prob)
    if task.settings.teacher != NB_SVM:
        teacher = _settings_of(before, start, run / _TEACHER, goes_on)
        figures[_TEACHER] = _learn(_TEACHER, teacher, run_one)
    if "answers" not in state or not all((run / name).is_file() for name in (_LEARNT, _DEV)):
        state["answers"] = _make_answers(task, teacher, splits, texts, run)
        write_json(run / _STATE, state)
    if state["answers"]["classes"] > 1:
        student = dataclasses.replace(
            _settings_of(before, start, run / _STUDENT, goes_on),
            task=task.names[-1],
            data=str(run / _LEARNT),
            dev_data=str(run / _DEV),
            test_data=None,
            text_column="text",
            label_column="label",
            label_separator=None,
            positive_label=task.positive_label,
            class_weights=_weights_of_answered(task.settings.class_weights, run / _LEARNT),
            limit=None,
        )
        figures[_STUDENT] = _learn(_STUDENT, student, run_one)
    notes = {**state["answers"], "seconds": sum(f["seconds"] for f in figures.values())}
    for name, own in figures.items():
        figure, value = dev_figure(own)
        notes[f"{name}_dev_{figure}"] = value
    last = run / next(reversed(figures))
    return EarlierStage(last, weights_digest(last), notes)


def _weights_of_answered(given: str, learnt: Path) -> str:
    """The student's --class-weights: of classes by name those that a text was answered with."""
    if given in ("none", "balanced"):
        return given
    with learnt.open(encoding="utf-8") as lines:
        answered = {json.loads(line)["label"] for line in lines}
    named = weights_given(given)
    if named.keys() <= answered:
        return given
    kept = {name: w for name, w in named.items() if name in answered}
    return json.dumps(kept) if any(kept.values()) else "none"


def _settings_of(
    settings: FinetuneSettings, start: Path, output: Path, goes_on: bool
) -> FinetuneSettings:
    """The run's own settings for a fine-tuning that comes before it."""
    has_learnt = settings.adapt is not None or settings.intermediate is not None
    return dataclasses.replace(
        settings,
        model=str(start),
        random_weights=settings.random_weights and not has_learnt,
        reinit_layers=0 if settings.intermediate else settings.reinit_layers,
        self_training=[NO_TEXTS],
        teacher=BOTH,
        adapt=None,
        adapt_epochs=None,
        adapt_minutes=None,
        adapt_learning_rate=None,
        intermediate_task=NO_TASK,
        intermediate_data=None,
        dev_only=True,
        output=str(output),
        resume="auto" if goes_on else "no",
        overwrite=not goes_on,
    )


def _learn(who: str, settings: FinetuneSettings, run_one: RunOne) -> dict[str, Any]:
    """The figures of a fine-tuning, which is gone on with where it was begun."""
    log_line("self-training", f"the {who}, in {settings.output}")
    check_same_start(settings)
    return run_before("--self-training", settings, run_one)


def _make_answers(
    task: Task[Any, Any],
    teacher: FinetuneSettings | None,
    splits: Splits[Any],
    texts: list[str],
    run: Path,
) -> dict[str, Any]:
    """Writes what the student learns from; what was found is printed, and returned as notes.

    A class that no text is answered with has no example in either file.

    Args:
        teacher: of the model that was fine-tuned, None where NB-SVM alone answers.
    """
    parts = parts_of(task, splits, task.settings.dev_fraction, task.settings.limit)
    asked = parts.dev, [task.example_of(text, number) for number, text in enumerate(texts, 1)]
    targets = np.array([task.labels.index(example.label) for example in parts.dev])
    scores: dict[str, Sequence[np.ndarray]] = {}  # by who gave them, of dev and of the texts
    if teacher is not None:
        shares = _said_by(teacher, asked, run / _SAID)
        scores["model"] = [np.log(found.clip(_SMALLEST, 1)) for found in shares]
    if words := _word_scores(task, parts.train, asked):
        scores["nb_svm"] = words
    of_dev, of_texts = zip(*scores.values(), strict=True)
    weights = pool_weights(of_dev, targets) if words else np.ones(1)
    both_dev, both = pooled(of_dev, weights), pooled(of_texts, weights)
    found, surety = both.argmax(axis=1), least_sureties(both)
    is_learnt, on_dev = chosen(both, surety), chosen(both_dev, surety)
    rows = [
        {"text": texts[i], "label": task.labels[found[i]], "probability": float(both[i, found[i]])}
        for i in np.flatnonzero(is_learnt)
    ]
    least = min(row["probability"] for row in rows)
    right = both_dev.argmax(axis=1) == targets
    counts = Counter(row["label"] for row in rows)
    notes = {
        "text": task.settings.self_training,
        "texts": len(texts),
        "answers": len(rows),
        "classes": len(counts),
        "least_probability": least,
        "dev_share": float(on_dev.mean()),
        "dev_accuracy": float(right[on_dev].mean()) if on_dev.any() else None,
        "weights": dict(zip(scores, map(float, weights), strict=True)),
    }
    told = ", ".join(f"{name!r} {counts[name]:,}" for name in task.labels[:6])
    said = f"; of dev {on_dev.mean():.0%} are as sure of their class"
    said += f", {notes['dev_accuracy']:.1%} of these right" if on_dev.any() else ""
    log_line(
        "self-training",
        f"{len(rows):,} of {len(texts):,} answers are learnt, of a probability of {least:.2f} or "
        f"more: {told}{said}",
    )
    if len(counts) < len(task.labels):
        missing = next(name for name in task.labels if not counts[name])
        if teacher is None and len(counts) == 1:
            raise InputError(
                f"--teacher {NB_SVM} answers every text with {rows[0]['label']!r}, which teaches "
                f"nothing; give other texts, or {_WITHOUT}"
            )
        goes_on = (
            "the head begins anew" if len(counts) > 1 else "so the run goes on from the teacher"
        )
        log_line("self-training", f"no text is answered with {missing!r}; {goes_on}")
    known = _of_classes(parts.dev, counts)
    write_jsonl(run / _LEARNT, rows)
    write_jsonl(run / _DEV, [{"text": e.text, "label": e.label} for e in known])
    return notes


def _of_classes(dev: Sequence[Any], counts: Counter[str]) -> list[Any]:
    """The examples of dev that a student is chosen by, of classes that were answered.

    Raises:
        InputError: there are none, where a student is to be trained.
    """
    known = [example for example in dev if counts[example.label]]
    if len(counts) > 1 and not known:
        raise InputError(
            f"the texts are answered with {', '.join(map(repr, counts))} alone, of which dev has "
            f"no example to choose a student by; give --dev-data of all classes, or {_WITHOUT}"
        )
    return known


def _word_scores(
    task: Task[Any, Any], train: Sequence[Any], asked: tuple[Sequence[Any], Sequence[Any]]
) -> list[np.ndarray] | None:
    """What NB-SVM says of two parts; None where it is not asked, or cannot help the model.

    Raises:
        InputError: it cannot answer, and nobody else is asked.
    """
    teacher = task.settings.teacher
    if teacher == MODEL:
        return None
    log_line("self-training", f"NB-SVM learns {len(train):,} labels and answers")
    try:
        return task.word_scores(train, *asked)
    except (InputError, MissingExtraError) as error:
        if teacher == NB_SVM:
            raise InputError(f"--teacher {NB_SVM}: {error}") from None
        log_line("self-training", f"answers of the model alone: {error}")
        return None


def _said_by(
    settings: FinetuneSettings, asked: tuple[Sequence[Any], Sequence[Any]], file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """What a finished fine-tuning says of examples, (n, C) probabilities of each of two parts.

    Args:
        file: keeps those of the second part, and has what was found before the run was stopped.
    """
    assert settings.output is not None
    folder, task = Path(settings.output), find_task(settings.task)(settings)
    config, tokenizer = BertConfig.from_pretrained(folder), WordPiece.from_pretrained(folder)
    task.restore(folder, config, tokenizer)
    runtime = start_runtime(settings.device, settings.precision, settings.deterministic)
    model = task.model_class.from_pretrained(folder).to(runtime.device).eval()
    predictor, (first, examples) = task.predictor(model, runtime), asked
    found, sizes = _kept(file), [len(example.text.encode()) for example in examples]
    with (
        Progress("answers", sum(sizes)) as progress,
        file.open("a", encoding="utf-8") as handle,
    ):
        progress.skip(sum(sizes[: len(found)]))
        for begin in range(len(found), len(examples), _SLICE):
            part = slice(begin, begin + _SLICE)
            rows = [row.tolist() for row in predictor.predictions(examples[part])]
            handle.write("".join(json.dumps(row) + "\n" for row in rows))
            handle.flush()
            found += rows
            progress.update(sum(sizes[part]))
    return np.array(predictor.predictions(first)), np.array(found)


def _kept(file: Path) -> list[list[float]]:
    """The whole slices of answers that a file holds; what comes behind them is cut off."""
    if not file.is_file():
        return []
    rows, sizes = [], []
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            rows.append(json.loads(line.decode()))
        except ValueError:  # as a power cut may leave it
            break
        sizes.append(len(line) + 1)
    whole = len(rows) - len(rows) % _SLICE  # the last of all, which is seldom full, is found anew
    with file.open("r+b") as handle:
        handle.truncate(sum(sizes[:whole]))
    return rows[:whole]


def least_sureties(shares: np.ndarray) -> np.ndarray:
    """(C,) from which probability on answers are learnt, inf of a class that none has.

    So the sure ones are, and of each class the surer half at least.

    Args:
        shares: (n, C) probabilities.
    """
    found, surety = shares.argmax(axis=1), shares.max(axis=1)
    least = np.full(shares.shape[1], np.inf)
    for number in np.unique(found):
        least[number] = min(_SURE, np.quantile(surety[found == number], _HALF))
    return least


def chosen(shares: np.ndarray, least: np.ndarray) -> np.ndarray:
    """(n,) which answers are as sure of their class as those that are learnt.

    Args:
        shares: (n, C) probabilities.
        least: (C,) of `least_sureties`.
    """
    is_sure: np.ndarray = shares.max(axis=1) >= least[shares.argmax(axis=1)]
    return is_sure


def pool_weights(scores: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """How much each method's scores count in `pooled`, for the likeliest answers to examples.

    The first method alone, (1, 0, ...), is what the weights are drawn to, as by a normal prior of
    deviation 1, so that few examples say little.

    Args:
        scores: of K methods, each (n, C). targets: (n,) the numbers of the classes.

    Returns:
        (K,), none below 0.
    """
    from scipy.optimize import minimize

    stacked, rows = np.stack([np.asarray(own, float) for own in scores]), np.arange(len(targets))
    prior = np.eye(len(scores))[0]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        shares = pooled(scores, weights)
        missed = shares.copy()
        missed[rows, targets] -= 1
        value = (
            -np.log(shares[rows, targets].clip(1e-300)).sum() + ((weights - prior) ** 2).sum() / 2
        )
        return value, (stacked * missed).sum(axis=(1, 2)) + weights - prior

    bounds = [(0.0, None)] * len(scores)
    found: np.ndarray = minimize(loss, prior, jac=True, bounds=bounds, method="L-BFGS-B").x
    return found


def pooled(scores: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n, C) probabilities, the softmax of the weighted sum of the methods' scores.

    Of logarithms of probabilities it is the logarithmic opinion pool (Genest and Zidek 1986,
    "Combining Probability Distributions", section 3).

    Args:
        scores: of K methods, each (n, C). weights: (K,).
    """
    total = sum(weight * own.astype(float) for weight, own in zip(weights, scores, strict=True))
    total = np.exp(total - np.max(total, axis=1, keepdims=True))
    shares: np.ndarray = total / total.sum(axis=1, keepdims=True)
    return shares
