"""Has the service count large prompts before they are sent, for as long as it can: an estimate may be far off."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from pipeline.dispatch.backlog import Waiting
from pipeline.prompts import Prompt
from pipeline.quota.breaker import Breaker
from pipeline.records import Failure
from pipeline.targets import Target

COUNT_ABOVE = 0.02
"""Prompts above this part of the tokens per minute are counted."""
COUNTING_AT_ONCE = 8
LONGEST_COUNT_S = 10.0
"""A count that takes longer is given up: the estimate will do."""
FAILURES_IN_A_ROW = 8

CountTokens = Callable[[Prompt, Target], Awaitable[int | Failure]]


class Counts(Protocol):
    """Who has prompts counted, as any provider."""

    async def count_tokens(self, prompt: Prompt, target: Target) -> int | Failure:
        """Input tokens as the target's model counts them, free of charge."""
        ...


class Counting:
    """The prompts that are being counted, and those that wait for it.

    After `FAILURES_IN_A_ROW` the service is asked about one prompt a minute at most, to find out whether it counts
    again; once it has said that it knows no such thing, about none. All others go by their estimates.
    """

    def __init__(self, ask: CountTokens | None, done: Callable[[Waiting], None], rng: Random) -> None:
        """`done` gets back every prompt that was added, with `exact_tokens` where they were told."""
        self._ask = ask
        self._done = done
        self._breaker = Breaker(FAILURES_IN_A_ROW, rng)
        self._waiting: deque[Waiting] = deque()
        self._asked: dict[Waiting, anyio.CancelScope] = {}

    def __iter__(self) -> Iterator[Waiting]:
        yield from self._asked
        yield from self._waiting

    def worth(self, tokens: int, limit: float) -> bool:
        """Whether to have a prompt of about so many tokens counted, where `limit` may be sent a minute."""
        return self._ask is not None and tokens > COUNT_ABOVE * limit

    def add(self, waiting: Waiting) -> None:
        """Let a prompt wait to be counted."""
        self._waiting.append(waiting)

    def start(self, now: float, group: TaskGroup) -> None:
        """Ask about those that wait, a few at once; give back at once what nobody is to be asked about."""
        while self._waiting and len(self._asked) < COUNTING_AT_ONCE:
            waiting = self._waiting.popleft()
            if self._ask is None or self._breaker.opens_at(now) is not None:
                self._done(waiting)
            elif not waiting.gone:
                self._breaker.sent(now)
                self._asked[waiting] = anyio.move_on_after(LONGEST_COUNT_S)
                group.start_soon(self._count, self._ask, waiting, now)

    def stop(self) -> None:
        """Ask nothing more, and wait for no count that is under way."""
        self._ask = None
        self._waiting.clear()
        for scope in self._asked.values():
            scope.cancel()

    async def _count(self, ask: CountTokens, waiting: Waiting, asked_at: float) -> None:
        counted: int | Failure | None = None
        try:
            with self._asked[waiting]:
                counted = await ask(waiting.prompt, waiting.line.route.first)
        finally:
            del self._asked[waiting]
        if isinstance(counted, int):
            waiting.exact_tokens = counted
            self._breaker.succeeded()
        elif counted is not None and counted.kind == "fatal":
            self._ask = None
        else:
            self._breaker.failed(anyio.current_time(), asked_at)
        self._done(waiting)
