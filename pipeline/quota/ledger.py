"""Tokens per minute: an exact record of what was sent, asked what still fits under every way a server may count."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import inf, sqrt
from operator import attrgetter

from pipeline.calibration import EXACT, Margin
from pipeline.quota.pacer import JITTER_S, WINDOW_S
from pipeline.quota.server_clock import USABLE_S, MinutePhase

DEVIATIONS = 2.5
"""Standard deviations held back for the estimates in flight, all of them together."""
RECOMPUTE_S = 0.05
"""How long the costly bound over all phases is kept; in between it only grows, by what is sent."""
_KEEP_S = 2 * WINDOW_S + JITTER_S + USABLE_S + 1.0
_TRIM_AT = 1024
_LEAST_WAIT_S = 0.005


@dataclass(slots=True, eq=False)
class Charge:
    """One request: when it left and the input tokens it counts, reserved first and settled once."""

    at: float
    tokens: int
    requests: int
    index: int
    variance: float  # of a reservation, tokens squared
    bias: float  # tokens that all reservations may be off by together
    open: bool = True


class _Tail:
    """Running sum of the charges since an instant that moves forward, and now and then a little back."""

    __slots__ = ("requests", "start", "tokens")

    def __init__(self) -> None:
        self.start = 0
        self.tokens = 0
        self.requests = 0

    def move(self, charges: list[Charge], base: int, since: float) -> int:
        """Sum up what was charged at `since` or later; the tokens of it."""
        position = self.start - base
        while position < len(charges) and charges[position].at < since:
            self.tokens -= charges[position].tokens
            self.requests -= charges[position].requests
            position += 1
        while position > 0 and charges[position - 1].at >= since:
            position -= 1
            self.tokens += charges[position].tokens
            self.requests += charges[position].requests
        self.start = position + base
        return self.tokens


Amount = Callable[[Charge | _Tail], int]
_tokens: Amount = attrgetter("tokens")
_requests: Amount = attrgetter("requests")


class TokenLedger:
    """Every request of the last two minutes with its tokens.

    A prompt fits when it fits both rules: the tokens of any 60 s stay within `limit` (which also satisfies fixed
    windows and token buckets), and so does a counter per minute of the server's clock, the minute before weighted by
    the part of it that a sliding window still covers. Arrivals may be up to `JITTER_S` later than sends. While the
    server's minute is not known, the counter is bounded over all phases: safe, but some percent slower.

    All times are seconds of one clock that only goes forward; `now` never decreases from call to call.
    """

    def __init__(self, limit: float, phase: MinutePhase) -> None:
        self.limit = limit
        self._phase = phase
        self._charges: list[Charge] = []
        self._base = 0  # index of the first charge still kept
        self._minute, self._current, self._both = _Tail(), _Tail(), _Tail()
        self._variance = 0.0  # of the open reservations
        self._bias = 0.0
        self._used_at: float | None = None  # of the last answer of `used`, until a charge changes
        self._used = 0.0
        self._bound_at = -inf  # the bound over all phases: when it was computed, and what it was
        self._bound = 0.0

    def reserve(self, now: float, tokens: int, margin: Margin = EXACT) -> Charge:
        """Charge a request that leaves now; `margin` says how far off `tokens` may be."""
        self._trim(now)
        at = max(now, self._charges[-1].at) if self._charges else now  # what others sent is heard of late
        index, variance = self._base + len(self._charges), (margin.spread * tokens) ** 2
        charge = Charge(at, 0, 0, index, variance, margin.bias * tokens)
        self._charges.append(charge)
        self._variance += variance
        self._bias += charge.bias
        self._amend(charge, tokens, 1)
        return charge

    def settle(self, charge: Charge, tokens: int | None) -> None:
        """Close a reservation with what was really counted; None keeps what was reserved."""
        self._close(charge)
        if tokens is not None and tokens != charge.tokens:
            self._amend(charge, tokens, charge.requests)

    def release(self, charge: Charge) -> None:
        """Close a reservation of a request that provably never counted."""
        self._close(charge)
        self._amend(charge, 0, 0)

    def correct(self, charge: Charge, tokens: int) -> None:
        """Amend a closed one, by what another run has settled it with meanwhile."""
        self._amend(charge, tokens, charge.requests)

    def used(self, now: float) -> float:
        """The most that the server can have counted against the limit by now."""
        if now != self._used_at:
            self._used_at, self._used = now, self._most(now)
        return self._used

    def room(self, now: float, margin: Margin = EXACT) -> float:
        """The largest prompt that fits now, in expected tokens; negative when nothing does.

        Solves c·(1 + bias) + open bias + DEVIATIONS·√(open variance + (spread·c)²) = limit − used, for c.
        """
        if self.limit == inf:
            return inf
        used = self.used(now)
        if used == 0:
            return self.limit
        left = self.limit - used - self._bias
        slope, k = 1.0 + margin.bias, DEVIATIONS * margin.spread
        square = slope * slope - k * k
        return (slope * left - sqrt(k * k * left * left + square * DEVIATIONS**2 * self._variance)) / square

    def fits_at(self, now: float, tokens: float, margin: Margin = EXACT) -> float:
        """When `tokens` may fit at the earliest if nothing is settled before; later than `now`."""
        allowed = self._allowed(tokens, margin)
        self.used(now)
        soonest = max(now + _LEAST_WAIT_S, self._falls_to(allowed, _tokens))
        bounds = self._phase.bounds
        if bounds is None:
            return max(soonest, now + 2 * RECOMPUTE_S)
        return max(soonest, self._counter_falls_to(now, bounds, allowed, _tokens))

    def surplus(self, now: float, tokens: float, margin: Margin = EXACT) -> float:
        """How far what is used must fall before `tokens` fit; negative when they do."""
        return self.used(now) - self._allowed(tokens, margin)

    def request_fits_at(self, now: float, limit: float, *, counted: bool) -> float:
        """When one more request keeps within `limit` a minute: -inf for now; with `counted` by the counter too.

        The pace keeps that by itself; this is for limits that fell, and for requests of other runs.
        """
        self._minute.move(self._charges, self._base, now - WINDOW_S - JITTER_S)
        fits_at = self._falls_to(limit - 1.0, _requests)
        bounds = self._phase.bounds
        if counted and bounds is not None:
            fits_at = max(fits_at, self._counter_falls_to(now, bounds, limit - 1.0, _requests))
        return fits_at

    def last_minute(self, now: float) -> tuple[int, int]:
        """Requests and tokens of the last 60 s."""
        tokens = self._minute.move(self._charges, self._base, now - WINDOW_S - JITTER_S)
        return self._minute.requests, tokens

    def since(self, instant: float) -> tuple[int, int]:
        """Requests and tokens charged after `instant`, at most two minutes back."""
        requests = tokens = 0
        for charge in reversed(self._charges):
            if charge.at <= instant:
                break
            requests += charge.requests
            tokens += charge.tokens
        return requests, tokens

    def on_new_ground(self, now: float) -> bool:
        """Whether the server's minute has had more requests than the one before it; False while it is not known."""
        bounds = self._phase.bounds
        if bounds is None:
            return False
        self._count(now, *bounds)
        return 2 * self._current.requests > self._both.requests

    def between(self, begin: float, end: float) -> tuple[int, int]:
        """Requests and tokens charged after `begin` and up to `end`, at most two minutes back."""
        (requests, tokens), (later, more) = self.since(begin), self.since(end)
        return requests - later, tokens - more

    def in_flight(self) -> tuple[int, int]:
        """Requests and tokens reserved and not yet closed."""
        reserved = [charge.tokens for charge in self._charges if charge.open]
        return len(reserved), sum(reserved)

    def _allowed(self, tokens: float, margin: Margin) -> float:
        """What may be used at most when `tokens` are to fit."""
        deviation = sqrt(self._variance + (margin.spread * tokens) ** 2)
        return self.limit - self._bias - DEVIATIONS * deviation - tokens * (1.0 + margin.bias)

    def _most(self, now: float) -> float:
        minute = self._minute.move(self._charges, self._base, now - WINDOW_S - JITTER_S)
        bounds = self._phase.bounds
        if bounds is None:
            return max(minute, self._over_all_phases(now))
        elapsed = self._count(now, *bounds)
        current, both = self._current.tokens, self._both.tokens
        return max(minute, current + (both - current) * (1.0 - elapsed / WINDOW_S))

    def _close(self, charge: Charge) -> None:
        if not charge.open:
            raise RuntimeError("a reservation is closed twice")
        charge.open = False
        self._variance = max(0.0, self._variance - charge.variance)
        self._bias = max(0.0, self._bias - charge.bias)

    def _amend(self, charge: Charge, tokens: int, requests: int) -> None:
        self._used_at = None
        more_tokens, more_requests = tokens - charge.tokens, requests - charge.requests
        charge.tokens, charge.requests = tokens, requests
        for tail in (self._minute, self._current, self._both):
            if charge.index >= tail.start:
                tail.tokens += more_tokens
                tail.requests += more_requests
        if more_tokens > 0:
            self._bound += more_tokens

    def _count(self, now: float, low: float, high: float) -> float:
        """Bring the counter up to date: the most that may be in the server's minute, and in it and the one before.

        Returns the least seconds that minute has lasted: by the slowest clock that is possible least of it is over; by
        the fastest it began earliest.
        """
        elapsed = (now + low) % WINDOW_S
        began = now - elapsed - (high - low) - JITTER_S
        self._current.move(self._charges, self._base, began)
        self._both.move(self._charges, self._base, began - WINDOW_S)
        return elapsed

    def _falls_to(self, allowed: float, amount: Amount) -> float:
        """When the sum over a sliding minute falls to `allowed` if nothing is sent: -inf when it is there."""
        surplus = amount(self._minute) - allowed
        position = self._minute.start - self._base
        falls_at = -inf
        while surplus > 0 and position < len(self._charges):
            surplus -= amount(self._charges[position])
            falls_at = self._charges[position].at + WINDOW_S + JITTER_S + _LEAST_WAIT_S
            position += 1
        return falls_at

    def _counter_falls_to(self, now: float, bounds: tuple[float, float], allowed: float, amount: Amount) -> float:
        """The same for the counter per minute; at most until the next minute begins."""
        elapsed = self._count(now, *bounds)
        current = amount(self._current)
        previous = amount(self._both) - current
        if current + previous * (1.0 - elapsed / WINDOW_S) <= allowed:
            return -inf
        share = max(0.0, allowed - current) / previous if previous else 0.0
        return now + WINDOW_S * (1.0 - share) - elapsed + _LEAST_WAIT_S

    def _over_all_phases(self, now: float) -> float:
        """The greatest value of a counter per minute over every phase it may have.

        With F(x) the charges of age x or less, a minute that began p seconds ago counts
        p/60·F(p) + (1 − p/60)·F(p + 60). Between two ages of charges that falls with p, so the greatest value is at
        such an age, or at 0 or 60.
        """
        if now - self._bound_at < RECOMPUTE_S:
            return self._bound
        ages = [max(0.0, now - JITTER_S - charge.at) for charge in reversed(self._charges)]
        sums = [0, *accumulate(charge.tokens for charge in reversed(self._charges))]
        bound = float(sums[bisect_right(ages, WINDOW_S)])
        for age in (0.0, *ages):
            elapsed = age if age <= WINDOW_S else age - WINDOW_S
            if elapsed > WINDOW_S:
                break
            part = elapsed / WINDOW_S
            current, both = sums[bisect_right(ages, elapsed)], sums[bisect_right(ages, elapsed + WINDOW_S)]
            bound = max(bound, part * current + (1.0 - part) * both)
        self._bound_at, self._bound = now, bound
        return bound

    def _trim(self, now: float) -> None:
        # A clock may have whole milliseconds, as uvloop's: no sum may begin at a charge of the moment that is dropped.
        if len(self._charges) <= _TRIM_AT or self._charges[_TRIM_AT].at >= now - _KEEP_S:
            return
        for tail in (self._minute, self._current, self._both):
            if tail.start - self._base < _TRIM_AT:
                tail.move(self._charges, self._base, now - _KEEP_S)
        del self._charges[:_TRIM_AT]
        self._base += _TRIM_AT
