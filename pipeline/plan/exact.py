"""Input tokens as the service counts them: a sample of the prompts that a run would begin with, free of charge."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import anyio
from aiolimiter import AsyncLimiter

from pipeline import flows
from pipeline.errors import ServiceError
from pipeline.plan.learned import Learned, counted
from pipeline.plan.picks import Effort
from pipeline.plan.planner import Input
from pipeline.prompts import Prompt
from pipeline.quota.stops import stopped_by
from pipeline.records import LATER, Failure, Reply

SAMPLE = 200
"""Prompts that are counted at most. Over a table of fourteen sorts of text the sum is then right to 1 %."""

POOL = Effort(5_000, 20_000_000, 5_000, 20_000_000)
"""For the prompts of which some are counted by the service: half a second."""

_AT_ONCE = 8
_SPACING_S = 0.05  # 1,200 a minute: counting has a quota of its own, which older documents put at 3,000
_HOPELESS = 10  # failures without one success after which the rest is not tried

Count = Callable[[Prompt], Awaitable[int | Failure]]


class Picked(NamedTuple):
    """A prompt, its kind of script, and for how many estimated tokens of that kind it stands."""

    prompt: Prompt
    kind: int
    tokens: float


async def count_sample(given: Input, count: Count) -> Learned:
    """Have some of the prompts counted that a run of `given` begins with; see `count_some`."""
    return await count_some(await first_prompts(replace(given, effort=POOL)), count)


async def first_prompts(given: Input) -> list[Picked]:
    """The prompts that the rows begin with that are looked at; merging ones are not known yet.

    Those of a row that repeats another stand for nothing: they are not sent.
    """
    prompts: list[Picked] = []
    asked: list[Prompt] = []

    async def collect(prompt: Prompt) -> Reply:
        asked.append(prompt)
        return Reply("", "ok", predicted="right")

    for document, kind, repeat, weight in given.looked_at(given.picks()):
        asked.clear()
        await flows.run(document, given.job, collect)
        times = 0.0 if repeat else weight
        prompts += (Picked(each, kind, times * each.input_tokens_est) for each in asked if each.step not in LATER)
    return prompts


async def count_some(pool: Iterable[Picked], count: Count) -> Learned:
    """Have `SAMPLE` prompts of `pool` counted, and learn how far estimates are off.

    A prompt that cannot be counted is left out. Raises `ServiceError` or `AuthError` when none could be.
    """
    answered: list[tuple[Picked, int]] = []
    refused: list[Failure] = []
    pace = AsyncLimiter(1, _SPACING_S)
    waiting = iter(pick(pool, SAMPLE))

    async def work() -> None:
        for picked in waiting:
            await pace.acquire()
            tokens = await count(picked.prompt)
            if isinstance(tokens, int):
                answered.append((picked, tokens))
            else:
                refused.append(tokens)
            if not answered and len(refused) >= _HOPELESS:
                return

    async with anyio.create_task_group() as workers:
        for _ in range(_AT_ONCE):
            workers.start_soon(work)
    if refused and not answered:
        if refused[-1].kind in ("auth", "proxy"):
            raise stopped_by(refused[-1])
        raise ServiceError(
            f"the service counts no prompt: {refused[-1].message}",
            refused[-1].advice or "without --exact nothing is asked; `--pilot 20` measures it with real answers",
        )
    return counted(
        (picked.kind, round(picked.tokens), round(picked.tokens * tokens / picked.prompt.input_tokens_est))
        for picked, tokens in answered
    )


def pick(pool: Iterable[Picked], most: int) -> list[Picked]:
    """At most so many prompts, as many of one kind as of another, as far as there are."""
    groups: dict[int, list[Picked]] = defaultdict(list)
    for each in pool:
        if each.tokens > 0:
            groups[each.kind].append(each)
    chosen: list[Picked] = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups.values(), key=len), strict=True):
        chosen += _representatives(group, (most - len(chosen)) // left)
    return chosen


def _representatives(group: Sequence[Picked], share: int) -> Iterator[Picked]:
    """All, or some in proportion to the tokens they stand for, evenly by density of the text.

    Estimates of texts with as many bytes a token are off alike: a Russian text is not left to stand for a French one.
    """
    if share >= len(group):
        yield from group
    elif share > 0:
        by_density = sorted(group, key=_density)
        sums = list(accumulate(each.tokens for each in by_density))
        stride = sums[-1] / share
        for place, times in Counter(bisect_left(sums, (number + 0.5) * stride) for number in range(share)).items():
            yield by_density[place]._replace(tokens=times * stride)


def _density(picked: Picked) -> float:
    return len(picked.prompt.text.encode("utf-8", "surrogatepass")) / picked.prompt.input_tokens_est
