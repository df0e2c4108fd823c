"""What a run is put together from: its books and caps, its targets as they are used, the durable call, the engine."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from math import inf

import anyio
import anyio.to_thread

from pipeline import flows
from pipeline.budget.book import SpendBook
from pipeline.budget.caps import Book, Spending
from pipeline.budget.cashier import SEEN_COLUMNS, Cashier, seen_in
from pipeline.budget.joint import JointBook
from pipeline.cache import AnswerCache
from pipeline.calls import Call, Generate, charge_lost, durable, fallback
from pipeline.dispatch.backlog import Deadline
from pipeline.dispatch.desk import Admit, Desk, Send
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import PipelineError
from pipeline.events import (
    BookTrouble,
    Event,
    KeyNoted,
    LongWait,
    Notify,
    RequestsLost,
)
from pipeline.job import Job
from pipeline.packing import packing_of
from pipeline.places import SUFFIXES, quota_file, spend_file
from pipeline.plan import Plan
from pipeline.plan.forecast import Bought
from pipeline.prices import FREE
from pipeline.process import files_left
from pipeline.prompts import Prompt
from pipeline.providers.batches.base import Batches as Service
from pipeline.quota.book import QuotaBook
from pipeline.records import Document, Failure, Reply
from pipeline.run.batching import SETTLED_S, batching_of, in_batches, room_in, steering_of
from pipeline.run.caching import CacheKeeper, keeper_of
from pipeline.run.course import Line, Progress, Steering
from pipeline.run.engine import Engine, Monitor, Works
from pipeline.run.feeds import Feed, Table
from pipeline.run.first import FirstRows
from pipeline.run.guards import stranger, within_files
from pipeline.run.models_met import ModelsMet
from pipeline.run.observing import FailureLog, told
from pipeline.run.prepare import Session
from pipeline.run.renewal import succeeds
from pipeline.run.rounds import Rounds
from pipeline.run.rows import Wanted, counted
from pipeline.run.services import Services
from pipeline.run.status import unseen_until
from pipeline.shelves import Shelf
from pipeline.store.earlier import Earlier
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target


def bought_by(store: RunStore, job: Job, earlier: Earlier | None) -> Bought:
    """What finds the reply that this run bought for a prompt, or an earlier generation of it, of any model that may be
    asked for it."""

    async def bought(prompt: Prompt) -> Reply | None:
        for fingerprint in map(prompt.fingerprint, job.models_of(prompt.step)):
            if found := store.reply(fingerprint) or await store.sealed_reply(fingerprint, prompt.row):
                return found.reply
        return await earlier.find(prompt, job.models_of(prompt.step)) if earlier else None

    return bought


def open_books(
    session: Session, targets: Sequence[Target], run: str, books: ExitStack
) -> tuple[dict[str, QuotaBook], Book | None]:
    """What runs share: sends and day counts by quota, and what is spent by day with each that pays.

    An offline run keeps none of the former; a rehearsal has its own, and spends nothing.
    """
    quotas: dict[str, QuotaBook] = {}
    if not session.options.offline:
        path, counted = quota_file(session.kind), {target.quota for target in targets}
        quotas = {
            quota: books.enter_context(QuotaBook(path, quota, days_of=session.days_of(quota, run))) for quota in counted
        }
    for quota in quotas.values():
        quota.unseen_until = unseen_until(session.directory)
    if session.rehearsal:
        return quotas, None
    accounts = dict.fromkeys(target.account for target in targets)
    opened = {account: books.enter_context(SpendBook(spend_file(), account, run)) for account in accounts}
    return quotas, JointBook(opened) if len(opened) > 1 else next(iter(opened.values()))


def spending_of(session: Session, book: Book | None, spent_usd: Decimal) -> Spending:
    """What may be spent, and what was by now, earlier generations included; a rehearsal has no caps."""
    if session.rehearsal:
        return Spending(None)
    caps = session.job.spec.budget
    return Spending(
        session.max_usd,
        spent_usd,
        book=book,
        day_cap_usd=_exact(caps.max_usd_per_day),
        month_cap_usd=_exact(caps.max_usd_per_month),
    )


def noting(store: RunStore, monitor: Monitor) -> Notify:
    """What keeps an event in run.log and shows it."""

    def heard(event: Event) -> None:
        store.log(event)
        monitor.notices.append(event)

    return heard


def hear(services: Services, quotas: Mapping[str, QuotaBook], book: Book | None, heard: Notify) -> None:
    """Have told what is wrong with the books, from now on too, and what was found as keys were read."""
    for shared in (*quotas.values(), book):
        if shared is not None:
            shared.on_trouble = lambda message: heard(BookTrouble(message))
            if shared.made_anew:
                heard(BookTrouble(shared.made_anew))
    if (until := max((quota.unseen_until for quota in quotas.values()), default=-inf)) > time.time():
        why = "another machine led this run, and what it sent last may count"
        heard(LongWait(f"{why}: nothing is sent for {until - time.time():.0f} s", until))
    for note in services.notes:
        heard(KeyNoted(note))
    if services.tokens:
        services.tokens.on_trouble = lambda message: heard(KeyNoted(message))


def _exact(usd: float | None) -> Decimal | None:
    return None if usd is None else Decimal(str(usd))


def assembled(
    session: Session,
    store: RunStore,
    services: Services,
    spending: Spending,
    books: Mapping[str, QuotaBook],
    shelf: Shelf | None,
    plan: Plan,
    rows: Wanted,
    spoken: Mapping[Target, Service],
    closing: ExitStack,
    earlier: Earlier | None,
) -> "Assembled":
    """What a session works with; `spoken` are the targets of batches, with who speaks to them.

    Made inside the running event loop; `closing` is when it is over.
    """
    options, budget = session.options, session.job.spec.budget
    sample = session.covered if options.sampled else 0
    monitor = Monitor(session.covered, plan.load.prompts, planned=plan.left_by_step, sample=sample)
    monitor.outcomes.update(counted(session, store.outcomes))
    monitor.cost_usd = monitor.began_usd = store.cost_usd()
    monitor.spending = spending

    monitor.run, monitor.rehearsal = session.directory.name, session.rehearsal
    failures = FailureLog(store.log)
    monitor.observers.append(failures)
    heard = noting(store, monitor)
    hear(services, books, spending.book, heard)
    for renewal in services.renewals:
        renewal.on_found = partial(_key_found, session, renewal.target, heard)
    left = files_left()
    used = {target: as_used(session, target, left, heard) for target in services.targets}
    routes = [route.mapped(used.__getitem__) for route in services.routes]
    whole = routes[-1] if tuple(used.values()) == routes[-1].targets else Route(tuple(used.values()))

    first, others = None, rows
    if plan.first and not spoken and not monitor.done:  # of rows for batches some go ahead in any case
        first = monitor.first = FirstRows(plan.first, session.documents, session.directory, heard)
        ahead = first.rows

        def others(row: int) -> bool:
            return row not in ahead and rows(row)

    deadline = None
    if options.by is not None:
        left_s = options.by.timestamp() - time.time()
        deadline = Deadline(anyio.current_time() + left_s, plan.load.prompts)

    lines: list[Dispatcher] = []

    def desk(send: Send, admit: Admit) -> Desk:
        line = Dispatcher(
            told(send, monitor.failed),
            whole,
            providers=services.providers,
            admit=admit,
            books=books,
            known=plan.calibrations,
            deadline=deadline,
            first=first.rows if first else frozenset(),
            wait=options.wait or bool(spoken and not options.leave),  # batches are waited for over days, too
            on_event=heard,
        )
        cashier.beside.on_room = line.look_again
        lines.append(line)
        return line

    seen = seen_in(store.calls(SEEN_COLUMNS, newest=None if spending.capped else 2))
    cashier = Cashier(spending, heard, seen, budget.allow_unpriced)
    cache = AnswerCache(shelf, services.parse, heard, SUFFIXES[session.kind]) if shelf else None
    packing = packing_of(session.working.spec.pack)

    def progress() -> Progress:
        made = monitor.had
        if batching is None:
            return Progress(max(0.0, plan.load.prompts - made), 0.0, monitor.targets, {}, None)
        quotas = lines[0].quotas if monitor.seconds > SETTLED_S else ()
        limits = quotas[0].limits if len(quotas) == 1 else None
        left = max(0.0, plan.load.prompts - made - batching.standing.lines)
        rooms = {target.name: room_in(batching.room, target, plan) for target in spoken}
        return Progress(left, batching.rounds.fallen, monitor.targets + in_batches(store), rooms, limits)

    steering = steering_of(session, services, store, plan, progress, heard)
    batching = None
    if spoken and steering:
        batching = batching_of(
            session,
            {used[target]: service for target, service in spoken.items()},
            services,
            routes,
            store,
            plan,
            rows,
            cashier,
            monitor,
            steering,
            heard,
            lambda reason: engine.halt(reason),
            cache,
            closing,
        )
        monitor.batches = batching.desk
    call, opened = durable(
        generating(session, services, heard, lambda reason: engine.halt(reason)),
        desk,
        store,
        cashier,
        cache,
        monitor.saved,
        monitor.bought,
        packing,
        services.ready,
        batching.rounds.parks if batching else None,
        earlier,
    )
    feeds: Sequence[Feed]
    if batching:
        feeds = batching.rounds.feeds
    else:
        table = Table(session.documents(others, plan.order), first.opened if first else None)
        feeds = [first, table] if first else [table]
    engine = Engine(
        session.working,
        feeds,
        store,
        by_rule(call, routes),
        opened,
        monitor,
        cache,
        options.changes,
        batching.rounds if batching else None,
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
    return Assembled(engine, keeper, steering, lines[0], batching.rounds if batching else None, failures)


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Assembled:
    """The engine of a session, and who works beside it, if anybody."""

    engine: Works
    keeper: CacheKeeper | None  # of explicit caches
    steering: Steering | None  # of the lanes
    line: Line  # the live lanes
    rounds: Rounds | None  # of rows that wait for batches
    failures: FailureLog

    @property
    def called_at(self) -> float:
        """When the first batch that is out is called in, epoch seconds; infinite where nothing presses."""
        if self.steering is None:
            return inf
        course = self.steering.course
        return time.time() + min((course.last_call, *course.last_calls.values())) - anyio.current_time()

    async def steer(self) -> None:
        """Plan its lanes anew until cancelled."""
        if self.steering:
            rounds = self.rounds
            steered, scouted = (rounds.steered, rounds.scouted) if rounds else (_nothing, None)
            await self.steering.keep(self.line, steered, scouted)


def _key_found(session: Session, target: Target, heard: Notify, message: str, project: str | None) -> None:
    heard(KeyNoted(message))
    if session.rehearsal or project in (None, target.project):
        return
    try:
        succeeds(project, target.project)
    except (OSError, PipelineError) as error:
        heard(KeyNoted(f"the next run's caps of day and month will not count what was spent with the old key: {error}"))


def generating(session: Session, services: Services, heard: Notify, halt: Callable[[PipelineError], None]) -> Generate:
    """What makes one request; it halts the run where another service answers than at its start."""
    met = ModelsMet(heard)

    async def generate(prompt: Prompt, target: Target) -> Reply | Failure:
        outcome = await services.generate(prompt, target)
        if changed := stranger(session, target.endpoint, outcome):
            halt(changed)
            return Failure("fatal", "server", changed.message, sent=False)
        if isinstance(outcome, Reply):
            met.note(target, outcome)
        return outcome

    return generate


def by_rule(call: Call, routes: Sequence[Route]) -> Callable[[Document], flows.Call]:
    """The durable call of a document: to the targets of the rule that it falls under, and those that take over."""
    calls = [partial(_by, fallback(call) if route.others else call, route) for route in routes]
    return lambda document: calls[document.rule]


def _by(call: Call, route: Route, prompt: Prompt) -> Awaitable[Reply]:
    return call(prompt, (route.checked if prompt.step == "escalate" else None) or route)


def as_used(session: Session, target: Target, files: int, heard: Notify) -> Target:
    """A target as this session uses it: a rehearsal is free, and sockets may be few."""
    limits = target.limits if session.options.offline else within_files(target.limits, files, heard)
    return replace(target, rates=FREE if session.rehearsal else target.rates, limits=limits)
