from math import inf

import pytest

from pipeline.quota.adaptive import EPISODE_S, AdaptiveLimit
from pipeline.quota.evidence import Admitted


def admitted(
    least: float = 0.0,
    most: float = 0.0,
    bucket: float = 10**9,
    since_cut: float = 0.0,
    resumed_at: float = 0.0,
    answered_at: float = inf,
    opaque: bool = False,
) -> Admitted:
    return Admitted(least, max(least, most), bucket, since_cut, resumed_at, answered_at, opaque)


def test_the_limit_becomes_what_was_admitted_in_the_last_minute() -> None:
    limit = AdaptiveLimit(1000, 5)
    assert limit.refused(36.0, 35.9, admitted(600), None)
    assert limit.value == pytest.approx(594)
    assert limit.known == 1000


def test_a_lower_limit_that_is_named_is_taken_and_never_probed() -> None:
    limit = AdaptiveLimit(1000, 5)
    assert limit.refused(36.0, 35.9, admitted(600), 600)
    assert limit.value == limit.known == 600
    assert not limit.grow(10_000.0, 600)


def test_what_was_sent_before_a_cut_cuts_no_more() -> None:
    limit = AdaptiveLimit(1000, 5)
    limit.refused(36.0, 35.9, admitted(600), None)
    assert not limit.refused(36.1, 35.95, admitted(600), None)
    assert limit.value == pytest.approx(594)


def test_a_bucket_that_was_full_at_first_is_seen_through_at_the_second_refusal() -> None:
    # 600 a minute and 600 in store admit 1,000 a minute for a minute and a half
    limit = AdaptiveLimit(1000, 5)
    limit.refused(90.0, 89.9, admitted(1000, bucket=600), None)
    assert limit.value == pytest.approx(980)
    limit.refused(94.0, 93.9, admitted(990, bucket=602, since_cut=30, resumed_at=92.0), None)
    assert limit.value == pytest.approx(0.99 * 602)
    assert not limit.grow(160.0, limit.value), "more than that has not been admitted for long"


def test_where_nothing_tells_how_it_counts_the_least_is_kept_first_and_the_most_regained_soon() -> None:
    limit = AdaptiveLimit(None, 1400)
    limit.refused(300.0, 299.9, admitted(940, 1000), None)
    assert limit.value == pytest.approx(0.99 * 940)
    assert limit.grow(361.0, 930)
    assert limit.value == pytest.approx(0.99 * 1000)
    assert not limit.grow(430.0, 990)


def test_a_refused_probe_goes_back_to_where_it_came_from() -> None:
    limit = AdaptiveLimit(1000, 5)
    limit.refused(36.0, 35.9, admitted(600), None)
    assert not limit.grow(600.0, 594)
    assert limit.grow(640.0, 594)
    assert limit.value == pytest.approx(594 * 1.02)
    limit.refused(660.0, 659.0, admitted(606), None)
    assert limit.value == pytest.approx(594)


def test_probes_grow_while_they_succeed_and_end_at_what_was_configured() -> None:
    limit = AdaptiveLimit(1000, 5)
    limit.refused(36.0, 35.9, admitted(600), 1000)  # named and not lower: somebody else uses it too
    now, values = 36.0, []
    while limit.value < 1000:
        now += 60.1
        assert limit.grow(now, limit.value)
        values.append(limit.value)
    assert values == sorted(values)
    assert now < 36 + 6 * 61
    assert not limit.grow(now + 1000, 1000)


def test_refused_again_within_a_minute_cuts_deeper_but_not_to_nothing() -> None:
    limit = AdaptiveLimit(1000, 5)
    limit.refused(36.0, 35.9, admitted(600), None)
    limit.refused(62.0, 61.0, admitted(600, since_cut=5, resumed_at=60.0), None)
    assert limit.value == pytest.approx(0.85 * 594), "in two seconds no rate can be measured"
    limit.refused(90.0, 89.0, admitted(600, since_cut=0, resumed_at=65.0), None)
    assert limit.value == pytest.approx(0.5 * 0.85 * 594)
    before = limit.value
    assert not limit.grow(140.0, before)
    assert limit.grow(151.0, before)
    assert limit.value == pytest.approx(1.1 * before)


def test_unknown_limits_double_while_they_are_low_and_grow_slowly_then() -> None:
    limit = AdaptiveLimit(None, 5)
    assert limit.known is None
    assert not limit.grow(0.0, 1)
    assert not limit.grow(9.0, 1)
    for now, value in zip(range(12, 80, 12), (10, 20, 40, 80, 160, 320), strict=True):
        assert limit.grow(now, 3)
        assert limit.value == value
    assert not limit.grow(100.0, 220), "less than 70 % of it is used: whether 320 would be admitted is not known"
    assert limit.grow(100.0, 225)
    assert limit.value == pytest.approx(1.08 * 320)
    limit.refused(105.0, 104.9, admitted(300), None)
    assert limit.value == pytest.approx(297)
    assert not limit.grow(130.0, 297), "once refused it is probed, and grows no more"


