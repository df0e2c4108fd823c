"""Opens documents, runs their flows, writes results: the program's one task group."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from random import Random

import anyio
import anyio.abc
import anyio.to_thread

from pipeline import flows
from pipeline.cache import AnswerCache
from pipeline.calls import GIVEN_UP, Saved
from pipeline.dispatch.desk import Desk
from pipeline.errors import Halted, PipelineError, RowsFailed
from pipeline.events import Event
from pipeline.job import Job
from pipeline.prompts import Prompt
from pipeline.providers.resumable import PART_BYTES
from pipeline.records import PASSING, Document, Media, Reply, Result, Status, Step, Usage
from pipeline.sections import MOST_INLINE_MB
from pipeline.store.run import RunStore

MAX_OPEN_DOCUMENTS = 2560
"""Documents open at once: the most calls in flight (2,000) and some to choose from. 10 kB of memory each, measured."""
MAX_OPEN_CHARACTERS = 64_000_000
"""Text and files of the open documents, so that long ones do not fill the memory: a file is read when it is sent."""
FETCHED_BYTES = 4_000_000
"""What a file is taken to have that is fetched when it is sent."""
_NO_USAGE = Usage()
FAIL_FAST_ROWS = 20
"""When the first so many rows of a run fail, all for one cause, it is the job's or the service's, not the rows'."""


@dataclass
class Monitor:
    """What a run looks like from outside, updated as it goes; read by the progress line and the tests."""

    rows: int
    prompts: int = 0  # calls that the plan expects of this session
    outcomes: Counter[Status] = field(default_factory=Counter)
    planned: Mapping[Step, int] = field(default_factory=dict)  # the same by step
    calls: int = 0
    made: Counter[Step] = field(default_factory=Counter)  # calls by step
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0  # replies whose price is unknown
    saved: Saved = field(default_factory=Saved)
    uncertain: int = 0  # requests without an answer that were billed, or may have been
    answered: int = 0  # rows that got an outcome in this session
    started_at: float = field(default_factory=time.monotonic)
    desk: Desk | None = None
    stopping: bool = False
    notices: list[Event] = field(default_factory=list)  # events not shown yet

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
        return self.calls + self.uncertain > 0

    @property
    def seconds(self) -> float:
        """Since the run was opened."""
        return time.monotonic() - self.started_at

    @property
    def share(self) -> float:
        """Of the planned calls those that need not be made any more; calls that no plan foresaw count nothing."""
        beyond = sum((self.made - Counter(self.planned)).values()) if self.planned else 0
        return min(1.0, (self.calls + self.saved.calls - beyond) / self.prompts) if self.prompts else 1.0

    def bought(self, prompt: Prompt, reply: Reply, answered: bool) -> None:
        """Count a reply that was paid for, or what may have been paid without one."""
        if answered:
            self.calls += 1
            self.made["pack" if prompt.members else "rest" if prompt.params.continuation else prompt.step] += 1
            self.usage += reply.usage
        elif reply.error != GIVEN_UP.message:  # given up as the key was refused, it would have been refused too
            self.uncertain += 1
        if reply.cost_usd is None:
            self.unpriced += 1
        else:
            self.cost_usd += reply.cost_usd


