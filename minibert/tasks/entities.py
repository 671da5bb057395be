"""Entities in tagged sentences: tag schemes, spans, figures and a listing of errors.

Everything here works on plain tags; BIO (IOB2) is the one form that the rest of the package sees:
B-X begins an entity of type X, I-X continues it, O is outside. Ramshaw & Marcus 1995 (IOB1),
Tjong Kim Sang & Veenstra 1999 (IOB2), Ratinov & Roth 2009 (BILOU).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

_TOLD = 3  # tags that a note names
UNTYPED = "ENTITY"  # the type of tags that are a bare B, I or O
# Letters of other schemes -> what they mean: begin, inside, end, single.
_LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
# Other spellings of B-PER: B_PER, PER-B and PER_B.
_SPELLINGS = (
    re.compile(r"(?P<letter>[BIESLUMW])_(?P<kind>.+)"),
    re.compile(r"(?P<kind>.+)[-_](?P<letter>[BIESLUMW])"),
)


class Span(NamedTuple):
    """An entity: its type and its words, `start` up to but without `end`."""

    type: str
    start: int
    end: int


# --- schemes --------------------------------------------------------------------------------------


def _parse(tag: str, bare_letters: bool) -> tuple[str, str]:
    """A tag -> (letter, type); "O" has no type, and a tag without a letter has letter ""."""
    if tag == "O":
        return "O", ""
    letter, dash, kind = tag.partition("-")
    if letter in _LETTERS and dash and kind:
        return letter, kind
    if bare_letters and tag.rstrip("-") in _LETTERS:
        return tag.rstrip("-"), UNTYPED
    return "", tag


def _has_bare_letters(tags: Iterable[str]) -> bool:
    """Whether the tags are letters alone (B, I, O): then "B" is no type called B."""
    kinds = {tag.rstrip("-") for tag in tags} - {"O"}
    return "B" in kinds and kinds <= _LETTERS.keys()


def _respelt(tags: Iterable[str]) -> dict[str, str]:
    """Tags of another spelling -> as `_parse` knows them; nothing where not all are of one."""
    kinds = set(tags) - {"O"}
    if any(_parse(tag, False)[0] for tag in kinds):
        return {}
    for spelling in _SPELLINGS:
        found = {tag: match for tag in kinds if (match := spelling.fullmatch(tag))}
        if len(found) == len(kinds) and any(match["letter"] == "B" for match in found.values()):
            return {tag: f"{match['letter']}-{match['kind']}" for tag, match in found.items()}
    return {}


def detect_scheme(sentences: Iterable[Sequence[str]]) -> str:
    """The scheme that explains the tags best: IO, IOB1, BIO, BIOES, BILOU or BMES.

    Without E, L, S and U, what counts is how entities begin: in BIO always with B, in IOB1 with I
    unless they follow one of their own type. Where both happen, the more frequent one wins.
    """
    rows = [list(tags) for tags in sentences]
    bare_letters = _has_bare_letters({tag for tags in rows for tag in tags})
    letters: set[str] = set()
    begun_by_b = begun_by_i = 0
    for tags in rows:
        before = ""
        for tag in tags:
            letter, kind = _parse(tag, bare_letters)
            letters.add(letter)
            begun_by_b += letter == "B" and kind != before
            begun_by_i += letter == "I" and kind != before
            before = kind
    letters -= {"O"}
    if letters & {"M", "W"}:
        return "BMES"
    if letters & {"L", "U"}:
        return "BILOU"
    if letters & {"E", "S"}:
        return "BIOES"
    if letters == {""}:
        return "IO"
    if begun_by_i > begun_by_b:
        return "IOB1" if "B" in letters else "IO"
    return "BIO"


def to_bio(tags: Sequence[str], scheme: str, bare_letters: bool = False) -> tuple[list[str], int]:
    """One sentence's tags in BIO, and how many of them were illegal in their scheme.

    An illegal tag is read for what it can only mean: an I-X that continues nothing begins an
    entity, an entity that nothing ends is over where the next tag begins.

    Args:
        scheme: as `detect_scheme` names it.
        bare_letters: the tags are letters without types.
    """
    whole = scheme in ("BIOES", "BILOU", "BMES")  # entities say where they end
    bio: list[str] = []
    repaired = 0
    before, is_open = "", False  # type of the tag before, and whether its entity may go on
    for tag in tags:
        letter, kind = _parse(tag, bare_letters)
        meaning = _LETTERS.get(letter, letter)
        continues = is_open and kind == before and meaning in ("I", "E", "")
        if whole:
            # What is open has to go on; what is not has to begin.
            repaired += is_open != continues or (not continues and meaning in ("I", "E", ""))
        elif scheme == "BIO":
            repaired += meaning in ("I", "") and not continues
        elif scheme == "IOB1":
            repaired += letter == "" or (meaning == "B" and kind != before)
        bio.append("O" if meaning == "O" else f"{'I' if continues else 'B'}-{kind}")
        is_open = meaning in ("B", "I", "") or (meaning == "E" and not whole)
        before = kind
    return bio, repaired + (whole and is_open)


def normalise_tags(
    splits: dict[str, list[list[str]]],
) -> tuple[dict[str, list[list[str]]], list[str]]:
    """All splits in BIO, with a line for everything that was not BIO already.

    The scheme is found on all splits together, since a small one may not show it.

    Args:
        splits: name of the split -> tags of each sentence.
    """
    notes = []
    respelt = _respelt(t for rows in splits.values() for tags in rows for t in tags)
    if respelt:
        splits = {
            name: [[respelt.get(tag, tag) for tag in tags] for tags in rows]
            for name, rows in splits.items()
        }
        first = min(respelt)
        notes.append(f"tags are spelt as {first}, read as {respelt[first]}")
    scheme = detect_scheme(tags for rows in splits.values() for tags in rows)
    bare = _has_bare_letters({t for rows in splits.values() for tags in rows for t in tags})
    every = Counter(tag for rows in splits.values() for tags in rows for tag in tags)
    strange = [tag for tag in sorted(every) if _parse(tag, bare)[0] == ""]
    if scheme == "IO":
        notes.append("tags are IO: entities of one type side by side become one")
        if strange:
            named = ", ".join(strange[:_TOLD]) + " and more" * (len(strange) > _TOLD)
            notes.append(f"tags without a letter, read as types: {named}")
    elif scheme != "BIO":
        notes.append(f"tags are {scheme}, converted to BIO")
    if bare:
        notes.append(f"tags have no types; the one type is called {UNTYPED}")
    if scheme != "IO" and strange:
        named = ", ".join(f"{every[tag]:,} of {tag}" for tag in strange[:_TOLD])
        notes.append(f"tags without a letter of {scheme}, read as types of their own: {named}")
    for tag in sorted({"0", "o"} & every.keys()):
        notes.append(f"the tag {tag} is read as a type; outside of entities is the letter O")
    out = {}
    for name, rows in splits.items():
        done = [to_bio(tags, scheme, bare) for tags in rows]
        out[name] = [tags for tags, _ in done]
        if count := sum(repaired for _, repaired in done):
            touched = sum(repaired > 0 for _, repaired in done)
            notes.append(
                f"{name}: {count:,} illegal {scheme} tags in {touched:,} sentences, repaired"
            )
    return out, notes


# --- spans ----------------------------------------------------------------------------------------


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities of a BIO sentence, strictly: only B begins one, so a stray I-X is none.

    This is how seqeval reads tags in its mode "strict" with scheme IOB2.
    """
    found: list[Span] = []
    start, kind = 0, ""
    for i, tag in enumerate((*tags, "O")):
        if kind and tag != f"I-{kind}":
            found.append(Span(kind, start, i))
            kind = ""
        if tag.startswith("B-"):
            start, kind = i, tag[2:]
    return found


