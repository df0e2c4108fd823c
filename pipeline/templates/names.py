"""What a template asks of its rows: which names, which functions, and which kinds of values it compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minijinja import Environment

from pipeline.templates.filters import COMPARING
from pipeline.templates.syntax import Expr, Statement, words
from pipeline.values import Kind

ROW, OWN = "row", "own"
"""Names of the columns by name and of the job's own variables by name."""

FUNCTIONS = frozenset(Environment().globals)
_APPLYING = {
    "map": (1, "filters"),
    "select": (1, "tests"),
    "reject": (1, "tests"),
}  # which argument is the name of what
_APPLYING |= {"selectattr": (2, "tests"), "rejectattr": (2, "tests")}
_READING = ("include", "extends", "import", "from")
_MAP_METHODS = ("get", "items", "keys", "values")
_TEXT_FILTERS = words("capitalize e escape format indent join lower replace safe string striptags title tojson")
_TEXT_FILTERS |= words("trim truncate upper urlencode wordwrap")
_NUMBER_FILTERS = words("abs count float int length round sum")
_COUNTING = {"even", "odd", "divisibleby"}
_KINDS: dict[type, Kind] = {bool: "truth", str: "text", int: "number", float: "number"}
_ARITHMETIC = {"+", "-", "*", "/", "//", "%", "**"}


@dataclass(frozen=True)
class Unlike:
    """Two values in one operation that are of different kinds, whatever they are; or one that has to be a number."""

    left: str  # as they are written
    right: str
    kinds: tuple[Kind, Kind]
    line: int


class Given(NamedTuple):
    """A filter or test and the form of its arguments."""

    mark: str  # "|" or "is"
    name: str
    positional: int
    keywords: tuple[str, ...]


@dataclass
class Uses:
    """The names that a template uses, each with the line where it does so first."""

    names: dict[str, int] = field(default_factory=dict)  # never assigned before: they come from outside
    perhaps: dict[str, int] = field(default_factory=dict)  # assigned before on some ways through the template
    of_row: dict[str, int] = field(default_factory=dict)  # keys of `row`
    of_own: dict[str, int] = field(default_factory=dict)  # keys of `own`
    whole: dict[str, int] = field(default_factory=dict)  # `row` or `own` used by other than a known key
    calls: dict[str, int] = field(default_factory=dict)
    filters: dict[str, int] = field(default_factory=dict)
    tests: dict[str, int] = field(default_factory=dict)
    given: dict["Given", int] = field(default_factory=dict)  # what filters and tests are given
    reading: dict[str, int] = field(default_factory=dict)  # tags that read another template
    unlike: list[Unlike] = field(default_factory=list)
    spelled: dict[str, int] = field(default_factory=dict)  # texts that are walked character by character
    truths: dict[str, int] = field(default_factory=dict)  # names from outside that are true or false by themselves

    def outside(self) -> frozenset[str]:
        """Names that have to come from outside, `row` and `own` with a known key not among them."""
        return frozenset(self.names)


@dataclass
class _Scope:
    """The variables of a template at one place; a tag that opens a scope of its own walks a copy."""

    known: dict[str, Kind | None] = field(default_factory=dict)
    perhaps: set[str] = field(default_factory=set)

    def copy(self) -> "_Scope":
        return _Scope(dict(self.known), set(self.perhaps))

    def merge(self, ways: Sequence["_Scope"]) -> None:
        """Go on after one of several ways."""
        names = set.intersection(*(set(way.known) for way in ways))
        for way in ways:
            self.perhaps |= way.perhaps | set(way.known)
        kinds = {name: {way.known[name] for way in ways} for name in names}
        self.known = {name: found.pop() if len(found) == 1 else None for name, found in kinds.items()}


def uses(source: str, statements: Sequence[Statement], kinds: Mapping[str, Kind | None]) -> Uses:
    """What the template uses, when names from outside are of these `kinds`; one not among them may be anything."""
    walk = _Walk(source, kinds)
    walk.body(statements, _Scope())
    return walk.found


