"""The files of an input as they are now: what a run began with, and whether they still are."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

WHOLE_BYTES = 64 * 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 2**16

Stamp = tuple[int, int, int, int, int]
"""Device, inode, size in bytes, and the times in nanoseconds of a file's last change: that which a program may set
back, and the system's own, which also tells of a new name or mode. Of an object in storage: size, and a hash of its
tag in the place of the first time."""


def stamps(paths: Sequence[str]) -> tuple[Stamp | None, ...]:
    """The stamp of each file; None for one that is not there. 2 µs a file."""
    return tuple(map(_stamp, paths))


def on_any_machine(stamp: Stamp | None) -> tuple[int, int] | None:
    """What of a stamp is the same wherever its file is looked at: size, and the time that a program may set."""
    return None if stamp is None else (stamp[2], stamp[3])


def fingerprint_stamps(paths: Sequence[str], stamps: Sequence[Stamp | None]) -> str:
    """Hash of names, and of what is the same on any machine: of objects, whose content is not read."""
    told = [
        (path.rpartition("/")[2], stamp and on_any_machine(stamp)) for path, stamp in zip(paths, stamps, strict=True)
    ]
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def fingerprint_files(paths: Sequence[str]) -> str:
    """Hash of names, sizes and content. Raises OSError.

    A file above 64 MiB is hashed by its first and last MiB and 64 evenly spaced blocks of 64 KiB.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        _hash_file(digest, Path(path))
    return digest.hexdigest()


def difference(path: str, before: Stamp | None, now: Stamp | None) -> str:
    """What happened to a file, in words."""
    if now is None:
        return f"{path} is gone"
    if before is not None and before[2] != now[2]:
        return f"{path} had {before[2]:,} bytes, and has {now[2]:,}"
    return f"{path} was written to or replaced"


def _stamp(path: str) -> Stamp | None:
    try:
        seen = os.stat(path)  # noqa: PTH116  Path makes an object for each
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def _hash_file(digest: "hashlib.blake2b", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\n{size}\n".encode())
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(2**20):
                digest.update(block)
            return
        for start in (0, size - 2**20):
            file.seek(start)
            digest.update(file.read(2**20))
        for sample in range(_SAMPLES):
            file.seek(size * sample // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
