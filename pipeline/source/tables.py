"""Files on disk or in cloud storage as one table: found, compared, streamed in bounded memory."""

import difflib
import glob
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from pipeline.errors import InputError
from pipeline.source.faults import csv_fault, csv_header, csv_is_even, half_character, jsonl_fault

Kind = Literal["csv", "parquet", "jsonl"]

KINDS: dict[str, tuple[Kind, str]] = {  # suffix → (kind, separator)
    ".csv": ("csv", ","),
    ".tsv": ("csv", "\t"),
    ".parquet": ("parquet", ""),
    ".jsonl": ("jsonl", ""),
    ".ndjson": ("jsonl", ""),
}
_INSTEAD = {
    ".json": "make it JSON lines: `jq -c '.[]' in.json > out.jsonl`",
    ".xlsx": "save the sheet as CSV UTF-8",
    ".xls": "save the sheet as CSV UTF-8",
    ".txt": "give it a header line with the column's name and call it .csv",
}
_REMOTE = re.compile(r"^(?!file:)[a-z][a-z0-9+.-]+://")
_WINDOW_BYTES = 32_000_000
"""Decoded size of one Parquet window: 1.2 s per GB of text with it, 75 to 115 MB of memory above the file's own."""
_FIRST_WINDOW = 512
_WIDEST_WINDOW = 65_536
_MASK, _CELLS = "__where__", "__cells__"
_UNREADABLE = (OSError, EOFError, zlib.error)

# polars reads a CSV in blocks, two ahead for each core; its own 32 MiB take 240 MB more on two cores and no less time.
# Nothing but this variable says so; it counts for queries that start later.
os.environ.setdefault("POLARS_CSV_CHUNK_SIZE", str(4 * 2**20))


@dataclass(frozen=True)
class Table:
    """The files of one input, all with one schema. The columns of a CSV are text: a "007" comes back as it was."""

    path: str  # as it was asked for
    paths: tuple[str, ...]  # in the order they are read; one URL when remote
    kind: Kind
    separator: str
    schema: pl.Schema
    remote: bool
    json_columns: frozenset[str] = frozenset()
    """Columns of JSONL whose values are nested or of several types: String, each cell its own JSON text or null."""

    def scan(self) -> pl.LazyFrame:
        """All rows, lazily. A CSV row without a single value, such as a blank line, is no row."""
        return _scan(list(self.paths), self.kind, self.separator, self.schema, self.remote)

    def frames(self, columns: Sequence[str | pl.Expr], where: pl.Expr | None, size: int) -> Iterator[pl.DataFrame]:
        """`columns` of the rows that `where` lets through, in file order, in frames of at most `size` rows."""
        frames: Iterator[pl.DataFrame]
        if self.kind == "parquet" and not self.remote:
            frames = (
                frame for path in self.paths for frame in _windows(pl.scan_parquet(path, glob=False), columns, where)
            )
        else:
            rows = self.scan() if where is None else self.scan().filter(where)
            frames = rows.select(columns).collect_batches(chunk_size=size, maintain_order=True, lazy=True)
        with explained(self):
            for frame in frames:
                yield from frame.iter_slices(size)

    def checked(self, columns: Sequence[str], where: pl.Expr | None, size: int) -> Iterator[pl.DataFrame]:
        """As `frames`, but refuses what they pass over: a CSV row too long or too short, half a character in JSONL.

        Reads every cell of a CSV, so bytes that are not UTF-8 come to light too.
        """
        if self.kind == "jsonl" and not self.remote:
            _raise_first(half_character(path) for path in self.paths)
        if self.kind != "csv":
            yield from self.frames(columns, where, size)
            return
        last = pl.col(self.schema.names()[-1])
        every_cell = pl.when(last.is_not_null()).then(pl.sum_horizontal(pl.all().str.len_bytes()))
        passes = pl.lit(True) if where is None else where
        filled = True
        for frame in self.frames([*columns, every_cell.alias(_CELLS), passes.alias(_MASK)], None, size):
            filled = filled and not frame[_CELLS].null_count()
            yield frame.filter(_MASK).select(columns)
        # The reader fills a short row with nulls: only a table whose last column has none is known to be even.
        if not filled and not self.remote:
            names = self.schema.names()
            uneven = (path for path in self.paths if not csv_is_even(path, self.separator, len(names)))
            _raise_first(csv_fault(path, self.separator, names) for path in uneven)

    def raise_fault(self) -> None:
        """Raise the `InputError` that names the file and the line, if reading row by row finds the fault."""
        if self.kind == "csv" and not self.remote:
            _raise_first(csv_fault(path, self.separator, self.schema.names()) for path in self.paths)
        if self.kind == "jsonl" and not self.remote:
            _raise_first(jsonl_fault(path) for path in self.paths)


