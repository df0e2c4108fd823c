"""Which rows of a table a plan takes a closer look at and what they stand for, and which rows a pilot asks first."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice
from math import isqrt, sqrt
from typing import NamedTuple

import polars as pl

from pipeline.calibration import t_quantile
from pipeline.masks import Mask
from pipeline.plan.amounts import KINDS
from pipeline.plan.survey import Survey
from pipeline.records import Document
from pipeline.source.documents import ROW, Source

FIRST = 5
"""Rows that a run asks before all others."""
FIRST_WITHIN = 50_000
"""Rows among which they are looked for: they are read apart from the others."""
_LEAST_PICKED = (12, 5, 2, 1)  # of a stratum, the first of them that is within bounds
_SIZE_CLASSES = 64  # steps of √2, up to 4 GiB
_REPEAT, _EMPTY = (len(KINDS) * _SIZE_CLASSES + number for number in range(2))

_SIZE_CLASS = (2 * pl.col("size").clip(1).cast(pl.Float32).log(2)).cast(pl.UInt8).clip(0, _SIZE_CLASSES - 1)
_NUMBER = (
    pl.when("empty")
    .then(_EMPTY)
    .when("repeat")
    .then(_REPEAT)
    .otherwise(pl.col("kind").cast(pl.UInt16) * _SIZE_CLASSES + _SIZE_CLASS)
    .cast(pl.UInt16)
)


class Effort(NamedTuple):
    """Up to how much text every row is planned, and how much of it is picked from a larger table."""

    whole_rows: int
    whole_bytes: int
    sample_rows: int
    sample_bytes: int


class Stratum(NamedTuple):
    """Rows of one kind and about one size."""

    number: int
    rows: int
    size_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Rows to be planned, in the order of the table; `numbers` and `strata` are of one length."""

    numbers: pl.Series  # UInt32
    strata: pl.Series  # UInt16: key of `populations`
    populations: Mapping[int, Stratum]  # all rows that these stand for

    @property
    def whole(self) -> bool:
        """Whether they stand for themselves only."""
        return len(self.numbers) == sum(stratum.rows for stratum in self.populations.values())

    def weights(self) -> pl.Series:
        """For how many rows of its stratum each picked row stands: 1 where all of them are picked.

        What is the same for every row is expanded without error, parts add up to their whole, and what is larger in
        every row is larger in total. Amounts are not fitted to sizes within a stratum: that told the tokens of 40,000
        rows from 8,000 to 0.16 instead of 0.21 %, but calls of 1,200 short texts from 250 to 4.2 instead of 2.8 % (root
        mean squares, 2026-11), and intervals held less often.
        """
        rows = pl.col("stratum").replace_strict({number: stratum.rows for number, stratum in self.populations.items()})
        return pl.DataFrame({"stratum": self.strata}).select(rows / pl.len().over("stratum")).to_series()

    def half_widths(self, amounts: pl.DataFrame) -> dict[str, float]:
        """Half the 95 % interval around the total of each column of `amounts`, one row a picked row.

        Of sampling alone: how well the amounts themselves are known is not in it. 0 when the picks are whole.
        """
        schema = {"stratum": pl.UInt16, "rows": pl.Float64, "bytes": pl.Float64, "largest": pl.UInt32}
        strata = pl.DataFrame(list(self.populations.values()), schema, orient="row", strict=False)
        rows = pl.DataFrame({"stratum": self.strata}).join(strata, on="stratum", maintain_order="left")
        return {each.name: _half_width(rows.with_columns(amount=each)) for each in amounts}


def pick(found: Survey, wanted: Mask | None, effort: Effort, seed: int = 0) -> Picks:
    """All rows that are `wanted` (None: all there are) when `effort` allows it, else a random sample of them.

    Its strata are kind × size in steps of √2, each with rows in proportion to its bytes: Neyman's allocation when what
    a row takes varies as its size. Of repeats and of empty rows, where nothing is sent, a few are enough. Every stratum
    has a row, even where that goes beyond a bound. The same seed picks the same rows.
    """
    strata = _strata(found, wanted)
    rows, size_bytes = sum(one.rows for one in strata), sum(one.size_bytes for one in strata)
    if rows <= effort.whole_rows and size_bytes <= effort.whole_bytes:
        return _picks(strata, pl.concat(_numbered(found, wanted)))
    most_rows, most_bytes = effort.sample_rows, effort.sample_bytes
    for least in _LEAST_PICKED:
        floor = {one.number: min(one.rows, least) for one in strata}
        if sum(floor.values()) <= most_rows and _most_bytes(strata, floor) <= most_bytes:
            break
    counts = _allocated(strata, floor, most_rows, most_bytes)
    return _picks(strata, _drawn(_numbered(found, wanted), counts, seed))


