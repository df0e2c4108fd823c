"""A key that is changed in the middle of a run: the run goes on with the new one, and buys and counts nothing twice."""

import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import anyio
import httpx
import pytest
from asking import ask
from commands import Ran
from serving import served, stats
from sessions import run_through
from test_providers_gemini import ASKED, OK
from vclock import run as run_in_virtual_time

from jobs import PLAIN, write_job
from pipeline.budget.book import SpendBook
from pipeline.job import load
from pipeline.places import projects_file, spend_file
from pipeline.prompts import Params
from pipeline.providers.connection import RENEW_AFTER_S
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.openai import OpenAIConnection
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply
from pipeline.run import prepare, renewal
from pipeline.run.ending import Ended
from pipeline.run.engine import Monitor
from pipeline.run.services import target_of
from pipeline.targets import project_of

OLD, NEW = "AQ.old-key-of-the-tests-01", "AQ.new-key-of-the-tests-02"
ROWS = 12


class Service:
    """Takes one key, refuses all others, and says so with the key in the message; a look for a key takes a second."""

    def __init__(self, taken: str, found: str) -> None:
        self.taken, self.found = taken, found
        self.looks = 0
        self.keys: list[str] = []

    async def answer(self, request: httpx.Request) -> httpx.Response:
        key = request.headers.get("x-goog-api-key") or request.headers["authorization"].removeprefix("Bearer ")
        self.keys.append(key)
        await anyio.sleep(1)
        if key == self.taken:
            return httpx.Response(200, content=OK.replace(b'"OK"', f'"OK {key}"'.encode()))
        return httpx.Response(400, json={"error": {"code": 400, "message": f"API key not valid: {key}"}})

    async def renew(self) -> str:
        self.looks += 1
        await anyio.sleep(1)
        return self.found


def asked(
    service: Service, number: int = 1, provider: str = "gemini", again_after_s: float = 0
) -> list[Reply | Failure]:
    """Outcomes of requests that are all on their way at once, and of one more."""

    async def use() -> list[Reply | Failure]:
        found: list[Reply | Failure] = []
        async with Wire(httpx.MockTransport(service.answer)) as wire:
            connection = (
                GeminiConnection(wire, api_key=OLD) if provider == "gemini" else OpenAIConnection(wire, api_key=OLD)
            )
            connection.renew = service.renew

            async def one() -> None:
                found.append(await connection.generate(ask(text="hi", params=Params()), ASKED))

            async with anyio.create_task_group() as tasks:
                for _ in range(number):
                    tasks.start_soon(one)
            if again_after_s:
                await anyio.sleep(again_after_s)
                await one()
        assert OLD not in repr(found) and NEW not in repr(found)
        return found

    return run_in_virtual_time(use)


@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_a_request_whose_key_is_refused_goes_once_more_with_another(provider: str) -> None:
    service = Service(NEW, NEW)
    (outcome,) = asked(service, provider=provider)
    assert isinstance(outcome, Reply) and outcome.text == "OK ***"
    assert service.keys == [OLD, NEW]


def test_all_that_were_on_their_way_share_one_look() -> None:
    service = Service(NEW, NEW)
    outcomes = asked(service, 50)
    assert len(outcomes) == 50 and all(isinstance(outcome, Reply) for outcome in outcomes)
    assert service.looks == 1 and service.keys == [OLD] * 50 + [NEW] * 50


@pytest.mark.parametrize("found", ["", OLD])
def test_without_another_key_nothing_is_sent_again(found: str) -> None:
    service = Service(NEW, found)
    outcomes = asked(service, 20)
    assert all(isinstance(outcome, Failure) and outcome.kind == "auth" for outcome in outcomes)
    assert service.looks == 1 and service.keys == [OLD] * 20


def test_another_key_that_is_refused_too_ends_it() -> None:
    service = Service("AQ.a-third-key", NEW)
    (outcome,) = asked(service)
    assert isinstance(outcome, Failure) and outcome.kind == "auth"
    assert service.keys == [OLD, NEW]


def test_what_is_refused_later_is_looked_for_again() -> None:
    service = Service(NEW, OLD)

    async def changed_by_then() -> str:
        service.looks += 1
        return NEW if service.looks > 1 else OLD

    service.renew = changed_by_then  # type: ignore[method-assign]
    first, second = asked(service, 1, again_after_s=RENEW_AFTER_S)
    assert isinstance(first, Failure) and isinstance(second, Reply)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "topics.csv").write_text("topic\n" + "".join(f"topic {number}\n" for number in range(ROWS)))
    put(OLD)
    Path(".env").chmod(0o600)
    return tmp_path


def put(key: str) -> None:
    Path(".env").write_text(f"GEMINI_API_KEY={key}\n")


def session(**options: object) -> prepare.Session:
    write_job(Path(), PLAIN, limits={"rpm": 0, "tpm": 0, "concurrency": 4}, model={"max_output_tokens": 50})
    return prepare.prepare(load(Path("job.toml")), prepare.Options())


