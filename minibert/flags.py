"""The flags of every command, and settings from flags and files.

In: what was typed. Out: the values of a command's flags, and of them `PretrainSettings` or
`FinetuneSettings`. A settings class is the single truth: each of its fields is a flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from minibert.config import DEPARTURES, BertConfig
from minibert.download import SOURCES
from minibert.errors import InputError, did_you_mean
from minibert.fields import flag
from minibert.files import read_json
from minibert.recipes import FILLED, find_recipe, without_recipe
from minibert.settings import (
    DATA_LAYOUT,
    OWN_TEXT,
    PRETRAINING_RECIPES,
    FinetuneSettings,
    PretrainSettings,
    RunSettings,
    recipe,
    says_none,
)
from minibert.version import __version__


class Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors, with the nearest flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words, last = list(sys.argv[1:] if args is None else args), []
        positional = [action for action in self._actions if not action.option_strings]
        several = next((a.dest for a in positional if a.nargs == "*"), None)
        if several and "--" in words:  # what comes behind is no flag, whatever it begins with
            words, last = words[: words.index("--")], words[words.index("--") + 1 :]
        # Flags may stand among texts, which argparse takes for granted only where it is asked to.
        is_plain = any(action.nargs == argparse.PARSER for action in positional)
        parse = self.parse_known_args if is_plain else self.parse_known_intermixed_args
        found, unknown = parse(words, namespace)
        if unknown and not unknown[0].startswith("-"):
            raise InputError(
                f"unknown argument {unknown[0]}; expected a flag before it (--help lists them)"
            )
        if unknown:
            known = [o for a in self._actions for o in a.option_strings]
            tail = did_you_mean(unknown[0].split("=")[0], known)
            raise InputError(f"unknown flag {unknown[0]}{tail}")
        if several:
            setattr(found, several, [*getattr(found, several), *last])
        return found


_OF_A_VOCABULARY = {"vocab_size", "lowercase", "split_chinese"}  # which a model brings
_JOBS = "fine-tunings at a time, each in a process with its share of the cores (default 1)"


class _ExtendOrWord(argparse.Action):
    """Gathers values as "extend" does; the bare flag gives its word, `const`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*before, *(values or [self.const])])


def add_settings(
    parser: argparse.ArgumentParser,
    settings: type[RunSettings],
    helps: Mapping[str, str] | None = None,
) -> None:
    """One flag for each field of a settings class; flags not given leave no trace.

    Args:
        helps: what fields mean to this command, where it is not what they mean to a run.
    """
    own = parser.add_argument_group(settings.__name__.removesuffix("Settings").lower())
    shared = parser.add_argument_group("run")
    inherited = {f.name for f in dataclasses.fields(RunSettings)}
    for field in dataclasses.fields(settings):
        group = shared if field.name in inherited else own
        kind, *others = str(field.type).split(" | ")
        text = (helps or {}).get(field.name, field.metadata["help"]).replace("%", "%%")
        default = None if field.default is dataclasses.MISSING else field.default
        is_told = default is not None and default is not False and default != ""
        if is_told and "default" not in text:
            text += f" (default {default})"
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if field.metadata["choices"]:
            options["choices"] = field.metadata["choices"]
        has_word = "Literal['auto']" in others
        if kind == "bool" and has_word:  # a switch that may also be set to a word
            options |= {"nargs": "?", "const": True, "choices": ("auto",), "metavar": "auto"}
        elif kind == "bool":
            options["action"] = argparse.BooleanOptionalAction
        elif kind == "list[str]":
            options |= {"nargs": "+", "action": "extend"}
            if word := field.metadata["optional"]:
                options |= {"nargs": "*", "action": _ExtendOrWord, "const": word}
        else:
            options["type"] = {"int": int, "float": float, "str": str}[kind]
            options["metavar"] = None if field.metadata["choices"] else kind.upper()
            if has_word:
                options |= {"type": _number_or_word, "metavar": f"{kind.upper()}|auto"}
            if word := field.metadata["optional"]:
                options |= {"nargs": "?", "const": word}
        name = field.name.replace("_", "-")
        group.add_argument(f"--{name}", **options)
        if kind == "bool" and has_word:
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


