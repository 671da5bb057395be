"""The table of a suite, as Markdown and as a page of HTML that needs no other file.

In: the content of suite.json (see `suite.py`), finished or not. Figures are 0..100.
"""

from __future__ import annotations

import html
import statistics
from typing import Any

from minibert.progress import clock
from minibert.setting_search import trial_table

_SAMPLE = "SAMPLE: a few bundled examples, for trying out; these are no results"
_HEAD = (
    *("task", "figure", "the model", "random weights", "model − random"),
    *("classical methods, same split", "model − best of them", "published", "dev: model"),
    *("dev: random", "train / scored", "a run (training)"),
)
# What others report of whole sets. BERT-Tiny, -Mini and -Small: 2 x 128, 4 x 256, 4 x 512.
_PUBLISHED = {
    "imdb": "NB-SVM of trigrams 91.8 (1), BERT-base 94.6 (2)",
    "sst2": "BERT-Tiny, -Mini, -Small 83.2, 85.9, 89.7 (3)",
    "conll2003": "BERT-base 92.4 (4)",
    "stsb": "BERT-Tiny, -Mini, -Small 73.6, 73.3, 77.0 (3)",
    "mrpc": "BERT-Tiny, -Mini, -Small 81.1, 81.1, 83.4 (3)",
    "rte": "BERT-Tiny, -Mini, -Small 57.2, 57.9, 61.8 (3)",
    "squad": "BERT-base 88.5 (4)",
}
_SOURCES = (
    "Published: (1) github.com/mesnilgr/nbsvm; (2) Sun et al. 2019, How to Fine-Tune BERT for Text "
    "Classification, table 2; (3) Turc et al. 2019, of GLUE's test, by github.com/google-research/"
    "bert, the best of 20 settings a task; (4) Devlin et al. 2019, of SQuAD its own train and dev "
    "files, of CoNLL-2003 with the document around the sentence."
)


def _spread(side: dict[str, Any], seeds: int) -> str:
    """Mean ± deviation of the seeds, or a dash before the first is there.

    Args:
        seeds: of the task; another number is told.
    """
    if not side["figures"]:
        return "–"
    count = len(side["figures"])
    told = f" ({count} seeds)" if count > seeds else ""
    if side["sd"] is None:
        return f"{side['mean']:.2f}{told}"
    return f"{side['mean']:.2f} ± {side['sd']:.2f}{told}"


def _p_value(task: dict[str, Any]) -> float | None:
    """Of Welch's t-test of the model against random weights; None without scipy.

    Two seeds of each are the least for a test; where none deviates there is nothing to test by.
    """
    model, random = task["model"], task["random"]
    deviations = model.get("sd"), random.get("sd")
    if None in deviations or not any(deviations):
        return None
    try:
        from scipy.stats import ttest_ind_from_stats  # with scikit-learn, of the extra `tasks`
    except ImportError:
        return None
    sides = [(side["mean"], side["sd"], len(side["figures"])) for side in (model, random)]
    return float(ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue)


def _gain(task: dict[str, Any]) -> str:
    """The model less random weights, and whether seeds alone may part them so."""
    model, random = task["model"], task["random"]
    if not (model["figures"] and random["figures"]):
        return "–"
    gap, p = f"{model['mean'] - random['mean']:+.2f}", _p_value(task)
    if p is None:
        return gap
    return f"{gap} (p {p:.2g})" if p >= 1e-4 else f"{gap} (p < 0.0001)"


def _dev(side: dict[str, Any]) -> str:
    return f"{side['dev_figure']} {side['dev_mean']:.2f}" if side["dev"] else "–"


def _time(side: dict[str, Any], key: str = "wall_seconds") -> str:
    """The mean time of a run, where it is known: of the same seeds, if any has the whole."""
    known = side["wall_seconds"] or side[key]
    times = [seconds for seed, seconds in side[key].items() if seed in known]
    return clock(statistics.fmean(times)) if times else "–"


def _cells(name: str, task: dict[str, Any]) -> list[str]:
    """A task's row of the table."""
    model, baselines = task["model"], task["baselines"]
    gap = "–"
    if model["figures"] and baselines:
        gap = f"{model['mean'] - max(baselines.values()):+.2f}"
    return [
        name + (" (SAMPLE)" if task["is_sample"] else ""),
        f"{task['scored']} {task['figure']}",
        _spread(model, task["seeds"]),
        _spread(task["random"], task["seeds"]),
        _gain(task),
        ", ".join(f"{method} {value:.2f}" for method, value in baselines.items()) or "–",
        gap,
        _published(name, task),
        _dev(model),
        _dev(task["random"]),
        f"{task['num_train']:,} / {task['num_eval']:,}",
        f"{_time(model)} ({_time(model, 'seconds')})",
    ]


def _published(name: str, task: dict[str, Any]) -> str:
    """What others report of a task, where it is the real set that is scored."""
    return "–" if task["is_sample"] else _PUBLISHED.get(name, "–")


