"""The output table: the input's own columns and the results, in input order, replaced atomically."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import orjson
import polars as pl
from polars.io.plugins import register_io_source

from pipeline.errors import InputError
from pipeline.store.parts import RESULTS_SCHEMA, PolarsDataType, part_paths, read_part

ROW = "\0row"
PENDING = "pending"
"""Status of a row that has no outcome yet."""

RESULT_COLUMNS: dict[str, pl.DataType] = {
    name: pl.Float64() if name == "cost_usd" else RESULTS_SCHEMA[name]
    for name in (
        "status",
        "response",
        "error_kind",
        "error",
        "finish_reason",
        "model",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "thinking_tokens",
        "usage_estimated",
        "cost_usd",
        "calls",
        "chunks",
        "attempts",
        "latency_s",
        "finished_at",
    )
}
"""Columns that follow the input's own, typed from the first row whatever is in them."""

_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_FORMULA = r"^[=+\-@\t\r]"
"""What a spreadsheet may run when a cell begins with it (OWASP, "CSV Injection")."""
_FAR_ROWS = 4_096
"""Rows missing in between that make it worth reading a part in two segments; a part has some 4,000 rows in all."""
_ROW_GROUP = 10_000
"""Rows that are held until they are written: answers of 4 KB take 260 MB; with polars' own default, 810 MB."""


def output_schema(own: pl.Schema, path: Path) -> pl.Schema:
    """Columns of the output. An input column that bears a result's name becomes `input_<name>`.

    Raises `InputError` where that is taken too, or for a column that the format of `path` cannot hold.
    """
    renamed = _renamed(own)
    for name, other in renamed.items():
        if other in own or other in RESULT_COLUMNS:
            raise InputError(
                f"the input has columns `{name}` and `{other}`, and the output needs `{name}`", "rename one of them"
            )
    for name, dtype in own.items():
        if not _can_hold(path.suffix, dtype):
            raise InputError(
                f"column `{name}` is a {dtype}, which {path} cannot hold",
                "write to .parquet instead, or .jsonl for lists and structs",
            )
    return pl.Schema({renamed.get(name, name): dtype for name, dtype in own.items()} | RESULT_COLUMNS)


def export(
    batches: Iterable[pl.DataFrame],
    own: pl.Schema,
    results: Path,
    path: Path,
    rows: int,
    csv_safe: bool = False,
    json_columns: Collection[str] = (),
) -> None:
    """Write `path`: the first `rows` rows of the input's `batches` (with `ROW`), joined with the sealed `results`.

    `csv_safe` defuses spreadsheet formulas in a .csv; `json_columns` of the input are JSON texts, which a .jsonl takes
    as they are. Memory is bounded by a few parts. Raises `InputError` when `path` cannot be written, `RunStateError`
    for a damaged part; the old file then stays.
    """
    schema = output_schema(own, path)
    texts = [name for name, dtype in schema.items() if dtype in _TEXTS] if csv_safe and path.suffix == ".csv" else []
    schema.update(dict.fromkeys(texts, pl.String()))
    names = list(schema)
    raw = {_renamed(own).get(name, name) for name in json_columns} if path.suffix == ".jsonl" else set()
    if raw:
        schema = pl.Schema({"line": pl.String()})

    def frames(
        columns: list[str] | None, predicate: pl.Expr | None, most: int | None, size: int | None
    ) -> Iterator[pl.DataFrame]:
        parts = _Parts(results)
        for batch in batches:
            if batch[ROW][0] >= rows:
                return
            batch = batch.filter(pl.col(ROW) < rows).rename(_renamed(own))
            joined = batch.join(parts.between(batch[ROW][0], batch[ROW][-1]), on=ROW, how="left", maintain_order="left")
            joined = joined.with_columns(pl.col("status").fill_null(PENDING)).drop(ROW)
            joined = joined.with_columns(_defused(name) for name in texts)
            if raw:
                joined = joined.select(_as_json(names, raw))
            yield joined.select(columns) if columns is not None else joined

    source = register_io_source(frames, schema=schema)
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            source.sink_parquet(hidden, compression="zstd", row_group_size=_ROW_GROUP, maintain_order=True)
        elif path.suffix == ".csv":
            source.sink_csv(hidden, maintain_order=True)
        elif raw:
            source.sink_csv(hidden, include_header=False, quote_style="never", maintain_order=True)
        else:
            source.sink_ndjson(hidden, maintain_order=True)
        hidden.chmod(0o666 & ~_umask())
        with hidden.open("rb") as file:
            os.fsync(file.fileno())
        hidden.rename(path)
    except (OSError, pl.exceptions.PolarsError) as error:  # polars calls a full disk a fault of the format
        reason = getattr(error, "strerror", None) or str(error).rpartition("underlying IO error: ")[2]
        raise InputError(
            f"cannot write {path}: {reason}\nEvery answer is safe in {results.parent}.",
            "make room or choose another place with `--out`, and run the same command again: nothing is bought twice",
        ) from None
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def _defused(column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String)
    return pl.when(text.str.contains(_FORMULA)).then("'" + text).otherwise(text).alias(column)


