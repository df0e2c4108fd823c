"""One look over the whole table: the size and kind of each row, and which rows repeat an earlier one."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from pipeline.cells import as_text
from pipeline.documents.collecting import SCAN, UNFIT
from pipeline.masks import Mask
from pipeline.plan.amounts import kind_column
from pipeline.source.documents import ROW, Source
from pipeline.spill import Spill

_FRAME_ROWS = 8192
_SLICE_ROWS = 2**18
"""Rows that are worked on at a time where a step needs tens of bytes a row."""
_GROUP_ROWS = 2**20
"""Rows in which repeats are looked for at a time. With a slice's worth 100 M rows took 110 s CPU instead of 46 s, 60
of them in 145,000 frames of 700 rows; frames grow with the square of the rows (2026-11)."""
_PURPOSE = "cannot look over the table"
EXAMPLES = 5
"""Rows of one sort that are shown."""
_NOT_BLANK = r"[^\s\x1C-\x1F]"  # what `str.strip` leaves; it takes these four too, which are no white space in Unicode


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What one pass tells of each row, by row number. Of no row anything is in memory."""

    rows: int  # that were looked at
    facts: Iterable[pl.DataFrame]  # slices in order: `size`, UInt32, and `kind`, UInt8, see `slices`; `empty`, Boolean:
    # the text column is null or blank, or a document unfit, so nothing is sent
    repeats: Iterable[
        pl.DataFrame
    ]  # slices in order: `repeat`, Boolean: an earlier row is the same in all columns used
    first_repeats: tuple[tuple[int, int], ...]  # a few repeats, each with the first row of its content
    digests: Iterable[pl.DataFrame] = ()  # hashes of each row, slices in order: `key`, of its id, and `hash`; of rows
    # with files `files` too, of their sizes and times
    bounds: tuple[int, ...] = ()  # rows from which on nothing is shared with those before

    def slices(self, wanted: Mask | None = None) -> Iterator[pl.DataFrame]:
        """The `wanted` rows (None: all) in slices, at least one: `row`, `size`, `kind`, `empty` and `repeat`.

        `size` is in UTF-8 bytes of the text and of the template's columns, `kind` the index into `KINDS` of the same.
        A row that is empty repeats nothing.
        """
        start, repeats, held = 0, iter(self.repeats), pl.DataFrame(schema={"repeat": pl.Boolean})
        for facts in self.facts:
            while held.height < facts.height:
                held = pl.concat([held, next(repeats)])
            repeat, held = held["repeat"].head(facts.height), held.slice(facts.height)
            frame = facts.with_columns(
                pl.int_range(start, start + facts.height, dtype=pl.UInt32).alias("row"), repeat & ~facts["empty"]
            )
            yield frame if wanted is None else frame.filter(wanted.slice(start, facts.height))
            start += facts.height

    def repeated(self, wanted: Mask | None = None) -> int:
        """How many of the `wanted` rows (None: all) repeat an earlier one."""
        return sum(int(frame["repeat"].sum()) for frame in self.slices(wanted))

    def within(self, bounds: Sequence[int]) -> "Survey":
        """The same where a row repeats only what stands in its own range of rows; each begins at one of the `bounds`.

        Takes 8 bytes for each row of a range at a time.
        """
        bounds = [bound for bound in bounds if 0 < bound < self.rows]
        repeats, held, row = Spill(_PURPOSE), [pl.Series(dtype=pl.UInt64)], 0
        ends = deque([*bounds, self.rows])
        for frame in self.digests:
            hashes = frame["hash"]
            while ends and row + len(hashes) >= ends[0]:
                here, hashes, row = hashes.head(ends[0] - row), hashes.slice(ends[0] - row), ends.popleft()
                repeats.add(pl.DataFrame({"repeat": ~pl.concat([*held, here]).is_first_distinct()}))
                del held[1:]
            held.append(hashes)
            row += len(hashes)
        apart = replace(self, repeats=repeats, bounds=tuple(bounds))
        shown = pl.Series(sorted(row for row, _ in self.first_repeats), dtype=pl.UInt32)
        lasting = set(apart.at(shown).filter("repeat")["row"])
        return replace(apart, first_repeats=tuple(pair for pair in self.first_repeats if pair[0] in lasting))

    def head(self, rows: int) -> "Survey":
        """The first `rows` rows alone, in memory."""
        facts, repeats, digests = (_head(frames, rows) for frames in (self.facts, self.repeats, self.digests))
        shown = tuple(pair for pair in self.first_repeats if pair[0] < rows)
        return Survey(min(rows, self.rows), facts, repeats, shown, digests)

    def at(self, rows: pl.Series) -> pl.DataFrame:
        """The same of these rows, which ascend."""
        found = []
        for frame in self.slices():
            first = frame.item(0, "row") if frame.height else 0
            low, high = rows.search_sorted(pl.Series([first, first + frame.height], dtype=pl.UInt32))
            found.append(frame[rows[low:high] - first])
            if high == len(rows):
                break
        return pl.concat(found)


