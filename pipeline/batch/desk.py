"""The batch desk: the run's one task that talks to a service about batches. It cuts, hands in, asks after, takes.

    add → draft (drafts) → cut → handed in once (submitting) → asked after (watching) → its results taken (results)

A prompt that is added waits; `taken` says when its batch is out no more, and its row is opened again. What stands in
`batches.jsonl` is all that has to be known: whatever was killed, the next start goes on from there.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from random import Random

import anyio

from pipeline.batch.common import MOST_TRIES, Common, Plan, quota_of
from pipeline.batch.drafts import Drafts
from pipeline.batch.results import Taking
from pipeline.batch.room import KEPT_S, Room
from pipeline.batch.submitting import Submitting, cancel_twins
from pipeline.batch.tries import Tries
from pipeline.batch.watching import POLL_S, Watching
from pipeline.budget.cashier import Cashier
from pipeline.errors import PipelineError, RunStateError
from pipeline.events import BatchNoted, Notify
from pipeline.prompts import Prompt
from pipeline.providers.batches.base import Batches as Service
from pipeline.quota.stops import stopped_by
from pipeline.records import Failure
from pipeline.store.batch_states import BatchState
from pipeline.store.batches import Batches as Store
from pipeline.targets import Target

CANCELLED_S = 900.0
"""From a start on until a batch that an earlier session called off is over: OpenAI takes up to 10 minutes for it."""
CANCEL_S = 120.0
"""How long a batch that was cancelled is waited for: what it has answered may be handed out."""
LONGEST_REST_S = 60.0
"""The last call may move: it is looked at so often."""
_TOO_LATE = "it was not handed in before the last call"

Ready = Callable[[Prompt, Target], Awaitable[Prompt | Failure]]
Taken = Callable[[int, Iterable[int]], None]
"""Hears of a batch that is out no more, and which rows with lines in it have a prompt that is to be asked at once."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a person may want to know."""

    batches: int  # that are waited for, those included that are not handed in yet
    lines: int  # in them, and in those that are not cut yet
    oldest_at: float | None  # when the oldest of them was handed in, epoch seconds
    answered: int  # lines, over all sessions of the run
    waits_until: float | None  # epoch seconds of the next look at the service; None: nothing is waited for
    last_call_at: float | None = None  # epoch seconds from which the first of them is asked live; None: nothing presses


