"""What stands in a line of results: its key, and a response or an error of its own. Pure, but for whom it asks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from pipeline.prompts import Params, Prompt, said
from pipeline.providers.answers import is_error
from pipeline.providers.batches.base import Line
from pipeline.providers.failures import classify, misses_a_file
from pipeline.providers.foreign import dumped, load, mapping, string, whole_number
from pipeline.providers.transport import Response
from pipeline.records import Failure, Lane, Reply


class Outcome(Protocol):
    """What a live response would say: `Connection.outcome`."""

    def __call__(self, response: Response, prompt: Prompt, model: str, *, lane: Lane | None = None) -> Reply | Failure:
        """A reply, or a failure."""
        ...


GRPC: Mapping[int, tuple[int, str]] = {
    1: (499, "CANCELLED"),
    2: (500, "UNKNOWN"),
    3: (400, "INVALID_ARGUMENT"),
    4: (504, "DEADLINE_EXCEEDED"),
    5: (404, "NOT_FOUND"),
    6: (409, "ALREADY_EXISTS"),
    7: (403, "PERMISSION_DENIED"),
    8: (429, "RESOURCE_EXHAUSTED"),
    9: (400, "FAILED_PRECONDITION"),
    10: (503, "ABORTED"),
    11: (400, "OUT_OF_RANGE"),
    12: (501, "UNIMPLEMENTED"),
    13: (500, "INTERNAL"),
    14: (503, "UNAVAILABLE"),
    15: (500, "DATA_LOSS"),
    16: (401, "UNAUTHENTICATED"),
}
"""What the codes of gRPC are in HTTP, and their names (google/rpc/code.proto). One that was aborted is asked again."""


def read_line(line: bytes, outcome: Outcome, model: str, input_tokens_est: int) -> Line:
    """A line of Gemini's results: `key`, or `metadata.key`, beside `response` or `error`."""
    told = load(line)
    if not isinstance(told, dict):
        return _unreadable()
    key = string(told.get("key")) or string(mapping(told.get("metadata")).get("key")) or None
    response, error = mapping(told.get("response")), told.get("error")
    found = _found(response, 200, outcome, model, input_tokens_est) if response else None
    if is_error(error) and not isinstance(found, Reply):
        found = grpc_failure(error)
    return _line(key, found)


def read_chat_line(line: bytes, outcome: Outcome, model: str, input_tokens_est: int) -> Line:
    """A line of OpenAI's results or errors: `custom_id`, beside `response` with a status and a body, or `error`.

    The error of a line is often in `response.body.error`, with `error` null.
    """
    told = load(line)
    if not isinstance(told, dict):
        return _unreadable()
    response, error = mapping(told.get("response")), told.get("error")
    body, status = mapping(response.get("body")), whole_number(response.get("status_code"))
    found = _found(body, status or 200, outcome, model, input_tokens_est) if body else None
    if is_error(error) and not isinstance(found, Reply):
        found = in_batch(classify(500, {}, dumped({"error": error})))
    elif found is None and status is not None and status >= 400:
        found = in_batch(classify(status, {}, b""))
    return _line(string(told.get("custom_id")) or None, found)


def grpc_failure(error: object) -> Failure:
    """What a `google.rpc.Status` means, whose code is a number of gRPC's."""
    fields: dict[str, Any] = error if isinstance(error, dict) else {"message": string(error)}
    code = whole_number(fields.get("code")) or 0
    status, name = GRPC.get(code, (code if 400 <= code <= 599 else 500, ""))
    named = {**fields, "code": status, "status": string(fields.get("status")) or name}
    return in_batch(classify(status, {}, dumped({"error": named})))


def in_batch(failure: Failure) -> Failure:
    """A failure that no response of its own told. A file that is gone is uploaded again."""
    message = failure.message.removeprefix(f"HTTP {failure.http_status} ").removeprefix(f"HTTP {failure.http_status}: ")
    if misses_a_file(failure):
        return replace(failure, kind="transient", error_kind="server", message="an uploaded file is there no more")
    return replace(failure, message=f"in a batch: {message}")


def _found(
    body: Mapping[str, Any], status: int, outcome: Outcome, model: str, input_tokens_est: int
) -> Reply | Failure:
    prompt = Prompt(0, "", "answer", said(""), Params(), input_tokens_est)
    found = outcome(Response(status, {}, dumped(body)), prompt, model, lane="batch")
    return in_batch(found) if isinstance(found, Failure) else found


def _line(key: str | None, found: Reply | Failure | None) -> Line:
    return Line(key, found, None) if isinstance(found, Reply) else Line(key, None, found)


def _unreadable() -> Line:
    return Line(None, None, Failure("transient", "malformed_reply", "a line of results is no JSON object", billed=True))
