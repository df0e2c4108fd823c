"""HTTP/1.1 requests to one origin, over aiohttp's connections and its parser, without the layers of its session.

A request's head is the same bytes each time, so nothing is left to be built for one but its length. What the session
and an httpx transport above it did besides is not wanted here (redirects, cookies, `.netrc`, decompression), and cost
90 of 150 µs a request (measured 2026-11).
"""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pipeline.providers.barriers import SocksRefused, Unconnected
from pipeline.providers.connectors import Connector, watched
from pipeline.providers.encoding import TooLarge
from pipeline.providers.proxies import Proxy

_UNTIMED = aiohttp.ClientTimeout()

MOST_HEADER_BYTES = 65_536
"""Of one header line; proxies in companies add some of 10 kB."""
MOST_BODY_BYTES = 16 * 1024 * 1024
"""Of one response, packed or unpacked: twice the longest answer of any model, a million tokens of 8 bytes in JSON."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A body that is read while it is sent; `size` is that of all its pieces."""

    size: int
    read: Callable[[], AsyncIterator[bytes]]


@dataclass(slots=True)
class Came:
    """What has come back of one request so far: nothing while `status` is 0; the body as it came, packed or not.

    Of a 200 the body goes `into` that instead, where there is one, and has any size.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    most: int = MOST_BODY_BYTES
    into: Callable[[bytes], object] | None = None

    def take(self, part: bytes) -> None:
        """One more piece of the body; raises `TooLarge` beyond `most` bytes."""
        self.size += len(part)
        if self.into is not None and self.status == 200:
            self.into(part)
            return
        self.parts.append(part)
        if self.size > self.most:
            raise TooLarge


class Origin:
    """Connections to the origin of `url`, direct or through `proxy`. The caller bounds its requests in flight.

    `certificates` say whom to trust; `connect_timeout_s` limits all that comes before a request.
    """

    def __init__(
        self,
        url: httpx.URL,
        proxy: Proxy | None,
        connect_timeout_s: float,
        certificates: Callable[[], ssl.SSLContext],
    ) -> None:
        self._url = URL(f"{url.scheme}://{url.netloc.decode()}")
        self.proxy = proxy
        relay = proxy.url if proxy and not proxy.is_socks else None
        self._relay = relay.copy_with(userinfo=b"") if relay else None
        self._login = b64encode(f"{relay.username}:{relay.password}".encode()) if relay and relay.userinfo else b""
        self._connect_timeout_s = connect_timeout_s
        is_secret = "https" in (url.scheme, self._relay.scheme if self._relay else "")
        self._certificates = certificates() if is_secret else True
        self._connector: Connector | None = None  # made by the first request: aiohttp wants a running loop
        self._key: Any = None

    def head(self, method: str, url: httpx.URL, headers: httpx.Headers) -> bytes:
        """The first lines of a request, to which its length and a blank line are added."""
        asks_proxy = self._relay is not None and url.scheme == "http"
        place = b"%s://%s" % (url.raw_scheme, url.netloc) if asks_proxy else b""
        lines = [b"%s %s%s HTTP/1.1" % (method.encode(), place, url.raw_path), b"Host: " + url.netloc]
        lines += [b"%s: %s" % line for line in headers.raw]
        if asks_proxy and self._login:
            lines.append(b"Proxy-Authorization: Basic " + self._login)
        if any(b"\r" in line or b"\n" in line for line in lines):
            raise ValueError("a header of a request has more than one line")
        return b"\r\n".join(lines)

    async def exchange(
        self,
        head: bytes,
        content: bytes | Pieces | None,
        timeout_s: float,
        came: Came,
        whole_s: float | None = None,
    ) -> None:
        """Send one request and put what comes back into `came`; `timeout_s` limits all of it.

        With `whole_s`, that limits all of it, and `timeout_s` the silence before each piece.

        Raises `Unconnected`, what aiohttp raises, and `TooLarge`; `came` then holds what had come before.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        last_at = ends_at if whole_s is None else loop.time() + whole_s
        connection = await self._connection(timeout_s)
        protocol = connection.protocol
        payload: Any = None

        def give_up() -> None:
            error = aiohttp.SocketTimeoutError("no complete answer in time")
            protocol.set_exception(error)
            if payload is not None:
                payload.set_exception(error)

        timer = loop.call_at(ends_at, give_up)  # costs a third of `asyncio.timeout`
        try:
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=MOST_HEADER_BYTES,
                max_field_size=MOST_HEADER_BYTES,
            )
            if content is None:
                protocol.transport.write(head + b"\r\n\r\n")
            elif isinstance(content, Pieces):
                timer.cancel()
                await _written(protocol, head, content, timeout_s)
                timer = loop.call_at(min(loop.time() + timeout_s, last_at), give_up)
            else:
                protocol.transport.write(b"%s\r\nContent-Length: %d\r\n\r\n%s" % (head, len(content), content))
            while came.status < 200 and came.status != 101:  # 103: there is more to come
                message, payload = await protocol.read()
                came.status, came.headers = message.code, message.headers
            while not payload.at_eof() and (part := await payload.readany()):
                came.take(part)
                if whole_s is not None:
                    timer.cancel()
                    timer = loop.call_at(min(loop.time() + timeout_s, last_at), give_up)
            connection.release()
        finally:
            timer.cancel()
            connection.close()  # one that was not given back: nobody knows what may still come on it

    async def open(self) -> None:
        """Make a connection and keep it for the first request; raises `Unconnected`."""
        (await self._connection(self._connect_timeout_s)).release()

    async def _connection(self, timeout_s: float) -> Any:
        connector = self._connector
        if connector is None:
            connector = self._connector = Connector(self._certificates, self.proxy)
        if self._key is not None and (connection := await connector._get(self._key, ())) is not None:
            return connection
        login = {"authorization": f"Basic {self._login.decode()}"} if self._login else None
        relay = URL(str(self._relay)) if self._relay else None
        address = aiohttp.ClientRequest("GET", self._url, proxy=relay, proxy_headers=login)
        self._key = address.connection_key  # before aiohttp adds to the proxy's headers, which are part of it
        steps = watched()
        given_s = min(timeout_s, self._connect_timeout_s)
        try:
            async with asyncio.timeout(given_s):
                return await connector.connect(address, [], _UNTIMED)
        except (aiohttp.ClientError, HttpProcessingError, SocksRefused, OSError) as error:
            raise Unconnected(steps[-1], given_s) from error

    async def aclose(self) -> None:
        """Close every connection."""
        if self._connector is not None:
            await self._connector.close()


async def _written(protocol: Any, head: bytes, content: Pieces, timeout_s: float) -> None:
    """Send a body piece by piece, each within `timeout_s`; what answers and hangs up before the end is listened to."""
    transport = protocol.transport
    transport.write(b"%s\r\nContent-Length: %d\r\n\r\n" % (head, content.size))
    try:
        async for piece in content.read():
            async with asyncio.timeout(timeout_s):
                with suppress(aiohttp.ClientConnectionError, ConnectionError):
                    transport.write(piece)
                    await protocol._drain_helper()
            if transport.is_closing():
                return
    except BaseException:
        transport.abort()  # closed, it would wait for what nobody takes
        raise
