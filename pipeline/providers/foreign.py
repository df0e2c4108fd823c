"""JSON that others wrote: read strictly first, then as widely as its meaning stays certain. Pure, and never raises.

A paid answer is not thrown away because its bytes are odd. Taken are: a byte order mark, UTF-16, bytes that are no text
(U+FFFD), lone surrogates (U+FFFD), unknown escapes, raw control characters, NaN, nesting of any depth, junk before the
first brace and after the last, a JSON text inside a JSON string, several JSON texts in a row, server-sent events.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import orjson

MAX_DEPTH = 64
"""Of a body nested deeper than Python's parser can read, what lies deeper than this is left out: an answer has 6."""
_JUNK_CHARS = 4096  # how far into a body its first brace is looked for
MOST_FIELDS = 1_000
"""Of one object; a response has some 30. A million of them kept the event loop for 2 s."""
MOST_COUNT = 10**15
MOST_ODD_BYTES = 2 * 1024 * 1024
"""A larger body is read strictly or not at all: the second look takes seconds and ten times its memory,
and the longest answer has half a million bytes."""


class Reading(NamedTuple):
    """The JSON values of a body, in their order; none when it is no JSON.

    `streamed`: they are pieces, and nothing but their content says whether the last one came. `ended`: the stream said
    that it was over. `holed`: a piece that was not the last could not be read.
    """

    values: tuple[object, ...] = ()
    streamed: bool = False
    ended: bool = False
    holed: bool = False


def read_values(raw: bytes) -> Reading:
    """Every JSON value of a body."""
    try:
        value = orjson.loads(raw)
    except ValueError:
        return _read_text(_decoded(raw)) if len(raw) <= MOST_ODD_BYTES else Reading()
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        return _read_text(value)
    return Reading((value,))


def load(raw: bytes | str) -> object:
    """The first JSON value; None for anything that is not JSON."""
    try:
        return orjson.loads(raw)
    except ValueError:
        if len(raw) > MOST_ODD_BYTES:
            return None
        values = _read_text(_decoded(raw) if isinstance(raw, bytes) else raw).values
        return values[0] if values else None


# --- text -------------------------------------------------------------------------------------------------------------


def _decoded(raw: bytes) -> str:
    # Knows UTF-8, 16 and 32 by their marks and by where their zeros are.
    return raw.decode(json.detect_encoding(raw), "replace")


def _read_text(text: str) -> Reading:
    start = _first_line(text)
    if start is not None:
        return _read_events(text[start:])
    at = next((place.start() for place in re.finditer(r"[{\[]", text[:_JUNK_CHARS])), -1)
    if at < 0:
        return Reading()
    values, torn = _values(text[at:])
    return Reading(tuple(values), streamed=len(values) > 1 or torn)


_EVENT_FIELD = re.compile(r"[\s\ufeff\x00]*+(?=(?:data|event|id|retry)?:)")
_LINE_END = re.compile(r"\r\n|\r|\n")  # nothing else: U+2028 and the like may stand in JSON as they are


def _first_line(text: str) -> int | None:
    """Where server-sent events begin; None when the text is something else."""
    field = _EVENT_FIELD.match(text)
    return field.end() if field else None


def _read_events(text: str) -> Reading:
    values: list[object] = []
    ended = holed = torn = False
    event: list[str] = []
    for line in [*_LINE_END.split(text), ""]:
        name, colon, data = line.partition(":")
        if data.strip() == "[DONE]" and name == "data":
            ended, line = True, ""
        if line.strip():
            if name == "data" and colon:
                event.append(data)
            elif not (colon and name in ("", "event", "id", "retry")):
                event.append(line)  # an error in mid-stream comes without a field
        elif event:
            holed = holed or torn
            found, torn = _values("\n".join(event))
            values += found
            event = []
    return Reading(tuple(values), streamed=True, ended=ended, holed=holed)


_BETWEEN = re.compile(r"[\s,\x00\x1e\ufeff]*+")
_DECODER = json.JSONDecoder(
    strict=False,
    parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
    parse_constant=lambda name: None,
)


def _values(text: str) -> tuple[list[object], bool]:
    """The JSON values that follow each other, and whether another one began and did not end. Other junk is let be.

    Of an array that does not end, the values that do.
    """
    text = _mended(text)
    found: list[object] = []
    at = 0
    shallow = torn = False
    while text[(at := _after_blanks(text, at)) : at + 1] in ("{", "["):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except RecursionError:
            if shallow:
                return found, True
            text, at, shallow = _shallow(text[at:]), 0, True
        except ValueError:
            if text[at] == "{" or found:
                return found, True
            at, torn = at + 1, True
        else:
            found.append(value)
    return found, torn


def _after_blanks(text: str, at: int) -> int:
    blanks = _BETWEEN.match(text, at)
    return blanks.end() if blanks else at


_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    r'|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
    r"|(\\)"  # no escape of JSON
)


def _mended(text: str) -> str:
    """The same text, in which every escape of a string can be read and stands for text."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: "\\ufffd" if found[1] else "\\\\" if found[2] else found[0], text)


_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def _shallow(text: str) -> str:
    """The text with null for what lies deeper than `MAX_DEPTH`."""
    kept: list[str] = []
    depth = start = 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in ("{", "["):
            depth += 1
            if depth == MAX_DEPTH:
                kept.append(text[start : token.start()])
        elif mark in ("}", "]"):
            if depth == MAX_DEPTH:
                kept.append("null")
                start = token.end()
            depth = max(0, depth - 1)
    return "".join(kept) + (text[start:] if depth < MAX_DEPTH else "")


def dumped(value: object) -> bytes:
    """What was read, as JSON again; null for what lies too deep to be written."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_flattened(value, MAX_DEPTH))


def _flattened(value: object, depth: int) -> object:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value)
    if not isinstance(value, dict | list):
        return value
    if not depth:
        return None
    if isinstance(value, list):
        return [_flattened(each, depth - 1) for each in value]
    return {name: _flattened(each, depth - 1) for name, each in value.items()}


# --- values -----------------------------------------------------------------------------------------------------------


def mapping(value: object) -> dict[str, Any]:
    """A JSON object; of an array its first one; empty for anything else."""
    if isinstance(value, list):
        return next((item for item in value if isinstance(item, dict)), {})
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, Any]]:
    """The objects of a JSON array, or the one that stands in its place; empty for anything else."""
    if isinstance(value, dict):
        return [value]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def string(value: object) -> str:
    """A JSON string; empty for anything else."""
    return value if isinstance(value, str) else ""


def folded(value: Mapping[str, Any]) -> dict[str, Any]:
    """The first fields of an object by names in lower case without underscores: camelCase and snake_case are one."""
    fields = islice(value.items(), MOST_FIELDS)
    return {_folded_name(name): inner for name, inner in fields}


@lru_cache(maxsize=1024)
def _folded_name(name: str) -> str:
    return name.replace("_", "").lower()


def whole_number(value: object) -> int | None:
    """A count: an int, or an int64 as protobuf writes it, a string; None for anything else and from 10**15 up."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT else None


_NUMBER = re.compile(r"[+-]?[0-9]{1,300}(?:\.[0-9]{0,300})?(?:[eE][+-]?[0-9]{1,3})?")


def any_number(value: object) -> float | None:
    """A number, also one in a string; None for anything else, and for what is not finite."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
