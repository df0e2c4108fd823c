"""Sealed parts: Parquet files that are whole or not there.

Written under a hidden name, forced to the disk, then renamed.
A part's number is that of the journal it was sealed from.
"""

import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from polars.datatypes import DataTypeClass

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.records import Result
from pipeline.store import compacted
from pipeline.store.lines import Call
from pipeline.store.seals import Sealed, damaged, digest, digest_of, noted

PolarsDataType = pl.DataType | DataTypeClass

MONEY = pl.Decimal(18, 12)
OWNER = "run"
"""Key under which a part's metadata has the identity of its run."""
_PART = re.compile(r"part-[0-9]{6,}\.parquet")
_MOST_MONEY = Decimal("999999.999999999999")
_LAST_S = 253_402_300_799.0  # 9999-12-31T23:59:59Z
_TOKENS: dict[str, PolarsDataType] = dict.fromkeys(
    ("input_tokens", "cached_tokens", "output_tokens", "thinking_tokens"), pl.Int64
)
_TIME = pl.Datetime("ms", "UTC")

_CALLS: dict[str, PolarsDataType] = {
    "row": pl.Int64,
    "key": pl.String,
    "step": pl.String,
    "level": pl.Int32,
    "chunk": pl.Int32,
    "chunks": pl.Int32,
    "fingerprint": pl.String,
    "paid": pl.Boolean,
    "status": pl.String,
    "error_kind": pl.String,
    "error": pl.String,
    "finish_reason": pl.String,
    "text": pl.String,  # null where the result of the row holds the same text
    "extras": pl.String,  # what came beside it, as JSON
    "raw": pl.String,  # only of a reply that could not be read
    "model": pl.String,
    "endpoint": pl.String,
    "target": pl.String,  # by its name in the job file; null where that names none
    "lane": pl.String,  # in which it was served, and is billed
    "fell_back": pl.String,  # why that was not flex, where flex was asked (`records.FROM_FLEX`)
    "response_id": pl.String,
    "input_tokens_est": pl.Int64,
    **_TOKENS,
    "tool_tokens": pl.Int64,
    "searches": pl.Int32,
    "usage_estimated": pl.Boolean,
    "cost_usd": MONEY,
    "standard_usd": MONEY,  # see `records.Reply`
    "at_most_usd": MONEY,  # so much more it may have cost; null: unknown
    "worst_usd": MONEY,  # what it was reckoned to cost at most before it was sent; null: there was no cap
    "attempts": pl.Int32,
    "rate_limited": pl.Int32,
    "latency_s": pl.Float64,
    "finished_at": _TIME,
    "continuation": pl.String,  # of an answer that goes on, what the request for the rest has to name
    "generation": pl.Int32,  # that bought it, where an earlier one did: it is kept, and not paid here; 0: this one
    "late": pl.Boolean,  # it was answered elsewhere meanwhile: paid for, and used for nothing
}
CALLS_SCHEMA = pl.Schema(_CALLS)
"""One row per reply that was paid for, per prompt that failed without one, and per request that may have been billed
without one: not `paid`, with an estimate of `cost_usd` where something came, and `at_most_usd`."""

IS_BOUGHT = pl.col("generation") == 0
"""Whether a call was paid by the run of its directory; the others are kept from earlier generations."""

IS_REQUEST = (pl.col("step") != "pack") | (pl.col("chunk") == 0)
"""Whether a call is a request of its own: of the calls of a pack, one for each of its rows, the first is."""

_RESULTS: dict[str, PolarsDataType] = {
    "row": pl.Int64,
    "key": pl.String,
    "status": pl.String,
    "response": pl.String,
    "error_kind": pl.String,
    "error": pl.String,
    "finish_reason": pl.String,
    "model": pl.String,
    "target": pl.String,
    **_TOKENS,
    "input_tokens_est": pl.Int64,
    "usage_estimated": pl.Boolean,  # some of its tokens or cost; null: an older version did not say
    "cost_usd": MONEY,
    "calls": pl.Int32,
    "chunks": pl.Int32,
    "attempts": pl.Int32,
    "rate_limited": pl.Int32,
    "latency_s": pl.Float64,
    "finished_at": _TIME,
    "changes": pl.String,  # what `--set` changed of [model] for this outcome, as JSON
    "extras": pl.String,  # what came beside the answer, as JSON
}
RESULTS_SCHEMA = pl.Schema(_RESULTS)
"""One row per outcome of a document; a later part replaces the outcome of an earlier one."""

