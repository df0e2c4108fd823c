"""Work to USD: by price tier and lane, on the days that the calls fall on, and what a user should know of the price."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from pipeline.models import answering, model_info
from pipeline.plan.amounts import Work
from pipeline.prices import HORIZON, PriceChange, Rates, effective_rates, price_changes, search_usd
from pipeline.records import Lane

Share = tuple[date, float]
"""Part of a run's calls that are made on one UTC date."""

TOLD_AHEAD = timedelta(days=30)
"""A change so soon after the end of a run is told: a later start would pay it."""

_NO_SUCCESSOR = "no successor is known"


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a model costs on one day (UTC) in one lane; the job's `own` rates replace those of the tables."""

    model: str
    day: date
    own: Rates | None = None
    lane: Lane = "standard"
    factor: Decimal = Decimal(1)  # times the price

    def rates(self, long: bool = False) -> Rates | None:
        """Rates of short or `long` prompts; None: the price is unknown."""
        return effective_rates(self.model, self.day, self.lane, long, self.own)

    def usd(self, work: Work) -> Decimal | None:
        """USD of `work`, thinking billed as output; None: the price is unknown."""
        usd = Decimal(0)
        for tier, cell in work.items():
            rates = self.rates(tier.long)
            if rates is None:
                return None
            tokens = cell.input_tokens, cell.cached_tokens, cell.answer_tokens, cell.sound_tokens
            usd += rates.usd(*map(Decimal, tokens))
            if cell.searches:
                searches, calls = Decimal(cell.searches), Decimal(min(cell.searches, cell.prompts))
                usd += search_usd(searches, calls, self.model, self.day, self.own)
        return usd * self.factor

    def by_day(self, work: Work, days: Iterable[Share]) -> Mapping[date, Decimal] | None:
        """USD by date when `work` is spread over `days`, whose shares add up to 1; None: the price is unknown."""
        by_day: dict[date, Decimal] = {}
        for day, share in days:
            usd = replace(self, day=day).usd(work)
            if usd is None:
                return None
            by_day[day] = usd * Decimal(share)
        return by_day


def split_by_day(slots: Iterable[tuple[datetime, datetime, float]]) -> tuple[Share, ...]:
    """Shares by UTC date of the calls made in slots of (starts at, ends at, calls), each made at an even pace.

    The slots come in order of time; what is later than `HORIZON` after the first of them is put on that date.
    """
    calls: dict[date, float] = {}
    last = date.max
    for starts_at, ends_at, number in slots:
        last = min(last, starts_at.astimezone(UTC).date() + HORIZON)
        for day, share in _days(starts_at.astimezone(UTC), ends_at.astimezone(UTC)):
            calls[min(day, last)] = calls.get(min(day, last), 0.0) + number * share
    whole = sum(calls.values())
    return tuple((day, number / whole) for day, number in sorted(calls.items()) if number)


def _days(starts_at: datetime, ends_at: datetime) -> Iterator[Share]:
    """Parts of a time by UTC date."""
    at, whole = starts_at, ends_at - starts_at
    while at.date() < ends_at.date():
        midnight = datetime.combine(at.date() + timedelta(1), time(), UTC)
        yield at.date(), (midnight - at) / whole
        at = midnight
    yield at.date(), (ends_at - at) / whole if whole else 1.0


def notices(at: Tariff, finish: datetime, by_day: Mapping[date, Decimal] | None = None) -> tuple[str, ...]:
    """What happens to the price of a model, or to itself, from the tariff's day on: until `finish` or soon after it.

    `by_day` is the cost as the tariff splits it, to say how much of it a change concerns. With the job's own rates only
    models that are switched off are told.
    """
    last = finish.astimezone(UTC).date()
    changes = price_changes(at.model, at.day, last + TOLD_AHEAD)
    until = [*(change.day for change in changes), date.max][1:]
    told = list(_switched_off(at, last))
    for change, following in zip(changes, until, strict=True):
        if at.own and not change.successor:
            continue
        concerned = sum((usd for day, usd in (by_day or {}).items() if change.day <= day < following), Decimal(0))
        told.append(_sentence(change, change.day <= last, None if at.own else concerned))
    return tuple(told)


def _switched_off(at: Tariff, last: date) -> Iterator[str]:
    """Of a model that another answers for since before the run, or that goes without a successor."""
    known = model_info(at.model)
    if known is None or known.off is None:
        return
    if known.off <= at.day:
        instead = f"{answering(at.model, at.day)} answers" + ("" if at.own else ", at its price")
        yield f"{known.name} was switched off on {known.off}: {instead if known.successor else _NO_SUCCESSOR}"
    elif known.successor is None and known.off <= last + TOLD_AHEAD:
        yield f"{known.name} is switched off on {known.off}: {_NO_SUCCESSOR}"


def _sentence(change: PriceChange, in_run: bool, concerned_usd: Decimal | None) -> str:
    """`concerned_usd` None: the job names its own prices."""
    when = f"on {change.day}" + (", in mid-run" if in_run else "")
    share = f"${concerned_usd:,.{2 if concerned_usd >= 1 else 4}f} of the cost is" if concerned_usd else ""
    if change.successor is None:
        text = f"the price of {answering(change.model, change.day)} {change.verb} {when}"
        return f"{text}: {share} at the new price" if share else text
    text = f"{change.model} is switched off {when}; then {change.successor} answers"
    if concerned_usd is None:
        return text
    if change.verb == "stays":
        return f"{text}, at the same price"
    return f"{text}, at its price" + (f": {share} at that price" if share else "")
