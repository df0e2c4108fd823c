"""Requests as chat completions, byte by byte; what only that protocol has, and what a job may not ask of it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import anyio
import httpx
import orjson
import pytest
from asking import ask as ask_of

from jobs import PLAIN, make_job
from pipeline.errors import AuthError, JobError
from pipeline.job import Job, key_of
from pipeline.prompts import Params, Prompt, Text, Turn
from pipeline.protocols import PROTOCOLS, ProviderName
from pipeline.providers.openai import OpenAIConnection, build_request
from pipeline.providers.stored import parse_stored
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply, Usage
from pipeline.run.prepare import Options, Session, prepare
from pipeline.run.services import SPEAKERS, target_of

KEY = "sk-secret-key-0123456789abcdef"
T = TypeVar("T")
Handler = Callable[[httpx.Request], httpx.Response]

OK = b"""{"id":"chatcmpl-CxJ3","object":"chat.completion","created":1795341600,"model":"gpt-5-mini-2025-08-07",
 "choices":[{"index":0,"message":{"role":"assistant","content":"OK","refusal":null,"annotations":[]},
   "finish_reason":"stop"}],
 "usage":{"prompt_tokens":13,"completion_tokens":75,"total_tokens":88,
   "prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},
   "completion_tokens_details":{"reasoning_tokens":64,"audio_tokens":0}},
 "service_tier":"default","system_fingerprint":null}"""


def prompt(text: str = "hi", **params: Any) -> Prompt:
    return ask_of(text=text, params=Params(**params), tokens=11)


def ask(handler: Handler, use: Callable[[OpenAIConnection], Awaitable[T]], **settings: Any) -> T:
    async def run() -> T:
        async with Wire(httpx.MockTransport(handler)) as wire:
            return await use(OpenAIConnection(wire, **({"api_key": KEY} | settings)))

    return anyio.run(run)


def generate(response: httpx.Response, **settings: Any) -> Reply | Failure:
    return ask(lambda request: response, lambda openai: openai.generate(prompt(), "m"), **settings)


# --- request ---


def test_a_bare_prompt_is_sent_bare() -> None:
    assert orjson.loads(build_request(prompt("grüße"), "m")) == {
        "model": "m",
        "messages": [{"role": "user", "content": "grüße"}],
    }


def test_every_parameter_has_its_place() -> None:
    body = build_request(
        prompt(
            "hi",
            system="Be terse.",
            max_output_tokens=256,
            temperature=0.0,
            top_p=0.9,
            seed=0,
            stop=("END",),
            thinking="LOW",
            response_mime_type="application/json",
        ),
        "qwen3:8b",
    )
    assert orjson.loads(body) == {
        "model": "qwen3:8b",
        "messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "hi"}],
        "max_tokens": 256,
        "temperature": 0.0,
        "top_p": 0.9,
        "seed": 0,
        "stop": ["END"],
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
    }


@pytest.mark.parametrize(("told", "lane"), [("flex", "flex"), ("default", "standard"), (None, "standard")])
def test_flex_is_asked_for_by_its_name_and_counts_as_what_the_answer_says(told: str | None, lane: str) -> None:
    bodies: list[dict[str, Any]] = []

    def service(request: httpx.Request) -> httpx.Response:
        bodies.append(orjson.loads(request.content))
        return httpx.Response(200, content=orjson.dumps(orjson.loads(OK) | {"service_tier": told}))

    reply = ask(service, lambda openai: openai.generate(prompt(), "m", "flex"))
    assert isinstance(reply, Reply) and reply.lane == lane
    assert [body["service_tier"] for body in bodies] == ["flex"]


def test_a_turn_of_the_model_is_the_assistants() -> None:
    content = (Turn("user", (Text("a"), Text("b"))), Turn("model", (Text("c"),)), Turn("user", (Text("d"),)))
    asked = Prompt(0, "0", "answer", content, Params(), 3)
    messages = orjson.loads(build_request(asked, "m"))["messages"]
    assert [(each["role"], each["content"]) for each in messages] == [("user", "ab"), ("assistant", "c"), ("user", "d")]


@pytest.mark.parametrize(
    ("base_url", "model", "name"),
    [
        ("https://api.openai.com/v1", "gpt-4.1-mini", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "gpt-4.1-mini", "max_completion_tokens"),
        ("https://relay.example/v1", "gpt-5-mini", "max_completion_tokens"),
        ("https://relay.example/v1", "openai/o4-mini", "max_completion_tokens"),
        ("https://relay.example/v1", "gpt-4.1-mini", "max_tokens"),
        ("https://notapi.openai.com.example/v1", "gpt-4.1-mini", "max_tokens"),
        ("http://127.0.0.1:11434/v1", "gpt-oss:20b", "max_tokens"),
        ("http://127.0.0.1:8000/v1", "Qwen/Qwen3-8B", "max_tokens"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-3.8-flash", "max_tokens"),
    ],
)
def test_the_longest_answer_is_called_what_the_service_heeds(base_url: str, model: str, name: str) -> None:
    seen: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(orjson.loads(request.content))
        return httpx.Response(200, content=OK)

    ask(handler, lambda openai: openai.generate(prompt(max_output_tokens=7), model), base_url=base_url)
    assert {key: value for key, value in seen[0].items() if key.startswith("max")} == {name: 7}


# --- exchange ---


def test_one_call_one_post_with_the_key_in_its_header_only() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=OK, headers={"Date": "Sun, 22 Nov 2026 10:00:00 GMT"})

    reply = ask(handler, lambda openai: openai.generate(prompt("hi"), "gpt-5-mini"))
    assert isinstance(reply, Reply) and len(seen) == 1
    assert (reply.text, reply.status, reply.finish_reason) == ("OK", "ok", "STOP")
    assert (reply.model, reply.endpoint) == ("gpt-5-mini-2025-08-07", "openai@api.openai.com")
    assert reply.usage == Usage(input_tokens=13, cached_tokens=4, output_tokens=11, thinking_tokens=64)
    assert (reply.response_id, reply.served_at) == ("chatcmpl-CxJ3", 1_795_341_600.0)
    request = seen[0]
    assert (request.method, str(request.url)) == ("POST", "https://api.openai.com/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert not {"x-goog-api-key", "x-server-timeout"} & set(request.headers)
    assert request.content == build_request(prompt("hi"), "gpt-5-mini", is_openai=True)
    again = parse_stored(reply.raw, reply.endpoint)
    assert (again.text, again.usage, again.model) == (reply.text, reply.usage, reply.model)


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://relay.example", "https://relay.example/v1/chat/completions"),
        ("https://relay.example/", "https://relay.example/v1/chat/completions"),
        ("https://relay.example/v1", "https://relay.example/v1/chat/completions"),
        ("https://relay.example/v1/", "https://relay.example/v1/chat/completions"),
        ("https://relay.example/api/v1", "https://relay.example/api/v1/chat/completions"),
        ("https://relay.example/v1/chat/completions", "https://relay.example/v1/chat/completions"),
        ("https://relay.example/chat/completions/", "https://relay.example/chat/completions"),
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1/chat/completions"),
        (
            "https://generativelanguage.googleapis.com",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        ),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        ),
    ],
)
def test_a_base_url_is_understood_with_and_without_a_path(base_url: str, url: str) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json={"data": []} if request.method == "GET" else orjson.loads(OK))

    async def use(openai: OpenAIConnection) -> None:
        await openai.generate(prompt(), "m")
        await openai.list_models()

    ask(handler, use, base_url=base_url)
    assert seen == [url, url.replace("chat/completions", "models")]


@pytest.mark.parametrize("base_url", ["", "relay.example", "ftp://x", "https://u:pass@x", "https://x/?key=pass"])
def test_a_base_url_that_cannot_be_used_is_refused_by_the_names_of_its_settings(base_url: str) -> None:
    with pytest.raises(JobError, match="OPENAI_BASE_URL") as error:
        OpenAIConnection(Wire(), api_key=KEY, base_url=base_url)
    assert "pass" not in f"{error.value}{error.value.hint}" and "GEMINI" not in f"{error.value}{error.value.hint}"


def test_a_key_that_no_header_can_carry_is_refused_and_none_is_in_a_repr() -> None:
    with pytest.raises(AuthError):
        OpenAIConnection(Wire(), api_key="sk-“quoted”")
    assert repr(OpenAIConnection(Wire(), api_key=KEY)) == "OpenAIConnection('openai@api.openai.com')"


@pytest.mark.parametrize("status", [200, 401])
def test_the_key_is_blotted_out_of_answers_and_failures(status: int) -> None:
    echo = orjson.loads(OK) | {"debug": KEY} if status == 200 else {"error": {"message": f"Incorrect API key: {KEY}"}}
    outcome = generate(httpx.Response(status, json=echo))
    assert KEY not in repr(outcome)
    assert isinstance(outcome, Reply if status == 200 else Failure)


def test_no_request_counts_tokens_and_nobody_is_asked_to() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError("nothing is sent")

    failure = ask(handler, lambda openai: openai.count_tokens(prompt(), "m"))
    assert isinstance(failure, Failure) and (failure.kind, failure.sent) == ("fatal", False)


@pytest.mark.parametrize(
    ("listing", "models"),
    [
        ({"object": "list", "data": [{"id": "gpt-4.1", "object": "model"}, {"id": "o4-mini"}]}, ["gpt-4.1", "o4-mini"]),
        ({"object": "list", "data": [{"id": "models/gemini-3.8-flash"}]}, ["gemini-3.8-flash"]),
        ({"data": [{"id": "llama3.2:latest"}]}, ["llama3.2:latest", "llama3.2"]),
        ({"data": [{"id": "accounts/f/models/llama"}]}, ["accounts/f/models/llama"]),
        ({"object": "list", "data": None}, []),
        ({"models": [{"name": "a"}]}, ["a"]),
        ([{"id": "a"}, {"id": "a"}], ["a"]),
    ],
)
def test_models_are_listed_in_whatever_form(listing: object, models: list[str]) -> None:
    assert ask(lambda r: httpx.Response(200, json=listing), lambda openai: openai.list_models()) == models


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(401, json={"error": {"message": "no", "code": "invalid_api_key"}}), "auth"),
        (httpx.Response(404, text="404 page not found"), "fatal"),
        (httpx.Response(200, text="<html></html>"), "transient"),
        (httpx.Response(200, json={"error": {"message": "无效的令牌"}}), "auth"),
    ],
)
def test_a_refused_listing_is_a_failure(response: httpx.Response, kind: str) -> None:
    failure = ask(lambda request: response, lambda openai: openai.list_models())
    assert isinstance(failure, Failure) and failure.kind == kind


# --- job ---


def job_of(here: Path, model: dict[str, Any] | None = None, **endpoint: Any) -> Job:
    return make_job(here, PLAIN, model={"name": "m", **(model or {})}, endpoint={"provider": "openai", **endpoint})


def test_every_protocol_that_a_job_may_name_is_spoken() -> None:
    assert set(PROTOCOLS) == set(get_args(ProviderName)) == set(SPEAKERS)
    assert all(SPEAKERS[name].name == name for name in PROTOCOLS)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "top_k", 40),
        ("model", "safety", {"HARASSMENT": "BLOCK_NONE"}),
        ("model", "thinking", 512),
        ("model", "response_mime_type", "text/x.enum"),
        ("endpoint", "api_version", "v1"),
    ],
)
def test_what_the_protocol_has_no_word_for_is_refused_by_name(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    with pytest.raises(JobError, match=rf"\[{section}\] {key}") as error:
        job_of(tmp_path, **{section: {key: value}} if section == "model" else {key: value})
    assert error.value.hint
    assert make_job(tmp_path, PLAIN, **{section: {key: value}}), "Gemini's has"


def session_of(here: Path, **endpoint: Any) -> Session:
    (here / "topics.csv").write_text("topic\na\n")
    return prepare(job_of(here, **endpoint), Options())


def test_a_job_gets_openais_address_and_key_and_nothing_of_geminis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://gemini.example")
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.gemini")
    with pytest.raises(JobError, match="OPENAI_API_KEY is unset"):
        key_of(job_of(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    target = target_of(session_of(tmp_path))
    assert (target.provider, target.base_url) == ("openai", "https://api.openai.com/v1")
    assert target.endpoint == "openai@api.openai.com"
    assert target_of(session_of(tmp_path, base_url="https://relay.example")).base_url == "https://relay.example"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    job = job_of(tmp_path, base_url="https://relay.example")
    assert (job.base_url, job.origins["endpoint.base_url"]) == ("http://127.0.0.1:9/v1", "OPENAI_BASE_URL")
    gemini = make_job(tmp_path)
    assert gemini.base_url == "http://gemini.example"
