"""Flex at the emulator: a share is served and priced so, the others are turned away as the services do it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import anyio
import openai
import pytest
from google import genai
from google.genai import errors, types
from serving import served, stats
from vclock import run

from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.prompts import Prompt
from pipeline.providers.answers import parse_reply
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Lane, Reply

MODEL = "gemini-3.5-flash-lite"


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with served(flex_share=0.6) as url:
        yield url


def outcomes(count: int, lane: Lane, **options: Any) -> tuple[list[Reply | Failure], float, dict[str, Any]]:
    """What becomes of so many prompts, one after the other, how long it takes, and what the emulator counts."""
    import httpx
    from asking import ask

    async def main() -> tuple[list[Reply | Failure], float, dict[str, Any]]:
        emulator = Emulator(EmulatorOptions(**options), clock=lambda: 1_795_384_800.0 + anyio.current_time())
        async with Wire(httpx.ASGITransport(emulator)) as wire:
            gemini = GeminiConnection(wire, api_key="AQ.key", base_url="http://emulator")

            async def one(prompt: Prompt) -> Reply | Failure:
                return await gemini.generate(prompt, MODEL, lane)

            found = [await one(ask(row, text=f"Row {row} is here.")) for row in range(count)]
        return found, anyio.current_time(), emulator.stats.body()

    return run(main)


def test_a_share_is_served_and_the_others_are_turned_away_in_the_two_ways_that_were_seen() -> None:
    found, _, counted = outcomes(400, "flex", flex_share=0.6)
    served_there = [one for one in found if isinstance(one, Reply)]
    assert {reply.lane for reply in served_there} == {"flex"} == {parse_reply(reply.raw).lane for reply in served_there}
    assert 0.5 < len(served_there) / 400 < 0.7
    shed = Counter((one.http_status, one.kind, bool(one.quota)) for one in found if isinstance(one, Failure))
    assert set(shed) == {(503, "transient", False), (429, "rate_limit", False)} and min(shed.values()) > 40
    assert counted["shed"] == sum(shed.values()) and counted["answered"] == len(served_there)


def test_the_same_seed_turns_the_same_away_and_another_others() -> None:
    def turned_away(**options: Any) -> list[bool]:
        return [isinstance(one, Failure) for one in outcomes(60, "flex", flex_share=0.5, **options)[0]]

    assert turned_away() == turned_away() != turned_away(seed=1)


def test_standard_is_never_turned_away_and_flex_is_served_whole_unless_told() -> None:
    for lane, share in (("standard", 0.0), ("flex", 1.0)):
        found, _, counted = outcomes(20, lane, flex_share=share)  # type: ignore[arg-type]
        assert [one.lane for one in found if isinstance(one, Reply)] == [lane] * 20 and counted["shed"] == 0


def test_both_served_and_turned_away_have_waited() -> None:
    _, took_s, _ = outcomes(100, "flex", flex_share=0.5, flex_wait_s=60.0)
    assert 50 < took_s / 100 < 70
    assert outcomes(10, "standard", flex_wait_s=60.0)[1] < 1


def test_what_is_turned_away_has_used_up_quota() -> None:
    found, _, _ = outcomes(11, "flex", flex_share=0.0, rpm=10)
    last = found[-1]
    assert isinstance(last, Failure) and last.quota and not any(one.quota for one in found[:10])  # type: ignore[union-attr]


def test_googles_client_meets_both(base_url: str) -> None:
    config = types.GenerateContentConfig(service_tier=types.ServiceTier.FLEX)
    tiers, codes = Counter[str](), Counter[int]()
    options = types.HttpOptions(base_url=base_url, api_version="v1beta")
    with closing(genai.Client(api_key="AQ.key", vertexai=False, http_options=options)) as client:
        for number in range(60):
            try:
                response = client.models.generate_content(model=MODEL, contents=f"Call {number}.", config=config)
            except errors.APIError as error:
                codes[error.code] += 1
            else:
                received = response.sdk_http_response
                assert received is not None and received.headers is not None
                tiers[received.headers["x-gemini-service-tier"]] += 1
    assert set(tiers) == {"flex"} and set(codes) == {429, 503}
    assert stats(base_url)["shed"] >= sum(codes.values())


@pytest.mark.parametrize("path", ["/v1", "/v1beta/openai"])
def test_openais_client_meets_both(base_url: str, path: str) -> None:
    tiers, refused = Counter[str | None](), Counter[str]()
    with closing(openai.OpenAI(api_key="sk-key", base_url=f"{base_url}{path}", max_retries=0)) as client:

        def ask(number: int, tier: Any) -> None:
            content = f"Question {path} {number}."
            found = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": content}], service_tier=tier
            )
            tiers[found.service_tier] += 1

        for number in range(60):
            try:
                ask(number, "flex")
            except (openai.RateLimitError, openai.InternalServerError) as error:
                refused[type(error).__name__] += 1
        ask(60, "default")
    assert set(tiers) == {"flex", "default"} and tiers["default"] == 1
    assert set(refused) == {"RateLimitError", "InternalServerError"}
