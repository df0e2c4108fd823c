"""The batches of one run: cut, noted as they go, taken; and what waits in them.

    batches.jsonl                           what is known of them (`store.batch_states`)
    batches/000003.requests.jsonl, …        their lines (`store.batch_lines`)
    batches/fallen                          which prompts fell back, and why (`store.fallen`)
    batched/part-000003-00.parquet          what they bought (`store.batched`)

A kill between any two steps is read right by the next start. Files without a `cut` event were not sent, and go. Parts
without a `taken` event are void: the results are there still, and are taken again. A batch that is taken has no files
left but its parts, and where some of its results were not believed, those.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.process import make_private
from pipeline.store import batch_lines, batch_states, batched, fallen, seals
from pipeline.store.batch_lines import Draft, Key
from pipeline.store.batch_states import Aside, BatchLog, BatchState, Stage, after, cannot_write, read
from pipeline.store.fallen import FromBatch
from pipeline.store.lines import Call
from pipeline.store.waiting import Waiting
from pipeline.targets import Target

FOLDER = "batches"


class Cost(NamedTuple):
    """What one call of a batch cost."""

    row: int
    usd: Decimal | None  # None: the price is unknown
    estimated: bool


class Batches:
    """The batches of a run whose directory this process holds.

    `cut` and `take` wait for the disk, and are to be called in a thread; the rest may be called beside them.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        bought: Callable[[Sequence[Cost]], None] = lambda costs: None,
        findable: Callable[[], None] = lambda: None,
        answered: Callable[[str, int], int | None] = lambda fingerprint, row: None,
    ) -> None:
        """`bought` hears what each call of a batch cost that is taken; `findable` lets those calls be found; `answered`
        tells which batch bought what does for a content, and for a row.

        Raises `RunStateError` for what is missing or damaged.
        """
        self._run, self._directory, self._folder = run, directory, directory / FOLDER
        self._bought, self._findable, self._answered = bought, findable, answered
        self._just_taken: set[int] = set()  # by this process
        self.has_asked = False
        """Whether this process asked a service for a batch, or was about to."""
        self._log = BatchLog(directory, run)
        self._drafts: dict[int, Draft] = {}
        self._waiting = Waiting()
        self._newest = max(self._log.states, default=0)

    def recover(self, noted: Mapping[str, seals.Sealed]) -> list[seals.Sealed]:
        """Remove what a kill left half done, and look up what waits; returns the parts that count.

        `noted` are those of the run that were sealed. Raises `RunStateError` where it cannot be read, OSError where
        nothing can be removed.
        """
        states = self._log.states
        void = batched.void(self._directory, states)
        if any(seals.noted(part, noted) for part in void):
            raise RunStateError(
                f"{self._directory / batch_states.NAME} is older than what was bought since: an earlier one was laid"
                " there, and no crash does that\nNothing was bought, and nothing was removed.",
                "restore the newest one from a backup",
            )
        for half in void:
            half.unlink()  # or its calls would be counted twice
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            named = batch_lines.NAMED.fullmatch(path.name)
            if named and (named["hidden"] or int(named["number"]) not in states):
                path.unlink()
        for state in states.values():
            if state.is_waited_for:
                self._waiting.add(state.number, batch_lines.read_fingerprints(self._folder, state.number))
            elif not state.is_open:
                self._tidy(state)
        return [part for state in states.values() for part in state.parts]

    def close(self) -> None:
        """Make nothing of what is not cut: it was not sent."""
        for draft in list(self._drafts.values()):
            draft.discard()

    def all(self) -> list[BatchState]:
        """Every batch, in the order they were cut."""
        return [self._log.states[number] for number in sorted(self._log.states)]

    def open(self) -> list[BatchState]:
        """Those that may still be answered."""
        return [state for state in self.all() if state.is_open]

    def of(self, number: int) -> BatchState:
        """One batch. Raises KeyError where there is none."""
        return self._log.states[number]

    def draft(self, target: Target, changes: str | None = None) -> Draft:
        """Begin another batch for `target`; `changes` is what `--set` changed of the job, as JSON.

        Raises `RunStateError` when the disk refuses.
        """
        try:
            make_private(self._folder)
            make_private(self._directory / batched.FOLDER)
        except OSError as error:
            raise cannot_write(self._folder, error) from None
        self._log.begin()
        self._newest += 1

        def cut(draft: Draft, worst_usd: Decimal | None, at: float | None) -> BatchState:
            state = self._note(
                draft.number,
                "cut",
                at,
                attempt=1,
                file=self._file_name(draft.number, 1),
                target=target.name,
                endpoint=target.endpoint,
                account=target.account,
                model=target.model,
                rows=draft.rows,
                lines=draft.lines,
                size_bytes=draft.size_bytes,
                sha256=draft.sha256,
                input_tokens_est=draft.input_tokens_est,
                worst_usd=worst_usd,
                changes=changes,
            )
            self._waiting.add(draft.number, draft.fingerprints)
            del self._drafts[draft.number]
            return state

        made = Draft(self._folder, self._newest, self._run, cut, self._drafts.__delitem__)
        self._drafts[made.number] = made
        return made

    def note(self, number: int, event: Stage | Aside, *, at: float | None = None, **told: Any) -> BatchState:
        """Note the next stage of a batch, or what is new about it, before that step is made; forced to the disk.

        `told` are fields of `BatchState`; `at` is now, unless told. `cut` and `taken` have functions of their own.
        Raises ValueError for what cannot come now, `RunStateError` when the disk refuses.
        """
        if event in ("cut", "taken"):
            raise ValueError(f"{event} is no event to be noted by itself")
        if event == "fetched":
            after(self.of(number), number, event, 0.0, told)
            _force(self.results_path(number))
        state = self._note(number, event, at, **told)
        self.has_asked |= event == "asking"
        if not state.is_waited_for:
            self._waiting.drop(number)
        if not state.is_open:
            self._tidy(state)
        return state

    def again(self, number: int, *, at: float | None = None) -> BatchState:
        """Have the same lines handed in again, as another file: certainly nothing came of the batch, or ever will."""
        attempt = self.of(number).attempt + 1
        return self._note(number, "cut", at, attempt=attempt, file=self._file_name(number, attempt))

    def fell_back(self, keys: Iterable[Key], cause: FromBatch, *, again: bool = False) -> None:
        """Note that no batch answers these, before anything is done about it: a kill in between is made good.

        With `again` another batch may. Raises `RunStateError` when the disk refuses.
        """
        fallen.note(self._folder, (key.fingerprint for key in keys), cause, again=again)

    def keys(self, number: int) -> list[Key]:
        """Whose the lines of an open batch are, in document order; takes 2 µs a line.

        Raises `RunStateError` where they cannot be read, or are another batch's: its answers would belong to nobody.
        """
        keys, state = batch_lines.read_keys(self._folder, number), self.of(number)
        if (len(keys), sum(key.input_tokens_est for key in keys)) != (state.lines, state.input_tokens_est):
            raise RunStateError(
                f"{batch_lines.keys_path(self._folder, number)} is of another batch: nobody knows which rows wait for"
                " this one\nNothing was taken, and what was answered stays with the service.",
                "restore it from a backup",
            )
        return keys

    def waiting_rows(self, number: int) -> list[int]:
        """The rows with lines in an open batch, in document order."""
        return batch_lines.read_rows(self._folder, number)

    def requests_path(self, number: int) -> Path:
        """Where the lines of an open batch are, as they are to be sent."""
        return batch_lines.requests_path(self._folder, number)

    def results_path(self, number: int) -> Path:
        """Where its results belong; hidden files beside it are removed by the next start."""
        return batch_lines.results_path(self._folder, number)

    def out(self, fingerprint: str, row: int | None = None) -> int | None:
        """The batch in which this content waits, or the draft of one; takes 1 µs.

        With `row`, also one that is taken since the row looked for its answer: it has to look again, as buying another
        would pay twice. Takes 6 µs more.
        """
        for number, draft in list(self._drafts.items()):
            if fingerprint in draft.fingerprints:
                return number
        if (waiting := self._waiting.find(fingerprint)) is not None:
            return waiting
        if row is None or not self._just_taken:
            return None
        taken = self._answered(fingerprint, row)
        return taken if taken in self._just_taken else None

    def take(
        self,
        number: int,
        calls: Iterable[Call],
        *,
        failed: int = 0,
        missing: int = 0,
        refused: int = 0,
        at: float | None = None,
        **told: Any,
    ) -> BatchState:
        """Keep what a batch bought, in document order, and close it: to be called in a thread.

        `calls` are its replies, and the failures that end a prompt; each ends it for good, but one that may have been
        billed and is not `paid`. The numbers are of lines that failed and may be asked again, of those that the results
        do not name, and of those of the results that are not believed: where there are such, the results are kept.
        Raises `RunStateError` when the disk refuses; then it is as if nothing had been taken.
        """
        written: list[seals.Sealed] = []
        costs: list[Cost] = []
        answered: list[str] = []
        late = 0
        for part, kept in batched.write(calls, self._directory, number, self._run):
            written.append(part)
            for call in kept:
                costs.append(Cost(call.row, call.reply.cost_usd, call.reply.usage.estimated))
                late += call.late
                if call.paid and not call.late:
                    answered.append(call.fingerprint)
                failed += not call.has_cost
        known = [cost.usd for cost in costs if cost.usd is not None]
        usd = sum(known, Decimal(0)) if len(known) == len(costs) else None
        fallen.forget(self._folder, answered)
        counts = {"ok": len(answered), "failed": failed, "missing": missing, "refused": refused, "late": late}
        state = self._note(number, "taken", at, **counts, usd=usd, parts=tuple(written), **told)
        self._bought(costs)
        seals.record(self._directory, written)
        self._findable()
        self._just_taken.add(number)
        self._waiting.drop(number)  # not before: what neither waits nor is found is bought again
        self._tidy(state)
        return state

    def _note(self, number: int, event: Stage | Aside, at: float | None, **told: Any) -> BatchState:
        return self._log.add(number, event, time.time() if at is None else at, told)

    def _file_name(self, number: int, attempt: int) -> str:
        return f"pp-{self._run[:8]}-{number}-{attempt}"

    def _tidy(self, state: BatchState) -> None:
        """Remove the files of a batch that is over."""
        kept = (batch_lines.keys_path, batch_lines.results_path) if state.refused else ()
        for path in (batch_lines.requests_path, batch_lines.keys_path, batch_lines.results_path):
            if path not in kept:
                with suppress(OSError):  # the next start tries again
                    path(self._folder, state.number).unlink(missing_ok=True)


def is_out(directory: Path) -> list[BatchState]:
    """The batches of a run that may still be answered, by a look that needs no lock.

    Raises `RunStateError` where nobody can tell.
    """
    return [state for state in read(directory).values() if state.is_open]


def _force(path: Path) -> None:
    """Have the file on the disk, whoever wrote it."""
    try:
        fd = machine.open_file(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise cannot_write(path, error) from None
