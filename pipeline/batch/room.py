"""What one more batch finds at the service: tokens that wait in batches, batches, bytes of files. All runs share it.

A project may have so many tokens waiting in batches; how many is learned, where the job does not say: doubled after a
batch that was answered, halved when one was refused for it. Nothing here is needed to find a batch again.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from pipeline.batch.cutting import LEAST_LINES
from pipeline.sharedfile import SharedFile, look_into

MOST_BATCHES = 40
"""Of the 100 that a project may have at once: the others are for those who do not know of us."""
MOST_FILE_BYTES = 15_000_000_000
"""Of the 20 GB that a project's files may have."""
KEPT_S = 48 * 3600.0
"""So long the service keeps a file, and works on a batch; what is older counts nowhere."""
HOLDS_S = (300.0, 600.0, 1200.0)
"""After a refusal, the second, every further one in a row: waits of 15 to 20 minutes helped (googleapis/python-genai
#1901, googleapis/js-genai#1264)."""
MOST_TOKENS = 1_000_000_000
"""What the highest tier may have (page of 2026-09-12)."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS open (
    name TEXT PRIMARY KEY, run TEXT NOT NULL, account TEXT NOT NULL, quota TEXT NOT NULL, tokens INTEGER NOT NULL,
    at REAL NOT NULL, freed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY, run TEXT NOT NULL, account TEXT NOT NULL, bytes INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS enqueued (
    quota TEXT PRIMARY KEY, tokens INTEGER NOT NULL, refusals INTEGER NOT NULL, opens_at REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Open:
    """A batch that is handed in, or is about to be; `freed`: it was cancelled, and may be counted all the same."""

    name: str
    account: str
    quota: str
    tokens: int
    at: float  # epoch seconds
    freed: bool = False


@dataclass(slots=True)
class Enqueued:
    """What is known of the tokens that one quota may have waiting."""

    tokens: int
    refusals: int = 0  # in a row
    opens_at: float = 0.0  # epoch seconds; nothing is handed in before


def tokens_known(path: Path, quota: str) -> int | None:
    """What earlier runs learned of the tokens that may wait in batches of a quota; None: nothing. Changes nothing."""
    try:
        with closing(look_into(path)) as db:
            found = db.execute("SELECT tokens FROM enqueued WHERE quota = ?", (quota,)).fetchone()
    except (OSError, sqlite3.Error):
        return None
    return found and int(found[0])


class Room:
    """What this run has at the service, and by a file what others have. Without a file, or a lame one, it is alone."""

    def __init__(self, run: str, path: Path | None = None, *, wall: Callable[[], float] = time.time) -> None:
        """`run` names this run; `wall` is epoch seconds. Raises `RunStateError`."""
        self._run, self._wall = run, wall
        self._open: dict[str, Open] = {}
        self._files: dict[str, tuple[str, int, float]] = {}  # name → account, bytes, since when
        self._enqueued: dict[str, Enqueued] = {}
        hint = f"If no other run is going on, remove {path} and run again: what may wait in batches is learned anew."
        self._file = path and SharedFile(path, _SCHEMA, name="The book of batches", hint=hint, disposable=True)

    def close(self) -> None:
        """What is handed in stays in the file: it is at the service, whoever goes on with it."""
        if self._file:
            self._file.close()

    @property
    def made_anew(self) -> str:
        """Why the file was made anew, where it was damaged."""
        return self._file.made_anew if self._file else ""

    # --- what may go -------------------------------------------------------------------------------------------------

    def tokens_of(self, quota: str, first: int) -> int:
        """Tokens that may wait in batches of a quota; `first` while nothing is known."""
        return self._known(quota, first).tokens

    def wait_s(self, name: str, account: str, quota: str, tokens: int, allowed: int) -> float:
        """How long a batch has to wait for the others: 0 not at all, `inf` until one of them has ended.

        One always goes where no other waits: what is too much is for the service to say.
        """
        held = self._known(quota, allowed).opens_at - self._wall()
        if 0 < held <= HOLDS_S[-1]:  # more: the clock was set back since
            return held
        others = [each for each in self._all(account) if each.name != name]
        if sum(not each.freed for each in others) >= MOST_BATCHES:
            return inf
        waiting = [each for each in others if each.quota == quota]
        if all(each.freed for each in waiting) or sum(each.tokens for each in waiting) + tokens <= allowed:
            return 0.0
        return inf

    def is_too_large(self, name: str, account: str, quota: str) -> bool:
        """Whether a batch was refused for its tokens alone: again and again, with no other one there."""
        known = self._enqueued.get(quota)
        others = (each for each in self._all(account) if each.quota == quota and each.name != name)
        return known is not None and known.refusals >= len(HOLDS_S) and all(each.freed for each in others)

    def has_space(self, account: str, size_bytes: int) -> bool:
        """Whether a file has room beside the others; one that is alone always has."""
        ours = [(bytes_, at) for owner, bytes_, at in self._files.values() if owner == account]
        theirs = self._rows("SELECT bytes, at FROM files WHERE account = ? AND run <> ?", account, self._run)
        used = sum(bytes_ for bytes_, at in (*ours, *theirs) if self._is_recent(at))
        return not used or used + size_bytes <= MOST_FILE_BYTES

    # --- what happened -----------------------------------------------------------------------------------------------

    def enter(self, name: str, account: str, quota: str, tokens: int, at: float | None = None) -> None:
        """Count a batch, before it is handed in; at a later start once more."""
        made = self._open[name] = Open(name, account, quota, tokens, self._wall() if at is None else at)
        row = (name, self._run, account, quota, tokens, made.at)
        self._write("INSERT OR REPLACE INTO open VALUES (?, ?, ?, ?, ?, ?, 0)", *row)

    def leave(self, name: str, *, freed: bool = True) -> None:
        """It has ended; not `freed` where it was cancelled: its tokens were still counted two days later.

        (googleapis/python-genai#2495.) They are taken to be free once another one is let in.
        """
        there = self._open.pop(name, None)
        if there and not freed:
            self._open[name] = Open(name, there.account, there.quota, there.tokens, there.at, freed=True)
            self._write("UPDATE open SET freed = 1 WHERE name = ?", name)
        else:
            self._write("DELETE FROM open WHERE name = ?", name)

    def let_in(self, quota: str) -> None:
        """A batch is worked on: nothing stands in the way now."""
        known = self._enqueued.get(quota)
        if known and known.refusals:
            known.refusals, known.opens_at = 0, 0.0
            self._keep(quota, known)
        for each in [each for each in self._open.values() if each.quota == quota and each.freed]:
            self.leave(each.name)
        self._write("DELETE FROM open WHERE quota = ? AND freed = 1", quota)

    def refused(self, quota: str, first: int, tokens: int, lines: int) -> float:
        """One of so many tokens and lines was refused for what waits already; returns when to ask again, in seconds."""
        known = self._known(quota, first)
        hold_s = HOLDS_S[min(known.refusals, len(HOLDS_S) - 1)]
        least = min(known.tokens, 4 * LEAST_LINES * tokens // max(1, lines))
        known.tokens = max(known.tokens // 2, least, 1)
        known.refusals, known.opens_at = known.refusals + 1, self._wall() + hold_s
        self._keep(quota, known)
        return hold_s

    def answered(self, quota: str, first: int) -> None:
        """A batch was answered: twice as much may wait, as far as is known."""
        known = self._known(quota, first)
        known.tokens = min(MOST_TOKENS, 2 * known.tokens)
        self._keep(quota, known)

    def stored(self, name: str, account: str, size_bytes: int, at: float | None = None) -> None:
        """A file is at the service, until it is `deleted` or ends by itself."""
        self._files[name] = account, size_bytes, self._wall() if at is None else at
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", name, self._run, *self._files[name])

    def deleted(self, name: str) -> None:
        """A file is there no more."""
        self._files.pop(name, None)
        self._write("DELETE FROM files WHERE name = ?", name)

    # --- the file ----------------------------------------------------------------------------------------------------

    def _known(self, quota: str, first: int) -> Enqueued:
        found = self._rows("SELECT tokens, refusals, opens_at FROM enqueued WHERE quota = ?", quota)
        if found:
            self._enqueued[quota] = Enqueued(*found[0])
        return self._enqueued.setdefault(quota, Enqueued(first))

    def _keep(self, quota: str, known: Enqueued) -> None:
        row = (quota, known.tokens, known.refusals, known.opens_at)
        self._write("INSERT OR REPLACE INTO enqueued VALUES (?, ?, ?, ?)", *row)

    def _all(self, account: str) -> list[Open]:
        """The batches of a project, ours and those of others."""
        ours = [each for each in self._open.values() if each.account == account]
        query = "SELECT name, account, quota, tokens, at, freed FROM open WHERE account = ? AND run <> ?"
        theirs = [Open(*row) for row in self._rows(query, account, self._run)]
        return [each for each in (*ours, *theirs) if self._is_recent(each.at)]

    def _is_recent(self, at: float) -> bool:
        """Whether what began then may still be there; the clock may have been set back since."""
        return abs(self._wall() - at) < KEPT_S

    def _rows(self, query: str, *values: object) -> list[Any]:
        def rows(db: sqlite3.Connection) -> list[Any]:
            return db.execute(query, values).fetchall()

        return (self._file.read(rows) if self._file else None) or []

    def _write(self, statement: str, *values: object) -> None:
        def written(db: sqlite3.Connection) -> bool:
            db.execute(statement, values)
            return True

        if self._file:
            self._file.write(written)
