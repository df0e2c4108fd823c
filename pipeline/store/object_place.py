"""An output in object storage: one object, or a folder of them, one of each part of the input; as `Place` and `Folder`.

Tables are written on this disk first. An object is put whole or not at all, and in the place of the one that was seen
there: the store itself compares their tags, so that nobody's table is lost, whichever machine wrote it.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import InputError, RunStateError
from pipeline.objects import Entry, opened
from pipeline.store import notes
from pipeline.store.place import (
    Counted,
    Write,
    beside,
    explained,
    fewer,
    left_over,
    locked,
    meanwhile,
    note,
    own_rows,
    refused,
    tidy,
)
from pipeline.store.units import part_name
from pipeline.urls import Url

_PART = re.compile(r"part-(\d{5,})\.[a-z]+")


class ObjectPlace:
    """One output, held by this run: no other run of this project writes it."""

    def __init__(
        self,
        url: Url,
        suffix: str | None,
        directory: Path,
        draft: Path,
        overwrite: bool,
        noted: bool = True,
        elsewhere: Path | None = None,
    ) -> None:
        """`suffix` is that of the objects of a folder, None where `url` is the object itself; tables are written beside
        `draft` first. Raises as `objects.opened`."""
        self._url, self._suffix, self._directory, self._draft = url, suffix, directory, draft
        self._overwrite, self._noted, self._elsewhere = overwrite, noted, elsewhere
        self._objects = opened(str(url if suffix else url.parent))
        self._before = self._there()
        self._finished = 0

    @property
    def finished(self) -> int:
        """Rows with an outcome in this run's own table that is there; 0 where none is."""
        return self._finished

    def free_bytes(self) -> int:
        """Room that is left on the disk where tables are written first."""
        return shutil.disk_usage(self._draft.parent).free

    def takes(self, finished: int, rows: int) -> bool:
        """Whether a table of `rows` with so many `finished` may replace one of an earlier run of this job."""
        return self._overwrite or finished >= min(self._finished, rows)

    def attempt(self, write: Callable[[BinaryIO], None]) -> None:
        """Put what `write` gives there under another name, and delete it."""
        name = f".{self._url.name}.trial"
        with beside(self._draft) as (hidden, file):
            write(file)
            file.close()
            self._objects.put(name, hidden)
        self._objects.delete([name])

    def check(self, rows: int | None) -> None:
        """Raise `InputError` when what is there is not this run's to replace by `rows` at most."""
        if self._overwrite or not any(entry.size for entry in self._before.values()):  # nothing, or an empty object
            return
        if not self._noted:
            raise refused(f"{self._told} is there already")
        theirs = list(notes.of_url(self._told, self._directory.parent, self._elsewhere))
        writers = [(directory, note) for directory, note in theirs if self._suffix or self._is_of(note)]
        self._finished = own_rows(self._told, self._directory, rows, writers, theirs)

    def replace(self, parts: Iterable[Write], checked: Callable[[], None]) -> Counted:
        """Let each of `parts` fill a file, and put all in place when they are whole and `checked` raises nothing.

        Objects of parts that there are no more are deleted. Raises `OutputError` as `Place` does, and `RunStateError`
        where the store refuses: what is there then stays, but for the objects of a folder that were put before.
        """
        with explained(self._told, self._directory), ExitStack() as writing:
            written: dict[str, Path] = {}
            rows = finished = 0
            for number, write in enumerate(parts):
                hidden, file = writing.enter_context(beside(self._draft))
                counted = write(file)
                file.close()
                rows, finished = rows + counted.rows, finished + counted.finished
                written[part_name(number, self._suffix) if self._suffix else self._url.name] = hidden
            checked()
            self._look(written)
            if not self.takes(finished, rows):
                raise fewer(self._told, self._directory, self._finished, finished)
            noted = notes.Written(self._told, 0, 0, "", rows, finished)
            if not self._suffix:
                (one,) = written.values()
                noted = replace(noted, size=one.stat().st_size, digest=notes.digest_of(one))
            self._note(noted)
            for name, hidden in written.items():
                self._put(name, hidden)
            if self._suffix:
                self._objects.delete([name for name in self._before if _number(name) >= len(written)])
            else:
                self._note(replace(noted, tag=_told_tag(self._before[self._url.name])))
        self._finished = finished
        return Counted(rows, finished)

    @property
    def _told(self) -> str:
        return f"{self._url}{'/' if self._suffix else ''}"

    def _there(self) -> dict[str, Entry]:
        if self._suffix:
            entries = self._objects.entries()
            return {entry.name: entry for entry in entries if not entry.name.rpartition("/")[2].startswith(".")}
        entry = self._objects.head(self._url.name)
        return {} if entry is None else {entry.name: entry}

    def _look(self, names: Iterable[str]) -> None:
        """Raise `OutputError` where something was put there since; what was removed is in nobody's way."""
        now = self._there()
        for name in names if not self._overwrite else ():
            if name in now and (name not in self._before or _told_tag(now[name]) != _told_tag(self._before[name])):
                raise meanwhile(self._told, self._directory)
        self._before = now

    def _put(self, name: str, path: Path) -> None:
        """Put a table where the one lies that was seen there, and nowhere else."""
        before = self._before.get(name)
        if self._overwrite:
            self._objects.put(name, path)
            there = self._objects.head(name)
        else:
            there = self._objects.put_over(name, path, before and before.tag)
        if there is None:
            raise meanwhile(self._told, self._directory)
        self._before[name] = there

    def _note(self, written: notes.Written) -> None:
        if self._noted:
            there = None if written.tag else self._before.get(self._url.name)
            note(self._directory, notes.with_url(self._directory, written, there and _told_tag(there)))

    def _is_of(self, note: notes.Written) -> bool:
        """Whether the object there is the one of the note: by its tag or, as after a kill, by its content."""
        there = self._before[self._url.name]
        if note.tag == _told_tag(there) or note.size != there.size:
            return note.size == there.size
        with beside(self._draft) as (hidden, file):
            file.close()
            self._objects.fetch(self._url.name, hidden)
            return notes.digest_of(hidden) == note.digest


def _told_tag(entry: Entry) -> str:
    return entry.tag.e_tag or entry.tag.version or ""


def _number(name: str) -> int:
    found = _PART.fullmatch(name)
    return int(found[1]) if found else -1


@contextmanager
def held_url(
    url: Url,
    suffix: str | None,
    directory: Path,
    rows: int | None,
    overwrite: bool,
    attempt: Callable[[BinaryIO], None],
    noted: bool = True,
    elsewhere: Path | None = None,
) -> Iterator[ObjectPlace]:
    """The output `url` of the run in `directory`, tried and locked, until the end of the block; as `place.held`.

    `suffix` is that of the objects of a folder; in the directory `elsewhere` stands what the same run wrote on other
    machines. Raises `InputError` and `RunStateError` as `place.held` does.
    """
    draft = directory.parent / f"output-{blake2b(str(url).encode(), digest_size=8).hexdigest()}"
    told = f"{url}{'/' if suffix else ''}"
    with ExitStack() as holding:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            holding.enter_context(locked(told, draft))
            holding.callback(tidy, draft)
            for left in left_over(draft):
                left.unlink()
        except OSError as error:
            refusal = f"cannot write {draft.parent}: {error.strerror}"
            raise InputError(refusal, "tables are written there before they are put in their place: mend it") from None
        try:
            place = ObjectPlace(url, suffix, directory, draft, overwrite, noted, elsewhere)
            place.attempt(attempt)
        except RunStateError as error:  # where a run is locked, it is said so
            raise InputError(error.message, error.hint) from None
        place.check(rows)
        yield place
