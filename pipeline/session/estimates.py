"""What a session would take: the table surveyed, earlier answers learned from, what is kept taken into account.

The plan that a run starts with is made here too, from the run's own store.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import anyio.to_thread
import polars as pl

from pipeline import plan, report
from pipeline.errors import PipelineError
from pipeline.job import Job
from pipeline.plan.compare import Offer, Saving, chunk_sizes, compare, identical_rows, other_lanes, shared_prefix
from pipeline.plan.earlier import earlier
from pipeline.plan.exact import POOL_BYTES, POOL_ROWS, count_sample
from pipeline.plan.forecast import Bought
from pipeline.plan.learned import Learned, merged
from pipeline.plan.pace import Pace
from pipeline.plan.picks import about, pick_evenly, pick_pilot
from pipeline.plan.planner import BRIEF, EVERYTHING, USUAL, Input, expected_work, first_prompts, prefix_tokens
from pipeline.plan.survey import Survey, survey
from pipeline.plan.timing import Deadline, deadline
from pipeline.prices import Lane, Model
from pipeline.providers.answers import parse_reply
from pipeline.quota.book import Known, read_known
from pipeline.quota.daily import day_of
from pipeline.records import Reply
from pipeline.session import METERS, Session, open_provider
from pipeline.session.state import quota_place
from pipeline.store.content import ContentIndex
from pipeline.store.manifest import differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.state import is_unused, load
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES

ASSUMED_LATENCY_S = 5.0
"""Of one answer, before any is known: it decides the time only where no limit does, and that of the last answers."""
_EMULATOR_LATENCY_S = 0.02

_INSERTED = re.compile(r"\{\{-?\s*(\w+)")
_SLICE_ROWS = 2**16
"""Rows that are asked after at a time, 8 bytes each."""

Done = Callable[[int], bool]


class Kept(NamedTuple):
    """What a run directory has already: which rows are left alone, and the replies that would be replayed."""

    done: Done
    bought: Bought


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags of `estimate` ask beyond the plan."""

    whole: bool = False  # count every row, however large the table
    exact: bool = False  # have a sample counted by the service
    compare: bool = False
    by: datetime | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan, and what was asked about it."""

    plan: plan.Plan
    offers: tuple[Offer, ...] = ()
    savings: tuple[Saving, ...] = ()
    deadline: Deadline | None = None


async def estimate(session: Session, wishes: Wishes) -> Estimate:
    """What is left of this job and what it takes. Writes nothing, and sends nothing but what `exact` has counted."""
    start = datetime.now(UTC)
    found = await look(session)
    with kept(session) as (done, bought):
        given = Input(session.source, found, _left(session, done), EVERYTHING if wishes.whole else USUAL)
        learned = await _learned(session, found)
        if wishes.exact:
            learned = merged(learned, await _counted(session, given))
        pace = await _pace(session, learned)
        made = await plan.make(given, session.working, learned, bought, pace, start)
        savings: tuple[Saving, ...] = ()
        if wishes.compare:
            savings = await _savings(session, given, learned, bought, made)
    offers = _offers(session.working, made, start) if wishes.compare else ()
    spent_usd = report.summarize(session.directory).cost_usd if made.documents_done else Decimal(0)
    told = replace(made, notices=(*_elsewhere(session), *_told(session, made, spent_usd)))
    return Estimate(told, offers, savings, deadline(made.load, pace, start, wishes.by) if wishes.by else None)


async def planned(session: Session, done: Done, bought: Bought, spent_usd: Decimal = Decimal(0)) -> plan.Plan:
    """The plan that a run starts with, which has cost `spent_usd` so far: of the rows that are not `done`."""
    found = await look(session)
    given = Input(session.source, found, _left(session, done), BRIEF)
    learned = await _learned(session, found)
    pace = await _pace(session, learned)
    made = await plan.make(given, session.working, learned, bought, pace, datetime.now(UTC))
    return replace(made, notices=_told(session, made, spent_usd))


def _told(session: Session, made: plan.Plan, spent_usd: Decimal) -> tuple[str, ...]:
    return *_unpaced(session), *_unfilled(session), *_over_budget(session, made, spent_usd), *made.notices


def _unfilled(session: Session) -> Iterator[str]:
    """That a system instruction is no template, where it looks like one: a column's name may stand there as it is."""
    job, known = session.job, {*session.source.schema, *CHUNK_VARIABLES, *REDUCE_VARIABLES}
    for section, params in (("prompt", job.params), ("reduce", job.reduce_params)):
        system = params.system if params else None
        names = [name for name in _INSERTED.findall(system or "") if name in known]
        if names and (section == "prompt" or system != job.params.system):
            yield f"[{section}] system is sent as it stands: {{{{ {names[0]} }}}} in it is not filled in"


def _unpaced(session: Session) -> Iterator[str]:
    """That an offline run does not keep to the job's limits."""
    limits, kept = session.job.limits, session.limits
    ignored = [meter for meter in METERS if getattr(limits, meter) and not getattr(kept, meter)]
    if ignored:
        yield f"offline, the job's limits ({', '.join(ignored)}) are not kept to: `--pace` keeps to them"


def _over_budget(session: Session, made: plan.Plan, spent_usd: Decimal) -> Iterator[str]:
    """Whether what the run may spend is too little for it."""
    cap, cost = session.max_usd, made.cost_usd
    if cap is None or not cost or not made.load.prompts or session.rehearsal or spent_usd + cost.high <= cap:
        return
    will = "is expected to" if spent_usd + cost.expected > cap else "may"
    name = "--max-cost" if session.options.max_cost_usd else "[budget] max_usd"
    dollars = round(cap, 2) if cap == round(cap, 2) else cap
    yield f"the run {will} reach {name}, ${dollars:,f}: it then stops, and can be continued with a higher one"


