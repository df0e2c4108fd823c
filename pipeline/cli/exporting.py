"""`pipeline export`: the table of a run, at will."""

from enum import StrEnum
from typing import Annotated

import typer

from pipeline.cli.flags import Json, Run


class Format(StrEnum):
    """How a table is written."""

    parquet = "parquet"
    csv = "csv"
    jsonl = "jsonl"


def export(
    run: Run = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="FILE", help="write it there: .parquet, .csv or .jsonl; may be repeated"),
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="parquet, csv or jsonl: write it beside the run's output, as NAME-export.csv; may be repeated",
        ),
    ] = None,
    calls: Annotated[
        str | None,
        typer.Option(
            "--calls",
            metavar="FILE",
            help="write every call there, with tokens, cost, latency and what became of it, and requests that failed",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
    json: Json = False,
) -> None:
    """Write the table of a run, as it is now.

    Also while the run goes on, of which it only reads, and of an earlier generation (NAME@1). Rows that are not
    finished are `pending`. Without --to and --format it is written beside the run's output, in its format. What cannot
    be written any more is said: columns of an input that changed since, and what an edited job reads out of its
    answers.

    --calls writes a table of calls, which has no prompt, no answer and no id of a row; the table of rows is then
    written only where --to or --format asks for it.
    """
    from pipeline import console
    from pipeline.report.finding import find_run
    from pipeline.run.exporting import beside_output, view
    from pipeline.urls import located

    directory = find_run(run)
    seen = view(directory)
    places = [*map(located, to or ()), *(beside_output(seen.manifest, directory, each.value) for each in formats or ())]
    written: list[dict[str, object]] = []
    if calls is not None:
        made = seen.put_calls(located(calls), overwrite)
        written.append({"file": calls, "calls": made})
        if not json:
            console.show_exported_calls(calls, made, seen.manifest.kind)
    for path in places or ([] if calls else [beside_output(seen.manifest, directory)]):
        counted = seen.put(path, overwrite)
        written.append({"file": str(path), "rows": counted.rows, "finished": counted.finished})
        if not json:
            console.show_exported(path, counted, seen.manifest.kind)
    if json:
        told = {"run_dir": str(directory), "rehearsal": seen.manifest.kind != "real", "lacks": list(seen.lacks)}
        console.show_json({**told, "files": written})
        return
    for each in seen.lacks if places or not calls else ():
        console.show_hint(f"not in it: {each}")
