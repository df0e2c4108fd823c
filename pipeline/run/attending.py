"""While the engine runs: all who watch a run and look after it, and its directory that is held meanwhile."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import anyio

from pipeline.events import SessionPlanned, SessionStarted
from pipeline.run.alerting import Alerting
from pipeline.run.around import Around
from pipeline.run.assembling import Assembled, noting
from pipeline.run.ending import end_told
from pipeline.run.interim import Interim
from pipeline.run.prepare import Session
from pipeline.run.services import Services
from pipeline.run.signs import progress_of, told_limits
from pipeline.run.status import StatusFile
from pipeline.run.status import read as read_status
from pipeline.run.webhook import Posts, nobody_hears
from pipeline.store.manifest import Manifest
from pipeline.store.run import RunStore

HEARTBEAT_S = 10.0
"""Between lines of numbers in run.log, where any of them changed."""


@contextmanager
def opened(
    session: Session, services: Services, manifest: Manifest, posts: Posts | None
) -> Iterator[tuple[RunStore, bool]]:
    """The run directory until the end of the block, and whether a run is continued. Raises `RunStateError`."""
    store = RunStore(session.directory, services.parse)
    continued = store.open(manifest)
    if posts:
        posts.on_trouble = store.log
    try:
        yield store, continued
    finally:
        if posts:
            posts.on_trouble = nobody_hears
        store.close()


async def attended(
    session: Session,
    services: Services,
    store: RunStore,
    made: Assembled,
    expected: SessionPlanned,
    around: Around,
    interim: Interim | None,
    books: ExitStack,
) -> StatusFile:
    """Have the engine run, with all who watch it and look after it; returns what tells of it from then on."""
    engine, keeper = made.engine, made.keeper
    monitor = engine.monitor
    store.log(expected)
    before = read_status(session.directory)
    alerting = Alerting(session.job.spec.alerts, monitor, before, noting(store, monitor), around.posts)
    told = StatusFile(session.directory, monitor, alerting.look)
    for limit in told_limits(services.targets, monitor):
        store.log(limit)
    with end_told(monitor, store, told):
        store.log(SessionStarted(session.rows, os.getpid()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(around.heed, engine)
            tasks.start_soon(_heartbeat, made, store, told)
            tasks.start_soon(around.watch, monitor)
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
    return told


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
