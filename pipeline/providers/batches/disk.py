"""Results onto the disk: what a service hands out as files, or within its answer, becomes one file of whole lines."""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import anyio
import anyio.to_thread
import orjson

from pipeline import machine
from pipeline.providers.batches.base import MOST_RESULTS_BYTES
from pipeline.providers.resumable import PASSING
from pipeline.providers.transport import Lost, Response
from pipeline.records import Failure

WAITS_S = (2.0, 4.0, 8.0, 16.0)
"""Before a file of results is fetched again: five times in all."""

Source = Callable[[Callable[[bytes], object]], Awaitable[Response | Lost]]
"""Fetches one file of results, and has each of its pieces written."""


async def fetched(
    path: Path, sources: Sequence[Source], inline: Sequence[bytes], meaning: Callable[[Response | Lost], Failure]
) -> Failure | None:
    """Write all lines of the sources, and those that came `inline`, to `path`, which is there once it is whole.

    Raises `OSError` where the disk refuses it.
    """
    try:
        with _Hidden(path) as file:
            for source in sources:
                if failure := await _whole(file, source, meaning):
                    return failure
            file.write(b"".join(inline))
            await anyio.to_thread.run_sync(file.put_in_place)
    except _Unwritten as error:
        raise error.why from None
    except _Endless:
        most = f"{MOST_RESULTS_BYTES / 2**30:.0f} GiB"
        return Failure("reject", "too_long", f"its results are larger than {most}, which no answers to a batch are")
    return None


async def _whole(file: "_Hidden", source: Source, meaning: Callable[[Response | Lost], Failure]) -> Failure | None:
    """One file of results, fetched again where it is cut short or its service is busy."""
    start = file.size
    waits = iter(WAITS_S)
    while True:
        answer = await source(file.write)
        is_there = isinstance(answer, Response) and answer.status == 200
        if isinstance(answer, Response) and is_there and not answer.lost and file.ends_a_line(start):
            return None
        file.back_to(start)
        wait_s = next(waits, None)
        if wait_s is None or (isinstance(answer, Response) and not is_there and answer.status not in PASSING):
            if isinstance(answer, Response) and is_there:
                return Failure("transient", "malformed_reply", "a file of results is cut short each time it is fetched")
            return meaning(answer)
        await anyio.sleep(wait_s)


class _Unwritten(Exception):
    """The disk refuses a piece; an `OSError` while a response is read would be taken for one of the network."""

    def __init__(self, why: OSError) -> None:
        self.why = why


class _Endless(Exception):
    """There is more than results can have."""


class _Hidden:
    """A file that is written under a hidden name, and gone if it is not put into place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hidden = path.with_name(f".{path.name}.part")
        self.size = 0
        self._file: BinaryIO

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._file = os.fdopen(machine.open_file(self._hidden, flags), "w+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()
        self._hidden.unlink(missing_ok=True)

    def write(self, part: bytes) -> None:
        """One more piece; raises `_Unwritten`, and `_Endless` where that is too much."""
        if self.size + len(part) > MOST_RESULTS_BYTES:
            raise _Endless
        try:
            self._file.write(part)
        except OSError as error:
            raise _Unwritten(error) from None
        self.size += len(part)

    def back_to(self, size: int) -> None:
        """Forget what was written since."""
        self._file.seek(size)
        self._file.truncate()
        self.size = size

    def ends_a_line(self, start: int) -> bool:
        """Whether what was written since `start` ends with a whole line; its line feed may be missing and is added."""
        if self.size == start:
            return True
        self._file.seek(self.size - 1)
        if self._file.read(1) == b"\n":
            return True
        try:
            orjson.loads(self._last_line(start))
        except ValueError:
            return False
        self._file.seek(self.size)
        self.write(b"\n")
        return True

    def put_in_place(self) -> None:
        """Have it kept under its own name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._hidden.replace(self._path)

    def _last_line(self, start: int) -> bytes:
        line, at = b"", self.size
        while at > start and b"\n" not in line:
            step = min(65_536, at - start)
            at -= step
            self._file.seek(at)
            line = self._file.read(step) + line
        return line.rpartition(b"\n")[2]
