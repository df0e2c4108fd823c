"""Where the server is in its minute, read from the `Date` headers of its responses."""

from math import inf

from pipeline.quota.pacer import WINDOW_S

DRIFT = 1e-4
"""How fast two clocks may part, seconds a second; crystals stay within 50 ppm, two of them within 100."""
WAY_BACK_S = 0.15
"""At most this long after a response was stamped it has been read here."""
MOST_CONTRADICTIONS = 3
DISTRUST_S = 600.0
USABLE_S = 5.0
"""A phase known less exactly than this is worth less than assuming every phase."""


class MinutePhase:
    """Bounds of (server time − our clock), narrowed by every response.

    A `Date` header is whole seconds, cut off: the server's clock was in [Date, Date + 1) when it stamped. Servers stamp
    when they begin to answer, so it was read within `WAY_BACK_S`. Where responses contradict each other we begin anew;
    the third time only the certain is believed: it was stamped between sending the request and reading the answer.
    """

    def __init__(self) -> None:
        self._low = -inf
        self._high = inf
        self._read_at = -inf  # when a response was last read
        self._contradictions = 0
        self.distrusted_at = -inf
        self._distrusted_until = -inf
        self._distrusted_for_s = DISTRUST_S

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and greatest (server time − our clock) in seconds, or None when it is not known well enough."""
        if self._distrusted_until > self._read_at or not self._high - self._low <= USABLE_S:
            return None
        return self._low, self._high

    def ends_at(self, now: float) -> float:
        """When the server's minute ends at the earliest, on our clock; `inf` when its phase is not known."""
        bounds = self.bounds
        return inf if bounds is None else now + WINDOW_S - (now + bounds[1]) % WINDOW_S

    def observe(self, date: float, sent: float, received: float) -> None:
        """Learn from one response: its `Date` in epoch seconds, our clock at sending and at reading it."""
        if received > self._read_at > -inf:
            drift = DRIFT * (received - self._read_at)
            self._low -= drift
            self._high += drift
        self._read_at = max(self._read_at, received)
        self._narrow(date, sent, received)
        if self._low > self._high:
            self._contradictions += 1
            self._low, self._high = -inf, inf
            self._narrow(date, sent, received)

    def distrust(self, now: float) -> None:
        """A refusal showed that the server may not count by the minute we read: assume every phase for a while.

        Ten minutes at first, four times as long each time it happens again; somebody else on the quota looks alike.
        """
        if now >= self._distrusted_until:
            self.distrusted_at = now
            self._distrusted_until = now + self._distrusted_for_s
            self._distrusted_for_s *= 4
        self._read_at = max(self._read_at, now)

    def _narrow(self, date: float, sent: float, received: float) -> None:
        stamped_late = self._contradictions < MOST_CONTRADICTIONS
        stamped_from = max(sent, received - WAY_BACK_S) if stamped_late else sent
        self._low = max(self._low, date - received)
        self._high = min(self._high, date + 1.0 - stamped_from)
