"""What is done about refusals for quota: all wait, a slower pace is tried, fewer are in flight, or nothing at all."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from pipeline.quota.ledger import TokenLedger
from pipeline.quota.limit import Limit
from pipeline.quota.pacer import WINDOW_S
from pipeline.quota.refusals import LEAST, Refusals, Ticket, Trial, most_likely
from pipeline.quota.slots import Slots

KNOWN_S = 0.5
"""What was sent is believed not to be refused after this; or after twice what the last refusal took to come."""
SLOWER = 0.9
"""Of what gets through for certain: there a limit refuses nothing."""
SLOWEST = 0.15
"""Of the pace, though less may get through: a trial must end soon."""
DOUBTED_S = 180.0
"""So soon after a slower pace has helped, one that does not was not slow enough: half of it is tried."""
SOON_S = 30.0
"""A trial that took longer is not repeated."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_VAIN = 4  # holds after which first refusals hold nothing, unless a limit was found
_WINDOW_ENDS_S = WINDOW_S + 2.0  # no quota of a minute refuses everything for longer
_CROWD_ENDS_S = 3.0  # so soon one of many in flight is through, and no window over
_SUDDEN, _CLEAN = 0.25, 20  # of all refused, after so many were not: a limit that was reached
_SAME_TIME, _ANY_TIME = 1_000, 100_000  # by chance once in so many times; at first fewer are in flight
_CROWD = 0.1  # of those of a minute: what found as many in flight as these may be refused for that
_HOLD_JITTER_S = 0.25

Changed = Callable[[Limit, float, bool], None]
"""A limit or its pace has changed, at that time; True when something was learned for good."""


@dataclass(slots=True)
class _Closed:
    """Everything is refused; one request at a time asks whether that is over, after pauses twice as long each time."""

    since: float
    passed: dict[Limit, float]  # in the minute before
    row: Sequence[Ticket]  # with which it began
    pause_s: float = FIRST_PAUSE_S / 2.0
    until: float = inf
    probe: Ticket | None = None
    refused_at: float = inf
    is_window: bool = False


