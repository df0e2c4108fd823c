"""What is said of runs and of models."""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from pipeline.console.failures import show_causes
from pipeline.console.screen import Screen, count, duration, folded, money, out, show_columns, show_grid, styled, things
from pipeline.language import Data, current, spoken
from pipeline.models import MODELS
from pipeline.prices import CHEAPER, LONG_PROMPT_TOKENS, Rates, note, rates
from pipeline.records import STATUSES
from pipeline.report import Summary
from pipeline.report.accuracy import Accuracy
from pipeline.report.lanes import InLane
from pipeline.run.status import Status, Waits
from pipeline.store.batch_states import BatchState
from pipeline.terminal import one_line

_SHORT_S = 60.0
"""Below it start and end of a run outweigh what was estimated."""
_MOST_BATCHES = 12
"""Shown on the screen; `--json` lists all."""


def show_summary(summary: Summary, to: Screen = out) -> None:
    """What a run came to."""
    manifest, outcomes = summary.manifest, summary.outcomes
    to.print(
        styled(
            (Data(one_line(manifest.job)), "bold"),
            f"   {summary.status}   ",
            Data(one_line(manifest.model)),
            ("" if manifest.kind == "real" else f"   {manifest.kind}: the emulator's answers", "yellow"),
            "\n",
        )
    )
    remarks = [f"{outcomes[status]:,} {status}" for status in STATUSES[1:] if outcomes[status]]
    if summary.parked:
        remarks.append(f"{summary.parked:,} in batches")
    if summary.pending > summary.parked:
        remarks.append(f"{summary.pending - summary.parked:,} not reached")
    if summary.beyond:
        remarks.append(f"{summary.beyond:,} more are kept beyond `--limit`, and counted below")
    steps = _split(summary.calls_by_step)
    stored_at = summary.stored_at
    usage = summary.usage
    unanswered = {
        "failed": summary.attempts - summary.calls,
        "refused for quota": summary.rate_limited,
        "turned away in flex": summary.shed,
    }
    saved = summary.identical + summary.cached
    savers = {"identical prompts": summary.identical, "earlier runs": summary.cached}
    answered_by = " and ".join(f"{number:,} by {which}" for which, number in savers.items() if number)
    cost = "unknown" if summary.unpriced else money(summary.cost_usd)
    paid_rows = 0 if summary.unpriced else summary.done + summary.beyond
    before_usd = Decimal(manifest.before_usd)
    per_1000 = (summary.cost_usd + summary.kept_usd) / paid_rows * 1000 if paid_rows else None
    rows = [
        ("rows", f"{outcomes['ok']:,} ok", "   ".join(remarks)),
        ("calls", f"{summary.calls:,}", steps if len(summary.calls_by_step) > 1 else ""),
        ("unanswered", f"{sum(unanswered.values()):,}", _split(unanswered)) if any(unanswered.values()) else None,
        ("saved calls", f"{saved:,}", f"{answered_by}, worth {money(summary.saved_usd)}") if saved else None,
        ("kept calls", f"{summary.kept:,}", f"of earlier generations, which paid {money(summary.kept_usd)} for them")
        if summary.kept
        else None,
        ("tokens in", count(usage.input_tokens + usage.tool_tokens), ""),
        (
            "tokens out",
            count(usage.output_tokens + usage.thinking_tokens),
            f"{count(usage.thinking_tokens)} of them thinking" if usage.thinking_tokens else "",
        ),
        ("cost", cost, f"{money(per_1000)} per 1,000 rows" if per_1000 else ""),
        ("", "", f"{money(before_usd)} by earlier generations of this run") if before_usd else None,
        ("", "", _uncertain(summary)) if summary.uncertain and not summary.unpriced else None,
        ("lanes", *_lanes(summary)) if summary.lanes.keys() - {"standard"} else None,
        *_fallen(summary.lanes),
        ("batches", *_batches(summary.batches)) if summary.batches else None,
        ("latency", seconds(summary.latency_p50_s), f"median; {seconds(summary.latency_p95_s)} at p95")
        if summary.latency_p50_s is not None and summary.latency_p95_s is not None
        else None,
        ("time", duration(summary.seconds), _bound(summary)),
        ("output", Data(summary.output), _so_far(summary)),
        ("run", Data(summary.directory), f"a copy of {stored_at}" if stored_at else ""),
    ]
    show_columns(to, [row for row in rows if row])
    if summary.targets:
        to.print()
        lines = [
            (Data(f"  {name}"), f"{calls:,}", "unknown" if usd is None else money(usd))
            for name, (calls, usd) in summary.targets.items()
        ]
        show_grid(("  target", "calls", "cost"), lines, to)
    if summary.causes:
        to.print()
        show_causes(summary.causes, manifest, to)
    if summary.batches:
        to.print()
        _show_batches(summary.batches, to)
    for message in (*summary.left_out, *summary.models_noted):
        to.print(folded(styled((f"  {message}", "yellow")), to.width))
    if summary.accuracy and not summary.pending:
        to.print()
        show_accuracy(summary.accuracy, to)


