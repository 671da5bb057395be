"""The commands: settings -> flags, errors -> one line and an exit status.

Exit status: 0 done; 2 the flags or the input are wrong; 1 another failure; 130 after Ctrl-C and
143 after SIGTERM. Standard output carries results, standard error progress and log.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from minibert.errors import (
    DownloadError,
    InputError,
    Interrupted,
    MissingExtraError,
    TextError,
    did_you_mean,
)
from minibert.fields import flag
from minibert.files import FULL, check_line_ends, decoded, read_text, table_kind
from minibert.flags import parsers, settings_from
from minibert.machine import launched, leave
from minibert.settings import FinetuneSettings, PretrainSettings

_SLICE_BATCHES = 64  # batches whose answers are found before the first of them is printed


def _pretrain(values: dict[str, Any]) -> None:
    settings = settings_from(values, PretrainSettings)
    from minibert.pretraining import pretrain

    assert isinstance(settings, PretrainSettings)
    pretrain(settings)


def _finetune(values: dict[str, Any]) -> None:
    settings = settings_from(values, FinetuneSettings)
    from minibert.finetuning import finetune

    assert isinstance(settings, FinetuneSettings)
    finetune(settings)


def _predict(values: dict[str, Any]) -> None:
    kind = table_kind(Path(values["input"] or "")) if not values["texts"] else None
    for name in ("text_column", "text_pair_column"):
        if values[name] and kind is None:
            raise InputError(f"{flag(name)} goes with a .csv, .tsv or .jsonl as --input")
    lines = [] if kind else _texts_of(values, "predict")
    from minibert.predict import load

    predictor = load(values["folder"], values["device"], values["precision"])
    if kind:
        lines = _table_lines(values, predictor.task)
    batch_size, parse = values["batch_size"], predictor.task.parse_line

    def check(texts: list[str]) -> None:
        predictor.examples([parse(text) for text in texts])

    def answer(texts: list[str]) -> list[Any]:
        return predictor.predict([parse(text) for text in texts], batch_size)

    def show(found: Any) -> None:
        _print_row(found if isinstance(found, dict) else dataclasses.asdict(found))

    _print_answers(lines, check, _in_slices(answer, batch_size), show)


def _table_lines(values: dict[str, Any], task: Any) -> list[_Line]:
    """The rows of --input, a table, as lines that the task's `parse_line` reads.

    Raises:
        InputError: the table cannot be read, is empty, or a row lacks what the task reads.
    """
    from minibert.tasks.inputs import read_inputs

    path, named = Path(values["input"]), (values["text_column"], values["text_pair_column"])
    found = read_inputs(path, lambda names: task.table_columns(*named, names))
    if not found:
        raise InputError(f"--input {path} holds no row below its column names")
    return [_Line(f"line {line}", text) for line, text in found]


class _Line(NamedTuple):
    """A text, and where it was given, as in "line 6"."""

    place: str
    text: str


def _texts_of(values: dict[str, Any], verb: str) -> list[_Line]:
    """Texts as typed, or the lines of --input or of standard input.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    texts, file = values["texts"], values["input"]
    if file == "-" and not texts:
        texts, file = ["-"], None
    lines = _typed(texts)
    if file is not None:
        if lines:
            raise InputError("give texts or --input, not both")
        path = Path(file)
        if not path.exists() or path.is_dir():
            raise InputError(f"--input {path} is not a file; expected one text a line")
        if table_kind(path):
            raise InputError(
                f"--input {path} is a table; expected one text a line (another name has it read so)"
            )
        content = read_text(path)
        _check_texts(content, f"--input {path}", str(path))
        lines = _lines(content)
    if not lines:
        raise InputError(f"nothing to {verb}; give TEXT, --input FILE, or - for standard input")
    return lines


def _plain(lines: list[_Line]) -> list[_Line]:
    """The same, of an object as a line of JSON its text.

    Raises:
        InputError: an object without one.
    """
    from minibert.tasks.base import text_in

    found = [(line.place, text_in(line.text)) for line in lines]
    for place, text in found:
        if not isinstance(text, str):
            raise InputError(f"{place} is an object without a text alone; expected a text a line")
    return [_Line(place, str(text)) for place, text in found]


