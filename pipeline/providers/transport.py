"""One HTTP exchange: bytes out, status, headers and bytes back, or the reason why nothing came back.

    provider → Wire.post → transport.handle_async_request → aiohttp's connection pool → socket

The transport under the `httpx.AsyncBaseTransport` seam is aiohttp's: httpx's own pool scans every connection twice per
request (12 ms of CPU a request at 512 in flight; 0.2 ms here, whatever the number). It is called without an
`httpx.AsyncClient` around it, which saves another 0.1 ms. What the client would have added is decided here: no redirect
is followed, so a key never travels to another host; no cookie is kept; no `.netrc` is read; proxies come from the
environment. HTTP/1.1 only: one HTTP/2 connection caps the calls in flight at about 100.
"""

import asyncio
import re
import resource
import select
import time
from base64 import b64encode
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from httpx_aiohttp import AiohttpTransport

from pipeline.errors import PipelineError
from pipeline.providers.encoding import TooLarge, Undecodable, decoded

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 300.0
KEEPALIVE_S = 30.0
DNS_CACHE_S = 300
QUIET_S = 0.1
"""So long a connection must have been silent since its last answer; 1,000 calls/s then use 100 connections more."""
MOST_HEADER_BYTES = 65_536
"""Of one header line; proxies in companies add some of 10 kB."""
MOST_BODY_BYTES = 16 * 1024 * 1024
"""Of one response, packed or unpacked: twice the longest answer of any model, a million tokens of 8 bytes in JSON."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A request without a response that can be read; `sent` is False when it provably never reached the server.

    `unreadable`: a response came and breaks HTTP or its own header, as it would the next time. `proxy`: a proxy that
    the environment names passes nothing on.
    """

    kind: Literal["not_connected", "timeout", "broken", "unreadable", "proxy"]
    sent: bool
    message: str  # one line, without headers or body


class Response(NamedTuple):
    """An HTTP response; `body` is decompressed, `headers` look names up in any case.

    `lost` says why `body` is not whole, as far as the protocol tells: it may hold all that matters all the same.
    """

    status: int
    headers: httpx.Headers
    body: bytes
    lost: Lost | None = None


