"""What is known of a run's batches: `batches.jsonl`, one line an event, and nothing else says more.

    cut → upload → uploaded → asking → asked → fetched → taken → cleared
                                                       given_up → cleared

An event is on the disk before the step that it names is made, `taken` when its parts are. So the newest event says
what may have happened. The file begins with whose it is, and every line ends with a checksum, as in a journal. A torn
last line is left out: its step was not made.

Beside it `batches.synced` says how long it is at least: cut off at the end of a line it would be read as it was before,
and what waits with the service be bought again.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args
from zlib import crc32

import orjson

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.store.journal import with_sum, without_sum
from pipeline.store.manifest import BATCHED_VERSION
from pipeline.store.manifest import read as read_manifest
from pipeline.store.manifest import write as write_manifest
from pipeline.store.seals import Sealed

NAME = "batches.jsonl"
SYNCED = "batches.synced"

Stage = Literal["cut", "upload", "uploaded", "asking", "asked", "fetched", "taken", "cleared", "given_up"]
Aside = Literal["state", "cancelling", "released"]
"""What changes no stage: the service told something new, it was asked to cancel, or nobody waits for it any more."""
ASIDES: tuple[Aside, ...] = get_args(Aside)

_OVER: frozenset[Stage] = frozenset({"taken", "cleared", "given_up"})
_UNDONE: tuple[Stage, ...] = ("cut", "given_up")
AFTER: Mapping[Stage, frozenset[Stage]] = {
    "cut": frozenset({*_UNDONE, "upload", "uploaded"}),
    "upload": frozenset({*_UNDONE, "upload", "uploaded"}),
    "uploaded": frozenset({*_UNDONE, "upload", "asking"}),  # the file may have expired
    "asking": frozenset({*_UNDONE, "uploaded", "asked"}),  # refused for certain, or there
    "asked": frozenset({*_UNDONE, "fetched", "taken"}),  # one that failed has nothing to fetch
    "fetched": frozenset({"fetched", "taken", "given_up"}),
    "taken": frozenset({"cleared"}),
    "given_up": frozenset({"cleared"}),
    "cleared": frozenset(),
}
_MONEY = ("worst_usd", "usd")


@dataclass(frozen=True, slots=True)
class BatchState:
    """One batch as its events tell of it; times are seconds since the epoch, by our clock but for `ended_at`."""

    number: int  # within its run, from 1
    attempt: int  # the same lines may be handed in again, as another file
    file: str  # our name for its file, and its label at the service
    target: str  # by its name in the job file; empty where that names none
    endpoint: str
    account: str
    model: str  # that is asked
    rows: int
    lines: int
    size_bytes: int
    sha256: str  # of the file, in hexadecimal
    input_tokens_est: int
    worst_usd: Decimal | None  # all of its lines at their most; None: there was no cap, or a price is unknown
    changes: str | None  # what `--set` changed of [model] for it, as JSON
    stage: Stage
    at: float  # when that stage began
    cut_at: float  # for the first time
    asking_at: float | None = None
    asked_at: float | None = None
    ended_at: float | None = None  # as the service says
    taken_at: float | None = None
    name: str = ""  # the service's, of the batch
    remote_file: str = ""  # the service's, of its file
    status: str = ""  # as the service told last
    cancelling: bool = False
    unbegun: bool = False  # it waited still right before it was cancelled: nothing of it was worked on, or billed
    gone_since: float | None = None  # since when its results are not where the service says that they are
    released: bool = False  # its prompts are asked elsewhere: what comes of it may be late
    ok: int = 0  # replies that were paid for, and are not late
    failed: int = 0  # lines that failed
    missing: int = 0  # lines of which the results say nothing
    refused: int = 0  # lines of the results that were not believed
    late: int = 0  # replies to what was answered elsewhere meanwhile
    usd: Decimal | None = Decimal(0)  # of all of them; None: a price is unknown
    parts: tuple[Sealed, ...] = ()  # in which they are kept

    @property
    def is_open(self) -> bool:
        """Whether it may still be answered."""
        return self.stage not in _OVER

    @property
    def is_waited_for(self) -> bool:
        """Whether rows wait for it."""
        return self.is_open and not self.released

    def age_s(self, now: float, is_patient: bool) -> float:
        """How long it is out at some epoch seconds; patience without a deadline is with it from when it was cut."""
        since = self.asked_at or (self.cut_at if is_patient else now)
        return max(0.0, now - since)

    @property
    def asked_as(self) -> list[str]:
        """The names under which a service was asked for it, in this try and those before."""
        stem = self.file.rpartition("-")[0]
        tries = self.attempt if self.asking_at is not None else self.attempt - 1
        return [f"{stem}-{attempt}" for attempt in range(1, tries + 1)]

    @property
    def is_taken(self) -> bool:
        """Whether its replies are kept: its parts count."""
        return self.taken_at is not None


_CHANGING = frozenset(field.name for field in fields(BatchState)) - {"number", "stage", "at", "cut_at", "taken_at"}
_ASKED_FRESH: dict[str, Any] = {
    "asking_at": None,
    "asked_at": None,
    "ended_at": None,
    "name": "",
    "remote_file": "",
    "status": "",
    "cancelling": False,
    "unbegun": False,
    "gone_since": None,
}
"""Of a batch that is handed in again."""


def after(
    state: BatchState | None, number: int, event: Stage | Aside, at: float, told: Mapping[str, Any]
) -> BatchState:
    """The state of a batch after one more event; `told` are fields that are new.

    Raises ValueError for an event that cannot come then, or a field that there is not.
    """
    if unknown := told.keys() - _CHANGING:
        raise ValueError(f"an event says nothing of {', '.join(sorted(unknown))}")
    if state is None:
        if event != "cut":
            raise ValueError(f"batch {number} begins with {event}")
        return BatchState(number=number, stage="cut", at=at, cut_at=at, **told)
    if event in ASIDES:
        if not state.is_open:
            raise ValueError(f"{event} of batch {number}, which is {state.stage}")
        flags: dict[str, Any] = {} if event == "state" else {event: True}
        return replace(state, **flags, **told)
    if event not in AFTER[state.stage]:
        raise ValueError(f"batch {number} is {state.stage}: {event} cannot follow")
    moments: dict[str, Any] = {f"{event}_at": at} if event in ("asking", "asked", "taken") else {}
    if event == "cut":
        moments = _ASKED_FRESH
    return replace(state, stage=event, at=at, **{**moments, **told})


class BatchLog:
    """The events of a run's batches, open for adding; its one writer holds the run directory."""

    def __init__(self, directory: Path, run: str) -> None:
        """Raises `RunStateError` for a file that is missing, damaged or of another run."""
        self._directory, self._run = directory, run
        self._path = directory / NAME
        self._adding = Lock()
        self.states = read(directory)

    def begin(self) -> None:
        """Make the file, and have older versions leave this run alone: they would buy what waits in its batches."""
        manifest = read_manifest(self._directory / "manifest.json")
        assert manifest
        if manifest.version >= BATCHED_VERSION:
            return
        try:
            if not (self._path.exists() and _whole_bytes(self._path.read_bytes(), crc32(self._run.encode()))):
                self._append(orjson.dumps({"batches": self._run}, option=orjson.OPT_APPEND_NEWLINE))
            machine.sync_directory(self._directory)
            write_manifest(self._directory / "manifest.json", replace(manifest, version=BATCHED_VERSION))
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def add(self, number: int, event: Stage | Aside, at: float, told: Mapping[str, Any]) -> BatchState:
        """Note an event, forced to the disk; returns the batch as it is then.

        Raises ValueError for one that cannot come now, `RunStateError` when the disk refuses.
        """
        with self._adding:
            state = after(self.states.get(number), number, event, at, told)
            record = {"batch": number, "event": event, "at": at, **told}
            self._append(orjson.dumps(record, default=_written, option=orjson.OPT_APPEND_NEWLINE))
            self.states[number] = state
        return state

    def _append(self, line: bytes) -> None:
        try:
            fd = machine.open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                size = os.fstat(fd).st_size
                whole = _whole_bytes(machine.read_at(fd, size, 0), crc32(self._run.encode()))
                if whole < size:
                    os.ftruncate(fd, whole)
                left = with_sum(line, crc32(self._run.encode()))
                while left:  # a disk that fills takes a part
                    left = left[os.write(fd, left) :]
                os.fsync(fd)
                size = os.fstat(fd).st_size
            finally:
                os.close(fd)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        with suppress(OSError):  # it is a note only, and never newer than the events
            _note_size(self._directory / SYNCED, size)