_ADDED: dict[str, pl.Expr] = {
    "at_most_usd": pl.lit(0, MONEY),
    "worst_usd": pl.lit(None, MONEY),
    "usage_estimated": pl.lit(None, pl.Boolean),
    "target": pl.lit(None, pl.String),
    "extras": pl.lit(None, pl.String),
    "searches": pl.lit(0, pl.Int32),
    "lane": pl.lit("standard", pl.String),
    "fell_back": pl.lit(None, pl.String),
    "standard_usd": pl.lit(None, MONEY),
    "continuation": pl.lit(None, pl.String),
    "generation": pl.lit(0, pl.Int32),
    "late": pl.lit(False, pl.Boolean),
}
"""Columns that parts of an older version lack."""


def calls_frame(calls: Sequence[Call], answers: dict[int, str | None]) -> pl.DataFrame:
    """Calls as columns; `answers` are the responses by row, whose text is not stored a second time."""
    replies = [call.reply for call in calls]
    columns: dict[str, list[Any]] = {
        "row": [call.row for call in calls],
        "key": [call.key for call in calls],
        "step": [call.step for call in calls],
        "level": [call.level for call in calls],
        "chunk": [call.chunk for call in calls],
        "chunks": [call.chunks for call in calls],
        "fingerprint": [call.fingerprint for call in calls],
        "paid": [call.paid for call in calls],
        "status": [reply.status for reply in replies],
        "error_kind": [reply.error_kind for reply in replies],
        "error": [reply.error for reply in replies],
        "finish_reason": [reply.finish_reason for reply in replies],
        "text": [None if call.reply.text == answers.get(call.row) else call.reply.text for call in calls],
        "extras": [reply.extras or None for reply in replies],
        "raw": [reply.raw.decode("utf-8", "replace") or None for reply in replies],
        "model": [reply.model for reply in replies],
        "endpoint": [reply.endpoint for reply in replies],
        "target": [reply.target or None for reply in replies],
        "lane": [reply.lane for reply in replies],
        "fell_back": [reply.fell_back for reply in replies],
        "response_id": [reply.response_id for reply in replies],
        "input_tokens_est": [call.input_tokens_est for call in calls],
        "input_tokens": [reply.usage.input_tokens for reply in replies],
        "cached_tokens": [reply.usage.cached_tokens for reply in replies],
        "output_tokens": [reply.usage.output_tokens for reply in replies],
        "thinking_tokens": [reply.usage.thinking_tokens for reply in replies],
        "tool_tokens": [reply.usage.tool_tokens for reply in replies],
        "searches": [reply.usage.searches for reply in replies],
        "usage_estimated": [reply.usage.estimated for reply in replies],
        "cost_usd": [reply.cost_usd for reply in replies],
        "standard_usd": [reply.standard_usd for reply in replies],
        "at_most_usd": [reply.at_most_usd for reply in replies],
        "worst_usd": [reply.worst_usd for reply in replies],
        "attempts": [reply.attempts for reply in replies],
        "rate_limited": [reply.rate_limited for reply in replies],
        "latency_s": [_seconds(reply.latency_s) for reply in replies],
        "finished_at": [_moment(reply.finished_at) for reply in replies],
        "continuation": [reply.continuation or None for reply in replies],
        "generation": [reply.generation for reply in replies],
        "late": [call.late for call in calls],
    }
    return _frame(columns, CALLS_SCHEMA)


