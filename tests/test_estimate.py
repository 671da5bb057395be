"""What a run is said to need: against counted and measured memory, and against the document."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from minibert import runs
from minibert.checkpoint import save_best, save_checkpoint
from minibert.config import PRESETS, BertConfig, preset
from minibert.corpus import ReaderOptions
from minibert.decoder_config import DecoderConfig
from minibert.documents import split_documents
from minibert.estimate import (
    ENCODED_MB_PER_CORE_SECOND,
    HELD,
    HELD_BY_DECODER,
    PASS_TOKENS,
    READER_MB_PER_SECOND,
    STORED_BYTES_PER_TOKEN,
    TOKENS_PER_BYTE,
    encoding,
    held_bytes,
    num_parameters,
    run_folder_bytes,
    step_memory,
    told_bytes,
)
from minibert.examples import ExampleBuilder, ExampleOptions
from minibert.flops import training_flops
from minibert.heads import BertForPreTraining
from minibert.optim import Budget, build_muon, build_optimizer
from minibert.seq2seq import BertForConditionalGeneration
from minibert.store import open_store
from minibert.tokenizer import WordPiece
from minibert.train import Loop, LoopSettings

ROOT = Path(__file__).resolve().parents[1]
SMALL: dict[str, int] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark that prints docs/scaling.md's tables; it lies outside the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.scaling")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_parameters_are_those_of_the_network(name: str) -> None:
    with torch.device("meta"):
        model = BertForPreTraining(PRESETS[name])
    assert num_parameters(PRESETS[name]) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("form", [{}, {"norm": "pre", "feed_forward": "gated"}])
def test_parameters_of_a_writing_model_are_those_of_the_network(form: dict[str, Any]) -> None:
    config = BertConfig(vocab_size=700, **SMALL, **form)
    decoder = DecoderConfig(target_vocab_size=300, num_decoder_layers=3, max_target_positions=77)
    with torch.device("meta"):
        model = BertForConditionalGeneration(decoder.added_to(config))
    counted = sum(p.numel() for p in model.parameters())
    assert num_parameters(config, decoder) == counted
    memory = step_memory(decoder.added_to(config), [9, 7], 0, "fp32", target_lengths=[5, 4])
    assert (memory.weights, memory.gradients) == (4 * counted, 4 * counted)


@pytest.mark.parametrize(("precision", "dropout"), [(p, 0.1 * d) for p, d in HELD_BY_DECODER])
def test_activations_of_a_decoder_are_what_autograd_keeps(
    scaling: Any, precision: str, dropout: float
) -> None:
    """Within 5 %, at another width, depth, vocabulary and other lengths than the factors'."""
    sizes = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, **SMALL}
    config = BertConfig(vocab_size=700, **sizes)
    config = DecoderConfig(900, 4, max_target_positions=60).added_to(config)
    count = num_parameters(config, DecoderConfig.of(config))
    told = held_bytes(config, [24] * 20, 0, precision, count, target_lengths=[48] * 20)
    assert scaling.kept_with_decoder(config, 20, 24, 48, precision) == pytest.approx(told, rel=0.05)


def test_what_is_not_trained_has_neither_gradients_nor_moments() -> None:
    memory = step_memory(preset("tiny"), [9], 0, "fp32", 1000, trained=300)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4000, 1200, 2400)


@pytest.mark.parametrize(("precision", "dropout"), [(p, 0.1 * d) for p, d in HELD])
def test_activations_are_what_autograd_keeps(scaling: Any, precision: str, dropout: float) -> None:
    """Within 10 %, at another width, depth, length and vocabulary than the factors come from."""
    config = BertConfig(
        vocab_size=700,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **SMALL,
    )
    told = held_bytes(config, [96] * 12, 12 * 14, precision)
    assert scaling.kept_bytes(config, 12, 96, 14, precision) == pytest.approx(told, rel=0.10)


STEPS = """
import torch
from minibert.config import BertConfig
from minibert.heads import BertForPreTraining
from minibert.optim import build_optimizer
from minibert.pretraining_data import pretraining_terms
from minibert.runtime import start_runtime

def peak():  # ru_maxrss would begin at that of the process that started this one
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def two_steps(batch, length, **sizes):
    model = BertForPreTraining(BertConfig(vocab_size=1000, **sizes))
    optimizer = build_optimizer(model, 1e-3, 0.01)
    ids = torch.randint(5, 1000, (batch, length))
    ones, slots = torch.ones_like(ids), torch.randint(length, (batch, length // 7))
    data = {"input_ids": ids, "attention_mask": ones, "token_type_ids": 0 * ones,
            "mlm_positions": slots, "mlm_labels": slots + 5,
            "next_sentence_label": torch.arange(batch) % 2}
    for _ in range(2):
        terms = pretraining_terms(model, data)
        sum(term.loss_sum for term in terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

start_runtime("cpu", "fp32", True)
two_steps(2, 16, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
before = peak()  # libraries and their threads are there
two_steps(16, 128, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
          intermediate_size=1024)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of other systems were not measured")
def test_peak_memory_of_a_real_step_is_what_was_told() -> None:
    """What the process grows by through two steps of a small model, within 20 %."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, env=environment
    )
    told = step_memory(preset("mini", vocab_size=1000), [128] * 16, 16 * 18, "fp32")
    assert json.loads(done.stdout) == pytest.approx(told.total, rel=0.20)


