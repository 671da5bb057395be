"""Examples built ahead by other processes, so that a GPU waits for none.

A GPU trains on some million tokens a second, about as many as one process builds. The examples of
a place in the stream are a pure function of the seed and the place, so others can build what comes
next: the run sees the same examples in the same order as one that builds them by itself.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from minibert.documents import split_documents
from minibert.example_stream import BlockPlace, ExampleStream
from minibert.examples import Example, ExampleBuilder, ExampleOptions, PackedExamples, pack, unpack
from minibert.store import TokenStore
from minibert.tokenizer import WordPiece
from minibert.workers import begin_as_worker, starting_workers

_PLACES_EACH = 2  # built ahead by each process: one in hand, one waiting

_worker_stream_of: Callable[[ExampleOptions], ExampleStream]


def _start_worker(store: Path, tokenizer: WordPiece, seed: int) -> None:
    global _worker_stream_of
    begin_as_worker()
    opened = TokenStore(store)

    @functools.cache
    def stream_of(options: ExampleOptions) -> ExampleStream:
        training, _ = split_documents(opened, options.nsp)
        return ExampleStream(ExampleBuilder(opened, tokenizer, training, options), seed)

    _worker_stream_of = stream_of


def _build_in_worker(options: ExampleOptions, place: BlockPlace) -> PackedExamples:
    return pack(_worker_stream_of(options).built(place))


class BuildersAhead:
    """Processes that build the training examples of a store; `build` of an `ExampleStream`.

    One after the other several streams may use them, such as one of short sequences first.
    """

    def __init__(self, builder: ExampleBuilder, seed: int, num_processes: int) -> None:
        """Starts the processes with the first call.

        Args:
            builder: of the training documents. seed: of the streams.
        """
        self._num_places = _PLACES_EACH * num_processes
        self._waiting: dict[tuple[ExampleOptions, BlockPlace], Future[PackedExamples]] = {}
        self._pool = ProcessPoolExecutor(
            num_processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(builder.store.folder, builder.tokenizer, seed),
        )

    def __call__(self, stream: ExampleStream, place: BlockPlace) -> list[Example]:
        """The examples of a place; what follows it is begun."""
        options = stream.builder.options
        places = [place]
        while len(places) < self._num_places:
            places.append(stream.following(places[-1]))
        wanted = [(options, following) for following in places]
        for unwanted in self._waiting.keys() - set(wanted):  # the stream has sought elsewhere
            self._waiting.pop(unwanted).cancel()
        for following in wanted:
            if following not in self._waiting:
                with starting_workers():
                    self._waiting[following] = self._pool.submit(_build_in_worker, *following)
        return unpack(self._waiting.pop(wanted[0]).result())

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
