"""Reads the replies that a run directory keeps: each by the provider that gave it."""

from collections.abc import Callable, Mapping

from pipeline.errors import RunStateError
from pipeline.providers.answers import parse_reply
from pipeline.providers.base import Providers
from pipeline.records import Parse, Reply
from pipeline.targets import provider_of

_SPOKEN: Mapping[str, Callable[[bytes], Reply]] = {
    "gemini": parse_reply,
    "openai": parse_reply,
    "vertex": parse_reply,
    "": parse_reply,
}
"""What this version reads, whatever a job asks now; a reply without an endpoint is of the first provider there was."""


def parser_of(providers: Providers) -> Parse:
    """Reads replies of these providers, and of all that this version knows.

    What it returns raises `RunStateError` for a reply of any other.
    """
    parsers = {**_SPOKEN, **{name: provider.parse for name, provider in providers.items()}}

    def parse(raw: bytes, endpoint: str) -> Reply:
        read = parsers.get(provider_of(endpoint))
        if read is None:
            raise RunStateError(
                f"a reply that is kept here came from {endpoint}: this version does not speak its protocol",
                "use the version that the run was made with",
            )
        return read(raw)

    return parse


parse_stored: Parse = parser_of({})