class _Walk:
    def __init__(self, source: str, kinds: Mapping[str, Kind | None]) -> None:
        self.source = source
        self.kinds = kinds
        self.found = Uses()

    def note(self, where: dict[str, int], name: str, start: int) -> None:
        where.setdefault(name, self.source.count("\n", 0, start) + 1)

    # ---- statements

    def body(self, statements: Sequence[Statement], scope: _Scope) -> None:
        later = scope.perhaps | set().union(*map(assigned_by, statements)) if statements else scope.perhaps
        for statement in statements:
            self.statement(statement, scope, later)

    def statement(self, one: Statement, scope: _Scope, later: set[str]) -> None:
        if one.kind == "if":
            self.exprs(one.exprs, scope)
            self.truth(one.exprs[0], scope)
            self.ways(one.bodies, scope)
        elif one.kind == "for":
            self.exprs(one.exprs[:1], scope)
            if self.kind(one.exprs[0], scope) == "text":
                walked = one.exprs[0]
                self.note(self.found.spelled, self.source[walked.start : walked.end], walked.start)
            inner = scope.copy()
            self.assign(one.targets, inner)
            self.exprs(one.exprs[1:], inner)
            inner.known["loop"] = None
            self.body(one.bodies[0], inner)
            self.ways((one.bodies[1], ()), scope)
        elif one.kind == "with":
            inner = scope.copy()
            for target, expr in zip(one.targets, one.exprs, strict=True):
                self.expr(expr, inner)
                self.assign(target.parts, inner, self.kind(expr, inner))
            self.body(one.bodies[0], inner)
        elif one.kind in ("macro", "call"):
            self.macro(one, scope, later)
        elif one.kind == "block":
            self.body(one.bodies[0], scope.copy())
            scope.known.setdefault("self", None)
        else:
            if one.kind in _READING:
                self.note(self.found.reading, one.kind, one.start)
            for body in one.bodies:  # of `set`, `filter` and `autoescape`, which have no scope of their own
                self.body(body, scope)
            self.exprs(one.exprs, scope)
            kind = self.kind(one.exprs[0], scope) if one.kind == "set" and len(one.exprs) == 1 else None
            self.assign(one.targets, scope, "text" if one.kind == "setblock" else kind)

    def ways(self, bodies: Sequence[Sequence[Statement]], scope: _Scope) -> None:
        scopes = [scope.copy() for _ in bodies]
        for body, way in zip(bodies, scopes, strict=True):
            self.body(body, way)
        scope.merge(scopes)

    def macro(self, one: Statement, scope: _Scope, later: set[str]) -> None:
        defaults = one.exprs
        if one.kind == "call":
            self.expr(one.exprs[0], scope)
            defaults = one.exprs[1:]
        else:
            scope.known[one.name] = None
        inner = scope.copy()
        inner.perhaps |= later  # what is assigned beside it before it is called
        self.assign(one.targets, inner)
        inner.known["caller"] = None
        self.exprs(defaults, inner)
        self.body(one.bodies[0], inner)

    def assign(self, targets: Sequence[Expr], scope: _Scope, kind: Kind | None = None) -> None:
        for target in targets:
            if target.kind == "var":
                scope.known[target.name] = kind if len(targets) == 1 else None
            else:
                self.expr(target, scope)

    # ---- expressions

    def exprs(self, found: Sequence[Expr], scope: _Scope) -> None:
        for expr in found:
            self.expr(expr, scope)

    def expr(self, expr: Expr, scope: _Scope) -> None:
        if expr.kind == "var":
            self.variable(expr, scope)
        elif keyed := self.keyed(expr, scope):
            name, key = keyed
            self.note(self.found.of_row if name == ROW else self.found.of_own, key, expr.start)
        elif expr.kind == "call" and (function := expr.parts[0].bare()).kind == "var" and not _local(function, scope):
            self.note(self.found.calls, function.name, function.start)
            self.exprs(expr.parts[1:], scope)
            if function.name == "range":
                self.numbers(expr.parts[1:], scope)
        elif expr.kind == "call" and (function := expr.parts[0].bare()).kind == "attr" and self.method(function, scope):
            self.exprs(function.parts, scope)
            self.exprs(expr.parts[1:], scope)
        else:
            self.exprs(expr.parts, scope)
            self.compared(expr, scope)
            if expr.kind == "either":
                self.truth(expr.parts[0], scope)
            if expr.kind in ("filter", "chain"):
                for name in expr.name.split():
                    self.note(self.found.filters, name, expr.start)
            if expr.kind == "test":
                self.note(self.found.tests, expr.name, expr.start)
            if expr.kind in ("filter", "test", "chain") and " " not in expr.name:
                arguments = expr.parts[expr.kind != "chain" :]
                keywords = tuple(each.name for each in arguments if each.kind == "keyword")
                mark = "is" if expr.kind == "test" else "|"
                form = Given(mark, expr.name, len(arguments) - len(keywords), keywords)
                self.found.given.setdefault(form, self.source.count("\n", 0, expr.start) + 1)
            if expr.kind == "filter" and expr.name in _APPLYING:
                place, where = _APPLYING[expr.name]
                if len(expr.parts) > place and (named := expr.parts[place].bare()).kind == "const":
                    self.note(getattr(self.found, where), str(constant(named)), expr.start)

    def truth(self, expr: Expr, scope: _Scope) -> None:
        """Note the names that decide a condition by being there."""
        bare = expr.bare()
        if bare.kind == "not" or (bare.kind == "operator" and bare.name in ("and", "or")):
            for part in bare.parts:
                self.truth(part, scope)
        elif bare.kind == "var" and not _local(bare, scope):
            self.note(self.found.truths, bare.name, bare.start)
        elif keyed := self.keyed(bare, scope):
            self.note(self.found.truths, keyed[1], bare.start)

    def variable(self, expr: Expr, scope: _Scope) -> None:
        if expr.name in scope.known:
            return
        if expr.name in (ROW, OWN):
            self.note(self.found.whole, expr.name, expr.start)
        else:
            self.note(self.found.perhaps if expr.name in scope.perhaps else self.found.names, expr.name, expr.start)

    def keyed(self, expr: Expr, scope: _Scope) -> tuple[str, str] | None:
        """`row` or `own` and the key, where it is written out."""
        if expr.kind not in ("attr", "item"):
            return None
        of = expr.parts[0].bare()
        if of.kind != "var" or of.name not in (ROW, OWN) or _local(of, scope):
            return None
        if expr.kind == "attr":
            return of.name, expr.name
        key = expr.parts[1].bare()
        return (of.name, str(constant(key))) if key.kind == "const" else None

    def method(self, function: Expr, scope: _Scope) -> bool:
        """Whether this is `row.items` and the like: all of `row`, and no column of that name."""
        return self.keyed(function, scope) is not None and function.name in _MAP_METHODS

    # ---- kinds

    def kind(self, expr: Expr, scope: _Scope) -> Kind | None:
        parts = expr.parts
        if expr.kind == "const":
            value = constant(expr)
            return None if value is None else _KINDS[type(value)]
        if expr.kind == "var":
            if expr.name in scope.known:
                return scope.known[expr.name]
            return None if expr.name in scope.perhaps else self.kinds.get(expr.name)
        if keyed := self.keyed(expr, scope):
            return self.kinds.get(f"{keyed[0]}.{keyed[1]}")
        if expr.kind == "paren":
            return self.kind(parts[0], scope)
        if expr.kind in ("not", "test", "compare"):
            return "truth"
        if expr.kind == "neg":
            return "number"
        if expr.kind == "filter":
            if expr.name in _TEXT_FILTERS:
                return "text"
            if expr.name in ("default", "d"):
                return self.common(parts, scope)
            return "number" if expr.name in _NUMBER_FILTERS else None
        if expr.kind == "operator":
            if expr.name == "~":
                return "text"
            if expr.name in ("and", "or"):
                return self.common(parts, scope)
            return "number" if any(self.kind(part, scope) == "number" for part in parts) else None
        if expr.kind == "slice":
            return "text" if self.kind(parts[0], scope) == "text" else None
        return self.common(parts[1:], scope) if expr.kind == "either" and len(parts) == 3 else None

    def common(self, parts: Sequence[Expr], scope: _Scope) -> Kind | None:
        kinds = {self.kind(part, scope) for part in parts}
        return kinds.pop() if len(kinds) == 1 else None

    def compared(self, expr: Expr, scope: _Scope) -> None:
        """Note operations that give the same for every row, or fail for every one: their values are never alike."""
        parts = expr.parts
        if expr.kind == "compare":
            for name, left, right in zip(expr.name.split(), parts, parts[1:], strict=False):
                if name in ("in", "not-in"):
                    one = right.bare()
                    members = one.parts if one.kind in ("list", "tuple") else ()
                    if members and all(self.differ(left, member, scope) for member in members):
                        self.unlike(left, members[0], scope)
                elif self.differ(left, right, scope):
                    self.unlike(left, right, scope)
        elif expr.kind == "operator" and expr.name in _ARITHMETIC and self.differ(parts[0], parts[1], scope):
            if not (expr.name == "*" and "text" in (kinds := [self.kind(part, scope) for part in parts])) or any(
                kind == "text" and part.bare().kind != "const" for part, kind in zip(parts, kinds, strict=True)
            ):
                self.unlike(parts[0], parts[1], scope)
        elif expr.kind == "test" and expr.name in (*COMPARING, "sameas") and len(parts) == 2:
            if self.differ(parts[0], parts[1], scope):
                self.unlike(parts[0], parts[1], scope)
        elif expr.kind == "test" and expr.name in _COUNTING:
            self.numbers(parts, scope)
        elif expr.kind == "filter" and expr.name in ("round", "abs"):
            self.numbers(parts[:1], scope)
        elif expr.kind == "neg":
            self.numbers(parts, scope)
        elif expr.kind == "slice":
            self.numbers(parts[1:], scope)

    def numbers(self, parts: Sequence[Expr], scope: _Scope) -> None:
        for part in parts:
            if (kind := self.kind(part, scope)) in ("text", "time"):
                self.note_unlike(part, part, (kind, "number"))

    def differ(self, left: Expr, right: Expr, scope: _Scope) -> bool:
        one, other = self.kind(left, scope), self.kind(right, scope)
        return one is not None and other is not None and _sort(one) != _sort(other)

    def unlike(self, left: Expr, right: Expr, scope: _Scope) -> None:
        one, other = self.kind(left, scope), self.kind(right, scope)
        assert one and other
        self.note_unlike(left, right, (one, other))

    def note_unlike(self, left: Expr, right: Expr, kinds: tuple[Kind, Kind]) -> None:
        line = self.source.count("\n", 0, left.start) + 1
        one, other = (self.source[part.start : part.end] for part in (left, right))
        self.found.unlike.append(Unlike(one, other, kinds, line))


def constant(expr: Expr) -> object:
    """The value of a constant, as minijinja reads it."""
    return Environment().eval_expr(expr.name)


def _sort(kind: Kind) -> str:
    return "number" if kind == "truth" else kind


def _local(expr: Expr, scope: _Scope) -> bool:
    return expr.name in scope.known or expr.name in scope.perhaps


def assigned_by(one: Statement) -> set[str]:
    """Names that a statement leaves assigned beside it."""
    if one.kind in ("with", "macro", "call", "block"):
        return {one.name} - {""}
    names = {target.name for target in one.targets if target.kind == "var"} if one.kind != "for" else set()
    bodies = one.bodies[1:] if one.kind == "for" else one.bodies
    return names.union(*(assigned_by(inner) for body in bodies for inner in body))
