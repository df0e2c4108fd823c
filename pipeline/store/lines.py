"""The lines of a journal: what is kept of requests, replies and outcomes, written as JSON and read again."""

import base64
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

from pipeline.prompts import Params, Prompt, Tools, Turn
from pipeline.records import Media, Parse, Reply, Result, Step, Usage, changed

_KEPT = ("status", "finish_reason", "error_kind", "error", "response_id", "text", "extras", "continuation")
"""Of a reply that an earlier generation bought: its body stays there."""
_USAGE = tuple(field.name for field in fields(Usage))


class Call(NamedTuple):
    """One reply as it is kept, without its body, and where it belongs; `line` is its journal line, to copy it on."""

    row: int
    key: str
    step: str
    level: int
    chunk: int
    chunks: int
    fingerprint: str
    input_tokens_est: int
    reply: Reply
    paid: bool
    line: bytes
    late: bool = False  # of a batch: its prompt was answered elsewhere meanwhile

    @property
    def has_cost(self) -> bool:
        """Whether it was paid for, or may have been."""
        return self.paid or self.reply.cost_usd != 0 or self.reply.at_most_usd != 0


class Sent(NamedTuple):
    """A request that left, as it is kept until its reply or failure follows."""

    fingerprint: str
    row: int
    model: str
    input_tokens_est: int
    max_output_tokens: int | None
    at: float = 0.0  # epoch seconds; 0 where an older version wrote it, which left out the rest too
    key: str = ""
    step: Step = "answer"
    level: int = 0
    chunk: int = 0
    chunks: int = 1
    sound_tokens: int = 0  # what it may cost depends on these two as well
    may_search: bool = False

    @property
    def prompt(self) -> Prompt:
        """What was sent, without its text; of its files the sound is there, as one."""
        tools = Tools(google_search="{}") if self.may_search else None
        params = Params(max_output_tokens=self.max_output_tokens, tools=tools)
        heard = Turn("user", (Media("audio", "", "", 0, self.sound_tokens),))
        place = self.level, self.chunk, self.chunks
        content = (heard,) if self.sound_tokens else ()
        prompt = Prompt(self.row, self.key, self.step, content, params, self.input_tokens_est, *place)
        return prompt.known_as(self.fingerprint, self.model)


def sent_of(prompt: Prompt, model: str, at: float) -> Sent:
    """The note of a prompt that is about to be sent to a model."""
    return Sent(
        prompt.fingerprint(model),
        prompt.row,
        model,
        prompt.input_tokens_est,
        prompt.params.max_output_tokens,
        at,
        prompt.key,
        prompt.step,
        prompt.level,
        prompt.chunk,
        prompt.chunks,
        prompt.sound_tokens,
        prompt.may_search,
    )


class Ended(NamedTuple):
    """A request that came back without an answer: it is in flight no more."""

    fingerprint: str


def call_line(prompt: Prompt, model: str, reply: Reply, answered: bool = True) -> bytes:
    """The journal line of one reply of the `model` asked: what was read from it, and its body byte for byte.

    Not `answered`: a request that may have been billed all the same, with the start of what came, if anything did.
    """
    record: dict[str, Any] = {
        "call": {
            "row": prompt.row,
            "key": prompt.key,
            "step": prompt.step,
            "level": prompt.level,
            "chunk": prompt.chunk,
            "chunks": prompt.chunks,
            "fingerprint": prompt.fingerprint(model),
            "input_tokens_est": prompt.input_tokens_est,
            "endpoint": reply.endpoint,
            "latency_s": reply.latency_s,
            "attempts": reply.attempts,
            "rate_limited": reply.rate_limited,
            "finished_at": reply.finished_at,
            "model": reply.model,
            "usage": _usage_fields(reply.usage),
            "cost_usd": _text(reply.cost_usd),
        }
    }
    call = record["call"]
    if reply.target:
        call["target"] = reply.target
    if reply.lane != "standard":
        call["lane"] = reply.lane
    if reply.fell_back:
        call["fell_back"] = reply.fell_back
    if reply.standard_usd is not None:
        call["standard_usd"] = _text(reply.standard_usd)
    if reply.at_most_usd != 0:
        call["at_most_usd"] = _text(reply.at_most_usd)
    if reply.worst_usd is not None:
        call["worst_usd"] = str(reply.worst_usd)
    if reply.generation:
        call["kept"] = [reply.generation, *(getattr(reply, name) for name in _KEPT)]
        return _line(record)
    if not reply.raw or not answered:
        call["failure"] = [reply.status, reply.error_kind, reply.error]
        if reply.raw:
            call["start"] = reply.raw.decode("utf-8", "replace")
        return _line(record)
    call["outcome"] = [reply.status, reply.finish_reason, reply.error_kind, reply.error, reply.response_id]
    try:
        call["body"] = reply.raw.decode()
    except UnicodeDecodeError:
        call["body_base64"] = base64.b64encode(reply.raw).decode()
    return _line(record)


def sent_line(sent: Sent) -> bytes:
    """The journal line of a request that is about to leave."""
    return _line({"sent": tuple(sent if sent.sound_tokens or sent.may_search else sent[:-2])})


def ended_line(fingerprint: str) -> bytes:
    """The journal line of a request that came back without an answer."""
    return _line({"ended": fingerprint})


