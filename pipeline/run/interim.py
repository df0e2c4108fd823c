"""Parts and the output while a run goes on: every few minutes, and when it falls asleep.

A part holds what was finished since the one before. The output is written anew, as it is at the end: rows that are not
finished are `pending` in it.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from pipeline.errors import InputChanged, OutputError, PipelineError
from pipeline.events import OutputTrouble, OutputWritten
from pipeline.process import trim_memory
from pipeline.run.engine import Monitor
from pipeline.run.output import replaced
from pipeline.run.prepare import Session
from pipeline.store.place import Counted, Output
from pipeline.store.run import RunStore

EVERY_S = 300.0
"""Between two parts, and between two outputs, of a run that finishes rows all the while."""
SHARE = 0.02
"""Of a run's time that writing its output takes at most: one that takes a minute is written every 50."""
ROW_S = 10e-6
"""What a row takes of that, as long as none was written: 5 to 9 µs CPU of rows of 1 kB (measured 2026-11)."""
SLEEP_S = 60.0
"""A run that sends nothing for so long writes what it has when that begins."""
ROOM_BYTES = 64 * 2**20
"""That stay free on a disk: what is in flight goes to the journal first."""
_LOOK_S = 1.0


class _Ended(PipelineError):
    """The run has ended meanwhile, and writes its output itself."""


class Interim:
    """Writes what a run has so far. What goes wrong with the output is told, and stops nothing."""

    def __init__(
        self,
        session: Session,
        store: RunStore,
        place: Output | None,
        monitor: Monitor,
        halt: Callable[[PipelineError], None],
        finished: Callable[[], int] | None = None,
    ) -> None:
        """`place` is that of the output, which a pilot has not; `halt` is told of a disk on which no part can be
        written.

        `finished` counts the rows that have an outcome, where they are not in the store: then others seal them.
        """
        self._session, self._store, self._place = session, store, place
        self._monitor, self._halt = monitor, halt
        self._sealed = self._written = 0  # rows of this session that were finished at the last part, and output
        self._ended = False
        self._count = finished or self._in_store
        self._is_behind = place is not None and place.finished != self._count()  # as after a kill
        self._told: set[str] = set()

    def end(self) -> None:
        """Give up what is being written: the run writes its output itself now."""
        self._ended = True

    async def keep(self) -> None:
        """Write until cancelled."""
        took_s = self._session.rows * ROW_S
        part_at = anyio.current_time() + EVERY_S
        output_at = anyio.current_time() + max(EVERY_S, took_s / SHARE)
        while not self._monitor.stopping:
            now, sleeps_s = anyio.current_time(), self._sleeps_s()
            writes = self._is_due() and (now >= output_at or sleeps_s >= max(SLEEP_S, took_s))
            seals = self._monitor.answered > self._sealed and (now >= part_at or sleeps_s >= SLEEP_S or writes)
            if seals and _free(self._store.directory) >= ROOM_BYTES:
                self._sealed, part_at = self._monitor.answered, now + EVERY_S
                try:
                    await self._store.seal()
                except PipelineError as reason:
                    self._halt(reason)
                    return
            if writes:
                self._written = self._sealed
                took_s = await self._write()
                output_at = anyio.current_time() + max(EVERY_S, took_s / SHARE)
            await anyio.sleep(_LOOK_S)

    async def _write(self) -> float:
        """Returns how many seconds it took."""
        began = time.perf_counter()
        try:
            counted = await anyio.to_thread.run_sync(self._replaced)
        except _Ended:
            pass
        except PipelineError as error:
            self._is_behind = True
            self._tell(error)
        else:
            self._is_behind = False
            took_s = round(time.perf_counter() - began, 3)
            self._store.log(OutputWritten(counted.rows, counted.finished, took_s))
        return time.perf_counter() - began

    def _replaced(self) -> Counted:
        assert self._place
        try:
            return replaced(self._session, self._place, self._heed)
        finally:
            trim_memory()  # this thread would keep it, and the run's others take more

    def _heed(self) -> None:
        assert self._place
        if self._ended:
            raise _Ended("the run has ended")
        if self._place.free_bytes() < ROOM_BYTES:
            raise OutputError(
                f"less than {ROOM_BYTES // 2**20} MB are left on the disk where {self._session.output} is written"
            )

    def _tell(self, error: PipelineError) -> None:
        said = error.message.splitlines()[0]
        if isinstance(error, InputChanged) or said in self._told:  # the run says the former itself
            return
        self._told.add(said)
        event = OutputTrouble(f"the output is not written for now, and the run goes on: {said}")
        self._store.log(event)
        self._monitor.notices.append(event)

    def _in_store(self) -> int:
        """Rows that have an outcome, those included that the next run tries again."""
        return self._session.rows - self._store.outcomes.pending(self._session.rows)

    def _is_due(self) -> bool:
        if self._place is None or not (self._is_behind or self._monitor.answered > self._written):
            return False
        return self._place.takes(self._count(), self._session.rows)

    def _sleeps_s(self) -> float:
        until = self._monitor.desk.waits_until if self._monitor.desk else None
        return 0.0 if until is None else until - time.time()


def _free(directory: Path) -> int:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
