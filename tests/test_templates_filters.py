"""Comparisons, orders and look-ups of a template go by the values: decimals by their digits, null apart."""

from datetime import date
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cells import cells, json_cells
from pipeline.errors import JobError
from pipeline.templates import Template
from pipeline.values import Exact

(PRICES,) = cells(pl.Series([[Decimal("10.00"), Decimal("1.10"), Decimal("2.50"), None]]))
(ITEMS,) = cells(pl.Series([[{"p": Decimal("10.00"), "n": "b"}, {"p": Decimal("2.50"), "n": "A"}]]))
NUMBERS, ROWS, MAPPING = json_cells(
    pl.Series(
        [
            "[9007199254740993, 0.10000000000000000001, 5, 1.10, 1e-10, 1.1]",
            '[{"a":1, "c":"x"},{"a":null, "c":"y"},{"b":2, "c":"x"}]',
            '{"a":9007199254740993,"b":1.10,"c":0.10000000000000000001}',
        ]
    )
)


def render(source: str, **more: object) -> str:
    values = {
        "prices": PRICES,
        "items": ITEMS,
        "numbers": NUMBERS,
        "rows": ROWS,
        "m": MAPPING,
        "f": 3.0,
        "n": Exact("2"),
        **more,
    }
    return Template(source, "job.toml").render(values)


