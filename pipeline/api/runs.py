"""A run, started or continued by a program."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal

import anyio

from pipeline import console, estimating, report
from pipeline.api.jobs import check_rows, load, opened
from pipeline.api.results import Results, told
from pipeline.api.tables import Table
from pipeline.api.words import translated
from pipeline.api.work import Asked, Ending, Work, awaited, waited
from pipeline.errors import JobError
from pipeline.fleet.hiring import hired
from pipeline.job import Job
from pipeline.plan import Plan
from pipeline.run import prepare, services
from pipeline.run.around import Confirm
from pipeline.run.ending import Ended
from pipeline.run.engine import Monitor
from pipeline.run.guards import check_alone
from pipeline.run.prepare import Session
from pipeline.run.run import Work as Doing
from pipeline.run.run import run as run_session
from pipeline.run.wishes import canonical, check_changes, check_leave, check_sampled, deadline, kinds, usd


@waited
def run(
    job: Job | str | Path,
    table: Table | None = None,
    *,
    max_cost_usd: Decimal | float | str | None = None,
    yes: bool = False,
    offline: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    retry: str | Iterable[str] = (),
    set: Mapping[str, object] | None = None,
    skip_failed: bool = False,
    fresh: bool = False,
    wait: bool = False,
    leave: bool = False,
    cancel_batches: bool = False,
    by: str | datetime | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on: Literal["ray"] | None = None,
    progress: bool = True,
) -> Work[Results]:
    """Start a job's run, or continue it, and wait until it ends: `pipeline run`, whose flags these are.

    Calls that cost something are made where `max_cost_usd` says how much the run may spend in all, earlier sessions
    included, or `yes` that its plan is agreed to; else a `JobError` says what they would cost, and nothing is sent.
    `set` changes [model] settings for the rows of `retry`; `workers` are processes that share the run, of this machine
    or with `on="ray"` of a cluster. What stops a run in its middle is in its results. Ctrl-C, or a notebook's ■, waits
    for what is in flight, which is kept as everything before it; a second one does not wait. It works where an event
    loop runs, and holds it up. `progress=False` prints nothing. Raises `PipelineError` for what is wrong before the
    first call.
    """
    cap = None if max_cost_usd is None else usd(str(max_cost_usd), "max_cost_usd")
    redone = kinds(retry.split(",") if isinstance(retry, str) else retry, "retry") if retry else frozenset[str]()
    check_rows(limit=limit, sample=sample)
    check_workers(workers)
    if on not in (None, "ray"):
        raise JobError(f"workers are on Ray or on this machine, and not on {on!r}", 'on="ray", or leave it out')
    check_leave(leave, offline)
    changed = check_changes(set or {}, "set")
    if changed and not redone:
        raise JobError("set is of the rows that retry names, and it names none", 'retry="truncated" redoes those')
    if fresh and (redone or skip_failed):
        flag = "retry" if redone else "skip_failed"
        raise JobError(f"{flag} is of the rows that were tried, and fresh buys all anew", "leave one of the two out")
    if sample is not None and (limit is not None or redone or cancel_batches):
        raise JobError(
            "sample says which rows, and limit, retry or cancel_batches does too", "leave one of the two out"
        )
    if cancel_batches and (fresh or leave):
        flag = "fresh begins anew" if fresh else "leave leaves them"
        raise JobError(f"cancel_batches is of the batches that are out, and {flag}", "leave one of the two out")

    def work(ending: Ending) -> Results:
        check_sampled(sample, workers, on)
        loaded = opened(job, table)
        options = prepare.Options(
            offline=offline,
            limit=limit,
            max_cost_usd=cap,
            fresh=fresh,
            retry=redone,
            skip_failed=skip_failed,
            changes=canonical(changed),
            wait=wait,
            leave=leave,
            cancel_batches=cancel_batches,
            overwrite=overwrite,
            by=deadline(loaded, by),
            by_said=str(by or loaded.spec.run.by or ""),
        )
        session = prepare.prepare(loaded, options, load(loaded, model=changed) if changed else None)
        busy = console.busy if progress else nullcontext
        with hired(session, workers, on == "ray", busy) as doing:
            return ending.run(lambda: _run(session, sample, doing, yes, progress, ending))

    return Work(work)


run_async = awaited(
    run,
    """The same in an event loop, of asyncio or trio, which goes on meanwhile.

    Cancelled, it waits for what is in flight, as `run` does after Ctrl-C; cancelled once more, it does not.
    """,
)


async def _run(
    session: Session, sample: int | None, doing: Doing | None, yes: bool, progress: bool, ending: Ending
) -> Results:
    if sample is not None:
        session = await services.identified(session)
        check_alone(session)
        session, _, left = await estimating.sampled(session, sample)
        if not left:
            return told(report.summarize(session.directory), None, session.job)
    watch = console.watch if progress else unseen
    confirm = agreed(yes, progress, by_workers=doing is not None)
    ended: Ended = await run_session(session, confirm, watch, heed=ending.heed, work=doing)
    if ended.interrupted and not ended.stopped:
        raise Asked
    stopped = ended.stopped or ended.unwritten
    return told(ended.summary, stopped and translated(stopped), session.job)


def agreed(yes: bool, progress: bool, by_workers: bool = False) -> Confirm:
    """Shows the plan, and lets nothing be bought that nobody said yes to."""

    def confirm(plan: Plan, continued: bool, session: Session) -> None:
        if session.options.cancel_batches:  # that buys nothing
            return
        if progress:
            console.show_beginning(plan, continued, session)
        if not (session.rehearsal or yes or session.options.max_cost_usd or plan.load.prompts == 0):
            raise JobError(
                f"nobody said yes to the cost: {_cost(plan)}; nothing was sent",
                "`max_cost_usd=` says how much the run may spend in all, or `yes=True` that this is agreed to;"
                f" `{'limit' if by_workers else 'sample'}=20` tries a few rows first",
            )

    return confirm


def _cost(plan: Plan) -> str:
    calls = console.things(plan.load.prompts, "call")
    if plan.cost_usd is None:
        return f"{calls}, at an unknown price"
    return f"{calls}, about {console.money(plan.cost_usd.expected)}, up to {console.money(plan.cost_usd.high)}"


def check_workers(workers: int | None) -> None:
    """Raise `JobError` for no number of workers."""
    if workers is not None and workers < 1:
        raise JobError(f"workers is a number of processes: {workers} is none", "leave it out for this one alone")


async def unseen(monitor: Monitor) -> None:
    """Shows nothing of a run."""
    await anyio.sleep_forever()
