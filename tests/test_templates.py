from collections.abc import Sequence
from pathlib import Path

import pytest
from chinese import said_in_chinese
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES, Parts, Template, read_text
from pipeline.templates.checks import check_template
from pipeline.values import Exact

WHERE = "job.toml, [prompt] template"


def render(source: str, **values: object) -> str:
    return Template(source, WHERE).render(values)


def check_variables(template: Template, columns: Sequence[str], own: frozenset[str]) -> None:
    check_template(template, dict.fromkeys(columns), own)


def refused(source: str, **values: object) -> JobError:
    with pytest.raises(JobError) as caught:
        render(source, **values)
    said_in_chinese(caught.value)
    return caught.value


# ---- text goes in as it is


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    assert render("<{{ text }}>", text=text) == f"<{text}>"


@pytest.mark.parametrize("text", ["{{ 1 + 1 }}", "{% for x in y %}", "{# gone? #}", "{{ secret }}", "{% raw %}", "}}"])
def test_template_marks_in_a_text_are_never_evaluated(text: str) -> None:
    assert render("{{ text }} {{ secret }}", text=text, secret="s") == f"{text} s"


def test_nothing_is_escaped() -> None:
    assert render("{{ a }}", a="<b> & \"c\" 'd'") == "<b> & \"c\" 'd'"


def test_a_null_cell_becomes_nothing() -> None:
    assert render("[{{ a }}][{{ b }}]{% if a %}x{% endif %}", a=None, b="") == "[][]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (10**20, "1" + "0" * 20),
        (1.5, "1.5"),
        (Exact("1.50"), "1.50"),
        (Exact("12345678901234567890.12"),) * 2,
    ],
)
def test_numbers_are_written_in_full(value: object, text: object) -> None:
    assert render("{{ x }}", x=value) == str(text)


def test_chinese_in_template_variable_and_value() -> None:
    assert render("总结：「{{ 标题 }}」。", 标题="劳动合同法 🧑‍⚖️") == "总结：「劳动合同法 🧑‍⚖️」。"


def test_lone_braces_stay() -> None:
    assert render('{"a": {"b": {}}, "c": "{{ x }}"}', x="1") == '{"a": {"b": {}}, "c": "1"}'


def test_raw_keeps_braces() -> None:
    template = Template("{% raw %}{{ not_a_column }}{% endraw %} {{ x }}", WHERE)
    assert template.variables == {"x"}
    assert template.render({"x": 1}) == "{{ not_a_column }} 1"


@pytest.mark.parametrize("name", ["name", "template_name", "source", "text", "parts", "key"])
def test_any_column_name_may_be_used(name: str) -> None:
    assert Template(f"{{{{ {name} }}}}", WHERE).render({name: "v"}) == "v"


def test_a_trailing_newline_is_dropped_and_others_stay() -> None:
    assert render("\n a\n\n{{ x }}\n", x="b\n") == "\n a\n\nb\n"


# ---- parts


def test_parts_are_joined_by_blank_lines() -> None:
    assert render("{{ parts }}", parts=Parts(["one", "<two>", "三"])) == "one\n\n<two>\n\n三"


def test_parts_can_be_looped_over_and_counted() -> None:
    source = "{{ parts|length }}{% for part in parts %} {{ loop.index }}.{{ part }}{% endfor %}"
    assert render(source, parts=Parts(["a", "{{ b }}"])) == "2 1.a 2.{{ b }}"


# ---- strictness


def test_variables_are_those_that_must_come_from_outside() -> None:
    template = Template(
        "{% set own = 1 %}{{ own }}{% for tag in tags %}{{ tag }}{{ loop.index }}{% endfor %}"
        "{% if a.b %}{{ c|upper }}{% endif %}",
        WHERE,
    )
    assert template.variables == {"tags", "a", "c"}


@pytest.mark.parametrize(
    "source", ["{{ gone }}", "{% if gone %}x{% endif %}", "{{ a.gone }}", "{% for x in gone %}{% endfor %}"]
)
def test_what_is_missing_is_an_error(source: str) -> None:
    assert "undefined" in refused(source, a={"b": 1}).message


def test_a_failure_names_line_and_place_once_and_tells_no_value() -> None:
    message = refused("one\n\n{{ x + 1 }}", x="the secret text").message
    assert message.endswith(f"\n{WHERE}, line 3")
    assert message.count("3") == 1
    assert "secret" not in message


@pytest.mark.parametrize("source", ["a\nb {{ x", "a\n{% if x %}", "a\n{% bogus %}", "a\n{{ x ! y }}"])
def test_a_syntax_error_names_its_line_and_the_way_out(source: str) -> None:
    error = refused(source)
    assert error.message.startswith("the template does not parse: ")
    assert error.message.endswith(f"\n{WHERE}, line 2")
    assert "(in prompt" not in error.message
    assert "{% raw %}" in error.hint


def test_an_unknown_variable_is_refused_with_the_nearest_column() -> None:
    with pytest.raises(JobError) as caught:
        check_variables(Template("{{ titel }}", WHERE), ["title", "body"], frozenset())
    assert "{{ titel }}" in caught.value.message
    assert WHERE in caught.value.message
    assert caught.value.hint == "did you mean `title`? columns are title, body"


def test_an_unknown_variable_like_no_column_lists_them() -> None:
    with pytest.raises(JobError) as caught:
        check_variables(Template("{{ x }}", WHERE), ["title", "body"], frozenset())
    assert caught.value.hint == "columns are title, body"


def test_a_misspelt_piece_variable_is_suggested_too() -> None:
    with pytest.raises(JobError, match="chuncks") as caught:
        check_variables(Template("{{ chuncks }}", WHERE), ["title"], CHUNK_VARIABLES)
    assert "`chunks`" in caught.value.hint


def test_columns_and_own_variables_pass() -> None:
    check_variables(Template("{{ title }} {{ text }} {{ chunk }}/{{ chunks }}", WHERE), ["title"], CHUNK_VARIABLES)
    check_variables(Template("{{ title }} {{ parts }}", WHERE), ["title"], REDUCE_VARIABLES)


def test_own_variables_of_one_step_are_not_those_of_the_other() -> None:
    with pytest.raises(JobError, match="chunk"):
        check_variables(Template("{{ parts }} {{ chunk }}", WHERE), ["title"], REDUCE_VARIABLES)


# ---- texts beside the job file


def test_a_text_file_loses_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("\ufeff你好".encode())
    assert read_text(None, "a.md", tmp_path, WHERE) == "你好"


def test_a_text_file_that_is_not_utf8_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"abc\xff")
    with pytest.raises(JobError, match=r"a\.md is not UTF-8 \(byte 3\)"):
        read_text(None, "a.md", tmp_path, WHERE)


def test_an_empty_text_is_a_text(tmp_path: Path) -> None:
    assert read_text("", None, tmp_path, WHERE) == ""
