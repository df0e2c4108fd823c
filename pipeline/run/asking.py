"""What was asked for a row, made again from its input by the job's own flow: prompts are stored nowhere."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import flows
from pipeline.cells import leaves
from pipeline.errors import Halted, InputChanged, JobError, PipelineError
from pipeline.job import Job, former, load
from pipeline.prompts import Prompt
from pipeline.records import Document, Reply
from pipeline.run.known_input import known_input
from pipeline.run.prepare import files_of
from pipeline.source import Source
from pipeline.source.documents import ROW
from pipeline.store.manifest import Manifest
from pipeline.values import json_text

_SLICE = 4096
_CHANGED = " is not what it was when this was asked"


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts of a row, each with its place among `calls`; or `why_not` they cannot be made again."""

    prompts: tuple[tuple[Prompt, int | None], ...] = ()
    why_not: str = ""


async def asked(directory: Path, manifest: Manifest, row: int, key: str, calls: Sequence[Mapping[str, Any]]) -> Asked:
    """What was asked for a row of the run in a directory, as `[redact]` left it; `calls` are those that were made for
    it, oldest first.

    Of a table that changed since, only prompts are told that one of the calls has asked.
    """
    try:
        job, source, is_same = _opened(directory, manifest)
        source = source.having(files_of(job, source, manifest.kind != "real"))
        source = source.ruled([route.where for route in job.spec.route if route.where])
        changed = not is_same
        document = _document(source, row, key if changed and source.id is not None else None)
        if document is None:
            raise InputChanged(f"{manifest.source_path}{_CHANGED}")
    except (PipelineError, OSError) as error:
        return Asked(why_not=str(error).splitlines()[0])
    found: list[tuple[Prompt, int | None]] = []
    is_other = False

    async def call(prompt: Prompt) -> Reply:
        nonlocal is_other
        names = [prompt.fingerprint(model) for model in job.models_of(prompt.step)]
        if changed and not any(call["fingerprint"] in names for call in calls):
            is_other = True
            raise Halted
        at = _place(prompt, names, calls)
        found.append((prompt, at))
        if at is None:
            raise Halted
        return Reply(calls[at]["text"] or "", calls[at]["status"], error_kind=calls[at]["error_kind"], raw=b" ")

    with suppress(Halted):
        await flows.run(document, job, call)
    return Asked(tuple(found), f"{manifest.source_path}{_CHANGED}" if is_other else "")


def inputs(directory: Path, manifest: Manifest, wanted: Callable[[int], bool], chars: int) -> Iterator[tuple[int, str]]:
    """What each wanted row was asked about, as `[redact]` left it: the columns of its prompts, and names of its files.

    A text is cut after one character more than `chars`. Raises `PipelineError` where job or table are not what they
    were, and for a table that cannot be read.
    """
    job, source, is_same = _opened(directory, manifest)
    if not is_same:
        raise InputChanged(f"{manifest.source_path}{_CHANGED}")
    named = [name for _, name in job.spec.input.media if pl.Binary not in leaves(source.schema[name])]
    source = source.showing(tuple(dict.fromkeys((*source.columns, *named))))
    for frame in source.batches(size=_SLICE):
        chosen = frame.filter(pl.Series(map(wanted, frame[ROW]), dtype=pl.Boolean))
        for document in source.documents(chosen):
            shown = flows.redacted(document, job, job.redactor)[0] if job.redactor else document
            yield document.row, _as_text(shown, job)[: chars + 1]


def input_rows(directory: Path, manifest: Manifest, rows: Iterable[int]) -> dict[int, int]:
    """The number in the input of each of these rows, which are counted without those that `where` leaves out.

    Raises `PipelineError` as `inputs`.
    """
    job = _job(manifest)
    if job.spec.input.where is None:
        return {row: row for row in rows}
    source, is_same = known_input(job, directory, manifest)
    if not is_same:
        raise InputChanged(f"{manifest.source_path}{_CHANGED}")
    wanted, found, begin = sorted(rows), dict[int, int](), 0
    for numbers in source.input_numbers():
        at = bisect_left(wanted, begin), bisect_left(wanted, begin + len(numbers))
        found.update((row, numbers[row - begin]) for row in wanted[slice(*at)])
        begin += len(numbers)
    return found


def _as_text(document: Document, job: Job) -> str:
    """The one value that it has, or each with its name."""
    own = {} if document.text is None else {str(job.spec.input.text): document.text}
    values = {name: _plain(value) for name, value in {**document.fields, **own}.items()}
    if len(values) == 1:
        return next(iter(values.values()))
    return "\n".join(f"{name}: {value}" for name, value in values.items())


def _plain(value: object) -> str:
    if value is None:
        return ""
    return json_text(value) if isinstance(value, Mapping | list | tuple | bool) else str(value)


def _opened(directory: Path, manifest: Manifest) -> tuple[Job, Source, bool]:
    """The job as it was then, its table with the columns of prompts, and whether that is what it was. Raises
    `PipelineError`."""
    job = _job(manifest)
    source, is_same = known_input(job, directory, manifest)
    return job, source.showing(job.reads(source.kinds)), is_same


def _job(manifest: Manifest) -> Job:
    """The job as it was then. Raises `PipelineError`."""
    path = Path(manifest.job_path)
    job: Job | None = None
    trouble: PipelineError = InputChanged(f"{path}{_CHANGED}")
    try:
        job = load(path, {"model.name": manifest.model})
    except JobError as error:
        trouble = error
    if job is None or job.fingerprint != manifest.fingerprint:
        job = former(path, manifest.identity, manifest.fingerprint, manifest.output, manifest.source_path)
    if job is None:
        raise trouble
    return job


def _place(prompt: Prompt, names: Sequence[str], calls: Sequence[Mapping[str, Any]]) -> int | None:
    """The newest call that asked this prompt, or what stood at its place with other settings, as `--set` has it."""
    own = prompt.step, prompt.level, prompt.chunk
    same = [at for at, call in enumerate(calls) if call["fingerprint"] in names]
    there = [at for at, call in enumerate(calls) if (call["step"], call["level"], call["chunk"]) == own]
    return max(same or there, default=None)


def _document(source: Source, row: int, key: str | None) -> Document | None:
    """The row with this key, or where that is None of this number."""
    if (held := source.table.documents) is not None:  # looked for by names: texts of others are not needed
        for frame in source.batches(size=_SLICE, columns=list(dict.fromkeys(("path", source.id or "path")))):
            if (found := frame.filter(_is_it(source, frame, row, key))).height:
                one = held.frames([*source.needed], pl.col("path") == found.item(0, "path"), 1)
                return next(source.documents(next(one).select(pl.lit(found.item(0, ROW)).alias(ROW), pl.all())))
        return None
    for frame in source.batches(size=_SLICE):
        if (is_it := _is_it(source, frame, row, key)).any():
            return next(source.documents(frame.filter(is_it)))
    return None


def _is_it(source: Source, frame: pl.DataFrame, row: int, key: str | None) -> pl.Series:
    return frame[ROW] == row if key is None else pl.Series([each == key for each in source.keys(frame)])
