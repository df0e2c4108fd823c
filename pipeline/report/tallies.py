"""What a run directory says of its rows and calls; of a shard that is done, in a few sums: `done.json`."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.records import STATUSES, Reply, Status
from pipeline.report.accuracy import Baseline
from pipeline.report.calls import unanswered
from pipeline.report.causes import Cause, causes_of, merged
from pipeline.report.events import Event, over_sessions, read_events
from pipeline.report.lanes import InLane, with_fallen
from pipeline.report.sums import Bought, Held, Sums, held_to
from pipeline.store import batch_states, batched, fallen, parts, seals
from pipeline.store.afar import bring_whole
from pipeline.store.batches import FOLDER
from pipeline.store.compact import compact
from pipeline.store.state import load
from pipeline.store.units import Shard, has_begun

NAME = "done.json"
_VERSION = 2


@dataclass
class Tally:
    """Outcomes of the rows that are covered, and sums over every call that was paid for."""

    outcomes: Counter[Status] = field(default_factory=Counter)
    causes: tuple[Cause, ...] = ()
    beyond: int = 0  # rows with an outcome that a smaller `--limit` leaves out
    pending: int = 0  # rows without one
    waiting: int = 0  # failed rows that the next run tries again
    attempts: int = 0
    rate_limited: int = 0
    shed: int = 0
    identical: int = 0
    cached: int = 0
    saved_usd: Decimal = Decimal(0)
    bought: Bought = field(default_factory=Bought)


@dataclass(frozen=True, slots=True)
class Done:
    """The tally of a shard whose rows all have an outcome; of no more use once its parts are others."""

    version: int
    parts: str  # checksum of parts.jsonl, which has that of each part: every seal and every start adds a line
    rows: int
    tally: Tally


_DONE = TypeAdapter(Done)


@dataclass(frozen=True, slots=True)
class Reading:
    """A tally with what of it the plan is held to, and its lanes with what fell back from batches."""

    tally: Tally
    held: Held
    lanes: dict[str, InLane]


def read(directory: Path, covered: int | None, plan: Baseline | None, events: Sequence[Event]) -> Reading:
    """Read one run directory whole; `covered` are its first rows, None: all, and `events` are those of its log.

    Raises `RunStateError` where it is damaged.
    """
    outcomes, unsealed = load(directory, lambda raw, endpoint: Reply("", "ok"))
    failed = unanswered(directory / "run.log")
    sums = Sums(plan, fallen.read(directory / FOLDER))
    for path in parts.part_paths(directory / "calls"):
        if parts.part_number(path) <= unsealed.sealed:
            sums.add(parts.read_part(path, sums.columns))
    for path in batched.part_paths(directory, batch_states.read(directory)):
        sums.add(parts.read_part(path, sums.columns))
    sums.add(parts.calls_frame(unsealed.calls, {}).select(sums.columns))
    counts = Counter({status: outcomes.count(status, covered) for status in STATUSES})
    bought = sums.bought
    tally = Tally(
        counts,
        causes_of(directory, outcomes, unsealed, covered),
        sum(outcomes.count(status) for status in STATUSES) - counts.total(),
        outcomes.pending(counts.total() if covered is None else covered),
        outcomes.waiting(),
        # A session counts what it sent for rows that did not finish too; of a killed one the last seconds are missing,
        # of which each failed request has its line.
        max(bought.attempts, summed(events, "attempts"), bought.calls + failed.failed),
        max(bought.rate_limited, summed(events, "rate_limited"), failed.rate_limited),
        max(summed(events, "shed"), failed.shed),
        summed(events, "identical"),
        summed(events, "cached"),
        over_sessions(events, lambda numbers: numbers.saved_usd),
        bought,
    )
    return Reading(tally, sums.held, with_fallen(bought.lanes, sums.fallen, sums.live))


def read_shard(shard: Shard, covered: int, plan: Baseline | None) -> Reading:
    """Read a shard: of one that is done its sums, if they tell all that is asked. Raises as `read`."""
    if not has_begun(shard):
        return Reading(Tally(pending=covered), Held(), {})
    known = done_of(shard.directory)
    if known is not None and known.rows == covered:
        held = Held() if plan is None else held_to(plan, known.tally.bought)
        if held is not None:
            return Reading(known.tally, held, known.tally.bought.lanes)
    bring_whole(shard)
    return read(shard.directory, covered, plan, read_events(shard.directory / "run.log"))


def whole(readings: Iterable[Reading]) -> Reading:
    """All of them together."""
    total, held, causes = Tally(), Held(), []
    for reading in readings:
        tally = reading.tally
        total.outcomes.update(tally.outcomes)
        causes.append(tally.causes)
        for name in ("beyond", "pending", "waiting", "attempts", "rate_limited", "shed", "identical", "cached"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.saved_usd += tally.saved_usd
        total.bought.add(tally.bought)
        held.add(reading.held)
    total.causes = merged(causes)
    return Reading(total, held, total.bought.lanes)


def summed(events: Sequence[Event], name: str) -> int:
    """A number over all sessions."""
    return int(over_sessions(events, lambda numbers: int(getattr(numbers, name))))


def write_done(directory: Path, rows: int) -> bool:
    """Note the sums of a shard of so many rows, if each has an outcome that stays; else take away what was noted.

    Its parts are put together before, as the sums are of no more use once `parts.jsonl` is another. For whoever has the
    run directory, once it is closed. Raises `RunStateError`.
    """
    path = directory / NAME
    tally = read(directory, rows, None, read_events(directory / "run.log")).tally
    is_done = not tally.pending and not tally.waiting and not (directory / FOLDER).exists()
    try:
        path.unlink(missing_ok=True)
        if not is_done:
            return False
        compact(directory)
        hidden = path.with_name(f".{NAME}.tmp")
        hidden.touch(0o600)
        with hidden.open("wb") as file:
            file.write(_DONE.dump_json(Done(_VERSION, _parts(directory), rows, tally)))
            file.flush()
            os.fsync(file.fileno())
        machine.replace(hidden, path)
    except OSError as error:
        raise RunStateError(
            f"cannot write {path}: {error.strerror}\nEvery answer is safe beside it.",
            "make room or mend the disk, then run the same command again",
        ) from None
    return True


def done_of(directory: Path) -> Done | None:
    """The sums of a shard that is done; None where there are none, or where its answers are others since."""
    with suppress(OSError, ValidationError):
        known = _DONE.validate_json((directory / NAME).read_bytes())
        if known.version == _VERSION and known.parts == _parts(directory):
            return known
    return None


def nothing_left(shard: Shard, rows: int, again: frozenset[str]) -> Tally | None:
    """The sums of a shard of whose first `rows` rows none is to be done; else None.

    Rows that ended with a status or error kind among `again` are.
    """
    known = done_of(shard.directory)
    if known is None or known.rows != rows:
        return None
    ended = {*+known.tally.outcomes} | {each.cause for each in known.tally.causes}
    return None if again & ended else known.tally


def _parts(directory: Path) -> str:
    return seals.digest((directory / seals.NAME).read_bytes())
