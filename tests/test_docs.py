"""What is written beside the code: commands that the parsers know, links that lead somewhere, cards
that say what the logs of their models say."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest

from minibert.config import BertConfig
from minibert.files import bundled_models
from minibert.flags import parsers, settings_from
from minibert.recipes import filled
from minibert.runs import weights_digest
from minibert.settings import FinetuneSettings, PretrainSettings
from minibert.suite_report import as_markdown
from minibert.tasks import find_task

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_PROSE = re.compile(r"…|\.\.\. |\[-|\]$|MODE-AND-RATE|\bLINE\b|optimizer O")


def commands(page: Path) -> list[list[str]]:
    """The indented commands of a page, without what goes before them, and comments."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    found = []
    for line in text.split("\n"):
        for part in re.split(r"&&|\||;", line) if line.startswith("    ") else ():
            words = part.strip().removeprefix("OMP_NUM_THREADS=1 ")
            stage = re.match(r"(?:.*\s)?(?:python |torchrun .*)(pretrain|finetune)\.py (.*)", words)
            if _PROSE.search(words) or not (stage or words.startswith("minibert ")):
                continue
            line_of = f"{stage[1]} {stage[2]}" if stage else words.removeprefix("minibert ")
            found.append(shlex.split(line_of, comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_parsers_know_every_command(page: Path) -> None:
    known = parsers()[1]
    for line in commands(page):
        words = ["1" if re.fullmatch("[A-Z]", word) else word for word in line]  # --epochs E
        known[words[0]].parse_args([word.partition(">")[0] or "x" for word in words[1:]])


def typed(line: list[str]) -> Any:
    """The settings of a documented command; letters that stand for a number are 1."""
    words = ["1" if re.fullmatch("[A-Z]", word) else word for word in line]
    values = vars(parsers()[1][words[0]].parse_args(words[1:]))
    return settings_from(values, FinetuneSettings if words[0] == "finetune" else PretrainSettings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_that_names_its_rate_leaves_nothing_to_a_later_recipe(page: Path) -> None:
    """Of the log the entries are of their day, and its newest say how to go back."""
    lines = [line for line in commands(page) if line[0] == "finetune" and page.stem != "LOG"]
    for settings in (typed(line) for line in lines if "--learning-rate" in line):
        # The runs of these pages, as in runs/nsp, have the size of the smaller model.
        names = [path.name for path in bundled_models().iterdir()]
        name = settings.model if settings.model in names else "minibert-mini-en"
        config = BertConfig.from_pretrained(bundled_models() / name)
        assert filled(settings, find_task(settings.task).names[-1], config)[0] == settings


def test_pages_have_commands_that_name_their_rate() -> None:
    lines = [line for page in PAGES if page.stem != "LOG" for line in commands(page)]
    assert sum(line[0] == "finetune" and "--learning-rate" in line for line in lines) >= 8


@pytest.mark.parametrize("model", sorted(path.name for path in bundled_models().iterdir()))
def test_a_card_has_the_command_that_made_its_model(model: str) -> None:
    """The last of its pretrainings, whose log goes with the model."""
    lines = commands(ROOT / "docs" / f"{model}.md")
    own = commands(ROOT / "minibert" / "models" / model / "README.md")  # which the wheel has
    assert own[-1][0] == "export"
    assert own in [lines[i : i + len(own)] for i in range(len(lines))]
    said = typed([line for line in lines if line[0] == "pretrain"][-1])
    run = json.loads((ROOT / "minibert" / "models" / model / "run.json").read_text("utf-8"))
    assert said.learning_rate == run["resolved"]["learning_rate"]
    for name in (
        *("batch_size", "max_seq_length", "max_minutes", "warmup_ratio", "schedule", "optimizer"),
        *("mask_prob", "nsp", "seed", "weight_decay", "masking", "dropout"),
    ):
        assert getattr(said, name) == run["settings"][name], name


def test_pages_have_commands_to_be_known() -> None:
    counts = {page.stem: len(commands(page)) for page in PAGES}
    assert counts["README"] > 20 and sum(counts.values()) > 50, counts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    own = [link for link in links if "://" not in link]
    assert [link for link in own if not (page.parent / link).exists()] == []
    for path, anchor in re.findall(r"\]\(([^):#]+)#([^)]+)\)", page.read_text("utf-8")):
        headings = re.findall(r"^#+ (.*)$", (page.parent / path).read_text("utf-8"), re.M)
        # As GitHub makes them: no marks but hyphens, which stand for blanks, too.
        slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert anchor in slugs


# Rows of the README's tables of speed: how each begins, and of the figures in each column what was
# timed, ours and theirs.
PLAIN, BEST = ("minibert", "HF plain"), ("minibert", "HF best")
ON_GPU = ("minibert --compile --no-deterministic", "HF best")
SPEED = {
    "pretraining step, `mini`, 128": (["pretraining/mini-128"], PLAIN, BEST),
    "the same, `small`": (["pretraining/small-128", "pretraining/base-128"], PLAIN, BEST),
    "`mini`, 512 tokens": (["pretraining/mini-512"], PLAIN, BEST),
    "`mini`, lengths": (
        ["pretraining/mini-128-paired", "pretraining/mini-512-paired"],
        PLAIN,
        BEST,
    ),
    "`mini`, 128 tokens, no": (["pretraining/mini-128-full"], PLAIN, BEST),
    "fine-tuning, 6 layers": (["finetuning/imdb-256", "finetuning/mixed-256"], PLAIN, BEST),
    "tokenising": (["tokenising/20-MB"], ("minibert", "datasets.map")),
    "pretraining, `small` and": (["gpu/small-128", "gpu/base-128"], ON_GPU),
    "`base`, `large`, 512": (["gpu/base-512", "gpu/large-512"], ON_GPU),
    "fine-tuning `base`": (["gpu/finetune-base-256"], ON_GPU),
}


@pytest.mark.parametrize("row", SPEED)
def test_the_readme_says_what_the_benchmarks_measured(row: str) -> None:
    measured = json.loads((ROOT / "docs" / "benchmarks" / "benchmarks.json").read_text("utf-8"))
    lines = (ROOT / "README.md").read_text("utf-8").split("\n")
    (line,) = (line for line in lines if line.startswith(f"| {row}"))
    works, *columns = SPEED[row]
    for cell, (ours, theirs) in zip(line.split("|")[2:], columns, strict=False):
        said = re.findall(r"[0-9]+\.[0-9]+", cell)
        for figure, work in zip(said, works, strict=False):
            rates = {
                timing["name"]: [
                    n / s for n, s in zip(timing["units"], timing["seconds"], strict=True)
                ]
                for timing in measured[work]["timings"]
            }
            rounds = (a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
            digits = len(figure.partition(".")[2])
            assert figure == f"{statistics.median(rounds):.{digits}f}", work
        assert len(said) >= len(works)


@pytest.mark.parametrize("model", sorted(path.name for path in bundled_models().iterdir()))
def test_a_card_says_what_the_log_of_its_model_says(model: str) -> None:
    card = (ROOT / "docs" / f"{model}.md").read_text("utf-8")
    found = json.loads((ROOT / "minibert" / "models" / model / "results.json").read_text())
    row = next(line for line in card.split("\n") if "held out, as its training has it" in line)
    for figure in (
        f"MLM loss {found['mlm_loss']:.3f} (word frequencies alone {found['unigram_entropy']:.3f})",
        f"accuracy {found['mlm_accuracy']:.1%}".replace("%", " %"),
        f"{found['mlm_bits_per_character']:.2f} bits per character",
        f"next sentences {found['nsp_accuracy']:.1%} right".replace("%", " %"),
    ):
        assert figure in row


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("small-en", "{mlm_loss:.3f} nats, {accuracy} %, {mlm_bits_per_character:.3f} bits"),
        ("small-en", "{millions} M tokens of words in {seconds:.0f} s"),
        ("mini-en", "{mlm_loss:.3f}, {accuracy} %, {mlm_bits_per_character:.2f} of `mini`"),
        ("mini-en", "after {minutes:.0f} minutes of two cores and {millions} M tokens"),
        ("mini-en", "{mlm_loss:.3f} nats, {accuracy} %, {mlm_bits_per_character:.2f} bits"),
    ],
)
def test_the_pretraining_page_says_what_the_first_runs_ended_with(run: str, said: str) -> None:
    found = json.loads(
        (ROOT / "minibert/models" / f"minibert-{run}" / "words-results.json").read_text("utf-8")
    )
    page = " ".join((ROOT / "docs" / "pretraining.md").read_text("utf-8").split())
    found["accuracy"] = f"{100 * found['mlm_accuracy']:.1f}"
    found["millions"] = f"{found['tokens'] / 1e6:.1f}"
    found["minutes"] = found["seconds"] / 60
    assert said.format(**found) in page


def test_the_picture_of_the_study_says_what_its_table_says() -> None:
    page = (ROOT / "docs" / "pretraining.md").read_text("utf-8")
    rows = page.split("| question | trial |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    told = {row[1]: row[-1] for row in cells if row[1] != "base"}
    texts = re.findall("<!-- (.*?) -->", (ROOT / "docs" / "study.svg").read_text("utf-8"), re.S)
    assert len(told) > 30
    assert set(told) <= set(texts)
    drawn = [text.strip() for text in texts if re.fullmatch(r" [+-]\d\.\d{3}", text)]
    assert sorted(drawn) == sorted(told.values())


@pytest.mark.parametrize(
    "suite", sorted((ROOT / "docs" / "suites").glob("*.json")), ids=lambda path: path.stem
)
def test_a_card_says_what_the_suite_of_its_model_found_of_masked_words(suite: Path) -> None:
    card = (ROOT / "docs" / f"{suite.stem}.md").read_text("utf-8").replace("**", "")
    found = json.loads(suite.read_text("utf-8"))["masked_words"]
    row = next(line for line in card.split("\n") if "for comparison with other models" in line)
    accuracy = f"{found['mlm_accuracy']:.1%}".replace("%", " %")
    bits = f"{found['mlm_bits_per_character']:.3f} bits per character"
    assert f"{found['max_seq_length']} tokens, 15 % masked: accuracy {accuracy}, {bits}" in row


@pytest.mark.parametrize(
    "suite", sorted((ROOT / "docs" / "suites").glob("*.json")), ids=lambda path: path.stem
)
def test_the_page_of_a_suite_is_that_of_its_figures(suite: Path) -> None:
    pytest.importorskip("scipy")  # without it the page has no p
    page = as_markdown(json.loads(suite.read_text("utf-8")))
    assert suite.with_suffix(".md").read_text("utf-8") == page


def suite_tasks() -> list[tuple[str, str]]:
    pages = sorted((ROOT / "docs" / "suites").glob("*.json"))
    return [(p.stem, task) for p in pages for task in json.loads(p.read_text("utf-8"))["tasks"]]


@pytest.mark.parametrize(("model", "task"), suite_tasks())
def test_the_results_say_what_the_suite_of_the_model_found(model: str, task: str) -> None:
    suite = json.loads((ROOT / "docs" / "suites" / f"{model}.json").read_text("utf-8"))
    assert not Path(suite["data"]).is_absolute()
    assert suite["weights"] == weights_digest(ROOT / "minibert" / "models" / model)
    found = suite["tasks"][task]
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    section = page.split(f"\n## {model}\n")[1].split("\n## ")[0]
    start = re.compile(rf"\| {task}, {found['num_train']:,}( / {found['num_eval']:,})?\b")
    lines = [line for line in section.split("\n") if start.match(line)]
    # The first of them: others are of other settings.
    _, _, figure, seeds, ours, random, classical, *_ = lines[0].replace("**", "").split("|")
    assert figure.split()[:2] == [found["scored"], found["figure"].split()[0]]
    assert int(seeds) == len(found["model"]["figures"])
    assert ours.strip() == f"{found['model']['mean']:.2f} ± {found['model']['sd']:.2f}"
    count = len(found["random"]["figures"])
    if count > 1:
        mean, sd = found["random"]["mean"], found["random"]["sd"]
        assert random.strip() == f"{mean:.2f} ± {sd:.2f} ({count})"
    for method, value in found["baselines"].items():
        name = method.replace("TF-IDF + logistic regression", "TF-IDF")
        assert f"{name} {value:.2f}" in classical.replace("TF-IDF + logistic regression", "TF-IDF")
