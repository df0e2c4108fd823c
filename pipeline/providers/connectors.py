"""aiohttp's pool of connections, which tells how far a failed one got, and goes through SOCKS5 as well.

python-socks speaks the protocol: 50 kB of Python without dependencies, loaded where a SOCKS proxy is named.
"""

import socket
import ssl
import time
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import aiohappyeyeballs
import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline import machine
from pipeline.providers.barriers import SocksRefused, Step
from pipeline.providers.proxies import Proxy

KEEPALIVE_S = 30.0
DNS_CACHE_S = 300
QUIET_S = 0.1
"""So long a connection must have been silent since its last answer; 1,000 calls/s then use 100 connections more."""

_LONGEST_S = 86_400.0
"""Told to python-socks, which takes 60 s else: whoever asks for a connection limits it."""

_steps: ContextVar[list[Step]] = ContextVar("steps")


def watched() -> list[Step]:
    """The steps that an attempt at a connection takes from here on, in this task."""
    steps: list[Step] = ["name"]
    _steps.set(steps)
    return steps


class Connector(aiohttp.TCPConnector):
    """Hands out no connection on which something came that nobody asked for: the next request would take it as its own.

    So one rests for `QUIET_S` before it is used again, where there are files enough for others meanwhile. What comes
    unasked while a request is on its way cannot be told from its answer: HTTP/1.1 has no name for a request.
    """

    def __init__(self, certificates: ssl.SSLContext | bool, proxy: Proxy | None) -> None:
        self._socks = proxy if proxy and proxy.is_socks else None
        super().__init__(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=DNS_CACHE_S,
            ssl=certificates,
            resolver=_Unresolved() if self._socks and self._socks.looks_up else None,
        )

    async def _get(self, key: Any, traces: Any) -> Any:
        if (idle := self._conns.get(key)) and time.monotonic() - idle[0][1] < QUIET_S and self._has_room(len(idle)):
            return None
        while (connection := await super()._get(key, traces)) is not None and _is_talked_over(connection.protocol):
            connection.close()
        return connection

    def _has_room(self, idle: int) -> bool:
        allowed = machine.allowed_files()
        return allowed is None or len(self._acquired) + idle < allowed // 2

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: Any, client_error: Any = None, **kwargs: Any
    ) -> Any:
        """Connect to the target, through SOCKS where one is named, or to its HTTP proxy, whichever aiohttp asks for.

        Unlike aiohttp's own it tries no address again after all have failed: each round of them would take the whole
        time again. What happened is raised as it is.
        """
        steps = _steps.get()
        steps.append("connect")
        if self._socks:
            through = await self._through(self._socks, addr_infos, steps)
        else:
            through = await self._connected(addr_infos)
        to_proxy = client_error is aiohttp.ClientProxyConnectionError
        secret = {name: kwargs[name] for name in ("ssl", "server_hostname")}
        if secret["ssl"] is not None and not to_proxy:
            steps.append("tls")
        connection = await self._loop.create_connection(*args, **secret, sock=through)
        if to_proxy:
            steps.append("tunnel")
        return connection

    async def _start_tls_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Agree on TLS with the target, behind an HTTP proxy."""
        _steps.get().append("tls")
        return await super()._start_tls_connection(*args, **kwargs)

    async def _connected(self, addr_infos: Any) -> socket.socket:
        """A connection to whichever address answers first: each is given a quarter of a second before the next."""
        return await aiohappyeyeballs.start_connection(
            addr_infos,
            happy_eyeballs_delay=self._happy_eyeballs_delay,
            interleave=self._interleave,
            loop=self._loop,
        )

    async def _through(self, proxy: Proxy, addr_infos: Any, steps: list[Step]) -> socket.socket:
        from python_socks import ProxyError, ProxyType
        from python_socks.async_.asyncio import Proxy as Socks

        async def reach(**_: object) -> socket.socket:
            found = await self._loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
            connected = await self._connected(found)
            steps.append("tunnel")
            return connected

        # What the proxy reaches by IPv6 is not known here; IPv4 goes nearly everywhere.
        host, port = min(addr_infos, key=lambda info: info[0])[4][:2]
        socks = Socks(
            ProxyType.SOCKS5,
            proxy.host,
            proxy.port,
            proxy.url.username or None,
            proxy.url.password or None,
            rdns=True,  # what it is given is passed on as it is: a name, or an address that was looked up here
            forward=SimpleNamespace(connect=reach),  # type: ignore[arg-type]  # all that is asked of another proxy
        )
        try:
            return await socks.connect(host, port, timeout=_LONGEST_S)
        except ProxyError as error:
            raise SocksRefused(str(error), error.error_code) from error
        except UnicodeError as error:
            raise socket.gaierror(socket.EAI_NONAME, "no name that a host can have") from error


class _Unresolved(AbstractResolver):
    """Leaves names to the proxy."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=host, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def _is_talked_over(protocol: Any) -> bool:
    """Whether something was read, or can be, from a connection that waits for a request: words, or its end."""
    if protocol.should_close or protocol.transport is None:
        return True
    return machine.is_readable(protocol.transport.get_extra_info("socket").fileno())
