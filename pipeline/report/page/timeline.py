"""What happened when: sums over calls by the moment at which they came back, and what the log says beside them."""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from math import ceil
from typing import Any

import polars as pl

from pipeline.report import Summary
from pipeline.report.events import Ended, Event, LeftOut, Limited, ModelNoted, Planned, Progressed, Started, Told
from pipeline.report.latencies import Latencies
from pipeline.store import parts

POINTS = 400
"""About so many points has a chart of a run that was busy all the time."""
WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400)
"""Seconds that one point stands for; those below a minute divide it."""
MINUTE_S = 60
MARKS = 400
"""Events that are listed at most: the first half of them, and the last."""

COLUMNS = (
    *("finished_at", "generation", "paid", "step", "chunk", "lane", "status", "latency_s"),
    *("input_tokens", "tool_tokens", "output_tokens", "thinking_tokens", "cost_usd"),
)
_SUMS = ("calls", "live_input", "live_output", "input", "output", "usd")

Calls = Callable[[tuple[str, ...]], Iterator[pl.DataFrame]]


@dataclass
class _Sums:
    """Sums by bin: bin 0 begins at `since`, epoch seconds."""

    since: float
    width_s: int
    of: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in _SUMS})
    latencies: dict[int, Latencies] = field(default_factory=dict)

    def bin(self, at: float) -> int:
        """Where this moment falls."""
        return int((at - self.since) // self.width_s)

    def add(self, calls: pl.DataFrame) -> None:
        """Add what this run bought; what a batch answered is live nowhere: it came at once, and counts against no
        minute's quota."""
        live = pl.col("lane") != "batch"
        given = pl.col("input_tokens") + pl.col("tool_tokens")
        made = pl.col("output_tokens") + pl.col("thinking_tokens")
        since_ms, width_ms = round(self.since * 1000), self.width_s * 1000
        binned = calls.filter(parts.IS_BOUGHT).with_columns(
            ((pl.col("finished_at").dt.epoch("ms") - since_ms) // width_ms).alias("bin")
        )
        sums = binned.group_by("bin").agg(
            (pl.col("paid") & parts.IS_REQUEST & live).sum().alias("calls"),
            given.filter(live).sum().alias("live_input"),
            made.filter(live).sum().alias("live_output"),
            given.sum().alias("input"),
            made.sum().alias("output"),
            pl.col("cost_usd").cast(pl.Float64).sum().alias("usd"),
        )
        for row in sums.iter_rows(named=True):
            for name in _SUMS:
                self.of[name][row["bin"]] += row[name]
        for (number,), some in binned.filter(pl.col("paid") & live).group_by("bin"):
            self.latencies.setdefault(int(str(number)), Latencies()).add(some["latency_s"])


def over_time(calls: Calls, events: Sequence[Event]) -> dict[str, Any] | None:
    """Series for charts, each with a value at every moment of `at`; None where nothing happened at all."""
    troubles = list(_troubles(events))
    firsts, minutes = [at for at, _, _ in troubles], set[int]()
    for frame in calls(("finished_at", "generation")):
        seconds = frame.filter(parts.IS_BOUGHT)["finished_at"].dt.epoch("s")  # others were bought on days before
        minutes.update((seconds // MINUTE_S).unique())
        firsts += seconds.bottom_k(1).to_list()
    if not firsts:
        return None
    started = (event.at.timestamp() for event in events if isinstance(event, Started) and event.at)
    since = float(int(min([*started, *firsts])))
    sums = _Sums(since, _width_s(len(minutes)))
    for frame in calls(COLUMNS):
        sums.add(frame)
    trouble: dict[str, Counter[int]] = {}
    for until, what, number in troubles:
        trouble.setdefault(what, Counter())[sums.bin(until)] += number
    used = {*sums.of["calls"], *(place for counts in trouble.values() for place in counts)}
    reach = max(1, MINUTE_S // sums.width_s)
    bins = _around(used, reach)
    at = [since + (place + 1) * sums.width_s for place in bins]
    per_minute = {
        name: _rates(sums.of[name], bins, reach, sums.width_s) for name in ("calls", "live_input", "live_output")
    }
    p50, p95 = zip(*_quantiles(sums.latencies, bins, reach), strict=True)
    return {
        "at": at,
        "since": since,
        "width_s": sums.width_s,
        "until": max([at[-1], *(event.at.timestamp() for event in events if event.at)]),
        **per_minute,
        **{name: list(accumulate(sums.of[name][place] for place in bins)) for name in ("input", "output", "usd")},
        "p50": p50,
        "p95": p95,
        "rpm": _limits(events, "requests", at),
        "tpm": _limits(events, "tokens", at),
        "troubles": {what: [counts[place] for place in bins] for what, counts in sorted(trouble.items())},
    }


def _width_s(minutes: int) -> int:
    """Seconds of a point, by the number of minutes in which calls came back: a run may sleep for days between them."""
    wanted = minutes * MINUTE_S / POINTS
    days = ceil(wanted / WIDTHS_S[-1]) * WIDTHS_S[-1]
    return next((width for width in WIDTHS_S if width >= wanted), days)


def _around(used: Collection[int], reach: int) -> list[int]:
    """The bins that have a point: those in which something happened, the minute after, and one without on each side."""
    end = max(used) + 2
    return sorted({place for one in used for place in range(one - 1, min(end, one + reach + 1))})


def _rates(sums: Mapping[int, float], bins: Sequence[int], reach: int, width_s: int) -> list[float]:
    """Of each bin the sum over the minute that ends with it, or over itself where that is longer, a minute."""
    factor = MINUTE_S / (reach * width_s)
    return [round(factor * sum(sums.get(place - back, 0) for back in range(reach)), 3) for place in bins]


def _quantiles(latencies: Mapping[int, Latencies], bins: Iterable[int], reach: int) -> Iterator[list[float | None]]:
    """Median and 95 % of each bin, over the same minute."""
    coming, going, window = deque(sorted(latencies)), deque(sorted(latencies)), Latencies()
    for place in bins:
        while coming and coming[0] <= place:
            window.bins.update(latencies[coming.popleft()].bins)
        while going and going[0] <= place - reach:
            window.bins.subtract(latencies[going.popleft()].bins)
        yield [window.quantile(share) for share in (0.5, 0.95)]


def _limits(events: Iterable[Event], meter: str, at: Sequence[float]) -> list[int | None]:
    """What all targets together were believed to be allowed a minute at each moment; None where nothing was told."""
    steps = [event for event in events if isinstance(event, Limited) and event.meter == meter and event.at]
    known: dict[str, int] = {}
    found: list[int | None] = []
    for moment in at:
        while steps and steps[0].at and steps[0].at.timestamp() <= moment:
            step = steps.pop(0)
            known[step.target] = step.per_minute
        found.append(sum(known.values()) if known else None)
    return found


def _troubles(events: Iterable[Event]) -> Iterator[tuple[float, str, int]]:
    """Requests that were refused for quota or failed: until when, of which kind, how many since the sign before."""
    before: Counter[str] = Counter()
    for event in events:
        if isinstance(event, Started):
            before = Counter()
        elif isinstance(event, Progressed | Ended) and event.at:
            now = Counter(event.failed) + Counter(quota=event.rate_limited)
            for what in now:
                if now[what] > before[what]:
                    yield event.at.timestamp(), what, now[what] - before[what]
            before = now


# --- what is marked ---------------------------------------------------------------------------------------------------


def marks(events: Sequence[Event], summary: Summary, *, text: bool) -> list[dict[str, Any]]:
    """What happened to the run as a whole, oldest first; without `text` it says nothing in words of others."""
    found = [*_marked(events, text), *_batches(summary)]
    if summary.manifest.generation > 1:
        created = datetime.fromisoformat(summary.manifest.created_at)
        found.append((created.timestamp(), "edit", f"an edit began generation {summary.manifest.generation}"))
    found.sort(key=lambda mark: mark[0])
    if len(found) > MARKS:
        left = len(found) - MARKS
        middle = MARKS // 2
        found = [*found[:middle], (found[middle][0], "", f"{left:,} events that are left out here"), *found[-middle:]]
    return [{"at": at, "kind": kind, "text": told} for at, kind, told in found]


def _marked(events: Iterable[Event], text: bool) -> Iterator[tuple[float, str, str]]:
    sessions = 0
    for event in events:
        if event.at is None:
            continue
        at = event.at.timestamp()
        match event:
            case Started(rows=rows):
                sessions += 1
                yield at, "start", f"session {sessions} begins, {rows:,} rows"
            case Ended(status=status, reason=reason):
                yield at, "end", f"{status}: {reason}" if reason and text else status
            case Limited(target=target, meter=meter, per_minute=limit, origin=origin):
                of = f"{target}: " if target and text else ""
                yield at, "limit", f"{of}{limit:,} {meter} a minute, {origin}"
            case Told(event=kind, target=target, message=message, over=over):
                yield (
                    at,
                    f"{kind} over" if over else kind,
                    (f"{target}: {message}" if target else message) if text else "",
                )
            case LeftOut(target=target, message=message):
                yield at, "left out", (f"{target}: {message}" if target else message) if text else ""
            case ModelNoted(message=message):
                yield at, "model", message if text else ""
            case Planned() | Progressed():
                pass


def _batches(summary: Summary) -> Iterator[tuple[float, str, str]]:
    for state in summary.batches:
        of = f"batch {state.number}, {state.lines:,} lines"
        steps = (state.asked_at, "handed in"), (state.ended_at, "ended"), (state.taken_at, "its answers kept")
        for at, what in steps:
            if at is not None:
                yield at, "batch", f"{of}: {what}"
