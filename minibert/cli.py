"""The commands: settings -> flags, errors -> one line and an exit status.

Exit status: 0 done; 2 the flags or the input are wrong; 1 another failure; 130 after Ctrl-C and
143 after SIGTERM. Standard output carries results, standard error progress and log.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from minibert.download import SOURCES
from minibert.errors import InputError, Interrupted, MissingExtraError, did_you_mean
from minibert.files import read_json
from minibert.machine import launched
from minibert.settings import (
    PRETRAINING_RECIPES,
    FinetuneSettings,
    PretrainSettings,
    RunSettings,
    recipe,
)
from minibert.version import __version__


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors, with the nearest flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Flags may stand among texts, which argparse takes for granted only where it is asked to.
        is_plain = any(action.nargs == argparse.PARSER for action in self._actions)
        parse = self.parse_known_args if is_plain else self.parse_known_intermixed_args
        found, unknown = parse(args, namespace)
        if unknown:
            known = [o for a in self._actions for o in a.option_strings]
            tail = did_you_mean(unknown[0].split("=")[0], known) if known else ""
            kind = "flag" if unknown[0].startswith("-") else "argument"
            raise InputError(f"unknown {kind} {unknown[0]}{tail}")
        return found


class _ExtendOrWord(argparse.Action):
    """Gathers values as "extend" does; the bare flag gives its word, `const`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*before, *(values or [self.const])])


def add_settings(parser: argparse.ArgumentParser, settings: type[RunSettings]) -> None:
    """One flag for each field of a settings class; flags not given leave no trace."""
    own = parser.add_argument_group(settings.__name__.removesuffix("Settings").lower())
    shared = parser.add_argument_group("run")
    inherited = {f.name for f in dataclasses.fields(RunSettings)}
    for field in dataclasses.fields(settings):
        group = shared if field.name in inherited else own
        kind, *others = str(field.type).split(" | ")
        text = field.metadata["help"].replace("%", "%%")
        default = None if field.default is dataclasses.MISSING else field.default
        if default not in (None, "", False) and "default" not in text:
            text += f" (default {default})"
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if field.metadata["choices"]:
            options["choices"] = field.metadata["choices"]
        if kind == "bool" and others:  # a switch that may also be set to a word
            options |= {"nargs": "?", "const": True, "choices": ("auto",), "metavar": "auto"}
        elif kind == "bool":
            options["action"] = argparse.BooleanOptionalAction
        elif kind == "list[str]":
            options |= {"nargs": "+", "action": "extend"}
            if field.metadata["optional"]:
                options |= {"nargs": "*", "action": _ExtendOrWord}
        else:
            options["type"] = {"int": int, "float": float, "str": str}[kind]
            options["metavar"] = None if field.metadata["choices"] else kind.upper()
            if "Literal['auto']" in others:
                options |= {"type": _number_or_word, "metavar": f"{kind.upper()}|auto"}
        if field.metadata["optional"] and kind != "list[str]":
            options |= {"nargs": "?", "const": field.metadata["optional"]}
        elif field.metadata["optional"]:
            options["const"] = field.metadata["optional"]
        name = field.name.replace("_", "-")
        group.add_argument(f"--{name}", **options)
        if kind == "bool" and others:
            off: dict[str, Any] = {
                "dest": field.name,
                "default": argparse.SUPPRESS,
                "help": f"not --{name}",
            }
            group.add_argument(f"--no-{name}", action="store_false", **off)
    shared.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="JSON file of settings by field name; flags come before it",
    )


