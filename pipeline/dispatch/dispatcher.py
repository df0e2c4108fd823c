"""Ready prompts → their targets: one backlog, a loop for each quota, and what is sent again of what came back."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from functools import partial
from math import inf
from random import Random

import anyio
from anyio.abc import TaskGroup

from pipeline.calibration import Calibration
from pipeline.dispatch.backlog import Backlog, Costs, Deadline, Line, Waiting
from pipeline.dispatch.counting import Counting, Counts
from pipeline.dispatch.desk import Admit, Send, Tries
from pipeline.dispatch.flex import Flex, is_shed
from pipeline.dispatch.loop import QuotaLoop, loops_of
from pipeline.dispatch.retries import failed, is_enough, left_alone, pause_s, too_long
from pipeline.errors import Halted, PipelineError
from pipeline.events import LongWait, Notify, Stopped, TargetLeftOut
from pipeline.prompts import Prompt
from pipeline.quota import stops
from pipeline.quota.book import QuotaBook
from pipeline.quota.quota import Quota
from pipeline.quota.refusals import Ticket
from pipeline.quota.standing import QuotaStanding
from pipeline.quota.waits import LONGEST_WAIT_S, TOLD_S, asked_s, told
from pipeline.records import FLEX_TRIES, Failure, Reply, Step
from pipeline.targets import Route, Target

_LOOK_S = 0.25  # between two looks whether all that waits is stuck
_GIVEN_BACK_S = 1.0  # so whom it comes to too late does not have each go of the others
REFUSED_ALONE, REFUSED_LARGE = 3, 10
"""Refusals with a minute for itself after which a prompt is too long: with as many tokens as a minute is believed to
have, and with fewer. One may be somebody else's; of the last prompt of a run nobody knows whether others would pass."""


