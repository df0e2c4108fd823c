"""Which lane what is left goes to, so that it is done by the deadline at the least cost: standard, flex or batch.

One rule holds the deadline: whatever has no answer yet must fit into the standard lane in the time that is left. Money
decides the rest. It is made anew every few minutes with what was learned and what is left; a prompt in flight is moved
by a last call only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import floor, inf, log2

from pipeline.plan.latency import TIMES, Latency, Turns
from pipeline.records import FLEX_S, FLEX_TRIES, Lane, LaneChoice

AUTO_S = 24 * 3600.0
"""The deadline of `auto` where none is set, from the start of the run."""
PATIENCE_S = 26 * 3600.0
"""How long a batch is waited for without a deadline: two hours more than a service's target."""
PLANNED_S = 300.0
"""A plan is made anew so often, and towards the end more often: twenty times in the time that is left."""
CANCEL_S = 120.0
"""From the last call of a batch until what it has is taken, at most."""
LOST: Mapping[str, float] = {"openai": 0.0}
"""Share of a cancelled batch that is paid and not handed out, by provider, else 1: OpenAI hands out what was finished
and bills that; of Gemini nobody says what becomes of it."""
SERVED = 0.5
"""Share of flex requests that is served, before any is known: no vendor says."""
ASKED = 200
"""Newest flex requests that tell the share."""
SCOUTS, SCOUTED_ROWS = 5, 100
"""Rows that are asked live before a first batch of so many rows or more: a job that is wrong costs cents, at once."""

_MARGIN, _MOST_MARGIN_S, _MARGIN_OF_LEFT, _LEAST_MARGIN_S = 0.05, 600.0, 0.1, 60.0
_PLANNED, _LEAST_PLANNED_S = 1 / 20, 15.0
_STEPS = 100  # of the share of a lane
_ALIKE = 1e-3  # what a plan all in batch must save to be taken before one without
_ASKED_FIRST = 100
_SERVED_WEIGHS = 20  # requests that `SERVED` counts as
_LEAST_SERVED = 0.05  # below it flex is no lane to fall back to


@dataclass(frozen=True, slots=True)
class Some:
    """Prompts: how many, what they cost in the standard lane, how long the live quota.

    `live_s` is the time that the run's own limits need for them when nothing else is sent.
    """

    prompts: float
    live_s: float
    usd: float

    def part(self, share: float) -> "Some":
        """Such a share of them."""
        return Some(self.prompts * share, self.live_s * share, self.usd * share)


@dataclass(frozen=True, slots=True)
class Out:
    """A batch that is with the service for `age_s`."""

    number: int
    some: Some
    age_s: float


