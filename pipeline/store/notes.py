"""What the runs of a project wrote where, as each notes it in its directory: so the next one knows whose a table is.

Layout 1 made no notes: there the manifest names the table, and run.log tells when it was written.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from math import inf
from pathlib import Path

import orjson
from pydantic import TypeAdapter

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.store.manifest import read as read_manifest
from pipeline.store.parts import read_parts
from pipeline.urls import is_url

NAME = "output.json"
_KEPT = 8
_WHOLE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Written:
    """A table that a run wrote: where, what it looked like, and how many of its rows had an outcome."""

    path: str
    size: int
    mtime_ns: int
    digest: str
    rows: int
    finished: int
    tag: str = ""  # of an object, as its store told it; empty until it was put


_WRITTEN = TypeAdapter(list[Written])
Noted = tuple[Path, Written]
"""A note, and the run directory that it stands in."""


def naming(target: Path, runs: Path) -> Iterator[Noted]:
    """Notes of this place by the runs kept here, oldest first in each; `target` is a real path.

    One counts that was of it when the project was elsewhere: it may have been moved since.
    """
    project = _project(runs)
    inside = f"{os.sep}{target.relative_to(project)}" if target.is_relative_to(project) else None
    for directory in sorted(path.parent for path in runs.glob(f"*/{NAME}")):
        for note in _notes_of(directory):
            if note.path == str(target) or (inside and note.path.endswith(inside)):
                yield directory, note


def of_layout_1(runs: Path, target: Path) -> Iterator[Noted]:
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


def is_of(target: Path, note: Written) -> bool:
    """Whether the file there is the one of the note: same size, and same time or, as for a copy, same content."""
    with suppress(OSError), target.open("rb") as file:
        seen = os.fstat(file.fileno())
        if seen.st_size != note.size:
            return False
        return seen.st_mtime_ns == note.mtime_ns or _digest(file.fileno(), seen.st_size) == note.digest
    return False


def with_one_more(directory: Path, target: Path, fd: int, rows: int, finished: int) -> bytes:
    """What the file of notes is to hold once the table in `fd` is put in place at `target`."""
    seen = os.fstat(fd)
    note = Written(str(target), seen.st_size, seen.st_mtime_ns, _digest(fd, seen.st_size), rows, finished)
    # A run writes its table many times. The note of what is there now stays: a kill may leave that in its place.
    there = [each for each in _notes_of(directory) if each.path != note.path or is_of(target, each)]
    return _dumped([*there, note])


def of_url(url: str, runs: Path, elsewhere: Path | None = None) -> Iterator[Noted]:
    """Notes of this address by the runs kept here and by one `elsewhere`, oldest first in each."""
    here = sorted(path.parent for path in runs.glob(f"*/{NAME}"))
    for directory in [elsewhere, *here] if elsewhere else here:
        yield from ((directory, note) for note in _notes_of(directory) if note.path == url)


def with_url(directory: Path, written: Written, there: str | None) -> bytes:
    """What it is to hold before an object or a folder of them is put, and once more after; `there` is the tag of what
    still stands there: its note stays, and those whose objects may have been put."""
    kept = [each for each in _notes_of(directory) if each.path != written.path or (there and each.tag in ("", there))]
    return _dumped([*kept, written])


def with_folder(directory: Path, target: Path, rows: int, finished: int) -> bytes:
    """What it is to hold once the tables in the folder `target` are put in place."""
    there = [each for each in _notes_of(directory) if each.path != str(target)]
    return _dumped([*there, Written(str(target), 0, 0, "", rows, finished)])


def digest_of(path: Path) -> str:
    """Hash of a file's size and content, of a very large one's beginning and end. Raises OSError."""
    with path.open("rb") as file:
        return _digest(file.fileno(), os.fstat(file.fileno()).st_size)


def newest(directory: Path) -> Written | None:
    """The table that a run wrote last; None when it wrote none yet."""
    return next(reversed(_notes_of(directory)), None)


def last_output(directory: Path) -> str | None:
    """Where that is, as it is found from here."""
    note = newest(directory)
    if note is None:
        return None
    if is_url(note.path):
        return note.path
    path = _found(note, _project(directory.parent))
    end = "/" if path.is_dir() else ""
    with suppress(ValueError):
        return f"{path.relative_to(Path.cwd())}{end}"
    return f"{path}{end}"


def _found(note: Written, project: Path) -> Path:
    """Where the table of the note lies: where it was written, or at the same place in a project that was moved."""
    path = Path(note.path)
    if path.exists():
        return path
    tails = (Path(*path.parts[start:]) for start in range(1, len(path.parts)))
    return next((project / tail for tail in tails if is_of(project / tail, note)), path)


def _project(runs: Path) -> Path:
    return Path(os.path.realpath(runs.parent))


def _notes_of(directory: Path) -> list[Written]:
    """The notes of one run; none where they cannot be read: its table is then nobody's."""
    try:
        if not (directory / NAME).is_file():
            return []
        return _WRITTEN.validate_json((directory / NAME).read_bytes(), strict=True)
    except (OSError, ValueError):
        return []


def _dumped(noted: Sequence[Written]) -> bytes:
    return orjson.dumps([asdict(each) for each in noted[-_KEPT:]], option=orjson.OPT_INDENT_2)


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


def _digest(fd: int, size: int) -> str:
    """Hash of a file's size and content, of a very large one's beginning and end."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    half = _WHOLE_BYTES // 2
    for start, stop in ((0, size),) if size <= _WHOLE_BYTES else ((0, half), (size - half, size)):
        while start < stop and (block := machine.read_at(fd, min(2**20, stop - start), start)):
            digest.update(block)
            start += len(block)
    return digest.hexdigest()