def open_table(path: str) -> Table:
    """Find the files and their schema. Raises `InputError` for whatever is wrong with the files as such.

    A JSONL file is read once for its schema, since a key may first appear on its last line.
    """
    remote = _REMOTE.match(path) is not None
    paths = [path] if remote else _find(path)
    kind, separator = _kind_of(paths)
    schemas = []
    for one in paths:
        opened = Table(one, (one,), kind, separator, pl.Schema(), remote)
        with explained(opened):
            schemas.append(_schema(one, kind, separator, remote))
    schema = _merged(paths, schemas) if kind == "jsonl" else _common(paths, schemas, ordered=kind == "csv")
    return Table(path, tuple(paths), kind, separator, schema, remote)


@contextmanager
def explained(table: Table) -> Iterator[None]:
    """Turn a reader's error into an `InputError` that names the file, and the line where that can be found."""
    failures = (Exception,) if table.remote else (pl.exceptions.PolarsError, *_UNREADABLE)  # credential helpers: any
    try:
        yield
    except InputError:
        raise
    except pl.exceptions.InvalidOperationError as error:  # only `where` computes anything
        raise InputError(
            f"[input] where fails on {table.path}: {_first_line(error)}",
            "TRY_CAST gives null where a value does not convert",
        ) from None
    except failures as error:
        with suppress(*_UNREADABLE):
            table.raise_fault()
        hint = "check the address and the credentials" if table.remote else "it may be cut off or damaged"
        if table.kind == "parquet" and isinstance(error, pl.exceptions.PolarsError) and not table.remote:
            reason = _first_line(error).removeprefix("parquet: ")
            raise InputError(f"{table.path} is not a whole Parquet file: {reason}", hint) from None
        raise InputError(f"cannot read {table.path}: {_first_line(error)}", hint) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _scan(paths: list[str], kind: Kind, separator: str, schema: pl.Schema | None, remote: bool) -> pl.LazyFrame:
    if kind == "parquet":
        return pl.scan_parquet(paths, glob=remote)
    if kind == "jsonl":
        names = paths if remote else [glob.escape(path) for path in paths]  # this reader always expands patterns
        return pl.scan_ndjson(names, schema=schema, infer_schema_length=None)
    rows = pl.scan_csv(paths, separator=separator, infer_schema=False, glob=remote)
    return rows.filter(~pl.all_horizontal(pl.all().is_null()))


def _windows(rows: pl.LazyFrame, columns: Sequence[str | pl.Expr], where: pl.Expr | None) -> Iterator[pl.DataFrame]:
    """Read a Parquet file slice by slice, as many rows at a time as fit `_WINDOW_BYTES`.

    A file that is one row group costs its compressed size in memory this way; a streaming query would decode it whole
    (2.9 GB for 2 GB of text).
    """
    wanted = rows.select(columns) if where is None else rows.select(*columns, where.alias(_MASK))
    height = rows.select(pl.len()).collect().item()
    start, count = 0, _FIRST_WINDOW
    while start < height:
        window = wanted.slice(start, count).collect(engine="in-memory")
        start += window.height
        fitting = _WINDOW_BYTES * window.height // max(1, int(window.estimated_size()))
        count = max(1, min(fitting, 4 * count, _WIDEST_WINDOW))
        yield window if where is None else window.filter(_MASK).drop(_MASK)


