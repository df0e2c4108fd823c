"""Conditions that an answer is held to beside its schema, in SQL over its text, its columns and its prompt's size."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.schemas.columns import Column
from pipeline.schemas.mistake import SchemaError

RESPONSE, INPUT_TOKENS = "response", "input_tokens"
_CLOCK = re.compile(r"\b(now\s*\(|current_(date|time|timestamp)\b|localtime(stamp)?\b)", re.IGNORECASE)
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")

_HINTS = (
    (r"found '\w+' clause", 'a column that is called as a word of SQL stands in double quotes: "order"'),
    (r"expected `String`, got `list", "ARRAY_LENGTH counts what a list has"),
    (r"cannot compare 'date", "a date is written DATE '2026-01-31'"),
    (r"unsupported function", "docs/structured.md names those that there are"),
)
"""What helps where polars says so."""


@dataclass(frozen=True, eq=False, slots=True)
class Checks:
    """Compiled conditions over one answer."""

    conditions: tuple[pl.Expr, ...]
    columns: tuple[Column, ...]

    def failed(self, text: str, value: Any, input_tokens: int) -> list[int]:
        """Numbers of the conditions that do not hold for an answer: of its text and, with columns, of its JSON value.

        One that is null, or that fails on the values, does not hold.
        """
        cells = {RESPONSE: text, INPUT_TOKENS: input_tokens}
        cells |= {column.name: column.cell(value) for column in self.columns}
        frame = pl.DataFrame({name: [cell] for name, cell in cells.items()}, schema=_schema(self.columns))
        try:
            held: Sequence[object] = frame.select(self.conditions).row(0)
        except pl.exceptions.PolarsError:
            held = [_holds(frame, condition) for condition in self.conditions]
        return [number for number, each in enumerate(held) if each is not True]


def checks_of(conditions: Sequence[str], columns: Sequence[Column]) -> Checks:
    """Compile the conditions. Raises `SchemaError` for one that is no condition on one answer."""
    names = {column.name for column in columns}
    if taken := names & {RESPONSE, INPUT_TOKENS}:
        raise SchemaError(f"the answer has a property `{min(taken)}`", "call it otherwise, or set [output] prefix")
    empty = pl.DataFrame(schema=_schema(columns))
    return Checks(
        tuple(_compiled(condition, number, empty) for number, condition in enumerate(conditions)), tuple(columns)
    )


def _compiled(condition: str, number: int, empty: pl.DataFrame) -> pl.Expr:
    if _CLOCK.search(_QUOTED.sub("''", condition)):  # a run that goes on would judge by another time
        raise SchemaError(f"holds = {condition!r} is another condition at another time", "write the time itself")
    try:
        expression = pl.sql_expr(condition).alias(str(number))
        made = empty.select(expression)
    except pl.exceptions.ColumnNotFoundError as error:
        found = re.search(r'unable to find column "(.*?)"', str(error))
        hint = f"there are {', '.join(empty.columns)}; text stands in single quotes"
        raise SchemaError(f"holds = {condition!r}: there is no column `{found[1] if found else '?'}`", hint) from None
    except pl.exceptions.PolarsError as error:
        told = str(error).splitlines()[0]
        hint = next((hint for said, hint in _HINTS if re.search(said, told)), "")
        raise SchemaError(f"holds = {condition!r}: {told}", hint) from None
    dtype = made.schema[str(number)]
    if dtype != pl.Boolean:
        raise SchemaError(f"holds = {condition!r} is {dtype}, not true or false", "compare it with something")
    if made.height:  # of no answer at all: it does not go answer by answer
        raise SchemaError(f"holds = {condition!r} is no condition on one answer", "compare a column, and count nothing")
    return expression


def _schema(columns: Sequence[Column]) -> Mapping[str, pl.DataType]:
    return {RESPONSE: pl.String(), INPUT_TOKENS: pl.Int64(), **{column.name: column.dtype for column in columns}}


def _holds(frame: pl.DataFrame, condition: pl.Expr) -> bool:
    try:
        return frame.select(condition).item() is True
    except pl.exceptions.PolarsError:
        return False
