"""Who imports whom, what importing does, and what may not stand in tracked files."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minibert"
# From the ground up; a module may import from lower rows, and within its row without a circle.
LAYERS = [
    {"errors", "files", "version", "config", "fields", "settings", "machine", "progress"},
    {
        *("kernels", "unpadding", "packing", "layerwise", "model", "heads", "token_heads"),
        *("sentence_head", "losses", "convert", "initialisation", "quantised"),
        *("decoder_config", "seq2seq", "generation"),
    },
    {
        *("tokenizer", "corpus", "cache", "encoding", "vocabulary", "store"),
        *("documents", "examples", "example_stream", "cleaning"),
        *("ahead", "workers", "download", "target_tokenizer"),
    },
    {
        *("world", "sharding", "flops", "estimate", "profiling", "optim", "runtime"),
        *("checkpoint", "run_folder", "metrics", "generation_metrics", "train"),
    },
    {
        *("model_folders", "exporting"),
        *("runs", "fitting", "compiling", "pretraining_data", "pretraining"),
        *("adaptation", "intermediate", "self_training", "starts", "earlier_stages"),
        *("repeats", "adversarial", "finetuning"),
        *("recipes", "series", "tasks.classical"),
        *("tasks", "tasks.base", "tasks.batches", "tasks.splits", "tasks.tables", "tasks.texts"),
        "tasks.inputs",
        *("tasks.labelled", "tasks.labelled_sets", "tasks.classes", "tasks.classification"),
        *("tasks.entities", "tasks.tagged", "tasks.word_windows", "tasks.tagging"),
        *("tasks.questions", "tasks.question_windows", "tasks.squad_scores", "tasks.qa"),
        *("tasks.scored", "tasks.similarity"),
        *("tasks.parallel", "tasks.writing", "tasks.translation", "tasks.summarization"),
    },
    {
        *("predict", "evaluation", "retrieval", "masked", "held_out"),
        *("suite", "suite_report", "setting_search"),
    },
    {"flags", "cli", "__main__"},
]
# The network, the text and the loop stand side by side; what they may borrow is named here.
ACROSS = {
    ("examples", "losses"),  # IGNORE_INDEX
    ("checkpoint", "convert"),  # save_tensors
    ("estimate", "kernels"),  # SCORES_HELD
    ("estimate", "decoder_config"),  # numbers alone
    ("runtime", "packing"),  # copied
}


def modules() -> dict[str, Path]:
    """Module name below minibert -> its file; the root package itself is left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports_of(path: Path) -> set[str]:
    """The project's modules that a file imports anywhere in it, "" for the root package."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "minibert"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if (node.module or "").split(".")[0] == "minibert":
                inside = [f"{node.module}.{a.name}" for a in node.names]
                below = [name for name in inside if name.removeprefix("minibert.") in known]
                found |= set(below)
                if len(below) < len(inside):
                    found.add(str(node.module))
    return {name.removeprefix("minibert").removeprefix(".") for name in found}


def layer_of(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def test_every_module_has_a_layer() -> None:
    placed = set.union(*LAYERS)
    assert modules().keys() - placed == set(), "name the layer of a new module in LAYERS"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_one_way(name: str) -> None:
    own = layer_of(name)
    for other in imports_of(modules()[name]):
        assert other != "", f"{name} imports the root package"
        assert layer_of(other) <= own, f"{name} imports {other} from a layer above"
        if 1 <= layer_of(other) < own <= 3:
            assert (name, other) in ACROSS, f"{name} reaches across to {other}"


def test_the_loop_knows_no_model_and_no_task() -> None:
    """Not through others either: what `train` needs, and what that needs in turn."""
    reached: set[str] = set()
    waiting = ["train", "optim", "run_folder", "metrics"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += imports_of(modules()[name]) - reached
    reached_tasks = {name for name in reached if name.startswith("tasks")}
    assert not reached_tasks
    forbidden = {
        "unpadding",
        "model",
        "heads",
        "losses",
        "tokenizer",
        "store",
        "documents",
        "examples",
        "corpus",
    }
    assert not reached & forbidden


def test_stages_know_the_protocol_and_the_table_but_no_family() -> None:
    shared = {"tasks", *(f"tasks.{m}" for m in "base batches inputs splits tables texts".split())}
    for name in ("finetuning", "predict", "evaluation", "cli"):
        families = {n for n in imports_of(modules()[name]) if n.startswith("tasks")} - shared
        assert not families, f"{name} knows {families}"
    for name in shared - {"tasks"}:
        assert not {n for n in imports_of(modules()[name]) if n.startswith("tasks")} - shared


def test_there_are_no_circles() -> None:
    edges = {name: imports_of(path) for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_no_module_is_called_utils() -> None:
    assert not [name for name in modules() if re.search(r"util|helper|common|misc", name)]


def test_scripts_import_the_package_and_never_the_reverse() -> None:
    for script in ("pretrain.py", "finetune.py"):
        assert imports_of(ROOT / script) == {"cli"}
        assert len((ROOT / script).read_text().splitlines()) < 20
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"pretrain", "finetune"} & set(names)


# --- public names ---------------------------------------------------------------------------------


def test_public_names_resolve_and_are_explained() -> None:
    import minibert

    assert sorted(set(minibert.__all__)) == sorted(minibert.__all__)
    assert dir(minibert) == sorted(minibert.__all__)
    for name in minibert.__all__:
        value = getattr(minibert, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), name
            assert value.__module__.startswith("minibert."), name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import minibert

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = minibert.no_such_name


@pytest.mark.parametrize("name", sorted(modules()))
def test_public_functions_and_classes_are_explained(name: str) -> None:
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    if name not in ("version", "__main__"):
        assert ast.get_docstring(tree), f"{name} has no docstring"
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


# --- what importing does --------------------------------------------------------------------------

PROBE = """
import json, logging, signal, sys, threading
sigint = signal.getsignal(signal.SIGINT)
import {name}
print(json.dumps({{
    "torch": "torch" in sys.modules,
    "numpy": "numpy" in sys.modules,
    "handlers": len(logging.getLogger().handlers) + len(logging.getLogger("minibert").handlers),
    "level": logging.getLogger("minibert").level,
    "sigint": signal.getsignal(signal.SIGINT) is sigint,
    "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    "threads": threading.active_count(),
}}))
"""


def fresh(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", ["minibert", "minibert.cli", "minibert.settings"])
def test_importing_is_light_and_touches_nothing(name: str) -> None:
    found = json.loads(fresh(PROBE.format(name=name)))
    assert found == {
        "torch": False,
        "numpy": False,
        "handlers": 0,
        "level": 0,
        "sigint": True,
        "sigterm": True,
        "threads": 1,
    }


def test_importing_every_module_leaves_torch_and_numpy_as_they_were() -> None:
    names = ", ".join(f"minibert.{name}" for name in modules() if name != "__main__")
    program = f"""
