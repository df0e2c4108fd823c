"""The dry run: what is left of a job and what it takes, and what was asked about it beside."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
import polars as pl

from pipeline import plan
from pipeline.errors import RunStateError
from pipeline.masks import Mask, Range, Ranges
from pipeline.plan.compare import Offer, Saving, compare, savings
from pipeline.plan.exact import count_sample
from pipeline.plan.forecast import Bought
from pipeline.plan.learned import merged
from pipeline.plan.picks import pick_pilot
from pipeline.plan.planner import EVERYTHING, USUAL
from pipeline.plan.survey import Survey
from pipeline.plan.timing import Deadline, deadline
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import JUDGED, Reply, Result, Status
from pipeline.report.tallies import nothing_left
from pipeline.run import sampling
from pipeline.run.batching import still_out
from pipeline.run.changes import Change
from pipeline.run.generations import Keeping, changed, spent_before
from pipeline.run.guards import check_alone, refuse_unpriced
from pipeline.run.parts import looked_at, shards_of
from pipeline.run.planning import InBatches, apart, basis, look, notices_of, planned
from pipeline.run.prepare import Session
from pipeline.run.replaced import with_replaced
from pipeline.run.rows import Left, counted
from pipeline.run.services import open_services
from pipeline.store.again import Again
from pipeline.store.batch_lines import read_fingerprints
from pipeline.store.batch_states import read as read_batches
from pipeline.store.batches import FOLDER
from pipeline.store.content import ContentIndex, gave
from pipeline.store.earlier import Earlier, line_of
from pipeline.store.lines import Call
from pipeline.store.manifest import differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.state import Outcomes, is_unused, load
from pipeline.store.units import Shard, has_begun, is_cut
from pipeline.store.units import read as read_shards
from pipeline.store.waiting import Waiting


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags of `estimate` ask beyond the plan."""

    whole: bool = False  # count every row, however large the table
    exact: bool = False  # have a sample counted by the service
    compare: bool = False
    by: datetime | None = None
    firsts: Sequence[int] = ()  # of a run by several workers the first row of each shard


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
    session = await anyio.to_thread.run_sync(looked_at, session)
    found = await look(session)
    session = await with_replaced(session, found)
    with kept(session, found) as (standing, bought, keeping):
        waiting, effort = _waiting(session), EVERYTHING if wishes.whole else USUAL
        session, firsts = (session, wishes.firsts) if wishes.firsts else _begun(session)
        found, again = apart(session, found, standing.left, firsts)
        given = await basis(session, standing.left, bought, effort, found, waiting)
        given = replace(given, by=wishes.by)
        if wishes.exact:
            async with open_services(session) as services:
                counted = await count_sample(given, services.count_tokens)
            given = replace(given, learned=merged(given.learned, counted))
        made = await plan.make(given, start)
        saved = await savings(given, made, start.date()) if wishes.compare and not given.several else ()
    room, seconds = session.working.params.max_output_tokens, made.timeline.seconds
    within_s = (wishes.by - start).total_seconds() if wishes.by else None
    offers = (
        compare(
            made.work,
            made.load.largest_tokens,
            room,
            seconds,
            start.date(),
            within_s=within_s,
            latency=given.latency,
        )
        if wishes.compare
        else ()
    )
    spent_usd = _spent_usd(session, keeping)
    edit = _edit(keeping.counted(), bool(made.sampled_rows)) if keeping else ()
    told = replace(
        made,
        notices=(
            *_elsewhere(session),
            *_of_sample(session),
            *edit,
            *again,
            *(keeping.notices if keeping else ()),
            *(still_out(waiting.states) if waiting else ()),
            *notices_of(session, made, spent_usd, waiting),
        ),
    )
    return Estimate(told, offers, saved, deadline(made.load, made.pace, start, wishes.by) if wishes.by else None)


def _begun(session: Session) -> tuple[Session, list[int]]:
    """The session as workers have begun it, who go on with it, and the first rows of its shards."""
    if session.options.fresh or is_unused(session.directory):
        return session, []
    known = read_manifest(session.directory / "manifest.json")
    firsts = [shard.first_row for shard in shards_of(session)]
    return replace(session, workers=known.workers or 1) if known else session, firsts


def _elsewhere(session: Session) -> Iterator[str]:
    """Why the run directory of this name says nothing about this job."""
    try:
        changed(session)
    except RunStateError as refused:
        first, *more = refused.message.splitlines()
        yield f"{first} ({', '.join(line.strip() for line in more[:1])}), and is not counted: {refused.hint}"


