"""Tagging: schemes, readers, windows, legal decoding, figures against seqeval, errors, lexicon."""

from __future__ import annotations

import gzip
import itertools
import random
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import one_thread, write  # noqa: F401
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import OPENERS, bundled_data
from minibert.losses import IGNORE_INDEX
from minibert.settings import FinetuneSettings
from minibert.tasks.batches import Feature, pad
from minibert.tasks.entities import (
    KINDS,
    UNTYPED,
    Span,
    detect_scheme,
    entity_errors,
    entity_figures,
    error_lines,
    figures_by_type,
    normalise_tags,
    reported_figures,
    scorer_of,
    seqeval_figures,
    spans_of,
    tags_of,
    to_bio,
)
from minibert.tasks.inputs import holds_tags
from minibert.tasks.splits import Parts, parts_of
from minibert.tasks.tagged import (
    Sentence,
    find_split,
    read_columns,
    read_json_lines,
    read_tagged,
    tag_set,
    words_of,
)
from minibert.tasks.tagging import Entity, Lexicon, Tagged, TaggingTask
from minibert.tasks.word_windows import decode, encode_words, label_row, span_scores, stitch
from minibert.token_heads import BertForTokenClassification, tagging_loss
from minibert.tokenizer import WordPiece, train_wordpiece

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.fixture(scope="module")
def tokenizer() -> WordPiece:
    text = (bundled_data() / "wiki.txt").read_text(encoding="utf-8")[:40000]
    return train_wordpiece(lambda: iter([text]), 600)


# --- schemes --------------------------------------------------------------------------------------

# The same two sentences in every scheme: two LOC side by side, then a PER; a LOC to the end.
BIO = [
    "B-LOC I-LOC B-LOC B-PER I-PER I-PER O".split(),
    "O B-LOC".split(),
]
OTHERS = {
    "IOB1": ["I-LOC I-LOC B-LOC I-PER I-PER I-PER O", "O I-LOC"],
    "BIOES": ["B-LOC E-LOC S-LOC B-PER I-PER E-PER O", "O S-LOC"],
    "BILOU": ["B-LOC L-LOC U-LOC B-PER I-PER L-PER O", "O U-LOC"],
    "BMES": ["B-LOC E-LOC S-LOC B-PER M-PER E-PER O", "O S-LOC"],
}


@pytest.mark.parametrize("scheme", OTHERS)
def test_every_scheme_is_known_and_becomes_bio(scheme: str) -> None:
    rows = [line.split() for line in OTHERS[scheme]]
    assert detect_scheme(rows) == scheme
    done, notes = normalise_tags({"train": rows})
    assert done["train"] == BIO
    assert notes == [f"tags are {scheme}, converted to BIO"]


def test_bio_stays_as_it_is_without_a_word() -> None:
    assert normalise_tags({"train": BIO}) == ({"train": BIO}, [])
    assert normalise_tags({"train": [["O", "O"]]}) == ({"train": [["O", "O"]]}, [])


@pytest.mark.parametrize("form", ["{}", "I-{}"])
def test_io_tags_become_runs(form: str) -> None:
    rows = [[t if t == "O" else form.format(t) for t in "PER PER O LOC PER".split()]]
    done, notes = normalise_tags({"train": rows})
    assert done["train"] == ["B-PER I-PER O B-LOC B-PER".split()]
    assert notes[0] == "tags are IO: entities of one type side by side become one"
    told = ["tags without a letter, read as types: LOC, PER"]
    assert notes[1:] == (told if form == "{}" else [])


def test_letters_without_types_are_one_type() -> None:
    done, notes = normalise_tags({"train": ["B I O B".split()]})
    assert done["train"] == [f"B-{UNTYPED} I-{UNTYPED} O B-{UNTYPED}".split()]
    assert notes == [f"tags have no types; the one type is called {UNTYPED}"]
    types, _ = normalise_tags({"train": ["B P O".split()]})  # types of one letter
    assert types["train"] == ["B-B B-P O".split()]


@pytest.mark.parametrize(
    ("tags", "scheme", "expected", "repaired"),
    [
        ("O I-PER I-PER", "BIO", "O B-PER I-PER", 1),
        ("B-PER I-LOC I-LOC O I-LOC", "BIO", "B-PER B-LOC I-LOC O B-LOC", 2),
        ("B-PER PER O LOC", "BIO", "B-PER I-PER O B-LOC", 1),
        ("O B-PER I-PER", "IOB1", "O B-PER I-PER", 1),
        ("I-PER B-PER I-LOC", "IOB1", "B-PER B-PER B-LOC", 0),
        ("B-PER O", "BIOES", "B-PER O", 1),  # never ended
        ("B-PER", "BIOES", "B-PER", 1),
        ("E-PER I-PER", "BIOES", "B-PER B-PER", 3),  # two not begun, one not ended
        ("B-PER S-PER", "BIOES", "B-PER B-PER", 1),
        ("B-PER E-PER E-PER", "BIOES", "B-PER I-PER B-PER", 1),
    ],
)
def test_illegal_tags_are_repaired_and_counted(
    tags: str, scheme: str, expected: str, repaired: int
) -> None:
    assert to_bio(tags.split(), scheme) == (expected.split(), repaired)


