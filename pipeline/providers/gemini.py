"""Gemini's Developer API, and every relay that speaks it: `models.generateContent`, one request, one answer.

`build_request` is pure; `GeminiConnection` puts one exchange around it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from math import ceil
from typing import Any, ClassVar
from urllib.parse import quote

import anyio
import httpx
import orjson

from pipeline.prefixes import Prefix
from pipeline.prompts import Params, Part, Prompt, Text, Tools
from pipeline.protocols import PROTOCOLS, ProviderName
from pipeline.providers.answers import bare_model
from pipeline.providers.base import Account
from pipeline.providers.batches.base import Batches
from pipeline.providers.batches.gemini import GeminiBatches
from pipeline.providers.caches import Cached, Held, creation, is_gone, naming, read_cached
from pipeline.providers.connection import Connected, Connection, checked_url, succeeded
from pipeline.providers.failures import misses_a_file
from pipeline.providers.files import Files
from pipeline.providers.foreign import load, mapping, mappings, string, whole_number
from pipeline.providers.payload import base64_of, beyond, built
from pipeline.providers.transport import READ_TIMEOUT_S, STREAM_S, Lost, Wire
from pipeline.providers.uploads import BATCHED_BYTES, BATCHED_S, INLINE_BYTES, MARGIN_S, UploadBook
from pipeline.records import Failure, Lane, Media, Reply
from pipeline.schemas import gemini as gemini_schema
from pipeline.schemas import openapi
from pipeline.targets import Target

API_VERSION = "v1beta"
MOST_COUNTED_TOKENS = 10_000_000
MOST_PAGES = 50
MOST_MODELS = 10_000
"""Of a listing of models: Google's has one page of some sixty."""


class Gemini(Connected):
    """The provider: every target that speaks this protocol."""

    name = "gemini"

    def connect(self, account: Account, target: Target) -> "GeminiConnection":
        """See `GeminiConnection`."""
        connection = GeminiConnection(
            account.wire,
            api_key=account.key,
            base_url=target.base_url,
            api_version=account.api_version,
            timeout_s=account.timeout_s,
            labels=account.labels,
            stream=account.stream,
        )
        connection.upload_beyond(account.inline_bytes, target.account, account.book)
        return connection