def result_line(result: Result) -> bytes:
    """The journal line of one document's outcome."""
    record = {
        "row": result.row,
        "key": result.key,
        "status": result.status,
        "response": result.response,
        "error_kind": result.error_kind,
        "error": result.error,
        "finish_reason": result.finish_reason,
        "model": result.model,
        "target": result.target,
        "usage": _usage_fields(result.usage),
        "input_tokens_est": result.input_tokens_est,
        "cost_usd": _text(result.cost_usd),
        "calls": result.calls,
        "chunks": result.chunks,
        "attempts": result.attempts,
        "rate_limited": result.rate_limited,
        "latency_s": result.latency_s,
        "finished_at": result.finished_at,
        "changes": result.changes,
    }
    if result.extras is not None:
        record["extras"] = result.extras
    return _line({"result": record})


def kept(prompt: Prompt, model: str, reply: Reply, line: bytes, answered: bool = True) -> Call:
    """What is remembered of a reply that was just appended as `line`; `answered` as in `call_line`."""
    return Call(
        prompt.row,
        prompt.key,
        prompt.step,
        prompt.level,
        prompt.chunk,
        prompt.chunks,
        prompt.fingerprint(model),
        prompt.input_tokens_est,
        reply if reply.error_kind == "malformed_reply" else changed(reply, raw=b""),
        answered and bool(reply.raw or reply.generation),
        line,
    )


def record_of(line: bytes, parse: Parse) -> Call | Result | Sent | Ended:
    """What a line says, a reply read again by the provider's `parse`.

    Raises ValueError, LookupError, TypeError, AttributeError or ArithmeticError for a line that says nothing.
    """
    record = orjson.loads(line)
    if "sent" in record:
        return Sent(*record["sent"])
    if "ended" in record:
        return Ended(record["ended"])
    return _read_call(record["call"], line, parse) if "call" in record else _read_result(record["result"])


def _read_call(record: dict[str, Any], line: bytes, parse: Parse) -> Call:
    reply = replace(
        _read_reply(record, parse),
        usage=Usage(**record["usage"]),
        model=record["model"],
        endpoint=record["endpoint"],
        latency_s=record["latency_s"] or 0.0,
        attempts=record["attempts"],
        rate_limited=record["rate_limited"],
        finished_at=record["finished_at"] or 0.0,
        cost_usd=_usd(record["cost_usd"]),
        standard_usd=_usd(record.get("standard_usd")),
        at_most_usd=_usd(record.get("at_most_usd", 0)),
        worst_usd=_usd(record.get("worst_usd")),
        target=record.get("target", ""),
        lane=record.get("lane", "standard"),
        fell_back=record.get("fell_back"),
    )
    return Call(
        record["row"],
        record["key"],
        record["step"],
        record["level"],
        record["chunk"],
        record["chunks"],
        record["fingerprint"],
        record["input_tokens_est"],
        reply,
        "failure" not in record,
        line,
    )


def _read_reply(record: dict[str, Any], parse: Parse) -> Reply:
    """What was decided when the reply came; its text is in the body."""
    if "kept" in record:
        generation, *rest = record["kept"]
        return Reply(generation=generation, **dict(zip(_KEPT, rest, strict=True)))
    if "failure" in record:
        status, kind, error = record["failure"]
        return Reply("", status, error_kind=kind, error=error, raw=record.get("start", "").encode())
    if "outcome" not in record:  # a line without checksum: its body was read as JSON, or kept as text
        body = orjson.dumps(record["raw"]) if "raw" in record else record["raw_text"].encode()
        reply = parse(body, record["endpoint"])
        return replace(reply, raw=reply.raw if reply.error_kind == "malformed_reply" else b"")
    raw = record["body"].encode() if "body" in record else base64.b64decode(record["body_base64"])
    status, finish_reason, kind, error, response_id = record["outcome"]
    reply = (
        Reply("", status, raw=raw)
        if kind == "malformed_reply"
        else replace(parse(raw, record["endpoint"]), status=status, raw=b"")
    )
    return replace(reply, finish_reason=finish_reason, error_kind=kind, error=error, response_id=response_id)


def _read_result(record: dict[str, Any]) -> Result:
    finished = record["finished_at"]
    return Result(
        **{
            **record,
            "latency_s": record["latency_s"] or 0.0,  # JSON has null for what is no number
            "usage": Usage(**record["usage"]),
            "cost_usd": _usd(record["cost_usd"]),
            "finished_at": None if finished is None else datetime.fromisoformat(finished),
        }
    )


def _line(record: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half a surrogate pair, or a number of more than 64 bits: paid for all the same
        tamed = _tame(record)
    for kind, fields_ in record.items():
        if isinstance(fields_, dict) and tamed[kind].get("usage") != fields_.get("usage"):
            tamed[kind]["usage"]["estimated"] = True
    return orjson.dumps(tamed, option=orjson.OPT_APPEND_NEWLINE)


def _tame(value: Any) -> Any:
    """The value with what no line can hold at the edge of what it can."""
    if isinstance(value, dict):
        return {name: _tame(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tame(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return value if isinstance(value, bool) else max(-(2**63), min(value, 2**63 - 1))
    return value


def _text(usd: Decimal | None) -> str | None:
    return None if usd is None else str(usd)


def _usd(text: str | int | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _usage_fields(usage: Usage) -> dict[str, int]:
    return {name: getattr(usage, name) for name in _USAGE}