def _of_sample(session: Session) -> Iterator[str]:
    """That it is not of all rows."""
    if session.options.sampled:
        yield f"of a sample of {session.covered:,} of {session.rows:,} rows, {session.options.sampled}"


def _edit(change: Change, about: bool) -> Iterator[str]:
    """What an edit of job or input keeps."""
    answers, are = ("1 answer", "is") if change.kept == 1 else (f"{change.kept:,} answers", "are")
    kept = f"{'about ' if about else ''}{answers} of {change.directory} {are} kept, and not in this estimate"
    yield f"`pipeline run` begins generation {change.generation} ({change.lines[0]}): {kept}"


def _waiting(session: Session) -> InBatches | None:
    """What waits in batches of this job's run; None: nothing does."""
    known = read_manifest(session.directory / "manifest.json")
    if known is None or session.options.fresh or differences(known, session.manifest()):
        return None
    states = [state for state in read_batches(session.directory).values() if state.is_waited_for]
    waiting = Waiting()
    for state in states:
        waiting.add(state.number, read_fingerprints(session.directory / FOLDER, state.number))
    return InBatches(states, lambda content: waiting.find(content) is not None) if states else None


async def pilot_rows(session: Session, number: int) -> frozenset[int]:
    """So many rows to try first, spread over kinds of script and lengths, of those that are left to do."""
    found = await look(session)
    with kept(await with_replaced(session, found), found) as (standing, _, _):
        return frozenset(pick_pilot(found, standing.left, number).numbers)


async def sampled(session: Session, number: int) -> tuple[Session, Counter[Status], int]:
    """The session of a sample of so many rows; how many of them have which outcome, and how many are left to do."""
    found = await look(session)
    trial = sampling.sampled(session, found, number)
    if session.options.fresh:
        return trial, Counter(), trial.covered
    trial = await with_replaced(trial, found)
    with kept(trial, found) as (standing, _, _):
        return trial, standing.done, trial.covered - standing.done.total()


async def foreseen(session: Session, firsts: Sequence[int] = ()) -> tuple[plan.Plan, Session]:
    """The plan that a run would start with now, and the session with the change that it would begin with.

    `firsts` are the first rows of its shards, where several workers do it.
    """
    session = await anyio.to_thread.run_sync(looked_at, session)
    if not firsts:
        check_alone(session)
    if not session.options.fresh:
        changed(session)  # raises what the run would
    found = await look(session)
    session = await with_replaced(session, found)
    with kept(session, found) as (standing, bought, keeping):
        waiting = _waiting(session)
        found, again = apart(session, found, standing.left, firsts)
        made = await planned(session, standing.left, bought, _spent_usd(session, keeping), found, waiting)
        out = still_out(waiting.states) if waiting else ()
        made = replace(made, notices=(*again, *(keeping.notices if keeping else ()), *out, *made.notices))
    if made.load.prompts and not session.rehearsal:
        refuse_unpriced(session.job, session.options)
    return made, replace(session, change=keeping.counted() if keeping else None)


def as_estimate(made: plan.Plan, session: Session) -> Estimate:
    """What was foreseen as an estimate, with the change that the run would begin with among its notices."""
    edit = _edit(session.change, bool(made.sampled_rows)) if session.change else ()
    return Estimate(replace(made, notices=(*_of_sample(session), *edit, *made.notices)))


def _spent_usd(session: Session, keeping: Keeping | None) -> Decimal:
    """What a run of this job would start with as spent, by it and by its earlier generations."""
    known = read_manifest(session.directory / "manifest.json")
    is_own = known and (keeping or not differences(known, session.manifest()))
    return spent_before(session.directory, known) if known and is_own and not session.options.fresh else Decimal(0)


class Standing(NamedTuple):
    """How the rows of a session stand: which are to be done, and of those that are not how many have which outcome."""

    left: Mask
    done: Counter[Status]


def _standing(session: Session, outcomes: Outcomes) -> Standing:
    return Standing(Left(session, outcomes), counted(session, outcomes))


