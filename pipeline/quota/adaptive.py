"""What the service is believed to allow a minute, learned from its refusals."""

from dataclasses import dataclass
from math import inf

KEEP = 0.99
"""Part of what was admitted that is believed to be the limit."""
EPISODE_S = 60.0
_LEAST = 0.02  # of the limit before, in one cut
_REPEAT = 0.7  # the deepest cut when one follows another within EPISODE_S
_STEP, _LONGEST_STEP = 0.02, 0.32
_FIRST_GAP_S, _LONGEST_GAP_S = 60.0, 600.0
_DOUBLING_S = 10.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the server let through before a refusal, in the unit of the meter."""

    last_minute: float
    since_cut: float
    total: float
    began_at: float  # of `total`


class AdaptiveLimit:
    """The limit of one meter, requests or tokens a minute.

    Never refused and never told: it doubles while it is what holds the work up. Refused: it becomes the limit that the
    service names, or what was admitted in the last minute; then it is probed upward, carefully, never above what was
    configured or named. One cut an episode: refusals of what was sent before a cut say nothing new.
    """

    def __init__(self, configured: float | None, start: float, learned: float | None = None) -> None:
        """`learned` is what an earlier run came to believe; `start` is used when nothing is known."""
        self._top = configured if configured is not None else inf
        self.value = min(self._top, learned if learned is not None else self._top)
        self._growing = self.value == inf
        if self._growing:
            self.value = start
        self._safe = self.value
        self._cut_at = -inf
        self._changed_at: float | None = None
        self._step = _STEP
        self._gap_s = _FIRST_GAP_S

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
        repeated = now - self._cut_at < EPISODE_S
        if named is not None and named < self.value:
            self._top = self.value = self._safe = named
        else:
            self._cut(now, admitted, repeated)
        self._growing = False
        self._cut_at = self._changed_at = now
        self._step = _STEP
        self._gap_s = min(_LONGEST_GAP_S, self._gap_s * 2) if repeated else self._gap_s
        return True

    def grow(self, now: float, period_s: float) -> bool:
        """Probe upward; called while the limit is what holds the work up. `period_s`: seconds between requests."""
        if self.value >= self._top:
            return False
        if self._changed_at is None:
            self._changed_at = now
        age = now - self._changed_at
        if self._growing:
            if age < max(_DOUBLING_S, 2 * period_s):
                return False
            self.value = self._safe = min(self._top, self.value * 2)
        elif self.value < self._safe:
            if age < EPISODE_S:
                return False
            self.value = min(self._safe, self.value * 1.1)
        else:
            if age < self._gap_s:
                return False
            self.value = self._safe = min(self._top, self.value * (1 + self._step))
            self._step = min(_LONGEST_STEP, self._step * 2)
            self._gap_s = _FIRST_GAP_S
        self._changed_at = now
        return True

    def _cut(self, now: float, admitted: Admitted, repeated: bool) -> None:
        before = self.value
        if repeated:
            rate = admitted.since_cut / max(1.0, now - self._cut_at) * 60.0
            self.value = min(0.98 * before, max(KEEP * rate, _REPEAT * before))
            self._safe = min(self._safe, 0.98 * before)
        else:
            self.value = min(0.98 * before, KEEP * self._explained(now, admitted))
            self._safe = self.value
        self.value = max(self.value, _LEAST * before, 1.0)
        self._safe = max(self._safe, self.value)

    def _explained(self, now: float, admitted: Admitted) -> float:
        """The limit that explains a refusal after quiet.

        Every server that counts windows refuses once a minute holds its limit. One that let through a full minute at
        the believed rate and refuses all the same keeps a bucket that was full at first: by now it has admitted its
        capacity and what flowed in since.
        """
        if admitted.last_minute < 0.97 * self.value:
            return admitted.last_minute
        return min(admitted.last_minute, admitted.total / (1.0 + (now - admitted.began_at) / 60.0))
