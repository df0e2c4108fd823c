"""The output table: the input's own columns and the results, in input order, each row held to its key."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import isqrt
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import orjson
import polars as pl
from polars.io.plugins import register_io_source

from pipeline.answer_columns import AnswerColumn, expanded
from pipeline.cells import holds_floats, holds_times, patterns, written, written_nested
from pipeline.errors import InputChanged, InputError, PipelineError
from pipeline.store.parts import RESULTS_SCHEMA, PolarsDataType, part_number, part_paths, read_part
from pipeline.store.place import Counted, refusal_of
from pipeline.urls import Url

ROW = "\0row"
PENDING = "pending"
"""Status of a row that has no outcome yet."""

COLUMN_MEANS: dict[str, str] = {
    "status": "what became of the row",
    "response": "the answer; null where there is none",
    "error_kind": "the cause, of a row that is not `ok`",
    "error": "the same in one line for a person",
    "finish_reason": "why the answer ended, as the service names it: `STOP`, `MAX_TOKENS`, `SAFETY`, …",
    "model": "the model that answered, as the service names it, and that is billed; where its price is unknown, as that"
    " of a relay's own names, the price of the job's model counts",
    "target": "who answered: the target by its name in the job file, else the service and its host; null for an answer"
    " of the cache",
    "input_tokens": "tokens of the prompts; those from the service's own cache included",
    "cached_tokens": "those of them that came from the service's own cache",
    "output_tokens": "tokens of the answers, without thinking",
    "thinking_tokens": "tokens that were thought; billed as output",
    "usage_estimated": "true where some of the row's tokens or cost are an estimate",
    "cost_usd": "USD of every reply of the row, also of those that `--retry` replaced and that could not be read or"
    " counted; null where the price is unknown",
    "calls": "replies that were paid for; 0 where another row or an earlier run bought the answer",
    "chunks": "pieces that the text was cut into: 1 when it was sent whole, 0 when nothing was sent",
    "attempts": "requests that were made; refusals for quota do not count",
    "latency_s": "seconds that the calls took, added up",
    "finished_at": "when the row was finished, UTC",
}
"""Columns that follow the input's own, and what stands in them."""

RESULT_COLUMNS: dict[str, pl.DataType] = {
    name: pl.Float64() if name == "cost_usd" else RESULTS_SCHEMA[name] for name in COLUMN_MEANS
}
"""The same, typed from the first row whatever is in them."""

_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_FORMULA = r"^[\pZ\pC]*[=+\-@＝＋－＠﹦﹢﹣﹫−]|^[\t\r\n]"
"""What a spreadsheet may run when a cell begins with it, behind blanks too (OWASP, "CSV Injection")."""
_KEY = "__key__"
_OTHER_FORMATS = "write to .parquet instead, or .jsonl for lists and structs"
_FAR_ROWS = 4_096
"""Rows missing in between that make it worth reading a part in two segments; a part has some 4,000 rows in all."""
_GROUP_BYTES = 16_000_000
_KEPT_BYTES = 3_700
"""What the writer of Parquet keeps of each column of each row group until the file is whole (polars 2.1)."""
_STRETCH_ROWS = 8_192
"""Rows over which lengths are averaged: a table may be sorted by length, and one long row is no long stretch."""
_SAMPLED_PARTS = 32
_OTHER_BYTES = 150
"""Of a row's results beside its response."""


@dataclass(frozen=True, slots=True)
class Form:
    """How the table is written: `suffix` is that of its path, `json_columns` hold JSON texts."""

    suffix: str
    csv_safe: bool = False  # defuse what a spreadsheet would run
    excel: bool = False  # a CSV that Excel opens rightly: its mark of UTF-8, and its line ends
    json_columns: frozenset[str] = frozenset()
    answers: tuple[AnswerColumn, ...] = ()  # columns that are read out of the answers

    @property
    def json_answers(self) -> frozenset[str]:
        """Those of them that hold JSON texts."""
        return frozenset(column.name for column in self.answers if column.is_json)


