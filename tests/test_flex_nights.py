"""Flex under the planner of lanes: by the deadline all is answered, at half the price as far as flex has room."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import cast

import anyio
import pytest
from servers import EPOCH
from test_dispatch_flex import NO_ROOM, SHED, Service
from vclock import run

from pipeline.dispatch.desk import Tries
from pipeline.plan import Plan
from pipeline.plan.laned import LanePlan
from pipeline.plan.lanes import Given, Some, plan
from pipeline.plan.latency import PRIOR
from pipeline.prompts import Prompt
from pipeline.records import FLEX_S, Failure, Limits, Reply, Usage
from pipeline.run.course import Progress, Steering
from pipeline.targets import Target

HOUR_S = 3600.0


@dataclass
class Night(Service):
    """Serves a share of flex that changes with the time; some that are turned away have waited a quarter of an hour."""

    share: Callable[[float], float] = lambda now: 0.5
    hangs: float = 0.2
    rng: Random = field(default_factory=lambda: Random(1))

    async def send(self, prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        now = anyio.current_time()
        self.asked.append((now, prompt.row, target.lane))
        if target.lane == "flex" and self.rng.random() >= self.share(now):
            await anyio.sleep(FLEX_S if self.rng.random() < self.hangs else self.rng.uniform(0.1, 30.0))
            return self.rng.choice([SHED, NO_ROOM])
        await anyio.sleep(self.rng.uniform(1.0, 40.0) if target.lane == "flex" else self.rng.uniform(0.5, 5.0))
        self.finished[prompt.row] = anyio.current_time()
        return Reply("text", "ok", usage=Usage(prompt.input_tokens_est), lane=target.lane)


def night(service: Night, rows: int, rpm: int, hours: float) -> Counter[str]:
    """All rows by a deadline in so many hours, steered as a run is; calls by the lane that served them."""
    lanes = Counter[str]()
    start = datetime.fromtimestamp(EPOCH, UTC)
    live_s, by = 60.0 * rows / rpm, start + timedelta(hours=hours)
    given = Given("flex", Some(rows, live_s, 1.0), hours * HOUR_S, {"flex": 0.5}, PRIOR)
    first = LanePlan("", start, by, given.left, given, plan(given), None, float(rows), 0.5)
    made = cast(
        Plan,
        SimpleNamespace(
            load=SimpleNamespace(prompts=rows), divided=({"": float(rows)},), timeline=SimpleNamespace(seconds=live_s)
        ),
    )

    async def main() -> None:
        from asking import ask

        dispatcher = service.dispatcher(limits=Limits(rpm=rpm, tpm=0))
        steering = Steering(
            [first],
            made,
            lambda: Progress(rows - len(service.finished), 0.0, {"": len(service.finished)}, {}, None),
            list,
            lambda name: PRIOR,
            lambda event: None,
            wall=lambda: EPOCH + anyio.current_time(),
        )
        numbers = iter(range(rows))

        async def some() -> None:
            for row in numbers:
                reply = await dispatcher.submit(ask(row, tokens=100))
                assert reply.status == "ok" and reply.attempts == 1
                lanes[reply.lane] += 1

        async with anyio.create_task_group() as group:
            group.start_soon(steering.keep, dispatcher, lambda: None, None)
            async with anyio.create_task_group() as running:
                running.start_soon(dispatcher.run)
                async with anyio.create_task_group() as documents:
                    for _ in range(2560):
                        documents.start_soon(some)
                dispatcher.close()
            group.cancel_scope.cancel()

    run(main)
    assert len(service.finished) == rows and max(service.finished.values()) <= hours * HOUR_S
    return lanes


def test_a_night_in_which_half_is_served_is_all_in_flex() -> None:
    assert night(Night(), 3000, 600, 8.0) == {"flex": 3000}


@pytest.mark.parametrize("hours", [0.25, 2.0, 8.0])
def test_a_night_in_which_nothing_is_served_is_all_in_standard_and_in_time(hours: float) -> None:
    service = Night(share=lambda now: 0.0)
    assert night(service, 3000, 600, hours) == {"standard": 3000}
    # In a quarter of an hour there is no time for one that waits in vain.
    assert any(lane == "flex" for _, _, lane in service.asked) == (hours > 0.5)


def test_flex_that_is_served_from_midnight_on_is_waited_for() -> None:
    lanes = night(Night(share=lambda now: 0.9 if now > 4 * HOUR_S else 0.0), 3000, 600, 8.0)
    assert lanes["flex"] == 3000


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.long if n >= 2 else ()) for n in range(30)])
def test_whatever_flex_does_the_night_ends_in_time(seed: int) -> None:
    rng = Random(seed)
    changes = sorted(rng.uniform(0.0, 4.0) * HOUR_S for _ in range(5))
    shares = [rng.choice([0.0, 0.05, 0.3, 0.7, 1.0]) for _ in range(6)]

    def share(now: float) -> float:
        return shares[sum(now > at for at in changes)]

    rows, rpm = rng.choice([(400, 60), (3000, 300), (6000, 600)])
    night(Night(share=share, hangs=rng.random(), rng=rng), rows, rpm, rng.choice([0.75, 1.5, 4.0]))
