"""What was sealed: one line a part in `parts.jsonl`, by which a removed or damaged part is noticed.

A line is written after its part is in place. A part without a line is one whose seal a kill cut short: the next start
writes its line. Every start and every report compares names and sizes; `verify` reads each byte.

A line of another kind names the journals that hold what is not sealed yet; the newest counts.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeVar

import orjson

from pipeline import machine
from pipeline.errors import RunStateError

NAME = "parts.jsonl"
_JOURNALS = b'{"journals":'
_APPENDING = Lock()  # a seal and a batch that is taken may meet

Found = TypeVar("Found")


class Sealed(NamedTuple):
    """One part as it was sealed; `part` is its path in the run directory."""

    part: str
    rows: int
    size: int  # bytes
    digest: str


def digest(content: bytes | memoryview) -> str:
    """Checksum of a part's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_of(path: Path) -> str:
    """The same of a file, whatever its size. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def record(directory: Path, sealed: Sequence[Sealed]) -> None:
    """Add lines, forced to the disk. Raises `RunStateError` when the disk refuses."""
    if not sealed:
        return
    _append(directory, [line._asdict() for line in sealed], sync=True)


def record_journals(directory: Path, numbers: Sequence[int]) -> None:
    """Note which journals hold what is not sealed yet, so that one that is removed is missed.

    Raises as `record`. Without waiting for the disk: a power cut may take the note, and nothing with it.
    """
    _append(directory, [{"journals": numbers}], sync=False)


def rewrite(directory: Path, sealed: Sequence[Sealed]) -> None:
    """Put other lines in the place of all, whole or not at all: these parts there are, and no journal holds anything.

    Raises OSError.
    """
    path = directory / NAME
    hidden = path.with_name(f".{NAME}.tmp")
    hidden.touch(0o600)
    with hidden.open("wb") as file:
        file.write(_lines_of([*(line._asdict() for line in sealed), {"journals": []}]))
        file.flush()
        os.fsync(file.fileno())
    machine.replace(hidden, path)
    machine.sync_directory(directory)


def journals(directory: Path) -> list[int]:
    """The journals that hold what is not sealed yet, as far as was noted."""
    noted = [line for line in _lines(directory / NAME) if line.startswith(_JOURNALS)]
    return _parsed(
        directory / NAME, lambda: [int(number) for number in orjson.loads(noted[-1])["journals"]] if noted else []
    )


def _append(directory: Path, records: Sequence[Mapping[str, object]], *, sync: bool) -> None:
    path = directory / NAME
    with _APPENDING:
        _append_lines(path, _lines_of(records), sync)


def _lines_of(records: Sequence[Mapping[str, object]]) -> bytes:
    return b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


def _append_lines(path: Path, lines: bytes, sync: bool) -> None:
    try:
        fd = machine.open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            _drop_torn_line(fd)
            os.write(fd, lines)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise RunStateError(
            f"cannot write {path}: {error.strerror}\nEvery part is whole: nothing is lost.",
            "make room or mend the disk, then run the same command again",
        ) from None


def read(directory: Path) -> dict[str, Sealed]:
    """Every part that was sealed, by its path in the run directory. A torn last line is left out."""
    path = directory / NAME
    lines = [line for line in _lines(path) if not line.startswith(_JOURNALS)]
    return {sealed.part: sealed for sealed in _parsed(path, lambda: [Sealed(**orjson.loads(line)) for line in lines])}


def _parsed(path: Path, parse: Callable[[], list[Found]]) -> list[Found]:
    try:
        return parse()
    except (ValueError, TypeError, LookupError):
        raise RunStateError(
            f"{path} is damaged\nThe parts themselves may be whole.",
            "restore it, or move it away: the parts that are there are then taken as they are",
        ) from None


def noted(part: Path, known: Mapping[str, Sealed]) -> bool:
    """Whether there is a line for the part at this path."""
    return f"{part.parent.name}/{part.name}" in known


def check(directory: Path) -> dict[str, Sealed]:
    """Compare the parts that were sealed with those that are there, by name and size; returns `read`.

    Raises `RunStateError` for one that is missing or was changed.
    """
    known = read(directory)
    for sealed in known.values():
        try:
            size = (directory / sealed.part).stat().st_size
        except FileNotFoundError:
            if read(directory) != known:  # parts are put together at this moment
                return check(directory)
            raise _broken(directory, sealed, "is missing") from None
        if size != sealed.size:
            raise _broken(directory, sealed, "is damaged")
    return known


def verify(directory: Path) -> int:
    """Read every byte of every part that was sealed; returns their number.

    Raises `RunStateError` for one that is missing or was changed.
    """
    known = check(directory)
    for sealed in known.values():
        try:
            found = digest_of(directory / sealed.part)
        except FileNotFoundError:  # parts are put together at this moment, or it is missed
            return verify(directory)
        if found != sealed.digest:
            raise _broken(directory, sealed, "is damaged")
    return len(known)


def _broken(directory: Path, sealed: Sealed, how: str) -> RunStateError:
    what = "rows are finished and paid for" if sealed.part.startswith("results/") else "paid calls stand"
    bought_again = {"results": "its rows are then bought again", "batched": "its calls are then bought again"}
    then = bought_again.get(sealed.part.partition("/")[0], "the report then lacks them")
    return RunStateError(
        f"{directory / sealed.part} {how}: {sealed.rows:,} {what} in it\n"
        "The other parts are untouched, and nothing was bought or written.",
        f"restore it from a backup; or move it away, take its line out of {directory / NAME} and go on without it:"
        f" {then}",
    )


def _lines(path: Path) -> Iterator[bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return iter(())
    return (line for line in content.splitlines(keepends=True) if line.endswith(b"\n"))


def _drop_torn_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    whole = machine.read_at(fd, size, 0).rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(fd, whole)


def damaged(path: Path) -> RunStateError:
    """What to tell of a part, or of a directory of parts, that cannot be read."""
    return RunStateError(
        f"{path} is damaged\nThe other parts are whole; its rows would be bought again without it.",
        "restore it from a backup; `pipeline report --verify` says which parts are whole",
    )
