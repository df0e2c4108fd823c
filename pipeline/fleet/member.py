"""A worker as an actor: what is called from afar, one message in and all that it has to tell out. It knows no Ray."""

import os
from typing import TYPE_CHECKING

import anyio

from pipeline import machine
from pipeline.process import MOST_FILES, rare_collections

if TYPE_CHECKING:
    from pipeline.fleet.orders import FromWorker, ToWorker

POLL_S = 2.0
"""Whoever has nothing to tell says so after this time."""


class Member:
    """A worker in a process that holds nothing else; its methods run in one event loop."""

    def __init__(self, cpus: int = 1) -> None:
        os.environ.setdefault("POLARS_MAX_THREADS", str(cpus))  # or each worker of a node takes all of its cores
        from pipeline.fleet.worker import Worker  # imports polars

        machine.allow_files(MOST_FILES)
        self._worker = Worker()

    async def work(self) -> None:
        """Work until it has left."""
        with rare_collections():
            await self._worker.run()

    async def give(self, message: "ToWorker") -> None:
        """What the driver tells it."""
        self._worker.hear(message)

    async def take(self) -> "list[FromWorker] | None":
        """What it has to tell, in its order, once there is something or `POLL_S` have passed; None: nothing comes."""
        told: list[FromWorker] = []
        said = self._worker.said
        with anyio.move_on_after(POLL_S):
            try:
                told.append(await said.receive())
                while said.statistics().current_buffer_used:
                    told.append(said.receive_nowait())
            except anyio.EndOfStream:
                said.close()
                return None
        return told

    async def leave(self) -> None:
        """No order comes any more."""
        self._worker.leave()
