"""The place of an output table: tried and held before the first call, replaced whole, and never unasked.

A run notes in its directory (`output.json`) what it wrote where, so that the next one knows whose a table is. The note
is made before the table is put in place: a kill between the two leaves a note of a table that is not there. Layout 1
made no notes: there the manifest names the table, and run.log tells when it was written.
"""

import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from typing import BinaryIO

import orjson
from pydantic import TypeAdapter

from pipeline.errors import InputError, OutputError, PipelineError, RunStateError
from pipeline.store.manifest import read as read_manifest
from pipeline.store.parts import read_parts, sync_directory

NOTE = "output.json"
_KEPT_NOTES = 8
_STAMP = r"\.\d{8}T\d{6}\.\d+Z"
"""What `--fresh` adds to the name of a run that it sets aside."""
_WHOLE_BYTES = 64 * 2**20
_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class Written:
    """A table that a run wrote: where, what it looked like, and how many of its rows had an outcome."""

    path: str
    size: int
    mtime_ns: int
    digest: str
    rows: int
    finished: int


_WRITTEN = TypeAdapter(list[Written])


@dataclass(frozen=True, slots=True)
class Counted:
    """What is in a table that was written but not put in place."""

    rows: int
    finished: int  # with an outcome


class Place:
    """One output, held by this run: no other run on this machine writes it."""

    def __init__(self, path: Path, directory: Path, overwrite: bool) -> None:
        self._path = path
        self._target = Path(os.path.realpath(path))
        self._directory = directory
        self._overwrite = overwrite
        self._before = _signature(self._target)
        self._finished = 0  # rows with an outcome in the table that is there

    def check(self, rows: int) -> None:
        """Raise `InputError` when the table that is there is not this run's to replace by one of `rows` rows."""
        if self._overwrite or not self._before or not self._before[2]:  # there is nothing, or an empty file
            return
        known = list(_notes(self._directory.parent))
        project = Path(os.path.realpath(self._directory.parent.parent))
        theirs = [(directory, note) for directory, note in known if _names(note, self._target, project)]
        writers = [(directory, note) for directory, note in theirs if _is(self._target, note)]
        writers = writers or list(_of_layout_1(self._directory.parent, self._target))
        if not writers:
            reason = "no run that is kept here wrote it"
            if theirs:
                reason = f"it was changed after {theirs[-1][0]} wrote it"
            raise self._refused(f"{self._path} is there already, and {reason}")
        mine = [note for directory, note in writers if _same_job(directory, self._directory)]
        if not mine:
            directory, note = writers[-1]
            raise self._refused(f"{self._path} holds {_rows(note.finished)} of another run, {directory}")
        self._finished = max(note.finished for note in mine)
        if self._finished > rows:
            raise self._refused(
                f"{self._path} holds {_rows(self._finished)}, and this run would write {rows:,} in their place"
            )

    def replace(self, write: Callable[[BinaryIO], Counted], checked: Callable[[], None]) -> None:
        """Let `write` fill a file beside the table, and put it in place when it is whole and `checked` raises nothing.

        A link stays one: its target is replaced. The mode of a file that is there is kept. Raises `OutputError` when it
        cannot be written, when somebody else wrote the table meanwhile, and when what is there has more finished rows
        of an earlier run of this job; the table that is there then stays.
        """
        try:
            self._replace(write, checked)
        except PipelineError:
            raise
        except Exception as error:  # the system, or the writer, which calls a full disk a fault of the format
            raise OutputError(
                f"cannot write {self._path}: {_reason(error)}\nEvery answer is safe in {self._directory}.",
                "make room, or choose another place with `--out`; the same command buys nothing twice",
            ) from error
        except BaseException as error:  # polars panics, as over a date that no calendar has
            if type(error).__name__ != "PanicException":
                raise
            raise OutputError(
                f"cannot write {self._path}: it has a value that the format cannot hold\n"
                f"Every answer is safe in {self._directory}.",
                "`--out` with a name that ends in .parquet; the same command buys nothing twice",
            ) from None

    def _replace(self, write: Callable[[BinaryIO], Counted], checked: Callable[[], None]) -> None:
        with _beside(self._target) as (hidden, file):
            counted = write(file)
            checked()
            file.flush()
            self._inherit(file.fileno())
            os.fsync(file.fileno())
            there = None if self._overwrite else _signature(self._target)  # one that was removed is in nobody's way
            if there and there != self._before:
                raise OutputError(
                    f"{self._path} was written by somebody else while this run went on: it was not replaced."
                    f"\nEvery answer is safe in {self._directory}.",
                    "the same command with `--out PATH` writes beside it, with `--overwrite` in its place",
                )
            if there and counted.finished < self._finished:
                raise OutputError(
                    f"{self._path} holds {_rows(self._finished)} of an earlier run of this job, and this one has"
                    f" {counted.finished:,} so far: it was not replaced.\nEvery answer is safe in {self._directory}.",
                    "the same command goes on, and replaces it at its end; with `--overwrite` at once",
                )
            self._note(file.fileno(), counted)
            hidden.rename(self._target)
            sync_directory(self._target.parent)
        self._before, self._finished = _signature(self._target), counted.finished

    def _inherit(self, fd: int) -> None:
        """Give the new file the mode of the old one, or that of any new file."""
        mode = 0o666 & ~_umask()
        with suppress(OSError):
            old = self._target.stat()
            mode = stat.S_IMODE(old.st_mode)
            with suppress(OSError):
                os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, mode & 0o777)

    def _note(self, fd: int, counted: Counted) -> None:
        seen = os.fstat(fd)
        note = Written(
            str(self._target), seen.st_size, seen.st_mtime_ns, _digest(fd, seen.st_size), counted.rows, counted.finished
        )
        notes = [*_notes_of(self._directory), note][-_KEPT_NOTES:]
        final = self._directory / NOTE
        with _beside(final) as (hidden, file):
            file.write(orjson.dumps([asdict(each) for each in notes], option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
            hidden.rename(final)

    def _refused(self, message: str) -> InputError:
        return InputError(
            f"{message}\nNothing was sent, nothing was replaced.",
            "`--out PATH` writes to another place; `--overwrite` replaces what is there",
        )


@contextmanager
def held(
    path: Path, directory: Path, rows: int, overwrite: bool, attempt: Callable[[BinaryIO], None]
) -> Iterator[Place]:
    """The output `path` of the run in `directory`, tried and locked, until the end of the block.

    `attempt` writes a table of the same types. Raises `InputError` for a place that cannot be written to, that is
    inside a run directory, or that holds what is not to be replaced unasked; `RunStateError` when another run holds it.
    """
    target = Path(os.path.realpath(path))
    _check_place(path, target, directory.parent)
    with ExitStack() as holding:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            holding.enter_context(_locked(path, target))
            for left in _left_over(target):
                left.unlink()
            with _beside(target) as (_, file):
                attempt(file)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}", "choose another [output] path, or `--out PATH`"
            ) from None
        place = Place(path, directory, overwrite)
        place.check(rows)
        yield place


