"""Parts of a table as sources of their own: a range of rows of its Parquet files, or a copy of some of its rows.

Each can be pickled and opened in another process, whatever folder that runs in; nothing of the whole table is read.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from pipeline.errors import RunStateError
from pipeline.source import standing
from pipeline.source.csvs import stamp
from pipeline.source.documents import Part, Source
from pipeline.source.files import Files
from pipeline.source.tables import Span, Table

_ROWS = "rows"


def spanned(source: Source, first_row: int, rows: int, spans: Sequence[tuple[int, Span]]) -> Source:
    """So many rows, from `first_row` of those that `where` lets through: those in `spans` of a Parquet table's files.

    A span names its file by its place among `source.paths`.
    """
    table = source.table
    files = [(table.paths[at] if table.remote else os.path.abspath(table.paths[at]), at, span) for at, span in spans]  # noqa: PTH100
    part = replace(
        table,
        paths=tuple(path for path, _, _ in files),
        on_path={path: table.on_path.get(table.paths[at], {}) for path, at, _ in files},
        stamps=tuple(table.stamps[at] for _, at, _ in files if table.stamps),
        spans={path: span for path, _, span in files},
        objects={path: table.objects[path] for path, _, _ in files if table.objects},
    )
    stamps = tuple(source.stamps[at] for _, at, _ in files if source.stamps)
    return _part(source, part, first_row, rows, stamps, source.whole_fingerprint)


def copied(source: Source, first_row: int, rows: int, path: Path) -> Source:
    """So many rows, from `first_row` of those that `where` lets through, of which `path` is a copy as Parquet.

    It has every column of the table, and those of documents that no template sees.
    """
    return placed(to_be_copied(source, first_row, rows), path)


def to_be_copied(source: Source, first_row: int, rows: int) -> Source:
    """The same before it is known where the copy lies: to be `placed` by whoever has it."""
    part = replace(
        source.table,
        path="",
        paths=(),
        remote=False,
        objects={},
        on_path={},
        stamps=(),
        documents=None,
        sheets={},
        spans={},
    )
    chosen = replace(source, where=None, predicate=None)
    return _part(chosen, part, first_row, rows, (), source.whole_fingerprint)


def note_of(whole: str, first_row: int, rows: int) -> dict[str, str]:
    """What the metadata of a copy says: of which table, by its fingerprint, it has which rows."""
    return {_ROWS: f"{whole} {first_row} {rows}"}


def other_rows(place: object) -> RunStateError:
    """What to tell of a copy that is not what was written there."""
    return RunStateError(
        f"{place} is damaged, or has other rows than those of its shard",
        "restore it from a backup, or begin anew with `--fresh`, which keeps the answers beside",
    )


def placed(source: Source, path: Path) -> Source:
    """A source of rows that are copied, with their copy at `path`. Raises `RunStateError` for a copy of others."""
    assert source.part is not None
    try:
        told = pl.read_parquet_metadata(path).get(_ROWS)
    except pl.exceptions.PolarsError:
        raise other_rows(path) from None
    if told not in (None, note_of(source.part.whole, source.part.first_row, source.part.rows)[_ROWS]):
        raise other_rows(path)  # an older version noted nothing
    place = os.path.abspath(path)  # noqa: PTH100  links stay what they are
    spans = {place: Span(0, source.part.rows)}
    table = replace(source.table, path=place, paths=(place,), stamps=(stamp(place),), spans=spans)
    return replace(source, table=table, stamps=standing.stamps([place]))


def _part(
    source: Source, table: Table, first_row: int, rows: int, stamps: tuple[standing.Stamp | None, ...], whole: str
) -> Source:
    found = table.found and replace(table.found, rows=rows, repeated=None, nameless=None)
    return replace(
        source,
        table=replace(table, found=found),
        stamps=stamps,
        files=source.files and _anywhere(source.files),
        part=Part(first_row, rows, whole),
        most=None,
    )


def _anywhere(files: Files) -> Files:
    """The same, wherever the process that reads them runs."""
    root = None if files.root is None else files.root.absolute()
    return replace(files, root=root, _guessed=set(), _known={})
