"""Requests and responses over ASGI, broken ones included."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

import anyio
import anyio.lowlevel
import orjson

from pipeline.emulator import bodies
from pipeline.emulator.kept import Kept
from pipeline.records import EMULATOR_FIELD, EMULATOR_HEADER

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ABORT = "emulator.abort"
"""ASGI scope extension: a function that resets the connection, from a server that can."""

_MARK = f'"{EMULATOR_FIELD}":true'.encode()

RAW = "emulator.raw"
"""ASGI scope extension: a function that puts bytes on the connection as they are, then closes it."""

_CUT = "connection closed by the emulator in the middle of a response"

_ENDLESS = 512 * 2**20  # bytes after which even an endless body breaks off

MAX_BODY = 100 * 2**20  # bytes of a request, as the service's own limit for inline data


class ClientGone(Exception):
    """The client closed the connection while it was sending."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[bytes, bytes]
    receive: Receive
    base: str = ""  # scheme and host that were asked

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return self.query[name][0] if name in self.query else None

    def header(self, name: bytes) -> str:
        """A header's value; empty when absent."""
        return self.headers.get(name, b"").decode("latin-1")

    def shown(self) -> dict[str, str]:
        """The request's headers as a careless server tells them, key included."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The request body as it comes; raises `ClientGone` when it never ends."""
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def body(self, most: int | None = None) -> bytes:
        """The request body; raises `Refusal` past `most` bytes (`MAX_BODY`) and `ClientGone` when it never ends."""
        most = MAX_BODY if most is None else most
        received = bytearray()
        async for data in self.chunks():
            received += data
            if len(received) > most:
                raise bodies.refusal(400, f"Request payload size exceeds the limit: {most} bytes.")
        return bytes(received)


@dataclass(frozen=True, slots=True)
class Response:
    """One response; `broken` says that it is not delivered whole, or not as HTTP.

    It is one of reset, hang, idle, truncated, endless, two_lengths and bad_chunk. `coding` makes the bytes of the wire.
    """

    status: int
    body: bytes
    content_type: str = bodies.JSON
    tier: str | None = None
    broken: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()  # beside the usual ones
    coding: Callable[[bytes], bytes] | None = None
    frames: tuple[bytes, ...] = ()  # the pieces of the body, where they come one after another
    pause_s: float = 0.0  # between two of them
    content: Kept | None = None  # in place of the body: what is sent from disk, and so many bytes of it
    size: int = 0


def read_call(scope: Scope, receive: Receive) -> Call:
    """The request of an ASGI scope."""
    query = parse_qs(scope["query_string"].decode("latin-1")) if scope["query_string"] else {}
    headers = dict(scope["headers"])
    host, port = scope.get("server") or ("", None)
    named = headers.get(b"host", b"").decode("latin-1") or (f"{host}:{port}" if port else host)
    return Call(scope["method"], scope["path"], query, headers, receive, f"{scope.get('scheme', 'http')}://{named}")


