"""The curves of a plan against the dispatcher itself, in virtual time: when the last answer comes."""

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from random import Random
from typing import Any

import anyio
import pytest
from asking import UNLIMITED, ask
from servers import EPOCH, SERVERS, World, answer_all, dispatcher_for, documents, heavy, lognormal, small
from vclock import run

from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.dispatch.lookahead import DEPTH
from pipeline.plan.pace import Bound, Load, Pace, sending, usable_tokens
from pipeline.plan.timing import Timeline, timeline
from pipeline.prompts import Prompt
from pipeline.quota.pacer import spacing
from pipeline.quota.quota import FIRST_RPM
from pipeline.records import Limits

NETWORK_S = 0.02 + 0.25 / 2  # of `World`, in the mean
SPREAD_S = 0.25 / 2  # of the network, above the mean
EVEN_S, EVEN = 2.0, (2.0, 0.0)  # all answers take as long
MIXED, MIXED_S, MIXED_SLOW_S = (2.0, 0.9), 2.93, 16.2  # lognormal: mean, and what 99 of 100 take less than
GENEROUS = 10**9

Drive = Callable[[Dispatcher], Awaitable[object]]


def world_of(server: str = "counter", latency: tuple[float, float] = EVEN, seed: int = 1) -> World:
    """A service that refuses nothing: what the dispatcher allows itself is what is measured."""
    return World(server, GENEROUS, 10**12, seed=seed, latency=latency)


def simulated(world: World, limits: Limits, drive: Drive, **options: Any) -> float:
    """Seconds until the last answer."""

    async def main() -> float:
        await drive(dispatcher_for(world, limits, **options))
        return world.now()

    seconds: float = run(main)
    assert world.refused == []
    return seconds


def all_at_once(prompts: list[Prompt]) -> Drive:
    return lambda dispatcher: answer_all(dispatcher, prompts, at_once=len(prompts))


def planned(
    world: World, limits: Limits, tokens: Iterable[int], *, depth: int = 1, used_today: int = 0, workers: int = 1
) -> Timeline:
    sizes = list(tokens)
    spread = world.latency == MIXED
    latency_s = NETWORK_S + (MIXED_S if spread else world.latency[0])
    load = Load(len(sizes), sum(sizes), max(sizes), depth)
    pace = Pace(limits, latency_s, MIXED_SLOW_S if spread else latency_s + SPREAD_S, used_today, workers=workers)
    return timeline(load, pace, datetime.fromtimestamp(EPOCH + world.offset, UTC))


def compare(limits: Limits, sizes: list[int], world: World, within: float) -> Timeline:
    """The plan of a run of these prompts, if it takes the planned time."""
    plan = planned(world, limits, sizes)
    real_s = simulated(world, limits, all_at_once(documents(world, sizes)))
    assert plan.seconds == pytest.approx(real_s, rel=within)
    return plan


@pytest.mark.parametrize("seed", range(32))
def test_a_plan_of_any_limits_sizes_and_latencies_takes_the_time_of_the_dispatcher(seed: int) -> None:
    """Off by 3 % or 30 s at most where all limits are known, by 25 % or 30 s where one is to be learned."""
    choose = Random(seed)
    learns = seed % 2 == 1
    rpm, tpm = choose.choice(
        [(None, 0), (None, None), (None, 10**6), (0, None), (1000, None), (300, None)]
        if learns
        else [(15, 0), (300, 10**6), (300, 10**7), (1000, 10**6), (1000, 4 * 10**6), (5000, 10**7), (0, 10**6)]
    )
    number, mean = choose.choice([60, 300, 1000]), choose.choice([200, 2000, 8000])
    alike, mixed, tailed = [mean] * number, lognormal(number, mean, seed), heavy(number, mean, 250_000, seed)
    sizes = choose.choice([alike, mixed, tailed])
    world = world_of(choose.choice(list(SERVERS)), choose.choice([EVEN, MIXED, (20.0, 0.0)]), seed)
    plan_s = planned(world, Limits(rpm=rpm, tpm=tpm), sizes).seconds
    real_s = simulated(world, Limits(rpm=rpm, tpm=tpm), all_at_once(documents(world, sizes)))
    assert plan_s == pytest.approx(real_s, rel=0.25 if learns else 0.03, abs=30.0)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("limits", "sizes", "bound"),
    [
        (Limits(rpm=15, tpm=0), [500] * 60, "rpm"),
        (Limits(rpm=300, tpm=0), [500] * 600, "rpm"),
        (Limits(rpm=1000, tpm=10**7), [200] * 1200, "rpm"),
        (Limits(rpm=0, tpm=10**6), [5000] * 700, "tpm"),
        (Limits(rpm=1000, tpm=10**6), small(700, 5000, 1), "tpm"),
        (Limits(rpm=0, tpm=0, concurrency=4), [100] * 150, "concurrency"),
        (UNLIMITED, [100] * 700, "concurrency"),
        (UNLIMITED, [100] * 40, "latency"),
        (Limits(rpm=1000, tpm=10**6), [5000] * 150, "rpm"),  # within the first minute's tokens
    ],
)
def test_the_time_is_that_of_the_dispatcher(server: str, limits: Limits, sizes: list[int], bound: Bound) -> None:
    assert compare(limits, sizes, world_of(server), within=0.03).bound == bound


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_heavy_tail_is_within_5_percent(seed: int) -> None:
    """How well gaps are filled is chance, and it may decide whether another minute is needed."""
    sizes = heavy(1500, 8000, 350_000, seed)
    plan = compare(Limits(rpm=1000, tpm=10**6), sizes, world_of("log", MIXED, seed), within=0.05)
    assert plan.bound == "tpm"


