"""Explicit caches, as the Developer API and Vertex AI have them: `cachedContents`, and requests that name one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.prefixes import Prefix
from pipeline.prompts import Prompt
from pipeline.providers.foreign import load, mapping, string, whole_number
from pipeline.records import Failure

HELD = ("systemInstruction", "tools", "toolConfig")
"""Fields of a request that stand in the cache, and not in a request that names it: 400."""

_NAME = re.compile(r"(?:projects/\w[\w.:-]*/locations/\w[\w-]*/)?cachedContents/[\w-]{1,200}", re.ASCII)
"""It becomes part of addresses that the key goes to."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A cache as the service tells of it: its name, what it counts in it, and when it ends, seconds since the epoch."""

    name: str
    tokens: int
    ends_at: float


@dataclass(slots=True)
class Held:
    """What requests of one model may begin with at a service; `name` is empty while there is no such cache."""

    prefix: Prefix
    name: str = ""

    def serves(self, prompt: Prompt) -> bool:
        """Whether a request for `prompt` may name it."""
        return bool(self.name) and self.prefix.begins(prompt)


def creation(prefix: Prefix, request: Mapping[str, Any], model: str, ttl_s: int) -> dict[str, Any]:
    """The body that makes a cache of what `request`, a prompt of the prefix, begins with."""
    contents = request["contents"][: len(prefix.turns)]
    held = {name: request[name] for name in HELD if name in request}
    return {"model": model, **({"contents": contents} if contents else {}), **held, "ttl": f"{ttl_s}s"}


def naming(held: Held, request: Mapping[str, Any]) -> dict[str, Any]:
    """The same request, with the name of the cache in the place of what that holds."""
    rest = {name: value for name, value in request.items() if name not in HELD}
    return {**rest, "contents": request["contents"][len(held.prefix.turns) :], "cachedContent": held.name}


def is_gone(failure: Failure) -> bool:
    """Whether a request was refused since the cache that it named is not there any more, or not its project's."""
    return failure.http_status in (400, 403, 404) and "cached" in failure.message.lower()


def read_cached(body: bytes) -> Cached | None:
    """A cache of a response; None for anything else."""
    told = mapping(load(body))
    try:
        ends_at = datetime.fromisoformat(string(told.get("expireTime"))).timestamp()
    except ValueError:
        return None
    name, tokens = string(told.get("name")), whole_number(mapping(told.get("usageMetadata")).get("totalTokenCount"))
    return Cached(name, max(0, tokens or 0), ends_at) if _NAME.fullmatch(name) else None
