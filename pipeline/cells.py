"""A column's cells as values, exact at any depth, and a column as text."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import Any

import polars as pl
from polars.datatypes import DataTypeClass

from pipeline.values import Clock, Exact, Fields, Instant, Items, Kind, Span, Unreadable, json_text, parsed

_DAY_S = 86_400
_FIRST_DAY, _LAST_DAY = (day.toordinal() - date(1970, 1, 1).toordinal() for day in (date.min, date.max))
_WRITTEN_DAYS = 95_000_000
"""Days from 1970 that polars can write, some 260,000 years."""
_PER_S = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def kind(dtype: pl.DataType) -> Kind | None:
    """What the values of a column are; None for nested ones."""
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "text"
    if dtype.is_numeric():
        return "number"
    if dtype.is_temporal():
        return "time"
    return "truth" if dtype == pl.Boolean else None


def cells(column: pl.Series) -> list[Any]:
    """The values of a column for a template; a cell that has none is `Unreadable`."""
    dtype = column.dtype
    if isinstance(dtype, pl.Struct):
        return _structs(column, dtype)
    if isinstance(dtype, pl.List | pl.Array):
        return _lists(column.arr.to_list() if isinstance(dtype, pl.Array) else column)
    if isinstance(dtype, pl.Map):
        return [_mapping(entries) for entries in _lists(column.map.entries())]
    if dtype.is_decimal():
        return [text if text is None else Exact(text) for text in column.cast(pl.String).to_list()]
    if dtype == pl.Float32:  # the shortest digits that name it: 0.1, not 0.10000000149011612
        return column.cast(pl.String).cast(pl.Float64).to_list()
    if dtype == pl.Float16:
        return [None if number is None else _half(number) for number in column.to_list()]
    return _times(column) if dtype.is_temporal() else column.to_list()


def json_cells(column: pl.Series) -> list[Any]:
    """The values of a column of JSON texts: each cell's own object, whole numbers exact."""
    return [text if text is None else parsed(text) for text in column.to_list()]


def texts(column: pl.Series) -> list[str | None]:
    """The values of a column as text."""
    return [None if value is None else value if isinstance(value, str) else str(value) for value in cells(column)]