@contextmanager
def kept(session: Session, found: Survey) -> Iterator[tuple[Standing, Bought, Keeping | None]]:
    """What a run of this job would find as it starts, of rows and replies; reads only.

    After an edit of job or input no row has an outcome, and what earlier generations bought is found and counted.
    """
    if session.options.fresh:
        yield _standing(session, Outcomes()), _nothing, None
        return
    known = read_manifest(session.directory / "manifest.json")
    try:
        change = changed(session)
    except RunStateError:  # another's: nothing of it counts
        yield _standing(session, Outcomes()), _nothing, None
        return
    if change:
        keeping = Keeping(session, change, found)
        yield _standing(session, keeping.outcomes()), keeping.bought, keeping
        return
    if known is None or differences(known, session.manifest()):
        yield _standing(session, Outcomes()), _nothing, None
        return
    if is_cut(session.directory):
        with ExitStack() as shards:
            yield *_in_shards(session, shards), None
        return
    earlier = Earlier(line_of(session.directory.parent, known), parse_stored, session.options.retry, session.directory)
    with closing(earlier), _in_directory(session, session.directory) as (outcomes, own):

        async def bought(prompt: Prompt) -> Reply | None:
            return await own(prompt) or await earlier.find(prompt, session.working.models_of(prompt.step))

        yield _standing(session, outcomes), bought, None


@contextmanager
def _in_directory(session: Session, directory: Path) -> Iterator[tuple[Outcomes, Bought]]:
    """Outcomes and replies of one run directory."""
    outcomes, unsealed = load(directory, parse_stored)
    calls = {call.fingerprint: call.reply for call in unsealed.calls if _stays(call, unsealed.results, outcomes)}
    options, again = session.options, Again()
    if options.retry:
        passing, results = not options.skip_failed, unsealed.results.values()
        again.reopen(directory, outcomes, options.retry, options.changes, passing, results)
    elif options.skip_failed:
        outcomes.settle()
    batches = read_batches(directory)
    with ExitStack() as opened:

        @cache
        def index() -> ContentIndex:
            return opened.enter_context(closing(ContentIndex(directory, read_only=True)))

        async def bought(prompt: Prompt) -> Reply | None:
            for fingerprint in map(prompt.fingerprint, session.working.models_of(prompt.step)):
                if reply := calls.get(fingerprint):
                    return reply
                sealed = await index().find(fingerprint)
                if sealed and (
                    sealed.batch is None or again.takes(prompt.row, sealed.reply, batches[sealed.batch].cut_at)
                ):
                    return sealed.reply
            return None

        yield outcomes, bought


def _in_shards(session: Session, opened: ExitStack) -> tuple[Standing, Bought]:
    """The same of a run of shards, by the rows of its whole table: each finds what itself has bought.

    Of a shard that is done nothing is read but its sums, of others a bit a row stays in memory.
    """
    ranges, done, found = list[Range](), Counter[Status](), list[Bought]()
    shards = [shard for shard in read_shards(session.directory)[1] if shard.first_row < session.rows]
    for shard in shards:
        own = _of_shard(session, shard)
        left: pl.Series | bool = True
        bought_there: Bought = _nothing
        if own.options.pilot is None and (tally := nothing_left(shard, own.rows, own.options.retry)):
            left = False
            done.update(tally.outcomes)
        elif has_begun(shard):
            outcomes, bought_there = opened.enter_context(_in_directory(own, shard.directory))
            left = Left(own, outcomes).slice(0, own.rows)
            done.update(counted(own, outcomes))
            outcomes.forget()
        ranges.append(Range(own.rows, left))
        found.append(bought_there)
    firsts = [shard.first_row for shard in shards]

    async def bought(prompt: Prompt) -> Reply | None:
        at = bisect_right(firsts, prompt.row) - 1
        return await found[at](prompt)

    return Standing(Ranges(ranges), done), bought


def _of_shard(session: Session, shard: Shard) -> Session:
    """The session as far as it covers the rows of a shard, which count from 0."""
    rows, pilot = min(shard.rows, session.rows - shard.first_row), session.options.pilot
    if pilot is not None:
        pilot = frozenset(row - shard.first_row for row in pilot if 0 <= row - shard.first_row < rows)
    return replace(session, rows=rows, options=replace(session.options, pilot=pilot))


def _stays(call: Call, results: Mapping[int, Result], outcomes: Outcomes) -> bool:
    """Whether a reply of the journal is found after the next start, which seals it where its row is finished.

    Then only whole answers are found, and not the one that was judged: see `store.content`.
    """
    result = results.get(call.row)
    if not call.paid or result is None or not outcomes.done(call.row):
        return call.paid
    was_judged = result.error_kind in JUDGED and gave(call.reply.text, result.response)
    return call.reply.status == "ok" and not was_judged


async def _nothing(prompt: Prompt) -> Reply | None:
    return None
