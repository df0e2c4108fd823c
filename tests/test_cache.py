"""Answers of earlier runs: what is found again, what is not, and that trouble with the cache never stops a run."""

import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from asking import MODEL, ROUTE, TARGET
from redis_server import PASSWORD, redis_server
from serving import served, stats
from sessions import run_through
from stores import body, paid, prompt

from jobs import PLAIN, make_job, write_job
from pipeline import cache as caches
from pipeline import report
from pipeline.cache import AnswerCache, key_of, pack, service_of, shelf_of, unpack
from pipeline.calls import Saved, cached
from pipeline.errors import JobError
from pipeline.events import CacheTrouble
from pipeline.flows import build
from pipeline.job import Job, load
from pipeline.places import cache_file
from pipeline.prices import fixed_rates
from pipeline.prompts import Function, Params, Prompt, Tools, said
from pipeline.providers.answers import parse_reply
from pipeline.providers.stored import parse_stored
from pipeline.records import Document, Reply, Usage
from pipeline.run import prepare
from pipeline.shelves import RedisShelf, Shelf, SqliteShelf
from pipeline.targets import Route
from pipeline.templates import read_template

Heard = list[Any]
SERVICE = TARGET.base_url
DAY = 86_400.0


def within(shelf: Shelf, test: Callable[[AnswerCache], Awaitable[None]]) -> Heard:
    """Run an async test body with an open cache; returns what was told."""
    heard: Heard = []

    async def play() -> None:
        async with AnswerCache(shelf, parse_stored, heard.append) as cache:
            await test(cache)

    anyio.run(play)
    return heard


def fill(shelf: Shelf, **answers: str) -> Heard:
    async def put(cache: AnswerCache) -> None:
        for fingerprint, text in answers.items():
            cache.put(fingerprint, TARGET, paid(text))

    return within(shelf, put)


def found(shelf: Shelf, *fingerprints: str, service: str = SERVICE) -> list[str | None]:
    texts: list[str | None] = []

    async def get(cache: AnswerCache) -> None:
        for fingerprint in fingerprints:
            reply = await cache.get(fingerprint, replace(TARGET, base_url=service))
            texts.append(reply.text if reply else None)

    assert within(shelf, get) == []
    return texts


def file(tmp_path: Path, max_age_days: float = 30, max_mb: float = 100) -> SqliteShelf:
    return SqliteShelf(tmp_path / "deep" / "answers.sqlite", max_age_days, max_mb)


# ---- what the key covers

PARAMS = Params()
OTHER: dict[str, Any] = {
    "system": "Be brief.",
    "max_output_tokens": 100,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "seed": 1,
    "stop": ("END",),
    "thinking": "low",
    "response_mime_type": "application/json",
    "safety": (("HARM_CATEGORY_HARASSMENT", "BLOCK_NONE"),),
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "media_resolution": "low",
    "packed": True,
    "continuation": "bmV4dA==",
    "schema": "{}",
    "tools": Tools(google_search="{}", functions=(Function("f"),)),
}


def fingerprint(params: Params = PARAMS, topic: str = "rain", row: int = 0, **place: Any) -> str:
    template = read_template("Say {{ topic }}", None, Path(), "here")
    return build(Document(row, f"key {row}", {}), "answer", template, params, {"topic": topic}, **place).fingerprint(
        MODEL
    )


@pytest.mark.parametrize("name", [field.name for field in fields(Params)])
def test_every_parameter_changes_the_key_and_back(name: str) -> None:
    changed = replace(PARAMS, **{name: OTHER[name]})
    assert fingerprint(changed) != fingerprint()
    assert fingerprint(replace(changed, **{name: getattr(PARAMS, name)})) == fingerprint()


def test_the_text_changes_the_key_and_where_the_prompt_stands_does_not() -> None:
    assert fingerprint(topic="snow") != fingerprint()
    assert fingerprint(row=9, level=2, chunk=3, chunks=5) == fingerprint()


