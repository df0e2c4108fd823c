"""The limit of one meter: what is found, what is tried, what is taken back."""

import pytest

from pipeline.quota.limit import Limit


def test_a_lower_limit_that_is_named_is_taken_and_never_probed() -> None:
    limit = Limit(1000, 5)
    assert limit.named(36.0, 600, passed=600)
    assert limit.value == limit.known == 600
    assert not limit.grow(10_000.0, 600)


def test_a_named_limit_that_was_passed_by_far_is_not_believed() -> None:
    limit = Limit(1000, 5)
    assert not limit.named(36.0, 10, passed=600)
    assert limit.value == 1000


def test_a_named_limit_that_is_not_believed_is_no_ceiling_either() -> None:
    limit = Limit(None, 5)
    assert not limit.named(36.0, 1, passed=5)
    assert limit.known is None
    assert limit.grow(36.0, 5) or limit.grow(50.0, 5)


def test_only_what_was_found_is_measured() -> None:
    limit = Limit(1000, 5)
    assert not limit.measured
    assert limit.full(36.0, 600, shared=False) and limit.measured
    assert limit.grow(100.0, 594) and not limit.measured, "more is tried"
    assert limit.undo() and not limit.measured


def test_a_full_window_is_believed_and_more_is_tried_a_minute_later_up_to_what_was_refused() -> None:
    limit = Limit(1000, 5)
    assert limit.full(36.0, 600, shared=False)
    assert limit.value == pytest.approx(0.99 * 600)
    assert limit.known == 1000
    assert not limit.grow(80.0, 590)
    now, values = 96.0, []
    while limit.grow(now, limit.value):
        values.append(limit.value)
        now += 10.0
    assert values == sorted(values)
    assert 900 <= values[-1] < 1000


def test_the_same_limit_found_again_stays() -> None:
    limit = Limit(1000, 5)
    assert limit.full(36.0, 610, shared=False)
    assert limit.grow(96.0, 600)
    assert limit.full(110.0, 700, shared=False), "a server that counts fixed minutes lets through more than its limit"
    assert limit.value <= 610
    assert not limit.grow(300.0, 600)


def test_what_is_refused_on_the_way_back_up_ends_it_at_what_was_found() -> None:
    limit = Limit(1000, 5)
    limit.full(36.0, 600, shared=False)
    assert not limit.summit(90.0, 590, shared=False), "nothing more has been tried"
    found = limit.value
    assert limit.grow(96.0, 590)
    assert limit.summit(100.0, 610, shared=False)
    assert limit.value == found
    assert not limit.grow(300.0, found), "and it stays for ten minutes"


def test_what_a_slower_pace_let_guess_is_corrected_on_the_way_back_up() -> None:
    limit = Limit(1000, 5)
    limit.lower(36.0, 600, 900, shared=False)
    limit.grow(96.0, 590)
    assert limit.summit(100.0, 680, shared=False)
    assert limit.value == pytest.approx(0.99 * 640)


def test_where_much_more_had_passed_on_the_way_up_that_is_believed_and_more_is_tried_again() -> None:
    limit = Limit(1000, 5)
    limit.full(36.0, 300, shared=False)
    now = 96.0
    for _ in range(4):
        limit.grow(now, limit.value)
        now += 10.0
    assert limit.summit(now, 580, shared=False)
    assert limit.value == pytest.approx(0.99 * 580)
    assert limit.grow(now + 61.0, 570)


def test_a_minute_that_had_as_much_as_is_believed_tells_nothing_but_twice() -> None:
    limit = Limit(1000, 5)
    assert not limit.full(100.0, 995, shared=False), "the service was down for a while"
    assert limit.value == 1000
    assert limit.full(200.0, 990, shared=False)
    assert 970 <= limit.value < 1000


def test_so_little_had_passed_that_it_is_no_window() -> None:
    limit = Limit(1000, 5)
    for now in (1.0, 30.0, 60.0):
        assert not limit.full(now, 4, shared=False)
    assert limit.value == 1000


def test_where_nothing_is_known_a_full_window_ends_the_growth() -> None:
    limit = Limit(None, 100)
    assert limit.full(36.0, 90, shared=False)
    assert limit.value == pytest.approx(0.99 * 90)
    assert limit.grow(100.0, 90)
    assert limit.value < 100


def test_nothing_grows_where_nothing_is_let_through() -> None:
    limit = Limit(None, 5)
    for now in (0.0, 20.0, 40.0):
        assert not limit.grow(now, 0)
    assert limit.value == 5


