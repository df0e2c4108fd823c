"""A cell as a template and a text see it: exact, printed as a person would write it, at any depth.

Python has no type for some of what a column holds: a decimal whose digits count, nanoseconds, a year beyond 9999.
"""

import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")
Kind = Literal["text", "number", "time", "truth"]
"""What is known of a column's values before they are there; a number of a CSV is text."""

_WIDEST_INT = 2**127
"""minijinja makes a float of a whole number beyond."""
_LONGEST = 45
"""Digits of a whole number that Python reads: it refuses thousands."""


class Exact:
    """A number by its digits: `1.50` stays `1.50`. It compares by them, and a template computes with it as a float.

    It is no number to Python, as minijinja would take one for a float and print that.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __eq__(self, other: object) -> Any:
        return self._than(operator.eq, other)

    def __lt__(self, other: object) -> Any:
        return self._than(operator.lt, other)

    def __le__(self, other: object) -> Any:
        return self._than(operator.le, other)

    def __gt__(self, other: object) -> Any:
        return self._than(operator.gt, other)

    def __ge__(self, other: object) -> Any:
        return self._than(operator.ge, other)

    def __hash__(self) -> int:
        value = digits(self)  # an equal int or float has the same
        return hash(value if value == value.to_integral_value() else float(value))

    def __bool__(self) -> bool:
        return bool(digits(self))

    def __format__(self, form: str) -> str:
        if form[-1:] in ("", "s"):
            return format(self.text, form)
        return format(self.number if form[-1] in "bcdoxX" else digits(self), form)

    def __getattr__(self, name: str) -> Any:
        """The methods of its text."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.text, name)

    @property
    def whole(self) -> bool:
        """Whether it is written without a fraction and an exponent."""
        return self.text.lstrip("-").isdigit()

    @property
    def number(self) -> int | float:
        """What Python computes with."""
        return int(self.text) if self.whole and len(self.text) < _LONGEST else float(self.text)

    def _than(self, compare: Callable[[Any, Any], Any], other: object) -> Any:
        if isinstance(other, Exact | int) or (isinstance(other, float) and not math.isnan(other)):
            return compare(digits(self), digits(other))
        return NotImplemented


def digits(number: int | float | Exact) -> Decimal:
    """A number by the digits that it is printed with; one that is too long for a `Decimal` is infinite or 0."""
    text = number.text if isinstance(number, Exact) else repr(number + 0)
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal(repr(float(text)))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A cell whose value no template can have; as text it says which one."""

    column: str
    raw: str

    def __str__(self) -> str:
        return f"the column {self.column} holds {self.raw}"


def fixed(kind: type[_T]) -> type[_T]:
    """A list or mapping that no template can change: its row is asked again, piece by piece, and may be written out."""
    for name in _CHANGING & set(dir(kind)):
        setattr(kind, name, _refuse)
    return kind


_CHANGING = {
    "append",
    "extend",
    "insert",
    "remove",
    "pop",
    "clear",
    "sort",
    "reverse",
    "update",
    "setdefault",
    "popitem",
}


def _refuse(*_: object, **__: object) -> None:
    raise TypeError("a template cannot change what a cell holds")


@fixed
class Items(list[Any]):
    """A list that prints its items as they print themselves, text in quotes."""

    def __str__(self) -> str:
        return f"[{', '.join(map(_within, self))}]"


@fixed
class Fields(dict[str, Any]):
    """A struct that prints as `Items` do."""

    def __str__(self) -> str:
        return f"{{{', '.join(f'{_within(name)}: {_within(value)}' for name, value in self.items())}}}"


@fixed
class JsonItems(list[Any]):
    """A list of a JSON cell: prints as the text that stands in the file, one within another value as JSON."""

    text: str | None = None

    def __str__(self) -> str:
        return json_text(self) if self.text is None else self.text


@fixed
class JsonFields(dict[str, Any]):
    """An object of a JSON cell: prints as `JsonItems` do."""

    text: str | None = None

    def __str__(self) -> str:
        return json_text(self) if self.text is None else self.text


class Instant(datetime):
    """A time to the nanosecond."""

    nanosecond = 0  # below the microsecond

    def __str__(self) -> str:
        text = self.isoformat(" ", "microseconds")
        return f"{text[:26]}{self.nanosecond:03d}{text[26:]}"


class Clock(time):
    """A time of day to the nanosecond."""

    nanosecond = 0

    def __str__(self) -> str:
        return f"{self.isoformat('microseconds')}{self.nanosecond:03d}"


class Span(timedelta):
    """A duration to the nanosecond."""

    nanosecond = 0

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}{'' if self.microseconds else '.000000'}{self.nanosecond:03d}"


def json_text(value: object, indent: int | bool | None = None) -> str:
    """JSON with nothing escaped that need not be, numbers by their digits, dates as text."""
    width = 2 if indent is True else indent or 0
    return "".join(_json(value, width, "\n" if width else ""))


def _json(value: object, width: int, line: str) -> Iterator[str]:
    inner = line + " " * width
    if isinstance(value, Mapping):
        pairs: Iterable[Sequence[str]] = (
            (json.dumps(str(name), ensure_ascii=False), ": ", *_json(item, width, inner))
            for name, item in value.items()
        )
        yield from _enclosed("{", pairs, "}", inner, line)
    elif isinstance(value, list | tuple):
        yield from _enclosed("[", (tuple(_json(item, width, inner)) for item in value), "]", inner, line)
    elif isinstance(value, float) and not -float("inf") < value < float("inf"):
        yield "null"
    elif value is None or isinstance(value, bool | int | float):
        yield json.dumps(value)
    else:
        yield value.text if isinstance(value, Exact) else json.dumps(str(value), ensure_ascii=False)


def _enclosed(opening: str, items: Iterable[Sequence[str]], closing: str, inner: str, line: str) -> Iterator[str]:
    separator = opening
    for item in items:
        yield separator + inner if line else separator
        yield from item
        separator = "," if line else ", "
    yield opening + closing if separator == opening else line + closing


def _within(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def parsed(text: str) -> Any:
    """The value of a JSON text: each object its own keys, numbers exact and as they are written."""
    if text[0] in "-0123456789":  # a number by itself is inserted as it is written
        number = _whole(text) if text.lstrip("-").isdigit() else None
        return number if str(number) == text else Exact(text)
    value = json.loads(text, parse_int=_whole, parse_float=Exact, object_hook=JsonFields)
    if isinstance(value, list):
        value = JsonItems(value)
    if isinstance(value, JsonItems | JsonFields):
        value.text = text
        _name_lists(value)
    return value


def _name_lists(value: JsonItems | JsonFields) -> None:
    """Make `JsonItems` of the lists in it, however deep."""
    inner: list[Any] = [value]
    while inner:
        one = inner.pop()
        for place, item in list(one.items() if isinstance(one, JsonFields) else enumerate(one)):
            if type(item) is list:
                item = one[place] = JsonItems(item)
            if isinstance(item, JsonItems | JsonFields):
                inner.append(item)


def _whole(digits: str) -> int | Exact:
    value = int(digits) if len(digits) < _LONGEST else _WIDEST_INT
    return value if -_WIDEST_INT <= value < _WIDEST_INT else Exact(digits)
