"""The prompts that wait for quota: ready, or to be sent again later; one backlog, whoever may answer them."""

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random

from pipeline.calibration import EXACT, Calibrations, Margin
from pipeline.dispatch.lookahead import Lookahead
from pipeline.prompts import Prompt
from pipeline.quota.endpoint import EndpointQuota
from pipeline.records import Reply
from pipeline.targets import Route

_AGAIN, _FINISHING, _OTHERS = range(3)  # of the lookahead, in the order in which they go


@dataclass(slots=True, eq=False)
class Waiting:
    """One submitted prompt until it is answered."""

    prompt: Prompt
    route: Route
    answer: asyncio.Future[Reply]
    since: float  # when it was submitted, then when it last left; the loop's clock
    exact_tokens: int | None = None  # as the route's first target counted them before
    attempts: int = 0
    rate_limited: int = 0
    refused_alone: int = 0  # of these, with the tokens of a whole minute for itself
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
        if waiting.exact_tokens is not None and waiting.route.first.model == self.model:
            return waiting.exact_tokens, EXACT
        margin = self.calibrations.margin(waiting.prompt.step)
        return margin.tokens(waiting.prompt.input_tokens_est), margin


@dataclass(slots=True, eq=False)
class Line:
    """The ready prompts of one route: whoever is on it takes from here."""

    route: Route
    ready: Lookahead[Waiting]


class Backlog:
    """Sent again before reduces, reduces before all others; among these the largest that fits, as `Lookahead` says.

    The other way round while the server is down: who failed before is not used up by asking whether it is back. Each
    route has a line of its own; a quota takes first from the line on which fewest may stand in for it.
    """

    def __init__(self, rng: Random | None, size: Callable[[Waiting], int]) -> None:
        """Without `rng` prompts keep their order; `size` in tokens orders them otherwise."""
        self._rng = rng
        self._size = size
        self._lines: dict[int, Line] = {}  # by the identity of the route, which the line keeps alive
        self._of: dict[str, list[Line]] = {}  # by quota
        self._later: list[tuple[float, int, Waiting]] = []  # heap: when, tie-breaker, who
        self._ties = itertools.count()

    def __iter__(self) -> Iterator[Waiting]:
        for line in self._lines.values():
            yield from line.ready
        yield from (waiting for _, _, waiting in self._later)

    def has_for(self, quota: str) -> bool:
        """Whether any may go to this quota now."""
        return any(line.ready for line in self._of.get(quota, ()))

    @property
    def due_at(self) -> float:
        """When the next one may be sent again, `inf` for none."""
        return self._later[0][0] if self._later else inf

    def add(self, waiting: Waiting, tokens: int, now: float) -> None:
        """A prompt that is ready, with what it will cost."""
        queue = _FINISHING if waiting.prompt.step == "reduce" else _OTHERS
        self._line(waiting.route).ready.add(waiting, tokens, queue, now)

    def add_again(self, waiting: Waiting, now: float, when: float) -> None:
        """One that was sent before, to go again at the front; from `when` on."""
        if when > now:
            heappush(self._later, (when, next(self._ties), waiting))
        else:
            self._line(waiting.route).ready.add(waiting, self._size(waiting), _AGAIN, now, since=waiting.since)

    def bring_back(self, now: float) -> None:
        """Let those whose time has come be ready again."""
        while self._later and self._later[0][0] <= now:
            _, _, waiting = heappop(self._later)
            if not waiting.gone:
                self.add_again(waiting, now, now)

    def take(self, now: float, name: str, quota: EndpointQuota, costs: Costs) -> Waiting | None:
        """Remove and return what goes to the quota `name` now, or None when nothing does.

        A prompt beyond the whole minute's tokens needs no more room than that.
        """
        for line in self._of.get(name, ()):
            found = _take(line.ready, now, quota, costs)
            if found is not None or line.ready.awaited is not None:
                return found
        return None

    def next_wanted(self, name: str, now: float) -> Waiting | None:
        """What everything waits for when `take` returned None."""
        lines = self._of.get(name, ())
        for line in lines:
            if line.ready.awaited is not None:
                return line.ready.awaited
        smallest = [waiting for line in lines if (waiting := line.ready.next_wanted(now)) is not None]
        return min(smallest, key=self._size, default=None)

    def _line(self, route: Route) -> Line:
        line = self._lines.get(id(route))
        if line is None:
            line = self._lines[id(route)] = Line(route, Lookahead(self._rng))
            for name in {target.quota for target in route}:
                lines = self._of.setdefault(name, [])
                lines.append(line)
                lines.sort(key=lambda line: len(line.route.targets))
        return line


def _take(ready: Lookahead[Waiting], now: float, quota: EndpointQuota, costs: Costs) -> Waiting | None:
    limit, largest = quota.tokens_limit, quota.largest
    if limit == inf:
        return ready.take(now, inf, lambda one: True, lambda one: now, quota.phase.ends_at, backwards=quota.down)
    rooms = {margin: quota.room(now, margin) for margin in (EXACT, *costs.calibrations)}

    def fits(waiting: Waiting) -> bool:
        tokens, margin = costs.of(waiting)
        return tokens <= largest and min(tokens, limit) <= rooms[margin]

    def fits_at(waiting: Waiting) -> float:
        tokens, margin = costs.of(waiting)
        return inf if tokens > largest else quota.fits_at(now, min(tokens, limit), margin)

    most = max(rooms.values())
    room = most if most < limit else sys.float_info.max  # any; `inf` would take the oldest, not the largest
    return ready.take(now, room, fits, fits_at, quota.phase.ends_at, backwards=quota.down)
