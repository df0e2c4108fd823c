import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.plan.pace import Load, Pace
from pipeline.plan.timing import DAYS_LISTED, deadline, next_time, timeline
from pipeline.quota.daily import RESET_JITTER_S
from pipeline.quota.quota import FIRST_RPM
from pipeline.records import Limits

START = datetime(2026, 11, 23, 0, 30, tzinfo=UTC)  # 16:30 Pacific
LATENCY_S = 3.0


def load_of(prompts: int, mean: int = 1000, depth: int = 1, largest: int = 0) -> Load:
    return Load(prompts, prompts * mean, largest, depth)


def pace_of(used_today: int = 0, **limits: Any) -> Pace:
    return Pace(replace(Limits(rpm=0, tpm=0), **limits), LATENCY_S, used_today=used_today)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---- days of quota


def test_nothing_to_do_takes_no_time() -> None:
    nothing = timeline(Load(0, 0), pace_of(rpm=15, rpd=10), START)
    assert (nothing.seconds, nothing.nights, nothing.bound, nothing.finish_at) == (0.0, 0, "none", START)


def test_each_day_begins_at_midnight_pacific_and_ends_with_its_quota() -> None:
    plan = timeline(load_of(2500), pace_of(rpm=60, rpd=1000), START)
    assert [day.prompts for day in plan.days] == [1000, 1000, 500]
    resets = [at("2026-11-23T08:00:05"), at("2026-11-24T08:00:05")]
    assert [day.starts_at for day in plan.days] == [START, *resets]
    whole, part = timedelta(seconds=999 * 60.3 / 60 + LATENCY_S), timedelta(seconds=499 * 60.3 / 60 + LATENCY_S)
    assert [day.ends_at - day.starts_at for day in plan.days[1:]] == [whole, part]
    assert plan.finish_at == plan.days[-1].ends_at == START + timedelta(seconds=plan.seconds)
    assert (plan.nights, plan.bound) == (3, "rpd")


def test_days_begin_at_midnight_of_their_zone() -> None:
    limits = replace(pace_of(rpm=60, rpd=1000).limits, reset_zone="UTC")
    plan = timeline(load_of(1000 * (DAYS_LISTED + 5)), Pace(limits, LATENCY_S), START)
    assert [day.starts_at for day in plan.days[1:3]] == [at("2026-11-24T00:00:05"), at("2026-11-25T00:00:05")]
    last_day = at("2026-11-23T00:00:05") + timedelta(days=DAYS_LISTED + 4)
    assert plan.finish_at == last_day + timedelta(seconds=999 * 60.3 / 60 + LATENCY_S)
    missed = deadline(load_of(2500), Pace(limits, LATENCY_S), START, at("2026-11-24T12:00"))
    assert missed.needed == Limits(rpd=1250), "of two days, the second from midnight UTC on"


def test_what_is_used_today_is_missing_today() -> None:
    plan = timeline(load_of(1000), pace_of(rpm=60, rpd=1000, used_today=400), START)
    assert [day.prompts for day in plan.days] == [600, 400]
    gone = timeline(load_of(1000), pace_of(rpm=60, rpd=1000, used_today=1000), START)
    assert [day.starts_at for day in gone.days] == [at("2026-11-23T08:00:05")]
    assert (gone.nights, gone.bound) == (1, "rpd")
    assert timeline(load_of(600), pace_of(rpm=60, rpd=1000, used_today=400), START).bound == "rpm"


@pytest.mark.parametrize("rpd", [None, 1000])
def test_a_day_that_the_service_says_is_used_up_is_waited_for(rpd: int | None) -> None:
    """Whether or not `[limits] rpd` is set."""
    opens = at("2026-11-23T08:00:05")
    closed = replace(pace_of(rpm=60, rpd=rpd), opens_at=opens.timestamp())
    plan = timeline(load_of(600), closed, START)
    assert (plan.days[0].starts_at, plan.nights, plan.bound) == (opens, 1, "rpd")
    assert plan.finish_at == opens + timedelta(seconds=timeline(load_of(600), pace_of(rpm=60), opens).seconds)
    assert deadline(load_of(600), closed, START, opens).needed is None, "no limit that is higher helps"
    assert timeline(load_of(600), closed, opens + timedelta(hours=1)).bound == "rpm", "past: it means nothing"