def as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column as text of about the length that it prints with, whatever is in it; equal texts mean equal cells."""
    column = pl.col(name)
    if dtype.is_nested() or dtype == pl.Duration:  # which have no cast to text
        return pl.struct(column.cast(_physical(dtype))).struct.json_encode().alias(name)
    if dtype.is_temporal() and dtype != pl.Time:
        shown = pl.when(_has_year(column, dtype)).then(column).cast(pl.String)
        return pl.coalesce(shown, column.to_physical().cast(pl.String)).alias(name)
    return column.cast(pl.String)


def types(dtype: pl.DataType | DataTypeClass) -> Iterator[pl.DataType | DataTypeClass]:
    """This type and those within it, however deep."""
    yield dtype
    inner: Iterable[pl.DataType | DataTypeClass] = ()
    if isinstance(dtype, pl.Struct):
        inner = (field.dtype for field in dtype.fields)
    elif isinstance(dtype, pl.List | pl.Array):
        inner = (dtype.inner,)
    elif isinstance(dtype, pl.Map):
        inner = (dtype.key, dtype.value)
    for each in inner:
        yield from types(each)


def patterns(schema: Mapping[str, pl.DataType]) -> Iterator[str]:
    """The names of columns, and of fields within them, that polars takes for a pattern of names wherever they stand."""
    for column, dtype in schema.items():
        fields = (field.name for each in types(dtype) if isinstance(each, pl.Struct) for field in each.fields)
        for name in (column, *fields):
            if name == "*" or (name.startswith("^") and name.endswith("$")):
                yield name


def leaves(dtype: pl.DataType | DataTypeClass) -> Iterator[pl.DataType | DataTypeClass]:
    """The types of the values in a column of this type, however deep."""
    return (each for each in types(dtype) if not each.is_nested())


def holds_times(dtype: pl.DataType | DataTypeClass) -> bool:
    """Whether there are dates or times in this type: polars cannot write those far from today as text."""
    return any(leaf in (pl.Date, pl.Datetime) for leaf in leaves(dtype))


def holds_floats(dtype: pl.DataType | DataTypeClass) -> bool:
    """Whether there are numbers within this nested type that JSON may lack."""
    return dtype.is_nested() and any(leaf.is_float() for leaf in leaves(dtype))


def written_nested(column: pl.Series) -> pl.Series:
    """A column that `holds_floats` as JSON texts of a .jsonl; a number that JSON lacks is its word."""
    dtype = column.dtype
    texts = written(column, ".jsonl") if holds_times(dtype) else _encoded(column.to_frame("v"))
    if not _has_odd(column):
        return texts.rename(column.name)
    values = column.to_frame().cast({column.name: _physical(dtype)}).to_series().to_list()
    worded = (json_text(_worded(parsed(text), value)) for text, value in zip(texts.to_list(), values, strict=True))
    return pl.Series(column.name, list(worded), dtype=pl.String)


def _has_odd(column: pl.Series) -> bool:
    dtype = column.dtype
    if isinstance(dtype, pl.Struct):
        return any(map(_has_odd, column.struct.unnest().get_columns()))
    if isinstance(dtype, pl.List | pl.Array):
        return _has_odd(column.explode())
    if isinstance(dtype, pl.Map):
        return _has_odd(column.map.values().explode())
    return dtype.is_float() and not column.is_finite().all()


def _worded(told: Any, value: Any) -> Any:
    """What JSON tells of a value, with words for the numbers that it tells as null."""
    if isinstance(told, dict):
        return {name: _worded(item, value[name]) for name, item in told.items()}
    if isinstance(told, list):
        return [_worded(item, other) for item, other in zip(told, value, strict=True)]
    if told is not None or not isinstance(value, float):
        return told
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def written(column: pl.Series, suffix: str) -> pl.Series:
    """A column that holds dates or times as text of a .csv, or JSON text of a .jsonl, as polars would write it.

    A cell with a date that has no text is written by its number.
    """
    near = _near(column)
    places = pl.select(pl.when(near).then(pl.int_range(len(column)))).to_series()
    there = column.gather(places).to_frame()  # which leaves nothing of the others behind their nulls
    numbers = column.to_frame().cast({column.name: _physical(column.dtype)})
    if suffix == ".csv":
        text = there.to_series().dt.strftime(_csv_form(column.dtype))
        return pl.select(pl.coalesce(text, numbers.to_series().cast(pl.String)).alias(column.name)).to_series()
    texts = [_encoded(frame.rename({column.name: "v"})) for frame in (there, numbers)]
    return pl.select(pl.when(near).then(texts[0]).otherwise(texts[1]).alias(column.name)).to_series()


def _near(column: pl.Series) -> pl.Series:
    if column.dtype.is_nested():
        return pl.Series([not isinstance(value, Unreadable) for value in cells(column)], dtype=pl.Boolean)
    per_day = 1 if column.dtype == pl.Date else _DAY_S * _PER_S[getattr(column.dtype, "time_unit", "us")]
    days = column.to_physical() // per_day
    return days.is_between(-_WRITTEN_DAYS, _WRITTEN_DAYS).fill_null(True)


def _csv_form(dtype: pl.DataType) -> str:
    if not isinstance(dtype, pl.Datetime):
        return "%F"
    return f"%FT%H:%M:%S%.{ {'ms': 3, 'us': 6, 'ns': 9}[dtype.time_unit] }f{'%z' if dtype.time_zone else ''}"


def _encoded(frame: pl.DataFrame) -> pl.Series:
    encoded = pl.struct("v").struct.json_encode()
    return frame.select(encoded.str.strip_prefix('{"v":').str.strip_suffix("}")).to_series()


def _half(number: float) -> float:
    """The shortest digits that name a number of 16 bits; a whole one keeps all of them."""
    if number.is_integer():
        return number
    shortest = (float(f"{number:.{digits}g}") for digits in range(1, 6))
    return next((short for short in shortest if _as_half(short) == number), number)


def _as_half(number: float) -> float | None:
    try:
        return float(struct.unpack("e", struct.pack("e", number))[0])
    except OverflowError:
        return None


def _structs(column: pl.Series, dtype: pl.Struct) -> list[Any]:
    names = [field.name for field in dtype.fields]
    values = [cells(column.struct.field(name).rename(column.name)) for name in names]
    rows: Iterable[tuple[Any, ...]] = zip(*values, strict=True) if values else (() for _ in range(len(column)))
    return [
        None if null else _readable(row) or Fields(zip(names, row, strict=True))
        for null, row in zip(column.is_null().to_list(), rows, strict=True)
    ]


def _lists(column: pl.Series) -> list[Any]:
    lengths = column.list.len()
    items = iter(cells(column.filter(lengths > 0).explode()))
    rows = (None if length is None else Items(islice(items, length)) for length in lengths.to_list())
    return [row and (_readable(row) or row) if row is not None else None for row in rows]


def _mapping(entries: Any) -> Any:
    """What a cell of a mapping is, of its pairs."""
    return Fields((each["key"], each["value"]) for each in entries) if isinstance(entries, Items) else entries


def _readable(row: Iterable[Any]) -> Unreadable | None:
    """What makes a nested cell unreadable as a whole."""
    return next((value for value in row if isinstance(value, Unreadable)), None)


def _times(column: pl.Series) -> list[Any]:
    dtype = column.dtype
    numbers = column.to_physical()
    unit = getattr(dtype, "time_unit", None) or "ns"
    if dtype == pl.Duration:
        return [None if number is None else _span(number, unit, column.name) for number in numbers.to_list()]
    if dtype != pl.Time:
        there = column.to_frame().select(_has_year(pl.col(column.name), dtype)).to_series()
        values = column.set(~there, None).to_list()
        for row in (~there).arg_true():
            values[row] = Unreadable(column.name, f"{numbers[row]} {_SINCE[unit if dtype == pl.Datetime else 'd']}")
    else:
        values = column.to_list()
    if unit == "ns" and dtype != pl.Date:
        rest = numbers % 1_000
        for row in (rest > 0).arg_true():
            values[row] = _fine(values[row], rest[row])
    return values


_SINCE = {
    "d": "days since 1970, a date outside the years 1 to 9999",
    "ms": "ms since 1970, a time outside the years 1 to 9999",
    "us": "µs since 1970, a time outside the years 1 to 9999",
    "ns": "ns since 1970, a time outside the years 1 to 9999",
}


def _has_year(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Whether a date or time is in the years 1 to 9999; a zone may move it by a day."""
    number = column.to_physical()
    if not isinstance(dtype, pl.Datetime):
        return number.is_between(_FIRST_DAY, _LAST_DAY)
    margin = 1 if dtype.time_zone else 0
    per_day = _DAY_S * _PER_S[dtype.time_unit]
    first, last = (_FIRST_DAY + margin) * per_day, (_LAST_DAY + 1 - margin) * per_day - 1
    return number.is_between(max(first, -(2**63)), min(last, 2**63 - 1))


