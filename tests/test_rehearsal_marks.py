"""Who answers: the emulator says so on every response, and nothing else makes a reply an emulated one."""

from typing import Any

import anyio
import httpx
import orjson
import pytest
from asking import TARGET, ask

from pipeline.providers.base import Account
from pipeline.providers.gemini import Gemini
from pipeline.providers.transport import Wire
from pipeline.records import EMULATOR_FIELD, EMULATOR_HEADER, Failure, Reply

ANSWER: dict[str, Any] = {"candidates": [{"content": {"parts": [{"text": "yes"}]}, "finishReason": "STOP"}]}
PROMPT = ask(text="hi")


def told(response: httpx.Response) -> tuple[bool, Reply | Failure]:
    async def run() -> tuple[bool, Reply | Failure]:
        async with Wire(httpx.MockTransport(lambda _: response)) as wire:
            gemini = Gemini({TARGET.access: Account(wire, "k")})
            return await gemini.is_emulator(TARGET), await gemini.generate(PROMPT, TARGET)

    return anyio.run(run)


@pytest.mark.case("O5")
@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, json=ANSWER, headers={EMULATOR_HEADER: "1"}),  # a relay that makes bodies anew
        httpx.Response(200, json={EMULATOR_FIELD: True, **ANSWER}),  # a proxy that drops unknown headers
        httpx.Response(200, json={**ANSWER, "responseId": "pipeline-emulator-x"}),  # one that keeps known fields only
        httpx.Response(503, json={EMULATOR_FIELD: True, "error": {"code": 503, "message": "overloaded"}}),
        httpx.Response(502, content=b"<html>", headers={EMULATOR_HEADER.upper(): "1"}),
        httpx.Response(200, content=b'{"candi', headers={EMULATOR_HEADER: "1"}),
    ],
)
def test_any_mark_will_do(response: httpx.Response) -> None:
    asked, outcome = told(response)
    assert asked
    assert outcome.emulated


@pytest.mark.case("O5")
@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, json={**ANSWER, "modelVersion": "emulator"}),  # a relay may call its model so
        httpx.Response(200, json={"candidates": [{"content": {"parts": [{"text": f'"{EMULATOR_FIELD}":true'}]}}]}),
        httpx.Response(404, content=b"not found"),
        httpx.Response(200, content=orjson.dumps([EMULATOR_FIELD])),
        httpx.Response(500, json={"error": {"message": EMULATOR_FIELD}}),
    ],
)
def test_nothing_else_is_a_mark(response: httpx.Response) -> None:
    asked, outcome = told(response)
    assert not asked
    assert not outcome.emulated