class Engine:
    """One run of one job. `run` returns when every row has an outcome or no new call is admitted any more."""

    def __init__(
        self,
        job: Job,
        batches: Iterable[Iterable[Document]],
        store: RunStore,
        call: Callable[[Document], flows.Call],
        desk: Desk,
        monitor: Monitor,
        cache: AnswerCache | None = None,
        changes: str | None = None,
    ) -> None:
        """`batches` are the documents to be done; `call` is the durable one of each, by way of the `desk`.

        `changes` is what `--set` changed of the job, for the results.
        """
        self._job = job
        self._batches = batches
        self._store = store
        self.monitor = monitor
        self._call = call
        self._desk = monitor.desk = desk
        self._cache = cache
        self._changes = changes
        self._first_failures = _FirstFailures(watching=not monitor.done)
        self._gate = _Gate()
        self._idle: list[asyncio.Future[Document | None]] = []  # tasks that wait for another document
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
                    async with anyio.create_task_group() as documents:
                        await self._open_documents(documents)
                        self._all_opened = True
                        for parked in self._idle:
                            parked.set_result(None)
                    self._desk.close()
                keeping.cancel_scope.cancel()

    async def _keep(self) -> None:
        try:
            await self._store.keep()
        except PipelineError as reason:  # what is in flight may still find room in the journal
            self.halt(reason)

    def halt(self, reason: PipelineError | None) -> None:
        """Admit no new call; what is in flight finishes and is kept. `reason` is None after Ctrl-C."""
        self._stop(reason)
        self._desk.halt(reason)

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
        batches = iter(self._batches)
        while not self.monitor.stopping:
            try:
                batch = await anyio.to_thread.run_sync(_next, batches)
            except PipelineError as reason:  # the input: what is in flight is kept all the same
                self.halt(reason)
                return
            if batch is None:
                return
            for document in batch:
                await self._gate.enter(document)
                await self._store.room()
                if self.monitor.stopping:
                    return
                if self._idle:
                    self._idle.pop().set_result(document)
                else:
                    tasks.start_soon(self._documents, document)

    async def _documents(self, document: Document | None) -> None:
        """One document after another: to wake a task costs a tenth of starting one (40 µs, measured 2026-11)."""
        while document is not None:
            try:
                answer = await flows.run(document, self._job, self._call(document))
            except Halted as halted:
                self._stop(halted.reason)
            else:
                result = self._result(document, answer)
                self._store.append_result(result)
                self.monitor.outcomes[result.status] += 1
                self.monitor.answered += 1
                if reason := self._first_failures.after(result):
                    self.halt(reason)
                del answer, result  # they would be kept while there is no other
            finally:
                self._gate.leave(document)
            if self._all_opened:
                return
            document = None
            parked: asyncio.Future[Document | None] = asyncio.get_running_loop().create_future()
            self._idle.append(parked)
            document = await parked

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


class _FirstFailures:
    """Tells when the first rows of a run all failed alike.

    It watches a run without outcomes only: whoever continues a run that was stopped for this has been told.
    """

    def __init__(self, watching: bool) -> None:
        self._watching = watching
        self._rows = 0
        self._kind: str | None = None

    def after(self, result: Result) -> PipelineError | None:
        """Why to stop after this row, if so."""
        if not self._watching or result.error_kind == "empty_input":
            return None
        self._watching = result.status != "ok" and self._kind in (None, result.error_kind)
        self._rows, self._kind = self._rows + 1, result.error_kind
        if not self._watching or self._rows < FAIL_FAST_ROWS:
            return None
        self._watching = False
        return RowsFailed(
            f"the first {self._rows} rows all failed for the same cause, {self._kind}: {result.error}",
            "the same command tries them again"
            if self._kind in PASSING
            else "mend the job and start anew with `--fresh`; or, if it is as it should be, the same command goes on",
        )


class _Gate:
    """Bounds the open documents by number and by the size of their texts; one is always let in."""

    def __init__(self) -> None:
        self._documents = 0
        self._characters = 0
        self._left = anyio.Event()

    async def enter(self, document: Document) -> None:
        while self._documents and (self._documents >= MAX_OPEN_DOCUMENTS or self._characters >= MAX_OPEN_CHARACTERS):
            self._left = anyio.Event()
            await self._left.wait()
        self._documents += 1
        self._characters += _size(document)

    def leave(self, document: Document) -> None:
        self._documents -= 1
        self._characters -= _size(document)
        self._left.set()


def _size(document: Document) -> int:
    return len(document.text or "") + sum(map(_length, document.fields.values())) + sum(map(_held, document.media))


def _length(value: object) -> int:
    """Characters of the texts in a cell, such as those of a conversation."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 0


def _held(file: Media) -> int:
    """What of a file is in memory when it is sent: all, of one that has to be uploaded a part, of one that has to be
    fetched nobody knows."""
    if file.url:
        return FETCHED_BYTES
    return file.size_bytes if file.size_bytes <= MOST_INLINE_MB * 1_000_000 or file.data else PART_BYTES


def _next(batches: Iterator[Iterable[Document]]) -> list[Document] | None:
    return next((mixed(batch) for batch in batches), None)


def mixed(batch: Iterable[Document]) -> list[Document]:
    """The rows of a batch in a random order, always the same: sorted by length they would use one meter at a time.

    Batches that are like each other are for `source.order` to make. 0.2 µs a row, measured.
    """
    documents = list(batch)
    Random(len(documents)).shuffle(documents)
    return documents
