"""The syntax tree of a template that minijinja has accepted, with the place of each node in the source.

minijinja does not show its tree, and its list of undeclared variables has gaps. What is parsed here was parsed by it
before, so nothing is checked twice. Grammar: `compiler/parser.rs` of minijinja 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.templates.tokens import Token, tokens

_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in", "not")
_CONSTANTS = {"true", "True", "false", "False", "none", "None"}


@dataclass(frozen=True, slots=True)
class Expr:
    """A node of an expression; `name` is the variable, attribute, filter, test, operator or the text of a constant.

    Kinds and their parts: var, const; attr (of what), item (of what, which), slice (of what, *bounds), call (of what,
    *arguments); filter and test (of what, *arguments), chain (*arguments: a filter of a block); not, neg, operator and
    compare (operands, with the operators between them in `name`); either (condition, then, and else where it is
    there); list, tuple, map; paren (what is in it); keyword (the value of an argument).
    """

    kind: str
    name: str
    parts: tuple["Expr", ...]
    start: int
    end: int

    def bare(self) -> "Expr":
        """Without parentheses."""
        return self.parts[0].bare() if self.kind == "paren" else self


@dataclass(frozen=True, slots=True)
class Statement:
    """A tag with its bodies. `start` is where its opening tag begins, `end` where that tag ends.

    Kinds: emit, for (iterable, then condition), if (condition), with, set, setblock, do, filter, autoescape, block,
    macro, call, and those that read another template: include, extends, import, from.
    """

    kind: str
    start: int
    end: int
    exprs: tuple[Expr, ...] = ()
    targets: tuple[Expr, ...] = ()  # what is assigned to: variables, and attributes of a namespace
    bodies: tuple[tuple["Statement", ...], ...] = ()
    name: str = ""  # of a block or a macro


def words(text: str) -> frozenset[str]:
    """Names between blanks."""
    return frozenset(text.split())


def parse(source: str) -> tuple[Statement, ...]:
    """The statements of a template that minijinja accepts; text between the tags is left out."""
    return _Parser(list(tokens(source))).body(())[0]


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.at = 0

    # ---- tokens

    def peek(self) -> str:
        """The next token if it can mean something in the grammar: a mark, a name, the begin or the end of a tag."""
        token = self.tokens[self.at]
        return token.text if token.kind not in ("string", "number") else ""

    def take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def skip(self, *texts: str) -> bool:
        if self.peek() in texts:
            self.at += 1
            return True
        return False

    @property
    def start(self) -> int:
        return self.tokens[self.at].start

    @property
    def end(self) -> int:
        return self.tokens[self.at - 1].end

    # ---- statements

    def body(self, ends: tuple[str, ...]) -> tuple[tuple[Statement, ...], str]:
        """Statements up to a tag that begins with one of `ends`, and which that was."""
        found: list[Statement] = []
        while self.at < len(self.tokens):
            begin = self.take()
            if begin.text == "{{":
                expr = self.expr()
                self.take()
                found.append(Statement("emit", begin.start, self.end, (expr,)))
                continue
            word = self.take().text
            if word in ends:
                return tuple(found), word
            found.append(self.statement(word, begin.start))
        return tuple(found), ""

    def statement(self, word: str, start: int) -> Statement:
        if word == "if":
            return self.condition(start)
        if word == "for":
            return self.loop(start)
        exprs: tuple[Expr, ...] = ()
        targets: tuple[Expr, ...] = ()
        name = ""
        kind = word
        if word == "set":
            targets = self.targets()
            if self.skip("="):
                exprs = tuple(self.listed("%}"))
            else:
                kind = "setblock"
                exprs = (self.chain(),) if self.skip("|") else ()
        elif word == "with":
            pairs = [self.assignment() for _ in iter(lambda: self.peek() == "%}", True)]
            targets, exprs = tuple(target for target, _ in pairs), tuple(expr for _, expr in pairs)
        elif word == "filter":
            exprs = (self.chain(),)
        elif word == "block":
            name = self.take().text
            while self.peek() != "%}":
                self.take()
        elif word in ("macro", "call"):
            name = self.take().text if word == "macro" else "caller"
            targets, exprs = self.parameters() if self.peek() == "(" else ((), ())
            exprs = exprs if word == "macro" else (self.expr(), *exprs)
        elif word in ("do", "autoescape", "include", "extends", "import", "from"):
            exprs = (self.expr(),)
            while self.peek() != "%}":  # of the last four nothing more is used: they are refused
                self.take()
        self.take()  # %}
        end = self.end
        closing = {"setblock": "endset", "with": "endwith", "filter": "endfilter", "block": "endblock"}
        closing |= {"macro": "endmacro", "call": "endcall", "autoescape": "endautoescape"}
        if kind not in closing:  # break and continue too
            return Statement(kind, start, end, exprs, targets, name=name)
        body, _ = self.body((closing[kind],))
        while self.take().kind != "end":  # the name of a block may stand there again
            pass
        return Statement(kind, start, end, exprs, targets, (body,), name)

    def condition(self, start: int) -> Statement:
        expr = self.alternative()
        self.take()
        end = self.end
        then, word = self.body(("elif", "else", "endif"))
        otherwise: tuple[Statement, ...] = ()
        if word == "elif":
            return Statement("if", start, end, (expr,), (), (then, (self.condition(self.start),)))
        self.take()
        if word == "else":
            otherwise, _ = self.body(("endif",))
            self.take()
        return Statement("if", start, end, (expr,), (), (then, otherwise))

    def loop(self, start: int) -> Statement:
        targets = self.targets()
        self.take()  # in
        exprs = [self.alternative()]
        if self.skip("if"):
            exprs.append(self.expr())
        self.skip("recursive")
        self.take()
        end = self.end
        body, word = self.body(("else", "endfor"))
        self.take()
        otherwise: tuple[Statement, ...] = ()
        if word == "else":
            otherwise, _ = self.body(("endfor",))
            self.take()
        return Statement("for", start, end, tuple(exprs), targets, (body, otherwise))

    def targets(self) -> tuple[Expr, ...]:
        """What is assigned to, parentheses taken away."""
        found = []
        while self.peek() not in ("=", "|", "%}", "in"):
            if self.skip("(", ")", ","):
                continue
            token = self.take()
            target = Expr("var", token.text, (), token.start, token.end)
            while self.skip("."):
                name = self.take()
                target = Expr("attr", name.text, (target,), target.start, name.end)
            found.append(target)
        return tuple(found)

    def assignment(self) -> tuple[Expr, Expr]:
        self.skip(",")
        start = self.start
        targets = self.targets()
        target = Expr("tuple", "", targets, start, self.end)
        self.take()
        return target, self.expr()

    def parameters(self) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
        names, defaults = [], []
        self.take()
        while not self.skip(")"):
            if self.skip(","):
                continue
            token = self.take()
            names.append(Expr("var", token.text, (), token.start, token.end))
            if self.skip("="):
                defaults.append(self.expr())
        return tuple(names), tuple(defaults)

    # ---- expressions, by precedence

    def expr(self) -> Expr:
        start, found = self.start, self.alternative()
        while self.skip("if"):
            parts = [self.alternative(), found]
            if self.skip("else"):
                parts.append(self.expr())
            found = Expr("either", "", tuple(parts), start, self.end)
        return found

    def alternative(self) -> Expr:
        return self.operators(("or",), lambda: self.operators(("and",), self.negation))

    def negation(self) -> Expr:
        start = self.start
        if self.skip("not"):
            return Expr("not", "", (self.negation(),), start, self.end)
        return self.comparison()

    def comparison(self) -> Expr:
        start, parts, names = self.start, [self.sum()], []
        while (name := self.peek()) in _COMPARISONS:
            self.take()
            if name == "not":
                self.take()
                name = "not-in"
            names.append(name)
            parts.append(self.sum())
        return parts[0] if not names else Expr("compare", " ".join(names), tuple(parts), start, self.end)

    def sum(self) -> Expr:
        return self.operators(("+", "-"), lambda: self.operators(("~",), self.product))

    def product(self) -> Expr:
        return self.operators(("*", "/", "//", "%"), lambda: self.operators(("**",), self.filtered))

    def operators(self, names: tuple[str, ...], operand: Callable[[], Expr]) -> Expr:
        start, left = self.start, operand()
        while self.peek() in names:
            name = self.take().text
            left = Expr("operator", name, (left, operand()), start, self.end)
        return left

    def filtered(self) -> Expr:
        start, found = self.start, self.postfixed()
        while self.peek() in ("|", "is"):
            kind = "filter" if self.take().text == "|" else "test"
            negated = kind == "test" and self.skip("not")
            name = self.dotted()
            arguments: list[Expr] = []
            if self.peek() == "(":
                arguments = self.arguments()
            elif kind == "test" and self.begins_operand():
                arguments = [self.postfixed()]
            found = Expr(kind, name, (found, *arguments), start, self.end)
            if negated:
                found = Expr("not", "", (found,), start, self.end)
        return found

    def begins_operand(self) -> bool:
        token = self.tokens[self.at]
        if token.kind == "name":
            return token.text not in ("and", "or", "else", "is")
        return token.kind in ("string", "number") or token.text in ("+", "-", "[", "{")

    def dotted(self) -> str:
        name = self.take().text
        while self.skip("."):
            name += "." + self.take().text
        return name

    def chain(self) -> Expr:
        start, names, parts = self.start, [], []
        while self.peek() != "%}":
            self.skip("|")
            names.append(self.dotted())
            parts += self.arguments() if self.peek() == "(" else []
        return Expr("chain", " ".join(names), tuple(parts), start, self.end)

    def arguments(self) -> list[Expr]:
        found: list[Expr] = []
        self.take()
        while not self.skip(")"):
            if self.skip(",", "*", "**"):
                continue
            value = self.expr()
            if self.skip("="):
                value = Expr("keyword", value.name, (self.expr(),), value.start, self.end)
            found.append(value)
        return found

    def postfixed(self) -> Expr:
        start = self.start
        if self.skip("-"):
            return Expr("neg", "", (self.postfixed(),), start, self.end)
        found = self.primary()
        while self.peek() in (".", "[", "("):
            mark = self.peek()
            if mark == "(":
                found = Expr("call", "", (found, *self.arguments()), start, self.end)
                continue
            self.take()
            if mark == ".":
                token = self.take()
                if token.kind == "name":
                    found = Expr("attr", token.text, (found,), start, self.end)
                else:
                    which = Expr("const", token.text, (), token.start, token.end)
                    found = Expr("item", "", (found, which), start, self.end)
            else:
                found = self.subscripted(found, start)
        return found

    def subscripted(self, of: Expr, start: int) -> Expr:
        parts, colons = [of], 0
        while not self.skip("]"):
            if self.skip(":"):
                colons += 1
            else:
                parts.append(self.expr())
        return Expr("slice" if colons else "item", "", tuple(parts), start, self.end)

    def primary(self) -> Expr:
        token = self.take()
        if token.kind == "name":
            kind = "const" if token.text in _CONSTANTS else "var"
            return Expr(kind, token.text, (), token.start, token.end)
        if token.kind in ("string", "number"):
            text = token.text
            while token.kind == "string" and self.tokens[self.at].kind == "string":
                text += " " + self.take().text
            return Expr("const", text, (), token.start, self.end)
        if token.text == "(":
            return self.parenthesized(token.start)
        closing = "]" if token.text == "[" else "}"
        parts = tuple(self.listed(closing))
        self.take()
        return Expr("list" if closing == "]" else "map", "", parts, token.start, self.end)

    def parenthesized(self, start: int) -> Expr:
        parts, commas = [], 0
        while not self.skip(")"):
            if self.skip(","):
                commas += 1
            else:
                parts.append(self.expr())
        return Expr("tuple" if commas or not parts else "paren", "", tuple(parts), start, self.end)

    def listed(self, closing: str) -> list[Expr]:
        """Expressions between commas, or colons in a map, up to `closing`, which stays."""
        parts = []
        while self.peek() != closing:
            if not self.skip(",", ":"):
                parts.append(self.expr())
        return parts
