"""Sums over the calls of a run directory, taken part by part: nothing is kept of each call."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl

from pipeline.report.accuracy import Amounts, Baseline, amounts_by_step
from pipeline.report.lanes import InLane, by_lane, together
from pipeline.report.latencies import Latencies
from pipeline.store import fallen, parts

_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "thinking_tokens", "tool_tokens")
_COLUMNS = (
    *("step", "chunk", "paid", "attempts", "rate_limited", "input_tokens_est", "latency_s", "finished_at"),
    *("cost_usd", "standard_usd", "at_most_usd", "usage_estimated", "target", "lane", "fell_back", "late"),
    *("generation", *_TOKENS),
)


@dataclass
class Bought:
    """What was bought, and what an earlier generation had bought before."""

    paid: Counter[str] = field(default_factory=Counter)  # tokens by counter
    steps: dict[str, Amounts] = field(default_factory=dict)  # calls that were paid for
    kept: int = 0
    kept_usd: Decimal = Decimal(0)
    attempts: int = 0
    rate_limited: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0
    at_most_usd: Decimal | None = Decimal(0)
    uncertain: int = 0
    estimated: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    targets: dict[str, tuple[int, Decimal | None]] = field(default_factory=dict)
    lanes: dict[str, InLane] = field(default_factory=dict)
    first_at: float | None = None  # when the first of the calls came back, epoch seconds; None: there is none
    last_at: float | None = None

    @property
    def calls(self) -> int:
        """Replies that were paid for."""
        return sum(amounts.calls for amounts in self.steps.values())

    def add(self, other: "Bought") -> None:
        """Add what another directory, or another part of this one, says."""
        self.paid.update(other.paid)
        add_steps(self.steps, other.steps)
        self.kept, self.kept_usd = self.kept + other.kept, self.kept_usd + other.kept_usd
        self.attempts, self.rate_limited = self.attempts + other.attempts, self.rate_limited + other.rate_limited
        self.cost_usd, self.unpriced = self.cost_usd + other.cost_usd, self.unpriced + other.unpriced
        self.at_most_usd = _sum(self.at_most_usd, other.at_most_usd)
        self.uncertain, self.estimated = self.uncertain + other.uncertain, self.estimated + other.estimated
        self.latencies.bins.update(other.latencies.bins)
        for name, (calls, usd) in other.targets.items():
            before, cost = self.targets.get(name, (0, Decimal(0)))
            self.targets[name] = before + calls, _sum(cost, usd)
        self.lanes = together(self.lanes, other.lanes)
        self.first_at = min((at for at in (self.first_at, other.first_at) if at is not None), default=None)
        self.last_at = max((at for at in (self.last_at, other.last_at) if at is not None), default=None)


@dataclass
class Held:
    """Of these calls, those that the plan is held to, and of them those before the plan."""

    counted: dict[str, Amounts] = field(default_factory=dict)
    before: dict[str, Amounts] = field(default_factory=dict)
    lanes_counted: dict[str, InLane] = field(default_factory=dict)
    lanes_before: dict[str, InLane] = field(default_factory=dict)

    def add(self, other: "Held") -> None:
        """Add those of another directory, or of another part of this one."""
        add_steps(self.counted, other.counted)
        add_steps(self.before, other.before)
        self.lanes_counted = together(self.lanes_counted, other.lanes_counted)
        self.lanes_before = together(self.lanes_before, other.lanes_before)


@dataclass
class Sums:
    """Sums over calls, held to the plan that the run is measured by."""

    plan: Baseline | None
    fallen: fallen.Fallen
    live: set[str] = field(default_factory=set)  # of what may have fallen back, what another lane answered
    bought: Bought = field(default_factory=Bought)
    held: Held = field(default_factory=Held)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of calls that `add` reads."""
        return (*_COLUMNS, *(["fingerprint"] if self.fallen.perhaps else []))

    def add(self, calls: pl.DataFrame) -> None:
        """Add the calls of one part."""
        kept, own = calls.filter(~parts.IS_BOUGHT), calls.filter(parts.IS_BOUGHT)
        paid = own.filter(pl.col("paid"))
        if perhaps := self.fallen.perhaps:
            live = paid.filter(pl.col("lane") != "batch")["fingerprint"].str.head(fallen.DIGITS)
            self.live.update(live.filter(live.is_in(list(perhaps))))
        self.bought.add(found := _bought(kept, own, paid))
        if (plan := self.plan) is not None:
            counted = plan.counted(paid)
            before = plan.before(counted)
            self.held.add(
                Held(
                    amounts_by_step(counted) if plan.without else dict(found.steps),
                    amounts_by_step(before),
                    by_lane(counted) if plan.without else found.lanes,
                    by_lane(before),
                )
            )


def held_to(plan: Baseline, bought: Bought) -> Held | None:
    """What the plan is held to of calls of which nothing but these sums is known; None where that does not tell."""
    first, last = bought.first_at, bought.last_at
    if first is None or last is None:
        return Held()
    if any(first < end and last >= start for start, end in plan.without):
        return None
    if first < plan.at_s <= last:
        return None
    earlier = last < plan.at_s
    return Held(bought.steps, bought.steps if earlier else {}, bought.lanes, bought.lanes if earlier else {})


def add_steps(sums: dict[str, Amounts], more: Mapping[str, Amounts]) -> None:
    """Add amounts by step."""
    for step, amounts in more.items():
        sums[step] = sums.get(step, Amounts()).plus(amounts)


def _bought(kept: pl.DataFrame, own: pl.DataFrame, paid: pl.DataFrame) -> Bought:
    more, latencies = own["at_most_usd"], Latencies()
    latencies.add(paid.filter(pl.col("lane") != "batch")["latency_s"])
    named = paid.filter(pl.col("target").is_not_null()).group_by("target")
    first, last = own.select(first=pl.col("finished_at").min(), last=pl.col("finished_at").max()).row(0)
    return Bought(
        paid=Counter(paid.select(pl.col(*_TOKENS, "input_tokens_est").sum()).row(0, named=True)),
        steps=amounts_by_step(paid),
        kept=kept.height,
        kept_usd=Decimal(kept["cost_usd"].sum()),
        attempts=int(own["attempts"].sum()),
        rate_limited=int(own["rate_limited"].sum()),
        cost_usd=Decimal(own["cost_usd"].sum()),
        unpriced=own.filter(pl.col("paid") | pl.col("usage_estimated"))["cost_usd"].null_count(),
        at_most_usd=None if more.has_nulls() else Decimal(more.sum()),
        uncertain=more.null_count() + int((more > 0).sum()),
        estimated=int(own.filter(parts.IS_REQUEST)["usage_estimated"].sum()),
        latencies=latencies,
        targets={
            name: (number, None if unknown else Decimal(usd))
            for name, number, usd, unknown in named.agg(
                parts.IS_REQUEST.sum(), usd=pl.col("cost_usd").sum(), unknown=pl.col("cost_usd").null_count()
            ).iter_rows()
        },
        lanes=by_lane(own),
        first_at=_epoch(first),
        last_at=_epoch(last),
    )


def _epoch(at: datetime | None) -> float | None:
    return None if at is None else at.replace(tzinfo=UTC).timestamp()


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other