def _so_far(summary: Summary) -> str:
    """What the output lacks."""
    finished = summary.output_finished
    if finished is None or summary.status in ("sample", "pilot"):
        return "not written yet: the run does"
    return "" if finished >= summary.rows else f"{finished:,} of {summary.rows:,} rows so far, the others are `pending`"


_BOUND = {
    "slots": "a place among the calls in flight",
    "budget": "room in the budget",
    "server": "the service",
    "cpu": "this machine",
    "source": "something to send",
}
_MOST_BOUND = 3  # causes that are named


def _bound(summary: Summary) -> str:
    """Why it was not faster: the parts of its time that went into waiting, by cause; nothing of a short run."""
    total = sum(summary.bound_s.values())
    if summary.seconds < _SHORT_S / 10 or not total:
        return ""
    shares = [(seconds / total, _BOUND.get(cause, cause)) for cause, seconds in summary.bound_s.items()]
    first, *others = ((f"{share:.0%}", cause) for share, cause in shares[:_MOST_BOUND] if share >= 0.005)
    return ", ".join([f"{first[0]} waiting for {first[1]}", *(f"{share} for {cause}" for share, cause in others)])


_WAITS: Mapping[Waits, str] = {
    "day_quota": "the day's quota",
    "minute_quota": "the minute's quota",
    "outage": "the service, which is down or refuses everything",
    "batches": "batches",
}


def show_standing(summary: Summary, status: Status | None, now_s: float, to: Screen = out) -> None:
    """Why a run ended or what it waits for, when it goes on, and what to type; nothing of one that is done."""
    if status is None or status.state in ("finished", "pilot"):
        return
    if status.state == "running":
        if status.waits_for:
            until = f", {_until(status.waits_until_s, now_s)}" if status.waits_until_s else "; nobody knows until when"
            to.print(styled("\n", (f"it waits for {_WAITS[status.waits_for]}{until}", "yellow")))
        return
    command = summary.manifest.again(sample=status.sample if status.state != "sample" else 0)
    if status.state == "sample":
        told = f"it was a sample of {things(status.sample, 'row')}"
        answers = f"`pipeline show {shlex.quote(str(summary.directory))}` has the answers"
        other = f"does the other {things(summary.pending, 'row')}" if summary.pending else "writes the output"
        to.print(styled("\n", f"{told}: {answers}, `{command}` {other}"))
        return
    said = (". " if current() == "en" else "。").join(spoken(line).rstrip(".。") for line in status.reason.splitlines())
    reason = f"it stopped: {one_line(said)}" if said else _ENDED[status.state]
    later = status.goes_on_at_s if status.goes_on_at_s and status.goes_on_at_s > now_s else None
    when = f" in {duration(later - now_s)}, at {_clock(later)}" if later else ""
    to.print(styled("\n", (f"{reason}. It can go on{when}: `{command}`", "yellow")))
    if status.hint and status.state == "stopped":
        to.print(styled(("hint: ", "bold cyan"), Data(one_line(spoken(status.hint)))))


_ENDED: Mapping[str, str] = {
    "killed": "it was killed, or its machine went down: it said nothing at its end",
    "interrupted": "it was interrupted",
    "stopped": "it was stopped",
    "left": "it left batches with the service",
}


def _until(at_s: float, now_s: float) -> str:
    return f"for {duration(max(0.0, at_s - now_s))} more, until {_clock(at_s)}"


