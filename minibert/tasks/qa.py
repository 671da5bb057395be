"""Questions answered by a stretch of a text (Devlin et al. 2019, sections 4.2 and 4.3).

In: questions (`questions.py`), encoded by `question_windows.py`. Out: features for
`BertForQuestionAnswering`, answers, and their official figures (`squad_scores.py`).

Shapes: B batch, T tokens of a window.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from minibert.config import BertConfig
from minibert.corpus import split_sentences
from minibert.errors import InputError, TextError
from minibert.files import read_json, whole_characters, write_json
from minibert.run_folder import RunFolder
from minibert.runs import log_line
from minibert.settings import FinetuneSettings
from minibert.tasks.base import Source, Splits, Task
from minibert.tasks.batches import Feature, inputs_of
from minibert.tasks.question_windows import (
    MAX_ANSWER_PIECES,
    Encoded,
    Reply,
    Spans,
    Window,
    best_spans,
    collate,
    encode_questions,
    replies,
)
from minibert.tasks.questions import (
    Question,
    locate,
    read_squad_data,
    read_squad_test,
    squad_files,
)
from minibert.tasks.squad_scores import (
    answer_scores,
    best_thresholds,
    normalise_answer,
    squad_figures,
)
from minibert.token_heads import BertForQuestionAnswering, span_loss
from minibert.tokenizer import WordPiece
from minibert.train import Batch, Term

_DOC_STRIDE = 128
_SHOWN = 5  # candidates in predictions.jsonl and in an answer
_FILE = "qa.json"
_WANTED = '{"question": "Who ...?", "context": "a text"}'


class Origin(NamedTuple):
    """A window, and where its context's sub-words stand: (P, 2), [start, end) in characters."""

    window: Window
    offsets: np.ndarray


@dataclass(frozen=True)
class Shown:
    """A possible answer: `context[start:end]`, and its probability among all."""

    text: str
    start: int
    end: int
    probability: float


@dataclass(frozen=True)
class QuestionAnswer:
    """The answer to a question; "" and no place where the model finds none.

    score: its probability among all candidates; a model that may find none counts that as one.
    """

    question: str
    prediction: str
    score: float
    start: int | None
    end: int | None
    candidates: list[Shown]


