"""Where the server is in its minute, read from the `Date` headers of its responses."""

DRIFT = 1e-4
"""How fast two clocks may part, seconds a second; crystals stay within 50 ppm, two of them within 100."""
WAY_BACK_S = 0.15
"""At most this long after a response was stamped it has been read here."""
USABLE_S = 5.0
"""A phase known less exactly than this is worth less than assuming every phase."""


class MinutePhase:
    """Bounds of (server time − our clock), narrowed by every response.

    A `Date` header is whole seconds, cut off: the server's clock was in [Date, Date + 1) when it stamped. Servers stamp
    when they begin to answer, so it was read within `WAY_BACK_S`; should two responses contradict each other, only the
    certain is believed from then on: it was stamped between sending the request and reading the answer.
    """

    def __init__(self) -> None:
        self._low = float("-inf")
        self._high = float("inf")
        self._seen_at: float | None = None
        self._stamped_late = True
        self._wrong = False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and greatest (server time − our clock) in seconds, or None when it is not known well enough."""
        if self._wrong or not self._high - self._low <= USABLE_S:
            return None
        return self._low, self._high

    def observe(self, date: float, sent: float, received: float) -> None:
        """Learn from one response: its `Date` in epoch seconds, our clock at sending and at reading it."""
        if self._seen_at is not None:
            drift = DRIFT * max(0.0, received - self._seen_at)
            self._low -= drift
            self._high += drift
        self._seen_at = received
        self._narrow(date, sent, received)
        if self._low > self._high:
            self._stamped_late = False
            self._low, self._high = float("-inf"), float("inf")
            self._narrow(date, sent, received)

    def distrust(self) -> None:
        """A refusal showed that this server does not count by the minute we read: assume every phase."""
        self._wrong = True

    def _narrow(self, date: float, sent: float, received: float) -> None:
        stamped_from = max(sent, received - WAY_BACK_S) if self._stamped_late else sent
        self._low = max(self._low, date - received)
        self._high = min(self._high, date + 1.0 - stamped_from)
