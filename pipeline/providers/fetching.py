"""Files that a table names by their address, fetched by us: over https, from public addresses only.

A name is resolved once, its addresses are judged, and the connection goes to those that passed: a name that resolves
anew to another address gains nothing. Each address is judged again as its socket is made, however it was written:
digits of another script are an address to a URL library and none to Python's. Redirects are followed by hand.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohappyeyeballs import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.media import TAKEN, form_of
from pipeline.prompts import Prompt, Text
from pipeline.providers.networks import Network
from pipeline.records import Failure, Media

MOST_REDIRECTS = 5
FETCH_TIMEOUT_S = 60.0
"""Of one file, redirects and all."""
AT_ONCE = 16
_NAT64 = IPv6Network("64:ff9b::/96")
_IPV4_WITHIN = (IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"), _NAT64)
"""Whose last 32 bits are an address of version 4: as it was once written, as it is translated (RFC 2765, 6052)."""
_BLOCK_BYTES = 2**16

Judge = Callable[[IPv4Address | IPv6Address], bool]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether anybody may have it: not private, loopback, link-local, a carrier's, multicast or reserved.

    An IPv4 address within an IPv6 one is judged too.
    """
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if any(address in network for network in _IPV4_WITHIN):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast


class _Judging(AbstractResolver):
    """Resolves names to the addresses that pass."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._names = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        passed = [each for each in found if _passes(each["host"], self._judge)]
        if not passed:
            raise _Refused(f"{host} has no public address")
        return passed

    async def close(self) -> None:
        await self._names.close()


def _passes(host: str, judge: Judge) -> bool:
    """Whether `host` is an address, and one that passes."""
    try:
        return judge(ip_address(host.partition("%")[0]))
    except ValueError:
        return False


class _Refused(OSError):
    """An address is not fetched from; its message says why."""


class Fetcher:
    """Fetches what prompts name, `AT_ONCE` files at most; `judge` says which addresses may be connected to."""

    def __init__(self, most_bytes: int, judge: Judge = is_public, certificates: ssl.SSLContext | None = None) -> None:
        self._most_bytes, self._judge, self._certificates = most_bytes, judge, certificates or Network().certificates()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def filled(self, prompt: Prompt) -> Prompt | Failure:
        """The prompt with the content of its files in the place of their addresses."""
        if not any(file.url for file in prompt.media):
            return prompt
        content: dict[str, Media] = {}
        for file in prompt.media:
            if file.url:
                fetched = await self._fetched(file)
                if isinstance(fetched, Failure):
                    return fetched
                content[file.url] = fetched
        turns = tuple(
            replace(
                turn,
                parts=tuple(
                    part if isinstance(part, Text) or not part.url else content[part.url] for part in turn.parts
                ),
            )
            for turn in prompt.content
        )
        return replace(prompt, content=turns)

    async def _fetched(self, file: Media) -> Media | Failure:
        try:
            async with self._room, asyncio.timeout(FETCH_TIMEOUT_S):
                content = await self._content(file.url)
        except _Refused as why:
            return _unfit(str(why))
        except (aiohttp.InvalidURL, UnicodeError):
            return _unfit("it leads to an address that is none")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(refused := getattr(error, "os_error", error.__cause__), _Refused):
                return _unfit(str(refused))
            host = urlsplit(file.url).hostname
            return Failure("transient", "network", f"{host} was not reached: {type(error).__name__}", sent=False)
        if isinstance(content, Failure):
            return content
        form = form_of(content)
        if form not in TAKEN[file.kind]:
            return _unfit(f"what was fetched is {form or 'of no known form'}, which is not taken as {file.kind}")
        digest = blake2b(content, digest_size=16).hexdigest()
        return replace(file, mime_type=form, digest=digest, size_bytes=len(content), data=content, url="")

    async def _content(self, url: str) -> bytes | Failure:
        connector = aiohttp.TCPConnector(
            resolver=_Judging(self._judge),
            ssl=self._certificates,  # aiohttp's own trusts nobody after `process.quick_imports`
            use_dns_cache=False,
            socket_factory=self._socket,
        )
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            for _ in range(MOST_REDIRECTS + 1):
                self._check(url)
                async with session.get(url, allow_redirects=False, headers={"accept-encoding": "identity"}) as answer:
                    if answer.status in (301, 302, 303, 307, 308):
                        url = urljoin(url, answer.headers.get("location", ""))
                        continue
                    if answer.status != 200:
                        return _of_status(answer.status, urlsplit(url).hostname)
                    return await self._body(answer)
        raise _Refused(f"more than {MOST_REDIRECTS} redirects")

    def _socket(self, address: AddrInfoType) -> socket.socket:
        """The one place that every connection passes."""
        family, kind, protocol, _, place = address
        if not _passes(str(place[0]), self._judge):
            raise _Refused(f"{place[0]} is not a public address")
        return socket.socket(family, kind, protocol)

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for block in answer.content.iter_chunked(_BLOCK_BYTES):
            content += block
            if len(content) > self._most_bytes:
                raise _Refused(f"what was fetched has more than {self._most_bytes:,} bytes ([input] inline_mb)")
        return bytes(content)

    def _check(self, url: str) -> None:
        """Raise for an address that is not https, or that names a host by a number that may not be connected to."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.username:
            raise _Refused("it leads to an address that is not https://host/…")
        try:
            address = ip_address(parts.hostname)
        except ValueError:
            return  # a name: the resolver judges what it stands for
        if not self._judge(address):
            raise _Refused(f"{parts.hostname} is not a public address")


def _of_status(status: int, host: str | None) -> Failure:
    if status in (408, 425, 429) or status >= 500:
        return Failure("transient", "server", f"{host} answers {status}", sent=False)
    return _unfit(f"{host} answers {status}")


def _unfit(message: str) -> Failure:
    return Failure("reject", "file", f"not fetched: {message}", sent=False)
