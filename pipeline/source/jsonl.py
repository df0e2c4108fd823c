"""What a JSONL file means: one object a line, each value as it stands there, digit for digit.

A column whose values are all text, all true or false, all whole numbers of 64 bit, or all numbers that print as they
are written has that type. Every other column is JSON: each cell is the text of its own value.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import orjson
import polars as pl

from pipeline import machine
from pipeline.errors import InputError
from pipeline.source.text import BOM, decoded, open_bytes, open_lines, undecodable
from pipeline.source.unique import Repeats, hashed, repeats

TEXT, INTEGER, LONG, BIG, FLOAT, ODD, BOOLEAN, LIST, OBJECT = (
    "text",
    "whole numbers",
    "whole numbers beyond 2^53",
    "whole numbers beyond 64 bit",
    "numbers",
    "numbers in a form of their own",
    "true or false",
    "lists",
    "objects",
)
WHOLE = frozenset({INTEGER, LONG, BIG})
_KINDS: dict[type, str] = {str: TEXT, bool: BOOLEAN, list: LIST, dict: OBJECT}
_TYPES: tuple[tuple[set[str], pl.DataType], ...] = (
    (set(), pl.Null()),
    ({TEXT}, pl.String()),
    ({BOOLEAN}, pl.Boolean()),
    ({INTEGER, LONG}, pl.Int64()),
    ({FLOAT}, pl.Float64()),
)
_NUMBERS: tuple[tuple[set[str], pl.DataType], ...] = (
    (set(WHOLE), pl.Int128()),
    ({INTEGER, FLOAT, ODD}, pl.Float64()),
)
_EXACT = 2**53
_LARGEST = 2**63
_BATCH_BYTES = 4_000_000
_MINUS_ZERO = re.compile(rb"[:\s]-0[,}\s]")
_HALF = re.compile("[\ud800-\udfff]")

Kinds = dict[str, dict[str, str]]
"""Column → kind of value → the place where it first stands, as "a.jsonl, line 3"."""
Row = dict[str, object]


@dataclass(frozen=True)
class Found:
    """What one pass tells of JSONL files: how many rows they have, and what stands in which column."""

    rows: int
    kinds: Kinds
    repeated: Repeats | None = None  # ids that stand there more than once, where ids were asked for
    nameless: int | None = None  # the first row without one

    @property
    def schema(self) -> pl.Schema:
        """Type of each column, in the order in which they appear; String where it is `json`."""
        return pl.Schema({name: _first(_TYPES, kinds) or pl.String() for name, kinds in self.kinds.items()})

    @property
    def json(self) -> frozenset[str]:
        """Columns whose cells are JSON texts."""
        return frozenset(name for name, kinds in self.kinds.items() if _first(_TYPES, kinds) is None)

    @property
    def numbers(self) -> dict[str, pl.DataType]:
        """JSON columns of nothing but numbers, with a type that holds each of them as nearly as `where` needs."""
        typed = {name: _first(_NUMBERS, self.kinds[name]) for name in self.json}
        return {name: dtype for name, dtype in typed.items() if dtype is not None}


def look(paths: Sequence[str], encoding: str | None, id: str | None = None) -> Found:
    """Read every line, its `id` too. Raises `InputError` with file and line for what is not one exact JSON object.

    Half a character, a key that stands twice, NaN and a number without an end are none.
    """
    kinds: Kinds = {}
    rows, nameless = 0, None

    def hashes() -> Iterator[pl.Series]:
        nonlocal rows, nameless
        for path in paths:
            for lines, batch in _batches(path, encoding, 2**13, exact=True):
                for name in dict.fromkeys(chain.from_iterable(batch)):
                    known = kinds.setdefault(name, {})
                    for kind, row in _kinds([each.get(name) for each in batch], known):
                        known[kind] = f"{path}, line {lines[row]}"
                if id is not None:
                    ids = [each.get(id) for each in batch]
                    if nameless is None and None in ids:
                        nameless = rows + ids.index(None)
                    yield hashed(pl.Series([_printed(each) for each in ids], dtype=pl.String))
                rows += len(batch)
                batch.clear()

    repeated = repeats(hashes())
    return Found(rows, kinds, None if id is None else repeated, nameless)


def frames(
    path: str, encoding: str | None, schema: Mapping[str, pl.DataType], json_columns: frozenset[str], size: int
) -> Iterator[pl.DataFrame]:
    """The columns of `schema` of each row, in frames of at most `size` rows; a key that a row lacks is null."""
    exact = any(name in json_columns for name in schema)
    for _, batch in _batches(path, encoding, size, exact):
        columns = {}
        for name, dtype in schema.items():
            cells = [row.get(name) for row in batch]
            if name in json_columns:
                cells = [None if cell is None else orjson.dumps(cell).decode() for cell in cells]
            try:
                columns[name] = pl.Series(name, cells, dtype)
            except (TypeError, OverflowError, ValueError, pl.exceptions.PolarsError):
                raise InputError(f"{path} changed while it was read", "run the same command again") from None
        cells = []
        batch.clear()  # a row may have hundreds of MB
        yield pl.DataFrame(columns)


def text_of(column: pl.Series) -> pl.Series:
    """JSON texts as a person reads them: strings without quotes and escapes, everything else as it is."""
    return pl.Series(
        column.name, [orjson.loads(cell) if cell is not None and cell[0] == '"' else cell for cell in column], pl.String
    )


def _printed(cell: object) -> str | None:
    """An id as it prints: the same for a number and for a text of its digits."""
    return cell if cell is None or isinstance(cell, str) else orjson.dumps(cell).decode()


def _first(types: tuple[tuple[set[str], pl.DataType], ...], kinds: Mapping[str, str]) -> pl.DataType | None:
    return next((dtype for allowed, dtype in types if kinds.keys() <= allowed), None)


def _kinds(cells: Sequence[object], known: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Kinds of value that are not `known` yet, each with the first cell that has it."""
    types = set(map(type, cells)) - {type(None)}
    fresh = {one for one in types if _KINDS.get(one) not in known}
    if int in fresh and INTEGER in known:
        whole = [cell for cell in cells if type(cell) is int]
        if min(whole) >= -_EXACT and max(whole) <= _EXACT:
            fresh.remove(int)
    if float in fresh and {FLOAT, ODD} <= known.keys():
        fresh.remove(float)
    found = dict(known)
    for row, cell in enumerate(cells if fresh else ()):
        if cell is not None and (kind := _kind(cell)) not in found:
            found[kind] = ""
            yield kind, row


