from datetime import UTC, date, datetime
from decimal import Decimal
from typing import get_args

import pytest
from genai_prices import Usage as Priced
from genai_prices import calc_price
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import MODELS, Model, answering, model_info
from pipeline.prices import (
    FREE,
    HORIZON,
    LONG_PROMPT_TOKENS,
    PriceChange,
    Rates,
    cost,
    effective_rates,
    fixed_rates,
    note,
    price_changes,
    rates,
)
from pipeline.records import Lane, Usage

MILLION = 1_000_000
NOVEMBER, DECEMBER, JANUARY = date(2026, 11, 22), date(2026, 12, 1), date(2027, 1, 1)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LITE = "gemini-3.5-flash-lite"


def usd(found: Rates | None) -> tuple[Decimal, ...]:
    """USD per million tokens: input, cached, output."""
    assert found is not None
    return tuple(rate * MILLION for rate in (found.input, found.cached, found.output))


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
        ("gemini-3.5-flash", date(2026, 10, 7), False, "1.50 0.15 9.00"),
        ("gemini-3.5-flash", date(2026, 10, 8), False, "0.75 0.075 3.75"),  # answered by 3.6 from here on
        ("gemini-3.5-flash", JANUARY, False, "1.50 0.15 7.50"),
        (LITE, NOVEMBER, False, "0.30 0.03 2.50"),
        (LITE, JANUARY, True, "0.30 0.03 2.50"),
        ("gemini-3.1-flash-lite", NOVEMBER, False, "0.25 0.025 1.50"),
        ("gemini-3.1-pro-preview", NOVEMBER, False, "2 0.20 12"),
        ("gemini-3.1-pro-preview", NOVEMBER, True, "4 0.40 18"),
        ("gemini-3-flash-preview", NOVEMBER, False, "0.50 0.05 3.00"),
        ("gemini-2.5-pro", NOVEMBER, False, "1.25 0.125 10"),
        ("gemini-2.5-pro", NOVEMBER, True, "2.50 0.25 15"),
        ("gemini-2.5-pro", date(2026, 11, 30), True, "2.50 0.25 15"),
        ("gemini-2.5-pro", DECEMBER, False, "0.75 0.075 3.75"),  # answered by 3.8 from here on, which has no long rate
        ("gemini-2.5-pro", DECEMBER, True, "0.75 0.075 3.75"),
        ("gemini-2.5-pro", JANUARY, False, "1.50 0.15 7.50"),
        ("gemini-2.5-flash", NOVEMBER, False, "0.30 0.03 2.50"),
        ("gemini-2.5-flash", DECEMBER, False, "0.30 0.03 2.50"),
        ("gemini-3.1-flash-lite", date(2027, 5, 7), False, "0.25 0.025 1.50"),  # off, and no successor is known
        ("models/gemini-2.5-pro", NOVEMBER, False, "1.25 0.125 10"),
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
        ("gemini-3.7-flash", NOVEMBER, False, "0.375 1.875"),
        ("gemini-3.7-flash", date(2026, 10, 7), False, "0.375 1.875"),  # the library has no batch rate for it
        ("gemini-3.6-flash", NOVEMBER, False, "0.375 1.875"),
        ("gemini-3.5-flash", NOVEMBER, False, "0.375 1.875"),
        ("gemini-3.5-flash", date(2026, 10, 7), False, "0.75 4.50"),  # nor for it
        ("gemini-2.5-pro", DECEMBER, False, "0.375 1.875"),
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


@pytest.mark.parametrize(
    ("model", "cached"),
    [
        *((name, "0.0375") for name in ("gemini-3.8-flash", "gemini-3.6-flash", "gemini-3.7-flash")),  # half
        ("gemini-4-argon", "0.05"),
        ("gemini-3.1-flash-lite", "0.0125"),
        (LITE, "0.02"),  # of its own
        ("gemini-3.1-pro-preview", "0.20"),  # as on the standard lane
        ("gemini-3-flash-preview", "0.05"),
        ("gemini-2.5-pro", "0.125"),
        ("gemini-2.5-flash", "0.03"),
        ("gemini-2.5-flash-lite", "0.01"),
    ],
)
def test_cached_tokens_in_a_batch(model: str, cached: str) -> None:
    assert usd(rates(model, NOVEMBER, "batch"))[1] == Decimal(cached)


@pytest.mark.parametrize("model", [model.name for model in MODELS])
@pytest.mark.parametrize("long", [False, True])
def test_flex_is_half_and_priority_is_1_8_times_the_standard_price(model: str, long: bool) -> None:
    standard = usd(rates(model, NOVEMBER, long=long))
    plain, cached, output = standard
    assert usd(rates(model, NOVEMBER, "flex", long)) == (plain / 2, min(cached, plain / 2), output / 2)
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


