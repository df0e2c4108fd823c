import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import httpx
import orjson
import pytest
from asking import ask as ask_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import AuthError, JobError
from pipeline.prompts import Params, Prompt
from pipeline.providers.answers import parse_reply
from pipeline.providers.gemini import GeminiConnection, build_request
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply, Usage
from pipeline.tokens import estimate

ASKED = "gemini-3.8-flash"
KEY = "AQ.secret-key-0123456789"
T = TypeVar("T")
Handler = Callable[[httpx.Request], httpx.Response]

OK = b"""{"candidates":[{"content":{"parts":[{"text":"OK","thoughtSignature":"EmcKZQER..."}],"role":"model"},
   "finishReason":"STOP","index":0}],
 "usageMetadata":{"promptTokenCount":6,"candidatesTokenCount":1,"totalTokenCount":7,
   "promptTokensDetails":[{"modality":"TEXT","tokenCount":6}],"serviceTier":"standard"},
 "modelVersion":"gemini-3.8-flash","responseId":"km2kaorlCeDdg8UP67-l6Ac"}"""
ALL_THOUGHT = b"""{"candidates":[{"content":{},"finishReason":"MAX_TOKENS","index":0}],
 "usageMetadata":{"promptTokenCount":20,"totalTokenCount":23,
   "promptTokensDetails":[{"modality":"TEXT","tokenCount":20}],"thoughtsTokenCount":3,"serviceTier":"standard"},
 "modelVersion":"gemini-3.8-flash","responseId":"vWykav6bOqTCg8UPpLWH4QE"}"""
PROMPT_BLOCKED = b"""{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},
 "usageMetadata":{"promptTokenCount":12,"totalTokenCount":12},"modelVersion":"gemini-3.8-flash"}"""


def prompt(text: str = "hi", **params: Any) -> Prompt:
    return ask_of(text=text, params=Params(**params), tokens=11)


def answer(finish: str | None = "STOP", text: str | None = "text", **more: Any) -> bytes:
    candidate: dict[str, Any] = {"index": 0}
    if text is not None:
        candidate["content"] = {"parts": [{"text": text}], "role": "model"}
    if finish is not None:
        candidate["finishReason"] = finish
    return orjson.dumps({"candidates": [candidate], "usageMetadata": {"promptTokenCount": 5}} | more)


def ask(handler: Handler, use: Callable[[GeminiConnection], Awaitable[T]], **settings: Any) -> T:
    async def run() -> T:
        async with Wire(httpx.MockTransport(handler)) as wire:
            return await use(GeminiConnection(wire, **({"api_key": KEY} | settings)))

    return anyio.run(run)


def generate(response: httpx.Response, **settings: Any) -> Reply | Failure:
    return ask(lambda request: response, lambda gemini: gemini.generate(prompt(), ASKED), **settings)


# --- request ---


def test_a_bare_prompt_is_sent_bare() -> None:
    assert orjson.loads(build_request(prompt("grüße"))) == {
        "contents": [{"role": "user", "parts": [{"text": "grüße"}]}]
    }


def test_every_parameter_has_its_place() -> None:
    body = build_request(
        prompt(
            "hi",
            system="Be terse.",
            max_output_tokens=256,
            temperature=0.0,
            top_p=0.9,
            top_k=40,
            seed=0,
            stop=("END",),
            thinking="LOW",
            response_mime_type="application/json",
            safety=(("HARM_CATEGORY_HARASSMENT", "BLOCK_ONLY_HIGH"),),
            presence_penalty=0.0,
            frequency_penalty=0.5,
            media_resolution="low",
        )
    )
    assert orjson.loads(body) == {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "systemInstruction": {"parts": [{"text": "Be terse."}]},
        "generationConfig": {
            "maxOutputTokens": 256,
            "temperature": 0.0,
            "topP": 0.9,
            "topK": 40,
            "seed": 0,
            "stopSequences": ["END"],
            "presencePenalty": 0.0,
            "frequencyPenalty": 0.5,
            "mediaResolution": "MEDIA_RESOLUTION_LOW",
            "thinkingConfig": {"thinkingLevel": "low"},
            "responseMimeType": "application/json",
        },
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}],
    }


