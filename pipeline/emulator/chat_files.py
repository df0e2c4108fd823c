"""OpenAI's Files API, as far as batches need it: uploads in one form, contents, results."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from hashlib import blake2b
from typing import Any

from pipeline.emulator import chat
from pipeline.emulator.batch_faults import Draw
from pipeline.emulator.http import Call, Response, json_response
from pipeline.emulator.kept import BLOCK, Kept
from pipeline.emulator.messages import Refusal
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.stats import Stats

Body = dict[str, Any]

_MOST_BYTES = 512 * 2**20
_LIFE_S = 30 * 24 * 3600.0
_PAGE = 10_000
_EXPIRES = range(3600, 30 * 24 * 3600 + 1)  # seconds that a file may be said to last
_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?')


@dataclass(frozen=True, slots=True)
class ChatFile:
    """One file."""

    name: str
    owner: str
    filename: str
    purpose: str
    content: Kept
    created: float
    ends: float


class ChatFiles:
    """The files of all keys; `clock` is the server's."""

    def __init__(self, options: EmulatorOptions, stats: Stats, clock: Callable[[], float], draw: Draw) -> None:
        self._options, self._stats, self._clock, self._draw = options, stats, clock, draw
        self._files: dict[str, ChatFile] = {}
        self._born = f"{options.seed}/{clock()}"
        self._numbers = 0
        self.watchers: list[Callable[[str, str], None]] = []

    async def answer(self, call: Call, name: str | None, part: str | None, owner: str) -> Response:
        """Serve one request; raises `Refusal`."""
        if name is None:
            if call.method == "POST":
                return await self._uploaded(call, owner)
            if call.method == "GET":
                return json_response(self._listed(owner))
            raise no_such(call)
        file = self._find(name, owner)
        if file is None:
            raise Refusal(404, chat.as_error(f"No such File object: {name}", "invalid_request_error", None))
        match call.method, part:
            case "GET", None:
                return json_response(self._told(file))
            case "GET", "content":
                return self._downloaded(file)
            case "DELETE", None:
                del self._files[name]
                self._stats.files["deleted"] += 1
                for watch in self.watchers:
                    watch(name, owner)
                return json_response({"id": name, "object": "file", "deleted": True})
        raise no_such(call)

    def content(self, name: str, owner: str) -> Kept | None:
        """What a batch of this file is made of; None where the key has no such file."""
        file = self._find(name, owner)
        return None if file is None else file.content

    def add_results(self, name: str, owner: str, content: Kept, created: float, life_s: float | None = None) -> None:
        """Keep results of a batch."""
        ends = created + (life_s or _LIFE_S) / self._options.time_scale
        self._files[name] = ChatFile(name, owner, f"{name}.jsonl", "batch_output", content, created, ends)

    def _find(self, name: str, owner: str) -> ChatFile | None:
        file = self._files.get(name)
        return file if file is not None and file.owner == owner and self._clock() < file.ends else None

    def _listed(self, owner: str) -> Body:
        own = [file for name in reversed(self._files) if (file := self._find(name, owner)) is not None]
        return {"object": "list", "data": [self._told(file) for file in own[:_PAGE]], "has_more": len(own) > _PAGE}

    async def _uploaded(self, call: Call, owner: str) -> Response:
        self._stats.add_batch_call("upload", self._clock())
        received = Kept()
        async for data in call.chunks():
            received.append(data)
            if received.size > _MOST_BYTES:
                raise Refusal(413, chat.as_error("The file is larger than 512 MB.", "invalid_request_error", None))
        fields, filename, content = _form(received, call.header(b"content-type"))
        if self._draw.hit("upload_cut") is not None:
            return Response(200, b"", broken="reset")
        if content is None:
            raise _wrong("'file' is a required property")
        if fields.get("purpose") != "batch":
            raise _wrong("'purpose' is a required property, and this service has files for batches alone")
        life_s = _life(fields.get("expires_after[seconds]"))
        self._numbers += 1
        name = f"file-{blake2b(f'{self._born}/{self._numbers}'.encode(), digest_size=11).hexdigest()}"
        now = self._clock()
        ends = now + life_s / self._options.time_scale
        file = self._files[name] = ChatFile(name, owner, filename, "batch", content, now, ends)
        self._stats.files["stored"] += 1
        self._stats.files["bytes"] += content.size
        if self._draw.hit("upload_lost") is not None:
            return Response(200, b"", broken="reset")
        return json_response(self._told(file))

    def _downloaded(self, file: ChatFile) -> Response:
        self._stats.files["downloads"] += 1
        size = file.content.size
        if self._draw.hit("download_short") is not None:
            size //= 2
        broken = "truncated" if self._draw.hit("download_cut") is not None else None
        return Response(200, b"", "application/octet-stream", broken=broken, content=file.content, size=size)

    def _told(self, file: ChatFile) -> Body:
        return {
            "id": file.name,
            "object": "file",
            "bytes": file.content.size,
            "created_at": int(file.created),
            "expires_at": int(file.ends),
            "filename": file.filename,
            "purpose": file.purpose,
            "status": "processed",
        }


def no_such(call: Call) -> Refusal:
    """404: the path is none of the service's."""
    return Refusal(
        404, chat.as_error(f"Unknown request URL: {call.method} {call.path}.", "invalid_request_error", None)
    )


def _wrong(message: str) -> Refusal:
    return Refusal(400, chat.as_error(message, "invalid_request_error", None))


def _life(seconds: str | None) -> float:
    if seconds is None:
        return _LIFE_S
    if not seconds.isdecimal() or int(seconds) not in _EXPIRES:
        raise _wrong("'expires_after.seconds' must be between 3600 and 2592000")
    return float(seconds)


# --- multipart/form-data ----------------------------------------------------------------------------------------------


def _form(body: Kept, content_type: str) -> tuple[dict[str, str], str, Kept | None]:
    """The fields of a form, the name of its file, and the file; raises `Refusal` for what is no form."""
    found = _BOUNDARY.search(content_type)
    if not content_type.startswith("multipart/form-data") or found is None:
        raise _wrong("The body must be multipart/form-data.")
    mark = b"--" + found[1].encode()
    fields: dict[str, str] = {}
    filename, file = "", None
    at = _place(body, mark, 0) + len(mark)
    while at >= len(mark) and body.part(at, at + 2) != b"--":
        start = _place(body, b"\r\n\r\n", at) + 4
        stop = _place(body, b"\r\n" + mark, start)
        if stop < 0 or start < 4:
            raise _wrong("The form is not whole.")
        head: Message = BytesHeaderParser().parsebytes(body.part(at + 2, start))
        name = head.get_param("name", header="content-disposition")
        if name == "file":
            filename, file = str(head.get_filename()), Kept()
            for place in range(start, stop, BLOCK):
                file.append(body.part(place, min(place + BLOCK, stop)))
        else:
            fields[str(name)] = body.part(start, stop).decode("utf-8", "replace")
        at = stop + 2 + len(mark)
    return fields, filename, file


def _place(content: Kept, mark: bytes, start: int) -> int:
    """Where `mark` stands from `start` on; -1: nowhere."""
    while start < content.size:
        block = content.part(start, start + BLOCK + len(mark))
        found = block.find(mark)
        if found >= 0:
            return start + found
        start += BLOCK
    return -1
