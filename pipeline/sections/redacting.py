"""The section of a job file that says what is not sent."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.sections.base import Section

HiddenKind = Literal["email", "phone", "cn_id", "card", "api_key", "ip", "iban"]


class Redact(Section):
    """What is replaced by placeholders such as `[EMAIL_1]` in every column before anything is sent."""

    kinds: list[HiddenKind] = Field(
        default_factory=list,
        examples=[["email", "phone"]],
        description="`email`, `phone`, `api_key`, `ip`; and, told by their check digits, `cn_id` (Chinese identity"
        " numbers), `card` and `iban`",
    )
    patterns: dict[str, str] = Field(
        default_factory=dict,
        examples=[{"order": "ORD-[0-9]{6}"}],
        description="further ones by name, as Python's regular expressions",
    )
    restore: bool = Field(False, description="put the values back into the answers when the output is written")

    @field_validator("patterns")
    @classmethod
    def _each_finds_something(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
                raise ValueError(f'"{name}" is no name: small letters, digits and _ are, as they stand in [NAME_1]')
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name} is no regular expression: {error}") from None
            if compiled.search(""):
                raise ValueError(f"{name} finds nothing at all in an empty text: it would be everywhere")
        return patterns

    @model_validator(mode="after")
    def _hides_something(self) -> "Redact":
        if not self.kinds and not self.patterns:
            raise ValueError("it names neither kinds nor patterns, so nothing would be hidden")
        if both := set(self.kinds) & self.patterns.keys():
            raise ValueError(f"{min(both)} is a kind and a pattern: call the pattern otherwise")
        return self
