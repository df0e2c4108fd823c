"""One look over the whole table: the size and kind of each row, and which rows repeat an earlier one."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl

from pipeline.cells import as_text
from pipeline.documents.collecting import SCAN, UNFIT
from pipeline.plan.amounts import kind_column
from pipeline.source.documents import ROW, Source
from pipeline.spill import Spill

_FRAME_ROWS = 8192
_SLICE_ROWS = 2**18
"""Rows that are worked on at a time where a step needs tens of bytes a row."""
_PURPOSE = "cannot look over the table"
EXAMPLES = 5
"""Rows of one sort that are shown."""
_NOT_BLANK = r"[^\s\x1C-\x1F]"  # what `str.strip` leaves; it takes these four too, which are no white space in Unicode


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What one pass tells of each row, by row number. In memory are two bits a row."""

    facts: Iterable[pl.DataFrame]  # slices in order: `size`, UInt32, and `kind`, UInt8, see `slices`
    repeats: pl.Series  # Boolean: an earlier row is the same in all columns used; False for a row that is empty
    empty: pl.Series  # Boolean: the text column is null or blank, or a document unfit, so nothing is sent
    first_repeats: tuple[tuple[int, int], ...]  # a few repeats, each with the first row of its content
    digests: Iterable[pl.DataFrame] = ()  # hashes of each row, slices in order: `key`, of its id, and `hash`; of rows
    # with files `files` too, of their sizes and times
    bounds: tuple[int, ...] = ()  # rows from which on nothing is shared with those before

    @property
    def rows(self) -> int:
        """Rows that were looked at."""
        return len(self.repeats)

    def slices(self, wanted: pl.Series | None = None) -> Iterator[pl.DataFrame]:
        """The `wanted` rows (None: all) in slices, at least one: `row`, `size`, `kind`, `repeat` and `empty`.

        `size` is in UTF-8 bytes of the text and of the template's columns, `kind` the index into `KINDS` of the same.
        """
        start = 0
        for facts in self.facts:
            here = (start, facts.height)
            start += facts.height
            frame = facts.with_columns(
                pl.int_range(here[0], start, dtype=pl.UInt32).alias("row"),
                self.repeats.slice(*here).alias("repeat"),
                self.empty.slice(*here).alias("empty"),
            )
            yield frame if wanted is None else frame.filter(wanted.slice(*here))

    def within(self, bounds: Sequence[int]) -> "Survey":
        """The same where a row repeats only what stands in its own range of rows; each begins at one of the `bounds`.

        Takes 8 bytes for each row of a range at a time.
        """
        bounds = [bound for bound in bounds if 0 < bound < self.rows]
        repeats, held, row = [pl.Series(dtype=pl.Boolean)], [pl.Series(dtype=pl.UInt64)], 0
        ends = deque([*bounds, self.rows])
        for frame in self.digests:
            hashes = frame["hash"]
            while ends and row + len(hashes) >= ends[0]:
                here, hashes, row = hashes.head(ends[0] - row), hashes.slice(ends[0] - row), ends.popleft()
                repeats.append(~pl.concat([*held, here]).is_first_distinct())
                del held[1:]
            held.append(hashes)
            row += len(hashes)
        repeat = pl.concat(repeats, rechunk=True) & ~self.empty
        shown = tuple(pair for pair in self.first_repeats if repeat[pair[0]])
        return replace(self, repeats=repeat, first_repeats=shown, bounds=tuple(bounds))

    def at(self, rows: pl.Series) -> pl.DataFrame:
        """The same of these rows, which ascend."""
        found = []
        for frame in self.slices():
            first = frame.item(0, "row") if frame.height else 0
            low, high = rows.search_sorted(pl.Series([first, first + frame.height], dtype=pl.UInt32))
            found.append(frame[rows[low:high] - first])
        return pl.concat(found)


