import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import anyio
import httpx
import pytest

from pipeline.errors import PipelineError
from pipeline.providers import connectors
from pipeline.providers.networks import Network
from pipeline.providers.transport import Lost, Response, Wire

HEADERS = httpx.Headers({"x-goog-api-key": "AQ.secret", "content-type": "application/json"})
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

Handler = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server that hands each request (head and body) to `handler`; yields its base URL."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
                await handler(head + await reader.readexactly(length), reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answering(raw: bytes, *, then_close: bool = False, seen: list[bytes] | None = None) -> Handler:
    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen is not None:
            seen.append(request)
        writer.write(raw)
        if then_close:
            writer.close()

    return handler


async def post(base: str, *, wire: Wire | None = None, timeout_s: float = 5.0) -> Response | Lost:
    async with wire or Wire() as wire:
        return await wire.post(httpx.URL(f"{base}/v1beta/models/m:generateContent"), HEADERS, b'{"a":1}', timeout_s)


def exchange(handler: Handler, *, timeout_s: float = 5.0) -> Response | Lost:
    async def run() -> Response | Lost:
        async with serving(handler) as base:
            return await post(base, timeout_s=timeout_s)

    return anyio.run(run)


def test_one_exchange_carries_the_bytes_there_and_back() -> None:
    seen: list[bytes] = []
    answer = exchange(answering(b"HTTP/1.1 418 Teapot\r\nX-Way: home\r\ncontent-length: 3\r\n\r\nabc", seen=seen))
    assert isinstance(answer, Response)
    assert (answer.status, answer.headers.get("x-way"), answer.body) == (418, "home", b"abc")
    head, body = seen[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1beta/models/m:generateContent HTTP/1.1\r\n") and body == b'{"a":1}'
    assert head.lower().count(b"x-goog-api-key: aq.secret") == 1
    assert b"cookie" not in head.lower() and b"authorization" not in head.lower()


@pytest.mark.parametrize("chunked", [True, False])
def test_compressed_and_chunked_bodies_arrive_whole(chunked: bool) -> None:
    text = b'{"text":"' + b"long " * 20_000 + b'"}'
    packed = gzip.compress(text)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n"
    if chunked:
        chunks = [packed[i : i + 100] for i in range(0, len(packed), 100)]
        raw = head + b"transfer-encoding: chunked\r\n\r\n"
        raw += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    else:
        raw = head + b"content-length: %d\r\n\r\n" % len(packed) + packed
    answer = exchange(answering(raw))
    assert isinstance(answer, Response) and answer.body == text


def test_connections_are_used_again_and_cookies_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    ports = set()
    monkeypatch.setattr(connectors, "QUIET_S", 0.0)
    raw = b"HTTP/1.1 200 OK\r\nset-cookie: session=1; path=/\r\ncontent-length: 2\r\n\r\n{}"

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.add(writer.get_extra_info("peername")[1])
        seen.append(request)
        writer.write(raw)

    async def run() -> None:
        async with serving(handler) as base, Wire() as wire:
            for _ in range(3):
                await wire.post(httpx.URL(f"{base}/x"), HEADERS, b"{}")
            await wire.get(httpx.URL(f"{base}/x"), HEADERS)

    anyio.run(run)
    assert len(ports) == 1 and len(seen) == 4
    assert not any(b"session=1" in request for request in seen)


def numbered(number: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n%02d" % number


@pytest.mark.case("R6")
@pytest.mark.parametrize("stray", [numbered(99), numbered(99)[:30], b"\r\n\r\n" + numbered(99), b"x", b""])
@pytest.mark.parametrize("quiet_s", [0.0, 30.0], ids=["found when it is wanted", "not used before it has rested"])
def test_what_a_server_says_unasked_is_no_answer_to_the_next_request(
    monkeypatch: pytest.MonkeyPatch, stray: bytes, quiet_s: float
) -> None:
    monkeypatch.setattr(connectors, "QUIET_S", quiet_s)
    requests = 0

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        writer.write(numbered(requests))
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(stray) if stray else writer.close()

    async def run() -> list[Response | Lost]:
        async with serving(handler) as base, Wire() as wire:
            answers = []
            for _ in range(4):
                answers.append(await wire.post(httpx.URL(f"{base}/x"), HEADERS, b"{}"))
                await asyncio.sleep(0.02)  # real time: the stray is on its way through a socket
            return answers

    answers = anyio.run(run)
    for number, answer in enumerate(answers, 1):  # one that is broken by what follows it at once is asked for again
        assert isinstance(answer, Lost) or answer.lost or answer.body == b"%02d" % number


def test_with_few_files_a_connection_is_used_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectors, "QUIET_S", 30.0)
    monkeypatch.setattr("resource.getrlimit", lambda which: (2, 2))
    ports = set[int]()

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.add(writer.get_extra_info("peername")[1])
        writer.write(OK)

    async def run() -> None:
        async with serving(handler) as base, Wire() as wire:
            for _ in range(3):
                await wire.post(httpx.URL(f"{base}/x"), HEADERS, b"{}")

    anyio.run(run)
    assert len(ports) == 1


def test_a_redirect_is_returned_and_the_key_goes_nowhere_else() -> None:
    elsewhere: list[bytes] = []

    async def run() -> Response | Lost:
        async with serving(answering(OK, seen=elsewhere)) as other:
            raw = f"HTTP/1.1 307 Moved\r\nlocation: {other}/\r\ncontent-length: 0\r\n\r\n".encode()
            async with serving(answering(raw)) as base:
                return await post(base)

    answer = anyio.run(run)
    assert isinstance(answer, Response) and answer.status == 307 and elsewhere == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "base", [f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid"], ids=["refused", "unknown host"]
)
def test_no_connection_means_not_sent(base: str) -> None:
    answer = anyio.run(post, base)
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == ("not_connected", False)
    assert answer.message and "secret" not in repr(answer)


def test_a_handshake_that_never_ends_means_not_sent() -> None:
    async def run() -> Response | Lost:
        async with serving(answering(b"")) as base:
            return await post(base.replace("http:", "https:"), wire=Wire(network=Network(connect_timeout_s=0.05)))

    answer = anyio.run(run)
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == ("timeout", False)


def test_a_reset_after_the_request_means_sent() -> None:
    async def reset(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    answer = exchange(reset)
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == ("broken", True)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"])
def test_no_answer_before_the_end_of_the_connection_is_broken(raw: bytes) -> None:
    answer = exchange(answering(raw, then_close=True))
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == ("broken", True)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}",
    ],
)
def test_half_an_answer_is_told_from_a_whole_one_and_what_there_is_of_it_is_kept(raw: bytes) -> None:
    answer = exchange(answering(raw, then_close=True))
    assert isinstance(answer, Response) and (answer.status, answer.body) == (200, b"{}")
    assert answer.lost == Lost("broken", sent=True, message="the connection ended before the answer did")


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"])
def test_silence_is_a_timeout_and_closes_the_connection(start: bytes) -> None:
    async def run() -> Response | Lost:
        left = anyio.Event()

        async def silent(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(start)
            await reader.read()
            left.set()

        async with serving(silent) as base, Wire() as wire:
            answer = await wire.post(httpx.URL(base), HEADERS, b"{}", 0.05)
            with anyio.fail_after(5):
                await left.wait()
            return answer

    answer = anyio.run(run)
    lost = answer.lost if isinstance(answer, Response) else answer
    assert isinstance(answer, Response) == bool(start)
    assert lost is not None and (lost.kind, lost.sent) == ("timeout", True)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"])
def test_a_cancelled_call_closes_its_connection_and_leaves_the_wire_usable(start: bytes) -> None:
    async def run() -> Response | Lost:
        arrived, left, calls = anyio.Event(), anyio.Event(), []

        async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            calls.append(request)
            if len(calls) > 1:
                writer.write(OK)
                return
            writer.write(start)
            arrived.set()
            await reader.read()
            left.set()

        async with serving(handler) as base, Wire() as wire:
            url = httpx.URL(base)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wire.post, url, HEADERS, b"{}")
                await arrived.wait()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(5):
                await left.wait()
            return await wire.post(url, HEADERS, b"{}")

    answer = anyio.run(run)
    assert isinstance(answer, Response) and answer.status == 200


