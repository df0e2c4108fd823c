"""The loop of one quota over the shared backlog: hold → slot → pace → tokens → pick → reserve → send."""

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from math import inf
from random import Random
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from pipeline.calibration import Calibration, Calibrations
from pipeline.dispatch.backlog import Backlog, Costs, Line, Waiting, next_wanted, open_to, take
from pipeline.dispatch.bounds import Bounds
from pipeline.dispatch.desk import Send
from pipeline.dispatch.flex import Flex, fell_back
from pipeline.errors import PipelineError
from pipeline.events import DayUsedUp, Notify, told_of
from pipeline.quota import stops
from pipeline.quota.book import QuotaBook
from pipeline.quota.pacer import WINDOW_S
from pipeline.quota.quota import GIVE_UP_S, Quota
from pipeline.quota.refusals import Ticket
from pipeline.quota.standing import Bound, QuotaStanding, standing_of
from pipeline.records import Failure, Lane, Reply, Step, Takes
from pipeline.targets import Route, Target, by_quota

_YIELD_S = 0.1  # until those that are asked first are looked at again, where nothing wakes the loop before
_LONGEST_SLEEP_S = 60.0  # after which the wall clock is read again: it goes on while a machine is suspended


class Floor(Protocol):
    """What the loops of all quotas share; once it is `halted` nothing more is sent."""

    halted: bool

    @property
    def is_over(self) -> bool:
        """Whether nothing waits, nothing is in flight, and nothing will come."""
        ...

    def look(self, now: float, group: TaskGroup) -> None:
        """Bring back the prompts whose time has come."""
        ...

    def admits(self, loop: "QuotaLoop", target: Target, waiting: Waiting, now: float) -> bool:
        """Whether it may be paid for now at that target; one that may not waits again, at the front."""
        ...

    def launched(self, waiting: Waiting, now: float) -> None:
        """A request for it leaves."""
        ...

    def landed(
        self, loop: "QuotaLoop", target: Target, waiting: Waiting, ticket: Ticket, outcome: Reply | Failure
    ) -> None:
        """That request has come back from the target."""
        ...

    def refuse_too_long(self, waiting: Waiting) -> bool:
        """End it where it is larger than any of its targets takes, or than those that are left."""
        ...

    def shut(self, loop: "QuotaLoop", reason: PipelineError) -> None:
        """Nothing more can be sent by this loop: others go on without it, if there are any for what waits."""
        ...


