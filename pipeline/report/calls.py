"""Every call of a run as one table: what its parts and its journal hold, and the failed requests of its log."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import polars as pl
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pipeline.providers.stored import parse_stored
from pipeline.report.events import LINE_BYTES, Count, Seconds
from pipeline.store import batched, parts
from pipeline.store.parts import CALLS_SCHEMA
from pipeline.store.state import load_unsealed
from pipeline.store.units import is_cut, units

_AS_KEPT = ("step", "level", "chunk", "chunks", "target", "endpoint", "lane", "model", "status", "error_kind")
_COUNTED = ("input_tokens", "cached_tokens", "output_tokens", "thinking_tokens", "tool_tokens", "usage_estimated")
_READ = (
    *("row", "finished_at", "paid", *_AS_KEPT, "finish_reason", "response_id", "attempts", "rate_limited"),
    *("latency_s", *_COUNTED, "cost_usd", "at_most_usd", "generation", "late"),
)

CALL_MEANS: dict[str, str] = {
    "at": "when it came back, UTC; of a call in a batch, when that ended",
    "what": "`answer`: it was paid for; `outcome`: a prompt that ended without one, or a request that may have been"
    " billed without one; `failed`: a request that came back without an answer, from `run.log`",
    "row": "number of its row, from 0; null: of none, or of several",
    "step": "what was asked for: `answer`, `map`, `reduce`, …; a pack has a line for each of its rows",
    "level": "of a merge, from 1",
    "chunk": "which piece it was of, from 0",
    "chunks": "how many there were",
    "target": "by its name in the job file",
    "endpoint": "who speaks the protocol, and the host",
    "lane": "`standard`, `flex` or `batch`",
    "model": "the model that answered, as the service names it",
    "status": "as in the output; of a failed request null",
    "error_kind": "the cause, where there is one",
    "http_status": "of a failed request, where there was a response",
    "finish_reason": "why the answer ended, as the service names it",
    "response_id": "the service's name of the answer",
    "attempt": "which request for its prompt it was, refusals counted",
    "requests": "requests that the line stands for: above 1 where many failed alike; 0 where others stand for them",
    "latency_s": "seconds that the request took; 0 in a batch",
    "input_tokens": "as billed, cached ones included",
    "cached_tokens": "those of them that came from the service's cache",
    "output_tokens": "without thinking",
    "thinking_tokens": "billed as output",
    "tool_tokens": "billed as input",
    "usage_estimated": "true where tokens or cost are an estimate",
    "cost_usd": "null: unknown",
    "at_most_usd": "so much more it may have cost; null: unknown",
    "generation": "that bought it, where an earlier one did; 0: this one",
    "late": "true where its prompt was answered elsewhere meanwhile",
}
"""Columns of the table, and what stands in them: no prompt, no answer, no id of a row."""

_OWN: dict[str, parts.PolarsDataType] = {
    "at": CALLS_SCHEMA["finished_at"],
    "what": pl.String,
    "http_status": pl.Int32,
    "attempt": pl.Int32,
    "requests": pl.Int32,
    "cost_usd": pl.Float64,
    "at_most_usd": pl.Float64,
}
CALL_COLUMNS: dict[str, parts.PolarsDataType] = {
    name: _OWN[name] if name in _OWN else CALLS_SCHEMA[name] for name in CALL_MEANS
}
_LOG_LINES = 4_096


class FailedRequests(BaseModel):
    """An event `failed` of run.log."""

    event: Literal["failed"]
    at: datetime
    requests: Count
    cause: Annotated[str, Field(max_length=100)]
    lane: Annotated[str, Field(max_length=100)]
    target: Annotated[str, Field(max_length=1_000)] | None = None
    http_status: Count | None = None
    attempt: Count | None = None
    latency_s: Seconds | None = None
    row: Count | None = None
    shed: bool = False  # logs from before 2026-11-30 do not say it


def frames(directory: Path) -> Iterator[pl.DataFrame]:
    """The table in pieces, in the order in which things were kept, failed requests last; bounded in memory.

    Of a run of shards it is one shard after the other.
    A run that goes on is read as it is now. Raises `RunStateError` for a directory that is damaged.
    """
    for unit in units(directory):
        yield from (_counted(frame, unit.first_row) for frame in _own(unit.directory))
    if is_cut(directory):
        yield from _failed(directory / "run.log")


def _own(directory: Path) -> Iterator[pl.DataFrame]:
    unsealed = load_unsealed(directory, parse_stored)
    for path in parts.part_paths(directory / "calls"):
        if parts.part_number(path) <= unsealed.sealed:
            yield _typed(parts.read_part(path, _READ))
    for path in batched.part_paths(directory):
        yield _typed(parts.read_part(path, _READ))
    yield _typed(parts.calls_frame(unsealed.calls, {}).select(_READ))
    yield from _failed(directory / "run.log")


def _counted(frame: pl.DataFrame, first_row: int) -> pl.DataFrame:
    return frame.with_columns(pl.col("row") + first_row) if first_row else frame


def _typed(calls: pl.DataFrame) -> pl.DataFrame:
    paid = pl.col("paid")
    is_request = paid & ((pl.col("step") != "pack") | (pl.col("chunk") == 0))
    return calls.select(
        at=pl.col("finished_at"),
        what=pl.when(paid).then(pl.lit("answer")).otherwise(pl.lit("outcome")),
        row=pl.when(pl.col("row") >= 0).then(pl.col("row")),
        **{name: pl.col(name) for name in _AS_KEPT},
        http_status=pl.lit(None, pl.Int32),
        finish_reason=pl.col("finish_reason"),
        response_id=pl.col("response_id"),
        attempt=(pl.col("attempts") + pl.col("rate_limited")).cast(pl.Int32),
        requests=is_request.cast(pl.Int32),
        latency_s=pl.col("latency_s").round(6),
        **{name: pl.col(name) for name in _COUNTED},
        cost_usd=pl.col("cost_usd").cast(pl.Float64),
        at_most_usd=pl.col("at_most_usd").cast(pl.Float64),
        generation=pl.col("generation"),
        late=pl.col("late"),
    )


def _failed(log: Path) -> Iterator[pl.DataFrame]:
    found: list[FailedRequests] = []
    for event in failed_requests(log):
        found.append(event)
        if len(found) == _LOG_LINES:
            yield _as_frame(found)
            found = []
    if found:
        yield _as_frame(found)


def failed_requests(log: Path) -> Iterator[FailedRequests]:
    """Those that the log tells of; a line that is damaged, or another event, is passed over."""
    one = TypeAdapter(FailedRequests)
    try:
        with log.open("rb") as file:
            for line in iter(lambda: file.readline(LINE_BYTES), b""):
                if b'"failed"' in line:
                    try:
                        yield one.validate_json(line)
                    except ValidationError:
                        continue
    except OSError:
        return


class Unanswered(NamedTuple):
    """Requests that came back without an answer."""

    failed: int
    rate_limited: int
    shed: int


def unanswered(log: Path) -> Unanswered:
    """How many the log tells of: of a killed session those too that came after its last numbers."""
    found = Counter[str]()
    for each in failed_requests(log):
        found["shed" if each.shed else "rate_limited" if each.cause == "quota" else "failed"] += each.requests
    return Unanswered(found["failed"], found["rate_limited"], found["shed"])


def _as_frame(failed: list[FailedRequests]) -> pl.DataFrame:
    most = 2**31 - 1
    known = {
        "at": [each.at.astimezone(UTC) for each in failed],
        "what": ["failed"] * len(failed),
        "row": [each.row for each in failed],
        "target": [each.target for each in failed],
        "lane": [each.lane for each in failed],
        "error_kind": [each.cause for each in failed],
        "http_status": [each.http_status and min(each.http_status, most) for each in failed],
        "attempt": [each.attempt and min(each.attempt, most) for each in failed],
        "requests": [min(each.requests, most) for each in failed],
        "latency_s": [each.latency_s for each in failed],
    }
    empty = [None] * len(failed)
    return pl.DataFrame({name: known.get(name, empty) for name in CALL_COLUMNS}, schema=CALL_COLUMNS)
