"""`pipeline run` and `pipeline estimate`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.flags import (
    JobPath,
    Json,
    Limit,
    Model,
    Offline,
    Out,
    Rpd,
    Rpm,
    Tpm,
    backend,
    canonical,
    load_job,
    parse_changes,
    parse_kinds,
    parse_usd,
)
from pipeline.errors import JobError

if TYPE_CHECKING:
    from pipeline.job import Job
    from pipeline.plan import Plan


def run(
    job: JobPath,
    offline: Offline = False,
    limit: Limit = None,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="stop before this is passed")] = None,
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask before spending")] = False,
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
        offline, limit, parse_usd(max_cost), fresh, parse_kinds(retry), skip_failed, wait, canonical(changed)
    )
    redo = load_job(job, out, model, rpm, tpm, rpd, changed) if changed else None
    prepared = session.prepare(loaded, options, redo)

    def confirm(plan: "Plan", continued: bool) -> None:
        console.show_start(plan, loaded.name, str(prepared.directory), continued, offline)
        if not (offline or yes or plan.prompts == 0):
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise JobError("nobody is here to say yes to the cost", "add `--yes`, and perhaps `--max-cost USD`")
            typer.confirm("Continue?", abort=True, err=True)

    ended = anyio.run(running.run, prepared, confirm, console.watch, backend_options=backend())
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
    offline: Offline = False,
    limit: Limit = None,
    model: Model = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    json: Json = False,
) -> None:
    """Dry run: prompts, tokens, cost, time, days of quota. No network, no key, nothing is sent."""
    import anyio

    from pipeline import console, session

    loaded = load_job(job, None, model, rpm, tpm, rpd)
    prepared = session.prepare(loaded, session.Options(offline=offline, limit=limit))
    plan = anyio.run(session.estimate, prepared)
    if json:
        console.show_json(console.plan_json(plan))
    else:
        console.show_plan(plan, loaded.name, loaded.spec.input.path)


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
