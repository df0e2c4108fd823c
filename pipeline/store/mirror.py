"""A shard's run directory, carried to object storage as it grows, and taken up again by whoever goes on with it.

What lies there, `store.lives` says. It is put in an order in which a run directory could have grown: whatever a file
tells of is put before that file. So each prefix of the puts is a state that `RunStore.open` recovers from, as after a
kill.

A killed process loses what was in flight. A lost machine loses also what came since the last push began: one begins
`PUSH_S` after the one before has ended. While the store is away that grows, to `AWAY_S` at most.
"""

import os
import re
import shutil
import socket
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock as Turn
from typing import BinaryIO, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
import orjson

from pipeline.errors import RESUMABLE, RunStateError
from pipeline.events import Event, StoreTrouble
from pipeline.objects import Away, Objects, on_disk
from pipeline.process import make_private
from pipeline.store import seals
from pipeline.store.journal import SYNCED, journal_number, journal_paths
from pipeline.store.lives import (
    BEGAN,
    BROUGHT,
    CLAIM,
    DONE,
    KINDS,
    LOG,
    MANIFEST,
    REST,
    LifeId,
    Stood,
    bring,
    last_part,
    piece_name,
    read,
    standing,
    stood_of,
    write,
)
from pipeline.store.manifest import Lock
from pipeline.store.parts import files
from pipeline.store.units import INPUT

PUSH_S = 5.0
"""Between two pushes: 17,280 puts a day and worker, $0.09 at $5 a million."""
LOG_S = 60.0
"""Between two puts of the log, in which nothing stands that was bought."""
AWAY_S = 120.0
"""How long a run goes on while its store takes nothing: so much is bought twice if the machine is lost as well."""
PIECE_BYTES = 8 * 2**20
_T = TypeVar("_T")
_TRIES = 5
_END_BYTES = 64
_LOCAL = re.compile(rf"\..*|lock|reserve|content\.sqlite.*|{SYNCED}|{INPUT}|{BEGAN}|{BROUGHT}")
"""Files of a run directory that only its process needs, or that lie elsewhere."""
_GROWS_OTHERWISE = re.compile(rf"journal-.*|{re.escape(MANIFEST)}|{re.escape(seals.NAME)}|{re.escape(LOG)}")


def new_claim() -> bytes:
    """What a life is claimed with: nobody else has the same."""
    return orjson.dumps({"host": socket.gethostname(), "process": os.getpid(), "id": uuid4().hex})


def restore(shard: Objects, scratch: Path, life: LifeId, claim: bytes | None = None) -> "Mirror":
    """Claim a life of a shard, and have its newest state in a directory below `scratch`, to go on with.

    `scratch` is the shard's own on this machine. What an earlier life left there is taken over if the shard stands on
    that life, so that a killed process loses nothing that was not put yet; else it is removed, unless a process holds
    it. What ended as `Away` is tried again with the same `claim`. Raises `RunStateError` where another has claimed this
    life, or a later one began.
    """
    own = shard.below(life.name)
    claim = claim or new_claim()
    directory = scratch / life.name
    stood = standing(entry.name for entry in shard.entries())
    if (stood and stood.life >= life) or not own.create(CLAIM, claim):
        raise _taken(own)
    with on_disk(scratch):
        make_private(scratch)
    left = _left(scratch, shard.get(stood.mark) if stood and not stood.is_done else None)
    if left and stood:
        with on_disk(directory):
            left.rename(directory)
    else:
        stood = bring(shard, directory)
        if stood and stood.life >= life:
            raise _taken(own)
        with on_disk(directory):
            make_private(directory)
            (directory / BROUGHT).unlink(missing_ok=True)  # it goes its own way now
    write(directory / BEGAN, (read(directory / BEGAN) or b"") + claim + b"\n")  # before: its answer may be lost
    return Mirror(shard, life, directory, claim, stood)


def _taken(own: Objects) -> RunStateError:
    return RunStateError(
        f"{own.url} is another worker's, or a later life of the shard has begun", "run the same command again"
    )


def _left(scratch: Path, began: bytes | None) -> Path | None:
    """What a life that `began` with these bytes left on this machine; all else that nobody holds is removed."""
    found = None
    for directory in sorted(scratch.glob("life-*")):
        if Lock.held(directory / "lock"):
            continue
        if began in (read(directory / BEGAN) or b"").splitlines():
            found = directory
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return found


@dataclass
class _Put:
    """How far a file that grows was put."""

    at: int = 0  # bytes
    pieces: list[str] = field(default_factory=list)  # their names
    end: bytes = b""  # of what was put, to know it again
    pending: int = 0  # bytes of a piece whose put failed: it may be there all the same, so it must stay what it was


