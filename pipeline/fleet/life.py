"""One life of a shard: a run of its rows in a directory of their own, whose requests the driver permits."""

import os
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial

import anyio
import anyio.to_thread

from pipeline.budget.caps import Spending
from pipeline.budget.cashier import SEEN_COLUMNS, Cashier, seen_in
from pipeline.cache import AnswerCache, shelf_of
from pipeline.calls import charge_lost, durable
from pipeline.dispatch.desk import Admit, Send
from pipeline.events import Event, KeyNoted, Notify, RequestsLost, SessionStarted
from pipeline.fleet.orders import (
    Contract,
    Counts,
    Ended,
    FromWorker,
    Noted,
    Observed,
    Observing,
    Opened,
    Order,
    Said,
    counts_of,
)
from pipeline.fleet.remote import Remote
from pipeline.fleet.scratch import Scratch, restored
from pipeline.packing import packing_of
from pipeline.places import SUFFIXES
from pipeline.prices import FREE
from pipeline.prompts import Prompt
from pipeline.records import Reply
from pipeline.report.tallies import write_done
from pipeline.run.assembling import by_rule, generating, spending_of
from pipeline.run.attending import HEARTBEAT_S
from pipeline.run.engine import Engine, Monitor
from pipeline.run.feeds import Table
from pipeline.run.observing import FailureLog, told
from pipeline.run.planning import look
from pipeline.run.prepare import Session
from pipeline.run.rows import counted, wanted
from pipeline.run.run import UPLOADS
from pipeline.run.services import Services, open_services
from pipeline.run.signs import end_of, progress_of
from pipeline.store import digests, untold
from pipeline.store.mirror import patiently
from pipeline.store.run import RunStore
from pipeline.targets import Route

COUNTS_S = 1.0
"""Between two tellings of how a life stands."""


