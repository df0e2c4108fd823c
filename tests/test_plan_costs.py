from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.amounts import Cell, Tier, Work
from pipeline.plan.costs import Tariff, notices, split_by_day
from pipeline.prices import Rates, cost, fixed_rates
from pipeline.records import Lane, Usage

NOVEMBER, DECEMBER, JANUARY = date(2026, 11, 22), date(2026, 12, 1), date(2027, 1, 1)
MILLION = 1_000_000.0
ARGON, PRO, LITE = "gemini-4-argon", "gemini-2.5-pro", "gemini-3.5-flash-lite"

SHORT: Work = {Tier("answer", False): Cell(1000, MILLION, 400_000, 100_000, 50_000)}
LONG: Work = {Tier("answer", True): Cell(4, MILLION, 0, 8_000, 2_000)}


def at(day: int, hour: int = 0, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


def notices_of(
    model: str,
    start: datetime,
    finish: datetime,
    own: Rates | None = None,
    by_day: Mapping[date, Decimal] | None = None,
) -> tuple[str, ...]:
    return notices(Tariff(model, start.date(), own), finish, by_day)


# ---- one day


@pytest.mark.parametrize(
    ("model", "day", "lane", "expected"),
    [  # 0.6 M plain input, 0.4 M cached, 0.15 M output with thinking, at the published rates
        (ARGON, NOVEMBER, "standard", "1.20 + 0.04 + 1.50"),
        (ARGON, DECEMBER, "standard", "2.40 + 0.08 + 3.00"),
        (ARGON, NOVEMBER, "flex", "0.60 + 0.04 + 0.75"),
        ("gemini-3.8-flash", NOVEMBER, "standard", "0.45 + 0.03 + 0.5625"),
        ("gemini-3.8-flash", NOVEMBER, "priority", "0.81 + 0.054 + 1.0125"),
        ("gemini-3.8-flash", JANUARY, "batch", "0.45 + 0.03 + 0.5625"),
        ("gemini-3.5-flash", NOVEMBER, "standard", "0.45 + 0.03 + 0.5625"),
        (LITE, NOVEMBER, "standard", "0.18 + 0.012 + 0.375"),
        (LITE, NOVEMBER, "batch", "0.09 + 0.008 + 0.1875"),
        (PRO, NOVEMBER, "batch", "0.375 + 0.05 + 0.75"),
        (PRO, DECEMBER, "batch", "0.225 + 0.015 + 0.28125"),  # answered by 3.8-flash
    ],
)
def test_the_dollars_of_one_day(model: str, day: date, lane: Lane, expected: str) -> None:
    assert Tariff(model, day, lane=lane).usd(SHORT) == sum(map(Decimal, expected.split(" + ")))


def test_long_prompts_pay_the_long_rates() -> None:
    assert Tariff(PRO, NOVEMBER).usd(LONG) == Decimal("2.50") + Decimal("0.15")
    assert Tariff(PRO, NOVEMBER).usd({**SHORT, **LONG}) == Decimal("0.75") + Decimal("0.05") + Decimal("1.5") + Decimal(
        "2.65"
    )


def test_an_unknown_price_is_not_zero() -> None:
    assert Tariff("gemini-9-none", NOVEMBER).usd(SHORT) is None
    assert Tariff("gemini-9-none", NOVEMBER).by_day(SHORT, [(NOVEMBER, 1.0)]) is None


def test_no_work_costs_nothing_even_at_an_unknown_price() -> None:
    assert Tariff("gemini-9-none", NOVEMBER).usd({}) == 0


def test_own_prices_hold_on_every_lane_and_for_long_prompts() -> None:
    own = fixed_rates(0.1, 0.2, 0.05)
    for lane in get_args(Lane):
        assert Tariff("mine", NOVEMBER, own, lane).usd(SHORT) == Decimal("0.06") + Decimal("0.02") + Decimal("0.03")
    assert Tariff("mine", NOVEMBER, own).usd(LONG) == Decimal("0.1") + Decimal("0.002")


@given(st.integers(0, 10**5), st.integers(0, 10**5), st.integers(0, 10**4), st.integers(0, 10**4))
def test_a_cell_costs_what_the_same_call_costs(plain: int, cached: int, output: int, thinking: int) -> None:
    cell = Cell(1, plain + cached, cached, output, thinking)
    usage = Usage(plain + cached, cached, output, thinking)
    assert Tariff(PRO, NOVEMBER).usd({Tier("map", False): cell}) == cost(usage, PRO, at(22))


# ---- several days


def test_a_run_over_a_change_of_price_pays_both() -> None:
    days = [(date(2026, 11, 30), 0.75), (DECEMBER, 0.25)]
    own_day = {days[0][0]: Decimal("2.055"), DECEMBER: Decimal("1.37")}
    assert Tariff(ARGON, NOVEMBER).by_day(SHORT, days) == own_day
    assert Tariff(ARGON, NOVEMBER).by_day(SHORT, [(NOVEMBER, 1.0)]) == {NOVEMBER: Decimal("2.74")}


def test_a_run_over_the_end_of_a_model_pays_its_successor() -> None:
    days = [(date(2026, 11, 30), 0.5), (DECEMBER, 0.5)]
    by_day = Tariff(PRO, NOVEMBER).by_day(SHORT, days)
    assert by_day and list(by_day.values()) == [Decimal("2.30") / 2, Decimal("1.0425") / 2]


def test_decades_of_nights_are_priced_as_far_as_prices_are_announced() -> None:
    nights = [(at(22) + timedelta(number), at(22, 1) + timedelta(number), 1.0) for number in range(20_000)]
    days = split_by_day(nights)
    assert [day for day, _ in days] == [NOVEMBER + timedelta(number) for number in range(401)]
    by_day = Tariff(ARGON, NOVEMBER).by_day(SHORT, days)
    assert by_day is not None
    assert float(by_day[DECEMBER]) == pytest.approx(5.48 / 20_000)
    assert float(sum(by_day.values())) == pytest.approx(5.48 - 9 / 20_000 * 2.74)  # nine days at the old price


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([(at(22, 6), at(22, 18), 10.0)], {22: 1.0}),
        ([(at(22, 18), at(23, 6), 10.0)], {22: 0.5, 23: 0.5}),
        ([(at(22, 12), at(25), 10.0)], {22: 0.2, 23: 0.4, 24: 0.4}),  # nothing falls on the day it ends at midnight
        ([(at(22, 8), at(22, 9), 30.0), (at(23, 8), at(23, 9), 10.0)], {22: 0.75, 23: 0.25}),
        ([(at(22, 8), at(22, 8), 30.0)], {22: 1.0}),  # at once
        ([(at(22, 8), at(22, 9), 0.0)], {}),
        ([], {}),
    ],
)
def test_calls_by_date(slots: list[tuple[datetime, datetime, float]], expected: dict[int, float]) -> None:
    assert {day.day: share for day, share in split_by_day(slots)} == pytest.approx(expected)


