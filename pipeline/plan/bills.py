"""Who answers which part of the calls, in which lanes, and at which price.

Ranks, limits and weights divide the calls among the targets. Each puts what its lanes say into batches; what is left
is divided among them as if there were no batches: whoever has room answers it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain
from math import inf

from pipeline.plan.amounts import Cell, Work, total
from pipeline.plan.answerers import Answerer, apart, joint, parts
from pipeline.plan.costs import Share, Tariff
from pipeline.plan.laned import Batch, LanePlan, laned
from pipeline.plan.pace import Load
from pipeline.plan.plans import TargetPlan
from pipeline.plan.timing import Timeline, timeline


@dataclass(frozen=True, slots=True)
class Asked:
    """The calls of a plan."""

    work: Work  # as expected, all that has no answer yet
    fresh: Work  # what of it is in no batch
    largest_tokens: int
    depth: int
    longest_answer: int | None
    rows: int  # of a run that begins anew; 0: it goes on


@dataclass(frozen=True, slots=True)
class Bill:
    """What one target answers of the calls under one rule, and at which price."""

    rule: int
    answerer: Answerer
    tariff: Tariff
    part: float  # of the calls of the rule, before lanes
    batched: float = 0.0  # those that go to its batches
    live: float = 0.0  # those that it answers live
    lanes: LanePlan | None = None  # of all its parts; None: all in standard

    def part_of(self, work: Work) -> Work:
        """What it answers of some work."""
        return _times(work, self.rule, self.batched + self.live)

    def by_day(self, work: Work, shares: Sequence[Share]) -> Mapping[date, Decimal] | None:
        """USD of that by date, as its lanes make it; None: the price is unknown."""
        return replace(self.tariff, factor=self.tariff.factor * self._factor).by_day(self.part_of(work), shares)

    def usd(self, work: Work, shares: Sequence[Share]) -> Decimal | None:
        """USD of that; None: the price is unknown."""
        by_day = self.by_day(work, shares)
        return None if by_day is None else sum(by_day.values(), Decimal(0))

    @property
    def _factor(self) -> Decimal:
        """What its lanes make of the standard price."""
        whole = self.batched + self.live
        if not self.lanes or not whole:
            return Decimal(1)
        return Decimal((self.batched * self.lanes.batch_factor + self.live * self.lanes.live_factor) / whole)


@dataclass(frozen=True, slots=True)
class Bills:
    """All of them: together they are all calls."""

    bills: tuple[Bill, ...]
    timeline: Timeline  # of the target that takes longest for its part, in the live lanes
    lanes: tuple[LanePlan, ...]
    divided: tuple[Mapping[str, float], ...]  # calls of each target before lanes, by the number of the rule

    def usd(self, work: Work, shares: Sequence[Share]) -> Decimal | None:
        """USD of some work; None: a price is unknown."""
        return _added(bill.usd(work, shares) for bill in self.bills)

    def targets(self, work: Work, shares: Sequence[Share], named: Iterable[tuple[str, str]]) -> tuple[TargetPlan, ...]:
        """How much each of them answers, by their names and models."""
        found = []
        for name, model in named:
            own = [bill for bill in self.bills if bill.answerer.name == name]
            calls = sum(total(bill.part_of(work)).prompts for bill in own)
            found.append(TargetPlan(name, model, calls, _added(bill.usd(work, shares) for bill in own)))
        return tuple(found)


def left_of(parts: Mapping[str, float], made: Mapping[str, float], left: float) -> Mapping[str, float]:
    """What is left to each target of its part; together it is all that is `left`, whoever answered the rest.

    Some of what a target was to answer another may have, or the cache.
    """
    own = {name: max(0.0, part - made.get(name, 0.0)) for name, part in parts.items()}
    whole = sum(own.values())
    if not whole:
        own, whole = dict(parts), sum(parts.values())
    return {name: some * left / whole if whole else 0.0 for name, some in own.items()}


def shares_of(rule: Mapping[str, float], parts: Mapping[str, float], left: Mapping[str, float]) -> Mapping[str, float]:
    """Each target's share of what is left of the calls of a rule: it had so many, and has done some of its part."""
    left_of_it = {name: some * left[name] / parts[name] for name, some in rule.items() if parts[name]}
    own = left_of_it if any(left_of_it.values()) else rule
    whole = sum(own.values())
    return {name: some / whole for name, some in own.items()} if whole else {}


