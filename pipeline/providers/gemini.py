"""Gemini's Developer API, and every relay that speaks it: `models.generateContent`, one request, one answer.

`build_request` and `answers.parse_reply` are pure; `Gemini` puts one `Wire` exchange between them.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from math import ceil
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import orjson

from pipeline import __version__
from pipeline.errors import AuthError, JobError
from pipeline.prompts import Params, Prompt
from pipeline.providers.answers import Answer, Unread, bare_model, is_marked, judge, parse_reply, read_answer
from pipeline.providers.base import Accounts
from pipeline.providers.blotting import blotted
from pipeline.providers.failures import classify, http_date, unanswered, without_prompt
from pipeline.providers.foreign import load, mapping, mappings, string, whole_number
from pipeline.providers.transport import READ_TIMEOUT_S, Lost, Response, Wire
from pipeline.providers.usage import names_tokens, read_usage
from pipeline.records import EMULATOR_HEADER, Failure, Reply, changed
from pipeline.targets import Target
from pipeline.terminal import without_secrets

BASE_URL = "https://generativelanguage.googleapis.com"
API_VERSION = "v1beta"
ASK_TIMEOUT_S = 10.0
"""Longest wait for who answers, before the first call."""
MOST_KEPT_BYTES = 65_536
"""Of a body that cannot be read, which is kept with what it may have cost."""
MOST_COUNTED_TOKENS = 10_000_000
MOST_PAGES = 50
MOST_MODELS = 10_000
"""Of a listing of models: Google's has one page of some sixty."""


class Gemini:
    """The provider: every target that speaks this protocol, a `Connection` for each base URL and key."""

    name = "gemini"

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._connections: dict[tuple[str, str], Connection] = {}

    def open(self, target: Target) -> "Connection":
        """Get ready for requests to `target`; raises as `Connection`."""
        place = target.base_url, target.project
        connection = self._connections.get(place)
        if connection is None:
            account = self._accounts[target.access]
            connection = self._connections[place] = Connection(
                account.wire,
                api_key=account.key,
                base_url=target.base_url,
                api_version=account.api_version,
                timeout_s=account.timeout_s,
            )
        return connection

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        """Make one request; never retries, never waits for quota."""
        return await self.open(target).generate(prompt, target.model)

    def parse(self, raw: bytes) -> Reply:
        """Read a stored response body again; see `parse_reply`."""
        return parse_reply(raw)

    async def count_tokens(self, prompt: Prompt, target: Target) -> int | Failure:
        """See `Connection`."""
        return await self.open(target).count_tokens(prompt, target.model)

    async def list_models(self, target: Target) -> list[str] | Failure:
        """See `Connection`."""
        return await self.open(target).list_models()

    async def is_emulator(self, target: Target) -> bool:
        """See `Connection`."""
        return await self.open(target).is_emulator()


