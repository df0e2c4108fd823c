"""`pipeline run` and `pipeline estimate`."""

import shlex
import signal
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from time import time
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.flags import (
    Declined,
    ForWorkers,
    JobPath,
    Json,
    Limit,
    MaxCost,
    MetricsHost,
    MetricsPort,
    Model,
    Offline,
    On,
    Out,
    Pace,
    Rpd,
    Rpm,
    Sample,
    Tpm,
    Workers,
    Yes,
    load_job,
    parse_changes,
    parse_kinds,
    parse_usd,
)
from pipeline.cli.monitoring import monitored
from pipeline.cli.samples import check_sample, sampled
from pipeline.errors import RESUMABLE, JobError, PipelineError, resumable_once
from pipeline.language import Data, spoken
from pipeline.process import backend, quick_imports
from pipeline.terminal import without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.cli.flags import Cluster
    from pipeline.job import Job
    from pipeline.plan import Plan
    from pipeline.run.around import Watch
    from pipeline.run.ending import Ended
    from pipeline.run.prepare import Session
    from pipeline.run.run import Work


def run(
    job: JobPath,
    offline: Offline = False,
    limit: Limit = None,
    sample: Sample = None,
    max_cost: MaxCost = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="start anew; the old run directory is renamed and kept")
    ] = False,
    retry: Annotated[
        str | None,
        typer.Option(metavar="KINDS", help="redo rows with these statuses or causes, e.g. truncated,blocked"),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="with --retry: redo just those rows, with this [model] setting, e.g. max_output_tokens=2000; may be"
            " given more than once",
        ),
    ] = None,
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="leave rows alone that failed before for a passing reason")
    ] = False,
    yes: Yes = False,
    wait: Annotated[bool, typer.Option("--wait", help="sleep until the day's quota resets, then go on")] = False,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="TIME",
            help="have all answered by then (07:00, or 2026-11-24 07:00): `[model] lane` and targets with the fallback"
            " `deadline` keep to it",
        ),
    ] = None,
    leave: Annotated[
        bool,
        typer.Option("--leave", help="end once only batches are waited for (exit code 3); the same command collects"),
    ] = False,
    cancel_batches: Annotated[
        bool,
        typer.Option("--cancel-batches", help="cancel the batches that are out, take what they have, ask nothing"),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would be bought and what is kept; nothing is sent or written")
    ] = False,
    out: Out = None,
    model: Model = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    json: Json = False,
    pace: Pace = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="replace the output even where another run or nobody kept here wrote it, somebody changed it, or it"
            " holds more finished rows than this run would write",
        ),
    ] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="show every setting and where it comes from; nothing is run")
    ] = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    workers: Workers = None,
    on: On = None,
) -> None:
    """Start this job's run, or continue it.

    Refused before anything is sent, with exit code 2 and the place: a table that is not exactly one (file, line,
    column), an id that is empty or there twice, a template with a name that is no column, an output that cannot be
    written or that another job wrote, a key, an address or an amount that cannot be used.

    Taken: whatever was paid for, however odd its form. What cannot be answered is named in its row: exit code 1.

    Stopped in the middle: exit code 3, what was answered is kept, and the same command goes on and buys nothing twice.
    After Ctrl-C: 130.
    """
    with quick_imports():
        from pipeline import console
        from pipeline.run import prepare, status, wishes
        from pipeline.run.batching import counted, until

    loaded = load_job(job, out, model, rpm, tpm, rpd)
    if show_config:
        _show_config(loaded)
        return
    changed = parse_changes(changes, retry)
    if fresh and (skip_failed or retry is not None):
        flag = "--skip-failed" if retry is None else "--retry"
        raise JobError(f"{flag} is of the rows that were tried, and --fresh buys all anew", "leave one of the two out")
    options = prepare.Options(
        offline,
        limit,
        parse_usd(max_cost),
        fresh,
        parse_kinds(retry),
        skip_failed,
        wait,
        changes=wishes.canonical(changed),
        pace=pace,
        overwrite=overwrite,
        by=wishes.deadline(loaded, by),
        by_said=by or loaded.spec.run.by or "",
        leave=leave,
        cancel_batches=cancel_batches,
    )
    if cancel_batches and (fresh or leave):
        flag = "--fresh begins anew" if fresh else "--leave leaves them"
        raise JobError(f"--cancel-batches is of the batches that are out, and {flag}", "leave one of the two out")
    wishes.check_sampled(sample, workers, on)
    wishes.check_leave(leave, offline)
    check_sample(sample, {"--limit": limit, "--retry": retry, "--cancel-batches": cancel_batches or None})
    redo = load_job(job, out, model, rpm, tpm, rpd, changed) if changed else None
    with console.reading() as heard:
        prepared = prepare.prepare(loaded, options, redo, heard)
    if sample is not None:
        prepared = sampled(prepared, sample, json)

    if dry_run:
        _dry_run(prepared, json, workers, on)
    same = "the same command" + " without `--fresh`" * fresh  # with it the run would begin once more
    try:
        with _hired(prepared, workers, on) as work, monitored(console.watch, metrics_port, metrics_host) as watch:
            ended = _run(prepared, yes, watch, work)
            with resumable_once(lambda error: ended.summary.calls > 0):
                if json:
                    console.show_json(ended.summary.as_json())
                else:
                    console.show_summary(ended.summary, console.err)
    except PipelineError as error:
        if error.exit_code == RESUMABLE:
            error.hint = error.hint.replace("the same command", same)
        raise
    for reason in filter(None, (ended.stopped, ended.unwritten)):
        reason.hint = reason.hint.replace("the same command", same)
        console.show_error(reason, "stopped")
    if ended.interrupted and not ended.stopped:
        if not (ended.unwritten and same in ended.unwritten.hint):  # which says it already
            console.show_hint(f"{'what was answered is kept; ' if ended.summary.calls else ''}{same} continues")
        if ended.out:
            console.show_hint(f"{counted(ended.out)}{until(ended.out)}")
    if sample is not None and ended.exit_code in (0, 1):
        console.show_standing(ended.summary, status.read(ended.summary.directory), time(), console.err)
    if ended.exit_code == 1:
        directory = shlex.quote(str(ended.summary.directory))
        console.show_hint(f"`pipeline report {directory} --failed` lists the rows that are not ok")
    raise typer.Exit(ended.exit_code)


