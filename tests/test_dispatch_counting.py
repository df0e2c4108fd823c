import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import anyio
import pytest
from asking import ROUTE, ask
from vclock import run

from pipeline.dispatch.backlog import Line, Waiting
from pipeline.dispatch.counting import COUNTING_AT_ONCE, FAILURES_IN_A_ROW, LONGEST_COUNT_S, Counting, CountTokens
from pipeline.prompts import Prompt
from pipeline.records import Failure
from pipeline.targets import Target

BROKEN = Failure("transient", "server", "overloaded", http_status=503)
UNKNOWN = Failure("fatal", "invalid_request", "no such method", http_status=404)


class Asked:
    """A service that counts what `answer` says; remembers who was asked about, and when."""

    def __init__(self, answer: int | Failure, takes_s: float = 0.1) -> None:
        self.answer, self.takes_s = answer, takes_s
        self.rows: list[int] = []
        self.at_once = self.most_at_once = 0

    async def count(self, prompt: Prompt, target: Target) -> int | Failure:
        self.rows.append(prompt.row)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await anyio.sleep(self.takes_s)
        finally:
            self.at_once -= 1
        return self.answer


def counted(
    count: CountTokens | None,
    number: int,
    *,
    every_s: float = 0.0,
    beside: Callable[[Counting, list[Waiting]], Coroutine[Any, Any, object]] | None = None,
) -> tuple[list[Waiting], list[float]]:
    """That many prompts, one every so often: the prompts that came back in their order, and when they did."""

    async def main() -> tuple[list[Waiting], list[float]]:
        done: list[Waiting] = []
        times: list[float] = []

        def take_back(job: Waiting) -> None:
            done.append(job)
            times.append(anyio.current_time())
            woken.set()

        counting, woken = Counting(count, take_back, Random(1)), anyio.Event()
        line = Line(ROUTE, (), None)
        jobs = [Waiting(ask(row, tokens=1000), asyncio.Future(), line, 0.0) for row in range(number)]
        async with anyio.create_task_group() as group:
            if beside:
                group.start_soon(beside, counting, jobs)
            for job in jobs:
                counting.add(job)
                counting.start(anyio.current_time(), group)
                await anyio.sleep(every_s)
            while any(True for _ in counting):
                counting.start(anyio.current_time(), group)
                woken = anyio.Event()
                with anyio.move_on_after(1.0):
                    await woken.wait()
        return done, times

    return run(main)


def test_large_prompts_are_worth_counting_where_there_is_a_limit() -> None:
    counting = Counting(Asked(1).count, lambda job: None, Random(1))
    assert [counting.worth(tokens, 10_000) for tokens in (200, 201)] == [False, True]
    assert not counting.worth(10**9, float("inf"))
    assert not Counting(None, lambda job: None, Random(1)).worth(10**9, 10_000)


def test_every_prompt_comes_back_with_what_the_service_told() -> None:
    asked = Asked(777)
    done, _ = counted(asked.count, 20)
    assert sorted(job.prompt.row for job in done) == list(range(20))
    assert {job.exact_tokens for job in done} == {777}
    assert asked.most_at_once == COUNTING_AT_ONCE


def test_one_that_nobody_waits_for_any_more_is_not_asked_about() -> None:
    async def leave(counting: Counting, jobs: list[Waiting]) -> None:
        jobs[10].answer.cancel()

    asked = Asked(777)
    done, _ = counted(asked.count, 12, beside=leave)
    assert sorted(asked.rows) == [*range(10), 11]
    assert len(done) == 11


def test_a_count_that_hangs_is_not_waited_for() -> None:
    """Eight wait in vain; from then on one at a time finds out, and nobody waits for it."""
    asked = Asked(777, takes_s=300.0)
    done, times = counted(asked.count, 600, every_s=1.0)
    assert len(done) == 600
    assert all(job.exact_tokens is None for job in done)
    late = [took for job, time in zip(done, times, strict=True) if (took := time - job.prompt.row) > 0.01]
    assert max(late) <= LONGEST_COUNT_S + 2.1
    assert len(late) < 40
    assert len(asked.rows) <= 2 * FAILURES_IN_A_ROW + 1.2 * 600 / 60


def test_counting_goes_on_when_the_service_counts_again() -> None:
    asked = Asked(BROKEN)

    async def mend(counting: Counting, jobs: list[Waiting]) -> None:
        await anyio.sleep(100.0)
        asked.answer = 777

    done, _ = counted(asked.count, 400, every_s=1.0, beside=mend)
    assert not any(job.exact_tokens for job in done[:100])
    assert all(job.exact_tokens == 777 for job in done[200:])


def test_a_service_that_knows_no_counting_is_asked_no_more() -> None:
    asked = Asked(UNKNOWN)
    done, _ = counted(asked.count, 400, every_s=1.0)
    assert len(asked.rows) == 1
    assert [job.exact_tokens for job in done] == [None] * 400


def test_once_stopped_nothing_is_asked_and_what_was_is_given_up() -> None:
    asked = Asked(777, takes_s=300.0)

    async def stop(counting: Counting, jobs: list[Waiting]) -> None:
        await anyio.sleep(2.0)
        assert len(list(counting)) == 20
        counting.stop()
        await anyio.sleep(0.0)
        assert list(counting) == []
        assert not counting.worth(10**9, 1)
        assert anyio.current_time() == pytest.approx(2.0)

    done, _ = counted(asked.count, 20, beside=stop)
    assert len(asked.rows) == COUNTING_AT_ONCE == len(done)
    assert asked.at_once == 0


def test_a_bug_in_counting_is_not_hidden() -> None:
    async def count(prompt: Prompt, target: Target) -> int | Failure:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        counted(count, 1)
    assert caught.value.subgroup(ZeroDivisionError)
