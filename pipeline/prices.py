"""What a call costs: prices of genai-prices, and a small dated table for what it lacks.

Every price is looked up for the model that answers, at the time of the call. An unknown price is None, never 0.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

from pipeline.models import Model, answering, model_info
from pipeline.records import Lane, Usage

CHEAPER: tuple[Lane, ...] = ("flex", "batch")
"""Lanes that cost less than standard."""

CHECKED = date(2026, 11, 22)
"""Day on which the price data was last compared with a second source."""

LONG_PROMPT_TOKENS = 200_000
"""A prompt above this many tokens pays the long rate, where the model has one, for the whole call."""

HORIZON = timedelta(days=400)
"""No price is announced farther ahead: what is planned for later is taken at the price of then."""

NOTED_AHEAD = timedelta(days=92)
"""How far ahead a change of price is told to whoever chooses a model."""

VENDORS = (
    "openai",
    "google",
    "anthropic",
    "deepseek",
    "mistral",
    "x-ai",
    "moonshotai",
    "zhipuai",
    "zai",
    "minimax",
    "cohere",
    "perplexity",
    "meta",
    "arcee",
)
"""Whose prices genai-prices 0.2.3 has for models that they make; who sells models of others is left out."""

_MOST_TOKENS = 1_000_000

_LANE_FACTOR: dict[Lane, Decimal] = {
    "standard": Decimal(1),
    "flex": Decimal("0.5"),
    "batch": Decimal("0.5"),
    "priority": Decimal("1.8"),
}
_MEGA = Decimal(1_000_000)

SEARCH_USD = Decimal("0.014")
"""One search of Google by Gemini 3 and later: 14 USD per 1,000 queries, as documented on 2026-11-22."""
SEARCHING_USD = Decimal("0.035")
"""One prompt of Gemini 2.5 that searched, however often: 35 USD per 1,000."""
EXPECTED_SEARCHES = 2.0
"""A call that may search, before any is known: assumed."""
MOST_SEARCHES = 10
"""What is reserved for one call; a call that searches more is reserved for from then on."""


STORED_USD = Decimal("0.50")
"""A million tokens in an explicit cache of Gemini 3.6 to 3.8 Flash, for an hour, at the rate of their introduction."""
STORED_MOST_USD = Decimal("4.50")
"""The same of all others: the most that Google asked for any model (2.5 Pro, 2025); what it asks today is not known."""
_STORED_CHEAPLY = ("gemini-3.6-flash", "gemini-3.7-flash", "gemini-3.8-flash")
_INTRODUCED_UNTIL = date(2027, 1, 1)


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per token of one model, day, lane and prompt length."""

    input: Decimal
    cached: Decimal
    output: Decimal
    search: Decimal | None = None  # of one; None: what Google asks
    stored: Decimal | None = None  # a token in an explicit cache for an hour; None: what Google asks
    sound: Decimal | None = field(default=None, compare=False)  # of the input; None: as other input
    flex: Decimal | None = None  # times all but searches and storage in that lane; None: it costs the same there
    batch: Decimal | None = None

    def usd(
        self,
        input_tokens: Decimal | int,
        cached_tokens: Decimal | int,
        output_tokens: Decimal | int,
        sound_tokens: Decimal | int = 0,
    ) -> Decimal:
        """USD for so many tokens: `input_tokens` with the cached ones and the sound, `output_tokens` with thinking."""
        usd = self.input * (input_tokens - cached_tokens) + self.cached * cached_tokens + self.output * output_tokens
        return usd if self.sound is None else usd + (self.sound - self.input) * sound_tokens

    def in_lane(self, lane: Lane) -> "Rates":
        """The job's own rates in a lane: as they stand, unless a factor is named for it.

        Cached tokens cost what they do in standard, as nobody says that they cost less; but no more than others.
        """
        factor = self.flex if lane == "flex" else self.batch if lane == "batch" else None
        if factor is None:
            return self
        plain = self.input * factor
        sound = None if self.sound is None else self.sound * factor
        return replace(self, input=plain, cached=min(self.cached, plain), output=self.output * factor, sound=sound)