import random, numpy, torch, json, signal, logging
def facts():
    return [
        torch.initial_seed(), torch.get_rng_state().tolist(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        str(torch.get_default_dtype()), random.getstate()[1][:9],
        numpy.random.get_state()[1].tolist(), len(logging.getLogger().handlers),
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, torch.is_grad_enabled(),
    ]
torch.manual_seed(3); numpy.random.seed(3); random.seed(3)
before = facts()
import {names}
print(json.dumps(before == facts()))
"""
    assert json.loads(fresh(program)) is True


def test_every_module_can_be_imported_first() -> None:
    for name in modules():
        if name != "__main__":
            importlib.import_module(f"minibert.{name}")


# --- tracked files --------------------------------------------------------------------------------


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_tracked_files_name_no_machine_path_and_no_issue_number() -> None:
    """Neither means anything to a reader: paths of one machine, numbers of one tracker."""
    machine = re.compile(r"(?<![\w.])/(?:work|home|root|Users|mnt)/[\w.-]+")
    issue = re.compile(r"(?i)\b(?:issue|ticket|task|bug|fixes|closes|PR)\s?#\d+")
    found = []
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".yml", ".yaml", ".cfg", ".sh", ".json", ""):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if machine.search(line) or issue.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


def test_contributing_names_every_module() -> None:
    table = re.findall(r"^\| .*", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", "\n".join(table)))))
    # Of the tasks it names what the families share.
    wanted = {name for name in modules() if "." not in name} - {"__main__", "models"}
    assert wanted - named == set()
