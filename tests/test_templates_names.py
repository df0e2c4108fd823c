"""What a template asks of its rows, found from its whole syntax and said before anything is sent."""

from collections.abc import Collection, Mapping

import pytest
from chinese import said_in_chinese

from pipeline.errors import JobError
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES, Template
from pipeline.templates.checks import check_template
from pipeline.values import Kind

WHERE = "job.toml, [prompt] template"
COLUMNS: dict[str, Kind | None] = {
    "text": "text",
    "score": "text",
    "n": "number",
    "price": "number",
    "day": "time",
    "good": "truth",
    "tags": None,
    "order-id": "text",
    "客户 评论": "text",
    "a.b": "text",
    "2nd": "text",
}


def check(source: str, columns: Mapping[str, Kind | None] = COLUMNS, own: Collection[str] = (), text: str = "") -> None:
    check_template(Template(source, WHERE), columns, frozenset(own), text or None)


def refused(source: str, columns: Mapping[str, Kind | None] = COLUMNS, own: Collection[str] = ()) -> JobError:
    with pytest.raises(JobError) as caught:
        check(source, columns, own)
    said_in_chinese(caught.value)
    return caught.value


# ---- misspelt names


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    "source",
    [
        "{{ txet[:500] }}",
        "{{ text[:txet] }}",
        "{{ -row['txet'] }}",
        "{{ 1 - -row.txet }}",
        "{{ text[1:2:txet] }}",
        "{% set txet = txet|trim %}",
        "{% set text = txet|trim %}",
        "{{ text|replace(txet, '') }}",
        "{{ text|replace('a', new=txet) }}",
        "{% filter replace('a', txet) %}x{% endfilter %}",
        "{% set x | replace('a', txet) %}x{% endset %}",
        "{{ text is startingwith txet }}",
        "{{ text is startingwith(txet) }}",
        "{% for x in tags if txet %}{% endfor %}",
        "{% for x in tags %}{% else %}{{ txet }}{% endfor %}",
        "{% for txet in tags %}{% endfor %}{{ txet }}",
        "{% with txet = 1 %}{% endwith %}{{ txet }}",
        "{% with a = txet, txet = 1 %}{% endwith %}",
        "{% macro m(txet) %}{% endmacro %}{{ txet }}",
        "{% macro m(a=txet) %}{% endmacro %}",
        "{% macro m() %}{{ txet[1:] }}{% endmacro %}",
        "{% macro m(a) %}{{ caller() }}{% endmacro %}{% call m(txet) %}{% endcall %}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ txet }}{% endcall %}",
        "{{ [1, txet] }}",
        "{{ {'a': txet} }}",
        "{{ {txet: 1} }}",
        "{{ (1, txet)[0] }}",
        "{{ text if txet else '' }}",
        "{{ text if n else txet }}",
        "{{ text[txet] }}",
        "{{ tags.count(txet) }}",
        "{{ range(txet) }}",
        "{{ 1 < n < txet }}",
        "{{ n not in txet }}",
        "{{ -txet }}",
        "{{ not txet }}",
        "{{ text ~ txet }}",
        "{% if n %}{% elif txet %}{% endif %}",
        "{% autoescape txet %}{% endautoescape %}",
        "{% block b %}{{ txet }}{% endblock %}",
        "{% do tags.index(txet) %}",
        "{% set ns = namespace(a=txet) %}",
        "{% set txet.a = 1 %}",
        "{{ txet is defined }}",
        "{{ txet|default('') }}",
        "{{ loop.index ~ txet }}",
        "{{ '{{ text }}' }}{{ txet }}",
        "{{ {'a': {'b': 1}}}}{{ txet }}",
        "{%- if n -%} {{- txet -}} {%- endif -%}",
        "{# {{ text }} #}{{ txet }}",
        "{% raw %}{{ text }}{% endraw %}{{ txet }}",
        "{%- raw -%}{% endraw x %}{%- endraw -%}{{ txet }}",
        "{{ row['txet'] }}",
        "{{ row.txet }}",
        "{{ row['tx' 'et'] }}",
    ],
)
def test_a_misspelling_is_found_wherever_it_is(source: str) -> None:
    error = refused(source)
    assert "txet" in error.message or "loop" in error.message
    assert error.message.endswith(f"\n{WHERE}, line 1")


