"""The vocabulary of a corpus: trained once, of a large corpus on a sample of bounded size."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from samples import write

from minibert import corpus, vocabulary
from minibert.corpus import ReaderOptions
from minibert.vocabulary import corpus_vocabulary, sample

WIKI = Path(__file__).resolve().parents[1] / "data" / "wiki.txt"
PLAIN = ReaderOptions()


def lines(first: int, last: int) -> str:
    """Numbered lines of ten bytes each."""
    return "".join(f"{i:09d}\n" for i in range(first, last))


def numbers(files: list[Path], count: int, options: ReaderOptions = PLAIN) -> list[int]:
    return [int(text) for text in sample(files, options, count)]


def test_vocabulary_is_trained_once_and_then_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = corpus_vocabulary([WIKI], 1000, PLAIN, True, True, cache)
    assert "1,000 pieces, written to" in capsys.readouterr().err
    monkeypatch.setattr(corpus, "read_pieces", None)
    second = corpus_vocabulary([WIKI], 1000, PLAIN, True, True, cache)
    assert "read from" in capsys.readouterr().err
    assert (second.tokens, second.fingerprint) == (first.tokens, first.fingerprint)


def test_a_cache_in_the_corpus_folder_adds_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc abd " * 9)
    corpus_vocabulary([path], 16, PLAIN, True, True, tmp_path / "cache")
    assert list(tmp_path.glob("cache/*/vocab.txt"))
    assert corpus.find_files([str(tmp_path)]) == [path]


def test_vocabulary_depends_on_every_setting(cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc Abd 中文 中文 abc\n" * 9)
    settings = [(16, True, True), (17, True, True), (17, False, True), (17, True, False)]
    found = [corpus_vocabulary([path], v, PLAIN, *how, cache) for v, *how in settings]
    assert len({t.fingerprint for t in found}) == 4


def test_a_default_size_that_the_characters_exceed_grows_and_says_so(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    characters = [chr(0x4E00 + i) for i in range(3000)]  # each also after "##"
    text = "\n".join("".join(characters[i : i + 30]) for i in range(0, 3000, 30))
    path = write(tmp_path / "a.txt", f"{text}\n" * 2)
    for told in ("written to", "read from"):
        found = corpus_vocabulary([path], 4096, PLAIN, True, False, cache, exact=False)
        assert found.vocab_size > 6000
        said = capsys.readouterr().err
        assert told in said
        assert f"{found.vocab_size:,} pieces instead of 4,096" in said


def test_a_sample_is_stretches_of_whole_lines_at_equal_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_STRETCH", 30)
    path = write(tmp_path / "a.txt", lines(0, 100))
    assert numbers([path], 4) == [0, 1, 2, 25, 26, 27, 50, 51, 52, 75, 76, 77]
    # A place within a line begins with the line after it.
    assert numbers([path], 3) == [0, 1, 2, 34, 35, 36, 67, 68, 69]


def test_a_stretch_goes_on_into_the_next_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_STRETCH", 40)
    files = [write(tmp_path / f"{i}.txt", lines(3 * i, 3 * i + 3)) for i in range(8)]
    assert numbers(files, 2) == [0, 1, 2, 3, 12, 13, 14, 15]
    assert numbers(files, 1) == [0, 1, 2, 3]
    assert numbers(files[:7], 2) == [0, 1, 2, 3, 11, 12, 13, 14]  # from within a file


def test_a_compressed_file_gives_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_STRETCH", 30)
    plain = write(tmp_path / "a.txt", lines(0, 40))
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(lines(500, 1000).encode(), compresslevel=1))
    found = numbers([plain, packed], 8)
    assert found[:3] == [0, 1, 2]
    packed_ones = [number for number in found if number >= 500]
    assert packed_ones == [*range(500, 500 + len(packed_ones))]
    assert len(packed_ones) > 3  # of several stretches


def test_json_lines_are_sampled_by_their_text_and_broken_ones_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_STRETCH", 200)
    rows = ['{"text": "one\\ntwo"}', "not JSON", "[]", '{"text": 3}', '{"text": "last"}']
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    assert [t for t in sample([path], PLAIN, 1) if t] == ["one\ntwo", "last"]


def test_wikitext_is_sampled_as_plain_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tokens", " = Title = \n \n one @-@ way <unk>\n")
    assert [t for t in sample([path], PLAIN, 1) if t.strip()] == ["Title", " one-way"]


def test_a_sampled_json_line_longer_than_a_block_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", 16)
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "word " * 50}))
    assert list(sample([path], PLAIN, 1)) == ["word " * 50]


def test_a_large_corpus_is_read_in_part_by_a_rule_that_is_printed(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(vocabulary, "_STRETCH", 60)
    path = write(tmp_path / "a.txt", "aa bb\n" * 100 + "cc dd\n" * 100)
    monkeypatch.setattr(vocabulary, "_SAMPLE", 1199)  # 19 stretches of 60 in 1,200
    whole = corpus_vocabulary([path], 13, PLAIN, True, True, cache)
    assert "19 stretches of 60 bytes at equal distances in about 1,200" in capsys.readouterr().err
    assert whole.tokens[5:] == ["a", "b", "c", "d", "##a", "##b", "##c", "##d"]
    monkeypatch.setattr(vocabulary, "_SAMPLE", 60)  # the beginning alone
    part = corpus_vocabulary([path], 9, PLAIN, True, True, cache)
    assert part.tokens[5:] == ["a", "b", "##a", "##b"]
    monkeypatch.setattr(vocabulary, "_SAMPLE", 1200)
    capsys.readouterr()
    corpus_vocabulary([path], 13, PLAIN, True, True, cache)
    assert "stretches" not in capsys.readouterr().err
