"""A finished run folder -> predictions, from the command line or a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.heads import BertForSequenceClassification
from minibert.quantised import quantise_linears
from minibert.run_folder import RunFolder
from minibert.runs import check_vocabulary, open_model_folder
from minibert.runtime import Runtime, start_runtime
from minibert.tasks import TASKS
from minibert.tasks.classification import clean_text, encode, predict_probabilities
from minibert.tokenizer import WordPiece

PRECISIONS = ("auto", "fp32", "bf16", "int8")


@dataclass(frozen=True)
class Prediction:
    """One text's answer: the likeliest label, its probability, and all of them."""

    text: str
    prediction: str
    score: float
    probabilities: dict[str, float]


class Predictor:
    """A fine-tuned model, its tokenizer and the settings it was trained with.

    Example:
        model = minibert.load("runs/imdb")
        model.predict(["A film to see twice."])[0].prediction   # 'pos'
    """

    def __init__(
        self,
        model: BertForSequenceClassification,
        tokenizer: WordPiece,
        runtime: Runtime,
        max_seq_length: int,
        truncation: str,
        task: str | None,
    ) -> None:
        self.model, self.tokenizer, self.runtime = model, tokenizer, runtime
        self.max_seq_length, self.truncation, self.task = max_seq_length, truncation, task

    @property
    def labels(self) -> list[str]:
        """Class names in the order of their indices."""
        named = self.model.config.id2label or {}
        return [named.get(i, f"LABEL_{i}") for i in range(self.model.config.num_labels)]

    def probabilities(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Class probabilities of each text, (texts, C), in their order; cleaned as in training."""
        rows = encode(
            [clean_text(text) for text in texts],
            self.tokenizer,
            self.max_seq_length,
            self.truncation,
        )
        pad_id = self.tokenizer.pad_id
        return predict_probabilities(self.model, rows, pad_id, batch_size, self.runtime)

    def predict(self, texts: str | Sequence[str], batch_size: int = 32) -> list[Prediction]:
        """Labels and probabilities of one text or several, in their order.

        Args:
            texts: plain texts; long ones are cut as in training.
            batch_size: texts per forward.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            return []
        labels = self.labels
        found = []
        for text, row in zip(texts, self.probabilities(texts, batch_size), strict=True):
            shares = {label: float(share) for label, share in zip(labels, row, strict=True)}
            best = labels[int(row.argmax())]
            found.append(Prediction(text, best, shares[best], shares))
        return found


def load(folder: str | Path, device: str = "auto", precision: str | None = None) -> Predictor:
    """Opens a fine-tuned model for predictions.

    Args:
        folder: a run folder of `finetune`, or a BERT classifier in the Hugging Face layout.
        precision: of matrix products, "fp32", "bf16" or "auto"; None: that of the run, whose
            figures it then repeats. "int8", on a CPU: the encoder's linear layers in 8-bit
            integers, all else as "auto"; the folder stays as it is.

    Raises:
        InputError: no model there, or one without a classification head; a precision that is
            unknown or not for this device.
    """
    if precision not in (None, *PRECISIONS):
        raise InputError(f"precision is {precision!r}; expected {', '.join(PRECISIONS)}")
    path = open_model_folder(str(folder))
    config = BertConfig.from_pretrained(path)
    model = BertForSequenceClassification.from_pretrained(path)
    if any(name.startswith("classifier") for name in model.load_report.newly_initialised):
        raise InputError(
            f"{path} is a {', '.join(config.architectures) or 'model'} without a classifier; "
            f"fine-tune it first: python finetune.py --task imdb --model {path}"
        )
    # A folder of others has no run.json.
    run = RunFolder(path).read_run() if (path / "run.json").is_file() else {}
    settings = run.get("settings", {})
    tokenizer = WordPiece.from_pretrained(path)
    check_vocabulary(tokenizer, config)
    precision = precision or run.get("resolved", {}).get("precision", "fp32")
    is_int8 = precision == "int8"
    runtime = start_runtime(device, "auto" if is_int8 else precision, deterministic=False)
    if is_int8:
        if runtime.device.type != "cpu":
            raise InputError(
                f"--precision int8 is for a CPU, this is {runtime.device}; add --device cpu"
            )
        quantise_linears(model.bert.layers)
        if runtime.precision == "bf16":  # a twentieth faster than autocast's casts
            model.bert.to(torch.bfloat16)
    return Predictor(
        model.to(runtime.device),
        tokenizer,
        runtime,
        settings.get("max_seq_length", min(512, config.max_position_embeddings)),
        settings.get("truncation", "head"),
        settings.get("task") if settings.get("task") in TASKS else None,
    )