@pytest.mark.parametrize(
    ("error", "kind", "sent"),
    [
        (aiohttp.ServerDisconnectedError(), "broken", True),
        (aiohttp.ClientOSError(104, "Connection reset by peer"), "broken", True),
        (aiohttp.SocketTimeoutError(), "timeout", True),
    ],
)
def test_what_aiohttp_raises_is_told_apart(error: Exception, kind: str, sent: bool) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    answer = anyio.run(lambda: post("http://x", wire=Wire(httpx.MockTransport(fail))))
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == (kind, sent)


@pytest.mark.parametrize(
    ("error", "kind", "sent"),
    [
        (httpx.ConnectError("refused"), "not_connected", False),
        (httpx.ConnectTimeout("slow"), "timeout", False),
        (httpx.ReadTimeout("slow"), "timeout", True),
        (httpx.RemoteProtocolError("odd"), "broken", True),
        (ConnectionResetError("gone"), "broken", True),
    ],
)
def test_other_transports_are_understood_too(error: Exception, kind: str, sent: bool) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    answer = anyio.run(lambda: post("http://x", wire=Wire(httpx.MockTransport(fail))))
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == (kind, sent)


def test_an_app_can_stand_in_for_the_network() -> None:
    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["raw_path"])]})
        await send({"type": "http.response.body", "body": body})

    answer = anyio.run(lambda: post("http://emulator", wire=Wire(httpx.ASGITransport(app))))
    assert isinstance(answer, Response)
    assert (answer.headers.get("x-path"), answer.body) == ("/v1beta/models/m:generateContent", b'{"a":1}')


