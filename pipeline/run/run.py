"""One run, from the plan to the output table: opens what it needs, runs the engine, writes the output."""

import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial

import anyio
import anyio.to_thread

from pipeline import machine, report
from pipeline.cache import shelf_of
from pipeline.documents import listing
from pipeline.errors import (
    KEPT,
    RESUMABLE,
    AuthError,
    BatchesOut,
    InputChanged,
    PipelineError,
    as_known,
    bug_in,
    resumable_once,
)
from pipeline.events import (
    Event,
    SessionStarted,
)
from pipeline.places import latencies_file
from pipeline.plan import Plan
from pipeline.plan.survey import Survey
from pipeline.process import give_back_memory, rare_collections
from pipeline.run.alerting import Alerting
from pipeline.run.assembling import Assembled, assembled, bought_by, open_books, open_spend, spending_of
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
from pipeline.run.engine import Monitor, Works
from pipeline.run.generations import Keeping, begin, changed, held, number_of_fresh, settle, spent_before
from pipeline.run.guards import check_alone, refuse_unpriced, set_aside
from pipeline.run.interim import Interim
from pipeline.run.output import exported, output_place
from pipeline.run.planning import look, planned
from pipeline.run.prepare import Session
from pipeline.run.replaced import with_replaced
from pipeline.run.rows import wanted
from pipeline.run.services import Opening, Services, asked, open_services
from pipeline.run.signs import end_of, expectation, progress_of, told_limits
from pipeline.run.status import StatusFile
from pipeline.run.status import read as read_status
from pipeline.run.webhook import Posts, nobody_hears, posting
from pipeline.store import digests
from pipeline.store.batch_states import BatchState
from pipeline.store.earlier import Earlier, line_of, told_missing
from pipeline.store.folder import Folder
from pipeline.store.latencies import note
from pipeline.store.manifest import read as read_manifest
from pipeline.store.place import Place
from pipeline.store.run import RunStore

UPLOADS = "uploads.jsonl"
"""In the run directory: the files that are at the service."""
HEARTBEAT_S = 10.0
"""Between lines of numbers in run.log, where any of them changed."""

Watch = Callable[[Monitor], Coroutine[None, None, None]]
Confirm = Callable[[Plan, bool, Session], None]

Heed = Callable[[Works], Coroutine[None, None, None]]
Work = Callable[
    [Session, Services, Place | Folder | None, Confirm, Watch, Heed, Posts | None], Coroutine[None, None, "Ended"]
]
"""What is done once all are known to be there who answer; see `run`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended; `stopped` is what stopped it early."""

    summary: report.Summary
    stopped: PipelineError | None
    interrupted: bool
    are_ok: bool  # all rows that the session covers
    unwritten: PipelineError | None = None  # why the output is not what the run came to
    out: tuple[BatchState, ...] = ()  # batches that are with the service still

    @property
    def exit_code(self) -> int:
        """0 all rows ok, 1 finished but some failed, 130 interrupted, else that of what stopped it."""
        if self.stopped:
            return self.stopped.exit_code
        if self.interrupted:
            return 130
        if self.unwritten:
            return self.unwritten.exit_code
        return 0 if self.are_ok else 1


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
    work: "Work | None" = None,
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
        return any(_has_spent(monitor, error) for monitor in seen)

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
                        ended = await (work or _run)(session, services, place, agreed_to, watched, heed, posts)
                except Exception as error:
                    known = as_known(error)
                    if posts and is_agreed:
                        posts.failed(known or bug_in(error))
                    if known is None or not spent(known):
                        raise
                    ended = _ended_at_once(session, known)
    if ended.stopped and spent(ended.stopped):
        ended.stopped.exit_code = RESUMABLE
    if ended.stopped and ended.summary.calls and not isinstance(ended.stopped, InputChanged):  # which says so itself
        ended.stopped.message += KEPT
    return ended


@contextmanager
def end_told(monitor: Monitor, store: RunStore, told: StatusFile) -> Iterator[None]:
    """Leave word of how the run ended where an error ends it at once: without any it would count as killed."""
    try:
        yield
    except Exception as error:
        known = as_known(error)
        stopped = known or bug_in(error)
        store.log(end_of(monitor, "stopped", stopped.message))
        code = exit_code_of(monitor, known, False) if known else stopped.exit_code
        told.end("stopped", stopped.message, code, stopped.hint)
        raise


def _ended_at_once(session: Session, stopped: PipelineError) -> Ended:
    """The end of a run that an error ended in its middle, as far as its directory can still be read."""
    try:
        return Ended(report.summarize(session.directory), stopped, interrupted=False, are_ok=False)
    except PipelineError:
        raise stopped from None


def _has_spent(monitor: Monitor, error: PipelineError) -> bool:
    return monitor.has_spent or (monitor.has_sent and not isinstance(error, AuthError))


