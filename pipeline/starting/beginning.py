"""A job begun: put together from what was found, checked as a run would check it, and written."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path

from pipeline.errors import InputError
from pipeline.job import Job
from pipeline.job.loading import compiled
from pipeline.job.schema import job_schema, schema_text
from pipeline.run import prepare
from pipeline.sections import JobFile
from pipeline.source import open_source, output_conflict
from pipeline.starting.choosing import check_task, text_of
from pipeline.starting.composing import SCHEMA, Start, job_text
from pipeline.starting.looking import LISTED, Found, longest_tokens, look_at_folder, look_at_table, stem_of
from pipeline.starting.words import Language, Task
from pipeline.starting.writing import example, free_name, job_path, output_path, renew, written

_FOLDERS = ("results", "answers")
_SUFFIXES = {".parquet": ".parquet", ".jsonl": ".jsonl", ".ndjson": ".jsonl"}


@dataclass(frozen=True)
class Begun:
    """A job file that was written, and what it was made from."""

    job: Job
    start: Start


@contextmanager
def opened(what: str) -> Iterator[Found]:
    """A table, or the files of a folder as one, which is written beside the job to be. Raises `InputError`.

    Nothing of it is left where the block fails.
    """
    inside = look_at_folder(what) if Path(what).is_dir() else what
    if isinstance(inside, str):
        yield look_at_table(inside)
        return
    stem = stem_of(str(inside.path.resolve()))
    path = free_name(f"{stem}-{LISTED}s", ".csv")
    with written({Path(path): inside.listing}):
        found = look_at_table(path, inside.path.as_posix())
        yield replace(found, stem=stem, listed=True, left_out=inside.left_out)


@contextmanager
def opened_example(language: Language) -> Iterator[Found]:
    """A table to try things on, which is written here."""
    path = free_name("example", ".csv")
    with written({Path(path): example(language)}):
        yield replace(look_at_table(path), listed=True)


def begin(
    found: Found, task: Task, comments: Language | None = None, *, text: str | None = None, to: str | None = None
) -> Begun:
    """Write a job about a table. Raises `PipelineError`, and then nothing was written.

    `comments` is the language of the comments; None: that of the input. `text` is the column that is asked about.
    """
    check_task(found.profile, task, found.path)
    column = text_of(found.profile, task, text)
    path = job_path(found.stem, to)
    language: Language = "zh" if found.profile.is_chinese else "en"
    start = Start(
        found.path,
        found.profile,
        task,
        language,
        comments or language,
        found.rows,
        found.id,
        column,
        max(longest_tokens(found, column.name), round(column.tokens)) if column else 0,  # most bytes, not most tokens
        found.encoding,
        found.separator,
        found.files_root,
        found.has_scans,
    )
    out, from_excel = _output(found, path.stem), Path(found.path).suffix.lower() == ".xlsx"
    schema = path.with_name(SCHEMA)
    files, is_ours = ({}, _is_ours(schema)) if schema.exists() else ({schema: schema_text()}, True)
    made = job_text(
        start,
        out,
        excel=out.endswith(".csv") and (found.encoding is not None or language == "zh" or from_excel),
        has_schema=is_ours,
    )
    job = compiled(path, JobFile.model_validate(tomllib.loads(made)), {})
    prepare.prepare(job, prepare.Options(offline=True))
    with written({**files, path: made}):
        if is_ours:
            _refresh(schema)
        return Begun(job, start)


def _refresh(schema: Path) -> None:
    """Have editors know the settings of this version: another one may have written the schema."""
    with suppress(OSError):
        if (now := schema_text()) != schema.read_text("utf-8"):
            renew(schema, now)


def _is_ours(schema: Path) -> bool:
    try:
        return job_schema()["title"] in schema.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _output(found: Found, stem: str) -> str:
    """A place for the answers that is new, and that no pattern of the input would read."""
    suffix = _SUFFIXES.get(Path(found.path.removesuffix(".gz")).suffix.lower(), ".csv")
    places = [output_path(stem, suffix, folder) for folder in _FOLDERS]
    if has_magic(found.path):
        source = open_source(found.path, encoding=found.encoding, separator=found.separator)
        for place in places:
            with suppress(InputError):
                output_conflict(source, place)
                return place
    return places[0]
