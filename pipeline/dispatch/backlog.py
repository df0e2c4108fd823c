"""The prompts that wait for quota: ready, or to be sent again later; one backlog, whoever may answer them."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Protocol

from pipeline.calibration import EXACT, Calibrations, Margin
from pipeline.dispatch.desk import FIRST_TRY, Submitted, Tries
from pipeline.dispatch.lookahead import Lookahead
from pipeline.errors import PipelineError
from pipeline.models import assumed
from pipeline.prompts import Prompt
from pipeline.quota.pacer import WINDOW_S
from pipeline.quota.quota import Quota
from pipeline.records import LATER, PASSING, Counted, Lane, Reply, Takes, Usage
from pipeline.targets import Route, Target

_MANY = 256  # of 2,560 rows that are open at once
_AGAIN, _FINISHING, _OTHERS = range(3)  # of the lookahead, in the order in which they go


@dataclass(slots=True, eq=False)
class Waiting(Submitted):
    """One submitted prompt until it is answered."""

    line: "Line"
    since: float  # when it was submitted, then when it last left; the loop's clock
    tokens: int = 0  # that it was taken for when it was submitted
    exact_tokens: int | None = None  # as the route's first target counted them before
    tries: Tries = FIRST_TRY
    refused_alone: int = 0  # of those refused for quota, with the tokens of a whole minute for itself
    failed_elsewhere: int = 0  # attempts at those that are asked for it no more
    otherwise: Reply | None = None  # how it ended there
    flexed: bool = False  # it was asked in flex
    shed: int = 0  # requests in flex that were turned away
    without_flex: bool = False  # it is asked in flex no more
    bounded: int = 0  # attempts that failed for a cause for which only some may be made
    waited_s: float = 0.0  # at the service's word, after failures
    queued: bool = True

    @property
    def takers(self) -> "list[Taker]":
        """Those of its line that take something so large."""
        return [taker for taker in self.line.takers if taker.costs.of(self)[0] <= taker.quota.largest]

    @property
    def is_stuck(self) -> bool:
        """Whether all that would take it are closed; one that is open may take nothing so large."""
        takers = self.takers
        return bool(takers) and all(taker.closed for taker in takers)

    def elsewhere(self, here: "Taker", ended: Reply) -> Route | None:
        """Who may answer it that ended so here: of those that are open, and that take over what failed; or nobody."""
        failed, rank = ended.error_kind in PASSING, here.target.priority
        if not failed and ended.error_kind != "too_long":
            return None
        may = {
            taker.target.quota
            for taker in self.takers
            if taker is not here and not taker.closed
            if not failed or taker.target.priority <= rank or "outage" in taker.target.takes
        }
        return Route(tuple(target for target in self.line.route if target.quota in may)) if may else None

    @property
    def failed_here(self) -> int:
        """Attempts at those that may be asked for it."""
        return self.tries.failed - self.failed_elsewhere


@dataclass(slots=True)
class Costs:
    """What prompts cost one quota in tokens, as the answers show."""

    model: str
    calibrations: Calibrations
    counted: Counted = "input"

    def of(self, waiting: Waiting) -> tuple[int, Margin]:
        """Expected tokens, and how far off they may be."""
        prompt = waiting.prompt
        longest = 0 if self.counted == "input" else self._answer(prompt)
        if waiting.exact_tokens is not None and waiting.line.route.first.model == self.model:
            return waiting.exact_tokens + longest, EXACT
        margin = self.calibrations.margin(prompt.step)
        return margin.tokens(prompt.input_tokens_est + longest), margin

    def learn(self, waiting: Waiting, usage: Usage) -> int | None:
        """Tokens of an answered request as the quota counts them; None where the service did not say."""
        if usage.estimated or usage.input_tokens <= 0:
            return None
        prompt, tokens = waiting.prompt, usage.input_tokens
        if self.counted == "total":
            tokens += usage.output_tokens + usage.thinking_tokens
        elif self.counted == "reserved":
            tokens += self._answer(prompt)
        if waiting.exact_tokens is None:  # counted ones are not chosen by their estimates
            longest = 0 if self.counted == "input" else self._answer(prompt)
            self.calibrations.observe(prompt.step, prompt.input_tokens_est + longest, tokens)
        return tokens

    def _answer(self, prompt: Prompt) -> int:
        """The longest answer, where answers count: of a total they soon show how much less it is."""
        return prompt.params.max_output_tokens or assumed(self.model).max_output_tokens


@dataclass(slots=True)
class Deadline:
    """When all should be answered, by the loop's clock, and how many prompts there are, as far as that is known."""

    at: float
    prompts: int
    done: int = 0

    def is_missed_by(self, takers: Sequence["Taker"], mean_tokens: float, now: float) -> bool:
        """Whether these alone would not be done with what is left in time, with a minute to spare."""
        speeds = (taker.quota.limits for taker in takers)
        a_minute = sum(min(one.rpm or inf, one.tpm / mean_tokens if one.tpm and mean_tokens else inf) for one in speeds)
        return WINDOW_S * (self.prompts - self.done) / a_minute > self.at - now - WINDOW_S


class Taker(Protocol):
    """Who takes prompts from the lines that it is on, for one quota."""

    quota: Quota
    costs: Costs
    lines: list["Line"]
    closed: PipelineError | None
    sent: int

    @property
    def target(self) -> Target:
        """Whom the next request goes to."""
        ...

    def is_out(self, now: float, takes: Set[Takes]) -> bool:
        """Whether it cannot be asked for longer, for one of these causes."""
        ...

    def has_room(self, now: float) -> bool:
        """Whether it would send at once."""
        ...

    def lane_of(self, line: "Line", now: float) -> Lane | None:
        """In which lane it would ask what waits there; None: it has no room for it in that one."""
        ...


