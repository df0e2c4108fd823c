"""What was sent and learned, shared by every run of a project: a small SQLite file in the user's state directory."""

import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from pipeline.errors import RunStateError

KEEP_S = 130.0
"""Sends older than this can no longer count against any minute."""
LEARNED_FOR_S = 86_400.0
"""A learned limit is believed for a day: tiers and models change."""
GROUP_S, GROUP_OF = 0.01, 16
"""Sends closer together than this share a transaction, so many at most."""
_LOCKED_S = 5.0  # how long another process may keep the file locked

_REQUESTS_ON = "SELECT requests FROM days WHERE endpoint = ? AND day = ?"
_LEARNED = "SELECT value FROM learned WHERE endpoint = ? AND meter = ? AND at > ?"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sends (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL, who TEXT NOT NULL, at REAL NOT NULL, tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS days (
    endpoint TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL, PRIMARY KEY (endpoint, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS learned (
    endpoint TEXT NOT NULL, meter TEXT NOT NULL, value REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (endpoint, meter)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Send:
    """One request as the book has it; `at` in epoch seconds."""

    who: str  # empty: a run that has ended
    at: float
    tokens: int


@dataclass(slots=True, eq=False)
class Entry:
    """One request of ours; `number` is None until it is in the file."""

    at: float  # epoch seconds
    tokens: int
    day: str
    number: int | None = None


class MemoryBook:
    """The book of a run that shares with nobody: it counts the days, and forgets them at the end."""

    def __init__(self) -> None:
        self._days: Counter[str] = Counter()

    def recent(self, now: float) -> list[Send]:
        """None: other runs are not known."""
        return []

    def news(self) -> list[Send]:
        """None, as for `recent`."""
        return []

    def send(self, at: float, tokens: int, day: str) -> Entry:
        """Count one request."""
        self._days[day] += 1
        return Entry(at, tokens, day)

    def settle(self, entry: Entry, tokens: int) -> None:
        """Nobody else asks."""

    def refund(self, entry: Entry) -> None:
        """Take out a request that never counted."""
        self._days[entry.day] -= 1

    def requests_on(self, day: str) -> int:
        """Requests of this run on a quota day (YYYY-MM-DD)."""
        return self._days[day]

    def learn(self, meter: str, value: float, now: float) -> None:
        """Nobody asks later."""

    def learned(self, meter: str, now: float) -> float | None:
        """None: earlier runs are not known."""
        return None


def open_shared(path: Path, schema: str) -> sqlite3.Connection:
    """A small SQLite file that several processes write, for the user's eyes only; raises OSError or sqlite3.Error.

    WAL without fsync: a power cut may lose the last seconds, a crash of the program loses nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(0o600)
    db = sqlite3.connect(path, timeout=_LOCKED_S, isolation_level=None)
    _write_ahead(db)
    db.execute("PRAGMA synchronous = OFF")
    db.executescript(schema)
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to WAL; when two processes do that to a new file at once, SQLite fails one of them without waiting."""
    give_up_at = time.monotonic() + _LOCKED_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier runs left in the book: requests of a day, and limits a minute that they learned."""

    requests: int = 0
    rpm: float | None = None
    tpm: float | None = None


def read_known(path: Path, endpoint: str, day: str, now: float) -> Known:
    """Read the book without making or changing it; `day` is a quota day (YYYY-MM-DD), `now` epoch seconds.

    Raises `RunStateError` for a damaged file.
    """
    if not path.exists():
        return Known()
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            requests = db.execute(_REQUESTS_ON, (endpoint, day)).fetchone()
            learned = (
                db.execute(_LEARNED, (endpoint, meter, now - LEARNED_FOR_S)).fetchone()
                for meter in ("requests", "tokens")
            )
            rpm, tpm = (row and row[0] for row in learned)
    except sqlite3.Error as error:
        raise _unusable(str(path), error) from error
    return Known(requests[0] if requests else 0, rpm, tpm)


class QuotaBook:
    """The sends, day counts and learned limits of one endpoint and model.

    A send is in the file before it leaves, so kill -9 loses none, and other processes see it at once; above 6,000
    requests a minute up to `GROUP_OF` are written together, and as many may be lost. The next run starts without its
    burst, which is larger than that at such a rate, and stays within the limit all the same. The file is in WAL mode
    without fsync: a power cut may lose the last seconds, a crash of the program does not.
    """

    def __init__(self, path: Path, endpoint: str) -> None:
        """`endpoint` names project, service and model, never a key."""
        self._where = str(path)
        self._endpoint = endpoint
        self._who = uuid4().hex
        self._version = -1
        self._seen = 0
        self._pending: list[Entry] = []
        self._written_at = 0.0
        self._settled: list[tuple[int, int]] = []  # tokens and number
        try:
            self._db = open_shared(path, _SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._broken(error) from error

    def __enter__(self) -> "QuotaBook":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was written stays, as sends of nobody: this run shares the quota no longer."""
        self._write()
        self._run("UPDATE sends SET who = '' WHERE who = ?", (self._who,))
        self._db.close()

    def recent(self, now: float) -> list[Send]:
        """The sends of all processes that may still count, oldest first; older ones are forgotten."""
        self._run("DELETE FROM sends WHERE at < ?", (now - KEEP_S,))
        rows = self._rows("SELECT id, who, at, tokens FROM sends WHERE endpoint = ? ORDER BY at", (self._endpoint,))
        self._seen = max((row[0] for row in rows), default=self._seen)
        return [Send(who, min(at, now), tokens) for _, who, at, tokens in rows]

    def news(self) -> list[Send]:
        """What other processes sent since `recent` or the last `news`."""
        if not self._changed():
            return []
        rows = self._rows(
            "SELECT id, who, at, tokens FROM sends WHERE id > ? AND endpoint = ? AND who <> ? ORDER BY id",
            (self._seen, self._endpoint, self._who),
        )
        self._seen = max((row[0] for row in rows), default=self._seen)
        return [Send(who, at, tokens) for _, who, at, tokens in rows]

    def send(self, at: float, tokens: int, day: str) -> Entry:
        """Enter one request before it leaves; `settle` or `refund` it later."""
        entry = Entry(at, tokens, day)
        self._pending.append(entry)
        if len(self._pending) >= GROUP_OF or not 0 <= at - self._written_at < GROUP_S:
            self._write()
            self._written_at = at
        return entry

    def settle(self, entry: Entry, tokens: int) -> None:
        """Put in the tokens that the service counted; written with the next send, or at the end."""
        if entry.number is None:
            entry.tokens = tokens
        elif tokens != entry.tokens:
            self._settled.append((tokens, entry.number))

    def refund(self, entry: Entry) -> None:
        """Take out a request that never counted."""
        if entry.number is None:
            self._pending.remove(entry)
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM sends WHERE id = ?", (entry.number,))
            self._count(entry.day, -1)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def requests_on(self, day: str) -> int:
        """Requests of all processes on a quota day (YYYY-MM-DD)."""
        rows = self._rows(_REQUESTS_ON, (self._endpoint, day))
        return (int(rows[0][0]) if rows else 0) + sum(entry.day == day for entry in self._pending)

    def learn(self, meter: str, value: float, now: float) -> None:
        """Keep a learned limit (per minute) for the next run."""
        self._run(
            "INSERT OR REPLACE INTO learned (endpoint, meter, value, at) VALUES (?, ?, ?, ?)",
            (self._endpoint, meter, value, now),
        )

    def learned(self, meter: str, now: float) -> float | None:
        """The limit (per minute) that an earlier run learned, unless that is too long ago."""
        rows = self._rows(_LEARNED, (self._endpoint, meter, now - LEARNED_FOR_S))
        return float(rows[0][0]) if rows else None

    def _changed(self) -> bool:
        (version,) = self._rows("PRAGMA data_version")[0]  # moves only when another connection has written
        changed, self._version = bool(version != self._version), version
        return changed

    def _write(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("UPDATE sends SET tokens = ? WHERE id = ?", self._settled)
            self._db.executemany(
                "INSERT INTO sends (endpoint, who, at, tokens) VALUES (?, ?, ?, ?)",
                [(self._endpoint, self._who, entry.at, entry.tokens) for entry in self._pending],
            )
            (last,) = self._db.execute("SELECT last_insert_rowid()").fetchone()  # of one transaction they are in a row
            for day, requests in Counter([entry.day for entry in self._pending]).items():
                self._count(day, requests)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._broken(error) from error
        for number, entry in enumerate(reversed(self._pending)):
            entry.number = last - number
        self._settled.clear()
        self._pending.clear()

    def _count(self, day: str, requests: int) -> None:
        self._db.execute(
            "INSERT INTO days (endpoint, day, requests) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET requests = max(0, requests + excluded.requests)",
            (self._endpoint, day, requests),
        )

    def _run(self, statement: str, values: Iterable[Any] = ()) -> None:
        try:
            self._db.execute(statement, tuple(values))
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _rows(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> RunStateError:
        return _unusable(self._where, error)


def _unusable(where: str, error: Exception) -> RunStateError:
    return RunStateError(
        f"The quota book {where} cannot be used: {error}",
        f"If no other run is going on, remove {where} and run again; only its counts of today are lost.",
    )
