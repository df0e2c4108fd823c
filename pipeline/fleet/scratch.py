"""One life of a shard on object storage as its worker has it: a run directory of this machine, and its mirror there."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import anyio
import anyio.to_thread

from pipeline.errors import PipelineError, RunStateError
from pipeline.events import Notify
from pipeline.fleet.orders import Order
from pipeline.objects import Objects, opened
from pipeline.places import scratch_folder
from pipeline.source import Source
from pipeline.source.shares import placed
from pipeline.store import units
from pipeline.store.afar import shard_name
from pipeline.store.mirror import Mirror, keep, restore


class Scratch:
    """The directory of one life, made from what the lives before it have put."""

    def __init__(self, shard: Objects, mirror: Mirror) -> None:
        self._shard, self._mirror = shard, mirror

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._mirror.directory

    def source(self, source: Source) -> Source:
        """The source of its rows, with them at hand. Raises `RunStateError` where they are gone."""
        place = self.directory / units.INPUT
        if not (place.exists() or self._shard.fetch(units.INPUT, place)):
            raise RunStateError(
                f"{self._shard.url}/{units.INPUT} is missing: the rows of a shard stand in it\n"
                "What was answered is kept.",
                "restore it, or begin anew with `--fresh`, which keeps the answers beside",
            )
        return placed(source, place)

    async def begin(self) -> None:
        """From now on this life stands for its shard: what it began with is put. Raises `RunStateError`."""
        await anyio.to_thread.run_sync(self._mirror.push)

    async def keep(self, heard: Notify, halt: Callable[[PipelineError], None]) -> None:
        """Put what is new, until cancelled; where the storage does not take it nothing more is asked."""
        try:
            await keep(self._mirror, heard)
        except PipelineError as error:
            halt(error)

    async def put(self) -> None:
        """Put the rest: the store is closed. Raises `RunStateError`.

        What cannot be put stays here, for the next life on this machine.
        """
        await anyio.to_thread.run_sync(self._mirror.push, True)

    async def leave(self, is_done: bool) -> None:
        """Put the form of a shard that is done, and leave nothing here. Raises `RunStateError`."""
        await anyio.to_thread.run_sync(self._leave, is_done)

    def _leave(self, is_done: bool) -> None:
        if is_done:
            self._mirror.finish()
        rmtree(self.directory, ignore_errors=True)


def restored(url: str | None, order: Order) -> Scratch | None:
    """What a life works in, with all that was put before it, and what one that was killed here had not put yet.

    None where the run lies in directories that all see. Blocks. Raises `PipelineError`.
    """
    if url is None or order.at is None:
        return None
    name = order.shard.directory.name
    shard = opened(url).below(shard_name(order.shard))
    address = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    return Scratch(shard, restore(shard, scratch_folder() / address / name, order.at))
