"""Servers that break HTTP, never end, or send more than any answer is: over a real socket, through the whole client."""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from test_providers_gemini import ASKED, KEY, OK, prompt

from pipeline.providers.connections import MOST_BODY_BYTES
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply

Speak = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(speak: Speak) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that answers each request by `speak`; yields its base URL and the number of requests so far."""
    requests = [0]

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
                await reader.readexactly(length)
                requests[0] += 1
                await speak(writer)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(connection, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", requests


def ask(speak: Speak, *, times: int = 1, timeout_s: float = 20.0) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        async with server(speak) as (url, requests), Wire() as wire:
            gemini = GeminiConnection(wire, api_key=KEY, base_url=url, timeout_s=timeout_s)
            outcomes = [await gemini.generate(prompt(), ASKED) for _ in range(times)]
            assert requests[0] == times, "one call, one request"
            return outcomes

    return anyio.run(run)


def saying(raw: bytes, *, close: bool = False) -> Speak:
    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        if close:
            await writer.drain()
            writer.close()

    return speak


def response(body: bytes = OK, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    fields = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, fields, len(body), body)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    sized = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + sized + end


@pytest.mark.case("R6", "R7")
@pytest.mark.parametrize(
    ("raw", "close"),
    [
        (response(OK, b"x-trace: " + b"t" * 9_000), False),
        (response(OK, b"x-trace: " + b"t" * 60_000), False),
        (response(OK, *[b"x-%d: a" % number for number in range(90)]), False),
        (b"HTTP/1.0 200 OK\r\n\r\n" + OK, True),
        (b"HTTP/1.1 200 OK\r\n\r\n" + OK, True),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + response(), False),
        (response().replace(b"\r\n", b"\n"), False),
        (response(OK, b"content-encoding: gzip"), False),
        (response(gzip.compress(OK), b"content-encoding: x-gzip"), False),
        (response(gzip.compress(OK[:50]) + gzip.compress(OK[50:]), b"content-encoding: gzip"), False),
        (response(OK, "x-city: Zürich".encode("latin-1")), False),
        (chunked(OK[:50], OK[50:]), False),
        (chunked(OK[:50], OK[50:], end=b""), True),  # the last chunk is missing, and nothing of the answer
        (response().replace(b"content-length: %d" % len(OK), b"content-length: %d" % (len(OK) + 9)), True),
        (response(OK, status=b"201 Created"), False),
        (response(OK, status=b"200"), False),
    ],
)
def test_a_whole_answer_is_kept_however_oddly_it_is_sent(raw: bytes, close: bool) -> None:
    for outcome in ask(saying(raw, close=close), times=2):
        assert isinstance(outcome, Reply) and (outcome.text, outcome.status) == ("OK", "ok"), outcome


@pytest.mark.case("R6")
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (response(OK, b"x-trace: " + b"t" * 70_000), "longer than 64 kB"),
        (response(OK, *[b"x-%d: a" % number for number in range(40_000)]), "headers"),
        (response(OK, b"content-length: %d" % len(OK)), "Content-Length"),
        (response(OK, b"content-length: 7"), "Content-Length"),
        (response().replace(b"content-length: ", b"content-length: -"), "Content-Length"),
        (response(OK, b"transfer-encoding: chunked"), "Transfer-Encoding"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" + OK + b"\r\n0\r\n\r\n", "chunk size"),
        (response(OK, b"nonsense"), "header"),
        (response() + b"and more than that", "status line"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "status line"),
        (b"HTTP/2 200\r\ncontent-length: 2\r\n\r\n{}", "status line"),
        (response(b"\x8b\x02\x80", b"content-encoding: br"), "labelled br"),
    ],
)
def test_what_breaks_http_is_asked_for_once_more_at_most_and_named(raw: bytes, words: str) -> None:
    (failure,) = ask(saying(raw))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.error_kind) == ("transient", "malformed_reply") and words in failure.message
    assert failure.sent and failure.billed and failure.most_requests == 2
    assert "b'" not in failure.message and "{" not in failure.message, "no bytes of the server"


@pytest.mark.case("R6")
@pytest.mark.parametrize("raw", [response()[:-40], chunked(OK[:90], end=b"")])
def test_an_answer_that_breaks_off_is_charged_and_asked_for_again(raw: bytes) -> None:
    (failure,) = ask(saying(raw, close=True))
    assert isinstance(failure, Failure)
    assert (failure.error_kind, failure.billed, failure.most_requests) == ("malformed_reply", True, 3)
    assert failure.raw and "before the answer did" in failure.message


@pytest.mark.parametrize("status", [b"429 Too Many", b"503 Busy"])
def test_a_refusal_that_breaks_off_is_a_refusal(status: bytes) -> None:
    (failure,) = ask(saying(response(b'{"error":{"mess', status=status)[:-4], close=True))
    assert isinstance(failure, Failure) and str(failure.http_status).encode() == status[:3] and not failure.billed


def test_a_whole_answer_on_a_connection_that_stays_open_is_kept() -> None:
    (outcome,) = ask(saying(b"HTTP/1.1 200 OK\r\n\r\n" + OK), timeout_s=0.3)
    assert isinstance(outcome, Reply) and outcome.text == "OK"
    (failure,) = ask(saying(b"HTTP/1.1 200 OK\r\n\r\n" + OK[:90]), timeout_s=0.3)
    assert isinstance(failure, Failure) and (failure.error_kind, failure.billed) == ("timeout", True)


def endless(*headers: bytes) -> Speak:
    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.write(b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"", b"{"]))
        while not writer.is_closing():
            writer.write(b" " * 65_536)
            await writer.drain()

    return speak


async def endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        await writer.drain()


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"x-a: " + b"b" * 1_000 + b"\r\n")
        await writer.drain()


async def one_endless_header(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx-a: ")
    while not writer.is_closing():
        writer.write(b"b" * 65_536)
        await writer.drain()


BOMB = gzip.compress(gzip.compress(b" " * 2**28))


@pytest.mark.case("D7")
@pytest.mark.parametrize(
    ("speak", "words"),
    [
        (endless(), "larger than 16 MiB"),
        (endless_chunks, "larger than 16 MiB"),
        (saying(response(BOMB, b"content-encoding: gzip")), "larger than 16 MiB"),
        (saying(response(gzip.compress(b" " * 2**27), b"content-encoding: gzip")), "larger than 16 MiB"),
        (endless(b"content-length: 99999999999999"), "larger than 16 MiB"),
        (endless_headers, "headers"),
        (one_endless_header, "longer than 64 kB"),
    ],
    ids=["body", "chunks", "bomb in a bomb", "bomb", "content-length", "headers", "header"],
)
def test_no_response_takes_more_memory_than_its_ceiling(speak: Speak, words: str) -> None:
    tracemalloc.start()
    try:
        (failure,) = ask(speak)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(failure, Failure) and words in failure.message
    assert failure.billed and failure.most_requests == 2 and failure.error_kind == "malformed_reply"
    assert peak < 5 * MOST_BODY_BYTES


@pytest.mark.case("D7")
def test_a_slow_drip_ends_with_the_time_for_one_answer() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    (failure,) = ask(drip, timeout_s=0.3)
    assert isinstance(failure, Failure) and (failure.error_kind, failure.billed) == ("timeout", True)


@pytest.mark.case("S10")
def test_a_listing_of_models_that_never_ends_is_bounded() -> None:
    pages = [0]

    async def page(writer: asyncio.StreamWriter) -> None:
        pages[0] += 1
        models = b'{"name":"models/m-%d"},{"name":"models/same"}' % pages[0]
        writer.write(response(b'{"models":[%s],"nextPageToken":"page %d"}' % (models, pages[0])))

    async def run() -> list[str] | Failure:
        async with server(page) as (url, _), Wire() as wire:
            return await GeminiConnection(wire, api_key=KEY, base_url=url).list_models()

    models = anyio.run(run)
    assert isinstance(models, list) and pages[0] == 50
    assert models[:3] == ["m-1", "same", "m-2"] and len(models) == 51


@pytest.mark.case("S10")
def test_a_redirect_is_named_and_the_key_does_not_travel() -> None:
    seen = []

    async def run() -> Reply | Failure:
        async def other(writer: asyncio.StreamWriter) -> None:
            seen.append(1)
            writer.write(response())

        async with server(other) as (elsewhere, _):
            moved = response(b"", f"location: {elsewhere}/v1?key={KEY}".encode(), status=b"307 Moved")
            async with server(saying(moved)) as (url, _), Wire() as wire:
                failure = await GeminiConnection(wire, api_key=KEY, base_url=url).generate(prompt(), ASKED)
                assert isinstance(failure, Failure) and f"redirects to {elsewhere}:" in failure.message
                return failure

    failure = anyio.run(run)
    assert isinstance(failure, Failure) and failure.kind == "fatal" and not seen and KEY not in repr(failure)
