"""Rows that are tried again on request: what all their tries cost, and which old answers do for them no more."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipeline.records import JUDGED, PASSING, Reply, Result
from pipeline.store import parts
from pipeline.store.judged import Judged, gave_judged, judged_of
from pipeline.store.state import Outcomes

_NOTHING = Decimal(0)
_OUTCOME = ("row", "status", "error_kind", "changes", "finished_at")


class _Before(NamedTuple):
    """The outcome that would not do: when it came, and what an answer that was judged is known by."""

    finished_at: float
    judged: Judged | None


@dataclass(slots=True)
class Again:
    """Those rows of one session."""

    _usd: dict[int, Decimal | None] = field(default_factory=dict)  # by row: what all its calls cost
    _guessed: set[int] = field(default_factory=set)  # rows of which some of that is an estimate
    _before: dict[int, _Before] = field(default_factory=dict)

    def reopen(
        self,
        directory: Path,
        outcomes: Outcomes,
        kinds: frozenset[str],
        changes: str | None,
        passing: bool,
        unsealed: Iterable[Result] = (),
    ) -> None:
        """See `store.run.RunStore.reopen`; `unsealed` are results that stand in the journal still."""

        def take_in(read: Callable[[tuple[str, ...]], pl.DataFrame]) -> None:
            judged: list[int] = []
            for row, status, kind, made_with, finished_at in read(_OUTCOME).iter_rows():
                asked = (status in kinds or kind in kinds) and (changes is None or made_with != changes)
                outcomes.set(
                    row, status, asked or (changes is None and passing and status == "error" and kind in PASSING)
                )
                self._before.pop(row, None)
                if asked:
                    self._before[row] = _Before(finished_at.timestamp() if finished_at else 0.0, None)
                    if kind in JUDGED:
                        judged.append(row)
            if judged:
                for row, text in read(("row", "response")).filter(pl.col("row").is_in(judged)).iter_rows():
                    self._before[row] = self._before[row]._replace(judged=judged_of(text))

        for path in parts.part_paths(directory / "results"):
            take_in(partial(parts.read_part, path))
        take_in(parts.results_frame(unsealed).select)

    def count(self, calls: Iterable[pl.DataFrame], outcomes: Outcomes) -> None:
        """Sum what the calls of each row that is tried again cost so far, from its `row`, `cost_usd` and
        `usage_estimated`."""
        for frame in calls:
            for row, usd, guessed in frame.iter_rows():
                if outcomes.again(row):
                    self._usd.setdefault(row, _NOTHING)
                    self.add(row, usd, guessed)

    def add(self, row: int, usd: Decimal | None, guessed: bool = False) -> None:
        """One more call of a row, where it is one of these."""
        if row in self._usd:
            known = self._usd[row]
            self._usd[row] = None if known is None or usd is None else known + usd
            if guessed:
                self._guessed.add(row)

    def settled(self, result: Result) -> Result:
        """The new outcome of a row, with the cost of every try."""
        if result.row not in self._usd:
            return result
        usage = replace(result.usage, estimated=result.usage.estimated or result.row in self._guessed)
        return replace(result, cost_usd=self._usd.pop(result.row), usage=usage)

    def is_new(self, row: int, cut_at: float) -> bool:
        """Whether a batch that was cut at that time is a new try of the row, where that is tried again on request."""
        before = self._before.get(row)
        return before is None or cut_at > before.finished_at

    def takes(self, row: int, reply: Reply, cut_at: float) -> bool:
        """Whether a reply that a batch bought, which was cut at that time, does for the row.

        Not where it is not `ok`, or was the answer that was judged: but one of a batch that was cut after the outcome
        is the new try. Else a redo that takes several sessions would ask for ever, or never.
        """
        if self.is_new(row, cut_at):
            return True
        judged = self._before[row].judged
        return reply.status == "ok" and not (judged and gave_judged(reply.text, judged))
