"""The columns that a schema makes: their polars types, known before any answer is, and how a cell is made."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, NamedTuple

import orjson
import polars as pl

from pipeline.schemas.forms import Node, resolved

ANSWER = "answer"
"""The column of an answer that is no object."""

Make = Callable[[Any], Any]


class Column(NamedTuple):
    """One column; `cell` makes a value of `dtype` of the JSON value of an answer."""

    name: str
    dtype: pl.DataType
    means: str
    cell: Make
    is_json: bool = False  # each cell is a JSON text, of what may be of several types


def columns(schema: Node, prefix: str = "") -> tuple[Column, ...]:
    """One column a property of the object that is asked for; one of all where it is none."""
    root = resolved(schema, schema)
    properties = root.get("properties")
    if _kinds(root) != {"object"} or not isinstance(properties, dict) or not properties:
        dtype, make = _typed(root, schema, ())
        return (Column(prefix + ANSWER, dtype, _means(root), make, make is _as_json),)
    return tuple(_column(prefix, name, node, schema) for name, node in properties.items())


def _column(prefix: str, name: str, node: Any, root: Node) -> Column:
    dtype, make = _typed(node, root, ())

    def cell(answer: Mapping[str, Any]) -> Any:
        value = answer.get(name)
        return None if value is None else make(value)

    return Column(prefix + name, dtype, _means(node), cell, make is _as_json)


def _means(node: Any) -> str:
    described = node.get("description") if isinstance(node, dict) else None
    return described if isinstance(described, str) else "of the answer"


def _typed(node: Any, root: Node, above: tuple[str, ...]) -> tuple[pl.DataType, Make]:
    """Type and cells of one value; JSON text for what may be of several types, or is of no known one."""
    if isinstance(node, dict) and "$ref" in node:
        if node["$ref"] in above:
            return _JSON
        return _typed(resolved(node, root), root, (*above, node["$ref"]))
    if not isinstance(node, dict):
        return _JSON
    choices = node.get("anyOf") or node.get("oneOf")
    if choices:
        others = [each for each in choices if not (isinstance(each, dict) and each.get("type") == "null")]
        return _typed(others[0], root, above) if len(others) == 1 else _JSON
    kinds = _kinds(node)
    if kinds == {"array"} and "prefixItems" not in node:
        return _list(node.get("items"), root, above)
    if kinds == {"object"}:
        return _struct(node, root, above)
    if kinds == {"string"} and node.get("format") == "date":
        return pl.Date(), _date
    return _PLAIN.get(frozenset(kinds), _JSON)


def _kinds(node: Node) -> set[str]:
    """The types that a value may have beside null."""
    kinds = node.get("type")
    if kinds is None and ("enum" in node or "const" in node):
        values = node["enum"] if "enum" in node else [node["const"]]
        return {_NAMES.get(type(value), "?") for value in values if value is not None}
    if kinds is None and "properties" in node:
        return {"object"}
    return {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind not in (None, "null")}


def _list(items: Any, root: Node, above: tuple[str, ...]) -> tuple[pl.DataType, Make]:
    if items is None:
        return _JSON
    inner, make = _typed(items, root, above)
    return pl.List(inner), lambda values: [None if value is None else make(value) for value in values]


def _struct(node: Node, root: Node, above: tuple[str, ...]) -> tuple[pl.DataType, Make]:
    properties = node.get("properties")
    if not properties or isinstance(node.get("additionalProperties"), dict):
        return _JSON
    fields = {name: _typed(each, root, above) for name, each in properties.items()}

    def struct(value: Mapping[str, Any]) -> dict[str, Any]:
        found = ((name, value.get(name), make) for name, (_, make) in fields.items())
        return {name: None if each is None else make(each) for name, each, make in found}

    return pl.Struct({name: dtype for name, (dtype, _) in fields.items()}), struct


def _date(value: str) -> date | None:
    try:
        return date.fromisoformat(value)
    except ValueError:  # the year 0, which JSON Schema knows and calendars do not
        return None


def _as_json(value: Any) -> str:
    return orjson.dumps(value).decode()


_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number"}
_JSON: tuple[pl.DataType, Make] = (pl.String(), _as_json)
_PLAIN: Mapping[frozenset[str], tuple[pl.DataType, Make]] = {
    frozenset({"string"}): (pl.String(), str),
    frozenset({"integer"}): (pl.Int64(), int),
    frozenset({"number"}): (pl.Float64(), float),
    frozenset({"integer", "number"}): (pl.Float64(), float),
    frozenset({"boolean"}): (pl.Boolean(), bool),
}