def _by(suite: dict[str, Any], key: str) -> dict[Any, str]:
    """The values of a key of the tasks, with those that have it, as in " (rte, squad)".

    Calls differ in them, and each does its own tasks. Where all have the same, none is named.
    """
    found: dict[Any, list[str]] = {}
    for name, task in suite["tasks"].items():
        found.setdefault(task[key], []).append(name)
    return {v: f" ({', '.join(names)})" if len(found) > 1 else "" for v, names in found.items()}


def _caption(suite: dict[str, Any]) -> list[str]:
    """What must be known to read the table, what weakens it first."""
    lines = []
    if any(task["is_sample"] for task in suite["tasks"].values()):
        lines.append(_SAMPLE + ".")
    for quick, which in _by(suite, "quick").items():
        if quick:
            lines.append(f"QUICK LOOK{which}: {quick}; not the figures of whole runs.")
    sides = [(n, s, t[s]) for n, t in suite["tasks"].items() for s in ("model", "random")]
    wanted = [suite["tasks"][name]["seeds"] for name, _, _ in sides]
    runs = [len(side["figures"]) + len(side.get("diverged", {})) for _, _, side in sides]
    there = sum(map(min, runs, wanted))
    if there < sum(wanted):
        lines.append(f"UNFINISHED: {there} of {sum(wanted)} runs are there.")
    for name, start, side in sides:
        for seed, why in side.get("diverged", {}).items():
            lines.append(f"DIVERGED, and not in the mean: {name}, {start}, seed {seed}: {why}.")
    counts = _by(suite, "seeds")
    told = [(f"{n} seeds" if n > 1 else "one seed") + which for n, which in counts.items()]
    seeds = " or ".join(told) + (", mean ± standard deviation" if max(counts) > 1 else "")
    lines.append(
        f"{suite['model']} (weights {suite['weights']}): {suite['layers']} layers of "
        f"{suite['hidden_size']}, vocabulary {suite['vocab_size']:,}. Fine-tuned with {seeds}, "
        f"in hundredths. The epoch was chosen on dev, and test scored "
        f"once; where dev is what is scored, it chose the epoch, and the settings if they were "
        f"searched, too."
    )
    if any(_p_value(task) is not None for task in suite["tasks"].values()):
        lines.append(
            "p is of Welch's t-test: the chance that seeds alone part the two as far as that."
        )
    if suite["jobs"] > 1:
        lines.append(
            f"Times are of {suite['jobs']} runs at a time, each on its share of the cores."
        )
    if any(_published(name, task) != "–" for name, task in suite["tasks"].items()):
        lines.append(_SOURCES)
    lines += [f"Left out: {name}, {why}." for name, why in suite["skipped"].items()]
    lines += [said for name, task in suite["tasks"].items() if (said := _thresholds(name, task))]
    lacking = ((n, t.get("baselines_lack", "")) for n, t in suite["tasks"].items())
    lines += [f"No classical methods for {name}: {why}." for name, why in lacking if why]
    return lines


def _thresholds(name: str, task: dict[str, Any]) -> str:
    """Whose threshold dev chose: a settings file may name one for one side alone."""
    of_task = task.get("threshold_for")  # of classical methods; older tables have it of both sides
    found = {
        "the model": task["model"].get("threshold_for", of_task),
        "random weights": task["random"].get("threshold_for", of_task),
        "classical methods": of_task,
    }
    if not task["baselines"]:
        del found["classical methods"]
    with_one = [who for who, figure in found.items() if figure]
    if not with_one:
        return ""
    said = f"Of {name} dev chose the threshold above which yes is said, for {', '.join(with_one)}"
    return f"{said}." if len(with_one) == len(found) else f"{said} alone."


def _masked(suite: dict[str, Any]) -> list[str]:
    """Lines on the held-out masked words of pretraining."""
    mlm, measured = suite["mlm"], suite["masked_words"]
    lines = ["It has no head for masked words."]
    if measured:
        lines = [
            f"Of {measured['text']}, {measured['masked_tokens']:,} words in sequences of "
            f"{measured['max_seq_length']} tokens, 15 % masked: accuracy "
            f"{measured['mlm_accuracy']:.1%}, loss {measured['mlm_loss']:.3f} nats, "
            f"{measured['mlm_bits_per_character']:.3f} bits per character, by which vocabularies "
            f"compare. Of a model that has learnt from this text they say nothing."
        ]
    if not mlm:
        return [*lines, "The folder holds no figures of pretraining."]
    text = f"Masked words: accuracy {mlm['mlm_accuracy']:.1%}, loss {mlm['mlm_loss']:.3f} nats"
    if "unigram_entropy" in mlm:
        text += f" (word frequencies alone: {mlm['unigram_entropy']:.3f})"
    text += f", about {mlm['mlm_bits_per_character']:.2f} bits per character"
    if "measured_on" in mlm:
        text += f" (tokens a character as in {mlm['measured_on']})"
    if "nsp_accuracy" in mlm:
        text += f"; next sentence {mlm['nsp_accuracy']:.1%}"
    lines.append(f"{text}; of the held-out text of its own pretraining.")
    if "tokens" in mlm and "seconds" in mlm:
        cost = f"{mlm['tokens'] / 1e6:,.1f} M tokens in {clock(mlm['seconds'])}"
        before = (
            "It went on from another model, with" if "went_on" in mlm else "It was pretrained on"
        )
        lines.append(f"{before} {cost}.")
    return lines


