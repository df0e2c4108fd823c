"""What the page shows of a run: sums over time, and rows, in bounded memory."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.providers.stored import parse_stored
from pipeline.records import STATUSES
from pipeline.report import summarize
from pipeline.report.latencies import Latencies
from pipeline.store import batched, parts
from pipeline.store.state import load_unsealed

BINS = 400
"""Points of a chart at most."""
FEWEST_BINS = 10
"""A chart of one point has no scale."""
ROWS = 5_000
"""Rows that are shown at most, evenly spread over the run; 100,000 answers would take more than 10 MB."""
TEXT_CHARS = 2_000
"""Of an answer, so much is shown."""
PIECE_CHARS = 500
PIECES = 20_000
"""Calls of these rows that are shown at most."""
EXTREMES = 20

_TIMED = (
    "finished_at",
    "paid",
    "step",
    "chunk",
    "model",
    "target",
    "lane",
    "rate_limited",
    "status",
    "latency_s",
    "generation",
)
_COUNTED = (*_TIMED, "input_tokens", "tool_tokens", "output_tokens", "thinking_tokens", "cost_usd")
_ROW = ("row", "key", "status", "error_kind", "error", "model", "input_tokens", "output_tokens", "thinking_tokens")
_SHOWN = (*_ROW, "cost_usd", "latency_s", "chunks", "response")
_PIECE = ("row", "step", "level", "chunk", "status", "text")
_HIDDEN = ("run_dir", "output", "left_out", "models_noted")


def gather(directory: Path, *, text: bool) -> dict[str, Any]:
    """Everything that the page shows, ready for JSON. Raises `RunStateError` as `report.summarize`."""
    summary = summarize(directory)
    numbers = summary.as_json()
    job: object = summary.manifest.identity
    if not text:
        numbers = {name: value for name, value in numbers.items() if name not in _HIDDEN}
        job = None
    unsealed = load_unsealed(directory, parse_stored)
    fresh_calls = parts.calls_frame(unsealed.calls, {})
    fresh_results = parts.results_frame(unsealed.results.values())
    call_paths = [p for p in parts.part_paths(directory / "calls") if parts.part_number(p) <= unsealed.sealed]
    call_paths += batched.part_paths(directory)

    def calls(columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        yield from (parts.read_part(path, columns) for path in call_paths)
        yield fresh_calls.select(columns)

    def results(columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        yield from (
            parts.read_part(path, columns)
            for path in parts.part_paths(directory / "results")
            if parts.part_number(path) <= unsealed.sealed
        )
        yield fresh_results.select(columns)

    rows = list(_rows(results, max(1, -(-summary.rows // ROWS))).values())
    slowest, dearest = _extremes(results, "latency_s"), _extremes(results, "cost_usd")
    pieces = _pieces(calls, {row["row"] for row in rows if row["chunks"] != 1}) if text else []
    if not text:
        for row in (*rows, *slowest, *dearest):
            for name in ("row", "key", "error", "response"):
                row.pop(name, None)
    return {
        "text": text,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": summary.manifest.model,
        "statuses": STATUSES,
        "summary": numbers,
        "job": job,
        "pending": summary.pending,
        **_over_time(calls),
        "rows": rows,
        "slowest": slowest,
        "dearest": dearest,
        "pieces": pieces,
        "cut_at": TEXT_CHARS,
    }


def _over_time(calls: Any) -> dict[str, Any]:
    first, last = None, None
    for kept_too in calls(("finished_at", "generation")):
        frame = kept_too.filter(parts.IS_BOUGHT)  # others were bought on days before
        low, high = frame["finished_at"].min(), frame["finished_at"].max()
        if low is not None:
            first = low if first is None else min(first, low)
            last = high if last is None else max(last, high)
    if first is None or last is None:
        return {"series": None, "groups": []}
    width_s = max(1.0, (last - first).total_seconds() / (BINS - 1))
    names = ("calls", "input", "output", "refused", "failed", "usd")
    sums: dict[str, Counter[int]] = {name: Counter() for name in names}
    latencies: dict[int, Latencies] = {}
    groups: Counter[tuple[str, str, str]] = Counter()
    cost: dict[tuple[str, str, str], float] = {}
    request = pl.col("paid") & parts.IS_REQUEST
    for frame in calls(_COUNTED):
        binned = frame.filter(parts.IS_BOUGHT).with_columns(
            ((pl.col("finished_at") - first).dt.total_milliseconds() // int(width_s * 1000)).alias("bin")
        )
        grouped = binned.group_by("bin").agg(
            request.sum().alias("calls"),
            (pl.col("input_tokens") + pl.col("tool_tokens")).sum().alias("input"),
            (pl.col("output_tokens") + pl.col("thinking_tokens")).sum().alias("output"),
            pl.col("rate_limited").sum().alias("refused"),
            (pl.col("status") == "error").sum().alias("failed"),
            pl.col("cost_usd").cast(pl.Float64).sum().alias("usd"),
        )
        for row in grouped.iter_rows(named=True):
            for name in names:
                sums[name][row["bin"]] += row[name]
        live = binned.filter(pl.col("paid") & (pl.col("lane") != "batch"))
        for (number,), some in live.group_by("bin"):
            latencies.setdefault(int(str(number)), Latencies()).add(some["latency_s"])
        for model, target, lane, count, usd in (
            binned.group_by("model", "target", "lane")
            .agg(request.sum().alias("n"), pl.col("cost_usd").cast(pl.Float64).sum())
            .iter_rows()
        ):
            group = (model or "", target or "", lane)
            groups[group] += count
            cost[group] = cost.get(group, 0.0) + usd
    bins = range(max(FEWEST_BINS, max(sums["calls"], default=0) + 1))
    series: dict[str, list[float | None]] = {name: [sums[name][n] for n in bins] for name in names}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        series[name] = [latencies[n].quantile(share) if n in latencies else None for n in bins]
    return {
        "series": {"from": first.timestamp(), "width_s": width_s, **series},
        "groups": [[*group, count, cost[group]] for group, count in sorted(groups.items())],
    }


def _rows(results: Any, step: int) -> Mapping[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    short = pl.col("response").str.slice(0, TEXT_CHARS + 1)
    for frame in results(_SHOWN):
        some = frame.filter(pl.col("row") % step == 0).with_columns(short, pl.col("cost_usd").cast(pl.Float64))
        found.update((row["row"], row) for row in some.iter_rows(named=True))
    return dict(sorted(found.items()))


def _extremes(results: Any, by: str) -> list[dict[str, Any]]:
    columns = ("row", "key", "status", "latency_s", "cost_usd", "input_tokens", "output_tokens")
    newest = pl.DataFrame()
    for frame in results(columns):
        some = frame.with_columns(pl.col("cost_usd").cast(pl.Float64)).top_k(EXTREMES, by=by)
        newest = pl.concat([newest, some]) if newest.width else some
        newest = newest.unique("row", keep="last").top_k(EXTREMES, by=by)
    return newest.sort(by, descending=True, nulls_last=True).to_dicts()


def _pieces(calls: Any, rows: set[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for frame in calls(_PIECE):
        some = frame.filter(pl.col("row").is_in(list(rows))).with_columns(pl.col("text").str.slice(0, PIECE_CHARS))
        found += some.head(PIECES - len(found)).to_dicts()
    return found
