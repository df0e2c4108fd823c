"""A worker: runs shards one after the other, each as a run of its own whose requests the driver permits."""

import os
import socket
from math import inf
from pathlib import Path

import anyio

from pipeline.errors import JobError, as_known, bug_in
from pipeline.fleet.life import Life
from pipeline.fleet.orders import Contract, Counts, Ended, Failed, FromWorker, Order, Ready, ToWorker, versions


class Worker:
    """What a driver tells a worker comes in by `hear`; what it is told goes out by `said`, however that is carried."""

    def __init__(self) -> None:
        self._saying, self.said = anyio.create_memory_object_stream[FromWorker](inf)
        self._ordering, self._orders = anyio.create_memory_object_stream[Order](inf)
        self._contract: Contract | None = None
        self._hired = anyio.Event()
        self._lives: dict[str, Life] = {}

    def hear(self, message: ToWorker) -> None:
        """Take what the driver tells, in its order."""
        if isinstance(message, Contract):
            self._contract = message
            self._hired.set()
        elif isinstance(message, Order):
            self._ordering.send_nowait(message)
        elif (life := self._lives.get(message.life)) and life.remote:
            life.remote.heard(message.given)

    def leave(self) -> None:
        """No order comes any more; a life that still runs then has lost its driver."""
        self._hired.set()
        self._ordering.close()
        for life in self._lives.values():
            life.orphan()

    async def run(self) -> None:
        """Work until there is nothing more to do."""
        with self._saying, self._ordering, self._orders:
            await self._hired.wait()
            if self._contract is None:
                return
            try:
                os.chdir(self._contract.folder)
            except OSError as error:
                if self._contract.url is None:
                    self._say(Failed(_no_folder(self._contract.folder, error)))
                    return
            self._say(Ready(os.getpid(), socket.gethostname(), versions()))
            async with anyio.create_task_group() as lives:
                async for order in self._orders:
                    lives.start_soon(self._live, Life(self._contract, order, self._say))

    async def _live(self, life: Life) -> None:
        """One life: what stops it is told, and stops no other."""
        self._lives[life.name] = life
        try:
            ended = await life.run()
        except Exception as error:
            known = as_known(error)
            ended = Ended(life.name, Counts(), is_whole=False, stopped=known or bug_in(error))
            if known is None:
                self._say(ended)
                raise
        finally:
            del self._lives[life.name]
        self._say(ended)

    def _say(self, message: FromWorker) -> None:
        self._saying.send_nowait(message)


def _no_folder(folder: Path, error: OSError) -> JobError:
    return JobError(
        f"the worker on {socket.gethostname()} cannot work in {folder}, where the run was started: {error.strerror}",
        "start it in a folder that all machines share, by the same path, or give the job a [run] path",
    )
