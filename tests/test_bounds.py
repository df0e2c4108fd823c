"""Why a run was not faster: each cause is named where it is the one."""

import sys
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import anyio
import pytest
from asking import UNLIMITED, ask, dispatcher_of
from hypothesis import given
from hypothesis import strategies as st
from servers import World, answer_all, dispatcher_for, documents
from vclock import run

from pipeline.dispatch.bounds import Bounds
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.prompts import Prompt
from pipeline.quota.standing import Bound, QuotaStanding
from pipeline.records import Failure, Limits, Reply, Usage
from pipeline.run.bounds import Bounded

BROKEN = Failure("transient", "server", "overloaded", http_status=503)
OTHERS: dict[str, Any] = {
    "rpm": 10**9,
    "tpm": 10**12,
    "latency": (0.5, 0.1),
}  # no limits, and no long wait for the last answer
CAUSES: list[Bound] = ["rpm", "tpm", "rpd", "slots", "budget", "server", "source"]


def bound(
    limits: Limits,
    *,
    tokens: int = 100,
    prompts: int = 200,
    world: Mapping[str, Any] = {},
    every_s: float = 0.0,
    **options: Any,
) -> dict[str, float]:
    """Shares of the time of a dispatcher by what it waited for, until all is answered; one prompt every so often."""

    async def main() -> dict[str, float]:
        served = World("fixed", **(OTHERS | dict(world)))
        dispatcher = dispatcher_for(served, limits, **options)
        asked = documents(served, [tokens] * prompts, noise=0.0)
        if every_s:
            async with anyio.create_task_group() as group:
                group.start_soon(dispatcher.run)
                for each in asked:
                    group.start_soon(dispatcher.submit, each)
                    await anyio.sleep(every_s)
                dispatcher.close()
        else:
            await answer_all(dispatcher, asked)
        (standing,) = dispatcher.standing
        total = sum(standing.bound_s.values())
        assert total == pytest.approx(anyio.current_time(), rel=0.01), "every second has a cause"
        return {cause: seconds / total for cause, seconds in standing.bound_s.items()}

    return run(main)


def down_until(seconds: float) -> Callable[[float], Failure | None]:
    return lambda now: BROKEN if now < seconds else None


@pytest.mark.parametrize(
    ("cause", "limits", "options"),
    [
        ("rpm", Limits(rpm=30, tpm=0), {}),
        ("rpm", Limits(rpm=600, tpm=0), {"prompts": 1_500, "world": {"rpm": 600}}),
        ("tpm", Limits(rpm=0, tpm=20_000), {"tokens": 3_000, "world": {"tpm": 20_000}}),
        ("tpm", Limits(rpm=1_000, tpm=20_000), {"tokens": 3_000, "world": {"rpm": 1_000, "tpm": 20_000}}),
        ("rpd", Limits(rpm=0, tpm=0, rpd=60), {"wait": True}),
        ("slots", Limits(rpm=0, tpm=0, concurrency=3), {"prompts": 400}),
        ("server", UNLIMITED, {"prompts": 20, "world": {"fault": down_until(900.0)}}),
        ("source", UNLIMITED, {"every_s": 7.0, "prompts": 50}),
    ],
)
def test_a_run_that_one_thing_holds_up_says_so(cause: str, limits: Limits, options: dict[str, Any]) -> None:
    shares = bound(limits, **options)
    assert shares[cause] >= 0.95, shares


def test_a_cap_that_lets_few_calls_leave_at_once_is_what_holds_a_run_up() -> None:
    dispatchers: list[Dispatcher] = []

    def admit(prompt: Prompt, target: object) -> bool:
        return dispatchers[0].in_flight < 2

    async def main() -> Mapping[str, float]:
        async def send(prompt: Prompt) -> Reply:
            await anyio.sleep(3.0)
            return Reply("text", "ok", usage=Usage(prompt.input_tokens_est))

        dispatchers.append(dispatcher_of(send, UNLIMITED, admit=admit, rng=Random(1)))
        await answer_all(dispatchers[0], [ask(row) for row in range(100)])
        return dispatchers[0].standing[0].bound_s

    shares = run(main)
    assert shares["budget"] >= 0.95 * sum(shares.values()), shares


@given(st.lists(st.tuples(st.sampled_from([*CAUSES, None]), st.integers(0, 100)), max_size=30))
def test_no_second_is_counted_twice_or_lost(turns: list[tuple[Bound | None, int]]) -> None:
    bounds, now, counted = Bounds(), 0, 0
    for cause, seconds in turns:
        bounds.turn(cause, now)
        now += seconds
        counted += seconds if cause else 0
        assert sum(bounds.seconds(now).values()) == counted


def standing(**bound_s: float) -> list[QuotaStanding]:
    return [QuotaStanding("main", None, None, None, 0, 64, "", None, bound_s)]


def test_a_process_that_computes_all_the_time_is_its_own_limit() -> None:
    used = [0.0]
    bounded = Bounded(0.0, lambda: used[0])
    assert bounded.look(standing(source=1.0, rpm=1.0), 2.0, only_batches=False) == {"source": 1.0, "rpm": 1.0}
    used[0] = 1.9
    told = bounded.look(standing(source=2.0, slots=1.0, rpm=1.0), 4.0, only_batches=False)
    assert told == {"cpu": 2.0, "source": 1.0, "rpm": 1.0}, "it is so only in the time when it computed"
    used[0] = 3.8
    told = bounded.look(standing(source=2.0, slots=1.0, rpm=3.0), 6.0, only_batches=False)
    assert told == {"rpm": 3.0, "cpu": 2.0, "source": 1.0}, "a limit holds a run up however much is computed"


def test_a_target_that_is_asked_after_another_does_not_say_that_there_is_no_work() -> None:
    bounded = Bounded(0.0, lambda: 0.0)
    assert bounded.look([*standing(rpm=2.0), *standing(source=2.0)], 2.0, only_batches=False) == {"rpm": 2.0}
    told = bounded.look([*standing(rpm=3.9, source=0.1), *standing(tpm=2.0, source=2.0)], 4.0, only_batches=False)
    assert told == {"rpm": 3.9, "tpm": 2.0, "source": 0.1}
    told = bounded.look([*standing(rpm=3.9, source=2.1), *standing(tpm=2.0, source=4.0)], 6.0, only_batches=False)
    assert told["source"] == 4.1, "nobody has"


def test_what_waits_in_batches_is_not_said_to_want_work() -> None:
    bounded = Bounded(0.0, lambda: 0.0)
    bounded.look(standing(source=5.0), 5.0, only_batches=False)
    assert bounded.look(standing(source=3_600.0), 3_600.0, only_batches=True) == {"batches": 3_595.0, "source": 5.0}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a busy machine is not told from a free one")
def test_to_wait_for_a_cpu_that_others_have_is_to_be_held_up_by_this_machine() -> None:
    began = time.time()
    bounded = Bounded(began)
    while time.time() - began < 0.1:
        pass
    passed_s = time.time() - began
    assert bounded.look(standing(source=passed_s), began + passed_s, only_batches=False).keys() == {"cpu"}
