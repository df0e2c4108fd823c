from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal

import pytest

from pipeline.models import MODELS, Model, model_info
from pipeline.plan.amounts import Cell, Tier, Work
from pipeline.plan.compare import (
    LANES,
    Offer,
    Saving,
    chunk_sizes,
    compare,
    identical_rows,
    misfit,
    other_lanes,
    shared_prefix,
)
from pipeline.plan.costs import Tariff
from pipeline.prices import Rates, fixed_rates
from pipeline.records import Lane

DAY, DECEMBER = date(2026, 11, 23), date(2026, 12, 1)
ARGON, PRO, LITE = "gemini-4-argon", "gemini-2.5-pro", "gemini-3.5-flash-lite"
WORK: Work = {Tier("answer", False): Cell(1000, 1_000_000.0, 0.0, 80_000.0, 20_000.0)}


def known(name: str) -> Model:
    found = model_info(name)
    assert found is not None
    return found


def offers(
    day: date = DAY, longest: int = 2000, bound: int | None = 1000, models: Sequence[Model] = MODELS
) -> tuple[Offer, ...]:
    return compare(WORK, longest, bound, 1800.0, day, models)


# ---- offers


def test_every_model_that_answers_in_its_own_name_is_offered_in_every_lane() -> None:
    assert sorted({offer.model for offer in offers()}) == [
        "gemini-2.5-flash",
        "gemini-2.5-flash-lite",
        "gemini-2.5-pro",
        "gemini-3-flash-preview",
        "gemini-3.1-flash-lite",
        "gemini-3.1-pro-preview",
        "gemini-3.5-flash-lite",
        "gemini-3.6-flash",
        "gemini-3.8-flash",
        "gemini-4-argon",
    ]
    assert len(offers()) == 10 * 3


def test_models_that_are_switched_off_are_not_offered() -> None:
    assert not {"gemini-2.5-pro", "gemini-2.5-flash"} & {offer.model for offer in offers(DECEMBER)}
    assert "gemini-3.1-flash-lite" not in {offer.model for offer in offers(date(2027, 5, 7))}


@pytest.mark.parametrize(
    ("model", "lane", "expected"),
    [  # 1 M tokens of input and 0.1 M of output, at the published rates
        (ARGON, "standard", "3.00"),
        (ARGON, "batch", "1.50"),
        ("gemini-3.8-flash", "standard", "1.125"),
        ("gemini-3.6-flash", "flex", "0.5625"),
        (LITE, "standard", "0.55"),
        ("gemini-3.1-flash-lite", "standard", "0.40"),
        ("gemini-3.1-pro-preview", "standard", "3.20"),
        ("gemini-3-flash-preview", "standard", "0.80"),
        (PRO, "standard", "2.25"),
        ("gemini-2.5-flash-lite", "batch", "0.07"),
    ],
)
def test_the_dollars_of_an_offer(model: str, lane: Lane, expected: str) -> None:
    (offer,) = (offer for offer in offers() if (offer.model, offer.lane) == (model, lane))
    assert offer.cost_usd == Decimal(expected)


def test_offers_come_by_cost_and_the_better_lane_first() -> None:
    costs = [offer.cost_usd for offer in offers()]
    assert costs == sorted(costs, key=lambda cost: cost or 0)
    assert [offer.lane for offer in offers() if offer.model == LITE] == ["flex", "batch", "standard"]


def test_the_cheapest_is_one_that_fits_and_is_open_to_every_project() -> None:
    (best,) = (offer for offer in offers() if offer.cheapest)
    assert (best.model, best.lane, best.cost_usd) == ("gemini-3.1-flash-lite", "flex", Decimal("0.20"))
    first = offers()[0]
    assert first.model == "gemini-2.5-flash-lite" and first.note == "not offered to new projects"


