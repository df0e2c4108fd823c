"""One run from the job file to the output table: opens everything, runs the engine, writes the output."""

import gc
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import polars as pl

from pipeline import plan, report
from pipeline.cache import AnswerCache, Shelf, service_of, shelf_of
from pipeline.calls import Send, Spending, lost_usd
from pipeline.dispatch import Dispatcher
from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.engine import Engine, Monitor
from pipeline.errors import AuthError, InputError, JobError, PipelineError, RunStateError, ServiceError
from pipeline.job import DEFAULT_BASE_URL, Job, api_key
from pipeline.prices import CHECKED, MODELS, model_info
from pipeline.providers.gemini import Gemini, parse_reply
from pipeline.providers.transport import Wire
from pipeline.quota.book import QuotaBook
from pipeline.records import STATUSES, Document, Limits, Reply, Verdict
from pipeline.source import Source, open_source, output_conflict
from pipeline.spend import SpendBook
from pipeline.store.export import export, output_schema
from pipeline.store.journal import Call
from pipeline.store.manifest import Manifest, differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.run import RunStore, load
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES, check_variables

HEARTBEAT_S = 10.0
"""Between lines of numbers in run.log: what is not known of a killed run's duration, at most."""

_OFFLINE = EmulatorOptions(any_model=True, track_prompts=0)

