"""The documents of a folder as a table: each read when it is first asked for, then held as it was whatever becomes of
its file."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

import polars as pl

from pipeline.documents.finding import File, Found, as_name
from pipeline.documents.formats import NEEDS
from pipeline.documents.gathering import read_as, rows_of
from pipeline.documents.spool import Spool
from pipeline.documents.workers import Workers
from pipeline.errors import InputError
from pipeline.installed import installing

UNFIT = "\0unfit"
"""Name of the column that says why a document has no text, as no table has it; null where it has one."""
SCAN = "\0scan"
"""Name of the column that lists the path of a scanned PDF, and is an empty list for every other document."""
SCHEMA = pl.Schema(
    {"path": pl.String(), "name": pl.String(), "title": pl.String(), "pages": pl.Int64(), "text": pl.String()}
)
"""The columns of documents."""
LISTED = frozenset({"path", "name"})
"""Those of them that are known before a document is read."""
HIDDEN = pl.Schema({UNFIT: pl.String(), SCAN: pl.List(pl.String())})
"""Those beside them that no template sees."""
KEY, BARE, SIZE, READ = "\0key", "\0bare", "\0size", "\0read"
ROWS = pl.Schema({**SCHEMA, **HIDDEN, BARE: pl.Int64(), KEY: pl.String(), SIZE: pl.Int64(), READ: pl.Boolean()})
"""What is held of each document: as it was read, which has a `KEY` by its content; or, not `READ` yet, its names."""
_AT = "\0at"
_CHUNK = 4096  # documents that are held in one frame
_FILES = 256  # that are read between two writes to the spool
_TEXT_BYTES = 32_000_000  # of a frame

Heard = Callable[[int, int], None]
"""Who is told how many of those documents are read that are asked for."""


def unheard(read: int, all: int) -> None:
    """Tells nobody."""


class Collected:
    """The documents, one a row in the order of their paths; all but their texts in memory, some 300 bytes each.

    `rows` are as `ROWS` has them. What is not `READ` is read when a column of it is asked for, if it is among the files
    that were `found`: of a table that a run keeps there are none, and its unread rows have nulls.
    """

    def __init__(
        self, found: Found, rows: pl.DataFrame, spool: Path, encoding: str | None = None, heard: Heard = unheard
    ) -> None:
        self.found = found
        self._spool_at, self._encoding, self._heard = spool, encoding, heard
        numbered = rows.with_row_index(_AT).with_columns(pl.col(_AT).cast(pl.Int64))
        self._chunks = list(numbered.iter_slices(_CHUNK))
        self._reading, self._opening = Lock(), Lock()

    @property
    def height(self) -> int:
        """Number of documents."""
        return sum(chunk.height for chunk in self._chunks)

    @property
    def rows(self) -> pl.DataFrame:
        """All of them as they are known now."""
        return pl.concat([pl.DataFrame(schema=ROWS), *(chunk.select(ROWS.names()) for chunk in self._chunks)])

    @property
    def fingerprint(self) -> str:
        """Hash of the paths, the same for a copy elsewhere."""
        return _hashed(self.rows["path"])

    @property
    def whole_fingerprint(self) -> str:
        """Hash of paths and contents, for which all are read."""
        self.read()
        return _hashed(self.rows.select("path", KEY, UNFIT).iter_rows())

    @property
    def unread(self) -> list[str]:
        """Which documents cannot be read, each with the reason."""
        return self.rows[UNFIT].drop_nulls().to_list()

    @property
    def scans(self) -> list[str]:
        """Which are scanned, each with its pages."""
        found = self.rows.filter(pl.col(SCAN).list.len() > 0)
        return [f"{path} ({pages:,})" for path, pages in found.select("path", "pages").iter_rows()]

    @property
    def bare(self) -> list[str]:
        """Of which others some pages have no text, each with the number of those."""
        found = self.rows.filter((pl.col(BARE) > 0) & (pl.col(SCAN).list.len() == 0))
        return [
            f"{path} ({bare:,} of {pages:,})" for path, bare, pages in found.select("path", BARE, "pages").iter_rows()
        ]

    def read(self) -> None:
        """Read what is not read yet. Raises `InputError` where the spool has no room."""
        for _ in self.frames([UNFIT], None, _CHUNK):
            pass

    def frames(
        self,
        columns: Sequence[str],
        where: pl.Expr | None,
        size: int,
        numbered: str = "",
        most: int | None = None,
    ) -> Iterator[pl.DataFrame]:
        """`columns` of `ROWS` of the first `most` rows that `where` lets through (None: of all), in frames of at most
        `size` rows and a bounded text; `numbered` names a column for the number of each document.

        No document is read of which only names are asked, none that `where` leaves out by its names, and of those that
        it lets through by their names no more than `most`. Raises `InputError` for a text that is lost.
        """
        asked = {*columns, *(where.meta.root_names() if where is not None else ())}
        is_early = where is None or set(where.meta.root_names()) <= LISTED
        chosen = [_places(chunk, where if is_early else None) for chunk in self._chunks]
        left, passed, all_of_them = most, 0, sum(map(len, chosen))
        if most is not None and is_early:
            all_of_them = min(all_of_them, most)
        for number, places in enumerate(chosen):
            wanted = places if left is None or not is_early else places.head(left)
            is_fresh = not asked <= LISTED and self._read(number, wanted, passed, all_of_them)
            if is_fresh and number == len(chosen) - 1 and most is None:  # all that is needed is noted as such
                self._spool.sweep()
            passed += len(wanted)
            rows = self._chunks[number][wanted]
            for frame in map(self._with_texts, _slices(rows, size)) if "text" in asked else rows.iter_slices(size):
                passing = frame if is_early or where is None else frame.filter(where)
                passing = passing if left is None else passing.head(left)
                left = None if left is None else left - passing.height
                if passing.height:
                    yield passing.select(*columns, *([pl.col(_AT).alias(numbered)] if numbered else []))
                if left == 0:
                    return

    def _read(self, number: int, places: pl.Series, before: int, all_of_them: int) -> bool:
        """Read those documents of a chunk that are not read yet; whether there were any."""
        with self._reading:
            chunk = self._chunks[number]
            unread = chunk[places].filter(~pl.col(READ))[_AT] if self.found.files else pl.Series(dtype=pl.Int64)
            if unread.is_empty():
                return False
            files = [self.found.files[at] for at in unread]
            before += len(places) - len(files)
            parts = [pl.DataFrame(schema=ROWS)]
            with Workers() as workers:
                for start in range(0, len(files), _FILES):

                    def told(read: int, before: int = before + start) -> None:
                        self._heard(before + read, all_of_them)

                    some = files[start : start + _FILES]
                    rows = rows_of(some, self._spool, workers, self._encoding, told)
                    parts.append(pl.DataFrame(rows, ROWS, orient="row"))
                    told(len(some))
            self._spool.settle()
            fresh = pl.concat(parts).with_columns(unread.alias(_AT))
            others = chunk.filter(~pl.col(_AT).is_in(unread.implode()))
            self._chunks[number] = pl.concat([others, fresh.select(chunk.columns)]).sort(_AT)
            return True

    def _with_texts(self, rows: pl.DataFrame) -> pl.DataFrame:
        keys = list(dict.fromkeys(rows[KEY].drop_nulls()))
        texts = self._spool.texts(keys)
        if len(texts) < len(keys):
            self._read_again(rows.filter(~pl.col(KEY).is_in([*texts])))
            texts = self._spool.texts(keys)
        for path, key in rows.select("path", KEY).iter_rows() if len(texts) < len(keys) else ():
            if key is not None and key not in texts:
                raise InputError(
                    f"the text of {path} is kept no longer, and the file is not what it was",
                    "run the same command again: it reads the documents once more",
                )
        return rows.with_columns(pl.Series("text", [texts.get(key) or None for key in rows[KEY]], pl.String))

    def _read_again(self, rows: pl.DataFrame) -> None:
        """Bring texts back into the spool that were taken out of it, of files that still have them."""
        files, encoding = [], None
        for path, key in rows.select("path", KEY).drop_nulls().iter_rows():
            kind, encoding = read_as(key)
            files.append(File(path, os.path.join(self.found.root, as_name(path)), kind))  # noqa: PTH118
        with self._reading, Workers() as workers:
            for start in range(0, len(files), _FILES):
                list(rows_of(files[start : start + _FILES], self._spool, workers, encoding, lambda read: None))

    @property
    def _spool(self) -> Spool:
        with self._opening:
            return self._opened

    @cached_property
    def _opened(self) -> Spool:
        return Spool(self._spool_at)


def collect(found: Found, spool: Path, encoding: str | None, heard: Heard = unheard) -> Collected:
    """The documents that were found, none of them read. Raises `InputError` where a library is missing for one."""
    _refuse_without_libraries(found)
    paths = pl.DataFrame({"path": [file.path for file in found.files]}, {"path": pl.String})
    return Collected(found, unread(paths), spool, encoding, heard)


def unread(rows: pl.DataFrame) -> pl.DataFrame:
    """`ROWS` of documents of which a part of the columns is known, and the rest is null."""
    known = {
        "name": pl.col("path").str.split("/").list.last(),
        SCAN: pl.lit([], pl.List(pl.String)),
        BARE: pl.lit(0, pl.Int64),
        SIZE: pl.lit(0, pl.Int64),
        READ: pl.lit(False),
    }
    lacking = {name: known.get(name, pl.lit(None, dtype)) for name, dtype in ROWS.items() if name not in rows.columns}
    return rows.with_columns(**lacking).select(ROWS.names())


def _places(chunk: pl.DataFrame, where: pl.Expr | None) -> pl.Series:
    return (chunk if where is None else chunk.filter(where))[_AT] - (chunk.item(0, _AT) if chunk.height else 0)


def _slices(rows: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
    start = held = 0
    for row, size_bytes in enumerate(rows[SIZE]):
        if row > start and (row - start >= size or held + size_bytes > _TEXT_BYTES):
            yield rows.slice(start, row - start)
            start, held = row, 0
        held += size_bytes
    if start < rows.height:
        yield rows.slice(start)


def _refuse_without_libraries(found: Found) -> None:
    for file in found.files:
        if missing := [name for name in NEEDS.get(file.kind, ()) if not find_spec(name)]:
            raise InputError(
                f"{file.path} is read with {' and '.join(missing)}, which is not installed",
                f"`{installing('documents')}`, or name other documents by a pattern: `{found.root}/**/*.txt`",
            )


def _hashed(values: "pl.Series | Iterator[tuple[object, ...]]") -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(repr(value).encode())
    return digest.hexdigest()
