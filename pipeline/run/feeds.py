"""Where a run's documents come from, and how many of them are open at once."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from random import Random
from typing import Protocol

import anyio
import anyio.to_thread

from pipeline.providers.resumable import PART_BYTES
from pipeline.records import Document, Media
from pipeline.sections import MOST_INLINE_MB

MAX_OPEN_DOCUMENTS = 2560
"""Documents open at once: the most calls in flight (2,000) and some to choose from. 10 kB of memory each, measured."""
MAX_OPEN_CHARACTERS = 64_000_000
"""Text and files of the open documents, so that long ones do not fill the memory: a file is read when it is sent."""
FETCHED_BYTES = 4_000_000
"""What a file is taken to have that is fetched when it is sent."""


class Feed(Protocol):
    """Documents that are opened one after the other, as far as its gate lets them in."""

    gate: "Gate"

    def batches(self) -> AsyncGenerator[list[Document]]:
        """Them, in the order in which they are opened. Raises `PipelineError` for the input."""
        ...


class Table:
    """The rows of a table, each once."""

    def __init__(self, batches: Iterable[Iterable[Document]], after: anyio.Event | None = None) -> None:
        """They are opened `after` that, where it is given."""
        self.gate = Gate()
        self._batches, self._after = batches, after

    async def batches(self) -> AsyncGenerator[list[Document]]:
        """Each batch, mixed."""
        if self._after is not None:
            await self._after.wait()
        async for batch in read(self._batches):
            yield batch


async def read(batches: Iterable[Iterable[Document]]) -> AsyncGenerator[list[Document]]:
    """Each batch, mixed; the table is read in a thread."""
    left = iter(batches)
    while (batch := await anyio.to_thread.run_sync(_next, left)) is not None:
        yield batch


class Gate:
    """Bounds the open documents by number and by the size of their texts; one is always let in."""

    def __init__(self) -> None:
        self._documents = 0
        self._characters = 0
        self._left = anyio.Event()

    @property
    def open(self) -> int:
        """How many are open."""
        return self._documents

    async def enter(self, document: Document) -> None:
        """Wait until there is room for it, and take it."""
        while self._documents and (self._documents >= MAX_OPEN_DOCUMENTS or self._characters >= MAX_OPEN_CHARACTERS):
            await self._someone()
        self._documents += 1
        self._characters += _size(document)

    async def emptied(self) -> None:
        """Wait until none is open."""
        while self._documents:
            await self._someone()

    async def _someone(self) -> None:
        """Wait until one leaves."""
        if self._left.is_set():
            self._left = anyio.Event()
        await self._left.wait()

    def leave(self, document: Document) -> None:
        """Give its room back."""
        self._documents -= 1
        self._characters -= _size(document)
        self._left.set()


def _size(document: Document) -> int:
    return len(document.text or "") + sum(map(_length, document.fields.values())) + sum(map(_held, document.media))


def _length(value: object) -> int:
    """Characters of the texts in a cell, such as those of a conversation."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 0


def _held(file: Media) -> int:
    """What of a file is in memory when it is sent: all, of one that has to be uploaded a part, of one that has to be
    fetched nobody knows."""
    if file.url:
        return FETCHED_BYTES
    return file.size_bytes if file.size_bytes <= MOST_INLINE_MB * 1_000_000 or file.data else PART_BYTES


def _next(batches: Iterator[Iterable[Document]]) -> list[Document] | None:
    return next((mixed(batch) for batch in batches), None)


def mixed(batch: Iterable[Document]) -> list[Document]:
    """The rows of a batch in a random order, always the same: sorted by length they would use one meter at a time.

    Batches that are like each other are for `source.order` to make. 0.2 µs a row, measured.
    """
    documents = list(batch)
    Random(len(documents)).shuffle(documents)
    return documents