def test_labels_go_with_every_answer_that_is_asked_for_and_with_no_count() -> None:
    bodies: list[dict[str, Any]] = []

    def service(request: httpx.Request) -> httpx.Response:
        bodies.append(orjson.loads(request.content))
        return httpx.Response(200, content=OK if "generate" in request.url.path else b'{"totalTokens": 3}')

    async def both(gemini: GeminiConnection) -> None:
        await gemini.generate(prompt(), ASKED)
        await gemini.count_tokens(prompt(), ASKED)

    ask(service, both, labels=(("team", "x"),))
    assert [body.get("labels") for body in bodies] == [{"team": "x"}, None]


@pytest.mark.parametrize("budget", [0, -1, 512])
def test_a_number_of_thinking_tokens_is_a_budget(budget: int) -> None:
    config = orjson.loads(build_request(prompt(thinking=budget)))["generationConfig"]
    assert config == {"thinkingConfig": {"thinkingBudget": budget}}


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_arrives_as_it_is(text: str) -> None:
    assert orjson.loads(build_request(prompt(text)))["contents"][0]["parts"][0]["text"] == text


@pytest.mark.parametrize(("stream", "waits"), [(False, "900"), (True, "3600")])
def test_what_is_asked_in_flex_says_so_and_may_take_a_quarter_of_an_hour(stream: bool, waits: str) -> None:
    seen: list[tuple[object, str]] = []

    def service(request: httpx.Request) -> httpx.Response:
        seen.append((orjson.loads(request.content).get("serviceTier"), request.headers["x-server-timeout"]))
        return httpx.Response(200, content=OK)

    async def twice(gemini: GeminiConnection) -> None:
        await gemini.generate(prompt(), ASKED, "flex")
        await gemini.generate(prompt(), ASKED)

    ask(service, twice, stream=stream)
    assert seen == [("flex", waits), (None, "3600" if stream else "300")]


@pytest.mark.parametrize(
    ("header", "told", "lane"),
    [
        ("flex", "standard", "flex"),
        (None, "flex", "flex"),
        (None, "FLEX", "flex"),
        ("standard", "flex", "standard"),
        (None, None, "standard"),
        ("priority", None, "priority"),
        (None, "of_tomorrow", "standard"),
    ],
)
def test_the_lane_is_the_one_that_the_service_says_it_served_in(
    header: str | None, told: str | None, lane: str
) -> None:
    usage = {"promptTokenCount": 5} | ({"serviceTier": told} if told else {})
    headers = {"x-gemini-service-tier": header} if header else {}
    response = httpx.Response(200, content=answer(usageMetadata=usage), headers=headers)
    reply = ask(lambda request: response, lambda gemini: gemini.generate(prompt(), ASKED, "flex"))
    assert isinstance(reply, Reply) and reply.lane == lane


@pytest.mark.parametrize(
    ("traffic", "lane"),
    [("ON_DEMAND_FLEX", "flex"), ("ON_DEMAND_PRIORITY", "priority"), ("ON_DEMAND", "standard")],
)
def test_vertex_names_its_lanes_otherwise(traffic: str, lane: str) -> None:
    assert parse_reply(answer(usageMetadata={"promptTokenCount": 5, "trafficType": traffic})).lane == lane


# --- reply ---


def test_a_recorded_answer_is_read() -> None:
    assert parse_reply(OK) == Reply(
        text="OK",
        status="ok",
        finish_reason="STOP",
        usage=Usage(input_tokens=6, output_tokens=1),
        model="gemini-3.8-flash",
        response_id="km2kaorlCeDdg8UP67-l6Ac",
        raw=OK,
    )


def test_a_budget_spent_on_thinking_is_truncated_and_billed() -> None:
    reply = parse_reply(ALL_THOUGHT)
    assert (reply.text, reply.status, reply.error_kind) == ("", "truncated", "truncated")
    assert reply.usage == Usage(input_tokens=20, thinking_tokens=3)


def test_a_blocked_prompt_has_no_candidates() -> None:
    reply = parse_reply(PROMPT_BLOCKED)
    assert (reply.status, reply.error_kind, reply.finish_reason) == ("blocked", "prompt_blocked", "PROHIBITED_CONTENT")
    assert reply.error == "the prompt was blocked: PROHIBITED_CONTENT" and reply.usage == Usage(input_tokens=12)


