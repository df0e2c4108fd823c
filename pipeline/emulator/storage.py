"""The Files API: resumable uploads, files that are processed and end after 48 hours. What is uploaded is not kept."""

import io
import re
import secrets
import weakref
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO, Any, cast

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.http import Call, Response, json_response
from pipeline.emulator.messages import Refusal
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.stats import Stats
from pipeline.media import TAKEN, Facts, facts_of

LIFE_S = 48 * 3600
_MOST_BYTES = 2 * 2**30
_GRANULE = 256 * 1024
"""Parts that are not the last are multiples of it."""
_IN_MEMORY = 2**20
_PATH = re.compile(r"/(?:upload/)?(v1|v1beta)/files(?:/([a-z0-9-]+))?")
_NAME = re.compile(r"files/[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_PAGE = 10


@dataclass(slots=True)
class Stored:
    """One file, without its bytes."""

    name: str
    owner: str
    fields: dict[str, Any]
    facts: Facts
    created: float


@dataclass(slots=True, weakref_slot=True)
class _Upload:
    """One upload that goes on; `done` is the answer to its end."""

    owner: str
    fields: dict[str, Any]
    size: int | None
    content: IO[bytes]
    received: int = 0
    done: bytes | None = None

    def __post_init__(self) -> None:
        weakref.finalize(self, self.content.close)  # also one that nobody ends


class Storage:
    """The files of all keys; `clock` is the server's, `faults` of `EmulatorOptions.upload_faults` come one a part."""

    def __init__(self, options: EmulatorOptions, stats: Stats, clock: Callable[[], float]) -> None:
        self._options, self._stats, self._clock = options, stats, clock
        self._faults = deque(options.upload_faults)
        self._uploads: dict[str, _Upload] = {}
        self._files: dict[str, Stored] = {}

    def serves(self, path: str) -> bool:
        """Whether a path is one of this."""
        return _PATH.fullmatch(path) is not None

    async def answer(self, call: Call, key_of: Callable[[], str]) -> Response:
        """Serve one request; `key_of` raises `Refusal` without a good key, which an upload's own address needs not."""
        found = _PATH.fullmatch(call.path)
        assert found is not None
        version, name = found.groups()
        if call.path.startswith("/upload/"):
            if call.method != "POST" or name:
                raise bodies.unknown_path(call.path)
            session = call.parameter("upload_id")
            return await (self._taken(call, session) if session else self._begun(call, version, key_of()))
        owner = key_of()
        if name is None and call.method == "GET":
            return json_response(self._listing(call, version, owner, call.base))
        if name is None or call.method not in ("GET", "DELETE"):
            raise bodies.unknown_path(call.path)
        stored = self.stored(f"files/{name}", owner)
        if call.method == "DELETE":
            del self._files[stored.name]
            self._stats.files["deleted"] += 1
            return json_response({})
        return json_response(self._resource(stored, version, call.base))

    def stored(self, name: str, owner: str) -> Stored:
        """A file of a key's; raises `Refusal` (403) for one that is foreign, over, or not there."""
        stored = self._files.get(name)
        if stored is not None and self._clock() >= stored.created + LIFE_S:
            del self._files[name]
            stored = None
        if stored is None or stored.owner != owner:
            known = name.removeprefix("files/")
            raise bodies.refusal(403, f"You do not have permission to access the File {known} or it may not exist.")
        return stored

    def used(self, uri: str, owner: str) -> Stored | None:
        """The file that a prompt names, None for one elsewhere; raises `Refusal` for one that cannot be used."""
        found = re.search(r"/(?:v1|v1beta)/(files/[a-z0-9-]+)$", uri)
        if found is None:
            return None
        stored = self.stored(found[1], owner)
        if self._state(stored) != "ACTIVE":
            told = f"The File {stored.name.removeprefix('files/')} is not in an ACTIVE state and usage is not allowed."
            raise bodies.refusal(400, told)
        return stored

    def of(self, owner: str) -> Callable[[str], Facts | None]:
        """What a prompt with this key may name; see `used`."""

        def facts(uri: str) -> Facts | None:
            stored = self.used(uri, owner)
            return stored.facts if stored else None

        return facts

    async def _begun(self, call: Call, version: str, owner: str) -> Response:
        if call.header(b"x-goog-upload-protocol") != "resumable" or call.header(b"x-goog-upload-command") != "start":
            raise bodies.refusal(400, "Upload has to begin with the start command of the resumable protocol.")
        body = await call.body()
        try:
            told = orjson.loads(body or b"{}").get("file") or {}
        except (orjson.JSONDecodeError, AttributeError):
            raise bodies.refusal(400, "Invalid JSON payload received.") from None
        size = call.header(b"x-goog-upload-header-content-length")
        if size.isdecimal() and int(size) > _MOST_BYTES:
            raise bodies.refusal(400, "File is too large.")
        name = told.get("name") or f"files/{secrets.token_hex(6)}"
        if not _NAME.fullmatch(name):
            raise bodies.refusal(400, f"* CreateFileRequest.file.name: {name} is not a valid name.\n")
        if name in self._files and self._files[name].created + LIFE_S > self._clock():
            raise Refusal(409, bodies.error(409, "Requested entity already exists", status="ALREADY_EXISTS"))
        mime_type = told.get("mimeType") or told.get("mime_type") or call.header(b"x-goog-upload-header-content-type")
        fields = {"name": name, "mimeType": mime_type, "displayName": told.get("displayName", told.get("display_name"))}
        session = secrets.token_urlsafe(24)
        self._uploads[session] = _Upload(owner, fields, int(size) if size.isdecimal() else None, _spool())
        self._stats.files["begun"] += 1
        place = f"{call.base}/upload/{version}/files?upload_id={session}&upload_protocol=resumable"
        headers = ((b"x-goog-upload-url", place.encode()), (b"x-goog-upload-status", b"active"))
        return Response(200, b"", headers=headers)

    async def _taken(self, call: Call, session: str) -> Response:
        upload = self._uploads.get(session)
        if upload is None:
            raise bodies.refusal(404, "Upload session not found.")
        commands = {part.strip() for part in call.header(b"x-goog-upload-command").split(",")}
        if upload.done is not None or commands == {"query"}:
            return self._status(upload)
        fault = self._faults.popleft() if self._faults and "upload" in commands else None
        if fault == "503":
            raise bodies.refusal(503, bodies.OVERLOADED)
        content = await call.body()
        offset = call.header(b"x-goog-upload-offset")
        if not offset.isdecimal() or int(offset) > upload.received:
            raise bodies.refusal(400, f"Expected offset {upload.received}, and it is {offset or 'missing'}.")
        final = "finalize" in commands
        if not final and len(content) % _GRANULE:
            raise bodies.refusal(400, f"A part that is not the last is a multiple of {_GRANULE} bytes.")
        content = content[upload.received - int(offset) :]  # what came before is not taken twice
        if fault == "cut":
            content, final = content[: len(content) // 2 // _GRANULE * _GRANULE], False
        upload.content.write(content)
        upload.received += len(content)
        self._stats.files["bytes"] += len(content)
        if final:
            self._end(upload, call)
        if fault == "cut":
            return Response(200, b"", broken="reset")
        return Response(200, b"") if fault == "no_status" else self._status(upload)

    def _status(self, upload: _Upload) -> Response:
        status = b"active" if upload.done is None else b"final"
        received = str(upload.received).encode()
        headers = ((b"x-goog-upload-status", status), (b"x-goog-upload-size-received", received))
        return Response(200, upload.done or b"", headers=headers)

    def _end(self, upload: _Upload, call: Call) -> None:
        if upload.size is not None and upload.received != upload.size:
            raise bodies.refusal(400, f"{upload.received} bytes came of {upload.size} that were announced.")
        upload.content.seek(0)
        facts = facts_of(cast(Any, upload.content), upload.received)
        upload.content.seek(0)
        digest = sha256()
        while part := upload.content.read(_IN_MEMORY):
            digest.update(part)
        upload.content.close()
        upload.content = io.BytesIO()
        hashed = b64encode(digest.digest()).decode()
        fields = upload.fields | {"sizeBytes": str(upload.received), "sha256Hash": hashed}
        stored = Stored(fields["name"], upload.owner, fields, facts, self._clock())
        self._files[stored.name] = stored
        self._stats.files["stored"] += 1
        upload.done = orjson.dumps({"file": self._resource(stored, "v1beta", call.base)})

    def _state(self, stored: Stored) -> str:
        if self._clock() < stored.created + self._options.processing_s:
            return "PROCESSING"
        forms = next((forms for forms in TAKEN.values() if stored.fields["mimeType"] in forms), ())
        return "FAILED" if forms and stored.facts.mime_type not in forms else "ACTIVE"

    def _resource(self, stored: Stored, version: str, base: str) -> dict[str, Any]:
        created = _time(stored.created)
        state = self._state(stored)
        told = stored.fields | {
            "createTime": created,
            "updateTime": created,
            "expirationTime": _time(stored.created + LIFE_S),
            "uri": f"{base}/{version}/{stored.name}",
            "state": state,
            "source": "UPLOADED",
        }
        if state == "FAILED":
            told["error"] = {"code": 3, "message": "The file could not be processed."}
        return {name: value for name, value in told.items() if value is not None}

    def _listing(self, call: Call, version: str, owner: str, base: str) -> Mapping[str, Any]:
        size, token = call.parameter("pageSize") or str(_PAGE), call.parameter("pageToken") or "0"
        if not size.isdecimal() or not token.isdecimal():
            raise bodies.refusal(400, "Request contains an invalid argument.")
        now = self._clock()
        mine = [each for each in self._files.values() if each.owner == owner and now < each.created + LIFE_S]
        stop = int(token) + (int(size) or _PAGE)
        page: dict[str, Any] = {}
        if shown := mine[int(token) : stop]:
            page["files"] = [self._resource(each, version, base) for each in shown]
        if stop < len(mine):
            page["nextPageToken"] = str(stop)
        return page


def _spool() -> IO[bytes]:
    return cast("IO[bytes]", SpooledTemporaryFile(_IN_MEMORY))


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