def estimate(
    job: JobPath,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot",
            min=1,
            metavar="N",
            help="first really run N of the rows that are left, of all kinds and lengths, keep them, and estimate the"
            " rest from their answers; asks before it spends",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="have the service count the tokens of a sample of the prompts; free of charge, needs a key"
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="other models and lanes side by side, and what would save money")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar="TIME", help="whether it ends by then (07:00, or 2026-11-24 07:00), and what would make it"
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="count every row; without it a table above 100,000 rows or 250 MB is counted from a sample"
        ),
    ] = False,
    max_cost: MaxCost = None,
    yes: Yes = False,
    offline: Offline = False,
    limit: Limit = None,
    sample: Sample = None,
    model: Model = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    pace: Pace = False,
    workers: ForWorkers = None,
    json: Json = False,
) -> None:
    """Dry run: calls, tokens, cost, time.

    Days of quota too. Nothing is sent without --pilot or --exact. Refused is what `pipeline run` refuses of the job,
    the table and the templates.
    """
    with quick_imports():
        import anyio

        from pipeline import console, estimating
        from pipeline.run import prepare, services
        from pipeline.run.wishes import moment

    loaded = load_job(job, None, model, rpm, tpm, rpd)
    check_sample(sample, {"--limit": limit, "--pilot": pilot})
    until = moment(loaded, by)
    with console.reading() as heard:
        chosen = prepare.Options(offline, limit, parse_usd(max_cost), pace=pace)
        prepared = prepare.prepare(loaded, chosen, heard=heard)
    if pilot is not None or exact:
        prepared = anyio.run(services.identified, prepared)
    if sample is not None:
        with console.busy("reading the table"):
            prepared, _, _ = anyio.run(estimating.sampled, prepared, sample)
    prepared, shards, _ = _split(prepared, workers, pilot=pilot)
    tried = pilot is not None and _pilot(prepared, pilot, yes, json)
    wishes = estimating.Wishes(everything, exact, compare, until, shards)
    with resumable_once(lambda error: tried):
        with console.busy("reading the table" + (", having prompts counted" if exact else "")):
            made = anyio.run(estimating.estimate, prepared, wishes)
        if json:
            console.show_json(console.plan_json(made))
        else:
            by_workers = workers is not None or loaded.spec.run.path is not None
            console.show_estimate(made, loaded.name, loaded.spec.input.path, by_workers)


def _pilot(prepared: "Session", number: int, yes: bool, json: bool) -> bool:
    """Run so many of the rows that are left, and keep them; ends the command unless they were run.

    Returns whether any were left. With `json` what stopped it is the document on stdout.
    """
    from dataclasses import replace

    import anyio

    from pipeline import console, estimating

    with console.busy("reading the table"):
        rows = anyio.run(estimating.pilot_rows, prepared, number)
    if not rows:
        return False
    trial = replace(prepared, options=replace(prepared.options, pilot=rows))
    trying = console.PilotWatch()
    ended = _run(trial, yes, trying.watch)
    trying.show()
    if ended.stopped:
        console.show_error(ended.stopped, "stopped")
    if ended.stopped or ended.interrupted:
        if json:
            console.show_failure(ended.stopped or PipelineError("interrupted", "the same command continues"))
        raise typer.Exit(ended.exit_code)
    return True


