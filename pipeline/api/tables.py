"""A table in memory, kept as a file: a run reads its table more than once, and so does who looks at it later."""

import os
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import polars as pl

from pipeline import machine
from pipeline.errors import InputError, RunStateError
from pipeline.job import GIVEN
from pipeline.process import make_private
from pipeline.store.manifest import read as read_manifest

_BLOCK_BYTES = 2**20
_KEPT_S = 24 * 3600.0


class ArrowStream(Protocol):
    """What hands out its columns by Arrow's C interface, as tables of pandas, pyarrow and DuckDB do."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The stream."""
        ...


Table = str | Path | pl.DataFrame | pl.LazyFrame | ArrowStream


def kept(table: pl.DataFrame | pl.LazyFrame | ArrowStream) -> str:
    """Keep a table under the name of its content, and return the path: the same rows are the same file.

    A LazyFrame is written as it is read, in bounded memory. Raises `InputError` for what cannot be kept, OSError.
    """
    frame = table if isinstance(table, pl.DataFrame | pl.LazyFrame) else _framed(table)
    directory = Path(GIVEN)
    make_private(directory)
    hidden = directory / f".{uuid4().hex}.tmp"
    try:
        hidden.touch(0o600)
        try:
            frame.lazy().sink_parquet(hidden)
        except pl.exceptions.PolarsError as error:
            told = (str(error).splitlines() or ["?"])[0]
            hint = "make room" if "(os error 28)" in told else "a column is text, numbers, dates, or lists of these"
            raise InputError(f"the table cannot be kept as Parquet in {directory}: {told}", hint) from error
        digest = blake2b(digest_size=16)
        with hidden.open("r+b") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            os.fsync(file.fileno())
        final = directory / f"{digest.hexdigest()}.parquet"
        _want_again(final)
        if not _is_whole(final, hidden.stat().st_size):  # one that is may be read at this moment: it is left alone
            machine.replace(hidden, final)
            _tidy(directory)
        return str(final)
    finally:
        hidden.unlink(missing_ok=True)


def _is_whole(path: Path, size_bytes: int) -> bool:
    """Whether a table that was kept is there, and as long as it was: it was whole when it got its name."""
    try:
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def _want_again(path: Path) -> None:
    """Leave a table of an estimate to the run that begins, whoever tidies at this moment.

    One of a run is not touched: that run may be reading it, and would take it for another.
    """
    with suppress(RunStateError, OSError):
        if path.stat().st_mtime < time.time() - _KEPT_S / 2 and path.name not in _of_runs(path.parent):
            os.utime(path)


def _of_runs(directory: Path) -> set[str]:
    """The names of the tables that runs were made of. Raises `RunStateError`."""
    manifests = (read_manifest(path) for path in directory.parent.glob("*/manifest.json"))
    return {Path(manifest.source_path).name for manifest in manifests if manifest}


def _tidy(directory: Path) -> None:
    """Remove tables that no run was made of, as those of estimates, and what a kill left, once they are a day old."""
    with suppress(RunStateError, OSError):
        named = _of_runs(directory)
        for path in directory.iterdir():
            if path.name not in named and path.stat().st_mtime < time.time() - _KEPT_S:
                path.unlink()


def _framed(table: ArrowStream) -> pl.DataFrame:
    if not hasattr(table, "__arrow_c_stream__"):
        raise InputError(
            f"a {type(table).__name__} is no table",
            "a path, a frame of polars, or what has `__arrow_c_stream__`, as pandas, pyarrow and DuckDB do",
        )
    try:
        return pl.DataFrame(table)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise InputError(f"the {type(table).__name__} cannot be read: {error}") from error
