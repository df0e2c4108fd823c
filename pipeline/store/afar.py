"""A run whose directory lies on object storage: where that is, and its working copy on this machine.

    lead.json                     who leads it: see `store.lease`
    newest.json                   which generation is the newest; without it none was begun
    000001/                       a generation: `--fresh` begins the next
    000001/manifest.json, …       files of the whole run, put by whoever leads it as they change
    000001/shards/00017/          a shard: see `store.lives`

Here `afar.json` in a run directory says of which generation it is the working copy. What is in it may be behind:
`bring` has it as the storage is at this moment.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

import orjson

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.objects import Objects, is_missing, opened
from pipeline.places import SUFFIXES, Kind, copies_folder
from pipeline.process import make_private
from pipeline.store import digests, lives, notes, units
from pipeline.store.lease import newest_session
from pipeline.store.manifest import Lock
from pipeline.store.units import Shard

NAME = "afar.json"
NEWEST = "newest.json"
LOG = "run.log"
STATUS = "status.json"
OWN = ("manifest.json", units.NAME, LOG, STATUS, notes.NAME, digests.NAME, "documents.parquet")
"""Files of the whole run."""
SILENT_S = 90.0
"""Without a word for so long a process elsewhere counts as gone: it tells every 30 s, which is put within 10."""
_DIGITS = 6
_PLACED = re.compile(rf"(\d{{{_DIGITS}}})/{re.escape(units.NAME)}")
_AT_ONCE = 8  # shards that are brought
_LOCK = "afar.lock"
_WAITS_S = 600.0
"""For another process that brings the same run: then something is wrong with it."""


class Afar(NamedTuple):
    """Of what a run directory here is the working copy."""

    url: str  # of the generation
    session: int = 0  # the newest that led the run from here
    goes_on: bool = False  # as far as its lease said when it was brought: elsewhere


def run_url(path: str, job: str, kind: Kind) -> str:
    """Where the run of a job lies, below what `[run] path` says."""
    return f"{path.rstrip('/')}/{job}{SUFFIXES[kind]}"


def generation(root: Objects, number: int) -> Objects:
    """One generation of a run."""
    return root.below(f"{number:0{_DIGITS}d}")


def newest(root: Objects) -> int:
    """Number of a run's newest generation; 0 where there is none. Raises `RunStateError`.

    Where nobody says so it is the last that has all its shards: a driver may have been killed just then. For the same
    reason, and where what says so was rolled back, one that follows it with all its shards is newer.
    """
    said = root.get(NEWEST)
    if said is None:
        return max((int(found[1]) for entry in root.entries() if (found := _PLACED.fullmatch(entry.name))), default=0)
    try:
        number = int(orjson.loads(said)["generation"])
    except (ValueError, LookupError, TypeError):
        raise RunStateError(
            f"{root.url}/{NEWEST} does not say which generation is the newest", "restore it, or name another [run] path"
        ) from None
    while root.head(f"{number + 1:0{_DIGITS}d}/{units.NAME}"):
        number += 1
    return number


def begin(root: Objects, number: int) -> None:
    """Have a generation be the newest: its manifest is there. Raises `RunStateError`."""
    root.put(NEWEST, orjson.dumps({"generation": number}))


def read(directory: Path) -> Afar | None:
    """Of what a directory is the working copy; None for a run that lies here."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        said = orjson.loads((directory / NAME).read_bytes())
        return Afar(str(said["url"]), int(said["session"]), bool(said.get("goes_on")))
    return None


def copy_of(url: str) -> Path | None:
    """A working copy of the run at a URL: of its newest generation, or of the one that the URL names.

    It is to be brought yet. None: there is no run. Raises `PipelineError`.
    """
    address = url.rstrip("/")
    above, _, last = address.rpartition("/")
    if not (last.isdecimal() and len(last) == _DIGITS):
        root = None if is_missing(address) else opened(address)
        number = newest(root) if root else 0
        if not (root and number):
            return None
        above, address, last = address, generation(root, number).url, last
    name = above.rpartition("/")[2]
    place = copies_folder() / hashlib.blake2b(address.encode(), digest_size=8).hexdigest() / name
    if read(place) is None:
        write(place, Afar(address))
    return place


def tables_of(path: str, job: str, kind: Kind) -> Path | None:
    """A working copy of the run of a job that knows which tables it wrote, whoever led it last; None: there is no run.

    Raises `PipelineError`.
    """
    if (place := copy_of(run_url(path, job, kind))) is not None and (known := read(place)) is not None:
        with _alone(place):
            opened(known.url).fetch(notes.NAME, place / notes.NAME)
    return place


def root_of(directory: Path) -> Objects | None:
    """All generations of the run that a directory is a working copy of; None for a run that lies here."""
    return opened(known.url.rpartition("/")[0]) if (known := read(directory)) else None


def generation_of(directory: Path, number: int) -> Path | None:
    """A working copy of another generation of the run that a directory is one of; None where there is none."""
    root = root_of(directory)
    return copy_of(generation(root, number).url) if root and 0 < number <= newest(root) else None


