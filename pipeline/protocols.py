"""The protocols that a job may name: whose they are, their usual address and variables, and what they cannot say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

ProviderName = Literal["gemini", "openai", "vertex"]


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


_PLACED = {
    f"endpoint.{key}": Lack("leave it out, or set [endpoint] provider = 'vertex'") for key in ("project", "location")
}

PROTOCOLS: Mapping[ProviderName, Protocol] = {
    "gemini": Protocol(
        "Google",
        "https://generativelanguage.googleapis.com",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        "GOOGLE_GEMINI_BASE_URL",
        lacks=_PLACED,
    ),
    "openai": Protocol(
        "OpenAI",
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        "OPENAI_BASE_URL",
        lacks={
            **_PLACED,
            "model.top_k": Lack("leave it out"),
            "model.safety": Lack("leave it out: what is filtered is set up at the service"),
            "input.video": Lack("leave it out, or ask Gemini in its own protocol"),
            "model.thinking": Lack('name a level, as thinking = "low"', lambda value: isinstance(value, int)),
            "model.response_mime_type": Lack(
                'leave it out, or ask for "application/json"', lambda value: value == "text/x.enum"
            ),
            "model.media_resolution": Lack("leave it out: the service chooses it"),
            "model.labels": Lack("leave it out"),
            "model.prefix_cache": Lack("leave it out: what the service caches itself is cached", bool),
            "tools.google_search": Lack("leave it out", lambda value: value is not False),
            "tools.url_context": Lack("leave it out", bool),
            "tools.code_execution": Lack("leave it out", bool),
            "tools.mode": Lack('say "any" or "auto"', lambda value: value == "validated"),
            "endpoint.api_version": Lack("leave it out: the version stands in the path of base_url"),
        },
    ),
    "vertex": Protocol(
        "Vertex AI",
        "https://aiplatform.googleapis.com",
        (),  # an express mode key is one that the job names
        "GOOGLE_VERTEX_BASE_URL",
        lacks={
            "model.lane": Lack(
                "leave it out, or ask Gemini's Developer API: Vertex AI's batches go by way of Cloud Storage, and it is"
                " asked for flex by a header that is not sent",
                lambda value: value != "standard",
            )
        },
    ),
}

GLOBAL = "global"
"""The location of Vertex AI that is none, and the usual one, as google-genai has it."""


def vertex_url(location: str) -> str:
    """Where Vertex AI answers for a location: a region, `us` or `eu` for any region of theirs, or `global`."""
    if location == GLOBAL:
        return PROTOCOLS["vertex"].base_url
    if location in ("us", "eu"):
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


def usual_variables(base_url: str) -> tuple[str, ...]:
    """The variables of a key for the service at an address; none for a relay, and for a server of one's own."""
    try:
        host = urlsplit(base_url).hostname
    except ValueError:  # no address, which is told elsewhere
        return ()
    return next((each.key_variables for each in PROTOCOLS.values() if urlsplit(each.base_url).hostname == host), ())
