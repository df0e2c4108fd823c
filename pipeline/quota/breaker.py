"""Stops sending to a server that refuses everything, and finds out when it is back."""

from bisect import bisect_left, bisect_right
from math import inf
from random import Random

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
QUIET_S = 900.0
"""Failures further apart than this are of different outages: nothing was sent in between."""
NEARLY_ALL = 0.75
"""Part of what was sent since the last success that must have failed: failures may come long before answers."""


class Breaker:
    """After `threshold` failures, and nearly nothing sent but what failed: a pause, then one request to probe.

    A probe that fails makes the next pause twice as long, up to a minute; a success opens the way again. What was on
    its way when things went wrong tells nothing of now: the success of a request that left before the first failure
    came changes nothing, nor does, once the way is closed, the failure of one that left before.
    """

    def __init__(self, threshold: int, rng: Random) -> None:
        self._threshold = threshold
        self._rng = rng
        self._failures = 0
        self._sent: list[float] = []  # when, since the last success
        self._pause_s = 0.0
        self.tripped = False  # only a probe may go
        self._until = -inf  # end of the pause
        self._paused_at = -inf
        self._probing = False
        self._down_since: float | None = None
        self._failed_at = -inf

    def opens_at(self, now: float) -> float | None:
        """None when a request may leave; else when to ask again, `inf` while a probe is on its way."""
        if not self.tripped:
            return None
        if self._probing:
            return inf
        return self._until if now < self._until else None

    def sent(self, now: float) -> None:
        """A request leaves: while the way is closed it is the probe."""
        self._sent.append(now)
        self._probing = self.tripped

    def succeeded(self, sent_at: float = inf) -> bool:
        """The server did what it was asked for at `sent_at`; True when that ends what `failed` told."""
        if self._down_since is None:
            self._sent.clear()
            return False
        if sent_at < self._down_since:
            return False
        told = self._pause_s > FIRST_PAUSE_S
        self._sent.clear()
        self._failures = 0
        self._pause_s = 0.0
        self.tripped = self._probing = False
        self._down_since = None
        return told

    def failed(self, now: float, sent_at: float) -> bool:
        """The server failed; True, once until it is back, when the first probe has failed too."""
        if self._down_since is None or now - self._failed_at > QUIET_S:
            self._down_since = now
        self._failed_at = now
        if self.tripped and sent_at < self._paused_at:
            return False
        self._failures += 1
        until_then = bisect_right(self._sent, sent_at)
        if not self.tripped and self._failures < max(self._threshold, NEARLY_ALL * until_then):
            return False
        first_probe = self._pause_s == FIRST_PAUSE_S
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2.0 * self._pause_s))
        self._paused_at = now
        self._until = now + self._pause_s * self._rng.uniform(0.75, 1.25)
        self.tripped, self._probing = True, False
        return first_probe

    def lost(self, sent_at: float) -> None:
        """Nobody will hear what became of the request of `sent_at`: as if it had not been made."""
        place = bisect_left(self._sent, sent_at)
        if self._sent[place : place + 1] == [sent_at]:
            del self._sent[place]
        if sent_at > self._paused_at:
            self._probing = False

    @property
    def failing(self) -> bool:
        """Whether something failed that no success has followed."""
        return self._down_since is not None

    def down_s(self) -> float:
        """Seconds from the first to the last failure that no success followed."""
        return 0.0 if self._down_since is None else self._failed_at - self._down_since
