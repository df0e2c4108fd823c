"""In the place of a dispatcher in a worker: asks the driver, and sends what it is told to, at once or not at all."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import count
from math import inf
from typing import Any

import anyio

from pipeline.dispatch.desk import Send, Submitted
from pipeline.dispatch.flex import is_shed
from pipeline.errors import Halted, PipelineError, ServiceError
from pipeline.fleet.messages import (
    EVERY_S,
    FIRST_WINDOW,
    HOLD_S,
    POLL_S,
    UNSENT,
    Ask,
    Ended,
    Given,
    Go,
    Outcome,
    Told,
    told_of,
)
from pipeline.prompts import Prompt
from pipeline.providers.base import Providers
from pipeline.quota.standing import QuotaStanding
from pipeline.records import LATER, Failure, Reply
from pipeline.targets import Route, Target

ORPHANED_S = 10.0
"""A life that has heard nothing of its driver for so long is on its own."""
FORGETS_S = 60.0
"""The quickest link of a minute ago may be `HOLD_S` quicker than any now, and goes are taken all the same."""
_WAKES_S = 0.1
"""A go that was held so much too long is given back: the process stood still."""
_STALE_S = 1.0
"""A go that may be older than this is given back, however quick the others were."""


@dataclass(slots=True, eq=False)
class _Waiting(Submitted):
    """One submitted prompt until it is answered."""

    number: int
    line: "_Line"
    is_asked: bool = False  # the driver knows of it
    is_fresh: bool = True  # it was not sent yet
    leaves: asyncio.TimerHandle | None = None  # by a go that is held


@dataclass(slots=True, eq=False)
class _Line:
    """The prompts of one route: those that were not asked for yet, and how many wait for their first go."""

    targets: tuple[int, ...]
    is_second: bool
    finishing: deque[_Waiting] = field(default_factory=deque)  # what brings a document to its end goes first
    others: deque[_Waiting] = field(default_factory=deque)
    asked: int = 0

    def __bool__(self) -> bool:
        return bool(self.finishing or self.others)

    def next(self) -> _Waiting:
        return (self.finishing or self.others).popleft()


class Remote:
    """A `Desk` whose dispatcher is with the driver; it does no I/O.

    Whoever carries messages calls `tell` over and over for what the driver is to be told, and `heard` with what it
    gives. `run` returns once all was answered, and the driver has heard so.

    `is_orphan`: the driver was not heard of for `ORPHANED_S`, or its pipe has ended. Nothing new is sent then; what is
    in flight is finished and kept. Another life may have the shard: nothing but the journal may be written.
    """

    def __init__(
        self,
        send: Send,
        targets: Sequence[Target],
        providers: Providers,
        spent: Callable[[], Decimal],
        *,
        window: int = FIRST_WINDOW,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Make it inside the running event loop.

        `targets` are numbered as with the driver; `providers` count tokens. `spent` is what the shard has cost by now,
        or may have. `window` asks of a route may wait for a go until the driver says how many; `wall` is epoch seconds.
        """
        self._loop = asyncio.get_running_loop()
        self._send, self._targets, self._providers, self._spent = send, tuple(targets), providers, spent
        self._whole = tuple(range(len(targets)))
        self._numbers = {target: number for number, target in enumerate(targets)}
        self._counted_usd = spent()
        self._window, self._wall, self._every_s = window, wall, EVERY_S
        self._next = count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._lines: dict[Route | None, _Line] = {}
        self._outcomes: list[Outcome] = []
        self._counted: list[tuple[int, int | Failure]] = []
        self._withdrawn: list[int] = []
        self._unheard: deque[tuple[int, Decimal]] = deque()  # what was told and may not be heard yet: number and cost
        self._number = 0  # of the newest that was told
        self._told_at, self._heard_at = -inf, self._loop.time()
        self._least_s = inf  # that a message of the driver took, and one to it
        self._to_do: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._news, self._steps = asyncio.Event(), asyncio.Event()
        self._closed = self.is_halted = self.is_orphan = False
        self._reason: PipelineError | None = None
        self.ready = self.in_flight = 0
        self.sent = self.rate_limited = self.shed = 0
        self.failures: Counter[str] = Counter()

    @property
    def standing(self) -> tuple[QuotaStanding, ...]:
        """None: quotas are the driver's."""
        return ()

    @property
    def waits_until(self) -> float | None:
        """None: what is waited for, the driver knows."""
        return None

    async def submit(self, prompt: Prompt, route: Route | None = None) -> Reply:
        """Have the driver permit it, send, send again what may pass; see `Desk`."""
        if self.is_halted:
            raise Halted(self._reason)
        line = self._line_of(route)
        waiting = _Waiting(prompt, self._loop.create_future(), next(self._next), line)
        self._waiting[waiting.number] = waiting
        (line.finishing if prompt.step in LATER else line.others).append(waiting)
        self.ready += 1
        if line.asked < self._window:
            self._news.set()
        return await waiting.answered(partial(self._withdraw, waiting))

    async def run(self) -> None:
        """Send what it is told to. Raises what `send` raises."""
        try:
            async with anyio.create_task_group() as group:
                while not self._is_over:
                    await self._steps.wait()
                    self._steps.clear()
                    for do in self._to_do:
                        group.start_soon(do)
                    self._to_do.clear()
                group.cancel_scope.cancel()  # counts that nobody waits for
        finally:
            self.halt(self._reason)
            for waiting in self._waiting.values():  # nobody waits for these any more
                waiting.in_flight = False
                waiting.withhold(self._reason)
            self._waiting.clear()
            self.in_flight = 0

    def close(self) -> None:
        """No prompt will be submitted any more: `run` ends when all are answered."""
        self._closed = True
        self._look()

    def halt(self, reason: PipelineError | None) -> None:
        """Admit nothing more: waiting prompts get `Halted(reason)`; the rest finishes. The first reason stays."""
        if not self.is_halted:
            self.is_halted, self._reason = True, reason
            for waiting in [each for each in self._waiting.values() if not each.in_flight]:
                self._withdraw(waiting)
                waiting.withhold(self._reason)
        self._look()

    @property
    def untold_usd(self) -> Decimal:
        """What the shard has cost that the driver has not said that it heard of."""
        return max(Decimal(0), self._spent() - self._counted_usd)

    def orphan(self) -> None:
        """The driver is gone, or takes this life for dead."""
        if not self.is_orphan:
            self.is_orphan = True
            self.halt(ServiceError("the driver of the run is gone: nothing more is sent", "the same command continues"))

    # --- messages ---------------------------------------------------------------------------------------------------

    async def tell(self) -> Told:
        """What the driver is to be told next: at once after a pause, and after two seconds at most."""
        now = self._loop.time()
        if now < self._told_at + self._every_s:
            await anyio.sleep(self._told_at + self._every_s - now)
        with anyio.move_on_after(POLL_S):
            while not self._has_news:
                self._news.clear()
                await self._news.wait()
        if self._loop.time() - self._heard_at > ORPHANED_S:
            self.orphan()
        return self._told()

    def heard(self, given: Given) -> None:
        """Heed what the driver gives; as an orphan nothing."""
        if self.is_orphan:
            return
        now = self._loop.time()
        self._learn(given, now)
        self._heard_at = now
        while self._unheard and self._unheard[0][0] <= given.heard:
            self._counted_usd = self._unheard.popleft()[1]
        self._window, self._every_s = given.window, given.every_s
        if given.halts:
            self.halt(given.reason)
        late_s = self._late_s(given, now)
        for ended in given.ended:
            self._end(ended)
        for go in given.goes:
            self._go(go, late_s, now)
        for number, target in given.count:
            if (waiting := self._waiting.get(number)) is not None:
                self._to_do.append(partial(self._count, waiting, target))
        self._look()
        if any(line and line.asked < self._window for line in self._lines.values()):
            self._news.set()

    def _learn(self, given: Given, now: float) -> None:
        """How long a message takes at least; a link may become slower for good."""
        forgotten_s = HOLD_S / FORGETS_S * (now - self._heard_at)
        self._least_s = min(self._least_s + forgotten_s, _took_s(given, now))

    def _late_s(self, given: Given, now: float) -> float:
        """How much later than the quickest it may have come; `inf`: too late for any go."""
        took_s = _took_s(given, now)
        return inf if took_s > _STALE_S else took_s - self._least_s

    def _told(self) -> Told:
        now = self._told_at = self._loop.time()
        asks = self._asks()
        if not (asks or self._outcomes or self._counted or self._withdrawn):
            return Told(0, now, is_last=self._is_leaving)
        self._number += 1
        told = Told(
            self._number,
            now,
            self._spent(),
            asks,
            tuple(self._outcomes),
            tuple(self._counted),
            tuple(self._withdrawn),
            is_last=self._is_leaving,
        )
        for mail in (self._outcomes, self._counted, self._withdrawn):
            mail.clear()
        self._unheard.append((told.number, told.spent_usd))
        return told

    def _asks(self) -> tuple[Ask, ...]:
        asks = []
        for line in self._lines.values():
            while line and line.asked < self._window:
                waiting = line.next()
                if waiting.number not in self._waiting:  # withdrawn before it was asked for
                    continue
                waiting.is_asked = True
                line.asked += 1
                prompt, params = waiting.prompt, waiting.prompt.params
                asks.append(
                    Ask(
                        waiting.number,
                        prompt.row,
                        prompt.step,
                        prompt.input_tokens_est,
                        line.targets,
                        line.is_second,
                        params.max_output_tokens,
                        prompt.sound_tokens,
                        prompt.may_search,
                    )
                )
        return tuple(asks)

    @property
    def _has_news(self) -> bool:
        mail = self._outcomes or self._counted or self._withdrawn or self._is_leaving
        return bool(mail) or any(line and line.asked < self._window for line in self._lines.values())

    # --- prompts ----------------------------------------------------------------------------------------------------

    def _go(self, go: Go, late_s: float, now: float) -> None:
        hold_s = 0.0 if go.hold_s is None else go.hold_s - late_s
        waiting = self._waiting.get(go.number)
        if waiting is None or waiting.in_flight or waiting.leaves or late_s == inf or hold_s < 0:
            self._give_back(go.number)
        elif go.hold_s is None:
            self._leave(waiting, go)
        else:
            waiting.leaves = self._loop.call_at(now + hold_s, self._leave_by, waiting, go, now + hold_s + _WAKES_S)

    def _leave_by(self, waiting: _Waiting, go: Go, latest: float) -> None:
        """It was held long enough; a process that was stopped meanwhile may be too late."""
        if self._loop.time() > latest:
            waiting.leaves = None
            self._give_back(go.number)
        else:
            self._leave(waiting, go)
            self._look()

    def _give_back(self, number: int) -> None:
        self._outcomes.append(Outcome(number, self._loop.time(), UNSENT))
        self._news.set()

    def _leave(self, waiting: _Waiting, go: Go) -> None:
        waiting.leaves = None
        self._is_fresh_no_more(waiting)
        waiting.in_flight = True
        self.ready -= 1
        self.in_flight += 1
        self.sent += 1
        self._to_do.append(partial(self._make, waiting, go))

    async def _make(self, waiting: _Waiting, go: Go) -> None:
        """One request, and what came of it."""
        target = self._targets[go.target].asked_in(go.lane)
        outcome = await self._send(waiting.prompt, target, go.tries)
        waiting.in_flight = False
        self.in_flight -= 1
        read_at = self._loop.time()
        if isinstance(outcome, Reply) and outcome.finished_at:
            read_at -= max(0.0, self._wall() - outcome.finished_at)
        self._outcomes.append(Outcome(waiting.number, read_at, told_of(outcome)))
        if isinstance(outcome, Reply):
            self._deliver(waiting, outcome)
        else:
            self._tally(target, outcome)
            self.ready += 1
            if waiting.withdrawn or self.is_halted:
                self._withdraw(waiting)
                waiting.withhold(self._reason)
        self._news.set()
        self._look()

    def _tally(self, target: Target, failure: Failure) -> None:
        if target.lane == "flex" and is_shed(failure):
            self.shed += 1
        elif failure.kind in ("rate_limit", "day_quota"):
            self.rate_limited += 1
        else:
            self.failures[failure.error_kind] += 1

    async def _count(self, waiting: _Waiting, target: int) -> None:
        asked = self._targets[target]
        tokens = await self._providers[asked.provider].count_tokens(waiting.prompt, asked)
        self._counted.append((waiting.number, tokens))
        self._news.set()

    def _end(self, ended: Ended) -> None:
        waiting = self._waiting.get(ended.number)
        if waiting is not None:
            self.ready -= 1
            self._is_fresh_no_more(waiting)
            reply = Reply(
                "",
                ended.status,
                error_kind=ended.error_kind,
                error=ended.error,
                attempts=ended.attempts,
                rate_limited=ended.rate_limited,
                finished_at=self._wall(),
            )
            self._deliver(waiting, reply)

    def _is_fresh_no_more(self, waiting: _Waiting) -> None:
        """It takes no place in the window any more: what was sent once may wait long, for others' sake."""
        if waiting.is_fresh and waiting.is_asked:
            waiting.line.asked -= 1
        waiting.is_fresh = False

    def _deliver(self, waiting: _Waiting, reply: Reply) -> None:
        self._waiting.pop(waiting.number, None)
        waiting.deliver(reply)

    def _withdraw(self, waiting: _Waiting) -> None:
        """Nobody wants it any more; of one in flight the answer is kept all the same."""
        if waiting.in_flight or self._waiting.pop(waiting.number, None) is None:
            return
        self.ready -= 1
        if waiting.leaves is not None:
            waiting.leaves.cancel()
            self._give_back(waiting.number)
        if waiting.is_asked:
            self._withdrawn.append(waiting.number)
            self._is_fresh_no_more(waiting)
            self._news.set()
        self._look()

    def _line_of(self, route: Route | None) -> _Line:
        line = self._lines.get(route)
        if line is None:
            targets = self._whole if route is None else tuple(self._numbers[target] for target in route)
            line = self._lines[route] = _Line(targets, route is not None and route.second)
        return line

    # --- the end ----------------------------------------------------------------------------------------------------

    @property
    def _is_leaving(self) -> bool:
        return (self._closed or self.is_halted) and not self._waiting and not self.in_flight

    @property
    def _is_over(self) -> bool:
        """Whether nothing is left to do, and the driver knows."""
        if not self._is_leaving:
            return False
        return self.is_orphan or not (self._unheard or self._outcomes or self._withdrawn or self._counted)

    def _look(self) -> None:
        """Something may be to be done, or nothing more."""
        self._steps.set()
        if self._is_leaving:
            self._news.set()


def _took_s(given: Given, now: float) -> float:
    """Seconds that a message took at most: on its way, and one to the driver, by which two clocks are compared."""
    return inf if given.stamp is None else now - given.stamp - given.held_s