class QuotaLoop:
    """One quota, with the targets that it is of: several are several keys, of which the first that is good is used."""

    def __init__(
        self,
        targets: Sequence[Target],
        quota: Quota,
        backlog: Backlog,
        floor: Floor,
        send: Send,
        *,
        calibrations: Calibrations,
        wait: bool,
        notify: Notify,
        wall: Callable[[], float],
        flex: Flex | None = None,
    ) -> None:
        """With `wait` a used-up day is slept through; `wall` is epoch seconds, all else goes by the loop's clock."""
        self.targets, self.quota, self.flex = list(targets), quota, flex
        self.costs = Costs(self.target.model, calibrations, self.target.limits.tokens)
        self.lines: list[Line] = []
        self.flying: dict[Waiting, Ticket] = {}
        self.closed: PipelineError | None = None  # why it sends nothing any more
        self.sent = 0
        self.bounds = Bounds()
        self._why: Bound | None = None  # it was blocked, when that was last asked
        self._is_short = False  # of tokens, for all that it may take
        self._is_beyond = False  # all that waits is larger than it ever takes
        self._backlog, self._floor, self._send = backlog, floor, send
        self._wait, self._notify, self._wall = wait, notify, wall
        self._loop = asyncio.get_running_loop()
        self._idle: list[asyncio.Future[tuple[Waiting, Ticket] | None]] = []
        self._waker: asyncio.Future[None] | None = None
        self._pacing: anyio.CancelScope | None = None
        self._unit_at: float | None = None  # when the pacer granted a request that has not left yet
        self._sleeping = False
        self._resting_until = -inf

    @property
    def target(self) -> Target:
        """Whom the next request goes to."""
        return self.targets[0]

    def is_out(self, now: float, takes: Set[Takes]) -> bool:
        """Whether it is not asked now, for one of these causes; once it sends nothing any more, for any."""
        if self.closed or self._is_beyond:
            return True
        if self.quota.day.opens_at(self._wall()) is not None:
            return "day_quota" in takes or "full" in takes
        if self.quota.down_s() > WINDOW_S or self.quota.down:
            return "outage" in takes or "full" in takes
        return "full" in takes and self._is_full(self._usual_lane(now))

    def lane_of(self, line: Line, now: float) -> Lane | None:
        """In which lane it asks what waits there; None: not now, as that one is full, or flex turns all away."""
        lane: Lane = "standard" if line.standard else self._usual_lane(now)
        is_shut = lane == "flex" and self.flex is not None and self.flex.opens_at(now) is not None
        return None if is_shut or self._is_full(lane) else lane

    def has_room(self, now: float) -> bool:
        """Whether it would send at once."""
        if self.closed or self._is_short or self._is_full(self._usual_lane(now)):
            return False
        if self.quota.day.opens_at(self._wall()) is not None or self.quota.opens_at(now) is not None:
            return False
        return self._has_unit(now) or not self.quota.paced()

    async def serve(self, group: TaskGroup) -> None:
        """Send what it may until all is over."""
        while not self._floor.is_over:
            now = self._loop.time()
            self._floor.look(now, group)
            until = self._blocked_until(now)
            if until is not None:
                self.bounds.turn(self._why, now)
                await self._rest(until)
            elif self._has_unit(now) or await self._pace(now):
                now = self._loop.time()
                waiting = take(now, self)
                self._is_short, self._is_beyond = waiting is None and any(open_to(self, now)), False
                if waiting is None:
                    self.bounds.turn("tpm" if self._is_short else "source", now)
                    if not self._floor.halted:
                        changes_at = self.flex.changes_at(now) if self.flex else inf
                        await self._rest(min(self._fits_at(now), self._left_to_others_until(now), changes_at))
                    continue
                lane = self.lane_of(waiting.line, now) or "standard"
                if self._floor.admits(self, self.target.asked_in(lane), waiting, now):
                    self._launch(waiting, lane, now, group)
                elif not self._floor.halted:
                    self.bounds.turn("budget", now)
                    await self._rest(inf)

    def end(self) -> None:
        """Let the senders that are idle go."""
        for parked in self._idle:
            parked.set_result(None)

    def wake(self, idle: bool) -> None:
        """Something happened: look again. A wait for the pace goes on, unless all is `idle`."""
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)
        if self._pacing is not None and idle:
            self._pacing.cancel()

    def standing(self, now: float, wall: float) -> QuotaStanding:
        """How it stands, at both clocks."""
        return standing_of(
            self.quota,
            self.target.label,
            len(self.flying),
            now,
            wall,
            self.bounds.seconds(now),
            is_closed=self.closed is not None,
            is_short=self._is_short,
        )

    def rests_until(self, now: float, wall: float) -> float | None:
        """Epoch seconds until which it sends nothing, as far as it knows; None where it may at any time."""
        if not now < self._resting_until < inf:
            return None
        return (self.quota.day.opens_at(wall) if self._sleeping else None) or wall + self._resting_until - now

    def _blocked_until(self, now: float) -> float | None:
        """None when a request may leave; else when to look again, `inf` when only an event can change it."""
        if self._floor.halted or self.closed:
            self._why = None
            return inf
        if not any(self.lines):
            self._why = "source" if self.flying or self._backlog.due_at == inf else "server"
            return inf
        if not any(line and self.lane_of(line, now) for line in self.lines):
            is_full = self._is_full(self._usual_lane(now)) and not self.quota.slots.is_cut
            self._why = "slots" if is_full else "server"
            return self.flex.changes_at(now) if self.flex else inf
        opens_at = self._day_opens_at(now)
        if opens_at is not None:
            self._why = "rpd"
            return opens_at
        self.quota.look_around(now)
        opens_at = self.quota.opens_at(now)
        if opens_at is not None:
            self._why = "rpm" if self.quota.held_until is None else "server"
        if opens_at is not None and self.quota.down_s() > GIVE_UP_S:
            self._floor.shut(self, stops.down(GIVE_UP_S))
        return opens_at

    def _day_opens_at(self, now: float) -> float | None:
        wall = self._wall()
        opens_at = self.quota.day.opens_at(wall)
        if opens_at is None:
            self._sleeping = False
            return None
        if not self._wait:
            self._floor.shut(self, stops.day_used_up(wall, opens_at))
            return inf
        if not self._sleeping:
            self._sleeping = True
            self._notify(DayUsedUp(stops.day_used_up(wall, opens_at).message, opens_at))
        return now + min(_LONGEST_SLEEP_S, opens_at - wall)

    async def _rest(self, until: float) -> None:
        """Sleep until then, or until something happened or a failed prompt may go again."""
        until = min(until, self._backlog.due_at)
        self._waker, self._resting_until = self._loop.create_future(), until
        timer = self._loop.call_at(until, self.wake, False) if until < inf else None
        try:
            await self._waker
        finally:
            self._waker = None
            if timer:
                timer.cancel()

    def _has_unit(self, now: float) -> bool:
        """Whether a grant of the pacer is at hand; one older than a period has been granted again meanwhile."""
        return self._unit_at is not None and now - self._unit_at <= self.quota.period_s

    async def _pace(self, now: float) -> bool:
        """Get a grant of the pacer; False when that took time: ask anew whether one may leave."""
        if not self.quota.paced():
            await self.quota.acquire(now)
            self._unit_at = now
            return True
        self.bounds.turn("rpm", now)
        with anyio.CancelScope() as self._pacing:
            await self.quota.acquire(now)
            self._unit_at = self._loop.time()
        self._pacing = None
        return False

    def _fits_at(self, now: float) -> float:
        """When what everything waits for may fit; what never will is refused."""
        wanted = next_wanted(now, self)
        if wanted is None:
            return inf
        tokens, margin = self.costs.of(wanted)
        if tokens > self.quota.largest:
            self._is_beyond = not self._floor.refuse_too_long(wanted)
            return inf if self._is_beyond else now
        room = min(tokens, self.quota.tokens_limit)
        self.quota.held_up(now, room, margin)
        return self.quota.fits_at(now, room, margin)

    def _left_to_others_until(self, now: float) -> float:
        """When to look again whether those that are asked before it leave something."""
        return now + _YIELD_S if any(line and not line.is_left_to(self, now) for line in self.lines) else inf

    def _usual_lane(self, now: float) -> Lane:
        """The lane in which it asks: what only finds out whether the service is back is asked in standard."""
        if self.flex is None or self.target.choice == "standard" or self.quota.down or self.flex.is_over(now):
            return "standard"
        return "flex"

    def _is_full(self, lane: Lane) -> bool:
        if self.flex is None:
            return len(self.flying) >= self.quota.slots.count
        if self.flex.fills(len(self.flying)):
            return True
        return lane == "standard" and len(self.flying) - self.flex.in_flight >= self.quota.slots.count

    def _launch(self, waiting: Waiting, lane: Lane, now: float, group: TaskGroup) -> None:
        self._unit_at = None
        self.sent += 1
        ticket = self.quota.send(now, *self.costs.of(waiting), flex=lane == "flex")
        if self.flex and ticket.flex:
            self.flex.sent(ticket, self.quota.rpm)
            waiting.flexed = True
        self.flying[waiting] = ticket
        self._floor.launched(waiting, now)
        if self._idle:
            self._idle.pop().set_result((waiting, ticket))
        else:
            group.start_soon(self._sender, waiting, ticket)

    async def _sender(self, waiting: Waiting, ticket: Ticket) -> None:
        """Make one request after another: waking a task costs a tenth of starting one (44 µs, measured 2026-11)."""
        while True:
            target = self.target
            asked = target.asked_in("flex" if ticket.flex else "standard")
            tries = waiting.tries
            if waiting.flexed and not ticket.flex:
                why = fell_back(waiting, self.flex.last_call if self.flex else inf, ticket.sent_at)
                tries = tries._replace(fell_back=why)
            outcome = await self._send(waiting.prompt, asked, tries)
            del self.flying[waiting]
            self._floor.landed(self, target, waiting, ticket, outcome)
            parked: asyncio.Future[tuple[Waiting, Ticket] | None] = self._loop.create_future()
            self._idle.append(parked)
            work = await parked
            if work is None:
                return
            waiting, ticket = work


