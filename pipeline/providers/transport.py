"""One HTTP exchange: bytes out, status, headers and bytes back, or the reason why nothing came back.

    provider → Wire.post → Origin.exchange → aiohttp's connection pool → socket
                         → httpx.AsyncBaseTransport, where one replaces the network

httpx's own pool scans every connection twice per request (12 ms of CPU a request at 512 in flight; 0.06 ms here,
whatever the number). No redirect is followed, so a key never travels to another host; no cookie is kept; no `.netrc` is
read; a `Network` says which proxy is taken. HTTP/1.1 only: one HTTP/2 connection caps the calls in flight at about 100.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Self

import aiohttp
import anyio
import httpx
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.providers.barriers import Barrier, Unconnected, barrier, passes_nothing_on
from pipeline.providers.connections import MOST_BODY_BYTES, MOST_HEADER_BYTES, Came, Origin, Pieces
from pipeline.providers.encoding import TooLarge, Undecodable, Unpacking, decoded
from pipeline.providers.networks import Network
from pipeline.providers.proxies import Proxy

READ_TIMEOUT_S = 300.0
STREAM_S = 3600.0
"""Of one answer that is streamed, or of one file, from the first byte out to the last byte in."""
_MOST_WAYS = 64
_AROUND = Network()
_LATELY_S = 5.0
_Name = tuple[str, str, int | None]


@dataclass(frozen=True, slots=True)
class Lost:
    """A request without a response that can be read; `sent` is False when it provably never reached the server.

    `unreadable`: a response came and breaks HTTP or its own header, as it would the next time. `proxy`: a proxy passes
    nothing on.
    """

    kind: Literal["not_connected", "timeout", "broken", "unreadable", "proxy"]
    sent: bool
    message: str  # one line, without headers or body
    advice: str = ""  # what to set or to look at, where that is known


class Response(NamedTuple):
    """An HTTP response; `body` is decompressed, `headers` look names up in any case.

    `lost` says why `body` is not whole, as far as the protocol tells: it may hold all that matters all the same.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    lost: Lost | None = None


