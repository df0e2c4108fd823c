"""The Files API: resumable uploads, files that are processed and end after 48 hours, and results of batches.

Of what is uploaded only what a batch may be made of is kept, and that on disk.
"""

import re
import secrets
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal, cast

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.batch_faults import Draw
from pipeline.emulator.http import Call, ClientGone, Response, json_response
from pipeline.emulator.kept import Kept
from pipeline.emulator.messages import Refusal
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.stats import Stats
from pipeline.media import TAKEN, Facts, facts_of

LIFE_S = 48 * 3600
_MOST_BYTES = 2 * 2**30
_GRANULE = 256 * 1024
"""Parts that are not the last are multiples of it."""
_LONGEST_NAME = 40  # of a file that can be deleted: those of results are longer
_ENDLESS_DELAY = f"{2**63 - 1}s"
_PATH = re.compile(r"/(?:upload/|download/)?(v1|v1beta)/files(?:/([a-z0-9-]+)(:download)?)?")
_NAME = re.compile(r"files/[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_PAGE = 10


@dataclass(slots=True)
class Stored:
    """One file; without its bytes, unless a batch may be made of them or they are the results of one."""

    name: str
    owner: str
    fields: dict[str, Any]
    facts: Facts
    created: float
    content: Kept | None = None
    generated: bool = False


@dataclass(slots=True)
class _Upload:
    """One upload that goes on; `done` is the answer to its end."""

    owner: str
    fields: dict[str, Any]
    size: int | None
    content: Kept
    done: bytes | None = None


class Storage:
    """The files of all keys; `clock` is the server's, `faults` of `EmulatorOptions.upload_faults` come one a part."""

    def __init__(self, options: EmulatorOptions, stats: Stats, clock: Callable[[], float], draw: Draw) -> None:
        self._options, self._stats, self._clock, self._draw = options, stats, clock, draw
        self.watchers: list[Callable[[str, str], None]] = []  # are told of a file that is deleted, and whose it was
        self._life_s = LIFE_S / options.time_scale
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
        version, name, download = found.groups()
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
        if download or call.path.startswith("/download/"):
            if not download or call.method != "GET":
                raise bodies.unknown_path(call.path)
            return self._downloaded(self.stored(f"files/{name}", owner))
        if call.method == "DELETE" and len(name) > _LONGEST_NAME:
            raise bodies.refusal(400, f"* DeleteFileRequest.name: {name} cannot be more than 40 characters\n")
        stored = self.stored(f"files/{name}", owner)
        if call.method == "DELETE":
            del self._files[stored.name]
            self._stats.files["deleted"] += 1
            for watch in self.watchers:
                watch(stored.name, owner)
            return json_response({})
        return json_response(self._resource(stored, version, call.base))

    def stored(self, name: str, owner: str) -> Stored:
        """A file of a key's; raises `Refusal` (403) for one that is foreign, over, or not there."""
        stored = self._files.get(name)
        if stored is not None and self._clock() >= stored.created + self._life_s:
            del self._files[name]
            stored = None
        if stored is None or stored.owner != owner:
            known = name.removeprefix("files/")
            raise bodies.refusal(403, f"You do not have permission to access the File {known} or it may not exist.")
        return stored

    def content(self, name: str, owner: str) -> Kept | None:
        """What a batch of this file is made of; None where the key has no such file."""
        try:
            return self.stored(name, owner).content
        except Refusal:
            return None

    def add_results(self, name: str, owner: str, content: Kept, created: float, _life_s: float | None = None) -> None:
        """Keep the results of a batch until they end, which nobody may choose; they cannot be deleted."""
        digest = _hashed(content)
        fields = {"name": name, "mimeType": "application/jsonl", "sizeBytes": str(content.size), "sha256Hash": digest}
        facts = Facts(None, content.size)
        self._files[name] = Stored(name, owner, fields, facts, created, content, generated=True)

    def _downloaded(self, stored: Stored) -> Response:
        if not stored.generated or stored.content is None:
            raise bodies.refusal(400, "Only generated files can be downloaded.")
        self._stats.files["downloads"] += 1
        size = stored.content.size
        if self._draw.hit("download_short") is not None:
            size //= 2
        broken = "truncated" if self._draw.hit("download_cut") is not None else None
        return Response(200, b"", "application/octet-stream", broken=broken, content=stored.content, size=size)

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
        if name in self._files and self._files[name].created + self._life_s > self._clock():
            raise Refusal(409, bodies.error(409, "Requested entity already exists", status="ALREADY_EXISTS"))
        mime_type = told.get("mimeType") or told.get("mime_type") or call.header(b"x-goog-upload-header-content-type")
        fields = {"name": name, "mimeType": mime_type, "displayName": told.get("displayName", told.get("display_name"))}
        self._check_room(owner, int(size) if size.isdecimal() else 0)
        session = secrets.token_urlsafe(24)
        self._uploads[session] = _Upload(owner, fields, int(size) if size.isdecimal() else None, Kept())
        self._stats.files["begun"] += 1
        self._stats.add_batch_call("upload", self._clock())
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
        fault = self._fault("upload" in commands)
        if fault == "503":
            raise bodies.refusal(503, bodies.OVERLOADED)
        offset, before = call.header(b"x-goog-upload-offset"), upload.content.size
        if not offset.isdecimal() or int(offset) > before:
            raise bodies.refusal(400, f"Expected offset {before}, and it is {offset or 'missing'}.")
        final = "finalize" in commands
        is_whole = await self._written(call, upload.content, int(offset))
        if upload.content.size > _MOST_BYTES or (is_whole and not final and (upload.content.size - before) % _GRANULE):
            upload.content.cut(before)
            raise bodies.refusal(400, f"A part that is not the last is a multiple of {_GRANULE} bytes, up to 2 GB.")
        if fault == "cut" or not is_whole:
            taken = (upload.content.size - before) // (2 if fault == "cut" else 1)
            upload.content.cut(before + taken // _GRANULE * _GRANULE)
        self._stats.files["bytes"] += upload.content.size - before
        if not is_whole:
            raise ClientGone
        if fault == "cut":
            return Response(200, b"", broken="reset")
        if final:
            self._end(upload, call)
            if self._draw.hit("upload_lost") is not None:
                return Response(200, b"", broken="reset")
        return Response(200, b"") if fault == "no_status" else self._status(upload)

    def _fault(self, is_part: bool) -> Literal["503", "cut", "no_status"] | None:
        if not is_part:
            return None
        if self._draw.hit("upload_cut") is not None:
            return "cut"
        return self._faults.popleft() if self._faults else None

    async def _written(self, call: Call, content: Kept, at: int) -> bool:
        """Whether the part came whole, which begins `at` there; what is there already is not taken twice."""
        try:
            async for data in call.chunks():
                content.append(data[content.size - at :])
                at += len(data)
                if content.size > _MOST_BYTES:
                    break
        except ClientGone:
            return False
        return True

    def _check_room(self, owner: str, size: int) -> None:
        """Refuse what the storage of a project has no room for, with the delay that the service once told."""
        now = self._clock()
        files = (each for each in self._files.values() if each.owner == owner and now < each.created + self._life_s)
        if sum(int(each.fields["sizeBytes"]) for each in files) + size <= self._options.storage_bytes:
            return
        metric = f"{bodies.SERVICE}/file_storage_bytes"
        violation = {
            "quotaMetric": metric,
            "quotaId": "FileStorageBytesPerProject",
            "quotaValue": str(self._options.storage_bytes),
        }
        limit = f"\n* Quota exceeded for metric: {metric}, limit: {self._options.storage_bytes}"
        details = [bodies.help_link(), bodies.quota_failure([violation]), bodies.retry_info(_ENDLESS_DELAY)]
        raise bodies.refusal(429, bodies.QUOTA_EXCEEDED + limit, details)

    def _status(self, upload: _Upload) -> Response:
        status = b"active" if upload.done is None else b"final"
        received = str(upload.content.size).encode()
        headers = ((b"x-goog-upload-status", status), (b"x-goog-upload-size-received", received))
        return Response(200, upload.done or b"", headers=headers)

    def _end(self, upload: _Upload, call: Call) -> None:
        content = upload.content
        if upload.size is not None and content.size != upload.size:
            raise bodies.refusal(400, f"{content.size} bytes came of {upload.size} that were announced.")
        facts = facts_of(cast(Any, content.file), content.size)
        fields = upload.fields | {"sizeBytes": str(content.size), "sha256Hash": _hashed(content)}
        is_media = any(fields["mimeType"] in forms for forms in TAKEN.values())
        kept = content if self._options.batch and not is_media else None
        stored = Stored(fields["name"], upload.owner, fields, facts, self._clock(), kept)
        self._files[stored.name] = stored
        self._stats.files["stored"] += 1
        upload.done = orjson.dumps({"file": self._resource(stored, "v1beta", call.base)})
        if kept is None:
            content.cut(0)

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
            "expirationTime": _time(stored.created + self._life_s),
            "uri": f"{base}/{version}/{stored.name}",
            "state": state,
            "source": "GENERATED" if stored.generated else "UPLOADED",
        }
        if stored.generated:
            told["downloadUri"] = f"{base}/download/{version}/{stored.name}:download?alt=media"
        if state == "FAILED":
            told["error"] = {"code": 3, "message": "The file could not be processed."}
        return {name: value for name, value in told.items() if value is not None}

    def _listing(self, call: Call, version: str, owner: str, base: str) -> Mapping[str, Any]:
        size, token = call.parameter("pageSize") or str(_PAGE), call.parameter("pageToken") or "0"
        if not size.isdecimal() or not token.isdecimal():
            raise bodies.refusal(400, "Request contains an invalid argument.")
        now = self._clock()
        mine = [each for each in self._files.values() if each.owner == owner and now < each.created + self._life_s]
        stop = int(token) + (int(size) or _PAGE)
        page: dict[str, Any] = {}
        if shown := mine[int(token) : stop]:
            page["files"] = [self._resource(each, version, base) for each in shown]
        if stop < len(mine):
            page["nextPageToken"] = str(stop)
        return page


def _hashed(content: Kept) -> str:
    digest = sha256()
    for block in content.blocks():
        digest.update(block)
    return b64encode(digest.digest()).decode()


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