class BatchDesk:
    """The batches of one run; `run` does the work, the rest may be called beside it, on the same event loop."""

    def __init__(
        self,
        store: Store,
        services: Mapping[Target, Service],
        cashier: Cashier,
        room: Room,
        taking: Taking,
        tries: Tries,
        *,
        taken: Taken,
        on_stop: Callable[[PipelineError], None],
        notify: Notify,
        wall: Callable[[], float],
        plan: Plan,
        ready: Ready | None = None,
        rng: Random | None = None,
    ) -> None:
        """`services` by the targets that prompts are added for; `on_stop` hears what ends the run.

        `ready` puts the files of a prompt in place; `wall` is epoch seconds. What is out is reserved for at once.
        """
        self._notify, self._on_stop, self._taken = notify, on_stop, taken
        self._ready, self._tries, self._store = ready, tries, store
        common = Common(store, services, cashier, room, self._tell, self._stopped_by, wall, plan)
        self._common = common
        self._drafts = Drafts(common)
        self._submitting = Submitting(store, room, self._tell, self._stopped_by, self._give_up, wall)
        self._watching = Watching(common, self._submitting, taking, taken, self._end, rng or Random())
        self._is_closed = False
        self._late = {state.number for state in store.open() if state.released}
        self._late_until = inf
        self._has_begun = self._is_at_it = False
        self._waker = anyio.Event()
        for state in store.open():
            cashier.beside.owe(state.number, state.worst_usd or Decimal(0))
            if state.released:
                cashier.beside.wait_no_more(state.number)

    # --- what a call asks --------------------------------------------------------------------------------------------

    def waits(self, prompt: Prompt, model: str) -> int | None:
        """The batch in which this content waits already, asked of that model, or which has answered it by now.

        Where that is open no more, the row is to look again.
        """
        return self._store.out(prompt.fingerprint(model), prompt.row)

    async def add(self, prompt: Prompt, target: Target) -> int | None:
        """Put a prompt into the batch that is being cut, unless its content waits already; the number of that batch.

        None where it is to be asked at once: it is too large for a line, a cap on spending leaves no room now, its
        files cannot be put in place, it was in as many batches as may be, or nothing is cut any more.
        """
        fingerprint = prompt.fingerprint(target.model)
        if (number := self.waits(prompt, target.model)) is not None:
            return number
        if not self._takes(target) or self._tries.of(fingerprint) >= MOST_TRIES:
            return None
        made: Prompt | Failure = prompt
        if self._ready is not None and prompt.media:
            made = await self._ready(prompt, target)
        if isinstance(made, Failure):
            return None
        line = await self._common.services[target].line(fingerprint, made, target.model)
        if (number := self.waits(prompt, target.model)) is not None:  # by another row, meanwhile
            return number
        if isinstance(line, Failure) or not self._takes(target):
            return None
        try:
            number = await self._drafts.put(prompt, target, line)
        except PipelineError as reason:
            self._end(reason)
            return None
        self._wake()
        return number

    @property
    def has_asked(self) -> bool:
        """Whether this session made a batch, or may have: it is paid for."""
        return self._store.has_asked

    def is_open(self, number: int) -> bool:
        """Whether the batch is waited for, or will be."""
        if number in self._drafts.numbers():
            return True
        return any(state.number == number and state.is_waited_for for state in self._store.open())

    def flush(self) -> None:
        """Cut what there is: nothing more comes, or waiting longer would take too long."""
        self._drafts.flush()
        self._wake()

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cut and hand in nothing more, and end: what is with the service stays there for the next start."""
        self._is_closed = True
        self._wake()

    def cancel_all(self) -> None:
        """Cancel every batch and take what they hand out, as at the last call; `is_idle` says when that is done."""
        self._common.is_over = True
        self._wake()

    @property
    def out(self) -> int:
        """Batches that are waited for, without what is being cut."""
        return sum(state.is_waited_for for state in self._ours())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is waited for and nothing is being cut."""
        return not (self._drafts.numbers() or self.has_late or any(state.is_waited_for for state in self._ours()))

    @property
    def has_late(self) -> bool:
        """Whether a batch that an earlier session called off is waited for, as it may still be over soon."""
        return anyio.current_time() < self._late_until and any(state.number in self._late for state in self._ours())

    @property
    def is_settled(self) -> bool:
        """Whether all is with the service or cannot be handed in now, and what was over is taken."""
        if not self._has_begun or self._is_at_it or self._drafts.numbers():
            return False
        return not any(self._common.is_due(state) or state.stage == "asking" for state in self._ours())

    @property
    def standing(self) -> Standing:
        """As it is now."""
        states = [state for state in self._store.open() if state.is_waited_for]
        asked = [state.asked_at for state in states if state.asked_at is not None]
        dues = [self._common.due[state.number] for state in states if state.number in self._common.due]
        in_s = max(0.0, min(dues) - anyio.current_time()) if dues else None
        call_s = min((self._common.plan.last_call(each.number) for each in states), default=inf) - anyio.current_time()
        return Standing(
            len(states),
            sum(state.lines for state in states) + self._drafts.lines,
            min(asked, default=None),
            sum(state.ok for state in self._store.all()),
            None if in_s is None else self._common.wall() + in_s,
            None if call_s == inf else self._common.wall() + call_s,
        )

    # --- the work ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Cut, hand in, ask after and take until `close`."""
        beside = self._common.cashier.beside
        beside.waits_for_batches = not self._common.plan.leaves
        try:
            await self._begin()
            while not self._is_closed:
                self._waker = anyio.Event()
                self._is_at_it = True
                await self._turn()
                self._is_at_it = False
                if not self._is_closed:
                    with anyio.move_on_after(self._next_s()):
                        await self._waker.wait()
        except PipelineError as reason:  # the disk: what is with the service stays there
            self._end(reason)
        finally:
            self._is_closed = True
            beside.waits_for_batches = False
            self._drafts.drop_all()
            beside.on_room()

    async def _begin(self) -> None:
        """Find again what earlier sessions left; every start lists once where something is out."""
        common = self._common
        self._tries.open()
        self._late_until = anyio.current_time() + CANCELLED_S
        for state in self._store.all():
            service = common.service_of(state)
            if not state.is_open:
                if service is not None and state.stage in ("taken", "given_up"):
                    await self._watching.clear(state, service)
                continue
            if state.stage != "cut":
                size, since = state.input_tokens_est, state.asked_at or state.at
                common.room.enter(state.file, state.account, quota_of(state), size, since)
                common.room.stored(state.file, state.account, state.size_bytes, since)
            if state.cancelling and not state.released:
                self._watching.cancelled[state.number] = anyio.current_time()
            is_anybodys = state.stage in ("asking", "asked", "fetched")
            if service is None and is_anybodys and common.wall() > (state.asked_at or state.cut_at) + KEPT_S:
                await self._watching.abandon(state)
            elif service is None and state.is_waited_for:
                of = f' (target "{state.target}")' if state.target else ""
                raise RunStateError(
                    f"batch {state.number} of this run is with {state.endpoint}{of}, of another project or key than the"
                    " job names now\nIts prompts wait there, and are not bought again.",
                    "name that project again, or use its key: the same command then takes what was answered; 48 hours"
                    " after it was handed in it is given up",
                )
        for service, states in common.by_service(self._store.open()):
            listed = await service.find_all()
            if isinstance(listed, list):
                ours = states[0].file.rsplit("-", 2)[0]
                await cancel_twins(self._store.all(), ours, listed, service, self._tell)
            elif listed.kind in ("auth", "proxy"):
                self._stopped_by(listed)
        self._has_begun = True

    async def _turn(self) -> None:
        """Whatever is due."""
        common = self._common
        await self._call_last()
        await self._drafts.cut_due()
        for state in self._ours():
            if state.stage not in ("asked", "fetched") and not self._is_closed:
                await self._hand_in(state)
        for service, states in common.by_service(self._store.open()):
            if not self._is_closed:
                await self._watching.look_after(
                    service, [state for state in states if state.stage in ("asked", "fetched")]
                )
        self._release_late()

    def _next_s(self) -> float:
        """In how many seconds something is due."""
        if self._drafts.are_due:
            return 0.0
        dues = [self._common.due.get(state.number, 0.0) for state in self._ours()]
        if not self._common.is_over:
            waited = (0, *(state.number for state in self._ours() if state.number not in self._watching.cancelled))
            dues += [at for at in map(self._common.plan.last_call, waited) if at > anyio.current_time()]
        return max(0.0, min(LONGEST_REST_S, min((*dues, *self._drafts.next_at()), default=inf) - anyio.current_time()))

    async def _hand_in(self, state: BatchState) -> None:
        """Take the steps of a batch that are due."""
        common, number = self._common, state.number
        service = common.service_of(state)
        assert service
        first, own = common.first_tokens(state), common.own_tokens(state)
        while common.is_due(state) and not self._is_closed:
            wait_s = await self._submitting.step(state, service, first, own)
            state = self._store.of(number)
            if state.stage == "cut" and common.is_called(number):  # nothing was created, and nothing will be
                self._give_up(state, _TOO_LATE)
                state = self._store.of(number)
            if not state.is_open:
                await self._watching.clear(state, service)
                return
            common.again_in(number, wait_s)
            if state.stage == "asked":
                return
        if self._submitting.short_of_space:
            await self._watching.make_space()

    def _give_up(self, state: BatchState, why: str, is_refused: bool = False) -> None:
        """Hand a batch in no more, of which certainly nothing comes: its prompts go another way.

        Where it was refused that was a try of each: the next one may be refused for the same.
        """
        keys = self._store.keys(state.number)
        if is_refused:
            self._tries.add(key.fingerprint for key in keys)
        is_called = self._common.is_called(state.number)
        live = [key for key in keys if is_called or self._tries.of(key.fingerprint) >= MOST_TRIES]
        self._store.fell_back(live, "failed" if is_refused else "not_sent")
        if is_refused:
            self._store.fell_back(set(keys).difference(live), "failed", again=True)
        self._common.note(state.number, "given_up")
        self._tell(f"batch {state.number} is given up: {why}")
        self._common.room.leave(state.file)
        self._common.cashier.beside.owe(state.number, Decimal(0))
        self._common.due.pop(state.number, None)
        self._taken(state.number, sorted({key.row for key in live}))

    # --- the last call -----------------------------------------------------------------------------------------------

    async def _call_last(self) -> None:
        """Cut nothing whose last call it is, and cancel what is out of that kind."""
        common = self._common
        if common.is_called(0):
            for number, keys in self._drafts.drop_all():
                self._store.fell_back(keys, "not_sent")
                self._taken(number, sorted({key.row for key in keys}))
        for state in self._ours():
            service = common.service_of(state)
            if service is None or state.released or not common.is_called(state.number):
                continue
            if state.number not in self._watching.cancelled:
                self._tell(
                    f"batch {state.number} is called off"
                    if common.is_over
                    else f"last call of batch {state.number}: what it has not answered goes to the lane above"
                )
                self._watching.cancelled[state.number] = anyio.current_time()
            if state.stage in ("cut", "upload", "uploaded"):
                self._give_up(state, _TOO_LATE)
                await self._watching.clear(self._store.of(state.number), service)
            elif state.stage == "asked" and not state.cancelling:
                await self._watching.cancel(state, service)

    def _release_late(self) -> None:
        """Wait no longer for what was cancelled and is not over after all: it is asked in the lane above."""
        now = anyio.current_time()
        for state in self._ours():
            since = self._watching.cancelled.get(state.number, inf)
            if state.is_waited_for and now >= since + CANCEL_S:
                keys = self._store.keys(state.number)
                is_lost = self._watching.is_lost(state.number)
                self._store.fell_back(keys, "not_found" if is_lost else "called_in")
                self._common.note(state.number, "released")
                self._common.cashier.beside.wait_no_more(state.number)
                self._tell(
                    f"batch {state.number} is not over yet: its prompts go to the lane above, its answers are late"
                )
                self._common.again_in(state.number, POLL_S[0])
                del self._watching.cancelled[state.number]
                self._taken(state.number, sorted({key.row for key in keys}))

    # --- who is told -------------------------------------------------------------------------------------------------

    def _ours(self) -> list[BatchState]:
        """Batches that are out, and that somebody speaks for."""
        return [state for state in self._store.open() if self._common.service_of(state) is not None]

    def _takes(self, target: Target) -> bool:
        return not self._is_closed and target in self._common.services and not self._common.is_called(0)

    def _tell(self, message: str) -> None:
        self._notify(BatchNoted(message))

    def _stopped_by(self, failure: Failure) -> None:
        self._end(stopped_by(failure))

    def _end(self, reason: PipelineError) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._on_stop(reason)
        self._wake()

    def _wake(self) -> None:
        self._waker.set()
