"""Gemini's batches: lines as a live request has them, files as they were written, and nothing believed but the key."""

import hashlib
import io
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest
import vclock
from batch_bodies import (
    ANSWER,
    DONE,
    ITEMS,
    KEY,
    MODEL,
    NAME,
    PENDING,
    RESULTS,
    TARGET,
    Handler,
    prompt,
    refusing,
    saying,
    state,
    using,
)
from drawing import wav

from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.prompts import Function, Params, Prompt, Tools, said
from pipeline.providers import resumable
from pipeline.providers.base import Account
from pipeline.providers.batches.base import (
    Batches,
    RemoteBatch,
    RemoteFile,
    is_enqueued_limit,
    is_storage_full,
    may_exist,
)
from pipeline.providers.batches.operations import read_file, read_operation
from pipeline.providers.gemini import Gemini, GeminiConnection
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Media
from pipeline.source.files import digest_of


class Silent(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """Says that all is well, and breaks off before it says what."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raise httpx.ReadError("gone")
        yield b""


class Listening(httpx.AsyncBaseTransport):
    """What stands behind it, and what was asked of it."""

    def __init__(self, behind: httpx.AsyncBaseTransport) -> None:
        self.behind = behind
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return await self.behind.handle_async_request(request)


# ---- lines

SCHEMA = orjson.dumps({"type": "object", "properties": {"n": {"type": ["integer", "null"]}}}).decode()
TREE = orjson.dumps({"type": "object", "properties": {"of": {"$ref": "#"}}}).decode()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"system": "Be brief.", "max_output_tokens": 40_000, "thinking": "low", "stop": ("x",)},
        {"continuation": "c2VlZA=="},
        {"safety": (("HARM_CATEGORY_HARASSMENT", "OFF"),), "response_mime_type": "application/json"},
        {"tools": Tools("{}", url_context=True, functions=(Function("f", "d", '{"type": "object"}'),), mode="any")},
    ],
)
def test_a_line_is_what_a_live_request_sends(params: dict[str, Any]) -> None:
    sent: list[Any] = []

    def live(request: httpx.Request) -> httpx.Response:
        sent.append(orjson.loads(request.content))
        return httpx.Response(200, json=ANSWER)

    async def main() -> bytes | Failure:
        connection = GeminiConnection(
            Wire(httpx.MockTransport(live)), api_key=KEY, labels=(("team", "a"),), stream=True
        )
        await connection.generate(prompt("Ünï\u2028code\n", **params), MODEL)
        batches = connection.batches()
        assert batches
        return await batches.line("f00", prompt("Ünï\u2028code\n", **params), MODEL)

    line = anyio.run(main)
    assert isinstance(line, bytes) and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert orjson.loads(line) == {"key": "f00", "request": sent[0]}


def test_a_schema_goes_in_the_older_form_and_one_that_has_none_is_refused() -> None:
    async def use(batches: Batches) -> tuple[Any, Any]:
        return await batches.line("a", prompt(schema=SCHEMA), MODEL), await batches.line(
            "a", prompt(schema=TREE), MODEL
        )

    line, refused = using(saying({}), use)
    config = orjson.loads(line)["request"]["generationConfig"]
    assert config["responseSchema"]["properties"]["n"] == {"type": "INTEGER", "nullable": True}
    assert "responseJsonSchema" not in config and config["responseMimeType"] == "application/json"
    assert (refused.kind, refused.sent) == ("reject", False) and "holds itself" in refused.message


def test_a_line_has_its_files_in_it_or_says_where_they_are() -> None:
    here = Media("image", "image/png", hashlib.blake2b(b"png", digest_size=16).hexdigest(), 3, 9, data=b"png")
    there = Media("image", "image/png", "d", 0, 9, uri="https://h/files/x")

    async def both(batches: Batches) -> tuple[Any, Any, Any]:
        lost = Media("image", "image/png", "d", 3, 9, path="/nowhere")
        lines = [
            await batches.line("a", Prompt(0, "", "answer", said("what?", (file,)), Params(), 9), MODEL)
            for file in (here, there, lost)
        ]
        return lines[0], lines[1], lines[2]

    within, named, lost = using(saying({}), both)
    parts = [orjson.loads(line)["request"]["contents"][0]["parts"][0] for line in (within, named)]
    assert parts[0] == {"inlineData": {"mimeType": "image/png", "data": b64encode(b"png").decode()}}
    assert parts[1] == {"fileData": {"mimeType": "image/png", "fileUri": "https://h/files/x"}}
    assert (lost.kind, lost.error_kind, lost.sent) == ("reject", "file", False)


def sound_of(content: bytes) -> Media:
    return Media("audio", "audio/wav", digest_of(io.BytesIO(content)), len(content), 30, data=content)


def test_a_line_names_no_file_that_ends_before_its_batch_may(tmp_path: Path) -> None:
    late_s = -23 * 3600.0
    emulator = Emulator(EmulatorOptions(), clock=lambda: time.time() + late_s)
    asked = Prompt(0, "", "answer", said("what?", (sound_of(wav(1)),)), Params(), 9)

    async def main() -> list[str]:
        nonlocal late_s
        account = Account(Wire(httpx.ASGITransport(emulator)), KEY, inline_bytes=10)
        connection = Gemini({TARGET.access: account}).open(TARGET)
        batches = connection.batches()
        assert batches
        live = await connection.linked(asked)
        assert isinstance(live, Prompt) and await connection.linked(live) == live
        uris = [live.media[0].uri]
        late_s = 0.0
        for each in (live, asked, live):
            line = await batches.line("a", each, MODEL)
            assert isinstance(line, bytes)
            uris.append(orjson.loads(line)["request"]["contents"][0]["parts"][0]["fileData"]["fileUri"])
        return uris

    first, *others = anyio.run(main)
    assert len({first, *others}) == 2 and set(others) != {first}
    assert emulator.stats.files["stored"] == 2


def test_a_file_that_fits_a_request_may_be_too_large_for_a_line() -> None:
    emulator = Emulator(EmulatorOptions(), clock=time.time)
    asked = [
        Prompt(0, "", "answer", said("what?", (sound,)), Params(), 9)
        for sound in (sound_of(wav(5, rate=80_000)), sound_of(wav(5, rate=400_000)))  # 0.8 and 4 MB
    ]

    async def use(batches: Batches) -> list[Any]:
        lines = [await batches.line("a", each, MODEL) for each in asked]
        return [orjson.loads(line)["request"]["contents"][0]["parts"][0] for line in lines if isinstance(line, bytes)]

    small, large = using(httpx.ASGITransport(emulator), use)
    assert "inlineData" in small and "fileData" in large and emulator.stats.files["stored"] == 1


def test_a_line_is_counted_as_its_prompt_is() -> None:
    sent: list[tuple[str, Any]] = []

    def counting(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.path, orjson.loads(request.content)))
        return httpx.Response(200, json={"totalTokens": 17})

    async def main() -> tuple[Any, Any]:
        connection = GeminiConnection(Wire(httpx.MockTransport(counting)), api_key=KEY)
        batches = connection.batches()
        assert batches
        asked = prompt("Ünï", system="Be brief.")
        line = await batches.line("f00", asked, MODEL)
        assert isinstance(line, bytes)
        return await batches.count(line, MODEL), await connection.count_tokens(asked, MODEL)

    assert anyio.run(main) == (17, 17) and sent[0] == sent[1]


# ---- files, at the emulator


@pytest.fixture(autouse=True)
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "_WAITS_S", (0.0,) * 4)


def written(path: Path, content: bytes) -> tuple[Path, str]:
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def test_a_file_is_uploaded_once_found_by_its_name_and_removed(tmp_path: Path) -> None:
    path, digest = written(tmp_path / "1.jsonl", b'{"key":"a"}\n' * 1_000_000)  # 12 MB: two parts
    emulator = Emulator(EmulatorOptions())
    heard = Listening(httpx.ASGITransport(emulator))

    async def use(batches: Batches) -> None:
        assert await batches.find_file("pp-1-1-1") is None
        file = await batches.upload(path, "pp-1-1-1", digest)
        assert file == RemoteFile("files/pp-1-1-1", digest, 12_000_000)
        assert await batches.upload(path, "pp-1-1-1", digest) == file == await batches.find_file("pp-1-1-1")
        another, others = written(tmp_path / "2.jsonl", b"{}\n")
        other = await batches.upload(another, "pp-1-1-1", others)
        assert isinstance(other, Failure) and "another file" in other.message
        another, others = written(tmp_path / "2.jsonl", b'{"key":"b"}\n' * 1_000_000)
        other = await batches.upload(another, "pp-1-1-1", others)
        assert isinstance(other, Failure) and "another file" in other.message, "as long, and not the same"
        changed = await batches.upload(path, "pp-1-1-2", "0" * 64)
        assert isinstance(changed, Failure) and "not what was written" in changed.message
        assert await batches.remove(file) is None and await batches.remove(file) is None
        assert await batches.find_file("pp-1-1-1") is None

    using(heard, use)
    assert emulator.stats.files["stored"] == 1
    parts = [request for request in heard.asked if "upload_id" in str(request.url)]
    assert len(parts) == 3 and all("x-goog-api-key" not in request.headers for request in parts)


@pytest.mark.parametrize("faults", [("503",), ("cut",), ("no_status", "503")])
def test_an_upload_gets_over_what_passes(tmp_path: Path, faults: Any) -> None:
    path, digest = written(tmp_path / "1.jsonl", b'{"key":"a"}\n' * 1_000_000)
    emulator = Emulator(EmulatorOptions(upload_faults=faults))
    file = using(httpx.ASGITransport(emulator), lambda batches: batches.upload(path, "pp-1", digest))
    assert isinstance(file, RemoteFile) and emulator.stats.files["bytes"] == 12_000_000


@pytest.mark.parametrize("told", [b64encode(bytes(range(32))).decode(), bytes(range(32)).hex()])
@pytest.mark.parametrize("coded", [False, True])
def test_a_digest_is_read_however_the_service_writes_it(told: str, coded: bool) -> None:
    written_so = b64encode(bytes(range(32)).hex().encode()).decode() if coded else told
    assert read_file({"name": "files/a", "sha256Hash": written_so}) == RemoteFile("files/a", bytes(range(32)).hex())


def test_no_key_goes_to_another_host_and_no_name_leads_it_elsewhere(tmp_path: Path) -> None:
    path, digest = written(tmp_path / "1.jsonl", b"{}\n")
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, headers={"x-goog-upload-url": "https://elsewhere.example/u?upload_id=S3"}, json={})

    async def use(batches: Batches) -> None:
        refused = await batches.upload(path, "pp-1", digest)
        assert isinstance(refused, Failure) and "elsewhere.example" in refused.message and "S3" not in refused.message
        for name in ("../models/x", "files/a/../b", "files/", "batches/x?y=", "https://elsewhere.example/x"):
            assert isinstance(await batches.remove(RemoteFile(name)), Failure)
            assert isinstance(await batches.cancel(name), Failure) and await batches.get(name) is None

    using(handler, use)
    assert asked == ["http://emulator/upload/v1beta/files"]


def test_a_storage_that_is_full_is_told_apart_and_its_endless_delay_is_none(tmp_path: Path) -> None:
    path, digest = written(tmp_path / "1.jsonl", b"{}\n")
    quota = {
        "quotaId": "FileStorageBytesPerProject",
        "quotaValue": "21474836480",
        "quotaMetric": "x/file_storage_bytes",
    }
    details = ({"violations": [quota]}, {"retryDelay": "9223372036854775807s"}, {"retryDelay": "999999999s"})
    handler = refusing(429, "You exceeded your current quota.", "RESOURCE_EXHAUSTED", details)
    full = using(handler, lambda batches: batches.upload(path, "pp-1", digest))
    assert isinstance(full, Failure) and is_storage_full(full) and not is_enqueued_limit(full)
    assert full.retry_after_s is not None and full.retry_after_s <= 3600


# ---- batches


def test_a_batch_is_read_as_the_service_tells_of_it() -> None:
    assert read_operation(PENDING) == RemoteBatch(
        NAME, "pp-1-1-1", "files/pp-1-1-1", "pending", 9, 0, 0, created=1765391221.40765
    )
    assert read_operation(DONE) == RemoteBatch(
        *(NAME, "pp-1-1-1", "files/pp-1-1-1", "succeeded", 9, 7, 2),
        created=1765391221.40765,
        ended=1787256625.852081,
        outputs=(RESULTS,),
    )


def test_every_state_and_shape_of_an_end() -> None:
    for prefix in ("BATCH_STATE_", "JOB_STATE_"):
        for word in ("PENDING", "RUNNING", "FAILED", "CANCELLED", "EXPIRED"):
            assert state(prefix + word).status == word.lower()
    done = {"done": True}
    assert state("BATCH_STATE_SUCCEEDED", **done).status == "running", "nothing can be fetched yet"
    assert state("JOB_STATE_SUCCEEDED", response={"responsesFile": RESULTS}).outputs == (RESULTS,)
    assert state("BATCH_STATE_SUCCEEDED", metadata={"output": {"responsesFile": RESULTS}}).status == "succeeded"
    assert state("BATCH_STATE_RUNNING", **done, error={"code": 13, "message": "x"}).status == "failed"
    assert state("BATCH_STATE_UNSPECIFIED").status == state("").status == state("NEW").status == "running"
    assert state("BATCH_STATE_EXPIRED", response={"responsesFile": RESULTS}).outputs == (RESULTS,)
    for inline in ({"response": ITEMS}, {"metadata": {"output": ITEMS}}):
        batch = state("BATCH_STATE_SUCCEEDED", **inline)
        assert batch.status == "succeeded" and batch.inline and not batch.outputs
    assert state("BATCH_STATE_SUCCEEDED", response={"responsesFile": "../x"}).status == "running"
    failed = state("BATCH_STATE_FAILED", **done, error={"code": 8, "message": 'quota of "my long prompt text"'})
    assert failed.over_limit and "prompt text" not in failed.error and "RESOURCE_EXHAUSTED" in failed.error
    assert not state("BATCH_STATE_FAILED", **done, error={"code": 5, "message": "File x not found"}).over_limit


def test_a_create_names_file_model_and_label_and_is_made_once() -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=PENDING)

    batch = using(handler, lambda batches: batches.create(MODEL, RemoteFile("files/pp-1-1-1"), "pp-1-1-1"))
    assert isinstance(batch, RemoteBatch) and batch.name == NAME
    (request,) = asked
    assert request.url == f"http://emulator/v1beta/models/{MODEL}:batchGenerateContent"
    told = {"displayName": "pp-1-1-1", "inputConfig": {"fileName": "files/pp-1-1-1"}}
    assert orjson.loads(request.content) == {"batch": told}


E8 = refusing(429, "You exceeded your current quota, please check your plan and billing details.", "RESOURCE_EXHAUSTED")


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("gone")


def unconnected(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody there")


@pytest.mark.parametrize(
    ("handler", "kind", "may", "full"),
    [
        (E8, "rate_limit", False, True),
        (broken, "transient", True, False),
        (unconnected, "transient", False, False),
        (refusing(503, "The model is overloaded.", "UNAVAILABLE"), "transient", True, False),
        (saying({}), "transient", True, False),
        (saying([]), "transient", True, False),
        (saying({"name": "batches/../../x"}), "transient", True, False),
        (refusing(400, "File x is not in an ACTIVE state.", "FAILED_PRECONDITION"), "reject", False, False),
        (refusing(400, "User location is not supported.", "FAILED_PRECONDITION"), "auth", False, False),
        (refusing(400, "API key not valid.", "INVALID_ARGUMENT"), "auth", False, False),
        (refusing(403, "You do not have permission to access the File x", "PERMISSION_DENIED"), "auth", False, False),
        (refusing(404, "models/x is not found", "NOT_FOUND"), "fatal", False, False),
    ],
)
def test_after_a_create_that_failed_one_knows_whether_it_may_have_made_a_batch(
    handler: Handler, kind: str, may: bool, full: bool
) -> None:
    asked = 0

    def counted(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return handler(request)

    failure = using(counted, lambda batches: batches.create(MODEL, RemoteFile("files/x"), "x"))
    assert isinstance(failure, Failure) and asked == 1
    assert (failure.kind, may_exist(failure), is_enqueued_limit(failure)) == (kind, may, full), failure


def page_of(number: int, last: int) -> dict[str, Any]:
    operations = [{**PENDING, "name": f"batches/{number}-{n}"} for n in range(2)]
    return {"operations": operations, **({"nextPageToken": str(number + 1)} if number < last else {})}


def test_a_listing_is_read_to_its_end_or_is_none() -> None:
    def paged(request: httpx.Request) -> httpx.Response:
        assert request.url.params["pageSize"] == "100"
        return httpx.Response(200, json=page_of(int(request.url.params.get("pageToken", 0)), 3))

    found = using(paged, lambda batches: batches.find_all())
    assert isinstance(found, list) and [batch.name for batch in found][::2] == [f"batches/{n}-0" for n in range(4)]
    assert using(saying({}), lambda batches: batches.find_all()) == []
    for odd in ({"operations": [{"name": 7}]}, {"operations": ["x"]}):
        assert isinstance(using(saying(odd), lambda batches: batches.find_all()), Failure)
    endless = Listening(httpx.MockTransport(saying({"nextPageToken": "same"})))
    assert isinstance(using(endless, lambda batches: batches.find_all()), Failure) and len(endless.asked) == 2
    assert isinstance(using(Silent(), lambda batches: batches.find_all()), Failure), "nothing came: not none"

    def late(request: httpx.Request) -> httpx.Response:
        page = int(request.url.params.get("pageToken", 0))
        return httpx.Response(200 if page < 2 else 503, json=page_of(page, 3))

    assert isinstance(using(late, lambda batches: batches.find_all()), Failure), "a part of a listing is no listing"


def test_a_batch_of_another_project_is_none_and_a_refused_key_is_a_failure() -> None:
    assert using(refusing(404, "Requested entity was not found.", "NOT_FOUND"), lambda its: its.get(NAME)) is None
    refused = using(refusing(403, "blocked", "PERMISSION_DENIED"), lambda its: its.get(NAME))
    assert isinstance(refused, Failure) and refused.kind == "auth"


def test_a_batch_that_is_over_needs_no_cancel() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(":cancel"):
            return httpx.Response(
                400, json={"error": {"code": 400, "message": "over", "status": "FAILED_PRECONDITION"}}
            )
        return httpx.Response(200, json=over)

    over: dict[str, Any] = DONE
    assert using(handler, lambda batches: batches.cancel(NAME)) is None
    over = PENDING
    assert isinstance(using(handler, lambda batches: batches.cancel(NAME)), Failure)
    assert using(saying({}), lambda batches: batches.cancel(NAME)) is None


def test_another_key_is_looked_for_where_the_first_one_is_refused() -> None:
    async def renew() -> str:
        return "AQ.other-key-0123456789"

    def handler(request: httpx.Request) -> httpx.Response:
        known = request.headers["x-goog-api-key"].startswith("AQ.other")
        return httpx.Response(200 if known else 401, json=PENDING if known else {"error": {"code": 401}})

    async def main() -> object:
        account = Account(Wire(httpx.MockTransport(handler)), KEY, renew=renew)
        batches = Gemini({TARGET.access: account}).open(TARGET).batches()
        assert batches
        return await batches.get(NAME)

    assert anyio.run(main) == read_operation(PENDING)


@pytest.mark.parametrize(("polls", "asked_for"), [(4, range(4, 5)), (10**9, range(100, 200))])
def test_a_file_that_is_processed_is_waited_for_and_not_for_ever(polls: int, asked_for: range) -> None:
    asked = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return httpx.Response(200, json={"name": "files/a", "state": "PROCESSING" if asked < polls else "ACTIVE"})

    async def main() -> object:
        gemini = Gemini({TARGET.access: Account(Wire(httpx.MockTransport(handler)), KEY)})
        batches = gemini.open(TARGET).batches()
        assert batches
        return await batches.find_file("a")

    assert vclock.run(main) == RemoteFile("files/a")
    assert asked in asked_for


def test_results_that_stand_in_a_listing_are_not_kept() -> None:
    one = {"name": NAME, "metadata": {"state": "BATCH_STATE_SUCCEEDED"}, "done": True, "response": ITEMS}
    listed = using(saying({"operations": [one]}), lambda batches: batches.find_all())
    assert isinstance(listed, list) and [(each.status, each.inline) for each in listed] == [("succeeded", None)]
