"""A template rewritten so that null prints as nothing, in text and in comparisons too, and stays null otherwise.

minijinja prints `None`, and gives a function of ours null for what is undefined. The rewritten template says what is
meant in minijinja's own words and with `filters`, on the same lines: `{{ x }}` is `x` unless it is none.
"""

import re
from collections.abc import Sequence

from pipeline.templates.filters import COMPARING, FILTERS
from pipeline.templates.syntax import Expr, Statement, words

_OF_TEXT = words("capitalize count e escape float format indent int length lines lower replace reverse safe split")
_OF_TEXT |= words("string striptags title trim truncate upper urlencode wordwrap")
_ALWAYS_TEXT = _OF_TEXT | {"join", "tojson"}
_PATH = ("var", "attr", "item")
_PARTS = ("attr", "item")
_PASSING = words("count e escape format indent length map pprint truncate urlencode wordwrap zip") | set(FILTERS)
"""Filters that take what is undefined for nothing, also where minijinja is strict."""
_OF_NUMBERS = ("int", "float", "round", "abs", "pluralize", "filesizeformat")
_COUNTED = ("batch", "slice", "round", "indent", "truncate", "wordwrap")
"""Filters that are given numbers."""
_SPECIAL = ("loop", "self", "super", "caller")
_SAME = ("==", "!=")
_ABOUT = ("defined", "undefined")
"""Tests that ask whether there is such an attribute."""
_CALM_METHODS = words("count endswith find format get isoformat items join keys lower replace split startswith")
_CALM_METHODS |= words("strftime strip title upper values")
"""Methods that may be called twice: they change nothing."""
_CALM_FUNCTIONS = ("dict", "range")

_ANY = ("and", "or")
_ARITHMETIC = ("+", "-", "*", "/", "//", "%", "**")
_IS_NOT = re.compile(r"^(\s*is\s+)not\b")
_LONGEST = 2_000
"""Characters of an expression that is still repeated."""

BY_NAME = {
    "truncate": ("length", "killwords", "end", "leeway"),
    "wordwrap": ("width", "break_long_words", "wrapstring", "break_on_hyphens"),
    "sort": ("reverse", "case_sensitive", "attribute"),
    "unique": ("case_sensitive", "attribute"),
    "dictsort": ("case_sensitive", "by", "reverse"),
}
"""Arguments that Jinja takes by their place, and minijinja by their name only."""

COMPARE, NUMBER, NUMBERS, EACH, HAVING = "__compare", "__number", "__numbers", "__each", "__having"
PLAIN, FORMATTED, FLOAT, WHOLE, FRACTION = "__plain", "__formatted", "__float", "__whole", "__fraction"
"""Names of what stands in `filters`, beside those of minijinja's filters behind two strokes."""


def rewritten(source: str, statements: Sequence[Statement]) -> str:
    """The source of the template to be rendered."""
    return _Rewriting(source, statements).template()