class Line(Lookahead[Waiting]):
    """The ready prompts of one route: whoever is on it takes from here."""

    def __init__(
        self,
        route: Route,
        takers: Sequence[Taker],
        rng: Random | None,
        deadline: Deadline | None = None,
        standard: bool = False,
    ) -> None:
        """`takers` in the order of the targets; `standard`: they ask in that lane, whatever others they have."""
        super().__init__(rng)
        self._deadline, self.standard = deadline, standard
        self.route, self.takers = route, takers
        self.ready = self.ready_tokens = 0  # how many wait where it is ranked, those to be sent again later included
        self.is_ranked = any(target.priority != route.first.priority or target.weight for target in route)

    def is_left_to(self, taker: Taker, now: float) -> bool:
        """Whether a taker may have what waits here: those before it cannot, and none beside it is behind its part."""
        own = taker.target
        if not self._is_its_turn(taker, now):
            return False
        return own.weight <= 0 or not any(
            each.target.priority == own.priority
            and each.sent * own.weight < taker.sent * each.target.weight
            and each.has_room(now)
            and self._is_its_turn(each, now)
            for each in self.takers
        )

    def _is_its_turn(self, taker: Taker, now: float) -> bool:
        """Whether those before it cannot, as one of its causes holds for each.

        `full` holds for all together, as more waits than they take in a minute; so does `deadline`, as they would not
        be done in time.
        """
        own = taker.target
        before = [each for each in self.takers if each.target.priority < own.priority]
        able = [each for each in before if not each.is_out(now, own.takes)]
        if not able or ("full" in own.takes and not self._is_for(able)):
            return True
        mean_tokens = self.ready_tokens / self.ready if self.ready else 0.0
        pressing = self._deadline if "deadline" in own.takes else None
        return pressing is not None and pressing.is_missed_by(able, mean_tokens, now)

    def _is_for(self, takers: Sequence[Taker]) -> bool:
        """Whether they take all that waits within a minute. So many as `_MANY` may be the first of millions of rows."""
        limits = [taker.quota.limits for taker in takers]
        requests = min(_MANY, sum(limit.rpm or inf for limit in limits))
        return self.ready <= requests and self.ready_tokens <= sum(limit.tpm or inf for limit in limits)

    def count(self, waiting: Waiting, sign: int) -> None:
        """One more waits (1), or one less (-1)."""
        self.ready += sign
        self.ready_tokens += sign * waiting.tokens

    def size(self, waiting: Waiting) -> int:
        """Tokens that its first target takes a prompt for."""
        return self.takers[0].costs.of(waiting)[0]


class Backlog:
    """Sent again before reduces and the first rows, these before all others; among them the largest that fits, as
    `Lookahead` says.

    The other way round while the server is down: who failed before is not used up by asking whether it is back. Each
    route has a line of its own; a quota takes first from the line on which fewest may stand in for it.
    """

    def __init__(
        self,
        rng: Random | None,
        takers: Mapping[str, Taker],
        deadline: Deadline | None = None,
        first: Set[int] = frozenset(),
    ) -> None:
        """Without `rng` prompts keep their order; `takers` by quota; `first` are rows that go before others."""
        self._rng, self._deadline, self._first = rng, deadline, first
        self._takers = takers
        self._lines: dict[tuple[Route, bool], Line] = {}  # a route that is made anew for each prompt has one line
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
        prompt = waiting.prompt
        queue = _FINISHING if prompt.step in LATER or prompt.row in self._first else _OTHERS
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

    def line_of(self, route: Route, standard: bool = False) -> Line:
        """Where prompts of this route wait; `standard`: those that were asked in flex often enough."""
        line = self._lines.get((route, standard))
        if line is None:
            takers = [self._takers[quota] for quota in dict.fromkeys(target.quota for target in route)]
            line = self._lines[route, standard] = Line(route, takers, self._rng, self._deadline, standard)
            for taker in takers:
                taker.lines.append(line)
                taker.lines.sort(key=lambda line: (not line.standard, len(line.route.targets)))
        return line


def open_to(taker: Taker, now: float) -> Sequence[Line]:
    """The lines from which it may take now."""
    return [
        line
        for line in taker.lines
        if (not line.is_ranked or line.is_left_to(taker, now)) and taker.lane_of(line, now) is not None
    ]


def take(now: float, taker: Taker) -> Waiting | None:
    """Remove and return what goes to this quota now, or None when nothing does.

    A prompt beyond the whole minute's tokens needs no more room than that.
    """
    for line in reversed(taker.lines) if taker.quota.down else taker.lines:  # as `open_to`, without a list each time
        if (line.is_ranked and not line.is_left_to(taker, now)) or taker.lane_of(line, now) is None:
            continue
        found = _take(line, now, taker.quota, taker.costs)
        if found is not None or line.awaited is not None:
            return found
    return None


def next_wanted(now: float, taker: Taker) -> Waiting | None:
    """What everything waits for when `take` returned None."""
    lines = open_to(taker, now)
    for line in lines:
        if line.awaited is not None:
            return line.awaited
    smallest = [waiting for line in lines if (waiting := line.next_wanted(now)) is not None]
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
