"""What a call costs: prices of genai-prices, and a small dated table for what it lacks.

Every price is looked up for the model that answered, at the time of the call. An unknown price is None, never 0.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from pipeline.records import Usage

Lane = Literal["standard", "flex", "batch", "priority"]

CHECKED = date(2026, 11, 22)
"""Day on which the price data was last compared with a second source."""

LONG_PROMPT_TOKENS = 200_000
"""A prompt above this many tokens pays the long rate, where the model has one, for the whole call."""

_LANE_FACTOR: dict[Lane, Decimal] = {
    "standard": Decimal(1),
    "flex": Decimal("0.5"),
    "batch": Decimal("0.5"),
    "priority": Decimal("1.8"),
}
_MEGA = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per token of one model, day, lane and prompt length."""

    input: Decimal
    cached: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True)
class Model:
    """A text model: context and longest answer in tokens; `note` is what a user should know before choosing it."""

    name: str
    context_tokens: int = 1_048_576
    max_output_tokens: int = 65_536
    note: str = ""


MODELS: tuple[Model, ...] = (
    Model("gemini-4-argon", max_output_tokens=32_768, note="price doubles on 2026-12-01"),
    Model("gemini-3.8-flash", note="price doubles on 2027-01-01"),
    Model("gemini-3.7-flash", note="deprecated, answered by gemini-3.8-flash"),
    Model("gemini-3.6-flash", note="price doubles on 2027-01-01"),
    Model("gemini-3.5-flash", note="deprecated, answered by gemini-3.6-flash"),
    Model("gemini-3.5-flash-lite"),
    Model("gemini-3.1-flash-lite", note="off on 2027-05-07"),
    Model("gemini-3.1-pro-preview"),
    Model("gemini-3-flash-preview"),
    Model("gemini-2.5-pro", note="off on 2026-12-01, then answered by gemini-3.8-flash"),
    Model("gemini-2.5-flash", note="off on 2026-12-01, then answered by gemini-3.5-flash-lite"),
    Model("gemini-2.5-flash-lite", note="not offered to new projects"),
    Model("gemini-flash-latest", note="alias of gemini-3.8-flash"),
    Model("gemini-flash-lite-latest", note="alias of gemini-3.5-flash-lite"),
    Model("gemini-pro-latest", note="alias of gemini-3.1-pro-preview"),
)
"""Gemini's text models as documented on 2026-11-22. Other models are used by naming their prices in the job."""

_BY_NAME = {model.name: model for model in MODELS}
EMULATOR = "emulator"
_FREE = Rates(Decimal(0), Decimal(0), Decimal(0))


def model_info(name: str) -> Model | None:
    """Context and output size of a model, or None for one this version does not know."""
    return _BY_NAME.get(name.removeprefix("models/"))


@lru_cache(maxsize=1024)
def rates(model: str, day: date, lane: Lane = "standard", long: bool = False) -> Rates | None:
    """Rates of `model` on `day` (UTC), or None when no price is known. The emulator's answers cost nothing."""
    if model == EMULATOR:
        return _FREE
    from genai_prices import Usage as Priced  # takes 0.2 s to import
    from genai_prices import calc_price

    prompt = LONG_PROMPT_TOKENS + 1 if long else 1000
    at = datetime.combine(day, time(12), UTC)
    context = {"processing": "batch"} if lane == "batch" else None

    def priced(usage: Priced, context: dict[str, str] | None) -> tuple[Decimal, Decimal]:
        found = calc_price(
            usage, model_ref=model, provider_id="google", genai_request_timestamp=at, price_context=context
        )
        return found.input_price, found.output_price

    try:
        plain, output = priced(Priced(input_tokens=prompt, output_tokens=prompt), context)
        cached, _ = priced(Priced(input_tokens=prompt, cache_read_tokens=prompt), context)
        standard, _ = priced(Priced(input_tokens=prompt), None)
    except LookupError:
        return None
    # The library answers an unknown lane with the standard price and no warning, so an unchanged price is scaled here.
    factor = _LANE_FACTOR[lane] if plain == standard else Decimal(1)
    return Rates(plain * factor / prompt, cached * factor / prompt, output * factor / prompt)


def fixed_rates(input_usd: float, output_usd: float, cached_usd: float | None = None) -> Rates:
    """Rates from USD per million tokens, as a job file names them; cached tokens cost as others unless said."""
    plain = Decimal(str(input_usd)) / _MEGA
    cached = plain if cached_usd is None else Decimal(str(cached_usd)) / _MEGA
    return Rates(plain, cached, Decimal(str(output_usd)) / _MEGA)


def cost(usage: Usage, model: str, at: datetime, lane: Lane = "standard", own: Rates | None = None) -> Decimal | None:
    """USD for one call's `usage` on `model` at `at` (UTC); `own` rates replace the tables. None: price unknown."""
    found = own if own and model != EMULATOR else rates(model, at.date(), lane, usage.input_tokens > LONG_PROMPT_TOKENS)
    if found is None:
        return None
    return (
        found.input * (usage.input_tokens - usage.cached_tokens + usage.tool_tokens)
        + found.cached * usage.cached_tokens
        + found.output * (usage.output_tokens + usage.thinking_tokens)
    )
