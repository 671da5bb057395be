"""The fine-tuning step: ours against Hugging Face's model on the same labelled sequences.

    python -m benchmarks --only finetuning

A classifier on 6 layers of 384 (12 heads, 1,536 inside, vocabulary 30,522), 16 sequences of at most
256 tokens a step, as long as IMDb's reviews are (42 % cut, 80 % full) or of mixed length (60 %). HF
plain is the usual loop: transformers' BertForSequenceClassification in fp32 with
padding="max_length". HF dynamic pads to the longest of the batch. HF best has batches of similar
length, bf16 autocast and an allocator that keeps its memory; with torch.compile, which wants few
lengths (multiples of 64), it measured 0.76 times as fast, so it is not compiled. Ours is
`Loop.take_step` over `TaskData`, the very code that `finetune.py` runs, with its
defaults. Forward, backward, clipping (ours alone) and AdamW are timed, two batches at a time, for
with batches of similar length no two cost the same. Each variant runs for half a minute
before it is timed, and on until the memory it holds is steady (at most three minutes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.lengths import draw_lengths
from benchmarks.pretraining import transformers_config
from benchmarks.turns import KEEP_MEMORY, Variant
from minibert import runs
from minibert.config import BertConfig
from minibert.flops import training_flops
from minibert.heads import BertForSequenceClassification
from minibert.optim import Budget, build_optimizer
from minibert.packing import copied
from minibert.runtime import start_runtime
from minibert.settings import FinetuneSettings
from minibert.tasks.batches import Feature, TaskData, pad
from minibert.tasks.classification import ClassificationTask, classification_terms
from minibert.train import Loop, LoopSettings, StepData

_CLS, _SEP, _FIRST = 101, 102, 999  # of the published vocabulary
SETTLE_SECONDS, TURN_SECONDS = 30.0, 2.0  # of every variant
_BATCHES, _TIMED_TOGETHER = 64, 2


@dataclass(frozen=True)
class Work:
    """What is computed: a model's shape, batches of so many sequences, how long they are."""

    layers: int
    hidden: int
    heads: int
    vocab_size: int
    max_seq_length: int
    batch_size: int
    lengths: str  # a kind of `draw_lengths`
    device: str = "cpu"

    @property
    def config(self) -> BertConfig:
        return BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.hidden,
            problem_type="single_label_classification",
            id2label={0: "neg", 1: "pos"},
        )


WORKS = {
    "imdb-256": Work(6, 384, 12, 30_522, 256, 16, "imdb"),
    "mixed-256": Work(6, 384, 12, 30_522, 256, 16, "mixed"),
}


def make_examples(work: Work) -> tuple[list[np.ndarray], np.ndarray]:
    """The same sequences, [CLS] made-up ids [SEP], and labels for everybody."""
    rng = np.random.default_rng(0)
    count = _BATCHES * work.batch_size
    sequences = []
    for n in draw_lengths(work.lengths, work.max_seq_length, count, rng).tolist():
        ids = _FIRST % work.vocab_size + rng.zipf(1.2, n) % (work.vocab_size // 2)
        ids[0], ids[-1] = _CLS % work.vocab_size, _SEP % work.vocab_size
        sequences.append(ids)
    return sequences, rng.integers(0, 2, count)


def useful(work: Work, lengths: list[int]) -> dict[str, float]:
    """Tokens and operations that the work needs, whoever does it."""
    return {"tokens": sum(lengths), "flops": training_flops(work.config, lengths)}


class _Recorded(TaskData):
    """Remembers how long the sequences of the steps were."""

    lengths: list[int]

    def take(self) -> StepData:
        step = super().take()
        self.lengths += step.lengths
        return step


class Ours:
    """`Loop.take_step` with the defaults of `finetune.py`."""

    def __init__(self, deterministic: bool = True, compiled: bool = False, **work: Any) -> None:
        self.work = Work(**work)
        size = self.work.batch_size
        runtime = start_runtime(self.work.device, "auto", deterministic)
        torch.manual_seed(0)
        model = BertForSequenceClassification(self.work.config).train().to(runtime.device)
        examples = zip(*make_examples(self.work), strict=True)
        features = [Feature({"input_ids": ids}, {"labels": int(label)}) for ids, label in examples]
        count = ClassificationTask(FinetuneSettings(task="imdb")).count
        self.data = _Recorded(features, lambda f: pad(f, 0), count, size, size, 0)
        self.loop = Loop(
            model,
            self.data,
            classification_terms,
            build_optimizer(model, 2e-4, 0.01),
            LoopSettings(2e-4, Budget(max_steps=10_000)),
            runtime,
            None,
            evaluate=dict,
            forward=runs.compiled(model, model, runtime) if compiled else None,
        )

    def step(self) -> dict[str, float]:
        self.data.lengths = []
        for _ in range(_TIMED_TOGETHER):
            self.loop.take_step()
        return useful(self.work, self.data.lengths)


class HuggingFace:
    """transformers' BertForSequenceClassification, plain or as fast as settings make it.

    Args:
        padding: "max_length", "dynamic" or "buckets".
        bf16: autocast. compiled: by torch.compile.
    """

    def __init__(self, padding: str, bf16: bool, compiled: bool = False, **work: Any) -> None:
        import transformers

        self.work, self.bf16, self.padding = Work(**work), bf16, padding
        torch.manual_seed(0)
        theirs = transformers_config(self.work.config)
        self.device = torch.device(self.work.device)
        self.model = transformers.BertForSequenceClassification(theirs).train().to(self.device)
        self.forward = torch.compile(self.model) if compiled else self.model
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.01, fused=True)
        self.batches = self._endless()

    def _endless(self) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Batches of the examples in random order, or of similar length, epoch after epoch."""
        sequences, labels = make_examples(self.work)
        size, rng = self.work.batch_size, np.random.default_rng(1)
        while True:
            order = rng.permutation(len(sequences))
            if self.padding == "buckets":
                order = order[np.argsort([len(sequences[i]) for i in order], kind="stable")]
            batches = order.reshape(-1, size)
            for batch in batches[rng.permutation(len(batches))]:
                yield [sequences[i] for i in batch], labels[batch]

    def _padded(self, sequences: list[np.ndarray]) -> dict[str, torch.Tensor]:
        batch = pad([Feature({"input_ids": ids}, {}) for ids in sequences], 0)
        if self.padding != "max_length":
            return batch
        more = (0, self.work.max_seq_length - batch["input_ids"].shape[1])
        return {name: torch.nn.functional.pad(part, more) for name, part in batch.items()}

    def step(self) -> dict[str, float]:
        lengths: list[int] = []
        for _ in range(_TIMED_TOGETHER):
            sequences, labels = next(self.batches)
            batch = self._padded(sequences) | {"labels": torch.from_numpy(labels)}
            batch = {name: copied(part, self.device) for name, part in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                out = self.forward(**batch)
            out.loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            lengths += map(len, sequences)
        return useful(self.work, lengths)


def variants(work: Work) -> list[Variant]:
    """The rows of the table."""
    theirs = f"{__spec__.name}:HuggingFace"
    plain = {"padding": "max_length", "bf16": False, **asdict(work)}
    best = plain | {"padding": "buckets", "bf16": True}
    return [
        Variant("HF plain", theirs, plain),
        Variant("HF dynamic", theirs, plain | {"padding": "dynamic"}),
        Variant("HF best", theirs, best, KEEP_MEMORY),
        Variant("minibert", f"{__spec__.name}:Ours", asdict(work)),
    ]
