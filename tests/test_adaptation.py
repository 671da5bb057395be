"""Masked words of a task's own text before its labels: `finetune --adapt`, `pretrain --model`."""

from __future__ import annotations

import json
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import one_thread, write_corpus, write_reviews  # noqa: F401
from test_resume import finish, start, stop_at

from minibert.adaptation import check_text, own_text
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import bundled_data
from minibert.finetuning import finetune, read_splits
from minibert.pretraining import default_learning_rate, pretrain
from minibert.run_folder import read_metrics
from minibert.runs import RunResult
from minibert.settings import PRETRAINING_RECIPES, FinetuneSettings, recipe
from minibert.tasks import find_task
from minibert.tasks.splits import parts_of

LOOP: dict[str, Any] = {
    **{"max_seq_length": 32, "batch_size": 8, "max_steps": 2, "device": "cpu", "precision": "fp32"},
}
NEXT_TO_NOTHING = 1e-12  # a rate at which weights stay what they were
UNSUP = ["a winter harbor valley .<br /><br />the market .", "silver river bridge miller"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adaptation")
    write_corpus(folder / "corpus.txt")
    write_corpus(folder / "own.txt", documents=8, seed=5)
    write_reviews(folder / "reviews", count=8)
    pretrain(
        corpus=[str(folder / "corpus.txt")],
        output=str(folder / "start"),
        cache_dir=str(folder / "cache"),
        vocab_size=60,
        num_layers=1,
        hidden_size=64,
        **LOOP,
    )
    return folder


def further(world: Path, output: str, **options: Any) -> RunResult:
    where = {"output": str(world / output), "cache_dir": str(world / "cache")}
    given = {"model": str(world / "start"), "corpus": [str(world / "own.txt")]}
    return pretrain(**{**LOOP, **where, **given, **options})


def tune(world: Path, output: str, **options: Any) -> RunResult:
    where = {"output": options.pop("at", str(world / output)), "cache_dir": str(world / "cache")}
    given = {"task": "imdb", "data": str(world / "reviews"), "model": str(world / "start")}
    return finetune(**{**LOOP, **where, **given, **options})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The tensors of both that differ by more than a rate next to nothing makes them."""
    both = before.keys() & after.keys()
    return {name for name in both if not torch.allclose(before[name], after[name], atol=1e-8)}


# --- pretrain --model -----------------------------------------------------------------------------


def test_without_pairs_the_pair_head_stays_and_the_rest_learns(world: Path) -> None:
    run = further(world, "no-pairs", nsp="none", weight_decay=0.5)
    before, after = weights(world / "start"), weights(run.folder)
    assert before.keys() == after.keys()
    still = before.keys() - moved(before, after)
    assert still == {name for name in before if "seq_relationship" in name or "pooler" in name}
    assert "cls.predictions.transform.dense.weight" in moved(before, after)


def test_the_optimiser_is_new_and_the_rate_half(world: Path) -> None:
    run = further(world, "rate", max_steps=10, log_every=1)
    peak = json.loads((run.folder / "run.json").read_text())["resolved"]["learning_rate"]
    assert peak == pytest.approx(0.5 * default_learning_rate(64))
    rows = [row for row in read_metrics(run.folder) if "learning_rate" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert max(row["learning_rate"] for row in rows) == pytest.approx(peak, rel=0.1)


def test_random_weights_keep_the_vocabulary_alone(world: Path) -> None:
    run = further(world, "random", random_weights=True, learning_rate=NEXT_TO_NOTHING)
    before, after = weights(world / "start"), weights(run.folder)
    assert "bert.embeddings.word_embeddings.weight" in moved(before, after)
    assert (run.folder / "vocab.txt").read_text() == (world / "start/vocab.txt").read_text()
    with pytest.raises(InputError, match="--random-weights goes with --model"):
        further(world, "random-alone", model=None, random_weights=True)


def test_heads_that_are_not_there_are_told_of(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published"
    shutil.copytree(world / "start", published, ignore=shutil.ignore_patterns("run.json"))
    backbone = {k: v for k, v in weights(published).items() if not k.startswith("cls.")}
    save_file(backbone, published / "model.safetensors")
    capsys.readouterr()
    further(world, "headless", model=str(published), learning_rate=NEXT_TO_NOTHING)
    said = capsys.readouterr().err
    assert "has no whole head for masked words" in said
    assert "trained without sentence pairs; --nsp none" in said
    further(world, "headless-none", model=str(published), nsp="none")
    assert "sentence pairs" not in capsys.readouterr().err
    # Ours always has the head; its run says whether it was trained.
    further(world, "of-untrained", model=str(world / "headless-none"))
    assert "trained without sentence pairs; --nsp none" in capsys.readouterr().err
    further(world, "of-trained")
    assert "heads: " not in capsys.readouterr().err


def test_resume_from_other_weights_is_refused(world: Path, tmp_path: Path) -> None:
    own = tmp_path / "start"
    shutil.copytree(world / "start", own)
    run = further(world, "other-weights", model=str(own))
    (run.folder / "results.json").unlink()
    shutil.copy2(world / "no-pairs/model.safetensors", own / "model.safetensors")
    with pytest.raises(InputError, match="the weights in .* have changed"):
        further(world, "other-weights", model=str(own), resume=True)


# --- finetune --adapt -----------------------------------------------------------------------------


def test_fine_tuning_starts_from_what_adaptation_learnt(world: Path) -> None:
    still = {"learning_rate": NEXT_TO_NOTHING}
    run = tune(world, "adapted", adapt=str(world / "own.txt"), **still)
    begun, adapted, end = (
        weights(f) for f in (world / "start", run.folder / "adapted", run.folder)
    )
    assert "bert.encoder.layer.0.attention.self.query.weight" in moved(begun, adapted)
    assert not moved(adapted, end)
    assert any("mlm_loss" in row for row in read_metrics(run.folder / "adapted"))
    settings = json.loads((run.folder / "adapted/run.json").read_text())["settings"]
    assert (settings["nsp"], settings["epochs"], settings["max_seq_length"]) == ("none", 3, 32)
    assert settings.items() >= recipe("continued").items()
    said = run.figures["adapted"]
    assert said["text"] == [str(world / "own.txt")]
    assert said["files"] == 1
    assert 3 <= said["epochs"] < 3.2  # whole steps
    assert said["tokens"] > 0 and said["minutes"] > 0
    assert json.loads((run.folder / "results.json").read_text())["adapted"] == said


def test_random_weights_are_adapted_and_then_kept(world: Path) -> None:
    still = {"learning_rate": NEXT_TO_NOTHING, "adapt_learning_rate": NEXT_TO_NOTHING}
    run = tune(world, "scratch", adapt="auto", random_weights=True, **still)
    begun, adapted, end = (
        weights(f) for f in (world / "start", run.folder / "adapted", run.folder)
    )
    assert "bert.embeddings.word_embeddings.weight" in moved(begun, adapted)
    assert not moved(adapted, end)


def test_seeds_share_one_adaptation_which_is_not_done_again(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = world / "seeds-text.txt"
    shutil.copy2(world / "own.txt", own)
    options = {"adapt": str(own), "adapt_epochs": 1.0, "max_steps": 1}
    run = tune(world, "seeds", seeds=2, **options)
    assert not list(run.folder.glob("seed-*/adapted"))
    adapted = run.folder / "adapted"
    for seed in (0, 1):
        record = json.loads((run.folder / f"seed-{seed}/run.json").read_text())
        assert record["resolved"]["start"] == str(adapted)
    assert run.figures["adapted"]["files"] == 1
    first = (adapted / "model.safetensors").stat().st_mtime_ns
    alone = tune(world, "seed-1-alone", seed=1, model=str(adapted), max_steps=1).figures
    assert run.figures["seeds"][1]["loss"] == alone["loss"]
    # Anew, but the text and the start are the same; and after one seed was lost.
    tune(world, "seeds", seeds=2, overwrite=True, **{**options, "max_steps": 2})
    (run.folder / "results.json").unlink()
    (run.folder / "seed-1/results.json").unlink()
    again = tune(world, "seeds", seeds=2, resume=True, **{**options, "max_steps": 2})
    assert (adapted / "model.safetensors").stat().st_mtime_ns == first
    assert again.figures["adapted"] == run.figures["adapted"]
    # Other text.
    own.write_text(own.read_text().replace("storm", "river"))
    capsys.readouterr()
    tune(world, "seeds", seeds=2, overwrite=True, **options)
    assert (adapted / "model.safetensors").stat().st_mtime_ns != first
    # Without the flag nothing of it is left.
    tune(world, "seeds", overwrite=True)
    assert not adapted.exists()


@pytest.mark.parametrize("data", ["reviews", "csv", "dev and test of their own"])
def test_scored_texts_are_never_adapted_to(world: Path, tmp_path: Path, data: str) -> None:
    rows = [f"the {word} number {i} .,{i % 2}" for i, word in enumerate(["storm", "miller"] * 20)]
    copies = ["The  storm number 0 .,0", "the miller number 3 .,1"]  # of training texts

    def table(name: str, rows: list[str]) -> str:
        (tmp_path / name).write_text("\n".join(["text,label", *rows]) + "\n")
        return str(tmp_path / name)

    given: dict[str, Any] = {"task": "imdb", "data": str(world / "reviews"), "limit": 4}
    if data != "reviews":
        given = {"task": "classification", "data": table("train.csv", rows), "limit": 4}
    if data.startswith("dev"):
        given["dev_data"] = table("dev.csv", ["only in dev,0", "only here,1", copies[0]])
        given["test_data"] = table("test.csv", ["only in test,0", "nowhere else,1", copies[1]])
    task = find_task(given["task"])(FinetuneSettings(**given))
    source = task.find_data()
    splits = task.read(source)
    texts, said = own_text(task, splits, source)
    parts = parts_of(task, splits, 0.1, None)
    scored = {e.text.lower() for e in (*parts.dev, *parts.test)}
    assert scored and not scored & {text.lower() for text in texts}
    assert set(texts) <= {e.text for e in parts.train}
    assert len(texts) > 8  # --limit is of labels
    if data.startswith("dev"):
        assert len(texts) == 38
        assert "38 training texts; 2 that dev or test holds left out" in said


def test_scored_texts_in_named_files_are_counted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"the {word} number {i} .,{i % 2}" for i, word in enumerate(["storm", "miller"] * 20)]
    for name, lines in {"train": rows, "test": ["only in test,0", "nowhere else,1"]}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    text = "the storm took the bridge .\n" * 90
    (tmp_path / "clean.txt").write_text(text)
    (tmp_path / "copies.txt").write_text(text + "\nOnly  in test!\nthe river\n")
    data = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    for name, told in {"clean": False, "copies": True}.items():
        capsys.readouterr()
        tune(
            world,
            f"copies-{name}",
            **{"task": "classification", "data": data["train"], "test_data": data["test"]},
            adapt=[str(tmp_path / f"{name}.txt")],
        )
        err = capsys.readouterr().err
        assert ("adapt: 1 text(s) of dev and test are in the files named" in err) == told


@pytest.mark.parametrize("dev_only", [False, True])
def test_imdb_has_text_without_labels(world: Path, tmp_path: Path, dev_only: bool) -> None:
    """Without that of test, which `evaluate` may score also where dev alone is now."""
    folder = tmp_path / "aclImdb"
    shutil.copytree(world / "reviews", folder)
    (folder / "train/unsup").mkdir()
    scored = (folder / "test/pos/3_8.txt").read_text()
    for number, text in enumerate([*UNSUP, UNSUP[1].upper(), scored]):
        (folder / f"train/unsup/{number}_0.txt").write_text(text)
    given = FinetuneSettings(task="imdb", data=str(tmp_path), dev_only=dev_only)
    task = find_task("imdb")(given)
    source = task.find_data()
    texts, said = own_text(task, read_splits(task, source), source)
    assert texts == ["a winter harbor valley . the market .", UNSUP[1]]
    assert "2 texts of the set without labels; 1 that dev or test holds" in said


def test_imdb_text_without_labels_may_lie_in_an_archive_of_its_own(
    world: Path, tmp_path: Path
) -> None:
    labelled = tmp_path / "aclImdb_labelled.tar.xz"
    with tarfile.open(labelled, "w:xz") as archive:
        archive.add(world / "reviews", "aclImdb")
    task = find_task("imdb")(FinetuneSettings(task="imdb", data=str(labelled)))
    source = task.find_data()
    said = own_text(task, task.read(source), source)[1]
    assert f"training texts (no unsup in {labelled}); " in said
    unsup = tmp_path / "train/unsup"
    unsup.mkdir(parents=True)
    (unsup / "0_0.txt").write_text(UNSUP[1])
    with tarfile.open(tmp_path / "aclImdb_unsup.tar.xz", "w:xz") as archive:
        archive.add(unsup, "aclImdb/train/unsup")
    texts, said = own_text(task, task.read(source), source)
    assert texts == [UNSUP[1]]
    assert said.startswith("1 texts of the set without labels")


SAMPLES = ("sst2", "mrpc", "stsb", "conll2003", "squad", "multi30k", "dialogsum")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_family_has_text_of_its_own(name: str) -> None:
    task = find_task(name)(FinetuneSettings(task=name))
    source = task.find_data()
    splits = task.read(source)
    texts, _ = own_text(task, splits, source)
    parts = parts_of(task, splits, 0.1, None)
    scored = {t for e in (*parts.dev, *parts.test) for t in task.texts(e)}
    trained = {t for e in parts.train for t in task.texts(e)}
    assert len(texts) > 10
    assert len(set(texts)) == len(texts)
    assert set(texts) <= trained and not scored & set(texts)


def test_a_task_that_names_no_texts_says_so(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_task("imdb"), "texts", lambda self, example: ())
    with pytest.raises(InputError, match="--adapt: imdb does not say what its texts are"):
        tune(world, "textless", adapt="auto")


# --- as a command: killed, resumed, wrong ---------------------------------------------------------


def flags(world: Path, output: str, *more: str | Path) -> list[str]:
    line: list[str | Path] = [
        *("finetune", "--task", "imdb", "--data", world / "reviews", "--model", world / "start"),
        *("--max-seq-length", "32", "--batch-size", "8", "--max-steps", "6", "--log-every", "1"),
        *("--save-every", "2", "--device", "cpu", "--precision", "fp32"),
        *("--cache-dir", world / "cache", "--output", world / output, *more),
    ]
    return list(map(str, line))


def outcome(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "adapted/model.safetensors", "adapted.jsonl", "predictions.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def test_killed_in_either_stage_it_goes_on_to_the_bit(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["--adapt-epochs", "20", "--adapt"]
    assert main(flags(world, "whole", *budget)) == 0
    whole, parted = outcome(world / "whole"), world / "parted"
    # Killed while it adapts.
    line = flags(world, "parted", *budget)
    process = start("finetune.py", *line[1:])
    stop_at(process, parted / "adapted", 3, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert not (parted / "metrics.jsonl").exists()
    assert main(line) == 2
    assert "--resume goes on" in capsys.readouterr().err
    assert main([*line, "--resume", "--adapt-epochs", "21"]) == 2
    assert "adapt_epochs was 20.0, now 21.0" in capsys.readouterr().err
    assert main([*line, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "resuming from step" in said and "at step 0: no whole checkpoint yet" in said
    assert outcome(parted) == whole
    # Stopped while it fine-tunes: the state of its fourth step.
    (parted / "results.json").unlink()
    shutil.rmtree(parted / "checkpoints/step-000000006")
    adapted = (parted / "adapted/model.safetensors").stat().st_mtime_ns
    assert main([*line, "--resume"]) == 0
    assert "resuming from step 4" in capsys.readouterr().err
    assert (parted / "adapted/model.safetensors").stat().st_mtime_ns == adapted
    assert outcome(parted) == whole


@pytest.mark.parametrize(
    "options", [{}, {"random_weights": True}, {"seeds": 2}, {"seeds": 2, "random_weights": True}]
)
def test_resume_knows_its_own_files_by_what_they_hold(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"adapt": "auto", "adapt_epochs": 0.1, "max_steps": 1, **options}
    folder = tmp_path / "run"
    figures = tune(world, str(folder), **given).figures
    first = (folder / "adapted/model.safetensors").stat().st_mtime_ns
    (folder / "results.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    folder = folder.rename(tmp_path / "elsewhere/run")
    monkeypatch.chdir(tmp_path)
    again = tune(world, "", at="elsewhere/run", resume=True, **given)
    assert again.figures["loss"] == figures["loss"]
    tune(world, "", at="elsewhere/../elsewhere/run", overwrite=True, **given)
    assert (folder / "adapted/model.safetensors").stat().st_mtime_ns == first


@pytest.mark.parametrize("seeds", [1, 2])
def test_text_may_move_but_not_change(world: Path, tmp_path: Path, seeds: int) -> None:
    text, place = tmp_path / "text.txt", str(tmp_path / "run")
    shutil.copy2(world / "own.txt", text)
    given: dict[str, Any] = {"adapt_epochs": 0.1, "max_steps": 1, "seeds": seeds}
    run = tune(world, place, adapt=[str(text)], **given)
    given["resume"] = True
    for name in ("finished.txt", "begun.txt"):
        text = text.rename(tmp_path / name)
        again = tune(world, place, adapt=[str(text)], **given)
        assert again.figures["loss"] == run.figures["loss"]
        record = json.loads((run.folder / "run.json").read_text())
        assert record["settings"]["adapt"] == [str(text)]
        (run.folder / "results.json").unlink()  # of the second it has not ended
    (run.folder / "results.json").write_text("{}")
    text.write_text(text.read_text().replace("storm", "river"))
    with pytest.raises(InputError, match="--resume: of --adapt the data fingerprint was"):
        tune(world, place, adapt=[str(text)], **given)
    with pytest.raises(InputError, match=r"adapt was \['.*begun.txt'\], now None"):
        tune(world, place, **{**given, "adapt_epochs": None})


def test_a_finished_run_knows_the_task_s_own_text(world: Path, tmp_path: Path) -> None:
    reviews = shutil.copytree(world / "reviews", tmp_path / "reviews")
    unsup = reviews / "train/unsup"
    unsup.mkdir()
    for i in range(8):
        (unsup / f"{i}_0.txt").write_text(f"a winter harbor valley {i} . the market {i} .")
    given: dict[str, Any] = {"data": str(reviews), "adapt": "auto", "adapt_epochs": 0.1}
    run = tune(world, str(tmp_path / "run"), **given, max_steps=1)
    assert tune(world, str(run.folder), **given, max_steps=1, resume=True).figures == run.figures
    (unsup / "0_0.txt").write_text("silver river bridge miller .")
    with pytest.raises(InputError, match="--resume: of --adapt the data fingerprint was"):
        tune(world, str(run.folder), **given, max_steps=1, resume=True)
    assert "harbor" in (run.folder / "adapted.jsonl").read_text()


@pytest.mark.parametrize("name", ["results.json", "adapted/results.json"])
def test_an_adaptation_goes_on_by_the_recipe_it_began_with(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    given: dict[str, Any] = {"adapt": "auto", "adapt_epochs": 0.1, "max_steps": 1}
    before = {"optimizer": "adamw", "mask_prob": 0.15}
    with monkeypatch.context() as patch:
        patch.setitem(PRETRAINING_RECIPES, "continued", {**recipe("continued"), **before})
        folder = tune(world, str(tmp_path / "run"), **given).folder
    whole = weights(folder)
    for ended in {name, "results.json"}:
        (folder / ended).unlink()
    tune(world, str(folder), **given, resume=True)
    adapted = folder / "adapted/run.json"
    assert json.loads(adapted.read_text())["settings"].items() >= before.items()
    assert not moved(whole, weights(folder))
    capsys.readouterr()
    tune(world, str(folder), **given, overwrite=True)
    assert "adapt: anew, since mask_prob was 0.15, now 0.3" in capsys.readouterr().err
    assert json.loads(adapted.read_text())["settings"].items() >= recipe("continued").items()


def test_seeds_whose_adaptation_fails_leave_nothing(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_task("imdb"), "texts", lambda self, example: ())
    with pytest.raises(InputError, match="--adapt: imdb does not say what its texts are"):
        tune(world, "textless-seeds", adapt="auto", seeds=2)
    assert not (world / "textless-seeds").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--adapt", "no-such.txt"], "--adapt no-such.txt does not exist"),
        (["--adapt-epochs", "2"], "--adapt-epochs goes with --adapt"),
        (["--adapt", "--adapt-epochs", "0"], "--adapt-epochs is 0.0, must be above 0"),
        (["--adapt", "--adapt-learning-rate", "-1"], "--adapt-learning-rate is -1.0"),
        (["--adapt", "--adapt-epochs", "2", "--adapt-minutes", "2"], "are both budgets"),
        (["--adapt", "--freeze-layers", "4"], "--freeze-layers 4, but the model has 1 layers"),
        (["--adapt", "--select", "acuracy"], "did you mean"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_trained(
    world: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(flags(world, "refused", *more)) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1]
    assert not (world / "refused").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "latin.txt",
            "caf\xe9\n" * 9,
            "latin.txt: byte 3 is not UTF-8 (0xe9); convert it to UTF-8",
        ),
        (
            "b.jsonl",
            '{"body": "x"}',
            "no text under 'text' (it has: body); rename the key to 'text'",
        ),
    ],
)
def test_text_that_cannot_be_read_is_refused_without_flags_of_pretraining(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    said: str,
) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    assert main(flags(world, "unread", "--adapt", str(tmp_path / name))) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("minibert: --adapt: ") and last.endswith(said)
    assert not (world / "unread").exists()


def test_the_labelled_data_is_no_text_to_adapt_to(tmp_path: Path) -> None:
    data, other = tmp_path / "data.csv", tmp_path / "other.csv"
    for path in (data, other):
        path.write_text("text,label\nstorm,0\nriver,1\n")
    with pytest.raises(InputError, match="data.csv is the labelled data"):
        finetune(task="classification", data=str(data), adapt=str(data))
    with pytest.raises(InputError, match="data.csv is the labelled data"):
        finetune(
            task="classification", data=str(other), test_data=str(data), adapt=str(tmp_path / "d*")
        )


@pytest.mark.parametrize("named", [True, False])
def test_below_the_labelled_data_only_text_without_labels_is_read(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    folder = tmp_path / "data/downloads/aclImdb"
    shutil.copytree(world / "reviews", folder)
    (folder / "train/unsup").mkdir()
    (folder / "train/unsup/0_0.txt").write_text("the storm took the bridge .\n" * 90)
    shutil.copy2(world / "own.txt", folder.parent)
    monkeypatch.chdir(tmp_path)

    def checked(*adapt: Path) -> None:
        data = str(folder.parent) if named else None
        settings = FinetuneSettings(task="imdb", data=data, adapt=[*map(str, adapt)])
        check_text(find_task("imdb")(settings))

    for labelled in (folder, folder / "test/pos", folder / "train/neg/0_2.txt", Path("data")):
        with pytest.raises(InputError, match="txt is the labelled data"):
            checked(labelled)
    checked(folder / "train/unsup", folder.parent / "own.txt")
    with pytest.raises(InputError, match="is the labelled data"):  # as the run has it
        tune(world, "leak", data=str(folder), adapt=str(folder))
    sample = bundled_data() / "sst2"
    with pytest.raises(InputError, match="is the labelled data"):
        check_text(find_task("sst2")(FinetuneSettings(task="sst2", adapt=[str(sample / "*.tsv")])))


def test_minutes_of_the_whole_are_shared() -> None:
    def settings(**values: Any) -> FinetuneSettings:
        return FinetuneSettings(task="imdb", **values)

    half = settings(adapt=["auto"], max_minutes=10.0)
    assert (half.adapting_minutes, half.tuning_minutes) == (5, 5)
    own = settings(adapt=["auto"], max_minutes=10.0, adapt_minutes=4.0)
    assert (own.adapting_minutes, own.tuning_minutes) == (4, 6)
    alone = settings(adapt=["auto"], adapt_minutes=4.0)
    assert (alone.adapting_minutes, alone.tuning_minutes) == (4, None)
    plain = settings(max_minutes=10.0)
    assert (plain.adapting_minutes, plain.tuning_minutes) == (None, 10)
    for wrong in ({"adapt_minutes": 10.0}, {"adapt_epochs": 2.0}):
        with pytest.raises(InputError, match="--max-minutes"):
            settings(adapt=["auto"], max_minutes=10.0, **wrong)
    with pytest.raises(InputError, match="--adapt names nothing"):
        settings(adapt=[])


def test_several_processes_are_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="--adapt runs in one process"):
        tune(world, "several", adapt="auto")


def test_a_dry_run_tells_what_it_takes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(world.iterdir())
    tune(world, "dry", adapt="auto", adapt_epochs=7.0, dry_run=True)
    told = capsys.readouterr().err
    adapting, tuning = told.split("dry run: of imdb itself")
    assert "dry run: of what comes before imdb: adapted" in adapting
    assert "7 epochs of about" in adapting and "cost: " in adapting
    assert "cost: " in tuning and "epochs of about" not in tuning
    assert [p for p in sorted(world.iterdir()) if p.name != "cache"] == [
        p for p in before if p.name != "cache"
    ]


def test_a_dry_run_leaves_no_encoded_text_that_nothing_finds_again(
    world: Path, tmp_path: Path
) -> None:
    cache = {"cache_dir": str(tmp_path / "cache"), "adapt_epochs": 0.5}
    tune(world, "dry", adapt="auto", dry_run=True, **cache)
    assert not list(tmp_path.glob("cache/tokens-*"))
    tune(world, "dry", adapt=[str(world / "own.txt")], dry_run=True, **cache)
    kept = list(tmp_path.glob("cache/tokens-*"))
    tune(world, "after-dry", adapt=[str(world / "own.txt")], **cache)
    assert len(kept) == 1 and list(tmp_path.glob("cache/tokens-*")) == kept


def test_a_dry_run_of_several_seeds_is_of_one(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = list[FinetuneSettings]()
    monkeypatch.setattr(
        "minibert.finetuning._finetune_once", lambda settings, recipe: planned.append(settings)
    )
    options: dict[str, Any] = {"dry_run": True, "seeds": 4, "max_steps": None}
    tune(world, "dry", adapt="auto", max_minutes=10.0, adapt_minutes=2.0, **options)
    assert "of one of 4 seeds; all take 4 times as much but the adaptation" in (
        capsys.readouterr().err
    )
    assert (planned[0].seeds, planned[0].max_minutes, planned[0].adapt_minutes) == (1, 4.0, 2.0)
    tune(world, "dry", max_minutes=10.0, **options)
    assert (planned[1].max_minutes, planned[1].adapt_minutes) == (2.5, None)


def test_the_config_of_the_start_is_kept(world: Path) -> None:
    run = tune(world, "kept", adapt=[str(world / "own.txt"), "auto"], adapt_epochs=0.5)
    begun, adapted = (
        BertConfig.from_pretrained(f) for f in (world / "start", run.folder / "adapted")
    )
    assert begun == adapted
    assert run.figures["adapted"]["files"] == 2