@pytest.mark.parametrize(
    ("start", "hours"), [("2026-03-08T07:59", 23), ("2026-11-01T06:59", 25), ("2026-11-23T07:59", 24)]
)
def test_the_clocks_change(start: str, hours: int) -> None:
    """One prompt just before midnight, one in the day of 23 or 25 hours, one after it."""
    days = timeline(load_of(3), pace_of(rpd=1), at(start)).days
    assert days[2].starts_at - days[1].starts_at == timedelta(hours=hours)


def test_a_day_that_ends_before_its_quota_is_not_waited_for() -> None:
    plan = timeline(load_of(40_000), pace_of(rpm=15, rpd=30_000), START)
    unpaused_s = timeline(load_of(40_000), pace_of(rpm=15), START).seconds
    assert plan.seconds == pytest.approx(unpaused_s)
    assert [day.prompts for day in plan.days] == [6717, 21_492, 11_791]
    assert [day.starts_at.hour for day in plan.days[1:]] == [8, 8]
    assert plan.bound == "rpm"


@pytest.mark.parametrize(("rpm", "rpd", "prompts"), [(60, 1000, 99_500), (5, 7100, 400_000), (15, 30_000, 10**6)])
def test_many_days_are_told_as_one_stretch(rpm: int, rpd: int, prompts: int) -> None:
    plan = timeline(load_of(prompts), pace_of(rpm=rpm, rpd=rpd), START)
    assert len(plan.days) == DAYS_LISTED + 1
    assert sum(day.prompts for day in plan.days) == prompts
    stretch = plan.days[-1]
    assert stretch.ends_at == plan.finish_at
    assert stretch.days == (plan.finish_at - stretch.starts_at) // timedelta(days=1) + 1


def test_a_stretch_of_days_ends_when_they_would_one_by_one() -> None:
    plan = timeline(load_of(99_500), pace_of(rpm=60, rpd=1000), at("2026-06-01T12:00"))
    assert plan.nights == 100
    assert plan.days[-1].ends_at == at("2026-09-08T07:00") + timedelta(
        seconds=RESET_JITTER_S + 499 * 60.3 / 60 + LATENCY_S
    )


def test_the_end_of_the_calendar_is_late_enough() -> None:
    plan = timeline(load_of(10**7), pace_of(rpd=1), START)
    assert (plan.nights, plan.finish_at.year) == (10**7, 9999)


# ---- what binds


@pytest.mark.parametrize(
    ("load", "pace", "bound"),
    [
        (load_of(3000), pace_of(rpm=100), "rpm"),
        (load_of(3000), pace_of(rpm=1000, tpm=100_000), "tpm"),
        (load_of(3000), pace_of(rpm=1000, concurrency=2), "concurrency"),
        (load_of(3000), pace_of(), "concurrency"),
        (load_of(3000), pace_of(rpm=3000, rpd=2999), "rpd"),
        (load_of(3), pace_of(rpm=1000), "latency"),
        (load_of(20, depth=20), pace_of(rpm=100), "latency"),
    ],
)
def test_what_binds(load: Load, pace: Pace, bound: str) -> None:
    assert timeline(load, pace, START).bound == bound


def test_a_plan_is_quick() -> None:
    """It is asked for every model and way to run."""
    for pace, most_s in ((pace_of(rpm=15, tpm=250_000, rpd=500), 0.01), (pace_of(rpm=None, tpm=None, rpd=500), 0.1)):
        began = time.process_time()
        timeline(load_of(10**6), pace, START)
        assert time.process_time() - began < most_s


