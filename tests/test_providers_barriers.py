"""What keeps a request from its service is told from other things that do, with what to set."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import aiohttp
import anyio
import httpx
import pytest
import trustme
from boxes import free_port

from pipeline.providers.barriers import SocksRefused, Step, Unconnected, barrier
from pipeline.providers.failures import MESSAGE_CHARS
from pipeline.providers.networks import Network
from pipeline.providers.proxies import read_proxy
from pipeline.providers.transport import Lost, Response, Wire

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOGLE = "https://generativelanguage.googleapis.com"


@asynccontextmanager
async def listening(talk: Talk, certificates: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Address of a server of ours."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, ssl=certificates)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As the firewall of a country does that reads a forbidden name in the ClientHello."""
    await reader.read(100)
    there = writer.get_extra_info("socket")
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(100):
        pass


async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    await writer.drain()


def tunnel(to: Talk, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Talk:
    """A proxy behind which somebody else talks."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await to(reader, writer)

    return talk


async def reach(url: str, network: Network) -> Lost:
    async with Wire(network=network) as wire:
        lost = await wire.reach(httpx.URL(url))
        assert lost is not None
        answer = await wire.post(httpx.URL(f"{url}/x"), httpx.Headers(), b"{}")
        assert isinstance(answer, Lost) and not answer.sent and answer.message == lost.message, (
            "a request meets the same"
        )
        return lost


def told(url: str, talk: Talk | None = None, *, proxy: str = "none", timeout_s: float = 5.0) -> Lost:
    """What is said where `talk` listens at `$at`, of the url or the proxy."""

    async def run() -> Lost:
        async with listening(talk or hang_up) as at:
            named = proxy.replace("$at", at).replace("$free", str(free_port()))
            network = Network(named, connect_timeout_s=timeout_s)
            lost = await reach(url.replace("$at", at), network)
            return Lost(lost.kind, lost.sent, lost.message.replace(at, "$at"), lost.advice.replace(at, "$at"))

    return anyio.run(run, backend_options={"use_uvloop": True})


@pytest.mark.parametrize("talk", [reset, hang_up])
def test_a_firewall_that_cuts_tls_is_named(talk: Talk) -> None:
    lost = told("https://$at", talk)
    assert (lost.kind, lost.sent) == ("not_connected", False)
    assert "is cut as TLS begins, as a firewall does" in lost.message and "[endpoint] proxy" in lost.advice


def test_of_google_the_advice_is_a_proxy_or_a_relay() -> None:
    lost = told(GOOGLE, tunnel(reset), proxy="http://$at")
    assert "generativelanguage.googleapis.com is cut as TLS begins" in lost.message
    assert "behind the proxy http://$at" in lost.message and "name another in [endpoint] proxy" in lost.advice
    direct = barrier(Unconnected("connect", 15), httpx.URL(GOOGLE), None)
    assert all(name in direct.advice for name in ("HTTPS_PROXY", "[endpoint] proxy", "[endpoint] base_url"))


def test_tls_that_is_swallowed_is_told_from_a_host_that_does_not_answer() -> None:
    lost = told("https://$at", swallow, timeout_s=0.1)
    assert lost.kind == "timeout" and "is reached, but TLS does not come about within 0.1 s" in lost.message
    with dropping() as port:
        lost = anyio.run(reach, f"http://127.0.0.1:{port}", Network("none", connect_timeout_s=0.1))
    assert lost.kind == "timeout" and "does not answer within 0.1 s, as where a firewall drops" in lost.message


def test_a_name_that_nobody_knows_a_port_where_nobody_listens_and_a_wrong_scheme_are_told_apart() -> None:
    assert "the name no-such-host.invalid is not known here" in told("https://no-such-host.invalid").message
    refused = told(f"https://127.0.0.1:{free_port()}")
    assert "refuses the connection" in refused.message and "[endpoint] base_url" in refused.advice
    plain = told("https://$at", speak_http)
    assert plain.message == "$at speaks no TLS" and "http://" in plain.advice


@pytest.mark.parametrize(
    ("proxy", "talk", "message", "advice"),
    [
        (
            "http://127.0.0.1:$free",
            None,
            "cannot be reached: connection refused",
            'proxy, or go without: [endpoint] proxy = "none"',
        ),
        (
            "socks5h://127.0.0.1:$free",
            None,
            "cannot be reached: connection refused",
            'proxy, or go without: [endpoint] proxy = "none"',
        ),
        ("http://no-such-proxy.invalid:1", None, "the name of the proxy", "mend it in [endpoint] proxy"),
        ("socks5h://no-such-proxy.invalid:1", None, "the name of the proxy", "mend it in [endpoint] proxy"),
        ("https://$at", speak_http, "does not speak TLS itself", "write http:// in [endpoint] proxy"),
        ("https://$at", swallow, "does not answer within", "write http:// in [endpoint] proxy"),
        ("http://$at", hang_up, "ends the connection when it is asked for model.example", "write socks5h://"),
        ("http://$at", reset, "ends the connection when it is asked for model.example", "write socks5h://"),
        ("http://$at", swallow, "opens no way to model.example within", "the proxy's log"),
        ("socks5h://$at", speak_http, "does not answer as SOCKS5 does", "write http:// in [endpoint] proxy"),
        ("socks5h://$at", swallow, "opens no way to model.example within", "write http:// in [endpoint] proxy"),
        ("socks5h://$at", hang_up, "does not answer as SOCKS5 does", "write http://"),
        ("http://$at", tunnel(speak_http), "speaks no TLS", "[endpoint] base_url"),
        ("http://$at", tunnel(swallow), "TLS does not come about within", "the proxy's log"),
    ],
)
def test_a_proxy_that_does_not_do_is_named(proxy: str, talk: Talk | None, message: str, advice: str) -> None:
    lost = told("https://model.example", talk, proxy=proxy, timeout_s=0.3 if "within" in message else 20)
    assert lost.kind in ("not_connected", "timeout") and message in lost.message and advice in lost.advice, lost


@pytest.mark.parametrize(
    ("status", "kind"), [(407, "proxy"), (403, "proxy"), (502, "not_connected"), (500, "not_connected")]
)
def test_a_proxy_that_refuses_is_told_from_one_that_fails(status: int, kind: str) -> None:
    answer = f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode()
    lost = told("https://model.example", tunnel(hang_up, answer), proxy="http://$at")
    assert lost.kind == kind and f"HTTP {status}" in lost.message


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("wanted", ["NTLM", "Negotiate", "Basic realm=x"])
def test_a_login_as_windows_does_it_is_told_from_one_that_can_be_given(wanted: str, scheme: str) -> None:
    answer = f"HTTP/1.1 407 No\r\nproxy-authenticate: {wanted}\r\ncontent-length: 0\r\n\r\n".encode()

    async def run() -> Response | Lost:
        async with listening(tunnel(hang_up, answer)) as at, Wire(network=Network(f"http://{at}")) as wire:
            return await wire.get(httpx.URL(f"{scheme}://model.example"), httpx.Headers())

    lost = anyio.run(run)
    assert isinstance(lost, Lost) and (lost.kind, lost.sent) == ("proxy", False)
    assert (f"by {wanted}, which is not spoken here" in lost.message) == ("px or cntlm" in lost.advice)
    assert ("[endpoint] proxy_env" in lost.advice) == wanted.startswith("Basic")


@pytest.mark.parametrize(
    ("names", "message", "advice"),
    [
        (("localhost",), "is from nobody who is trusted here", "[endpoint] ca_bundle or SSL_CERT_FILE"),
        (("other.example",), "shows the certificate of somebody else", "[endpoint] base_url"),
    ],
)
def test_somebody_elses_certificate_is_named(tmp_path: Path, names: tuple[str], message: str, advice: str) -> None:
    company = trustme.CA()
    company.cert_pem.write_to_path(tmp_path / "root.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    company.issue_cert(*names).configure_cert(server)

    async def run() -> Lost:
        async with listening(swallow, server) as at:
            bundle = tmp_path / "root.pem" if names == ("other.example",) else None
            return await reach(f"https://localhost:{at.split(':')[1]}", Network("none", bundle))

    lost = anyio.run(run)
    assert (lost.kind, lost.sent) == ("not_connected", False)
    assert message in lost.message and advice in lost.advice


def test_a_certificate_of_another_time_names_the_clock(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    company = trustme.CA()
    company.cert_pem.write_to_path(tmp_path / "root.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    company.issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC)).configure_cert(server)

    async def run() -> Lost:
        async with listening(swallow, server) as at:
            return await reach(f"https://localhost:{at.split(':')[1]}", Network("none", tmp_path / "root.pem"))

    lost = anyio.run(run)
    assert "is of another time" in lost.message and "clock" in lost.advice


def test_what_a_request_has_just_met_is_not_waited_for_again() -> None:
    async def run() -> tuple[Lost, float]:
        loop = asyncio.get_running_loop()
        with dropping() as port:
            url = httpx.URL(f"http://127.0.0.1:{port}")
            async with Wire(network=Network("none", connect_timeout_s=0.5)) as wire:
                await wire.get(url, httpx.Headers())
                began = loop.time()
                lost = await wire.reach(url)
                seconds = loop.time() - began
                again = await wire.reach(url)
                assert lost is not None and again is not None and lost.message == again.message
                assert loop.time() - began >= 0.5, "once"
                return lost, seconds

    lost, seconds = anyio.run(run)
    assert lost.kind == "timeout" and seconds < 0.3


# --- several addresses


def dropping(family: int = socket.AF_INET, port: int = 0) -> "_Dropping":
    """A port at which connections hang, as where what is sent there is dropped."""
    return _Dropping(family, port)


class _Dropping:
    def __init__(self, family: int, port: int) -> None:
        self._listener = socket.socket(family)
        self._listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        self._listener.listen(0)
        self._filling: list[socket.socket] = []

    def __enter__(self) -> int:
        address = self._listener.getsockname()
        for _ in range(3):  # the queue of connections is full then
            filling = socket.socket(self._listener.family)
            filling.setblocking(False)
            filling.connect_ex(address)
            self._filling.append(filling)
        return int(address[1])

    def __exit__(self, *_: object) -> None:
        for each in (*self._filling, self._listener):
            each.close()


@pytest.fixture
def ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")


@pytest.mark.usefixtures("ipv6")
def test_a_host_whose_ipv6_is_dropped_costs_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()

    async def run() -> tuple[object, float]:
        async with listening(ok) as at:
            port = int(at.split(":")[1])
            loop = asyncio.get_running_loop()

            async def both(host: str, port: int, **_: object) -> list[object]:
                six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
                return [six, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

            monkeypatch.setattr(loop, "getaddrinfo", both)
            with dropping(socket.AF_INET6, port):
                async with Wire(network=Network("none")) as wire:
                    began = loop.time()
                    answer = await wire.get(httpx.URL(f"http://model.example:{port}/"), httpx.Headers())
                    return answer, loop.time() - began

    answer, seconds = anyio.run(run)
    assert not isinstance(answer, Lost) and seconds < 3


def test_a_host_of_many_addresses_that_are_all_dropped_takes_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp's own connector takes one for each round of them."""

    async def run() -> tuple[Lost, float]:
        loop = asyncio.get_running_loop()
        with dropping() as port:

            async def many(host: str, port: int, **_: object) -> list[object]:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * 16

            monkeypatch.setattr(loop, "getaddrinfo", many)
            began = loop.time()
            async with Wire(network=Network("none", connect_timeout_s=0.3)) as wire:
                lost = await wire.reach(httpx.URL(f"http://model.example:{port}"))
            assert lost is not None
            return lost, loop.time() - began

    lost, seconds = anyio.run(run)
    assert lost.kind == "timeout" and seconds < 2


# --- whatever happens


CAUSES: list[BaseException] = [
    TimeoutError(),
    SocksRefused("x" * 500, None),
    SocksRefused("Connection refused", 5),
    SocksRefused("Username and password authentication failure", None),
    socket.gaierror(-2, "Name or service not known"),
    ConnectionResetError(),
    ConnectionRefusedError(111, "x"),
    OSError(101, "Network is unreachable"),
    OSError("Multiple exceptions: " + "x" * 500),
    ssl.SSLError(1, "[SSL: TLSV1_ALERT_PROTOCOL_VERSION]"),
    ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("line\nline"),
]


@pytest.mark.parametrize(
    "proxy", [None, "http://me:hunter2@proxy:1", "https://me:hunter2@proxy:1", "socks5://me:hunter2@proxy:1"]
)
@pytest.mark.parametrize("url", [GOOGLE, "http://relay.example:8080/v1"])
def test_whatever_happens_at_whichever_step_is_one_line_with_advice_and_without_a_login(
    url: str, proxy: str | None
) -> None:
    for step in get_args(Step):
        for cause in CAUSES:
            unconnected = Unconnected(step, 15)
            unconnected.__cause__ = cause
            told = barrier(unconnected, httpx.URL(url), read_proxy(proxy, "HTTPS_PROXY") if proxy else None)
            assert told.message and told.advice and len(told.message) <= MESSAGE_CHARS, told
            assert told.message.isprintable() and "hunter2" not in f"{told}"
