"""What the page shows of a run beside its rows: sums, in bounded memory."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.records import CAUSES, STATUSES
from pipeline.report import RUN_KEYS, Summary, summarize
from pipeline.report.accuracy import baseline
from pipeline.report.causes import cause_json
from pipeline.report.events import Ended, Event, Planned, Started, read_events
from pipeline.report.page.timeline import marks, over_time
from pipeline.report.reading import Answers
from pipeline.store import parts

EXTREMES = 20
"""Rows that are listed as the slowest and the dearest."""
EDGES = (0, *sorted({round(2 ** (quarter / 4)) for quarter in range(100)}))
"""Where the classes of lengths in tokens begin: each a fifth longer than the one before."""

_EXTREME = ("row", "key", "status", "latency_s", "cost_usd", "input_tokens", "output_tokens", "thinking_tokens")
_SERVED = ("generation", "paid", "step", "chunk", "model", "target", "lane", "cost_usd")
_LENGTHS = ("generation", "paid", "step", "chunk", "input_tokens", "tool_tokens", "output_tokens", "thinking_tokens")
_HIDDEN = ("run_dir", "output", "left_out", "models_noted", "causes")


def gather(directory: Path, answers: Answers, *, text: bool) -> dict[str, Any]:
    """All of the page but its rows, ready for JSON. Raises `RunStateError` as `report.summarize`."""
    summary, events = summarize(directory), read_events(directory / "run.log")
    numbers = summary.as_json()
    slowest, dearest = _extremes(answers, "latency_s"), _extremes(answers, "cost_usd")
    if not text:
        numbers = {name: value for name, value in numbers.items() if name not in _HIDDEN}
        for row in (*slowest, *dearest):
            del row["row"], row["key"]
    return {
        "text": text,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": summary.manifest.model,
        "statuses": STATUSES,
        "summary": numbers,
        "means": {name: told for name, told in RUN_KEYS.items() if name in numbers},
        "job": summary.manifest.identity if text else None,
        "pending": summary.pending,
        "reason": _reason(events) if text else "",
        "causes": _causes(summary, text),
        "series": over_time(answers.call_frames, events),
        "estimate": _estimate(summary, events),
        "marks": marks(events, summary, text=text),
        "lengths": _lengths(answers),
        "groups": _groups(answers),
        "slowest": slowest,
        "dearest": dearest,
    }


def _reason(events: Sequence[Event]) -> str:
    """Why the last session ended, where something stopped it."""
    last = next((event for event in reversed(events) if isinstance(event, Started | Ended)), None)
    return last.reason if isinstance(last, Ended) else ""


def _causes(summary: Summary, text: bool) -> list[dict[str, Any]]:
    """Causes of rows that are not ok, with what happened and, as the command names a path, with `text` what helps."""
    means = {str(cause): told for cause, told in CAUSES.items()}
    told = [cause_json(cause, summary.manifest) for cause in summary.causes]
    return [
        {**each, "what": means.get(str(each["cause"]), ""), "cure": each["cure"] if text else None} for each in told
    ]


def _estimate(summary: Summary, events: Sequence[Event]) -> dict[str, tuple[float, float, float]]:
    """Least, expected and most of what the whole run was to take, as `accuracy` has it; nothing where none is known."""
    plan = baseline(events)
    if plan is None or plan.redo or summary.accuracy is None:
        return {}
    event = events[plan.position]
    assert isinstance(event, Planned)
    planned = {
        "input_tokens": sum(each.input_tokens for each in plan.steps.values()),
        "output_tokens": sum(each.output_tokens for each in plan.steps.values()),
        "cost_usd": sum(float(each.cost_usd or 0) for each in plan.steps.values()),
    }
    total, found = summary.accuracy.estimated["total"], {}
    for name, expected in planned.items():
        if (value := getattr(total, name)) is not None:
            low, high = event.between.get(name, (expected, expected))
            before = float(value) - expected  # what was bought before the plan is known
            found[name] = (before + low, float(value), before + high)
    return found


def _lengths(answers: Answers) -> dict[str, list[tuple[int, int]]]:
    """Of requests by their tokens: where each class begins, and how many there are, those between included."""
    lengths: dict[str, Counter[int]] = {"in": Counter(), "out": Counter()}
    for frame in answers.call_frames(_LENGTHS):
        asked = frame.filter(parts.IS_BOUGHT & pl.col("paid") & parts.IS_REQUEST)
        for name, tokens in (
            ("in", asked["input_tokens"] + asked["tool_tokens"]),
            ("out", asked["output_tokens"] + asked["thinking_tokens"]),
        ):
            for number, count in tokens.value_counts().iter_rows():
                lengths[name][bisect_right(EDGES, max(0, number)) - 1] += count
    return {
        name: [(EDGES[place], counts[place]) for place in range(min(counts), max(counts) + 1)]
        for name, counts in lengths.items()
        if counts
    }


def _groups(answers: Answers) -> list[tuple[str, str, str, int, float]]:
    """Model, target and lane, with their requests and USD."""
    calls: Counter[tuple[str, str, str]] = Counter()
    usd: dict[tuple[str, str, str], float] = {}
    for frame in answers.call_frames(_SERVED):
        sums = frame.filter(parts.IS_BOUGHT).group_by("model", "target", "lane")
        for model, target, lane, number, cost in sums.agg(
            (pl.col("paid") & parts.IS_REQUEST).sum().alias("calls"), pl.col("cost_usd").cast(pl.Float64).sum()
        ).iter_rows():
            group = model or "", target or "", lane
            calls[group] += number
            usd[group] = usd.get(group, 0.0) + cost
    return [(*group, number, round(usd[group], 8)) for group, number in sorted(calls.items())]


def _extremes(answers: Answers, by: str) -> list[dict[str, Any]]:
    def largest(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        yield from (frame.with_columns(pl.col("cost_usd").cast(pl.Float64)).top_k(EXTREMES, by=by) for frame in frames)

    found = pl.concat(largest(answers.frames(_EXTREME)))
    return found.top_k(EXTREMES, by=by).sort(by, descending=True, nulls_last=True).to_dicts()