def settings_from(
    values: dict[str, Any], settings: type[RunSettings], tried: Collection[str] = ()
) -> RunSettings:
    """Defaults < the --recipe < the --config file < flags.

    Args:
        values: of the flags that were typed, by field name.
        tried: settings that a search has values of, beside which a file may say that there is none.

    Raises:
        InputError: an unknown recipe or key in the file, or a value that cannot be used.
    """
    values = dict(values)
    name = values.pop("recipe", None)
    given: dict[str, Any] = {}
    if "config" in values:
        path = Path(values.pop("config"))
        content = read_json(path, "--config names a JSON file")
        wanted = "pretrain" if settings is PretrainSettings else "finetune"
        if content.get("command", wanted) != wanted:
            raise InputError(f"{path} is of a {content['command']}; expected that of a {wanted}")
        is_run = "command" in content
        if name and is_run:
            raise InputError(f"{path} is a run's, with every setting; leave --recipe out")
        given = _of_earlier_run(content, path) if is_run else content
        if given.get("debug"):  # which is to show faults of the file, too
            raise InputError(f"{path}: debug is for the command itself; type --debug")
        settings.check_names(given, str(path))  # the rest is checked with the flags put in
        given = settings.spelt(given)
        given = {k: v for k, v in given.items() if k not in tried or says_none(k, v)}
        given = _without_replaced(given, values, tried)
        if wanted == "finetune":
            is_for_another = "task" in given and values.get("task") not in (None, given["task"])
            given = _with_words_for_none(given, is_run, is_for_another, tried)
            given = _without_answers(given, values, is_run, is_for_another)
            if is_run and is_for_another:
                given = _without_filled(given, content)
    named = recipe(name, {**given, **values}) if name else {}
    return settings.from_dict({**named, **given, **values})


def _without_replaced(
    given: dict[str, Any], values: dict[str, Any], tried: Collection[str] = ()
) -> dict[str, Any]:
    """A file's settings without those that a flag replaces: any budget, another task's data.

    And without those that have no use beside it: a model that is named has its own size.

    Args:
        tried: settings that a search has values of, among which may be a budget.
    """
    for budgets, beside in (
        ({"max_steps", "epochs", "max_minutes"}, {"min_steps"}),
        ({"adapt_epochs", "adapt_minutes"}, set()),
    ):
        if budgets & {*values, *tried}:
            given = {k: v for k, v in given.items() if k not in budgets | beside}
    if values.get("intermediate_task"):
        given = {k: v for k, v in given.items() if k != "intermediate_data"}
    useless = set()
    redrawn = values.get("random_weights", given.get("random_weights"))
    if values.get("max_minutes"):  # of which the adaptation takes minutes
        useless.add("adapt_epochs")
    if values.get("model"):
        useless |= {*_OF_A_VOCABULARY, "tokenizer", "preset", "num_layers", "hidden_size"}
        useless |= DEPARTURES.keys() | ({"init"} if not redrawn else set())
    if values.get("tokenizer"):
        useless |= _OF_A_VOCABULARY
    if values.get("nsp") == "none":
        useless.add("nsp_share")
    if values.get("schedule") and values["schedule"] != "constant-then-linear":
        useless.add("decay_ratio")
    short = values.get("short_length", given.get("short_length")) or 0
    if values.get("max_seq_length", math.inf) <= short:
        useless |= {"short_length", "short_share"}
    return {k: v for k, v in given.items() if k not in useless}


