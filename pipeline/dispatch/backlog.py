"""The prompts that wait for quota: ready, or to be sent again later; and what each of them will cost."""

import asyncio
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random

from pipeline.calibration import EXACT, Calibration, Calibrations, Margin
from pipeline.dispatch.lookahead import Lookahead
from pipeline.quota.endpoint import EndpointQuota
from pipeline.records import Prompt, Reply, Step

_AGAIN, _FINISHING, _OTHERS = range(3)  # lanes of the lookahead


@dataclass(slots=True, eq=False)
class Job:
    """One submitted prompt until it is answered."""

    prompt: Prompt
    answer: asyncio.Future[Reply]
    since: float  # when it was submitted, then when it last left; the loop's clock
    exact_tokens: int | None = None  # as the service counted them before
    attempts: int = 0
    rate_limited: int = 0
    refused_alone: int = 0  # of these, with the tokens of a whole minute for itself
    bounded: int = 0  # attempts that failed for a cause for which only some may be made
    waited_s: float = 0.0  # at the service's word, after failures
    queued: bool = True
    withdrawn: bool = False  # the submitter was cancelled in flight, and waits for what it bought
    reply: Reply | None = None

    @property
    def gone(self) -> bool:
        """Answered, or nobody waits for the answer any more."""
        return self.answer.done()


class Backlog:
    """Sent again before reduces, reduces before all others; among these the largest that fits, as `Lookahead` says.

    The other way round while the server is down: who failed before is not used up by asking whether it is back.
    """

    def __init__(self, rng: Random | None, known: Mapping[Step, Calibration] | None = None) -> None:
        """Without `rng` jobs keep their order; `known` is what was learned before of estimates."""
        self._ready: Lookahead[Job] = Lookahead(rng)
        self._later: list[tuple[float, int, Job]] = []  # heap: when, tie-breaker, job
        self._ties = itertools.count()
        self.calibrations = Calibrations(known)

    def __bool__(self) -> bool:
        """Whether any may go now."""
        return bool(self._ready)

    def __iter__(self) -> Iterator[Job]:
        yield from self._ready
        yield from (job for _, _, job in self._later)

    @property
    def due_at(self) -> float:
        """When the next one may be sent again, `inf` for none."""
        return self._later[0][0] if self._later else inf

    def cost(self, job: Job) -> tuple[int, Margin]:
        """Expected input tokens, and how far off they may be."""
        if job.exact_tokens is not None:
            return job.exact_tokens, EXACT
        margin = self.calibrations.margin(job.prompt.step)
        return margin.tokens(job.prompt.input_tokens_est), margin

    def add(self, job: Job, tokens: int, now: float) -> None:
        """A prompt that is ready, with what it will cost."""
        lane = _FINISHING if job.prompt.step == "reduce" else _OTHERS
        self._ready.add(job, tokens, lane, now)

    def add_again(self, job: Job, now: float, when: float) -> None:
        """One that was sent before, to go again at the front; from `when` on."""
        if when > now:
            heappush(self._later, (when, next(self._ties), job))
        else:
            self._ready.add(job, self.cost(job)[0], _AGAIN, now, since=job.since)

    def bring_back(self, now: float) -> None:
        """Let those whose time has come be ready again."""
        while self._later and self._later[0][0] <= now:
            _, _, job = heappop(self._later)
            if not job.gone:
                self.add_again(job, now, now)

    def take(self, now: float, quota: EndpointQuota) -> Job | None:
        """Remove and return what goes now, or None when nothing does.

        A prompt beyond the whole minute's tokens needs no more room than that.
        """
        limit, largest = quota.tokens_limit, quota.largest
        if limit == inf:
            return self._ready.take(
                now, inf, lambda job: True, lambda job: now, quota.phase.ends_at, backwards=quota.down
            )
        rooms = {margin: quota.room(now, margin) for margin in (EXACT, *self.calibrations)}

        def fits(job: Job) -> bool:
            tokens, margin = self.cost(job)
            return tokens <= largest and min(tokens, limit) <= rooms[margin]

        def fits_at(job: Job) -> float:
            tokens, margin = self.cost(job)
            return quota.fits_at(now, min(tokens, limit), margin)

        most = max(rooms.values())
        room = most if most < limit else sys.float_info.max  # any; `inf` would take the oldest, not the largest
        return self._ready.take(now, room, fits, fits_at, quota.phase.ends_at, backwards=quota.down)

    def next_wanted(self, now: float) -> Job | None:
        """What everything waits for when `take` returned None."""
        return self._ready.next_wanted(now)
