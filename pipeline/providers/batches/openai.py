"""OpenAI's batches, and those of servers that speak the same: `/files` and `/batches`, results in one or two files."""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import orjson

from pipeline.prompts import Prompt
from pipeline.providers.batches.asking import Asking, Speaker
from pipeline.providers.batches.base import Bounds, Line, RemoteBatch, RemoteFile
from pipeline.providers.batches.chat_batches import ID, read_chat_batch, read_chat_file
from pipeline.providers.batches.disk import fetched
from pipeline.providers.batches.lines import read_chat_line
from pipeline.providers.connections import Pieces
from pipeline.providers.foreign import mappings, string
from pipeline.providers.payload import built, opened
from pipeline.providers.resumable import unfit
from pipeline.records import Failure

MOST_PAGES = 1_000
"""Of a listing, 100 batches or 10,000 files each: one that does not end is no listing."""
_PIECE_BYTES = 2**20
_ENDPOINT = "/v1/chat/completions"


class OpenAIBatches(Asking):
    """See `Batches`. The name of a file or batch is its id at the service; `root` is what comes before `/batches`."""

    bounds = Bounds(lines=50_000, bytes=200_000_000)

    def __init__(self, speaker: Speaker, root: httpx.URL, request: Callable[[Prompt, str], bytes]) -> None:
        super().__init__(speaker, root)
        self._request = request

    async def line(self, key: str, prompt: Prompt, model: str) -> bytes | Failure:
        """See `Batches`."""
        return await built(prompt, partial(self._line, key, prompt, model))

    def _line(self, key: str, prompt: Prompt, model: str) -> bytes:
        start = orjson.dumps({"custom_id": key, "method": "POST", "url": _ENDPOINT})
        return b'%s,"body":%s}\n' % (start[:-1], self._request(prompt, model))

    async def upload(self, path: Path, name: str, sha256: str) -> RemoteFile | Failure:
        """See `Batches`: the service tells no digest, so that the size alone says whether a file is the same."""
        size, digest = await anyio.to_thread.run_sync(_measured, path)
        if digest != sha256:
            return unfit("the file of a batch is not what was written any more")
        found = await self.find_file(name)
        if isinstance(found, Failure) or (found and found.size in (None, size)):
            return found
        form = _Form(path, size, f"{name}.jsonl", sha256[:32])
        told = await self.told(self.at("files"), form.pieces, more=form.headers)
        if isinstance(told, Failure):
            return told
        made = read_chat_file(told) or self.unreadable("file")
        if isinstance(made, RemoteFile) and made.size not in (None, size):
            return Failure("transient", "server", "an uploaded file is shorter at the service", sent=False)
        return made

    async def find_file(self, name: str) -> RemoteFile | Failure | None:
        """See `Batches`."""
        listed = await self._listed("files", {"purpose": "batch", "limit": "10000", "order": "desc"})
        if isinstance(listed, Failure):
            return listed
        same = (each for each in listed if each.get("filename") == f"{name}.jsonl" and each.get("status") != "error")
        return next(filter(None, map(read_chat_file, same)), None)

    async def remove(self, file: RemoteFile) -> Failure | None:
        """See `Batches`."""
        if not ID.fullmatch(file.name):
            return unfit("a file has a name that none has")
        told = await self.told(self.at(f"files/{file.name}"), delete=True)
        return told if isinstance(told, Failure) and told.http_status != 404 else None

    async def create(self, model: str, file: RemoteFile, label: str) -> RemoteBatch | Failure:
        """See `Batches`; each line names its model."""
        asked = {"input_file_id": file.name, "endpoint": _ENDPOINT, "completion_window": "24h"}
        told = await self.told(self.at("batches"), orjson.dumps({**asked, "metadata": {"label": label}}))
        return told if isinstance(told, Failure) else read_chat_batch(told) or self.unreadable("batch")

    async def get(self, name: str) -> RemoteBatch | Failure | None:
        """See `Batches`."""
        if not ID.fullmatch(name):
            return None
        told = await self.told(self.at(f"batches/{name}"))
        if isinstance(told, Failure):
            return None if told.http_status == 404 else told
        return self.named(read_chat_batch(told), name)

    async def find_all(self) -> list[RemoteBatch] | Failure:
        """See `Batches`."""
        listed = await self._listed("batches", {"limit": "100"})
        if isinstance(listed, Failure):
            return listed
        found = [batch for each in listed if (batch := read_chat_batch(each))]
        return found if len(found) == len(listed) else self.unreadable("listing")

    async def cancel(self, name: str) -> Failure | None:
        """See `Batches`; one that is over needs none."""
        if not ID.fullmatch(name):
            return unfit("a batch has a name that none has")
        told = await self.told(self.at(f"batches/{name}/cancel"), b"")
        if not isinstance(told, Failure) or told.http_status not in (400, 404, 409):
            return told if isinstance(told, Failure) else None
        found = await self.get(name)
        return None if found is None or (isinstance(found, RemoteBatch) and found.is_over) else told

    async def fetch(self, batch: RemoteBatch, path: Path) -> Failure | None:
        """See `Batches`: results and errors, one after the other. Raises `OSError` where the disk refuses it."""
        urls = [self.at(f"files/{name}/content") for name in batch.outputs]
        return await fetched(path, [partial(self.speaker.fetch, url) for url in urls], (), self.meaning)

    async def count(self, line: bytes, model: str) -> int | Failure:
        """See `Batches`: nobody counts free of charge."""
        return unfit("the service does not count tokens")

    def read_line(self, line: bytes, model: str, input_tokens_est: int = 0) -> Line:
        """See `Batches`."""
        return read_chat_line(line, self.speaker.outcome, model, input_tokens_est)

    async def _listed(self, path: str, params: Mapping[str, str]) -> list[dict[str, Any]] | Failure:
        """Everything that a listing has, over all its pages."""
        found: list[dict[str, Any]] = []
        after = ""
        for _ in range(MOST_PAGES):
            told = await self.told(self.at(path).copy_with(params={**params, **({"after": after} if after else {})}))
            if isinstance(told, Failure):
                return told
            if "data" not in told:
                break
            page = mappings(told["data"])
            found += page
            last = string(page[-1].get("id")) if page else ""
            if told.get("has_more") is not True:
                return found
            if last in ("", after):
                break
            after = last
        return self.unreadable("listing")


class _Form:
    """The multipart body that uploads a file, read from the disk while it is sent."""

    def __init__(self, path: Path, size: int, filename: str, boundary: str) -> None:
        self._path, self._size = path, size
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        self._start = (
            f'{part}purpose"\r\n\r\nbatch\r\n{part}file"; filename="{filename}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode()
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self.headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        self.pieces = Pieces(len(self._start) + size + len(self._end), self._read)

    async def _read(self) -> AsyncIterator[bytes]:
        yield self._start
        left = self._size
        with opened(str(self._path)) as file:
            while left and (part := await anyio.to_thread.run_sync(file.read, min(_PIECE_BYTES, left))):
                left -= len(part)
                yield part
        if left:
            raise OSError("the file of a batch became shorter while it was sent")
        yield self._end


def _measured(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with opened(str(path)) as file:
        while part := file.read(_PIECE_BYTES):
            digest.update(part)
        return file.tell(), digest.hexdigest()