class GeminiConnection(Connection):
    """One key at one base URL, which may have a path (a relay) and may already end in `/v1` or `/v1beta`.

    That then wins over `api_version`; `timeout_s` is told to the server as `X-Server-Timeout`. Raises `JobError` for a
    base URL that cannot be used.
    """

    provider: ClassVar[ProviderName] = "gemini"

    def __init__(
        self,
        wire: Wire,
        *,
        api_key: str,
        base_url: str = PROTOCOLS["gemini"].base_url,
        api_version: str = API_VERSION,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
        labels: tuple[tuple[str, str], ...] = (),
        stream: bool = False,
    ) -> None:
        self._labels = {"labels": dict(labels)} if labels else {}
        self._urls: dict[tuple[str, str], httpx.URL] = {}
        self._files: Files | None = None
        self._inline_bytes = INLINE_BYTES
        self.caches: dict[str, Held] = {}  # by model
        super().__init__(
            wire,
            _root(base_url, api_version, self.provider),
            api_key=api_key,
            headers={**_server_timeout(STREAM_S if stream else timeout_s), **(headers or {})},
            timeout_s=timeout_s,
            stream=stream,
        )

    def authorization(self, key: str) -> dict[str, str]:
        """Google's header for a key."""
        return {"x-goog-api-key": key}

    def server_timeout(self, timeout_s: float) -> dict[str, str]:
        """See `Connection`."""
        return _server_timeout(STREAM_S if self._stream else timeout_s)

    async def generate(self, prompt: Prompt, model: str, lane: Lane = "standard") -> Reply | Failure:
        """See `Connection`. A file that the service has lost is uploaded once more: nothing was billed."""
        sent = await self.linked(prompt)
        outcome = sent if isinstance(sent, Failure) else await self._asked(sent, prompt, model, lane)
        if isinstance(sent, Failure) or self._files is None or not misses_a_file(outcome):
            return outcome
        ours = [file for file in sent.media if file.uri and file.size_bytes]
        for file in ours:
            self._files.forget(file)
        again = await self.linked(_at_places(sent, dict.fromkeys(ours, "")))
        return again if isinstance(again, Failure) else await self._asked(again, prompt, model, lane)

    async def _asked(self, sent: Prompt, prompt: Prompt, model: str, lane: Lane) -> Reply | Failure:
        url = self.url(model, "streamGenerateContent?alt=sse" if self._stream else "generateContent")
        held = self.caches.get(model)
        if held is not None and held.serves(prompt):
            outcome = await self._ask_briefly(held, url, sent, prompt, model, lane)
            if outcome is not None:
                return outcome
        body = await built(sent, lambda: orjson.dumps(request(sent) | self._labels | _tier(lane)))
        if isinstance(body, Failure):
            return body
        return await self.ask(url, body, prompt, model, lane)

    async def _ask_briefly(
        self, held: Held, url: httpx.URL, sent: Prompt, prompt: Prompt, model: str, lane: Lane
    ) -> Reply | Failure | None:
        """A request that names a cache; None where that is gone, or nobody was let in: nothing was billed."""
        name = held.name
        body = await built(sent, lambda: orjson.dumps(naming(held, request(sent)) | self._labels | _tier(lane)))
        if isinstance(body, Failure):
            return body
        outcome = await self._ask(url, body, prompt, model, lane)
        if isinstance(outcome, Failure) and (is_gone(outcome) or outcome.kind == "auth"):
            if is_gone(outcome) and held.name == name:
                held.name = ""
            return None
        return outcome

    @property
    def parent(self) -> str:
        """Of the caches: what their names begin with, before `cachedContents`."""
        return ""

    async def create_cache(self, prefix: Prefix, prompt: Prompt, model: str, ttl_s: int) -> Cached | Failure:
        """Keep what `prompt` begins with for so long."""
        body = orjson.dumps(creation(prefix, request(prompt), self.path(model), ttl_s))
        return await self._cached(httpx.URL(f"{self._root}/{self.parent}cachedContents"), body)

    async def find_cache(self, name: str) -> Cached | Failure:
        """What there is under that name."""
        return await self._cached(httpx.URL(f"{self._root}/{name}"))

    async def prolong_cache(self, name: str, ttl_s: int) -> Cached | Failure:
        """Keep it for so long from now on."""
        return await self._cached(httpx.URL(f"{self._root}/{name}"), orjson.dumps({"ttl": f"{ttl_s}s"}), patch=True)

    async def end_cache(self, name: str) -> Failure | None:
        """Keep it no more."""
        answer = await self.exchange(httpx.URL(f"{self._root}/{name}"), delete=True)
        return self.failure(answer) if isinstance(answer, Lost) or not succeeded(answer) else None

    async def _cached(self, url: httpx.URL, body: bytes | None = None, patch: bool = False) -> Cached | Failure:
        answer = await self.exchange(url, body, patch=patch)
        if isinstance(answer, Lost) or not succeeded(answer):
            return self.failure(answer)
        return read_cached(answer.body) or self.failure(answer)

    def upload_beyond(self, inline_bytes: int, account: str, book: UploadBook) -> None:
        """Upload what a request has beyond so many bytes, for this account, and keep it in the book."""
        self._inline_bytes = inline_bytes
        self._files = Files(self, self._wire, self._root, account, book, self._timeout_s)

    async def delete_files(self) -> None:
        """See `Connection`."""
        if self._files is not None:
            await self._files.delete_all()

    async def linked(self, prompt: Prompt, batched: bool = False) -> Prompt | Failure:
        """See `Connection`: so many of its files that the others are not too much for one request.

        What was uploaded before and ends too soon for a batch is uploaded again.
        """
        if self._files is None or not prompt.media:
            return prompt
        least_s, inline_bytes = MARGIN_S, self._inline_bytes
        if batched:
            least_s, inline_bytes = BATCHED_S, min(inline_bytes, BATCHED_BYTES)
            prompt = _at_places(prompt, dict.fromkeys((file for file in prompt.media if file.size_bytes), ""))
        uris: dict[Media, str] = {}
        for file in beyond(prompt.media, inline_bytes):
            uri = await self._files.uri(file, least_s)
            if isinstance(uri, Failure):
                return uri
            uris[file] = uri
        return _at_places(prompt, uris) if uris else prompt

    def batches(self) -> Batches | None:
        """See `Connection`."""
        return GeminiBatches(
            self,
            self._wire,
            self._root,
            lambda prompt: batched_request(prompt) | self._labels,
            lambda model, method: self.url(bare_model(model), method),
            self._timeout_s,
        )

    async def count_tokens(self, prompt: Prompt, model: str) -> int | Failure:
        """See `Connection`."""
        model = bare_model(model)
        # Only this form counts the system instruction; the model inside is required though it stands in the URL.
        return await self.counted(
            self.url(model, "countTokens"),
            prompt,
            lambda: {"generateContentRequest": {"model": f"models/{model}", **request(prompt)}},
        )

    async def counted(self, url: httpx.URL, prompt: Prompt, make: Callable[[], Mapping[str, object]]) -> int | Failure:
        """What `countTokens` says to the body that `make` makes."""
        if self._files and beyond(prompt.media, self._inline_bytes):
            return Failure("reject", "file", "a prompt is not uploaded only to be counted", sent=False)
        body = await built(prompt, lambda: orjson.dumps(make()))
        if isinstance(body, Failure):
            return body
        answer = await self.exchange(url, body)
        if isinstance(answer, Lost) or not succeeded(answer):
            return self.failure(answer, prompt)
        total = whole_number(mapping(load(answer.body)).get("totalTokens"))
        if total is None:
            return self.failure(answer, prompt)
        if not 0 < total <= MOST_COUNTED_TOKENS:
            return Failure("transient", "malformed_reply", f"the service counts {total:,} tokens in a prompt")
        return total

    @property
    def free_url(self) -> httpx.URL:
        """One model."""
        return httpx.URL(f"{self._root}/models", params={"pageSize": "1"})

    async def list_models(self) -> list[str] | Failure:
        """Every model that the key may use for `generateContent`, in the service's order.

        Of a listing that does not end, those of `MOST_PAGES` pages and of one `timeout_s`.
        """
        models: dict[str, None] = {}
        page = ""
        until = anyio.current_time() + self._timeout_s
        for _ in range(MOST_PAGES):
            params = {"pageSize": "1000", **({"pageToken": page} if page else {})}
            answer = await self.exchange(httpx.URL(f"{self._root}/models", params=params))
            if isinstance(answer, Lost) or not succeeded(answer):
                return self.failure(answer)
            listing = load(answer.body)
            if not isinstance(listing, dict) or listing.get("error"):
                return self.failure(answer)
            for model in filter(_generates, mappings(listing.get("models"))):
                models[bare_model(string(model.get("name")))] = None
            page, last = string(listing.get("nextPageToken")), page
            if page in ("", last) or len(models) >= MOST_MODELS or anyio.current_time() >= until:
                break
        return list(models)

    def url(self, model: str, method: str) -> httpx.URL:
        """Where a method of a model is."""
        url = self._urls.get((model, method))
        if url is None:
            path = quote(self.path(model), safe="/")
            url = self._urls[model, method] = httpx.URL(f"{self._root}/{path}:{method}")
        return url

    def path(self, model: str) -> str:
        """How the service names a model."""
        return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def _tier(lane: Lane) -> dict[str, str]:
    """What a request says of its lane. It is no part of what is the same for every prompt of a step."""
    return {"serviceTier": lane} if lane == "flex" else {}


