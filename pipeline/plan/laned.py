"""The lanes of a plan: which part of each target's calls goes to which lane, at which cost, until when."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from math import inf

from pipeline.plan.amounts import Cell, Range, Work
from pipeline.plan.answerers import Answerer
from pipeline.plan.costs import Tariff
from pipeline.plan.lanes import AUTO_S, Given, Lanes, Some, plan
from pipeline.records import Lane

_CHEAPER: tuple[Lane, ...] = ("flex", "batch")


@dataclass(frozen=True, slots=True)
class LanePlan:
    """How the calls of one target go by lane. A run begins with it, and plans anew from `given` with what is left."""

    target: str  # its name in the job file
    start: datetime
    by: datetime | None  # the deadline; None: there is none
    given: Given
    lanes: Lanes
    standard_usd: Decimal | None  # what its calls cost in the standard lane; None: the price is unknown

    @property
    def parts(self) -> tuple["LanePart", ...]:
        """What goes to each lane at first, the one that is called in before the others first; none that gets nothing.

        The cost of batch is that of what falls back too.
        """
        made, given = self.lanes, self.given
        flex_usd = made.flex * given.factors.get("flex", 1.0)
        batch_usd = max(0.0, made.cost.expected - flex_usd - made.standard)
        parts: tuple[tuple[Lane, float, float, float | None], ...] = (
            ("batch", made.batch, batch_usd, made.batch_call_s),
            ("flex", made.flex, flex_usd, made.flex_call_s),
            ("standard", made.standard, made.standard, None),
        )
        return tuple(
            LanePart(self.target, lane, share * given.left.prompts, self._usd(usd), self._moment(call_s))
            for lane, share, usd, call_s in parts
            if round(share * given.left.prompts)
        )

    def _usd(self, part: float) -> Decimal | None:
        return None if self.standard_usd is None else self.standard_usd * Decimal(part)

    def _moment(self, seconds: float | None) -> datetime | None:
        return None if seconds is None else self.start + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class LanePart:
    """The calls of one target that go to one lane at first."""

    target: str
    lane: Lane
    prompts: float
    cost_usd: Decimal | None
    last_call: datetime | None  # what is not answered there by then is asked in the lane above; None: nothing presses


def laned(
    answerer: Answerer, work: Work, cell: Cell, seconds: float, tariff: Tariff, start: datetime, by: datetime | None
) -> LanePlan | None:
    """The lanes of one target's part of the calls, which takes so many seconds live; None: all in standard."""
    if answerer.choice == "standard" or not cell.prompts:
        return None
    standard = tariff.usd(work)
    tokens = answerer.limits.batch_tokens or answerer.waiting_tokens
    if by is None and answerer.choice == "auto":
        by = start + timedelta(seconds=AUTO_S)
    given = Given(
        mode=answerer.choice,
        left=Some(cell.prompts, seconds, float(standard or 0)),
        within_s=None if by is None else (by - start).total_seconds(),
        factors=factors(work, tariff, standard),
        latency=answerer.latency,
        lost=answerer.lost,
        room_s=seconds * tokens / cell.input_tokens if tokens and cell.input_tokens else inf,
        grows=not answerer.limits.batch_tokens,
    )
    return LanePlan(answerer.name, start, by, given, plan(given), standard)


def factors(work: Work, tariff: Tariff, standard: Decimal | None) -> Mapping[Lane, float]:
    """What the cheaper lanes cost of the standard price; 1 where no price is known.

    A rehearsal, which costs nothing, goes by the prices of the tables.
    """
    found: dict[Lane, float] = {}
    if not standard and tariff.own:
        tariff = replace(tariff, own=None)
        standard = tariff.usd(work)
    for lane in _CHEAPER:
        usd = replace(tariff, lane=lane).usd(work)
        found[lane] = float(usd / standard) if standard and usd is not None else 1.0
    return found


def ranged(cost: Range | None, plans: Sequence[LanePlan | None], standards: Iterable[Decimal | None]) -> Range | None:
    """A cost that is expected in these lanes, from all in time at the least, to all fallen back at the most.

    `plans` and `standards`, the cost in the standard lane, are those of each target.
    """
    if cost is None or not any(plans):
        return cost
    low = expected = high = Decimal(0)
    for made, usd in zip(plans, standards, strict=True):
        if usd is None:
            return cost
        bounds = made.lanes.cost if made else None
        low += usd * Decimal(bounds.low if bounds else 1)
        expected += usd * Decimal(bounds.expected if bounds else 1)
        high += usd * Decimal(bounds.high if bounds else 1)
    if not expected:
        return cost
    return Range(cost.low * low / expected, cost.expected, cost.high * high / expected)
