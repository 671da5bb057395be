"""Examples built ahead by other processes, so that a GPU waits for none.

A GPU trains on some million tokens a second, about as many as one process builds. The examples of
a place in the stream are a pure function of the seed and the place, so others can build what comes
next: the run sees the same examples in the same order as one that builds them by itself.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

from minibert.documents import split_documents
from minibert.example_stream import BlockPlace, ExampleStream
from minibert.examples import Example, ExampleBuilder, ExampleOptions, PackedExamples, pack, unpack
from minibert.store import TokenStore
from minibert.tokenizer import WordPiece
from minibert.workers import Workers

_PLACES_EACH = 2  # built ahead by each process: one in hand, one waiting


def _start_building(
    store: Path, tokenizer: WordPiece, seed: int, nsp: str
) -> Callable[[ExampleOptions, BlockPlace], PackedExamples]:
    """In a worker: what builds the examples of a place."""
    opened = TokenStore(store)
    training, _ = split_documents(opened, nsp)  # the run's own, whatever its parts are built with

    @functools.cache
    def stream_of(options: ExampleOptions) -> ExampleStream:
        return ExampleStream(ExampleBuilder(opened, tokenizer, training, options), seed)

    return lambda options, place: pack(stream_of(options).built(place))


class BuildersAhead:
    """Processes that build the training examples of a store; `build` of an `ExampleStream`.

    One after the other several streams may use them, such as one of short sequences first.
    """

    def __init__(self, builder: ExampleBuilder, seed: int, num_processes: int) -> None:
        """Starts the processes with the first call.

        Args:
            builder: of the training documents, with the run's own options. seed: of the streams.
        """
        self._num_places = _PLACES_EACH * num_processes
        self._waiting: dict[tuple[ExampleOptions, BlockPlace], Future[PackedExamples]] = {}
        given = builder.store.folder, builder.tokenizer, seed, builder.options.nsp
        self._workers = Workers(num_processes, _start_building, *given)
        self._is_broken = False

    def __call__(self, stream: ExampleStream, place: BlockPlace) -> list[Example]:
        """The examples of a place; what follows it is begun.

        Where the processes have ended, by a signal to all of a job or for want of memory, this one
        builds from then on.
        """
        if not self._is_broken:
            try:
                return self._built_ahead(stream, place)
            except BrokenExecutor:
                self._is_broken = True
                said = "builders: the processes that built ahead ended; building in this one"
                print(said, file=sys.stderr)
        return stream.built(place)

    def _built_ahead(self, stream: ExampleStream, place: BlockPlace) -> list[Example]:
        options = stream.builder.options
        places = [place]
        while len(places) < self._num_places:
            places.append(stream.following(places[-1]))
        wanted = [(options, following) for following in places]
        for unwanted in self._waiting.keys() - set(wanted):  # the stream has sought elsewhere
            self._waiting.pop(unwanted).cancel()
        for following in wanted:
            if following not in self._waiting:
                self._waiting[following] = self._workers.submit(*following)
        return unpack(self._waiting.pop(wanted[0]).result())

    def close(self) -> None:
        """Ends the processes."""
        self._workers.close()
