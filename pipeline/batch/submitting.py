"""How a batch is handed in, exactly once, whatever was killed or lost before: one step at a time.

    cut       room for it? → upload
    upload    is its file there? else upload it → uploaded
    uploaded  → asking; create → asked
    asking    a create was made and what came of it is not known: list → found: asked
              not found: delete its file, wait a minute, list again → found: asked; else the same lines as another try

To delete the file is the fence: a create that arrives later finds no file, and fails unpaid. So the minute counts from
then, and not from the create: whatever was created before is listed by its end.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread

from pipeline.batch.common import quota_of
from pipeline.batch.cutting import LEAST_LINES
from pipeline.batch.echoes import without_prompts
from pipeline.batch.room import KEPT_S, Room
from pipeline.providers.batches.base import (
    Batches,
    RemoteBatch,
    RemoteFile,
    is_enqueued_limit,
    is_storage_full,
    may_exist,
)
from pipeline.records import Failure
from pipeline.store.batch_states import BatchState, Stage
from pipeline.store.batches import Batches as Store

FENCE_S = 60.0
"""Within so much a batch that was created is listed: assumed, as nobody says."""
LOOK_S = 60.0
"""How often is looked whether there is room, where nothing says when."""
STORAGE_FULL_S = 600.0
PAUSES_S = (5.0, 15.0, 60.0, 300.0)
"""After a failure that may pass, and after each one more in a row."""
FRESH_S = KEPT_S - 3600.0
"""A file that is older is uploaded again: a batch may begin long after it was created."""


class Submitting:
    """Hands in the batches of a run."""

    def __init__(
        self,
        store: Store,
        room: Room,
        tell: Callable[[str], None],
        stop: Callable[[Failure], None],
        give_up: Callable[[BatchState, str, bool], None],
        wall: Callable[[], float],
    ) -> None:
        """`stop` hears of a failure that no batch would fare better with; `give_up` of a batch that is not handed in.

        Certainly nothing comes of that; it is told why, and whether it was refused. `wall` is epoch seconds.
        """
        self._store, self._room = store, room
        self._tell, self._stop, self._give_up, self._wall = tell, stop, give_up, wall
        self._fenced: dict[int, float] = {}  # batch → when its file was deleted, by the loop's clock
        self._failures: dict[int, int] = {}  # in a row
        self._uploading: set[int] = set()  # whose upload began in this session: its file is nowhere yet
        self.short_of_space = False

    async def step(self, state: BatchState, service: Batches, first_tokens: int, own_tokens: int | None) -> float:
        """Take the next step of a batch; returns in how many seconds the next one is due.

        `first_tokens` may wait in batches while nothing is known of that, `own_tokens` where the job says so. What
        became of it is its state: `asked`, or `given_up` where its prompts have to go another way.
        """
        if state.stage in ("cut", "uploaded"):
            allowed = own_tokens or self._room.tokens_of(quota_of(state), first_tokens)
            wait_s = self._wait_s(state, allowed)
            if wait_s > 0:
                return wait_s
            self._room.enter(state.file, state.account, quota_of(state), state.input_tokens_est)
        if state.stage == "cut":
            self._uploading.add(state.number)
            self._note(state, "upload")
            return 0.0
        if state.stage == "upload":
            return await self._upload(state, service)
        if state.stage == "uploaded":
            return await self._create(state, service, first_tokens, own_tokens)
        return await self._fence(state, service)

    # --- the steps ---------------------------------------------------------------------------------------------------

    def _wait_s(self, state: BatchState, allowed: int) -> float:
        size = state.input_tokens_est
        wait_s = self._room.wait_s(state.file, state.account, quota_of(state), size, allowed)
        if wait_s > 0:
            return min(wait_s, LOOK_S)
        if state.stage == "cut":
            self.short_of_space = not self._room.has_space(state.account, state.size_bytes)
        return LOOK_S if self.short_of_space and state.stage == "cut" else 0.0

    async def _upload(self, state: BatchState, service: Batches) -> float:
        number = state.number
        if number not in self._uploading:
            there = await service.find_file(state.file)
            if isinstance(there, Failure):
                return self._failed(state, there)
            if there is not None and there.sha256 in (None, state.sha256) and there.size in (None, state.size_bytes):
                return self._uploaded(state, there)
        self._uploading.discard(number)
        outcome = await service.upload(self._store.requests_path(number), state.file, state.sha256)
        if isinstance(outcome, RemoteFile) and outcome.sha256 not in (None, state.sha256):
            await service.remove(outcome)
            outcome = Failure("transient", "server", "the service has its file otherwise than it was sent", sent=False)
        if isinstance(outcome, Failure):
            return self._failed(state, outcome)
        return self._uploaded(state, outcome)

    def _uploaded(self, state: BatchState, file: RemoteFile) -> float:
        self._failures.pop(state.number, None)
        self._room.stored(state.file, state.account, state.size_bytes)
        self._note(state, "uploaded", remote_file=file.name)
        return 0.0

    async def _create(self, state: BatchState, service: Batches, first_tokens: int, own_tokens: int | None) -> float:
        if self._wall() - state.at > FRESH_S:
            self._note(state, "upload")
            return 0.0
        self._note(state, "asking")
        outcome = await service.create(state.model, RemoteFile(state.remote_file), state.file)
        if isinstance(outcome, RemoteBatch) and outcome.label in ("", state.file):
            return await self._asked(state, service, outcome)
        if isinstance(outcome, RemoteBatch):  # as of a relay that answers what it answered before
            self._tell(f"batch {state.number}: the service names another one, {outcome.name}: ours is looked for")
            return 0.0
        outcome = await self._discreet(state, outcome)
        if may_exist(outcome):
            self._tell(
                f"batch {state.number}: whether it was created is not known ({outcome.message}): it is looked for"
            )
            return 0.0
        self._note(state, "uploaded", remote_file=state.remote_file)
        if is_enqueued_limit(outcome):
            return self.refused(state, first_tokens, own_tokens)
        if outcome.http_status == 404 and not await self._is_there(state, service):
            self._note(state, "upload")
        return self._failed(state, outcome)

    def refused(self, state: BatchState, first_tokens: int, own_tokens: int | None) -> float:
        """It was refused for what waits already; returns how long to wait.

        Its prompts are cut anew, into smaller ones, where it is too large by itself.
        """
        quota = quota_of(state)
        self._room.leave(state.file)
        hold_s = self._room.refused(quota, first_tokens, state.input_tokens_est, state.lines)
        self._tell(f"batch {state.number}: too much is enqueued, it is asked again in {hold_s / 60:.0f} min")
        too_large = self._room.is_too_large(state.file, state.account, quota)
        if too_large and own_tokens is None and state.lines > LEAST_LINES:
            self._give_up(state, "it is cut anew, into smaller ones", False)
            return 0.0
        return hold_s

    async def _asked(self, state: BatchState, service: Batches, remote: RemoteBatch) -> float:
        self._failures.pop(state.number, None)
        self._fenced.pop(state.number, None)
        self._note(state, "asked", name=remote.name, status=remote.status)
        self._room.enter(state.file, state.account, quota_of(state), state.input_tokens_est)
        if remote.status != "pending":  # one that is looked at first may be refused after all
            self._room.let_in(quota_of(state))
        return 0.0

    async def _fence(self, state: BatchState, service: Batches) -> float:
        now = anyio.current_time()
        fenced_at = self._fenced.get(state.number)
        if fenced_at is not None and now < fenced_at + FENCE_S:
            return fenced_at + FENCE_S - now
        listed = await service.find_all()
        if isinstance(listed, Failure):
            return self._failed(state, listed)
        if ours := ours_of(state, listed):
            self._tell(f"batch {state.number}: it was created, as the service's list says")
            return await self._asked(state, service, ours[0])
        if fenced_at is None:
            failure = await service.remove(RemoteFile(state.remote_file))
            if failure is not None:
                return self._failed(state, failure)
            self._room.deleted(state.file)
            self._fenced[state.number] = anyio.current_time()
            return FENCE_S
        del self._fenced[state.number]
        self._room.leave(state.file)
        self._store.again(state.number, at=self._wall())
        return 0.0

    # --- what else ---------------------------------------------------------------------------------------------------

    def _note(self, state: BatchState, stage: Stage, **told: Any) -> None:
        self._store.note(state.number, stage, at=self._wall(), **told)

    async def _discreet(self, state: BatchState, failure: Failure) -> Failure:
        path = self._store.requests_path(state.number)
        return replace(failure, message=await anyio.to_thread.run_sync(without_prompts, failure.message, path))

    async def _is_there(self, state: BatchState, service: Batches) -> bool:
        return isinstance(await service.find_file(state.file), RemoteFile)

    def _failed(self, state: BatchState, failure: Failure) -> float:
        """What a failure of a step means; nothing of it was billed."""
        if failure.kind in ("auth", "proxy", "spend_limit", "fatal"):
            self._stop(failure)
            return LOOK_S
        if is_storage_full(failure):
            self.short_of_space = True
            self._tell("the project's storage for files is full: batches wait, and files of ours are deleted")
            return STORAGE_FULL_S
        if failure.kind == "reject" and state.stage in ("upload", "uploaded") and failure.http_status != 404:
            self._give_up(state, failure.message, True)
            return 0.0
        failures = self._failures[state.number] = self._failures.get(state.number, 0) + 1
        if failures == len(PAUSES_S):
            self._tell(f"batch {state.number} cannot be handed in for now: {failure.message}")
        return PAUSES_S[min(failures, len(PAUSES_S)) - 1]


def ours_of(state: BatchState, listed: list[RemoteBatch]) -> list[RemoteBatch]:
    """Those of a listing that are this batch, in this try; the first to be used is the first that was created."""
    found = [
        each
        for each in listed
        if each.label == state.file or (state.remote_file and each.input_file == state.remote_file)
    ]
    return sorted(found, key=lambda each: (each.is_over and each.status != "succeeded", each.created or 0.0))


async def cancel_twins(
    states: list[BatchState], run: str, listed: list[RemoteBatch], service: Batches, tell: Callable[[str], None]
) -> None:
    """Cancel what the service works on under our names beside the batches that we know; `run` begins those names.

    A name for which nothing was ever asked from here is of a copy of this run, which goes on elsewhere: it is let be.
    """
    asked = {name for state in states for name in state.asked_as}
    known = {state.name for state in states if state.name}
    unsure = {state.file for state in states if state.stage == "asking"}
    for each in listed:
        if not each.label.startswith(f"{run}-") or each.is_over or each.name in known or each.label in unsure:
            continue
        if each.label not in asked:
            tell(f"{each.name} at the service is of a copy of this run, {each.label}: rows may be paid for twice")
            continue
        with suppress(OSError):
            await service.cancel(each.name)
        tell(f"{each.name} at the service is a second one of ours, {each.label}: it is cancelled")
