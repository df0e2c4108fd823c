"""Files on disk or in cloud storage as one table: found, compared, streamed in bounded memory."""

import codecs
import difflib
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import polars as pl

from pipeline.cells import leaves, types
from pipeline.documents.collecting import Collected
from pipeline.errors import InputError, PipelineError
from pipeline.source import jsonl
from pipeline.source import remote as remote_objects
from pipeline.source.csvs import CsvFile, open_csv, separator_setting, stamp
from pipeline.source.finding import KINDS as KINDS
from pipeline.source.finding import Kind, find, kind_of
from pipeline.source.partitions import Cells, partitions
from pipeline.source.sheets import read_sheet
from pipeline.source.standing import Stamp
from pipeline.source.text import refuse_disguise
from pipeline.urls import is_url

_REMOTE = re.compile(r"^(?!file:)[a-z][a-z0-9+.-]+://")
_WINDOW_BYTES = 32_000_000
"""Decoded size of one Parquet window: 1.2 s per GB of text with it, 75 to 115 MB of memory above the file's own."""
_FIRST_WINDOW = 512
_WIDEST_WINDOW = 65_536
_WIDENING = (
    (pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64(), pl.Int128()),
    (pl.UInt8(), pl.UInt16(), pl.UInt32(), pl.UInt64()),
)
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_INTERVAL = pl.Struct({"months": pl.Int32(), "days": pl.Int32(), "nanoseconds": pl.Duration("ns")})
"""What polars takes an interval for, whose values it cannot read."""
_UNREADABLE = (OSError, EOFError, zlib.error)

# Over a zone that it does not know polars would panic: `_refuse_types` names the column.
os.environ.setdefault("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", "1")


class Span(NamedTuple):
    """Rows of a Parquet file that stand together."""

    first: int
    rows: int