def pick_pilot(found: Survey, wanted: Mask | None, rows: int, seed: int = 0) -> Picks:
    """So many of the `wanted` rows to try first, spread over kinds and sizes.

    Rows of a stratum count by the root of their size: input varies as the size, answers often do not vary with it.
    At least one of each kind, as far as `rows` allows; none that is empty or repeats another. Within a stratum their
    content decides, wherever they stand: more rows are these and others, and so are those of a table that grew.
    """
    return _spread(found, wanted, rows, seed, short=False)


def pick_sample(found: Survey, wanted: Mask | None, rows: int) -> Picks:
    """So many of the `wanted` rows to look at: as in a pilot, and the shortest of each kind besides, as `rows` allows.

    They tell little of what a run takes, and are what somebody who judges the answers wants to see, too.
    """
    return _spread(found, wanted, rows, 0, short=True)


def _spread(found: Survey, wanted: Mask | None, rows: int, seed: int, *, short: bool) -> Picks:
    strata = _sent(found, wanted)
    heaviest = {one.number // _SIZE_CLASSES: one.number for one in sorted(strata, key=lambda one: one.size_bytes)}
    shortest = {one.number // _SIZE_CLASSES: one.number for one in reversed(strata)} if short else {}
    floor = dict.fromkeys([*heaviest.values(), *shortest.values()], 1)
    spread = [one._replace(size_bytes=isqrt(one.size_bytes * one.rows)) for one in strata]
    most_bytes = sum(one.rows * one.largest_bytes for one in strata)
    counts = _allocated(spread, dict(islice(floor.items(), rows)), rows, most_bytes)
    return _picks(strata, _drawn(_by_content(found, wanted), counts, seed))


def pick_first(found: Survey, wanted: Mask | None) -> tuple[int, ...]:
    """Those of the `wanted` rows that a run asks first, as in a sample; near the beginning of a long table."""
    return tuple(pick_sample(found.head(FIRST_WITHIN), wanted, FIRST).numbers)


def about(found: Survey) -> Callable[[pl.Series], pl.DataFrame]:
    """What tells of these rows: `row`, `kind`, `stratum` of which rows are picked, and how many `rows` that has.

    The last two are null for a row that is empty or repeats another.
    """
    populations = {one.number: one.rows for one in _sent(found, None)}
    stratum = pl.when(_NUMBER < _REPEAT).then(_NUMBER)
    rows_of = stratum.replace_strict(populations, default=None, return_dtype=pl.UInt32)

    def of(rows: pl.Series) -> pl.DataFrame:
        asked = found.at(rows.filter(rows < found.rows).unique().sort().cast(pl.UInt32))
        return asked.select(pl.col("row").cast(pl.Int64), "kind", stratum=stratum, rows=rows_of)

    return of


def documents(source: Source, picks: Picks) -> Iterator[Document]:
    """The documents of the picked rows; reads the table up to the last of them."""
    left = picks.numbers
    for frame in source.batches() if len(left) else ():
        first = frame.item(0, ROW)
        here = left.search_sorted(first + frame.height)
        yield from source.documents(frame[left.head(here) - first])
        left = left.slice(here)
        if left.is_empty():
            return


def _numbered(found: Survey, wanted: Mask | None) -> Iterator[pl.DataFrame]:
    """The `wanted` rows, slice by slice: `row`, `size`, `number` of its stratum, UInt16, and by what it is drawn."""
    for frame in found.slices(wanted):
        yield frame.select("row", "size", number=_NUMBER, content="row")


def _by_content(found: Survey, wanted: Mask | None) -> Iterator[pl.DataFrame]:
    """As `_numbered`, with the `content` by which they are drawn."""
    start = 0
    for frame, digests in zip(found.slices(), found.digests, strict=True):
        seen = frame.select("row", "size", number=_NUMBER, content=digests["hash"])
        yield seen if wanted is None else seen.filter(wanted.slice(start, frame.height))
        start += frame.height


def _strata(found: Survey, wanted: Mask | None) -> list[Stratum]:
    size, sums = pl.col("size"), list[pl.DataFrame]()
    for frame in _numbered(found, wanted):
        own = frame.group_by("number").agg(pl.len(), size.cast(pl.UInt64).sum().alias("sum"), size.max().alias("max"))
        sums = [_added([*sums, own])]
    return [Stratum(*row) for row in sums[0].sort("number").iter_rows()]


def _added(sums: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(sums).group_by("number").agg(pl.col("len", "sum").sum(), pl.col("max").max())


def _sent(found: Survey, wanted: Mask | None) -> list[Stratum]:
    """Those whose rows are sent."""
    return [one for one in _strata(found, wanted) if one.number < _REPEAT]


def _most_bytes(strata: Sequence[Stratum], picked: Mapping[int, int]) -> int:
    """What so many rows may have, whichever they are."""
    return sum(stratum.largest_bytes * picked.get(stratum.number, 0) for stratum in strata)


def _allocated(strata: Sequence[Stratum], floor: dict[int, int], most_rows: int, most_bytes: int) -> dict[int, int]:
    """Rows to pick by stratum: `floor`, then one at a time to whose share of bytes is owed most, within the bounds."""
    picked = dict(floor)
    rows, size_bytes = sum(picked.values()), _most_bytes(strata, picked)

    def claim(stratum: Stratum) -> tuple[float, Stratum]:  # highest averages, odd divisors: shares rounded to nearest
        return -stratum.size_bytes / (2 * picked.get(stratum.number, 0) + 1), stratum

    claims = [claim(stratum) for stratum in strata if stratum.number < _REPEAT]
    heapify(claims)
    while claims and rows < most_rows:
        _, stratum = heappop(claims)
        already = picked.get(stratum.number, 0)
        if already < stratum.rows and size_bytes + stratum.largest_bytes <= most_bytes:
            picked[stratum.number] = already + 1
            rows, size_bytes = rows + 1, size_bytes + stratum.largest_bytes
            heappush(claims, claim(stratum))
    return picked


def _drawn(frames: Iterable[pl.DataFrame], counts: Mapping[int, int], seed: int) -> pl.DataFrame:
    """So many rows of each number, at random, in the order of `frames`: those whose hash is least."""
    most = pl.col("number").replace_strict(counts, default=0, return_dtype=pl.UInt32)
    drawn: list[pl.DataFrame] = []
    for frame in frames:
        drawn = [pl.concat([*drawn, frame]).filter(pl.col("content").hash(seed).rank("ordinal").over("number") <= most)]
    return drawn[0]


def _picks(strata: Sequence[Stratum], rows: pl.DataFrame) -> Picks:
    populations = {stratum.number: stratum for stratum in strata}
    return Picks(rows["row"], rows["number"], populations)


def _half_width(planned: pl.DataFrame) -> float:
    """One picked row varies as the wider of its neighbours, relative to its size, or, alone, by all that it is."""
    strata = planned.group_by("stratum").agg(
        pl.col("rows", "bytes").first(), pl.col("amount").mean(), picked=pl.len(), spread=pl.col("amount").var()
    )
    rows, picked = pl.col("rows"), pl.col("picked")
    size = (pl.col("bytes") / rows).clip(1)
    relative, freedom = pl.col("spread") / size.pow(2), pl.when(picked > 1).then(picked - 1)
    near = pl.max_horizontal(relative.forward_fill(), relative.backward_fill()) * size.pow(2)
    errors = strata.sort("stratum").select(
        variance=rows * (rows - picked) / picked * pl.coalesce("spread", near, pl.col("amount").pow(2)),
        freedom=pl.coalesce(freedom, pl.min_horizontal(freedom.forward_fill(), freedom.backward_fill()), 1),
    )
    variance = errors["variance"].sum()
    # Satterthwaite's degrees of freedom: those of a sum of variances that are known unequally well.
    unequal = errors.select((pl.col("variance") ** 2 / pl.col("freedom")).sum()).item()
    return t_quantile(variance**2 / unequal) * sqrt(variance) if unequal else 0.0
