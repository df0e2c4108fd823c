"""The lanes of a plan: which part of each target's calls goes to which lane, at which cost, until when."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from math import inf

from pipeline.plan.amounts import Cell, Range, Work
from pipeline.plan.answerers import Answerer
from pipeline.plan.costs import Tariff
from pipeline.plan.lanes import AUTO_S, SCOUTED_ROWS, SCOUTS, Cost, Given, Lanes, Out, Some, plan
from pipeline.records import Lane

_CHEAPER: tuple[Lane, ...] = ("flex", "batch")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of a target that is out."""

    target: str
    number: int
    lines: int
    age_s: float


@dataclass(frozen=True, slots=True)
class LanePlan:
    """How the calls of one target go by lane. A run begins with it, and plans anew from `given` with what is left.

    What goes to no batch is answered by whoever has room, `live` prompts of it by this target.
    """

    target: str  # its name in the job file
    start: datetime
    by: datetime | None  # the deadline; None: there is none
    whole: Some  # its part, of which some may wait in batches already
    given: Given
    lanes: Lanes
    standard_usd: Decimal | None  # what that part costs in the standard lane; None: the price is unknown
    live: float
    flex_of_live: float  # share of them that flex is expected to serve

    @property
    def batched(self) -> float:
        """Prompts that go to its batches."""
        return self.lanes.batch * self.given.left.prompts

    @property
    def batch_factor(self) -> float:
        """What one costs in batch, in units of the standard price, with what falls back."""
        made = self.lanes
        live = (1.0 - made.batch) * self.live_factor
        return max(0.0, made.cost.expected - live) / made.batch if made.batch else 0.0

    @property
    def live_factor(self) -> float:
        """What one costs that goes to no batch."""
        return 1.0 - self.flex_of_live * (1.0 - self.given.factors.get("flex", 1.0))

    @property
    def parts(self) -> tuple["LanePart", ...]:
        """What goes to each lane at first, the one that is called in before the others first; none that gets nothing.

        The cost of batch is that of what falls back too.
        """
        made, flex = self.lanes, self.live * self.flex_of_live
        parts: tuple[tuple[Lane, float, float, float | None], ...] = (
            ("batch", self.batched, self.batch_factor, made.batch_call_s),
            ("flex", flex, self.given.factors.get("flex", 1.0), made.flex_call_s),
            ("standard", self.live - flex, 1.0, None),
        )
        return tuple(
            LanePart(self.target, lane, prompts, self._usd(prompts * factor), self._moment(call_s))
            for lane, prompts, factor, call_s in parts
            if round(prompts)
        )

    def _usd(self, standard_prompts: float) -> Decimal | None:
        if self.standard_usd is None:
            return None
        return self.standard_usd * Decimal(standard_prompts / self.whole.prompts)

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
    answerer: Answerer,
    work: Work,
    cell: Cell,
    seconds: float,
    tariff: Tariff,
    start: datetime,
    by: datetime | None,
    rows: int,
    left: float,
    out: Sequence[Batch],
) -> LanePlan | None:
    """The lanes of one target's part of the calls, which takes so many seconds live; None: all in standard.

    `left` prompts of it are in none of its batches that are `out`. `rows` are those of a run that begins anew, else 0:
    some of many go ahead of its batches.
    """
    if answerer.choice == "standard" or not cell.prompts:
        return None
    standard = tariff.usd(work)
    tokens = answerer.limits.batch_tokens or answerer.waiting_tokens
    if by is None and answerer.choice == "auto":
        by = start + timedelta(seconds=AUTO_S)
    whole = Some(cell.prompts, seconds, float(standard or 0))
    given = Given(
        mode=answerer.choice,
        left=whole.part(left / cell.prompts),
        within_s=None if by is None else (by - start).total_seconds(),
        factors=factors(work, tariff, standard),
        latency=answerer.latency,
        lost=answerer.lost,
        room_s=seconds * tokens / cell.input_tokens if tokens and cell.input_tokens else inf,
        grows=not answerer.limits.batch_tokens,
        out=tuple(Out(each.number, whole.part(each.lines / cell.prompts), each.age_s) for each in out),
    )
    made = plan(given)
    ahead = max(SCOUTS, made.flex_first)
    if made.batch and rows >= SCOUTED_ROWS and ahead < rows:
        given = replace(given, fallen=ahead / rows)
        made = plan(given)
    live = made if made.batch < 1.0 else plan(replace(given, fallen=1.0))  # where another target's part is live
    flex_of_live = live.flex / (live.flex + live.standard)
    if made.batch and answerer.choice == "batch":  # what goes ahead is asked in standard
        flex_of_live *= max(0.0, 1.0 - given.fallen / (1.0 - live.batch))
    return LanePlan(
        answerer.name, start, by, whole, given, made, standard, (1.0 - made.batch) * given.left.prompts, flex_of_live
    )


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


def ranged(cost: Range | None, plans: Iterable[tuple[Decimal | None, LanePlan | None]]) -> Range | None:
    """A cost that is expected in these lanes, from all in time at the least, to all fallen back at the most.

    `plans` are the lanes of each part of it, and what that part is expected to cost.
    """
    if cost is None:
        return cost
    low = expected = high = Decimal(0)
    for usd, made in plans:
        if usd is None:
            return cost
        bounds = made.lanes.cost if made and made.lanes.cost.expected else Cost(1.0, 1.0, 1.0)
        low += usd * Decimal(bounds.low / bounds.expected)
        expected += usd
        high += usd * Decimal(bounds.high / bounds.expected)
    if not expected:
        return cost
    return Range(cost.low * low / expected, cost.expected, cost.high * high / expected)
