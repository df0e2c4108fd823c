"""What each lane answered and cost, and what became of the batches."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl

from pipeline.store.batch_states import BatchState
from pipeline.store.fallen import Fallen
from pipeline.store.parts import IS_REQUEST


@dataclass(frozen=True, slots=True)
class InLane:
    """Replies that were served in one lane."""

    calls: int = 0
    cost_usd: Decimal | None = Decimal(0)  # None: a price is unknown
    saved_usd: Decimal = Decimal(0)  # against the standard lane, where that price is known
    late: int = 0  # of them, those whose prompt was answered elsewhere meanwhile
    fell_back: Mapping[str, int] = field(default_factory=dict)  # others, that it was to answer and did not, by cause

    def plus(self, other: "InLane") -> "InLane":
        """Both together."""
        known = self.cost_usd is not None and other.cost_usd is not None
        return InLane(
            self.calls + other.calls,
            self.cost_usd + other.cost_usd if known else None,  # type: ignore[operator]
            self.saved_usd + other.saved_usd,
            self.late + other.late,
            dict(Counter(self.fell_back) + Counter(other.fell_back)),
        )


def by_lane(calls: pl.DataFrame) -> dict[str, InLane]:
    """Sums over calls, from the columns of `store.parts.CALLS_SCHEMA`."""
    sums = calls.group_by("lane").agg(
        (IS_REQUEST & pl.col("paid")).sum(),
        pl.col("cost_usd").sum(),
        (pl.col("paid") & pl.col("cost_usd").is_null()).sum().alias("unknown"),
        (pl.col("standard_usd") - pl.col("cost_usd")).sum().alias("saved"),
        pl.col("late").sum().alias("late"),
    )
    lanes = {
        lane: InLane(requests, None if unknown else Decimal(usd), Decimal(saved), late)
        for lane, requests, usd, unknown, saved, late in sums.iter_rows()
    }
    fell = calls.filter(IS_REQUEST & pl.col("paid") & pl.col("fell_back").is_not_null())["fell_back"]
    if fell.len():
        lanes["flex"] = replace(lanes.get("flex", InLane()), fell_back=Counter(fell))
    return lanes


def together(*sums: Mapping[str, InLane]) -> dict[str, InLane]:
    """Sums of several parts, by lane."""
    return {
        lane: _total(each[lane] for each in sums if lane in each) for lane in sorted({lane for s in sums for lane in s})
    }


def with_fallen(lanes: Mapping[str, InLane], fallen: Fallen, live: Iterable[str]) -> dict[str, InLane]:
    """The same, with what fell back from batches; `live` are those of `fallen.perhaps` that another lane answered."""
    causes = dict(Counter(fallen.causes) + Counter(fallen.perhaps[each] for each in live))
    of_batch = {"batch": replace(lanes.get("batch", InLane()), fell_back=causes)} if causes else {}
    return dict(sorted({**lanes, **of_batch}.items()))


def _total(sums: Iterable[InLane]) -> InLane:
    total = InLane()
    for each in sums:
        total = total.plus(each)
    return total


def lane_json(lane: InLane) -> dict[str, object]:
    """The numbers of one lane, units in the keys."""
    return {
        "calls": lane.calls,
        "cost_usd": None if lane.cost_usd is None else float(round(lane.cost_usd, 8)),
        "saved_usd": float(round(lane.saved_usd, 8)),
        "late": lane.late,
        "fell_back": dict(sorted(lane.fell_back.items())),
    }


def batch_json(state: BatchState) -> dict[str, object]:
    """One batch: its state, times in UTC, lines by what became of them."""
    return {
        "batch": state.number,
        "stage": state.stage,
        "status": state.status,
        "lines": state.lines,
        "rows": state.rows,
        "asked_at": _time(state.asked_at),
        "ended_at": _time(state.ended_at),
        "taken_at": _time(state.taken_at),
        "ok": state.ok,
        "failed": state.failed,
        "missing": state.missing,
        "refused": state.refused,
        "late": state.late,
        "cost_usd": None if state.usd is None else float(round(state.usd, 8)),
        "worst_usd": None if state.worst_usd is None else float(round(state.worst_usd, 8)),
    }


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
