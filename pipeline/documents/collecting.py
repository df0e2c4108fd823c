"""The documents of a folder as a table: each read once, then held as it was whatever becomes of its file."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec

import polars as pl

from pipeline.documents.finding import Found
from pipeline.documents.formats import NEEDS
from pipeline.documents.gathering import rows_of
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
HIDDEN = pl.Schema({UNFIT: pl.String(), SCAN: pl.List(pl.String())})
"""Those beside them that no template sees."""
_BARE, _KEY, _SIZE = "\0bare", "\0key", "\0size"
_ROWS = pl.Schema({**SCHEMA, **HIDDEN, _BARE: pl.Int64(), _KEY: pl.String(), _SIZE: pl.Int64()})
_FILES = 256  # that are read between two writes to the spool
_TEXT_BYTES = 32_000_000  # of a frame


@dataclass(frozen=True, eq=False)
class Collected:
    """The documents, one a row in the order of their paths; all but their texts in memory, some 300 bytes each."""

    found: Found
    spool: Spool
    rows: pl.DataFrame

    @cached_property
    def fingerprint(self) -> str:
        """Hash of paths and contents, the same for a copy elsewhere."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows.select("path", _KEY, UNFIT).iter_rows():
            digest.update(repr(row).encode())
        return digest.hexdigest()

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
        found = self.rows.filter((pl.col(_BARE) > 0) & (pl.col(SCAN).list.len() == 0))
        return [
            f"{path} ({bare:,} of {pages:,})" for path, bare, pages in found.select("path", _BARE, "pages").iter_rows()
        ]

    def frames(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """`columns` of `SCHEMA` and `HIDDEN` of all rows, in frames of at most `size` rows and a bounded text."""
        if "text" not in columns:
            yield from self.rows.select(columns).iter_slices(size)
            return
        for rows in self._slices(size):
            texts = self.spool.texts(list(dict.fromkeys(rows[_KEY].drop_nulls())))
            gone = [key for key in rows[_KEY].drop_nulls() if key not in texts]
            if gone:
                raise InputError(
                    f"the texts of the documents were taken out of {self.spool.path}",
                    "run the same command again: it reads the documents once more",
                )
            known = [texts.get(key) or None for key in rows[_KEY]]
            yield rows.with_columns(pl.Series("text", known, pl.String)).select(columns)

    def _slices(self, size: int) -> Iterator[pl.DataFrame]:
        start = held = 0
        for row, size_bytes in enumerate(self.rows[_SIZE]):
            if row > start and (row - start >= size or held + size_bytes > _TEXT_BYTES):
                yield self.rows.slice(start, row - start)
                start, held = row, 0
            held += size_bytes
        if start < self.rows.height:
            yield self.rows.slice(start)


Heard = Callable[[int, int], None]
"""Who is told how many of all documents are read."""


def unheard(read: int, all: int) -> None:
    """Tells nobody."""


def collect(found: Found, spool: Spool, encoding: str | None, heard: Heard = unheard) -> Collected:
    """Read what `spool` does not know yet. Raises `InputError` where it has no room, and where a library is missing;
    what is wrong with a document is said in its row."""
    _refuse_without_libraries(found)
    parts = [pl.DataFrame(schema=_ROWS)]
    with Workers() as workers:
        for start in range(0, len(found.files), _FILES):
            some = found.files[start : start + _FILES]
            told = partial(_told, heard, start, len(found.files))
            parts.append(pl.DataFrame(rows_of(some, spool, workers, encoding, told), _ROWS, orient="row"))
            told(len(some))
    spool.settle()
    return Collected(found, spool, pl.concat(parts, rechunk=True))


def _told(heard: Heard, before: int, all: int, read: int) -> None:
    heard(before + read, all)


def _refuse_without_libraries(found: Found) -> None:
    for file in found.files:
        if missing := [name for name in NEEDS.get(file.kind, ()) if not find_spec(name)]:
            raise InputError(
                f"{file.path} is read with {' and '.join(missing)}, which is not installed",
                f"`{installing('documents')}`, or name other documents by a pattern: `{found.root}/**/*.txt`",
            )
