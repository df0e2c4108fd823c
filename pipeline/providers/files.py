"""Files that are too large for a request: uploaded once for each content, waited for, and used until they end.

    uri → known? → start → parts of 8 MiB → finalize → until it is ACTIVE

See `resumable` for how a file is sent.
"""

import asyncio
import hashlib
import io
import re
from collections import defaultdict
from dataclasses import replace
from datetime import datetime
from typing import BinaryIO

import anyio
import httpx

from pipeline.providers.foreign import load, mapping, string
from pipeline.providers.payload import opened
from pipeline.providers.resumable import PASSING, Keyed, Resumable, Sending, Told, unfit
from pipeline.providers.transport import Lost, Response, Wire
from pipeline.providers.uploads import MARGIN_S, UploadBook, Uploaded
from pipeline.records import Failure, Media

_POLLS_S = (1.0, 2.0, 5.0)
_MOST_PROCESSING_S = 1800.0
_NAME = re.compile(r"files/[A-Za-z0-9_-]{1,200}")


class Files:
    """The files of one account. `root` is what comes before `/files`; `wire` makes the requests that bear no key."""

    def __init__(
        self, keyed: Keyed, wire: Wire, root: httpx.URL, account: str, book: UploadBook, timeout_s: float
    ) -> None:
        self._keyed, self._wire, self._root = keyed, wire, root
        self._account, self._book = account, book
        self._upload = Resumable(keyed, wire, root, timeout_s)
        self._locks: dict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._unfit: dict[str, Failure] = {}

    async def uri(self, file: Media, least_s: float = MARGIN_S) -> str | Failure:
        """The address of a file for a prompt, which will be good for so long: uploaded now, or before."""
        content = _content(file)
        async with self._locks[content]:  # whoever asks for the same waits for it
            known = self._book.get(self._account, content, least_s)
            if known and known.active:
                return known.uri
            if content in self._unfit:
                return self._unfit[content]
            found_before = await self._looked_for(known.name, content) if known else None
            told = found_before or await self._stored(file, content)
            found = told if isinstance(told, Failure) else await self._active(told, content, least_s)
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
        sending = Sending(
            name,
            file.mime_type,
            file.size_bytes,
            lambda: _opened(file),
            lambda: hashlib.blake2b(digest_size=16),
            file.digest,
            "a file changed after the row was looked at",
        )
        return await self._upload.send(sending, self._meaning)

    async def _looked_for(self, name: str, content: str) -> Told | None:
        """A file by its name, if the service has it and will have it for a while."""
        answer = await self._keyed.exchange(self._at(name))
        told = mapping(load(answer.body)) if isinstance(answer, Response) and answer.status == 200 else {}
        is_there = told.get("state") in ("PROCESSING", "ACTIVE") and self._described(told, content).lasts()
        return told if is_there else None

    async def _active(self, told: Told, content: str, least_s: float) -> str | Failure:
        """Wait until a file can be used; it is kept before."""
        uploaded = self._described(told, content)
        if not _NAME.fullmatch(uploaded.name) or not uploaded.uri:
            return unfit("the service does not say where the uploaded file is")
        if self._book.get(self._account, content, least_s) is None:
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
            elif isinstance(answer, Response) and answer.status not in PASSING:
                self._book.forget(self._account, content)
                if answer.status in (403, 404):  # so it says of a file that is there no more
                    return Failure("transient", "server", "an uploaded file is there no more", sent=False)
                return self._meaning(answer)
        if told.get("state") == "FAILED":
            self._book.forget(self._account, content)
            return unfit("the service could not process the uploaded file")
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
        passes = isinstance(answer, Lost) or answer.status in PASSING
        message = f"upload: {failure.message}"
        if passes:
            return Failure("transient", "network" if isinstance(answer, Lost) else "server", message, sent=False)
        return unfit(message)


def _content(file: Media) -> str:
    return f"{file.digest} {file.mime_type}"


def _opened(file: Media) -> BinaryIO:
    return io.BytesIO(file.data) if file.data is not None else opened(file.path)
