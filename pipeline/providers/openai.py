"""OpenAI's chat completions, which relays, self-hosted servers and Gemini's `/v1beta/openai/` speak too.

`build_request` is pure; `OpenAIConnection` puts one exchange around it.
"""

import re
from functools import lru_cache
from typing import Any

import httpx
import orjson

from pipeline.prompts import Params, Part, Prompt, Text, Tools
from pipeline.protocols import PROTOCOLS
from pipeline.providers.base import Account
from pipeline.providers.batches.base import Batches
from pipeline.providers.batches.openai import OpenAIBatches
from pipeline.providers.connection import Connected, Connection, checked_url, succeeded
from pipeline.providers.foreign import load, mappings, string
from pipeline.providers.payload import NotSent, base64_of, built
from pipeline.providers.transport import READ_TIMEOUT_S, Lost, Wire
from pipeline.records import Failure, Lane, Media, Reply
from pipeline.schemas import openai as openai_schema
from pipeline.targets import Target

_CHAT = "/chat/completions"
_GOOGLES = "generativelanguage.googleapis.com"


class OpenAI(Connected):
    """The provider: every target that speaks this protocol."""

    name = "openai"

    def connect(self, account: Account, target: Target) -> "OpenAIConnection":
        """See `OpenAIConnection`."""
        return OpenAIConnection(
            account.wire,
            api_key=account.key,
            base_url=target.base_url,
            timeout_s=account.timeout_s,
            stream=account.stream,
        )


class OpenAIConnection(Connection):
    """One key at one base URL: a path is used as it stands, a bare host gets `/v1`, and `/chat/completions` is dropped.

    Google's bare host gets `/v1beta/openai`, where it has this protocol.

    Raises `JobError` for a base URL that cannot be used.
    """

    provider = "openai"

    def __init__(
        self,
        wire: Wire,
        *,
        api_key: str,
        base_url: str = PROTOCOLS["openai"].base_url,
        timeout_s: float = READ_TIMEOUT_S,
        stream: bool = False,
    ) -> None:
        super().__init__(wire, _root(base_url), api_key=api_key, timeout_s=timeout_s, stream=stream)
        self._chat = httpx.URL(f"{self._root}{_CHAT}")
        self._models = httpx.URL(f"{self._root}/models")
        self._is_openai = f".{self._root.host}".endswith(".api.openai.com")  # eu. and us. stand before it

    def authorization(self, key: str) -> dict[str, str]:
        """A bearer token."""
        return {"authorization": f"Bearer {key}"}

    async def generate(self, prompt: Prompt, model: str, lane: Lane = "standard") -> Reply | Failure:
        """See `Connection`."""
        body = await built(prompt, lambda: build_request(prompt, model, self._is_openai, self._stream, lane))
        if isinstance(body, Failure):
            return body
        return await self.ask(self._chat, body, prompt, model, lane)

    def batches(self) -> Batches | None:
        """See `Connection`. None at Google, which takes files of batches by its own protocol only."""
        if self._root.host == _GOOGLES:
            return None
        return OpenAIBatches(self, self._root, lambda prompt, model: build_request(prompt, model, self._is_openai))

    async def count_tokens(self, prompt: Prompt, model: str) -> int | Failure:
        """A failure: the protocol counts nothing free of charge."""
        return Failure("fatal", "invalid_request", "OpenAI's protocol has no request that counts tokens", sent=False)

    @property
    def free_url(self) -> httpx.URL:
        """All models: there are no pages."""
        return self._models

    async def list_models(self) -> list[str] | Failure:
        """See `Connection`. Ollama lists `name:latest`, and answers to `name` as well."""
        answer = await self.exchange(self._models)
        if isinstance(answer, Lost) or not succeeded(answer):
            return self.failure(answer)
        listing = load(answer.body)
        if isinstance(listing, dict) and not listing.get("error") and ("data" in listing or "models" in listing):
            listing = listing.get("data") or listing.get("models") or []
        if not isinstance(listing, list):
            return self.failure(answer)
        names = (string(model.get("id")) or string(model.get("name")) for model in mappings(listing))
        models = (name.removeprefix("models/") for name in names)
        return list(dict.fromkeys(each for name in models for each in (name, name.removesuffix(":latest")) if each))


