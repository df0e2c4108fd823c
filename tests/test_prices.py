from dataclasses import astuple
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prices import EMULATOR, LONG_PROMPT_TOKENS, MODELS, Lane, Rates, cost, fixed_rates, model_info, rates
from pipeline.records import Usage

MILLION = 1_000_000
NOVEMBER, DECEMBER, JANUARY = date(2026, 11, 22), date(2026, 12, 1), date(2027, 1, 1)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LITE = "gemini-3.5-flash-lite"


def usd(found: Rates | None) -> tuple[Decimal, ...]:
    """USD per million tokens: input, cached, output."""
    assert found is not None
    return tuple(rate * MILLION for rate in astuple(found))


def decimals(text: str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, text.split()))


# ---- the published table, as compared with a second source on 2026-11-22: input, cached input, output


@pytest.mark.parametrize(
    ("model", "day", "long", "expected"),
    [
        ("gemini-4-argon", NOVEMBER, False, "2.00 0.10 10"),
        ("gemini-4-argon", date(2026, 11, 30), False, "2.00 0.10 10"),
        ("gemini-4-argon", DECEMBER, False, "4.00 0.20 20"),
        ("gemini-3.8-flash", NOVEMBER, False, "0.75 0.075 3.75"),
        ("gemini-3.8-flash", date(2026, 12, 31), False, "0.75 0.075 3.75"),
        ("gemini-3.8-flash", JANUARY, False, "1.50 0.15 7.50"),
        ("gemini-3.7-flash", NOVEMBER, False, "0.75 0.075 3.75"),
        ("gemini-3.7-flash", JANUARY, False, "1.50 0.15 7.50"),
        ("gemini-3.6-flash", NOVEMBER, False, "0.75 0.075 3.75"),
        ("gemini-3.6-flash", JANUARY, False, "1.50 0.15 7.50"),
        ("gemini-3.5-flash", NOVEMBER, False, "1.50 0.15 9.00"),
        ("gemini-3.5-flash", JANUARY, False, "1.50 0.15 9.00"),
        (LITE, NOVEMBER, False, "0.30 0.03 2.50"),
        (LITE, JANUARY, True, "0.30 0.03 2.50"),
        ("gemini-3.1-flash-lite", NOVEMBER, False, "0.25 0.025 1.50"),
        ("gemini-3.1-pro-preview", NOVEMBER, False, "2 0.20 12"),
        ("gemini-3.1-pro-preview", NOVEMBER, True, "4 0.40 18"),
        ("gemini-3-flash-preview", NOVEMBER, False, "0.50 0.05 3.00"),
        ("gemini-2.5-pro", NOVEMBER, False, "1.25 0.125 10"),
        ("gemini-2.5-pro", NOVEMBER, True, "2.50 0.25 15"),
        ("gemini-2.5-flash", NOVEMBER, False, "0.30 0.03 2.50"),
        ("gemini-2.5-flash-lite", NOVEMBER, False, "0.10 0.01 0.40"),
        ("gemini-flash-latest", NOVEMBER, False, "0.75 0.075 3.75"),
        ("gemini-flash-lite-latest", NOVEMBER, False, "0.30 0.03 2.50"),
        ("gemini-pro-latest", NOVEMBER, True, "4 0.40 18"),
    ],
)
def test_standard_price(model: str, day: date, long: bool, expected: str) -> None:
    assert usd(rates(model, day, long=long)) == decimals(expected)


@pytest.mark.parametrize(
    ("model", "day", "long", "expected"),
    [
        ("gemini-4-argon", NOVEMBER, False, "1.00 5.00"),
        ("gemini-4-argon", DECEMBER, False, "2 10"),
        ("gemini-3.8-flash", NOVEMBER, False, "0.375 1.875"),
        ("gemini-3.8-flash", JANUARY, False, "0.75 3.75"),
        ("gemini-3.7-flash", NOVEMBER, False, "0.375 1.875"),  # the library has no batch rate for it
        ("gemini-3.6-flash", NOVEMBER, False, "0.375 1.875"),
        ("gemini-3.5-flash", NOVEMBER, False, "0.75 4.50"),  # nor for it
        (LITE, NOVEMBER, False, "0.15 1.25"),
        ("gemini-3.1-flash-lite", NOVEMBER, False, "0.125 0.75"),
        ("gemini-3.1-pro-preview", NOVEMBER, False, "1 6"),
        ("gemini-3.1-pro-preview", NOVEMBER, True, "2 9"),
        ("gemini-3-flash-preview", NOVEMBER, False, "0.25 1.50"),
        ("gemini-2.5-pro", NOVEMBER, False, "0.625 5"),
        ("gemini-2.5-pro", NOVEMBER, True, "1.25 7.50"),
        ("gemini-2.5-flash", NOVEMBER, False, "0.15 1.25"),
        ("gemini-2.5-flash-lite", NOVEMBER, False, "0.05 0.20"),
        (LITE, date(2026, 10, 1), False, "0.15 1.25"),  # before the library's batch rates begin
    ],
)
def test_batch_price(model: str, day: date, long: bool, expected: str) -> None:
    plain, _, output = usd(rates(model, day, "batch", long))
    assert (plain, output) == decimals(expected)