def test_tags_that_are_none_are_named() -> None:
    _, notes = normalise_tags({"train": [*BIO, ["O", "NNP", "0"]]})
    assert notes[:2] == [
        "tags without a letter of BIO, read as types of their own: 1 of 0, 1 of NNP",
        "the tag 0 is read as a type; outside of entities is the letter O",
    ]


@pytest.mark.parametrize("spelling", ["{0}_{1}", "{1}-{0}", "{1}_{0}"])
def test_other_spellings_are_read_where_all_tags_have_them(spelling: str) -> None:
    rows = [["B-PER", "I-PER", "O"], ["B-ORG_X", "O", "B-ORG_X"]]
    written = [["O" if t == "O" else spelling.format(t[0], t[2:]) for t in row] for row in rows]
    done, notes = normalise_tags({"train": written})
    assert done["train"] == rows
    assert len(notes) == 1
    assert notes[0].startswith("tags are spelt as ")
    written[0][0] = "PLACE"  # not all: types, which are told
    done, notes = normalise_tags({"train": written})
    assert done["train"][0][0] == "B-PLACE"
    assert notes[1].startswith("tags without a letter, read as types: ")


def test_an_empty_tag_is_refused_by_its_line(tmp_path: Path) -> None:
    rows = '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["Ana", "b"], "tags": ["B-PER", ""]}\n'
    with pytest.raises(InputError, match="line 2 has an empty tag"):
        read_json_lines(write(tmp_path / "a.jsonl", rows), "train")


def test_lines_of_a_file_have_equally_many_columns(tmp_path: Path) -> None:
    """The last of a line that lacks its tag is another column, and no type of entity."""
    path = write(tmp_path / "a.txt", "London NNP B-LOC\nis VBZ O\n\nOslo NNP\n")
    with pytest.raises(InputError, match=r"line 4: 'Oslo NNP' has 2 columns, line 1 has 3"):
        read_columns(path, "train")


def test_repairs_are_said_for_each_split() -> None:
    splits = {"train": [*BIO, ["O", "I-PER"], ["I-LOC"]], "test": BIO}
    done, notes = normalise_tags(splits)
    assert done["train"][2:] == [["O", "B-PER"], ["B-LOC"]]
    assert notes == ["train: 2 illegal BIO tags in 2 sentences, repaired"]


def random_tags(rng: random.Random, legal: bool) -> list[str]:
    tags: list[str] = []
    for _ in range(rng.randint(1, 9)):
        tag = rng.choice([*TAGS, "O", "B-A-B", "I-A-B"])
        if legal and tag[0] == "I" and (not tags or tags[-1][2:] != tag[2:]):
            tag = "O"
        tags.append(tag)
    return tags


def test_whatever_the_scheme_the_result_is_legal_and_whole() -> None:
    rng = random.Random(1)
    letters = "BIESLUM"
    for scheme in ("IO", "IOB1", "BIO", "BIOES", "BILOU", "BMES"):
        for _ in range(200):
            tags = [
                rng.choice(["O", *(f"{x}-{t}" for x in letters for t in "XY")]) for _ in range(7)
            ]
            bio, _ = to_bio(tags, scheme)
            assert [t == "O" for t in bio] == [t == "O" for t in tags]
            assert [t[2:] for t in bio] == [t[2:] for t in tags]
            assert to_bio(bio, "BIO") == (bio, 0)


def test_spans_and_tags_are_each_others_inverse() -> None:
    rng = random.Random(2)
    for _ in range(300):
        tags = random_tags(rng, legal=True)
        assert tags_of(spans_of(tags), len(tags)) == tags


# --- figures --------------------------------------------------------------------------------------


