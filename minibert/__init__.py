"""minibert: BERT in plain PyTorch, from raw text to a fine-tuned, evaluated model.

    import minibert
    minibert.pretrain(corpus="data/wiki.txt")
    minibert.finetune(task="imdb")
    minibert.load("runs/imdb").predict(["A film to see twice."])

Names are imported when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minibert.version import __version__

if TYPE_CHECKING:
    from minibert.cleaning import clean_corpus
    from minibert.config import PRESETS, BertConfig, preset
    from minibert.errors import InputError
    from minibert.evaluation import evaluate
    from minibert.exporting import export
    from minibert.finetuning import finetune
    from minibert.heads import BertForPreTraining, BertForSequenceClassification
    from minibert.masked import load_masked_lm
    from minibert.model import BertModel
    from minibert.predict import load, load_embedder
    from minibert.pretraining import pretrain
    from minibert.retrieval import search
    from minibert.seq2seq import BertForConditionalGeneration
    from minibert.setting_search import search_settings
    from minibert.suite import evaluate_suite
    from minibert.tokenizer import WordPiece

_HOMES = {
    "PRESETS": "config",
    "BertConfig": "config",
    "BertForConditionalGeneration": "seq2seq",
    "BertForPreTraining": "heads",
    "BertForSequenceClassification": "heads",
    "BertModel": "model",
    "InputError": "errors",
    "WordPiece": "tokenizer",
    "clean_corpus": "cleaning",
    "evaluate": "evaluation",
    "export": "exporting",
    "evaluate_suite": "suite",
    "finetune": "finetuning",
    "load": "predict",
    "load_embedder": "predict",
    "load_masked_lm": "masked",
    "preset": "config",
    "pretrain": "pretraining",
    "search": "retrieval",
    "search_settings": "setting_search",
}

__all__ = [
    "PRESETS",
    "BertConfig",
    "BertForConditionalGeneration",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertModel",
    "InputError",
    "WordPiece",
    "__version__",
    "clean_corpus",
    "evaluate",
    "evaluate_suite",
    "export",
    "finetune",
    "load",
    "load_embedder",
    "load_masked_lm",
    "preset",
    "pretrain",
    "search",
    "search_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minibert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minibert.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