def test_a_slower_pace_is_only_tried() -> None:
    limit = Limit(1000, 5)
    limit.slower(300)
    assert (limit.pace, limit.value) == (300, 1000)
    assert not limit.grow(1000.0, 300)
    limit.slower(float("inf"))
    assert limit.pace == 1000


def test_what_a_slower_pace_proved_is_climbed_from_soon_and_may_be_taken_back() -> None:
    limit = Limit(1000, 5)
    limit.lower(100.0, 600, 900, shared=False)
    assert limit.value == pytest.approx(594)
    assert not limit.grow(111.0, 594), "the minute in which it was refused is not over"
    assert limit.grow(161.0, 594)
    assert 594 < limit.value <= 900
    assert limit.undo()
    assert limit.value == 1000
    assert not limit.undo()


def test_from_a_doubtful_limit_more_is_tried_at_once() -> None:
    limit = Limit(1000, 5)
    limit.lower(100.0, 300, shared=False, soon=True)
    assert limit.grow(111.0, 100)
    assert limit.value > 300


def test_what_was_found_twice_is_not_taken_back() -> None:
    limit = Limit(1000, 5)
    limit.lower(100.0, 600, 900, shared=False)
    limit.lower(200.0, 590, 800, shared=False)
    assert not limit.undo()
    assert 580 <= limit.value <= 600
    assert limit.undo(certain=True), "but where it is known that the pace was not why"
    assert limit.value == 1000


def test_a_refused_probe_goes_back_to_where_it_came_from() -> None:
    limit = Limit(1000, 5)
    limit.lower(36.0, 600, 600, shared=False)
    before = limit.value
    assert not limit.grow(600.0, before)
    assert limit.grow(640.0, before)
    assert limit.value > before
    assert limit.back(660.0)
    assert limit.value == before
    assert not limit.back(661.0)


def test_probes_grow_while_they_succeed_and_end_at_what_was_configured() -> None:
    limit = Limit(1000, 5)
    limit.lower(36.0, 600, 600, shared=True)  # named and not lower: somebody else uses it too
    now, values = 36.0, []
    while limit.value < 1000:
        now += 60.1
        assert limit.grow(now, limit.value)
        values.append(limit.value)
    assert values == sorted(values)
    assert now < 36 + 6 * 61
    assert not limit.grow(now + 1000, 1000)


def test_unknown_limits_double_while_they_are_low_and_grow_slowly_then() -> None:
    limit = Limit(None, 5)
    assert limit.known is None
    assert not limit.grow(0.0, 1)
    assert not limit.grow(9.0, 1)
    for now, value in zip(range(12, 80, 12), (10, 20, 40, 80, 160, 320), strict=True):
        assert limit.grow(now, 3)
        assert limit.value == value
    assert not limit.grow(100.0, 220), "less than 70 % of it is used: whether 320 would be admitted is not known"
    assert limit.grow(100.0, 225)
    assert limit.value == pytest.approx(1.08 * 320)


def test_what_an_earlier_run_learned_is_where_the_next_begins() -> None:
    assert Limit(1000, 5, learned=594).value == 594
    assert Limit(1000, 5, learned=594).known == 1000
    assert Limit(500, 5, learned=594).value == 500
    learned = Limit(None, 5, learned=594)
    assert learned.value == 594
    assert learned.grow(60.0, 594) or learned.grow(75.0, 594)
    assert learned.value == pytest.approx(1.08 * 594)


def test_no_cut_leaves_nothing() -> None:
    limit = Limit(100, 5)
    for now in range(0, 500, 10):
        limit.lower(float(now), 0, 0, shared=False)
    assert limit.value == 1.0


def test_a_limit_that_is_named_is_the_goal_where_nothing_was_configured() -> None:
    limit = Limit(None, 5)
    assert not limit.named(30.0, 1000, passed=4)
    assert limit.known == 1000
    now = 30.0
    while limit.value < 1000:
        now += 11.0
        limit.grow(now, limit.value)
    assert limit.value == 1000


def test_what_other_runs_are_let_through_is_believed_unless_a_refusal_has_just_told_more() -> None:
    unset, kept = Limit(None, 5), Limit(300, 5, learned=150)
    assert unset.witnessed(0.0, 250) and 250 < unset.value <= 280 and unset.exploring
    assert not unset.witnessed(1.0, unset.value), "no more than is believed"
    assert kept.witnessed(0.0, 299) and kept.value == 300
    assert not kept.witnessed(1.0, 400), "never above what was configured"
    unset.lower(10.0, 200, 200, shared=False)
    assert not unset.witnessed(11.0, 250)
    assert unset.witnessed(71.0, 250) and unset.value > 250
