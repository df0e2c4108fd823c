"""Answers in pieces: every form of them is read, what breaks off is kept, and silence counts, not the whole time."""

import json
import re
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import orjson
import polars as pl
import pytest
from asking import ask
from commands import Ran
from google import genai
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import served, stats
from vclock import run as run_virtual

from pipeline.emulator import Emulator, EmulatorOptions, parse_faults
from pipeline.prompts import Params
from pipeline.providers.answers import parse_reply
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.openai import OpenAIConnection
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply

MODEL = "gemini-3.5-flash-lite"
TEXT = "The river flooded the town. The town had postponed the wall. A bakery gave away bread. The town rebuilds."
KEY = "AQ.secret-key-0123456789"


def chunk(text: str, finish: str | None = None, output: int = 1, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    counts = {"promptTokenCount": 20, "candidatesTokenCount": output, "totalTokenCount": 20 + output}
    return {"candidates": [candidate], "usageMetadata": counts, "modelVersion": MODEL, **more}


def events(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(each, ensure_ascii=False).encode() + b"\r\n\r\n" for each in chunks)


WHOLE = events(chunk("One \u2028"), chunk("two", output=2), chunk("", "STOP", 3))
CUT = events(chunk("One "), chunk("two", output=2))
ERROR = b'{\n  "error": {\n    "code": 503,\n    "message": "Overloaded.",\n    "status": "UNAVAILABLE"\n  }\n}\n'


def generate(body: bytes, **told: Any) -> Reply | Failure:
    """What one request of a connection that streams gives."""
    asked: list[httpx.Request] = []
    settings: dict[str, Any] = {"api_key": KEY, "stream": True} | told

    def service(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(body))

    async def run() -> Reply | Failure:
        async with Wire(httpx.MockTransport(service)) as wire:
            connection = GeminiConnection(wire, **settings)
            return await connection.generate(ask(text="hi"), MODEL)

    outcome = anyio.run(run)
    (request,) = asked
    streams = told.get("stream", True)
    assert request.url.path.endswith(":streamGenerateContent" if streams else ":generateContent")
    assert request.url.query == (b"alt=sse" if streams else b"")
    assert request.headers["x-server-timeout"] == ("3600" if streams else "300")
    return outcome


@pytest.mark.parametrize(
    "body",
    [
        WHOLE,
        WHOLE.rstrip(),
        WHOLE.replace(b"\r\n", b"\n"),
        WHOLE.replace(b"\r\n", b"\r"),
        orjson.dumps([orjson.loads(line[6:]) for line in WHOLE.split(b"\r\n\r\n") if line]),
    ],
)
def test_a_stream_in_every_form_is_one_answer(body: bytes) -> None:
    reply = generate(body)
    assert isinstance(reply, Reply)
    assert (reply.status, reply.text, reply.usage.output_tokens) == ("ok", "One \u2028two", 3)
    assert not reply.usage.estimated


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (CUT, "the answer was cut short"),
        (CUT[:-30], "the answer was cut short"),
        (CUT + WHOLE[:40], "the answer was cut short"),
        (CUT + ERROR, "the answer ended with an error"),
        (b"[" + b",".join(line[6:] for line in CUT.split(b"\r\n\r\n") if line), "the answer was cut short"),
    ],
)
def test_what_breaks_off_is_kept_with_what_its_last_piece_says_that_it_cost(body: bytes, why: str) -> None:
    reply = generate(body)
    assert isinstance(reply, Reply), reply
    assert (reply.status, reply.error_kind, reply.error) == ("truncated", "truncated", f"{why}: what had come is kept")
    assert reply.text in ("One two", "One ") and reply.usage.output_tokens in (1, 2)
    assert reply.usage.estimated, "the service may have gone on"
    again = parse_reply(reply.raw)
    assert (again.text, again.status) == (reply.text, reply.status)


@pytest.mark.parametrize("body", [b"", events(chunk("")), ERROR, events(chunk(""))[:-40], events(chunk("")) + ERROR])
def test_what_breaks_off_before_any_text_is_no_answer(body: bytes) -> None:
    assert isinstance(generate(body), Failure)


def test_a_hole_in_the_middle_is_no_answer() -> None:
    assert isinstance(generate(b'data: {"candidates": [{"con\r\n\r\n' + WHOLE), Failure)


def test_a_stream_that_nobody_asked_for_and_that_breaks_off_is_asked_for_again() -> None:
    failure = generate(CUT, stream=False)
    assert isinstance(failure, Failure) and failure.billed and failure.message == "HTTP 200: the answer was cut short"


