from math import ceil, inf, sqrt
from random import Random

import pytest

from pipeline.quota.slots import CAP, START, Slots


def test_a_number_that_was_asked_for_is_kept() -> None:
    slots = Slots(7, 1000)
    for _ in range(100):
        slots.answered(30.0)
    assert slots.count == 7


def test_without_a_rate_it_starts_moderate() -> None:
    assert Slots(None, inf).count == START


@pytest.mark.parametrize(("rpm", "latency_s"), [(1000, 3.1), (1000, 11.8), (60, 2.0), (5, 1.0)])
def test_load_and_four_deviations_of_it(rpm: int, latency_s: float) -> None:
    slots = Slots(None, rpm)
    for _ in range(800):
        slots.answered(latency_s)
    load = rpm / 60 * latency_s
    assert slots.count == pytest.approx(ceil(load + 4 * sqrt(load)) + 1, abs=1)


def test_it_is_bounded() -> None:
    slots = Slots(None, 10**6)
    assert slots.count == CAP


def test_a_changed_rate_changes_it() -> None:
    slots = Slots(None, 60)
    before = slots.count
    slots.change(6000)
    assert slots.count > 10 * before


def test_two_refusals_for_overload_take_a_slot_and_four_answers_give_it_back() -> None:
    slots = Slots(100, inf)
    for _ in range(60):
        slots.overloaded()
    assert slots.count == 70
    for _ in range(60):
        slots.answered(1.0)
    assert slots.count == 85
    for _ in range(61):
        slots.answered(1.0)
    assert slots.count == 100


def mean_count(full: int, failing: float) -> float:
    """Of `full` slots, while so many requests fail whatever is done."""
    slots, rng, counts = Slots(full, inf), Random(1), []
    for _ in range(40 * full):
        if rng.random() < failing:
            slots.overloaded()
        else:
            slots.answered(1.0)
        counts.append(slots.count)
    return sum(counts[20 * full :]) / (20 * full)


@pytest.mark.parametrize("full", [2, 8, 60, 600])
def test_what_fails_by_chance_costs_little_up_to_a_third(full: int) -> None:
    assert mean_count(full, 0.25) >= 0.8 * full


@pytest.mark.parametrize("full", [60, 600])
def test_what_fails_more_often_takes_the_slots_away(full: int) -> None:
    assert mean_count(full, 0.45) < 0.15 * full


@pytest.mark.parametrize("full", [2, 60, 600])
def test_one_that_was_taken_down_to_one_is_back_within_some_answers_of_each_slot(full: int) -> None:
    """Answers come the faster the more slots there are: from 1 to 600 in 26 times the time of one answer."""
    slots = Slots(full, inf)
    for _ in range(10 * full):
        slots.overloaded()
    assert slots.count == 1
    rounds = 0
    while slots.count < full:
        rounds += 1
        for _ in range(slots.count):
            slots.answered(1.0)
    assert rounds <= 30


def test_what_was_taken_is_no_more_than_a_slower_rate_needs() -> None:
    slots = Slots(None, 6000)
    for _ in range(10_000):
        slots.overloaded()
    slots.change(60)
    assert slots.count == 1
    for _ in range(200):
        slots.answered(10.0)
    assert slots.count == Slots(None, 60).count


def test_where_the_refused_found_most_in_flight_no_more_than_that_are_sent_at_once() -> None:
    slots = Slots(None, 1000)
    assert slots.crowded([10, 11, 10, 10, 12, 10], [*range(1, 10)] * 4, 1_000)
    assert slots.count == 10


def test_where_they_found_no_more_than_others_the_slots_stay() -> None:
    slots = Slots(None, 1000)
    before = slots.count
    assert not slots.crowded([3, 9, 5, 7], [*range(1, 12)] * 3, 1_000)
    assert slots.count == before


def test_a_crowd_that_still_is_too_large_is_made_smaller_and_given_up_where_that_does_not_help() -> None:
    slots = Slots(None, 1000)
    before = slots.count
    slots.crowded([10, 11, 10, 10, 12, 10], [*range(1, 10)] * 4, 1_000)
    counts = []
    while slots.crowded([9, 9, 9, 9], [9] * 20, 1_000):
        counts.append(slots.count)
    assert counts == [9, 8, 7]
    assert slots.count == before


def test_now_and_then_one_more_is_tried() -> None:
    slots = Slots(None, 1000)
    slots.crowded([10, 11, 10, 10, 12, 10], [*range(1, 10)] * 4, 1_000)
    for _ in range(300):
        slots.answered(3.0)
    assert slots.count == 11


def test_several_workers_begin_with_as_many_and_have_theirs_after_some_answers() -> None:
    slots = Slots(None, inf, workers=3)
    assert slots.count == START and not slots.is_cut
    for _ in range(4 * START):
        slots.answered(1.0)
    assert slots.count == 2 * START
    for _ in range(4 * START):
        slots.answered(1.0)
    assert slots.count == 3 * START
    assert Slots(None, inf, 100, workers=3).count == START and Slots(None, inf, 20, workers=3).count == 20


def test_a_server_that_takes_few_at_once_is_sent_few_though_workers_are_many() -> None:
    """Ten at once, an answer a second; in one process and with 20 workers."""
    refused = {}
    for workers in (1, 20):
        slots, flying, count = Slots(None, inf, workers=workers), 0, 0
        for _ in range(200):
            flying = slots.count
            for _ in range(max(0, flying - 10)):
                slots.overloaded()
                count += 1
            for _ in range(min(10, flying)):
                slots.answered(1.0)
        assert 10 <= slots.count <= 16 and slots.is_cut
        refused[workers] = count
    assert refused[20] == refused[1]