@pytest.mark.case("P1", "P2")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ text[:2] }}", "ab"),
        ("{% set text = text|upper %}{{ text }}", "ABC"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        ("{% set ns = namespace(n=0) %}{% for t in tags %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ dict(a=text).a }}", "abc"),
        ("{% set c = cycler(['a', 'b']) %}{{ c.next() }}{{ c.next() }}", "ab"),
        ("{% set j = joiner(',') %}{% for t in tags %}{{ j() }}{{ t }}{% endfor %}", "x,y"),
        ("{% if n %}{% set a = 1 %}{% else %}{% set a = 2 %}{% endif %}{{ a }}", "1"),
        ("{% if n %}{% set a = 1 %}{% endif %}{% if n %}{{ a }}{% endif %}", "1"),
        ("{% for t in [] %}{% else %}{% set a = 3 %}{% endfor %}{{ a }}", "3"),
        ("{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}", "11"),
        ("{% filter upper %}{% set y = 'a' %}{{ y }}{% endfilter %}{{ y }}", "Aa"),
        ("{% set a, (b, c) = 1, (2, 3) %}{{ a }}{{ b }}{{ c }}", "123"),
        ("{% for (k, v) in {'a': 1}|items %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}", "a1True"),
        ("{% with a = 1, b = a + 1 %}{{ b }}{% endwith %}", "2"),
        ("{% macro m(a, b=text) %}{{ a }}{{ b }}{{ later }}{% endmacro %}{% set later = 1 %}{{ m(n) }}", "7abc1"),
        ("{% macro m() %}{{ text[1:] }}{% endmacro %}{{ m() }}", "bc"),
        ("{% macro m() %}{{ caller(1) }}{% endmacro %}{% call(u) m() %}{{ u }}{{ text }}{% endcall %}", "1abc"),
        ("{% macro m(k) %}{{ k }}{% if k %}{{ m(k - 1) }}{% endif %}{% endmacro %}{{ m(2) }}", "210"),
        ("{% for t in [[1, []]] recursive %}{{ t[0] }}{{ loop(t[1]) }}{% endfor %}", "1"),
        ("{% block b %}{{ text }}{% endblock %}{{ self.b() }}", "abcabc"),
        ("{% for t in tags %}{% if t == 'x' %}{% continue %}{% endif %}{{ t }}{% break %}{% endfor %}", "y"),
        ("{{ text is startingwith 'a' and n is divisibleby 7 or good is not true }}", "True"),
        ("{{ 1 if text else 2 if n else 3 }}", "1"),
        ("{{ {'a': {'b': text}}.a.b }}", "abc"),
        ("{{ tags.0 }}{{ tags[-1] }}{{ tags[::-1] }}", "xy['y', 'x']"),
        ("{{ 'it''s' \"fine\" ~ '\\'' }}", "itsfine'"),
        ("{{ 1e3 + 0x10 + 1_000 }}", "2016.0"),
        ("{{ 2 ** -1 }} {{ --n }} {{ 7 // 2 * 2 % 4 }}", "0.5 7 2"),
        ("{{ text|indent(4, blank=true) if false else 'c' }}", "c"),
        ("{{ range(*[2])|list }}", "[0, 1]"),
        ("{% set स्वर = 1 %}{{ स्वर }}", "1"),
        ("no variable at all", "no variable at all"),
        ("", ""),
    ],
)
def test_nothing_right_is_refused(source: str, text: str) -> None:
    check(source)
    values = {**dict.fromkeys(COLUMNS), "text": "abc", "n": 7, "good": True, "tags": ["x", "y"]}
    assert Template(source, WHERE).render(values) == text


def test_a_name_that_some_ways_assign_is_read_where_it_is_a_column() -> None:
    template = Template("{% if n %}{% set text = 'set' %}{% endif %}{{ text }}", WHERE)
    assert template.reads(COLUMNS, frozenset()) == {"n", "text"}
    assert [template.render({"n": n, "text": "cell"}) for n in (0, 1)] == ["cell", "set"]
    assert Template("{% set text = 1 %}{{ text }}", WHERE).reads(COLUMNS, frozenset()) == set()