def test_figures_of_a_case_counted_by_hand() -> None:
    gold = ["B-PER I-PER O B-LOC".split(), "B-LOC O B-LOC".split()]
    predicted = ["B-PER I-PER O B-PER".split(), "B-LOC I-LOC O".split()]
    figures = entity_figures(gold, predicted)  # one of three found, one of four true
    assert figures == {
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 4),
        "f1": pytest.approx(2 / 7),
        "accuracy": pytest.approx(4 / 7),
    }
    by_type = figures_by_type(gold, predicted)
    assert list(by_type) == ["LOC", "PER"]
    assert by_type["PER"] == {
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "support": 1,
    }
    assert by_type["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 3}


@pytest.mark.parametrize("legal", [True, False])
def test_figures_equal_those_of_seqeval(legal: bool) -> None:
    pytest.importorskip("seqeval")
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    rng = random.Random(3)
    for _ in range(60):
        gold = [random_tags(rng, legal) for _ in range(rng.randint(1, 6))]
        predicted = [[t if rng.random() < 0.6 else rng.choice(TAGS) for t in tags] for tags in gold]
        if legal:
            predicted = [to_bio(tags, "BIO")[0] for tags in predicted]
        ours, theirs = entity_figures(gold, predicted), seqeval_figures(gold, predicted)
        assert theirs is not None
        assert ours == pytest.approx(theirs, abs=1e-12)
        assert reported_figures(gold, predicted) == theirs
        assert scorer_of(gold) == f"seqeval {version('seqeval')}, mode strict, IOB2"
        by_type = figures_by_type(gold, predicted)
        if not by_type:
            continue
        report = classification_report(
            gold, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
        )
        for kind, figures in by_type.items():
            for key, name in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
                assert figures[key] == pytest.approx(report[kind][name], abs=1e-12)
            assert figures["support"] == report[kind]["support"]


def test_without_entities_the_figures_are_zero() -> None:
    for rows in ([["O", "O"]], [[]], []):
        figures = reported_figures(rows, rows)
        assert (figures["precision"], figures["recall"], figures["f1"]) == (0, 0, 0)
        assert figures == entity_figures(rows, rows)


def test_without_seqeval_the_own_figures_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "seqeval", None)
    assert seqeval_figures(BIO, BIO) is None
    assert set(reported_figures(BIO, BIO).values()) == {1.0}
    assert scorer_of(BIO) == "minibert, as seqeval in its mode strict with IOB2"


# --- errors ---------------------------------------------------------------------------------------


def test_every_kind_of_error_is_named_with_its_context() -> None:
    words = "Ana Lo met Bo Li of Rome near the Po in May".split()
    gold = "B-PER I-PER O B-PER I-PER O B-LOC O O B-LOC O O".split()
    found = "B-PER O O B-LOC O O B-PER O O O O B-LOC".split()
    scores = dict.fromkeys(spans_of(found), 0.5) | {Span("LOC", 11, 12): 0.9}
    errors = entity_errors([gold], [found], [scores])
    assert [(e.kind, e.score) for e in errors] == [
        ("wrong border", 0.5),
        ("wrong type and border", 0.5),
        ("wrong type", 0.5),
        ("missed", None),
        ("spurious", 0.9),
    ]
    lines = error_lines(errors, [words])
    assert lines[0] == ", ".join(f"1 {kind}" for kind in KINDS)
    assert lines[1] == "types taken for another: PER as LOC 1, LOC as PER 1"
    assert lines[2] == "missed: LOC 'Po' -> nothing | … Bo Li of Rome near the [Po] in May"
    assert "spurious (0.90): nothing -> LOC 'May' | … of Rome near the Po in {May}" in lines
    assert (
        "wrong border (0.50): PER 'Ana Lo' -> PER 'Ana' | {[Ana} Lo] met Bo Li of Rome near …"
        in (lines)
    )
    assert error_lines([], []) == ["no errors"]


def test_the_kinds_of_errors_share_the_lines_of_a_listing() -> None:
    rows = 40
    gold, found = [["B-PER", "O"]] * rows, [["O", "B-LOC"]] * rows  # one missed, one spurious
    lines = error_lines(entity_errors(gold, found), [["Ana", "May"]] * rows, limit=20)
    cases = [line.split(":")[0] for line in lines if " | " in line]
    assert cases == ["missed"] * 10 + ["spurious"] * 10


def test_errors_and_hits_account_for_every_entity() -> None:
    rng = random.Random(4)
    gold = [random_tags(rng, True) for _ in range(200)]
    found = [
        to_bio([t if rng.random() < 0.6 else rng.choice(TAGS) for t in g], "BIO")[0] for g in gold
    ]
    errors = entity_errors(gold, found)
    hits = sum(len(set(spans_of(g)) & set(spans_of(f))) for g, f in zip(gold, found, strict=True))
    assert hits + sum(e.gold is not None for e in errors) == sum(len(spans_of(g)) for g in gold)
    assert hits + sum(e.predicted is not None for e in errors) == sum(
        len(spans_of(f)) for f in found
    )
    assert {e.kind for e in errors} == set(KINDS)


# --- readers --------------------------------------------------------------------------------------

CONLL = """-DOCSTART- -X- -X- O

Ana NNP B-NP B-PER
sings VBZ B-VP O
\t
-DOCSTART- -X- -X- O
\r
Oslo NNP B-NP B-LOC"""


def test_columns_are_read_as_conll_has_them(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "\ufeff" + CONLL)
    assert read_columns(path, "train") == (
        [
            Sentence("train/0", ["Ana", "sings"], ["B-PER", "O"]),
            Sentence("train/1", ["Oslo"], ["B-LOC"]),
        ],
        [],
    )
    packed = tmp_path / "train.txt.gz"
    packed.write_bytes(gzip.compress(CONLL.encode()))
    assert read_columns(packed, "train") == read_columns(path, "train")