def test_more_of_anything_takes_more_memory() -> None:
    def total(lengths: list[int], slots: int = 20, **sizes: int) -> float:
        return step_memory(preset("mini", **sizes), lengths, slots, "bf16").total

    base = total([100, 50])
    assert base < total([100, 51]) < total([101, 51])
    assert base < total([100, 50, 1])
    assert base < total([100, 50], slots=21)
    assert base < total([100, 50], vocab_size=31_000)
    assert base < total([100, 50], num_hidden_layers=5)
    config = DecoderConfig(30_000, 2).added_to(preset("mini"))
    written = [
        step_memory(config, [100, 50], 0, "bf16", target_lengths=m).total
        for m in ((), [9, 9], [9, 10], [60, 60])
    ]
    assert written == sorted(written)
    assert len(set(written)) == 4
    # As many tokens in one sequence have more pairs to attend to, unless none are kept.
    assert base < total([150])
    one, two = (
        step_memory(preset("mini"), lengths, 0, "bf16", fused_attention=True)
        for lengths in ([150], [75, 75])
    )
    assert one == two


def test_shards_part_all_but_the_activations() -> None:
    config = preset("base")
    whole, parted = (step_memory(config, [512], 77, "bf16", shards=n) for n in (1, 8))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(parted, name) == getattr(whole, name) / 8
    assert parted.activations == whole.activations
    assert whole.weights + whole.gradients + whole.optimizer == 16 * num_parameters(config)


@pytest.mark.parametrize("keeps_best", [False, True])
def test_a_run_folder_is_never_larger_than_what_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps_best: bool
) -> None:
    """The third checkpoint is written while two are there; the most is told to 5 %."""
    model = nn.Linear(200, 500, bias=False)
    optimizer = build_optimizer(model, 1e-3, 0.01)
    model(torch.ones(1, 200)).sum().backward()
    optimizer.step()
    sizes, rename = [], Path.rename

    def measuring(source: Path, target: Path) -> Path:
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        sizes.append(sum(path.stat().st_size for path in files))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", measuring)
    for step in range(1, 6):
        if keeps_best:
            save_best(tmp_path, step, model)
        best = step if keeps_best else 0
        save_checkpoint(tmp_path, step, model, optimizer, {"loop": {"best_step": best}})
    assert max(sizes) == pytest.approx(run_folder_bytes(100_000, keeps_best), rel=0.05)


@pytest.mark.parametrize(
    ("budget", "every", "evaluations"),
    [
        (Budget(max_steps=100), None, 10),
        (Budget(max_steps=4), None, 4),
        (Budget(max_steps=100), 30, 4),  # after 30, 60, 90 and the last
        (Budget(max_steps=90), 30, 3),
        (Budget(epochs=2.0), 30, 4),
        (Budget(seconds=500.0), 30, 0),  # they lie within it
    ],
)
def test_all_scoring_is_in_the_hours_that_are_told(
    budget: Budget, every: int | None, evaluations: int
) -> None:
    loop = object.__new__(Loop)
    loop.settings = LoopSettings(1e-3, budget, eval_every=every)
    seconds = runs._scored_seconds(loop, 100.0, runs.Scoring(evaluation=3.0, end=20.0))
    assert seconds == evaluations * 3.0 + 20.0


def test_all_gpus_are_paid_for_all_of_the_time() -> None:
    told = [runs._cost(7200.0, 1800.0, *of) for of in (("cpu", 2), ("cuda", 1), ("cuda", 8))]
    assert told == [
        "2 hours of this machine, 25% of them scoring; times what an hour of it costs you",
        "2 hours of 1 GPU, 25% of them scoring; times what a GPU-hour costs you",
        "2 hours of 8 GPUs = 16 GPU-hours, 25% of them scoring; times what a GPU-hour costs you",
    ]


def test_bytes_are_told_in_a_fitting_unit() -> None:
    told = [told_bytes(x) for x in (4e5, 3.1e8, 1.4e9, 2e12)]
    assert told == ["0 MB", "310 MB", "1.4 GB", "2.0 TB"]


