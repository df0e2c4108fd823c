"""When each prompt leaves: the dispatcher's rules as curves over the number of prompts, without sending one."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from pipeline.quota.adaptive import AdaptiveLimit
from pipeline.quota.endpoint import FIRST_RPM, FIRST_TPM
from pipeline.quota.pacer import JITTER_S, WINDOW_S, careful_s, spacing
from pipeline.quota.slots import CAP, START, Slots
from pipeline.records import Limits

UNKNOWN_LIMITS = Limits(rpm=FIRST_RPM, tpm=FIRST_TPM)
"""What a run starts with when a limit is not configured, to grow from."""

Bound = Literal["rpm", "tpm", "rpd", "concurrency", "latency", "none"]
"""What a run is held up by; `latency` when waiting for the last answers takes longer than sending."""

_MIXED_SHARE, _LARGEST_SHARE = 0.99, 0.06
"""Of tokens a minute, prompts of mixed sizes use 0.99 less 0.06 of the largest: .99 for lognormal sizes, .97 for a
heavy tail up to a third of the minute (measured on the dispatcher in virtual time, 2026-11)."""
_ALIKE = 2.0  # a largest prompt below so many times the mean: none is small enough to fill the gaps
_PERIOD_S = WINDOW_S + JITTER_S  # what is sent may be sent again so much later
_PHASE_S = 0.5  # before the service's minute ends: what leaves later may be counted in the next
_STEP_S = 1.0  # of growth in virtual time, at least one request
_SETTLED_TURNS = 2.2  # without growth: nothing will grow any more


@dataclass(frozen=True, slots=True)
class Load:
    """Calls that are to be made. `depth` is how many the longest document makes one after another."""

    prompts: int
    input_tokens: int
    largest_tokens: int = 0  # of one prompt; 0: they are all alike
    depth: int = 1

    @property
    def mean_tokens(self) -> float:
        """Input tokens of one prompt."""
        return self.input_tokens / self.prompts if self.prompts else 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What the calls may use. Of `limits`, None is unknown, to be learned by growing; 0 is none at all.

    `latency_s` is the mean of one answer; 99 of 100 take less than `slow_s`, None when all take the mean.
    """

    limits: Limits
    latency_s: float
    slow_s: float | None = None
    used_today: int = 0  # requests of the day's quota that are spent
    opens_at: float = 0.0  # epoch seconds; the service said that the day is used up until then

    @property
    def slots(self) -> int:
        """Requests that may be in flight."""
        if self.limits.concurrency is not None:
            return self.limits.concurrency
        return START if self.limits.rpm == 0 else CAP


Curve = Callable[[float], float]
"""Seconds of sending until the n-th prompt has left."""


@dataclass(frozen=True, slots=True)
class Sending:
    """When prompts leave if nothing pauses it, and what holds them up: one curve for each limit, the latest holds."""

    curves: dict[Bound, Curve]
    grows: bool = False

    def at(self, prompts: float) -> float:
        """Seconds until so many have left."""
        return max(curve(prompts) for curve in self.curves.values())

    def bound(self, prompts: float) -> Bound:
        """What holds the n-th prompt up: rpm, tpm or concurrency."""
        return max(self.curves, key=lambda name: self.curves[name](prompts))

    def after(self, prompts: int) -> "Sending":
        """As it goes on hours after so many have left: anew, but with limits as they have grown."""
        if not self.grows:
            return self
        first_s, bound = self.at(prompts), self.bound(prompts)
        return Sending({bound: lambda more: self.at(prompts + more) - first_s}, grows=True)

    def until(self, seconds: float, most: int) -> int:
        """How many of `most` have left by then."""
        return bisect_right(range(1, most + 1), seconds, key=self.at)


def sending(load: Load, pace: Pace, second: float) -> Sending:
    """Curves of a run that begins at `second` of the service's minute.

    Limits that are known give closed forms, unknown ones are grown in virtual time by the run's own `AdaptiveLimit`.
    """
    if pace.limits.rpm is None or pace.limits.tpm is None:
        return _grown(load, pace, second)
    curves: dict[Bound, Curve] = {"concurrency": _by_slots(pace)}
    if pace.limits.rpm:
        curves["rpm"] = _by_requests(pace, pace.limits.rpm)
    if pace.limits.tpm and load.input_tokens:
        curves["tpm"] = _by_tokens(load, pace.limits.tpm, second, Sending(dict(curves)))
    return Sending(curves)


def _by_slots(pace: Pace) -> Curve:
    """Rounds of so many answers."""
    return lambda prompts: max(0, ceil(prompts / pace.slots) - 1) * pace.latency_s


def _by_requests(pace: Pace, rpm: int) -> Curve:
    """Evenly spaced after a small burst; if answers are slow, the first of them must tell how many slots it takes."""
    burst, period_s = spacing(rpm)
    first = inf if pace.limits.concurrency is not None else Slots(None, rpm).count

    def at(prompts: float) -> float:
        even_s = max(0.0, prompts - burst) * period_s
        return even_s if prompts <= first else max(even_s, pace.latency_s + (prompts - first) * period_s)

    return at


