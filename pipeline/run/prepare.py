"""A job with its input and its service, opened and checked: everything before the first call."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from io import BytesIO
from itertools import chain
from pathlib import Path

import polars as pl

from pipeline.cells import leaves
from pipeline.documents.collecting import SCAN, Collected, Heard, unheard
from pipeline.errors import InputChanged, InputError, JobError
from pipeline.flows import check_rendering
from pipeline.job import GIVEN, Job
from pipeline.models import MODELS, model_info
from pipeline.places import Kind, beside, run_directory
from pipeline.prices import CHECKED, FREE, Rates
from pipeline.providers.uploads import INLINE_BYTES
from pipeline.records import Document, Limits, MediaKind
from pipeline.run.changes import Change
from pipeline.run.fitting import check_fits
from pipeline.sections import JobFile
from pipeline.source import Source, open_source, output_conflict
from pipeline.source.documents import ROW
from pipeline.source.files import Files, root_of
from pipeline.source.order import Order, woven
from pipeline.store.digests import Table
from pipeline.store.export import Form, attempt, output_schema
from pipeline.store.manifest import Manifest, differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.units import part_name
from pipeline.templates.checks import check_template, check_truths
from pipeline.urls import Url, located
from pipeline.version import __version__

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
    sampled: str = ""  # of `--sample`: how they were chosen
    changes: str | None = None  # [model] keys that `--set` changes for the rows of `retry`, as JSON
    pace: bool = False  # offline, obey the job's limits all the same
    overwrite: bool = False  # replace the output whoever wrote it, and whatever is in it
    by: datetime | None = None  # when the run should be done
    by_said: str = ""  # the same as it was said: at a later start, with batches out, it means the moment that it meant
    leave: bool = False  # end when only batches are waited for
    cancel_batches: bool = False  # cancel those that are out, take what they have, and ask nothing


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
    change: Change | None = None  # that the next generation begins with, while that is agreed to
    replaced: tuple[str, ...] = ()  # keys of rows that are done, and whose files are others than those asked about
    place: Path | None = None  # its run directory; None: that of the job's name
    workers: int = 1  # that it is planned for

    @property
    def rehearsal(self) -> bool:
        """Whether an emulator answers: it costs nothing, and shares nothing with real runs."""
        return self.kind != "real"

    @property
    def covered(self) -> int:
        """Rows that this session is to have done at its end."""
        return self.rows if self.options.pilot is None else len(self.options.pilot)

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
        return self.place or run_directory(self.job.name, self.kind)

    def days_of(self, quota: str, run: str | None = None) -> str:
        """Whose requests of a day count together: of real runs those of all on a quota, of a rehearsal its own.

        `run` is its identity; None: that of the run that the session would go on with, if any.
        """
        if not self.rehearsal:
            return quota
        if run is None and not self.options.fresh:
            known = read_manifest(self.directory / "manifest.json")
            run = known.run if known and not differences(known, self.manifest()) else None
        return f"{quota} {run or ''}"

    @property
    def max_usd(self) -> Decimal | None:
        """What the run may spend in all, earlier sessions included; the flag wins over the job file."""
        cap = self.job.spec.budget.max_usd
        return self.options.max_cost_usd or (None if cap is None else Decimal(str(cap)))

    @property
    def output(self) -> Path | Url:
        """Where the results are written: those of a rehearsal beside the real ones, unless a flag names the place."""
        path = located(self.job.spec.output.path)
        if self.job.origins.get("output.path") == "flag":
            return path
        return beside(path, self.kind)

    @property
    def output_file(self) -> Path | Url:
        """The same, or the first file in it."""
        output = self.job.spec.output
        return self.output / part_name(0, output.suffix) if output.is_folder else self.output

    @property
    def hashed(self) -> Table:
        """The columns of which each row is hashed, to tell what an edit of the table changed."""
        source = self.source
        names = dict.fromkeys(name for name in (source.text, *source.columns) if name is not None)
        kinds = {name: f"{source.schema[name]}{' as JSON' if name in source.json_columns else ''}" for name in names}
        held = {name: f"{source.schema[name]}, files by size and time" for name in source.path_columns}
        return Table(source.fingerprint, kinds | held)

    @property
    def output_columns(self) -> list[str]:
        """Input columns that the output repeats."""
        if self.job.spec.output.include_text:
            return list(self.source.schema)
        schema = self.source.schema
        held = {name for name in self.source.file_columns if name in schema and pl.Binary in leaves(schema[name])}
        texts = {self.job.spec.input.text, "text" if self.source.table.is_documents else None}
        return [name for name in self.source.schema if name not in held | texts]

    @property
    def form(self) -> Form:
        """How the output is written."""
        output, json = self.job.spec.output, self.source.json_columns.intersection(self.output_columns)
        return Form(output.suffix, output.csv_safe, output.excel, json, self.job.answer_columns)

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
        left = chosen.filter(pl.Series(map(wanted, chosen[ROW]), dtype=pl.Boolean))  # before documents are made of them
        return self.source.documents(left)

    def manifest(self) -> Manifest:
        """What this session's run belongs to."""
        return Manifest(
            job=self.job.name,
            job_path=str(self.job.path),
            fingerprint=self.job.fingerprint,
            identity=self.job.identity,
            source=self.source.fingerprint,
            source_path=self.job.spec.input.path,
            output=f"{self.output}{'/' if self.job.spec.output.is_folder else ''}",
            model=self.job.model,
            offline=self.kind == "offline",
            rehearsal=self.kind == "rehearsal",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            prices_dated=CHECKED.isoformat(),
            versions={"prompt-pipeline": __version__} | {name: version(name) for name in ("polars", "genai-prices")},
        )


