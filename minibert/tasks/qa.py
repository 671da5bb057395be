"""Questions answered by a stretch of a text: reader, encoding, decoding, errors, a baseline.

In: SQuAD files (Rajpurkar et al. 2016; 2018 for version 2.0, where a question may have no answer).
Out: windows of question and context with the answer's first and last token, and the likeliest
stretches of the original context, cut out of it by character.

Shapes: B batch, T tokens of a window, P sub-words of a context, A longest answer, n candidates.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.corpus import split_sentences
from minibert.errors import InputError
from minibert.files import read_text, whole_characters
from minibert.tasks.squad_scores import answer_scores, normalise_answer
from minibert.tokenizer import WordPiece


class Answer(NamedTuple):
    """An answer as its file gives it: `context[start : start + len(text)]` should be the text.

    start: in characters; -1 where the file has none.
    """

    text: str
    start: int


class Question(NamedTuple):
    """A question on a context, with all accepted answers; none: it has no answer.

    article, paragraph: where the context stands in its file, counted from 0.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    article: int = 0
    paragraph: int = 0


# --- reader ---------------------------------------------------------------------------------------

_PACKED = ("", ".gz", ".xz", ".bz2")
_NAMED = 3  # ids that a note names


def find_split(folder: Path, split: str, version_2: bool) -> Path | None:
    """The file of a split ("train", "dev" or "test") in a folder, or None."""
    version = "v2.0" if version_2 else "v1.1"
    for stem in (f"{split}-{version}", split):
        for packed in _PACKED:
            if (path := folder / f"{stem}.json{packed}").is_file():
                return path
    return None