def test_what_does_not_fit_is_shown_with_the_reason_and_is_not_the_cheapest() -> None:
    small = Model("gemini-2.5-flash-lite", context_tokens=1000)
    found = offers(models=(small, known(LITE)))
    assert [offer.fits for offer in found] == [False] * 3 + [True] * 3
    assert found[0].misfit == "its context is 1,000 tokens, the longest prompt has 2,000"
    assert [offer.model for offer in found if offer.cheapest] == [LITE]
    assert not any(offer.cheapest for offer in offers(longest=2_000_000))


def test_an_unknown_price_comes_last_and_is_never_the_cheapest() -> None:
    found = offers(models=(Model("mine"), known(ARGON)))
    assert [offer.model for offer in found] == [ARGON] * 3 + ["mine"] * 3
    assert [offer.cost_usd for offer in found[3:]] == [None] * 3
    assert [offer.model for offer in found if offer.cheapest] == [ARGON]
    assert not any(offer.cheapest for offer in offers(models=(Model("mine"),)))


def test_time_is_told_where_it_is_known_and_delivery_always() -> None:
    found = {offer.lane: (offer.seconds, LANES[offer.lane]) for offer in offers(models=(known(LITE),))}
    assert found == {"standard": (1800.0, "now"), "flex": (None, "best_effort"), "batch": (None, "within_24_h")}


def test_an_offer_says_what_becomes_of_the_model() -> None:
    assert {offer.note for offer in offers() if offer.model == ARGON} == {"price doubles on 2026-12-01"}
    assert {offer.note for offer in offers() if offer.model == PRO} == {
        "off on 2026-12-01, then answered by gemini-3.8-flash"
    }


@pytest.mark.parametrize(
    ("model", "longest", "bound", "expected"),
    [
        (LITE, 1_048_576, 65_536, None),
        (LITE, 1_048_577, 100, "its context is 1,048,576 tokens, the longest prompt has 1,048,577"),
        (LITE, 100, 65_537, "its longest answer is 65,536 tokens, the job allows 65,537"),
        (LITE, 1_048_576, None, None),
        (ARGON, 1_048_576 - 500, 500, None),  # prompt and answer share its context
        (
            ARGON,
            1_048_576 - 499,
            500,
            "its context is 1,048,576 tokens, the longest prompt has 1,048,077 and 500 for the answer",
        ),
        (ARGON, 100, 32_769, "its longest answer is 32,768 tokens, the job allows 32,769"),
        (ARGON, 1_048_576 - 32_768, None, None),
        (
            ARGON,
            1_048_576,
            None,
            "its context is 1,048,576 tokens, the longest prompt has 1,048,576 and 32,768 for the answer",
        ),
    ],
)
def test_room(model: str, longest: int, bound: int | None, expected: str | None) -> None:
    assert misfit(known(model), longest, bound) == expected


# ---- savings


def prefix_of(prompts: int, tokens: int, model: str, day: date = DAY, own: Rates | None = None) -> Iterator[Saving]:
    return shared_prefix(prompts, tokens, Tariff(model, day, own))


def test_identical_rows() -> None:
    assert list(identical_rows(WORK, Tariff(LITE, DAY))) == [
        Saving("identical_rows", Decimal("0.55"), "1,000 calls repeat another and are not made")
    ]
    assert list(identical_rows({}, Tariff(LITE, DAY))) == []
    assert list(identical_rows(WORK, Tariff("gemini-9-none", DAY))) == []


@pytest.mark.parametrize(
    ("model", "day", "expected"),
    [  # 100 calls after the first, 5,000 tokens each: 0.5 M tokens at the difference of the rates
        ("gemini-3.8-flash", DAY, "0.3375"),
        (ARGON, DAY, "0.95"),
        (ARGON, DECEMBER, "1.90"),
        (PRO, DAY, "0.5625"),
        (PRO, DECEMBER, "0.3375"),  # answered by 3.8-flash
    ],
)
def test_shared_prefix(model: str, day: date, expected: str) -> None:
    (saving,) = prefix_of(101, 5000, model, day)
    assert (saving.what, saving.usd) == ("shared_prefix", Decimal(expected))