class Connection:
    """One key at one base URL. The key travels in the `x-goog-api-key` header only: never in a URL, repr or message.

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
        return f"Connection({self.endpoint!r})"

    async def generate(self, prompt: Prompt, model: str) -> Reply | Failure:
        """Make one request; never retries, never waits for quota."""
        url = self._url(model, "generateContent")
        clock = asyncio.get_running_loop().time  # anyio's takes 2 µs
        started = clock()
        response = await self._exchange(url, build_request(prompt))
        latency_s, finished_at = clock() - started, time.time()
        if isinstance(response, Lost):
            return self._failure(response)
        body, answer = self._read(response.body)
        if isinstance(answer, Unread):
            return self._unread(response, answer, prompt, model)
        reply = judge(answer, body, prompt.input_tokens_est, model)
        if not _succeeded(response) and not reply.text:
            return self._failure(response, prompt, model, answer)
        return changed(
            reply,
            model=reply.model or bare_model(model),
            endpoint=self.endpoint,
            latency_s=latency_s,
            finished_at=finished_at,
            served_at=http_date(response.headers.get("date")),
            emulated=reply.emulated or EMULATOR_HEADER in response.headers,
        )

    def _read(self, body: bytes) -> tuple[bytes, Answer | Unread]:
        """The answer in a body, and the body to keep: another one when the key stands in pieces of the first."""
        answer = read_answer(body)
        if self._key and isinstance(answer, Answer) and (answer.pieces > 1 or self._key in answer.text):
            whole = answer.as_body()
            if (clear := blotted(whole, self._key)) != whole:
                return clear, read_answer(clear)
        return body, answer

    def _unread(self, response: Response, unread: Unread, prompt: Prompt, model: str) -> Failure:
        """What a response without an answer means. It may have been billed, unless it says that it failed."""
        failure = self._failure(response, prompt, model, unread)
        if not _succeeded(response) or unread.refused or failure.kind != "transient":
            return failure
        lost = response.lost
        if lost is not None and lost.kind in ("timeout", "unreadable"):
            return replace(unanswered(lost, secret=self._key), raw=response.body[:MOST_KEPT_BYTES])
        return replace(
            failure,
            error_kind="malformed_reply",
            message=f"HTTP {response.status}: {lost.message if lost else unread.why}",
            billed=True,
            most_requests=unread.most_requests,
            raw=response.body[:MOST_KEPT_BYTES],
        )

    async def count_tokens(self, prompt: Prompt, model: str) -> int | Failure:
        """Input tokens of `prompt` as the service counts them, system instruction included; free of charge."""
        model = bare_model(model)
        # Only this form counts the system instruction; the model inside is required though it stands in the URL.
        body = orjson.dumps({"generateContentRequest": {"model": f"models/{model}", **_request(prompt)}})
        answer = await self._exchange(self._url(model, "countTokens"), body)
        if isinstance(answer, Lost) or not _succeeded(answer):
            return self._failure(answer, prompt)
        total = whole_number(mapping(load(answer.body)).get("totalTokens"))
        if total is None:
            return self._failure(answer, prompt)
        if not 0 < total <= MOST_COUNTED_TOKENS:
            return Failure("transient", "malformed_reply", f"the service counts {total:,} tokens in a prompt")
        return total

    async def is_emulator(self) -> bool:
        """Whether the emulator answers here: whoever does not say so is taken for the real service. Free of charge.

        Asks for one model at most `ASK_TIMEOUT_S`, so that a relay without that route holds nobody up.
        """
        url = httpx.URL(f"{self._root}/models", params={"pageSize": "1"})
        answer = await self._wire.get(url, self._headers, min(self._timeout_s, ASK_TIMEOUT_S))
        return not isinstance(answer, Lost) and is_emulated(answer)

    async def list_models(self) -> list[str] | Failure:
        """Every model that the key may use for `generateContent`, in the service's order.

        Of a listing that does not end, those of `MOST_PAGES` pages and of one `timeout_s`.
        """
        models: dict[str, None] = {}
        page = ""
        until = anyio.current_time() + self._timeout_s
        for _ in range(MOST_PAGES):
            params = {"pageSize": "1000", **({"pageToken": page} if page else {})}
            answer = await self._exchange(httpx.URL(f"{self._root}/models", params=params))
            if isinstance(answer, Lost) or not _succeeded(answer):
                return self._failure(answer)
            listing = load(answer.body)
            if not isinstance(listing, dict) or listing.get("error"):
                return self._failure(answer)
            for model in filter(_generates, mappings(listing.get("models"))):
                models[bare_model(string(model.get("name")))] = None
            page, last = string(listing.get("nextPageToken")), page
            if page in ("", last) or len(models) >= MOST_MODELS or anyio.current_time() >= until:
                break
        return list(models)

    async def _exchange(self, url: httpx.URL, content: bytes | None = None) -> Response | Lost:
        """POST `content`, or GET; the key is out of the body before anybody reads it."""
        if content is None:
            answer = await self._wire.get(url, self._headers, self._timeout_s)
        else:
            answer = await self._wire.post(url, self._headers, content, self._timeout_s)
        if isinstance(answer, Lost) or not self._key:
            return answer
        body = blotted(_as_utf8(answer), self._key)
        return answer if body is answer.body else answer._replace(body=body)

    def _url(self, model: str, method: str) -> httpx.URL:
        url = self._urls.get((model, method))
        if url is None:
            path = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
            url = self._urls[model, method] = httpx.URL(f"{self._root}/{quote(path, safe='/')}:{method}")
        return url

    def _failure(
        self,
        answer: Response | Lost,
        prompt: Prompt | None = None,
        model: str = "",
        found: Answer | Unread | None = None,
    ) -> Failure:
        """What a failed exchange means; it was billed where what was `found` in its body names tokens."""
        if isinstance(answer, Lost):
            return unanswered(answer, secret=self._key)
        failure = classify(answer.status, answer.headers, answer.body, secret=self._key)
        if prompt is not None:
            failure = replace(failure, message=without_prompt(failure.message, prompt.text, prompt.params.system or ""))
            if found and names_tokens(found.usage):
                answered = found.model or bare_model(model)
                usage = read_usage(found.usage, "", prompt.input_tokens_est, answered)
                failure = replace(failure, usage=usage, model=answered, billed=True)
        return replace(failure, emulated=True) if is_emulated(answer) else failure


def is_emulated(answer: Response) -> bool:
    """Whether the response bears the emulator's mark: a proxy may drop the header, a relay the body's field."""
    return EMULATOR_HEADER in answer.headers or is_marked(mapping(load(answer.body)))


def _succeeded(response: Response) -> bool:
    return 200 <= response.status < 300


_CHARSET = re.compile(r"charset=[\"']?([\w\-]+)", re.IGNORECASE | re.ASCII)


def _as_utf8(response: Response) -> bytes:
    """The body in UTF-8 when its header names another encoding that it is in: what is stored has no header."""
    named = _CHARSET.search(response.headers.get("content-type", ""))
    if named is None or named[1].lower() in ("utf-8", "utf8", "us-ascii") or response.body.isascii():
        return response.body
    try:
        response.body.decode("utf-8")
    except UnicodeDecodeError:
        with suppress(LookupError, ValueError):  # Python has codecs that fail in ways of their own
            return response.body.decode(named[1]).encode()
    return response.body


def _checked_key(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or any(character in key for character in " \"'`"):
        raise AuthError("the API key has characters that no key has", hint="copy it again, without spaces or quotes")
    return key


def _root(base_url: str, api_version: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.strip())
        usable = url.scheme in ("http", "https") and _is_host(url.raw_host.decode())
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable or url.userinfo or url.query or url.fragment or not _is_port(url.port):
        named = f" {without_secrets(base_url)}" if "://" in base_url else ""
        raise JobError(
            f"the base URL{named} cannot be one: it is http(s)://host, perhaps with a port from 1 to 65535 and a path,"
            " without user, query or fragment\n[endpoint] base_url, or GOOGLE_GEMINI_BASE_URL",
            hint=f"Google's own is {BASE_URL}; look at base_url in the job and at GOOGLE_GEMINI_BASE_URL",
        )
    path = url.path.rstrip("/")
    return url.copy_with(path=path if path.endswith(("/v1", "/v1beta")) else f"{path}/{api_version}")


def _is_port(port: int | None) -> bool:
    return port is None or 0 < port <= 65_535


_LABEL = re.compile(r"(?!-)[A-Za-z0-9_\-]{1,63}(?<!-)", re.ASCII)


def _is_host(host: str) -> bool:
    """Whether a name may be that of a host: what can never be found is no outage."""
    if ":" in host or host.replace(".", "").isdecimal():
        try:
            return bool(ip_address(host))
        except ValueError:
            return False
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


# --- request ----------------------------------------------------------------------------------------------------------


def build_request(prompt: Prompt) -> bytes:
    """Body of `generateContent` for `prompt`."""
    return orjson.dumps(_request(prompt))


def _request(prompt: Prompt) -> dict[str, Any]:
    contents = [{"role": turn.role, "parts": [{"text": part.text} for part in turn.parts]} for turn in prompt.content]
    return {"contents": contents, **_constant_part(prompt.params)}


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


# --- models -----------------------------------------------------------------------------------------------------------


def _generates(item: dict[str, Any]) -> bool:
    methods = item.get("supportedGenerationMethods")
    return not isinstance(methods, list) or "generateContent" in methods
