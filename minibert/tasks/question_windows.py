"""Questions and their contexts as windows of tokens, and the answers that a model's scores mean.

In: questions. Out: windows of [CLS] question [SEP] stretch of the context [SEP] with the answer's
first and last token, and the likeliest stretches of the original context, cut out of it by
character.

Shapes: B batch, T tokens of a window, P sub-words of a context, A longest answer, n candidates.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.errors import InputError
from minibert.files import whole_characters
from minibert.tasks.questions import Answer, Question, located
from minibert.tokenizer import WordPiece

MAX_ANSWER_PIECES = 30  # sub-words of an answer at most, as in the reference


class Window(NamedTuple):
    """[CLS] question [SEP] a stretch of its context [SEP].

    question: which one. input_ids: (T,). first_context: where the context begins in input_ids.
    first_piece: the context's sub-word that stands there. start, end: the answer's first and last
    token in input_ids; 0, [CLS], where the window does not have the whole answer; -1 where the
    context does not have it, so that there is nothing to learn.
    """

    question: int
    input_ids: np.ndarray
    first_context: int
    first_piece: int
    start: int
    end: int


class Encoded(NamedTuple):
    """Windows of all questions, and for each question where its context's sub-words stand.

    offsets: (P, 2) of each question, [start, end) in characters of the original context.
    cut_questions: how many lost their end. long_answers: how many have more than
    `MAX_ANSWER_PIECES` sub-words.
    """

    windows: list[Window]
    offsets: list[np.ndarray]
    cut_questions: int = 0
    long_answers: int = 0


def encode_questions(
    questions: Sequence[Question],
    tokenizer: WordPiece,
    max_seq_length: int,
    doc_stride: int = 128,
    max_question_tokens: int = 64,
) -> Encoded:
    """Windows of each question; a long context is cut into several that overlap.

    As in the reference (google-research/bert, run_squad.py), but the last window is filled up
    from the left. A question longer than `max_question_tokens` or half the room loses its end.

    Args:
        doc_stride: sub-words from the start of a window to that of the next; at most half of the
            context that a window holds, so that windows overlap.

    Raises:
        InputError: max_seq_length is below 8.
    """
    if max_seq_length < 8:
        raise InputError(f"--max-seq-length {max_seq_length} leaves no room; give 8 or more")
    longest = min(max_question_tokens, (max_seq_length - 3) // 2)
    asked = tokenizer.ids([whole_characters(q.question) for q in questions])
    distinct = list(dict.fromkeys(q.context for q in questions))
    pieces = dict(zip(distinct, _pieces(distinct, tokenizer), strict=True))
    windows, long_answers = [], 0
    for number, (question, ids) in enumerate(zip(questions, asked, strict=True)):
        context, offsets = pieces[question.context]
        head = [tokenizer.cls_id, *ids[:longest], tokenizer.sep_id]
        room = max_seq_length - len(head) - 1
        answers = located(question)
        span = answer_pieces(offsets, answers[0]) if answers else None
        absent = -1 if question.answers and span is None else 0
        long_answers += span is not None and span[1] - span[0] >= MAX_ANSWER_PIECES
        for first, last in _stretches(len(context), room, doc_stride):
            row = np.concatenate([head, context[first:last], [tokenizer.sep_id]]).astype(np.int64)
            start = end = absent
            if span is not None and first <= span[0] and span[1] < last:
                start, end = (place - first + len(head) for place in span)
            windows.append(Window(number, row, len(head), first, start, end))
    num_cut = sum(len(ids) > longest for ids in asked)
    return Encoded(windows, [pieces[q.context][1] for q in questions], num_cut, long_answers)


def _pieces(texts: list[str], tokenizer: WordPiece) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids (P,) and character offsets (P, 2) of each text."""
    for at in range(0, len(texts), 1000):
        part = [whole_characters(text) for text in texts[at : at + 1000]]
        for found in tokenizer.backend.encode_batch(part, add_special_tokens=False):
            yield np.array(found.ids, np.int64), np.array(found.offsets, np.int64).reshape(-1, 2)