def newest_of(directory: Path) -> Path | None:
    """A working copy of the newest generation, where a directory is one of an earlier. Raises as `copy_of`."""
    if (known := read(directory)) is None or Lock.held(directory / "lock"):
        return None
    above, _, number = known.url.rpartition("/")
    root = opened(above)
    there = newest(root)
    return copy_of(generation(root, there).url) if there > int(number) else None


def write(directory: Path, afar: Afar) -> None:
    """Have a directory be a working copy. Raises `RunStateError`."""
    path = directory / NAME
    hidden = path.with_name(f".{NAME}.tmp")
    try:
        make_private(directory)
        hidden.touch(0o600)
        with hidden.open("wb") as file:
            file.write(orjson.dumps(afar._asdict()))
            file.flush()
            os.fsync(file.fileno())
        machine.replace(hidden, path)
    except OSError as error:
        raise RunStateError(
            f"cannot write {path}: {error.strerror}\nNothing was sent.", "make room or mend its permissions"
        ) from None


def bring(directory: Path, *, sums: bool = False) -> int:
    """Have a working copy as the storage is now; of its shards that are done with `sums` only these.

    Files of the whole run stay as they are where a process here leads it. The last session of which a shard has
    anything; 0 where none has. Raises `RunStateError`.
    """
    known = read(directory)
    if known is None:
        return 0
    run = opened(known.url)
    with _alone(directory):
        if not Lock.held(directory / "lock"):
            _look(run, directory, known)
        return bring_shards(run, directory, sums=sums)


def look(directory: Path) -> None:
    """Have the files of the whole run of a working copy as they are now. Raises `RunStateError`."""
    if (known := read(directory)) is not None and not Lock.held(directory / "lock"):
        with _alone(directory):
            _look(opened(known.url), directory, known)


def _look(run: Objects, directory: Path, known: Afar) -> None:
    session, goes_on = newest_session(opened(known.url.rpartition("/")[0]))
    bring_own(run, directory)
    write(directory, known._replace(goes_on=goes_on and session > known.session))


def is_led(directory: Path) -> bool:
    """Whether a process works on a run: one that holds the directory, or, of a working copy, one elsewhere.

    Of that one its `status.json` is all that is known, by the clocks of both.
    """
    if Lock.held(directory / "lock"):
        return True
    known = read(directory)
    with suppress(OSError, ValueError, LookupError, TypeError):
        told = orjson.loads((directory / STATUS).read_bytes())
        return known is not None and known.goes_on and time.time() < float(told["at_s"]) + SILENT_S
    return False


def bring_own(run: Objects, directory: Path) -> None:
    """Have the files of the whole run as they are there. Raises `RunStateError`."""
    for name in OWN:
        if not run.fetch(name, directory / name):
            (directory / name).unlink(missing_ok=True)


def bring_shards(run: Objects, directory: Path, *, sums: bool = False) -> int:
    """Have the shards as they are there; as `bring`. Raises `RunStateError`."""
    shards = units.read(directory)[1] if (directory / units.NAME).exists() else []
    numbers = {shard.directory.name for shard in shards}
    for left in (directory / units.FOLDER).glob("*"):
        if left.name not in numbers:
            rmtree(left, ignore_errors=True)
    sizes: dict[str, dict[str, int]] = {}
    for entry in run.entries(units.FOLDER):  # of all at once: a thousand a request
        _, number, name = entry.name.split("/", 2)
        sizes.setdefault(number, {})[name] = entry.size
    sessions = [stood.life.session for name in chain(*sizes.values()) if (stood := lives.stood_of(name))]
    if sessions and not shards:
        raise RunStateError(
            f"{run.url}/{units.NAME} is missing: nobody knows which rows the answers are of\nNothing was changed.",
            "restore it, or begin anew with `--fresh`, which keeps the answers beside",
        )
    stale = [
        shard
        for shard in shards
        if not lives.is_brought(shard.directory, sizes.get(shard.directory.name, {}), sums=sums)
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        brought = [pool.submit(lives.bring, run.below(shard_name(at)), at.directory, sums=sums) for at in stale]
        for each in brought:
            each.result()
    return max(sessions, default=0)


def bring_whole(shard: Shard) -> None:
    """Have the calls and results of a shard here too, where they were left out. Raises `RunStateError`."""
    known = read(shard.directory.parent.parent) if lives.has_sums_alone(shard.directory) else None
    if known is not None:
        lives.bring(opened(known.url).below(shard_name(shard)), shard.directory)


def bring_input(shard: Shard) -> bool:
    """Have the rows of a shard here, where its run lies on object storage: whether it does. Raises `RunStateError`."""
    known = read(shard.directory.parent.parent)
    return known is not None and opened(known.url).fetch(f"{shard_name(shard)}/{units.INPUT}", shard.input)


def shard_name(shard: Shard) -> str:
    """What the names of a shard's objects begin with."""
    return f"{units.FOLDER}/{shard.directory.name}"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else brings the same run meanwhile."""
    until = time.monotonic() + _WAITS_S
    lock = machine.open_file(directory / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        while True:
            try:
                machine.lock(lock)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise RunStateError(
                        f"another process has brought {directory} from the storage for {_WAITS_S / 60:.0f} minutes",
                        "end that one",
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(lock)
