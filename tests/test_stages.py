"""What the two stages make of their settings: start weights, budgets, precision, the README."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import one_thread, write_corpus, write_reviews  # noqa: F401

import minibert
from minibert import finetuning
from minibert.config import BertConfig
from minibert.errors import InputError, Interrupted
from minibert.files import bundled_data
from minibert.finetuning import finetune
from minibert.heads import BertForPreTraining
from minibert.pretraining import default_learning_rate, default_steps, pretrain
from minibert.run_folder import read_metrics
from minibert.runs import RunResult
from minibert.settings import FinetuneSettings, PretrainSettings
from minibert.tasks.classical import tfidf_scores
from minibert.tasks.classification import ClassificationTask, classical_figures
from minibert.tasks.labelled_sets import read_imdb
from minibert.tokenizer import WordPiece
from minibert.train import Loop, NonFiniteError

ROOT = Path(__file__).parent.parent
LOOP: dict[str, Any] = {
    **{"max_seq_length": 32, "batch_size": 8, "max_steps": 2, "device": "cpu", "precision": "fp32"},
}
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_corpus(folder / "corpus.txt")
    write_reviews(folder / "reviews", count=6)
    return folder


@pytest.fixture(scope="module")
def pretrained(world: Path) -> RunResult:
    return pretrain_in(world, "pretrained", preset="tiny", vocab_size=60)


def pretrain_in(world: Path, output: str, **options: Any) -> RunResult:
    where = {"output": str(world / output), "cache_dir": str(world / "cache")}
    corpus = [str(world / "corpus.txt")]
    return pretrain(**{"corpus": corpus, **LOOP, **where, **options})


def finetune_in(world: Path, output: str, **options: Any) -> RunResult:
    where = {"task": "imdb", "output": str(world / output), "data": str(world / "reviews")}
    return finetune(**{**LOOP, **where, **options})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_pretraining_goes_on_from_a_model_with_its_vocabulary(
    world: Path, pretrained: RunResult
) -> None:
    # At a rate next to zero the weights stay what they were.
    start = str(pretrained.folder)
    further = pretrain_in(world, "further", model=start, learning_rate=1e-12)
    before, after = weights(pretrained.folder), weights(further.folder)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.allclose(after[name], value, atol=1e-8), name
    for name in ("vocab.txt", "tokenizer.json"):
        assert (further.folder / name).read_text() == (pretrained.folder / name).read_text()


def test_torch_is_left_as_it_was(world: Path, pretrained: RunResult) -> None:
    def state() -> list[Any]:
        fills = torch.utils.deterministic.fill_uninitialized_memory
        return [torch.are_deterministic_algorithms_enabled(), fills, torch.get_rng_state().tolist()]

    torch.manual_seed(7)
    before = state()
    run = finetune_in(world, "as-before", model=str(pretrained.folder))
    assert state() == before
    pretrain_in(world, "as-before-too", model=str(pretrained.folder))
    assert state() == before
    torch.use_deterministic_algorithms(True)
    try:
        minibert.load(run.folder).predict("fine")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0])


def test_paths_of_a_list_are_taken_as_strings(world: Path) -> None:
    files = [world / "corpus.txt"]
    pretrain(corpus=files, dry_run=True, vocab_size=60, cache_dir=world / "cache", **LOOP)
    settings = FinetuneSettings.from_dict({"task": "imdb", "adapt": [*files, "auto"]})
    assert settings.adapt == [str(files[0]), "auto"]


def test_what_lies_beside_the_text_of_a_folder_is_counted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(world / "corpus.txt", tmp_path)
    (tmp_path / "more.md").write_text("More.\n")
    pretrain(corpus=[tmp_path], dry_run=True, vocab_size=60, cache_dir=world / "cache", **LOOP)
    assert "corpus.txt; 1 other file(s) left out, by their names (.md 1)" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_text_may_have_a_name_that_is_not_utf8(world: Path) -> None:
    text = world / os.fsdecode(b"caf\xe9.txt")
    shutil.copy(world / "corpus.txt", text)
    run = pretrain_in(world, "latin", corpus=[str(text)], preset="tiny", vocab_size=60)
    assert run.figures["dataset"] == text.name
    again = pretrain_in(
        world, "latin", corpus=[str(text)], preset="tiny", vocab_size=60, resume=True
    )
    assert again.figures == run.figures


def test_values_beside_settings_are_refused_by_name(world: Path) -> None:
    settings = PretrainSettings(corpus=[str(world / "corpus.txt")], output=str(world / "both"))
    with pytest.raises(InputError, match=r"settings and max_steps, recipe beside them"):
        pretrain(settings, max_steps=1, recipe="small-budget")
    assert not (world / "both").exists()


def test_a_model_without_segments_goes_on_without_pairs_alone(
    world: Path, pretrained: RunResult
) -> None:
    config = BertConfig.from_pretrained(pretrained.folder)
    start = world / "one-segment"
    BertForPreTraining(dataclasses.replace(config, type_vocab_size=1)).save_pretrained(start)
    WordPiece.from_pretrained(pretrained.folder).save(start)
    with pytest.raises(InputError, match=r"type_vocab_size 1\).*--nsp none trains without"):
        pretrain_in(world, "no-pairs", model=str(start))
    assert not (world / "no-pairs").exists()
    assert pretrain_in(world, "no-pairs", model=str(start), nsp="none").figures["mlm_loss"] > 0


def test_a_model_keeps_the_dropout_that_it_was_trained_with(world: Path) -> None:
    """Trained without, it would lose an epoch of fine-tuning to dropout (docs/LOG.md)."""
    shape = {"preset": "tiny", "vocab_size": 60}
    for output, given, kept in (("undropped", {"dropout": 0.0}, 0.0), ("dropped", {}, 0.1)):
        found = pretrain_in(world, output, **shape, **given)
        config = BertConfig.from_pretrained(found.folder)
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (kept, kept)


def test_held_out_figures_are_of_the_same_masks_whatever_a_run_trains_on(world: Path) -> None:
    still = {"preset": "tiny", "vocab_size": 60, "learning_rate": 1e-12, "dropout": 0.0}
    plain = pretrain_in(world, "exam-plain", **still).figures
    spans = pretrain_in(world, "exam-spans", mask_prob=0.4, masking="span", **still).figures
    assert spans["masked_tokens"] == plain["masked_tokens"] > 0
    assert spans["unigram_entropy"] == plain["unigram_entropy"]
    assert spans["mlm_loss"] == pytest.approx(plain["mlm_loss"], abs=1e-5)


def test_shifted_positions_train_all_of_them(world: Path) -> None:
    def moved(output: str, **options: Any) -> tuple[torch.Tensor, int]:
        kept = {"preset": "tiny", "vocab_size": 60, "weight_decay": 0.0, "max_steps": 6}
        run = pretrain_in(world, output, **kept, **options)
        start = pretrain_in(world, f"{output}-0", **kept, **options, learning_rate=1e-12)
        name = "bert.embeddings.position_embeddings.weight"
        apart = (weights(run.folder)[name] - weights(start.folder)[name]).abs().amax(1)
        record = json.loads((run.folder / "run.json").read_text())
        return apart > 1e-6, record["resolved"]["trained_positions"]

    plain, trained = moved("unshifted")
    assert trained == 32 and not plain[32:].any() and plain[:32].any()
    shifted, trained = moved("shifted", shift_positions=True)
    assert trained == 512 and shifted[32:].float().mean() > 0.9


def test_longer_sequences_than_pretraining_had_are_told(
    world: Path, pretrained: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    for length, told in ((32, False), (48, True)):
        capsys.readouterr()
        finetune_in(world, f"long-{length}", model=str(pretrained.folder), max_seq_length=length)
        assert ("was trained on 32 tokens a sequence" in capsys.readouterr().err) == told


def test_layers_and_width_replace_those_of_the_preset(world: Path) -> None:
    found = pretrain_in(
        world, "shaped", preset="tiny", vocab_size=60, num_layers=3, hidden_size=192
    )
    config = BertConfig.from_pretrained(found.folder)
    heads, inside = config.num_attention_heads, config.intermediate_size
    assert (config.num_hidden_layers, config.hidden_size, heads, inside) == (3, 192, 3, 768)
    with pytest.raises(InputError, match="--num-layers has no use with --model"):
        pretrain_in(world, "again", model=str(found.folder), num_layers=2)


def test_a_schedule_by_the_clock_begins_with_the_first_step(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling happens where a step is timed beforehand; once it took the whole warm-up."""

    def time_step(self: Loop) -> tuple[float, float]:
        time.sleep(1.5)
        return 0.01, 0.001

    monkeypatch.setattr(Loop, "time_step", time_step)
    start = time.perf_counter()
    clock = {"max_steps": None, "max_minutes": 0.05, "log_every": 1, "learning_rate": 1e-3}
    found = pretrain_in(world, "clock", preset="tiny", vocab_size=60, **clock)
    assert time.perf_counter() - start < 5
    rates = [row["learning_rate"] for row in read_metrics(found.folder) if "learning_rate" in row]
    assert rates[0] < 0.3e-3 and max(rates) > 0.8e-3 and rates[-1] < 0.2e-3