class Wire:
    """Connections to any number of hosts, bounded by nobody: the caller bounds its calls in flight.

    `transport` replaces the network: `httpx.ASGITransport(app)` in offline runs and tests. Use it under `async with`.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None, *, network: Network = _AROUND) -> None:
        self._replacement = transport
        self._network = network
        self._origins: dict[_Name, Origin] = {}
        self._ways: dict[int, _Way] = {}
        self._met: dict[_Name, tuple[Lost, float]] = {}  # what barred the way, and when

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        with anyio.CancelScope(shield=True):
            if self._replacement is not None:
                await self._replacement.aclose()
            for origin in self._origins.values():
                await origin.aclose()

    def prepare(self, url: httpx.URL) -> None:
        """Find the way to `url` before the first request; raises `PipelineError` for a proxy that cannot be used."""
        if self._replacement is None:
            self._origin(url)

    async def reach(self, url: httpx.URL) -> Lost | None:
        """Connect to `url` before the first request, and say what is in the way; that connection is used later.

        What a request has met in the last seconds is told as it was, once.
        """
        if self._replacement is not None:
            return None
        lost, at = self._met.pop(_name(url), (None, 0.0))
        if lost is not None and asyncio.get_running_loop().time() - at < _LATELY_S:
            return lost
        try:
            await self._origin(url).open()
        except Unconnected as error:
            return self._barred(url, error)
        return None

    async def post(
        self,
        url: httpx.URL,
        headers: httpx.Headers,
        content: bytes,
        timeout_s: float = READ_TIMEOUT_S,
        whole_s: float | None = None,
    ) -> Response | Lost:
        """POST `content`; `timeout_s` limits the whole exchange, from the first byte out to the last byte in.

        With `whole_s`, that limits the exchange, and `timeout_s` the silence before each piece of the answer.
        """
        return await self._exchange("POST", url, headers, content, timeout_s, whole_s)

    async def send(
        self, url: httpx.URL, headers: httpx.Headers, content: Pieces, timeout_s: float = READ_TIMEOUT_S
    ) -> Response | Lost:
        """POST what is read while it is sent; `timeout_s` limits the silence, `STREAM_S` the whole."""
        return await self._exchange("POST", url, headers, content, timeout_s, STREAM_S)

    async def get(
        self,
        url: httpx.URL,
        headers: httpx.Headers,
        timeout_s: float = READ_TIMEOUT_S,
        most_bytes: int = MOST_BODY_BYTES,
    ) -> Response | Lost:
        """GET `url`; `timeout_s` as in `post`; an answer has at most `most_bytes`, packed or not."""
        return await self._exchange("GET", url, headers, None, timeout_s, came=Came(most=most_bytes))

    async def fetch(
        self,
        url: httpx.URL,
        headers: httpx.Headers,
        pass_on: Callable[[bytes], object],
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Response | Lost:
        """GET `url`; the body of a 200 is passed on as it comes, unpacked, and has any size; its length is checked.

        Times as in `send`. What `pass_on` raises is raised, unless it is of the network: no `OSError`.
        """
        unpacking = Unpacking(pass_on)
        came = Came(into=unpacking.take)
        answer = await self._exchange("GET", url, headers, None, timeout_s, STREAM_S, came)
        if isinstance(answer, Lost) or answer.status != 200 or answer.lost:
            return answer
        try:
            unpacking.end()
        except Undecodable as error:
            return answer._replace(lost=Lost("unreadable", sent=True, message=str(error)))
        told = answer.headers.get("content-length", "")
        if told.isdecimal() and int(told) != came.size:  # what replaces the network does not look
            return answer._replace(lost=Lost("broken", sent=True, message="the connection ended before the answer did"))
        return answer

    async def delete(
        self, url: httpx.URL, headers: httpx.Headers, timeout_s: float = READ_TIMEOUT_S
    ) -> Response | Lost:
        """DELETE `url`; `timeout_s` as in `post`."""
        return await self._exchange("DELETE", url, headers, None, timeout_s)

    async def patch(
        self, url: httpx.URL, headers: httpx.Headers, content: bytes, timeout_s: float = READ_TIMEOUT_S
    ) -> Response | Lost:
        """PATCH `content`; `timeout_s` as in `post`."""
        return await self._exchange("PATCH", url, headers, content, timeout_s)

    async def _exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: httpx.Headers,
        content: bytes | Pieces | None,
        timeout_s: float,
        whole_s: float | None = None,
        came: Came | None = None,
    ) -> Response | Lost:
        came = came or Came()
        lost: Lost | None = None
        try:
            if self._replacement is None:
                origin, head = self._way(method, url, headers)
                await origin.exchange(head, content, timeout_s, came, whole_s)
            else:
                # A given stream keeps httpx from adding headers one by one (50 µs a call).
                stream = _Streamed(content) if isinstance(content, Pieces) else httpx.ByteStream(content or b"")
                request = httpx.Request(method, url, headers=headers, stream=stream)
                # asyncio's own timeout: anyio's costs 80 µs a call more.
                async with asyncio.timeout(timeout_s) as limit:
                    await _passed_on(self._replacement, request, came, limit, timeout_s, whole_s)
        except Unconnected as error:
            lost = self._barred(url, error)
            self._met[_name(url)] = lost, asyncio.get_running_loop().time()
            return lost
        except (httpx.HTTPError, aiohttp.ClientError, HttpProcessingError, OSError) as error:
            lost = _lost(error)  # OSError: TimeoutError is one of them
        except TooLarge:
            lost = _too_large(came.most)
            del came.parts[1:]
        except Undecodable as error:
            lost = Lost("unreadable", sent=True, message=str(error))
        if came.status < 200 and came.status != 101:
            return lost or Lost("broken", sent=True, message="no answer")
        if came.status == 407 and url.scheme == "http" and (proxy := self._proxy(url)) and not proxy.is_socks:
            return _barred(passes_nothing_on(proxy, 407, came.headers))
        try:
            body = decoded(b"".join(came.parts), came.headers.get("content-encoding", ""), came.most)
        except TooLarge:
            body, lost = b"", _too_large(came.most)
        except Undecodable as error:
            body, lost = b"", lost or Lost("unreadable", sent=True, message=str(error))
        return Response(came.status, came.headers, body, lost)

    def _way(self, method: str, url: httpx.URL, headers: httpx.Headers) -> tuple[Origin, bytes]:
        """To whom a request goes, and how it begins."""
        known = self._ways.get(id(url))  # the hash of an URL takes longer than all of this
        if known is not None and known.url is url and known.headers is headers and known.method == method:
            return known.origin, known.head
        origin = self._origin(url)
        if len(self._ways) >= _MOST_WAYS:
            self._ways.clear()
        head = origin.head(method, url, headers)
        self._ways[id(url)] = _Way(method, url, headers, origin, head)
        return origin, head

    def _origin(self, url: httpx.URL) -> Origin:
        name = _name(url)
        origin = self._origins.get(name)
        if origin is None:
            network = self._network
            origin = self._origins[name] = Origin(
                url, network.proxy_to(url), network.connect_timeout_s, network.certificates
            )
        return origin

    def _proxy(self, url: httpx.URL) -> Proxy | None:
        return self._origin(url).proxy if self._replacement is None else None

    def _barred(self, url: httpx.URL, error: Unconnected) -> Lost:
        return _barred(barrier(error, url, self._proxy(url)))


class _Streamed(httpx.AsyncByteStream):
    """Pieces, for what replaces the network."""

    def __init__(self, content: Pieces) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._content.read()


def _name(url: httpx.URL) -> _Name:
    return url.scheme, url.host, url.port


class _Way(NamedTuple):
    """Where a request goes, and how it begins: the same for every call of one model."""

    method: str
    url: httpx.URL
    headers: httpx.Headers
    origin: Origin
    head: bytes


async def _passed_on(
    transport: httpx.AsyncBaseTransport,
    request: httpx.Request,
    came: Came,
    limit: asyncio.Timeout,
    timeout_s: float,
    whole_s: float | None,
) -> None:
    """Have what replaces the network answer; `limit` is put off with each piece where `whole_s` limits the whole."""
    clock = asyncio.get_running_loop().time
    ends_at = clock() + (whole_s or 0.0)
    response = await transport.handle_async_request(request)
    try:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        came.status, came.headers = response.status_code, response.headers
        async for part in response.stream:
            came.take(part)
            if whole_s is not None:
                limit.reschedule(min(clock() + timeout_s, ends_at))
    finally:
        await response.aclose()


_NOT_CONNECTED = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol)
_CONNECT_TIMEOUT = (httpx.ConnectTimeout, httpx.PoolTimeout)
_TIMEOUT = (TimeoutError, httpx.TimeoutException)


def _barred(why: Barrier) -> Lost:
    return Lost(why.kind, sent=False, message=why.message, advice=why.advice)


def _lost(error: Exception) -> Lost:
    if isinstance(error, _NOT_CONNECTED):
        return Lost("not_connected", sent=False, message=" ".join(f"{error}".split())[:200] or "no connection")
    if isinstance(error, _CONNECT_TIMEOUT):
        return Lost("timeout", sent=False, message="no connection in time")
    if isinstance(error, _TIMEOUT):
        return Lost("timeout", sent=True, message="no complete answer in time")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Lost("broken", sent=True, message="the connection ended before the answer did")
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        return Lost("unreadable", sent=True, message=f"the answer breaks HTTP: {_breach(error.message)}")
    return Lost("broken", sent=True, message=" ".join(f"{error}".split())[:200] or type(error).__name__)


def _too_large(most: int) -> Lost:
    return Lost("unreadable", sent=True, message=f"the answer is larger than {most // 2**20} MiB: no model's answer is")


def _breach(message: str) -> str:
    """What aiohttp's parser says, without the bytes that it shows: they are the server's."""
    if "Got more than" in message:
        return f"a header or line is longer than {MOST_HEADER_BYTES // 1024} kB"
    words = re.split(r"\bb['\"]", message)[0]
    return " ".join(words.split()).rstrip(" :^") or "malformed"
