"""A job with its input and its service, opened and checked: everything before the first call."""

import difflib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from io import BytesIO
from itertools import chain
from pathlib import Path

import httpx
import polars as pl

from pipeline import __version__, report
from pipeline.environment import check_certificates
from pipeline.errors import AuthError, InputChanged, InputError, JobError, ServiceError
from pipeline.flows import check_rendering
from pipeline.job import DEFAULT_BASE_URL, Job, api_key
from pipeline.models import MODELS, model_info
from pipeline.prices import CHECKED, FREE, Rates
from pipeline.providers.gemini import Gemini
from pipeline.providers.transport import Wire
from pipeline.quota.book import QuotaBook, read_known
from pipeline.quota.daily import day_of, until_text
from pipeline.quota.stops import refused_by_proxy
from pipeline.records import Document, Failure, Limits
from pipeline.run.places import quota_place
from pipeline.source import Source, open_source, output_conflict
from pipeline.source.documents import ROW
from pipeline.source.order import Order, woven
from pipeline.store.export import Form, attempt, output_schema
from pipeline.store.manifest import SUFFIXES, Kind, Manifest
from pipeline.templates.checks import check_template, check_truths

METERS = ("rpm", "tpm", "rpd")


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
    pilot: frozenset[int] | None = None  # only these rows, and no output table
    changes: str | None = None  # [model] keys that `--set` changes for the rows of `retry`, as JSON
    pace: bool = False  # offline, obey the job's limits all the same
    overwrite: bool = False  # replace the output whoever wrote it, and whatever is in it


@dataclass(frozen=True)
class Session:
    """A job with its input opened and checked: nothing was sent, nothing was written."""

    job: Job
    source: Source
    rows: int
    options: Options
    redo: Job | None = None  # the job with `options.changes`; the run stays that of `job`
    kind: Kind = "real"  # who answers
    asked: bool = False  # whether the service was asked who it is

    @property
    def rehearsal(self) -> bool:
        """Whether an emulator answers: it costs nothing, and shares nothing with real runs."""
        return self.kind != "real"

    @property
    def working(self) -> Job:
        """The job that makes the calls of this session."""
        return self.redo or self.job

    @property
    def rates(self) -> Rates | None:
        """What a call of this session costs where the tables do not say it: in a rehearsal nothing."""
        return FREE if self.rehearsal else self.job.own_rates

    @property
    def limits(self) -> Limits:
        """The limits that this session obeys; see `limits_of`."""
        return limits_of(self.job, self.options.offline, self.options.pace)

    @property
    def directory(self) -> Path:
        """The run directory; a rehearsal has its own."""
        return report.RUNS / f"{self.job.name}{SUFFIXES[self.kind]}"

    @property
    def max_usd(self) -> Decimal | None:
        """What the run may spend in all, earlier sessions included; the flag wins over the job file."""
        cap = self.job.spec.budget.max_usd
        return self.options.max_cost_usd or (None if cap is None else Decimal(str(cap)))

    @property
    def output(self) -> Path:
        """Where the results are written: those of a rehearsal beside the real ones, unless a flag names the place."""
        path = Path(self.job.spec.output.path)
        if self.job.origins.get("output.path") == "flag":
            return path
        return path.with_stem(path.stem + SUFFIXES[self.kind])

    @property
    def output_columns(self) -> list[str]:
        """Input columns that the output repeats."""
        text = None if self.job.spec.output.include_text else self.job.spec.input.text
        return [name for name in self.source.schema if name != text]

    @property
    def form(self) -> Form:
        """How the output is written."""
        output, json = self.job.spec.output, self.source.json_columns.intersection(self.output_columns)
        return Form(self.output.suffix, output.csv_safe, output.excel, json)

    def check_input(self, looked_into: bool = False) -> None:
        """Raise `InputChanged` when the input's files are not what they were when they were opened; see `Source`."""
        if change := self.source.changed(looked_into):
            raise InputChanged(
                f"the input changed while the run went on: {change}\n"
                f"Every answer is safe in {self.directory}, beside the input that it was asked of.",
                "put the input back as it was, and the same command goes on; `--fresh` begins anew with the one of now",
            )

    def documents(
        self, wanted: Callable[[int], bool] = lambda row: True, order: Order | None = None
    ) -> Iterator[Iterator[Document]]:
        """The job's rows that are `wanted`, in batches of bounded size, each to be used up before the next.

        `order` is that in which blocks of them are read, and has all of them; None is that of the table.
        """
        if order:
            for frames in woven(order, self._batches):
                yield (document for frame in frames for document in self._wanted(frame, wanted))
            return
        for frame in self._batches():
            yield self._wanted(frame, wanted)
            if frame.item(-1, ROW) >= self.rows - 1:
                return

    def _batches(self) -> Iterator[pl.DataFrame]:
        try:
            yield from self.source.batches()
        except InputError:  # one that is gone, or half written by now, was not damaged before
            self.check_input()
            raise

    def _wanted(self, frame: pl.DataFrame, wanted: Callable[[int], bool]) -> Iterator[Document]:
        self.check_input()  # what was read before this moment is of the table that was checked
        pilot = self.options.pilot
        chosen = frame.filter(pl.col(ROW) < self.rows, True if pilot is None else pl.col(ROW).is_in(pilot))
        return (document for document in self.source.documents(chosen) if wanted(document.row))

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
            offline=self.kind == "offline",
            rehearsal=self.kind == "rehearsal",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            prices_dated=CHECKED.isoformat(),
            versions={"prompt-pipeline": __version__} | {name: version(name) for name in ("polars", "genai-prices")},
        )