@pytest.mark.parametrize("seed", [1, 3])
def test_both_meters_bind_alike(seed: int) -> None:
    """At first the largest of `DEPTH` prompts go and tokens bind, which leaves small ones, where requests do."""
    limits, world = Limits(rpm=1000, tpm=2 * 10**6), world_of("counter", MIXED, seed)
    sizes = lognormal(2500, 2000, seed)
    plan_s = planned(world, limits, sizes).seconds
    real_s = simulated(world, limits, all_at_once(documents(world, sizes)))
    assert 0.97 * real_s - DEPTH * spacing(1000)[1] <= plan_s <= 1.03 * real_s


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_where_in_the_service_s_minute_a_run_begins(seed: int) -> None:
    """8, 57 and 14 s after it began: half a minute's tokens come up to 30 s sooner or later."""
    compare(Limits(rpm=0, tpm=10**6), [5000] * 500, world_of(seed=seed), within=0.03)


@pytest.mark.parametrize("prompts", [64, 200, 1000, 3000])
def test_several_workers_have_more_and_more_in_flight(prompts: int) -> None:
    world = world_of()
    sizes = [100] * prompts
    plan_s = planned(world, UNLIMITED, sizes, workers=3).seconds
    real_s = simulated(world, UNLIMITED, all_at_once(documents(world, sizes)), workers=3)
    assert plan_s == pytest.approx(real_s, rel=0.05)


@pytest.mark.parametrize(
    ("latency_s", "limits", "bound"),
    [(30.0, Limits(rpm=1000, tpm=0), "rpm"), (20.0, Limits(rpm=200, tpm=0, concurrency=20), "concurrency")],
)
def test_slow_answers(latency_s: float, limits: Limits, bound: Bound) -> None:
    """With slots to be learned, the first answers are waited for; a fixed number goes in rounds."""
    assert compare(limits, [100] * 800, world_of(latency=(latency_s, 0.0)), within=0.03).bound == bound


@pytest.mark.parametrize("prompts", [2, 20, 200, 1500])
def test_unknown_requests_grow_as_the_run_lets_them(prompts: int) -> None:
    plan = compare(Limits(tpm=0), [100] * prompts, world_of(), within=0.05)
    assert plan.ungrown_s is not None
    assert plan.ungrown_s == pytest.approx((prompts - 1) * spacing(FIRST_RPM)[1] + EVEN_S + NETWORK_S, abs=0.1)


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (Limits(), [4000] * 700),
        (Limits(rpm=0), [1000] * 1300),
        (Limits(rpm=100), [8000] * 500),
        (Limits(tpm=250_000), [8000] * 300),
    ],
)
def test_unknown_tokens_grow_as_the_run_lets_them(limits: Limits, sizes: list[int]) -> None:
    compare(limits, sizes, world_of("log"), within=0.03)


@pytest.mark.parametrize("limits", [Limits(rpm=15, tpm=0), Limits(rpm=600, tpm=0), UNLIMITED])
@pytest.mark.parametrize("documents_of", [(40, 3), (1, 40), (40, 1)])
def test_what_follows_the_last_answers(limits: Limits, documents_of: tuple[int, int]) -> None:
    """Each document's reduce waits for its maps; the plan takes the longest document to begin last."""
    number, maps = documents_of
    world = world_of()
    prompts = documents(world, [300] * (number * (maps + 1)))

    async def drive(dispatcher: Dispatcher) -> None:
        async def one(document: int) -> None:
            own = prompts[document * (maps + 1) : (document + 1) * (maps + 1)]
            async with anyio.create_task_group() as group:
                for prompt in own[1:]:
                    group.start_soon(dispatcher.submit, prompt)
            await dispatcher.submit(ask(own[0].row, step="reduce", tokens=300))

        async with anyio.create_task_group() as runner:
            runner.start_soon(dispatcher.run)
            async with anyio.create_task_group() as group:
                for document in range(number):
                    group.start_soon(one, document)
            dispatcher.close()

    plan_s = planned(world, limits, [300] * len(prompts), depth=2).seconds
    real_s = simulated(world, limits, drive)
    assert 0.97 * real_s <= plan_s <= 1.03 * real_s + EVEN_S


def test_a_day_that_is_used_up_is_slept_through() -> None:
    """From 14:00 Pacific on, 400 requests a day: some today, a whole day, and the rest."""
    world = world_of()
    world.offset = 0.0
    limits = Limits(rpm=300, tpm=0, rpd=400)
    plan = planned(world, limits, [100] * 900)
    real_s = simulated(world, limits, all_at_once(documents(world, [100] * 900)), wait=True)
    assert plan.seconds == pytest.approx(real_s, abs=2.0)
    assert [day.prompts for day in plan.days] == [400, 400, 100]
    began = [at for at, _ in world.left][::400]
    assert [day.starts_at.timestamp() - EPOCH for day in plan.days] == pytest.approx(began, abs=1.0)
    assert (plan.nights, plan.bound) == (3, "rpd")


def test_a_minute_holds_whole_prompts() -> None:
    assert usable_tokens(Load(10, 10 * 300_000), 1e6) == 900_000
    assert usable_tokens(Load(10, 10 * 300_000), 100.0) == 300_000, "one goes in any case"
    assert usable_tokens(Load(10, 10_000, 300_000), 1e6) == pytest.approx(972_000)


def test_how_many_have_left_by_a_moment() -> None:
    curves = sending(Load(100, 0), Pace(Limits(rpm=60, tpm=0), 1.0), 0.0)
    assert [curves.until(seconds, 100) for seconds in (-1.0, 0.0, 1.0, 1.01, 1000.0)] == [0, 1, 1, 2, 100]