def _server_timeout(timeout_s: float) -> dict[str, str]:
    return {"x-server-timeout": str(ceil(timeout_s))}


def _root(base_url: str, api_version: str, provider: ProviderName) -> httpx.URL:
    url = checked_url(base_url, provider)
    path = url.path.rstrip("/")
    return url.copy_with(path=path if path.endswith(("/v1", "/v1beta", "/v1beta1")) else f"{path}/{api_version}")


# --- request ----------------------------------------------------------------------------------------------------------


def build_request(prompt: Prompt) -> bytes:
    """Body of `generateContent` for `prompt`; raises `NotSent`."""
    return orjson.dumps(request(prompt))


def request(prompt: Prompt) -> dict[str, Any]:
    """The same, as values."""
    contents = [{"role": turn.role, "parts": [_part(part) for part in turn.parts]} for turn in prompt.content]
    token = prompt.params.continuation
    if not token:
        return {"contents": contents, **_constant_part(prompt.params)}
    # Beside the contents, as google-genai 3.6.1 sends it; earlier ones are said to have put it into generationConfig.
    constant = _constant_part(replace(prompt.params, continuation=""))
    return {"contents": contents, **constant, "continuationToken": token}


def batched_request(prompt: Prompt) -> dict[str, Any]:
    """The same for a line of a batch. Raises `NotSent`, and `SchemaError` for a schema that `openapi` refuses.

    A schema is told in the older form: all 502 answers of a user's batch were broken in the other one (2026-08). An
    explicit cache is never named: it would end before the batch is answered.
    """
    asked = request(prompt)
    if prompt.params.schema:
        config = dict(asked["generationConfig"])
        del config["responseJsonSchema"]
        asked["generationConfig"] = config | {"responseSchema": _older(prompt.params.schema)}
    return asked


