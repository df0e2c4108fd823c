"""When each prompt leaves: a closed form where limits are known; where not, the limiter's own growth in virtual time.

One test holds it to the dispatcher: within 3 % or 30 s where limits are known, 25 % where one is to be learned.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor, inf, log, sqrt
from typing import Literal

from pipeline.quota.limit import Limit
from pipeline.quota.pacer import JITTER_S, WINDOW_S, spacing
from pipeline.quota.quota import FIRST_RPM, FIRST_TPM
from pipeline.quota.slots import CAP, GIVEN_BACK, START, Slots
from pipeline.records import Limits

Bound = Literal["rpm", "tpm", "rpd", "concurrency", "latency", "none"]
"""What a run is held up by; `latency` when waiting for the last answers takes longer than sending."""

_MIXED_SHARE, _LARGEST_SHARE = 0.99, 0.06
"""Of tokens a minute, prompts of mixed sizes use 0.99 less 0.06 of the largest: .99 for lognormal sizes, .97 for a
heavy tail up to a third of the minute (measured on the dispatcher in virtual time, 2026-11)."""
_ALIKE = 2.0  # a largest prompt below so many times the mean: none is small enough to fill the gaps
_PERIOD_S = WINDOW_S + JITTER_S  # what is sent may be sent again so much later
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
    first_rpm: float = FIRST_RPM  # that it begins with, where the limit is unknown
    workers: int = 1

    @property
    def ungrown(self) -> Limits:
        """The limits, where those that are unknown stay what a run begins with."""
        limits = self.limits
        return replace(
            limits,
            rpm=int(self.first_rpm) if limits.rpm is None else limits.rpm,
            tpm=FIRST_TPM if limits.tpm is None else limits.tpm,
        )

    @property
    def slots(self) -> int:
        """Requests that may be in flight."""
        if self.limits.concurrency is not None:
            return self.limits.concurrency
        return (START if self.limits.rpm == 0 else CAP) * self.workers


Curve = Callable[[float], float]
"""Seconds of sending until the n-th prompt has left."""


@dataclass(frozen=True, slots=True)
class Sending:
    """When prompts leave if nothing pauses it, and what holds them up: one curve for each limit, the latest holds.

    Since `begun`, in seconds, when `done` prompts of the run had left; prompts are counted from the run's first on.
    """

    curves: dict[Bound, Curve]
    grows: bool = False
    begun: float = 0.0
    done: int = 0

    def at(self, prompts: float) -> float:
        """When so many have left."""
        return self.begun + max(curve(prompts - self.done) for curve in self.curves.values())

    def bound(self, prompts: float) -> Bound:
        """What holds the n-th prompt up: rpm, tpm or concurrency."""
        return max(self.curves, key=lambda name: self.curves[name](prompts - self.done))

    def resumed(self, begun: float, done: int) -> "Sending":
        """As it goes on hours after so many have left: anew, but with limits as they have grown."""
        curves = self.curves
        if self.grows:
            left_at = self.at(done)
            curves = {self.bound(done): lambda more: self.at(done + more) - left_at}
        return replace(self, curves=curves, begun=begun, done=done)

    def until(self, moment: float, most: int) -> int:
        """How many of `most` have left by then."""
        return self.done + bisect_right(range(self.done + 1, most + 1), moment, key=self.at)


def sending(load: Load, pace: Pace, second: float) -> Sending:
    """Curves of a run that begins at `second` of the service's minute."""
    rpm, tpm = pace.limits.rpm, pace.limits.tpm
    if rpm is None or tpm is None:
        return _grown(load, pace, second)
    curves: dict[Bound, Curve] = {"concurrency": _by_slots(pace)}
    if rpm:
        curves["rpm"] = _by_requests(pace, rpm)
    if tpm and load.input_tokens:
        curves["tpm"] = _by_tokens(load, tpm, WINDOW_S - second, Sending(dict(curves)))
    return Sending(curves)


def _by_slots(pace: Pace) -> Curve:
    """All slots again and again; of several workers without a limit first `START`, and more with each answer."""
    most, grows = pace.slots, 1.0 + GIVEN_BACK
    least = START if pace.limits.concurrency is None and pace.limits.rpm == 0 else most
    growing = (most - least) / GIVEN_BACK  # answers
    waves = log(most / least, grows)

    def at(prompts: float) -> float:
        before = max(0.0, prompts - 1)
        if before < growing:
            return floor(log(1.0 + before * GIVEN_BACK / least, grows)) * pace.latency_s
        return (waves + max(0, ceil((prompts - growing) / most) - 1)) * pace.latency_s

    return at


