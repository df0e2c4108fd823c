"""Columns of the output that are read out of an answer: fields of a JSON text, or what came beside it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
import polars as pl

Kept = Literal["response", "extras"]
"""Where it is read from: the answer, or the JSON object of what came beside it."""


@dataclass(frozen=True, slots=True)
class AnswerColumn:
    """One column: `cell` makes a value of its type out of the JSON value that was kept, or None."""

    name: str
    dtype: pl.DataType
    means: str  # for a person
    kept: Kept
    cell: Callable[[Any], Any]
    is_json: bool = False  # each cell is a JSON text: a .jsonl has it as it is

    def typed(self, suffix: str) -> pl.DataType:
        """Its type in a file of this kind: a .csv holds what is nested as JSON."""
        return pl.String() if suffix == ".csv" and self.dtype.is_nested() else self.dtype


ANSWERS = AnswerColumn(
    "answers",
    pl.List(pl.String()),
    "the answers to all turns of a conversation, in order, also of a row that ended before its last one",
    "extras",
    lambda beside: beside.get("answers"),
)
"""Of the flow that asks several turns."""


def redacted_column(names: Sequence[str]) -> AnswerColumn:
    """How much was hidden from the service, by name."""
    return AnswerColumn(
        "redacted",
        pl.Struct({name: pl.Int64() for name in names}),
        "how often a value of each kind or pattern of `[redact]` was replaced in the row",
        "extras",
        lambda beside: {name: beside["redacted"].get(name, 0) for name in names} if "redacted" in beside else None,
    )


def moved(extras: str, characters: int) -> dict[str, Any]:
    """What came beside a text, as values, where that text begins so many characters further on in another."""
    found = orjson.loads(extras) if extras else {}
    return {
        name: [_moved(one, characters) for one in told] if isinstance(told, list) else told
        for name, told in found.items()
    }


def _moved(found: Any, characters: int) -> Any:
    if not isinstance(found, dict):
        return found
    places = {name: found[name] for name in ("start", "end") if isinstance(found.get(name), int)}
    return found | {name: place + characters for name, place in places.items()}


def expanded(frame: pl.DataFrame, columns: Sequence[AnswerColumn], suffix: str) -> list[pl.Series]:
    """The columns for a frame of results that has `status` and whatever they are read from.

    An answer is read where its row is `ok`, what came beside it wherever there is any.
    """
    whole = (frame["status"] == "ok").to_list() if columns else []
    read = {kept: _read(frame[kept], whole if kept == "response" else None) for kept in {each.kept for each in columns}}
    return [_series(column, read[column.kept], suffix) for column in columns]


def _read(texts: pl.Series, wanted: Sequence[bool] | None) -> list[Any]:
    wanted = wanted or [True] * len(texts)
    return [None if text is None or not want else orjson.loads(text) for text, want in zip(texts, wanted, strict=True)]


def _series(column: AnswerColumn, values: Iterable[Any], suffix: str) -> pl.Series:
    cells = [None if value is None else column.cell(value) for value in values]
    dtype = column.typed(suffix)
    if dtype != column.dtype:
        cells = [None if cell is None else orjson.dumps(cell).decode() for cell in cells]
    return pl.Series(column.name, cells, dtype=dtype)