def prepare(job: Job, options: Options, redo: Job | None = None) -> Session:
    """Open and check everything that can be wrong before anything is spent. Raises `PipelineError`.

    `redo` is the job as `--set` changes it for the rows that are redone.
    """
    check_model(job, options.offline)
    spec = job.spec.input
    source = open_source(
        spec.path, id=spec.id, text=spec.text, where=spec.where, encoding=spec.encoding, separator=spec.separator
    )
    kinds = source.kinds
    for template, own in job.templates:
        check_template(template, kinds, own, spec.text)
    source = source.showing(job.reads(kinds))
    source.check()
    rows = source.count() if options.limit is None else min(source.count(), options.limit)
    session = Session(job, source, rows, options, redo, "offline" if options.offline else "real", options.offline)
    check_rendering(job, chain.from_iterable(session.documents()))
    for template, own in job.templates:
        names = [name for name in source.columns if source.kinds[name] == "text" and name not in own]
        asked = [name for name in names if name in template.uses.truths]
        for frame in source.batches(columns=asked) if asked else ():
            for name in asked:
                check_truths(template, name, frame[name].cast(pl.String).drop_nulls().unique().to_list())
            break
    for path in (job.spec.output.path, str(session.output)):  # what a real run would refuse, a rehearsal refuses too
        output_conflict(source, path)
    output_schema(session_schema(session), session.output)
    attempt(session_schema(session), session.form, BytesIO())
    session.check_input(looked_into=True)
    return session


async def identified(session: Session) -> Session:
    """The session as a whole real or a rehearsal, by what the service says it is; free of charge, asked once."""
    if session.asked:
        return session
    async with open_provider(session.job, session.options.offline) as provider:
        return await asked(session, provider)


async def asked(session: Session, provider: Gemini) -> Session:
    """As `identified`, with the service open."""
    if session.asked:
        return session
    told = replace(session, kind="rehearsal" if await provider.is_emulator() else "real", asked=True)
    output_conflict(told.source, str(told.output))
    return told


def session_schema(session: Session) -> pl.Schema:
    """Types of the input columns that the output repeats."""
    return pl.Schema({name: session.source.schema[name] for name in session.output_columns})


def check_model(job: Job, offline: bool) -> None:
    """Raise `JobError` for a model that Google's endpoint does not serve, as far as this version knows."""
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


