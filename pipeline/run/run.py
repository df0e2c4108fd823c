"""One run, from the plan to the output table: opens what it needs, runs the engine, writes the output."""

import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal

from pipeline import machine
from pipeline.cache import shelf_of
from pipeline.documents import listing
from pipeline.errors import (
    KEPT,
    RESUMABLE,
    InputChanged,
    PipelineError,
    as_known,
    bug_in,
    resumable_once,
)
from pipeline.places import latencies_file
from pipeline.plan import Plan
from pipeline.plan.survey import Survey
from pipeline.process import rare_collections
from pipeline.run.around import Around, Confirm, Heed, Watch
from pipeline.run.assembling import assembled, bought_by, open_books, spending_of
from pipeline.run.attending import attended, opened
from pipeline.run.batching import (
    called_off,
    check_any_out,
    check_out,
    deadline_of,
    ended_early,
    in_batches_of,
    speakers,
    still_out,
)
from pipeline.run.changes import Change
from pipeline.run.ending import Ended, ended, ended_at_once, finished, has_spent
from pipeline.run.engine import Monitor, Works
from pipeline.run.generations import Keeping, begin, changed, held, number_of_fresh, settle, spent_before
from pipeline.run.guards import check_alone, refuse_unpriced, set_aside
from pipeline.run.interim import Interim
from pipeline.run.output import output_place
from pipeline.run.planning import look, planned
from pipeline.run.prepare import Session
from pipeline.run.replaced import with_replaced
from pipeline.run.rows import Left, wanted
from pipeline.run.services import Opening, Services, asked, open_services
from pipeline.run.signs import expectation
from pipeline.run.webhook import posting
from pipeline.store import digests
from pipeline.store.earlier import Earlier, line_of, told_missing
from pipeline.store.latencies import note
from pipeline.store.manifest import read as read_manifest
from pipeline.store.units import uncut

UPLOADS = "uploads.jsonl"
"""In the run directory: the files that are at the service."""
Work = Callable[[Session, Services, Around], Coroutine[None, None, Ended]]
"""What is done once all are known to be there who answer; see `run`."""


async def heed_signals(engine: Works) -> None:
    """First Ctrl-C (or SIGTERM, or SIGHUP of a terminal that is gone): finish what is in flight. Second: stop now."""
    with machine.signals_as_they_come() as signals:
        async for _ in signals:
            if engine.interrupted:
                engine.abandon()
            else:
                engine.halt(None)


async def run(
    session: Session,
    confirm: Confirm,
    watch: Watch,
    opening: Opening = open_services,
    heed: Heed = heed_signals,
    work: Work | None = None,
) -> Ended:
    """Start the job's run, or continue it. `confirm` sees the plan, whether a run is continued, and the session as the
    service made it, real or a rehearsal; it may raise. `watch` shows progress; `opening` opens those who answer; `heed`
    ends the run when somebody asks for it. `work` does it, where that is not this process alone.

    Raises `PipelineError` for what is wrong before the first call.
    """
    options = session.options
    seen: list[Monitor] = []
    is_agreed = False

    def spent(error: PipelineError) -> bool:
        return any(has_spent(monitor, error) for monitor in seen)

    def agreed_to(plan: Plan, continued: bool, session: Session) -> None:
        nonlocal is_agreed
        confirm(plan, continued, session)
        is_agreed = True

    async def watched(monitor: Monitor) -> None:
        seen.append(monitor)
        await watch(monitor)

    with rare_collections(), resumable_once(spent, lambda: any(monitor.calls for monitor in seen)):
        async with opening(session) as services:
            session = await asked(session, services)
            async with posting(session) as posts:
                try:
                    with output_place(session) as place:
                        if options.fresh:
                            set_aside(session.directory)
                        ended = await (work or _run)(session, services, Around(place, agreed_to, watched, heed, posts))
                except Exception as error:
                    known = as_known(error)
                    if posts and is_agreed:
                        posts.failed(known or bug_in(error))
                    if known is None or not spent(known):
                        raise
                    ended = ended_at_once(session, known)
    if ended.stopped and spent(ended.stopped):
        ended.stopped.exit_code = RESUMABLE
    if ended.stopped and ended.summary.calls and not isinstance(ended.stopped, InputChanged):  # which says so itself
        ended.stopped.message += KEPT
    return ended


