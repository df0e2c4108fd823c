"""What the planner of lanes says to a run, and says anew as batches come and limits are learned."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import inf
from typing import Protocol

import anyio

from pipeline.events import LanesPlanned, Notify
from pipeline.plan import Plan
from pipeline.plan.laned import LanePlan
from pipeline.plan.lanes import ASKED, Given, Lanes, Out, plan
from pipeline.plan.latency import Latency
from pipeline.plan.timing import timeline
from pipeline.records import Limits
from pipeline.store.batch_states import BatchState


@dataclass(slots=True)
class Course:
    """The plan as it is now; times by the loop's clock."""

    share: float = 0.0  # of what is left, that goes to batches
    last_call: float = inf  # of a batch that is not handed in yet
    last_calls: Mapping[int, float] = field(default_factory=dict)  # of those that are, by number
    round_s: float = inf  # in which a batch is back, nine times out of ten

    def call_of(self, number: int) -> float:
        """When what a batch has not answered is asked live; 0: one that is not cut yet."""
        return self.last_calls.get(number, self.last_call)

    def has_room(self, now: float) -> bool:
        """Whether two rounds more are over before the last call."""
        return self.last_call == inf or now + 2 * self.round_s <= self.last_call


class Line(Protocol):
    """The live lanes, as far as the planner looks at them."""

    @property
    def flex(self) -> tuple[int, int]:
        """Requests that were served in flex, and those that it turned away."""
        ...

    def call_last(self, at: float) -> None:
        """From then on nothing new is asked in flex."""
        ...


@dataclass(slots=True)
class Progress:
    """What is left of a run, in prompts."""

    left: float  # neither answered nor in a batch
    fallen: float  # share of those that go to no batch any more
    room: float | None  # that may wait in batches at once, as is known by now
    limits: Limits | None  # per minute, as they are known by now; None: as they were planned


class Steering:
    """Begins with a plan of lanes, and makes it anew: every few minutes, and after each batch."""

    def __init__(
        self,
        first: LanePlan | None,
        made: Plan,
        progress: Callable[[], Progress],
        batches: Callable[[], list[BatchState]],
        latency: Callable[[], Latency],
        heard: Notify,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`first` is what the run's plan says, as `made` has it: None where nothing more goes to another lane."""
        self._first, self._plan, self._progress = first, made, progress
        self._batches, self._latency, self._heard, self._wall = batches, latency, heard, wall
        self._over = anyio.Event()
        self.course = Course()
        self.flex_first = 0  # requests that are asked in flex before a batch is cut
        if first is not None:
            self._heed(first.given, first.lanes)
            self.flex_first = first.lanes.flex_first

    async def keep(self, line: Line, steered: Callable[[], None], scouted: anyio.Event | None) -> None:
        """Plan anew until cancelled; `steered` hears each time.

        Until those rows have `scouted` that go ahead of batches, nothing is asked in flex, where they might wait long.
        """
        if self._first is None:
            return
        found = self._first.lanes
        if scouted is not None and self._first.given.mode == "batch":
            line.call_last(anyio.current_time())
            await scouted.wait()
        if any(state.is_waited_for for state in self._batches()):  # the first plan has their prompts among what is left
            found = self._anew(self._first, line)
        while True:
            line.call_last(inf if found.flex_call_s is None else anyio.current_time() + found.flex_call_s)
            steered()
            self._heard(LanesPlanned(round(found.batch, 4), round(found.flex, 4), round(found.cost.expected, 4)))
            self._over = anyio.Event()
            with anyio.move_on_after(found.again_s):
                await self._over.wait()
            found = self._anew(self._first, line)

    def _anew(self, first: LanePlan, line: Line) -> Lanes:
        given = self._given(first, line)
        found = plan(given)
        self._heed(given, found)
        return found

    def batch_over(self) -> None:
        """One more batch is out no more: what is left is divided anew."""
        self._over.set()

    def _heed(self, given: Given, found: Lanes) -> None:
        now, course = anyio.current_time(), self.course
        course.share = found.batch
        course.last_call = inf if found.batch_call_s is None else now + found.batch_call_s
        course.last_calls = {call.number: now + call.at_s for call in found.calls}
        course.round_s = given.latency.within(0.9)

    def _given(self, first: LanePlan, line: Line) -> Given:
        """What is known now, of what is left."""
        wall, progress, whole = self._wall(), self._progress(), self._plan.load.prompts
        served, shed = line.flex
        asked = min(ASKED, served + shed)
        all_of_it = replace(first.given.left, live_s=first.given.left.live_s * self._slower(progress.limits, wall))
        by, waited_for = first.by, [state for state in self._batches() if state.is_waited_for]
        return replace(
            first.given,
            left=all_of_it.part(progress.left / whole),
            within_s=None if by is None else max(0.0, by.timestamp() - wall),
            latency=self._latency(),
            asked=asked,
            served=round(asked * served / (served + shed)) if asked else 0,
            fallen=1.0 if any(state.cancelling for state in waited_for) else progress.fallen,
            room_s=first.given.room_s if progress.room is None else all_of_it.live_s * progress.room / whole,
            out=tuple(
                Out(state.number, all_of_it.part(state.lines / whole), _age_s(state, wall, by is None))
                for state in waited_for
            ),
        )

    def _slower(self, limits: Limits | None, wall: float) -> float:
        """How many times as long the live lanes take as was planned, at the limits that are known by now."""
        made = self._plan
        if limits is None or not made.timeline.seconds:
            return 1.0
        pace = replace(made.pace, limits=replace(made.pace.limits, rpm=limits.rpm, tpm=limits.tpm))
        return timeline(made.load, pace, datetime.fromtimestamp(wall, UTC)).seconds / made.timeline.seconds


def _age_s(state: BatchState, wall: float, is_patient: bool) -> float:
    """How long a batch is out; without a deadline patience is with it from when it was cut, handed in or not."""
    since = state.asked_at or (state.cut_at if is_patient else wall)
    return max(0.0, wall - since)
