"""Steps that change over the budget: short sequences, masked words alone, small batches first.

Order, size, resume.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import (  # noqa: F401
    CPU,
    builder_of,
    corpus_text,
    cut_to_positions,
    one_thread,
    same_tensors,
    weights_of,
    without_times,
    write_corpus,
)

from minibert import documents, example_stream
from minibert.ahead import BuildersAhead
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError, Interrupted
from minibert.example_stream import BlockPlace, ExampleStream
from minibert.examples import Example, ExampleBuilder
from minibert.heads import BertForPreTraining
from minibert.optim import Budget, build_optimizer
from minibert.pretraining import _parts_of_budget, pretrain
from minibert.pretraining_data import (
    Phase,
    PretrainingData,
    mean_batch_share,
    pretraining_terms,
)
from minibert.run_folder import RunFolder, read_metrics
from minibert.settings import PretrainSettings
from minibert.train import Loop, LoopSettings, StepData, fit
from minibert.world import ALONE, World

WHOLE, SHORT = 32, 16


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> ExampleBuilder:
    """Of 57 documents in whole sequences."""
    return builder_of(tmp_path_factory.mktemp("text"), 60, WHOLE)


def shortened(builder: ExampleBuilder) -> ExampleBuilder:
    options = dataclasses.replace(builder.options, max_seq_length=SHORT)
    return ExampleBuilder(builder.store, builder.tokenizer, builder.documents, options)


def unpaired(builder: ExampleBuilder) -> ExampleBuilder:
    options = dataclasses.replace(builder.options, nsp="none")
    return ExampleBuilder(builder.store, builder.tokenizer, builder.documents, options)


def phases_of(builder: ExampleBuilder, **stream: Any) -> list[Phase]:
    """Short sequences in the first half."""
    short = ExampleStream(shortened(builder), 3, **stream)
    return [Phase(short, 0.5), Phase(ExampleStream(builder, 3, **stream))]


def data_of(
    builder: ExampleBuilder,
    world: World = ALONE,
    batch_ramp: float = 0.0,
    phases: list[Phase] | None = None,
) -> PretrainingData:
    return PretrainingData(phases or phases_of(builder), 8, 4, world, batch_ramp)


def take(data: PretrainingData, steps: range, of: int) -> list[StepData]:
    """The steps of these numbers in a budget of so many."""
    found = []
    for number in steps:
        data.pace(number / of)
        found.append(data.take())
    return found


def rows_of_a_run(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a run of four steps in `folder`/run, each logged and scored."""
    corpus = write_corpus(folder / "corpus.txt", documents=24)
    pretrain(
        corpus=str(corpus),
        preset="tiny",
        vocab_size=60,
        max_seq_length=WHOLE,
        batch_size=4,
        max_steps=4,
        log_every=1,
        eval_every=1,
        cache_dir=str(folder / "cache"),
        output=str(folder / "run"),
        device="cpu",
        **settings,
    )
    return read_metrics(folder / "run")


def same_steps(ours: list[StepData], theirs: list[StepData]) -> bool:
    batches = [
        [batch for step in steps for batch in step.micro_batches] for steps in (ours, theirs)
    ]
    return all(
        one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
        for one, other in zip(*batches, strict=True)
    )


# --- short sequences first ------------------------------------------------------------------------


def test_short_sequences_come_first_and_steps_keep_their_tokens(builder: ExampleBuilder) -> None:
    steps = take(data_of(builder), range(20), of=20)
    for number, step in enumerate(steps):
        is_short = number < 10
        assert max(step.lengths) <= (SHORT if is_short else WHOLE)
        assert len(step.lengths) == (16 if is_short else 8)
        assert [len(b["input_ids"]) for b in step.micro_batches] == ([8, 8] if is_short else [4, 4])
    early, late = (sum(s.num_tokens for s in part) for part in (steps[:10], steps[10:]))
    assert early == pytest.approx(late, rel=0.15)
    assert max(max(step.lengths) for step in steps[10:]) > SHORT


