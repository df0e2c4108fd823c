"""What a run directory says, read without changing it: the outcome of every row, and what is not sealed yet."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline.errors import RunStateError
from pipeline.records import PASSING, STATUSES, Parse, Result, Status
from pipeline.store import batch_states, batched, parts, seals
from pipeline.store.journal import (
    Whose,
    check_first,
    check_length,
    is_blank,
    journal_number,
    journal_path,
    journal_paths,
    read,
    synced,
)
from pipeline.store.lines import Call, Ended, Sent
from pipeline.store.manifest import Manifest, differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.units import FOLDER

_PASSING_BIT = LASTING = 0x80
"""Below it, and not 0, is the state of a row whose outcome stays."""


class Outcomes:
    """The outcome of every row in one byte: 0 for none yet. 10 million rows take 10 MB."""

    def __init__(self) -> None:
        self._states = bytearray()

    def set(self, row: int, status: Status, passing: bool) -> None:
        """Remember a row's outcome; `passing` means that the next run tries it again."""
        if row >= len(self._states):
            self._states.extend(bytes(row + 1 - len(self._states) + len(self._states) // 8))
        self._states[row] = STATUSES.index(status) + 1 | (_PASSING_BIT if passing else 0)

    def take_in(self, first_row: int, others: "Outcomes") -> None:
        """Remember those of a shard, whose row 0 is `first_row`."""
        stop = first_row + len(others._states)
        if stop > len(self._states):
            self._states.extend(bytes(stop - len(self._states)))
        self._states[first_row:stop] = others._states

    def done(self, row: int) -> bool:
        """Whether the row has an outcome that stays."""
        return row < len(self._states) and 0 < self._states[row] < _PASSING_BIT

    def lasting(self, row: int) -> Status | None:
        """The outcome of a row, where it has one that stays."""
        return STATUSES[self._states[row] - 1] if self.done(row) else None

    def again(self, row: int) -> bool:
        """Whether the row has an outcome, and is tried again all the same."""
        return 0 <= row < len(self._states) and self._states[row] >= _PASSING_BIT  # a cache is of no row: -1

    def states(self, first_row: int, rows: int) -> pl.Series:
        """What stands of so many rows, UInt8: 0 for no outcome, and `LASTING` or above for one that is tried again."""
        held = bytes(self._states[first_row : first_row + rows]).ljust(rows, b"\0")
        return pl.Series([held]).bin.reinterpret(dtype=pl.Array(pl.UInt8, rows)).explode()

    def count(self, status: Status, rows: int | None = None, *, lasting: bool = False) -> int:
        """How many of the first `rows` have this outcome; `lasting` leaves out those that will be tried again."""
        code = STATUSES.index(status) + 1
        return self._states.count(code, 0, rows) + (0 if lasting else self._states.count(code | _PASSING_BIT, 0, rows))

    def pending(self, rows: int) -> int:
        """How many of the first `rows` have no outcome."""
        return max(0, rows - len(self._states)) + self._states.count(0, 0, rows)

    def settle(self) -> None:
        """Leave every outcome as it is: nothing is tried again."""
        self._states = self._states.translate(bytes(code & ~_PASSING_BIT for code in range(256)))

    def is_ok(self, row: int) -> bool:
        """Whether the row was answered."""
        return row < len(self._states) and self._states[row] == 1

    def forget(self) -> None:
        """Give back what they take: nothing is known of any row then."""
        self._states = bytearray()

    def waiting(self) -> int:
        """Rows whose failure may pass: the next run tries them again."""
        return sum(self._states.count(code | _PASSING_BIT) for code in range(1, len(STATUSES) + 1))


@dataclass
class Batch:
    """What one journal holds."""

    number: int
    calls: list[Call] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)
    in_flight: dict[str, Sent] = field(default_factory=dict)  # sent, and neither answered nor refused so far
    sealed: int = 0  # number of the parts that all of this comes after
    journals: set[int] = field(default_factory=set)  # that it was read from


def is_passing(result: Result) -> bool:
    """Whether the next run tries this row again: it failed for a reason that may pass, and bought no answer."""
    return result.status == "error" and result.error_kind in PASSING


def load(directory: Path, parse: Parse) -> tuple[Outcomes, Batch]:
    """State of a run directory, unchanged: outcomes by row, and what is not sealed yet, merged into one batch.

    The directory may be in use: a seal that is completed meanwhile is followed, so that nothing is missed or counted
    twice. Raises `RunStateError` for a part or a journal that is missing, damaged, or of another run.
    """
    outcomes = Outcomes()

    def take_in(part: Path) -> None:
        for row, status, kind in parts.read_part(part, ("row", "status", "error_kind")).iter_rows():
            outcomes.set(row, status, status == "error" and kind in PASSING)

    unsealed = load_unsealed(directory, parse, take_in)
    for result in unsealed.results.values():
        outcomes.set(result.row, result.status, is_passing(result))
    return outcomes, unsealed


def load_unsealed(directory: Path, parse: Parse, take_in: Callable[[Path], None] = lambda part: None) -> Batch:
    """What is not sealed yet, as `load`; `take_in` is told each part of results that comes before it, oldest first."""
    check_parts(directory)
    return unsealed_of(directory, parse, take_in)


def unsealed_of(directory: Path, parse: Parse, take_in: Callable[[Path], None] = lambda part: None) -> Batch:
    """As `load_unsealed`, whatever became of the parts."""
    sealed = 0
    while True:
        for path in parts.part_paths(directory / "results"):
            if parts.part_number(path) > sealed:
                sealed = parts.part_number(path)
                take_in(path)
        expected = seals.journals(directory)
        with suppress(FileNotFoundError):
            unsealed = _unsealed(directory, sealed, parse)
            if parts.newest(directory / "results") == sealed and seals.journals(directory) == expected:
                break
    for number in expected:
        if number > sealed and number not in unsealed.journals:
            raise _gone(directory, number)
    return unsealed


def check_parts(directory: Path) -> dict[str, seals.Sealed]:
    """As `seals.check`; and those parts that no line tells of have to be of this run, not laid there."""
    known, run = seals.check(directory), whose(directory).run
    paths = [path for kind in ("calls", "results") for path in parts.files(directory / kind)]
    for path in (*paths, *batched.there(directory)):
        if not seals.noted(path, known):
            parts.check_owner(path, run)
    return known


def whose(directory: Path) -> Whose:
    """Whose journals lie there, by the manifest."""
    manifest = read_manifest(directory / "manifest.json")
    return Whose(manifest.run, manifest.plain_journals) if manifest else Whose("")


def is_unused(directory: Path) -> bool:
    """Whether the run was given up before its first call, as when its cost was not agreed to: it binds nobody."""
    return not (
        any(directory.glob("*/part-*.parquet"))
        or batch_states.read(directory)
        or seals.read(directory)
        or any((directory / FOLDER).glob("*/manifest.json"))
        or not all(is_blank(path) for path in journal_paths(directory))
    )


def check_belongs(directory: Path, manifest: Manifest, parse: Parse) -> None:
    """Raise `RunStateError` for a directory that was used by a run of another job or input."""
    known = read_manifest(directory / "manifest.json")
    different = differences(known, manifest) if known else []
    if known and different and not is_unused(directory):
        refuse_other(directory, known, manifest, parse)
        raise _other(directory, different, parse, "`pipeline run` begins the next generation of it")


def refuse_other(directory: Path, known: Manifest, manifest: Manifest, parse: Parse) -> None:
    """Raise `RunStateError` for a run directory that is no earlier state of this job, or that has batches out."""
    different = differences(known, manifest)
    if known.job_path != manifest.job_path and Path(known.job_path).is_file():
        hint = "give one of the two job files another name; `--fresh` starts a new run in place of the other's"
        files = f"the job file: {known.job_path}, and this is {manifest.job_path}"
        raise _other(directory, [files, *different], parse, hint)
    if known.kind != manifest.kind:
        hint = "`--fresh` starts a new run and keeps the old one beside it; undo the change to continue this one"
        raise _other(directory, different, parse, hint)
    if known.kind != "offline" and any(state.is_open for state in batch_states.read(directory).values()):
        hint = (
            "batches of it are with the service: undo the change, and the same command collects them, or calls them off"
            " with `--cancel-batches`; then the edited job buys what is new"
        )
        raise _other(directory, different, parse, hint)


def _other(directory: Path, different: Sequence[str], parse: Parse, hint: str) -> RunStateError:
    kept_rows = sum(load(directory, parse)[0].count(status) for status in STATUSES)
    return RunStateError(
        f"{directory} was made from a different job or input\n"
        + "\n".join(f"  {line}" for line in different)
        + f"\n{kept_rows:,} results are kept there.",
        hint,
    )


def _unsealed(directory: Path, sealed: int, parse: Parse) -> Batch:
    merged = Batch(sealed, sealed=sealed)
    seen: set[bytes] = set()
    noted = synced(directory)
    paths = journal_paths(directory)
    owner = whose(directory)  # after the paths: a run of an older version is given its identity before its next journal
    for path in paths:
        number = journal_number(path)
        check_first(path, owner)
        if number <= sealed:
            continue
        check_length(path, noted)
        merged.number = number
        if path.stat().st_size:
            merged.journals.add(number)
        for record in read(path, parse, owner):
            if isinstance(record, Sent):
                merged.in_flight[record.fingerprint] = record
                continue
            if isinstance(record, Result):
                merged.results[record.row] = record
                continue
            merged.in_flight.pop(record.fingerprint, None)
            if isinstance(record, Ended):
                continue
            if (
                not record.has_cost or record.line not in seen
            ):  # one carried on is in two journals until the seal is done
                seen.add(record.line)
                merged.calls.append(record)
    return merged


def _gone(directory: Path, number: int) -> RunStateError:
    path = journal_path(directory, number)
    return RunStateError(
        f"{path} {'is empty' if path.exists() else 'is missing'}: replies that were paid for stand in it\n"
        "Nothing was bought or written.",
        f"restore it from a backup; or take the last line that names it out of {directory / seals.NAME}"
        " to go on without it:"
        " what stood in it is then bought again",
    )
