"""Of what a run directory consists: of itself, or of shards, each a run directory of its own.

    manifest.json, run.log        of the whole run
    shards.parquet                which rows of the table each shard has, and where they stand; once the table is cut
    shards/00017/                 a run directory, whose rows count from 0
    shards/00017/input.parquet    its rows, where the table itself is not read

A shard's directory knows nothing of the whole: whoever reads adds the shard's first row to the number of a row.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipeline.errors import RunStateError
from pipeline.store.manifest import VERSION
from pipeline.store.manifest import read as read_manifest
from pipeline.store.manifest import write as write_manifest
from pipeline.store.parts import OWNER, write_frame

NAME = "shards.parquet"
FOLDER = "shards"
INPUT = "input.parquet"
SCHEMA = pl.Schema(
    {
        "shard": pl.Int64(),
        "first_row": pl.Int64(),  # of those that `where` lets through
        "rows": pl.Int64(),
        "file": pl.Int64(),  # its place among the input's files; null: the shard has a file of its own
        "from": pl.Int64(),  # row of that file
        "length": pl.Int64(),
    }
)
"""Columns of `shards.parquet`: a line for each piece of a shard."""


class Piece(NamedTuple):
    """Rows of a file of the input that stand together."""

    file: int  # its place among the input's files
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of a table's rows, with a run directory of its own."""

    number: int
    directory: Path
    first_row: int
    rows: int
    pieces: tuple[Piece, ...] = ()  # where they stand in the input; none: in a file of its own

    @property
    def input(self) -> Path:
        """Its own file, where it has one."""
        return self.directory / INPUT


class Unit(NamedTuple):
    """A run directory, and the row of the whole run that its row 0 is."""

    directory: Path
    first_row: int = 0


def units(directory: Path) -> Sequence[Unit]:
    """The run directories that a run consists of, in row order: itself, or those of its shards that were begun.

    Raises `RunStateError` where nobody knows which rows the shards have.
    """
    if not is_cut(directory):
        return (Unit(directory),)
    return [Unit(shard.directory, shard.first_row) for shard in read(directory)[1] if has_begun(shard)]


def has_begun(shard: Shard) -> bool:
    """Whether a worker has made its run directory."""
    return (shard.directory / "manifest.json").exists()


def is_cut(directory: Path) -> bool:
    """Whether a run's table is cut into shards: also where the word of it is gone, or all would be bought anew."""
    return (directory / NAME).exists() or any((directory / FOLDER).glob("*/manifest.json"))


def is_shard(directory: Path) -> bool:
    """Whether a run directory is that of a shard."""
    return directory.parent.name == FOLDER and is_cut(directory.parent.parent)


def part_name(number: int, suffix: str) -> str:
    """Name of the file with a shard's rows, where the output is a folder."""
    return f"part-{number:05d}{suffix}"


def shard_directory(directory: Path, number: int) -> Path:
    """The run directory of a shard."""
    return directory / FOLDER / f"{number:05d}"


def uncut(directory: Path) -> None:
    """Let the table be whole again of a run that was given up before a worker began; its lock must be held."""
    if not is_cut(directory):
        return
    manifest = directory / "manifest.json"
    if known := read_manifest(manifest):
        write_manifest(manifest, replace(known, version=VERSION, workers=0, on_ray=False))
    (directory / NAME).unlink(missing_ok=True)
    for shard in list((directory / FOLDER).glob("*")):
        for copy in list(shard.glob(f"*{INPUT}*")):
            copy.unlink()
        with suppress(OSError):
            shard.rmdir()


def write(directory: Path, shards: Sequence[Shard], source: str) -> None:
    """Note how the table with the fingerprint `source` is cut, whole or not at all. Raises `RunStateError`."""
    lines = [
        (shard.number, shard.first_row, shard.rows, *(piece or (None, None, None)))
        for shard in shards
        for piece in shard.pieces or (None,)
    ]
    write_frame(pl.DataFrame(lines, SCHEMA, orient="row"), directory / NAME, source, "Nothing was sent.")


def read(directory: Path) -> tuple[str, list[Shard]]:
    """The fingerprint of the table that was cut, and its shards in row order. Raises `RunStateError` for damage."""
    path = directory / NAME
    if not path.exists():
        raise RunStateError(
            f"{directory} has shards with answers, but its {NAME} is gone: nobody knows which rows they are\n"
            "Nothing was sent.",
            "restore it from a backup, or begin anew with `--fresh`, which keeps the answers beside",
        )
    try:
        source = pl.read_parquet_metadata(path).get(OWNER, "")
        lines = pl.read_parquet(path).select(list(SCHEMA)).cast(SCHEMA).rows()
        return source, [_shard(directory, list(each)) for _, each in groupby(lines, key=itemgetter(0))]
    except (pl.exceptions.PolarsError, OSError, ValueError, TypeError) as error:
        raise RunStateError(
            f"{path} is damaged: {str(error).splitlines()[0]}\nThe shards themselves may be whole.",
            "restore it from a backup",
        ) from None


def _shard(directory: Path, lines: Sequence[tuple[int, ...]]) -> Shard:
    number, first_row, rows, *_ = lines[0]
    pieces = tuple(Piece(*line[3:]) for line in lines if line[3] is not None)
    return Shard(number, shard_directory(directory, number), first_row, rows, pieces)
