"""One file sent in parts, each of which can be sent again: what the Files API takes, of media and of batches.

    start → parts of 8 MiB → finalize

The address of an upload is a secret that needs no key: it is kept in memory only, and the key never goes to it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import anyio
import anyio.to_thread
import httpx
import orjson

from pipeline.providers.foreign import load, mapping, whole_number
from pipeline.providers.transport import Lost, Response, Wire
from pipeline.records import Failure

PART_BYTES = 8 * 2**20
"""Of one request of an upload: what google-genai sends at a time, and a multiple of the 256 KiB that the service asks
for."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
_WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Before a request is made again."""

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


class Meaning(Protocol):
    """What a failed request of an upload means to whoever wants the file; not `of_key`: it bore none."""

    def __call__(self, answer: Response | Lost, of_key: bool = True) -> Failure:
        """The failure."""
        ...


class Digest(Protocol):
    """As in `hashlib`."""

    def update(self, part: bytes, /) -> None:
        """Count more."""
        ...

    def hexdigest(self) -> str:
        """Of all that was counted."""
        ...


@dataclass(frozen=True, slots=True)
class Sending:
    """A file to be sent: nothing but the content whose `digest` it is, in hexadecimal, by `hasher`."""

    name: str  # under which it is to be found: `files/…`
    mime_type: str
    size_bytes: int
    open: Callable[[], BinaryIO]  # raises `OSError`
    hasher: Callable[[], Digest]
    digest: str
    changed: str  # what is said where the content is another by now


class Resumable:
    """The uploads of one account. `root` is what comes before `/files`; `wire` makes the requests that bear no key."""

    def __init__(self, keyed: Keyed, wire: Wire, root: httpx.URL, timeout_s: float) -> None:
        self._keyed, self._wire, self._root, self._timeout_s = keyed, wire, root, timeout_s

    async def send(self, file: Sending, meaning: Meaning) -> Told | Failure:
        """Send a file; what the service then says of it."""
        place = await self._begun(file, meaning)
        if isinstance(place, Failure):
            return place
        try:
            source = await anyio.to_thread.run_sync(file.open)
        except OSError as error:
            return unfit(f"a file could not be read any more: {error.strerror or type(error).__name__}")
        with source:
            return await self._sent(source, file, place, meaning)

    async def _begun(self, file: Sending, meaning: Meaning) -> httpx.URL | Failure:
        """The address of a new upload."""
        start = beside(self._root, "upload", "files")
        told = {"name": file.name, "mimeType": file.mime_type, "sizeBytes": str(file.size_bytes)}
        more = {
            "x-goog-upload-protocol": "resumable",
            "x-goog-upload-command": "start",
            "x-goog-upload-header-content-length": str(file.size_bytes),
            "x-goog-upload-header-content-type": file.mime_type,
        }
        answer = await _patiently(lambda: self._keyed.exchange(start, orjson.dumps({"file": told}), more=more))
        if isinstance(answer, Lost) or answer.status != 200:
            return meaning(answer)
        try:
            place = httpx.URL(answer.headers.get("x-goog-upload-url", ""))
        except httpx.InvalidURL:
            place = httpx.URL()
        if not place.host:
            return unfit("the service named no address for the upload")
        if not _is_trusted(place, self._root):
            return unfit(f"the service sends the upload to another host, {place.host}: nothing was sent there")
        return place

    async def _sent(self, source: BinaryIO, file: Sending, place: httpx.URL, meaning: Meaning) -> Told | Failure:
        """Send all parts of a file, each from where the service has those before; what it then says of the file."""
        digest = file.hasher()
        offset = read = reached = failures = 0
        while True:
            part = await anyio.to_thread.run_sync(_read, source, offset, digest, read)
            read = max(read, offset + len(part))
            last = offset + len(part) >= file.size_bytes
            if len(part) < min(PART_BYTES, file.size_bytes - offset) or (last and digest.hexdigest() != file.digest):
                return unfit(file.changed)
            answer = await self._posted(place, "upload, finalize" if last else "upload", offset, part)
            if isinstance(answer, Response) and answer.status not in (200, *PASSING):
                return meaning(answer, of_key=False)
            status = _status(answer)
            if status == "final":
                return _file(answer) if last else unfit("the service ended an upload before its last part")
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


def beside(root: httpx.URL, word: str, path: str) -> httpx.URL:
    """`…/upload/v1beta/files` of `…/v1beta`, and the same with another word."""
    before, _, version = root.path.rstrip("/").rpartition("/")
    return root.copy_with(path=f"{before}/{word}/{version}/{path}")


def unfit(message: str) -> Failure:
    """A file that cannot be used."""
    return Failure("reject", "file", message, sent=False)


def _read(source: BinaryIO, offset: int, digest: Digest, counted: int) -> bytes:
    """The part from `offset`; what lies beyond the first `counted` bytes is counted, the rest is sent again."""
    source.seek(offset)
    part = source.read(PART_BYTES)
    digest.update(part[counted - offset :])
    return part


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
        if isinstance(answer, Response) and answer.status not in PASSING:
            break
        await anyio.sleep(wait_s)
        answer = await ask()
    return answer