def prepare(job: Job, options: Options, redo: Job | None = None, heard: Heard = unheard) -> Session:
    """Open and check everything that can be wrong before anything is spent. Raises `PipelineError`.

    `redo` is the job as `--set` changes it for the rows that are redone; `heard` is told how many documents are read.
    """
    for each in job.asked:
        check_model(each, options.offline)
    source = open_input(job.spec, heard)
    check_columns(job, source)
    session = prepared(job, options, source, redo)
    check_cells(session)
    check_output(session)
    session.check_input(looked_into=True)
    return session


def open_input(spec: JobFile, heard: Heard = unheard, kept: Collected | None = None) -> Source:
    """The table, as far as its columns; `kept` are its documents, where a run knows them. Raises `InputError` and
    `JobError`."""
    table = spec.input
    return open_source(
        table.path,
        id=table.id,
        text=table.text,
        where=table.where,
        encoding=table.encoding,
        separator=table.separator,
        sheet=table.sheet,
        heard=heard,
        kept=kept,
    )


def check_columns(job: Job, source: Source) -> None:
    """Raise `JobError` for a template that does not go with the table's columns, `InputError` for no conversations."""
    for name, setting in job.talks.items():
        _check_talk(name, setting, source)
    for template, own in job.templates:
        check_template(template, source.kinds, own, job.spec.input.text)


def _check_talk(name: str, setting: str, source: Source) -> None:
    path = source.table.path
    if name not in source.schema:
        hint = source.table.instead(name, f" ({setting})") or setting
        raise InputError(f"column `{name}` is not in {path}\nIt has: {', '.join(source.schema)}", hint)
    if source.kinds[name] not in ("text", None):
        raise InputError(
            f"column `{name}` of {path} is {source.schema[name]}: {setting} is a list, or its JSON text",
            setting,
        )


def prepared(job: Job, options: Options, source: Source, redo: Job | None = None) -> Session:
    """The session, with every row of its table looked at. Raises `InputError`."""
    source = source.showing(job.reads(source.kinds)).having(files_of(job, source, options.offline))
    source = source.ruled([route.where for route in job.spec.route if route.where]).first(options.limit)
    source.check()
    rows = source.count() if options.limit is None else min(source.count(), options.limit)
    return Session(job, source, rows, options, redo, "offline" if options.offline else "real", options.offline)


