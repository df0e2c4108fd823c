"""A table whose long rows stand apart from its short ones, read in two places at once.

Short rows use up requests, long ones tokens: a run that meets them one after the other never uses both limits. One
reader passes over the blocks of long rows, one over those of short rows, and each gives what the other's lack.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import NamedTuple

import polars as pl

from pipeline.masks import Mask
from pipeline.source.documents import BATCH_ROWS, ROW

BLOCK_ROWS = 64
"""Rows that are read together. 50,000 rows sorted by length use .985 of the quota and mixed ones .983, 12,000 use .974
and .978; with blocks of 512, of which the longest take minutes of tokens, .976 and .962 (dispatcher in virtual time,
2026-11). Reading takes 2 µs a row more than in file order."""
BATCH_BYTES = 32_000_000
"""Text of a batch, so that long rows do not fill the memory; it is exceeded by a block at most."""
EVEN = 1.05
"""Up to here file order will do: time of the rows in it over that of the rows mixed; lognormal rows take 1.01."""


@dataclass(frozen=True, slots=True)
class Order:
    """Numbers of blocks (row // `BLOCK_ROWS`), batch by batch.

    Those that are `heavy`, of rows not shorter than the mean, and the others ascend each for themselves.
    """

    batches: tuple[tuple[int, ...], ...]
    heavy: frozenset[int]


class _Block(NamedTuple):
    number: int
    rows: int
    size_bytes: int
    surplus_bytes: float  # above as many rows of mean size


def reading_order(sizes: Iterable[pl.Series], wanted: Mask | None = None) -> Order | None:
    """An order in which any stretch of the `wanted` rows (None: all) is like the whole; None when file order will do.

    `sizes` are bytes by row number, in slices. What is ahead by bytes is followed by light blocks, what is behind by
    heavy ones, so the limits need not be known. Memory grows with blocks, not with rows.
    """
    blocks, batches = _sums(sizes, wanted)
    rows, total_bytes = (int(batches[name].sum()) for name in ("len", "size"))
    if not total_bytes or _lost(batches, rows, total_bytes) <= EVEN:
        return None
    blocks = blocks.with_columns(surplus=pl.col("size") - pl.col("len") * (total_bytes / rows))
    ordered = list(_alternating([_Block(*block) for block in blocks.iter_rows()]))
    return Order(tuple(_batches(ordered)), frozenset(block.number for block in ordered if block.surplus_bytes >= 0))


def woven(order: Order, frames: Callable[[], Iterator[pl.DataFrame]]) -> Iterator[Iterator[pl.DataFrame]]:
    """The rows of each batch of `order`, to be used up before the next: from two passes over the table's `frames`.

    Memory is that of two readers. The first batch takes as long as passing over all that is before either's first
    block.
    """
    light = {block for batch in order.batches for block in batch} - order.heavy
    readers = {False: _blocks(frames(), light), True: _blocks(frames(), order.heavy)}
    for batch in order.batches:
        yield chain.from_iterable(next(readers[block in order.heavy], ()) for block in batch)


def _sums(sizes: Iterable[pl.Series], wanted: Mask | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and bytes of what is wanted, by block of the table and by batch of what is wanted, both in order."""
    by_block, by_batch, passed, placed = [], [], 0, 0
    for part in sizes:
        rows = pl.DataFrame({"size": part}).with_row_index("row", passed)
        left = rows if wanted is None else rows.filter(wanted.slice(passed, len(part)))
        left = left.with_row_index("place", placed)
        passed, placed = passed + len(part), placed + left.height
        by_block.append(_summed(left, pl.col("row") // BLOCK_ROWS))
        by_batch.append(_summed(left, pl.col("place") // BATCH_ROWS))
    blocks, batches = (
        pl.concat(parts).group_by(name, maintain_order=True).agg(pl.col("len", "size").sum())
        for name, parts in (("row", by_block), ("place", by_batch))
    )
    return blocks, batches


def _summed(rows: pl.DataFrame, group: pl.Expr) -> pl.DataFrame:
    name = group.meta.output_name()
    return rows.group_by(group).agg(pl.len(), pl.col("size").cast(pl.UInt64).sum()).sort(name)


def _lost(batches: pl.DataFrame, rows: int, size_bytes: int) -> float:
    """Time of the rows in their order over that of the rows mixed, when both limits bind alike."""
    return float(batches.select(pl.max_horizontal(pl.col("len") / rows, pl.col("size") / size_bytes).sum()).item())


def _alternating(blocks: Iterable[_Block]) -> Iterator[_Block]:
    light, heavy = deque[_Block](), deque[_Block]()
    for block in blocks:
        (heavy if block.surplus_bytes >= 0 else light).append(block)
    ahead_bytes = 0.0
    while light or heavy:
        block = (light if light and (ahead_bytes > 0 or not heavy) else heavy).popleft()
        ahead_bytes += block.surplus_bytes
        yield block


def _batches(blocks: Iterable[_Block]) -> Iterator[tuple[int, ...]]:
    batch: list[int] = []
    rows = size_bytes = 0
    for block in blocks:
        batch.append(block.number)
        rows, size_bytes = rows + block.rows, size_bytes + block.size_bytes
        if rows >= BATCH_ROWS or size_bytes >= BATCH_BYTES:
            yield tuple(batch)
            batch, rows, size_bytes = [], 0, 0
    if batch:
        yield tuple(batch)


def _blocks(frames: Iterator[pl.DataFrame], wanted: Collection[int]) -> Iterator[Iterator[pl.DataFrame]]:
    """The pieces of each wanted block; rows ascend without a gap in frames of any size."""
    pieces = (piece for frame in frames for piece in _cut(frame, wanted))
    for _, group in groupby(pieces, key=itemgetter(0)):
        yield (piece for _, piece in group)


def _cut(frame: pl.DataFrame, wanted: Collection[int]) -> Iterator[tuple[int, pl.DataFrame]]:
    """The parts of a frame that lie in wanted blocks, each with its block."""
    first = frame.item(0, ROW)
    for block in range(first // BLOCK_ROWS, (first + frame.height - 1) // BLOCK_ROWS + 1):
        if block in wanted:
            start = max(0, block * BLOCK_ROWS - first)
            yield block, frame.slice(start, (block + 1) * BLOCK_ROWS - first - start)
