"""What the service is believed to allow a minute, learned from its refusals."""

from math import inf

from pipeline.quota.evidence import Admitted

KEEP = 0.99
"""Part of what was admitted that is believed to be the limit."""
EPISODE_S = 60.0
_LEAST = 0.02  # of the limit before, in the first cut
_BELOW = 0.98  # of what was refused: the limit is lower than that
_BACK = 1.1  # a step back up to what is believed to be safe
_KEPT = 0.5  # of the limit: who sent less in a minute is not refused for the pace
_TOO_LITTLE = 0.1  # of it: so little was sent that the limit is not known by that
_REPEAT = 0.5  # the deepest cut when one follows another within EPISODE_S
_MEASURE_S = 20.0  # over less time no rate can be measured
_REPEAT_SOON, _NAMED_SOON = 0.85, 0.95  # the cut then; a named limit that is not lower is used by others too
_STEP, _NAMED_STEP, _LONGEST_STEP = 0.02, 0.06, 0.32  # upward; twice as long each time it succeeds
_NAMED_GAP_S, _GAP_S = 60.0, 600.0
_GROWTH_S = 10.0  # between two steps of growth
_FAST, _SLOW = 2.0, 1.08  # a step; slow is ×1.6 a minute
_FILLED = 0.7  # of the limit must have been used in the last minute before it grows slowly
_SMALL = 240.0  # a minute, up to which it grows fast: the few that are on their way when it is refused are few


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
        self._fast_below = _SMALL if learned is None else 0.0
        if self.value == inf:
            self.value = start
        self._safe = self.value
        self.cut_at = -inf  # when it was last cut
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
    def exploring(self) -> bool:
        """Whether more is tried than was ever let through."""
        return self._growing or self._probed_at > -inf

    @property
    def is_guess(self) -> bool:
        """Whether it was cut to what little had been sent, and grows back to what was configured or named."""
        return self._growing and self._top < inf

    def refused(self, now: float, sent_at: float, admitted: Admitted, named: float | None) -> bool:
        """Learn from a refusal of a request sent at `sent_at`; True when the limit changed."""
        lower = named is not None and named < self.value
        if sent_at <= self.cut_at or (not lower and self._proves_nothing(admitted)):
            return False
        guessed = False
        if named is not None and self._top == inf:
            self._top = max(named, 1.0)
        if named is not None and lower:
            self._top = self.value = self._safe = named
        elif now - self._probed_at < self._gap_s:
            self.value = self._safe = self._before_probe
        elif now - self.cut_at < EPISODE_S:
            self._cut_again(now, admitted, named is not None)
        else:
            floor, ceiling = max(1.0, (_LEAST if named is None else _REPEAT) * self.value), _BELOW * self.value
            least, most = (KEEP * counted for counted in (admitted.least, admitted.most))
            guessed = named is None and least < _TOO_LITTLE * self.value
            self.value, self._safe = max(floor, min(ceiling, least)), max(floor, min(ceiling, most))
        # A limit that is named and not lower is used by others too, who may leave; one nobody names is probed seldom.
        self._gap_s = _GAP_S if named is None else _NAMED_GAP_S
        self._growing = guessed
        self.cut_at = self._changed_at = now
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
            self.value = min(self._safe, _BACK * self.value)
        else:
            if age < self._gap_s:
                return False
            self._before_probe, self._probed_at = self.value, now
            self.value = self._safe = min(self._top, self.value * (1.0 + self._step))
            self._step = min(_LONGEST_STEP, 2.0 * self._step)
            self._gap_s = _NAMED_GAP_S
        self._changed_at = now
        return True

    def witnessed(self, now: float, last_minute: float) -> bool:
        """Believe what other runs are let through, unless a refusal has just told more; True when the limit changed."""
        if now - self.cut_at < EPISODE_S or last_minute <= self.value or self.value >= self._top:
            return False
        self.value = self._safe = min(self._top, (_SLOW if self._growing else 1.0 + _STEP) * last_minute)
        return True

    def _proves_nothing(self, admitted: Admitted) -> bool:
        """Nothing was answered since the last cut, and it is not our pace: that was not kept, or no quota is named."""
        if admitted.answered_at > self.cut_at:
            return False
        return self.cut_at > -inf and (admitted.opaque or admitted.most < _KEPT * self.value)

    def _cut_again(self, now: float, admitted: Admitted, named: bool) -> None:
        """Refused within a minute of the last cut: the limit is what got through since, but not too little.

        Over a short time no rate can be measured; but a bucket that was full when the pace passed its limit has given
        that and what flowed in since.
        """
        refused, self._safe = self.value, _BELOW * self.value
        if now - admitted.resumed_at >= _MEASURE_S:
            rate = admitted.since_cut / (now - self.cut_at) * 60.0
            self.value = max(1.0, min(self._safe, max(KEEP * rate, _REPEAT * refused)))
            return
        soon = (_NAMED_SOON if named else _REPEAT_SOON) * refused
        self.value = max(1.0, _REPEAT * refused, min(KEEP * admitted.least, KEEP * admitted.bucket, soon))
        if not named and KEEP * admitted.bucket < soon:
            self._safe = self.value
