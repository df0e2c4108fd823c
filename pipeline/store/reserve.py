"""Room kept free beside the journals: when the disk fills, the answers to what is in flight are still written."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pipeline import machine
from pipeline.errors import RunStateError, cannot_write

RESERVE_BYTES = 8 * 2**20
"""The replies to 500 requests in flight, at 4,000 tokens each."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_room(directory: Path) -> None:
    """Raise `RunStateError`, as a run that keeps its answers there, where nothing can be written or room is short.

    Nothing is left of the trial, and no room is taken from a run that goes on.
    """
    missing, there = directory / "lock", directory
    while not os.path.lexists(there) and there != there.parent:
        missing, there = there, there.parent
    trial = there / f".{uuid4().hex}"
    try:
        os.close(machine.open_file(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        trial.unlink()
        if shutil.disk_usage(there).free < RESERVE_BYTES:
            raise _too_little(directory)
    except OSError as error:
        raise cannot_write(missing, error) from None


def _too_little(directory: Path) -> RunStateError:
    return RunStateError(
        f"cannot write {directory}: less than {RESERVE_BYTES // 2**20} MB are left there"
        "\nWhat is kept there is untouched.",
        "make room, then run the same command again",
    )


class Reserve:
    """A file of `RESERVE_BYTES` that this process has open, and lets go when its room is needed.

    It has no name: a kill leaves nothing of it. Where the file system promises no room, as one that compresses or that
    knows no such promise, it holds less than that, or nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.is_used = False
        """Whether the room was needed: nothing more should be asked."""

    def take(self) -> None:
        """Take the room. Raises `RunStateError` when there is not so much, `OSError` when no file can be made."""
        self._descriptor = machine.open_file(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            if machine.can_move_what_is_open:
                self._path.unlink()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, RESERVE_BYTES)
            else:  # macOS
                os.write(self._descriptor, bytes(RESERVE_BYTES))
        except OSError as error:
            self.give_back()
            if error.errno in _FULL:
                raise _too_little(self._path.parent) from None

    def helps(self, error: OSError) -> bool:
        """Whether what was refused so may be tried again, as there is room now."""
        if error.errno not in _FULL or self._descriptor is None:
            return False
        self.give_back()
        self.is_used = True
        return True

    def give_back(self) -> None:
        """Return the room to the disk."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
                self._path.unlink(missing_ok=True)
            self._descriptor = None
