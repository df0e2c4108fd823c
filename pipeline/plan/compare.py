"""The same work on other models and lanes, and what would make it cheaper."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Literal

from pipeline.job import Job
from pipeline.models import MODELS, Model, answering, model_info
from pipeline.plan import lanes
from pipeline.plan.amounts import Work, total
from pipeline.plan.costs import Tariff
from pipeline.plan.laned import factors
from pipeline.plan.lanes import Given, Some
from pipeline.plan.latency import PRIOR, Latency
from pipeline.plan.picks import Effort
from pipeline.plan.planner import Input, expected_work
from pipeline.plan.plans import Plan
from pipeline.prices import note
from pipeline.records import LATER, Lane
from pipeline.tokens import estimate

ASSUMPTION = "thinking is taken as in the plan: how much another model thinks is unknown"

GLANCE = Effort(2_000, 10_000_000, 2_000, 10_000_000)
"""For a job that is changed to see what it would cost: half a second."""

LANES: Mapping[Lane, str] = {
    "standard": "now",
    "flex": "best_effort",
    "batch": "within_24_h",  # the target; a batch expires after 48 h
}
"""The lanes that are offered, and when each answers."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the work would take on one model in one lane."""

    model: str
    lane: Lane
    cost_usd: Decimal | None  # None: the price is unknown
    seconds: float | None  # None: nothing is promised
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
    seconds: float,
    day: date,
    models: Sequence[Model] = MODELS,
    within_s: float | None = None,
    latency: Latency = PRIOR,
) -> tuple[Offer, ...]:
    """Every model that answers in its own name on `day` (UTC), in every lane, by cost; unknown prices come last.

    `seconds` is how long the standard lane takes. `max_output_tokens` None leaves an answer as long as the model
    allows. With `within_s`, seconds until a deadline, the cost of a slower lane is what is expected, with what falls
    back to standard. See `ASSUMPTION`.
    """
    prompts = total(work).prompts
    served = [model for model in models if not (model.alias_of or (model.off and model.off <= day))]
    offers = [
        Offer(
            model.name,
            lane,
            _lane_usd(work, Tariff(model.name, day), lane, Some(prompts, seconds, 1.0), within_s, latency),
            seconds if lane == "standard" else None,
            misfit(model, longest_prompt_tokens, max_output_tokens),
            note(model, day),
        )
        for model in served
        for lane in LANES
    ]
    offers.sort(key=lambda offer: (offer.cost_usd is None, offer.cost_usd or 0))
    open_to_all = {model.name for model in served if model.new_projects}
    best = next(
        (offer for offer in offers if offer.fits and offer.cost_usd is not None and offer.model in open_to_all), None
    )
    return tuple(replace(offer, cheapest=True) if offer is best else offer for offer in offers)


def _lane_usd(
    work: Work, at: Tariff, lane: Lane, left: Some, within_s: float | None, latency: Latency
) -> Decimal | None:
    """What the work costs in a lane."""
    standard, usd = at.usd(work), replace(at, lane=lane).usd(work)
    if within_s is None or not standard or lane not in ("flex", "batch"):
        return usd
    given = Given(lane, left, within_s, factors(work, at, standard), latency)
    return standard * Decimal(lanes.plan(given).cost.expected)


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


async def savings(given: Input, made: Plan, day: date) -> tuple[Saving, ...]:
    """All that would make the plan of `given` cheaper, at the prices of `day` (UTC)."""
    job, glance = given.job, replace(given, effort=GLANCE)
    at = Tariff(job.model, day, job.own_rates)
    first = sum(cell.prompts for tier, cell in made.work.items() if tier.step not in LATER)
    others = [(tokens, await expected_work(replace(glance, job=other))) for tokens, other in _larger_chunks(job)]
    now = await expected_work(glance) if others else {}
    return (
        *identical_rows(made.spared, at),
        *shared_prefix(first, prefix_tokens(job), at),
        *chunk_sizes(now, others, at),
        *(other_lanes(made.work, at) if job.choice == "standard" else ()),
    )


def _larger_chunks(job: Job) -> Iterator[tuple[int, Job]]:
    """The job with pieces two, four and eight times as long."""
    chunk = job.spec.chunk
    if chunk is None:
        return
    for factor in (2, 4, 8):
        longer = chunk.model_copy(update={"max_tokens": chunk.max_tokens * factor})
        yield longer.max_tokens, replace(job, spec=job.spec.model_copy(update={"chunk": longer}))


def prefix_tokens(job: Job) -> int:
    """Tokens that all first prompts begin with: system instruction, examples, and the template up to its first tag."""
    given = job.spec.input  # where a row's own turns or files stand first, no two prompts go on alike
    literal = "" if given.messages or given.media else re.split(r"\{[{%#]", job.template.source, maxsplit=1)[0]
    examples = sum(estimate(turn.text) for turn in job.examples)
    return estimate(job.params.system or "") + examples + estimate(literal)


def identical_rows(spared: Work, at: Tariff) -> Iterator[Saving]:
    """What is saved already: `spared` are the calls not made because the same content is sent once."""
    if usd := at.usd(spared):
        yield Saving("identical_rows", usd, f"{total(spared).prompts:,.0f} calls repeat another and are not made")


def shared_prefix(prompts: float, prefix_tokens: int, at: Tariff) -> Iterator[Saving]:
    """What the implicit cache saves at most when so many prompts begin with the same `prefix_tokens`.

    The plan must not count these tokens as cached already. Nothing is yielded for a model or price that is unknown.
    """
    answers, rates = model_info(answering(at.model, at.day)), at.rates()
    if answers is None or rates is None or prompts <= 1:
        return
    missing = answers.min_cached_tokens - prefix_tokens
    usd = max(Decimal(0), prefix_tokens * Decimal(prompts - 1) * (rates.input - rates.cached))
    if missing > 0:
        usd = Decimal(0)
        detail = (
            f"{prefix_tokens:,} shared tokens; {answers.name} caches from "
            f"{answers.min_cached_tokens:,}: {missing:,} too few"
        )
    elif not usd:
        detail = "the job's own prices give no discount for cached tokens"
    else:
        detail = (
            f"{prompts:,.0f} prompts begin with the same {prefix_tokens:,} tokens, cached at "
            f"{rates.cached / rates.input:.0%} of the price; at most, since the cache promises nothing"
        )
    yield Saving("shared_prefix", usd, detail)


def other_lanes(work: Work, at: Tariff) -> Iterator[Saving]:
    """What the slower lanes save: nothing at the job's own prices, which are those of every lane."""
    slower: Mapping[Literal["flex", "batch"], str] = {
        "flex": "answered as capacity allows",
        "batch": "answered within 24 h",
    }
    standard = at.usd(work)
    for lane, delivered in slower.items():
        usd = replace(at, lane=lane).usd(work)
        if standard and usd is not None and usd < standard:
            yield Saving(lane, standard - usd, f"{1 - usd / standard:.0%} less, {delivered}")


def chunk_sizes(work: Work, others: Sequence[tuple[int, Work]], at: Tariff) -> Iterator[Saving]:
    """The plans with another `[chunk] max_tokens` that cost less than `work` and than those before them.

    `others` are pairs of that number and its work.
    """
    least = usd = at.usd(work)
    for max_tokens, other in others:
        other_usd = at.usd(other)
        if usd is not None and least is not None and other_usd is not None and other_usd < least:
            least = other_usd
            calls = f"{total(other).prompts:,.0f} calls instead of {total(work).prompts:,.0f}"
            yield Saving("chunk_size", usd - other_usd, f"[chunk] max_tokens = {max_tokens}: {calls}")
