"""What was spent, by day, over all runs of a project: a small SQLite file in the user's state directory."""

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

from pipeline.sharedfile import SharedFile

_NANO = Decimal("1e-9")
# SQLite drops what a damaged or removed log held without a word: nothing stays in it.
_SCHEMA = """
PRAGMA wal_autocheckpoint = 1;
CREATE TABLE IF NOT EXISTS spend (
    project TEXT NOT NULL, day TEXT NOT NULL, nano_usd INTEGER NOT NULL, PRIMARY KEY (project, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charged (
    project TEXT NOT NULL, name TEXT NOT NULL, day TEXT NOT NULL, PRIMARY KEY (project, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (
    project TEXT NOT NULL, run TEXT NOT NULL, pid INTEGER NOT NULL, day TEXT NOT NULL, nano_usd INTEGER NOT NULL,
    PRIMARY KEY (project, run)
) WITHOUT ROWID;
"""
_ADD = (
    "INSERT INTO spend (project, day, nano_usd) VALUES (?, ?, ?)"
    " ON CONFLICT DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd"
)


_SUMS = """
SELECT sum(CASE WHEN day = ? THEN nano_usd END), sum(nano_usd) FROM spend WHERE project = ? AND day BETWEEN ? AND ?
"""
_HELD = "SELECT pid, day, nano_usd FROM held WHERE project = ? AND run <> ? AND day BETWEEN ? AND ?"


class SpendBook(SharedFile):
    """The spending of one project, by UTC day, over every run that has this file.

    What a run had in flight when it was killed counts at its worst case, until that run is gone on with.

    An amount is in the file when `add` returns, so kill -9 loses none, and other processes see it at once. Without
    fsync: a power cut may lose the last seconds. `add` takes 40 µs, `spent` 7 µs (measured 2026-11).

    Once open it raises nothing: while the file cannot be used, what this run spends is kept here, and written later.
    """

    def __init__(
        self,
        path: Path,
        project: str,
        run: str,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`project` names service and project, never a key, and `run` this run; `wall` is epoch seconds.

        Raises `RunStateError`.
        """
        hint = (
            f"If no other run is going on, move {path} away and run again: what was spent today and this month then"
            " counts from zero."
        )
        super().__init__(path, _SCHEMA, name="The ledger of spending", hint=hint, clock=clock)
        self._project, self._run = project, run
        self._wall = wall
        self._unwritten: Counter[str] = Counter()  # billionths of a dollar by day
        self._today = ""
        self._spent = (0, 0)  # billionths of a dollar in the file, of day and month
        self._held: tuple[str, int] | None = ("", -1)  # what is held, since which day; at first what a kill has left

    @property
    def unwritten_usd(self) -> Decimal:
        """What this run spent that is not in the file."""
        return self._unwritten.total() * _NANO

    def close(self) -> None:
        """Close the file; what could not be written before is tried once more, and told if it still cannot."""
        self.be_patient()
        self._write()
        super().close()
        if self._unwritten:
            self.on_trouble(
                f"${self.unwritten_usd:.6f} that this run spent could not be written to {self.path}:"
                " the caps of day and month do not count it"
            )

    def add(self, usd: Decimal) -> None:
        """Count what a request cost, rounded up to a billionth of a dollar; never less than nothing."""
        self._unwritten[self._day()] += _nano(usd)
        self._write()

    def add_once(self, name: str, usd: Decimal, at: float) -> None:
        """Count an amount on the day of `at` (epoch seconds; 0: today), once for each name."""
        day = _day_of(at) if at else self._day()

        def entered(db: sqlite3.Connection) -> bool:
            new = "INSERT OR IGNORE INTO charged (project, name, day) VALUES (?, ?, ?)"
            if db.execute(new, (self._project, name, day)).rowcount:
                db.execute(_ADD, (self._project, day, _nano(usd)))
            return True

        if self.write(entered) is None:
            self._unwritten[day] += _nano(usd)
        self._today = ""

    def hold(self, usd: Decimal) -> None:
        """Note what this run has in flight, or more, until it is released: the others count it if it is killed."""
        held = self._day(), _nano(usd)
        if self._held and self._held[0] == held[0] and self._held[1] >= held[1]:
            return
        row = "INSERT OR REPLACE INTO held (project, run, pid, day, nano_usd) VALUES (?, ?, ?, ?, ?)"
        if self.write(lambda db: db.execute(row, (self._project, self._run, os.getpid(), *held))):
            self._held = held

    def release(self) -> None:
        """Nothing of this run is in flight; what a killed session had in flight is counted otherwise."""
        row = "DELETE FROM held WHERE project = ? AND run = ?"
        if self._held and self.write(lambda db: db.execute(row, (self._project, self._run))):
            self._held = None

    def spent(self) -> tuple[Decimal, Decimal]:
        """USD of all runs on this UTC day, and in this UTC month; of other runs what was last known of them."""
        day = self._day()
        of_day, of_month = self.read(lambda db: self._sums(db, day)) or self._spent
        unwritten = self.unwritten_usd
        return of_day * _NANO + unwritten, of_month * _NANO + unwritten

    def _sums(self, db: sqlite3.Connection, day: str) -> tuple[int, int]:
        """Billionths of a dollar of the day and of its month; read again only when there is something new."""
        if self.changed(db) or day != self._today:
            self._today = day
            first = f"{day[:8]}01"
            sums = db.execute(_SUMS, (day, self._project, first, day)).fetchone()
            held = db.execute(_HELD, (self._project, self._run, first, day)).fetchall()
            lost = [(nano, at == day) for pid, at, nano in held if not _lives(pid)]
            of_day, of_month = sum(nano for nano, today in lost if today), sum(nano for nano, _ in lost)
            self._spent = (sums[0] or 0) + of_day, (sums[1] or 0) + of_month
        return self._spent

    def _write(self) -> None:
        if not self._unwritten:
            return
        rows = [(self._project, day, nano) for day, nano in self._unwritten.items()]
        if self.write(lambda db: db.executemany(_ADD, rows)):
            self._unwritten.clear()
            self._today = ""  # `changed` tells of other processes' writes only

    def _day(self) -> str:
        return _day_of(self._wall())


def _lives(pid: int) -> bool:
    """Whether it is another process: in a container each run has the number of the one before."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _day_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def _nano(usd: Decimal) -> int:
    return max(0, int((usd / _NANO).to_integral_value(ROUND_CEILING)))
