"""Which rows a session does: answered here, for the plan, the engine and the dry run."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from pipeline.records import STATUSES, Status
from pipeline.run.prepare import Session
from pipeline.store.state import LASTING, Outcomes

Wanted = Callable[[int], bool]

_SLICE_ROWS = 2**20
"""Rows that are counted at a time."""


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


@dataclass(frozen=True, slots=True)
class Left:
    """Those of the rows that a session covers that it has to do, as a `masks.Mask`: what `wanted` says of each."""

    session: Session
    outcomes: Outcomes

    def slice(self, offset: int, length: int) -> pl.Series:
        """As `Mask`."""
        states = self.outcomes.states(offset, length)
        if self.session.redo is not None:
            return states >= LASTING
        left = (states == 0) | (states >= LASTING)
        if (pilot := self.session.options.pilot) is None:
            return left
        return left & pl.int_range(offset, offset + length, eager=True).is_in(list(pilot))

    def sum(self) -> int:
        """As `Mask`."""
        rows = self.session.rows
        starts = range(0, rows, _SLICE_ROWS)
        return sum(int(self.slice(start, min(_SLICE_ROWS, rows - start)).sum()) for start in starts)
