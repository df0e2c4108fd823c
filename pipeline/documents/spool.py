"""Texts of documents, kept by their content so that each is read out of its file once."""

import os
import sqlite3
import tempfile
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
CREATE TABLE IF NOT EXISTS seen (at BLOB PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS broken (at BLOB PRIMARY KEY, stamp TEXT NOT NULL, why TEXT NOT NULL);
"""
_PATIENCE_S = 60.0  # how long another process may keep the file locked: it writes a few texts at a time
_AT_ONCE = 500  # values of one query


class Spool:
    """A file of texts for the user's eyes only, which several processes may use; a text that is there never changes.

    Where it cannot be written it is a temporary file, gone with the process; a damaged one is made anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            self._db = self._usable()
        except (OSError, sqlite3.Error):
            self.path = Path(tempfile.gettempdir())
            self._db = sqlite3.connect("", check_same_thread=False)  # SQLite's own temporary file
            self._db.executescript(_SCHEMA)

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
        rows = self._in("SELECT key, title, pages, bare, scan, trouble, size FROM texts WHERE key IN", keys)
        return {
            key: (Read("", title, pages, bare, bool(scan), trouble), size)
            for key, title, pages, bare, scan, trouble, size in rows
        }

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts that are there under these keys."""
        return dict(self._in("SELECT key, text FROM texts WHERE key IN", keys))

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
        try:
            with self._lock, self._db:
                self._db.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", read)
                self._db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", files)
                self._db.executemany("INSERT OR REPLACE INTO broken VALUES (?, ?, ?)", others)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"the texts of the documents cannot be kept in {self.path}: {error}",
                "make room there: they take as much as they have bytes",
            ) from None

    def settle(self) -> None:
        """Give back what writing took beside the texts."""
        with self._lock, suppress(sqlite3.Error):  # somebody else reads: they do it
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _usable(self) -> sqlite3.Connection:
        make_private(self.path.parent)
        try:
            return self._opened()
        except sqlite3.OperationalError:  # locked for long, or no place for it
            raise
        except sqlite3.DatabaseError:
            for end in ("", "-wal", "-shm"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        os.close(machine.open_file(self.path, os.O_CREAT | os.O_RDWR))
        db = sqlite3.connect(self.path, timeout=_PATIENCE_S, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")  # what a power cut takes is read once more
            if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:  # what another version made is made anew
                db.executescript(
                    "DROP TABLE IF EXISTS texts; DROP TABLE IF EXISTS seen; DROP TABLE IF EXISTS broken;"
                    f"PRAGMA user_version = {VERSION}"
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
