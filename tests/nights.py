"""Nights in virtual time: a job by a deadline, batches that come or do not, flex that is shed; nothing is sent.

The live lanes are a quota of so many seconds of work; prompts are an amount, not counted singly. The service makes
batches take as long as users told, and on some nights none comes at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log
from random import Random

from pipeline.plan.lanes import ASKED, CANCEL_S, Given, Lanes, Out, Some, margin_s, plan
from pipeline.plan.latency import Seen, learned
from pipeline.records import Lane, LaneChoice

HOUR_S = 3600.0
HALF: Mapping[Lane, float] = {"flex": 0.5, "batch": 0.5}
PROMPTS = 20_000
SMALLEST = 0.02
"""Of a batch: less is not sent, unless it is all."""


@dataclass(frozen=True)
class Night:
    by_s: float
    live_s: float  # that all prompts take in the live lanes
    served: float  # share of flex requests
    stuck: bool  # no batch comes
    lost: float  # share of a cancelled batch that is paid for nothing
    room: float  # share of all prompts that the service takes in batches at once
    seed: int

    @property
    def possible(self) -> bool:
        return self.live_s <= self.by_s - margin_s(self.by_s, self.live_s)


@dataclass
class Ended:
    """How a night ended; money in units of the standard price of all prompts."""

    first: Lanes  # the first plan
    at_s: float = 0.0
    cost: float = 0.0
    in_time: float = 0.0  # share of the prompts
    fell_back: float = 0.0  # share that a batch was called in with
    batches: int = 0

    @property
    def is_in_time(self) -> bool:
        return self.in_time > 1.0 - 1e-6


def nights(number: int, seed: int = 14) -> Iterator[Night]:
    """Limits from wide to as tight as can be, flex from all served to none, rooms from all to a twentieth."""
    rng = Random(seed)
    for n in range(number):
        by_s = HOUR_S * rng.choice((1, 2, 4, 8, 10, 14, 24))
        most = (by_s - margin_s(by_s, 0.0)) / 1.05  # then the margin is just kept
        yield Night(
            by_s=by_s,
            live_s=most * rng.choice((rng.uniform(0.02, 0.3), rng.uniform(0.3, 0.9), rng.uniform(0.9, 1.0))),
            served=rng.choice((0.0, rng.random(), rng.random(), 1.0)),
            stuck=rng.random() < 0.05,
            lost=rng.choice((0.0, 1.0)),
            room=rng.choice((1.0, 0.5, 0.2, 0.05)),
            seed=n,
        )


def takes_s(rng: Random) -> float:
    """How long one batch takes, as the prior of the planner has it."""
    kind = rng.random()
    if kind < 0.75:
        return HOUR_S * exp(rng.gauss(0.0, log(3)))
    return 8 * HOUR_S * exp(rng.gauss(0.0, log(1.6))) if kind < 0.95 else inf


@dataclass
class _Batch:
    number: int
    share: float
    begun_s: float
    done_s: float


@dataclass
class Run:
    """One night. With `knowing`, flex is known, and so large a share of all may go to batch, no more."""

    night: Night
    mode: LaneChoice = "auto"
    knowing: float | None = None
    pace: float = 1.0  # of the live lanes, against what is planned with
    now_s: float = 0.0
    left: float = 1.0  # share of all prompts that is with nobody, and never was in a batch
    fallen: float = 0.0  # the same, of what fell back
    calling: list[tuple[float, float]] = field(default_factory=list)  # cancelled batches: when they are in, how much
    out: list[_Batch] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    asked: int = 0
    answered: int = 0

    def __post_init__(self) -> None:
        self._rng = Random(self.night.seed)
        self.first = self._made()
        self.ended = Ended(self.first)

    def run(self) -> Ended:
        """Until all is answered; what is out when the deadline comes is waited for."""
        night, ended = self.night, self.ended
        planned_s, plan_, live = -inf, self.first, 0.0
        while self.left + self.fallen > 1e-9 or self.out or self.calling:
            came = self._take()
            due = [call.number for call in plan_.calls if planned_s + call.at_s <= self.now_s]
            self._call_in(due)
            if came or due or self.now_s - planned_s >= plan_.again_s:
                plan_, planned_s = self._made(), self.now_s
                live = self._send(plan_)
            step_s = min(night.by_s / 1_000, max(2.0, (night.by_s - self.now_s) / 50))
            live = self._work(plan_, planned_s, live, step_s)
            self.now_s += step_s
            if self.now_s > 3 * night.by_s + 60 * HOUR_S:
                raise AssertionError(f"the night does not end: {night}")
        ended.at_s = self.now_s
        return ended

    def _made(self) -> Lanes:
        night = self.night
        pool = self.left + self.fallen + sum(share for _, share in self.calling)
        parkable = self.left
        if self.calling:
            parkable = 0.0
        elif self.knowing is not None:
            parkable = max(0.0, self.left - (1.0 - self.knowing))
        waiting = [Seen(self.now_s - one.begun_s, "open") for one in self.out]
        given = Given(
            mode=self.mode,
            left=self._some(pool),
            within_s=night.by_s - self.now_s,
            factors=HALF,
            latency=learned([*self.seen, *waiting]),
            asked=self.asked if self.knowing is None else 10**6,
            served=self.answered if self.knowing is None else round(night.served * 10**6),
            lost=night.lost,
            fallen=1.0 - parkable / pool if pool else 1.0,
            room_s=night.room * night.live_s,
            out=tuple(Out(one.number, self._some(one.share), self.now_s - one.begun_s) for one in self.out),
        )
        return plan(given)

    def _some(self, share: float) -> Some:
        return Some(PROMPTS, self.night.live_s, 1.0).part(share)

    def _take(self) -> bool:
        """What batches have."""
        done = [one for one in self.out if one.done_s <= self.now_s]
        for one in done:
            self.out.remove(one)
            self._answer(one.share, 0.5)
            self.seen.append(Seen(one.done_s - one.begun_s, "done"))
        called = [call for call in self.calling if call[0] <= self.now_s]
        for call in called:
            self.calling.remove(call)
            self.fallen += call[1]
        return bool(done or called)

    def _call_in(self, due: Sequence[int]) -> None:
        for one in [one for one in self.out if one.number in due]:
            self.out.remove(one)
            self.calling.append((self.now_s + CANCEL_S, one.share))
            self.seen.append(Seen(self.now_s - one.begun_s, "open"))
            self.ended.cost += 0.5 * self.night.lost * one.share
            self.ended.fell_back += one.share

    def _send(self, plan_: Lanes) -> float:
        """Cut batches as far as there is room; what is left for the live lanes."""
        pool = self.left + self.fallen + sum(share for _, share in self.calling)
        wanted = min(self.left, plan_.batch * pool)
        if plan_.flex_first:
            return self.left + self.fallen
        largest = max(SMALLEST, self.night.room / 4)
        while wanted >= min(SMALLEST, self.left) > 0.0:
            some = min(wanted, largest)
            if sum(one.share for one in self.out) + some > self.night.room + 1e-9:
                break
            self._cut(some)
            wanted -= some
        return max(0.0, self.left + self.fallen - wanted)

    def _cut(self, some: float) -> None:
        number, latency_s = self.ended.batches, takes_s(self._rng)
        seen_s = latency_s + min(300.0, max(15.0, latency_s / 20))  # it is asked for now and then
        self.out.append(_Batch(number, some, self.now_s, inf if self.night.stuck else self.now_s + seen_s))
        if self.out[-1].done_s == inf:  # the service gives it up
            self.out[-1].done_s = self.now_s + 48 * HOUR_S
        self.left -= some
        self.ended.batches += 1

    def _work(self, plan_: Lanes, planned_s: float, live: float, step_s: float) -> float:
        """What the live lanes answer in one step; returns what is left to them until the next plan."""
        night = self.night
        in_flex = plan_.flex_call_s is None or self.now_s < planned_s + plan_.flex_call_s
        able = min(live, self.left + self.fallen, step_s / night.live_s * self.pace)
        if able <= 0.0:
            return live
        done = able * night.served if in_flex else able
        if in_flex:
            self.asked += round(able * PROMPTS)
            self.answered += round(able * night.served * PROMPTS)
            if self.asked > ASKED:
                self.asked, self.answered = ASKED, round(ASKED * self.answered / self.asked)
        fallen = min(self.fallen, done)
        self.fallen -= fallen
        self.left -= done - fallen
        self._answer(done, 0.5 if in_flex else 1.0)
        return live - done

    def _answer(self, share: float, factor: float) -> None:
        self.ended.cost += factor * share
        if self.now_s <= self.night.by_s:
            self.ended.in_time += share


def best_known_afterwards(night: Night, steps: int = 5) -> float:
    """What the best share in batch costs, of those that are in time, when all that happens is known."""
    modes: tuple[LaneChoice, ...] = ("auto", "batch")
    ways = [Run(night, mode, step / steps).run() for step in range(steps + 1) for mode in modes]
    return min(way.cost for way in ways if way.is_in_time)
