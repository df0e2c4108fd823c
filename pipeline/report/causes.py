"""Rows that are not ok, by cause: how many there are, what they cost, and what helps them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path

import polars as pl

from pipeline.records import PASSING, STATUSES
from pipeline.store import parts
from pipeline.store.manifest import Manifest
from pipeline.store.state import Batch, Outcomes

CAUSE_KEYS: Mapping[str, str] = {
    "cause": "the cause, or the status of a row without one",
    "rows": "rows that ended so",
    "cost_usd": "what all their calls cost; null where a price is unknown",
    "cure": "what helps, in words, with the command as it would be typed",
    "cure_usd": "about what that costs, of truncated rows at most; null where it costs nothing or nobody knows",
}
"""The keys of each of `causes` in `report --json`."""

_MEND = "mend the table: the next run buys only what changed"
_OTHERS = "a `[[target]]` with another model may answer: `fallback`"
_CURES: Mapping[str, str] = {
    **dict.fromkeys(("empty_input", "template_error", "invalid_messages", "file"), _MEND),
    **dict.fromkeys(("prompt_blocked", "answer_blocked", "recitation"), _OTHERS),
    "too_long": "`[chunk]` cuts long texts",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """Rows that ended for one cause, and what their calls cost; None: a price is unknown."""

    cause: str
    rows: int
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Cure:
    """What helps, in words; what it costs about, or at most; None: nothing, or nobody knows."""

    words: str
    usd: Decimal | None = None
    is_at_most: bool = False


def by_cause(rows: Iterable[tuple[str, Decimal | None]]) -> tuple[Cause, ...]:
    """Causes and costs of rows, together: those of most rows first."""
    return merged([(Cause(cause, 1, usd) for cause, usd in rows)])


def merged(several: Iterable[Iterable[Cause]]) -> tuple[Cause, ...]:
    """Those of several directories together."""
    found: dict[str, Cause] = {}
    for each in chain.from_iterable(several):
        known = found.get(each.cause) or Cause(each.cause, 0, Decimal(0))
        found[each.cause] = Cause(each.cause, known.rows + each.rows, _sum(known.cost_usd, each.cost_usd))
    return tuple(sorted(found.values(), key=lambda each: -each.rows))


def causes_of(directory: Path, outcomes: Outcomes, unsealed: Batch, rows: int | None) -> tuple[Cause, ...]:
    """The same of the first `rows` of a run, None: of all, by their newest outcome, in a byte of memory a row."""
    seen = Outcomes()

    def is_new(row: int) -> bool:
        if (rows is not None and row >= rows) or outcomes.is_ok(row) or seen.done(row):
            return False
        seen.set(row, "error", passing=False)
        return True

    def found() -> Iterator[tuple[str, Decimal | None]]:
        for result in unsealed.results.values():
            if is_new(result.row):
                yield result.error_kind or result.status, result.cost_usd
        for path in reversed(parts.part_paths(directory / "results")):
            if parts.part_number(path) > unsealed.sealed:
                continue
            part = parts.read_part(path, ("row", "status", "error_kind", "cost_usd"))
            for row, status, kind, usd in part.filter(pl.col("status") != "ok").iter_rows():
                if is_new(row):
                    yield kind or status, usd

    return by_cause(found() if any(outcomes.count(status, rows) for status in STATUSES[1:]) else ())


def cure_of(cause: Cause, manifest: Manifest) -> Cure:
    """What helps rows that ended for a cause, as it would be typed.

    To ask again for twice as long an answer costs at most twice what the rows cost: their prompts stay as they are.
    """
    if cause.cause in PASSING:
        return Cure(f"may pass by itself: `{manifest.again()}` tries again")
    if cause.cause in _CURES:
        return Cure(_CURES[cause.cause])
    cap = (manifest.identity.get("model") or {}).get("max_output_tokens") if cause.cause == "truncated" else None
    longer = 2 * cap if isinstance(cap, int) else None
    usd = None if cause.cost_usd is None or manifest.kind != "real" else cause.cost_usd * (2 if longer else 1)
    return Cure(f"`{manifest.again(cause.cause, longer)}`", usd, longer is not None)


def cause_json(cause: Cause, manifest: Manifest) -> dict[str, object]:
    """One of them under `CAUSE_KEYS`."""
    cure = cure_of(cause, manifest)
    return {
        "cause": cause.cause,
        "rows": cause.rows,
        "cost_usd": _number(cause.cost_usd),
        "cure": cure.words,
        "cure_usd": _number(cure.usd),
    }


def _number(usd: Decimal | None) -> float | None:
    return None if usd is None else float(round(usd, 8))


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other
