"""How long a batch takes: what users of the services told, corrected by the batches that this key had of the model."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import erfc, inf, log, sqrt

from pipeline.store.latencies import End, Took

PRIOR_WEIGHS = 20.0
"""Batches of one's own that are believed as much as the prior."""
HALF_LIFE_S = 30 * 86_400.0
"""An old batch counts half after so long: services change."""
LONGEST_S = 48 * 3600.0
"""After which a service gives a batch up."""

_HOUR_S = 3600.0
_LOGNORMAL = ((0.75, 1 * _HOUR_S, log(3)), (0.20, 8 * _HOUR_S, log(1.6)))
"""Share, median and sigma: most come within hours, some over night (what users told of Gemini's batches until 2026-11).
The other 5 % never come: for days on end batches of all users were stuck in 2025-10, 2026-03, 2026-05 and 2026-09."""

TIMES = 32
"""At which the waits for room at the service are looked at, and the most of them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One batch: how long it took, or was waited for; `weight` is less than 1 for an old one."""

    seconds: float
    end: End
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Which share of batches is done after how long: see `learned`."""

    _times: tuple[float, ...] = ()  # of all that ended or were given up, ascending
    _after: tuple[float, ...] = (0.0,)  # weight of those that took longer than the first n of these times
    _open: tuple[tuple[float, float], ...] = ()  # when one was lost sight of, and what that multiplies the rest by
    weight: float = 0.0  # of all batches that it was learned from

    def done_by(self, seconds: float, age_s: float = 0.0) -> float:
        """The chance that a batch which is out for `age_s` is done within so many more seconds."""
        if seconds <= 0.0:
            return 0.0
        return 1.0 - min(1.0, self._left(age_s + seconds) / self._left(age_s))

    def within(self, share: float) -> float:
        """Seconds within which such a share of batches is done; infinite where so many never are."""
        if self.done_by(LONGEST_S) < share:
            return inf
        low, high = 0.0, LONGEST_S
        while high - low > 1.0:
            middle = (low + high) / 2
            low, high = (middle, high) if self.done_by(middle) < share else (low, middle)
        return high

    def _left(self, seconds: float) -> float:
        """The share that takes longer; never 0, as some of the prior never come."""
        known = PRIOR_WEIGHS * _prior_left(seconds) + self._after[bisect_right(self._times, seconds)]
        left = known / (PRIOR_WEIGHS + self.weight)
        for at, factor in self._open:
            if at > seconds:
                break
            left *= factor
        return left


PRIOR = Latency()
"""Before any batch of one's own."""


def seen(batches: Iterable[Took], now: float) -> list[Seen]:
    """Batches as they count at `now`, in epoch seconds: old ones less."""
    return [Seen(one.seconds, one.end, 0.5 ** (max(0.0, now - one.at) / HALF_LIFE_S)) for one in batches]


def learned(batches: Iterable[Seen]) -> Latency:
    """The prior corrected by these batches.

    One that is still waited for says only that it takes longer than so far: its weight is shared among all longer times
    in proportion to what is known of them (Susarla and Van Ryzin's estimate, 1976, for lives that are not at an end).
    """
    seen = [Seen(inf, "never", one.weight) if one.end == "never" else one for one in batches]
    seen.sort(key=lambda one: one.seconds)
    times = [one.seconds for one in seen]
    weight = left = sum(one.weight for one in seen)
    after = [weight]
    for one in seen:
        left -= one.weight
        after.append(left)
    lost: dict[float, float] = {}
    for one in seen:
        if one.end == "open":
            lost[one.seconds] = lost.get(one.seconds, 0.0) + one.weight
    factors = []
    for at, some in sorted(lost.items()):
        longer = PRIOR_WEIGHS * _prior_left(at) + after[bisect_right(times, at)]
        factors.append((at, (longer + some) / longer))
    return Latency(tuple(times), tuple(after), tuple(factors), weight)


class Turns:
    """Chances of the n-th batch of those that wait for one another, by so many seconds after the first is sent."""

    def __init__(self, latency: Latency, within_s: float) -> None:
        self._latency, self._step_s = latency, max(1.0, within_s / TIMES)
        self._tables: list[list[float]] = []

    def sent(self, turn: int, seconds: float) -> float:
        """That it is with the service."""
        return 1.0 if turn == 1 else self.done(turn - 1, seconds)

    def done(self, turn: int, seconds: float) -> float:
        """That it is done."""
        if turn == 1:
            return self._latency.done_by(seconds)
        if seconds <= 0.0 or turn > TIMES:
            return 0.0
        while len(self._tables) < turn:
            self._tables.append(self._next())
        at = min(TIMES, seconds / self._step_s)
        before = min(TIMES - 1, int(at))
        table = self._tables[turn - 1]
        return table[before] + (at - before) * (table[before + 1] - table[before])

    def _next(self) -> list[float]:
        """One more after the last: it begins when that one is done."""
        if not self._tables:
            return [self._latency.done_by(self._step_s * n) for n in range(TIMES + 1)]
        first, last = self._tables[0], self._tables[-1]
        some = [first[n + 1] - first[n] for n in range(TIMES)]
        return [sum(some[n] * (last[at - n] + last[at - n - 1]) / 2 for n in range(at)) for at in range(TIMES + 1)]


def _prior_left(seconds: float) -> float:
    if seconds <= 0.0:
        return 1.0
    never = 1.0 - sum(share for share, _, _ in _LOGNORMAL)
    return never + sum(
        share * 0.5 * erfc(log(seconds / median) / (sigma * sqrt(2))) for share, median, sigma in _LOGNORMAL
    )
