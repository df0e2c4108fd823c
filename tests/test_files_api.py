"""The Files API: Google's SDK and our client upload to the emulator; nothing that is whole goes twice."""

import io
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from drawing import png, wav
from forking import Forked, forked
from google import genai
from google.genai import errors, types
from serving import served, stats
from sessions import run_through

from jobs import PLAIN, Sections, make_job, write_job
from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.prompts import Params, Prompt, Text, Turn
from pipeline.providers import files, resumable
from pipeline.providers.base import Account
from pipeline.providers.gemini import Gemini
from pipeline.providers.transport import Wire
from pipeline.providers.uploads import UploadBook, Uploaded
from pipeline.records import Failure, Media, Reply
from pipeline.run import prepare
from pipeline.run.prepare import Options
from pipeline.source.files import digest_of
from pipeline.targets import Target

MODEL = "gemini-3.5-flash-lite"
LARGE = wav(20, rate=1_000_000)  # 20 MB: three parts
TARGET = Target("gemini", "http://emulator", "p", MODEL)


@pytest.fixture(autouse=True)
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in threads, which a virtual clock does not know."""
    monkeypatch.setattr(resumable, "_WAITS_S", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(files, "_POLLS_S", (0.01,))


def media(content: bytes, kind: Any = "audio", form: str = "audio/wav") -> Media:
    return Media(kind, form, digest_of(io.BytesIO(content)), len(content), 500, data=content)


def prompt(*parts: Media, says: str = "What is said?") -> Prompt:
    return Prompt(0, "a", "answer", (Turn("user", (*parts, Text(says))),), Params(), 500)


class Service:
    """The emulator in process, under a clock of its own, and our client before it."""

    def __init__(self, **options: Any) -> None:
        self.late_s = 0.0
        self.emulator = Emulator(EmulatorOptions(**options), clock=lambda: time.time() + self.late_s)
        self.posted: list[httpx.Request] = []
        self.book = UploadBook()

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.posted.append(request)
        return await httpx.ASGITransport(self.emulator).handle_async_request(request)

    @contextmanager
    def provider(self, key: str = "k", inline_bytes: int = 1000) -> Iterator[Gemini]:
        transport = _Passing(self)
        account = Account(Wire(transport), key, inline_bytes=inline_bytes, book=self.book)
        yield Gemini({TARGET.access: account})

    @property
    def files(self) -> dict[str, int]:
        return dict(self.emulator.stats.files)


class _Passing(httpx.AsyncBaseTransport):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._service.handle(request)


def ask(service: Service, *prompts: Prompt, key: str = "k") -> list[Reply | Failure]:
    """All of them at once."""
    outcomes: list[Reply | Failure] = []

    async def main() -> None:
        with service.provider(key) as gemini:

            async def one(each: Prompt) -> None:
                outcomes.append(await gemini.generate(each, TARGET))

            async with anyio.create_task_group() as tasks:
                for each in prompts:
                    tasks.start_soon(one, each)

    anyio.run(main)
    return outcomes


# ---- the emulator, by Google's own client


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(model_version=None) as url:
        yield url


@contextmanager
def sdk(url: str, key: str = "k") -> Iterator[genai.Client]:
    options = types.HttpOptions(base_url=url, api_version="v1beta")
    client = genai.Client(api_key=key, vertexai=False, http_options=options)
    try:
        yield client
    finally:
        client.close()


def test_googles_sdk_uploads_uses_lists_and_deletes(url: str) -> None:
    with sdk(url) as client:
        stored = client.files.upload(
            file=io.BytesIO(LARGE), config=types.UploadFileConfig(mime_type="audio/wav", display_name="x")
        )
        assert stored.name and stored.uri and stored.size_bytes == len(LARGE)
        assert stored.state is types.FileState.ACTIVE and stored.expiration_time
        content = types.Content(parts=[types.Part.from_uri(file_uri=stored.uri, mime_type="audio/wav")])
        content.parts = [*(content.parts or []), types.Part.from_text(text="What is said?")]
        answer = client.models.generate_content(model=MODEL, contents=content)
        assert answer.usage_metadata and answer.usage_metadata.prompt_tokens_details
        counts = {each.modality: each.token_count for each in answer.usage_metadata.prompt_tokens_details}
        assert counts[types.MediaModality.AUDIO] == 20 * 25
        assert client.files.get(name=stored.name).sha256_hash == stored.sha256_hash
        assert [each.name for each in client.files.list()] == [stored.name]
        with sdk(url, "another") as stranger, pytest.raises(errors.ClientError) as refused:
            stranger.files.get(name=stored.name)
        assert refused.value.code == 403
        client.files.delete(name=stored.name)
        with pytest.raises(errors.ClientError) as gone:
            client.models.generate_content(model=MODEL, contents=content)
        assert gone.value.code == 403 and "may not exist" in str(gone.value)


def test_googles_sdk_gets_over_a_part_whose_status_is_missing() -> None:
    with served(upload_faults=("no_status",)) as url, sdk(url) as client:
        stored = client.files.upload(file=io.BytesIO(LARGE), config=types.UploadFileConfig(mime_type="audio/wav"))
        assert stored.size_bytes == len(LARGE)


# ---- our client


def test_a_large_file_is_uploaded_in_parts_and_named_in_the_request() -> None:
    service = Service()
    (reply,) = ask(service, prompt(media(LARGE)))
    assert isinstance(reply, Reply) and reply.usage.input_tokens > 500
    assert service.files == {"begun": 1, "bytes": len(LARGE), "stored": 1}
    parts = [request for request in service.posted if "upload_id" in str(request.url)]
    assert len(parts) == 3
    assert all("x-goog-api-key" not in request.headers for request in parts)


def test_a_small_file_goes_within_the_request() -> None:
    service = Service()
    (reply,) = ask(service, prompt(media(png()[:999] + b"", "image", "image/png")))
    assert isinstance(reply, Reply) and service.files == {}


def test_one_content_is_uploaded_once_whoever_asks_for_it() -> None:
    service = Service()
    replies = ask(service, *(prompt(media(LARGE), says=f"Question {number}") for number in range(5)))
    assert all(isinstance(reply, Reply) for reply in replies)
    ask(service, prompt(media(LARGE), says="Later"))
    assert service.files["begun"] == 1


@pytest.mark.parametrize("faults", [("503", "503"), ("cut",), ("cut", "503", "cut"), ("no_status",) * 3])
def test_an_upload_gets_over_what_passes(faults: Any) -> None:
    service = Service(upload_faults=faults)
    (reply,) = ask(service, prompt(media(LARGE)))
    assert isinstance(reply, Reply), reply
    assert service.files == {"begun": 1, "bytes": len(LARGE), "stored": 1}


def test_an_upload_that_breaks_off_again_and_again_is_tried_by_another_attempt() -> None:
    service = Service(upload_faults=("503",) * 5)
    (failure,) = ask(service, prompt(media(LARGE)))
    assert isinstance(failure, Failure) and (failure.kind, failure.sent) == ("transient", False)


def test_a_file_is_waited_for_until_it_is_processed() -> None:
    service = Service(processing_s=0.1)
    (reply,) = ask(service, prompt(media(LARGE)))
    assert isinstance(reply, Reply)


def test_a_file_that_cannot_be_processed_is_the_rows_fault_and_is_not_sent_again() -> None:
    service = Service()
    wrong = media(b"\0\0\0\x20ftypisom" + b"\0" * 2000)
    failures = ask(service, prompt(wrong), prompt(wrong, says="Again"))
    assert [(each.kind, each.error_kind) for each in failures if isinstance(each, Failure)] == [("reject", "file")] * 2
    assert service.files["begun"] == 1


def test_what_has_ended_is_uploaded_again() -> None:
    service = Service()
    ask(service, prompt(media(LARGE)))
    service.late_s = 49 * 3600  # the book's clock does not know it
    (reply,) = ask(service, prompt(media(LARGE), says="Later"))
    assert isinstance(reply, Reply) and service.files["begun"] == 2


def test_the_upload_does_not_follow_to_another_host() -> None:
    sent: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, headers={"x-goog-upload-url": "https://elsewhere.example/upload?upload_id=1"})

    async def main() -> Reply | Failure:
        account = Account(Wire(httpx.MockTransport(answer)), "secret-key", inline_bytes=10)
        return await Gemini({TARGET.access: account}).generate(prompt(media(LARGE)), TARGET)

    failure = anyio.run(main)
    assert isinstance(failure, Failure) and "another host, elsewhere.example" in failure.message
    assert [request.url.host for request in sent] == ["emulator"]


OF_A_FILE = {"name": "files/x", "uri": "https://h/files/x", "state": "ACTIVE", "expirationTime": "2099-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("upload", "told", "got", "outcome"),
    [
        ({}, OF_A_FILE, 200, ""),
        ({}, {**OF_A_FILE, "name": "files/\n"}, 200, "does not say where"),
        ({}, {**OF_A_FILE, "name": "../../v1beta/models/x"}, 200, "does not say where"),
        ({}, {**OF_A_FILE, "name": "files/" + "x" * 70_000}, 200, "does not say where"),
        ({}, {**OF_A_FILE, "uri": {}}, 200, "does not say where"),
        ({}, {**OF_A_FILE, "expirationTime": "0001-01-01T00:00:00+14:00", "state": 7}, 200, ""),
        ({}, {**OF_A_FILE, "state": "PROCESSING"}, 403, "there no more"),
        ({"status": "final"}, OF_A_FILE, 200, "before its last part"),
        ({"status": "active", "size-received": "0"}, OF_A_FILE, 200, "again and again"),
        ({"status": "active", "size-received": "9" * 5_000}, OF_A_FILE, 200, "again and again"),
        ({"status": "active", "size-received": "-1"}, OF_A_FILE, 200, "again and again"),
        ({"status": "cancelled"}, OF_A_FILE, 200, "again and again"),
    ],
)
def test_whatever_the_service_says_of_a_file_an_upload_ends(upload: Any, told: Any, got: int, outcome: str) -> None:
    left = iter(range(60))

    async def answer(request: httpx.Request) -> httpx.Response:
        next(left)
        if request.url.path.startswith("/upload"):
            return httpx.Response(200, headers={"x-goog-upload-url": "http://emulator/there"})
        if request.url.path == "/there":
            ends = "finalize" in request.headers["x-goog-upload-command"]
            said = upload or {"status": "final" if ends else "active"}
            headers = {f"x-goog-upload-{name}": value for name, value in said.items()}
            return httpx.Response(200, headers=headers, json={"file": told})
        if request.url.path.endswith("Content"):
            return httpx.Response(200, json={"candidates": [{"content": "hi", "finishReason": "STOP"}]})
        return httpx.Response(got, json=told)

    async def main() -> Reply | Failure:
        account = Account(Wire(httpx.MockTransport(answer)), "secret-key", inline_bytes=10)
        return await Gemini({TARGET.access: account}).generate(prompt(media(LARGE)), TARGET)

    found = anyio.run(main)
    assert outcome in found.message if isinstance(found, Failure) else not outcome


@pytest.mark.parametrize("inline_bytes", [1_000, 10])
def test_what_became_a_pipe_or_a_device_holds_nobody_up(tmp_path: Path, inline_bytes: int) -> None:
    content = wav(0.1)
    for name, make in (("pipe", lambda at: os.mkfifo(at)), ("device", lambda at: at.symlink_to("/dev/zero"))):
        path = tmp_path / name
        make(path)
        its = Media("audio", "audio/wav", digest_of(io.BytesIO(content)), len(content), 10, str(path))
        service = Service()
        with service.provider(inline_bytes=inline_bytes) as gemini:
            failure = anyio.run(gemini.generate, prompt(its), TARGET)
        assert isinstance(failure, Failure) and "no file" in failure.message


def test_a_book_is_read_again_and_a_line_that_was_cut_is_none(tmp_path: Path) -> None:
    path, book = tmp_path / "uploads.jsonl", UploadBook()
    book.open(path)
    name = book.name_of("a", "c")
    book.add(Uploaded("a", "c", name, "uri", time.time() + 9999, active=True))
    path.write_bytes(path.read_bytes() + b'{"account": "a", "con')
    again = UploadBook()
    again.open(path)
    assert again.continued and again.get("a", "c") == book.get("a", "c") is not None
    assert again.name_of("a", "d") == book.name_of("a", "d")
    assert again.name_of("a", "c") == book.name_of("a", "c") != name
    assert again.get("b", "c") is None


# ---- runs

LONG: Sections = {
    **PLAIN,
    "input": {"path": "table.csv", "id": "id", "audio": "sound", "inline_mb": 1},
    "prompt": {"template": "{{ id }}: what is said?"},
    "model": {"name": MODEL, "max_output_tokens": 100},
    "limits": {"rpm": 0, "tpm": 0},
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    (tmp_path / "a.wav").write_bytes(LARGE)
    (tmp_path / "table.csv").write_text("id,sound\na,a.wav\nb,a.wav\nc,a.wav\n")
    return tmp_path


def test_a_run_uploads_once_and_deletes_when_it_is_asked_to(table: Path) -> None:
    with served() as url:
        job = make_job(table, LONG, endpoint={"base_url": url}, input={"delete_files": True})
        assert run_through(prepare.prepare(job, Options())).exit_code == 0
        assert stats(url)["files"] == {"begun": 1, "bytes": len(LARGE), "stored": 1, "deleted": 1}


def start(job: Path) -> Forked:
    return forked("run", job, "--yes")


def kill(run: Forked) -> None:
    run.send_signal(signal.SIGKILL)
    run.communicate()


def until(url: str, counter: str, least: int) -> None:
    ends = time.monotonic() + 30
    while stats(url)["files"].get(counter, 0) < least:
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_killed_while_it_waits_for_a_whole_file_it_does_not_upload_it_again(table: Path) -> None:
    with served(processing_s=2.5) as url:
        path = write_job(table, LONG, endpoint={"base_url": url})
        first = start(path)
        until(url, "stored", 1)
        time.sleep(0.2)
        kill(first)
        _, err = (second := start(path)).communicate(timeout=60)
        assert second.returncode == 0, err.decode()
        told = stats(url)
    assert told["files"] == {"begun": 1, "bytes": len(LARGE), "stored": 1}
    assert told["bought_twice"] == 0 and told["answered"] == 3


def test_killed_in_the_middle_of_an_upload_it_begins_that_anew(table: Path) -> None:
    with served(upload_faults=("503",) * 2) as url:
        path = write_job(table, LONG, endpoint={"base_url": url})
        first = start(path)
        until(url, "begun", 1)
        time.sleep(0.3)
        kill(first)
        assert "stored" not in stats(url)["files"]
        _, err = (second := start(path)).communicate(timeout=60)
        assert second.returncode == 0, err.decode()
        assert "in flight" not in err.decode()  # an upload is no request that may have been billed
        told = stats(url)
    assert (told["files"]["begun"], told["files"]["stored"]) == (2, 1)
    assert told["bought_twice"] == 0 and told["answered"] == 3


def test_killed_before_the_upload_was_kept_it_finds_the_file_by_its_name(table: Path) -> None:
    with served(processing_s=2.5) as url:
        path = write_job(table, LONG, endpoint={"base_url": url})
        first = start(path)
        until(url, "stored", 1)
        time.sleep(0.2)
        kill(first)
        book = next(table.glob("runs/*/uploads.jsonl"))
        book.write_bytes(book.read_bytes().splitlines(keepends=True)[0])  # as if killed a moment sooner
        _, err = (second := start(path)).communicate(timeout=60)
        assert second.returncode == 0, err.decode()
        assert stats(url)["files"] == {"begun": 1, "bytes": len(LARGE), "stored": 1}
