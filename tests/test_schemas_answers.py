"""What an answer is to its schema: JSON with a fence or prose around it, and what no column could hold."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.schemas import Schema, schema_of
from pipeline.schemas.answers import MOST_NESTED, MOST_TOLD

SMALL = schema_of("a: int, b: str?")
ANY = schema_of({"type": ["object", "array"]})


def trouble(text: str, schema: Schema = SMALL) -> str:
    judged = schema.judge(text)
    assert judged.trouble and judged.text == text, "what is wrong is kept as it is"
    return judged.trouble


@pytest.mark.parametrize("text", ['{"a":1}', ' {"a": 1, "b": "x"}\n', '\ufeff{"a":1}', '{"a":1,"b":null}', '{"a":1.0}'])
def test_what_is_valid_is_itself(text: str) -> None:
    assert SMALL.judge(text) == (text.strip().removeprefix("\ufeff"), "")


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"a": 1}\n```',
        '```\n{"a": 1}\n```',
        'Here it is:\n```JSON\n{"a": 1}\n```\nAnything else?',
        'Here is the JSON: {"a": 1}',
        '{"a": 1}\n\nI hope this helps!',
        '[Note] the answer is {"a": 1}.',
        '答案是：{"a": 1}。',
        'First ```python\nprint("{")\n``` and then ```json\n{"a": 1}\n```',
        '```json\n{"a": 1}',
    ],
)
def test_fences_and_prose_are_taken_off_where_what_is_left_is_valid(text: str) -> None:
    assert SMALL.judge(text) == ('{"a": 1}', "")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1} or rather {"a": 2}',
        '```\n{"a": 1}\n```\n```\n{"a": 2}\n```',
        '{"outer": {"a": 1}',
        '[{"a": 1}, {"a": 2}, {"a"',
        'x = [{"a": 1}, 2',
        '[{"a": 1}]',
        '"{\\"a\\": 1}"',
    ],
)
def test_what_is_not_one_answer_is_none(text: str) -> None:
    trouble(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON"),
        ("no idea", "is no JSON"),
        ('{"a": 1', "is no JSON: unexpected end of data at character 8"),
        ('{"a": NaN}', "is no JSON"),
        ('{"a": Infinity}', "is no JSON"),
        ("{'a': 1}", "is no JSON"),
        ('{"a": 1,}', "is no JSON"),
        ('{"a": 1, "b": "\\ud800"}', "is no JSON"),
        ('{"a": 1, "a": 2}', "names a property twice"),
        ('{"a": 9223372036854775808}', "a whole number of more than 64 bits"),
        ('{"a": ' + "9" * 300 + "}", "a whole number of more than 64 bits"),
        ('{"a": 1e19}', "$.a: the value is greater than the maximum of 9223372036854775807"),
        ('{"a": "x"}', '$.a: the value is not of type "integer"'),
        ("{}", '$: "a" is a required property'),
        ('{"a": 1, "zz": "secret"}', "$: it has properties that the schema does not name"),
        ("[" * 500 + "]" * 500, f"nested deeper than {MOST_NESTED} levels"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_what_is_wrong_is_told_by_place_and_by_the_schemas_words(text: str, said: str) -> None:
    assert said in trouble(text)


def test_numbers_of_64_bits_are_held_and_depth_within_texts_does_not_count() -> None:
    for text in ('{"a": 9223372036854775807}', '{"a": -9223372036854775808}'):
        assert SMALL.judge(text) == (text, "")
    text = json.dumps({"a": 1, "b": "[" * 500 + '\\"{'})
    assert SMALL.judge(text) == (text, "")
    assert "infinity" in trouble('{"x": 1e999}', ANY)


@pytest.mark.parametrize("name", ["default", "enum", "const", "properties", "items", "type"])
@pytest.mark.parametrize("kind", ["integer", ["null", "integer"]])
def test_a_property_may_be_called_as_a_keyword_is(name: str, kind: Any) -> None:
    schema = schema_of({"type": "object", "properties": {name: {"type": kind}}})
    assert schema.judge(f'{{"{name}": 7}}').trouble == ""
    assert "greater than the maximum" in trouble(f'{{"{name}": 1e30}}', schema)
    (column,) = schema.columns()
    assert column.cell({name: 7}) == 7


def test_no_word_of_the_answer_is_told() -> None:
    schema = schema_of(
        {"type": "object", "properties": {"a": {"enum": ["x"]}}, "additionalProperties": {"type": "integer"}}
    )
    said = trouble('{"a": "hunter2", "sk-secret": "hunter2"}', schema)
    assert "hunter2" not in said and "sk-secret" not in said
    assert sorted(said.split("; ")) == ['$.*: the value is not of type "integer"', '$.a: the value is not one of "x"']


def test_a_few_things_are_told_of_one_answer() -> None:
    schema = schema_of(", ".join(f"f{number}: int" for number in range(40)))
    assert trouble(json.dumps({f"f{number}": "x" for number in range(40)}), schema).count(";") == MOST_TOLD - 1


def test_many_brackets_cost_little() -> None:
    trouble("[x" * 200_000)
    trouble('{"a":' * 100_000)


VALUES = st.fixed_dictionaries(
    {"a": st.integers(-(2**63), 2**63 - 1)},
    optional={"b": st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="`")))},
)
PROSE = st.text(alphabet="ab 好。.!?-\n\"'", max_size=60)


@settings(deadline=None)
@given(VALUES, PROSE, PROSE, st.sampled_from(["{}", "```json\n{}\n```", "```\n{}\n```"]))
def test_a_valid_answer_is_found_whatever_is_said_around_it(
    value: dict[str, Any], before: str, after: str, around: str
) -> None:
    judged = SMALL.judge(f"{before}\n{around.replace('{}', json.dumps(value), 1)}\n{after}")
    assert not judged.trouble and orjson.loads(judged.text) == value


@settings(deadline=None)
@given(st.one_of(st.text(max_size=80), st.text(alphabet='{}[]",:a1 `\nb-e.', max_size=80)))
def test_any_text_is_judged_and_what_is_taken_is_json_that_stands_in_it(text: str) -> None:
    for schema in (SMALL, ANY):
        judged = schema.judge(text)
        assert judged.text in text
        if not judged.trouble:
            orjson.loads(judged.text)
