"""A table, or a folder of documents, opened: its columns and types are checked, its rows are not read yet."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.cells import patterns
from pipeline.documents.collecting import Collected, Heard, unheard
from pipeline.errors import InputError
from pipeline.places import DOCUMENTS
from pipeline.source import jsonl, standing
from pipeline.source.documents import ROW, Source
from pipeline.source.folders import found_documents, open_folder, table_of
from pipeline.source.tables import Table, open_table
from pipeline.source.where import compiled


def open_source(
    path: str,
    *,
    id: str | None = None,
    text: str | None = None,
    where: str | None = None,
    columns: Sequence[str] = (),
    encoding: str | None = None,
    separator: str | None = None,
    sheet: str | None = None,
    spool: Path = DOCUMENTS,
    heard: Heard = unheard,
    kept: Collected | None = None,
) -> Source:
    """Open the table at `path`, a file, a glob, a folder of documents or a cloud address, and check its columns.

    Documents are named by their `path` where no `id` is given; they are read when they are asked for, `heard` is told
    how many are, and their texts stay in `spool`. Those that are `kept` by a run stand for the folder, at which nobody
    looks then. Raises `InputError` for a file, a column, a type or a predicate that does not fit; what can be wrong in
    the rows is for `Source.check`.
    """
    if kept is not None:
        table, id = table_of(path, kept, None), id or "path"
    elif found := found_documents(path):
        table = open_folder(path, found, encoding, separator or sheet, spool, heard)
        id = id or "path"
    else:
        table = open_table(path, encoding, separator, id, sheet)
    if ROW in table.schema:
        raise InputError(f"{path} has a column named {ROW!r}", "rename it: the row number goes by that name")
    for pattern in patterns(table.schema):
        hint = "rename it: the library that reads tables takes it for many"
        raise InputError(f"{path} has a column or field named `{pattern}`", hint)
    for name, setting in ((id, "[input] id"), (text, "[input] text")):
        if name is not None and name not in table.schema:
            names = ", ".join(table.schema)
            raise InputError(
                f"column `{name}` is not in {path}\nIt has: {names}", table.instead(name, f" ({setting})") or setting
            )
    if id is not None:
        _refuse_kinds(table, id, "an id is text or a whole number", {jsonl.TEXT, *jsonl.WHOLE})
    if text is not None:
        _refuse_kinds(table, text, "[input] text is text in every row", {jsonl.TEXT})
    if id is not None and not _can_name(table.schema[id]):
        raise InputError(
            f"column `{id}` of {path} is {table.schema[id]}: an id is text, a whole number or a date",
            "remove `id` to use row numbers",
        )
    if text is not None and table.schema[text] not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        raise InputError(
            f"column `{text}` of {path} is {table.schema[text]}, not text ([input] text)",
            f"a template can use it as it is: {{{{ {text} }}}}",
        )
    predicate = None if where is None else compiled(table, where)
    stamps: tuple[standing.Stamp | None, ...] = tuple(table.objects.values())
    if table.is_watched and table.documents is None and not stamps:
        stamps = standing.stamps(table.paths)
    return Source(table, id, text, where, (), predicate, stamps).showing(columns)


def _refuse_kinds(table: Table, name: str, needed: str, allowed: set[str]) -> None:
    if name not in table.json_columns or table.found is None:
        return
    kinds = table.found.kinds[name]
    if others := [kind for kind in kinds if kind not in allowed]:
        told = "; ".join(f"{kind} ({kinds[kind]})" for kind in [*(set(kinds) & allowed), others[0]])
        raise InputError(f"column `{name}` of {table.path} holds {told}", f"{needed}: mend the file, or leave it out")


def _can_name(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or dtype.is_temporal() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)
