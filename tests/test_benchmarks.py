"""The one command for all benchmarks, on works small enough for a test."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samples import make_model_folder, one_thread, write_corpus, write_reviews  # noqa: F401

import minibert
from benchmarks import (
    corpus,
    curve,
    finetuning,
    prediction,
    pretraining,
    probe,
    report,
    tokenising,
    turns,
)
from benchmarks.__main__ import main
from benchmarks.lengths import draw_lengths
from benchmarks.text import OPTIONS, read_documents, write_text
from minibert.config import BertConfig
from minibert.errors import InputError, Interrupted
from minibert.runtime import start_runtime
from minibert.settings import FinetuneSettings
from minibert.tasks import find_task
from minibert.tasks.base import Predictor
from minibert.vocabulary import corpus_vocabulary

WORKER = """
class Counter:
    def __init__(self, fails_at=0):
        self.steps, self.fails_at = 0, fails_at

    def step(self):
        self.steps += 1
        print("what a library says")
        if self.steps == self.fails_at:
            raise MemoryError("no room")
        return {"tokens": 10, "flops": 20, "units": 5}
"""


@pytest.fixture
def counter(tmp_path: Path) -> Any:
    """Makes variants whose steps do nothing but count."""
    (tmp_path / "counting.py").write_text(WORKER)
    place = {"PYTHONPATH": f"{tmp_path}:{Path(turns.__file__).parent.parent}"}
    return lambda name, **more: turns.Variant(name, "counting:Counter", more, place)


def fake_benchmark(figure: float) -> Any:
    """A benchmark of two works, one of which cannot run."""

    def measure(name: str, rounds: int, texts: list[Path]) -> dict[str, Any]:
        if name == "broken":
            raise RuntimeError("out of\nluck")
        return {"figure": figure, "times": [1.0] * rounds}

    works = {"good": None, "broken": None}
    return SimpleNamespace(
        __doc__="A fake.", WORKS=works, measure=measure, table=lambda e: f"figure {e['figure']}"
    )


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two fake benchmarks in place of the real ones."""
    found = {"one": fake_benchmark(1), "two": fake_benchmark(2)}
    monkeypatch.setattr(report, "BENCHMARKS", {"one": "fake_one", "two": "fake_two"})
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, f"fake_{name}", module)
    return found


def results_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "benchmarks.json").read_text())
    return found