def test_unknown_limits_are_told_grown_and_not() -> None:
    load = load_of(2000)
    grown = timeline(load, pace_of(rpm=None), START)
    first = timeline(load, pace_of(rpm=FIRST_RPM), START)
    assert first.ungrown_s is None
    assert grown.ungrown_s == first.seconds > 50 * grown.seconds


def test_what_has_grown_stays_so_for_the_next_day() -> None:
    """Requests grow for two minutes today; tomorrow's are sent at the pace reached."""
    plan = timeline(load_of(1000), pace_of(rpm=None, rpd=500), START)
    today, tomorrow = (day.ends_at - day.starts_at for day in plan.days)
    assert [day.prompts for day in plan.days] == [500, 500]
    assert timedelta(seconds=30) < tomorrow < 0.6 * today


# ---- properties

limits_known = st.builds(
    Limits,
    rpm=st.one_of(st.just(0), st.integers(1, 20_000)),
    tpm=st.one_of(st.just(0), st.integers(1000, 10**8)),
    rpd=st.one_of(st.none(), st.integers(1, 10**6)),
    concurrency=st.one_of(st.none(), st.integers(1, 3000)),
)
paces = st.builds(
    Pace, limits_known, st.floats(0.0, 120.0), slow_s=st.none(), used_today=st.one_of(st.just(0), st.integers(0, 2000))
)
loads = st.builds(
    lambda prompts, mean, largest, depth: Load(prompts, prompts * mean, largest * mean, depth),
    st.integers(1, 10**6),
    st.integers(1, 20_000),
    st.sampled_from([0, 1, 10]),
    st.integers(1, 4),
)
starts = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))
SOON_S = 1e-3  # of a plan's clock, a float of epoch seconds


@given(loads, paces, starts, st.integers(1, 10**6))
def test_more_prompts_never_take_less_time(load: Load, pace: Pace, start: datetime, more: int) -> None:
    mean = load.input_tokens // load.prompts
    larger = replace(load, prompts=load.prompts + more, input_tokens=(load.prompts + more) * mean)
    assert timeline(load, pace, start).seconds <= timeline(larger, pace, start).seconds + SOON_S


@given(loads, paces, starts, st.sampled_from(["rpm", "tpm", "rpd", "concurrency"]), st.integers(1, 10**5))
def test_a_higher_limit_never_takes_longer(load: Load, pace: Pace, start: datetime, name: str, more: int) -> None:
    value = getattr(pace.limits, name)
    assume(value)
    higher = replace(pace, limits=replace(pace.limits, **{name: value + more}))
    assert timeline(load, higher, start).seconds <= timeline(load, pace, start).seconds + SOON_S


@given(loads, paces, starts)
def test_the_days_have_all_prompts_one_after_another(load: Load, pace: Pace, start: datetime) -> None:
    plan = timeline(load, pace, start)
    assert sum(day.prompts for day in plan.days) == load.prompts
    assert all(day.prompts > 0 for day in plan.days)
    assert plan.days[0].starts_at >= start
    assert all(one.starts_at < next_.starts_at for one, next_ in zip(plan.days, plan.days[1:], strict=False))
    assert plan.days[-1].ends_at == plan.finish_at
    assert plan.nights > 0