def output_schema(own: pl.Schema, path: Path | Url, answers: Sequence[AnswerColumn] = ()) -> pl.Schema:
    """Columns of the output: the input's, the results', and those of the `answers`.

    An input column that bears the name of one of the others becomes `input_<name>`; once more, if taken.

    Raises `InputError` for a column that the format of `path` cannot hold, or that the results have already.
    """
    renamed = _renamed(own, answers)
    names = Counter(column.name for column in answers)  # those of tools, turns and redaction have fixed names
    for column in answers:
        if column.name in RESULT_COLUMNS or not column.name or names[column.name] > 1:
            raise InputError(
                f"the answer has a property `{column.name}`, and the output has such a column of its own",
                'set [output] prefix = "answer_", or call the property otherwise in [output] schema',
            )
    for pattern in patterns({column.name: column.dtype for column in answers}):
        raise InputError(
            f"the answer has a property `{pattern}`, and no column can be called so",
            "call it otherwise in [output] schema: the library that writes tables takes it for many",
        )
    for name, dtype in own.items():
        if not _can_hold(path.suffix, dtype):
            raise InputError(
                f"column `{name}` is a {dtype}, which {path} cannot hold",
                _OTHER_FORMATS,
            )
    read = {column.name: column.typed(path.suffix) for column in answers}
    return pl.Schema({renamed.get(name, name): dtype for name, dtype in own.items()} | RESULT_COLUMNS | read)


def export(
    read: Callable[[], Iterable[pl.DataFrame]],
    own: pl.Schema,
    results: "Path | Results",
    file: BinaryIO,
    form: Form,
    rows: int,
    keys: Callable[[pl.DataFrame], Sequence[str]] | None = None,
    restored: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame,
    unsealed: "Unsealed | None" = None,
) -> Counted:
    """Write to `file` the first `rows` rows of the batches that `read` gives, joined with sealed `results`.

    `unsealed` are results that follow those of one directory. A batch has the input's columns `own` and `ROW`. `keys`
    are those of its rows; other columns are for it only.
    `restored` puts back into a frame's answers what was hidden from the service; it is given all rows in order.
    Memory is bounded by a few parts, and the input read twice for it where the output is Parquet. Raises
    `InputChanged` when a row has another key than it was asked under, or when rows are missing; `RunStateError` for a
    damaged part; what the writer raises when the file cannot be written.
    """
    schema = output_schema(own, Path(f"output{form.suffix}"), form.answers)
    renamed = _renamed(own, form.answers)
    kept = tuple({column.kept for column in form.answers} - RESULT_COLUMNS.keys())
    names, trouble, counted = list(schema), [], [0, 0]

    def joined() -> Iterator[pl.DataFrame]:
        parts = ResultsByRow(results, kept, unsealed) if isinstance(results, Path) else results.by_row(kept)
        for batch in read():
            if batch[ROW][0] >= rows:
                return
            batch = batch.filter(pl.col(ROW) < rows)
            found = parts.between(batch[ROW][0], batch[ROW][-1])
            if keys is not None:
                mine = pl.DataFrame({ROW: batch[ROW], _KEY: keys(batch)}, schema_overrides={_KEY: pl.String})
                _check_keys(mine.join(found.select(ROW, "key"), on=ROW, maintain_order="left"))
            frame = batch.select(ROW, *own).rename(renamed)
            frame = frame.join(found.drop("key"), on=ROW, how="left", maintain_order="left")
            frame = restored(frame)
            frame = frame.with_columns(expanded(frame, form.answers, form.suffix))
            counted[0] += frame.height
            counted[1] += frame.height - frame["status"].null_count()
            yield frame.with_columns(pl.col("status").fill_null(PENDING)).select(names)
        if counted[0] < rows:
            raise InputChanged(f"the input has {counted[0]:,} rows now, and had {rows:,} when the run began")

    def heeded() -> Iterator[pl.DataFrame]:
        try:
            yield from joined()
        except PipelineError as error:  # the writer would make another one of it
            trouble.append(error)
            raise

    group_rows = 0
    if form.suffix == ".parquet":
        width = widest(frame.select(*own) for frame in read()) + _widest_response(results, unsealed) + _OTHER_BYTES
        group_rows = rows_a_group(rows, len(schema), width)
    try:
        own_json = {renamed.get(name, name) for name in form.json_columns}
        write_frames(heeded(), schema, form, own_json | form.json_answers, file, group_rows)
    except Exception:
        if trouble:
            raise trouble[0] from None
        raise
    return Counted(*counted)


