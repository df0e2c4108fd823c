from math import ceil, inf, sqrt

import pytest

from pipeline.quota.slots import CAP, START, Slots


def test_a_number_that_was_asked_for_is_kept():
    slots = Slots(7, 1000)
    for _ in range(100):
        slots.answered(30.0)
    assert slots.count == 7


def test_without_a_rate_it_starts_moderate():
    assert Slots(None, inf).count == START


@pytest.mark.parametrize(("rpm", "latency_s"), [(1000, 3.1), (1000, 11.8), (60, 2.0), (5, 1.0)])
def test_load_and_four_deviations_of_it(rpm, latency_s):
    slots = Slots(None, rpm)
    for _ in range(800):
        slots.answered(latency_s)
    load = rpm / 60 * latency_s
    assert slots.count == pytest.approx(ceil(load + 4 * sqrt(load)) + 1, abs=1)


def test_it_is_bounded():
    slots = Slots(None, 10**6)
    assert slots.count == CAP


def test_a_changed_rate_changes_it():
    slots = Slots(None, 60)
    before = slots.count
    slots.change(6000)
    assert slots.count > 10 * before


def test_overload_cuts_once_in_the_time_of_an_answer_and_answers_give_it_back():
    slots = Slots(100, inf)
    for _ in range(10):
        slots.overloaded(50.0)
    assert slots.count == 70
    slots.overloaded(70.0)
    assert slots.count == 49
    for _ in range(200):
        slots.answered(1.0)
    assert slots.count == 100


def test_at_least_one_is_left():
    slots = Slots(2, inf)
    for now in range(0, 10_000, 100):
        slots.overloaded(float(now))
    assert slots.count == 1