class Life:
    """A shard as one worker runs it, from the order to `Ended`."""

    def __init__(self, contract: Contract, order: Order, say: Callable[[FromWorker], None]) -> None:
        self.name = order.life
        self._contract, self._order, self._say = contract, order, say
        self._is_orphan = False
        self._observing = Observing(order.shard.first_row)
        self.remote: Remote | None = None

    def orphan(self) -> None:
        """The driver is gone: what is in flight is finished and kept, and nothing else."""
        self._is_orphan = True
        if self.remote is not None:
            self.remote.orphan()

    @property
    def _is_alone(self) -> bool:
        return self._is_orphan or (self.remote is not None and self.remote.is_orphan)

    async def run(self) -> Ended:
        """Run it. Raises `PipelineError` for what is wrong before its first call."""
        scratch = await restored(self._contract.url, self._order, self._note, self._waits)
        make = partial(self._session, scratch)  # templates and files are read
        session = await patiently(make, self._note, self._waits)
        async with open_services(session) as services:
            store = RunStore(session.directory, services.parse)
            store.open(session.manifest())
            try:
                if scratch:
                    await scratch.begin(self._note, self._waits)
                if session.source.path_columns:
                    found = await look(session)
                    digests.write(session.directory, found.digests, found.rows, session.hashed)
                services.book.open(session.directory / UPLOADS)
                monitor = Monitor(session.rows)
                engine = await self._attended(session, services, store, monitor, scratch)
                is_whole = not store.outcomes.pending(session.rows)
                if self._is_alone:
                    store.leave()
                    if self.remote:
                        untold.note(session.directory, self.remote.untold_usd)
                else:
                    await store.seal()
                    if is_whole and session.job.spec.input.delete_files:
                        await services.delete_files()
            finally:
                store.close()

            def waits() -> bool:  # what was stopped early is put as far as it goes, and the rest stays here
                return is_whole and not self._is_alone

            if scratch:
                await scratch.put(self._note, waits)  # before it is put together anew, which may take a while
            is_done = False
            if not self._is_alone:
                is_done = await anyio.to_thread.run_sync(write_done, session.directory, session.rows)
            if scratch:
                await scratch.leave(is_done, self._note, waits)
        own = None if self._is_alone or (self.remote and self.remote.is_halted) else engine.stopped
        return Ended(self.name, counts_of(monitor), is_whole, own)

    def _session(self, scratch: Scratch | None) -> Session:
        contract, order = self._contract, self._order
        job = contract.job.thawed()
        redo = contract.redo.thawed() if contract.redo else None
        return Session(
            job,
            scratch.source(order.source) if scratch else order.source,
            order.rows,
            contract.options,
            redo,
            contract.kind,
            asked=True,
            place=scratch.directory if scratch else order.shard.directory,
        )

    async def _attended(
        self, session: Session, services: Services, store: RunStore, monitor: Monitor, scratch: Scratch | None
    ) -> Engine:
        engine, failures, lost = self._assembled(session, services, store, monitor)
        access = tuple(target.access for target in services.targets)
        answers = sum(int(frame["paid"].sum()) for frame in store.calls(("paid",)))
        self._say(Opened(self.name, access, store.spent_usd(), answers, lost))
        store.log(SessionStarted(session.rows, os.getpid()))
        if self._is_orphan and self.remote:  # meanwhile
            self.remote.orphan()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._speak, engine)
            tasks.start_soon(_beat, monitor, store, failures)
            if scratch:
                tasks.start_soon(scratch.keep, self._heard_by(store), engine.halt)
            await engine.run()
            tasks.cancel_scope.cancel()
        if left := self._observing.take():
            self._say(Observed(left))
        failures.beat()
        store.log(end_of(monitor, "stopped" if engine.stopped else "finished", str(engine.stopped or "")))
        return engine

    def _heard_by(self, store: RunStore) -> Notify:
        def heard(event: Event) -> None:
            store.log(event)
            self._note(event)

        return heard

    def _note(self, event: Event) -> None:
        self._say(Noted(self.name, event))

    def _waits(self) -> bool:
        """Whether the run goes on: then a storage that is away is waited for."""
        return not self._is_alone

    def _assembled(
        self, session: Session, services: Services, store: RunStore, monitor: Monitor
    ) -> tuple[Engine, FailureLog, int]:
        """The engine of a run whose desk is elsewhere, as `run.assembling` makes one whose desk is its own."""
        options = session.options
        if options.retry:
            store.reopen(options.retry, options.changes, passing=not options.skip_failed)
        elif options.skip_failed:
            store.outcomes.settle()

        heard = self._heard_by(store)
        for renewal in services.renewals:
            renewal.on_found = lambda message, project: heard(KeyNoted(message))
        monitor.outcomes.update(counted(session, store.outcomes))
        failures = FailureLog(store.log)
        monitor.observers.append(failures)
        if self._contract.is_observed:
            monitor.observers.append(self._observing)
        # A rehearsal is free; who has what limits, and what may be spent, the driver knows.
        rates = {target: replace(target, rates=FREE) if session.rehearsal else target for target in services.targets}
        routes = [route.mapped(rates.__getitem__) for route in services.routes]
        seen = seen_in(store.calls(SEEN_COLUMNS, newest=2))
        is_capped = spending_of(session, None, Decimal(0)).capped
        # What it has to tell of prices the driver tells too, once for all lives.
        allows = session.job.spec.budget.allow_unpriced
        cashier = Cashier(Spending(None), store.log, seen, allows, is_held_elsewhere=is_capped)
        lost, _ = told_lost = charge_lost(store, cashier, Route(tuple(rates.values())))
        if lost:
            heard(RequestsLost(*told_lost))

        spent_usd = store.spent_usd()

        def bought(prompt: Prompt, reply: Reply, answered: bool) -> None:
            nonlocal spent_usd
            spent_usd += (reply.cost_usd or 0) + (reply.at_most_usd or 0)
            monitor.bought(prompt, reply, answered)

        def desk(send: Send, admit: Admit) -> Remote:
            self.remote = Remote(
                told(send, monitor.failed), tuple(rates.values()), services.providers, lambda: spent_usd
            )
            return self.remote

        shelf = None if options.offline else shelf_of(session.job, session.kind)
        cache = AnswerCache(shelf, services.parse, heard, SUFFIXES[session.kind]) if shelf else None
        call, remote = durable(
            generating(session, services, heard, lambda reason: engine.halt(reason)),
            desk,
            store,
            cashier,
            cache,
            monitor.saved,
            bought,
            packing_of(session.working.spec.pack),
            services.ready,
        )
        engine = Engine(
            session.working,
            [Table(session.documents(wanted(session, store.outcomes)))],
            store,
            by_rule(call, routes),
            remote,
            monitor,
            cache,
            options.changes,
            fail_fast=False,  # the driver sees the first rows of all
        )
        return engine, failures, lost

    async def _speak(self, engine: Engine) -> None:
        """Tell what is asked and what came of it, and now and then how it stands."""
        assert self.remote
        told_at = -COUNTS_S
        while True:
            told = await self.remote.tell()
            counts: Counts | None = None
            now, is_none_ok = anyio.current_time(), not engine.monitor.outcomes["ok"]
            if is_none_ok or now >= told_at + COUNTS_S:  # a run whose first rows all fail is to be stopped at once
                counts, told_at = counts_of(engine.monitor), now
            self._say(Said(self.name, told, counts, engine.is_dry, self._observing.take()))


async def _beat(monitor: Monitor, store: RunStore, failures: FailureLog) -> None:
    while True:
        await anyio.sleep(HEARTBEAT_S)
        failures.beat()
        store.log(progress_of(monitor))
