"""Single-text classification: readers, splits, encoding, batches, predictions, bundled data."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import CPU, one_thread, write_reviews  # noqa: F401

from minibert import runs
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.files import bundled_data
from minibert.heads import BertForSequenceClassification
from minibert.runs import scoring_seconds, training_seconds
from minibert.settings import FinetuneSettings
from minibert.tasks import FAMILIES, TASKS, classical, find_task
from minibert.tasks.base import FAMILY_SETTINGS, Source, Task
from minibert.tasks.batches import Feature, TaskData, infer, pad
from minibert.tasks.classes import confusion_text, per_class_text
from minibert.tasks.classical import tfidf_scores
from minibert.tasks.classification import ClassificationTask, classical_figures
from minibert.tasks.labelled import LabelledText, read_own
from minibert.tasks.labelled_sets import IMDB_CLASSES, read_imdb
from minibert.tasks.splits import cut_dev, limit_examples
from minibert.tasks.tagged import Sentence
from minibert.tasks.tagging import TaggingTask
from minibert.tasks.texts import encode, say_lengths
from minibert.tokenizer import SPECIAL_TOKENS, WordPiece

IMDB = ClassificationTask(FinetuneSettings(task="imdb"))
CLASSES = ("neg", "pos")


def find_imdb_data(data: str | None) -> Source:
    return ClassificationTask(FinetuneSettings(task="imdb", data=data)).find_data()


# --- settings of some families --------------------------------------------------------------------

GIVEN: dict[str, Any] = {
    **{"class_weights": "balanced", "mode": "bi-encoder", "length_penalty": 0.1},
    **{"threshold": "best", "pair_order": "both"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_that_a_family_does_not_read_is_refused(family: type[Task[Any, Any]]) -> None:
    kinds = {f.name: str(f.type) for f in dataclasses.fields(FinetuneSettings)}
    for name in FAMILY_SETTINGS:
        number = 0.1 if "float" in kinds[name] else 3
        value = GIVEN.get(name, "x" if "str" in kinds[name] else number)
        needed = {name.replace("target_data", "data"): "x"} if "target_data" in name else {}
        needed["data"] = "x"
        settings = FinetuneSettings(**{"task": family.names[-1], **needed, name: value})
        if name in family.uses:
            if name == "pair_order":  # which is of pairs
                settings = dataclasses.replace(settings, text_pair_column="y")
            family(settings)
        else:
            with pytest.raises(InputError, match=f"--{name.replace('_', '-')} has no use in"):
                family(settings)


def test_every_setting_of_some_families_is_used_by_one() -> None:
    assert set().union(*(f.uses for f in FAMILIES)) == FAMILY_SETTINGS


# --- the reader -----------------------------------------------------------------------------------


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_reviews(tmp_path / "aclImdb", count=3)


def archive(folder: Path, path: Path) -> Path:
    mode = "w:gz" if path.suffix == ".gz" else "w:xz"
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname="aclImdb")
    return path


@pytest.mark.parametrize("shape", ["parent", "reviews.tar.gz", "reviews.tar.xz"])
def test_a_folder_and_its_archives_are_read_alike(reviews: Path, shape: str) -> None:
    (reviews / "train/unsup").mkdir()
    (reviews / "train/unsup/0_0.txt").write_text("not labelled")
    (reviews / "train/pos/notes.md").write_text("not a review")
    (reviews / "README").write_text("not a review either")
    whole = read_imdb(reviews)
    path = reviews.parent if shape == "parent" else archive(reviews, reviews.parent / shape)
    other = read_imdb(path)
    assert (len(whole.train), len(whole.test)) == (6, 6)
    assert (other.train, other.test) == (whole.train, whole.test)
    assert other.notes == whole.notes
    assert other.fingerprint == whole.fingerprint


def test_examples_keep_their_text_class_and_place(reviews: Path) -> None:
    for example in read_imdb(reviews).test:
        assert example.text == (reviews / f"{example.id}.txt").read_text()
        assert str(example.label) in example.id


def test_fingerprint_follows_every_text(reviews: Path) -> None:
    before = read_imdb(reviews).fingerprint
    path = reviews / "test/neg/0_2.txt"
    path.write_text(path.read_text() + " x")
    assert read_imdb(reviews).fingerprint != before


def test_markup_becomes_a_space_and_is_counted(reviews: Path) -> None:
    text = 'a<br /><br />b <i>c</i> 3 < 4 > 2 <3 <a href="x">d\0</a>'
    (reviews / "train/pos/0_8.txt").write_text(text)
    splits = read_imdb(reviews)
    found = next(e for e in splits.train if e.id == "train/pos/0_8")
    assert found.text == "a b c 3 < 4 > 2 <3 d"
    assert any(note.startswith("1 with markup") for note in splits.notes)


def test_what_is_no_tag_of_html_stays_in_own_texts(tmp_path: Path) -> None:
    texts = {
        "The <e1>company</e1> fabricates <e2>chairs</e2>.": None,
        "thanks <user> see <url>": None,
        "if x <y and z> w, a <b and c> d": None,
        'a<br />b <I>c</I><br clear="all"/>\0 <a href="x">d</a>': "a b c d",
    }
    rows = [json.dumps({"text": t, "label": "xy"[i % 2]}) for i, t in enumerate(texts)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    splits = read_own(FinetuneSettings(task="classification", data=str(tmp_path / "own.jsonl")))
    assert [e.text for e in splits.train] == [clean or given for given, clean in texts.items()]


def test_repeated_and_shared_texts_are_noted(reviews: Path) -> None:
    shared = (reviews / "train/pos/0_8.txt").read_text()
    (reviews / "train/pos/1_8.txt").write_text(shared.upper())
    (reviews / "test/pos/0_8.txt").write_text(shared)
    notes = "; ".join(read_imdb(reviews).notes)
    assert "1 repeated within train" in notes
    assert "1 test texts occur in train" in notes


@pytest.mark.parametrize("missing", ["train/pos", "train/neg", "test/pos", "test/neg"])
def test_a_missing_class_is_named(reviews: Path, missing: str) -> None:
    shutil.rmtree(reviews / missing)
    with pytest.raises(InputError, match=missing):
        read_imdb(reviews)


def test_bytes_that_are_not_utf8_are_named(reviews: Path) -> None:
    (reviews / "test/neg/1_2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"test/neg/1_2.txt, byte 3 is not UTF-8"):
        read_imdb(reviews)


@pytest.mark.parametrize("kind", ["gz", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_archive_is_an_input_error(reviews: Path, kind: str, damage: str) -> None:
    noise = np.random.default_rng(0).integers(97, 122, size=400_000, dtype=np.uint8).tobytes()
    (reviews / "train/pos/9_9.txt").write_bytes(noise)
    path = archive(reviews, reviews.parent / f"reviews.tar.{kind}")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        at = len(content) // 2
        content[at : at + 64] = bytes(b ^ 0xFF for b in content[at : at + 64])
    path.write_bytes({"cut": content[:-5000], "text": b"hello"}.get(damage, content))
    with pytest.raises(InputError, match=re.escape(path.name)):
        read_imdb(path)


def test_links_in_an_archive_are_not_followed(reviews: Path) -> None:
    path = reviews.parent / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(reviews, arcname="aclImdb")
        info = tarfile.TarInfo("aclImdb/train/pos/99_9.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info, io.BytesIO())
    assert len(read_imdb(path).train) == 6


def test_tasks_are_found_by_name_and_unknown_ones_get_the_nearest() -> None:
    assert find_task("imdb") is TASKS["imdb"] is ClassificationTask
    with pytest.raises(InputError, match="did you mean 'imdb'"):
        find_task("imbd")


def test_data_is_what_was_named_else_what_was_downloaded_else_the_sample(
    reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reviews.parent)
    path, which, is_sample = find_imdb_data(None)
    assert path == bundled_data() / "imdb"
    assert "bundled sample" in which
    assert is_sample
    shutil.copytree(reviews, "data/downloads/aclImdb")
    path, which, is_sample = find_imdb_data(None)
    assert path == Path("data/downloads/aclImdb")
    assert "full set" in which
    assert not is_sample
    assert find_imdb_data(str(reviews)).path == reviews
    with pytest.raises(InputError, match="nowhere"):
        find_imdb_data("nowhere")


# --- splits ---------------------------------------------------------------------------------------


def examples(counts: tuple[int, ...] = (60, 20), copies: int = 0) -> list[LabelledText]:
    found = [
        LabelledText(f"{label}/{i}", f"text {label} {i}", CLASSES[label])
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    again = [LabelledText(f"copy/{e.id}", e.text.upper(), e.label) for e in found[:copies]]
    return found + again


def test_dev_split_is_stratified() -> None:
    train, dev = cut_dev(IMDB, examples(), 0.1)
    assert [sum(e.label == label for e in dev) for label in CLASSES] == [6, 2]
    assert sorted(train + dev) == sorted(examples())


def test_dev_split_keeps_the_order_and_does_not_depend_on_it() -> None:
    train, dev = cut_dev(IMDB, examples(), 0.25)
    assert train == [e for e in examples() if e in train]
    other_train, other_dev = cut_dev(IMDB, examples()[::-1], 0.25)
    assert (set(other_train), set(other_dev)) == (set(train), set(dev))
    assert cut_dev(IMDB, examples(), 0.25) == (train, dev)


def test_copies_of_a_text_stay_on_one_side() -> None:
    train, dev = cut_dev(IMDB, examples(copies=40), 0.3)
    assert not {e.text.lower() for e in train} & {e.text.lower() for e in dev}
    assert any(e.id.startswith("copy") for e in dev)


def test_a_dev_split_is_the_one_that_figures_were_measured_with() -> None:
    first = [f"0/{i}" for i in (2, 16, 17, 22, 35, 46)]
    again = [f"copy/0/{i}" for i in (2, 16, 17, 22, 35)]
    _, dev = cut_dev(IMDB, examples(copies=40), 0.1)
    assert [e.id for e in dev] == [*first, "1/4", "1/13", *again]


def test_many_copies_of_one_text_do_not_overfill_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [LabelledText(f"copy/{i}", "the same", "neg") for i in range(500)]
    for seed in range(20):
        monkeypatch.setattr("minibert.tasks.splits._SPLIT_SEED", seed)
        train, dev = cut_dev(IMDB, [*copies, *examples((500, 2))], 0.1)
        assert (len(dev), len(train)) == (101, 901)
        train, dev = cut_dev(IMDB, [*copies, *examples((1, 2))], 0.1)  # no choice but the one
        assert {e.id for e in dev} > {"0/0"}
        pairs = [e._replace(text="other") for e in copies[:6]] + copies
        _, dev = cut_dev(
            IMDB, [*pairs, *examples((0, 2))], 0.001
        )  # none fits, the smallest is taken
        assert len(dev) == 7


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9, 0.99])
def test_both_sides_of_a_split_have_every_class(fraction: float) -> None:
    for side in cut_dev(IMDB, examples((5, 2)), fraction):
        assert {e.label for e in side} == set(CLASSES)


def test_a_class_of_one_text_cannot_be_split() -> None:
    with pytest.raises(InputError, match="class pos has one different text, .* name --dev-data"):
        cut_dev(IMDB, examples((5, 1)), 0.5)
    task = TaggingTask(FinetuneSettings(task="tagging", data="x"))
    with pytest.raises(InputError, match="the data has one different text, .* name --dev-data"):
        cut_dev(task, [Sentence("0", ["Ana"], ["B-PER"])] * 3, 0.1)


@pytest.mark.parametrize("count", [4, 5, 10, 11])
def test_limit_draws_as_many_as_asked_for_class_by_class(count: int) -> None:
    chosen = limit_examples(IMDB, examples((30, 30)), count)
    assert len(set(chosen)) == len(chosen) == count
    share = sum(e.label == "pos" for e in chosen)
    assert abs(share - count / 2) < 1
    assert limit_examples(IMDB, examples((30, 30)), count) == chosen


LIMITED = [
    ((380, 20), 200, (180, 20)),
    ((40, 2, 40), 9, (4, 2, 3)),
    ((1, 40, 40), 8, (1, 4, 3)),
    ((2, 3, 40, 40), 31, (2, 3, 13, 13)),
    ((5, 1), 4, (3, 1)),
    ((3, 2, 2), 7, (3, 2, 2)),
    ((2, 40), 5, (2, 3)),
]


@pytest.mark.parametrize(("counts", "limit", "wanted"), LIMITED)
def test_what_a_small_class_leaves_over_goes_to_the_larger_ones(
    counts: tuple[int, ...], limit: int, wanted: tuple[int, ...]
) -> None:
    rows = [
        LabelledText(f"{label}/{i}", f"text {label} {i}", f"class {label}")
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    found = Counter(e.label for e in limit_examples(IMDB, rows, limit))
    assert found == {f"class {label}": count for label, count in enumerate(wanted)}


def test_balanced_examples_are_those_that_were_always_drawn() -> None:
    chosen = [e.id for e in limit_examples(IMDB, examples((30, 31)), 7)]
    assert chosen == ["0/0", "0/9", "0/17", "0/29", "1/1", "1/11", "1/26"]


def test_a_limit_below_the_number_of_classes_is_refused() -> None:
    rows = [LabelledText(f"{i}", f"text {i}", f"class {i % 5}") for i in range(50)]
    assert len(limit_examples(IMDB, rows, 5)) == 5
    with pytest.raises(InputError, match="--limit 4 is below the 5 classes of the data"):
        limit_examples(IMDB, rows, 4)


def test_limit_beyond_the_data_keeps_all() -> None:
    assert sorted(limit_examples(IMDB, examples((6, 6)), 100)) == sorted(examples((6, 6)))


# --- encoding and batches -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    folder = tmp_path_factory.mktemp("vocabulary")
    letters = [chr(97 + i) for i in range(26)]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *letters]) + "\n")
    return WordPiece.from_pretrained(folder)


def test_head_keeps_the_beginning(tokenizer: WordPiece) -> None:
    text = " ".join("abcdefghijklmnopqrst")  # ids 5 to 24
    ((row,),) = encode([(text, None)], tokenizer, 10, "head")
    ids = row["input_ids"]
    assert ids.tolist() == [2, *range(5, 13), 3]


def test_head_and_tail_keep_a_quarter_and_the_end(tokenizer: WordPiece) -> None:
    text = " ".join("abcdefghijklmnopqrst")
    ((row,),) = encode([(text, None)], tokenizer, 10, "head+tail")
    ids = row["input_ids"]
    assert ids.tolist() == [2, 5, 6, *range(19, 25), 3]


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail", "windows"])
def test_texts_that_fit_are_kept_whole(tokenizer: WordPiece, truncation: str) -> None:
    texts = [("", None), ("a", None), (" ".join("abcdefgh"), None)]
    rows = [row["input_ids"] for (row,) in encode(texts, tokenizer, 10, truncation)]
    assert [r.tolist() for r in rows] == [[2, 3], [2, 5, 3], [2, *range(5, 13), 3]]
    (windows,) = encode([(" ".join("abcdefghi"), None)], tokenizer, 10, truncation)
    assert all(len(row["input_ids"]) <= 10 for row in windows)


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail", "windows"])
@pytest.mark.parametrize("room", [8, 9])
def test_what_is_said_to_be_cut_is_what_loses_pieces(
    tokenizer: WordPiece, capsys: pytest.CaptureFixture[str], truncation: str, room: int
) -> None:
    firsts = [" ".join("abcdefghijklm"[:n]) for n in range(0, 14, 2)]
    seconds = [None, *(" ".join("nopqrstuvwxyz"[:n]) for n in range(0, 14, 3))]
    texts = list(itertools.product(firsts, seconds))
    rows = encode(texts, tokenizer, room, truncation)
    loses = 0
    for (first, second), windows in zip(texts, rows, strict=True):
        kept = set(np.concatenate([row["input_ids"] for row in windows]).tolist())
        loses += not set(tokenizer.ids([f"{first} {second or ''}"])[0]) <= kept
    assert 0 < loses < len(texts)
    say_lengths(texts, sum(map(len, rows)), tokenizer, room, truncation)
    *before, said = capsys.readouterr().err.splitlines()
    parts = f"{len(texts)} pairs to learn from are read in {sum(map(len, rows))} parts of at most"
    assert [parts in line for line in before] == ([True] if truncation == "windows" else [])
    assert said.startswith(f"cut: {loses} of {len(texts)} pairs to learn from lose some of their")
    assert f"to --max-seq-length {room} by --truncation {truncation}; " in said
    whole = texts[: 1 + len(seconds)]
    say_lengths(whole, len(whole), tokenizer, 32, truncation)
    assert capsys.readouterr().err == ""


def test_what_is_cut_is_said_of_what_is_learnt_from(
    tokenizer: WordPiece, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ClassificationTask(FinetuneSettings(task="imdb", max_seq_length=10))
    examples = [LabelledText(str(n), " ".join("abcdefghijkl"[:n]), "pos") for n in (8, 9, 12)]
    task.learn([*examples, LabelledText("0", "a", "neg")], tokenizer)
    task.encode(examples)
    assert capsys.readouterr().err == ""
    task.encode_to_learn(examples)
    assert capsys.readouterr().err == (
        "cut: 2 of 3 texts to learn from lose some of their text to --max-seq-length 10 by "
        "--truncation head; --truncation windows reads all of a text\n"
    )


def test_windows_are_counted_and_nothing_of_single_texts_is_cut(
    tokenizer: WordPiece, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = FinetuneSettings(task="imdb", max_seq_length=10, truncation="windows")
    task = ClassificationTask(settings)
    examples = [LabelledText(str(n), " ".join("abcdefghijkl"[:n]), "pos") for n in (8, 9, 12)]
    task.learn([*examples, LabelledText("0", "a", "neg")], tokenizer)
    assert [len(windows) for windows in task.encode_to_learn(examples)] == [1, 2, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("windows: 3 texts to learn from are read in 5 parts of at most 10 ")
    assert "an epoch 1.7 times as long" in line


def test_padding_is_masked() -> None:
    longer = Feature({"input_ids": np.array([2, 9, 3])}, {"labels": 1})
    batch = pad([longer, Feature({"input_ids": np.array([2, 3])}, {"labels": 0})], pad_id=7)
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_sequences_of_labels_are_padded_with_what_is_ignored() -> None:
    def feature(*ids: int) -> Feature:
        inputs = {"input_ids": np.array(ids), "token_type_ids": np.ones(len(ids), np.int64)}
        return Feature(inputs, {"labels": np.array(ids) % 3, "grade": 0.5})

    batch = pad([feature(2, 3), feature(2, 9, 3)], pad_id=0)
    assert batch["labels"].tolist() == [[2, 0, -100], [2, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["grade"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64


def test_a_step_without_a_label_divides_by_one() -> None:
    ignored = Feature({"input_ids": np.array([2, 3])}, {"labels": np.array([-100, -100])})
    data = TaskData([ignored], lambda f: pad(f, 0), IMDB.count, 1, 1, 0)
    assert data.take().counts == {"task": 1}


def rows_of_any_length(count: int = 203) -> list[np.ndarray]:
    lengths = np.random.default_rng(1).integers(3, 60, size=count)
    return [np.full(n, i + 10) for i, n in enumerate(lengths)]


def stream(seed: int = 0, micro: int = 4) -> TaskData:
    rows = rows_of_any_length()
    features = [Feature({"input_ids": ids}, {"labels": i}) for i, ids in enumerate(rows)]
    return TaskData(features, lambda f: pad(f, 0), IMDB.count, 8, micro, seed)


def epoch_of(data: TaskData) -> list[list[int]]:
    """The labels of each step; labels here are the numbers of the examples."""
    steps = [data.take() for _ in range(data.steps_per_epoch)]
    return [[int(i) for m in step.micro_batches for i in m["labels"]] for step in steps]


def test_every_example_comes_once_an_epoch() -> None:
    data = stream()
    for epoch in (1, 2):
        assert sorted(i for step in epoch_of(data) for i in step) == list(range(203))
        assert data.epochs_done == epoch


def test_order_is_a_function_of_seed_and_epoch() -> None:
    data = stream(seed=3)
    first, second = epoch_of(data), epoch_of(data)
    again = stream(seed=3)
    assert (epoch_of(again), epoch_of(again)) == (first, second)
    assert first != second
    assert epoch_of(stream(seed=4)) != first
    assert epoch_of(stream(seed=3, micro=8)) == first


def test_seeking_goes_back_to_a_position() -> None:
    data = stream()
    for _ in range(30):
        data.take()
    state = data.state()
    following = epoch_of(data)
    other = stream()
    other.seek(state)
    assert other.epochs_done == 30 / 26
    assert epoch_of(other) == following


def test_a_step_is_parted_into_micro_batches_and_counted() -> None:
    data = stream()
    for _ in range(data.steps_per_epoch):
        step = data.take()
        sizes = [len(m["labels"]) for m in step.micro_batches]
        assert all(size == 4 for size in sizes[:-1])
        assert step.counts == {"task": sum(sizes)}
        assert step.num_tokens == sum(int(m["attention_mask"].sum()) for m in step.micro_batches)
        for batch in step.micro_batches:
            assert torch.equal(batch["input_ids"][:, 0], batch["labels"] + 10)


def test_batches_hold_texts_of_similar_length() -> None:
    def padding(batches: list[list[int]], rows: list[np.ndarray]) -> float:
        cells = sum(len(b) * max(len(rows[i]) for i in b) for b in batches)
        return 1 - sum(map(len, rows)) / cells

    rows = rows_of_any_length()
    random = np.random.default_rng(0).permutation(len(rows)).tolist()
    at_random = [random[i : i + 8] for i in range(0, len(random), 8)]
    steps = epoch_of(stream())
    assert padding(steps, rows) < 0.3 * padding(at_random, rows)
    lengths = [max(len(rows[i]) for i in step) for step in steps]
    assert lengths != sorted(lengths)  # but steps do not go from short to long


# --- prediction and figures -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        id2label={0: "neg", 1: "pos"},
    )
    return BertForSequenceClassification(config).eval()


def test_predictions_do_not_depend_on_batch_or_order(
    classifier: BertForSequenceClassification, tokenizer: WordPiece
) -> None:
    task = ClassificationTask(FinetuneSettings(task="imdb"))
    task.tokenizer = tokenizer

    def probabilities(given: list[np.ndarray], size: int) -> np.ndarray:
        features = [Feature({"input_ids": ids}, {}) for ids in given]
        return np.stack(infer(task, classifier, features, size, CPU))

    rows = rows_of_any_length(40)
    one = np.concatenate([probabilities([r], 1) for r in rows])
    assert one.std(axis=0).min() > 0.05  # or a wrong order could not be told
    many = probabilities(rows, 16)
    np.testing.assert_allclose(many, one, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(rows))
    mixed = probabilities([rows[i] for i in order], 7)
    np.testing.assert_allclose(mixed, one[order], atol=1e-5)


def test_prediction_rows_follow_the_examples() -> None:
    shares = np.array([[0.9, 0.1], [0.25, 0.75]])
    given = [LabelledText("a", "one", "neg"), LabelledText("b", "two", "neg")]
    assert [IMDB.row(e, p) for e, p in zip(given, shares, strict=True)] == [
        {"id": "a", "text": "one", "label": "neg", "prediction": "neg", "score": 0.9},
        {"id": "b", "text": "two", "label": "neg", "prediction": "pos", "score": 0.75},
    ]


def test_errors_are_the_wrong_answers_surest_first() -> None:
    shares = np.array([[0.4, 0.6], [0.1, 0.9], [0.1, 0.9]])
    labels = {"a": "neg", "b": "neg", "c": "pos"}
    given = [LabelledText(i, f"text {i}", label) for i, label in labels.items()]
    assert IMDB.errors(given, shares) == [
        "b: neg, taken for pos (90%)\ntext b",
        "a: neg, taken for pos (60%)\ntext a",
    ]


def test_score_of_known_probabilities() -> None:
    task = ClassificationTask(FinetuneSettings(task="imdb"))
    examples = [LabelledText(str(i), "x", "neg") for i in range(3)]
    figures = task.score(examples, list(np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]])))
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["loss"] == pytest.approx(-np.log([0.9, 0.25, 0.5]).mean())


def test_tables_show_a_class_on_one_line_however_it_is_called() -> None:
    names = ("a\nb", "c\td", "x" * 300)
    figures = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    for text in (
        per_class_text(dict.fromkeys(names, figures)),
        confusion_text(names, [[1, 0, 0], [0, 2, 0], [0, 0, 3]]),
    ):
        *_, first, second, third = text.splitlines()
        assert (first[:5], second[:5], third[:61]) == ("a b  ", "c d  ", "x" * 59 + "… ")
        assert len({len(line) for line in text.splitlines()[-4:]}) == 1


def test_confusion_table_shows_every_count() -> None:
    text = confusion_text(IMDB_CLASSES, [[5, 1], [2, 1234]])
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["neg", "5", "1"],
        ["pos", "2", "1,234"],
    ]


def test_baseline_learns_from_words() -> None:
    pytest.importorskip("sklearn")
    train = [
        LabelledText(str(i), f"{'good fine' if i % 2 else 'bad dull'} film {i}", CLASSES[i % 2])
        for i in range(20)
    ]
    test = [LabelledText("a", "a fine film", "pos"), LabelledText("b", "a dull film", "neg")]
    figures = classical_figures(tfidf_scores, train, test)
    assert figures == pytest.approx({"accuracy": 1.0, "f1": 1.0, "matthews": 1.0})


def test_baseline_of_texts_without_a_word_in_common_does_not_fail() -> None:
    """It is scored after training: an error here would cost the whole run."""
    pytest.importorskip("sklearn")
    words = enumerate("one two six ten".split())
    train = [LabelledText(str(i), word, CLASSES[i % 2]) for i, word in words]
    figures = classical_figures(tfidf_scores, train, train)
    assert 0 <= figures["accuracy"] <= 1


def test_a_baseline_that_would_fill_the_memory_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sklearn")
    train = [LabelledText(str(i), f"word{i % 5} river", CLASSES[i % 2]) for i in range(20)]
    assert classical_figures(tfidf_scores, train, train)["accuracy"] <= 1
    monkeypatch.setattr(classical, "_MOST_WEIGHTS", 10)
    with pytest.raises(ValueError, match=r"2 classes of 11 words and word pairs would need about"):
        classical_figures(tfidf_scores, train, train)


# --- bundled data ---------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def test_bundled_reviews_are_many_balanced_and_of_plain_length() -> None:
    splits = read_imdb(bundled_data() / "imdb")
    everything = splits.train + splits.test
    assert len(everything) >= 600
    for part in (splits.train, splits.test):
        assert sum(e.label == "pos" for e in part) * 2 == len(part)
    lengths = [len(e.text.split()) for e in everything]
    assert min(lengths) >= 40
    assert max(lengths) <= 250
    for example in everything:
        stars = int(example.id.rsplit("_", 1)[1])
        assert stars >= 7 if example.label == "pos" else stars <= 4


def test_no_eight_words_in_a_row_are_shared_by_two_bundled_reviews() -> None:
    splits = read_imdb(bundled_data() / "imdb")
    seen: dict[tuple[str, ...], str] = {}
    for example in splits.train + splits.test:
        words = words_of(example.text)
        for i in range(len(words) - 7):
            owner = seen.setdefault(tuple(words[i : i + 8]), example.id)
            assert owner == example.id, f"{owner} and {example.id}: {' '.join(words[i : i + 8])}"


def test_bundled_test_reviews_are_not_in_train() -> None:
    splits = read_imdb(bundled_data() / "imdb")
    assert not {e.text.lower() for e in splits.train} & {e.text.lower() for e in splits.test}
    assert not any("repeated" in n or "occur in train" in n for n in splits.notes)


def test_bundled_articles_are_many_with_one_sentence_a_line() -> None:
    path = bundled_data() / "wiki.txt"
    assert path.stat().st_size >= 200_000
    articles = path.read_text(encoding="utf-8").strip().split("\n\n")
    assert len(articles) >= 300
    assert len(set(articles)) == len(articles)
    lines = [line for article in articles for line in article.split("\n")]
    assert all(line == line.strip() and line for line in lines)
    ends = sum(line.rstrip("\"')”’")[-1] in ".!?" for line in lines)
    assert ends > 0.99 * len(lines)
    # Hardly a line holds a second sentence: a stop, a space, a capital.
    inner = sum(bool(re.search(r"[a-z]{3}[.!?] [A-Z]", line)) for line in lines)
    assert inner < 0.01 * len(lines)


@pytest.mark.parametrize("name", ["README.md", "imdb/README.md"])
def test_bundled_data_calls_itself_a_sample_in_its_first_line(name: str) -> None:
    first = (bundled_data() / name).read_text(encoding="utf-8").splitlines()[0]
    assert "bundled sample" in first


# --- the budget of minutes ------------------------------------------------------------------------


def test_minutes_leave_time_for_what_came_before_and_for_scoring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 30.0
    monkeypatch.setattr(runs.time, "perf_counter", lambda: now)

    def score_rows(rows: Sequence[int]) -> None:  # a tenth of a second a row
        nonlocal now
        now += 0.1 * len(rows)

    # 600 s less 30 s before, 0.1 s and 20 s of timing, a twentieth, and 100 s of scoring.
    scoring = scoring_seconds(score_rows, range(1000), 1000)
    seconds = training_seconds(10, 0.0, scoring)
    assert seconds == pytest.approx((600 - 30 - 0.1 - 20) * 0.95 - 100)
    assert scoring_seconds(score_rows, range(40), 300, timed=4) == pytest.approx(30)