def _find(path: str) -> list[str]:
    at = Path(path)
    if at.is_file():
        return [path]
    if at.is_dir():
        suffixes = sorted({file.suffix for file in at.iterdir() if file.suffix in KINDS})
        hint = f"name its files: `{at}/*{suffixes[0]}`" if suffixes else "there is no table in it"
        raise InputError(f"{path} is a directory", hint)
    if glob.has_magic(path):
        if files := sorted(file for file in glob.glob(path, recursive=True) if Path(file).is_file()):  # noqa: PTH207
            return files
        raise InputError(f"no file matches {path}", _nearby(at) or "paths are relative to the directory you are in")
    raise InputError(f"there is no {path}", _nearby(at) or "paths are relative to the directory you are in")


def _nearby(at: Path) -> str:
    if not at.parent.is_dir():
        return f"there is no directory {at.parent}"
    names = sorted(file.name for file in at.parent.iterdir() if _suffix(file.name) in KINDS)
    if close := difflib.get_close_matches(at.name, names, n=1):
        return f"did you mean `{at.parent / close[0]}`?"
    return f"{at.parent} has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else ""


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def _kind_of(paths: Sequence[str]) -> tuple[Kind, str]:
    for path in paths:
        suffix = _suffix(path)
        if suffix not in KINDS or (path.endswith(".gz") and suffix == ".parquet"):
            known = f"the known ones are {' '.join(KINDS)}, text also with .gz"
            raise InputError(f"{path} is not a kind of table that can be read", _INSTEAD.get(suffix, known))
        if KINDS[suffix] != KINDS[_suffix(paths[0])]:
            raise InputError(f"{paths[0]} and {path} are of different kinds", "one run reads tables of one kind")
    return KINDS[_suffix(paths[0])]


def _schema(path: str, kind: Kind, separator: str, remote: bool) -> pl.Schema:
    if remote:
        return _scan([path], kind, separator, None, remote).collect_schema()
    if Path(path).stat().st_size == 0:
        raise InputError(f"{path} is empty", "a table has at least a header")
    if kind == "csv":
        return pl.Schema(dict.fromkeys(csv_header(path, separator), pl.String()))
    return _scan([path], kind, separator, None, remote).collect_schema()


def _common(paths: Sequence[str], schemas: Sequence[pl.Schema], ordered: bool) -> pl.Schema:
    first = schemas[0]
    for path, schema in zip(paths, schemas, strict=True):
        if missing := [name for name in first if name not in schema]:
            raise InputError(f"{path} has no column `{missing[0]}`, which {paths[0]} has", _same_columns(first))
        if extra := [name for name in schema if name not in first]:
            raise InputError(f"{path} has a column `{extra[0]}` that {paths[0]} has not", _same_columns(first))
        if changed := [name for name in first if first[name] != schema[name]]:
            name = changed[0]
            raise InputError(
                f"column `{name}` is {schema[name]} in {path} and {first[name]} in {paths[0]}",
                "the files of one input have the same columns",
            )
        if ordered and list(schema) != list(first):
            raise InputError(f"{path} has its columns in another order than {paths[0]}", _same_columns(first))
    return first


def _merged(paths: Sequence[str], schemas: Sequence[pl.Schema]) -> pl.Schema:
    merged = schemas[0]
    for path, schema in zip(paths[1:], schemas[1:], strict=True):
        try:
            pair = [pl.DataFrame(schema=merged), pl.DataFrame(schema=schema)]
            merged = pl.concat(pair, how="diagonal_relaxed").schema
        except pl.exceptions.PolarsError as error:
            raise InputError(f"{path} does not fit the files before it: {_first_line(error)}") from None
    return merged


def _same_columns(schema: pl.Schema) -> str:
    return f"the files of one input have the same columns, here {', '.join(schema)}"


def _raise_first(faults: Iterator[InputError | None]) -> None:
    for fault in faults:
        if fault:
            raise fault
