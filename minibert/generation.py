"""Writing target texts: greedy and beam search over a batch of sources, with a cache.

    source ids -> `BertForConditionalGeneration.begin` -> one token of every hypothesis a step
               -> the best finished hypothesis of each source

All choices are by score alone, so the same model gives the same texts.

Shapes: B sources still being written, W hypotheses of each, V target vocabulary, t tokens written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minibert.decoder_config import DecoderConfig
from minibert.errors import InputError
from minibert.seq2seq import BertForConditionalGeneration, Cache

_DONE_SHARE = 4  # finished sources are dropped once they are a fourth of the batch


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are written.

    num_beams: W; 1 is greedy search. length_penalty: alpha, see `length_divisor`; 0 compares plain
    log-probabilities. no_repeat_ngram_size: no n words in a row come twice; 0 allows it.
    max_length: tokens of a text at most, the end mark included; None: what the model has
    positions for.

    Raises:
        InputError: naming every value out of range.
    """

    num_beams: int = 4
    length_penalty: float = 0.6
    no_repeat_ngram_size: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.num_beams < 1:
            faults.append(f"num_beams is {self.num_beams}, must be at least 1")
        if not 0 <= self.length_penalty < float("inf"):
            faults.append(f"length_penalty is {self.length_penalty}, must be 0 or more")
        if self.no_repeat_ngram_size < 0:
            faults.append(f"no_repeat_ngram_size is {self.no_repeat_ngram_size}, must be 0 or more")
        if self.max_length is not None and self.max_length < 1:
            faults.append(f"max_length is {self.max_length}, must be at least 1")
        if faults:
            raise InputError("; ".join(faults))


class Generated(NamedTuple):
    """A written text.

    ids: target ids without begin and end mark. score: log-probability in nats (the end mark
    included) over `length_divisor`. is_whole: False where it was cut at max_length.
    """

    ids: list[int]
    score: float
    is_whole: bool


def length_divisor(length: int, alpha: float) -> float:
    """What a log-probability is divided by, so that long texts compare with short ones.

    ((5 + length) / 6) ** alpha (Wu et al. 2016, equation 14); alpha 0.6 and four beams are those of
    Vaswani et al. 2017, section 6.1.

    Args:
        length: tokens, the end mark included.
    """
    return float(((5 + length) / 6) ** alpha)


@torch.no_grad()
def generate(
    model: BertForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    settings: GenerationSettings | None = None,
    word_starts: Tensor | None = None,
    spaced_ids: Tensor | None = None,
) -> list[Generated]:
    """Writes the best text found for each source, in their order.

    Beam search: of all W * V continuations of a source's hypotheses the best 2 W are looked at.
    One that ends and is among the best W is finished; of the others the best W live on. A source
    is done with W finished hypotheses, or when no live one can beat the best finished one,
    however it goes on. Where none has finished at max_length, the best live one is cut there.
    With one beam this is greedy search: the likeliest token each time, up to the end mark.

    The model should be in eval mode.

    Args:
        input_ids, attention_mask: (B, S), as in `BertModel`.
        word_starts: (V,) bool, the tokens that begin a word (`TargetTokenizer.word_starts`), for
            no_repeat_ngram_size; None: every token is a word.
        spaced_ids: (V,), what a text's first token is elsewhere (`TargetTokenizer.spaced_ids`), for
            the same; None: itself.

    Raises:
        InputError: max_length beyond the model's max_target_positions.
    """
    settings = settings or GenerationSettings()
    if not len(input_ids):
        return []
    search = _Search(model, input_ids, attention_mask, settings, word_starts, spaced_ids)
    while search.step():
        pass
    return search.found


@torch.no_grad()
def rehearse(
    model: BertForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    settings: GenerationSettings,
    lengths: Tensor,
    word_starts: Tensor | None = None,
) -> None:
    """The work of `generate` for texts of given lengths, whatever the model would write.

    It tells how long writing will take: a model that has not learnt yet ends at once or never.

    Args:
        lengths: (B,) tokens after which a source is done.
    """
    search = _Rehearsal(model, input_ids, attention_mask, settings, word_starts)
    search.lengths = lengths
    while search.step():
        pass