def _stretches(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """[first, last) of windows over `count` sub-words; the last one ends with them."""
    step = max(1, min(stride, room // 2))
    if count <= room:
        return [(0, count)]
    firsts = [*range(0, count - room, step), count - room]
    return [(first, first + room) for first in firsts]


def answer_pieces(offsets: np.ndarray, answer: Answer) -> tuple[int, int] | None:
    """The first and last sub-word that an answer touches; None where it touches none.

    Args:
        offsets: (P, 2), [start, end) in characters.
    """
    first = int(np.searchsorted(offsets[:, 1], answer.start, "right"))
    last = int(np.searchsorted(offsets[:, 0], answer.start + len(answer.text), "left")) - 1
    return (first, last) if answer.start >= 0 and first <= last else None


def collate(windows: Sequence[Window], pad_id: int) -> dict[str, Tensor]:
    """A batch padded to its longest window.

    Returns:
        input_ids, token_type_ids, attention_mask: (B, T) int64. answer_mask: (B, T) bool, the
        context and [CLS]. start_positions, end_positions: (B,) int64.
    """
    lengths = np.array([len(w.input_ids) for w in windows])
    firsts = np.array([w.first_context for w in windows])
    places = np.arange(lengths.max())[None]
    ids = np.full((len(windows), lengths.max()), pad_id, np.int64)
    for row, window in enumerate(windows):
        ids[row, : len(window.input_ids)] = window.input_ids
    second = (places >= firsts[:, None]) & (places < lengths[:, None])
    context = second & (places < lengths[:, None] - 1)  # without the last [SEP]
    arrays = {
        "input_ids": ids,
        "token_type_ids": second.astype(np.int64),
        "attention_mask": (places < lengths[:, None]).astype(np.int64),
        "answer_mask": context | (places == 0),
        "start_positions": np.array([w.start for w in windows], np.int64),
        "end_positions": np.array([w.end for w in windows], np.int64),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


# --- decoding -------------------------------------------------------------------------------------


class Spans(NamedTuple):
    """The best stretches of each window, best first.

    scores: (B, n) start + end logit, -inf where a window has fewer. starts, ends: (B, n) tokens.
    null: (B,) start + end logit of [CLS].
    """

    scores: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    null: np.ndarray


def best_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    answer_mask: Tensor,
    n_best: int = 20,
    max_answer_tokens: int = MAX_ANSWER_PIECES,
) -> Spans:
    """The n best of all stretches start <= end of at most `max_answer_tokens`, exactly.

    Args:
        start_logits, end_logits: (B, T).
        answer_mask: (B, T) bool, as `collate` gives it.
    """
    starts, ends = start_logits.float(), end_logits.float()
    null = starts[:, 0] + ends[:, 0]
    allowed = answer_mask.clone()
    allowed[:, 0] = False
    starts = starts.masked_fill(~allowed, -math.inf)
    ends = ends.masked_fill(~allowed, -math.inf)
    length = min(max_answer_tokens, starts.shape[1])
    later = torch.nn.functional.pad(ends, (0, length - 1), value=-math.inf).unfold(1, length, 1)
    pairs = (starts[:, :, None] + later).flatten(1)  # (B, T, A) -> (B, T*A)
    scores, places = pairs.topk(min(n_best, pairs.shape[1]))
    first = places // length
    found = (scores, first, first + places % length, null)
    return Spans(*(part.cpu().numpy() for part in found))


class Candidate(NamedTuple):
    """A possible answer: `context[start:end]`, its start + end logit, and its probability.

    The probability is among the candidates of its question, and no answer in version 2.0.
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


class Reply(NamedTuple):
    """All candidates of a question, best first, and how much speaks for none of them.

    null_score: the null logit (of the window least sure of it) minus the best candidate's; a
    question whose null score is above a threshold is left without an answer.
    """

    candidates: list[Candidate]
    null_score: float

    def best(self, threshold: float | None = None) -> str:
        """The answer; "" above the threshold, or where there is no candidate."""
        if not self.candidates or (threshold is not None and self.null_score > threshold):
            return ""
        return self.candidates[0].text


def replies(
    questions: Sequence[Question],
    encoded: Encoded,
    spans: Sequence[Spans],
    version_2: bool = False,
    n_best: int = 20,
) -> list[Reply]:
    """Joins the stretches of each question's windows, and cuts them out of its context.

    Args:
        spans: of all windows in turn, in batches of any size.
    """
    found: list[dict[tuple[int, int], float]] = [{} for _ in questions]
    nulls = [math.inf] * len(questions)
    rows = ((s, i) for s in spans for i in range(len(s.null)))
    for window, (batch, i) in zip(encoded.windows, rows, strict=True):
        number, shift = window.question, window.first_piece - window.first_context
        nulls[number] = min(nulls[number], float(batch.null[i]))
        count = int((batch.scores[i] > -math.inf).sum())  # they come sorted
        own = found[number]
        for score, start, end in zip(
            batch.scores[i, :count].tolist(),
            (batch.starts[i, :count] + shift).tolist(),
            (batch.ends[i, :count] + shift).tolist(),
            strict=True,
        ):
            if score > own.get((start, end), -math.inf):
                own[start, end] = score
    out = []
    for question, offsets, own, null in zip(questions, encoded.offsets, found, nulls, strict=True):
        best = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:n_best]
        scores = [score for _, score in best]
        shares = _softmax([*scores, null] if version_2 else scores)
        candidates = []
        for ((first, last), score), share in zip(best, shares, strict=False):
            start, end = int(offsets[first, 0]), _whole(question.context, int(offsets[last, 1]))
            text = question.context[start:end]
            candidates.append(Candidate(text, start, end, score, share))
        out.append(Reply(candidates, null - (scores[0] if scores else 0.0)))
    return out


def _whole(text: str, end: int) -> int:
    """An end that leaves no accent or vowel sign behind: the tokenizer drops all marks of Mn."""
    while end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return end


def _softmax(scores: Sequence[float]) -> list[float]:
    if not scores:
        return []
    shares = np.exp(np.array(scores) - max(scores))
    return [float(share) for share in shares / shares.sum()]
