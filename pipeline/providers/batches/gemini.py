"""Gemini's batches: lines of `generateContent` in a file, one operation for all of them, a file of results."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson

from pipeline.prompts import Prompt
from pipeline.providers.batches.asking import Asking, Speaker
from pipeline.providers.batches.base import Bounds, Line, RemoteBatch, RemoteFile
from pipeline.providers.batches.disk import fetched
from pipeline.providers.batches.lines import read_line
from pipeline.providers.batches.operations import BATCH_NAME, FILE_NAME, read_file, read_operation
from pipeline.providers.failures import misses_a_file
from pipeline.providers.foreign import load, mapping, string, whole_number
from pipeline.providers.payload import built, opened
from pipeline.providers.resumable import Resumable, Sending, beside, unfit
from pipeline.providers.transport import Wire
from pipeline.records import Failure
from pipeline.schemas import SchemaError

MOST_PAGES = 1_000
"""Of a listing, 100 batches each: one that does not end is no listing."""
_POLLS_S = (1.0, 2.0, 5.0)
_MOST_PROCESSING_S = 600.0


class GeminiBatches(Asking):
    """See `Batches`. `root` is what comes before `/batches`; `wire` makes the requests that bear no key.

    `method` is the place of a method of a model.
    """

    bounds = Bounds(lines=20_000, bytes=100_000_000)  # by choice: the service takes 2 GB

    def __init__(
        self,
        speaker: Speaker,
        wire: Wire,
        root: httpx.URL,
        request: Callable[[Prompt], Mapping[str, Any]],
        method: Callable[[str, str], httpx.URL],
        timeout_s: float,
    ) -> None:
        super().__init__(speaker, root)
        self._request, self._method = request, method
        self._upload = Resumable(speaker, wire, root, timeout_s)

    async def line(self, key: str, prompt: Prompt, model: str) -> bytes | Failure:
        """See `Batches`."""
        sent = await self.speaker.linked(prompt, batched=True)
        if isinstance(sent, Failure):
            return sent
        try:
            return await built(sent, partial(self._line, key, sent))
        except SchemaError as error:
            return Failure("reject", "invalid_request", f"the schema in a batch: {error.message}", sent=False)

    def _line(self, key: str, prompt: Prompt) -> bytes:
        return orjson.dumps({"key": key, "request": self._request(prompt)}, option=orjson.OPT_APPEND_NEWLINE)

    async def upload(self, path: Path, name: str, sha256: str) -> RemoteFile | Failure:
        """See `Batches`: under the name `files/…`, in parts that can be sent again."""
        sending = Sending(
            name=f"files/{name}",
            mime_type="application/jsonl",
            size_bytes=(await anyio.Path(path).stat()).st_size,
            open=lambda: opened(str(path)),
            hasher=hashlib.sha256,
            digest=sha256,
            changed="the file of a batch is not what was written any more",
        )
        told = await self.speaker.insist(lambda: self._upload.send(sending, self.meaning))
        if isinstance(told, Failure) and told.http_status != 409:
            return told
        found = await self.find_file(name)
        if isinstance(found, Failure):
            return found
        if found is None:
            if isinstance(told, Failure):
                return told
            return Failure("transient", "server", "an uploaded file is not there", sent=False)
        if found.sha256 not in (None, sha256) or found.size not in (None, sending.size_bytes):
            return unfit(f"the service has another file under the name {found.name}")
        return found

    async def find_file(self, name: str) -> RemoteFile | Failure | None:
        """See `Batches`; one that is still processed is waited for."""
        waits, wait_s, until = iter(_POLLS_S), 0.0, anyio.current_time() + _MOST_PROCESSING_S
        while True:
            told = await self.told(self.at(f"files/{name}"))
            if isinstance(told, Failure):
                return None if told.http_status == 404 or misses_a_file(told) else told
            if told.get("state") != "PROCESSING" or anyio.current_time() >= until:
                return read_file(told) or self.unreadable("file")
            wait_s = next(waits, wait_s)
            await anyio.sleep(wait_s)

    async def remove(self, file: RemoteFile) -> Failure | None:
        """See `Batches`."""
        if not FILE_NAME.fullmatch(file.name):
            return unfit("a file has a name that none has")
        told = await self.told(self.at(file.name), delete=True)
        is_gone = not isinstance(told, Failure) or told.http_status == 404 or misses_a_file(told)
        return None if is_gone or not isinstance(told, Failure) else told

    async def create(self, model: str, file: RemoteFile, label: str) -> RemoteBatch | Failure:
        """See `Batches`."""
        body = orjson.dumps({"batch": {"displayName": label, "inputConfig": {"fileName": file.name}}})
        told = await self.told(self._method(model, "batchGenerateContent"), body)
        return told if isinstance(told, Failure) else read_operation(told) or self.unreadable("batch")

    async def get(self, name: str) -> RemoteBatch | Failure | None:
        """See `Batches`."""
        if not BATCH_NAME.fullmatch(name):
            return None
        told = await self.told(self.at(name))
        if isinstance(told, Failure):
            return None if told.http_status == 404 else told
        return self.named(read_operation(told), name)

    async def find_all(self) -> list[RemoteBatch] | Failure:
        """See `Batches`."""
        found: list[RemoteBatch] = []
        page, seen = "", {""}
        for _ in range(MOST_PAGES):
            params = {"pageSize": "100", **({"pageToken": page} if page else {})}
            told = await self.told(self.at("batches").copy_with(params=params))
            if isinstance(told, Failure):
                return told
            listed = told.get("operations", [])
            for each in listed if isinstance(listed, list) else [listed]:
                batch = read_operation(mapping(each))
                if batch is None:
                    return self.unreadable("listing")
                found.append(replace(batch, inline=None))  # results of thousands, where a listing has them
            page = string(told.get("nextPageToken"))
            if not page:
                return found
            if page in seen:
                break
            seen.add(page)
        return self.unreadable("listing")

    async def cancel(self, name: str) -> Failure | None:
        """See `Batches`; one that is over needs none."""
        if not BATCH_NAME.fullmatch(name):
            return unfit("a batch has a name that none has")
        told = await self.told(self.at(f"{name}:cancel"), b"{}")
        if not isinstance(told, Failure) or told.http_status not in (400, 404, 409):
            return told if isinstance(told, Failure) else None
        found = await self.get(name)
        return None if found is None or (isinstance(found, RemoteBatch) and found.is_over) else told

    async def fetch(self, batch: RemoteBatch, path: Path) -> Failure | None:
        """See `Batches`. Raises `OSError` where the disk refuses it."""
        places = [beside(self.root, "download", f"{name}:download") for name in batch.outputs]
        urls = [place.copy_with(params={"alt": "media"}) for place in places]
        return await fetched(path, [partial(self.speaker.fetch, url) for url in urls], batch.inline or (), self.meaning)

    async def count(self, line: bytes, model: str) -> int | Failure:
        """See `Batches`."""
        asked = {"model": f"models/{model}", **mapping(mapping(load(line)).get("request"))}
        told = await self.told(self._method(model, "countTokens"), orjson.dumps({"generateContentRequest": asked}))
        if isinstance(told, Failure):
            return told
        return whole_number(told.get("totalTokens")) or self.unreadable("prompt")

    def read_line(self, line: bytes, model: str, input_tokens_est: int = 0) -> Line:
        """See `Batches`."""
        return read_line(line, self.speaker.outcome, model, input_tokens_est)
