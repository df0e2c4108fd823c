"""Where exactly a text file is broken: read slowly, row by row, and only where the fast reader fails or may err."""

import csv
import gzip
import io
import re
from collections.abc import Sequence
from typing import BinaryIO, cast

import orjson

from pipeline.errors import InputError

SAVE_AS_UTF8 = "save it as UTF-8, for instance with `iconv -f GB18030 -t UTF-8 old > new` (from whatever it is now)"
UTF8_BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 2**20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_bytes(path: str) -> BinaryIO:
    """The file's bytes, unpacked when its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.endswith(".gz") else open(path, "rb")  # noqa: PTH123


def csv_header(path: str, separator: str) -> list[str]:
    """Column names of a CSV file. Raises `InputError` for an empty, unnamed, repeated or non-UTF-8 name."""
    _allow_long_cells()
    with open_bytes(path) as file:
        start = file.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path} is UTF-16, not UTF-8", SAVE_AS_UTF8.replace("GB18030", "UTF-16"))
    with _as_text(path) as text:
        try:
            names = next(csv.reader(text, delimiter=separator), [])
        except csv.Error as error:
            raise InputError(f"{path}, line 1: {error}") from None
    if not names:
        raise InputError(f"{path} is empty", "the first line names the columns")
    if bad := next((name for name in names if not _is_utf8(name)), None):
        raise InputError(f"{path}, line 1: the column name {_shown(bad)} is not UTF-8", SAVE_AS_UTF8)
    if "" in names:
        raise InputError(
            f"{path}, line 1: column {names.index('') + 1} has no name", "the first line names the columns"
        )
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}, line 1: two columns are named `{repeated}`", "rename one of them")
    return names


def csv_fault(path: str, separator: str, names: Sequence[str]) -> InputError | None:
    """The first thing wrong with a CSV file, by line: a cell too many or too few, an open quote, bytes not UTF-8.

    100 to 150 MB/s. Rows without a single value are no rows, so they may have any length.
    """
    _allow_long_cells()
    with _as_text(path) as text:
        rows = csv.reader(text, delimiter=separator, strict=True)
        line = 1
        try:
            for cells in rows:
                place = f"{path}, line {line}"
                if not _is_utf8("".join(cells)):
                    at = next(index for index, cell in enumerate(cells) if not _is_utf8(cell))
                    column = names[at] if at < len(names) else str(at + 1)
                    return InputError(f"{place}, column `{column}`: not UTF-8", SAVE_AS_UTF8)
                if len(cells) != len(names) and any(cells):
                    return InputError(
                        f"{place} has {_cells(len(cells))}, the header has {len(names)}",
                        "a cell that holds a separator or a line break needs quotes around it",
                    )
                line = rows.line_num + 1
        except csv.Error as error:
            if "end of data" in str(error):
                return InputError(f"{path}, line {line}: a quote opens here and never closes", 'a quote is written ""')
            return InputError(f"{path}, line {rows.line_num}: {error}", 'inside quotes, a quote is written ""')
    return None


def csv_is_even(path: str, separator: str, columns: int) -> bool:
    """Whether the rows of a CSV file are whole beyond doubt: so many cells in each, quotes only around cells.

    1 GB/s. Then `csv_fault` can find nothing but bytes that are not UTF-8; where this is False, it has to look.
    """
    structural = f'{separator}"\r\n'.encode()
    shapes = bytes(byte if byte in structural else ord("x") for byte in range(256))
    row = separator.encode() * (columns - 1) + b"\n"
    rest, quoted = b"", False
    with open_bytes(path) as file:
        if file.read(len(UTF8_BOM)) != UTF8_BOM:
            file.seek(0)
        while block := file.read(_BLOCK_BYTES) + file.readline():
            ended = block if block.endswith(b"\n") else block + b"\n"
            pieces = (b'"' * quoted + ended).split(b'"')  # every other one is within quotes
            quoted = len(pieces) % 2 == 0
            bare = (b'"'.join(pieces[::2]) + b'"' * quoted).translate(shapes)
            if b'x"' in bare or b'"x' in bare or bare.count(b"\r") != bare.count(b"\r\n"):
                return False
            lines, end, rest = (rest + bare.translate(None, b'x"\r')).rpartition(b"\n")
            if (lines + end).replace(row, b""):
                return False
    return not quoted


def jsonl_fault(path: str) -> InputError | None:
    """The first line of a JSONL file that is not one JSON object in UTF-8, by its number."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(UTF8_BOM):
                return InputError(
                    f"{path} starts with a byte order mark", f"remove it: `sed -i '1s/^\\xEF\\xBB\\xBF//' {path}`"
                )
            if line.isspace():
                continue
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                return _json_error(f"{path}, line {number}", line, error)
            if not isinstance(value, dict):
                return InputError(
                    f"{path}, line {number} is not a JSON object", 'each line is one object: {"column": value, …}'
                )
    return None


def half_character(path: str) -> InputError | None:
    """The first line of a JSONL file with half a surrogate pair (`\\ud83d` alone), which polars would read as NUL."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if _SURROGATE.search(line):
                try:
                    orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    return _json_error(f"{path}, line {number}", line, error)
    return None


def _json_error(place: str, line: bytes, error: orjson.JSONDecodeError) -> InputError:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return InputError(f"{place}, byte {wrong.start + 1}: not UTF-8", SAVE_AS_UTF8)
    return InputError(
        f"{place}, column {error.colno}: not JSON: {error.msg}",
        "each line is one JSON object; a file that is one array becomes lines with `jq -c '.[]'`",
    )


def _as_text(path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _allow_long_cells() -> None:
    csv.field_size_limit(2**31 - 1)  # the default, 128 kB, is shorter than the documents this is made for


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    return repr(text.encode(errors="surrogateescape"))[1:]


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
