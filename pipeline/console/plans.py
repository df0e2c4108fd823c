"""What is said of a plan."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from textwrap import fill

from rich.console import Console
from rich.text import Text

from pipeline.console.screen import Row, count, duration, err, money, out, show_columns, show_grid
from pipeline.plan import Plan
from pipeline.plan.amounts import Range
from pipeline.plan.compare import ASSUMPTION, LANES, Offer, Saving
from pipeline.plan.plans import Example, Found
from pipeline.plan.timing import Deadline, Timeline
from pipeline.prices import Lane
from pipeline.records import Limits
from pipeline.session.estimates import Estimate

_FOUND = {
    "repeats": "repeat an earlier row",
    "empty_input": "empty, not sent",
    "template_error": "template fails, not sent",
    "too_long": "too long, not sent",
    "chunked": "cut into pieces",
}
_SAVINGS = {
    "identical_rows": "identical rows",
    "shared_prefix": "shared prefix",
    "flex": "flex lane",
    "batch": "batch lane",
    "chunk_size": "larger pieces",
}
_WIDTH = 78
_KEY_WIDTH = 12
_DAYS_SHOWN = 7
_EXAMPLES_WIDTH = 44


def show_estimate(made: Estimate, name: str, path: str, to: Console = out) -> None:
    """What `estimate` says."""
    plan = made.plan
    to.print(Text.assemble((name, "bold"), f"  {plan.model}  {path}\n"))
    show_columns(to, [row for row in _rows(plan) if row])
    if made.deadline:
        _show_deadline(made.deadline, plan, to)
    if len(plan.steps) > 1 or any(step.answers for step in plan.steps.values()):
        to.print()
        _show_steps(plan, to)
    if plan.found:
        to.print()
        _show_found(plan, to)
    if plan.timeline.nights > 1:
        to.print()
        _show_days(plan.timeline, to)
    if made.offers:
        to.print()
        _show_offers(made.offers, plan.model, to)
    if made.savings:
        to.print()
        _show_savings(made.savings, to)
    to.print()
    _show_notes(plan.notices, to, "yellow")
    _show_notes((*plan.assumptions, *_provenance(plan)), to)
    to.print(f"prices of {plan.prices_dated}", style="dim")


def _show_notes(lines: Iterable[str], to: Console, style: str = "dim") -> None:
    for line in lines:
        to.print(Text(fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    "), style))


def _rows(plan: Plan) -> Iterator[Row | None]:
    done = f"{count(plan.documents_done)} more are done" if plan.documents_done else ""
    steps = " + ".join(f"{step} {count(number)}" for step, number in plan.prompts_by_step.items())
    yield "documents", count(plan.documents), done
    yield "prompts", _expected(plan.prompts), steps if len(plan.steps) > 1 else _spread(plan.prompts)
    yield "tokens in", _expected(plan.input_tokens), _spread(plan.input_tokens)
    yield "tokens out", _expected(plan.output_tokens), _spread(plan.output_tokens)
    if plan.cost_usd is None:
        yield "cost", "unknown", "`pipeline models` lists prices; [model] prices sets one"
    else:
        yield "cost", money(plan.cost_usd.expected), f"{money(plan.cost_usd.low)} – {money(plan.cost_usd.high)}"
    yield "time", f"about {duration(plan.timeline.seconds)}", _bound(plan.timeline)
    yield "finished", _moment(plan.timeline.finish_at), "if started now" if plan.load.prompts else ""


def _show_steps(plan: Plan, to: Console) -> None:
    lines = [
        (
            f"  {step}",
            count(each.prompts),
            count(each.input_tokens),
            count(each.answer_tokens),
            "?" if each.cost_usd is None else money(each.cost_usd),
            " / ".join(count(value) for value in (each.answers.p10, each.answers.p50, each.answers.p90))
            if each.answers
            else "not known yet",
        )
        for step, each in plan.steps.items()
    ]
    show_grid(("  step", "prompts", "tokens in", "tokens out", "cost", "an answer: P10 / P50 / P90"), lines, to)


def _show_found(plan: Plan, to: Console) -> None:
    lines = []
    for name, found in plan.found.items():
        lines.append((f"  {count(found.rows)}", _FOUND[name], _examples(found)))
    show_grid(("  rows", "what", "for instance"), lines, to)


def _examples(found: Found) -> str:
    """As many as fit the line."""
    shown = ""
    for each in map(_example, found.examples):
        longer = f"{shown}; {each}" if shown else each
        if len(longer) > _EXAMPLES_WIDTH:
            break
        shown = longer
    return shown


def _example(each: Example) -> str:
    key = f" ({_clipped(each.key)})" if each.key != str(each.row) else ""
    return f"row {each.row}{key} {each.remark}".rstrip()


def _clipped(key: str) -> str:
    return key if len(key) <= _KEY_WIDTH else key[: _KEY_WIDTH - 1] + "…"


def _show_days(timeline: Timeline, to: Console) -> None:
    lines = [
        (
            f"  {_moment(day.starts_at)}",
            _moment(day.ends_at),
            count(day.prompts),
            f"{day.days} days" if day.days > 1 else "",
        )
        for day in timeline.days[:_DAYS_SHOWN]
    ]
    show_grid(("  from (local time)", "until", "prompts", ""), lines, to)
    if left := timeline.days[_DAYS_SHOWN:]:
        more = sum(day.days for day in left)
        to.print(f"  … {more} more day(s), the last until {_moment(timeline.finish_at)}", style="dim")


def _show_deadline(deadline: Deadline, plan: Plan, to: Console) -> None:
    if deadline.fits:
        to.print(Text(f"  fits: {duration(deadline.margin_s)} to spare before {_moment(deadline.at)}", "green"))
        return
    to.print(
        Text(
            f"  does not fit: {duration(-deadline.margin_s)} too late for {_moment(deadline.at)}; "
            f"{deadline.share_done:.0%} ({count(deadline.prompts_done)} prompts) would be done",
            "yellow",
        )
    )
    if deadline.needed is None:
        to.print("  no limit would make it fit: start earlier, or send less", style="dim")
        return
    needed = [f"{value:,} {name}" for name, value in _limits_json(deadline.needed).items()]
    rows = round(plan.documents * deadline.share_done)
    to.print(f"  it would fit with {' and '.join(needed)}, or with `--limit {rows}`", style="dim")


def _show_offers(offers: tuple[Offer, ...], model: str, to: Console) -> None:
    """One line a model, cheapest first; its lanes side by side."""
    by_model: dict[str, dict[Lane, Offer]] = {}
    for offer in offers:
        by_model.setdefault(offer.model, {})[offer.lane] = offer
    lines = [
        (
            f"{'>' if name == model else ' '} {name}",
            *(_offered(lanes.get(lane)) for lane in LANES),
            next((duration(each.seconds) for each in lanes.values() if each.seconds is not None), "?"),
            "fits" if all(each.fits for each in lanes.values()) else "too small",
        )
        for name, lanes in by_model.items()
    ]
    show_grid(("  model", *LANES, "time", "context"), lines, to)
    _show_notes(
        (
            "* the cheapest that fits and is open to new projects   > this job",
            "time is that of the standard lane, the one that runs use; flex answers as capacity allows, batch in 24 h",
            *dict.fromkeys(f"{offer.model}: {offer.misfit}" for offer in offers if offer.misfit),
            ASSUMPTION,
        ),
        to,
    )


def _offered(offer: Offer | None) -> str:
    if offer is None or offer.cost_usd is None:
        return "?"
    return money(offer.cost_usd) + ("*" if offer.cheapest else " ")


def _show_savings(savings: tuple[Saving, ...], to: Console) -> None:
    names = max(len(_SAVINGS[each.what]) for each in savings)
    amounts = [money(each.usd) if each.usd else "nothing" for each in savings]
    width = max(map(len, amounts))
    to.print("  would save", style="dim")
    for each, amount in zip(savings, amounts, strict=True):
        start = f"  {_SAVINGS[each.what]:<{names}}  {amount:>{width}}  "
        indent = " " * len(start)
        to.print(Text(start + fill(indent + each.detail, _WIDTH, subsequent_indent=indent).lstrip()))


def _provenance(plan: Plan) -> Iterator[str]:
    if plan.based_on:
        yield f"learned from {plan.based_on}"
    if plan.bounded:
        yield "`--pilot 20` tries 20 rows and measures it; they are kept for the run"
    if plan.sampled_rows:
        yield f"counted from {plan.sampled_rows:,} rows of all kinds and lengths; `--all` counts every row"


def _expected(amount: Range) -> str:
    return count(float(amount.expected))


def _spread(amount: Range) -> str:
    if amount.low == amount.expected == amount.high:
        return ""
    return f"{count(float(amount.low))} – {count(float(amount.high))}"


def _moment(at: datetime) -> str:
    """Local time, as a person says it: 07:12 today, 07:12 tomorrow, Thu 3 Dec 07:12."""
    local, today = at.astimezone(), datetime.now().astimezone().date()
    if local.date() == today:
        return f"{local:%H:%M} today"
    if local.date() == today + timedelta(days=1):
        return f"{local:%H:%M} tomorrow"
    year = f" {local.year}" if local.year != today.year else ""
    return f"{local:%a} {local.day} {local:%b}{year} {local:%H:%M}"


def plan_json(made: Estimate) -> dict[str, object]:
    """The stable keys of `estimate --json`."""
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
        "prices_dated": plan.prices_dated,
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
                "delivery": offer.delivery,
                "fits": offer.fits,
                "misfit": offer.misfit,
                "cheapest": offer.cheapest,
                "note": offer.note,
            }
            for offer in made.offers
        ],
        "savings": [{"what": each.what, "usd": _usd(each.usd), "detail": each.detail} for each in made.savings],
    }


def _deadline_json(deadline: Deadline) -> dict[str, object]:
    needed = deadline.needed
    return {
        "at": deadline.at.isoformat(timespec="seconds"),
        "fits": deadline.fits,
        "margin_s": round(deadline.margin_s, 1),
        "prompts_done": deadline.prompts_done,
        "needed": None if needed is None else _limits_json(needed),
    }


def _limits_json(limits: Limits) -> dict[str, int]:
    values = {name: getattr(limits, name) for name in ("rpm", "tpm", "rpd", "concurrency")}
    return {name: value for name, value in values.items() if value}


def show_start(plan: Plan, name: str, directory: str, continued: bool, offline: bool) -> None:
    """One line before the first call."""
    left = f"{_expected(plan.prompts)} prompts"
    cost = "offline, costs nothing" if offline else _cost(plan.cost_usd)
    if continued and plan.documents_done:
        left = f"{count(plan.documents_done)} rows done, {count(plan.documents)} left: {left}"
    seconds = duration(plan.timeline.seconds)
    err.print(Text.assemble((name, "bold"), f" → {directory}\n  {left}, {cost}, about {seconds}"))
    for line in plan.notices:
        err.print(Text(f"  {line}", "yellow"))


def _cost(cost: Range | None) -> str:
    return f"{money(cost.low)} – {money(cost.high)}" if cost else "unknown price"


def _bound(timeline: Timeline) -> str:
    what = "no limit configured" if timeline.bound == "none" else f"limited by {timeline.bound}"
    if timeline.nights > 1:
        what = f"{timeline.nights} days of quota, {what}"
    if timeline.ungrown_s is not None:
        what += f"; {duration(timeline.ungrown_s)} if it never grows"
    return what


def _usd(amount: Decimal | None) -> float | None:
    return None if amount is None else float(round(amount, 8))


def _range_json(amount: Range) -> dict[str, int | float]:
    values = {name: getattr(amount, name) for name in ("low", "expected", "high")}
    return {name: value if isinstance(value, int) else float(round(value, 8)) for name, value in values.items()}
