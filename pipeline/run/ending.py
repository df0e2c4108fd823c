"""How a run ends: its output, what tells of it afterwards, and its exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio.to_thread

from pipeline import report
from pipeline.errors import RESUMABLE, AuthError, BatchesOut, PipelineError, RunStateError, as_known, bug_in
from pipeline.process import give_back_memory
from pipeline.run.around import Around
from pipeline.run.engine import Monitor, Works
from pipeline.run.output import exported
from pipeline.run.prepare import Session
from pipeline.run.signs import end_of
from pipeline.run.status import StatusFile
from pipeline.store.batch_states import BatchState
from pipeline.store.run import RunStore


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended; `stopped` is what stopped it early."""

    summary: report.Summary
    stopped: PipelineError | None
    interrupted: bool
    are_ok: bool  # all rows that the session covers
    unwritten: PipelineError | None = None  # why the output is not what the run came to
    out: tuple[BatchState, ...] = ()  # batches that are with the service still

    @property
    def exit_code(self) -> int:
        """0 all rows ok, 1 finished but some failed, 130 interrupted, else that of what stopped it."""
        if self.stopped:
            return self.stopped.exit_code
        if self.interrupted:
            return 130
        if self.unwritten:
            return self.unwritten.exit_code
        return 0 if self.are_ok else 1


async def finished(
    session: Session, store: RunStore, engine: Works, told: StatusFile, around: Around
) -> PipelineError | None:
    """Seal, write the output, and tell everybody how it ended; returns why the output is not what the run came to.

    Raises `RunStateError` for a disk on which the answers cannot be sealed.
    """
    options, place, posts = session.options, around.place, around.posts
    with end_told(engine.monitor, store, told):
        try:
            await store.seal()
        except PipelineError as error:
            raise engine.stopped or error from error
        unwritten = None
        if place is not None:
            store.outcomes.forget()  # all is sealed, and this with what answers took would stay beside
            give_back_memory()  # what writing the table takes
            unwritten = await anyio.to_thread.run_sync(exported, session, place, engine.stopped)
    stopped = engine.stopped or (None if engine.interrupted else unwritten)
    if stopped:
        status = "left" if isinstance(stopped, BatchesOut) else "stopped"
    elif engine.interrupted:
        status = "interrupted"
    else:
        status = "finished" if options.pilot is None else "sample" if options.sampled else "pilot"
    _tell_end(engine.monitor, store, told, status, stopped, _exit_code_of(engine.monitor, stopped, engine.interrupted))
    if posts and told.last and options.pilot is None:
        posts.ended(told.last)
        await posts.finish()
    return unwritten


def ended(session: Session, engine: Works, unwritten: PipelineError | None, out: tuple[BatchState, ...] = ()) -> Ended:
    """What is told of a run whose directory is closed."""
    summary, are_ok = report.summarize(session.directory), _are_all_ok(engine.monitor)
    return Ended(summary, engine.stopped, engine.interrupted, are_ok, unwritten, out)


class Unread(RunStateError):
    """What the run came to cannot be read now: its directory here does not tell it."""


def ended_at_once(session: Session, stopped: PipelineError) -> Ended:
    """The end of a run that an error ended in its middle, as far as its directory can still be read."""
    if isinstance(stopped, Unread):
        raise stopped
    try:
        return Ended(report.summarize(session.directory), stopped, interrupted=False, are_ok=False)
    except PipelineError:
        raise stopped from None


@contextmanager
def end_told(monitor: Monitor, store: RunStore, told: StatusFile) -> Iterator[None]:
    """Leave word of how the run ended where an error ends it at once: without any it would count as killed."""
    try:
        yield
    except Exception as error:
        known = as_known(error)
        stopped = known or bug_in(error)
        code = _exit_code_of(monitor, known, False) if known else stopped.exit_code
        _tell_end(monitor, store, told, "stopped", stopped, code)
        raise


def _tell_end(
    monitor: Monitor, store: RunStore, told: StatusFile, status: str, stopped: PipelineError | None, exit_code: int
) -> None:
    reason, hint = (stopped.message, stopped.hint) if stopped else ("", "")
    store.log(end_of(monitor, status, reason))
    told.end(status, reason, exit_code, hint)


def has_spent(monitor: Monitor, error: PipelineError) -> bool:
    """Whether the run that this error ended has cost something, or may have."""
    return monitor.has_spent or (monitor.has_sent and not isinstance(error, AuthError))


def _exit_code_of(monitor: Monitor, stopped: PipelineError | None, is_interrupted: bool) -> int:
    """The same as `Ended` will say."""
    if stopped:
        return RESUMABLE if has_spent(monitor, stopped) else stopped.exit_code
    if is_interrupted:
        return 130
    return 0 if _are_all_ok(monitor) else 1


def _are_all_ok(monitor: Monitor) -> bool:
    """Whether every row that the session covers is answered."""
    return monitor.outcomes["ok"] == monitor.done >= monitor.rows
