"""Whole runs through other people's boxes: tinyproxy, microsocks, Dante and nginx, which also die in mid-run."""

import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import boxes
import httpx
import polars as pl
import pytest
from boxes import Box
from commands import UNLIMITED, Ran, small_job
from forking import forked
from serving import served, stats, wait_for
from test_docs import PAGES, blocks

from pipeline.providers.networks import Network
from pipeline.providers.transport import Lost, Response, Wire

LOGIN = "me hunter2"


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with served() as url:
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("boxes")
    place.chmod(0o755)
    return place


@pytest.fixture(scope="module")
def company(folder: Path) -> boxes.Company:
    return boxes.Company(folder)


@pytest.fixture(scope="module")
def gateway(folder: Path, company: boxes.Company, service: str) -> Iterator[Box]:
    """nginx with a company's certificate before the service, below a path."""
    tls = company.tls("localhost", "127.0.0.1")
    locations = f"location /gemini/ {{ proxy_pass {service}/; }} location /gone/ {{ proxy_pass http://127.0.0.1:9/; }}"
    with boxes.nginx(folder, f"{tls} client_max_body_size 4k; {locations}") as box:
        yield box


@pytest.fixture(scope="module")
def http_proxy(folder: Path) -> Iterator[Box]:
    with boxes.tinyproxy(folder) as box:
        yield box


@pytest.fixture(scope="module")
def socks(folder: Path) -> Iterator[Box]:
    with boxes.microsocks(folder) as box:
        yield box


def ask(url: str, network: Network, body: bytes = b"{}") -> Response | Lost:
    async def run() -> Response | Lost:
        async with Wire(network=network) as wire:
            headers = httpx.Headers({"content-type": "application/json", "x-goog-api-key": "AQ.test"})
            place = httpx.URL(f"{url}/v1beta/models/gemini-3.5-flash-lite:countTokens")
            return await wire.post(place, headers, body, 10)

    return anyio.run(run, backend_options={"use_uvloop": True})


ASKED = b'{"contents":[{"parts":[{"text":"some words"}]}]}'


def reached(url: str, network: Network) -> bool:
    answer = ask(url, network, ASKED)
    return isinstance(answer, Response) and answer.status == 200 and b"totalTokens" in answer.body


# --- every kind of way


@pytest.mark.parametrize(
    ("make", "scheme"),
    [
        (boxes.tinyproxy, "http"),
        (boxes.microsocks, "socks5"),
        (boxes.microsocks, "socks5h"),
        (boxes.dante, "socks5"),
        (boxes.dante, "socks5h"),
    ],
)
def test_a_proxy_leads_to_http_and_https(
    folder: Path, service: str, gateway: Box, company: boxes.Company, make: boxes.Making, scheme: str
) -> None:
    with make(folder) as box:
        for url in (service, f"https://{gateway.address}/gemini", f"https://localhost:{gateway.port}/gemini"):
            before = len(box.log)
            assert reached(url, Network(f"{scheme}://{box.address}", company.bundle)), url
            assert len(box.log) > before, "it went through"


def test_a_name_that_only_the_proxy_would_know_is_left_to_it(socks: Box) -> None:
    here = ask("https://no-such-host.invalid", Network(f"socks5://{socks.address}"))
    there = ask("https://no-such-host.invalid", Network(f"socks5h://{socks.address}"))
    assert isinstance(here, Lost) and "not known here" in here.message and "socks5h://" in here.advice
    assert isinstance(there, Lost) and f"the proxy socks5h://{socks.address} does not reach" in there.message


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_a_proxy_takes_its_login_and_refuses_another(
    folder: Path, gateway: Box, company: boxes.Company, kind: str
) -> None:
    make = boxes.tinyproxy if kind == "http" else boxes.microsocks
    url = f"https://{gateway.address}/gemini"
    with make(folder, login=LOGIN) as box:
        assert reached(url, Network(f"{kind}://me:hunter2@{box.address}", company.bundle))
        for login in ("", "me:wrong@", "you:hunter2@"):
            answer = ask(url, Network(f"{kind}://{login}{box.address}", company.bundle, named_by="OFFICE_PROXY"))
            assert isinstance(answer, Lost) and (answer.kind, answer.sent) == ("proxy", False)
            assert "asks for a login" in answer.message and "into OFFICE_PROXY" in answer.advice
            assert "wrong" not in repr(answer) and "hunter2" not in repr(answer)


