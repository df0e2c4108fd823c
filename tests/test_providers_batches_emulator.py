"""Our client before the emulator's batches: a whole life of one, and every fault of a service on its way."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import httpx
import orjson
import pytest
from asking import ask as ask_of
from batching import MODEL, Service
from serving import served

from pipeline.prompts import Params
from pipeline.providers import resumable
from pipeline.providers.base import Account
from pipeline.providers.batches import disk
from pipeline.providers.batches.base import (
    Batches,
    Line,
    RemoteBatch,
    RemoteFile,
    is_enqueued_limit,
    is_storage_full,
    may_exist,
)
from pipeline.providers.gemini import Gemini
from pipeline.providers.openai import OpenAI
from pipeline.providers.transport import Wire
from pipeline.records import Failure
from pipeline.targets import Target

T = TypeVar("T")
SCHEMA = orjson.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}).decode()
COUNT = 30


@pytest.fixture(autouse=True)
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "_WAITS_S", (0.0,) * 4)
    monkeypatch.setattr(disk, "WAITS_S", (0.0,) * 4)


Speaks = Literal["gemini", "openai"]


async def before(
    url: str, wire: Wire, use: Callable[[Batches], Awaitable[T]], key: str, speaks: Speaks = "gemini"
) -> T:
    target = Target(speaks, url, "p", MODEL)
    batches = (Gemini if speaks == "gemini" else OpenAI)({target.access: Account(wire, key)}).open(target).batches()
    assert batches
    return await use(batches)


def using(
    service: Service, use: Callable[[Batches], Awaitable[T]], key: str = "AQ.key", speaks: Speaks = "gemini"
) -> T:
    async def main() -> T:
        wire = Wire(httpx.ASGITransport(service.emulator))
        return await before("http://emulator", wire, use, key, speaks)

    return anyio.run(main)


async def uploaded(batches: Batches, folder: Path, count: int = COUNT, name: str = "pp-1-1-1", **params: Any) -> Any:
    lines = [
        await batches.line(f"k{n}", ask_of(text=f"Say {n}.", params=Params(**params)), MODEL) for n in range(count)
    ]
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"".join(line for line in lines if isinstance(line, bytes)))
    return await batches.upload(path, name, hashlib.sha256(path.read_bytes()).hexdigest())


async def created(batches: Batches, folder: Path, **params: Any) -> RemoteBatch:
    file = await uploaded(batches, folder, **params)
    assert isinstance(file, RemoteFile)
    batch = await batches.create(MODEL, file, "pp-1-1-1")
    assert isinstance(batch, RemoteBatch)
    return batch


async def now(batches: Batches, batch: RemoteBatch) -> RemoteBatch:
    found = await batches.get(batch.name)
    assert isinstance(found, RemoteBatch)
    return found


async def taken(batches: Batches, batch: RemoteBatch, folder: Path) -> list[Line]:
    assert await batches.fetch(batch, folder / "results") is None
    return [batches.read_line(line, MODEL, 11) for line in (folder / "results").read_bytes().splitlines(keepends=True)]


def test_the_whole_life_of_a_batch(tmp_path: Path) -> None:
    service = Service()

    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path, schema=SCHEMA)
        assert (batch.label, batch.input_file, batch.lines) == ("pp-1-1-1", "files/pp-1-1-1", COUNT)
        found = await batches.find_all()
        assert isinstance(found, list) and [each.name for each in found] == [batch.name]
        seen = [batch.status]
        for _ in range(5):
            service.now += 8
            seen.append((await now(batches, batch)).status)
        assert list(dict.fromkeys(seen)) == ["pending", "running", "succeeded"]
        over = await now(batches, batch)
        assert (over.done, over.failed) == (COUNT, 0) and over.created and over.ended and over.ended > over.created
        lines = await taken(batches, over, tmp_path)
        assert sorted(line.key or "" for line in lines) == sorted(f"k{n}" for n in range(COUNT))
        assert all(line.reply and line.reply.status == "ok" and line.reply.lane == "batch" for line in lines)
        assert all(isinstance(orjson.loads(line.reply.text)["n"], int) for line in lines if line.reply)
        assert await batches.remove(RemoteFile("files/pp-1-1-1")) is None
        left = await batches.remove(RemoteFile(over.outputs[0]))
        assert isinstance(left, Failure) and left.http_status == 400, "results cannot be deleted"

    using(service, use)
    assert service.stats()["batches"]["lines_billed"] == COUNT


def test_over_a_socket_by_the_clock(tmp_path: Path) -> None:
    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path, count=2000)
        with anyio.fail_after(30):
            while not batch.is_over:
                await anyio.sleep(0.05)
                batch = await now(batches, batch)
        lines = await taken(batches, batch, tmp_path)
        assert len(lines) == 2000 and all(line.reply for line in lines)

    async def main() -> None:
        with served(batch=True, batch_pending_s=0.1, batch_run_s=0.1, batch_spread=1) as url:
            async with Wire() as wire:
                await before(url, wire, use, "AQ.key")

    anyio.run(main)


def test_a_create_whose_answer_is_lost_is_found_in_the_listing(tmp_path: Path) -> None:
    service = Service("create_cut*1")

    async def use(batches: Batches) -> None:
        file = await uploaded(batches, tmp_path)
        lost = await batches.create(MODEL, file, "pp-1-1-1")
        assert isinstance(lost, Failure) and may_exist(lost)
        found = await batches.find_all()
        assert isinstance(found, list)
        assert [(each.label, each.input_file) for each in found] == [("pp-1-1-1", "files/pp-1-1-1")]

    using(service, use)


def test_a_create_that_comes_after_the_fence_makes_nothing_that_costs(tmp_path: Path) -> None:
    service = Service()

    async def use(batches: Batches) -> None:
        file = await uploaded(batches, tmp_path)
        assert await batches.remove(file) is None
        late = await batches.create(MODEL, file, "pp-1-1-1")
        if isinstance(late, RemoteBatch):
            service.now += 3600
            over = await now(batches, late)
            assert over.status == "failed" and over.error and not over.over_limit

    using(service, use)
    assert service.stats()["batches"]["lines_billed"] == 0


def test_what_is_full_is_told_apart(tmp_path: Path) -> None:
    async def enqueued(batches: Batches) -> None:
        full = await batches.create(MODEL, await uploaded(batches, tmp_path), "x")
        assert isinstance(full, Failure) and is_enqueued_limit(full) and not may_exist(full)
        assert not is_storage_full(full)

    using(Service(batch_tokens=10), enqueued)
    using(Service("create_429*1"), enqueued)

    async def stored(batches: Batches) -> None:
        full = await uploaded(batches, tmp_path)
        assert isinstance(full, Failure) and is_storage_full(full) and (full.retry_after_s or 0) <= 3600

    using(Service(storage_bytes=10), stored)


@pytest.mark.parametrize(
    ("fault", "after_s", "status"),
    [
        ("batch_failed*1", 3600, "failed"),
        ("batch_expired*1", 49 * 3600, "expired"),
        ("batch_stuck*1", 3600, "pending"),
        ("inline_output*1", 3600, "succeeded"),
        ("output_late=30*1", 40, "running"),
        ("output_late=30*1", 100, "succeeded"),
    ],
)
def test_every_end_is_told(tmp_path: Path, fault: str, after_s: int, status: str) -> None:
    service = Service(fault)

    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path)
        service.now += after_s
        batch = await now(batches, batch)
        assert batch.status == status
        if status == "succeeded":
            assert len(await taken(batches, batch, tmp_path)) == COUNT

    using(service, use)


def test_a_batch_is_cancelled_once_and_for_all(tmp_path: Path) -> None:
    service = Service()

    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path)
        service.now += 15
        assert await batches.cancel(batch.name) is None
        service.now += 5
        assert (await now(batches, batch)).status == "cancelled"
        assert await batches.cancel(batch.name) is None

    using(service, use)


def test_the_lines_of_a_batch_fail_each_in_its_way(tmp_path: Path) -> None:
    service = Service("line_error=8:0.2,line_missing:0.2,line_empty:0.2,line_stranger:0.2,lines_shuffled*1")

    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path, count=100)
        service.now += 3600
        lines = await taken(batches, await now(batches, batch), tmp_path)
        ours = {f"k{n}" for n in range(100)}
        assert 60 < len(lines) < 100 and any(line.key not in ours for line in lines)
        assert {line.failure.kind for line in lines if line.failure} == {"rate_limit"}
        assert any(not line.reply and not line.failure for line in lines)
        assert [line.key for line in lines] != sorted(line.key or "" for line in lines)

    using(service, use)


@pytest.mark.parametrize("faults", ["upload_cut*2", "upload_lost*1", "upload_cut*1,upload_lost*1"])
def test_an_upload_that_is_cut_or_whose_answer_is_lost_is_one_file(tmp_path: Path, faults: str) -> None:
    service = Service(faults)

    async def use(batches: Batches) -> None:
        file = await uploaded(batches, tmp_path)
        assert isinstance(file, RemoteFile) and file == await batches.find_file("pp-1-1-1")

    using(service, use)
    assert service.stats()["files"]["stored"] == 1


@pytest.mark.parametrize("faults", ["download_cut*4", "download_short*4", "download_cut*2,download_short*2"])
def test_results_are_fetched_until_they_are_whole(tmp_path: Path, faults: str) -> None:
    service = Service(faults)

    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path)
        service.now += 3600
        assert len(await taken(batches, await now(batches, batch), tmp_path)) == COUNT

    using(service, use)


def test_another_project_has_none_of_it(tmp_path: Path) -> None:
    service = Service()

    async def use(batches: Batches) -> str:
        return (await created(batches, tmp_path)).name

    name = using(service, use)

    async def other(batches: Batches) -> None:
        assert await batches.get(name) is None and await batches.find_all() == []
        assert await batches.find_file("pp-1-1-1") is None

    using(service, other, key="AQ.other")


# ---- OpenAI's protocol

CHAT: Any = {"speaks": "openai"}


def test_the_whole_life_of_a_batch_of_completions(tmp_path: Path) -> None:
    service = Service()

    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path, schema=SCHEMA)
        found = await batches.find_all()
        assert isinstance(found, list) and [(each.name, each.label) for each in found] == [(batch.name, "pp-1-1-1")]
        service.now += 3600
        over = await now(batches, batch)
        assert (over.status, over.lines, over.done, over.failed) == ("succeeded", COUNT, COUNT, 0)
        lines = await taken(batches, over, tmp_path)
        assert sorted(line.key or "" for line in lines) == sorted(f"k{n}" for n in range(COUNT))
        assert all(line.reply and line.reply.status == "ok" and line.reply.lane == "batch" for line in lines)
        file = await batches.find_file("pp-1-1-1")
        assert isinstance(file, RemoteFile) and await batches.remove(file) is None
        assert await batches.find_file("pp-1-1-1") is None

    using(service, use, **CHAT)
    assert service.stats()["batches"]["lines_billed"] == COUNT


def test_completions_over_a_socket_by_the_clock(tmp_path: Path) -> None:
    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path, count=2000)
        with anyio.fail_after(30):
            while not batch.is_over:
                await anyio.sleep(0.05)
                batch = await now(batches, batch)
        lines = await taken(batches, batch, tmp_path)
        assert len(lines) == 2000 and all(line.reply for line in lines)

    async def main() -> None:
        with served(batch=True, batch_pending_s=0.1, batch_run_s=0.1, batch_spread=1) as url:
            async with Wire() as wire:
                await before(url, wire, use, "AQ.key", "openai")

    anyio.run(main)


def test_too_much_enqueued_ends_a_batch_of_completions_that_was_made(tmp_path: Path) -> None:
    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path)
        service.now += 60
        batch = await now(batches, batch)
        assert batch.status == "failed" and batch.over_limit and batch.error

    service = Service(batch_tokens=10)
    using(service, use, **CHAT)


@pytest.mark.parametrize(
    ("fault", "after_s", "status"), [("batch_expired", 49 * 3600, "expired"), ("", 20, "cancelled")]
)
def test_what_was_finished_of_completions_is_handed_out(tmp_path: Path, fault: str, after_s: int, status: str) -> None:
    service = Service(fault)

    async def use(batches: Batches) -> None:
        batch = await created(batches, tmp_path)
        service.now += after_s
        if not fault:
            assert await batches.cancel(batch.name) is None
            service.now += 3600
        batch = await now(batches, batch)
        assert batch.status == status
        lines = await taken(batches, batch, tmp_path)
        assert all(line.failure.kind == "transient" for line in lines if line.failure)
        answered.append(sum(line.reply is not None for line in lines))
        assert answered == [batch.done]

    answered: list[int] = []
    using(service, use, **CHAT)
    assert [service.stats()["batches"]["lines_billed"]] == answered and answered[0] < COUNT


def test_lost_answers_and_cut_files_of_completions(tmp_path: Path) -> None:
    service = Service("create_cut*1,upload_lost*1,download_cut*2,line_error=8:0.3")

    async def use(batches: Batches) -> None:
        lost = await uploaded(batches, tmp_path)
        assert isinstance(lost, Failure) and lost.sent
        file = await batches.find_file("pp-1-1-1")
        assert file == await uploaded(batches, tmp_path), "it is not sent twice"
        assert isinstance(file, RemoteFile)
        unknown = await batches.create(MODEL, file, "pp-1-1-1")
        assert isinstance(unknown, Failure) and may_exist(unknown)
        found = await batches.find_all()
        assert isinstance(found, list) and [each.input_file for each in found] == [file.name]
        service.now += 3600
        lines = await taken(batches, await now(batches, found[0]), tmp_path)
        assert len(lines) == COUNT and {line.failure.kind for line in lines if line.failure} == {"rate_limit"}

    using(service, use, **CHAT)
