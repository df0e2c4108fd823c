"""Which prompts fell back from batches, and why: `batches/fallen`, 8 bytes a note, of which the newest counts.

So a prompt counts once, however often a kill has it noted; one that a batch answers after all is noted as that. Counts
in the events of batches would add up what falls back twice, and the keys of a batch are gone when it is over. One that
may go into another batch counts once another lane has answered it.
"""

import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.store.batch_states import cannot_write

NAME = "fallen"

FromBatch = Literal[
    "called_in",
    "expired",
    "failed",
    "cancelled",
    "not_sent",
    "not_found",
    "line_failed",
    "missing",
    "not_believed",
]
FROM_BATCH: Mapping[FromBatch, str] = {
    "called_in": "its batch had not answered it by the last call, or was ended by `--cancel-batches`",
    "expired": "its batch expired at the service",
    "failed": "its batch failed at the service, or was refused by it",
    "cancelled": "its batch was cancelled at the service, and not by this run",
    "not_sent": "its batch was not handed in before the last call",
    "not_found": "the service did not find its batch any more until the last call",
    "line_failed": "its line failed",
    "missing": "the results did not name it, or were gone",
    "not_believed": "what the results say of it is not the answer to it, or contradicts itself",
}
"""Why a prompt that waited in a batch, or in one that was being put together, was not answered by it; in this order by
their numbers on the disk."""

_CAUSES = tuple(FROM_BATCH)
_ANSWERED = 0
_AGAIN = 64
_CODES = 256  # the last eight bits of a note are its cause, the others are of the fingerprint
DIGITS = 14
"""So many of a fingerprint's digits are noted: two of a million prompts share them once in 140,000 runs."""


class Fallen(NamedTuple):
    """What fell back from batches."""

    causes: dict[str, int]  # by cause
    perhaps: dict[str, str]  # what may go into another batch, by the first `DIGITS` of its fingerprint: its cause


def note(folder: Path, fingerprints: Iterable[str], cause: FromBatch, *, again: bool = False) -> None:
    """Note that these fell back, before it is acted upon; with `again` they may go into another batch.

    Raises `RunStateError` when the disk refuses.
    """
    code = 1 + _CAUSES.index(cause) + again * _AGAIN
    _append(folder / NAME, array("Q", (_name_of(each) + code for each in fingerprints)))


def forget(folder: Path, fingerprints: Iterable[str]) -> None:
    """Note of those of these that fell back that a batch answers them after all. Raises `RunStateError` as `note`."""
    if noted := _read(folder / NAME):
        names = {_name_of(each) for each in fingerprints}
        _append(folder / NAME, array("Q", names.intersection(each - each % _CODES for each in noted)))


def read(folder: Path) -> Fallen:
    """What fell back so far. Raises `RunStateError` where it cannot be read."""
    noted = pl.DataFrame({"note": pl.Series(_read(folder / NAME), dtype=pl.UInt64)})
    newest = noted.select(name=pl.col("note") // _CODES, code=pl.col("note") % _CODES).unique("name", keep="last")
    found = newest.filter(pl.col("code") % _AGAIN != _ANSWERED)
    counted = found.filter(pl.col("code") < _AGAIN).group_by("code").len()
    return Fallen(
        {_CAUSES[code - 1]: number for code, number in sorted(counted.iter_rows())},
        {
            f"{name:0{DIGITS}x}": _CAUSES[code - _AGAIN - 1]
            for name, code in found.filter(pl.col("code") > _AGAIN).iter_rows()
        },
    )


def _name_of(fingerprint: str) -> int:
    return int(fingerprint[:DIGITS], 16) * _CODES


def _read(path: Path) -> "array[int]":
    """The notes; what a kill cut short is none."""
    noted = array("Q")
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RunStateError(f"cannot read {path}: {error.strerror}", "mend its permissions") from None
    noted.frombytes(content[: len(content) // noted.itemsize * noted.itemsize])
    return noted


def _append(path: Path, notes: "array[int]") -> None:
    if not notes:
        return
    try:
        fd = machine.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            os.ftruncate(fd, size - size % notes.itemsize)
            left = notes.tobytes()
            while left:  # a disk that fills takes a part
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise cannot_write(path, error) from None
