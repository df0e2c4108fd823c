"""What is for the user's eyes only: modes of files whatever the umask, secrets in addresses."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import UNLIMITED, Ran, small_job
from hypothesis import given
from hypothesis import strategies as st
from serving import served
from test_process import shell

from pipeline.terminal import without_secrets


def modes(place: Path) -> Iterator[tuple[str, int]]:
    for path in (place, *place.rglob("*")):
        yield str(path), stat.S_IMODE(path.stat().st_mode) & ~(0o700 if path.is_dir() else 0o600)


@pytest.mark.case("D16")
@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_runs_state_and_cache_are_for_the_users_eyes_only(here: Path, umask: str) -> None:
    job = small_job(here, f"{UNLIMITED}\n[cache]")
    places = {"XDG_STATE_HOME": str(here / "new/state"), "XDG_CACHE_HOME": str(here / "new/cache")}
    with served() as url:
        real = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "some-key"}
        for command in ("run small.toml --offline --fresh", "run small.toml --yes --limit 3 --fresh"):
            ran = shell(f"umask {umask}; PIPELINE {command}", **places, **real)
            assert ran.returncode == 0, ran.stderr.decode()
    for place in (here / "runs", here / "new"):
        assert [each for each in modes(place) if each[1]] == []
    assert job.exists() and len(list((here / "new").rglob("*.sqlite"))) >= 1


SECRET = "hunter2"
ADDRESSES = [
    f"https://user:{SECRET}@relay.example/v1",
    f"https://{SECRET}@relay.example",
    f"https://relay.example/x?key={SECRET}",
    f"https://relay.example/x#{SECRET}",
    f"https://user:{SECRET}/@{SECRET}@relay.example",
    f"https://relay.example?a=b@c&key={SECRET}\\n{SECRET}",
]


@pytest.mark.case("D16")
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_command_shows_a_secret_of_an_address(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    job = small_job(here, f'[endpoint]\nbase_url = "{address}"')
    monkeypatch.setenv("GEMINI_API_KEY", "some-key")
    shown = cli("run", job, "--show-config")
    assert shown.code == 0 and "relay.example" in shown.out and SECRET not in shown.out
    for command in (["check", job], ["run", job, "--yes"], ["estimate", job, "--exact"], ["estimate", job, "--json"]):
        ran = cli(*command)
        assert SECRET not in ran.out + ran.err and ran.code in (0, 2), command
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", address.split("\\")[0])
    assert SECRET not in cli("run", job, "--show-config").out
    kept = [path for path in here.rglob("*") if path.is_file() and path != job]
    kept += [path for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*") if path.is_file()]
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


@given(user=st.text(), query=st.text())
def test_nothing_before_the_host_or_behind_the_path_is_left(user: str, query: str) -> None:
    user = user.replace("?", "").replace("#", "")
    assert without_secrets(f"https://{user}@host/path?{query}") == "https://…@host/path?…"


def test_other_text_stays_as_it_is() -> None:
    for text in ("results/a?b#c.csv", "me@example.org", "https://host/v1beta", "redis://host:6379/0"):
        assert without_secrets(text) == text