class _Rewriting:
    def __init__(self, source: str, statements: Sequence[Statement]) -> None:
        self.source = source
        self.statements = _flat(statements)
        self.assigned = {_root(target) for one in self.statements for target in one.targets}
        self.texts: dict[int, str] = {}

    # ---- statements

    def template(self) -> str:
        pieces: list[str] = []
        at = 0
        for one in self.statements:
            text = self.printed(one) if one.kind == "emit" else self.between(one.start, one.end, _shown(one))
            pieces += self.source[at : one.start], text
            at = one.end
        return "".join(pieces) + self.source[at:]

    def printed(self, one: Statement) -> str:
        expr = one.exprs[0]
        opening, closing = self.source[one.start : expr.start], self.source[expr.end : one.end]
        text = self.text(expr)
        bare = expr.bare()
        if bare.kind == "call" and _of_method(bare) and not _pure(bare):
            assigned = f"{opening.replace('{{', '{%', 1)}set __value = {text}%}}"
            return f"{assigned}{{{{ '' if __value is none else __value {closing}"
        return f"{opening}{self.filled(expr, text)}{closing}"

    # ---- expressions

    def text(self, expr: Expr) -> str:
        """The expression with all in it rewritten."""
        if id(expr) not in self.texts:
            self.texts[id(expr)] = self.written(expr)
        return self.texts[id(expr)]

    def written(self, expr: Expr) -> str:
        if expr.kind == "compare":
            return self.comparison(expr)
        parts = {part: self.text(part) for part in expr.parts}
        for part in self.operands(expr):
            parts[part] = self.filled(part, parts[part])
        for part in filter(_may_be_undefined, _members(expr)):
            value = part.parts[0] if part.kind == "keyword" else part
            named, text = self.source[part.start : value.start], self.text(value)
            parts[part] = f"{named if value is not part else ''}(({text}) or {_once(text)})"
        for part in _numbers(expr):
            parts[part] = self.number(part, parts[part])
        if expr.kind == "filter":
            parts[expr.parts[0]] = self.input(expr, parts[expr.parts[0]])
        if expr.kind in ("filter", "chain") and expr.name in BY_NAME:
            given = expr.parts[expr.kind == "filter" :]
            for name, part in zip(BY_NAME[expr.name], given, strict=False):
                parts[part] = parts[part] if part.kind == "keyword" else f"{name}={parts[part]}"
        if expr.kind == "call" and _of_method(expr):
            function = expr.parts[0].bare()
            of = function.parts[0]
            method = self.filled(of, self.text(of)) + self.source[of.end : function.end]
            if function.name == "format":
                own = f"{self.filled(of, self.text(of))}|{FORMATTED}{self.rest(expr, self.kept(expr, parts))}"
                values = self.values(expr, parts)
                return self.unless_plain(expr, values, method + self.rest(expr, parts), own, "none, true")
            parts[expr.parts[0]] = method if function is expr.parts[0] else f"({method})"
            if function.name == "join" and len(expr.parts) > 1 and expr.parts[1].kind != "keyword":
                joined = expr.parts[1]
                parts[joined] = self.each(joined, parts[joined])
        found = self.between(expr.start, expr.end, expr.parts, parts)
        if expr.kind == "filter":
            return self.filtered(expr, parts, found)
        if expr.kind == "not" and expr.start == expr.parts[0].start:  # `x is not odd`
            return f"(not ({found}))"
        if expr.kind == "test":
            found = parts[expr.parts[0]] + _IS_NOT.sub(r"\1", self.rest(expr, parts))
        if expr.kind == "test" and expr.name in ("integer", "float"):
            own = WHOLE if expr.name == "integer" else FRACTION
            return f"({found} or ({parts[expr.parts[0]]}) is {own})"
        if expr.kind == "test" and expr.name in COMPARING and len(expr.parts) == 2 and _pure(expr):
            return f"({self.guarded(COMPARING[expr.name], expr.parts, [parts[part] for part in expr.parts], found)})"
        return found

    def rest(self, expr: Expr, parts: dict[Expr, str]) -> str:
        """What follows the first part of an expression."""
        return self.between(expr.parts[0].end, expr.end, expr.parts[1:], parts)

    def filtered(self, expr: Expr, parts: dict[Expr, str], found: str) -> str:
        """A filter, `found` with its input and arguments: minijinja's own where all it looks at is plain."""
        name, attribute = expr.name, _attribute(expr)
        given = self.kept(expr, parts) if name == "format" else parts
        own = given[expr.parts[0]] + self.rest(expr, given).replace(name, f"__{name}", 1)
        if name == "format":
            return self.unless_plain(expr, self.values(expr, parts), found, own, "none, true")
        if name not in FILTERS or (name == "map" and not attribute):
            return found
        looked_at = f"({_once(parts[expr.parts[0]])})"
        return self.unless_plain(expr, looked_at, found, own, _once(self.text(attribute)) if attribute else "")

    def kept(self, expr: Expr, parts: dict[Expr, str]) -> dict[Expr, str]:
        """The parts of an expression, in which a float among its arguments stays one."""
        kept = dict(parts)
        for part in expr.parts[1:]:
            *named, text = parts[part].split("=", part.kind == "keyword")
            if _pure(part) and len(text) <= _LONGEST:
                once = _once(text)
                kept[part] = "=".join([*named, f"(({once})|string|{FLOAT} if ({once}) is float else {text})"])
        return kept

    def values(self, expr: Expr, parts: dict[Expr, str]) -> str:
        """The arguments of an expression as a list."""
        return f"[{', '.join(_once(parts[part].split('=', part.kind == 'keyword')[-1]) for part in expr.parts[1:])}]"

    def unless_plain(self, expr: Expr, looked_at: str, found: str, own: str, attribute: str = "") -> str:
        """`own` in the place of `found` where the values `looked_at` are not plain.

        minijinja gives Python 3 for 3.0, so that what need not go that way does not.
        """
        if not _pure(expr) or len(found) > _LONGEST:
            return own
        return f"({found} if {looked_at}|{PLAIN}{f'({attribute})' * bool(attribute)} else {own})"

    def operands(self, expr: Expr) -> Sequence[Expr]:
        """Parts of an expression where null means the empty text."""
        if expr.kind == "operator" and expr.name == "~":
            return expr.parts
        if expr.kind == "filter" and expr.name in _OF_TEXT:
            return expr.parts if expr.name == "replace" else expr.parts[:1]
        return expr.parts[:1] if expr.kind == "slice" else ()

    def input(self, expr: Expr, text: str) -> str:
        """What a filter is given, `text` as it is written."""
        first = expr.parts[0]
        bare = first.bare()
        if len(text) <= _LONGEST and _pure(first):
            if expr.name in ("default", "d"):
                return f"(({text}) if ({_once(text)}) is not none)"
            if expr.name == "tojson" or (expr.name in _PASSING and bare.kind in _PARTS):
                text = f"(({text}) or {_once(text)})"  # which takes what is undefined for nothing: `or` does not
            elif expr.name == "join" and bare.kind in ("list", "tuple"):  # `join` passes over what is undefined
                items = {one: self.filled(one, f"({self.text(one)} or {_once(self.text(one))})") for one in bare.parts}
                return self.between(first.start, first.end, bare.parts, items)
            elif expr.name == "join" and bare.kind in _PATH and _root(bare) not in self.assigned:
                text = f"(({text}) or {_once(text)})"
        if expr.name in _OF_NUMBERS:
            return self.number(first, text)
        if expr.name == "wordwrap":  # which makes nothing of a number
            return f"(({text})|string)"
        if expr.name == "join" and bare.kind not in ("list", "tuple"):
            return self.each(first, text)
        named = expr.parts[1].bare().name.strip("'\"") if len(expr.parts) > 1 else ""
        if expr.name == "map" and named in _OF_NUMBERS:
            return self.unless_plain(first, f"({_once(text)})", text, f"({text})|{NUMBERS}")
        asked = expr.parts[2].bare().name.strip("'\"") if len(expr.parts) > 2 else "defined"
        if expr.name in ("selectattr", "rejectattr") and asked not in _ABOUT and _pure(expr.parts[1]):
            attribute = _once(self.text(expr.parts[1]))
            return self.unless_plain(first, f"({_once(text)})", text, f"({text})|{HAVING}({attribute})", attribute)
        return text

    def each(self, expr: Expr, text: str) -> str:
        """A list to be joined."""
        return self.unless_plain(expr, f"({_once(text)})", text, f"({text})|{EACH}")

    def comparison(self, expr: Expr) -> str:
        names, parts = expr.name.split(), expr.parts
        texts = [self.text(part) for part in parts]
        for place, name in enumerate(names):
            left, right = parts[place], parts[place + 1]
            if name in _SAME and _empty(right):
                texts[place] = self.filled(left, texts[place])
            if name in ("in", "not-in") or (name in _SAME and _empty(left)):
                texts[place + 1] = self.filled(right, texts[place + 1])
        if len(names) > 1 and not all(map(_pure, parts)):
            return self.between(expr.start, expr.end, parts, dict(zip(parts, texts, strict=True)))
        return f"({' and '.join(self.pair(parts, texts, place, name) for place, name in enumerate(names))})"

    def pair(self, parts: Sequence[Expr], texts: Sequence[str], place: int, name: str) -> str:
        """One comparison of a chain; the line breaks within it stay only where they stand once."""
        between = self.source[parts[place].end : parts[place + 1].start]
        found = f"{texts[place] if not place else _once(texts[place])}{between}{texts[place + 1]}"
        return f"({self.guarded(name, parts[place : place + 2], texts[place : place + 2], found)})"

    def guarded(self, name: str, parts: Sequence[Expr], texts: Sequence[str], found: str) -> str:
        """A comparison, `found`: of two texts it is minijinja's own, of others `COMPARE`, which goes by the values."""
        one, other = map(_once, texts)
        if name in _SAME and any(part.bare().kind == "const" and not _number(part) for part in parts):
            return found
        line = self.source.count("\n", 0, parts[0].start) + 1
        if len(found) > _LONGEST or not all(map(_pure, parts)):
            return f"{COMPARE}({line}, '{name}', {texts[0]}, {texts[1]})"
        # `or` fails on what is undefined, where a function is given none
        asked = f"{COMPARE}({line}, '{name}', ({one}) or {one}, ({other}) or {other})"
        if any(map(_number, parts)):
            return asked
        return f"({found}) if ({one}) is string and ({other}) is string else {asked}"

    def number(self, expr: Expr, text: str) -> str:
        """`text` of an expression, with a number in the place of a decimal."""
        bare = expr.bare()
        if bare.kind not in (*_PATH, "filter", "call", "either") and not (
            bare.kind == "operator" and bare.name in _ANY
        ):
            return text
        if not _pure(expr) or len(text) > _LONGEST:
            return f"({text})|{NUMBER}"
        once = _once(text)
        kept = " or ".join(f"({once}) is {kind}" for kind in ("integer", "float", "string", "none"))
        return f"({text} if {kept} else (({once}) or {once})|{NUMBER})"

    def filled(self, expr: Expr, text: str) -> str:
        """`text` of an expression, with the empty text where it is null."""
        if not _may_be_null(expr) or not _pure(expr) or len(text) > _LONGEST:
            return text
        return f"('' if ({_once(text)}) is none else {text})"

    def between(self, start: int, end: int, parts: Sequence[Expr], texts: dict[Expr, str] | None = None) -> str:
        """The source from `start` to `end` with these parts rewritten."""
        pieces: list[str] = []
        at = start
        for part in sorted(parts, key=lambda part: part.start):
            pieces += self.source[at : part.start], self.text(part) if texts is None else texts[part]
            at = part.end
        return "".join(pieces) + self.source[at:end]


