"""Who leads a run on object storage: one driver at a time, by one object that is put under conditions.

    lead.json        the session of the run, who holds it, how often that one renewed it, and whether it has ended

Whoever leads renews it every `RENEW_S`, and leads no more once it could not for `HELD_S`, as its own clock counts.
Another takes over what was not renewed for `WATCHED_S` as that one watched it: no two clocks are compared. A session's
number comes once.
"""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import anyio
import anyio.to_thread
import orjson

from pipeline import machine
from pipeline.errors import RESUMABLE, RunStateError
from pipeline.meanwhile import meanwhile
from pipeline.objects import Objects, Tag

Busy = Callable[[str], AbstractContextManager[object]]
"""Says what is being done, while a block goes on that takes a while."""
NAME = "lead.json"
RENEW_S = 10.0
HELD_S = 120.0
"""From when the last renewal began, as long as workers go on without the store (`mirror.AWAY_S`); what is left of
`WATCHED_S` is for a put that is on its way."""
WATCHED_S = 150.0
_LOOK_S = 5.0


class Holder(NamedTuple):
    """A process that leads, or led."""

    host: str
    system: str  # which start of which system counts its processes; empty where nobody knows
    process: int
    id: str  # no other has it

    @property
    def is_dead(self) -> bool:
        """Whether it is known to have ended; of another machine nobody knows."""
        ours = (self.host, self.system) == (socket.gethostname(), _system())
        return ours and not machine.is_running(self.process)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class _Lead(NamedTuple):
    session: int
    holder: Holder
    renewed: int = 0  # times
    has_ended: bool = False

    def written(self) -> bytes:
        return orjson.dumps({**self._asdict(), "holder": self.holder._asdict()}, option=orjson.OPT_APPEND_NEWLINE)


class Lease:
    """The right to lead a run, until `lost` is set."""

    def __init__(self, objects: Objects, lead: _Lead, tag: Tag) -> None:
        self.session = lead.session
        self.lost = anyio.Event()
        self._objects, self._lead, self._tag = objects, lead, tag
        self._unsure: _Lead | None = None
        self._why = ""

    @property
    def refusal(self) -> RunStateError:
        """What a driver that has lost it stops with."""
        error = RunStateError(
            f"this run leads {self._objects.url} no more: {self._why}\nNothing new is sent.",
            "the same command continues, unless another one does already",
        )
        error.exit_code = RESUMABLE
        return error

    async def keep(self) -> None:
        """Renew it until cancelled, or until it is lost."""
        held_at, trouble = anyio.current_time(), ""
        while not self.lost.is_set():
            await anyio.sleep(_LOOK_S if trouble else RENEW_S)
            began_at = anyio.current_time()
            try:
                with anyio.CancelScope(deadline=held_at + HELD_S):
                    await self._put(renewed=self._lead.renewed + 1)
                    held_at, trouble = began_at, ""
            except RunStateError as error:
                trouble = f": {error.message}"
            if anyio.current_time() >= held_at + HELD_S:
                self._lose(f"it could not be renewed for {HELD_S:.0f} s{trouble}")

    async def end(self) -> None:
        """Let another lead at once."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(RENEW_S), suppress(RunStateError):
            while not (self.lost.is_set() or self._lead.has_ended):
                await self._put(has_ended=True)

    async def _put(self, **changes: Any) -> None:
        """What could not be put may be there: the next time it is put again as it was, and known for ours."""
        if self._unsure is None:
            self._unsure = self._lead._replace(**changes)
        tag = await _blocking(self._objects.replace, NAME, self._unsure.written(), self._tag)
        if tag is None:
            self._lose("another one leads it")
        else:
            self._lead, self._tag, self._unsure = self._unsure, tag, None

    def _lose(self, why: str) -> None:
        self._why = self._why or why
        self.lost.set()


@asynccontextmanager
async def leading(objects: Objects, busy: Busy, after: int = 0) -> AsyncIterator[Lease]:
    """Lead the run of these objects in the block, as a session with a number beyond `after`; renewed meanwhile.

    `busy` is told who led it and may do so still. Raises `RunStateError` where another one leads it, and `Away`.
    """
    with ExitStack() as waiting:
        lease = await _taken(objects, lambda told: waiting.enter_context(busy(told)), after)
    try:
        async with meanwhile(lease.keep):
            yield lease
    finally:
        await lease.end()


async def _taken(objects: Objects, heard: Callable[[str], object], after: int) -> Lease:
    me = Holder(socket.gethostname(), _system(), os.getpid(), uuid4().hex)
    watched, since = None, 0.0
    while True:
        found = await _blocking(objects.get_tagged, NAME)
        if found is None:
            await _blocking(objects.create, NAME, _Lead(after, me, has_ended=True).written())
            continue
        before, tag = _read(objects, found[0]), found[1]
        if not (before.has_ended or before.holder.is_dead):
            now = anyio.current_time()
            if watched is None:
                heard(f"{before.holder} led {objects.url}: whether it still does is known within {WATCHED_S:.0f} s")
                watched, since = tag, now
            if tag != watched:
                raise RunStateError(
                    f"{objects.url} is in use by {before.holder}",
                    "wait until it has ended, then run the same command again",
                )
            if now < since + WATCHED_S:
                await anyio.sleep(_LOOK_S)
                continue
        lead = _Lead(max(before.session, after) + 1, me)
        if new := await _blocking(objects.replace, NAME, lead.written(), tag):
            return Lease(objects, lead, new)
        watched = None


def _read(objects: Objects, content: bytes) -> _Lead:
    try:
        told = orjson.loads(content)
        return _Lead(**{**told, "holder": Holder(**told["holder"])})
    except (ValueError, TypeError, LookupError):
        raise RunStateError(
            f"{objects.url}/{NAME} is damaged", "remove that object if no other process leads this run"
        ) from None


def newest_session(objects: Objects) -> tuple[int, bool]:
    """Number of a run's newest session, and whether that has not ended, as far as it says. Raises `RunStateError`."""
    content = objects.get(NAME)
    if content is None:
        return 0, False
    lead = _read(objects, content)
    return lead.session, not lead.has_ended


async def _blocking(function: Callable[..., Any], *arguments: object) -> Any:
    return await anyio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


def _system() -> str:
    """Which start of this machine it is, and which of its containers: numbers of processes are told apart by it."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""
