"""Translation: Multi30k in either direction, own pairs; BLEU and chrF beside a copy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.fields import flag
from minibert.generation_metrics import score_translation, sentence_chrf
from minibert.settings import FinetuneSettings
from minibert.tasks.base import Splits
from minibert.tasks.parallel import PairSplits, TextPair, read_multi30k, read_parallel_folder
from minibert.tasks.writing import WritingTask


class TranslationTask(WritingTask):
    """A text in another language for each text.

    Multi30k is read from English to German; `--source-language de --target-language en` turns it.
    A folder of own data holds `train.en`, `train.de` and, if there are any, `val` and `test`.
    """

    names = ("multi30k", "translation")
    uses = (*WritingTask.uses, "source_language", "target_language")
    selectable = ("token_accuracy", "bleu", "chrf")
    trivial_name = "copy"

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        if self.name == "multi30k":
            self.places, self.sample = ("data/downloads/multi30k",), "multi30k"
        is_file = settings.data is not None and Path(settings.data).is_file()
        for name in ("source_language", "target_language"):
            if is_file and getattr(settings, name) != getattr(FinetuneSettings, name):
                raise InputError(
                    f"{flag(name)} is for a folder, whose files end in it; leave it out"
                )

    def _languages(self) -> tuple[str, str]:
        source, target = self.settings.source_language, self.settings.target_language
        if source == target:
            raise InputError(
                f"--source-language and --target-language are both {source!r}; name two"
            )
        return source, target

    def read_public(self, folder: Path) -> PairSplits:
        return read_multi30k(folder, *self._languages())

    def read_own(self) -> Splits[TextPair]:
        folder = Path(self.settings.data or "")
        if not folder.is_dir():
            return super().read_own()
        extra = [name for name, _ in self._named_paths() if name != "--data"]
        if extra:
            raise InputError(f"{extra[0]} goes with files; the folder {folder} has its own splits")
        return self.own_splits(*read_parallel_folder(folder, *self._languages()))

    def figures(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        return score_translation(predictions, references)._asdict()

    def text_score(self, prediction: str, references: Sequence[str]) -> float:
        return sentence_chrf(prediction, references)

    def trivial(self, text: str) -> str:
        """The source itself."""
        return text
