from math import floor
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.quota.phase import MinutePhase


def observe(phase: MinutePhase, rng: Random, offset: float, at: float, latency: float, way_back: float) -> None:
    phase.observe(floor(at + latency - way_back + offset), at, at + latency)


@given(st.integers(0, 10**6), st.floats(-1e6, 2e9), st.floats(0.001, 0.14))
def test_the_truth_stays_inside_and_is_soon_known_well(seed, offset, way_back):
    rng, phase = Random(seed), MinutePhase()
    for number in range(200):
        observe(phase, rng, offset, number * 1.7 + rng.random(), rng.uniform(0.2, 20.0), way_back)
    low, high = phase.bounds
    assert low - 1e-6 <= offset <= high + 1e-6
    assert high - low < 0.5


@given(st.integers(0, 10**6))
def test_dates_stamped_at_any_moment_of_the_request_are_survived(seed):
    rng, phase, offset = Random(seed), MinutePhase(), 12.25
    for number in range(300):
        at, latency = number * 2.0, rng.uniform(0.2, 3.0)
        phase.observe(floor(at + rng.uniform(0.0, latency) + offset), at, at + latency)
    bounds = phase.bounds
    assert bounds is not None
    assert bounds[0] - 0.05 <= offset <= bounds[1] + 0.05


def test_nothing_is_known_before_the_first_response_or_from_a_very_slow_one():
    phase = MinutePhase()
    assert phase.bounds is None
    contradicted = MinutePhase()
    contradicted.observe(100, 0.0, 50.0)
    contradicted.observe(200, 1.0, 51.0)  # impossible: the same clock, 100 s further in one
    assert contradicted.bounds is None


def test_clocks_that_drift_apart_are_followed():
    rng, phase = Random(5), MinutePhase()
    for number in range(4000):
        at = number * 5.0
        offset = 10.0 + 5e-5 * at
        observe(phase, rng, offset, at, 0.5, 0.05)
        if number > 100:
            low, high = phase.bounds
            assert low <= offset <= high


def test_distrust_is_for_good():
    phase = MinutePhase()
    phase.observe(100, 0.0, 0.1)
    assert phase.bounds is not None
    phase.distrust()
    phase.observe(101, 1.0, 1.1)
    assert phase.bounds is None
