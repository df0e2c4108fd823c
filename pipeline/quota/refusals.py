"""Which requests were refused, by number, and whether that hangs on our pace: a slower one tells.

A constant limit lets through min(pace, limit), a service that is short of capacity a part of any pace. At one pace both
look alike; at a slower one the first refuses nothing, the second the same share.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, log1p, sqrt
from operator import attrgetter
from typing import Literal

from pipeline.quota.book import Entry
from pipeline.quota.ledger import Charge

FEW, MANY = 4, 8
"""Refusals beyond the usual that raise the question: while none are usual, and once a share is.

By chance n come once in 3^n refusals: with eight, a question that asks in vain costs nothing to speak of.
"""
LEAST = 0.005
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
OVERTAKEN_S = 0.5
"""So much later may a request have left that reaches the service first."""
_BLOCK = 16.0  # expected refusals over which a usual share is measured: within a quarter
_KEPT = 64

Found = Literal["pace", "chance"]


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way: its charge in the ledger and its line in the book."""

    sent_at: float
    tokens: int = 0  # as reserved
    number: int = 0  # of all that were sent
    crowd: int = 0  # in flight as it left
    flex: bool = False  # asked in that lane
    again_at: float = -inf  # when the service wants to see it again after a refusal
    charge: Charge | None = None
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A slower pace, for the requests after number `since`."""

    since: int
    share: float  # refused of those before
    usual: float


def most_likely(refused: int, of: int) -> float:
    """The largest share that so many refused of so many may come from, in 19 of 20 cases (Wilson's bound)."""
    z, p = 1.64, refused / of
    return (p + z * z / (2 * of) + z * sqrt(p * (1 - p) / of + (z / (2 * of)) ** 2)) / (1 + z * z / of)


def excess(refused: Sequence[Ticket], share: float) -> tuple[float, int]:
    """By how many refusals the numbered requests go beyond the share that is usual, and where that begins.

    Page's cumulated sum for odds three times as high: a refusal adds 1, each request takes ln(1 + 2·share)/ln 3.
    """
    usual = log1p(2.0 * share) / log(3.0)
    total, first = 0.0, 0
    for at, ticket in enumerate(refused):
        total -= usual * (ticket.number - refused[at - 1].number) if at else 0.0
        if total <= 0.0:
            total, first = 0.0, at
        total += 1.0
    return total, first


class Refusals:
    """The refused since the last verdict, and the share of all that is usual: that does not hang on our pace."""

    def __init__(self) -> None:
        self.share = LEAST
        self.trial: Trial | None = None
        self._refused: list[Ticket] = []
        self.judged, self._judged_at = 0, 0.0  # what left up to this number says nothing any more
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

    @property
    def is_unusual(self) -> bool:
        """Whether it is more than usual, even if one alone, while none are usual."""
        return excess(self._refused, self.share)[0] >= (1 if self.share == LEAST else MANY)

    def add(self, ticket: Ticket) -> bool:
        """A request was refused; False if it left before the last verdict."""
        number = ticket.number
        if number <= self.judged:
            return False
        insort(self._refused, ticket, key=attrgetter("number"))
        del self._refused[:-_KEPT]
        if not self.trial and self.share > LEAST:
            self._block += 1
            if (number - self._block_from) * self.share >= _BLOCK:
                share = self._block / (number - self._block_from)
                self.share = min(MOST, max(LEAST, (self.share + share) / 2.0))
                self._block, self._block_from = 0, number
        return True

    def all_refused(self, sent: int) -> list[Ticket]:
        """The last requests, up to number `sent`, if all were refused since it became unusual, and that is no chance.

        One of them may have got through, and those that left just before may have been overtaken on their way.
        """
        unusual = self.unusual()
        first, strays, expected = len(unusual), 0, sent
        for ticket in reversed(unusual):
            strays += expected - ticket.number
            if strays > 1 or (expected > ticket.number and first >= len(unusual) - 1):
                break
            first, expected = first - 1, ticket.number - 1
        row = unusual[first:]
        usual = self.trial.share if self.trial else self.share
        if excess(row, usual)[0] <= (FEW if usual == LEAST else MANY) - 1.5:
            return []
        return row if row[0].sent_at - unusual[0].sent_at <= OVERTAKEN_S else []

    def unusual(self) -> list[Ticket]:
        """Those since it became more than usual."""
        return self._refused[excess(self._refused, self.share)[1] :]

    def is_stale(self, now: float, sent: int) -> bool:
        """Whether it is time to ask about the usual share again."""
        asked_enough = sent - self.judged < _RETEST_AFTER * self._trial_sends
        return not self.trial and self.share > LEAST and now - self._judged_at >= RETEST_S and not asked_enough

    def ask(self, sent: int, share: float, usual: float) -> None:
        """From now on the pace is slower: is the same share refused?"""
        self.trial, self.share = Trial(sent, share, usual), usual
        self._refused.clear()
        self.judged = sent

    def verdict(self, now: float, sent: int) -> Found | None:
        """What the trial has found out, None while it goes on."""
        trial = self.trial
        if trial is None:
            return None
        refused, sends = len(self._refused), sent - trial.since
        known = self._refused[-1].number - trial.since if refused else 0
        if refused >= SURE and refused >= (trial.share + trial.usual) / 2.0 * known:
            if trial.usual == LEAST:  # what raised the question was of the same share
                refused, known = refused + FEW, known + round(FEW / trial.share)
            self.judge(now, sent, refused / known)
            found: Found = "chance"
        elif sends * (trial.share - trial.usual) >= ENOUGH:
            self.judge(now, sent, max(trial.usual, refused / sends) if refused > 1 else None)
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
        self.judged, self._judged_at = sent, now
        self._block, self._block_from = 0, sent