@dataclass(frozen=True)
class Table:
    """The files of one input, all with one schema. The columns of a CSV are text: a "007" comes back as it was."""

    path: str  # as it was asked for
    paths: tuple[str, ...]  # in the order they are read
    kind: Kind
    separator: str
    schema: pl.Schema  # with the columns that stand on the paths
    remote: bool  # Parquet that is read from afar
    encoding: str | None = None  # of CSV and JSONL; None is UTF-8
    found: jsonl.Found | None = None  # what stands in JSONL
    on_path: Mapping[str, Cells] = field(default_factory=dict)  # by path: columns of one value in all its rows
    stamps: tuple[tuple[int, ...], ...] = ()  # of the files, when the table was opened
    documents: Collected | None = None  # one a row, whatever becomes of their files
    sheets: Mapping[str, pl.DataFrame] = field(default_factory=dict)  # by path
    objects: Mapping[str, Stamp] = field(default_factory=dict)  # in storage, as they were when the table was opened
    spans: Mapping[str, Span] = field(default_factory=dict)  # by path: of a part of a table, which is all Parquet

    @property
    def changed(self) -> bool:
        """Whether a file is not what it was when the table was opened, by its size and time of change."""
        return self.stamps != (() if self.remote or self.documents else tuple(map(stamp, self.paths)))

    @property
    def is_watched(self) -> bool:
        """Whether anybody can tell that it changes: of an address that is none of object storage nobody can."""
        return not self.remote or bool(self.objects)

    @property
    def json_columns(self) -> frozenset[str]:
        """Columns of JSONL whose values are nested or of several types: each cell is its own JSON text or null."""
        return self.found.json if self.found else frozenset()

    @property
    def where_schema(self) -> pl.Schema:
        """The types that `where` sees: as `schema`, but JSON that is nothing but numbers counts as such."""
        return pl.Schema({**self.schema, **(self.found.numbers if self.found else {})})

    @property
    def is_documents(self) -> bool:
        """Whether each row is a document of a folder."""
        return self.kind == "documents"

    def heights(self) -> list[int]:
        """Number of rows of each Parquet file."""
        with explained(self):
            counts = pl.collect_all(_scan(path, self).select(pl.len()) for path in self.paths)
            return [int(count.item()) for count in counts]

    def height(self) -> int | None:
        """Number of rows, where that is known without reading them; a CSV's bytes are looked at."""
        if self.spans:
            return sum(span.rows for span in self.spans.values())
        if self.documents is not None:
            return self.documents.height
        if self.sheets:
            return sum(sheet.height for sheet in self.sheets.values())
        with explained(self):
            if self.kind == "parquet":
                return sum(self.heights())
            if self.kind == "csv":
                found = [self._csv(path).plain for path in self.paths]
                known = [one.lines for one in found if one is not None and not one.blank]
                return sum(known) if len(known) == len(found) else None
            return self.found.rows if self.found else None

    def instead(self, name: str, place: str = "") -> str:
        """What somebody may mean who names a column that is not there; empty where nothing is like it."""
        names = list(self.schema)
        for separator in (";", "\t", "|"):
            if self.kind == "csv" and len(names) == 1 and separator in names[0]:
                return f"the file seems to separate cells by {separator!r}: `{separator_setting(separator)}` reads it"
        close = difflib.get_close_matches(name, names, n=1)
        close = [each for each in names if each.casefold() == name.casefold()] or close
        return f"did you mean `{close[0]}`?{place}" if close else ""

    def frames(
        self, columns: Sequence[str], where: pl.Expr | None, size: int, numbered: str = "", most: int | None = None
    ) -> Iterator[pl.DataFrame]:
        """`columns` of the rows that `where` lets through, in file order, in frames of at most `size` rows.

        Of documents those of the first `most` rows are read (None: of all), and no others are there.
        A column `numbered` beside them has the number of each row in the input, from 0, whatever `where` leaves out.
        Raises `InputError` for anything in a text file that could be read in more than one way, also in rows and
        columns that are not asked for. A CSV row without a single value, such as a blank line, is no row.
        """
        if self.documents is not None:
            with explained(self):
                yield from self.documents.frames(columns, where, size, numbered, most)
            return
        asked = [] if where is None else list(dict.fromkeys(where.meta.root_names()))
        needed = list(dict.fromkeys([*columns, *asked]))
        numbers = [pl.col(name).cast(self.where_schema[name]) for name in asked if name in self.json_columns]
        shown, seen = [*columns, *([numbered] if numbered else [])], 0
        with explained(self):
            for path in self.paths:
                cells = {name: cell for name, cell in self.on_path.get(path, {}).items() if name in needed}
                fixed = [pl.lit(cell, self.schema[name]).alias(name) for name, cell in cells.items()]
                own = [name for name in needed if name not in cells] or self._own_names[:1]
                for frame in self._read(path, own, size):
                    whole = frame.with_columns(fixed) if fixed else frame
                    if numbered:
                        whole, seen = whole.with_row_index(numbered, seen), seen + whole.height
                    if where is not None and numbers:
                        whole = whole.filter(whole.with_columns(numbers).select(where).to_series())
                    elif where is not None:
                        whole = whole.filter(where)
                    yield from whole.select(shown).iter_slices(size)

    @property
    def _own_names(self) -> list[str]:
        """Columns that stand in the files themselves."""
        on_path = self.on_path.get(self.paths[0], {})
        return [name for name in self.schema if name not in on_path]

    def _read(self, path: str, columns: list[str], size: int) -> Iterator[pl.DataFrame]:
        if self.sheets:
            return self.sheets[path].select(columns).iter_slices(size)
        if self.kind == "parquet" or self.spans:
            rows = _scan(path, self).select(columns)
            if span := self.spans.get(path):
                rows = rows.slice(*span)
            written = rows.collect_schema()
            wider = [name for name in columns if written[name] != self.schema.get(name, written[name])]
            rows = rows.with_columns(pl.col(name).cast(self.schema[name]) for name in wider)
            if self.remote:  # each window would be fetched with all of its row group
                return rows.collect_batches(chunk_size=size, maintain_order=True, lazy=True)
            return _windows(rows)
        if self.kind == "csv":
            return self._csv(path).frames(columns, size)
        schema = {name: self.schema[name] for name in columns}
        return jsonl.frames(path, self.encoding, schema, self.json_columns, size)

    def _csv(self, path: str) -> CsvFile:
        return CsvFile(path, self.separator, self.encoding, tuple(self._own_names))


def is_remote(path: str) -> bool:
    """Whether it is an address: of object storage, or another that polars reads."""
    return _REMOTE.match(path) is not None


