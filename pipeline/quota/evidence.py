"""What a refusal for quota tells: how much the server had let through when it came."""

from dataclasses import dataclass
from typing import Literal

from pipeline.quota.ledger import TokenLedger
from pipeline.quota.pacer import WINDOW_S

_TELLING_S = 1.0  # a shorter wait ends with a minute by chance too often
_SAME_S = 0.5

Which = Literal[0, 1]
"""Of the sums of a ledger: requests, or tokens."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the server let through before a refusal, in the unit of the meter."""

    least: float  # in its last minute, before the refused request left
    most: float  # the same; more than `least` where nothing tells how it counts
    bucket: float  # the limit that explains it all if the server keeps a bucket of one minute, full at first
    since_cut: float
    resumed_at: float  # when the first request left after the last hold
    answered_at: float  # when the last request left that was answered since
    opaque: bool  # the refusal named no quota


def last_minute(
    ledger: TokenLedger, bounds: tuple[float, float] | None, which: Which, left_at: float, now: float, wait_s: float
) -> tuple[float, float]:
    """What the server had counted before a request left that it refused: at least, and at most.

    A server that says to wait until its own minute ends (`bounds` are those of its clock) counts by that minute. Until
    the first request of the last 60 s is a minute old: a sliding log; if that takes much longer than it says, no log.
    """

    def between(begin: float, end: float) -> float:
        return ledger.since(begin)[which] - ledger.since(end)[which]

    log = between(left_at - WINDOW_S, left_at)
    if bounds is None:
        return log, log
    ahead_s, uncertain_s = sum(bounds) / 2, _SAME_S + (bounds[1] - bounds[0]) / 2
    elapsed_s = (left_at + ahead_s) % WINDOW_S
    began = left_at - elapsed_s
    current = between(began, left_at)
    counter = current + between(began - WINDOW_S, began) * (1.0 - elapsed_s / WINDOW_S)
    off_s = (now + wait_s + ahead_s) % WINDOW_S
    log_wait_s = ledger.leaves_at(left_at - WINDOW_S) - now
    if wait_s > _TELLING_S and min(off_s, WINDOW_S - off_s) < uncertain_s:
        return current, current
    if wait_s > _TELLING_S and abs(wait_s - log_wait_s) < uncertain_s:
        return log, log
    if log_wait_s > wait_s + _TELLING_S:
        return counter, counter
    return min(log, counter), max(log, counter)
