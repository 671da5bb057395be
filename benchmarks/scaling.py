"""Growth on paper: memory, time and cost of base and large from measured constants.

    python -m benchmarks.scaling             prints the tables of docs/scaling.md
    python -m benchmarks.scaling --count     counts what a step keeps for its backward pass

Figures in capitals are measured by us (those of text in `minibert/estimate.py`, with the command
beside them), or assumed, with the source.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from minibert import fitting
from minibert.config import BertConfig, preset
from minibert.decoder_config import DecoderConfig
from minibert.estimate import (
    PASS_TOKENS,
    TOKENS_PER_BYTE,
    Memory,
    encoding,
    num_parameters,
    run_folder_bytes,
    step_memory,
)
from minibert.fitting import Trial
from minibert.flops import training_flops
from minibert.heads import BertForPreTraining
from minibert.pretraining_data import pretraining_terms
from minibert.runtime import start_runtime
from minibert.seq2seq import BertForConditionalGeneration
from minibert.train import Batch, Term

MEAN_LENGTH = 117  # tokens of a pair at --max-seq-length 128
MASKED = 0.15

# Assumed; none of it measured by us.
PEAK_FLOPS = 312e12  # bf16, dense: NVIDIA's data sheet of the A100
UTILISATIONS = (0.45, 0.24)  # NVIDIA's BERT-large, Hugging Face's BERT-base; see docs/scaling.md
EFFICIENCY = 0.93  # of many GPUs: NVIDIA's BERT-large on 256 against one
DOLLARS_PER_GPU_HOUR = 2.2  # MosaicBERT: $20 for 1.13 hours of 8 A100

_SEQUENCES = 64  # of a forward pass on a GPU


def corpus_table() -> str:
    """Tokens, disk and encoding time of a corpus."""
    cores = (2, 16, 64)
    rows = [["text, GB", "tokens, G", "store, GB", *(f"hours on {n} cores" for n in cores)]]
    for gigabytes in (10, 100, 1000):
        found = [encoding(gigabytes * 1e9, n) for n in cores]
        sizes = [f"{size / 1e9:.1f}" for size in (found[0].tokens, found[0].store_bytes)]
        hours = [f"{one.seconds / 3600:.1f}" for one in found]
        rows.append([str(gigabytes), *sizes, *hours])
    return _markdown(rows)


def memory_of(name: str, shards: int) -> Memory:
    """A step of 64 sequences on each GPU, in bf16 with dropout and fused attention."""
    slots = _SEQUENCES * round(128 * MASKED)
    lengths = [MEAN_LENGTH] * _SEQUENCES
    return step_memory(preset(name), lengths, slots, "bf16", shards=shards, fused_attention=True)


def memory_table() -> str:
    """GB of a step on each GPU, whole on every one (DDP) or parted (FSDP), and of a run folder."""
    rows = [["", "parameters, M", "activations", "in all, DDP", "FSDP, 8", "FSDP, 64", "folder"]]
    for name in ("base", "large"):
        count = num_parameters(preset(name))
        memory = memory_of(name, 1)
        sizes = [memory.activations, memory.total]
        sizes += [memory_of(name, shards).total for shards in (8, 64)]
        sizes.append(run_folder_bytes(count))
        rows.append([name, f"{count / 1e6:.1f}", *(f"{size / 1e9:.1f}" for size in sizes)])
    return _markdown(rows)


def epoch_flops(name: str, gigabytes: float) -> float:
    """Useful operations of one pass over a corpus, in pairs of the mean length."""
    sequences = gigabytes * 1e9 * TOKENS_PER_BYTE * PASS_TOKENS["nsp"] / MEAN_LENGTH
    return sequences * training_flops(preset(name), [MEAN_LENGTH], round(MEAN_LENGTH * MASKED))


def time_table() -> str:
    """Hours and dollars of one pass, at the higher and (in brackets) the lower utilisation."""
    gpus = (1, 8, 64)
    head = ["", "text, GB", "EFLOP", *(f"hours on {n}" for n in gpus), "dollars on 8 or 64"]
    rows = [head]
    for name in ("base", "large"):
        for gigabytes in (10, 100, 1000):
            flops = epoch_flops(name, gigabytes)
            alone = [flops / (PEAK_FLOPS * use) / 3600 for use in UTILISATIONS]
            shared = [hours / EFFICIENCY for hours in alone]
            cells = [_pair(alone)] + [_pair([hours / n for hours in shared]) for n in gpus[1:]]
            cells.append(_pair([hours * DOLLARS_PER_GPU_HOUR for hours in shared]))
            rows.append([name, str(gigabytes), f"{flops / 1e18:,.0f}", *cells])
    return _markdown(rows)


def _pair(values: list[float]) -> str:
    best, worst = (f"{v:,.1f}" if v < 10 else f"{v:,.0f}" for v in values)
    return f"{best} ({worst})"


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def kept_bytes(config: BertConfig, batch: int, length: int, slots: int, precision: str) -> int:
    """Bytes that autograd keeps of a forward pass over full sequences, weights left out."""
    torch.manual_seed(0)
    model = BertForPreTraining(config)
    runtime = start_runtime("cpu", precision, deterministic=True)
    inputs = {
        "input_ids": torch.randint(5, config.vocab_size, (batch, length)),
        "token_type_ids": torch.zeros(batch, length, dtype=torch.int64),
        "attention_mask": torch.ones(batch, length, dtype=torch.int64),
        "mlm_positions": torch.randint(length, (batch, slots)),
        "mlm_labels": torch.randint(5, config.vocab_size, (batch, slots)),
        "next_sentence_label": torch.randint(2, (batch,)),
    }
    trial = Trial(model, model, pretraining_terms, lambda size: inputs, runtime)
    return fitting.kept_bytes(trial, batch)


def count_held(precision: str, dropout: float) -> tuple[float, float, float, float]:
    """The factors of `estimate.Held`, from how the bytes kept grow with each size by itself."""
    tokens, width, heads = 2048, 256, 4

    def kept(layers: int, length: int = 128, vocabulary: int = 100, slots: int = 4) -> float:
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        batch = tokens // length
        copies = 2 * num_parameters(config) if precision == "bf16" else 0
        return kept_bytes(config, batch, length, slots, precision) - copies

    by_layer = kept(2) - kept(1)
    score = (by_layer - (kept(2, 64) - kept(1, 64))) / (heads * tokens * 64)
    layer = (by_layer - heads * tokens * 128 * score) / (width * tokens)
    word = (kept(1, vocabulary=10_100) - kept(1)) / (width * 10_000)
    rows = tokens // 128 * (4 + 1)  # that the last layer computes: slots and first tokens
    in_rows = layer * width * rows + word * width * 100
    outer = (kept(1) - in_rows - heads * tokens * 128 * score) / (width * tokens)
    return layer, score, outer, word


def kept_with_decoder(
    config: BertConfig, batch: int, length: int, target_length: int, precision: str
) -> int:
    """The same of a model that writes, whose decoder the config carries."""
    torch.manual_seed(0)
    model = BertForConditionalGeneration(config)
    runtime = start_runtime("cpu", precision, deterministic=True)
    words = DecoderConfig.of(config).target_vocab_size
    inputs = {
        "input_ids": torch.randint(5, config.vocab_size, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.int64),
        "labels": torch.randint(5, words, (batch, target_length)),
    }

    def objective(forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        return {"task": Term(*forward(**batch).score)}

    trial = Trial(model, model, objective, lambda size: inputs, runtime)
    return fitting.kept_bytes(trial, batch)


def count_held_by_decoder(
    precision: str, dropout: float
) -> tuple[float, float, float, float, float]:
    """The factors of `estimate.HeldByDecoder`, counted likewise."""
    batch, width, heads = 16, 256, 4

    def kept(layers: int, m: int = 64, n: int = 64, vocabulary: int = 100, encoder: int = 1) -> int:
        config = BertConfig(
            vocab_size=100,
            hidden_size=width,
            num_hidden_layers=encoder,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        decoder = DecoderConfig(vocabulary, layers, 128)
        copies = 2 * num_parameters(config, decoder) if precision == "bf16" else 0
        return kept_with_decoder(decoder.added_to(config), batch, n, m, precision) - copies

    def by_layer(m: int, n: int) -> float:
        return (kept(2, m, n) - kept(1, m, n)) / batch

    both, few, short = by_layer(64, 64), by_layer(32, 64), by_layer(64, 32)
    # target D m + source D n + score H (m m + m n), at three pairs of lengths and a fourth.
    score = (both - few - short + by_layer(32, 32)) / (heads * 32 * 32)
    target = (both - few - score * heads * (64 * 128 - 32 * 96)) / (width * 32)
    source = (both - short - score * heads * 64 * 32) / (width * 32)
    word = (kept(1, vocabulary=10_100) - kept(1)) / (width * 10_000)
    outer = (kept(1) - kept(1, 32)) / (batch * width * 32) - (both - few) / (width * 32)
    return target, source, score, outer, word


def _print_factors(precision: str, dropout: float, factors: tuple[float, ...]) -> None:
    held = " | ".join(f"{value:.1f}" for value in factors)
    print(f"| {precision}, dropout {dropout} | {held} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", action="store_true", help="count what autograd keeps")
    if parser.parse_args().count:
        print("| | layer | score | outer | word |\n|---|---|---|---|---|")
        for precision in ("fp32", "bf16"):
            for dropout in (0.1, 0.0):
                _print_factors(precision, dropout, count_held(precision, dropout))
        print("\n| | target | source | score | outer | word |\n|---|---|---|---|---|---|")
        for precision in ("fp32", "bf16"):
            for dropout in (0.1, 0.0):
                _print_factors(precision, dropout, count_held_by_decoder(precision, dropout))
        return
    print("\n\n".join([corpus_table(), memory_table(), time_table()]))


if __name__ == "__main__":
    main()
