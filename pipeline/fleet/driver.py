"""The driver of a fleet: hands shards to workers, permits their requests, and replaces those that die."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from math import inf
from typing import Protocol

import anyio
import anyio.abc

from pipeline.errors import JobError, PipelineError, ServiceError, as_known
from pipeline.events import Event, Notify, StoreTrouble, WorkerLost
from pipeline.fleet.coordinator import Coordinator
from pipeline.fleet.orders import (
    Answer,
    Contract,
    Counts,
    Ended,
    Failed,
    FromWorker,
    Heard,
    NoAnswer,
    Noted,
    Observed,
    Opened,
    Order,
    Ready,
    Said,
    ToWorker,
    add,
    versions,
)
from pipeline.records import Status
from pipeline.run.engine import FAIL_FAST_ROWS, Monitor, all_failed
from pipeline.source import Source
from pipeline.store.lives import LifeId
from pipeline.store.units import Shard

MOST_DEATHS = 5
"""Workers in a row that may die of one shard without an answer more, or before they began: it is no accident then."""
_LIVES_A_WORKER = 2
"""Shards open at once: the next is begun while the last rows of the one before are answered, or all would be quiet."""


class Gone(Exception):
    """A worker is not there any more; it says which. For `may_live_s` yet it may write where it did."""

    def __init__(self, who: str = "", may_live_s: float = 0.0) -> None:
        super().__init__(who)
        self.may_live_s = may_live_s


class Hand(Protocol):
    """One worker, as its driver has it."""

    async def send(self, message: ToWorker) -> None:
        """Tell it something. Raises `Gone`."""
        ...

    async def receive(self) -> FromWorker:
        """The next that it tells. Raises `Gone`."""
        ...


Launch = Callable[[int], AbstractAsyncContextManager[Hand]]
"""Starts the worker of that number, and lets it leave at the end: what is in flight then is waited for.

