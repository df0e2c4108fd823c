"""What was sent and learned, shared by every run of a project: a small SQLite file in the user's state directory."""

import os
import sqlite3
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.errors import RunStateError
from pipeline.events import Meter
from pipeline.sharedfile import Found, SharedFile, begin_life, is_blank, is_damaged, is_live, look_into, unusable

KEEP_S = 130.0
"""Sends older than this can no longer count against any minute."""
LEARNED_FOR_S = 6 * 3600.0
"""A learned limit is believed for some hours: tiers and models change, and one learned too low holds every run up."""
GROUP_S, GROUP_OF = 0.01, 16
"""Sends closer together than this share a transaction, so many at most."""
_NAME = "The quota book"
_METERS: tuple[Meter, ...] = ("requests", "tokens")
_SO_FAR = "+"  # behind a meter of which nothing was refused

_REQUESTS_ON = "SELECT requests FROM days WHERE endpoint = ? AND day = ?"
_LEARNED = "SELECT value, at FROM learned WHERE endpoint = ? AND meter = ? AND at > ?"
_DAY_OPENS_AT = "SELECT value FROM learned WHERE endpoint = ? AND meter = 'day' AND value > ?"
# A send has a row when it leaves, and another one when it is settled or refunded: then `tokens` is NULL. A row without
# a number asks the others to let the tokens of the last minute fall to these.
_SCHEMA = """
DROP TABLE IF EXISTS sends;  -- of earlier versions
DROP TABLE IF EXISTS asked;
CREATE TABLE IF NOT EXISTS sent (
    id INTEGER PRIMARY KEY AUTOINCREMENT, endpoint TEXT NOT NULL,
    who TEXT NOT NULL, number INTEGER, at REAL NOT NULL, tokens INTEGER
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
    """One request of another run, as it is known by now; `at` in epoch seconds."""

    who: str
    number: int | None  # of that run's; None: it asks that the last minute holds at most so many tokens
    at: float
    tokens: int | None  # None: it never counted


@dataclass(slots=True, eq=False)
class Entry:
    """One request of ours."""

    number: int | None
    at: float  # epoch seconds
    tokens: int | None
    day: str


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier runs left in the book: requests of a day, limits a minute that they learned, a day used up."""

    requests: int = 0
    rpm: float | None = None
    tpm: float | None = None
    day_opens_at: float | None = None  # epoch seconds
    first_rpm: float | None = None  # that a run may begin with, where no limit is known
    unrefused: frozenset[Meter] = frozenset()  # of which so much was let through, and nothing refused

    def limit(self, meter: Meter, configured: int | None) -> float | None:
        """What was learned of a meter: where nothing was refused, nothing that speaks against what the job names."""
        if configured is not None and meter in self.unrefused:
            return None
        return self.rpm if meter == "requests" else self.tpm


def read_known(path: Path, endpoint: str, day: str, now: float, days_of: str = "") -> Known:
    """Read the book without making or changing it; `day` is a quota day (YYYY-MM-DD), `now` epoch seconds.

    `days_of` is as in `QuotaBook`. A damaged or half-made file says nothing: the next run sees to it. Raises
    `RunStateError` for one out of reach.
    """
    try:
        if not path.is_file() or is_blank(path):
            return Known()
        with closing(look_into(path)) as db:
            return _known(db, endpoint, days_of or endpoint, day, now)
    except (OSError, sqlite3.Error) as error:
        if is_damaged(error):
            return Known()
        raise unusable(_NAME, path, error, _hint(path)) from error