def _clock(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"


def _split(parts: Mapping[str, int]) -> str:
    return " + ".join(f"{name} {number:,}" for name, number in parts.items() if number)


def _lanes(summary: Summary) -> tuple[str, str]:
    """Calls by lane, and what that saved."""
    saved_usd = sum((lane.saved_usd for lane in summary.lanes.values()), Decimal(0))
    calls = _split({name: lane.calls for name, lane in summary.lanes.items()})
    if saved_usd <= 0:
        return calls, ""
    is_real = summary.manifest.kind == "real"
    return calls, f"{money(saved_usd)} saved" if is_real else f"{money(saved_usd)} would be saved, by the tables"


def _fallen(lanes: Mapping[str, InLane]) -> list[tuple[str, str, str]]:
    """How many prompts fell back from each lane, and why."""
    found = {name: lane.fell_back for name, lane in lanes.items() if lane.fell_back}
    return [
        ("" if place else "fell back", f"{sum(causes.values()):,} of {name}", _by_cause(causes))
        for place, (name, causes) in enumerate(found.items())
    ]


def _by_cause(causes: Mapping[str, int]) -> str:
    return _split(
        {cause.replace("_", " "): causes[cause] for cause in sorted(sorted(causes), key=lambda one: -causes[one])}
    )


def _batches(batches: Sequence[BatchState]) -> tuple[str, str]:
    """What became of them and of their lines."""
    out = sum(state.is_open for state in batches)
    waiting = sum(state.lines for state in batches if state.is_open)
    worst = [state.worst_usd for state in batches if state.is_open]
    known = [usd for usd in worst if usd is not None]
    most = f" for at most {money(sum(known, Decimal(0)))}" if known and len(known) == len(worst) else ""
    told = [f"{out:,} of them out, with {things(waiting, 'call')}{most}"] if out else []
    lines = _of_lines(batches, {"failed", "missing", "refused", "late"})
    return f"{len(batches):,}", "   ".join([*told, *filter(None, [lines])])


def _of_lines(batches: Sequence[BatchState], which: Collection[str]) -> str:
    """How many of their lines came to what."""
    sums = {
        "answered": sum(state.ok for state in batches),
        "failed": sum(state.failed for state in batches),
        "missing": sum(state.missing for state in batches),
        "refused": sum(state.refused for state in batches),
        "late": sum(state.late for state in batches),
    }
    return _split({name: number for name, number in sums.items() if name in which})


def _show_batches(batches: Sequence[BatchState], to: Screen) -> None:
    """One line a batch: how it stands, when it was asked, and what became of its lines; of many the last."""
    shown = batches[-_MOST_BATCHES:]
    if more := len(batches) - len(shown):
        to.print(f"  {more:,} before these: `--json` lists all batches", style="dim")
    lines = [
        (
            f"  {state.number}",
            _batch_state(state),
            f"{state.lines:,}",
            "" if state.asked_at is None else f"{datetime.fromtimestamp(state.asked_at, UTC):%Y-%m-%d %H:%M}",
            _took(state),
            _of_lines([state], {"answered", "failed", "missing", "refused", "late"}),
        )
        for state in shown
    ]
    show_grid(("  batch", "state", "lines", "asked (UTC)", "took", "came to"), lines, to)


def _batch_state(state: BatchState) -> str:
    """How a batch stands, by the service's word where it has said one."""
    if state.stage == "given_up":
        return "given up"
    return (state.status or "asked") if state.asked_at else "not sent yet"


def _took(state: BatchState) -> str:
    """How long the service had it; its clock may be a little behind ours."""
    if state.asked_at is None or state.ended_at is None:
        return ""
    return duration(max(0.0, state.ended_at - state.asked_at))


def _uncertain(summary: Summary) -> str:
    """What may have been paid that nobody knows of."""
    most = "an unknown sum" if summary.at_most_usd is None else f"at most {money(summary.at_most_usd)}"
    requests = things(summary.uncertain, "request")
    return f"and {most} more for {requests} whose replies never came or could not be read, or have no known price"


def show_accuracy(accuracy: Accuracy, to: Screen = out) -> None:
    """How far the estimate was off: by how much more, or less, it became than was said before."""
    steps = [step for step in accuracy.estimated if step != "total" or len(accuracy.estimated) > 2]
    lines: list[tuple[str, ...]] = []
    for step in steps:
        guess, real = accuracy.estimated[step], accuracy.actual[step]
        is_live = step == steps[-1] and not accuracy.lanes  # how long batches take was no estimate
        time = _off_time(accuracy.estimated_s, accuracy.actual_s) if is_live else ""
        lines.append(
            (
                "  total" if step == "total" else Data(f"  {step}"),
                _off(guess.calls, real.calls),
                _off(guess.input_tokens, real.input_tokens),
                _off(guess.output_tokens, real.output_tokens),
                _off(guess.cost_usd, real.cost_usd),
                time,
            )
        )
    lines += [(f"  in {lane}", _off(*calls), "", "", "", "") for lane, calls in accuracy.lanes.items()]
    title = "  against the redo's estimate" if accuracy.redo else "  against the estimate"
    show_grid((title, "calls", "tokens in", "tokens out", "cost", "time"), lines, to)


def _off(estimated: float | Decimal | None, actual: float | Decimal | None) -> str:
    """+3.1 % when it became that much more than estimated."""
    if estimated is None or actual is None:
        return "?"
    if not estimated:
        return "as said" if not actual else "not seen"
    off = float(actual) / float(estimated) - 1
    return "as said" if abs(off) < 0.0005 else f"{off:+.1%}" if abs(off) < 1 else f"{off:+.0%}"


def _off_time(estimated_s: float, actual_s: float) -> str:
    """The same of a duration; short ones are told as they are."""
    if max(estimated_s, actual_s) >= _SHORT_S:
        return _off(estimated_s, actual_s)
    before, after = duration(estimated_s), duration(actual_s)
    return "as said" if before == after else Data(f"{spoken(before)} → {spoken(after)}")


def show_runs(summaries: Iterable[Summary]) -> None:
    """Every run with its state."""
    lines = [
        (
            Data(summary.directory),
            str(summary.manifest.generation),
            _state(summary),
            f"{summary.done:,} / {summary.rows:,}",
            f"{summary.outcomes['ok']:,}",
            "" if summary.manifest.kind == "real" else summary.manifest.kind,
            "unknown" if summary.unpriced else money(summary.cost_usd),
            summary.manifest.created_at[:16].replace("T", " "),
        )
        for summary in summaries
    ]
    show_grid(("run", "gen.", "status", "rows", "ok", "", "cost", "started (UTC)"), lines)


def _state(summary: Summary) -> str:
    out = summary.batches_out
    return f"{summary.status}, {out:,} batch{'' if out == 1 else 'es'} out" if out else summary.status


def show_models(lines: Sequence[dict[str, object]]) -> None:
    """Prices and sizes of the known models."""
    cells = [
        (
            Data(line["model"]),
            *("?" if line[key] is None else f"{line[key]:g}" for key in ("input", "output", "cached")),
            count(int(str(line["context_tokens"]))),
            count(int(str(line["max_output_tokens"]))),
        )
        for line in lines
    ]
    show_grid(("model", "in", "out", "cached", "context", "longest answer"), cells)
    out.print()
    for line in lines:
        for told in filter(None, str(line["note"]).split("; ")):
            out.print(f"  {line['model']}: {told}", style="dim")


def models_json() -> list[dict[str, object]]:
    """The known models, prices in USD per million tokens today."""
    today = datetime.now(UTC).date()
    lines: list[dict[str, object]] = []
    for model in MODELS:
        found, long = rates(model.name, today), rates(model.name, today, long=True)
        told = [note(model, today)]
        if long and long != found:
            usd = _per_million(long)
            told.append(
                f"a prompt above {LONG_PROMPT_TOKENS:,} tokens: input {usd['input']:g}, output {usd['output']:g},"
                f" cached {usd['cached']:g}"
            )
        lines.append(
            {
                "model": model.name,
                **_per_million(found),
                "lanes": {lane: _per_million(rates(model.name, today, lane)) for lane in CHEAPER},
                "context_tokens": model.context_tokens,
                "max_output_tokens": model.max_output_tokens,
                "note": "; ".join(filter(None, told)),
            }
        )
    return lines


def _per_million(found: Rates | None) -> dict[str, float | None]:
    names = ("input", "output", "cached")
    return {name: float(getattr(found, name) * 1_000_000) if found else None for name in names}


def seconds(value: float) -> str:
    """A latency, which is known to 1 %."""
    if value < 0.001:
        return "under 0.001 s"
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