def _without_filled(given: dict[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without what its task's recipe says, since another task is typed.

    Args:
        run: the content of run.json; that of a run stopped before its own labels says no size.
    """
    size = run.get("resolved", {}).get("model")
    if not isinstance(size, dict):
        return given
    from minibert.tasks import find_task  # which takes torch

    names = ("task", "mode", "random_weights")
    settings = FinetuneSettings.from_dict({n: given[n] for n in names if n in given})
    family = find_task(settings.task).names[-1]
    found = find_recipe(settings, family, BertConfig.from_dict(size))
    if found is None:
        return given
    dropped = {n for n in FILLED if n in given and given[n] == getattr(found, n)}
    if "intermediate_task" in dropped:
        dropped.add("intermediate_data")
    if "self_training" not in dropped:  # of the user's own texts
        dropped.discard("teacher")
    return {name: value for name, value in given.items() if name not in dropped}


def _without_answers(
    given: dict[str, Any], values: Mapping[str, Any], is_run: bool, is_for_another: bool
) -> dict[str, Any]:
    """A file's settings without who answers texts, where none are answered.

    A run.json says that in any case. Of its texts the set's own stay behind as well where another
    set, few labels or another budget than epochs are typed: whether there are any is a recipe's.
    Arguments as of `_with_words_for_none`.
    """
    texts = values.get("self_training", given.get("self_training"))
    is_own = is_run and given.get("self_training") == [OWN_TEXT] and "self_training" not in values
    is_short = any(values.get(name) for name in ("limit", "max_steps", "max_minutes"))
    if is_own and (is_for_another or is_short):
        return {k: v for k, v in given.items() if k not in ("self_training", "teacher")}
    if says_none("self_training", texts) or (is_run and not texts):
        return {k: v for k, v in given.items() if k != "teacher"}
    return given


def _with_words_for_none(
    given: dict[str, Any], is_run: bool, is_for_another: bool, tried: Collection[str]
) -> dict[str, Any]:
    """A file's settings, with what its run did without kept from a recipe that has it.

    Where the file names one task and another is typed, that one's recipe counts instead: a run.json
    gets no words that its user did not say, and those in a search's file, which wrote them itself,
    are dropped.

    Args:
        given: the file's settings. is_run: whether they are a run.json's. is_for_another: whether
            another task is typed than theirs.
        tried: settings that a search has values of, whose words are dropped in any case.
    """
    if is_run and not is_for_another:
        given = without_recipe(given)
    dropped = set(given) if is_for_another and not is_run else set(tried)
    return {n: v for n, v in given.items() if n not in dropped or not says_none(n, v)}


def _of_earlier_run(run: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings in a run.json, but for those that say where and how that one run went."""
    settings = run.get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{path}: settings is {type(settings).__name__}, expected an object")
    once = ("output", "resume", "overwrite", "dry_run", "profile", "debug")
    return {name: value for name, value in settings.items() if name not in once}


@functools.cache
def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The program's parser, and that of each command by its name."""
    parser = Parser(
        prog="minibert", description="BERT from raw text to a fine-tuned model.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    made: dict[str, Parser] = {}

    def command(name: str, text: str) -> Parser:
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
        help="settings that go together, 'continued' for going on from --model; --config and flags "
        "come before them",
    )
    predict = command("predict", "answers of a fine-tuned model, as JSON lines")
    _add_predict(predict)
    evaluate = command("evaluate", "figures of a fine-tuned model on labelled data, as JSON")
    _add_evaluate(evaluate)
    search = command("search", "the sentences of a file nearest to each query, as JSON lines")
    _add_search(search)
    _add_suite(command("evaluate-suite", "a table of fine-tunings for a model folder"))
    text = "fine-tuning settings chosen on dev, and written for finetune --config"
    made["search-settings"] = commands.add_parser(
        "search-settings", help=text, description=text, allow_abbrev=False
    )
    _add_settings_search(made["search-settings"])
    fill = command("fill-mask", "the likeliest words for every [MASK] of a text")
    score = command("score", "pseudo-log-likelihoods of sentences, as JSON lines")
    _add_masked(fill, score)
    for reader in (predict, evaluate, search, fill):
        _add_inference(reader, "texts")
    _add_inference(score, "copies of sentences")
    _add_download(command("download", "fetch a public data set, resumably"))
    _add_export(command("export", "a model folder to give away: weights as bf16, its log"))
    _add_clean(command("clean-corpus", "raw text to clean text, every document once"))
    return parser, made


def _add_predict(predict: Parser) -> None:
    predict.add_argument("folder", metavar="FOLDER", help="a fine-tuned run folder")
    _add_texts(predict, "texts", "TEXT")
    predict.add_argument(
        "--input",
        metavar="FILE",
        help="one text a line, blank ones left out; a .csv, .tsv or .jsonl by the columns or keys "
        "that the model learnt",
    )
    for column in ("text", "text-pair"):
        predict.add_argument(
            f"--{column}-column",
            metavar="NAME",
            help=f"column or key of the {column} in a table, if another",
        )


def _add_search(search: Parser) -> None:
    search.add_argument("folder", metavar="FOLDER", help="a bi-encoder, or any model folder")
    _add_texts(search, "queries", "QUERY")
    search.add_argument(
        "--input",
        metavar="FILE",
        required=True,
        help="one sentence a line; or a .csv, .tsv or .jsonl, one a row",
    )
    search.add_argument(
        "--text-column", metavar="NAME", help="column or key of the text in a table; default text"
    )
    search.add_argument("--top", type=int, default=5, help="sentences per query (default 5)")
    search.add_argument("--cache-dir", metavar="DIR", help="where the file's index is kept")


def _add_texts(reader: Parser, name: str, shown: str) -> None:
    """Texts as arguments; none is told by the command, which knows what else may bring them."""
    reader.add_argument(
        name, nargs="*", default=[], metavar=shown, help="texts, or - for standard input"
    )


def _add_inference(reader: Parser, rows: str) -> None:
    """What commands share that read texts with a model; `rows` of a batch."""
    reader.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    reader.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "int8"),
        help="of matrix products; default: that of the run; int8: quantised, on a CPU",
    )
    reader.add_argument(
        "--batch-size", type=int, default=32, help=f"{rows} per forward (default 32)"
    )


def _add_download(download: Parser) -> None:
    download.add_argument("name", metavar="NAME", help=", ".join(SOURCES))
    download.add_argument(
        "--directory",
        default="data/downloads",
        help="where it is unpacked (default data/downloads)",
    )