@dataclass(frozen=True, slots=True)
class Given:
    """What a plan is made from, at this moment."""

    mode: LaneChoice
    left: Some  # neither answered nor in a batch
    within_s: float | None  # until the deadline; None: there is none
    factors: Mapping[Lane, float]  # of the standard price, by the lanes that may be used beside standard
    latency: Latency
    asked: int = 0  # of the newest flex requests, at most `ASKED`
    served: int = 0  # of those
    lost: float = 1.0  # share of a cancelled batch that is paid and not handed out
    fallen: float = 0.0
    """Share of `left` that goes to no batch: it fell back, or is in flight; all of it while one is called in."""
    room_s: float = inf  # of all batches at once, by what the service takes, in seconds of live time
    grows: bool = False  # twice as much of them once some were answered
    out: tuple[Out, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """In units of the standard price: all in time, expected, all fallen back."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Call:
    """When a batch is called in at the latest: seconds from now."""

    number: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Lanes:
    """The plan: shares are of what is left. Which rows they are does not matter.

    To send those to batches first that cost most for their live time would save at most 2.3 % (where all limits are on
    requests and all costs in texts of lognormal length), and half a percent where half of the cost is in the answers.
    """

    batch: float
    flex: float  # expected to be served there
    batch_call_s: float | None  # the first last call of a batch, seconds from now; None: no batch, or it waits
    flex_call_s: float | None  # of flex, when nothing is answered until then; 0: it is not asked, None: nothing presses
    calls: tuple[Call, ...]  # of the batches that are out, the next one first
    cost: Cost  # of what is left, without what is out
    in_time: float  # share that is done by the deadline whatever the batches do
    chance: float  # that all of it is
    again_s: float  # when a plan is to be made anew at the latest, seconds from now
    flex_first: int = 0  # requests that flex is asked before a batch is cut: whether it is served decides how much

    @property
    def standard(self) -> float:
        """The share that is expected to go to the standard lane."""
        return max(0.0, 1.0 - self.batch - self.flex)


def margin_s(within_s: float, live_s: float) -> float:
    """What is kept free before a deadline in so many seconds, for a pace that is not kept and for the last answers.

    `live_s` is what all that is not answered takes in the live lanes.
    """
    margin = _MARGIN * min(live_s, within_s) + min(_MOST_MARGIN_S, _MARGIN_OF_LEFT * within_s)
    return min(within_s, max(margin, _LEAST_MARGIN_S))


def plan(given: Given) -> Lanes:
    """The cheapest plan that keeps the deadline; where none does, what is done in time and what comes later."""
    rule = _Rule(given)
    if given.within_s is None and given.mode != "auto":
        return rule.waiting()
    return rule.late() if rule.live_s + rule.out_s > rule.left_s else rule.cheapest()


@dataclass(frozen=True, slots=True)
class _Split:
    """One way to divide what is left."""

    batch: float
    flex: float
    reserve: float  # of its live time a batch is given so many times, when it is called in
    usd: float  # expected, of what is left and what is out
    cost: float  # of what is left, in units of the standard price


class _Rule:
    def __init__(self, given: Given) -> None:
        self.given = given = _priced(given)
        self.left_s = AUTO_S if given.within_s is None else max(0.0, given.within_s)
        self.planned_s = min(PLANNED_S, max(_LEAST_PLANNED_S, self.left_s * _PLANNED))
        self.live_s, self.out_s = given.left.live_s, sum(one.some.live_s for one in given.out)
        self.within_s = self.left_s - margin_s(self.left_s, self.live_s + self.out_s)
        self.served = (SERVED * _SERVED_WEIGHS + given.served) / (_SERVED_WEIGHS + given.asked)
        self.flex = given.factors.get("flex") if given.mode != "standard" else None
        self.batch = given.factors.get("batch") if given.mode in ("batch", "auto") else None
        if self._is_auto:  # what saves nothing is no lane
            self.flex = self.flex if self.flex is not None and self.flex < 1.0 else None
            self.batch = self.batch if self.batch is not None and self.batch < 1.0 else None
        self.most = 0.0 if self.batch is None else max(0.0, 1.0 - given.fallen)

    @property
    def _is_auto(self) -> bool:
        return self.given.mode == "auto"

    # ---- the deadline holds

    def cheapest(self) -> Lanes:
        splits = [split for reserve in self._reserves() for split in self._ways(reserve)]
        # Of those that cost the same, the one with the least in batch.
        found = min(splits, key=lambda one: (one.usd * (1.0 + _ALIKE * one.batch), one.batch))
        begins_s = self._begins_s(found.batch, found.reserve)
        return Lanes(
            batch=found.batch,
            flex=found.flex,
            batch_call_s=max(0.0, begins_s - CANCEL_S) if found.batch or self.given.out else None,
            flex_call_s=self._flex_call_s(),
            calls=self._calls(found.reserve),
            cost=self._range(found.batch, found.flex, found.cost),
            in_time=1.0,
            chance=1.0,
            again_s=self.planned_s,
            flex_first=max(0, _ASKED_FIRST - self.given.asked) if self._is_auto and found.flex and found.batch else 0,
        )

    def _flex_call_s(self) -> float:
        """When all that is not answered would only just fit into the standard lane."""
        return 0.0 if self.flex is None else max(0.0, self.within_s - max(FLEX_S, self.live_s + self.out_s))

    def _reserves(self) -> tuple[float, ...]:
        """How much time a batch that is called in is left: for standard, or for flex with what is shed there."""
        share = self.served
        return (1.0, 1.0 / share) if self.flex is not None and _LEAST_SERVED < share < 1.0 else (1.0,)

    def _ways(self, reserve: float) -> list[_Split]:
        """Those to choose from: where the job asks for batch, the one with the most in it."""
        splits = list(self._splits(reserve))
        return splits[-1:] if self.given.mode == "batch" else splits

    def _splits(self, reserve: float) -> Iterator[_Split]:
        """The ways that keep the deadline; one of them is to send all that is left to the live lanes."""
        outs_usd, usd = self._outs_usd(reserve), self.given.left.usd
        steps, summed = self._per_step(reserve), 0.0
        for step in range(_STEPS + 1):
            batch = min(self.most, step / _STEPS)
            begins_s = self._begins_s(batch, reserve)
            least_s = max(CANCEL_S + self.planned_s, self.live_s * (1.0 - batch))
            if (step or reserve > 1.0) and (begins_s < least_s or step >= self.most * _STEPS + 1):
                return
            cost = next(steps) if step else 0.0
            if cost > 1.0 and self.given.mode == "batch":  # nobody asks for batch to pay more than in standard
                return
            summed += cost
            flex = self._flexed(batch, begins_s)
            cost = (1.0 - batch) * self._live_cost(batch, flex) + (batch * summed / step if step else 0.0)
            yield _Split(batch, flex, reserve, cost * usd + outs_usd, cost)

    def _begins_s(self, batch: float, reserve: float) -> float:
        """When the live lanes begin with what the first batch that is called in did not bring."""
        return self._before(self.out_s + self.live_s * batch, reserve)

    def _before(self, ahead_s: float, reserve: float) -> float:
        """The latest moment that leaves time for so much live work, in standard or, with a larger reserve, in flex."""
        return self.within_s - reserve * ahead_s - (FLEX_S if reserve > 1.0 and ahead_s else 0.0)

    def _flexed(self, batch: float, until_s: float) -> float:
        """The share that flex serves in the time that the rest leaves it: what is shed takes quota too."""
        if self.flex is None or not self.live_s:
            return 0.0
        share, live, spare_s = self.served, 1.0 - batch, until_s - self.live_s * (1.0 - batch)
        lasting_s = spare_s * share / (1.0 - share) if share < 1.0 else inf
        until_s = min(until_s, self.within_s - FLEX_S)
        return max(0.0, min(live, share * until_s / self.live_s, lasting_s / self.live_s))

    def _live_cost(self, batch: float, flex: float) -> float:
        part = flex / (1.0 - batch) if batch < 1.0 else 0.0
        return 1.0 - part + part * (1.0 if self.flex is None else self.flex)

    def _per_step(self, reserve: float) -> Iterator[float]:
        """What each step of the share in batch costs.

        They are called in one after the other, each when what is still out just fits; so every step has a time of its
        own. What the service has no room for waits for earlier batches, is called in first, and then nothing is lost.
        """
        step_s, out_s, room_s = self.live_s / _STEPS, self.out_s, self.given.room_s
        turns = Turns(self.given.latency, self.within_s)
        for step in range(_STEPS):
            ahead_s = out_s + step_s * (step + 0.5)
            call_s = self._before(ahead_s, reserve) - CANCEL_S - self.planned_s
            before = ahead_s / room_s if room_s > 0.0 else inf  # in units of what the service takes
            turn = 1 + floor(min(1.0 + TIMES, log2(1.0 + before) if self.given.grows else before))
            yield self._batch_cost(turns.sent(turn, call_s), turns.done(turn, call_s), reserve)

    def _batch_cost(self, sent: float, done: float, reserve: float) -> float:
        """Of a prompt that is with the service, and done there, with such chances by its last call."""
        factor = 1.0 if self.batch is None else self.batch
        fallback = self.flex if reserve > 1.0 and self.flex is not None else 1.0
        return factor * done + fallback * (1.0 - done) + factor * self.given.lost * (sent - done)

    def _outs_usd(self, reserve: float) -> float:
        call_s = {call.number: call.at_s for call in self._calls(reserve)}
        latency = self.given.latency
        return sum(
            one.some.usd * self._batch_cost(1.0, latency.done_by(call_s[one.number], one.age_s), reserve)
            for one in self.given.out
        )

    def _calls(self, reserve: float) -> tuple[Call, ...]:
        """When each batch that is out is called in: the one least likely to come first, and the others after it.

        The live lanes work at one while the others may still come.
        """
        ahead_s, calls = 0.0, []
        for one in reversed(self._unlikely_first()):
            ahead_s += one.some.live_s
            calls.append(Call(one.number, max(0.0, self._before(ahead_s, reserve) - CANCEL_S)))
        return tuple(reversed(calls))

    def _unlikely_first(self) -> list[Out]:
        latency = self.given.latency
        return sorted(self.given.out, key=lambda one: (latency.done_by(self.left_s, one.age_s), -one.number))

    def _range(self, batch: float, flex: float, expected: float) -> Cost:
        """All in time … all fallen back."""
        live, factor = 1.0 - batch, 1.0 if self.batch is None else self.batch
        low = batch * factor + live * (self.flex if flex and self.flex is not None else 1.0)
        return Cost(low, expected, batch * (1.0 + factor * self.given.lost) + live)

    # ---- no deadline, or none that holds

    def waiting(self) -> Lanes:
        """Without a deadline: all to the lane that is asked for, until patience ends; flex is asked so many times."""
        batch = self.most
        flex = 0.0 if self.flex is None else (1.0 - batch) * self._unpressed()
        done = self.given.latency.done_by(PATIENCE_S)
        cost = batch * self._batch_cost(1.0, done, 1.0) + (1.0 - batch) * self._live_cost(batch, flex)
        calls = (Call(one.number, max(0.0, PATIENCE_S - one.age_s)) for one in self.given.out)
        return Lanes(
            batch=batch,
            flex=flex,
            batch_call_s=PATIENCE_S if batch else None,
            flex_call_s=0.0 if self.flex is None else None,
            calls=tuple(sorted(calls, key=lambda call: call.at_s)),
            cost=self._range(batch, flex, cost),
            in_time=1.0,
            chance=1.0,
            again_s=PLANNED_S,
        )

    def _unpressed(self) -> float:
        """The share that flex serves where nothing presses: each prompt is asked there so many times."""
        return 1.0 - (1.0 - self.served) ** FLEX_TRIES

    def late(self) -> Lanes:
        """What does not fit comes later, in batch if it may; the rest is planned as if it were all.

        Batches that are out and do not fit stay there, those that are least likely to come; then what is left does not.
        """
        out, out_s = self._unlikely_first(), self.out_s
        while out and self.live_s + out_s > self.left_s:
            out_s -= out.pop(0).some.live_s
        later_s = min(self.live_s, max(0.0, self.live_s + out_s - self.within_s))
        later = later_s / self.live_s if self.live_s else 0.0
        in_batch = min(later, self.most)
        rest = replace(self.given, left=self.given.left.part(1.0 - later), out=tuple(out))
        rest = replace(rest, fallen=1.0 - (self.most - in_batch) / (1.0 - later) if later < 1.0 else 1.0)
        made = _Rule(rest).cheapest()
        batch = in_batch + (1.0 - later) * made.batch
        in_flex = (later - in_batch) * self._unpressed() if self.flex is not None else 0.0
        flex = (1.0 - later) * made.flex + in_flex
        rest_share = 1.0 - later
        elsewhere = later - in_batch - in_flex * (1.0 - (1.0 if self.flex is None else self.flex))
        apart = in_batch * (1.0 if self.batch is None else self.batch) + elsewhere
        missing_s = later_s + self.out_s - out_s
        return replace(
            made,
            batch=batch,
            flex=flex,
            # What is late anyway is asked where it costs less.
            flex_call_s=made.flex_call_s if self.left_s or self.flex is None else None,
            cost=Cost(*(apart + rest_share * each for each in (made.cost.low, made.cost.expected, made.cost.high))),
            in_time=1.0 - missing_s / (self.live_s + self.out_s),
            chance=0.0 if later > in_batch else self.given.latency.done_by(self.left_s),
        )


def _priced(given: Given) -> Given:
    """What costs nothing, or nobody knows what, is worth the time that it takes."""
    if given.left.usd or any(one.some.usd for one in given.out):
        return given
    out = tuple(replace(one, some=replace(one.some, usd=one.some.live_s)) for one in given.out)
    return replace(given, left=replace(given.left, usd=given.left.live_s), out=out)
