"""Text to stored token ids: ours against datasets.map, and the tokenizer's own limit.

    python -m benchmarks --only tokenising --text enwiki-00.txt.xz

A vocabulary is made from the text beforehand, and all use it. Ours is `open_store`, as
`pretrain.py` calls it: reading the file, splitting sentences, starting and ending a worker a core,
writing the store. datasets.map has the documents in memory-mapped Arrow already, runs transformers'
fast tokenizer on batches of 1,000 and writes Arrow; with one process the tokenizer has a thread a
core. As it comes it stores segments and attention masks as well; "ids alone" has both switched off.
encode_batch_fast is the tokenizer alone, a thread a core, on documents in memory, and nothing is
stored; `WordPiece.ids` is what ours asks in its place, on the same documents and on one thread.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.text import OPTIONS, read_documents, write_text
from benchmarks.turns import Variant, take_turns
from minibert.store import open_store
from minibert.tokenizer import WordPiece
from minibert.vocabulary import corpus_vocabulary

UNIT = "MB"
_BATCH = 1000  # documents


@dataclass(frozen=True)
class Work:
    """How much text, and of how many pieces its vocabulary is."""

    megabytes: float
    vocab_size: int  # or as many as the text supports


READS_TEXT = True
WORKS = {"20-MB": Work(20, 30_522)}


class Ours:
    """`open_store` into an empty cache."""

    def __init__(self, text: str, vocabulary: str, folder: str) -> None:
        self.text, self.folder = Path(text), Path(folder)
        self.tokenizer = WordPiece.from_pretrained(vocabulary)
        self.numbers = itertools.count()

    def step(self) -> dict[str, float]:
        cache = self.folder / f"store-{next(self.numbers)}"
        with contextlib.redirect_stderr(io.StringIO()):
            store = open_store([self.text], self.tokenizer, OPTIONS, cache)
        return _answer(self.text, store.counts.tokens)


class DatasetsMap:
    """datasets.map with transformers' fast tokenizer, as it comes or without what is not an id."""

    def __init__(
        self, text: str, vocabulary: str, folder: str, processes: int = 1, ids_alone: bool = False
    ) -> None:
        import datasets
        import transformers

        self.text, self.folder, self.processes = Path(text), Path(folder), processes
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(vocabulary)
        datasets.disable_progress_bars()
        made = datasets.Dataset.from_dict({"text": read_documents(self.text)})
        self.name = f"{processes}-{ids_alone}"
        made.save_to_disk(self.folder / f"documents-{self.name}")
        self.documents = datasets.load_from_disk(self.folder / f"documents-{self.name}")
        self.options = {"verbose": False}
        if ids_alone:
            self.options |= {"return_attention_mask": False, "return_token_type_ids": False}
        self.numbers = itertools.count()

    def _encode(self, rows: dict[str, list[str]]) -> Any:
        return self.tokenizer(rows["text"], **self.options)

    def step(self) -> dict[str, float]:
        import pyarrow.compute

        mapped = self.documents.map(
            self._encode,
            batched=True,
            batch_size=_BATCH,
            num_proc=self.processes if self.processes > 1 else None,
            remove_columns=["text"],
            load_from_cache_file=False,
            cache_file_name=str(self.folder / f"map-{self.name}-{next(self.numbers)}.arrow"),
        )
        lengths = pyarrow.compute.list_value_length(mapped.data.column("input_ids"))
        return _answer(self.text, pyarrow.compute.sum(lengths).as_py())


class Limit:
    """The tokenizer alone."""

    def __init__(self, text: str, vocabulary: str, folder: str, remembers: bool = False) -> None:
        self.text = Path(text)
        self.documents = read_documents(self.text)
        tokenizer = WordPiece.from_pretrained(vocabulary)
        self.encode = tokenizer.ids if remembers else self._encode
        self.backend = tokenizer.backend

    def _encode(self, texts: list[str]) -> list[Any]:
        return self.backend.encode_batch_fast(texts, add_special_tokens=False)

    def step(self) -> dict[str, float]:
        tokens = 0
        for start in range(0, len(self.documents), _BATCH):
            batch = self.documents[start : start + _BATCH]
            tokens += sum(map(len, self.encode(batch)))
        return _answer(self.text, tokens)


def _answer(text: Path, tokens: int) -> dict[str, float]:
    return {"tokens": tokens, "flops": 0, "units": text.stat().st_size / 1e6}


def measure(name: str, rounds: int, texts: list[Path]) -> dict[str, Any]:
    """The variants in turns on one text; ready for JSON."""
    work = WORKS[name]
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        text, vocabulary = folder / "text.txt", folder / "vocabulary"
        write_text(texts, work.megabytes, text)
        size = work.vocab_size
        found = corpus_vocabulary([text], size, OPTIONS, True, True, folder / "cache", exact=False)
        found.save(vocabulary)
        arguments = {"text": str(text), "vocabulary": str(vocabulary), "folder": where}
        theirs = f"{__spec__.name}:DatasetsMap"
        timings = take_turns(
            [
                Variant("datasets.map", theirs, arguments),
                Variant("datasets.map, 2 processes", theirs, arguments | {"processes": 2}),
                Variant("datasets.map, ids alone", theirs, arguments | {"ids_alone": True}),
                Variant("encode_batch_fast", f"{__spec__.name}:Limit", arguments),
                Variant("WordPiece.ids", f"{__spec__.name}:Limit", arguments | {"remembers": True}),
                Variant("minibert", f"{__spec__.name}:Ours", arguments),
            ],
            rounds,
            warmup=1,
        )
    return {"unit": UNIT, "timings": [asdict(timing) for timing in timings]}
