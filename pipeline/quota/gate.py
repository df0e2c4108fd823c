"""What is done about refusals for quota: all wait, a slower pace is tried, fewer are in flight, or nothing at all."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from pipeline.quota.book import Entry
from pipeline.quota.breaker import Breaker
from pipeline.quota.ledger import Charge, TokenLedger
from pipeline.quota.limit import Limit
from pipeline.quota.pacer import WINDOW_S
from pipeline.quota.refusals import LEAST, Refusals, Trial
from pipeline.quota.slots import Slots

KNOWN_S = 0.5
"""What was sent is believed not to be refused after this; or after twice what the last refusal took to come."""
SLOWER = 0.6
"""Of what got through: so far below a limit nothing is refused, though others take a varying part of it."""
_SLOWEST = 0.25  # of the pace, though less may get through: a trial must end soon
_VAIN = 4  # holds after which first refusals hold nothing, unless a limit was found
_WINDOW_ENDS_S = WINDOW_S + 2.0  # no quota of a minute refuses everything for longer
_HOLD_JITTER_S = 0.25

Changed = Callable[[Limit, float, bool], None]
"""A limit or its pace has changed, at that time; True when something was learned for good."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way: its charge in the ledger and its line in the book."""

    sent_at: float
    tokens: int = 0  # as reserved
    number: int = 0  # of all that were sent
    again_at: float = -inf  # when the service wants to see it again after a refusal
    charge: Charge | None = None
    entry: Entry | None = None