def test_a_rule_of_the_proxy_is_told_from_a_host_that_is_down(folder: Path) -> None:
    with boxes.dante(folder, rules="socks block { from: 0.0.0.0/0 to: 127.0.0.1/32 port = 9 }") as box:
        network = Network(f"socks5h://{box.address}")
        barred, down = ask("https://127.0.0.1:9", network), ask(f"https://127.0.0.1:{boxes.free_port()}", network)
    assert isinstance(barred, Lost) and barred.kind == "proxy" and "may not pass anything on" in barred.message
    assert isinstance(down, Lost) and down.kind == "not_connected" and "connection refused" in down.message


@pytest.mark.parametrize("make", [boxes.tinyproxy, boxes.microsocks])
def test_the_wrong_scheme_of_a_proxy_is_named(folder: Path, gateway: Box, make: boxes.Making) -> None:
    wrong, right = ("socks5h", "http") if make is boxes.tinyproxy else ("http", "socks5h")
    with make(folder) as box:
        # tinyproxy waits for the end of a line
        network = Network(f"{wrong}://{box.address}", connect_timeout_s=1 if wrong == "socks5h" else 20)
        answer = ask(f"https://{gateway.address}", network)
        assert isinstance(answer, Lost) and not answer.sent and f"write {right}://" in answer.advice


def test_a_certificate_that_nobody_here_trusts_is_named_also_behind_a_proxy(
    gateway: Box, http_proxy: Box, socks: Box
) -> None:
    for proxy in ("none", f"http://{http_proxy.address}", f"socks5h://{socks.address}"):
        answer = ask(f"https://{gateway.address}/gemini", Network(proxy))
        assert isinstance(answer, Lost) and not answer.sent
        assert "from nobody who is trusted here" in answer.message and "ca_bundle" in answer.advice


def test_a_directory_of_certificates_is_one_that_openssl_has_named(
    folder: Path, gateway: Box, company: boxes.Company, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "company.pem").write_bytes(company.bundle.read_bytes())
    subprocess.run([boxes.program("openssl"), "rehash", str(tmp_path)], check=True, timeout=30)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert reached(f"https://{gateway.address}/gemini", Network("none"))


def test_a_companys_certificate_that_only_newer_pythons_refuse_is_taken_where_the_job_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict() -> ssl.SSLContext:  # as Python makes it from 3.13 on
        context = usual()
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    usual = httpx.create_ssl_context
    monkeypatch.setattr(httpx, "create_ssl_context", strict)
    bundle, tls = boxes.careless_company(folder)
    with boxes.nginx(folder, f"{tls} location / {{ return 200 'totalTokens'; }}") as box:
        assert reached(f"https://localhost:{box.port}", Network("none", bundle))
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        answer = ask(f"https://localhost:{box.port}", Network("none"))
    assert isinstance(answer, Lost) and "is not good" in answer.message and "[endpoint] ca_bundle" in answer.advice


def test_what_nginx_says_for_itself_is_a_response(gateway: Box, company: boxes.Company) -> None:
    network = Network("none", company.bundle)
    large = ask(f"https://{gateway.address}/gemini", network, b"x" * 5_000)
    gone = ask(f"https://{gateway.address}/gone", network)
    assert isinstance(large, Response) and large.status == 413 and b"<html>" in large.body
    assert isinstance(gone, Response) and gone.status == 502 and b"<html>" in gone.body


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_addresses_of_ipv6_in_brackets(folder: Path, kind: str) -> None:
    try:
        with boxes.nginx(folder, "listen $listen; listen [::1]:$port; location / { return 200 'totalTokens'; }") as web:
            make = boxes.tinyproxy if kind == "http" else boxes.microsocks
            with make(folder, host="::1") as box:
                assert reached(f"http://[::1]:{web.port}", Network("none"))
                assert reached(f"http://[::1]:{web.port}", Network(f"{kind}://[::1]:{box.port}"))
    except RuntimeError as error:
        if "::1" not in str(error):
            raise
        pytest.skip("no IPv6 on this machine")


# --- whole runs


def in_the_job(here: Path, endpoint: str) -> Path:
    return small_job(here, f"{UNLIMITED}\n[endpoint]\n{endpoint}")