def open_table(
    path: str,
    encoding: str | None = None,
    separator: str | None = None,
    id: str | None = None,
    sheet: str | None = None,
) -> Table:
    """Find the files and their schema. Raises `InputError` for whatever is wrong with the files as such.

    A JSONL file is read once for its schema, since a key may first appear on its last line, and for what its ids are.
    """
    remote, objects = is_remote(path), dict[str, Stamp]()
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    if is_url(path):
        objects = remote_objects.find(path)
    paths = [*objects] or ([path] if remote else find(path))
    kind, usual = kind_of(paths)
    if separator is not None and kind != "csv":
        raise InputError(f"{path} is not read by [input] separator", "it is for .csv files")
    separator = separator or usual
    encoding = None if encoding is None or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig") else encoding
    if remote and kind != "parquet":
        if not is_url(path):
            raise InputError(
                f"{path} is {kind.upper()} at an address of the web, which is not read",
                "copy it here or into object storage first, or make it Parquet, which is read where it lies",
            )
        remote, paths = False, remote_objects.fetched(objects)
    if encoding and kind not in ("csv", "jsonl"):
        raise InputError(f"{path} is not read by [input] encoding", "it is for .csv and .jsonl")
    if sheet is not None and kind != "sheet":
        raise InputError(f"{path} has no sheets", "[input] sheet is for .xlsx files: leave it out")
    table = Table(path, tuple(paths), kind, separator, pl.Schema(), remote, encoding, objects=objects)
    with explained(table):
        if remote and not is_url(path):
            schema = _scan(path, table).collect_schema()
            _refuse_types(path, schema)
            return replace(table, schema=schema)
        here = () if remote else paths
        table = replace(table, stamps=tuple(map(stamp, here)))
        for one in here:
            if Path(one).stat().st_size == 0:
                raise InputError(f"{one} is empty", "a table has at least a header")
            if kind in ("csv", "jsonl"):
                refuse_disguise(one, encoding)
        if kind == "jsonl":
            found = jsonl.look(paths, encoding, id)
            if not found.kinds:
                raise InputError(f"{path} is empty", 'each line is one object: {"column": value, …}')
            own, table = found.schema, replace(table, found=found)
        elif kind == "sheet":
            table = replace(table, sheets={one: read_sheet(one, sheet) for one in paths})
            own = _common(paths, [each.schema for each in table.sheets.values()], ordered=True)
        else:
            own = _common(paths, _schemas(paths, table), ordered=kind == "csv")
    on_paths, cells = partitions(paths, own, texts=kind in ("csv", "sheet"))
    return replace(table, schema=pl.Schema({**own, **on_paths}), on_path=cells)


@contextmanager
def explained(table: Table) -> Iterator[None]:
    """Turn a reader's error into an `InputError` that names the file, and the line where that can be found."""
    failures = (Exception,) if table.remote else (pl.exceptions.PolarsError, *_UNREADABLE)  # credential helpers: any
    try:
        yield
    except PipelineError:
        raise
    except pl.exceptions.DuplicateError as error:
        name = (re.findall("'(.*)'", str(error)) or ["?"])[0]
        raise InputError(f"{table.path}: two columns are named `{name}`", "rename one of them") from None
    except pl.exceptions.InvalidOperationError as error:  # only `where` computes anything
        raise InputError(
            f"[input] where fails on {table.path}: {_first_line(error)}",
            "TRY_CAST gives null where a value does not convert",
        ) from None
    except failures as error:
        reason = _first_line(error)
        if table.remote and not reason.startswith("parquet: "):
            raise InputError(f"cannot read {table.path}: {reason}", "check the address and the credentials") from None
        damaged = "it may be cut off or damaged"
        if (table.kind == "parquet" or table.spans) and isinstance(error, pl.exceptions.PolarsError):
            told = reason.removeprefix("parquet: ")
            raise InputError(f"{table.path} is not a whole Parquet file: {told}", damaged) from None
        raise InputError(f"cannot read {table.path}: {reason}", damaged) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _scan(path: str, table: Table) -> pl.LazyFrame:
    """A Parquet file, or all that a remote address means."""
    many = not table.is_watched
    rows = pl.scan_parquet(path, glob=many, hive_partitioning=None if many else False)
    extended = [name for name, dtype in rows.collect_schema().items() if isinstance(dtype, pl.BaseExtension)]
    return rows.with_columns(pl.col(extended).ext.storage()) if extended else rows  # arrow.json is text