def _span(number: int, unit: str, name: str) -> timedelta | Unreadable:
    try:
        if unit == "ns":
            return _fine_span(number)
        return timedelta(**{"milliseconds" if unit == "ms" else "microseconds": number})
    except OverflowError:
        return Unreadable(name, f"{number} {unit}, longer than 999,999,999 days")


def _fine_span(number: int) -> timedelta:
    whole, rest = divmod(number, 1_000)
    if not rest:
        return timedelta(microseconds=whole)
    span = Span(microseconds=whole)
    span.nanosecond = rest
    return span


def _fine(value: datetime | time, rest: int) -> datetime | time:
    """The same with its nanoseconds."""
    if isinstance(value, datetime):
        fine: Instant | Clock = Instant.combine(value.date(), value.timetz())
        fine = fine.replace(fold=value.fold)
    else:
        fine = Clock(value.hour, value.minute, value.second, value.microsecond)
    fine.nanosecond = rest
    return fine


def _physical(dtype: pl.DataType | DataTypeClass) -> pl.DataType | DataTypeClass:
    """The type of the numbers behind dates and times, however deep."""
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _physical(field.dtype) for field in dtype.fields})
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_physical(dtype.inner))
    if isinstance(dtype, pl.Map) and dtype.key != pl.String:  # JSON has no other keys
        return pl.List(pl.Struct({"key": _physical(dtype.key), "value": _physical(dtype.value)}))
    if isinstance(dtype, pl.Map):
        return pl.Map(dtype.key, _physical(dtype.value))
    if dtype == pl.Date:
        return pl.Int32()
    return pl.Int64() if dtype.is_temporal() else dtype
