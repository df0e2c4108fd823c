"""What a CSV file means: what Python's `csv` in strict mode says, or nothing at all.

A file that is plain beyond doubt is read by polars, which says the same of such files and is ten times as fast; every
other one by the csv module itself. Which it is follows from each of its bytes, not from what either reader finds.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import orjson
import polars as pl

from pipeline import machine
from pipeline.errors import InputError
from pipeline.source.text import decoded, open_bytes, open_lines, undecodable

if TYPE_CHECKING:
    import _csv

_BLOCK_BYTES = 2**20
_LINE_BYTES = 2**24
_BATCH_CHARS = 4_000_000
_BATCH_BYTES = 32_000_000
_RECORD_CHARS = 2**24
_UTF8_BOM = b"\xef\xbb\xbf"


class Plain(NamedTuple):
    """What is known of a file that is plain beyond doubt."""

    lines: int  # rows, with those that `blank` speaks of
    blank: bool  # there may be rows without a single value
    empties: bool  # there may be `""`, which is an empty cell


@dataclass(frozen=True)
class CsvFile:
    """One CSV file with the columns of its header, all of them text. An empty cell is null."""

    path: str
    separator: str
    encoding: str | None
    names: tuple[str, ...]

    @property
    def plain(self) -> Plain | None:
        """Whether polars may read it; None where only the csv module knows. Looks at each byte, once for a state."""
        return None if self.encoding else _plain(self.path, self.separator, len(self.names), stamp(self.path))

    def frames(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """`columns` of all rows that have a value, in frames of at most `size` rows.

        Raises `InputError` with line and column for whatever the csv module refuses, for a row that is longer or
        shorter than the header, and for bytes that are not in the file's encoding.
        """
        found = self.plain
        return self._exact(columns, size) if found is None else self._fast(columns, size, found)

    def _fast(self, columns: Sequence[str], size: int, found: Plain) -> Iterator[pl.DataFrame]:
        schema = pl.Schema(dict.fromkeys(self.names, pl.String()))
        rows = pl.scan_csv(
            self.path, separator=self.separator, schema=schema, has_header=False, skip_lines=1, glob=False
        )
        read = rows.select(self.names if found.blank else columns)
        # Without a chunk size a batch is a block of the file: long rows come one by one.
        for frame in _gathered(read.collect_batches(maintain_order=True, lazy=True), size):
            nulled = frame.with_columns(map(_nulled, frame)) if found.empties else frame
            kept = _with_values(nulled).select(columns) if found.blank else nulled
            yield from kept.iter_slices(size)

    def _exact(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        places = [(name, self.names.index(name)) for name in columns]
        for batch in _batches(self._rows(), size):
            columns_read = {name: [row[place] for row in batch] for name, place in places}
            batch.clear()  # a row may have hundreds of MB
            yield pl.DataFrame(
                {name: _nulled(pl.Series(name, columns_read.pop(name), pl.String)) for name, _ in places}
            )

    def _rows(self) -> Iterator[list[str]]:
        with open_lines(self.path, self.encoding, "") as lines:
            reader = _reader(lines, self.separator)
            next(row for row in reader if row)  # the header
            line = reader.line_num + 1
            try:
                for cells in reader:
                    if not (all(map(str.isascii, cells)) or all(map(decoded, cells))):
                        at = next(index for index, cell in enumerate(cells) if not decoded(cell))
                        raise undecodable(self.path, self._place(line, at), cells[at], self.encoding)
                    if any(cells):
                        if len(cells) != len(self.names):
                            raise InputError(
                                f"{self.path}, line {line} has {_count(len(cells))}, the header has {len(self.names)}",
                                "a cell that holds a separator or a line break needs quotes around it",
                            )
                        yield cells
                        del cells
                    line = reader.line_num + 1
            except csv.Error as error:
                raise self._odd(line, error) from None

    def _odd(self, line: int, error: csv.Error) -> InputError:
        """Where exactly in the row that begins in `line` the csv module stumbles."""
        with open_lines(self.path, self.encoding, "") as lines:
            record: list[str] = []
            chars = 0
            for number, text in enumerate(lines, 1):
                if number < line:
                    continue
                if not record and not text.strip("\r\n"):
                    line += 1  # before the header
                    continue
                record.append(text)
                chars += len(text)
                if chars >= _RECORD_CHARS:
                    break
        whole = "".join(record)
        start, at, cell = _stumble(whole, self.separator)
        before = whole[:at]
        place = self._place(line + _line_ends(before), cell, at - len(re.split(r"\r\n|\r|\n", before)[-1]), at)
        if "end of data" in str(error):
            return InputError(f"{place}: a quote opens here and never closes", 'inside quotes, a quote is written ""')
        hint = 'inside quotes, a quote is written ""'
        if before[start:].endswith("\\"):
            hint = (
                r"""this file writes \" for a quote: write "" instead, for instance with `sed 's/\\"/""/g' old > new`"""
            )
        return InputError(f"{place}: a quote ends the cell, and more of it follows", hint)

    def _place(self, line: int, cell: int, line_start: int = 0, at: int | None = None) -> str:
        column = f"`{self.names[cell]}`" if cell < len(self.names) else str(cell + 1)
        character = "" if at is None else f", character {at - line_start + 1}"
        return f"{self.path}, line {line}, column {column}{character}"


