"""Nights by a deadline, in virtual time: all end in time, and cost little more than the best plan known afterwards."""

from statistics import mean

import pytest
from nights import Night, Run, best_known_afterwards, nights

from pipeline.records import LaneChoice


@pytest.mark.parametrize("number", [50, pytest.param(500, marks=pytest.mark.long)])
def test_every_night_ends_in_time_at_about_the_cost_that_was_planned(number: int) -> None:
    ended = [Run(night).run() for night in nights(number)]
    assert [one for one in ended if not one.is_in_time] == []
    assert mean(one.cost for one in ended) == pytest.approx(mean(one.first.cost.expected for one in ended), rel=0.1)
    assert max(one.cost for one in ended) <= 1.5 + 1e-6
    assert sum(one.cost > 1.01 for one in ended) <= 0.1 * number


@pytest.mark.parametrize("mode", ["standard", "flex", "batch"])
def test_it_ends_in_time_in_the_lane_that_is_asked_for(mode: LaneChoice) -> None:
    ended = [Run(night, mode).run() for night in nights(8, seed=3)]
    assert [one for one in ended if not one.is_in_time] == []
    assert mode != "standard" or {round(one.cost, 6) for one in ended} == {1.0}


def test_live_lanes_that_are_a_little_slow_are_within_the_margin() -> None:
    ended = [Run(night, pace=0.96).run() for night in nights(15, seed=4)]
    assert [one for one in ended if not one.is_in_time] == []


def test_a_night_without_any_batch_costs_what_is_paid_twice_at_most() -> None:
    """What is planned anew may send more to batches than was told at first, where flex turns all away."""
    night = Night(36_000.0, 18_000.0, served=0.0, stuck=True, lost=1.0, room=1.0, seed=1)
    ended = Run(night, "batch").run()
    assert ended.is_in_time and ended.fell_back == pytest.approx(1.0)
    assert 1.4 < ended.first.cost.high <= ended.cost <= 1.5 + 1e-9


def test_what_does_not_fit_is_done_in_part_and_comes_later() -> None:
    night = Night(36_000.0, 72_000.0, served=0.0, stuck=False, lost=0.0, room=1.0, seed=1)
    ended = Run(night).run()
    assert ended.first.in_time - 0.02 <= ended.in_time and ended.cost < 0.9


@pytest.mark.long
def test_it_costs_at_most_a_tenth_more_than_the_best_share_known_afterwards() -> None:
    """Of 100 nights; `tests/benchmarks/bench_lanes.py` looks at 500."""
    looked_at = list(nights(100))
    planned, best = mean(Run(night).run().cost for night in looked_at), mean(map(best_known_afterwards, looked_at))
    assert planned <= 1.1 * best