@pytest.mark.parametrize(
    "section",
    [
        {"limits": {"rpm": 7, "tpm": 8, "rpd": 9, "concurrency": 3}},
        {"budget": {"max_usd": 1.0, "allow_unpriced": True}},
        {"output": {"path": "elsewhere.csv", "include_text": True}},
        {"cache": {"max_age_days": 1, "max_mb": 5, "url": "there.sqlite"}},
        {"endpoint": {"timeout_s": 5, "key_env": "OTHER_KEY", "base_url": "https://relay.example"}},
        {"model": {"prices": {"input": 1, "output": 2}}},
    ],
)
def test_what_cannot_change_an_answer_changes_neither_prompt_nor_run(tmp_path: Path, section: dict[str, Any]) -> None:
    plain, other = make_job(tmp_path), make_job(tmp_path, PLAIN, **section)
    assert other.fingerprint == plain.fingerprint
    assert fingerprint(other.params) == fingerprint(plain.params)
    same_service = "base_url" not in section.get("endpoint", {})
    assert (addressed(other) == addressed(plain)) is same_service, "a relay may answer from another model"


def addressed(job: Job) -> str:
    return service_of(replace(TARGET, base_url=job.base_url))


def test_another_service_has_other_answers(tmp_path: Path) -> None:
    assert key_of("https://a", "f") != key_of("https://b", "f")
    fill(file(tmp_path), f="text")
    assert found(file(tmp_path), "f", service="https://b") == [None]
    with_slash = make_job(tmp_path, PLAIN, endpoint={"base_url": "https://generativelanguage.googleapis.com/"})
    assert addressed(with_slash) == addressed(make_job(tmp_path))


# ---- what is kept


def test_an_answer_is_found_by_the_next_run(tmp_path: Path) -> None:
    assert fill(file(tmp_path), f="text", g="文 🎈") == []
    assert found(file(tmp_path), "f", "g", "h") == ["text", "文 🎈", None]


@pytest.mark.parametrize("finish", ["MAX_TOKENS", "SAFETY", "RECITATION"])
def test_only_whole_answers_are_kept(tmp_path: Path, finish: str) -> None:
    async def put(cache: AnswerCache) -> None:
        cache.put("cut", TARGET, parse_reply(body("half an", finish)))
        cache.put("failed", TARGET, Reply("", "error", error_kind="server", error="overloaded"))

    within(file(tmp_path), put)
    assert found(file(tmp_path), "cut", "failed") == [None, None]


def test_a_stored_answer_is_never_taken_for_that_of_another_key() -> None:
    one, other = key_of(SERVICE, "one"), key_of(SERVICE, "other")
    packed = pack(one, b"body " * 100)
    assert unpack(one, packed) == b"body " * 100
    assert unpack(other, packed) is None
    assert unpack(one, packed[:-5]) is None and unpack(one, b"") is None


def test_the_file_is_the_users_alone_and_holds_no_prompt(tmp_path: Path) -> None:
    shelf = file(tmp_path)

    async def ask(cache: AnswerCache) -> None:
        async def sell(asked: Prompt, route: Route) -> Reply:
            return paid("text")

        await cached(sell, cache, Saved())(replace(prompt(0), content=said("the secret question")), ROUTE)

    within(shelf, ask)
    path = tmp_path / "deep" / "answers.sqlite"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for part in path.parent.iterdir():
        assert b"secret question" not in part.read_bytes() and b"content 0" not in part.read_bytes()


def test_an_answer_that_is_too_old_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(file(tmp_path), f="old")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 29 * DAY)
    assert found(file(tmp_path), "f") == ["old"]
    monkeypatch.setattr(time, "time", lambda: now + 31 * DAY)
    assert found(file(tmp_path), "f") == [None]
    fill(file(tmp_path), f="new")
    assert found(file(tmp_path), "f") == ["new"]


def test_what_nobody_used_for_the_longest_age_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(file(tmp_path), f="old")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * DAY)
    fill(file(tmp_path), g="new")
    assert rows(tmp_path) == 1


def rows(tmp_path: Path) -> int:
    db = sqlite3.connect(tmp_path / "deep" / "answers.sqlite")
    try:
        return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])
    finally:
        db.close()


def incompressible(number: int) -> Reply:
    return paid("".join(os.urandom(3000).hex()))


