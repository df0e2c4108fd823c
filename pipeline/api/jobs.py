"""A job, from its file or from a mapping, and the table that it is given."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.api.tables import Table, kept
from pipeline.api.words import in_python
from pipeline.errors import JobError
from pipeline.job import GIVEN, Job, laid_over, load_with, made
from pipeline.urls import located

_NOT_GIVEN = "(the table that is given)"


@in_python()
def load(job: str | Path | Mapping[str, Any] | Job, /, *, name: str | None = None, **sections: Any) -> Job:
    """A job from its file, from a mapping of its sections, or from another job, with `sections` laid over it.

    `name` is that of the run directory, and of the output where none is named beside it; a mapping needs one. Its
    `input.path` may be missing where `table=` gives a table. Raises `JobError`.
    """
    if name is not None and (not name.isprintable() or not name.strip(" .") or {*"/\\@"} & {*name} or name[0] == "."):
        raise JobError(f"a job cannot be called {name!r}: its run directory would be", "a plain name such as reviews")
    over = {section: _plain(values) for section, values in sections.items()}
    if isinstance(job, str | Path):
        loaded = load_with(Path(job), over)
    elif isinstance(job, Job):
        data = job.spec.model_dump(by_alias=True, exclude_unset=True)
        loaded = replace(made(job.path, laid_over(data, over)), name=job.name)
    elif name is None:
        raise JobError("a job that is no file needs a name", 'name="reviews" has it run in runs/reviews')
    else:
        usual = {"input": {"path": _NOT_GIVEN}, "output": {"path": f"results/{name}.parquet"}}
        given = {section: _plain(values) for section, values in job.items()}
        return replace(made(Path(name), laid_over(laid_over(usual, given), over)), name=name)
    if name is None or name == loaded.name:
        return loaded
    output = loaded.spec.output
    if "path" not in sections.get("output", {}):
        output = output.model_copy(update={"path": f"{located(output.path).with_stem(name)}{'/' * output.is_folder}"})
    return replace(loaded, name=name, spec=loaded.spec.model_copy(update={"output": output}))


def opened(job: Job | str | Path, table: Table | None) -> Job:
    """The job with its table. Raises `PipelineError`."""
    loaded = job if isinstance(job, Job) else load(job)
    given = loaded.spec.input
    if table is None:
        if given.path == _NOT_GIVEN:
            raise JobError(f"the job {loaded.name} has no table", "give it one: `table=`, or `path` in its input")
        return loaded
    return with_path(loaded, str(table) if isinstance(table, str | Path) else kept(table))


def with_path(job: Job, path: str) -> Job:
    """The job with the table at a path; one that was given in memory is read as it is kept."""
    changes = {"path": path} | ({"encoding": None, "separator": None} if path.startswith(GIVEN) else {})
    return replace(job, spec=job.spec.model_copy(update={"input": job.spec.input.model_copy(update=changes)}))


def check_rows(**numbers: int | None) -> None:
    """Raise `JobError` for what is no number of rows, by its name."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise JobError(f"{name} is a number of rows: {number} is none", "leave it out for all of them")


def _plain(value: Any) -> Any:
    """A value of Python as a job file has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    if isinstance(value, Path):
        return str(value)
    return float(value) if isinstance(value, Decimal) else value