def _by_tokens(load: Load, tpm: int, second: float, others: Sending) -> Curve:
    """A minute's tokens as fast as the other limits let them go, and again what a minute ago was used.

    A server that counts by its own minutes has the previous one fade linearly, so what came at once at the start does
    not do so again: after a first minute that began at `second`, tokens flow evenly to the end of each minute.
    """
    usable, mean = usable_tokens(load, tpm), load.mean_tokens
    left_s = WINDOW_S - second
    early = min(usable, mean * others.until(left_s - _PHASE_S, min(load.prompts, ceil(usable / mean))))

    def counted_s(tokens: float) -> float:
        if tokens < early:
            return WINDOW_S * tokens / early - second
        return left_s + WINDOW_S * (tokens - early) / usable

    def at(prompts: float) -> float:
        tokens = prompts * mean
        windows = max(0, ceil(tokens / usable) - 1)
        rest = tokens - windows * usable
        if not windows:
            return 0.0
        return windows * _PERIOD_S + min(_PERIOD_S, max(others.at(rest / mean), counted_s(rest)))

    return at


def usable_tokens(load: Load, tpm: float) -> float:
    """Tokens that the prompts of `load` can make of a minute's `tpm`, at least one prompt."""
    mean = load.mean_tokens
    if load.largest_tokens < _ALIKE * mean:
        return mean * max(1, ceil(tpm / mean) - 1)
    return max(mean, _MIXED_SHARE * tpm - _LARGEST_SHARE * load.largest_tokens)


class _Sent:
    """Prompts that have left by each moment of virtual time."""

    def __init__(self) -> None:
        self.times, self.counts = [0.0], [1.0]

    @property
    def total(self) -> float:
        """All so far."""
        return self.counts[-1]

    def by(self, at: float) -> float:
        """How many by then, even between two moments."""
        after = bisect_right(self.times, at)
        if not after:
            return 0.0
        if after == len(self.times):
            return self.total
        part = (at - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
        return self.counts[after - 1] + part * (self.counts[after] - self.counts[after - 1])

    def on_new_ground(self, at: float, second: float) -> bool:
        """Whether the service's minute has had more than the one before it."""
        began = at - (at + second) % WINDOW_S
        return self.total - self.by(began) > self.by(began) - self.by(began - WINDOW_S)

    def counted(self, at: float, second: float) -> float:
        """The most that a service can count by now, by the last minute or by its own minutes."""
        elapsed = (at + second) % WINDOW_S
        before, begun = self.by(at - elapsed - WINDOW_S), self.by(at - elapsed)
        in_minutes = self.total - begun + (begun - before) * (1 - elapsed / WINDOW_S)
        return max(self.total - self.by(at - _PERIOD_S), in_minutes)


def _grow(load: Load, pace: Pace, second: float) -> tuple[_Sent, Bound]:
    """Send in virtual time until all has left or no limit grows any more; and what held it up then."""
    requests = AdaptiveLimit(pace.limits.rpm, FIRST_RPM) if pace.limits.rpm != 0 else None
    tokens = AdaptiveLimit(pace.limits.tpm, FIRST_TPM) if pace.limits.tpm != 0 and load.input_tokens else None
    if requests:
        requests.grow(0.0, 0.0)  # the second request is held up at once
    sent, now, grown_at = _Sent(), 0.0, 0.0
    bound: Bound = "rpm"
    while sent.total < load.prompts and now - grown_at < _SETTLED_TURNS * max(_PERIOD_S, pace.latency_s):
        period_s = spacing(requests.value)[1] if requests else 0.0
        if requests and requests.exploring and now > pace.latency_s and sent.on_new_ground(now, second):
            period_s = max(period_s, careful_s(period_s))
        some = max(1, round(_STEP_S / period_s)) if requests else inf
        now += some * period_s if requests else _STEP_S
        in_flight = sent.total - sent.by(now - pace.latency_s)
        room: dict[Bound, float] = {"rpm": some, "concurrency": pace.slots - in_flight}
        if tokens:
            room["tpm"] = usable_tokens(load, tokens.value) / load.mean_tokens - sent.counted(now, second)
        bound = min(room, key=lambda name: room[name])
        last_minute = sent.total - sent.by(now - _PERIOD_S)
        if bound == "rpm" and requests:
            grew = requests.grow(now, last_minute)
        else:  # while tokens hold all up, only an answer wakes the dispatcher before the window has room again
            awake = bound == "tpm" and in_flight > 0
            grew = awake and tokens is not None and tokens.grow(now, last_minute * load.mean_tokens)
        grown_at = now if grew else grown_at
        sent.times.append(now)
        sent.counts.append(sent.total + max(0.0, room[bound]))
    return sent, bound


def _grown(load: Load, pace: Pace, second: float) -> Sending:
    sent, bound = _grow(load, pace, second)
    now, turn_s = sent.times[-1], max(_PERIOD_S, pace.latency_s)
    rate = (sent.total - sent.by(now - turn_s)) / min(now, turn_s) if now else inf

    def at(prompts: float) -> float:
        after = bisect_left(sent.counts, prompts)
        if not after:
            return 0.0
        if after == len(sent.counts):
            return now + (prompts - sent.total) / rate
        (t0, t1), (n0, n1) = sent.times[after - 1 : after + 1], sent.counts[after - 1 : after + 1]
        return t0 + (t1 - t0) * (prompts - n0) / (n1 - n0)

    return Sending({bound: at}, grows=True)
