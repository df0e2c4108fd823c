"""The dry run: what is left of a job and what it takes, and what was asked about it beside."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from pipeline import plan, report
from pipeline.plan.compare import Offer, Saving, compare, savings
from pipeline.plan.exact import count_sample
from pipeline.plan.forecast import Bought
from pipeline.plan.learned import merged
from pipeline.plan.picks import pick_pilot
from pipeline.plan.planner import EVERYTHING, USUAL
from pipeline.plan.timing import Deadline, deadline
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply
from pipeline.run.planning import basis, look, notices_of
from pipeline.run.prepare import Session
from pipeline.run.rows import mask, wanted
from pipeline.run.services import open_services
from pipeline.store.batch_states import read as read_batches
from pipeline.store.content import ContentIndex
from pipeline.store.manifest import differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.state import Outcomes, is_unused, load


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
    with kept(session) as (outcomes, bought):
        given = await basis(session, wanted(session, outcomes), bought, EVERYTHING if wishes.whole else USUAL)
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
    spent_usd = report.summarize(session.directory).cost_usd if made.documents_done else Decimal(0)
    told = replace(made, notices=(*_elsewhere(session), *_out(session), *notices_of(session, made, spent_usd)))
    return Estimate(told, offers, saved, deadline(made.load, made.pace, start, wishes.by) if wishes.by else None)


def _elsewhere(session: Session) -> Iterator[str]:
    """Why the run directory of this name says nothing about this job."""
    known = read_manifest(session.directory / "manifest.json")
    unlike = differences(known, session.manifest()) if known else []
    if unlike and not is_unused(session.directory):
        yield (
            f"{session.directory} is a run of a different job or input ({unlike[0]}) and not counted; "
            "`pipeline run` needs `--fresh`"
        )


def _out(session: Session) -> Iterator[str]:
    """That calls are in batches already."""
    known = read_manifest(session.directory / "manifest.json")
    if known is None or differences(known, session.manifest()):
        return
    out = [state for state in read_batches(session.directory).values() if state.is_waited_for]
    if out:
        lines, batches = sum(state.lines for state in out), "1 batch" if len(out) == 1 else f"{len(out)} batches"
        yield (
            f"{lines:,} calls wait in {batches} of {session.directory}: what they take stands here once more, and is"
            " paid once"
        )


async def pilot_rows(session: Session, number: int) -> frozenset[int]:
    """So many rows to try first, spread over kinds of script and lengths, of those that are left to do."""
    found = await look(session)
    with kept(session) as (outcomes, _):
        return frozenset(pick_pilot(found, mask(session, wanted(session, outcomes)), number).numbers)


@contextmanager
def kept(session: Session) -> Iterator[tuple[Outcomes, Bought]]:
    """Outcomes and replies in the job's run directory, when it belongs to this job and input; reads only."""
    known = read_manifest(session.directory / "manifest.json")
    if known is None or differences(known, session.manifest()):
        yield Outcomes(), _nothing
        return
    outcomes, unsealed = load(session.directory, parse_stored)
    calls = {call.fingerprint: call.reply for call in unsealed.calls if call.paid}
    with closing(ContentIndex(session.directory, read_only=True)) as index:

        async def bought(prompt: Prompt) -> Reply | None:
            for fingerprint in map(prompt.fingerprint, session.working.models_of(prompt.step)):
                if reply := calls.get(fingerprint):
                    return reply
                if sealed := await index.find(fingerprint):
                    return sealed.reply
            return None

        yield outcomes, bought


async def _nothing(prompt: Prompt) -> Reply | None:
    return None
