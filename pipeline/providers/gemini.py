"""Gemini's Developer API, and every relay that speaks it: `models.generateContent`, one request, one answer.

`build_request` and `parse_reply` are pure; `Gemini` puts one `Wire` exchange between them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import orjson

from pipeline import __version__
from pipeline.errors import AuthError, JobError
from pipeline.providers.transport import READ_TIMEOUT_S, Lost, Response, Wire
from pipeline.providers.verdicts import (
    classify,
    http_date,
    load,
    mapping,
    mappings,
    read_fault,
    string,
    unanswered,
    whole_number,
)
from pipeline.records import (
    EMULATOR_FIELD,
    EMULATOR_HEADER,
    EMULATOR_RESPONSE_ID,
    ErrorKind,
    Params,
    Prompt,
    Reply,
    Status,
    Usage,
    Verdict,
)
from pipeline.tokens import estimate

BASE_URL = "https://generativelanguage.googleapis.com"
API_VERSION = "v1beta"
ASK_TIMEOUT_S = 10.0
"""Longest wait for who answers, before the first call."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the key may use, as `models.list` tells it; None where it says nothing."""

    name: str
    input_token_limit: int | None
    output_token_limit: int | None


class Gemini:
    """One key, one base URL. The key travels in the `x-goog-api-key` header only: never in a URL, repr or message.

    `base_url` may have a path (a relay) and may already end in `/v1` or `/v1beta`, which then wins over `api_version`;
    `timeout_s` limits one exchange and is told to the server as `X-Server-Timeout`. Raises `JobError` for a base URL
    that cannot be used, `AuthError` for a key that no HTTP header can carry. An empty key is not sent.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        api_key: str,
        base_url: str = BASE_URL,
        api_version: str = API_VERSION,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._wire = wire
        self._key = _checked_key(api_key)
        self._root = _root(base_url, api_version)
        self._timeout_s = timeout_s
        self._urls: dict[tuple[str, str], httpx.URL] = {}
        fields = {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "gzip, deflate",
            "user-agent": f"prompt-pipeline/{__version__}",
            "x-server-timeout": str(ceil(timeout_s)),
            **({"x-goog-api-key": self._key} if self._key else {}),
            **{name.lower(): value for name, value in (headers or {}).items()},
        }
        self._headers = httpx.Headers(fields)
        self.endpoint = f"gemini@{self._root.netloc.decode()}"
        wire.prepare(self._root)

    def __repr__(self) -> str:
        return f"Gemini({self.endpoint!r})"

    async def generate(self, prompt: Prompt) -> Reply | Verdict:
        """Make one request; never retries, never waits for quota."""
        url = self._url(prompt.params.model, "generateContent")
        started = anyio.current_time()
        answer = await self._wire.post(url, self._headers, build_request(prompt), self._timeout_s)
        latency_s, finished_at = anyio.current_time() - started, time.time()
        if isinstance(answer, Lost) or answer.status != 200:
            return self._verdict(answer)
        reply = parse_reply(answer.body)
        if reply.error_kind == "malformed_reply" and (not answer.body or _from_a_gateway(answer.body)):
            return self._verdict(answer)
        usage = reply.usage
        return replace(
            reply,
            usage=replace(usage, input_tokens=prompt.input_tokens_est) if usage.estimated else usage,
            model=reply.model or bare_model(prompt.params.model),
            endpoint=self.endpoint,
            latency_s=latency_s,
            finished_at=finished_at,
            served_at=http_date(answer.headers.get("date")),
            emulated=reply.emulated or EMULATOR_HEADER in answer.headers,
        )

    def parse(self, raw: bytes) -> Reply:
        """Read a stored response body again; see `parse_reply`."""
        return parse_reply(raw)

    async def count_tokens(self, prompt: Prompt) -> int | Verdict:
        """Input tokens of `prompt` as the service counts them, system instruction included; free of charge."""
        model = bare_model(prompt.params.model)
        # Only this form counts the system instruction; the model inside is required though it stands in the URL.
        body = orjson.dumps({"generateContentRequest": {"model": f"models/{model}", **_request(prompt)}})
        answer = await self._wire.post(self._url(model, "countTokens"), self._headers, body, self._timeout_s)
        if isinstance(answer, Lost) or answer.status != 200:
            return self._verdict(answer)
        total = whole_number(mapping(load(answer.body)).get("totalTokens"))
        return self._verdict(answer) if total is None else total

    async def is_emulator(self) -> bool:
        """Whether the emulator answers here: whoever does not say so is taken for the real service. Free of charge.

        Asks for one model at most `ASK_TIMEOUT_S`, so that a relay without that route holds nobody up.
        """
        url = httpx.URL(f"{self._root}/models", params={"pageSize": "1"})
        answer = await self._wire.get(url, self._headers, min(self._timeout_s, ASK_TIMEOUT_S))
        return not isinstance(answer, Lost) and is_emulated(answer)

    async def list_models(self) -> list[Model] | Verdict:
        """Every model that the key may use for `generateContent`, in the service's order."""
        models: list[Model] = []
        page = ""
        while True:
            url = httpx.URL(
                f"{self._root}/models", params={"pageSize": "1000", **({"pageToken": page} if page else {})}
            )
            answer = await self._wire.get(url, self._headers, self._timeout_s)
            if isinstance(answer, Lost) or answer.status != 200:
                return self._verdict(answer)
            listing = load(answer.body)
            if not isinstance(listing, dict) or "error" in listing:
                return self._verdict(answer)
            models += [_model(item) for item in mappings(listing.get("models")) if _generates(item)]
            page, last = string(listing.get("nextPageToken")), page
            if not page or page == last:
                return models

    def _url(self, model: str, method: str) -> httpx.URL:
        url = self._urls.get((model, method))
        if url is None:
            path = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
            url = self._urls[model, method] = httpx.URL(f"{self._root}/{quote(path, safe='/')}:{method}")
        return url

    def _verdict(self, answer: Response | Lost) -> Verdict:
        if isinstance(answer, Lost):
            return unanswered(answer)
        verdict = classify(answer.status, answer.headers, answer.body, secret=self._key)
        return replace(verdict, emulated=True) if is_emulated(answer) else verdict


