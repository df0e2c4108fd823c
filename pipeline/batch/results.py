"""The results of a batch that is over: fetched, read, checked, priced, kept. See `taking` for what is believed."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from math import ceil
from pathlib import Path
from random import Random

import anyio
import anyio.lowlevel
import anyio.to_thread

from pipeline.batch.common import MOST_TRIES
from pipeline.batch.echoes import each_without_prompt
from pipeline.batch.room import KEPT_S
from pipeline.batch.taking import REFUSED_LEAST, Found, found_in, is_other, lines_of, to_count
from pipeline.batch.tries import Tries
from pipeline.budget.cashier import Cashier
from pipeline.cache import AnswerCache
from pipeline.errors import PipelineError, ServiceError
from pipeline.events import BatchNoted, Notify
from pipeline.plan.lanes import LOST
from pipeline.prompts import Prompt
from pipeline.providers.batches.base import Batches as Service
from pipeline.providers.batches.base import RemoteBatch, is_too_large
from pipeline.records import Failure, Reply, Status, Usage, changed
from pipeline.store.batch_lines import Key
from pipeline.store.batch_states import BatchState, cannot_write
from pipeline.store.batches import Batches as Store
from pipeline.store.fallen import FromBatch
from pipeline.store.lines import Call
from pipeline.targets import Target

GONE_S = 3600.0
"""How long results are looked for that are not where a batch that is over says they are: nobody tells how late they may
be, and this is sixty times what batches take to be listed."""
_AT_ONCE = 8  # prompts that are counted
_STEP = 200  # lines between which others have their turn
_ENDING = frozenset({"invalid_request", "prompt_blocked", "too_long"})
_PASSING = frozenset({"transient", "rate_limit", "day_quota"})
_GONE = frozenset({403, 404, 410})
_NO_ROW = Key("", -1, "", "answer", 0, 0, 1, 0, None, 0, False)
"""Of a line that is none of ours: it may have been paid for."""

Bought = Callable[[Prompt, Reply, bool], None]
Over = Callable[[BatchState, Usage], None]
Count = Callable[[bytes, str], Awaitable[int | Failure]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What taking a batch leaves to be done."""

    live: list[int] = field(default_factory=list)  # rows of which a prompt is to be asked at once
    stop: PipelineError | None = None  # why the run should not go on
    refused: PipelineError | None = None  # why nothing was taken at all