def _settings(suite: dict[str, Any]) -> list[list[str]]:
    return [
        [name, {"model": "the model", "random": "random weights"}[side], task[side]["settings"]]
        for name, task in suite["tasks"].items()
        for side in ("model", "random")
    ]


def _searches(suite: dict[str, Any]) -> list[dict[str, Any]]:
    return [search for task in suite["tasks"].values() for search in task["searches"]]


def _searched(search: dict[str, Any]) -> str:
    """The heading over the trials of a search."""
    start = "random weights" if search["held"].get("random_weights") else "pretrained weights"
    return f"Searched on dev: {search['task']} from {start}, {search['seeds']} seed(s) a trial"


def _rows(suite: dict[str, Any]) -> list[list[str]]:
    return [_cells(name, task) for name, task in suite["tasks"].items()]


def as_markdown(suite: dict[str, Any]) -> str:
    """The page in Markdown."""
    parts = [
        f"# What {suite['model']} is worth",
        *_caption(suite),
        _markdown_table(_HEAD, _rows(suite)),
        "## Held-out masked words",
        *_masked(suite),
        "## Settings",
        _markdown_table(("task", "start", "settings"), _settings(suite)),
    ]
    for search in _searches(suite):
        head, rows = trial_table(search)
        parts += [f"### {_searched(search)}", _markdown_table(tuple(head), rows)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in lines)


# --- HTML -----------------------------------------------------------------------------------------

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.7rem;
  border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #222; }
.warning { background: #fff3cd; border-left: 4px solid #c77700; padding: 0.5rem 1rem;
  font-weight: 600; }
.wide { overflow-x: auto; }
svg text { font: 13px system-ui, sans-serif; fill: #222; }
"""
_LOUD = ("SAMPLE", "QUICK LOOK", "UNFINISHED", "DIVERGED")
_COLOURS = ("#1f5fa8", "#9bbfe3", "#8a8a8a", "#b9b9b9", "#d9d9d9")
_WIDTH, _LEFT, _BAR = 760, 220, 18  # of the chart, of its names, of a bar, in pixels


def as_html(suite: dict[str, Any]) -> str:
    """The page in HTML, with its style and a chart inside."""
    title = html.escape(f"What {suite['model']} is worth")
    lines = [
        f'<p class="warning">{html.escape(line)}</p>'
        if line.startswith(_LOUD)
        else f"<p>{html.escape(line)}</p>"
        for line in _caption(suite)
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            *lines,
            _html_table(_HEAD, _rows(suite)),
            chart(suite),
            "<h2>Held-out masked words</h2>",
            *(f"<p>{html.escape(line)}</p>" for line in _masked(suite)),
            "<h2>Settings</h2>",
            _html_table(("task", "start", "settings"), _settings(suite)),
            *(
                f"<h3>{html.escape(_searched(search))}</h3>"
                + _html_table(tuple(trial_table(search)[0]), trial_table(search)[1])
                for search in _searches(suite)
            ),
            "</body></html>\n",
        ]
    )


def _html_table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    def row(cells: Any, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table>{row(head, "th")}\n{body}</table></div>'


def _bars(task: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(name, value, deviation) of what a task has so far."""
    sides = (("the model", task["model"]), ("random weights", task["random"]))
    found = [(name, s["mean"], s["sd"] or 0.0) for name, s in sides if s["figures"]]
    return found + [(name, value, 0.0) for name, value in task["baselines"].items()]


def chart(suite: dict[str, Any]) -> str:
    """Bars from 0 to 100 as SVG, a group for each task; a thin line is one deviation either way."""
    scale = (_WIDTH - _LEFT - 60) / 100
    parts, y = [], 10
    for name, task in suite["tasks"].items():
        title = html.escape(f"{name}, {task['scored']} {task['figure']}")
        parts.append(f'<text x="0" y="{y + 14}" font-weight="600">{title}</text>')
        y += 22
        for number, (label, value, sd) in enumerate(_bars(task)):
            middle, end = y + _BAR / 2, _LEFT + max(0.0, value) * scale
            colour = _COLOURS[min(number, len(_COLOURS) - 1)]
            parts.append(f'<text x="16" y="{y + 14}">{html.escape(label)}</text>')
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{_BAR - 3}" '
                f'fill="{colour}"/>'
            )
            if sd:
                low, high = end - sd * scale, end + sd * scale
                parts.append(
                    f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle - 1:.1f}" '
                    f'y2="{middle - 1:.1f}" stroke="#000"/>'
                )
            parts.append(f'<text x="{end + sd * scale + 6:.1f}" y="{y + 14}">{value:.1f}</text>')
            y += _BAR
        y += 12
    return (
        f'<svg viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" role="img" '
        f'aria-label="Figures by task"><title>Figures by task</title>{"".join(parts)}</svg>'
    )
