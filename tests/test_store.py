"""The token store: what is written equals the text encoded directly, once, whole or not at all."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samples import write

from minibert import cache as cache_module
from minibert import corpus, encoding, store
from minibert.cache import data_fingerprint
from minibert.corpus import Piece, ReaderOptions, split_sentences
from minibert.encoding import LONGEST_SENTENCE
from minibert.errors import InputError
from minibert.store import TokenStore, open_store
from minibert.tokenizer import SPECIAL_TOKENS, WordPiece
from minibert.vocabulary import corpus_vocabulary

ROOT = Path(__file__).resolve().parents[1]
WIKI = ROOT / "data" / "wiki.txt"
PLAIN = ReaderOptions()
WORDS = [f"w{i}" for i in range(50)]


def tokenizer_of(folder: Path, tokens: list[str]) -> WordPiece:
    folder.mkdir()
    text = "".join(f"{t}\n" for t in (*SPECIAL_TOKENS, *tokens))
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return WordPiece.from_pretrained(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    """One token a word: w0 has the id 5, and so on; then the full stop."""
    return tokenizer_of(tmp_path_factory.mktemp("words") / "t", [*WORDS, "."])


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    """Every lower-case letter and digit, so that English needs no training."""
    alphabet = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [f"##{c}" for c in alphabet if c.isalnum()]
    folder = tmp_path_factory.mktemp("letters") / "t"
    return tokenizer_of(folder, [*alphabet, *pieces, "the", "##ing", "##ed"])


def content(opened: TokenStore) -> tuple[list[int], list[int], list[int], list[int]]:
    arrays = (opened.tokens, opened.sentence_starts, opened.document_starts, opened.token_counts)
    tokens, sentences, documents, counts = (a.tolist() for a in arrays)
    return tokens, sentences, documents, counts


def direct(text: str, tokenizer: WordPiece) -> tuple[list[int], list[int], list[int]]:
    """Tokens, sentence starts and document starts, straight from the text."""
    tokens: list[int] = []
    sentences, documents = [0], [0]
    for document in text.split("\n\n"):
        for line in document.strip().split("\n"):
            for sentence in split_sentences(line):
                ids = tokenizer.backend.encode(sentence, add_special_tokens=False).ids
                for at in range(0, len(ids), LONGEST_SENTENCE):
                    tokens += ids[at : at + LONGEST_SENTENCE]
                    sentences.append(len(tokens))
        if documents[-1] < len(sentences) - 1:
            documents.append(len(sentences) - 1)
    return tokens, sentences, documents


# --- content -----------------------------------------------------------------------------------


def test_store_equals_direct_encoding(letters: WordPiece, cache: Path) -> None:
    opened = open_store([WIKI], letters, PLAIN, cache)
    tokens, sentences, documents = direct(WIKI.read_text(encoding="utf-8"), letters)
    assert content(opened)[:3] == (tokens, sentences, documents)
    assert opened.num_documents == opened.counts.documents == len(documents) - 1
    assert opened.counts.sentences == len(sentences) - 1
    assert opened.counts.tokens == len(tokens)
    assert opened.counts.unknown_tokens == tokens.count(letters.unk_id) > 0


def test_one_process_and_two_write_the_same(
    letters: WordPiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 10_000)  # about thirty batches in flight and out
    one = open_store([WIKI], letters, PLAIN, tmp_path / "one", num_processes=1)
    two = open_store([WIKI], letters, PLAIN, tmp_path / "two", num_processes=2)
    assert content(one) == content(two)
    assert one.counts == two.counts
    assert sorted(p.name for p in two.folder.iterdir()) == sorted(
        p.name for p in one.folder.iterdir()
    )


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batches_and_pieces_leave_no_trace(
    words: WordPiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = write(tmp_path / "a.txt", "w1 w2.\nw3 w4? W5\n\nw6\n\nw7\nw8\nw9.\n")
    monkeypatch.setattr(corpus, "_BLOCK", 16)  # characters of a document handed on at a time
    monkeypatch.setattr(encoding, "_BATCH_BYTES", size)
    assert content(open_store([path], words, PLAIN, tmp_path / "cache"))[:3] == direct(
        path.read_text(), words
    )


def test_files_start_documents_of_their_own(words: WordPiece, cache: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / name, "w1\nw2\n") for name in ("a.txt", "b.txt")]
    opened = open_store(files, words, PLAIN, cache)
    assert opened.document_starts.tolist() == [0, 2, 4]
    assert opened.counts.files == 2
    joined = open_store(files, words, ReaderOptions(document_per_file=True), cache)
    assert joined.document_starts.tolist() == [0, 2, 4]


def test_starts_bound_each_sentence_of_each_document(
    words: WordPiece, cache: Path, tmp_path: Path
) -> None:
    opened = open_store([write(tmp_path / "a.txt", "w0 w1\nw2\n\nw3\n")], words, PLAIN, cache)
    assert opened.sentence_starts.tolist() == [0, 2, 3, 4]
    assert opened.document_starts.tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (LONGEST_SENTENCE, [256]),
        (LONGEST_SENTENCE + 1, [256, 1]),
        (2 * LONGEST_SENTENCE, [256, 256]),
        (600, [256, 256, 88]),
    ],
)
def test_long_sentences_are_cut_and_lose_no_token(
    words: WordPiece, cache: Path, tmp_path: Path, length: int, expected: list[int]
) -> None:
    line = [i % 50 for i in range(length)]
    text = "w1\n" + " ".join(f"w{i}" for i in line) + "\nw2\n"
    opened = open_store([write(tmp_path / "a.txt", text)], words, PLAIN, cache)
    assert np.diff(opened.sentence_starts).tolist() == [1, *expected, 1]
    assert (opened.tokens[1:-1] - 5).tolist() == line
    assert opened.document_starts.tolist() == [0, 2 + len(expected)]
    assert opened.counts.cut_sentences == (length > LONGEST_SENTENCE)


def test_sentences_of_any_length_are_cut_within_their_pieces(words: WordPiece) -> None:
    # U+200B is a sentence to the reader and nothing to the tokenizer.
    pieces = [[0], [256, 0, 0, 257], [], [0, 1, 512, 600], [0, 0], [255, 0]]
    texts = [[" ".join(["w1"] * n) or "\u200b" for n in piece] for piece in pieces]
    given = [Piece(lines, number != 2) for number, lines in enumerate(texts)]
    encoded = encoding._encode(words, PLAIN, given)
    assert encoded.lengths.tolist() == [256, 256, 1, 1, 256, 256, 256, 256, 88, 255]
    assert encoded.sentences == [0, 3, 0, 6, 0, 1]
    assert encoded.starts_document == [True, True, False, True, True, True]
    assert (encoded.cut, encoded.nul, len(encoded.tokens)) == (3, 0, sum(encoded.lengths))


def test_token_counts_are_those_of_the_tokens(letters: WordPiece, cache: Path) -> None:
    opened = open_store([WIKI], letters, PLAIN, cache)
    expected = np.bincount(opened.tokens, minlength=letters.vocab_size)
    assert opened.token_counts.tolist() == expected.tolist()
    assert len(opened.token_counts) == letters.vocab_size


def test_counts_say_what_was_found(words: WordPiece, cache: Path, tmp_path: Path) -> None:
    texts = ["w1\nw2", "", "w3", "   ", "w4\0 w\0 5\nunknown here w6", "w7", "\0"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    opened = open_store([write(tmp_path / "a.jsonl", rows)], words, PLAIN, cache)
    counts = opened.counts
    assert (counts.files, counts.documents, counts.sentences) == (1, 4, 6)
    assert counts.empty_documents == 3
    assert counts.single_sentence_documents == 2
    assert counts.nul_characters == 3
    assert counts.unknown_tokens == 4  # "w", "5", "unknown", "here"
    assert counts.tokens == len(opened.tokens) == 10
    assert "4 documents, 6 sentences, 10 tokens" in str(counts)
    assert "3 empty documents left out" in str(counts)
    assert "2 documents of one sentence" in str(counts)
    assert "3 NUL characters dropped" in str(counts)
    assert "40.00% unknown" in str(counts)


def test_counts_without_blemishes_are_one_plain_line(
    words: WordPiece, cache: Path, tmp_path: Path
) -> None:
    opened = open_store([write(tmp_path / "a.txt", "w1\nw2\n")], words, PLAIN, cache)
    assert str(opened.counts) == "1 file(s), 1 documents, 2 sentences, 2 tokens"


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_largest_id_fits_the_stored_type(
    tmp_path: Path, size: int, dtype: type[np.generic]
) -> None:
    tokenizer = tokenizer_of(tmp_path / "t", [f"w{i}" for i in range(size - 5)])
    path = write(tmp_path / "a.txt", f"w0 w{size - 6}")
    opened = open_store([path], tokenizer, PLAIN, tmp_path / "cache")
    assert opened.tokens.dtype == dtype
    assert opened.tokens.tolist() == [5, size - 1]


# --- cache -------------------------------------------------------------------------------------


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_second_open_reads_what_the_first_wrote(
    words: WordPiece,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "a.txt", "w1\nw2\n")
    first = open_store([path], words, PLAIN, cache)
    before = states(first.folder)
    assert f"written to {first.folder}" in capsys.readouterr().err
    monkeypatch.setattr(corpus, "read_pieces", None)  # nobody may read the text again
    second = open_store([path], words, PLAIN, cache)
    assert f"read from {first.folder}" in capsys.readouterr().err
    assert second.folder == first.folder
    assert states(second.folder) == before
    assert content(second) == content(first)
    assert second.counts == first.counts
    assert second.data_fingerprint == first.data_fingerprint == data_fingerprint([path], PLAIN)


def test_the_same_bytes_as_wikitext_are_other_text(tmp_path: Path) -> None:
    plain, wikitext = (write(tmp_path / name, " = w1 = \n") for name in ("a.txt", "a.tokens"))
    assert data_fingerprint([plain], PLAIN) != data_fingerprint([wikitext], PLAIN)


def test_changed_content_of_the_same_size_and_time_gives_another_store(
    words: WordPiece, cache: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.txt", "w1\nw2\n")
    stat = path.stat()
    first = open_store([path], words, PLAIN, cache)
    write(path, "w1\nw3\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = open_store([path], words, PLAIN, cache)
    assert second.folder != first.folder
    assert second.tokens.tolist() == [6, 8]
    assert second.data_fingerprint != first.data_fingerprint


@pytest.mark.parametrize(
    "options",
    [
        ReaderOptions(one_sentence_per_line=True),
        ReaderOptions(document_per_file=True),
        ReaderOptions(text_field="body"),
        ReaderOptions(encoding_errors="replace"),
    ],
)
def test_other_options_give_another_store(
    words: WordPiece, cache: Path, tmp_path: Path, options: ReaderOptions
) -> None:
    path = write(tmp_path / "a.txt", "w1. w2\n\nw3\n")
    first = open_store([path], words, PLAIN, cache)
    second = open_store([path], words, options, cache)
    assert second.folder != first.folder
    assert second.data_fingerprint != first.data_fingerprint


def test_another_tokenizer_gives_another_store(
    words: WordPiece, letters: WordPiece, cache: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.txt", "w1\nw2\n")
    first, second = (open_store([path], t, PLAIN, cache) for t in (words, letters))
    assert first.folder != second.folder
    assert first.data_fingerprint == second.data_fingerprint
    assert first.tokens.tolist() != second.tokens.tolist()


def test_order_of_the_files_counts(words: WordPiece, cache: Path, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "w1\n"), write(tmp_path / "b.txt", "w2\n")
    assert open_store([a, b], words, PLAIN, cache).tokens.tolist() == [6, 7]
    assert open_store([b, a], words, PLAIN, cache).tokens.tolist() == [7, 6]


def test_data_fingerprint_does_not_depend_on_where_files_lie(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    here, there = tmp_path / "a.txt", tmp_path / "sub" / "b.txt"
    assert data_fingerprint([write(here, "w1")], PLAIN) == data_fingerprint(
        [write(there, "w1")], PLAIN
    )


def test_digests_of_a_large_corpus_are_kept_and_those_of_a_small_one_are_not(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / f"{i}.txt", f"w{i}\n") for i in range(4)]
    small = data_fingerprint(files, PLAIN, cache)
    assert not cache.exists()
    monkeypatch.setattr(cache_module, "_KEPT_FROM", 12)
    assert data_fingerprint(files, PLAIN, cache) == small
    assert [p.name.split("-")[0] for p in cache.iterdir()] == ["digests"]
    cache_module._digest.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "content_digest", None)  # nobody may read the text again
        assert data_fingerprint(files, PLAIN, cache) == small
    write(files[2], "w9\n")
    assert data_fingerprint(files, PLAIN, cache) != small


@pytest.mark.parametrize("error", [InputError, OSError, KeyboardInterrupt])
def test_build_that_fails_midway_leaves_nothing(
    words: WordPiece,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def broken(path: Path, options: ReaderOptions) -> Iterator[Piece]:
        yield Piece(["w1", "w2"], True)
        raise error("midway")

    path = write(tmp_path / "a.txt", "w1\nw2\n")
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 1)  # the first piece is written before the error
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "read_pieces", broken)
        with pytest.raises(error, match="midway"):
            open_store([path], words, PLAIN, cache)
    assert list(cache.iterdir()) == []
    assert open_store([path], words, PLAIN, cache).tokens.tolist() == [6, 7]


def test_folder_without_its_last_file_is_built_anew(
    words: WordPiece, cache: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.txt", "w1\nw2\n")
    folder = open_store([path], words, PLAIN, cache).folder
    (folder / "meta.json").unlink()
    write(folder / "tokens.bin", "rubbish")
    assert open_store([path], words, PLAIN, cache).tokens.tolist() == [6, 7]
    assert [p.name for p in cache.iterdir()] == [folder.name]


_CUT = r"has [\d,]+ bytes, was written with"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((f"{name}.bin", rf"{name}\.bin {_CUT}") for name in ("tokens", "sentences", "documents")),
        *((name, "meta.json or counts.npy does not read") for name in ("counts.npy", "meta.json")),
    ],
)
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_shortened_store_is_refused_and_built_anew(
    words: WordPiece,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    told: str,
    is_gone: bool,
) -> None:
    """As a power cut leaves it; half of the tokens would pass for a smaller text."""
    path = write(tmp_path / "a.txt", "w1 w2.\nw3.\n\nw4.\n")
    whole = open_store([path], words, PLAIN, cache)
    expected, file = content(whole), whole.folder / name
    if is_gone:
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match=told):
        TokenStore(whole.folder)
    capsys.readouterr()
    assert content(open_store([path], words, PLAIN, cache)) == expected
    lines = [line for line in capsys.readouterr().err.splitlines() if re.search(told, line)]
    assert len(lines) == (name != "meta.json" or not is_gone)  # which is written last of all
    assert [p.name for p in cache.iterdir()] == [whole.folder.name]


def test_a_store_is_on_the_disk_before_it_has_its_name(
    words: WordPiece, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was only in the system's memory is what a power cut shortens."""
    synced: dict[int, int] = {}  # inode -> size
    fsync, rename = os.fsync, Path.rename

    def noting(handle: int) -> None:
        fsync(handle)
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def checked(source: Path, target: Path) -> Path:
        for path in source.iterdir():
            assert synced.get(path.stat().st_ino) == path.stat().st_size, path.name
        synced.clear()
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "rename", checked)
    open_store([write(tmp_path / "a.txt", "w1 w2.\n")], words, PLAIN, cache)
    assert cache.stat().st_ino in synced