def read_squad(path: Path) -> tuple[list[Question], list[str]]:
    """Reads a file in the format of SQuAD: articles of paragraphs of questions.

    Texts are kept to the character, so that answers can be cut out of them; half a surrogate pair
    becomes U+FFFD. Questions with an id seen before get another.

    Returns:
        The questions in the order of the file, and a line for each thing noticed.

    Raises:
        InputError: not that format (the place is named), or no questions.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    questions: list[Question] = []
    repeated: list[str] = []
    contradicting: list[str] = []
    seen: Counter[str] = Counter()
    for number, article in enumerate(_items(content, "data", str(path))):
        place = f"{path}, article {number + 1}"
        for index, paragraph in enumerate(_items(article, "paragraphs", place)):
            where = f"{place}, paragraph {index + 1}"
            context = _string(paragraph, "context", where)
            for turn, row in enumerate(_items(paragraph, "qas", where)):
                here = f"{where}, question {turn + 1}"
                text = _string(row, "question", here)
                given = row.get("answers") or []
                answers = tuple(
                    _answer(a, here) for a in _items({"answers": given}, "answers", here)
                )
                name = str(row.get("id") or f"{number}/{index}/{turn}")
                seen[name] += 1
                if seen[name] > 1:
                    repeated.append(name)
                    name = f"{name}#{seen[name]}"
                if row.get("is_impossible") and answers:
                    contradicting.append(name)
                questions.append(Question(name, text, context, answers, number, index))
    if not questions:
        raise InputError(f"{path} holds no questions; expected SQuAD's data, paragraphs, qas")
    notes = []
    if repeated:
        notes.append(_named("ids seen before, numbered", repeated))
    if contradicting:
        notes.append(
            _named("said to be impossible but with answers, which are used", contradicting)
        )
    return questions, notes


def _items(row: Any, key: str, place: str) -> list[Any]:
    found = row.get(key) if isinstance(row, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{place} has no list {key!r}; expected the format of SQuAD")
    return found


def _string(row: Any, key: str, place: str) -> str:
    found = row.get(key) if isinstance(row, dict) else None
    if not isinstance(found, str):
        raise InputError(f"{place} has no text {key!r}; expected the format of SQuAD")
    return whole_characters(found)


def _answer(row: Any, place: str) -> Answer:
    text = _string(row, "text", f"{place}, an answer")
    start = row.get("answer_start", -1)
    return Answer(text, start if isinstance(start, int) else -1)


def _named(what: str, ids: Sequence[str]) -> str:
    """`3 what (first: a, b, c)`."""
    return f"{len(ids):,} {what} (first: {', '.join(ids[:_NAMED])})"


def for_training(
    questions: Sequence[Question], version_2: bool
) -> tuple[list[Question], list[str]]:
    """The questions that can be learnt from, each with the answers that stand in its context.

    An answer that its context has elsewhere is moved to the place nearest to where the file says;
    one that it has nowhere is dropped. White space around an answer is not part of it. Questions
    without a usable answer are dropped, those without any answer at all kept in version 2.0.

    Returns:
        The questions, and a line with a count and the first ids for each kind of repair.
    """
    kept: list[Question] = []
    moved: list[str] = []
    lost: list[str] = []
    unanswered: list[str] = []
    for question in questions:
        if not question.answers:
            unanswered.append(question.id)
            if version_2:
                kept.append(question)
            continue
        found = [f for a in question.answers if (f := _locate(question.context, a)) is not None]
        if not found:
            lost.append(question.id)
            continue
        trimmed = [(a.text.strip(), a.start + _indent(a.text)) for a in question.answers]
        if any((answer.text, answer.start) not in trimmed for answer in found):
            moved.append(question.id)
        kept.append(question._replace(answers=tuple(found)))
    notes = []
    if moved:
        notes.append(_named("answers stood elsewhere in their context, moved there", moved))
    if lost:
        notes.append(_named("answers are not in their context, dropped", lost))
    if unanswered and not version_2:
        notes.append(_named("questions without an answer dropped", unanswered))
    return kept, notes


def for_scoring(questions: Sequence[Question], version_2: bool) -> tuple[list[Question], list[str]]:
    """The questions that can be scored: in version 1.1 those with an answer.

    Answers stay as they are: the official scripts look at their texts alone.
    """
    if version_2:
        return list(questions), []
    dropped = [q.id for q in questions if not q.answers]
    kept = [q for q in questions if q.answers]
    return kept, [_named("questions without an answer left out", dropped)] if dropped else []


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _locate(context: str, answer: Answer) -> Answer | None:
    """The answer where its context has it, the nearest place first; None where it has it not."""
    text, start = answer.text.strip(), answer.start + _indent(answer.text)
    if not text:
        return None
    if start >= 0 and context.startswith(text, start):
        return Answer(text, start)
    places = [m.start() for m in re.finditer(f"(?={re.escape(text)})", context)]
    if not places:
        return None
    return Answer(text, min(places, key=lambda place: abs(place - start)))


def split_by_article(
    questions: Sequence[Question], share: float = 0.2
) -> tuple[list[Question], list[Question]]:
    """Cuts the last articles off, in the order of the file; paragraphs stay on one side.

    A share of 0.2 parts the 48 articles of SQuAD's dev-v1.1.json into 38 to train on and 10 to
    score on. Of a single article, paragraphs are parted.

    Args:
        share: of the articles, at least one.

    Raises:
        InputError: all questions are on one paragraph.
    """
    places = sorted({q.article for q in questions})
    keys: list[Any] = [q.article for q in questions]
    if len(places) == 1:
        keys = [q.paragraph for q in questions]
        places = sorted(set(keys))
    if len(places) < 2:
        raise InputError("all questions are on one paragraph; a split to score on needs a second")
    count = min(len(places) - 1, max(1, round(share * len(places))))
    later = set(places[-count:])
    first = [q for q, key in zip(questions, keys, strict=True) if key not in later]
    return first, [q for q, key in zip(questions, keys, strict=True) if key in later]


def read_squad_data(path: Path, version_2: bool) -> tuple[dict[str, list[Question]], list[str]]:
    """Reads a data set: a folder with SQuAD's files, or one file.

    SQuAD's test set is not public: where there is no test file, dev is what is scored ("test").
    A single file, or a folder with dev alone, is split by article.

    Returns:
        "train" and "test", and "dev" where all three files are there; and lines about them.

    Raises:
        InputError: no file with a name that SQuAD uses.
    """
    if path.is_dir():
        found = {s: f for s in ("train", "dev", "test") if (f := find_split(path, s, version_2))}
        if not found:
            raise InputError(f"{path} holds no train or dev file of SQuAD, such as train-v1.1.json")
    else:
        found = {"train": path}
    notes: list[str] = []
    read: dict[str, list[Question]] = {}
    for name, file in found.items():
        read[name], lines = read_squad(file)
        notes += [f"{file.name}: {line}" for line in lines]
    if len(read) == 1:
        (only,) = read.values()
        train, test = split_by_article(only)
        read = {"train": train, "test": test}
        notes.append(
            f"split by article: {len(train):,} questions to train on, {len(test):,} to score on"
        )
    elif "test" not in read:
        read["test"] = read.pop("dev")
    elif "train" not in read:
        read["train"] = read.pop("dev")
    out = {}
    for name, rows in read.items():
        choose = for_training if name == "train" else for_scoring
        out[name], lines = choose(rows, version_2)
        notes += [f"{name}: {line}" for line in lines]
        if not out[name]:
            raise InputError(f"{path}: no question of the {name} split has a usable answer")
    return out, notes


# --- encoding -------------------------------------------------------------------------------------


class Window(NamedTuple):
    """[CLS] question [SEP] a stretch of its context [SEP].

    question: which one. input_ids: (T,). first_context: where the context begins in input_ids.
    first_piece: the context's sub-word that stands there. start, end: the answer's first and last
    token in input_ids; 0, [CLS], where the window does not have the whole answer.
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
    """

    windows: list[Window]
    offsets: list[np.ndarray]


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
    windows = []
    for number, (question, ids) in enumerate(zip(questions, asked, strict=True)):
        context, offsets = pieces[question.context]
        head = [tokenizer.cls_id, *ids[:longest], tokenizer.sep_id]
        room = max_seq_length - len(head) - 1
        span = answer_pieces(offsets, question.answers[0]) if question.answers else None
        for first, last in _stretches(len(context), room, doc_stride):
            row = np.concatenate([head, context[first:last], [tokenizer.sep_id]]).astype(np.int64)
            start = end = 0
            if span is not None and first <= span[0] and span[1] < last:
                start, end = (place - first + len(head) for place in span)
            windows.append(Window(number, row, len(head), first, start, end))
    return Encoded(windows, [pieces[q.context][1] for q in questions])


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
    max_answer_tokens: int = 30,
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
    """An end that leaves no accent behind: the tokenizer drops combining marks."""
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return end


def _softmax(scores: Sequence[float]) -> list[float]:
    if not scores:
        return []
    shares = np.exp(np.array(scores) - max(scores))
    return [float(share) for share in shares / shares.sum()]


# --- errors ---------------------------------------------------------------------------------------

_KINDS = ("partly right", "another place", "gave no answer", "has no answer")
_ASKED = re.compile(r"\b(who|whom|whose|what|which|when|where|why|how (?:many|much)|how)\b")


def asked_for(question: str) -> str:
    """The question's first question word ("how many" is one), or "other"."""
    match = _ASKED.search(question.lower())
    return match.group(1) if match else "other"


