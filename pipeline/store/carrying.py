"""Rows that an edit of the input left as they were: carried over to the next generation part by part, without a flow.

A row that one call answered, and nothing else was paid for, is carried: it is what its flow would make of that reply
again. All others are asked anew, and find what was bought by its content. Takes a hundredth of the time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import polars as pl

from pipeline.store import parts, seals
from pipeline.store.manifest import Manifest
from pipeline.store.state import Batch

_KEPT = "What it was to hold is kept where it was: nothing is lost."
_IS_WELL = (pl.col("status") == "ok") & pl.col("changes").is_null() & (pl.col("calls") == 1)
_IS_ALL_OF_IT = ((pl.col("step") == "answer") & pl.col("paid") & (pl.col("status") == "ok") & ~pl.col("late")) & (
    pl.col("text").is_null() & pl.col("target").is_null() & pl.col("continuation").is_null()
)
_OUTCOME = ("row", "status", "changes", "calls", "cost_usd")
_CALL = ("row", "step", "paid", "status", "target", "text", "continuation", "late", "cost_usd")


@dataclass(frozen=True, eq=False)
class Carried:
    """What is carried over: `rows` has the number of each row now, `row`, and then, `was`, and its `part` then."""

    rows: pl.DataFrame
    usd: Decimal  # what the answers cost

    def write(self, before: Path, generation: int, directory: Path, manifest: Manifest, has_ids: bool) -> None:
        """Seal the rows from the directory `before`, of that generation, as parts of the one that begins.

        A kill leaves some of them, and the next start finds the others by content. Raises `RunStateError`.
        """
        for number, (part, rows) in enumerate(self._by_part(), 1):
            name = parts.part_path(Path(), part).name
            calls, results = (
                _renumbered(parts.read_part(before / kind / name, list(schema)), rows, has_ids)
                for kind, schema in (("calls", parts.CALLS_SCHEMA), ("results", parts.RESULTS_SCHEMA))
            )
            bought_by = pl.when(parts.IS_BOUGHT).then(pl.lit(generation, pl.Int32)).otherwise("generation")
            frames = {"calls": calls.with_columns(generation=bought_by), "results": results.sort("row")}
            sealed = [
                parts.write_frame(frame, parts.part_path(directory / kind, number), manifest.run, _KEPT)
                for kind, frame in frames.items()
            ]
            seals.record(directory, sealed)

    def _by_part(self) -> Iterator[tuple[int, pl.DataFrame]]:
        for (part,), rows in self.rows.sort("part", "row").group_by("part", maintain_order=True):
            yield int(str(part)), rows


def carried(directory: Path, same: pl.DataFrame, unsealed: Batch) -> Carried:
    """Of the rows that are the `same` as in the run of that directory, `was` and `row`, those that are carried over.

    Raises `RunStateError` for a part that is damaged.
    """
    found = [pl.DataFrame(schema={"row": pl.Int64, "part": pl.Int32, "cost_usd": parts.MONEY})]
    asked, ended = [pl.Series(dtype=pl.Int64)], [pl.Series(dtype=pl.Int64)]
    for path in parts.part_paths(directory / "results"):
        outcomes = parts.read_part(path, _OUTCOME)
        calls = parts.read_part(directory / "calls" / path.name, _CALL)
        ended.append(outcomes["row"])
        asked.append(calls["row"])
        rows = outcomes.filter(_IS_WELL).join(calls.filter(_IS_ALL_OF_IT), on=["row", "cost_usd"])
        number = pl.lit(parts.part_number(path), pl.Int32)
        found.append(rows.select("row", number.alias("part"), "cost_usd"))
    ended.append(pl.Series([*unsealed.results, *(call.row for call in unsealed.calls)], dtype=pl.Int64))
    once = [rows.filter(rows.is_unique()).implode() for rows in (pl.concat(asked), pl.concat(ended))]
    alone = pl.concat(found).filter(*(pl.col("row").is_in(rows) for rows in once))
    rows = same.join(alone, left_on="was", right_on="row")
    return Carried(rows.select("was", "row", "part"), Decimal(rows["cost_usd"].sum() or 0))


def _renumbered(frame: pl.DataFrame, rows: pl.DataFrame, has_ids: bool) -> pl.DataFrame:
    """Those of the `rows` with their numbers of now; a row without an id is called by its number."""
    columns = frame.columns
    frame = frame.rename({"row": "was"}).join(rows.select("was", "row"), on="was")
    return frame.select(columns) if has_ids else frame.with_columns(key=pl.col("row").cast(pl.String)).select(columns)
