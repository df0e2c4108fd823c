"""Gemini's batches: `:batchGenerateContent` of a file or of requests inline, and what is told of them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeline.emulator import bodies, wire
from pipeline.emulator.batch_faults import Draw
from pipeline.emulator.batch_lines import Making, Result
from pipeline.emulator.batch_queue import Asked, Batch, BatchQueue, read
from pipeline.emulator.batches import ENDED
from pipeline.emulator.caches import Caches
from pipeline.emulator.generate import Generator
from pipeline.emulator.http import Call, Response, json_response
from pipeline.emulator.kept import Kept
from pipeline.emulator.messages import JSON, STRING, Message, Refusal, Repeated, parse
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.stats import Stats
from pipeline.emulator.storage import Storage
from pipeline.models import Model

Body = dict[str, Any]

_CREATE = Message(
    batch=Message(
        name=STRING,
        model=STRING,
        display_name=STRING,
        input_config=Message(
            file_name=STRING, requests=Message(requests=Repeated(Message(request=JSON, metadata=JSON)))
        ),
        priority=JSON,
        webhook_config=JSON,
    )
)
_PATH = re.compile(r"/(v1|v1beta)/(?:models/([^/:]+):batchGenerateContent|batches(?:/([^/:]+)(:cancel)?)?)")
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
_MOST_INLINE = 20 * 2**20  # bytes of a create
_EXPIRES_S = 48 * 3600.0
_PAGE = 50
_MAX_PAGE = 100
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 429: 8, 499: 1, 500: 13, 503: 14, 504: 4}  # HTTP → gRPC
_MESSAGES = {1: bodies.CANCELLED, 4: bodies.DEADLINE, 8: bodies.EXHAUSTED, 13: bodies.INTERNAL, 14: bodies.OVERLOADED}
_CANCELLED = {"code": 1, "message": bodies.CANCELLED}
_EXPIRED = {"code": 4, "message": "The batch expired before it was completed."}
_INTERNAL = {"code": 13, "message": bodies.INTERNAL}


class BatchService:
    """Gemini's routes of batches; `clock` is the server's."""

    def __init__(
        self,
        options: EmulatorOptions,
        stats: Stats,
        clock: Callable[[], float],
        draw: Draw,
        generator: Generator,
        storage: Storage,
        caches: Caches,
        served: Callable[[Model], Model],
    ) -> None:
        self._options, self._stats, self._clock, self._draw = options, stats, clock, draw
        self._generator, self._storage, self._caches, self._served = generator, storage, caches, served
        self.queue = BatchQueue(options, stats, clock, draw, self._making, self._handed_out, expires_s=_EXPIRES_S)
        storage.watchers.append(self.queue.input_deleted)

    def serves(self, path: str) -> bool:
        """Whether a path is one of this."""
        return self._options.batch and _PATH.fullmatch(path) is not None

    async def answer(
        self, call: Call, key_of: Callable[[str, str], str], model_of: Callable[[str, str], Model]
    ) -> Response:
        """Serve one request; `key_of` and `model_of` take the API version, and raise `Refusal`."""
        match = _PATH.fullmatch(call.path)
        assert match is not None
        version, model, name, cancel = match.groups()
        verb = _verb(call.method, model, name, cancel)
        if verb is None:
            raise bodies.unknown_path(call.path)
        self._stats.add_batch_call(verb, self._clock())
        owner = key_of(version, verb)
        if self._draw.hit("call_503") is not None:
            raise bodies.refusal(503, bodies.OVERLOADED)
        if verb == "create":
            return await self._created(call, model_of(version, model), owner)
        if verb == "list":
            return json_response(await self._listed(call, owner))
        batch = self.queue.find(name, owner)
        if batch is None:
            raise bodies.refusal(404, "Requested entity was not found.")
        if verb == "cancel":
            self.queue.cancel(batch)
            return json_response({})
        if verb == "delete":
            self.queue.delete(batch)
            return json_response({})
        await self.queue.brought_up([batch])
        return json_response(self._operation(batch, with_results=True))

    async def _created(self, call: Call, model: Model, owner: str) -> Response:
        asked = parse(_CREATE, await call.body(_MOST_INLINE)).get("batch") or {}
        source = asked.get("inputConfig") or {}
        file, requests = source.get("fileName"), (source.get("requests") or {}).get("requests")
        if bool(file) == bool(requests):
            raise bodies.refusal(
                400, "* BatchGenerateContentRequest.batch.input_config: exactly one source is needed\n"
            )
        content = self._storage.content(file, owner) if file else _kept(requests or [])
        fields = {"displayName": asked["displayName"]} if asked.get("displayName") else {}
        wanted = Asked(owner, model, fields, content, file or "")
        if content is not None and self._options.batch_tokens is not None:
            wanted.tokens = sum([self._tokens(line, model, owner) async for line in read(content)])
        if not self.queue.has_room(wanted):
            raise bodies.refusal(429, bodies.QUOTA_EXCEEDED, [bodies.help_link()])
        late = self._draw.hit("create_late")
        if late is not None:
            self.queue.accept_late(wanted, late, lambda: self._storage.content(file, owner) if file else content)
            return Response(0, b"", broken="reset")
        batch = self.queue.accept(wanted)
        if self._draw.hit("create_cut") is not None:
            return Response(0, b"", broken="reset")
        return json_response(self._operation(batch))

    async def _listed(self, call: Call, owner: str) -> Body:
        size, token = call.parameter("pageSize") or str(_PAGE), call.parameter("pageToken") or ""
        if not size.isdecimal() or not (token.isdecimal() or not token):
            raise bodies.refusal(400, "Request contains an invalid argument.")
        most = min(int(size) or _PAGE, _MAX_PAGE)
        page, after = self.queue.listed(owner, int(token) if token else None, most)
        await self.queue.brought_up(page)
        told: Body = {"operations": [self._operation(batch) for batch in page]} if page else {}
        return told | ({"nextPageToken": str(after)} if after is not None else {})

    def _operation(self, batch: Batch, with_results: bool = False) -> Body:
        """A batch as an operation; a list tells of no results."""
        now = self._clock()
        state = self.queue.shown(batch, now)
        name = f"batches/{batch.name}"
        output: Body = {}
        is_named = now >= batch.course.ended + batch.faults.get("output_late", 0)
        if state == "SUCCEEDED" and with_results and is_named:
            output = self._output(batch)
        times = {"createTime": _time(batch.created)}
        if state in ENDED:
            times["endTime"] = _time(batch.course.ended)
        else:
            times["updateTime"] = _time(batch.created if state == "PENDING" else batch.course.started)
        metadata = {
            "@type": _TYPE,
            "model": f"models/{batch.asked.model.name}",
            **batch.asked.fields,
            **({"inputConfig": {"fileName": batch.asked.file}} if batch.asked.file else {}),
            **({"output": output} if output else {}),
            **times,
            "batchStats": _counted(batch, state),
            "state": f"BATCH_STATE_{state}",
            "name": name,
        }
        told: Body = {"name": name, "metadata": metadata}
        if state not in ENDED:
            return told
        told["done"] = True
        if state == "SUCCEEDED":
            return told | ({"response": {"@type": f"{_TYPE}Output", **output}} if output else {})
        errors = {"CANCELLED": _CANCELLED, "EXPIRED": _EXPIRED}
        failure = {"code": 3, "message": batch.failure.message} if batch.failure else _INTERNAL
        return told | {"error": errors.get(state, failure)}

    def _output(self, batch: Batch) -> Body:
        if _is_named(batch):
            return {"responsesFile": _results_file(batch)}
        assert batch.making is not None
        results = [orjson.loads(line) for line in batch.making.results.lines()]
        return {"inlinedResponses": {"inlinedResponses": results}}

    def _making(self, batch: Batch, count: int, lost: bool) -> Making:
        content = batch.asked.content  # none, where a late one found its file gone: nothing of it is answered
        return Making(
            batch.number,
            content.lines() if content else iter(()),
            count if content else 0,
            self._draw,
            _name if batch.asked.file else _metadata,
            lambda line, unseen: self._answered(batch, line, unseen),
            _error,
            _stranger,
            _written if _is_named(batch) else _written_inline,
            lost,
        )

    def _answered(self, batch: Batch, line: bytes, lost: bool) -> Body:
        model, owner = batch.asked.model, batch.asked.owner
        ask = self._ask(line, model, owner)
        body = self._generator.line(ask, self._served(model), owner, lost)
        if not lost:
            self._stats.add_line(str(_key(line)))
        return body

    def _ask(self, line: bytes, model: Model, owner: str) -> wire.Ask:
        return self._caches.filled(wire.read_request(_object(line).get("request")), model, owner)

    def _tokens(self, line: bytes, model: Model, owner: str) -> int:
        """What it counts while it waits; nothing, where it will be refused."""
        try:
            return self._generator.line_tokens(self._ask(line, model, owner), self._served(model), owner)
        except Refusal:
            return 0

    def _handed_out(self, batch: Batch, making: Making) -> None:
        if _is_named(batch):
            self._storage.add_results(_results_file(batch), batch.asked.owner, making.results, batch.course.ended)


def _verb(method: str, model: str | None, name: str | None, cancel: str | None) -> str | None:
    if model:
        return "create" if method == "POST" else None
    if name is None:
        return "list" if method == "GET" else None
    if cancel:
        return "cancel" if method == "POST" else None
    return {"GET": "get", "DELETE": "delete"}.get(method)


def _is_named(batch: Batch) -> bool:
    """Whether its results are a file."""
    return bool(batch.asked.file) and "inline_output" not in batch.faults


def _results_file(batch: Batch) -> str:
    return f"files/batch-{batch.name}"


def _kept(requests: list[Body]) -> Kept:
    """Requests that came inline, as lines."""
    content = Kept()
    for request in requests:
        content.append(orjson.dumps(request) + b"\n")
    return content


def _object(line: bytes) -> Body:
    """A line that is none of JSON asks for nothing."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _key(line: bytes) -> Any:
    asked = _object(line)
    metadata = asked.get("metadata")
    return asked.get("key", metadata.get("key") if isinstance(metadata, dict) else None)


