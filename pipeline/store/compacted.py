"""Parts that lie together in one file, as those of a shard that is done: `calls/part-000001-000250.parquet`.

Its metadata says which parts are in it, and how many rows each has. A part is the same wherever it lies: it is read
from a file of its own, or, where there is none, from one that has it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import orjson
import polars as pl

from pipeline.store.seals import damaged

PARTS = "parts"
"""Key under which the metadata has the number and the rows of each part, as JSON."""
_NAME = re.compile(r"part-[0-9]{6,}-[0-9]{6,}\.parquet")


class Stretch(NamedTuple):
    """Where a part lies in a file of several."""

    file: Path
    start: int  # row of the file
    rows: int


def name(numbers: Sequence[int]) -> str:
    """Name of the file that has the parts of these numbers, which ascend."""
    return f"part-{numbers[0]:06d}-{numbers[-1]:06d}.parquet"


def paths(directory: Path) -> list[Path]:
    """The files of several parts in a directory."""
    return sorted(path for path in directory.glob("part-*-*.parquet") if _NAME.fullmatch(path.name))


def told(heights: Mapping[int, int]) -> str:
    """What stands under `PARTS`, from the rows of each part by its number."""
    return orjson.dumps(list(heights.items())).decode()


def stretches(path: Path) -> Mapping[int, Stretch]:
    """The parts in a file, by their numbers. Raises `RunStateError` where it does not say, `FileNotFoundError`."""
    seen = path.stat()
    return _stretches(path, seen.st_ino, seen.st_mtime_ns)


@lru_cache(maxsize=64)
def _stretches(path: Path, inode: int, changed_ns: int) -> Mapping[int, Stretch]:
    try:
        held: list[tuple[int, int]] = orjson.loads(pl.read_parquet_metadata(path)[PARTS])
        starts = accumulate((rows for _, rows in held), initial=0)
        return {number: Stretch(path, start, rows) for (number, rows), start in zip(held, starts, strict=False)}
    except FileNotFoundError:
        raise
    except (pl.exceptions.PolarsError, OSError, LookupError, ValueError, TypeError):
        raise damaged(path) from None


def found(directory: Path) -> dict[int, Stretch]:
    """All parts that lie in files of several, by their numbers. Raises `RunStateError` for a damaged file."""
    while True:
        there = paths(directory)
        try:
            return {number: stretch for path in there for number, stretch in stretches(path).items()}
        except FileNotFoundError:
            if paths(directory) == there:  # else they are put together anew at this moment
                raise damaged(there[0]) from None
