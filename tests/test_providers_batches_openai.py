"""Batches in OpenAI's protocol, before a server of aiohttp's: files stream from and to the disk."""

import asyncio
import hashlib
import os
import stat
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx
import orjson
import pytest
from aiohttp import BodyPartReader, web
from asking import ask as ask_of

from pipeline.prompts import Params, Prompt
from pipeline.providers.base import Account
from pipeline.providers.batches import disk
from pipeline.providers.batches.base import BATCH_STATUSES, Batches, RemoteBatch, RemoteFile, may_exist
from pipeline.providers.batches.chat_batches import read_chat_batch
from pipeline.providers.batches.lines import read_chat_line
from pipeline.providers.openai import OpenAI, OpenAIConnection
from pipeline.providers.stored import parse_stored
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply
from pipeline.targets import Target

MODEL = "gpt-6-astra"
KEY = "sk-secret-key-0123456789"
T = TypeVar("T")
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "four"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
BATCH: dict[str, Any] = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": "file-2",
    "error_file_id": "file-3",
    "created_at": 1711471533,
    "completed_at": 1711493163,
    "request_counts": {"total": 100, "completed": 95, "failed": 5},
    "metadata": {"label": "pp-1-1-1"},
}


class Service:
    """Keeps files, and says of batches what the test wants; `cuts` so many downloads."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.batches: list[dict[str, Any]] = [BATCH]
        self.asked: list[web.Request] = []
        self.created: list[Any] = []
        self.longest = 0
        self.early = False
        self.cuts = 0

    async def upload(self, request: web.Request) -> web.StreamResponse:
        if self.early:
            return web.json_response({"error": {"message": "too large", "code": None}}, status=413)
        purpose, name, digest, size = "", "", hashlib.sha256(), 0
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "purpose":
                purpose = await part.text()
                continue
            name = part.filename or ""
            while chunk := await part.read_chunk(2**16):
                digest.update(chunk)
                size += len(chunk)
        assert purpose == "batch"
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = name, digest.hexdigest().encode()
        self.longest = max(self.longest, size)
        return web.json_response({"id": file_id, "object": "file", "bytes": size, "filename": name})

    async def listed(self, request: web.Request) -> web.StreamResponse:
        names = sorted(self.files, reverse=True)
        after = request.query.get("after")
        page = names[names.index(after) + 1 :][:2] if after else names[:2]
        data = [{"id": each, "filename": self.files[each][0], "bytes": self.longest} for each in page]
        return web.json_response({"data": data, "has_more": bool(page) and page[-1] != names[-1]})

    async def content(self, request: web.Request) -> web.StreamResponse:
        _, content = self.files[request.match_info["id"]]
        answer = web.StreamResponse(headers={"content-length": str(len(content))})
        await answer.prepare(request)
        if self.cuts:
            self.cuts -= 1
            await answer.write(content[: len(content) // 2])
            assert request.transport
            request.transport.close()
        else:
            await answer.write(content)
        return answer

    async def deleted(self, request: web.Request) -> web.StreamResponse:
        there = self.files.pop(request.match_info["id"], None)
        return web.json_response(
            {"deleted": True} if there else {"error": {"message": "No such File"}}, status=200 if there else 404
        )

    async def create(self, request: web.Request) -> web.StreamResponse:
        self.created.append(await request.json())
        return web.json_response({**BATCH, "status": "validating", "request_counts": {"total": 0}})

    async def batched(self, request: web.Request) -> web.StreamResponse:
        after = request.query.get("after")
        ids = [each["id"] for each in self.batches]
        page = self.batches[ids.index(after) + 1 if after else 0 :][:100]
        return web.json_response({"data": page, "has_more": bool(page) and page[-1] is not self.batches[-1]})

    async def one(self, request: web.Request) -> web.StreamResponse:
        found = next((each for each in self.batches if each["id"] == request.match_info["id"]), None)
        if found is None:
            return web.json_response({"error": {"message": "No batch found"}}, status=404)
        if request.method == "POST" and found["status"] in ("completed", "failed"):
            return web.json_response({"error": {"message": "Cannot cancel a batch that is over"}}, status=409)
        return web.json_response(found)

    @asynccontextmanager
    async def at(self) -> AsyncIterator[Batches]:
        @web.middleware
        async def heard(request: web.Request, handler: Any) -> Any:
            self.asked.append(request)
            assert request.headers["authorization"] == f"Bearer {KEY}"
            return await handler(request)

        app = web.Application(middlewares=[heard])
        app.add_routes(
            [
                web.post("/v1/files", self.upload),
                web.get("/v1/files", self.listed),
                web.get("/v1/files/{id}/content", self.content),
                web.delete("/v1/files/{id}", self.deleted),
                web.post("/v1/batches", self.create),
                web.get("/v1/batches", self.batched),
                web.get("/v1/batches/{id}", self.one),
                web.post("/v1/batches/{id}/cancel", self.one),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with Wire() as wire:
                target = Target("openai", url, "p", MODEL)
                batches = OpenAI({target.access: Account(wire, KEY)}).open(target).batches()
                assert batches
                yield batches
        finally:
            await runner.cleanup()


def using(service: Service, use: Callable[[Batches], Awaitable[T]]) -> T:
    async def main() -> T:
        async with service.at() as batches:
            return await use(batches)

    return anyio.run(main)


def prompt(text: str = "2 + 2?", **params: Any) -> Prompt:
    return ask_of(text=text, params=Params(**params), tokens=11)


def connection(url: str = "http://service") -> OpenAIConnection:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=COMPLETION)

    return OpenAIConnection(Wire(httpx.MockTransport(handler)), api_key=KEY, base_url=url, stream=True)


def test_a_line_is_what_a_live_request_sends_without_a_stream() -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(orjson.loads(request.content))
        return httpx.Response(200, json=COMPLETION)

    async def main() -> Any:
        speaker = OpenAIConnection(Wire(httpx.MockTransport(handler)), api_key=KEY)
        await speaker.generate(prompt(system="Be brief.", max_output_tokens=9), MODEL)
        batches = speaker.batches()
        assert batches
        return await batches.line('f"0', prompt(system="Be brief.", max_output_tokens=9), MODEL)

    line = anyio.run(main)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    told = {"custom_id": 'f"0', "method": "POST", "url": "/v1/chat/completions", "body": sent[0]}
    assert orjson.loads(line) == told and "stream" not in sent[0]


def test_google_takes_no_files_of_batches_by_this_protocol() -> None:
    assert connection("https://generativelanguage.googleapis.com").batches() is None


def test_a_file_streams_from_the_disk_and_is_found_by_its_name(tmp_path: Path) -> None:
    path, line = tmp_path / "1.jsonl", b'{"custom_id":"' + b"x" * 1000 + b'"}\n'
    path.write_bytes(line * 100_000)  # 100 MB
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    service = Service()

    async def use(batches: Batches) -> None:
        assert await batches.find_file("pp-1-1-1") is None
        tracemalloc.start()
        file = await batches.upload(path, "pp-1-1-1", digest)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20_000_000
        assert file == RemoteFile("file-1", None, path.stat().st_size)
        assert service.files["file-1"] == ("pp-1-1-1.jsonl", digest.encode())
        assert await batches.upload(path, "pp-1-1-1", digest) == file and len(service.files) == 1
        path.with_name("2").write_bytes(line)
        other = await batches.upload(path.with_name("2"), "pp-1-1-1", hashlib.sha256(line).hexdigest())
        assert other == RemoteFile("file-2", None, len(line)), "another length is another file"
        assert await batches.remove(other) is None
        for number in range(5):
            service.files[f"file-9{number}"] = f"other-{number}.jsonl", b""
        assert await batches.find_file("pp-1-1-1") == file, "on a later page"
        changed = await batches.upload(path, "pp-1-1-2", "0" * 64)
        assert isinstance(changed, Failure) and not changed.sent
        assert await batches.remove(file) is None and await batches.remove(file) is None
        assert await batches.find_file("pp-1-1-1") is None

    using(service, use)


def test_a_server_that_refuses_an_upload_before_its_end_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_bytes(b"{}\n" * 10_000_000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    service = Service()
    service.early = True
    refused = using(service, lambda batches: batches.upload(path, "pp-1", digest))
    assert isinstance(refused, Failure) and (refused.http_status in (413, None))


def sockets() -> set[int]:
    """Those that this process has open, by their number in the system: a descriptor's is given to the next."""
    found = set()
    for descriptor in range(256):
        with suppress(OSError):
            about = os.fstat(descriptor)
            if stat.S_ISSOCK(about.st_mode):
                found.add(about.st_ino)
    return found