def read(directory: Path) -> dict[int, BatchState]:
    """The batches of a run by number, as they lie there; none where it has no batches.

    Needs no lock: what is added meanwhile is in it or not. Raises `RunStateError` for a file that is missing, damaged
    or of another run.
    """
    path = directory / NAME
    manifest, noted = read_manifest(directory / "manifest.json"), _noted_size(directory / SYNCED)  # before the events
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise RunStateError(f"cannot read {path}: {error.strerror}", "mend its permissions") from None
    seed = crc32((manifest.run if manifest else "").encode())
    whole = _whole_bytes(content, seed)
    lines = content[:whole].splitlines(keepends=True)
    if not lines and manifest and manifest.version == BATCHED_VERSION:
        raise RunStateError(
            f"{path} is {'empty' if path.exists() else 'missing'}:"
            " it says which batches are with the service, and what they bought\nNothing was bought or written.",
            "restore it from a backup: without it nobody knows which batches are with the service",
        )
    if whole < noted:
        raise RunStateError(
            f"{path} was cut off: it has {whole:,} bytes, and {noted:,} were safe on the disk; no crash does that"
            "\nThe rest says which batches are with the service, and what they bought. Nothing was bought or written.",
            f"restore the newest one from a backup; or remove {path.with_name(SYNCED)} to go on with what is left: what"
            " stood in the rest is then bought again",
        )
    states: dict[int, BatchState] = {}
    for position, line in enumerate(lines, 1):
        try:
            record = orjson.loads(without_sum(line, seed) or b"")
            if position == 1:
                record["batches"]
                continue
            number, event, at = record.pop("batch"), record.pop("event"), record.pop("at")
            states[number] = after(states.get(number), number, event, at, _read(record))
        except (ValueError, LookupError, TypeError, ArithmeticError):
            raise RunStateError(
                f"line {position} of {path} is damaged, or belongs to another run: no crash does that"
                "\nNothing was bought or written.",
                "restore it from a backup: without it nobody knows which batches are with the service",
            ) from None
    return states