class Gate:
    """Holds, probes and questions of one quota.

    - The first refusal holds all for as long as it says, or until it is known what became of the others on their way.
    - All refused: a window may be full, or the service down. One request at a time asks whether that is over. Refused
      twice at the same height, the limit is what the last minute had; refused for more than a minute, it was no window.
    - Some refused: a slower pace is tried. If that helps, the limit is what got through; if not, the share is usual and
      neither holds nor slows anything, until it triples or is asked about again.
    - Where the refused found most in flight, the slots are bounded instead.
    """

    def __init__(self, ledger: TokenLedger, slots: Slots, rng: Random, changed: Changed) -> None:
        self._ledger, self._slots, self._rng, self._changed = ledger, slots, rng, changed
        self._breaker = Breaker(1, rng, known_s=KNOWN_S, longer=1.5)
        self._refusals = Refusals()
        self._limits: tuple[Limit, ...] = ()  # what the last refusal is about
        self._shared = False  # it named what is believed anyway: others use it too
        self._passed: dict[Limit, tuple[float, float]] = {}  # before it: in a minute, and since all was refused last
        self._believed: dict[Limit, float] = {}  # got through a minute while some were refused
        self._hold_until = self._refused_at = -inf
        self._held_s = 0.0  # of that hold, beyond what it takes to know
        self._vain = 0  # holds since a limit was found
        self._told = False  # by the refusal that began the hold
        self._full_at: float | None = None  # when all began to be refused, until that is over
        self._open_since = -inf
        self._began_at: float | None = None
        self._unsettled = False
        self._sent = self._in_flight = 0
        self._crowds: deque[int] = deque(maxlen=256)  # in flight, as each of the last requests left

    def opens_at(self, now: float) -> float | None:
        """None when a request may leave; else when to ask again."""
        if now < self._hold_until:
            return self._hold_until
        if self._breaker.opens_at(now) is None and not self._breaker.tripped:
            self._settle(now)
        return self._breaker.opens_at(now)

    def down_s(self) -> float:
        """How long everything has been refused."""
        return self._breaker.down_s()

    def hold(self, now: float, wait_s: float) -> None:
        """Nothing leaves for so long."""
        self._hold_until = max(self._hold_until, now + wait_s + self._rng.uniform(0.0, _HOLD_JITTER_S))

    def sent(self, now: float) -> int:
        """A request leaves; its number."""
        self._breaker.sent(now)
        self._began_at = now if self._began_at is None else self._began_at
        self._crowds.append(self._in_flight)
        self._in_flight += 1
        self._sent += 1
        return self._sent

    def returned(self, answered: float | None = None) -> None:
        """A request has come back, not refused; `answered`: when it left, if the service did what it was asked for."""
        self._in_flight -= 1
        if answered is None:
            self._breaker.undecided()
        else:
            self._breaker.succeeded(answered)

    def judged(self, now: float) -> None:
        """What was refused until now is explained."""
        self._refusals.judge(now, self._sent)

    def passed(self, limit: Limit, ticket: Ticket, begin: float) -> float:
        """What was let through until a refused request left, and its own tokens: it is too much."""
        own = 0 if limit.meter == "requests" else ticket.tokens
        return max(0, self._ledger.between(begin, ticket.sent_at)[limit.which]) + own

    def refused(
        self, ticket: Ticket, now: float, wait_s: float, limits: Sequence[Limit], *, explained: bool, shared: bool
    ) -> bool:
        """The request was refused and should wait; True, once until it is over, when nothing gets through at all."""
        self._in_flight -= 1
        self._refused_at = now
        self._breaker.known_s = max(KNOWN_S, 2.0 * (now - ticket.sent_at), 0.9 * self._breaker.known_s)
        if self._breaker.tripped:
            told = self._breaker.failed(now, ticket.sent_at)
            if told:  # who is told to wait again after that is told so for its own sake: others may ask before
                self.hold(now, wait_s)
            return told
        if explained:
            self.hold(now, wait_s)
        elif self._refusals.add(ticket.number, ticket.sent_at):
            self._unsettled, self._limits, self._shared = True, tuple(limits), shared
            minute = ticket.sent_at - WINDOW_S
            self._passed = {
                limit: (self.passed(limit, ticket, minute), self.passed(limit, ticket, max(minute, self._open_since)))
                for limit in limits
            }
            if self._refusals.is_first:
                self._vain = 0 if self._step_back(now) else self._vain + 1
                if self._vain <= _VAIN:
                    self._held_s = max(0.0, wait_s - self._breaker.known_s)
                    self._told = wait_s > 2.0 * self._breaker.known_s
                    self.hold(now, max(wait_s, self._breaker.known_s))
            elif now >= self._hold_until and self._refusals.asking:
                self.hold(now, self._breaker.known_s)
        return False

    def _settle(self, now: float) -> None:
        """Judge what was refused, once it is known what became of all that was on its way."""
        if self._full_at is not None:
            if self._refused_at - self._full_at <= _WINDOW_ENDS_S:
                self._take_window(now)
            self._full_at, self._open_since = None, now
        trial, unsettled, self._unsettled = self._refusals.trial, self._unsettled, False
        told, self._told = self._told and unsettled, False
        if unsettled and self._is_full(told):
            self._refusals.judge(now, self._sent)
            self._slow(now, inf)
            self._full_at = self._refused_at
            self._vain = 0
            if told:
                self._settle(now)
            else:
                self._breaker.trip(now)
        elif trial:
            self._take_verdict(trial, now)
        elif unsettled and self._refusals.asking:
            if not self._step_back(now) and not self._is_crowded(now):
                self._ask(now)
        elif unsettled and self._refusals.is_stale(now, self._sent):
            self._refusals.ask(self._sent, self._refusals.share, LEAST)
            self._believed = {limit: (1.0 - self._refusals.share) * limit.value for limit in self._limits}
            self._slow(now, SLOWER * (1.0 - self._refusals.share))

    def _is_full(self, told: bool) -> bool:
        """Whether nothing gets through: all that left last was refused, so much after such a time that it is no chance.

        `told`: the service had all wait for longer than it takes to know; then one is enough, below the pace.
        """
        row = self._refusals.row(self._sent)
        if not row or any(anew < 0.5 * minute for minute, anew in self._passed.values()):
            return False
        below = all(minute < 0.9 * limit.value for limit, (minute, _) in self._passed.items())
        whole = len(row) >= len(self._refusals.unusual())
        return (told and whole and below and bool(self._limits)) or not self._refusals.is_chance(row)

    def _take_window(self, now: float) -> None:
        for limit in self._limits:
            if limit.full(now, *self._passed[limit], shared=self._shared):
                self._changed(limit, now, True)

    def _is_crowded(self, now: float) -> bool:
        """Whether the refused are those that found most in flight: then the slots are bounded, not the pace."""
        numbers = {number for number, _ in self._refusals.unusual()}
        crowds = [one for one in enumerate(self._crowds, self._sent - len(self._crowds) + 1) if one[0] >= min(numbers)]
        refused = [crowd for number, crowd in crowds if number in numbers]
        if not self._slots.crowded(refused, [crowd for number, crowd in crowds if number not in numbers]):
            return False
        self._undo(now)
        self._refusals.judge(now, self._sent)
        return True

    def _ask(self, now: float) -> None:
        """Try a slower pace."""
        refused, usual = self._refusals.unusual(), self._refusals.share
        (first, begin), (last, end) = refused[0], refused[-1]
        # Less one more than between them: they were counted because they were many.
        share = min(1.0, max(1.2 * usual, (len(refused) - 2) / max(1, last - first)))
        if not self._limits or (share < 0.5 and any(limit.unfound for limit in self._limits)):
            self._refusals.judge(now, self._sent, share)
            return
        self._refusals.ask(self._sent, share, usual)
        minutes = max(KNOWN_S, end - begin - self._held_s) / WINDOW_S
        recent = self._began_at is None or now - self._began_at < WINDOW_S
        for limit in self._limits:
            rate = self._ledger.between(begin, end)[limit.which] / minutes
            minute, anew = self._passed[limit]
            most = min(limit.value, limit.height if limit.which and now - self._open_since < WINDOW_S else inf)
            self._believed[limit] = max(1.0, min(most, max(rate, minute / 2, (1 - share) * limit.value / 2)))
            self._passed[limit] = (inf if recent else minute, anew)  # of less than a minute it is no limit
        self._slow(now, SLOWER * max(_SLOWEST, 1.0 - share))

    def _take_verdict(self, trial: Trial, now: float) -> None:
        found = self._refusals.verdict(now, self._sent)
        if found == "chance":
            self._slow(now, inf)
            self._undo(now)
        elif found == "pace":
            self._vain = 0
            usual = trial.usual if trial.usual > LEAST else 0.0
            for limit in self._limits:
                believed = self._believed[limit]
                # More than usual, and less at a slower pace: so it would be by chance too.
                most = inf if usual else max(believed, self._passed[limit][0])
                limit.lower(now, believed / (1.0 - usual), most, shared=self._shared)
                self._changed(limit, now, True)

    def _undo(self, now: float) -> None:
        for limit in self._limits:
            if limit.undo():
                self._changed(limit, now, True)

    def _slow(self, now: float, part: float) -> None:
        """Try a part of the pace, but no less than a part of what is believed to get through; `inf` ends that."""
        for limit in self._limits:
            limit.slower(max(part * limit.value, SLOWER * self._believed[limit]) if part < inf else inf)
            self._changed(limit, now, False)

    def _step_back(self, now: float) -> bool:
        """Take a probe upward back that was refused."""
        back = [limit for limit in self._limits if limit.back(now)]
        for limit in back:
            self._refusals.judge(now, self._sent)
            self._changed(limit, now, True)
        return bool(back)