@pytest.mark.parametrize(
    "heads", ["word\ttag", "Tokens\tNER_tags\n", "# made by hand\ntoken\tlabel"]
)
def test_a_first_line_that_names_the_columns_is_no_word(tmp_path: Path, heads: str) -> None:
    rows = "Ana\tPER\ntext\tlabel\n\nOslo\tLOC\n"
    sentences, notes = read_columns(write(tmp_path / "a.tsv", f"{heads}\n{rows}"), "train")
    assert [(e.words, e.tags) for e in sentences] == [
        (["Ana", "text"], ["PER", "label"]),  # only the first line has names
        (["Oslo"], ["LOC"]),
    ]
    place = 2 if heads.startswith("#") else 1
    assert notes[0].startswith(f"line {place} names the columns (")
    sentences, notes = read_columns(write(tmp_path / "b.tsv", f"text\tO\n{rows}"), "train")
    assert sentences[0].words == ["text", "Ana", "text"]
    assert notes == []


def test_a_document_ends_the_sentence_before_it(tmp_path: Path) -> None:
    text = "Ana B-PER\n-DOCSTART- O\nOslo B-LOC\nis O\n"  # as files put together may have it
    sentences, _ = read_columns(write(tmp_path / "a.txt", text), "train")
    assert [e.words for e in sentences] == [["Ana"], ["Oslo", "is"]]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("Ann NNP B-PER\nleft VBD O\n\nOslo NNP S-LOC\n", True),
        ("-DOCSTART- -X- O\r\n\r\nAnn\tB-PER\r\nleft\tO\r\n", True),
        ("It is vitamin B-12\nand blood of group O\nor none\n", False),
        ("blood of group O\nanother O\n", False),
        ("the plan B-2\n", False),
        ("Ann\nleft\n", False),
        ("", False),
    ],
)
def test_columns_of_tags_are_told_from_texts(content: str, found: bool) -> None:
    assert holds_tags(content) == found


def test_columns_can_be_chosen_and_odd_white_space_belongs_to_words(tmp_path: Path) -> None:
    text = "# id 1\n1\tSan Juan\tB-LOC\tx\n2\ta\u00a0b\u2028c\tO\tx\n#\t#\tO\tx\n"
    sentences, notes = read_columns(write(tmp_path / "a.tsv", text), "dev", 1, 2)
    assert sentences[0].words == ["San Juan", "a\u00a0b\u2028c", "#"]
    assert sentences[0].tags == ["B-LOC", "O", "O"]
    assert notes == ["1 comment lines left out"]
    hash_first, notes = read_columns(write(tmp_path / "b.txt", "# O\n1 O\n"), "dev")
    assert hash_first[0].words == ["#", "1"]
    assert not notes


def test_a_word_may_begin_with_a_hash_and_a_comment_may_end_like_a_tag(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "#NYC B-LOC nnp\nis O v\n\n# O x\nAda B-PER nnp\n")
    sentences, _ = read_columns(path, "dev", 0, 1)
    assert [e.words for e in sentences] == [["#NYC", "is"], ["#", "Ada"]]
    path = write(tmp_path / "b.txt", "#NYC\tLOC\nis\tO\n\n# id\t7\nOslo\tLOC\n")  # tags are IO
    sentences, notes = read_columns(path, "dev")
    assert [e.words for e in sentences] == [["#NYC", "is"], ["Oslo"]]
    assert notes == ["1 comment lines left out"]
    path = write(tmp_path / "c.txt", "# of Ada B-PER\nAda B-PER\n")
    assert read_columns(path, "dev")[0][0].words == ["Ada"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ana B-PER\nsings\n", r"a.txt, line 2: 'sings' has 1 column\(s\); expected a word"),
        ("Ana B-PER\n\n\nOslo O\nx", "line 5: 'x'"),
        ("", "holds no sentences"),
        ("\n-DOCSTART- O\n\n", "holds no sentences"),
    ],
)
def test_faulty_columns_are_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_columns(write(tmp_path / "a.txt", text), "train")


def test_json_lines_are_read(tmp_path: Path) -> None:
    text = (
        '{"tokens": ["Ana", "sings"], "tags": ["B-PER", "O"], "id": 7}\n\n'
        '{"words": ["Oslo"], "ner_tags": ["B-LOC"]}\n{"tokens": [], "tags": []}\n'
        '{"id": null, "tokens": ["is"], "tags": ["O"]}\n{"id": "", "tokens": ["a"], "tags": ["O"]}'
    )
    read, notes = read_tagged({"train": write(tmp_path / "a.jsonl", text)})
    assert read["train"] == [
        Sentence("7", ["Ana", "sings"], ["B-PER", "O"]),
        Sentence("train/1", ["Oslo"], ["B-LOC"]),
        Sentence("train/3", ["is"], ["O"]),
        Sentence("train/4", ["a"], ["O"]),
    ]
    assert notes == ["train: 1 rows without a word left out"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ("[" * 100_000, "line 1 is not valid JSON"),
        ('{"id": ' + "7" * 5000 + "}", "line 1 is not valid JSON"),
        ("[]", "line 1 has no list called tokens or words"),
        ('{"tokens": ["a"]}', "line 1 has no list called tags or ner_tags or labels"),
        ('{"tokens": ["a"], "tags": [3]}', "tags are not all strings; give tags by their names"),
        ('{"tokens": ["a"], "tags": ["O", "O"]}', "line 1 has 1 words but 2 tags"),
        ("", "holds no sentences"),
    ],
)
def test_faulty_json_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tagged({"train": write(tmp_path / "a.jsonl", line)})