async def _run(
    session: Session,
    services: Services,
    place: Place | Folder | None,
    confirm: Confirm,
    watch: Watch,
    heed: Heed,
    posts: Posts | None,
) -> Ended:
    job, options = session.job, session.options
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
    store = RunStore(session.directory, services.parse)
    manifest = session.manifest()
    if options.fresh:
        manifest = replace(manifest, generation=number_of_fresh(session.directory))
    is_edited, continued = plan is not None, store.open(manifest)
    own = read_manifest(session.directory / "manifest.json")
    assert own
    earlier = None
    if own.after:
        earlier = Earlier(line_of(session.directory.parent, own), services.parse, options.retry, session.directory)
    if posts:
        posts.on_trouble = store.log
    try:
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
            plan = await planned(session, rows, bought, store.spent_usd() + before_usd, found, waiting)
            missing = told_missing(earlier) if earlier is not None else ()
            plan = replace(plan, notices=(*missing, *still_out(store.batches.open()), *plan.notices))
            if plan.load.prompts and not session.rehearsal:
                refuse_unpriced(job, options)
            confirm(plan, continued, session)
        if plan.load.prompts:
            await services.reach()
        services.book.open(session.directory / UPLOADS)
        with ExitStack() as books:
            quotas = open_books(session, services.targets, store.identity, books)
            spent = open_spend(session, services.targets, store.identity, books)
            spending = spending_of(session, store, spent, before_usd)
            made = assembled(session, store, services, spending, quotas, shelf, plan, rows, spoken, books, earlier)
            engine = made.engine
            store.log(expectation(session, plan, is_redo))
            before = read_status(session.directory)
            alerting = Alerting(job.spec.alerts, engine.monitor, before, partial(_heard, store, engine.monitor), posts)
            told = StatusFile(session.directory, engine.monitor, alerting.look)
            for limit in told_limits(services.targets, engine.monitor):
                store.log(limit)
            interim = Interim(session, store, place, engine.monitor, engine.halt)
            with end_told(engine.monitor, store, told):
                await attended(made, store, session.rows, watch, heed, told, interim, books)
        out = tuple(state for state in store.batches.open() if state.is_waited_for)
        if not options.offline:
            note(latencies_file(session.kind), store.batches.all(), time.time())
        if not engine.stopped and not engine.interrupted:
            engine.stopped = ended_early(session, engine.monitor, out, made.called_at)
            if not engine.stopped and (late := [state for state in store.batches.open() if state.released]):
                engine.stopped = called_off(late)
        with end_told(engine.monitor, store, told):
            try:
                await store.seal()
            except PipelineError as error:
                raise engine.stopped or error from error
            unwritten = None
            if place is not None:
                store.outcomes.forget()  # all is sealed, and this with what answers took would stay beside
                give_back_memory()  # what writing the table takes
                unwritten = await anyio.to_thread.run_sync(exported, session, place, engine.stopped)
        whole = "finished" if options.pilot is None else "sample" if options.sampled else "pilot"
        stopped = engine.stopped or (None if engine.interrupted else unwritten)
        early = "left" if isinstance(stopped, BatchesOut) else "stopped" if stopped else "interrupted"
        status = early if stopped or engine.interrupted else whole
        store.log(end_of(engine.monitor, status, str(stopped or "")))
        code = exit_code_of(engine.monitor, stopped, engine.interrupted)
        told.end(status, str(stopped or ""), code, stopped.hint if stopped else "")
        if posts and told.last and options.pilot is None:
            posts.ended(told.last)
            await posts.finish()
        if job.spec.input.delete_files and status == "finished":
            await services.delete_files()
    finally:
        if posts:
            posts.on_trouble = nobody_hears
        if earlier is not None:
            earlier.close()
        store.close()
    summary = report.summarize(session.directory)
    return Ended(summary, engine.stopped, engine.interrupted, are_all_ok(engine.monitor), unwritten, out)


async def _agreed(session: Session, change: Change, found: Survey | None, confirm: Confirm) -> Plan:
    """Ask what an edit of the job or its input comes to, and begin the next generation: its plan."""
    with held(change.directory):
        found = found or await look(session)
        keeping = Keeping(session, change, found)
        before_usd = spent_before(change.directory, change.known)
        plan = await planned(session, wanted(session, keeping.outcomes()), keeping.bought, before_usd, found)
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


async def attended(
    made: Assembled,
    store: RunStore,
    rows: int,
    watch: Watch,
    heed: Heed,
    told: StatusFile,
    interim: Interim | None,
    books: ExitStack,
) -> None:
    """Have the engine run, with all who watch it and look after it."""
    engine, keeper = made.engine, made.keeper
    store.log(SessionStarted(rows, os.getpid()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heed, engine)
        tasks.start_soon(_heartbeat, made, store, told)
        tasks.start_soon(watch, engine.monitor)
        tasks.start_soon(told.keep)
        if interim is not None:
            tasks.start_soon(interim.keep)
        if keeper is not None:
            await keeper.open()
            tasks.start_soon(keeper.keep)
        tasks.start_soon(made.steer)
        try:
            await engine.run()
        finally:
            if interim is not None:
                interim.end()
            if keeper is not None:
                await keeper.close()
        made.failures.beat()
        told.look()
        books.close()  # while what they have to say is still heard
        tasks.cancel_scope.cancel()


def _heard(store: RunStore, monitor: Monitor, event: Event) -> None:
    store.log(event)
    monitor.notices.append(event)


async def _heartbeat(made: Assembled, store: RunStore, told: StatusFile) -> None:
    """A run that sleeps has one line as it falls asleep and one after: `status.json` says meanwhile that it lives."""
    before = None
    while True:
        await anyio.sleep(HEARTBEAT_S)
        made.failures.beat()
        now = progress_of(made.engine.monitor, told.last)
        if (news := replace(now, seconds=0.0, bound_s={})) != before:
            before = news
            store.log(now)


def exit_code_of(monitor: Monitor, stopped: PipelineError | None, is_interrupted: bool) -> int:
    """The same as `Ended` will say."""
    if stopped:
        return RESUMABLE if _has_spent(monitor, stopped) else stopped.exit_code
    if is_interrupted:
        return 130
    return 0 if are_all_ok(monitor) else 1


def are_all_ok(monitor: Monitor) -> bool:
    """Whether every row that the session covers is answered."""
    return monitor.outcomes["ok"] == monitor.done >= monitor.rows
