"""Questions on a text: what an example is, and the reader of SQuAD's files.

Rajpurkar et al. 2016 (version 1.1) and 2018 (version 2.0, where a question may have no answer).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.errors import InputError
from minibert.files import find_packed, read_text, whole_characters

_NAMED = 3  # ids that a note names


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


def find_split(folder: Path, split: str, version_2: bool | None) -> Path | None:
    """The file of a split ("train", "dev" or "test") in a folder, or None.

    Args:
        version_2: None: either version will do.
    """
    versions = {True: ["v2.0"], False: ["v1.1"], None: ["v1.1", "v2.0"]}[version_2]
    others = ("valid", "validation", "val") if split == "dev" else ()
    for stem in (*(f"{split}-{version}" for version in versions), split, *others):
        if path := find_packed(folder, f"{stem}.json"):
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
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON: {error}; expected one object as SQuAD has it, of data, "
            f"paragraphs and qas"
        ) from None
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
                name = whole_characters(str(row.get("id") or f"{number}/{index}/{turn}"))
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
    return Answer(text, _start(row.get("answer_start")))


def _start(value: Any) -> int:
    """Where an answer starts, -1 where the file does not say; 6.0 and "6" are 6, as tables say."""
    try:
        start = -1.0 if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # no number, or one of thousands of digits
        return -1
    return int(start) if start.is_integer() else -1


def _named(what: str, ids: Sequence[str]) -> str:
    """`3 what (first: a, b, c)`."""
    return f"{len(ids):,} {what} (first: {', '.join(ids[:_NAMED])})"


def located(question: Question) -> tuple[Answer, ...]:
    """The answers that stand in the question's context, each where it stands.

    One that the context has elsewhere is moved to the place nearest to where the file says. White
    space around an answer is not part of it.
    """
    found = (locate(question.context, answer) for answer in question.answers)
    return tuple(answer for answer in found if answer is not None)


def answer_notes(questions: Sequence[Question], is_learnt: bool = True) -> list[str]:
    """Lines, with a count and the first ids, about answers that do not stand where they should.

    Args:
        is_learnt: they are trained on; else scored by their texts alone, so that it does not matter
            where they stand, but that no answer can be right if they stand nowhere.
    """
    moved: list[str] = []
    lost: list[str] = []
    for question in questions:
        found = located(question)
        if question.answers and not found:
            lost.append(question.id)
        trimmed = [(a.text.strip(), a.start + _indent(a.text)) for a in question.answers]
        if any((answer.text, answer.start) not in trimmed for answer in found):
            moved.append(question.id)
    notes = []
    if moved and is_learnt:
        notes.append(_named("answers stood elsewhere in their context, moved there", moved))
    if lost:
        done = "not trained on" if is_learnt else "scored as they are"
        notes.append(_named(f"answers are not in their context, {done}", lost))
    return notes


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


def locate(context: str, answer: Answer) -> Answer | None:
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


def squad_files(path: Path, version_2: bool | None, to_score: bool = False) -> dict[str, Path]:
    """Split -> file, of a folder with SQuAD's files or of one file, which is "train".

    Args:
        to_score: nothing is to be learnt: one file is "test", and a folder may have that alone.

    Raises:
        InputError: no file with a name that SQuAD uses.
    """
    if not path.is_dir():
        return {"test" if to_score else "train": path}
    splits = ("train", "dev", "test")
    found = {s: file for s in splits if (file := find_split(path, s, version_2))}
    if not found.keys() & ({"train", "dev", "test"} if to_score else {"train", "dev"}):
        name = f"train-{'v2.0' if version_2 else 'v1.1'}.json"
        raise InputError(f"{path} holds no train or dev file of SQuAD, such as {name}")
    return found


def read_squad_data(
    files: dict[str, Path], version_2: bool | None
) -> tuple[dict[str, list[Question]], bool, list[str]]:
    """Reads the files of a data set. Without one to train on, dev is split by article.

    Args:
        version_2: whether questions may have no answer; None: if one to train on has none.

    Returns:
        "train", and "dev" and "test" where there are any; version_2; and lines about them.

    Raises:
        InputError: a split without a question that can be learnt from, or scored.
    """
    notes: list[str] = []
    read: dict[str, list[Question]] = {}
    for name, file in files.items():
        read[name], lines = read_squad(file)
        notes += [f"{file.name}: {line}" for line in lines]
    if "train" not in read:
        train, later = split_by_article(read.pop("dev"))
        read = {"train": train, **read}
        notes.append(
            f"no train file, so {files['dev'].name} is split by article: {len(train):,} questions "
            f"to train on, the last {len(later):,} to score on"
        )
        read["dev" if "test" in read else "test"] = later
    if version_2 is None:
        version_2 = any(not q.answers for q in read["train"])
    for name, rows in read.items():
        read[name], lines = for_scoring(rows, version_2)
        notes += [f"{name}: {line}" for line in lines]
        if not read[name]:
            raise InputError(f"no question of the {name} split has an answer")
    if not any(map(located, read["train"])):
        raise InputError("no question of the train split has an answer that is in its context")
    for name, rows in read.items():
        notes += [f"{name}: {line}" for line in answer_notes(rows, is_learnt=name == "train")]
    return read, version_2, notes


def read_squad_test(path: Path, version_2: bool | None) -> tuple[list[Question], bool, list[str]]:
    """Reads a file that is to be scored alone; its answers need not stand in their contexts.

    Args:
        version_2: as of `read_squad_data`, by this file where it is None.

    Returns:
        The questions, version_2, and lines about them.

    Raises:
        InputError: no question that can be scored.
    """
    questions, notes = read_squad(path)
    if version_2 is None:
        version_2 = any(not q.answers for q in questions)
    rows, dropped = for_scoring(questions, version_2)
    if not rows:
        raise InputError(f"{path}: no question has an answer, and the model gives one to each")
    return rows, version_2, [*notes, *dropped, *answer_notes(rows, is_learnt=False)]
