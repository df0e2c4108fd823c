"""One key at one base URL: what every protocol of JSON over HTTP does alike, so that a provider is its URLs and bodies.

provider.generate → Connection.ask → Wire.post → the key blotted out → answers.read_answer → a reply, or a failure
"""

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import ClassVar, TypeVar

import anyio
import httpx

from pipeline.errors import AuthError, JobError
from pipeline.prompts import Prompt
from pipeline.protocols import PROTOCOLS, ProviderName
from pipeline.providers.answers import Answer, Unread, bare_model, is_marked, judge, lane_of, parse_reply, read_answer
from pipeline.providers.base import Account, Accounts, Renew
from pipeline.providers.batches.base import Batches
from pipeline.providers.blotting import BlottedLines, blotted
from pipeline.providers.connections import MOST_BODY_BYTES, Pieces
from pipeline.providers.failures import classify, unanswered, without_prompt
from pipeline.providers.foreign import load, mapping
from pipeline.providers.hosts import is_host
from pipeline.providers.named import http_date
from pipeline.providers.transport import READ_TIMEOUT_S, STREAM_S, Lost, Response, Wire
from pipeline.providers.usage import names_tokens, read_usage
from pipeline.records import EMULATOR_HEADER, FLEX_S, Failure, Lane, Reply, changed
from pipeline.targets import Target
from pipeline.terminal import without_secrets
from pipeline.version import __version__

T = TypeVar("T")

ASK_TIMEOUT_S = 10.0
"""Longest wait for who answers, before the first call."""
RENEW_AFTER_S = 30.0
"""A look for another key that found none holds for so long: hundreds of refusals of one key come back together."""
TIER_HEADER = "x-gemini-service-tier"
MOST_KEPT_BYTES = 65_536
"""Of a body that cannot be read, which is kept with what it may have cost."""


