"""Figures of written texts, by the field's own scorers: BLEU, chrF and ROUGE, all 0 to 100.

The scorers come with the extra `tasks`. Texts are compared as they stand, cased. What a word is
follows the script of the references, since the scorers' own rule knows Latin letters alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from tokenizers import normalizers, pre_tokenizers

from minibert.errors import InputError, MissingExtraError

References = Sequence[Sequence[str]]  # of each text its right answers, one or more


class TranslationScore(NamedTuple):
    """Corpus BLEU and chrF, and the signatures that say how they were computed."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def score_translation(predictions: Sequence[str], references: References) -> TranslationScore:
    """BLEU (Papineni et al. 2002) and chrF2 (Popović 2015) by sacrebleu (Post 2018), as it is.

    Where most letters of the references are Chinese characters, BLEU counts those (sacrebleu's
    `zh`), and where they are of another script without blanks, such as Japanese or Thai, characters
    (`char`); with its default, `13a`, a sentence would be one word. The signature says which.

    Raises:
        MissingExtraError: sacrebleu is not installed.
        InputError: not as many references as predictions, or none, or a string for a list.
    """
    _check(predictions, references)
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise MissingExtraError(
            "BLEU and chrF need sacrebleu: pip install 'minibert[tasks]'"
        ) from None
    bleu = BLEU()
    unspaced = _share(references, lambda letter: bool(_UNSPACED.match(letter)))
    chinese = _share(references, _is_chinese)
    if chinese + unspaced > 0.5:  # a Japanese text has both
        bleu = BLEU(tokenize="zh" if unspaced < 0.05 else "char")
    chrf = CHRF()
    # One stream for every place in the lists of references; a missing one is None.
    most = max(map(len, references))
    streams: Any = [
        [refs[i] if i < len(refs) else None for refs in references] for i in range(most)
    ]
    own = list(predictions)
    return TranslationScore(
        bleu=float(bleu.corpus_score(own, streams).score),
        chrf=float(chrf.corpus_score(own, streams).score),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def sentence_chrf(prediction: str, references: Sequence[str]) -> float:
    """chrF2 of a single text by sacrebleu, 0 to 100; it ranks translations, it averages to none."""
    import sacrebleu

    return float(sacrebleu.sentence_chrf(prediction, list(references)).score)


def score_summaries(predictions: Sequence[str], references: References) -> dict[str, Any]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by rouge-score, stemmed: the mean F1 of all texts.

    A text with several references counts with the mean of its scores against each, as if every
    reference were an example. rouge-score knows the words of a to z alone; where most letters of
    the references are others, words are BERT's (parted at blanks and punctuation, Chinese
    characters one by one, and so are those of other scripts without blanks) and not stemmed.

    Returns:
        rouge1, rouge2, rougeL, 0 to 100; rouge_signature, how they were computed, in the manner of
        sacrebleu's.

    Raises:
        MissingExtraError: rouge-score is not installed.
        InputError: not as many references as predictions, or none.
    """
    _check(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError("ROUGE needs rouge-score: pip install 'minibert[tasks]'") from None
    kinds = ["rouge1", "rouge2", "rougeL"]
    is_latin = _share(references, lambda letter: not letter.isascii()) <= 0.5
    scorer = RougeScorer(kinds, use_stemmer=True, tokenizer=None if is_latin else _BertWords())
    totals = dict.fromkeys(kinds, 0.0)
    for prediction, wanted in zip(predictions, references, strict=True):
        for reference in wanted:
            found = scorer.score(reference, prediction)
            for kind in kinds:
                totals[kind] += found[kind].fmeasure / len(wanted)
    figures = {kind: 100 * total / len(predictions) for kind, total in totals.items()}
    return figures | {"rouge_signature": _rouge_signature(references, is_latin)}


def _rouge_signature(references: References, is_latin: bool) -> str:
    counts = {len(wanted) for wanted in references}
    parts = {
        "nrefs": str(counts.pop()) if len(counts) == 1 else "var",
        "refs": "mean",
        "stem": "yes" if is_latin else "no",
        "words": "rouge-score" if is_latin else "bert",
        "version": version("rouge-score"),
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def _share(references: References, holds: Callable[[str], bool]) -> float:
    """The share of the references' letters for which something holds; 0 without letters."""
    letters = [c for refs in references for ref in refs for c in ref if c.isalpha()]
    return sum(map(holds, letters)) / max(1, len(letters))


def _is_chinese(letter: str) -> bool:
    return "\u3400" <= letter <= "\u9fff" or "\uf900" <= letter <= "\ufaff" or letter > "\U0001ffff"


# Letters and signs of kana, Thai, Lao, Burmese and Khmer, which write words without blanks; each of
# them alone, what is between as it is.
_RANGES = "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_UNSPACED = re.compile(f"[{_RANGES}]")
_ONE_BY_ONE = re.compile(f"[{_RANGES}]|[^{_RANGES}]+")


class _BertWords:
    """A tokenizer as rouge-score takes one: words of any script, punctuation left out."""

    def __init__(self) -> None:
        self.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=True)
        self.parter = pre_tokenizers.BertPreTokenizer()

    def tokenize(self, text: str) -> list[str]:
        parts = self.parter.pre_tokenize_str(self.normalizer.normalize_str(text))
        words = [word for part, _ in parts for word in _ONE_BY_ONE.findall(part)]
        return [word for word in words if any(c.isalnum() for c in word)]


def _check(predictions: Sequence[str], references: References) -> None:
    if not predictions:
        raise InputError("there is no text to score")
    alone = next((part for part in (predictions, *references) if isinstance(part, str)), None)
    if alone is not None:  # whose letters would be taken for texts
        raise InputError(
            f"{alone!r:.60} stands in place of a list; expected a list of predictions, and of "
            f"each a list of references"
        )
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} texts, but references of {len(references)}")
    if not all(references):
        raise InputError("a text has no reference to be scored against")
