"""The emulator as a service of chat completions: OpenAI's own package and our client ask it, and both understand it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import anyio
import httpx
import openai
import orjson
import pytest
from asking import ask as ask_of
from pydantic import BaseModel
from serving import served, stats
from test_reply_faults import REPLIES

from pipeline.emulator import Emulator, EmulatorOptions, parse_faults
from pipeline.prompts import Params, Prompt
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.openai import OpenAIConnection
from pipeline.providers.transport import Wire
from pipeline.records import Failure, QuotaHit, Reply, Usage
from pipeline.schemas import openai as openai_schema
from pipeline.schemas import schema_of

MODEL = "gemini-3.5-flash-lite"
TEXT = "The river flooded the town. The town had postponed the wall. A bakery gave away bread. The town rebuilds."
PATHS = ("/v1", "/v1beta/openai", "/api/v1")
USER: Any = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with served(thinking_tokens=7, marked=True, model_version="emulator") as url:
        yield url


@contextmanager
def sdk(base_url: str, path: str = "/v1", key: str = "sk-key", **settings: Any) -> Iterator[openai.OpenAI]:
    client = openai.OpenAI(api_key=key, base_url=f"{base_url}{path}", **({"max_retries": 0} | settings))
    try:
        yield client
    finally:
        client.close()


# ---- OpenAI's package


@pytest.mark.parametrize("path", PATHS)
def test_a_completion_with_every_setting(base_url: str, path: str) -> None:
    messages: Any = [{"role": "system", "content": "You are terse."}, *USER]
    with sdk(base_url, path) as client:
        found = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            max_completion_tokens=64,
            temperature=0.5,
            top_p=0.9,
            seed=1,
            stop=["never said"],
            reasoning_effort="low",
            service_tier="flex",
            user="u",
        )
    (choice,) = found.choices
    assert choice.message.content is not None and choice.message.content.startswith("The river flooded the town.")
    assert (choice.finish_reason, found.model, found.object) == ("stop", "emulator", "chat.completion")
    assert found.usage is not None
    seen = found.usage.total_tokens - found.usage.prompt_tokens
    details = found.usage.completion_tokens_details
    if path == "/v1beta/openai":  # as Google's: thinking is in the total only
        assert (seen - found.usage.completion_tokens, details) == (7, None)
    else:
        assert details is not None and (seen, details.reasoning_tokens) == (found.usage.completion_tokens, 7)


def test_json_by_schema_or_without(base_url: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with sdk(base_url) as client:
        found = client.chat.completions.create(model=MODEL, messages=USER, response_format=form)
        free = client.chat.completions.create(model=MODEL, messages=USER, response_format={"type": "json_object"})
    assert orjson.loads(found.choices[0].message.content or "") == {"n": 3}
    assert "summary" in orjson.loads(free.choices[0].message.content or "")


class Machine(BaseModel):
    kind: Literal["pump", "valve"]
    parts: list[str]
    note: str | None = None


def test_our_strict_schema_and_the_packages_own_get_the_same_answer(base_url: str) -> None:
    schema = schema_of(Machine.model_json_schema())
    told, strict = openai_schema(schema.value)
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": told, "strict": strict}}
    with sdk(base_url) as client:
        ours = client.chat.completions.create(model=MODEL, messages=USER, response_format=form)
        theirs = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Machine)
    text = ours.choices[0].message.content or ""
    assert strict and not schema.judge(text).trouble
    assert Machine.model_validate_json(text) == theirs.choices[0].message.parsed


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_stream_tells_the_same(base_url: str, with_usage: bool) -> None:
    with sdk(base_url) as client:
        whole = client.chat.completions.create(model=MODEL, messages=USER)
        options: Any = {"stream_options": {"include_usage": True}} if with_usage else {}
        pieces = list(client.chat.completions.create(model=MODEL, messages=USER, stream=True, **options))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "stop"
    assert [piece.usage for piece in pieces if piece.usage] == ([whole.usage] if with_usage else [])


def test_models_are_listed_and_got_by_name(base_url: str) -> None:
    with sdk(base_url) as client:
        names = [model.id for model in client.models.list()]
        assert client.models.retrieve(MODEL).id == MODEL
    assert MODEL in names and "gemini-embedding-001" not in names
    with sdk(base_url, "/v1beta/openai") as client:
        assert [model.id for model in client.models.list()] == [f"models/{name}" for name in names]


def test_a_model_of_any_name_is_served_and_listed_if_asked_for() -> None:
    with served(models=("qwen3:8b",)) as url, sdk(url) as client:
        found = client.chat.completions.create(model="qwen3:8b", messages=USER)
        assert found.model == "qwen3:8b" and "qwen3:8b" in [model.id for model in client.models.list()]


@pytest.mark.parametrize("path", PATHS)
def test_errors_arrive_as_the_packages_classes(base_url: str, path: str) -> None:
    googles = path == "/v1beta/openai"
    with sdk(base_url, path, "invalid") as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=MODEL, messages=USER)
    assert caught.value.status_code == (400 if googles else 401)
    if not googles:
        assert isinstance(caught.value, openai.AuthenticationError) and caught.value.code == "invalid_api_key"
    with sdk(base_url, path) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="gpt-9", messages=USER)
        assert googles or unknown.value.code == "model_not_found"
        for wrong in ({"top_k": 4}, {"max_tokens": 5, "max_completion_tokens": 5}, {"n": 2}):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model=MODEL, messages=USER, extra_body=wrong)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=MODEL, messages=[])


def test_a_429_has_openais_words_and_headers_and_its_own_retries_get_past_it() -> None:
    with served(rpm=2) as url, sdk(url) as client:
        for _ in range(2):
            client.chat.completions.create(model=MODEL, messages=USER)
        with pytest.raises(openai.RateLimitError, match=r"requests per min \(RPM\): Limit 2, Used 2") as caught:
            client.chat.completions.create(model=MODEL, messages=USER)
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["x-ratelimit-limit-requests"] == "2"
        assert stats(url)["rate_limited"] == 1
    with served(faults="503*1,500*1") as url, sdk(url, max_retries=3) as client:
        assert client.chat.completions.create(model=MODEL, messages=USER).choices[0].finish_reason == "stop"
        assert stats(url)["faults"] == {"503": 1, "500": 1}


def test_a_blocked_prompt_is_a_content_filter_without_text() -> None:
    with served(faults="block") as url, sdk(url) as client:
        (choice,) = client.chat.completions.create(model=MODEL, messages=USER).choices
    assert (choice.finish_reason, choice.message.content) == ("content_filter", None)


# ---- our client, in process


def ask(
    options: EmulatorOptions, *prompts: Prompt, path: str = "/v1", key: str = "sk-key-of-the-test"
) -> tuple[list[Reply | Failure], dict[str, Any]]:
    """What our client makes of an emulator's answers, one prompt after the other; and the emulator's counters."""
    emulator = Emulator(options)

    async def run() -> list[Reply | Failure]:
        async with Wire(httpx.ASGITransport(emulator)) as wire:
            connection = OpenAIConnection(wire, api_key=key, base_url=f"http://emulator{path}", timeout_s=5)
            return [await connection.generate(prompt, MODEL) for prompt in prompts]

    return anyio.run(run), emulator.stats.body(with_prompts=True)


def prompt(text: str = TEXT, **params: Any) -> Prompt:
    return ask_of(text=text, params=Params(**params), tokens=25)


UNMARKED = EmulatorOptions(marked=False, model_version=None)


@pytest.mark.parametrize("path", PATHS)
def test_every_parameter_is_understood(path: str) -> None:
    asked = prompt(
        system="Be terse.",
        max_output_tokens=256,
        temperature=0.0,
        top_p=0.9,
        seed=0,
        stop=("END",),
        thinking="low",
        response_mime_type="application/json",
    )
    ((reply,), seen) = ask(replace(UNMARKED, thinking_tokens=7), asked, path=path)
    assert isinstance(reply, Reply) and reply.status == "ok" and "summary" in orjson.loads(reply.text)
    (bill,) = seen["billed"]
    told = reply.usage
    assert (told.input_tokens, told.output_tokens, told.thinking_tokens) == (
        bill["input_tokens"],
        bill["output_tokens"],
        bill["thinking_tokens"],
    )
    assert not told.estimated, "also where thinking is told by the total only"


def test_both_protocols_ask_the_same_and_are_answered_alike() -> None:
    emulator = Emulator(UNMARKED)

    async def run() -> list[Reply | Failure]:
        async with Wire(httpx.ASGITransport(emulator)) as wire:
            asked = prompt(system="Be terse.", max_output_tokens=64)
            ours = OpenAIConnection(wire, api_key="k", base_url="http://emulator")
            googles = GeminiConnection(wire, api_key="k", base_url="http://emulator")
            return [await connection.generate(asked, MODEL) for connection in (ours, googles)]

    chat, native = anyio.run(run)
    assert isinstance(chat, Reply) and isinstance(native, Reply)
    assert (chat.text, chat.usage, chat.status, chat.model) == (native.text, native.usage, native.status, native.model)
    assert list(emulator.stats.prompts.values()) == [2], "one prompt, asked twice"


@pytest.mark.parametrize("path", ["/v1", "/v1beta/openai"])
@pytest.mark.parametrize("kind", [kind for kind in REPLIES if kind not in ("bomb", "endless")])
def test_each_odd_reply_comes_out_as_it_does_of_the_native_route(kind: str, path: str) -> None:
    ((outcome,), seen) = ask(replace(UNMARKED, faults=parse_faults(kind)), prompt(max_output_tokens=50), path=path)
    right = REPLIES[kind]
    if not right.counted:
        assert isinstance(outcome, Failure) and outcome.billed
        return
    assert isinstance(outcome, Reply)
    filtered = kind in ("block", "recitation")  # a chat completion does not say by what
    assert (outcome.status, outcome.error_kind) == (
        right.status,
        "answer_blocked" if filtered else right.error_kind,
    )
    (bill,) = seen["billed"]
    usage = outcome.usage
    if right.told:
        assert usage.output_tokens + usage.thinking_tokens == bill["output_tokens"] + bill["thinking_tokens"]
        assert (usage.input_tokens, usage.cached_tokens) == (bill["input_tokens"], bill["cached_tokens"])


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("busy429", "rate_limit"),
        ("quota500", "rate_limit"),
        ("quota502", "rate_limit"),
        ("429", "rate_limit"),
        ("array429", "rate_limit"),
        ("no_quota429", "spend_limit"),
        ("prepaid", "spend_limit"),
        ("402", "spend_limit"),
        ("no_channel", "fatal"),
        ("expired401", "auth"),
        ("403", "auth"),
        ("location", "auth"),
        ("filter400", "reject"),
        ("400", "reject"),
        ("413", "reject"),
        ("503", "transient"),
        ("500", "transient"),
        ("html502", "transient"),
        ("nested503", "transient"),
        ("echo_error", "transient"),
    ],
)
@pytest.mark.parametrize("path", ["/v1", "/v1beta/openai"])
def test_each_refusal_means_the_same_on_every_route(fault: str, kind: str, path: str) -> None:
    ((outcome,), _) = ask(replace(UNMARKED, faults=parse_faults(fault)), prompt(), path=path)
    assert isinstance(outcome, Failure) and outcome.kind == kind
    assert not outcome.billed


def test_a_limit_is_named_and_a_day_tells_when_it_ends() -> None:
    (first, second), _ = ask(replace(UNMARKED, rpm=1), prompt(), prompt())
    assert isinstance(first, Reply) and isinstance(second, Failure)
    assert (second.kind, second.quota) == (
        "rate_limit",
        (QuotaHit("requests_per_minute", "requests", "minute", 1),),
    )
    assert second.retry_after_s is not None and 0 < second.retry_after_s <= 60
    (_, second), _ = ask(replace(UNMARKED, tpm=30), prompt(), prompt())
    assert isinstance(second, Failure) and second.quota == (QuotaHit("tokens_per_minute", "tokens", "minute", 30),)
    (zero,), _ = ask(replace(UNMARKED, rpm=0), prompt())
    assert isinstance(zero, Failure) and zero.kind == "fatal"


def test_a_prompt_beyond_the_context_and_a_wrong_key_are_known() -> None:
    (long,), _ = ask(UNMARKED, prompt("a " * 1_100_000))
    assert isinstance(long, Failure) and long.error_kind == "too_long"
    for path in PATHS:
        (refused,), _ = ask(UNMARKED, prompt(), path=path, key="invalid-key-of-the-test")
        assert isinstance(refused, Failure) and refused.kind == "auth"
        (keyless,), _ = ask(UNMARKED, prompt(), path=path, key="")
        assert isinstance(keyless, Failure) and keyless.kind == "auth"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("marked", [True, False])
def test_the_client_is_told_who_answers_and_what_there_is(path: str, marked: bool) -> None:
    async def run() -> tuple[bool, Any, Reply | Failure, Reply | Failure]:
        options = EmulatorOptions(marked=marked, faults=parse_faults("429*1"))
        async with Wire(httpx.ASGITransport(Emulator(options))) as wire:
            connection = OpenAIConnection(wire, api_key="k", base_url=f"http://emulator{path}")
            refused = await connection.generate(prompt(), MODEL)
            answered = await connection.generate(prompt(), MODEL)
            return await connection.is_emulator(), await connection.list_models(), refused, answered

    told, models, refused, answered = asyncio.run(run())
    assert told is refused.emulated is answered.emulated is marked
    assert (
        MODEL in models
        and isinstance(answered, Reply)
        and answered.usage == Usage(answered.usage.input_tokens, 0, answered.usage.output_tokens)
    )