class Dispatcher:
    """A `Desk` that sends by itself: as many loops as there are quotas, and each takes what it has room for.

    A refusal for quota costs no attempt: the prompt goes back to the front, and who was refused holds. A server that
    refuses or fails everything for `GIVE_UP_S` ends its loop, and the run where nobody else may answer what waits; the
    run can be resumed, and the server is not asked forever.

    Counters for progress: `ready`, `in_flight`; `sent` requests; `answered` prompts; `failed`, prompts that ended
    without an answer; `rate_limited` refusals; `shed`, requests that flex turned away; `attempts`, all other requests;
    `failures`, those of them without an answer, by cause.
    """

    def __init__(
        self,
        send: Send,
        route: Route,
        *,
        providers: Mapping[str, Counts] | None = None,
        admit: Admit = lambda prompt, target: True,
        books: Mapping[str, QuotaBook] | None = None,
        known: Mapping[Step, Calibration] | None = None,
        deadline: Deadline | None = None,
        first: Set[int] = frozenset(),
        max_attempts: int = 5,
        wait: bool = False,
        on_event: Notify = lambda event: None,
        wall: Callable[[], float] = time.time,
        rng: Random | None = None,
        workers: int = 1,
    ) -> None:
        """Make it inside the running event loop.

        `route` has every target there is. `providers` count tokens, and know what counts against a quota. `admit` is
        asked right before each request: so it reserves for requests in flight, and for no others. With `wait` a used-up
        day is slept through. `on_event` hears what a person may want to know. `books`, by quota, carry counts and
        learned limits over from other runs; the prompts of the rows that go `first` leave before others; `deadline` is
        for the targets that take what others would be too slow for; `known` is what the plan learned of the first
        target's estimates. `wall` is epoch seconds; all else goes by the loop's clock. Requests are made by `workers`.
        """
        self._loop = asyncio.get_running_loop()
        self._route, self._providers, self._admit = route, providers or {}, admit
        self._max_attempts = max_attempts
        self._notify, self._wall, self._rng = on_event, wall, rng or Random()
        self._by_quota: dict[str, QuotaLoop] = {}
        ordered = any(target.limits.tpm != 0 for target in route)
        self._deadline = deadline
        self._backlog = Backlog(self._rng if ordered else None, self._by_quota, deadline, first)
        self._by_quota |= loops_of(
            route,
            self._backlog,
            self,
            send,
            books or {},
            known,
            wait=wait,
            notify=on_event,
            wall=wall,
            rng=self._rng,
            workers=workers,
        )
        self._line = self._backlog.line_of(route)
        self._counting = Counting(self._count if self._providers else None, self._counted, self._rng)
        self.halted = self._closed = self._is_any_shut = self._is_giving_up = False
        self.reason: PipelineError | None = None  # why it is halted; None: for no fault
        self._told_until = -inf
        self.in_flight = 0
        self.ready = 0
        self.sent = self.answered = self.failed = self.rate_limited = self.shed = self.attempts = 0
        self.failures: Counter[str] = Counter()

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """What each quota may be sent, in the order of the targets."""
        return tuple(loop.quota for loop in self._by_quota.values())

    @property
    def flex(self) -> tuple[int, int]:
        """Of the newest requests in flex those that were served, and those that it turned away."""
        newest = [served for loop in self._by_quota.values() if loop.flex for served in loop.flex.newest]
        return sum(newest), len(newest) - sum(newest)

    def look_again(self) -> None:
        """There may be room under a cap again, by something that is no request here."""
        self._wake()

    def call_last(self, at: float, own: Mapping[str, float] = {}) -> None:
        """From then on, by the loop's clock, nothing new leaves in flex; what is in flight there is waited for.

        `own` are the times of those targets, by name, that have another.
        """
        for loop in self._by_quota.values():
            if loop.flex:
                times = (own[target.name] for target in loop.targets if target.name in own)
                loop.flex.last_call = min(times, default=at)
        self._wake()

    @property
    def costs(self) -> tuple[Costs, ...]:
        """What prompts cost each target in tokens, as its answers show."""
        return tuple(loop.costs for loop in self._by_quota.values())

    @property
    def standing(self) -> tuple[QuotaStanding, ...]:
        """How each quota stands, in the order of the targets."""
        now, wall = self._loop.time(), self._wall()
        return tuple(loop.standing(now, wall) for loop in self._by_quota.values())

    @property
    def waits_until(self) -> float | None:
        """Epoch seconds until which nothing is sent or awaited, as far as is known; None while anything goes on."""
        if self.in_flight or not self.ready:
            return None
        now, wall = self._loop.time(), self._wall()
        waits = [loop.rests_until(now, wall) for loop in self._by_quota.values() if not loop.closed]
        return min((wait for wait in waits if wait is not None), default=None) if None not in waits else None

    async def submit(self, prompt: Prompt, route: Route | None = None) -> Reply:
        """Wait for quota, send, send again what may pass; see `Desk`."""
        if self.halted:
            raise Halted(self.reason)
        line = self._line if route is None or route is self._route else self._backlog.line_of(route)
        waiting = Waiting(prompt, self._loop.create_future(), line, self._loop.time())
        waiting.tokens = line.size(waiting)
        self._count_ready(waiting, 1)
        self._enter(waiting)
        return await waiting.answered(partial(self._withdraw, waiting))

    async def run(self) -> None:
        """The loops of all quotas. Raises what `send` raises."""
        try:
            async with anyio.create_task_group() as group:
                async with anyio.create_task_group() as loops:
                    others = list(self._by_quota.values())[1:]
                    for loop in others:
                        loops.start_soon(loop.serve, group)
                    await self._by_quota[self._route.first.quota].serve(group)
                self._counting.stop()
                for loop in self._by_quota.values():
                    loop.end()
        finally:
            self.halt(self.reason)
            for loop in self._by_quota.values():
                for waiting, ticket in loop.flying.items():
                    loop.quota.unknown(ticket)
                    waiting.in_flight = False
                    self._withhold(waiting)
                loop.flying.clear()
            self.in_flight = 0

    def close(self) -> None:
        """No prompt will be submitted any more: `run` ends when all are answered."""
        self._closed = True
        self._wake()

    def halt(self, reason: PipelineError | None) -> None:
        """Admit nothing more: waiting prompts get `Halted(reason)`; the rest finishes. The first reason stays."""
        if self.halted:
            return
        self.halted, self.reason = True, reason
        if reason:
            self._notify(Stopped(reason.message))
        for waiting in (*self._backlog, *self._counting):
            self._withhold(waiting)
        self._wake()

    # --- what the loops share ---------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing waits, nothing is in flight, and nothing will come."""
        return not self.in_flight and (self.halted or (self._closed and not self.ready))

    def look(self, now: float, group: TaskGroup) -> None:
        """Bring back the prompts whose time has come, and have those that wait for it counted."""
        self._backlog.bring_back(now)
        self._counting.start(now, group)

    def admits(self, loop: QuotaLoop, target: Target, waiting: Waiting, now: float) -> bool:
        """Whether it may be paid for now; one that may not goes first when something has come back."""
        try:
            if self._admit(waiting.prompt, target):
                return True
        except PipelineError as reason:
            self._backlog.add_again(waiting, now, now)
            self.shut(loop, reason)  # another may cost less, or nothing
            return False
        self._backlog.add_again(waiting, now, now)
        return False

    def launched(self, waiting: Waiting, now: float) -> None:
        """A request for it leaves."""
        waiting.since, waiting.in_flight, waiting.queued = now, True, False
        self._count_ready(waiting, -1)
        self.sent += 1
        self.in_flight += 1
        if waiting.line.is_ranked:
            self._wake()  # those that leave the first place to this one

    def landed(
        self, loop: QuotaLoop, target: Target, waiting: Waiting, ticket: Ticket, outcome: Reply | Failure
    ) -> None:
        """That request has come back from the target."""
        waiting.in_flight = False
        self.in_flight -= 1
        self._wake()
        now = self._loop.time()
        if ticket.flex and loop.flex:
            loop.flex.landed(ticket, now, outcome)
        if isinstance(outcome, Reply):
            self._take_answer(loop, waiting, ticket, outcome, now)
        elif outcome.kind == "lost":
            self._take_lost(loop, waiting, ticket, outcome, now)
        elif ticket.flex and loop.flex and is_shed(outcome):
            self._take_shed(loop, loop.flex, waiting, ticket, outcome, now)
        elif outcome.kind in ("rate_limit", "day_quota"):
            self._take_refusal(loop, waiting, ticket, outcome, now)
        else:
            self._take_failure(loop, target, waiting, ticket, outcome, now)

    def refuse_too_long(self, waiting: Waiting) -> bool:
        """End it where it is larger than any of its targets takes, or than those that are left."""
        takers = waiting.line.takers
        if any(taker.costs.of(waiting)[0] <= taker.quota.largest for taker in takers):
            self._heed_if_stuck(waiting)
            return waiting.gone
        most = max(taker.quota.largest for taker in takers)
        self._leave_queue(waiting)
        self._end(waiting, waiting.otherwise or too_long(waiting.line.size(waiting), f"{most:,.0f} a minute at most"))
        self._wake()
        return True

    def shut(self, loop: QuotaLoop, reason: PipelineError) -> None:
        """End one loop; and the run, where prompts wait that nobody else may answer."""
        if not loop.closed and len(self._by_quota) > 1:
            self._notify(TargetLeftOut(reason.message, target=loop.target.label))
        loop.closed = loop.closed or reason
        self._is_any_shut = True
        if all(other.closed for other in self._by_quota.values()):
            self.halt(reason)
        for waiting in list(self._backlog):
            self._heed_if_stuck(waiting)
        self._wake()

    # --- what came of a request -------------------------------------------------------------------------------------

    def _take_answer(self, loop: QuotaLoop, waiting: Waiting, ticket: Ticket, reply: Reply, now: float) -> None:
        tokens = loop.costs.learn(waiting, reply.usage)
        received = now if not reply.finished_at else min(now, now - (self._wall() - reply.finished_at))
        loop.quota.answered(ticket, now, tokens, reply.served_at, received)
        self.attempts += 1
        self.answered += 1
        fails, refused = waiting.tries[:2]
        if reply.attempts != fails + 1 or reply.rate_limited != refused:
            reply = replace(reply, attempts=fails + 1, rate_limited=refused)
        self._deliver(waiting, reply)

    def _take_lost(self, loop: QuotaLoop, waiting: Waiting, ticket: Ticket, failure: Failure, now: float) -> None:
        """Nobody waits for it any more, or it was given back, and goes again in a moment, past others."""
        loop.quota.lost(ticket, now, sent=failure.sent)
        if failure.sent:
            self._withhold(waiting)
            return
        self.sent -= 1
        loop.sent -= 1
        self._again(waiting, now, now + _GIVEN_BACK_S)

    def _take_refusal(self, loop: QuotaLoop, waiting: Waiting, ticket: Ticket, failure: Failure, now: float) -> None:
        waiting.refused_alone += loop.quota.refused(ticket, now, failure)
        if failure.kind == "rate_limit":
            self._tell_wait(loop, failure, min(asked_s(failure), LONGEST_WAIT_S), now)
        self.rate_limited += 1
        waiting.tries = Tries(waiting.tries.failed, waiting.tries.refused + 1)
        enough = REFUSED_ALONE if ticket.tokens >= loop.quota.tokens_limit else REFUSED_LARGE
        if waiting.refused_alone < enough:
            self._again(waiting, now, max(now, ticket.again_at))
            return
        takes = f"fewer a minute: it was refused {enough} times with a minute for itself"
        self._end_here(waiting, loop, too_long(ticket.tokens, takes), now)

    def _take_shed(
        self, loop: QuotaLoop, flex: Flex, waiting: Waiting, ticket: Ticket, failure: Failure, now: float
    ) -> None:
        """It may have used up quota, and costs no attempt."""
        loop.quota.failed(ticket, now, failure)
        self.shed += 1
        waiting.shed += 1
        if flex.is_enough(waiting.shed):
            self._leave_flex(waiting)
            self._again(waiting, now, now)
        else:
            pause_s = flex.pause_s(waiting.shed, failure, self._rng)
            self._again(waiting, now, min(now + pause_s, max(now, flex.last_call)))

    def _leave_flex(self, waiting: Waiting) -> None:
        """Ask it in standard from now on."""
        waiting.without_flex = True
        waiting.line = self._line_for(waiting, waiting.line.route)

    def _line_for(self, waiting: Waiting, route: Route) -> Line:
        return self._backlog.line_of(route, standard=waiting.without_flex)

    def _take_failure(
        self, loop: QuotaLoop, target: Target, waiting: Waiting, ticket: Ticket, failure: Failure, now: float
    ) -> None:
        loop.quota.failed(ticket, now, failure)
        waiting.tries = Tries(waiting.tries.failed + 1, waiting.tries.refused)
        self.attempts += 1
        self.failures[failure.error_kind] += 1
        if failure.kind == "reject":
            self._end(waiting, failed("blocked" if failure.error_kind == "prompt_blocked" else "invalid", failure))
        elif failure.kind == "transient" and is_enough(waiting, failure, self._max_attempts):
            self._end_here(waiting, loop, failed("error", failure), now)
        elif failure.kind == "transient":
            if ticket.flex and waiting.failed_here >= FLEX_TRIES:
                self._leave_flex(waiting)
            wait, asked = pause_s(waiting, failure, loop.quota.period_s, self._rng)
            self._tell_wait(loop, failure, asked, now)
            self._again(waiting, now, now + wait)
        else:
            self._left_out(loop, target, stops.stopped_by(failure))
            self._again(waiting, now, now)

    def _end_here(self, waiting: Waiting, loop: QuotaLoop, reply: Reply, now: float) -> None:
        """Ask this quota no more for it; it ends with `reply`, where it would with the others too."""
        if waiting.gone:
            return
        route, model = waiting.elsewhere(loop, reply), waiting.line.route.first.model
        if route is None:
            self._end(waiting, reply)
            return
        waiting.line = self._line_for(waiting, route)
        if route.first.model != model:
            waiting.exact_tokens = None
        waiting.tokens = waiting.line.size(waiting)
        waiting.failed_elsewhere, waiting.refused_alone, waiting.otherwise = waiting.tries.failed, 0, reply
        self._again(waiting, now, now)

    def _left_out(self, loop: QuotaLoop, target: Target, reason: PipelineError) -> None:
        """Ask this target no more: another key of the same quota is used, or the loop ends."""
        if loop.closed or target not in loop.targets:  # by another request, already
            return
        if len(loop.targets) > 1:
            loop.targets.remove(target)
            self._notify(TargetLeftOut(reason.message, target=target.label))
        else:
            self.shut(loop, reason)

    def _tell_wait(self, loop: QuotaLoop, failure: Failure, kept_s: float, now: float) -> None:
        """Tell of a long wait that the service asks for, once until it is over."""
        if max(asked_s(failure), kept_s) > TOLD_S and now >= self._told_until:
            self._told_until = now + kept_s
            wall = self._wall()
            self._notify(LongWait(told(failure, kept_s, wall), wall + kept_s, target=loop.target.name))

    def _again(self, waiting: Waiting, now: float, when: float) -> None:
        """Let a prompt wait again, at the front; from `when` on."""
        if waiting.gone:
            return
        if waiting.withdrawn or self.halted:
            self._withhold(waiting)
            return
        waiting.queued = True
        self._count_ready(waiting, 1)
        self._backlog.add_again(waiting, now, when)
        self._heed_if_stuck(waiting)

    # --- the queue --------------------------------------------------------------------------------------------------

    def _enter(self, waiting: Waiting) -> None:
        tokens = waiting.tokens
        if self._counting.worth(tokens, waiting.line.takers[0].quota.tokens_limit):
            self._counting.add(waiting)
        else:
            self._line_up(waiting, tokens)
        self._wake()

    def _line_up(self, waiting: Waiting, tokens: int) -> None:
        if tokens <= waiting.line.takers[0].quota.largest or not self.refuse_too_long(waiting):
            self._backlog.add(waiting, tokens, self._loop.time())
            self._heed_if_stuck(waiting)

    def _heed_if_stuck(self, waiting: Waiting) -> None:
        """End it where nobody is left who would take it: as it failed elsewhere, for want of them, or with the run."""
        if self.halted or not self._is_any_shut or waiting.gone or not waiting.is_stuck:
            return
        reason = next(taker.closed for taker in waiting.line.takers if taker.closed)
        ended = waiting.otherwise or (left_alone(reason) if waiting.line.route.second else None)
        if ended is not None:
            self._leave_queue(waiting)
            self._end(waiting, ended)
        elif not self._is_giving_up:
            self._is_giving_up = True
            self._loop.call_later(_LOOK_S, self._give_up, reason)

    def _give_up(self, reason: PipelineError | None) -> None:
        """Halt once all that waits is stuck: what others may take is answered before."""
        waiting = (*self._backlog, *self._counting)
        self._is_giving_up = bool(waiting) and not self.halted
        if self._is_giving_up and (self.in_flight or not all(each.is_stuck for each in waiting)):
            self._loop.call_later(_LOOK_S, self._give_up, reason)
        elif self._is_giving_up:
            self.halt(reason)

    async def _count(self, prompt: Prompt, target: Target) -> int | Failure:
        return await self._providers[target.provider].count_tokens(prompt, target)

    def _counted(self, waiting: Waiting) -> None:
        if not waiting.gone:
            self._line_up(waiting, waiting.line.size(waiting))
        self._wake()

    def _wake(self) -> None:
        idle = not self.ready
        for loop in self._by_quota.values():
            loop.wake(idle)

    def _leave_queue(self, waiting: Waiting) -> None:
        if waiting.queued:
            waiting.queued = False
            self._count_ready(waiting, -1)

    def _count_ready(self, waiting: Waiting, sign: int) -> None:
        self.ready += sign
        if waiting.line.is_ranked:
            waiting.line.count(waiting, sign)

    def _withdraw(self, waiting: Waiting) -> None:
        if waiting.queued:
            self._leave_queue(waiting)
            self._wake()

    def _withhold(self, waiting: Waiting) -> None:
        self._leave_queue(waiting)
        waiting.withhold(self.reason)

    def _end(self, waiting: Waiting, reply: Reply) -> None:
        self.failed += 1
        self._deliver(
            waiting,
            replace(reply, attempts=waiting.tries.failed, rate_limited=waiting.tries.refused, finished_at=self._wall()),
        )

    def _deliver(self, waiting: Waiting, reply: Reply) -> None:
        waiting.deliver(reply)
        if self._deadline:
            self._deadline.done += 1