class Taking:
    """Takes the results of batches of one run."""

    def __init__(
        self,
        store: Store,
        cashier: Cashier,
        tries: Tries,
        run: str,
        *,
        is_late: Callable[[int, Key], bool],
        bought: Bought,
        notify: Notify,
        wall: Callable[[], float],
        is_strange: Callable[[Target, Reply], PipelineError | None] = lambda target, reply: None,
        cache: AnswerCache | None = None,
        over: Over = lambda state, usage: None,
        rng: Random | None = None,
    ) -> None:
        """`run` is the run's identity; `is_late` says whether what a batch answers was answered elsewhere meanwhile.

        `is_strange` says why replies of such a kind must not come into this run; `cache` is given the whole answers.
        `over` hears of each batch that is taken, and what all of its lines were billed.
        """
        self._store, self._cashier, self._tries, self._run = store, cashier, tries, run
        self._is_late, self._bought, self._notify, self._wall = is_late, bought, notify, wall
        self._is_strange, self._cache, self._over, self._rng = is_strange, cache, over, rng or Random()

    async def take(
        self, state: BatchState, target: Target, service: Service, remote: RemoteBatch, *, is_called: bool = False
    ) -> Taken | Failure:
        """Take what there is; a failure where it cannot be fetched for now. Raises `RunStateError` for the disk.

        With `is_called` it was called in: what it has not answered goes to no other batch.
        """
        number, results, is_gone = state.number, self._store.results_path(state.number), False
        ended = remote.ended or state.ended_at or self._wall()
        is_here = state.stage == "fetched" and results.exists()
        if not is_here and (remote.outputs or remote.inline is not None):
            try:
                failure = await service.fetch(remote, results)
            except OSError as error:
                raise cannot_write(results, error) from None
            is_gone = failure is not None and self._is_gone(state, failure, ended)
            if failure is not None and is_too_large(failure):
                self._notify(BatchNoted(f"batch {number}: {failure.message}: none of it is used"))
            elif failure is not None and not is_gone:
                return failure
            is_here = failure is None
            if is_here:
                self._store.note(number, "fetched", at=self._wall())
        keys = await anyio.to_thread.run_sync(self._store.keys, number)
        by_name = {key.fingerprint: key for key in keys}
        found: Found = (
            await anyio.to_thread.run_sync(_read, results, by_name, service, state.model) if is_here else Found()
        )
        if found.failures and (path := self._store.requests_path(number)).exists():
            failed = [by_name[name] for name in found.failures]
            lines = await anyio.to_thread.run_sync(_lines_of, path, failed)
            found.failures = await anyio.to_thread.run_sync(each_without_prompt, found.failures, lines)
        is_scrambled = await self._check(found, by_name, state, service)
        stop: PipelineError | None = None
        if is_scrambled or found.is_refused(len(keys)):
            stop = self._disbelieved(state, found.unbelieved)
            found.refuse_all(by_name)
        lane = target.asked_in("batch")
        for position, reply in enumerate(found.replies.values()):
            await _turn(position)
            if strange := self._is_strange(target, reply):
                return Taken(refused=strange)
        if self._cache is not None and found.replies:
            await self._share(self._cache, results, found, target, service)
        return await self._keep(state, remote, lane, keys, found, ended, stop, is_called)

    async def abandon(self, state: BatchState, target: Target) -> Taken:
        """Count a batch at its most that nobody can ask after any more; its prompts may go into another one."""
        keys = await anyio.to_thread.run_sync(self._store.keys, state.number)
        remote = RemoteBatch("", state.file, None, "succeeded")
        return await self._keep(state, remote, target.asked_in("batch"), keys, Found(), self._wall(), None, False)

    def _is_gone(self, state: BatchState, failure: Failure, ended: float) -> bool:
        """Whether results that cannot be fetched never will be."""
        if failure.http_status not in _GONE:
            return False
        now, gone = self._wall(), f"the results of batch {state.number} are gone"
        if now > ended + KEPT_S:
            self._notify(BatchNoted(f"{gone}: they were kept for 48 hours"))
            return True
        if failure.kind in ("auth", "proxy"):
            return False
        if state.gone_since is None:
            self._store.note(state.number, "state", at=now, gone_since=now)
            not_there = f"its results are not at the service (HTTP {failure.http_status})"
            self._notify(BatchNoted(f"batch {state.number}: {not_there}, and are looked for for an hour"))
            return False
        if now < state.gone_since + GONE_S:
            return False
        self._notify(BatchNoted(f"{gone}: nothing was there for an hour. What they may have cost counts at its most"))
        return True

    async def _share(self, cache: AnswerCache, path: Path, found: Found, target: Target, service: Service) -> None:
        """Put the answers that are believed where other runs look for them; their bodies are read once more."""

        def some() -> list[tuple[str, Reply]]:
            told = (service.read_line(line, target.model) for line in islice(lines, _STEP))
            return [(each.key, each.reply) for each in told if each.key in found.replies and each.key and each.reply]

        with path.open("rb") as lines:
            while lines.tell() < path.stat().st_size:
                for fingerprint, reply in await anyio.to_thread.run_sync(some):
                    cache.put(fingerprint, target, reply)
                await cache.write()

    async def _keep(
        self,
        state: BatchState,
        remote: RemoteBatch,
        target: Target,
        keys: Sequence[Key],
        found: Found,
        ended: float,
        stop: PipelineError | None,
        is_called: bool,
    ) -> Taken:
        calls: list[Call] = []
        paid: list[tuple[Key, Reply]] = []
        again: list[Key] = []
        missing = found.missing(keys)
        at_once: list[Key] = [key for key in keys if key.fingerprint in found.contradicted]
        for position, key in enumerate(keys):
            await _turn(position)
            if (reply := found.replies.pop(key.fingerprint, None)) is not None:  # none is kept twice
                priced = self._priced(key.prompt(state.model), target, reply, ended)
                calls.append(key.call(priced, late=self._is_late(state.number, key)))
                paid.append((key, calls[-1].reply))
            elif (failure := found.failures.get(key.fingerprint)) is not None:
                call = self._failed(key, target, failure, ended)
                if failure.kind == "reject" and failure.error_kind in _ENDING:
                    calls.append(call)
                    continue
                if call.has_cost:
                    calls.append(call)
                (again if failure.kind in _PASSING else at_once).append(key)
        for key_or_none, reply in found.refused:
            key = key_or_none or _NO_ROW
            priced = self._priced(key.prompt(state.model), target, reply, ended)
            unread = replace(priced, text="", status="error", error_kind="malformed_reply", error=_UNBELIEVED, raw=b"")
            calls.append(key.call(unread, paid=False))
        calls += self._perhaps_billed(state, remote, target, missing, len(paid), ended)
        self._tries.add(key.fingerprint for key in (*again, *missing))
        self._tries.add((key.fingerprint for key in at_once), MOST_TRIES)
        tried = self._tries.of
        unanswered = (*again, *missing, *at_once)
        live = {key for key in unanswered if is_called or tried(key.fingerprint) >= MOST_TRIES}
        if not state.released:  # those of one that was have fallen back already
            why = _why_missing(state, remote, is_called)
            self._fell_back(unanswered, live, found, "line_failed" if state.status == "succeeded" else why, why)
        usd = sum(
            (cost for call in calls for cost in (call.reply.cost_usd, call.reply.at_most_usd) if cost), Decimal(0)
        )
        once = f"{self._run}/batch {state.number}"
        self._cashier.settle(state.number, once, usd, ended, state.account)
        taken = await anyio.to_thread.run_sync(
            lambda: self._store.take(
                state.number,
                calls,
                failed=len(again) + len(at_once) - len(found.contradicted),
                missing=len(missing),
                refused=found.unbelieved,
                at=self._wall(),
            )
        )
        self._over(taken, sum((call.reply.usage for call in calls), Usage()))
        for position, (key, reply) in enumerate(paid):
            await _turn(position)
            self._bought(key.prompt(state.model), reply, True)
        return Taken(sorted({key.row for key in live}), stop)

    def _fell_back(
        self, keys: Iterable[Key], live: Set[Key], found: Found, failed: FromBatch, missing: FromBatch
    ) -> None:
        """Note why the batch does not answer these; those that are not asked `live` now may go into another one."""
        noted: dict[tuple[FromBatch, bool], list[Key]] = {}
        for key in keys:
            cause: FromBatch = failed if key.fingerprint in found.failures else missing
            cause = "not_believed" if key.fingerprint in found.contradicted else cause
            noted.setdefault((cause, key not in live), []).append(key)
        for (cause, again), those in noted.items():
            self._store.fell_back(those, cause, again=again)

    def _priced(self, prompt: Prompt, target: Target, reply: Reply, ended: float) -> Reply:
        """A reply as one that came live has it, without its body."""
        usage = self._cashier.reckoned(prompt, reply.usage)
        bill = self._cashier.batched(prompt, target, usage, reply.model, ended)
        return changed(
            reply,
            lane="batch",
            endpoint=target.endpoint,
            asked=target.model,
            target=target.name,
            latency_s=0.0,
            finished_at=ended,
            usage=usage,
            cost_usd=bill.cost_usd,
            standard_usd=bill.standard_usd,
            at_most_usd=bill.at_most_usd,
            worst_usd=bill.worst_usd,
            raw=b"",
        )

    def _failed(self, key: Key, target: Target, failure: Failure, ended: float) -> Call:
        """What is kept of a line that failed; one that may have been billed cost what others of its step did."""
        status: Status = "blocked" if failure.error_kind == "prompt_blocked" else "invalid"
        reply = Reply(
            "",
            status if failure.kind == "reject" else "error",
            error_kind=failure.error_kind,
            error=failure.message,
            lane="batch",
            endpoint=target.endpoint,
            target=target.name,
            finished_at=ended,
        )
        if failure.billed and (bill := self._cashier.unanswered(key.prompt(target.model), target, failure)):
            reply = replace(
                reply,
                raw=failure.raw,
                usage=Usage(estimated=True),
                cost_usd=bill.cost_usd,
                at_most_usd=bill.at_most_usd,
                worst_usd=bill.worst_usd,
            )
        return key.call(reply, paid=False)

    def _perhaps_billed(
        self,
        state: BatchState,
        remote: RemoteBatch,
        target: Target,
        missing: Sequence[Key],
        paid: int,
        ended: float,
    ) -> list[Call]:
        """What lines may have cost that were not handed out: all of a batch that succeeded, else those that it has done
        beyond those that are `paid`. A service that hands out nothing of a batch that was cancelled does not tell
        either what it had done: all of it may be billed, unless it waited still."""
        done = len(missing) if remote.status == "succeeded" else (remote.done or 0) - paid
        is_silent = remote.status == "cancelled" and not remote.outputs and remote.inline is None and not state.unbegun
        if is_silent:
            done = max(done, ceil(len(missing) * LOST.get(target.provider, 1.0)))
        lines = min(len(missing), max(0, done))
        if not lines:
            return []
        worst = sum((self._cashier.worst_usd(key.prompt(target.model), target) for key in missing), Decimal(0))
        reply = Reply(
            "",
            "error",
            error_kind="server",
            error=f"{lines:,} lines of a batch were not handed out, and may have been billed",
            lane="batch",
            endpoint=target.endpoint,
            target=target.name,
            finished_at=ended,
            at_most_usd=worst * lines / len(missing),
        )
        return [_NO_ROW.call(reply, paid=False)]

    # --- whether they are the answers to these prompts ---------------------------------------------------------------

    async def _check(self, found: Found, keys: Mapping[str, Key], state: BatchState, service: Service) -> bool:
        """Count prompts again, free of charge, and refuse the answers to others; whether enough are to refuse all."""
        wanted = await anyio.to_thread.run_sync(to_count, keys, found.replies, self._rng)
        path = self._store.requests_path(state.number)
        if not wanted or not path.exists():
            return False
        lines: dict[str, bytes] = await anyio.to_thread.run_sync(_lines_of, path, wanted)
        wrong: list[Key] = []
        is_counted = True

        async def counted(key: Key) -> None:
            nonlocal is_counted
            tokens = await service.count(lines[key.fingerprint], state.model)
            if isinstance(tokens, Failure):
                is_counted = False
            elif is_other(found.replies[key.fingerprint], tokens):
                wrong.append(key)

        for start in range(0, len(wanted), _AT_ONCE):
            async with anyio.create_task_group() as tasks:
                for key in wanted[start : start + _AT_ONCE]:
                    if key.fingerprint in lines:
                        tasks.start_soon(counted, key)
            if not is_counted or len(wrong) >= REFUSED_LEAST:
                break
        for key in wrong:
            found.refuse(key)
        return len(wrong) >= REFUSED_LEAST

    def _disbelieved(self, state: BatchState, lines: int) -> PipelineError | None:
        """Tell that none of a batch is believed; where that is the first one, no further one is bought."""
        words = (
            f"{lines:,} or more lines of the results of batch {state.number} are not the answers to what it asked: none"
            f" of them is used, and they are kept in {self._store.results_path(state.number)}"
        )
        self._notify(BatchNoted(words))
        if any(other.is_taken for other in self._store.all()):
            return None
        return ServiceError(words, "look at them; the same command goes on, and asks these prompts one by one")


_UNBELIEVED = "what its batch says is not the answer to it, or contradicts itself"


def _why_missing(state: BatchState, remote: RemoteBatch, is_called: bool) -> FromBatch:
    """Why the results of a batch lack a line."""
    if not remote.name:
        return "not_found"
    if state.status == "succeeded":
        return "missing"
    if remote.lines not in (None, state.lines):
        return "failed"  # it was cancelled, as the service read its file as another one
    if is_called:
        return "called_in"
    return "expired" if state.status == "expired" else "cancelled" if state.status == "cancelled" else "failed"


async def _turn(position: int) -> None:
    """Let others have their turn now and then."""
    if position % _STEP == 0:
        await anyio.lowlevel.checkpoint()


def _read(path: Path, keys: Mapping[str, Key], service: Service, model: str) -> Found:
    with path.open("rb") as lines:
        return found_in(_whole(lines), keys, service.read_line, model)


def _lines_of(path: Path, wanted: Sequence[Key]) -> dict[str, bytes]:
    with path.open("rb") as lines:
        return lines_of(lines, wanted)


def _whole(lines: Iterable[bytes]) -> Iterable[bytes]:
    return (line for line in lines if line.strip())
