"""The place of an output table: tried and held before the first call, replaced whole, and never unasked.

A table is noted (`pipeline.store.notes`) before it is put in place: a kill between the two leaves a note of a table
that is not there.
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline import machine
from pipeline.errors import InputError, OutputError, PipelineError, RunStateError
from pipeline.store import notes
from pipeline.store.notes import Noted

STAMP = r"\.\d{8}T\d{6}\.\d+Z"
"""What `--fresh` adds to the name of a run that it sets aside."""
_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class Counted:
    """What is in a table that was written but not put in place."""

    rows: int
    finished: int  # with an outcome


Write = Callable[[BinaryIO], Counted]
"""Fills a file with a table, and says what is in it."""


class Output(Protocol):
    """The output of a run: one table, or several that together are one."""

    @property
    def finished(self) -> int:
        """Rows with an outcome in this run's own table that is there; 0 where none is."""
        ...

    def free_bytes(self) -> int:
        """Room that is left on the disk where tables are written."""
        ...

    def takes(self, finished: int, rows: int) -> bool:
        """Whether a table of `rows` with so many `finished` may replace one of an earlier run of this job."""
        ...

    def replace(self, parts: Iterable[Write], checked: Callable[[], None]) -> Counted:
        """Let each of `parts` fill a file, and put all in place when they are whole and `checked` raises nothing."""
        ...


class Place:
    """One output, held by this run: no other run on this machine writes it."""

    def __init__(self, path: Path, directory: Path, overwrite: bool, noted: bool = True) -> None:
        self._path = path
        self._target = Path(os.path.realpath(path))
        self._directory = directory
        self._overwrite = overwrite
        self._noted = noted
        self._mode = new_mode()
        self._before = _signature(self._target)
        self._finished = 0  # rows with an outcome in the table that is there

    @property
    def finished(self) -> int:
        """Rows with an outcome in this run's own table that is there; 0 where none is."""
        return self._finished

    def free_bytes(self) -> int:
        """Room that is left on its disk."""
        return shutil.disk_usage(self._target.parent).free

    def takes(self, finished: int, rows: int) -> bool:
        """Whether a table of `rows` with so many `finished` may replace one of an earlier run of this job."""
        return self._overwrite or finished >= min(self._finished, rows)  # all that an edit leaves is enough

    def check(self, rows: int | None) -> None:
        """Raise `InputError` when the table that is there is not this run's to replace by one of `rows` at most."""
        if self._overwrite or not self._before or not self._before[2]:  # there is nothing, or an empty file
            return
        if not self._noted:
            raise refused(f"{self._path} is there already")
        theirs = list(notes.naming(self._target, self._directory.parent))
        writers = [(directory, note) for directory, note in theirs if notes.is_of(self._target, note)]
        writers = writers or list(notes.of_layout_1(self._directory.parent, self._target))
        self._finished = own_rows(self._path, self._directory, rows, writers, theirs)

    def replace(self, parts: Iterable[Write], checked: Callable[[], None]) -> Counted:
        """Let the one of `parts` fill a file beside the table, and put that in place when `checked` raises nothing.

        A link stays one: its target is replaced. The mode of a file that is there is kept. Raises `OutputError` when it
        cannot be written, when somebody else wrote the table meanwhile, and when what is there has more finished rows
        of an earlier run of this job; the table that is there then stays.
        """
        (write,) = parts
        with explained(self._path, self._directory):
            return self._replace(write, checked)

    def _replace(self, write: Write, checked: Callable[[], None]) -> Counted:
        with beside(self._target) as (hidden, file):
            counted = write(file)
            checked()
            file.flush()
            self._inherit(file.fileno())
            os.fsync(file.fileno())
            there = None if self._overwrite else _signature(self._target)  # one that was removed is in nobody's way
            if there and there != self._before:
                raise meanwhile(self._path, self._directory)
            if there and not self.takes(counted.finished, counted.rows):
                raise fewer(self._path, self._directory, self._finished, counted.finished)
            if self._noted:
                rows, finished = counted.rows, counted.finished
                note(self._directory, notes.with_one_more(self._directory, self._target, file.fileno(), rows, finished))
            file.close()
            machine.replace(hidden, self._target)
            machine.sync_directory(self._target.parent)
        self._before, self._finished = _signature(self._target), counted.finished
        return counted

    def _inherit(self, fd: int) -> None:
        """Give the new file the mode of the old one, or that of any new file."""
        mode = self._mode
        with suppress(OSError):
            old = self._target.stat()
            mode = stat.S_IMODE(old.st_mode)
            with suppress(OSError):
                machine.set_owner(fd, old)
        machine.set_mode(fd, mode & 0o777)


