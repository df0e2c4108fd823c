"""What the planner of lanes says to a run, and says anew as batches come and limits are learned."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import inf
from typing import Protocol

import anyio

from pipeline.events import LanesPlanned, Notify
from pipeline.plan import Plan
from pipeline.plan.bills import left_of, shares_of
from pipeline.plan.laned import LanePlan
from pipeline.plan.lanes import ASKED, Given, Lanes, Out, plan
from pipeline.plan.latency import Latency
from pipeline.plan.timing import timeline
from pipeline.records import Limits
from pipeline.store.batch_states import BatchState


@dataclass(slots=True)
class Course:
    """The plan as it is now; times by the loop's clock."""

    shares: Sequence[Mapping[str, float]] = ()
    """Of what is left, that goes to the batches of a target, by its name and the number of the job's rule."""
    parts: Sequence[Mapping[str, float]] = ()
    """Of all prompts, those that each target was to answer, likewise."""
    last_call: float = inf  # of a batch that is not handed in yet
    last_calls: Mapping[int, float] = field(default_factory=dict)  # of those that are, by number
    round_s: float = inf  # in which a batch is back, nine times out of ten

    def call_of(self, number: int) -> float:
        """When what a batch has not answered is asked live; 0: one that is not cut yet."""
        return self.last_calls.get(number, self.last_call)

    def parts_of(self, rule: int, names: Sequence[str]) -> Sequence[float]:
        """How the batches of these targets divide the prompts of a rule: those beyond the plan as all were divided."""
        shares = [self.shares[rule].get(name, 0.0) for name in names]
        return shares if any(shares) or not self.parts else [self.parts[rule].get(name, 0.0) for name in names]

    def has_room(self, now: float) -> bool:
        """Whether two rounds more are over before the last call."""
        return self.last_call == inf or now + 2 * self.round_s <= self.last_call


class Line(Protocol):
    """The live lanes, as far as the planner looks at them."""

    @property
    def flex(self) -> tuple[int, int]:
        """Requests that were served in flex, and those that it turned away."""
        ...

    def call_last(self, at: float, own: Mapping[str, float] = {}) -> None:
        """From then on nothing new is asked in flex; `own` are the times of targets, by name, that have another."""
        ...


@dataclass(slots=True)
class Progress:
    """What is left of a run, in prompts."""

    left: float  # neither answered nor in a batch
    fallen: float  # share of those that go to no batch any more
    made: Mapping[str, float]  # by target: those that it answered, or that wait in its batches
    rooms: Mapping[str, float]  # by target, that may wait in its batches at once, as is known by now
    limits: Limits | None  # per minute, as they are known by now; None: as they were planned


@dataclass(frozen=True, slots=True)
class _Made:
    """The plan of one target as it is now."""

    target: str
    given: Given
    lanes: Lanes

    @property
    def in_batch(self) -> float:
        return self.lanes.batch * self.given.left.prompts


