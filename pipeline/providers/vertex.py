"""Gemini on Vertex AI: the Developer API's bodies, for a project and a location, borne by tokens that end.

In express mode a key stands for all three. The addresses and bodies are google-genai's (`vertexai=True`, 3.6.1).
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from pipeline.prefixes import Prefix
from pipeline.prompts import Params, Prompt, said
from pipeline.providers.answers import bare_model
from pipeline.providers.base import Account
from pipeline.providers.caches import Cached
from pipeline.providers.connection import Connected, succeeded
from pipeline.providers.foreign import load, mapping, mappings, string
from pipeline.providers.gemini import GeminiConnection, request
from pipeline.providers.google_auth import Token
from pipeline.providers.transport import Lost
from pipeline.records import Failure, Lane, Reply
from pipeline.targets import Target

_VERSIONS = {"v1beta": "v1beta1"}
_COUNTED = ("contents", "systemInstruction", "generationConfig", "tools")

T = TypeVar("T")


class Vertex(Connected):
    """The provider: every target on Vertex AI."""

    name = "vertex"

    def connect(self, account: Account, target: Target) -> "VertexConnection":
        """See `VertexConnection`."""
        return VertexConnection(account, target)

    async def list_models(self, target: Target) -> list[str] | Failure:
        """The target's own model, if it counts tokens for this project; if it is not there, the others.

        Vertex AI lists what Google publishes, not what a project may use at a location.
        """
        found = await self.count_tokens(Prompt(0, "0", "answer", said("Hello"), Params(), 1), target)
        if isinstance(found, Failure):
            others = await self.open(target).list_models() if found.http_status == 404 else found
            return found if isinstance(others, Failure) else [name for name in others if name != target.model]
        return [target.model]


class VertexConnection(GeminiConnection):
    """One identity at one base URL, for one project and location; raises as `GeminiConnection`.

    A token that the service refuses is replaced and the request sent once more: nothing was billed.
    """

    provider = "vertex"

    def __init__(self, account: Account, target: Target) -> None:
        self._tokens = account.tokens
        project, _, location = target.project.partition("/")
        self._place = f"projects/{project}/locations/{location}/" if self._tokens else ""
        super().__init__(
            account.wire,
            api_key=account.key,
            base_url=target.base_url,
            api_version=_VERSIONS.get(account.api_version, account.api_version),
            headers=self._tokens.headers if self._tokens else None,
            timeout_s=account.timeout_s,
            labels=account.labels,
            stream=account.stream,
        )

    def authorization(self, key: str) -> dict[str, str]:
        """An access token is the bearer's; the two never go together."""
        return {"authorization": f"Bearer {key}"} if self._tokens else super().authorization(key)

    def path(self, model: str) -> str:
        """A model of Google's by its name alone, another by as much of its resource name as is given."""
        if model.startswith("projects/"):
            return model
        return self._place + (model if "/" in model else f"publishers/google/models/{model}")

    @property
    def free_url(self) -> httpx.URL:
        """One model, of all that Google publishes."""
        return httpx.URL(f"{self._root}/publishers/google/models", params={"pageSize": "1"})

    async def generate(self, prompt: Prompt, model: str, lane: Lane = "standard") -> Reply | Failure:
        """See `Connection`."""
        return await self._bearing(lambda: super(VertexConnection, self).generate(prompt, model, lane))

    async def count_tokens(self, prompt: Prompt, model: str) -> int | Failure:
        """See `Connection`; the body is the request itself, as far as it is counted."""

        def body() -> dict[str, object]:
            return {name: value for name, value in request(prompt).items() if name in _COUNTED}

        return await self._bearing(lambda: self.counted(self.url(model, "countTokens"), prompt, body))

    @property
    def parent(self) -> str:
        """See `GeminiConnection`."""
        return self._place

    async def create_cache(self, prefix: Prefix, prompt: Prompt, model: str, ttl_s: int) -> Cached | Failure:
        """See `GeminiConnection`; in express mode there is no project to keep it for."""
        return await self._bearing(lambda: super(VertexConnection, self).create_cache(prefix, prompt, model, ttl_s))

    async def find_cache(self, name: str) -> Cached | Failure:
        """See `GeminiConnection`."""
        return await self._bearing(lambda: super(VertexConnection, self).find_cache(name))

    async def prolong_cache(self, name: str, ttl_s: int) -> Cached | Failure:
        """See `GeminiConnection`."""
        return await self._bearing(lambda: super(VertexConnection, self).prolong_cache(name, ttl_s))

    async def end_cache(self, name: str) -> Failure | None:
        """See `GeminiConnection`."""
        return await self._bearing(lambda: super(VertexConnection, self).end_cache(name))

    def batches(self) -> None:
        """None: Vertex AI's batches read and write buckets of the project, which this does not speak."""
        return

    async def list_models(self) -> list[str] | Failure:
        """What Google publishes, whoever may use it: one page."""
        return await self._bearing(self._published)

    async def _published(self) -> list[str] | Failure:
        answer = await self.exchange(httpx.URL(f"{self._root}/publishers/google/models", params={"pageSize": "1000"}))
        if isinstance(answer, Lost) or not succeeded(answer):
            return self.failure(answer)
        listed = mappings(mapping(load(answer.body)).get("publisherModels"))
        return [bare_model(string(model.get("name"))) for model in listed]

    async def is_emulator(self) -> bool:
        """See `Connection`; where there is no token, nobody is asked."""

        async def ask() -> bool | Failure:
            return await super(VertexConnection, self).is_emulator()

        return await self._bearing(ask) is True

    async def _bearing(self, send: Callable[[], Awaitable[T | Failure]]) -> T | Failure:
        """Send with a token that is good, and once more with the next one if it is refused all the same."""
        if self._tokens is None:
            return await send()
        token = await self._tokens.current()
        if isinstance(token, Failure):
            return token
        found = await self._sent(send, token)
        if not isinstance(found, Failure) or found.http_status != 401:
            return found
        other = await self._tokens.instead_of(token)
        if isinstance(other, Failure):
            return other
        return found if other.text == token.text else await self._sent(send, other)

    def _sent(self, send: Callable[[], Awaitable[T | Failure]], token: Token) -> Awaitable[T | Failure]:
        if token.text != self._key:
            self.use_key(token.text)
        return send()
