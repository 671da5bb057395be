"""Summarization: DialogSum, own pairs; ROUGE beside that of the first three turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minibert.generation_metrics import score_summaries
from minibert.settings import FinetuneSettings
from minibert.tasks.parallel import PairSplits, lead, read_dialogsum
from minibert.tasks.writing import WritingTask

_SPEAKER = re.compile(r"#(Person\d+)#")


class SummarizationTask(WritingTask):
    """A short text for each long one; no three tokens in a row are written twice."""

    names = ("dialogsum", "summarization")
    selectable = ("token_accuracy", "rouge1", "rouge2", "rougeL")
    no_repeat_ngram = 3
    trivial_name = "lead3"

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        if self.name == "dialogsum":
            self.places, self.sample = ("data/downloads/dialogsum",), "dialogsum"

    def read_public(self, folder: Path) -> PairSplits:
        return read_dialogsum(folder)

    def read_as(self, source: str) -> str:
        """Without the marks around DialogSum's speakers, two tokens or two unknown ones a turn."""
        return _SPEAKER.sub(r"\1", source)

    def figures(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        return score_summaries(predictions, references)

    def text_score(self, prediction: str, references: Sequence[str]) -> float:
        return score_summaries([prediction], [references])["rougeL"]

    def trivial(self, text: str) -> str:
        """The first three turns, or sentences."""
        return lead(text)
