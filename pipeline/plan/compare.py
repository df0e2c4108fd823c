"""The same work on other models and lanes, and what would make it cheaper."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Literal

from pipeline.models import MODELS, Model, answering, model_info
from pipeline.plan.amounts import Work, total
from pipeline.plan.costs import priced
from pipeline.prices import Lane, Rates, effective_rates, note

ASSUMPTION = "thinking is taken as in the plan: how much another model thinks is unknown"

Delivery = Literal["now", "best_effort", "within_24_h"]

DELIVERY: Mapping[Lane, Delivery] = {
    "standard": "now",
    "priority": "now",
    "flex": "best_effort",
    "batch": "within_24_h",  # the target; a batch expires after 48 h
}
"""When a lane answers."""

_DELIVERED: Mapping[Delivery, str] = {
    "best_effort": "answered as capacity allows",
    "within_24_h": "answered within 24 h",
}

LANES: tuple[Lane, ...] = ("standard", "flex", "batch")


@dataclass(frozen=True, slots=True)
class Offer:
    """What the work would take on one model in one lane."""

    model: str
    lane: Lane
    cost_usd: Decimal | None  # None: the price is unknown
    seconds: float | None  # None: nothing is promised
    delivery: Delivery
    misfit: str | None  # why the model cannot do the work
    note: str  # what a user should know before choosing the model
    cheapest: bool = False  # of all that fit and that every project may use

    @property
    def fits(self) -> bool:
        """Whether every prompt and the longest answer have room."""
        return self.misfit is None


def compare(
    work: Work,
    longest_prompt_tokens: int,
    max_output_tokens: int | None,
    seconds_of: Callable[[Model, Lane], float | None],
    day: date,
    models: Sequence[Model] = MODELS,
    lanes: Sequence[Lane] = LANES,
) -> tuple[Offer, ...]:
    """Every model that answers in its own name on `day` (UTC), in every lane, by cost; unknown prices come last.

    `max_output_tokens` None leaves an answer as long as the model allows. See `ASSUMPTION`.
    """
    served = [model for model in models if not (model.alias_of or (model.off and model.off <= day))]
    offers = [
        Offer(
            model.name,
            lane,
            priced(work, model.name, day, lane),
            seconds_of(model, lane),
            DELIVERY[lane],
            misfit(model, longest_prompt_tokens, max_output_tokens),
            note(model, day),
        )
        for model in served
        for lane in lanes
    ]
    offers.sort(key=lambda offer: (offer.cost_usd is None, offer.cost_usd or 0))
    open_to_all = {model.name for model in served if model.new_projects}
    best = next(
        (offer for offer in offers if offer.fits and offer.cost_usd is not None and offer.model in open_to_all), None
    )
    return tuple(replace(offer, cheapest=True) if offer is best else offer for offer in offers)


def misfit(model: Model, longest_prompt_tokens: int, max_output_tokens: int | None) -> str | None:
    """Why `model` has no room for the longest prompt and answer, or None when it has."""
    if max_output_tokens and max_output_tokens > model.max_output_tokens:
        return f"its longest answer is {model.max_output_tokens:,} tokens, the job allows {max_output_tokens:,}"
    answer_tokens = (max_output_tokens or model.max_output_tokens) if model.shared_context else 0
    if longest_prompt_tokens + answer_tokens > model.context_tokens:
        both = f" and {answer_tokens:,} for the answer" if answer_tokens else ""
        return f"its context is {model.context_tokens:,} tokens, the longest prompt has {longest_prompt_tokens:,}{both}"
    return None


@dataclass(frozen=True, slots=True)
class Saving:
    """What one measure saves against the plan; with 0 USD, `detail` says why it saves nothing."""

    what: Literal["identical_rows", "shared_prefix", "flex", "batch", "chunk_size"]
    usd: Decimal
    detail: str


def identical_rows(
    spared: Work, model: str, day: date, lane: Lane = "standard", own: Rates | None = None
) -> Iterator[Saving]:
    """What is saved already: `spared` are the calls not made because the same content is sent once."""
    usd = priced(spared, model, day, lane, own)
    if usd:
        yield Saving("identical_rows", usd, f"{total(spared).prompts:,.0f} calls repeat another and are not made")


def shared_prefix(
    prompts: float, prefix_tokens: int, model: str, day: date, lane: Lane = "standard", own: Rates | None = None
) -> Iterator[Saving]:
    """What the implicit cache saves at most when so many prompts begin with the same `prefix_tokens`.

    The plan must not count these tokens as cached already. Nothing is yielded for a model or price that is unknown.
    """
    answers = model_info(answering(model, day))
    found = effective_rates(model, day, lane, False, own)
    if answers is None or found is None or prompts <= 1:
        return
    missing = answers.min_cached_tokens - prefix_tokens
    if missing > 0:
        yield Saving(
            "shared_prefix",
            Decimal(0),
            f"{prefix_tokens:,} shared tokens; {answers.name} caches from "
            f"{answers.min_cached_tokens:,}: {missing:,} too few",
        )
        return
    usd = prefix_tokens * Decimal(prompts - 1) * (found.input - found.cached)
    if usd <= 0:
        yield Saving("shared_prefix", Decimal(0), "the job's own prices give no discount for cached tokens")
        return
    yield Saving(
        "shared_prefix",
        usd,
        f"{prompts:,.0f} prompts begin with the same {prefix_tokens:,} tokens, cached at "
        f"{found.cached / found.input:.0%} of the price; at most, since the cache promises nothing",
    )


def other_lanes(work: Work, model: str, day: date, own: Rates | None = None) -> Iterator[Saving]:
    """What the slower lanes save against standard; nothing is known of lanes at the job's own prices."""
    slower: tuple[Literal["flex", "batch"], ...] = ("flex", "batch")
    for lane in slower:
        standard, usd = priced(work, model, day), priced(work, model, day, lane)
        if not own and standard and usd is not None and usd < standard:
            yield Saving(lane, standard - usd, f"{1 - usd / standard:.0%} less, {_DELIVERED[DELIVERY[lane]]}")


def chunk_sizes(
    work: Work,
    others: Sequence[tuple[int, Work]],
    model: str,
    day: date,
    lane: Lane = "standard",
    own: Rates | None = None,
) -> Iterator[Saving]:
    """The plans with another `[chunk] max_tokens` that cost less than `work` and than those before them.

    `others` are pairs of that number and its work.
    """
    least = usd = priced(work, model, day, lane, own)
    for max_tokens, other in others:
        other_usd = priced(other, model, day, lane, own)
        if usd is not None and least is not None and other_usd is not None and other_usd < least:
            least = other_usd
            calls = f"{total(other).prompts:,.0f} calls instead of {total(work).prompts:,.0f}"
            yield Saving("chunk_size", usd - other_usd, f"[chunk] max_tokens = {max_tokens}: {calls}")
