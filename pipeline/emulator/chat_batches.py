"""Batches of chat completions: OpenAI's own, and Google's form of them, whose files are those of the Files API."""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Protocol

import orjson

from pipeline.emulator import bodies, chat
from pipeline.emulator.batch_faults import Draw
from pipeline.emulator.batch_lines import Making, Result
from pipeline.emulator.batch_queue import Asked, Batch, BatchQueue, Failure, read
from pipeline.emulator.batches import State
from pipeline.emulator.chat_files import no_such
from pipeline.emulator.generate import Generator
from pipeline.emulator.http import Call, Response, json_response
from pipeline.emulator.kept import Kept
from pipeline.emulator.messages import Refusal
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.stats import Stats
from pipeline.models import Model

Body = dict[str, Any]

PATH = re.compile(r"/(v1|v1beta/openai|api/v1)/(files|batches)(?:/([^/]+)(?:/(content|cancel))?)?")
_EXPIRES_S = 24 * 3600.0
_PAGE, _MAX_PAGE = 20, 100
_MOST_LINES, _MOST_BYTES = 50_000, 200 * 2**20
_PAIRS, _KEY, _VALUE = 16, 64, 512  # of metadata
_ENDPOINT = "/v1/chat/completions"
_NAMES = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
_CANCELLING = 0.1  # of the time that it runs: so long a batch takes to end that is cancelled
_CANCELLING_S = 600.0  # at most (OpenAI: a batch is `cancelling` for up to 10 minutes)
_STATUSES: Mapping[State, str] = {
    "PENDING": "validating",
    "RUNNING": "in_progress",
    "SUCCEEDED": "completed",
    "FAILED": "failed",
    "EXPIRED": "expired",
    "CANCELLED": "cancelled",
}
_HTTP = {1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 14: 503, 16: 401}
_EXPIRED = "This request could not be executed before the completion window expired."


class Files(Protocol):
    """Where the files of batches are."""

    watchers: list[Callable[[str, str], None]]

    def content(self, name: str, owner: str) -> Kept | None:
        """What a batch of this file is made of; None where the key has no such file."""
        ...

    def add_results(self, name: str, owner: str, content: Kept, created: float, life_s: float | None = None) -> None:
        """Keep results of a batch."""
        ...


