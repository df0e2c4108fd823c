"""The output of a session: its place tried and held before the first call, its table written at the end."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import polars as pl

from pipeline.errors import RESUMABLE, InputChanged, PipelineError
from pipeline.flows import redacted
from pipeline.providers.stored import parse_stored
from pipeline.redaction import restored, restored_json
from pipeline.run.parts import parts_of
from pipeline.run.prepare import Session, session_schema
from pipeline.store import afar
from pipeline.store.export import Unsealed, attempt, export
from pipeline.store.folder import held_folder
from pipeline.store.joined import Joined
from pipeline.store.object_place import held_url
from pipeline.store.parts import results_frame
from pipeline.store.place import Counted, Output, held
from pipeline.store.state import load_unsealed
from pipeline.store.units import Unit, is_cut, is_shard, units
from pipeline.urls import Url


def results_of(directory: Path) -> Path | Joined:
    """Where the sealed results of a run lie; those of shards with what each has not sealed yet."""
    if is_shard(directory):
        return Joined([Unit(directory)], unsealed_of)
    return Joined(units(directory), unsealed_of) if is_cut(directory) else directory / "results"


def unsealed_of(directory: Path) -> Unsealed:
    """What is not sealed yet in a run directory, which may be in use. Raises `RunStateError`."""
    batch = load_unsealed(directory, parse_stored)
    return Unsealed(batch.sealed, results_frame(batch.results.values()))


def output_place(session: Session) -> AbstractContextManager[Output | None]:
    """The output, tried and held by this run; a pilot writes none."""
    if session.options.pilot is not None:
        return nullcontext()

    def trial(file: BinaryIO) -> None:
        attempt(session_schema(session), session.form, file)

    most = None if session.options.limit is None else session.rows  # rows that an edit took away were agreed to
    output, directory, overwrite = session.output, session.directory, session.options.overwrite
    suffix = session.form.suffix if session.job.spec.output.is_folder else None
    if isinstance(output, Url):
        path = session.job.spec.run.path
        elsewhere = afar.tables_of(path, session.job.name, session.kind) if path else None
        return held_url(output, suffix, directory, most, overwrite, trial, elsewhere=elsewhere)
    if suffix:
        return held_folder(output, directory, most, suffix, overwrite, trial)
    return held(output, directory, most, overwrite, trial)


def restoring(session: Session) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """What puts back into the answers what `[redact]` hid, worked out anew from the rows: it is kept nowhere."""
    job, source = session.job, session.source
    redactor = job.redactor
    if redactor is None or job.spec.redact is None or not job.spec.redact.restore:
        return lambda frame: frame
    documents = (document for frame in source.batches() for document in source.documents(frame))
    values = (redacted(document, job, redactor)[1].values for document in documents)

    def restore(frame: pl.DataFrame) -> pl.DataFrame:
        hidden = list(islice(values, frame.height))
        there = [name for name in _ANSWERS if name in frame.columns]
        columns = (
            pl.Series(
                name,
                [text and _ANSWERS[name](text, each) for text, each in zip(frame[name], hidden, strict=True)],
                dtype=pl.String,
            )
            for name in there
        )
        return frame.with_columns(columns)

    return restore


_ANSWERS = {"response": restored, "extras": restored_json}
"""Columns of results that hold what the model wrote."""


def exported(session: Session, place: Output, stopped: PipelineError | None) -> PipelineError | None:
    """Write the output; or why it could not be, and the answers are in the run directory only."""
    if isinstance(stopped, InputChanged):
        return None  # it says so already

    try:
        replaced(session, place)
    except PipelineError as error:
        error.exit_code = RESUMABLE
        return error
    return None


def replaced(session: Session, place: Output, heed: Callable[[], None] = lambda: None) -> Counted:
    """Put a table of all that is sealed in its place, and say what is in it; `heed` may end it at any batch.

    In a folder each part of the input has one, of a run of shards each shard. Raises `InputChanged`, and what
    `Output.replace` and `heed` raise: the table that is there then stays.
    """
    session.check_input()
    parts = parts_of(session) if session.job.spec.output.is_folder else (session,)
    writes = (partial(_write, part, heed) for part in parts)
    return place.replace(writes, partial(session.check_input, looked_into=True))


def _write(session: Session, heed: Callable[[], None], file: BinaryIO) -> Counted:
    source, own = session.source, session_schema(session)
    columns = [*own, *({source.id} - own.keys() if source.id else ())]

    def batches() -> Iterator[pl.DataFrame]:
        for frame in source.batches(columns=columns, size=1024, json=session.form.suffix == ".jsonl"):
            heed()
            yield frame

    return export(
        batches,
        own,
        results_of(session.directory),
        file,
        session.form,
        session.rows,
        source.keys,
        restoring(session),
    )
