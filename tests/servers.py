"""A service in virtual time: four ways to count a quota, a network, latencies, a clock of its own, and faults."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio
from asking import ask, dispatcher_of

from pipeline.dispatch.desk import Desk
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.emulator.limits import ALGORITHMS, MINUTE
from pipeline.prompts import Prompt
from pipeline.records import Failure, Limits, QuotaHit, Reply, Usage

SERVERS = ALGORITHMS
EACH = "each"
"""All ways at once: what any of them refuses is refused. Where none does, each alone lets through the same."""
WINDOW_S = MINUTE
EPOCH = 1_795_384_800.0  # a minute of wall time that begins with the virtual clock's 0


class Each:
    """A quota that is counted in every way."""

    def __init__(self, limit: int) -> None:
        self._meters = [model(limit) for model in ALGORITHMS.values()]

    def delay(self, now: float, amount: int) -> float:
        """Seconds until all of them would let it through."""
        return max(meter.delay(now, amount) for meter in self._meters)

    def add(self, now: float, amount: int) -> None:
        """Count it."""
        for meter in self._meters:
            meter.add(now, amount)


@dataclass
class World:
    """One service behind one network; `send` and `count_tokens` are what a dispatcher is given."""

    server: str
    rpm: int
    tpm: int
    rpd: int | None = None
    seed: int = 1
    jitter_s: float = 0.25  # range of the delay on the way to the server
    latency: tuple[float, float] = (2.0, 0.9)  # lognormal, cut to 0.2–30 s
    names_limit: bool = False  # quotaValue in a refusal
    details: bool = True  # QuotaFailure in a refusal
    of_capacity: bool = False  # it is short of capacity, by its own word
    date_error_s: float = 0.0  # the clock of the Date header minus the clock that counts
    fault: Callable[[float], Failure | None] = lambda t: None  # what happens to a request that arrives now
    true_tokens: dict[int, int] = field(default_factory=dict)

    refused: list[tuple[float, str]] = field(default_factory=list)
    admitted: list[tuple[float, int]] = field(default_factory=list)
    left: list[tuple[float, int]] = field(default_factory=list)  # when a request left the client, and its true tokens
    replies: list[Reply] = field(default_factory=list)
    in_flight: int = 0
    inside: int = 0  # of those, the ones that the server is at work on
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.offset = self.rng.uniform(0.0, WINDOW_S)
        model = Each if self.server == EACH else SERVERS[self.server]
        self.meters = {"requests": model(self.rpm), "tokens": model(self.tpm)}

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """The client's clock."""
        return EPOCH + self.now()

    def clock(self) -> float:
        """The server's clock, a part of a minute ahead."""
        return self.wall() + self.offset

    def date(self, ago_s: float = 0.0) -> float:
        """The Date header of a response that was stamped so long ago."""
        return math.floor(self.clock() + self.date_error_s - ago_s)

    async def send(self, prompt: Prompt) -> Reply | Failure:
        tokens = self.true_tokens[prompt.row]
        self.left.append((self.now(), tokens))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await anyio.sleep(0.02 + self.rng.uniform(0.0, self.jitter_s))
            fault = self.fault(self.now())
            if fault is not None:
                return fault
            refusal = self.arrive(tokens)
            if refusal is not None:
                await anyio.sleep(0.06)
                return refusal
            self.inside += 1
            latency = min(30.0, max(0.2, self.rng.lognormvariate(math.log(self.latency[0]), self.latency[1])))
            try:
                await anyio.sleep(latency)
            finally:
                self.inside -= 1
            return Reply("", "ok", usage=Usage(input_tokens=tokens), served_at=self.date(0.02))
        finally:
            self.in_flight -= 1

    async def count_tokens(self, prompt: Prompt) -> int | Failure:
        await anyio.sleep(0.1)
        return self.true_tokens[prompt.row]

    def arrive(self, tokens: int) -> Failure | None:
        """Count one request at the server, or refuse it."""
        t = self.clock()
        if self.rpd is not None and len(self.admitted) >= self.rpd:
            return self._refusal("requests", "day", 30.0)
        delays = {"requests": self.meters["requests"].delay(t, 1), "tokens": self.meters["tokens"].delay(t, tokens)}
        name = max(delays, key=lambda meter: delays[meter])
        if delays[name] > 0:
            return self._refusal(name, "minute", delays[name])
        self.meters["requests"].add(t, 1)
        self.meters["tokens"].add(t, tokens)
        self.admitted.append((self.now(), tokens))
        return None

    def _refusal(self, meter: str, window: str, delay: float) -> Failure:
        self.refused.append((self.now(), meter))
        limit = {"requests": self.rpm, "tokens": self.tpm}[meter] if self.names_limit else None
        hit = QuotaHit(f"{meter}-per-{window}", meter, window, limit)  # type: ignore[arg-type]
        return Failure(
            "day_quota" if window == "day" else "rate_limit",
            "quota",
            "Resource has been exhausted",
            http_status=429,
            retry_after_s=delay if self.details else None,
            quota=(hit,) if self.details else (),
            of_capacity=self.of_capacity,
            served_at=self.date(),
        )

    def steady(self, skip_s: float = 120.0) -> float:
        """Use of the meter that binds, without the first and last two minutes."""
        end = self.admitted[-1][0] - skip_s
        inside = [tokens for at, tokens in self.admitted if skip_s < at <= end]
        return max(len(inside) / self.rpm, sum(inside) / self.tpm) * WINDOW_S / (end - skip_s)

    def dispatched(self) -> float:
        """Use of the meter that binds, from the first request to the last."""
        need = max(len(self.admitted) / self.rpm, sum(tokens for _, tokens in self.admitted) / self.tpm)
        return need * WINDOW_S / self.admitted[-1][0]

    def most_in_a_window(self) -> tuple[int, int]:
        """The most requests, and the most tokens, that left the client within 60 s and were not refused."""
        return _most(self.admitted, lambda tokens: 1), _most(self.admitted, lambda tokens: tokens)