def _by_requests(pace: Pace, rpm: int) -> Curve:
    """Evenly spaced after a small burst; if answers are slow, the first of them must tell how many slots it takes."""
    burst, period_s = spacing(rpm)
    first = inf if pace.limits.concurrency is not None else Slots(None, rpm).count

    def at(prompts: float) -> float:
        even_s = max(0.0, prompts - burst) * period_s
        return even_s if prompts <= first else max(even_s, pace.latency_s + (prompts - first) * period_s)

    return at


def _by_tokens(load: Load, tpm: int, left_s: float, others: Sending) -> Curve:
    """A minute's tokens as fast as the other limits let them go, the rest evenly: so much a minute.

    The server's minute ends after `left_s`; what leaves before, and as much again, are in by the end of the next.
    """
    usable, mean = usable_tokens(load, tpm), load.mean_tokens
    early = min(usable, mean * others.until(left_s - 0.5, min(load.prompts, ceil(usable / mean))))

    def at(prompts: float) -> float:
        more = prompts * mean - usable
        if more <= 0:
            return 0.0
        return max(
            _PERIOD_S + others.at(min(more, usable) / mean), left_s + _PERIOD_S * (usable + more - early) / usable
        )

    return at


def usable_tokens(load: Load, tpm: float) -> float:
    """Tokens that the prompts of `load` can make of a minute's `tpm`, at least one prompt."""
    mean = load.mean_tokens
    if load.largest_tokens < _ALIKE * mean:
        return mean * max(1, ceil(tpm / mean) - 1)
    return max(mean, _MIXED_SHARE * tpm - _LARGEST_SHARE * load.largest_tokens)


def _grown(load: Load, pace: Pace, second: float) -> Sending:
    """In virtual time, in which the run's own `Limit` grows what is not known.

    Requests grow as one leaves; tokens while answers are awaited: nothing else wakes a dispatcher whose window is full.
    """
    limits, mean = pace.limits, load.mean_tokens
    requests = Limit(limits.rpm, pace.first_rpm) if limits.rpm != 0 else None
    tokens = Limit(limits.tpm, FIRST_TPM) if limits.tpm != 0 and mean else None
    if requests:
        requests.grow(0.0, 0.0)  # the second request is held up at once
    times, sent, grown_at = [0.0], [1.0], 0.0
    bound: Bound = "rpm"

    awake_s = sqrt((pace.slow_s or pace.latency_s) * pace.latency_s)  # until most answers of a burst are in

    def last(seconds: float) -> float:
        """Prompts that left in so many seconds."""
        after = bisect_right(times, times[-1] - seconds)
        return sent[-1] - (sent[after - 1] if after else 0.0)

    def counted() -> float:
        """The most that a service can count by now, by the last minute or by its own minutes."""
        elapsed = (times[-1] + second) % WINDOW_S
        current, both = last(elapsed), last(elapsed + WINDOW_S)
        return max(last(_PERIOD_S), current + (both - current) * (1.0 - elapsed / WINDOW_S))

    while sent[-1] < load.prompts and times[-1] - grown_at < _SETTLED_TURNS * max(_PERIOD_S, pace.latency_s):
        period_s = spacing(requests.value)[1] if requests else _STEP_S
        some = max(1, round(_STEP_S / period_s))
        times.append(times[-1] + some * period_s)
        sent.append(sent[-1])
        now, minute = times[-1], last(_PERIOD_S)
        room: dict[Bound, float] = {"rpm": some if requests else inf, "concurrency": pace.slots - last(pace.latency_s)}
        if tokens:
            room["tpm"] = usable_tokens(load, tokens.value) / mean - counted()
        bound = min(room, key=lambda name: room[name])
        sent[-1] += max(0.0, room[bound])
        if bound == "rpm" and requests and requests.grow(now, minute):
            grown_at = now
        if bound == "tpm" and tokens and last(awake_s) and tokens.grow(now, minute * mean):
            grown_at = now
    turn_s = min(times[-1], max(_PERIOD_S, pace.latency_s))
    rate = last(turn_s) / turn_s if turn_s else inf

    def at(prompts: float) -> float:
        after = bisect_left(sent, prompts)
        if not after:
            return 0.0
        if after == len(sent):
            return times[-1] + (prompts - sent[-1]) / rate
        (t0, t1), (n0, n1) = times[after - 1 : after + 1], sent[after - 1 : after + 1]
        return t0 + (t1 - t0) * (prompts - n0) / (n1 - n0)

    return Sending({bound: at}, grows=True)
