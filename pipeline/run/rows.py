"""Which rows a session does: answered here, for the plan, the engine and the dry run."""

from collections import Counter
from collections.abc import Callable

import polars as pl

from pipeline.records import STATUSES, Status
from pipeline.run.prepare import Session
from pipeline.store.state import Outcomes

Wanted = Callable[[int], bool]

_SLICE_ROWS = 2**16
"""Rows that are asked after at a time, 8 bytes each."""


def wanted(session: Session, outcomes: Outcomes) -> Wanted:
    """Rows without an outcome that lasts; with `--set` only those that are redone; of a pilot only its own."""
    if session.redo is not None:
        return outcomes.again
    if (pilot := session.options.pilot) is not None:
        return lambda row: row in pilot and not outcomes.done(row)
    return lambda row: not outcomes.done(row)


def counted(session: Session, outcomes: Outcomes) -> Counter[Status]:
    """Of the rows that a session covers, those that have an outcome that lasts, by status."""
    if (pilot := session.options.pilot) is None:
        return Counter({status: outcomes.count(status, session.rows, lasting=True) for status in STATUSES})
    return Counter(status for row in pilot if (status := outcomes.lasting(row)))


def mask(session: Session, wanted: Wanted) -> pl.Series:
    """One boolean a row of the table."""
    parts = (range(start, min(start + _SLICE_ROWS, session.rows)) for start in range(0, session.rows, _SLICE_ROWS))
    left = [pl.Series([wanted(row) for row in part], dtype=pl.Boolean) for part in parts]
    return pl.concat([pl.Series(dtype=pl.Boolean), *left], rechunk=True)
