"""What a run knows of its documents, in its directory: so whoever reads the run later looks at no folder.

`documents.parquet` has a row for each document, in the order of their paths: what was read of it, but for its text,
which lies in the spool under its `key`; of one that was not read yet, its path.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import polars as pl

from pipeline import machine
from pipeline.documents.collecting import BARE, KEY, READ, SCAN, SIZE, UNFIT, Collected, unread
from pipeline.documents.finding import Found, as_name, as_text
from pipeline.errors import RunStateError

NAME = "documents.parquet"
_ROOT = "root"
_NAMES = {UNFIT: "unfit", SCAN: "scan", BARE: "bare", KEY: "key", SIZE: "size", READ: "read"}
_COLUMNS = ("path", "title", "pages", *_NAMES.values())


def write(directory: Path, held: Collected | None, covered: Collection[str] | None = None) -> None:
    """Keep what is known of the documents with the paths that a session has `covered` (None: with any); of others, and
    of those that are not read yet, what was kept before. None: the run is of no documents.

    Raises `RunStateError` where it cannot be written: a later start could not tell which of them changed.
    """
    final = directory / NAME
    hidden = final.with_name(f".{NAME}.tmp")
    try:
        if held is None:
            final.unlink(missing_ok=True)
            return
        known, before = held.rows, _kept(directory)
        is_known = pl.col(READ) if covered is None else pl.col(READ) & pl.col("path").is_in([*covered])
        others = unread(known.select("path")).rename(_NAMES).select(_COLUMNS)
        if before is not None and before["path"].equals(known["path"]):
            others = before
        fresh = known.with_row_index().filter(is_known).rename(_NAMES).select("index", *_COLUMNS)
        merged = pl.concat([fresh, others.with_row_index()]).unique("index", keep="first").sort("index").drop("index")
        if before is not None and merged.equals(before):
            return
        hidden.touch(0o600)
        merged.write_parquet(hidden, metadata={_ROOT: as_text(held.found.root)})
        machine.replace(hidden, final)
    except (OSError, pl.exceptions.PolarsError) as error:
        hint = f"make room, or mend the permissions of {directory}; then run the same command again"
        raise RunStateError(f"{final} cannot be written: {error}", hint) from None


def read(directory: Path, spool: Path) -> Collected | None:
    """The documents as the run in a directory knows them, whatever became of their files; None where it has none."""
    if (known := _kept(directory)) is None:
        return None
    root = as_name(pl.read_parquet_metadata(directory / NAME)[_ROOT])
    rows = known.rename({name: column for column, name in _NAMES.items()})
    return Collected(Found(root, (), {}), unread(rows), spool)


def changed(directory: Path, held: Collected) -> set[str]:
    """The paths of documents that are read now, and are not what the run has read; all that are read, where nothing is
    kept of that."""
    known, before = held.rows.rename(_NAMES).select("path", "key").filter(held.rows[READ]), _kept(directory)
    if before is None:
        return {*known["path"]}
    both = known.join(before.filter("read"), on="path")
    return {*both.filter(pl.col("key").ne_missing(pl.col("key_right")))["path"]}


def _kept(directory: Path) -> pl.DataFrame | None:
    with suppress(OSError, pl.exceptions.PolarsError):
        found = pl.scan_parquet(directory / NAME, glob=False).collect()
        if tuple(found.columns) == _COLUMNS:
            return found
    return None