async def _run(session: Session, services: Services, around: Around) -> Ended:
    job, options, confirm = session.job, session.options, around.confirm
    check_alone(session)
    if options.cancel_batches:
        check_any_out(session)
    shelf = None if options.offline else shelf_of(job, session.kind)
    settle(session.directory)
    plan = found = None
    if not options.fresh and not options.cancel_batches:
        if session.source.path_columns:
            found = await look(session)
        session = await with_replaced(session, found)
        if change := changed(session):
            plan = await _agreed(session, change, found, confirm)
    manifest = session.manifest()
    if options.fresh:
        manifest = replace(manifest, generation=number_of_fresh(session.directory))
    with opened(session, services, manifest, around.posts) as (store, continued), ExitStack() as closing:
        uncut(session.directory)
        is_edited = plan is not None
        own = read_manifest(session.directory / "manifest.json")
        assert own
        earlier = None
        if own.after:
            line = line_of(session.directory.parent, own)
            earlier = Earlier(line, services.parse, options.retry, session.directory)
            closing.callback(earlier.close)
        if options.retry:
            store.reopen(options.retry, options.changes, passing=not options.skip_failed)
        elif options.skip_failed:
            store.outcomes.settle()
        are_out = bool(store.batches.open())
        spoken = {} if options.pilot is not None else speakers(services, are_out)
        if are_out:
            check_out(session, store.batches.open())
        session = replace(session, options=replace(options, by=deadline_of(options, store.batches.open())))
        rows, is_redo = wanted(session, store.outcomes), bool(options.retry and continued and not is_edited)
        before_usd = Decimal(own.before_usd)
        if plan is None:
            found = found or await look(session)
            if not options.cancel_batches:
                note_rows(session, found)
            bought = bought_by(store, session.working, earlier)
            waiting = in_batches_of(store)
            left = Left(session, store.outcomes)
            plan = await planned(session, left, bought, store.spent_usd() + before_usd, found, waiting)
            missing = told_missing(earlier) if earlier is not None else ()
            plan = replace(plan, notices=(*missing, *still_out(store.batches.open()), *plan.notices))
            if plan.load.prompts and not session.rehearsal:
                refuse_unpriced(job, options)
            confirm(plan, continued, session)
        if plan.load.prompts:
            await services.reach()
        services.book.open(session.directory / UPLOADS)
        with ExitStack() as books:
            quotas, spent = open_books(session, services.targets, store.identity, books)
            spending = spending_of(session, spent, store.spent_usd() + before_usd)
            made = assembled(session, store, services, spending, quotas, shelf, plan, rows, spoken, books, earlier)
            engine = made.engine
            interim = Interim(session, store, around.place, engine.monitor, engine.halt)
            expected = expectation(session, plan, is_redo)
            told = await attended(session, services, store, made, expected, around, interim, books)
        out = tuple(state for state in store.batches.open() if state.is_waited_for)
        if not options.offline:
            note(latencies_file(session.kind), store.batches.all(), time.time())
        if not engine.stopped and not engine.interrupted:
            engine.stopped = ended_early(session, engine.monitor, out, made.called_at)
            if not engine.stopped and (late := [state for state in store.batches.open() if state.released]):
                engine.stopped = called_off(late)
        unwritten = await finished(session, store, engine, told, around)
        is_whole = options.pilot is None and not (engine.stopped or engine.interrupted or unwritten)
        if job.spec.input.delete_files and is_whole:
            await services.delete_files()
    return ended(session, engine, unwritten, out)


async def _agreed(session: Session, change: Change, found: Survey | None, confirm: Confirm) -> Plan:
    """Ask what an edit of the job or its input comes to, and begin the next generation: its plan."""
    with held(change.directory):
        found = found or await look(session)
        keeping = Keeping(session, change, found)
        before_usd = spent_before(change.directory, change.known)
        plan = await planned(session, Left(session, keeping.outcomes()), keeping.bought, before_usd, found)
        plan = replace(plan, notices=(*keeping.notices, *plan.notices))
        if plan.load.prompts and not session.rehearsal:
            refuse_unpriced(session.job, session.options)
        confirm(plan, False, replace(session, change=keeping.counted()))
        begin(change, session, before_usd)
        note_rows(session, found)
        keeping.carry()
    return plan


def note_rows(session: Session, found: Survey) -> None:
    """Keep what the rows are: so that a later start tells what changed, and whoever reads the run needs no folder."""
    digests.write(session.directory, found.digests, found.rows, session.hashed)
    covered = None
    if (held := session.source.table.documents) is not None and session.source.most is not None:
        covered = {path for frame in session.source.batches(columns=["path"]) for path in frame["path"]}
    listing.write(session.directory, held, covered)
