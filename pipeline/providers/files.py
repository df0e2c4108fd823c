"""Files that are too large for a request: uploaded once for each content, waited for, and used until they end.

    uri → known? → start → parts of 8 MiB → finalize → until it is ACTIVE

The address of an upload is a secret that needs no key: it is kept in memory only, and the key never goes to it.
"""

import asyncio
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, BinaryIO, Protocol

import anyio
import anyio.to_thread
import httpx
import orjson

from pipeline.providers.foreign import load, mapping, string, whole_number
from pipeline.providers.payload import opened
from pipeline.providers.transport import Lost, Response, Wire
from pipeline.providers.uploads import UploadBook, Uploaded
from pipeline.records import Failure, Media

PART_BYTES = 8 * 2**20
"""Of one request of an upload: what google-genai sends at a time, and a multiple of the 256 KiB that the service asks
for."""
_WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Before a request is made again."""
_POLLS_S = (1.0, 2.0, 5.0)
_MOST_PROCESSING_S = 1800.0
_NAME = re.compile(r"files/[A-Za-z0-9_-]{1,200}")
_PASSING = frozenset({408, 429, 500, 502, 503, 504})

Told = Mapping[str, Any]
"""A file as the service describes it."""


class Keyed(Protocol):
    """Who makes requests that bear the key, as a `Connection` does."""

    async def exchange(
        self,
        url: httpx.URL,
        content: bytes | None = None,
        *,
        more: Mapping[str, str] | None = None,
        delete: bool = False,
    ) -> Response | Lost:
        """One request."""
        ...

    def failure(self, answer: Response | Lost) -> Failure:
        """What one that failed means."""
        ...


class Files:
    """The files of one account. `root` is what comes before `/files`; `wire` makes the requests that bear no key."""

    def __init__(
        self, keyed: Keyed, wire: Wire, root: httpx.URL, account: str, book: UploadBook, timeout_s: float
    ) -> None:
        self._keyed, self._wire, self._root = keyed, wire, root
        self._account, self._book, self._timeout_s = account, book, timeout_s
        self._locks: dict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._unfit: dict[str, Failure] = {}

    async def uri(self, file: Media) -> str | Failure:
        """The address of a file for a prompt: uploaded now, or before."""
        content = _content(file)
        async with self._locks[content]:  # whoever asks for the same waits for it
            known = self._book.get(self._account, content)
            if known and known.active:
                return known.uri
            if content in self._unfit:
                return self._unfit[content]
            found_before = await self._looked_for(known.name, content) if known else None
            told = found_before or await self._stored(file, content)
            found = told if isinstance(told, Failure) else await self._active(told, content)
            if isinstance(found, Failure) and found.kind == "reject":
                self._unfit[content] = found
            return found

    def forget(self, file: Media) -> None:
        """The service has a file no more, whatever it told of its end."""
        self._book.forget(self._account, _content(file))

    async def delete_all(self) -> None:
        """Delete what the run uploaded; what cannot be deleted ends by itself."""
        for each in self._book.of(self._account):
            answer = await self._keyed.exchange(self._at(each.name), delete=True)
            if isinstance(answer, Response) and answer.status in (200, 403, 404):
                self._book.add(replace(each, deleted=True))

    def _at(self, name: str) -> httpx.URL:
        return httpx.URL(f"{self._root}/{name}")

    async def _stored(self, file: Media, content: str) -> Told | Failure:
        name = self._book.name_of(self._account, content)
        if self._book.continued:  # a killed session may have ended this upload without keeping that
            told = await self._looked_for(name, content)
            if told is not None:
                return told
        place = await self._begun(file, name)
        if isinstance(place, Failure):
            return place
        try:
            source = await anyio.to_thread.run_sync(_opened, file)
        except OSError as error:
            return _unfit(f"a file could not be read any more: {error.strerror or type(error).__name__}")
        with source:
            return await self._sent(source, file, place)

    async def _looked_for(self, name: str, content: str) -> Told | None:
        """A file by its name, if the service has it and will have it for a while."""
        answer = await self._keyed.exchange(self._at(name))
        told = mapping(load(answer.body)) if isinstance(answer, Response) and answer.status == 200 else {}
        is_there = told.get("state") in ("PROCESSING", "ACTIVE") and self._described(told, content).lasts
        return told if is_there else None

    async def _begun(self, file: Media, name: str) -> httpx.URL | Failure:
        """The address of a new upload."""
        before, _, version = self._root.path.rstrip("/").rpartition("/")
        start = self._root.copy_with(path=f"{before}/upload/{version}/files")
        body = orjson.dumps({"file": {"name": name, "mimeType": file.mime_type, "sizeBytes": str(file.size_bytes)}})
        more = {
            "x-goog-upload-protocol": "resumable",
            "x-goog-upload-command": "start",
            "x-goog-upload-header-content-length": str(file.size_bytes),
            "x-goog-upload-header-content-type": file.mime_type,
        }
        answer = await _patiently(lambda: self._keyed.exchange(start, body, more=more))
        if isinstance(answer, Lost) or answer.status != 200:
            return self._meaning(answer)
        try:
            place = httpx.URL(answer.headers.get("x-goog-upload-url", ""))
        except httpx.InvalidURL:
            place = httpx.URL()
        if not place.host:
            return _unfit("the service named no address for the upload")
        if not _is_trusted(place, self._root):
            return _unfit(f"the service sends the upload to another host, {place.host}: nothing was sent there")
        return place

    async def _sent(self, source: BinaryIO, file: Media, place: httpx.URL) -> Told | Failure:
        """Send all parts of a file, each from where the service has those before; what it then says of the file."""
        digest = hashlib.blake2b(digest_size=16)
        offset = read = reached = failures = 0
        while True:
            part = await anyio.to_thread.run_sync(_read, source, offset)
            new = part[read - offset :]  # the rest is sent again
            digest.update(new)
            read += len(new)
            last = offset + len(part) >= file.size_bytes
            if len(part) < min(PART_BYTES, file.size_bytes - offset) or (last and digest.hexdigest() != file.digest):
                return _unfit("a file changed after the row was looked at")
            answer = await self._posted(place, "upload, finalize" if last else "upload", offset, part)
            if isinstance(answer, Response) and answer.status not in (200, *_PASSING):
                return self._meaning(answer, of_key=False)
            status = _status(answer)
            if status == "final":
                return _file(answer) if last else _unfit("the service ended an upload before its last part")
            if status == "active" and not last:
                offset += len(part)
                if offset > reached:  # what is sent again and again is none the further
                    reached, failures = offset, 0
                continue
            if failures >= len(_WAITS_S):
                return Failure("transient", "network", "an upload broke off again and again", sent=False)
            await anyio.sleep(_WAITS_S[failures])
            failures += 1
            answer = await self._posted(place, "query", 0, b"")
            if _status(answer) == "final" and read >= file.size_bytes:
                return _file(answer)
            received = whole_number(_header(answer, "x-goog-upload-size-received"))
            if received is not None and received <= read:
                offset = received

    async def _posted(self, place: httpx.URL, command: str, offset: int, part: bytes) -> Response | Lost:
        """One request of an upload: without the key."""
        headers = httpx.Headers({"x-goog-upload-command": command, "x-goog-upload-offset": str(offset)})
        return await self._wire.post(place, headers, part, self._timeout_s)

    async def _active(self, told: Told, content: str) -> str | Failure:
        """Wait until a file can be used; it is kept before."""
        uploaded = self._described(told, content)
        if not _NAME.fullmatch(uploaded.name) or not uploaded.uri:
            return _unfit("the service does not say where the uploaded file is")
        if self._book.get(self._account, content) is None:
            self._book.add(uploaded)
        clock, polls, wait_s = asyncio.get_running_loop().time, iter(_POLLS_S), 0.0
        until = clock() + _MOST_PROCESSING_S
        while told.get("state") == "PROCESSING":
            if clock() > until:
                return Failure("transient", "timeout", "an uploaded file is processed without an end", sent=False)
            wait_s = next(polls, wait_s)
            await anyio.sleep(wait_s)
            answer = await self._keyed.exchange(self._at(uploaded.name))
            if isinstance(answer, Response) and answer.status == 200:
                told = mapping(load(answer.body))
            elif isinstance(answer, Response) and answer.status not in _PASSING:
                self._book.forget(self._account, content)
                if answer.status in (403, 404):  # so it says of a file that is there no more
                    return Failure("transient", "server", "an uploaded file is there no more", sent=False)
                return self._meaning(answer)
        if told.get("state") == "FAILED":
            self._book.forget(self._account, content)
            return _unfit("the service could not process the uploaded file")
        self._book.add(replace(uploaded, active=True))
        return uploaded.uri

    def _described(self, told: Told, content: str) -> Uploaded:
        try:
            ends_at = datetime.fromisoformat(string(told.get("expirationTime"))).timestamp()
        except ValueError:
            ends_at = 0.0  # it is used at once, and not later
        return Uploaded(self._account, content, string(told.get("name")), string(told.get("uri")), ends_at)

    def _meaning(self, answer: Response | Lost, of_key: bool = True) -> Failure:
        """What a failed request means for the row; quotas on files are not the model's."""
        failure = self._keyed.failure(answer)
        if of_key and failure.kind in ("auth", "proxy"):
            return failure
        passes = isinstance(answer, Lost) or answer.status in _PASSING
        message = f"upload: {failure.message}"
        if passes:
            return Failure("transient", "network" if isinstance(answer, Lost) else "server", message, sent=False)
        return _unfit(message)


