"""The plan that a run starts with: the table surveyed, earlier answers learned from, what is kept left out."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

import anyio.to_thread

from pipeline import plan
from pipeline.batch.room import tokens_known
from pipeline.errors import PipelineError
from pipeline.masks import Mask
from pipeline.models import assumed
from pipeline.places import RUNS, latencies_file, quota_file, room_file
from pipeline.plan.answerers import Answerer
from pipeline.plan.earlier import earlier
from pipeline.plan.forecast import Bought, Waits
from pipeline.plan.laned import Batch
from pipeline.plan.lanes import LOST
from pipeline.plan.latency import PRIOR, Latency, seen
from pipeline.plan.latency import learned as learned_latency
from pipeline.plan.learned import Learned
from pipeline.plan.pace import Pace
from pipeline.plan.picks import Effort, about
from pipeline.plan.planner import BRIEF, Input
from pipeline.plan.survey import Survey, survey
from pipeline.quota.book import Known, read_known
from pipeline.quota.daily import day_of
from pipeline.quota.quota import FIRST_RPM
from pipeline.records import ALWAYS
from pipeline.run.fitting import ignored, misspelt
from pipeline.run.prepare import METERS, Session
from pipeline.run.services import as_asked, target_of, targets_of
from pipeline.store.batch_states import BatchState
from pipeline.store.batch_states import read as read_batches
from pipeline.store.latencies import earlier as earlier_batches
from pipeline.store.latencies import took
from pipeline.templates import REDUCE_VARIABLES, REFINE_VARIABLES

ASSUMED_LATENCY_S = 5.0
"""Of one answer, before any is known: it decides the time only where no limit does, and that of the last answers."""
_EMULATOR_LATENCY_S = 0.02

_INSERTED = re.compile(r"\{\{-?\s*(\w+)")


@dataclass(frozen=True, slots=True)
class InBatches:
    """What waits in batches as a run starts."""

    states: Sequence[BatchState]  # those that rows wait for
    has: Waits

    @property
    def worst_usd(self) -> Decimal:
        """What they may cost, as far as that is known."""
        return sum((state.worst_usd or Decimal(0) for state in self.states), Decimal(0))


async def planned(
    session: Session,
    wanted: Mask,
    bought: Bought,
    spent_usd: Decimal = Decimal(0),
    found: Survey | None = None,
    waiting: InBatches | None = None,
) -> plan.Plan:
    """The plan that a run starts with, which has cost `spent_usd` so far: of the rows that are `wanted`."""
    made = await plan.make(await basis(session, wanted, bought, BRIEF, found, waiting), datetime.now(UTC))
    return replace(made, notices=notices_of(session, made, spent_usd, waiting))


async def basis(
    session: Session,
    wanted: Mask,
    bought: Bought,
    effort: Effort,
    found: Survey | None = None,
    waiting: InBatches | None = None,
) -> Input:
    """What a plan of the rows that are `wanted` is made from: a look at the table, and what earlier runs say."""
    job, source = session.working, session.source
    found = found or await look(session)
    learned = await anyio.to_thread.run_sync(earlier, RUNS, job, session.kind, source.fingerprint, about(found))
    pace, several = await _pace(session, learned), await _several(session, learned)
    quota = _quotas(session).get("", "")
    return Input(
        job,
        source,
        found,
        learned,
        bought,
        pace,
        wanted,
        effort,
        session.options.by,
        several,
        latency_of(session, quota),
        waiting_tokens(session, quota, job.model),
        waiting.has if waiting else None,
        tuple(_batches(waiting.states, session.options.by is None)) if waiting else (),
        session.covered,
    )


def _batches(states: Sequence[BatchState], is_patient: bool) -> Iterator[Batch]:
    """Batches that are out, as a plan sees them."""
    now = time.time()
    for state in states:
        yield Batch(state.target, state.number, state.lines, state.age_s(now, is_patient))


def apart(session: Session, found: Survey, wanted: Mask, firsts: Sequence[int]) -> tuple[Survey, tuple[str, ...]]:
    """The table as shards that begin at these rows find it, each for itself; and what to know of it."""
    if len(firsts) < 2:
        return found, ()
    each = found.within(firsts)
    again = found.repeated(wanted) - each.repeated(wanted)
    if not again:
        return each, ()
    rows = "row repeats one" if again == 1 else "rows repeat some"
    if session.job.spec.cache and not session.options.offline:
        said = (
            f"{again:,} {rows} of another shard: `[cache]` spares those that come later, and this plan counts them all"
        )
    else:
        said = (
            f"{again:,} {rows} of another shard, and each shard asks its own:"
            " with `[cache]` those that come later are spared"
        )
    return each, (said,)


async def _several(session: Session, learned: Learned) -> tuple[tuple[Answerer, ...], ...]:
    """The targets that a job names, by the number of the rule that leads to them; none where it names none."""
    found, quotas = [], _quotas(session)
    for (section, job), each in zip(session.working.targets, as_asked(session), strict=False):
        found.append(
            Answerer(
                job.model,
                await _pace(each, learned),
                section.name,
                each.rates,
                Decimal(str(section.price_factor)),
                section.rank,
                section.takes,
                section.weight or 0.0,
                quotas.get(section.name, ""),
                job.choice,
                latency_of(session, quotas.get(section.name, "")),
                LOST.get(job.spec.endpoint.provider, 1.0),
                waiting_tokens(session, quotas.get(section.name, ""), job.model),
            )
        )
    ruled = tuple(
        tuple(sorted((one for one in found if one.name in names), key=lambda one: one.priority))
        for names in session.working.rules
        if found
    )
    stronger = (replace(one, takes=ALWAYS) for one in found if one.name == session.working.escalates_to)
    return (*ruled, *((one,) for one in stronger))


def latency_of(session: Session, quota: str) -> Latency:
    """How long the batches of a quota take, by those of all runs; those that this one waits for say something too."""
    if not quota:
        return PRIOR
    now, known = time.time(), []
    with suppress(PipelineError):
        known = earlier_batches(latencies_file(session.kind), quota, now)
    names = {one.name for one in known}
    with suppress(PipelineError):
        own = (took(state, now) for state in read_batches(session.directory).values())
        known += [one for one in own if one and one.quota == quota and one.name not in names]
    return learned_latency(seen(known, now))


def waiting_tokens(session: Session, quota: str, model: str) -> int:
    """Tokens that may wait in batches of a quota: as runs learned, or as few as any project may have."""
    known = None
    with suppress(PipelineError):
        known = tokens_known(room_file(session.kind), quota)
    return known or assumed(model).batch_tokens


def _quotas(session: Session) -> dict[str, str]:
    """What the limits of each target are counted by: two that share it have one quota. Of no key only what is said."""
    try:
        return {target.name: target.quota for target, _ in targets_of(session)}
    except (PipelineError, ValueError):  # no key, or a base URL that cannot be one
        found: dict[str, str] = {}
        for section, job in session.working.targets:
            project = found[section.same_project_as].partition("/")[0] if section.same_project_as else section.name
            found[section.name] = f"{project}/{job.model}"
        return found


def notices_of(
    session: Session, made: plan.Plan, spent_usd: Decimal, waiting: InBatches | None = None
) -> tuple[str, ...]:
    """What a person should know of this plan before anything is spent."""
    return (
        *_unpaced(session),
        *_unfilled(session),
        *_own_prices(session),
        *_of_models(session),
        *_over_budget(session, made, spent_usd + (waiting.worst_usd if waiting else 0)),
        *made.notices,
    )


def _unfilled(session: Session) -> Iterator[str]:
    """That a system instruction is no template, where it looks like one: a column's name may stand there as it is."""
    job, known = session.job, {*session.source.schema, *REDUCE_VARIABLES, *REFINE_VARIABLES}
    for section, params in (("prompt", job.params), ("reduce", job.reduce_params), ("refine", job.refine_params)):
        system = params.system if params else None
        names = [name for name in _INSERTED.findall(system or "") if name in known]
        if names and (section == "prompt" or system != job.params.system):
            yield f"[{section}] system is sent as it stands: {{{{ {names[0]} }}}} in it is not filled in"