def _number_or_word(text: str) -> int | str:
    """A whole number, or what was typed, for the settings to judge."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def settings_from(values: dict[str, Any], settings: type[RunSettings]) -> RunSettings:
    """Defaults < the --recipe < the --config file < flags.

    Raises:
        InputError: an unknown recipe or key in the file, or a value that cannot be used.
    """
    values = dict(values)
    named = recipe(values.pop("recipe")) if "recipe" in values else {}
    given: dict[str, Any] = {}
    if "config" in values:
        path = Path(values.pop("config"))
        content = read_json(path, "--config names a JSON file")
        if named and "command" in content:
            raise InputError(f"{path} is a run's, with every setting; leave --recipe out")
        given = _of_earlier_run(content, path) if "command" in content else content
        budgets = {"max_steps", "epochs", "max_minutes"}
        if budgets & values.keys():  # a flag replaces the file's budget, whichever kind it is
            given = {k: v for k, v in given.items() if k not in budgets}
        settings.from_dict({**dataclasses.asdict(_blank(settings)), **named, **given}, str(path))
    return settings.from_dict({**named, **given, **values})


def _of_earlier_run(run: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings in a run.json, but for those that say where and how that one run went."""
    settings = run.get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{path}: settings is {type(settings).__name__}, expected an object")
    once = ("output", "resume", "overwrite", "dry_run", "profile", "debug")
    return {name: value for name, value in settings.items() if name not in once}


def _blank(settings: type[RunSettings]) -> RunSettings:
    """Settings that pass their own checks, to hold a file's keys against."""
    required = {"corpus": ["-"]} if settings is PretrainSettings else {"task": "-"}
    return settings(**required)


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
    texts = _texts_of(values, "predict")
    from minibert.predict import load

    predictor = load(values["folder"], values["device"], values["precision"])
    given = [predictor.task.parse_line(text) for text in texts]
    for found in predictor.predict(given, values["batch_size"]):
        _print_row(found if isinstance(found, dict) else dataclasses.asdict(found))