def loops_of(
    route: Route,
    backlog: Backlog,
    floor: Floor,
    send: Send,
    books: Mapping[str, QuotaBook],
    known: Mapping[Step, Calibration] | None,
    *,
    wait: bool,
    notify: Notify,
    wall: Callable[[], float],
    rng: Random,
    workers: int,
) -> dict[str, QuotaLoop]:
    """A loop for each quota of a route, by its name; `known` is of the estimates for the first target's model."""
    now = asyncio.get_running_loop().time()
    loops: dict[str, QuotaLoop] = {}
    for name, targets in by_quota(route).items():
        first = targets[0]
        is_planned = first.model == route.first.model and first.limits.tokens == "input"
        heard = told_of(", ".join(filter(None, (target.name for target in targets))), notify)
        quota = Quota(
            first.limits,
            now=now,
            wall=wall,
            notify=heard,
            rng=rng,
            book=books.get(name),
            workers=workers,
        )
        has_flex = any(target.choice != "standard" for target in targets)
        loops[name] = QuotaLoop(
            targets,
            quota,
            backlog,
            floor,
            send,
            calibrations=Calibrations(known if is_planned else None),
            wait=wait,
            notify=heard,
            wall=wall,
            flex=Flex(first.limits, quota.rpm, heard, rng, workers) if has_flex else None,
        )
    return loops
