"""Rows that are sorted by length: read in two places at once, so that any stretch of a run is like the whole table."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle
from random import Random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import heavy, lognormal

from pipeline.source.documents import BATCH_ROWS, ROW
from pipeline.source.order import BATCH_BYTES, BLOCK_ROWS, Order, reading_order, woven


def made(sizes: Sequence[int], wanted: Sequence[bool] | None = None) -> Order | None:
    left = None if wanted is None else pl.Series(wanted, dtype=pl.Boolean)
    return reading_order([pl.Series(sizes, dtype=pl.UInt32)], left)


def frames_of(rows: int, sizes: Sequence[int]) -> Iterator[pl.DataFrame]:
    """A table's rows in frames of these sizes, again and again."""
    first = 0
    for size in cycle(sizes):
        if first >= rows:
            return
        yield pl.DataFrame({ROW: pl.int_range(first, min(rows, first + size), eager=True)})
        first += size


def rows_in(order: Order, rows: int, sizes: Sequence[int] = (4096,)) -> list[list[int]]:
    """Row numbers as they are read, batch by batch."""
    return [[row for frame in batch for row in frame[ROW]] for batch in woven(order, lambda: frames_of(rows, sizes))]


def worst(rows: list[int], sizes: Sequence[int]) -> float:
    """How far ahead or behind the mean the run ever is, in rows of mean size."""
    mean = sum(sizes[row] for row in rows) / len(rows)
    return max(abs(ahead) for ahead in accumulate(sizes[row] / mean - 1 for row in rows))


ASCENDING = sorted(lognormal(20_000, 2000, 1))
LONG_AND_SHORT = {
    "sorted": ASCENDING,
    "reversed": ASCENDING[::-1],
    "short, long, short": [*ASCENDING[:6000], *ASCENDING[12_000:], *ASCENDING[6000:12_000]],
    "two sorted files": ASCENDING[::2] + ASCENDING[1::2],
    "a heavy tail": sorted(heavy(20_000, 2000, 100_000, 1)),
}


@pytest.mark.parametrize("sizes", LONG_AND_SHORT.values(), ids=LONG_AND_SHORT)
def test_any_stretch_is_like_the_whole_and_every_row_is_there_once(sizes: list[int]) -> None:
    order = made(sizes)
    assert order
    batches = rows_in(order, len(sizes))
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(sizes)))
    block = max(sum(sizes[at : at + BLOCK_ROWS]) for at in range(0, len(sizes), BLOCK_ROWS)) * len(sizes) / sum(sizes)
    assert worst(rows, sizes) <= block, "never further off than by the longest block"
    assert worst(list(range(len(sizes))), sizes) > 1.5 * block, "which in file order it is"
    assert all(BATCH_ROWS <= len(batch) < BATCH_ROWS + BLOCK_ROWS for batch in batches[:-1])


@pytest.mark.parametrize(
    "sizes",
    [
        lognormal(50_000, 2000, 1),
        sorted(lognormal(BATCH_ROWS, 2000, 1)),  # a batch is mixed anyway
        [7] * 50_000,
        [0] * 50_000,
        [],
    ],
    ids=["mixed", "one batch", "alike", "empty", "none"],
)
def test_a_table_that_is_even_enough_is_read_as_it_is(sizes: list[int]) -> None:
    assert made(sizes) is None


def test_only_rows_that_are_left_count() -> None:
    sizes = [1] * 10_000 + [3999] * 10_000
    assert made(sizes)
    assert made(sizes, [True] * 10_000 + [False] * 10_000) is None
    few = [row % 100 == 0 for row in range(20_000)]
    assert made(sizes, few) is None, "they are all open at once"


def test_blocks_without_a_row_left_are_passed_over() -> None:
    wanted = [row // BLOCK_ROWS % 2 == 0 for row in range(len(ASCENDING))]
    order = made(ASCENDING, wanted)
    assert order
    assert [row for batch in rows_in(order, len(ASCENDING)) for row in batch if not wanted[row]] == []


def test_a_batch_of_long_rows_is_small() -> None:
    sizes = [40_000] * 6000 + [80_000] * 6000
    order = made(sizes)
    assert order
    for batch in rows_in(order, len(sizes)):
        assert sum(sizes[row] for row in batch) < BATCH_BYTES + BLOCK_ROWS * 80_000


def test_a_table_that_has_become_shorter_ends_early() -> None:
    order = made(ASCENDING)
    assert order
    rows = [row for batch in rows_in(order, 12_000) for row in batch]
    assert sorted(rows) == list(range(12_000))


runs = st.lists(st.tuples(st.integers(900, 3000), st.integers(0, 5000)), min_size=5, max_size=12)
"""So many rows of such a size, one after the other."""


@given(
    runs, st.lists(st.integers(1, 5000), min_size=1, max_size=5), st.sampled_from([1.0, 0.8, 0.3]), st.integers(0, 99)
)
@settings(max_examples=40)
def test_every_row_left_is_read_once_whatever_the_frames_and_never_far_ahead(
    lengths: list[tuple[int, int]], frames: list[int], share: float, seed: int
) -> None:
    sizes = [size for rows, size in lengths for _ in range(rows)]
    chance = Random(seed)
    wanted = [chance.random() < share for _ in sizes]
    order = made(sizes, wanted)
    if order is None:
        return
    read = [row for batch in rows_in(order, len(sizes), frames) for row in batch]
    left = [row for row in read if wanted[row]]
    assert max(Counter(read).values()) == 1
    assert sorted(left) == [row for row in range(len(sizes)) if wanted[row]]
    mean = sum(sizes[row] for row in left) / len(left)
    off: dict[int, float] = defaultdict(float)
    for row in left:
        off[row // BLOCK_ROWS] += abs(sizes[row] / mean - 1)
    assert worst(left, sizes) <= 2 * max(off.values()) + 1e-6
    for heavy_ones in (True, False):
        places = [block for batch in order.batches for block in batch if (block in order.heavy) == heavy_ones]
        assert places == sorted(places), "a reader goes forward only"