def _texts_of(values: dict[str, Any], verb: str) -> list[str]:
    """Texts as typed, or the lines of --input or of standard input.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    texts = _typed(values["texts"])
    if values["input"] is not None:
        if texts:
            raise InputError("give texts or --input, not both")
        path = Path(values["input"])
        if not path.is_file():
            raise InputError(f"--input {path} is not a file; expected one text a line")
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"--input {path}: byte {error.start} is not UTF-8") from None
        texts = _lines(content)
    if not texts:
        raise InputError(f"nothing to {verb}; give TEXT, --input FILE, or - for standard input")
    return texts


def _fill_mask(values: dict[str, Any]) -> None:
    texts = _texts_of(values, "fill")
    if values["top"] < 1:
        raise InputError(f"--top is {values['top']}, must be above 0")
    model = _masked_lm(values)
    for found in model.fill_mask(texts, values["top"], values["batch_size"]):
        if values["json"] or not sys.stdout.isatty():
            _print_row(_rounded(dataclasses.asdict(found)))
            continue
        print(_printable(found.text))
        for number, candidates in enumerate(found.masks, 1):
            if len(found.masks) > 1:
                print(f"  [MASK] {number}")
            for candidate in candidates:
                print(_printable(f"  {candidate.probability:7.2%}  {candidate.token}"))


def _score(values: dict[str, Any]) -> None:
    texts = _texts_of(values, "score")
    model = _masked_lm(values)
    pll, tokens, characters = 0.0, 0, 0
    for found in model.iter_scores(texts, values["within_word"], values["batch_size"]):
        row = dataclasses.asdict(found)
        pieces = {name: row.pop(name) for name in ("pieces", "log_probs")}
        _print_row(_rounded(row | pieces if values["per_token"] else row))
        pll, tokens = pll + found.pll, tokens + found.tokens
        characters += len(found.sentence.strip())
    if len(texts) > 1:
        from minibert.masked import figures_of
        from minibert.runs import log_line

        figures = figures_of(pll, tokens, characters).items()
        told = ", ".join(f"{name} {value:,.4f}" for name, value in figures)
        log_line("all", f"{len(texts):,} sentences, {tokens:,} tokens, {told}")


def _masked_lm(values: dict[str, Any]) -> Any:
    """The pretrained model that a command names, or else that of fine-tuning; printed."""
    from minibert.finetuning import choose_model
    from minibert.masked import load_masked_lm

    blank = _blank(FinetuneSettings)
    assert isinstance(blank, FinetuneSettings)
    folder = choose_model(dataclasses.replace(blank, model=values["model"]))
    return load_masked_lm(folder, values["device"], values["precision"])


def _rounded(value: Any) -> Any:
    """Numbers in an object to six digits, which is what float32 is good for."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _typed(words: list[str]) -> list[str]:
    """Texts from the command line, or for "-" the lines of standard input.

    Raises:
        InputError: they are not UTF-8.
    """
    for number, text in enumerate(words, 1):
        if any("\ud800" <= c <= "\udfff" for c in text):  # how Python shows bytes it cannot read
            raise InputError(f"text {number} is not UTF-8")
    if words != ["-"]:
        return list(words)
    try:
        return _lines(sys.stdin.buffer.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: byte {error.start} is not UTF-8") from None


def _printable(text: str) -> str:
    """A text with escapes for what the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _print_row(row: dict[str, Any]) -> None:
    """An object as a line of JSON, in ASCII where the terminal knows no more."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(row, ensure_ascii=not is_utf8))


def _search(values: dict[str, Any]) -> None:
    queries = _typed(values.pop("queries"))
    if not queries:
        raise InputError("nothing to search for; give QUERY, or - for standard input")
    from minibert.retrieval import search

    folder, file = values.pop("folder"), values.pop("input")
    for query, hits in zip(queries, search(folder, file, queries, **values), strict=True):
        for hit in hits:
            _print_row({"query": query, **hit._asdict()})


def _lines(content: str) -> list[str]:
    """One text a line; blank lines are left out."""
    return [line.removesuffix("\r") for line in content.split("\n") if line.strip()]


def _evaluate(values: dict[str, Any]) -> None:
    from minibert.evaluation import evaluate

    figures = evaluate(
        values["folder"],
        data=values["data"],
        split=values["split"],
        device=values["device"],
        precision=values["precision"],
        batch_size=values["batch_size"],
        predictions=values["predictions"],
        target_data=values["target_data"],
    )
    print(json.dumps(figures, indent=2))


def _evaluate_suite(values: dict[str, Any]) -> None:
    from minibert.suite import evaluate_suite
    from minibert.suite_report import as_markdown

    listed = {name: tuple(values.pop(name)) for name in ("tasks", "settings")}
    # Names may be parted by commas, too.
    listed["tasks"] = tuple(n for part in listed["tasks"] for n in part.split(",") if n)
    output = values["output"]
    print(as_markdown(evaluate_suite(values.pop("model"), **values, **listed)), end="")
    print(f"written to {output}: suite.md, suite.html, suite.json")


def _search_settings(values: dict[str, Any]) -> None:
    tried = {
        name.removeprefix("try_"): values.pop(name) for name in list(values) if name[:4] == "try_"
    }
    trials = values.pop("trials", None)
    settings = settings_from(values, FinetuneSettings)
    from minibert.setting_search import search_settings

    assert isinstance(settings, FinetuneSettings)
    search_settings(settings, tried, trials)


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
    from minibert.corpus import ReaderOptions

    names = [field.name for field in dataclasses.fields(ReaderOptions)]
    options = ReaderOptions(**{name: values.pop(name) for name in names if name in values})
    counts = clean_corpus(values.pop("inputs"), options=options, **values)
    print(json.dumps(dataclasses.asdict(counts), indent=2))


def _export(values: dict[str, Any]) -> None:
    from minibert.exporting import export

    print(json.dumps(export(values.pop("folder"), values.pop("output"), **values), indent=2))


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="minibert", description="BERT from raw text to a fine-tuned model.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    made: dict[str, _Parser] = {}

    def command(name: str, text: str) -> _Parser:
        made[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made[name].add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        return made[name]

    for name, settings, text in (
        ("pretrain", PretrainSettings, "raw text to a pretrained model"),
        ("finetune", FinetuneSettings, "a pretrained model and labelled data to a finished model"),
    ):
        made[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_settings(made[name], settings)
    made["pretrain"].add_argument(
        "--recipe",
        choices=tuple(PRETRAINING_RECIPES),
        default=argparse.SUPPRESS,
        help="settings that go together; --config and flags come before them",
    )
    predict = command("predict", "answers of a fine-tuned model, as JSON lines")
    predict.add_argument("folder", metavar="FOLDER", help="a fine-tuned run folder")
    predict.add_argument("texts", nargs="*", metavar="TEXT", help="texts, or - for standard input")
    predict.add_argument("--input", metavar="FILE", help="one text a line; blank ones are left out")
    evaluate = command("evaluate", "figures of a fine-tuned model on labelled data, as JSON")
    evaluate.add_argument("folder", metavar="FOLDER", help="a fine-tuned run folder")
    evaluate.add_argument("--data", metavar="PATH", help="data in the task's public format")
    evaluate.add_argument(
        "--target-data", metavar="FILE", help="lines to be written for those of --data"
    )
    evaluate.add_argument("--split", choices=("test", "train"), default="test", help="which part")
    evaluate.add_argument("--predictions", metavar="FILE", help="write predictions.jsonl here")
    search = command("search", "the sentences of a file nearest to each query, as JSON lines")
    search.add_argument("folder", metavar="FOLDER", help="a bi-encoder, or any model folder")
    search.add_argument(
        "queries", nargs="*", metavar="QUERY", help="texts, or - for standard input"
    )
    search.add_argument("--input", metavar="FILE", required=True, help="one sentence a line")
    search.add_argument("--top", type=int, default=5, help="sentences per query")
    search.add_argument("--cache-dir", metavar="DIR", help="where the file's index is kept")
    _add_suite(command("evaluate-suite", "a table of fine-tunings for a model folder"))
    text = "fine-tuning settings chosen on dev, and written for finetune --config"
    made["search-settings"] = commands.add_parser(
        "search-settings", help=text, description=text, allow_abbrev=False
    )
    _add_search(made["search-settings"])
    fill = command("fill-mask", "the likeliest words for every [MASK] of a text")
    score = command("score", "pseudo-log-likelihoods of sentences, as JSON lines")
    for made_here in (fill, score):
        made_here.add_argument(
            "texts", nargs="*", metavar="TEXT", help="texts, or - for standard input"
        )
        made_here.add_argument(
            "--model", metavar="FOLDER", help="a pretrained model; default: that of finetune"
        )
        made_here.add_argument(
            "--input", metavar="FILE", help="one text a line, blank ones left out"
        )
    fill.add_argument("--top", type=int, default=5, help="words per mask")
    fill.add_argument("--json", action="store_true", help="JSON lines on a terminal, too")
    score.add_argument(
        "--within-word", action="store_true", help="mask the later pieces of a token's word, too"
    )
    score.add_argument(
        "--per-token", action="store_true", help="the tokens and their log_probs, too"
    )
    for made_here in (predict, evaluate, search, fill, score):
        made_here.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
        made_here.add_argument(
            "--precision",
            choices=("auto", "fp32", "bf16", "int8"),
            help="of matrix products; default: that of the run; int8: quantised, on a CPU",
        )
        rows = "copies of sentences" if made_here is score else "texts"
        made_here.add_argument("--batch-size", type=int, default=32, help=f"{rows} per forward")
    download = command("download", "fetch a public data set, resumably")
    download.add_argument("name", metavar="NAME", help=", ".join(SOURCES))
    download.add_argument("--directory", default="data/downloads", help="where it is unpacked")
    export = command("export", "a model folder to give away: weights as bf16, its log")
    export.add_argument("folder", metavar="FOLDER", help="a model folder, or one of parts to join")
    export.add_argument("--output", metavar="DIR", required=True, help="the folder to write")
    export.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the weights")
    export.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep run.json, results.json and metrics.jsonl",
    )
    export.add_argument("--part-mib", type=int, metavar="INT", help="cut the weights into parts")
    export.add_argument("--overwrite", action="store_true", help="replace a model in DIR")
    clean = command("clean-corpus", "raw text to clean text, every document once")
    clean.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders or globs")
    clean.add_argument("--output", metavar="FILE", required=True, help="a .txt file to write")
    clean.add_argument(
        "--exclude", nargs="+", action="extend", metavar="PATH", help="texts that must not be in it"
    )
    clean.add_argument(
        "--same-start",
        type=int,
        default=200,
        metavar="INT",
        help="documents whose first letters and digits agree are one (default 200; 0: never)",
    )
    clean.add_argument("--overwrite", action="store_true", help="replace FILE")
    clean.add_argument("--document-per-file", action="store_true", help="a file is one document")
    clean.add_argument("--text-field", default="text", metavar="KEY", help="of .jsonl")
    clean.add_argument("--encoding-errors", choices=("strict", "replace"), default="strict")
    return parser, made


def _add_suite(suite: _Parser) -> None:
    suite.add_argument("model", metavar="MODEL", help="a model folder")
    suite.add_argument(
        "--data",
        metavar="DIR",
        help="folder with imdb, sst2, conll2003 and so on; without it what was downloaded, or the "
        "bundled samples",
    )
    suite.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="default all")
    suite.add_argument("--seeds", type=int, default=5, help="of each task (default 5)")
    suite.add_argument("--output", default="runs/suite", metavar="DIR", help="runs and tables")
    suite.add_argument(
        "--settings", nargs="+", default=[], metavar="FILE", help="best.json of search-settings"
    )
    suite.add_argument("--limit", type=int, help="quick look: training examples of each task")
    suite.add_argument("--minutes", type=float, help="quick look: of each fine-tuning")
    suite.add_argument("--max-steps", type=int, help="quick look: of each fine-tuning")
    suite.add_argument(
        "--overwrite", action="store_true", help="do runs anew that had other settings"
    )
    suite.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    suite.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of matrix products"
    )