def json_response(body: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(status, orjson.dumps(body))


class Sender:
    """Puts responses on the wire, dated by `clock`; where no server can reset a connection, raises `lost` instead.

    With `marked` every response says that it is the emulator's.
    """

    def __init__(self, clock: Callable[[], float], lost: Callable[[str], Exception], marked: bool = True) -> None:
        self._clock = clock
        self._lost = lost
        self._marked = marked
        self._second = -1
        self._date = b""

    async def send(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Deliver `response`, or as much of it as it is meant to deliver."""
        if response.broken == "hang":
            return await _until_gone(receive)
        if response.broken == "reset":
            self._beneath_http(ABORT, scope)()
            return await _until_gone(receive)
        if self._marked:
            response = replace(response, body=_with_mark(response.body))
        if response.coding is not None:
            response = replace(response, body=response.coding(response.body))
        headers = self._headers(response)
        if response.broken in _BAD_HTTP:
            self._beneath_http(RAW, scope)(_BAD_HTTP[response.broken](response, headers))
            return await _until_gone(receive)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if response.content is not None:
            return await self._from_disk(response, response.content, send)
        if response.broken == "truncated":
            half = response.body[: len(response.body) // 2]
            await send({"type": "http.response.body", "body": half, "more_body": True})
            raise self._lost(_CUT)
        if response.broken == "endless":
            self._beneath_http(RAW, scope)
            return await _blanks_until_gone(receive, send)
        if response.broken == "idle" or (response.frames and response.pause_s):
            return await self._in_pieces(response, receive, send)
        return await send({"type": "http.response.body", "body": response.body})

    async def _from_disk(self, response: Response, content: Kept, send: Send) -> None:
        is_cut = response.broken == "truncated"
        for block in content.blocks(response.size // 2 if is_cut else response.size):
            await send({"type": "http.response.body", "body": block, "more_body": True})
        if is_cut:
            raise self._lost(_CUT)
        await send({"type": "http.response.body", "body": b""})

    async def _in_pieces(self, response: Response, receive: Receive, send: Send) -> None:
        """One piece after another; of an idle stream the end never comes."""
        for number, frame in enumerate(response.frames):
            if number and response.pause_s:
                await anyio.sleep(response.pause_s)
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        if response.broken == "idle":
            await _until_gone(receive)
        else:
            await send({"type": "http.response.body", "body": b""})

    def _beneath_http(self, extension: str, scope: Scope) -> Callable[..., None]:
        """What only a server with a socket can do; in process the connection is lost instead."""
        able: Callable[..., None] | None = scope.get("extensions", {}).get(extension)
        if able is None:
            raise self._lost("connection broken by the emulator")
        return able

    def _headers(self, response: Response) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", response.content_type.encode()),
            (b"date", self._now()),
            (b"vary", b"Origin, X-Origin, Referer"),
            (b"server", b"scaffolding on HTTPServer2"),
            *response.headers,
        ]
        if self._marked:
            headers.append((EMULATOR_HEADER.encode(), b"1"))
        if response.broken not in ("endless", "bad_chunk", "idle") and not (response.frames and response.pause_s):
            length = len(response.body) if response.content is None else response.size
            headers.append((b"content-length", str(length).encode()))
        if response.tier:
            headers.append((b"x-gemini-service-tier", response.tier.encode()))
        return headers

    def _now(self) -> bytes:
        second = int(self._clock())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
        return self._date


def _with_mark(body: bytes) -> bytes:
    """The body with the mark as the first field, where it is a JSON object; at the start even a cut body keeps it."""
    if not body.startswith(b"{"):
        return body
    return b"{" + _MARK + (b"" if body.startswith(b"{}") else b",") + body[1:]


def _twice_as_long(response: Response, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return _head(response, (*headers, (b"content-length", str(len(response.body) + 1).encode()))) + response.body


def _badly_chunked(response: Response, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return _head(response, (*headers, (b"transfer-encoding", b"chunked"))) + b"size?\r\n" + response.body


def _head(response: Response, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    lines = [b"HTTP/1.1 %d OK" % response.status, *(name + b": " + value for name, value in headers)]
    return b"\r\n".join([*lines, b"", b""])


_BAD_HTTP: Mapping[str | None, Callable[[Response, Sequence[tuple[bytes, bytes]]], bytes]] = {
    "two_lengths": _twice_as_long,
    "bad_chunk": _badly_chunked,
}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _blanks_until_gone(receive: Receive, send: Send) -> None:
    blanks = {"type": "http.response.body", "body": b" " * 2**16, "more_body": True}
    async with anyio.create_task_group() as group:

        async def end_with_the_client() -> None:
            await _until_gone(receive)
            group.cancel_scope.cancel()

        group.start_soon(end_with_the_client)
        for _ in range(_ENDLESS // 2**16):
            await send(blanks)
            await anyio.lowlevel.checkpoint()  # a client that left is noticed
        group.cancel_scope.cancel()
