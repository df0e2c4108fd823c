"""Vertex AI's client: request by request, against the emulator in virtual time, and beside google-genai's addresses."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import anyio
import httpx
import orjson
import pytest
from asking import ask
from google import genai
from google.auth.credentials import AnonymousCredentials
from servers import EPOCH
from vclock import run

from pipeline.emulator import Emulator, EmulatorOptions, parse_faults
from pipeline.prompts import Params
from pipeline.protocols import vertex_url
from pipeline.providers.base import Account
from pipeline.providers.google_auth import Token, Tokens
from pipeline.providers.transport import Response, Wire
from pipeline.providers.vertex import Vertex
from pipeline.records import Failure, Reply
from pipeline.targets import Target

MODEL = "gemini-3.5-flash-lite"
TARGET = Target("vertex", "https://europe-west4-aiplatform.googleapis.com", "my-project/europe-west4", MODEL)
EXPRESS = Target("vertex", "https://aiplatform.googleapis.com", "0123456789abcdef", MODEL)
PLACE = "projects/my-project/locations/europe-west4"
T = TypeVar("T")


async def told(token: str = "ya29.of-a-test") -> Token | Failure:
    return Token(token)


class Watched(httpx.AsyncBaseTransport):
    """Answers every request with the same body, and keeps them."""

    def __init__(self, body: object) -> None:
        self.requests: list[httpx.Request] = []
        self._body = orjson.dumps(body)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        return httpx.Response(200, content=self._body)


ANSWER = {"candidates": [{"content": {"parts": [{"text": "yes"}]}, "finishReason": "STOP"}], "totalTokens": 7}


def asked(use: Callable[[Vertex], Awaitable[T]], target: Target = TARGET, **account: Any) -> tuple[T, httpx.Request]:
    """What `use` returned, and the one request that it made."""

    async def main() -> tuple[T, httpx.Request]:
        watched = Watched(ANSWER)
        async with Wire(watched) as wire:
            tokens = Tokens(told, headers={"x-goog-user-project": "payer"})
            given = account or {"key": "", "tokens": tokens}
            result = await use(Vertex({target.access: Account(wire, **given)}))
        (request,) = watched.requests
        return result, request

    return run(main)


# ---- the request


def test_a_stream_has_its_own_method_and_an_hour_and_labels_go_with_it() -> None:
    tokens = Tokens(told, headers={"x-goog-user-project": "payer"})
    prompt = ask(text="Is it?")
    reply, request = asked(
        lambda vertex: vertex.generate(prompt, TARGET),
        key="",
        tokens=tokens,
        stream=True,
        labels=(("team", "x"),),
    )
    assert isinstance(reply, Reply) and reply.text == "yes"
    assert request.url.path == f"/v1beta1/{PLACE}/publishers/google/models/{MODEL}:streamGenerateContent"
    assert request.url.query == b"alt=sse" and request.headers["x-server-timeout"] == "3600"
    assert orjson.loads(request.content)["labels"] == {"team": "x"}


def test_a_request_names_project_and_location_and_bears_a_token() -> None:
    prompt = ask(text="Is it?", params=Params(system="Be brief.", max_output_tokens=9, safety=(("C", "T"),)))
    reply, request = asked(lambda vertex: vertex.generate(prompt, TARGET))
    assert isinstance(reply, Reply) and (reply.text, reply.endpoint) == ("yes", TARGET.endpoint)
    assert reply.endpoint == "vertex@europe-west4-aiplatform.googleapis.com"
    path = f"/v1beta1/{PLACE}/publishers/google/models/{MODEL}:generateContent"
    assert str(request.url) == f"https://europe-west4-aiplatform.googleapis.com{path}"
    assert request.headers["authorization"] == "Bearer ya29.of-a-test" and "x-goog-api-key" not in request.headers
    assert request.headers["x-goog-user-project"] == "payer"
    assert orjson.loads(request.content) == {
        "contents": [{"role": "user", "parts": [{"text": "Is it?"}]}],
        "generationConfig": {"maxOutputTokens": 9},
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "safetySettings": [{"category": "C", "threshold": "T"}],
    }


def test_in_express_mode_a_key_is_all() -> None:
    reply, request = asked(lambda vertex: vertex.generate(ask(text="Is it?"), EXPRESS), EXPRESS, key="AQ.express")
    assert isinstance(reply, Reply)
    path = f"/v1beta1/publishers/google/models/{MODEL}:generateContent"
    assert str(request.url) == f"https://aiplatform.googleapis.com{path}"
    assert request.headers["x-goog-api-key"] == "AQ.express" and "authorization" not in request.headers


def test_what_is_counted_is_the_request_itself_without_a_wrapper() -> None:
    prompt = ask(text="Is it?", params=Params(system="Be brief.", max_output_tokens=9, safety=(("C", "T"),)))
    count, request = asked(lambda vertex: vertex.count_tokens(prompt, TARGET))
    assert count == 7
    assert request.url.path == f"/v1beta1/{PLACE}/publishers/google/models/{MODEL}:countTokens"
    assert sorted(orjson.loads(request.content)) == ["contents", "generationConfig", "systemInstruction"]


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-3.8-flash", f"{PLACE}/publishers/google/models/gemini-3.8-flash"),
        ("publishers/google/models/gemini-3.8-flash", f"{PLACE}/publishers/google/models/gemini-3.8-flash"),
        ("endpoints/123", f"{PLACE}/endpoints/123"),
        ("projects/p/locations/us-east1/endpoints/123", "projects/p/locations/us-east1/endpoints/123"),
    ],
)
def test_a_model_is_named_bare_or_by_its_resource(model: str, path: str) -> None:
    target = replace(TARGET, model=model)
    _, request = asked(lambda vertex: vertex.generate(ask(text="Is it?"), target), target)
    assert request.url.path == f"/v1beta1/{path}:generateContent"


@pytest.mark.parametrize("location", ["us-central1", "europe-west4", "us", "eu", "global"])
def test_a_location_has_the_address_that_googles_own_client_sends_to(location: str) -> None:
    client = genai.Client(vertexai=True, project="p", location=location, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    try:
        assert client._api_client._http_options.base_url == f"{vertex_url(location)}/"
    finally:
        client.close()


# ---- against the emulator


@asynccontextmanager
async def emulated(options: EmulatorOptions, longer_s: float = 0.0) -> AsyncIterator[tuple[Vertex, Emulator]]:
    """The client and the emulator in virtual time; the emulator gives the tokens too, good for less than is told."""

    def clock() -> float:
        return EPOCH + anyio.current_time()

    emulator = Emulator(options, clock=clock, connection_lost=lambda text: httpx.ReadError(text))
    async with Wire(httpx.ASGITransport(emulator)) as wire:

        async def fetch() -> Token | Failure:
            answer = await wire.post(httpx.URL("http://emulator/token"), httpx.Headers(), b"")
            assert isinstance(answer, Response)
            given = orjson.loads(answer.body)
            return Token(given["access_token"], clock() + given["expires_in"] + longer_s)

        yield Vertex({TARGET.access: Account(wire, "", tokens=Tokens(fetch, wall=clock))}), emulator


def with_emulator(
    use: Callable[[Vertex, Emulator], Awaitable[T]], faults: str = "", longer_s: float = 0.0, **options: Any
) -> T:
    async def main() -> T:
        async with emulated(EmulatorOptions(faults=parse_faults(faults), **options), longer_s) as (vertex, emulator):
            return await use(vertex, emulator)

    return run(main)


def test_a_night_of_calls_over_eight_tokens_none_of_which_is_refused() -> None:
    async def night(vertex: Vertex, emulator: Emulator) -> None:
        async def ask_on(row: int) -> None:
            while anyio.current_time() < 8 * 3600.0:
                reply = await vertex.generate(ask(row, f"Row {row}?"), TARGET)
                assert isinstance(reply, Reply) and reply.status == "ok"
                await anyio.sleep(60.0)

        async with anyio.create_task_group() as group:
            for row in range(3):
                group.start_soon(ask_on, row)
        assert set(emulator.stats.by_status) == {200} and emulator.stats.requests > 3 * 470

    with_emulator(night, latency_s=1.0)


def test_a_token_that_is_refused_is_replaced_and_the_request_sent_again_by_all_that_bore_it() -> None:
    async def many(vertex: Vertex, emulator: Emulator) -> None:
        first = await vertex.generate(ask(0, "First?"), TARGET)
        assert isinstance(first, Reply)
        await anyio.sleep(61.0)
        found: list[Reply | Failure] = []

        async def one(row: int) -> None:
            found.append(await vertex.generate(ask(row, f"Row {row}?"), TARGET))

        async with anyio.create_task_group() as group:
            for row in range(1, 9):
                group.start_soon(one, row)
        assert all(isinstance(reply, Reply) for reply in found)
        assert emulator.stats.by_status[200] == 9 and 1 <= emulator.stats.by_status[401] <= 8
        assert (await vertex.list_models(TARGET), await vertex.is_emulator(TARGET)) == ([MODEL], True)

    with_emulator(many, token_s=60.0, longer_s=3600.0)


def test_an_identity_that_is_refused_with_every_token_is_asked_twice_and_ends_it() -> None:
    async def denied(vertex: Vertex, emulator: Emulator) -> Failure:
        found = await vertex.generate(ask(0, "First?"), TARGET)
        assert isinstance(found, Failure) and emulator.stats.by_status == {401: 2}
        return found

    found = with_emulator(denied, token_s=0.0, longer_s=3600.0)
    assert (found.kind, found.http_status, found.billed) == ("auth", 401, False)
    assert found.message.startswith("HTTP 401 ACCESS_TOKEN_EXPIRED: Request had invalid authentication credentials.")


def failed(target: Target = TARGET, text: str = "Is it?", faults: str = "", **options: Any) -> Failure:
    """What becomes of the second of two requests."""

    async def twice(vertex: Vertex, emulator: Emulator) -> Failure:
        await vertex.generate(ask(0, text), target)
        found = await vertex.generate(ask(1, text), target)
        assert isinstance(found, Failure)
        return found

    return with_emulator(twice, faults, **options)


def test_quotas_capacity_models_and_lengths_are_understood_in_vertex_ais_words() -> None:
    named = failed(rpm=1)
    assert named.kind == "rate_limit" and named.message == f"HTTP 429: quota of {MODEL} used up: requests per minute"
    assert [(hit.meter, hit.limit) for hit in failed(tpm=5).quota] == [("tokens", None)]
    short = failed(faults="429")
    assert (short.kind, short.of_capacity, short.quota) == ("rate_limit", True, ())
    long = failed(text="long " * 1_100_000)
    assert (long.kind, long.error_kind) == ("reject", "too_long")
    assert long.message.endswith("the maximum number of tokens allowed 1048576.")
    unknown = replace(TARGET, model="gemini-none")
    missing = failed(unknown)
    assert missing.kind == "fatal" and "Publisher Model `projects/my-project/locations/europe-west4/" in missing.message
    others = with_emulator(lambda vertex, emulator: vertex.list_models(unknown))
    assert isinstance(others, list) and MODEL in others and "gemini-none" not in others


def test_a_project_without_access_is_told_by_permission_and_resource() -> None:
    denied = replace(TARGET, project="denied-project/europe-west4")

    async def one(vertex: Vertex, emulator: Emulator) -> Reply | Failure:
        wire_of = vertex._accounts[TARGET.access]
        return await Vertex({denied.access: wire_of}).generate(ask(0, "Is it?"), denied)

    found = with_emulator(one)
    assert isinstance(found, Failure) and found.kind == "auth"
    assert "Permission 'aiplatform.endpoints.predict' denied on resource" in found.message
    assert "projects/denied-project/locations/europe-west4" in found.message


@pytest.mark.parametrize("fault", ["echo", "echo_error"])
def test_a_token_that_the_service_repeats_is_blotted_out(fault: str) -> None:
    async def one(vertex: Vertex, emulator: Emulator) -> Reply | Failure:
        return await vertex.generate(ask(0, "Is it?"), TARGET)

    assert "emulator-0" not in repr(with_emulator(one, fault))


def test_without_a_token_nothing_is_sent() -> None:
    gone = Failure("auth", "auth", "no access token: invalid_grant", sent=False)

    async def none() -> Token | Failure:
        return gone

    async def main() -> None:
        watched = Watched(ANSWER)
        async with Wire(watched) as wire:
            vertex = Vertex({TARGET.access: Account(wire, "", tokens=Tokens(none))})
            assert await vertex.generate(ask(0, "Is it?"), TARGET) == gone
            assert await vertex.list_models(TARGET) == gone
            assert await vertex.is_emulator(TARGET) is False
        assert watched.requests == []

    run(main)