@pytest.mark.parametrize("name", ["a.json", "a.JSONL", "a.jsonl.xz", "a.JSON.gz"])
def test_json_lines_are_known_by_any_of_their_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with OPENERS.get(path.suffix.lower(), open)(path, "wb") as handle:
        handle.write(b'{"tokens": ["Ana"], "tags": ["B-PER"]}\n')
    read, _ = read_tagged({"train": path})
    assert read["train"] == [Sentence("train/0", ["Ana"], ["B-PER"])]


def test_json_lines_are_not_taken_for_columns(tmp_path: Path) -> None:
    lines = '{"tokens": ["Ana", "sings"], "tags": ["B-PER", "O"]}\n' * 3
    with pytest.raises(InputError, match=r"a.txt holds JSON; JSON lines are read from a name with"):
        read_tagged({"train": write(tmp_path / "a.txt", lines)})
    read, _ = read_tagged({"train": write(tmp_path / "b.txt", "{ O\n}\tO\n")})
    assert read["train"][0].words == ["{", "}"]


def test_a_file_without_blank_lines_is_said_to_lack_them(tmp_path: Path) -> None:
    read_columns(write(tmp_path / "a.txt", "Ana B-PER\n" * 500), "train")
    with pytest.raises(InputError, match="a.txt is one sentence of 501 words; expected a blank"):
        read_columns(write(tmp_path / "a.txt", "Ana B-PER\n" * 501), "train")


def test_what_dev_and_test_have_that_train_has_not_is_said(tmp_path: Path) -> None:
    paths = {
        "train": write(tmp_path / "train.txt", "Ana B-PER\n\nOslo O\n"),
        "test": write(tmp_path / "test.txt", "Ana B-PER\n\nOslo B-LOC\nRome B-LOC\n"),
    }
    read, notes = read_tagged(paths)
    assert tag_set(read["train"]) == ["O", "B-PER", "I-PER"]
    assert notes == ["test: 1 sentences occur in train, too"]
    with pytest.raises(InputError, match="every tag is O"):
        tag_set([Sentence("", ["a"], ["O"])])


def test_a_column_without_a_number_is_named_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "test.conll", "Oslo B-LOC\n")
    wanted = "test.conll has columns without names; give --label-column a number, .* of 'ner'"
    with pytest.raises(InputError, match=wanted):
        read_tagged({"test": path}, None, "ner")


def test_files_of_a_split_are_found_by_their_usual_names(tmp_path: Path) -> None:
    write(tmp_path / "eng.testa", "a O")
    write(tmp_path / "train.jsonl.gz", "")
    assert find_split(tmp_path, "dev") == tmp_path / "eng.testa"
    assert find_split(tmp_path, "train") == tmp_path / "train.jsonl.gz"
    assert find_split(tmp_path, "test") is None
    write(tmp_path / "val.conll", "a O")
    assert find_split(tmp_path, "dev") == tmp_path / "val.conll"


def test_the_bundled_sample_is_read_without_a_note() -> None:
    folder = bundled_data() / "conll2003"
    paths = {
        split: path for split in ("train", "dev", "test") if (path := find_split(folder, split))
    }
    read, notes = read_tagged(paths)
    assert {split: len(rows) >= 10 for split, rows in read.items()} == dict.fromkeys(paths, True)
    assert len(read) == 3
    assert sum(map(len, read.values())) >= 40
    assert not notes
    assert tag_set(read["train"]) == [
        "O",
        *(f"{x}-{t}" for t in ("LOC", "MISC", "ORG", "PER") for x in "BI"),
    ]
    lines = "\n".join(path.read_text(encoding="utf-8") for path in paths.values()).split("\n")
    assert all(len(line.split(" ")) == 4 for line in lines if line)


