"""Examples built ahead by other processes are those that the stream builds by itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples import builder_of, write_corpus

from minibert import documents, example_stream
from minibert.ahead import BuildersAhead
from minibert.corpus import ReaderOptions
from minibert.documents import split_documents
from minibert.example_stream import BlockPlace, ExampleStream
from minibert.examples import Example, ExampleBuilder, ExampleOptions
from minibert.store import open_store
from minibert.vocabulary import corpus_vocabulary


@pytest.fixture
def builder(tmp_path: Path, cache: Path) -> ExampleBuilder:
    """Of 57 documents in one block."""
    files = [write_corpus(tmp_path / "text.txt", documents=60)]
    tokenizer = corpus_vocabulary(files, 200, ReaderOptions(), True, True, cache, exact=False)
    store = open_store(files, tokenizer, ReaderOptions(), cache)
    training, _ = split_documents(store, "nsp")
    return ExampleBuilder(store, tokenizer, training, ExampleOptions(max_seq_length=24))


def equal(ours: list[Example], theirs: list[Example]) -> bool:
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return all(np.array_equal(a, b) for a, b in pairs)


def test_the_stream_is_the_same_also_after_seeking(builder: ExampleBuilder) -> None:
    alone = ExampleStream(builder, seed=3)
    ahead = BuildersAhead(builder, seed=3, num_processes=2)
    try:
        stream = ExampleStream(builder, 3, build=ahead)
        while alone.epoch < 3:
            assert equal(stream.take(100), alone.take(100))
            assert stream.state() == alone.state()
            assert stream.epochs_done == alone.epochs_done
        position, wanted = stream.state(), stream.take(40)
        stream.take(100)
        stream.seek(position)
        assert equal(stream.take(40), wanted)
    finally:
        ahead.close()


def test_parts_of_a_run_are_built_of_its_own_training_documents(tmp_path: Path) -> None:
    """Of few documents one more is held out with pairs than without."""
    own = builder_of(tmp_path, 20, 24)
    options = replace(own.options, nsp="none")  # as before the last part of --nsp-share
    part = ExampleBuilder(own.store, own.tokenizer, own.documents, options)
    ahead = BuildersAhead(own, seed=3, num_processes=1)
    try:
        found = ExampleStream(part, 3, build=ahead).take(100)
    finally:
        ahead.close()
    assert equal(found, ExampleStream(part, 3).take(100))


def test_without_its_processes_the_run_builds_by_itself(
    builder: ExampleBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ExampleStream(builder, seed=3)
    ahead = BuildersAhead(builder, seed=3, num_processes=2)
    try:
        stream = ExampleStream(builder, 3, build=ahead)
        assert equal(stream.take(10), alone.take(10))
        for process in ahead._workers._processes:
            process.kill()
            process.join()
        while alone.epoch < 6:  # further than what they had built ahead
            assert equal(stream.take(100), alone.take(100))
    finally:
        ahead.close()
    assert capsys.readouterr().err.count("building in this one") == 1


def test_what_follows_a_place_is_where_the_stream_goes(
    builder: ExampleBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_PART_TOKENS", 16)  # every document has several parts
    monkeypatch.setattr(example_stream, "_BLOCK_DOCUMENTS", 6)
    visited = []

    def build(self: ExampleStream, place: BlockPlace) -> list[Example]:
        visited.append(place)
        return self.built(place)

    stream = ExampleStream(builder, 1, build=build)
    while stream.epoch < 2:
        stream.take(8)
    assert any(place.part for place in visited)
    followers = [stream.following(place) for place in visited[:-1]]
    assert followers == visited[1:]


# What a user may write: no guard of `__main__`, so that a spawned process would begin it anew.
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path

from minibert.ahead import BuildersAhead
from minibert.corpus import ReaderOptions
from minibert.documents import split_documents
from minibert.example_stream import ExampleStream
from minibert.examples import ExampleBuilder, ExampleOptions
from minibert.store import open_store
from minibert.vocabulary import corpus_vocabulary

print("begun", flush=True)
files, cache, options = [Path(sys.argv[1])], Path(sys.argv[2]), ReaderOptions()
tokenizer = corpus_vocabulary(files, 200, options, True, True, cache, exact=False)
store = open_store(files, tokenizer, options, cache, num_processes=2)
training, _ = split_documents(store, "nsp")
builder = ExampleBuilder(store, tokenizer, training, ExampleOptions(max_seq_length=24))
ahead = BuildersAhead(builder, seed=3, num_processes=1)
assert len(ExampleStream(builder, 3, build=ahead).take(40)) == 40
ahead.close()
print("ended", flush=True)
"""


def test_workers_do_not_begin_the_program_anew(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    text = write_corpus(tmp_path / "text.txt", documents=60)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", text, tmp_path / "cache"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "begun\nended\n"), done.stderr
    assert "worker processes ended" not in done.stderr