@contextmanager
def _hired(prepared: "Session", workers: int | None, on: "Cluster | None") -> "Iterator[Work | None]":
    """What does the work, where this process does not alone: nothing of that is imported for a run of one process."""
    if workers is None and on is None:
        yield None
        return
    with quick_imports():
        from pipeline import console
        from pipeline.fleet.hiring import hired

    with hired(prepared, workers, on is not None, console.busy) as work:
        yield work


def _split(
    prepared: "Session", workers: int | None, on: "Cluster | None" = None, pilot: int | None = None
) -> "tuple[Session, list[int], tuple[str, ...]]":
    """The session as workers do it, first rows of its shards, and what to know of them; none where none do it."""
    if workers is None and on is None:
        return prepared, [], ()
    with quick_imports():
        from pipeline.fleet.hiring import split, unasked

    return *split(prepared, workers, pilot), tuple(unasked(prepared, workers, on is not None))


def _run(prepared: "Session", yes: bool, watch: "Watch", work: "Work | None" = None) -> "Ended":
    """Run it once the plan is agreed to."""
    with quick_imports():
        import anyio

        from pipeline import console
        from pipeline.run import run

    with ExitStack() as reading:
        reading.enter_context(console.busy("reading the table"))
        confirm = _confirm(yes, reading.close)
        return anyio.run(partial(run.run, work=work), prepared, confirm, watch, backend_options=backend())


def _confirm(yes: bool, read: "Callable[[], None]") -> "Callable[[Plan, bool, Session], None]":
    """Show the plan and ask; `read` is called when it is known."""
    from pipeline import console

    def confirm(plan: "Plan", continued: bool, session: "Session") -> None:
        read()
        if session.options.cancel_batches:
            console.show_cancelling(session.job.name, str(session.directory))
            return
        console.show_beginning(plan, continued, session)
        if not (session.rehearsal or yes or plan.load.prompts == 0):
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise JobError("nobody is here to say yes to the cost", "add `--yes`, and perhaps `--max-cost USD`")
            with _heeding_ctrl_c():
                agreed = typer.confirm(spoken("Continue?"), err=True)
            if not agreed:
                raise Declined

    return confirm


def _dry_run(prepared: "Session", json: bool, workers: int | None, on: "Cluster | None") -> None:
    """Say what a run would buy, and end the command."""
    from dataclasses import replace

    import anyio

    from pipeline import console, estimating
    from pipeline.run import services

    prepared = anyio.run(services.identified, prepared)
    with console.busy("reading the table"):
        prepared, firsts, notes = _split(prepared, workers, on)
        plan, session = anyio.run(estimating.foreseen, prepared, firsts)
        plan = replace(plan, notices=(*notes, *plan.notices))
    console.show_beginning(plan, plan.documents_done > 0, session)
    if json:
        console.show_json(console.plan_json(estimating.as_estimate(plan, session)))
    nothing = "nothing was sent and nothing was written"
    if plan.documents or session.change:
        console.show_hint(f"{nothing}: without `--dry-run` the same command does it")
    else:
        console.show_hint(f"{nothing}: nothing is left to be done")
    raise typer.Exit


@contextmanager
def _heeding_ctrl_c() -> "Iterator[None]":
    """Let Ctrl-C end a question at once: an event loop heeds it only after the answer."""

    def interrupt(number: int, frame: object) -> None:
        sys.stderr.write("\n")
        raise KeyboardInterrupt

    of_the_loop = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, of_the_loop)


def _show_config(job: "Job") -> None:
    from pipeline import console

    rows = []
    for section, values in job.spec.model_dump(by_alias=True).items():
        if isinstance(values, list):  # of [[section]]: what is set in each
            several = ((f"{section}.{number}", each) for number, each in enumerate(values, 1))
            rows += [(f"{name}.{k}", _short(v), str(job.path)) for name, each in several for k, v in each.items() if v]
        elif values:
            origins = ((key, value, job.origins.get(f"{section}.{key}", "default")) for key, value in values.items())
            rows += [(f"{section}.{key}", _short(value), origin) for key, value, origin in origins]
    console.show_columns(console.out, [(Data(name), Data(value), Data(origin)) for name, value, origin in rows])


def _short(value: object) -> str:
    text = without_secrets(str(value)).splitlines()[0] if value not in (None, "", [], {}) else "-"
    return text if len(text) <= 48 else text[:47] + "…"
