"""`pipeline run` and `pipeline estimate`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.flags import (
    JobPath,
    Json,
    Limit,
    MaxCost,
    Model,
    Offline,
    Out,
    Rpd,
    Rpm,
    Tpm,
    Yes,
    backend,
    canonical,
    load_job,
    parse_changes,
    parse_kinds,
    parse_usd,
)
from pipeline.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from pipeline.job import Job
    from pipeline.plan import Plan
    from pipeline.session import Session


def run(
    job: JobPath,
    offline: Offline = False,
    limit: Limit = None,
    max_cost: MaxCost = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start anew; the old run is kept beside it")] = False,
    retry: Annotated[
        str | None,
        typer.Option(metavar="KINDS", help="redo rows with these statuses or causes, e.g. truncated,blocked"),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="with --retry: redo them with this [model] setting"),
    ] = None,
    skip_failed: Annotated[bool, typer.Option("--skip-failed", help="do not retry rows that failed before")] = False,
    yes: Yes = False,
    wait: Annotated[bool, typer.Option("--wait", help="sleep until the day's quota resets, then go on")] = False,
    out: Out = None,
    model: Model = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    json: Json = False,
    show_config: Annotated[bool, typer.Option("--show-config", help="say where each setting comes from")] = False,
) -> None:
    """Start this job's run, or continue it."""
    import anyio

    from pipeline import console, running, session

    loaded = load_job(job, out, model, rpm, tpm, rpd)
    if show_config:
        _show_config(loaded)
        return
    changed = parse_changes(changes, retry)
    options = session.Options(
        offline, limit, parse_usd(max_cost), fresh, parse_kinds(retry), skip_failed, wait, changes=canonical(changed)
    )
    redo = load_job(job, out, model, rpm, tpm, rpd, changed) if changed else None
    prepared = session.prepare(loaded, options, redo)

    ended = anyio.run(running.run, prepared, _confirm(prepared, yes), console.watch, backend_options=backend())
    if json:
        console.show_json(ended.summary.as_json())
    else:
        console.show_summary(ended.summary, console.err)
    if ended.stopped:
        console.show_error(ended.stopped, "stopped")
    elif ended.interrupted:
        console.show_hint("nothing is lost; the same command continues")
    elif ended.exit_code == 1:
        console.show_hint(f"`pipeline report {prepared.directory} --failed` lists the rows that are not ok")
    raise typer.Exit(ended.exit_code)


def estimate(
    job: JobPath,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot", min=1, metavar="N", help="first run N rows of all kinds and lengths, and learn from them"
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="have the service count a sample of the prompts: free, needs a key")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="other models and lanes, and what would save money")
    ] = False,
    by: Annotated[
        str | None, typer.Option("--by", metavar="TIME", help="does it end by 07:00, or by 2026-11-24 07:00?")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="count every row, however large the table")] = False,
    max_cost: MaxCost = None,
    yes: Yes = False,
    offline: Offline = False,
    limit: Limit = None,
    model: Model = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    json: Json = False,
) -> None:
    """Dry run: prompts, tokens, cost, time, days of quota. Nothing is sent without --pilot or --exact."""
    from datetime import UTC, datetime

    import anyio

    from pipeline import console, session
    from pipeline.plan.timing import next_time
    from pipeline.session import estimates

    loaded = load_job(job, None, model, rpm, tpm, rpd)
    wishes = estimates.Wishes(everything, exact, compare, next_time(by, datetime.now(UTC)) if by else None)
    prepared = session.prepare(loaded, session.Options(offline=offline, limit=limit))
    if pilot is not None:
        _pilot(prepared, pilot, parse_usd(max_cost), yes)
    made = anyio.run(estimates.estimate, prepared, wishes)
    if json:
        console.show_json(console.plan_json(made))
    else:
        console.show_estimate(made, loaded.name, loaded.spec.input.path)


def _pilot(prepared: "Session", number: int, max_cost_usd: "Decimal | None", yes: bool) -> None:
    """Run so many rows of the job, and keep them; ends the command unless they were run."""
    from dataclasses import replace

    import anyio

    from pipeline import console, running
    from pipeline.session import estimates

    rows = anyio.run(estimates.pilot_rows, prepared, number)
    options = replace(prepared.options, pilot=rows, max_cost_usd=max_cost_usd)
    trial = replace(prepared, options=options)
    ended = anyio.run(running.run, trial, _confirm(trial, yes), console.watch, backend_options=backend())
    if ended.stopped:
        console.show_error(ended.stopped, "stopped")
    if ended.stopped or ended.interrupted:
        console.show_hint("what was answered is kept; the same command without --pilot estimates with it")
        raise typer.Exit(ended.exit_code)


def _confirm(prepared: "Session", yes: bool) -> "Callable[[Plan, bool], None]":
    from pipeline import console

    offline = prepared.options.offline

    def confirm(plan: "Plan", continued: bool) -> None:
        console.show_start(plan, prepared.job.name, str(prepared.directory), continued, offline)
        if not (offline or yes or plan.load.prompts == 0):
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise JobError("nobody is here to say yes to the cost", "add `--yes`, and perhaps `--max-cost USD`")
            typer.confirm("Continue?", abort=True, err=True)

    return confirm


def _show_config(job: "Job") -> None:
    from pipeline import console

    rows = [
        (f"{section}.{key}", _short(value), job.origins.get(f"{section}.{key}", "default"))
        for section, values in job.spec.model_dump().items()
        if values
        for key, value in values.items()
    ]
    console.show_columns(console.out, rows)


def _short(value: object) -> str:
    text = str(value).splitlines()[0] if value not in (None, "", [], {}) else "-"
    return text if len(text) <= 48 else text[:47] + "…"
