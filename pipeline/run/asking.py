"""What was asked for a row, made again from its input by the job's own flow: prompts are stored nowhere."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import flows
from pipeline.errors import Halted, PipelineError
from pipeline.job import load
from pipeline.prompts import Prompt
from pipeline.records import Document, Reply
from pipeline.run.prepare import files_of, open_input
from pipeline.source import Source
from pipeline.source.documents import ROW
from pipeline.store.manifest import Manifest

_SLICE = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts of a row, each with its place among `calls`; or `why_not` they cannot be made again."""

    prompts: tuple[tuple[Prompt, int | None], ...] = ()
    why_not: str = ""


async def asked(manifest: Manifest, row: int, calls: Sequence[Mapping[str, Any]]) -> Asked:
    """What was asked for a row, as `[redact]` left it; `calls` are those that were made for it, oldest first."""
    path = Path(manifest.job_path)
    try:
        job = load(path, {"model.name": manifest.model})
        source = open_input(job.spec)
        if job.fingerprint != manifest.fingerprint:
            return Asked(why_not=f"{path} is not what it was when this was asked")
        if source.fingerprint != manifest.source:
            return Asked(why_not=f"{manifest.source_path} is not what it was when this was asked")
        source = source.showing(job.reads(source.kinds)).having(files_of(job, source, manifest.kind != "real"))
        source = source.ruled([route.where for route in job.spec.route if route.where])
        document = _document(source, row)
    except (PipelineError, OSError) as error:
        return Asked(why_not=str(error).splitlines()[0])
    found: list[tuple[Prompt, int | None]] = []

    async def call(prompt: Prompt) -> Reply:
        at = _place(prompt, [prompt.fingerprint(model) for model in job.models_of(prompt.step)], calls)
        found.append((prompt, at))
        if at is None:
            raise Halted
        return Reply(calls[at]["text"] or "", calls[at]["status"], error_kind=calls[at]["error_kind"], raw=b" ")

    with suppress(Halted):
        await flows.run(document, job, call)
    return Asked(tuple(found))


def _place(prompt: Prompt, names: Sequence[str], calls: Sequence[Mapping[str, Any]]) -> int | None:
    """The newest call that asked this prompt, or what stood at its place with other settings, as `--set` has it."""
    own = prompt.step, prompt.level, prompt.chunk
    same = [at for at, call in enumerate(calls) if call["fingerprint"] in names]
    there = [at for at, call in enumerate(calls) if (call["step"], call["level"], call["chunk"]) == own]
    return max(same or there, default=None)


def _document(source: Source, row: int) -> Document:
    for frame in source.batches(size=_SLICE):
        if frame.item(-1, ROW) >= row:
            return next(source.documents(frame.filter(frame[ROW] == row)))
    raise PipelineError(f"{source.table.path} has no row {row}")