def tags_of(spans: Iterable[Span], length: int) -> list[str]:
    """The BIO tags of a sentence of `length` words with these entities."""
    tags = ["O"] * length
    for kind, start, end in spans:
        tags[start] = f"B-{kind}"
        tags[start + 1 : end] = [f"I-{kind}"] * (end - start - 1)
    return tags


# --- figures --------------------------------------------------------------------------------------


def _ratios(hits: int, predicted: int, true: int) -> dict[str, float]:
    precision = hits / predicted if predicted else 0.0
    recall = hits / true if true else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def entity_figures(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Entity precision, recall and F1 over all types, and token accuracy; 0..1.

    An entity counts where type and both borders agree. The figures are those of seqeval's strict
    IOB2 mode, micro average (Nakayama 2018), and of the CoNLL-2003 evaluation on legal tags.

    Args:
        gold, predicted: BIO tags of each sentence, equally many.
    """
    totals: Counter[str] = Counter()
    for counts in _counts_by_type(gold, predicted).values():
        totals += counts
    words = sum(len(tags) for tags in gold)
    same = sum(
        one == other
        for tags, others in zip(gold, predicted, strict=True)
        for one, other in zip(tags, others, strict=True)
    )
    ratios = _ratios(totals["hits"], totals["predicted"], totals["true"])
    return {**ratios, "accuracy": same / words if words else 0.0}


def figures_by_type(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Type -> precision, recall, f1 and support (entities in gold), types in order."""
    return {
        kind: {**_ratios(n["hits"], n["predicted"], n["true"]), "support": n["true"]}
        for kind, n in sorted(_counts_by_type(gold, predicted).items())
    }


def _counts_by_type(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for tags, others in zip(gold, predicted, strict=True):
        true, found = set(spans_of(tags)), set(spans_of(others))
        for name, spans in (("true", true), ("predicted", found), ("hits", true & found)):
            for span in spans:
                counts.setdefault(span.type, Counter())[name] += 1
    return counts


def seqeval_figures(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float] | None:
    """What seqeval itself says, under the keys of `entity_figures`.

    None where it is not installed, and without sentences, which it does not take.
    """
    if not gold:
        return None
    try:
        import seqeval  # noqa: F401
    except ImportError:
        return None
    from seqeval.metrics import accuracy_score
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    rows = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    options: dict[str, Any] = {"average": "micro", "scheme": IOB2, "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(*rows, **options)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "accuracy": float(accuracy_score(*rows)) if any(rows[0]) else 0.0,
    }


def scorer_of(gold: Sequence[Sequence[str]]) -> str:
    """What counts the entities of `reported_figures`."""
    if seqeval_figures(gold[:1], gold[:1]) is None:
        return "minibert, as seqeval in its mode strict with IOB2"
    return f"seqeval {version('seqeval')}, mode strict, IOB2"


def reported_figures(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The figures a run ends with: seqeval's own where it is installed, else the equal ones here.

    Ours take a thirtieth of the time, which is why the choice of a model is made by them.
    """
    return seqeval_figures(gold, predicted) or entity_figures(gold, predicted)


# --- errors ---------------------------------------------------------------------------------------

KINDS = ("missed", "spurious", "wrong type", "wrong border", "wrong type and border")


class EntityError(NamedTuple):
    """One entity that gold and prediction do not share.

    kind: one of `KINDS`. gold, predicted: None where there is none. score: the model's, of the
    prediction, if it was given.
    """

    kind: str
    sentence: int
    gold: Span | None
    predicted: Span | None
    score: float | None


def _kind(gold: Span, predicted: Span) -> str:
    if gold[1:] == predicted[1:]:
        return "wrong type"
    return "wrong border" if gold.type == predicted.type else "wrong type and border"


def entity_errors(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    scores: Sequence[dict[Span, float]] | None = None,
) -> list[EntityError]:
    """Every entity missed, invented, or found with another type or border, in order.

    A predicted entity is compared with the first unexplained one of gold that it overlaps, those
    with the same words or the same type before others.

    Args:
        scores: of the predicted entities of each sentence.
    """
    errors: list[EntityError] = []
    for number, (tags, others) in enumerate(zip(gold, predicted, strict=True)):
        true, found = spans_of(tags), spans_of(others)
        left = [s for s in true if s not in found]
        known = scores[number] if scores is not None else {}
        here = []
        for span in (s for s in found if s not in true):
            near = [g for g in left if g.start < span.end and span.start < g.end]
            near.sort(key=lambda g: (g[1:] != span[1:], g.type != span.type, g.start))
            kind = _kind(near[0], span) if near else "spurious"
            here.append(EntityError(kind, number, near[0] if near else None, span, known.get(span)))
            if near:
                left.remove(near[0])
        here += [EntityError("missed", number, span, None, None) for span in left]
        errors += sorted(here, key=lambda e: (e.gold or e.predicted or Span("", 0, 0)).start)
    return errors


def error_lines(
    errors: Sequence[EntityError], sentences: Sequence[Sequence[str]], limit: int = 50
) -> list[str]:
    """A listing to read from the top: how many of each kind, what is mistaken most, then cases.

    Cases come kind by kind, of each the most confident first; misses, which have no score, in the
    order of the text.

    Args:
        sentences: the words of each sentence.
        limit: of cases, shared between the kinds.
    """
    if not errors:
        return ["no errors"]
    kinds = Counter(error.kind for error in errors)
    lines = [", ".join(f"{kinds[kind]:,} {kind}" for kind in KINDS if kinds[kind])]
    confused = Counter((e.gold.type, e.predicted.type) for e in errors if e.gold and e.predicted)
    pairs = [f"{g} as {p} {n:,}" for (g, p), n in confused.most_common() if g != p]
    if pairs:
        lines.append("types taken for another: " + ", ".join(pairs[:8]))
    texts = Counter(_text(e.gold or e.predicted, sentences[e.sentence]) for e in errors)
    often = [f"{text!r} {n:,}" for text, n in texts.most_common(8) if n > 1]
    if often:
        lines.append("mistaken most often: " + ", ".join(often))
    for kind in (kind for kind in KINDS if kinds[kind]):
        own = sorted((e for e in errors if e.kind == kind), key=lambda e: -(e.score or 0.0))
        lines += [_case(e, sentences[e.sentence]) for e in own[: -(-limit // len(kinds))]]
    return lines


def _text(span: Span | None, words: Sequence[str]) -> str:
    return " ".join(words[span.start : span.end]) if span else ""


def _case(error: EntityError, words: Sequence[str], around: int = 6) -> str:
    """kind (score): gold -> prediction | the words around, gold in [ ], prediction in { }."""
    given = [span for span in (error.gold, error.predicted) if span]
    first = max(0, min(s.start for s in given) - around)
    last = min(len(words), max(s.end for s in given) + around)
    shown = []
    for i in range(first, last):
        word = words[i]
        for span, opening, closing in ((error.gold, "[", "]"), (error.predicted, "{", "}")):
            if span:
                word = opening * (i == span.start) + word + closing * (i == span.end - 1)
        shown.append(word)
    context = "… " * (first > 0) + " ".join(shown) + " …" * (last < len(words))
    names = [f"{s.type} {_text(s, words)!r}" if s else "nothing" for s in error[2:4]]
    score = f" ({error.score:.2f})" if error.score is not None else ""
    return f"{error.kind}{score}: {names[0]} -> {names[1]} | {context}"
