"""How long a run takes, on which days, what limits it, and what would make it end in time."""

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from math import ceil, log
from typing import Any
from zoneinfo import ZoneInfo

from pipeline.errors import JobError
from pipeline.plan.pace import Bound, Load, Pace, Sending, sending
from pipeline.quota.daily import RESET_JITTER_S, next_reset
from pipeline.quota.pacer import WINDOW_S
from pipeline.records import Limits

DAYS_LISTED = 30
"""Beyond so many days of quota the rest is told as one stretch."""

_DAY_S = 86_400.0
_ENOUGH = 10**15  # of any limit: it never binds
_LAST = datetime(9999, 12, 1, tzinfo=UTC)  # the calendar ends soon after


@dataclass(frozen=True, slots=True)
class Day:
    """Prompts of one day of quota, or of `days` in a row: from when the first may leave to the last answer."""

    starts_at: datetime
    ends_at: datetime
    prompts: int
    days: int = 1


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a run does its work if it starts now and sleeps through days that are used up (`--wait`)."""

    seconds: float  # from the start to the last answer
    finish_at: datetime  # no later than the end of the calendar
    days: tuple[Day, ...]  # with `rpd`, one for each day that has prompts
    bound: Bound
    ungrown_s: float | None  # if unknown limits stay what a run begins with; None: all limits are known

    @property
    def nights(self) -> int:
        """Days of quota that it takes."""
        return sum(day.days for day in self.days)


@dataclass(frozen=True, slots=True)
class Deadline:
    """Whether a run ends in time, and what would make it so."""

    at: datetime
    margin_s: float  # what is left over; negative: what is missing
    prompts_done: int  # answered by then
    share_done: float  # of all prompts
    needed: Limits | None  # least values of the limits that must be higher, None where not; None: nothing helps

    @property
    def fits(self) -> bool:
        """Whether the last answer comes in time."""
        return self.margin_s >= 0.0


def timeline(load: Load, pace: Pace, start: datetime) -> Timeline:
    """What the run's own limiter makes of `load` from `start` on (aware), if the service refuses nothing.

    How near that is to the dispatcher, `pace` says. Unknown limits grow unhindered; the service's minute is taken to be
    that of the clock.
    """
    begun = start.timestamp()
    if load.prompts <= 0:
        return Timeline(0.0, _moment(begun), (), "none", None)
    opens = max(begun, pace.opens_at)
    days, last = _days(load.prompts, pace, replace(sending(load, pace, opens % WINDOW_S), begun=opens))
    sent_at, tail_s = last.at(load.prompts), _tail_s(load, pace, last)
    finish = sent_at + tail_s
    waits = tail_s >= sent_at - last.begun
    bound: Bound = "rpd" if last.begun > begun else "latency" if waits else last.bound(load.prompts)
    days[-1] = replace(days[-1], ends_at=_moment(finish))
    is_known = pace.ungrown == pace.limits
    ungrown_s = None if is_known else timeline(load, replace(pace, limits=pace.ungrown), start).seconds
    return Timeline(finish - begun, _moment(finish), tuple(days), bound, ungrown_s)


def deadline(load: Load, pace: Pace, start: datetime, at: datetime) -> Deadline:
    """Whether `load`, begun at `start`, is answered by `at`; both aware. What would help is found by `timeline` too."""

    def ends_in_time(part: Load, limits: Limits) -> bool:
        return timeline(part, replace(pace, limits=limits), start).finish_at <= at

    def too_many(prompts: int) -> bool:
        tokens, depth = round(load.mean_tokens * prompts), min(load.depth, prompts)
        return not ends_in_time(replace(load, prompts=prompts, input_tokens=tokens, depth=depth), pace.limits)

    margin_s = (at - timeline(load, pace, start).finish_at).total_seconds()
    if margin_s >= 0 or not load.prompts:
        return Deadline(at, margin_s, load.prompts, 1.0, Limits())
    done = bisect_left(range(1, load.prompts), True, key=too_many)
    needed = _needed(pace.limits, load.prompts, lambda limits: ends_in_time(load, limits))
    return Deadline(at, margin_s, done, done / load.prompts, needed)


def next_time(text: str, now: datetime) -> datetime:
    """As `time_after`; raises `JobError` for what is past, too."""
    at = time_after(text, now)
    if at <= now:
        told = f"{text!r} is past: it is {now.astimezone():%Y-%m-%d %H:%M} now"
        raise JobError(told, 'write "07:00" for the next morning')
    return at


def time_after(text: str, since: datetime) -> datetime:
    """The moment that a person meant at `since` by "07:00" (the next), "2026-11-24 07:00" or any ISO time.

    Local unless it says. Raises `JobError` for what is no time.
    """
    local = since.astimezone().replace(tzinfo=None)
    try:
        if clock := re.fullmatch(r"(\d{1,2}):(\d{2})", text.strip()):
            when = datetime.combine(local.date(), time(int(clock[1]), int(clock[2])))
            return (when if when > local else when + timedelta(days=1)).astimezone()
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError) as error:
        raise JobError(f"{text!r} is not a time", 'write "07:00" or "2026-11-24 07:00"') from error


def _days(prompts: int, pace: Pace, last: Sending) -> tuple[list[Day], Sending]:
    """Days of quota, and the sending of the last."""
    days: list[Day] = []
    rpd, zone, now, done = pace.limits.rpd, pace.limits.reset_zone, last.begun, 0
    if not rpd:
        return [Day(_moment(now), _moment(now), prompts)], last
    left_today = max(0, rpd - pace.used_today)
    while len(days) < DAYS_LISTED:
        reset = next_reset(now, zone)
        sent = min(prompts, done + left_today)
        passes = last.at(sent) > reset
        if passes:
            sent = last.until(reset, prompts)
        if sent > done:
            days.append(Day(_moment(now), _moment(reset if passes else last.at(sent) + pace.latency_s), sent - done))
        if sent == prompts:
            return days, last
        done, left_today, now = sent, rpd, reset
        if not passes:
            now += RESET_JITTER_S
            last = last.resumed(now, done)
    return _stretch(days, prompts - done, rpd, zone, now, last)


def _stretch(days: list[Day], left: int, rpd: int, zone: str, now: float, last: Sending) -> tuple[list[Day], Sending]:
    """The days after those that are listed: each uses up its quota, or none does."""
    done = sum(day.prompts for day in days)
    if last.at(last.done + rpd) - last.begun >= _DAY_S:
        count = 1 + int((last.at(done + left) - now) // _DAY_S)
    else:
        count = ceil(left / rpd)
        last = last.resumed(_midnight(now, count - 1, zone) + RESET_JITTER_S, done + (count - 1) * rpd)
    return [*days, Day(_moment(now), _moment(now), left, count)], last


def _tail_s(load: Load, pace: Pace, last: Sending) -> float:
    """From the last prompt to the last answer.

    The longest chain is taken to begin last, which is at most the other answers of it too long. Of k answers on their
    way the slowest takes from the mean (k = 1) to `slow_s` (k = 100), about evenly in log k.
    """
    sent_at, others = last.at(load.prompts), min(load.depth, load.prompts - last.done) - 1
    chain_s = max(0.0, last.at(load.prompts - others) + others * pace.latency_s - sent_at)
    if pace.slow_s is None:
        return chain_s + pace.latency_s
    in_flight = load.prompts - last.until(sent_at - pace.latency_s, load.prompts)
    share = min(1.0, log(max(1, in_flight)) / log(100))
    return chain_s + pace.latency_s + share * (pace.slow_s - pace.latency_s)


def _needed(limits: Limits, prompts: int, fits: Callable[[Limits], bool]) -> Limits | None:
    """The least limits that fit, where the present ones do not: each in turn, those after it lifted."""
    tried = replace(limits, rpm=0, tpm=0, rpd=0, concurrency=prompts)
    if not fits(tried):
        return None
    needed: dict[str, Any] = {}
    for name in ("rpm", "tpm", "concurrency", "rpd"):
        kept = _with(tried, name, getattr(limits, name))
        if not fits(kept):
            needed[name] = _least(tried, name, fits)
            kept = _with(tried, name, needed[name])
        tried = kept
    return Limits(**needed)


def _least(limits: Limits, name: str, fits: Callable[[Limits], bool]) -> int:
    return 1 + bisect_left(range(1, _ENOUGH), True, key=lambda value: fits(_with(limits, name, value)))


def _with(limits: Limits, name: str, value: Any) -> Limits:
    return replace(limits, **{name: value})


def _midnight(now: float, days: int, zone: str) -> float:
    """When the quota of so many days later begins, at the latest where the calendar ends."""
    where = ZoneInfo(zone)
    today = datetime.fromtimestamp(now, where).date().toordinal()
    return datetime.combine(date.fromordinal(min(today + days, _LAST.toordinal())), time(), where).timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(seconds, _LAST.timestamp()), UTC)
