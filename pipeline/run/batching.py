"""The batches of one session, put together: who speaks for them, their desk, and the rows that wait."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf

from pipeline.batch.common import Plan as DeskPlan
from pipeline.batch.desk import BatchDesk, Standing
from pipeline.batch.results import Taking
from pipeline.batch.room import Room
from pipeline.batch.tries import Tries
from pipeline.budget.cashier import Cashier
from pipeline.cache import AnswerCache
from pipeline.errors import BatchesCancelled, BatchesOut, JobError, PipelineError, RunStateError
from pipeline.events import BatchNoted, Notify
from pipeline.models import assumed
from pipeline.places import room_file
from pipeline.plan import Plan
from pipeline.plan.lanes import SCOUTS
from pipeline.plan.timing import next_time, time_after
from pipeline.providers.batches.base import Batches as Service
from pipeline.providers.connection import Connected
from pipeline.records import Reply
from pipeline.run.course import Progress, Steering
from pipeline.run.engine import Monitor
from pipeline.run.guards import stranger
from pipeline.run.planning import InBatches, latency_of
from pipeline.run.prepare import Options, Session
from pipeline.run.rounds import Rounds
from pipeline.run.rows import Wanted
from pipeline.run.services import Services
from pipeline.store.batch_lines import Key
from pipeline.store.batch_states import BatchState
from pipeline.store.batches import FOLDER, is_out
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target

_BATCHED = ("batch", "auto")
KEPT_S = 48 * 3600.0
"""A service gives a batch up after so long, and keeps its results so long (Google's batch page, 2026-02)."""
SETTLED_S = 600.0
"""Seconds of a run after which the limits that it keeps to are taken for those that it will."""


def speakers(services: Services, are_out: bool) -> dict[Target, Service]:
    """Who speaks the batches of each target that a job wants batches of, and where some `are_out` of any other.

    Raises `JobError` where nobody does.
    """
    found: dict[Target, Service] = {}
    for target in services.targets:
        if target.choice not in _BATCHED and not are_out:
            continue
        speaker = services.speaker(target)
        service = speaker.open(target).batches() if isinstance(speaker, Connected) else None
        if service is None and target.choice in _BATCHED:
            raise JobError(
                f'lane = "{target.choice}": no batches are spoken of with {target.label}',
                'set lane = "flex" or "standard" for it; Google\'s batches are those of provider = "gemini"',
            )
        if service is not None:
            found[target] = service
    return found


def deadline_of(options: Options, out: Sequence[BatchState]) -> datetime | None:
    """When a run should be done: with batches out what its deadline meant when the first of them was cut.

    Raises `JobError` where that is past, and nothing is out that could be called in.
    """
    if not options.by or not options.by_said:
        return options.by
    if out:
        return time_after(options.by_said, datetime.fromtimestamp(min(state.cut_at for state in out), UTC))
    return next_time(options.by_said, datetime.now(UTC))


def check_out(session: Session, out: Sequence[BatchState]) -> None:
    """Raise `RunStateError` for what must not be done while batches of the run are out."""
    if session.options.pilot is not None:
        raise RunStateError(
            f"{counted(out)}: a sample could buy once more what they bring", "collect them first: `pipeline run JOB`"
        )


def check_any_out(session: Session) -> None:
    """Raise `RunStateError` where there is no batch to cancel: the run would ask its rows live."""
    if not is_out(session.directory):
        raise RunStateError(
            f"no batch of {session.directory} is out\nNothing was sent.",
            "`pipeline runs` says which runs have batches out",
        )


def ended_early(
    session: Session, monitor: Monitor, out: Sequence[BatchState], called_at: float
) -> PipelineError | None:
    """Why a run ends that has not all of its answers; its first batch is called in at `called_at`, epoch seconds."""
    options = session.options
    if out:
        narrower = [flag for flag, given in (("--retry", options.retry), ("--limit", options.limit)) if given]
        only = f" without `{narrower[0]}`" if narrower and not options.leave else ""
        due = ""
        if options.by and called_at < inf:
            at = datetime.fromtimestamp(called_at).astimezone()
            due = f"\nRun it again before {at:%a %H:%M}, so that by {options.by:%a %H:%M} all is done."
        hint = f"the same command{only} collects them, by hand or from cron"
        return BatchesOut(f"{counted(out)}{until(out)}{due}", hint)
    if options.cancel_batches and (left := monitor.rows - monitor.done):
        rows = "1 row is" if left == 1 else f"{left:,} rows are"
        return BatchesCancelled(
            f"{rows} without an answer: its batches were called off",
            "the same command without `--cancel-batches` asks what is left",
        )
    return None


def still_out(states: Sequence[BatchState]) -> Iterator[str]:
    """That batches of earlier sessions are out as a run goes on: since when, and what they may cost."""
    out = [state for state in states if state.is_waited_for]
    if not out:
        return
    asked = [state.asked_at for state in out if state.asked_at is not None]
    yield f"{counted(out)}: the calls above are those that are in none"
    if asked:
        yield f"the first was handed in at {datetime.fromtimestamp(min(asked)).astimezone():%a %H:%M}"
    worst = [state.worst_usd for state in out]
    if None not in worst:
        usd = sum(each for each in worst if each)
        yield f"what they bill is ${usd:,.2f} at most" if usd >= 1 else f"what they bill is ${usd:.4f} at most"


def called_off(late: Sequence[BatchState]) -> BatchesOut:
    """Why a run ends that has all of its answers, while batches that it called off are not over."""
    return BatchesOut(
        f"all rows are done, and {counted(late)}: called off, and not over yet. What they bill is not known, and counts"
        " at its most until then",
        "the same command waits for that, in ten minutes, by hand or from cron",
    )


def counted(out: Sequence[BatchState]) -> str:
    """How many batches are where, for a person."""
    lines = sum(state.lines for state in out)
    asked = [state for state in out if state.stage in ("asked", "fetched")]
    batches = "1 batch" if len(out) == 1 else f"{len(out):,} batches"
    where = "with the service" if len(asked) == len(out) else f"out, {len(asked):,} of them with the service"
    return f"{batches}, {lines:,} {'call' if lines == 1 else 'calls'}, {'is' if len(out) == 1 else 'are'} {where}"


def until(out: Sequence[BatchState]) -> str:
    """Until when they have to be collected, for a person."""
    asked = [state.asked_at for state in out if state.asked_at is not None]
    if not asked:
        return ""
    at = datetime.fromtimestamp(min(asked) + KEPT_S).astimezone()
    return f"\nCollect them before {at:%a %Y-%m-%d %H:%M}: a service keeps nothing of a batch for longer than 48 hours."


@dataclass(frozen=True, slots=True)
class Batching:
    """What a session with batches has beside a plain one."""

    rounds: Rounds
    desk: BatchDesk
    room: Room

    @property
    def standing(self) -> Standing:
        """How the batches stand."""
        return self.desk.standing


def steering_of(
    session: Session,
    services: Services,
    store: RunStore,
    plan: Plan,
    progress: Callable[[], Progress],
    heard: Notify,
) -> Steering | None:
    """Who plans the lanes of a session; None where there is only one."""
    if not plan.lanes and not store.batches.open():
        return None
    quotas = {target.name: target.quota for target in services.targets}
    return Steering(
        plan.lanes, plan, progress, store.batches.all, lambda name: latency_of(session, quotas[name]), heard
    )


def batching_of(
    session: Session,
    spoken: Mapping[Target, Service],
    services: Services,
    routes: Sequence[Route],
    store: RunStore,
    plan: Plan,
    rows: Wanted,
    cashier: Cashier,
    monitor: Monitor,
    steering: Steering,
    heard: Notify,
    on_stop: Callable[[PipelineError], None],
    cache: AnswerCache | None,
    books: ExitStack,
) -> Batching:
    """The desk and the rounds of a session; made inside the running event loop.

    `spoken` are the targets as they are used, with who speaks their batches; `routes` lead to them, by the number of
    the job's rule.
    """
    options, course = session.options, steering.course
    offline = options.offline
    if offline:  # the service of a rehearsal is gone with its process
        for state in store.batches.open():
            store.batches.note(state.number, "given_up")
    room = Room(store.identity, None if offline else room_file(session.kind))
    books.callback(room.close)
    if room.made_anew:
        heard(BatchNoted(room.made_anew))
    tries = Tries(store.directory / FOLDER)

    def is_late(number: int, key: Key) -> bool:
        return store.batches.of(number).released and (
            store.reply(key.fingerprint) is not None or store.outcomes.done(key.row)
        )

    def is_strange(target: Target, reply: Reply) -> PipelineError | None:
        return stranger(session, target.endpoint, reply)

    def taken(number: int, live: Iterable[int]) -> None:
        rounds.taken(number, live)
        steering.batch_over()

    taking = Taking(
        store.batches,
        cashier,
        tries,
        store.identity,
        is_late=is_late,
        bought=monitor.bought,
        notify=heard,
        wall=time.time,
        is_strange=is_strange,
        cache=cache,
        over=monitor.taken,
    )
    own = {target.quota: target.limits.batch_tokens for target in spoken}
    desk = BatchDesk(
        store.batches,
        spoken,
        cashier,
        room,
        taking,
        tries,
        taken=taken,
        on_stop=on_stop,
        notify=heard,
        wall=time.time,
        plan=DeskPlan(
            plan.load.prompts,
            course.call_of,
            session.rehearsal,
            {quota: tokens for quota, tokens in own.items() if tokens},
            leaves=options.leave,
            changes=options.changes,
        ),
        ready=services.ready,
    )

    def named(route: Route) -> tuple[Target, ...]:
        return tuple(target for target in route if target in spoken and target.choice in _BATCHED)

    known = {id(route): (number, named(route)) for number, route in enumerate(routes)}

    def batchers(route: Route) -> tuple[int | None, Sequence[Target]]:
        return known.get(id(route)) or (None, named(route))

    waiting = (
        (row, state.number)
        for state in store.batches.open()
        if state.is_waited_for
        for row in store.batches.waiting_rows(state.number)
    )
    rounds = Rounds(
        session.rows,
        rows,
        lambda wanted, is_spread: session.documents(wanted, plan.order if is_spread else None),
        desk,
        batchers,
        course,
        is_stopping=lambda: monitor.stopping,
        waiting=waiting,
        ahead=max(SCOUTS, steering.flex_first),
        leaves=options.leave,
        collects=options.cancel_batches,
    )
    if options.cancel_batches:
        desk.cancel_all()
    return Batching(rounds, desk, room)


def in_batches_of(store: RunStore) -> InBatches | None:
    """What waits in batches of earlier sessions; None: nothing does."""
    states = [state for state in store.batches.open() if state.is_waited_for]
    return InBatches(states, lambda content: store.batches.out(content) is not None) if states else None


def in_batches(store: RunStore) -> Counter[str]:
    """Lines of the batches that are waited for, by target."""
    lines = Counter[str]()
    for state in store.batches.open():
        if state.is_waited_for:
            lines[state.target] += state.lines
    return lines


def room_in(room: Room, target: Target, plan: Plan) -> float:
    """Prompts of the run that may wait in a target's batches at once."""
    tokens = target.limits.batch_tokens or room.tokens_of(target.quota, assumed(target.model).batch_tokens)
    return tokens / plan.load.mean_tokens if plan.load.mean_tokens else float(plan.load.prompts)
