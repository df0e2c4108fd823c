"""Results of a run that consists of shards, by their rows in the whole table."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.store.export import ROW, ResultsByRow, Unsealed, no_results
from pipeline.store.parts import part_paths
from pipeline.store.units import Unit

_SAMPLED_UNITS = 32


@dataclass(frozen=True, slots=True)
class Joined:
    """The results of shards, in row order; `unsealed` reads what is not sealed yet in one of their directories."""

    units: Sequence[Unit]
    unsealed: Callable[[Path], Unsealed]

    def by_row(self, more: Sequence[str]) -> "JoinedByRow":
        """Results by row range; `more` are columns of the parts beside those of the output."""
        return JoinedByRow(self, more)

    def some(self) -> Iterator[Path]:
        """Some parts, from all over the table."""
        for unit in self.units[:: len(self.units) // _SAMPLED_UNITS + 1]:
            yield from part_paths(unit.directory / "results")[-1:]


class JoinedByRow:
    """As `ResultsByRow`: a shard is opened when its range is reached and let go when it is passed."""

    def __init__(self, joined: Joined, more: Sequence[str]) -> None:
        self._joined, self._more = joined, more
        self._waiting = deque(joined.units)
        self._open: deque[tuple[int, ResultsByRow]] = deque()

    def between(self, low: int, high: int) -> pl.DataFrame:
        """The newest outcome of each row from `low` to `high`, at most one a row."""
        while self._waiting and self._waiting[0].first_row <= high:
            unit = self._waiting.popleft()
            if not self._waiting or self._waiting[0].first_row > low:
                unsealed = self._joined.unsealed(unit.directory)
                self._open.append((unit.first_row, ResultsByRow(unit.directory / "results", self._more, unsealed)))
        while len(self._open) > 1 and self._open[1][0] <= low:
            self._open.popleft()
        found = [
            results.between(max(0, low - first), high - first).with_columns(pl.col(ROW) + first)
            for first, results in self._open
            if first <= high
        ]
        return pl.concat(found) if found else no_results(self._more)
