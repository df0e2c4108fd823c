"""A fleet in virtual time: lives with links that take their time, one coordinator, and a service."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random
from typing import Any

import anyio
import anyio.abc
from asking import MODEL, Counting
from servers import World

from pipeline.budget.caps import Spending
from pipeline.budget.cashier import Cashier
from pipeline.dispatch.counting import Counts
from pipeline.dispatch.desk import Admit, Send, Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.fleet.coordinator import Coordinator
from pipeline.fleet.messages import Given, Told
from pipeline.fleet.remote import Remote
from pipeline.prompts import Prompt
from pipeline.records import Failure, Limits, Reply
from pipeline.targets import Route, Target

Call = Callable[[Prompt], Awaitable[Reply | Failure]]

A_CALL_USD = Decimal("0.000001")
"""What a worker notes for each answer; the driver reckons for itself."""


def target_of(limits: Limits) -> Target:
    return Target("gemini", "https://example", "project", MODEL, limits=limits)


class Link:
    """One way between driver and life: 1 to 10 ms, now and then up to 100; it keeps the order.

    `extra_s` comes on top.
    """

    def __init__(self, rng: Random, hear: Callable[[Any], None], extra_s: Callable[[float], float]) -> None:
        self._rng, self._hear, self._extra_s = rng, hear, extra_s
        self._free_at = 0.0
        self.carried = 0
        self.is_cut = False
        self.kept: list[Told | Given] | None = None  # where a test carries the messages itself

    def send(self, message: Told | Given) -> None:
        self.carried += 1
        if self.kept is not None:
            self.kept.append(message)
            return
        message = pickle.loads(pickle.dumps(message))
        usual = self._rng.random() < 0.98
        now = anyio.current_time()
        at = now + (self._rng.uniform(0.001, 0.01) if usual else self._rng.uniform(0.03, 0.1)) + self._extra_s(now)
        self._free_at = max(self._free_at + 1e-6, at)
        asyncio.get_running_loop().call_at(self._free_at, self.arrive, message)

    def arrive(self, message: Told | Given) -> None:
        """It is there, unless the link is cut."""
        if not self.is_cut:
            self._hear(message)


@dataclass
class Fleet:
    """A coordinator before `call`, and the lives that it heeds; `spent_usd` is what each shard has cost."""

    call: Call
    limits: Limits
    workers: int
    wall: Callable[[], float]
    group: anyio.abc.TaskGroup
    spending: Spending = field(default_factory=lambda: Spending(None))
    options: Mapping[str, Any] = field(default_factory=dict)
    count_tokens: Callable[[Prompt], Awaitable[int | Failure]] | None = None
    seed: int = 1
    links: dict[str, tuple[Link, Link]] = field(default_factory=dict)
    told_usd: dict[str, Decimal] = field(default_factory=dict)  # by life, what each has told of that
    asked: list[Target] = field(default_factory=list)  # of each request
    _gone: dict[str, anyio.Event] = field(default_factory=dict)
    remotes: dict[str, Remote] = field(default_factory=dict)
    spent_usd: dict[str, Decimal] = field(default_factory=dict)
    targets: Sequence[Target] = ()

    def __post_init__(self) -> None:
        self.targets = self.targets or (target_of(self.limits),)
        self.cashier = Cashier(self.spending)
        self.coordinator = Coordinator(self._make, self.cashier, self.targets, workers=self.workers, wall=self.wall)

    def _make(self, send: Send, admit: Admit, providers: Mapping[str, Counts]) -> Dispatcher:
        settings: dict[str, Any] = {"rng": Random(self.seed), "wall": self.wall}
        settings |= {"workers": self.workers, "providers": providers if self.count_tokens else None, **self.options}
        return Dispatcher(send, Route(tuple(self.targets)), admit=admit, **settings)

    def send_of(self, shard: str) -> Send:
        """How a worker sends what is of that shard."""

        async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
            self.asked.append(target)
            outcome = await self.call(prompt)
            if isinstance(outcome, Reply):
                tried = tries.failed + 1, tries.refused
                outcome = replace(outcome, attempts=tried[0], rate_limited=tried[1], finished_at=self.wall())
                self.spent_usd[shard] = self.spent_usd.get(shard, Decimal(0)) + A_CALL_USD
            return outcome

        return send

    def open(
        self,
        name: str,
        *,
        heard: Callable[[Told | Given], object] = lambda message: None,
        extra_s: Callable[[float], float] = lambda now: 0.0,
    ) -> Remote:
        """A worker's desk that is at work, with links to the coordinator; `heard` sees what is sent."""
        shard = name.rpartition("/")[0]

        counting = {"gemini": Counting(self.count_tokens)} if self.count_tokens else {}
        remote = Remote(
            self.send_of(shard), self.targets, counting, lambda: self.spent_usd.get(shard, Decimal(0)), wall=self.wall
        )
        self.remotes[name] = remote
        self.coordinator.begin(name, Decimal(0))
        rng = Random(f"{self.seed} {name}")

        def take(told: Told) -> None:
            if told.number:
                self.told_usd[name] = told.spent_usd
            self.coordinator.take(name, told)

        up, down = (Link(rng, hear, extra_s) for hear in (take, remote.heard))
        self.links[name] = up, down
        self._gone[name] = anyio.Event()

        async def speak() -> None:
            while True:
                message = await remote.tell()
                heard(message)
                up.send(message)

        async def listen() -> None:
            while (message := await self.coordinator.give(name)) is not None:
                heard(message)
                down.send(message)

        async def live() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(speak)
                group.start_soon(listen)
                await remote.run()
                group.cancel_scope.cancel()
            self.coordinator.end(name)
            self._gone[name].set()

        self.group.start_soon(live)
        return remote

    async def left(self, name: str) -> None:
        """Wait until a life is over."""
        await self._gone[name].wait()

    def cut(self, name: str) -> None:
        """Nothing reaches it or comes from it any more."""
        for link in self.links[name]:
            link.is_cut = True


async def answer_by_fleet(
    world: World, prompts: Sequence[Prompt], limits: Limits, workers: int, *, at_once: int = 1000, **settings: Any
) -> tuple[Fleet, list[Reply]]:
    """Answer all prompts, each worker its part of them."""
    replies: list[Reply] = []
    async with anyio.create_task_group() as group:
        made: dict[str, Any] = {"count_tokens": world.count_tokens, "seed": world.seed, **settings}
        fleet = Fleet(world.send, limits, workers, world.wall, group, **made)
        group.start_soon(fleet.coordinator.run)
        async with anyio.create_task_group() as working:
            for number in range(workers):
                remote = fleet.open(f"{number}/1")
                source = iter(prompts[number::workers])

                async def submit_some(remote: Remote = remote, source: Iterator[Prompt] = source) -> None:
                    for prompt in source:
                        replies.append(await remote.submit(prompt))

                for _ in range(min(at_once, len(prompts) // workers + 1)):
                    working.start_soon(submit_some)
        for remote in fleet.remotes.values():
            remote.close()
        for name in fleet.remotes:
            await fleet.left(name)
        fleet.coordinator.close()
    return fleet, replies
