"""The comparison with the reference: its slices, transformers' side of each task, its table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import reference
from benchmarks.reference_tasks import IGNORED, WORKS, Recipe, Squad, Work
from minibert.errors import InputError
from minibert.files import bundled_data
from minibert.tokenizer import SPECIAL_TOKENS, WordPiece

SMALL = {"train": 12, "test": 6, "dev": 4}


def slice_of(name: str, folder: Path) -> tuple[Work, Path]:
    """A small slice of a bundled sample."""
    work, source = WORKS[name], bundled_data() / name
    if name == "squad":  # the real set comes as one file, which is parted by article
        parts = [json.loads((source / f"{s}-v1.1.json").read_text()) for s in ("train", "dev")]
        source = folder / "whole"
        source.mkdir(parents=True)
        whole = {"version": "1.1", "data": [a for part in parts for a in part["data"]]}
        (source / "dev-v1.1.json").write_text(json.dumps(whole))
    work.cut(source, folder, dataclasses.replace(work.recipe, **SMALL))
    return work, folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' tokenizer of single characters, so that contexts take several windows."""
    transformers = pytest.importorskip("transformers", reason="the reference is transformers'")
    folder = tmp_path_factory.mktemp("characters")
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    WordPiece.from_pretrained(folder).save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", WORKS)
def test_a_slice_is_the_same_each_time_and_no_example_is_on_two_sides(
    name: str, tmp_path: Path
) -> None:
    work, first = slice_of(name, tmp_path / "first")
    _, second = slice_of(name, tmp_path / "second")
    parts = [work.read(first / file) for file in work.files]
    assert [len(part) for part in parts] == [12, 4, 6]
    assert parts == [work.read(second / file) for file in work.files]
    own = [{repr(example) for example in work.raw((first / f).read_text())} for f in work.files]
    # In the bundled samples no example is there twice.
    assert not own[0] & own[1]
    assert not own[0] & own[2]


@pytest.mark.parametrize("name", WORKS)
def test_both_sides_read_the_same_examples(name: str, tmp_path: Path) -> None:
    from minibert.settings import FinetuneSettings
    from minibert.tasks import find_task

    work, folder = slice_of(name, tmp_path)
    task = find_task(name)(FinetuneSettings(task=name, data=str(folder), **work.recipe.ours))
    splits = task.read(task.find_data())
    given = {
        "sst2": lambda e: (e.text, work.labels.index(e.label)),  # type: ignore[attr-defined]
        "stsb": lambda e: (e.text, e.text_pair, e.score),
        "conll2003": lambda e: (e.words, e.tags),
        "squad": lambda e: (e.context, e.question),
    }[name]
    theirs = [work.read(folder / file) for file in work.files]
    if name == "squad":
        theirs = [[(context, q["question"]) for _, context, q in part] for part in theirs]
    assert [[given(e) for e in p] for p in (splits.train, splits.dev, splits.test)] == theirs