class Mirror:
    """The run directory of one life, and its objects. Everything blocks: run it in a thread."""

    def __init__(self, shard: Objects, life: LifeId, directory: Path, claim: bytes, origin: Stood | None) -> None:
        """`claim` is what the life was claimed with, and `origin` what the directory was brought from."""
        self.directory = directory
        self.life = life
        self.url = shard.url
        self._shard, self._own, self._claim, self._origin = shard, shard.below(life.name), claim, origin
        self._there = _digests(self._origin_noted())
        self._turn = Turn()
        self._wholes: dict[str, object] = {}  # what was put of files that are replaced
        self._growing: dict[str, _Put] = {}
        self._parts: set[str] = set()
        self._logged_at = float("-inf")
        self._has_begun = self._is_alone = False

    def _origin_noted(self) -> bytes:
        """The notes on the parts that its origin has."""
        if self._origin is None:
            return b""
        if self._origin.is_done:
            return read(self.directory / seals.NAME) or b""
        return self._shard.get(f"{self._origin.name}/{seals.NAME}") or b""

    def push(self, last: bool = False) -> None:
        """Put what is new; a store may write there meanwhile. The first time the life begins, and the earlier ones go.

        Without `last` the log is put once in `LOG_S`. What fails is put by the next push. Raises `Away` and
        `RunStateError`.
        """
        with self._turn:
            for _ in range(_TRIES):  # after so many seals one after another the next push will do
                with suppress(FileNotFoundError):
                    if self._push(last):
                        return

    def _push(self, last: bool) -> bool:
        """Whether that was done: not while a seal went on. Raises FileNotFoundError where one removed a journal."""
        notes = self.directory / seals.NAME
        noted, manifest = read(notes), read(self.directory / MANIFEST)
        sealed = [path.name for path in files(self.directory / "results")]
        spent = max(map(last_part, sealed), default=0)
        journals = [path for path in journal_paths(self.directory) if journal_number(path) > spent]
        if noted != read(notes):  # a seal writes there before its first part, and before its journal goes
            return False
        if manifest is not None:
            self._put_whole(MANIFEST, manifest, manifest)
        for path in journals:
            self._put_grown(path, path.stem)
        for name in (f"{kind}/{name}" for name in sealed for kind in KINDS):
            if name not in self._parts:
                self._put_part(name)
        if noted is not None:
            self._put_whole(seals.NAME, noted, noted)
        for path in files_of(self.directory):
            if not _GROWS_OTHERWISE.fullmatch(path.name):
                state = path.stat()
                self._put_whole(path.name, (state.st_mtime_ns, state.st_size), path)
        self._put_log(last)
        self._begin()
        for name in [name for name in self._growing if name != LOG and journal_number(Path(name)) <= spent]:
            self._own.delete(self._growing.pop(name).pieces)
        return True

    def _begin(self) -> None:
        if not self._has_begun:
            self._own.put(BEGAN, self._claim)
            self._has_begun = True
        if not self._is_alone:
            self._take_away(lambda stood: stood.life < self.life)
            self._is_alone = True

    def _put_whole(self, name: str, state: object, content: bytes | Path) -> None:
        if self._wholes.get(name) != state:
            self._own.put(name, content)
            self._wholes[name] = state

    def _put_part(self, name: str) -> None:
        """Put a part, or have the store copy it where the origin has the same."""
        there = self._there.get(name)
        is_same = there is not None and there == _digests(read(self.directory / seals.NAME) or b"").get(name)
        if not (is_same and self._origin and self._shard.below(self._origin.name).copy(name, self._own, name)):
            self._own.put(name, self.directory / name)
        self._parts.add(name)

    def _put_log(self, last: bool) -> None:
        path = self.directory / LOG
        if path.exists() and (last or time.monotonic() >= self._logged_at + LOG_S):
            self._put_grown(path, LOG)
            self._logged_at = time.monotonic()

    def _put_grown(self, path: Path, name: str) -> None:
        """Put what was appended, up to its last whole line: what stands after that may be taken back."""
        put = self._growing.setdefault(name, _Put())
        with path.open("rb") as file:
            file.seek(put.at - len(put.end))
            if file.read(len(put.end)) != put.end:
                raise RunStateError(
                    f"{path} is not what it was when it was put into {self._own.url}",
                    "check the disk, then run the same command again",
                )
            stop = _last_line_end(file, put.at)
            while put.at < stop:
                put.pending = put.pending or min(PIECE_BYTES, stop - put.at)
                file.seek(put.at)
                piece = file.read(put.pending)
                named = piece_name(name, len(put.pieces) + 1, piece)
                self._own.put(named, piece)
                put.pieces.append(named)
                put.at, put.end, put.pending = put.at + len(piece), piece[-_END_BYTES:], 0

    def finish(self) -> None:
        """Put the form of a shard that is whole, of its closed directory; no life of the shard is left then.

        The directory may have been compacted; nothing may be pushed any more then. Raises `Away` and `RunStateError`:
        the shard stands on this life then, as before.
        """
        whole = Stood(self.life, True)
        objects = self._shard.below(whole.name)
        others = files_of(self.directory)
        tables = [path for path in others if path.suffix == ".parquet"]
        with self._turn:
            for path in (*(path for kind in KINDS for path in files(self.directory / kind)), *tables):
                objects.put(path.relative_to(self.directory).as_posix(), path)
            hidden = self.directory / f".{REST}.tmp"
            with on_disk(hidden):
                hidden.touch(0o600)
                with tarfile.open(hidden, "w") as rest:
                    for path in others:
                        if path not in tables and path.name != DONE:
                            rest.add(path, path.name)
            objects.put(REST, hidden)
            hidden.unlink()
            objects.put(DONE, (self.directory / DONE).read_bytes())
            self._take_away(lambda stood: stood.life <= self.life and stood != whole)

    def _take_away(self, is_old: Callable[[Stood], bool]) -> None:
        """Delete the objects of these lives; first what says that they began."""
        old = {
            entry.name: stood for entry in self._shard.entries() if (stood := stood_of(entry.name)) and is_old(stood)
        }
        self._shard.delete([name for name, stood in old.items() if stood.mark == name])
        self._shard.delete([name for name, stood in old.items() if stood.mark != name])