def _content(file: Media) -> str:
    return f"{file.digest} {file.mime_type}"


def _unfit(message: str) -> Failure:
    return Failure("reject", "file", message, sent=False)


def _opened(file: Media) -> BinaryIO:
    return io.BytesIO(file.data) if file.data is not None else opened(file.path)


def _read(source: BinaryIO, offset: int) -> bytes:
    source.seek(offset)
    return source.read(PART_BYTES)


def _header(answer: Response | Lost, name: str) -> str:
    return answer.headers.get(name, "") if isinstance(answer, Response) and answer.status == 200 else ""


def _status(answer: Response | Lost) -> str:
    return _header(answer, "x-goog-upload-status")


def _file(answer: Response | Lost) -> Told:
    return mapping(mapping(load(answer.body)).get("file")) if isinstance(answer, Response) else {}


def _is_trusted(place: httpx.URL, root: httpx.URL) -> bool:
    """Whether content may go there: the same origin, or from one of Google's hosts to another."""
    if (place.scheme, place.host, place.port) == (root.scheme, root.host, root.port):
        return True
    return place.scheme == "https" and all(f".{url.host}".endswith(".googleapis.com") for url in (place, root))


async def _patiently(ask: Callable[[], Awaitable[Response | Lost]]) -> Response | Lost:
    """Ask again what may pass."""
    answer = await ask()
    for wait_s in _WAITS_S:
        if isinstance(answer, Response) and answer.status not in _PASSING:
            break
        await anyio.sleep(wait_s)
        answer = await ask()
    return answer
