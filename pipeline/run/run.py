"""One run, from the plan to the output table: opens what it needs, runs the engine, writes the output."""

import gc
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial

import anyio
import anyio.to_thread

from pipeline import report
from pipeline.budget.book import SpendBook
from pipeline.budget.caps import Book, Spending
from pipeline.budget.cashier import SEEN_COLUMNS, Cashier, seen_in
from pipeline.budget.joint import JointBook
from pipeline.cache import AnswerCache, shelf_of
from pipeline.calls import Call, charge_lost, durable, fallback
from pipeline.dispatch.backlog import Deadline
from pipeline.dispatch.desk import Admit, Desk, Send
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import KEPT, RESUMABLE, AuthError, InputChanged, PipelineError, resumable_once
from pipeline.events import (
    BookTrouble,
    Event,
    KeyNoted,
    Notify,
    Progressed,
    RequestsLost,
    SessionEnded,
    SessionPlanned,
    SessionStarted,
)
from pipeline.job import Job
from pipeline.packing import packing_of
from pipeline.places import SUFFIXES, quota_file, spend_file
from pipeline.plan import Plan
from pipeline.plan.forecast import Bought
from pipeline.prices import FREE
from pipeline.process import files_left, give_back_memory
from pipeline.prompts import Prompt
from pipeline.quota.book import QuotaBook
from pipeline.records import STATUSES, Failure, Reply
from pipeline.report.accuracy import Amounts, logged
from pipeline.run.caching import CacheKeeper, keeper_of
from pipeline.run.engine import Engine, Monitor
from pipeline.run.guards import refuse_unpriced, set_aside, stranger, within_files
from pipeline.run.models_met import ModelsMet
from pipeline.run.output import exported, output_place
from pipeline.run.planning import planned
from pipeline.run.prepare import Session
from pipeline.run.renewal import succeeds
from pipeline.run.rows import Wanted, wanted
from pipeline.run.services import Opening, Services, asked, open_services
from pipeline.shelves import Shelf
from pipeline.store.place import Place
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target

UPLOADS = "uploads.jsonl"
"""In the run directory: the files that are at the service."""
HEARTBEAT_S = 10.0
"""Between lines of numbers in run.log: what is not known of a killed run's duration, at most."""