def test_growth_that_overran_a_full_bucket_is_seen_through_at_the_second_refusal() -> None:
    # 1,000 a minute and 1,000 in store have admitted 3,000 in two minutes, 1,830 of them in the last
    limit = AdaptiveLimit(None, 2000)
    limit.refused(300.0, 299.9, admitted(1830, bucket=1000), None)
    assert limit.value == pytest.approx(0.99 * 1830)
    limit.refused(303.0, 302.9, admitted(1800, bucket=1000, since_cut=60, resumed_at=301.0), None)
    assert limit.value == pytest.approx(990)
    assert not limit.grow(420.0, 990), "nothing above that has been admitted for long"


def test_a_steady_pace_is_not_taken_for_a_bucket() -> None:
    limit = AdaptiveLimit(None, 2000)
    limit.refused(300.0, 299.9, admitted(1020, bucket=1010), None)
    limit.refused(307.0, 306.9, admitted(1010, bucket=1000, since_cut=60, resumed_at=301.0), None)
    assert limit.value == pytest.approx(0.85 * 0.99 * 1020)
    assert limit.grow(370.0, 800)


def test_a_limit_that_others_use_is_halved_at_most() -> None:
    limit = AdaptiveLimit(1000, 5)
    limit.refused(1.0, 0.9, admitted(3), 1000)
    assert limit.value == 500
    limit.refused(5.0, 4.9, admitted(4, resumed_at=4.0), 1000)
    assert limit.value == 250


def test_so_little_was_sent_that_nothing_is_known_so_it_grows_again() -> None:
    limit = AdaptiveLimit(1000, 5)
    limit.refused(1.0, 0.9, admitted(3), None)
    assert limit.value == 20
    assert limit.exploring
    now, values = 1.0, []
    while limit.value < 1000:
        now += 11.0
        limit.grow(now, limit.value)
        values.append(limit.value)
    assert values[:4] == [40, 80, 160, 320]
    assert now < 240


def test_what_is_refused_while_nothing_is_answered_proves_no_lower_limit() -> None:
    """The service refuses everything for five minutes: one cut, not one for each that asks whether it is back."""
    for opaque, most in ((True, 900), (False, 100)):
        limit = AdaptiveLimit(1000, 5)
        limit.refused(600.0, 599.9, admitted(990, answered_at=599.0), None)
        believed = limit.value
        for now in range(602, 900, 10):
            assert not limit.refused(now, now - 0.1, admitted(most, answered_at=599.5, opaque=opaque), None)
        assert limit.value == believed == pytest.approx(0.98 * 1000)


def test_what_an_earlier_run_learned_is_where_the_next_begins() -> None:
    assert AdaptiveLimit(1000, 5, learned=594).value == 594
    assert AdaptiveLimit(1000, 5, learned=594).known == 1000
    assert AdaptiveLimit(500, 5, learned=594).value == 500
    learned = AdaptiveLimit(None, 5, learned=594)
    assert learned.value == 594
    assert not learned.grow(0.0, 594)
    assert not learned.grow(60.0, 300)
    assert learned.grow(60.0, 594)
    assert learned.value == pytest.approx(1.08 * 594)


def test_no_cut_leaves_nothing() -> None:
    limit = AdaptiveLimit(100, 5)
    now = 0.0
    for _ in range(50):
        now += 5.0
        limit.refused(now, now - 0.1, admitted(0), None)
    assert limit.value == 1.0


def test_a_limit_that_is_named_is_the_goal_where_nothing_was_configured() -> None:
    limit = AdaptiveLimit(None, 5)
    limit.refused(30.0, 29.0, admitted(4), 1000)  # somebody else uses most of it
    assert limit.known == 1000
    assert limit.value < 5
    now = 30.0
    while limit.value < 1000:
        now += 61.0
        limit.grow(now, limit.value)
    assert limit.value == 1000


def test_what_other_runs_are_let_through_is_believed_unless_a_refusal_has_just_told_more() -> None:
    unset, kept = AdaptiveLimit(None, 5), AdaptiveLimit(300, 5, learned=150)
    assert unset.witnessed(0.0, 250) and 250 < unset.value <= 280 and unset.exploring
    assert not unset.witnessed(1.0, unset.value), "no more than is believed"
    assert kept.witnessed(0.0, 299) and kept.value == 300
    assert not kept.witnessed(1.0, 400), "never above what was configured"
    unset.refused(10.0, 9.9, admitted(200), None)
    assert not unset.witnessed(11.0, 250)
    assert unset.witnessed(10.0 + EPISODE_S, 250) and unset.value > 250