@pytest.mark.parametrize(
    ("model", "vendor", "listed"),
    [
        ("gpt-5-mini", "openai", "gpt-5-mini"),
        ("openai/gpt-4o", "openai", "gpt-4o"),
        ("gpt-4o-2024-08-06", "openai", "gpt-4o"),
        ("deepseek-chat", "deepseek", "deepseek-chat"),
        ("grok-4", "x-ai", "grok-4"),
        ("claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5"),
        ("mistral-large-latest", "mistral", "mistral-large-latest"),
    ],
)
def test_another_vendors_model_has_its_makers_price(model: str, vendor: str, listed: str) -> None:
    plain, _, output = usd(rates(model, NOVEMBER))
    usage = Priced(input_tokens=1_000, output_tokens=1_000)
    told = calc_price(usage, model_ref=listed, provider_id=vendor, genai_request_timestamp=NOON)
    assert (plain, output) == (told.input_price * 1_000, told.output_price * 1_000)


@pytest.mark.parametrize("model", ["glm-5", "qwen3:8b", "Qwen/Qwen3-8B", "llama3.2", "my-model", "default"])
def test_what_makers_list_at_several_prices_or_not_at_all_is_not_guessed(model: str) -> None:
    assert rates(model, NOVEMBER) is None


@pytest.mark.parametrize(
    ("model", "vendor"),
    [
        ("gpt-5.4", "openai"),
        ("claude-haiku-5-5", "anthropic"),
        ("grok-4.5", "x-ai"),
        ("claude-sonnet-4-5", "anthropic"),
    ],
)
@pytest.mark.parametrize("tokens", [1_000, 150_000, 199_999, 200_001, 250_000, 900_000])
def test_a_price_is_never_below_its_makers_whatever_the_prompt(model: str, vendor: str, tokens: int) -> None:
    usage = Priced(input_tokens=tokens, output_tokens=1_000)
    told = calc_price(usage, model_ref=model, provider_id=vendor, genai_request_timestamp=NOON)
    ours = cost(Usage(tokens, output_tokens=1_000), model, NOON)
    assert ours is not None and told.total_price <= ours <= 5 * told.total_price


@pytest.mark.parametrize("lane", get_args(Lane))
def test_a_rehearsal_costs_nothing_and_a_model_that_is_called_emulator_does(lane: Lane) -> None:
    assert cost(Usage(10**9, 0, 10**9), LITE, NOON, lane, own=FREE) == 0
    assert cost(Usage(10**9, 0, 10**9), "emulator", NOON, lane) is None
    assert cost(Usage(10**6, 0, 10**6), "emulator", NOON, lane, own=fixed_rates(1, 2)) == 3


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


@pytest.mark.parametrize(
    ("name", "day", "expected"),
    [
        ("gemini-3.7-flash", date(2026, 10, 7), "gemini-3.7-flash"),
        ("gemini-3.7-flash", date(2026, 10, 8), "gemini-3.8-flash"),
        ("gemini-3.5-flash", NOVEMBER, "gemini-3.6-flash"),
        ("gemini-2.5-pro", date(2026, 11, 30), "gemini-2.5-pro"),
        ("gemini-2.5-pro", DECEMBER, "gemini-3.8-flash"),
        ("gemini-2.5-flash", DECEMBER, LITE),
        ("models/gemini-2.5-flash", DECEMBER, LITE),
        ("gemini-3.1-flash-lite", date(2028, 1, 1), "gemini-3.1-flash-lite"),
        ("gemini-flash-latest", NOVEMBER, "gemini-3.8-flash"),
        ("gemini-flash-lite-latest", NOVEMBER, LITE),
        ("gemini-pro-latest", NOVEMBER, "gemini-3.1-pro-preview"),
        ("gemini-9-none", NOVEMBER, "gemini-9-none"),
    ],
)
def test_who_answers(name: str, day: date, expected: str) -> None:
    assert answering(name, day) == expected


def test_every_successor_and_alias_is_a_model_that_is_served() -> None:
    for model in MODELS:
        for target in filter(None, (model.successor, model.alias_of)):
            found = model_info(target)
            assert found is not None and found.off is None and found.alias_of is None


def test_a_factor_of_the_job_scales_its_own_rates_in_that_lane_and_what_is_cached_costs_as_in_standard() -> None:
    own = fixed_rates(1, 2, 0.75, search_usd=14, flex=0.5, batch=0.9)
    assert usd(own.in_lane("flex")) == (Decimal("0.5"), Decimal("0.5"), Decimal(1))
    assert usd(own.in_lane("batch")) == (Decimal("0.9"), Decimal("0.75"), Decimal("1.8"))
    assert own.in_lane("standard") == own and own.in_lane("flex").search == own.search