FINISHES = {
    "STOP": ("ok", None),
    None: ("ok", None),
    "FINISH_REASON_UNSPECIFIED": ("ok", None),
    "MAX_TOKENS": ("truncated", "truncated"),
    "CONTINUATION": ("truncated", "truncated"),
    "RECITATION": ("blocked", "recitation"),
    "IMAGE_RECITATION": ("blocked", "recitation"),
    "SAFETY": ("blocked", "answer_blocked"),
    "PROHIBITED_CONTENT": ("blocked", "answer_blocked"),
    "BLOCKLIST": ("blocked", "answer_blocked"),
    "SPII": ("blocked", "answer_blocked"),
    "LANGUAGE": ("blocked", "answer_blocked"),
    "IMAGE_SAFETY": ("blocked", "answer_blocked"),
    "MODEL_ARMOR": ("blocked", "answer_blocked"),
    "OTHER": ("error", "malformed_reply"),
    "MALFORMED_RESPONSE": ("error", "malformed_reply"),
    "MALFORMED_FUNCTION_CALL": ("error", "malformed_reply"),
    "UNEXPECTED_TOOL_CALL": ("error", "malformed_reply"),
    "A_REASON_OF_2027": ("error", "malformed_reply"),
}


@pytest.mark.parametrize("finish", FINISHES)
def test_each_finish_reason_has_its_status_and_keeps_the_text(finish: str | None) -> None:
    reply = parse_reply(answer(finish))
    assert (reply.status, reply.error_kind) == FINISHES[finish]
    assert (reply.text, reply.finish_reason) == ("text", finish)
    assert (reply.error is None) == (reply.status == "ok")


@pytest.mark.parametrize(
    ("finish", "kind"), [("STOP", "empty_answer"), (None, "empty_answer"), ("SAFETY", "answer_blocked")]
)
@pytest.mark.parametrize("text", ["", None])
def test_no_text_is_never_ok(finish: str | None, kind: str, text: str | None) -> None:
    reply = parse_reply(answer(finish, text))
    assert reply.status != "ok" and reply.error_kind == kind


def test_thoughts_are_dropped_and_parts_are_joined() -> None:
    parts = [{"text": "hm", "thought": True}, {"text": "One "}, {"inlineData": {}}, {"text": "two"}, {"text": ""}]
    body = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}
    assert parse_reply(orjson.dumps(body)).text == "One two"


@pytest.mark.parametrize(
    ("metadata", "usage"),
    [
        (
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 40,
                "candidatesTokenCount": 10,
                "thoughtsTokenCount": 7,
                "toolUsePromptTokenCount": 3,
                "totalTokenCount": 120,
            },
            Usage(100, 40, 10, 7, 3),
        ),
        ({"promptTokenCount": "100", "candidatesTokenCount": 10}, Usage(100, 0, 10)),
        ({"promptTokenCount": 100, "candidatesTokenCount": 10, "totalTokenCount": 150}, Usage(100, 0, 10, 40, 0, True)),
        ({"promptTokenCount": 100, "totalTokenCount": 150}, Usage(100, 0, 50, estimated=True)),
        ({"promptTokenCount": 0, "candidatesTokenCount": 10}, Usage(output_tokens=10, estimated=True)),
        ({}, Usage(output_tokens=estimate("text"), estimated=True)),
        (None, Usage(output_tokens=estimate("text"), estimated=True)),
        (
            {"promptTokenCount": -1, "candidatesTokenCount": 1e300},
            Usage(output_tokens=estimate("text"), estimated=True),
        ),
    ],
)
def test_usage_is_what_is_billed(metadata: object, usage: Usage) -> None:
    assert parse_reply(answer(usageMetadata=metadata)).usage == usage


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html><title>Welcome</title></html>",
        b"OK",
        b"[]",
        b"null",
        b"{}",
        OK[:-1],
        b'{"error":{"code":503,"message":"The model is overloaded."}}',
        b'{"candidates":[]}',
        b"\xff\xfe",
    ],
)
def test_what_is_not_the_protocol_is_a_malformed_reply_with_its_bytes(raw: bytes) -> None:
    reply = parse_reply(raw)
    assert (reply.status, reply.error_kind, reply.raw, reply.text) == ("error", "malformed_reply", raw, "")


def test_usage_without_candidates_is_an_empty_answer() -> None:
    reply = parse_reply(b'{"usageMetadata":{"promptTokenCount":3,"totalTokenCount":3}}')
    assert (reply.status, reply.error_kind, reply.usage.input_tokens) == ("error", "empty_answer", 3)


@settings(deadline=None)
@given(st.binary())
def test_parse_reply_never_raises(raw: bytes) -> None:
    assert parse_reply(raw).raw == raw