Watch = Callable[[Monitor], Coroutine[None, None, None]]
Confirm = Callable[[Plan, bool, Session], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended; `stopped` is what stopped it early."""

    summary: report.Summary
    stopped: PipelineError | None
    interrupted: bool
    unwritten: PipelineError | None = None  # why the output is not what the run came to

    @property
    def exit_code(self) -> int:
        """0 all rows ok, 1 finished but some failed, 130 interrupted, else that of what stopped it."""
        if self.stopped:
            return self.stopped.exit_code
        if self.interrupted:
            return 130
        if self.unwritten:
            return self.unwritten.exit_code
        return 0 if self.summary.outcomes["ok"] == self.summary.done >= self.summary.rows else 1


def _bought(store: RunStore, job: Job) -> Bought:
    async def bought(prompt: Prompt) -> Reply | None:
        for fingerprint in map(prompt.fingerprint, job.models_of(prompt.step)):
            if found := store.reply(fingerprint) or await store.sealed_reply(fingerprint):
                return found.reply
        return None

    return bought


def _open_books(session: Session, targets: Iterable[Target], books: ExitStack) -> dict[str, QuotaBook]:
    """Sends and day counts that all runs on one quota share, by quota; an offline run keeps none."""
    if session.options.offline:
        return {}
    path = quota_file(session.kind)
    return {quota: books.enter_context(QuotaBook(path, quota)) for quota in {target.quota for target in targets}}


def _open_spend(session: Session, targets: Iterable[Target], run: str, books: ExitStack) -> Book | None:
    """What all runs of one project spend, by day, of each that pays. A rehearsal spends nothing."""
    if session.rehearsal:
        return None
    accounts = dict.fromkeys(target.account for target in targets)
    opened = {account: books.enter_context(SpendBook(spend_file(), account, run)) for account in accounts}
    return JointBook(opened) if len(opened) > 1 else next(iter(opened.values()))


async def run(session: Session, confirm: Confirm, watch: Watch, opening: Opening = open_services) -> Ended:
    """Start the job's run, or continue it. `confirm` sees the plan, whether a run is continued, and the session as the
    service made it, real or a rehearsal; it may raise. `watch` shows progress; `opening` opens those who answer.

    Raises `PipelineError` for what is wrong before the first call, and for what goes wrong after it with exit code 3.
    """
    options = session.options
    seen: list[Monitor] = []

    def spent(error: PipelineError) -> bool:
        return any(monitor.has_spent or (monitor.has_sent and not isinstance(error, AuthError)) for monitor in seen)

    async def watched(monitor: Monitor) -> None:
        seen.append(monitor)
        await watch(monitor)

    with _rare_collections(), resumable_once(spent, lambda: any(monitor.calls for monitor in seen)):
        async with opening(session) as services:
            session = await asked(session, services)
            with output_place(session) as place:
                if options.fresh:
                    set_aside(session.directory)
                ended = await _run(session, services, place, confirm, watched)
    if ended.stopped and spent(ended.stopped):
        ended.stopped.exit_code = RESUMABLE
    if ended.stopped and ended.summary.calls and not isinstance(ended.stopped, InputChanged):  # which says so itself
        ended.stopped.message += KEPT
    return ended


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look seldom: a run keeps 100,000 live objects that are no garbage.

    At Python's default it takes 35 % of the line's CPU: 1,560 calls/s instead of 2,400, paired with a first threshold
    of 100,000 (measured 2026-11-22); half of that leaves less garbage lying about.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


async def _run(session: Session, services: Services, place: Place | None, confirm: Confirm, watch: Watch) -> Ended:
    job, options = session.job, session.options
    shelf = None if options.offline else shelf_of(job, session.kind)
    store = RunStore(session.directory, services.parse)
    continued = store.open(session.manifest())
    try:
        if options.retry:
            store.reopen(options.retry, options.changes, passing=not options.skip_failed)
        elif options.skip_failed:
            store.outcomes.settle()
        rows = wanted(session, store.outcomes)
        plan = await planned(session, rows, _bought(store, session.working), store.spent_usd())
        if plan.load.prompts and not session.rehearsal:
            refuse_unpriced(job, options)
        confirm(plan, continued, session)
        if plan.load.prompts:
            await services.reach()
        services.book.open(session.directory / UPLOADS)
        with ExitStack() as books:
            quotas = _open_books(session, services.targets, books)
            spent = _open_spend(session, services.targets, store.identity, books)
            spending = _spending(session, store, spent)
            engine, keeper = _engine(session, store, services, spending, quotas, shelf, plan, rows)
            store.log(_expectation(session, plan))
            await _attended(engine, keeper, store, watch, books)
        try:
            await store.seal()
        except PipelineError as error:
            raise engine.stopped or error from error
        unwritten = None
        if place is not None:
            store.outcomes.forget()  # all is sealed, and this with what answers took would stay beside
            give_back_memory()  # what writing the table takes
            unwritten = await anyio.to_thread.run_sync(exported, session, place, engine.stopped)
        whole = "finished" if options.pilot is None else "pilot"
        stopped = engine.stopped or (None if engine.interrupted else unwritten)
        status = "stopped" if stopped else "interrupted" if engine.interrupted else whole
        store.log(SessionEnded(*_numbers(engine.monitor), status, str(stopped or "")))
        if job.spec.input.delete_files and status == "finished":
            await services.delete_files()
    finally:
        store.close()
    return Ended(report.summarize(session.directory), engine.stopped, engine.interrupted, unwritten)


def _spending(session: Session, store: RunStore, book: Book | None) -> Spending:
    if session.rehearsal:
        return Spending(None)
    caps = session.job.spec.budget
    return Spending(
        session.max_usd,
        store.spent_usd(),
        book=book,
        day_cap_usd=_exact(caps.max_usd_per_day),
        month_cap_usd=_exact(caps.max_usd_per_month),
    )


def _exact(usd: float | None) -> Decimal | None:
    return None if usd is None else Decimal(str(usd))


def _engine(
    session: Session,
    store: RunStore,
    services: Services,
    spending: Spending,
    books: Mapping[str, QuotaBook],
    shelf: Shelf | None,
    plan: Plan,
    rows: Wanted,
) -> tuple[Engine, CacheKeeper | None]:
    options, budget = session.options, session.job.spec.budget
    monitor = Monitor(session.rows, plan.load.prompts)
    monitor.outcomes.update({status: store.outcomes.count(status, session.rows, lasting=True) for status in STATUSES})
    monitor.cost_usd = store.cost_usd()

    def heard(event: Event) -> None:
        store.log(event)
        monitor.notices.append(event)

    for shared in (*books.values(), spending.book):
        if shared is not None:
            shared.on_trouble = lambda message: heard(BookTrouble(message))
            if shared.made_anew:
                heard(BookTrouble(shared.made_anew))

    for note in services.notes:
        heard(KeyNoted(note))
    for renewal in services.renewals:
        renewal.on_found = partial(_key_found, session, renewal.target, heard)
    if services.tokens:
        services.tokens.on_trouble = lambda message: heard(KeyNoted(message))
    left = files_left()
    used = {target: _as_used(session, target, left, heard) for target in services.targets}
    routes = [route.mapped(used.__getitem__) for route in services.routes]
    whole = routes[-1] if tuple(used.values()) == routes[-1].targets else Route(tuple(used.values()))

    deadline = None
    if options.by is not None:
        left_s = options.by.timestamp() - time.time()
        deadline = Deadline(anyio.current_time() + left_s, plan.load.prompts)

    def desk(send: Send, admit: Admit) -> Desk:
        return Dispatcher(
            send,
            whole,
            providers=services.providers,
            admit=admit,
            books=books,
            known=plan.calibrations,
            deadline=deadline,
            wait=options.wait,
            on_event=heard,
        )

    met = ModelsMet(heard)

    async def generate(prompt: Prompt, target: Target) -> Reply | Failure:
        outcome = await services.generate(prompt, target)
        if changed := stranger(session, target.endpoint, outcome):
            engine.halt(changed)
            return Failure("fatal", "server", changed.message, sent=False)
        if isinstance(outcome, Reply):
            met.note(target, outcome)
        return outcome

    seen = seen_in(store.calls(SEEN_COLUMNS, newest=None if spending.capped else 2))
    cashier = Cashier(spending, heard, seen, budget.allow_unpriced)
    cache = AnswerCache(shelf, services.parse, heard, SUFFIXES[session.kind]) if shelf else None
    packing = packing_of(session.working.spec.pack)
    call, opened = durable(
        generate, desk, store, cashier, cache, monitor.saved, monitor.bought, packing, services.ready
    )
    calls = [partial(_by, fallback(call) if route.others else call, route) for route in routes]
    engine = Engine(
        session.working,
        session.documents(rows, plan.order),
        store,
        lambda document: calls[document.rule],
        opened,
        monitor,
        cache,
        options.changes,
    )
    if store.lost:
        heard(RequestsLost(*charge_lost(store, cashier, whole)))
    spending.release()  # of a session that was killed

    def paid(usd: Decimal) -> None:
        monitor.cost_usd += usd

    keeps = bool(plan.load.prompts and plan.prefix and not plan.prefix.why_not)
    working = {each.name for each in plan.targets if round(each.prompts)}  # the others would keep a cache for nothing
    kept = [target for target in used.values() if not keeps or not plan.targets or target.name in working]
    keeper = keeper_of(session.working, services, kept, store, cashier, paid, heard, keeps)
    return engine, keeper


def _key_found(session: Session, target: Target, heard: Notify, message: str, project: str | None) -> None:
    heard(KeyNoted(message))
    if session.rehearsal or project in (None, target.project):
        return
    try:
        succeeds(project, target.project)
    except (OSError, PipelineError) as error:
        heard(KeyNoted(f"the next run's caps of day and month will not count what was spent with the old key: {error}"))


def _by(call: Call, route: Route, prompt: Prompt) -> Awaitable[Reply]:
    return call(prompt, (route.checked if prompt.step == "escalate" else None) or route)


def _as_used(session: Session, target: Target, files: int, heard: Notify) -> Target:
    """A target as this session uses it: a rehearsal is free, and sockets may be few."""
    limits = target.limits if session.options.offline else within_files(target.limits, files, heard)
    return replace(target, rates=FREE if session.rehearsal else target.rates, limits=limits)


async def _attended(
    engine: Engine, keeper: CacheKeeper | None, store: RunStore, watch: Watch, books: ExitStack
) -> None:
    store.log(SessionStarted(engine.monitor.rows, os.getpid()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_signals, engine)
        tasks.start_soon(_heartbeat, engine, store)
        tasks.start_soon(watch, engine.monitor)
        if keeper is not None:
            await keeper.open()
            tasks.start_soon(keeper.keep)
        try:
            await engine.run()
        finally:
            if keeper is not None:
                await keeper.close()
        books.close()  # while what they have to say is still heard
        tasks.cancel_scope.cancel()


async def _heed_signals(engine: Engine) -> None:
    """First Ctrl-C (or SIGTERM, or SIGHUP of a terminal that is gone): finish what is in flight. Second: stop now."""
    heeded = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        heeded.append(signal.SIGHUP)
    before = [(number, handler) for number in heeded if (handler := signal.getsignal(number)) is not None]
    try:
        with anyio.open_signal_receiver(*heeded) as signals:
            async for _ in signals:
                if engine.interrupted:
                    engine.abandon()
                else:
                    engine.halt(None)
    finally:
        for number, handler in before:  # asyncio leaves the system's own: the output is still to be written
            signal.signal(number, handler)


async def _heartbeat(engine: Engine, store: RunStore) -> None:
    while True:
        await anyio.sleep(HEARTBEAT_S)
        store.log(Progressed(*_numbers(engine.monitor)))


def _expectation(session: Session, plan: Plan) -> SessionPlanned:
    steps: dict[str, Amounts] = {
        step: Amounts(
            round(each.prompts),
            round(each.input_tokens),
            round(each.answer_tokens),
            Decimal(0) if session.rehearsal else each.cost_usd,
        )
        for step, each in plan.steps.items()
    }
    pilot = session.options.pilot is not None
    return SessionPlanned(
        time.time(), session.rows, pilot, logged(steps), round(plan.timeline.seconds, 1), plan.based_on
    )


def _numbers(monitor: Monitor) -> tuple[float, int, int, Decimal, int, int, Decimal, int, int]:
    """The fields of `Progressed`."""
    saved, desk = monitor.saved, monitor.desk
    return (
        round(monitor.seconds, 3),
        monitor.done,
        monitor.calls,
        monitor.cost_usd,
        saved.identical,
        saved.cached,
        saved.usd,
        desk.sent - desk.in_flight - desk.rate_limited if desk else 0,
        desk.rate_limited if desk else 0,
    )