def test_own_rates_hold_on_every_day_and_lane() -> None:
    own = fixed_rates(1, 2)
    assert effective_rates("gemini-2.5-pro", DECEMBER, "batch", True, own) == own
    assert effective_rates(LITE, DECEMBER, "flex", False, None) == rates(LITE, DECEMBER, "flex")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gemini-4-argon", "price doubles on 2026-12-01"),
        ("gemini-3.8-flash", "price doubles on 2027-01-01"),
        ("gemini-3.7-flash", "deprecated, answered by gemini-3.8-flash"),
        ("gemini-3.6-flash", "price doubles on 2027-01-01"),
        ("gemini-3.5-flash", "deprecated, answered by gemini-3.6-flash"),
        (LITE, ""),
        ("gemini-3.1-flash-lite", "off on 2027-05-07"),
        ("gemini-2.5-pro", "off on 2026-12-01, then answered by gemini-3.8-flash"),
        ("gemini-2.5-flash", "off on 2026-12-01, then answered by gemini-3.5-flash-lite"),
        ("gemini-2.5-flash-lite", "not offered to new projects"),
        ("gemini-flash-latest", "alias of gemini-3.8-flash"),
    ],
)
def test_note_on_a_day_in_november(model: str, expected: str) -> None:
    found = model_info(model)
    assert found is not None and note(found, NOVEMBER) == expected


def test_a_note_goes_with_the_time() -> None:
    argon, pro = (model_info(name) for name in ("gemini-4-argon", "gemini-2.5-pro"))
    assert argon is not None and pro is not None
    assert note(argon, DECEMBER) == ""
    assert note(argon, date(2026, 8, 1)) == ""  # too far ahead
    assert note(pro, DECEMBER) == "deprecated, answered by gemini-3.8-flash"
    assert note(Model("gone", off=DECEMBER), DECEMBER) == "off since 2026-12-01"


# ---- changes of price


def test_a_year_of_changes() -> None:
    found = price_changes("gemini-2.5-pro", NOVEMBER, date(2027, 12, 27))
    assert [(change.day, change.verb, change.successor) for change in found] == [
        (DECEMBER, "falls", "gemini-3.8-flash"),
        (JANUARY, "doubles", None),
    ]
    assert usd(found[0].before) == decimals("1.25 0.125 10")
    assert found[0].after == found[1].before == rates("gemini-3.8-flash", DECEMBER)
    assert usd(found[1].after) == decimals("1.50 0.15 7.50")


@pytest.mark.parametrize(
    ("model", "first", "last", "expected"),
    [
        ("gemini-4-argon", date(2026, 11, 30), DECEMBER, [(DECEMBER, "doubles", None)]),
        ("gemini-4-argon", DECEMBER, JANUARY, []),  # the first day begins with its own price
        ("gemini-4-argon", NOVEMBER, date(2026, 11, 30), []),
        ("gemini-4-argon", JANUARY, NOVEMBER, []),
        ("gemini-flash-latest", NOVEMBER, JANUARY, [(JANUARY, "doubles", None)]),
        ("gemini-2.5-flash", NOVEMBER, JANUARY, [(DECEMBER, "stays", LITE)]),
        ("gemini-3.5-flash", date(2026, 10, 1), NOVEMBER, [(date(2026, 10, 8), "falls", "gemini-3.6-flash")]),
        ("gemini-9-none", NOVEMBER, JANUARY, []),
    ],
)
def test_changes_between_two_days(
    model: str, first: date, last: date, expected: list[tuple[date, str, str | None]]
) -> None:
    assert [(change.day, change.verb, change.successor) for change in price_changes(model, first, last)] == expected


def test_decades_are_looked_at_only_as_far_as_prices_are_announced() -> None:
    assert price_changes("gemini-3.8-flash", NOVEMBER, date(2126, 1, 1)) == price_changes(
        "gemini-3.8-flash", NOVEMBER, NOVEMBER + HORIZON
    )


def test_changes_of_a_lane() -> None:
    (change,) = price_changes(LITE, date(2026, 10, 1), NOVEMBER, "batch")  # cached tokens, when batch rates began
    assert (change.day, change.verb) == (date(2026, 10, 14), "falls")
    assert price_changes(LITE, date(2026, 10, 1), NOVEMBER) == ()


@pytest.mark.parametrize(
    ("before", "after", "verb"),
    [
        (fixed_rates(1, 2), fixed_rates(0.5, 1), "halves"),
        (fixed_rates(1, 2), fixed_rates(1, 3), "rises"),
        (fixed_rates(1, 2), fixed_rates(2, 1), "changes"),
        (None, fixed_rates(1, 2), "changes"),
        (fixed_rates(1, 2), None, "changes"),
    ],
)
def test_how_a_price_changes(before: Rates | None, after: Rates | None, verb: str) -> None:
    assert PriceChange(DECEMBER, "mine", before, after, None).verb == verb


def test_sound_is_dearer_where_the_table_says_so() -> None:
    given, at = Usage(1_000_000, sound_tokens=400_000), datetime(2026, 11, 29, tzinfo=UTC)
    text = cost(Usage(1_000_000), "gemini-3.1-flash-lite", at)
    mixed = cost(given, "gemini-3.1-flash-lite", at)
    assert text is not None and mixed is not None
    rate = rates("gemini-3.1-flash-lite", at.date(), long=True)
    assert rate is not None and rate.sound is not None and rate.sound > rate.input
    assert mixed - text == (rate.sound - rate.input) * 400_000
    assert cost(given, "gemini-3.5-flash-lite", at) == cost(Usage(1_000_000), "gemini-3.5-flash-lite", at)
    assert cost(given, "gemini-3.1-flash-lite", at, own=fixed_rates(1, 2)) == 1
