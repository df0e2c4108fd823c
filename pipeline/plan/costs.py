"""Work to USD: by price tier and lane, on the days that the calls fall on, and what a user should know of the price."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from pipeline.models import answering, model_info
from pipeline.plan.amounts import Work
from pipeline.prices import HORIZON, Lane, PriceChange, Rates, effective_rates, price_changes

Share = tuple[date, float]
"""Part of a run's calls that are made on one UTC date."""

Tariff = Mapping[bool, Rates | None]
"""Rates of short prompts, and with True of long ones; None: the price is unknown."""

TOLD_AHEAD = timedelta(days=30)
"""A change so soon after the end of a run is told: a later start would pay it."""

_NO_SUCCESSOR = "no successor is known"


def tariff(model: str, day: date, lane: Lane = "standard", own: Rates | None = None) -> Tariff:
    """Rates of `model` on `day` (UTC); the job's `own` replace those of the tables."""
    return {long: effective_rates(model, day, lane, long, own) for long in (False, True)}


def priced(work: Work, at: Tariff) -> Decimal | None:
    """USD of `work`, thinking billed as output; None: the price is unknown."""
    usd = Decimal(0)
    for tier, cell in work.items():
        rates = at[tier.long]
        if rates is None:
            return None
        usd += rates.usd(*map(Decimal, (cell.input_tokens, cell.cached_tokens, cell.answer_tokens)))
    return usd


def cost_by_day(
    work: Work, model: str, days: Iterable[Share], own: Rates | None = None
) -> Mapping[date, Decimal] | None:
    """USD by UTC date when `work` is spread over `days`, whose shares add up to 1; None: the price is unknown."""
    by_day: dict[date, Decimal] = {}
    for day, share in days:
        usd = priced(work, tariff(model, day, own=own))
        if usd is None:
            return None
        by_day[day] = usd * Decimal(share)
    return by_day


def cost_over(work: Work, model: str, days: Iterable[Share], own: Rates | None = None) -> Decimal | None:
    """The same in all."""
    by_day = cost_by_day(work, model, days, own)
    return None if by_day is None else sum(by_day.values(), Decimal(0))


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


def notices(
    model: str,
    start: datetime,
    finish: datetime,
    own: Rates | None = None,
    by_day: Mapping[date, Decimal] | None = None,
) -> tuple[str, ...]:
    """What happens to the price of `model`, or to itself, during the run or within `TOLD_AHEAD` after it.

    `by_day` is the cost as `cost_by_day` splits it, to say how much of it a change concerns. With the job's `own` rates
    only models that are switched off are told.
    """
    first, last = start.astimezone(UTC).date(), finish.astimezone(UTC).date()
    changes = price_changes(model, first, last + TOLD_AHEAD)
    until = [*(change.day for change in changes), date.max][1:]
    told = list(_switched_off(model, first, last, own))
    for change, following in zip(changes, until, strict=True):
        if own and not change.successor:
            continue
        concerned = sum((usd for day, usd in (by_day or {}).items() if change.day <= day < following), Decimal(0))
        told.append(_sentence(change, change.day <= last, None if own else concerned))
    return tuple(told)


def _switched_off(model: str, first: date, last: date, own: Rates | None) -> Iterator[str]:
    """Of a model that another answers for since before the run, or that goes without a successor."""
    known = model_info(model)
    if known is None or known.off is None:
        return
    if known.off <= first:
        instead = f"{answering(model, first)} answers" + ("" if own else ", at its price")
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
