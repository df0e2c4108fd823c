"""Which rule of a job a row falls under: the first whose condition holds for its columns and its size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from pipeline.errors import InputError
from pipeline.source.tables import Table
from pipeline.source.where import compiled

INPUT_TOKENS = "input_tokens"
"""What a condition calls the estimated tokens of all that the templates insert from the row, before it is cut."""


@dataclass(frozen=True)
class Rules:
    """Conditions, compiled; a row under none of them falls under the one after the last."""

    conditions: tuple[pl.Expr, ...]
    casts: tuple[pl.Expr, ...]  # of JSON columns of nothing but numbers, which conditions compare as such

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that they look at."""
        names = (name for each in self.conditions for name in each.meta.root_names())
        return tuple(dict.fromkeys(name for name in names if name != INPUT_TOKENS))

    @cached_property
    def counts(self) -> bool:
        """Whether they look at the size of the row."""
        return any(INPUT_TOKENS in each.meta.root_names() for each in self.conditions)

    def of(self, frame: pl.DataFrame, tokens: Sequence[int]) -> list[int]:
        """The rule of each row, from 0; `tokens` of each where they count. Raises `InputError` where one fails."""
        number = pl.lit(len(self.conditions), pl.UInt8)
        for at in range(len(self.conditions) - 1, -1, -1):
            number = pl.when(self.conditions[at]).then(pl.lit(at, pl.UInt8)).otherwise(number)  # null: it does not hold
        sizes = [pl.Series(INPUT_TOKENS, tokens, pl.Int64)] if self.counts else []
        try:
            # Not `select`: a condition without columns holds for every row, and would give one value for all of them.
            return frame.with_columns(*sizes, *self.casts).with_columns(number.alias("rule"))["rule"].to_list()
        except pl.exceptions.PolarsError as error:
            raise InputError(
                f"[[route]] where fails: {str(error).splitlines()[0]}",
                "TRY_CAST gives null where a value does not convert",
            ) from None


def rules(table: Table, conditions: Sequence[str]) -> Rules:
    """Compile the conditions of `[[route]]`. Raises `InputError` for one that does not fit the table."""
    if INPUT_TOKENS in table.schema and any(INPUT_TOKENS in condition for condition in conditions):
        raise InputError(
            f"{table.path} has a column `{INPUT_TOKENS}`, by which [[route]] where means the size of the row",
            "rename the column",
        )
    found = tuple(compiled(table, condition, "[[route]] where", {INPUT_TOKENS: pl.Int64()}) for condition in conditions)
    names = dict.fromkeys(name for each in found for name in each.meta.root_names())
    return Rules(found, tuple(pl.col(n).cast(table.where_schema[n]) for n in names if n in table.json_columns))
