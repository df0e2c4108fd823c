"""Who will answer how much: held to what the dispatcher does with the same ranks and limits, in virtual time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from random import Random

import anyio
import pytest
from asking import MODEL, ask
from hypothesis import given
from hypothesis import strategies as st
from servers import EPOCH
from vclock import run

from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.plan.amounts import Cell
from pipeline.plan.answerers import Answerer, joint, parts
from pipeline.plan.pace import Load, Pace
from pipeline.plan.timing import timeline
from pipeline.prompts import Prompt
from pipeline.records import Limits, Reply, Takes, Usage
from pipeline.targets import Target, ranked

TOKENS = 10


def answerer(
    name: str, limits: Limits, priority: int = 1, takes: Sequence[Takes] = (), weight: float = 0.0
) -> Answerer:
    usual = Answerer(MODEL, Pace(limits, 1.0), name, None, Decimal(1), priority, weight=weight)
    return replace(usual, takes=frozenset(takes)) if takes else usual


def answered(answerers: Sequence[Answerer], calls: int) -> tuple[list[int], float]:
    """What each answers in a run, and how long it takes."""
    one = Target("gemini", "https://example", "p", MODEL)
    targets = [
        replace(
            one,
            project=each.name,
            limits=each.limits,
            name=each.name,
            priority=each.priority,
            takes=each.takes,
            weight=each.weight,
        )
        for each in answerers
    ]
    sent: Counter[str] = Counter()

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        sent[target.name] += 1
        await anyio.sleep(1.0)
        return Reply("text", "ok", usage=Usage(TOKENS))

    async def main() -> float:
        desk = Dispatcher(send, ranked(targets), wall=lambda: EPOCH + anyio.current_time(), rng=Random(1))
        async with anyio.create_task_group() as group:
            group.start_soon(desk.run)
            async with anyio.create_task_group() as asking:
                for row in range(calls):
                    asking.start_soon(desk.submit, ask(row, tokens=TOKENS))
            took_s = anyio.current_time()
            desk.close()
        return took_s

    took_s = run(main)
    return [sent[each.name] for each in answerers], took_s


def a_minute(rpm: int, rpd: int | None = None) -> Limits:
    return Limits(rpm=rpm, tpm=0, rpd=rpd)


CASES = {
    "alike": ([answerer("a", a_minute(60)), answerer("b", a_minute(60))], 600),
    "by their limits": (
        [answerer("a", a_minute(60)), answerer("b", a_minute(240)), answerer("c", a_minute(600))],
        2_700,
    ),
    "free before paid": ([answerer("a", a_minute(60)), answerer("b", a_minute(600), 2)], 1_000),
    "all that the free one takes": ([answerer("a", a_minute(60)), answerer("b", a_minute(600), 2)], 50),
    "a day's quota, then the other": (
        [answerer("a", a_minute(600, rpd=100)), answerer("b", a_minute(600), 2, ["day_quota"])],
        900,
    ),
    "only when it is down": ([answerer("a", a_minute(300)), answerer("b", a_minute(600), 2, ["outage"])], 600),
    "by weight": ([answerer("a", a_minute(300), weight=1.0), answerer("b", a_minute(900), weight=3.0)], 1_000),
    "more than a limit allows that is yet to grow": (
        [answerer("a", Limits(None, 0)), answerer("b", a_minute(120), 2)],
        900,
    ),
    "side by side with one that is yet to grow": ([answerer("a", Limits(None, 0)), answerer("b", a_minute(120))], 900),
    "both are yet to grow": ([answerer("a", Limits(None, 0)), answerer("b", Limits(None, 0), 2)], 500),
    "tokens": ([answerer("a", Limits(0, 3_000)), answerer("b", Limits(0, 6_000))], 2_700),
}


@pytest.mark.parametrize("name", CASES)
def test_each_answers_as_much_as_is_said(name: str) -> None:
    answerers, calls = CASES[name]
    said = parts(answerers, calls, TOKENS)
    came, took_s = answered(answerers, calls)
    assert said == pytest.approx(came, rel=0.06, abs=0.03 * calls), name
    slowest = max(
        timeline(Load(round(part), round(part) * TOKENS), each.pace, datetime.fromtimestamp(EPOCH, UTC)).seconds
        for each, part in zip(answerers, said, strict=True)
    )
    assert slowest == pytest.approx(took_s, rel=0.1, abs=30.0)


limits = st.builds(Limits, rpm=st.sampled_from([None, 0, 1, 60, 6_000]), tpm=st.sampled_from([None, 0, 100, 10**6]))
several = st.lists(
    st.builds(
        lambda limits, rpd, priority, takes, weight: answerer("x", replace(limits, rpd=rpd), priority, takes, weight),
        limits,
        st.sampled_from([None, 0, 1, 500]),
        st.integers(1, 3),
        st.lists(st.sampled_from(["full", "day_quota", "outage"]), unique=True),
        st.sampled_from([0.0, 0.5, 3.0]),
    ),
    min_size=1,
    max_size=5,
)


@given(several, st.integers(1, 10**7), st.floats(0, 10**5))
def test_every_call_is_answered_once_whoever_there_is(
    answerers: list[Answerer], calls: int, mean_tokens: float
) -> None:
    said = parts(answerers, calls, mean_tokens)
    assert all(part >= 0.0 for part in said)
    assert sum(said) == pytest.approx(calls)
    joint(answerers, Cell(calls, calls * mean_tokens), None)


def test_a_quota_on_all_tokens_is_smaller_for_input() -> None:
    one = answerer("a", Limits(rpm=0, tpm=1_000, tokens="total"))
    assert joint([one], Cell(10, 100, 0, 80, 20), 50).limits.tpm == 500
    reserving = answerer("a", Limits(rpm=0, tpm=1_000, tokens="reserved"))
    assert joint([reserving], Cell(10, 100, 0, 80, 20), 90).limits.tpm == 100


@pytest.mark.parametrize(("minutes", "paid"), [(60.0, 0), (11.0, 0), (6.0, 300), (1.0, 546)])
def test_who_helps_only_to_be_in_time_answers_what_the_others_would_not(minutes: float, paid: float) -> None:
    """As `test_a_paid_target_is_asked_only_as_far_as_a_deadline_needs_it` has it of the run."""
    free, helper = answerer("a", a_minute(60)), answerer("b", a_minute(600), 2, ["deadline"])
    assert parts([free, helper], 600, TOKENS, 60.0 * minutes) == pytest.approx([600 - paid, paid], abs=12)
