"""What a job will take, before anything is sent."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline import console, estimating
from pipeline.api.jobs import check_rows, opened
from pipeline.api.runs import agreed, check_workers, unseen
from pipeline.api.tables import Table
from pipeline.api.work import Asked, Ending, Work, awaited, waited
from pipeline.errors import JobError
from pipeline.fleet.hiring import split
from pipeline.job import Job
from pipeline.plan.amounts import Range
from pipeline.run import prepare, services
from pipeline.run.prepare import Session
from pipeline.run.run import run
from pipeline.run.wishes import moment, usd


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


@waited
def estimate(
    job: Job | str | Path,
    table: Table | None = None,
    *,
    offline: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    pilot: int | None = None,
    max_cost_usd: Decimal | float | str | None = None,
    yes: bool = False,
    exact: bool = False,
    compare: bool = False,
    every_row: bool = False,
    by: str | datetime | None = None,
    workers: int | None = None,
) -> Work[Estimate]:
    """What is left of a job and what it takes: the numbers of `pipeline estimate`, whose flags these are.

    Nothing is sent but what `exact` has the service count, free of charge, and the rows of `pilot`: so many are run
    first and kept, and the rest is told by their answers; what they cost is agreed to as in `run`. `every_row` counts a
    large table whole; `workers` says how many will share the run. It works where an event loop runs, and holds it up.
    Raises `PipelineError`, also for what stops a pilot.
    """
    cap = None if max_cost_usd is None else usd(str(max_cost_usd), "max_cost_usd")
    check_rows(limit=limit, sample=sample, pilot=pilot)
    check_workers(workers)
    if sample is not None and (limit is not None or pilot is not None):
        raise JobError("sample says which rows, and limit or pilot does too", "leave one of the two out")

    def work(ending: Ending) -> Estimate:
        loaded = opened(job, table)
        session = prepare.prepare(loaded, prepare.Options(offline, limit, cap))
        until = moment(loaded, by)

        async def made() -> estimating.Estimate:
            nonlocal session
            if exact or sample is not None or pilot is not None:
                session = await services.identified(session)
            if sample is not None:
                session, _, _ = await estimating.sampled(session, sample)
            shards: list[int] = []
            if workers is not None:
                session, shards = split(session, workers, pilot)
            wishes = estimating.Wishes(every_row, exact, compare, until, shards)
            if pilot is not None:
                await _try(session, pilot, yes, ending)
            return await estimating.estimate(session, wishes)

        return told(loaded.name, ending.run(made))

    return Work(work)


estimate_async = awaited(estimate, "The same in an event loop, of asyncio or trio, which goes on meanwhile.")


async def _try(session: Session, number: int, yes: bool, ending: Ending) -> None:
    """Run so many of the rows that are left, and keep them. Raises what stops that."""
    if not (rows := await estimating.pilot_rows(session, number)):
        return
    trial = replace(session, options=replace(session.options, pilot=rows))
    ended = await run(trial, agreed(yes, progress=False), unseen, heed=ending.heed)
    if ended.stopped:
        raise ended.stopped
    if ended.interrupted:
        raise Asked


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
