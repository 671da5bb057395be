"""Sentence pairs and masks: how fast they are made, and their share of a pretraining step.

    python -m benchmarks --only pairs --text enwiki-00.txt.xz

"pairs and masks" is what `pretrain.py` does for a batch before the network sees it: taking examples
from an `ExampleStream` (pairs within and across the borders of documents, dynamic masks) and
`collate`. "a step" is the pretraining step of the same size on made-up batches of the same lengths.
transformers' DataCollatorForLanguageModeling masks ready-made sequences and builds no pairs.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import pretraining, turns
from benchmarks.text import OPTIONS, write_text
from minibert.documents import split_documents as split
from minibert.example_stream import ExampleStream
from minibert.examples import ExampleBuilder, ExampleOptions, collate
from minibert.store import open_store
from minibert.tokenizer import WordPiece
from minibert.vocabulary import corpus_vocabulary

_BATCHES = 512  # in a timed step: examples are built some thousands at once, so over several times
_MASKED_BATCHES = 64
_MEGABYTES, _VOCABULARY = 20, 8192


@dataclass(frozen=True)
class Work:
    """The pretraining step whose examples are made."""

    size: str
    max_seq_length: int
    batch_size: int


READS_TEXT = True
WORKS = {"mini-128": Work("mini", 128, 32)}


class Pairs:
    """Batches of masked pairs from a token store."""

    def __init__(self, work: dict[str, Any], text: str, vocabulary: str, cache: str) -> None:
        self.work = Work(**work)
        tokenizer = WordPiece.from_pretrained(vocabulary)
        store = open_store([Path(text)], tokenizer, OPTIONS, Path(cache))
        self.options = ExampleOptions(self.work.max_seq_length)
        documents, _ = split(store, "nsp")
        self.stream = ExampleStream(ExampleBuilder(store, tokenizer, documents, self.options), 0)

    def step(self) -> dict[str, float]:
        tokens = 0
        for _ in range(_BATCHES):
            examples = self.stream.take(self.work.batch_size)
            collate(examples, self.options.max_predictions)
            tokens += sum(len(e.input_ids) for e in examples)
        return {"tokens": tokens, "flops": 0}


class HuggingFaceMasks:
    """transformers' collator on the sequences of the same examples."""

    def __init__(self, vocabulary: str, **arguments: Any) -> None:
        import transformers

        pairs = Pairs(vocabulary=vocabulary, **arguments)
        tokenizer = transformers.AutoTokenizer.from_pretrained(vocabulary)
        self.collator = transformers.DataCollatorForLanguageModeling(tokenizer)
        self.batches = [
            [{"input_ids": e.input_ids.tolist()} for e in pairs.stream.take(pairs.work.batch_size)]
            for _ in range(_MASKED_BATCHES)
        ]

    def step(self) -> dict[str, float]:
        tokens = 0
        for batch in self.batches:
            self.collator(batch)
            tokens += sum(len(sequence["input_ids"]) for sequence in batch)
        return {"tokens": tokens, "flops": 0}


def measure(name: str, rounds: int, texts: list[Path]) -> dict[str, Any]:
    """Pairs and a step in turns; ready for JSON."""
    work = asdict(WORKS[name])
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        text, vocabulary = folder / "text.txt", folder / "vocabulary"
        write_text(texts, _MEGABYTES, text)
        found = corpus_vocabulary([text], _VOCABULARY, OPTIONS, True, True, folder, exact=False)
        found.save(vocabulary)
        open_store([text], found, OPTIONS, folder)
        arguments: dict[str, Any] = {"text": str(text), "vocabulary": str(vocabulary)}
        arguments |= {"cache": where, "work": work}
        step = asdict(pretraining.Work(**work, lengths="paired"))
        timings = turns.take_turns(
            [
                turns.Variant("a step", "benchmarks.pretraining:Ours", step),
                turns.Variant("HF masks", f"{__spec__.name}:HuggingFaceMasks", arguments),
                turns.Variant("pairs and masks", f"{__spec__.name}:Pairs", arguments),
            ],
            rounds,
        )
    return {"unit": "tokens", "timings": [asdict(timing) for timing in timings]}


def table(found: dict[str, Any]) -> str:
    """The timings, and the share of a step."""
    timings = [turns.Timing(**timing) for timing in found["timings"]]
    text = turns.markdown(timings)
    step, _, pairs = timings
    if step.error or pairs.error:
        return text
    shares = [a / b for a, b in zip(step.rates, pairs.rates, strict=True)]
    middle, low, high = statistics.median(shares), min(shares), max(shares)
    share = f"{middle:.2%} of a step's time [{low:.2%}-{high:.2%}]"
    return f"{text}\n\nPairs and masks take {share}."