names = st.sampled_from(
    ["candidates", "content", "parts", "text", "thought", "finishReason", "usageMetadata", "promptTokenCount", "error"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
    max_leaves=25,
)


@settings(deadline=None)
@given(st.dictionaries(names, values))
def test_parse_reply_never_raises_for_json_of_any_shape(body: dict[str, object]) -> None:
    reply = parse_reply(orjson.dumps(body))
    assert (reply.status == "ok") == (reply.error_kind is None)
    assert reply.usage.input_tokens >= 0 and reply.usage.output_tokens >= 0


# --- exchange ---


def test_one_call_one_post_with_the_key_in_its_header_only() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=OK, headers={"Date": "Sun, 22 Nov 2026 10:00:00 GMT"})

    reply = ask(handler, lambda gemini: gemini.generate(prompt("hi"), ASKED), timeout_s=99.5)
    assert isinstance(reply, Reply) and len(seen) == 1
    assert (reply.text, reply.model, reply.endpoint) == (
        "OK",
        "gemini-3.8-flash",
        "gemini@generativelanguage.googleapis.com",
    )
    assert reply.latency_s >= 0 and reply.finished_at > 1.7e9 and reply.served_at == 1_795_341_600.0
    request = seen[0]
    assert (request.method, str(request.url)) == (
        "POST",
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-3.8-flash:generateContent",
    )
    assert request.headers["x-goog-api-key"] == KEY and "authorization" not in request.headers
    assert request.headers["x-server-timeout"] == "100"
    assert request.headers["user-agent"].startswith("prompt-pipeline/")
    assert request.content == build_request(prompt("hi"))


@pytest.mark.parametrize(
    ("base_url", "url", "endpoint"),
    [
        (
            "https://relay.example/gemini",
            "https://relay.example/gemini/v1beta/models/m:generateContent",
            "relay.example",
        ),
        (
            "https://relay.example/gemini/",
            "https://relay.example/gemini/v1beta/models/m:generateContent",
            "relay.example",
        ),
        ("https://relay.example/v1", "https://relay.example/v1/models/m:generateContent", "relay.example"),
        ("https://relay.example/g/v1beta/", "https://relay.example/g/v1beta/models/m:generateContent", "relay.example"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1beta/models/m:generateContent", "127.0.0.1:8080"),
    ],
)
def test_a_base_url_keeps_its_path(base_url: str, url: str, endpoint: str) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, content=OK)

    reply = ask(handler, lambda gemini: gemini.generate(prompt(), "models/m"), base_url=base_url)
    assert isinstance(reply, Reply) and seen == [url] and reply.endpoint == f"gemini@{endpoint}"


@pytest.mark.parametrize(
    "base_url", ["", "relay.example", "ftp://x", "https://u:pass@x", "https://x/?key=pass", "http://x:y"]
)
def test_a_base_url_that_cannot_be_used_is_refused(base_url: str) -> None:
    with pytest.raises(JobError) as error:
        GeminiConnection(Wire(), api_key=KEY, base_url=base_url)
    assert "pass" not in f"{error.value}{error.value.hint}"


@pytest.mark.parametrize("key", ["AQ.a b", "AQ.a\r\nHost: x", "AQ.“quoted”"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(AuthError) as error:
        GeminiConnection(Wire(), api_key=key)
    assert "AQ" not in str(error.value)


def test_no_key_sends_no_key_and_extra_headers_are_added() -> None:
    seen: list[httpx.Headers] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, content=OK)

    ask(
        handler, lambda gemini: gemini.generate(prompt(), ASKED), api_key="", headers={"X-Team": "a", "User-Agent": "b"}
    )
    assert "x-goog-api-key" not in seen[0] and seen[0]["x-team"] == "a" and seen[0]["user-agent"] == "b"


def test_what_the_service_left_out_is_filled_in() -> None:
    reply = generate(httpx.Response(200, content=b'{"candidates":[{"content":{"parts":[{"text":"one two"}]}}]}'))
    assert isinstance(reply, Reply) and (reply.status, reply.model) == ("ok", "gemini-3.8-flash")
    assert reply.usage == Usage(input_tokens=11, output_tokens=estimate("one two"), estimated=True)


def test_the_model_that_answered_is_the_model_of_the_reply() -> None:
    body = answer(modelVersion="models/gemini-3.6-flash")
    reply = ask(lambda r: httpx.Response(200, content=body), lambda g: g.generate(prompt(), "gemini-3.5-flash"))
    assert isinstance(reply, Reply) and reply.model == "gemini-3.6-flash"


def test_a_failure_does_not_name_the_key() -> None:
    echo = {"error": {"code": 400, "message": f"API key not valid: {KEY}", "status": "INVALID_ARGUMENT"}}
    failure = generate(httpx.Response(400, json=echo))
    assert isinstance(failure, Failure) and failure.kind == "auth" and KEY not in repr(failure)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error":{"code":429,"message":"Resource has been exhausted","status":"RESOURCE_EXHAUSTED"}}', "rate_limit"),
        (b"<html><title>Log in to the network</title></html>", "transient"),
    ],
)
def test_an_error_or_a_page_in_a_200_was_not_an_answer(body: bytes, kind: str) -> None:
    failure = generate(httpx.Response(200, content=body))
    assert isinstance(failure, Failure) and (failure.kind, failure.http_status) == (kind, 200)


