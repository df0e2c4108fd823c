"""The day's quota: how much of it is used, and when the next day begins."""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from math import ceil
from zoneinfo import ZoneInfo

from pipeline.records import RESET_ZONE

RESET_JITTER_S = 5.0
"""Added to the reset, so that a clock a little ahead does not ask a second too early."""
LONGEST_DAY_S = 25 * 3600.0
"""No day's quota stays away for longer: a delay beyond it is a mistake, or the clock was set back since."""
_LONG_S = 3600.0


def day_of(now: float, zone: str = RESET_ZONE) -> str:
    """The quota day (YYYY-MM-DD) at `now`, in epoch seconds."""
    return _day_of(now // 60.0, zone)


@lru_cache(maxsize=16)  # asked for every request
def _day_of(minute: float, zone: str) -> str:
    return datetime.fromtimestamp(minute * 60.0, ZoneInfo(zone)).date().isoformat()


def next_reset(now: float, zone: str = RESET_ZONE) -> float:
    """Epoch seconds of the first midnight in `zone` after `now`; a day there can have 23 or 25 hours."""
    where = ZoneInfo(zone)
    tomorrow = datetime.fromtimestamp(now, where).date() + timedelta(days=1)
    return datetime.combine(tomorrow, time(), where).timestamp()


def until_text(now: float, then: float) -> str:
    """Both ways to say when: "at 2026-11-23 08:00 UTC (in 5 h 12 min)"; epoch seconds."""
    minutes = max(0, ceil((then - now) / 60))
    at = datetime.fromtimestamp(then, UTC)
    return f"at {at:%Y-%m-%d %H:%M} UTC (in {minutes // 60} h {minutes % 60} min)"


class DailyQuota:
    """Requests of the day, over all runs that share the counter behind `count`; times are epoch seconds."""

    def __init__(
        self,
        limit: int | None,
        *,
        count: Callable[[str], int],
        zone: str = RESET_ZONE,
        closed_until: float | None = None,
    ) -> None:
        """`count(day)` reads how many requests a day (YYYY-MM-DD) has had; without `limit` only the service tells.

        `closed_until`: an earlier run was told that this day is used up.
        """
        self._limit = limit
        self._count = count
        self._zone = zone
        self._closed_until = closed_until

    def opens_at(self, now: float) -> float | None:
        """None while the day has requests left, else when the next day begins."""
        if self._closed_until is not None and 0 < self._closed_until - now <= LONGEST_DAY_S + RESET_JITTER_S:
            return self._closed_until
        if self._limit is None or self._count(self.today(now)) < self._limit:
            return None
        return next_reset(now, self._zone) + RESET_JITTER_S

    def exhausted(self, now: float, retry_after_s: float | None) -> float:
        """The service says that the day is used up; returns when the next begins.

        A delay of hours that it names is believed, up to `LONGEST_DAY_S`; one of seconds repeats its minute window.
        """
        if retry_after_s is not None and retry_after_s > _LONG_S:
            self._closed_until = now + min(retry_after_s, LONGEST_DAY_S)
        else:
            self._closed_until = next_reset(now, self._zone) + RESET_JITTER_S
        return self._closed_until

    def use(self, now: float) -> tuple[int, int] | None:
        """Requests of the day, and how many it may have; None where nobody says how many."""
        return None if self._limit is None else (self._count(self.today(now)), self._limit)

    def today(self, now: float) -> str:
        """The quota day (YYYY-MM-DD) at `now`."""
        return day_of(now, self._zone)

    def has_begun_since(self, then: float, now: float) -> bool:
        """Whether another quota day began between two moments."""
        return day_of(then, self._zone) < self.today(now)
