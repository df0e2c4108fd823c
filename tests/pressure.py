"""A service pressed for a while by one run: what it lets through where it refuses for its own reasons.

`python tests/pressure.py [PART OF A CELL'S NAME] [SEEDS]` prints each cell as median and range.
"""

import gc
import math
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import anyio
from asking import ask
from servers import SERVERS, World, dispatcher_for
from vclock import run

from pipeline.errors import Halted
from pipeline.records import Failure, Limits, QuotaHit

SEEDS = range(1, 9)
TOKENS = 100
_MEAN_LATENCY_S = 2.0 * math.exp(0.9**2 / 2)  # of `World.latency`

Share = Callable[[float], float]


@dataclass(frozen=True)
class Outcome:
    """`use` is what got through, of what was possible; `back_s` until nine tenths did after an episode."""

    use: float
    refused: int
    limit: int
    back_s: float = 0.0


def refuse(
    world: World, share: Share, *, named: int | None = None, told_s: float | None = None, of_capacity: bool = False
) -> None:
    """Let the world refuse a share of all that comes, which may change with time, whatever the pace."""
    quota = (QuotaHit("requests-per-minute", "requests", "minute", named),) if named else ()
    refusal = Failure("rate_limit", "quota", "exhausted", 429, told_s, quota, of_capacity)

    def fault(now: float) -> Failure | None:
        if world.rng.random() >= share(now):
            return None
        world.refused.append((now, "chance"))
        return refusal

    world.fault = fault


def take_at_once(world: World, most: int) -> None:
    """Let the world refuse what comes while it is at work on so many."""
    refuse(world, lambda now: float(world.inside >= most))


def press(
    world: World, limits: Limits, seconds: float, beside: Callable[[World], Coroutine[Any, Any, None]] | None = None
) -> int:
    """Send as much as may be sent; the limit on requests that is kept at the end."""

    async def main() -> int:
        dispatcher = dispatcher_for(world, limits, count_tokens=None, max_attempts=1000)
        rows = count()

        async def submit_some() -> None:
            try:
                for row in rows:
                    world.true_tokens[row] = TOKENS
                    await dispatcher.submit(ask(row, tokens=TOKENS))
            except Halted:
                return

        async with anyio.create_task_group() as group:
            if beside is not None:
                group.start_soon(beside, world)
            group.start_soon(dispatcher.run)
            for _ in range(1000):
                group.start_soon(submit_some)
            await anyio.sleep(seconds)
            kept = dispatcher.quotas[0].limits.rpm or 0
            group.cancel_scope.cancel()
        return kept

    kept: int = run(main)
    return kept


def rate(world: World, begin: float, end: float) -> float:
    """Requests a minute that got through."""
    return sum(begin < at <= end for at, _ in world.admitted) / (end - begin) * 60.0


def by_chance(
    rpm: int, share: float, seconds: float, seed: int, named: int | None = None, told_s: float | None = None
) -> Outcome:
    """A share is refused from first to last."""
    world = World(list(SERVERS)[seed % 4], rpm, 10**9, seed=seed)
    refuse(world, lambda now: share, named=named, told_s=told_s)
    kept = press(world, Limits(rpm=rpm, tpm=0), seconds)
    return Outcome(rate(world, 0, seconds) / rpm / (1 - share), len(world.refused), kept)


def episode(rpm: int, share: float, begin: float, lasts: float, seconds: float, seed: int) -> Outcome:
    """A share is refused for a while: the service is short of capacity."""
    world = World(list(SERVERS)[seed % 4], rpm, 10**9, seed=seed)
    refuse(world, lambda now: share if begin <= now < begin + lasts else 0.0)
    kept = press(world, Limits(rpm=rpm, tpm=0), seconds)
    possible = rpm / 60.0 * (seconds - share * lasts)
    back = (t for t in range(int(begin + lasts), int(seconds) - 20, 2) if rate(world, t, t + 20) >= 0.9 * rpm)
    back_s = next(back, math.inf) - begin - lasts
    return Outcome(len(world.admitted) / possible, len(world.refused), kept, back_s)


def creep(rpm: int, share: float, seconds: float, seed: int) -> Outcome:
    """A share that is refused grows from nothing in the first two thirds, and stays."""
    world = World(list(SERVERS)[seed % 4], rpm, 10**9, seed=seed)
    grown = seconds * 2 / 3
    refuse(world, lambda now: min(share, share * now / grown))
    kept = press(world, Limits(rpm=rpm, tpm=0), seconds)
    return Outcome(rate(world, grown, seconds) / rpm / (1 - share), len(world.refused), kept)


def crowd(rpm: int, most: int, seconds: float, seed: int) -> Outcome:
    """A relay takes so many at once."""
    world = World(list(SERVERS)[seed % 4], rpm, 10**9, seed=seed)
    take_at_once(world, most)
    kept = press(world, Limits(rpm=rpm, tpm=0), seconds)
    return Outcome(rate(world, 0, seconds) / min(rpm, most / _MEAN_LATENCY_S * 60), len(world.refused), kept)