def own_rows(
    path: Path | str, directory: Path, rows: int | None, writers: Sequence[Noted], theirs: Sequence[Noted]
) -> int:
    """Finished rows of the run's own table that is there.

    `writers` are the notes of what is there, `theirs` of what was. Raises `InputError` when it is not the run's to
    replace by `rows` at most.
    """
    if not writers:
        reason = f"it was changed after {theirs[-1][0]} wrote it" if theirs else "no run that is kept here wrote it"
        raise refused(f"{path} is there already, and {reason}")
    mine = [note for directory_of, note in writers if same_job(directory_of, directory)]
    if not mine:
        other, note = writers[-1]
        raise refused(f"{path} holds {told_rows(note.finished)} of another run, {other}")
    finished = max(note.finished for note in mine)
    if rows is not None and finished > rows:
        raise refused(f"{path} holds {told_rows(finished)}, and this run would write {rows:,} in their place")
    return finished


def meanwhile(path: Path | str, directory: Path) -> OutputError:
    """Why a table that is not the one that was there at the start was not replaced."""
    return OutputError(
        f"{path} was written by somebody else while this run went on: it was not replaced."
        f"\nEvery answer is safe in {directory}.",
        "the same command with `--out PATH` writes beside it, with `--overwrite` in its place",
    )


def fewer(path: Path | str, directory: Path, there: int, now: int) -> OutputError:
    """Why a table with more finished rows was not replaced by one with fewer."""
    return OutputError(
        f"{path} holds {told_rows(there)} of an earlier run of this job, and this one has {now:,} so far: it was not"
        f" replaced.\nEvery answer is safe in {directory}.",
        "the same command goes on, and replaces it at its end; with `--overwrite` at once",
    )


def note(directory: Path, noted: bytes) -> None:
    """Keep in a run directory which tables its run wrote."""
    final = directory / notes.NAME
    with beside(final) as (hidden, file):
        file.write(noted)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        machine.replace(hidden, final)


def refused(message: str) -> InputError:
    """Why what is there is not this run's to replace."""
    return InputError(
        f"{message}\nNothing was sent, nothing was replaced.",
        "`--out PATH` writes to another place; `--overwrite` replaces what is there",
    )


@contextmanager
def explained(path: Path | str, directory: Path) -> Iterator[None]:
    """Turn what goes wrong as an output is written into an `OutputError` that says where the answers are."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # the system, or the writer, which calls a full disk a fault of the format
        raise OutputError(
            f"cannot write {path}: {_reason(error)}\nEvery answer is safe in {directory}.",
            "make room, or choose another place with `--out`; the same command buys nothing twice",
        ) from error
    except BaseException as error:  # polars panics, as over a date that no calendar has
        if type(error).__name__ != "PanicException":
            raise
        raise OutputError(
            f"cannot write {path}: it has a value that the format cannot hold\nEvery answer is safe in {directory}.",
            "`--out` with a name that ends in .parquet; the same command buys nothing twice",
        ) from None


@contextmanager
def held(
    path: Path,
    directory: Path,
    rows: int | None,
    overwrite: bool,
    attempt: Callable[[BinaryIO], None],
    noted: bool = True,
) -> Iterator[Place]:
    """The output `path` of the run in `directory`, tried and locked, until the end of the block.

    `attempt` writes a table of the same types; `rows` are those that it will have at most, where a flag says so. One
    that is not `noted` writes nothing into the run directory, and replaces no file unasked, its own no more. Raises
    `InputError` for a place that cannot be written to, that is inside a run directory, or that holds what is not to be
    replaced unasked; `RunStateError` when another run holds it.
    """
    target = Path(os.path.realpath(path))
    _check_place(path, target, directory.parent)
    with ExitStack() as holding:
        with tried(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            holding.enter_context(locked(path, target))
            holding.callback(tidy, target)
            for left in (*left_over(target), *(left_over(directory / notes.NAME) if noted else ())):
                left.unlink()
            with beside(target) as (_, file):
                attempt(file)
        place = Place(path, directory, overwrite, noted)
        place.check(rows)
        yield place


@contextmanager
def tried(path: Path) -> Iterator[None]:
    """Turn what the system refuses as an output is tried into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", "choose another [output] path, or `--out PATH`"
        ) from None


