"""Null in a template: null where it is asked for, nothing where it is printed."""

import pytest

from pipeline.errors import JobError
from pipeline.templates import Template

WHERE = "job.toml, [prompt] template"


def render(source: str, **values: object) -> str:
    return Template(source, WHERE).render(values)


@pytest.mark.case("P3")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if s > 3 %}y{% else %}n{% endif %}", "n"),
        ("{% if s < 3 %}y{% else %}n{% endif %}", "n"),
        ("{% if 3 > s %}y{% else %}n{% endif %}", "n"),
        ("{% if s >= s %}y{% else %}n{% endif %}", "n"),
        ("{% if 1 < s < 3 %}y{% else %}n{% endif %}", "n"),
        ("{% if s is lt 3 %}y{% else %}n{% endif %}", "n"),
        ("{% if s is none %}y{% endif %}{% if s is not none %}z{% endif %}", "y"),
        ("{% if s == none %}y{% endif %}", "y"),
        ("{{ s is defined }}", "True"),
        ("{{ s|default(0) }}", "0"),
        ("{{ s|d('x') }}", "x"),
        ("{{ s|default(s) }}", ""),
        ("{{ s|default(s)|default(1) }}", "1"),
        ("{{ s|default('x', true) }}", "x"),
        ("{{ m.a|default(0) }} {{ m['a']|default(1) }} {{ m.get('a')|default(2) }}", "0 1 2"),
        ("{{ m.gone|default(3) }}", "3"),
        ("{% set t = s %}{{ t is none }}", "True"),
        ("{{ s|tojson }} {{ m|tojson }}", 'null {"a": null}'),
        ("{{ [s, 1]|select('none')|list|length }}", "1"),
    ],
)
def test_null_stays_null(source: str, text: str) -> None:
    assert render(source, s=None, m={"a": None}) == text


@pytest.mark.case("P3")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("[{{ s }}]", "[]"),
        ("[{{- s -}}]", "[]"),
        ("[{{ (s) }}]", "[]"),
        ("[{{ m.a }}{{ m['a'] }}{{ m.get('a') }}{{ l[0] }}{{ l|first }}]", "[]"),
        ("[{{ s if true }}{{ s or none }}{{ s or s }}]", "[]"),
        ("{{ 'a' ~ s ~ m.a ~ 'b' }}", "ab"),
        ("[{{ s|upper }}{{ s|trim|lower }}{{ s|replace('o', '') }}{{ s|title }}{{ s|truncate(length=3) }}]", "[]"),
        ("{{ 'a-b'|replace('-', s) }}", "ab"),
        ("{{ s|length }} {{ s|upper|length }}", "0 0"),
        ("[{{ s[:3] }}]", "[]"),
        ("[{{ s.strip() }}{{ s.upper() }}]", "[]"),
        ("{{ 'a' in s }} {{ s == '' }} {{ s != '' }}", "False True False"),
        ("{{ [s, 'a', m.a]|join(', ') }}", ", a, "),
        ("{{ l|join('-') }}", "-b"),
        ("{{ '%s|%s'|format(s, 'x') }}", "|x"),
        ("{% for x in l %}<{{ x }}>{% endfor %}", "<><b>"),
        ("{% for x in s %}x{% else %}none{% endfor %}", "none"),
        ("{% set t = s %}[{{ t }}]", "[]"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(s) }}", "[]"),
        ("{% set n = namespace(v=s) %}[{{ n.v }}]", "[]"),
        ("{% filter upper %}a{{ s }}b{% endfilter %}", "AB"),
        ("{% if s %}x{% endif %}{% if not s %}y{% endif %}", "y"),
        ("{% do l.index('b') %}{{ l.pop() }}[{{ l.pop() }}]", "b[]"),
    ],
)
def test_null_prints_as_nothing(source: str, text: str) -> None:
    assert render(source, s=None, m={"a": None}, l=[None, "b"]) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ m.gone }}",
        "{{ m.gone ~ '' }}",
        "{{ m.gone|upper }}",
        "{{ m.gone > 3 }}",
        "{{ m.gone == '' }}",
        "{{ m.gone|tojson }}",
        "{{ 'a' in m.gone }}",
        "{{ [m.gone]|join }}",
        "{{ m.gone|join }}",
        "{{ m.gone|int }}",
        "{{ m.gone[:2] }}",
        "{{ m.gone is lt 3 }}",
        "{% if m.gone %}{% endif %}",
        "{% for x in m.gone %}{% endfor %}",
    ],
)
def test_what_is_not_there_is_an_error_still(source: str) -> None:
    with pytest.raises(JobError, match=r"m\.gone.*undefined"):
        render(source, m={"a": 1})


@pytest.mark.parametrize("source", ["{{ s + 1 }}", "{{ s|int }}", "{{ s|float }}", "{{ s|round }}", "{{ s.a }}"])
def test_null_is_no_number(source: str) -> None:
    with pytest.raises(JobError, match="the template fails"):
        render(source, s=None)


def test_a_line_is_told_as_it_is_written() -> None:
    with pytest.raises(JobError, match="line 4"):
        render("{{ a\n }}\n{{ a ~ b\n ~ c.gone }}", a=None, b="", c={})


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 10 ** 10000 }}",
        "{{ 'a' * 10 ** 12 }}",
    ],
)
def test_a_template_that_never_ends_is_ended(source: str) -> None:
    with pytest.raises(JobError, match="the template fails"):
        render(source)


def test_a_method_that_fails_fails_the_row() -> None:
    with pytest.raises(JobError, match="the template fails: AttributeError"):
        render("{{ x.gone() }}", x={}.keys())