def open_csv(path: str, separator: str, encoding: str | None) -> CsvFile:
    """Read the header, the first line that is not blank.

    Raises `InputError` for a name that is empty, repeated or not in the encoding, and for a first line `sep=,`.
    """
    with open_lines(path, encoding, "") as lines:
        reader = _reader(lines, separator)
        try:
            names: list[str] = next((row for row in reader if row), [])
        except csv.Error as error:
            raise CsvFile(path, separator, encoding, ())._odd(1, error) from None
    if not names:
        raise InputError(f"{path} is empty", "the first line names the columns")
    place = f"{path}, line {reader.line_num}"
    if bad := next((name for name in names if not decoded(name)), None):
        raise undecodable(path, f"{place}: a column name", bad, encoding)
    if names[0].lower().startswith("sep=") and not any(names[1:]):
        note = separator.join(names)
        mark = separator if len(names) > 1 else note[4:]
        setting = "" if mark == separator else f"; and set `{separator_setting(mark)}`"
        hint = f"remove the line{setting}"
        if encoding is None and not path.endswith(".gz"):  # a tool of lines finds it
            hint = f"leave the line out: `tail -n +2 {machine.quoted(path)} > plain.csv` writes it so{setting}"
        raise InputError(f"{place} is `{note}`, a note for Excel and no header", hint)
    if names.count("") > 1:
        first, second, *_ = (number for number, name in enumerate(names, 1) if not name)
        raise InputError(f"{place}: columns {first} and {second} have no name", "the first line names the columns")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        repeated = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{place}: two columns are named `{repeated}`", "rename one of them")
    return CsvFile(path, separator, encoding, tuple(names))


def separator_setting(mark: str) -> str:
    """The line of a job file that names a separator."""
    return f"[input] separator = {orjson.dumps(mark).decode()}"


def stamp(path: str) -> tuple[int, ...]:
    """What changes when a file does: its number, size and time of change."""
    told = os.stat(path)  # noqa: PTH116
    return told.st_ino, told.st_size, told.st_mtime_ns


@lru_cache(maxsize=2**16)
def _plain(path: str, separator: str, columns: int, _: tuple[int, ...]) -> Plain | None:
    return plain(path, separator, columns)


