"""Rows of a run with their answers, and the calls that each was put together from; in bounded memory."""

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import polars as pl

from pipeline.errors import RunStateError
from pipeline.providers.stored import parse_stored
from pipeline.records import STATUSES
from pipeline.store import batched, parts
from pipeline.store.journal import is_blank, journal_paths
from pipeline.store.state import load_unsealed
from pipeline.store.units import units

ROW = tuple(name for name in parts.RESULTS_SCHEMA if name != "input_tokens_est")
CALL = (
    *("step", "level", "chunk", "chunks", "fingerprint", "paid", "status", "error_kind", "error", "text", "extras"),
    *("model", "target", "lane", "input_tokens", "cached_tokens", "output_tokens", "thinking_tokens", "cost_usd"),
    *("attempts", "latency_s", "finished_at", "fell_back", "late"),
)
_NONE = 2**32 - 1
_OPEN_PARTS = 3
"""Kept at hand for `some`: rows that stand together in the table mostly do in the parts."""
_OPEN_UNITS = 2


class Answers:
    """The newest outcome of each row of a run, as it is when it is looked at: 4 bytes of memory a row of a shard."""

    def __init__(self, directory: Path) -> None:
        """Raises `RunStateError` for a directory that is none of a run, or damaged."""
        self._directory = directory
        self._units = units(directory)
        self._firsts = [unit.first_row for unit in self._units]
        self._open: dict[int, _Own] = {}
        if len(self._units) == 1:
            self._own(0)

    def rows(self, statuses: Collection[str] = STATUSES) -> Iterator[dict[str, Any]]:
        """The outcomes with one of these statuses, by the columns of `ROW`, in the order in which they were sealed."""
        for frame in self.frames(ROW):
            yield from frame.filter(pl.col("status").is_in(list(statuses))).iter_rows(named=True)

    def frames(self, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        """The newest outcomes by these columns of `ROW`, of which the first is `row`, a part after the other."""
        for at, first in enumerate(self._firsts):
            yield from (_counted(frame, first) for frame in self._own(at).frames(columns))

    def some(self, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The outcomes of these rows, which have some, by their numbers."""
        wanted: dict[int, list[int]] = {}
        for row in rows:
            wanted.setdefault(self._at(row), []).append(row)
        found: dict[int, dict[str, Any]] = {}
        for at, numbers in wanted.items():
            first = self._firsts[at]
            some = self._own(at).some(number - first for number in numbers)
            found.update((first + row, each | {"row": first + row}) for row, each in some.items())
        return found

    def sample(self, number: int, statuses: Collection[str] = STATUSES) -> list[dict[str, Any]]:
        """So many of them at random, always the same while the run stays as it is, in row order."""
        rng, chosen = Random(0), []
        for seen, row in enumerate(self.rows(statuses)):
            if seen < number:
                chosen.append(row)
            elif (place := rng.randrange(seen + 1)) < number:
                chosen[place] = row
        return sorted(chosen, key=lambda row: int(row["row"]))

    def find(self, text: str) -> dict[str, Any]:
        """The row with this id, or else of this number. Raises `RunStateError` where no such row has an outcome."""
        number = int(text) if text.isdecimal() and len(text) < 12 else -1
        numbered = None
        if number >= 0 and self._units:
            at = self._at(number)
            if self._own(at).has(number - self._firsts[at]):
                numbered = self._row(number)
                if numbered["key"] == text:  # of a table without ids
                    return numbered
        for at, unit in enumerate(self._units):
            if _mentions(unit.directory, text) and (row := self._own(at).find(text)) is not None:
                return self._row(unit.first_row + row)
        if numbered is not None:
            return numbered
        raise RunStateError(
            f"no row of {self._directory} that has an outcome has the id or the number {text}",
            "`pipeline show RUN` lists them; rows are counted from 0, without those that `where` leaves out",
        )

    def calls(self, row: int, response: str | None) -> list[dict[str, Any]]:
        """What was asked for this row, by the columns of `CALL`, in the order in which it came back.

        `response` is the row's own: the text of the call that gave it is not stored a second time.
        """
        at = self._at(row)
        return self._own(at).calls(row - self._firsts[at], response)

    def call_frames(self, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        """All that was asked, by these columns, in the order in which it was sealed."""
        for at, first in enumerate(self._firsts):
            yield from (_counted(frame, first) for frame in self._own(at).call_frames(columns))

    def _at(self, row: int) -> int:
        """Which of the directories has this row."""
        return bisect_right(self._firsts, row) - 1

    def _row(self, number: int) -> dict[str, Any]:
        at = self._at(number)
        return self._own(at).row(number - self._firsts[at]) | {"row": number}

    def _own(self, at: int) -> "_Own":
        own = self._open.pop(at) if at in self._open else _Own(self._units[at].directory)
        self._open[at] = own
        if len(self._open) > _OPEN_UNITS:
            del self._open[next(iter(self._open))]
        return own


def _mentions(directory: Path, key: str) -> bool:
    """Whether a run directory may have a row with this id, told by the ids alone."""
    sealed = (parts.read_part(path, ("key",))["key"] for path in parts.part_paths(directory / "results"))
    try:
        return any((keys == key).any() for keys in sealed) or not all(map(is_blank, journal_paths(directory)))
    except FileNotFoundError:  # a journal that is sealed at this moment
        return True


def _counted(frame: pl.DataFrame, first: int) -> pl.DataFrame:
    """The same with rows counted over the whole run; a call may be of none."""
    if not first or "row" not in frame.columns:
        return frame
    return frame.with_columns(pl.when(pl.col("row") >= 0).then(pl.col("row") + first).otherwise(pl.col("row")))


class _Own:
    """The newest outcome of each row of one run directory, whose rows count from 0."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unsealed = load_unsealed(directory, parse_stored)
        self._paths = [
            path for path in parts.part_paths(directory / "results") if parts.part_number(path) <= self._unsealed.sealed
        ]
        self._open: dict[int, pl.DataFrame] = {}
        self._newest = array("I")
        for at, frame in enumerate(self._frames(("row",))):
            for row in frame["row"]:
                if row >= len(self._newest):
                    self._newest.extend([_NONE] * (row + 1 - len(self._newest)))
                self._newest[row] = at

    def frames(self, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        """The newest outcomes by these columns of `ROW`, of which the first is `row`, a part after the other."""
        for at, frame in enumerate(self._frames(columns)):
            yield frame.filter(pl.Series([self._newest[row] == at for row in frame["row"]], dtype=pl.Boolean))

    def some(self, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The outcomes of these rows, which have some, by their numbers."""
        wanted: dict[int, list[int]] = {}
        for row in rows:
            wanted.setdefault(self._newest[row], []).append(row)
        found: dict[int, dict[str, Any]] = {}
        for at, numbers in wanted.items():
            self._open[at] = frame = self._open.pop(at) if at in self._open else self._frame(at, ROW)
            if len(self._open) > _OPEN_PARTS:
                del self._open[next(iter(self._open))]
            some = frame.filter(pl.col("row").is_in(numbers))
            found.update((int(each["row"]), each) for each in some.iter_rows(named=True))
        return found

    def find(self, key: str) -> int | None:
        """The row with this id."""
        for at, frame in enumerate(self._frames(("row", "key"))):
            for row in frame.filter(pl.col("key") == key)["row"]:
                if self._newest[row] == at:
                    return int(row)
        return None

    def has(self, row: int) -> bool:
        """Whether a row has an outcome."""
        return 0 <= row < len(self._newest) and self._newest[row] != _NONE

    def calls(self, row: int, response: str | None) -> list[dict[str, Any]]:
        """What was asked for this row, by the columns of `CALL`, in the order in which it came back."""
        found: list[dict[str, Any]] = []
        for path in self._call_paths():
            if (parts.read_part(path, ("row",))["row"] == row).any():
                found += parts.read_part(path, ("row", *CALL)).filter(pl.col("row") == row).drop("row").to_dicts()
        own = [call for call in self._unsealed.calls if call.row == row]
        found += parts.calls_frame(own, {}).select(CALL).to_dicts()
        for call in found:
            if call["paid"] and call["text"] is None:
                call["text"] = response
        return sorted(found, key=lambda call: call["finished_at"])

    def call_frames(self, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        """All that was asked, by these columns, in the order in which it was sealed."""
        yield from (parts.read_part(path, columns) for path in self._call_paths())
        yield parts.calls_frame(self._unsealed.calls, {}).select(columns)

    def _call_paths(self) -> list[Path]:
        sealed = [
            path
            for path in parts.part_paths(self._directory / "calls")
            if parts.part_number(path) <= self._unsealed.sealed
        ]
        return [*sealed, *batched.part_paths(self._directory)]

    def row(self, number: int) -> dict[str, Any]:
        frame = self._frame(self._newest[number], ROW)
        return frame.filter(pl.col("row") == number).row(-1, named=True)

    def _frames(self, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        return (self._frame(at, columns) for at in range(len(self._paths) + 1))

    def _frame(self, at: int, columns: tuple[str, ...]) -> pl.DataFrame:
        if at < len(self._paths):
            return parts.read_part(self._paths[at], columns)
        return parts.results_frame(self._unsealed.results.values()).select(columns)


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row or a call as JSON takes it: money as a number, times as ISO 8601, what is null left out."""
    return {
        name: float(value) if name == "cost_usd" else value.isoformat() if name == "finished_at" else value
        for name, value in row.items()
        if value is not None
    }
