"""Every setting of a job file as a person asks after it: what it is, its type, its default, an example."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from json import dumps
from typing import Any

from pipeline.job.schema import Form, job_schema

PAGES: Mapping[str, str] = {
    "input": "tables.md",
    "prompt": "templates.md",
    "prompt.examples": "flows.md",
    "chunk": "jobs.md",
    "reduce": "jobs.md",
    "refine": "flows.md",
    "redact": "redaction.md",
    "pack": "packing.md",
    "model": "requests.md",
    "model.prices": "requests.md",
    "tools": "requests.md",
    "tools.function": "requests.md",
    "endpoint": "networks.md",
    "limits": "quota.md",
    "target": "targets.md",
    "route": "targets.md",
    "run": "lanes.md",
    "budget": "jobs.md",
    "alerts": "runs.md",
    "cache": "runs.md",
    "check": "structured.md",
    "output": "tables.md",
}
"""Section → the page in docs/ that has more of it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a section; `default` and `example` as TOML writes them, the former empty where there is none."""

    name: str  # limits.rpm
    key: str
    kind: str  # its type and range in words
    required: bool
    default: str
    about: str
    example: str  # below the head of its section
    page: str


@dataclass(frozen=True, slots=True)
class SectionAbout:
    """A section, or a table within one."""

    name: str
    head: str  # as it stands in a job file: [limits], [[check]]
    about: str
    settings: tuple[Setting, ...]
    takes: str = ""  # the section whose settings it has beside its own


@cache
def sections() -> tuple[SectionAbout, ...]:
    """All of them, in the order of the job file."""
    every = job_schema()["properties"]
    return tuple(each for name, form in every.items() for each in _sections(name, form, every["endpoint"]))


def section_called(name: str) -> SectionAbout | None:
    """The section of that name, in brackets or without."""
    return next((each for each in sections() if each.name == _plain(name)), None)


def settings_called(name: str) -> tuple[Setting, ...]:
    """The setting of that name, as `limits.rpm` or `[limits] rpm`, or all whose key it is, as `rpm`."""
    section, _, key = _plain(name).rpartition(".")
    places = {section, *(each.takes for each in sections() if each.name == section and each.takes)}
    every = (setting for each in sections() for setting in each.settings if not section or each.name in places)
    return tuple(setting for setting in every if setting.key == key)


def close_to(name: str) -> list[str]:
    """Names that may have been meant, the closest first."""
    known = {}
    for section in sections():
        known[section.name] = section.name
        for setting in section.settings:
            known[setting.name] = setting.name
            known.setdefault(setting.key, setting.name)
    return list(dict.fromkeys(known[each] for each in difflib.get_close_matches(name.lower(), known, 3, 0.7)))


def _sections(name: str, form: Form, endpoint: Form) -> Iterator[SectionAbout]:
    """The section of a form, then the tables within it; those that are as another section's are named there."""
    several, body = "items" in form, form.get("items", form)
    head = f"[[{name}]]" if several else f"[{name}]"
    keys, takes = body["properties"], ""
    if name != "endpoint" and endpoint["properties"].keys() <= keys.keys():
        keys, takes = {key: each for key, each in keys.items() if key not in endpoint["properties"]}, "endpoint"
    settings = tuple(_setting(name, key, each, head, key in body.get("required", ())) for key, each in keys.items())
    yield SectionAbout(name, head, body["description"], settings, takes)
    for key, each in keys.items():
        if "properties" in each.get("items", each) and not takes:
            yield from _sections(f"{name}.{key}", each, endpoint)


def _setting(section: str, key: str, form: Form, head: str, required: bool) -> Setting:
    assert "examples" in form, f"{section}.{key}: Field(examples=[…])"
    example = form["examples"][0]
    if "properties" in form.get("items", ()):
        head, lines = f"[[{section}.{key}]]", [f"{name} = {toml(value)}" for name, value in example[0].items()]
    else:
        lines = [f"{key} = {toml(example)}"]
    return Setting(
        f"{section}.{key}",
        key,
        kind(form),
        required,
        toml(form["default"]) if "default" in form else "",
        form["description"],
        "\n".join([head, *lines]),
        f"docs/{PAGES[section]}",
    )


def toml(value: Any) -> str:
    """A value as a job file writes it, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return dumps(value, ensure_ascii=False)


def kind(form: Form) -> str:
    """The type of a value and its range, in words."""
    if "anyOf" in form:
        return ", or ".join(map(kind, form["anyOf"]))
    if "const" in form:
        return toml(form["const"])
    if "enum" in form:
        *others, last = map(toml, form["enum"])
        return f"{', '.join(others)} or {last}"
    if form["type"] == "array":
        items = kind(form["items"])
        return f"{items}s" if items == "table" else f"list of {'texts' if items == 'text' else items}"
    if form["type"] == "object":
        return "table" if "properties" in form or "additionalProperties" not in form else "table of texts"
    return _KINDS[form["type"]] + _range(form)


_KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}


def _range(form: Form) -> str:
    least, above, most, below = (
        f"{form[key]:,}" if key in form else ""
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    )
    begin = f" from {least}" if least else f" above {above}" if above else ""
    if most or below:
        return f"{begin} to {most}" if most else f"{begin} to below {below}"
    return f", {least} or more" if least else begin


def _plain(name: str) -> str:
    return name.replace("[", "").replace("]", ".").replace(" ", "").strip(".").replace("..", ".").lower()
