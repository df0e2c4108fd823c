"""What leads a fleet: the books and caps of the run and its dispatcher, as a run of one process has them."""

import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.budget.caps import Book
from pipeline.budget.cashier import Cashier
from pipeline.dispatch.counting import Counts
from pipeline.dispatch.desk import Admit, Send
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.fleet.afar import Lead
from pipeline.fleet.coordinator import Coordinator
from pipeline.fleet.driver import Fleet, Launch
from pipeline.fleet.orders import Contract, frozen
from pipeline.fleet.standing import Standing
from pipeline.plan import Plan
from pipeline.process import files_left
from pipeline.quota.book import QuotaBook
from pipeline.run.assembling import Assembled, as_used, hear, noting, spending_of
from pipeline.run.engine import Monitor
from pipeline.run.observing import FailureLog
from pipeline.run.prepare import Session
from pipeline.run.services import Services
from pipeline.store.run import RunStore
from pipeline.targets import Route


def led(
    session: Session,
    store: RunStore,
    services: Services,
    book: Book | None,
    books: Mapping[str, QuotaBook],
    plan: Plan,
    stands: Standing,
    launch: Launch,
    workers: int,
    lead: Lead | None = None,
) -> Assembled:
    """A fleet in the place of an engine. Made inside the running event loop."""
    options = session.options
    monitor = Monitor(session.covered, plan.load.prompts, planned=plan.left_by_step)
    monitor.run, monitor.rehearsal = session.directory.name, session.rehearsal
    monitor.shards, monitor.shards_done = stands.shards, stands.shards - len(stands.left)
    monitor.outcomes.update(stands.outcomes)
    monitor.cost_usd = monitor.began_usd = stands.cost_usd
    spending = monitor.spending = spending_of(session, book, stands.spent_usd)
    heard = noting(store, monitor)
    hear(services, books, book, heard)
    left = files_left()
    used = tuple(as_used(session, target, left, heard) for target in services.targets)
    cashier = Cashier(spending, heard, stands.seen, session.job.spec.budget.allow_unpriced)

    def desk(send: Send, admit: Admit, counts: Mapping[str, Counts]) -> Dispatcher:
        return Dispatcher(
            send,
            Route(used),
            providers=counts,
            admit=admit,
            books=books,
            known=plan.calibrations,
            wait=options.wait,
            on_event=heard,
            workers=workers,
        )

    coordinator = Coordinator(desk, cashier, used, workers=workers, wall=time.time)
    cashier.beside.on_room = coordinator.desk.look_again
    contract = Contract(
        frozen(session.job, whole=lead is not None),
        frozen(session.redo, whole=lead is not None) if session.redo else None,
        options,
        session.kind,
        Path.cwd(),
        url=lead.url if lead else None,
    )
    access = [target.access for target in services.targets]
    tasks = stands.charged(spending, cashier, Route(used))
    fleet = Fleet(tasks, coordinator, contract, access, launch, workers, monitor, heard, lead.session if lead else None)
    spending.release()  # of a session that was killed
    return Assembled(fleet, None, None, coordinator.desk, None, FailureLog(store.log))
