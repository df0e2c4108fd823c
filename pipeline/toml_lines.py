"""Where each key of a TOML file stands: `tomllib`, which reads the values, tells no lines."""

import re
import tomllib
from bisect import bisect_right

Place = tuple[str | int, ...]
"""Keys from the outermost on; a number counts the tables, or the items, of a list."""

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[\w\-]+)[ \t]*""", re.ASCII)
_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE = re.compile(r"[^,\]}#\n]*")


def lines_of(text: str) -> dict[Place, int]:
    """The line, from 1, of each table, key and item of a text that `tomllib` has read."""
    walk = _Walk(text)
    walk.document()
    return walk.found


class _Walk:
    """One pass over a text, which is known to be TOML."""

    def __init__(self, text: str) -> None:
        self.found: dict[Place, int] = {}
        self._text, self._at = text, 0
        self._begins = [0, *(found.end() for found in re.finditer("\n", text))]
        self._tables: dict[Place, int] = {}  # lists of tables: how many there are so far

    def document(self) -> None:
        """Headings and what stands below each."""
        table: Place = ()
        while self._next():
            if self._text[self._at] == "[":
                table = self._heading()
            else:
                self._pair(table)

    def _next(self) -> str:
        """The next character that says something; empty at the end."""
        self._skip(_SPACE)
        return self._text[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found  # tomllib has read it
        self._at = found.end()
        return found[0]

    def _keys(self) -> list[str]:
        """`a."b".c`; what follows is the next character."""
        keys = []
        while True:
            key = self._skip(_KEY).strip()
            keys.append(tomllib.loads(f"k = {key}")["k"] if key[0] in "\"'" else key)
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _heading(self) -> Place:
        is_list = self._text.startswith("[[", self._at)
        begin, self._at = self._at, self._at + 1 + is_list
        place: Place = ()
        *above, last = self._keys()
        self._at += 1 + is_list
        for key in above:
            place = self._note((*place, key), begin)
            if place in self._tables:
                place = (*place, self._tables[place])
        place = self._note((*place, last), begin)
        if is_list:
            self._tables[place] = self._tables.get(place, -1) + 1
            place = self._note((*place, self._tables[place]), begin)
        return place

    def _pair(self, table: Place) -> None:
        begin = self._at
        for key in self._keys():
            table = self._note((*table, key), begin)
        self._at += 1  # =
        self._value(table)

    def _value(self, place: Place) -> None:
        first = self._next()
        if first == "[":
            self._at += 1
            number = 0
            while self._next() != "]":
                self._value(self._note((*place, number), self._at))
                number += 1
                self._at += self._next() == ","
            self._at += 1
        elif first == "{":
            self._at += 1
            while self._next() != "}":
                self._pair(place)
                self._at += self._next() == ","
            self._at += 1
        else:
            self._skip(_TEXT if first in "\"'" else _BARE)

    def _note(self, place: Place, at: int) -> Place:
        self.found.setdefault(place, bisect_right(self._begins, at))
        return place