class Gate:
    """Holds, probes and questions of one quota: one rule for each way to be refused.

    - The first refusal holds all until it is known what became of the others on their way.
    - All refused: a window is full, or the service down. One request at a time asks whether that is over. If it takes
      a minute at most it was a window, and the limit is what the minute before it had; unless the service says that it
      is short of capacity.
    - Some refused: a slower pace is tried. If that helps, the limit is what got through; if not, the share is usual and
      neither holds nor slows anything, until it triples or is asked about again.
    - Where the refused found most in flight, the slots are bounded instead.
    """

    def __init__(self, ledger: TokenLedger, slots: Slots, rng: Random, changed: Changed) -> None:
        self._ledger, self._slots, self._rng, self._changed = ledger, slots, rng, changed
        self._refusals = Refusals()
        self._limits: tuple[Limit, ...] = ()  # what the last refusal is about
        self._shared = False  # it named what is believed anyway: others use it too
        self._of_capacity = False  # it said that there is no room for anybody: no window of ours is full
        self._told_s = 0.0  # how long it said to wait
        self._unsettled = False  # it is not yet judged
        self._guesses: dict[Limit, tuple[float, float]] = {}  # if the trial helps: the limit, and the most it may be
        self._doubted = False  # a trial that does not help is repeated
        self._closed: _Closed | None = None
        self._before: _Closed | None = None  # the last that is over
        self._hold_until = self._opened_at = self._asked_at = self._found_at = -inf
        self._disturbed_at: float | None = None  # when it all began, or less was sent than before
        self._refused_last = 0  # its number
        self._is_sudden = False  # what is refused now, after many that were not
        self._vain = 0  # holds since a limit was found
        self._known_s = KNOWN_S
        self._sent = self.in_flight = 0  # requests
        self._passed: deque[Ticket] = deque(maxlen=256)  # the last that left, but for the refused

    def opens_at(self, now: float) -> float | None:
        """None when a request may leave; else when to ask again."""
        if now < self._hold_until:
            return self._hold_until
        if not self._closed and (self._unsettled or self._refusals.trial):
            self._settle(now)
        closed = self._closed
        if closed and closed.probe:
            known_at = closed.probe.sent_at + self._known_s
            if now < known_at:
                return known_at
            self._open(closed, now)
        elif closed and now < closed.until:
            return closed.until
        return None

    def down_s(self) -> float:
        """How long everything has been refused."""
        return self._closed.refused_at - self._closed.since if self._closed else 0.0

    def hold(self, now: float, wait_s: float) -> None:
        """Nothing leaves for so long."""
        self._hold_until = max(self._hold_until, now + wait_s + self._rng.uniform(0.0, _HOLD_JITTER_S))

    def sent(self, ticket: Ticket) -> None:
        """A request leaves, and has its number from now on."""
        ticket.crowd = self.in_flight
        self._passed.append(ticket)
        self.in_flight += 1
        self._sent += 1
        if self._disturbed_at is None:
            self._disturbed_at = ticket.sent_at
        ticket.number = self._sent
        if self._closed:
            self._closed.probe = ticket

    def returned(self, ticket: Ticket, now: float, *, answered: bool) -> None:
        """A request has come back, not refused; `answered`: the service did what it was asked for."""
        self.in_flight -= 1
        if self._closed and self._closed.probe is ticket:
            if answered:
                self._open(self._closed, now)
            else:
                self._closed.probe = None

    def judged(self, now: float) -> None:
        """What was refused until now is explained."""
        self._refusals.judge(now, self._sent)

    def passed(self, limit: Limit, ticket: Ticket) -> float:
        """What was let through in the minute before a refused request, and its own tokens: it is too much."""
        own = 0 if limit.meter == "requests" else ticket.tokens
        return self._ledger.between(ticket.sent_at - WINDOW_S, ticket.sent_at)[limit.which] + own

    def refused(
        self,
        ticket: Ticket,
        now: float,
        wait_s: float,
        limits: Sequence[Limit],
        *,
        explained: bool,
        shared: bool,
        of_capacity: bool,
    ) -> bool:
        """The request was refused and should wait; True, once until it is over, when nothing gets through at all."""
        self.in_flight -= 1
        if ticket in self._passed:
            self._passed.remove(ticket)
        self._known_s = max(KNOWN_S, 2.0 * (now - ticket.sent_at), 0.9 * self._known_s)
        last, self._refused_last = self._refused_last, max(self._refused_last, ticket.number)
        if closed := self._closed:
            closed.refused_at = now
            if closed.probe is not ticket:
                return False
            self._pause(closed, now, wait_s)
            return closed.pause_s == 2.0 * FIRST_PAUSE_S
        if explained:
            self.hold(now, wait_s)
        elif self._refusals.add(ticket):
            self._unsettled, self._limits, self._shared, self._told_s = True, tuple(limits), shared, wait_s
            self._of_capacity = of_capacity
            if self._refusals.is_unusual and self._was_window(now):
                self._closed, self._before = self._before, None
                self._shut(now)
            elif self._refusals.is_first:
                self._is_sudden = ticket.number > last + _CLEAN
                is_over = self._step_back(now) or self._ends_climb(ticket, now)
                self._vain = 0 if is_over else self._vain + 1
                if self._vain <= _VAIN:
                    self.hold(now, self._known_s)
            elif self._ends_climb(ticket, now):
                self._vain = 0
            elif now >= self._hold_until and self._refusals.asking:
                self.hold(now, self._known_s)
        return False

    def _was_window(self, now: float) -> bool:
        """Whether a window was full less than a minute ago: what is refused so soon belongs to the same episode."""
        return self._before is not None and self._before.is_window and now - self._before.since < WINDOW_S

    def _settle(self, now: float) -> None:
        """Judge what was refused, once it is known what became of all that was on its way."""
        trial, unsettled, self._unsettled = self._refusals.trial, self._unsettled, False
        if unsettled and (row := self._refusals.all_refused(self._sent)):
            passed = {} if self._of_capacity else {limit: self.passed(limit, row[0]) for limit in self._limits}
            if row[0].sent_at - self._opened_at < WINDOW_S:  # so soon and with so little no window is full again
                passed = {limit: most for limit, most in passed.items() if most >= limit.value / 2.0}
            self._closed = _Closed(row[0].sent_at, passed, row)
            self._slow(now, lambda limit: inf)
            self._shut(now)
        elif trial:
            self._take_verdict(trial, now)
        elif unsettled and self._refusals.asking:
            unusual = self._refusals.unusual()
            if not self._step_back(now) and not self._is_crowded(unusual, now, unusual[0].number):
                self._ask(now)
        elif unsettled and self._refusals.is_stale(now, self._sent):
            share = self._refusals.share
            self._refusals.ask(self._sent, share, LEAST)
            self._guesses = {limit: ((1.0 - share) * limit.value, inf) for limit in self._limits}
            self._slow(now, lambda limit: SLOWER * (1.0 - share) * limit.value)

    def _shut(self, now: float) -> None:
        assert self._closed is not None
        self._refusals.judge(now, self._sent)
        self._vain = 0
        self._pause(self._closed, now, self._told_s)

    def _pause(self, closed: _Closed, now: float, told_s: float) -> None:
        """Ask again after a pause, or when the service says; first after a minute at most, as it may be chance."""
        told_s = told_s if closed.refused_at < inf else min(told_s, WINDOW_S)
        closed.pause_s = min(LONGEST_PAUSE_S, 2.0 * closed.pause_s)
        closed.until = now + max(told_s, closed.pause_s * self._rng.uniform(0.75, 1.25))
        closed.probe, closed.refused_at = None, now

    def _open(self, closed: _Closed, now: float) -> None:
        """Something gets through again: within a minute it was a window, and no service that was down."""
        self._closed, self._before = None, closed
        self._disturbed_at = self._opened_at = now
        is_soon = now - closed.since < _CROWD_ENDS_S
        if closed.is_window or ((is_soon or self._slots.bounded) and self._is_crowded(closed.row, now)):
            return
        if not closed.passed:  # the service refuses all by turns
            self._undo(now)
        if closed.refused_at - closed.since <= _WINDOW_ENDS_S:
            for limit, passed in closed.passed.items():
                if limit.full(now, passed, shared=self._shared):
                    closed.is_window = True
                    self._changed(limit, now, True)

    def _is_crowded(self, refused: Sequence[Ticket], now: float, since: int = 0) -> bool:
        """Whether the refused are those that found most in flight: then the slots are bounded, not the pace.

        They are compared with those that left after number `since`; 0: with all that are remembered.
        """
        passed = [ticket.crowd for ticket in self._passed if ticket.number > since]
        if not self._slots.crowded([ticket.crowd for ticket in refused], passed, _SAME_TIME if since else _ANY_TIME):
            return False
        self._undo(now, certain=True)
        self._refusals.judge(now, self._sent)
        return True

    def _ask(self, now: float) -> None:
        """Try a slower pace, at which a limit would refuse nothing."""
        refused, usual = self._refusals.unusual(), self._refusals.share
        first, last = refused[0], refused[-1]
        sends = last.number - first.number
        # Less one more than between them: they were counted because they were many.
        share = min(1.0, max(1.2 * usual, (len(refused) - 2) / max(1, sends)))
        if not self._limits or (share < 0.5 and any(limit.unfound for limit in self._limits)):
            self._refusals.judge(now, self._sent, share)
            return
        sudden = share >= _SUDDEN and first.number > self._refusals.judged + _CLEAN
        self._doubted = sudden or now - self._found_at < DOUBTED_S
        self._refusals.ask(self._sent, share, usual)
        most = most_likely(len(refused), sends + 1)
        self._guesses = {limit: self._guess(limit, share, most, first, last) for limit in self._limits}
        self._disturbed_at = self._asked_at = now
        self._slow(
            now, lambda one: max(SLOWEST * one.value, SLOWER * min((1.0 - most) * one.value, self._guesses[one][0]))
        )

    def _guess(self, limit: Limit, share: float, most: float, first: Ticket, last: Ticket) -> tuple[float, float]:
        """What the limit is, and the most it may be, if it is why such a share of those between two was refused.

        Twice the most that the share may be is more than any limit keeps back.
        """
        minutes = max(KNOWN_S, last.sent_at - first.sent_at) / WINDOW_S
        rate = self._ledger.between(first.sent_at, last.sent_at)[limit.which] / minutes
        part, minute = (1.0 - share) * limit.value, self.passed(limit, last)
        steady = self._disturbed_at is not None and first.sent_at - self._disturbed_at >= WINDOW_S
        through = minute if steady else max(rate, minute)
        return max(min(part, through), (1.0 - 2.0 * most) * limit.value), max(part, minute)

    def _take_verdict(self, trial: Trial, now: float) -> None:
        found = self._refusals.verdict(now, self._sent)
        self._disturbed_at = now
        if found == "chance" and self._doubted and now - self._asked_at < SOON_S:
            self._doubted = False
            self._refusals.ask(self._sent, self._refusals.share, trial.usual)
            self._slow(now, lambda limit: limit.pace / 2.0)
        elif found == "chance":
            self._slow(now, lambda limit: inf)
            self._undo(now)
        elif found == "pace":
            self._vain, self._found_at = 0, now
            let_through = 1.0 - (trial.usual if trial.usual > LEAST else 0.0)
            doubtful = self._refusals.share > trial.usual  # some were refused all the same
            for limit in self._limits:
                believed, most = (one / let_through for one in self._guesses[limit])
                limit.lower(now, believed, inf if doubtful else most, shared=self._shared, soon=doubtful)
                self._changed(limit, now, True)

    def _undo(self, now: float, *, certain: bool = False) -> None:
        for limit in self._limits:
            if limit.undo(certain=certain):
                self._changed(limit, now, True)

    def _slow(self, now: float, pace: Callable[[Limit], float]) -> None:
        """Try a slower pace for each limit; `inf` ends that."""
        for limit in self._limits:
            limit.slower(pace(limit))
            self._changed(limit, now, False)

    def _ends_climb(self, ticket: Ticket, now: float) -> bool:
        """Whether more was tried than was found, and what is refused now is no more than that.

        No pace is blamed for a request that found more in flight than nearly all that left in the minute before.
        """
        if not self._is_sudden or self._refusals.trial or self._refusals.share > LEAST:
            return False
        recent = [one.crowd for one in self._passed if one.sent_at > ticket.sent_at - WINDOW_S]
        if sum(crowd >= ticket.crowd for crowd in recent) < _CROWD * len(recent):
            return False
        return self._believe(
            [one for one in self._limits if one.summit(now, self.passed(one, ticket), shared=self._shared)], now
        )

    def _step_back(self, now: float) -> bool:
        """Take a probe upward back that was refused."""
        return self._believe([limit for limit in self._limits if limit.back(now)], now)

    def _believe(self, changed: Sequence[Limit], now: float) -> bool:
        """What was refused until now is explained by limits that have changed; True if there are any."""
        for limit in changed:
            self._refusals.judge(now, self._sent)
            self._changed(limit, now, True)
        return bool(changed)