# --- plain text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ana's in Oslo.", ["Ana 's in Oslo ."]),
        ("The U.S. paid $1,000.50 on 2024-05-01.", ["The U.S. paid $ 1,000.50 on 2024-05-01 ."]),
        ("She didn't; J. Smith of AT&T did!", ["She did n't ; J. Smith of AT&T did !"]),
        ("The 1990s, 20th: 10am, 1.5bn!", ["The 1990s , 20th : 10am , 1.5bn !"]),
        ("Won 3-0 in 747-400s; 16th-century.", ["Won 3-0 in 747-400s ; 16th-century ."]),
        ("DON'T, isn’T", ["DO N'T , is n’T"]),
        ("Paris🎉 Nike™ Oslo→Bergen €500 30€", ["Paris 🎉 Nike ™ Oslo → Bergen € 500 30 €"]),
        ("Tokyo（Japan）：CO₂ 3×4 ❤\ufe0f", ["Tokyo （ Japan ） ： CO₂ 3 × 4 ❤\ufe0f"]),
        ("Heidel\u00adberg and Co\u200blogne", ["Heidel\u00adberg and Co\u200blogne"]),
        ("O'Brien's L’Oréal, I'M 'Ed'", ["O'Brien 's L’Oréal , I 'M ' Ed '"]),
        ("Mr. Wu left. Why?", ["Mr. Wu left .", "Why ?"]),
        ("东京很大。", ["东 京 很 大 。"]),
        (
            "Jean-Pierre\u00a0went\tto “Zürich”\r\nagain",
            ["Jean-Pierre went to “ Zürich ”", "again"],
        ),
        ("e\u0301tude", ["e\u0301tude"]),
        ("  \n ", []),
        ("", []),
    ],
)
def test_plain_text_becomes_words_as_conll_has_them(text: str, expected: list[str]) -> None:
    found = words_of(text)
    assert [" ".join(s.words) for s in found] == expected


def test_words_of_any_text_lose_no_character_and_know_their_place() -> None:
    rng = random.Random(5)
    alphabet = "aB9.,'’-&/$ \t\n\r\u00a0\u200b\u2028é\u0301中ß👍\ufe0f\u00ad€→™\ud800n't"
    for _ in range(500):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 30)))
        at = 0
        for sentence in words_of(text):
            for word, (start, end) in zip(*sentence, strict=True):
                assert text[start:end] == word
                assert not text[at:start].strip()
                assert at <= start < end
                at = end
        assert not text[at:].strip()


def test_entities_are_cut_out_of_the_text_as_it_was() -> None:
    text = "In  São\u00a0Paulo\nAna-Maria  sang."
    task = TaggingTask(FinetuneSettings(task="tagging"))
    example = task.example_of(text, 1)
    assert example.words == "In São Paulo Ana-Maria sang .".split()
    assert example.breaks == (3,)
    spans = {Span("LOC", 1, 3): 0.7, Span("PER", 3, 4): 0.9}
    given = task.answer(example, Tagged("O B-LOC I-LOC B-PER O O".split(), spans))
    place, name = given.entities
    assert place == Entity("LOC", "São\u00a0Paulo", 4, 13, 0.7)
    assert text[name.start : name.end] == name.text == "Ana-Maria"
    words = task.example_of({"tokens": ["São Paulo", "sang"]}, 1)
    (place,) = task.answer(words, Tagged(["B-LOC", "O"], {Span("LOC", 0, 1): 0.7})).entities
    assert (words.text, place.text) == ("São Paulo sang", "São Paulo")


# --- encoding -------------------------------------------------------------------------------------


def test_words_get_the_sub_words_they_have_alone_and_the_first_is_labelled(
    tokenizer: WordPiece,
) -> None:
    words, tags = "unbelievable rivers \u200b of Zürich".split(" "), "O B-LOC I-LOC O B-PER".split()
    (window,) = encode_words([words], tokenizer, 64)
    expected = [ids or [tokenizer.unk_id] for ids in tokenizer.ids(words)]
    flat = list(itertools.chain(*expected))
    assert window.input_ids.tolist() == [tokenizer.cls_id, *flat, tokenizer.sep_id]
    assert window.word_starts.tolist() == list(itertools.accumulate([1, *map(len, expected[:-1])]))
    labels = label_row(window, tags, {"O": 0, "B-LOC": 1, "I-LOC": 2})
    assert labels[window.word_starts].tolist() == [0, 1, 2, 0, IGNORE_INDEX]  # B-PER is unknown
    others = np.delete(labels, window.word_starts)
    assert (others == IGNORE_INDEX).all()
    assert len(others) == len(flat) - len(words) + 2


@pytest.mark.parametrize("max_seq_length", [4, 5, 8, 13, 40])
@pytest.mark.parametrize("overlap", [None, 0, 3, 100])
def test_windows_fit_and_every_word_is_owned_once(
    tokenizer: WordPiece, max_seq_length: int, overlap: int | None
) -> None:
    rng = random.Random(max_seq_length)
    words = "a river unbelievable x \u200b Zürich 1234567890123 the".split(" ")
    sentences = [[rng.choice(words) for _ in range(n)] for n in (1, 2, 5, 9, 40, 0, 23)]
    windows = encode_words(sentences, tokenizer, max_seq_length, overlap)
    owners: list[list[int]] = [[] for _ in sentences]
    for window in windows:
        assert len(window.input_ids) <= max_seq_length
        assert 0 <= window.own[0] <= window.own[1] <= len(window.word_starts)
        owners[window.sentence] += range(*(window.first_word + w for w in window.own))
        assert (window.word_starts < len(window.input_ids) - 1).all()
    assert owners == [list(range(len(s))) for s in sentences]


