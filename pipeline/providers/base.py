"""What the dispatcher needs of a provider."""

from typing import Protocol

from pipeline.records import Prompt, Reply, Verdict


class Provider(Protocol):
    """One service, one project (key), one base URL. Failures come back as a `Verdict`; nothing is raised for them."""

    endpoint: str
    """Name of the service and host for logs and results; never the key."""

    async def generate(self, prompt: Prompt) -> Reply | Verdict:
        """Make one request; never retries, never waits for quota."""
        ...

    def parse(self, raw: bytes) -> Reply:
        """Read a stored response body again; an unreadable one becomes a `malformed_reply`, never an exception."""
        ...

    async def count_tokens(self, prompt: Prompt) -> int | Verdict:
        """Input tokens of `prompt` as the service counts them."""
        ...