def test_a_silent_app_times_out_like_a_server() -> None:
    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await anyio.sleep_forever()

    answer = anyio.run(lambda: post("http://emulator", wire=Wire(httpx.ASGITransport(app)), timeout_s=0.02))
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == ("timeout", True)


def test_http_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    ports = set()
    monkeypatch.setattr(connectors, "QUIET_S", 0.0)

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.add(writer.get_extra_info("peername")[1])
        seen.append(request)
        writer.write(OK)

    async def run() -> list[int | Lost]:
        async with serving(handler) as proxy, Wire() as wire:
            monkeypatch.setenv("HTTP_PROXY", proxy.replace("http://", "http://user:pass@"))
            answers = [await wire.post(httpx.URL("http://model.invalid/x"), HEADERS, b"{}") for _ in range(2)]
            return [a if isinstance(a, Lost) else a.status for a in answers]

    assert anyio.run(run) == [200, 200]
    assert seen[0].startswith(b"POST http://model.invalid/x HTTP/1.1\r\n") and len(ports) == 1
    assert all(b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in request for request in seen)
    assert not any(b"\r\nAuthorization:" in request for request in seen)


def test_https_asks_the_proxy_for_a_tunnel_and_shows_it_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def run() -> Response | Lost:
        refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"
        async with serving(answering(refusal, seen=seen)) as proxy:
            monkeypatch.setenv("ALL_PROXY", proxy.replace("http://", "user:pass@"))
            return await post("https://model.invalid")

    answer = anyio.run(run)
    assert isinstance(answer, Lost) and (answer.kind, answer.sent) == ("proxy", False)
    assert "HTTP 407" in answer.message
    assert seen[0].startswith(b"CONNECT model.invalid:443 HTTP/1.1\r\n") and b"secret" not in seen[0]
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in seen[0] and "pass" not in answer.message


@pytest.mark.parametrize("proxy", ["socks4://user:pass@127.0.0.1:1080", "http://user:pass@proxy:port", "http://"])
def test_a_proxy_that_cannot_be_used_is_said_before_the_first_request(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(PipelineError, match=r"^ALL_PROXY names ") as error:
        Wire().prepare(httpx.URL("https://model.example"))
    assert "socks5h://" in error.value.hint and "pass" not in str(error.value)