def _flat(statements: Sequence[Statement]) -> list[Statement]:
    """All statements, those in bodies too, as they stand in the source."""
    found = list(statements)
    for one in statements:
        for body in one.bodies:
            found += _flat(body)
    return sorted(found, key=lambda one: one.start)


def _shown(one: Statement) -> Sequence[Expr]:
    """The expressions of a tag; the call of a `call` tag or `do` has to stay a call."""
    if one.kind in ("call", "do"):
        return [*one.exprs[0].parts, *one.exprs[1:]]
    return one.exprs


def _members(expr: Expr) -> Sequence[Expr]:
    """Parts of a list, a mapping or a call that minijinja lets be undefined; a macro may ask whether its are."""
    if expr.kind == "filter" and expr.name == "format":
        return expr.parts[1:]
    if expr.kind == "call":
        of = expr.parts[0].bare()
        return expr.parts[1:] if _of_method(expr) or (of.kind == "var" and of.name == "dict") else ()
    return expr.parts if expr.kind in ("list", "tuple", "map") else ()


def _numbers(expr: Expr) -> Sequence[Expr]:
    """Parts of an expression that minijinja takes for numbers, each by its place."""
    parts = expr.parts
    if expr.kind == "neg" or (expr.kind == "operator" and expr.name in _ARITHMETIC):
        return parts
    counted = expr.kind in ("item", "slice") or (expr.kind == "filter" and expr.name in _COUNTED)
    return parts[1:] if counted or (expr.kind == "call" and parts[0].bare().name == "range") else ()


