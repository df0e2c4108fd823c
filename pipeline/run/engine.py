"""Opens documents, runs their flows, writes results: the program's one task group."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from pipeline import flows
from pipeline.batch.desk import BatchDesk
from pipeline.budget.caps import Spending
from pipeline.cache import AnswerCache
from pipeline.calls import GIVEN_UP, Saved
from pipeline.dispatch.desk import Desk
from pipeline.errors import Halted, Parked, PipelineError, RowsFailed
from pipeline.events import Event
from pipeline.job import Job
from pipeline.prompts import Prompt
from pipeline.records import PASSING, Document, Failure, Lane, Reply, Result, Status, Step, Usage
from pipeline.run.feeds import Feed, Gate
from pipeline.run.first import FirstRows
from pipeline.run.observing import Observer
from pipeline.run.rounds import Rounds
from pipeline.store.batch_states import BatchState
from pipeline.store.run import RunStore
from pipeline.targets import Target

_NO_USAGE = Usage()
FAIL_FAST_ROWS = 20
"""When the first so many rows of a run fail, all for one cause, it is the job's or the service's, not the rows'."""

_TOGETHER = 64
"""Documents that are opened in one turn of the loop: where all are parked at once, 2,560 would hold it for 0.3 s."""

_BEGINNING = 400
"""Characters of an answer in which its first line is looked for."""


@dataclass
class Monitor:
    """What a run looks like from outside, updated as it goes; read by what shows it, and by the tests."""

    rows: int  # that the session covers
    prompts: int = 0  # calls that the plan expects of this session
    outcomes: Counter[Status] = field(default_factory=Counter)
    planned: Mapping[Step, int] = field(default_factory=dict)  # the same by step
    calls: int = 0
    made: Counter[Step] = field(default_factory=Counter)  # calls by step
    lanes: Counter[Lane] = field(default_factory=Counter)  # calls by the lane that served them
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0  # replies whose price is unknown
    saved: Saved = field(default_factory=Saved)
    targets: Counter[str] = field(default_factory=Counter)  # calls by the target that answered, where they have names
    failures: Counter[str] = field(default_factory=Counter)  # rows of this session that are not ok, by their cause
    error: str | None = None  # of the newest of them that was not empty
    last: tuple[int, str, str] | None = None  # row, key and the beginning of the newest answer
    spending: Spending | None = None  # what it is held to
    began_usd: Decimal = Decimal(0)  # what earlier sessions cost
    uncertain: int = 0  # requests without an answer that were billed, or may have been
    answered: int = 0  # rows that got an outcome in this session
    started_at: float = field(default_factory=time.monotonic)
    desk: Desk | None = None
    batches: BatchDesk | None = None  # where some of its prompts go to batches
    sample: int = 0  # rows of it, where the session covers no others
    first: FirstRows | None = None
    workers: int = 0  # processes at work, where there are several
    shards: int = 0  # that the session covers
    shards_done: int = 0
    stopping: bool = False
    notices: list[Event] = field(default_factory=list)  # events not shown yet
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=100))  # of the last calls outside of batches
    bound_s: Mapping[str, float] = field(default_factory=dict)  # why it was not faster, seconds of its loops by cause
    alerts: Mapping[str, str] = field(default_factory=dict)  # thresholds that are passed, by name, and how they stand
    observers: list[Observer] = field(default_factory=list)  # of its requests
    run: str = ""  # the name of its directory
    rehearsal: bool = False

    @property
    def done(self) -> int:
        """Rows with an outcome, those of earlier sessions included."""
        return self.outcomes.total()

    @property
    def has_sent(self) -> bool:
        """Whether this session sent anything."""
        return self.desk is not None and self.desk.sent > 0

    @property
    def has_spent(self) -> bool:
        """Whether this session has something to pay for, or may have."""
        return self.calls + self.uncertain > 0 or (self.batches is not None and self.batches.has_asked)

    @property
    def seconds(self) -> float:
        """Since the run was opened."""
        return time.monotonic() - self.started_at

    @property
    def share(self) -> float:
        """Of the planned calls those that need not be made any more; calls that no plan foresaw count nothing."""
        beyond = sum((self.made - Counter(self.planned)).values()) if self.planned else 0
        return min(1.0, (self.had - beyond) / self.prompts) if self.prompts else 1.0

    @property
    def had(self) -> int:
        """Planned calls that have an answer: bought, or of the cache. One that repeats another was not planned."""
        return self.calls + self.saved.cached

    def ended(self, result: Result) -> None:
        """Count a row that got its outcome."""
        self.outcomes[result.status] += 1
        self.answered += 1
        if result.status != "ok":
            self.failures[result.error_kind or result.finish_reason or result.status] += 1
            if result.error_kind != "empty_input":
                self.error = result.error
        if result.response:
            self.last = (result.row, result.key, result.response[:_BEGINNING])
        if self.first:
            self.first.ended(result)

    def bought(self, prompt: Prompt, reply: Reply, answered: bool) -> None:
        """Count a reply that was paid for, or what may have been paid without one."""
        if answered:
            self.calls += 1
            self.made["pack" if prompt.members else "rest" if prompt.params.continuation else prompt.step] += 1
            self.lanes[reply.lane] += 1
            if reply.lane != "batch":
                self.latencies.append(reply.latency_s)
            if reply.target:
                self.targets[reply.target] += 1
            self.usage += reply.usage
            for observer in self.observers:
                observer.answered(prompt, reply)
        elif reply.error != GIVEN_UP.message:  # given up as the key was refused, it would have been refused too
            self.uncertain += 1
        if reply.cost_usd is None:
            self.unpriced += 1
        else:
            self.cost_usd += reply.cost_usd

    def failed(self, prompt: Prompt, target: Target, failure: Failure, attempt: int, seconds: float) -> None:
        """Tell of a request that came back without an answer."""
        for observer in self.observers:
            observer.failed(prompt, target, failure, attempt, seconds)

    def taken(self, batch: BatchState, usage: Usage) -> None:
        """Tell of a batch that is over."""
        for observer in self.observers:
            observer.taken(batch, usage)


