"""One look over the whole table: the size and kind of each row, and which rows a plan takes a closer look at."""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from random import Random
from typing import NamedTuple

import polars as pl

from pipeline.plan.amounts import KINDS, kind_column
from pipeline.records import Document
from pipeline.source.documents import ROW, Source
from pipeline.values import as_text

_FRAME_ROWS = 8192
_SLICE_ROWS = 2**18
"""Rows that are worked on at a time where a step needs tens of bytes a row."""
EXAMPLES = 5
"""Rows of one sort that are shown."""
_LEAST_PICKED = (12, 5, 2, 1)  # of a stratum, the first of them that is within bounds
_SIZE_CLASSES = 64  # steps of √2, up to 4 GiB
_REPEAT, _EMPTY, _UNWANTED = (len(KINDS) * _SIZE_CLASSES + number for number in range(3))
_NOT_BLANK = r"[^\s\x1C-\x1F]"  # what `str.strip` leaves; it takes these four too, which are no white space in Unicode


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What one pass tells of each row, by row number, in about 6 bytes a row."""

    sizes: pl.Series  # UInt32: UTF-8 bytes of the text and of the template's columns
    kinds: pl.Series  # UInt8: index into `KINDS`, of the same
    repeats: pl.Series  # Boolean: an earlier row is the same in all of them; False for a row that is empty
    empty: pl.Series  # Boolean: there is a text column and it is null or blank, so nothing is sent
    first_repeats: tuple[tuple[int, int], ...]  # a few repeats, each with the first row of its content


class Stratum(NamedTuple):
    """Rows of one kind and about one size."""

    number: int
    rows: int
    size_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Rows to be planned, in the order of the table; `numbers`, `sizes` and `strata` are of one length."""

    numbers: pl.Series  # UInt32
    sizes: pl.Series  # UInt32: bytes, as in the survey
    strata: pl.Series  # UInt16: key of `populations`
    populations: Mapping[int, Stratum]  # all rows that these stand for

    @property
    def whole(self) -> bool:
        """Whether they stand for themselves only."""
        return len(self.numbers) == sum(stratum.rows for stratum in self.populations.values())


def survey(source: Source, rows: int) -> Survey:
    """Measure the first `rows` rows in one pass: 3 to 4 s for 2 GB of text, 24 bytes of memory a row on the way.

    Equal content is told by a 64-bit hash. Blocks: run it in a thread.
    """
    table = pl.concat(_parts(source, rows))
    hashes = table.drop_in_place("hash")
    repeats = _seen_before(hashes) & ~table["empty"]
    examples = repeats.arg_true().head(EXAMPLES).to_list()
    first_repeats = tuple((row, int((hashes == hashes[row]).arg_true()[0])) for row in examples)
    del hashes
    table = table.rechunk()
    return Survey(table["size"], table["kind"], repeats, table["empty"], first_repeats)


def keys_of(source: Source, rows: Collection[int]) -> dict[int, str]:
    """Keys of these rows; with an id column, that is read once more, up to the last of them."""
    if source.id is None or not rows:
        return {row: str(row) for row in rows}
    keys: dict[int, str] = {}
    for frame in source.batches(size=_FRAME_ROWS, columns=[source.id]):
        found = frame.filter(pl.col(ROW).is_in(rows))
        keys.update(zip(found[ROW].to_list(), source.keys(found), strict=True))
        if len(keys) == len(rows):
            break
    return keys


def pick(found: Survey, wanted: pl.Series | None, most_rows: int, most_bytes: int, seed: int = 0) -> Picks:
    """All rows that are `wanted` (None: all there are) when they are within both bounds, else a random sample of them.

    Its strata are kind × size in steps of √2, each with rows in proportion to its bytes: Neyman's allocation when what
    a row takes varies as its size. Of repeats and of empty rows, where nothing is sent, a few are enough. Every stratum
    has a row, even where that goes beyond a bound. The same seed picks the same rows.
    """
    assigned = _assigned(found, wanted)
    strata = _strata(found, assigned)
    if sum(one.rows for one in strata) <= most_rows and sum(one.size_bytes for one in strata) <= most_bytes:
        return _picks(found, assigned, strata, (assigned != _UNWANTED).arg_true())
    for least in _LEAST_PICKED:
        floor = {one.number: min(one.rows, least) for one in strata}
        if sum(floor.values()) <= most_rows and _most_bytes(strata, floor) <= most_bytes:
            break
    counts = _allocated(strata, floor, most_rows, most_bytes)
    return _picks(found, assigned, strata, _chosen(assigned, strata, counts, seed))