class Wire:
    """Connections to any number of hosts, bounded by nobody: the caller bounds its calls in flight.

    `transport` replaces the network: `httpx.ASGITransport(app)` in offline runs and tests. Use it under `async with`.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None = None, *, connect_timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        self._replacement = transport
        self._extensions = {"timeout": {"connect": connect_timeout_s}}
        self._by_origin: dict[tuple[str, str, int | None], httpx.AsyncBaseTransport] = {}
        self._by_proxy: dict[httpx.URL | None, httpx.AsyncBaseTransport] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        transports = [self._replacement] if self._replacement is not None else list(self._by_proxy.values())
        with anyio.CancelScope(shield=True):
            for transport in transports:
                await transport.aclose()

    def prepare(self, url: httpx.URL) -> None:
        """Find the way to `url` before the first request; raises `PipelineError` for a proxy that cannot be used."""
        self._transport_for(url)

    async def post(
        self, url: httpx.URL, headers: httpx.Headers, content: bytes, timeout_s: float = READ_TIMEOUT_S
    ) -> Response | Lost:
        """POST `content`; `timeout_s` limits the whole exchange, from the first byte out to the last byte in."""
        # A given stream keeps httpx from adding headers one by one (50 µs a call): aiohttp adds the same ones anyway.
        request = httpx.Request(
            "POST", url, headers=headers, stream=httpx.ByteStream(content), extensions=self._extensions
        )
        request.read()
        return await self._exchange(request, timeout_s)

    async def get(self, url: httpx.URL, headers: httpx.Headers, timeout_s: float = READ_TIMEOUT_S) -> Response | Lost:
        """GET `url`; `timeout_s` as in `post`."""
        return await self._exchange(httpx.Request("GET", url, headers=headers, extensions=self._extensions), timeout_s)

    async def _exchange(self, request: httpx.Request, timeout_s: float) -> Response | Lost:
        transport = self._transport_for(request.url)
        response: httpx.Response | None = None
        parts: list[bytes] = []
        lost: Lost | None = None
        try:
            # asyncio's own timeout: anyio's costs 80 µs a call more, a sixth of the whole line.
            async with asyncio.timeout(timeout_s):
                response = await transport.handle_async_request(request)
                try:
                    await _read(response, parts)
                finally:
                    # A connection whose body was not read to its end is closed here, also when the call is cancelled.
                    await response.aclose()
        except (httpx.HTTPError, aiohttp.ClientError, HttpProcessingError, OSError) as error:
            lost = _stopped_on_the_way(request.url, error) or _lost(error)  # OSError: TimeoutError is one of them
        except TooLarge as error:
            lost = _lost(error)
            del parts[1:]
        if response is None:
            return lost or Lost("broken", sent=True, message="no answer")
        if response.status_code == 407 and request.url.scheme == "http" and (proxy := proxy_for(request.url)):
            return _passes_nothing_on(proxy, 407)
        try:
            body = decoded(b"".join(parts), response.headers.get("content-encoding", ""), MOST_BODY_BYTES)
        except TooLarge as error:
            body, lost = b"", _lost(error)
        except Undecodable as error:
            body, lost = b"", lost or Lost("unreadable", sent=True, message=str(error))
        return Response(response.status_code, response.headers, body, lost)

    def _transport_for(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        if self._replacement is not None:
            return self._replacement
        origin = (url.scheme, url.host, url.port)
        transport = self._by_origin.get(origin)
        if transport is None:
            proxy = proxy_for(url)
            transport = self._by_proxy.get(proxy) or _aiohttp_transport(proxy)
            self._by_proxy[proxy] = self._by_origin[origin] = transport
        return transport


async def _read(response: httpx.Response, parts: list[bytes]) -> None:
    """Collect the body as it comes, packed; raises `TooLarge` beyond `MOST_BODY_BYTES`."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    size = 0
    async for part in response.stream:
        parts.append(part)
        size += len(part)
        if size > MOST_BODY_BYTES:
            raise TooLarge


def proxy_for(url: httpx.URL) -> httpx.URL | None:
    """Proxy for `url` as HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say; `PipelineError` if it cannot be used.

    aiohttp and httpx can read these variables too, but aiohttp then also looks into `.netrc`, in a thread, for each
    request, and would send what it finds there beside the API key.
    """
    if proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host):
        return None
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named:
        return None
    try:
        proxy = httpx.URL(named if "://" in named else f"http://{named}")
    except httpx.InvalidURL:
        proxy = httpx.URL("")
    if proxy.scheme not in ("http", "https") or not proxy.host or not 0 < (proxy.port or 1) <= 65_535:
        raise PipelineError(
            f"the {proxy.scheme or 'malformed'} proxy that the environment names for {url.host} cannot be used: "
            "it must be http(s)://host:port",
            hint=f"set {url.scheme.upper()}_PROXY to such a proxy, or NO_PROXY={url.host} to go without",
        )
    return proxy


def _aiohttp_transport(proxy: httpx.URL | None) -> AiohttpTransport:
    certificates = httpx.create_ssl_context()

    def session() -> aiohttp.ClientSession:  # called by the first request: aiohttp wants a running loop
        return aiohttp.ClientSession(
            connector=_Connector(limit=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=DNS_CACHE_S, ssl=certificates),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=MOST_HEADER_BYTES,
            max_field_size=MOST_HEADER_BYTES,
        )

    return AiohttpTransport(client=session, verify=certificates, proxy=_with_credentials(proxy) if proxy else None)