class _Groups:
    """Rows laid by in groups, a frame of each group for every `_GROUP_ROWS` rows."""

    def __init__(self, group: pl.Expr) -> None:
        self._spill, self._group, self._held, self._rows = Spill(_PURPOSE), group, list[pl.DataFrame](), 0

    def add(self, frame: pl.DataFrame) -> None:
        self._held.append(frame)
        self._rows += frame.height
        if self._rows >= _GROUP_ROWS:
            self.lay_by()

    def lay_by(self) -> None:
        if self._rows:
            for (group,), part in pl.concat(self._held).group_by(self._group, maintain_order=True):
                self._spill.add(part, int(str(group)))
        self._held, self._rows = [], 0

    def of(self, group: int, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
        return pl.concat([pl.DataFrame(schema=schema), *self._spill.frames(group)])


_CONTENT = {"row": pl.UInt32, "hash": pl.UInt64}
_LATER = {"row": pl.UInt32}


def survey(source: Source, rows: int) -> Survey:
    """Measure the first `rows` rows in one pass: 3 to 4 s for 2 GB of text.

    Equal content is told by a 64-bit hash, and looked for in groups by hash, each with about as many rows, so that
    memory does not grow with the table: of a large one some 20 bytes a row go to temporary files. Blocks: run it in a
    thread. Raises `InputError` when there is no room for the files.
    """
    facts, digests, repeats = Spill(_PURPOSE), Spill(_PURPOSE), Spill(_PURPOSE)
    groups = rows // _GROUP_ROWS + 1
    contents, later = _Groups(pl.col("hash") % groups), _Groups(pl.col("row") // _GROUP_ROWS)
    for frame in _slices(source, rows):
        again = ~frame["hash"].is_first_distinct() & ~frame["empty"]
        facts.add(frame.select("size", "kind", "empty"))
        repeats.add(pl.DataFrame({"repeat": again}))
        digests.add(frame.select("key", "hash", *(["files"] if "files" in frame.columns else [])))
        shown_at_most = again.cum_sum() <= EXAMPLES
        contents.add(frame.select("row", "hash").filter(~frame["empty"] & (~again | shown_at_most)))
    contents.lay_by()
    shown = pl.DataFrame(schema={"row": pl.UInt32, "first": pl.UInt32})
    for group in range(groups):
        alike = contents.of(group, _CONTENT)
        repeat = alike.filter(~alike["hash"].is_first_distinct())
        later.add(repeat.select("row"))
        pairs = alike.join(repeat.head(EXAMPLES), on="hash", suffix="_later")
        firsts = pairs.group_by(pl.col("row_later").alias("row")).agg(pl.col("row").min().alias("first"))
        shown = pl.concat([shown, firsts]).sort("row").head(EXAMPLES)
    later.lay_by()
    return Survey(rows, facts, _marked(repeats, later), tuple(shown.iter_rows()), digests)


def _marked(repeats: Iterable[pl.DataFrame], later: _Groups) -> Spill:
    """Which rows repeat another: one of their own slice, or, as those of `later`, one of a slice before."""
    marked, left, row = Spill(_PURPOSE), pl.Series(dtype=pl.UInt32), 0
    read = 0  # groups of `later`
    for frame in repeats:
        first, row = row, row + frame.height
        while read * _GROUP_ROWS < row:
            left, read = pl.concat([left, later.of(read, _LATER)["row"].sort()]), read + 1
        here = left.search_sorted(row)
        marked.add(pl.DataFrame({"repeat": frame["repeat"].scatter(left.head(here) - first, True)}))
        left = left.slice(here)
    return marked


def _head(frames: Iterable[pl.DataFrame], rows: int) -> list[pl.DataFrame]:
    """Of frames that follow one another the first `rows` rows, of one frame at least."""
    found: list[pl.DataFrame] = []
    for frame in frames:
        found.append(frame.head(rows))
        rows -= frame.height
        if rows <= 0:
            break
    return found


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
