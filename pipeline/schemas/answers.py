"""What an answer is to its schema: the JSON in it, or what is wrong with it. Pure, and never raises."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.schemas.forms import Node, mapped
from pipeline.schemas.mistake import SchemaError

if TYPE_CHECKING:
    import jsonschema_rs

MOST_NESTED = 64
"""Levels of an answer; a model that has lost its way opens brackets without an end."""
MOST_TOLD = 5
"""Things that are wrong with one answer, which are told of it."""
_MOST_LOOKED_AT = 64
"""Brackets in a text that are tried as the beginning of JSON."""
_FENCE = re.compile(r"```[\w-]*[ \t]*\r?\n(.*?)\n?[ \t]*```", re.DOTALL)
_BRACKET = re.compile(r"[\[{]")
_WITHIN = re.compile(r"""(?:[\[{,]|"\s*:)\s*\Z""")
_GOES_ON = re.compile(r"\s*[\]},:]")
_WHOLE = {"minimum": -(2**63), "maximum": 2**63 - 1}


class Judged(NamedTuple):
    """The JSON text of an answer, as it stood there; or what is wrong with the answer, which then is kept as it is."""

    text: str
    trouble: str = ""  # in one line: places, and what the schema says of them; never what stands there


class Judge:
    """Holds answers to one schema. Raises `SchemaError` for what is no JSON Schema."""

    def __init__(self, schema: Node) -> None:
        import jsonschema_rs  # takes 23 ms, and most jobs have no schema

        self._schema, self._names = schema, _names(schema)
        try:
            # Linear patterns, nothing fetched, and no value of an answer in a message: it may quote the prompt.
            self._validator = jsonschema_rs.Draft202012Validator(
                mapped(schema, _held),
                mask="the value",
                validate_formats=True,
                offline=True,
                pattern_options=jsonschema_rs.RegexOptions(),
            )
        except ValueError as error:
            raise SchemaError(f"it is no JSON Schema: {str(error).splitlines()[0]}") from None

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled it is its schema: the validator has no other form."""
        return Judge, (self._schema,)

    def judge(self, text: str) -> Judged:
        """The JSON that is the answer: the whole text, else what stands in its one fence, else amid its prose.

        Around it only what is no JSON may stand, and what is left must be valid.
        """
        whole = text.strip().removeprefix("\ufeff").strip()
        trouble = self._trouble(whole)
        if not trouble:
            return Judged(whole)
        if _read(whole) is not None:
            return Judged(text, trouble)
        for found in (_in_fences(whole), _amid_prose(whole)):
            troubles = {each: self._trouble(each) for each in found}
            valid = [each for each, its in troubles.items() if not its]
            if len(valid) == 1:
                return Judged(valid[0])
            if len(valid) > 1:
                return Judged(text, f"the answer holds {len(valid)} JSON texts, and one is asked for")
            trouble = next(iter(troubles.values()), trouble)
        return Judged(text, trouble)

    def _trouble(self, text: str) -> str:
        """What is wrong with a text that should be JSON and nothing else; empty: nothing."""
        try:
            value = _strictly(text)
        except _Unreadable as error:
            return str(error)
        if self._validator.is_valid(value):
            return ""
        told = [f"{_place(error.instance_path, self._names)}: {_message(error)}" for error in self._errors(value)]
        return "; ".join(dict.fromkeys(told))

    def _errors(self, value: Any) -> "Iterable[jsonschema_rs.ValidationError]":
        errors = self._validator.iter_errors(value)
        return (error for error, _ in zip(errors, range(MOST_TOLD), strict=False))


# --- JSON -------------------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """Why a text is no JSON that a column could hold."""


def _read(text: str) -> Any:
    """Its value, None for what is no JSON at all."""
    try:
        return orjson.loads(text)
    except ValueError:
        return None


def _strictly(text: str) -> Any:
    """The value of a JSON text in which nothing is ambiguous and nothing beyond a column."""
    try:
        orjson.loads(text)  # of RFC 8259 to the letter: no NaN, no half characters, nothing infinite
    except orjson.JSONDecodeError as error:
        raise _Unreadable(f"the answer is no JSON: {error.msg.split(':')[0]} at character {error.pos + 1}") from None
    _refuse_deep(text)
    return _PLAIN.decode(text)


def _refuse_deep(text: str) -> None:
    """Raise where brackets are open too deep; those in texts do not count."""
    depth = 0
    for mark in _MARKS.finditer(text):
        found = mark[0]
        if found in "[{":
            depth += 1
            if depth > MOST_NESTED:
                raise _Unreadable(f"the answer is nested deeper than {MOST_NESTED} levels")
        elif found in "]}":
            depth -= 1


_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Unreadable("the answer names a property twice in one object")
    return found


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= 20 else 2**64
    if not -(2**63) <= number < 2**63:
        raise _Unreadable("the answer has a whole number of more than 64 bits")
    return number


_PLAIN = json.JSONDecoder(object_pairs_hook=_once, parse_int=_whole)


# --- what stands around it --------------------------------------------------------------------------------------------


def _in_fences(text: str) -> list[str]:
    return [found[1].strip() for found in _FENCE.finditer(text)]


def _amid_prose(text: str) -> Iterator[str]:
    """Objects and arrays in a text that are no part of another one."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(_MOST_LOOKED_AT):
        bracket = _BRACKET.search(text, at)
        if bracket is None:
            return
        start = bracket.start()
        try:
            _, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = start + 1
            continue
        if not _WITHIN.search(text[max(0, start - 200) : start]) and not _GOES_ON.match(text, at):
            yield text[start:at]


# --- what is told of it -----------------------------------------------------------------------------------------------


def _names(schema: Any) -> frozenset[str]:
    """Names of properties in a schema: only these are told."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            found.update(node["properties"] if isinstance(node.get("properties"), dict) else ())
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return frozenset(found)


def _place(path: Iterable[str | int], names: frozenset[str]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part if part in names else '*'}" for part in path)
    return f"${''.join(parts)}"


def _message(error: "jsonschema_rs.ValidationError") -> str:
    if error.kind.name in ("additionalProperties", "unevaluatedProperties"):
        return "it has properties that the schema does not name"
    return " ".join(error.message.split())


def _held(node: Node) -> Node:
    """A schema as answers are held to it: a whole number is one of 64 bits."""
    kinds = node.get("type")
    is_whole = set(kinds if isinstance(kinds, list) else [kinds]) - {"null"} == {"integer"}
    return {**_WHOLE, **node} if is_whole else node
