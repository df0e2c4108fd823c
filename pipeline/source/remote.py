"""Tables in object storage: the objects that an address means, their versions, and copies of those that are no Parquet.

Parquet is read where it lies. Whatever else is a table is read more than once and to its last byte: each version of it
is fetched once, into the user's cache.
"""

import glob
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path

from pipeline.errors import InputError, RunStateError
from pipeline.objects import Entry, Objects, opened
from pipeline.places import fetched_folder
from pipeline.process import make_private
from pipeline.source.finding import is_note, matches
from pipeline.source.standing import Stamp

AT_ONCE = 16
"""Requests at the same time."""
_ALONE = 8
"""So many objects are asked for one by one; where there are more, all that lies beside them is listed."""
_KEPT_S = 30 * 24 * 3600.0
_WHERE = "check the address: an object is named as `s3://bucket/folder/name.parquet`, several as `…/*.parquet`"


def find(url: str) -> dict[str, Stamp]:
    """The objects that an address or a pattern means, by name, with their stamps.

    Raises `InputError` where there is none, or an empty one, or the store refuses; `JobError` without the extra.
    """
    parts = url.split("/")
    fixed = next((at for at, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folder = "/".join(parts[:fixed])
    with refusals():
        if there := _entry(url):
            found = {url: there}
        else:
            found = {name: entry for name, entry in _below(folder) if not name.endswith("/")}
    if fixed < len(parts) and not there:
        found = {name: entry for name, entry in found.items() if matches(parts, name.split("/"))}
        found = {name: entry for name, entry in found.items() if not _is_aside(name, parts)}
    elif found and not there:
        raise InputError(f"{url} is a folder", f"name its objects: `{folder.rstrip('/')}/*.parquet`")
    if not found:
        raise InputError(f"there is no {url}", _WHERE)
    for name, entry in found.items():
        if entry.size == 0:
            raise InputError(f"{name} is empty", "a table has at least a header")
    return {name: _stamp(found[name]) for name in sorted(found)}


def stamps(urls: Sequence[str]) -> tuple[Stamp | None, ...]:
    """The stamp of each object: its size, and what tells its version in the place of a time. None: it is not there.

    Raises `RunStateError` where the store refuses.
    """
    return tuple(entry and _stamp(entry) for entry in _entries(urls))


def fetched(found: Mapping[str, Stamp]) -> list[str]:
    """Copies on this disk of objects of these versions, fetched where there are none yet.

    One that nobody asked for in 30 days is removed. Raises `InputError`, as for one that changes meanwhile.
    """
    root = fetched_folder()
    with refusals():
        copies = [_copy(url, stamp, root) for url, stamp in found.items()]
    _tidy(root)
    return [str(copy) for copy in copies]


@contextmanager
def refusals() -> Iterator[None]:
    """What a store refuses of a table, as what is wrong with the table."""
    try:
        yield
    except RunStateError as error:
        raise InputError(error.message, error.hint) from None


def _is_aside(name: str, asked: Sequence[str]) -> bool:
    """Whether a pattern leaves it out, as one of files does: what is hidden, and what writers put beside tables."""
    hidden = any(part.startswith(".") and part not in asked for part in name.split("/"))
    return hidden or is_note(Path(name), asked)


def _copy(url: str, stamp: Stamp, root: Path) -> Path:
    scheme, _, place = url.partition("://")
    version = root / blake2b(f"{url}\n{stamp}".encode(), digest_size=12).hexdigest()
    final = version.joinpath(scheme, *place.split("/"))  # columns may stand on the path
    if not final.exists():
        make_private(final.parent)
        partial = final.with_name(f"{final.name}.{os.getpid()}")
        bucket, name = _parted(url)
        bucket.fetch(name, partial)
        if stamps([url]) != (stamp,):
            partial.unlink(missing_ok=True)
            raise InputError(f"{url} changed while it was fetched", "run the same command again")
        partial.replace(final)
    os.utime(version)
    return final


def _tidy(root: Path) -> None:
    with suppress(OSError):
        for version in root.iterdir():
            if version.stat().st_mtime < time.time() - _KEPT_S:
                shutil.rmtree(version, ignore_errors=True)


def _stamp(entry: Entry) -> Stamp:
    tag = entry.tag.e_tag or entry.tag.version or ""
    return 0, 0, entry.size, int.from_bytes(blake2b(tag.encode(), digest_size=7).digest()), 0


def _entries(urls: Sequence[str]) -> list[Entry | None]:
    if len(urls) <= _ALONE:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(_entry, urls))
    level = zip(*(url.split("/")[:-1] for url in urls), strict=False)
    found = dict(_below("/".join(parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, level))))
    return [found.get(url) for url in urls]


def _entry(url: str) -> Entry | None:
    bucket, name = _parted(url)
    return bucket.head(name) if name else None


def _below(folder: str) -> Iterator[tuple[str, Entry]]:
    bucket, under = _parted(folder)
    return ((f"{bucket.url}/{entry.name}", entry) for entry in bucket.entries(under))


def _parted(url: str) -> tuple[Objects, str]:
    """The bucket, and the name in it as it stands there."""
    scheme, _, place = url.partition("://")
    bucket, _, name = place.partition("/")
    return _opened(f"{scheme}://{bucket}"), name


@lru_cache(64)
def _opened(bucket: str) -> Objects:
    """Kept open: each has its connections."""
    return opened(bucket)
