"""One run directory, open for writing: journal, sealed parts, and which rows are done.

    manifest.json                 what the run belongs to
    journal-000007.jsonl          calls and results since the last seal
    synced                        how long that journal is on the disk, at least
    calls/part-000006.parquet     calls of finished documents
    results/part-000006.parquet   outcomes of documents
    parts.jsonl                   one line a file of parts: its rows, size and checksum; and which journals there are
    batches.jsonl, batches/, batched/    of a run with batches: see `store.batches`
    content.sqlite                where each answer was sealed, made from the parts
    lock, run.log

A seal turns journal N into parts N without stopping the run: calls of unfinished documents are copied to journal N+1,
which takes all further lines; then calls/part-N, then results/part-N are written, and noted in parts.jsonl; then
journal N is removed. The newest results part says how far sealing came: journals up to its number are spent, calls
parts beyond it are half a seal and void. So a kill between any two of these steps is read right by the next start.
`store.compact` puts the parts of a shard that is done into one file.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import anyio
import anyio.to_thread
import orjson
import polars as pl

from pipeline import machine
from pipeline.errors import RunStateError, cannot_write
from pipeline.events import Event
from pipeline.process import make_private
from pipeline.prompts import Prompt
from pipeline.records import Parse, Reply, Result
from pipeline.store import batch_states, batched, parts, seals
from pipeline.store.again import Again
from pipeline.store.batch_lines import Key
from pipeline.store.batches import Batches, Cost
from pipeline.store.content import Answered, ContentIndex
from pipeline.store.journal import Journal, is_blank, journal_number, journal_path, journal_paths
from pipeline.store.lines import Call, Sent, call_line, ended_line, kept, result_line, sent_line, sent_of
from pipeline.store.manifest import VERSION, Lock, Manifest, differences, in_place_of
from pipeline.store.manifest import read as read_manifest
from pipeline.store.manifest import write as write_manifest
from pipeline.store.reserve import Reserve
from pipeline.store.state import Batch, Outcomes, check_belongs, check_parts, is_passing, load, load_unsealed

SEAL_ROWS = 4_000
"""Results in a part. One that is not sealed yet takes 12 kB of memory, so 10,000 took 70 MB more (measured 2026-11)."""
SEAL_BYTES = 32 * 2**20
SYNC_S = 0.2
"""Longest time that an answer is on its way to the disk itself; SIGKILL does not lose it, power loss may."""
_NOTHING = Decimal(0)


def _logged(value: object) -> object:
    assert isinstance(value, Decimal)
    return float(round(value, 8))


class RunStore:
    """A run directory held by this process, from `open` to `close`."""

    def __init__(self, directory: Path, parse: Parse, *, seal_rows: int = SEAL_ROWS) -> None:
        self.directory = directory
        self.outcomes = Outcomes()
        self.lost: tuple[Sent, ...] = ()  # in flight when the last session was killed: what came back is gone
        self._parse = parse
        self._seal_rows = seal_rows
        self._batch = Batch(0)
        self._journal: Journal
        self._carried_bytes = 0  # of the journal: calls of unfinished rows that came from the one before
        self._half_sealed = False
        self._replies: dict[str, Call] = {}
        self._unread: dict[str, Decimal | None] = {}  # by content, as `unread_usd` says
        self._former: dict[str, Call] = {}  # the same of the journal that is being sealed
        self._again = Again()
        self._content: ContentIndex
        self.batches: Batches
        self._is_kept = True
        self._is_left = False
        self._sealing = anyio.Lock()
        self._room = anyio.Event()
        self._log: BinaryIO
        self._lock: Lock
        self._reserve = Reserve(self.directory / "reserve")

    def open(self, manifest: Manifest) -> bool:
        """Take the directory, recover what a crash left, and say whether a run is continued.

        Raises `RunStateError` when it is in use, belongs to another job or input, or cannot be read.
        """
        try:
            with ExitStack() as failed:
                for name in ("", "calls", "results"):
                    make_private(self.directory / name)
                machine.sync_directory(self.directory.parent)
                self._lock = Lock(self.directory / "lock")
                failed.callback(self._lock.release)
                known = read_manifest(self.directory / "manifest.json")
                if known:
                    self._check(known, manifest)
                else:
                    self._check_unused()
                    write_manifest(self.directory / "manifest.json", replace(manifest, run=uuid4().hex))
                self._run = self._identified()
                self._recover()
                self._content = ContentIndex(self.directory)
                failed.callback(self._content.close)
                if not self._content.is_empty:
                    self._content.catch_up()
                self._reserve.take()
                failed.callback(self._reserve.give_back)
                self._log = (self.directory / "run.log").open("ab", buffering=0)
                (self.directory / "run.log").chmod(0o600)
                failed.pop_all()
        except OSError as error:
            place = error.filename if isinstance(error.filename, str) else self.directory
            raise cannot_write(place, error) from None
        return known is not None

    def _check_unused(self) -> None:
        held = journal_paths(self.directory) or any(self.directory.glob("*/part-*.parquet"))
        if held or (self.directory / batch_states.NAME).exists():
            raise RunStateError(
                f"{self.directory} holds answers, but its manifest.json is gone: nobody knows to which job they belong",
                "restore it, or move the directory away to start anew",
            )

    def _check(self, known: Manifest, manifest: Manifest) -> None:
        if differences(known, manifest):
            check_belongs(self.directory, manifest, self._parse)
            write_manifest(self.directory / "manifest.json", in_place_of(known, manifest))

    def _identified(self) -> str:
        """What the run's journals begin with; one of layout 1 is given it now."""
        known = read_manifest(self.directory / "manifest.json")
        assert known
        if not known.run:
            plain = max(map(journal_number, journal_paths(self.directory)), default=0)
            known = replace(known, run=uuid4().hex, plain_journals=plain, version=VERSION)
            write_manifest(self.directory / "manifest.json", known)
        return known.run

    def _recover(self) -> None:
        noted = check_parts(self.directory)  # before anything is removed: without its results a calls part looks void
        for half in (*self.directory.glob("*/.*.tmp"), *self.directory.glob(".*.tmp")):
            with suppress(OSError):
                half.unlink()
        for kind in ("calls", "results"):
            for path in list(parts.superfluous(self.directory / kind, noted)):
                path.unlink()
        for half in parts.void(self.directory):
            half.unlink()  # or its calls would be counted twice
        self.batches = Batches(self.directory, self._run, self._bought_by_batch, self._make_findable, self._answered)
        unnoted = [part for part in self.batches.recover(noted) if part.part not in noted]
        seals.record(self.directory, [part for part in unnoted if (self.directory / part.part).exists()])
        sealed = (path for kind in ("calls", "results") for path in parts.files(self.directory / kind))
        seals.record(self.directory, [parts.describe(path) for path in sealed if not seals.noted(path, noted)])
        self.outcomes, self._batch = load(self.directory, self._parse)
        spent = journal_paths(self.directory)
        if not spent:
            self._batch.in_flight = self._left_by_earlier()
        self.lost = tuple(self._batch.in_flight.values())
        self._write_parts(self._begin_journal())
        self._half_sealed = False
        for path in spent:
            with suppress(OSError):  # its number says that it is spent
                path.unlink()

    def _left_by_earlier(self) -> dict[str, Sent]:
        """What was in flight when the generation before this one was killed: it is counted here, once."""
        manifest = read_manifest(self.directory / "manifest.json")
        before = self.directory.parent / manifest.after[0] if manifest and manifest.after else None
        return load_unsealed(before, self._parse).in_flight if before and before.is_dir() else {}

    def _bought_by_batch(self, costs: Sequence[Cost]) -> None:
        for cost in costs:
            self._again.add(*cost)

    def _make_findable(self) -> None:
        self._content.catch_up()

    def _answered(self, fingerprint: str, row: int) -> int | None:
        batch = self._content.bought_by(fingerprint)
        return batch if batch and self._again.is_new(row, self.batches.of(batch).cut_at) else None

    @property
    def identity(self) -> str:
        """A name that no other run has."""
        return self._run

    def reply(self, fingerprint: str) -> Call | None:
        """The reply that was bought for this content and is not sealed away yet."""
        return self._replies.get(fingerprint) or self._former.get(fingerprint)

    async def sealed_reply(self, fingerprint: str, row: int = -1) -> Answered | None:
        """The whole answer that was bought for this content and is sealed away; of a batch, whatever ended it.

        What would not do for `row`, which is tried again on request, is none.
        """
        found = await self._content.find(fingerprint)
        if found is None or found.batch is None:
            return found
        return found if self._again.takes(row, found.reply, self.batches.of(found.batch).cut_at) else None

    def is_late(self, number: int, key: Key) -> bool:
        """Whether a prompt that batch `number` answers was answered elsewhere meanwhile."""
        if self.reply(key.fingerprint) is not None:
            return True
        batch = self._content.bought_by(key.fingerprint)
        if batch is not None and (batch == 0 or batch > number):
            return True
        return self.batches.of(number).released and self.outcomes.done(key.row)

    def append_sent(self, prompt: Prompt, model: str) -> None:
        """Note that a request to `model` is about to leave: if this process is killed, the next start knows of it.

        Takes 3 µs (measured 2026-11).
        """
        sent = sent_of(prompt, model, time.time())
        self._journal.append(sent_line(sent))
        self._batch.in_flight[sent.fingerprint] = sent

    def append_ended(self, prompt: Prompt, model: str) -> None:
        """Note that a request came back without an answer, and cost nothing; it may be sent again."""
        fingerprint = prompt.fingerprint(model)
        self._journal.append(ended_line(fingerprint))
        self._batch.in_flight.pop(fingerprint, None)

    def append_call(self, prompt: Prompt, model: str, reply: Reply, *, answered: bool = True) -> None:
        """Keep one reply of the `model` asked, paid or failed; when this returns, SIGKILL cannot lose it.

        Not `answered`: a request without an answer that was billed, or may have been; the prompt may be sent again.
        """
        line = call_line(prompt, model, reply, answered)
        self._journal.append(line)
        self._keep(kept(prompt, model, reply, line, answered), reply)

    def append_pack(self, pack: Prompt, model: str, parts: Sequence[tuple[Prompt, Reply, bool]]) -> None:
        """Keep what became of the prompts that a pack asked, each as `append_call` would, in one go: and it has ended.

        A kill in the middle of it leaves the pack in flight: what it may have cost counts twice, and never not at all.
        """
        lines = [call_line(prompt, model, reply, answered) for prompt, reply, answered in parts]
        self._journal.append(*lines, ended_line(pack.fingerprint(model)))
        for (prompt, reply, answered), line in zip(parts, lines, strict=True):
            self._keep(kept(prompt, model, reply, line, answered), reply)
        self._batch.in_flight.pop(pack.fingerprint(model), None)

    def append_kept(self, prompt: Prompt, model: str, reply: Reply) -> None:
        """Keep one reply that an earlier generation bought; it is not paid here."""
        line = call_line(prompt, model, reply)
        self._journal.append(line)
        self._keep(kept(prompt, model, reply, line), reply)

    def _keep(self, call: Call, reply: Reply) -> None:
        self._batch.calls.append(call)
        self._note_unread(call)
        self._again.add(call.row, reply.cost_usd)
        self._batch.in_flight.pop(call.fingerprint, None)
        if call.paid:
            self._replies[call.fingerprint] = call

    def append_result(self, result: Result) -> None:
        """Keep one document's outcome; of a row that was tried again on request the cost is that of every try."""
        result = self._again.settled(result)
        self._journal.append(result_line(result))
        self._batch.results[result.row] = result
        self.outcomes.set(result.row, result.status, is_passing(result))

    def log(self, event: Event) -> None:
        """One line in run.log: an event with numbers, never a key, never prompt text. A full disk drops it."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        told = {"at": at, "event": event.kind, **event.fields()}
        line = orjson.dumps(told, default=_logged, option=orjson.OPT_APPEND_NEWLINE)
        with suppress(OSError):
            self._log.write(line)

    async def room(self) -> None:
        """Wait while the answers not sealed yet are more than two seals' worth; not where nobody seals any more."""
        while self._is_due(2) and self._is_kept:
            if self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()

    async def keep(self) -> None:
        """Sync and seal until cancelled: the run's one writer of parts. Raises `RunStateError` for the disk."""
        try:
            while True:
                await anyio.sleep(SYNC_S)
                await anyio.to_thread.run_sync(self._journal.sync)
                if self._reserve.is_used:
                    raise self._full()
                if self._is_due(1):
                    await self.seal()
        finally:
            self._is_kept = False
            self._room.set()

    def _full(self) -> RunStateError:
        return RunStateError(
            f"no space is left on the disk of {self.directory}: nothing more is asked\n"
            "What was in flight is written where room was kept for it.",
            "make room, then run the same command again",
        )

    def _is_due(self, seals: int) -> bool:
        fresh = self._journal.size - self._carried_bytes
        return len(self._batch.results) >= seals * self._seal_rows or fresh >= seals * SEAL_BYTES

    async def seal(self) -> None:
        """Turn the journal into parts; lines that come meanwhile go to the next journal."""
        with anyio.CancelScope(shield=True):
            async with self._sealing:
                if not self._can_seal():
                    return
                old = self._journal
                batch = self._begin_journal()
                await anyio.to_thread.run_sync(self._finish_seal, old, batch)
                self._former = {}
        self._room.set()

    def leave(self) -> None:
        """Seal nothing any more, as another process may hold the directory: what comes still stays in the journal."""
        self._is_left = True

    def close(self) -> None:
        """Seal what is left, sync, and give the directory back."""
        with ExitStack() as closing:
            closing.callback(self._lock.release)
            closing.callback(self._close_log)
            closing.callback(self._reserve.give_back)
            closing.callback(self._content.close)
            closing.callback(self.batches.close)
            closing.callback(lambda: self._journal.close())
            if self._can_seal():
                old = self._journal
                self._finish_seal(old, self._begin_journal())
            with suppress(OSError, RunStateError):
                if not self._half_sealed and not self._is_left and is_blank(self._journal.path):
                    seals.record_journals(self.directory, [])  # nothing is in it: whoever removes it does no harm

    def _close_log(self) -> None:
        with suppress(OSError):
            self._log.close()

    def _can_seal(self) -> bool:
        # After a seal that failed, a newer part would declare the journal of the failed one spent.
        return bool(self._batch.results) and not self._half_sealed and not self._is_left

    def unread_usd(self, fingerprint: str) -> Decimal | None:
        """USD of requests for this content whose replies could not be read, of a row that has no outcome yet."""
        return self._unread.get(fingerprint, _NOTHING)

    def spent_usd(self) -> Decimal:
        """USD that count against a cap: what this run paid so far, and what it may have paid that nobody can know."""
        return self._sum("cost_usd", "at_most_usd")

    def cost_usd(self) -> Decimal:
        """USD paid by this run so far; a call of unknown price counts nothing."""
        return self._sum("cost_usd")

    def calls(self, columns: Sequence[str], newest: int | None = None) -> Iterator[pl.DataFrame]:
        """Some columns of all calls so far, part by part; what is not sealed comes last.

        Of the `newest` parts only: of so many of either kind, what batches bought and what not.
        """
        for paths in (batched.part_paths(self.directory), parts.part_paths(self.directory / "calls")):
            for path in paths[-newest if newest else None :]:
                yield parts.read_part(path, columns)
        yield parts.calls_frame(self._batch.calls, {}).select(columns)

    def _sum(self, *columns: str) -> Decimal:
        """Over what this generation bought."""
        frames = (frame.filter(parts.IS_BOUGHT) for frame in self.calls((*columns, "generation")))
        return sum((Decimal(frame[name].sum()) for frame in frames for name in columns), Decimal(0))

    def _note_unread(self, call: Call) -> None:
        if not call.paid and call.has_cost:
            known = self._unread.get(call.fingerprint, _NOTHING)
            usd = call.reply.cost_usd
            self._unread[call.fingerprint] = None if known is None or usd is None else known + usd

    def reopen(self, kinds: frozenset[str], changes: str | None = None, passing: bool = True) -> None:
        """Try the rows again whose newest outcome has one of these statuses or error kinds, and the `passing` failures.

        With `changes` only these rows, and not those whose outcome was made with the same changes already: so a redo
        that was killed goes on where it was.
        """
        self._again.reopen(self.directory, self.outcomes, kinds, changes, passing)
        self._again.count(self.calls(("row", "cost_usd", "usage_estimated")), self.outcomes)

    def forget(self) -> None:
        """Give back what rows take, of whom nothing is asked any more but what was bought for them."""
        self.outcomes.forget()
        self._again = Again()

    def _begin_journal(self) -> Batch:
        """Start the next journal with all that is unfinished, paid calls and requests; returns what is to be sealed."""
        self._half_sealed = True
        batch = self._batch
        # Not every done row: one that is tried again on request is done until then, and its calls are worth keeping.
        finished = {-1, *(row for row in batch.results if self.outcomes.done(row))}  # -1: what is of no row, as a cache
        kept_on = [call for call in batch.calls if call.has_cost and call.row not in finished]
        self._batch = Batch(batch.number + 1, kept_on, in_flight=batch.in_flight)
        self._former, self._replies = self._replies, {call.fingerprint: call for call in kept_on if call.paid}
        self._unread = {}
        for call in kept_on:
            self._note_unread(call)
        batch.calls = [call for call in batch.calls if not call.has_cost or call.row in finished]
        carried = [*(call.line for call in kept_on), *map(sent_line, batch.in_flight.values())]
        self._journal = Journal(journal_path(self.directory, self._batch.number), self._run, carried, self._reserve)
        self._carried_bytes = self._journal.size
        return batch

    def _finish_seal(self, old: Journal, batch: Batch) -> None:
        self._write_parts(batch)
        self._content.catch_up()
        self._half_sealed = False
        with suppress(RunStateError):  # all that is in it is in the parts
            old.discard()

    def _write_parts(self, batch: Batch) -> None:
        self._journal.sync()
        try:
            machine.sync_directory(self.directory)
        except OSError as error:
            raise RunStateError(
                f"cannot write {self.directory}: {error.strerror}\nEvery answer is in its journals: nothing is lost.",
                "mend the disk, then run the same command again",
            ) from None
        due = bool(batch.results or batch.calls)
        written = [path for path in journal_paths(self.directory) if path.stat().st_size]  # or it never held a line
        before = [number for number in map(journal_number, written) if due and number <= batch.number]
        seals.record_journals(self.directory, [*before, batch.number + 1])
        if not due:
            return
        number, answers = batch.number, {row: result.response for row, result in batch.results.items()}
        sealed = (
            parts.write_part(parts.calls_frame(batch.calls, answers), self.directory / "calls", number, self._run),
            parts.write_part(
                parts.results_frame(batch.results.values()), self.directory / "results", number, self._run
            ),
        )
        seals.record(self.directory, sealed)