def lower(server: str, percent: int, seconds: float, seed: int, *, named: bool, chance: float = 0.0) -> Outcome:
    """The true limit is a part of the 1,000 a minute that are configured."""
    true = 10 * percent
    world = World(server, true, 10**9, seed=seed, names_limit=named)
    if chance:
        refuse(world, lambda now: chance)
    kept = press(world, Limits(rpm=1000, tpm=0), seconds)
    return Outcome(rate(world, 0, seconds) / min(true, 1000 * (1 - chance)), len(world.refused), kept)


def shared(server: str, seed: int, *, named: bool) -> Outcome:
    """Another client takes 40 % of 1,000 a minute for ten minutes."""
    world = World(server, 1000, 10**9, seed=seed, names_limit=named)

    async def somebody(world: World) -> None:
        await anyio.sleep(300.0)
        while world.now() < 900.0:
            await anyio.sleep(world.rng.expovariate(400 / 60.0))
            meter, t = world.meters["requests"], world.clock()
            if meter.delay(t, 1) <= 0:
                meter.add(t, 1)

    kept = press(world, Limits(rpm=1000, tpm=0), 1200.0, beside=somebody)
    return Outcome(rate(world, 300, 900) / 600, len(world.refused), kept)


def unset(server: str, true: int, seconds: float, seed: int, chance: float = 0.0) -> Outcome:
    """Nothing is configured; `back_s` is when nine tenths of the true limit got through in a minute."""
    world = World(server, true, 10**9, seed=seed)
    if chance:
        refuse(world, lambda now: chance)
    kept = press(world, Limits(tpm=0), seconds)
    found = (t + 60 for t in range(0, int(seconds) - 60, 5) if rate(world, t, t + 60) >= 0.9 * true * (1 - chance))
    return Outcome(
        rate(world, seconds / 2, seconds) / true / (1 - chance), len(world.refused), kept, next(found, math.inf)
    )


Cell = Callable[[int], Outcome]


def cells() -> dict[str, Cell]:
    """Every cell of the matrix by its name; each is run with a seed."""
    found: dict[str, Cell] = {}
    for rpm, seconds in ((60, 1800), (1000, 600), (6000, 150)):
        for share in (0.01, 0.05, 0.2, 0.5):
            found[f"chance {share:.0%} at {rpm}"] = partial(by_chance, rpm, share, seconds)
    for share in (0.05, 0.2, 0.5):
        name = f"chance {share:.0%} at 1000, named as configured, told 20 s"
        found[name] = partial(by_chance, 1000, share, 600, named=1000, told_s=20.0)
    for share, told_s in ((0.05, 20.0), (0.05, 300.0), (0.2, 300.0)):
        name = f"chance {share:.0%} at 60, named as configured, told {told_s:.0f} s"
        found[name] = partial(by_chance, 60, share, 1200, named=60, told_s=told_s)
    found["chance 5% at 60, told 300 s"] = partial(by_chance, 60, 0.05, 1200, told_s=300.0)
    found["chance from 0 to 40% in 10 of 15 min at 1200"] = partial(creep, 1200, 0.4, 900)
    for rpm in (60, 1000):
        found[f"short of capacity, 80% for 2 of 10 min at {rpm}"] = partial(episode, rpm, 0.8, 300, 120, 600)
        found[f"down, all for 5 of 15 min at {rpm}"] = partial(episode, rpm, 1.0, 300, 300, 900)
    for rpm, most in ((1000, 10), (1000, 30), (60, 2)):
        found[f"crowd, {most} at once at {rpm}"] = partial(crowd, rpm, most, 900)
    for server in SERVERS:
        for how, named in (("named", True), ("unnamed", False)):
            for percent in (20, 60, 95):
                found[f"true {percent}% {how}, {server}"] = partial(lower, server, percent, 480, named=named)
            found[f"another takes 40%, {how}, {server}"] = partial(shared, server, named=named)
        found[f"true 60% and chance 5%, {server}"] = partial(lower, server, 60, 900, named=False, chance=0.05)
        found[f"unset, true 1000, {server}"] = partial(unset, server, 1000, 900)
        found[f"unset, true 1000 and chance 5%, {server}"] = partial(unset, server, 1000, 900, chance=0.05)
    return found


def table_line(name: str, outcomes: list[Outcome]) -> str:
    """One row in markdown: use, refusals and seconds, each as median [least, most]."""

    def spread(values: list[float], digits: int) -> str:
        return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"

    return (
        f"| {name} | {spread([one.use for one in outcomes], 2)} | {spread([one.refused for one in outcomes], 0)} "
        f"| {spread([one.back_s for one in outcomes], 0)} |"
    )


def main(part: str = "", seeds: str = "8") -> None:
    for name, cell in cells().items():
        if part in name:
            print(table_line(name, [cell(seed) for seed in range(1, int(seeds) + 1)]), flush=True)
            gc.collect()


if __name__ == "__main__":
    main(*sys.argv[1:])
