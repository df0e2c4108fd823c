"""The section of a job file that says what the model may do besides answering: search, read, calculate, call."""

import re
from typing import Any, Literal

import orjson
from pydantic import Field, field_validator, model_validator

from pipeline.sections.base import Section

_NAME = re.compile(r"[A-Za-z_][\w.:\-]{0,63}", re.ASCII)


class FunctionSection(Section):
    """A function that the model may call: its call is the answer, and nothing is run."""

    name: str = Field(examples=["look_up_order"], description="letters, digits and _ . : -, at most 64")
    description: str = Field(
        "", examples=["Looks up an order by its number."], description="what it does, and when it is to be called"
    )
    parameters: dict[str, Any] | None = Field(
        None,
        examples=[{"type": "object", "properties": {"number": {"type": "string"}}}],
        description="its arguments, as a JSON Schema of an object",
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f'"{name}" is no name of a function: letters, digits and _ . : -, at most 64 of them')
        return name

    @field_validator("parameters")
    @classmethod
    def _is_a_schema(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters is not None and parameters.get("type") != "object":
            raise ValueError('parameters are a JSON Schema of an object: { type = "object", properties = { … } }')
        try:
            orjson.dumps(parameters)
        except TypeError:
            raise ValueError("parameters hold what JSON has no word for") from None
        return parameters


class Tools(Section):
    """What the model may do besides answering."""

    google_search: bool | dict[str, Any] = Field(
        False,
        examples=[True],
        description="search the web; a table is sent as it stands, e.g. { searchTypes = { webSearch = {} } }",
    )
    url_context: bool = Field(False, description="read the pages whose addresses stand in the prompt")
    code_execution: bool = Field(False, description="write Python and run it at the service")
    function: list[FunctionSection] = Field(
        default_factory=list,
        max_length=128,
        examples=[[{"name": "look_up_order"}]],
        description="functions that it may call: `[[tools.function]]`",
    )
    mode: Literal["auto", "any", "none", "validated"] | None = Field(
        None,
        examples=["any"],
        description="whether a function must be called: `any` says so, `auto` leaves it to the model",
    )
    allowed: list[str] = Field(
        default_factory=list,
        examples=[["look_up_order"]],
        description='with `mode` "any" or "validated": only these functions may be called',
    )

    @property
    def reads(self) -> bool:
        """Whether the model may read what is not in the prompt: pages, or what its own code prints."""
        return self.google_search is not False or self.url_context or self.code_execution

    @model_validator(mode="after")
    def _functions_are_told_apart(self) -> "Tools":
        names = [function.name for function in self.function]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"two functions are called {name}")
        if unknown := sorted(set(self.allowed) - set(names)):
            raise ValueError(f"`allowed` names {unknown[0]!r}, which is no [[tools.function]]")
        if self.allowed and self.mode not in ("any", "validated"):
            raise ValueError('`allowed` needs mode = "any" or "validated"')
        if self.mode and not names:
            raise ValueError("`mode` is about functions, and there is no [[tools.function]]")
        if not (names or self.reads):
            raise ValueError("[tools] names no tool")
        return self
