"""The documents of a folder as a table: each read once, then held as it was whatever becomes of its file."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import PurePath

import polars as pl

from pipeline.documents.decoding import NoText
from pipeline.documents.finding import File, Found
from pipeline.documents.formats import NEEDS
from pipeline.documents.reading import Read, digest_of, read
from pipeline.documents.spool import Spool
from pipeline.documents.workers import Outcome, Workers
from pipeline.errors import InputError

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
_KEPT_S = 2.0  # after which what was read is kept: a kill loses no more of it
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
            parts.append(pl.DataFrame(_rows(some, spool, workers, encoding, told), _ROWS, orient="row"))
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
                "`pip install 'prompt-batch-pipeline[documents]'`, or name other documents by a pattern:"
                f" `{found.root}/**/*.txt`",
            )


def _rows(
    files: Sequence[File], spool: Spool, workers: Workers, encoding: str | None, told: Callable[[int], None]
) -> Iterator[tuple[object, ...]]:
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
    failed: dict[str, str] = {}
    held, kept_at = 0, time.monotonic()
    missing = {names[file.at]: file for file in files if file.at in names and names[file.at] not in facts}
    for number, (file, outcome) in enumerate(_outcomes(list(missing.values()), workers, encoding)):
        told(number)
        if isinstance(outcome, NoText):  # nothing is kept of it: another time it may be read
            failed[names[file.at]] = str(outcome)
            continue
        digest, one = outcome
        digests[file.at], names[file.at] = digest, _key(file, digest, encoding)
        fresh[names[file.at]] = one
        facts[names[file.at]] = replace(one, text=""), one.size_bytes
        held += one.size_bytes
        if held > _TEXT_BYTES or time.monotonic() > kept_at + _KEPT_S:
            spool.add(fresh, ())
            fresh, held, kept_at = {}, 0, time.monotonic()
    for at, name in [*names.items()]:
        if name not in facts:
            troubles[at] = failed.get(name, "it changed while it was read")
            del names[at], digests[at]
    settled = time.time_ns() - _SETTLED_NS
    seen = ((at, stamp, digests[at]) for at, stamp in stamps.items() if at in digests and _changed_ns(stamp) < settled)
    spool.add(fresh, seen)
    for file in files:
        key = names.get(file.at)
        one, size = facts.get(key or "", (Read(), 0))
        why = troubles.get(file.at) or one.trouble
        unfit = f"{file.path}: {why}" if why else None
        scan = [file.path] if one.scan else []
        name = PurePath(file.path).name
        yield file.path, name, one.title, one.pages, None, unfit, scan, one.bare, key, size


def _outcomes(files: Sequence[File], workers: Workers, encoding: str | None) -> Iterator[tuple[File, Outcome]]:
    """What came of each document; plain texts are read here, the others in processes of their own."""
    foreign = [file for file in files if file.kind in NEEDS]
    yield from zip(foreign, workers.read(foreign, encoding), strict=True)
    for file in files:
        if file.kind not in NEEDS:
            try:
                yield file, read(file.at, file.kind, encoding)
            except NoText as gone:  # by now
                yield file, gone


def _key(file: File, digest: str, encoding: str | None) -> str:
    return f"{file.kind} {encoding or ''} {digest}"


def _stamp(at: str) -> str | None:
    """What changes when a file does, the system's own time of change last."""
    try:
        seen = os.stat(at)  # noqa: PTH116  Path makes an object for each
    except (OSError, ValueError):
        return None
    return f"{seen.st_dev} {seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}"


def _changed_ns(stamp: str) -> int:
    return int(stamp.rpartition(" ")[2])
