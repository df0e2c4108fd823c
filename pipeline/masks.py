"""Which rows of a table are meant: a boolean for each, told range by range, so that memory need not grow with rows."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import polars as pl


class Mask(Protocol):
    """Which rows are meant. A series of booleans is one."""

    def slice(self, offset: int, length: int) -> pl.Series:
        """Of `length` rows from `offset` on, Boolean."""
        ...

    def sum(self) -> Any:
        """How many rows are meant: an int, which a series does not promise."""
        ...


class Range(NamedTuple):
    """So many rows that stand together: all of them are meant, none, or those of a series."""

    rows: int
    meant: pl.Series | bool

    def slice(self, offset: int, length: int) -> pl.Series:
        """As `Mask`."""
        if isinstance(self.meant, bool):
            return pl.repeat(self.meant, length, dtype=pl.Boolean, eager=True)
        return self.meant.slice(offset, length)

    def sum(self) -> int:
        """As `Mask`."""
        return self.rows * self.meant if isinstance(self.meant, bool) else int(self.meant.sum())


class Ranges:
    """Ranges that follow one another, as a `Mask`: in memory is a bit a row of those that are meant in part."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = ranges
        self._starts = [0, *accumulate(each.rows for each in ranges)]

    def slice(self, offset: int, length: int) -> pl.Series:
        """As `Mask`."""
        found, stop = [pl.Series(dtype=pl.Boolean)], offset + length
        at = bisect_right(self._starts, offset) - 1
        while offset < stop:
            end = min(stop, self._starts[at + 1])
            found.append(self._ranges[at].slice(offset - self._starts[at], end - offset))
            offset, at = end, at + 1
        return pl.concat(found)

    def sum(self) -> int:
        """As `Mask`."""
        return sum(each.sum() for each in self._ranges)