@pytest.mark.parametrize("tag", ["include 'a'", "extends 'a'", "import 'a' as b", "from 'a' import b as c, d"])
def test_reading_another_template_is_refused_by_name(tag: str) -> None:
    error = refused(f"a\n{{% {tag} %}}")
    assert f"{{% {tag.split()[0]} %}}" in error.message and error.message.endswith("line 2")


@pytest.mark.parametrize(
    ("source", "word", "hint"),
    [
        ("{{ text|uper }}", "uper", "upper"),
        ("{{ text is definde }}", "definde", "defined"),
        ("{{ tags|map('uper') }}", "uper", "upper"),
        ("{{ tags|select('eqq', 1) }}", "eqq", "tests"),
        ("{% filter uper %}{% endfilter %}", "uper", "upper"),
        ("{{ rnge(3) }}", "rnge(…)", "range"),
        ("{{ text(3) }}", "a column, not a function", "range"),
        ("{{ range }}", "range", "call it"),
    ],
)
def test_a_filter_a_test_or_a_function_that_is_not_there(source: str, word: str, hint: str) -> None:
    error = refused(source)
    assert word in error.message and hint in error.hint


def test_a_function_and_a_column_of_one_name() -> None:
    columns: dict[str, Kind | None] = {"range": "text"}
    template = Template('{{ range(2)|list }} {{ row["range"] }}', WHERE)
    check_template(template, columns, frozenset())
    assert template.render({"range": "cell"}) == "[0, 1] cell"
    assert 'row["range"]' in refused("{{ range(2)|list }} {{ range }}", columns).hint
    assert Template("{{ range }}", WHERE).render({"range": "cell"}) == "cell"


# ---- any column


@pytest.mark.case("P5")
@pytest.mark.parametrize(
    "name", ["order-id", "客户 评论", "a.b", "2nd", "text", "has 'quotes'", 'has "quotes"', "if", ""]
)
def test_any_column_can_be_inserted(name: str) -> None:
    key = name.replace('"', '\\"')
    template = Template(f'{{{{ row["{key}"] }}}}', WHERE)
    check_template(template, {name: "text", "other": "text"}, frozenset())
    assert template.reads([name, "other"], frozenset()) == {name}
    assert template.render({name: "cell"}) == "cell"


@pytest.mark.case("P5")
@pytest.mark.parametrize(
    ("source", "column"),
    [
        ("{{ order-id }}", "order-id"),
        ("{{ row['order_id'] }}", "order-id"),
        ("{{ a.b }}", "a.b"),
        ("{{ 客户 }}", "客户 评论"),
    ],
)
def test_the_hint_says_how_to_insert_a_column_whose_name_is_no_word(source: str, column: str) -> None:
    assert f'{{{{ row["{column}"] }}}}' in refused(source).hint


@pytest.mark.case("P5")
@pytest.mark.parametrize("source", ["{{ 客户 评论 }}", "{{ 2nd }}"])
def test_what_does_not_parse_is_told_of_row(source: str) -> None:
    with pytest.raises(JobError) as caught:
        Template(source, WHERE)
    assert 'row["order-id"]' in caught.value.hint


@pytest.mark.parametrize(
    "source", ["{% for name in row %}{{ row[name] }}{% endfor %}", "{{ row }}", "{{ row.items() }}"]
)
def test_other_uses_of_row_read_every_column(source: str) -> None:
    check(source)
    assert Template(source, WHERE).reads(COLUMNS, frozenset()) == set(COLUMNS)


def test_a_variable_named_row_is_no_table() -> None:
    template = Template("{% for row in tags %}{{ row.x }}{% endfor %}", WHERE)
    check_template(template, COLUMNS, frozenset())
    assert template.reads(COLUMNS, frozenset()) == {"tags"}


@pytest.mark.case("P5", "T15")
def test_a_column_named_row() -> None:
    columns: dict[str, Kind | None] = {"row": "text", "b": "text"}
    template = Template('{{ row["row"] }} {{ row["b"] }}', WHERE)
    check_template(template, columns, frozenset())
    assert template.render({"row": "cell", "b": "other"}) == "cell other"
    error = refused("{{ row }}", columns)
    assert "`row`" in error.message and 'row["row"]' in error.hint
    assert 'row["row"]' in refused("{{ row.b }}", {"row": None, "b": "text"}).hint