def _elsewhere(session: Session) -> Iterator[str]:
    """Why the run directory of this name says nothing about this job."""
    known = read_manifest(session.directory / "manifest.json")
    unlike = differences(known, session.manifest()) if known else []
    if unlike and not is_unused(session.directory):
        yield (
            f"{session.directory} is a run of a different job or input ({unlike[0]}) and not counted; "
            "`pipeline run` needs `--fresh`"
        )


async def pilot_rows(session: Session, number: int) -> frozenset[int]:
    """So many rows to try first, spread over kinds of script and lengths, of those that are left to do."""
    found = await look(session)
    with kept(session) as (done, _):
        return frozenset(pick_pilot(found, _left(session, done), number).numbers)


async def look(session: Session) -> Survey:
    """One pass over the table."""
    return await anyio.to_thread.run_sync(survey, session.source, session.rows, abandon_on_cancel=True)


@contextmanager
def kept(session: Session) -> Iterator[Kept]:
    """What the job's run directory has, when it belongs to this job and input; reads only."""
    known = read_manifest(session.directory / "manifest.json")
    if known is None or differences(known, session.manifest()):
        yield Kept(lambda row: False, _nothing)
        return
    outcomes, unsealed = load(session.directory, parse_reply)
    calls = {call.fingerprint: call.reply for call in unsealed.calls if call.paid}
    index = ContentIndex(session.directory, read_only=True)

    async def bought(fingerprint: str) -> Reply | None:
        if (reply := calls.get(fingerprint)) is not None:
            return reply
        sealed = await index.find(fingerprint)
        return sealed.reply if sealed else None

    try:
        yield Kept(outcomes.done, bought)
    finally:
        index.close()


async def _nothing(fingerprint: str) -> Reply | None:
    return None


def _left(session: Session, done: Done) -> pl.Series:
    """Which rows are to be done."""
    parts = (range(start, min(start + _SLICE_ROWS, session.rows)) for start in range(0, session.rows, _SLICE_ROWS))
    left = [pl.Series([not done(row) for row in part], dtype=pl.Boolean) for part in parts]
    return pl.concat([pl.Series(dtype=pl.Boolean), *left], rechunk=True)


async def _learned(session: Session, found: Survey) -> Learned:
    return await anyio.to_thread.run_sync(
        earlier,
        report.RUNS,
        session.working,
        session.kind,
        session.source.fingerprint,
        about(found),
    )


async def _counted(session: Session, given: Input) -> Learned:
    """Have the service count a sample of the first prompts."""
    picks = pick_evenly(given.survey, given.wanted, POOL_ROWS, POOL_BYTES)
    prompts = await first_prompts(given, picks, session.working)
    async with open_provider(session.job, session.options.offline) as provider:
        return await count_sample(prompts, provider.count_tokens)


async def _pace(session: Session, learned: Learned) -> Pace:
    offline, limits = session.options.offline, session.limits
    known = Known() if offline else await _known(session)
    return Pace(
        replace(limits, rpm=_least(limits.rpm, known.rpm), tpm=_least(limits.tpm, known.tpm)),
        learned.latency_s or (_EMULATOR_LATENCY_S if offline else ASSUMED_LATENCY_S),
        learned.slow_s,
        used_today=known.requests if known.day_opens_at is None else 0,
        opens_at=known.day_opens_at or 0.0,
    )


def _least(configured: int | None, learned: float | None) -> int | None:
    """A minute's limit, as the run will use it: 0 is none at all, whatever was learned."""
    if learned is None or configured == 0:
        return configured
    return int(learned) if configured is None else min(configured, int(learned))


async def _known(session: Session) -> Known:
    """What earlier runs of this key learned of its quota; nothing without a key or a place for it."""
    job = session.job
    try:
        async with open_provider(job, offline=False) as provider:
            path, name = quota_place(job, provider.endpoint, session.kind)
    except PipelineError:
        return Known()
    now = time.time()
    return await anyio.to_thread.run_sync(read_known, path, name, day_of(now, job.limits.reset_zone), now)


def _offers(job: Job, made: plan.Plan, start: datetime) -> tuple[Offer, ...]:
    def seconds_of(model: Model, lane: Lane) -> float | None:
        return made.timeline.seconds if lane == "standard" else None

    return compare(made.work, made.load.largest_tokens, job.params.max_output_tokens, seconds_of, start.date())


async def _savings(
    session: Session, given: Input, learned: Learned, bought: Bought, made: plan.Plan
) -> tuple[Saving, ...]:
    job, day = session.working, datetime.now(UTC).date()
    model, own = job.params.model, job.own_rates
    first = sum(cell.prompts for tier, cell in made.work.items() if tier.step != "reduce")
    others = [
        (tokens, await expected_work(given, changed, learned, bought, made.pace))
        for tokens, changed in _larger_chunks(job)
    ]
    now = await expected_work(given, job, learned, bought, made.pace) if others else {}
    return (
        *identical_rows(made.spared, model, day, own=own),
        *shared_prefix(first, prefix_tokens(job), model, day, own=own),
        *chunk_sizes(now, others, model, day, own=own),
        *other_lanes(made.work, model, day, own),
    )


def _larger_chunks(job: Job) -> Iterator[tuple[int, Job]]:
    """The job with pieces two, four and eight times as long."""
    chunk = job.spec.chunk
    if chunk is None:
        return
    for factor in (2, 4, 8):
        longer = chunk.model_copy(update={"max_tokens": chunk.max_tokens * factor})
        yield longer.max_tokens, replace(job, spec=job.spec.model_copy(update={"chunk": longer}))
