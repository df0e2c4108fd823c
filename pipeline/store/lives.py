"""What lies in object storage of a shard, and how its newest state is brought to a disk.

    input.parquet                        the shard's rows; not looked at here
    life-000003-000002/                  what one life wrote: life 2 of session 3. No other ever writes there
        claim                            who writes; create-only, so that two never write the same
        manifest.json, parts.jsonl, calls/part-000006.parquet, results/part-000006.parquet, …
        journal-000007/000012-1b2c3d4e.jsonl   pieces, in order: together the journal; each named by its own checksum
        run.log/000003-5f6a7b8c.jsonl    pieces of the log
        began                            put last of the first push: from now on the shard stands on this life
    done-000003-000002/                  the form of a shard that is whole
        calls/…, results/…               one of each, once they are compacted
        rest.tar                         the other files of the run directory
        done.json                        put last

The newest life that began stands, and what an older one still writes counts for nothing. Whoever takes a life away
takes away first what says that it began: who reads it then knows that something may be missing.
"""

import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.objects import Entry, Objects, on_disk
from pipeline.process import make_private
from pipeline.store import seals
from pipeline.store.journal import journal_number, journal_paths
from pipeline.store.units import INPUT

BEGAN, CLAIM, DONE, REST, BROUGHT = "began", "claim", "done.json", "rest.tar", "brought"
LOG, MANIFEST = "run.log", "manifest.json"
KINDS = ("calls", "results")
_SUMS = b"sums\n"  # of what was brought
_RESTORE = "restore it if the store keeps versions of it"
_FETCHES = 8  # at once
_TRIES = 5
_PREFIX = re.compile(r"(life|done)-(\d{6,})-(\d{6,})/(.*)")
_PIECE = re.compile(r"(journal-\d{6,}|run\.log)/(\d{6,})(?:-([0-9a-f]{8}))?\.jsonl")
_ANSWERS = re.compile(r"/(calls|results)/part-[^/]*\.parquet$|/journal-\d+/(?!0*1\b)\d+[^/]*$")
"""The first piece of a journal may be put before its life begins: then it holds no answer."""
_PART = re.compile(r"(calls|results)/part-(?:\d{6,}-)?(\d{6,})\.parquet")


class LifeId(NamedTuple):
    """Which life of a shard it is: later ones are greater. The session is that of the lease."""

    session: int
    number: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"life-{self.session:06d}-{self.number:06d}"


class Stood(NamedTuple):
    """What a shard stands on: the newest life that began, or that left it whole."""

    life: LifeId
    is_done: bool

    @property
    def name(self) -> str:
        """Of the folder of its objects."""
        return self.life.name.replace("life", "done") if self.is_done else self.life.name

    @property
    def mark(self) -> str:
        """The object that says so: put last, and deleted first."""
        return f"{self.name}/{DONE if self.is_done else BEGAN}"


def standing(names: Iterable[str]) -> Stood | None:
    """What a shard stands on, by the names of all objects below it; None: it was not begun."""
    return max((stood for name in names if (stood := stood_of(name)) and stood.mark == name), default=None)


def unmarked(names: Iterable[str]) -> Stood | None:
    """What has answers though nothing stands, by the names of all objects below a shard: no crash does that."""
    names = list(names)
    if standing(names) is not None:
        return None
    return max((stood for name in names if (stood := stood_of(name)) and _ANSWERS.search(name)), default=None)


def stood_of(name: str) -> Stood | None:
    """Whose an object is; None: nobody's, as the shard's rows."""
    match = _PREFIX.fullmatch(name)
    return Stood(LifeId(int(match[2]), int(match[3])), match[1] == "done") if match else None


def piece_name(name: str, number: int, content: bytes) -> str:
    """Of a piece of the file `name`, which grows by appending; they are counted from 1.

    The checksum tells one that was cut off later from one that ends where its life was killed.
    """
    return f"{name}/{number:06d}-{crc32(content):08x}.jsonl"


def last_part(name: str) -> int:
    """Number of the last part in a file of parts."""
    return int(name.removesuffix(".parquet").rpartition("-")[2])


class _Changed(Exception):
    """What was being read was replaced meanwhile, or is gone; of one object it says which."""