@asynccontextmanager
async def open_provider(job: Job, offline: bool) -> AsyncIterator[Gemini]:
    """The service that answers: the one the job names, or the embedded emulator through the same client."""
    endpoint = job.spec.endpoint
    if offline:
        from pipeline.emulator import Emulator, EmulatorOptions  # takes 40 ms, and nothing else needs it

        emulator = Emulator(EmulatorOptions(any_model=True, track_prompts=0))
        async with Wire(httpx.ASGITransport(emulator)) as wire:
            yield Gemini(wire, base_url="http://emulator", api_key="offline", timeout_s=endpoint.timeout_s)
        return
    check_certificates()
    key = api_key(job)
    async with Wire() as wire:
        yield Gemini(
            wire,
            base_url=endpoint.base_url or DEFAULT_BASE_URL,
            api_version=endpoint.api_version,
            api_key=key,
            timeout_s=endpoint.timeout_s,
        )


def limits_of(job: Job, offline: bool, pace: bool = False) -> Limits:
    """The configured limits. Offline only those that a flag names, or with `pace` all: the emulator has none itself."""
    limits = job.limits
    if not offline:
        return limits
    rpm, tpm, rpd = (
        (getattr(limits, meter) or 0) if pace or job.origins.get(f"limits.{meter}") == "flag" else 0 for meter in METERS
    )
    return replace(limits, rpm=rpm, tpm=tpm, rpd=rpd)


async def check_service(session: Session, forget: bool = False) -> list[tuple[str, str, str]]:
    """Ask the service whether the key and the model are good; free of charge. Raises `PipelineError`.

    What earlier runs learned of the quota is told, and with `forget` forgotten.
    """
    job = session.job
    async with open_provider(job, session.options.offline) as provider:
        found = await provider.list_models()
        if isinstance(found, Failure):
            if found.kind == "proxy":
                raise refused_by_proxy(found)
            if found.kind == "auth":
                raise AuthError(
                    f"{provider.endpoint} refuses the key: {found.message}", "look at the key; nothing was spent"
                )
            raise ServiceError(
                f"{provider.endpoint} does not answer as it should: {found.message}",
                "check the key and [endpoint] base_url; nothing was spent",
            )
        names = [model.name for model in found]
        if job.params.model not in names:
            raise JobError(
                f"{provider.endpoint} does not offer {job.params.model} to this key",
                _offered(job.params.model, names),
            )
        told = await asked(session, provider)
        answers = "answers; it is an emulator: a run is a rehearsal" if told.rehearsal else "answers"
        facts = [("endpoint", provider.endpoint, answers), ("model", job.params.model, "offered to this key")]
        return facts if session.options.offline else [*facts, *_learned(told, provider.endpoint, forget)]


def _offered(model: str, names: list[str]) -> str:
    """What is closest to the model that was asked for, or some of what there is."""
    if close := difflib.get_close_matches(model, names, n=1):
        return f"did you mean {close[0]}?"
    return f"it offers {', '.join(names[:12])}" if names else "it offers no model at all"


def _learned(session: Session, endpoint: str, forget: bool) -> Iterator[tuple[str, str, str]]:
    """What earlier runs left in the quota book that holds up the next, or would have."""
    job = session.job
    path, name = quota_place(job, endpoint, session.kind)
    now = time.time()
    known = read_known(path, name, day_of(now, job.limits.reset_zone), now)
    limits = [(meter, f"{limit:,.0f}") for meter, limit in (("rpm", known.rpm), ("tpm", known.tpm)) if limit]
    if forget:
        with QuotaBook(path, name) as book:
            book.forget()
        forgotten = [*(f"{meter} {limit}" for meter, limit in limits), *["day used up"] * bool(known.day_opens_at)]
        yield "forgotten", ", ".join(forgotten) or "nothing", "of what earlier runs learned of this quota"
        return
    for meter, limit in limits:
        yield meter, limit, "learned; `--forget` forgets it"
    if known.day_opens_at is not None:
        yield "day", "used up", f"it returns {until_text(now, known.day_opens_at)}; `--forget` forgets it"