def _name(line: bytes) -> Body:
    asked = _object(line)
    return {"key": asked["key"]} if "key" in asked else {}


def _metadata(line: bytes) -> Body:
    asked = _object(line)
    return {"metadata": asked["metadata"]} if "metadata" in asked else {}


def _error(cause: int | Refusal) -> Body:
    """As a google.rpc.Status has it: the code is gRPC's."""
    if isinstance(cause, int):
        return {"code": cause, "message": _MESSAGES.get(cause, "The request could not be processed.")}
    told: Any = cause.body
    return {"code": _CODES.get(cause.status, 2), "message": told["error"]["message"]}


def _stranger(name: Body, place: int) -> Body:
    key = f"stranger-{place}"
    return {"metadata": {"key": key}} if "metadata" in name else {"key": key}


def _written(result: Result) -> Body:
    if result.error is not None:
        return {**result.name, "error": result.error}
    return {**({"response": result.answer} if result.answer else {}), **result.name}


def _written_inline(result: Result) -> Body:
    """Of a file's lines too the key is then in the metadata."""
    name = {"metadata": result.name} if "key" in result.name else result.name
    told = {"error": result.error} if result.error is not None else {"response": result.answer}
    return {**{field: value for field, value in told.items() if value is not None}, **name}


def _counted(batch: Batch, state: str) -> Body:
    """As in protobuf JSON, numbers of 64 bits are strings, and a zero is left out."""
    done = state == "SUCCEEDED" and batch.making is not None
    counts = {
        "requestCount": batch.lines,
        "successfulRequestCount": batch.making.succeeded if done and batch.making else 0,
        "failedRequestCount": batch.making.failed if done and batch.making else 0,
        "pendingRequestCount": 0 if done else batch.lines,
    }
    return {name: str(n) for name, n in counts.items() if n}


def _time(at: float) -> str:
    """Nine digits, as the service tells times of batches."""
    whole = int(at)
    digits = min(int((at - whole) * 10**9), 10**9 - 1)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{digits:09d}Z"
