"""An emulator with batches in process, under a clock that the test moves, and a plain client before it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import orjson

from pipeline.emulator import Emulator, EmulatorOptions, parse_batch_faults, parse_faults

MODEL = "gemini-3.5-flash-lite"
NOON = 1_795_377_600.0


def line(key: str, text: str = "", **fields: Any) -> bytes:
    """A line of a batch's file."""
    request = {"contents": [{"parts": [{"text": text or f"Say {key}."}]}], **fields}
    return orjson.dumps({"key": key, "request": request}) + b"\n"


def keys(count: int) -> list[str]:
    return [f"k{number}" for number in range(count)]


class Service:
    """Batches take 10 s to begin and 20 s to run, all alike."""

    def __init__(self, batch_faults: str = "", *, faults: str = "", key: str = "AQ.key", **flags: Any) -> None:
        usual = {"batch": True, "batch_pending_s": 10, "batch_run_s": 20, "batch_spread": 1, "marked": False}
        told = {"batch_faults": parse_batch_faults(batch_faults), "faults": parse_faults(faults)}
        self.now = NOON
        self.key = key
        self.emulator = Emulator(EmulatorOptions(**{**usual, **told, **flags}), clock=lambda: self.now)

    def ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.emulator)
            async with httpx.AsyncClient(transport=transport, base_url="http://emulator") as client:
                headers = {"x-goog-api-key": self.key, **kwargs.pop("headers", {})}
                return await client.request(method, path, headers=headers, **kwargs)

        return asyncio.run(send())

    def upload(self, *lines: bytes, name: str = "") -> str:
        """The file of these lines, in one part; its name."""
        content = b"".join(lines)
        start = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
        told = {"file": {"mimeType": "application/jsonl", **({"name": name} if name else {})}}
        begun = self.ask("POST", "/upload/v1beta/files", headers=start, json=told)
        assert begun.status_code == 200, begun.text
        ending = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
        ended = self.ask("POST", begun.headers["x-goog-upload-url"], headers=ending, content=content)
        return str(ended.json()["file"]["name"])

    def create(self, file: str, label: str = "label", model: str = MODEL) -> httpx.Response:
        batch = {"displayName": label, "inputConfig": {"fileName": file}}
        return self.ask("POST", f"/v1beta/models/{model}:batchGenerateContent", json={"batch": batch})

    def created(self, *lines: bytes, label: str = "label") -> str:
        """The name of a new batch of these lines."""
        answer = self.create(self.upload(*lines), label)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["name"])

    def get(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = self.ask("GET", f"/v1beta/{name}").json()
        return told

    def state(self, name: str) -> str:
        return str(self.get(name)["metadata"]["state"]).removeprefix("BATCH_STATE_")

    def listed(self, query: str = "?pageSize=100") -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = self.ask("GET", f"/v1beta/batches{query}").json().get("operations", [])
        return told

    def download(self, name: str) -> httpx.Response:
        file = self.get(name)["response"]["responsesFile"]
        return self.ask("GET", f"/download/v1beta/{file}:download?alt=media")

    def results(self, name: str) -> list[dict[str, Any]]:
        """The lines of a batch's results, from its file or inline."""
        response = self.get(name)["response"]
        if "inlinedResponses" in response:
            inline: list[dict[str, Any]] = response["inlinedResponses"]["inlinedResponses"]
            return inline
        return [orjson.loads(each) for each in self.download(name).content.splitlines()]

    def stats(self) -> dict[str, Any]:
        told: dict[str, Any] = self.ask("GET", "/emulator/stats?prompts=true").json()
        return told


def texts(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The answers by key; of two with the same key the later."""
    return {each["key"]: text_of(each["response"]) for each in results if "response" in each}


def text_of(body: Mapping[str, Any]) -> str:
    return str(body["candidates"][0]["content"]["parts"][0]["text"])
