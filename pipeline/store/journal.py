"""Append-only files of JSON lines: what was paid for since the last seal.

A line is in the hands of the operating system before the next request is sent, so SIGKILL loses nothing that was
appended; `sync` makes it survive power loss as well. A torn last line is dropped when the file is read.

Beside them `synced` says how long the newest is at least: one that was cut off later is not taken for whole.

The first line says whose the journal is. The last field of every line is a checksum of what stands before it, begun
with the run's identity: a line that was changed, or that another run wrote, is not taken for an answer.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import orjson

from pipeline import machine
from pipeline.errors import RESUMABLE, RunStateError
from pipeline.records import Parse, Result
from pipeline.store.lines import Call, Ended, Sent, record_of
from pipeline.store.reserve import Reserve

_HEADER = b'{"journal":'
_SUM = b',"crc":"%08x"}\n'
_SUM_BYTES = len(_SUM % 0)
_RESULT, _TAIL_BYTES = b'{"result":', 2**18
SYNCED = "synced"
"""File beside the journals: number of the newest, and its bytes when it last was on the disk."""
_SYNCED = b"journal %06d: %015d\n"


class Whose(NamedTuple):
    """Whose journals are expected: the run's identity, and up to which number they were written without checksums."""

    run: str
    plain: int = 0

    def owns(self, path: Path) -> bool:
        """Whether this file must have a first line and checksums."""
        return bool(self.run) and journal_number(path) > self.plain


class Journal:
    """One journal file of the run `run`, open for appending. Raises `RunStateError` when the disk refuses."""

    def __init__(self, path: Path, run: str, carried: Iterable[bytes] = (), reserve: Reserve | None = None) -> None:
        """`carried` are the lines that a new one begins with, of the journal before it. `reserve` is what a full disk
        is helped out with, once."""
        self.path = path
        self._reserve = reserve
        self._seed = crc32(run.encode())
        self._torn = False
        self._note = -1
        try:
            self._fd = machine.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self.size = os.fstat(self._fd).st_size
        except OSError as error:
            raise self._refused(error) from None
        self._synced = self.size
        with suppress(OSError):  # it is a note only
            self._note = machine.open_file(path.parent / SYNCED, os.O_WRONLY | os.O_CREAT)
        if not self.size:
            header = orjson.dumps({"journal": {"run": run, "number": journal_number(path)}}) + b"\n"
            self._write(b"".join(with_sum(line, self._seed) for line in (header, *carried)))

    def append(self, *lines: bytes) -> None:
        """Hand lines, newlines included, to the operating system in one go."""
        if len(lines) == 1:  # nearly always
            self._write(with_sum(lines[0], self._seed))
        else:
            self._write(b"".join(with_sum(line, self._seed) for line in lines))

    def _write(self, content: bytes) -> None:
        try:
            if self._torn:  # what comes after half a line would be damaged with it
                os.ftruncate(self._fd, self.size)
                self._torn = False
            written = os.write(self._fd, content)
            while written < len(content):
                written += os.write(self._fd, content[written:])
        except OSError as error:
            self._torn = True
            with suppress(OSError):
                os.ftruncate(self._fd, self.size)
                self._torn = False
            if not (self._reserve and self._reserve.helps(error)):
                raise self._refused(error) from None
            self._write(content)
        else:
            self.size += len(content)

    def sync(self) -> None:
        """Force what was appended to the disk; nothing to do when nothing was.

        Raises `RunStateError` also when the file is not in its place any more: what is appended would be found nowhere.
        """
        self._check_place()
        size = self.size
        if size != self._synced:
            try:
                machine.sync(self._fd)
            except OSError as error:
                raise self._refused(error) from None
            self._synced = size
            with suppress(OSError):
                machine.write_at(self._note, _SYNCED % (journal_number(self.path), size), 0)

    def _check_place(self) -> None:
        try:
            if os.path.samestat(os.fstat(self._fd), self.path.stat()):
                return
        except OSError:
            pass
        gone = RunStateError(
            f"{self.path} was removed, moved or replaced while this run wrote it: no more is bought\n"
            "What it holds is kept only where that file is now.",
            "put the run directory back as it was, then run the same command again",
        )
        gone.exit_code = RESUMABLE
        raise gone

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            self._close()

    def discard(self) -> None:
        """Close and remove: all that is in it is kept elsewhere."""
        with suppress(OSError):
            self.path.unlink()
        self._close()

    def _close(self) -> None:
        with suppress(OSError):
            os.close(self._note)
        try:
            os.close(self._fd)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> RunStateError:
        return RunStateError(
            f"cannot write {self.path}: {error.strerror}\nEverything before this answer is safe.",
            "make room or mend the disk, then run the same command again",
        )


def journal_path(directory: Path, number: int) -> Path:
    """Where journal `number` is, or would be."""
    return directory / f"journal-{number:06d}.jsonl"


def journal_paths(directory: Path) -> list[Path]:
    """The journals of a run directory, oldest first."""
    return sorted(directory.glob("journal-*.jsonl"))


def journal_number(path: Path) -> int:
    """Number of a journal's file; 0 where its name has none."""
    number = path.stem.removeprefix("journal-")
    return int(number) if number.isdecimal() else 0


def newest_answer(directory: Path) -> tuple[int, str, str] | None:
    """Row, key and text of the row that was answered last, as far as the end of the newest journal tells.

    For who looks on while another process writes: nothing is checked, and what cannot be read is passed over.
    """
    with suppress(OSError, IndexError):
        with journal_paths(directory)[-1].open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
        for line in reversed(lines):
            if line.startswith(_RESULT):
                with suppress(ValueError, KeyError, TypeError):
                    found = orjson.loads(line)["result"]
                    if found["response"]:  # a row that failed has none
                        return found["row"], str(found["key"]), str(found["response"])
    return None