def _add_search(search: _Parser) -> None:
    grid = search.add_argument_group("search")
    for name, kind in (
        *(("learning-rate", float), ("epochs", float), ("batch-size", int)),
        *(("label-smoothing", float), ("dropout", float)),
    ):
        grid.add_argument(
            f"--try-{name}",
            nargs="+",
            type=kind,
            default=argparse.SUPPRESS,
            metavar=kind.__name__.upper(),
            help=f"values of --{name} to try",
        )
    grid.add_argument(
        "--trials",
        type=int,
        default=argparse.SUPPRESS,
        help="so many of all combinations, drawn at random; default all; without --try-... "
        "rates of 1e-4 to 1e-3 with batches of 16 and 32",
    )
    add_settings(search, FinetuneSettings)


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
_WRONG_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class _Terminated(BaseException):
    """SIGTERM outside the training loop."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    before = signal.signal(signal.SIGTERM, _terminate)
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before_interrupt = signal.signal(signal.SIGINT, interrupt)
    try:
        status = _run(argv)
        if launched().size > 1:
            # Threads of gloo may outlive the interpreter and abort it; all is written by now.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status
    except Exception as error:
        if interrupted:  # a library made another error of it
            print("minibert: stopped by Ctrl-C", file=sys.stderr)
            return 130
        if debug and not isinstance(error, Interrupted):
            traceback.print_exc()
        status, message = _explain(error)
        same = isinstance(error, InputError) and launched().rank > 0
        if message and not same:  # the main process says it for all
            print(f"minibert: {message}", file=sys.stderr)
        return status
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except _Terminated:
        print("minibert: stopped by SIGTERM", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("minibert: stopped by Ctrl-C", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, before_interrupt)


def _run(argv: list[str]) -> int:
    parser, commands = _parser()
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
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or "os error 28" in text:
        name = getattr(error, "filename", None)
        where = "no space left on the disk" + (f" ({name})" if name else "")
        return 1, f"{where}; free some: a run's last checkpoint is whole, --resume goes on from it"
    if isinstance(error, _WRONG_PATHS) and error.filename:
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, MissingExtraError):
        return 1, text
    return 1, f"{type(error).__name__}: {text} (--debug shows the trace)"