def _of_models(session: Session) -> Iterator[str]:
    """That a model's name may be misspelt, and what a model does not heed of the settings, once for each model."""
    day = datetime.now(UTC).date()
    asked = session.working.asked
    yield from dict.fromkeys(sentence for job in asked for sentence in (*misspelt(job), *ignored(job, day)))


def _unpaced(session: Session) -> Iterator[str]:
    """That an offline run does not keep to the job's limits."""
    limits, kept = session.job.limits, session.limits
    ignored = [meter for meter in METERS if getattr(limits, meter) and not getattr(kept, meter)]
    if ignored:
        yield f"offline, the job's limits ({', '.join(ignored)}) are not kept to: `--pace` keeps to them"


def _own_prices(session: Session) -> Iterator[str]:
    """That prices of the job's own are taken for those of its other lanes too."""
    for job in session.working.asked:
        own, asked = job.own_rates, ("flex", "batch") if job.choice == "auto" else (job.choice,)
        factors_of = {"flex": own.flex, "batch": own.batch} if own else {}
        if unnamed := [lane for lane, factor in factors_of.items() if lane in asked and factor is None]:
            factors = ", ".join(f"{lane} = 0.5" for lane in unnamed)
            yield f"[model] prices hold in {' and '.join(unnamed)} too; if they cost less there, add {factors} to them"