def plain(path: str, separator: str, columns: int) -> Plain | None:
    """Whether each row of a CSV file has so many cells beyond doubt: quotes only around cells, UTF-8 throughout.

    0.5 GB/s. The header has to be the first line, and line ends are "\\n" or "\\r\\n".
    """
    cut, quote = separator.encode(), b'"'
    before, after = {b"", cut, b"\n"}, {b"", cut, b"\n", b"\r"}
    content = bytes(byte for byte in range(256) if byte not in cut + b"\n")
    row = cut * (columns - 1) + b"\n"
    rest, quoted, lines_read, blank, empties = b"", False, 0, False, False
    with open_bytes(path) as file:
        start = len(_UTF8_BOM) if file.read(len(_UTF8_BOM)) == _UTF8_BOM else 0
        if not _begins_plainly(file, start):
            return None
        while block := file.read(_BLOCK_BYTES):
            while not block.endswith(b"\n") and (more := file.readline(_LINE_BYTES)):
                block += more
                if len(more) == _LINE_BYTES and b"\r" in more:
                    return None  # lines that end in "\r": the whole file would be one
            if block.endswith(b"\r") or not _is_utf8(block):
                return None
            ended = block if block.endswith(b"\n") else block + b"\n"
            pieces = (quote * quoted + ended).split(quote)
            outside, inside = pieces[::2], pieces[1::2]
            quoted = len(inside) == len(outside)
            if not {piece[-1:] for piece in outside[: len(inside)]} <= before:
                return None
            if not {piece[:1] for piece in outside[1:]} <= after:
                return None
            bare = quote.join(outside) + quote * quoted
            if b"\r" in bare:
                if bare.count(b"\r") != bare.count(b"\r\n"):
                    return None
                bare = bare.replace(b"\r\n", b"\n")
            whole, end, rest = (rest + bare).rpartition(b"\n")
            if not end:
                continue
            lines = whole.split(b"\n")
            left = (whole.translate(None, content) + b"\n").replace(row, b"")  # of a blank line "\n" is left
            if left.strip(b"\n") or (left and len(left) != lines.count(b"")):
                return None
            blank = blank or not all(line.strip(cut + quote) for line in lines)
            empties = empties or b"" in inside
            lines_read += len(lines)
    return None if quoted else Plain(lines_read - 1, blank, empties)


def _begins_plainly(file: BinaryIO, start: int) -> bool:
    """Whether header and first row are as polars takes them; leaves the file at its `start`."""
    file.seek(start)
    header, first = file.readline(_LINE_BYTES), file.readline(_LINE_BYTES)
    file.seek(start)
    if not header.strip(b"\r\n") or header.count(b'"') % 2:
        return False  # it takes the header for one line
    # It counts columns in the line below, and passes over a mark there.
    return first not in (b"\n", b"\r\n") and not first.startswith(_UTF8_BOM)


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        pl.Series([block]).cast(pl.String)  # 14 times as fast as `decode`
    except pl.exceptions.PolarsError:
        return False
    return True


def _reader(lines: Iterator[str], separator: str) -> "_csv.Reader":
    csv.field_size_limit(2**31 - 1)  # the default, 128 kB, is shorter than the documents this is made for
    return csv.reader(lines, delimiter=separator, strict=True)


def _batches(rows: Iterator[list[str]], size: int) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    chars = 0
    for cells in rows:
        batch.append(cells)
        chars += sum(map(len, cells))
        if len(batch) >= size or chars >= _BATCH_CHARS:
            del cells
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _gathered(frames: Iterator[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """Frames put together until they have `size` rows, or as many bytes as are to be in memory."""
    held: list[pl.DataFrame] = []
    rows = read = 0
    for frame in frames:
        held.append(frame)
        rows += frame.height
        read += int(frame.estimated_size())
        if rows >= size or read >= _BATCH_BYTES:
            yield pl.concat(held)
            held, rows, read = [], 0, 0
    if held:
        yield pl.concat(held)


def _nulled(column: pl.Series) -> pl.Series:
    empty = column.str.len_bytes() == 0
    return column.set(empty, None) if empty.any() else column


def _with_values(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that have a value; most often the first column decides."""
    filled = pl.repeat(False, frame.height, eager=True)
    for column in frame:
        filled = filled | column.is_not_null()
        if filled.all():
            return frame
    return frame.filter(filled)


def _stumble(record: str, separator: str) -> tuple[int, int, int]:
    """Start of the cell in which the csv module stumbles, place of the quote over which it does, the cell's number."""
    quoted, bare = re.compile(r'"(?:[^"]|"")*+"?'), re.compile(rf"[^{re.escape(separator)}\r\n]*")
    start = cell = 0
    while start < len(record):
        found = (quoted if record[start] == '"' else bare).match(record, start)
        end = found.end() if found else start
        if end >= len(record):
            return start, start, cell
        if record[end] != separator:
            return start, end - 1, cell
        start, cell = end + 1, cell + 1
    return start, start, cell


def _line_ends(text: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", text))


def _count(cells: int) -> str:
    return "1 cell" if cells == 1 else f"{cells} cells"
