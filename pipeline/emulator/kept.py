"""Bytes that are kept on disk as long as anybody holds them: batches in, results out, uploads that go on."""

import weakref
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, cast

_IN_MEMORY = 2**16
BLOCK = 2**20


class Kept:
    """A file without a name, read from any place by any number of readers; a small one stays in memory."""

    def __init__(self) -> None:
        self.file = cast("IO[bytes]", SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115 - closed with this object
        self.size = 0
        weakref.finalize(self, self.file.close)

    def append(self, data: bytes) -> None:
        """Put bytes behind the others."""
        self.file.seek(self.size)
        self.size += self.file.write(data)

    def cut(self, size: int) -> None:
        """Keep the first bytes only."""
        self.file.seek(size)
        self.file.truncate()
        self.size = size

    def part(self, start: int, stop: int) -> bytes:
        """The bytes between two places."""
        self.file.seek(start)
        return self.file.read(stop - start)

    def blocks(self, stop: int | None = None) -> Iterator[bytes]:
        """The first `stop` bytes, a block at a time."""
        stop = self.size if stop is None else stop
        for start in range(0, stop, BLOCK):
            yield self.part(start, min(start + BLOCK, stop))

    def lines(self) -> Iterator[bytes]:
        """Its lines, without those that are blank."""
        rest = b""
        for block in self.blocks():
            *whole, rest = (rest + block).split(b"\n")
            yield from (line for line in whole if line.strip())
        if rest.strip():
            yield rest