@pytest.mark.parametrize(("rate", "is_said"), [(1e-9, True), (3e-3, False)])
def test_a_run_that_learns_nothing_from_context_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: float, is_said: bool
) -> None:
    sentences = ["a storm came in winter .", "we lit the last candle .", "they left for home ."]
    rng = random.Random(0)
    documents = ["\n".join(rng.choices(sentences, k=8)) for _ in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    shape = {"preset": "tiny", "vocab_size": 60, "dropout": 0.0, "init": "reference"}
    pretrain(
        corpus=[str(tmp_path / "text.txt")],
        output=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        **{**LOOP, **shape, "max_steps": 80, "eval_every": 20, "learning_rate": rate},
    )
    told = capsys.readouterr().err.count("no better than word frequencies")
    assert told == is_said  # once, though two evaluations come in the second half


def test_random_weights_keep_shape_and_vocabulary_and_nothing_else(
    world: Path, pretrained: RunResult
) -> None:
    start = {"model": str(pretrained.folder), "learning_rate": 1e-12}
    kept = weights(finetune_in(world, "kept", **start).folder)
    drawn_folder = finetune_in(world, "drawn", random_weights=True, seed=1, **start).folder
    drawn, before = weights(drawn_folder), weights(pretrained.folder)
    assert kept.keys() == drawn.keys()
    assert torch.allclose(kept[QUERY], before[QUERY], atol=1e-8)
    assert drawn[QUERY].shape == before[QUERY].shape
    both = torch.stack([drawn[QUERY].ravel(), before[QUERY].ravel()])
    assert torch.corrcoef(both)[0, 1] < 0.1
    assert (drawn_folder / "vocab.txt").read_text() == (pretrained.folder / "vocab.txt").read_text()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_redrawn_layers_are_the_top_ones_and_the_pooler(
    world: Path, pretrained: RunResult, count: int
) -> None:
    options = {"model": str(pretrained.folder), "learning_rate": 1e-12, "seed": 1}
    run = finetune_in(world, f"redrawn-{count}", reinit_layers=count, **options)
    before, after = weights(pretrained.folder), weights(run.folder)
    moved = {
        k
        for k in before.keys() & after.keys()
        if not torch.allclose(after[k], before[k], atol=1e-8)
    }
    tops = tuple(f"bert.encoder.layer.{i}." for i in range(2 - count, 2))
    assert all(name.startswith((*tops, "bert.pooler.")) for name in moved)
    matrices = {k for k in before if k.startswith(tops) and before[k].ndim == 2} if count else set()
    pooler = {"bert.pooler.dense.weight"} if count else set()
    assert moved >= matrices | pooler
    assert (moved == set()) == (count == 0)


def test_a_vocabulary_that_does_not_cover_the_text_is_said(
    world: Path, pretrained: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{text},{label}" for label in "ab" for text in ("\u597d", "\u574f", "\u4e66")]
    (world / "other.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    model = str(pretrained.folder)
    finetune_in(world, "other", task="classification", data=str(world / "other.csv"), model=model)
    said = capsys.readouterr().err
    assert "of the pieces are unknown to the model's vocabulary" in said
    finetune_in(world, "covered", model=model)
    assert "unknown to the model" not in capsys.readouterr().err


def test_more_layers_than_there_are_cannot_be_redrawn(world: Path, pretrained: RunResult) -> None:
    with pytest.raises(InputError, match="2 layers"):
        finetune_in(world, "none", model=str(pretrained.folder), reinit_layers=3)
    both = {"reinit_layers": 1, "freeze_layers": 2}
    with pytest.raises(InputError, match="--reinit-layers 1 and --freeze-layers 2 meet in a model"):
        finetune_in(world, "none", model=str(pretrained.folder), **both)


@pytest.mark.parametrize("count", [0, 1])
def test_frozen_layers_stay_to_the_bit_and_the_others_learn(
    world: Path, pretrained: RunResult, count: int
) -> None:
    run = finetune_in(world, f"frozen-{count}", model=str(pretrained.folder), freeze_layers=count)
    before, after = weights(pretrained.folder), weights(run.folder)
    kept = {k for k in before.keys() & after.keys() if torch.equal(before[k], after[k])}
    lowest = ("bert.embeddings.", *(f"bert.encoder.layer.{i}." for i in range(count)))
    assert kept == {k for k in before.keys() & after.keys() if k.startswith(lowest)}


def test_seeds_give_mean_and_deviation_and_the_best_model(
    world: Path, pretrained: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": str(pretrained.folder), "learning_rate": 3e-3, "max_steps": 6, "seed": 4}
    run = finetune_in(world, "seeds", seeds=3, **options)
    alone = finetune_in(world, "seed-5-alone", **{**options, "seed": 5}).figures
    own = run.figures["seeds"]
    assert [figures["seed"] for figures in own] == [4, 5, 6]
    assert own[1]["loss"] == alone["loss"]
    losses = torch.tensor([figures["loss"] for figures in own], dtype=torch.float64)
    assert run.figures["loss"] == pytest.approx(float(losses.mean()))
    assert run.figures["loss_sd"] == pytest.approx(float(losses.std()))
    assert run.figures["loss_sd"] > 0
    best = run.figures["best_seed"]
    assert max(own, key=lambda f: f["dev_accuracy"])["seed"] == best
    chosen = run.folder / f"seed-{best}"
    for name in ("model.safetensors", "predictions.jsonl", "vocab.txt"):
        assert (run.folder / name).read_bytes() == (chosen / name).read_bytes()
    answers = [minibert.load(folder).predict("storm river") for folder in (run.folder, chosen)]
    assert answers[0] == answers[1]
    # What is lost is done again, what is there is not; a finished one has nothing to do.
    (run.folder / "results.json").unlink()
    (run.folder / "seed-6/results.json").unlink()
    capsys.readouterr()
    assert finetune_in(world, "seeds", seeds=3, resume=True, **options).figures["loss_sd"] > 0
    assert capsys.readouterr().err.count("holds a finished run") == 2
    finetune_in(world, "seeds", seeds=3, resume=True, **options)
    assert capsys.readouterr().err.count("holds a finished run") == 1
    with pytest.raises(InputError, match="--resume goes on"):
        finetune_in(world, "seeds", seeds=3, **options)
    again = finetune_in(world, "seeds", seeds=2, overwrite=True, **options)
    assert sorted(p.name for p in again.folder.glob("seed-*")) == ["seed-4", "seed-5"]


def test_a_signal_in_the_last_evaluation_of_a_seed_stops_before_the_next(
    world: Path, pretrained: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": str(pretrained.folder), "seeds": 2}
    figures, calls = ClassificationTask.dev_figures, 0

    def stopped(*given: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return figures(*given)

    monkeypatch.setattr(ClassificationTask, "dev_figures", stopped)
    with pytest.raises(Interrupted, match="resume goes on from step 2") as caught:
        finetune_in(world, "stopped", **options)
    assert caught.value.status == 143
    folder = world / "stopped"
    assert [p.name for p in folder.glob("seed-*")] == ["seed-0"]
    assert not (folder / "seed-0/results.json").exists()
    assert len(finetune_in(world, "stopped", resume=True, **options).figures["seeds"]) == 2
    assert calls == 2, "the last evaluation of the first seed was not made again"


def test_a_seed_that_diverges_is_named_and_the_others_go_on(
    world: Path,
    pretrained: RunResult,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"model": str(pretrained.folder), "seeds": 2}
    carry_out, begun, bad = finetuning.carry_out, list[int](), {0}

    def diverging(loop: Loop, *given: Any) -> Any:
        begun.append(loop.settings.seed)
        state = carry_out(loop, *given)
        if loop.settings.seed in bad:
            raise NonFiniteError("step 2: the loss is nan")
        return state

    monkeypatch.setattr(finetuning, "carry_out", diverging)
    run = finetune_in(world, "diverged", **options)
    assert run.figures["diverged"] == {"0": "step 2: the loss is nan"}
    assert [own["seed"] for own in run.figures["seeds"]] == [1]
    assert run.figures["best_seed"] == 1
    assert run.figures["loss"] == run.figures["seeds"][0]["loss"]
    assert "loss_sd" not in run.figures, "one seed has no deviation"
    told = "diverged, and not in the means: seed 0: step 2: the loss is nan\n"
    assert capsys.readouterr().out.endswith(told)
    # It would come there again.
    (run.folder / "results.json").unlink()
    assert finetune_in(world, "diverged", resume=True, **options).figures == run.figures
    assert begun == [0, 1]
    bad.add(1)
    for resume in (False, True):
        with pytest.raises(NonFiniteError, match="every seed diverged; seed 0: step 2"):
            finetune_in(world, "all-diverged", resume=resume, **options)
    assert begun == [0, 1, 0, 1]


def test_all_seeds_start_from_the_model_that_was_chosen_first(
    world: Path, pretrained: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, folder = tmp_path / "bundled", tmp_path / "seeds"
    shutil.copytree(pretrained.folder, own)
    once = finetuning._finetune_once
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minibert.starts.bundled_model", lambda: own)

    def and_another_finishes(*given: Any, **named: Any) -> RunResult:
        result = once(*given, **named)
        if not Path("runs/pretrain").exists():
            shutil.copytree(own, "runs/pretrain")
            redrawn = weights(own)
            redrawn[QUERY] += 1
            save_file(redrawn, "runs/pretrain/model.safetensors")
        return result

    def starts() -> list[str]:
        records = [json.loads((folder / f"seed-{i}/run.json").read_text()) for i in (0, 1)]
        return [record["resolved"]["start"] for record in records]

    monkeypatch.setattr(finetuning, "_finetune_once", and_another_finishes)
    finetune_in(world, str(folder), seeds=2)
    assert Path("runs/pretrain/results.json").is_file()
    assert starts() == [str(own)] * 2
    # The same where the run goes on, whatever would be chosen now.
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "seed-1")
    finetune_in(world, str(folder), seeds=2, resume=True)
    assert starts() == [str(own)] * 2
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "seed-1")
    shutil.copy2("runs/pretrain/model.safetensors", own)
    with pytest.raises(InputError, match="the weights in .*bundled have changed"):
        finetune_in(world, str(folder), seeds=2, resume=True)


def test_seeds_do_not_overwrite_their_model(pretrained: RunResult, world: Path) -> None:
    own = str(pretrained.folder)
    with pytest.raises(InputError, match="is the --model folder"):
        finetune_in(world, "pretrained", seeds=2, model=own, overwrite=True)
    assert (pretrained.folder / "model.safetensors").is_file()


def test_patience_ends_a_run_that_no_longer_gains(world: Path, pretrained: RunResult) -> None:
    still = {"learning_rate": 1e-12, "eval_every": 1, "max_steps": 9}
    run = finetune_in(world, "patient", model=str(pretrained.folder), patience=2, **still)
    assert (run.figures["best_step"], run.figures["steps"]) == (1, 3)
    chosen = finetune_in(world, "f1", model=str(pretrained.folder), select="f1", **still)
    assert chosen.figures["steps"] == 9
    assert "dev_f1" in chosen.figures


def test_a_classifier_of_other_classes_gives_its_backbone(
    world: Path, pretrained: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    config = minibert.BertConfig.from_pretrained(pretrained.folder)
    five = minibert.BertConfig.from_dict(config.to_dict() | {"id2label": dict(enumerate("12345"))})
    stars = minibert.BertForSequenceClassification.from_pretrained(pretrained.folder, five)
    folder = world / "stars"
    stars.save_pretrained(folder)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((pretrained.folder / name).read_bytes())
    capsys.readouterr()
    run = finetune_in(world, "from-stars", model=str(folder), learning_rate=1e-12)
    assert "newly initialised: classifier" in capsys.readouterr().err
    assert weights(run.folder)["classifier.weight"].shape == (2, config.hidden_size)
    assert torch.allclose(weights(run.folder)[QUERY], weights(folder)[QUERY], atol=1e-8)


def test_bf16_learns_nearly_what_fp32_learns(world: Path, pretrained: RunResult) -> None:
    half = pretrain_in(world, "half", preset="tiny", vocab_size=60, precision="bf16")
    assert half.figures["mlm_loss"] == pytest.approx(pretrained.figures["mlm_loss"], rel=0.02)
    found, full = weights(half.folder), weights(pretrained.folder)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert any(not torch.equal(value, full[name]) for name, value in found.items())


def test_held_out_documents_without_a_pair_are_refused_with_a_way_out(tmp_path: Path) -> None:
    text = "\n\n".join(["storm"] * 80 + ["storm river.\nbridge."] * 2)
    (tmp_path / "short.txt").write_text(text)
    where = {"output": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(InputError, match="--nsp none"):
        pretrain(corpus=str(tmp_path / "short.txt"), nsp="sop", **where, **LOOP)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("corpus", "tokens"),
    [(10_000, 500_000), (1_000_000, 6_000_000), (20_000_000, 50_000_000), (10**9, 10**9)],
)
def test_default_budget_follows_its_rule(corpus: int, tokens: int) -> None:
    steps, rule = default_steps(corpus, 2000.0)
    assert steps == tokens // 2000
    assert f"{tokens:,}" in rule


def test_default_rate_falls_with_the_width() -> None:
    rates = [default_learning_rate(width) for width in (128, 256, 512, 768)]
    assert default_learning_rate(256, "muon") == 2e-3
    assert default_learning_rate(512, "muon", goes_on=True) == pytest.approx(0.3e-3)
    assert default_learning_rate(512, goes_on=True) == 0.25e-3
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 0.256 / 768])


def test_bundled_reviews_are_neither_trivial_nor_hopeless() -> None:
    splits = read_imdb(bundled_data() / "imdb")
    assert 0.65 < classical_figures(tfidf_scores, splits.train, splits.test)["accuracy"] < 0.92


# --- the README's own commands --------------------------------------------------------------------


def readme_commands() -> list[list[str]]:
    """The python commands of the line that installs and runs both stages."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r"^ +pip install -c constraints\.txt -e \. && (.*)$", text, re.MULTILINE)
    assert line is not None
    return [shlex.split(command) for command in line.group(1).split("&&")]


def test_the_commands_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    for name in ("data", "pretrain.py", "finetune.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    few = ["--max-steps", "2", "--max-seq-length", "32", "--cache-dir", "cache"]
    said = []
    for command in readme_commands():
        assert command[0] == "python"
        done = subprocess.run(
            [sys.executable, "-W", "error", *command[1:], *few],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    assert said[0].startswith("data: the bundled sample")
    assert said[1].startswith("data: imdb, the bundled sample")
    assert "model: runs/pretrain" in said[1]
    for run, figure in (("pretrain", "mlm_loss"), ("imdb", "accuracy")):
        assert json.loads((tmp_path / "runs" / run / "results.json").read_text())[figure] > 0
