"""What was spent, by day, over all runs of a project: a small SQLite file in the user's state directory."""

import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from time import time
from types import TracebackType
from typing import Any

from pipeline.errors import RunStateError
from pipeline.quota.book import open_shared

_NANO = Decimal("1e-9")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spend (
    project TEXT NOT NULL, day TEXT NOT NULL, nano_usd INTEGER NOT NULL, PRIMARY KEY (project, day)
) WITHOUT ROWID;
"""


class SpendBook:
    """The spending of one project, by UTC day, over every run that has this file.

    An amount is in the file when `add` returns, so kill -9 loses none, and other processes see it at once. Without
    fsync: a power cut may lose the last seconds. `add` takes 14 µs, `spent` 7 µs (measured 2026-11).
    """

    def __init__(self, path: Path, project: str, *, clock: Callable[[], float] = time) -> None:
        """`project` names service and project, never a key; `clock` tells epoch seconds."""
        self._where = str(path)
        self._project = project
        self._clock = clock
        self._today = ""
        self._version = -1
        self._spent = (Decimal(0), Decimal(0))
        try:
            self._db = open_shared(path, _SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._broken(error) from error

    def __enter__(self) -> "SpendBook":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def add(self, usd: Decimal) -> None:
        """Count what a reply cost, rounded up to a billionth of a dollar."""
        nano = int((usd / _NANO).to_integral_value(ROUND_CEILING))
        self._rows(
            "INSERT INTO spend (project, day, nano_usd) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd",
            (self._project, self._day(), nano),
        )
        self._version = -1  # the file's version tells of other processes' writes only

    def spent(self) -> tuple[Decimal, Decimal]:
        """USD of all runs on this UTC day, and in this UTC month."""
        day, (version,) = self._day(), self._rows("PRAGMA data_version")[0]
        if (day, version) != (self._today, self._version):
            self._today, self._version = day, version
            of_day, of_month = self._rows(
                "SELECT sum(CASE WHEN day = ? THEN nano_usd END), sum(nano_usd) FROM spend"
                " WHERE project = ? AND day BETWEEN ? AND ?",
                (day, self._project, f"{day[:8]}01", day),
            )[0]
            self._spent = ((of_day or 0) * _NANO, (of_month or 0) * _NANO)
        return self._spent

    def _day(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()

    def _rows(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> RunStateError:
        return RunStateError(
            f"The spending of earlier runs, {self._where}, cannot be read or written: {error}",
            f"If no other run is going on, move {self._where} away and run again: what was spent today and this month"
            " then counts from zero.",
        )