def test_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_module.default_cache_dir() == Path("/somewhere/minibert")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/people/me")
    assert cache_module.default_cache_dir() == Path("/people/me/.cache/minibert")


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\ufeff", "\u200b\n\n\u200b", "\0\0"])
def test_files_without_text_are_refused_by_name(
    words: WordPiece, cache: Path, tmp_path: Path, text: str
) -> None:
    path = write(tmp_path / "a.txt", text)
    with pytest.raises(InputError, match=r"a\.txt"):
        open_store([path], words, PLAIN, cache)
    assert list(cache.iterdir()) == []


def test_half_a_surrogate_in_json_stops_no_build(
    words: WordPiece, cache: Path, tmp_path: Path
) -> None:
    # Scraped JSON holds escapes like "\ud83d" whose other half was cut off.
    path = write(tmp_path / "a.jsonl", '{"text": "w1 \\ud83d w2"}\n{"text": "w3"}\n')
    opened = open_store([path], words, PLAIN, cache)
    assert opened.tokens.tolist()[0] == 6
    assert opened.tokens.tolist()[-2:] == [7, 8]
    vocabulary = corpus_vocabulary([path], 15, PLAIN, True, True, cache)
    assert vocabulary.vocab_size == 15


# --- interrupted builds ------------------------------------------------------------------------