def test_a_key_in_pieces_that_break_off_is_taken_out_and_the_answer_stays_cut() -> None:
    reply = generate(events(chunk(f"It is {KEY[:9]}"), chunk(f"{KEY[9:]} here")))
    assert isinstance(reply, Reply) and reply.status == "truncated"
    assert KEY.encode() not in reply.raw and KEY not in reply.text
    assert parse_reply(reply.raw).status == "truncated"


@settings(deadline=None)
@given(st.integers(0, len(WHOLE)), st.sampled_from([b"", ERROR, b"\r\n", b"data: [DONE]\r\n\r\n"]))
def test_wherever_it_is_cut_it_is_whole_or_a_part_or_nothing(at: int, tail: bytes) -> None:
    reply = parse_reply(WHOLE[:at] + tail)
    assert "One \u2028two".startswith(reply.text) or reply.status == "error"
    assert reply.status != "ok" or reply.text == "One \u2028two" or tail.startswith(b"data")


# --- time ---


class _Paused(httpx.AsyncBaseTransport):
    """The emulator's answers over a line that is slow: httpx's own transport waits for the end of each."""

    def __init__(self, pause_s: float) -> None:
        self._asgi, self._pause_s = httpx.ASGITransport(Emulator()), pause_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await (await self._asgi.handle_async_request(request)).aread()
        return httpx.Response(200, stream=_Body(re.findall(rb".*?\n\r?\n", body, re.DOTALL), self._pause_s))


class _Body(httpx.AsyncByteStream):
    def __init__(self, frames: list[bytes], pause_s: float) -> None:
        self._frames, self._pause_s = frames, pause_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for frame in self._frames:
            yield frame
            await anyio.sleep(self._pause_s)


@pytest.mark.parametrize("protocol", ["gemini", "openai"])
@pytest.mark.parametrize(("pause_s", "status"), [(200.0, "ok"), (400.0, "truncated")])
def test_the_silence_between_two_pieces_is_limited_and_not_the_whole(
    protocol: str, pause_s: float, status: str
) -> None:
    kinds: dict[str, Any] = {"gemini": GeminiConnection, "openai": OpenAIConnection}

    async def run() -> Any:
        async with Wire(_Paused(pause_s)) as wire:
            connection = kinds[protocol](wire, api_key="k", base_url="http://service", timeout_s=300, stream=True)
            return await connection.generate(ask(text=TEXT), MODEL)

    reply = run_virtual(run)
    assert isinstance(reply, Reply), reply
    assert reply.status == status and reply.text and (reply.latency_s > 300)
    if status == "truncated":
        assert reply.error == "no complete answer in time: what had come is kept"


# --- whole runs over a socket ---


def write(here: Path, url: str, provider: str = "gemini", extra: str = "") -> Path:
    (here / "words.csv").write_text("word\n" + "".join(f"number {n}. {TEXT}\n" for n in range(6)))
    path = here / "job.toml"
    path.write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Tell of {{ word }}"\n'
        f'[model]\nname = "{MODEL}"\nmax_output_tokens = 500\nstream = true\n[output]\npath = "out.parquet"\n'
        f'[limits]\nrpm = 0\ntpm = 0\n[endpoint]\nprovider = "{provider}"\nbase_url = "{url}"\ntimeout_s = 1\n{extra}'
    )
    return path


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-key")


@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_a_run_whose_answers_take_longer_than_the_timeout(here: Path, cli: Callable[..., Ran], provider: str) -> None:
    with served(pause_s=0.4) as url:
        ran = cli("run", write(here, url, provider), "--yes", "--json")
        (bill,) = stats(url)["billed"]
    assert (ran.code, ran.json["ok"]) == (0, 6), ran.err
    assert ran.json["input_tokens"] == bill["input_tokens"] and ran.json["output_tokens"] == bill["output_tokens"]


