"""How many requests may be in flight at once."""

from collections.abc import Sequence
from math import ceil, comb, inf, sqrt

START = 64
"""Slots of each worker where the rate says nothing: no limit on requests."""
CAP = 2_000
FIRST_LATENCY_S = 10.0
"""What an answer is assumed to take until `_SETTLED_AFTER` have come; too many cost nothing, too few cost rate."""
_SETTLED_AFTER = 20
_LEAST_WEIGHT = 0.02  # of one answer in the running mean
_CAP_ANSWERS = 20.0  # of each slot, after which it is tried whether one more is taken
_TAKEN = 0.5  # slots, by each 503
GIVEN_BACK = 0.25
"""Slots, by each answer."""


class Slots:
    """ρ + 4·√ρ slots for ρ = rate × mean latency, or the number that was asked for.

    Measured in simulation: ρ alone loses 4 % of the rate, ρ + 2·√ρ 0.6 %, ρ + 4·√ρ no more; bounded in any case, as
    transports slow down with what waits inside them.

    A 503 takes half a slot away and an answer gives a quarter back. So what fails by chance, up to a third of all,
    costs nothing; a server that takes ten at once is soon sent ten, two answers for each 503; and as more slots bring
    more answers, those that were taken are back in some 25 times the time of one answer, however many they were. So
    do several workers find out what they may have: without a limit they begin with `START` in all.
    """

    def __init__(
        self,
        fixed: int | None,
        rpm: float,
        most: int | None = None,
        first_s: float = FIRST_LATENCY_S,
        workers: int = 1,
    ) -> None:
        """`rpm` is the limit on requests a minute, `inf` where there is none; `most` bounds the slots in any case.

        `first_s` is what an answer is assumed to take before some have come; each of `workers` has a transport.
        """
        self._fixed = fixed
        self._bound = CAP * workers
        self._most = most or max(self._bound, fixed or 0)
        self._rpm = rpm
        self._start = START * workers
        self._mean_s = first_s
        self._answers = 0
        is_unknown = fixed is None and rpm == inf
        self._taken = float(max(0, self._wanted() - START)) if is_unknown else 0.0
        self._is_overloaded = False
        self._cap = inf  # what a relay takes at once, as far as its refusals tell
        self._lowered = 0  # times that the cap was found too high, one after the other
        self._resize()

    @property
    def bounded(self) -> bool:
        """Whether it was the crowd that was refused."""
        return self._cap < inf

    @property
    def is_cut(self) -> bool:
        """Whether the service has taken some away: it said that it is overloaded, or refused a crowd."""
        return (self._is_overloaded and self._taken >= 1.0) or self.bounded

    def change(self, rpm: float) -> None:
        """Size for another rate."""
        self._rpm = rpm
        self._resize()

    def answered(self, latency_s: float) -> None:
        """Learn from one answer, and give back a part of what an overload took."""
        self._answers += 1
        weight = max(_LEAST_WEIGHT, 1.0 / max(_SETTLED_AFTER, self._answers))
        self._mean_s += weight * (latency_s - self._mean_s)
        if self._cap < inf:
            before = int(self._cap)
            self._cap += 1.0 / (_CAP_ANSWERS * self._cap)
            if int(self._cap) > before:
                self._lowered = 0
        if self._taken or self._answers % 8 == 0:
            self._taken = max(0.0, self._taken - GIVEN_BACK)
            self._resize()

    def overloaded(self) -> None:
        """The server said 503: use fewer connections."""
        self._taken += _TAKEN
        self._is_overloaded = True
        self._resize()

    def crowded(self, refused: Sequence[int], passed: Sequence[int], chance: int) -> bool:
        """Bound the slots if it was the crowd: how many were in flight as each of some requests left.

        The refused must have found more in flight than those that passed, by chance once in `chance` times.
        Where that does not help three times one after the other, it was something else.
        """
        if self._cap < inf:
            self._lowered += 1
            self._cap = inf if self._lowered > 3 else max(1.0, int(self._cap) - 1.0)
        elif refused:
            least = min(refused)
            above = len(refused) + sum(crowd >= least for crowd in passed)
            if comb(above, len(refused)) * chance <= comb(len(refused) + len(passed), len(refused)):
                self._cap, self._lowered = max(1.0, least), 0
        self._resize()
        return self._cap < inf

    def _resize(self) -> None:
        wanted = self._wanted()
        self._taken = min(self._taken, wanted - 1.0)
        self.count = min(ceil(wanted - self._taken), int(self._cap) if self._cap < inf else wanted)

    def _wanted(self) -> int:
        if self._fixed is not None:
            return min(self._most, self._fixed)
        if self._rpm == inf:
            return min(self._most, self._start)
        load = self._rpm / 60.0 * self._mean_s
        return min(self._most, self._bound, ceil(load + 4.0 * sqrt(load)) + 1)