def test_a_tiny_run_writes_page_times_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="the reference is transformers' model")
    pytest.importorskip("matplotlib", reason="draws the plot")
    monkeypatch.setattr(pretraining, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(pretraining, "TURN_SECONDS", 0.0)  # one step: the same for both
    monkeypatch.setattr(pretraining, "WORKS", {"tiny": pretraining.Work("tiny", 32, 2, "mixed")})
    monkeypatch.setattr(corpus, "WORKS", {"tiny": corpus.Work(0.05)})
    all_variants = pretraining.variants

    def quick(work: pretraining.Work) -> list[turns.Variant]:
        return [v for v in all_variants(work) if v.name != "HF best"]  # which compiles

    monkeypatch.setattr(pretraining, "variants", quick)
    line = ["--only", "pretraining", "corpus/tiny", "--rounds", "1", "--output", str(tmp_path)]
    assert main(line) == 0
    results = results_in(tmp_path)
    assert set(results) == {"pretraining/tiny", "corpus/tiny"}
    plain, ours = results["pretraining/tiny"]["timings"]
    assert plain["tokens"] == ours["tokens"]
    assert plain["flops"] == ours["flops"] > [0]
    assert len(ours["seconds"]) == 1 and not ours["error"]
    assert results["pretraining/tiny"]["environment"]["torch"]
    stages = results["corpus/tiny"]["stages"]
    assert all(row[0]["main_mib"] > 10 for row in stages.values())
    page = (tmp_path / "benchmarks.md").read_text()
    for text in ("% of peak", "x HF plain", "start of a run, s", "benchmarks.svg", "cores"):
        assert text in page
    assert "<svg" in (tmp_path / "benchmarks.svg").read_text()


def test_only_measures_a_part_anew_and_keeps_the_rest(
    tmp_path: Path, fakes: dict[str, Any]
) -> None:
    assert main(["--rounds", "2", "--output", str(tmp_path)]) == 0
    before = results_in(tmp_path)
    assert before["one/good"]["times"] == [1.0, 1.0]
    assert before["one/broken"]["error"] == "RuntimeError: out of luck"
    fakes["two"].measure = fake_benchmark(3).measure
    fakes["one"].measure = None  # is not called
    assert main(["--only", "two/good", "--rounds", "1", "--output", str(tmp_path)]) == 0
    after = results_in(tmp_path)
    assert after["one/good"] == before["one/good"]
    assert after["two/good"]["figure"] == 3
    page = (tmp_path / "benchmarks.md").read_text()
    for text in ("figure 1", "figure 3", "broken: not run, RuntimeError: out of luck"):
        assert text in page


def test_what_cannot_run_again_keeps_its_figures(tmp_path: Path, fakes: dict[str, Any]) -> None:
    line = ["--only", "one/good", "--output", str(tmp_path)]
    assert main(line) == 0
    fakes["one"].measure = None
    assert main(line) == 0
    assert results_in(tmp_path)["one/good"]["figure"] == 1


def test_results_are_written_after_every_benchmark(tmp_path: Path, fakes: dict[str, Any]) -> None:
    def stopped(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    fakes["two"].measure = stopped
    assert main(["--output", str(tmp_path)]) == 130
    assert set(results_in(tmp_path)) == {"one/good", "one/broken"}


def test_nothing_is_measured_for_a_folder_that_cannot_be_written(
    tmp_path: Path, fakes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []
    for fake in fakes.values():
        fake.measure = lambda name, *_: measured.append(name)
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "benchmarks.json").write_text("{damaged")
    for name, says in {"file": "File exists", "damaged": "is not valid JSON"}.items():
        assert main(["--output", str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("benchmarks: ") and says in line
    assert not measured


def test_a_benchmark_that_cannot_be_imported_is_named(
    tmp_path: Path, fakes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fake_two", None)
    assert main(["--output", str(tmp_path)]) == 0
    assert "fake_two" in results_in(tmp_path)["two/all"]["error"]
    assert results_in(tmp_path)["one/good"]["figure"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "three"], "--only three is no benchmark; there are one, one/broken"),
        (["--rounds", "0"], "--rounds 0; at least 1"),
        (["--text", "no-such-file.txt"], "--text no-such-file.txt"),
    ],
)
def test_a_wrong_flag_ends_with_status_2(
    tmp_path: Path,
    fakes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    assert main([*arguments, "--output", str(tmp_path / "new")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_variants_take_turns_and_one_that_fails_is_named(counter: Any) -> None:
    found = turns.take_turns(
        [counter("whole"), counter("late", fails_at=3), counter("never", wrong=1)], 3, warmup=1
    )
    whole, late, never = found
    assert whole.tokens == [10, 10, 10] and whole.units == [5, 5, 5] and not whole.error
    assert late.error == "MemoryError: no room" and not late.seconds
    assert never.error.startswith("TypeError")
    table = turns.markdown(found, unit="MB")
    assert "MB/s" in table and "late: not run, MemoryError: no room" in table


def test_a_turn_lasts_for_as_many_steps_as_it_takes(counter: Any) -> None:
    (found,) = turns.take_turns([counter("whole")], 2, warmup=1, turn_seconds=0.02)
    assert min(found.seconds) >= 0.02
    assert min(found.tokens) >= 20
    assert all(units == tokens / 2 for units, tokens in zip(found.units, found.tokens, strict=True))


def test_a_variant_settles_until_its_memory_is_steady() -> None:
    growing = [100.0 * 1.01**step for step in range(20)]
    steady = [*growing, *growing[-1:] * 11]
    assert not turns._is_settled(steady, seconds=29, least_seconds=30)
    assert not turns._is_settled(growing, seconds=31, least_seconds=30)
    assert not turns._is_settled(steady[:5], seconds=31, least_seconds=30)  # too few to tell
    assert turns._is_settled(steady, seconds=31, least_seconds=30)
    assert turns._is_settled(growing, seconds=181, least_seconds=30)


def test_a_table_has_medians_of_the_rounds_ratios() -> None:
    slow = turns.Timing("slow", [1.0, 2.0, 4.0], [8.0] * 3, [2.0] * 3, [8.0] * 3)
    fast = turns.Timing("fast", [0.5, 0.5, 0.5], [8.0] * 3, [2.0] * 3, [8.0] * 3)
    assert turns.ratios(fast, slow) == (4.0, 2.0, 8.0)
    table = turns.markdown([slow, fast], peak_flops=10.0)
    assert "4.00 [2.00-8.00]" in table and "| 40.0% |" in table


@pytest.mark.parametrize(
    ("kind", "longest", "full"),
    [
        ("full", 128, 1.0),
        ("mixed", 128, 0.60),
        ("paired", 128, 0.90),
        ("paired", 512, 0.61),
        ("imdb", 256, 0.80),
    ],
)
def test_lengths_fill_what_they_say(kind: str, longest: int, full: float) -> None:
    lengths = draw_lengths(kind, longest, 20_000, np.random.default_rng(0))
    assert lengths.min() >= 8 and lengths.max() == longest
    assert lengths.mean() / longest == pytest.approx(full, abs=0.015)


@pytest.mark.parametrize("padding", ["max_length", "dynamic", "buckets"])
def test_every_way_of_padding_trains_on_the_same_examples(padding: str) -> None:
    pytest.importorskip("transformers", reason="the reference is transformers' model")
    work = dataclasses.asdict(finetuning.Work(1, 16, 2, 300, 24, 2, "mixed"))
    theirs = finetuning.HuggingFace(padding=padding, bf16=False, **work)
    ours = finetuning.Ours(**work)
    steps = finetuning._BATCHES // finetuning._TIMED_TOGETHER  # an epoch
    tokens = [sum(side.step()["tokens"] for _ in range(steps)) for side in (theirs, ours)]
    assert tokens[0] == tokens[1] > 0


def test_tokenisers_do_the_same_work(tmp_path: Path) -> None:
    text, vocabulary = tmp_path / "text.txt", tmp_path / "vocabulary"
    write_text([write_corpus(tmp_path / "source.txt")], 0.02, text)
    corpus_vocabulary([text], 200, OPTIONS, True, True, tmp_path, exact=False).save(vocabulary)
    arguments = {"text": str(text), "vocabulary": str(vocabulary), "folder": str(tmp_path)}
    ours = tokenising.Ours(**arguments)
    assert ours.step() == ours.step() == tokenising.Limit(**arguments).step()


def test_datasets_map_does_the_same_work(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the reference is datasets.map")
    text, vocabulary = tmp_path / "text.txt", tmp_path / "vocabulary"
    write_text([write_corpus(tmp_path / "source.txt")], 0.02, text)
    corpus_vocabulary([text], 200, OPTIONS, True, True, tmp_path, exact=False).save(vocabulary)
    arguments = {"text": str(text), "vocabulary": str(vocabulary), "folder": str(tmp_path)}
    specials = 2 * len(read_documents(text))
    ours = tokenising.Ours(**arguments).step()
    for ids_alone in (False, True):
        theirs = tokenising.DatasetsMap(ids_alone=ids_alone, **arguments).step()
        assert theirs["tokens"] - specials == ours["tokens"]


def test_text_is_repeated_up_to_the_size_and_no_two_documents_are_alike(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "source.txt")
    write_text([source], 0.02, tmp_path / "text.txt")
    size = (tmp_path / "text.txt").stat().st_size
    assert 20_000 <= size < 22_000 < 10 * source.stat().st_size
    documents = read_documents(tmp_path / "text.txt")
    assert len(set(documents)) == len(documents) > 24


def test_a_curve_has_a_picture_for_each_part_that_was_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="draws the curve")
    rows = [{"step": n, "mlm_loss": 7.0 - n, "nsp_accuracy": 0.5} for n in (1, 2)]
    rows.append({"step": 2, "eval_mlm_loss": 5.5})
    assert curve.points_of(rows, "mlm_loss") == ([1, 2], [6.0, 5.0])
    assert curve.points_of(rows, "eval_mlm_loss") == ([2], [5.5])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        assert curve.main([str(tmp_path), "--output", str(picture)]) == 0
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_text().count('id="axes_') == 2
    assert curve.main([str(tmp_path / "none"), "--output", str(pictures[0])]) == 2
    assert "has no metrics.jsonl" in capsys.readouterr().err
    missing = tmp_path / "none" / "one.svg"
    assert curve.main([str(tmp_path), "--output", str(missing)]) == 2
    assert capsys.readouterr().err.startswith("curve: [Errno 2]")
    assert curve.main([str(tmp_path), "--output", str(tmp_path / "curve.png")]) == 2
    assert capsys.readouterr().err.strip().endswith("curve.png does not end in .svg")


def test_a_probe_scores_every_layer_on_reviews_that_it_has_not_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="logistic regression")
    model = make_model_folder(tmp_path / "model")
    reviews = write_reviews(tmp_path / "aclImdb")
    counts = ["--train", "12", "--test", "4", "--length", "16"]
    assert probe.main([str(model), "--data", str(reviews), *counts]) == 0
    told = capsys.readouterr().out.split("|")[2:-1]
    layers = BertConfig.from_pretrained(model).num_hidden_layers
    assert [part.split(":")[0].strip() for part in told] == [*map(str, range(layers + 1)), "[CLS]"]
    labels = np.array([0, 1] * 20)
    known = np.random.default_rng(0).normal(size=(40, 3))
    known[:, 1] += 9.0 * labels
    assert probe.score(known, labels, 30) == 1.0


@pytest.mark.parametrize(
    ("models", "data", "said"),
    [
        (["model", "modle"], "aclImdb", "modle is not a model folder"),
        (["model"], "aclimdb", "aclimdb"),
        (["model"], "aclImdb", "has 24 reviews to train on, of which --train and --test want 25"),
    ],
)
def test_a_probe_refuses_what_it_cannot_use_before_it_makes_vectors(
    models: list[str],
    data: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn", reason="logistic regression")
    monkeypatch.chdir(tmp_path)
    make_model_folder(tmp_path / "model")
    write_reviews(tmp_path / "aclImdb")
    monkeypatch.setattr(probe, "vectors", lambda *_: pytest.fail("vectors were made"))
    with pytest.raises(SystemExit) as stop:
        probe.main([*models, "--data", data, "--train", "20", "--test", "5"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("probe: ") and said in told and told.count("\n") == 1


def test_labels_of_what_is_no_run_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews = write_reviews(tmp_path / "aclImdb")
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "run"), "--data", str(reviews)])
    with pytest.raises(SystemExit) as stop:
        prediction.main()
    told = capsys.readouterr()
    assert stop.value.code == 2 and told.out == ""
    assert told.err.startswith("prediction: ") and "is not a model folder" in told.err


def test_the_memory_of_a_process_that_has_ended_is_nobody_else_s() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert turns.peak_mib(gone.pid) == 0
    assert turns.peak_mib() > 1


def test_a_run_of_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = find_task("sst2")(FinetuneSettings(task="sst2"))
    runtime = start_runtime("cpu", "fp32", deterministic=True)
    monkeypatch.setattr(minibert, "load", lambda *_: Predictor(None, task, runtime))
    with pytest.raises(InputError, match="runs/sst2 is of sst2; expected a run of"):
        prediction.unchanged_labels(Path("runs/sst2"), None, 1)


def test_a_run_that_tells_no_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = find_task("conll2003")(FinetuneSettings(task="conll2003"))
    runtime = start_runtime("cpu", "fp32", deterministic=True)
    monkeypatch.setattr(minibert, "load", lambda *_: Predictor(None, task, runtime))
    with pytest.raises(InputError, match="runs/ner is of conll2003; expected a run of"):
        prediction.unchanged_labels(Path("runs/ner"), None, 1)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("no"), 2),
        (FileNotFoundError("no"), 2),
        (Interrupted("no", 143), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_command_that_cannot_go_on_says_so_in_a_line(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, report.told_in_a_line("x"):
        raise error
    told = capsys.readouterr().err
    assert stop.value.code == status and told.startswith("x: ") and told.count("\n") == 1


def test_a_probes_vectors_do_not_depend_on_the_texts_beside_them(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    texts = ["storm", "silver garden candle winter storm silver"]
    both = probe.vectors(model, texts, 16)
    for row, text in enumerate(texts):
        for name, alone in probe.vectors(model, [text], 16).items():
            np.testing.assert_allclose(both[name][row], alone[0], atol=1e-5)