def test_without_short_sequences_nothing_changes(builder: ExampleBuilder) -> None:
    plain = PretrainingData([Phase(ExampleStream(builder, 3))], 8, 4)
    assert plain.state().keys() == ExampleStream(builder, 3).state().keys()
    paced = take(plain, range(6), of=6)
    unpaced = PretrainingData([Phase(ExampleStream(builder, 3))], 8, 4)
    assert same_steps(paced, [unpaced.take() for _ in range(6)])


def test_whole_sequences_go_on_where_short_ones_stop(
    builder: ExampleBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_stream, "_BLOCK_DOCUMENTS", 6)
    monkeypatch.setattr(documents, "_PART_TOKENS", 40)  # most documents have several parts
    for taken in range(0, 400, 23):
        short, whole = ExampleStream(shortened(builder), 3), ExampleStream(builder, 3)
        short.take(taken)
        whole.follow(short)
        place = short.state()
        assert {k: v for k, v in whole.state().items() if k != "offset"}.items() <= place.items()
        # Rounded up to an example: nothing is begun again, and less than one is passed over.
        block = whole.current_block()
        assert 0 <= whole.epochs_done - short.epochs_done < 6 / 57 / max(1, len(block))
        assert whole.offset <= len(block)
        assert whole.take(3)


def test_an_epoch_of_both_lengths_visits_every_block_once(
    builder: ExampleBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_stream, "_BLOCK_DOCUMENTS", 6)
    visited: list[tuple[int, int]] = []

    def build(self: ExampleStream, place: BlockPlace) -> list[Example]:
        visited.append((self.builder.options.max_seq_length, place.block))
        return self.built(place)

    data = data_of(builder, phases=phases_of(builder, build=build))
    while (done := data.epochs_done) < 1:
        data.pace(done)
        data.take()
    blocks = [block for _, block in dict.fromkeys(visited)]
    assert [length for length, _ in dict.fromkeys(visited)] == sorted(
        (length for length, _ in dict.fromkeys(visited)), key=[SHORT, WHOLE].index
    )
    # The block of the change is built in both lengths, and the next epoch may be begun.
    assert [b for i, b in enumerate(blocks) if i == 0 or b != blocks[i - 1]][:10] == [*range(10)]


def test_any_position_is_gone_back_to(builder: ExampleBuilder) -> None:
    data, states, steps = data_of(builder), [], []
    for number in range(12):
        states.append((data.state(), data.epochs_done))
        steps += take(data, range(number, number + 1), of=12)
    for number in (0, 3, 5, 6, 7, 11):
        fresh = data_of(builder)
        fresh.seek(states[number][0])
        assert fresh.epochs_done == states[number][1]
        assert fresh.state() == states[number][0]
        assert same_steps(take(fresh, range(number, 12), of=12), steps[number:])


def test_processes_part_short_steps_as_they_do_whole_ones(builder: ExampleBuilder) -> None:
    alone = take(data_of(builder, batch_ramp=0.9), range(4), of=4)
    worlds = [World(rank, 3) for rank in range(3)]
    parts = [take(data_of(builder, world, batch_ramp=0.9), range(4), of=4) for world in worlds]
    for number, step in enumerate(alone):
        rows = sum(len(b["input_ids"]) for part in parts for b in part[number].micro_batches)
        assert rows == len(step.lengths)
        assert all(part[number].lengths == step.lengths for part in parts)
        assert all(part[number].counts == step.counts for part in parts)


