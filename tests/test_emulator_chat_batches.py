"""Batches of chat completions at the emulator: OpenAI's own package drives them, and every fault that they share."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
from batching import MODEL, Service, keys, line
from google import genai
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Batch, FileObject
from serving import served

from pipeline.providers.answers import is_marked

ENDPOINT: Any = "/v1/chat/completions"


def chat_line(key: str, text: str = "", **body: Any) -> bytes:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text or f"Say {key}."}], **body}
    return orjson.dumps({"custom_id": key, "method": "POST", "url": ENDPOINT, "body": asked}) + b"\n"


# ---- OpenAI's package, over a socket


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(batch=True, batch_pending_s=0.1, batch_run_s=0.1, batch_spread=1) as url:
        yield url


@contextmanager
def sdk(url: str, path: str = "/v1", key: str = "sk-key") -> Iterator[openai.OpenAI]:
    client = openai.OpenAI(api_key=key, base_url=f"{url}{path}", max_retries=0)
    try:
        yield client
    finally:
        client.close()


def uploaded(client: openai.OpenAI, path: Path, *lines: bytes) -> FileObject:
    path.write_bytes(b"".join(lines))
    with path.open("rb") as file:
        return client.files.create(file=file, purpose="batch")


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    until = time.monotonic() + 20
    while (found := client.batches.retrieve(batch.id)).status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("path", ["/v1", "/api/v1"])
def test_a_batch_is_made_of_a_file_and_both_files_of_results_are_read(url: str, path: str, tmp_path: Path) -> None:
    lines = [*map(chat_line, keys(20)), chat_line("bad", max_tokens=-1)]
    with sdk(url, path) as client:
        file = uploaded(client, tmp_path / "lines.jsonl", *lines)
        assert (file.bytes, file.filename, file.purpose) == (len(b"".join(lines)), "lines.jsonl", "batch")
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id).content == b"".join(lines)
        made = client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"run": "r", "cut": "3"}
        )
        assert (made.status, made.metadata, made.input_file_id) == ("validating", {"run": "r", "cut": "3"}, file.id)
        assert client.files.delete(file.id).deleted
        done = ended(client, made)
        assert (done.status, done.errors, done.model) == ("completed", None, MODEL)
        counts = done.request_counts
        assert counts is not None and (counts.total, counts.completed, counts.failed) == (21, 20, 1)
        assert done.output_file_id is not None and done.error_file_id is not None
        results = [json.loads(line) for line in client.files.content(done.output_file_id).iter_lines()]
        (refused,) = [json.loads(line) for line in client.files.content(done.error_file_id).iter_lines()]
    answers = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in results}
    assert answers == {key: f"Say {key}." for key in keys(20)}
    assert results[0]["response"]["status_code"] == 200 and results[0]["error"] is None
    assert results[0]["response"]["body"]["usage"]["prompt_tokens"] > 0
    assert (refused["custom_id"], refused["error"], refused["response"]["status_code"]) == ("bad", None, 400)
    assert refused["response"]["body"]["error"]["type"] == "invalid_request_error"


def test_batches_are_listed_newest_first_over_pages_and_cancelled(tmp_path: Path) -> None:
    with served(batch=True, batch_pending_s=60, batch_run_s=60, batch_spread=1) as url, sdk(url) as client:
        file = uploaded(client, tmp_path / "lines.jsonl", chat_line("a"))
        made = [
            client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"n": str(number)}
            )
            for number in range(5)
        ]
        listed = [each.metadata for each in client.batches.list(limit=2)]
        assert listed == [{"n": str(number)} for number in reversed(range(5))]
        after = client.batches.list(after=made[1].id)
        assert [each.id for each in after.data] == [made[0].id]
        cancelled = client.batches.cancel(made[0].id)
        assert cancelled.status == "cancelling" and cancelled.cancelling_at is not None
        assert client.batches.retrieve(made[0].id).status == "cancelling"
        assert [each.id for each in client.files.list()] == [file.id]
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("batch_none")
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve("file-none")
        with pytest.raises(openai.BadRequestError):
            client.batches.list(limit=101)
        with sdk(url, key="sk-other") as other:
            assert other.batches.list().data == [] and other.files.list().data == []
            with pytest.raises(openai.NotFoundError):
                other.batches.cancel(made[0].id)


def test_a_create_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with sdk(url) as client:
        file = uploaded(client, tmp_path / "lines.jsonl", chat_line("a"))
        for wrong in (
            {"endpoint": "/v1/embeddings"},
            {"completion_window": "1h"},
            {"metadata": {"k" * 65: "v"}},
            {"metadata": {"k": "v" * 513}},
            {"metadata": {str(n): "" for n in range(17)}},
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
        ):
            told: Any = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h", **wrong}
            with pytest.raises(openai.BadRequestError):
                client.batches.create(**told)
        with pytest.raises(openai.BadRequestError):
            client.files.create(file=b"{}", purpose="vision")
    with sdk(url, key="invalid") as client, pytest.raises(openai.AuthenticationError):
        client.batches.list()


def test_a_large_file_is_taken_as_it_comes(url: str, tmp_path: Path) -> None:
    lines = [chat_line(key, "--" * 2000 + "\r\n") for key in keys(1500)]  # 6 MB, with what looks like a boundary
    with sdk(url) as client:
        file = uploaded(client, tmp_path / "lines.jsonl", *lines)
        assert client.files.content(file.id).content == b"".join(lines)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"-", b"--b", b"\r\n", b"\n", b"b", b"--", b": "]), max_size=12).map(b"".join))
def test_whatever_stands_in_a_file_is_what_was_uploaded(content: bytes) -> None:
    if b"\r\n--bb" in content:
        return  # that is the end of a part
    service = ChatService()
    parts = [
        b'--bb\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        b'--bb\r\nContent-Disposition: form-data; name="file"; filename="a b.jsonl"\r\n',
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--bb--\r\n",
    ]
    bearer = service.bearer | {"content-type": "multipart/form-data; boundary=bb"}
    told = service.ask("POST", "/v1/files", headers=bearer, content=b"".join(parts)).json()
    assert (told["filename"], told["bytes"]) == ("a b.jsonl", len(content))
    assert service.call("GET", f"files/{told['id']}/content").content == content


@pytest.mark.parametrize("body", [b"", b"--bb", b"--bb\r\n\r\n", b"--bb\r\nx\r\n\r\nx", b"{}"])
def test_a_form_that_is_none_is_refused(body: bytes) -> None:
    service = ChatService()
    bearer = service.bearer | {"content-type": "multipart/form-data; boundary=bb"}
    assert service.ask("POST", "/v1/files", headers=bearer, content=body).status_code == 400


def test_googles_own_route_takes_files_of_the_files_api(url: str, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b"".join(map(chat_line, keys(3))))
    options = types.HttpOptions(base_url=url, api_version="v1beta")
    native = genai.Client(api_key="sk-key", vertexai=False, http_options=options)
    file = native.files.upload(file=tmp_path / "lines.jsonl", config={"mime_type": "application/jsonl"})
    assert file.name is not None
    with sdk(url, "/v1beta/openai") as client:
        made = client.batches.create(input_file_id=file.name, endpoint=ENDPOINT, completion_window="24h")
        done = ended(client, made)
        assert done.status == "completed" and done.output_file_id is not None
        results = native.files.download(file=done.output_file_id).splitlines()
        assert [json.loads(line)["custom_id"] for line in results] == keys(3)
        with pytest.raises(openai.NotFoundError):
            client.files.list()
    native.close()


# ---- in process, under a clock of its own


class ChatService(Service):
    def __init__(self, batch_faults: str = "", **flags: Any) -> None:
        super().__init__(batch_faults, **flags)
        self.bearer = {"authorization": "Bearer sk-key"}

    def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self.ask(method, f"/v1/{path}", headers=self.bearer, **kwargs)

    def put(self, *lines: bytes) -> str:
        files = {"file": ("lines.jsonl", b"".join(lines))}
        return str(self.call("POST", "files", files=files, data={"purpose": "batch"}).json()["id"])

    def made(self, file: str) -> dict[str, Any]:
        asked = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h"}
        told: dict[str, Any] = self.call("POST", "batches", json=asked).json()
        return told

    def batch(self, *lines: bytes) -> str:
        return str(self.made(self.put(*lines))["id"])

    def told(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = self.call("GET", f"batches/{name}").json()
        return told

    def lines(self, file: str) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.call("GET", f"files/{file}/content").content.splitlines()]


def test_a_batch_goes_through_its_states_with_their_times() -> None:
    service = ChatService()
    name = service.batch(chat_line("a"))
    started, ended_at = int(service.now) + 10, int(service.now) + 30
    states = []
    for _ in range(4):
        states.append(service.told(name)["status"])
        service.now += 10.5
    assert states == ["validating", "in_progress", "in_progress", "completed"]
    told = service.told(name)
    assert (told["in_progress_at"], told["completed_at"]) == (started, ended_at)
    assert told["expires_at"] - told["created_at"] == 24 * 3600
    assert told["error_file_id"] is None


def test_an_expired_batch_hands_out_what_was_answered_and_names_the_rest() -> None:
    service = ChatService("batch_expired")
    name = service.batch(*map(chat_line, keys(100)))
    service.now += 24 * 3600
    told = service.told(name)
    done, expired = service.lines(told["output_file_id"]), service.lines(told["error_file_id"])
    assert told["status"] == "expired" and told["expired_at"]
    assert [each["custom_id"] for each in (*done, *expired)] == keys(100)
    assert 40 < len(done) < 60
    assert {each["error"]["code"] for each in expired} == {"batch_expired"}
    assert told["request_counts"] == {"total": 100, "completed": len(done), "failed": 0}
    assert service.stats()["batches"]["lines_billed"] == len(done)


def test_a_cancelled_batch_ends_after_a_while_and_hands_out_what_was_answered() -> None:
    service = ChatService()
    name = service.batch(*map(chat_line, keys(100)))
    service.now += 15
    assert service.call("POST", f"batches/{name}/cancel").json()["status"] == "cancelling"
    told = service.told(name)
    assert (told["status"], told["output_file_id"]) == ("cancelling", None)
    service.now += 2
    told = service.told(name)
    assert (told["status"], told["request_counts"]["completed"]) == ("cancelled", 25)
    assert [each["custom_id"] for each in service.lines(told["output_file_id"])] == keys(100)[:25]
    assert service.call("POST", f"batches/{name}/cancel").status_code == 409
    waiting = service.batch(chat_line("a"))
    service.call("POST", f"batches/{waiting}/cancel")
    service.now += 2
    told = service.told(waiting)
    assert (told["status"], told["output_file_id"], told["error_file_id"]) == ("cancelled", None, None)


def test_more_enqueued_than_allowed_fails_the_batch_and_not_the_create() -> None:
    service = ChatService(batch_tokens=150)
    file = service.put(chat_line("a", "word " * 100))
    service.made(file)
    second = service.made(file)
    assert second["status"] == "validating"
    service.now += 10
    told = service.told(second["id"])
    (error,) = told["errors"]["data"]
    assert (told["status"], error["code"]) == ("failed", "token_limit_exceeded")
    assert f"for {MODEL} in" in error["message"] and "Limit: 150 enqueued tokens" in error["message"]
    service.now += 21
    third = service.made(file)["id"]
    service.now += 31
    assert service.told(third)["status"] == "completed"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([chat_line("a"), chat_line("a")], "duplicate_custom_id"),
        ([chat_line("a"), b"{\n"], "invalid_json_line"),
        ([chat_line("a").replace(b"chat/completions", b"embeddings")], "invalid_url"),
        ([chat_line("a"), chat_line("b", model="gemini-3.8-flash")], "mismatched_model"),
        ([b"\n"], "empty_file"),
    ],
)
def test_a_file_that_is_none_fails_its_batch(lines: list[bytes], code: str) -> None:
    service = ChatService()
    name = service.batch(*lines)
    service.now += 10
    told = service.told(name)
    assert (told["status"], told["errors"]["data"][0]["code"]) == ("failed", code)
    assert service.stats()["batches"]["lines_billed"] == 0


def test_a_batch_whose_lines_all_fail_is_completed_with_errors_alone() -> None:
    service = ChatService("line_error=8")
    name = service.batch(*map(chat_line, keys(3)))
    service.now += 31
    told = service.told(name)
    assert (told["status"], told["output_file_id"]) == ("completed", None)
    assert [each["response"]["status_code"] for each in service.lines(told["error_file_id"])] == [429, 429, 429]


def test_the_faults_of_lines_meet_those_of_chats_too() -> None:
    service = ChatService("line_swapped*2,line_differs*1,line_missing:0.1,lines_shuffled,line_stranger:0.1")
    name = service.batch(*map(chat_line, keys(100)))
    service.now += 31
    results = service.lines(service.told(name)["output_file_id"])
    found = [(each["custom_id"], each["response"]["body"]["choices"][0]["message"]["content"]) for each in results]
    names = [key for key, _ in found]
    assert names != sorted(names, key=lambda key: int(key[1:]) if key[1:].isdecimal() else 0)
    assert any(key.startswith("stranger-") for key in names)
    assert {("k0", "Say k1."), ("k1", "Say k0.")} & set(found)
    assert len(results) < 101


def test_a_late_create_and_its_results_come_when_they_are_due() -> None:
    service = ChatService("create_late=60*1,output_late=30,create_cut*2")
    file = service.put(chat_line("a"))
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            service.made(file)
    assert len(service.call("GET", "batches").json()["data"]) == 1
    service.now += 61
    late, early = (each["id"] for each in service.call("GET", "batches").json()["data"])
    told = service.told(early)
    assert told["status"] == "completed" and told["output_file_id"]
    service.now += 35
    assert (service.told(late)["status"], service.told(late)["output_file_id"]) == ("completed", None)
    service.now += 30
    assert service.told(late)["output_file_id"]


def test_an_upload_breaks_off_or_its_answer_is_lost() -> None:
    service = ChatService("upload_cut*1,upload_lost*1")
    for kept in (0, 1):
        with pytest.raises(ConnectionResetError):
            service.put(chat_line("a"))
        assert len(service.call("GET", "files").json()["data"]) == kept
    assert service.put(chat_line("a")).startswith("file-")


def test_results_last_as_long_as_was_asked_for() -> None:
    service = ChatService()
    file = service.put(chat_line("a"))
    asked = {
        "input_file_id": file,
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    }
    name = service.call("POST", "batches", json=asked).json()["id"]
    service.now += 31
    results = service.told(name)["output_file_id"]
    assert service.call("GET", f"files/{results}").json()["purpose"] == "batch_output"
    service.now += 3600
    assert service.call("GET", f"files/{results}").status_code == 404


def test_without_a_bearer_the_same_paths_are_geminis() -> None:
    service = ChatService()
    service.batch(chat_line("a"))
    assert service.ask("GET", "/v1/batches").json() == {}
    assert service.ask("GET", "/v1/files").json() == {}
    assert len(service.call("GET", "batches").json()["data"]) == 1
    off = ChatService(batch=False)
    assert off.call("GET", "batches").status_code == 404


def test_lines_of_both_protocols_are_counted_and_bear_the_mark_of_a_rehearsal() -> None:
    service = ChatService(marked=True)
    chats, native = service.batch(chat_line("a")), service.created(line("b"))
    service.now += 31
    (of_chats,) = service.lines(service.told(chats)["output_file_id"])
    (of_gemini,) = service.results(native)
    assert is_marked(of_chats["response"]["body"]) and is_marked(of_gemini["response"])
    told = service.stats()
    assert (told["batches"]["lines_billed"], told["batches"]["states"]) == (2, {"SUCCEEDED": 2})
    assert told["lines"] == {"a": 1, "b": 1}