@pytest.mark.case("P3", "T6", "T9")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('{{ prices|select("gt", 2)|list }}', "[10.00, 2.50]"),
        ('{{ prices|reject("ge", 2)|list }}', "[1.10, None]"),
        ('{{ prices|select("in", [1.1])|list }}', "[1.10]"),
        ('{{ prices|select("eq", 2.5)|list }} {{ prices|select("number")|list|length }}', "[2.50] 3"),
        ('{{ items|selectattr("p", "lt", 3)|map(attribute="n")|list }}', "['A']"),
        ("{{ 2.5 in prices }} {{ 3 not in prices }} {{ none in prices }}", "True True True"),
        ("{{ prices|max }} {{ prices|min }} {{ [2, prices[1]]|max }}", "10.00 1.10 2"),
        ("{{ prices|sort }}", "[None, 1.10, 2.50, 10.00]"),
        ('{{ (items|sort(attribute="p")|first).n }} {{ (items|max(attribute="p")).n }}', "A b"),
        ("{{ numbers|sort }}", "[1e-10, 0.10000000000000000001, 1.10, 1.1, 5, 9007199254740993]"),
        ("{{ numbers|max }} {{ numbers|min }}", "9007199254740993 1e-10"),
        ("{{ numbers|unique|list|length }} {{ numbers[3] == numbers[5] }}", "5 True"),
        ('{{ m|dictsort(by="value", reverse=true)|map("first")|join }}', "abc"),
        ("{{ m.a > m.b }} {{ m.a == 9007199254740992 }} {{ m.c > 0.1 }}", "True False True"),
        ("{{ prices[:3]|sum }} {{ numbers|sum > 9007199254740993 }}", "13.60 True"),
        ('{{ prices[:3]|map("int")|list }} {{ prices[:3]|map("round", 1)|list }}', "[10, 1, 2] [10.0, 1.1, 2.5]"),
        ("{{ prices|first * 2 }} {{ prices|max + 1 }} {{ (prices|first)|int }}", "20.0 11.0 10"),
        ('{{ "%.1f|%s|%d"|format(m.b, m.b, m.a) }}', "1.1|1.10|9007199254740993"),
        ('{{ "{:.1f}|{}|{:>6}".format(m.b, m.b, m.b) }}', "1.1|1.10|  1.10"),
        ("{{ m.b is number }} {{ m.b is float }} {{ m.a is integer }} {{ m.b is odd }}", "True True True False"),
        ("{% for k, of in rows|groupby('c') %}{{ k }}{{ of|length }}{% endfor %}", "x2y1"),
        ("{% for group in rows|groupby('c') %}{{ group.grouper }}{{ group.list|length }}{% endfor %}", "x2y1"),
        ('{{ rows|map(attribute="a")|list }} {{ rows|map(attribute="a")|join("-") }}', "[1, None, None] 1--"),
        ('{{ rows|selectattr("a", "lt", 3)|list }} {{ rows|selectattr("flag")|list }}', '[{"a": 1, "c": "x"}] []'),
        ('{{ [{"a": none}, {"a": 3}]|min(attribute="a") }}', "{'a': 3}"),
        ('{{ [none, 3, 2]|select("lt", 3)|list }} {{ [none, 3]|min }}', "[2] 3"),
        ('{{ []|max|default("none") }} {{ none|sort }} {{ none|sum }}', "none [] 0"),
        (
            '{{ ["b", "A", "a"]|sort }} {{ ["b", "A", "a"]|sort(case_sensitive=true) }}',
            "['A', 'a', 'b'] ['A', 'a', 'b']",
        ),
        ('{{ "%s|%s"|format(none, "x") }} {{ "{}|{}".format(none, "x") }}', "|x |x"),
        (
            '{{ "%s %s"|format(f, "x") }} {{ "%s|%s"|format(f, none) }} {{ "{}|{}".format(f, m.b) }}',
            "3.0 x 3.0| 3.0|1.10",
        ),
        ('{{ "%(x)s|%(y)s|%(z).1f"|format(x = f, y = none, z = f) }} {{ "{x:g}{}".format(none, x=f) }}', "3.0||3.0 3"),
        ('{{ "x"|format("y", 1) }} {{ "%s"|format({"k": f}) }}', "x {'k': 3.0}"),
        (
            "{{ (m.b or 0) + 1 }} {{ (none or m.b)|round }} {{ -m.b }} {{ -prices[2] }} {{ -m.b|abs }}",
            "2.1 1.0 -1.1 -2.5 1.1",
        ),
        (
            "{{ range(n)|join }} {{ 'abc'[n:] }} {{ prices[n] }} {{ 'abc'[n] }} {{ [1, 2, 3]|batch(n)|list }}",
            "01 c 2.50 c [[1, 2], [3]]",
        ),
        ("{{ m.b|round(n) }} {{ n|pluralize }} {{ 'abcdef'|wordwrap(n) }}", "1.1 s ab\ncd\nef"),
        *(
            (f"{{{{ {rows}|groupby('c')|{use} }}}}", text)
            for rows in ("rows", '[{"c": "y"}, {"c": "x"}, {"c": "x"}]')
            for use, text in (
                ('map(attribute="grouper")|join', "xy"),
                ('selectattr("grouper", "eq", "x")|list|length', "1"),
                ('sort(attribute="list.1.c")|map(attribute="0")|last', "x"),
            )
        ),
        ('{{ rows|selectattr("zz", "defined")|list }} {{ rows|rejectattr("zz", "undefined")|list }}', "[] []"),
        ("{{ 12|wordwrap }} {{ m.b|wordwrap }} {{ rows[1].a|wordwrap }} {{ 'a b'|wordwrap(1) }}", "12 1.10  a\nb"),
        (
            '{{ ", ".join(["a", rows[1].a]) }} {{ "-".join(prices) }} {{ "".join(["a", "b"]) }}',
            "a,  10.00-1.10-2.50- ab",
        ),
        ('{{ "{0[a]}|{0.b}".format(m) }}', "9007199254740993|1.10"),
        ("{{ 3 == 3 is true }} {{ 1 < 2 is odd }}", "False False"),
        (
            "{{ 3 is not eq 3 }} {{ m.b is not gt 1 }} {{ 'a' is not\n ne 'a' }} {{ m.a is not lt(m.b) }}",
            "False False True True",
        ),
        (
            "{{ m.a is not integer }} {{ m.b is not float }} {{ m.b is not integer }} {{ m.b is not odd|string }}",
            "False False True True",
        ),
    ],
)
def test_values_are_compared_and_not_kinds(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    "use",
    [
        'map(attribute="zz")|list',
        'selectattr("zz", "ne", 1)|list',
        'rejectattr("zz", "ne", 1)|list',
        'sort(attribute="zz")',
        'sort(attribute="c,zz")',
        'groupby("zz")|list',
        'unique(attribute="zz")|list',
        'min(attribute="zz")',
        'sum(attribute="zz")',
    ],
)
def test_an_attribute_that_no_item_has_fails_the_row(use: str) -> None:
    with pytest.raises(JobError, match="no item of the list has `zz`"):
        render(f"{{{{ rows|{use} }}}}")


