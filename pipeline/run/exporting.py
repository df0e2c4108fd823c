"""The table of a run, written at will: of one that goes on elsewhere, that ended, or that an edit left behind."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from pipeline.errors import InputError, PipelineError, RunStateError
from pipeline.job import Job, former, load
from pipeline.places import run_directory
from pipeline.report.calls import CALL_COLUMNS
from pipeline.report.calls import frames as call_frames
from pipeline.report.events import Started, read_events
from pipeline.run.known_input import known_input
from pipeline.run.output import restoring, results_of, unsealed_of
from pipeline.run.prepare import Options, Session, files_of, session_schema
from pipeline.source import Source, output_conflict
from pipeline.store import notes
from pipeline.store.export import ROW, Form, ResultsByRow, Unsealed, attempt, export, write_frames
from pipeline.store.joined import Joined
from pipeline.store.manifest import Lock, Manifest
from pipeline.store.manifest import read as read_manifest
from pipeline.store.object_place import held_url
from pipeline.store.parts import read_parts
from pipeline.store.place import Counted, Output, held
from pipeline.store.units import is_cut, units
from pipeline.urls import Url, is_url, located

SUFFIXES = (".parquet", ".csv", ".jsonl")
_BATCH_ROWS = 1024
_READ_OUT = ("output", "tools", "redact", "prompt.flow")


@dataclass(frozen=True, slots=True)
class View:
    """What there is of a run at one moment; `lacks` says what of its table there is not any more, and why."""

    directory: Path
    manifest: Manifest
    rows: int
    own: pl.Schema
    form: Form
    results: Path | Joined
    unsealed: Unsealed | None  # of one directory
    session: Session | None  # where its input is what it was
    lacks: tuple[str, ...]

    def put(self, path: Path | Url, overwrite: bool) -> Counted:
        """Write the table to `path`, whose suffix says how, and say what is in it; the run's files are only read.

        Unless it is the run's own output: the run then must not go on, and notes it as its own. Raises `InputError` for
        a place or a format that does not do, `InputChanged`, `OutputError` and `RunStateError` as a run does.
        """
        form = replace(self.form, suffix=path.suffix)

        def trial(file: BinaryIO) -> None:
            attempt(self.own, form, file)

        return self._put(path, overwrite, "--to", trial, lambda file: self._write(file, form), self._check)

    def frame(self) -> pl.DataFrame:
        """The table, whole in memory. Raises `InputChanged` as a run does."""
        file = BytesIO()
        self._write(file, replace(self.form, suffix=".parquet"))
        self._check()
        file.seek(0)
        return pl.read_parquet(file)

    def put_calls(self, path: Path | Url, overwrite: bool) -> int:
        """Write the table of all calls to `path`, and say how many rows it has; else as `put`."""
        if self._is_own(path):
            raise InputError(f"{path} is the output of {self.directory}", "name another file with `--calls`")
        form, schema = Form(path.suffix, csv_safe=True), pl.Schema(CALL_COLUMNS)
        rows = 0

        def counted(found: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
            nonlocal rows
            for frame in found:
                rows += frame.height
                yield frame

        def write(file: BinaryIO) -> Counted:
            write_frames(counted(call_frames(self.directory)), schema, form, (), file, _BATCH_ROWS)
            return Counted(rows, rows)

        def trial(file: BinaryIO) -> None:
            write_frames(iter([pl.DataFrame(schema=schema)]), schema, form, (), file)

        return self._put(path, overwrite, "--calls", trial, write, lambda: None).rows

    def _put(
        self,
        path: Path | Url,
        overwrite: bool,
        flag: str,
        trial: Callable[[BinaryIO], None],
        write: Callable[[BinaryIO], Counted],
        check: Callable[[], None],
    ) -> Counted:
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path} must end in one of {' '.join(SUFFIXES)}", "the ending says the format")
        self._refuse_input(path)
        is_own, directory = self._is_own(path), self.directory
        try:
            with ExitStack() as holding:
                if is_own:
                    holding.callback(self._locked(path).release)
                if isinstance(path, Url):
                    place: Output = holding.enter_context(
                        held_url(path, None, directory, None, overwrite, trial, noted=is_own)
                    )
                else:
                    place = holding.enter_context(held(path, directory, None, overwrite, trial, noted=is_own))
                return place.replace([write], check)
        except PipelineError as error:
            if "--out" in error.hint:
                error.hint = f"name another file with `{flag}`; `--overwrite` replaces one that is there"
            raise

    def _refuse_input(self, path: Path | Url) -> None:
        if self.session:
            output_conflict(self.session.source, str(path))
        elif _is_same(path, self.manifest.source_path):
            raise InputError(f"{path} is the input", "name another file")

    def _is_own(self, path: Path | Url) -> bool:
        return _is_same(path, notes.last_output(self.directory) or self.manifest.output)

    def _locked(self, path: Path | Url) -> Lock:
        if Lock.held(self.directory / "lock"):
            raise RunStateError(
                f"{path} is the output of {self.directory}, which goes on and writes it itself every few minutes",
                "name another file",
            )
        return Lock(self.directory / "lock")

    def _check(self) -> None:
        if self.session:
            self.session.check_input(looked_into=True)

    def _write(self, file: BinaryIO, form: Form) -> Counted:
        session, results = self.session, self.results
        if session is None:
            return export(lambda: self._known(), self.own, results, file, form, self.rows, unsealed=self.unsealed)
        source, json = session.source, form.suffix == ".jsonl"
        columns = [*self.own, *({source.id} - self.own.keys() if source.id else ())]
        return export(
            lambda: source.batches(columns=columns, size=_BATCH_ROWS, json=json),
            self.own,
            results,
            file,
            form,
            self.rows,
            source.keys,
            _restored(session, self.manifest),
            self.unsealed,
        )

    def _known(self) -> Iterator[pl.DataFrame]:
        """Rows by what their results say of them: the id of those that are finished."""
        (name,) = self.own
        results = self.results
        found = ResultsByRow(results, (), self.unsealed) if isinstance(results, Path) else results.by_row(())
        for start in range(0, self.rows, _BATCH_ROWS):
            stop = min(start + _BATCH_ROWS, self.rows)
            numbers = pl.DataFrame({ROW: pl.int_range(start, stop, dtype=pl.Int64, eager=True)})
            keys = found.between(start, stop - 1).select(ROW, pl.col("key").alias(name))
            yield numbers.join(keys, on=ROW, how="left", maintain_order="left")


def view(directory: Path, job: Job | None = None) -> View:
    """What can be written of the run in a directory, which may go on meanwhile; None is the job that it names.

    Raises `RunStateError` for a directory that is none of a run, or damaged.
    """
    manifest = read_manifest(directory / "manifest.json")
    if manifest is None:
        raise RunStateError(f"{directory} is not a run directory", "`pipeline runs` lists them")
    unsealed = None if is_cut(directory) else unsealed_of(directory)
    rows, lacks = _covered(directory), list[str]()
    session, form = None, Form("")
    own = pl.Schema({(manifest.identity.get("input") or {}).get("id") or "row": pl.String()})
    try:
        job = job or _job_of(manifest)
        source = _as_it_was(job, manifest, directory)
        rows = source.count() if rows is None else rows
        session = Session(job, source, rows, Options(), None, manifest.kind)
        own = session_schema(session)
    except (PipelineError, OSError) as error:
        lacks.append(f"the columns of the input, but for the id: {str(error).splitlines()[0]}")
    if job is not None:
        output, json = job.spec.output, session.form.json_columns if session else frozenset[str]()
        form = Form("", output.csv_safe, output.excel, json, job.answer_columns if _reads_alike(job, manifest) else ())
    edited = f"{manifest.job_path} is not what it was"
    if any(_part(manifest.identity, name) for name in _READ_OUT) and not (job and _reads_alike(job, manifest)):
        lacks.append(f"the columns that are read out of answers: {edited}")
    if manifest.identity.get("redact") and not (session and session.job.fingerprint == manifest.fingerprint):
        lacks.append("what [redact] hid, in place of its placeholders: job or input is not what it was")
    rows = _reached(directory) if rows is None else rows
    return View(directory, manifest, rows, own, form, results_of(directory), unsealed, session, tuple(lacks))


def _job_of(manifest: Manifest) -> Job:
    """The job of a run: its file's, or where a program made it in no file what the run keeps of it."""
    path = Path(manifest.job_path)
    if not path.exists():
        of_run = manifest.identity, manifest.fingerprint, manifest.output, manifest.source_path
        if (kept := former(path, *of_run)) is not None:
            return kept
    return load(path, {"model.name": manifest.model})