def _as_json(names: Iterable[str], raw: Collection[str]) -> pl.Expr:
    """Each row as one JSON object; the cells of `raw` columns are JSON already."""
    fields: list[pl.Expr] = []
    for name in names:
        encoded = pl.struct(pl.col(name).alias("v")).struct.json_encode()
        value = encoded.str.strip_prefix('{"v":').str.strip_suffix("}")
        fields.append(
            pl.lit(f"{orjson.dumps(name).decode()}:") + (pl.col(name).fill_null("null") if name in raw else value)
        )
    return ("{" + pl.concat_str(fields, separator=",") + "}").alias("line")


def _renamed(own: Iterable[str]) -> dict[str, str]:
    return {name: f"input_{name}" for name in own if name in RESULT_COLUMNS}


def _can_hold(suffix: str, dtype: PolarsDataType) -> bool:
    if suffix == ".csv":
        return not dtype.is_nested() and dtype not in (pl.Binary, pl.Duration)
    if isinstance(dtype, pl.Struct):
        return all(_can_hold(suffix, inner) for inner in dtype.to_schema().values())
    if isinstance(dtype, pl.List | pl.Array):
        return _can_hold(suffix, dtype.inner)
    return suffix == ".parquet" or dtype != pl.Binary


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Segment(NamedTuple):
    """Rows of one part that lie close together in the input: it has two where short and long rows took turns."""

    first: int
    last: int
    part: int
    path: Path
    start: int  # place in the part
    height: int

    def read(self) -> pl.DataFrame:
        frame = read_part(self.path, ("row", *RESULT_COLUMNS), self.start, self.height)
        return frame.with_columns(pl.col("cost_usd").cast(pl.Float64))


def _segments(part: int, path: Path) -> Iterator[_Segment]:
    rows = read_part(path, ("row",))["row"]
    for start, stop in pairwise((0, *(rows.diff() > _FAR_ROWS).arg_true(), len(rows))):
        if start < stop:
            yield _Segment(rows[start], rows[stop - 1], part, path, start, stop - start)


class _Parts:
    """Results by row range: a segment is read when its range is reached and let go when it is passed."""

    def __init__(self, results: Path) -> None:
        paths = enumerate(part_paths(results))
        self._waiting = sorted((each for part, path in paths for each in _segments(part, path)), reverse=True)
        self._open: list[tuple[_Segment, pl.DataFrame]] = []

    def between(self, low: int, high: int) -> pl.DataFrame:
        """The newest outcome of each row from `low` to `high`, at most one a row."""
        while self._waiting and self._waiting[-1].first <= high:
            segment = self._waiting.pop()
            self._open.append((segment, segment.read()))
        self._open = [(segment, frame) for segment, frame in self._open if segment.last >= low]
        self._open.sort(key=lambda held: held[0].part)
        found = [frame.filter(pl.col("row").is_between(low, high)) for _, frame in self._open]
        if not found:
            return pl.DataFrame(schema={ROW: pl.Int64, **RESULT_COLUMNS})
        return pl.concat(found).unique("row", keep="last", maintain_order=True).rename({"row": ROW})