@pytest.mark.parametrize("micro", [2, 3, 8])
def test_every_process_has_as_many_micro_batches(builder: ExampleBuilder, micro: int) -> None:
    # Those of a sharded model would wait for each other for ever.
    unequal = 0
    for size in (2, 3, 5):
        parts = []
        for rank in range(size):
            phases = [Phase(ExampleStream(builder, 3))]
            data = PretrainingData(phases, 24, micro, World(rank, size), batch_ramp=0.9)
            parts.append(take(data, range(12), of=12))
        for steps in zip(*parts, strict=True):
            assert len({len(step.micro_batches) for step in steps}) == 1
            rows = [[len(b["input_ids"]) for b in step.micro_batches] for step in steps]
            assert sum(map(sum, rows)) == len(steps[0].lengths)
            assert max(map(max, rows)) <= micro
            unequal += len({-(-sum(own) // micro) for own in rows}) > 1
    assert unequal or micro == 8  # or nothing was tried


def test_one_pool_builds_both_lengths_ahead(builder: ExampleBuilder) -> None:
    expected = take(data_of(builder), range(12), of=12)
    ahead = BuildersAhead(builder, seed=3, num_processes=1)
    try:
        data = data_of(builder, phases=phases_of(builder, build=ahead))
        assert same_steps(take(data, range(12), of=12), expected)
    finally:
        ahead.close()


def test_a_checkpoint_of_an_older_version_is_gone_back_to(builder: ExampleBuilder) -> None:
    for number in (2, 8):
        data = data_of(builder)
        expected = take(data, range(number + 1), of=12)[number:]
        before = data_of(builder)
        take(before, range(number), of=12)
        state = before.state()
        state["short"] = 1 - state.pop("phase")
        again = data_of(builder)
        again.seek(state)
        assert same_steps(take(again, range(number, number + 1), of=12), expected)


# --- pairs at the end alone -----------------------------------------------------------------------


def test_pairs_come_in_the_last_phase_and_go_on_where_words_stop(builder: ExampleBuilder) -> None:
    words = ExampleStream(unpaired(builder), 3)
    data = data_of(builder, phases=[Phase(words, 0.75), Phase(ExampleStream(builder, 3))])
    steps = take(data, range(8), of=8)
    assert [set(step.counts) for step in steps] == [{"mlm"}] * 6 + [{"mlm", "nsp"}] * 2
    alone = ExampleStream(unpaired(builder), 3)
    assert [step.lengths for step in steps[:6]] == [
        [len(e.input_ids) for e in alone.take(8)] for _ in range(6)
    ]
    pairs = ExampleStream(builder, 3)
    pairs.follow(alone)
    assert steps[6].lengths == [len(e.input_ids) for e in pairs.take(8)]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, [(32, "nsp", 1.0)]),
        ({"nsp_share": 0.25}, [(32, "none", 0.75), (32, "nsp", 1.0)]),
        ({"nsp_share": 1.0}, [(32, "nsp", 1.0)]),
        ({"nsp": "sop", "nsp_share": 0.25}, [(32, "none", 0.75), (32, "sop", 1.0)]),
        (
            {"nsp_share": 0.25, "short_length": 16, "short_share": 0.5},
            [(16, "none", 0.5), (32, "none", 0.75), (32, "nsp", 1.0)],
        ),
        (
            {"nsp_share": 0.75, "short_length": 16, "short_share": 0.5},
            [(16, "none", 0.25), (16, "nsp", 0.5), (32, "nsp", 1.0)],
        ),
        (
            {"nsp_share": 0.5, "short_length": 16, "short_share": 0.5},
            [(16, "none", 0.5), (32, "nsp", 1.0)],
        ),
        ({"short_length": 16}, [(16, "nsp", 0.9), (32, "nsp", 1.0)]),
    ],
)
def test_phases_follow_the_settings(
    builder: ExampleBuilder, settings: dict[str, Any], parts: list[tuple[int, str, float]]
) -> None:
    given = PretrainSettings(corpus=["-"], max_seq_length=WHOLE, **settings)
    options = dataclasses.replace(builder.options, nsp=given.nsp)
    last = ExampleBuilder(builder.store, builder.tokenizer, builder.documents, options)
    found = [
        (phase.options.max_seq_length, phase.options.nsp, until)
        for phase, until in _parts_of_budget(last, given)
    ]
    assert found == parts


