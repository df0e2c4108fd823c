"""How the schema of an answer is written, what of it each service is told, and the columns that it makes."""

from datetime import date
from typing import Any

import orjson
import polars as pl
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel

from pipeline.answer_columns import AnswerColumn, expanded
from pipeline.emulator.answers import json_value
from pipeline.emulator.messages import parse
from pipeline.emulator.schema import SCHEMA
from pipeline.schemas import Schema, SchemaError, gemini, held_here, openai, openapi, schema_of
from pipeline.schemas.dsl import TYPES


def refused(written: Any) -> SchemaError:
    with pytest.raises(SchemaError) as caught:
        schema_of(written)
    return caught.value


# ---- one line


def test_one_line_says_what_a_page_of_json_schema_says() -> None:
    line = "mood: good|bad, score: float, n: int, sure: bool, day: date, topics: [str], who: {name: str}, note: str?"
    assert schema_of(line).value == {
        "type": "object",
        "properties": {
            "mood": {"type": "string", "enum": ["good", "bad"]},
            "score": {"type": "number"},
            "n": {"type": "integer"},
            "sure": {"type": "boolean"},
            "day": {"type": "string", "format": "date"},
            "topics": {"type": "array", "items": {"type": "string"}},
            "who": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": ["name"],
                "additionalProperties": False,
            },
            "note": {"type": ["string", "null"]},
        },
        "required": ["mood", "score", "n", "sure", "day", "topics", "who"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("line", "its"),
    [
        ('a: "not sure"|yes', {"type": "string", "enum": ["not sure", "yes"]}),
        ('a: "int"|"str"', {"type": "string", "enum": ["int", "str"]}),
        ('a: "only"', {"type": "string", "enum": ["only"]}),
        ("a: 好|坏", {"type": "string", "enum": ["好", "坏"]}),
        ("a: [x|y]", {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}}),
        ("a: [[int?]]", {"type": "array", "items": {"type": "array", "items": {"type": ["integer", "null"]}}}),
        ("a: x|y?", {"anyOf": [{"type": "string", "enum": ["x", "y"]}, {"type": "null"}]}),
        ("a?: str", {"type": ["string", "null"]}),
        (" a :\n str , ", {"type": "string"}),
    ],
)
def test_what_a_field_may_be(line: str, its: dict[str, Any]) -> None:
    assert schema_of(line).value["properties"] == {"a": its}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "there is no field"),
        ("a", "`:` is missing at the end"),
        ("a:", "a type is missing at the end"),
        ("a: strr", "`strr` stands where a type (str, int, float, bool, date"),
        ("a: str b: int", "`b` stands where `,` should, at character 8"),
        ("a: [str", "`]` is missing"),
        ("a: {}", "there is no field"),
        ('a: "x', 'a `"` is not closed, at character 3'),
        ("a: x||y", "`|` stands where a text should"),
        ("a: str|null", "`str` is a type and stands among texts"),
        ("a: x|int", "`int` is a type and stands among texts"),
        ("a: x|x", "names a text twice"),
        ("a: str, a: int", "`a` is there twice"),
        ("a: " + "[" * 40, "a type is missing"),
        ("a: " + "{b: " * 40, "nested deeper than 16"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_at_its_place(line: str, said: str) -> None:
    assert said in refused(line).message


@settings(deadline=None)
@given(st.text(alphabet='ab:,[]{}?|" strin', max_size=40))
def test_any_line_is_a_schema_or_a_mistake(line: str) -> None:
    try:
        schema_of(line)
    except SchemaError as error:
        assert error.message


FIELDS = st.recursive(
    st.sampled_from([*TYPES, "red|green", '"a b"|c']),
    lambda inner: st.one_of(
        inner.map(lambda one: f"[{one}]"),
        inner.map(lambda one: one if one.endswith("?") else f"{one}?"),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda many: "{" + ", ".join(f"f{number}: {one}" for number, one in enumerate(many)) + "}"
        ),
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(FIELDS, min_size=1, max_size=4))
def test_what_the_emulator_makes_by_each_form_is_an_answer_of_the_schema_and_fits_its_columns(kinds: list[str]) -> None:
    schema = schema_of(", ".join(f"f{number}: {kind}" for number, kind in enumerate(kinds)))
    told, strict = openai(schema.value)
    assert strict
    for form in (gemini(schema.value), told, openapi(schema.value)):
        answer = json_value("A sentence.", form)
        judged = schema.judge(orjson.dumps(answer).decode())
        assert not judged.trouble
        for column in schema.columns():
            assert pl.Series([None, column.cell(answer)], dtype=column.dtype).dtype == column.dtype


def values_of(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Any valid answer, what may be left out left out or not."""
    if "anyOf" in node:
        return st.one_of(*map(values_of, node["anyOf"]))
    if "enum" in node:
        return st.sampled_from(node["enum"])
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    nothing = st.none() if "null" in kinds else st.nothing()
    if kinds[0] == "object":
        fields = {name: values_of(each) for name, each in node["properties"].items()}
        must = {name: each for name, each in fields.items() if name in node["required"]}
        may = {name: each for name, each in fields.items() if name not in must}
        return st.one_of(nothing, st.fixed_dictionaries(must, optional=may))
    if kinds[0] == "array":
        return st.one_of(nothing, st.lists(values_of(node["items"]), max_size=3))
    plain: dict[str, st.SearchStrategy[Any]] = {
        "string": st.dates().map(str) if "format" in node else st.text(st.characters(codec="utf-8")),
        "integer": st.integers(-(2**63), 2**63 - 1),
        "number": st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return st.one_of(nothing, plain[kinds[0]])


@settings(deadline=None)
@given(st.data(), st.lists(FIELDS, min_size=1, max_size=3))
def test_every_valid_answer_fits_its_columns(data: st.DataObject, kinds: list[str]) -> None:
    schema = schema_of(", ".join(f"f{number}: {kind}" for number, kind in enumerate(kinds)))
    answer = data.draw(values_of(schema.value))
    text = orjson.dumps(answer).decode()
    assert schema.judge(text) == (text, "")
    columns = [AnswerColumn(each.name, each.dtype, each.means, "response", each.cell) for each in schema.columns()]
    frame = pl.DataFrame({"status": ["ok"], "response": [text]})
    for suffix in (".parquet", ".csv"):
        for column, series in zip(columns, expanded(frame, columns, suffix), strict=True):
            assert series.dtype == column.typed(suffix)
            assert series.is_null()[0] == (answer.get(column.name) is None)


# ---- JSON Schema


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "said", "hint"),
    [
        ({"allOf": [{"type": "object"}]}, "$ has `allOf`", "into one object"),
        ({"properties": {"a": {"not": {}}}}, "$.a has `not`", "[[check]]"),
        ({"type": "object", "propertes": {}}, "$ has `propertes`", "did you mean `properties`?"),
        ({"items": {"nullable": True}}, "$.items has `nullable`", '["string", "null"]'),
        ({"$ref": "https://elsewhere/x.json"}, "refers to 'https://elsewhere/x.json'", "#/$defs/name"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "$.a refers to '#/$defs/b'", "#/$defs/name"),
        ({"type": "strin"}, "it is no JSON Schema", ""),
        (nested(900), "deeper than 64 levels", ""),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "it is no JSON Schema", ""),
        ({"properties": {"a": "string"}}, "$.a is no schema", ""),
        ({"enum": [date(2026, 11, 29)]}, "it is no JSON", ""),
    ],
)
def test_what_no_service_is_told_is_refused_by_name(schema: dict[str, Any], said: str, hint: str) -> None:
    error = refused(schema)
    assert said in error.message and hint in error.hint


WIDE: dict[str, Any] = {
    "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string", "minLength": 1}}}},
    "type": "object",
    "properties": {
        "kind": {"const": "order", "title": "Kind", "default": "order"},
        "level": {"enum": [1, 2, None]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$", "description": "two letters"},
        "place": {"$ref": "#/$defs/Place", "description": "where"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 3},
        "either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        "share": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    },
    "required": ["kind"],
}


def test_gemini_is_told_what_it_takes_and_an_answer_is_held_to_the_rest() -> None:
    told = gemini(schema_of(WIDE).value)
    assert told["properties"] == {
        "kind": {"enum": ["order"], "type": "string", "title": "Kind"},
        "level": {"anyOf": [{"enum": [1, 2], "type": "integer"}, {"type": "null"}]},
        "code": {"type": "string", "description": "two letters"},
        "place": {"$ref": "#/$defs/Place"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        "share": {"type": ["number", "null"], "maximum": 1},
    }
    assert held_here(WIDE) == ["exclusiveMinimum", "minLength", "pattern", "uniqueItems"]
    assert "pattern" not in held_here(schema_of("a: str").value)
    assert (
        schema_of(WIDE).judge('{"kind": "order", "code": "de"}').trouble
        == '$.code: the value does not match "^[A-Z]{2}$"'
    )


def test_strict_closes_every_object_and_wants_all_of_it() -> None:
    told, strict = openai(schema_of(WIDE).value)
    assert strict and told["required"] == list(WIDE["properties"]) and told["additionalProperties"] is False
    assert told["$defs"]["Place"] == {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    assert told["properties"]["either"] == {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    assert told["properties"]["code"]["pattern"] == "^[A-Z]{2}$"


@pytest.mark.parametrize(
    "open_part",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "array"},
        {},
        True,
    ],
)
def test_what_is_open_has_no_strict_form_and_goes_as_it_is(open_part: Any) -> None:
    schema = {"type": "object", "properties": {"x": open_part}}
    assert openai(schema) == (schema, False)


class Address(BaseModel):
    city: str
    zip: str | None = None


class Order(BaseModel):
    id: int
    paid: bool
    lines: list[str]
    to: Address


def test_a_class_of_pydantic_is_told_as_the_sdks_tell_it() -> None:
    written = schema_of(Order.model_json_schema())
    theirs = to_strict_json_schema(Order)

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: plain(value) for name, value in node.items() if name not in ("title", "default")}
        return [plain(each) for each in node] if isinstance(node, list) else node

    assert plain(openai(written.value)[0]) == plain(theirs)
    assert types.Schema.model_validate(openapi(written.value)).properties is not None


def test_the_older_form_has_everything_in_its_place() -> None:
    told = openapi(schema_of(WIDE).value)
    assert told["properties"]["place"]["type"] == "OBJECT" and "$defs" not in told
    assert told["properties"]["level"] == {"type": "INTEGER", "nullable": True}
    assert told["properties"]["share"] == {"type": "NUMBER", "nullable": True, "maximum": 1}
    assert told["propertyOrdering"] == list(WIDE["properties"])
    parse(SCHEMA, orjson.dumps(told))
    types.Schema.model_validate(told)


def doubling(levels: int) -> dict[str, Any]:
    refs = {f"L{n}": {"anyOf": [{"$ref": f"#/$defs/L{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**refs, f"L{levels}": {"type": "string"}}, "$ref": "#/$defs/L0"}


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"$ref": "#"}, "# holds itself"),
        ({"type": "object"}, r"\$.f is an object whose properties have no names"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, r"\$.f is an object whose properties"),
        ({"type": ["array", "null"]}, r"\$.f is an array of anything"),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, r"\$.f is an array of anything"),
        ({"type": "array", "items": True}, r"\$.f.items may be anything"),
        ({"description": "whatever"}, r"\$.f is a value of any kind"),
        ({"enum": ["a", 1]}, "several types"),
        (doubling(20), "too often"),
    ],
)
def test_what_the_older_form_cannot_say_is_refused_by_its_place(field: dict[str, Any], why: str) -> None:
    defs = field.pop("$defs", {})
    with pytest.raises(SchemaError, match=why):
        openapi({"type": "object", "properties": {"f": field}, "$defs": defs})


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ({"enum": [None]}, {"type": "NULL", "nullable": True}),
        ({"enum": [1, 2]}, {"type": "INTEGER"}),
        (
            {"type": ["string", "integer", "null"]},
            {"nullable": True, "anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]},
        ),
    ],
)
def test_what_the_older_form_says_otherwise(field: dict[str, Any], told: dict[str, Any]) -> None:
    form = openapi({"type": "object", "properties": {"f": field}})
    assert form["properties"]["f"] == told
    parse(SCHEMA, orjson.dumps(form))


# ---- columns

TREE: dict[str, Any] = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
        }
    },
    "$ref": "#/$defs/Node",
}


def typed(written: str | dict[str, Any]) -> dict[str, Any]:
    return {column.name: column.dtype for column in schema_of(written).columns()}


def test_columns_have_their_types_before_any_answer_is_there() -> None:
    assert typed(WIDE) == {
        "kind": pl.String,
        "level": pl.Int64,
        "code": pl.String,
        "place": pl.Struct({"city": pl.String}),
        "tags": pl.List(pl.String),
        "either": pl.String,
        "share": pl.Float64,
    }
    assert typed("day: date, deep: [{a: [int]}]?") == {
        "day": pl.Date,
        "deep": pl.List(pl.Struct({"a": pl.List(pl.Int64)})),
    }


@pytest.mark.parametrize(
    "its",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": ["string", "integer"]},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "array"},
        {"enum": [1, "x"]},
        {},
    ],
)
def test_what_may_be_of_several_types_is_a_column_of_json(its: dict[str, Any]) -> None:
    (column,) = schema_of({"type": "object", "properties": {"x": its}}).columns()
    assert column.dtype == pl.String
    assert column.cell({"x": {"b": 1}}) == '{"b":1}' and column.cell({"x": None}) is None


def test_what_holds_itself_is_json_below_its_first_level() -> None:
    below = pl.Struct({"name": pl.String, "children": pl.List(pl.String)})
    assert typed(TREE) == {"name": pl.String, "children": pl.List(below)}
    children = schema_of(TREE).columns()[1]
    answer = {"children": [{"name": "x", "children": [{"name": "y"}]}]}
    assert children.cell(answer) == [{"name": "x", "children": ['{"name":"y"}']}]


def test_an_answer_that_is_no_object_is_one_column() -> None:
    assert typed({"type": "array", "items": {"type": "integer"}}) == {"answer": pl.List(pl.Int64)}
    (column,) = schema_of({"enum": ["a", "b"]}).columns("my_")
    assert (column.name, column.cell("a")) == ("my_answer", "a") and column.dtype == pl.String


def test_cells_are_exactly_of_their_type_whatever_the_answer_wrote() -> None:
    schema = schema_of("n: int, x: float, at: date?, s: {n: int, x: float?}?")
    answer = {"n": 1.0, "x": 2, "at": "2026-11-29", "s": {"n": 3, "more": 1}}
    cells = {column.name: column.cell(answer) for column in schema.columns()}
    assert cells == {"n": 1, "x": 2.0, "at": date(2026, 11, 29), "s": {"n": 3, "x": None}}
    assert [type(cells[name]) for name in ("n", "x")] == [int, float]
    assert {column.cell({}) for column in schema.columns()} == {None}


def test_a_schema_is_itself_by_its_text() -> None:
    assert schema_of("a: str") == schema_of("a:str,") != schema_of("a: int")
    assert isinstance(schema_of("a: str"), Schema)