def files_of(job: Job, source: Source, offline: bool) -> Files | None:
    """Where the files of the rows lie, and how they are counted; None for a job without any."""
    given, held = job.spec.input, source.table.documents
    if given.scans and held is None:
        raise InputError(f"{given.path} is no folder of documents", "[input] scans is about those: leave it out")
    scans: tuple[tuple[MediaKind, str], ...] = (("pdf", SCAN),) if given.scans else ()
    columns = (*given.media, *scans)
    if not columns:
        return None
    in_memory = given.path.startswith(GIVEN)  # files that it names lie where the program runs
    root = Path() if in_memory and not given.files_root else root_of(given.path, given.files_root, source.table.remote)
    if held is not None and given.files_root is None:
        root = Path(held.found.root)
    if given.files_root is not None and not Path(given.files_root).is_dir():
        raise InputError(
            f"[input] files_root = {given.files_root!r} is no folder",
            f"it is looked for from {Path.cwd()}, where this command runs",
        )
    uploads = all(each.spec.endpoint.provider == "gemini" for each in job.asked)
    on_vertex = all(each.spec.endpoint.provider == "vertex" for each in job.asked)
    return Files(
        columns,
        root,
        job.model,
        None if uploads else inline_bytes(job),
        job.params.media_resolution,
        given.fetch_urls and not offline,
        ("https", "gs") if on_vertex else ("https",),
        held is not None and given.files_root is None,
    )


def inline_bytes(job: Job) -> int:
    """Of the files of a row, so many bytes are sent within the request."""
    megabytes = job.spec.input.inline_mb
    return INLINE_BYTES if megabytes is None else round(megabytes * 1_000_000)


def check_cells(session: Session) -> None:
    """Raise `JobError` for cells that the templates cannot take."""
    job, source = session.job, session.source
    _check_ids(session)
    check_rendering(job, chain.from_iterable(session.documents()))
    for template, own in job.templates:
        names = [name for name in source.columns if source.kinds[name] == "text" and name not in own]
        asked = [name for name in names if name in template.uses.truths]
        for frame in source.batches(columns=asked) if asked else ():
            for name in asked:
                check_truths(template, name, frame[name].cast(pl.String).drop_nulls().unique().to_list())
            break


def _check_ids(session: Session) -> None:
    """Raise `JobError` for an id that holds what must not be kept: the run directory names rows by it."""
    redactor, source = session.job.redactor, session.source
    if redactor is None or source.id is None:
        return
    for frame in source.batches(columns=[source.id]):
        for row, key in zip(frame[ROW], source.keys(frame), strict=True):
            if found := redactor.find(key):
                raise JobError(
                    f"the id of row {row} holds what [redact] hides ({found[0][2]}), and the run directory would name"
                    f" the row by it\n{session.job.path}, [input] id",
                    "name another column, or remove `id` to use row numbers",
                )


def check_output(session: Session) -> None:
    """Raise `InputError` and `JobError` for an output that could not have this table's columns, or is the input."""
    # What a real run would refuse, a rehearsal refuses too.
    for each in (session, replace(session, kind="real")):
        output_conflict(session.source, str(each.output_file))
    output_schema(session_schema(session), session.output_file, session.job.answer_columns)
    attempt(session_schema(session), session.form, BytesIO())


def session_schema(session: Session) -> pl.Schema:
    """Types of the input columns that the output repeats."""
    return pl.Schema({name: session.source.schema[name] for name in session.output_columns})


def check_model(job: Job, offline: bool) -> None:
    """Raise `JobError` for a model that Google does not serve, or that refuses a setting, as far as is known."""
    check_fits(job, datetime.now(UTC).date())
    if job.spec.endpoint.provider == "openai":
        return  # no other service's models are known
    name = job.model
    elsewhere = (job.spec.endpoint.base_url or job.protocol.base_url) != job.protocol.base_url
    if model_info(name) or job.own_rates or (elsewhere and not offline):
        return
    close = difflib.get_close_matches(name, [model.name for model in MODELS], n=1)
    raise JobError(
        f"{name} is not a known model\n{job.path}, [model] name",
        (f"did you mean {close[0]}? " if close else "")
        + "`pipeline models` lists prices; set [model] prices to use another",
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
