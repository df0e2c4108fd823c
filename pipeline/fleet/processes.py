"""Workers as processes of this machine: messages are pickled, and go through their standard streams."""

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import BinaryIO

import anyio
import anyio.abc
import anyio.to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from pipeline.fleet.driver import Gone
from pipeline.fleet.orders import FromWorker, ToWorker

_LENGTH = struct.Struct(">I")
_LEAVES_S = 5.0
"""What a worker is given to leave once its pipe is closed; then it is killed."""


class Process:
    """One worker that runs here."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin and process.stdout
        self._process, self._to = process, process.stdin
        self._from = BufferedByteReceiveStream(process.stdout)

    async def send(self, message: ToWorker) -> None:
        """Tell it something. Raises `Gone`."""
        try:
            await self._to.send(framed(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            raise self._gone() from None

    async def receive(self) -> FromWorker:
        """The next that it tells. Raises `Gone`."""
        try:
            (length,) = _LENGTH.unpack(await self._from.receive_exactly(_LENGTH.size))
            message: FromWorker = pickle.loads(await self._from.receive_exactly(length))
            return message
        except (anyio.IncompleteRead, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            raise self._gone() from None

    def _gone(self) -> Gone:
        return Gone(f"process {self._process.pid}")

    async def leave(self) -> None:
        """Let it end: it finishes what is in flight. It is killed where it takes too long."""
        with anyio.CancelScope(shield=True):
            with suppress(OSError, anyio.BrokenResourceError):
                await self._to.aclose()
            with anyio.move_on_after(_LEAVES_S):
                await self._process.wait()
                return
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def launch(number: int) -> AsyncIterator[Process]:
    """Start a worker as a process, and have it leave at the end."""
    # A group of its own: Ctrl-C is for the driver, which lets its workers finish what is in flight.
    process = await anyio.open_process(
        [sys.executable, "-m", "pipeline.fleet.serving"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        start_new_session=True,
    )
    worker = Process(process)
    try:
        yield worker
    finally:
        await worker.leave()


def framed(message: object) -> bytes:
    """A message as it goes through a pipe: its length in four bytes, and itself."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def read_frame(pipe: BinaryIO) -> ToWorker | None:
    """The next message of a pipe; None where it ends. Blocks."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    data = pipe.read(*_LENGTH.unpack(head))
    return pickle.loads(data) if len(data) == _LENGTH.unpack(head)[0] else None


def own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for messages alone: what else is printed goes to the errors."""
    told, heard = os.dup(1), os.dup(0)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return os.fdopen(heard, "rb"), os.fdopen(told, "wb", buffering=0)
