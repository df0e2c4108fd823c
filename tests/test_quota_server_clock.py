from math import floor, inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quota.server_clock import MOST_CONTRADICTIONS, MinutePhase


def bounds(phase: MinutePhase) -> tuple[float, float]:
    known = phase.bounds
    assert known is not None
    return known


def observe(phase: MinutePhase, rng: Random, offset: float, at: float, latency: float, way_back: float) -> None:
    phase.observe(floor(at + latency - way_back + offset), at, at + latency)


@given(st.integers(0, 10**6), st.floats(-1e6, 2e9), st.floats(0.001, 0.14))
def test_the_truth_stays_inside_and_is_soon_known_well(seed: int, offset: float, way_back: float) -> None:
    rng, phase = Random(seed), MinutePhase()
    for number in range(200):
        observe(phase, rng, offset, number * 1.7 + rng.random(), rng.uniform(0.2, 20.0), way_back)
    low, high = bounds(phase)
    assert low - 1e-6 <= offset <= high + 1e-6
    assert high - low < 0.5


@given(st.integers(0, 10**6))
def test_dates_stamped_at_any_moment_of_the_request_are_survived(seed: int) -> None:
    rng, phase, offset = Random(seed), MinutePhase(), 12.25
    for number in range(300):
        at, latency = number * 2.0, rng.uniform(0.2, 3.0)
        phase.observe(floor(at + rng.uniform(0.0, latency) + offset), at, at + latency)
    bounds = phase.bounds
    assert bounds is not None
    assert bounds[0] - 0.05 <= offset <= bounds[1] + 0.05


def test_nothing_is_known_before_the_first_response() -> None:
    assert MinutePhase().bounds is None


def test_after_contradictions_only_the_certain_is_believed() -> None:
    phase = MinutePhase()
    for number in range(MOST_CONTRADICTIONS + 1):
        phase.observe(100 + 100 * (number % 2), number, 50.0 + number)  # the same clock cannot say both
    assert phase.bounds is None, "stamped at some time in 50 s: too little to go by"
    phase.observe(1000, 900.0, 900.5)
    low, high = bounds(phase)
    assert (low, high) == pytest.approx((99.5, 101.0), abs=0.1)


def test_the_end_of_the_minute_is_the_earliest_that_is_possible() -> None:
    phase = MinutePhase()
    assert phase.ends_at(0.0) == inf
    phase.observe(100, 0.0, 0.1)
    low, high = bounds(phase)
    ends_at = phase.ends_at(0.1)
    assert (ends_at + high) % 60.0 == pytest.approx(0.0, abs=1e-9) and low < high
    assert 0.1 < ends_at <= 60.1


def test_clocks_that_drift_apart_are_followed() -> None:
    rng, phase = Random(5), MinutePhase()
    for number in range(4000):
        at = number * 5.0
        offset = 10.0 + 5e-5 * at
        observe(phase, rng, offset, at, 0.5, 0.05)
        if number > 100:
            low, high = bounds(phase)
            assert low <= offset <= high


def test_distrust_lasts_ten_minutes_and_longer_when_it_is_repeated() -> None:
    phase = MinutePhase()
    phase.observe(100, 0.0, 0.1)
    assert phase.bounds is not None
    phase.distrust(1.0)
    assert phase.bounds is None
    phase.observe(700, 600.0, 600.1)
    assert phase.bounds is None
    phase.observe(702, 602.0, 602.1)
    assert phase.bounds is not None
    phase.distrust(603.0)
    phase.distrust(604.0)  # of the same moment
    phase.observe(2902, 2802.0, 2802.1)
    assert phase.bounds is None
    phase.observe(3104, 3004.0, 3004.1)
    assert phase.bounds is not None