FREE = Rates(Decimal(0), Decimal(0), Decimal(0), Decimal(0), Decimal(0))
"""What a rehearsal costs."""


@lru_cache(maxsize=4096)
def rates(model: str, day: date, lane: Lane = "standard", long: bool = False) -> Rates | None:
    """Rates for requests to `model` on `day` (UTC), or None when no price is known: those of the model that answers.

    A model that is off without a known successor keeps its last price. One that `pipeline.models` does not know has the
    price of the vendor that makes it; where two list it at different prices, none. Long prompts of such models begin at
    other numbers of tokens: the price is never below theirs.
    """
    billed = answering(model, day)
    if model_info(billed):
        return _listed("google", billed, day, lane, LONG_PROMPT_TOKENS + 1 if long else 1000)
    prompt = _MOST_TOKENS if long else LONG_PROMPT_TOKENS - 1
    found = {_listed(vendor, billed, day, lane, prompt) for vendor in _vendors(billed)}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=512)
def _vendors(model: str) -> tuple[str, ...]:
    """Those who list a model."""
    return tuple(vendor for vendor in VENDORS if _listed(vendor, model, CHECKED, "standard", 1000))


def _listed(vendor: str, model: str, day: date, lane: Lane, prompt: int) -> Rates | None:
    """What one vendor lists for a prompt of so many tokens; None: not this model."""
    from genai_prices import Usage as Priced  # takes 0.2 s to import
    from genai_prices import calc_price

    at = datetime.combine(day, time(12), UTC)
    context = {"processing": "batch"} if lane == "batch" else None

    def priced(usage: Priced, context: dict[str, str] | None) -> tuple[Decimal, Decimal]:
        found = calc_price(
            usage, model_ref=model, provider_id=vendor, genai_request_timestamp=at, price_context=context
        )
        return found.input_price, found.output_price

    try:
        plain, output = priced(Priced(input_tokens=prompt, output_tokens=prompt), context)
        cached, _ = priced(Priced(input_tokens=prompt, cache_read_tokens=prompt), context)
        sound, _ = priced(Priced(input_tokens=prompt, input_audio_tokens=prompt), context)
        standard, _ = priced(Priced(input_tokens=prompt), None)
    except LookupError:
        return None
    # The library answers an unknown lane with the standard price and no warning, so an unchanged price is scaled here.
    factor = _LANE_FACTOR[lane] if plain == standard else Decimal(1)
    dearer = None if sound == plain else sound * factor / prompt
    cached = min(cached * max(factor, Decimal(1)), plain * factor)  # nobody says that a cheaper lane halves these too
    return Rates(plain * factor / prompt, cached / prompt, output * factor / prompt, sound=dearer)


def fixed_rates(
    input_usd: float,
    output_usd: float,
    cached_usd: float | None = None,
    search_usd: float | None = None,
    stored_usd: float | None = None,
    flex: float | None = None,
    batch: float | None = None,
) -> Rates:
    """Rates from USD per million tokens, per 1,000 searches and per million tokens and hour, as a job file names them.

    Cached tokens cost as others unless said, searches and what is stored what Google asks. `flex` and `batch` are
    factors of the lanes.
    """
    plain = Decimal(str(input_usd)) / _MEGA
    cached = plain if cached_usd is None else Decimal(str(cached_usd)) / _MEGA
    search = None if search_usd is None else Decimal(str(search_usd)) / 1000
    stored = None if stored_usd is None else Decimal(str(stored_usd)) / _MEGA
    factors = (None if factor is None else Decimal(str(factor)) for factor in (flex, batch))
    return Rates(plain, cached, Decimal(str(output_usd)) / _MEGA, search, stored, None, *factors)


def effective_rates(model: str, day: date, lane: Lane, long: bool, own: Rates | None) -> Rates | None:
    """The job's `own` rates, on whatever day, or else those of the tables."""
    return own.in_lane(lane) if own else rates(model, day, lane, long)


