"""In how many batches a prompt was asked in vain, over all sessions of a run: 8 bytes a try, in a file of its own."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline import machine
from pipeline.store.batch_states import cannot_write

NAME = "tries"


class Tries:
    """Who was asked in vain; `store.Batches` knows nothing of it, as nothing is lost without."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where the files of batches are."""
        self._path = folder / NAME
        self._tries: Counter[int] = Counter()

    def open(self) -> None:
        """Read what earlier sessions tried; what a kill cut short is left out. Raises `RunStateError`."""
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise cannot_write(self._path, error) from None
        kept = array("Q")
        kept.frombytes(content[: len(content) // kept.itemsize * kept.itemsize])
        self._tries = Counter(kept)

    def of(self, fingerprint: str) -> int:
        """Batches in which this content was asked in vain."""
        return self._tries[_name(fingerprint)] if self._tries else 0

    def add(self, fingerprints: Iterable[str], times: int = 1) -> None:
        """Count them, before their batch is taken: a kill in between counts twice. Raises `RunStateError`."""
        names = array("Q", (_name(each) for each in fingerprints for _ in range(times)))
        if not names:
            return
        try:
            fd = machine.open_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                torn = os.fstat(fd).st_size % names.itemsize
                os.write(fd, b"\0" * (names.itemsize - torn if torn else 0) + names.tobytes())
            finally:
                os.close(fd)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._tries.update(names)


def _name(fingerprint: str) -> int:
    return int(fingerprint[:16], 16)
