"""Input tokens as the service counts them: a sample of the prompts that a run would begin with, free of charge."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import anyio
from aiolimiter import AsyncLimiter

from pipeline.errors import AuthError, ServiceError
from pipeline.plan.learned import Learned, counted
from pipeline.prompts import Prompt
from pipeline.quota.stops import refused_by_proxy
from pipeline.records import Failure

SAMPLE = 200
"""Prompts that are counted at most. Over a table of fourteen sorts of text the sum is then right to 1 %."""
POOL_ROWS, POOL_BYTES = 5_000, 20_000_000
"""Rows of a larger table whose first prompts are made to pick from: half a second."""

_AT_ONCE = 8
_SPACING_S = 0.05  # 1,200 a minute: counting has a quota of its own, which older documents put at 3,000
_HOPELESS = 10  # failures without one success after which the rest is not tried

Count = Callable[[Prompt], Awaitable[int | Failure]]


class Picked(NamedTuple):
    """A prompt to be counted, its kind of script, and for how many estimated tokens of that kind it stands."""

    prompt: Prompt
    kind: int
    tokens: float


async def count_sample(prompts: Iterable[tuple[Prompt, int]], count: Count, most: int = SAMPLE) -> Learned:
    """Have `most` of `prompts` counted, each given with its kind of script, and learn how far estimates are off.

    A prompt that cannot be counted is left out. Raises `ServiceError` or `AuthError` when none could be.
    """
    answered: list[tuple[Picked, int]] = []
    refused: list[Failure] = []
    pace = AsyncLimiter(1, _SPACING_S)
    waiting = iter(pick(prompts, most))

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
        if refused[-1].kind == "proxy":
            raise refused_by_proxy(refused[-1])
        message = f"the service counts no prompt: {refused[-1].message}"
        if refused[-1].kind == "auth":
            raise AuthError(message, "check the key and what its project may use; nothing was spent")
        raise ServiceError(message, "without --exact nothing is asked; `--pilot 20` measures it with real answers")
    return counted(
        (picked.kind for picked, _ in answered),
        (round(picked.tokens) for picked, _ in answered),
        (round(picked.tokens * tokens / picked.prompt.input_tokens_est) for picked, tokens in answered),
    )


def pick(prompts: Iterable[tuple[Prompt, int]], most: int) -> list[Picked]:
    """At most so many prompts, as many of one kind as of another, as far as there are."""
    groups: dict[int, list[Prompt]] = defaultdict(list)
    for prompt, kind in prompts:
        if prompt.input_tokens_est > 0:
            groups[kind].append(prompt)
    chosen: list[Picked] = []
    for left, (kind, group) in zip(
        range(len(groups), 0, -1), sorted(groups.items(), key=lambda item: len(item[1])), strict=True
    ):
        share = (most - len(chosen)) // left
        chosen += (Picked(prompt, kind, tokens) for prompt, tokens in _representatives(group, share))
    return chosen


def _representatives(group: Sequence[Prompt], share: int) -> Iterator[tuple[Prompt, float]]:
    """Prompts and the tokens they stand for: all, or some in proportion to their length, evenly by density of the text.

    Estimates of texts with as many bytes a token are off alike: a Russian text is not left to stand for a French one.
    """
    if share >= len(group):
        yield from ((prompt, prompt.input_tokens_est) for prompt in group)
    elif share > 0:
        by_density = sorted(group, key=_density)
        sums = list(accumulate(prompt.input_tokens_est for prompt in by_density))
        stride = sums[-1] / share
        for place, times in Counter(bisect_left(sums, (number + 0.5) * stride) for number in range(share)).items():
            yield by_density[place], times * stride


def _density(prompt: Prompt) -> float:
    return len(prompt.text.encode("utf-8", "surrogatepass")) / prompt.input_tokens_est