def test_days_are_those_of_utc() -> None:
    pacific = datetime.fromisoformat("2026-11-22T16:00:00-08:00")
    assert split_by_day([(pacific, pacific + timedelta(hours=1), 5.0)]) == ((date(2026, 11, 23), 1.0),)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.1, 1e6)),
        min_size=1,
        max_size=5,
    )
)
def test_shares_add_up_to_one_in_order_of_date(parts: list[tuple[int, int, float]]) -> None:
    slots = [
        (at(1) + timedelta(seconds=start), at(1) + timedelta(seconds=start + length), number)
        for start, length, number in parts
    ]
    shares = split_by_day(slots)
    assert sum(share for _, share in shares) == pytest.approx(1)
    assert [day for day, _ in shares] == sorted({day for day, _ in shares})


# ---- what is told


def test_a_change_in_mid_run_says_what_it_concerns() -> None:
    start, finish = at(30, 12), at(1, 12, month=12)
    by_day = Tariff(ARGON, NOVEMBER).by_day(SHORT, split_by_day([(start, finish, 1000)]))
    assert notices_of(ARGON, start, finish, by_day=by_day) == (
        "the price of gemini-4-argon doubles on 2026-12-01, in mid-run: $2.74 of the cost is at the new price",
    )
    assert notices_of(ARGON, start, finish) == ("the price of gemini-4-argon doubles on 2026-12-01, in mid-run",)


