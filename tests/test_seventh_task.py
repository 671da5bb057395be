"""The task that CONTRIBUTING.md adds, taken from there and run as it stands."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from samples import NOUNS, one_thread, write_corpus  # noqa: F401

import minibert
from minibert import tasks
from minibert.cli import main
from minibert.run_folder import read_metrics

ROOT = Path(__file__).parent.parent


def example() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


def write_grades(path: Path) -> Path:
    """Texts whose grade is their share of one word."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "grade"])
        for _ in range(60):
            share = rng.random()
            words = ["storm" if rng.random() < share else str(rng.choice(NOUNS)) for _ in range(6)]
            writer.writerow([" ".join(words), words.count("storm") / 6])
    return path


def test_the_example_is_short() -> None:
    assert len(example().splitlines()) < 80


def test_the_example_runs_through_all_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "FAMILIES", list(tasks.FAMILIES))
    for name in list(tasks.TASKS):
        monkeypatch.setitem(tasks.TASKS, name, tasks.TASKS[name])
    monkeypatch.setitem(tasks.TASKS, "grade", tasks.TASKS["imdb"])  # removed again afterwards
    exec(compile(example(), "CONTRIBUTING.md", "exec"), {"__name__": "seventh"})
    data, corpus = write_grades(tmp_path / "grades.csv"), write_corpus(tmp_path / "corpus.txt")
    shared = ["--max-seq-length", "40", "--batch-size", "8", "--device", "cpu"]
    shared += ["--precision", "fp32"]
    line = ["pretrain", "--corpus", corpus, "--preset", "tiny", "--vocab-size", "60"]
    line += ["--max-steps", "2", "--cache-dir", tmp_path / "cache", "--output", tmp_path / "start"]
    assert main([*map(str, line), *shared]) == 0
    run = tmp_path / "run"
    line = ["finetune", "--task", "grade", "--data", data, "--model", tmp_path / "start"]
    line += ["--output", run, "--max-steps", "150", "--learning-rate", "1e-3"]
    assert main([*map(str, line), *shared]) == 0
    results = json.loads((run / "results.json").read_text())
    assert (results["task"], results["scored"], results["num_eval"]) == ("grade", "dev", 6)
    assert results["r2"] == pytest.approx(results["dev_r2"])
    first = next(row["eval_r2"] for row in read_metrics(run) if "eval_r2" in row)
    assert results["r2"] > max(0.3, first)
    rows = [json.loads(text) for text in (run / "predictions.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"id", "text", "grade", "prediction"}
    capsys.readouterr()
    assert main(["predict", str(run), "storm storm storm storm", "river bridge miller"]) == 0
    high, low = (json.loads(text)["grade"] for text in capsys.readouterr().out.splitlines())
    assert high > low
    assert minibert.evaluate(run)["r2"] == pytest.approx(results["r2"], abs=1e-5)
    data.write_text("text,grade\nstorm,high\n")
    assert main(["evaluate", str(run), "--data", str(data)]) == 2
    assert "'high'" in capsys.readouterr().err