def last_output(directory: Path) -> str | None:
    """The table that a run wrote last, as it is found from here; None when it wrote none yet."""
    notes = _notes_of(directory)
    if not notes:
        return None
    with suppress(ValueError):
        return str(Path(notes[-1].path).relative_to(Path.cwd()))
    return notes[-1].path


def _check_place(path: Path, target: Path, runs: Path) -> None:
    inside = Path(os.path.realpath(runs))
    if target.is_relative_to(inside) and len(target.relative_to(inside).parts) > 1:
        raise InputError(f"the output {path} is inside a run directory", "choose another [output] path, or `--out`")
    if target.is_dir():
        raise InputError(f"the output {path} is a directory", f"name a file in it: `--out {path / path.name}`")
    if target.is_symlink():
        raise InputError(f"the output {path} is a link that leads nowhere", "remove it, or choose another place")
    if target.exists() and not target.is_file():
        raise InputError(f"the output {path} is not a file", "choose another [output] path, or `--out`")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"the output {path} is write-protected", "allow it with `chmod u+w`, or choose another place")
    for above in target.parents:
        if above.exists():
            if not above.is_dir():
                raise InputError(f"cannot write {path}: {above} is a file, not a directory", "choose another place")
            return


def refusal_of(error: Exception) -> OSError | None:
    """What the system refused to polars, which calls a full disk a fault of the format; None for another cause."""
    number = re.search(r"\(os error (\d{1,4})\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _reason(error: Exception) -> str:
    known = error if isinstance(error, OSError) and error.strerror else refusal_of(error)
    return (known.strerror if known else str(error)) or type(error).__name__


def _signature(target: Path) -> tuple[int, int, int, int] | None:
    try:
        seen = target.stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def _same_job(directory: Path, own: Path) -> bool:
    """Whether this is the run's directory, or that of an earlier one which `--fresh` set aside."""
    return re.fullmatch(re.escape(own.name) + f"({_STAMP})?", directory.name) is not None


def _rows(number: int) -> str:
    return "1 finished row" if number == 1 else f"{number:,} finished rows"


def _notes(runs: Path) -> Iterator[tuple[Path, Written]]:
    """What the runs kept here wrote, oldest note first in each."""
    for directory in sorted(path.parent for path in runs.glob(f"*/{NOTE}")):
        for note in _notes_of(directory):
            yield directory, note


def _notes_of(directory: Path) -> list[Written]:
    """The notes of one run; none where they cannot be read: its table is then nobody's."""
    try:
        if not (directory / NOTE).is_file():
            return []
        return _WRITTEN.validate_json((directory / NOTE).read_bytes(), strict=True)
    except (OSError, ValueError):
        return []


def _of_layout_1(runs: Path, target: Path) -> Iterator[tuple[Path, Written]]:
    """Runs of layout 1, which made no notes, that wrote the table which is there: it is as old as one of their ends."""
    for directory in sorted(path.parent for path in runs.glob("*/manifest.json")):
        with suppress(OSError, RunStateError):
            known, seen = read_manifest(directory / "manifest.json"), target.stat()
            if not known or not (known.version == 1 or known.plain_journals):
                continue
            if os.path.realpath(known.output) != str(target):
                continue
            if any(start <= seen.st_mtime < end + 1 for start, end in _sessions(directory / "run.log")):
                rows = {row for frame in read_parts(directory / "results", ("row",)) for row in frame["row"]}
                yield directory, Written(str(target), seen.st_size, seen.st_mtime_ns, "", len(rows), len(rows))


def _sessions(log: Path) -> Iterator[tuple[float, float]]:
    """When the sessions of a run began and ended, in whole epoch seconds; one that was killed wrote no table."""
    start = inf
    for line in log.read_bytes().splitlines():
        with suppress(ValueError, LookupError, TypeError):
            told = orjson.loads(line)
            if (event := told["event"]) in ("start", "end"):
                at = datetime.fromisoformat(told["at"]).timestamp()
                if event == "end":
                    yield start, at
                start = at if event == "start" else inf


def _names(note: Written, target: Path, project: Path) -> bool:
    """Whether the note is of this place, or was when the project was elsewhere: it may have been moved since."""
    if note.path == str(target):
        return True
    return target.is_relative_to(project) and note.path.endswith(f"{os.sep}{target.relative_to(project)}")


def _is(target: Path, note: Written) -> bool:
    """Whether the file there is the one of the note: same size, and same time or, as for a copy, same content."""
    with suppress(OSError), target.open("rb") as file:
        seen = os.fstat(file.fileno())
        if seen.st_size != note.size:
            return False
        return seen.st_mtime_ns == note.mtime_ns or _digest(file.fileno(), seen.st_size) == note.digest
    return False


def _digest(fd: int, size: int) -> str:
    """Hash of a file's size and content, of a very large one's beginning and end."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    half = _WHOLE_BYTES // 2
    for start, stop in ((0, size),) if size <= _WHOLE_BYTES else ((0, half), (size - half, size)):
        while start < stop and (block := os.pread(fd, min(2**20, stop - start), start)):
            digest.update(block)
            start += len(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _temporary(target: Path, token: str) -> Path:
    return target.with_name(_short(f".{target.name}.{token}.tmp"))


def _short(name: str) -> str:
    """The name, or where the file system takes none so long a hash of it that ends alike."""
    if len(os.fsencode(name)) <= _NAME_BYTES:
        return name
    return f".{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}{Path(name).suffix}"


def _left_over(target: Path) -> Iterator[Path]:
    """Files that a killed run left beside the table; whoever asks holds the lock."""
    pattern = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{16}" + re.escape(".tmp"))
    for entry in os.scandir(target.parent):
        if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


@contextmanager
def _beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `target` that nobody else can have made; removed when it was not renamed."""
    hidden = _temporary(target, os.urandom(8).hex())
    fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield hidden, file
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, target: Path) -> Iterator[None]:
    """The right to write `target`; the system gives it back when the holder dies."""
    name = target.with_name(_short(f".{target.name}.lock"))
    while True:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 100, 0).decode("utf-8", "replace") or "another process"
            os.close(fd)
            raise RunStateError(
                f"another run writes {path}: {holder}", "wait for its end, or choose another place with `--out`"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
                os.close(fd)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), name.stat()):
                break
        os.close(fd)  # the holder before removed it meanwhile
    try:
        os.truncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            name.unlink()
        os.close(fd)
