"""Texts of documents, kept by their content so that each is read out of its file once, until nobody needs them."""

import errno
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline import machine
from pipeline.documents.reading import VERSION, Read
from pipeline.errors import InputError
from pipeline.process import make_private

_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (
    key TEXT PRIMARY KEY, title TEXT, pages INTEGER, bare INTEGER NOT NULL, scan INTEGER NOT NULL,
    trouble TEXT NOT NULL, size INTEGER NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS used (key TEXT PRIMARY KEY, day INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (at BLOB PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS broken (at BLOB PRIMARY KEY, stamp TEXT NOT NULL, why TEXT NOT NULL);
"""
_PATIENCE_S = 60.0  # how long another process may keep the file locked: it writes a few texts at a time
_FACTS = "title,pages,bare,scan,trouble,size"
_AT_ONCE = 500  # values of one query
KEPT_DAYS = 30
"""A text that no command has needed for longer is thrown away."""


class Spool:
    """A file of texts for the user's eyes only, which several processes may use; a text that is there never changes.

    Where it cannot be written it is a temporary file, gone with the process; a damaged one is made anew. A file beside
    it is locked by all that use it, so that nothing is thrown away under them; it is SQLite's too, whose locks every
    system has, and takes back from whoever is killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._users: sqlite3.Connection | None = None
        try:
            self._db = self._usable()
            self._users = self._joined()
        except (OSError, sqlite3.Error):
            self.path = Path(tempfile.gettempdir())
            self._db = sqlite3.connect("", check_same_thread=False)  # SQLite's own temporary file
            self._db.executescript(_SCHEMA)

    def __del__(self) -> None:
        """Let others throw away: a connection is part of a circle, and would stay until that is looked for."""
        with suppress(AttributeError):  # it was never whole
            for connection in (self._users, self._db):
                if connection:
                    connection.close()

    def digests(self, stamps: Mapping[str, str]) -> dict[str, str]:
        """The content of those files, path → stamp, that had this very stamp when they were read."""
        return self._of(stamps, "SELECT at, stamp, digest FROM seen WHERE at IN")

    def broken(self, stamps: Mapping[str, str]) -> dict[str, str]:
        """Why their reader came to nothing with those files that had this very stamp."""
        return self._of(stamps, "SELECT at, stamp, why FROM broken WHERE at IN")

    def _of(self, stamps: Mapping[str, str], query: str) -> dict[str, str]:
        rows = self._in(query, list(map(os.fsencode, stamps)))
        known = ((os.fsdecode(at), stamp, found) for at, stamp, found in rows)
        return {at: found for at, stamp, found in known if stamps[at] == stamp}

    def facts(self, keys: Sequence[str]) -> dict[str, tuple[Read, int]]:
        """What is there under these keys, without the text, and how many bytes that has."""
        rows = self._in(f"SELECT key, day, {_FACTS} FROM texts LEFT JOIN used USING (key) WHERE key IN", keys)
        self._need(rows)
        return {
            key: (Read("", title, pages, bare, bool(scan), trouble), size)
            for key, _, title, pages, bare, scan, trouble, size in rows
        }

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts that are there under these keys."""
        rows = self._in("SELECT key, day, text FROM texts LEFT JOIN used USING (key) WHERE key IN", keys)
        self._need(rows)
        return {key: text for key, _, text in rows}

    def add(
        self,
        texts: Mapping[str, Read],
        seen: Iterable[tuple[str, str, str]] = (),
        broken: Iterable[tuple[str, str, str]] = (),
    ) -> None:
        """Keep texts by key, and files with their stamps and contents, or with why they broke their reader.

        Raises `InputError` where there is no room.
        """
        read = [
            (key, one.title, one.pages, one.bare, one.scan, one.trouble, one.size_bytes, one.text)
            for key, one in texts.items()
        ]
        files, others = ([(os.fsencode(at), stamp, what) for at, stamp, what in each] for each in (seen, broken))
        if not (read or files or others):
            return
        try:
            with self._lock, self._db:
                self._db.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", read)
                self._db.executemany(_USED, [(key, _today()) for key in texts])
                self._db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", files)
                self._db.executemany("INSERT OR REPLACE INTO broken VALUES (?, ?, ?)", others)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"the texts of the documents cannot be kept in {self.path}: {error}",
                "make room there: they take as much as they have bytes",
            ) from None

    def _need(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Note that texts, rows of key and day, are needed today; where that fails they are read again one day."""
        today = _today()
        older = [(key, today) for key, day, *_ in rows if day is None or day < today]
        if older:
            with suppress(OSError, sqlite3.Error), self._lock, self._db:
                self._db.executemany(_USED, older)

    def sweep(self) -> None:
        """Throw away what nobody has needed for `KEPT_DAYS`, unless somebody else is at work here; all or nothing."""
        if self._users is None:
            return
        with self._lock, suppress(sqlite3.Error):
            try:
                self._users.execute("COMMIT")
                self._users.execute("PRAGMA busy_timeout = 0")
                self._users.execute("BEGIN EXCLUSIVE")  # nobody is, and whoever comes waits
                with self._db:
                    before = (_today() - KEPT_DAYS,)
                    if self._db.execute("DELETE FROM used WHERE day < ?", before).rowcount:
                        self._db.execute("DELETE FROM texts WHERE key NOT IN (SELECT key FROM used)")
                        digests = "SELECT substr(key, -length(digest)) FROM used"
                        self._db.execute(f"DELETE FROM seen WHERE digest NOT IN ({digests})")
                self._db.executescript("PRAGMA incremental_vacuum")  # a step of `execute` gives back one page
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._users.close()
                self._users = self._joined()

    def settle(self) -> None:
        """Give back what writing took beside the texts."""
        with self._lock, suppress(sqlite3.Error):  # somebody else reads: they do it
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _joined(self) -> sqlite3.Connection | None:
        """A connection that tells others that somebody is at work; None where that cannot be told."""
        with suppress(sqlite3.Error):
            users = sqlite3.connect(
                f"{self.path}-users", timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False
            )
            users.execute("BEGIN")
            users.execute("SELECT count(*) FROM sqlite_master").fetchone()  # which shares it until the end
            return users
        return None

    def _usable(self) -> sqlite3.Connection:
        make_private(self.path.parent)
        if not machine.can_lock_in(self.path.parent):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        try:
            return self._opened()
        except sqlite3.OperationalError:  # locked for long, or no place for it
            raise
        except sqlite3.DatabaseError:
            for end in ("", "-wal", "-shm"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        machine.create(self.path)
        db = sqlite3.connect(self.path, timeout=_PATIENCE_S, check_same_thread=False)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")  # what a power cut takes is read once more
            if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:  # what another version made is made anew
                db.executescript(
                    "DROP TABLE IF EXISTS texts; DROP TABLE IF EXISTS used; DROP TABLE IF EXISTS seen;"
                    f"DROP TABLE IF EXISTS broken; VACUUM; PRAGMA user_version = {VERSION}"
                )
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _in(self, query: str, values: Sequence[str | bytes]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        try:
            with self._lock:
                for start in range(0, len(values), _AT_ONCE):
                    some = values[start : start + _AT_ONCE]
                    found += self._db.execute(f"{query} ({', '.join('?' * len(some))})", some)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"the texts of the documents cannot be read from {self.path}: {error}",
                f"remove {self.path}: the same command then reads the documents once more",
            ) from None
        return found


_USED = "INSERT INTO used VALUES (?, ?) ON CONFLICT DO UPDATE SET day = excluded.day"


def _today() -> int:
    """The number of the day."""
    return int(time.time() // 86_400)
