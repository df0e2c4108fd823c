"""What of JSON Schema may stand in a job, and the form of it that each service takes. Pure.

A service makes its answers by the constructs that it knows; the others of `HELD_HERE` are left out of what is sent, and
an answer is held to them when it comes.
"""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.schemas.mistake import SchemaError

Node = dict[str, Any]

_KNOWN = frozenset(
    {
        *("$defs", "$ref", "type", "format", "title", "description", "enum", "minimum", "maximum", "anyOf", "oneOf"),
        *("items", "prefixItems", "minItems", "maxItems"),
        *("properties", "additionalProperties", "required", "propertyOrdering"),
    }
)
"""What Gemini takes in `responseJsonSchema` (google-genai 3.6.1, `GenerateContentConfig.response_json_schema`)."""
_MOST_NESTED = 64
HELD_HERE = frozenset(
    {
        *("minLength", "maxLength", "pattern", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"),
        *("uniqueItems", "minProperties", "maxProperties"),
    }
)
"""What Gemini is not told: an answer is held to it when it comes."""
_SAID_OTHERWISE = frozenset({"const"})  # as an enum of one
_REMARKS = frozenset(
    {
        *("$schema", "$id", "$comment", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
        "discriminator",
    }
)
"""What says nothing of a value, and is left out."""
_INSTEAD = {
    "allOf": "write the properties of all of them into one object",
    "definitions": "call it `$defs`",
    "nullable": 'write type = ["string", "null"]',
    "if": "check it afterwards with [[check]]",
    "not": "check it afterwards with [[check]]",
}
_OPENAI = _KNOWN - {"oneOf", "prefixItems", "propertyOrdering", "title"} | HELD_HERE - {
    *("minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties")
}
"""What strict structured outputs take, as OpenAI's guide had it in 2025; not tried on the service itself. `oneOf` is
told as `anyOf`."""

_OPENAPI = (_KNOWN - {"$defs", "$ref", "prefixItems", "oneOf", "additionalProperties"}) | {
    *("minLength", "maxLength", "pattern", "minProperties", "maxProperties")
}
"""What Gemini takes in `responseSchema`, an older subset of OpenAPI, and the one that batches take (google-genai 3.6.1,
`Schema`)."""
_MOST_OPENED = 5_000
"""Nodes of a schema in which everything that it refers to stands in its place: references to references double it."""


def check(schema: Any) -> None:
    """Raise `SchemaError` for a construct that no service is told and that we do not hold an answer to."""
    allowed = _KNOWN | HELD_HERE | _SAID_OTHERWISE | _REMARKS
    for node, place in _nodes(schema, "$"):
        if isinstance(node, bool):
            continue
        if place.count(".") > _MOST_NESTED:
            raise SchemaError(f"it is nested deeper than {_MOST_NESTED} levels")
        if not isinstance(node, dict):
            raise SchemaError(f"{place} is no schema: {type(node).__name__}")
        for name in node:
            if name not in allowed:
                close = difflib.get_close_matches(name, allowed, n=1)
                hint = _INSTEAD.get(name) or (f"did you mean `{close[0]}`?" if close else "leave it out")
                raise SchemaError(f"{place} has `{name}`, which no service is told", hint)
        if "$ref" in node and not isinstance(_at(node["$ref"], schema), dict):
            raise SchemaError(f"{place} refers to {node['$ref']!r}, which is not there", "`#/$defs/name` is understood")


def held_here(schema: Any) -> list[str]:
    """Constructs in the schema that Gemini is not told, by name."""
    names = (node.keys() & HELD_HERE for node, _ in _nodes(schema, "$") if isinstance(node, dict))
    return sorted(set[str]().union(*names))


def requires_itself(schema: Node) -> str | None:
    """What holds itself by way of required properties alone, which Gemini has no form for; None: nothing does."""
    for start in ("#", *(f"#/$defs/{name}" for name in schema.get("$defs", {}))):
        waiting, seen = [_at(start, schema)], {""}
        while waiting:
            node = waiting.pop()
            if not isinstance(node, dict):
                continue
            if (reference := node.get("$ref", "")) == start:
                return start
            if reference not in seen:
                seen.add(reference)
                waiting.append(_at(reference, schema))
            waiting += [each for name, each in node.get("properties", {}).items() if name in node.get("required", ())]
            waiting += [node.get("items"), *node.get("prefixItems", ()), *node.get("anyOf", ()), *node.get("oneOf", ())]
    return None


def gemini(schema: Node) -> Node:
    """The same for `responseJsonSchema` of Gemini."""
    told: Node = mapped(mapped(schema, _enumerated), _for_gemini)
    return told


def openai(schema: Node) -> tuple[Node, bool]:
    """The same for `response_format` of OpenAI, and whether it is `strict`.

    Strict wants every object closed and each of its properties always there, which narrows what is asked for: every
    such answer is one of the schema too. An object of any properties has no such form; the schema goes as it is then.
    """
    if any(isinstance(node, bool) or _is_open(node) for node, _ in _nodes(schema, "$")):
        return schema, False
    return mapped(mapped(schema, _enumerated), _for_openai), True


def openapi(schema: Node) -> Node:
    """The same for `responseSchema` of Gemini, wider where that lacks a word.

    Raises `SchemaError` for what it cannot say at all: a schema that holds itself, an object whose properties have no
    names, an array of anything, a value of any kind.
    """
    left = iter(range(_MOST_OPENED))
    plain = _without_references(schema, schema, (), "$", left)
    told: Node = mapped(mapped(plain, _enumerated), _for_openapi)
    return told


def resolved(node: Any, root: Node) -> Any:
    """What a `$ref` refers to; anything else as it is."""
    for _ in range(64):
        if not isinstance(node, dict) or "$ref" not in node:
            return node
        node = _at(node["$ref"], root)
    raise SchemaError("a `$ref` leads to itself")


# --- one node ---------------------------------------------------------------------------------------------------------


def _for_gemini(node: Node) -> Node:
    if "$ref" in node:  # nothing may stand beside it
        return {name: node[name] for name in ("$ref", "$defs") if name in node}
    told = {name: value for name, value in node.items() if name in _KNOWN}
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in told.get("enum", ())):
        del told["enum"]
    return told


def _for_openai(node: Node) -> Node:
    if "$ref" in node:
        return {name: node[name] for name in ("$ref", "$defs") if name in node}
    told = {name: value for name, value in _any_of(node).items() if name in _OPENAI}
    if "properties" in told:
        told |= {"required": list(told["properties"]), "additionalProperties": False}
    return told


def _for_openapi(node: Node) -> Node:
    told = {name: value for name, value in _any_of(node).items() if name in _OPENAPI}
    kinds = told.get("type")
    if isinstance(kinds, list):
        others = [kind for kind in kinds if kind != "null"]
        told |= {"nullable": True} if "null" in kinds else {}
        del told["type"]
        told |= {"type": others[0]} if len(others) == 1 else {"anyOf": [{"type": kind.upper()} for kind in others]}
    if any(each == {"type": "NULL"} for each in told.get("anyOf", ())):
        told["anyOf"] = [each for each in told["anyOf"] if each != {"type": "NULL"}]
        told["nullable"] = True
        if len(told["anyOf"]) < 2:
            told |= (told.pop("anyOf") or [{"type": "NULL"}])[0]
    if "type" in told:
        told["type"] = told["type"].upper()
    if not all(isinstance(each, str) for each in told.get("enum", ())):
        del told["enum"]
    if "properties" in told:
        told.setdefault("propertyOrdering", list(told["properties"]))
    if not told.keys() & {"type", "anyOf", "properties"}:
        raise SchemaError("an enum has values of several types, and `responseSchema` has no word for that")
    return told


def _any_of(node: Node) -> Node:
    """`oneOf` as `anyOf`, which is wider: an answer is held to the former."""
    return {"anyOf" if name == "oneOf" else name: value for name, value in node.items()}


def _enumerated(node: Node) -> Node:
    """The same, a constant as an enum of one, and an enum with null as a choice between the two."""
    node = dict(node)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "enum" in node and None in node["enum"]:
        others = [each for each in node["enum"] if each is not None]
        told = {name: value for name, value in node.items() if name not in ("enum", "type")}
        choice: list[Node] = [{"enum": others, **_kind_of(others)}] if others else []
        return {**told, "anyOf": [*choice, {"type": "null"}]}
    if "enum" in node and "type" not in node:
        node |= _kind_of(node["enum"])
    return node


def _kind_of(values: list[Any]) -> Node:
    """The type of all of them, where they have one."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number"}
    kinds = {names.get(type(value), "") for value in values}
    return {"type": kinds.pop()} if len(kinds) == 1 and "" not in kinds else {}


def _is_open(node: Node) -> bool:
    """Whether it may be an object of properties that it does not name, or anything at all."""
    kinds = node.get("type", "object" if "properties" in node else None)
    may_be = kinds if isinstance(kinds, list) else [kinds]
    if not any(name in node for name in ("type", "$ref", "anyOf", "oneOf", "enum", "const", "properties")):
        return True
    if "array" in may_be and "items" not in node:
        return True
    return "object" in may_be and (not node.get("properties") or node.get("additionalProperties") not in (None, False))


# --- all of them ------------------------------------------------------------------------------------------------------


def _nodes(schema: Any, place: str) -> Iterator[tuple[Any, str]]:
    """Every schema in a schema, with its place."""
    waiting = [(schema, place)]
    while waiting:
        node, place = waiting.pop()
        yield node, place
        if isinstance(node, dict):
            found: list[tuple[Any, str]] = []
            _inner(node, lambda *each: found.append(each))  # noqa: B023  # it is called before it is bound anew
            waiting += [(each, f"{place}{at}") for each, at in found]


def _inner(node: Node, change: Callable[[Any, str], Any]) -> Node:
    """The schema with `change` done to those in it, each with its place there."""
    made: Node = {}
    for name, value in node.items():
        if name in ("properties", "$defs") and isinstance(value, dict):
            made[name] = {key: change(each, f".{key}") for key, each in value.items()}
        elif name in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            made[name] = [change(each, f".{name}[{number}]") for number, each in enumerate(value)]
        elif name == "items" or (name == "additionalProperties" and not isinstance(value, bool)):
            made[name] = change(value, f".{name}")
        else:
            made[name] = value
    return made


def mapped(node: Any, change: Callable[[Node], Node]) -> Any:
    """The schema with every node changed, the inner ones first; `true` is one that says nothing."""
    if not isinstance(node, dict):
        return {} if node is True else node
    return change(_inner(node, lambda each, _: mapped(each, change)))


def _without_references(node: Any, root: Node, above: tuple[str, ...], place: str, left: Iterator[int]) -> Any:
    """The schema with everything that it refers to in its place; raises `SchemaError`, see `openapi`."""
    if next(left, None) is None:
        raise SchemaError("it refers to itself too often for `responseSchema`, which has no word for a reference")
    if not isinstance(node, dict):
        raise SchemaError(f"{place} may be anything, and `responseSchema` has no word for that", "name its type")
    if "$ref" in node:
        if node["$ref"] in above:
            raise SchemaError(f"{node['$ref']} holds itself, and `responseSchema` has no word for that")
        return _without_references(_at(node["$ref"], root), root, (*above, node["$ref"]), place, left)
    if why := _unsaid(node):
        raise SchemaError(f"{place} is {why}, and `responseSchema` has no word for that")
    others = ("$defs", "additionalProperties", "prefixItems")
    plain = {name: value for name, value in node.items() if name not in others}
    return _inner(plain, lambda each, at: _without_references(each, root, above, f"{place}{at}", left))


def _unsaid(node: Node) -> str:
    """What of a node leaves open what an answer is made of; empty: nothing."""
    kinds = node.get("type", "object" if "properties" in node else None)
    may_be = kinds if isinstance(kinds, list) else [kinds]
    if "object" in may_be and not node.get("properties"):
        return "an object whose properties have no names"
    if "array" in may_be and "items" not in node:
        return "an array of anything"
    if not any(name in node for name in ("type", "anyOf", "oneOf", "enum", "const", "properties")):
        return "a value of any kind"
    return ""


def _at(reference: object, root: Node) -> Any:
    """What stands at `#/$defs/name`, or the whole at `#`; None: there is nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node: Any = root
    for name in filter(None, reference[1:].split("/")):
        node = node.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node