def _kind(cell: object) -> str:
    if isinstance(cell, orjson.Fragment):
        return BIG if orjson.dumps(cell).removeprefix(b"-").isdigit() else ODD
    if type(cell) is int:
        return INTEGER if abs(cell) <= _EXACT else LONG if -_LARGEST <= cell < _LARGEST else BIG
    if type(cell) is float:
        return FLOAT if repr(cell).encode() == orjson.dumps(cell) else ODD
    return _KINDS[type(cell)]


def _batches(path: str, encoding: str | None, size: int, exact: bool) -> Iterator[tuple[list[int], list[Row]]]:
    """Rows with the numbers of their lines; blank lines are no rows. Whoever is done with the rows clears them."""
    parse = _exact if exact else _loads
    lines: list[int] = []
    rows: list[Row] = []
    read = 0
    for number, line in enumerate(_lines(path, encoding), 1):
        if line.isspace():
            continue
        rows.append(parse(line, path, number))
        lines.append(number)
        read += len(line)
        if len(rows) >= size or read >= _BATCH_BYTES:
            del line
            yield lines, rows
            lines, rows, read = [], [], 0
    if rows:
        yield lines, rows


def _lines(path: str, encoding: str | None) -> Iterator[bytes]:
    if encoding is None:
        with open_bytes(path) as file:
            yield file.readline().removeprefix(BOM.encode())
            yield from file
        return
    with open_lines(path, encoding, "\n") as texts:
        for number, text in enumerate(texts, 1):
            if not decoded(text):
                raise undecodable(path, f"{path}, line {number}", text, encoding)
            yield text.encode()