def _note_size(path: Path, size: int) -> None:
    """Note how many bytes of the events are on the disk; in place, and all at once."""
    fd = machine.open_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        machine.write_at(fd, b"%019d\n" % size, 0)
    finally:
        os.close(fd)


def _noted_size(path: Path) -> int:
    """How many they were at least; 0 where nobody noted it."""
    with suppress(OSError, ValueError):
        return int(path.read_bytes())
    return 0


def cannot_write(path: Path, error: OSError) -> RunStateError:
    """What to tell where the disk refuses something of a batch."""
    return RunStateError(
        f"cannot write {path}: {error.strerror}\nWhat was answered is kept, and what is with the service stays there.",
        "make room or mend the disk, then run the same command again",
    )


def _whole_bytes(content: bytes, seed: int) -> int:
    """Bytes up to the end of the last line that is whole, where only the last one is not."""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        return end
    start = content.rfind(b"\n", 0, max(0, end - 1)) + 1
    last = content[start:]
    torn = b"\0" in last and without_sum(last, seed) is None  # after a power cut
    return start if torn else end


def _written(value: object) -> object:
    if isinstance(value, Sealed):
        return tuple(value)
    assert isinstance(value, Decimal)
    return str(value)


def _read(told: dict[str, Any]) -> dict[str, Any]:
    for name in _MONEY:
        if told.get(name) is not None:
            told[name] = Decimal(told[name])
    if "parts" in told:
        told["parts"] = tuple(Sealed(*each) for each in told["parts"])
    return told