class ChatBatches:
    """The routes of batches, of OpenAI or in Google's form; `clock` is the server's.

    `model_of` raises `Refusal` for a model that is not served; `served` is the one that answers for it.
    """

    def __init__(
        self,
        options: EmulatorOptions,
        stats: Stats,
        clock: Callable[[], float],
        draw: Draw,
        generator: Generator,
        files: Files,
        model_of: Callable[[str], Model],
        served: Callable[[Model], Model],
        *,
        googles: bool,
    ) -> None:
        self._options, self._stats, self._clock, self._draw = options, stats, clock, draw
        self._generator, self._files, self._model_of, self._served = generator, files, model_of, served
        self._googles = googles
        self.queue = BatchQueue(
            options,
            stats,
            clock,
            draw,
            self._making,
            self._handed_out,
            expires_s=_EXPIRES_S,
            partial=not googles,
        )
        files.watchers.append(self.queue.input_deleted)

    async def answer(self, call: Call, name: str | None, part: str | None, owner: str) -> Response:
        """Serve one request; raises `Refusal`."""
        verbs = {
            ("POST", False, None): "create",
            ("GET", False, None): "list",
            ("GET", True, None): "get",
            ("POST", True, "cancel"): "cancel",
        }
        verb = verbs.get((call.method, name is not None, part))
        if verb is None:
            raise no_such(call)
        self._stats.add_batch_call(verb, self._clock())
        if self._draw.hit("call_503") is not None:
            raise bodies.refusal(503, bodies.OVERLOADED)
        if verb == "create":
            return await self._created(call, owner)
        if verb == "list":
            return json_response(await self._listed(call, owner))
        batch = self._find(name or "", owner)
        if verb == "cancel":
            status = self._status(batch, self._clock())
            if status not in ("validating", "in_progress", "finalizing", "cancelling"):
                told = f"Cannot cancel a batch with status '{status}'."
                raise Refusal(409, chat.as_error(told, "invalid_request_error", None))
            self.queue.cancel(batch)
        await self.queue.brought_up([batch])
        return json_response(self._told(batch))

    def _find(self, name: str, owner: str) -> Batch:
        batch = self.queue.find(name.removeprefix("batch_"), owner)
        if batch is None:
            raise Refusal(404, chat.as_error(f"No batch found with id '{name}'.", "invalid_request_error", None))
        return batch

    # --- creating ---

    async def _created(self, call: Call, owner: str) -> Response:
        asked = _read_create(await call.body())
        file = asked["input_file_id"]
        content = self._files.content(file, owner)
        fields = {"metadata": asked.get("metadata"), "expires_after": asked.get("output_expires_after")}
        wanted = Asked(owner, Model(""), fields, content, file)
        if content is not None:
            await self._validate(wanted, content)
        if not self.queue.has_room(wanted):
            limit = self._options.batch_tokens or 0
            message = (
                f"Enqueued token limit reached for {wanted.model.name} in organization org-emulator. Limit: {limit:,}"
                " enqueued tokens. Please try again once some in_progress batches have been completed."
            )
            wanted.failure, wanted.tokens = Failure("token_limit_exceeded", message), 0
        late = self._draw.hit("create_late")
        if late is not None:
            self.queue.accept_late(wanted, late, lambda: self._files.content(file, owner))
            return Response(0, b"", broken="reset")
        batch = self.queue.accept(wanted)
        if self._draw.hit("create_cut") is not None:
            return Response(0, b"", broken="reset")
        return json_response(self._told(batch))

    async def _validate(self, asked: Asked, content: Kept) -> None:
        """Note what is wrong with the file, which the service finds once the batch is there; and its tokens."""
        names: set[str] = set()
        model = ""
        async for line in read(content):
            found = _object(line)
            name, body = found.get("custom_id"), found.get("body")
            if not isinstance(name, str) or not isinstance(body, dict):
                asked.failure = Failure("invalid_json_line", "A line is no JSON object with 'custom_id' and 'body'.")
            elif found.get("url") != _ENDPOINT or found.get("method") != "POST":
                asked.failure = Failure("invalid_url", f"The URL of a line is not that of the batch, {_ENDPOINT}.")
            elif name in names:
                asked.failure = Failure("duplicate_custom_id", f"The custom_id {name[:64]} is not unique.")
            elif model and body.get("model") != model:
                asked.failure = Failure("mismatched_model", "All lines of a batch have to name one model.")
            if asked.failure is not None:
                return
            names.add(str(name))
            if not model:
                model = str(body.get("model", "") if isinstance(body, dict) else "")
                asked.model = Model(model)
            if self._options.batch_tokens is not None:
                asked.tokens += self._tokens(line, asked.owner)
        if len(names) > _MOST_LINES or content.size > _MOST_BYTES:
            asked.failure = Failure("too_large", f"A batch has at most {_MOST_LINES:,} requests and 200 MB.")

    # --- telling ---

    async def _listed(self, call: Call, owner: str) -> Body:
        size, after = call.parameter("limit") or str(_PAGE), call.parameter("after")
        if not size.isdecimal() or not 1 <= int(size) <= _MAX_PAGE:
            raise bodies.refusal(400, f"Invalid value for 'limit': expected a number from 1 to {_MAX_PAGE}.")
        before = None if after is None else self._find(after, owner).number
        page, rest = self.queue.listed(owner, before, int(size))
        await self.queue.brought_up(page)
        told = [self._told(batch) for batch in page]
        ends = {"first_id": told[0]["id"], "last_id": told[-1]["id"]} if told else {"first_id": None, "last_id": None}
        return {"object": "list", "data": told, **ends, "has_more": rest is not None}

    def _status(self, batch: Batch, now: float) -> str:
        course = batch.course
        state, shown = course.state(now), self.queue.shown(batch, now)
        ending_s = min(_CANCELLING * course.full_s, _CANCELLING_S / self.queue.time_scale)
        if state == "CANCELLED" and (shown != state or now < course.ended + ending_s):
            return "cancelling"
        return "finalizing" if state != shown else _STATUSES[state]

    def _told(self, batch: Batch) -> Body:
        course, now = batch.course, self._clock()
        status = self._status(batch, now)
        ended, making = int(course.ended) if status not in ("validating", "in_progress") else None, batch.making
        is_out = batch.is_handed_out and making is not None and status in ("completed", "expired", "cancelled")
        is_named = is_out and now >= course.ended + batch.faults.get("output_late", 0)
        failure = batch.failure or Failure("server_error", "The batch failed.")
        errors = [{"code": failure.code, "line": None, "message": failure.message, "param": None}]
        has_errors = is_named and making is not None and making.errors.size > 0
        has_results = is_named and making is not None and making.results.size > 0
        return {
            "id": f"batch_{batch.name}",
            "object": "batch",
            "endpoint": _ENDPOINT,
            "model": batch.asked.model.name or None,
            "errors": {"object": "list", "data": errors} if status == "failed" else None,
            "input_file_id": batch.asked.file,
            "completion_window": "24h",
            "status": status,
            "output_file_id": self._output(batch) if has_results else None,
            "error_file_id": self._errors(batch) if has_errors else None,
            "created_at": int(batch.created),
            "in_progress_at": int(course.started) if course.started <= min(now, course.ended) else None,
            "expires_at": int(batch.created + _EXPIRES_S / self._options.time_scale),
            "finalizing_at": ended if status in ("finalizing", "completed") else None,
            "completed_at": ended if status == "completed" else None,
            "failed_at": ended if status == "failed" else None,
            "expired_at": ended if status == "expired" else None,
            "cancelling_at": int(batch.cancelled) if batch.cancelled and status.startswith("cancel") else None,
            "cancelled_at": ended if status == "cancelled" else None,
            "request_counts": {
                "total": 0 if status == "validating" else batch.lines,
                "completed": making.succeeded if is_out and making else 0,
                "failed": making.failed if is_out and making else 0,
            },
            "metadata": batch.asked.fields["metadata"],
        }

    def _output(self, batch: Batch) -> str:
        return f"files/batch-{batch.name}" if self._googles else f"file-{batch.name}"

    def _errors(self, batch: Batch) -> str:
        return f"file-{batch.name}-errors"

    # --- answering ---

    def _making(self, batch: Batch, count: int, lost: bool) -> Making:
        content = batch.asked.content  # none, where a late one found its file gone: nothing of it is answered
        return Making(
            batch.number,
            content.lines() if content else iter(()),
            count if content else 0,
            self._draw,
            _name,
            lambda line, unseen: self._answered(batch, line, unseen),
            self._error,
            lambda _name, place: {"custom_id": f"stranger-{place}"},
            lambda result: _written(batch, result),
            lost,
            errors_apart=not self._googles,
        )

    def _chat(self, line: bytes) -> tuple[chat.Chat, Model]:
        asked = chat.read(orjson.dumps(_object(line).get("body")), f"/{chat.GOOGLES}" if self._googles else "")
        return asked, self._served(self._model_of(asked.model))

    def _answered(self, batch: Batch, line: bytes, lost: bool) -> Body:
        asked, model = self._chat(line)
        body = self._generator.line(asked.ask, model, batch.asked.owner, lost)
        if not lost:
            self._stats.add_line(str(_object(line).get("custom_id")))
        return chat.completion(body, self._googles)

    def _tokens(self, line: bytes, owner: str) -> int:
        """What it counts while it waits; nothing, where it will be refused."""
        try:
            asked, model = self._chat(line)
            return self._generator.line_tokens(asked.ask, model, owner)
        except Refusal:
            return 0

    def _error(self, cause: int | Refusal) -> Body:
        """The status and the body of a response."""
        if isinstance(cause, int):
            status = _HTTP.get(cause, 500)
            kind = "server_error" if status >= 499 else "invalid_request_error"
            return {"status_code": status, "body": chat.as_error("The request could not be processed.", kind, None)}
        told = chat.refused(json_response(cause.body, cause.status), self._googles)
        return {"status_code": cause.status, "body": orjson.loads(told.body)}

    def _handed_out(self, batch: Batch, making: Making) -> None:
        owner, ended = batch.asked.owner, batch.course.ended
        if batch.course.end == "EXPIRED":
            for line in islice(making.lines, batch.lines - making.count):
                told = {"id": f"batch_req_{batch.name}", **_name(line), "response": None}
                error = {"code": "batch_expired", "message": _EXPIRED}
                making.errors.append(orjson.dumps({**told, "error": error}) + b"\n")
        life_s = (batch.asked.fields["expires_after"] or {}).get("seconds")
        if making.results.size:
            self._files.add_results(self._output(batch), owner, making.results, ended, life_s)
        if making.errors.size:
            self._files.add_results(self._errors(batch), owner, making.errors, ended, life_s)


