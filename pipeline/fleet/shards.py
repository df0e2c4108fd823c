"""Shards: how a table is cut into ranges of rows, and the source of each.

A Parquet table stays where it is: its shards are ranges of its files' rows. Of every other table each shard has a copy
of its rows, as Parquet, which one pass writes.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

import polars as pl

from pipeline import machine
from pipeline.errors import InputChanged, PipelineError, RunStateError
from pipeline.process import make_private
from pipeline.run.parts import shard_source as shard_source
from pipeline.run.parts import shards_of
from pipeline.run.prepare import Session
from pipeline.source import Source
from pipeline.source.documents import BATCH_ROWS, ROW
from pipeline.source.shares import note_of
from pipeline.store import units
from pipeline.store.export import Form, write_frames
from pipeline.store.place import refusal_of
from pipeline.store.units import Piece, Shard, shard_directory

LEAST_ROWS, MOST_ROWS = 1_000, 1_000_000
"""Of a shard: fewer are not worth a run directory, and more would take long to begin anew on another machine."""
SHARDS_A_WORKER = 8
"""So that workers that are done early take over what others would have had, where the table has enough rows."""


def rows_a_shard(rows: int, workers: int) -> int:
    """How many rows a shard of a table has, at most."""
    return min(MOST_ROWS, max(LEAST_ROWS, -(-rows // (SHARDS_A_WORKER * workers))))


def firsts(session: Session, workers: int) -> list[int]:
    """The first row of each shard, as `cut` would make them or has made them. Raises `RunStateError` for damage."""
    known = [] if session.options.fresh else shards_of(session)
    return [shard.first_row for shard in known] or _bounds(_whole(session), workers)[:-1]


def _whole(session: Session) -> Source:
    """All of the table: a larger `--limit` may follow."""
    return session.source.first(None)


def _bounds(source: Source, workers: int) -> list[int]:
    """Where shards begin, and the end."""
    rows = source.count()
    number = -(-rows // rows_a_shard(rows, workers))
    return [rows * at // number for at in range(number + 1)]


def cut(session: Session, workers: int, heard: Callable[[int], None] = lambda rows: None) -> list[Shard]:
    """The shards of a session's whole table, in row order; cut now, or as they were at the first start.

    `heard` is told how many rows are copied. Blocks: run it in a thread. A kill in the middle leaves nothing that the
    next call would take for whole. Raises `RunStateError` where the run directory has shards of another table, or
    answers and no word of how it was cut, and where the disk refuses; `InputChanged`.
    """
    if known := shards_of(session):
        return known
    directory, source = session.directory, _whole(session)
    if units.is_cut(directory) and any(map(units.has_begun, units.read(directory)[1])):
        raise RunStateError(
            f"{directory} consists of shards of another table\nNothing was sent.",
            "put the input back as it was, or begin anew with `--fresh`",
        )
    ranges = [
        Shard(at, shard_directory(directory, at), first, stop - first)
        for at, (first, stop) in enumerate(pairwise(_bounds(source, workers)))
    ]
    make_private(directory / units.FOLDER)
    (directory / units.NAME).unlink(missing_ok=True)  # before a copy that it tells of is another
    machine.sync_directory(directory)
    for left in (directory / units.FOLDER).glob(f"*/*{units.INPUT}*"):  # by a kill, perhaps in more shards than now
        left.unlink()
    if source.table.kind == "parquet":
        shards = _ranged(source, ranges)
    else:
        _copy(source, ranges, heard)
        shards = ranges
    session.check_input(looked_into=True)
    units.write(directory, shards, source.whole_fingerprint)
    return shards


def _ranged(source: Source, ranges: Sequence[Shard]) -> list[Shard]:
    """The same with their places in the files of a Parquet table."""
    heights = source.table.heights()
    starts = [0, *accumulate(heights)]
    firsts = [shard.first_row for shard in ranges]
    places = firsts if source.predicate is None else list(_input_rows(source, firsts))
    stops = [*places[1:], starts[-1]]
    return [
        Shard(shard.number, shard.directory, shard.first_row, shard.rows, tuple(_pieces(starts, first, stop)))
        for shard, first, stop in zip(ranges, places, stops, strict=True)
    ]


def _pieces(starts: Sequence[int], first: int, stop: int) -> Iterator[Piece]:
    """Where rows of the whole input stand in its files, whose first rows `starts` are."""
    at = bisect_right(starts, first) - 1
    while first < stop:
        end = min(stop, starts[at + 1])
        if first < end:
            yield Piece(at, first - starts[at], end - first)
        first, at = end, at + 1


def _input_rows(source: Source, rows: Sequence[int]) -> Iterator[int]:
    """The numbers in the input of some rows, which ascend and are counted without those that `where` leaves out."""
    passed, at = 0, 0
    for numbers in source.input_numbers():
        while at < len(rows) and rows[at] < passed + len(numbers):
            yield numbers[rows[at] - passed]
            at += 1
        passed += len(numbers)


def _copy(source: Source, shards: Sequence[Shard], heard: Callable[[int], None]) -> None:
    """Write each shard's rows into a file of its own: every column, so that an edit of the job finds what it asks for.

    A row group is a batch as it was read, so that memory is that of reading.
    """
    columns = [*source.schema, *source.hidden]
    schema = pl.Schema({**source.schema, **source.hidden})
    frames = source.batches(columns=columns, size=BATCH_ROWS)
    held: list[pl.DataFrame] = []
    whole = source.whole_fingerprint

    def rows_of(shard: Shard) -> Iterator[pl.DataFrame]:
        left = shard.rows
        while left:
            frame = held.pop() if held else next(frames, None)
            if frame is None:
                raise InputChanged("the input has fewer rows than it had when it was opened")
            if frame.height > left:
                held.append(frame.slice(left))
                frame = frame.head(left)
            left -= frame.height
            heard(shard.first_row + shard.rows - left)
            yield frame.drop(ROW)

    for shard in shards:
        make_private(shard.directory)
        _write(shard, rows_of(shard), schema, whole)


def write_rows(session: Session, shard: Shard) -> None:
    """Write a copy of a shard's rows into a file of its own. Raises `RunStateError` and `InputError`."""
    source = shard_source(session.source, shard)
    frames = (frame.drop(ROW) for frame in source.batches(columns=[*source.schema, *source.hidden], size=BATCH_ROWS))
    _write(shard, frames, pl.Schema({**source.schema, **source.hidden}), session.source.whole_fingerprint)


def _write(shard: Shard, frames: Iterator[pl.DataFrame], schema: pl.Schema, whole: str) -> None:
    noted = note_of(whole, shard.first_row, shard.rows)
    final = shard.input
    hidden = final.with_name(f".{final.name}.tmp")
    trouble: list[PipelineError] = []

    def heeded() -> Iterator[pl.DataFrame]:
        try:
            yield from frames
        except PipelineError as error:  # the writer would make another one of it
            trouble.append(error)
            raise

    try:
        hidden.touch(0o600)
        with hidden.open("wb") as file:
            write_frames(heeded(), schema, Form(".parquet"), (), file, BATCH_ROWS, noted)
            file.flush()
            os.fsync(file.fileno())
        machine.replace(hidden, final)
        machine.sync_directory(final.parent)
    except (OSError, pl.exceptions.PolarsError, PipelineError) as error:
        if trouble:
            raise trouble[0] from None
        refused = error if isinstance(error, OSError) else refusal_of(error)
        if refused is None:
            raise
        raise RunStateError(
            f"cannot write {final}: {refused.strerror}\nNothing was sent: the table is being cut into shards.",
            "make room: the shards take about as much as the table, compressed; then the same command again",
        ) from None
