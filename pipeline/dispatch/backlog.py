"""The prompts that wait for quota: ready, or to be sent again later; one backlog, whoever may answer them."""

import asyncio
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Protocol

from pipeline.calibration import EXACT, Calibrations, Margin
from pipeline.dispatch.desk import FIRST_TRY, Tries
from pipeline.dispatch.lookahead import Lookahead
from pipeline.errors import PipelineError
from pipeline.prompts import Prompt
from pipeline.quota.quota import Quota
from pipeline.records import Reply
from pipeline.targets import Route

_AGAIN, _FINISHING, _OTHERS = range(3)  # of the lookahead, in the order in which they go


@dataclass(slots=True, eq=False)
class Waiting:
    """One submitted prompt until it is answered."""

    prompt: Prompt
    line: "Line"
    answer: asyncio.Future[Reply]
    since: float  # when it was submitted, then when it last left; the loop's clock
    exact_tokens: int | None = None  # as the route's first target counted them before
    tries: Tries = FIRST_TRY
    refused_alone: int = 0  # of those refused for quota, with the tokens of a whole minute for itself
    bounded: int = 0  # attempts that failed for a cause for which only some may be made
    waited_s: float = 0.0  # at the service's word, after failures
    queued: bool = True
    in_flight: bool = False
    withdrawn: bool = False  # the submitter was cancelled in flight, and waits for what it bought
    reply: Reply | None = None

    @property
    def gone(self) -> bool:
        """Answered, or nobody waits for the answer any more."""
        return self.answer.done()


@dataclass(slots=True)
class Costs:
    """What prompts cost one model in input tokens, as its answers show."""

    model: str
    calibrations: Calibrations

    def of(self, waiting: Waiting) -> tuple[int, Margin]:
        """Expected input tokens, and how far off they may be."""
        if waiting.exact_tokens is not None and waiting.line.route.first.model == self.model:
            return waiting.exact_tokens, EXACT
        margin = self.calibrations.margin(waiting.prompt.step)
        return margin.tokens(waiting.prompt.input_tokens_est), margin


class Taker(Protocol):
    """Who takes prompts from the lines that it is on, for one quota."""

    quota: Quota
    costs: Costs
    lines: list["Line"]
    closed: PipelineError | None


class Line(Lookahead[Waiting]):
    """The ready prompts of one route: whoever is on it takes from here."""

    def __init__(self, route: Route, takers: Sequence[Taker], rng: Random | None) -> None:
        """`takers` in the order of the targets."""
        super().__init__(rng)
        self.route, self.takers = route, takers

    def size(self, waiting: Waiting) -> int:
        """Tokens that its first target takes a prompt for."""
        return self.takers[0].costs.of(waiting)[0]


class Backlog:
    """Sent again before reduces, reduces before all others; among these the largest that fits, as `Lookahead` says.

    The other way round while the server is down: who failed before is not used up by asking whether it is back. Each
    route has a line of its own; a quota takes first from the line on which fewest may stand in for it.
    """

    def __init__(self, rng: Random | None, takers: Mapping[str, Taker]) -> None:
        """Without `rng` prompts keep their order; `takers` by quota."""
        self._rng = rng
        self._takers = takers
        self._lines: dict[Route, Line] = {}  # a route that is made anew for each prompt has one line all the same
        self._later: list[tuple[float, int, Waiting]] = []  # heap: when, tie-breaker, who
        self._ties = itertools.count()

    def __iter__(self) -> Iterator[Waiting]:
        for line in self._lines.values():
            yield from line
        yield from (waiting for _, _, waiting in self._later)

    @property
    def due_at(self) -> float:
        """When the next one may be sent again, `inf` for none."""
        return self._later[0][0] if self._later else inf

    def add(self, waiting: Waiting, tokens: int, now: float) -> None:
        """A prompt that is ready, with what it will cost."""
        queue = _FINISHING if waiting.prompt.step == "reduce" else _OTHERS
        waiting.line.add(waiting, tokens, queue, now)

    def add_again(self, waiting: Waiting, now: float, when: float) -> None:
        """One that was sent before, to go again at the front; from `when` on."""
        if when > now:
            heappush(self._later, (when, next(self._ties), waiting))
        else:
            waiting.line.add(waiting, waiting.line.size(waiting), _AGAIN, now, since=waiting.since)

    def bring_back(self, now: float) -> None:
        """Let those whose time has come be ready again."""
        while self._later and self._later[0][0] <= now:
            _, _, waiting = heappop(self._later)
            if not waiting.gone:
                self.add_again(waiting, now, now)

    def line_of(self, route: Route) -> Line:
        """Where prompts of this route wait."""
        line = self._lines.get(route)
        if line is None:
            takers = [self._takers[quota] for quota in dict.fromkeys(target.quota for target in route)]
            line = self._lines[route] = Line(route, takers, self._rng)
            for taker in takers:
                taker.lines.append(line)
                taker.lines.sort(key=lambda line: len(line.route.targets))
        return line


def take(now: float, taker: Taker) -> Waiting | None:
    """Remove and return what goes to this quota now, or None when nothing does.

    A prompt beyond the whole minute's tokens needs no more room than that.
    """
    for line in taker.lines:
        found = _take(line, now, taker.quota, taker.costs)
        if found is not None or line.awaited is not None:
            return found
    return None


def next_wanted(now: float, taker: Taker) -> Waiting | None:
    """What everything waits for when `take` returned None."""
    for line in taker.lines:
        if line.awaited is not None:
            return line.awaited
    smallest = [waiting for line in taker.lines if (waiting := line.next_wanted(now)) is not None]
    return min(smallest, key=lambda waiting: waiting.line.size(waiting), default=None)


def _take(line: Line, now: float, quota: Quota, costs: Costs) -> Waiting | None:
    limit = quota.tokens_limit
    if limit == inf:
        return line.take(now, inf, lambda one: True, lambda one: now, quota.phase.ends_at, backwards=quota.down)
    largest, most = quota.largest, quota.room(now, EXACT)
    rooms = {EXACT: most}

    def fits(waiting: Waiting) -> bool:
        tokens, margin = costs.of(waiting)
        if margin not in rooms:
            rooms[margin] = quota.room(now, margin)
        return tokens <= largest and min(tokens, limit) <= rooms[margin]

    def fits_at(waiting: Waiting) -> float:
        tokens, margin = costs.of(waiting)
        return inf if tokens > largest else quota.fits_at(now, min(tokens, limit), margin)

    room = most if most < limit else sys.float_info.max  # any; `inf` would take the oldest, not the largest
    return line.take(now, room, fits, fits_at, quota.phase.ends_at, backwards=quota.down)