def test_the_environment_leads_a_run_through_a_proxy_and_around_it(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, service: str, http_proxy: Box
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setenv("HTTP_PROXY", f"http://{http_proxy.address}")
    before = http_proxy.log.count("Request (")
    assert cli("run", in_the_job(here, f'base_url = "{service}"'), "--yes").code == 0
    through = http_proxy.log.count("Request (")
    assert through > before
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, 127.0.0.0/8")
    assert cli("run", in_the_job(here, f'base_url = "{service}"'), "--yes", "--fresh").code == 0
    assert http_proxy.log.count("Request (") == through


def test_a_run_says_at_once_what_bars_the_way_and_sends_nothing(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, gateway: Box, service: str
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.run.ways.BETWEEN_S", 0.01)
    before = stats(service)["requests"]
    job = in_the_job(here, f'base_url = "https://{gateway.address}/gemini"')
    for command, code in ((["check", job], 2), (["run", job, "--yes"], 3)):
        ran = cli(*command)
        told = " ".join(f"{ran.out}{ran.err}".split())
        assert ran.code == code and "from nobody who is trusted here" in told and "ca_bundle" in told
    ran = cli("run", in_the_job(here, 'proxy = "socks5h://127.0.0.1:9"'), "--yes")
    assert ran.code == 3 and "the proxy socks5h://127.0.0.1:9 cannot be reached: connection refused" in ran.err
    assert "none was sent" in ran.err and stats(service)["requests"] == before


def test_each_target_has_a_way_of_its_own(
    here: Path,
    folder: Path,
    cli: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    company: boxes.Company,
    gateway: Box,
    service: str,
) -> None:
    """One through an HTTP proxy, one through SOCKS5 with a login from a `.env` file, one direct with a certificate."""
    for name in ("A_KEY", "B_KEY", "C_KEY"):
        monkeypatch.setenv(name, f"AQ.{name}")
    with boxes.tinyproxy(folder) as web, boxes.microsocks(folder, login=LOGIN) as socks:
        (here / ".env").write_text(f"OFFICE_PROXY=socks5h://me:hunter2@{socks.address}\n")
        (here / ".env").chmod(0o600)
        targets = f"""
[[target]]
name = "a"
key_env = "A_KEY"
proxy = "http://{web.address}"
weight = 1
[[target]]
name = "b"
key_env = "B_KEY"
weight = 1
[[target]]
name = "c"
key_env = "C_KEY"
base_url = "https://{gateway.address}/gemini"
proxy = "none"
ca_bundle = "{company.bundle}"
weight = 1
"""
        job = in_the_job(here, f'base_url = "{service}"\nproxy_env = "OFFICE_PROXY"\n{targets}')
        ran = cli("run", job, "--yes")
        assert ran.code == 0, ran.err
        assert "hunter2" not in ran.err + ran.out
        assert pl.read_parquet("out.parquet")["target"].value_counts().sort("target").rows() == [
            ("a", 2),
            ("b", 2),
            ("c", 2),
        ]
        assert "Request (" in web.log and socks.log.count("connected to") >= 1 and "/gemini/" in gateway.log


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ('proxy = "http://me:hunter2@127.0.0.1:1"', "[endpoint] proxy: a login does not belong into a job file"),
        ('proxy = "socks4://127.0.0.1:1"', "[endpoint] proxy names a proxy of socks4://, which is not spoken"),
        ('proxy = "http://x:1"\nproxy_env = "X"', "[endpoint]: proxy and proxy_env name two proxies"),
        ('proxy_env = "OFFICE_PROXY"', "[endpoint] proxy_env: OFFICE_PROXY is unset"),
        ('ca_bundle = "nowhere.pem"', "[endpoint] ca_bundle: nowhere.pem cannot be read"),
        ('ca_bundle = "words.csv"', "[endpoint] ca_bundle: words.csv holds no certificate in PEM"),
        ('ca_bundle = ""', "[endpoint] ca_bundle: it is no path of a file"),
        ("connect_timeout_s = 0", "[endpoint] connect_timeout_s"),
    ],
)
def test_what_a_job_says_wrongly_of_its_network_is_named(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, endpoint: str, words: str
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    ran = cli("run", in_the_job(here, endpoint), "--yes")
    assert ran.code == 2 and words in ran.err and "hunter2" not in ran.err, ran.err


def test_a_certificate_as_windows_exports_it_is_told_how_to_convert(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, company: boxes.Company
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    command = [boxes.program("openssl"), "x509", "-in", str(company.bundle), "-outform", "der", "-out", "root.cer"]
    subprocess.run(command, check=True, timeout=30)
    ran = cli("run", in_the_job(here, 'ca_bundle = "root.cer"'), "--yes")
    assert ran.code == 2 and "openssl x509 -inform der -in root.cer" in ran.err


def test_every_job_of_the_page_on_networks_runs(
    here: Path,
    folder: Path,
    cli: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    gateway: Box,
    company: boxes.Company,
    http_proxy: Box,
) -> None:
    """With the page's addresses put where the boxes of this test are."""
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    (here / "company-root.pem").write_bytes(company.bundle.read_bytes())
    (here / "reviews.csv").write_text("review\nGood.\nBad.\n")
    page = PAGES["docs/networks.md"]
    assert "socks5h://127.0.0.1:1080" in page
    jobs = blocks(page, "toml")
    socks = jobs[0].replace("http://127.0.0.1:7890", "socks5h://127.0.0.1:1080")
    with boxes.microsocks(folder, login=LOGIN) as office, boxes.microsocks(folder) as local:
        monkeypatch.setenv("OFFICE_PROXY", f"socks5h://me:hunter2@{office.address}")
        for number, job in enumerate([*jobs, socks]):
            text = job.replace("127.0.0.1:7890", http_proxy.address).replace("127.0.0.1:1080", local.address)
            text = text.replace("gateway.company.example", gateway.address).replace("results/", f"results/{number}-")
            if "base_url" not in text:  # Google's own
                monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"https://{gateway.address}/gemini")
                monkeypatch.setenv("SSL_CERT_FILE", str(company.bundle))
            path = here / f"page-{number}.toml"
            path.write_text(text)
            for command in (["check", path], ["run", path, "--yes", "--rpm", "0"]):
                ran = cli(*command)
                assert ran.code == 0, ran.err
            for name in ("GOOGLE_GEMINI_BASE_URL", "SSL_CERT_FILE"):
                monkeypatch.delenv(name, raising=False)
        assert office.log and local.log


# --- a box that dies in mid-run

ROWS, IN_FLIGHT = 120, 8


@contextmanager
def dying(kind: str, folder: Path, company: boxes.Company, url: str) -> Iterator[tuple[Box, str, str]]:
    """The box that is to die, and the base URL and proxy that lead through it."""
    tls = company.tls("localhost", "127.0.0.1")
    if kind == "nginx":
        with boxes.nginx(folder, f"{tls} location /gemini/ {{ proxy_pass {url}/; }}") as box:
            yield box, f"https://{box.address}/gemini", "none"
    elif kind == "behind nginx":  # which says 502 with a page meanwhile
        with boxes.nginx(folder, f"listen $listen; location / {{ proxy_pass {url}; }}") as box:
            location = f"location /gemini/ {{ proxy_pass http://{box.address}/; }}"
            with boxes.nginx(folder, f"{tls} {location}") as front:
                yield box, f"https://{front.address}/gemini", "none"
    else:
        with (boxes.tinyproxy if kind == "http" else boxes.microsocks)(folder) as box:
            yield box, url, f"{kind}://{box.address}"


@pytest.mark.parametrize("kind", ["http", "socks5h", "nginx", "behind nginx"])
def test_a_box_that_dies_in_mid_run_loses_nothing_and_buys_only_what_was_in_flight_twice(
    here: Path, folder: Path, company: boxes.Company, kind: str
) -> None:
    (here / "topics.csv").write_text("topic\n" + "".join(f"topic {number}\n" for number in range(ROWS)))
    with served(latency_s=0.1) as url:
        with dying(kind, folder, company, url) as (box, base, proxy):
            (here / "job.toml").write_text(
                '[input]\npath = "topics.csv"\n[prompt]\ntemplate = "Say {{ topic }}"\n'
                '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 50\n'
                f'[limits]\nrpm = 0\ntpm = 0\nconcurrency = {IN_FLIGHT}\n[output]\npath = "out.parquet"\n'
                f'[endpoint]\nbase_url = "{base}"\nproxy = "{proxy}"\nca_bundle = "{company.bundle}"\n'
            )
            run = forked("run", "job.toml", "--yes", "--json", env={"GEMINI_API_KEY": "AQ.test"})
            for answered in (ROWS // 5, ROWS // 2):
                wait_for(url, "answered", answered, run)
                box.kill()
                time.sleep(0.3)  # real time: another process goes on without it
                box.start()
            out, err = run.communicate(timeout=90)
        bought = stats(url, prompts=True)
    assert run.returncode == 0, err.decode()
    result = json.loads(out)
    assert (result["status"], result["ok"], result["rows"]) == ("finished", ROWS, ROWS)
    assert result["attempts"] > ROWS and (kind == "behind nginx" or result["uncertain"] > 0), "it was felt"
    assert set(pl.read_parquet("out.parquet")["status"]) == {"ok"}
    assert len(bought["prompts"]) == ROWS
    assert sum(count - 1 for count in bought["prompts"].values()) <= 2 * IN_FLIGHT


def test_a_row_that_is_too_large_for_the_gateway_fails_alone(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, gateway: Box, company: boxes.Company
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    bundle = f'ca_bundle = "{company.bundle}"'
    job = in_the_job(here, f'base_url = "https://{gateway.address}/gemini"\n{bundle}')
    (here / "words.csv").write_text("word\nalpha\n" + "long" * 2_000 + "\nomega\n")
    assert cli("run", job, "--yes").code == 1
    rows = pl.read_parquet("out.parquet")
    assert [status == "ok" for status in rows["status"]] == [True, False, True]
    assert "413" in rows["error"][1] and "<html>" not in rows["error"][1]
