"""What a run came to, in numbers and as a frame."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import console, report
from pipeline.api.jobs import with_path
from pipeline.api.words import in_python
from pipeline.errors import PipelineError
from pipeline.job import Job
from pipeline.report.finding import find_run
from pipeline.run.exporting import view
from pipeline.urls import is_url


@dataclass(frozen=True, slots=True)
class Results:
    """A run in numbers; its rows are read from its directory when they are asked for."""

    job: str
    status: str
    """finished, stopped, left (to batches), sample, interrupted (also by a kill) or running."""
    stopped: PipelineError | None
    """Why it ended early, with what to do about it; None where it did not, and of a run that is read."""
    rows: int
    """That the run covers."""
    outcomes: Mapping[str, int]
    """Rows by what became of them: ok, truncated, blocked, invalid, failed; those without an outcome are in none."""
    causes: Mapping[str, int]
    """Rows that are not ok by their cause."""
    calls: int
    """Replies that were paid for."""
    input_tokens: int
    output_tokens: int
    """Without thinking."""
    thinking_tokens: int
    cost_usd: Decimal | None
    """None: a price is unknown."""
    seconds: float
    directory: Path
    output: Path | str
    """The table that the run writes; a text where it lies in object storage."""
    details: Mapping[str, Any] = field(repr=False)
    """All that `pipeline report --json` prints, under the same keys."""
    _job: Job | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether every row is ok."""
        return self.outcomes.get("ok", 0) >= self.rows

    def frame(self) -> pl.DataFrame:
        """All rows in input order: the input's columns, then those of the answers, as in the output.

        Read from the run directory as it is now, whole into memory. A warning names columns that cannot be made any
        more. Raises `PipelineError`.
        """
        with in_python():
            found = view(self.directory, self._job)
            for lacking in found.lacks:
                warnings.warn(f"the frame lacks {lacking} (`pp.read(job)` takes the job itself)", stacklevel=2)
            return found.frame()

    def failed(self) -> pl.DataFrame:
        """The rows that are not ok, and why: row, key, status, error_kind, error, cost_usd."""
        with in_python():
            found = report.failures(self.directory)
        return pl.DataFrame([[getattr(each, name) for name in _FAILED] for each in found], schema=_FAILED, orient="row")

    def raise_if_stopped(self) -> "Results":
        """These results; raises what stopped the run early."""
        if self.stopped:
            raise self.stopped
        return self

    def __str__(self) -> str:
        done = f"{self.outcomes.get('ok', 0):,} of {console.things(self.rows, 'row')} ok"
        cost = "at an unknown price" if self.cost_usd is None else console.money(self.cost_usd)
        took = f"{console.things(self.calls, 'call')}, {cost}, {console.duration(self.seconds)}"
        lines = [f"{self.job}: {self.status}, {done}, {took} → {self.output}"]
        if self.causes:
            lines.append("not ok: " + ", ".join(f"{number:,} {name}" for name, number in self.causes.items()))
        lines += [text for text in (self.stopped.message, self.stopped.hint) if text] if self.stopped else []
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows of it."""
        printer.text(str(self))


_FAILED: Mapping[str, Any] = {
    "row": pl.Int64,
    "key": pl.String,
    "status": pl.String,
    "error_kind": pl.String,
    "error": pl.String,
    "cost_usd": pl.Float64,
}


def read(run: str | Path | Job | None = None) -> Results:
    """The results of a run that was made before, or goes on: its directory, the name of a job, or a job.

    None is the run that goes on, or else the one that was written to last. Raises `RunStateError`.
    """
    job = run if isinstance(run, Job) else None
    with in_python():
        summary = report.summarize(find_run(job.name if job else None if run is None else str(run)))
        return told(summary, None, job and with_path(job, summary.manifest.source_path))


def told(summary: report.Summary, stopped: PipelineError | None, job: Job | None) -> Results:
    """A summary as it is handed out."""
    return Results(
        job=summary.manifest.job,
        status=summary.status,
        stopped=stopped,
        rows=summary.rows,
        outcomes={status: number for status, number in summary.outcomes.items() if number},
        causes={cause.cause: cause.rows for cause in summary.causes},
        calls=summary.calls,
        input_tokens=summary.usage.input_tokens + summary.usage.tool_tokens,
        output_tokens=summary.usage.output_tokens,
        thinking_tokens=summary.usage.thinking_tokens,
        cost_usd=None if summary.unpriced else summary.cost_usd.normalize(),
        seconds=summary.seconds,
        directory=summary.directory,
        output=summary.output if is_url(summary.output) else Path(summary.output),
        details=summary.as_json(),
        _job=job,
    )