@lru_cache(maxsize=32)
def _older(schema: str) -> dict[str, Any]:
    return openapi(orjson.loads(schema))


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if part.uri:
        return {"fileData": {"mimeType": part.mime_type, "fileUri": part.uri}}
    return {"inlineData": {"mimeType": part.mime_type, "data": base64_of(part)}}


def _at_places(prompt: Prompt, uris: Mapping[Media, str]) -> Prompt:
    """The prompt with some of its files at these addresses."""

    def placed(part: Part) -> Part:
        return part if isinstance(part, Text) or part not in uris else replace(part, uri=uris[part])

    turns = tuple(replace(turn, parts=tuple(map(placed, turn.parts))) for turn in prompt.content)
    return replace(prompt, content=turns)


@lru_cache(maxsize=32)
def _constant_part(params: Params) -> dict[str, Any]:
    """All but the text; the same for every prompt of a step."""
    config = {
        "maxOutputTokens": params.max_output_tokens,
        "temperature": params.temperature,
        "topP": params.top_p,
        "topK": params.top_k,
        "seed": params.seed,
        "stopSequences": list(params.stop) or None,
        "presencePenalty": params.presence_penalty,
        "frequencyPenalty": params.frequency_penalty,
        "mediaResolution": f"MEDIA_RESOLUTION_{params.media_resolution.upper()}" if params.media_resolution else None,
        "thinkingConfig": _thinking(params.thinking),
        "responseMimeType": "application/json" if params.schema else params.response_mime_type,
        "responseJsonSchema": gemini_schema(orjson.loads(params.schema)) if params.schema else None,
    }
    tools = params.tools
    fields = {
        "systemInstruction": {"parts": [{"text": params.system}]} if params.system else None,
        "generationConfig": {name: value for name, value in config.items() if value is not None} or None,
        "safetySettings": [{"category": c, "threshold": t} for c, t in params.safety] or None,
        "tools": _tools(tools) if tools else None,
        "toolConfig": {"functionCallingConfig": _calling(tools)} if tools and tools.mode else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _tools(tools: Tools) -> list[dict[str, Any]]:
    declared = [
        {
            "name": function.name,
            **({"description": function.description} if function.description else {}),
            **({"parametersJsonSchema": orjson.loads(function.parameters)} if function.parameters else {}),
        }
        for function in tools.functions
    ]
    named: dict[str, Any] = {
        "googleSearch": orjson.loads(tools.google_search) if tools.google_search else None,
        "urlContext": {} if tools.url_context else None,
        "codeExecution": {} if tools.code_execution else None,
        "functionDeclarations": declared or None,
    }
    return [{name: value} for name, value in named.items() if value is not None]


def _calling(tools: Tools) -> dict[str, Any]:
    allowed = {"allowedFunctionNames": list(tools.allowed)} if tools.allowed else {}
    return {"mode": (tools.mode or "auto").upper(), **allowed}


def _thinking(thinking: str | int | None) -> dict[str, Any] | None:
    if thinking is None:
        return None
    # Never both: a level for the 3 family, a budget for 2.5.
    return {"thinkingLevel": thinking.lower()} if isinstance(thinking, str) else {"thinkingBudget": thinking}


# --- models -----------------------------------------------------------------------------------------------------------


def _generates(item: dict[str, Any]) -> bool:
    methods = item.get("supportedGenerationMethods")
    return not isinstance(methods, list) or "generateContent" in methods
