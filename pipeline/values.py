"""A cell as a template and a text see it: exact, printed as a person would write it, at any depth.

Python has no type for some of what a column holds: a decimal whose digits count, nanoseconds, a year beyond 9999.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

Kind = Literal["text", "number", "time", "truth"]
"""What is known of a column's values before they are there; a number of a CSV is text."""

_WIDEST_INT = 2**127
"""minijinja makes a float of a whole number beyond."""


class Exact:
    """A number by its digits: `1.50` stays `1.50`. A template compares it and computes with it as with a float."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exact) and self._number == other._number

    def __lt__(self, other: "Exact") -> bool:
        return self._number < other._number

    def __gt__(self, other: "Exact") -> bool:
        return self._number > other._number

    def __hash__(self) -> int:
        return hash(self._number)

    def __bool__(self) -> bool:
        return bool(self._number)

    def __getattr__(self, name: str) -> Any:
        """The methods of its text."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.text, name)

    @property
    def _number(self) -> Decimal:
        return Decimal(self.text)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A cell whose value no template can have; as text it says which one."""

    column: str
    raw: str

    def __str__(self) -> str:
        return f"the column {self.column} holds {self.raw}"


class Items(list[Any]):
    """A list that prints its items as they print themselves, text in quotes."""

    def __str__(self) -> str:
        return f"[{', '.join(map(_within, self))}]"


class Fields(dict[str, Any]):
    """A struct that prints as `Items` do."""

    def __str__(self) -> str:
        return f"{{{', '.join(f'{_within(name)}: {_within(value)}' for name, value in self.items())}}}"


class JsonItems(list[Any]):
    """A list of a JSON cell: prints as the text that stands in the file, one within another value as JSON."""

    text: str | None = None

    def __str__(self) -> str:
        return json_text(self) if self.text is None else self.text


class JsonFields(dict[str, Any]):
    """An object of a JSON cell: prints as `JsonItems` do."""

    text: str | None = None

    def __str__(self) -> str:
        return json_text(self) if self.text is None else self.text


class _Written(float):
    """A number within a JSON cell that is written in another way than Python would."""

    text: str


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
    elif isinstance(value, _Written):
        yield value.text
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
        number = _whole(text) if text.lstrip("-").isdigit() else float(text)
        return number if str(number) == text else Exact(text)
    value = json.loads(text, parse_int=_whole, parse_float=_fraction, object_hook=JsonFields)
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
    value = int(digits) if len(digits) < 45 else _WIDEST_INT  # Python refuses thousands of digits
    return value if -_WIDEST_INT <= value < _WIDEST_INT else Exact(digits)


def _fraction(digits: str) -> float | Exact:
    value = _Written(digits)
    value.text = digits
    return value if Decimal(float.__repr__(value)) == Decimal(digits) else Exact(digits)
