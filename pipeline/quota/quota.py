"""What may be sent now on one quota, that of a project and a model: all meters together."""

from collections.abc import Callable, Sequence
from math import inf
from random import Random

from pipeline.calibration import Margin
from pipeline.events import LimitSet, Meter, Notify, Outage, QuotaShared, Refused
from pipeline.quota.book import MemoryBook, QuotaBook
from pipeline.quota.breaker import Breaker
from pipeline.quota.daily import RESET_JITTER_S, DailyQuota, day_of
from pipeline.quota.gate import Gate
from pipeline.quota.ledger import TokenLedger
from pipeline.quota.limit import Limit
from pipeline.quota.pacer import RESERVE_FROM_RPM, WINDOW_S, RequestPacer, careful_s
from pipeline.quota.refusals import Ticket
from pipeline.quota.server_clock import MinutePhase
from pipeline.quota.sharing import LOOK_S, Sharing
from pipeline.quota.slots import Slots
from pipeline.quota.waits import LONGEST_WAIT_S, asked_s
from pipeline.records import Failure, Limits, QuotaHit

FIRST_RPM, FIRST_TPM = 5, 250_000
"""Where nothing is configured: what Gemini's free tier allowed in 2026, to grow from."""
OUTAGE_AFTER = 8
"""Failures in a row that mean the server is down."""
GIVE_UP_S = 1800.0
"""A server that fails or refuses everything this long stops the run, which can be resumed."""
_PROBING = "one request at a time asks whether that is over"
_WORTH_TELLING = 1.25
_CAUTIOUS_RPM = 60
_CLOCKS_DIFFER_S = 600.0  # at most; a server's clock that is farther off tells no day
_SOON_S = 1.0  # other runs may end, or show meanwhile that more is allowed
_LARGE = 0.25  # of the tokens of a minute: of smaller ones several are refused where that is the reason
_UNDISTURBED_S = 120.0  # so long nothing else was refused: the service is not down
_FULL = 0.9  # of the tokens of a minute: refused at less, and the limit itself is lower


