"""One run by a fleet: its table cut into shards, the plan agreed to, the workers led, the output written."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio.to_thread

from pipeline.errors import PipelineError, RunStateError
from pipeline.fleet.afar import Lead, kept, led_from_afar
from pipeline.fleet.assembling import led
from pipeline.fleet.driver import Launch
from pipeline.fleet.refusals import check_files, check_run
from pipeline.fleet.shards import cut
from pipeline.fleet.standing import Standing, standing
from pipeline.plan import Plan
from pipeline.run.around import Around
from pipeline.run.assembling import open_books
from pipeline.run.attending import attended, opened
from pipeline.run.ending import Ended, Unread, end_told, ended, finished
from pipeline.run.engine import Works
from pipeline.run.generations import settle
from pipeline.run.guards import check_place, refuse_unpriced
from pipeline.run.interim import Interim
from pipeline.run.planning import apart, look, planned
from pipeline.run.prepare import Session
from pipeline.run.run import Work, note_rows
from pipeline.run.services import Services
from pipeline.run.signs import expectation
from pipeline.store.lease import Busy
from pipeline.store.manifest import SHARDED_VERSION, read, write
from pipeline.store.units import Shard


@dataclass(frozen=True, slots=True)
class _Fleet:
    """So many workers, and what starts one."""

    launch: Launch
    workers: int
    on_ray: bool


def by_fleet(launch: Launch, workers: int, busy: Busy = nullcontext, *, on_ray: bool = False) -> Work:
    """What `run.run` has done by so many workers, started by `launch`; `busy` says what is waited for.

    It raises `RunStateError` for a run that one process began, that belongs to another job or input, or whose shards
    cannot be cut, read or opened, and `JobError` for a price that is not known, as `run.run` does itself.
    """
    return partial(_run, _Fleet(launch, workers, on_ray), busy)


async def _run(fleet: _Fleet, busy: Busy, session: Session, services: Services, around: Around) -> Ended:
    check_place(session)
    async with led_from_afar(session, busy) as lead:
        engine, unwritten = await _whole(fleet, session, services, around, lead)
    return ended(session, engine, unwritten)


async def _whole(
    fleet: _Fleet, session: Session, services: Services, around: Around, lead: Lead | None
) -> tuple[Works, PipelineError | None]:
    check_run(session)
    session = replace(session, workers=fleet.workers)
    options, manifest = session.options, session.manifest()
    if lead:
        manifest = replace(manifest, generation=lead.generation)
    settle(session.directory)
    with opened(session, services, manifest, around.posts) as (store, continued):
        _mark(session.directory, fleet)
        shards = await anyio.to_thread.run_sync(cut, session, fleet.workers)
        await check_files(session, shards)
        looked_into = lead.looked_into if lead else None
        stands = await anyio.to_thread.run_sync(standing, session, shards, services.parse, looked_into)
        try:
            plan = await _planned(session, shards, stands)
            plan = replace(plan, notices=(*_idle(len(stands.left), fleet.workers), *plan.notices))
        finally:
            stands.close()
            if lead:
                lead.looked()
        if plan.load.prompts and not session.rehearsal:
            refuse_unpriced(session.job, options)
        around.confirm(plan, continued, session)
        if plan.load.prompts:
            await services.reach()
        if lead:
            await lead.place(shards)
        with ExitStack() as books:
            quotas, spent = open_books(session, services.targets, store.identity, books)
            made = led(session, store, services, spent, quotas, plan, stands, fleet.launch, fleet.workers, lead)
            expected = expectation(session, plan, bool(options.retry and continued))
            monitor, halt = made.engine.monitor, made.engine.halt
            interim = None  # of shards that are afar nothing is here until the end
            if lead is None:
                interim = Interim(session, store, around.place, monitor, halt, lambda: monitor.done)
            async with kept(lead, made.engine):
                told = await attended(session, services, store, made, expected, around, interim, books)
        if lead and lead.is_lost:  # the table is another's to write
            around = replace(around, place=None)
        elif lead:
            with end_told(made.engine.monitor, store, told):
                try:
                    await lead.bring(whole=around.place is not None)
                except RunStateError as error:
                    raise _unread(made.engine, error) from None
        return made.engine, await finished(session, store, made.engine, told, around)


def _unread(engine: Works, error: RunStateError) -> Unread:
    """What is told at the end where the storage does not answer: the copy here would say that nothing was done."""
    monitor = engine.monitor
    stopped = f"{engine.stopped.message}\n" if engine.stopped else ""
    usd = monitor.cost_usd - monitor.began_usd
    return Unread(
        f"{stopped}What the run came to cannot be read: {error.message}\n"
        f"In this session {monitor.calls:,} calls were answered, for ${usd:,.4f}.",
        f"the same command goes on; {error.hint}",
    )


def _idle(left: int, workers: int) -> Iterator[str]:
    """That not all workers will be there."""
    if 0 < left < workers:
        yield f"no more workers start than there are shards left: {left:,} of {workers:,}"


async def _planned(session: Session, shards: Sequence[Shard], stands: Standing) -> Plan:
    """The plan that the run starts with. What was looked at for it is gone with it."""
    found = await look(session)
    note_rows(session, found)
    found, again = apart(session, found, stands.rows, [shard.first_row for shard in shards])
    plan = await planned(session, stands.rows, stands.bought, stands.spent_usd, found)
    return replace(plan, notices=(*again, *plan.notices))


def _mark(directory: Path, fleet: _Fleet) -> None:
    """Let no version that does not know shards take the directory for an empty one, and say how it is gone on with."""
    path = directory / "manifest.json"
    known = read(path)
    if known is None:
        return
    marked = replace(known, version=SHARDED_VERSION, workers=fleet.workers, on_ray=fleet.on_ray)
    if marked != known:
        write(path, marked)