def _root(base_url: str) -> httpx.URL:
    url = checked_url(base_url, "openai")
    path = url.path.rstrip("/")
    if path.endswith(_CHAT):
        return url.copy_with(path=path.removesuffix(_CHAT))
    return url.copy_with(path=path or ("/v1beta/openai" if url.host == _GOOGLES else "/v1"))


# --- request ----------------------------------------------------------------------------------------------------------

_REASONS = re.compile(r"(?:.*/)?(?:o\d|gpt-(?:[5-9]|\d\d))")
"""OpenAI's models that refuse `max_tokens` with 400, wherever they are served."""


_TAKEN = ("image/png", "image/jpeg", "image/webp", "audio/wav", "audio/mp3", "application/pdf")


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def build_request(
    prompt: Prompt, model: str, is_openai: bool = False, stream: bool = False, lane: Lane = "standard"
) -> bytes:
    """Body of a chat completion; `is_openai`: it goes to OpenAI itself. Raises `NotSent`."""
    params = prompt.params
    messages: list[dict[str, Any]] = [{"role": "system", "content": params.system}] if params.system else []
    for turn in prompt.content:
        role = "assistant" if turn.role == "model" else turn.role
        files = any(isinstance(part, Media) for part in turn.parts)
        messages.append({"role": role, "content": [_part(part) for part in turn.parts] if files else turn.text})
    fields = {**_constant_part(params, model, is_openai), **(_STREAMED if stream else {})}
    if lane == "flex":
        fields["service_tier"] = lane
    return orjson.dumps({"model": model, "messages": messages, **fields})


def _part(part: Part) -> dict[str, Any]:
    """A part beside files, as OpenAI's pages on images, sound and PDFs have it; raises `NotSent`."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if part.uri and part.kind == "image":
        return {"type": "image_url", "image_url": {"url": part.uri}}
    if part.mime_type not in _TAKEN:
        raise NotSent(f"chat completions have no form for {part.mime_type}")
    content = base64_of(part)
    if part.kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": content, "format": part.mime_type.partition("/")[2]}}
    url = f"data:{part.mime_type};base64,{content}"
    if part.kind == "pdf":
        return {"type": "file", "file": {"filename": "document.pdf", "file_data": url}}
    return {"type": "image_url", "image_url": {"url": url}}


@lru_cache(maxsize=32)
def _constant_part(params: Params, model: str, is_openai: bool) -> dict[str, Any]:
    """All but the text; the same for every prompt of a step.

    The longest answer is `max_completion_tokens` to OpenAI and for its models that reason, which refuse the old name
    `max_tokens`; to all others it is the old name. vLLM and new-api read both, Gemini's and older relays the old one,
    and Ollama reads nothing else and ignores the new one in silence (ollama/ollama#7125, 2026-08-21). OpenAI refuses a
    request that has both.
    """
    longest = "max_completion_tokens" if is_openai or _REASONS.match(model) else "max_tokens"
    fields = {
        longest: params.max_output_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": params.seed,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "stop": list(params.stop) or None,
        "reasoning_effort": params.thinking.lower() if isinstance(params.thinking, str) else None,
        "response_format": _response_format(params),
    }
    if params.tools and params.tools.functions:
        fields |= _functions(params.tools)
    return {name: value for name, value in fields.items() if value is not None}


def _response_format(params: Params) -> dict[str, Any] | None:
    if params.schema:
        schema, strict = openai_schema(orjson.loads(params.schema))
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": strict}}
    return {"type": "json_object"} if params.response_mime_type == "application/json" else None


def _functions(tools: Tools) -> dict[str, Any]:
    """What may be called; which of them are allowed is said by naming no others."""
    declared = [
        {
            "name": function.name,
            **({"description": function.description} if function.description else {}),
            **({"parameters": orjson.loads(function.parameters)} if function.parameters else {}),
        }
        for function in tools.functions
        if not tools.allowed or function.name in tools.allowed
    ]
    choice = {None: None, "auto": "auto", "none": "none", "any": "required"}[tools.mode]
    return {"tools": [{"type": "function", "function": each} for each in declared], "tool_choice": choice}
