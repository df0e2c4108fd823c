"""Gemini's batches as the service tells of them, and our client before one that a test plays."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import httpx
from asking import ask as ask_of

from pipeline.prompts import Params, Prompt
from pipeline.providers.base import Account
from pipeline.providers.batches.base import Batches, RemoteBatch
from pipeline.providers.batches.operations import read_operation
from pipeline.providers.gemini import Gemini
from pipeline.providers.transport import Wire
from pipeline.targets import Target

MODEL = "gemini-3.5-flash-lite"
KEY = "AQ.secret-key-0123456789"
TARGET = Target("gemini", "http://emulator", "p", MODEL)
T = TypeVar("T")
Handler = Callable[[httpx.Request], httpx.Response]
NAME = "batches/3a96ht58d9rd3fci7tg3qlrhlfawe5ykp6ge"
RESULTS = "files/batch-3a96ht58d9rd3fci7tg3qlrhlfawe5ykp6ge"

PENDING: dict[str, Any] = {
    "name": NAME,
    "metadata": {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "model": f"models/{MODEL}",
        "displayName": "pp-1-1-1",
        "inputConfig": {"fileName": "files/pp-1-1-1"},
        "createTime": "2025-12-10T18:27:01.407650525Z",
        "updateTime": "2025-12-10T18:27:01.407650525Z",
        "batchStats": {"requestCount": "9", "pendingRequestCount": "9"},
        "state": "BATCH_STATE_PENDING",
        "name": NAME,
    },
}
DONE: dict[str, Any] = {
    "name": NAME,
    "metadata": {
        **PENDING["metadata"],
        "output": {"responsesFile": RESULTS},
        "endTime": "2026-08-20T20:10:25.852081585Z",
        "batchStats": {"requestCount": "9", "successfulRequestCount": "7", "failedRequestCount": "2"},
        "state": "BATCH_STATE_SUCCEEDED",
    },
    "done": True,
    "response": {"responsesFile": RESULTS},
}
ANSWER: dict[str, Any] = {
    "candidates": [
        {
            "content": {"parts": [{"text": "four"}, {"thoughtSignature": "El4K..."}], "role": "model"},
            "finishReason": "STOP",
            "index": 0,
        }
    ],
    "usageMetadata": {"promptTokenCount": 1427, "candidatesTokenCount": 144, "totalTokenCount": 1571},
    "modelVersion": MODEL,
    "responseId": "CV-Haon5MNuA_PUP95Gg2Q4",
}


def prompt(text: str = "hi", **params: Any) -> Prompt:
    return ask_of(text=text, params=Params(**params), tokens=11)


def using(handler: Handler | httpx.AsyncBaseTransport, use: Callable[[Batches], Awaitable[T]]) -> T:
    async def main() -> T:
        transport = httpx.MockTransport(handler) if callable(handler) else handler
        gemini = Gemini({TARGET.access: Account(Wire(transport), KEY)})
        batches = gemini.open(TARGET).batches()
        assert batches is not None
        return await use(batches)

    return anyio.run(main)


def saying(body: object, status: int = 200) -> Handler:
    return lambda request: httpx.Response(status, json=body)


def refusing(status: int, message: str, name: str, details: tuple[object, ...] = ()) -> Handler:
    return saying({"error": {"code": status, "message": message, "status": name, "details": list(details)}}, status)


ITEMS = {"inlinedResponses": {"inlinedResponses": [{"metadata": {"key": "a"}, "response": ANSWER}]}}


def state(word: str, **more: Any) -> RemoteBatch:
    metadata = {"state": word, **more.pop("metadata", {})}
    batch = read_operation({"name": NAME, "metadata": metadata, **more})
    assert batch
    return batch