@pytest.mark.parametrize("overlap", [0, 1, 5, 10])
def test_neighbouring_windows_share_what_was_asked_for(tokenizer: WordPiece, overlap: int) -> None:
    words = ["unbelievable", "x", "1234567"] * 20
    sizes = [len(tokenizer.ids([word])[0]) for word in words]
    assert max(sizes) > 3
    windows = encode_words([words], tokenizer, 32, overlap)
    assert len(windows) > 3
    for one, other in itertools.pairwise(windows):
        last = one.first_word + len(one.word_starts)
        assert other.first_word > one.first_word
        assert sum(sizes[other.first_word : last]) >= overlap
        if other is not windows[-1]:  # which is filled up; else no word more than it takes
            assert sum(sizes[other.first_word + 1 : last]) < max(overlap, 1)


def test_a_word_is_taken_from_the_window_with_most_around_it(tokenizer: WordPiece) -> None:
    words = ["a"] * 30  # a sub-word each
    windows = encode_words([words], tokenizer, 12, overlap=4)
    assert len(windows) == 5
    reach = {}
    for number, window in enumerate(windows):
        for i in range(len(window.word_starts)):
            word, last = window.first_word + i, len(window.word_starts) - 1
            # At the sentence's own ends nothing is missing.
            left = i if window.first_word else 99
            right = last - i if window.first_word + last < 29 else 99
            reach.setdefault(word, []).append((min(left, right), number))
    for number, window in enumerate(windows):
        for i in range(*window.own):
            options = {n: r for r, n in reach[window.first_word + i]}
            assert options[number] == max(options.values())
    assert len(windows[-1].input_ids) == 12  # filled up from the left


def test_stitched_scores_are_those_of_each_words_owner(tokenizer: WordPiece) -> None:
    sentences = [["river"] * 20, ["the"], ["unbelievable"] * 9]
    windows = encode_words(sentences, tokenizer, 12)
    # Each token's score tells its window and its place.
    scores = [np.stack([np.full(40, float(n)), np.arange(40.0)], -1) for n in range(len(windows))]
    stitched = stitch(windows, scores)
    assert [len(rows) for rows in stitched] == [20, 1, 9]
    for sentence, rows in enumerate(stitched):
        for word, (number, place) in enumerate(rows.astype(int).tolist()):
            window = windows[number]
            assert window.sentence == sentence
            assert window.word_starts[word - window.first_word] == place


def test_half_a_surrogate_pair_is_a_word_like_another(tokenizer: WordPiece, tmp_path: Path) -> None:
    (window,) = encode_words([["\ud83d", "a"]], tokenizer, 16)
    assert window.input_ids[1] == tokenizer.unk_id
    line = '{"tokens": ["a\\ud83d"], "tags": ["O"]}'
    ((sentence,), _) = read_json_lines(write(tmp_path / "a.jsonl", line), "dev")
    assert sentence.words == ["a\ufffd"]


def test_too_short_windows_are_refused(tokenizer: WordPiece) -> None:
    with pytest.raises(InputError, match="--max-seq-length 3 leaves no room; give 4 or more"):
        encode_words([["a"]], tokenizer, 3)


def test_the_loss_counts_each_word_once(tokenizer: WordPiece) -> None:
    words = ["unbelievable", "river"] * 15
    windows = encode_words([words], tokenizer, 16)
    assert len(windows) > 2
    total = torch.zeros(())
    count = 0
    for window in windows:
        labels = torch.from_numpy(label_row(window, ["O"] * 30, {"O": 0}))[None]
        logits = torch.randn(1, labels.shape[1], 5)
        loss, own = tagging_loss(logits, labels)
        rows = logits[0][labels[0] == 0]
        torch.testing.assert_close(loss, -F.log_softmax(rows, -1)[:, 0].sum())
        total, count = total + loss, count + int(own)
    assert count == 30


def test_columns_that_cr_alone_parts_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "Ana B-PER\rsings O\r\rit O\r")
    with pytest.raises(InputError, match=r"a\.conll has CR as its line end"):
        read_columns(path, "train")


def test_a_long_chinese_text_takes_its_length_and_not_its_square() -> None:
    started = time.process_time()
    (sentence,) = words_of("\u6c49" * 20_000)
    assert len(sentence.words) == 20_000
    assert time.process_time() - started < 3