def bring(shard: Objects, directory: Path, *, sums: bool = False) -> Stood | None:
    """Have the newest state of a shard in a directory; None: it was not begun, and nothing is there.

    Of a shard that is whole `sums` leaves out calls and results. What was brought before and is the same is left.
    Raises `RunStateError`, also for a directory that holds a run which was not brought there.
    """
    missing = ""
    for _ in range(_TRIES):
        sizes = {entry.name: entry.size for entry in shard.entries()}
        stood, lost = standing(sizes), unmarked(sizes)
        try:
            if lost:  # or what stands changed between two pages of the list
                raise _Changed
            if stood is None:
                _empty(directory)
            else:
                _fetch(shard, stood, directory, sums and stood.is_done, sizes)
            return stood
        except _Changed as changed:
            missing = str(changed)
    if lost:
        raise RunStateError(
            f"{shard.url}/{lost.mark} is missing: answers that were paid for lie beside it\nNothing was changed.",
            "restore it, or begin anew with `--fresh`, which keeps the answers beside",
        )
    if missing:
        raise RunStateError(
            f"{missing} is missing, and what tells of it is there\nNothing was changed.",
            "restore it, or begin anew with `--fresh`, which keeps the answers beside",
        )
    raise RunStateError(
        f"{shard.url} changed whenever it was read: a worker writes there",
        "wait until it has ended, then run the same command again",
    )


def is_brought(directory: Path, sizes: Mapping[str, int], *, sums: bool = False) -> bool:
    """Whether a directory is known to have all that `bring` would: a shard that is whole stays as it is.

    `sizes` are those of all objects below the shard, in bytes.
    """
    stood = standing(sizes)
    if stood is None:
        return not (directory / MANIFEST).exists() and unmarked(sizes) is None
    known = read(directory / BROUGHT) or b""
    is_there = known.startswith(f"{stood.name} ".encode()) and _is_there(directory)
    has_parts = sums or (not known.endswith(_SUMS) and _has_parts(directory, stood, sizes))
    return stood.is_done and is_there and has_parts


def _is_there(directory: Path) -> bool:
    """Whether all but the parts of a shard that is whole was brought: without its manifest none would be read."""
    return (directory / DONE).exists() and (directory / MANIFEST).exists()


def _has_parts(directory: Path, stood: Stood, sizes: Mapping[str, int]) -> bool:
    """Whether each part is as long here as there: a copy that was cut off is no loss."""
    there = {name.removeprefix(f"{stood.name}/"): size for name, size in sizes.items() if stood_of(name) == stood}
    return all(_has(directory / name, size) for name, size in there.items() if _PART.fullmatch(name))


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def has_sums_alone(directory: Path) -> bool:
    """Whether calls and results of what was brought there were left out."""
    return (read(directory / BROUGHT) or b"").endswith(_SUMS)


def _fetch(shard: Objects, stood: Stood, directory: Path, sums: bool, sizes: Mapping[str, int]) -> None:
    """Bring what stands there. Raises `_Changed`."""
    mark = shard.get_tagged(stood.mark)
    if mark is None:
        raise _Changed
    which = f"{stood.name} {mark[1]}\n".encode()
    known = read(directory / BROUGHT)
    if known not in (which, which + _SUMS):
        _empty(directory)
    elif stood.is_done and _is_there(directory):
        if sums or (known == which and _has_parts(directory, stood, sizes)):
            return
        with on_disk(directory):
            (directory / DONE).unlink()  # until it is whole
    for name in ("", *KINDS):
        with on_disk(directory / name):
            make_private(directory / name)
    write(directory / BROUGHT, which + _SUMS if sums else which)
    objects = shard.below(stood.name)
    told = objects.get(seals.NAME)  # before all that it tells of
    entries = objects.entries()
    if shard.get(stood.mark) != mark[0]:
        raise _Changed
    if stood.is_done:
        left_out = (DONE, REST, *((f"{kind}/" for kind in KINDS) if sums else ()))
        _fetch_files(objects, [entry for entry in entries if not entry.name.startswith(left_out)], directory)
        _unpack(objects, directory)
        write(directory / DONE, mark[0])
    else:
        _fetch_life(objects, entries, directory)
        if told is not None:
            write(directory / seals.NAME, told)