def _read_create(body: bytes) -> Body:
    """The body of a create; raises `Refusal` (400)."""
    asked = _object(body)
    if strange := sorted(asked.keys() - _NAMES):
        raise bodies.refusal(400, f"Unrecognized request argument supplied: {strange[0]}")
    if not isinstance(asked.get("input_file_id"), str) or not asked["input_file_id"]:
        raise bodies.refusal(400, "Missing required parameter: 'input_file_id'.")
    if asked.get("endpoint") != _ENDPOINT:
        raise bodies.refusal(400, f"Invalid value for 'endpoint': this service has batches for {_ENDPOINT} alone.")
    if asked.get("completion_window") != "24h":
        raise bodies.refusal(400, "Invalid value for 'completion_window': it has to be '24h'.")
    metadata, lasts = asked.get("metadata") or {}, asked.get("output_expires_after") or {}
    if not isinstance(metadata, dict) or len(metadata) > _PAIRS:
        raise bodies.refusal(400, f"Invalid 'metadata': at most {_PAIRS} pairs.")
    for key, value in metadata.items():
        if len(key) > _KEY or not isinstance(value, str) or len(value) > _VALUE:
            raise bodies.refusal(400, f"Invalid 'metadata': keys of {_KEY} characters, values of {_VALUE}.")
    if lasts and (lasts.get("anchor") != "created_at" or not 3600 <= int(lasts.get("seconds", 0)) <= 30 * 24 * 3600):
        raise bodies.refusal(400, "Invalid 'output_expires_after': from 3600 to 2592000 seconds after 'created_at'.")
    return asked


def _object(line: bytes) -> Body:
    """A line that is no object asks for nothing."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(line: bytes) -> Body:
    return {"custom_id": _object(line).get("custom_id")}


def _written(batch: Batch, result: Result) -> Body:
    """A line of results; what is wrong with a request stands in the body of its response."""
    request = f"req_{batch.name[:12]}_{result.name['custom_id']}"
    response = {"status_code": 200, "request_id": request, "body": result.answer} if result.answer else None
    if result.error is not None:
        response = {"status_code": result.error["status_code"], "request_id": request, "body": result.error["body"]}
    return {"id": f"batch_{request}", **result.name, "response": response, "error": None}