class Steering:
    """Begins with a plan of lanes for each target, and makes them anew: every few minutes, and after each batch.

    All hold the deadline, each for what is left of its target's part: a batch that is not handed in yet is called in
    when the first of them says so.
    """

    def __init__(
        self,
        first: Sequence[LanePlan],
        made: Plan,
        progress: Callable[[], Progress],
        batches: Callable[[], list[BatchState]],
        latency: Callable[[str], Latency],
        heard: Notify,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`first` are those that the run's plan `made`: none where nothing more goes to another lane; `latency` is that
        of a target's batches, by its name.
        """
        self._first, self._plan, self._progress = first, made, progress
        self._batches, self._latency, self._heard, self._wall = batches, latency, heard, wall
        names = dict.fromkeys(name for rule in made.divided for name in rule)
        self._parts = {name: sum(rule.get(name, 0.0) for rule in made.divided) for name in names}
        self._over = anyio.Event()
        self.course = Course(parts=made.divided)
        self.flex_first = 0  # requests that are asked in flex before a batch is cut
        if first:
            self._now = [_Made(each.target, each.given, each.lanes) for each in first]
            self._heed(self._parts)
            self.flex_first = max(each.lanes.flex_first for each in first)

    async def keep(self, line: Line, steered: Callable[[], None], scouted: anyio.Event | None) -> None:
        """Plan anew until cancelled; `steered` hears each time.

        Until those rows have `scouted` that go ahead of batches, nothing is asked in flex, where they might wait long.
        """
        if not self._first:
            return
        is_ahead = scouted is not None and not scouted.is_set()
        if is_ahead and any(each.given.mode == "batch" for each in self._first):
            line.call_last(anyio.current_time())
        elif is_ahead:
            self._call_flex(line)
        if scouted is not None:
            await scouted.wait()
        # The first shares are of whole parts: what went ahead, or waits in batches, is no longer left of them.
        if is_ahead or any(state.is_waited_for for state in self._batches()):
            self._anew(line)
        while True:
            self._call_flex(line)
            steered()
            self._heard(self._planned())
            self._over = anyio.Event()
            with anyio.move_on_after(min(each.lanes.again_s for each in self._now)):
                await self._over.wait()
            self._anew(line)

    def _anew(self, line: Line) -> None:
        progress = self._progress()
        left = left_of(self._parts, progress.made, progress.left)
        self._now = [_Made(first.target, given, plan(given)) for first, given in self._givens(line, progress, left)]
        self._heed(left)

    def _planned(self) -> LanesPlanned:
        """What all of them say together."""
        weights = [each.given.left.prompts for each in self._now]
        whole = sum(weights) or 1.0

        def mean(of: Callable[[Lanes], float]) -> float:
            some = sum(weight * of(each.lanes) for weight, each in zip(weights, self._now, strict=True))
            return round(some / whole, 4)

        return LanesPlanned(
            mean(lambda made: made.batch), mean(lambda made: made.flex), mean(lambda made: made.cost.expected)
        )

    def batch_over(self) -> None:
        """One more batch is out no more: what is left is divided anew."""
        self._over.set()

    def _heed(self, left: Mapping[str, float]) -> None:
        """Follow what was planned, for so many prompts of each target that are `left`."""
        now, course = anyio.current_time(), self.course
        batch = {each.target: each.lanes.batch for each in self._now}
        course.shares = [
            {name: share * batch.get(name, 0.0) for name, share in shares_of(rule, self._parts, left).items()}
            for rule in self._plan.divided
        ]
        calls = [each.lanes.batch_call_s for each in self._now if each.lanes.batch_call_s is not None]
        course.last_call = now + min(calls, default=inf)
        course.last_calls = {call.number: now + call.at_s for each in self._now for call in each.lanes.calls}
        course.round_s = max(self._now, key=lambda each: each.in_batch).given.latency.within(0.9)

    def _call_flex(self, line: Line) -> None:
        own: dict[str, float] = {}
        for each in self._now:
            call_s = each.lanes.flex_call_s
            at = inf if call_s is None else anyio.current_time() + call_s
            own[each.target] = min(at, own.get(each.target, inf))
        line.call_last(min(own.values()), own)

    def _givens(self, line: Line, progress: Progress, left: Mapping[str, float]) -> list[tuple[LanePlan, Given]]:
        """What is known now, of what is left to each target."""
        wall = self._wall()
        slower = self._slower(progress.limits, wall)
        served, shed = line.flex
        asked = min(ASKED, served + shed)
        waited_for = [state for state in self._batches() if state.is_waited_for]
        first_of = {each.target: each for each in reversed(self._first)}
        found = []
        for first in self._first:
            by, part = first.by, self._parts[first.target]
            all_of_it = replace(first.whole, live_s=first.whole.live_s * slower)
            # Each batch once: those of a target that no plan is of any more are counted with the first.
            own = [state for state in waited_for if first_of.get(state.target, self._first[0]) is first]
            room = progress.rooms.get(first.target)
            given = replace(
                first.given,
                left=all_of_it.part(left[first.target] / part),
                within_s=None if by is None else max(0.0, by.timestamp() - wall),
                latency=self._latency(first.target),
                asked=asked,
                served=round(asked * served / (served + shed)) if asked else 0,
                fallen=1.0 if any(state.cancelling for state in own) else progress.fallen,
                room_s=first.given.room_s if room is None else all_of_it.live_s * room / part,
                out=tuple(
                    Out(state.number, all_of_it.part(state.lines / part), state.age_s(wall, by is None))
                    for state in own
                ),
            )
            found.append((first, given))
        return found

    def _slower(self, limits: Limits | None, wall: float) -> float:
        """How many times as long the live lanes take as was planned, at the limits that are known by now."""
        made = self._plan
        if limits is None or not made.timeline.seconds:
            return 1.0
        pace = replace(made.pace, limits=replace(made.pace.limits, rpm=limits.rpm, tpm=limits.tpm))
        return timeline(made.load, pace, datetime.fromtimestamp(wall, UTC)).seconds / made.timeline.seconds