def _loads(line: bytes, path: str, number: int) -> Row:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _fault(path, number, line, error) from None
    if not isinstance(row, dict):
        hint = _as_lines(path, line) if isinstance(row, list) else 'each line is one object: {"column": value, …}'
        raise InputError(f"{path}, line {number} is not a JSON object", hint)
    return row


def _exact(line: bytes, path: str, number: int) -> Row:
    """The object of a line, with a `Fragment` for each number that would be written in another way."""
    row = _loads(line, path, number)
    try:
        again = orjson.dumps(row)
    except TypeError:  # it reads deeper than it writes
        raise _too_deep(path, number) from None
    if line.startswith(again) and not line[len(again) :].strip():
        return row
    minus_zero = b"-0" in line and _MINUS_ZERO.search(line)
    if again.count(b":") == line.count(b":") and b"\\u003" not in line and not minus_zero:  # U+003A is a colon
        # no key is lost
        types = set(map(type, row.values()))
        if types.isdisjoint((float, list, dict)):
            return row
    try:
        slow: Row = _DECODER.decode(line.decode())
    except _TwiceError as error:
        raise InputError(f"{path}, line {number}: the key `{error}` stands twice", "remove one of the two") from None
    except RecursionError:
        raise _too_deep(path, number) from None
    return slow


def _too_deep(path: str, number: int) -> InputError:
    return InputError(f"{path}, line {number} is nested too deeply", "flatten its values")


class _TwiceError(ValueError):
    pass


def _object(pairs: list[tuple[str, object]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return found


def _written_float(text: str) -> object:
    number = float(text)
    return number if orjson.dumps(number) == text.encode() else orjson.Fragment(text.encode())


def _written_int(text: str) -> object:
    if text != "-0" and len(text) < 20 and -_LARGEST <= (number := int(text)) < _LARGEST:
        return number
    return orjson.Fragment(text.encode())


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_written_float, parse_int=_written_int)


def _fault(path: str, number: int, line: bytes, error: orjson.JSONDecodeError) -> InputError:
    place, several = f"{path}, line {number}", False
    try:
        text = line.decode()
    except UnicodeDecodeError as wrong:
        marked = line.decode(errors="pipeline.undecodable")
        return undecodable(path, f"{place}, byte {wrong.start + 1}", marked, None)
    try:
        row = json.loads(text, parse_constant=_constant)
    except _ConstantError as constant:
        return InputError(f"{place}: {constant} is not JSON", "write null, or a number")
    except (ValueError, RecursionError) as wrong:
        row, several = None, str(wrong).startswith(_SEVERAL)
    for name, value in row.items() if isinstance(row, dict) else ():
        if half := _HALF.search(name + json.dumps(value, ensure_ascii=False)):
            return InputError(
                f"{place}, column `{_shown(name)}`: \\u{ord(half[0]):x} is half a character (a lone surrogate)",
                "no text can hold it: write the whole pair, or \\ufffd in its place",
            )
    hint = "mend the line, or leave it out"
    if "infinity" in error.msg:
        hint = "no number is as large: write it in quotes, as text"
    elif not line.endswith(b"\n") and not path.endswith(".gz"):  # the last of the file
        named = machine.quoted(path)
        hint = f"the file is cut off in this line: get it whole, or leave it out: `sed '$d' {named} > whole.jsonl`"
    elif number == 1 or several:
        hint = _as_lines(path, line)
    return InputError(f"{place}, column {error.colno}: not JSON: {error.msg}", hint)


def _as_lines(path: str, line: bytes) -> str:
    each = ".[]" if line.lstrip().startswith(b"[") else "."
    named = machine.quoted(path)
    if path.endswith(".gz"):
        return f"each line is one JSON object: `gzip -cd {named} | jq -c '{each}' > lines.jsonl` writes it so"
    return f"each line is one JSON object: `jq -c '{each}' {named} > lines.jsonl` writes it so"


_SEVERAL = "Extra data"
"""What Python's json says of several values in a line."""


class _ConstantError(Exception):
    pass


def _constant(name: str) -> object:
    raise _ConstantError(name)


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