def _check_texts(content: str, place: str, path: str = "TAGS") -> None:
    """Raises InputError where lines are no texts, but parts of something else."""
    from minibert.tasks.inputs import holds_tags, is_json

    check_line_ends(content, place)
    if is_json(content):
        raise InputError(f"{place} is JSON; expected a text or an object a line")
    if holds_tags(content):
        raise InputError(
            f"{place} holds a word and its tag a line, which would be read as texts; of a tagging "
            f"model `minibert evaluate FOLDER --data {path} --predictions FILE` gives their tags"
        )


def _print_answers(
    lines: list[_Line],
    check: Callable[[list[str]], object],
    answer: Callable[[list[str]], Iterable[Any]],
    show: Callable[[Any], None],
    key: str = "text",
) -> None:
    """Prints the answer to each text as soon as it is known.

    Of several, one that `check` refuses has an object with its "error" in its place, so that the
    output stays in step with the input.

    Args:
        check: raises InputError where one of some texts cannot be answered.
        answer: texts -> their answers, in their order.
        key: of the text in the object of a refused one, as in the answers.

    Raises:
        InputError: at the end, that some could not be answered; at once, if there is but one text.
    """
    texts = [line.text for line in lines]
    refused = _refused(check, texts) if len(texts) > 1 else {}
    answers = iter(answer([text for number, text in enumerate(texts) if number not in refused]))
    for number, text in enumerate(texts):
        if number in refused:
            _print_row({key: text, "error": refused[number]})
        else:
            show(next(answers))
    for number, reason in refused.items():
        raise InputError(
            f"{len(refused):,} of {len(texts):,} could not be answered; the first, "
            f"{lines[number].place}: {reason}"
        )


def _refused(
    check: Callable[[list[str]], object], texts: list[str], first: int = 0
) -> dict[int, str]:
    """Place -> reason, of the texts that `check` refuses; found by halving what it refuses."""
    try:
        check(texts)
    except InputError as error:
        if len(texts) == 1:
            return {first: error.reason if isinstance(error, TextError) else str(error)}
        half = len(texts) // 2
        return _refused(check, texts[:half], first) | _refused(check, texts[half:], first + half)
    return {}


def _in_slices(
    answer: Callable[[list[str]], list[Any]], batch_size: int
) -> Callable[[list[str]], Iterator[Any]]:
    """The same, some batches at a time, so that rows come while later texts wait."""

    def answers(texts: list[str]) -> Iterator[Any]:
        for start in range(0, len(texts), _SLICE_BATCHES * batch_size):
            yield from answer(texts[start : start + _SLICE_BATCHES * batch_size])

    return answers


def _fill_mask(values: dict[str, Any]) -> None:
    lines = _plain(_texts_of(values, "fill"))
    if values["top"] < 1:
        raise InputError(f"--top is {values['top']}, must be above 0")
    model = _masked_lm(values)

    def answer(texts: list[str]) -> list[Any]:
        return model.fill_mask(texts, values["top"], values["batch_size"])

    def show(found: Any) -> None:
        if values["json"] or not sys.stdout.isatty():
            _print_row(_rounded(dataclasses.asdict(found)))
            return
        print(found.text)
        for number, candidates in enumerate(found.masks, 1):
            if len(found.masks) > 1:
                print(f"  [MASK] {number}")
            for candidate in candidates:
                print(f"  {candidate.probability:7.2%}  {candidate.token}")

    _print_answers(lines, model.check_masks, _in_slices(answer, values["batch_size"]), show)


def _score(values: dict[str, Any]) -> None:
    lines = _plain(_texts_of(values, "score"))
    model = _masked_lm(values)
    pll, tokens, characters, sentences = 0.0, 0, 0, 0

    def answer(texts: list[str]) -> Iterator[Any]:
        return model.iter_scores(texts, values["within_word"], values["batch_size"])

    def show(found: Any) -> None:
        nonlocal pll, tokens, characters, sentences
        row = dataclasses.asdict(found)
        pieces = {name: row.pop(name) for name in ("pieces", "log_probs")}
        _print_row(_rounded(row | pieces if values["per_token"] else row))
        pll, tokens = pll + found.pll, tokens + found.tokens
        characters, sentences = characters + len(found.sentence.strip()), sentences + 1

    try:
        _print_answers(lines, model.iter_scores, answer, show, key="sentence")
    finally:
        if len(lines) > 1 and tokens:
            from minibert.masked import figures_of
            from minibert.runs import log_line

            figures = figures_of(pll, tokens, characters).items()
            told = ", ".join(f"{name} {value:,.4f}" for name, value in figures)
            log_line("all", f"{sentences:,} sentences, {tokens:,} tokens, {told}")