def results_frame(results: Iterable[Result]) -> pl.DataFrame:
    """Results as columns, in row order."""
    rows = sorted(results, key=lambda result: result.row)
    columns: dict[str, list[Any]] = {
        "row": [result.row for result in rows],
        "key": [result.key for result in rows],
        "status": [result.status for result in rows],
        "response": [result.response for result in rows],
        "error_kind": [result.error_kind for result in rows],
        "error": [result.error for result in rows],
        "finish_reason": [result.finish_reason for result in rows],
        "model": [result.model for result in rows],
        "target": [result.target for result in rows],
        "input_tokens": [result.usage.input_tokens + result.usage.tool_tokens for result in rows],
        "cached_tokens": [result.usage.cached_tokens for result in rows],
        "output_tokens": [result.usage.output_tokens for result in rows],
        "thinking_tokens": [result.usage.thinking_tokens for result in rows],
        "input_tokens_est": [result.input_tokens_est for result in rows],
        "usage_estimated": [result.usage.estimated for result in rows],
        "cost_usd": [result.cost_usd for result in rows],
        "calls": [result.calls for result in rows],
        "chunks": [result.chunks for result in rows],
        "attempts": [result.attempts for result in rows],
        "rate_limited": [result.rate_limited for result in rows],
        "latency_s": [_seconds(result.latency_s) for result in rows],
        "finished_at": [result.finished_at for result in rows],
        "changes": [result.changes for result in rows],
        "extras": [result.extras for result in rows],
    }
    return _frame(columns, RESULTS_SCHEMA)


def _frame(columns: dict[str, list[Any]], schema: pl.Schema) -> pl.DataFrame:
    """The columns as they are, or, where one value does not fit its type, with that value at the edge of what does.

    A number that nobody can have meant must not cost the other rows of the seal: its call says `usage_estimated`.
    """
    if all(usd is None or usd.is_finite() for usd in columns["cost_usd"]):  # polars panics on one that is not
        with suppress(pl.exceptions.PolarsError, TypeError, ValueError, ArithmeticError):
            return pl.DataFrame(columns, schema=schema)
    fitted = {name: [_fitting(value, schema[name]) for value in values] for name, values in columns.items()}
    if "usage_estimated" in columns:
        counts = [name for name, kind in schema.items() if kind in (pl.Int64, MONEY)]
        fitted["usage_estimated"] = [
            estimated or any(columns[name][at] != fitted[name][at] for name in counts)
            for at, estimated in enumerate(columns["usage_estimated"])
        ]
    return pl.DataFrame(fitted, schema=schema)


def _fitting(value: Any, kind: PolarsDataType) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Decimal):
        return min(max(value, -_MOST_MONEY), _MOST_MONEY) if value.is_finite() else _MOST_MONEY
    if isinstance(value, int) and kind in (pl.Int32, pl.Int64):
        most = 2 ** (31 if kind == pl.Int32 else 63) - 1
        return min(max(value, -most), most)
    return value


def _moment(seconds: float) -> datetime:
    """Epoch seconds as a time, the nearest one that there is."""
    return datetime.fromtimestamp(min(max(_seconds(seconds), 0.0), _LAST_S), UTC)


def _seconds(seconds: float) -> float:
    """A number that sums and quantiles can be made of."""
    return seconds if math.isfinite(seconds) else 0.0


def write_part(frame: pl.DataFrame, directory: Path, number: int, run: str = "") -> Sealed:
    """Write one part of a run so that it is whole or not there, whatever happens in between."""
    return write_frame(
        frame, part_path(directory, number), run, "What it was to hold is still in the journal: nothing is lost."
    )