def pick_pilot(found: Survey, wanted: pl.Series | None, rows: int, seed: int = 0) -> Picks:
    """So many of the `wanted` rows to try first, spread over kinds and sizes.

    Rows of a stratum count by the root of their size: input varies as the size, answers often do not vary with it.
    At least one of each kind, as far as `rows` allows; none that is empty or repeats another.
    """
    assigned = _assigned(found, wanted)
    strata = [one for one in _strata(found, assigned) if one.number < _REPEAT]
    by_weight = sorted(strata, key=lambda one: one.size_bytes)
    heaviest = {one.number // _SIZE_CLASSES: one.number for one in by_weight}
    floor = dict.fromkeys(list(heaviest.values())[:rows], 1)
    spread = [one._replace(size_bytes=isqrt(one.size_bytes * one.rows)) for one in strata]
    counts = _allocated(spread, floor, rows, most_bytes=sum(one.rows * one.largest_bytes for one in strata))
    return _picks(found, assigned, strata, _chosen(assigned, strata, counts, seed))


def pick_evenly(found: Survey, wanted: pl.Series | None, most_rows: int, most_bytes: int, seed: int = 0) -> Picks:
    """So many of the `wanted` rows, one as likely as another; `most_bytes` are exceeded by one row at most.

    None that is empty or repeats another.
    """
    assigned = _assigned(found, wanted)
    rows = (assigned < _REPEAT).arg_true()
    rows = rows.sample(min(len(rows), most_rows), shuffle=True, seed=seed)
    sizes = found.sizes.gather(rows).cast(pl.UInt64)
    numbers = rows.filter(sizes.cum_sum() - sizes < most_bytes).sort()
    return _picks(found, assigned, _strata(found, assigned), numbers)


def strata(found: Survey) -> pl.Series:
    """The number of each row's stratum, of which rows are picked; null for a row that is empty or repeats another."""
    assigned = _assigned(found, None)
    return assigned.set(assigned >= _REPEAT, None)


def documents(source: Source, picks: Picks) -> Iterator[Iterator[Document]]:
    """The documents of the picked rows, in batches of bounded size; reads the table up to the last of them."""
    left = picks.numbers
    for frame in source.batches():
        if left.is_empty():
            return
        first = frame.item(0, ROW)
        here = left.search_sorted(first + frame.height)
        yield source.documents(frame[left.head(here) - first])
        left = left.slice(here)


def _parts(source: Source, rows: int) -> Iterator[pl.DataFrame]:
    yield _measured(pl.DataFrame(schema={**source.schema, ROW: pl.Int64()}), source)
    for frame in source.batches(size=_FRAME_ROWS):
        left = rows - frame.item(0, ROW)
        yield _measured(frame.head(left), source)
        if left <= frame.height:
            return


def _seen_before(hashes: pl.Series) -> pl.Series:
    """Whether an earlier value is the same; by sorting, since a set of 10 million takes three times the memory."""
    ordered = hashes.sort()
    repeated = ordered.slice(1).filter(ordered.slice(1) == ordered.head(-1)).unique()
    rows = hashes.is_in(repeated.implode()).arg_true()
    later = rows.filter(~hashes.gather(rows).is_first_distinct())
    return pl.repeat(False, len(hashes), eager=True).scatter(later, True)


def _measured(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    names = list(dict.fromkeys(name for name in (source.text, *source.columns) if name is not None))
    texts = frame.select(ROW, *(as_text(name, frame.schema[name]) for name in names))
    nothing = pl.lit(0, pl.UInt32)
    size = pl.sum_horizontal(nothing, *(pl.col(name).str.len_bytes() for name in names))
    characters = pl.sum_horizontal(nothing, *(pl.col(name).str.len_chars() for name in names))
    blank = pl.lit(False) if source.text is None else ~pl.col(source.text).str.contains(_NOT_BLANK).fill_null(False)
    return texts.select(
        ROW,
        size.alias("size"),
        kind_column(size, characters).alias("kind"),
        pl.struct(nothing.alias(ROW), *names).hash().alias("hash"),  # a template may use no column at all
        blank.alias("empty"),
    ).drop(ROW)


def _assigned(found: Survey, wanted: pl.Series | None) -> pl.Series:
    """Number of each row's stratum, UInt16."""
    columns = {"size": found.sizes, "kind": found.kinds, "repeat": found.repeats, "empty": found.empty}
    size_class = (2 * pl.col("size").clip(1).cast(pl.Float32).log(2)).cast(pl.UInt8).clip(0, _SIZE_CLASSES - 1)
    number = (
        pl.when(~pl.col("wanted"))
        .then(_UNWANTED)
        .when("empty")
        .then(_EMPTY)
        .when("repeat")
        .then(_REPEAT)
        .otherwise(pl.col("kind").cast(pl.UInt16) * _SIZE_CLASSES + size_class)
    )
    frame = pl.DataFrame(columns).with_columns(wanted=pl.lit(True) if wanted is None else wanted)
    return pl.concat(part.select(number.cast(pl.UInt16)) for part in _slices(frame)).to_series()


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The frame in pieces of bounded size, at least one."""
    return (frame.slice(start, _SLICE_ROWS) for start in range(0, max(frame.height, 1), _SLICE_ROWS))


def _strata(found: Survey, assigned: pl.Series) -> list[Stratum]:
    size = pl.col("size")
    rows = pl.DataFrame({"number": assigned, "size": found.sizes})
    sums = pl.concat(
        part.filter(pl.col("number") != _UNWANTED)
        .group_by("number")
        .agg(pl.len(), size.cast(pl.UInt64).sum().alias("sum"), size.max().alias("max"))
        for part in _slices(rows)
    )
    whole = sums.group_by("number").agg(pl.col("len", "sum").sum(), pl.col("max").max())
    return [Stratum(*row) for row in whole.sort("number").iter_rows()]


def _most_bytes(strata: Sequence[Stratum], picked: Mapping[int, int]) -> int:
    """What so many rows may have, whichever they are."""
    return sum(stratum.largest_bytes * picked.get(stratum.number, 0) for stratum in strata)


def _allocated(strata: Sequence[Stratum], floor: dict[int, int], most_rows: int, most_bytes: int) -> dict[int, int]:
    """Rows to pick by stratum: `floor`, then one at a time to whose share of bytes is owed most, within the bounds."""
    picked = dict(floor)
    rows, size_bytes = sum(picked.values()), _most_bytes(strata, picked)
    by_number = {stratum.number: stratum for stratum in strata if stratum.number < _REPEAT}

    def claim(stratum: Stratum) -> tuple[float, int]:  # highest averages with odd divisors: shares rounded to nearest
        return -stratum.size_bytes / (2 * picked.get(stratum.number, 0) + 1), stratum.number

    claims = [claim(stratum) for stratum in by_number.values()]
    heapq.heapify(claims)
    while claims and rows < most_rows:
        stratum = by_number[heapq.heappop(claims)[1]]
        already = picked.get(stratum.number, 0)
        if already < stratum.rows and size_bytes + stratum.largest_bytes <= most_bytes:
            picked[stratum.number] = already + 1
            rows, size_bytes = rows + 1, size_bytes + stratum.largest_bytes
            heapq.heappush(claims, claim(stratum))
    return picked


def _chosen(assigned: pl.Series, strata: Sequence[Stratum], counts: Mapping[int, int], seed: int) -> pl.Series:
    """Numbers of so many rows of each stratum, at random."""
    choose = Random(seed)
    chosen = [pl.Series(dtype=pl.UInt32)]
    for stratum in strata:
        rows = (assigned == stratum.number).arg_true()
        chosen.append(rows.gather(choose.sample(range(stratum.rows), counts.get(stratum.number, 0))))
    return pl.concat(chosen).sort()


def _picks(found: Survey, assigned: pl.Series, strata: Sequence[Stratum], numbers: pl.Series) -> Picks:
    populations = {stratum.number: stratum for stratum in strata}
    return Picks(numbers, found.sizes.gather(numbers), assigned.gather(numbers), populations)
