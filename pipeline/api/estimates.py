"""What a job will take, before anything is sent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline import console, estimating
from pipeline.api.jobs import check_rows, opened
from pipeline.api.tables import Table
from pipeline.api.words import in_python
from pipeline.api.work import Ending, Work
from pipeline.job import Job
from pipeline.plan.amounts import Range
from pipeline.run import prepare, services
from pipeline.run.wishes import moment


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left of a job and what it takes; a range has `low`, `expected` and `high`."""

    job: str
    rows: int  # that are left to do
    rows_done: int
    calls: int
    input_tokens: int
    output_tokens: Range
    """All that is billed as output, thinking included."""
    cost_usd: Range | None
    """None: the price is unknown."""
    seconds: float
    finish_at: datetime
    """When it ends if it starts now."""
    notices: tuple[str, ...]
    """What deserves attention before the run."""
    details: Mapping[str, Any] = field(repr=False)
    """All that `pipeline estimate --json` prints, under the same keys."""

    def __str__(self) -> str:
        if not self.calls:
            return f"{self.job}: nothing is left to be sent, {console.things(self.rows_done, 'row')} done"
        cost = "at an unknown price"
        if self.cost_usd:
            low, expected, high = (console.money(Decimal(getattr(self.cost_usd, n))) for n in _NAMES)
            cost = f"about {expected} ({low} to {high})"
        return (
            f"{self.job}: {console.things(self.rows, 'row')}, {console.things(self.calls, 'call')},"
            f" {self.input_tokens:,} tokens in, about {int(self.output_tokens.expected):,} out, {cost},"
            f" {console.duration(self.seconds)}"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows of it."""
        printer.text("\n".join([str(self), *self.notices]))


_NAMES = ("low", "expected", "high")


def estimate(
    job: Job | str | Path,
    table: Table | None = None,
    *,
    offline: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    exact: bool = False,
    compare: bool = False,
    every_row: bool = False,
    by: str | datetime | None = None,
) -> Estimate:
    """What is left of a job and what it takes: the numbers of `pipeline estimate`, whose flags these are.

    Nothing is sent but what `exact` has the service count, free of charge. `every_row` counts a large table whole.
    It works where an event loop runs, and holds it up. Raises `PipelineError`.
    """

    def work(ending: Ending) -> Estimate:
        loaded = opened(job, table)
        wishes = estimating.Wishes(every_row, exact, compare, moment(loaded, by))
        session = prepare.prepare(loaded, prepare.Options(offline, limit))

        async def made() -> estimating.Estimate:
            nonlocal session
            if exact or sample is not None:
                session = await services.identified(session)
            if sample is not None:
                session, _, _ = await estimating.sampled(session, sample)
            return await estimating.estimate(session, wishes)

        return told(loaded.name, ending.run(made))

    with in_python():
        check_rows(limit=limit, sample=sample)
        return Work(work).wait()


def told(job: str, made: estimating.Estimate) -> Estimate:
    """An estimate as it is handed out."""
    plan, cost = made.plan, made.plan.cost_usd
    return Estimate(
        job=job,
        rows=plan.documents,
        rows_done=plan.documents_done,
        calls=int(plan.prompts.expected),
        input_tokens=int(plan.input_tokens.expected),
        output_tokens=plan.output_tokens,
        cost_usd=cost and Range(*(round(Decimal(usd), 8) for usd in (cost.low, cost.expected, cost.high))),
        seconds=plan.timeline.seconds,
        finish_at=plan.timeline.finish_at,
        notices=plan.notices,
        details=console.plan_json(made),
    )