def attempt(own: pl.Schema, form: Form, file: BinaryIO) -> None:
    """Write a table of these types with one empty row. Raises `InputError` for one that the format cannot hold,
    `OSError` when the system refuses."""
    schema = output_schema(own, Path(f"output{form.suffix}"), form.answers)
    frame = pl.DataFrame({name: pl.Series([None], dtype=dtype) for name, dtype in schema.items()}, schema=schema)
    try:
        write_frames(iter([frame]), schema, form, (form.json_columns & own.keys()) | form.json_answers, file)
    except pl.exceptions.PolarsError as error:
        if refusal := refusal_of(error):  # a full disk is a fault of the format to the writer
            raise refusal from None
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{form.suffix} cannot hold the columns of the output: {reason}", _OTHER_FORMATS) from None


def _check_keys(frame: pl.DataFrame) -> None:
    """Raise `InputChanged` for the first row whose key is not the one that it was asked under."""
    other = frame.filter(pl.col("key") != pl.col(_KEY)).head(1)
    for row, now, asked in other.select(ROW, _KEY, "key").iter_rows():
        raise InputChanged(f"row {row} of the input is {now!r} now, and was {asked!r} when it was asked")


def rows_a_group(rows: int, columns: int, width: float) -> int:
    """Rows of a row group of Parquet whose rows have `width` bytes: one is held until it is written.

    As many as have 16 MB; more where what the writer keeps of so many groups would take more than a group does.
    """
    return max(1, int(_GROUP_BYTES / width), isqrt(int(rows * columns * _KEPT_BYTES / width)))


def widest(frames: Iterable[pl.DataFrame]) -> float:
    """Bytes of a row where rows are longest."""
    widest, held, height, rows = 0.0, 0.0, 0, 0
    for frame in frames:
        held, height, rows = held + frame.estimated_size(), height + frame.height, rows + frame.height
        if height >= _STRETCH_ROWS:
            widest, held, height = max(widest, held / height), 0.0, 0
    return max(widest, held / max(1, min(rows, _STRETCH_ROWS)))


