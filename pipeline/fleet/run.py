"""One run by a fleet: its table cut into shards, the plan agreed to, the workers led, the output written."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio.to_thread

from pipeline import report
from pipeline.events import Event
from pipeline.fleet.assembling import led
from pipeline.fleet.driver import Launch
from pipeline.fleet.refusals import check_files, check_run
from pipeline.fleet.shards import cut
from pipeline.fleet.standing import standing
from pipeline.plan.survey import Survey
from pipeline.process import give_back_memory
from pipeline.run.alerting import Alerting
from pipeline.run.assembling import open_books, open_spend
from pipeline.run.generations import settle
from pipeline.run.guards import refuse_unpriced
from pipeline.run.output import exported
from pipeline.run.planning import look, planned
from pipeline.run.prepare import Session
from pipeline.run.run import Confirm, Ended, Heed, Watch, Work, are_all_ok, attended, end_told, exit_code_of, note_rows
from pipeline.run.services import Services
from pipeline.run.signs import end_of, expectation, told_limits
from pipeline.run.status import StatusFile
from pipeline.run.status import read as read_status
from pipeline.run.webhook import Posts
from pipeline.store.folder import Folder
from pipeline.store.manifest import SHARDED_VERSION, read, write
from pipeline.store.place import Place
from pipeline.store.run import RunStore


def by_fleet(launch: Launch, workers: int) -> Work:
    """What `run.run` has done by so many workers, started by `launch`."""
    return partial(_run, launch, workers)


async def _run(
    launch: Launch,
    workers: int,
    session: Session,
    services: Services,
    place: Place | Folder | None,
    confirm: Confirm,
    watch: Watch,
    heed: Heed,
    posts: Posts | None,
) -> Ended:
    check_run(session)
    options, job = session.options, session.job
    settle(session.directory)
    store = RunStore(session.directory, services.parse)
    continued = store.open(session.manifest())
    if posts:
        posts.on_trouble = store.log
    try:
        _mark(session.directory, workers)
        shards = await anyio.to_thread.run_sync(cut, session, workers)
        await check_files(session, shards)
        stands = await anyio.to_thread.run_sync(standing, session, shards, services.parse)
        try:
            found = await look(session)
            note_rows(session, found)
            apart = found.within([shard.first_row for shard in shards])
            plan = await planned(session, stands.wanted, stands.bought, stands.spent_usd, apart)
            plan = replace(plan, notices=(*asked_again(found, apart), *plan.notices))
        finally:
            stands.close()
        if plan.load.prompts and not session.rehearsal:
            refuse_unpriced(job, options)
        confirm(plan, continued, session)
        if plan.load.prompts:
            await services.reach()
        with ExitStack() as books:
            quotas = open_books(session, services.targets, store.identity, books)
            spent = open_spend(session, services.targets, store.identity, books)
            made = led(session, store, services, spent, quotas, plan, stands, launch, workers)
            engine = made.engine
            store.log(expectation(session, plan, bool(options.retry and continued)))
            before = read_status(session.directory)

            def heard(event: Event) -> None:
                store.log(event)
                engine.monitor.notices.append(event)

            alerting = Alerting(job.spec.alerts, engine.monitor, before, heard, posts)
            told = StatusFile(session.directory, engine.monitor, alerting.look)
            for limit in told_limits(services.targets, engine.monitor):
                store.log(limit)
            with end_told(engine.monitor, store, told):
                await attended(made, store, session.rows, watch, heed, told, None, books)
        with end_told(engine.monitor, store, told):
            unwritten = None
            if place is not None:
                give_back_memory()
                unwritten = await anyio.to_thread.run_sync(exported, session, place, engine.stopped)
        stopped = engine.stopped or (None if engine.interrupted else unwritten)
        status = "stopped" if stopped else "interrupted" if engine.interrupted else "finished"
        store.log(end_of(engine.monitor, status, str(stopped or "")))
        code = exit_code_of(engine.monitor, stopped, engine.interrupted)
        told.end(status, str(stopped or ""), code, stopped.hint if stopped else "")
        if posts and told.last:
            posts.ended(told.last)
            await posts.finish()
    finally:
        store.close()
    summary = report.summarize(session.directory)
    return Ended(summary, engine.stopped, engine.interrupted, are_all_ok(engine.monitor), unwritten)


def asked_again(whole: Survey, apart: Survey) -> Iterator[str]:
    """What the rows cost that repeat one of another shard."""
    if again := int((whole.repeats & ~apart.repeats).sum()):
        rows = "row repeats one" if again == 1 else "rows repeat some"
        yield f"{again:,} {rows} of another shard, and are asked once in each: `[cache]` would ask them once in all"


def _mark(directory: Path, workers: int) -> None:
    """Let no version that does not know shards take the directory for an empty one, and say how it is gone on with."""
    path = directory / "manifest.json"
    known = read(path)
    if known and (known.version, known.workers) != (SHARDED_VERSION, workers):
        write(path, replace(known, version=SHARDED_VERSION, workers=workers))