def test_beyond_its_size_the_answers_used_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])

    async def fill_up(cache: AnswerCache) -> None:
        cache.put("dear", TARGET, paid("dear"))
        for batch in range(20):
            clock[0] += 2 * SqliteShelf.TOUCH_S
            assert batch == 0 or await cache.get("dear", TARGET), "what is used stays"
            for number in range(50):
                cache.put(f"{batch}/{number}", TARGET, incompressible(number))
            await cache.write()

    shelf = file(tmp_path, max_mb=1)
    assert within(shelf, fill_up) == []
    path = tmp_path / "deep" / "answers.sqlite"
    assert path.stat().st_size <= 1.5e6, "20 × 50 × 3 kB were put"
    assert 50 <= rows(tmp_path) < 400
    assert found(file(tmp_path, max_mb=1), "dear", "0/0", "19/49")[:2] == ["dear", None]
    assert found(file(tmp_path, max_mb=1), "19/49") != [None]


def test_more_than_can_be_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "WAITING_BYTES", 1)
    fill(file(tmp_path), f="kept", g="one too many")
    assert found(file(tmp_path), "f", "g") == ["kept", None]


def test_what_is_put_is_written_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "WRITE_S", 0.01)

    async def put(cache: AnswerCache) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cache.keep)
            cache.put("f", TARGET, paid("text"))
            for _ in range(1000):
                await anyio.sleep(0.01)
                if written := rows(tmp_path):
                    break
            tasks.cancel_scope.cancel()
        assert written == 1

    assert within(file(tmp_path), put) == []


