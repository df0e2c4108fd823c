"""Job files for tests: written from sections, small, and valid unless told otherwise."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.job import Job, load

Sections = dict[str, dict[str, Any]]

PLAIN: Sections = {
    "input": {"path": "topics.csv"},
    "prompt": {"template": "Say {{ topic }}"},
    "model": {"name": "gemini-3.5-flash-lite"},
    "output": {"path": "results/out.jsonl"},
}
"""One call a row."""

CHUNKED: Sections = {
    **PLAIN,
    "input": {"path": "texts.jsonl", "text": "body"},
    "prompt": {"template": "{{ chunk }}/{{ chunks }}: {{ text }}"},
    "chunk": {"max_tokens": 64},
    "reduce": {"template": "Merge:\n{{ parts }}"},
}
"""Long texts: map, then reduce."""


def write_job(directory: Path, base: Sections = PLAIN, **sections: Mapping[str, Any] | None) -> Path:
    """Write `base` with the keys of `sections` laid over it; None leaves the key, or the whole section, out."""
    merged = {
        name: {**base.get(name, {}), **(sections.get(name) or {})}
        for name in {**base, **sections}
        if name not in sections or sections[name] is not None
    }
    lines = []
    for name, values in merged.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    path = directory / "job.toml"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def make_job(directory: Path, base: Sections = PLAIN, **sections: Mapping[str, Any] | None) -> Job:
    """The job of `write_job`, loaded."""
    return load(write_job(directory, base, **sections))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return str(value)  # TOML writes inf and nan as Python does
    return json.dumps(value, ensure_ascii=False)
