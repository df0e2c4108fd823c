"""The generations of a run: what an edit of its job or its input changes, and the next one, which buys only that."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

from pipeline import machine, report
from pipeline.errors import JobError, RunStateError
from pipeline.plan.survey import Survey
from pipeline.process import make_private
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply
from pipeline.run.changes import Change
from pipeline.run.guards import aside_of
from pipeline.run.prepare import Session
from pipeline.store import digests
from pipeline.store.carrying import Carried, carried
from pipeline.store.earlier import Earlier, told_missing
from pipeline.store.manifest import Lock, Manifest, differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.manifest import write as write_manifest
from pipeline.store.state import Outcomes, is_unused, load_unsealed, refuse_other

_SHOWN = 5  # rows that are named


def changed(session: Session) -> Change | None:
    """How the job or the input differs from what the run in its directory was made from; None where it goes on.

    Raises `RunStateError` for a directory of another job, or of one whose batches are with a service.
    """
    known = read_manifest(session.directory / "manifest.json")
    lines = [*differences(known, session.manifest()), *_replaced(session.replaced)] if known else []
    if known is None or not lines or is_unused(session.directory):
        return None
    refuse_other(session.directory, known, session.manifest(), parse_stored)
    if session.redo is not None:
        raise JobError(
            "the job or its input changed since the rows were tried that `--set` is to redo\n"
            + "\n".join(f"  {line}" for line in lines),
            "leave out `--retry` and `--set` first: the same command then buys what is new; or undo the change",
        )
    return Change(session.directory, known, tuple(lines))


def _replaced(keys: tuple[str, ...]) -> Iterator[str]:
    if keys:
        rows, more = ", ".join(keys[:_SHOWN]), f" and {len(keys) - _SHOWN:,} more" * (len(keys) > _SHOWN)
        yield f"files were replaced under their names: those of {'rows' if len(keys) > 1 else 'row'} {rows}{more}"


class Keeping:
    """Looks up what earlier generations bought, for a plan, and counts it."""

    def __init__(self, session: Session, change: Change, found: Survey) -> None:
        self._session = session
        self._job = session.working
        self._change = change
        self._found = found
        self._carried = _carried(session, change, found)
        self._earlier = Earlier(change.earlier, parse_stored, session.options.retry)
        self._seen: set[str] = set()
        self._usd = self._carried.usd if self._carried else Decimal(0)
        self._truncated = 0

    async def bought(self, prompt: Prompt) -> Reply | None:
        """The reply that is kept for a prompt."""
        reply = await self._earlier.find(prompt, self._job.models_of(prompt.step))
        if reply is not None and (name := prompt.fingerprint(self._job.model)) not in self._seen:
            self._seen.add(name)
            self._usd += reply.cost_usd or 0
            self._truncated += reply.status == "truncated"
        return reply

    def outcomes(self) -> Outcomes:
        """The rows of which nothing is asked, as they are carried over."""
        outcomes = Outcomes()
        for row in self._carried.rows["row"] if self._carried else ():
            outcomes.set(row, "ok", passing=False)
        return outcomes

    def carry(self) -> None:
        """Carry rows over into the generation that has begun. Raises `RunStateError`."""
        if self._carried is None:
            return
        directory, has_ids = self._change.directory, self._session.source.id is not None
        with held(directory):
            manifest = read_manifest(directory / "manifest.json")
            if manifest and manifest.after and is_unused(directory):  # nobody was faster
                before = directory.parent / manifest.after[0]
                self._carried.write(before, self._change.known.generation, directory, manifest, has_ids)

    @property
    def notices(self) -> tuple[str, ...]:
        """What is not found any more."""
        return tuple(told_missing(self._earlier))

    def counted(self) -> Change:
        """The change with what was found so far, and with what a look over the table says of its rows."""
        self._earlier.close()
        found, kept = self._found, len(self._seen) + (len(self._carried.rows) if self._carried else 0)
        rows = digests.compared(self._change.directory, found.digests, found.rows, self._session.hashed)
        return replace(self._change, rows=rows, kept=kept, kept_usd=self._usd, truncated=self._truncated)


def _carried(session: Session, change: Change, found: Survey) -> Carried | None:
    """Rows that can be carried over as they are: only the input was edited, and a row of it is one call.

    Where calls are shared, as between pieces or turns, or another target may have answered, each is looked for.
    """
    job, source = session.working, session.source
    several = job.spec.chunk or job.spec.prompt.flow or job.targets
    unseen = source.file_columns and not source.path_columns  # the hash of a row does not tell what its files are
    if job.fingerprint != change.known.fingerprint or several or unseen or not source.table.is_watched:
        return None
    if session.options.pilot is not None or "ok" in session.options.retry:
        return None
    same = digests.unchanged(change.directory, change.known.source, found.digests, found.rows, session.hashed)
    if same is None:
        return None
    try:
        return carried(change.directory, same, load_unsealed(change.directory, parse_stored))
    except RunStateError:  # what is whole of it is found by content
        return None


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """A run directory where nobody else writes meanwhile, also as it is set aside."""
    lock = Lock(directory / "lock")
    if not machine.can_move_what_is_open:  # whoever has a file of it open keeps it in its place there
        lock.release()
    try:
        yield
    finally:
        lock.release()


def spent_before(directory: Path, known: Manifest) -> Decimal:
    """USD that a run and the generations before it may have cost in all; it counts against the cap of the next."""
    before = report.summarize(directory)
    return Decimal(known.before_usd) + before.cost_usd + (before.at_most_usd or 0)


def begin(change: Change, session: Session, before_usd: Decimal) -> None:
    """Set the directory aside and put that of the next generation in its place; a kill in between is mended by
    `settle`."""
    directory, known = change.directory, change.known
    aside = aside_of(directory)
    manifest = replace(
        session.manifest(),
        run=uuid4().hex,
        generation=change.generation,
        after=(aside.name, *known.after),
        before_usd=str(before_usd),
    )
    try:
        write_manifest(_pending(directory), manifest)
        directory.rename(aside)
        for name in ("", "calls", "results"):
            make_private(directory / name)
        write_manifest(directory / "manifest.json", manifest)
    except OSError as error:
        raise RunStateError(
            f"generation {change.generation} of {directory} cannot begin: {error.strerror}"
            "\nNothing was sent, and all that was bought is kept.",
            f"make room, or mend the permissions of {directory.parent}, then run the same command again",
        ) from None
    settle(directory)


def settle(directory: Path) -> None:
    """Bring to its end what a kill left of `begin`."""
    pending = _pending(directory)
    if not pending.exists():
        return
    manifest = read_manifest(pending)
    begun = (directory / "manifest.json").exists()  # a kill may have left the directory without it
    if manifest and not begun and (directory.parent / manifest.after[0]).is_dir():
        make_private(directory)
        write_manifest(directory / "manifest.json", manifest)
    with suppress(FileNotFoundError):
        pending.unlink()


def _pending(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.next.json")


def number_of_fresh(directory: Path) -> int:
    """Number of a generation that keeps nothing: one more than any that is there under this name."""
    numbers = [0]
    for path in (directory, *directory.parent.glob(f"{directory.name}.*")):
        with suppress(RunStateError):
            manifest = read_manifest(path / "manifest.json")
            numbers += [manifest.generation] if manifest else []
    return max(numbers) + 1