def test_the_command_scores_pairs_where_it_trains_them(tmp_path: Path) -> None:
    rows = rows_of_a_run(tmp_path, nsp_share=0.5)
    trained = ["nsp_loss" in row for row in rows if "mlm_loss" in row]
    scored = ["eval_nsp_loss" in row for row in rows if "eval_mlm_loss" in row]
    assert trained == [False, False, True, True]
    assert scored == [False, False, True, True]
    assert "nsp_accuracy" in json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.parametrize(("share", "begins"), [(0.25, True), (0.2, False)])
def test_a_phase_that_no_step_reached_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, begins: bool
) -> None:
    # The last of four steps begins at three quarters of the budget.
    rows = rows_of_a_run(tmp_path, nsp_share=share)
    assert ("nsp_loss" in [row for row in rows if "mlm_loss" in row][-1]) == begins
    told = f"no step began in the last 20% of the budget, so none had 4 sequences of {WHOLE} tokens"
    assert (told in "".join(capsys.readouterr())) == (not begins)
    resolved = json.loads((tmp_path / "run" / "run.json").read_text())["resolved"]
    assert resolved.get("trained_pairs", True) == begins
    more = {"corpus": str(tmp_path / "corpus.txt"), "model": str(tmp_path / "run")}
    more |= {"output": str(tmp_path / "more"), "cache_dir": str(tmp_path / "cache")}
    pretrain(**more, max_steps=1, max_seq_length=WHOLE, batch_size=4, device="cpu")
    said = "".join(capsys.readouterr())
    assert ("was trained without sentence pairs" in said) == (not begins)
    # What was learnt stays, though a run in between had no pairs.
    more["model"], more["output"] = str(tmp_path / "run"), str(tmp_path / "between")
    few = {"max_steps": 1, "max_seq_length": WHOLE, "batch_size": 4, "device": "cpu"}
    pretrain(**more, **few, nsp="none")
    more["model"], more["output"] = str(tmp_path / "between"), str(tmp_path / "last")
    capsys.readouterr()
    pretrain(**more, **few)
    said = "".join(capsys.readouterr())
    assert ("was trained without sentence pairs" in said) == (not begins)


@pytest.mark.parametrize(("share", "reached"), [(0.75, WHOLE), (0.8, 16)])
def test_positions_that_no_step_reached_do_not_count_as_trained(
    tmp_path: Path, share: float, reached: int
) -> None:
    rows_of_a_run(tmp_path, short_length=16, short_share=share)
    resolved = json.loads((tmp_path / "run" / "run.json").read_text())["resolved"]
    assert resolved["trained_positions"] == reached
    kept = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    assert kept["model_max_length"] == reached


def test_all_of_the_budget_is_one_setting() -> None:
    assert PretrainSettings(corpus=["-"], nsp_share=1.0) == PretrainSettings(corpus=["-"])


@pytest.mark.parametrize(
    "given",
    [{"nsp": "none", "nsp_share": 0.1}, {"nsp": "none", "nsp_share": 1.0}, {"nsp_share": 1.1}],
)
def test_a_share_of_pairs_without_use_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--nsp-share"):
        PretrainSettings(corpus=["-"], **given)


