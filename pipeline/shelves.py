"""Where a cache keeps packed answers: in one SQLite file, or on a Redis server."""

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import anyio
import anyio.to_thread

from pipeline import machine
from pipeline.errors import JobError
from pipeline.installed import installing
from pipeline.process import make_private

_DAY_S = 86_400.0


class Unusable(Exception):
    """The place of the cache cannot be read or written; the words are for a person."""


class Entry(NamedTuple):
    """One answer to keep; `made` in epoch seconds, `body` packed."""

    key: bytes
    model: str
    made: float
    body: bytes


class Shelf(Protocol):
    """Where packed answers are. Everything raises `Unusable`, and only that."""

    async def open(self) -> str:
        """Make ready; returns what a person should know, if anything."""
        ...

    async def get(self, key: bytes) -> bytes | None:
        """The packed answer, if there is one that is young enough."""
        ...

    async def write(self, entries: Sequence[Entry]) -> None:
        """Keep these, and make room for them."""
        ...

    async def close(self) -> None:
        """Give everything back."""
        ...


_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, model TEXT NOT NULL, made REAL NOT NULL, used REAL NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_used ON answers (used);
"""


class SqliteShelf:
    """Answers in one SQLite file that several processes may use at once.

    Reading is done where it is asked for: readers of a write-ahead log wait for nobody. Writing is done in a thread, in
    batches. Power loss may cost the newest answers.
    """

    TOUCH_S = 3600.0
    """How exact the last use of an answer is known: noting every hit would make reading as dear as writing."""
    EVICT_ROWS = 64
    EVICT_TO = 0.9
    """Share of the size limit that is left after making room, so that not every write has to."""

    def __init__(self, path: Path, max_age_days: float, max_mb: float) -> None:
        self._path = path
        self._max_age_s = max_age_days * _DAY_S
        self._max_bytes = int(max_mb * 1e6)
        self._touched: list[bytes] = []
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None

    async def open(self) -> str:
        """Open the file, or a new one in place of one that is damaged."""
        return await anyio.to_thread.run_sync(self._open)

    async def get(self, key: bytes) -> bytes | None:
        """The packed answer, if there is one that is young enough."""
        assert self._reader
        now = time.time()
        try:
            row = self._reader.execute(
                "SELECT body, used FROM answers WHERE key = ? AND made > ?", (key, now - self._max_age_s)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        if row is None:
            return None
        if now - row[1] > self.TOUCH_S:
            self._touched.append(key)
        return bytes(row[0])

    async def write(self, entries: Sequence[Entry]) -> None:
        """Keep these, note which were used, and throw out those used longest ago."""
        touched, self._touched = self._touched, []
        if entries or touched:
            await anyio.to_thread.run_sync(self._write, entries, touched)

    async def close(self) -> None:
        """Close the file."""
        for connection in (self._reader, self._writer):
            if connection:
                connection.close()

    def _open(self) -> str:
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            # Not a database at all, a damaged one, or one with another table; any other trouble may pass.
            other_table = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
            if isinstance(error, sqlite3.OperationalError) and not other_table:
                raise self._unusable(error) from None
            return self._start_anew(error)
        except OSError as error:
            raise self._unusable(error) from None
        return ""

    def _connect(self) -> None:
        make_private(self._path.parent)
        machine.create(self._path)
        if not self._path.is_file():
            raise sqlite3.DatabaseError("it is no file")  # a pipe would be waited for
        writer = self._writer = sqlite3.connect(self._path, timeout=30.0, isolation_level=None, check_same_thread=False)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = NORMAL")
        writer.executescript(_SCHEMA)
        writer.execute("DELETE FROM answers WHERE used < ?", (time.time() - self._max_age_s,))  # so made before, too
        self._reader = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
        self._reader.execute("SELECT key FROM answers LIMIT 1").fetchone()

    def _start_anew(self, damage: sqlite3.DatabaseError) -> str:
        aside = self._path.with_name(f"{self._path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        try:
            if self._writer:
                self._writer.close()
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None
        return f"{self._path} is damaged ({damage}); it was set aside as {aside.name}, and a new one is begun"

    def _write(self, entries: Sequence[Entry], touched: Sequence[bytes]) -> None:
        assert self._writer
        now = time.time()
        try:
            with self._writer as db:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(
                    "INSERT OR REPLACE INTO answers (key, model, made, used, body) VALUES (?, ?, ?, ?, ?)",
                    [(entry.key, entry.model, entry.made, now, entry.body) for entry in entries],
                )
                db.executemany("UPDATE answers SET used = ? WHERE key = ?", [(now, key) for key in touched])
                self._make_room(db)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _make_room(self, db: sqlite3.Connection) -> None:
        if _used_bytes(db) <= self._max_bytes:
            return
        oldest = "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers ORDER BY used, rowid LIMIT ?)"
        while _used_bytes(db) > self._max_bytes * self.EVICT_TO and db.execute(oldest, (self.EVICT_ROWS,)).rowcount:
            pass

    def _unusable(self, error: Exception) -> Unusable:
        words = error.strerror if isinstance(error, OSError) else str(error)
        return Unusable(f"{self._path} cannot be used: {words}")


def _used_bytes(db: sqlite3.Connection) -> int:
    """Of the file, without pages that are free to be used again."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


class RedisShelf:
    """Answers on a Redis server, which itself sees to its size (`maxmemory`) and forgets them when they are too old."""

    TIMEOUT_S = 2.0
    CONNECTIONS = 16
    PREFIX = b"prompt-pipeline:"

    def __init__(self, url: str, password: str | None, max_age_days: float) -> None:
        """Raises `JobError` when the extra is not installed; connects to nobody yet."""
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise JobError(
                "[cache] url names a Redis server, but the client for it is not installed",
                f"`{installing('redis')}`, or leave [cache] url out to keep the answers in a file",
            ) from None
        self._keep_s = max(1, round(max_age_days * _DAY_S))
        self._failed: Unusable | None = None
        self._client = Redis.from_url(
            url,
            password=password,
            socket_timeout=self.TIMEOUT_S,
            socket_connect_timeout=self.TIMEOUT_S,
            max_connections=self.CONNECTIONS,
            retry=Retry(NoBackoff(), 1),  # a connection that lay idle may have been closed
        )

    async def open(self) -> str:
        """See whether the server is there."""
        self._lanes = anyio.CapacityLimiter(self.CONNECTIONS - 1)  # one more is for `write`
        async with self._lanes:
            await self._ask(self._client.ping)
        return ""

    async def get(self, key: bytes) -> bytes | None:
        """The packed answer, if the server has it."""
        async with self._lanes:
            found = await self._ask(lambda: self._client.get(self.PREFIX + key))
        return found if isinstance(found, bytes) else None

    async def write(self, entries: Sequence[Entry]) -> None:
        """Send all in one go."""
        if entries:
            pipe = self._client.pipeline(transaction=False)
            for entry in entries:
                pipe.set(self.PREFIX + entry.key, entry.body, ex=self._keep_s)
            await self._ask(pipe.execute)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, command: Callable[[], Awaitable[object]]) -> object:
        """Ask the server; after its first failure nobody waits for it again."""
        from redis.exceptions import RedisError

        if self._failed is None:
            try:
                return await command()
            except (RedisError, OSError) as error:
                self._failed = Unusable(f"the Redis server cannot be used: {error}")
        raise self._failed
