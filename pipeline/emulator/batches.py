"""What becomes of a batch: a function of the seed, its number and the time that passed, and of nothing else."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from pipeline.emulator.faults import luck

State = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED"]
ENDED: frozenset[State] = frozenset({"SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED"})
_NEVER = math.inf
_LEAST_LUCK = 1e-9
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Fate:
    """What a batch would do by itself: seconds of the service that it waits and runs, and how it then ends."""

    pending_s: float  # infinite: it never runs, and does not expire
    run_s: float
    end: State = "SUCCEEDED"


@dataclass(frozen=True, slots=True)
class Course:
    """When a batch does what, in seconds of the clock; infinite: never."""

    started: float
    ended: float
    end: State
    full_s: float  # what it takes to run to its end

    def state(self, now: float) -> State:
        """How it stands."""
        if now >= self.ended:
            return self.end
        return "RUNNING" if now >= self.started else "PENDING"

    def share(self) -> float:
        """The part of its lines that was answered when it ended, from 0 to 1."""
        if self.end == "SUCCEEDED":
            return 1.0
        ran_s = self.ended - self.started
        return min(1.0, ran_s / self.full_s) if ran_s > 0 and 0 < self.full_s < _NEVER else 0.0


def fate_of(seed: int, number: int, pending_s: float, run_s: float, spread: float) -> Fate:
    """The fate of a batch: both times are lognormal, with these medians, and `spread` as the factor of a sigma."""
    times = {"pending": pending_s, "run": run_s}
    drawn = {name: median * _factor(luck(seed, name, number, 0), spread) for name, median in times.items()}
    return Fate(drawn["pending"], drawn["run"])


def course_of(
    fate: Fate, created: float, begun: float, expires_s: float, scale: float, cancelled: float | None = None
) -> Course:
    """How a batch that waits its turn until `begun` goes on; the service's seconds pass `scale` times as fast.

    It expires `expires_s` of them after it was made.
    """
    started, full_s = begun + fate.pending_s / scale, fate.run_s / scale
    ended, end = started + full_s, fate.end
    expires = _NEVER if fate.pending_s == _NEVER else created + expires_s / scale
    if ended > expires:
        ended, end = expires, "EXPIRED"
    if cancelled is not None and cancelled < ended:
        ended, end = cancelled, "CANCELLED"
    return Course(started, ended, end, full_s)


def turn_of(created: float, earlier_ends: Iterable[float], most: int) -> float:
    """When a batch begins to wait for itself alone: once fewer than `most` of those before it are under way."""
    ends = [end for end in earlier_ends if end > created]
    return created if len(ends) < most else sorted(ends)[len(ends) - most]


def _factor(share: float, spread: float) -> float:
    return float(spread ** _NORMAL.inv_cdf(min(max(share, _LEAST_LUCK), 1 - _LEAST_LUCK)))