def billed(
    asked: Asked,
    answerers: Sequence[Sequence[Answerer]],
    start: datetime,
    by: datetime | None,
    out: Sequence[Batch] = (),
) -> Bills:
    """Who answers what, `answerers` being those of each rule, in a run that starts at `start` and should end `by`.

    What waits in batches that are `out` is of the parts of their targets, and of no bill.
    """
    within_s = (by - start).total_seconds() if by else inf
    rules = [apart(each) for each in answerers]
    bills = [bill for rule, each in enumerate(rules) for bill in _divided(asked, rule, each, within_s, start)]
    divided = tuple(
        {bill.answerer.name: bill.part * _of(asked.work, rule).prompts for bill in bills if bill.rule == rule}
        for rule in range(len(rules))
    )
    own_parts = {name: sum(rule.get(name, 0.0) for rule in divided) for name in dict.fromkeys(chain(*divided))}
    waiting = Counter[str]()
    for batch in out:
        waiting[batch.target] += batch.lines
    left = left_of(own_parts, waiting, total(asked.fresh).prompts) if out else own_parts
    timelines: dict[str, Timeline] = {}
    plans: dict[str, LanePlan] = {}
    for name in own_parts:
        own = [bill for bill in bills if bill.answerer.name == name]
        work = {tier: cell for bill in own for tier, cell in _times(asked.work, bill.rule, bill.part).items()}
        cell, first = total(work), own[0]
        pace = joint([first.answerer], cell, asked.longest_answer)
        load = Load(round(cell.prompts), round(cell.input_tokens), asked.largest_tokens, asked.depth)
        timelines[name] = timeline(load, pace, start)
        seconds, batches = timelines[name].seconds, [batch for batch in out if batch.target == name]
        made = laned(first.answerer, work, cell, seconds, first.tariff, start, by, asked.rows, left[name], batches)
        if made:
            plans[name] = made
    if out:
        bills = [_left(bill, shares_of(divided[bill.rule], own_parts, left)) for bill in bills]
    bills = [
        replace(bill, lanes=plans.get(bill.answerer.name))
        for rule in range(len(rules))
        for bill in _laned(asked, rule, [bill for bill in bills if bill.rule == rule], plans, within_s)
    ]
    longest = max(timelines.values(), key=lambda each: each.seconds)
    return Bills(tuple(bills), longest, tuple(_lived(made, asked, bills) for made in plans.values()), divided)


def _left(bill: Bill, shares: Mapping[str, float]) -> Bill:
    """Its part of what is in no batch."""
    part = shares.get(bill.answerer.name, bill.part)
    return replace(bill, part=part, live=part)


def _lived(made: LanePlan, asked: Asked, bills: Sequence[Bill]) -> LanePlan:
    """With what its target answers live."""
    own = [bill for bill in bills if bill.answerer.name == made.target]
    return replace(made, live=sum(bill.live * _of(asked.fresh, bill.rule).prompts for bill in own))


def _divided(
    asked: Asked, rule: int, answerers: Sequence[Answerer], within_s: float, start: datetime
) -> Iterable[Bill]:
    """Their parts of the calls under one rule, by ranks, limits and weights."""
    day = start.astimezone(UTC).date()
    for answerer, part in zip(answerers, _parts(_of(asked.work, rule), answerers, within_s), strict=True):
        if part > 0.0:
            tariff = Tariff(answerer.model, day, answerer.own, factor=answerer.factor)
            yield Bill(rule, answerer, tariff, part, live=part)


def _laned(
    asked: Asked, rule: int, bills: Sequence[Bill], plans: Mapping[str, LanePlan], within_s: float
) -> Iterable[Bill]:
    """The bills of one rule with what goes to batches, and with what each is left to answer live."""
    plans_of = [plans.get(bill.answerer.name) for bill in bills]
    batched = [bill.part * made.lanes.batch if made else 0.0 for bill, made in zip(bills, plans_of, strict=True)]
    answerers = [bill.answerer for bill in bills]
    if not any(batched) and not any(answerer.weight for answerer in answerers):
        return bills
    left = max(0.0, 1.0 - sum(batched))
    lives = _parts(Cell().plus(_of(asked.fresh, rule), left), list(map(_paced, answerers)), within_s)
    return [
        replace(bill, batched=some, live=live * left) for bill, some, live in zip(bills, batched, lives, strict=True)
    ]


def _paced(answerer: Answerer) -> Answerer:
    """As it is asked live: weights hold as long as both have room, and one that keeps to a pace never has any."""
    return answerer if answerer.has_no_pace else replace(answerer, weight=0.0)


def _parts(cell: Cell, answerers: Sequence[Answerer], within_s: float) -> Sequence[float]:
    """Which part each of them answers of some calls; together 1."""
    if len(answerers) == 1 or not cell.prompts:
        return [1.0] + [0.0] * (len(answerers) - 1)
    sent = parts(answerers, cell.prompts, cell.input_tokens / cell.prompts, within_s)
    whole = sum(sent)
    return [some / whole for some in sent]


def _of(work: Work, rule: int) -> Cell:
    """The calls under one rule."""
    return total({tier: cell for tier, cell in work.items() if tier.rule == rule})


def _times(work: Work, rule: int, part: float) -> Work:
    return {tier: Cell().plus(cell, part) for tier, cell in work.items() if tier.rule == rule}


def _added(amounts: Iterable[Decimal | None]) -> Decimal | None:
    found = list(amounts)
    return None if None in found else sum((usd for usd in found if usd), Decimal(0))
