"""A pretrained folder -> words for masks, and how likely sentences are.

    "The capital of France is [MASK]."  -> one pass -> the likeliest pieces at each mask
    a sentence of n tokens -> n copies, one token masked in each -> n log-probabilities -> their sum

Both need the masked-word head that pretraining leaves; a folder without one is refused, since a
head drawn at random would answer, too.

Shapes: B batch, T tokens, R rows, D hidden_size, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minibert.config import BertConfig
from minibert.errors import InputError, TextError
from minibert.files import whole_characters
from minibert.heads import BertForPreTraining
from minibert.model_folders import open_model_folder
from minibert.predict import place_for_prediction, run_of
from minibert.runs import check_vocabulary, trained_positions
from minibert.runtime import Runtime
from minibert.tasks.batches import Feature, infer, inputs_of, pad
from minibert.tokenizer import WordPiece

MASK = "[MASK]"  # the token of every BERT vocabulary; others are refused by `WordPiece`
_ROWS_AT_ONCE = 128  # masks whose V probabilities are held together
_POOL_BATCHES = 64  # batches whose copies are held, and sorted by length, together
# What a folder may lack: nothing here reads it, and published masked-word models have neither.
_UNREAD = ("nsp.", "bert.pooler.")


@dataclass(frozen=True)
class Candidate:
    """A piece of the vocabulary for a mask, with its probability there."""

    token: str
    probability: float


@dataclass(frozen=True)
class FilledText:
    """What `MaskedLM.fill_mask` says of a text.

    filled: the text with the likeliest piece in place of each mask. masks: of each mask in the
    text's order its candidates, likeliest first.
    """

    text: str
    filled: str
    masks: list[list[Candidate]]


@dataclass(frozen=True)
class SentenceScore:
    """What `MaskedLM.score` says of a sentence; `figures_of` defines its figures.

    tokens: how many were scored, [CLS] and [SEP] left out. unknown: how many of them are [UNK],
    which may stand for any word: scores of sentences with some do not compare. pieces: the tokens.
    log_probs: of each the natural logarithm of its probability.
    """

    sentence: str
    tokens: int
    unknown: int
    pll: float
    pll_per_token: float
    bits_per_character: float
    pseudo_perplexity: float
    pieces: list[str]
    log_probs: list[float]


def figures_of(pll: float, tokens: int, characters: int) -> dict[str, float]:
    """The figures of a sentence, or of many together.

    Args:
        pll: the pseudo-log-likelihood in nats, the sum of the tokens' log-probabilities.
        characters: of the text as given, blanks around a sentence left out.

    Returns:
        pll. pll_per_token: its mean, in nats. bits_per_character: -pll in bits over the characters,
        which compares models of different vocabularies. pseudo_perplexity: exp(-pll / tokens)
        (Salazar et al. 2020, who take it over a corpus).
    """
    return {
        "pll": pll,
        "pll_per_token": pll / tokens,
        "bits_per_character": -pll / math.log(2) / characters,
        "pseudo_perplexity": math.exp(-pll / tokens),
    }


class HeadlessError(InputError):
    """A model without a head for masked words that can be used."""


def load_masked_lm(
    folder: str | Path, device: str | torch.device = "auto", precision: str | None = None
) -> MaskedLM:
    """Opens a pretrained model for masked words and for scores of sentences.

    Args:
        folder: a run folder of `pretrain`, or a published BertForMaskedLM or BertForPreTraining in
            the Hugging Face layout.
        precision: as of `predict.load`.

    Raises:
        HeadlessError: a model without a masked-word head (fine-tuned, sentence and translation
            models have none).
        InputError: no model there, or a precision that is unknown or not for this device.
    """
    path = open_model_folder(str(folder))
    config = BertConfig.from_pretrained(path)
    model = BertForPreTraining.from_pretrained(path)
    _check_whole(model, config, path)
    tokenizer = WordPiece.from_pretrained(path)
    check_vocabulary(tokenizer, config)
    run = run_of(path)
    runtime = place_for_prediction(model, run, device, precision)
    return MaskedLM(model, tokenizer, runtime, trained_positions(path, config))


def _check_whole(model: BertForPreTraining, config: BertConfig, path: Path) -> None:
    """Raises HeadlessError for a model whose masked words untrained weights would guess."""
    report = model.load_report
    missing = [name for name in report.newly_initialised if not name.startswith(_UNREAD)]
    wanted = "expected a pretrained folder, such as runs/pretrain, or a published BertForMaskedLM"
    if missing:
        what = (
            "a masked-word head" if missing[0].startswith("mlm.") else f"the weights {missing[0]}"
        )
        kind = ", ".join(config.architectures) or "model"
        raise HeadlessError(f"{path} is a {kind} without {what}; {wanted}")
    if "cls.predictions.decoder.weight" in report.left_out:
        raise HeadlessError(
            f"{path} has a decoder of its own for masked words, and only one tied to the word "
            f"embeddings is built here; {wanted}"
        )
    if "cls.predictions.decoder.bias" in report.left_out:
        raise HeadlessError(
            f"{path} has two biases for masked words, cls.predictions.bias and another in "
            f"cls.predictions.decoder.bias, and which is meant cannot be told; {wanted}"
        )


class MaskedLM:
    """A pretrained model with its masked-word head.

    Example:
        model = minibert.load_masked_lm("runs/pretrain")
        model.fill_mask("The capital of France is [MASK].")[0].masks[0][0]
        model.score(["The film was good .", "The film were good ."])[0].pll

    Attributes:
        longest: tokens of a sequence, [CLS] and [SEP] included.
    """

    def __init__(
        self, model: BertForPreTraining, tokenizer: WordPiece, runtime: Runtime, longest: int
    ) -> None:
        self.model, self.tokenizer, self.runtime = model, tokenizer, runtime
        self.longest = longest
        pieces: dict[str, int] = tokenizer.backend.get_vocab()
        self._pieces = {i: piece for piece, i in pieces.items()}

    def fill_mask(
        self, texts: str | Sequence[str], top: int = 5, batch_size: int = 32
    ) -> list[FilledText]:
        """The likeliest pieces for every [MASK] of each text.

        All masks of a text are foretold in one pass, each by itself: its probabilities know the
        other masks as masks, not what stands best there, so the choices need not fit together.

        Args:
            texts: one or several, each with any number of [MASK].
            top: candidates per mask.
            batch_size: texts per forward.

        Raises:
            InputError: a text without a mask, or with more tokens than the model reads.
        """
        _check_counts(top=top, batch_size=batch_size)
        given = _texts(texts)
        if not given:
            return []
        features = self._with_masks(given)
        filling = _Filling(self.tokenizer, self._pieces, top, self.model.config.vocab_size)
        found = infer(filling, self.model, features, batch_size, self.runtime)
        answers = []
        for text, masks in zip(given, found, strict=True):
            candidates = [
                [Candidate(self._pieces[i], share) for i, share in mask if i in self._pieces]
                for mask in masks
            ]
            filled = _put_in(text, [mask[0].token for mask in candidates])
            answers.append(FilledText(text, filled, candidates))
        return answers

    def check_masks(self, texts: Sequence[str]) -> None:
        """Raises what `fill_mask` would raise for the first of the texts that it does not take."""
        self._with_masks(_texts(texts))

    def _with_masks(self, texts: list[str]) -> list[Feature]:
        """[CLS] text [SEP] with the mask's id at each mask."""
        tokenizer = self.tokenizer
        parts = [text.split(MASK) for text in texts]
        ids = iter(tokenizer.ids(list(itertools.chain(*parts))))
        features = []
        for number, (text, own) in enumerate(zip(texts, parts, strict=True), 1):
            if len(own) == 1:
                raise TextError(
                    number,
                    f"({text:.40}) has no {MASK}; write {MASK}, the model's mask token, where a "
                    f"word is to be found",
                )
            row = [tokenizer.cls_id, *next(ids)]
            for _ in own[1:]:
                row += [tokenizer.mask_id, *next(ids)]
            row.append(tokenizer.sep_id)
            if len(row) > self.longest:
                raise TextError(
                    number,
                    f"({text:.40}...) has {len(row)} tokens with [CLS] and [SEP]; the model has "
                    f"learnt to read {self.longest} at most",
                )
            features.append(Feature({"input_ids": np.array(row, np.int64)}, {}))
        return features

    def score(
        self, sentences: str | Sequence[str], within_word: bool = False, batch_size: int = 32
    ) -> list[SentenceScore]:
        """The pseudo-log-likelihood of each sentence; as `iter_scores`, all at once."""
        return list(self.iter_scores(sentences, within_word, batch_size))

    def iter_scores(
        self, sentences: str | Sequence[str], within_word: bool = False, batch_size: int = 32
    ) -> Iterator[SentenceScore]:
        """The pseudo-log-likelihood of each sentence, in their order, as they are found.

        The sum over its tokens of log P(token | the other tokens), the token masked (Salazar et al.
        2020, "Masked Language Model Scoring"). A sentence of n tokens takes n rows of
        a batch. In one that is longer than the model reads, a token is foretold from the part of
        that length around it.

        Args:
            within_word: mask the later pieces of the token's word, too, so that a word that is
                split is not foretold from its own end (Kauf and Ivanova 2023, "A Better Way to Do
                Masked Language Model Scoring", PLL-word-l2r).
            batch_size: rows, copies of a sentence with one token masked, per forward.

        Raises:
            InputError: a sentence without any token.
        """
        _check_counts(batch_size=batch_size)
        given = _texts(sentences)
        if not given:
            return iter(())
        ids, lengths = self.tokenizer.flat_ids(given)
        for number in np.flatnonzero(lengths == 0):
            raise TextError(int(number) + 1, f"({given[number]!r:.40}) holds no token", "sentence")
        return self._scored(given, ids, lengths.tolist(), within_word, batch_size)

    def _scored(
        self,
        sentences: list[str],
        ids: np.ndarray,
        lengths: list[int],
        within_word: bool,
        batch_size: int,
    ) -> Iterator[SentenceScore]:
        """Pools of copies, of which sentences may share one or fill several."""
        rows = np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1])
        copies = itertools.chain.from_iterable(self._copies(row, within_word) for row in rows)
        scoring = _Scoring(self.tokenizer.pad_id)
        known: list[float] = []  # of sentences that are not handed out yet
        number = 0
        with tqdm(
            total=len(ids), desc="sentences", unit="token", disable=None, leave=False, delay=1
        ) as bar:
            while pool := list(itertools.islice(copies, _POOL_BATCHES * batch_size)):
                known += infer(scoring, self.model, pool, batch_size, self.runtime)
                bar.update(len(pool))
                while number < len(rows) and len(known) >= lengths[number]:
                    yield self._score_of(sentences[number], rows[number], known)
                    del known[: lengths[number]]
                    number += 1

    def _score_of(self, sentence: str, ids: np.ndarray, log_probs: list[float]) -> SentenceScore:
        """The score of a sentence whose tokens come first in log_probs."""
        count = len(ids)
        own = log_probs[:count]
        return SentenceScore(
            sentence=sentence,
            tokens=count,
            unknown=int((ids == self.tokenizer.unk_id).sum()),
            **figures_of(math.fsum(own), count, len(sentence.strip())),
            pieces=[self._pieces[i] for i in ids.tolist()],
            log_probs=own,
        )

    def _copies(self, ids: np.ndarray, within_word: bool) -> Iterator[Feature]:
        """Of each of (n,) tokens [CLS] sentence [SEP] with it masked; its place and id as labels.

        Of a sentence that is too long, the part that has the token in its middle.
        """
        count, room = len(ids), self.longest - 2
        ends = self._word_ends(ids) if within_word else list(range(1, count + 1))
        for place in range(count):
            begin = min(max(0, place - room // 2), max(0, count - room))
            part = ids[begin : begin + room].copy()
            part[place - begin : ends[place] - begin] = self.tokenizer.mask_id
            row = np.concatenate([[self.tokenizer.cls_id], part, [self.tokenizer.sep_id]])
            labels = {"places": place - begin + 1, "labels": int(ids[place])}
            yield Feature({"input_ids": row}, labels)

    def _word_ends(self, ids: np.ndarray) -> list[int]:
        """Of each of (n,) tokens where its word ends: before the next that is no "##" piece."""
        ends, end = [0] * len(ids), len(ids)
        for place in reversed(range(len(ids))):
            ends[place] = end
            if not self._pieces[int(ids[place])].startswith("##"):
                end = place
        return ends


class _Filling:
    """How `infer` finds candidates: of each row, of each mask, the `top` likeliest ids."""

    def __init__(
        self, tokenizer: WordPiece, pieces: dict[int, str], top: int, vocab_size: int
    ) -> None:
        self.pad_id, self.mask_id = tokenizer.pad_id, tokenizer.mask_id
        # Some models have embeddings for more ids than their vocabulary names.
        self.top = min(top, len(pieces))
        self.nameless = torch.tensor([i for i in range(vocab_size) if i not in pieces]).long()

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        return pad(features, self.pad_id)

    def outputs(
        self, model: BertForPreTraining, batch: dict[str, Tensor]
    ) -> list[list[list[tuple[int, float]]]]:
        is_mask = batch["input_ids"] == self.mask_id  # (B, T)
        hidden = model.bert(**inputs_of(batch)).last_hidden_state[is_mask]  # (R, D)
        found: list[list[tuple[int, float]]] = []
        for part in hidden.split(_ROWS_AT_ONCE):
            shares = _log_probs(model, part).exp()  # (R, V)
            shares[:, self.nameless.to(shares.device)] = -1
            best = shares.topk(self.top, dim=1)
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found += [list(zip(*row, strict=True)) for row in rows]
        masks = iter(found)
        return [list(itertools.islice(masks, n)) for n in is_mask.sum(1).tolist()]


class _Scoring:
    """How `infer` scores copies: of each row the log-probability of its label at its place."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        return pad(features, self.pad_id)

    def outputs(self, model: BertForPreTraining, batch: dict[str, Tensor]) -> list[float]:
        places, labels = batch["places"], batch["labels"]  # (B,) each
        hidden = model.bert(**inputs_of(batch)).last_hidden_state  # (B, T, D)
        rows = hidden[torch.arange(len(places), device=hidden.device), places]  # (B, D)
        found: list[float] = []
        for part, wanted in zip(
            rows.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True
        ):
            found += _log_probs(model, part).gather(1, wanted[:, None])[:, 0].tolist()
        return found


def _log_probs(model: BertForPreTraining, rows: Tensor) -> Tensor:
    """(R, D) of the last layer -> (R, V), in float32: 16 bits would round logits to two digits."""
    with torch.autocast(rows.device.type, enabled=False):
        words = model.bert.embeddings.word.weight
        return model.mlm(rows.float(), words.float()).log_softmax(1)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}, must be above 0")


def _texts(given: str | Sequence[str]) -> list[str]:
    """One text or several, as a list.

    Raises:
        InputError: one is no string.
    """
    if not isinstance(given, Iterable):
        raise InputError(f"texts are {given!r:.60}; expected one, or several")
    texts = [given] if isinstance(given, str) else list(given)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise TextError(number, f"is {text!r:.60}; expected a string")
    return [whole_characters(text) for text in texts]


def _put_in(text: str, pieces: list[str]) -> str:
    """A text with a piece for each mask; one that goes on a word joins what stands before."""
    parts = text.split(MASK)
    filled = parts[0]
    for piece, rest in zip(pieces, parts[1:], strict=True):
        follows = piece.startswith("##") and filled.strip()
        filled = (filled.rstrip() + piece[2:] if follows else filled + piece) + rest
    return filled
