"""What is said of a plan."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from math import isclose
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from pipeline.console.lanes import ends_by, show_parts, told
from pipeline.console.plans_json import limits_json
from pipeline.console.screen import (
    Row,
    Screen,
    count,
    duration,
    err,
    folded,
    money,
    out,
    show_columns,
    show_grid,
    styled,
    things,
)
from pipeline.language import Data, spoken
from pipeline.places import Kind
from pipeline.plan import Plan
from pipeline.plan.amounts import Range
from pipeline.plan.compare import ASSUMPTION, LANES, Offer, Saving
from pipeline.plan.lengths import Answers
from pipeline.plan.plans import Example, Found
from pipeline.plan.timing import Deadline, Timeline
from pipeline.prices import CHECKED
from pipeline.records import Lane
from pipeline.store.digests import RowsChanged
from pipeline.terminal import one_line

if TYPE_CHECKING:
    from pipeline.estimating import Estimate
    from pipeline.run.changes import Change

_FOUND = {
    "repeats": "repeat an earlier row",
    "empty_input": "empty, not sent",
    "template_error": "template fails, not sent",
    "invalid_messages": "no whole conversation, not sent",
    "file": "a file cannot be read or sent: nothing is",
    "too_long": "too long, not sent",
    "chunked": "cut into pieces",
}
_SAVINGS = {
    "identical_rows": "already saved",
    "shared_prefix": "shared prefix",
    "flex": "flex lane",
    "batch": "batch lane",
    "chunk_size": "larger pieces",
}
_BOUNDS = {
    "rpm": "limited by requests a minute",
    "tpm": "limited by tokens a minute",
    "rpd": "limited by requests a day",
    "concurrency": "limited by calls in flight",
    "latency": "most of it waiting for answers",
    "none": "no limit configured",
}
_WIDTH = 78
_KEY_WIDTH = 24
_DAYS_SHOWN = 7
_PILOT_FROM = 40
"""Rows from which a pilot of 20 leaves enough to be worth it."""


def show_estimate(made: "Estimate", name: str, path: str, by_workers: bool = False) -> None:
    """What `estimate` says, of a run by several workers too."""
    plan = made.plan
    models = ", ".join(dict.fromkeys(each.model for each in plan.targets)) or plan.model
    out.print(styled((Data(one_line(name)), "bold"), Data(f"  {one_line(models)}  {one_line(path)}\n")))
    if not plan.load.prompts:
        _show_nothing_left(plan)
        return
    show_columns(out, list(_rows(plan)))
    if made.deadline:
        _show_deadline(made.deadline, plan)
    if plan.lanes:
        out.print()
        show_parts(plan, _moment)
        _show_notes(told(plan, _moment), out)
    if len(plan.steps) > 1 or any(step.answers for step in plan.steps.values()):
        out.print()
        _show_steps(plan)
    if plan.targets:
        out.print()
        _show_targets(plan)
    if plan.found:
        out.print()
        _show_found(plan)
    if plan.timeline.nights > 1:
        out.print()
        _show_days(plan.timeline)
    if made.offers:
        out.print()
        _show_offers(made)
    if made.savings:
        out.print()
        _show_savings(made.savings)
    out.print()
    _show_notes(plan.notices, out, "yellow")
    _show_notes((*plan.assumptions, *_provenance(plan, by_workers)), out)
    out.print(f"prices of {CHECKED}", style="dim")


def _show_nothing_left(plan: Plan) -> None:
    """There is no call to plan: all rows are done, or none of them can be sent."""
    if plan.documents:
        rows = ("rows", count(plan.documents), _done(plan))
    else:
        rows = ("rows", count(plan.documents_done), "all done: `pipeline report` says what they came to")
    show_columns(out, [rows, ("calls", "0", "nothing is left to be sent")])
    if plan.found:
        out.print()
        _show_found(plan)
    if plan.notices:
        out.print()
        _show_notes(plan.notices, out, "yellow")


def _show_notes(lines: Iterable[str], to: Screen, style: str = "dim") -> None:
    for line in lines:
        to.print(folded(styled((f"  {line}", style)), min(_WIDTH, to.width)))


def _rows(plan: Plan) -> Iterator[Row]:
    steps = " + ".join(f"{step} {count(number)}" for step, number in plan.prompts_by_step.items())
    yield "rows", count(plan.documents), _done(plan)
    yield "calls", _expected(plan.prompts), steps if len(plan.steps) > 1 else _spread(plan.prompts)
    yield "tokens in", _expected(plan.input_tokens), _spread(plan.input_tokens)
    yield "tokens out", _expected(plan.output_tokens), _spread(plan.output_tokens)
    if plan.cost_usd is None:
        yield "cost", "unknown", f"{'[[target]]' if plan.targets else '[model]'} prices sets the price of a model"
    else:
        yield "cost", money(plan.cost_usd.expected), _from_to(plan.cost_usd)
    live = "live: " if plan.lanes else ""
    yield "time", f"about {duration(plan.timeline.seconds)}", live + _bound(plan.timeline)
    if not plan.lanes:
        yield "finished", _moment(plan.timeline.finish_at), "if started now"
    elif end := ends_by(plan):
        yield "finished", _moment(end), "at the latest"


def _done(plan: Plan) -> str:
    return f"{count(plan.documents_done)} more are done" if plan.documents_done else ""


def _show_steps(plan: Plan) -> None:
    headers = ["  step", "calls", "tokens in", "tokens out", "cost"]
    known = any(each.answers for each in plan.steps.values())
    lines = []
    for step, each in plan.steps.items():
        usd = "?" if each.cost_usd is None else money(each.cost_usd)
        line = [Data(f"  {step}"), count(each.prompts), count(each.input_tokens), count(each.answer_tokens), usd]
        if known:
            line.append(_answer(each.answers))
        lines.append(line)
    show_grid([*headers, "an answer: P10 / median / P90"] if known else headers, lines)


def _answer(known: Answers | None) -> str:
    return " / ".join(count(value) for value in (known.p10, known.p50, known.p90)) if known else "not known yet"


def _show_targets(plan: Plan) -> None:
    lines = [
        (
            Data(f"  {each.name}"),
            Data(each.model),
            count(each.prompts),
            "?" if each.cost_usd is None else money(each.cost_usd),
        )
        for each in plan.targets
    ]
    show_grid(("  target", "model", "calls", "cost"), lines)


def _show_found(plan: Plan) -> None:
    rows = [f"  {count(found.rows)}" for found in plan.found.values()]
    names = [_FOUND[name] for name in plan.found]
    widths = [max(cell_len(spoken(cell)) for cell in cells) for cells in (("  rows", *rows), ("what", *names))]
    width = min(_WIDTH, out.width) - sum(widths) - 4
    examples = [Data(_examples(found, width)) for found in plan.found.values()]
    show_grid(("  rows", "what", "for instance"), list(zip(rows, names, examples, strict=True)))


def _examples(found: Found, width: int) -> str:
    """As many as fit the line."""
    shown = ""
    for each in map(spoken, map(_example, found.examples)):
        longer = f"{shown}; {each}" if shown else each
        if cell_len(longer) > width:
            break
        shown = longer
    return shown


def _example(each: Example) -> str:
    key = f" ({_clipped(one_line(each.key))})" if each.key != str(each.row) else ""
    return f"row {each.row}{key}: {each.remark}" if each.remark else f"row {each.row}{key}"


def _clipped(key: str) -> str:
    return key if cell_len(key) <= _KEY_WIDTH else set_cell_size(key, _KEY_WIDTH - 1).rstrip() + "…"


def _show_days(timeline: Timeline) -> None:
    listed = timeline.days if len(timeline.days) <= _DAYS_SHOWN else timeline.days[: _DAYS_SHOWN - 2]
    lines = [(f"  {_moment(day.starts_at)}", _moment(day.ends_at), count(day.prompts)) for day in listed]
    show_grid(("  from (local time)", "until", "calls"), lines)
    if left := timeline.days[len(listed) :]:
        more, calls = sum(day.days for day in left), sum(day.prompts for day in left)
        end = _moment(timeline.finish_at)
        out.print(f"  … {things(more, 'more day')} with {count(calls)} calls, the last until {end}", style="dim")


def _show_deadline(deadline: Deadline, plan: Plan) -> None:
    if deadline.fits:
        fits = f"  fits: {duration(deadline.margin_s)} to spare before {_moment(deadline.at)}"
        out.print(styled((fits, "green")))
        return
    _show_notes(
        (
            f"does not fit: {duration(-deadline.margin_s)} too late for {_moment(deadline.at)}; "
            f"{deadline.share_done:.0%} ({count(deadline.prompts_done)} calls) would be done by then",
        ),
        out,
        "yellow",
    )
    if deadline.needed is None:
        _show_notes(("no limit would make it fit: start earlier, or send less",), out)
        return
    needed = [f"{name} = {value:,}" for name, value in limits_json(deadline.needed).items()]
    rows = int(plan.documents * deadline.share_done)
    fewer = f", or with `--limit {rows}`" if rows and not plan.documents_done else ""
    _show_notes((f"it would fit with {' and '.join(needed)}{fewer}",), out)


def _show_offers(made: "Estimate") -> None:
    """One line a model, cheapest first; its lanes side by side."""
    offers, plan = made.offers, made.plan
    by_model: dict[str, dict[Lane, Offer]] = {}
    for offer in offers:
        by_model.setdefault(offer.model, {})[offer.lane] = offer
    lines = [
        (f"{'>' if name == plan.model else ' '} {name}", *(_offered(lanes.get(lane)) for lane in LANES))
        for name, lanes in by_model.items()
    ]
    show_grid(("  model", *map(Data, LANES)), lines)
    remarks = (
        f"{offer.model}: {'; '.join(filter(None, (offer.misfit, offer.note)))}"
        for offer in offers
        if offer.misfit or offer.note
    )
    _show_notes(
        (
            "* the cheapest that fits and is open to new projects   > this job",
            _priced(made.deadline),
            *_apart(plan, by_model.get(plan.model, {}).get("standard")),
            *dict.fromkeys(remarks),
            ASSUMPTION,
        ),
        out,
    )


def _priced(deadline: Deadline | None) -> str:
    """What the price of a slower lane is."""
    if deadline is None:
        return 'flex answers when it can, batch within 24 h; [model] lane = "auto" takes what costs least'
    return f"flex and batch with what is expected to fall back to standard to be done by {_moment(deadline.at)}"


def _apart(plan: Plan, same: Offer | None) -> Iterator[str]:
    """The plan has prices of its own, or other ones later on."""
    listed = float(same.cost_usd) if same and same.cost_usd else 0.0
    if plan.cost_usd and not plan.lanes and not isclose(listed, plan.cost_usd.expected, rel_tol=0.001):
        yield f"at list prices of today; this job as planned above: {money(plan.cost_usd.expected)}"


def _offered(offer: Offer | None) -> str:
    if offer is None or offer.cost_usd is None:
        return "?"
    return money(offer.cost_usd) + ("*" if offer.cheapest else " ")


def _show_savings(savings: tuple[Saving, ...]) -> None:
    names = [spoken(_SAVINGS[each.what]) for each in savings]
    amounts = [money(each.usd) if each.usd else spoken("nothing") for each in savings]
    widths = [max(map(cell_len, cells)) for cells in (names, amounts)]
    out.print("  savings", style="dim")
    for each, name, amount in zip(savings, names, amounts, strict=True):
        start = f"  {name}{' ' * (widths[0] - cell_len(name))}  {' ' * (widths[1] - cell_len(amount))}{amount}  "
        line = styled(Data(start), each.detail)
        out.print(folded(line, min(_WIDTH, out.width), cell_len(start)))


def _provenance(plan: Plan, by_workers: bool) -> Iterator[str]:
    ungrown_s = plan.timeline.ungrown_s
    if ungrown_s is not None and duration(ungrown_s) != duration(plan.timeline.seconds):
        yield f"if the limits never grow it takes {duration(ungrown_s)}"
    if plan.based_on:
        yield f"learned from {plan.based_on}"
    if plan.bounded:
        yield "ranges are bounds: from empty answers to every answer at its limit"
        if plan.documents >= _PILOT_FROM:
            with_what = "`pipeline run --workers N --limit 20`" if by_workers else "`--pilot 20`"
            yield f"{with_what} runs 20 rows and measures it; they are kept for the run"
    else:
        yield "ranges hold 95 times in 100"
    if plan.sampled_rows:
        yield f"counted from {plan.sampled_rows:,} rows of all kinds and lengths; `--all` counts every row"


def _expected(amount: Range) -> str:
    return count(float(amount.expected))


def _spread(amount: Range) -> str:
    if amount.low == amount.expected == amount.high:
        return ""
    return f"{count(float(amount.low))} – {count(float(amount.high))}"


def _from_to(cost: Range) -> str:
    low, high = money(cost.low), money(cost.high)
    return f"{low} – {high}" if low != high else ""


def _moment(at: datetime) -> str:
    """Local time, as a person says it: 07:12 today, 07:12 tomorrow, Thu 2026-12-03 07:12."""
    local, today = at.astimezone(), datetime.now().astimezone().date()
    if local.date() == today:
        return f"{local:%H:%M} today"
    if local.date() == today + timedelta(days=1):
        return f"{local:%H:%M} tomorrow"
    return f"{local:%a %Y-%m-%d %H:%M}"


def show_start(plan: Plan, name: str, directory: str, continued: bool, kind: Kind, asked: str = "") -> None:
    """What is about to be done, before the first call; `asked`: "pilot of {rows}" or another word for those that are
    left."""
    if plan.load.prompts:
        cost = _cost(plan.cost_usd) if kind == "real" else f"{kind}, costs nothing"
        left = f"{things(float(plan.prompts.expected), 'call')}, {cost}, {_until(plan)}"
    else:
        left = "nothing is left to be sent"
    if asked:
        left = f"{asked.format(rows=things(plan.documents, 'row'))}: {left}"
    elif not plan.documents:
        left = f"all {count(plan.documents_done)} rows are done: {left}"
    elif continued and plan.documents_done:
        left = f"{things(plan.documents_done, 'row')} done, {count(plan.documents)} left: {left}"
    err.print(styled((Data(one_line(name)), "bold"), Data(f" → {one_line(directory)}\n  "), left))
    _show_notes(plan.notices, err, "yellow")


def show_change(change: "Change", about: bool) -> None:
    """What an edit of a job or its input comes to: what differs, rows and calls, what is kept."""
    began = f"generation {change.generation}: this job changed since {one_line(str(change.directory))} was made"
    err.print(folded(styled((began, "yellow")), min(_WIDTH, err.width)))
    _show_notes(map(one_line, change.lines), err, "")
    kept = f"{'about ' if about else ''}{change.kept:,} {'answer' if change.kept == 1 else 'answers'} kept"
    paid = f", {money(change.kept_usd)} then" if change.kept_usd else ""
    rows = [
        f"{count(number)} {word}"
        for word, number in zip(RowsChanged._fields, change.rows or (), strict=False)
        if number
    ]
    told = [f"rows: {', '.join(rows)}"] if rows else []
    _show_notes(["; ".join([*told, kept + paid])], err, "")
    if change.truncated:
        was = "was" if change.truncated == 1 else "were"
        cure = "`--retry truncated` buys those anew"
        _show_notes([f"{count(change.truncated)} of them {was} cut short: {cure}"], err, "")


def show_cancelling(name: str, directory: str) -> None:
    """That a run only takes its batches back."""
    words = "its batches are cancelled, what they have answered is kept, and nothing is asked"
    err.print(styled((Data(one_line(name)), "bold"), Data(f" → {one_line(directory)}\n  "), words))


def _until(plan: Plan) -> str:
    """How long it takes; by lanes, until when."""
    if not plan.lanes:
        return f"about {duration(plan.timeline.seconds)}"
    end = ends_by(plan)
    return f"by {_moment(end)}" if end else "as its lanes answer"


def _cost(cost: Range | None) -> str:
    if cost is None:
        return "unknown price"
    spread = _from_to(cost)
    return money(cost.expected) + (f" ({spread})" if spread else "")


def _bound(timeline: Timeline) -> str:
    what = _BOUNDS[timeline.bound]
    return f"{timeline.nights} days of quota, {what}" if timeline.nights > 1 else what
