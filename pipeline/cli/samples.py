"""`--sample`: the session of so many rows."""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from pipeline.errors import JobError

if TYPE_CHECKING:
    from pipeline.run.prepare import Session


def check_sample(sample: int | None, others: Mapping[str, object]) -> None:
    """Raise `JobError` for a flag that says which rows, too."""
    for flag, value in others.items():
        if sample is not None and value is not None:
            raise JobError(f"--sample and {flag} each say which rows", "leave one of the two out")


def sampled(prepared: "Session", number: int, json: bool) -> "Session":
    """The session of a sample; ends the command where all of its rows are done. Raises `PipelineError`."""
    import anyio

    from pipeline import console, estimating, report
    from pipeline.run import services
    from pipeline.run.guards import check_alone

    prepared = anyio.run(services.identified, prepared)
    check_alone(prepared)
    with console.busy("reading the table"):
        trial, done, left = anyio.run(estimating.sampled, prepared, number)
    if left:
        return trial
    if json:
        console.show_json(report.summarize(trial.directory).as_json())
    rows, directory = console.things(trial.covered, "row"), shlex.quote(str(trial.directory))
    console.show_hint(f"the sample of {rows} is done: `pipeline show {directory}` has the answers")
    raise typer.Exit(0 if done["ok"] == trial.covered else 1)