def test_a_server_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_bytes(b"{}\n" * 5_000_000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    async def main() -> object:
        async def hear_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await given_up.wait()
            writer.close()

        given_up = asyncio.Event()
        silent = await asyncio.start_server(hear_nothing, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        async with silent, Wire() as wire:
            speaker = OpenAIConnection(wire, api_key=KEY, base_url=f"http://127.0.0.1:{port}", timeout_s=0.3)
            batches = speaker.batches()
            assert batches

            async def none(name: str) -> None:
                return

            batches.find_file = none  # type: ignore[method-assign]
            before = sockets()
            failure = await batches.upload(path, "pp-1", digest)
            await asyncio.sleep(0.05)
            left = sockets() - before
            given_up.set()
            await asyncio.sleep(0.05)
            assert len(left) <= 1, "the server's end, where it took the connection; ours waits for nobody"
            return failure

    failure = anyio.run(main)
    assert isinstance(failure, Failure) and failure.error_kind == "timeout"


def test_a_batch_is_created_found_and_cancelled() -> None:
    service = Service()
    service.batches = [{**BATCH, "id": f"batch_{number}"} for number in range(250)]

    async def use(batches: Batches) -> None:
        made = await batches.create(MODEL, RemoteFile("file-1"), "pp-1-1-1")
        assert isinstance(made, RemoteBatch) and (made.status, made.lines) == ("pending", None)
        assert service.created == [
            {
                "input_file_id": "file-1",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
                "metadata": {"label": "pp-1-1-1"},
            }
        ]
        found = await batches.find_all()
        assert isinstance(found, list) and [each.name for each in found] == [f"batch_{n}" for n in range(250)]
        assert await batches.get("batch_249") == found[-1] and await batches.get("batch_250") is None
        assert await batches.cancel("batch_1") is None, "it is over"
        assert await batches.cancel("batch_250") is None, "it is not there"

    using(service, use)


def test_a_batch_is_read_as_the_service_tells_of_it() -> None:
    assert read_chat_batch(BATCH) == RemoteBatch(
        *("batch_1", "pp-1-1-1", "file-1", "succeeded", 100, 95, 5),
        created=1711471533,
        ended=1711493163,
        outputs=("file-2", "file-3"),
    )
    meaning = {"validating": "pending", "in_progress": "running", "finalizing": "running", "new": "running"}
    for told in ("validating", "in_progress", "finalizing", "new", "failed", "expired", "cancelling", "cancelled"):
        batch = read_chat_batch({**BATCH, "status": told})
        assert batch and batch.status == meaning.get(told, told) and batch.outputs, "what was finished is handed out"
    only_errors = read_chat_batch({**BATCH, "output_file_id": ""})
    assert only_errors and (only_errors.status, only_errors.outputs) == ("succeeded", ("file-3",))
    nothing = read_chat_batch({**BATCH, "output_file_id": "", "error_file_id": None})
    assert nothing and nothing.status == "running"
    words = "Enqueued token limit reached for gpt-6-astra in organization org-x. Limit: 2,000,000 enqueued tokens."
    full = read_chat_batch(
        {**BATCH, "status": "failed", "errors": {"data": [{"code": "token_limit_exceeded", "message": words}]}}
    )
    assert full and full.over_limit and "2,000,000" in full.error
    wrong = {"data": [{"code": "invalid_json_line", "message": 'line "Dear Sir, my secret is marmalade"', "line": 1}]}
    failed = read_chat_batch({**BATCH, "status": "failed", "errors": wrong})
    assert failed and not failed.over_limit and "marmalade" not in failed.error
    wrong_ones: list[dict[str, Any]] = [{}, {"id": "../x", "status": "failed"}, {"id": 7, "status": "failed"}]
    for odd in (*wrong_ones, {"id": "batch_1"}):
        assert read_chat_batch(odd) is None
    statuses: list[object] = [None, 7, []]
    for status in statuses:
        unnamed = read_chat_batch({"id": "b", "status": status})
        assert unnamed and unnamed.status in BATCH_STATUSES


def test_a_create_whose_answer_is_lost_may_have_made_a_batch() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone")

    async def main() -> object:
        batches = OpenAIConnection(Wire(httpx.MockTransport(handler)), api_key=KEY).batches()
        assert batches
        return await batches.create(MODEL, RemoteFile("file-1"), "x")

    failure = anyio.run(main)
    assert isinstance(failure, Failure) and may_exist(failure)


def test_results_and_errors_become_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WAITS_S", (0.0,) * 4)
    service = Service()
    good = orjson.dumps({"custom_id": "a", "response": {"status_code": 200, "body": COMPLETION}, "error": None})
    bad = orjson.dumps({"custom_id": "b", "response": None, "error": {"code": "batch_expired", "message": KEY}})
    service.files = {"file-2": ("out", good), "file-3": ("errors", bad + b"\n")}
    batch = read_chat_batch(BATCH)
    assert batch
    assert using(service, lambda batches: batches.fetch(batch, tmp_path / "1")) is None
    lines = (tmp_path / "1").read_bytes()
    assert lines == good + b"\n" + bad.replace(KEY.encode(), b"***") + b"\n"


def test_results_that_are_cut_on_the_way_are_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WAITS_S", (0.0,) * 4)
    service = Service()
    line = orjson.dumps({"custom_id": "a", "response": {"status_code": 200, "body": COMPLETION}}) + b"\n"
    service.files = {"file-2": ("out", line * 100_000)}  # 25 MB
    batch = read_chat_batch({**BATCH, "error_file_id": None})
    assert batch
    service.cuts = 4
    assert using(service, lambda batches: batches.fetch(batch, tmp_path / "1")) is None
    assert (tmp_path / "1").read_bytes() == line * 100_000
    service.cuts = 5
    failure = using(service, lambda batches: batches.fetch(batch, tmp_path / "2"))
    assert isinstance(failure, Failure) and not (tmp_path / "2").exists()


def read(**fields: Any) -> Any:
    return read_chat_line(orjson.dumps(fields), connection().outcome, MODEL, 0)


def test_a_line_is_a_reply_like_any_other() -> None:
    line = read(custom_id="a", response={"status_code": 200, "request_id": "r", "body": COMPLETION}, error=None)
    reply = line.reply
    assert line.key == "a" and isinstance(reply, Reply)
    assert (reply.text, reply.lane, reply.status, reply.usage.input_tokens) == ("four", "batch", "ok", 5)
    assert parse_stored(line.body, reply.endpoint).text == "four"


@pytest.mark.parametrize(
    ("status", "body", "error", "kind"),
    [
        (400, {"error": {"message": "bad", "type": "invalid_request_error"}}, None, "reject"),
        (429, {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}, None, "rate_limit"),
        (500, {"error": {"message": "server", "type": "server_error"}}, None, "transient"),
        (401, {}, None, "auth"),
        (
            None,
            None,
            {"code": "batch_expired", "message": "could not be executed before the window expired."},
            "transient",
        ),
        (None, None, {"code": "batch_cancelled", "message": "The batch was cancelled."}, "transient"),
        (None, None, "odd", "transient"),
        (0, {}, {"code": "server_error", "message": "x"}, "transient"),
    ],
)
def test_a_lines_error_stands_in_either_place(status: Any, body: Any, error: Any, kind: str) -> None:
    line = read(custom_id="a", response=None if status is None else {"status_code": status, "body": body}, error=error)
    assert line.key == "a" and line.reply is None and (line.failure.kind, line.failure.billed) == (kind, False)


def test_what_is_neither_is_missing_and_what_is_no_line_has_no_key() -> None:
    empty: list[dict[str, Any] | None] = [None, {}, {"status_code": 200}, {"status_code": 200, "body": None}]
    empty.append({"body": {}})
    for response in empty:
        line = read(custom_id="a", response=response)
        assert (line.key, line.reply, line.failure) == ("a", None, None)
    for raw in (b"", b"[]", b"{", b"7"):
        line = read_chat_line(raw, connection().outcome, MODEL, 0)
        assert line.key is None and line.failure
