"""The documents of a folder as a table: each read once, then held as it was whatever becomes of its file."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import PurePath

import polars as pl

from pipeline.documents.decoding import NoText
from pipeline.documents.finding import File, Found
from pipeline.documents.reading import VERSION, Read, digest_of, read
from pipeline.documents.spool import Spool
from pipeline.errors import InputError

UNFIT = "\0unfit"
"""Name of the column that says why a document has no text, as no table has it; null where it has one."""
SCHEMA = pl.Schema(
    {"path": pl.String(), "name": pl.String(), "title": pl.String(), "pages": pl.Int64(), "text": pl.String()}
)
"""The columns of documents."""
_KEY, _SIZE = "\0key", "\0size"
_ROWS = pl.Schema({**SCHEMA, UNFIT: pl.String(), _KEY: pl.String(), _SIZE: pl.Int64()})
_FILES = 256  # that are read between two writes to the spool
_TEXT_BYTES = 32_000_000  # of a frame
_SETTLED_NS = 2_000_000_000
"""A file that was changed so shortly before could be changed again within the same tick of its disk's clock."""


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
        """Which documents have no text, each with the reason."""
        return self.rows[UNFIT].drop_nulls().to_list()

    def frames(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """`columns` of `SCHEMA`, or `UNFIT`, of all rows, in frames of at most `size` rows and a bounded text."""
        if "text" not in columns:
            yield from self.rows.select(columns).iter_slices(size)
            return
        for rows in self._slices(size):
            texts = self.spool.texts(list(dict.fromkeys(rows[_KEY].drop_nulls())))
            gone = [key for key in rows.filter(pl.col(UNFIT).is_null())[_KEY] if key not in texts]
            if gone:
                raise InputError(
                    f"the texts of the documents were taken out of {self.spool.path}",
                    "run the same command again: it reads the documents once more",
                )
            known = [None if why else texts[key] for key, why in rows.select(_KEY, UNFIT).iter_rows()]
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


def collect(found: Found, spool: Spool, encoding: str | None) -> Collected:
    """Read what `spool` does not know yet. Raises `InputError` where it has no room; what is wrong with a document is
    said in its row."""
    files = iter(found.files)
    parts = [pl.DataFrame(schema=_ROWS)]
    while some := list(islice(files, _FILES)):
        parts.append(pl.DataFrame(_rows(some, spool, encoding), _ROWS, orient="row"))
    return Collected(found, spool, pl.concat(parts, rechunk=True))


def _rows(files: Sequence[File], spool: Spool, encoding: str | None) -> Iterator[tuple[object, ...]]:
    troubles = {file.at: file.trouble for file in files if file.trouble}
    stamps = {file.at: stamp for file in files if file.at not in troubles and (stamp := _stamp(file.at))}
    digests = spool.digests(stamps)
    for file in files:
        if file.at not in troubles and file.at not in digests:
            try:
                digests[file.at] = digest_of(file.at)
            except NoText as unread:
                troubles[file.at] = str(unread)
    names = {file.at: _key(file, digests[file.at], encoding) for file in files if file.at in digests}
    facts = spool.facts(list(set(names.values())))
    fresh: dict[str, Read] = {}
    held = 0
    for file in files:
        if names.get(file.at) is None or names[file.at] in facts:
            continue
        try:
            digest, one = read(file.at, file.kind, encoding)
        except NoText as gone:  # by now
            troubles[file.at] = str(gone)
            del names[file.at], digests[file.at]
            continue
        digests[file.at], names[file.at] = digest, _key(file, digest, encoding)
        fresh[names[file.at]] = one
        facts[names[file.at]] = replace(one, text=""), one.size_bytes
        held += one.size_bytes
        if held > _TEXT_BYTES:
            spool.add(fresh, ())
            fresh, held = {}, 0
    settled = time.time_ns() - _SETTLED_NS
    seen = ((at, stamp, digests[at]) for at, stamp in stamps.items() if at in digests and _changed_ns(stamp) < settled)
    spool.add(fresh, seen)
    for file in files:
        key = names.get(file.at)
        one, size = facts.get(key or "", (Read(), 0))
        why = troubles.get(file.at) or one.trouble
        unfit = f"{file.path}: {why}" if why else None
        yield file.path, PurePath(file.path).name, one.title, one.pages, None, unfit, key, size


def _key(file: File, digest: str, encoding: str | None) -> str:
    return f"{VERSION} {file.kind} {encoding or ''} {digest}"


def _stamp(at: str) -> str | None:
    """What changes when a file does, the system's own time of change last."""
    try:
        seen = os.stat(at)  # noqa: PTH116  Path makes an object for each
    except (OSError, ValueError):
        return None
    return f"{seen.st_dev} {seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}"


def _changed_ns(stamp: str) -> int:
    return int(stamp.rpartition(" ")[2])
