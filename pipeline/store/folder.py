"""An output that is a folder of tables, one of each part of the input: as `Place`, but for several files.

All are written before the first takes its place. A kill while they do leaves some of before beside some of now; the
next end of the run puts all of them there.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline import machine
from pipeline.store import notes
from pipeline.store.place import (
    Counted,
    Write,
    beside,
    check_around,
    explained,
    fewer,
    locked,
    new_mode,
    note,
    own_rows,
    tried,
)
from pipeline.store.units import part_name

_PART = re.compile(r"part-(\d{5,})(\.[a-z]+)")
_HALF = re.compile(rf"\.{_PART.pattern}\.[0-9a-f]{{16}}\.tmp")


class Folder:
    """One folder, held by this run: no other run on this machine writes it."""

    def __init__(self, path: Path, directory: Path, suffix: str, overwrite: bool) -> None:
        self._path, self._target = path, Path(os.path.realpath(path))
        self._directory, self._suffix, self._overwrite = directory, suffix, overwrite
        self._mode = new_mode()
        self._finished = 0

    @property
    def finished(self) -> int:
        """Rows with an outcome in this run's own tables that are there; 0 where none is."""
        return self._finished

    def free_bytes(self) -> int:
        """Room that is left on its disk."""
        return shutil.disk_usage(self._target).free

    def takes(self, finished: int, rows: int) -> bool:
        """Whether tables of `rows` with so many `finished` may replace those of an earlier run of this job."""
        return self._overwrite or finished >= min(self._finished, rows)

    def check(self, rows: int | None) -> None:
        """Raise `InputError` when what is there is not this run's to replace by `rows` at most."""
        if self._overwrite or all(entry.name.startswith(".") for entry in self._target.iterdir()):
            return
        writers = list(notes.naming(self._target, self._directory.parent))
        self._finished = own_rows(self._path, self._directory, rows, writers, writers)

    def replace(self, parts: Iterable[Write], checked: Callable[[], None]) -> Counted:
        """Let each of `parts` fill a file, and put all in place when they are whole and `checked` raises nothing.

        Tables of parts that there are no more are removed. Raises `OutputError` as `Place` does: what is there then
        stays.
        """
        with explained(self._path, self._directory), ExitStack() as writing:
            written: list[tuple[Path, Path]] = []
            rows = finished = 0
            for number, write in enumerate(parts):
                final = self._target / part_name(number, self._suffix)
                hidden, file = writing.enter_context(beside(final))
                counted = write(file)
                file.flush()
                machine.set_mode(file.fileno(), self._mode)
                os.fsync(file.fileno())
                file.close()
                rows, finished = rows + counted.rows, finished + counted.finished
                written.append((hidden, final))
            checked()
            if not self.takes(finished, rows):
                raise fewer(self._path, self._directory, self._finished, finished)
            note(self._directory, notes.with_folder(self._directory, self._target, rows, finished))
            for hidden, final in written:
                machine.replace(hidden, final)
            for entry in list(self._target.iterdir()):
                if (match := _PART.fullmatch(entry.name)) and (int(match[1]), match[2]) >= (len(written), ""):
                    entry.unlink()
            machine.sync_directory(self._target)
        self._finished = finished
        return Counted(rows, finished)


@contextmanager
def held_folder(
    path: Path, directory: Path, rows: int | None, suffix: str, overwrite: bool, attempt: Callable[[BinaryIO], None]
) -> Iterator[Folder]:
    """The folder `path` as the output of the run in `directory`, made, tried and locked, until the end of the block.

    Raises `InputError` and `RunStateError` as `place.held`; its tables have `suffix`.
    """
    target = Path(os.path.realpath(path))
    check_around(path / part_name(0, suffix), target / part_name(0, suffix), directory.parent)
    with ExitStack() as holding:
        with tried(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            holding.enter_context(locked(path, target))
            target.mkdir(exist_ok=True)
            for entry in list(target.iterdir()):
                if _HALF.fullmatch(entry.name):
                    entry.unlink()
            with beside(target / part_name(0, suffix)) as (_, file):
                attempt(file)
        folder = Folder(path, directory, suffix, overwrite)
        folder.check(rows)
        yield folder