class _Search:
    """The state of one batch's beam search; `step` writes one token of every live hypothesis."""

    def __init__(
        self,
        model: BertForConditionalGeneration,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        settings: GenerationSettings,
        word_starts: Tensor | None,
        spaced_ids: Tensor | None = None,
    ) -> None:
        self.decoder, self.settings = model.decoder, settings
        self.word_starts, self.spaced_ids = word_starts, spaced_ids
        self.marks: DecoderConfig = model.decoder_config
        positions = self.marks.max_target_positions
        self.max_length = settings.max_length or positions
        if self.max_length > positions:
            raise InputError(
                f"max_length is {self.max_length}, but max_target_positions is {positions}"
            )
        self.cache: Cache = model.begin(input_ids, attention_mask)
        batch, beams, device = len(input_ids), settings.num_beams, input_ids.device
        self.found: list[Generated] = [Generated([], -float("inf"), False)] * batch
        self.numbers = torch.arange(batch, device=device)  # which sources these are
        self.tokens = torch.zeros(batch, beams, 0, dtype=torch.int64, device=device)  # (B, W, t)
        self.scores = torch.full((batch, beams), -torch.inf, device=device)  # log-probabilities
        self.scores[:, 0] = 0.0  # all hypotheses are alike: one is enough
        self.best = torch.full((batch,), -torch.inf, device=device)  # finished, normalised
        self.best_tokens = torch.zeros(batch, self.max_length, dtype=torch.int64, device=device)
        self.best_length = torch.zeros(batch, dtype=torch.int64, device=device)
        self.num_finished = torch.zeros(batch, dtype=torch.int64, device=device)
        self.is_done = torch.zeros(batch, dtype=torch.bool, device=device)
        # Which slots of the cache each hypothesis is made of: (B, W, t * W).
        self.slots = torch.zeros(batch, beams, 0, dtype=torch.bool, device=device)

    def step(self) -> bool:
        """Writes one token; False when every source is done."""
        log_probs = self._log_probs()  # (B, W, V)
        batch, beams, size = log_probs.shape
        totals = (self.scores[:, :, None] + log_probs).view(batch, beams * size)
        top, places = totals.topk(min(2 * beams, beams * size))  # falling, (B, 2W)
        parents, tokens = places // size, places % size
        ends = tokens == self.marks.target_eos_token_id
        self._finish(top, parents, ends)
        live, chosen = top.masked_fill(ends, -torch.inf).topk(beams)  # (B, W)
        self.scores = live
        self._extend(parents.gather(1, chosen), tokens.gather(1, chosen))
        return self._close()

    def _log_probs(self) -> Tensor:
        """Log-probabilities of every next token, -inf for those that may not come."""
        batch, beams, written = self.tokens.shape
        if written:
            last = self.tokens[:, :, -1]
        else:
            last = self.numbers.new_full((batch, beams), self.marks.target_bos_token_id)
        mask = None
        if beams > 1:
            own = torch.eye(beams, dtype=torch.bool, device=last.device).expand(batch, -1, -1)
            self.slots = torch.cat([self.slots, own], 2)
            mask = self.slots[:, None]
        log_probs = self.decoder.step(last, self.cache, mask).float().log_softmax(-1)
        never = self.marks.target_bos_token_id
        log_probs[:, :, never] = -torch.inf
        log_probs[:, :, self.marks.target_pad_token_id] = -torch.inf
        n = self.settings.no_repeat_ngram_size
        if 0 < n <= written:
            forbid_repeats(log_probs, self.tokens, n, never, self.word_starts, self.spaced_ids)
        return log_probs

    def _finish(self, top: Tensor, parents: Tensor, ends: Tensor) -> None:
        """Keeps the best of the hypotheses that end here."""
        beams, length = self.settings.num_beams, self.tokens.shape[2] + 1
        ended = ends & top.isfinite() & ~self.is_done[:, None]
        ended[:, beams:] = False
        normalised = (top / length_divisor(length, self.settings.length_penalty)).masked_fill(
            ~ended, -torch.inf
        )
        score, which = normalised.max(1)  # (B,)
        rows = (score > self.best).nonzero()[:, 0]
        parent = parents[rows, which[rows]]
        self.best_tokens[rows, : length - 1] = self.tokens[rows, parent]
        self.best_length[rows] = length - 1
        self.best[rows] = score[rows]
        self.num_finished += ended.sum(1)

    def _extend(self, parents: Tensor, tokens: Tensor) -> None:
        """Puts (B, W) tokens behind the hypotheses they continue."""
        history = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([history, tokens[:, :, None]], 2)
        if self.settings.num_beams > 1:
            every = parents[:, :, None].expand(-1, -1, self.slots.shape[2])
            self.slots = self.slots.gather(1, every)

    def _close(self) -> bool:
        """Marks and hands out the sources that are done; False when none is left."""
        self.is_done |= self._settled()
        if self.tokens.shape[2] == self.max_length:
            self.is_done[:] = True
        count = int(self.is_done.sum())
        batch = len(self.numbers)
        if count < batch and count * _DONE_SHARE < batch:
            return True
        self._hand_out(self.is_done.nonzero()[:, 0])
        if count == batch:
            return False
        self._keep((~self.is_done).nonzero()[:, 0])
        return True

    def _settled(self) -> Tensor:
        """(B,), whether nothing better can come: see `generate`."""
        beams, alpha = self.settings.num_beams, self.settings.length_penalty
        # Log-probabilities only fall, so this is the most that a live hypothesis can come to.
        bound = self.scores.amax(1) / length_divisor(self.max_length, alpha)
        return (self.num_finished >= beams) | (self.best >= bound)

    def _hand_out(self, rows: Tensor) -> None:
        length = self.tokens.shape[2]
        divisor = length_divisor(length, self.settings.length_penalty)
        cut, cut_scores = self.tokens[rows, 0].tolist(), (self.scores[rows, 0] / divisor).tolist()
        whole, scores = self.best_tokens[rows].tolist(), self.best[rows].tolist()
        lengths = self.best_length[rows].tolist()
        for i, number in enumerate(self.numbers[rows].tolist()):
            if scores[i] > -float("inf"):
                self.found[number] = Generated(whole[i][: lengths[i]], scores[i], True)
            else:
                self.found[number] = Generated(cut[i], cut_scores[i], False)

    def _keep(self, rows: Tensor) -> None:
        for name in (
            *("numbers", "tokens", "scores", "best", "best_tokens", "best_length"),
            *("num_finished", "is_done", "slots"),
        ):
            setattr(self, name, getattr(self, name).index_select(0, rows))
        self.cache.keep(rows)


