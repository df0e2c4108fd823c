"""Whole answers of earlier runs, found again by content: in a SQLite file of the user's, or on a Redis server.

A cache may forget anything at any time and never stops a run: the first thing that goes wrong is told once, and the run
goes on without it. What a run paid for is safe in its own directory, never only here. Of a prompt nothing is stored but
a hash.
"""

import hashlib
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import anyio
import anyio.to_thread

from pipeline.environment import home
from pipeline.errors import JobError
from pipeline.events import CacheTrouble, Notify
from pipeline.job import Job
from pipeline.places import Kind, beside, cache_file
from pipeline.records import Parse, Reply
from pipeline.shelves import Entry, RedisShelf, Shelf, SqliteShelf, Unusable
from pipeline.targets import Target

WRITE_S = 0.5
"""Between writes: a kill loses so much of the cache, and nothing of the run."""
WAITING_BYTES = 64 * 2**20
"""Answers not written yet; what comes on top while the disk or the server is slow is not cached."""

_FORMAT = "1"
_KEY_BYTES = 16


def shelf_of(job: Job, kind: Kind = "real") -> Shelf | None:
    """The place that `[cache]` names, not opened yet; None without that section.

    Raises `JobError` when it is a Redis server and the extra is not installed, or its password is not set.
    """
    section = job.spec.cache
    if section is None:
        return None
    if section.url is None or "://" not in section.url:
        path = _expanded(section.url) if section.url else cache_file()
        return SqliteShelf(beside(path, kind), section.max_age_days, section.max_mb)
    password = None
    if section.password_env is not None and not (password := os.environ.get(section.password_env)):
        raise JobError(
            f"no password for the cache: {section.password_env} is unset\n{job.path}, [cache] password_env",
            f"`export {section.password_env}=…`",
        )
    return RedisShelf(section.url, password, section.max_age_days)


def _expanded(url: str) -> Path:
    return home() / url[2:] if url.startswith("~/") else Path(url).expanduser()


def service_of(target: Target) -> str:
    """Who answers, for the key: a relay may serve something else under the same model name, as an emulator does."""
    return target.base_url.rstrip("/")


def key_of(service: str, fingerprint: str) -> bytes:
    """Where the answer to this content is: everything that can change it, and nothing else."""
    return hashlib.blake2b(f"{_FORMAT}\n{service}\n{fingerprint}".encode(), digest_size=_KEY_BYTES).digest()


def pack(key: bytes, raw: bytes) -> bytes:
    """A response body as it is stored, behind its key; 1 kB takes 15 µs."""
    return key + zlib.compress(raw, 1)


def unpack(key: bytes, packed: bytes) -> bytes | None:
    """The response body; None when it is damaged, or was stored under another key."""
    if packed[:_KEY_BYTES] != key:
        return None
    try:
        return zlib.decompress(packed[_KEY_BYTES:])
    except zlib.error:
        return None


class AnswerCache:
    """The cache of one run, from `async with` to its end; `keep` writes while it is open.

    `parse` reads a stored response body; `heard` is told once of what went wrong, as an event with a message.
    """

    def __init__(
        self,
        shelf: Shelf,
        parse: Parse,
        heard: Notify,
        suffix: str = "",
    ) -> None:
        self._shelf = shelf
        self._suffix = suffix  # of a rehearsal: what an emulator says is nobody else's answer
        self._parse = parse
        self._heard = heard
        self._usable = True
        self._waiting: list[tuple[bytes, str, float, bytes]] = []  # key, model, epoch seconds, body
        self._waiting_bytes = 0
        self._writing = anyio.Lock()

    async def __aenter__(self) -> "AnswerCache":
        with anyio.CancelScope(shield=True):
            try:
                if news := await self._shelf.open():
                    self._heard(CacheTrouble(news))
            except Unusable as error:
                self._give_up(error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.write()
            await self._shelf.close()

    async def get(self, fingerprint: str, target: Target) -> Reply | None:
        """The whole answer that this content got from the target's model in an earlier run, if it is known."""
        if not self._usable:
            return None
        key = self._key(fingerprint, target)
        try:
            packed = await self._shelf.get(key)
        except Unusable as error:
            self._give_up(error)
            return None
        if packed is None or (raw := unpack(key, packed)) is None:
            return None
        reply = self._parse(raw, target.endpoint)
        return reply if reply.status == "ok" else None

    def put(self, fingerprint: str, target: Target, reply: Reply) -> None:
        """Remember a target's reply if it is a whole answer; it is written a little later."""
        if self._usable and reply.status == "ok" and self._waiting_bytes < WAITING_BYTES:
            self._waiting.append((self._key(fingerprint, target), reply.model, time.time(), reply.raw))
            self._waiting_bytes += len(reply.raw)

    def _key(self, fingerprint: str, target: Target) -> bytes:
        return key_of(service_of(target) + self._suffix, fingerprint)

    async def keep(self) -> None:
        """Write what was put, every now and then, until cancelled."""
        while True:
            await anyio.sleep(WRITE_S)
            with anyio.CancelScope(shield=True):
                await self.write()

    async def write(self) -> None:
        """Write what was put so far."""
        async with self._writing:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            if not self._usable:
                return
            entries = await anyio.to_thread.run_sync(_packed, waiting) if waiting else []
            try:
                await self._shelf.write(entries)
            except Unusable as error:
                self._give_up(error)

    def _give_up(self, error: Unusable) -> None:
        if self._usable:
            self._usable = False
            self._heard(CacheTrouble(f"{error}; the run goes on without it"))


def _packed(waiting: Sequence[tuple[bytes, str, float, bytes]]) -> list[Entry]:
    return [Entry(key, model, made, pack(key, raw)) for key, model, made, raw in waiting]
