"""The rows of a table as documents: checked before anything is sent, then streamed in bounded memory."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat

import polars as pl

from pipeline.cells import cells, json_cells, kind, leaves, texts
from pipeline.documents.collecting import HIDDEN, LISTED, SCAN, UNFIT
from pipeline.errors import InputError
from pipeline.records import Document
from pipeline.source import jsonl, remote, standing
from pipeline.source.files import Files
from pipeline.source.rules import Rules, rules
from pipeline.source.tables import Table
from pipeline.source.unique import hashed, repeats
from pipeline.tokens import estimate
from pipeline.values import Fields, Kind

ROW = "\0row"
"""Name of the row number's column, as no table has it: Int64, from 0 over the rows that `where` lets through, in file
order."""

BATCH_ROWS = 4096
"""Rows that are read, and mixed, at a time."""

_ROWS_WITH_FILES = 64
"""The same of a table whose rows have files: all of a batch are looked at before the first is sent."""

_HOLD_FILES = (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Null)
_CHECKED_ROWS = 16_384
_CANDIDATES = 1_000


@dataclass(frozen=True, slots=True)
class Part:
    """Which rows of a whole table a source has."""

    first_row: int
    rows: int
    whole: str  # that table's fingerprint


@dataclass(frozen=True)
class Source:
    """The input of a run; `columns` are those that the templates use, `predicate` is `where`, compiled."""

    table: Table
    id: str | None
    text: str | None
    where: str | None
    columns: tuple[str, ...]
    predicate: pl.Expr | None
    stamps: tuple[standing.Stamp | None, ...] = ()  # of the files, when they were opened
    rules: Rules | None = None  # under which its rows fall
    files: Files | None = None  # that its rows name or hold
    part: Part | None = None  # None: it is the whole table
    most: int | None = None  # documents are read for so many of its rows, and no more

    @cached_property
    def schema(self) -> dict[str, pl.DataType]:
        """Type of each column of the table, in its order; a CSV's columns are all text."""
        return dict(self.table.schema)

    @property
    def json_columns(self) -> frozenset[str]:
        """Columns whose cells are JSON texts, one value each, typed String in `schema`."""
        return self.table.json_columns

    @cached_property
    def kinds(self) -> dict[str, Kind | None]:
        """What is known of the values of each column before they are read."""
        known = self.schema.items()
        return {name: None if name in self.table.json_columns else kind(dtype) for name, dtype in known}

    @property
    def hidden(self) -> Mapping[str, pl.DataType]:
        """Columns that a template does not see, and that are read with those that it does."""
        return HIDDEN if self.table.is_documents else {}

    @property
    def sends_scans(self) -> bool:
        """Whether a scanned PDF is sent as the file that it is."""
        return self.files is not None and not {SCAN, "path"}.isdisjoint(self.file_columns)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, in the order they are read."""
        return self.table.paths

    @property
    def _places(self) -> tuple[str, ...]:
        """Where the files lie that others may change."""
        return tuple(self.table.objects) or self.table.paths

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, sizes and content, the same for a copy elsewhere.

        Of documents only their paths count, unless other columns say which of them are rows, and how they are called.
        A file above 64 MiB is hashed by its first and last MiB and 64 evenly spaced blocks of 64 KiB: an edit that
        keeps such a file's size and misses those blocks goes unseen. Of Parquet in object storage names, sizes and the
        versions that the store tells count; at any other address only that and the schema.
        """
        if self.part is not None:
            told = f"{self.part.whole}\n{self.part.first_row}\n{self.part.rows}"
            return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
        return self._fingerprint()

    @property
    def whole_fingerprint(self) -> str:
        """The same; of documents their contents count too, for which all are read."""
        held = self.table.documents
        return self.fingerprint if held is None else held.whole_fingerprint

    @property
    def _sorts_by_content(self) -> bool:
        """Whether documents have to be read before it is known which of them are rows, and how they are called."""
        asked = {self.id, *(self.predicate.meta.root_names() if self.predicate is not None else ())}
        return not asked <= LISTED

    def _fingerprint(self) -> str:
        if (held := self.table.documents) is not None:
            return held.whole_fingerprint if self._sorts_by_content else held.fingerprint
        if not self.table.is_watched:
            return hashlib.blake2b(f"{self.table.path}\n{self.schema}".encode(), digest_size=16).hexdigest()
        if self.table.remote:
            found = standing.fingerprint_stamps(self.paths, self.stamps)
        else:
            found = standing.fingerprint_files(self.paths)
        if not any(self.table.on_path.values()):
            return found
        on_path = repr([self.table.on_path[path] for path in self.paths])
        return hashlib.blake2b(f"{on_path}\n{found}".encode(), digest_size=16).hexdigest()

    def changed(self, looked_into: bool = False) -> str | None:
        """What happened to the files since they were opened, in words; None when they are what they were.

        A file that was only touched, or replaced by its copy, is what it was, if it is no larger than 64 MiB. With
        `looked_into` content is compared even where size and time are the same. Documents stay what was read of them.
        """
        if not self.table.is_watched or self.table.documents is not None:
            return None
        if self.table.objects:  # what lies in storage is told by the version that it is
            now = remote.stamps(self._places)
            return None if now == self.stamps else self._difference(now)
        now = standing.stamps(self.paths)
        if self.part is not None:  # the machine that opened the table may have been another: numbers of files differ
            known = [standing.on_any_machine(each) for each in self.stamps]
            if known == list(map(standing.on_any_machine, now)):
                return None
            return self._difference(now)
        same = now == self.stamps
        if same and not looked_into:
            return None
        with suppress(OSError):
            if (same or self._is_copy(now)) and self._fingerprint() == self.fingerprint:
                return None
        return self._difference(now)

    def _difference(self, now: Sequence[standing.Stamp | None]) -> str:
        files = zip(self._places, self.stamps, now, strict=True)
        differing = (standing.difference(path, before, after) for path, before, after in files if before != after)
        return next(differing, f"{self.table.path} was written to")

    def _is_copy(self, now: Sequence[standing.Stamp | None]) -> bool:
        """Whether the content can tell: sizes are the same, and so small that all of it is hashed, or only the system's
        time differs, as after another mode."""
        return all(
            before and after and before[2] == after[2] and (after[2] <= standing.WHOLE_BYTES or before[:4] == after[:4])
            for before, after in zip(self.stamps, now, strict=True)
            if before != after
        )

    def showing(self, columns: Sequence[str]) -> "Source":
        """The same table with these columns in its documents. Raises `InputError` for one that cannot be there."""
        path, schema = self.table.path, self.table.schema
        for name in columns:
            if name not in schema:
                hint = self.table.instead(name) or f"columns are {', '.join(schema)}"
                raise InputError(f"the template uses {{{{ {name} }}}}, which is not a column of {path}", hint)
            if any(leaf in (pl.Binary, pl.Object) for leaf in leaves(schema[name])):
                raise InputError(f"column `{name}` of {path} is {schema[name]}: it cannot stand in a template")
        return replace(self, columns=tuple(columns))

    def first(self, rows: int | None) -> "Source":
        """The same table; of documents no more are read than its first `rows` take (None: all)."""
        return self if rows == self.most else replace(self, most=rows)  # what was read of it stays known

    def having(self, files: Files | None) -> "Source":
        """The same table with files beside its texts. Raises `InputError` for a column that cannot hold any."""
        path, schema = self.table.path, self.table.schema
        for which, name in files.columns if files else ():
            if name in self.hidden:
                continue
            if name not in schema:
                hint = self.table.instead(name) or f"columns are {', '.join(schema)}"
                raise InputError(f"column `{name}` is not in {path} ([input] {which})", hint)
            if not all(leaf in _HOLD_FILES for leaf in leaves(schema[name])) or isinstance(schema[name], pl.Struct):
                raise InputError(
                    f"column `{name}` of {path} is {schema[name]} ([input] {which})",
                    "a file is named by its path, or lies in a Binary column",
                )
        return replace(self, files=files)

    def count(self) -> int:
        """Number of documents; counted once, by a pass over the table that raises as `check` does."""
        return self._rows

    def check(self) -> None:
        """Read the table once for all that can be wrong in its rows; raises `InputError` that names the place.

        Cells of a CSV, `where` on real values, ids empty or not unique, and whether there is any row at all. A Parquet
        file is read for its ids and for `where` only.
        """
        rows = self._rows
        if self.table.changed:
            raise InputError(f"{self.table.path} changed while it was read", "run the same command again")
        if rows == 0:
            if self.where is None:
                raise InputError(f"{self.table.path} has no rows", "a table has a header and at least one row")
            hint = "loosen [input] where"
            if self.table.kind == "csv" and "''" in self.where:
                hint = "an empty cell of a CSV is null, in quotes too, and equals nothing: `column IS NULL` asks for it"
            raise InputError(f"no row of {self.table.path} passes where = {self.where!r}", hint)

    def batches(
        self, *, size: int | None = None, columns: Sequence[str] | None = None, json: bool = True
    ) -> Iterator[pl.DataFrame]:
        """Frames of 1 to `size` rows (None: so many as are mixed), in file order: `ROW`, then `columns` (default: what
        `documents` needs).

        Without `json`, strings in `json_columns` stand there as they are, without quotes and escapes.

        Memory does not grow with the table, but for a Parquet file that is one row group, whose compressed size it
        takes. 0.3 to 0.9 s per 300 MB of text. Blocks: run it in a thread.
        """
        size = size or (_ROWS_WITH_FILES if self.files else BATCH_ROWS)
        wanted = self.needed if columns is None else list(columns)
        row = 0
        most = None if self._sorts_by_content else self.most
        for frame in self.table.frames(wanted or self.table.schema.names()[:1], self.predicate, size, most=most):
            numbers = pl.int_range(row, row + frame.height, dtype=pl.Int64, eager=True).alias(ROW)
            row += frame.height
            plain = [] if json else [jsonl.text_of(frame[name]) for name in wanted if name in self.json_columns]
            yield frame.with_columns(plain).select(numbers, *wanted)

    def input_numbers(self) -> Iterator[list[int]]:
        """The number of each row in the input, from 0, those included that `where` leaves out; in row order."""
        for frame in self.table.frames((), self.predicate, _CHECKED_ROWS, ROW):
            yield frame[ROW].to_list()

    def documents(self, frame: pl.DataFrame) -> Iterator[Document]:
        """The documents of a frame that `batches` gave; an empty text is "", an id that is a number becomes text."""
        rows = frame[ROW].to_list()
        keys = self.keys(frame)
        bodies = [None] * len(rows) if self.text is None else frame[self.text].cast(pl.String).fill_null("").to_list()
        names = self.columns
        columns = [self._cells(frame[name]) for name in names]
        fields = (
            (Fields(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
            if names
            else (Fields() for _ in rows)
        )
        ruled: Iterable[int] = repeat(0)
        if self.rules is not None:
            pairs = zip(bodies, *columns, strict=True)
            tokens = [_tokens(body, *row) for body, *row in pairs] if self.rules.counts else []
            ruled = self.rules.of(frame, tokens)
        unfit: Iterable[str] = self._unfit(frame) if self.hidden else repeat("")
        if self.files is None:
            return map(Document, rows, keys, fields, bodies, ruled, repeat(()), unfit)
        looked = zip(unfit, self._held(frame, self.file_columns))  # noqa: B905  one of them may be without an end
        held = (((), why) if why else self.files.of(cells) for why, cells in looked)
        return (Document(*each, *files) for *each, files in zip(rows, keys, fields, bodies, ruled, held))  # noqa: B905

    def _unfit(self, frame: pl.DataFrame) -> Iterator[str]:
        """Why nothing can be asked of a document; empty for those that can be."""
        for why, scans in frame.select(UNFIT, SCAN).iter_rows():
            scan = f'{scans[0]}: it is scanned: `[input] scans = "send"` sends it as a PDF' if scans else ""
            yield why or ("" if self.sends_scans else scan)

    def _held(self, frame: pl.DataFrame, names: Sequence[str]) -> Iterator[dict[str, object]]:
        """The cells of each row that name or hold files."""
        return (dict(zip(names, row, strict=True)) for row in zip(*(self._cells(frame[n]) for n in names), strict=True))

    def file_stamps(self, frame: pl.DataFrame) -> list[str]:
        """Of each row of a frame that `batches` gave, what its files are like without a look into them."""
        assert self.files
        return list(map(self.files.stamp, self._held(frame, self.path_columns)))

    @property
    def path_columns(self) -> list[str]:
        """Columns that name files; those that hold them are of the table itself, as documents are."""
        if self.table.is_documents:
            return []
        return [name for name in self.file_columns if pl.Binary not in leaves(self.schema[name])]

    @property
    def file_columns(self) -> list[str]:
        """Columns that name or hold files."""
        return [name for _, name in self.files.columns] if self.files else []

    def ruled(self, conditions: Sequence[str]) -> "Source":
        """The same table with rules for its rows; none where there is no condition. Raises `InputError`."""
        return replace(self, rules=rules(self.table, conditions)) if conditions else self

    def _cells(self, column: pl.Series) -> list[object]:
        return json_cells(column) if column.name in self.table.json_columns else cells(column)

    def keys(self, frame: pl.DataFrame) -> list[str]:
        """The key of each row of a frame that `batches` gave: its id, else its row number in the whole table."""
        before = self.part.first_row if self.part is not None else 0
        return list(map(str, (frame[ROW] + before).to_list() if self.id is None else texts(self._ids(frame[self.id]))))

    def _ids(self, column: pl.Series) -> pl.Series:
        return jsonl.text_of(column) if column.name in self.json_columns else column

    @cached_property
    def needed(self) -> list[str]:
        """The columns of which `documents` makes rows."""
        ruling = self.rules.columns if self.rules else ()
        named = (self.id, self.text, *self.columns, *self.file_columns, *ruling, *self.hidden)
        return list(dict.fromkeys(name for name in named if name is not None))

    @cached_property
    def _rows(self) -> int:
        if self.part is not None:
            return self.part.rows
        if self.predicate is None and self.id is None and (rows := self.table.height()) is not None:
            return rows
        if self.id is not None:
            return self._count_ids(self.id)
        return sum(map(len, self.table.frames(self.table.schema.names()[:1], self.predicate, _CHECKED_ROWS)))

    def _count_ids(self, name: str) -> int:
        """Number of ids, each of which has to be there and unique."""
        rows, nameless = 0, None

        def hashes() -> Iterator[pl.Series]:
            nonlocal rows, nameless
            for ids in self._all_ids(name):
                if nameless is None and ids.null_count():
                    nameless = rows + ids.is_null().arg_true()[0]
                rows += len(ids)
                yield hashed(ids)

        found = self.table.found if self.predicate is None else None
        if found and found.repeated and name in found.kinds:  # they were looked at when the files were opened
            rows, nameless, repeated = found.rows, found.nameless, found.repeated
        else:
            repeated = repeats(hashes())
        if nameless is not None:  # said after all were read: an id may be missing because a row is too short
            raise InputError(f"{name} is empty in row {nameless}", "remove `id` to use row numbers, or fix the file")
        if repeated.number and (examples := self._first_repeated(name, repeated.hashes)):
            told = "1 value repeats" if repeated.number == 1 else f"{repeated.number:,} values repeat"
            raise InputError(
                f"{name} is not unique: {told} (first: {'; '.join(examples)})",
                "remove `id` to use row numbers, or fix the file",
            )
        return rows

    def _all_ids(self, name: str) -> Iterator[pl.Series]:
        for frame in self.table.frames([name], self.predicate, _CHECKED_ROWS):
            ids = self._ids(frame[name])
            yield ids.cast(pl.String) if ids.dtype in (pl.Categorical, pl.Enum) else ids

    def _first_repeated(self, name: str, hashes: pl.Series) -> list[str]:
        """The first ids that do repeat among those with these hashes, each with its first two rows."""
        rows: dict[object, list[int]] = {}
        start = 0
        for ids in self._all_ids(name):
            for place in hashed(ids).is_in(hashes.implode()).arg_true():
                (value,) = cells(ids.slice(place, 1))
                places = rows.get(value, []) if len(rows) >= _CANDIDATES else rows.setdefault(value, [])
                if len(places) < 2:
                    places.append(start + place)
            start += len(ids)
            if all(len(places) > 1 for places in list(rows.values())[:3]) and len(rows) >= 3:
                break
        found = [(value, places) for value, places in rows.items() if len(places) > 1][:3]
        return [f"{self._quoted(value)}, rows {first} and {second}" for value, (first, second, *_) in found]

    @staticmethod
    def _quoted(value: object) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value)


def _tokens(*cells: object) -> int:
    """Estimated tokens of a row's cells as they are inserted."""
    return sum(estimate(cell if isinstance(cell, str) else str(cell)) for cell in cells if cell is not None)
