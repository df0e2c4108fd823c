"""What we ask of batch services is what the vendors' own clients ask, request by request."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import anyio
import openai
import pytest
from batch_bodies import DONE, MODEL, NAME, PENDING
from google import genai
from google.genai import types
from playing import JsonHandler
from test_providers_batches_openai import BATCH

from pipeline.providers.base import Account
from pipeline.providers.batches.base import Batches, RemoteFile
from pipeline.providers.batches.chat_batches import read_chat_batch
from pipeline.providers.batches.operations import read_operation
from pipeline.providers.gemini import Gemini
from pipeline.providers.openai import OpenAI
from pipeline.providers.transport import Wire
from pipeline.targets import Target

KEY = "AQ.secret-key-0123456789"
FILE = {"id": "file-1", "object": "file", "bytes": 3, "filename": "pp-1.jsonl", "created_at": 1, "purpose": "batch"}


class Asked(NamedTuple):
    """One request, without what the clients are free to choose."""

    method: str
    path: str
    query: dict[str, str]
    body: object


class Answering(JsonHandler):
    asked: list[Asked]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"] or 0))
        where = urlsplit(self.path)
        self.asked.append(Asked(self.command, where.path, dict(parse_qsl(where.query)), self.read(raw)))
        self.answer(200, self.said(where.path))

    do_POST = do_DELETE = do_GET

    def read(self, raw: bytes) -> object:
        kind = self.headers["content-type"] or ""
        if kind.startswith("multipart/"):
            form = message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + raw)
            parts: Any = form.get_payload()
            named = [part.get_param("name", header="content-disposition") for part in parts]
            files = [part.get_filename() for part in parts]
            return sorted(zip(named, files, [part.get_payload(decode=True) for part in parts], strict=True), key=str)
        return (json.loads(raw) or None) if raw else None

    def said(self, path: str) -> object:
        if "/openai" in path:
            ends = {"batches": {"data": [BATCH], "has_more": False}, "files": {"data": [], "has_more": False}}
            word = path.rpartition("/")[2]
            if self.command == "GET" and word in ends:
                return ends[word]
            return FILE if "/files" in path else BATCH
        return {"operations": [PENDING]} if path.endswith("/batches") else DONE if self.command == "GET" else PENDING


@contextmanager
def listening() -> Iterator[tuple[str, list[Asked]]]:
    asked: list[Asked] = []
    handler = type("Here", (Answering,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def ours(target: Target, use: Callable[[Batches], Awaitable[object]]) -> object:
    async def main() -> object:
        async with Wire() as wire:
            provider = (Gemini if target.provider == "gemini" else OpenAI)({target.access: Account(wire, KEY)})
            batches = provider.open(target).batches()
            assert batches
            return await use(batches)

    return anyio.run(main)


GEMINI: dict[str, tuple[Callable[[Batches], Awaitable[object]], Callable[[genai.Client], object]]] = {
    "create": (
        lambda its: its.create(MODEL, RemoteFile("files/x"), "pp-1"),
        lambda sdk: sdk.batches.create(
            model=MODEL, src="files/x", config=types.CreateBatchJobConfig(display_name="pp-1")
        ),
    ),
    "get": (lambda its: its.get(NAME), lambda sdk: sdk.batches.get(name=NAME)),
    "list": (
        lambda its: its.find_all(),
        lambda sdk: list(sdk.batches.list(config=types.ListBatchJobsConfig(page_size=100))),
    ),
    "cancel": (lambda its: its.cancel(NAME), lambda sdk: sdk.batches.cancel(name=NAME)),
    "find": (lambda its: its.find_file("x"), lambda sdk: sdk.files.get(name="files/x")),
    "remove": (lambda its: its.remove(RemoteFile("files/x")), lambda sdk: sdk.files.delete(name="files/x")),
}


@pytest.mark.parametrize("call", GEMINI)
def test_gemini_is_asked_as_googles_sdk_asks_it(call: str) -> None:
    we, they = GEMINI[call]
    with listening() as (url, asked):
        ours(Target("gemini", url, "p", MODEL), we)
        options = types.HttpOptions(base_url=url, api_version="v1beta")
        client = genai.Client(api_key=KEY, vertexai=False, http_options=options)
        they(client)
        client.close()
    assert len(asked) == 2 and asked[0] == asked[1]


def test_google_reads_of_a_batch_what_we_read() -> None:
    with listening() as (url, _):
        client = genai.Client(
            api_key=KEY, vertexai=False, http_options=types.HttpOptions(base_url=url, api_version="v1beta")
        )
        theirs, batch = client.batches.get(name=NAME), read_operation(DONE)
        client.close()
    assert batch and theirs.dest and theirs.state and theirs.create_time and theirs.end_time
    assert (theirs.name, theirs.display_name, theirs.dest.file_name) == (batch.name, batch.label, batch.outputs[0])
    assert theirs.state.value.removeprefix("JOB_STATE_").lower() == batch.status
    assert (theirs.create_time.timestamp(), theirs.end_time.timestamp()) == (batch.created, batch.ended)


OPENAI: dict[str, tuple[Callable[[Batches], Awaitable[object]], Callable[[openai.OpenAI], object]]] = {
    "create": (
        lambda its: its.create(MODEL, RemoteFile("file-1"), "pp-1"),
        lambda sdk: sdk.batches.create(
            input_file_id="file-1",
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"label": "pp-1"},
        ),
    ),
    "get": (lambda its: its.get("batch_1"), lambda sdk: sdk.batches.retrieve("batch_1")),
    "list": (lambda its: its.find_all(), lambda sdk: list(sdk.batches.list(limit=100))),
    "find": (
        lambda its: its.find_file("x"),
        lambda sdk: list(sdk.files.list(purpose="batch", limit=10000, order="desc")),
    ),
    "remove": (lambda its: its.remove(RemoteFile("file-1")), lambda sdk: sdk.files.delete("file-1")),
    "cancel": (lambda its: its.cancel("batch_1"), lambda sdk: sdk.batches.cancel("batch_1")),
}


@pytest.mark.parametrize("call", OPENAI)
def test_openai_is_asked_as_its_sdk_asks_it(call: str) -> None:
    we, they = OPENAI[call]
    with listening() as (url, asked):
        ours(Target("openai", f"{url}/openai/v1", "p", MODEL), we)
        with openai.OpenAI(api_key=KEY, base_url=f"{url}/openai/v1") as client:
            they(client)
    assert len(asked) == 2 and asked[0] == asked[1]


def test_a_file_is_uploaded_as_openais_sdk_uploads_it(tmp_path: Path) -> None:
    path = tmp_path / "pp-1.jsonl"
    path.write_bytes(b"{}\n")
    with listening() as (url, asked):
        digest = hashlib.sha256(b"{}\n").hexdigest()
        file = ours(Target("openai", f"{url}/openai/v1", "p", MODEL), lambda its: its.upload(path, "pp-1", digest))
        with openai.OpenAI(api_key=KEY, base_url=f"{url}/openai/v1") as client:
            client.files.create(file=path, purpose="batch")
    assert file == RemoteFile("file-1", None, 3)
    looked, sent, theirs = asked
    assert (looked.method, sent) == ("GET", theirs)


def test_openais_sdk_reads_of_a_batch_what_we_read() -> None:
    with listening() as (url, _), openai.OpenAI(api_key=KEY, base_url=f"{url}/openai/v1") as client:
        theirs, batch = client.batches.retrieve("batch_1"), read_chat_batch(BATCH)
    assert batch and theirs.request_counts and theirs.metadata
    counts = theirs.request_counts
    assert (counts.total, counts.completed, counts.failed) == (batch.lines, batch.done, batch.failed)
    assert (theirs.output_file_id, theirs.error_file_id) == batch.outputs
    assert (theirs.id, theirs.metadata["label"], theirs.completed_at) == (batch.name, batch.label, batch.ended)
