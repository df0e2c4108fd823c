"""What stood in each row of the input, hashed: so that an edited table can be told in rows that are new, changed, gone.

`rows.parquet` in a run directory, 16 bytes a row: hashes of its id and of the columns that the job uses, with the sizes
and times of the files that these name. Rows of the
same job that they find unchanged are carried over (`store.carrying`); of all others they only tell, and the content of
each prompt decides what is bought.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import orjson
import polars as pl

from pipeline import machine

NAME = "rows.parquet"
MOST_ROWS = 2_000_000
"""Of a larger table nothing is kept, and nothing told: its hashes would take more memory than all else."""
_MADE_OF = "made_of"
_TABLE = "table"


class Table(NamedTuple):
    """Whose rows were hashed: the fingerprint of a table, and the type of each column that the job uses, by name."""

    fingerprint: str
    columns: Mapping[str, str]


class RowsChanged(NamedTuple):
    """How the rows of a table differ from those of before; without ids a changed row is new, and another gone."""

    new: int
    changed: int
    gone: int


def write(directory: Path, digests: Iterable[pl.DataFrame], rows: int, table: Table) -> None:
    """Keep the hashes of so many rows of this table, frames of `key`, `hash` and, where rows name files, `files`.

    Unless as many of it are kept, and no file is another one: whoever calls this has looked into those that are. What
    cannot be written is not: its rows are found by their content.
    """
    final, metadata = directory / NAME, {_MADE_OF: _made_of(table), _TABLE: _identity(table)}
    with suppress(OSError, pl.exceptions.PolarsError):
        more = rows - _height(directory) if _is_of(directory, table) else 1
        if rows > MOST_ROWS or more < 0 or (more == 0 and touched(directory, digests, rows, table).is_empty()):
            return
        hidden = final.with_name(f".{NAME}.tmp")
        hidden.touch(0o600)
        _hashes(digests).write_parquet(hidden, compression="uncompressed", metadata=metadata)
        machine.replace(hidden, final)


def compared(directory: Path, digests: Iterable[pl.DataFrame], rows: int, table: Table) -> RowsChanged | None:
    """How these rows differ from those that are kept there; None where that cannot be said."""
    if (before := _kept(directory, table)) is None or rows > MOST_ROWS:
        return None
    now = _hashes(digests)
    both = _both(before, now)
    changed = both.filter(pl.col("hash") != pl.col("hash_before")).height
    return RowsChanged(now.height - both.height, changed, before.height - both.height)


def touched(directory: Path, digests: Iterable[pl.DataFrame], rows: int, table: Table) -> pl.Series:
    """The numbers of rows of a table that is as it was, whose files have another size or time than those kept there."""
    kept = _kept(directory, table) if rows <= MOST_ROWS and _is_of(directory, table) else None
    if kept is None:
        return pl.Series(dtype=pl.Int64)
    now, most = _hashes(digests)["hash"], min(rows, kept.height)
    return (now.head(most) != kept["hash"].head(most)).arg_true()


def unchanged(
    directory: Path, before: str, digests: Iterable[pl.DataFrame], rows: int, table: Table
) -> pl.DataFrame | None:
    """Those of these rows that were the same in the table with the fingerprint `before`: their numbers, `was` and
    `row`, Int64.

    None where that cannot be said, as of columns of other types: the same text may be another value.
    """
    if rows > MOST_ROWS or not _is_of(directory, table._replace(fingerprint=before)):
        return None
    if (kept := _kept(directory, table)) is None:
        return None
    both = _both(kept, _hashes(digests)).filter(pl.col("hash") == pl.col("hash_before"))
    return both.select(pl.col("at_before").alias("was"), pl.col("at").alias("row"))


def _hashes(digests: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """`key` and `hash` of each row, with what is known of its files in the hash."""
    found = pl.concat(digests)
    return found.select("key", hash=pl.struct("hash", "files").hash()) if "files" in found.columns else found


def _both(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """The rows of now that were there before, with their places `at` either time; of several with one key the first
    is the first."""
    place = {"at": pl.int_range(pl.len()), "nth": pl.int_range(pl.len()).over("key")}
    return now.with_columns(**place).join(before.with_columns(**place), on=["key", "nth"], suffix="_before")


def pair(old: Path, new: Path) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """The hashes that two runs keep, frames of `key` and `hash`; None where they cannot be compared."""
    with suppress(OSError, pl.exceptions.PolarsError):
        paths = old / NAME, new / NAME
        made_of = [pl.read_parquet_metadata(path).get(_MADE_OF) for path in paths]
        if made_of[0] == made_of[1]:
            before, now = (pl.scan_parquet(path, glob=False).collect() for path in paths)
            return before, now
    return None


def _kept(directory: Path, table: Table) -> pl.DataFrame | None:
    """The hashes that are kept there, where they can be compared with those of a table."""
    with suppress(OSError, pl.exceptions.PolarsError):
        if pl.read_parquet_metadata(directory / NAME).get(_MADE_OF) == _made_of(table):
            return pl.scan_parquet(directory / NAME, glob=False).collect()
    return None


def _is_of(directory: Path, table: Table) -> bool:
    with suppress(OSError, pl.exceptions.PolarsError):
        return pl.read_parquet_metadata(directory / NAME).get(_TABLE) == _identity(table)
    return False


def _height(directory: Path) -> int:
    return int(pl.scan_parquet(directory / NAME, glob=False).select(pl.len()).collect().item())


def _made_of(table: Table) -> str:
    """What the hashes depend on: another version of polars may hash otherwise."""
    return orjson.dumps([pl.__version__, *table.columns]).decode()


def _identity(table: Table) -> str:
    return orjson.dumps([pl.__version__, table.fingerprint, *table.columns.items()]).decode()