def _unpack(objects: Objects, directory: Path) -> None:
    hidden = directory / f".{REST}.tmp"
    if not objects.fetch(REST, hidden):
        raise _Changed(f"{objects.url}/{REST}")
    try:
        with on_disk(directory), tarfile.open(hidden) as rest:
            rest.extractall(directory, filter="data")
    except tarfile.TarError:
        raise RunStateError(
            f"{objects.url}/{REST} is damaged", "restore it if the store keeps versions of it"
        ) from None
    hidden.unlink()


def _fetch_life(objects: Objects, entries: Sequence[Entry], directory: Path) -> None:
    there = {entry.name for entry in entries}
    results = {name for name in there if (match := _PART.fullmatch(name)) and match[1] == "results"}
    parts = results | {name.replace("results", "calls", 1) for name in results}
    if lacking := sorted(({MANIFEST} | parts) - there):
        raise _Changed(f"{objects.url}/{lacking[0]}")
    newest = max(map(last_part, results), default=0)
    pieces: dict[str, dict[int, str]] = {}
    whole = []
    for entry in entries:
        if match := _PIECE.fullmatch(entry.name):
            if match[1] == LOG or journal_number(Path(match[1])) > newest:
                pieces.setdefault(match[1], {})[int(match[2])] = entry.name
        elif entry.name in parts or not (_PART.fullmatch(entry.name) or entry.name in (CLAIM, BEGAN, seals.NAME)):
            whole.append(entry)
    _fetch_files(objects, whole, directory)
    for path in journal_paths(directory):  # brought before, and sealed since
        if path.stem not in pieces:
            path.unlink()
    for name, numbered in pieces.items():
        _join(objects, numbered, directory / (name if name == LOG else f"{name}.jsonl"))


def _fetch_files(objects: Objects, entries: Sequence[Entry], directory: Path) -> None:
    """Several at once; a part that is there is of the same life, and never changes."""

    def fetch(entry: Entry) -> bool:
        path = directory / entry.name
        if not _PART.fullmatch(entry.name):
            return objects.fetch(entry.name, path)
        if _has(path, entry.size):
            return True
        is_there = objects.fetch(entry.name, path)
        if is_there and not _has(path, entry.size):
            raise _Changed  # or it came cut off
        return is_there

    with ThreadPoolExecutor(_FETCHES) as pool:
        for entry, is_there in zip(entries, pool.map(fetch, entries), strict=True):
            if not is_there:
                raise _Changed(f"{objects.url}/{entry.name}")


def _join(objects: Objects, numbered: dict[int, str], path: Path) -> None:
    """Make one file of the pieces of a journal or a log. Raises `RunStateError` where one is missing."""
    if lacking := [number for number in range(1, max(numbered)) if number not in numbered]:
        missing = f"{path.stem}/{lacking[0]:06d}"
        raise RunStateError(
            f"{objects.url}/{missing} is missing: replies that were paid for may stand in it",
            _RESTORE,
        )
    names = [numbered[number] for number in sorted(numbered)]
    with ThreadPoolExecutor(_FETCHES) as pool:
        pieces = list(pool.map(objects.get, names))
    for name, piece in zip(names, pieces, strict=True):
        if piece is None:
            raise _Changed(f"{objects.url}/{name}")
        match = _PIECE.fullmatch(name)
        if match and match[3] and int(match[3], 16) != crc32(piece):
            raise RunStateError(
                f"{objects.url}/{name} was changed: replies that were paid for may stand in it", _RESTORE
            )
    write(path, b"".join(piece for piece in pieces if piece))


def _empty(directory: Path) -> None:
    """Have nothing there that could be taken for the shard's state; a copy of its rows stays."""
    if (directory / MANIFEST).exists() and not (directory / BROUGHT).exists():
        raise RunStateError(
            f"{directory} holds a run that was not brought there\nNothing was changed.", "move the directory away"
        )
    with on_disk(directory):
        for path in list(directory.iterdir()) if directory.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (INPUT, BROUGHT):
                path.unlink()
        (directory / BROUGHT).unlink(missing_ok=True)  # last: it says that all of this may go


def read(path: Path) -> bytes | None:
    """The bytes of a file; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: Path, content: bytes) -> None:
    """Have a file there, whole or not at all, for the user's eyes only."""
    hidden = path.with_name(f".{path.name}.tmp")
    with on_disk(path):
        hidden.touch(0o600)
        hidden.write_bytes(content)
        machine.replace(hidden, path)