def _windows(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Read a Parquet file slice by slice, as many rows at a time as fit `_WINDOW_BYTES`.

    A file that is one row group costs its compressed size in memory this way; a streaming query would decode it whole
    (2.9 GB for 2 GB of text).
    """
    height = rows.select(pl.len()).collect().item()
    start, count = 0, _FIRST_WINDOW
    while start < height:
        window = rows.slice(start, count).collect(engine="in-memory")
        start += window.height
        fitting = _WINDOW_BYTES * window.height // max(1, int(window.estimated_size()))
        count = max(1, min(fitting, 4 * count, _WIDEST_WINDOW))
        yield window


def _schemas(paths: Sequence[str], table: Table) -> list[pl.Schema]:
    if not table.remote:
        return [_schema(path, table) for path in paths]
    with ThreadPoolExecutor(remote_objects.AT_ONCE) as pool:
        return list(pool.map(_schema, paths, repeat(table)))


def _schema(path: str, table: Table) -> pl.Schema:
    if table.kind == "parquet":
        schema = _scan(path, table).collect_schema()
        _refuse_types(path, schema)
        return schema
    return pl.Schema(dict.fromkeys(open_csv(path, table.separator, table.encoding).names, pl.String()))


def _refuse_types(path: str, schema: pl.Schema) -> None:
    """Raise `InputError` for a column whose values polars cannot hold, or cannot compute with."""
    for name, dtype in schema.items():
        zones = (getattr(leaf, "time_zone", None) for leaf in leaves(dtype))
        for zone in filter(None, zones):
            if not _is_zone(zone):
                raise InputError(
                    f'column `{name}` of {path} holds times in "{zone}", which is no zone with a name',
                    'write them in UTC, as pandas does after `.dt.tz_convert("UTC")`, or in a named zone',
                )
        unread = (each for each in types(dtype) if each == _INTERVAL or isinstance(each, pl.BaseExtension))
        for each in unread:
            what = "an interval" if each == _INTERVAL else f"{each} within another type"
            raise InputError(f"column `{name}` of {path} is {what}, which is not read", "write it as text")
        try:
            pl.Series(name, [None], dtype)
        except pl.exceptions.PolarsError as error:
            hint = "write it as text, or as a number of 38 digits at most"
            raise InputError(f"column `{name}` of {path} is {dtype}: {_first_line(error)}", hint) from None


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _common(paths: Sequence[str], schemas: Sequence[pl.Schema], ordered: bool) -> pl.Schema:
    first = schemas[0]
    common = pl.Schema(first)
    for path, schema in zip(paths, schemas, strict=True):
        if missing := [name for name in first if name not in schema]:
            raise InputError(f"{path} has no column `{missing[0]}`, which {paths[0]} has", _same_columns(first))
        if extra := [name for name in schema if name not in first]:
            raise InputError(f"{path} has a column `{extra[0]}` that {paths[0]} has not", _same_columns(first))
        for name, known in common.items():
            wider = _wider(known, schema[name])
            if wider is None:
                other = next(path for path, schema in zip(paths, schemas, strict=True) if schema[name] == known)
                raise InputError(
                    f"column `{name}` is {schema[name]} in {path} and {known} in {other}",
                    "the files of one input have the same columns, each of one type",
                )
            common[name] = wider
        if ordered and list(schema) != list(first):
            raise InputError(f"{path} has its columns in another order than {paths[0]}", _same_columns(first))
    return common


def _wider(one: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    """The type that holds the values of both as they are."""
    if one == other or other == pl.Null:
        return one
    if one == pl.Null:
        return other
    for widening in _WIDENING:
        if one in widening and other in widening:
            return max(one, other, key=widening.index)
    return pl.String() if one in _TEXTS and other in _TEXTS else None


def _same_columns(schema: pl.Schema) -> str:
    return f"the files of one input have the same columns, here {', '.join(schema)}"