def _check_place(path: Path, target: Path, runs: Path) -> None:
    check_around(path, target, runs)
    if target.is_dir():
        raise InputError(f"the output {path} is a directory", f"name a file in it: `--out {path / path.name}`")
    if target.is_symlink():
        raise InputError(f"the output {path} is a link that leads nowhere", "remove it, or choose another place")
    if target.exists() and not target.is_file():
        raise InputError(f"the output {path} is not a file", "choose another [output] path, or `--out`")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"the output {path} is write-protected", "allow it with `chmod u+w`, or choose another place")


def check_around(path: Path, target: Path, runs: Path) -> None:
    """Raise `InputError` for an output inside a run directory, or below a file."""
    inside = Path(os.path.realpath(runs))
    if target.is_relative_to(inside) and len(target.relative_to(inside).parts) > 1:
        raise InputError(f"the output {path} is inside a run directory", "choose another [output] path, or `--out`")
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


def same_job(directory: Path, own: Path) -> bool:
    """Whether this is the run's directory, or that of an earlier one which `--fresh` set aside."""
    return re.fullmatch(re.escape(own.name) + f"({STAMP})?", directory.name) is not None


def told_rows(number: int) -> str:
    """So many finished rows, in words."""
    return "1 finished row" if number == 1 else f"{number:,} finished rows"


def new_mode() -> int:
    """Mode of a new file; asked while this is the only thread: asking sets it for all of them."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _temporary(target: Path, token: str) -> Path:
    return target.with_name(_short(f".{target.name}.{token}.tmp"))


def _short(name: str) -> str:
    """The name, or where the file system takes none so long a hash of it that ends alike."""
    if len(os.fsencode(name)) <= _NAME_BYTES:
        return name
    return f".{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}{Path(name).suffix}"


def tidy(target: Path) -> None:
    """Remove what Ctrl-C left: polars and Python both make an exception of it, and the second may end a clean-up."""
    with suppress(OSError):
        for left in left_over(target):
            left.unlink()


def left_over(target: Path) -> Iterator[Path]:
    """Files that a killed run left beside the table; whoever asks holds the lock."""
    pattern = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{16}" + re.escape(".tmp"))
    for entry in os.scandir(target.parent) if target.parent.is_dir() else ():
        if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


@contextmanager
def beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `target` that nobody else can have made; removed when it was not renamed."""
    hidden = _temporary(target, os.urandom(8).hex())
    fd = machine.open_file(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | machine.NO_LINK)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield hidden, file
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


@contextmanager
def locked(path: Path | str, target: Path) -> Iterator[None]:
    """The right to write `target`; the system gives it back when the holder dies."""
    name = target.with_name(_short(f".{target.name}.lock"))
    while True:
        fd = machine.open_file(name, os.O_RDWR | os.O_CREAT | machine.NO_LINK)
        try:
            machine.lock(fd)
        except BlockingIOError:
            holder = machine.read_at(fd, 100, 0).decode("utf-8", "replace") or "another process"
            os.close(fd)
            raise RunStateError(
                f"another run writes {path}: {holder}", "wait for its end, or choose another place with `--out`"
            ) from None
        except OSError as error:
            if error.errno not in machine.NO_LOCKS:
                os.close(fd)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), name.stat()):
                break
        os.close(fd)  # the holder before removed it meanwhile
    try:
        os.truncate(fd, 0)
        machine.write_at(fd, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            name.unlink()
        os.close(fd)
