"""The JSON Schema of a job file, made from its sections: what editors complete, explain and underline by.

It has what can be said of each value alone. Rules between settings, and of files, are the loader's: a job that the
schema takes may still be refused, and what it refuses the loader refuses too.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.sections import JobFile

Form = dict[str, Any]
"""One place of the schema: an object of JSON Schema."""

_KEPT = (
    *("type", "const", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "minItems", "maxItems", "required", "additionalProperties"),
)


def job_schema() -> Form:
    """The schema, as draft 7, which taplo and the editors that build on it read; nothing in it refers elsewhere."""
    raw = JobFile.model_json_schema()
    form = _form(raw, raw["$defs"], ())
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "job file of prompt-pipeline", **form}


def schema_text() -> str:
    """The same as it is written to a file, which the first line of a job names: `#:schema job.schema.json`."""
    return orjson.dumps(job_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _form(raw: Mapping[str, Any], defs: Mapping[str, Mapping[str, Any]], place: tuple[str, ...]) -> Form:
    """A form without references, nulls and names of classes, none of which a job file has."""
    whole = {**defs[raw["$ref"].rpartition("/")[2]], **raw} if "$ref" in raw else dict(raw)
    options = [each for each in whole.pop("anyOf", ()) if each.get("type") != "null"]
    if len(options) == 1:
        return _form({**options[0], **whole}, defs, place)
    form: Form = {"title": ".".join(place)} if place else {}
    if "description" in whole:
        form["description"] = re.sub(r"\[[^\]]+\]\(([\w.#\-]+)\)", r"docs/\1", whole["description"])
    if options:
        form["anyOf"] = [_form(each, defs, ()) for each in options]
    form |= {key: whole[key] for key in _KEPT if key in whole and whole[key] is not True}
    if "items" in whole:
        form["items"] = _form(whole["items"], defs, place if "$ref" in whole["items"] else ())
        if "$ref" in whole["items"]:
            form.setdefault("description", form["items"]["description"])
    if "properties" in whole:
        form["properties"] = {key: _form(each, defs, (*place, key)) for key, each in whole["properties"].items()}
    if whole.get("default") not in (None, "", []) and not isinstance(whole["default"], dict):
        form["default"] = whole["default"]
    if place and (examples := whole.get("examples") or _examples(form)):
        form["examples"] = examples
    return form


def _examples(form: Form) -> list[Any]:
    """An example of what has only few values, or a usual one."""
    default = form.get("default")
    if isinstance(default, int | float) and not isinstance(default, bool):
        return [default]
    if form.get("type") == "boolean":
        return [not default]
    return [value for value in form.get("enum", [form["const"]] if "const" in form else []) if value != default][:1]