def _add_evaluate(evaluate: Parser) -> None:
    evaluate.add_argument("folder", metavar="FOLDER", help="a fine-tuned run folder")
    evaluate.add_argument(
        "--data", metavar="PATH", help="data in the task's public format, or your own; see below"
    )
    evaluate.add_argument(
        "--split", choices=("test", "train"), default="test", help="which part (default test)"
    )
    evaluate.add_argument("--predictions", metavar="FILE", help="write predictions.jsonl here")
    own = evaluate.add_argument_group("layout of --data", "as in the run, where nothing is given")
    for field in dataclasses.fields(FinetuneSettings):
        if field.name in DATA_LAYOUT:
            text = field.metadata["help"].partition("; default")[0]
            own.add_argument(flag(field.name), metavar="STR", help=text)


def _add_masked(fill: Parser, score: Parser) -> None:
    for made_here in (fill, score):
        _add_texts(made_here, "texts", "TEXT")
        made_here.add_argument(
            "--model",
            metavar="MODEL",
            help="a folder, a bundled name or a hub id; default: that of finetune",
        )
        made_here.add_argument(
            "--input", metavar="FILE", help="one text a line, blank ones left out"
        )
    fill.add_argument("--top", type=int, default=5, help="words per mask (default 5)")
    fill.add_argument("--json", action="store_true", help="JSON lines on a terminal, too")
    score.add_argument(
        "--within-word", action="store_true", help="mask the later pieces of a token's word, too"
    )
    score.add_argument(
        "--per-token", action="store_true", help="the tokens and their log_probs, too"
    )


def _add_export(export: Parser) -> None:
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


def _add_clean(clean: Parser) -> None:
    clean.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders or globs")
    clean.add_argument("--output", metavar="FILE", required=True, help="a .txt file to write")
    clean.add_argument(
        "--exclude", nargs="+", action="extend", metavar="PATH", help="texts that must not be in it"
    )
    clean.add_argument(
        "--same-start",
        type=int,
        default=argparse.SUPPRESS,
        metavar="INT",
        help="documents whose first letters and digits agree are one (default 200; 0: never)",
    )
    clean.add_argument("--overwrite", action="store_true", help="replace FILE")
    clean.add_argument(
        "--document-per-file", action="store_true", help="a file is one document; not a .jsonl"
    )
    clean.add_argument("--text-field", default="text", metavar="KEY", help="of .jsonl")
    clean.add_argument("--encoding-errors", choices=("strict", "replace"), default="strict")


def _add_suite(suite: Parser) -> None:
    suite.add_argument("model", metavar="MODEL", help="a folder, a bundled name or a hub id")
    suite.add_argument(
        "--data",
        metavar="DIR",
        help="folder with imdb, sst2, conll2003 and so on; without it what was downloaded, or the "
        "bundled samples",
    )
    suite.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="default all: imdb, sst2, conll2003, stsb, mrpc, rte, squad",
    )
    suite.add_argument("--seeds", type=int, default=5, help="of each task (default 5)")
    suite.add_argument(
        "--output", default="runs/suite", metavar="DIR", help="runs and tables (default runs/suite)"
    )
    suite.add_argument(
        "--settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="best.json of search-settings",
    )
    suite.add_argument("--limit", type=int, help="quick look: training examples of each task")
    suite.add_argument("--max-minutes", type=float, help="quick look: of each fine-tuning")
    suite.add_argument("--max-steps", type=int, help="quick look: of each fine-tuning")
    suite.add_argument(
        "--overwrite", action="store_true", help="do runs anew that had other settings"
    )
    suite.add_argument("--jobs", type=int, default=1, help=_JOBS)
    suite.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    suite.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of matrix products"
    )


def _add_settings_search(search: Parser) -> None:
    grid = search.add_argument_group("search")
    for name, kind in (
        *(("learning-rate", float), ("epochs", float), ("batch-size", int)),
        *(("label-smoothing", float), ("dropout", float), ("max-seq-length", int)),
        *(("truncation", str), ("adversarial-epsilon", float), ("pair-order", str)),
    ):
        grid.add_argument(
            f"--try-{name}",
            nargs="+",
            action="extend",
            type=kind,
            default=argparse.SUPPRESS,
            metavar="WORD" if kind is str else kind.__name__.upper(),
            help=f"values of --{name} to try",
        )
    grid.add_argument(
        "--trials",
        type=int,
        default=argparse.SUPPRESS,
        help="so many of all combinations, drawn at random; default all; without --try-... "
        "rates of 1e-4 to 1e-3 with batches of 16 and 32",
    )
    grid.add_argument("--jobs", type=int, default=argparse.SUPPRESS, help=_JOBS)
    helps = {
        "overwrite": "do trials anew that had other settings, data or weights, and leave those of "
        "an earlier search out of the table",
        "dev_only": "so it is in any case: a search never scores test",
        "dry_run": "of one run, and refused here",
    }
    add_settings(search, FinetuneSettings, helps)
