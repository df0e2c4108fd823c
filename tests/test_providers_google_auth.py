import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from google_accounts import TokenServer, account_file, token_server
from vclock import run

from pipeline.errors import AuthError, JobError
from pipeline.providers.google_auth import AGAIN_S, Token, Tokens, google_tokens
from pipeline.providers.transport import Wire
from pipeline.records import Failure

HOUR_S = 3600.0
DOWN = Failure("transient", "network", "no access token: the network is down", sent=False)
T = TypeVar("T")


class Source:
    """Gives tokens of an hour in virtual time, half a second each; `down` from one time to another."""

    def __init__(self, down: tuple[float, float] = (0.0, 0.0), life_s: float = HOUR_S) -> None:
        self.given: list[Token] = []
        self.asked_at: list[float] = []
        self._at_once, self.most_at_once = 0, 0
        self._down, self._life_s = down, life_s

    async def fetch(self) -> Token | Failure:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.asked_at.append(anyio.current_time())
        await anyio.sleep(0.5)
        self._at_once -= 1
        now = anyio.current_time()
        if self._down[0] <= now < self._down[1]:
            return DOWN
        self.given.append(Token(f"t{len(self.given)}", now + self._life_s))
        return self.given[-1]

    def tokens(self) -> Tokens:
        return Tokens(self.fetch, wall=anyio.current_time)


async def use(tokens: Tokens, until_s: float, every_s: float = 20.0, several: int = 10) -> list[tuple[float, object]]:
    """What many get who ask at the same time, again and again; each with the longest wait of any."""
    got: list[tuple[float, object]] = []

    async def ask() -> None:
        while anyio.current_time() < until_s:
            began = anyio.current_time()
            token = await tokens.current()
            got.append((anyio.current_time() - began, token))
            if isinstance(token, Token):
                assert anyio.current_time() < token.ends_at, "an ended token is never handed out"
            await anyio.sleep(every_s)

    async with anyio.create_task_group() as group:
        for _ in range(several):
            group.start_soon(ask)
    return got


# ---- when a token is renewed


def test_a_night_takes_a_token_an_hour_and_nobody_waits_for_one_but_who_renews_it() -> None:
    source = Source()
    got = run(use, source.tokens(), 10 * HOUR_S)
    assert len(source.given) == 11 and source.most_at_once == 1
    assert all(isinstance(token, Token) for _, token in got)
    assert sum(wait > 0 for wait, _ in got) == 10 + 10, "all wait for the first; then only who renews"


def test_tokens_of_seconds_are_not_renewed_with_every_request() -> None:
    source = Source(life_s=10.0)
    run(use, source.tokens(), 100.0, 1.0)
    assert 15 <= len(source.given) <= 20


def test_a_renewal_that_fails_leaves_the_old_token_in_use_and_is_tried_again() -> None:
    source = Source(down=(0.9 * HOUR_S, 0.99 * HOUR_S))
    told: list[str] = []

    def tokens() -> Tokens:
        made = source.tokens()
        made.on_trouble = told.append
        return made

    got = run(use, tokens(), 2 * HOUR_S)
    assert all(isinstance(token, Token) for _, token in got) and len(source.given) == 3
    assert told == [f"{DOWN.message}; the old one is good for 219 s more, and others are asked for"], "once"
    tries = [at for at in source.asked_at if 0.9 * HOUR_S <= at < HOUR_S]
    assert 3 <= len(tries) <= 8 and min(b - a for a, b in pairwise(tries)) >= AGAIN_S


def test_once_the_token_has_ended_all_get_the_failure_of_one_renewal_until_it_works_again() -> None:
    source = Source(down=(0.5 * HOUR_S, 1.5 * HOUR_S))
    got = run(use, source.tokens(), 2 * HOUR_S)
    failed = [token for _, token in got if token == DOWN]
    asked = sum(HOUR_S <= at < 1.5 * HOUR_S for at in source.asked_at)
    assert 9 * asked <= len(failed) <= 11 * asked, "ten ask at once, and one of them asks the server"
    assert isinstance(got[-1][1], Token)


def test_a_refused_token_is_replaced_once_for_all_that_bore_it() -> None:
    async def refused() -> None:
        source = Source()
        tokens = source.tokens()
        first = await tokens.current()
        assert isinstance(first, Token)
        others: list[Token | Failure] = []

        async def other() -> None:
            others.append(await tokens.instead_of(first))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(other)
        assert others == [source.given[1]] * 20 and len(source.given) == 2
        assert await tokens.instead_of(first) == source.given[1], "it was replaced long ago"

    run(refused)