def _masked_lm(values: dict[str, Any]) -> Any:
    """The pretrained model that a command names, or else that of fine-tuning; printed."""
    from minibert.masked import load_masked_lm
    from minibert.starts import choose_model

    folder = choose_model(FinetuneSettings(task="-", model=values["model"]))
    return load_masked_lm(folder, values["device"], values["precision"])


def _rounded(value: Any) -> Any:
    """Numbers in an object to six digits, which is what float32 is good for."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _typed(words: list[str]) -> list[_Line]:
    """Texts from the command line, or for "-" the lines of standard input.

    Raises:
        InputError: they are not UTF-8, or what is read is no text a line.
    """
    for number, text in enumerate(words, 1):
        if any("\ud800" <= c <= "\udfff" for c in text):  # how Python shows bytes it cannot read
            raise InputError(f"text {number} is not UTF-8")
    if words != ["-"]:
        return [_Line(f"text {number}", word) for number, word in enumerate(words, 1)]
    if sys.stdin is None:  # a command that was begun with it closed
        raise InputError("standard input is closed; give texts, or --input FILE")
    content = decoded(sys.stdin.buffer.read(), "standard input")
    _check_texts(content, "standard input")
    return _lines(content)


def _print_row(row: dict[str, Any]) -> None:
    """An object as a line of JSON, in ASCII where the terminal knows no more."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(row, ensure_ascii=not is_utf8))


def _search(values: dict[str, Any]) -> None:
    queries = [line.text for line in _typed(values.pop("queries"))]
    if not queries:
        raise InputError("nothing to search for; give QUERY, or - for standard input")
    from minibert.retrieval import search

    folder, file = values.pop("folder"), values.pop("input")
    for query, hits in zip(queries, search(folder, file, queries, **values), strict=True):
        for hit in hits:
            _print_row({"query": query, **hit._asdict()})


def _lines(content: str) -> list[_Line]:
    """One text a line; blank lines are left out."""
    numbered = enumerate(content.split("\n"), 1)
    return [_Line(f"line {n}", line.removesuffix("\r")) for n, line in numbered if line.strip()]


def _evaluate(values: dict[str, Any]) -> None:
    from minibert.evaluation import evaluate

    print(json.dumps(evaluate(values.pop("folder"), **values), indent=2))


def _evaluate_suite(values: dict[str, Any]) -> None:
    from minibert.suite import evaluate_suite
    from minibert.suite_report import as_markdown

    model, output, given = values.pop("model"), values["output"], values.pop("tasks")
    # Names may be parted by commas, too.
    tasks = tuple(name for part in given for name in part.split(",") if name)
    if given and not tasks:  # an empty variable of a script does not mean all
        raise InputError("--tasks names nothing; leave it out for all of them")
    print(as_markdown(evaluate_suite(model, tasks=tasks, **values)), end="")
    print(f"written to {output}: suite.md, suite.html, suite.json")


def _search_settings(values: dict[str, Any]) -> None:
    tried = {
        name.removeprefix("try_"): values.pop(name) for name in list(values) if name[:4] == "try_"
    }
    trials, jobs = values.pop("trials", None), values.pop("jobs", 1)
    if values.get("dev_only") is False:
        raise InputError(
            "--no-dev-only: a search never scores test; score the settings it finds with "
            "finetune --config and its best.json"
        )
    settings = settings_from(values, FinetuneSettings, tried)
    from minibert.setting_search import search_settings

    assert isinstance(settings, FinetuneSettings)
    search = search_settings(settings, tried, trials, jobs)
    if all("diverged" in trial for trial in search["trials"]):  # as was printed
        raise SystemExit(1)


