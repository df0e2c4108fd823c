"""What a run asks of whoever sends its prompts: here a `Dispatcher`; elsewhere, later, a remote one or a batch."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import anyio

from pipeline.errors import Halted, PipelineError
from pipeline.prompts import Prompt
from pipeline.quota.standing import QuotaStanding
from pipeline.records import Failure, FromFlex, Reply
from pipeline.targets import Route, Target


class Tries(NamedTuple):
    """Requests made for one prompt before this one."""

    failed: int = 0
    refused: int = 0  # for quota: these cost no attempt
    fell_back: FromFlex | None = None  # why this one is asked in standard, where some were asked in flex


FIRST_TRY = Tries()

Send = Callable[[Prompt, Target, Tries], Awaitable[Reply | Failure]]
"""Makes one request to a target, and raises for no failure of it."""
Admit = Callable[[Prompt, Target], bool]
"""Reserves what one request may cost; False: wait until one that is in flight has come back.

Raises the `PipelineError` that stops the run when no waiting would help.
"""


@dataclass(slots=True, eq=False)
class Submitted:
    """One prompt at a desk, until its submitter has the answer."""

    prompt: Prompt
    answer: asyncio.Future[Reply]
    in_flight: bool = field(default=False, kw_only=True)
    withdrawn: bool = field(default=False, kw_only=True)  # the submitter was cancelled, and waits for what it bought
    reply: Reply | None = field(default=None, kw_only=True)

    @property
    def gone(self) -> bool:
        """Answered, or nobody waits for the answer any more."""
        return self.answer.done()

    async def answered(self, withdraw: Callable[[], None]) -> Reply:
        """Wait for the answer. Cancelled, `withdraw` it; in flight it is waited for and returned all the same."""
        try:
            return await self.answer
        except asyncio.CancelledError:
            withdraw()
            if self.in_flight:
                self.withdrawn, self.answer = True, asyncio.get_running_loop().create_future()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([self.answer])
            if self.reply is None:
                raise
            return self.reply

    def deliver(self, reply: Reply) -> None:
        """Hand the answer over."""
        self.reply = reply
        if not self.gone:
            self.answer.set_result(reply)

    def withhold(self, reason: PipelineError | None) -> None:
        """No answer will come: the submitter gets `Halted(reason)`, or its cancellation."""
        if self.withdrawn:
            self.answer.cancel()
        elif not self.gone:
            self.answer.set_exception(Halted(reason))


class Desk(Protocol):
    """Where prompts are handed in and replies come back.

    Counters for progress: `ready` prompts wait; `sent` requests; `rate_limited`, those refused for quota; `shed`, those
    that flex turned away; `failures`, others that brought no answer, by cause.
    """

    ready: int
    sent: int
    rate_limited: int
    shed: int
    failures: Counter[str]

    async def submit(self, prompt: Prompt, route: Route | None = None) -> Reply:
        """Send a prompt to one of its targets (None: of all there are), again where that may help.

        A failure of the prompt is a reply too. Raises `Halted` when no new call is admitted any more. Cancelled while
        it waits, the prompt is withdrawn; cancelled in flight, it is waited for and returned, as it is paid for.
        """
        ...

    async def run(self) -> None:
        """The work itself; returns after `close` or `halt` once nothing is in flight."""
        ...

    def close(self) -> None:
        """No prompt will be submitted any more: `run` ends when all are answered."""
        ...

    def halt(self, reason: PipelineError | None) -> None:
        """Admit nothing more: waiting prompts get `Halted(reason)`; the rest finishes. The first reason stays."""
        ...

    @property
    def in_flight(self) -> int:
        """How many requests are on their way."""
        ...

    @property
    def standing(self) -> tuple[QuotaStanding, ...]:
        """How each quota stands."""
        ...

    @property
    def waits_until(self) -> float | None:
        """Epoch seconds until which nothing is sent or awaited, as far as is known; None while anything goes on."""
        ...
