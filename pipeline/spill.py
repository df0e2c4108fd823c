"""Frames laid by in a temporary file, so that what is kept of every row takes no memory."""

import io
import tempfile
import weakref
from array import array
from collections import defaultdict
from collections.abc import Iterator

import polars as pl

from pipeline.errors import InputError

_IN_MEMORY_BYTES = 2**22


class Spill:
    """Frames by group, each group in the order they were added; up to 4 MB stay in memory.

    The file has no name, and is gone with the object or the process. `purpose` begins the `InputError` that is raised
    when there is no room for it, as in "cannot look over the table".
    """

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._places: defaultdict[int, array[int]] = defaultdict(lambda: array("Q"))  # of each frame start and size
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 (closed with this object)
        weakref.finalize(self, self._file.close)

    def add(self, frame: pl.DataFrame, group: int = 0) -> None:
        """Lay a frame by."""
        encoded = io.BytesIO()
        frame.write_ipc(encoded, compression="lz4")
        try:
            start = self._file.seek(0, io.SEEK_END)
            self._file.write(encoded.getbuffer())
        except OSError as error:
            raise InputError(
                f"{self._purpose}: {error.strerror} in {tempfile.gettempdir()}",
                "it needs some 20 bytes a row there: make room, or name another place with the variable TMPDIR",
            ) from None
        self._places[group].extend((start, encoded.tell()))

    def frames(self, group: int = 0) -> Iterator[pl.DataFrame]:
        """The frames of a group, one in memory at a time."""
        places = self._places.get(group, array("Q"))
        for start, size_bytes in zip(places[::2], places[1::2], strict=True):
            self._file.seek(start)
            yield pl.read_ipc(io.BytesIO(self._file.read(size_bytes)))

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return self.frames()