def test_small_sums_keep_their_digits() -> None:
    (told,) = notices_of(ARGON, at(30), at(1, 1, month=12), by_day={DECEMBER: Decimal("0.01234")})
    assert "$0.0123 of the cost" in told


@pytest.mark.parametrize(
    ("model", "start", "expected"),
    [
        (ARGON, at(23), ("the price of gemini-4-argon doubles on 2026-12-01",)),
        (ARGON, at(1, month=12), ()),
        ("gemini-3.8-flash", at(23), ()),  # 39 days ahead
        ("gemini-3.8-flash", at(2, month=12), ("the price of gemini-3.8-flash doubles on 2027-01-01",)),
        ("gemini-flash-latest", at(2, month=12), ("the price of gemini-3.8-flash doubles on 2027-01-01",)),
        (PRO, at(23), ("gemini-2.5-pro is switched off on 2026-12-01; then gemini-3.8-flash answers, at its price",)),
        (
            "gemini-2.5-flash",
            at(23),
            ("gemini-2.5-flash is switched off on 2026-12-01; then gemini-3.5-flash-lite answers, at the same price",),
        ),
        (
            PRO,
            at(2, month=12),
            (
                "gemini-2.5-pro was switched off on 2026-12-01: gemini-3.8-flash answers, at its price",
                "the price of gemini-3.8-flash doubles on 2027-01-01",
            ),
        ),
        (
            "gemini-3.7-flash",
            at(23),
            ("gemini-3.7-flash was switched off on 2026-10-08: gemini-3.8-flash answers, at its price",),
        ),
        ("gemini-3.1-flash-lite", at(23), ()),
        (LITE, at(23), ()),
        ("gemini-9-none", at(23), ()),
    ],
)
def test_what_comes_soon_after_the_run(model: str, start: datetime, expected: tuple[str, ...]) -> None:
    assert notices_of(model, start, start + timedelta(hours=3)) == expected


def test_the_end_of_a_model_without_a_successor() -> None:
    off = datetime(2027, 5, 7, tzinfo=UTC)
    soon = "gemini-3.1-flash-lite is switched off on 2027-05-07: no successor is known"
    assert notices_of("gemini-3.1-flash-lite", off - timedelta(days=20), off - timedelta(days=19)) == (soon,)
    over = "gemini-3.1-flash-lite was switched off on 2027-05-07: no successor is known"
    assert notices_of("gemini-3.1-flash-lite", off, off + timedelta(days=1)) == (over,)


def test_two_changes_share_the_cost_between_them() -> None:
    by_day = {date(2026, 11, 30): Decimal(1), DECEMBER: Decimal(2), JANUARY: Decimal(4)}
    assert notices_of(PRO, at(30), datetime(2027, 1, 2, tzinfo=UTC), by_day=by_day) == (
        "gemini-2.5-pro is switched off on 2026-12-01, in mid-run; then gemini-3.8-flash answers, at its price: "
        "$2.00 of the cost is at that price",
        "the price of gemini-3.8-flash doubles on 2027-01-01, in mid-run: $4.00 of the cost is at the new price",
    )


def test_own_prices_do_not_change_but_models_still_end() -> None:
    own = fixed_rates(1, 2)
    by_day = {DECEMBER: Decimal(2)}
    assert notices_of(ARGON, at(30), at(2, month=12), own, by_day) == ()
    assert notices_of(PRO, at(30), at(2, month=12), own, by_day) == (
        "gemini-2.5-pro is switched off on 2026-12-01, in mid-run; then gemini-3.8-flash answers",
    )
    assert notices_of(PRO, at(2, month=12), at(3, month=12), own) == (
        "gemini-2.5-pro was switched off on 2026-12-01: gemini-3.8-flash answers",
    )
