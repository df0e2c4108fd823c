"""Whether it pays to keep what all prompts begin with in an explicit cache, and what it then costs."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal

from pipeline.job import Job
from pipeline.models import answering, assumed
from pipeline.plan.amounts import Cell, Range, Tier, Work
from pipeline.plan.answerers import Answerer
from pipeline.plan.learned import Learned
from pipeline.plan.plans import PrefixPlan
from pipeline.prefixes import prefix_of
from pipeline.prices import effective_rates, storage_usd
from pipeline.records import Step

BESIDE_S = 10.0
"""How long a cache is kept beside the run itself: made before it, ended after it."""


def prefix_tokens(job: Job, learned: Learned) -> float:
    """Tokens that all of a job's first prompts begin with, as the service is expected to count them."""
    step: Step = "pack" if job.spec.pack else "map" if job.spec.chunk else "answer"
    return prefix_of(job.params, job.examples).tokens * learned.ratio(step, 0).value


def cached(work: Work, tokens: float, job: Job) -> Work:
    """Work whose prompts begin with so many tokens that are in a cache."""
    return {tier: _cached(cell, tokens) if _begins(tier, job) else cell for tier, cell in work.items()}


def _cached(cell: Cell, tokens: float) -> Cell:
    return cell._replace(cached_tokens=min(cell.input_tokens, max(cell.cached_tokens, cell.prompts * tokens)))


def _begins(tier: Tier, job: Job) -> bool:
    """Whether a step's prompts begin as the first ones do: merging ones have no examples, and may be told otherwise."""
    if tier.step not in ("reduce", "refine"):
        return True
    params = job.params_of(tier.step)
    return not job.examples and (params.system, params.tools) == (job.params.system, job.params.tools)


def prefix_plan(
    job: Job,
    work: Work,
    learned: Learned,
    answerers: list[Answerer],
    seconds: float,
    day: date,
    cost: Callable[[Work], Decimal | None],
) -> PrefixPlan | None:
    """What a cache would save and cost, at each of those who answer; None where the job asks for none."""
    wish = job.spec.model.prefix_cache
    tokens = prefix_tokens(job, learned)
    if wish is False or not tokens:
        return None
    can = [each for each in answerers if assumed(answering(each.model, day)).explicit_caches]
    short = [each for each in can if tokens < assumed(answering(each.model, day)).min_cached_tokens]
    bare = {tier: cell._replace(cached_tokens=0.0) for tier, cell in work.items()}  # of what a cache made before saved
    before, after = cost(bare), cost(cached(bare, tokens, job))
    saved = None if before is None or after is None else before - after
    made = stored = Decimal(0)
    for each in can:
        rates = effective_rates(each.model, day, "standard", False, each.own)
        hours = (seconds + BESIDE_S) / 3600
        stored += each.factor * storage_usd(tokens, hours, each.model, day, each.own)
        made += each.factor * Decimal(tokens) * rates.input if rates else Decimal(0)
    kept = made + stored
    if not can:
        why = "the model keeps no explicit caches: what it caches itself is cached"
    elif short:
        least = assumed(answering(short[0].model, day)).min_cached_tokens
        why = f"it has {tokens:,.0f} tokens, and {short[0].model} keeps no fewer than {least:,}"
    elif wish == "auto" and (saved is None or saved <= kept):
        why = "the price is unknown" if saved is None else f"it would save ${saved:,.4f} and cost ${kept:,.4f}"
    else:
        why = ""
    return PrefixPlan(tokens, saved, Range(made, kept, kept + stored), why)