_WRITER = """
import sys, anyio
from pathlib import Path
from pipeline.cache import AnswerCache
from pipeline.shelves import SqliteShelf
from pipeline.providers.answers import parse_reply
from pipeline.providers.stored import parse_stored
from pipeline.targets import Target
target = Target("gemini", "https://example", "p", "m")
who, path, raw = sys.argv[1], Path(sys.argv[2]), sys.argv[3].encode()
async def main():
    def heard(event):
        raise SystemExit(event.message)
    async with AnswerCache(SqliteShelf(path, 30, 100), parse_stored, heard) as cache:
        for batch in range(40):
            for number in range(25):
                cache.put(f"{who}/{batch}/{number}", target, parse_reply(raw))
            await cache.write()
            assert await cache.get(f"{who}/{batch}/0", target)
anyio.run(main)
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, who, str(path), body("text").decode()]) for who in ("a", "b")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert rows(tmp_path) == 2 * 40 * 25
    assert found(file(tmp_path), "a/39/24", "b/0/0") == ["text", "text"]


# ---- trouble


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"this is no database, " * 500)
    heard = fill(file(tmp_path), f="text")
    assert len(heard) == 1 and isinstance(heard[0], CacheTrouble)
    assert "is damaged" in heard[0].message and "set aside" in heard[0].message
    (aside,) = path.parent.glob("answers.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")
    assert found(file(tmp_path), "f") == ["text"]


@pytest.mark.case("D2")
@pytest.mark.parametrize("how", ["empty", "no tables", "zeros", "other table", "cut"])
def test_a_half_made_file_is_an_empty_one_and_an_odd_one_is_begun_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "deep" / "answers.sqlite"
    path.parent.mkdir()
    if how in ("no tables", "other table"):
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE answers (what TEXT)" if how == "other table" else "PRAGMA journal_mode = WAL")
    elif how == "cut":
        fill(file(tmp_path), f="text")
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes(b"" if how == "empty" else bytes(8192))
    heard = fill(file(tmp_path), g="text")
    assert bool(heard) is (how in ("zeros", "other table", "cut")), heard
    assert found(file(tmp_path), "g") == ["text"]


def test_damage_inside_the_file_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.sqlite"

    async def put(cache: AnswerCache) -> None:
        for number in range(300):
            cache.put(f"f{number}", TARGET, incompressible(number))

    within(file(tmp_path), put)
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 8 :] = os.urandom(len(damaged) - 4096 * 8)
    path.write_bytes(damaged)
    answers: list[Reply | None] = []

    async def get(cache: AnswerCache) -> None:
        for number in range(300):
            answers.append(await cache.get(f"f{number}", TARGET))
            cache.put(f"g{number}", TARGET, paid())

    heard = within(file(tmp_path), get)
    assert len(answers) == 300 and None in answers
    assert len(heard) == 1, heard


def test_a_place_that_cannot_be_written_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("a file where the directory should be")

    async def use(cache: AnswerCache) -> None:
        assert await cache.get("f", TARGET) is None
        cache.put("f", TARGET, paid())

    heard = within(file(tmp_path), use)
    assert len(heard) == 1
    assert "cannot be used" in heard[0].message and "goes on without it" in heard[0].message


# ---- the layer


def test_a_hit_costs_nothing_and_what_it_would_have_cost_is_counted(tmp_path: Path) -> None:
    saved = Saved()
    sold: list[int] = []

    async def sell(asked: Prompt, route: Route) -> Reply:
        sold.append(asked.row)
        return paid("text", endpoint=TARGET.endpoint, asked=MODEL)

    async def ask(cache: AnswerCache) -> None:
        call = cached(sell, cache, saved)
        route = Route((replace(TARGET, rates=fixed_rates(1.0, 10.0)),))
        assert (await call(prompt(0, "same"), route)).usage != Usage()
        await cache.write()
        hit = await call(prompt(1, "same"), route)
        assert (hit.text, hit.usage, hit.cost_usd, hit.attempts, hit.raw) == ("text", Usage(), Decimal(0), 0, b"")
        assert hit.model == "gemini-3.5-flash-lite-001"

    within(file(tmp_path), ask)
    assert sold == [0]
    assert (saved.cached, saved.identical) == (1, 0)
    assert saved.usd == Decimal("0.000001") * 12 + Decimal("0.00001") * 34


def test_without_a_cache_nothing_stands_in_the_way() -> None:
    async def sell(asked: Prompt, route: Route) -> Reply:
        raise AssertionError

    assert cached(sell, None, Saved()) is sell


# ---- the job


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"url": "http://127.0.0.1/"}, "redis://host:port/db"),
        ({"url": "redis://"}, "redis://host:port/db"),
        ({"url": "redis://here:port/0"}, "redis://host:port/db"),
        ({"url": "redis://here/0?password=secret"}, "redis://host:port/db"),
        ({"url": "redis://:secret@here/0"}, "password_env"),
        ({"password_env": "X"}, "password_env"),
        ({"max_mb": 0}, "max_mb"),
        ({"max_age_days": -1}, "max_age_days"),
    ],
)
def test_a_wrong_section_is_refused(tmp_path: Path, section: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words) as refused:
        make_job(tmp_path, PLAIN, cache=section)
    assert "secret" not in str(refused.value) + refused.value.hint


def test_off_by_default_and_the_section_alone_turns_it_on(tmp_path: Path) -> None:
    assert shelf_of(make_job(tmp_path)) is None
    path = write_job(tmp_path)
    path.write_text(path.read_text() + "[cache]\n")
    assert isinstance(shelf_of(load(path)), SqliteShelf)
    assert cache_file().is_relative_to(os.environ["XDG_CACHE_HOME"])


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(JobError) as refused:
        shelf_of(make_job(tmp_path, PLAIN, cache={"url": "redis://127.0.0.1:1/0"}))
    assert 'pip install "redis<9,>=8.1"' in refused.value.hint


def test_an_unset_password_is_named_before_anything_happens(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="NO_SUCH_PASSWORD is unset"):
        shelf_of(make_job(tmp_path, PLAIN, cache={"url": "redis://127.0.0.1:1/0", "password_env": "NO_SUCH_PASSWORD"}))


# ---- Redis


def test_redis_keeps_answers_for_other_runs(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (url, _):
        assert fill(RedisShelf(url, None, 30), f="text", g="文") == []
        assert found(RedisShelf(url, None, 30), "f", "g", "h") == ["text", "文", None]
        assert found(RedisShelf(url, None, 30), "f", service="https://b") == [None]


def test_redis_forgets_what_is_too_old(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (url, _):
        fill(RedisShelf(url, None, 1 / DAY), f="text")
        time.sleep(1.2)
        assert found(RedisShelf(url, None, 30), "f") == [None]


def test_many_calls_ask_redis_at_once_and_one_is_withdrawn(tmp_path: Path) -> None:
    async def ask(cache: AnswerCache) -> None:
        for number in range(300):
            cache.put(f"f{number}", TARGET, paid(f"text {number}"))
        await cache.write()
        texts: dict[int, str] = {}

        async def one(number: int) -> None:
            reply = await cache.get(f"f{number}", TARGET)
            texts[number] = reply.text if reply else ""

        for _ in range(5):
            async with anyio.create_task_group() as withdrawn:
                for number in range(300):
                    withdrawn.start_soon(one, number)
                await anyio.lowlevel.checkpoint()
                withdrawn.cancel_scope.cancel()
            texts.clear()
            async with anyio.create_task_group() as tasks:
                for number in range(300):
                    tasks.start_soon(one, number)
            assert texts == {number: f"text {number}" for number in range(300)}

    with redis_server(tmp_path) as (url, _):
        assert within(RedisShelf(url, None, 30), ask) == []


def test_a_redis_that_dies_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    async def use(cache: AnswerCache) -> None:
        cache.put("f", TARGET, paid())
        await cache.write()
        assert await cache.get("f", TARGET)
        process.kill()
        process.wait()
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(cache.get, "f", TARGET)
        cache.put("g", TARGET, paid())
        assert await cache.get("f", TARGET) is None

    with redis_server(tmp_path) as (url, process):
        heard = within(RedisShelf(url, None, 30), use)
    assert len(heard) == 1
    assert "Redis server cannot be used" in heard[0].message


def test_a_redis_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server(tmp_path, PASSWORD) as (url, _):
        job = make_job(tmp_path, PLAIN, cache={"url": url, "password_env": "CACHE_PASSWORD"})
        monkeypatch.setenv("CACHE_PASSWORD", PASSWORD)
        shelf = shelf_of(job)
        assert shelf and fill(shelf, f="text") == []
        monkeypatch.setenv("CACHE_PASSWORD", "wrong-" + PASSWORD)
        shelf = shelf_of(job)
        assert shelf
        heard = fill(shelf, f="text")
    assert len(heard) == 1 and PASSWORD not in str(heard)


# ---- a whole run


def play(path: Path, fresh: bool = False, **sections: Any) -> report.Summary:
    job = make_job(path, PLAIN, **{"limits": {"rpm": 0, "tpm": 0}, **sections})
    prepared = prepare.prepare(job, prepare.Options(fresh=fresh))
    ended = run_through(prepared)
    assert ended.exit_code == 0
    return ended.summary


@pytest.fixture
def served_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    (tmp_path / "topics.csv").write_text("topic\nrain\nsnow\nfog\nhail\n")
    return tmp_path


@pytest.mark.parametrize("place", ["file", "redis"])
def test_a_fresh_run_is_answered_from_the_cache_alone(
    served_here: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def twice(cache: dict[str, Any]) -> None:
        first = play(served_here, cache=cache)
        before = stats(url)["requests"]
        assert (first.calls, first.cached) == (4, 0)
        second = play(served_here, fresh=True, cache=cache)
        assert stats(url)["requests"] == before
        assert (second.outcomes["ok"], second.calls, second.cost_usd) == (4, 0, Decimal(0))
        assert second.cached == 4
        assert second.saved_usd == first.cost_usd > 0

    with served(model_version=None) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        if place == "file":
            twice({"max_mb": 10})
        else:
            with redis_server(served_here) as (redis_url, _):
                twice({"url": redis_url})


def test_without_the_section_a_fresh_run_buys_again_and_no_file_is_made(
    served_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(model_version=None) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert play(served_here).calls == play(served_here, fresh=True).calls == 4
    assert not cache_file().exists()


@pytest.mark.case("D2")
def test_a_pipe_in_the_place_of_the_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    os.mkfifo(tmp_path / "deep" / "answers.sqlite")

    async def run() -> str:
        shelf = file(tmp_path)
        news = await shelf.open()
        await shelf.close()
        return news

    assert "it is no file" in anyio.run(run)
    assert (tmp_path / "deep" / "answers.sqlite").is_file()