class _Rehearsal(_Search):
    """A search in which sources are done after given numbers of tokens."""

    lengths: Tensor

    def _settled(self) -> Tensor:
        return self.tokens.shape[2] >= self.lengths[self.numbers]


def forbid_repeats(
    log_probs: Tensor,
    tokens: Tensor,
    n: int,
    never: int,
    word_starts: Tensor | None = None,
    spaced_ids: Tensor | None = None,
) -> None:
    """Sets to -inf, in place, what would write n words in a row a second time.

    A word goes from a token that begins one to the next. The n-th word of a row is the one that is
    being written, or one that begins now; its token is forbidden if it would make it, and the words
    before it, what has been written before and ended there.

    Args:
        log_probs: (B, W, V). tokens: (B, W, t), written up to now, t >= 1.
        never: a token that is forbidden anyway.
        word_starts: (V,) bool, spaced_ids: (V,), as in `generate`.
    """
    length = tokens.shape[2]
    if spaced_ids is not None:
        tokens = torch.cat([spaced_ids[tokens[:, :, :1]], tokens[:, :, 1:]], 2)
    if word_starts is None:
        word_starts = torch.ones(log_probs.shape[2], dtype=torch.bool, device=tokens.device)
    begins = word_starts[tokens]
    begins[:, :, 0] = True
    words = begins.sum(2)  # the last of them may not be whole
    places = torch.arange(length, device=tokens.device)
    number = begins.cumsum(2)  # of each token's word, from 1
    # How many tokens before each place are those at the end, (B, W, t), no more than a row has.
    longest = int((number > (words - n)[:, :, None]).sum(2).max())
    agree, common = torch.ones_like(begins), torch.zeros_like(number)
    for back in range(1, min(longest + 1, length)):
        same = tokens[:, :, : length - back] == tokens[:, :, length - back, None]
        agree = agree & torch.cat([torch.zeros_like(begins[:, :, :back]), same], 2)
        common += agree
    ends = torch.cat([begins[:, :, 1:], torch.zeros_like(begins[:, :, :1])], 2)
    for is_new in (True, False):  # the token begins the n-th word, or goes on with it
        first = words - n + (2 if is_new else 1)  # the word that the row begins with
        is_possible = (first >= 1)[:, :, None]
        ends[:, :, -1] = is_new
        row = (number >= first[:, :, None]).sum(2)  # its tokens up to now
        origin = places - row[:, :, None]
        is_row = begins.gather(2, origin.clamp(min=0)) & (origin >= 0)
        found = (common >= row[:, :, None]) & is_row & ends & (word_starts[tokens] == is_new)
        log_probs.scatter_(2, tokens.where(found & is_possible, never), -torch.inf)
