"""Documents as rows, each read once: looked for in the spool, and read out of its file where it is not there."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import PurePath
from typing import cast

from pipeline.documents.decoding import Broken, NoText
from pipeline.documents.finding import File, Kind
from pipeline.documents.formats import NEEDS
from pipeline.documents.reading import Read, digest_of, read
from pipeline.documents.spool import Spool
from pipeline.documents.workers import Outcome, Workers

_KEPT_S = 2.0  # after which what was read is kept: a kill loses no more of it
_TEXT_BYTES = 32_000_000  # that are held before they are kept
_SETTLED_NS = 2_000_000_000
"""A file that was changed so shortly before could be changed again within the same tick of its disk's clock."""


def rows_of(
    files: Sequence[File], spool: Spool, workers: Workers, encoding: str | None, told: Callable[[int], None]
) -> Iterator[tuple[object, ...]]:
    """The rows of some documents, in their order, as `ROWS` has them; each that `spool` does not know yet is read.

    `told` hears how many of them are read. Raises `InputError` where there is no room for the texts; what is wrong with
    a document is said in its row.
    """
    settled = time.time_ns() - _SETTLED_NS
    troubles = {file.at: file.trouble for file in files if file.trouble}
    stamps = {file.at: stamp for file in files if file.at not in troubles and (stamp := _stamp(file.at))}
    readers = {file.at: f"{stamps[file.at]} {_reader(file.kind)}" for file in files if file.at in stamps}
    troubles |= {at: _told_broken(why) for at, why in spool.broken(readers).items()}
    known = spool.digests(stamps)
    digests = {**known}
    for file in files:
        if file.at not in troubles and file.at not in digests:
            try:
                digests[file.at] = digest_of(file.at)
            except NoText as unread:
                troubles[file.at] = str(unread)
    names = {
        file.at: _key(file, digests[file.at], encoding)
        for file in files
        if file.at in digests and file.at not in troubles
    }
    facts = spool.facts(list(set(names.values())))
    fresh: dict[str, Read] = {}
    failed: dict[str, NoText] = {}
    held, kept_at = 0, time.monotonic()
    missing = {names[file.at]: file for file in files if file.at in names and names[file.at] not in facts}
    for number, (file, outcome) in enumerate(_outcomes(list(missing.values()), workers, encoding)):
        told(number)
        if isinstance(outcome, NoText):
            failed[names[file.at]] = outcome
            continue
        digest, one = outcome
        digests[file.at], names[file.at] = digest, _key(file, digest, encoding)
        fresh[names[file.at]] = one
        facts[names[file.at]] = replace(one, text=""), one.size_bytes
        held += one.size_bytes
        if held > _TEXT_BYTES or time.monotonic() > kept_at + _KEPT_S:
            spool.add(fresh)
            fresh, held, kept_at = {}, 0, time.monotonic()
    broken: dict[str, str] = {}
    for at, name in [*names.items()]:
        if name not in facts:
            failure = failed.get(name)
            troubles[at] = str(failure or "it changed while it was read")
            if isinstance(failure, Broken):
                broken[at], troubles[at] = str(failure), _told_broken(str(failure))
            del names[at], digests[at]
    same = [at for at, stamp in stamps.items() if _changed_ns(stamp) < settled and (at in names or at in broken)]
    spool.add(
        fresh,
        ((at, stamps[at], digests[at]) for at in same if at in names and known.get(at) != digests[at]),
        ((at, readers[at], broken[at]) for at in same if at in broken and _stamp(at) == stamps[at]),
    )
    for file in files:
        key = names.get(file.at)
        one, size = facts.get(key or "", (Read(), 0))
        why = troubles.get(file.at) or one.trouble
        unfit = f"{file.path}: {why}" if why else None
        scan = [file.path] if one.scan else []
        name = PurePath(file.path).name
        yield file.path, name, one.title, one.pages, None, unfit, scan, one.bare, key, size, True


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


def _told_broken(why: str) -> str:
    return f"{why}; once the file is touched it is tried again"


@cache
def _reader(kind: Kind) -> str:
    """The libraries that read a kind, with their versions: another one may not break."""
    return " ".join(f"{name}-{version(name)}" for name in NEEDS.get(kind, ()))


def _key(file: File, digest: str, encoding: str | None) -> str:
    return f"{file.kind} {encoding or ''} {digest}"


def read_as(key: str) -> tuple[Kind, str | None]:
    """As what kind, and in which encoding, a document with this key was read."""
    kind, encoding, _ = key.split(" ")
    return cast(Kind, kind), encoding or None


def _stamp(at: str) -> str | None:
    """What changes when a file does, the system's own time of change last."""
    try:
        seen = os.stat(at)  # noqa: PTH116  Path makes an object for each
    except (OSError, ValueError):
        return None
    return f"{seen.st_dev} {seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}"


def _changed_ns(stamp: str) -> int:
    return int(stamp.rpartition(" ")[2])
