"""How well a model finds masked words: of one text for all models, and as its own run found.

In: a model folder, and a folder of public sets with the text. Out: figures for a table.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from minibert.corpus import ReaderOptions
from minibert.documents import Documents, Permutation
from minibert.examples import (
    PADDED_TO,
    ExampleBuilder,
    ExampleOptions,
    held_out_examples,
    tokens_per_character,
)
from minibert.files import bundled_data, read_json, read_text
from minibert.masked import HeadlessError, load_masked_lm
from minibert.predict import run_of
from minibert.pretraining_data import evaluate_pretraining
from minibert.store import open_store
from minibert.tokenizer import WordPiece

_HELD_OUT = Path("enwiki_text/enwiki-valid.txt.xz")
_MLM = (
    *("mlm_loss", "mlm_accuracy", "nsp_accuracy", "unigram_entropy", "masked_tokens"),
    *("tokens", "seconds"),
)
_MEASURED_CHARACTERS = 1 << 20
_SCORED_LENGTH, _SCORED_EXAMPLES = 128, 1024  # of masked words


def masked_word_figures(
    model: Path, data: str | None, device: str = "auto", precision: str | None = None
) -> dict[str, Any]:
    """How well a model finds masked words of one text, the same for all models.

    Single sequences of 128 tokens, 15 % masked alike in every call, of
    enwiki_text/enwiki-valid.txt.xz in the data, else of the bundled text, which models made here
    may have read.

    Returns:
        text, max_seq_length, and the figures of `evaluate_pretraining` with
        mlm_bits_per_character; nothing for a folder without a head for masked words.

    Raises:
        InputError: the model cannot be read.
    """
    try:
        lm = load_masked_lm(model, device, precision)
    except HeadlessError:
        return {}
    text = held_out_text(data)
    length = min(_SCORED_LENGTH, lm.longest // PADDED_TO * PADDED_TO)
    options = ExampleOptions(max_seq_length=length, nsp="none")
    with tempfile.TemporaryDirectory() as cache:
        store = open_store([text], lm.tokenizer, ReaderOptions(), Path(cache))
        count = len(store.document_starts) - 1
        documents = Documents(store, store.document_starts, Permutation(count, 0), range(count))
        builder = ExampleBuilder(store, lm.tokenizer, documents, options)
        examples = held_out_examples(builder, _SCORED_EXAMPLES)
    figures = evaluate_pretraining(lm.model, examples, options.max_predictions, 32, lm.runtime)
    bits = figures["mlm_loss"] / math.log(2) * tokens_per_character(lm.tokenizer, examples)
    found = {"text": text.name, "max_seq_length": length, "mlm_bits_per_character": bits}
    return found | figures


def held_out_text(data: str | None) -> Path:
    """The text whose masked words are scored: that of the data, else the bundled one."""
    held_out = Path(data or "") / _HELD_OUT
    return held_out if data and held_out.is_file() else bundled_data() / "wiki.txt"


def held_out_figures(model: Path, data: str | None) -> dict[str, Any]:
    """The held-out figures of a model's pretraining, none where the folder does not have them.

    mlm_bits_per_character makes vocabularies comparable: mlm_loss / ln 2 x tokens a character.
    Where results.json does not hold it, tokens a character are those of
    enwiki_text/enwiki-valid.txt.xz in the data, or of the bundled text; `measured_on` names it.
    """
    path = model / "results.json"
    results = read_json(path, "") if path.is_file() else {}
    if "mlm_loss" not in results:
        return {}
    found = {key: results[key] for key in _MLM if key in results}
    settings = run_of(model).get("settings", {})
    if settings.get("model") and not settings.get("random_weights"):
        found["went_on"] = True  # from another model, whose tokens are not among these
    if "mlm_bits_per_character" in results:
        return found | {"mlm_bits_per_character": results["mlm_bits_per_character"]}
    text = held_out_text(data)
    lines = read_text(text)[:_MEASURED_CHARACTERS].split("\n")
    tokenizer = WordPiece.from_pretrained(model)
    tokens = sum(map(len, tokenizer.ids(lines)))
    ratio = tokens / max(1, sum(map(len, lines)))
    bits = results["mlm_loss"] / math.log(2) * ratio
    return found | {"mlm_bits_per_character": bits, "measured_on": text.name}
