"""Several targets with batches by one deadline: each is called in while its own live lane still has time for it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import anyio
import pytest
from servers import EPOCH
from test_store_latencies import asked
from vclock import run

from pipeline.plan import Plan
from pipeline.plan.bills import left_of
from pipeline.plan.laned import LanePlan
from pipeline.plan.lanes import CANCEL_S, Given, Some, plan
from pipeline.plan.latency import PRIOR
from pipeline.records import Lane, LaneChoice
from pipeline.run.course import Progress, Steering

HOUR_S = 3600.0
HALF: Mapping[Lane, float] = {"flex": 0.5, "batch": 0.5}


class Line:
    flex = (0, 0)

    def call_last(self, at: float, own: Mapping[str, float] = {}) -> None:
        return


def ended(calls: Mapping[str, int], rpm: Mapping[str, int], hours: float) -> dict[str, float]:
    """When each target has answered its calls: all wait in one batch for each, and none of these ever comes."""
    start = datetime.fromtimestamp(EPOCH, UTC)
    by = start + timedelta(hours=hours)
    plans = []
    for name, number in calls.items():
        given = Given("batch", Some(number, 60.0 * number / rpm[name], 1.0), hours * HOUR_S, HALF, PRIOR)
        plans.append(LanePlan(name, start, by, given.left, given, plan(given), None, 0.0, 0.0))
    divided = ({name: float(number) for name, number in calls.items()},)
    whole = SimpleNamespace(load=SimpleNamespace(prompts=sum(calls.values())), divided=divided)
    batches = {
        name: asked(at, target=name, lines=number, cut_at=EPOCH, asked_at=EPOCH)
        for at, (name, number) in enumerate(calls.items(), 1)
    }
    answered = dict.fromkeys(calls, 0.0)
    times: dict[str, float] = {}

    def progress() -> Progress:
        out = {name: float(state.lines) for name, state in batches.items() if state.is_waited_for}
        made = {name: answered[name] + out.get(name, 0.0) for name in calls}
        left = sum(calls.values()) - sum(made.values())
        return Progress(left, float(bool(left)), made, {}, None)

    async def main() -> None:
        steering = Steering(
            plans,
            cast(Plan, whole),
            progress,
            lambda: list(batches.values()),
            lambda name: PRIOR,
            lambda event: None,
            wall=lambda: EPOCH + anyio.current_time(),
        )

        async def called_in(name: str) -> None:
            number = batches[name].number
            await anyio.sleep(1.0)
            while anyio.current_time() < steering.course.call_of(number):  # noqa: ASYNC110 -- it moves
                await anyio.sleep(10.0)
            batches[name] = replace(batches[name], cancelling=True)
            await anyio.sleep(CANCEL_S)
            batches[name] = replace(batches[name], released=True)
            steering.batch_over()
            while answered[name] < calls[name]:
                await anyio.sleep(10.0)
                answered[name] += rpm[name] / 6.0
            times[name] = anyio.current_time()

        async with anyio.create_task_group() as group:
            group.start_soon(steering.keep, Line(), lambda: None, None)
            async with anyio.create_task_group() as all_of_them:
                for name in calls:
                    all_of_them.start_soon(called_in, name)
            group.cancel_scope.cancel()

    run(main)
    return times


@pytest.mark.parametrize(
    ("calls", "rpm"),
    [
        ({"fast": 3000, "slow": 1500}, {"fast": 600, "slow": 20}),
        ({"slow": 1500, "fast": 3000}, {"fast": 600, "slow": 20}),
        ({"fast": 20_000, "slow": 200, "slower": 100}, {"fast": 600, "slow": 2, "slower": 1}),
    ],
)
def test_where_no_batch_ever_comes_every_target_is_in_time(calls: dict[str, int], rpm: dict[str, int]) -> None:
    times = ended(calls, rpm, 4.0)
    assert times.keys() == calls.keys() and max(times.values()) <= 4.0 * HOUR_S
    # The fast one waits for its batch while the slow one is at work already.
    needs = {name: 60.0 * calls[name] / rpm[name] for name in calls}
    assert times["fast"] - needs["fast"] > times["slow"] - needs["slow"]


def test_what_is_left_is_each_targets_own() -> None:
    parts = {"fast": 900.0, "slow": 100.0}
    assert left_of(parts, {"fast": 900.0}, 100.0) == {"fast": 0.0, "slow": 100.0}
    assert left_of(parts, {"fast": 950.0}, 50.0) == {"fast": 0.0, "slow": 50.0}  # it did some of the other's
    assert left_of(parts, {}, 500.0) == {"fast": 450.0, "slow": 50.0}  # the cache had half
    assert left_of(parts, {"fast": 900.0, "slow": 100.0}, 10.0) == {"fast": 9.0, "slow": 1.0}  # more than was planned
    assert left_of({"": 10.0}, {"": 4.0}, 6.0) == {"": 6.0}


def test_each_target_has_its_share_of_a_rule_in_batch() -> None:
    start = datetime.fromtimestamp(EPOCH, UTC)
    plans = []
    several: list[tuple[str, int, LaneChoice]] = [("few", 10, "batch"), ("many", 10_000, "auto")]
    for name, number, mode in several:
        live_s = 600.0 if name == "few" else 5.0 * HOUR_S
        given = Given(mode, Some(number, live_s, 1.0), 8.0 * HOUR_S, HALF, PRIOR)
        plans.append(LanePlan(name, start, start + timedelta(hours=8), given.left, given, plan(given), None, 0.0, 0.0))
    few, many = (each.lanes for each in plans)
    assert few.batch == 1.0 > many.batch > 0.0
    divided = ({each.target: each.given.left.prompts for each in plans}, {"many": 0.0, "none": 0.0})
    whole = cast(Plan, SimpleNamespace(load=SimpleNamespace(prompts=10_010), divided=divided))

    async def main() -> None:
        course = Steering(
            plans, whole, lambda: Progress(0, 0, {}, {}, None), list, lambda name: PRIOR, lambda event: None
        ).course
        shares = {"few": pytest.approx(10 / 10_010), "many": pytest.approx(10_000 / 10_010 * many.batch)}
        assert list(course.shares) == [shares, {}]
        assert many.batch_call_s and few.batch_call_s and many.batch_call_s < few.batch_call_s
        assert course.last_call == pytest.approx(many.batch_call_s)

    run(main)