class QATask(Task[Question, Reply]):
    """The stretch of the context that answers a question; long contexts are read in windows.

    In version 2.0 a question may have none: it is left unanswered where the null score is above a
    threshold, which is chosen on dev and kept in qa.json.
    """

    names = ("squad", "squad2", "qa")
    model_class = BertForQuestionAnswering
    head = ("qa_outputs.",)
    metric = "f1"
    selectable: tuple[str, ...] = ("f1", "exact_match")
    uses = ("doc_stride",)

    def __init__(self, settings: FinetuneSettings) -> None:
        super().__init__(settings)
        if settings.truncation not in ("head", "windows"):
            raise InputError(
                f"--truncation {settings.truncation} has no use in {self.name}: all of a long "
                f"context is read, in windows"
            )
        # None: as the data has it.
        self.version_2 = {"squad": False, "squad2": True}.get(self.name)
        self.threshold: float | None = None
        # Of the run that the task is of, whatever the settings name later.
        self._data = None if settings.data is None else Path(settings.data)
        self._fingerprint: str | None = None
        self._told: set[str] = set()  # what is said once
        if self.name != self.names[-1]:
            self.places, self.sample = (f"data/downloads/{self.name}",), self.name

    # --- data ------------------------------------------------------------------------------------

    def texts(self, example: Question) -> tuple[str, ...]:
        return example.question, example.context

    def read(self, source: Source) -> Splits[Question]:
        files, notes = self._files(source)
        read, self.version_2, found = read_squad_data(files, self.version_2)
        sizes = [_size(name, rows, self.version_2) for name, rows in read.items()]
        notes = [", ".join(sizes), *notes, *found, *_shared(read)]
        return Splits(
            read["train"], read.get("test"), str(source.path), tuple(notes), read.get("dev")
        )

    def _files(self, source: Source) -> tuple[dict[str, Path], list[str]]:
        """Split -> file, and a line about what a file of the data is taken for.

        Raises:
            InputError: a folder without a train file, which is parted, and a dev split besides.
        """
        s, files = self.settings, squad_files(source.path, self.version_2)
        if s.dev_data is not None and "train" not in files:
            raise InputError(f"--dev-data goes with a train file, and {source.path} holds none")
        dev = files.get("dev")
        given = {"dev": s.dev_data, "test": s.test_data}
        files |= {split: Path(path) for split, path in given.items() if path is not None}
        if dev is None or "train" not in files:
            return files, []
        if "test" not in files:  # SQuAD's own is not public
            files["test"] = dev
            if s.dev_data is None:
                del files["dev"]
            named = "cut from train" if s.dev_data is None else Path(s.dev_data).name
            return files, [f"{dev.name} is the test split, dev is {named}"]
        return files, [f"{dev.name} is not read"] if s.dev_data is not None else []

    def read_to_score(self, source: Source) -> Splits[Question]:
        files = squad_files(source.path, self.version_2, to_score=True)
        if "train" in files:
            return self.read(source)
        part = "test" if "test" in files else "dev"
        if part == "dev" and (learnt := self._learnt(source)) is not None:
            return learnt
        rows, self.version_2, found = read_squad_test(files[part], self.version_2)
        notes = (_size(part, rows, self.version_2), *found)
        parts = {"dev": None, "test": None} | {part: rows}
        return Splits([], parts["test"], str(source.path), notes, parts["dev"])

    def _learnt(self, source: Source) -> Splits[Question] | None:
        """A folder with dev alone as the run parted it, some of which it was trained on.

        None where it is not the run's own, by its place or its content.
        """
        is_place = self._data is not None and self._data.resolve() == source.path.resolve()
        try:
            splits = self.read(source)
        except InputError:  # nothing that could have been learnt
            return None
        parts = (splits, dataclasses.replace(splits, test=None))  # the latter with --dev-only
        is_same = self._fingerprint in [known.fingerprint for known in parts]
        return splits if is_place or is_same else None

    def same(self, example: Question) -> str:
        """The context: one that is trained on tells much of the other questions on it."""
        return " ".join(example.context.split())

    def restore(self, folder: Path, config: BertConfig, tokenizer: WordPiece) -> None:
        super().restore(folder, config, tokenizer)
        if (folder / "run.json").is_file():
            self._fingerprint = RunFolder(folder).read_run().get("data_fingerprint")
        if (folder / _FILE).is_file():  # a folder of others has none
            kept = read_json(folder / _FILE, "it belongs to a fine-tuned folder")
            self.version_2 = bool(kept.get("no_answer"))
            threshold = kept.get("null_threshold")
            self.threshold = None if threshold is None else float(threshold)

    def save(self, folder: Path) -> None:
        write_json(
            folder / _FILE, {"no_answer": bool(self.version_2), "null_threshold": self.threshold}
        )

    def check_parts(self, dev: Sequence[Question], test: Sequence[Question] | None) -> None:
        """Raises InputError where dev would choose weights by silence alone, which is always right.

        Of a model that is finished, dev chooses nothing more.
        """
        if self.version_2 and dev and not self.is_finished and not any(q.answers for q in dev):
            raise InputError(
                f"{len(dev)} question(s) in dev, none with an answer: not to answer would be right "
                f"for all weights; raise --dev-fraction or name --dev-data"
            )

    # --- features and loss -----------------------------------------------------------------------

    def encode(self, examples: Sequence[Question]) -> list[list[Feature]]:
        settings = self.settings
        encoded = encode_questions(
            examples, self.tokenizer, settings.max_seq_length, settings.doc_stride or _DOC_STRIDE
        )
        self._tell_stride(encoded.windows)
        self._tell_cut(encoded, len(examples))
        found: list[list[Feature]] = [[] for _ in examples]
        for window in encoded.windows:
            origin = Origin(window, encoded.offsets[window.question])
            places = {"start_positions": window.start, "end_positions": window.end}
            found[window.question].append(Feature({"input_ids": window.input_ids}, places, origin))
        return found

    def _tell_stride(self, windows: Sequence[Window]) -> None:
        """Says once that the stride that was given is more than windows may overlap by."""
        s, counts = self.settings, Counter(window.question for window in windows)
        several = [w for w in windows if counts[w.question] > 1]
        most = min(((s.max_seq_length - w.first_context - 1) // 2 for w in several), default=None)
        if s.doc_stride is None or most is None or s.doc_stride <= most:
            return
        self._tell_once(
            "windows",
            f"--doc-stride {s.doc_stride} is above half of the context that a window holds, "
            f"{most} tokens beside the longest question; no more than half is taken",
        )

    def _tell_cut(self, encoded: Encoded, count: int) -> None:
        """Says once what is cut: ends of questions, and answers that are longer than any given."""
        if encoded.cut_questions:
            self._tell_once(
                "questions",
                f"{encoded.cut_questions:,} of {count:,} lose their end, beyond 64 sub-words or "
                f"half of a window",
            )
        if encoded.long_answers:
            self._tell_once(
                "answers",
                f"{encoded.long_answers:,} of {count:,} are longer than {MAX_ANSWER_PIECES} "
                f"sub-words, which no answer that is given is",
            )

    def _tell_once(self, topic: str, text: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            log_line(topic, text)

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        return collate([f.origin.window for f in features], self.tokenizer.pad_id)

    def count(self, features: Sequence[Feature]) -> dict[str, int]:
        return {"task": sum(f.labels["start_positions"] >= 0 for f in features)}

    def terms(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Term]:
        out, mask = forward(**inputs_of(batch)), batch["answer_mask"]
        starts, ends = batch["start_positions"], batch["end_positions"]
        loss, count = span_loss(out.start_logits, out.end_logits, starts, ends, mask)
        hits = (_likeliest(out.start_logits, mask) == starts) & (
            _likeliest(out.end_logits, mask) == ends
        )
        return {"task": Term(loss, count, hits.sum())}

    # --- predictions and figures -----------------------------------------------------------------

    def outputs(self, model: Any, batch: dict[str, Tensor]) -> list[Spans]:
        out = model(**inputs_of(batch))
        found = best_spans(out.start_logits, out.end_logits, batch["answer_mask"])
        return [Spans(*(part[i : i + 1] for part in found)) for i in range(len(found.null))]

    def decode(
        self,
        examples: Sequence[Question],
        features: list[list[Feature]],
        outputs: list[list[Spans]],
    ) -> list[Reply]:
        windows = [
            f.origin.window._replace(question=i) for i, own in enumerate(features) for f in own
        ]
        encoded = Encoded(windows, [own[0].origin.offsets for own in features])
        spans = [span for own in outputs for span in own]
        return replies(examples, encoded, spans, bool(self.version_2))

    def _answers(self, predictions: Sequence[Reply]) -> list[str]:
        return [p.best(self.threshold if self.version_2 else None) for p in predictions]

    def score(self, examples: Sequence[Question], predictions: Sequence[Reply]) -> dict[str, float]:
        """The official exact match and F1, 0..100; in version 2.0 by kind of question, too."""
        return squad_figures(_golds(examples), self._answers(predictions), bool(self.version_2))

    @property
    def chooses(self) -> bool:
        return bool(self.version_2)

    def choose(self, dev: Sequence[Question], predictions: Sequence[Reply]) -> None:
        """The threshold of no answer with the best F1."""
        texts = [p.best() for p in predictions]
        nulls = [p.null_score for p in predictions]
        self.threshold = best_thresholds(_golds(dev), texts, nulls).best_f1_threshold

    def details(self, examples: Sequence[Question], predictions: Sequence[Reply]) -> dict[str, Any]:
        by_word: dict[str, list[tuple[float, float]]] = {}
        for example, text in zip(examples, self._answers(predictions), strict=True):
            golds = [a.text for a in example.answers]
            scores = answer_scores(golds, text, bool(self.version_2))
            by_word.setdefault(asked_for(example.question), []).append(scores)
        table = {
            word: {
                "exact_match": 100 * float(np.mean([exact for exact, _ in scores])),
                "f1": 100 * float(np.mean([f1 for _, f1 in scores])),
                "support": len(scores),
            }
            for word, scores in sorted(by_word.items(), key=lambda kv: (-len(kv[1]), kv[0]))
        }
        found: dict[str, Any] = {"per_question_word": table}
        if self.version_2:
            found["null_threshold"] = self.threshold
        return found

    def table(self, results: dict[str, Any]) -> str:
        lines = [f"{'asked':<10}{'exact_match':>13}{'f1':>13}{'support':>13}"]
        for word, n in results["per_question_word"].items():
            lines.append(f"{word:<10}{n['exact_match']:>13.2f}{n['f1']:>13.2f}{n['support']:>13,}")
        return "\n".join(lines)

    def baseline(
        self, train: Sequence[Question], dev: Sequence[Question], test: Sequence[Question]
    ) -> dict[str, float]:
        """What words in common with the question reach; in version 2.0 also what silence does."""
        guesses = [guess(q.question, q.context) for q in test]
        overlap = squad_figures(_golds(test), guesses, bool(self.version_2))
        found = {f"overlap_{key}": overlap[key] for key in ("exact_match", "f1")}
        if self.version_2:
            found["silence_f1"] = squad_figures(_golds(test), [""] * len(test), True)["f1"]
        return found

    def row(self, example: Question, prediction: Reply) -> dict[str, Any]:
        """`label` holds all accepted answers, none where there is none; `n_best` the candidates."""
        given = self.answer(example, prediction)
        null = {"null_score": round(prediction.null_score, 6)} if self.version_2 else {}
        return {
            "id": example.id,
            "question": example.question,
            "context": example.context,
            "label": [a.text for a in example.answers],
            "prediction": given.prediction,
            "score": given.score,
            "start": given.start,
            "end": given.end,
            **null,
            "n_best": [vars(candidate) for candidate in given.candidates],
        }

    def errors(self, examples: Sequence[Question], predictions: Sequence[Reply]) -> list[str]:
        """Figures by question word, how many errors of each kind, cases, the surest first."""
        given = [self.answer(e, p) for e, p in zip(examples, predictions, strict=True)]
        texts, scores = [g.prediction for g in given], [g.score for g in given]
        return ["\n".join(error_lines(examples, texts, scores, bool(self.version_2)))]

    # --- use -------------------------------------------------------------------------------------

    def parse_line(self, line: str) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{line!r:.60} is not JSON; expected {_WANTED} a line") from None

    def table_columns(
        self, text: str | None, text_pair: str | None, names: Collection[str]
    ) -> dict[str, str]:
        return {"question": text or "question", "context": text_pair or "context"}

    def example_of(self, given: Any, number: int) -> Question:
        texts = given
        if isinstance(given, Mapping):
            texts = [given.get("question"), given.get("context")]
        fits = isinstance(texts, (list, tuple)) and all(isinstance(t, str) for t in texts)
        if not fits or len(texts) != 2:
            raise TextError(number, f"is {given!r:.60}; expected {_WANTED}", "input")
        question, context = map(whole_characters, texts)
        return Question(str(number), question, context, ())

    def answer(self, example: Question, prediction: Reply) -> QuestionAnswer:
        (text,) = self._answers([prediction])
        shown = [
            Shown(c.text, c.start, c.end, round(c.probability, 6))
            for c in prediction.candidates[:_SHOWN]
        ]
        if text:
            best = prediction.candidates[0]
            own = round(best.probability, 6), best.start, best.end
            return QuestionAnswer(example.question, text, *own, shown)
        none = 1 - sum(c.probability for c in prediction.candidates)
        return QuestionAnswer(example.question, "", round(max(0.0, none), 6), None, None, shown)


def _golds(examples: Sequence[Question]) -> list[list[str]]:
    return [[a.text for a in e.answers] for e in examples]


def _likeliest(logits: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B,): the possible token with the highest score."""
    return logits.float().masked_fill(~mask, -math.inf).argmax(-1)


def _size(split: str, rows: Sequence[Question], version_2: bool) -> str:
    contexts = len({q.context for q in rows})
    without = f", {sum(not q.answers for q in rows):,} without an answer" if version_2 else ""
    return f"{len(rows):,} {split} questions on {contexts:,} contexts{without}"


def _shared(read: dict[str, list[Question]]) -> list[str]:
    """A line for each split that has contexts of train."""
    known = {q.context for q in read["train"]}
    shared = {s: len({q.context for q in rows} & known) for s, rows in read.items() if s != "train"}
    return [f"{n:,} {split} contexts occur in train, too" for split, n in shared.items() if n]


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
    if question.answers and (place := locate(question.context, question.answers[0])):
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
        return math.fsum(math.log(1 + 1 / counts[w]) for w in own if counts[w])  # in any order

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
