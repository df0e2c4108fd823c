"""Whom a served emulator answers."""

import http.client
from collections.abc import Callable

import pytest
from commands import Ran
from serving import served

from pipeline.emulator.access import is_welcome

OURS = ("127.0.0.1", "127.0.0.1:8089", "localhost:8089", "LOCALHOST", "[::1]:8089", "api.localhost", "localhost.:80")
THEIRS = ("evil.example", "evil.example:8089", "127.0.0.1.evil.example", "", "192.168.1.7", "localhost.evil.example")


@pytest.mark.case("D16")
@pytest.mark.parametrize("host", OURS)
def test_this_machine_is_answered_under_its_own_names(host: str) -> None:
    assert is_welcome("127.0.0.1", host, "127.0.0.1", private=True)


@pytest.mark.case("D16")
@pytest.mark.parametrize("host", THEIRS)
def test_another_name_is_turned_away(host: str) -> None:
    assert not is_welcome("127.0.0.1", host, "127.0.0.1", private=False)
    assert not is_welcome("0.0.0.0", host, "127.0.0.1", private=True)
    assert is_welcome("0.0.0.0", host, "10.0.0.9", private=False), "asked for: open to whoever reaches it"


@pytest.mark.case("D16")
def test_what_is_private_is_not_told_to_another_machine() -> None:
    assert not is_welcome("0.0.0.0", "127.0.0.1", "10.0.0.9", private=True)
    assert is_welcome("10.0.0.5", "10.0.0.5:80", "10.0.0.5", private=True)
    assert is_welcome("10.0.0.5", "10.0.0.5:80", "10.0.0.9", private=False)


@pytest.mark.case("D16")
def test_a_page_that_points_its_name_here_reads_nothing() -> None:
    with served() as url:
        address = url.removeprefix("http://")
        for path in ("/emulator/stats", "/emulator/stats?prompts=true", "/v1beta/models?key=x"):
            for host, status in ((address, 200), ("evil.example", 403)):
                connection = http.client.HTTPConnection(address)
                connection.request("GET", path, headers={"host": host})
                response = connection.getresponse()
                assert (response.status, b"machine" in response.read()) == (status, status == 403)
                connection.close()


@pytest.mark.parametrize(
    "flags", [("--latency", "nan"), ("--jitter", "-1"), ("--latency", "1e999"), ("--port", "99999"), ("--rpm", "-1")]
)
def test_flags_that_make_no_sense_are_refused(cli: Callable[..., Ran], flags: tuple[str, str]) -> None:
    ran = cli("emulate", *flags)
    assert ran.code == 2 and flags[0] in ran.err


@pytest.mark.parametrize("host", ["no.such.name.invalid", "256.1.1.1", "a" * 300, "x\x00y"])
def test_a_host_that_is_none_is_refused(cli: Callable[..., Ran], host: str) -> None:
    ran = cli("emulate", "--host", host, "--port", 0)
    assert ran.code == 2 and "cannot listen on" in ran.err
