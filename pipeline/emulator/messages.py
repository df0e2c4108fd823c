"""Reading JSON as the service's protobuf front end does: both spellings, strict names, typed values.

A field may be spelt camelCase or snake_case at every level, enum values may come in either case, null means absent.
Whatever does not fit is gathered and refused in one 400, the way the service words it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_ENUM_PACKAGE = "type.googleapis.com/google.ai.generativelanguage.v1beta"
_INT32 = range(-(2**31), 2**31)


class Refusal(Exception):
    """The request is answered with this HTTP status and JSON body."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


@dataclass(slots=True)
class Problems:
    """What was wrong with a payload, in the order it was found."""

    violations: list[dict[str, str]] = field(default_factory=list)

    def unknown(self, name: str, path: str) -> None:
        """A name that the message at `path` does not have; the name is quoted as it was sent."""
        where = f" at '{path}'" if path else ""
        self._add(path, f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.')

    def invalid(self, path: str, type_name: str, value: object) -> None:
        """A value of the wrong type or outside its enum."""
        self._add(path, f"Invalid value at '{path}' ({type_name}), {orjson.dumps(value).decode()}")

    def _add(self, path: str, description: str) -> None:
        self.violations.append({"field": path, "description": description} if path else {"description": description})

    def refusal(self) -> Refusal:
        """The 400 that names every violation."""
        message = "\n".join(violation["description"] for violation in self.violations)
        details = [{"@type": BAD_REQUEST, "fieldViolations": self.violations}]
        body = {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": details}}
        return Refusal(400, body)


class Kind(Protocol):
    """The type of one field."""

    def read(self, value: object, path: str, problems: Problems) -> Any:
        """The value in canonical form, or None after noting a problem."""
        ...


@dataclass(frozen=True, slots=True)
class Scalar:
    """A plain value; `accept` returns it as its Python type, or None."""

    type_name: str
    accept: Callable[[object], object]

    def read(self, value: object, path: str, problems: Problems) -> Any:
        """The value, or None and a problem."""
        accepted = self.accept(value)
        if accepted is None:
            problems.invalid(path, self.type_name, value)
        return accepted


@dataclass(frozen=True, slots=True)
class Enum:
    """One of `values`; the spelling of the protocol is returned whatever the case sent."""

    name: str
    values: Mapping[str, str]  # upper case → as the protocol spells it

    def read(self, value: object, path: str, problems: Problems) -> Any:
        """The value in the protocol's spelling, or None and a problem."""
        known = self.values.get(value.upper()) if isinstance(value, str) else None
        if known is None:
            problems.invalid(path, f"{_ENUM_PACKAGE}.{self.name}", value)
        return known


@dataclass(frozen=True, slots=True)
class Repeated:
    """A list; like the service's parser, it also takes one bare element."""

    of: Kind

    def read(self, value: object, path: str, problems: Problems) -> Any:
        """The elements, each read by its kind."""
        if not isinstance(value, list):
            return [self.of.read(value, path, problems)]
        return [self.of.read(item, f"{path}[{i}]", problems) for i, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object with free keys and typed values."""

    of: Kind

    def read(self, value: object, path: str, problems: Problems) -> Any:
        """The entries, each value read by its kind."""
        if not isinstance(value, dict):
            problems.invalid(path, "Map", value)
            return {}
        return {key: self.of.read(item, f"{path}.{key}", problems) for key, item in value.items()}


class Message:
    """An object whose fields are known; given in snake_case, read in both spellings, returned in camelCase."""

    def __init__(self, **kinds: Kind) -> None:
        self.fields: dict[str, tuple[str, str, Kind]] = {}
        self.extend(**kinds)

    def extend(self, **kinds: Kind) -> None:
        """Add fields; a message that contains itself is built this way."""
        for snake, kind in kinds.items():
            camel = camel_case(snake)
            self.fields[snake] = self.fields[camel] = (camel, snake, kind)

    def read(self, value: object, path: str, problems: Problems) -> Any:
        """The fields that are set, by camelCase name."""
        if not isinstance(value, dict):
            problems.invalid(path, "Message", value)
            return {}
        out = {}
        for name, item in value.items():
            known = self.fields.get(name)
            if known is None:
                problems.unknown(name, path)
            elif item is not None:
                camel, snake, kind = known
                out[camel] = kind.read(item, f"{path}.{snake}" if path else snake, problems)
        return out


def camel_case(snake: str) -> str:
    """`max_output_tokens` → `maxOutputTokens`."""
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), snake)


def enum(name: str, *values: str) -> Enum:
    """An enum of these values, as the protocol spells them."""
    return Enum(name, {value.upper(): value for value in values})


def _text(value: object) -> object:
    return value if isinstance(value, str) else None


def _flag(value: object) -> object:
    return value if isinstance(value, bool) else None


def _number(value: object) -> object:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _int32(value: object) -> object:
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return number if isinstance(number, int) and number in _INT32 else None


STRING = Scalar("TYPE_STRING", _text)
BYTES = Scalar("TYPE_BYTES", _text)
BOOL = Scalar("TYPE_BOOL", _flag)
FLOAT = Scalar("TYPE_FLOAT", _number)
INT32 = Scalar("TYPE_INT32", _int32)
JSON = Scalar("google.protobuf.Value", lambda value: value)


def parse(kind: Message, body: bytes) -> dict[str, Any]:
    """Read a request body as `kind`; raises `Refusal` (400) when it is not JSON or not that message."""
    try:
        payload = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        message = f"Invalid JSON payload received. Unexpected token.\nat position {error.pos}"
        raise Refusal(400, {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}) from None
    return read(kind, payload)


def read(kind: Message, payload: object) -> dict[str, Any]:
    """Read JSON as `kind`; raises `Refusal` (400) when it is not that message."""
    problems = Problems()
    found: dict[str, Any] = kind.read(payload, "", problems)
    if problems.violations:
        raise problems.refusal()
    return found