def error_lines(
    questions: Sequence[Question],
    predicted: Sequence[str],
    scores: Sequence[float] | None = None,
    version_2: bool = False,
    limit: int = 40,
) -> list[str]:
    """A listing to read from the top: figures by question word, how many of each kind, cases.

    Args:
        predicted: one answer a question.
        scores: how sure each answer is; the surest mistakes of each kind come first.
        limit: of cases, shared between the kinds.
    """
    figures = [
        answer_scores([a.text for a in q.answers], p, version_2)
        for q, p in zip(questions, predicted, strict=True)
    ]
    words = [asked_for(q.question) for q in questions]
    lines = []
    for word, count in sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])):
        alike = [f for f, w in zip(figures, words, strict=True) if w == word]
        exact, f1 = (100 * sum(f[k] for f in alike) / count for k in (0, 1))
        lines.append(f"{word}: {count:,} questions, exact match {exact:.1f}, F1 {f1:.1f}")
    kinds: dict[str, list[int]] = {kind: [] for kind in _KINDS}
    for i, (question, text) in enumerate(zip(questions, predicted, strict=True)):
        if not figures[i][0]:
            kinds[_kind(question, text, figures[i][1])].append(i)
    lines.append(", ".join(f"{len(own):,} {k}" for k, own in kinds.items() if own) or "no errors")
    present = max(1, sum(bool(own) for own in kinds.values()))
    for kind, own in kinds.items():
        own.sort(key=lambda i: -scores[i] if scores is not None else 0.0)
        for i in own[: -(-limit // present)]:
            lines.append(
                _case(kind, questions[i], predicted[i], None if scores is None else scores[i])
            )
    return lines


def _kind(question: Question, text: str, f1: float) -> str:
    if not question.answers:
        return "has no answer"
    if not text:
        return "gave no answer"
    return "partly right" if f1 else "another place"


def _case(kind: str, question: Question, text: str, score: float | None) -> str:
    golds = " / ".join(dict.fromkeys(repr(a.text) for a in question.answers)) or "none"
    sure = f" ({score:.2f})" if score is not None else ""
    shown = ""
    if question.answers and (place := _locate(question.context, question.answers[0])):
        first, last = max(0, place.start - 60), place.start + len(place.text) + 60
        shown = " | …" + " ".join(question.context[first:last].split()) + "…"
    asked = " ".join(question.question.split())
    return f"{kind}{sure}: {question.id} {asked} {golds} -> {text!r}{shown}"


# --- baseline -------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\w+(?:[-'.,]\w+)*")
_SHORTEST_NAME = 2


def guess(question: str, context: str) -> str:
    """The line a model has to pass: words in common, nothing learnt.

    After the sliding-window baseline of Rajpurkar et al. 2016, section 5: the sentence that shares
    most with the question, rare words counting more (Richardson et al. 2013), and in it the
    stretch of new words that is likeliest by its form: numbers after "when" and "how many", names
    otherwise; of several the one nearest to words of the question.
    """
    words = [w.lower() for w in _TOKEN.findall(context)]
    counts = Counter(words)
    asked = {w.lower() for w in _TOKEN.findall(question)}
    sentences = [s for line in re.split(r"[\r\n]+", context) for s in split_sentences(line)]

    def shared(sentence: str) -> float:
        own = {w.lower() for w in _TOKEN.findall(sentence)} & asked
        return sum(math.log(1 + 1 / counts[w]) for w in own if counts[w])

    if not sentences:
        return ""
    sentence = max(sentences, key=shared)
    tokens = list(_TOKEN.finditer(sentence))
    known = [i for i, t in enumerate(tokens) if t.group().lower() in asked]
    wants_number = asked_for(question) in ("when", "how many", "how much")
    wants_number |= bool(asked & {"year", "date", "century", "percentage"})

    def fits(i: int) -> bool:
        text = tokens[i].group()
        if text.lower() in asked:
            return False
        return text[0].isdigit() if wants_number else text[0].isupper() and i > 0

    runs: list[tuple[int, int]] = []
    for i in range(len(tokens)):
        if fits(i):
            joined = (
                runs
                and runs[-1][1] == i
                and not re.search(r"[^\s\w]", sentence[tokens[i - 1].end() : tokens[i].start()])
            )
            if joined:
                runs[-1] = (runs[-1][0], i + 1)
            else:
                runs.append((i, i + 1))
    if not runs:
        return sentence if len(normalise_answer(sentence)) >= _SHORTEST_NAME else ""
    first, last = min(runs, key=lambda r: sum(min(abs(i - k), 10) for k in known for i in r[:1]))
    return sentence[tokens[first].start() : tokens[last - 1].end()]