def _over_budget(session: Session, made: plan.Plan, spent_usd: Decimal) -> Iterator[str]:
    """Whether what the run may spend is too little for it."""
    cap, cost = session.max_usd, made.cost_usd
    if cap is None or not cost or not made.load.prompts or session.rehearsal or spent_usd + cost.high <= cap:
        return
    will = "is expected to" if spent_usd + cost.expected > cap else "may"
    name = "--max-cost" if session.options.max_cost_usd else "[budget] max_usd"
    dollars = round(cap, 2) if cap == round(cap, 2) else cap
    yield f"the run {will} reach {name}, ${dollars:,f}: it then stops, and can be continued with a higher one"


async def look(session: Session) -> Survey:
    """One pass over the table."""
    return await anyio.to_thread.run_sync(survey, session.source, session.rows, abandon_on_cancel=True)


async def _pace(session: Session, learned: Learned) -> Pace:
    """How fast the run will go: the limits that it will keep to, the latency, the day's quota that is left."""
    offline, limits = session.options.offline, session.limits
    known = Known() if offline else await _known(session)
    return Pace(
        replace(
            limits,
            rpm=_least(limits.rpm, known.limit("requests", limits.rpm)),
            tpm=_least(limits.tpm, known.limit("tokens", limits.tpm)),
        ),
        learned.latency_s or (_EMULATOR_LATENCY_S if offline else ASSUMED_LATENCY_S),
        learned.slow_s,
        used_today=known.requests if known.day_opens_at is None else 0,
        opens_at=known.day_opens_at or 0.0,
        first_rpm=max(FIRST_RPM, known.first_rpm or 0),
        workers=session.workers,
    )


def _least(configured: int | None, learned: float | None) -> int | None:
    """A minute's limit, as the run will use it: 0 is none at all, whatever was learned."""
    if learned is None or configured == 0:
        return configured
    return int(learned) if configured is None else min(configured, int(learned))


async def _known(session: Session) -> Known:
    """What earlier runs of this key learned of its quota; nothing without a key or a place for it."""
    try:
        path, quota = quota_file(session.kind), target_of(session).quota
    except (PipelineError, ValueError):  # no key, or a base URL that cannot be one
        return Known()
    now = time.time()
    day = day_of(now, session.job.limits.reset_zone)
    return await anyio.to_thread.run_sync(read_known, path, quota, day, now, session.days_of(quota))
