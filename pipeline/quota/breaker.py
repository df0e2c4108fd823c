"""Stops sending to a server that refuses everything, and finds out when it is back."""

from math import inf
from random import Random

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
QUIET_S = 900.0
"""Failures further apart than this are of different outages: nothing was sent in between."""


class Breaker:
    """After `threshold` failures with no success between them: a pause, then one request to probe.

    A probe that fails makes the next pause twice as long, up to a minute; any success opens the way again. Failures
    of requests that left before the pause began are of the same outage and do not lengthen it.
    """

    def __init__(self, threshold: int, rng: Random) -> None:
        self._threshold = threshold
        self._rng = rng
        self._failures = 0
        self._pause_s = 0.0
        self._until = -inf  # end of the pause; -inf: the way is open
        self._paused_at = -inf
        self._probing = False
        self._down_since: float | None = None
        self._failed_at = -inf

    def opens_at(self, now: float) -> float | None:
        """None when a request may leave; else when to ask again, `inf` while a probe is on its way."""
        if self._until == -inf:
            return None
        if self._probing:
            return inf
        return self._until if now < self._until else None

    def sent(self) -> None:
        """A request leaves: while the way is closed it is the probe."""
        self._probing = self._until != -inf

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0
        self._pause_s = 0.0
        self._until = -inf
        self._probing = False
        self._down_since = None

    def failed(self, now: float, sent_at: float, *, weight: int = 1) -> bool:
        """The server failed; True when that begins a pause."""
        if self._down_since is None or now - self._failed_at > QUIET_S:
            self._down_since = now
        self._failed_at = now
        if self._until != -inf and sent_at < self._paused_at:
            return False
        self._failures += weight
        if self._failures < self._threshold:
            return False
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2.0 * self._pause_s))
        self._paused_at = now
        self._until = now + self._pause_s * self._rng.uniform(0.75, 1.25)
        self._probing = False
        return True

    def undecided(self) -> None:
        """The probe, if one was on its way, told nothing: another may go."""
        self._probing = False

    def down_s(self) -> float:
        """Seconds from the first to the last failure that no success followed."""
        return 0.0 if self._down_since is None else self._failed_at - self._down_since
