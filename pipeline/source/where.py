"""What stands behind `where`: an SQL condition on one row, compiled; what looks at more than the row is refused."""

import re

import orjson
import polars as pl

from pipeline.errors import InputError
from pipeline.source.tables import Table

_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_CLOCK = re.compile(r"\b(now\s*\(|current_(date|time|timestamp)\b|localtime(stamp)?\b)", re.IGNORECASE)
_OVER_ROWS = {"Agg", "Over", "Len", "SubPlan", "Rank", "Shift"}


def compiled(table: Table, where: str) -> pl.Expr:
    """The condition of `[input] where`. Raises `InputError` for one that does not fit the table."""
    try:
        predicate = pl.sql_expr(where)
        one_by_one = _is_row_by_row(orjson.loads(predicate.meta.serialize(format="json")))
        dtype = pl.DataFrame(schema=table.where_schema).select(predicate.alias("where")).schema["where"]
    except pl.exceptions.ColumnNotFoundError as error:
        found = re.search(r'unable to find column "(.*?)"', str(error))
        raise _unknown_in_where(table, where, found[1] if found else "?") from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        hint = "it is what stands behind WHERE in SQL, for instance lang = 'en' AND year > 2020"
        if "compare" in reason or "is_in" in reason:
            hint = "a column of text is compared with numbers by way of TRY_CAST(column AS DOUBLE)"
        raise InputError(f"[input] where = {where!r}: {reason}", hint) from None
    if dtype != pl.Boolean:
        raise InputError(f"[input] where = {where!r} is {dtype}, not true or false", "compare it with something")
    if _CLOCK.search(_QUOTED.sub("''", where)):  # a later session would number other rows, and hold them to be done
        raise InputError(
            f"[input] where = {where!r} lets other rows through at another time",
            "write the time itself: day >= DATE '2026-11-29'; a column of such a name stands in double quotes",
        )
    if not one_by_one:
        raise InputError(
            f"[input] where = {where!r} looks at more than one row", "aggregates and windows need a table made before"
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


def _unknown_in_where(table: Table, where: str, name: str) -> InputError:
    hint = table.instead(name) or f"columns are {', '.join(table.schema)}"
    if f'"{name}"' in where:
        hint = f"text stands in single quotes: '{name}'"
    return InputError(f"[input] where = {where!r}: column `{name}` is not in {table.path}", hint)