def run_while_it_is_changed(to: str) -> Ended:
    async def change(monitor: Monitor) -> None:
        put(to)
        await anyio.sleep_forever()

    return run_through(session(), watch=change)


def said(here: Path) -> list[str]:
    events = [json.loads(line) for line in (here / "runs/job/run.log").read_text().splitlines()]
    return [each["message"] for each in events if each["event"] == "key"]


def test_a_key_that_is_changed_in_a_file_does_not_end_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(key_ends_after=5) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ended = run_while_it_is_changed(NEW)
        # 5 with the old key and as many with the new one; those that came back were bought once each.
        assert stats(url)["answered"] == 10
    assert ended.exit_code == 3 and ended.summary.calls == 10
    assert [each.partition(" refused")[2] for each in said(here)] == [
        " the key, and GEMINI_API_KEY in .env holds another one: the run goes on"
    ]
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert run_through(session()).exit_code == 0
    kept = [path for path in (*here.rglob("*"), *Path(os.environ["XDG_STATE_HOME"]).rglob("*")) if path.is_file()]
    assert not [path for path in kept if path.name != ".env" and NEW.encode() in path.read_bytes()]
    assert not [path for path in kept if OLD.encode() in path.read_bytes()]


def test_a_key_that_is_changed_into_what_is_none_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(key_ends_after=5) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ended = run_while_it_is_changed(f"{NEW} {NEW}")
    assert ended.exit_code == 3 and ended.summary.calls == 5
    assert len(said(here)) == 1 and "GEMINI_API_KEY in .env has a space in the key" in said(here)[0]
    assert NEW not in (here / "runs/job/run.log").read_text()


def test_what_the_old_key_spent_counts_for_the_new_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(key_ends_after=8) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        before = target_of(session())
        assert run_while_it_is_changed(NEW).exit_code == 0
        after = target_of(session())
        assert after.account == before.account and project_of(NEW) not in after.account
        with SpendBook(spend_file(), after.account, "another") as book:
            assert book.spent()[0] > Decimal(0)
    assert projects_file().read_text() == f"{project_of(NEW)} {project_of(OLD)}\n"
    assert projects_file().stat().st_mode & 0o777 == 0o600


def test_a_rehearsal_makes_no_successor(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(key_ends_after=8, marked=True) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert run_while_it_is_changed(NEW).exit_code == 0
    assert not projects_file().exists()


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"a\nb c d\n\n", b"x " * 10])
def test_a_damaged_note_of_successors_is_none(here: Path, raw: bytes) -> None:
    projects_file().parent.mkdir(parents=True)
    projects_file().write_bytes(raw)
    assert renewal.known_project(NEW) == project_of(NEW)
    renewal.succeeds(project_of(NEW), "first")
    assert renewal.known_project(NEW) == ("first" if raw in (b"", b"a\nb c d\n\n") else project_of(NEW))


def test_a_key_in_the_environment_stays_what_it_is(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", OLD)
    session()
    with served(key_ends_after=5) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ran = cli("run", "job.toml", "--yes")
    assert ran.code == 3 and "API key expired" in ran.err and "the key has expired: renew it" in ran.err
    assert OLD not in ran.out + ran.err and said(here) == []


# --- several targets --------------------------------------------------------------------------------------------------


def two_targets(**second: str) -> Path:
    """A job whose two targets have keys of their own in `.env`."""
    path = write_job(Path(), PLAIN, limits={"rpm": 0, "tpm": 0, "concurrency": 2}, model={"max_output_tokens": 50})
    more = "".join(f'{key} = "{value}"\n' for key, value in second.items())
    targets = f'[[target]]\nname = "one"\nkey_env = "ONE"\n[[target]]\nname = "two"\nkey_env = "TWO"\n{more}'
    path.write_text(path.read_text() + targets)
    return path


def test_each_target_looks_where_its_own_key_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(f"ONE={OLD}\nTWO=AQ.second-key-of-the-tests\n")

    async def change(monitor: Monitor) -> None:
        Path(".env").write_text(f"ONE={NEW}\nTWO=AQ.second-key-of-the-tests\n")
        await anyio.sleep_forever()

    with served(key_ends_after=4, latency_s=0.01) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ended = run_through(prepare.prepare(load(two_targets()), prepare.Options()), watch=change)
        assert stats(url)["answered"] == ROWS == ended.summary.calls
    assert ended.exit_code == 0, "4 with each of the three keys"
    assert len([message for message in said(here) if message.startswith("one refused the key")]) == 1


def test_of_two_keys_of_one_project_each_is_used_and_one_that_ends_leaves_the_other(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text(f"ONE={OLD}\nTWO={NEW}\n")
    with served(key_ends_after=8, latency_s=0.01) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ended = run_through(prepare.prepare(load(two_targets(same_project_as="one")), prepare.Options()))
        assert stats(url)["answered"] == ROWS
    assert ended.exit_code == 0