@pytest.mark.case("P1")
@pytest.mark.parametrize("name", ["grouper", "list"])
def test_a_pair_of_a_cell_is_no_group(name: str) -> None:
    pairs = [*json_cells(pl.Series(["[[1, 2], [3, 4]]"])), *cells(pl.Series([[[1, 2], [3, 4]]]))]
    for cell in pairs:
        with pytest.raises(JobError, match=f"no item of the list has `{name}`"):
            render(f"{{{{ cell|map(attribute='{name}')|list }}}}", cell=cell)


def test_an_attribute_is_not_missed_where_there_are_no_items_or_a_default() -> None:
    assert render('{{ rows|map(attribute="zz")|list }}{{ rows|sort(attribute="zz") }}', rows=[]) == "[][]"
    assert render('{{ rows|map(attribute="zz", default=0)|list }}') == "[0, 0, 0]"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ [1, 'a']|max }}", "values of two kinds"),
        ("{{ ['a', 1]|select('gt', 1)|list }}", "values of two kinds"),
        ("{{ []|max }}", "undefined"),
        ("{{ ['a']|sum }}", "can only sum numbers"),
        ("{{ ['a', m.b]|sum }}", "only numbers have a sum, and not a text"),
        ("{{ [none]|sum }}", "only numbers have a sum, and not null"),
        ("{{ m.b|sort }}", "cannot convert"),
        ("{{ [none]|dictsort }}", "`dictsort` sorts a mapping, and not a list"),
        ("{{ 1 in 2 }}", "`in` looks into a text, a list or a mapping, and not into a number"),
        ("{{ '{0.zz}'.format(m.a) }}", "the template fails"),
        ("{{ '{0.zz}'.format(m.b) }}", "no such attribute"),
        ("{{ '{0.__class__}'.format(m.b) }}", "no such attribute"),
        ("{{ '%d'|format('x') }}", "the template fails"),
        *(
            (f"{{{{ m.gone|{use} }}}}", "undefined")
            for use in ("sort", "max", "sum", "unique|list", "groupby('a')|list")
        ),
        ("{{ '%s'|format(m.gone) }}", "undefined"),
        ("{{ '{}'.format(m.gone) }}", "undefined"),
        ("{{ m.gone.format(m.b) }}", "only a text has `format`, and not null"),
        ("{{ m.gone in [1] }}", "undefined"),
    ],
)
def test_what_has_no_answer_fails_the_row(source: str, reason: str) -> None:
    with pytest.raises(JobError, match=reason):
        render(source)


def test_an_error_without_a_line_names_none() -> None:
    with pytest.raises(JobError, match=r"not iterable\njob.toml$"):
        render("{{ (1|chain) > 2 }}")


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    "change",
    [
        "cell.append(3)",
        "cell.pop()",
        "m.update({'a': 1})",
        "m.pop('a')",
        "row.pop('m')",
        "cell[2].clear()",
        "cell.sort()",
    ],
)
def test_a_template_changes_no_cell(change: str) -> None:
    cell, other = json_cells(pl.Series(["[1, 2, [3]]", '{"a": 1}']))
    fields = {"cell": cell, "m": other}
    with pytest.raises(JobError, match="cannot change what a cell holds"):
        Template(f"{{% do {change} %}}", "job.toml").render(fields)
    assert str(cell) == "[1, 2, [3]]" and cell == [1, 2, [3]] and other == {"a": 1} and set(fields) == {"cell", "m"}


_DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=4)


@given(st.lists(st.one_of(st.integers(-(10**20), 10**20), _DECIMALS), min_size=1, max_size=6))
def test_numbers_of_any_digits_are_ordered_and_added_as_python_does(values: list[int | Decimal]) -> None:
    written = [Exact(str(value)) if isinstance(value, Decimal) else value for value in values]
    source = (
        "{{ l|sort }};{{ l|min }};{{ l|max }};{{ l|sum }};{{ l[0] < l[-1] }};{{ l|select('le', l[0])|list|length }}"
    )
    ordered, least, most, total, less, under = Template(source, "w").render({"l": written}).split(";")
    assert ordered == f"[{', '.join(str(value) for value in sorted(values))}]"
    assert (least, most) == (str(min(values)), str(max(values)))
    assert Decimal(total) == sum(values)
    assert less == str(values[0] < values[-1]) and under == str(sum(value <= values[0] for value in values))


@pytest.mark.case("T6")
@pytest.mark.parametrize("text", ["1e-10", "5e-324", "1.10", "-0.0", "1E5", "1e400", "0.1e1", "12345678901234567890.5"])
def test_a_json_number_prints_as_it_is_written(text: str) -> None:
    alone, within = json_cells(pl.Series([text, f'{{"a":[{text}]}}']))
    assert render("{{ x }} {{ y.a[0] }} {{ y.a }} {{ y }}", x=alone, y=within) == (
        f'{text} {text} [{text}] {{"a":[{text}]}}'
    )


@pytest.mark.parametrize("text", ["1e99999999999999999999", "1e-99999999999999999999", "1e999999999", "9" * 5000])
def test_a_number_beyond_all_others_is_compared_and_printed_still(text: str) -> None:
    (cell,) = json_cells(pl.Series([f"[{text}, 1]"]))
    assert render("{{ l[0] > 1 }} {{ l|max == l[0] }} {{ l[0] }}", l=cell) == (
        f"{not text.startswith('1e-')} {not text.startswith('1e-')} {text}"
    )


def test_dates_are_compared_among_themselves() -> None:
    days = [date(2024, 3, 1), date(2024, 1, 2)]
    assert (
        render("{{ l|sort|join(' ') }} {{ l[0] > l[1] }} {{ l|max }}", l=days)
        == "2024-01-02 2024-03-01 True 2024-03-01"
    )
    with pytest.raises(JobError, match="two kinds"):
        render("{{ l[0] > 'x' }}", l=days)


@pytest.mark.parametrize(
    ("link", "text"),
    [("|sort", "[1.10]"), ("|map('float')|list", "[1.1]"), (".format(1)", "x"), (".replace('a', 'b')", "x")],
)
def test_a_long_chain_is_compiled_and_rendered_at_once(link: str, text: str) -> None:
    """Each link is looked at once: twice each was 2 minutes for fourteen."""
    start = "l" if text.startswith("[") else "'x'"
    assert render(f"{{{{ {start}{link * 30} }}}}", l=[Exact("1.10")]) == text


def test_what_is_nested_too_deeply_is_told() -> None:
    with pytest.raises(JobError, match="nested too deeply"):
        render(f"{{{{ {'(' * 60}a{' > 1)' * 60} }}}}", a=1)


@pytest.mark.parametrize("count", range(100, 600, 20))
def test_many_branches_work_or_are_told(count: int) -> None:
    branches = "".join(f"{{% elif n == {place} %}}{place}" for place in range(count))
    try:
        assert render(f"{{% if n == 7 %}}7{branches}{{% endif %}}", n=99) == "99"
    except JobError as error:
        assert count > 200 and error.message.startswith("the template is nested too deeply")