class Works(Protocol):
    """What does the work of a run: an engine, or what stands in its place."""

    monitor: Monitor
    stopped: PipelineError | None
    interrupted: bool

    async def run(self) -> None:
        """Answer every row that has no lasting outcome yet, or as many as come before it is halted."""
        ...

    def halt(self, reason: PipelineError | None) -> None:
        """Admit no new call; what is in flight finishes and is kept. `reason` is None after Ctrl-C."""
        ...

    def abandon(self) -> None:
        """Stop now: the replies in flight are lost, everything before them is kept."""
        ...


class Engine:
    """One run of one job. `run` returns when every row has an outcome or no new call is admitted any more."""

    def __init__(
        self,
        job: Job,
        feeds: Sequence[Feed],
        store: RunStore,
        call: Callable[[Document], flows.Call],
        desk: Desk,
        monitor: Monitor,
        cache: AnswerCache | None = None,
        changes: str | None = None,
        rounds: Rounds | None = None,
        fail_fast: bool = True,
    ) -> None:
        """`feeds` give the documents to be done; `call` is the durable one of each, by way of the `desk`.

        `changes` is what `--set` changed of the job, for the results. `rounds` open those again that wait for batches.
        With `fail_fast` it stops where the first rows all fail alike.
        """
        self._job = job
        self._feeds = feeds
        self._rounds = rounds
        self._store = store
        self.monitor = monitor
        self._call = call
        self._desk = monitor.desk = desk
        self._cache = cache
        self._changes = changes
        self._first_failures = _FirstFailures(fail_fast and not monitor.done, rounds.ahead if rounds else 0)
        self._idle: list[asyncio.Future[tuple[Document, Gate] | None]] = []  # tasks that wait for another document
        self._all_opened = False
        self._scope = anyio.CancelScope()
        self.stopped: PipelineError | None = None
        self.interrupted = False

    async def run(self) -> None:
        """Answer every row that has no lasting outcome yet."""
        with self._scope:
            async with self._cache or nullcontext(), anyio.create_task_group() as keeping:
                keeping.start_soon(self._keep)
                if self._cache:
                    keeping.start_soon(self._cache.keep)
                async with anyio.create_task_group() as dispatching:
                    dispatching.start_soon(self._desk.run)
                    if self._rounds:
                        dispatching.start_soon(self._rounds.run)
                    async with anyio.create_task_group() as documents:
                        await self._open_documents(documents)
                        self._all_opened = True
                        for idle in self._idle:
                            idle.set_result(None)
                    self._desk.close()
                    if self._rounds:
                        self._rounds.close()
                keeping.cancel_scope.cancel()

    @property
    def is_dry(self) -> bool:
        """Whether all of its documents are opened, and others could be begun beside them."""
        return self._all_opened

    async def _keep(self) -> None:
        try:
            await self._store.keep()
        except PipelineError as reason:  # what is in flight may still find room in the journal
            self.halt(reason)

    def halt(self, reason: PipelineError | None) -> None:
        """Admit no new call; what is in flight finishes and is kept. `reason` is None after Ctrl-C."""
        self._stop(reason)
        self._desk.halt(reason)
        if self._rounds:
            self._rounds.close()

    def abandon(self) -> None:
        """Stop now: the replies in flight are lost, everything before them is kept."""
        self.interrupted = True
        self._scope.cancel()

    def _stop(self, reason: PipelineError | None) -> None:
        self.monitor.stopping = True
        if reason is None:
            self.interrupted = True
        elif self.stopped is None:
            self.stopped = reason

    async def _open_documents(self, tasks: anyio.abc.TaskGroup) -> None:
        async with anyio.create_task_group() as opening:
            for feed in self._feeds:
                opening.start_soon(self._open, feed, tasks)

    async def _open(self, feed: Feed, tasks: anyio.abc.TaskGroup) -> None:
        try:
            async with aclosing(feed.batches()) as batches:
                async for batch in batches:
                    for position, document in enumerate(batch):
                        if position % _TOGETHER == 0:
                            await anyio.lowlevel.checkpoint()
                        await feed.gate.enter(document)
                        await self._store.room()
                        if self.monitor.stopping:
                            return
                        if self._idle:
                            self._idle.pop().set_result((document, feed.gate))
                        else:
                            tasks.start_soon(self._documents, (document, feed.gate))
        except PipelineError as reason:  # the input: what is in flight is kept all the same
            self.halt(reason)

    async def _documents(self, opened: tuple[Document, Gate] | None) -> None:
        """One document after another: to wake a task costs a tenth of starting one (40 µs, measured 2026-11)."""
        while opened is not None:
            document, gate = opened
            try:
                answer = await flows.run(document, self._job, self._call(document))
            except Halted as halted:
                self._stop(halted.reason)
            except Parked as parked:
                assert self._rounds
                self.monitor.saved.close(document.row, is_parked=True)
                self._rounds.parked(document.row, parked.batch)
            else:
                result = self._result(document, answer)
                self._store.append_result(result)
                self.monitor.saved.close(document.row)
                self.monitor.ended(result)
                if reason := self._first_failures.after(result):
                    self.halt(reason)
                del answer, result  # they would be kept while there is no other
            finally:
                gate.leave(document)
            if self._all_opened:
                return
            opened = None
            del document
            idle: asyncio.Future[tuple[Document, Gate] | None] = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            opened = await idle

    def _result(self, document: Document, answer: flows.Answer) -> Result:
        final = answer.final
        replies = [each for reply in answer.replies for each in (*reply.before, reply)]
        usage = sum((reply.usage for reply in replies), _NO_USAGE)
        costs = [cost for reply in replies for cost in (reply.cost_usd, reply.unread_usd)]
        if any(reply.unread_usd != 0 or reply.at_most_usd != 0 for reply in replies):
            usage = replace(usage, estimated=True)
        return Result(
            row=document.row,
            key=document.key,
            status=final.status,
            response=final.text or None,
            error_kind=final.error_kind,
            error=final.error,
            finish_reason=final.finish_reason,
            model=final.model or None,
            target=final.target or final.endpoint or None,
            usage=usage,
            input_tokens_est=answer.input_tokens_est,
            cost_usd=None if None in costs else sum((cost for cost in costs if cost), Decimal(0)),
            calls=sum(reply.usage != _NO_USAGE for reply in replies),
            chunks=answer.chunks,
            attempts=sum(reply.attempts for reply in replies),
            rate_limited=sum(reply.rate_limited for reply in replies),
            latency_s=round(sum(reply.latency_s for reply in replies), 3),
            finished_at=datetime.now(UTC),
            changes=self._changes,
            extras=final.extras or None,
        )


def all_failed(rows: int, cause: str, error: str | None) -> RowsFailed:
    """Why a run stops whose first rows all failed alike; `error` is that of one of them."""
    return RowsFailed(
        f"the first {rows} rows all failed for the same cause, {cause}: {error}",
        "the same command tries them again"
        if cause in PASSING
        else "mend the job and start anew with `--fresh`; or, if it is as it should be, the same command goes on",
    )


class _FirstFailures:
    """Tells when the first rows of a run all failed alike.

    It watches a run without outcomes only: whoever continues a run that was stopped for this has been told. Where some
    rows go `ahead` of the others, they are these.
    """

    def __init__(self, watching: bool, ahead: int) -> None:
        self._watching = watching
        self._enough = ahead or FAIL_FAST_ROWS
        self._rows = 0
        self._kind: str | None = None

    def after(self, result: Result) -> PipelineError | None:
        """Why to stop after this row, if so."""
        if not self._watching or result.error_kind == "empty_input":
            return None
        self._watching = result.status != "ok" and self._kind in (None, result.error_kind)
        self._rows, self._kind = self._rows + 1, result.error_kind
        if not self._watching or self._rows < self._enough:
            return None
        self._watching = False
        return all_failed(self._rows, str(self._kind), result.error)
