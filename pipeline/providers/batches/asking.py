"""How a batch service is asked: by the connection of its account, for JSON objects, with an end to every wait."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import httpx

from pipeline.prompts import Prompt
from pipeline.providers.batches.base import RemoteBatch
from pipeline.providers.connections import Pieces
from pipeline.providers.foreign import load
from pipeline.providers.transport import Lost, Response
from pipeline.records import Failure, Lane, Reply

T = TypeVar("T")

MOST_WAIT_S = 3600.0
"""Whatever a refusal asks for: one of the storage asked for 9223372036854775807 s."""
MOST_BATCH_BYTES = 256 * 2**20
"""Of what is told of one batch, or of a hundred: results may stand in it twice."""


class Speaker(Protocol):
    """What a `Connection` does for its batches."""

    async def exchange(
        self,
        url: httpx.URL,
        content: bytes | Pieces | None = None,
        *,
        more: Mapping[str, str] | None = None,
        delete: bool = False,
        most_bytes: int = MOST_BATCH_BYTES,
    ) -> Response | Lost:
        """One request."""
        ...

    async def fetch(self, url: httpx.URL, write: Callable[[bytes], object]) -> Response | Lost:
        """Lines of any number."""
        ...

    async def insist(self, ask: Callable[[], Awaitable[T | Failure]]) -> T | Failure:
        """Once more with another key."""
        ...

    async def linked(self, prompt: Prompt, batched: bool) -> Prompt | Failure:
        """The prompt with its largest files uploaded."""
        ...

    def failure(self, answer: Response | Lost) -> Failure:
        """What a request that failed means."""
        ...

    def outcome(self, response: Response, prompt: Prompt, model: str, *, lane: Lane | None = None) -> Reply | Failure:
        """What a response says."""
        ...


class Asking:
    """One account's batch service. `root` is what comes before every path."""

    def __init__(self, speaker: Speaker, root: httpx.URL) -> None:
        self.speaker, self.root = speaker, root

    def at(self, path: str) -> httpx.URL:
        """Where something is."""
        return httpx.URL(f"{self.root}/{path}")

    async def told(
        self,
        url: httpx.URL,
        content: bytes | Pieces | None = None,
        *,
        more: Mapping[str, str] | None = None,
        delete: bool = False,
    ) -> dict[str, Any] | Failure:
        """The JSON object of an answer that says it succeeded, empty where it has no body; else a failure."""

        async def ask() -> dict[str, Any] | Failure:
            answer = await self.speaker.exchange(url, content, more=more, delete=delete, most_bytes=MOST_BATCH_BYTES)
            if isinstance(answer, Lost) or answer.lost or not 200 <= answer.status < 300:
                return self.meaning(answer)
            told = load(answer.body) if answer.body.strip() else {}
            return told if isinstance(told, dict) else self.meaning(answer)

        return await self.speaker.insist(ask)

    def meaning(self, answer: Response | Lost, of_key: bool = True) -> Failure:
        """What a request that failed means; see `Meaning`. A condition of a file is none of the key."""
        failure = self.speaker.failure(answer)
        if failure.retry_after_s is not None:
            failure = replace(failure, retry_after_s=min(failure.retry_after_s, MOST_WAIT_S))
        if failure.kind == "auth" and (not of_key or (failure.http_status == 400 and "File" in failure.message)):
            return replace(failure, kind="reject", error_kind="file")
        return failure

    def named(self, batch: RemoteBatch | None, name: str) -> RemoteBatch | Failure:
        """The batch that was asked after, and no other one."""
        return batch if batch is not None and batch.name == name else self.unreadable("batch")

    def unreadable(self, what: str) -> Failure:
        """An answer that succeeded and does not say what it should."""
        return Failure("transient", "malformed_reply", f"what the service says of a {what} cannot be read")