def write_frame(frame: pl.DataFrame, final: Path, run: str, kept: str) -> Sealed:
    """Write a Parquet file of a run as `write_part`; `kept` says what is not lost where the disk refuses it."""
    hidden = final.with_name(f".{final.name}.tmp")
    encoded = io.BytesIO()  # polars would report a full disk as a fault of the file's format
    frame.write_parquet(encoded, compression="zstd", metadata={OWNER: run})
    try:
        hidden.touch(0o600)
        with hidden.open("wb") as file:
            file.write(encoded.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        machine.replace(hidden, final)
        machine.sync_directory(final.parent)
    except OSError as error:
        with suppress(OSError):  # the next start removes it
            hidden.unlink(missing_ok=True)
        raise RunStateError(
            f"cannot write {final}: {error.strerror}\n{kept}",
            "make room or mend the disk, then run the same command again",
        ) from None
    content = encoded.getbuffer()
    return Sealed(f"{final.parent.name}/{final.name}", frame.height, len(content), digest(content))


def describe(path: Path) -> Sealed:
    """A file of parts as it lies there. Raises `RunStateError` for a damaged one."""
    rows = int(_scanned(path, lambda part: part.select(pl.len())).item())
    return Sealed(f"{path.parent.name}/{path.name}", rows, path.stat().st_size, digest_of(path))


def check_owner(path: Path, run: str) -> None:
    """Raise `RunStateError` for a part of another run; one of an older version does not say whose it is."""
    try:
        theirs = pl.read_parquet_metadata(path).get(OWNER)
    except FileNotFoundError:  # half a seal, removed meanwhile
        return
    except (pl.exceptions.PolarsError, OSError):
        raise damaged(path) from None
    if theirs and run and theirs != run:
        raise RunStateError(
            f"{path} belongs to another run: it was not written by this one\nNothing was bought or written.",
            "move it out of this directory to go on; what this run bought stands in its own journals and parts",
        )


def part_path(directory: Path, number: int) -> Path:
    """Where part `number` is, or would be if it had a file of its own."""
    return directory / f"part-{number:06d}.parquet"


def part_paths(directory: Path) -> list[Path]:
    """The parts of a directory in the order they were sealed, each by the path of a file of its own.

    Not all have one: `read_part` reads what lies in a file of several (`store.compacted`). A file of another name, as a
    copy, is none. Raises `RunStateError` for a file of several that is damaged.
    """
    return sorted({*_own(directory), *(part_path(directory, number) for number in compacted.found(directory))})


def files(directory: Path) -> list[Path]:
    """The files in which the parts of a directory lie, those of one part first."""
    return [*_own(directory), *compacted.paths(directory)]


def file_of(part: Path) -> Path:
    """The file in which a part lies."""
    stretch = None if part.exists() else compacted.found(part.parent).get(part_number(part))
    return stretch.file if stretch else part


def superfluous(directory: Path, known: Mapping[str, Sealed]) -> Iterator[Path]:
    """Files that no line tells of, and whose parts all lie in others too: so a kill leaves them that comes while parts
    are put together, and nothing is lost with them."""
    held = {path: {part_number(path)} for path in _own(directory)}
    held |= {path: set(compacted.stretches(path)) for path in compacted.paths(directory)}
    lying = {number for path, numbers in held.items() if noted(path, known) for number in numbers}
    for path, numbers in held.items():
        if not noted(path, known):
            if numbers <= lying:
                yield path
            lying |= numbers


def _own(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("part-*.parquet") if _PART.fullmatch(path.name))


def part_number(path: Path) -> int:
    """Number of a part's file."""
    return int(path.stem.removeprefix("part-"))


def newest(results: Path) -> int:
    """Number of the newest part, 0 when there is none: the seal that was completed last."""
    return max(map(part_number, part_paths(results)), default=0)


def void(directory: Path) -> list[Path]:
    """Calls parts of a seal that was not completed: the journal still holds all that is in them."""
    sealed = newest(directory / "results")
    return [path for path in part_paths(directory / "calls") if part_number(path) > sealed]


def read_parts(directory: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Some columns of each part, oldest first. Raises `RunStateError` for a damaged part."""
    return (read_part(path, columns) for path in part_paths(directory))


def read_part(path: Path, columns: Sequence[str], start: int = 0, count: int | None = None) -> pl.DataFrame:
    """Some columns of one part, in the order asked for, of `count` rows from its row number `start` on.

    Raises `RunStateError` when it is damaged. Memory is that of these rows: a slice of the whole would keep all of it.
    """

    def read(part: pl.LazyFrame, start: int = start, count: int | None = count) -> pl.LazyFrame:
        if lacking := (_ADDED.keys() & columns) - part.collect_schema().keys():
            part = part.with_columns(_ADDED[name].alias(name) for name in lacking)
        return part.select(columns).slice(start, count)

    try:
        return _scanned(path, read)
    except FileNotFoundError:
        stretch = compacted.found(path.parent).get(part_number(path)) if _PART.fullmatch(path.name) else None
        if stretch is None:
            raise damaged(path) from None
    rest = max(0, stretch.rows - start)
    within = partial(read, start=stretch.start + start, count=rest if count is None else min(count, rest))
    return _scanned(stretch.file, within)


def _scanned(path: Path, read: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    try:
        return read(pl.scan_parquet(path, glob=False)).collect()
    except FileNotFoundError:
        raise
    except PermissionError:
        raise RunStateError(
            f"{path} cannot be read: permission denied\nNothing is wrong with it.",
            "run as the user who owns it, or `chmod u+r` it; then the same command again",
        ) from None
    except (pl.exceptions.PolarsError, OSError):
        raise damaged(path) from None
