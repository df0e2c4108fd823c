"""The protocols that a job may name: whose they are, their usual address and variables, and what they cannot say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

ProviderName = Literal["gemini", "openai"]


class Lack(NamedTuple):
    """A setting that a protocol has no word for, and what to write instead; `only`: of which of its values that is."""

    instead: str
    only: Callable[[object], bool] = lambda value: True


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a job gets without naming it, and the settings that are refused (`section.key`)."""

    owner: str
    base_url: str
    key_variables: tuple[str, ...]  # the first that is set holds the key
    base_url_variable: str  # wins over `[endpoint] base_url`
    lacks: Mapping[str, Lack] = field(default_factory=dict)


PROTOCOLS: Mapping[ProviderName, Protocol] = {
    "gemini": Protocol(
        "Google",
        "https://generativelanguage.googleapis.com",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        "GOOGLE_GEMINI_BASE_URL",
    ),
    "openai": Protocol(
        "OpenAI",
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        "OPENAI_BASE_URL",
        {
            "model.top_k": Lack("leave it out"),
            "model.safety": Lack("leave it out: what is filtered is set up at the service"),
            "model.thinking": Lack('name a level, as thinking = "low"', lambda value: isinstance(value, int)),
            "model.response_mime_type": Lack(
                'leave it out, or ask for "application/json"', lambda value: value == "text/x.enum"
            ),
            "endpoint.api_version": Lack("leave it out: the version stands in the path of base_url"),
        },
    ),
}
