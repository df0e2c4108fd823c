"""What a person sees: plans, progress, summaries, errors. Data goes to stdout, everything else to stderr."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC
from decimal import Decimal

import anyio
import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.engine import Monitor
from pipeline.errors import PipelineError
from pipeline.plan import Plan
from pipeline.plan.amounts import Range
from pipeline.prices import MODELS, rates
from pipeline.records import STATUSES
from pipeline.report import Failure, Summary

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

REFRESH_S = 0.25
QUIET_S = 15.0
"""Between progress lines when stderr is no terminal."""
_BAR = 10


def money(amount: Decimal | float) -> str:
    """USD with as many places as a small amount needs."""
    value = float(amount)
    if value == 0:
        return "$0.00"
    return f"${value:,.2f}" if value >= 0.995 else f"${value:.4f}" if value >= 0.0001 else f"${value:.6f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 12 s, 34 min, 5 h 12 min, 2 d 3 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def count(number: float) -> str:
    """A number of things: 17,902, or 48.1 M above ten million."""
    return f"{number / 1e6:,.1f} M" if number >= 10_000_000 else f"{round(number):,}"


def show_error(error: PipelineError, word: str = "error") -> None:
    """`error: what`, where, then a blank line and the next command."""
    err.print(Text.assemble((f"{word}: ", "bold red" if word == "error" else "bold yellow"), error.message))
    if error.hint:
        show_hint(error.hint)


def show_hint(text: str) -> None:
    """The next command."""
    err.print(Text.assemble("\n", ("hint: ", "bold cyan"), text))


def show_json(value: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


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
    _columns(to, [row for row in rows if row])
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


async def watch(monitor: Monitor) -> None:
    """One line that changes, or, where stderr is no terminal, a line now and then; until cancelled."""
    _tell(monitor)
    try:
        await _progress(monitor)
    finally:
        _tell(monitor)


async def _progress(monitor: Monitor) -> None:
    if err.is_terminal:
        with err.status("") as status:
            while True:
                _tell(monitor)
                status.update(Text(_stopping(monitor) or progress_line(monitor, bar=True)))
                await anyio.sleep(REFRESH_S)
    since = 0.0
    while True:
        await anyio.sleep(REFRESH_S)
        _tell(monitor)
        since += REFRESH_S
        if since >= QUIET_S:
            err.print(progress_line(monitor, bar=False))
            since = 0.0


def _tell(monitor: Monitor) -> None:
    while monitor.notices:
        if text := notice(*monitor.notices.pop(0)):
            err.print(Text(text, "yellow"))


def notice(event: str, numbers: dict[str, object]) -> str:
    """What a person is told of an event of the dispatcher; nothing of one that is told in other ways."""
    if event == "limit":
        return f"limit: {numbers['per_minute']:,} {numbers['meter']} a minute ({numbers['origin']})"
    if event == "sharing":
        if numbers["runs"] == 1:
            return "no other run on this machine uses this quota any more"
        return f"{numbers['runs']} runs on this machine share this quota, this one included"
    if event == "lost":
        requests, most = numbers["requests"], numbers["at_most_usd"]
        cost = "may have cost an unknown sum and " if most is None else ""
        if isinstance(most, Decimal) and most:
            cost = f"may have cost up to {money(most)} and "
        return f"the last session was killed with {requests} request(s) in flight: they {cost}are sent again"
    if event == "halt":
        return ""  # the end of the run says it
    return f"{event}: {numbers['message']}" if "message" in numbers else ""


def progress_line(monitor: Monitor, *, bar: bool) -> str:
    """Calls answered of those planned, the fuller meter, rows done, cost, failures, time left."""
    answered = monitor.calls + monitor.saved.calls
    share = min(1.0, answered / monitor.prompts) if monitor.prompts else 1.0
    filled = "█" * int(share * _BAR)
    parts = [f"{answered:,}/{max(answered, monitor.prompts):,} calls {share:4.0%}"]
    if bar:
        parts.append(f"▕{filled:<{_BAR}}▏")
    parts.append(f"{monitor.done:,} rows")
    if monitor.dispatcher and any(use := monitor.dispatcher.use):
        meter = max(range(2), key=use.__getitem__)
        parts.append(f"{('rpm', 'tpm')[meter]} {use[meter]:.0%}")
    parts.append(money(monitor.cost_usd))
    if failed := monitor.done - monitor.outcomes["ok"]:
        parts.append(f"{failed:,} not ok")
    if monitor.dispatcher and (refused := monitor.dispatcher.rate_limited):
        parts.append(f"{refused:,} refused for quota")
    if answered and (left := monitor.prompts - answered) > 0:
        parts.append(f"eta {duration(left / answered * monitor.seconds)}")
    return "  ".join(parts)


def _stopping(monitor: Monitor) -> str:
    if not monitor.stopping or monitor.dispatcher is None:
        return ""
    return f"stopping: waiting for {monitor.dispatcher.in_flight} replies (Ctrl-C again to abandon them)"


def show_summary(summary: Summary, to: Console = out) -> None:
    """What a run came to."""
    manifest, outcomes = summary.manifest, summary.outcomes
    to.print(
        Text.assemble((manifest.job, "bold"), f"   {summary.status}   {manifest.model}")
        + Text("   offline: answers are the emulator's" if manifest.offline else "", "yellow")
        + Text("\n")
    )
    not_ok = "   ".join(f"{outcomes[status]:,} {status}" for status in STATUSES[1:] if outcomes[status])
    pending = summary.rows - summary.done
    steps = " + ".join(f"{step} {number:,}" for step, number in summary.calls_by_step.items())
    usage, off = summary.usage, ""
    if summary.input_tokens_est and usage.input_tokens and not usage.estimated:
        ratio = summary.input_tokens_est / usage.input_tokens - 1
        off = (
            f"the estimate was {abs(ratio):.1%} {'high' if ratio > 0 else 'low'}" if round(ratio, 3) else "as estimated"
        )
    retries = summary.attempts - summary.calls
    saved = summary.identical + summary.cached
    savers = {"identical prompts": summary.identical, "earlier runs": summary.cached}
    answered_by = " and ".join(f"{number:,} by {which}" for which, number in savers.items() if number)
    cost = "unknown" if summary.unpriced else money(summary.cost_usd)
    per_1000 = summary.cost_usd / summary.done * 1000 if summary.done and not summary.unpriced else None
    rows = [
        ("rows", f"{outcomes['ok']:,} ok", not_ok + (f"   {pending:,} not reached" if pending > 0 else "")),
        ("calls", f"{summary.calls:,}", steps if len(summary.calls_by_step) > 1 else ""),
        ("retries", f"{retries:,}", f"{summary.rate_limited:,} refused for quota")
        if retries or summary.rate_limited
        else None,
        ("saved calls", f"{saved:,}", f"{answered_by}, worth {money(summary.saved_usd)}") if saved else None,
        ("tokens in", count(usage.input_tokens + usage.tool_tokens), off),
        ("tokens out", count(usage.output_tokens), f"{count(usage.thinking_tokens)} thinking, billed as output")
        if usage.thinking_tokens
        else ("tokens out", count(usage.output_tokens), ""),
        ("cost", cost, f"{money(per_1000)} per 1,000 rows" if per_1000 else ""),
        ("latency", f"{summary.latency_p50_s:.3g} s", f"median; {summary.latency_p95_s:.3g} s at p95")
        if summary.latency_p50_s is not None and summary.latency_p95_s is not None
        else None,
        ("time", duration(summary.seconds), ""),
        ("output", manifest.output, ""),
        ("run", str(summary.directory), ""),
    ]
    _columns(to, [row for row in rows if row])


def show_failures(failures: Sequence[Failure], most: int = 50) -> None:
    """The rows without a whole answer."""
    lines = [
        (str(failure.row), failure.key, failure.status, failure.error_kind or "", failure.error or "")
        for failure in failures[:most]
    ]
    _grid(("row", "id", "status", "cause", "what happened"), lines)
    if len(failures) > most:
        out.print(f"… and {len(failures) - most:,} more: `--json` lists all", style="dim")


def show_runs(summaries: Iterable[Summary]) -> None:
    """Every run with its state."""
    lines = [
        (
            str(summary.directory),
            summary.status,
            f"{summary.done:,} / {summary.rows:,}",
            f"{summary.outcomes['ok']:,}",
            "unknown" if summary.unpriced else money(summary.cost_usd),
            summary.manifest.created_at[:16].replace("T", " "),
        )
        for summary in summaries
    ]
    _grid(("run", "status", "rows", "ok", "cost", "started (UTC)"), lines)


def show_models(lines: Sequence[dict[str, object]]) -> None:
    """Prices and sizes of the known models."""
    cells = [
        (
            str(line["model"]),
            *("?" if line[key] is None else f"{line[key]:g}" for key in ("input", "output", "cached")),
            count(int(str(line["context_tokens"]))),
            count(int(str(line["max_output_tokens"]))),
        )
        for line in lines
    ]
    _grid(("model", "in", "out", "cached", "context", "longest answer"), cells)
    out.print()
    for line in lines:
        if line["note"]:
            out.print(f"  {line['model']}: {line['note']}", style="dim")


def models_json() -> list[dict[str, object]]:
    """The known models, prices in USD per million tokens today."""
    from datetime import datetime

    today = datetime.now(UTC).date()
    lines: list[dict[str, object]] = []
    for model in MODELS:
        found = rates(model.name, today)
        prices = (found.input, found.output, found.cached) if found else (None, None, None)
        names = ("input", "output", "cached")
        lines.append(
            {
                "model": model.name,
                **{
                    name: None if price is None else float(price * 1_000_000)
                    for name, price in zip(names, prices, strict=True)
                },
                "context_tokens": model.context_tokens,
                "max_output_tokens": model.max_output_tokens,
                "note": model.note,
            }
        )
    return lines


def show_pairs(pairs: Sequence[tuple[str, str, str]], to: Console = out) -> None:
    """Name, value and remark in columns."""
    _columns(to, pairs)


def _columns(to: Console, rows: Sequence[tuple[str, str, str]]) -> None:
    names = max(len(row[0]) for row in rows)
    values = max(len(row[1]) for row in rows if row[2])
    for name, value, remark in rows:
        to.print(Text.assemble((f"  {name:<{names}}  ", "dim"), f"{value:<{values}}   {remark}".rstrip()))


def _grid(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table whose columns are as wide as their cells; nothing is wrapped or cut."""
    widths = [max(cell_len(row[column]) for row in (headers, *lines)) for column in range(len(headers))]
    for number, row in enumerate((headers, *lines)):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        out.print("  ".join(padded).rstrip(), style="" if number else "dim", markup=False)


def _cost(cost: Range | None) -> str:
    return f"{money(cost.low)} – {money(cost.high)}" if cost else "unknown price"


def _bound(plan: Plan) -> str:
    if plan.nights > 1:
        return f"{plan.nights} days of quota, limited by {plan.bottleneck}"
    return f"limited by {plan.bottleneck}" if plan.bottleneck != "none" else "no limit configured"


def _range_json(amount: Range) -> dict[str, int | float]:
    values = {name: getattr(amount, name) for name in ("low", "expected", "high")}
    return {name: value if isinstance(value, int) else float(round(value, 8)) for name, value in values.items()}
