"""Flex at one quota: how much is asked in it at once, how much of that is turned away, and until when it is asked."""

from collections import deque
from math import inf
from random import Random

from pipeline.dispatch.backlog import Waiting
from pipeline.events import FlexShed, Notify
from pipeline.quota.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S
from pipeline.quota.quota import GIVE_UP_S
from pipeline.quota.refusals import Ticket
from pipeline.quota.slots import FIRST_LATENCY_S, START, Slots
from pipeline.quota.waits import asked_s
from pipeline.records import FLEX_TRIES, Failure, FromFlex, Limits, Reply

LATENCY_S = 120.0
"""What an answer in flex is assumed to take until some have come: Google's target is 1 to 15 minutes (2026-07-30)."""
PAUSE_S, LONGEST_S = 30.0, 120.0
"""The most until the second request of a prompt in flex, twice that until the third; and until any other."""
IN_A_ROW = 20
"""Requests turned away one after the other, after which nearly all may be: where a third is served, once in 3,000."""
NEARLY_ALL = 0.9
"""Part of what left before the last of them that must have been turned away by then."""
NEWEST = 200
"""Requests that tell what share is served now: it changes with the hour."""
_TAKEN = 0.25  # requests fewer at once for each that is turned away, while flex is tried again
_SHED = (408, 498, 503, 504)
"""How services turn a request away in flex: 503 is Google's, 498 Groq's; 408 and 504 end a wait that was too long."""


class Flex:
    """The requests in flex of one quota, which counts them as any others.

    They have slots of their own: thousands that wait a quarter of an hour must not hold up one in standard. What is
    turned away is no outage. While nearly all are, one request at a time asks whether that is over, and more with each
    that is served; after half an hour of that, where no last call is set, the others go on in standard meanwhile.

    `newest` has, of the last `NEWEST` that were served in flex or turned away, whether they were served.
    """

    def __init__(self, limits: Limits, rpm: float, notify: Notify, rng: Random, workers: int = 1) -> None:
        """`rpm` is the pace that is believed to be allowed, `inf` where there is no limit."""
        self.last_call = inf  # the loop's clock: from then on nothing new leaves in flex
        self.newest = deque[bool](maxlen=NEWEST)
        self._flying: set[Ticket] = set()
        most = max(1, limits.sockets // 2) if limits.sockets else None  # the other half is standard's
        self._rpm, self._slots = rpm, Slots(limits.concurrency, _paced(rpm), most, LATENCY_S, workers)
        self._most_together = limits.concurrency or limits.sockets or inf
        self._is_day_counted = bool(limits.rpd)
        self._notify, self._rng = notify, rng
        self._in_a_row = 0  # turned away
        self._is_shut = False  # one request at a time asks whether that is over
        self._window = inf  # requests at once, while it is found out how many are served again
        self._shut_at = self._until = -inf
        self._pause_s = 0.0

    @property
    def in_flight(self) -> int:
        """Requests on their way."""
        return len(self._flying)

    def is_over(self, now: float) -> bool:
        """Whether what would be asked in flex is asked in standard."""
        return now >= self.last_call or (now >= self._given_up_at and self.opens_at(now) is not None)

    def opens_at(self, now: float) -> float | None:
        """None when a request may leave in flex; else when to ask again, `inf` when only an event can change it."""
        if self.in_flight >= min(self._slots.count, self._window):
            return inf
        return self._until if now < self._until else None

    def changes_at(self, now: float) -> float:
        """When the answer to `is_over` or `opens_at` may become another one without an event."""
        return min((at for at in (self._until, self.last_call, self._given_up_at) if at > now), default=inf)

    def fills(self, flying: int) -> bool:
        """Whether so many requests in flight, in both lanes, are all that may be."""
        return flying >= self._most_together

    def sent(self, ticket: Ticket, rpm: float) -> None:
        """A request leaves in flex, at a pace of `rpm`."""
        self._flying.add(ticket)
        if rpm != self._rpm:
            self._rpm = rpm
            self._slots.change(_paced(rpm))

    def landed(self, ticket: Ticket, now: float, outcome: Reply | Failure) -> None:
        """It has come back."""
        self._flying.remove(ticket)
        if isinstance(outcome, Reply):
            self._slots.answered(now - ticket.sent_at)
            self._take_answer(outcome)
        elif is_shed(outcome):
            self._slots.answered(now - ticket.sent_at)
            self._take_shed(ticket, now, outcome)

    def is_enough(self, tries: int) -> bool:
        """Whether a prompt that was turned away so often is asked in standard; with a last call that is waited for.

        Where the requests of a day are counted, what is turned away uses up what standard may need.
        """
        return tries >= FLEX_TRIES and (self.last_call == inf or self._is_day_counted)

    def pause_s(self, tries: int, failure: Failure, rng: Random) -> float:
        """Seconds until a prompt that was turned away so often is asked in flex again."""
        longest = min(LONGEST_S, PAUSE_S * 2.0 ** min(tries - 1, 9))
        return max(min(asked_s(failure), longest), rng.uniform(0.0, longest))

    def _take_answer(self, reply: Reply) -> None:
        if reply.lane == "flex":
            self.newest.append(True)
        if self._is_shut:
            self._notify(FlexShed("flex answers again"))
        self._is_shut, self._in_a_row, self._pause_s, self._until = False, 0, 0.0, -inf
        if self._window < inf:
            self._window = self._window + 1.0 if self._window < self._slots.count else inf

    def _take_shed(self, ticket: Ticket, now: float, failure: Failure) -> None:
        self.newest.append(False)
        self._in_a_row += 1
        self._window = max(1.0, self._window - _TAKEN)
        if not self._is_shut:
            if self._in_a_row < IN_A_ROW or self._in_a_row < NEARLY_ALL * (self._in_a_row + self._older(ticket)):
                return
            self._is_shut, self._shut_at, self._window = True, now, 1.0
            asks = "one request at a time asks whether that is over"
            self._notify(FlexShed(f"nearly all that is asked in flex is turned away ({failure.message}); {asks}"))
        elif ticket.sent_at < self._shut_at:
            return
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2.0 * self._pause_s))
        self._until = now + self._pause_s * self._rng.uniform(0.75, 1.25)

    def _older(self, ticket: Ticket) -> int:
        """How many left before and are still awaited: they may be served, as waiting takes longer than turning away."""
        return sum(other.sent_at < ticket.sent_at for other in self._flying)

    @property
    def _given_up_at(self) -> float:
        """When half an hour is over in which nothing was served; a last call that is set is waited for."""
        return self._shut_at + GIVE_UP_S if self._is_shut and self.last_call == inf else inf


def _paced(rpm: float) -> float:
    """The pace that the slots are sized for: twice the real one, as latencies vary by minutes and their mean with them.

    Sized for the real one, 2 % of the pace were lost. Without a limit it is that of what standard begins with.
    """
    return 2.0 * (rpm if rpm < inf else 60.0 * START / FIRST_LATENCY_S)


def fell_back(waiting: Waiting, last_call: float, now: float) -> FromFlex | None:
    """Why a prompt is asked in standard now; None where it was not asked in flex before."""
    if not waiting.flexed:
        return None
    if not waiting.without_flex and now >= last_call:
        return "last_call"
    return "turned_away" if waiting.shed else "failed"


def is_shed(failure: Failure) -> bool:
    """Whether a request in flex was turned away, or waited in vain: for want of room, as far as the service says."""
    if failure.kind == "rate_limit":
        return not failure.quota
    waited = failure.error_kind == "timeout" and failure.sent
    return failure.kind == "transient" and (waited or failure.http_status in _SHED)
