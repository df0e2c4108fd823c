"""Which proxy is taken: by the rule, and beside the real curl."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from socketserver import StreamRequestHandler, ThreadingTCPServer

import httpx
import pytest
from boxes import program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.providers.networks import Network
from pipeline.providers.proxies import goes_around, proxy_named, read_proxy

# --- the variables


def taken(environ: Mapping[str, str], url: str = "https://model.example/v1") -> str | None:
    proxy = proxy_named(environ, httpx.URL(url))
    return str(proxy) if proxy else None


def test_the_lower_case_variable_wins_and_an_empty_one_counts_as_none() -> None:
    assert taken({"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:2"}) == "http://low:1"
    assert taken({"https_proxy": "", "HTTPS_PROXY": "http://up:2"}) == "http://up:2"
    assert taken({"https_proxy": " ", "ALL_PROXY": "socks5h://all:3"}) == "socks5h://all:3"
    assert taken({"HTTP_PROXY": "http://up:2"}) is None
    assert taken({"no_proxy": "", "NO_PROXY": "example", "all_proxy": "http://p:1"}) is None


def test_http_proxy_in_upper_case_is_heeded_but_not_where_a_web_server_calls() -> None:
    environ = {"HTTP_PROXY": "http://up:2"}
    assert taken(environ, "http://model.example") == "http://up:2"
    assert taken({**environ, "REQUEST_METHOD": "GET"}, "http://model.example") is None


def test_a_network_that_names_a_proxy_heeds_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://environment:1")
    monkeypatch.setenv("NO_PROXY", "*")
    url = httpx.URL("https://model.example")
    assert str(Network("socks5://mine:9").proxy_to(url)) == "socks5://mine:9"
    assert Network().proxy_to(url) is None
    monkeypatch.setenv("NO_PROXY", "other.example")
    assert str(Network().proxy_to(url)) == "http://environment:1"
    assert Network("").proxy_to(url) is None and Network("none").proxy_to(url) is None
    assert "secret" not in repr(Network("http://me:secret@proxy:1"))


# --- an address


@pytest.mark.parametrize(
    ("text", "shown", "host", "port", "looks_up"),
    [
        ("proxy.corp:3128", "http://proxy.corp:3128", "proxy.corp", 3128, True),
        ("HTTP://proxy.corp", "http://proxy.corp", "proxy.corp", 80, True),
        ("https://proxy.corp", "https://proxy.corp", "proxy.corp", 443, True),
        ("socks5://10.0.0.1:7890", "socks5://10.0.0.1:7890", "10.0.0.1", 7890, False),
        ("socks5h://[::1]", "socks5h://[::1]", "::1", 1080, True),
        ("socks://127.0.0.1:1080/", "socks5h://127.0.0.1:1080", "127.0.0.1", 1080, True),
        (" http://me:p%40ss@proxy:1 ", "http://proxy:1", "proxy", 1, True),
    ],
)
def test_a_proxy_is_read_and_shown_without_its_login(
    text: str, shown: str, host: str, port: int, looks_up: bool
) -> None:
    proxy = read_proxy(text, "ALL_PROXY")
    assert (str(proxy), proxy.host, proxy.port, proxy.looks_up) == (shown, host, port, looks_up)
    assert "p@ss" not in repr(proxy) and "p%40ss" not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "socks4://me:hunter2@proxy:1",
        "ftp://me:hunter2@proxy:1",
        "http://me:hunter2@proxy:port",
        "http://me:hunter2@proxy:0",
        "http://me:hunter2@proxy:70000",
        "http://me:hun/ter2@proxy:1",
        "http://",
        "http://me:hunter2@pro..xy:1",
        "http://me:hunter2@xn--:1",
        "socks5://me:@proxy:1",
        "socks5h://me:geheim-hunter2-ü@proxy:1",
        f"socks5h://me:hunter2{'x' * 256}@proxy:1",
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable_without_its_login(text: str) -> None:
    with pytest.raises(PipelineError, match=r"^ALL_PROXY names ") as error:
        read_proxy(text, "ALL_PROXY")
    assert error.value.hint and "hunter2" not in f"{error.value}{error.value.hint}"


# --- whom it is not for


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "around"),
    [
        ("*", "model.example", 443, True),
        ("localhost, *", "model.example", 443, True),
        ("example", "model.example", 443, True),
        (".example", "model.example", 443, True),
        ("*.example", "model.example", 443, True),
        (".model.example", "model.example", 443, True),
        ("model.example.", "MODEL.example.", 443, True),
        ("del.example", "model.example", 443, False),
        ("model.example:443", "model.example", 443, True),
        ("model.example:8443", "model.example", 443, False),
        ("other  model.example,x", "model.example", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.0.0.0/8", "10.example", 80, False),
        ("10.0.0.7:80", "10.0.0.7", 80, True),
        ("0.0.0.0/0", "10.0.0.7", 80, True),
        ("fd00::/8", "fd12::1", 80, True),
        ("fd00::/8", "fe80::1", 80, False),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:81", "::1", 80, False),
        ("::1", "::1", 80, True),
        ("0:0:0:0:0:0:0:1", "::1", 80, True),
        ("1", "10.0.0.1", 80, False),
        (". ,, ..", "model.example", 80, False),
        ("", "model.example", 80, False),
    ],
)
def test_no_proxy_covers_what_it_says(no_proxy: str, host: str, port: int, around: bool) -> None:
    assert goes_around(no_proxy, host, port) is around


label = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
domain = st.lists(label, min_size=1, max_size=4).map(".".join)
port = st.integers(1, 65_535)


@given(st.text(), st.one_of(domain, st.ip_addresses().map(str)), port)
def test_any_text_is_an_answer(no_proxy: str, host: str, number: int) -> None:
    assert goes_around(no_proxy, host, number) in (True, False)


@given(domain, domain, port)
def test_a_domain_covers_what_is_below_it_and_no_name_that_only_ends_like_it(low: str, high: str, number: int) -> None:
    for entry in (high, f".{high}", f"*.{high}", f"{high}:{number}", f"x {high.upper()},"):
        assert goes_around(entry, f"{low}.{high}", number)
    assert not goes_around(f".{high}", f"{low}x{high}", number)
    assert not goes_around(f"{high}:{number}", f"{low}.{high}", number % 65_535 + 1)


@given(st.ip_addresses(), st.integers(0, 128), port)
def test_a_network_covers_its_addresses(address: object, bits: int, number: int) -> None:
    version = ip_network(f"{address}").version
    network = ip_network(f"{address}/{min(bits, 32) if version == 4 else bits}", strict=False)
    assert goes_around(str(network), str(address), number)
    outside = network.broadcast_address + 1 if int(network.broadcast_address) + 1 < 2**network.max_prefixlen else None
    assert outside is None or not goes_around(str(network), str(outside), number)


# --- beside curl


class Ears:
    """Servers that tell by their ports who was asked; each says 200 to everything."""

    def __init__(self, number: int) -> None:
        self.heard: list[tuple[int, str]] = []
        ears = self

        class Handler(StreamRequestHandler):
            server: ThreadingTCPServer

            def handle(self) -> None:
                first = self.rfile.read(1).decode("latin-1")
                if first == "\x16":  # TLS: asked directly
                    ears.heard.append((self.server.server_address[1], "TLS"))
                    return
                first += self.rfile.readline(4096).decode("latin-1").strip()
                host = ""
                while (line := self.rfile.readline(4096)) not in (b"\r\n", b"\n", b""):
                    if line.lower().startswith(b"host:"):
                        host = line[5:].decode("latin-1").strip()
                ears.heard.append((self.server.server_address[1], first.split()[1] if "CONNECT" in first else host))
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        self.servers = [ThreadingTCPServer(("127.0.0.1", 0), Handler) for _ in range(number)]
        self.ports = [server.server_address[1] for server in self.servers]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


@contextmanager
def ears(number: int) -> Iterator[Ears]:
    listening = Ears(number)
    try:
        yield listening
    finally:
        listening.close()


def curl(urls: list[str], environ: Mapping[str, str], direct: int) -> None:
    """Ask for each; what goes direct goes to the port `direct`, whatever its host."""
    command = [program("curl"), "-s", "-m", "20", "--connect-to", f"::127.0.0.1:{direct}"]
    for url in urls:
        command += ["-o", os.devnull, url]
    subprocess.run(command, env={"PATH": os.environ["PATH"], **environ}, timeout=60, check=False)


VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "given",
    [
        VARIABLES,
        ("HTTPS_PROXY", "ALL_PROXY", "all_proxy"),
        ("HTTP_PROXY",),
        ("HTTP_PROXY", "ALL_PROXY"),
        ("http_proxy", "HTTPS_PROXY"),
        ("ALL_PROXY",),
        (),
    ],
    ids="+".join,
)
def test_curl_reads_the_same_variables(given: tuple[str, ...], scheme: str) -> None:
    with ears(len(VARIABLES) + 1) as listening:
        environ = {name: f"127.0.0.1:{listening.ports[VARIABLES.index(name)]}" for name in given}
        curl([f"{scheme}://model.example/x"], environ, listening.ports[-1])
        (asked,) = {port for port, _ in listening.heard}
    # The one difference, on purpose: curl never reads HTTP_PROXY in upper case. As a web server's child nor do we.
    proxy = proxy_named({**environ, "REQUEST_METHOD": "GET"}, httpx.URL(f"{scheme}://model.example/x"))
    assert (proxy.port if proxy else listening.ports[-1]) == asked


HOSTS = [
    "example",
    "a.example",
    "b.a.example",
    "xa.example",
    "10.0.0.1",
    "10.200.0.1",
    "11.0.0.1",
    "[fd00::1]",
    "[::1]",
]
name_entry = st.sampled_from(
    ["example", ".example", "a.example", ".a.example.", "A.Example", "b.a", ".", "xa.example."]
)
v4_entry = st.builds("{}/{}".format, st.sampled_from(["10.0.0.0", "10.200.0.1", "11.0.0.0"]), st.integers(1, 33))
# No networks of IPv6: by none of them does curl 7.88 go around a proxy, whatever its manual says.
entry = st.one_of(name_entry, v4_entry, st.sampled_from(["10.0.0.1", "::1", "fd00::1", "10.0.0", "x/8"]))
no_proxies = st.one_of(
    st.just("*"), st.lists(entry, max_size=4).map(",".join), st.lists(entry, max_size=3).map(", ".join)
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(no_proxies)
def test_curl_goes_around_the_same_hosts(listening: Ears, no_proxy: str) -> None:
    """Each host is asked for: at the proxy, or at the host itself."""
    proxy, direct = listening.ports
    listening.heard.clear()
    curl([f"http://{host}/" for host in HOSTS], {"http_proxy": f"127.0.0.1:{proxy}", "no_proxy": no_proxy}, direct)
    seen = {
        host: any(host == at.removesuffix(":80") and port == direct for port, at in listening.heard) for host in HOSTS
    }
    assert len(listening.heard) == len(HOSTS)
    ours = {host: goes_around(no_proxy, httpx.URL(f"http://{host}").host, 80) for host in HOSTS}
    assert ours == seen


@pytest.fixture(scope="module")
def listening() -> Iterator[Ears]:
    if shutil.which("curl") is None:
        program("curl")
    with ears(2) as both:
        yield both
