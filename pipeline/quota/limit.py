"""What the service is believed to allow a minute: of one meter, requests or tokens."""

from math import inf

from pipeline.events import Meter

KEEP = 0.99
"""Part of what was let through that is believed to be the limit."""
EPISODE_S = 60.0
"""A minute after a refusal the window that it came from is over."""
SAME = 0.3
"""Two findings this close are of the same limit: a server that counts fixed minutes lets through as much more."""
_LEAST, _FEWEST = 0.02, 5  # of the limit, and requests: after fewer all may be refused by chance
_NEARLY = 0.97  # of the limit had passed: that tells nothing
_BELOW = 0.98  # of what was refused: the limit is lower than that
_BACK = 1.2  # a step back up to what may be allowed
_STEP, _NAMED_STEP, _LONGEST_STEP = 0.02, 0.1, 0.4  # upward; twice as long each time it succeeds
_NAMED_GAP_S, _GAP_S = 60.0, 600.0
GROWTH_S = 10.0  # between two steps of growth
_FAST, SLOW = 2.0, 1.08  # a step; slow is ×1.6 a minute
_FILLED = 0.7  # of the limit must have been used in the last minute before it grows slowly
SMALL = 240.0  # a minute, up to which it grows fast: the few that are on their way when it is refused are few


class Limit:
    """Never refused and never told, it grows while it is what holds the work up, fast at first.

    Of the requests on their way when a window is full, a server refuses about the part by which the rate grew within
    that window, and all of them if it counts fixed minutes: hence slowly, once they are more than a few. Once it is
    found it is probed upward, carefully, never above what was configured or named.
    """

    def __init__(
        self, configured: float | None, start: float, learned: float | None = None, *, meter: Meter = "requests"
    ) -> None:
        """`learned` is what an earlier run came to believe; `start` is used when nothing is known."""
        self.meter: Meter = meter
        self.which = 0 if meter == "requests" else 1  # of the sums of a ledger
        self._top = configured if configured is not None else inf
        self.value = min(self._top, learned if learned is not None else self._top)
        self._growing = configured is None
        self._fast_below = SMALL if learned is None else 0.0
        if self.value == inf:
            self.value = start
        self._safe = self.value
        self._tried = inf  # a slower pace, while it is found out whether less is refused then
        self._before: float | None = None  # what was believed before it was found for the first time
        self._is_sure = False  # it was found again
        self._rate = -inf  # what was found last
        self._is_guess = False  # it was not all that was refused
        self._cut_at = -inf
        self.measured = False  # and not tried
        self._changed_at: float | None = None
        self._step = _STEP
        self._gap_s = _GAP_S
        self._probed_at = self._climbed_at = -inf  # a step upward of what was found, and one back up to what was
        self._before_probe = self.value

    @property
    def pace(self) -> float:
        """What is sent a minute: the limit, or less while it is found out whether a slower pace is refused less."""
        return min(self._tried, self.value)

    @property
    def known(self) -> float | None:
        """The limit where it was configured or named, None where it is only believed."""
        return None if self._top == inf else self._top

    @property
    def exploring(self) -> bool:
        """Whether more is tried than was ever let through."""
        return self._growing or self._probed_at > -inf

    @property
    def unrefused(self) -> bool:
        """Whether this run was refused nothing for it, and was told no limit."""
        return self._growing

    @property
    def unfound(self) -> bool:
        """Whether it is still so far from any limit that it grows fast."""
        return self._growing and self.value < self._fast_below

    def named(self, now: float, limit: float, passed: float) -> bool:
        """The service names its limit; believed where it is lower and less than twice that passed in a minute."""
        if passed > 2.0 * limit + 1.0:
            return False
        if self._top == inf:
            self._top = max(1.0, limit)
        if not limit < self.value:
            return False
        self._top, self._before = limit, None
        self._found(now, limit, limit, _GAP_S, _STEP)
        return True

    def full(self, now: float, passed: float, *, shared: bool) -> bool:
        """All was refused for a part of a minute, after so much had passed in the minute before; True for a change."""
        if passed < _LEAST * self.value or (self.which == 0 and passed < _FEWEST):
            return False
        return self.lower(now, min(passed, self._rate) if self._is_again(passed) else passed, shared=shared)

    def _is_again(self, believed: float) -> bool:
        return abs(believed - self._rate) <= SAME * believed

    def lower(self, now: float, believed: float, most: float = inf, *, shared: bool, soon: bool = False) -> bool:
        """So much is let through in a minute; True when that is a change.

        Found once, more is tried after a minute, up to `most` and to what was refused; the same again, it stays for
        ten. `shared`: the service names what we believe in already. Others use it too, and may leave. `soon`: it is
        doubtful, and more is tried at once.
        """
        again = self._is_again(believed)
        self._rate, self._is_guess = believed, most < inf
        self._tried = inf
        if believed >= _NEARLY * self.value and not again and not self._growing:
            return False
        self._before, self._is_sure = self._before or self.value, again
        refused = _BELOW * self.value
        value = max(1.0, min(refused, KEEP * believed))
        gap_s, step = (_NAMED_GAP_S, _NAMED_STEP) if shared else (_GAP_S, _STEP)
        self._found(now, value, value if again else max(value, min(refused, KEEP * most)), gap_s, step)
        if soon:
            self._cut_at = -inf
        return True

    def undo(self, *, certain: bool = False) -> bool:
        """The pace was not why: believe what was believed before, unless it was found twice; True when that is more."""
        if self._before is None or self._before <= self.value or (self._is_sure and not certain):
            return False
        self.value = self._safe = self._before
        self.measured, self._before = False, None
        return True

    def slower(self, pace: float) -> None:
        """Try a slower pace; `inf` ends that."""
        self._tried = max(1.0, pace)

    def summit(self, now: float, passed: float, *, shared: bool) -> bool:
        """Refused on the way back up, after so much had passed in a minute; True when that is a change.

        What a slower pace let guess is corrected half-way: a counter lets through no more, a bucket for a while.
        """
        if now - self._climbed_at >= EPISODE_S:
            return False
        if self._is_guess and self._is_again(passed):
            self._rate = max(self._rate, (self._rate + passed) / 2.0)
        return self.full(now, max(passed, self._rate), shared=shared)

    def back(self, now: float) -> bool:
        """Give a probe upward up again, if there is one; True when there was."""
        if now - self._probed_at >= self._gap_s:
            return False
        self._found(now, self._before_probe, self._before_probe, min(2.0 * _NAMED_GAP_S, 2.0 * self._gap_s), _STEP)
        return True

    def grow(self, now: float, last_minute: float) -> bool:
        """Probe upward; called while this limit is what holds the work up. `last_minute` is what it let through."""
        if self.value >= self._top or self._tried < inf:
            return False
        if self._changed_at is None:
            self._changed_at = now
        age = now - self._changed_at
        if self._growing:
            fast = self.value < self._fast_below
            if age < GROWTH_S or last_minute < (1.0 if fast else _FILLED * self.value):
                return False
            self.value = self._safe = min(self._top, self.value * (_FAST if fast else SLOW))
        elif self.value < self._safe:
            if age < GROWTH_S or now - self._cut_at < EPISODE_S:
                return False
            self._climbed_at = now
            self.value = min(self._safe, _BACK * self.value)
        else:
            if age < self._gap_s:
                return False
            self._before_probe, self._probed_at = self.value, now
            self.value = self._safe = min(self._top, self.value * (1.0 + self._step))
            self._step = min(_LONGEST_STEP, 2.0 * self._step)
            self._gap_s = _NAMED_GAP_S
        self._changed_at, self.measured = now, False
        return True

    def witnessed(self, now: float, last_minute: float) -> bool:
        """Believe what other runs are let through, unless a refusal has just told more; True when the limit changed."""
        if now - self._cut_at < EPISODE_S or last_minute <= self.value or self.value >= self._top:
            return False
        self.value = self._safe = min(self._top, (SLOW if self._growing else 1.0 + _STEP) * last_minute)
        return True

    def _found(self, now: float, value: float, safe: float, gap_s: float, step: float) -> None:
        self.value, self._safe, self._gap_s, self._step = value, safe, gap_s, step
        self._growing, self._tried = False, inf
        self._probed_at = self._climbed_at = -inf
        self._cut_at = self._changed_at = now
        self.measured = True
