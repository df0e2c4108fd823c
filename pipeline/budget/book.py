"""What was spent, by day, over all runs of a project: a small SQLite file in the user's state directory."""

import os
import shlex
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from uuid import uuid4

from pipeline.budget.live import LiveSum, read_sum
from pipeline.sharedfile import SharedFile, WrongLayout, is_live

ENTER_S = 60.0
"""A session's sum comes into the book so often: a file that is lost or not read takes no more with it."""
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
CREATE TABLE IF NOT EXISTS live (
    project TEXT NOT NULL, name TEXT NOT NULL, day TEXT NOT NULL, PRIMARY KEY (project, name)
) WITHOUT ROWID;
"""
_ADD = (
    "INSERT INTO spend (project, day, nano_usd) VALUES (?, ?, ?)"
    " ON CONFLICT DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd"
)


_SUMS = """
SELECT sum(CASE WHEN day = ? THEN nano_usd END), sum(nano_usd) FROM spend WHERE project = ? AND day BETWEEN ? AND ?
"""
_BEGIN = "INSERT INTO live (project, name, day) VALUES (?, ?, ?)"
_LIVE = "SELECT name, day FROM live WHERE project = ?"
_HELD = """
SELECT run, day, nano_usd FROM held WHERE project = ? AND run NOT IN (?, ?)
AND day BETWEEN CASE WHEN run LIKE '%/batches' THEN ? ELSE ? END AND ?
"""
_IN_BATCHES = "/batches"
"""What the name of a run ends with in the row that says what it has out in batches."""
_OUT_FOR = timedelta(days=3)
"""No batch is out for longer: the service gives it up after 48 hours."""


class SpendBook(SharedFile):
    """The spending of one project, by UTC day, over every run that has this file.

    What a run had in flight when it was killed counts at its worst case, until that run is gone on with; what runs have
    out in batches does, until it is settled.

    What `add` was given is in a file when it returns, so kill -9 loses none, and other processes see it at once: in
    that of this session (`live`), and from there in the book every `ENTER_S` and as soon as the session has ended.
    Without fsync: a power cut may lose the last seconds.

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
        self._project, self._run = project, run
        self._wall = wall
        self._unwritten: Counter[str] = Counter()  # billionths of a dollar by day
        self._today = ""
        self._live: LiveSum | None = None  # what this session spends
        self._begun_at = 0.0  # by `clock`
        self._own: dict[str, LiveSum] = {}  # the same, and its sums before that are not in the book yet, by name
        self._others: list[tuple[str, str]] = []  # other sessions: name of their sum, and its day
        self._entered = (0, 0)  # billionths of a dollar of day and month that are in the book
        self._lost = (0, 0)  # those of them that killed runs had in flight
        self._spent = (0, 0)  # those of other sessions with them
        self._holding: list[Path] = []  # signs of life of the sessions that hold something
        self._kept = -1  # billionths of a dollar that are out in batches, as the others know
        self._held: tuple[str, int] | None = ("", -1)  # what is held, since which day; at first what a kill has left
        super().__init__(path, _SCHEMA, name="The ledger of spending", hint=hint, clock=clock)

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

    def insist(self) -> None:
        """As of any shared file; and what could not be written is."""
        super().insist()
        self._write()

    def add(self, usd: Decimal, account: str = "") -> None:
        """Count what a request cost, rounded up to a billionth of a dollar; never less than nothing."""
        day, nano = self._day(), _nano(usd)
        is_due = self._clock() - self._begun_at >= ENTER_S
        if self._live and self._live.day == day and not is_due and self.read(_is_there) and self._live:
            try:
                self._live.add(nano)
                return
            except OSError:
                self._let_go()
        self._unwritten[day] += nano
        self._write(day)

    def add_once(self, name: str, usd: Decimal, at: float, account: str = "") -> None:
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
        if self._live is None:  # a kill between the first reply and its transaction would lose that reply's cost
            self._write(held[0])
        row = "INSERT OR REPLACE INTO held (project, run, pid, day, nano_usd) VALUES (?, ?, ?, ?, ?)"
        if self.write(lambda db: db.execute(row, (self._project, self._run, os.getpid(), *held))):
            self._held = held

    def keep(self, usd: Decimal) -> None:
        """Note what this run has out in batches: the others count it until that is settled."""
        kept = _nano(usd)
        if kept == self._kept:
            return
        whose = self._project, self._run + _IN_BATCHES

        def noted(db: sqlite3.Connection) -> bool:
            db.execute("DELETE FROM held WHERE project = ? AND run = ?", whose)
            if kept:
                row = "INSERT INTO held (project, run, pid, day, nano_usd) VALUES (?, ?, ?, ?, ?)"
                db.execute(row, (*whose, os.getpid(), self._day(), kept))
            return True

        if self.write(noted):
            self._kept = kept

    def release(self) -> None:
        """Nothing of this run is in flight; what a killed session had in flight is counted otherwise."""
        row = "DELETE FROM held WHERE project = ? AND run = ?"
        if self._held and self.write(lambda db: db.execute(row, (self._project, self._run))):
            self._held = None

    def spent(self) -> tuple[Decimal, Decimal]:
        """USD of all runs on this UTC day, and in this UTC month; of other runs what was last known of them."""
        day = self._day()
        of_day, of_month = self.read(lambda db: self._sums(db, day)) or self._spent
        for own in self._own.values():
            of_day += own.nano_usd if own.day == day else 0
            of_month += own.nano_usd if own.day[:7] == day[:7] else 0
        unwritten = self.unwritten_usd
        return of_day * _NANO + unwritten, of_month * _NANO + unwritten

    def lost(self) -> tuple[Decimal, Decimal]:
        """USD of them that killed runs may have spent: what they had in flight, as of the last look."""
        of_day, of_month = self._lost
        return of_day * _NANO, of_month * _NANO

    def _sums(self, db: sqlite3.Connection, day: str) -> tuple[int, int]:
        """Billionths of a dollar of the day and of its month, without this session's."""
        missing: tuple[str, str] | None = None
        while True:
            if self.changed(db) or day != self._today or not all(map(is_live, self._holding)):
                self._look(db, day)
            if missing in self._others:
                raise _lost_sum(self._path_of(missing[0]))
            of_day, of_month = self._entered
            for other in self._others:
                name, at = other
                if at[:7] != day[:7]:
                    continue
                try:
                    nano = read_sum(self._path_of(name))
                except (FileNotFoundError, ValueError):
                    missing, self._today = other, ""  # it may have come into the book meanwhile
                    break
                of_day, of_month = of_day + (nano if at == day else 0), of_month + nano
            else:
                self._spent = of_day, of_month
                return self._spent

    def _look(self, db: sqlite3.Connection, day: str) -> None:
        """Read what is in the book."""
        first = f"{day[:8]}01"
        db.execute("BEGIN")  # all of it as of one moment
        sums = db.execute(_SUMS, (day, self._project, first, day)).fetchone()
        whose = self._project, self._run, self._run + _IN_BATCHES
        oldest = (date.fromisoformat(day) - _OUT_FOR).isoformat()
        held = db.execute(_HELD, (*whose, oldest, first, day)).fetchall()
        live = db.execute(_LIVE, (self._project,)).fetchall()
        db.execute("COMMIT")
        lost: list[tuple[int, bool]] = []
        self._holding = []
        for run, at, nano in held:
            if run.endswith(_IN_BATCHES):  # whether that run goes on or not; and it may be billed today
                lost.append((nano, True))
                continue
            signs = [self._path_of(name) for name, _ in live if name.startswith(f"{self.path.name}-{run}-")]
            living = list(filter(is_live, signs))
            self._holding += living
            lost += [] if living else [(nano, at == day)]
        self._lost = sum(nano for nano, today in lost if today), sum(nano for nano, _ in lost)
        self._entered = (sums[0] or 0) + self._lost[0], (sums[1] or 0) + self._lost[1]
        self._own = {name: self._own[name] for name, _ in live if name in self._own}
        self._others = [(name, at) for name, at in live if name not in self._own]
        if self._live and self._live.path.name not in self._own:
            self._let_go()  # its file was replaced, and another session took this one for ended
        self._today = day

    def _write(self, begin: str = "") -> None:
        """Enter what is not in the book, and what sessions have left that ended; `begin` this one's sum of that day."""
        if not (self._unwritten or self._own or begin):
            return
        rows = [(self._project, day, nano) for day, nano in self._unwritten.items()]
        begun: list[LiveSum] = []
        ended: list[Path] = []

        def entered(db: sqlite3.Connection) -> bool:
            db.executemany(_ADD, rows)
            ended.extend(self._gathered(db))
            if begin:
                with suppress(OSError):
                    begun.append(LiveSum(self.sign(f"{self._run}-{uuid4().hex}"), begin))
                    db.execute(_BEGIN, (self._project, begun[0].path.name, begin))
            return True

        if self.write(entered):
            self._unwritten.clear()
            self._today = ""  # `changed` tells of other processes' writes only
            self._let_go()  # not before: others would take this session for ended
            for live in begun:
                self._live, self._begun_at = live, self._clock()
                self._own[live.path.name] = live
            for path in ended:
                self._own.pop(path.name, None)
                with suppress(OSError):  # whoever opens the book next removes it
                    path.unlink()
        else:
            for live in begun:
                live.discard()

    def _check(self) -> None:
        super()._check()
        assert self._db
        left = set(self.signs())
        if not left and not self._db.execute("SELECT 1 FROM live LIMIT 1").fetchone():
            return
        self._db.execute("BEGIN IMMEDIATE")
        ended = self._gathered(self._db)
        named = {self._path_of(name) for (name,) in self._db.execute("SELECT name FROM live")}
        ended += (path for path in left - named if not is_live(path))  # a kill came between the one and the other
        self._db.execute("COMMIT")
        for path in ended:
            path.unlink(missing_ok=True)

    def _gathered(self, db: sqlite3.Connection) -> list[Path]:
        """Enter the sums of sessions that have ended; their files are then to be removed."""
        ended = []
        for name, day in db.execute(_LIVE, (self._project,)).fetchall():
            path = self._path_of(name)
            own = self._own.get(name)
            try:
                if own is None and is_live(path):
                    continue
                nano = own.nano_usd if own else read_sum(path)  # its file may have been replaced
            except (FileNotFoundError, ValueError):
                raise _lost_sum(path) from None
            db.execute(_ADD, (self._project, day, nano))
            db.execute("DELETE FROM live WHERE project = ? AND name = ?", (self._project, name))
            ended.append(path)
        return ended

    def _let_go(self) -> None:
        if self._live:
            self._live.close()
            self._live = None

    def _drop(self) -> None:
        self._let_go()
        super()._drop()

    def _path_of(self, name: str) -> Path:
        return self.path.with_name(name)

    def _day(self) -> str:
        return _day_of(self._wall())


def _lost_sum(path: Path) -> WrongLayout:
    return WrongLayout(
        f"what a run has spent stood in {path.name}, which is gone or damaged",
        f"`cp /dev/null {shlex.quote(str(path))}`, and run again: what that run spent last, in a minute or so, then"
        " counts nowhere, and all else as before.",
    )


def _is_there(db: sqlite3.Connection) -> bool:
    return True


def _day_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def _nano(usd: Decimal) -> int:
    return max(0, int((usd / _NANO).to_integral_value(ROUND_CEILING)))
