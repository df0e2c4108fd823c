"""Mistakes of the environment: exit code 2, and the name of the variable."""

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import UNLIMITED, Ran, small_job
from serving import served, stats
from test_process import shell


@pytest.fixture
def real(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job for an endpoint that nobody answers at."""
    monkeypatch.setenv("GEMINI_API_KEY", "some-key")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    (here / "no.pem").write_text("no certificate")
    return small_job(here, UNLIMITED)


WRONG = {
    "no file of certificates": ("SSL_CERT_FILE", "/no/such/file"),
    "what is no certificate": ("SSL_CERT_FILE", "no.pem"),
    "a directory": ("SSL_CERT_FILE", "/"),
    "no directory of certificates": ("SSL_CERT_DIR", "/no/such/place"),
    "a directory whose certificates openssl has not named": ("SSL_CERT_DIR", "."),
    "a key of two lines": ("GEMINI_API_KEY", "AIza\nx"),
    "a key beyond ASCII": ("GEMINI_API_KEY", "schlüssel"),
    "a key in quotes": ("GEMINI_API_KEY", '"AIzaSy"'),
    "a port beyond all": ("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:99999"),
    "a proxy's port beyond all": ("HTTP_PROXY", "http://127.0.0.1:99999"),
    "a proxy of another kind": ("HTTP_PROXY", "socks4://user:hunter2@127.0.0.1:1"),
}


@pytest.mark.case("S7")
@pytest.mark.parametrize(("variable", "value"), WRONG.values(), ids=WRONG)
def test_what_the_environment_names_wrongly_is_named(
    real: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for command in (["check", real], ["run", real, "--yes"]):
        ran = cli(*command)
        assert ran.code == 2 and "Traceback" not in ran.err and "hunter2" not in ran.err
        said = ran.out + ran.err
        assert "hunter2" not in said and (variable in said or "the API key" in said), said


@pytest.mark.case("S10")
@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://x:0/v1", "https://me:hunter2@relay.example:99999"],
)
def test_an_address_in_the_job_file_that_cannot_be_is_named(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "some-key")
    job = small_job(here, f'{UNLIMITED}\n[endpoint]\nbase_url = "{address}"')
    for command in (["check", job], ["run", job, "--yes"], ["estimate", job, "--exact"]):
        ran = cli(*command)
        said = ran.out + ran.err
        assert ran.code == 2 and "Traceback" not in said and "hunter2" not in said
        assert address.replace("me:hunter2", "…") in said and "[endpoint] base_url" in said
        assert not (here / "runs").exists(), "nothing was begun"


@pytest.mark.case("O2")
@pytest.mark.parametrize("path", ["/proc/out.csv", "/proc/self/out.parquet", "/proc/no/such/place/out.jsonl"])
def test_an_output_where_no_file_can_be_is_refused_before_the_first_call(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc")
    job = small_job(here, UNLIMITED)
    job.write_text(job.read_text().replace("out.parquet", path))
    with served() as url:
        monkeypatch.setenv("GEMINI_API_KEY", "some-key")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        for command in (["check", job], ["run", job, "--yes"]):
            ran = cli(*command)
            assert ran.code == 2 and "Traceback" not in ran.err
            assert f"cannot write {path}" in ran.out + ran.err and "[output] path" in ran.out + ran.err
        assert stats(url)["answered"] == 0


PLACES = {"a file": "words.csv", "below a file": "words.csv/x", "relative": "state"}


@pytest.mark.case("S7")
@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"])
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_named_by_its_variable(
    real: Path, here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, variable: str, place: str
) -> None:
    job = small_job(here, f"{UNLIMITED}\n[cache]")
    value = PLACES[place] if place == "relative" else str(here / PLACES[place])
    if variable == "HOME":
        monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv(variable, value)
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ran = cli("run", job, "--yes")
    assert ran.code == 2 and "Traceback" not in ran.err
    assert variable in ran.err, ran.err
    assert cli("estimate", job).code == 0, "what writes nothing needs no place"


@pytest.mark.case("S7")
@pytest.mark.parametrize("number", ["0", "99999999", "-1", "abc"])
def test_a_number_of_threads_that_polars_cannot_have_is_named(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    monkeypatch.setenv("POLARS_MAX_THREADS", number)
    ran = cli("estimate", small_job(here, UNLIMITED), "--offline")
    assert ran.code == 2 and ran.err.startswith(f"error: POLARS_MAX_THREADS is {number}")


@pytest.mark.case("S7")
def test_no_home_at_all_is_named(real: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ran = cli("run", real, "--yes")
    assert ran.code == 2 and "HOME is unset" in ran.err and "Traceback" not in ran.err
    assert cli("estimate", real).code == 0
    assert cli("run", real, "--offline").code == 0


@pytest.mark.case("S7")
@pytest.mark.parametrize(
    "amount", ["nan", "inf", "-inf", "-0", "1e999", "sNaN", "Infinity", "-1", "", "$", "1e12", "two"]
)
def test_an_amount_that_is_none_is_refused(here: Path, cli: Callable[..., Ran], amount: str) -> None:
    ran = cli("run", small_job(here), "--offline", f"--max-cost={amount}")
    assert ran.code == 2 and "--max-cost" in ran.err


@pytest.mark.case("S7")
@pytest.mark.parametrize("name", ["max_usd", "max_usd_per_day", "max_usd_per_month"])
@pytest.mark.parametrize("amount", ["nan", "inf", "-inf", "-0.0", "1e999", "0"])
def test_a_budget_that_is_none_is_refused(here: Path, cli: Callable[..., Ran], name: str, amount: str) -> None:
    ran = cli("run", small_job(here, f"[budget]\n{name} = {amount}"), "--offline")
    assert ran.code == 2 and name in ran.err


@pytest.mark.case("S7")
@pytest.mark.parametrize("flag", ["--rpm", "--tpm", "--rpd"])
def test_a_limit_below_nothing_is_refused(here: Path, cli: Callable[..., Ran], flag: str) -> None:
    ran = cli("run", small_job(here), "--offline", flag, -1)
    assert ran.code == 2 and flag.removeprefix("--") in ran.err


@pytest.mark.case("S7")
@pytest.mark.parametrize("command", ["run /tmp/x.toml --offline", "runs", "report", "models"])
def test_a_directory_that_is_gone_is_named(tmp_path: Path, command: str) -> None:
    ran = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; PIPELINE {command}")
    assert ran.returncode == 2 and b"the directory you are in is gone" in ran.stderr


@pytest.mark.case("S7")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_job_file_that_may_not_be_read_is_named(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here)
    job.chmod(0)
    ran = cli("check", job, "--offline")
    assert ran.code == 2 and "Permission denied" in ran.out


@pytest.mark.case("S7")
def test_a_directory_is_no_job(here: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("check", here, "--offline")
    assert ran.code == 2 and "is no job file" in ran.out


@pytest.mark.case("S7")
@pytest.mark.parametrize("zone", ["Not/AZone", ":/no/such", "", "X" * 300])
def test_a_time_zone_that_is_none_stops_nothing(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    assert cli("estimate", small_job(here, UNLIMITED), "--by", "07:00").code == 0