def _download(values: dict[str, Any]) -> None:
    import logging

    from minibert.download import download

    handler = logging.StreamHandler()  # standard error
    handler.setFormatter(logging.Formatter("download: %(message)s"))
    logging.getLogger("minibert.download").addHandler(handler)
    logging.getLogger("minibert.download").setLevel(logging.INFO)
    print(download(values["name"], Path(values["directory"])))


def _clean_corpus(values: dict[str, Any]) -> None:
    from minibert.cleaning import clean_corpus
    from minibert.corpus import ReaderOptions, other_files

    names = [field.name for field in dataclasses.fields(ReaderOptions)]
    options = ReaderOptions(**{name: values.pop(name) for name in names if name in values})
    inputs = values.pop("inputs")
    if told := other_files(inputs, "INPUT"):
        print(f"data: {told}", file=sys.stderr)
    counts = clean_corpus(inputs, options=options, **values)
    print(json.dumps(dataclasses.asdict(counts), indent=2))


def _export(values: dict[str, Any]) -> None:
    from minibert.exporting import export

    print(json.dumps(export(values.pop("folder"), values.pop("output"), **values), indent=2))


_COMMANDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "predict": _predict,
    "evaluate": _evaluate,
    "search": _search,
    "fill-mask": _fill_mask,
    "score": _score,
    "evaluate-suite": _evaluate_suite,
    "search-settings": _search_settings,
    "download": _download,
    "clean-corpus": _clean_corpus,
    "export": _export,
}


# What the system says of a path that was named and is not usable.
_WRONG_PATHS = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST),
)


class _Terminated(BaseException):
    """SIGTERM outside the training loop."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # begun with it closed, as by >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # escapes for what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in argv
    stopped = 0  # the signal that came outside the training loop, if any

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal stopped
        stopped = number
        raise KeyboardInterrupt if number == signal.SIGINT else _Terminated

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = _run(argv)
        leave(status)
        return status
    except Exception as error:
        if stopped and not isinstance(error, Interrupted):  # a library made another error of it
            return _tell_stop(stopped)
        if debug and not isinstance(error, Interrupted):
            traceback.print_exc()
        status, message = _explain(error)
        place = launched()
        # A machine's first process says it for all of them; another may lack what this one has.
        same = isinstance(error, InputError) and place.local_rank > 0
        if message and not same:
            who = f"rank {place.rank}: " if place.rank else ""
            print(f"minibert: {who}{message}", file=sys.stderr)
        return status
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except _Terminated:
        return _tell_stop(signal.SIGTERM)
    except KeyboardInterrupt:
        return _tell_stop(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_stop(number: int) -> int:
    """Says which signal ended a command outside its training loop; returns the exit status."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    print(f"minibert: stopped by {name}", file=sys.stderr)
    return 128 + number


def _run(argv: list[str]) -> int:
    parser, commands = parsers()
    if not argv:
        parser.print_help()
        return 0
    if argv[0] in commands:  # parsed by the command itself, so that it knows the nearest flag
        values = vars(commands[argv[0]].parse_args(argv[1:]))
        command = argv[0]
    else:
        if not argv[0].startswith("-"):
            raise InputError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], commands)}")
        parser.parse_args(argv)
        return 0
    if command not in ("pretrain", "finetune", "search-settings"):  # whose settings hold it
        values.pop("debug", None)
    if values.get("batch_size", 1) < 1:
        raise InputError(f"--batch-size is {values['batch_size']}, must be above 0")
    _COMMANDS[command](values)
    sys.stdout.flush()
    return 0


def _explain(error: Exception) -> tuple[int, str]:
    """Exit status and the one line that says what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, InputError):
        return 2, text
    if isinstance(error, Interrupted):
        return error.status, text
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    # A library of Rust says it in its own words.
    full = isinstance(error, OSError) and error.errno in FULL
    if full or any(f"os error {code}" in text for code in FULL):
        name = getattr(error, "filename", None)
        where = "no space left on the disk" + (f" ({name})" if name else "")
        return 1, f"{where}; free some; the last checkpoint of a run is whole, and --resume goes on"
    if isinstance(error, OSError) and error.errno in _WRONG_PATHS and error.filename:
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, (MissingExtraError, DownloadError)):
        return 1, text
    return 1, f"{type(error).__name__}: {text} (--debug shows the trace)"
