"""What is said of a plan."""

from rich.console import Console
from rich.text import Text

from pipeline.console.screen import count, duration, err, money, out, show_columns
from pipeline.plan import Plan
from pipeline.plan.amounts import Range


def show_plan(plan: Plan, name: str, path: str, to: Console = out) -> None:
    """What `estimate` says."""
    to.print(Text.assemble((name, "bold"), f"  {plan.model}  {path}\n"))
    notes = []
    if plan.documents_done:
        notes.append(f"{count(plan.documents_done)} more are done")
    if plan.documents_refused:
        notes.append(f"{count(plan.documents_refused)} are not sent: empty, or the template fails")
    steps = " + ".join(f"{step} {count(number)}" for step, number in plan.prompts_by_step.items())
    output = plan.output_tokens
    rows = [
        ("documents", count(plan.documents), "; ".join(notes)),
        ("to be cut", count(plan.documents_chunked), f"into at most {plan.longest_chunks} pieces")
        if plan.documents_chunked
        else None,
        ("prompts", count(plan.prompts), steps if len(plan.prompts_by_step) > 1 else ""),
        ("input tokens", count(plan.input_tokens), "estimated from the text"),
        ("output tokens", f"≤ {count(float(output.high))}", f"expected {count(float(output.expected))}"),
        ("cost", _cost(plan.cost_usd), "input alone – every answer at its longest" if plan.cost_usd else ""),
        ("expected cost", money(plan.cost_usd.expected), "") if plan.cost_usd else None,
        ("time", f"about {duration(plan.seconds)}", _bound(plan)),
    ]
    show_columns(to, [row for row in rows if row])
    to.print()
    for line in plan.assumptions:
        to.print(f"  {line}", style="dim")
    if plan.sampled_rows:
        to.print(f"  counted from {plan.sampled_rows:,} rows spread over the table", style="dim")
    to.print(f"prices of {plan.prices_dated}; nothing was sent", style="dim")


def plan_json(plan: Plan) -> dict[str, object]:
    """The stable keys of `estimate --json`."""
    return {
        "documents": plan.documents,
        "documents_done": plan.documents_done,
        "documents_chunked": plan.documents_chunked,
        "prompts": plan.prompts,
        "prompts_by_step": plan.prompts_by_step,
        "input_tokens": plan.input_tokens,
        "output_tokens": _range_json(plan.output_tokens),
        "cost_usd": _range_json(plan.cost_usd) if plan.cost_usd else None,
        "seconds": round(plan.seconds, 1),
        "nights": plan.nights,
        "bottleneck": plan.bottleneck,
        "model": plan.model,
        "prices_dated": plan.prices_dated,
        "sampled_rows": plan.sampled_rows,
    }


def show_start(plan: Plan, name: str, directory: str, continued: bool, offline: bool) -> None:
    """One line before the first call."""
    left = f"{count(plan.prompts)} prompts"
    cost = "offline, costs nothing" if offline else _cost(plan.cost_usd)
    if continued and plan.documents_done:
        left = f"{count(plan.documents_done)} rows done, {count(plan.documents)} left: {left}"
    err.print(Text.assemble((name, "bold"), f" → {directory}\n  {left}, {cost}, about {duration(plan.seconds)}"))


def _cost(cost: Range | None) -> str:
    return f"{money(cost.low)} – {money(cost.high)}" if cost else "unknown price"


def _bound(plan: Plan) -> str:
    if plan.nights > 1:
        return f"{plan.nights} days of quota, limited by {plan.bottleneck}"
    return f"limited by {plan.bottleneck}" if plan.bottleneck != "none" else "no limit configured"


def _range_json(amount: Range) -> dict[str, int | float]:
    values = {name: getattr(amount, name) for name in ("low", "expected", "high")}
    return {name: value if isinstance(value, int) else float(round(value, 8)) for name, value in values.items()}
