"""Who leads a run on object storage: one at a time, whatever becomes of that one, of its machine and of the store."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import anyio
import orjson
import pytest
from desks import without_threads
from storage import in_folder, in_memory
from vclock import run

from pipeline.errors import RESUMABLE, RunStateError
from pipeline.objects import Away, Objects, Tag, opened
from pipeline.store.lease import HELD_S, NAME, RENEW_S, WATCHED_S, Busy, leading

OTHERS = {"host": "another", "system": "", "process": 7, "id": "x"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


class Weather(Objects):
    """Objects whose conditional puts fail at will: before they are done, or after."""

    fails = ""

    def replace(self, name: str, data: bytes, tag: Tag) -> Tag | None:
        if self.fails == "before":
            raise Away("the store is away")
        replaced = super().replace(name, data, tag)
        if self.fails == "after":
            raise Away("the store is away")
        return replaced


def weather() -> Weather:
    objects = in_memory()
    return Weather(objects.url, objects._store)


def unheard(message: str) -> NoReturn:
    raise AssertionError(message)


def noting(heard: list[str]) -> Busy:
    def busy(message: str) -> nullcontext[None]:
        heard.append(message)
        return nullcontext()

    return busy


async def led(objects: Objects, busy: Busy = unheard, after: int = 0) -> int:
    async with leading(objects, busy, after) as lease:
        return lease.session


def leave(objects: Objects, **changes: object) -> None:
    """As a driver that is gone left it."""
    told = {"session": 4, "holder": OTHERS, "renewed": 9, "has_ended": False, **changes}
    objects.put(NAME, orjson.dumps(told))


@pytest.fixture(params=["memory", "folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "s3":
        return opened(f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    return in_memory() if request.param == "memory" else in_folder(tmp_path)


def test_sessions_are_numbered_and_none_comes_twice(objects: Objects) -> None:
    assert [run(led, objects) for _ in range(3)] == [1, 2, 3]
    assert run(led, objects, unheard, 7) == 8
    assert run(led, objects, unheard, 7) == 9


def test_another_driver_is_refused_while_one_leads(objects: Objects) -> None:
    heard: list[str] = []

    async def both() -> None:
        async with leading(objects, unheard) as lease:
            began_at = anyio.current_time()
            with pytest.raises(RunStateError, match=r"in use by process \d+ on"):
                await led(objects, noting(heard))
            assert anyio.current_time() - began_at <= RENEW_S + 5
            await anyio.sleep(200)
            assert not lease.lost.is_set()

    run(both)
    assert len(heard) == 1 and "whether it still does" in heard[0]
    assert run(led, objects) == 2


def test_two_that_begin_in_the_same_moment_are_one_leader() -> None:
    objects = in_memory()
    ended: list[object] = []

    async def one() -> None:
        try:
            async with leading(objects, nullcontext) as lease:
                await anyio.sleep(100)
                ended.append(lease.session)
        except RunStateError as refused:
            ended.append(refused.exit_code)

    async def all_of_them() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)

    run(all_of_them)
    assert sorted(map(str, ended)) == ["1", "2", "2", "2", "2"]  # session 1, and exit code 2


def test_whoever_stopped_on_another_machine_is_watched_for_a_minute() -> None:
    objects, heard = in_memory(), list[str]()
    leave(objects)

    async def taken_over() -> None:
        assert await led(objects, noting(heard)) == 5
        assert WATCHED_S <= anyio.current_time() <= WATCHED_S + 10

    run(taken_over)
    assert len(heard) == 1 and "process 7 on another led memory:///test" in heard[0]


def test_whoever_died_on_this_machine_is_followed_at_once() -> None:
    """Led for real by a process that is killed; one of the same number elsewhere says nothing."""
    objects = in_memory()
    me = run_and_read(objects)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    leave(objects, holder={**me, "process": int(dead.stdout)})
    assert run(led, objects) == 5
    leave(objects, holder={**me, "process": int(dead.stdout), "system": "another start"})
    heard: list[str] = []
    assert run(led, objects, noting(heard)) == 5
    assert heard


def test_whoever_was_killed_and_is_waited_for_by_nobody_is_followed_at_once() -> None:
    objects = in_memory()
    me = run_and_read(objects)
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave(objects, holder={**me, "process": killed.pid})
    with pytest.raises(AssertionError, match="whether it still does"):
        run(led, objects)
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    assert run(led, objects) == 5
    killed.communicate()


def run_and_read(objects: Objects) -> dict[str, object]:
    run(led, objects)
    found = objects.get(NAME)
    assert found
    holder: dict[str, object] = orjson.loads(found)["holder"]
    return holder


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_store_that_is_away_for_half_a_minute_costs_nothing(fails: str) -> None:
    objects = weather()

    async def through() -> None:
        async with leading(objects, unheard) as lease:
            await anyio.sleep(25)
            for _ in range(3):
                objects.fails = fails
                await anyio.sleep(HELD_S - RENEW_S - 5)
                objects.fails = ""
                await anyio.sleep(20)
            assert not lease.lost.is_set()

    run(through)
    assert run(led, objects) == 2, "it was given back"


def test_it_is_given_back_also_where_the_answer_to_a_renewal_was_lost() -> None:
    objects = weather()

    async def ended() -> None:
        async with leading(objects, unheard):
            objects.fails = "after"
            await anyio.sleep(RENEW_S + 1)
            objects.fails = ""

    run(ended)
    assert run(led, objects) == 2


def test_a_store_that_is_away_for_longer_ends_it_before_another_may_begin() -> None:
    objects = weather()

    async def lost() -> None:
        async with leading(objects, unheard) as lease:
            await anyio.sleep(25)
            objects.fails = "before"
            began_at = anyio.current_time()
            await lease.lost.wait()
            assert anyio.current_time() - began_at <= HELD_S
            assert lease.refusal.exit_code == RESUMABLE
            assert "could not be renewed for 120 s: the store is away" in lease.refusal.message

    run(lost)


def test_a_driver_that_was_stopped_for_long_hears_that_another_leads() -> None:
    objects = in_memory()

    async def lost() -> None:
        async with leading(objects, unheard) as lease:
            leave(objects)
            await lease.lost.wait()
            assert anyio.current_time() <= RENEW_S + 1
            assert "another one leads it" in lease.refusal.message

    run(lost)
    found = objects.get(NAME)
    assert found and orjson.loads(found)["session"] == 4, "whoever lost it leaves it alone"


def test_what_ends_the_block_comes_out_as_it_is() -> None:
    async def broken() -> None:
        async with leading(in_memory(), unheard):
            await anyio.sleep(100)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(broken)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"session": 1}', b'{"session": 1, "holder": {"host": 1}}'])
def test_a_damaged_one_is_told(content: bytes) -> None:
    objects = in_memory()
    objects.put(NAME, content)
    with pytest.raises(RunStateError, match=r"lead\.json is damaged"):
        run(led, objects)