class Quota:
    """Meters, hold and breakers of one quota.

    A request leaves in this order: `opens_at` says None, `acquire` returns, `room` has space for it, `send` charges it;
    there is no await after `room`. Its ticket is then closed exactly once: by `answered`, `refused` or `failed`.
    `now` is the loop's clock; epoch seconds come from `wall`. A limit of 0 means that there is none.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        now: float,
        wall: Callable[[], float],
        notify: Notify,
        rng: Random,
        book: QuotaBook | None = None,
        workers: int = 1,
    ) -> None:
        """Each of `workers` makes requests of this quota."""
        self._wall, self._notify, self._rng = wall, notify, rng
        self._book = book if book is not None else MemoryBook()
        self.unlimited = limits.rpm == 0 and limits.tpm == 0 and limits.rpd is None
        known = self._book.known(day_of(wall(), limits.reset_zone), wall())
        self._first_rpm = max(FIRST_RPM, known.first_rpm or 0)
        self.requests = self._meter("requests", limits.rpm, self._first_rpm, known.limit("requests", limits.rpm))
        self.tokens = self._meter("tokens", limits.tpm, FIRST_TPM, known.limit("tokens", limits.tpm))
        self.phase = MinutePhase()
        self.ledger = TokenLedger(self.tokens.value if self.tokens else inf, self.phase)
        self.day = DailyQuota(
            limits.rpd or None,
            count=self._book.requests_on,
            zone=limits.reset_zone,
            closed_until=known.day_opens_at,
        )
        self._outage = Breaker(OUTAGE_AFTER, rng)
        self.held_until: float | None = None  # by what the service did, as of the last `opens_at`
        self._sent_at = -inf
        self._strict = False
        self._held_back = False  # by the requests of the last minute
        self._largest_passed = 0  # tokens
        self._usual_refused_at = -inf  # one that was no larger
        meters = [limit for limit in (self.requests, self.tokens) if limit]
        self._told: dict[str, float] = {limit.meter: limit.value for limit in meters if limit.value == limit.known}
        self._runs = 1
        self._sharing = Sharing(self._book, wall, self.ledger)
        recent = [] if self.unlimited else self._sharing.news(now)
        # Without a book nobody knows whether another run has just ended; at a fast pace caution costs nothing.
        drained = bool(recent) or (book is None and self.rpm >= _CAUTIOUS_RPM)
        self._pacer = RequestPacer(self.rpm, drained=drained) if self.requests else None
        self._share_requests(now, recent)
        self.slots = Slots(limits.concurrency, self.rpm, limits.sockets, workers=workers)
        self._gate = Gate(self.ledger, self.slots, rng, self._changed)
        if (unseen_s := self._book.unseen_until - wall()) > 0 and not self.unlimited:
            self._gate.hold(now, unseen_s)

    @property
    def limits(self) -> Limits:
        """The limits per minute that are kept now; 0 where there is none."""
        return Limits(
            rpm=int(self.requests.value) if self.requests else 0, tpm=int(self.tokens.value) if self.tokens else 0
        )

    def use(self, now: float) -> tuple[float, float]:
        """Parts of the limits on requests and on tokens that the last minute used; 0 where there is no limit."""
        requests, tokens = self.ledger.last_minute(now)
        return (
            requests / self.requests.value if self.requests else 0.0,
            tokens / self.tokens.value if self.tokens else 0.0,
        )

    @property
    def tokens_limit(self) -> float:
        """Tokens a minute that are believed to be allowed, `inf` where there is no limit."""
        return self.tokens.value if self.tokens else inf

    @property
    def is_exact(self) -> bool:
        """Whether a limit is kept to that is set or was found, so that it matters when requests leave."""
        return any(limit and not limit.unrefused for limit in (self.requests, self.tokens))

    @property
    def period_s(self) -> float:
        """Seconds between two requests in the long run."""
        return self._pacer.period_s if self._pacer else 0.0

    @property
    def largest(self) -> float:
        """Tokens that no prompt may exceed: a whole minute's quota where it is known for certain, else `inf`."""
        known = self.tokens.known if self.tokens else None
        return inf if known is None else known

    def opens_at(self, now: float) -> float | None:
        """None when a request may leave; else when to ask again, `inf` while a probe is on its way."""
        opens_at = self.held_until = _later(self._gate.opens_at(now), self._outage.opens_at(now))
        if self.requests and self._pacer:
            fits_at = self.ledger.request_fits_at(now, self.requests.value, counted=self._strict)
            if self.requests.exploring and self.ledger.on_new_ground(now):
                fits_at = max(fits_at, self._sent_at + careful_s(self._pacer.period_s))
            if self._runs > 1:
                fits_at = min(fits_at, now + _SOON_S)
            if fits_at > now:
                self._held_back = True
                return _later(opens_at, fits_at)
        return opens_at

    @property
    def down(self) -> bool:
        """Whether the server is believed to be down: the next request only asks whether it is back."""
        return self._outage.tripped

    def down_s(self) -> float:
        """How long every request has failed or been refused."""
        return max(self._outage.down_s(), self._gate.down_s())

    def paced(self) -> bool:
        """Whether `acquire` would wait."""
        return self._pacer is not None and not self._pacer.ready()

    async def acquire(self, now: float) -> None:
        """Wait for the pace of requests. One task only."""
        if self._pacer is None:
            return
        if self.requests and (self._held_back or not self._pacer.ready()):
            self._held_back = False
            self._grow(self.requests, now)
        await self._pacer.acquire()

    def room(self, now: float, margin: Margin) -> float:
        """The largest prompt that fits now, in expected tokens."""
        return min(self.ledger.room(now, margin), self._sharing.room(now))

    def fits_at(self, now: float, tokens: float, margin: Margin) -> float:
        """When that many tokens may fit at the earliest, if nothing else is sent."""
        fits_at = self.ledger.fits_at(now, tokens, margin)
        return fits_at if tokens <= self._sharing.room(now) else max(fits_at, now + LOOK_S)

    def held_up(self, now: float, tokens: float, margin: Margin) -> None:
        """Tokens are what holds the work up: others may have to leave some, and a limit only believed may grow."""
        if self.tokens:
            if self._runs > 1:
                self._sharing.ask(now, tokens, margin)
            self._grow(self.tokens, now)

    def look_around(self, now: float) -> None:
        """Charge what other processes have sent on the same quota, and share the pace with them."""
        sent = self._sharing.news(now)
        if sent or self._runs > 1:
            self._share_requests(now, sent)
        if self._runs > 1:
            self._witness(now)

    def send(self, now: float, tokens: int, margin: Margin, *, flex: bool = False) -> Ticket:
        """Charge one request that leaves now; one in `flex` tells nothing of outages, nor how many may be in flight."""
        if not flex:
            self._outage.sent(now)
        ticket = Ticket(now, tokens, flex=flex)
        self._gate.sent(ticket)
        if self.unlimited:
            return ticket
        self._sent_at = now
        wall = self._wall()
        day = self.day.today(wall)
        ticket.charge = self.ledger.reserve(now, tokens, margin)
        ticket.entry = self._book.send(wall, margin.at_most(tokens), day)
        if self._runs > 1:
            self._book.flush()
        return ticket

    def answered(self, ticket: Ticket, now: float, tokens: int | None, date: float | None, received: float) -> None:
        """An answer came: `tokens` as the service counted them, `date` its Date header, `received` when it was read."""
        self._responded(ticket, now)
        self._largest_passed = max(self._largest_passed, ticket.tokens)
        if not ticket.flex:
            self.slots.answered(now - ticket.sent_at)
        if date is not None:
            self.phase.observe(date, ticket.sent_at, max(ticket.sent_at, received))
        self._settle(ticket, tokens)
        if self._runs == 1 and self.requests and self.requests.unfound:
            self._keep_first(now)

    def failed(self, ticket: Ticket, now: float, failure: Failure) -> None:
        """The request failed for another reason than quota; whatever may have reached the server stays charged."""
        if failure.served_at is not None:
            self.phase.observe(failure.served_at, ticket.sent_at, now)
        if failure.sent:
            self._settle(ticket, None)
        else:
            self._release(ticket)
        if ticket.flex:
            self._gate.returned(ticket, now, answered=False)
            return
        if failure.kind != "transient" or _is_unread_answer(failure):
            self._responded(ticket, now)
            return
        self._gate.returned(ticket, now, answered=False)
        if failure.http_status == 503:
            self.slots.overloaded()
        if self._outage.failed(now, ticket.sent_at):
            self._notify(Outage(f"{failure.message}; {_PROBING}"))

    def refused(self, ticket: Ticket, now: float, failure: Failure) -> bool:
        """The request was refused for quota: it did not count; hold, and learn the limit.

        True when it had the tokens of a whole minute for itself, as far as is known, and they were not enough.
        """
        if not ticket.flex:
            self._outage.succeeded()
        if failure.served_at is not None:
            self.phase.observe(failure.served_at, ticket.sent_at, now)
        self._release(ticket)
        if failure.kind == "day_quota":
            self._gate.returned(ticket, now, answered=False)
            self._day_refused(ticket, now, failure)
            return False
        wait_s = min(LONGEST_WAIT_S, asked_s(failure))
        hits = [hit for hit in failure.quota if hit.window == "minute"] or [self._likely_hit(now)]
        limits = [limit for hit in hits if (limit := self._limit_of(hit))]
        large = self._is_too_large(ticket, failure, now)
        alone = large and self.ledger.since(ticket.sent_at - WINDOW_S)[1] == 0
        forgiven = not large and self._forgives(hits, now)
        explained = large or forgiven or self._is_explained(hits, ticket, now)
        own_s = max(wait_s, WINDOW_S) if large else wait_s
        if large or forgiven:
            wait_s = 0.0
        elif failure.quota:
            wait_s = min(wait_s, WINDOW_S)
        shared = all(hit.limit is not None for hit in hits)
        of_capacity = failure.of_capacity
        if self._gate.refused(ticket, now, wait_s, limits, explained=explained, shared=shared, of_capacity=of_capacity):
            self._notify(Refused(f"{failure.message}; {_PROBING}"))
        ticket.again_at = now + own_s
        return alone

    def _is_too_large(self, ticket: Ticket, failure: Failure, now: float) -> bool:
        """Whether it may be refused for its own size: it has more than all that passed, which are not refused now."""
        if failure.of_capacity or not 0 < self._largest_passed < ticket.tokens:
            self._usual_refused_at = now
            return False
        unnamed = all(hit.meter == "tokens" and hit.limit is None for hit in failure.quota)
        return unnamed and ticket.tokens >= _LARGE * self.tokens_limit and now - self._usual_refused_at > _UNDISTURBED_S

    def _limit_of(self, hit: QuotaHit) -> Limit | None:
        return self.requests if hit.meter == "requests" else self.tokens

    def _is_explained(self, hits: Sequence[QuotaHit], ticket: Ticket, now: float) -> bool:
        """Whether a refusal raises no question: it names a lower limit, or the server's minute is another one."""
        explained = False
        for hit in hits:
            meter = self._limit_of(hit)
            if meter is None:
                continue
            passed = self._gate.passed(meter, ticket)
            if hit.limit is not None and meter.named(now, hit.limit, passed):
                self._gate.judged(now)
                self._changed(meter, now, learned=True)
                explained = True
            elif hit.meter == "tokens" and self._phase_explains(hit, ticket, passed):
                self.phase.distrust(now)
                explained = True
        return explained

    def _day_refused(self, ticket: Ticket, now: float, failure: Failure) -> None:
        """Close the day in which the request was sent, by our clock or by the server's: a new one stays open."""
        wall = self._wall()
        counted_at = wall - (now - ticket.sent_at)
        if failure.served_at is not None and abs(failure.served_at - wall) < _CLOCKS_DIFFER_S:
            counted_at = min(counted_at, failure.served_at)
        if self.day.has_begun_since(counted_at, wall):
            self._gate.hold(now, RESET_JITTER_S)
        else:
            self._book.close_day(self.day.exhausted(wall, failure.retry_after_s), wall)

    def unknown(self, ticket: Ticket) -> None:
        """Nobody knows what became of the request, as the run ends: it stays charged."""
        self._settle(ticket, None)

    def lost(self, ticket: Ticket, now: float, *, sent: bool) -> None:
        """Nobody will tell what became of the request: it stays charged if it may have been `sent`.

        That says nothing of the service.
        """
        if sent:
            self._settle(ticket, None)
        else:
            self._release(ticket)
        self._gate.returned(ticket, now, answered=False)
        if not ticket.flex:
            self._outage.lost(ticket.sent_at)

    def _meter(self, name: Meter, configured: int | None, start: float, learned: float | None) -> Limit | None:
        if configured == 0:
            return None
        limit = Limit(configured, start, learned, meter=name)
        if limit.value != configured:
            self._notify(LimitSet(name, int(limit.value), "assumed" if learned is None else "learned"))
        return limit

    @property
    def rpm(self) -> float:
        """Requests a minute that are believed to be allowed, `inf` where there is no limit."""
        return self.requests.value if self.requests else inf

    def _grow(self, limit: Limit, now: float) -> None:
        """Try more; what that rests on is kept for the next run, but for the first steps: they tell nothing."""
        proven, is_little, refused = limit.value, limit.unfound, not limit.unrefused
        if not self._outage.failing and limit.grow(now, self.ledger.last_minute(now)[limit.which]):
            if not is_little:
                self._book.learn(limit.meter, proven, self._wall(), refused=refused)
            self._changed(limit, now)

    def _keep_first(self, now: float) -> None:
        """Keep half of what was answered of a minute for the next run to begin with: a run of a few rows finds no more.

        Half, since of a service that counts fixed minutes two may have taken it: one took that much for certain.
        """
        first = (self.ledger.last_minute(now)[0] - self._gate.in_flight) // 2
        if first >= _WORTH_TELLING * self._first_rpm:
            self._first_rpm = first
            self._book.learn("first", first, self._wall())

    def _share_requests(self, now: float, sent: Sequence[float]) -> None:
        if self._pacer:
            self._pacer.charge(sent)
        runs = self._sharing.runs(now)
        if runs != self._runs:
            self._runs = runs
            self._notify(QuotaShared(runs))
            if self._pacer:
                self._pacer.change(self.requests.pace if self.requests else inf, now, runs=runs)

    def _witness(self, now: float) -> None:
        """Others may know of more than this run believes in: within that it would wait until they end."""
        requests, tokens = self.ledger.last_minute(now)
        if self.requests and self.requests.witnessed(now, requests):
            self._changed(self.requests, now)
        if self.tokens and self.tokens.witnessed(now, tokens):
            self._changed(self.tokens, now)

    def _responded(self, ticket: Ticket, now: float) -> None:
        self._gate.returned(ticket, now, answered=True)
        if not ticket.flex and self._outage.succeeded(ticket.sent_at):
            self._notify(Outage("over, the service answers again"))

    def _settle(self, ticket: Ticket, tokens: int | None) -> None:
        if ticket.charge is None or ticket.entry is None:
            return
        self.ledger.settle(ticket.charge, tokens)
        if tokens is not None:
            self._book.settle(ticket.entry, tokens)

    def _release(self, ticket: Ticket) -> None:
        if ticket.charge is None or ticket.entry is None:
            return
        self.ledger.release(ticket.charge)
        self._book.refund(ticket.entry)

    def _likely_hit(self, now: float) -> QuotaHit:
        """What a refusal without details is most likely about: the meter that is used most."""
        requests, tokens = self.use(now)
        return QuotaHit("", "tokens" if tokens > requests else "requests", "minute")

    def _forgives(self, hits: Sequence[QuotaHit], now: float) -> bool:
        """A low limit is first kept without the one request in reserve that a sliding-window counter needs.

        Once it is refused, it is kept with it: nothing else is wrong, and nobody waits but the refused.
        """
        limit = self.requests
        if self._strict or limit is None or limit.known is None or limit.value >= RESERVE_FROM_RPM:
            return False
        if not any(hit.meter == "requests" and (hit.limit is None or hit.limit >= limit.value) for hit in hits):
            return False
        self._strict = True
        self._changed(limit, now)
        return True

    def _phase_explains(self, hit: QuotaHit, ticket: Ticket, last_minute: float) -> bool:
        """The limit was kept by the minute we read from the server's clock, so it may count by another."""
        if self.phase.bounds is None and ticket.sent_at > self.phase.distrusted_at:
            return False
        limit = self.tokens_limit
        return last_minute >= _FULL * limit if hit.limit is None else hit.limit >= limit

    def _changed(self, limit: Limit, now: float, learned: bool = False) -> None:
        if learned:
            self._book.learn(limit.meter, limit.value, self._wall())
        if limit is self.requests:
            assert self._pacer is not None
            self._strict = self._strict or learned
            self._pacer.change(limit.pace, now, strict=self._strict)
            self.slots.change(limit.value)
        else:
            self.ledger.limit = limit.pace
        told = self._told.get(limit.meter, inf)
        if not told <= limit.value < _WORTH_TELLING * told:  # not every small step of its growth
            self._told[limit.meter] = limit.value
            self._notify(LimitSet(limit.meter, int(limit.value), "measured" if limit.measured else "tried"))


def _later(one: float | None, other: float | None) -> float | None:
    """The later of two times, None for at once."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _is_unread_answer(failure: Failure) -> bool:
    """Whether the service itself answered, though nobody can read it: a page, or nothing, is a gateway's."""
    unread = failure.billed and failure.error_kind == "malformed_reply"
    return unread and (failure.http_status is None or failure.raw.lstrip()[:1] in (b"{", b"["))
