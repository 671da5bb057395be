"""The study of pretraining's choices, with seconds instead of minutes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from samples import write_corpus

from benchmarks import study


def test_trials_sit_the_same_exam_and_are_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "text.txt", documents=40)
    command = ["--corpus", str(corpus), "--output", str(tmp_path / "out"), "--minutes", "0.05"]
    command += ["--base", json.dumps({"vocab_size": 60, "max_seq_length": 64})]
    command += ["--cache-dir", str(tmp_path / "cache"), "--only", "base", "sentence order"]
    study.main([*command, "--jobs", "2"])
    paths = sorted((tmp_path / "out").glob("*/seed-0/results.json"))
    base, pairs = (json.loads(path.read_text()) for path in paths)
    assert base["masked_tokens"] == pairs["masked_tokens"] > 0
    assert base["steps"] > 0 and base["mlm_loss"] != pairs["mlm_loss"]
    assert "nsp_accuracy" not in pairs  # the exam has no pairs
    page = (tmp_path / "out" / "study.md").read_text()
    assert f"| {pairs['mlm_loss']:.3f} |" in page and "sentence order" in page
    times = [path.stat().st_mtime_ns for path in paths]
    study.main(command)
    assert [path.stat().st_mtime_ns for path in paths] == times
    # Trials of two studies would stand on one page, even where those before are not asked for.
    said = r"sentence-order.*max_minutes was 0\.05, now 0\.06; name another --output"
    shutil.rmtree(paths[0].parent)
    with pytest.raises(SystemExit, match=said):
        study.main([*command, "--minutes", "0.06", "--only", "base"])
    other = str(write_corpus(tmp_path / "other.txt", documents=30))
    with pytest.raises(SystemExit, match=r"corpus was \[.*text\.txt'\], now \[.*other\.txt'\]"):
        study.main([*command, "--corpus", other])
    assert not paths[0].parent.exists()
    assert page == (tmp_path / "out" / "study.md").read_text()


def test_a_corpus_that_is_not_there_is_told_once_and_not_by_every_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--corpus", "none.txt", "--only", "base", "cosine"]
    with pytest.raises(SystemExit, match=r"seed-0: study: .*none\.txt"):
        study.main(command)
    assert "none.txt" not in capsys.readouterr().err


def test_a_trial_that_fails_is_named_and_the_others_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def start(settings: Mapping[str, Any]) -> str:
        tried.append(Path(settings["output"]).parent.name)
        return "" if settings.get("dry_run") else f"{tried[-1]}: it failed"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "_start", start)
    with pytest.raises(SystemExit, match="no trial has ended"):
        study.main(["--corpus", "text.txt", "--only", "base", "cosine"])
    assert tried[1:] == ["base", "cosine"]  # after the vocabulary that both share
    assert "cosine: it failed" in capsys.readouterr().err


def test_the_page_has_means_over_seeds_and_what_the_base_lacks() -> None:
    def run(bits: float) -> dict[str, float]:
        return {
            "mlm_bits_per_character": bits,
            "mlm_loss": 3 * bits,
            "mlm_accuracy": 0.25,
            "tokens": 2_000_000,
            "steps": 1000,
            "masked_tokens": 300,
            "num_eval": 20,
            "unigram_entropy": 7.0,
        }

    found = {"base": [run(1.5), run(1.7)], "spans": [run(1.2)]}
    page = study.report(found, {"batch_size": 32}, minutes=4)
    assert "Base: batch_size 32." in page
    assert "| 2 | 2.00 | 1,000 | 4.800 ± 0.424 | 25.0 ± 0.0 | 1.600 ± 0.141 | +0.000 |" in page
    assert "| masks | spans | 1 | 2.00 | 1,000 | 3.600 | 25.0 | 1.200 | -0.400 |" in page


def test_every_trial_is_one_that_pretrain_takes() -> None:
    from minibert.settings import PretrainSettings

    for changes in study.CHANGES.values():
        PretrainSettings.from_dict({**study.BASE, **changes, "corpus": ["text.txt"]})


def test_the_plot_has_a_bar_for_every_trial_but_the_base(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with minibert[benchmarks]")
    bits = {"base": 1.5, "spans": 1.75, "cosine": 1.25}
    found = {name: [{"mlm_bits_per_character": value}] for name, value in bits.items()}
    study.draw(found, tmp_path / "study.svg")
    drawn = (tmp_path / "study.svg").read_text()
    told = [text.strip() for text in re.findall("<!--(.*?)-->", drawn)]
    assert {"spans", "cosine", "+0.250", "-0.250"} <= set(told) and "base" not in told
