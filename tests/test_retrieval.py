"""Search in a file of sentences: exact, cached by what decides it, clear about what is wrong."""

from __future__ import annotations

import errno
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import NOUNS, one_thread, write_corpus  # noqa: F401

import minibert
from minibert import retrieval
from minibert.cli import main
from minibert.errors import InputError
from minibert.pretraining import pretrain
from minibert.retrieval import Hit, nearest, search


def units(count: int, width: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("top", [1, 5, 300])
def test_blocks_give_what_brute_force_gives(
    monkeypatch: pytest.MonkeyPatch, block: int, top: int
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    index, queries = units(200, 8, 0).astype(np.float16), units(3, 8, 1)
    index[50:60] = index[10]  # equal ones come in their order
    found = nearest(queries, index, top)
    scores = queries @ index.astype(np.float32).T
    for hits, own in zip(found, scores, strict=True):
        rows = [row for row, _ in hits]
        assert len(rows) == min(top, 200)
        np.testing.assert_allclose([s for _, s in hits], -np.sort(-own)[:top], atol=1e-6)
        np.testing.assert_allclose([s for _, s in hits], own[rows], atol=1e-6)
        assert len(set(rows)) == len(rows)


def test_of_equal_rows_the_first_ones_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", 4)
    index = np.tile(np.array([1, 0], np.float16), (10, 1))
    index[3] = [0, 1]
    (hits,) = nearest(np.array([[1, 0]], np.float32), index, 5)
    assert hits == [(0, 1.0), (1, 1.0), (2, 1.0), (4, 1.0), (5, 1.0)]


def test_cosines_stay_within_their_range_and_their_order() -> None:
    longer = np.array([[0.6, 0.8005], [0.601, 0.802], [-0.601, -0.802]], np.float16)
    assert np.linalg.norm(longer.astype(np.float32), axis=1).min() > 1
    (hits,) = nearest(longer[:1].astype(np.float32), longer, 3)
    assert hits == [(1, 1.0), (0, 1.0), (2, -1.0)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_corpus(folder / "corpus.txt")
    loop: dict[str, Any] = {"max_seq_length": 24, "device": "cpu", "precision": "fp32"}
    where = {"output": str(folder / "model"), "cache_dir": str(folder / "cache")}
    corpus = [str(folder / "corpus.txt")]
    pretrain(corpus=corpus, preset="tiny", vocab_size=60, max_steps=2, **loop, **where)
    lines = [f"{first} {second}" for first in NOUNS for second in NOUNS[:4]]
    (folder / "lines.txt").write_text("\n".join([*lines, "", lines[2], f"{lines[2]}\r"]) + "\n")
    return folder


def test_search_equals_brute_force_and_keeps_its_index(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = minibert.load_embedder(world / "model")
    texts = list(
        dict.fromkeys(t for t in (world / "lines.txt").read_text().split("\n") if t.strip())
    )
    texts = [t.strip() for t in texts if t == t.strip()]
    queries = [texts[2], "winter valley"]
    given = (world / "model", world / "lines.txt", queries)
    kept = world / "kept"
    found = search(*given, top=4, cache_dir=kept)
    assert "made once" in capsys.readouterr().err
    scores = model.embed(queries) @ model.embed(texts).T
    for hits, own in zip(found, scores, strict=True):
        assert [h.score for h in hits] == pytest.approx(-np.sort(-own)[:4], abs=2e-3)
        for hit in hits:
            assert hit.score == pytest.approx(own[texts.index(hit.text)], abs=2e-3)
    assert found[0][0] == Hit(3, 3, found[0][0].score, texts[2])
    assert found[0][0].score == pytest.approx(1, abs=1e-3)
    (index,) = kept.iterdir()
    with monkeypatch.context() as patch:  # nothing but queries is encoded again
        patch.setattr(retrieval, "write_atomically", None)
        assert search(*given, top=4, cache_dir=kept) == found
    assert f"from {index}" in capsys.readouterr().err
    index.write_bytes(index.read_bytes()[:200])  # damaged: made anew
    assert search(*given, top=4, cache_dir=kept) == found


def test_many_queries_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, index = (rng.standard_normal((n, 8)).astype(np.float32) for n in (7, 50))
    whole = nearest(queries, index, 3)
    seen = []
    real = retrieval._nearest
    monkeypatch.setattr(retrieval, "_QUERIES", 3)
    monkeypatch.setattr(
        retrieval, "_nearest", lambda q, i, top: seen.append(len(q)) or real(q, i, top)
    )
    found = nearest(queries, index, 3)
    assert seen == [3, 3, 1]
    assert [[row for row, _ in hits] for hits in found] == [[r for r, _ in hits] for hits in whole]


def test_a_full_disk_ends_in_a_line_and_leaves_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    line = ["search", world / "model", "--input", world / "lines.txt", "storm"]
    assert main([*map(str, line), "--cache-dir", str(tmp_path / "kept")]) == 1
    assert "no space left" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "kept").iterdir())


def test_an_index_is_of_its_precision(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("storm\nriver\n")
    for precision in ("fp32", "int8"):
        search(world / "model", file, ["storm"], precision=precision, cache_dir=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_an_index_is_of_its_sentences_and_its_model(world: Path, tmp_path: Path) -> None:
    kept, file = tmp_path / "kept", tmp_path / "a.txt"
    file.write_text("storm\nriver\n")
    search(world / "model", file, ["storm"], cache_dir=kept)
    file.write_text("storm\ncastle\n")
    ((first, _),) = search(world / "model", file, ["castle"], cache_dir=kept)
    assert first.text == "castle"
    assert len(list(kept.iterdir())) == 2
    other = tmp_path / "other"
    minibert.BertModel(minibert.BertConfig.from_pretrained(world / "model")).save_pretrained(other)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (other / name).write_bytes((world / "model" / name).read_bytes())
    search(other, file, ["storm"], cache_dir=kept)
    assert len(list(kept.iterdir())) == 3
    config = other / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_lower_case": False}))
    search(other, file, ["storm"], cache_dir=kept)
    assert len(list(kept.iterdir())) == 4


def test_texts_that_are_parted_elsewhere_have_an_index_of_their_own(world: Path) -> None:
    embedder: Any = minibert.load_embedder(world / "model")
    parted = (["storm\nriver", "castle"], ["storm", "river\ncastle"])
    assert len({retrieval._key(embedder, world / "model", texts) for texts in parted}) == 2


def test_an_index_is_of_how_its_sentences_are_cut(world: Path) -> None:
    embedder: Any = minibert.load_embedder(world / "model")
    settings, keys = embedder.task.settings, []
    for change in ({}, {"truncation": "tail"}, {"max_seq_length": 16}):
        embedder.task.settings = replace(settings, **change)
        keys.append(retrieval._key(embedder, world / "model", ["storm"]))
    assert len({*keys}) == 3


def test_the_command_prints_a_line_for_each_hit(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as handle:
        handle.write("storm river\nmarket\nstorm river\n")
    line = ["search", world / "model", "--input", tmp_path / "a.txt.gz", "--top", "2"]
    line += ["--cache-dir", tmp_path / "kept", "market", "storm"]
    assert main([*map(str, line)]) == 0
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [row["query"] for row in rows] == ["market", "market", "storm", "storm"]
    assert rows[0] == {"query": "market", "line": 2, "copies": 1, "text": "market"} | {
        "score": pytest.approx(1, abs=1e-3)
    }
    assert {row["copies"] for row in rows[2:]} == {1, 2}


def test_lines_of_json_are_searched_by_their_text(world: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text('{"text": "a storm"}\nthe river\n')
    ((first, second),) = search(world / "model", lines, "storm", cache_dir=tmp_path)
    assert {first.text, second.text} == {"a storm", "the river"}


def test_a_table_is_searched_by_a_column(world: Path, tmp_path: Path) -> None:
    texts = ["storm, river", "market", "storm, river"]
    (tmp_path / "a.csv").write_text('id,text\n1,"storm, river"\n2,market\n3,"storm, river"\n')
    rows = (json.dumps({"body": text, "text": 7}) for text in texts)
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    for name, column, first in (("a.csv", None, 2), ("a.jsonl", "body", 1)):
        found = search(
            *(world / "model", tmp_path / name, ["market"]),
            cache_dir=tmp_path / "kept",
            text_column=column,
        )
        places = {hit.text: (hit.line, hit.copies) for hit in found[0]}
        assert places == {"storm, river": (first, 2), "market": (first + 1, 1)}


BAD = {
    "no file": ("search W/model --input W/none.txt storm", "none.txt does not exist"),
    "a folder": ("search W/model --input W storm", "is a folder"),
    "JSON": ("search W/model --input W/list.json storm", "list.json is JSON; expected a sentence"),
    "empty": ("search W/model --input W/empty.txt storm", "holds no sentence"),
    "tags": ("search W/model --input W/tags.txt storm", "holds a word and its tag a line"),
    "CR": ("search W/model --input W/cr.txt storm", "has CR as its line end"),
    "not utf-8": ("search W/model --input W/latin.txt storm", "line 1: byte 3 is not UTF-8"),
    "no model": ("search W/none --input W/lines.txt storm", "none is not a model folder"),
    "no query": ("search W/model --input W/lines.txt", "nothing to search for"),
    "no input": ("search W/model storm", "--input"),
    "no column": ("search W/model --input W/a.csv storm", "has no column 'text' (--text-column)"),
    "no text": (
        "search W/model --input W/a.jsonl --text-column n storm",
        "a.jsonl, line 1: 'n' holds 7, no text",
    ),
    "no table": (
        "search W/model --input W/lines.txt --text-column n storm",
        "--text-column goes with a .csv, .tsv or .jsonl",
    ),
    "no hits": ("search W/model --input W/lines.txt --top 0 storm", "--top is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(
    world: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (world / "empty.txt").write_text("\n \n")
    (world / "list.json").write_text('[{"text": "storm"}]\n')
    (world / "a.csv").write_text("body\nstorm\n")
    (world / "a.jsonl").write_text('{"n": 7}\n')
    (world / "tags.txt").write_text("Ana B-PER\nsings O\n")
    (world / "cr.txt").write_bytes(b"a storm\ra river\r")
    (world / "latin.txt").write_bytes(b"caf\xe9\n")
    line, wanted = BAD[name]
    assert main(line.replace("W", str(world)).split()) == 2
    (message,) = [t for t in capsys.readouterr().err.splitlines() if t.startswith("minibert: ")]
    assert wanted in message


def test_one_string_is_one_query(world: Path, tmp_path: Path) -> None:
    given = (world / "model", world / "lines.txt")
    found = search(*given, "castle river", cache_dir=tmp_path)
    assert found == search(*given, ["castle river"], cache_dir=tmp_path) and len(found) == 1


def test_queries_may_come_as_an_array_or_one_by_one(world: Path, tmp_path: Path) -> None:
    given, asked = (world / "model", world / "lines.txt"), ["castle river", "storm"]
    found = search(*given, asked, cache_dir=tmp_path)
    for queries in (np.array(asked), iter(asked)):
        assert search(*given, queries, cache_dir=tmp_path) == found
    with pytest.raises(InputError, match="query 2 is 3; expected a string"):
        search(*given, ["storm", 3], cache_dir=tmp_path)


def test_an_empty_query_is_refused(world: Path) -> None:
    with pytest.raises(InputError, match="a query is empty"):
        search(world / "model", world / "lines.txt", ["storm", " "])
    with pytest.raises(InputError, match="a query is empty"):
        search(world / "model", world / "lines.txt", "")
