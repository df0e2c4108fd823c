"""One life of a shard on object storage as its worker has it: a run directory of this machine, and its mirror there."""

import hashlib
from collections.abc import Callable
from functools import partial
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
from pipeline.source.shares import other_rows, placed
from pipeline.store import units
from pipeline.store.afar import shard_name
from pipeline.store.mirror import Mirror, keep, new_claim, patiently, restore


class Scratch:
    """The directory of one life, made from what the lives before it have put."""

    def __init__(self, shard: Objects, mirror: Mirror) -> None:
        self._shard, self._mirror = shard, mirror

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._mirror.directory

    def source(self, source: Source) -> Source:
        """The source of its rows, with them at hand. Raises `RunStateError` where they are gone, or are others."""
        place = self.directory / units.INPUT
        if not (place.exists() or self._shard.fetch(units.INPUT, place)):
            raise RunStateError(
                f"{self._shard.url}/{units.INPUT} is missing: the rows of a shard stand in it\n"
                "What was answered is kept.",
                "restore it, or begin anew with `--fresh`, which keeps the answers beside",
            )
        try:
            return placed(source, place)
        except RunStateError:
            place.unlink()  # what lies there may be restored
            raise other_rows(f"{self._shard.url}/{units.INPUT}") from None

    async def begin(self, heard: Notify, waits: Callable[[], bool]) -> None:
        """From now on this life stands for its shard: what it began with is put. Raises `RunStateError`."""
        await patiently(self._mirror.push, heard, waits)

    async def keep(self, heard: Notify, halt: Callable[[PipelineError], None]) -> None:
        """Put what is new, until cancelled; where the storage does not take it nothing more is asked."""
        try:
            await keep(self._mirror, heard)
        except PipelineError as error:
            halt(error)

    async def put(self, heard: Notify, waits: Callable[[], bool]) -> None:
        """Put the rest: the store is closed. Raises `RunStateError`.

        What cannot be put stays here, for the next life on this machine.
        """
        await patiently(partial(self._mirror.push, True), heard, waits)

    async def leave(self, is_done: bool, heard: Notify, waits: Callable[[], bool]) -> None:
        """Put the form of a shard that is done, and leave nothing here. Raises `RunStateError`."""
        if is_done:
            await patiently(self._mirror.finish, heard, waits)
        await anyio.to_thread.run_sync(partial(rmtree, self.directory, ignore_errors=True))


async def restored(url: str | None, order: Order, heard: Notify, waits: Callable[[], bool]) -> Scratch | None:
    """What a life works in, with all that was put before it, and what one that was killed here had not put yet.

    None where the run lies in directories that all see. A storage that is away is waited for, here and in `Scratch`,
    as long as it `waits`. Raises `PipelineError`.
    """
    if url is None or order.at is None:
        return None
    name = order.shard.directory.name
    shard = opened(url).below(shard_name(order.shard))
    address = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    place = scratch_folder() / address / name
    return Scratch(shard, await patiently(partial(restore, shard, place, order.at, new_claim()), heard, waits))