def test_a_dev_split_without_an_entity_chooses_nothing(tmp_path: Path) -> None:
    rows = ["Ana B-PER\nsings O\n", *(f"it O\nrains O\nfor O\n{i} O\n" for i in range(6))]
    train, dev = ("\n".join(rows), "\n".join(rows[1:]))
    given = {
        "data": str(write(tmp_path / "a.conll", train)),
        "dev_data": str(write(tmp_path / "b.conll", dev)),
    }

    def cut(**more: Any) -> Parts:
        task = TaggingTask(FinetuneSettings(task="tagging", **given | more))
        return parts_of(task, task.read(task.find_data()), 0.1, None)

    with pytest.raises(InputError, match=r"6 sentence\(s\) in dev, none with an entity: f1 would"):
        cut()
    assert len(cut(select="accuracy").dev) == 6
    assert cut(dev_data=given["data"]).dev


# --- decoding -------------------------------------------------------------------------------------


def is_legal(tags: list[str]) -> bool:
    return to_bio(tags, "BIO")[1] == 0


def test_viterbi_finds_the_best_legal_sequence() -> None:
    rng = np.random.default_rng(6)
    illegal = 0
    for _ in range(60):
        length = int(rng.integers(1, 5))
        scores = np.log(rng.dirichlet(np.ones(5), length))
        found = decode(scores, TAGS)
        every = itertools.product(range(5), repeat=length)
        legal = [p for p in every if is_legal([TAGS[i] for i in p])]
        best = max(legal, key=lambda p: sum(scores[i, t] for i, t in enumerate(p)))
        assert found == [TAGS[i] for i in best]
        illegal += not is_legal([TAGS[i] for i in scores.argmax(-1)])
    assert illegal > 10  # so that the search was needed


def test_a_type_without_a_b_begins_with_i() -> None:
    """As of published taggers of CoNLL-2003: B-X only parts neighbours of one type."""
    tags = "O B-LOC B-MISC B-ORG I-LOC I-MISC I-ORG I-PER".split()
    best = "I-PER I-PER O I-LOC I-LOC B-LOC O I-ORG I-MISC".split()
    scores = np.full((len(best), len(tags)), 0.05)
    scores[range(len(best)), [tags.index(tag) for tag in best]] = 0.65
    found = decode(np.log(scores), tags)
    assert found == "B-PER I-PER O B-LOC I-LOC B-LOC O B-ORG B-MISC".split()
    assert span_scores(np.log(scores), tags, found) == {
        span: pytest.approx(0.65) for span in spans_of(found)
    }


def test_an_entitys_score_is_the_mean_of_its_words() -> None:
    shares = np.array([[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.8, 0.0, 0.0], [1.0, 0, 0, 0, 0]])
    with np.errstate(divide="ignore"):
        logs = np.log(shares)
    assert span_scores(logs, TAGS, ["B-LOC", "I-LOC", "O"]) == {
        Span("LOC", 0, 2): pytest.approx(0.7)
    }


# --- baseline -------------------------------------------------------------------------------------


def test_the_lexicon_takes_the_longest_entity_it_saw() -> None:
    train = [
        Sentence("", "New York won".split(), "B-LOC I-LOC O".split()),
        Sentence("", "New York Times said".split(), "B-ORG I-ORG I-ORG O".split()),
        Sentence("", "York and May".split(), "B-LOC O B-PER".split()),
        Sentence("", "in May or May".split(), "O O O O".split()),
        Sentence("", "York York York".split(), "B-PER B-PER O".split()),
    ]
    lexicon = Lexicon(train)
    words = "New York Times of New York , York in May".split()
    assert lexicon.tags(words) == "B-ORG I-ORG I-ORG O B-LOC I-LOC O B-PER O O".split()
    assert lexicon.tags([]) == []
    assert Lexicon([]).tags(["a"]) == ["O"]


# --- all together ---------------------------------------------------------------------------------


def test_a_small_model_learns_to_tag_the_sample() -> None:
    """Labels, loss, stitching and decoding agree: what is known by heart is tagged so."""
    folder = bundled_data() / "conll2003"
    read, _ = read_tagged({"train": folder / "train.txt"})
    sentences = read["train"][:24]
    tags = tag_set(sentences)
    text = " ".join(word for e in sentences for word in e.words)
    tokenizer = train_wordpiece(lambda: iter([text]), 400, exact=False)
    windows = encode_words([e.words for e in sentences], tokenizer, 16)
    assert len(windows) > len(sentences)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(tags)),
    )
    model = BertForTokenClassification(config)
    batch = pad([Feature({"input_ids": w.input_ids}, {}) for w in windows], tokenizer.pad_id)
    labels = torch.full(batch["input_ids"].shape, IGNORE_INDEX)
    index = {tag: i for i, tag in enumerate(tags)}
    for i, w in enumerate(windows):
        own = label_row(w, sentences[w.sentence].tags, index)
        labels[i, : len(own)] = torch.from_numpy(own)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss, count = tagging_loss(model(**batch).logits, labels)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        scores = model(**batch).logits.log_softmax(-1).numpy()
    found = [decode(rows, tags) for rows in stitch(windows, list(scores))]
    assert entity_figures([e.tags for e in sentences], found)["f1"] == 1.0
