"""Which requests were refused, by number, and whether that hangs on our pace: a slower one tells.

A constant limit lets through min(pace, limit), a service that is short of capacity a part of any pace. At one pace both
look alike; at a slower one the first refuses nothing, the second the same share.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log1p
from typing import Literal

FEW, MANY = 4, 8
"""Refusals beyond the usual that raise the question: while none are usual, and once a share is.

By chance n come once in 3^n refusals: with eight, a question that asks in vain costs nothing to speak of.
"""
LEAST = 0.01
"""The share that is always usual: an answer to the question would cost more than these refusals."""
MOST = 0.9
"""The largest share that is ever usual: beyond it a service that is down could not be told."""
SURE, ENOUGH = 5, 12.0
"""Refusals at the slower pace that show that it does not help; and how many would have come if it did not.

Fewer than 5 where 12 are expected come by chance once in a hundred.
"""
RETEST_S = 120.0
"""A share is asked about again after two minutes: that bounds what a wrong answer costs."""
_RETEST_AFTER = 20  # times what the last question took, so that it costs a hundredth of the pace
_BLOCK = 16.0  # expected refusals over which a usual share is measured: within a quarter
_KEPT = 64

Refused = tuple[int, float]
"""The number of a request, and when it left."""
Verdict = Literal["pace", "chance"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A slower pace, for the requests after number `since`."""

    since: int
    share: float  # refused of those before
    usual: float


def excess(refused: Sequence[Refused], share: float) -> tuple[float, int]:
    """By how many refusals the numbered requests go beyond the share that is usual, and where that begins.

    Page's cumulated sum for odds three times as high: a refusal adds 1, each request takes ln(1 + 2·share)/ln 3.
    """
    usual = log1p(2.0 * share) / log(3.0)
    total, first = 0.0, 0
    for at, (number, _) in enumerate(refused):
        total -= usual * (number - refused[at - 1][0]) if at else 0.0
        if total <= 0.0:
            total, first = 0.0, at
        total += 1.0
    return total, first


class Refusals:
    """The refused since the last verdict, and the share of all that is usual: that does not hang on our pace."""

    def __init__(self) -> None:
        self.share = LEAST
        self.trial: Trial | None = None
        self._refused: list[Refused] = []
        self._judged, self._judged_at = 0, 0.0  # what left up to this number says nothing any more
        self._trial_sends = 0
        self._block, self._block_from = 0, 0

    @property
    def is_first(self) -> bool:
        """Whether only one was refused, while none are usual."""
        return len(self.unusual()) == 1 and self.share == LEAST and self.trial is None

    @property
    def asking(self) -> bool:
        """Whether so many were refused that the question must be asked."""
        return self.trial is None and excess(self._refused, self.share)[0] >= (FEW if self.share == LEAST else MANY)

    def add(self, number: int, sent_at: float) -> bool:
        """A request was refused; False if it left before the last verdict."""
        if number <= self._judged:
            return False
        insort(self._refused, (number, sent_at))
        del self._refused[:-_KEPT]
        if not self.trial and self.share > LEAST:
            self._block += 1
            if (number - self._block_from) * self.share >= _BLOCK:
                self.share = min(MOST, max(LEAST, self._block / (number - self._block_from)))
                self._block, self._block_from = 0, number
        return True

    def row(self, sent: int) -> list[Refused]:
        """The last requests, up to number `sent`, that were all refused; one among them may have overtaken others."""
        count, expected, strays = 0, sent, 0
        for number, _ in reversed(self._refused):
            strays += expected - number
            if strays > 1 or (expected > number and count < 2):
                break
            count, expected = count + 1, number - 1
        return self._refused[len(self._refused) - count :]

    def is_chance(self, row: Sequence[Refused]) -> bool:
        """Whether so many in a row may be what is usual."""
        usual = self.trial.share if self.trial else self.share
        return excess(row, usual)[0] <= (FEW if usual == LEAST else MANY) - 1.5

    def unusual(self) -> list[Refused]:
        """Those since it became more than usual."""
        return self._refused[excess(self._refused, self.share)[1] :]

    def is_stale(self, now: float, sent: int) -> bool:
        """Whether it is time to ask about the usual share again."""
        asked_enough = sent - self._judged < _RETEST_AFTER * self._trial_sends
        return not self.trial and self.share > LEAST and now - self._judged_at >= RETEST_S and not asked_enough

    def ask(self, sent: int, share: float, usual: float) -> None:
        """From now on the pace is slower: is the same share refused?"""
        self.trial = Trial(sent, share, usual)
        self._refused.clear()
        self._judged = sent

    def verdict(self, now: float, sent: int) -> Verdict | None:
        """What the trial has found out, None while it goes on."""
        trial = self.trial
        if trial is None:
            return None
        refused, sends = len(self._refused), sent - trial.since
        known = self._refused[-1][0] - trial.since if refused else 0
        if refused >= SURE and refused >= (trial.share + trial.usual) / 2.0 * known:
            if trial.usual == LEAST:  # what raised the question was of the same share
                refused, known = refused + FEW, known + round(FEW / trial.share)
            self.judge(now, sent, refused / known)
            found: Verdict = "chance"
        elif sends * (trial.share - trial.usual) >= ENOUGH:
            self.judge(now, sent)
            found = "pace"
        else:
            return None
        self._trial_sends = sends
        return found

    def judge(self, now: float, sent: int, share: float | None = None) -> None:
        """Whatever left up to now is judged; `share` is usual from now on."""
        if share is not None:
            self.share = min(MOST, max(LEAST, share))
        self.trial = None
        self._refused.clear()
        self._judged, self._judged_at = sent, now
        self._block, self._block_from = 0, sent