def is_blank(path: Path) -> bool:
    """Whether nothing but its first line, or not even that, was written into a journal."""
    with path.open("rb") as file:
        first = file.readline()
        return not first or (first.startswith(_HEADER) and not file.read(1))


def read(path: Path, parse: Parse, whose: Whose) -> Iterator[Call | Result | Sent | Ended]:
    """The records of a journal, replies read again by the provider's `parse`. A torn last line is left out.

    Raises `RunStateError` for a journal of another run, and for a line that was changed, which no crash does.
    """
    owned, seed = whose.owns(path), crc32(whose.run.encode())
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            whole = without_sum(line, seed) if owned else line
            if number == 1:
                _check_first(path, line, whole, whose)
            if whole is None and (not line.endswith(b"\n") or (b"\0" in line and not file.read(1))):
                return
            try:
                if whole is None:
                    raise ValueError("the checksum is another")
                if whole.startswith(_HEADER):
                    continue
                if not whole.endswith(b"\n"):
                    return
                yield record_of(whole, parse)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
                if not owned and not file.read(1):
                    return
                raise _damaged(path, number, line) from None


def synced(directory: Path) -> tuple[int, int]:
    """Number of the newest journal, and the bytes it had on the disk; zeros where nobody noted it.

    It is written after the journal and never synced: after a power loss it may be older than the journal, not newer.
    """
    with suppress(OSError, ValueError):
        number, size = (directory / SYNCED).read_bytes().removeprefix(b"journal ").split(b": ")
        return int(number), int(size)
    return 0, 0


def check_length(path: Path, noted: tuple[int, int]) -> None:
    """Raise `RunStateError` for a journal shorter than `synced` said, before it was looked at; no crash does that."""
    number, size = noted
    now = path.stat().st_size
    if journal_number(path) == number and 0 < now < size:
        raise RunStateError(
            f"{path} was cut off: it has {now:,} bytes, and {size:,} were safe on the disk\n"
            "Replies that were paid for stood in the rest. Nothing was bought or written.",
            f"restore it; or remove {path.with_name(SYNCED)} to go on with what is left:"
            " what stood in the rest is then bought again",
        )


def check_first(path: Path, whose: Whose) -> None:
    """Raise `RunStateError` for a journal of another run, by its first line alone."""
    with path.open("rb") as file:
        line = file.readline()
    _check_first(path, line, without_sum(line, crc32(whose.run.encode())), whose)


def _check_first(path: Path, line: bytes, whole: bytes | None, whose: Whose) -> None:
    """`whole` is the line without its checksum, None where that is not ours."""
    stands = _header(line)
    if stands == (whose.run, journal_number(path)):
        return
    if stands is not None and stands[0] == whose.run:
        raise RunStateError(
            f"{path} was journal {stands[1]} of this run: somebody renamed it",
            "give it back its name; nothing was bought or written",
        )
    without_sums = whole is None and whose.owns(path) and line.endswith(b"}\n") and _SUM[:6] not in line
    if stands is not None or without_sums:
        raise RunStateError(
            f"{path} belongs to another run: it was not written by this one\nNothing was bought or written.",
            "move it out of this directory to go on; what this run bought stands in its own journals and parts",
        )


def _header(line: bytes) -> tuple[str, int] | None:
    """Run and number that a journal's first line gives, where it is whole."""
    if not line.startswith(_HEADER):
        return None
    try:
        stands = orjson.loads(line)["journal"]
        run, number = stands["run"], stands["number"]
        return (run, number) if without_sum(line, crc32(run.encode())) else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


_BOUGHT_AGAIN = "its call will be bought again, and nothing else"
_WHAT = {
    b'{"journal"': ("whose journal it is", "nothing is lost"),
    b'{"call"': ("a reply that was paid for", _BOUGHT_AGAIN),
    b'{"result"': ("the outcome of a row", "the row is put together again from the replies that are kept"),
    b'{"sent"': ("that a request left", "only what it may have cost is not counted"),
    b'{"ended"': ("that a request came back without an answer", "nothing is lost"),
}


def _damaged(path: Path, number: int, line: bytes) -> RunStateError:
    told, then = next((words for start, words in _WHAT.items() if line.startswith(start)), (None, None))
    row = re.search(rb'"row":(\d{1,18}),', line)
    where = f" (row {int(row[1]):,}, counted from 0)" if row else ""
    return RunStateError(
        f"line {number} of {path} is damaged: the disk or another program changed it"
        + (f"\nIt says {told}{where}." if told else "")
        + "\nThe other lines are kept, and nothing was bought or written.",
        f"restore the file; or remove that line and {path.with_name(SYNCED)} to go on without it:"
        f" {then or _BOUGHT_AGAIN}",
    )


def with_sum(line: bytes, seed: int) -> bytes:
    """A line with its checksum as the last field: it stays JSON."""
    record = line[:-2]
    return record + _SUM % crc32(record, seed)


def without_sum(line: bytes, seed: int) -> bytes | None:
    """The line as it was appended; None where it is not whole, or its checksum not of this run.

    A line whose newline alone is missing, or was changed, is whole.
    """
    ended = line if line.endswith(b"\n") else line[: -1 if line[-1:] != b"}" else None] + b"\n"
    record = ended[:-_SUM_BYTES]
    return record + b"}\n" if ended[-_SUM_BYTES:] == _SUM % crc32(record, seed) else None
