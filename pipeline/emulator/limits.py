"""Four ways in which a server may count a minute, and the day.

Nobody outside knows which algorithm the service uses, so a client must hold with each. Times are the server's clock in
seconds since the epoch; the minute's boundary is second 00.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, time, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

MINUTE = 60.0
PACIFIC = ZoneInfo("America/Los_Angeles")
_TINY = 1e-9


class Meter(Protocol):
    """One quota's counter; calls come with times that never decrease."""

    def delay(self, now: float, amount: int) -> float:
        """Seconds until `amount` may fit; 0: it fits now."""
        ...

    def add(self, now: float, amount: int) -> None:
        """Count `amount`, whether it fits or not."""
        ...


class FixedWindow:
    """A counter that restarts every minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._window = -1
        self._used = 0

    def delay(self, now: float, amount: int) -> float:
        """Seconds to the next window when `amount` does not fit into this one."""
        self._roll(now)
        return 0.0 if self._used + amount <= self._limit else (self._window + 1) * MINUTE - now

    def add(self, now: float, amount: int) -> None:
        """Count in this window."""
        self._roll(now)
        self._used += amount

    def _roll(self, now: float) -> None:
        window = math.floor(now / MINUTE)
        if window != self._window:
            self._window, self._used = window, 0


class SlidingLog:
    """Every minute that ends now: an exact sum over (now - 60 s, now]."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._log: deque[tuple[float, int]] = deque()
        self._used = 0

    def delay(self, now: float, amount: int) -> float:
        """Seconds until enough of the log has aged out."""
        self._roll(now)
        excess = self._used + amount - self._limit
        if excess <= 0:
            return 0.0
        for at, counted in self._log:
            excess -= counted
            if excess <= 0:
                return at + MINUTE - now
        return MINUTE

    def add(self, now: float, amount: int) -> None:
        """Append to the log."""
        self._roll(now)
        self._log.append((now, amount))
        self._used += amount

    def _roll(self, now: float) -> None:
        while self._log and self._log[0][0] <= now - MINUTE:
            self._used -= self._log.popleft()[1]


class SlidingCounter:
    """This window's count plus the last one's, weighted by the share of it that the sliding minute still covers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._window = -1
        self._last = 0
        self._used = 0

    def delay(self, now: float, amount: int) -> float:
        """Seconds until the last window weighs little enough, or to the next window."""
        self._roll(now)
        weighted = self._last * (1 - (now / MINUTE - self._window))
        excess = weighted + self._used + amount - self._limit
        if excess <= _TINY:
            return 0.0
        if 0 < excess <= weighted:
            return excess / self._last * MINUTE
        return (self._window + 1) * MINUTE - now

    def add(self, now: float, amount: int) -> None:
        """Count in this window."""
        self._roll(now)
        self._used += amount

    def _roll(self, now: float) -> None:
        window = math.floor(now / MINUTE)
        if window != self._window:
            self._last = self._used if window == self._window + 1 else 0
            self._window, self._used = window, 0


class TokenBucket:
    """A bucket that holds one minute's worth, starts full and refills steadily."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._level = float(limit)
        self._at = -math.inf

    def delay(self, now: float, amount: int) -> float:
        """Seconds until the bucket has refilled enough."""
        self._roll(now)
        missing = amount - self._level
        return 0.0 if missing <= _TINY else missing / self._limit * MINUTE

    def add(self, now: float, amount: int) -> None:
        """Take out; below zero it has to refill first."""
        self._roll(now)
        self._level -= amount

    def _roll(self, now: float) -> None:
        if now > self._at:
            self._level = min(float(self._limit), self._level + (now - self._at) * self._limit / MINUTE)
            self._at = now


class Closed:
    """A limit of 0: the model is not offered; the delay means nothing, as the service's own."""

    def delay(self, now: float, amount: int) -> float:
        """The rest of this minute."""
        return rest_of_minute(now)

    def add(self, now: float, amount: int) -> None:
        """Nothing to count."""


class DayWindow:
    """A counter that restarts at midnight Pacific."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ends = -math.inf
        self._used = 0

    def delay(self, now: float, amount: int) -> float:
        """Seconds to the next midnight when the day is used up."""
        self._roll(now)
        return 0.0 if self._used + amount <= self._limit else self._ends - now

    def add(self, now: float, amount: int) -> None:
        """Count in this day."""
        self._roll(now)
        self._used += amount

    def _roll(self, now: float) -> None:
        if now >= self._ends:
            self._ends, self._used = next_midnight(now), 0


ALGORITHMS: Mapping[str, Callable[[int], Meter]] = {
    "fixed": FixedWindow,
    "log": SlidingLog,
    "counter": SlidingCounter,
    "bucket": TokenBucket,
}


def next_midnight(now: float) -> float:
    """The next midnight Pacific, in seconds since the epoch; days of 23 and 25 hours included."""
    tomorrow = datetime.fromtimestamp(now, PACIFIC).date() + timedelta(days=1)
    return datetime.combine(tomorrow, time(), PACIFIC).timestamp()


def rest_of_minute(now: float) -> float:
    """Seconds to second 00."""
    return MINUTE - now % MINUTE