def is_emulated(answer: Response) -> bool:
    """Whether the response bears the emulator's mark: a proxy may drop the header, a relay the body's field."""
    return EMULATOR_HEADER in answer.headers or _is_marked(mapping(load(answer.body)))


def bare_model(name: str) -> str:
    """`gemini-x` of `models/gemini-x`."""
    return name.removeprefix("models/")


def _checked_key(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not (key.isprintable() and " " not in key):
        raise AuthError("the API key has characters that no key has", hint="copy it again, without spaces or quotes")
    return key


def _root(base_url: str, api_version: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise JobError(
            "the base URL must be http(s)://host, perhaps with a port and a path, without user, query or fragment",
            hint=f"Google's own is {BASE_URL}; look at base_url in the job and at GOOGLE_GEMINI_BASE_URL",
        )
    path = url.path.rstrip("/")
    return url.copy_with(path=path if path.endswith(("/v1", "/v1beta")) else f"{path}/{api_version}")


def _from_a_gateway(body: bytes) -> bool:
    """Whether a 200 is an error or a web page: nothing was generated, so it is no answer to keep."""
    return body.lstrip()[:1] == b"<" or read_fault(body) is not None


# --- request ----------------------------------------------------------------------------------------------------------


def build_request(prompt: Prompt) -> bytes:
    """Body of `generateContent` for `prompt`."""
    return orjson.dumps(_request(prompt))


def _request(prompt: Prompt) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": prompt.text}]}], **_constant_part(prompt.params)}


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
        "thinkingConfig": _thinking(params.thinking),
        "responseMimeType": params.response_mime_type,
    }
    fields = {
        "systemInstruction": {"parts": [{"text": params.system}]} if params.system else None,
        "generationConfig": {name: value for name, value in config.items() if value is not None} or None,
        "safetySettings": [{"category": c, "threshold": t} for c, t in params.safety] or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _thinking(thinking: str | int | None) -> dict[str, Any] | None:
    if thinking is None:
        return None
    # Never both: a level for the 3 family, a budget for 2.5.
    return {"thinkingLevel": thinking.lower()} if isinstance(thinking, str) else {"thinkingBudget": thinking}


# --- reply ------------------------------------------------------------------------------------------------------------

_TRUNCATED = frozenset({"MAX_TOKENS", "CONTINUATION"})
_RECITATION = frozenset({"RECITATION", "IMAGE_RECITATION"})
_BLOCKED = frozenset(
    {
        "SAFETY",
        "PROHIBITED_CONTENT",
        "BLOCKLIST",
        "SPII",
        "LANGUAGE",
        "MODEL_ARMOR",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_OTHER",
    }
)
_UNSAID = "FINISH_REASON_UNSPECIFIED"


def parse_reply(raw: bytes) -> Reply:
    """Read a response body; whatever it is, a `Reply` comes back and nothing is raised.

    Only finish reason STOP, or none at all as relays send it, with some text is `ok`. Text before a block or a cut is
    kept. Usage is marked `estimated` when the body has none: output counted by us, input left 0.
    """
    body = load(raw)
    if not isinstance(body, dict) or body.get("error"):
        return _malformed(raw, "the answer is not a generateContent response")
    candidates = mappings(body.get("candidates"))
    if not candidates:
        return _without_candidates(body, raw)
    text = _answer_text(candidates[0])
    finish = string(candidates[0].get("finishReason"))[:64] or None
    status, error_kind, error = _outcome(finish, text)
    return Reply(
        text=text,
        status=status,
        finish_reason=finish,
        error_kind=error_kind,
        error=error,
        usage=_usage(body.get("usageMetadata"), text),
        model=bare_model(string(body.get("modelVersion"))),
        response_id=string(body.get("responseId")),
        raw=raw,
        emulated=_is_marked(body),
    )


def _is_marked(body: Mapping[str, Any]) -> bool:
    return EMULATOR_FIELD in body or string(body.get("responseId")).startswith(EMULATOR_RESPONSE_ID)


def _outcome(finish: str | None, text: str) -> tuple[Status, ErrorKind | None, str | None]:
    if finish in _TRUNCATED:
        words = "the answer reached the output limit" if text else "the output limit was reached before any text"
        return "truncated", "truncated", words
    if finish in _RECITATION:
        return "blocked", "recitation", "the answer was cut because it repeats published text"
    if finish in _BLOCKED:
        return "blocked", "answer_blocked", f"the answer was blocked: {finish}"
    if finish not in (None, "STOP", _UNSAID):
        return "error", "malformed_reply", f"the answer ended with {_name(finish)}"
    if not text:
        return "error", "empty_answer", "the answer has no text"
    return "ok", None, None


def _without_candidates(body: dict[str, Any], raw: bytes) -> Reply:
    block = string(mapping(body.get("promptFeedback")).get("blockReason"))[:64]
    if not block and "usageMetadata" not in body:
        return _malformed(raw, "the answer has neither candidates nor usage")
    return Reply(
        text="",
        status="blocked" if block else "error",
        finish_reason=block or None,
        error_kind="prompt_blocked" if block else "empty_answer",
        error=f"the prompt was blocked: {_name(block)}" if block else "the answer has no candidates",
        usage=_usage(body.get("usageMetadata"), ""),
        model=bare_model(string(body.get("modelVersion"))),
        response_id=string(body.get("responseId")),
        raw=raw,
        emulated=_is_marked(body),
    )


def _malformed(raw: bytes, error: str) -> Reply:
    return Reply(
        text="", status="error", error_kind="malformed_reply", error=error, usage=Usage(estimated=True), raw=raw
    )


def _answer_text(candidate: dict[str, Any]) -> str:
    parts = mappings(mapping(candidate.get("content")).get("parts"))
    return "".join(string(part.get("text")) for part in parts if not part.get("thought"))


def _usage(metadata: object, text: str) -> Usage:
    counts = mapping(metadata)
    prompt, cached, output, thinking, tool, total = (
        whole_number(counts.get(name)) or 0
        for name in (
            "promptTokenCount",
            "cachedContentTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
            "toolUsePromptTokenCount",
            "totalTokenCount",
        )
    )
    if not prompt:
        return Usage(output_tokens=output or estimate(text), estimated=True)
    # Zeros are left out on the wire, and relays leave out more: what the total has beyond the sum is billed as output.
    unnamed = max(0, total - prompt - output - thinking - tool)
    if output or not text:
        thinking += unnamed
    else:
        output += unnamed
    return Usage(prompt, cached, output, thinking, tool)


def _model(item: dict[str, Any]) -> Model:
    return Model(
        bare_model(string(item.get("name"))),
        whole_number(item.get("inputTokenLimit")),
        whole_number(item.get("outputTokenLimit")),
    )


def _generates(item: dict[str, Any]) -> bool:
    methods = item.get("supportedGenerationMethods")
    return not isinstance(methods, list) or "generateContent" in methods


def _name(value: str) -> str:
    """A finish or block reason as a message may show it: it is foreign text."""
    return value if value.replace("_", "").isalnum() and value.isascii() else "a reason without a name"
