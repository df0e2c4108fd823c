"""Asks after the batches that are out, takes those that are over, and deletes their files."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from random import Random

import anyio
import anyio.to_thread

from pipeline.batch.common import MOST_TRIES, Common, quota_of
from pipeline.batch.echoes import without_prompts
from pipeline.batch.results import Taking
from pipeline.batch.submitting import Submitting
from pipeline.errors import PipelineError
from pipeline.process import trim_memory
from pipeline.providers.batches.base import Batches as Service
from pipeline.providers.batches.base import RemoteBatch, RemoteFile
from pipeline.records import Failure
from pipeline.store.batch_states import BatchState

POLL_PART = 20
"""A batch is asked after when it is a twentieth older: 350 times in a day."""
POLL_S = (15.0, 300.0)
"""But not more often, and not less."""
REHEARSED_POLL_S = 1.0
JITTER = 0.2
BY_LIST = 10
"""Where more batches are out, one listing tells of all of them."""
SLOW_AFTER = 5
"""Failures in a row after which a service is asked only every five minutes."""
CANCELLED_POLL_S = 5.0
"""How often one is asked after that was cancelled."""


class Watching:
    """See the top. `taken` hears of a batch that is out no more, and of the rows that are to be asked at once."""

    def __init__(
        self,
        common: Common,
        submitting: Submitting,
        taking: Taking,
        taken: Callable[[int, Iterable[int]], None],
        end: Callable[[PipelineError], None],
        rng: Random,
    ) -> None:
        """`end` hears why the run should not go on."""
        self._common, self._submitting, self._taking = common, submitting, taking
        self._taken, self._end, self._rng = taken, end, rng
        self.cancelled: dict[int, float] = {}  # batch → since when, by the loop's clock
        self._failures: dict[int, int] = {}  # by service, in a row
        self._not_found: set[int] = set()

    async def look_after(self, service: Service, states: list[BatchState]) -> None:
        """Ask after those of these that are due, and take what is over. Raises `RunStateError` for the disk."""
        common = self._common
        due = list(filter(common.is_due, states))
        for state in [state for state in due if self._is_here(state)]:
            due.remove(state)
            remote = RemoteBatch(state.name, state.file, None, "succeeded", ended=state.ended_at)
            await self._take(state, service, self._dated(state, remote))
        if not due:
            return
        told: Mapping[str, RemoteBatch] = {}
        if len(states) > BY_LIST:
            listed = await service.find_all()
            if isinstance(listed, Failure):
                self._failed(service, due, listed)
                return
            told, due = {each.name: each for each in listed}, [state for state in states if not self._is_here(state)]
        for state in due:
            listed_as = told.get(state.name)
            is_told = listed_as is not None and not listed_as.is_over and listed_as.ended is None
            remote_or = listed_as if is_told else await service.get(state.name)  # a listing tells of no results
            if isinstance(remote_or, Failure):
                self._failed(service, due, remote_or)
                return
            self._failures.pop(id(service), None)
            if remote_or is None:
                self._missed(state)
            else:
                self._not_found.discard(state.number)
                await self._heed(state, service, remote_or)

    async def cancel(self, state: BatchState, service: Service) -> None:
        """Have no more of it answered, and wait for what it has to hand out."""
        self.cancelled.setdefault(state.number, anyio.current_time())
        waits = state.status in ("", "pending")  # when it was asked after last: minutes ago, maybe
        seen = await service.get(state.name) if waits else None
        failure = await service.cancel(state.name)
        if failure is None:
            unbegun = {"unbegun": True} if isinstance(seen, RemoteBatch) and seen.status == "pending" else {}
            self._common.note(state.number, "cancelling", **unbegun)
            self._common.again_in(state.number, 0.0)
        elif failure.kind in ("auth", "proxy"):
            self._common.stop(failure)

    async def clear(self, state: BatchState, service: Service, remote: RemoteBatch | None = None) -> None:
        """Delete its files at the service; those that cannot be end by themselves after two days."""
        if await self._deleted(state, service, remote):
            self._common.note(state.number, "cleared")

    def is_lost(self, number: int) -> bool:
        """Whether the service did not find it when it was asked last."""
        return number in self._not_found

    async def make_space(self) -> None:
        """Delete the files that batches which are worked on have no use for any more."""
        self._submitting.short_of_space = False
        for state in self._common.store.open():
            service = self._common.service_of(state)
            is_read = state.stage == "asked" and state.status == "running"
            if service and is_read and await service.remove(RemoteFile(state.remote_file)) is None:
                self._common.room.deleted(state.file)

    # --- what was told -----------------------------------------------------------------------------------------------

    async def _heed(self, state: BatchState, service: Service, remote: RemoteBatch) -> None:
        common, number = self._common, state.number
        common.again_in(number, self._poll_s(state))
        remote = self._dated(state, remote)
        if remote.status != state.status:
            ended = {} if remote.ended is None else {"ended_at": remote.ended}
            state = common.note(number, "state", status=remote.status, **ended)
            if remote.status in ("running", "succeeded"):
                common.room.let_in(quota_of(state))
        if remote.lines not in (None, state.lines) and not remote.is_over and not state.cancelling:
            common.tell(f"batch {number} is cancelled: the service read {remote.lines:,} of its {state.lines:,} lines")
            await self.cancel(state, service)
            return
        if not remote.is_over:
            return
        if remote.over_limit and not common.is_called(number):
            again = common.store.again(number, at=common.wall())
            wait_s = self._submitting.refused(again, common.first_tokens(again), common.own_tokens(again))
            common.again_in(number, wait_s)
        elif self._is_worth_again(state, remote):
            path = common.store.requests_path(number)
            error = await anyio.to_thread.run_sync(without_prompts, remote.error, path)
            why = f": {error}" if error else ""
            common.tell(f"batch {number} {remote.status} without results, and is handed in again{why}")
            await self._deleted(state, service, remote)
            common.room.leave(state.file)
            common.store.again(number, at=common.wall())
            common.again_in(number, 0.0)
        else:
            await self._take(state, service, remote)

    def _dated(self, state: BatchState, remote: RemoteBatch) -> RemoteBatch:
        """The same, ended after it was asked for and not in the future: what it cost counts on that day."""
        if remote.ended is None:
            return remote
        return replace(remote, ended=min(self._common.wall(), max(remote.ended, state.asked_at or state.at)))

    def _is_worth_again(self, state: BatchState, remote: RemoteBatch) -> bool:
        """Whether the same lines are handed in once more: nothing came of them."""
        is_empty = remote.status in ("failed", "expired") and not remote.outputs and remote.inline is None
        may_be = state.attempt < MOST_TRIES and not state.released and not state.cancelling
        return is_empty and may_be and not self._common.is_called(state.number)

    async def abandon(self, state: BatchState) -> None:
        """Count one at its most that was not collected in time, and is of a project that the job names no more."""
        taken = await self._taking.abandon(state, self._common.as_it_was(state))
        self._common.room.leave(state.file)
        self._common.tell(
            f"batch {state.number} is with {state.endpoint}, of another project or key than the job names now, and was"
            " not collected in 48 hours: it counts at its most, and its prompts are asked again"
        )
        self._taken(state.number, taken.live)

    async def _take(self, state: BatchState, service: Service, remote: RemoteBatch) -> None:
        common, number = self._common, state.number
        target = common.target_of(state)
        assert target
        is_called = number in self.cancelled
        taken = await self._taking.take(state, target, service, remote, is_called=is_called)
        await anyio.to_thread.run_sync(trim_memory)
        if isinstance(taken, Failure):
            if taken.kind in ("auth", "proxy"):
                common.stop(taken)
            common.again_in(number, self._poll_s(state))
            return
        if taken.refused is not None:
            self._end(taken.refused)
            return
        state = common.store.of(number)
        self.cancelled.pop(number, None)
        common.room.leave(state.file, freed=remote.status != "cancelled")
        if remote.status == "succeeded" and state.ok:
            common.room.answered(quota_of(state), common.first_tokens(state))
        common.tell(_told(state))
        common.due.pop(number, None)
        for other in common.store.open():
            if other.stage in ("cut", "uploaded"):
                common.again_in(other.number, 0.0)  # there may be room for it
        self._taken(number, taken.live)
        if taken.stop is not None:
            self._end(taken.stop)
        await self.clear(state, service, remote)

    async def _deleted(self, state: BatchState, service: Service, remote: RemoteBatch | None) -> bool:
        room = self._common.room
        if state.remote_file:
            if await service.remove(RemoteFile(state.remote_file)) is not None:
                return False
            room.deleted(state.file)
        for output in remote.outputs if remote else ():
            if await service.remove(RemoteFile(output)) is not None:  # 400 is usual
                room.stored(f"{state.file}/{output}", state.account, state.size_bytes)
        return True

    def _failed(self, service: Service, states: Iterable[BatchState], failure: Failure) -> None:
        if failure.kind in ("auth", "proxy"):
            self._common.stop(failure)
            return
        failures = self._failures[id(service)] = self._failures.get(id(service), 0) + 1
        least, most = self._poll_bounds_s
        if failures == SLOW_AFTER:
            self._common.tell(f"the service does not tell of its batches, and is asked every 5 min: {failure.message}")
        for state in states:
            self._common.again_in(state.number, most if failures >= SLOW_AFTER else least * 2 ** (failures - 1))

    def _missed(self, state: BatchState) -> None:
        """Not found is not lost: with the key of another project nothing is found either."""
        self._common.again_in(state.number, POLL_S[1])
        if state.number not in self._not_found:
            self._not_found.add(state.number)
            self._common.tell(
                f"batch {state.number} is not found at the service: is it the key of another project? It is kept, and"
                " looked for every 5 min"
            )

    def _is_here(self, state: BatchState) -> bool:
        return state.stage == "fetched" and self._common.store.results_path(state.number).exists()

    @property
    def _poll_bounds_s(self) -> tuple[float, float]:
        least, most = POLL_S
        return (min(least, REHEARSED_POLL_S) if self._common.plan.is_rehearsal else least), most

    def _poll_s(self, state: BatchState) -> float:
        if state.number in self.cancelled:
            return CANCELLED_POLL_S
        least, most = self._poll_bounds_s
        age_s = self._common.wall() - (state.asked_at or state.at)
        return max(least, min(most, age_s / POLL_PART)) * self._rng.uniform(1 - JITTER, 1 + JITTER)


def _told(state: BatchState) -> str:
    """What came of a batch, for a person."""
    counts = (
        (state.failed, "failed"),
        (state.missing, "without an answer"),
        (state.refused, "not believed"),
        (state.late, "late"),
    )
    parts = [f"{state.ok:,} answered", *(f"{count:,} {name}" for count, name in counts if count)]
    return f"batch {state.number} {state.status}: {', '.join(parts)}"
