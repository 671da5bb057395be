"""The pretraining step: ours against Hugging Face's model on the same batches.

    python -m benchmarks --only pretraining/mini-128

HF plain is transformers' BertForPreTraining as it comes: fp32, padded to the batch's longest. HF
best is the same with bf16 autocast, torch.compile and an allocator that keeps its memory and asks
for large pages, which a knowing user can have. Ours is `Loop.take_step`, the very code that
`pretrain.py` runs, with its defaults. Forward, backward, clipping (ours alone) and AdamW are timed;
batches are made beforehand.

As in a real run, no batch comes twice, so no two have the same shape. Each variant runs for
half a minute before it is timed, and on until the memory it holds is steady (at most three
minutes): large blocks that are new cost a tenth of a step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.lengths import draw_lengths
from benchmarks.turns import KEEP_MEMORY, Variant
from minibert import runs
from minibert.config import BertConfig, preset
from minibert.examples import Example, collate
from minibert.flops import training_flops
from minibert.heads import BertForPreTraining
from minibert.losses import IGNORE_INDEX
from minibert.optim import Budget, build_optimizer
from minibert.packing import copied
from minibert.pretraining_data import pretraining_terms
from minibert.runtime import start_runtime
from minibert.train import Loop, LoopSettings, StepData

_VOCABULARY = 30_522
_CLS, _SEP, _MASK, _FIRST = 101, 102, 103, 999  # of the published vocabulary
SETTLE_SECONDS, TURN_SECONDS = 30.0, 2.0  # of every variant
_BATCHES = 256  # more than any variant takes
_BATCHES_ON_GPU = 8  # large ones


@dataclass(frozen=True)
class Work:
    """What is computed: a model's size, batches of so many sequences, how long they are."""

    size: str
    max_seq_length: int
    batch_size: int
    lengths: str  # a kind of `draw_lengths`
    device: str = "cpu"

    @property
    def config(self) -> BertConfig:
        return preset(self.size, vocab_size=_VOCABULARY)


WORKS = {
    "mini-128": Work("mini", 128, 32, "mixed"),
    "small-128": Work("small", 128, 32, "mixed"),
    "base-128": Work("base", 128, 8, "mixed"),
    "mini-512": Work("mini", 512, 8, "mixed"),
    "mini-128-paired": Work("mini", 128, 32, "paired"),
    "mini-512-paired": Work("mini", 512, 8, "paired"),
    "mini-128-full": Work("mini", 128, 32, "full"),
}


def make_batches(work: Work, count: int = _BATCHES) -> list[list[Example]]:
    """The same masked pairs for everybody: made-up ids, 15 % of them to be predicted."""
    rng = np.random.default_rng(0)
    return [_make_batch(work, rng) for _ in range(count)]


def _make_batch(work: Work, rng: np.random.Generator) -> list[Example]:
    batch = []
    for n in draw_lengths(work.lengths, work.max_seq_length, work.batch_size, rng).tolist():
        ids = _FIRST + rng.zipf(1.2, n) % (_VOCABULARY - 1000)
        first = n // 2
        ids[0], ids[first - 1], ids[-1] = _CLS, _SEP, _SEP
        ordinary = np.flatnonzero(ids >= _FIRST)
        chosen = np.sort(rng.permutation(ordinary)[: max(1, round(0.15 * n))])
        labels = ids[chosen]
        ids[chosen] = _MASK
        batch.append(Example(ids, first, chosen, labels, int(rng.integers(2))))
    return batch


def useful(work: Work, batch: list[Example]) -> dict[str, float]:
    """Tokens and operations that the work needs, whoever does it."""
    lengths = [len(e.input_ids) for e in batch]
    predictions = sum(len(e.mlm_positions) for e in batch)
    return {"tokens": sum(lengths), "flops": training_flops(work.config, lengths, predictions)}


class Ours:
    """`Loop.take_step` with the defaults of `pretrain.py`."""

    def __init__(self, deterministic: bool = True, compiled: bool = False, **work: Any) -> None:
        self.work = Work(**work)
        self.slots = max(1, round(0.15 * self.work.max_seq_length))
        self.batches, self.number = make_batches(self.work, self._num_batches), 0
        runtime = start_runtime(self.work.device, "auto", deterministic)
        torch.manual_seed(0)
        model = BertForPreTraining(self.work.config).train().to(runtime.device)
        self.loop = Loop(
            model,
            self,
            pretraining_terms,
            build_optimizer(model, 1e-4, 0.01),
            LoopSettings(1e-4, Budget(max_steps=10_000)),
            runtime,
            None,
            evaluate=dict,
            forward=runs.compiled(model, model, runtime) if compiled else None,
        )

    @property
    def _num_batches(self) -> int:
        return _BATCHES if self.work.device == "cpu" else _BATCHES_ON_GPU

    epochs_done = 0.0

    def state(self) -> dict[str, int]:
        return {}

    def seek(self, state: dict[str, int]) -> None:
        """There is one position."""

    def take(self) -> StepData:
        examples = self.batches[self.number % len(self.batches)]
        batch = collate(examples, self.slots)
        counts = {"mlm": sum(len(e.mlm_positions) for e in examples), "nsp": len(examples)}
        lengths = [len(e.input_ids) for e in examples]
        return StepData([batch], counts, lengths, batch["input_ids"].numel())

    def step(self) -> dict[str, float]:
        self.loop.take_step()
        return useful(self.work, self.batches[self.number % len(self.batches)])