def test_no_token_is_shown() -> None:
    assert "secret" not in repr(Token("secret"))


# ---- google-auth


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenServer]:
    with token_server() as served:
        path = account_file(tmp_path / "account.json", served.url)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield served


def with_google(use: Callable[[Tokens], Awaitable[T]], wall: Callable[[], float] = time.time) -> T:
    async def main() -> T:
        async with Wire() as wire:
            return await use(await google_tokens(wire, wall=wall))

    return anyio.run(main)


async def nothing(tokens: Tokens) -> None:
    """Opens them, no more."""


def test_a_service_account_is_given_the_next_token_before_the_last_one_ends(server: TokenServer) -> None:
    later_s = 0.0

    async def a_night(tokens: Tokens) -> list[str]:
        nonlocal later_s
        got = []
        for _ in range(150):
            server.life_s = round(later_s + HOUR_S)  # google-auth reckons the end from the machine's own clock
            token = await tokens.current()
            assert isinstance(token, Token) and token.ends_at - time.time() - later_s > 60.0
            got.append(token.text)
            later_s += 100.0
        return got

    got = with_google(a_night, lambda: time.time() + later_s)
    assert list(dict.fromkeys(got)) == [f"ya29.token-{number}" for number in range(1, 6)]


def test_an_account_that_is_gone_ends_it_and_a_server_that_fails_may_pass(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # google-auth asks three times

    async def one(tokens: Tokens) -> Token | Failure:
        return await tokens.current()

    server.instead = lambda: (400, {"error": "invalid_grant", "error_description": "Invalid grant: account not found"})
    with pytest.raises(AuthError, match="no access token: invalid_grant: Invalid grant: account not found") as gone:
        with_google(one)
    assert "gcloud auth application-default login" in gone.value.hint
    server.instead = lambda: (503, {"error": "temporarily_unavailable"})
    busy = with_google(one)
    assert isinstance(busy, Failure) and (busy.kind, busy.sent) == ("transient", False)


def test_an_account_that_goes_in_mid_run_ends_it(server: TokenServer) -> None:
    later_s = 0.0

    async def twice(tokens: Tokens) -> Token | Failure:
        nonlocal later_s
        await tokens.current()
        later_s = HOUR_S
        server.instead = lambda: (400, {"error": "invalid_grant", "error_description": "Invalid grant"})
        return await tokens.current()

    gone = with_google(twice, lambda: time.time() + later_s)
    assert isinstance(gone, Failure) and (gone.kind, gone.sent, gone.billed) == ("auth", False, False)


def test_a_token_server_out_of_reach_may_be_in_reach_later(
    server: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = account_file(tmp_path / "elsewhere.json", "http://127.0.0.1:9/token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))

    async def one(tokens: Tokens) -> Token | Failure:
        return await tokens.current()

    away = with_google(one)
    assert isinstance(away, Failure) and (away.kind, away.error_kind, away.sent) == ("transient", "network", False)
    assert away.message.startswith("no access token: ") and "127.0.0.1" in away.message


def test_where_google_auth_is_missing_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(JobError, match=r"not installed: google-auth and requests") as found:
        with_google(nothing)
    assert found.value.hint and found.value.hint.endswith(' "google-auth<3,>=2.63" "requests<3,>=2.34"`')


def test_where_there_are_no_credentials_it_is_told_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    with pytest.raises(AuthError, match="GOOGLE_APPLICATION_CREDENTIALS is unset, gcloud keeps none") as found:
        with_google(nothing)
    assert found.value.hint and "gcloud auth application-default login" in found.value.hint
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "was not found"),
        ("no json", "is not a valid json file"),
        ("[1]", "cannot be used"),
        ("{}", "does not have a valid type"),
        ('{"type": "service_account"}', "missing fields"),
        ('{"type": "service_account", "client_email": "a@b", "token_uri": "x", "private_key": "SECRET"}', "PEM"),
    ],
    ids=["missing", "text", "list", "empty", "no account", "no key"],
)
def test_a_file_of_credentials_that_cannot_be_used_is_told_and_not_shown(
    content: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "account.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    if content is not None:
        path.write_text(content)
    with pytest.raises(AuthError, match=told) as found:
        with_google(nothing)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(found.value) and "SECRET" not in str(found.value)