@given(loads, paces, starts, st.floats(60.0, 1e6))
@example(load_of(10_000), pace_of(rpm=15, tpm=250_000, rpd=500), START, 25_200.0)
def test_what_is_needed_fits_and_less_does_not(load: Load, pace: Pace, start: datetime, in_s: float) -> None:
    by = start + timedelta(seconds=in_s)
    answer = deadline(load, pace, start, by)
    plan = timeline(load, pace, start)
    assert answer.fits == (plan.finish_at <= by)
    assert answer.margin_s == (by - plan.finish_at).total_seconds()
    if answer.fits:
        assert (answer.needed, answer.prompts_done, answer.share_done) == (Limits(), load.prompts, 1.0)
        return
    assert 0 <= answer.prompts_done < load.prompts
    if answer.needed is None:
        lifted = Pace(Limits(rpm=0, tpm=0, concurrency=load.prompts), pace.latency_s)
        assert timeline(load, lifted, start).finish_at > by
        return
    raised: dict[str, Any] = {
        name: value for name in ("rpm", "tpm", "rpd", "concurrency") if (value := getattr(answer.needed, name))
    }
    assert raised
    enough = replace(pace.limits, **raised)
    assert timeline(load, replace(pace, limits=enough), start).finish_at <= by
    for name, value in raised.items():
        lower: dict[str, Any] = {name: int(0.98 * value)}
        less = replace(pace, limits=replace(enough, **lower))
        assert int(0.98 * value) == 0 or timeline(load, less, start).finish_at > by


@given(loads, paces, starts, st.floats(60.0, 1e6))
def test_what_is_done_by_then_is_just_that(load: Load, pace: Pace, start: datetime, in_s: float) -> None:
    by = start + timedelta(seconds=in_s)
    done = deadline(load, pace, start, by).prompts_done
    mean = load.input_tokens // load.prompts

    def finish(prompts: int) -> datetime:
        part = replace(load, prompts=prompts, input_tokens=prompts * mean, depth=min(load.depth, prompts))
        return timeline(part, pace, start).finish_at

    assert done == 0 or finish(done) <= by
    assert done == load.prompts or finish(done + 1) > by


def test_a_night_s_quota_that_is_too_small() -> None:
    """10,000 prompts from half past midnight UTC until seven: requests a minute and a day are in the way."""
    answer = deadline(load_of(10_000), pace_of(rpm=15, tpm=250_000, rpd=500), START, at("2026-11-23T07:00"))
    assert answer.needed == Limits(rpm=26, rpd=10_000)
    assert (answer.prompts_done, answer.share_done, answer.fits) == (500, 0.05, False)


def test_nothing_to_do_is_always_in_time() -> None:
    assert deadline(Load(0, 0), pace_of(rpm=15), START, START).fits


def test_no_limit_makes_answers_quicker() -> None:
    answer = deadline(load_of(10, depth=10), pace_of(rpm=15), START, START + timedelta(seconds=20))
    assert answer.needed is None


# ---- when a person says when


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("07:00", "2026-11-23T06:00"),
        ("7:00", "2026-11-23T06:00"),
        ("01:31", "2026-11-23T00:31"),
        ("01:30", "2026-11-24T00:30"),  # now: the next is tomorrow's
        ("2026-11-24 07:00", "2026-11-24T06:00"),
        ("2026-11-24T07:00", "2026-11-24T06:00"),
        ("2026-11-24T07:00Z", "2026-11-24T07:00"),
        ("2026-11-24T07:00-08:00", "2026-11-24T15:00"),
        ("2027-07-01 07:00", "2027-07-01T05:00"),  # summer time there
        (" 07:00 ", "2026-11-23T06:00"),
    ],
)
def test_a_time_is_local_and_ahead(berlin: None, text: str, expected: str) -> None:
    found = next_time(text, START)
    assert found == at(expected)
    assert found.tzinfo is not None


def test_the_clocks_may_change_before_then(berlin: None) -> None:
    assert next_time("07:00", at("2026-10-24T20:00")) == at("2026-10-25T06:00")


@pytest.mark.parametrize("text", ["", "soon", "25:00", "07:60", "2026-13-01 07:00", "7", "0001-01-01"])
def test_what_is_no_time_is_refused(berlin: None, text: str) -> None:
    with pytest.raises(JobError) as caught:
        next_time(text, START)
    assert repr(text) in caught.value.message
    assert "07:00" in caught.value.hint


def test_what_is_past_is_refused() -> None:
    with pytest.raises(JobError, match="past"):
        next_time("2026-11-22 07:00", START.astimezone(timezone(timedelta(hours=5))))
