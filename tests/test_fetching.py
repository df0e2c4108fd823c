"""Addresses in a table that we fetch: from public hosts over https, and never from within."""

import socket
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import pytest
import trustme
from drawing import pdf, png

from pipeline.prompts import Params, Prompt, Text, Turn
from pipeline.providers import fetching
from pipeline.providers.fetching import Fetcher, is_public
from pipeline.records import Failure, Media


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("2002:7f00:1::", False),
        ("2002:a9fe:a9fe::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public


class _Pages(BaseHTTPRequestHandler):
    """What a site has: a picture, pages that lead elsewhere, and one that is too large."""

    asked: list[str]
    places: dict[str, str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if (to := type(self).places.get(self.path)) is not None:
            self.send_response(302)
            self.send_header("location", to)
            self.end_headers()
            return
        body = {"/a.png": png(), "/a.pdf": pdf(["x"]), "/large": png() + b"0" * 100_000}.get(self.path)
        self.send_response(200 if body else 500 if self.path == "/down" else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Site:
    """A site over https, and our fetcher, which takes its address for a public one."""

    def __init__(self, port: int, certificates: ssl.SSLContext, authority: bytes, pages: type[_Pages]) -> None:
        self.url, self.pages = f"https://localhost:{port}", pages
        self.certificates: ssl.SSLContext | None = certificates
        self.authority = authority

    def fetch(self, path: str, *, within: bool = True, kind: Any = "image") -> Media | Failure:
        file = Media(kind, "image/jpeg", "at x", 0, 10, url=path if "://" in path else self.url + path)
        asked = Prompt(0, "a", "answer", (Turn("user", (file, Text("What?"))),), Params(), 20)

        async def main() -> Prompt | Failure:
            judge = (lambda address: str(address) in ("127.0.0.1", "::1")) if within else is_public
            return await Fetcher(50_000, judge, self.certificates).filled(asked)

        found = anyio.run(main)
        return found if isinstance(found, Failure) else found.media[0]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    authority = trustme.CA()
    serves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(serves)
    trusts = ssl.create_default_context()
    authority.configure_trust(trusts)
    pages = type("Pages", (_Pages,), {"asked": [], "places": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), pages)
    server.socket = serves.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Site(server.server_port, trusts, authority.cert_pem.bytes(), pages)
    server.shutdown()
    server.server_close()
    thread.join()


def test_sites_are_trusted_by_what_the_environment_names(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "certificates", None)
    assert isinstance(site.fetch("/a.png"), Failure), "its authority is nobody's"
    (tmp_path / "ours.pem").write_bytes(site.authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))
    assert isinstance(site.fetch("/a.png"), Media)


def test_a_file_is_fetched_and_told_by_its_bytes(site: Site) -> None:
    found = site.fetch("/a.png")
    assert isinstance(found, Media)
    assert (found.data, found.mime_type, found.url, found.size_bytes) == (png(), "image/png", "", len(png()))


def test_a_redirect_is_followed_and_judged(site: Site) -> None:
    site.pages.places = {"/moved": "/a.png", "/lower": "http://localhost/a.png", "/inside": "https://10.0.0.1/a.png"}
    assert isinstance(site.fetch("/moved"), Media)
    for path, told in (("/lower", "not https"), ("/inside", "10.0.0.1 is not a public address")):
        failure = site.fetch(path)
        assert isinstance(failure, Failure) and told in failure.message
        assert (failure.kind, failure.error_kind, failure.sent) == ("reject", "file", False)


def test_redirects_end(site: Site) -> None:
    site.pages.places = {"/round": "/round"}
    failure = site.fetch("/round")
    assert isinstance(failure, Failure) and "more than 5 redirects" in failure.message


@pytest.mark.parametrize(
    "address", ["https://127.0.0.1:1/a.png", "https://[::1]:1/a", "https://169.254.169.254/latest"]
)
def test_an_address_within_is_never_connected_to(site: Site, address: str) -> None:
    failure = site.fetch(address, within=False)
    assert isinstance(failure, Failure) and "is not a public address" in failure.message


@pytest.mark.parametrize(
    "host", ["１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "2130706433", "127.1", "0x7f000001", "0", "[::ffff:7f00:1]"]
)
def test_an_address_within_is_not_connected_to_however_it_is_written(site: Site, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        failure = site.fetch(f"https://{host}:{listener.getsockname()[1]}/a.png", within=False)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert isinstance(failure, Failure) and failure.kind == "reject" and "not fetched" in failure.message


def test_a_name_that_leads_within_is_never_connected_to(site: Site) -> None:
    before = len(site.pages.asked)
    failure = site.fetch("/a.png", within=False)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.message) == ("reject", "not fetched: localhost has no public address")
    assert len(site.pages.asked) == before


@pytest.mark.parametrize(
    ("path", "kind", "told"),
    [("/large", "reject", "more than"), ("/gone", "reject", "404"), ("/down", "transient", "500")],
)
def test_what_is_too_large_or_not_there_is_told(site: Site, path: str, kind: str, told: str) -> None:
    failure = site.fetch(path)
    assert isinstance(failure, Failure) and failure.kind == kind and told in failure.message


def test_what_is_of_another_form_is_refused(site: Site) -> None:
    failure = site.fetch("/a.pdf")
    assert isinstance(failure, Failure) and "application/pdf, which is not taken as image" in failure.message
    assert isinstance(site.fetch("/a.pdf", kind="pdf"), Media)


def test_a_host_that_does_not_answer_in_time_may_pass(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_TIMEOUT_S", 0.0)
    failure = site.fetch("/a.png")
    assert isinstance(failure, Failure) and failure.kind == "transient"
