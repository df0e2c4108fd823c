"""Four ways to count a quota, nobody knows which: how much of it is used, and how often the service says no.

One seed for each server and row here; all seeds at full length with `-m long`.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from servers import SERVERS, World, answer_all, dispatcher_for, documents, heavy, lognormal, small
from vclock import run

from pipeline.dispatch import Dispatcher
from pipeline.errors import Halted, QuotaExhausted
from pipeline.records import Limits, Prompt, Reply

SEEDS = (1, 2, 3)


@dataclass
class Outcome:
    world: World
    dispatcher: Dispatcher
    replies: list[Reply]
    events: list[tuple[float, str, dict[str, object]]] = field(default_factory=list)


def cases(function: Callable[..., None]) -> Callable[..., None]:
    """Every server: with one seed and a short run, or (`long`) with each seed and a run of full length."""
    quick = [pytest.param(server, SEEDS[n % 3], False, id=f"{server}") for n, server in enumerate(SERVERS)]
    full = [
        pytest.param(server, seed, True, id=f"{server}-{seed}-full", marks=pytest.mark.long)
        for server in SERVERS
        for seed in SEEDS
    ]
    return pytest.mark.parametrize(("server", "seed", "full"), quick + full)(function)


def dispatch(
    world: World,
    prompts: list[Prompt],
    limits: Limits,
    *,
    at_once: int = 1000,
    beside: Callable[[World], Awaitable[None]] | None = None,
    **options: Any,
) -> Outcome:
    """Answer all prompts and check what must hold in every run."""

    async def main() -> Outcome:
        events: list[tuple[float, str, dict[str, object]]] = []
        dispatcher = dispatcher_for(
            world, limits, on_event=lambda kind, fields: events.append((world.now(), kind, fields)), **options
        )
        async with anyio.create_task_group() as group:
            if beside is not None:
                group.start_soon(beside, world)
            replies = await answer_all(dispatcher, prompts, at_once=at_once)
            group.cancel_scope.cancel()
        return Outcome(world, dispatcher, replies, events)

    outcome = run(main)
    dispatcher = outcome.dispatcher
    assert dispatcher._quota.ledger.in_flight() == (0, 0), "every reservation is settled or released"
    assert dispatcher.sent == len(world.left) == dispatcher.attempts + dispatcher.rate_limited
    assert dispatcher.rate_limited == len(world.refused)
    assert dispatcher.in_flight == dispatcher.ready == 0
    return outcome


def assert_kept(outcome: Outcome, prompts: list[Prompt], limits: Limits) -> None:
    """All answered, nothing refused, and no 60 s above the limits wherever they begin."""
    assert Counter(reply.status for reply in outcome.replies) == {"ok": len(prompts)}
    assert outcome.world.refused == []
    requests, tokens = outcome.world.most_in_a_window()
    assert requests <= limits.rpm
    assert tokens <= limits.tpm


@cases
def test_requests_bind(server: str, seed: int, full: bool) -> None:
    limits = Limits(rpm=1000, tpm=10_000_000)
    world = World(server, 1000, 10_000_000, seed=seed)
    prompts = documents(world, small(20_000 if full else 3000, 200, seed))
    outcome = dispatch(world, prompts, limits)
    assert_kept(outcome, prompts, limits)
    assert world.steady(skip_s=30.0) >= 0.99


@cases
@pytest.mark.parametrize("bias", [0.7, 1.3])
def test_heavy_tailed_documents_estimated_wrong(server: str, seed: int, full: bool, bias: float) -> None:
    limits = Limits(rpm=1000, tpm=1_000_000)
    world = World(server, 1000, 1_000_000, seed=seed)
    prompts = documents(world, heavy(8000 if full else 2000, 8000, 350_000, seed), bias=bias)
    outcome = dispatch(world, prompts, limits)
    assert_kept(outcome, prompts, limits)
    assert world.steady() >= (0.96 if full else 0.94)  # a short run ends up to 3 % off by where its largest fall


@cases
def test_free_tier(server: str, seed: int, full: bool) -> None:
    world = World(server, 15, 1_000_000, seed=seed)
    prompts = documents(world, small(200, 500, seed))
    outcome = dispatch(world, prompts, Limits(rpm=15, tpm=1_000_000))
    assert Counter(reply.status for reply in outcome.replies) == {"ok": 200}
    if server == "counter":  # one request must stay in reserve against it; learned from one refusal
        assert len(world.refused) <= 2
        assert world.steady() >= 0.92
    else:
        assert world.refused == []
        assert world.steady() >= 0.99


@cases
def test_high_limits(server: str, seed: int, full: bool) -> None:
    limits = Limits(rpm=2000, tpm=4_000_000)
    world = World(server, 2000, 4_000_000, seed=seed)
    prompts = documents(world, lognormal(20_000 if full else 4000, 1500, seed))
    outcome = dispatch(world, prompts, limits)
    assert_kept(outcome, prompts, limits)
    assert world.steady(skip_s=20.0) >= 0.99


@cases
@pytest.mark.parametrize("order", ["random", "sorted"])
def test_both_meters_bind(server: str, seed: int, full: bool, order: str) -> None:
    limits = Limits(rpm=1000, tpm=2_000_000)
    world = World(server, 1000, 2_000_000, seed=seed)
    count = 12_000 if full else 4000
    sizes = lognormal(count, 2000, seed)
    prompts = documents(world, sorted(sizes) if order == "sorted" else sizes)
    outcome = dispatch(world, prompts, limits, at_once=count if order == "sorted" else 1000)
    assert_kept(outcome, prompts, limits)
    assert world.dispatched() >= 0.95


@cases
@pytest.mark.parametrize("names_limit", [True, False])
def test_the_true_limit_is_lower(server: str, seed: int, full: bool, names_limit: bool) -> None:
    world = World(server, 600, 10_000_000, seed=seed, names_limit=names_limit)
    prompts = documents(world, small(9000 if full else 3600, 100, seed))
    outcome = dispatch(world, prompts, Limits(rpm=1000, tpm=10_000_000))
    assert Counter(reply.status for reply in outcome.replies) == {"ok": len(prompts)}
    first = [at for at, _ in world.refused if at < world.refused[0][0] + 1.0]
    assert len(first) <= 5  # those on their way when the first came back: 3.4 in the mean, by rate and round trip
    if names_limit:
        assert len(world.refused) == len(first)
    else:  # a fixed window that ended in between misleads once; a probe every ten minutes is refused
        assert len(world.refused) <= 12
    assert world.steady() >= (0.97 if names_limit else 0.94)
    assert outcome.dispatcher.limits.rpm <= (600 if names_limit else 700)


@cases
def test_somebody_else_takes_40_percent_for_ten_minutes(server: str, seed: int, full: bool) -> None:
    rpm = 1000 if full else 250
    world = World(server, rpm, 10_000_000, seed=seed, names_limit=True)
    prompts = documents(world, small(16 * rpm, 100, seed))
    lost = []

    async def somebody(world: World) -> None:
        await anyio.sleep(300.0)
        while world.now() < 900.0:
            await anyio.sleep(world.rng.expovariate(0.4 * rpm / 60.0))
            meter, t = world.meters["requests"], world.clock()
            if meter.delay(t, 1) > 0:
                lost.append(t)
            else:
                meter.add(t, 1)

    dispatch(world, prompts, Limits(rpm=rpm, tpm=10_000_000), beside=somebody)

    def rate(begin: float, end: float) -> float:
        return sum(begin < at <= end for at, _ in world.admitted) / (end - begin) * 60.0 / rpm

    assert 1 <= len(world.refused) <= 48
    assert rate(60.0, 300.0) >= 0.98
    assert rate(300.0, 900.0) >= (0.5 if full else 0.45)
    assert rate(900.0, 1200.0) >= 0.6


@cases
def test_the_day_ends_in_mid_run(server: str, seed: int, full: bool) -> None:
    """The service counts 900 a day and we believe 2,000: one refusal, what is in flight is kept, the run stops."""
    world = World(server, 1000, 10_000_000, rpd=900, seed=seed)
    prompts = documents(world, small(2000, 100, seed))
    replies: list[Reply] = []
    reasons: list[object] = []

    async def main() -> Dispatcher:
        dispatcher = dispatcher_for(world, Limits(rpm=1000, tpm=10_000_000, rpd=2000))
        source = iter(prompts)

        async def submit_some() -> None:
            try:
                for prompt in source:
                    replies.append(await dispatcher.submit(prompt))
            except Halted as halted:
                reasons.append(halted.reason)

        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.run)
            for _ in range(500):
                group.start_soon(submit_some)
        return dispatcher

    dispatcher = run(main)
    assert len(replies) == len(world.admitted) == 900
    assert {type(reason) for reason in reasons} == {QuotaExhausted}
    assert 1 <= len(world.refused) <= 10  # those on their way when the first came back
    assert dispatcher._quota.ledger.in_flight() == (0, 0)


@cases
def test_a_day_that_we_count_ourselves_is_never_refused(server: str, seed: int, full: bool) -> None:
    world = World(server, 1000, 10_000_000, rpd=700, seed=seed)
    prompts = documents(world, small(700, 100, seed))
    dispatch(world, prompts, Limits(rpm=1000, tpm=10_000_000, rpd=700))
    assert world.refused == []


@cases
@pytest.mark.parametrize("names_limit", [True, False])
def test_nothing_configured(server: str, seed: int, full: bool, names_limit: bool) -> None:
    world = World(server, 1000, 1_000_000, seed=seed, names_limit=names_limit)
    prompts = documents(world, small(12_000 if full else 4000, 100, seed))
    outcome = dispatch(world, prompts, Limits())
    found_at = world.refused[0][0]
    assert found_at < 300.0
    assert len(world.refused) <= (12 if names_limit and server != "bucket" else 25)
    assert outcome.dispatcher.limits.rpm >= 700
    if names_limit:
        assert outcome.dispatcher.limits.rpm == 1000


@cases
def test_a_restart_in_the_same_minute_breaks_nothing(server: str, seed: int, full: bool, tmp_path: Any) -> None:
    """Three runs, cut off and begun again at once, with what the book remembers."""
    from pipeline.quota.book import QuotaBook

    world = World(server, 600, 300_000, seed=seed)
    prompts = documents(world, lognormal(1500, 500, seed))
    source = iter(prompts)

    async def main() -> None:
        for seconds in (37.0, 41.0, None):
            with QuotaBook(tmp_path / "book", "m") as book, anyio.move_on_after(seconds or 10_000.0):
                await answer_all(dispatcher_for(world, Limits(rpm=600, tpm=300_000), book=book), source)

    run(main)
    assert world.refused == []
    requests, tokens = world.most_in_a_window()
    assert requests <= 600
    assert tokens <= 300_000


@cases
def test_two_runs_share_one_quota(server: str, seed: int, full: bool, tmp_path: Any) -> None:
    from pipeline.quota.book import QuotaBook

    world = World(server, 600, 300_000, seed=seed)
    prompts = documents(world, lognormal(3000, 500, seed))
    halves = prompts[:2000], prompts[2000:]
    limits = Limits(rpm=600, tpm=300_000)

    async def one(begin_s: float, part: list[Prompt]) -> None:
        await anyio.sleep(begin_s)
        with QuotaBook(tmp_path / "book", "m") as book:
            await answer_all(dispatcher_for(world, limits, book=book), part)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(one, 0.0, halves[0])
            group.start_soon(one, 65.0, halves[1])

    run(main)
    assert len(world.refused) <= 2
    assert world.dispatched() >= 0.88


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in SEEDS[1:])])
def test_a_date_that_does_not_tell_when_the_minute_begins_is_soon_distrusted(seed: int) -> None:
    """A sliding-window counter whose minute begins half a minute from where the Date header says."""
    world = World("counter", 1000, 1_000_000, seed=seed, date_error_s=30.0, names_limit=True)
    prompts = documents(world, heavy(2500, 8000, 350_000, seed))
    outcome = dispatch(world, prompts, Limits(rpm=1000, tpm=1_000_000))
    assert Counter(reply.status for reply in outcome.replies) == {"ok": len(prompts)}
    assert len(world.refused) <= 25
    assert world.steady() >= 0.88


def test_a_learned_limit_is_told_and_kept_for_the_next_run(tmp_path: Any) -> None:
    from pipeline.quota.book import QuotaBook

    limits = Limits(rpm=1000, tpm=10_000_000)
    refusals, told = [], []
    for seed in (1, 2):
        world = World("log", 600, 10_000_000, seed=seed, names_limit=True)
        with QuotaBook(tmp_path / "book", "m") as book:
            outcome = dispatch(world, documents(world, small(1200, 100, seed)), limits, book=book)
        refusals.append(len(world.refused))
        told.append([(fields["per_minute"], fields["origin"]) for _, kind, fields in outcome.events if kind == "limit"])
    assert refusals[0] >= 1
    assert refusals[1] == 0
    assert told == [[(600, "measured")], [(600, "learned")]]