class Connection(ABC):
    """One key at one base URL. The key travels in a header only: never in a URL, repr or message.

    A protocol is a subclass: it names itself, the header of its key, and the requests that it knows. `root` is what
    comes before every path; `timeout_s` limits one exchange, or with `stream` the silence within one. Raises
    `AuthError` for a key that no HTTP header can carry. An empty key is not sent.
    """

    provider: ClassVar[ProviderName]

    def __init__(
        self,
        wire: Wire,
        root: httpx.URL,
        *,
        api_key: str,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
        stream: bool = False,
    ) -> None:
        self._stream = stream
        self._wire = wire
        self._root = root
        self._timeout_s = timeout_s
        self._fields = {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "gzip, deflate",
            "user-agent": f"prompt-pipeline/{__version__}",
            **{name.lower(): value for name, value in (headers or {}).items()},
        }
        self.renew: Renew | None = None  # where another key may be found when the service refuses this one
        self._renewing = anyio.Lock()
        self._looked_at = -inf
        self.use_key(checked_key(api_key))
        self.endpoint = f"{self.provider}@{root.netloc.decode()}"
        wire.prepare(root)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint!r})"

    def use_key(self, key: str) -> None:
        """Send this key from now on: the one place where it meets the headers of every request.

        One object for all requests in a lane: the wire knows it by its identity.
        """
        fields = {**self._fields, **(self.authorization(key) if key else {})}
        self._key, self._headers = key, httpx.Headers(fields)
        self._flex_headers = httpx.Headers(fields | self.server_timeout(self.patience_s("flex")))

    def server_timeout(self, timeout_s: float) -> dict[str, str]:
        """The header that tells the service how long is waited, where the protocol has one."""
        return {}

    def patience_s(self, lane: Lane) -> float:
        """How long one exchange may take in a lane."""
        return max(self._timeout_s, FLEX_S) if lane == "flex" else self._timeout_s

    @abstractmethod
    def authorization(self, key: str) -> dict[str, str]:
        """The header that carries the key."""

    @abstractmethod
    async def generate(self, prompt: Prompt, model: str, lane: Lane = "standard") -> Reply | Failure:
        """Make one request; never retries, never waits for quota."""

    @abstractmethod
    async def count_tokens(self, prompt: Prompt, model: str) -> int | Failure:
        """Input tokens of `prompt` as the service counts them, system instruction included; free of charge."""

    @abstractmethod
    async def list_models(self) -> list[str] | Failure:
        """Every model that the key may use, in the service's order."""

    @property
    @abstractmethod
    def free_url(self) -> httpx.URL:
        """What may be asked for free of charge, and answers shortly."""

    async def linked(self, prompt: Prompt, batched: bool = False) -> Prompt | Failure:
        """The prompt with its largest files uploaded, where the protocol can; `batched`: for a line of a batch."""
        return prompt

    def batches(self) -> Batches | None:
        """Who speaks the batches of this account; None: nobody, here."""
        return None

    async def delete_files(self) -> None:
        """Delete what was uploaded; most protocols have nowhere to upload to."""
        return

    async def is_emulator(self) -> bool:
        """Whether the emulator answers here: whoever does not say so is taken for the real service. Free of charge.

        Asks at most `ASK_TIMEOUT_S`, so that a relay without that route holds nobody up.
        """
        answer = await self._wire.get(self.free_url, self._headers, min(self._timeout_s, ASK_TIMEOUT_S))
        return not isinstance(answer, Lost) and is_emulated(answer)

    async def ask(
        self, url: httpx.URL, content: bytes, prompt: Prompt, model: str, lane: Lane = "standard"
    ) -> Reply | Failure:
        """POST `content`, which asks `model` for the answer to `prompt`, and read what comes back.

        A key that is refused is looked for again where it came from, and the request goes once more with another one:
        nothing was billed. It takes nothing from the pace either: a refused key's request counted against no quota.
        """
        return await self.insist(lambda: self._ask(url, content, prompt, model, lane))

    async def insist(self, ask: Callable[[], Awaitable[T | Failure]]) -> T | Failure:
        """Ask, and once more where the key is refused and another one is found: see `ask`."""
        key = self._key
        outcome = await ask()
        if isinstance(outcome, Failure) and outcome.kind == "auth" and await self._renewed(key):
            outcome = await ask()
        return outcome

    async def _renewed(self, refused: str) -> bool:
        """Whether there is another key than the refused one by now: one look for all that were refused."""
        if self.renew is None:
            return False
        async with self._renewing:
            now = asyncio.get_running_loop().time()
            if self._key == refused and now - self._looked_at >= RENEW_AFTER_S:
                found = await self.renew()
                if found in ("", refused):
                    self._looked_at = now
                else:
                    self.use_key(found)
            return self._key != refused

    async def _ask(
        self, url: httpx.URL, content: bytes, prompt: Prompt, model: str, lane: Lane = "standard"
    ) -> Reply | Failure:
        clock = asyncio.get_running_loop().time  # anyio's takes 2 µs
        started = clock()
        response = await self.exchange(url, content, STREAM_S if self._stream else None, lane=lane)
        latency_s, finished_at = clock() - started, time.time()
        if isinstance(response, Lost):
            return self.failure(response)
        return self.outcome(response, prompt, model, latency_s, finished_at)

    def outcome(
        self,
        response: Response,
        prompt: Prompt,
        model: str,
        latency_s: float = 0.0,
        finished_at: float = 0.0,
        lane: Lane | None = None,
    ) -> Reply | Failure:
        """What a response says to a request of `model` for `prompt`; `lane` is certain, whatever the response names."""
        body, answer = self._read(response.body)
        if isinstance(answer, Answer) and answer.cut:
            answer = self._cut(answer, response)
        if isinstance(answer, Unread):
            return self._unread(response, answer, prompt, model)
        reply = judge(answer, body, prompt.input_tokens_est, model)
        if not succeeded(response) and not reply.text:
            return self.failure(response, prompt, model, answer)
        return changed(
            reply,
            model=reply.model or bare_model(model),
            endpoint=self.endpoint,
            latency_s=latency_s,
            finished_at=finished_at,
            served_at=http_date(response.headers.get("date")),
            lane=lane or _lane_of(response) or reply.lane,
            emulated=reply.emulated or EMULATOR_HEADER in response.headers,
        )

    def _cut(self, answer: Answer, response: Response) -> Answer | Unread:
        """An answer that broke off, as it is taken: kept where it was to come in pieces, as it may be long and dear.

        One that a relay streams unasked is asked for again.
        """
        if not (self._stream and succeeded(response)):
            return Unread(answer.cut, usage=answer.usage, model=answer.model)
        return answer._replace(cut=response.lost.message) if response.lost else answer

    async def exchange(
        self,
        url: httpx.URL,
        content: bytes | Pieces | None = None,
        whole_s: float | None = None,
        *,
        more: Mapping[str, str] | None = None,
        delete: bool = False,
        patch: bool = False,
        lane: Lane = "standard",
        most_bytes: int = MOST_BODY_BYTES,
    ) -> Response | Lost:
        """POST or PATCH `content` with `more` headers, GET or DELETE; the key is out of the body before anybody reads.

        `whole_s`: see `Wire.post`; `most_bytes`: see `Wire.get`.
        """
        key = self._key  # it may be another when the answer comes
        common, timeout_s = self._headers, self._timeout_s
        if lane == "flex":
            common, timeout_s = self._flex_headers, self.patience_s(lane)
        headers = httpx.Headers({**common, **more}) if more else common
        if isinstance(content, Pieces):
            answer = await self._wire.send(url, headers, content, timeout_s)
        elif content is not None and patch:
            answer = await self._wire.patch(url, headers, content, timeout_s)
        elif content is not None:
            answer = await self._wire.post(url, headers, content, timeout_s, whole_s)
        elif delete:
            answer = await self._wire.delete(url, headers, timeout_s)
        else:
            answer = await self._wire.get(url, headers, timeout_s, most_bytes)
        return _without(key, answer)

    async def fetch(self, url: httpx.URL, write: Callable[[bytes], object]) -> Response | Lost:
        """GET lines of any number, which are written as they come, without the key; see `Wire.fetch`."""
        key, lines = self._key, BlottedLines(self._key, write, MOST_BODY_BYTES)
        headers = httpx.Headers({**self._headers, "accept-encoding": "gzip"})
        answer = await self._wire.fetch(url, headers, lines.take, self._timeout_s)
        if isinstance(answer, Response) and not answer.lost:
            lines.end()
        return _without(key, answer)

    def failure(
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
        failure = self.failure(response, prompt, model, unread)
        if not succeeded(response) or unread.refused or failure.kind != "transient":
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


class Connected(ABC):
    """A provider whose protocol is a `Connection`: one for each base URL and key, opened when it is first asked."""

    name: ProviderName

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._connections: dict[tuple[str, str], Connection] = {}

    @abstractmethod
    def connect(self, account: Account, target: Target) -> Connection:
        """A connection; raises `JobError` for a base URL that cannot be used."""

    def open(self, target: Target) -> Connection:
        """Get ready for requests to `target`; raises as `Connection` and `connect`."""
        place = target.base_url, target.access  # of one project there may be several keys
        connection = self._connections.get(place)
        if connection is None:
            connection = self.connect(self._accounts[target.access], target)
            connection.renew = self._accounts[target.access].renew
            self._connections[place] = connection
        return connection

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        """See `Connection`."""
        return await self.open(target).generate(prompt, target.model, target.lane)

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


def is_emulated(answer: Response) -> bool:
    """Whether the response bears the emulator's mark: a proxy may drop the header, a relay the body's field."""
    return EMULATOR_HEADER in answer.headers or is_marked(mapping(load(answer.body)))


def _lane_of(response: Response) -> Lane | None:
    tier = response.headers.get(TIER_HEADER)
    return None if tier is None else lane_of(tier)


def succeeded(response: Response) -> bool:
    """Whether the status says so."""
    return 200 <= response.status < 300


def _without(key: str, answer: Response | Lost) -> Response | Lost:
    if isinstance(answer, Lost) or not key:
        return answer
    body = blotted(_as_utf8(answer), key)
    return answer if body is answer.body else answer._replace(body=body)


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


def checked_key(key: str) -> str:
    """The key without white space around it. Raises `AuthError` for one that no HTTP header can carry."""
    key = key.strip()
    if not key.isascii() or not key.isprintable() or any(character in key for character in " \"'`"):
        raise AuthError("the API key has characters that no key has", hint="copy it again, without spaces or quotes")
    return key


def checked_url(base_url: str, provider: ProviderName) -> httpx.URL:
    """A base URL, read. Raises `JobError` that names the settings it may come from."""
    try:
        url = httpx.URL(base_url.strip())
        usable = url.scheme in ("http", "https") and is_host(url.raw_host.decode())
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable or url.userinfo or url.query or url.fragment or not _is_port(url.port):
        named = f" {without_secrets(base_url)}" if "://" in base_url else ""
        protocol = PROTOCOLS[provider]
        raise JobError(
            f"the base URL{named} cannot be one: it is http(s)://host, perhaps with a port from 1 to 65535 and a path,"
            f" without user, query or fragment\n[endpoint] base_url, or {protocol.base_url_variable}",
            hint=f"{protocol.owner}'s own is {protocol.base_url}; look at base_url in the job and at"
            f" {protocol.base_url_variable}",
        )
    return url


def _is_port(port: int | None) -> bool:
    return port is None or 0 < port <= 65_535
