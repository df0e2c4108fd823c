"""A plan as `estimate --json` prints it."""

from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING

from pipeline.plan.amounts import Range
from pipeline.plan.compare import LANES
from pipeline.plan.latency import Latency
from pipeline.plan.timing import Deadline
from pipeline.prices import CHECKED
from pipeline.records import Limits

if TYPE_CHECKING:
    from pipeline.estimating import Estimate

PLAN_KEYS: Mapping[str, str] = {
    "documents": "rows that are left to do",
    "documents_done": "rows that have an outcome already",
    "documents_chunked": "rows that are cut into pieces",
    "prompts": "calls to be made",
    "prompts_range": "the same as low, expected and high",
    "prompts_by_step": "the same by step: answer, map, reduce, pack",
    "input_tokens": "tokens of the prompts",
    "input_tokens_range": "the same as low, expected and high",
    "output_tokens": "all that is billed as output, thinking included: low, expected and high",
    "cost_usd": "USD as low, expected and high; null where the price is unknown",
    "steps": "by step: prompts, tokens, cost, and P10, median and P90 of an answer's tokens",
    "targets": "of a job with several: name, model, calls and cost of each",
    "lanes": "of a job with `[model] lane`: target, lane, calls, cost and last call of each part",
    "batches": "how long batches take, by target: median_s and p90_s (null: never), and how many were yours",
    "found": "kinds of rows that deserve a look: how many, and examples",
    "seconds": "how long it will take",
    "finish_at": "when it ends if it starts now",
    "nights": "days of quota that it takes",
    "days": "those days: start, end and calls",
    "bottleneck": "what the time is spent on",
    "model": "the model",
    "prices_dated": "date of the prices",
    "sampled_rows": "rows that were looked at, where the table was counted from a sample",
    "bounds_only": "true where nothing is known of the answers' length: low and high are bounds",
    "based_on": "what the expected length of the answers comes from",
    "assumptions": "what the estimate assumes, in words",
    "notices": "what deserves attention before the run, in words",
    "deadline": "with `--by`: whether it ends by then, and the limits that would make it",
    "offers": "with `--compare`: other models and lanes",
    "savings": "with `--compare`: what would save money",
}
"""The keys of `estimate --json`; these keys stay. A document is a row here, a prompt a call."""


def plan_json(made: "Estimate") -> dict[str, object]:
    """The plan under `PLAN_KEYS`."""
    plan = made.plan
    return {
        "documents": plan.documents,
        "documents_done": plan.documents_done,
        "documents_chunked": plan.documents_chunked,
        "prompts": plan.prompts.expected,
        "prompts_range": _range_json(plan.prompts),
        "prompts_by_step": plan.prompts_by_step,
        "input_tokens": plan.input_tokens.expected,
        "input_tokens_range": _range_json(plan.input_tokens),
        "output_tokens": _range_json(plan.output_tokens),
        "cost_usd": _range_json(plan.cost_usd) if plan.cost_usd else None,
        "steps": {
            step: {
                "prompts": round(each.prompts),
                "input_tokens": round(each.input_tokens),
                "output_tokens": round(each.answer_tokens),
                "cost_usd": _usd(each.cost_usd),
                "answer_tokens": [each.answers.p10, each.answers.p50, each.answers.p90] if each.answers else None,
            }
            for step, each in plan.steps.items()
        },
        "targets": [
            {"name": each.name, "model": each.model, "prompts": round(each.prompts), "cost_usd": _usd(each.cost_usd)}
            for each in plan.targets
        ],
        "lanes": [
            {
                "target": part.target,
                "lane": part.lane,
                "prompts": round(part.prompts),
                "cost_usd": _usd(part.cost_usd),
                "last_call": part.last_call.isoformat(timespec="seconds") if part.last_call else None,
            }
            for each in plan.lanes
            for part in each.parts
        ],
        "batches": {each.target: _latency_json(each.given.latency) for each in plan.lanes if each.lanes.batch},
        "found": {
            name: {
                "rows": found.rows,
                "examples": [{"row": each.row, "id": each.key, "remark": each.remark} for each in found.examples],
            }
            for name, found in plan.found.items()
        },
        "seconds": round(plan.timeline.seconds, 1),
        "finish_at": plan.timeline.finish_at.isoformat(timespec="seconds"),
        "nights": plan.timeline.nights,
        "days": [
            {
                "starts_at": day.starts_at.isoformat(timespec="seconds"),
                "ends_at": day.ends_at.isoformat(timespec="seconds"),
                "prompts": day.prompts,
                "days": day.days,
            }
            for day in plan.timeline.days
        ],
        "bottleneck": plan.timeline.bound,
        "model": plan.model,
        "prices_dated": CHECKED.isoformat(),
        "sampled_rows": plan.sampled_rows,
        "bounds_only": plan.bounded,
        "based_on": plan.based_on,
        "assumptions": list(plan.assumptions),
        "notices": list(plan.notices),
        "deadline": _deadline_json(made.deadline) if made.deadline else None,
        "offers": [
            {
                "model": offer.model,
                "lane": offer.lane,
                "cost_usd": _usd(offer.cost_usd),
                "seconds": None if offer.seconds is None else round(offer.seconds, 1),
                "delivery": LANES[offer.lane],
                "fits": offer.fits,
                "misfit": offer.misfit,
                "cheapest": offer.cheapest,
                "note": offer.note,
            }
            for offer in made.offers
        ],
        "savings": [{"what": each.what, "usd": _usd(each.usd), "detail": each.detail} for each in made.savings],
    }


def _latency_json(known: Latency) -> dict[str, float | None]:
    half, most = known.within(0.5), known.within(0.9)
    return {
        "median_s": round(half) if isfinite(half) else None,
        "p90_s": round(most) if isfinite(most) else None,
        "own": round(known.weight, 1),
    }


def _deadline_json(deadline: Deadline) -> dict[str, object]:
    needed = deadline.needed
    return {
        "at": deadline.at.isoformat(timespec="seconds"),
        "fits": deadline.fits,
        "margin_s": round(deadline.margin_s, 1),
        "prompts_done": deadline.prompts_done,
        "needed": None if needed is None else limits_json(needed),
    }


def limits_json(limits: Limits) -> dict[str, int]:
    """Those that are set, by name."""
    values = {name: getattr(limits, name) for name in ("rpm", "tpm", "rpd", "concurrency")}
    return {name: value for name, value in values.items() if value}


def _usd(amount: Decimal | None) -> float | None:
    return None if amount is None else float(round(amount, 8))


def _range_json(amount: Range) -> dict[str, int | float]:
    values = {name: getattr(amount, name) for name in ("low", "expected", "high")}
    return {name: value if isinstance(value, int) else float(round(value, 8)) for name, value in values.items()}