async def keep(mirror: Mirror, heard: Callable[[Event], None]) -> None:
    """Push, `PUSH_S` after each push, until cancelled. That the store is away is told once, and that it is back.

    Raises `RunStateError` where it refuses, or took nothing for `AWAY_S`: with the exit code of what can be continued.
    """
    taken_at = anyio.current_time()
    is_away = False
    while True:
        await anyio.sleep(PUSH_S)
        began_at = anyio.current_time()
        try:
            await anyio.to_thread.run_sync(mirror.push)
        except Away as error:
            away_s = anyio.current_time() - taken_at
            if away_s >= AWAY_S:
                error.exit_code = RESUMABLE
                error.message += f"\nIt took nothing for {away_s:.0f} s: no more is bought that it cannot keep."
                raise
            if not is_away:
                heard(_trouble(error))
            is_away = True
        else:
            if is_away:
                heard(_BACK)
            taken_at, is_away = began_at, False


async def patiently(
    ask: Callable[[], _T], heard: Callable[[Event], None], waits: Callable[[], bool] = lambda: True
) -> _T:
    """What `ask` comes to, asked again while the store is away: for `AWAY_S`, and as long as it `waits`.

    As with `keep` that is told once, and that it is back. Raises what it raises.
    """
    since = anyio.current_time()
    is_away = False
    while True:
        try:
            found = await anyio.to_thread.run_sync(ask)
        except Away as error:
            error.exit_code = RESUMABLE
            if anyio.current_time() >= since + AWAY_S or not waits():
                raise
            if not is_away:
                heard(_trouble(error))
            is_away = True
        else:
            if is_away:
                heard(_BACK)
            return found
        await anyio.sleep(PUSH_S)


def _trouble(error: Away) -> StoreTrouble:
    return StoreTrouble(f"{error.message}; the run goes on without it for {AWAY_S:.0f} s at most", is_away=True)


_BACK = StoreTrouble("the object storage is there again", is_away=False)


def files_of(directory: Path) -> list[Path]:
    """The files that lie in a run directory itself, and belong to the run."""
    return sorted(path for path in directory.iterdir() if path.is_file() and not _LOCAL.fullmatch(path.name))


def _digests(noted: bytes) -> dict[str, str]:
    """The checksums of sealed parts, by the content of `parts.jsonl`."""
    lines = (orjson.loads(line) for line in noted.splitlines(keepends=True) if line.endswith(b"\n"))
    return {line["part"]: line["digest"] for line in lines if "part" in line}


def _last_line_end(file: BinaryIO, start: int) -> int:
    """Where the last whole line of a file ends; `start` where none does after that."""
    stop = file.seek(0, os.SEEK_END)
    while stop > start:
        at = max(start, stop - 2**16)
        file.seek(at)
        found = file.read(stop - at).rfind(b"\n")
        if found >= 0:
            return at + found + 1
        stop = at
    return start