def _is_same(path: Path | Url, other: str) -> bool:
    if isinstance(path, Url) or is_url(other):
        return str(path) == other
    return os.path.realpath(path) == os.path.realpath(other)


def beside_output(manifest: Manifest, directory: Path, format: str | None = None) -> Path | Url:
    """Where a table goes that nobody named a place for: beside the run's output, with `-export` in its name."""
    output = located(manifest.output)
    number = "" if directory == run_directory(manifest.job, manifest.kind) else f"@{manifest.generation}"
    suffix = output.suffix if output.suffix in SUFFIXES else ".parquet"  # of a folder
    return output.with_name(f"{output.stem}-export{number}{f'.{format}' if format else suffix}")


def _as_it_was(job: Job, manifest: Manifest, directory: Path) -> Source:
    """The input that the run began with. Raises `PipelineError` for one that is not there any more."""
    if job.identity["input"] != manifest.identity.get("input"):
        raise InputError(f"[input] of {manifest.job_path} is not what it was")
    source, is_same = known_input(job, directory, manifest)
    if not is_same:
        raise InputError(f"{manifest.source_path} is not what it was")
    return source.showing(job.reads(source.kinds)).having(files_of(job, source, manifest.kind != "real"))


def _reads_alike(job: Job, manifest: Manifest) -> bool:
    """Whether the job reads the same columns out of answers as when they were bought."""
    return all(_part(job.identity, name) == _part(manifest.identity, name) for name in _READ_OUT)


def _part(identity: Any, name: str) -> Any:
    for key in name.split("."):
        identity = (identity or {}).get(key)
    return identity


def _restored(session: Session, manifest: Manifest) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return restoring(session) if session.job.fingerprint == manifest.fingerprint else lambda frame: frame


def _covered(directory: Path) -> int | None:
    """Rows that the run covers by its newest session; None where it has begun none."""
    events = read_events(directory / "run.log")
    return next((event.rows for event in reversed(events) if isinstance(event, Started)), None)


def _reached(directory: Path) -> int:
    """Rows up to the last that has a result."""
    last = -1
    for unit in units(directory):
        frames = (*read_parts(unit.directory / "results", ("row",)), unsealed_of(unit.directory).frame)
        there = (frame.item(-1, "row") for frame in frames if frame.height)  # a part is in row order
        last = max([last, *(unit.first_row + row for row in there)])
    return last + 1
