"""`pipeline diff`: two runs, or two generations of one, side by side."""

from typing import Annotated

import typer

from pipeline.cli.completing import run_names
from pipeline.cli.flags import Run
from pipeline.errors import JobError


def diff(
    run: Run = None,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="what the first is compared with: it is shown as the newer one; NAME@2 is a generation",
            autocompletion=run_names,
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=0, metavar="N", help="so many rows that differ; 20 unless it is said")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="every row that differs")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="print a JSON document of what differs, then one a line for each row")
    ] = False,
) -> None:
    """What changed between two runs: settings, outcomes, cost, answers.

    With one run, or none, it is compared with its generation before. Answers stand side by side where the terminal is
    100 columns wide, else one below the other. Rows are found in both by their ids, or else by their content.
    """
    from pipeline import console
    from pipeline.report.differences import Comparison
    from pipeline.report.finding import before, find_run

    if everything and rows is not None:
        raise JobError("--all shows every row, and --rows so many", "leave one of the two out")
    first = find_run(run)
    old, new = (before(first), first) if other is None else (first, find_run(other))
    if old.resolve() == new.resolve():
        raise JobError(f"{old} is compared with itself", "`pipeline diff NAME@1 NAME@2` compares two generations")
    with console.busy("comparing"):
        found = Comparison(old, new)
    most = None if everything else 20 if rows is None else rows
    if json:
        console.show_differences_json(found, most)
    else:
        console.show_differences(found, most)
