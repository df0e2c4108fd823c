"""A small SQLite file that several processes write, and that may fail in mid-run without stopping anybody."""

import errno
import glob
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.process import make_private

RETRY_S = 5.0
"""After a failure the file is left alone so long."""
PATIENCE_S = 5.0  # how long another process may keep the file locked before a run begins, when nobody waits
_BUSY_S = 0.1  # the same in mid-run, on the event loop's thread
_SIGN = ".live"  # what the name of a sign of life ends with
_BEGINNING = b"SQLite format 3\0"
_LEAST_BYTES = 512  # SQLite's smallest page: a shorter file holds nothing yet

Found = TypeVar("Found")


class SharedFile:
    """The connection to the file, for the user's eyes only.

    A file without its tables, as a kill or a full disk leaves it, is an empty one. To open it raises `RunStateError`,
    but for a damaged one that is `disposable`: it is set aside, and `made_anew` says so. Later nothing is raised:
    `read` and `write` return None while the file is locked, damaged, full or gone, and it is opened anew every
    `RETRY_S`. What lasts is `trouble`, until something is written again: any failure but a lock, and a lock that is
    still there at the second try. `on_trouble` hears of the first.
    WAL without fsync: a power cut may lose the last seconds, a crash of the program loses nothing.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        name: str,
        hint: str,
        disposable: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` and `hint` are for the error: "The quota book", and what to do; `clock` tells seconds."""
        self.trouble: str | None = None
        self.made_anew = ""  # why, where a damaged one was set aside
        self.on_trouble: Callable[[str], None] = lambda message: None
        self.path, self._schema, self._name = path, schema, name
        self._clock = clock
        self._busy_s = PATIENCE_S
        self._told = False
        self._version = -1
        self._retry_at: float | None = None
        self._db: sqlite3.Connection | None = None
        try:
            try:
                self._db = self._connected()
                self._check()
            except (OSError, sqlite3.Error) as error:
                if not disposable or not (is_damaged(error) or path.is_dir()):
                    raise
                self._set_aside(error)
                self._db = self._connected()
            self._be_quick()
        except (OSError, sqlite3.Error) as error:
            self._drop()
            raise unusable(name, path, error, hint) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._drop()

    @property
    def blind(self) -> bool:
        """Whether it could not be used, and is left alone for now."""
        return self._retry_at is not None and self._clock() < self._retry_at

    def read(self, work: Callable[[sqlite3.Connection], Found]) -> Found | None:
        """What `work` returns, which must not be None; None while the file cannot be used."""
        if self.blind:
            return None
        try:
            if self._db is None:
                self._db = self._connected()
            elif not self._in_place():
                raise FileNotFoundError(errno.ENOENT, "it was removed or replaced while this run had it open")
            return work(self._db)
        except sqlite3.ProgrammingError:
            raise
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return None

    def write(self, work: Callable[[sqlite3.Connection], Found]) -> Found | None:
        """As `read`, in one transaction."""

        def transaction(db: sqlite3.Connection) -> Found:
            db.execute("BEGIN IMMEDIATE")
            found = work(db)
            db.execute("COMMIT")
            return found

        found = self.read(transaction)
        if found is not None:
            self.trouble = self._retry_at = None
        return found

    def changed(self, db: sqlite3.Connection) -> bool:
        """Whether another process has written since the last call; for use in `read`."""
        (version,) = db.execute("PRAGMA data_version").fetchone()
        changed, self._version = bool(version != self._version), version
        return changed

    def sign(self, name: str) -> Path:
        """Where a process shows that it lives, under a name of its own."""
        return self.path.with_name(f"{self.path.name}-{name}{_SIGN}")

    def signs(self) -> Iterator[Path]:
        """Where all processes do."""
        return self.path.parent.glob(f"{glob.escape(self.path.name)}-*{_SIGN}")

    def be_patient(self) -> None:
        """Use the file at once, and wait for a lock as long as at the start: nothing else is going on any more."""
        self._drop()
        self._busy_s, self._retry_at = PATIENCE_S, None

    def insist(self) -> None:
        """Try once now, as patient as at the start: nothing else is going on. A lock that is still there is trouble."""
        self.be_patient()
        self._retry_at = self._clock()
        self.write(lambda db: True)
        self._be_quick()

    def _be_quick(self) -> None:
        self._busy_s = _BUSY_S
        if self._db:
            self._db.execute(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")

    def _drop(self) -> None:
        """Close the connection, whatever state it is in; an unfinished transaction is undone."""
        if self._db:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db, self._version = None, -1

    def _failed(self, error: Exception) -> None:
        self._drop()
        if self._retry_at is not None or not _locked(error):
            self.trouble = f"{self._name} {self.path} cannot be used: {error}"
            if not self._told:
                self._told = True
                self.on_trouble(f"{self.trouble}; what is counted meanwhile is kept, and written when it can be")
        self._retry_at = self._clock() + RETRY_S

    def _in_place(self) -> bool:
        """Whether other processes see what is written here; takes 2 µs."""
        try:
            return os.path.samestat(self._stat, self.path.stat())
        except OSError:
            return False

    def _connected(self) -> sqlite3.Connection:
        make_private(self.path.parent)
        self.path.touch(0o600)
        if not self.path.is_file() and not self.path.is_dir():
            raise WrongLayout("it is no file")  # a pipe would be waited for
        if self.path.is_file() and is_blank(self.path):
            os.truncate(self.path, 0)
        self._stat = self.path.stat()
        db = sqlite3.connect(self.path, self._busy_s, isolation_level=None)
        try:
            _write_ahead(db, self._busy_s)
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(self._schema)
            for table, columns in _columns_of(self._schema).items():
                if missing := columns - _columns(db, table):
                    raise WrongLayout(f"its table {table} lacks {', '.join(sorted(missing))}")
        except BaseException:
            db.close()
            raise
        return db

    def _check(self) -> None:
        """Raise for a file that is cut off or garbled further in; 10,000 rows take 2 ms."""
        assert self._db
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise WrongLayout(str(found).partition("\n")[2] or str(found))

    def _set_aside(self, damage: Exception) -> None:
        self._drop()
        aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(OSError):
                self.path.with_name(self.path.name + suffix).unlink()
        self.made_anew = (
            f"{self._name} {self.path} was damaged ({damage}): set aside as {aside.name}, and a new one is begun"
        )


def look_into(path: Path) -> sqlite3.Connection:
    """The file as it is, to be read and not changed. Raises `sqlite3.Error` where there is none."""
    # Without a log beside it nobody writes: then not even the lock file of a reader is made.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)


class WrongLayout(sqlite3.DatabaseError):
    """The file is a database, and not whole, or not the one that this version writes; `hint` mends just that."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def begin_life(path: Path) -> int:
    """Make a file that says that this process lives; returns its descriptor, whose end is the end.

    It is locked, and the kernel lets go of that when the process ends, however it ends. Raises OSError.
    """
    fd = machine.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        machine.lock(fd)
    except OSError:
        os.close(fd)
        with suppress(OSError):
            path.unlink()
        raise
    return fd


def is_live(path: Path) -> bool:
    """Whether the process that made this sign of life lives; without a sign it does not. Raises OSError."""
    try:
        fd = machine.open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return machine.is_locked(fd)
    finally:
        os.close(fd)


def is_blank(path: Path) -> bool:
    """Whether nothing can be in the file: a kill, a full disk or a power cut came before its first page.

    One with a log is in use, here too perhaps, and not looked into: see `machine.create`.
    """
    if path.stat().st_size > 2**20 or path.with_name(f"{path.name}-shm").exists():
        return False
    found = path.read_bytes()
    return not any(found) or (len(found) < _LEAST_BYTES and found.startswith(_BEGINNING[: len(found)]))


def is_damaged(error: Exception) -> bool:
    """Whether the file is no database of ours, rather than locked or out of reach."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, WrongLayout) or code in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
    )


@lru_cache(maxsize=8)
def _columns_of(schema: str) -> dict[str, set[str]]:
    """The columns of every table that this makes."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema)
        names = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'").fetchall()
        return {name: _columns(db, name) for (name,) in names}


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in db.execute(f"PRAGMA table_info({table})")}


def unusable(name: str, path: Path, error: Exception, hint: str) -> RunStateError:
    """What is raised before a run begins; `name` as in "The quota book", `hint` for a file that is damaged."""
    if _locked(error):
        hint = "another process keeps it locked: end that one, or run the same command again"
    elif not path.is_dir() and not is_damaged(error):
        hint = f"make room, or mend the permissions of {path.parent}; then run the same command again"
    elif isinstance(error, WrongLayout):
        hint = error.hint or hint
    return RunStateError(f"{name} {path} cannot be used: {error}", hint)


def _write_ahead(db: sqlite3.Connection, patience_s: float) -> None:
    """Switch to WAL; when two processes do that to a new file at once, SQLite fails one of them without waiting."""
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _locked(error) or time.monotonic() > give_up_at:
                raise
        time.sleep(0.01)


def _locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