def survey(source: Source, rows: int) -> Survey:
    """Measure the first `rows` rows in one pass: 3 to 4 s for 2 GB of text.

    Equal content is told by a 64-bit hash, and looked for in groups by hash, each with a slice's worth of rows. Of a
    large table 20 bytes a row go to temporary files, and a few MB are in memory. Blocks: run it in a thread. Raises
    `InputError` when there is no room for the files.
    """
    facts, digests, contents = Spill(_PURPOSE), Spill(_PURPOSE), Spill(_PURPOSE)
    groups = rows // _SLICE_ROWS + 1
    empty, repeats = [pl.Series(dtype=pl.Boolean)], [pl.Series(dtype=pl.Boolean)]
    for frame in _slices(source, rows):
        facts.add(frame.select("size", "kind"))
        digests.add(frame.select("key", "hash", *(["files"] if "files" in frame.columns else [])))
        empty.append(frame["empty"])
        repeats.append(~frame["hash"].is_first_distinct() & ~frame["empty"])
        shown_at_most = repeats[-1].cum_sum() <= EXAMPLES
        told = frame.select("row", "hash").filter(~empty[-1] & (~repeats[-1] | shown_at_most))
        for (group,), part in told.group_by(pl.col("hash") % groups, maintain_order=True):
            contents.add(part, int(str(group)))
    repeat = pl.concat(repeats, rechunk=True)
    shown = pl.DataFrame(schema={"row": pl.UInt32, "first": pl.UInt32})
    for group in range(groups):
        alike = pl.concat([pl.DataFrame(schema={"row": pl.UInt32, "hash": pl.UInt64}), *contents.frames(group)])
        later = alike.filter(~alike["hash"].is_first_distinct())
        repeat.scatter(later["row"], True)
        pairs = alike.join(later.head(EXAMPLES), on="hash", suffix="_later")
        firsts = pairs.group_by(pl.col("row_later").alias("row")).agg(pl.col("row").min().alias("first"))
        shown = pl.concat([shown, firsts]).sort("row").head(EXAMPLES)
    return Survey(facts, repeat, pl.concat(empty, rechunk=True), tuple(shown.iter_rows()), digests)


def keys_of(source: Source, rows: Collection[int]) -> dict[int, str]:
    """Keys of these rows; with an id column, that is read once more, up to the last of them."""
    if source.id is None or not rows:
        before = source.part.first_row if source.part is not None else 0
        return {row: str(before + row) for row in rows}
    keys: dict[int, str] = {}
    for frame in source.batches(size=_FRAME_ROWS, columns=[source.id]):
        found = frame.filter(pl.col(ROW).is_in(rows))
        keys.update(zip(found[ROW].to_list(), source.keys(found), strict=True))
        if len(keys) == len(rows):
            break
    return keys


def _slices(source: Source, rows: int) -> Iterator[pl.DataFrame]:
    """The first `rows` rows, measured, in slices, at least one."""
    held = [_measured(pl.DataFrame(schema={**source.schema, **source.hidden, ROW: pl.Int64()}), source)]
    for frame in source.batches(size=_FRAME_ROWS):
        left = rows - frame.item(0, ROW)
        held.append(_measured(frame.head(left), source))
        if sum(each.height for each in held) >= _SLICE_ROWS:
            yield pl.concat(held, rechunk=True)
            del held[1:]
        if left <= frame.height:
            break
    yield pl.concat(held, rechunk=True)


def _measured(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    names = list(dict.fromkeys(name for name in (source.text, *source.columns) if name is not None))
    files = [name for name in source.file_columns if name not in names]
    named = (pl.col(name).hash().alias(name) for name in files)
    texts = frame.select(ROW, *(as_text(name, frame.schema[name]) for name in names), *named)
    nothing = pl.lit(0, pl.UInt32)
    size = pl.sum_horizontal(nothing, *(pl.col(name).str.len_bytes() for name in names))
    characters = pl.sum_horizontal(nothing, *(pl.col(name).str.len_chars() for name in names))
    blank = pl.lit(False) if source.text is None else ~pl.col(source.text).str.contains(_NOT_BLANK).fill_null(False)
    if source.hidden:
        scan = pl.lit(frame[SCAN].list.len() > 0)
        blank = (blank & ~scan if source.sends_scans else blank | scan) | pl.lit(frame[UNFIT].is_not_null())
    content = pl.struct(nothing.alias(ROW), *names, *files).hash()  # a template may use no column at all
    key = content if source.id is None else pl.lit(frame[source.id].hash())
    stamps = [pl.Series("files", source.file_stamps(frame), pl.String).hash()] if source.path_columns else []
    return texts.select(
        *stamps,
        pl.col(ROW).cast(pl.UInt32).alias("row"),
        size.alias("size"),
        kind_column(size, characters).alias("kind"),
        content.alias("hash"),
        key.alias("key"),
        blank.alias("empty"),
    )