# --- small batches first --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "micro", "sizes"),
    [
        (16, 16, [4, 7, 10, 13, 16, 16]),
        (16, 4, [4, 7, 10, 13, 16, 16]),
        (18, 6, [5, 8, 12, 15, 18, 18]),
        (2, 2, [1, 1, 2, 2, 2, 2]),
        (1, 1, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_batches_grow_in_a_line_from_a_quarter(
    builder: ExampleBuilder, batch: int, micro: int, sizes: list[int]
) -> None:
    data = PretrainingData([Phase(ExampleStream(builder, 3))], batch, micro, batch_ramp=0.4)
    steps = take(data, range(6), of=10)
    assert [len(step.lengths) for step in steps] == sizes
    plain = ExampleStream(builder, 3)
    expected = [[len(e.input_ids) for e in plain.take(size)] for size in sizes]
    assert [step.lengths for step in steps] == expected
    rows = [[len(part["input_ids"]) for part in step.micro_batches] for step in steps]
    assert all(
        max(parts) <= micro and sum(parts) == n for parts, n in zip(rows, sizes, strict=True)
    )


def test_a_ramp_scales_short_batches_as_well(builder: ExampleBuilder) -> None:
    steps = take(data_of(builder, batch_ramp=1.0), range(8), of=8)
    # From a quarter of 16 short ones on, then from five eighths of 8 whole ones.
    assert [len(step.lengths) for step in steps] == [4, 6, 7, 9, 5, 6, 7, 8]


# --- in the loop ----------------------------------------------------------------------------------


def loop_of(builder: ExampleBuilder, folder: RunFolder | None, budget: Budget, **rest: Any) -> Loop:
    """A loop with dropout whose steps grow."""
    torch.manual_seed(0)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=builder.tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=WHOLE,
        )
    )
    data = data_of(builder, batch_ramp=0.8, **rest)
    return Loop(
        model,
        data,
        pretraining_terms,
        build_optimizer(model, 1e-3, 0.01),
        LoopSettings(1e-3, budget, log_every=1, eval_every=4),
        CPU,
        folder,
        evaluate=lambda: {"norm": float(sum(p.detach().norm() for p in model.parameters()))},
        pace=data.pace,
    )


@pytest.mark.parametrize(
    "budget", [Budget(max_steps=10), Budget(epochs=0.3)], ids=["steps", "epochs"]
)
@pytest.mark.parametrize("stop", [2, 5, 6])
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(
    builder: ExampleBuilder, tmp_path: Path, budget: Budget, stop: int
) -> None:
    with RunFolder(tmp_path / "whole") as folder:
        whole = loop_of(builder, folder, budget)
        whole.time_step()
        state = fit(whole)
    assert state.step > 6
    with RunFolder(tmp_path / "parted") as folder:
        first = loop_of(builder, folder, budget)

        def ask(*_: Any) -> None:
            if first.state.step + 1 == stop:
                first.asked_to_stop = signal.SIGTERM

        first.optimizer.register_step_pre_hook(ask)
        with pytest.raises(Interrupted):
            fit(first)
        second = loop_of(builder, folder, budget)
        second.time_step()
        assert fit(second, resume=True).step == state.step
    assert same_tensors(weights_of(second.model), weights_of(whole.model))
    rows = [without_times(read_metrics(tmp_path / name)) for name in ("whole", "parted")]
    assert rows[0] == rows[1]
    assert second.data.state() == whole.data.state()


def test_timing_takes_the_largest_steps_and_uses_nothing_up(builder: ExampleBuilder) -> None:
    loop = loop_of(builder, None, Budget(max_steps=10))
    (timed,), share = loop.next_steps(1)
    assert len(timed.lengths) == 8
    assert share > 0
    assert loop.data.state() == data_of(builder).state()
    first = take(data_of(builder, batch_ramp=0.8), range(1), of=10)
    assert len(first[0].lengths) == 4  # of 16 short ones
    assert loop.take_step() is None
    assert np.isclose(loop.state.tokens, first[0].num_tokens)


