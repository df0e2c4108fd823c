"""What the service is believed to allow a minute, learned from its refusals."""

from dataclasses import dataclass
from math import inf

KEEP = 0.99
"""Part of what was admitted that is believed to be the limit."""
EPISODE_S = 60.0
_LEAST = 0.02  # of the limit before, in the first cut
_REPEAT = 0.5  # the deepest cut when one follows another within EPISODE_S
_MEASURE_S = 20.0  # over less time no rate can be measured
_AT_ONCE_S = 4.0
_REPEAT_SOON, _NAMED_SOON = 0.85, 0.95  # the cut then; a named limit that is not lower is used by others too
_STEP, _NAMED_STEP, _LONGEST_STEP = 0.02, 0.06, 0.32  # upward; twice as long each time it succeeds
_NAMED_GAP_S, _GAP_S = 60.0, 600.0
_GROWTH_S = 10.0  # between two steps of growth
_FAST, _SLOW = 2.0, 1.08  # a step; slow is ×1.6 a minute
_FILLED = 0.7  # of the limit must have been used in the last minute before it grows slowly
_SMALL = 240.0  # a minute, up to which it grows fast: the few that are on their way when it is refused are few


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the server let through before a refusal, in the unit of the meter."""

    last_minute: float  # before the refused request left
    last_two_minutes: float
    since_cut: float
    resumed_at: float  # when the first request left after the last hold
    total: float
    began_at: float  # of `total`


class AdaptiveLimit:
    """The limit of one meter, requests or tokens a minute.

    Never refused and never told: it grows while it is what holds the work up, fast at first. Of the requests on their
    way when a window is full, a server refuses about the part by which the rate grew within that window, and all of
    them if it counts fixed minutes: hence slowly, once they are more than a few. Refused: it becomes the limit that the
    service names, or what was admitted in the last minute; then it is probed upward, carefully, never above what was
    configured or named. One cut an episode: refusals of what was sent before a cut say nothing new.
    """

    def __init__(self, configured: float | None, start: float, learned: float | None = None) -> None:
        """`learned` is what an earlier run came to believe; `start` is used when nothing is known."""
        self._top = configured if configured is not None else inf
        self.value = min(self._top, learned if learned is not None else self._top)
        self._growing = configured is None
        self._overgrown = False  # the last cut ended the growth
        self._fast_below = _SMALL if learned is None else 0.0
        if self.value == inf:
            self.value = start
        self._safe = self.value
        self._cut_at = -inf
        self._changed_at: float | None = None
        self._step = _STEP
        self._gap_s = _GAP_S
        self._probed_at = -inf
        self._before_probe = self.value

    @property
    def known(self) -> float | None:
        """The limit where it was configured or named, None where it is only believed."""
        return None if self._top == inf else self._top

    @property
    def cut_at(self) -> float:
        """When the limit was last cut; -inf before the first time."""
        return self._cut_at

    def refused(self, now: float, sent_at: float, admitted: Admitted, named: float | None) -> bool:
        """Learn from a refusal of a request sent at `sent_at`; True when the limit changed."""
        if sent_at <= self._cut_at:
            return False
        if named is not None and self._top == inf:
            self._top = max(named, 1.0)
        if named is not None and named < self.value:
            self._top = self.value = self._safe = named
        elif now - self._probed_at < self._gap_s:
            self.value = self._safe = self._before_probe
        elif now - self._cut_at < EPISODE_S:
            self._cut_again(now, admitted, named is not None)
        else:
            self._safe = self.value = max(
                1.0, _LEAST * self.value, min(0.98 * self.value, KEEP * self._explained(now, admitted))
            )
        # A limit that is named and not lower is used by others too, who may leave; one nobody names is probed seldom.
        self._gap_s = _GAP_S if named is None else _NAMED_GAP_S
        self._overgrown, self._growing = self._growing, False
        self._cut_at = self._changed_at = now
        self._probed_at = -inf
        self._step = _STEP if named is None else _NAMED_STEP
        return True

    def grow(self, now: float, last_minute: float) -> bool:
        """Probe upward; called while this limit is what holds the work up. `last_minute` is what it let through."""
        if self.value >= self._top:
            return False
        if self._changed_at is None:
            self._changed_at = now
        age = now - self._changed_at
        if self._growing:
            fast = self.value < self._fast_below
            if age < _GROWTH_S or not (fast or last_minute >= _FILLED * self.value):
                return False
            self.value = self._safe = min(self._top, self.value * (_FAST if fast else _SLOW))
        elif self.value < self._safe:
            if age < EPISODE_S:
                return False
            self.value = min(self._safe, 1.1 * self.value)
        else:
            if age < self._gap_s:
                return False
            self._before_probe, self._probed_at = self.value, now
            self.value = self._safe = min(self._top, self.value * (1.0 + self._step))
            self._step = min(_LONGEST_STEP, 2.0 * self._step)
            self._gap_s = _NAMED_GAP_S
        self._changed_at = now
        return True

    def _cut_again(self, now: float, admitted: Admitted, named: bool) -> None:
        """Refused within a minute of the last cut: the limit is what got through since, but not too little.

        After growth, refused at once at a pace that had been admitted for a minute: a bucket that was full when the
        pace passed its limit, and has given that and what flowed in since.
        """
        refused, self._safe = self.value, 0.98 * self.value
        resumed_s = now - admitted.resumed_at
        if self._overgrown and not named and resumed_s < _AT_ONCE_S:
            self._safe = self.value = max(1.0, min(self._safe, KEEP * admitted.last_two_minutes / 3.0))
        elif resumed_s < _MEASURE_S:
            soon = _NAMED_SOON if named else _REPEAT_SOON
            self.value = max(1.0, min(KEEP * admitted.last_minute, soon * refused))
        else:
            rate = admitted.since_cut / (now - self._cut_at) * 60.0
            self.value = max(1.0, min(self._safe, max(KEEP * rate, _REPEAT * refused)))

    def _explained(self, now: float, admitted: Admitted) -> float:
        """The limit that explains a refusal after quiet.

        A server that counts windows has let through its limit in the last minute. One that let through a whole minute
        at the believed rate, and refuses for the first time, keeps a bucket that was full at first: by now it has
        given its capacity and what flowed in since.
        """
        if self._cut_at > -inf or admitted.last_minute < 0.97 * self.value:
            return admitted.last_minute
        return min(admitted.last_minute, admitted.total / (1.0 + (now - admitted.began_at) / 60.0))
