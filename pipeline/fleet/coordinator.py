"""What the lives of a fleet share: one budget, one dispatcher, and the go for each request, which says when it leaves.

    worker       replay → … → packed → ask ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┐          ┌┄→ journal → send
    driver                                  └→ Dispatcher ┄ go ┄┘

The dispatcher is that of a run of one process. It is handed stubs: what a prompt costs and takes, without its text.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from math import ceil, inf

import anyio

from pipeline.budget.cashier import Bill, Cashier
from pipeline.dispatch.counting import Counts, CountTokens
from pipeline.dispatch.desk import Admit, Send, Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.dispatch.lookahead import DEPTH
from pipeline.errors import Halted, PipelineError
from pipeline.fleet.messages import (
    EVERY_S,
    FIRST_WINDOW,
    GONE,
    HOLD_S,
    POLL_S,
    SOON_S,
    UNSENT,
    Answered,
    Ask,
    Ended,
    Given,
    Go,
    Told,
    heard_later,
)
from pipeline.prompts import Params, Prompt, Tools, said
from pipeline.records import Failure, Lane, Media, Reply
from pipeline.targets import Route, Target

COLLECT_S = 0.02
"""Between two messages to one life, at least."""
MESSAGES_A_SECOND = 400
"""To all lives together, and as many from them: a message by way of Ray takes 2 ms of a core (2.60, 2026-11-28)."""
WINDOW_S = 2.0
"""So much of the rate waits for a go: without a bound whoever asks first would be served to the end."""
STAMP_S = 30.0
"""How long a message serves to compare two clocks: in this time they differ by some milliseconds more."""
_SEARCHES = Tools(google_search="{}")
_FREE = Decimal(0)

Make = Callable[[Send, Admit, Mapping[str, Counts]], Dispatcher]
"""Makes the dispatcher, of so many `workers` as the fleet has."""


def collect_s(workers: int, targets: Iterable[Target]) -> float:
    """Seconds for which goes to one life are collected, at most: longer where more would leave than there may be."""
    a_second = sum({target.quota: target.limits.rpm or inf for target in targets}.values()) / 60.0
    return max(COLLECT_S, workers / MESSAGES_A_SECOND - workers / a_second)


@dataclass(slots=True, eq=False)
class _Asked:
    """One ask, as the dispatcher has it."""

    life: "_Life"
    number: int
    tokens: int
    task: asyncio.Task[None] | None = None
    flight: "_Flight | None" = None
    count: asyncio.Future[int | Failure] | None = None
    is_answered: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    """One go, until what came of it is told."""

    prompt: Prompt
    target: Target
    outcome: asyncio.Future[Answered | Failure]
    held_s: float | None  # as its go says
    is_given: bool = False


@dataclass(slots=True, eq=False)
class _Life:
    name: str
    counted_usd: Decimal | None  # of its shard
    heard_at: float
    asked: dict[int, _Asked] = field(default_factory=dict)
    heard: int = 0  # the number of its newest message
    stamp: tuple[float, float] | None = None  # its clock, and ours
    goes: list[tuple[Go, float]] = field(default_factory=list)  # and when it was given
    ended: list[Ended] = field(default_factory=list)
    count: list[tuple[int, int]] = field(default_factory=list)
    is_waited_for: bool = False  # it leaves as soon as it knows that it was heard
    is_halted: bool = False  # it was told so
    given_at: float = -inf
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_news(self) -> bool:
        return bool(self.goes or self.ended or self.count or self.is_waited_for)


@dataclass(slots=True)
class _Left:
    """What was lost with the lives of a shard: nobody knows yet what came of it."""

    counted_usd: Decimal | None
    flights: list[_Flight] = field(default_factory=list)


class Coordinator:
    """Budget, limits, breakers and retries of one run, for the lives of its shards; it does no I/O.

    A life is named `SHARD/ATTEMPT`. Whoever carries messages calls `take` with what a life tells, and `give` over and
    over for what it is to be told.
    """

    def __init__(
        self,
        make: Make,
        cashier: Cashier,
        targets: Sequence[Target],
        *,
        workers: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Make it inside the running event loop. Workers number `targets` alike; `wall` is epoch seconds."""
        self._loop = asyncio.get_running_loop()
        self._cashier, self._targets, self._workers, self._wall = cashier, tuple(targets), workers, wall
        self._collect_s = collect_s(workers, targets)
        self._hold_s = HOLD_S + self._collect_s
        lanes: tuple[Lane, ...] = ("standard", "flex", "priority")
        self._numbers = {target.asked_in(lane): at for at, target in enumerate(targets) for lane in lanes}
        self._routes: dict[tuple[tuple[int, ...], bool], Route] = {}
        self._lives: dict[str, _Life] = {}
        self._asked: dict[str, _Asked] = {}  # by the name of its stub
        self._left: dict[str, _Left] = {}  # by shard
        self._tasks = asyncio.TaskGroup()
        self.desk = make(self._send, cashier.admit, {target.provider: _Counted(self._count) for target in targets})
        self._quotas = dict(zip(dict.fromkeys(target.quota for target in targets), self.desk.quotas, strict=True))

    @property
    def window(self) -> int:
        """Asks of one route that each life may have waiting for a go."""
        quotas, lives = self.desk.quotas, max(1, len(self._lives))
        a_minute = sum(60.0 * quota.slots.count if quota.rpm == inf else quota.rpm for quota in quotas)
        packed = 4 * DEPTH if any(quota.tokens for quota in quotas) else 0  # large and small ones fill gaps
        return max(FIRST_WINDOW, ceil(max(WINDOW_S * a_minute / 60.0, packed) / lives))

    async def run(self) -> None:
        """Give goes; returns after `close` or `halt` once nothing is in flight."""
        async with self._tasks:
            await self.desk.run()

    def close(self) -> None:
        """No life will ask for anything any more."""
        self.desk.close()

    def halt(self, reason: PipelineError | None) -> None:
        """Admit nothing more, in any life; the first reason stays."""
        self.desk.halt(reason)
        for life in self._lives.values():
            life.news.set()

    def silence_s(self, life: str) -> float:
        """Seconds since that life was heard of; 0 where it is over."""
        known = self._lives.get(life)
        return self._loop.time() - known.heard_at if known else 0.0

    # --- lives ------------------------------------------------------------------------------------------------------

    def begin(self, life: str, counted_usd: Decimal | None = None) -> None:
        """Heed a new life; another of its shard is over with it.

        `counted_usd` is what of the shard counts against the caps as the first of its lives begins.
        """
        shard = _shard_of(life)
        for other in [name for name in self._lives if _shard_of(name) == shard]:
            self.lose(other)
        if (left := self._left.get(shard)) is not None and left.counted_usd is not None:
            counted_usd = left.counted_usd
        self._lives[life] = _Life(life, counted_usd, self._loop.time())

    def opened(self, life: str, spent_usd: Decimal) -> None:
        """The life has opened its shard, and found that so much was spent there, what was lost in flight included.

        What is not counted yet counts from now on, and nothing is reserved any more for what lives before had in
        flight.
        """
        known, left = self._lives.get(life), self._left.pop(_shard_of(life), None)
        if known is None:
            return
        counted = known.counted_usd
        if counted is not None and spent_usd > counted:
            account = left.flights[0].target.account if left and left.flights else self._targets[0].account
            self._cashier.charge(Bill(spent_usd - counted, _FREE, None), account)
        for flight in left.flights if left else ():
            self._cashier.unanswered(flight.prompt, flight.target, UNSENT)
        known.counted_usd = spent_usd
        self.desk.look_again()

    def lose(self, life: str) -> None:
        """The life is dead: nothing more is heard of it.

        What it asked for is withdrawn. What it was told to send and said nothing of stays charged on every meter, and
        its worst case reserved, until the shard is opened again.
        """
        known = self._lives.pop(life, None)
        if known is None:
            return
        left = self._left.setdefault(_shard_of(life), _Left(None))
        left.counted_usd = known.counted_usd
        for asked in list(known.asked.values()):
            self._withdraw(asked)
            flight = asked.flight
            if flight is not None and not flight.outcome.done():
                if flight.is_given:
                    left.flights.append(flight)
                    self._cashier.lose(flight.prompt, flight.target)
                flight.outcome.set_result(GONE if flight.is_given else UNSENT)
        known.news.set()

    def end(self, life: str) -> None:
        """The life is over, and told all; what it did not tell is lost all the same."""
        self.lose(life)

    # --- messages ---------------------------------------------------------------------------------------------------

    def take(self, life: str, told: Told) -> None:
        """Heed what a life tells; of one that is over nothing."""
        known = self._lives.get(life)
        if known is None:
            return
        now = self._loop.time()
        known.heard_at = now
        if known.stamp is None or now - told.stamp <= known.stamp[1] - known.stamp[0] or now - known.stamp[1] > STAMP_S:
            known.stamp = told.stamp, now
        if told.is_last:
            known.is_waited_for = True
            known.news.set()
        if told.number:
            known.heard, known.counted_usd = told.number, told.spent_usd
        for number in told.withdrawn:
            if asked := known.asked.get(number):
                self._withdraw(asked)
        for number, read_at, outcome in told.outcomes:
            asked = known.asked.get(number)
            if asked and asked.flight and not asked.flight.outcome.done():
                stamp, came_at = known.stamp or (read_at, now)
                later_s = max(0.0, now - came_at + stamp - read_at)
                # Minutes are counted by when goes are given: for these the service's clock is ahead by what they wait.
                asked.flight.outcome.set_result(heard_later(outcome, later_s + (asked.flight.held_s or 0.0)))
        for number, tokens in told.counted:
            asked = known.asked.get(number)
            if asked and asked.count and not asked.count.done():
                asked.count.set_result(tokens)
        for ask in told.asks:
            self._begin(known, ask)

    async def give(self, life: str) -> Given | None:
        """What a life is to be told next, after two seconds at most; None: it is over."""
        known = self._lives.get(life)
        if known is None:
            return None
        collected_at = known.given_at + self._collect_s
        with anyio.move_on_after(POLL_S):
            while not known.has_news and self.desk.halted == known.is_halted and known.name in self._lives:
                known.news.clear()
                await known.news.wait()
        if (now := self._loop.time()) < collected_at:
            await anyio.sleep(collected_at - now)
        return self._given(known) if known.name in self._lives else None

    def _given(self, life: _Life) -> Given:
        now = self._loop.time()
        life.given_at = now
        stamp, came_at = life.stamp or (None, now)
        goes = []
        for go, given_at in life.goes:
            if (asked := life.asked.get(go.number)) and asked.flight:
                asked.flight.is_given = True
            goes.append(go if go.hold_s is None else go._replace(hold_s=go.hold_s - (now - given_at)))
        life.is_waited_for, life.is_halted = False, self.desk.halted
        given = Given(
            life.heard,
            stamp,
            now - came_at,
            self.window,
            self._every_s,
            goes=tuple(goes),
            ended=tuple(life.ended),
            count=tuple(life.count),
            halts=life.is_halted,
            reason=self.desk.reason if life.is_halted else None,
        )
        for mail in (life.goes, life.ended, life.count):
            mail.clear()
        return given

    @property
    def _every_s(self) -> float:
        is_full = self.desk.in_flight >= min(quota.slots.count for quota in self.desk.quotas)
        return max(SOON_S if is_full else EVERY_S, self._workers / MESSAGES_A_SECOND)

    # --- asks -------------------------------------------------------------------------------------------------------

    def _begin(self, life: _Life, ask: Ask) -> None:
        if self.desk.halted:
            life.news.set()  # each message says so
            return
        asked = life.asked[ask.number] = _Asked(life, ask.number, ask.tokens)
        stub = stub_of(ask, f"{life.name}/{ask.number}")
        self._asked[stub.key] = asked
        asked.task = self._tasks.create_task(self._ask(asked, stub, self._route(ask)))
        asked.task.add_done_callback(lambda _: self._forget(asked, stub))  # one that never began has no `finally`

    def _forget(self, asked: _Asked, stub: Prompt) -> None:
        asked.life.asked.pop(asked.number, None)
        self._asked.pop(stub.key, None)

    def _withdraw(self, asked: _Asked) -> None:
        if asked.task is not None:
            asked.task.cancel()
        if asked.count is not None and not asked.count.done():
            asked.count.set_result(asked.tokens)

    async def _ask(self, asked: _Asked, stub: Prompt, route: Route) -> None:
        """One prompt at the desk, until it is answered, ended or withdrawn."""
        life = asked.life
        try:
            reply = await self.desk.submit(stub, route)
        except Halted:
            life.news.set()  # each message says so
        else:
            if not asked.is_answered:
                why = reply.status, reply.error_kind, reply.error, reply.attempts, reply.rate_limited
                life.ended.append(Ended(asked.number, *why))
                life.news.set()

    async def _send(self, stub: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        """One go, and what came of it; it is settled as `calls.journal` settles a request."""
        asked = self._asked.get(stub.key)
        if asked is None or asked.life.name not in self._lives:
            self._cashier.unanswered(stub, target, UNSENT)
            return UNSENT
        hold_s = self._hold_s if self._quotas[target.quota].is_exact else None
        flight = asked.flight = _Flight(stub, target, self._loop.create_future(), hold_s)
        asked.life.goes.append((Go(asked.number, self._numbers[target], target.lane, tries, hold_s), self._loop.time()))
        asked.life.news.set()
        outcome = await flight.outcome
        asked.flight = None
        if outcome is GONE:
            return GONE
        if isinstance(outcome, Failure):
            bill = self._cashier.unanswered(stub, target, outcome)
            if bill is not None:
                self._cashier.charge(bill, target.account)
            return outcome
        asked.is_answered = True
        reply = Reply(
            "",
            outcome.status,
            usage=outcome.usage,
            model=outcome.model,
            asked=target.model,
            finished_at=self._wall(),
            served_at=outcome.served_at,
            target=target.name,
            lane=outcome.lane,
        )
        bill = self._cashier.answered(stub, target, reply)
        self._cashier.charge(bill, target.account)
        return reply

    async def _count(self, stub: Prompt, target: Target) -> int | Failure:
        """Have the worker count a prompt, who has its text."""
        asked = self._asked.get(stub.key)
        if asked is None:
            return stub.input_tokens_est  # nobody asks for it any more
        asked.count = self._loop.create_future()
        asked.life.count.append((asked.number, self._numbers[target]))
        asked.life.news.set()
        try:
            return await asked.count
        finally:
            asked.count = None

    def _route(self, ask: Ask) -> Route:
        key = ask.targets, ask.is_second
        known = self._routes.get(key)
        if known is None:
            targets = tuple(self._targets[number] for number in ask.targets)
            known = self._routes[key] = Route(targets, second=ask.is_second)
        return known


class _Counted:
    """Has prompts counted by those who have their text."""

    def __init__(self, count: CountTokens) -> None:
        self._count = count

    async def count_tokens(self, prompt: Prompt, target: Target) -> int | Failure:
        """As `Provider.count_tokens`."""
        return await self._count(prompt, target)


def stub_of(ask: Ask, name: str) -> Prompt:
    """What dispatcher and cashier read of a prompt; its text is its name, so it has a fingerprint of its own."""
    sound = (Media("audio", "", "", 0, ask.sound_tokens),) if ask.sound_tokens else ()
    return Prompt(ask.row, name, ask.step, said(name, sound), _params(ask.longest, ask.searches), ask.tokens)


@lru_cache(maxsize=256)
def _params(longest: int | None, searches: bool) -> Params:
    return Params(max_output_tokens=longest, tools=_SEARCHES if searches else None)


def _shard_of(life: str) -> str:
    return life.rpartition("/")[0]