def transformers_config(config: BertConfig) -> Any:
    """The same size for transformers, with PyTorch's fused attention."""
    import transformers

    return transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        attn_implementation="sdpa",
    )


class HuggingFace:
    """transformers' BertForPreTraining, plain or as fast as settings make it."""

    def __init__(self, best: bool, **work: Any) -> None:
        import transformers

        self.work, self.best = Work(**work), best
        self.device = torch.device(self.work.device)
        self.batches, self.number = make_batches(self.work, self._num_batches), 0
        torch.manual_seed(0)
        theirs = transformers_config(self.work.config)
        self.model = transformers.BertForPreTraining(theirs).train().to(self.device)
        self.forward = torch.compile(self.model) if best else self.model
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
        self.padded: dict[int, list[torch.Tensor]] = {}
        if best:
            self._compile()

    _num_batches = Ours._num_batches

    def _compile(self) -> None:
        """Compiles before anything is timed: for one length, and for any once it has seen two.

        On a GPU for the length that all large batches have and any number of sequences: with few of
        them, unless the scores of whole batches are so many that the code has to count in 64 bits.
        """
        if self.device.type == "cuda":
            longest_first = sorted(self.batches[0], key=lambda e: -len(e.input_ids))
            tokens = self.work.max_seq_length * self.work.batch_size
            few = longest_first[:8] if tokens * _VOCABULARY < 1 << 31 else longest_first
            self._train(self._pad(few), is_any_number=True)
            return
        longest = [max(len(e.input_ids) for e in batch) for batch in self.batches]
        for length in sorted(set(longest))[:2]:
            self.number = longest.index(length)
            self.step()

    def step(self) -> dict[str, float]:
        number = self.number % len(self.batches)
        examples = self.batches[number]
        if self.device.type != "cuda":
            padded = self._pad(examples)
        else:  # few batches, which come again, and workers of a loader would make them
            if number not in self.padded:
                self.padded[number] = self._pad(examples)
            padded = self.padded[number]
        self._train(padded)
        return useful(self.work, examples)

    def _train(self, padded: list[torch.Tensor], is_any_number: bool = False) -> None:
        """One step; code is compiled for any number of sequences where that is asked for."""
        parts = [copied(part, self.device) for part in padded]
        if is_any_number:
            for part in parts:
                torch._dynamo.mark_dynamic(part, 0)
        ids, types, mask, labels, pairs = parts
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.best):
            out = self.forward(
                input_ids=ids,
                token_type_ids=types,
                attention_mask=mask,
                labels=labels,
                next_sentence_label=pairs,
            )
        out.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def _pad(examples: list[Example]) -> list[torch.Tensor]:
        """Ids, segments, mask, labels and pairs, on the host."""
        longest = max(len(e.input_ids) for e in examples)
        ids, types, mask = torch.zeros(3, len(examples), longest, dtype=torch.long)
        labels = torch.full_like(ids, IGNORE_INDEX)
        for row, example in enumerate(examples):
            n = len(example.input_ids)
            ids[row, :n] = torch.from_numpy(example.input_ids)
            types[row, example.first_length : n] = 1
            mask[row, :n] = 1
            labels[row, torch.from_numpy(example.mlm_positions)] = torch.from_numpy(
                example.mlm_labels
            )
        pairs = torch.tensor([e.next_sentence_label for e in examples])
        return [ids, types, mask, labels, pairs]


def variants(work: Work) -> list[Variant]:
    """The rows of the table."""
    arguments = asdict(work)
    return [
        Variant("HF plain", f"{__spec__.name}:HuggingFace", {"best": False, **arguments}),
        Variant(
            "HF best", f"{__spec__.name}:HuggingFace", {"best": True, **arguments}, KEEP_MEMORY
        ),
        Variant("minibert", f"{__spec__.name}:Ours", arguments),
    ]