def test_half_a_json_in_a_200_may_be_billed_and_is_asked_for_again_twice() -> None:
    failure = generate(httpx.Response(200, content=OK[:100]))
    assert isinstance(failure, Failure) and (failure.kind, failure.error_kind) == ("transient", "malformed_reply")
    assert (failure.billed, failure.most_requests, failure.raw) == (True, 3, OK[:100])


def test_no_response_is_a_failure_that_says_whether_it_was_sent() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    failure = ask(refuse, lambda gemini: gemini.generate(prompt(), ASKED))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.error_kind, failure.http_status, failure.sent) == (
        "transient",
        "network",
        None,
        False,
    )


def test_a_real_socket_gives_the_same() -> None:
    async def run() -> tuple[Reply | Failure, Reply | Failure]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(OK), OK))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Wire() as wire:
            gemini = GeminiConnection(wire, api_key=KEY, base_url=base_url)
            async with server:
                first = await gemini.generate(prompt(), ASKED)
            return first, await gemini.generate(prompt(), ASKED)

    reply, failure = anyio.run(run)
    assert isinstance(reply, Reply) and reply.text == "OK"
    assert isinstance(failure, Failure) and (failure.error_kind, failure.sent) == ("network", False)
    assert KEY not in f"{reply!r}{failure!r}"


def test_the_key_is_in_no_repr() -> None:
    gemini = GeminiConnection(Wire(), api_key=KEY)
    assert repr(gemini) == str(gemini) == "GeminiConnection('gemini@generativelanguage.googleapis.com')"


def test_tokens_are_counted_with_the_system_instruction() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"totalTokens": 11, "promptTokensDetails": []})

    assert ask(handler, lambda gemini: gemini.count_tokens(prompt("hi", system="s"), ASKED)) == 11
    assert seen[0].url.path == "/v1beta/models/gemini-3.8-flash:countTokens"
    assert orjson.loads(seen[0].content) == {
        "generateContentRequest": {
            "model": "models/gemini-3.8-flash",
            "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
            "systemInstruction": {"parts": [{"text": "s"}]},
        }
    }


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(403, content=b""), "auth"),
        (httpx.Response(200, content=b"{}"), "transient"),
    ],
)
def test_tokens_that_were_not_counted_are_a_failure(response: httpx.Response, kind: str) -> None:
    failure = ask(lambda request: response, lambda gemini: gemini.count_tokens(prompt(), ASKED))
    assert isinstance(failure, Failure) and failure.kind == kind


def test_models_are_listed_page_by_page() -> None:
    pages = {
        None: {
            "models": [
                {"name": "models/a", "inputTokenLimit": 1048576, "outputTokenLimit": 65536},
                {"name": "models/e", "supportedGenerationMethods": ["embedContent"]},
            ],
            "nextPageToken": "p2",
        },
        "p2": {"models": [{"name": "models/b", "supportedGenerationMethods": ["generateContent"]}]},
    }

    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("GET", "/v1beta/models")
        assert request.url.params["pageSize"] == "1000"
        return httpx.Response(200, json=pages[request.url.params.get("pageToken")])

    assert ask(handler, lambda gemini: gemini.list_models()) == ["a", "b"]


def test_a_refused_listing_is_a_failure() -> None:
    failure = ask(lambda request: httpx.Response(401), lambda gemini: gemini.list_models())
    assert isinstance(failure, Failure) and failure.kind == "auth"
