"""What stood in each row of the input, hashed: so that an edited table can be told in rows that are new, changed, gone.

`rows.parquet` in a run directory, 16 bytes a row: hashes of its id and of the columns that the job uses. It only
tells: what is bought is decided by the content of each prompt.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import orjson
import polars as pl

NAME = "rows.parquet"
MOST_ROWS = 2_000_000
"""Of a larger table nothing is kept, and nothing told: its hashes would take more memory than all else."""
_MADE_OF = "made_of"


class RowsChanged(NamedTuple):
    """How the rows of a table differ from those of before; without ids a changed row is new, and another gone."""

    new: int
    changed: int
    gone: int


def write(directory: Path, digests: Iterable[pl.DataFrame], rows: int, columns: Sequence[str]) -> None:
    """Keep the hashes of so many rows, frames of `key` and `hash`; `columns` are those that were hashed.

    Unless as many are kept. What cannot be written is not: it only tells.
    """
    final, metadata = directory / NAME, {_MADE_OF: _made_of(columns)}
    with suppress(OSError, pl.exceptions.PolarsError):
        if rows > MOST_ROWS or ((kept := _kept(directory, columns)) is not None and _height(kept) >= rows):
            return
        hidden = final.with_name(f".{NAME}.tmp")
        hidden.touch(0o600)
        pl.concat(digests).write_parquet(hidden, compression="uncompressed", metadata=metadata)
        hidden.rename(final)


def compared(directory: Path, digests: Iterable[pl.DataFrame], rows: int, columns: Sequence[str]) -> RowsChanged | None:
    """How these rows differ from those that are kept there; None where that cannot be said."""
    before = None
    with suppress(OSError, pl.exceptions.PolarsError):
        kept = _kept(directory, columns)
        before = None if kept is None else kept.collect()
    if before is None or rows > MOST_ROWS:
        return None
    now = pl.concat(digests)
    numbered = [frame.with_columns(nth=pl.int_range(pl.len()).over("key")) for frame in (before, now)]
    both = numbered[1].join(numbered[0], on=["key", "nth"], suffix="_before")
    changed = both.filter(pl.col("hash") != pl.col("hash_before")).height
    return RowsChanged(now.height - both.height, changed, before.height - both.height)


def pair(old: Path, new: Path) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """The hashes that two runs keep, frames of `key` and `hash`; None where they cannot be compared."""
    with suppress(OSError, pl.exceptions.PolarsError):
        paths = old / NAME, new / NAME
        made_of = [pl.read_parquet_metadata(path).get(_MADE_OF) for path in paths]
        if made_of[0] == made_of[1]:
            before, now = (pl.scan_parquet(path, glob=False).collect() for path in paths)
            return before, now
    return None


def _kept(directory: Path, columns: Sequence[str]) -> pl.LazyFrame | None:
    path = directory / NAME
    if not path.is_file() or pl.read_parquet_metadata(path).get(_MADE_OF) != _made_of(columns):
        return None
    return pl.scan_parquet(path, glob=False)


def _height(kept: pl.LazyFrame) -> int:
    return int(kept.select(pl.len()).collect().item())


def _made_of(columns: Sequence[str]) -> str:
    """What the hashes depend on: another version of polars may hash otherwise."""
    return orjson.dumps([pl.__version__, *columns]).decode()