class QuotaBook(SharedFile):
    """The sends, day counts and learned limits of one quota.

    A send is in the file before it leaves, so kill -9 loses none, and other processes see it at once; above 6,000
    requests a minute up to `GROUP_OF` are written together, and as many may be lost. The next run starts without its
    burst, which is larger than that at such a rate, and stays within the limit all the same.

    Once open it raises nothing: while the file cannot be used, this run's own counts are kept here, and written later.
    """

    def __init__(
        self, path: Path, endpoint: str, *, days_of: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`endpoint` names project, service and model, never a key. Raises `RunStateError`.

        `days_of` is whose days are counted where they are not those of all: of a rehearsal its own.
        """
        super().__init__(path, _SCHEMA, name=_NAME, hint=_hint(path), disposable=True, clock=clock)
        self._begin(endpoint, days_of)

    def _begin(self, endpoint: str, days_of: str = "") -> None:
        self._endpoint, self._days_of = endpoint, days_of or endpoint
        self._who = uuid4().hex
        self.unseen_until = -inf  # epoch seconds; so long sends may count of which this book does not know
        self._life: int | None = None  # the descriptor of the file that says that this run lives
        self._seen = 0
        self._written_at = self._tidied_at = -inf
        self._days: dict[str, int] = {}  # requests, as in the file
        self._numbers = count()
        # What is not in the file yet:
        self._unwritten: OrderedDict[Entry, None] = OrderedDict()
        self._uncounted: Counter[str] = Counter()  # requests by day
        self._learned: dict[str, tuple[float, float]] = {}  # meter → value and when

    def close(self) -> None:
        """Close the file; what was written stays, and this run shares the quota no longer."""
        self.be_patient()
        self._write()
        if self._life is not None:
            with suppress(OSError):
                self.sign(self._who).unlink()
            os.close(self._life)
            self._life = None
        super().close()

    def news(self, now: float) -> list[Send]:
        """What other processes sent, settled, refunded and asked since the last call, of what may still count."""
        if not self.read(self.changed):
            return []
        rows = self._rows(
            "SELECT who, number, at, tokens, id FROM sent WHERE id > ? AND endpoint = ? AND who <> ? AND at > ?",
            self._seen,
            self._endpoint,
            self._who,
            now - KEEP_S,
        )
        self._seen = max((row[-1] for row in rows), default=self._seen)
        return list({row[:2]: Send(*row[:4]) for row in rows}.values())

    def lives(self, who: str) -> bool:
        """Whether another run goes on: it has not ended, and was not killed."""
        with suppress(OSError):
            return is_live(self.sign(who))
        return True

    def ask(self, at: float, most: int) -> None:
        """Ask the other processes to let the tokens of the last minute fall to this."""
        self._unwritten[Entry(None, at, most, "")] = None
        self._write()

    def flush(self) -> None:
        """Write at once what would be written with the next send: others wait for it."""
        if self._unwritten:
            self._write()

    def send(self, at: float, tokens: int, day: str) -> Entry:
        """Enter one request before it leaves; `settle` or `refund` it later."""
        entry = Entry(next(self._numbers), at, tokens, day)
        self._unwritten[entry] = None
        self._uncounted[day] += 1
        if len(self._unwritten) >= GROUP_OF or not 0 <= at - self._written_at < GROUP_S:
            self._write()
            self._written_at = at
        if at - self._tidied_at > KEEP_S:
            self.write(lambda db: self._tidy(db, at - KEEP_S))
            self._tidied_at = at
        return entry

    def settle(self, entry: Entry, tokens: int) -> None:
        """Put in the tokens that the service counted; written with the next send, or at the end."""
        if tokens != entry.tokens:
            entry.tokens = tokens
            self._unwritten[entry] = None

    def refund(self, entry: Entry) -> None:
        """Take out a request that never counted."""
        self._uncounted[entry.day] -= 1
        if entry in self._unwritten:
            del self._unwritten[entry]
            return
        entry.tokens = None
        self._unwritten[entry] = None
        self._write()

    def requests_on(self, day: str) -> int:
        """Requests of all processes on a quota day (YYYY-MM-DD)."""
        rows = self._rows(_REQUESTS_ON, self._days_of, day)
        if rows:
            self._days[day] = rows[0][0]
        return self._days.get(day, 0) + self._uncounted[day]

    def learn(self, meter: str, value: float, now: float, *, refused: bool = True) -> None:
        """Keep a learned limit (per minute) for the next run; `refused`: more than that was."""
        self._learned[meter if refused else meter + _SO_FAR] = (value, now)
        self._write()

    def close_day(self, until: float, now: float) -> None:
        """Keep that the service said the day's quota is used up; both in epoch seconds."""
        self.learn("day", until, now)

    def known(self, day: str, now: float) -> Known:
        """What is in the file; nothing while it cannot be read. As `read_known`, which opens it for that alone."""
        return self.read(lambda db: _known(db, self._endpoint, self._days_of, day, now)) or Known()

    def forget(self) -> None:
        """Learned limits, and that the day is used up: for the runs to come. Raises `RunStateError`."""
        self.be_patient()
        whose = (self._endpoint, self._days_of)
        if self.write(lambda db: db.execute("DELETE FROM learned WHERE endpoint IN (?, ?)", whose)) is None:
            raise RunStateError(f"{_NAME} cannot be changed now", "another process keeps it locked: try again")

    def _drop(self) -> None:
        super()._drop()
        self._seen = 0  # the next file may be another one, with other numbers; what was read is known by who sent it

    def _write(self) -> None:
        if self.write(self._enter) is None:
            self._forget_old()
            return
        for day, requests in self._uncounted.items():
            self._days[day] = max(0, self._days.get(day, 0) + requests)
        for written in (self._unwritten, self._uncounted, self._learned):
            written.clear()

    def _tidy(self, db: sqlite3.Connection, since: float) -> bool:
        """Forget what is older, and the signs of life of runs that were killed."""
        db.execute("DELETE FROM sent WHERE at < ?", (since,))
        for left in self.signs():
            with suppress(OSError):  # another user's: it says nothing
                if not is_live(left):
                    left.unlink()
        return True

    def _show_life(self) -> None:
        if self._life is None:
            with suppress(OSError):  # this run then counts as one that was killed
                self._life = begin_life(self.sign(self._who))

    def _enter(self, db: sqlite3.Connection) -> bool:
        """Write all that is not in the file."""
        self._show_life()
        db.executemany(
            "INSERT OR REPLACE INTO learned (endpoint, meter, value, at) VALUES (?, ?, ?, ?)",
            [
                (self._days_of if meter == "day" else self._endpoint, meter, value, at)
                for meter, (value, at) in self._learned.items()
            ],
        )
        db.executemany(
            "INSERT INTO days (endpoint, day, requests) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET requests = max(0, requests + excluded.requests)",
            [(self._days_of, day, requests) for day, requests in self._uncounted.items()],
        )
        db.executemany(
            "INSERT INTO sent (endpoint, who, number, at, tokens) VALUES (?, ?, ?, ?, ?)",
            [(self._endpoint, self._who, entry.number, entry.at, entry.tokens) for entry in self._unwritten],
        )
        return True

    def _forget_old(self) -> None:
        """Let go of sends that count against no minute any more: a file that stays away is not to fill the memory."""
        while self._unwritten and next(reversed(self._unwritten)).at - next(iter(self._unwritten)).at > KEEP_S:
            self._unwritten.popitem(last=False)

    def _rows(self, statement: str, *values: object) -> list[Any]:
        return self.read(lambda db: db.execute(statement, values).fetchall()) or []


class MemoryBook(QuotaBook):
    """The book of a run that shares with nobody: there is no file, and what is counted is forgotten at the end."""

    def __init__(self) -> None:
        self._begin("")

    def read(self, work: Callable[[sqlite3.Connection], Found]) -> None:
        """Nothing: there is no file."""

    def _write(self) -> None:
        self._unwritten.clear()


def _known(db: sqlite3.Connection, endpoint: str, days_of: str, day: str, now: float) -> Known:
    def row(statement: str, *values: object) -> Any:
        return db.execute(statement, values).fetchone() or (None, 0.0)

    def learned(meter: str) -> tuple[float | None, float]:
        value, at = row(_LEARNED, endpoint, meter, now - LEARNED_FOR_S)
        return value, at

    limits: dict[Meter, float | None] = {}
    unrefused: set[Meter] = set()
    for meter in _METERS:
        (limit, refused_at), (passed, passed_at) = learned(meter), learned(meter + _SO_FAR)
        if passed is not None and (limit is None or (passed > limit and passed_at > refused_at)):
            limit = passed
            unrefused.add(meter)
        limits[meter] = limit
    return Known(
        row(_REQUESTS_ON, days_of, day)[0] or 0,
        limits["requests"],
        limits["tokens"],
        row(_DAY_OPENS_AT, days_of, now)[0],
        learned("first")[0],
        frozenset(unrefused),
    )


def _hint(path: Path) -> str:
    return f"If no other run is going on, remove {path} and run again; only its counts of today are lost."