It raises `Gone` where the worker cannot be had or has ended, which is tried again, and `PipelineError` where no further
try would help: that stops the run.
"""


@dataclass(frozen=True, slots=True)
class Task:
    """A shard to be done, and how it stands."""

    shard: Shard
    source: Source
    rows: int  # of it that the session covers
    outcomes: Counter[Status] = field(default_factory=Counter)
    spent_usd: Decimal = Decimal(0)  # of it that counts against the caps


@dataclass(slots=True)
class _Work:
    """A task that is not done, and what became of it."""

    task: Task
    outcomes: Counter[Status]
    lives: int = 0
    deaths: int = 0  # in a row, without an answer more
    answers: int = 0  # kept as its newest life began
    rests_until: float = -inf  # before that a worker that was lost may yet write


@dataclass(slots=True)
class _Life:
    of: _Work
    told: Counts
    is_dry: bool = False


class Fleet:
    """Stands where a run of one process has its engine: `run` returns when every row has an outcome, or it is halted.

    One shard has one life at a time. A worker that dies is replaced, and its shards are run by whoever is free: what
    it had in flight stays charged on every meter, until the next life tells what came of it.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        coordinator: Coordinator,
        contract: Contract,
        access: Iterable[str],
        launch: Launch,
        workers: int,
        monitor: Monitor,
        heard: Notify,
        session: int | None = None,
    ) -> None:
        """`access` is whom the driver's own targets ask, and with whose key: a worker must have the same.

        `session` is the number of this one, of a run on object storage.
        """
        self.monitor = monitor
        self.stopped: PipelineError | None = None
        self.interrupted = False
        self.workers = workers
        self._left = deque(_Work(task, task.outcomes) for task in tasks)
        self._open: dict[str, _Life] = {}
        self._coordinator, self._contract, self._access = coordinator, contract, tuple(access)
        self._launch, self._heard, self._session = launch, heard, session
        self._scope = anyio.CancelScope()
        self._news = anyio.Event()
        self._watches = not monitor.done
        self._is_store_away = False
        self._early_deaths = 0
        monitor.desk = coordinator.desk

    async def run(self) -> None:
        """Have all that is left done."""
        with self._scope:
            async with anyio.create_task_group() as dispatching:
                dispatching.start_soon(self._coordinator.run)
                async with anyio.create_task_group() as working:
                    for number in range(min(self.workers, len(self._left))):
                        working.start_soon(self._man, number)
                self._coordinator.close()

    def halt(self, reason: PipelineError | None) -> None:
        """Admit no new call; what is in flight finishes and is kept. `reason` is None after Ctrl-C."""
        self.monitor.stopping = True
        if reason is None:
            self.interrupted = True
        elif self.stopped is None:
            self.stopped = reason
        self._coordinator.halt(reason)
        self._tell_all()

    def abandon(self) -> None:
        """Stop now: the replies in flight are lost, everything before them is kept."""
        self.interrupted = True
        self._scope.cancel()

    @property
    def _is_over(self) -> bool:
        return not self._open and (not self._left or self.monitor.stopping)

    async def _man(self, number: int) -> None:
        """Keep one place filled until nothing is left to do."""
        while not self._is_over:
            worker = _Place(number)
            try:
                async with anyio.create_task_group() as place:
                    place.start_soon(self._call_off, worker, place.cancel_scope)
                    async with self._launch(number) as hand:
                        await self._employ(hand, worker)
                    place.cancel_scope.cancel()
            except Exception as error:
                known = as_known(error)
                if known is None and (gone := _gone_in(error)) is None:
                    raise
                self._bury(worker, None if known else gone)
                if known:
                    self.halt(known)

    async def _call_off(self, worker: "_Place", scope: anyio.CancelScope) -> None:
        """Wait no longer for a worker that is not there yet, as where no CPU is free, once nothing is left to do."""
        while not self._is_over:
            await self._news.wait()
        if not worker.ready.is_set():
            scope.cancel()

    async def _employ(self, hand: Hand, worker: "_Place") -> None:
        await hand.send(replace(self._contract, is_observed=bool(self.monitor.observers)))
        async with anyio.create_task_group() as work:

            async def listen() -> None:
                while True:
                    self._take(await hand.receive(), hand, worker, work)

            work.start_soon(listen)
            await self._order(hand, worker)
            work.cancel_scope.cancel()

    async def _order(self, hand: Hand, worker: "_Place") -> None:
        """Give it the next shard whenever it may begin one, until nothing is left and nobody is at work."""
        await worker.ready.wait()
        while True:
            news = self._news
            may = len(worker.lives) < _LIVES_A_WORKER and all(self._open[life].is_dry for life in worker.lives)
            if may and not self.monitor.stopping and (taken := self._next()):
                self._left.remove(taken)
                taken.lives += 1
                life = f"{taken.task.shard.number}/{taken.lives}"
                self._open[life] = _Life(taken, Counts(outcomes=taken.outcomes))
                worker.lives.append(life)
                at = None if self._session is None else LifeId(self._session, taken.lives)
                await hand.send(Order(life, taken.task.shard, taken.task.source, taken.task.rows, at))
                continue
            if self._is_over:
                return
            with anyio.move_on_after(self._due_in()):
                await news.wait()

    def _next(self) -> _Work | None:
        now = anyio.current_time()
        return next((work for work in self._left if work.rests_until <= now), None)

    def _due_in(self) -> float:
        """Seconds until a shard that rests may be run, or longer."""
        now = anyio.current_time()
        return min((work.rests_until - now for work in self._left if work.rests_until > now), default=inf)

    def _take(self, message: FromWorker, hand: Hand, worker: "_Place", speaking: anyio.abc.TaskGroup) -> None:
        if isinstance(message, Said):
            life = self._open[message.life]
            self._coordinator.take(message.life, message.told)
            self._observe(message.observed)
            if message.counts:
                self._count(life, message.counts)
            if message.is_dry and not life.is_dry:
                life.is_dry = True
                self._tell_all()
        elif isinstance(message, Opened):
            self._check(message, worker)
            life = self._open[message.life]
            if message.answers > life.of.answers:  # machines may be taken away at any time
                life.of.answers, life.of.deaths = message.answers, 0
            self._coordinator.begin(message.life, life.of.task.spent_usd)
            self._coordinator.opened(message.life, message.spent_usd)
            speaking.start_soon(self._speak, message.life, hand)
        elif isinstance(message, Observed):
            self._observe(message.observed)
        elif isinstance(message, Noted):
            self._note(message.event)
        elif isinstance(message, Ended):
            self._end(message, worker)
        elif isinstance(message, Ready):
            self._compare(message)
            worker.name = f"process {message.pid} on {message.host}"
            worker.ready.set()
            self._early_deaths = 0
            self.monitor.workers += 1
        elif isinstance(message, Failed):
            raise message.error

    def _note(self, event: Event) -> None:
        """Show it: of the object storage, which all shards lie on, whatever the first of them tells."""
        if isinstance(event, StoreTrouble):
            if event.is_away == self._is_store_away:
                return
            self._is_store_away = event.is_away
        self.monitor.notices.append(event)

    def _observe(self, observed: Iterable[Answer | NoAnswer]) -> None:
        for each in observed:
            if isinstance(each, Answer):
                for observer in self.monitor.observers:
                    observer.answered(*each)
            else:
                self.monitor.failed(*each)

    async def _speak(self, life: str, hand: Hand) -> None:
        while (given := await self._coordinator.give(life)) is not None:
            await hand.send(Heard(life, given))

    def _end(self, message: Ended, worker: "_Place") -> None:
        life = self._open.pop(message.life)
        worker.lives.remove(message.life)
        if message.counts != Counts():  # it began
            self._count(life, message.counts)
        self._coordinator.end(message.life)
        if message.stopped is not None:
            self.halt(message.stopped)
        elif message.is_whole:
            self.monitor.shards_done += 1
            self._is_store_away = False  # it has all of that shard
        elif self._coordinator.desk.halted:  # by a cap, or a quota: whoever had a shard was told
            self.halt(self._coordinator.desk.reason)
        elif not self.monitor.stopping:
            self._again(life.of, worker.name)
        self._tell_all()

    def _bury(self, worker: "_Place", gone: Gone | None) -> None:
        """Its shards are for others, and what it was permitted stays charged."""
        who = str(gone or "")
        if not worker.ready.is_set() and gone:
            self._early_deaths += 1
            if self._early_deaths >= MOST_DEATHS:
                self.halt(
                    ServiceError(
                        f"no worker could be started: {who} ended before it began", "what it says stands above"
                    )
                )
        self.monitor.workers -= worker.ready.is_set()
        for name in worker.lives:
            self._coordinator.lose(name)
            work = self._open.pop(name).of
            work.rests_until = anyio.current_time() + (gone.may_live_s if gone else 0.0)
            self._again(work, who)
        if worker.lives:
            shards = "its shard is" if len(worker.lives) == 1 else f"its {len(worker.lives)} shards are"
            self._heard(WorkerLost(f"the worker in {worker.name} is gone: {shards} run on by another"))
        worker.lives.clear()
        self._tell_all()

    def _again(self, work: _Work, who: str) -> None:
        """Have a shard run once more whose life has ended early."""
        work.deaths += 1
        self._left.appendleft(work)
        if work.deaths >= MOST_DEATHS:
            reason = f"shard {work.task.shard.number} was given up by {MOST_DEATHS} workers, the last of them {who}"
            self.halt(ServiceError(reason, "look at the memory of the machine; then the same command goes on"))

    def _count(self, life: _Life, now: Counts) -> None:
        add(self.monitor, now, life.told)
        life.told, life.of.outcomes = now, now.outcomes
        if self._watches and (reason := self._alike()):
            self.halt(reason)

    def _alike(self) -> PipelineError | None:
        """Why to stop, where the first rows of the run all failed for one cause."""
        causes = {cause: rows for cause, rows in self.monitor.failures.items() if cause != "empty_input"}
        rows = sum(causes.values())
        if self.monitor.outcomes["ok"] or len(causes) > 1:
            self._watches = False
        elif rows >= FAIL_FAST_ROWS:
            self._watches = False
            return all_failed(rows, next(iter(causes)), self.monitor.error)
        return None

    def _compare(self, ready: Ready) -> None:
        ours = versions()
        if differing := [name for name, ours_is in ours.items() if ready.versions.get(name) != ours_is]:
            name = differing[0]
            raise JobError(
                f"the worker on {ready.host} has {name} {ready.versions.get(name)}, and here it is {ours[name]}:"
                " they would not do the same",
                "install the same on every machine",
            )

    def _check(self, opened: Opened, worker: "_Place") -> None:
        if opened.access != self._access:
            raise JobError(
                f"the worker in {worker.name} would ask with another key, or another project, than the one here",
                "give every machine the same key in its environment",
            )

    def _tell_all(self) -> None:
        self._news.set()
        self._news = anyio.Event()


@dataclass(slots=True)
class _Place:
    """A place for a worker, and who fills it."""

    number: int
    name: str = ""
    ready: anyio.Event = field(default_factory=anyio.Event)
    lives: list[str] = field(default_factory=list)


def _gone_in(error: BaseException) -> Gone | None:
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _gone_in(inner))), None)
    return error if isinstance(error, Gone) else None