def test_encoding_is_as_fast_as_the_cores_until_one_process_reads_no_faster() -> None:
    one, two, many, more = (encoding(1e9, cores) for cores in (1, 2, 64, 128))
    assert one.tokens == 1e9 * TOKENS_PER_BYTE
    assert one.store_bytes == one.tokens * STORED_BYTES_PER_TOKEN
    assert one.seconds == 2 * two.seconds == pytest.approx(1e3 / ENCODED_MB_PER_CORE_SECOND)
    assert many.seconds == more.seconds == pytest.approx(1e3 / READER_MB_PER_SECOND)


def test_the_document_holds_the_tables_that_the_command_prints(scaling: Any) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in (scaling.corpus_table(), scaling.memory_table(), scaling.time_table()):
        assert table in text
    figures = [TOKENS_PER_BYTE, STORED_BYTES_PER_TOKEN, ENCODED_MB_PER_CORE_SECOND]
    for figure in (*figures, *PASS_TOKENS.values()):
        assert f"{figure:g}" in text


def test_figures_of_text_are_those_that_were_measured() -> None:
    """To 3 %, of 100 MB; the reader's alone of 1,000, where what a start takes counts least."""
    path = ROOT / "docs" / "benchmarks" / "benchmarks.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    work, long = found["corpus/100-MB"], found["corpus/1000-MB"]
    (row,) = work["stages"]["encode"]
    cores = int(work["environment"]["cores"])
    speed = work["bytes"] / 1e6 / row["seconds"] / cores
    assert row["tokens"] / work["bytes"] == pytest.approx(TOKENS_PER_BYTE, rel=0.03)
    assert row["store_bytes"] / row["tokens"] == pytest.approx(STORED_BYTES_PER_TOKEN, rel=0.03)
    assert speed == pytest.approx(ENCODED_MB_PER_CORE_SECOND, rel=0.03)
    reader = long["bytes"] / 1e6 / long["stages"]["encode"][0]["main_seconds"]
    assert reader == pytest.approx(READER_MB_PER_SECOND, rel=0.03)


@pytest.mark.parametrize(("nsp", "within"), [("nsp", 0.16), ("sop", 0.08), ("none", 0.02)])
def test_a_pass_has_as_many_tokens_as_were_told(tmp_path: Path, nsp: str, within: float) -> None:
    """Of the sample, whose documents are a fifth as long: more of their pairs end early."""
    model = ROOT / "minibert" / "models" / "minibert-small-en"
    tokenizer = WordPiece.from_pretrained(model)
    text = [ROOT / "data" / "wiki.txt"]
    store = open_store(text, tokenizer, ReaderOptions(), tmp_path, num_processes=1)
    documents, _ = split_documents(store, nsp)
    builder = ExampleBuilder(store, tokenizer, documents, ExampleOptions(128, nsp=nsp))
    tokens = passed = 0
    for position in range(len(documents)):
        offsets = documents.offsets(position)
        tokens += int(offsets[-1] - offsets[0])
        passed += sum(len(example.input_ids) for example in builder.build(0, 0, position))
    assert passed / tokens == pytest.approx(PASS_TOKENS[nsp], rel=within)


def test_the_time_of_a_pass_counts_every_token_of_it(scaling: Any) -> None:
    config, slots = preset("base"), round(scaling.MEAN_LENGTH * scaling.MASKED)
    a_sequence = training_flops(config, [scaling.MEAN_LENGTH], slots)
    tokens = scaling.epoch_flops("base", 10) / a_sequence * scaling.MEAN_LENGTH
    assert tokens == pytest.approx(10e9 * TOKENS_PER_BYTE * PASS_TOKENS["nsp"])


def test_factors_are_those_that_counting_gives(scaling: Any) -> None:
    found = scaling.count_held("fp32", 0.1)
    assert found == pytest.approx(tuple(HELD["fp32", True]), rel=0.1, abs=0.5)


@pytest.mark.parametrize("build", [build_optimizer, build_muon])
def test_moments_are_those_that_the_optimiser_holds(tiny_config: BertConfig, build: Any) -> None:
    """Muon has one for each of the layers' matrices, so that a run takes less than with AdamW."""
    model = BertForPreTraining(tiny_config)
    loop: Any = SimpleNamespace(optimizer=build(model, 1e-3, 0.01))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loop.optimizer.step()
    parameters = sum(p.numel() for p in model.parameters())
    named = model.named_parameters()
    matrices = sum(p.numel() for n, p in named if ".layers." in n and p.ndim == 2)
    spared = matrices if build is build_muon else 0
    moments = runs._held_moments(loop)
    assert moments == 2 * parameters - spared
    told = run_folder_bytes(parameters, moments=moments / parameters)
    assert told == 3 * 4 * (parameters + moments)
