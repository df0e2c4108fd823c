"""Random templates over random columns: `check` passes exactly when rendering works, and nulls change nothing else."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minijinja import Environment, TemplateError

from pipeline.errors import JobError
from pipeline.templates import Template
from pipeline.templates.checks import check_template
from pipeline.values import Kind

COLUMNS: dict[str, Kind | None] = {
    "a": "text",
    "b": "text",
    "n": "number",
    "m": "number",
    "tags": None,
    "o-d": "text",
    "客户 评论": "text",
}
VALUES: dict[str, object] = {
    "a": "Ab<c>",
    "b": "x\ny",
    "n": 3,
    "m": 0,
    "tags": ["p", "q"],
    "o-d": "od",
    "客户 评论": "好",
}
MISSPELT = "zz"


@dataclass
class Scope:
    """Names that may be used at one place of the template that is drawn, by kind."""

    text: list[str] = field(default_factory=lambda: ["a", "b"])
    number: list[str] = field(default_factory=lambda: ["n", "m"])
    items: list[str] = field(default_factory=lambda: ["tags"])
    macros: list[str] = field(default_factory=list)
    fresh: int = 0

    def copy(self) -> "Scope":
        return Scope([*self.text], [*self.number], [*self.items], [*self.macros], self.fresh)


class Drawing:
    """Draws a template that works on every row, all of whose parts are reached."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.fresh = 0

    def of(self, *choices: str) -> str:
        return self.draw(st.sampled_from(choices))

    def name(self) -> str:
        self.fresh += 1
        return self.of("v", "名", "_x") + str(self.fresh)

    def text(self, scope: Scope, depth: int) -> str:
        if depth <= 0:
            return self.of(*scope.text, "'s'", '"it\'s"', "'{{ zz }}'", 'row["o-d"]', "row['客户 评论']", "row.a", "''")
        one, deeper = self.text(scope, depth - 1), depth - 1
        kind = self.draw(st.integers(0, 16))
        if kind == 15:
            return f"'%s|%6.2f'|format({one}, {self.number(scope, 0)})"
        if kind == 16:
            return f"'{{}}|{{:>6}}'.format({one}, {self.text(scope, 0)})"
        if kind == 0:
            return f"{one} ~ {self.number(scope, deeper)}"
        if kind == 1:
            return f"({one}){self.of('|upper', '|trim', '|title', '|length|string', '|tojson', '|default(a)')}"
        if kind == 2:
            return f"({one})[{self.of('', '1', '-1')}:{self.of('', '2', f'({self.number(scope, 0)})|int')}]"
        if kind == 3:
            return f"({one} if {self.truth(scope, deeper)} else {self.text(scope, deeper)})"
        if kind == 4:
            return f"({one})|replace({self.text(scope, deeper)}, {self.text(scope, 0)})"
        if kind == 5:
            return f"{self.items(scope, deeper)}|join({self.of(repr(', '), self.text(scope, 0))})"
        if kind == 6:
            return f"({one}).{self.of('upper()', 'strip()', 'replace(' + repr('b') + ', ' + repr('c') + ')')}"
        if kind == 7:
            return f"[{one}, {self.text(scope, deeper)}]|first"
        if kind == 8:
            return f"{{'k': {one}}}{self.of('.k', '[' + repr('k') + ']')}"
        if kind == 9:
            return f"dict(k={one}).k"
        if kind == 10:
            return f"({one} or {self.text(scope, 0)})"
        if kind == 11 and scope.macros:
            return f"{self.of(*scope.macros)}({one})"
        return f"({one})" if kind == 12 else one

    def number(self, scope: Scope, depth: int) -> str:
        if depth <= 0:
            return self.of(*scope.number, "0", "2", "1.5", "row['n']", "0x1F")
        one = self.number(scope, depth - 1)
        return self.of(
            f"({one} + {self.number(scope, depth - 1)})",
            f"({one} * 2 - -1)",
            f"({self.text(scope, depth - 1)})|length",
            f"({one})|int",
            f"({one})|string|float",
            f"({one} if {self.truth(scope, 0)} else 1)",
            f"({one}) // 2 % 3",
            f"{self.items(scope, depth - 1)}|length",
            f"[{one}, {self.number(scope, 0)}]|{self.of('max', 'min', 'sum', 'first')}",
            f"([{{'k': {one}}}, {{'k': {self.number(scope, 0)}}}]|sort(attribute='k')|first).k",
            one,
        )

    def truth(self, scope: Scope, depth: int) -> str:
        number, text = self.number(scope, depth - 1), self.text(scope, depth - 1)
        return self.of(
            f"{number} {self.of('<', '<=', '>', '>=', '==', '!=')} {self.number(scope, depth - 1)}",
            f"1 < ({number}) < 3",
            f"({text}) == ({self.text(scope, 0)})",
            f"({text}) in ({self.text(scope, 0)})",
            f"({text}) not in {self.items(scope, 0)}",
            f"({text}) is {self.of('defined', 'string', 'none', 'not none', 'startingwith ' + repr('A'))}",
            f"({number}) is {self.of('gt 1', 'lt(' + self.number(scope, 0) + ')', 'not eq 3', 'not gt 1', 'number')}",
            f"not {scope.text[-1]} and ({number}) > 1 or true",
        )

    def items(self, scope: Scope, depth: int) -> str:
        return self.of(
            *scope.items,
            f"[{self.text(scope, depth - 1)}, {self.number(scope, depth - 1)}]",
            "range(2)|list",
            f"({self.text(scope, depth - 1)}).split(' ')",
            "tags|map('upper')|list",
            "tags[::-1]",
            "tags|sort(reverse=true)",
            f"[{self.text(scope, 0)}, {self.text(scope, 0)}, {self.number(scope, 0)}]|{self.of('sort', 'unique|list')}",
            f"[{self.text(scope, 0)}, 's']|{self.of('select', 'reject')}('{self.of('eq', 'ne', 'lt')}', 's')|list",
            f"[{{'k': {self.text(scope, 0)}}}]|map(attribute='k')|list",
        )

    def body(self, scope: Scope, depth: int) -> str:
        return "".join(self.statement(scope, depth) for _ in range(self.draw(st.integers(1, 3))))

    def statement(self, scope: Scope, depth: int) -> str:
        kind = self.draw(st.integers(0, 13 if depth > 0 else 3))
        if kind == 0:
            return self.of(
                "text ",
                "\n",
                " {# {{ zz }} #}",
                "{% raw %}{{ zz }}{% endraw %}",
                "} { %",
                "{%- raw -%} x {%- endraw %}",
            )
        if kind in (1, 2):
            value = self.text(scope, depth) if kind == 1 else self.number(scope, depth)
            return self.of("{{ ", "{{", "{{- ") + value + self.of(" }}", "\n}}", " -}}")
        if kind == 3:
            name, value = self.of(self.name(), "a", "b"), self.text(scope, depth)
            scope.text.append(name)
            return f"{{% set {name} = {value} %}}"
        inner = scope.copy()
        if kind == 4:
            name = self.name()
            value = self.body(inner, depth - 1)
            scope.text.append(name)
            return f"{{% set {name}{self.of('', ' | upper')} %}}{value}{{% endset %}}"
        if kind == 5:
            name, items = self.name(), self.items(scope, depth - 1)
            inner.text.append(f"({name} ~ loop.index)")
            chosen = self.of("", f" if {name} is defined")
            loop = f"{{% for {name} in {items}{chosen} %}}{self.body(inner, depth - 1)}"
            return f"{loop}{{% else %}}{self.body(scope.copy(), 0)}{{% endfor %}}"
        if kind == 6:
            first = f"{{% if {self.truth(scope, depth)} %}}{self.body(inner, depth - 1)}"
            second = f"{{% elif {self.truth(scope, 0)} %}}{self.body(scope.copy(), 0)}"
            return f"{first}{second}{{% else %}}{self.body(scope.copy(), 0)}{{% endif %}}"
        if kind == 7:
            name = self.name()
            inner.text.append(name)
            return f"{{% with {name} = {self.text(scope, depth)} %}}{self.body(inner, depth - 1)}{{% endwith %}}"
        if kind == 8:
            name = self.of("upper", "trim", f"replace({self.text(scope, 0)}, '-')")
            return f"{{% filter {name} %}}{self.body(inner, depth - 1)}{{% endfilter %}}"
        if kind == 9:
            name, argument = self.name(), self.name()
            inner.text.append(argument)
            inner.macros = []
            body = self.body(inner, depth - 1)
            scope.macros.append(name)
            return f"{{% macro {name}({argument}, k={self.text(scope, 0)}) %}}{body}{{{{ k }}}}{{% endmacro %}}"
        if kind == 10:
            name, argument = self.name(), self.name()
            inner.text.append(argument)
            return (
                f"{{% macro {name}() %}}<{{{{ caller({self.text(scope, 0)}) }}}}>{{% endmacro %}}"
                f"{{% call({argument}) {name}() %}}{self.body(inner, depth - 1)}{{% endcall %}}"
            )
        if kind == 11:
            name, value = self.name(), self.number(scope, 0)
            scope.number.append(f"{name}.v")
            counted = f"{{% for i in range(2) %}}{{% set {name}.v = {name}.v + 1 %}}{{% endfor %}}"
            return f"{{% set {name} = namespace(v={value}) %}}{counted}"
        if kind == 12:
            one, other = self.name(), self.name()
            both = f"{{% set {one}, {other} = {self.text(scope, 0)}, {self.number(scope, 0)} %}}"
            scope.text.append(one)
            scope.number.append(other)
            return both
        one, other = self.name(), self.text(scope, 0)
        ways = f"{{% set {one} = 'x' %}}{{% else %}}{{% set {one} = {other} %}}"
        ways = f"{{% if {self.truth(scope, 0)} %}}{ways}{{% endif %}}"
        scope.text.append(one)
        return ways


