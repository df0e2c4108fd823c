"""How far the estimate was off: the plan that a session started with, against the calls that it led to.

A redo is held to its own plan, and what was redone is no part of what the whole run is held to.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from types import MappingProxyType

import polars as pl

from pipeline.report.events import Event, Planned
from pipeline.store.parts import IS_REQUEST


@dataclass(frozen=True, slots=True)
class Amounts:
    """Calls of one step, their tokens and their price; of an estimate, rounded."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0  # with thinking
    cost_usd: Decimal | None = Decimal(0)  # None: the price is unknown

    def plus(self, other: "Amounts") -> "Amounts":
        """Both together; an unknown price makes the sum unknown."""
        known = self.cost_usd is not None and other.cost_usd is not None
        return Amounts(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost_usd + other.cost_usd if known else None,  # type: ignore[operator]
        )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Estimate and outcome of the whole run, by step; "total" is their sum."""

    estimated: Mapping[str, Amounts]
    actual: Mapping[str, Amounts]
    estimated_s: float
    actual_s: float
    based_on: str  # what the expected length of answers came from
    lanes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # calls by lane, estimated and actual
    redo: bool = False  # both are of the last redo, and not of the whole run

    def as_json(self) -> dict[str, object]:
        """Stable keys: for each step calls, tokens and cost as [estimated, actual]."""
        steps = {
            step: {
                "calls": [guess.calls, real.calls],
                "input_tokens": [guess.input_tokens, real.input_tokens],
                "output_tokens": [guess.output_tokens, real.output_tokens],
                "cost_usd": [_usd(guess.cost_usd), _usd(real.cost_usd)],
            }
            for step, guess in self.estimated.items()
            for real in (self.actual.get(step, Amounts()),)
        }
        lanes = {"lanes": {lane: {"calls": list(calls)} for lane, calls in self.lanes.items()}} if self.lanes else {}
        return {
            **steps,
            **lanes,
            "seconds": [self.estimated_s, self.actual_s],
            "based_on": self.based_on,
            "redo": self.redo,
        }


@dataclass(frozen=True, slots=True)
class Baseline:
    """The plan that a run is measured by: the first one for as many rows as the run has now; a redo by its own."""

    at_s: float  # seconds since the epoch; what was bought before it was no estimate any more
    steps: Mapping[str, Amounts]
    seconds: float
    based_on: str
    position: int  # of its line in the log
    lanes: Mapping[str, int] = field(default_factory=dict)  # calls by lane; empty: all in standard
    redo: bool = False
    without: tuple[tuple[float, float], ...] = ()  # from when to when nothing counts, epoch seconds

    def counted(self, calls: pl.DataFrame) -> pl.DataFrame:
        """Those of these calls that the plan is held to, and those of the same rows that were bought before."""
        for start, end in self.without:
            calls = calls.filter(~pl.col("finished_at").is_between(_moment(start), _moment(end), closed="left"))
        return calls

    def before(self, calls: pl.DataFrame) -> pl.DataFrame:
        """Those that were bought before it."""
        return calls.filter(pl.col("finished_at") < _moment(self.at_s))

    def sessions(self, events: Sequence[Event]) -> list[Event]:
        """The events of the sessions that it is held to."""
        found, is_left_out = [], False
        for event in events[self.position :]:
            if isinstance(event, Planned):
                is_left_out = event.redo and not self.redo
            if not is_left_out:
                found.append(event)
        return found


def baseline(events: Sequence[Event]) -> Baseline | None:
    """The plan to compare with, or None: a pilot's is none, nor one for another number of rows, nor an empty redo's."""
    plans = [(number, event) for number, event in enumerate(events) if isinstance(event, Planned) and not event.pilot]
    plans = [(number, event) for number, event in plans if event.steps or not event.redo]
    if not plans:
        return None
    newest = plans[-1]
    alike = (each for each in plans if each[1].rows == newest[1].rows and not each[1].redo)
    number, event = newest if newest[1].redo else next(alike)
    steps = {step: Amounts(*amounts) for step, amounts in event.steps.items()}
    without = ((0.0, event.at_s),) if event.redo else tuple(_redone(each for _, each in plans))
    return Baseline(event.at_s, steps, event.seconds, event.based_on, number, event.lanes, event.redo, without)


def _redone(plans: Iterable[Planned]) -> Iterator[tuple[float, float]]:
    """From when to when a run was redone, where another session came after it."""
    return ((plan.at_s, later.at_s) for plan, later in pairwise(plans) if plan.redo)


def compare(
    baseline: Baseline,
    before: Mapping[str, Amounts],
    actual: Mapping[str, Amounts],
    actual_s: float,
    lanes_before: Mapping[str, int] = MappingProxyType({}),
    lanes: Mapping[str, int] = MappingProxyType({}),
) -> Accuracy:
    """The estimate of the whole run, what was bought `before` it included, and the outcome; `lanes` are calls."""
    steps = sorted(baseline.steps.keys() | actual.keys())
    estimated = {step: baseline.steps.get(step, Amounts()).plus(before.get(step, Amounts())) for step in steps}
    real = {step: actual.get(step, Amounts()) for step in steps}
    return Accuracy(
        {**estimated, "total": _total(estimated)},
        {**real, "total": _total(real)},
        baseline.seconds,
        actual_s,
        baseline.based_on,
        {
            lane: (baseline.lanes.get(lane, 0) + lanes_before.get(lane, 0), lanes.get(lane, 0))
            for lane in sorted(baseline.lanes.keys() | lanes.keys())
            if baseline.lanes
        },
        baseline.redo,
    )


def amounts_by_step(paid: pl.DataFrame) -> dict[str, Amounts]:
    """Sums over calls that were paid for, from the columns of `store.parts.CALLS_SCHEMA`."""
    sums = paid.group_by("step").agg(
        IS_REQUEST.sum().alias("calls"),
        (pl.col("input_tokens") + pl.col("tool_tokens")).sum(),
        (pl.col("output_tokens") + pl.col("thinking_tokens")).sum().alias("out"),
        pl.col("cost_usd").sum(),
        pl.col("cost_usd").null_count().alias("unpriced"),
    )
    return {
        step: Amounts(calls, given, out, None if unpriced else cost)
        for step, calls, given, out, cost, unpriced in sums.iter_rows()
    }


def logged(steps: Mapping[str, Amounts]) -> dict[str, list[float | None]]:
    """Steps of a plan as they stand in the log."""
    return {
        step: [each.calls, each.input_tokens, each.output_tokens, _usd(each.cost_usd)] for step, each in steps.items()
    }


def _total(steps: Mapping[str, Amounts]) -> Amounts:
    total = Amounts()
    for each in steps.values():
        total = total.plus(each)
    return total


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _usd(amount: Decimal | None) -> float | None:
    return None if amount is None else float(round(amount, 8))