def test_cached_tokens_in_a_batch_have_the_rate_of_their_own() -> None:
    assert usd(rates(LITE, NOVEMBER, "batch")) == decimals("0.15 0.02 1.25")


@pytest.mark.parametrize("model", [model.name for model in MODELS])
@pytest.mark.parametrize("long", [False, True])
def test_flex_is_half_and_priority_is_1_8_times_the_standard_price(model: str, long: bool) -> None:
    standard = usd(rates(model, NOVEMBER, long=long))
    assert usd(rates(model, NOVEMBER, "flex", long)) == tuple(rate / 2 for rate in standard)
    assert usd(rates(model, NOVEMBER, "priority", long)) == tuple(rate * Decimal("1.8") for rate in standard)


@pytest.mark.parametrize("model", [model.name for model in MODELS])
@pytest.mark.parametrize("lane", get_args(Lane))
def test_every_listed_model_is_priced_and_cached_input_is_never_dearer(model: str, lane: Lane) -> None:
    for day in (NOVEMBER, DECEMBER, JANUARY):
        plain, cached, output = usd(rates(model, day, lane))
        assert 0 < cached < plain < output


@pytest.mark.parametrize("lane", get_args(Lane))
def test_an_unknown_model_has_no_price(lane: Lane) -> None:
    assert rates("gemini-9-none", NOVEMBER, lane) is None
    assert cost(Usage(1000, output_tokens=10), "gemini-9-none", NOON, lane) is None


def test_another_vendors_model_is_not_priced_as_googles() -> None:
    assert rates("gpt-5", NOVEMBER) is None


@pytest.mark.parametrize("lane", get_args(Lane))
def test_the_emulator_costs_nothing_whatever_the_job_says(lane: Lane) -> None:
    assert cost(Usage(10**9, 0, 10**9), EMULATOR, NOON, lane) == 0
    assert cost(Usage(10**9, 0, 10**9), EMULATOR, NOON, lane, own=fixed_rates(1, 2)) == 0


# ---- one call


def test_input_and_output() -> None:
    assert cost(Usage(MILLION // 10, output_tokens=MILLION // 10), LITE, NOON) == Decimal("0.28")


def test_cached_tokens_are_part_of_the_input_and_cheaper() -> None:
    assert cost(Usage(100_000, cached_tokens=60_000), LITE, NOON) == Decimal("0.012") + Decimal("0.0018")


def test_thinking_is_billed_as_output() -> None:
    assert (
        cost(Usage(thinking_tokens=1000), LITE, NOON)
        == cost(Usage(output_tokens=1000), LITE, NOON)
        == Decimal("0.0025")
    )


def test_tool_tokens_are_billed_as_input() -> None:
    assert cost(Usage(tool_tokens=1000), LITE, NOON) == cost(Usage(1000), LITE, NOON) == Decimal("0.0003")


def test_a_long_prompt_pays_the_long_rate_for_the_whole_call() -> None:
    pro = "gemini-2.5-pro"
    assert cost(Usage(LONG_PROMPT_TOKENS, output_tokens=1000), pro, NOON) == Decimal("0.25") + Decimal("0.01")
    long = cost(Usage(LONG_PROMPT_TOKENS + 1, output_tokens=1000), pro, NOON)
    assert long == Decimal("2.5") * (LONG_PROMPT_TOKENS + 1) / MILLION + Decimal("0.015")


def test_the_price_is_that_of_the_moment_of_the_call() -> None:
    last, first = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    assert cost(Usage(1000), "gemini-4-argon", last) == Decimal("0.002")
    assert cost(Usage(1000), "gemini-4-argon", first) == Decimal("0.004")


def test_own_rates_replace_the_tables_for_known_and_unknown_models() -> None:
    own = fixed_rates(0.1, 0.7, 0.01)
    usage = Usage(1000, cached_tokens=400, output_tokens=10, thinking_tokens=5, tool_tokens=100)
    expected = (700 * Decimal("0.1") + 400 * Decimal("0.01") + 15 * Decimal("0.7")) / MILLION
    assert cost(usage, LITE, NOON, own=own) == cost(usage, "mine", NOON, own=own) == expected


def test_own_rates_without_a_cached_one_bill_cached_tokens_as_others() -> None:
    assert fixed_rates(0.1, 0.7) == Rates(Decimal("1E-7"), Decimal("1E-7"), Decimal("7E-7"))


def test_own_rates_of_zero_are_a_price() -> None:
    assert cost(Usage(1000, output_tokens=10), "mine", NOON, own=fixed_rates(0, 0)) == 0


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5), st.sampled_from(get_args(Lane)))
def test_money_is_exact_and_adds_up_by_kind_of_token(plain: int, output: int, thinking: int, lane: Lane) -> None:
    whole = cost(Usage(plain, 0, output, thinking), "gemini-3.8-flash", NOON, lane)
    kinds = (Usage(plain), Usage(output_tokens=output), Usage(thinking_tokens=thinking))
    assert whole == sum((cost(kind, "gemini-3.8-flash", NOON, lane) or Decimal(0) for kind in kinds), Decimal(0))


# ---- models


def test_model_names_are_unique_and_found_with_googles_prefix_too() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        assert model_info(model.name) is model_info(f"models/{model.name}") is model
    assert model_info("gemini-9-none") is None
