"""Which lane what is left goes to: the deadline holds whatever batches do, at the least cost."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest

from pipeline.plan.lanes import (
    AUTO_S,
    CANCEL_S,
    PATIENCE_S,
    PLANNED_S,
    Given,
    Out,
    Some,
    margin_s,
    plan,
)
from pipeline.plan.latency import Latency, Seen, learned
from pipeline.records import Lane, LaneChoice

HOUR_S = 3600.0
HALF: Mapping[Lane, float] = {"flex": 0.5, "batch": 0.5}
FACTORS: tuple[Mapping[Lane, float], ...] = (HALF, {"batch": 0.5}, {"flex": 0.5}, {})
KNOWN = 10**6  # flex requests, so many that what was assumed before counts no more


def given(hours: float, live_hours: float, served: float = 0.5, lost: float = 1.0, mode: LaneChoice = "auto") -> Given:
    return Given(
        mode,
        Some(20_000, live_hours * HOUR_S, 40.0),
        hours * HOUR_S,
        HALF,
        Latency(),
        KNOWN,
        round(served * KNOWN),
        lost,
    )


@pytest.mark.parametrize(
    ("hours", "live_hours", "served", "lost", "cost", "batch"),
    [
        (10, 1, 0.0, 0, 0.58, (1.0, 1.0)),
        (10, 1, 0.0, 1, 0.64, (1.0, 1.0)),
        (10, 1, 0.5, 0, 0.50, (0.0, 0.0)),
        (10, 6, 0.5, 0, 0.54, (0.35, 0.50)),
        (10, 6, 0.5, 1, 0.57, (0.35, 0.50)),
        (10, 9, 0.0, 0, 0.67, (0.9, 1.0)),
        (10, 9, 0.0, 1, 0.81, (0.75, 0.95)),
        (2, 1, 0.5, 0, 0.56, (0.1, 0.5)),
        (2, 1, 0.5, 1, 0.61, (0.0, 0.1)),
    ],
)
def test_the_cheapest_share_in_batch(
    hours: float, live_hours: float, served: float, lost: float, cost: float, batch: tuple[float, float]
) -> None:
    """The cases of the design; one last call after the other saves up to 12 % of what one for all batches costs."""
    made = plan(given(hours, live_hours, served, lost))
    assert made.cost.expected == pytest.approx(cost, abs=0.01)
    assert batch[0] <= made.batch <= batch[1]
    assert made.cost.low <= made.cost.expected <= made.cost.high
    assert made.in_time == made.chance == 1.0


def test_flex_is_taken_where_it_is_served_and_the_quota_carries_it() -> None:
    made = plan(given(10, 1, served=1.0))
    assert (made.batch, made.flex, made.standard) == pytest.approx((0.0, 1.0, 0.0))
    assert made.cost.expected == pytest.approx(0.5) and made.batch_call_s is None
    assert made.flex_call_s == pytest.approx(10 * HOUR_S - margin_s(10 * HOUR_S, HOUR_S) - HOUR_S)


def test_without_any_time_to_spare_all_goes_to_the_standard_lane() -> None:
    tight = given(10, 9.9, mode="flex")
    assert plan(tight).standard == 1.0


def test_the_deadline_holds_though_no_batch_ever_comes() -> None:
    """Each last call leaves the live lanes enough time for what is called in by then, and for their own."""
    rng = Random(3)
    looked_at = 0
    for _ in range(200):
        case = random_case(rng)
        out_s = sum(one.some.live_s for one in case.out)
        within_s = (case.within_s or 0.0) - margin_s(case.within_s or 0.0, case.left.live_s + out_s)
        if case.left.live_s + out_s > within_s:
            continue
        looked_at += 1
        made = plan(case)
        assert made.in_time == 1.0
        live_s = case.left.live_s * (1.0 - made.batch)
        if made.batch:
            assert made.batch_call_s is not None
            assert live_s <= made.batch_call_s + CANCEL_S + 1e-6
            assert made.batch_call_s + CANCEL_S + case.left.live_s * made.batch + out_s <= within_s + 1e-6
        if made.flex_call_s:
            assert made.flex_call_s + case.left.live_s + out_s <= within_s + 1e-6
        still_s = 0.0
        for call in reversed(made.calls):
            still_s += next(one.some.live_s for one in case.out if one.number == call.number)
            assert call.at_s == 0.0 or call.at_s + CANCEL_S + still_s <= within_s + 1e-6
        assert [call.number for call in made.calls] != [] or not case.out
    assert looked_at > 50


def random_case(rng: Random) -> Given:
    hours = rng.uniform(0.2, 30)
    live_s = rng.uniform(0, 1) * hours * HOUR_S
    outs = tuple(
        Out(number, Some(100, rng.uniform(0, 0.1) * hours * HOUR_S, 1.0), rng.uniform(0, 10) * HOUR_S)
        for number in range(rng.randrange(4))
    )
    return Given(
        rng.choice(("standard", "flex", "batch", "auto")),
        Some(1_000, live_s, 10.0),
        hours * HOUR_S,
        rng.choice(FACTORS),
        learned([Seen(rng.uniform(0, 20) * HOUR_S, "done") for _ in range(rng.randrange(30))]),
        200,
        rng.randrange(201),
        rng.random(),
        rng.random(),
        rng.choice((0.0, live_s / 7, live_s, 1e9)),
        rng.random() < 0.5,
        outs,
    )


def test_a_plan_of_anything_is_one() -> None:
    rng = Random(8)
    for _ in range(60):
        case = random_case(rng)
        for within_s in (case.within_s, None, 0.0, -5.0, 30.0):
            made = plan(replace(case, within_s=within_s))
            shares = (made.batch, made.flex, made.standard)
            assert all(0.0 <= share <= 1.0 for share in shares) and sum(shares) == pytest.approx(1.0)
            assert made.batch <= 1.0 - case.fallen + 1e-9
            assert made.cost.low <= made.cost.expected + 1e-9 and made.cost.expected <= made.cost.high + 1e-9
            assert 0.0 <= made.in_time <= 1.0 and 0.0 <= made.chance <= 1.0
            assert {call.number for call in made.calls} <= {one.number for one in case.out}


# ---- what the job asks for


def test_standard_is_standard() -> None:
    made = plan(given(10, 1, mode="standard"))
    assert (made.standard, made.cost.expected, made.batch_call_s, made.flex_call_s) == (1.0, 1.0, None, 0.0)


def test_the_lane_flex_has_no_batch() -> None:
    made = plan(given(10, 6, served=0.5, mode="flex"))
    assert made.batch == 0.0 and made.flex == pytest.approx(0.589, abs=0.01)


def test_without_a_deadline_flex_is_asked_three_times_and_never_called_in() -> None:
    made = plan(replace(given(10, 1, mode="flex"), within_s=None))
    assert made.flex_call_s is None
    assert made.flex == pytest.approx(1 - 0.5**3) and made.cost.expected == pytest.approx(0.5 + 0.5 * 0.5**3)
    assert (made.cost.low, made.cost.high) == (0.5, 1.0)


def test_the_lane_batch_takes_all_that_can_be_called_in_without_costing_more_than_standard() -> None:
    assert plan(given(10, 6, served=1.0, mode="batch")).batch == 1.0
    assert plan(given(10, 9.1, served=0.0, lost=0.0, mode="batch")).batch > 0.9
    assert 0.7 < plan(given(10, 9.1, served=0.0, lost=1.0, mode="batch")).batch < 0.9
    assert plan(given(1.5, 1, served=0.0, lost=1.0, mode="batch")).batch == 0.0


def test_the_lane_batch_without_a_deadline_waits() -> None:
    asked = replace(given(10, 30, mode="batch"), within_s=None, out=(Out(3, Some(10, 60.0, 1.0), 25 * HOUR_S),))
    made = plan(asked)
    assert made.batch == 1.0 and made.batch_call_s == PATIENCE_S
    assert [(call.number, call.at_s) for call in made.calls] == [(3, HOUR_S)]


def test_auto_without_a_deadline_has_a_day() -> None:
    asked = given(10, 6, served=0.2)
    assert plan(replace(asked, within_s=None)) == plan(replace(asked, within_s=AUTO_S))


@pytest.mark.parametrize("factors", [{}, {"flex": 1.0, "batch": 1.0}])
def test_what_saves_nothing_is_no_lane_of_auto(factors: Mapping[Lane, float]) -> None:
    made = plan(replace(given(10, 1), factors=factors))
    assert (made.standard, made.cost.expected) == (1.0, 1.0)


def test_a_discount_that_is_smaller_is_counted_as_it_is() -> None:
    made = plan(replace(given(10, 1, served=1.0), factors={"flex": 0.8, "batch": 0.5}, lost=0.0))
    assert made.batch > 0.9 and made.cost.low == pytest.approx(0.5, abs=0.03)


# ---- what does not fit


def test_what_does_not_fit_goes_to_batch_at_once_and_comes_later() -> None:
    asked = given(10, 20, served=0.0)
    made = plan(asked)
    usable_s = 10 * HOUR_S - margin_s(10 * HOUR_S, 20 * HOUR_S)
    assert made.in_time == pytest.approx(usable_s / (20 * HOUR_S))
    assert made.batch >= 1.0 - made.in_time - 1e-9
    assert made.chance == pytest.approx(Latency().done_by(10 * HOUR_S))
    assert made.cost.expected < 0.85


def test_flex_without_time_is_called_at_once_and_after_the_deadline_no_more() -> None:
    assert plan(given(10, 9.9, mode="flex")).flex_call_s == 0.0
    assert (plan(given(10, 20, mode="flex")).flex_call_s or 0.0) < PLANNED_S
    late = plan(given(-1, 5, mode="flex"))
    assert late.flex == pytest.approx(0.875) and late.flex_call_s is None


def test_without_batch_the_rest_is_late() -> None:
    made = plan(given(10, 20, mode="standard"))
    assert made.standard == 1.0 and made.in_time == pytest.approx(0.467, abs=0.01) and made.chance == 0.0
    later = plan(given(10, 20, mode="flex"))
    assert later.flex >= 0.875 * (1.0 - later.in_time) - 1e-9 and later.chance == 0.0


def test_a_batch_that_no_live_lane_could_do_in_time_is_not_called_in() -> None:
    """The one that is least likely to come is left with the service; the others are still called in."""
    old, young = Out(1, Some(10, 3 * HOUR_S, 1.0), 20 * HOUR_S), Out(2, Some(10, 3 * HOUR_S, 1.0), 0.5 * HOUR_S)
    made = plan(replace(given(5, 1), out=(old, young)))
    assert [call.number for call in made.calls] == [2]
    assert made.in_time == pytest.approx(4 / 7)
    both = plan(replace(given(10, 1), out=(old, young)))
    assert [call.number for call in both.calls] == [1, 2] and both.in_time == 1.0


# ---- with what is known


def test_batches_that_do_not_come_are_believed_and_less_is_sent() -> None:
    asked = given(10, 6, served=0.0, lost=1.0)
    before = plan(asked)
    stuck = plan(replace(asked, latency=learned([Seen(6 * HOUR_S, "open")] * 40)))
    assert stuck.batch < before.batch


def test_flex_that_is_shed_is_believed() -> None:
    asked = replace(given(10, 6), asked=0, served=0)
    shares = [plan(replace(asked, asked=200, served=some)).flex for some in (0, 50, 100, 200)]
    assert shares == sorted(shares) and shares[0] < plan(asked).flex < shares[-1]


def test_flex_is_asked_before_a_batch_is_cut() -> None:
    assert plan(replace(given(10, 8), asked=0, served=0)).flex_first == 100
    assert plan(replace(given(10, 8), asked=60, served=30)).flex_first == 40
    assert plan(given(10, 8)).flex_first == 0
    assert plan(given(10, 8, mode="batch")).flex_first == 0


def test_a_service_that_takes_little_at_once_saves_less() -> None:
    asked = given(10, 6, served=0.0, lost=0.0)
    costs = [plan(replace(asked, room_s=room * 6 * HOUR_S)).cost.expected for room in (1.0, 0.3, 0.1, 0.0)]
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx(1.0, abs=1e-3)


def test_a_service_that_is_known_to_take_more_after_each_batch_saves_more() -> None:
    asked = replace(given(10, 6, served=0.0, lost=0.0), room_s=0.1 * 6 * HOUR_S)
    assert plan(replace(asked, grows=True)).cost.expected < plan(asked).cost.expected


def test_what_fell_back_goes_to_no_batch_again() -> None:
    assert plan(replace(given(10, 6, served=0.0), fallen=0.7)).batch == pytest.approx(0.3)
    assert plan(replace(given(10, 6, served=0.0), fallen=1.0)).batch == 0.0


def test_a_plan_is_made_anew_more_often_towards_the_end() -> None:
    assert plan(given(10, 1)).again_s == PLANNED_S
    assert plan(given(0.5, 0.1)).again_s == pytest.approx(90.0)