# ---- names that are two things


@pytest.mark.case("T15")
@pytest.mark.parametrize(
    ("name", "own"),
    [("text", {"text"}), *((name, CHUNK_VARIABLES) for name in sorted(CHUNK_VARIABLES)), ("parts", REDUCE_VARIABLES)],
)
def test_a_column_beside_a_variable_of_the_job(name: str, own: Collection[str]) -> None:
    columns: dict[str, Kind | None] = {"body": "text", name: "text"}
    error = refused(f"a\n{{{{ {name} }}}}", columns, own)
    assert f"`{name}`" in error.message and error.message.endswith("line 2")
    assert f'row["{name}"]' in error.hint
    template = Template(f'{{{{ row["{name}"] }}}} {{{{ own["{name}"] }}}} {{{{ row.body }}}}', WHERE)
    check_template(template, columns, frozenset(own))
    assert template.mentions(name)
    assert template.reads(columns, frozenset(own)) == {name, "body"}
    assert template.render({name: "cell", "body": "b"}, dict.fromkeys(own, "job")) == "cell job b"


@pytest.mark.case("T15")
def test_the_text_column_may_be_named_text() -> None:
    check("{{ text }}", {"text": "text"}, {"text"}, text="text")


def test_what_own_does_not_have() -> None:
    assert "chunk" in refused("{{ own.chunk }}", {}, {"text"}).message
    check("{{ own }} {{ own['x'] }}", {"own": None})
    assert Template("{{ own.x }}", WHERE).render({"own": {"x": 1}}) == "1"


# ---- values that are never alike


@pytest.mark.case("P4")
@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("{% if score > 3 %}x{% endif %}", "`score|float`"),
        ("{% if 3 < score %}x{% endif %}", "`score|float`"),
        ("{% if 1 < score < 3 %}x{% endif %}", "`score|float`"),
        ("{% if score == 3 %}x{% endif %}", "`score|float`"),
        ("{% if score != 3.5 %}x{% endif %}", "`score|float`"),
        ("{% if score in [1, 2] %}x{% endif %}", "`score|float`"),
        ("{% if score is gt 3 %}x{% endif %}", "`score|float`"),
        ("{% if score is divisibleby 3 %}x{% endif %}", "`score|float`"),
        ("{% if score is odd %}x{% endif %}", "`score|float`"),
        ("{{ score + 1 }}", "`score|float`"),
        ("{{ score * 2 }}", "`score|float`"),
        ("{{ 2 * score }}", "`score|float`"),
        ("{{ -score }}", "`score|float`"),
        ("{{ score|round(1) }}", "`score|float`"),
        ("{{ range(score)|list }}", "`score|float`"),
        ("{{ text[:score] }}", "`score|float`"),
        ("{% if score|trim > 3 %}x{% endif %}", "`score|trim|float`"),
        ("{% if (score) > 3 %}x{% endif %}", "`(score)|float`"),
        ("{% set s = score %}{% if s > 3 %}x{% endif %}", "`s|float`"),
        ("{% if row['score'] > 3 %}x{% endif %}", "|float`"),
        ("{% if score > n %}x{% endif %}", "`score|float`"),
        ("{% if n > score %}x{% endif %}", "`score|float`"),
        ("{% if score|default('0') > 3 %}x{% endif %}", "|float`"),
        ("{% if n == '3' %}x{% endif %}", "`3`"),
        ("{% if n == 'a' %}x{% endif %}", "`n|string`"),
        ("{% if day > '2024-01-01' %}x{% endif %}", "`day|string`"),
        ("{% if day > 2024 %}x{% endif %}", "`day|string`"),
        ("{% if good == 'true' %}x{% endif %}", "{% if good %}"),
        ("{% if score == true %}x{% endif %}", '`score == "true"`'),
    ],
)
def test_values_that_are_never_alike_are_refused_with_a_way_out(source: str, hint: str) -> None:
    error = refused(f"\n{source}")
    assert hint in error.hint
    assert error.message.endswith(f"\n{WHERE}, line 2")


