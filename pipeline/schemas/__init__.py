"""The JSON Schema of an answer: how it is written, what of it a service is told, and what an answer is to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.schemas import dsl, forms
from pipeline.schemas.answers import Judge, Judged
from pipeline.schemas.columns import Column, columns
from pipeline.schemas.forms import gemini, held_here, openai, openapi, requires_itself
from pipeline.schemas.mistake import SchemaError

__all__ = [
    "Column",
    "Judged",
    "Schema",
    "SchemaError",
    "as_told",
    "gemini",
    "held_here",
    "openai",
    "openapi",
    "requires_itself",
    "schema_of",
]


def as_told(text: str | None) -> str:
    """The JSON of a schema without what no service is told, of which an estimate counts the tokens; "" without one."""
    return orjson.dumps(gemini(orjson.loads(text))).decode() if text else ""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that can be asked for; `text` is its JSON, in the order in which it was written."""

    text: str
    _judge: Judge = field(compare=False, repr=False)

    @property
    def value(self) -> dict[str, Any]:
        """The same as a value."""
        value: dict[str, Any] = orjson.loads(self.text)
        return value

    @property
    def is_of_object(self) -> bool:
        """Whether an answer is always an object."""
        return self.value.get("type") == "object"

    def judge(self, answer: str) -> Judged:
        """See `Judge.judge`."""
        return self._judge.judge(answer)

    def columns(self, prefix: str = "") -> tuple[Column, ...]:
        """See `columns`."""
        return columns(self.value, prefix)


def schema_of(written: str | Mapping[str, Any]) -> Schema:
    """Of one line (see `dsl.read`) or of JSON Schema. Raises `SchemaError` for what cannot be asked for."""
    value = dsl.read(written) if isinstance(written, str) else dict(written)
    forms.check(value)
    if "$ref" in value:  # a root that is a reference is no object to some
        value = {**forms.resolved(value, value), "$defs": value.get("$defs", {})}
    try:
        text = orjson.dumps(value).decode()
    except TypeError as error:  # a date of TOML
        raise SchemaError(f"it is no JSON: {error}") from None
    return Schema(text, Judge(value))