@st.composite
def templates(draw: st.DrawFn) -> str:
    return Drawing(draw).body(Scope(), draw(st.integers(1, 4)))


def passes(source: str) -> bool:
    try:
        check_template(Template(source, "job.toml"), COLUMNS, frozenset())
    except JobError:
        return False
    return True


def plain(source: str, values: dict[str, object]) -> str | None:
    """What minijinja itself makes of it."""
    environment = Environment(undefined_behavior="strict", auto_escape_callback=lambda name: False)
    try:
        return environment.render_str(source, **values, row=values)
    except TemplateError:
        return None


_SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.case("P1", "P2")
@_SETTINGS
@given(templates())
def test_a_template_that_works_is_let_through_and_says_what_minijinja_says(source: str) -> None:
    expected = plain(source, VALUES)
    template = Template(source, "job.toml")
    assert passes(source)
    if "tojson" not in source:
        assert expected is not None and template.render(VALUES) == expected
    needed = template.reads(COLUMNS, frozenset())
    assert template.render({name: VALUES[name] for name in needed}) == template.render(VALUES)


@pytest.mark.case("P1", "P2")
@_SETTINGS
@given(templates(), st.data())
def test_a_misspelling_put_anywhere_is_found(source: str, data: st.DataObject) -> None:
    places = [place for name in ("a", "b", "n", "m", "tags") for place in _words(source, name)]
    if not places:
        return
    start, end = data.draw(st.sampled_from(places))
    misspelt = source[:start] + MISSPELT + source[end:]
    expected = {**dict.fromkeys(COLUMNS), MISSPELT: None}
    assert passes(source)
    found = Template(misspelt, "job.toml")
    if MISSPELT in found.reads(expected, frozenset()):
        assert not passes(misspelt)
    else:  # it stands in a text, a comment, or is the name of an argument
        assert plain(misspelt, VALUES) is not None


@pytest.mark.case("P3")
@_SETTINGS
@given(templates())
def test_nulls_print_nothing_and_fail_no_row_of_texts(source: str) -> None:
    values = VALUES | {"a": None, "b": None}
    if passes(source):
        assert "None" not in Template(source, "job.toml").render(values)


def _words(source: str, name: str) -> list[tuple[int, int]]:
    places = []
    start = source.find(name)
    while start >= 0:
        end = start + len(name)
        if not source[start - 1 : start].isidentifier() and not f"a{source[end : end + 1] or ' '}".isidentifier():
            places.append((start, end))
        start = source.find(name, end)
    return places