def perfect(work: Work, rows: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """What a model would say that knows all labels; batches are padded, so there is more of it."""
    found = []
    for row in rows:
        size = len(row["input_ids"]) + 3
        if isinstance(work, Squad):
            places = {"start_logits": "start_positions", "end_logits": "end_positions"}
            peaks = {name: np.eye(size)[row[place]] * 9 for name, place in places.items()}
            if not row["start_positions"]:  # not in this window: nothing in it is likely
                peaks = {name: logits - 5 for name, logits in peaks.items()}
            found.append(peaks)
        elif isinstance(row["labels"], list):
            labels = [0 if label == IGNORED else label for label in row["labels"]]
            found.append({"logits": np.eye(max(labels) + 1)[labels + [0] * 3]})
        else:
            label = row["labels"]
            found.append({"logits": np.eye(2)[label] if label in (0, 1) else np.array([label])})
    return found


@pytest.mark.parametrize("name", [n for n in WORKS if n != "stsb"])
@pytest.mark.parametrize("padding", [False, "max_length"])
def test_perfect_logits_give_perfect_figures(
    name: str, padding: bool | str, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("seqeval", reason="scores entities")
    monkeypatch.setattr(Squad, "longest", 500)  # characters here, not words
    work, folder = slice_of(name, tmp_path)
    examples = work.read(folder / work.files[0])
    work.model_arguments(examples)
    inputs = work.inputs(tokenizer, examples, {"max_length": 280, "padding": padding})
    assert (len(inputs.rows) > len(examples)) == (name == "squad")
    batch = work.collator(tokenizer)([dict(row) for row in inputs.rows])
    assert batch["input_ids"].shape[0] == len(inputs.rows)
    assert padding is False or batch["input_ids"].shape[1] == 280
    found = work.decode(examples, inputs, perfect(work, inputs.rows))
    assert work.figures(examples, found)[work.figure] * work.scale == pytest.approx(100)


def test_correlations_are_those_of_the_scores(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="scores correlations")
    work, folder = slice_of("stsb", tmp_path)
    examples = work.read(folder / work.files[2])
    scores = [score for *_, score in examples]
    assert work.figures(examples, scores)["pearson"] == pytest.approx(1)
    assert work.figures(examples, [-score for score in scores])["spearman"] == pytest.approx(-1)


def run(side: str, seed: int, accuracy: float, seconds: float, task: str = "sst2") -> Any:
    """What is remembered of a run."""
    times = {"training": seconds, "scoring": seconds / 10, "whole": seconds * 2}
    known = {"task": task, "side": side, "seed": seed, "threads": 2, "environment": {"cpu": "x"}}
    settings = {"recipe": dataclasses.asdict(WORKS[task].recipe), "padding": "dynamic"}
    return {**known, "settings": settings, "figures": {WORKS[task].figure: accuracy}, **times}


def as_runs(*found: Any) -> reference.Runs:
    return {f"{r['task']}/{r['side']}/{r['seed']}": r for r in found}


def test_the_table_tells_mean_deviation_and_ratio_of_medians() -> None:
    runs = as_runs(
        *(run("HF", i, 0.80 + 0.01 * i, (90.0, 30.0, 40.0)[i]) for i in range(3)),
        *(run("minibert", i, 0.84, (10.0, 11.0, 80.0)[i]) for i in range(3)),
        run("HF", 0, 0.5, 10.0, "conll2003"),
    )
    table = reference.markdown(runs).split("\n")
    assert table[2] == ("| sst2 | accuracy | HF | 3 | 81.00 ± 1.00 | 40.0 |  | 4.0 |  | 80.0 |  |")
    assert table[3] == (
        "| sst2 | accuracy | minibert | 3 | 84.00 ± 0.00 | 11.0 | 3.64 | 1.1 | 3.64 | 22.0 | 3.64 |"
    )
    assert table[4].startswith("| conll2003 | f1 | HF | 1 | 50.00 | 10.0 |")
    assert len({line.count("|") for line in table}) == 1
    said = reference.differences(runs)
    assert said == "- sst2: accuracy +3.00, HF's deviation 1.00: better."
    assert table[3] in reference.page(runs)


def test_a_worse_figure_is_called_worse() -> None:
    theirs = [run("HF", i, 0.8 + 0.01 * i, 1.0) for i in range(2)]
    for ours, kind in ((0.7, "worse"), (0.805, "within it"), (0.9, "better")):
        own = [run("minibert", i, ours, 1.0) for i in range(2)]
        assert reference.differences(as_runs(*theirs, *own)).endswith(f": {kind}.")


def test_a_finished_run_is_not_done_again_and_another_recipe_is_refused(tmp_path: Path) -> None:
    given = argparse.Namespace(output=tmp_path, padding="dynamic")
    recipe: Recipe = WORKS["sst2"].recipe
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "sst2-HF-0.json"
    path.write_text(json.dumps(run("HF", 0, 0.8, 1.0)))
    before = path.read_text()
    reference.run_one("sst2", "HF", 0, recipe, given)  # would fail: no checkpoint is named
    assert path.read_text() == before
    with pytest.raises(InputError, match="of another recipe"):
        reference.run_one("sst2", "HF", 0, dataclasses.replace(recipe, epochs=9), given)
    assert reference.save(tmp_path)["sst2/HF/0"]["seed"] == 0
    assert "| sst2 | accuracy | HF | 1 | 80.00 |" in (tmp_path / "reference.md").read_text()


def test_a_folder_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--checkpoint", str(tmp_path), "--datasets", str(tmp_path), "--output", str(tmp_path)]
    assert reference.main(line) == 2
    assert "holds no config.json" in capsys.readouterr().err