def test_what_a_killed_encoding_left_is_removed_and_that_of_a_living_one_stays(
    words: WordPiece, tmp_path: Path
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    cache = tmp_path / "cache"
    dead, living = (cache / f".tokens-abc.{pid}.tmp" for pid in (gone.pid, os.getppid()))
    for folder in (dead, living):
        folder.mkdir(parents=True)
        (folder / "tokens.bin").write_bytes(b"12")
    open_store([write(tmp_path / "a.txt", "w1 w2.\nw3.\n")], words, PLAIN, cache)
    assert not dead.exists()
    assert living.exists()


class Stopped(BaseException):
    """What ends a build, as Ctrl-C does."""


def stopping(*_: object) -> None:
    raise Stopped


def many_documents(folder: Path) -> list[Path]:
    """Three files, the last compressed; documents of one to six sentences."""
    texts = [
        "\n\n".join("w1 w2.\n" * (1 + (k + i) % 6) + f"w{i % 9} w7." for i in range(80))
        for k in range(3)
    ]
    files = [write(folder / f"{k}.txt", text) for k, text in enumerate(texts[:2])]
    with gzip.open(folder / "2.txt.gz", "wt", encoding="utf-8") as handle:
        handle.write(texts[2])
    return [*files, folder / "2.txt.gz"]


@pytest.mark.parametrize("stopped_after", [1, 2, 5, 11, 30, 60])
@pytest.mark.parametrize("recorded_every", [1, 3])
def test_a_stopped_build_goes_on_and_ends_alike(
    words: WordPiece,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stopped_after: int,
    recorded_every: int,
) -> None:
    files = many_documents(tmp_path)
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 60)
    monkeypatch.setattr(store, "_RECORD_BATCHES", recorded_every)
    whole = open_store(files, words, PLAIN, tmp_path / "whole", num_processes=1)
    encode, calls = encoding._encode, 0

    def stopping_once(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stopped_after + 1:
            raise Stopped
        return encode(*arguments)

    monkeypatch.setattr(encoding, "_encode", stopping_once)
    with pytest.raises(Stopped):
        open_store(files, words, PLAIN, tmp_path / "parted", num_processes=1)
    calls = -(10**6)  # does not stop again
    (left,) = [*(tmp_path / "parted").iterdir()] or [None]
    if left is not None:  # as if that process were gone
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        left.rename(left.with_name(left.name.replace(f"{os.getpid()}.tmp", f"{gone.pid}.tmp")))
    capsys.readouterr()
    parted = open_store(files, words, PLAIN, tmp_path / "parted", num_processes=1)
    went_on = "going on after" in capsys.readouterr().err
    assert went_on == (stopped_after >= recorded_every)
    for name in ("tokens.bin", "sentences.bin", "documents.bin", "counts.npy", "meta.json"):
        assert (parted.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert {p.name for p in parted.folder.iterdir()} == {p.name for p in whole.folder.iterdir()}
    assert [p.name for p in (tmp_path / "parted").iterdir()] == [parted.folder.name]


def test_the_half_written_store_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    """Whose process numbers say nothing here."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    theirs = tmp_path / f".tokens-abc.elsewhere-{gone.pid}.tmp"
    ours = tmp_path / f".tokens-abc.{store._host()}{gone.pid}.tmp"
    for folder in (theirs, ours):
        folder.mkdir()
    store._sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [theirs.name]
    os.utime(theirs, (0, 0))
    store._sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_containers_of_one_name_write_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has processes of its own numbers, so that both may be 1."""
    names = []
    monkeypatch.setattr(store, "_MACHINE_ID", write(tmp_path / "machine-id", "0123456789ab\n"))
    for space in (11, 12):
        with monkeypatch.context() as patch:
            patch.setattr(store.platform, "node", lambda: "host.local")
            patch.setattr(os, "stat", lambda path, space=space: SimpleNamespace(st_ino=space))
            names.append(store._host())
    assert names == ["host-11-01234567-", "host-12-01234567-"]
    theirs = tmp_path / f".tokens-abc.{names[0]}{os.getpid()}.tmp"
    theirs.mkdir()
    assert not store._is_orphan(theirs)  # a number of there says nothing here, be it one's own
    os.utime(theirs, (0, 0))
    assert store._is_orphan(theirs)


def test_machines_of_one_name_write_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that both have, and with the first process space, which is one number on all."""
    names = set()
    for machine in ("aaaa", "bbbb"):
        monkeypatch.setattr(store, "_MACHINE_ID", write(tmp_path / machine, f"{machine}\n"))
        names.add(store._host())
    monkeypatch.setattr(store, "_MACHINE_ID", tmp_path / "nowhere")
    assert len({*names, store._host()}) == 3


def half_written(
    files: list[Path], tokenizer: WordPiece, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What a build leaves that is stopped as it would write its last array."""
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 60)
    monkeypatch.setattr(store, "_RECORD_BATCHES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", stopping)
        with pytest.raises(Stopped):
            open_store(files, tokenizer, PLAIN, cache, num_processes=1)
    (left,) = cache.iterdir()
    return left


@pytest.mark.parametrize("owner", ["elsewhere-1", "elsewhere-{alive}", "{here}{alive}", "{alive}"])
@pytest.mark.parametrize("silent", [False, True])
def test_a_silent_writer_is_taken_for_dead_wherever_it_was(
    words: WordPiece,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: str,
    silent: bool,
) -> None:
    """A job may go on elsewhere, and a number of a process may be another's by then."""
    files, cache = many_documents(tmp_path), tmp_path / "cache"
    left = half_written(files, words, cache, monkeypatch)
    owner = owner.format(here=store._host(), alive=os.getppid())
    left = left.rename(cache / f".{left.name.split('.')[1]}.{owner}.tmp")
    touched = time.time() - (11 if silent else 9) * 60
    os.utime(left, (touched, touched))
    capsys.readouterr()
    open_store(files, words, PLAIN, cache, num_processes=1)
    assert ("going on after" in capsys.readouterr().err) == silent
    assert left.exists() != silent


def test_a_writer_touches_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BEAT_SECONDS", 0.01)
    with store._heartbeat(tmp_path):
        os.utime(tmp_path, (0, 0))
        until = time.monotonic() + 30
        while tmp_path.stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)
    os.utime(tmp_path, (0, 0))
    time.sleep(0.05)
    assert tmp_path.stat().st_mtime == 0