def test_a_shared_prefix_is_an_upper_bound_with_its_discount() -> None:
    (saving,) = prefix_of(101, 5000, ARGON, DAY)
    assert saving.detail == (
        "101 prompts begin with the same 5,000 tokens, cached at 5% of the price; at most, "
        "since the cache promises nothing"
    )


@pytest.mark.parametrize(
    ("model", "day", "prefix", "expected"),
    [
        (LITE, DAY, 4095, "gemini-3.5-flash-lite caches from 4,096: 1 too few"),
        (ARGON, DAY, 0, "gemini-4-argon caches from 4,096: 4,096 too few"),
        (PRO, DAY, 2000, "gemini-2.5-pro caches from 2,048: 48 too few"),
        (PRO, DECEMBER, 2048, "gemini-3.8-flash caches from 4,096: 2,048 too few"),
    ],
)
def test_a_prefix_that_is_too_short_says_by_how_much(model: str, day: date, prefix: int, expected: str) -> None:
    (saving,) = prefix_of(1000, prefix, model, day)
    assert saving.usd == 0
    assert saving.detail == f"{prefix:,} shared tokens; {expected}"


def test_a_prefix_as_long_as_the_least_is_cached() -> None:
    for model, least in ((LITE, 4096), (PRO, 2048)):
        (saving,) = prefix_of(2, least, model, DAY)
        assert saving.usd > 0


def test_no_prefix_is_shared_by_one_prompt_or_cached_by_an_unknown_model() -> None:
    assert list(prefix_of(1, 5000, LITE, DAY)) == []
    assert list(prefix_of(100, 5000, "gemini-9-none", DAY)) == []
    assert list(prefix_of(100, 5000, "mine", DAY, own=fixed_rates(1, 2, 0.1))) == []


def test_a_prefix_at_the_jobs_own_prices() -> None:
    (saving,) = prefix_of(101, 5000, LITE, DAY, own=fixed_rates(1, 2, 0.25))
    assert saving.usd == Decimal("0.375")
    (saving,) = prefix_of(101, 5000, LITE, DAY, own=fixed_rates(1, 2))
    assert (saving.usd, saving.detail) == (Decimal(0), "the job's own prices give no discount for cached tokens")


def test_slower_lanes() -> None:
    assert list(other_lanes(WORK, Tariff(LITE, DAY))) == [
        Saving("flex", Decimal("0.275"), "50% less, answered as capacity allows"),
        Saving("batch", Decimal("0.275"), "50% less, answered within 24 h"),
    ]


def test_a_lane_saves_less_where_its_cached_tokens_cost_the_same() -> None:
    cached: Work = {Tier("answer", False): Cell(1000, 1_000_000.0, 800_000.0, 0.0, 0.0)}
    flex, batch = other_lanes(cached, Tariff(PRO, DAY))  # 0.25 + 0.10 USD on the standard lane
    assert flex.usd == batch.usd == Decimal("0.125")
    assert batch.detail.startswith("36% less")


def test_nothing_is_known_of_lanes_without_a_price_or_at_own_prices() -> None:
    assert list(other_lanes(WORK, Tariff("gemini-9-none", DAY))) == []
    assert list(other_lanes(WORK, Tariff(LITE, DAY, fixed_rates(1, 2)))) == []
    assert list(other_lanes({}, Tariff(LITE, DAY))) == []


def test_other_chunk_sizes_are_told_when_they_cost_less() -> None:
    def cut(calls: float, tokens: float) -> Work:
        return {Tier("map", False): Cell(calls, tokens, 0.0, 0.0, 0.0)}

    found = list(
        chunk_sizes(cut(400, 1_100_000), [(4000, cut(800, 1_300_000)), (16_000, cut(120, 1e6))], Tariff(LITE, DAY))
    )
    assert found == [Saving("chunk_size", Decimal("0.03"), "[chunk] max_tokens = 16000: 120 calls instead of 400")]
    assert list(chunk_sizes(WORK, [(10, {})], Tariff("gemini-9-none", DAY))) == []