def test_a_budget_of_steps_is_estimated_by_their_mean(
    builder: ExampleBuilder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_of(builder, phases=[Phase(ExampleStream(builder, 3))], batch_ramp=0.8)
    sizes = [len(step.lengths) for step in take(data, range(400), of=400)]
    assert np.mean(sizes) / max(sizes) == pytest.approx(mean_batch_share(0.8), abs=0.05)
    loop = loop_of(builder, None, Budget(max_steps=10))
    loop.mean_step = 0.7
    assert loop.expected_seconds(2.0, 0.1) == pytest.approx(14)
    loop.settings = dataclasses.replace(loop.settings, budget=Budget(epochs=0.5))
    assert loop.expected_seconds(2.0, 0.1) == pytest.approx(10)  # as many examples in any steps
    (tmp_path / "corpus.txt").write_text(corpus_text())
    line = ["pretrain", "--corpus", str(tmp_path / "corpus.txt"), "--preset", "tiny", "--dry-run"]
    line += ["--cache-dir", str(tmp_path / "cache"), "--vocab-size", "60", "--batch-size", "8"]
    line += ["--max-seq-length", "32", "--max-steps", "1000", "--device", "cpu"]
    assert main([*line, "--batch-ramp", "1"]) == 0
    told = capsys.readouterr().err
    assert "s at its largest, 1,000 steps about" in told
    figures = re.search(r"(\S+) FLOP a step, (\S+) FLOP for the budget", told)
    assert figures
    step, whole = figures.groups()
    assert float(whole) == pytest.approx(625 * float(step), rel=0.01)


def test_the_command_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus.txt").write_text(corpus_text())
    line = ["pretrain", "--corpus", str(tmp_path / "corpus.txt"), "--preset", "tiny"]
    line += [
        "--vocab-size",
        "60",
        "--max-seq-length",
        "32",
        "--batch-size",
        "4",
        "--max-steps",
        "4",
    ]
    line += ["--cache-dir", str(tmp_path / "cache"), "--output", str(tmp_path / "run")]
    line += ["--log-every", "1", "--device", "cpu", "--short-length", "16", "--short-share", "0.5"]
    assert main(line) == 0
    told = capsys.readouterr().err
    assert (
        "phases: 8 sequences of 16 tokens of pairs (nsp) a step in 50%, then 4 sequences of 32 "
        "tokens of pairs (nsp) a step in 50% of the budget"
    ) in told


def test_evaluations_read_what_the_steps_read(tmp_path: Path) -> None:
    """Of whole sequences the later places are still as they were drawn: a loss that says little."""
    found = rows_of_a_run(tmp_path, short_length=16, short_share=0.5)
    rows = [row for row in found if "eval_mlm_loss" in row]
    assert [row["eval_max_seq_length"] for row in rows] == [16, 16, 32, 32]
    pairs = [row["eval_pairs"] for row in rows]
    assert pairs[0] > pairs[2], "short ones are more"
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert rows[-1]["eval_mlm_loss"] == pytest.approx(results["mlm_loss"])
    assert "max_seq_length" not in results


def test_a_model_whose_positions_are_no_multiple_of_the_padding_is_told_what_fits(
    tmp_path: Path,
) -> None:
    rows_of_a_run(tmp_path, nsp="none")
    few = cut_to_positions(str(tmp_path / "run"), tmp_path / "few", WHOLE - 2)
    given: dict[str, Any] = {"corpus": str(tmp_path / "corpus.txt"), "model": few, "max_steps": 1}
    given |= {"cache_dir": str(tmp_path / "cache"), "nsp": "none", "device": "cpu"}
    with pytest.raises(InputError, match=f"--max-seq-length {WHOLE - 8} fits"):
        pretrain(**given, max_seq_length=WHOLE - 2, output=str(tmp_path / "no"))
    pretrain(**given, max_seq_length=WHOLE - 8, batch_size=4, output=str(tmp_path / "yes"))


def test_a_head_that_was_new_has_learnt_no_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model of masked words alone, whose folder tells of no run."""
    rows_of_a_run(tmp_path, nsp="none")
    shutil.copytree(tmp_path / "run", tmp_path / "words")
    (tmp_path / "words/run.json").unlink()
    tensors = load_file(tmp_path / "words/model.safetensors")
    kept = {name: t for name, t in tensors.items() if "seq_relationship" not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "words/model.safetensors")
    given: dict[str, Any] = {"corpus": str(tmp_path / "corpus.txt"), "max_steps": 1}
    given |= {"cache_dir": str(tmp_path / "cache"), "max_seq_length": WHOLE, "batch_size": 4}
    start, between = str(tmp_path / "words"), str(tmp_path / "between")
    pretrain(**given, model=start, nsp="none", output=between, device="cpu")
    capsys.readouterr()
    pretrain(**given, model=between, output=str(tmp_path / "last"), device="cpu")
    assert f"{between} was trained without sentence pairs" in "".join(capsys.readouterr())