def _most(sends: Sequence[tuple[float, int]], amount: Callable[[int], int]) -> int:
    first = total = most = 0
    for at, tokens in sends:
        total += amount(tokens)
        while sends[first][0] <= at - WINDOW_S:
            total -= amount(sends[first][1])
            first += 1
        most = max(most, total)
    return most


def documents(world: World, tokens: Iterable[int], *, bias: float = 1.0, noise: float = 0.08) -> list[Prompt]:
    """Prompts of so many true tokens, estimated at `bias` times that, with lognormal noise."""
    rng = Random(world.seed + 1)
    prompts = []
    for row, true in enumerate(tokens):
        world.true_tokens[row] = true
        estimate = max(1, round(true * bias * math.exp(rng.gauss(0.0, noise))))
        prompts.append(ask(row, tokens=estimate))
    return prompts


def small(count: int, mean: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [max(20, round(rng.gauss(mean, 0.3 * mean))) for _ in range(count)]


def lognormal(count: int, mean: int, seed: int, sigma: float = 0.8) -> list[int]:
    rng = Random(seed)
    return [max(10, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))) for _ in range(count)]


def heavy(count: int, mean: int, largest: int, seed: int, alpha: float = 1.3) -> list[int]:
    """A Pareto tail, cut off at `largest`."""
    rng = Random(seed)

    def one() -> int:
        while True:
            tokens = mean * (alpha - 1) / alpha * rng.paretovariate(alpha)
            if tokens <= largest:
                return max(10, round(tokens))

    return [one() for _ in range(count)]


async def answer_all(dispatcher: Desk, prompts: Iterable[Prompt], *, at_once: int = 1000) -> list[Reply]:
    """Submit all prompts, so many of them waiting at the same time."""
    source: Iterator[Prompt] = iter(prompts)
    replies: list[Reply] = []

    async def submit_some() -> None:
        for prompt in source:
            replies.append(await dispatcher.submit(prompt))

    async with anyio.create_task_group() as runner:
        runner.start_soon(dispatcher.run)
        async with anyio.create_task_group() as submitters:
            for _ in range(at_once):
                submitters.start_soon(submit_some)
        dispatcher.close()
    return replies


def dispatcher_for(
    world: World, limits: Limits, send: Callable[[Prompt], Awaitable[Reply | Failure]] | None = None, **options: Any
) -> Dispatcher:
    """A dispatcher in front of `world`, with its clock and a seeded chance."""
    settings: dict[str, Any] = {"count_tokens": world.count_tokens, "wall": world.wall, "rng": Random(world.seed)}
    return dispatcher_of(send or world.send, limits, **(settings | options))
