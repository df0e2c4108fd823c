"""What stands behind a `where`: an SQL condition on one row, compiled; what looks at more than the row is refused."""

import re
from collections.abc import Mapping

import orjson
import polars as pl

from pipeline.errors import InputError
from pipeline.source.tables import Table

_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_CLOCK = re.compile(r"\b(now\s*\(|current_(date|time|timestamp)\b|localtime(stamp)?\b)", re.IGNORECASE)
_OVER_ROWS = {"Agg", "Over", "Len", "SubPlan", "Rank", "Shift"}


def compiled(
    table: Table, where: str, setting: str = "[input] where", more: Mapping[str, pl.DataType] | None = None
) -> pl.Expr:
    """The condition of a setting, over the table's columns and `more`. Raises `InputError` for what does not fit."""
    try:
        predicate = pl.sql_expr(where)
        one_by_one = _is_row_by_row(orjson.loads(predicate.meta.serialize(format="json")))
        empty = pl.DataFrame(schema={**table.where_schema, **(more or {})})
        dtype = empty.select(predicate.alias("where")).schema["where"]
    except pl.exceptions.ColumnNotFoundError as error:
        found = re.search(r'unable to find column "(.*?)"', str(error))
        raise _unknown_in_where(table, f"{setting} = {where!r}", found[1] if found else "?") from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        hint = "it is what stands behind WHERE in SQL, for instance lang = 'en' AND year > 2020"
        if "compare" in reason or "is_in" in reason:
            hint = "a column of text is compared with numbers by way of TRY_CAST(column AS DOUBLE)"
        raise InputError(f"{setting} = {where!r}: {reason}", hint) from None
    if dtype != pl.Boolean:
        raise InputError(f"{setting} = {where!r} is {dtype}, not true or false", "compare it with something")
    if _CLOCK.search(_QUOTED.sub("''", where)):  # a later session would number other rows, and hold them to be done
        raise InputError(
            f"{setting} = {where!r} lets other rows through at another time",
            "write the time itself: day >= DATE '2026-11-29'; a column of such a name stands in double quotes",
        )
    if not one_by_one:
        raise InputError(
            f"{setting} = {where!r} looks at more than one row", "aggregates and windows need a table made before"
        )
    return predicate


def _is_row_by_row(node: object) -> bool:
    if isinstance(node, str):
        return node not in _OVER_ROWS
    if isinstance(node, list):
        return all(map(_is_row_by_row, node))
    if isinstance(node, dict):
        inner = ((key, value) for key, value in node.items() if key not in ("Column", "Literal"))
        return all(key not in _OVER_ROWS and _is_row_by_row(value) for key, value in inner)
    return True


def _unknown_in_where(table: Table, said: str, name: str) -> InputError:
    hint = table.instead(name) or f"columns are {', '.join(table.schema)}"
    if f'"{name}"' in said:
        hint = f"text stands in single quotes: '{name}'"
    return InputError(f"{said}: column `{name}` is not in {table.path}", hint)
