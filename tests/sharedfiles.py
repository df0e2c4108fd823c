"""What may happen to a file that several processes share: another one holds it, or it is damaged; and a clock."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


class Clock:
    """Seconds that go on only when a test says so."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def damage(path: Path) -> None:
    """As a failing disk does: what was written, there and in the files beside it, is something else."""
    for part in path.parent.glob(f"{path.name}*"):
        part.write_bytes(b"not a database, " * 4096)