def _may_be_undefined(part: Expr) -> bool:
    bare = part.parts[0].bare() if part.kind == "keyword" else part.bare()
    return bare.kind in _PARTS and _root(bare) not in _SPECIAL and _pure(bare)


def _pure(expr: Expr) -> bool:
    """Whether it may be computed twice."""
    if expr.kind == "call":
        function = expr.parts[0]
        if function.name not in {"attr": _CALM_METHODS, "var": _CALM_FUNCTIONS}.get(function.kind, ()):
            return False
    return all(map(_pure, expr.parts))


def _may_be_null(expr: Expr) -> bool:
    bare = expr.bare()
    if bare.kind == "filter":
        return bare.name not in _ALWAYS_TEXT
    if bare.kind == "operator":
        return bare.name in _ANY
    if bare.kind == "call":
        return _of_method(bare)
    return bare.kind in (*_PATH, "either") and bare.name not in _SPECIAL


def _number(expr: Expr) -> bool:
    return expr.bare().kind == "const" and expr.bare().name[:1].isdigit()


def _empty(expr: Expr) -> bool:
    return expr.bare().kind == "const" and expr.bare().name in ("''", '""')


def _attribute(expr: Expr) -> Expr | None:
    """The argument of a filter that names an attribute of the items."""
    for place, part in enumerate(expr.parts[1:]):
        if part.kind == "keyword":
            if part.name == "attribute":
                return part.parts[0]
        elif (*BY_NAME.get(expr.name, ()), *["attribute"] * (expr.name in ("groupby", "sum")))[place : place + 1] == (
            "attribute",
        ):
            return part
    return None


def _of_method(call: Expr) -> bool:
    """Whether what is called is a method of a value, which may give null; functions and macros give none."""
    function = call.parts[0].bare()
    return function.kind == "attr" and not (function.parts[0].kind == "var" and function.parts[0].name in _SPECIAL)


def _root(expr: Expr) -> str:
    while expr.kind != "var" and expr.parts:
        expr = expr.parts[0]
    return expr.name


def _once(text: str) -> str:
    """The text again, without its line breaks: what follows stays on its line."""
    return text if '"' in text or "'" in text else " ".join(text.split("\n"))