def _widest_response(results: "Path | Results", unsealed: "Unsealed | None") -> float:
    paths = part_paths(results) if isinstance(results, Path) else list(results.some())
    some = paths[:: len(paths) // _SAMPLED_PARTS + 1] + paths[-1:]
    rest = [unsealed.frame.select("response")] if unsealed else []
    return widest(chain((read_part(path, ("response",)) for path in some), rest))


def write_frames(
    frames: Iterator[pl.DataFrame],
    schema: pl.Schema,
    form: Form,
    raw: Collection[str],
    file: BinaryIO,
    group_rows: int = 1,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the frames in the form; `raw` names their columns of JSON texts, and `metadata` is for Parquet."""
    texts = [name for name, dtype in schema.items() if dtype in _TEXTS] if form.csv_safe else []
    own = {name: dtype for name, dtype in schema.items() if name not in RESULT_COLUMNS}
    nested = [name for name, dtype in own.items() if form.suffix == ".jsonl" and holds_floats(dtype)]
    if nested:
        plain = frames
        frames = (frame.with_columns(written_nested(frame[name]) for name in nested) for frame in plain)
        schema = pl.Schema(schema | dict.fromkeys(nested, pl.String()))
        raw = {*raw, *nested}
    times = [name for name, dtype in own.items() if name not in nested and holds_times(dtype)]
    if times and form.suffix != ".parquet":
        rows = frames  # the generators below run later
        frames = (frame.with_columns(written(frame[name], form.suffix) for name in times) for frame in rows)
        schema = pl.Schema(schema | dict.fromkeys(times, pl.String()))
        raw = {*raw, *times}
    floats = [name for name, dtype in own.items() if dtype.is_float()]
    if floats and form.suffix == ".jsonl":
        numbers = frames
        frames = (frame.with_columns(map(_float_json, floats)) for frame in numbers)
        schema = pl.Schema(schema | dict.fromkeys(floats, pl.String()))
        raw = {*raw, *floats}
    if form.suffix == ".csv":
        heads = {name: _defused_name(name) for name in schema} if form.csv_safe else {}
        types = schema | dict.fromkeys(texts, pl.String())
        schema = pl.Schema({heads.get(name, name): dtype for name, dtype in types.items()})
        frames = (frame.with_columns(map(_defused, texts)).rename(heads) for frame in frames)
    elif form.suffix == ".jsonl" and raw:
        line = _as_json(list(schema), raw)
        schema = pl.Schema({"line": pl.String()})
        frames = (frame.select(line) for frame in frames)

    def source(
        columns: list[str] | None, predicate: pl.Expr | None, most: int | None, size: int | None
    ) -> Iterator[pl.DataFrame]:
        return (frame if columns is None else frame.select(columns) for frame in frames)

    table = register_io_source(source, schema=schema)
    if form.suffix == ".parquet":
        table.sink_parquet(file, compression="zstd", row_group_size=group_rows, maintain_order=True, metadata=metadata)
    elif form.suffix == ".csv":
        ends = "\r\n" if form.excel else "\n"
        table.sink_csv(file, include_bom=form.excel, line_terminator=ends, maintain_order=True)
    elif raw:
        table.sink_csv(file, include_header=False, quote_style="never", maintain_order=True)
    else:
        table.sink_ndjson(file, maintain_order=True)


def _as_json(names: Iterable[str], raw: Collection[str]) -> pl.Expr:
    """Each row as one JSON object; the cells of `raw` columns are JSON already."""
    fields: list[pl.Expr] = []
    for name in names:
        value = pl.col(name).fill_null("null") if name in raw else _json_of(name)
        fields.append(pl.lit(f"{orjson.dumps(name).decode()}:") + value)
    return ("{" + pl.concat_str(fields, separator=",") + "}").alias("line")


def _json_of(name: str) -> pl.Expr:
    encoded = pl.struct(pl.col(name).alias("v")).struct.json_encode()
    return encoded.str.strip_prefix('{"v":').str.strip_suffix("}")


def _float_json(name: str) -> pl.Expr:
    """A number as JSON; one that JSON lacks is its word, as in protocol buffers and Spark."""
    value = pl.col(name)
    infinite = pl.when(value > 0).then(pl.lit('"Infinity"')).otherwise(pl.lit('"-Infinity"'))
    word = pl.when(value.is_nan()).then(pl.lit('"NaN"')).otherwise(infinite)
    return pl.when(value.is_null() | value.is_finite()).then(_json_of(name)).otherwise(word).alias(name)


def _defused_name(name: str) -> str:
    return "'" + name if pl.select(pl.lit(name).str.contains(_FORMULA)).item() else name


def _defused(column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String)
    return pl.when(text.str.contains(_FORMULA)).then("'" + text).otherwise(text).alias(column)


def _renamed(own: Iterable[str], answers: Iterable[AnswerColumn]) -> dict[str, str]:
    others = {*RESULT_COLUMNS, *(column.name for column in answers)}
    taken, renamed = {*own, *others}, dict[str, str]()
    for name in own:
        other = name
        while name in others and other in taken:
            other = f"input_{other}"
        if other != name:
            renamed[name] = other
            taken.add(other)
    return renamed


def _can_hold(suffix: str, dtype: PolarsDataType) -> bool:
    if suffix == ".csv":
        return not dtype.is_nested() and dtype not in (pl.Binary, pl.Duration)
    if dtype == pl.Object or (suffix == ".parquet" and isinstance(dtype, pl.Struct) and not dtype.fields):
        return False
    if isinstance(dtype, pl.Struct):
        return all(_can_hold(suffix, inner) for inner in dtype.to_schema().values())
    if isinstance(dtype, pl.List | pl.Array):
        return _can_hold(suffix, dtype.inner)
    if isinstance(dtype, pl.Map):  # JSON has keys of text only
        return (suffix == ".parquet" or dtype.key == pl.String) and _can_hold(suffix, dtype.value)
    return suffix == ".parquet" or dtype != pl.Binary


class Unsealed(NamedTuple):
    """Results of a run that goes on elsewhere, or was killed: they follow the parts up to a number."""

    after: int
    frame: pl.DataFrame


class ByRow(Protocol):
    """Results by ranges of rows, which ascend."""

    def between(self, low: int, high: int) -> pl.DataFrame:
        """The newest outcome of each row from `low` to `high`, at most one a row."""
        ...


class Results(Protocol):
    """Results that lie elsewhere than in one directory."""

    def by_row(self, more: Sequence[str]) -> ByRow:
        """Results by row range, with `more` columns of the parts beside those of the output."""
        ...

    def some(self) -> Iterable[Path]:
        """Some parts, from all over the table."""
        ...


class Segment(NamedTuple):
    """Rows of one part that lie close together in the input: it has two where short and long rows took turns."""

    first: int
    last: int
    part: int
    path: Path
    start: int  # place in the part
    height: int

    def read(self, more: Sequence[str]) -> pl.DataFrame:
        """Its results, typed as they are written, and `more` of their columns."""
        return _as_written(read_part(self.path, _columns(more), self.start, self.height))


def _columns(more: Sequence[str]) -> tuple[str, ...]:
    return ("row", "key", *RESULT_COLUMNS, *more)


def _as_written(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("cost_usd").cast(pl.Float64))


def segments(part: int, path: Path) -> Iterator[Segment]:
    """Those of one part, in its order."""
    rows = read_part(path, ("row",))["row"]
    for start, stop in pairwise((0, *(rows.diff() > _FAR_ROWS).arg_true(), len(rows))):
        if start < stop:
            yield Segment(rows[start], rows[stop - 1], part, path, start, stop - start)


def no_results(more: Sequence[str]) -> pl.DataFrame:
    """What there is of rows without any."""
    return pl.DataFrame(
        schema={ROW: pl.Int64, "key": pl.String, **RESULT_COLUMNS, **{name: RESULTS_SCHEMA[name] for name in more}}
    )


class ResultsByRow:
    """Results by row range: a segment is read when its range is reached and let go when it is passed."""

    def __init__(self, results: Path, more: Sequence[str] = (), unsealed: Unsealed | None = None) -> None:
        """`more` are columns of the parts beside those of the output; `unsealed` follow the parts."""
        self._more = more
        paths = part_paths(results)
        if unsealed:
            paths = [path for path in paths if part_number(path) <= unsealed.after]
        sealed = enumerate(paths)
        self._waiting = sorted((each for part, path in sealed for each in segments(part, path)), reverse=True)
        self._unsealed = _as_written(unsealed.frame.select(_columns(more))) if unsealed else None
        self._open: list[tuple[Segment, pl.DataFrame]] = []

    def between(self, low: int, high: int) -> pl.DataFrame:
        """The newest outcome of each row from `low` to `high`, at most one a row."""
        self._open = [(segment, frame) for segment, frame in self._open if segment.last >= low]
        while self._waiting and self._waiting[-1].first <= high:
            segment = self._waiting.pop()
            if segment.last >= low:
                self._open.append((segment, segment.read(self._more)))
        self._open.sort(key=lambda held: held[0].part)
        frames = [frame for _, frame in self._open]
        if self._unsealed is not None:
            frames.append(self._unsealed)
        found = [frame.filter(pl.col("row").is_between(low, high)) for frame in frames]
        if not found:
            return no_results(self._more)
        return pl.concat(found).unique("row", keep="last", maintain_order=True).rename({"row": ROW})