@pytest.mark.case("P4")
@pytest.mark.parametrize(
    "source",
    [
        "{{ score|int > 3 and score|float < 3.5 }}",
        "{{ score > '3' }} {{ score == text }} {{ score in ['1', '2'] }} {{ score in ['1', 2] }}",
        "{{ n > 3 }} {{ n == true }} {{ n + 1 }} {{ n * n }} {{ n is odd }} {{ n|round }}",
        "{{ '-' * n }} {{ '-' * 20 }} {{ score ~ 1 }} {{ score + text }}",
        "{{ price|float > 3 }} {{ price < price }} {{ day < day }} {{ day|string < '2024' }} {{ day.year > 2000 }}",
        "{{ good == true }} {{ good == 1 }} {{ tags > 3 }} {{ tags|length > 3 }} {{ text|length > 3 }}",
        "{% set score = score|int %}{{ score > 3 }}",
        "{% for score in tags %}{{ score > 3 }}{% endfor %}",
        "{% if n %}{% set s = 1 %}{% else %}{% set s = 'a' %}{% endif %}{{ s > 3 }}",
        "{{ score == none }} {{ n == none }} {{ (score if n else n) > 3 }}",
    ],
)
def test_values_that_are_alike_or_may_be_are_not_refused(source: str) -> None:
    check(source)


@pytest.mark.case("P4")
def test_values_whose_kinds_are_known_only_in_the_row_are_compared_or_fail_there() -> None:
    template = Template("{% for x in tags %}\n{{ x > 3 }}{% endfor %}", WHERE)
    assert template.render({"tags": [4, 2.5, None]}).split() == ["True", "False", "False"]
    with pytest.raises(JobError, match=r"two kinds.*\n.*line 2"):
        template.render({"tags": ["4"]})


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("\n{{ text|upper(3) }}", "`upper` is given too many arguments"),
        ("\n{{ text|replace('a') }}", "`replace` is given too few arguments"),
        ("\n{{ n is divisibleby }}", "`divisibleby` is given too few arguments"),
        ("\n{% filter truncate(size=3) %}{{ text }}{% endfilter %}", "`truncate` is given too many arguments"),
    ],
)
def test_arguments_that_no_value_makes_right_are_refused_by_line(source: str, said: str) -> None:
    error = refused(source)
    assert error.message == f"{said}\n{WHERE}, line 2" and error.hint


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ text|truncate(9) }}", "one..."),
        ("{{ text|truncate(9, true, '') }}", "one two t"),
        ("{{ text|truncate(9, leeway=20) }}", "one two three four"),
        ("{% filter truncate(9) %}{{ text }}{% endfilter %}", "one..."),
        ("{{ text|wordwrap(9) }}", "one two\nthree\nfour"),
        ("{{ tags|sort(true)|join(',') }}{{ ['a', 'A']|unique(true)|join }}", "b,aaA"),
        ("{{ {'a': 2, 'b': 1}|dictsort(false, 'value')|first|first }}", "b"),
    ],
)
def test_filters_take_their_arguments_by_place_as_in_jinja(source: str, text: str) -> None:
    check(source)
    assert Template(source, WHERE).render({"text": "one two three four", "tags": ["a", "b"]}) == text


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    "source",
    [
        *(f"{{{{ tags.txet|{name} }}}}" for name in ("length", "e", "truncate(5)", "indent(2)", "urlencode", "count")),
        "{{ [tags.txet] }}",
        "{{ {'a': tags.txet}|tojson }}",
        "{{ dict(a=tags['txet'])|tojson }}",
        "{{ '{}'.format(tags.txet) }}",
    ],
)
def test_a_misspelling_within_a_value_is_never_taken_for_nothing(source: str) -> None:
    check(source)
    with pytest.raises(JobError, match="undefined"):
        Template(source, WHERE).render({"tags": {"text": "x"}})


@pytest.mark.case("P4")
@pytest.mark.parametrize(
    "source", ["\n{% for x in score %}{{ x }}{% endfor %}", "\n{% for x in text[:3] %}{% endfor %}"]
)
def test_a_text_is_not_walked_by_its_characters_unasked(source: str) -> None:
    error = refused(source)
    assert "character by character" in error.message and error.message.endswith("line 2")
    assert ".split" in error.hint and "|list" in error.hint
    check(
        "{% for x in score.split(',') %}{% endfor %}{% for x in text|list %}{% endfor %}{% for x in tags %}{% endfor %}"
    )
