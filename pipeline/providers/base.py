"""What the pipeline asks of whoever speaks a service's protocol. Adding one: `docs/architecture.md`."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.prompts import Prompt
from pipeline.providers.google_auth import Tokens
from pipeline.providers.transport import READ_TIMEOUT_S, Wire
from pipeline.providers.uploads import INLINE_BYTES, UploadBook
from pipeline.records import Failure, Reply
from pipeline.targets import Target

Renew = Callable[[], Awaitable[str]]
"""The key as it is now in the place that it came from, or "" where there is none; never raises for a failure."""


@dataclass(frozen=True, slots=True)
class Account:
    """How a project is reached at a service; `timeout_s` limits one exchange."""

    wire: Wire
    key: str = field(repr=False)
    api_version: str = "v1beta"
    timeout_s: float = READ_TIMEOUT_S
    labels: tuple[tuple[str, str], ...] = ()  # of every request, for the project's own bookkeeping
    stream: bool = False  # answers come in pieces, and `timeout_s` limits the silence between two
    renew: Renew | None = None  # asked when the service refuses the key
    tokens: Tokens | None = None  # in the place of a key that does not end
    inline_bytes: int = INLINE_BYTES  # of the files of one request that are sent within it
    book: UploadBook = field(default_factory=UploadBook)  # of those that are uploaded


Accounts = Mapping[str, Account]
"""By `Target.access`."""


class Provider(Protocol):
    """One protocol, spoken to every target of it. Nothing here retries, waits for quota, or raises for a failure."""

    @property
    def name(self) -> str:
        """What targets name it by; the part of an endpoint before the `@`."""
        ...

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        """Make one request."""
        ...

    def parse(self, raw: bytes) -> Reply:
        """Read a stored response body again; never raises."""
        ...

    async def count_tokens(self, prompt: Prompt, target: Target) -> int | Failure:
        """Input tokens as the target's model counts them, free of charge."""
        ...

    async def list_models(self, target: Target) -> list[str] | Failure:
        """Names of the models that the target's key may use, in the service's order."""
        ...

    async def is_emulator(self, target: Target) -> bool:
        """Whether our emulator answers there; free of charge."""
        ...


Providers = Mapping[str, Provider]
"""By name."""