Watch = Callable[[Monitor], Coroutine[None, None, None]]
Confirm = Callable[[plan.Plan, bool], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the flags of `run` say beyond the job file."""

    offline: bool = False
    limit: int | None = None
    max_cost_usd: Decimal | None = None
    fresh: bool = False
    retry: frozenset[str] = frozenset()
    skip_failed: bool = False
    wait: bool = False
    changes: str | None = None  # [model] keys that `--set` changes for the rows of `retry`, as JSON


@dataclass(frozen=True)
class Session:
    """A job with its input opened and checked: nothing was sent, nothing was written."""

    job: Job
    source: Source
    rows: int
    options: Options
    redo: Job | None = None  # the job with `options.changes`; the run stays that of `job`

    @property
    def working(self) -> Job:
        """The job that makes the calls of this session."""
        return self.redo or self.job

    @property
    def directory(self) -> Path:
        """The run directory; an offline run has its own, so that a rehearsal never mixes with real answers."""
        return report.RUNS / (f"{self.job.name}-offline" if self.options.offline else self.job.name)

    @property
    def output(self) -> Path:
        """Where the results are written."""
        return Path(self.job.spec.output.path)

    @property
    def output_columns(self) -> list[str]:
        """Input columns that the output repeats."""
        text = None if self.job.spec.output.include_text else self.job.spec.input.text
        return [name for name in self.source.schema if name != text]

    def documents(self, wanted: Callable[[int], bool] = lambda row: True) -> Iterator[Iterator[Document]]:
        """The job's rows that are `wanted`, in batches of bounded size."""
        limit = self.rows
        for frame in self.source.batches():
            documents = takewhile(lambda document: document.row < limit, self.source.documents(frame))
            yield (document for document in documents if wanted(document.row))
            if frame.item(-1, 0) >= limit - 1:
                return

    def manifest(self) -> Manifest:
        """What this session's run belongs to."""
        return Manifest(
            job=self.job.name,
            job_path=str(self.job.path),
            fingerprint=self.job.fingerprint,
            identity=self.job.identity,
            source=self.source.fingerprint,
            source_path=self.job.spec.input.path,
            output=str(self.output),
            model=self.job.params.model,
            offline=self.options.offline,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            prices_dated=CHECKED.isoformat(),
            versions={name: version(name) for name in ("prompt-pipeline", "polars", "genai-prices")},
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended; `stopped` is what stopped it early."""

    summary: report.Summary
    stopped: PipelineError | None
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """0 all rows ok, 1 finished but some failed, 130 interrupted, else that of what stopped it."""
        if self.stopped:
            return self.stopped.exit_code
        if self.interrupted:
            return 130
        return 0 if self.summary.outcomes["ok"] == self.summary.done >= self.summary.rows else 1


def prepare(job: Job, options: Options, redo: Job | None = None) -> Session:
    """Open and check everything that can be wrong before anything is spent. Raises `PipelineError`.

    `redo` is the job as `--set` changes it for the rows that are redone.
    """
    check_model(job, options.offline)
    spec = job.spec.input
    source = open_source(spec.path, id=spec.id, text=spec.text, where=spec.where)
    columns = list(source.schema)
    own = CHUNK_VARIABLES if job.spec.chunk else frozenset({"text"}) if spec.text else frozenset()
    check_variables(job.template, columns, own)
    if job.reduce_template:
        check_variables(job.reduce_template, columns, REDUCE_VARIABLES)
    source = open_source(spec.path, id=spec.id, text=spec.text, where=spec.where, columns=job.columns)
    output_conflict(source, job.spec.output.path)
    source.check()
    rows = source.count() if options.limit is None else min(source.count(), options.limit)
    session = Session(job, source, rows, options, redo)
    output_schema(session_schema(session), session.output)
    _check_rehearsal(session)
    return session


def session_schema(session: Session) -> pl.Schema:
    """Types of the input columns that the output repeats."""
    return pl.Schema({name: session.source.schema[name] for name in session.output_columns})


def check_model(job: Job, offline: bool) -> None:
    """Raise `JobError` for a model that Google's endpoint does not serve, as far as this version knows."""
    import difflib

    name = job.params.model
    elsewhere = (job.spec.endpoint.base_url or DEFAULT_BASE_URL) != DEFAULT_BASE_URL
    if model_info(name) or job.own_rates or (elsewhere and not offline):
        return
    close = difflib.get_close_matches(name, [model.name for model in MODELS], n=1)
    raise JobError(
        f"{name} is not a known model\n{job.path}, [model] name",
        (f"did you mean {close[0]}? " if close else "")
        + "`pipeline models` lists prices; set [model] prices to use another",
    )


def _check_rehearsal(session: Session) -> None:
    """An offline run must not replace the exported answers of a real one."""
    real = read_manifest(report.RUNS / session.job.name / "manifest.json") if session.options.offline else None
    if real and Path(real.output) == session.output and session.output.exists():
        raise InputError(
            f"{session.output} holds the answers of a real run; an offline run would replace them",
            f"`--out {session.output.with_stem(session.output.stem + '-offline')}` writes beside them",
        )


@asynccontextmanager
async def open_provider(job: Job, offline: bool) -> AsyncIterator[Gemini]:
    """The service that answers: the one the job names, or the embedded emulator through the same client."""
    endpoint = job.spec.endpoint
    if offline:
        async with Wire(httpx.ASGITransport(Emulator(_OFFLINE))) as wire:
            yield Gemini(wire, base_url="http://emulator", api_key="offline", timeout_s=endpoint.timeout_s)
        return
    key = api_key(job)
    async with Wire() as wire:
        yield Gemini(
            wire,
            base_url=endpoint.base_url or DEFAULT_BASE_URL,
            api_version=endpoint.api_version,
            api_key=key,
            timeout_s=endpoint.timeout_s,
        )


def limits_of(job: Job, offline: bool) -> Limits:
    """The configured limits; the emulator has none of its own, so offline an unset one counts as none."""
    limits = job.limits
    if not offline:
        return limits
    return Limits(limits.rpm or 0, limits.tpm or 0, limits.rpd, limits.concurrency)


async def check_service(session: Session) -> list[tuple[str, str, str]]:
    """Ask the service whether the key and the model are good; free of charge. Raises `PipelineError`."""
    job = session.job
    async with open_provider(job, session.options.offline) as provider:
        found = await provider.list_models()
        if isinstance(found, Verdict):
            raise (AuthError if found.kind == "auth" else ServiceError)(
                f"{provider.endpoint} does not answer as it should: {found.message}",
                "check the key and [endpoint] base_url; nothing was spent",
            )
        names = [model.name for model in found]
        if job.params.model not in names:
            raise JobError(
                f"{provider.endpoint} does not offer {job.params.model} to this key",
                f"it offers {', '.join(names[:12])}" if names else "it offers no model at all",
            )
        return [("endpoint", provider.endpoint, "answers"), ("model", job.params.model, "offered to this key")]


async def estimate(session: Session) -> plan.Plan:
    """What is left of this job and what it takes. Sends and writes nothing."""
    known = read_manifest(session.directory / "manifest.json")
    if known is None or differences(known, session.manifest()):
        return await _planned(session, lambda row: False, lambda fingerprint: None)
    outcomes, unsealed = load(session.directory, parse_reply)
    calls = {call.fingerprint: call for call in unsealed.calls if call.paid}
    return await _planned(session, outcomes.done, calls.get)


async def _planned(session: Session, done: Callable[[int], bool], find: Callable[[str], Call | None]) -> plan.Plan:
    """Plan the rows that are not `done`; `find` knows the calls that were bought and can be replayed."""

    def bought(fingerprint: str) -> Reply | None:
        call = find(fingerprint)
        return call.reply if call else None

    limits = limits_of(session.job, session.options.offline)
    return await plan.make(session.working, session.documents(), session.rows, done, bought, limits)


def _done(session: Session, store: RunStore) -> Callable[[int], bool]:
    """Rows that this session leaves alone: with `--set`, all but those that are redone."""
    if session.redo is None:
        return store.outcomes.done
    return lambda row: not store.outcomes.again(row)


def open_book(job: Job, endpoint: str, offline: bool) -> AbstractContextManager[QuotaBook | None]:
    """Sends and day counts that all runs of one key and model share, in the user's state directory.

    The key itself is not in it: only a hash tells two projects apart. An offline run keeps no book.
    """
    if offline:
        return nullcontext()
    return QuotaBook(_state_file("quota.sqlite"), f"{endpoint}/{_project(job)}/{job.params.model}")


def open_spend(job: Job, endpoint: str, offline: bool) -> AbstractContextManager[SpendBook | None]:
    """What all runs of one key spend, by day, in the user's state directory. An offline run spends nothing."""
    return nullcontext() if offline else SpendBook(_state_file("spend.sqlite"), f"{endpoint}/{_project(job)}")


def _state_file(name: str) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "prompt-pipeline" / name


def _project(job: Job) -> str:
    return hashlib.blake2b(api_key(job).encode(), digest_size=8).hexdigest()


async def run(session: Session, confirm: Confirm, watch: Watch) -> Ended:
    """Start the job's run, or continue it. `confirm` sees the plan and may raise; `watch` shows progress.

    Raises `PipelineError` for what is wrong before the first call.
    """
    job, options = session.job, session.options
    if not options.offline:
        api_key(job)
    if options.fresh:
        set_aside(session.directory)
    with _rare_collections():
        async with open_provider(job, options.offline) as provider:
            return await _run(session, provider, confirm, watch)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look seldom: a run keeps 100,000 live objects that are no garbage.

    At Python's default it takes 35 % of the line's CPU: 1,560 calls/s instead of 2,400 (measured 2026-11-22).
    """
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


async def _run(session: Session, provider: Gemini, confirm: Confirm, watch: Watch) -> Ended:
    job, options = session.job, session.options
    shelf = None if options.offline else shelf_of(job)
    store = RunStore(session.directory, provider.parse)
    continued = store.open(session.manifest())
    try:
        if options.retry:
            store.reopen(options.retry, options.changes)
        if options.skip_failed:
            store.outcomes.settle()
        planned = await _planned(session, _done(session, store), store.reply)
        refuse_unpriced(job, options, planned)
        confirm(planned, continued)
        with (
            open_book(job, provider.endpoint, options.offline) as book,
            open_spend(job, provider.endpoint, options.offline) as spent,
        ):
            spending = _spending(job, options, store, spent)
            engine = _engine(session, store, provider, spending, book, shelf, planned.prompts)
            await _attended(engine, store, watch)
        await store.seal()
        await anyio.to_thread.run_sync(
            export,
            session.source.batches(columns=session.output_columns, size=1024),
            session_schema(session),
            session.directory / "results",
            session.output,
            session.rows,
            job.spec.output.csv_safe,
        )
        status = "stopped" if engine.stopped else "interrupted" if engine.interrupted else "finished"
        store.log("end", status=status, reason=str(engine.stopped or ""), **_numbers(engine.monitor))
    finally:
        store.close()
    return Ended(report.summarize(session.directory), engine.stopped, engine.interrupted)


def set_aside(directory: Path) -> None:
    """Keep an earlier run, whatever state it is in, beside the new one, under its name and the present time."""
    if not directory.exists():
        return
    if report.in_use(directory):
        raise RunStateError(f"{directory} is in use", "stop that run first")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    directory.rename(directory.with_name(f"{directory.name}.{stamp}"))


def refuse_unpriced(job: Job, options: Options, planned: plan.Plan) -> None:
    """Raise `JobError` for a cap on spending that could not be kept because nobody knows what a call costs."""
    caps = job.spec.budget
    capped = any((caps.max_usd, caps.max_usd_per_day, caps.max_usd_per_month, options.max_cost_usd))
    if capped and planned.cost_usd is None and planned.prompts and not job.spec.budget.allow_unpriced:
        raise JobError(
            f"there is a budget, but the price of {job.params.model} is unknown: it could not be kept",
            "set [model] prices = { input = …, output = … }, or [budget] allow_unpriced = true",
        )


def _spending(job: Job, options: Options, store: RunStore, book: SpendBook | None) -> Spending:
    if options.offline:
        return Spending(None)
    caps = job.spec.budget
    return Spending(
        options.max_cost_usd or _exact(caps.max_usd),  # the flag wins over the job file
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
    provider: Gemini,
    spending: Spending,
    book: QuotaBook | None,
    shelf: Shelf | None,
    prompts: int,
) -> Engine:
    options = session.options
    monitor = Monitor(session.rows, prompts)
    monitor.outcomes.update({status: store.outcomes.count(status, lasting=True) for status in STATUSES})
    monitor.cost_usd = store.spent_usd()

    def heard(event: str, numbers: dict[str, object]) -> None:
        store.log(event, **numbers)
        monitor.notices.append((event, numbers))

    if store.lost:
        most = Decimal(0) if options.offline else lost_usd(store.lost, session.job.own_rates)
        heard("lost", {"requests": len(store.lost), "at_most_usd": most})
        store.forget_lost()

    def dispatcher(send: Send) -> Dispatcher:
        return Dispatcher(
            send,
            limits_of(session.job, options.offline),
            count_tokens=provider.count_tokens,
            wait=options.wait,
            on_event=heard,
            book=book,
        )

    cache = AnswerCache(shelf, service_of(session.job), provider.parse, heard) if shelf else None
    done = _done(session, store)
    return Engine(
        session.working,
        session.documents(lambda row: not done(row)),
        store,
        dispatcher,
        provider.generate,
        monitor,
        spending,
        cache,
        session.options.changes,
    )


async def _attended(engine: Engine, store: RunStore, watch: Watch) -> None:
    store.log("start", rows=engine.monitor.rows, pid=os.getpid())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_signals, engine)
        tasks.start_soon(_heartbeat, engine, store)
        tasks.start_soon(watch, engine.monitor)
        await engine.run()
        tasks.cancel_scope.cancel()


async def _heed_signals(engine: Engine) -> None:
    """First Ctrl-C (or SIGTERM): finish what is in flight. Second: stop now."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if engine.interrupted:
                engine.abandon()
            else:
                engine.halt(None)


async def _heartbeat(engine: Engine, store: RunStore) -> None:
    while True:
        await anyio.sleep(HEARTBEAT_S)
        store.log("progress", **_numbers(engine.monitor))


def _numbers(monitor: Monitor) -> dict[str, object]:
    saved = monitor.saved
    return {
        "seconds": round(monitor.seconds, 3),
        "rows_done": monitor.done,
        "calls": monitor.calls,
        "cost_usd": str(monitor.cost_usd),
        "identical": saved.identical,
        "cached": saved.cached,
        "saved_usd": str(saved.usd),
    }