def test_a_writer_that_stood_still_writes_nothing_more(
    words: WordPiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another has its files by then."""
    files, cache = many_documents(tmp_path), tmp_path / "cache"
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 60)
    encode, calls = encoding._encode, 0
    taken, sizes = tmp_path / "taken", []

    def taking(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            (left,) = cache.iterdir()
            left.rename(taken)
            sizes.extend((taken / f"{n}.bin").stat().st_size for n in ("tokens", "documents"))
        return encode(*arguments)

    monkeypatch.setattr(encoding, "_encode", taking)
    with pytest.raises(InputError, match="taken over by another process"):
        open_store(files, words, PLAIN, cache, num_processes=1)
    assert calls == 5
    assert sizes == [(taken / f"{n}.bin").stat().st_size for n in ("tokens", "documents")]
    assert list(cache.iterdir()) == []


def test_a_full_disk_keeps_what_is_encoded(
    words: WordPiece,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = many_documents(tmp_path)
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 60)
    monkeypatch.setattr(store, "_RECORD_BATCHES", 1)
    encode, calls = encoding._encode, 0

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(*arguments)

    monkeypatch.setattr(encoding, "_encode", full)
    with pytest.raises(OSError, match="No space left"):
        open_store(files, words, PLAIN, tmp_path / "cache", num_processes=1)
    capsys.readouterr()
    open_store(files, words, PLAIN, tmp_path / "cache", num_processes=1)
    assert "going on after" in capsys.readouterr().err


def test_a_build_that_goes_on_encodes_only_the_rest(
    words: WordPiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = many_documents(tmp_path)
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 60)
    monkeypatch.setattr(store, "_RECORD_BATCHES", 1)
    encode, calls, stop = encoding._encode, 0, 20

    def counting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise Stopped
        return encode(*arguments)

    monkeypatch.setattr(encoding, "_encode", counting)
    with pytest.raises(Stopped):
        open_store(files, words, PLAIN, tmp_path / "parted", num_processes=1)
    stop = -1
    open_store(files, words, PLAIN, tmp_path / "parted", num_processes=1)
    in_parts, calls = calls, 0
    open_store(files, words, PLAIN, tmp_path / "whole", num_processes=1)
    assert in_parts == calls + 1  # the one that was stopped


def test_a_shortened_half_of_a_store_is_not_gone_on_with(
    words: WordPiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing would be filled up with zeros."""
    files = many_documents(tmp_path)
    left = half_written(files, words, tmp_path / "parted", monkeypatch)
    whole = open_store(files, words, PLAIN, tmp_path / "whole", num_processes=1)
    os.truncate(left / "tokens.bin", 100)
    parted = open_store(files, words, PLAIN, tmp_path / "parted", num_processes=1)
    assert content(parted) == content(whole)


def test_a_stopped_build_waits_a_week_and_an_error_leaves_nothing(
    words: WordPiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    cache = tmp_path / "cache"
    fresh, old = (cache / f".tokens-{name}.{gone.pid}.tmp" for name in ("fresh", "old"))
    for folder in (fresh, old):
        folder.mkdir(parents=True)
        (folder / "record.npz").write_bytes(b"")
    week_ago = time.time() - 8 * 24 * 3600
    os.utime(old / "record.npz", (week_ago, week_ago))
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 60)
    monkeypatch.setattr(store, "_RECORD_BATCHES", 1)
    bad = write(tmp_path / "a.txt", "w1 w2.\n\n" * 40)
    with bad.open("ab") as handle:
        handle.write(b"\xff")
    with pytest.raises(InputError):
        open_store([bad], words, PLAIN, cache)
    assert [p.name for p in cache.iterdir()] == [fresh.name]


def test_progress_is_counted_in_bytes_up_to_the_size_of_the_text(
    words: WordPiece, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.txt", "w1 w2.\nw3 é 他.\n\nw4.\n")
    bytes_read = sum(map(corpus.piece_bytes, corpus.read_pieces(path, PLAIN)))
    assert bytes_read == corpus.text_bytes(path) - 1  # but for the blank line


def test_memory_of_a_build_does_not_grow_with_the_text(
    letters: WordPiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this process; workers get a batch at a time. Four times the text, the same peak."""
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 1 << 15)
    monkeypatch.setattr(corpus, "_BLOCK", 1 << 15)
    text = WIKI.read_text(encoding="utf-8").strip() + "\n\n"
    peaks = []
    for times in (1, 4):  # 0.3 and 1.2 MB
        path = write(tmp_path / f"{times}.txt", text * times)
        tracemalloc.start()
        open_store([path], letters, PLAIN, tmp_path / f"cache-{times}", num_processes=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_when_the_workers_die_the_text_is_encoded_in_this_process(
    letters: WordPiece,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = open_store([WIKI], letters, PLAIN, tmp_path / "one", num_processes=1)
    # As where memory runs out: every worker ends as it starts.
    monkeypatch.setattr(encoding, "_start_encoding", die_at_once)
    two = open_store([WIKI], letters, PLAIN, tmp_path / "two", num_processes=2)
    assert "encoding in this one" in capsys.readouterr().err
    assert content(two) == content(one)
    assert list((tmp_path / "two").glob(".*.tmp")) == []


def die_at_once(*_: object) -> None:
    os._exit(3)