@pytest.mark.parametrize("provider", ["gemini", "openai"])
@pytest.mark.parametrize("fault", ["stream_error", "stream_short", "stream_idle", "truncated"])
def test_a_stream_that_breaks_off_is_bought_once_and_again_on_request_only(
    here: Path, cli: Callable[..., Ran], provider: str, fault: str
) -> None:
    with served(faults=f"{fault}*1") as url:
        path = write(here, url, provider)
        ran = cli("run", path, "--yes", "--json")
        assert (ran.json["ok"], ran.json["truncated"]) == (5, 1), ran.err
        assert cli("run", path, "--yes", "--json").json["truncated"] == 1
        assert stats(url)["requests"] == 6
        cut = pl.read_parquet("out.parquet").filter(pl.col("status") == "truncated")
        assert "what had come is kept" in cut["error"][0] and cut["response"][0] and cut["usage_estimated"][0]
        assert cut["cost_usd"][0] > 0
        again = cli("run", path, "--yes", "--json", "--retry", "truncated")
        assert (again.code, again.json["ok"], stats(url)["requests"]) == (0, 6, 7), again.err
        assert Decimal(str(again.json["cost_usd"])) > Decimal(str(ran.json["cost_usd"]))


@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_a_stream_without_its_last_blank_line_is_whole(here: Path, cli: Callable[..., Ran], provider: str) -> None:
    with served(faults="stream_unended") as url:
        ran = cli("run", write(here, url, provider), "--yes", "--json")
    assert (ran.code, ran.json["ok"]) == (0, 6), ran.err


def test_whether_it_is_streamed_buys_nothing_again(here: Path, cli: Callable[..., Ran]) -> None:
    with served() as url:
        path = write(here, url)
        assert cli("run", path, "--yes").code == 0
        path.write_text(path.read_text().replace("stream = true", "stream = false"))
        assert cli("run", path, "--yes").code == 0
        assert stats(url)["requests"] == 6


# --- other clients ---


@pytest.mark.parametrize("model", [MODEL, "gemini-3.8-flash"])
def test_googles_sdk_reads_the_stream(model: str) -> None:
    with served(thinking_tokens=7) as url:
        options = types.HttpOptions(base_url=url, api_version="v1beta")
        client = genai.Client(api_key="AQ.key", vertexai=False, http_options=options)
        pieces = list(client.models.generate_content_stream(model=model, contents=TEXT))
        whole = client.models.generate_content(model=model, contents=TEXT)
        client.close()
    assert len(pieces) > 1 and "".join(each.text or "" for each in pieces) == whole.text
    assert all(each.usage_metadata for each in pieces) and pieces[-1].usage_metadata == whole.usage_metadata
    assert pieces[-1].candidates and pieces[-1].candidates[0].finish_reason is types.FinishReason.STOP
    assert all(each.candidates and each.candidates[0].finish_reason is None for each in pieces[:-1])


def test_googles_sdk_raises_for_an_error_inside_the_stream() -> None:
    with served(faults="stream_error") as url:
        client = genai.Client(api_key="AQ.key", vertexai=False, http_options=types.HttpOptions(base_url=url))
        with pytest.raises(genai.errors.APIError) as caught:
            list(client.models.generate_content_stream(model=MODEL, contents=TEXT))
        client.close()
    assert caught.value.code == 503


def test_without_alt_sse_a_stream_is_an_array() -> None:
    with served() as url:
        path = f"{url}/v1beta/models/{MODEL}:streamGenerateContent"
        body = {"contents": [{"parts": [{"text": TEXT}]}]}
        told = httpx.post(path, json=body, headers={"x-goog-api-key": "k"})
    assert isinstance(told.json(), list) and len(told.json()) > 1
    assert parse_reply(told.content).status == "ok"


@pytest.mark.parametrize("path", ["/v1", "/v1beta/openai"])
def test_openais_sdk_reads_the_stream_with_its_counts(path: str) -> None:
    messages: Any = [{"role": "user", "content": TEXT}]
    with served() as url, openai.OpenAI(api_key="sk-key", base_url=f"{url}{path}", max_retries=0) as client:
        with client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
        ) as stream:
            pieces = list(stream)
        whole = client.chat.completions.create(model=MODEL, messages=messages)
    text = "".join(each.choices[0].delta.content or "" for each in pieces if each.choices)
    assert text == whole.choices[0].message.content and pieces[-1].usage == whole.usage


def test_the_faults_of_streams_leave_other_answers_alone() -> None:
    async def run() -> list[str]:
        told = []
        for fault in ("stream_error", "stream_short", "stream_idle", "stream_unended"):
            emulator = Emulator(EmulatorOptions(faults=parse_faults(fault)))
            async with Wire(httpx.ASGITransport(emulator)) as wire:
                connection = GeminiConnection(wire, api_key="k", base_url="http://service")
                outcome = await connection.generate(ask(text=TEXT, params=Params()), MODEL)
                told.append(outcome.status if isinstance(outcome, Reply) else outcome.message)
        return told

    assert anyio.run(run) == ["ok"] * 4