class _Connector(aiohttp.TCPConnector):
    """Hands out no connection on which something came that nobody asked for: the next request would take it as its own.

    So one rests for `QUIET_S` before it is used again, where there are files enough for others meanwhile. What comes
    unasked while a request is on its way cannot be told from its answer: HTTP/1.1 has no name for a request.
    """

    async def _get(self, key: Any, traces: Any) -> Any:
        if (idle := self._conns.get(key)) and time.monotonic() - idle[0][1] < QUIET_S and self._has_room(len(idle)):
            return None
        while (connection := await super()._get(key, traces)) is not None and _is_talked_over(connection.protocol):
            connection.close()
        return connection

    def _has_room(self, idle: int) -> bool:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return soft == resource.RLIM_INFINITY or len(self._acquired) + idle < soft // 2


def _is_talked_over(protocol: Any) -> bool:
    """Whether something was read, or can be, from a connection that waits for a request: words, or its end."""
    if protocol.should_close or protocol.transport is None:
        return True
    ready = select.poll()
    ready.register(protocol.transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(ready.poll(0))


def _with_credentials(proxy: httpx.URL) -> httpx.Proxy:
    # A header instead of aiohttp's deprecated BasicAuth; aiohttp renames it to Proxy-Authorization.
    login = b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
    headers = {"authorization": f"Basic {login}"} if proxy.userinfo else None
    return httpx.Proxy(proxy.copy_with(userinfo=b""), headers=headers)


_NOT_CONNECTED = (
    aiohttp.ClientConnectorError,  # DNS, refused, unreachable, TLS, proxy unreachable
    aiohttp.ClientHttpProxyError,  # the proxy refused CONNECT
    httpx.ConnectError,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
_CONNECT_TIMEOUT = (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout, httpx.PoolTimeout)
_TIMEOUT = (TimeoutError, httpx.TimeoutException)


def _stopped_on_the_way(url: httpx.URL, error: Exception) -> Lost | None:
    """What a proxy says that opens no tunnel, for the login or the host; its other failures may pass."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientHttpProxyError) and cause.status in (401, 403, 405, 407):
        return _passes_nothing_on(proxy_for(url) or url, cause.status)
    return None


def _passes_nothing_on(proxy: httpx.URL, status: int) -> Lost:
    why = "asks for a login, or refuses the one it is given" if status == 407 else "passes no request on"
    place = f"{proxy.scheme}://{proxy.netloc.decode()}"
    return Lost("proxy", sent=False, message=f"the proxy {place} {why} (HTTP {status})")


def _lost(error: Exception) -> Lost:
    # httpx-aiohttp 0.2.0 maps every aiohttp connection error to ConnectTimeout, a reset in mid-answer included: only
    # the cause says what happened.
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    if isinstance(cause, _NOT_CONNECTED):
        message = " ".join(f"{cause}".replace(" ssl:default", "").split())  # aiohttp says so of plain HTTP too
        return Lost("not_connected", sent=False, message=message[:200] or "no connection")
    if isinstance(cause, _CONNECT_TIMEOUT):
        return Lost("timeout", sent=False, message="no connection in time")
    if isinstance(cause, _TIMEOUT):
        return Lost("timeout", sent=True, message="no complete answer in time")
    if isinstance(cause, TooLarge):
        most = f"{MOST_BODY_BYTES // 2**20} MiB"
        return Lost("unreadable", sent=True, message=f"the answer is larger than {most}: no model's answer is")
    if isinstance(cause, aiohttp.ClientPayloadError):
        return Lost("broken", sent=True, message="the connection ended before the answer did")
    if isinstance(cause, aiohttp.ClientResponseError | HttpProcessingError):
        return Lost("unreadable", sent=True, message=f"the answer breaks HTTP: {_breach(cause.message)}")
    return Lost("broken", sent=True, message=" ".join(f"{cause}".split())[:200] or type(cause).__name__)


def _breach(message: str) -> str:
    """What aiohttp's parser says, without the bytes that it shows: they are the server's."""
    if "Got more than" in message:
        return f"a header or line is longer than {MOST_HEADER_BYTES // 1024} kB"
    words = re.split(r"\bb['\"]", message)[0]
    return " ".join(words.split()).rstrip(" :^") or "malformed"
