"""How far the estimate was off: the plan that a session started with, against the calls that it led to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
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
        return {**steps, **lanes, "seconds": [self.estimated_s, self.actual_s], "based_on": self.based_on}


@dataclass(frozen=True, slots=True)
class Baseline:
    """The plan that a run is measured by: the first one for as many rows as the run has now."""

    at_s: float  # seconds since the epoch; what was bought before it was no estimate any more
    steps: Mapping[str, Amounts]
    seconds: float
    based_on: str
    position: int  # of its line in the log
    lanes: Mapping[str, int] = field(default_factory=dict)  # calls by lane; empty: all in standard


def baseline(events: Sequence[Event]) -> Baseline | None:
    """The plan to compare with, or None: a pilot's is none, nor one for another number of rows."""
    whole = [(number, event) for number, event in enumerate(events) if isinstance(event, Planned) and not event.pilot]
    found = next(((number, event) for number, event in whole if event.rows == whole[-1][1].rows), None)
    if found is None:
        return None
    number, event = found
    steps = {step: Amounts(*amounts) for step, amounts in event.steps.items()}
    return Baseline(event.at_s, steps, event.seconds, event.based_on, number, event.lanes)


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


def _usd(amount: Decimal | None) -> float | None:
    return None if amount is None else float(round(amount, 8))