def cost(usage: Usage, model: str, at: datetime, lane: Lane = "standard", own: Rates | None = None) -> Decimal | None:
    """USD for one call's `usage` on `model` at `at` (UTC); `own` rates replace the tables. None: price unknown."""
    found = effective_rates(model, at.date(), lane, usage.input_tokens > LONG_PROMPT_TOKENS, own)
    if found is None:
        return None
    # Counts that an older version stored as the service told them may be impossible: a cost is never a credit.
    input_tokens = max(0, usage.input_tokens) + max(0, usage.tool_tokens)
    cached_tokens = min(max(0, usage.cached_tokens), input_tokens)
    sound_tokens = min(max(0, usage.sound_tokens), input_tokens - cached_tokens)
    output_tokens = max(0, usage.output_tokens) + max(0, usage.thinking_tokens)
    usd = found.usd(input_tokens, cached_tokens, output_tokens, sound_tokens)
    return usd + search_usd(Decimal(usage.searches), Decimal(1), model, at.date(), own) if usage.searches else usd


def storage_usd(tokens: float, hours: float, model: str, day: date, own: Rates | None = None) -> Decimal:
    """USD for so many tokens in an explicit cache of a model, for so many hours."""
    if own and own.stored is not None:
        return own.stored * Decimal(tokens) * Decimal(hours)
    if answering(model, day) in _STORED_CHEAPLY:
        rate = STORED_USD if day < _INTRODUCED_UNTIL else 2 * STORED_USD  # as the price of their tokens
    else:
        rate = STORED_MOST_USD
    return rate * Decimal(tokens) * Decimal(hours) / _MEGA


def search_usd(searches: Decimal, calls: Decimal, model: str, day: date, own: Rates | None = None) -> Decimal:
    """USD for so many searches by so many calls to `model`, each of which searched."""
    if own and own.search is not None:
        return own.search * searches
    known = model_info(answering(model, day))
    return SEARCHING_USD * calls if known and known.searches_by_prompt else SEARCH_USD * searches


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From `day` (UTC) on, requests for `model` have another price, or another model answers them."""

    day: date
    model: str
    before: Rates | None
    after: Rates | None
    successor: str | None  # who answers from then on, when it is another model than before

    @property
    def verb(self) -> str:
        """What the price does, for a person: doubles, halves, rises, falls, stays, changes."""
        if self.before is None or self.after is None:
            return "changes"
        if self.before == self.after:
            return "stays"
        pairs = tuple(zip(_of_tokens(self.before), _of_tokens(self.after), strict=True))
        if all(after == 2 * before for before, after in pairs):
            return "doubles"
        if all(2 * after == before for before, after in pairs):
            return "halves"
        if all(after >= before for before, after in pairs):
            return "rises"
        return "falls" if all(after <= before for before, after in pairs) else "changes"


def _of_tokens(rates: Rates) -> tuple[Decimal, ...]:
    return rates.input, rates.cached, rates.output


@lru_cache(maxsize=256)
def price_changes(model: str, first: date, last: date, lane: Lane = "standard") -> tuple[PriceChange, ...]:
    """What changes after `first` and up to `last` (UTC) for requests to `model`, found by comparing each two days.

    Days beyond `HORIZON` after `first` are not looked at.
    """
    days = (first + timedelta(number) for number in range(min(last - first, HORIZON).days + 1))
    known = [(day, answering(model, day), rates(model, day, lane)) for day in days]
    return tuple(
        PriceChange(day, model, before, after, None if name == previous else name)
        for (_, previous, before), (day, name, after) in pairwise(known)
        if (previous, before) != (name, after)
    )


def note(model: Model, day: date) -> str:
    """What a user should know on `day` before choosing `model`: who answers, and what changes within `NOTED_AHEAD`."""
    if model.alias_of:
        return f"alias of {model.alias_of}"
    if model.off and model.off <= day:
        return f"deprecated, answered by {model.successor}" if model.successor else f"off since {model.off}"
    parts = [] if model.new_projects else ["not offered to new projects"]
    if model.off:
        parts.append(f"off on {model.off}" + (f", then answered by {model.successor}" if model.successor else ""))
    until = min(model.off or date.max, day + NOTED_AHEAD)
    parts += [
        f"price {change.verb} on {change.day}"
        for change in price_changes(model.name, day, until)
        if not change.successor
    ]
    return "; ".join(parts)
