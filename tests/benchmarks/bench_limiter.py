"""Ours against what people write first, in virtual time: `python tests/benchmarks/bench_limiter.py [row …]`.

Each cell: refusals (429) / prompts given up / use of the quota from the first request to the last one admitted. A
server that lets a whole window through at once gives a short run up to a minute of quota for nothing, so the naive
ones can pass 100 %. Same servers, prompts, seeds and network for all; estimates are 30 % low for every client.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from random import Random

import anyio
from aiolimiter import AsyncLimiter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers import SERVERS, World, answer_all, dispatcher_for, documents, heavy, lognormal, small
from vclock import run

from pipeline.prompts import Prompt
from pipeline.records import Limits, Reply

SEED = 1
MEAN_LATENCY_S = 3.1
Client = Callable[[World, list[Prompt]], Awaitable[int]]


@dataclass(frozen=True)
class Row:
    title: str
    rpm: int
    tpm: int
    tokens: Callable[[], list[int]]


ROWS = {
    "requests": Row("1,000 RPM, 6,000 small prompts", 1000, 10_000_000, lambda: small(6000, 200, SEED)),
    "tokens": Row("1 M TPM, 1,500 heavy-tailed documents", 1000, 1_000_000, lambda: heavy(1500, 8000, 350_000, SEED)),
    "free": Row("15 RPM, 200 prompts", 15, 1_000_000, lambda: small(200, 500, SEED)),
    "high": Row("2,000 RPM and 4 M TPM, 12,000 prompts", 2000, 4_000_000, lambda: lognormal(12_000, 1500, SEED)),
}


async def ours(world: World, prompts: list[Prompt]) -> int:
    """The dispatcher; prompts given up."""
    replies = await answer_all(dispatcher_for(world, Limits(rpm=world.rpm, tpm=world.tpm)), prompts)
    return sum(reply.status != "ok" for reply in replies)


async def naive(world: World, prompts: list[Prompt]) -> int:
    """`AsyncLimiter(rpm, 60)` and `AsyncLimiter(tpm, 60)`, one task per prompt, ten attempts as the server asks."""
    requests, tokens = AsyncLimiter(world.rpm, 60), AsyncLimiter(world.tpm, 60)
    given_up = 0

    async def one(prompt: Prompt) -> None:
        nonlocal given_up
        for _ in range(10):
            await requests.acquire()
            await tokens.acquire(min(prompt.input_tokens_est, world.tpm))
            outcome = await world.send(prompt)
            if isinstance(outcome, Reply):
                return
            await asyncio.sleep(min(60.0, outcome.retry_after_s or 1.0) + world.rng.random())
        given_up += 1

    await asyncio.gather(*map(one, prompts))
    return given_up


async def semaphore(world: World, prompts: list[Prompt]) -> int:
    """A semaphore of 1.3 × rate × latency, and five attempts with exponential backoff: 1 s, doubled, and jitter."""
    slots = asyncio.Semaphore(max(1, ceil(1.3 * world.rpm / 60 * MEAN_LATENCY_S)))
    given_up = 0

    async def one(prompt: Prompt) -> None:
        nonlocal given_up
        async with slots:
            for attempt in range(5):
                if isinstance(await world.send(prompt), Reply):
                    return
                await asyncio.sleep(min(60.0, 2.0**attempt) + world.rng.random())
        given_up += 1

    await asyncio.gather(*map(one, prompts))
    return given_up


CLIENTS: dict[str, Client] = {"prompt-pipeline": ours, "AsyncLimiter(rpm, 60)": naive, "semaphore + backoff": semaphore}


def cell(row: Row, server: str, client: Client) -> str:
    world = World(server, row.rpm, row.tpm, seed=SEED)
    prompts = documents(world, row.tokens(), bias=0.7)
    Random(SEED).shuffle(prompts)

    async def main() -> int:
        with anyio.fail_after(24 * 3600):
            return await client(world, prompts)

    given_up = run(main)
    return f"{len(world.refused):,} / {given_up:,} / {world.dispatched():.1%}"


def main(names: list[str]) -> None:
    print("| | | " + " | ".join(SERVERS) + " |")
    print("|---" * (2 + len(SERVERS)) + "|")
    for name in names or list(ROWS):
        for label, client in CLIENTS.items():
            began = time.process_time()
            cells = [cell(ROWS[name], server, client) for server in SERVERS]
            print(f"| {ROWS[name].title} | {label} | " + " | ".join(cells) + " |", flush=True)
            print(f"  {label}: {time.process_time() - began:.1f} s of CPU", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
