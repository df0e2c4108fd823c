from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quota.daily import LONGEST_DAY_S, RESET_JITTER_S, DailyQuota, day_of, next_reset, until_text

HOUR_S = 3600.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "reset"),
    [
        ("2026-11-22T21:00", "2026-11-23T08:00"),  # winter: UTC−8
        ("2026-07-01T06:59", "2026-07-01T07:00"),  # summer: UTC−7
        ("2026-07-01T07:00", "2026-07-02T07:00"),  # at midnight the new day has begun
        ("2026-03-08T09:00", "2026-03-09T07:00"),  # a day of 23 hours
        ("2026-11-01T08:00", "2026-11-02T08:00"),  # a day of 25 hours
    ],
)
def test_the_day_begins_at_midnight_pacific(now: str, reset: str) -> None:
    assert next_reset(at(now)) == at(reset)


def test_days_with_a_change_of_clocks_have_23_and_25_hours() -> None:
    spring, autumn = next_reset(at("2026-03-08T07:59")), next_reset(at("2026-11-01T06:59"))
    assert next_reset(spring) - spring == 23 * HOUR_S
    assert next_reset(autumn) - autumn == 25 * HOUR_S


@given(st.floats(0.0, 4e9))
def test_the_reset_is_ahead_and_begins_another_day(now: float) -> None:
    reset = next_reset(now)
    assert now < reset <= now + 25 * HOUR_S
    assert day_of(now) == day_of(reset - 1.0) != day_of(reset)


def test_the_zone_can_be_another() -> None:
    assert next_reset(at("2026-11-22T21:00"), "UTC") == at("2026-11-23T00:00")


def test_a_full_day_opens_at_the_reset_and_counts_anew() -> None:
    counts = {"2026-11-22": 500}
    quota = DailyQuota(500, count=lambda day: counts.get(day, 0))
    now = at("2026-11-22T21:00")
    opens_at = quota.opens_at(now)
    assert opens_at == at("2026-11-23T08:00") + RESET_JITTER_S
    assert quota.opens_at(opens_at) is None
    counts["2026-11-22"] = 499
    assert DailyQuota(500, count=lambda day: counts.get(day, 0)).opens_at(now) is None


@pytest.mark.parametrize(
    ("named_s", "expected"),
    [
        (None, "2026-11-23T08:00:05"),
        (31.0, "2026-11-23T08:00:05"),  # the minute window's delay, repeated
        (3 * HOUR_S, "2026-11-23T00:00:00"),  # hours are meant
    ],
)
def test_the_service_may_close_the_day(named_s: float | None, expected: str) -> None:
    quota = DailyQuota(None, count=lambda day: 0)
    now = at("2026-11-22T21:00")
    assert quota.opens_at(now) is None
    assert quota.exhausted(now, named_s) == at(expected)
    assert quota.opens_at(now) == at(expected)
    assert quota.opens_at(at(expected)) is None


def test_what_an_earlier_run_was_told_closes_the_day_too() -> None:
    quota = DailyQuota(500, count=lambda day: 0, closed_until=at("2026-11-23T08:00"))
    assert quota.opens_at(at("2026-11-22T21:00")) == at("2026-11-23T08:00")
    assert quota.opens_at(at("2026-11-23T08:00")) is None


def test_a_time_is_told_both_ways() -> None:
    assert until_text(at("2026-11-22T21:00"), at("2026-11-23T08:00")) == "at 2026-11-23 08:00 UTC (in 11 h 0 min)"


def test_no_day_is_closed_for_longer_than_a_day_whatever_is_named_or_the_clock_does() -> None:
    now = at("2026-11-22T21:00")
    quota = DailyQuota(None, count=lambda day: 0)
    assert quota.exhausted(now, 365 * 24 * HOUR_S) == now + LONGEST_DAY_S
    assert DailyQuota(None, count=lambda day: 0, closed_until=now + 1e12).opens_at(now) is None
    counts = {"2026-11-22": 5, "2026-11-21": 1}
    quota = DailyQuota(5, count=lambda day: counts.get(day, 0))
    assert quota.opens_at(now) is not None
    assert quota.opens_at(now - 24 * HOUR_S) is None, "the clock was set back to a day with requests left"
