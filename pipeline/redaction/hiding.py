"""Placeholders in the place of what must not be sent, the same for the same value within a row."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.redaction.kinds import KINDS, plain, visible
from pipeline.values import Exact, Fields, Items, JsonFields, JsonItems

_PLACEHOLDER = re.compile(r"\[([A-Z][A-Z0-9_]*)_([1-9]\d*)\]", re.ASCII)
_MOST_WHOLE = 1e16
"""A float below is a whole number to the digit: a column of phone numbers with an empty cell may be of floats."""


@dataclass(frozen=True)
class Redactor:
    """What is looked for: named kinds, and patterns by name."""

    kinds: tuple[str, ...] = ()
    patterns: tuple[tuple[str, re.Pattern[str]], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that is looked for."""
        return (*self.kinds, *(name for name, _ in self.patterns))

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """What a text holds, in order: where several overlap, all of it is one, by the name of the longest."""
        found = sorted(self._all(text), key=lambda each: (each[0], -each[1]))
        apart: list[tuple[int, int, str]] = []
        longest = 0
        for start, end, name in found:
            if apart and start < apart[-1][1]:
                first, last, known = apart[-1]
                apart[-1] = (first, max(last, end), name if end - start > longest else known)
                longest = max(longest, end - start)
            else:
                apart.append((start, end, name))
                longest = end - start
        return apart

    def _all(self, text: str) -> Iterator[tuple[int, int, str]]:
        yield from self._seen(text)
        if (places := visible(text)) is not None:
            seen = self._seen("".join(text[place] for place in places))
            yield from ((places[start], places[end - 1] + 1, name) for start, end, name in seen)

    def _seen(self, text: str) -> Iterator[tuple[int, int, str]]:
        ascii_text = plain(text)
        for kind in self.kinds:
            yield from ((*span, kind) for span in KINDS[kind](ascii_text))
        for name, pattern in self.patterns:
            yield from ((*found.span(), name) for found in pattern.finditer(text) if found[0])


class Hidden:
    """One row: its placeholders, and what each of them stands for."""

    def __init__(self, redactor: Redactor, values: Iterable[object]) -> None:
        """`values` are all of the row: what looks like a placeholder in them is not used as one."""
        self._redactor = redactor
        self._taken = {place[0] for text in _texts(values) for place in _PLACEHOLDER.finditer(text)}
        self._placeholders: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self.values: dict[str, str] = {}  # by placeholder
        self.counts: Counter[str] = Counter()  # how often something of each name was replaced

    def text(self, text: str) -> str:
        """The text with placeholders in it."""
        made: list[str] = []
        waiting: list[str | tuple[str, str]] = [text]
        while waiting:
            piece = waiting.pop()
            if not isinstance(piece, str):
                made.append(self._placeholder(*piece))
                continue
            found = self._redactor.find(piece)
            if not found:
                made.append(piece)
                continue
            # What stands between two of them is looked at by itself: a number may begin where the last one ended.
            at = len(piece)
            for start, end, name in reversed(found):
                waiting += [piece[end:at], (name, piece[start:end])]
                at = start
            waiting.append(piece[:at])
        return "".join(made)

    def value(self, value: Any) -> Any:
        """A cell with placeholders in it, at any depth; one without anything to hide is itself."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float | Exact):
            digits = _digits(value)
            shown = self.text(digits)
            return value if shown == digits else shown
        if isinstance(value, Mapping):
            fields = {self.value(name): self.value(item) for name, item in value.items()}
            return value if fields == value else (JsonFields if isinstance(value, JsonFields) else Fields)(fields)
        if isinstance(value, list):
            items = [self.value(item) for item in value]
            return value if items == value else (JsonItems if isinstance(value, JsonItems) else Items)(items)
        return value

    def _placeholder(self, name: str, value: str) -> str:
        self.counts[name] += 1
        known = self._placeholders.get((name, value))
        while known is None:
            self._numbers[name] += 1
            made = f"[{name.upper()}_{self._numbers[name]}]"
            if made not in self._taken:
                known = self._placeholders[name, value] = made
                self.values[made] = value
        return known


def restored(text: str, values: Mapping[str, str]) -> str:
    """A text with the values in the place of their placeholders; of a JSON document they are texts in it."""
    if not values or "[" not in text:
        return text
    if text.lstrip()[:1] in ("{", "["):
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
        else:
            return restored_json(text, values)
    return _PLACEHOLDER.sub(lambda place: values.get(place[0], place[0]), text)


def restored_json(text: str, values: Mapping[str, str]) -> str:
    """The same for what is a JSON document in any case."""

    def written(place: re.Match[str]) -> str:
        value = values.get(place[0])
        return place[0] if value is None else json.dumps(value, ensure_ascii=False)[1:-1]

    return _PLACEHOLDER.sub(written, text)


def _digits(value: int | float | Exact) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < _MOST_WHOLE:
        return str(int(value))
    return str(value)


def _texts(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value.keys())
            yield from _texts(value.values())
        elif isinstance(value, list):
            yield from _texts(value)
